"""Checked examples to batches of waveforms, for training and validation."""

from __future__ import annotations

import multiprocessing
import os
import signal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from asr.check import CheckedCorpus, Example
from asr.config import DataConfig
from asr.counters import epoch_to_plan, place_of
from asr.errors import AsrError
from asr.model import CTCModel
from asr.plan import DurationBatchSampler, Place, fill_batches
from asr.pronunciation import Pronunciations
from asr.vocabulary import Vocabulary

__all__ = ["Batch", "SpeechDataModule", "SpeechDataset"]


@dataclass(frozen=True)
class Batch:
    """Utterances, padded with zeros."""

    waveforms: Tensor
    """(batch, samples) in [-1, 1]."""
    sample_lengths: Tensor
    """(batch,)"""
    targets: Tensor
    """(batch, tokens) token ids."""
    target_lengths: Tensor
    """(batch,)"""
    references: list[str]
    ids: list[str]
    """Empty where a silent second stands for utterances of which none can be read."""
    phonemes: Tensor | None = None
    """(batch, phonemes) phoneme ids of the references, for a model that hears phonemes."""
    phoneme_lengths: Tensor | None = None
    """(batch,)"""
    unreadable: tuple[str, ...] = ()
    """Why utterances of the plan are not here, each in a sentence."""
    unheard: tuple[str, ...] = ()
    """Their references."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """The same on another device; Lightning calls it."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }
        return Batch(**moved)


class SpeechDataset(Dataset[Batch]):
    """A list of indices to a Batch. Decoded audio is kept in memory up to a budget."""

    def __init__(
        self,
        examples: Sequence[Example],
        vocabulary: Vocabulary,
        sample_rate: int,
        cache_hours: float = 0.0,
        pronunciations: Pronunciations | None = None,
    ) -> None:
        self.examples = examples
        self.vocabulary, self.pronunciations = vocabulary, pronunciations
        self.sample_rate = sample_rate
        self._is_cached = cache_hours > 0
        self._cache: dict[int, tuple[Tensor, float]] = {}
        self._cache_samples_left = int(cache_hours * 3600 * self.sample_rate)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, indices: list[int]) -> Batch:
        """Audio that cannot be read leaves its utterance out; a batch of nothing else is a silent second."""
        references, ids, waveforms, unreadable, unheard = [], [], [], [], []
        for index in indices:
            example = self.examples[index]
            try:
                waveforms.append(self._samples(index))
            except AsrError as error:
                unreadable.append(f"{example.utterance.place}: {error}")
                unheard.append(example.reference)
                continue
            references.append(example.reference)
            ids.append(example.utterance.id)
        if not waveforms:
            references, waveforms = [""], [torch.zeros(self.sample_rate)]
        targets, target_lengths = _pad(map(self.vocabulary.encode, references))
        return Batch(
            waveforms=pad_sequence(waveforms, batch_first=True),
            sample_lengths=torch.tensor([len(samples) for samples in waveforms]),
            targets=targets,
            target_lengths=target_lengths,
            references=references,
            ids=ids,
            unreadable=tuple(unreadable),
            unheard=tuple(unheard),
            **self._phonemes(references),
        )

    def _phonemes(self, references: Sequence[str]) -> dict[str, Tensor]:
        """A batch's, where the model hears them."""
        if self.pronunciations is None:
            return {}
        phonemes, lengths = _pad(map(self.pronunciations.encode, references))
        return {"phonemes": phonemes, "phoneme_lengths": lengths}

    def _samples(self, index: int) -> Tensor:
        """(samples,) float32; with a cache rounded as what it keeps, held or not: a resumed run may hold others."""
        if index in self._cache:
            return _from_16_bits(*self._cache[index])
        samples = self.examples[index].utterance.read(self.sample_rate)
        if not self._is_cached:
            return samples
        rounded = _to_16_bits(samples)
        if len(samples) <= self._cache_samples_left:
            self._cache_samples_left -= len(samples)
            self._cache[index] = rounded
        return _from_16_bits(*rounded)


def _pad(rows: Iterable[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, (rows, longest), and their lengths."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True), torch.tensor([len(tensor) for tensor in tensors])


def _to_16_bits(samples: Tensor) -> tuple[Tensor, float]:
    """Integers, and what their largest stands for: 1, or the peak of samples beyond it."""
    full_scale = max(1.0, samples.abs().amax().item())
    return (samples * (32768 / full_scale)).round().clamp(-32768, 32767).short(), full_scale


def _from_16_bits(integers: Tensor, full_scale: float) -> Tensor:
    return integers.float() * (full_scale / 32768)


class _EndingLoader:
    """Its workers, copies of a process with a training in it, end with the last batch; Lightning would keep them."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        for _ in range(len(self) - 1):
            yield next(batches)
        last = next(batches)
        del batches
        yield last


class SpeechDataModule(lightning.LightningDataModule):
    """Training and valid batches for Lightning, with the place in the epoch in every checkpoint."""

    def __init__(
        self, train: CheckedCorpus, valid: CheckedCorpus, config: DataConfig, model: CTCModel, seed: int
    ) -> None:
        super().__init__()
        self.train_corpus, self.valid_corpus = train, valid
        self.config, self.model, self.seed = config, model, seed
        self._resumed_at = Place(0, 0)
        self._steps_before: int | None = None
        """A resume; None where there is none."""
        self._train_loader: DataLoader[Batch] | None = None
        self._valid_loader: _EndingLoader | None = None
        self._has_ended = multiprocessing.RawValue("b", False)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Lightning asks for it before each epoch, for plans differ in length; the loader stays, with its cache."""
        assert self.trainer is not None
        if self._train_loader is None:
            self._train_loader = self._loader(self.train_corpus, self._train_sampler(), stays=True)
        sampler = cast(DurationBatchSampler, self._train_loader.sampler)
        sampler.resumed_at = self._resumed_at
        sampler.set_epoch(epoch_to_plan(self.trainer, self._resumed_at))  # Lightning reads ahead before it calls it
        return self._train_loader

    def val_dataloader(self) -> _EndingLoader:
        if self._valid_loader is None:
            assert self.trainer is not None
            durations = [example.utterance.duration_seconds for example in self.valid_corpus.examples]
            by_length = sorted(range(len(durations)), key=durations.__getitem__)
            share = by_length[self.trainer.global_rank :: self.trainer.world_size]  # each utterance in one process
            batches = fill_batches(durations, share, self.config.batch_seconds) or [[]]
            self._valid_loader = _EndingLoader(self._loader(self.valid_corpus, batches, stays=False))
        return self._valid_loader

    def count_steps(self, epochs: int) -> int:
        """The number of steps in the whole training.

        Resuming does not change it, unless what the batches depend on has changed; then steps already taken keep the
        old count and only the remaining epochs are counted anew.
        """
        sampler = self._train_sampler()
        if self._steps_before is None:
            return sampler.count_batches(range(epochs))
        epoch, batches_done = self._resumed_at
        return self._steps_before + sampler.count_batches(range(epoch, epochs)) - batches_done

    def _train_sampler(self) -> DurationBatchSampler:
        assert self.trainer is not None
        return DurationBatchSampler(
            [example.utterance.duration_seconds for example in self.train_corpus.examples],
            self.config.batch_seconds,
            seed=self.seed,
            shortest_first=self.config.shortest_first,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )

    def _loader(self, corpus: CheckedCorpus, sampler: Iterable[list[int]], stays: bool) -> DataLoader[Batch]:
        """stays: whether its workers, and the audio that they keep, live on from one epoch to the next."""
        workers = self.config.num_workers
        cache_hours = self.config.cache_hours if stays else 0.0
        vocabulary, pronunciations = self.model.vocabulary, self.model.pronunciations
        return DataLoader(
            SpeechDataset(corpus.examples, vocabulary, self.model.sample_rate, cache_hours, pronunciations),
            sampler=sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=stays and workers > 0,
            worker_init_fn=partial(_leave_signals_to_the_trainer, self._has_ended),
        )

    def close(self) -> None:
        """Let what asks the workers to end, end them: the training is over."""
        self._has_ended.value = True

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch, and what its batches depend on."""
        assert self.trainer is not None
        place = place_of(self.trainer)._asdict()
        return {**place, "steps": self.trainer.global_step, "plan": self._plan_settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises AsrError in the middle of an epoch that would be planned otherwise now, and where fewer epochs are
        wanted than are done.
        """
        assert self.trainer is not None
        self._resumed_at = Place(state_dict.get("epoch", 0), state_dict["batches_done"])
        done, wanted = self._resumed_at.epoch, self.trainer.max_epochs
        if wanted is not None and done > wanted:
            raise AsrError(f"trainer.epochs={wanted}: the run has done {done} already; set more, or leave it as it is")
        before, now = state_dict.get("plan", {}), self._plan_settings()
        self._steps_before = state_dict.get("steps")
        changed = [f"{name}={before[name]}" for name in before if before[name] != now[name]]
        if self._resumed_at.batches_done > 0 and changed:
            raise AsrError(
                f"the run was stopped in the middle of an epoch with {', '.join(changed)}; resume it with that, "
                "or some utterances would be heard twice and others not at all (between two epochs it may change)"
            )

    def _plan_settings(self) -> dict[str, Any]:
        """What an epoch's batches depend on."""
        assert self.trainer is not None
        seconds = [example.utterance.duration_seconds for example in self.train_corpus.examples]
        return {
            "data.batch_seconds": self.config.batch_seconds,
            "trainer.seed": self.seed,
            "processes": self.trainer.world_size,
            "data.shortest_first": self.config.shortest_first,
            "utterances to train on": len(seconds),
            "seconds of them": round(sum(seconds)),
            "checksum of their order": zlib.crc32(numpy.array(seconds).tobytes()),
        }


def _leave_signals_to_the_trainer(has_ended: Any, worker: int) -> None:
    """Ctrl-C, a terminal's end and a scheduler's SIGTERM reach every process; the workers end after the trainer.

    has_ended: a boolean in shared memory.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if has_ended.value else None)
