"""Recordings of any length: what is computed in blocks and windows is what the whole would give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.decoder import collapse_paths, decode_greedy
from asr.features import normalize_features
from asr.longform import _statistics, _windows, best_path, stream_log_mel, stream_log_probs
from asr.model import CTCModel

HOP, STEP = 160, 640


def cut(samples: Tensor, places: Iterable[int]) -> list[Tensor]:
    """`samples` in consecutive pieces that end at `places`, some of them possibly empty."""
    ends = [0, *sorted(min(place, len(samples)) for place in places), len(samples)]
    return [samples[start:end] for start, end in pairwise(ends)]


def path_of(model: CTCModel, blocks: Callable[[], Iterable[Tensor]], **settings: float) -> Tensor:
    """The most probable token of every step of a recording; settings: of `stream_log_probs`."""
    return best_path(stream_log_probs(model, blocks, **settings))[0]


@pytest.fixture(scope="module")
def two_minutes(speech: list[Tensor]) -> Tensor:
    pause = torch.zeros(8000)
    return torch.cat([part for utterance in speech * 4 for part in (utterance, pause)])


@pytest.fixture(scope="module")
def forgetful_model(make_model: Callable[..., CTCModel]) -> CTCModel:
    """A model that hears its surroundings less than 4 s far, because its recurrent weights are small."""
    model = make_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "weight_hh" in name:
                weight.mul_(0.5)
    return model


@given(length=st.integers(1, 4000), places=st.lists(st.integers(0, 4000), max_size=12))
def test_log_mel_of_any_blocks_together_is_that_of_the_whole(
    model: CTCModel, speech: list[Tensor], length: int, places: list[int]
) -> None:
    samples = speech[0][20000 : 20000 + length]
    frames = torch.cat(list(stream_log_mel(model.frontend, cut(samples, places))))
    torch.testing.assert_close(frames, model.frontend.log_mel(samples[None])[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, HOP, 2 * HOP + 1, 512, 16000])
def test_log_mel_of_equal_blocks_together_is_that_of_the_whole(
    model: CTCModel, speech: list[Tensor], size: int
) -> None:
    samples = speech[1][: 3000 if size == 1 else None]
    frames = torch.cat(list(stream_log_mel(model.frontend, samples.split(size))))
    torch.testing.assert_close(frames, model.frontend.log_mel(samples[None])[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [1, HOP - 1, HOP, HOP + 1, 3 * HOP, 4 * HOP + 1])
def test_log_mel_of_a_recording_that_is_shorter_than_a_window_has_every_frame(model: CTCModel, length: int) -> None:
    samples = torch.linspace(-0.5, 0.5, length)
    frames = torch.cat(list(stream_log_mel(model.frontend, samples.split(1))))
    torch.testing.assert_close(frames, model.frontend.log_mel(samples[None])[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("loudness", [1.0, 1e-3])
def test_mean_and_deviation_in_blocks_normalize_as_normalize_features_does(
    model: CTCModel, speech: list[Tensor], loudness: float
) -> None:
    log_mel = model.frontend.log_mel(loudness * speech[2][None])
    mean, deviation = _statistics(log_mel[0].split(37))
    expected = normalize_features(log_mel, torch.tensor([log_mel.shape[1]]))
    torch.testing.assert_close(((log_mel - mean) / deviation).float(), expected, rtol=0, atol=1e-4)


@given(
    count=st.integers(1, 200),
    core=st.integers(1, 12),
    context=st.integers(0, 12),
    places=st.lists(st.integers(0, 200), max_size=8),
)
def test_windows_keep_every_frame_once_and_in_order(count: int, core: int, context: int, places: list[int]) -> None:
    core, context = 4 * core, 4 * context
    frames = torch.arange(count)[:, None].expand(count, 3).float()
    windows = list(_windows(cut(frames, places), core, context))
    kept = torch.cat([window.features[window.start : window.end, 0] for window in windows])
    assert kept.tolist() == list(range(count))
    for window in windows[:-1]:
        assert window.end - window.start == core
        assert len(window.features) - window.end == context
    for window in windows[1:]:
        assert window.start == min(context, int(window.features[window.start, 0]))
        assert int(window.features[0, 0]) % 4 == 0, "a window must begin where a step does"


@pytest.mark.parametrize("windows", [1, 2, 3])
@pytest.mark.parametrize("beyond", [-STEP, -HOP - 1, -HOP, -1, 0, 1, HOP - 1, HOP, 2 * HOP, 3 * HOP, STEP, STEP + 1])
def test_a_path_has_as_many_steps_as_the_whole_around_every_boundary(
    model: CTCModel, speech: list[Tensor], windows: int, beyond: int
) -> None:
    length = windows * 16000 + 8000 + beyond  # the last window takes what follows, up to its context
    samples = torch.cat(speech)[:length]
    path = path_of(model, lambda: [samples], batch_seconds=5, window_seconds=1.0, context_seconds=0.5)
    assert len(path) == int(model.output_lengths(torch.tensor(length)))


@torch.inference_mode()
def test_windows_wider_than_the_recording_give_the_log_probs_of_the_whole(
    make_model: Callable[..., CTCModel], speech: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    computed, original = [], model.log_probs

    def recorded(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        computed.append(original(features, lengths)[0])
        return computed[-1], lengths

    monkeypatch.setattr(model, "log_probs", recorded)
    for samples in speech:
        whole, _ = model(samples[None], torch.tensor([len(samples)]))
        path = path_of(model, lambda: samples.split(5000), batch_seconds=160)  # noqa: B023
        torch.testing.assert_close(computed[-1], whole, rtol=0, atol=1e-4)
        assert torch.equal(path, whole.argmax(2)[0])


@pytest.mark.parametrize("frames", [1, 4, 5, 99, 100, 101, 147, 148])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_recording_that_one_window_and_its_context_hold_is_computed_whole(
    model: CTCModel, speech: list[Tensor], frames: int, beyond: int
) -> None:
    length = max(1, min(frames * HOP + beyond, 148 * HOP - 1))  # frames = length // HOP + 1, at most 25 + 12 steps
    samples = speech[0][20000:][:length]
    log_probs, _ = model(samples[None], torch.tensor([length]))
    path = path_of(model, lambda: [samples], batch_seconds=5, window_seconds=1.0, context_seconds=0.48)
    assert torch.equal(path, log_probs.argmax(2)[0])


def test_context_that_reaches_both_ends_gives_the_path_of_the_whole(model: CTCModel, speech: list[Tensor]) -> None:
    log_probs, _ = model(speech[0][None], torch.tensor([len(speech[0])]))
    path = path_of(model, lambda: speech[0].split(5000), batch_seconds=30, window_seconds=1.0, context_seconds=10.0)
    assert torch.equal(path, log_probs.argmax(2)[0])


def test_the_text_of_two_minutes_in_windows_is_that_of_the_whole(
    forgetful_model: CTCModel, two_minutes: Tensor
) -> None:
    model = forgetful_model
    with torch.inference_mode():
        (whole,) = decode_greedy(*model(two_minutes[None], torch.tensor([len(two_minutes)])))
    path = path_of(model, lambda: two_minutes.split(30 * 16000), batch_seconds=160)
    (windowed,) = collapse_paths(path[None], torch.zeros(1, len(path)), torch.tensor([len(path)]))
    assert len(two_minutes) > 110 * 16000
    assert len(set(whole.token_ids)) > 5
    assert model.vocabulary.decode(windowed.token_ids) == model.vocabulary.decode(whole.token_ids)
    without_context = path_of(model, lambda: [two_minutes], batch_seconds=160, context_seconds=0.04)
    assert not torch.equal(without_context, path), "the context must be what makes the joins exact"


def test_the_path_does_not_depend_on_the_blocks_or_on_how_much_is_computed_at_once(
    model: CTCModel, two_minutes: Tensor
) -> None:
    samples = two_minutes[: 60 * 16000]
    settings = [(30 * 16000, 160.0), (12345, 160.0), (30 * 16000, 1.0), (len(samples), 1000.0)]
    paths = [path_of(model, lambda: samples.split(size), batch_seconds=batch) for size, batch in settings]  # noqa: B023
    assert all(torch.equal(path, paths[0]) for path in paths)


def test_no_more_audio_is_read_ahead_than_the_windows_that_are_computed_at_once(model: CTCModel) -> None:
    """A recording that is longer than the memory: the second pass is stopped when the first windows are computed."""

    class Enough(Exception):
        pass

    passes = 0
    read = [0, 0]

    def blocks() -> Iterable[Tensor]:
        nonlocal passes
        this, passes = passes, passes + 1
        for _ in range(60):
            read[this] += 1
            yield torch.full((16000,), 0.1)

    def stop(*_: object) -> None:
        raise Enough

    handle = model.encoder.register_forward_pre_hook(stop)
    with pytest.raises(Enough):
        path_of(model, blocks, batch_seconds=10, window_seconds=3.0, context_seconds=1.0)
    handle.remove()
    assert read[0] == 60
    assert read[1] <= ceil(2 * 3 + 1) + 2, "two windows of 3 s with 1 s behind them"


def largest_tensors(model: CTCModel, samples: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Samples per spectrogram, and windows and frames per batch, at most, while a recording is computed."""
    spectrograms, batches = [0], [(0, 0)]
    log_mel, log_probs = model.frontend.log_mel, model.log_probs

    def watched_log_mel(waveforms: Tensor) -> Tensor:
        spectrograms.append(waveforms.numel())
        return log_mel(waveforms)

    def watched_log_probs(features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        batches.append((features.shape[0], features.shape[1]))
        return log_probs(features, lengths)

    with monkeypatch.context() as patch:
        patch.setattr(model.frontend, "log_mel", watched_log_mel)
        patch.setattr(model, "log_probs", watched_log_probs)
        path_of(model, lambda: samples.split(16000), batch_seconds=8, window_seconds=2.0, context_seconds=0.48)
    return max(spectrograms), *(max(sizes) for sizes in zip(*batches))


def test_four_times_the_audio_is_computed_in_pieces_of_the_same_size(
    make_model: Callable[..., CTCModel], two_minutes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarter, whole = (largest_tensors(make_model(), two_minutes[: part * 400000], monkeypatch) for part in (1, 4))
    assert quarter == whole
    assert whole[0] <= 16000 + 6 * HOP
    assert whole[1:] == (2, 200 + 2 * 48), "8 s at once hold two windows of 2.96 s"
