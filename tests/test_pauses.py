"""Sound of any length is cut at its pauses: nothing is lost, and where it is cut does not depend on how it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from asr.pauses import LONGEST_SECONDS, SHORT_PAUSE_SECONDS, Stretch, cut_at_pauses, is_silent

RATE, STEP = 16000, 640


def cut(blocks: Iterable[Tensor]) -> Iterator[Stretch]:
    return cut_at_pauses(blocks, RATE, STEP)


def noise(seconds: float, amplitude: float = 1e-3) -> Tensor:
    return amplitude * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("block", [160, 1600, 5000])
def test_a_second_of_quiet_parts_two_utterances(speech: list[Tensor], talk: Tensor, block: int) -> None:
    ends = [(stretch.start + len(stretch.samples)) / RATE for stretch in cut(talk.split(block))]
    assert len(ends) >= len(speech)
    begin = 0.0
    for utterance in speech[:-1]:
        end = begin + len(utterance) / RATE
        assert any(end - 0.3 < place < end + 1.0 for place in ends), "the second of quiet holds a cut"
        begin = end + 1.0


@given(seconds=st.floats(0.0, 30.0), places=st.lists(st.floats(0, 1), max_size=8))
def test_any_blocks_give_the_same_stretches_and_nothing_is_lost(
    talk: Tensor, seconds: float, places: list[float]
) -> None:
    samples = talk[: round(seconds * RATE)]
    stretches = list(cut(samples.tensor_split(sorted(round(place * len(samples)) for place in places))))
    assert torch.equal(torch.cat([stretch.samples for stretch in stretches]), samples)
    assert [stretch.start for stretch in stretches] == [stretch.start for stretch in cut([samples])]
    assert [stretch.is_last for stretch in stretches] == [*[False] * (len(stretches) - 1), True]
    assert all(stretch.start % STEP == 0 for stretch in stretches)


def test_an_utterance_comes_as_soon_as_the_pause_behind_it_is_long_enough(talk: Tensor) -> None:
    read = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal read
        for block in talk.split(1600):
            read += len(block)
            yield block

    for stretch in cut(blocks()):
        if not stretch.is_last:
            assert read - stretch.start - len(stretch.samples) <= (SHORT_PAUSE_SECONDS / 2 + 0.3) * RATE


def test_speech_without_a_pause_is_cut_all_the_same() -> None:
    drone = torch.sin(torch.arange(65 * RATE) * 0.1) * 0.1 + noise(65, 0.03)
    stretches = list(cut(drone.split(1600)))
    assert torch.equal(torch.cat([stretch.samples for stretch in stretches]), drone)
    assert LONGEST_SECONDS / 2 < max(len(stretch.samples) for stretch in stretches) / RATE <= LONGEST_SECONDS + 0.2


@pytest.mark.parametrize(
    "still", [torch.zeros(70 * RATE), noise(70, 1e-5), noise(70, 0.01)], ids=["zero", "dim", "hiss"]
)
def test_silence_and_hiss_hold_no_speech_but_what_stands_among_them_does(speech: list[Tensor], still: Tensor) -> None:
    assert not any(stretch.may_hold_speech for stretch in cut(still.split(1600)))
    stretches = list(cut([still, speech[1], still]))
    heard = [stretch for stretch in stretches if stretch.may_hold_speech]
    assert 1 <= len(heard) <= 2
    assert heard[0].start <= len(still) + 0.3 * RATE, "it begins no louder than the hiss"
    assert heard[-1].start + len(heard[-1].samples) >= len(still) + len(speech[1])


@pytest.mark.parametrize(
    "below", [lambda n: torch.full((n,), 0.2), lambda n: 0.2 * torch.sin(torch.arange(n) * 0.0196)]
)
def test_speech_is_heard_above_an_offset_and_the_mains_hum(talk: Tensor, below: Callable[[int], Tensor]) -> None:
    quiet = 0.25 * talk[: 55 * RATE]
    stretches = list(cut((quiet + below(len(quiet))).split(1600)))
    heard = sum(len(stretch.samples) for stretch in stretches if stretch.may_hold_speech)
    assert heard > 0.9 * sum(len(stretch.samples) for stretch in cut(quiet.split(1600)) if stretch.may_hold_speech)
    still = noise(70, 0.01)
    assert not any(stretch.may_hold_speech for stretch in cut((still + below(len(still))).split(1600)))


def test_a_muted_microphone_does_not_hide_the_pauses_of_the_room_behind_it(speech: list[Tensor]) -> None:
    muted, room = torch.zeros(6 * RATE), noise(1.2, 3e-4)
    first = next(cut([muted, speech[0], room, speech[1], room]))
    assert 0 < len(first.samples) - len(muted) - len(speech[0]) < len(room)


@pytest.mark.parametrize(("level", "expected"), [(0.1, True), (0.0, False)])
def test_short_speech_counts_whatever_its_range_and_short_silence_does_not(level: float, expected: bool) -> None:
    (short,) = cut([level * torch.tensor([1.0, -1.0]).repeat(400)])
    assert short.may_hold_speech is expected


@pytest.mark.parametrize(("peak", "expected"), [(0.0, True), (9e-5, True), (1.1e-4, False), (1.0, False)])
def test_silence_is_what_nothing_is_loud_in(peak: float, expected: bool) -> None:
    samples = torch.zeros(1000)
    samples[500] = -peak
    assert is_silent(samples) is expected
    assert is_silent(samples + 0.5) is expected


def test_a_recording_without_a_sample_is_one_empty_stretch_of_silence() -> None:
    (stretch,) = cut([])
    assert (len(stretch.samples), stretch.is_last, stretch.may_hold_speech) == (0, True, False)


def test_sound_without_a_pause_is_cut_where_it_is_quietest_in_its_second_half() -> None:
    drone = 0.1 * torch.randn(25 * RATE, generator=torch.Generator().manual_seed(0))
    drone[15 * RATE : 15 * RATE + 3200] *= 0.3
    drone[5 * RATE : 5 * RATE + 3200] *= 0.2  # in the first half
    drone[13 * RATE : 13 * RATE + 640] *= 0.2  # for a moment
    first = next(cut_at_pauses([drone], RATE, 640))
    assert 15 * RATE <= len(first.samples) <= 15 * RATE + 3200


@pytest.mark.parametrize(("seconds", "is_cut"), [(3.0, False), (7.0, True)])
def test_a_short_utterance_waits_for_a_longer_pause(seconds: float, is_cut: bool) -> None:
    voice = 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(0))
    room = 1e-3 * torch.randn(round(0.7 * RATE), generator=torch.Generator().manual_seed(1))
    first = next(cut_at_pauses([torch.cat([voice, room, voice[: 2 * RATE], room, room])], RATE, 640))
    end = len(first.samples) / RATE
    assert (seconds < end < seconds + 0.7) == is_cut
