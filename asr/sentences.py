"""A GRU language model: how probable a sentence is, piece by piece from left to right.

One recurrent layer reads embedded pieces of words; what it expects next is compared with the same embeddings (tied
weights: O. Press, L. Wolf, arXiv 1608.05859). The n-grams of a search know two words back, it knows the sentence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asr.errors import AsrError
from asr.modelfile import PACKAGED, PACKAGED_MODEL, read_weights, write_weights
from asr.vocabulary import BLANK_ID, Vocabulary, vocabulary_from_dict

__all__ = ["GRULanguageModel", "load_language_model", "save_language_model"]

PACKAGED_GRU = PACKAGED_MODEL.with_name("base.gru.safetensors")
"""The GRU language model that comes with the package."""

FORMAT = "gru language model 1"

SENTENCE_END = BLANK_ID
"""What no text is encoded with stands for a sentence's end, and before its first token."""


class GRULanguageModel(nn.Module):
    """P(token | all tokens before it in the sentence)."""

    def __init__(self, vocabulary: Vocabulary, embedding_size: int = 256, hidden_size: int = 640) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(len(vocabulary), embedding_size)
        nn.init.normal_(self.embedding.weight, std=embedding_size**-0.5)
        self.cell = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.narrowing = nn.Linear(hidden_size, embedding_size)
        self.bias = nn.Parameter(torch.zeros(len(vocabulary)))

    def forward(self, tokens: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """tokens: (batch, tokens) ids, padded with any.

        returns: (batch, tokens + 1, vocabulary) log-probs of the first token, of the one behind each, and where those
        of a sentence end, of SENTENCE_END; and how many there are, one more than tokens.
        """
        before = nn.functional.pad(tokens, (1, 0), value=SENTENCE_END)
        embedded = self.embedding(before) * self.embedding.embedding_dim**0.5  # of variance 1
        states, _ = self.cell(embedded)
        logits = nn.functional.linear(self.narrowing(states), self.embedding.weight, self.bias)
        return logits.float().log_softmax(2), token_lengths + 1

    def sentence_log_probs(self, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """The natural log-probability of each sentence and its end: (batch,); arguments as of `forward`."""
        log_probs, lengths = self(tokens, token_lengths)
        places = torch.arange(log_probs.shape[1], device=tokens.device)
        targets = nn.functional.pad(tokens, (0, 1)).masked_fill(places == token_lengths[:, None], SENTENCE_END)
        of_targets = log_probs.gather(2, targets[:, :, None]).squeeze(2)
        log_probabilities: Tensor = of_targets.masked_fill(places >= lengths[:, None], 0.0).sum(1)
        return log_probabilities

    @torch.inference_mode()
    def text_log_probs(self, texts: Sequence[str]) -> list[float]:
        """As `sentence_log_probs`, of texts that are written in the model's alphabet first: what it lacks is left out.

        All are padded to the longest and computed at once: give texts of like length, as those of one recording are.
        """
        if not texts:
            return []
        sentences = [torch.tensor(self.vocabulary.encode(self.vocabulary.normalize(text))).long() for text in texts]
        tokens = pad_sequence(sentences, batch_first=True).to(self.bias.device)
        lengths = torch.tensor([len(sentence) for sentence in sentences], device=self.bias.device)
        scores: list[float] = self.sentence_log_probs(tokens, lengths).tolist()
        return scores


def save_language_model(model: GRULanguageModel, path: str | Path) -> None:
    """Write a file of half-precision weights; where that fails, `path` is as it was, and AsrError is raised."""
    metadata = {
        "format": FORMAT,
        "sizes": json.dumps([model.embedding.embedding_dim, model.cell.hidden_size]),
        "vocabulary": json.dumps(model.vocabulary.to_dict()),
    }
    write_weights(model, metadata, path, torch.float16)


def load_language_model(path: str | Path) -> GRULanguageModel:
    """The model of such a file in evaluation mode, in float32.

    path: `packaged` is the one in the package.
    Raises AsrError for a file that is missing, damaged or something else.
    """
    path = PACKAGED_GRU if str(path) == PACKAGED else Path(path)
    metadata, weights = read_weights(path, "GRU language model")
    if metadata.get("format") != FORMAT:
        raise AsrError(f"{path}: no GRU language model that this release can read; `asr lm train` makes one")
    try:
        vocabulary = vocabulary_from_dict(json.loads(metadata["vocabulary"]))
        embedding_size, hidden_size = json.loads(metadata["sizes"])
        if embedding_size * hidden_size > sum(weight.numel() for weight in weights.values()):
            raise ValueError("a file of a kilobyte could fill the memory")
        model = GRULanguageModel(vocabulary, embedding_size, hidden_size)
        model.load_state_dict(weights)
    except (AsrError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise AsrError(f"{path}: the language model is damaged: its weights do not fit its own sizes") from error
    return model.eval().to(torch.float32).requires_grad_(False)  # torch's default type may be another
