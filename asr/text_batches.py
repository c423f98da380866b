"""Text to the batches that a language model learns from: sentences of like length, the same ones every time."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator
from zlib import crc32

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from asr.plan import fill_batches
from asr.vocabulary import Vocabulary

__all__ = ["ShuffledBatches", "TextBatches", "TokenBatch"]

LONGEST_SENTENCE = 128
"""Tokens; what is longer is learned in parts, as if each were a sentence."""

POOL_SENTENCES = 20_000
"""Sentences that are sorted by length among themselves, to make batches of."""

TokenBatch = tuple[Tensor, Tensor]
"""Padded token ids (batch, tokens), and their lengths (batch,)."""


class TextBatches(Dataset[TokenBatch]):
    """The sentences in batches of like length, each batch an item."""

    def __init__(self, sentences: Iterable[str], vocabulary: Vocabulary, batch_tokens: int, seed: int) -> None:
        """batch_tokens: of a batch at most, padding and the sentences' ends included."""
        tokens, lengths = array("I"), array("I")
        for token_ids in _encode(sentences, vocabulary):
            tokens.extend(token_ids)
            lengths.append(len(token_ids))
        self._tokens, sizes = numpy.asarray(tokens), numpy.asarray(lengths, dtype=numpy.int64)
        self._ends = sizes.cumsum()
        order = numpy.random.default_rng(seed).permutation(len(sizes))
        self._batches: list[numpy.ndarray] = []
        for start in range(0, len(order), POOL_SENTENCES):
            pool = order[start : start + POOL_SENTENCES]
            pool = pool[sizes[pool].argsort(kind="stable")]
            filled = fill_batches((sizes[pool] + 1).tolist(), range(len(pool)), batch_tokens)
            self._batches += [pool[batch] for batch in filled]

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def checksum(self) -> int:
        """Another one for other sentences."""
        return crc32(self._ends.tobytes(), crc32(self._tokens.tobytes()))

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> TokenBatch:
        places = [(self._ends[number - 1] if number else 0, self._ends[number]) for number in self._batches[index]]
        sentences = [torch.from_numpy(self._tokens[start:end].astype(numpy.int64)) for start, end in places]
        return pad_sequence(sentences, batch_first=True), torch.tensor([len(sentence) for sentence in sentences])


def _encode(sentences: Iterable[str], vocabulary: Vocabulary) -> Iterator[list[int]]:
    for sentence in sentences:
        token_ids = vocabulary.encode(sentence)
        yield from (token_ids[start : start + LONGEST_SENTENCE] for start in range(0, len(token_ids), LONGEST_SENTENCE))


class ShuffledBatches(Sampler[int]):
    """One rank's share of the batches, in an order that is a function of (seed, epoch) alone."""

    def __init__(
        self,
        num_batches: int,
        seed: int,
        epoch: int,
        world_size: int = 1,
        rank: int = 0,
        *,
        batches_done: int = 0,
        most: int | None = None,
    ) -> None:
        """batches_done: of the rank's share, before a resume; they are left out, but counted in the length.
        most: in the rank's share; None is all.
        """
        order = numpy.random.default_rng([seed, epoch]).permutation(num_batches)
        shared = numpy.resize(order, math.ceil(num_batches / world_size) * world_size)  # as many for each: some twice
        self._order: list[int] = shared[rank::world_size][:most].tolist()
        self._batches_done = batches_done

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order[self._batches_done :])
