"""Recordings of any length: their log-probs are those of the utterances that they are cut into."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from asr.decoder import DecodedTokens
from asr.longform import stream_log_probs
from asr.model import CTCModel
from asr.pauses import cut_at_pauses
from asr.transcription import transcribe

HOP, STEP, RATE = 160, 640, 16000


@pytest.mark.parametrize("seconds", [0.3, 25.0])
@pytest.mark.parametrize("beyond", [-STEP, -HOP - 1, -HOP, -1, 0, 1, HOP - 1, HOP, 2 * HOP, 3 * HOP, STEP, STEP + 1])
def test_a_recording_has_as_many_steps_as_the_model_says(
    model: CTCModel, talk: Tensor, seconds: float, beyond: int
) -> None:
    samples = talk[: round(seconds * RATE / STEP) * STEP + beyond]
    log_probs = torch.cat(list(stream_log_probs(model, [samples], batch_seconds=60)))
    assert len(log_probs) == int(model.output_lengths(torch.tensor(len(samples))))


def test_an_utterance_has_the_log_probs_that_it_has_whole(model: CTCModel, speech: list[Tensor]) -> None:
    for samples in speech:
        with torch.inference_mode():
            whole, _ = model(samples[None], torch.tensor([len(samples)]))
        (log_probs,) = stream_log_probs(model, samples.split(5000), batch_seconds=160)
        torch.testing.assert_close(log_probs, whole[0], rtol=0, atol=1e-4)


def test_a_stretch_has_the_log_probs_of_a_recording_of_its_own(model: CTCModel, talk: Tensor) -> None:
    stretches = list(cut_at_pauses([talk], RATE, STEP))
    parts = list(stream_log_probs(model, [talk], batch_seconds=160))
    assert len(parts) == len(stretches) >= 5
    for part, stretch in zip(parts, stretches, strict=True):
        (alone,) = stream_log_probs(model, [stretch.samples], batch_seconds=160)
        torch.testing.assert_close(part, alone[: len(part)], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("block", "batch_seconds"), [(30 * RATE, 160.0), (12345, 160.0), (30 * RATE, 1.0)])
def test_the_blocks_and_how_much_is_computed_at_once_change_nothing(
    model: CTCModel, talk: Tensor, block: int, batch_seconds: float
) -> None:
    expected = torch.cat(list(stream_log_probs(model, [talk], batch_seconds=1000)))
    log_probs = torch.cat(list(stream_log_probs(model, talk.split(block), batch_seconds=batch_seconds)))
    torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-4)


def test_no_more_is_read_ahead_than_is_computed_at_once(make_model: Callable[..., CTCModel], talk: Tensor) -> None:
    model, read, computed = make_model(), 0, []
    model.register_forward_pre_hook(lambda _, inputs: computed.append((read, inputs[0].numel())))

    def blocks() -> Iterator[Tensor]:
        nonlocal read
        for block in (talk.repeat(4)).split(RATE):
            read += len(block)
            yield block

    given = 0
    for part in stream_log_probs(model, blocks(), batch_seconds=40):
        assert read - given <= 43 * RATE, "two stretches of 20 s, and what tells that the second has ended"
        given += len(part) * STEP
    assert len(computed) > 8
    assert max(samples for _, samples in computed) <= 41 * RATE


def test_words_of_a_long_recording_are_where_its_stretches_begin(model: CTCModel, talk: Tensor) -> None:
    long = talk.repeat(2)[: 60 * RATE]
    stretches = [each for each in cut_at_pauses([long], RATE, model.step_samples) if each.may_hold_speech]

    def decode(log_probs: Tensor, lengths: Tensor) -> list[DecodedTokens]:
        return [DecodedTokens([3], [3], [4], [0.0]) for _ in lengths]

    words = transcribe(long, sample_rate=RATE, model=model, decode=decode).words
    assert len(stretches) > 5
    assert [word.start_seconds for word in words] == pytest.approx([each.start / RATE + 0.1 for each in stretches])
