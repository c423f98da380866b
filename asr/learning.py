"""What a training step, a validation and the optimizer are: the Lightning module.

Every random draw of a step is a function of the seed and the step, so a resumed run draws what an uninterrupted one
would have drawn.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy
import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.nn.functional import ctc_loss, kl_div
from torch.optim.lr_scheduler import LambdaLR

from asr.augment import augment_features, augment_waveforms
from asr.config import TrainConfig
from asr.data import Batch, SpeechDataModule
from asr.decoder import decode_greedy
from asr.errors import AsrError
from asr.features import valid_positions
from asr.metrics import ErrorCounts, character_errors, phoneme_errors, word_errors
from asr.mmi import learn_trigrams, log_prior, log_prob_of_all
from asr.model import CTCModel
from asr.optimizers import follow_schedule, make_optimizer, take_rates
from asr.splitting import MemoryLimit
from asr.vocabulary import BLANK_ID

__all__ = ["CTCTrainingModule", "ctc_losses", "disagreement", "have_steps"]

log = logging.getLogger(__name__)


class CTCTrainingModule(lightning.LightningModule):
    """The loss of augmented batches, by CTC and for phonemes by MMI too, and error rates of the valid set."""

    def __init__(self, model: CTCModel, config: TrainConfig, references: Iterable[str] = ()) -> None:
        """references: of the training set, whose phonemes' trigrams `optimizer.mmi_share` needs.

        Raises AsrError for a model with more phonemes than it can be computed for.
        """
        super().__init__()
        self.model = model
        self.config = config
        self.trigrams: Tensor | None
        self.register_buffer("trigrams", self._learn_trigrams(references), persistent=False)
        self.memory = MemoryLimit()
        self.valid_words = self.valid_characters = self.valid_phonemes = ErrorCounts()
        self.valid_pairs: list[tuple[str, str]] = []
        """Some references and hypotheses of the last validation."""

    def _learn_trigrams(self, references: Iterable[str]) -> Tensor | None:
        pronunciations = self.model.pronunciations
        if pronunciations is None or self.config.optimizer.mmi_share == 0:
            return None
        return learn_trigrams(map(pronunciations.encode, references), len(pronunciations))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["vocabulary"] = self.model.vocabulary.to_dict()
        checkpoint["phonemes"] = self.model.phonemes
        checkpoint["pronunciations"] = self.model.pronunciations and self.model.pronunciations.checksum
        checkpoint["most_frames"] = self.memory.most_frames

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Has the recipe's rates replace those that the run had. Raises AsrError where the weights are of other tokens
        or phonemes.
        """
        vocabulary = self.model.vocabulary.to_dict()
        if checkpoint.get("vocabulary", vocabulary) != vocabulary:
            raise AsrError(
                "the training texts have changed, and their pieces with them; start with another output_dir="
            )
        if checkpoint.get("phonemes", self.model.phonemes) != self.model.phonemes:
            raise AsrError("the pronouncing dictionary has other phonemes now; start with another output_dir=")
        said = self.model.pronunciations and self.model.pronunciations.checksum
        if checkpoint.get("pronunciations", said) != said:
            log.warning("the pronouncing dictionary has changed; the run goes on with what it says now")
        take_rates(checkpoint, self.config.optimizer)
        self.memory.most_frames = checkpoint.get("most_frames", math.inf)  # its parts have dropout draws of their own

    def on_train_start(self) -> None:
        follow_schedule(cast(LambdaLR, self.lr_schedulers()))

    def _step_seed(self) -> int:
        draws = numpy.random.SeedSequence([self.config.trainer.seed, self.global_step, self.global_rank])
        return int(draws.generate_state(1)[0])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Of an augmented batch: CTC loss per token, its views' disagreement where that has a weight, and both for the
        phonemes, per phoneme, with `optimizer.phoneme_weight`.
        """
        size, weight = len(batch.ids), self.config.augment.consistency_weight
        if weight > 0:
            batch = _twice(batch)
        log_probs, lengths = self.memory.log_probs(self.model, *self.augmented_features(batch))
        log_probs, of_phonemes = self.model.split(log_probs)
        tokens = self._loss_denominator(batch.target_lengths)
        losses = ctc_losses(log_probs, lengths, batch.targets, batch.target_lengths)
        loss = losses.sum() / tokens
        impossible = (~have_steps(lengths, batch.targets, batch.target_lengths)).sum() * size / len(losses)
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("train/impossible_utterances", impossible, reduce_fx="sum", batch_size=size, sync_dist=True)
        if weight > 0:
            apart = disagreement(log_probs, lengths) / tokens
            self.log("train/disagreement", apart, batch_size=size, sync_dist=True)
            loss = loss + weight * apart
        if self.model.pronunciations is None:
            return loss
        phoneme_loss, phonemes = self._phoneme_loss(of_phonemes, lengths, batch)
        self.log("train/phoneme_loss", phoneme_loss, prog_bar=True, batch_size=size, sync_dist=True)
        if weight > 0:
            phoneme_loss = phoneme_loss + weight * disagreement(of_phonemes, lengths) / phonemes
        share = self.config.optimizer.phoneme_weight
        return (1 - share) * loss + share * phoneme_loss

    def augmented_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features (batch, frames, num_mels) and their lengths, as this step's draws augment them, in float32.

        Resampling in half precision would fill the bands that are all but silent with noise, in training alone.
        """
        generator = torch.Generator().manual_seed(self._step_seed())
        augment = self.config.augment
        with torch.autocast(batch.waveforms.device.type, enabled=False):
            waveforms, sample_lengths = augment_waveforms(batch.waveforms, batch.sample_lengths, augment, generator)
            features, feature_lengths = self.model.frontend(waveforms, sample_lengths)
            return augment_features(features, feature_lengths, augment, generator), feature_lengths

    def _phoneme_loss(self, log_probs: Tensor, lengths: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of a batch per phoneme, in float32, and how many those are; log_probs: (batch, steps, phonemes)."""
        phonemes, phoneme_lengths = batch.phonemes, batch.phoneme_lengths
        assert phonemes is not None
        assert phoneme_lengths is not None
        count = self._loss_denominator(phoneme_lengths)
        losses = ctc_losses(log_probs, lengths, phonemes, phoneme_lengths)
        if self.trigrams is not None:
            rivals = log_prob_of_all(log_probs, lengths, self.trigrams)
            rivals = rivals - log_prior(phonemes, phoneme_lengths, self.trigrams)
            counted = have_steps(lengths, phonemes, phoneme_lengths)
            losses = losses + self.config.optimizer.mmi_share * rivals.where(counted, 0.0)
        return losses.sum() / count, count

    def _loss_denominator(self, lengths: Tensor) -> Tensor:
        """All tokens together, as a mean over the ranks: it makes the mean gradient that of the pooled loss."""
        tokens = lengths.sum().clamp(min=1)
        if self._trainer is None or self.trainer.world_size == 1:
            return tokens
        mean: Tensor = self.trainer.strategy.reduce(tokens.float(), reduce_op="mean")
        return mean

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """No word of what cannot be read counts as heard: rates of the rest alone could not be compared."""
        log_probs, lengths = self.model.all_log_probs(batch.waveforms, batch.sample_lengths)
        log_probs, of_phonemes = self.model.split(log_probs)
        losses = ctc_losses(log_probs, lengths, batch.targets, batch.target_lengths)
        size = len(batch.ids)
        hypotheses = [self.model.vocabulary.decode(each.token_ids) for each in decode_greedy(log_probs, lengths)]
        pairs = [*zip(batch.references[:size], hypotheses), *((reference, "") for reference in batch.unheard)]
        for reference, hypothesis in pairs:
            self.valid_words += word_errors(reference, hypothesis)
            self.valid_characters += character_errors(reference, hypothesis)
        if (pronunciations := self.model.pronunciations) is not None:
            heard = [each.token_ids for each in decode_greedy(of_phonemes, lengths)][:size]
            heard += [[] for _ in batch.unheard]
            for (reference, _), token_ids in zip(pairs, heard, strict=True):
                spoken = pronunciations.encode(reference)
                self.valid_phonemes += phoneme_errors(*map(pronunciations.decode, (spoken, token_ids)))
        self.valid_pairs += pairs[:1]
        valid = valid_positions(lengths, log_probs.shape[1])
        blanks = (log_probs.argmax(2) == BLANK_ID)[valid].float().mean()
        empty = sum(not hypothesis for hypothesis in hypotheses) / len(hypotheses)
        # Each is a mean over what it counts, in all batches together; a silent second counts for nothing.
        tokens = int(batch.target_lengths.sum())
        self.log("valid/loss", losses.sum() / max(1, tokens), batch_size=tokens, sync_dist=True)
        self.log("valid/blank_share", blanks, batch_size=int(lengths.sum()) if size else 0, sync_dist=True)
        self.log("valid/empty_hypothesis_share", empty, batch_size=size, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        self.valid_words = self.valid_characters = self.valid_phonemes = ErrorCounts()
        self.valid_pairs = []

    def on_validation_epoch_end(self) -> None:
        """Log WER, CER and the phonemes' error rate from the counts of all ranks."""
        rates = {"valid/wer": self.valid_words, "valid/cer": self.valid_characters}
        if self.model.pronunciations is not None:
            rates["valid/per"] = self.valid_phonemes
        for name, counts in rates.items():
            self.log(name, self.pooled_rate(counts), prog_bar=True, rank_zero_only=True)

    def pooled_rate(self, counts: ErrorCounts) -> float:
        """Errors of all ranks per reference word or character of all ranks."""
        sums = torch.tensor([counts.errors, counts.reference_length], device=self.device)
        errors, length = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return float(errors / max(1, length))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's, with a batch that the memory does not hold computed in parts."""
        assert optimizer_closure is not None
        alone = self.trainer.world_size == 1
        frame_seconds = self.model.config.frontend.hop_ms / 1000

        def draw_and_compute() -> Any:
            torch.manual_seed(self._step_seed())  # dropout's draws, the same ones where it is computed again
            return optimizer_closure()

        views = 2 if self.config.augment.consistency_weight > 0 else 1
        compute = partial(self.memory.fit, draw_and_compute, frame_seconds, views=views, may_split=alone)
        super().optimizer_step(epoch, batch_idx, optimizer, compute)

    def configure_optimizers(self) -> Any:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        # Lightning's estimate would take the plan of the epoch that a resume begins in for all.
        is_trial = not isinstance(data, SpeechDataModule)
        total_steps = self.trainer.max_steps if is_trial else data.count_steps(self.config.trainer.epochs)
        dtype = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32
        return make_optimizer(self.model, self.config.optimizer, total_steps, dtype)


def _twice(batch: Batch) -> Batch:
    """A batch of the same waveforms and targets twice; what is augmented then is two views of each utterance."""
    tensors: dict[str, Any] = {
        name: torch.cat([value, value]) for name, value in vars(batch).items() if isinstance(value, Tensor)
    }
    return replace(batch, **tensors)


def ctc_losses(log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC loss of each utterance, in float32: (batch,), nats; 0 where it cannot be written in its steps.

    log_probs: (batch, steps, tokens), the blank first; targets: (batch, tokens) ids; lengths of both: (batch,).
    """
    return ctc_loss(log_probs.transpose(0, 1), targets, lengths, target_lengths, BLANK_ID, "none", zero_infinity=True)


def have_steps(lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """Whether CTC can write each utterance in its steps (`steps_needed`): (batch,); arguments as of `ctc_losses`."""
    is_target = valid_positions(target_lengths, targets.shape[1])
    repeats = ((targets[:, 1:] == targets[:, :-1]) & is_target[:, 1:]).sum(1)
    return lengths >= target_lengths + repeats


def disagreement(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """How far the outputs for two views of utterances are apart: the sum of KL(other view ‖ this view), nats.

    Each view is drawn to the other, which stands still for it: the consistency term of CR-CTC (Yao et al., ICLR 2025).
    log_probs: (2 × batch, steps, vocabulary), the second views behind the first ones; lengths: (2 × batch,) steps.
    """
    first, second = log_probs.chunk(2)
    other = torch.cat([second, first]).detach()
    divergences = kl_div(log_probs, other, reduction="none", log_target=True).sum(2)
    return divergences[valid_positions(lengths, log_probs.shape[1])].sum()
