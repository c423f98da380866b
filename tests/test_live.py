"""What is still coming in is read as it comes, and `asr transcribe -` prints it as it goes."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import pytest
import soundfile
import torch
from torch import Tensor

import asr
from asr.cli import main
from asr.commands.transcribe import _print_live
from asr.errors import AsrError
from asr.live import open_stream, until_interrupted
from asr.metrics import character_errors
from asr.modelfile import load_model

RATE = 16000
COMMAND = [sys.executable, "-m", "asr", "transcribe", "-"]


def as_pcm(samples: Tensor) -> bytes:
    return bytes((samples * 32767).round().clamp(-32768, 32767).to(torch.int16).numpy().tobytes())


def as_wav(samples: Tensor, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.numpy(), rate, format="WAV", subtype=subtype)
    return file.getvalue()


class Pipe(io.BufferedReader):
    """Bytes that come as from a pipe: they cannot be sought in."""

    def __init__(self, content: bytes) -> None:
        class Raw(io.BytesIO):
            name = "<pipe>"

            def seekable(self) -> bool:
                return False

        super().__init__(Raw(content))  # type: ignore[arg-type]


def opened(pipe: BinaryIO, pcm_rate: int | None = None) -> tuple[Iterator[Tensor], int]:
    stream = open_stream(pipe, pcm_rate)
    assert isinstance(stream, tuple)
    return stream


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 8)])
def test_a_pipe_of_wav_is_read_as_it_comes(rate: int, channels: int) -> None:
    samples = torch.rand(rate, channels) - 0.5
    blocks, found = opened(Pipe(as_wav(samples, rate)))
    assert found == rate
    torch.testing.assert_close(torch.cat(list(blocks)), samples.mean(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("file_bytes", "sample_bytes"),
    [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (36 + 3200, 3200), (0xFFFFFFFF, 3200), (0x7FFFFFFF, 0)],
    ids=["ffmpeg, arecord", "unknown", "Python's wave", "a block of an unknown file", "nothing of a large file"],
)
def test_a_wav_file_whose_length_is_not_known_yet_is_read_to_its_end(
    speech: list[Tensor], file_bytes: int, sample_bytes: int
) -> None:
    content = bytearray(as_wav(speech[1]))
    content[4:8], content[40:44] = file_bytes.to_bytes(4, "little"), sample_bytes.to_bytes(4, "little")
    blocks, _ = opened(Pipe(bytes(content)))
    torch.testing.assert_close(torch.cat(list(blocks)), speech[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("told_chunk", [b"LIST", b"id3 "])
def test_what_stands_behind_the_samples_is_no_sound(speech: list[Tensor], told_chunk: bytes) -> None:
    pipe = Pipe(as_wav(speech[1]) + told_chunk + (90000).to_bytes(4, "little") + bytes(range(250)) * 360)
    blocks, _ = opened(pipe)
    torch.testing.assert_close(torch.cat(list(blocks)), speech[1], rtol=0, atol=1e-4)
    assert pipe.read() == b"", "who writes it is not told of a broken pipe"


@pytest.mark.parametrize("is_first_block", [False, True])
def test_chunks_before_the_samples_are_skipped(speech: list[Tensor], is_first_block: bool) -> None:
    content = as_wav(speech[1])
    longer_format = content[:16] + (18).to_bytes(4, "little") + content[20:36] + b"\0\0"
    header = bytearray(longer_format + b"LIST" + (25).to_bytes(4, "little") + bytes(26) + content[36:44])
    if is_first_block:  # of which the header tells, and more comes
        header[4:8], header[-4:] = (len(header) - 8 + 3200).to_bytes(4, "little"), (3200).to_bytes(4, "little")
    blocks, _ = opened(Pipe(bytes(header) + content[44:]))
    torch.testing.assert_close(torch.cat(list(blocks)), speech[1], rtol=0, atol=1e-4)


def test_half_a_sample_at_the_end_is_left_out(speech: list[Tensor]) -> None:
    blocks, _ = opened(Pipe(as_pcm(speech[1])[:-1]), 16000)
    assert len(torch.cat(list(blocks))) == len(speech[1]) - 1


def test_other_files_are_left_for_the_reader_of_files(sample_paths: list[Path], speech: list[Tensor]) -> None:
    others = [as_wav(speech[1], subtype=subtype) for subtype in ("FLOAT", "PCM_24", "PCM_U8")]
    for content in (sample_paths[0].read_bytes(), *others, b"", b"RIFF"):
        file = open_stream(Pipe(content))
        assert not isinstance(file, tuple)
        assert file.read() == content
        assert file.name == "<pipe>"
    redirected = io.BytesIO(as_wav(speech[1]))
    assert open_stream(redirected) is redirected


def test_a_damaged_header_is_told(speech: list[Tensor]) -> None:
    content = bytearray(as_wav(speech[1]))
    content[22:24] = b"\x00\x00"  # channels
    with pytest.raises(AsrError, match="<pipe>: the WAV header is damaged: it has no channel"):
        open_stream(Pipe(bytes(content)))
    with pytest.raises(AsrError, match="<pipe>: the WAV header is damaged: it is cut short"):
        open_stream(Pipe(as_wav(speech[1])[:40]))
    for format_bytes in (0, 14):
        content = bytearray(as_wav(speech[1]))
        content[16:20] = format_bytes.to_bytes(4, "little")
        with pytest.raises(AsrError, match=f"<pipe>: the WAV header is damaged: its format has {format_bytes} bytes"):
            open_stream(Pipe(bytes(content)))
    with pytest.raises(AsrError, match="standard input: a sample rate of 7 Hz is out of range"):
        open_stream(Pipe(as_wav(speech[1], 7)))


def test_an_utterance_is_printed_while_the_next_is_spoken(talk: Tensor, speech: list[Tensor]) -> None:
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        middle = 44 + 2 * (len(speech[0]) + RATE)
        content = as_wav(talk)
        running.stdin.write(content[:middle])
        first = running.stdout.readline().decode()
        assert running.poll() is None
        running.stdin.write(content[middle:])
        running.stdin.close()
        rest = running.stdout.read().decode()
        assert running.wait(timeout=300) == 0
    assert character_errors(asr.transcribe(speech[0], sample_rate=RATE).text, first.strip()).rate < 0.35
    lines = [first, *rest.splitlines()]
    whole = asr.transcribe(talk, sample_rate=RATE).text
    assert len(lines) >= 6
    assert character_errors(whole, " ".join(line.strip() for line in lines)).rate < 0.25


def test_an_utterance_is_given_before_the_next_is_asked_for_and_its_times_count_from_the_beginning(
    talk: Tensor, speech: list[Tensor]
) -> None:
    taken = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal taken
        for block in talk.split(RATE // 10):
            taken += len(block)
            yield block

    results = asr.transcribe_live(blocks(), sample_rate=RATE)
    first = next(results)
    assert taken < len(speech[0]) + 2.5 * RATE
    assert character_errors(asr.transcribe(speech[0], sample_rate=RATE).text, first.text).rate < 0.35
    found = [first, *results]
    whole = asr.transcribe(talk, sample_rate=RATE)
    assert character_errors(whole.text, " ".join(each.text for each in found)).rate < 0.25
    assert all(each.words[-1].end_seconds <= each.duration_seconds for each in found)
    starts = [word.start_seconds for each in found for word in each.words]
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(whole.words[-1].start_seconds, abs=1.5)


def test_a_header_that_comes_in_pieces_begins_a_stream_all_the_same(speech: list[Tensor]) -> None:
    content = as_wav(speech[1])
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(content[:12])
        time.sleep(0.1)
        running.stdin.write(content[12:] + bytes(4 * RATE))
        line = running.stdout.readline()  # the pipe is still open
        running.stdin.close()
        assert running.wait(timeout=300) == 0
    assert len(line) > 20


def test_ctrl_c_ends_the_recording_and_not_what_was_said(speech: list[Tensor]) -> None:
    class Interrupted(io.RawIOBase):
        name = "<pipe>"
        waiting = as_wav(speech[1])

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if not self.waiting:
                raise KeyboardInterrupt
            now, self.waiting = self.waiting[:1000], self.waiting[1000:]
            buffer[: len(now)] = now
            return len(now)

    blocks, _ = opened(io.BufferedReader(Interrupted(), 4000))
    torch.testing.assert_close(torch.cat(list(blocks)), speech[1], rtol=0, atol=1e-4)


def test_ctrl_c_while_words_are_looked_for_loses_none_of_them(
    speech: list[Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transcribe = asr.transcribe
    whole = transcribe(speech[1], sample_rate=RATE).text

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return transcribe(*arguments, **settings)

    monkeypatch.setattr("asr.transcription.transcribe", interrupted)
    before = signal.getsignal(signal.SIGINT)
    recorded = torch.cat([speech[1], torch.zeros(2 * RATE), speech[2]])  # of which the last is not waited for
    assert _print_live(iter(recorded.split(RATE // 10)), RATE, load_model(), None) == 0
    assert character_errors(whole, capsys.readouterr().out.replace("\n", " ").strip()).rate < 0.35
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_ends_what_is_computed_too() -> None:
    blocks = until_interrupted([torch.zeros(1)] * 3)
    next(blocks)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert list(blocks) == []


def test_ctrl_c_ends_the_wait_for_more_sound() -> None:
    def blocks() -> Iterator[Tensor]:
        yield torch.zeros(1)
        signal.raise_signal(signal.SIGINT)
        yield torch.ones(1)

    assert list(until_interrupted(blocks())) == [torch.zeros(1)]


def test_what_stands_behind_the_samples_is_not_heard_whatever_its_name() -> None:
    samples = torch.rand(RATE) - 0.5
    content = bytearray(as_wav(samples))
    content += b"_PMX" + (3000).to_bytes(4, "little") + b"<x:xmpmeta>" * 300
    content[4:8] = (len(content) - 8).to_bytes(4, "little")
    blocks, _ = opened(Pipe(bytes(content)))
    torch.testing.assert_close(torch.cat(list(blocks)), samples, rtol=0, atol=1e-4)


def test_samples_without_a_header_say_what_the_file_says(speech: list[Tensor]) -> None:
    texts = [
        subprocess.run([*COMMAND, *options], input=content, capture_output=True, check=True, timeout=300).stdout
        for options, content in (([], as_wav(speech[2])), (["--pcm", "16000"], as_pcm(speech[2])))
    ]
    assert texts[0] == texts[1] != b""


@pytest.mark.parametrize(
    ("options", "content", "code", "reason"),
    [
        (["--pcm", "7"], b"\0" * 999, 1, "a sample rate of 7 Hz is out of range"),
        (["--pcm", "16000"], b"", 1, "standard input: the stream holds no samples"),
        (["--pcm", "16000"], b"\0", 1, "standard input: the stream holds no samples"),
        (["--pcm", "16000", "--format", "srt"], b"", 2, "--pcm is of standard input alone, printed as text"),
        (["--pcm", "0"], b"", 1, "a sample rate of 0 Hz is out of range"),
        ([], b"\0" * 999, 1, "turns video and most else into it, --pcm RATE reads 16-bit samples without a header"),
    ],
)
def test_what_cannot_be_a_stream_is_told_in_a_sentence(
    options: list[str],
    content: bytes,
    code: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin = io.BytesIO(content)
    stdin.name = "<stdin>"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
    try:
        found: int | str | None = main(["transcribe", "-", *options])
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (torch.full((1600,), float("nan")), "a block holds samples that are not finite numbers"),
        (torch.zeros(1600, 1), r"must be \(samples,\) mono, .* not Tensor of shape \(1600, 1\) and torch.float32"),
        (torch.zeros(1600, dtype=torch.int16), r"floating point in .* not Tensor of shape \(1600,\) and torch.int16"),
        ([0.0] * 1600, "in a NumPy array or a torch tensor, not list"),
        (numpy.zeros(1600, dtype=object), r"floating point in .* not ndarray of shape \(1600,\) and object"),
    ],
)
def test_blocks_that_are_no_sound_are_told(block: Any, reason: str) -> None:
    with pytest.raises(AsrError, match=reason):
        list(asr.transcribe_live([block] * 40, sample_rate=RATE))


def test_a_rate_that_cannot_be_is_told_and_blocks_may_be_of_numpy(talk: Tensor) -> None:
    with pytest.raises(AsrError, match="live sound: a sample rate of 0 Hz is out of range"):
        list(asr.transcribe_live([], sample_rate=0))
    tensors = talk[: 8 * RATE].split(RATE // 10)
    of_numpy = asr.transcribe_live((block.double().numpy() for block in tensors), sample_rate=RATE)
    assert list(of_numpy) == list(asr.transcribe_live(tensors, sample_rate=RATE))


def test_blocks_of_any_floats_are_heard(talk: Tensor) -> None:
    tensors = talk[: 8 * RATE].split(RATE // 10)
    expected = list(asr.transcribe_live(tensors, sample_rate=RATE))
    changes: list[Callable[[Tensor], Any]] = [
        lambda block: block.numpy().astype(">f4"),
        lambda block: block.numpy()[::-1].copy()[::-1],
        lambda block: block.numpy().astype(numpy.longdouble),
        lambda block: block.clone().requires_grad_(),
    ]
    for change in changes:
        assert list(asr.transcribe_live(map(change, tensors), sample_rate=RATE)) == expected


def test_blocks_of_received_bytes_are_heard_without_a_warning(talk: Tensor) -> None:
    """Their arrays are read-only, of which torch warns, once in a process."""
    received = (block.numpy().tobytes() for block in talk[: 8 * RATE].split(RATE // 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blocks = (numpy.frombuffer(content, numpy.float32) for content in received)
        assert list(asr.transcribe_live(blocks, sample_rate=RATE)) != []


def test_nothing_but_silence_is_told_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    assert list(asr.transcribe_live([torch.zeros(RATE)] * 3, sample_rate=RATE)) == []
    assert caplog.messages == ["live sound: holds nothing but silence"]
