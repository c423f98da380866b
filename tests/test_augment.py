"""What training does to its batches: repeatable, within its limits, and in the training step alone."""

from __future__ import annotations

import ast
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

import asr
from asr.augment import add_noise, augment_features, augment_waveforms, change_gain, change_speed, mask_spans
from asr.config import AugmentConfig
from asr.features import valid_positions

ALWAYS_NOISY = AugmentConfig(noise_probability=1.0)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def batch(speech: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Four cuts of speech, padded."""
    cuts = [waveform[16000:][:length] for waveform, length in zip(speech, (16000, 12345, 8000, 1))]
    return pad_sequence(cuts, batch_first=True), torch.tensor([len(cut) for cut in cuts])


def padding_of(waveforms: Tensor, lengths: Tensor) -> Tensor:
    return waveforms[~valid_positions(lengths, waveforms.shape[1])]


def test_a_seed_gives_the_same_batch_and_another_seed_another(batch: tuple[Tensor, Tensor]) -> None:
    first, again, other = (augment_waveforms(*batch, ALWAYS_NOISY, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])
    features, lengths = torch.ones(4, 100, 80), torch.tensor([100, 77, 50, 1])
    masked, masked_again, masked_other = (
        augment_features(features, lengths, AugmentConfig(), seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(masked, masked_again)
    assert not torch.equal(masked, masked_other)


def test_no_draw_comes_from_the_global_generator(batch: tuple[Tensor, Tensor]) -> None:
    before = torch.get_rng_state()
    augment_waveforms(*batch, ALWAYS_NOISY, seeded())
    augment_features(torch.ones(4, 100, 80), torch.tensor([100, 77, 50, 1]), AugmentConfig(), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_given_is_not_changed(batch: tuple[Tensor, Tensor]) -> None:
    waveforms, lengths = batch[0].clone(), batch[1].clone()
    augment_waveforms(*batch, ALWAYS_NOISY, seeded())
    features = torch.ones(2, 50, 80)
    augment_features(features, torch.tensor([50, 50]), AugmentConfig(), seeded())
    assert torch.equal(batch[0], waveforms)
    assert torch.equal(batch[1], lengths)
    assert features.all()


def test_everything_switched_off_changes_nothing(batch: tuple[Tensor, Tensor]) -> None:
    off = AugmentConfig(speeds=[1.0], gain_db=0.0, noise_probability=0.0, num_frequency_masks=0, num_time_masks=0)
    waveforms, lengths = augment_waveforms(*batch, off, seeded())
    assert torch.equal(waveforms, batch[0])
    assert torch.equal(lengths, batch[1])
    features = torch.randn(2, 50, 80)
    assert torch.equal(augment_features(features, torch.tensor([50, 9]), off, seeded()), features)


@given(
    rows=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 70)), min_size=1, max_size=5),
    count=st.integers(0, 4),
    seed=st.integers(0, 10**6),
)
def test_masked_spans_stay_inside_the_length_and_the_width(rows: list[tuple[int, int]], count: int, seed: int) -> None:
    lengths, widths = (torch.tensor(column) for column in zip(*rows))
    masks = mask_spans(lengths, widths, int(lengths.max()) + 5, count, seeded(seed))
    for mask, (length, width) in zip(masks, rows):
        assert not mask[length:].any()
        assert int(mask.sum()) <= count * width
        edges = [0, *mask.int().tolist(), 0]
        assert sum(left < right for left, right in pairwise(edges)) <= count  # spans are whole


def test_mask_widths_and_places_take_every_value_they_may() -> None:
    rows = 4000
    masks = mask_spans(torch.full((rows,), 6), torch.full((rows,), 3), 6, 1, seeded())
    assert set(masks.sum(1).tolist()) == {0, 1, 2, 3}
    assert masks.any(0).all()
    share = (masks.sum(1) == 3).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)


def test_feature_masks_are_whole_bands_and_spans_of_the_valid_frames() -> None:
    config = AugmentConfig(num_frequency_masks=2, frequency_mask_mels=20, num_time_masks=5, time_mask_share=0.05)
    lengths = torch.tensor([200, 100, 19])
    for seed in range(20):
        kept = augment_features(torch.ones(3, 200, 80), lengths, config, seeded(seed)) != 0
        bands, spans = ~kept.any(1), ~kept.any(2)
        assert torch.equal(kept, ~(bands[:, None, :] | spans[:, :, None]))
        assert bands.sum(1).max() <= 2 * 20
        for row, length in zip(spans, lengths.tolist()):
            assert int(row.sum()) <= 5 * int(0.05 * length)
            assert not row[length:].any()


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.0, 1.1, 1.25, 2.0])
def test_speed_divides_lengths_and_rounds_up(speed: float) -> None:
    lengths = [1, 2, 9, 10, 11, 100, 1000, 1600]
    waveforms = pad_sequence([torch.ones(length) for length in lengths], batch_first=True)
    changed, new_lengths = change_speed(waveforms, torch.tensor(lengths), [speed], seeded())
    exact = Fraction(round(speed * 100), 100)
    assert new_lengths.tolist() == [-(-length * exact.denominator // exact.numerator) for length in lengths]
    assert changed.shape == (8, int(new_lengths.max()))


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_moves_the_pitch(speed: float) -> None:
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    (changed,), _ = change_speed(tone[None], torch.tensor([16000]), [speed], seeded())
    peak = torch.fft.rfft(changed).abs().argmax().item() * 16000 / len(changed)
    assert peak == pytest.approx(440 * speed, abs=1)


def test_each_utterance_is_resampled_as_it_would_be_alone(batch: tuple[Tensor, Tensor]) -> None:
    waveforms, lengths = batch
    changed, new_lengths = change_speed(waveforms, lengths, [0.9], seeded())
    for row, old, new in zip(range(4), lengths.tolist(), new_lengths.tolist()):
        (alone,), length = change_speed(waveforms[row : row + 1, :old], lengths[row : row + 1], [0.9], seeded())
        assert int(length) == new
        torch.testing.assert_close(changed[row, :new], alone, atol=1e-6, rtol=0)


def test_every_speed_is_drawn_and_one_batch_has_one(batch: tuple[Tensor, Tensor]) -> None:
    lengths = torch.full((4,), 9000)
    drawn = {tuple(change_speed(batch[0], lengths, [0.9, 1.0, 1.1], seeded(seed))[1].tolist()) for seed in range(20)}
    assert drawn == {(10000,) * 4, (9000,) * 4, (8182,) * 4}


@pytest.mark.parametrize("seed", range(5))
def test_padding_stays_zero(batch: tuple[Tensor, Tensor], seed: int) -> None:
    waveforms, lengths = augment_waveforms(*batch, ALWAYS_NOISY, seeded(seed))
    assert waveforms.shape[1] == int(lengths.max())
    assert not padding_of(waveforms, lengths).any()


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 30.0])
def test_noise_has_the_drawn_ratio_to_the_speech(batch: tuple[Tensor, Tensor], snr_db: float) -> None:
    waveforms, lengths = batch
    noise = add_noise(*batch, 1.0, snr_db, snr_db, seeded()) - waveforms
    for speech, added, length in list(zip(waveforms, noise, lengths.tolist()))[:3]:
        ratio = speech[:length].square().mean() / added[:length].square().mean()
        assert 10 * ratio.log10().item() == pytest.approx(snr_db, abs=0.1)
    assert not padding_of(noise, lengths).any()


def test_the_ratio_is_drawn_between_its_limits_per_utterance(speech: list[Tensor]) -> None:
    waveforms = speech[0][20000:24000].repeat(50, 1)
    noise = add_noise(waveforms, torch.full((50,), 4000), 1.0, 10.0, 20.0, seeded()) - waveforms
    ratios = 10 * (waveforms.square().mean(1) / noise.square().mean(1)).log10()
    assert 9.9 < ratios.min() < 12
    assert 18 < ratios.max() < 20.1


def test_rows_that_are_not_chosen_are_untouched(speech: list[Tensor]) -> None:
    waveforms = speech[0][20000:24000].repeat(200, 1)
    noisy = add_noise(waveforms, torch.full((200,), 4000), 0.3, 10.0, 10.0, seeded())
    touched = (noisy != waveforms).any(1)
    assert 35 <= int(touched.sum()) <= 85  # 0.3 of 200, four deviations either way
    assert torch.equal(noisy[~touched], waveforms[~touched])


def test_gain_is_one_factor_per_utterance_within_its_limits() -> None:
    waveforms = torch.full((400, 3), 0.5)
    gains = 20 * (change_gain(waveforms, 6.0, seeded()) / waveforms).log10()
    torch.testing.assert_close(gains, gains[:, :1].expand(-1, 3))
    assert -6.001 <= gains.min() < -5.5
    assert 5.5 < gains.max() <= 6.001


@pytest.mark.parametrize("seed", range(5))
def test_utterances_of_one_sample_and_of_silence_stay_finite(seed: int) -> None:
    for waveforms in (torch.full((3, 1), 0.5), torch.zeros(3, 1), torch.zeros(3, 1000)):
        lengths = torch.full((3,), waveforms.shape[1])
        changed, new_lengths = augment_waveforms(waveforms, lengths, ALWAYS_NOISY, seeded(seed))
        assert changed.isfinite().all()
        assert new_lengths.min() >= 1
    masked = augment_features(torch.ones(3, 1, 80), torch.ones(3, dtype=torch.long), AugmentConfig(), seeded(seed))
    assert masked.shape == (3, 1, 80)


def functions_that_use(tree: ast.AST, names: set[str]) -> set[str]:
    """The innermost functions of a file in which one of `names` occurs, imports left out."""
    users = set()
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        named = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        if named in names:
            while not isinstance(node, ast.FunctionDef | ast.Module):
                node = node.parent  # type: ignore[attr-defined]
            users.add(getattr(node, "name", "<module>"))
    return users


def test_augmentation_is_used_where_something_is_learned_and_nowhere_else() -> None:
    """In the training step and its picture, and for the recordings of which sentences are put together."""
    package = Path(asr.__file__).parent
    files = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path.name != "augment.py"}
    importers = {path.name for path, source in files.items() if "asr.augment" in source or "import augment" in source}
    assert importers == {"learning.py", "units.py"}
    names = set(asr.augment.__all__)
    assert functions_that_use(ast.parse(files[package / "learning.py"]), names) == {"augmented_features"}
    users = {path.name: functions_that_use(ast.parse(source), {"augmented_features"}) for path, source in files.items()}
    assert {name: functions for name, functions in users.items() if functions} == {
        "learning.py": {"training_step"},
        "monitor.py": {"on_train_batch_start"},
    }


def test_as_much_is_masked_as_the_settings_say() -> None:
    config = AugmentConfig(num_frequency_masks=1, frequency_mask_mels=20, num_time_masks=1, time_mask_share=0.1)
    kept = augment_features(torch.ones(400, 200, 80), torch.full((400,), 200), config, seeded()) != 0
    bands, frames = (~kept.any(1)).sum(1).float(), (~kept.any(2)).sum(1).float()
    assert bands.mean().item() == pytest.approx(10, rel=0.1)
    assert frames.mean().item() == pytest.approx(10, rel=0.1)
    assert len(set(bands.tolist())) == len(set(frames.tolist())) == 21


def test_the_colour_of_noise_is_between_white_and_brown() -> None:
    silence = torch.zeros(200, 4000)
    silence[:, ::2] = 0.1
    noise = add_noise(silence, torch.full((200,), 4000), 1.0, 10.0, 10.0, seeded()) - silence
    power = torch.fft.rfft(noise).abs().square()
    low = power[:, : power.shape[1] // 4].sum(1) / power.sum(1)
    assert 0.2 < low.min() < 0.35
    assert low.max() > 0.95


@pytest.mark.parametrize("only", [{"speeds": [0.9]}, {"gain_db": 6.0}, {"noise_probability": 1.0}], ids=str)
def test_each_setting_alone_changes_the_waveforms(speech: list[Tensor], only: dict[str, Any]) -> None:
    waveforms, lengths = speech[0][None, 16000:32000], torch.tensor([16000])
    off = {"speeds": [1.0], "gain_db": 0.0, "noise_probability": 0.0}
    changed, _ = augment_waveforms(waveforms, lengths, AugmentConfig(**{**off, **only}), seeded())
    assert not torch.equal(changed[:, :16000], waveforms)
