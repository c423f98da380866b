"""All of a recording is read, whatever its container tells of its length, or the file is refused."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from recordings import encoded

from asr import flac, streams
from asr import mp3 as mp3_files
from asr.audio import read_audio, resample
from asr.containers import check_whole, with_whole_length
from asr.errors import AsrError
from asr.ogg import look_at_pages

RATE = 16000
SAMPLES = Path(__file__).parents[1] / "samples"
SPEECH = read_audio(SAMPLES / "84-121123-0001.flac", RATE)
QUIET_FIRST = torch.cat([torch.zeros(2 * RATE), SPEECH])
"""So that a variable bit rate begins low, and the size suggests a length far above the real one."""

ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x08\x00" + bytes(range(256)) * 4


@cache
def mp3(mode: str = "VARIABLE", rate: int = RATE, quiet_first: bool = True) -> bytes:
    file = io.BytesIO()
    samples = resample(QUIET_FIRST if quiet_first else QUIET_FIRST.flip(0), RATE, rate)
    soundfile.write(file, samples.numpy(), rate, format="MP3", bitrate_mode=mode, compression_level=0.3)
    return file.getvalue()


def without_xing(data: bytes) -> bytes:
    """From the second frame on."""
    return data[data.index(data[:2], 50) :]


def seconds_of(samples: torch.Tensor) -> float:
    return len(samples) / RATE


def likeness(samples: torch.Tensor, other: torch.Tensor) -> float:
    """The highest correlation of the two, whatever the delay of one."""
    size = len(samples) + len(other)
    product = torch.fft.irfft(torch.fft.rfft(samples, size) * torch.fft.rfft(other, size).conj(), size)
    return float(product.max() / (samples.norm() * other.norm()))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT", "AVERAGE"])
@pytest.mark.parametrize("quiet_first", [True, False])
@pytest.mark.parametrize("tag", [b"", ID3V1, b"APETAGEX" + bytes(range(256)) * 20])
def test_an_mp3_that_does_not_tell_its_length_is_read_whole(
    mode: str, rate: int, quiet_first: bool, tag: bytes
) -> None:
    data = mp3(mode, rate, quiet_first)
    whole = read_audio(io.BytesIO(data), RATE)
    samples = read_audio(io.BytesIO(without_xing(data) + tag), RATE)
    assert 0 <= seconds_of(samples) - seconds_of(whole) < 0.25
    assert likeness(samples, whole) > 0.99


@pytest.mark.parametrize("strip", [lambda data: data, without_xing, lambda data: ID3V2 + data + ID3V1])
@pytest.mark.parametrize(("mode", "rate"), [("VARIABLE", 16000), ("CONSTANT", 44100)])
def test_all_parts_of_joined_mp3s_are_read(tmp_path: Path, strip, mode: str, rate: int) -> None:  # type: ignore[no-untyped-def]
    part = strip(mp3(mode, rate))
    (tmp_path / "joined.mp3").write_bytes(part * 3)
    samples = read_audio(tmp_path / "joined.mp3", RATE)
    length = len(samples) // 3
    assert 0 <= length / RATE - seconds_of(QUIET_FIRST) < 0.25
    for number in range(3):
        assert likeness(samples[number * length : (number + 1) * length], QUIET_FIRST) > 0.95


def test_any_stretch_of_it_is_where_it_is_in_the_whole() -> None:
    data = without_xing(mp3()) * 2
    whole = read_audio(io.BytesIO(data), RATE)
    for start in (0.5, 3.0, 9.25):
        stretch = read_audio(io.BytesIO(data), RATE, start_seconds=start, duration_seconds=1.5)
        first = int(start * RATE)
        torch.testing.assert_close(stretch, whole[first : first + len(stretch)], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_what_is_read_whole_anyway_is_left_as_it_is(tmp_path: Path, format: str, subtype: str | None) -> None:
    soundfile.write(tmp_path / "a", SPEECH.numpy(), RATE, format=format, subtype=subtype)
    with (tmp_path / "a").open("rb") as file:
        assert with_whole_length(file) is file
        check_whole(file, "a")


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_that_is_cut_short_of_what_it_tells_is_refused(mode: str) -> None:
    with pytest.raises(AsrError, match="cut short"):
        read_audio(io.BytesIO(mp3(mode)[:-2000]), RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_joined_ogg_files_are_refused_with_their_number_and_what_to_do(tmp_path: Path, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, SPEECH.numpy(), RATE, format="OGG", subtype=subtype)
    (tmp_path / "three.ogg").write_bytes(file.getvalue() * 3)
    with pytest.raises(AsrError, match=r"three\.ogg: only the first of 3 recordings .* `ffmpeg -i FILE NEW\.flac`"):
        read_audio(tmp_path / "three.ogg", RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("share", [0.4, 0.5, 0.8, 0.999])
def test_an_ogg_file_that_is_cut_short_within_a_page_is_refused(tmp_path: Path, subtype: str, share: float) -> None:
    content = encoded(QUIET_FIRST, "OGG", subtype)
    (tmp_path / "half.ogg").write_bytes(content[: int(share * len(content))])
    with pytest.raises(AsrError, match=r"half\.ogg: the audio is cut short: its last Ogg page reaches past the file's"):
        read_audio(tmp_path / "half.ogg", RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_that_was_never_finished_is_read_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, subtype: str
) -> None:
    content = encoded(QUIET_FIRST, "OGG", subtype)
    path = tmp_path / "live.ogg"
    path.write_bytes(content[: content.rindex(b"OggS")])
    for _ in range(2):
        assert 0 < len(read_audio(path, RATE)) < len(QUIET_FIRST)
    assert caplog.messages == [f"{path}: the Ogg file was never finished, or is cut short; what is there is read"]


def test_joined_flac_files_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.flac", SPEECH.numpy(), RATE)
    (tmp_path / "two.flac").write_bytes((tmp_path / "one.flac").read_bytes() * 2)
    assert len(read_audio(tmp_path / "one.flac", RATE)) == len(SPEECH)
    with pytest.raises(AsrError, match="only the first of 2 recordings that are joined in this file"):
        read_audio(tmp_path / "two.flac", RATE)


def test_a_large_flac_is_looked_through_once_and_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LARGE_BYTES", 1000)
    looked: list[int] = []
    count = flac._count

    def look(data: bytes, part: bytes) -> int:
        looked.append(len(data))
        return count(data, part)

    monkeypatch.setattr(flac, "_count", look)
    path = tmp_path / "a.flac"
    soundfile.write(path, SPEECH.numpy(), RATE)
    for _ in range(3):
        read_audio(path, RATE, start_seconds=0.1, duration_seconds=0.1)
    assert len(looked) == 2, "for two kinds of beginnings"
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(AsrError, match="only the first of 2"):
        read_audio(path, RATE)


def test_a_large_mp3_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LARGE_BYTES", 1000)
    (tmp_path / "a.mp3").write_bytes(without_xing(mp3()))
    whole = read_audio(tmp_path / "a.mp3", RATE)
    monkeypatch.setattr(mp3_files, "_count_untold_frames", None)
    assert torch.equal(read_audio(tmp_path / "a.mp3", RATE), whole)


def wav(told: int, behind: bytes = b"") -> bytes:
    """SPEECH, with so many bytes told in its header."""
    file = io.BytesIO()
    soundfile.write(file, SPEECH.numpy(), RATE, format="WAV", subtype="PCM_16")
    content = file.getvalue()
    place = content.index(b"data") + 4
    return (
        content[:4]
        + (place - 4 + told).to_bytes(4, "little")
        + content[8:place]
        + told.to_bytes(4, "little")
        + (content[place + 4 :] + behind)
    )


@pytest.mark.parametrize("told", [0, 3200, 0xFFFFFF00 // 2])
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_wav_whose_header_was_never_finished_is_read_whole(tmp_path: Path, told: int, on_disk: bool) -> None:
    (tmp_path / "a.wav").write_bytes(wav(told))
    read = read_audio(tmp_path / "a.wav" if on_disk else io.BytesIO(wav(told)), RATE)
    torch.testing.assert_close(read, read_audio(io.BytesIO(wav(2 * len(SPEECH))), RATE))


class Counted(io.BytesIO):
    """Bytes in memory, and how many of them were read."""

    num_read = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.num_read += len(content)
        return content


def test_of_a_long_wav_that_was_never_finished_a_stretch_alone_is_read() -> None:
    file = Counted(wav(0) + bytes(10_000_000))
    stretch = read_audio(file, RATE, start_seconds=1.0, duration_seconds=1.0)
    torch.testing.assert_close(stretch, SPEECH[RATE : 2 * RATE], atol=1e-4, rtol=0)
    assert file.num_read < 1_000_000


def test_a_header_and_what_follows_it_are_read_as_one_file() -> None:
    file = streams.with_header(b"abc", io.BytesIO(b"0123456789"), 4)
    assert file.read() == b"abc456789"
    assert file.seek(-2, io.SEEK_END) == 7
    assert file.read() == b"89"
    file.seek(2)
    assert file.read(2) == b"c4"
    assert file.seek(1, io.SEEK_CUR) == 5
    assert file.read(9) == b"6789"


def test_what_stands_behind_the_samples_of_a_wav_is_no_sound() -> None:
    assert len(read_audio(io.BytesIO(wav(2 * len(SPEECH) - 1, b"LIST\x04\0\0\0INFO")), RATE)) == len(SPEECH) - 1
    for behind in (b"LIST\x04\0\0\0INFO", b"", b"\0", b"abcd\0\0\0\0"):
        assert len(read_audio(io.BytesIO(wav(2 * len(SPEECH), behind)), RATE)) == len(SPEECH)
    with pytest.raises(AsrError, match="holds no samples"):
        read_audio(io.BytesIO(wav(0)[: -2 * len(SPEECH)]), RATE)


def test_streams_that_begin_together_are_one_ogg_recording_and_later_ones_are_more() -> None:
    first, later = (b"OggS\0" + bytes([flag]) + bytes(20) + b"\2\3\4" + bytes(7) for flag in (2, 0))
    for pages, count in ((first + first + later, 1), (first + later + first + first + later, 2), (first + first, 1)):
        assert look_at_pages(io.BytesIO(pages)).num_recordings == count


@given(
    data=st.binary(max_size=300),
    begin=st.sampled_from([b"ID3", b"\xff\xfb\x90\xc4", b"OggS\0\2", b"RIFF\0\0\0\0WAVEdata", b"fLaC", b""]),
)
@example(data=b"\xff" * 300, begin=b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f")
@example(data=b"\xff\xf3\x18\xc4" + bytes(32), begin=b"\xff\xf3\x18\xc4" + bytes(32))
def test_bytes_of_any_kind_are_left_as_they_are_or_get_a_header(data: bytes, begin: bytes) -> None:
    stream = io.BytesIO(begin + data)
    whole = with_whole_length(stream)
    assert whole is stream or whole.read().endswith(data[-4:])
    with suppress(AsrError):
        check_whole(stream, "audio")
