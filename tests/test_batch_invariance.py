"""Batching is invisible: an utterance has the same log-probs and text alone and padded beside any others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.decoder import decode_greedy
from asr.errors import AsrError
from asr.model import CTCModel
from asr.transcription import Recording, Transcript, transcribe_recordings

HOP, STEP = 160, 640
TOLERANCE = 1e-4
BOUNDARIES = sorted(
    {
        max(1, count * size + offset)
        for size, most in ((HOP, 9), (STEP, 14), (20 * STEP, 3))
        for count in range(most)
        for offset in (-1, 0, 1)
    }
)
"""Lengths in samples around hops and steps, tiny ones included."""


@pytest.fixture(scope="module")
def device_model(device: torch.device, make_model: Callable[..., CTCModel]) -> CTCModel:
    return make_model().to(device)


def recognise(model: CTCModel, utterances: list[Tensor], padding: int = 0, garbage: float = 0.0) -> list[Tensor]:
    """The valid log-probs of each utterance of one batch, on the CPU."""
    lengths = torch.tensor([len(utterance) for utterance in utterances], device=model.device)
    waveforms = torch.full((len(utterances), int(lengths.max()) + padding), garbage, device=model.device)
    for row, utterance in zip(waveforms, utterances):
        row[: len(utterance)] = utterance
    log_probs, steps = model(waveforms, lengths)
    assert steps.tolist() == model.output_lengths(lengths).tolist()
    return [row[:step].detach().cpu() for row, step in zip(log_probs, steps.tolist())]


def text_of(model: CTCModel, log_probs: Tensor) -> str:
    (tokens,) = decode_greedy(log_probs[None], torch.tensor([len(log_probs)]))
    return model.vocabulary.decode(tokens.token_ids)


def assert_same(model: CTCModel, actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)
    assert text_of(model, actual) == text_of(model, expected)


@torch.no_grad()
def test_the_model_of_these_tests_writes_different_texts(device_model: CTCModel, speech: list[Tensor]) -> None:
    texts = [text_of(device_model, log_probs) for log_probs in recognise(device_model, speech)]
    assert len(set(texts)) == len(speech)
    assert min(len(set(text)) for text in texts) > 3


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training path"])
@settings(max_examples=20)
@given(
    lengths=st.lists(st.sampled_from(BOUNDARIES), min_size=1, max_size=5),
    places=st.lists(st.integers(0, 50000), min_size=5, max_size=5),
    padding=st.sampled_from([0, 1, HOP - 1, HOP, STEP, 5 * STEP + 1]),
    garbage=st.sampled_from([0.0, 1.0, float("nan")]),
)
def test_any_cut_of_speech_is_the_same_in_any_batch_with_any_padding(
    device_model: CTCModel,
    speech: list[Tensor],
    grad: bool,
    lengths: list[int],
    places: list[int],
    padding: int,
    garbage: float,
) -> None:
    cuts = [
        (speech[place % 6], place % (len(speech[place % 6]) - length + 1)) for place, length in zip(places, lengths)
    ]
    utterances = [waveform[start:][:length] for (waveform, start), length in zip(cuts, lengths)]
    with torch.set_grad_enabled(grad):
        together = recognise(device_model, utterances, padding, garbage)
    with torch.no_grad():
        for utterance, log_probs in zip(utterances, together):
            assert_same(device_model, log_probs, recognise(device_model, [utterance])[0])


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@torch.no_grad()
def test_whole_recordings_are_the_same_in_every_order_and_company(
    cell: str, device: torch.device, make_model: Callable[..., CTCModel], speech: list[Tensor]
) -> None:
    model = make_model(cell).to(device)
    alone = [recognise(model, [waveform])[0] for waveform in speech]
    longest_first = sorted(range(len(speech)), key=lambda index: -len(speech[index]))
    for batch in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], longest_first, longest_first[::-1], [0, 0, 1]):
        for index, log_probs in zip(batch, recognise(model, [speech[index] for index in batch])):
            assert_same(model, log_probs, alone[index])


@torch.no_grad()
def test_a_silent_or_loud_neighbour_changes_nothing(device_model: CTCModel, speech: list[Tensor]) -> None:
    alone = recognise(device_model, [speech[1]])[0]
    for neighbour in (torch.zeros(300000), torch.ones(300000), 0.9 * torch.sign(torch.sin(torch.arange(300000.0)))):
        assert_same(device_model, recognise(device_model, [neighbour, speech[1]])[1], alone)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_training_and_evaluation_mode_mean_the_same(
    cell: str, device: torch.device, make_model: Callable[..., CTCModel], speech: list[Tensor]
) -> None:
    model = make_model(cell).to(device)
    with torch.no_grad():
        evaluated = recognise(model, speech[:3])
    model.train()
    for actual, expected in zip(recognise(model, speech[:3]), evaluated):
        assert_same(model, actual, expected)
        torch.testing.assert_close(actual.exp().sum(1), torch.ones(len(actual)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "lengths"), [((8000,), [8000]), ((2, 8000), [8000]), ((1, 8000), 8000), ((0, 8000), []), ((1, 0), [0])]
)
def test_shapes_that_are_no_batch_are_told(model: CTCModel, shape: tuple[int, ...], lengths: list[int] | int) -> None:
    with pytest.raises(AsrError, match=r"^waveforms \(.*\) and sample_lengths \(.*\) must be \(batch, samples\) and"):
        model(torch.zeros(shape), torch.tensor(lengths))


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ([8001, 5], r"waveforms \(2, 8000\) and .*: lengths of 5 to 8001 must be from 0 to 8000"),
        ([-1, 5], r"waveforms \(2, 8000\) and .*: lengths of -1 to 5 must be from 0 to 8000"),
        ([8000.0, 5.0], r"sample_lengths of torch\.float32 must be integers"),
    ],
)
def test_lengths_that_are_none_of_samples_are_told(model: CTCModel, lengths: list[float], reason: str) -> None:
    with pytest.raises(AsrError, match=f"^{reason}$"):
        model(torch.zeros(2, 8000), torch.tensor(lengths))


def test_transcripts_do_not_depend_on_the_batch_size_or_the_order(model: CTCModel, sample_paths: list[Path]) -> None:
    def texts(paths: list[Path], batch_seconds: float) -> dict[str, str]:
        recordings = [Recording(path, path.name) for path in paths]
        results = list(transcribe_recordings(model, recordings, batch_seconds=batch_seconds))
        assert [result.name for result in results] == [path.name for path in paths]
        return {result.name: result.text for result in results if isinstance(result, Transcript)}

    expected = texts(sample_paths, 160)
    assert len(set(expected.values())) == 6
    for batch_seconds in (1, 9, 13, 20):
        assert texts(sample_paths[::-1], batch_seconds) == expected
