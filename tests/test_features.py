"""The frontend against librosa, and that neither batch mates nor padding reach an utterance's features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from asr.config import FrontendConfig
from asr.features import LOG_FLOOR, VARIANCE_FLOOR, LogMelFrontend, mask_padding, normalize_features, valid_positions

HOP, WINDOW, TRANSFORM = 160, 400, 512
BOUNDARIES = sorted(
    {
        max(1, near + offset)
        for near in [*(HOP * count for count in range(8)), HOP // 2, WINDOW // 2, WINDOW, TRANSFORM // 2, TRANSFORM]
        for offset in (-1, 0, 1)
    }
)
"""Lengths in samples around every hop, window and transform boundary of short audio."""


@pytest.fixture(scope="module")
def frontend() -> LogMelFrontend:
    return LogMelFrontend(FrontendConfig())


def alone(frontend: LogMelFrontend, waveform: Tensor) -> Tensor:
    """(frames, num_mels) of one utterance without padding."""
    return frontend(waveform[None], torch.tensor([len(waveform)]))[0][0]


@pytest.fixture(scope="module")
def librosa_energies(speech: list[Tensor]) -> Tensor:
    """(frames, num_mels) mel energies of the first sample."""
    librosa = pytest.importorskip("librosa")
    energies = librosa.feature.melspectrogram(
        y=speech[0].numpy(),
        sr=16000,
        n_fft=TRANSFORM,
        win_length=WINDOW,
        hop_length=HOP,
        window="hann",
        center=True,
        pad_mode="constant",
        power=2.0,
        n_mels=80,
        htk=False,
        norm="slaney",
    )
    return torch.from_numpy(energies).T


def test_mel_energies_equal_librosas(frontend: LogMelFrontend, speech: list[Tensor], librosa_energies: Tensor) -> None:
    energies = frontend.mel_energies(speech[0][None])[0].T
    assert energies.shape == librosa_energies.shape
    assert energies.max() > 1  # the comparison below is about speech, not about silence
    torch.testing.assert_close(energies, librosa_energies, atol=1e-4, rtol=1e-4)


def test_mel_energies_equal_librosas_at_another_rate(speech: list[Tensor]) -> None:
    librosa = pytest.importorskip("librosa")
    energies = LogMelFrontend(FrontendConfig(8000, 40, 32.0, 10.0)).mel_energies(speech[0][None])[0]
    settings = {"n_fft": 256, "hop_length": 80, "pad_mode": "constant", "n_mels": 40}
    expected = librosa.feature.melspectrogram(y=speech[0].numpy(), sr=8000, **settings)
    torch.testing.assert_close(energies, torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_log_mel_equals_the_logarithm_of_librosas(
    frontend: LogMelFrontend, speech: list[Tensor], librosa_energies: Tensor
) -> None:
    expected = (librosa_energies + LOG_FLOOR).log()
    actual = frontend.log_mel(speech[0][None])[0]
    audible = librosa_energies > 1e-6
    assert audible.float().mean() > 0.5
    torch.testing.assert_close(actual[audible], expected[audible], atol=1e-4, rtol=0)
    # Near the floor the rounding of a float32 transform shows: librosa's own is in float64.
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("config", [FrontendConfig(), FrontendConfig(8000, 40, 32.0, 12.5), FrontendConfig(22050)])
def test_output_lengths_equal_the_frames_that_come_out(config: FrontendConfig) -> None:
    frontend = LogMelFrontend(config)
    for samples in [*BOUNDARIES, 5 * frontend.hop_samples - 1, 5 * frontend.hop_samples, 5 * frontend.hop_samples + 1]:
        features, lengths = frontend(torch.zeros(1, samples), torch.tensor([samples]))
        assert features.shape == (1, int(lengths), config.num_mels)


def test_features_of_a_batch_equal_those_of_each_utterance_alone(
    frontend: LogMelFrontend, speech: list[Tensor]
) -> None:
    utterances = [speech[index % len(speech)][16000:][:length] for index, length in enumerate(BOUNDARIES)]
    batch = pad_sequence([*utterances, speech[0]], batch_first=True)
    features, lengths = frontend(batch, torch.tensor([*BOUNDARIES, len(speech[0])]))
    for row, length, utterance in zip(features, lengths.tolist(), [*utterances, speech[0]]):
        torch.testing.assert_close(row[:length], alone(frontend, utterance), atol=1e-4, rtol=0)
        assert not row[length:].any()


def test_a_narrowband_recording_has_the_same_features_alone_and_in_a_batch(
    frontend: LogMelFrontend, speech: list[Tensor]
) -> None:
    """Above 4 kHz such a recording holds nothing, and what is constant must not be divided into something."""
    spectrum = torch.fft.rfft(speech[0].double())
    spectrum[len(spectrum) // 2 :] = 0
    narrow = torch.fft.irfft(spectrum, n=len(speech[0])).float()
    for neighbour in (100000, 160000, 320001):
        batch = pad_sequence([narrow, narrow.new_zeros(neighbour)], batch_first=True)
        features, lengths = frontend(batch, torch.tensor([len(narrow), neighbour]))
        torch.testing.assert_close(features[0, : int(lengths[0])], alone(frontend, narrow), atol=1e-4, rtol=0)


def test_whole_recordings_have_the_same_features_alone_and_in_a_batch(
    frontend: LogMelFrontend, speech: list[Tensor]
) -> None:
    features, lengths = frontend(pad_sequence(speech, batch_first=True), torch.tensor([len(one) for one in speech]))
    for row, length, waveform in zip(features, lengths.tolist(), speech):
        torch.testing.assert_close(row[:length], alone(frontend, waveform), atol=1e-4, rtol=0)


@pytest.mark.parametrize("garbage", [1.0, float("nan"), float("inf")])
def test_what_stands_past_a_length_changes_nothing(
    frontend: LogMelFrontend, speech: list[Tensor], garbage: float
) -> None:
    lengths = torch.tensor([16000, 8001, 1])
    clean = torch.stack([waveform[20000:36000] for waveform in speech[:3]])
    dirty = torch.where(valid_positions(lengths, 16000), clean, garbage)
    torch.testing.assert_close(frontend(dirty, lengths), frontend(clean, lengths), atol=0, rtol=0)


@pytest.mark.parametrize("samples", [1, 159, 160, 16000, 160000, 320000])
def test_silence_gives_zeros(frontend: LogMelFrontend, samples: int) -> None:
    features = alone(frontend, torch.zeros(samples))
    torch.testing.assert_close(features, torch.zeros_like(features), atol=1e-4, rtol=0)


def test_every_band_that_moves_has_mean_0_and_deviation_near_1_over_the_utterance(
    frontend: LogMelFrontend, speech: list[Tensor]
) -> None:
    features, lengths = frontend(pad_sequence(speech, batch_first=True), torch.tensor([len(one) for one in speech]))
    for waveform, row, length in zip(speech, features, lengths.tolist()):
        assert row[:length].mean(0).abs().max() < 1e-4
        # The samples come from MP3, which cut their highest bands off: where nothing moves, nothing is blown up.
        deviations = frontend.log_mel(waveform[None])[0].std(0, unbiased=False)
        assert (deviations > 0.5).sum() > 60
        assert row[:length, deviations > 3].std(0, unbiased=False).min() > 0.98
        torch.testing.assert_close(
            row[:length].std(0, unbiased=False),
            deviations / (deviations.square() + VARIANCE_FLOOR).sqrt(),
            atol=1e-4,
            rtol=1e-4,
        )


def test_normalize_features_equals_its_definition_written_out() -> None:
    torch.manual_seed(0)
    features = torch.randn(3, 7, 5) * 4 + 9
    normalized = normalize_features(features, torch.tensor([7, 3, 1]))
    valid = features[1, :3].double()
    expected = (valid - valid.mean(0)) / (valid.var(0, unbiased=False) + VARIANCE_FLOOR).sqrt()
    torch.testing.assert_close(normalized[1, :3].double(), expected, atol=1e-5, rtol=0)
    assert not normalized[1, 3:].any()
    assert not normalized[2].any()  # one frame is its own mean


@pytest.mark.parametrize("padding", [1, 100, 3000])
def test_the_sums_of_long_utterances_do_not_round_by_their_padding(padding: int) -> None:
    features = torch.randn(1, 997, 80, generator=torch.Generator().manual_seed(0)) * 3 - 12
    alone = normalize_features(features, torch.tensor([997]))
    padded = normalize_features(pad(features, (0, 0, 0, padding)), torch.tensor([997]))
    assert torch.equal(padded[:, :997], alone)


def test_mask_padding_zeroes_all_past_each_length_and_nothing_before() -> None:
    batch = torch.ones(3, 4, 2, 5)
    masked = mask_padding(batch, torch.tensor([0, 3, 4]))
    assert masked.sum((1, 2, 3)).tolist() == [0, 3 * 10, 4 * 10]
    assert masked[1, :3].all()


def test_the_gradient_to_the_waveform_equals_a_finite_difference(
    frontend: LogMelFrontend, speech: list[Tensor]
) -> None:
    torch.manual_seed(0)
    waveform = speech[0][None, 20000:24000].clone().requires_grad_()
    weights = torch.randn(1, 26, 80)

    def weighted(waveforms: Tensor) -> Tensor:
        return (frontend(waveforms, torch.tensor([4000]))[0] * weights).sum()

    (gradient,) = torch.autograd.grad(weighted(waveform), waveform)
    direction = gradient / gradient.norm()
    size = 1e-4
    with torch.no_grad():
        difference = (weighted(waveform + size * direction) - weighted(waveform - size * direction)) / (2 * size)
    assert gradient.isfinite().all()
    torch.testing.assert_close(difference, gradient.norm(), rtol=0.02, atol=0)


@pytest.mark.parametrize("samples", [1, 100, 4000])
def test_silence_and_a_single_frame_have_finite_gradients(frontend: LogMelFrontend, samples: int) -> None:
    waveforms = torch.zeros(1, samples, requires_grad=True)
    features, _ = frontend(waveforms, torch.tensor([samples]))
    (gradient,) = torch.autograd.grad((features * torch.arange(80)).sum(), waveforms)
    assert gradient.isfinite().all()


def test_features_are_computed_in_float32_under_autocast(frontend: LogMelFrontend, speech: list[Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features = alone(frontend, speech[0])
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, alone(frontend, speech[0]), atol=1e-4, rtol=0)
