"""A training step: its loss, its two views, and its draws."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from short_trainings import make_config, make_module
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.data import Batch
from asr.learning import CTCTrainingModule, ctc_losses, disagreement, have_steps
from asr.model import steps_needed

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_utterance_that_ctc_cannot_write_has_no_loss_and_harms_nothing() -> None:
    targets = torch.tensor([[3, 3, 3], [4, 5, 0]])  # three equal tokens need five steps
    scores = torch.randn(2, 4, 29, requires_grad=True)
    losses = ctc_losses(scores.log_softmax(2), torch.tensor([4, 4]), targets, torch.tensor([3, 2]))
    losses.sum().backward()
    assert losses[0] == 0
    possible = torch.nn.functional.ctc_loss(
        scores[1:].log_softmax(2).transpose(0, 1), targets[1:, :2], (4,), (2,), reduction="sum"
    )
    torch.testing.assert_close(losses[1], possible)
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert not scores.grad[0].any()
    assert scores.grad[1].any()


def test_whether_there_are_steps_enough_is_what_ctc_needs() -> None:
    generator = torch.Generator().manual_seed(0)
    target_lengths = torch.randint(0, 7, (300,), generator=generator)
    targets = torch.randint(1, 3, (300, 6), generator=generator)  # the padding repeats tokens too
    lengths = torch.randint(0, 10, (300,), generator=generator)
    rows = zip(lengths.tolist(), targets, target_lengths.tolist())
    expected = [steps_needed(target[:size].tolist()) <= steps for steps, target, size in rows]
    assert have_steps(lengths, targets, target_lengths).tolist() == expected
    assert have_steps(lengths[:2], targets[:2, :0], torch.zeros(2).long()).all()


def test_two_views_disagree_by_the_divergence_of_each_from_the_other_over_their_own_steps() -> None:
    scores = torch.randn(4, 5, 29, requires_grad=True)
    lengths = torch.tensor([5, 2, 5, 2])
    log_probs = scores.log_softmax(2)
    apart = disagreement(log_probs, lengths)
    expected = torch.zeros(())
    for this, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        p, q = log_probs[other, : lengths[this]].detach().exp(), log_probs[this, : lengths[this]].exp()
        expected = expected + (p * (p / q).log()).sum()
    torch.testing.assert_close(apart, expected)
    (ours,) = torch.autograd.grad(apart, scores, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(ours, theirs)


def test_views_that_agree_add_nothing() -> None:
    view = torch.randn(3, 4, 29).log_softmax(2)
    assert disagreement(torch.cat([view, view]), torch.tensor([4, 1, 2] * 2)) == 0


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer
def test_a_step_with_two_views_has_their_mean_ctc_loss_and_their_weighted_disagreement(tmp_path: Path) -> None:
    weighted = make_module(make_config(tmp_path, "augment.consistency_weight=0.5", "model.encoder.dropout=0"))
    waveforms, sample_lengths = torch.randn(2, 16000) * 0.1, torch.tensor([16000, 12000])
    targets, target_lengths = torch.tensor([[3, 9, 4], [5, 6, 0]]), torch.tensor([3, 2])
    loss = weighted.training_step(Batch(waveforms, sample_lengths, targets, target_lengths, ["", ""], ["a", "b"]), 0)

    doubled = [torch.cat([tensor, tensor]) for tensor in (waveforms, sample_lengths, targets, target_lengths)]
    views = Batch(*doubled, [""] * 4, list("abab"))
    log_probs, lengths = weighted.model.log_probs_of_features(*weighted.augmented_features(views))
    assert not torch.equal(log_probs[:2], log_probs[2:]), "each view is augmented in its own way"
    ctc = ctc_losses(log_probs[:, :, :29], lengths, views.targets, views.target_lengths)
    torch.testing.assert_close(loss, ctc.sum() / 10 + 0.5 * disagreement(log_probs, lengths) / 10)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in weighted.parameters())


@pytest.mark.parametrize("weight", [0, 0.5])
def test_utterances_that_ctc_cannot_write_are_counted_once_whatever_the_views(
    tmp_path: Path, speech: list[Tensor], weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make_module(make_config(tmp_path, f"augment.consistency_weight={weight}"))
    logged: dict[str, object] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    batch = real_batch(speech)
    targets = torch.full((2, 200), 3)  # more than two seconds have steps
    module.training_step(replace(batch, targets=targets, target_lengths=torch.tensor([200, 2])), 0)
    assert logged["train/impossible_utterances"] == 1


def real_batch(speech: list[Tensor]) -> Batch:
    rows = [speech[0][16000:40000], speech[1][16000:32000]]
    lengths = torch.tensor([len(row) for row in rows])
    targets = torch.tensor([[3, 9, 4], [5, 6, 0]])
    return Batch(pad_sequence(rows, batch_first=True), lengths, targets, torch.tensor([3, 2]), ["", ""], ["a", "b"])


def test_every_step_and_every_process_has_draws_of_its_own(
    tmp_path: Path, speech: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch, seen = make_module(make_config(tmp_path)), real_batch(speech), []
    for step, rank in product(range(2), range(2)):
        monkeypatch.setattr(CTCTrainingModule, "global_step", step)
        monkeypatch.setattr(CTCTrainingModule, "global_rank", rank)
        features, _ = module.augmented_features(batch)
        assert all(features.shape != other.shape or not torch.equal(features, other) for other in seen)
        assert torch.equal(features, module.augmented_features(batch)[0])
        seen.append(features)


def test_the_training_step_masks_features(tmp_path: Path, speech: list[Tensor]) -> None:
    module = make_module(
        make_config(tmp_path, "augment.speeds=[1.0]", "augment.gain_db=0", "augment.noise_probability=0")
    )
    batch = real_batch(speech)
    plain, lengths = module.model.frontend(batch.waveforms, batch.sample_lengths)
    masked, masked_lengths = module.augmented_features(batch)
    assert torch.equal(masked_lengths, lengths)
    assert torch.equal(torch.where(masked == 0, 0.0, plain), masked)
    assert 0.05 < ((masked == 0) & (plain != 0)).float().mean() < 0.9


def test_half_precision_begins_behind_the_augmentation(tmp_path: Path, speech: list[Tensor]) -> None:
    module, batch = make_module(make_config(tmp_path, "augment.speeds=[0.9]")), real_batch(speech)
    plain, _ = module.augmented_features(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features, _ = module.augmented_features(batch)
    assert torch.equal(features, plain)
