"""Any file to the same samples: formats, rates, channels, segments, blocks, and every way a file can be broken."""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Callable
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given
from hypothesis import strategies as st
from recordings import encoded
from torch import Tensor

from asr.audio import open_audio, read_audio, resample
from asr.errors import AsrError
from asr.live import open_stream

RATE = 16000
SAMPLES = Path(__file__).parents[1] / "samples"
SPEECH = read_audio(SAMPLES / "84-121123-0001.flac", RATE)

FORMATS = [
    ("WAV", "PCM_U8", 15),
    ("WAV", "PCM_16", 80),
    ("WAV", "PCM_24", 80),
    ("WAV", "PCM_32", 80),
    ("WAV", "FLOAT", 80),
    ("WAV", "DOUBLE", 80),
    ("WAVEX", "PCM_16", 80),
    ("FLAC", "PCM_16", 80),
    ("FLAC", "PCM_24", 80),
    ("OGG", "VORBIS", 10),
    ("OGG", "OPUS", 10),
    ("MP3", "MPEG_LAYER_III", 10),
]
"""Format, subtype, and the signal-to-noise ratio in dB that it keeps at least."""


@cache
def encoded_speech(format: str, subtype: str | None = None) -> bytes:
    return encoded(SPEECH, format, subtype)


def snr_db(original: Tensor, copy: Tensor) -> float:
    noise = (original - copy).square().sum().clamp(min=1e-12)
    return float(10 * torch.log10(original.square().sum() / noise))


def sine(frequency: float, rate: int, seconds: float) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(round(rate * seconds)) / rate)


def spectrum(samples: Tensor) -> Tensor:
    """Magnitudes of the frequencies from 0 to RATE / 2."""
    magnitudes: Tensor = torch.fft.rfft(samples * torch.hann_window(len(samples))).abs()
    return magnitudes


def loudest_frequency(samples: Tensor) -> float:
    return float(spectrum(samples).argmax()) * RATE / len(samples)


class Unseekable(io.RawIOBase):
    """Bytes that come once, as from a pipe."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self.data.readinto(buffer)


@pytest.mark.parametrize(("format", "subtype", "least_snr_db"), FORMATS)
def test_every_format_gives_the_same_speech(tmp_path: Path, format: str, subtype: str, least_snr_db: float) -> None:
    path = tmp_path / "speech"
    path.write_bytes(encoded(SPEECH, format, subtype))
    samples = read_audio(path, RATE)
    assert samples.dtype == torch.float32
    assert samples.shape == SPEECH.shape
    assert snr_db(SPEECH, samples) > least_snr_db


@pytest.mark.parametrize("name", ["a.mp3", "a.txt", "a.raw", "a.wav", "a.vox", "a.flac", "a", "ä ö\n日本.ogg"])
@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_content_counts_and_not_the_name(tmp_path: Path, name: str, format: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(SPEECH, format=format))
    assert torch.equal(read_audio(path, RATE), SPEECH)


def test_a_name_that_is_not_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.wav")
    path.write_bytes(encoded(SPEECH))
    assert torch.equal(read_audio(str(path), RATE), SPEECH)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_path_an_open_file_bytes_in_memory_and_a_pipe_give_the_same_samples(tmp_path: Path, format: str) -> None:
    data = encoded(SPEECH, format=format)
    path = tmp_path / "speech"
    path.write_bytes(data)
    expected = read_audio(path, RATE)
    at_its_end = io.BytesIO()
    at_its_end.write(data)
    with path.open("rb") as file:
        file.read(7)
        for source in (str(path), file, io.BytesIO(data), at_its_end, Unseekable(data)):
            assert torch.equal(read_audio(source, RATE), expected)  # type: ignore[arg-type]
        assert not file.closed


def test_a_named_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(encoded(SPEECH)), daemon=True)
    writer.start()
    assert torch.equal(read_audio(path, RATE), SPEECH)
    writer.join(5)


class WindowsPipe(io.FileIO):
    """A pipe as Python before 3.16 has it on Windows: it says that it can seek, and is always at 0."""

    def seekable(self) -> bool:
        return True

    def seek(self, *_: int) -> int:
        return 0

    tell = seek


def test_a_pipe_is_read_to_its_end_though_it_says_that_it_can_seek() -> None:
    for read in (read_audio, lambda pipe, _: torch.cat(list(open_stream(pipe)[0]))):
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as file, io.BufferedReader(WindowsPipe(reading)) as pipe:
            file.write(encoded(SPEECH[:RATE], subtype="PCM_16"))  # 32 kB are less than a pipe holds
            file.close()
            assert torch.equal(read(pipe, RATE), SPEECH[:RATE])


def test_a_wav_whose_length_its_writer_could_not_know_is_read_to_its_end() -> None:
    data = bytearray(encoded(SPEECH))
    place = data.index(b"data")
    data[4:8] = data[place + 4 : place + 8] = struct.pack("<I", 0xFFFFFFFF)  # as ffmpeg writes to a pipe
    assert torch.equal(read_audio(io.BytesIO(data), RATE), SPEECH)


def flac_without_length() -> bytes:
    """The total number of samples is 36 bits from the middle of byte 21 on; 0 stands for unknown."""
    data = bytearray(encoded(SPEECH, format="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def test_a_flac_whose_length_its_writer_could_not_know_is_read_to_its_end() -> None:
    with open_audio(io.BytesIO(flac_without_length()), RATE) as audio:
        assert audio.duration_seconds == len(SPEECH) / RATE
        assert torch.equal(audio.read(), SPEECH)
        assert torch.equal(audio.read(2.0, 1.0), SPEECH[32000:48000])


def test_a_flac_that_tells_no_length_is_counted_once_and_again_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[Any, int] = {}
    monkeypatch.setattr("asr.audio._counted", known)
    path = tmp_path / "a.flac"
    path.write_bytes(flac_without_length())
    with open_audio(path) as audio:
        assert audio.frames == len(SPEECH)
    known.update(dict.fromkeys(known, 7))
    with open_audio(path) as audio:
        assert audio.frames == 7, "it is not decoded for that again"
    os.utime(path, (1e9, 1e9))
    with open_audio(path) as audio:
        assert audio.frames == len(SPEECH)


def test_a_wav_that_is_cut_short_says_where_it_ends() -> None:
    data = encoded(SPEECH)
    with pytest.raises(AsrError, match=r"the audio is cut short: it ends at 1\.87 of \d+\.\d\d s"):
        read_audio(io.BytesIO(data[: 44 + 2 * 29_920]), RATE)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        *[("WAV", codec) for codec in ("GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_32", "IMA_ADPCM", "MS_ADPCM")],
        *[("AIFF", "GSM610"), ("AIFF", "DWVW_16"), ("W64", "GSM610"), ("AU", "G721_32"), ("AU", "G723_24")],
    ],
)
def test_what_only_goes_forward_is_read_whole_in_stretches_and_in_blocks(format: str, subtype: str) -> None:
    data = encoded(SPEECH, format, subtype)
    whole = read_audio(io.BytesIO(data), RATE)
    assert snr_db(SPEECH, whole[: len(SPEECH)]) > 5
    stretch = read_audio(io.BytesIO(data), RATE, start_seconds=2.5, duration_seconds=1.0)
    assert torch.equal(stretch, whole[40000:56000])
    with open_audio(io.BytesIO(data), RATE) as audio:
        assert torch.equal(torch.cat(list(audio.blocks(1.0, block_seconds=0.7))), whole[16000:])


def test_what_only_goes_forward_is_not_called_damaged_where_it_would_have_to_go_back() -> None:
    with open_audio(io.BytesIO(encoded(SPEECH, "WAV", "GSM610")), RATE) as audio:
        audio.read(1.0, 1.0)
        with pytest.raises(AsrError, match=r"^audio: GSM610 can only be read forward; open it anew, or `ffmpeg"):
            audio.read(0.5)


def test_channels_are_averaged() -> None:
    parts = torch.stack([SPEECH, 0.5 * SPEECH.flip(0)], dim=1)
    assert torch.allclose(read_audio(io.BytesIO(encoded(parts, subtype="FLOAT")), RATE), parts.mean(1), atol=1e-7)
    eight = 0.3 * torch.randn(800, 8, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    assert torch.allclose(read_audio(io.BytesIO(encoded(eight, subtype="FLOAT")), RATE), eight.mean(1), atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 11127, 22050, 32000, 44100, 48000, 192000])
def test_any_rate_keeps_length_and_pitch(rate: int) -> None:
    samples = read_audio(io.BytesIO(encoded(sine(1000, rate, 1.5), rate=rate)), RATE)
    assert abs(len(samples) - 1.5 * RATE) <= 1
    assert abs(loudest_frequency(samples) - 1000) < 1
    assert 0.95 < samples[1000:-1000].abs().max() / 0.5 < 1.05


def test_a_rate_without_a_small_ratio_to_ours_is_resampled_in_little_memory() -> None:
    samples = resample(sine(440, 44099, 1.0), 44099, RATE)
    assert abs(len(samples) - RATE) <= 1
    assert abs(loudest_frequency(samples) - 440) < 1


@pytest.mark.parametrize("rate", [44100, 48000, 192000])
def test_what_is_too_high_for_our_rate_is_removed_and_not_folded_down(rate: int) -> None:
    samples = read_audio(io.BytesIO(encoded(sine(10000, rate, 0.5), rate=rate, subtype="FLOAT")), RATE)
    assert samples[1000:-1000].abs().max() < 0.01 * 0.5


def test_telephone_speech_gets_no_frequencies_that_it_did_not_have() -> None:
    power = spectrum(read_audio(io.BytesIO(encoded(SPEECH[:16000], rate=8000)), RATE)).square()
    assert power[int(0.53 * len(power)) :].sum() < 1e-5 * power.sum()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_common_rates_are_resampled_exactly(rate: int) -> None:
    samples = SPEECH[:20000]
    assert torch.equal(resample(samples, rate, RATE), torchaudio.functional.resample(samples, rate, RATE))


@pytest.mark.parametrize("rate", [1, 999, 768001, 2**31 - 1])
def test_a_rate_that_no_recording_has_is_refused(rate: int) -> None:
    data = bytearray(encoded(SPEECH[:1000]))
    data[24:28] = struct.pack("<I", rate)
    with pytest.raises(AsrError, match=rf"^audio: a sample rate of {rate} Hz is out of range; 1000 to 768000 Hz"):
        read_audio(io.BytesIO(data), RATE)


@pytest.mark.parametrize(("start", "duration"), [(0.0, 1.0), (1.0, None), (0.5, 2.25), (3.9, 0.09), (0.0, 3.99)])
def test_a_segment_is_a_slice_of_the_whole(start: float, duration: float | None) -> None:
    segment = read_audio(io.BytesIO(encoded(SPEECH)), RATE, start_seconds=start, duration_seconds=duration)
    end = len(SPEECH) if duration is None else round((start + duration) * RATE)
    assert torch.equal(segment, SPEECH[round(start * RATE) : end])


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_a_segment_of_compressed_audio_sounds_as_in_the_whole(format: str, subtype: str | None) -> None:
    data = encoded(SPEECH, format=format, subtype=subtype)
    whole = read_audio(io.BytesIO(data), RATE)
    for start in range(1601, 60000, 1601):
        segment = read_audio(io.BytesIO(data), RATE, start_seconds=start / RATE, duration_seconds=0.05)
        assert snr_db(whole[start : start + 800], segment) > 25


def test_a_segment_may_reach_a_little_past_the_end_and_not_far() -> None:
    data = encoded(SPEECH)
    assert torch.equal(read_audio(io.BytesIO(data), RATE, start_seconds=3.0, duration_seconds=1.02), SPEECH[48000:])
    with pytest.raises(AsrError, match=r"3 to 4\.1 s is not inside its 3\.99 s"):
        read_audio(io.BytesIO(data), RATE, start_seconds=3.0, duration_seconds=1.1)


@pytest.mark.parametrize(
    ("start", "duration"),
    [(-1.0, None), (4.0, None), (1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))],
)
def test_a_segment_outside_the_audio_is_refused(start: float, duration: float | None) -> None:
    with pytest.raises(AsrError, match=r"is not inside its 3\.99 s"):
        read_audio(io.BytesIO(encoded(SPEECH)), RATE, start_seconds=start, duration_seconds=duration)


@pytest.mark.parametrize(
    ("start", "duration"), [(4.0, 0.03), (3.99, 0.03), (3.98999, None), (1.0, 1e-6)], ids=lambda value: f"{value}"
)
def test_a_segment_that_holds_no_sample_is_refused(start: float, duration: float | None) -> None:
    with open_audio(io.BytesIO(encoded(SPEECH)), RATE) as audio:
        for read in (audio.read, lambda *stretch: list(audio.blocks(*stretch))):
            with pytest.raises(AsrError, match=r"^audio: [\d.]+ to [\d.]+ s holds none of its 63840 samples$"):
                read(start, duration)


@pytest.mark.parametrize("count", [1, 160])
@pytest.mark.parametrize(("format", "subtype"), [row[:2] for row in FORMATS])
def test_one_sample_and_ten_milliseconds_are_read(format: str, subtype: str, count: int) -> None:
    with open_audio(io.BytesIO(encoded(SPEECH[:count], format, subtype)), RATE) as audio:
        assert audio.duration_seconds == count / RATE
        assert audio.read().shape == (count,)


@pytest.mark.parametrize(("format", "subtype"), [row[:2] for row in FORMATS])
def test_silence_is_valid_and_stays_silent(format: str, subtype: str) -> None:
    samples = read_audio(io.BytesIO(encoded(torch.zeros(RATE), format, subtype)), RATE)
    assert samples.shape == (RATE,)
    assert samples.abs().max() < 1e-4


@given(
    rate=st.sampled_from([8000, 11025, 11127, 16000, 22050, 44100, 48000]),
    count=st.integers(1, 30000),
    block_seconds=st.floats(0.001, 1.0),
    start=st.floats(0, 0.9),
)
def test_blocks_together_are_what_read_returns(rate: int, count: int, block_seconds: float, start: float) -> None:
    samples = SPEECH[5000 : 5000 + count]
    start_seconds = int(start * count) / rate
    with open_audio(io.BytesIO(encoded(samples, rate=rate, subtype="FLOAT")), RATE) as audio:
        whole = audio.read(start_seconds)
        blocks = list(audio.blocks(start_seconds, block_seconds=block_seconds))
        again = list(audio.blocks(start_seconds, block_seconds=block_seconds))
    assert len(whole) == pytest.approx((count - round(start_seconds * rate)) * RATE / rate, abs=1)
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-6, rtol=0)
    assert torch.equal(torch.cat(blocks), torch.cat(again))
    assert max(map(len, blocks)) <= ceil(max(block_seconds, 0.05) * 1.5 * RATE) + RATE  # grids of odd rates are coarse


@pytest.mark.parametrize("channels", [2, 8])
def test_blocks_of_many_channels_at_another_rate_together_are_what_read_returns(channels: int) -> None:
    parts = torch.stack([SPEECH.roll(1000 * channel) for channel in range(channels)], dim=1)
    data = encoded(parts, "FLAC", rate=44100)
    with open_audio(io.BytesIO(data), RATE) as audio:
        blocks, whole = list(audio.blocks(0.2, 0.9, block_seconds=0.1)), audio.read(0.2, 0.9)
    assert len(blocks) > 5
    assert len(whole) == 0.9 * RATE
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("format", "subtype", "rate"),
    [
        ("FLAC", None, 44100),
        ("OGG", "VORBIS", 44100),
        ("OGG", "OPUS", 48000),
        ("MP3", None, 16000),
        ("MP3", None, 44100),
    ],
)
def test_blocks_of_compressed_audio_together_are_what_read_returns(format: str, subtype: str | None, rate: int) -> None:
    data = encoded(resample(SPEECH, RATE, rate), format, subtype, rate)
    whole = read_audio(io.BytesIO(data), RATE)
    with open_audio(io.BytesIO(data), RATE) as audio:
        for _ in range(2):
            assert torch.allclose(torch.cat(list(audio.blocks(block_seconds=0.37))), whole, atol=1e-6, rtol=0)


def missing(path: Path) -> None:
    pass


def write(make: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(make())


def with_one(value: float, subtype: str = "FLOAT") -> bytes:
    """Speech with `value` as one sample near its end."""
    samples = SPEECH.double()
    samples[-1000] = value
    return encoded(samples, subtype=subtype)


def flac_that_claims_weeks() -> bytes:
    """With eight channels 2 TiB of samples."""
    data = bytearray(encoded(torch.zeros(5000, 8), format="FLAC"))
    data[21] |= 0x0F  # see flac_without_length
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (missing, r"audio file cannot be opened: No such file or directory"),
        (
            Path.mkdir,
            r"audio file cannot be opened: a folder, and no file of it that is WAV, FLAC, OGG/Opus, MP3; `ffmpeg .*",
        ),
        (Path.touch, r"the audio file is empty \(0 bytes\)"),
        (write(lambda: b"hello world\n" * 100), r"not audio that can be read \(WAV, FLAC, OGG/Opus, MP3\): \w.*"),
        (write(lambda: numpy.random.default_rng(0).bytes(5000)), r"not audio that can be read \(WAV.*"),
        (write(lambda: b"RIFF"), r"not audio that can be read \(WAV.*"),
        (write(lambda: encoded(SPEECH, format="FLAC")[:30000]), r"the audio is (cut short: it ends at|damaged:) .*"),
        (write(lambda: encoded(SPEECH, format="MP3")[:6000]), r"the audio is cut short: it ends at \d.* of 3\.99 s"),
        (write(lambda: encoded(torch.zeros(0))), r"the audio file holds no samples"),
        (write(flac_that_claims_weeks), r"(\d{7} s of audio do not fit into the memory|the audio is cut short: .*)"),
        *[
            (write(partial(with_one, value)), r"the audio holds samples that are not finite numbers")
            for value in (float("nan"), float("inf"), float("-inf"))
        ],
        *[
            (write(partial(with_one, value)), r"the audio holds a sample of 1e\+30; full scale is 1")
            for value in (1e30, -1e30)
        ],
        (write(lambda: with_one(1e300, "DOUBLE")), r"the audio holds samples that are not finite numbers"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence_that_names_it(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "a.wav"
    make(path)
    with pytest.raises(AsrError, match=rf"\A{path}: {reason}\Z"):
        read_audio(path, RATE)


def test_samples_on_the_scale_of_integers_are_read_as_they_are(tmp_path: Path) -> None:
    loud = SPEECH * 2**31
    soundfile.write(tmp_path / "a.wav", loud.numpy(), RATE, subtype="FLOAT")
    torch.testing.assert_close(read_audio(tmp_path / "a.wav", RATE), loud)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_told_as_an_error_of_the_user(name: str) -> None:
    with pytest.raises(AsrError, match="audio file cannot be opened: "):
        read_audio(name, RATE)


def test_an_address_is_told_how_to_be_read() -> None:
    with pytest.raises(AsrError, match=r"not fetched; `curl -L https://a\.org/b\.mp3 \| asr transcribe -`$"):
        read_audio("https://a.org/b.mp3", RATE)


def test_a_file_that_may_not_be_read_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything, so no real file will do
    with pytest.raises(AsrError, match=r"/a\.wav: audio file cannot be opened: Permission denied$"):
        read_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device_without_an_end_does_not_hang(device: str) -> None:
    with pytest.raises(AsrError, match=rf"^{device}: the audio file is empty"):
        read_audio(device, RATE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(SPEECH, format="MP3")[:6000], "cut short"),
        (encoded(SPEECH, format="FLAC")[:30000], "(cut short|damaged)"),
        (with_one(float("nan")), "not finite"),
    ],
    ids=["cut MP3", "cut FLAC", "NaN"],
)
def test_damaged_blocks_are_told_as_the_whole_is(data: bytes, reason: str) -> None:
    with open_audio(io.BytesIO(data), RATE) as audio:
        blocks = audio.blocks(block_seconds=0.5)
        assert len(next(blocks)) == RATE / 2
        with pytest.raises(AsrError, match=rf"^audio: the audio .*{reason}"):
            list(blocks)


def read_or_refusal(data: bytes) -> Tensor | str:
    """The samples, or the one sentence with which the file is refused."""
    try:
        return read_audio(io.BytesIO(data), RATE)
    except AsrError as error:
        message = str(error)
    assert message.startswith("audio: ")
    assert "\n" not in message
    return message


@given(kept=st.floats(0, 0.999))
@pytest.mark.parametrize(
    ("format", "subtype"), [("FLAC", None), ("MP3", None), ("WAV", None), ("WAV", "ALAW"), ("WAV", "ULAW")]
)
def test_what_tells_its_length_is_refused_wherever_it_is_cut(format: str, subtype: str | None, kept: float) -> None:
    data = encoded_speech(format, subtype)
    assert isinstance(read_or_refusal(data[: int(kept * len(data))]), str)


@given(lost=st.integers(1, 20))
@pytest.mark.parametrize(("codec", "block_bytes"), [("GSM610", 65), ("IMA_ADPCM", 1024), ("MS_ADPCM", 1024)])
def test_a_wav_of_blocks_is_refused_where_a_whole_one_is_cut_off(codec: str, block_bytes: int, lost: int) -> None:
    refusal = read_or_refusal(encoded_speech("WAV", codec)[: -lost * block_bytes])
    assert isinstance(refusal, str)
    assert "the audio is cut short: it ends at" in refusal


@given(kept=st.floats(0, 0.999))
@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_what_may_be_a_finished_stream_is_read_as_far_as_it_goes_or_refused(
    format: str, subtype: str, kept: float
) -> None:
    data = encoded_speech(format, subtype)
    samples = read_or_refusal(data[: int(kept * len(data))])
    if isinstance(samples, Tensor):
        assert len(samples) < len(SPEECH)
        whole = read_audio(io.BytesIO(data), RATE, duration_seconds=len(samples) / RATE)
        assert torch.allclose(samples, whole, atol=0.02)


@given(
    changes=st.lists(
        st.tuples(st.one_of(st.integers(0, 200), st.integers(0, 8000)), st.integers(0, 255)), min_size=1, max_size=4
    )
)
@pytest.mark.parametrize(("format", "subtype"), [row[:2] for row in FORMATS])
def test_changed_bytes_give_finite_samples_or_one_sentence(
    format: str, subtype: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(SPEECH[:16000], format, subtype))
    for place, value in changes:
        data[place % len(data)] = value
    samples = read_or_refusal(bytes(data))
    assert isinstance(samples, str) or samples.isfinite().all()
