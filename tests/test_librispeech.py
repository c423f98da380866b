"""LibriSpeech from archive to manifest, on trees of a few seconds and a server on loopback."""

import functools
import gzip
import hashlib
import http.server
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile

from asr.audio import read_audio
from asr.corpora import librispeech
from asr.corpora.librispeech import SUBSETS, Subset, download_librispeech, prepare_all, prepare_librispeech
from asr.errors import AsrError
from asr.manifest import read_manifest

SAMPLE_RATE = 16000


def make_chapter(
    subset: Path, name: str, texts: list[str], suffix: str = ".flac", num_samples: int = 8000, num_channels: int = 1
) -> Path:
    """Write one chapter whose utterance number i has num_samples + i samples; return its transcript file."""
    folder = subset / name.replace("-", "/")
    folder.mkdir(parents=True)
    lines = [f"{name}-{number:04} {text}\n" for number, text in enumerate(texts)]
    for number in range(len(texts)):
        noise = numpy.random.default_rng(number).uniform(-0.1, 0.1, (num_samples + number, num_channels))
        soundfile.write(folder / f"{name}-{number:04}{suffix}", noise, SAMPLE_RATE)
    transcripts = folder / f"{name}.trans.txt"
    transcripts.write_text("".join(lines))
    return transcripts


def read_cuts(path: Path) -> list[dict]:  # type: ignore[type-arg]
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def problems_of(subset: Path) -> str:
    output = subset.parent / "out.jsonl"
    with pytest.raises(AsrError) as caught:
        prepare_librispeech(subset, output)
    assert not list(subset.parent.glob("*out.jsonl*")), "a manifest was left although there were problems"
    return str(caught.value)


def test_each_line_becomes_a_cut_with_its_audio_speaker_and_duration(tmp_path: Path) -> None:
    make_chapter(tmp_path / "mini", "84-121123", ["GO DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES"])
    summary = prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl.gz")
    cuts = read_cuts(tmp_path / "mini.jsonl.gz")
    assert (summary.num_utterances, summary.num_speakers) == (2, 1)
    assert summary.duration_seconds == pytest.approx(16001 / SAMPLE_RATE)
    assert [cut["id"] for cut in cuts] == ["84-121123-0000", "84-121123-0001"]
    assert cuts[0]["supervisions"][0]["text"] == "GO DO YOU HEAR"
    assert cuts[0]["supervisions"][0]["speaker"] == "84"
    assert cuts[0]["supervisions"][0]["language"] == "English"
    assert cuts[1]["recording"]["num_samples"] == 8001
    source = Path(cuts[0]["recording"]["sources"][0]["source"])
    assert source == (tmp_path / "mini/84/121123/84-121123-0000.flac").resolve()


def test_lhotse_reads_the_manifest_validates_it_and_loads_the_audio(tmp_path: Path) -> None:
    from lhotse import CutSet, validate

    make_chapter(tmp_path / "mini", "84-121123", ["GO DO YOU HEAR", "BUT"])
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl.gz")
    cuts = list(CutSet.from_file(tmp_path / "mini.jsonl.gz"))
    for cut in cuts:
        validate(cut)
    assert cuts[1].load_audio().shape == (1, 8001)


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".ogg", ".opus", ".mp3"])
def test_converted_copies_of_the_corpus_are_found(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "mini/84/1"
    folder.mkdir(parents=True)
    file_format, subtype = {".opus": ("OGG", "OPUS"), ".mp3": ("MP3", None)}.get(suffix, (suffix[1:].upper(), None))
    soundfile.write(folder / f"84-1-0000{suffix}", numpy.zeros(16000), SAMPLE_RATE, subtype, format=file_format)
    (folder / "84-1.trans.txt").write_text("84-1-0000 HELLO\n")
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl")
    (cut,) = read_cuts(tmp_path / "mini.jsonl")
    assert cut["recording"]["sources"][0]["source"].endswith(suffix)
    assert cut["recording"]["sampling_rate"] == SAMPLE_RATE
    assert cut["duration"] == pytest.approx(1.0, abs=0.1)


def test_of_two_copies_of_an_utterance_the_flac_is_taken(tmp_path: Path) -> None:
    make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    (tmp_path / "mini/84/1/84-1-0000.mp3").touch()
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl")
    assert read_cuts(tmp_path / "mini.jsonl")[0]["recording"]["sources"][0]["source"].endswith(".flac")


def test_the_order_is_that_of_the_utterance_ids_whatever_the_folders_say(tmp_path: Path) -> None:
    for name in ("103-1240", "1034-12", "103-12", "103-124"):
        make_chapter(tmp_path / "mini", name, ["A", "B"])
    transcripts = tmp_path / "mini/103/124/103-124.trans.txt"
    transcripts.write_text("".join(reversed(transcripts.read_text().splitlines(keepends=True))))
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl")
    names = [cut["id"] for cut in read_cuts(tmp_path / "mini.jsonl")]
    assert len(names) == 8
    assert names == sorted(names)


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    make_chapter(tmp_path / "mini", "84-1", ["HELLO"] * 5)
    prepare_librispeech(tmp_path / "mini", tmp_path / "a.jsonl.gz", num_threads=1)
    prepare_librispeech(tmp_path / "mini", tmp_path / "b.jsonl.gz", num_threads=8)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_relative_folder_gives_absolute_audio_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    monkeypatch.chdir(tmp_path)
    prepare_librispeech("mini", "mini.jsonl")
    assert Path(read_cuts(tmp_path / "mini.jsonl")[0]["recording"]["sources"][0]["source"]).is_absolute()


def test_the_length_of_audio_is_what_can_be_read_of_it(tmp_path: Path) -> None:
    audio = make_chapter(tmp_path / "mini", "84-1", ["HELLO"]).parent / "84-1-0000.flac"
    samples = 0.1 * numpy.random.default_rng(0).standard_normal(44100)
    soundfile.write(audio.with_suffix(".mp3"), samples, 44100, bitrate_mode="CONSTANT")
    content = audio.with_suffix(".mp3").read_bytes()
    audio.write_bytes(content[content.index(content[:2], 50) :])  # behind the header that tells the length
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl", progress=False)
    (utterance,) = read_manifest(tmp_path / "mini.jsonl")
    assert utterance.duration_seconds * 16000 == pytest.approx(len(read_audio(audio, 16000)), abs=2)


def test_every_problem_is_reported_with_file_and_line_and_nothing_is_written(tmp_path: Path) -> None:
    subset = tmp_path / "mini"
    transcripts = make_chapter(subset, "84-1", ["GOOD", "MISSING", "", "BROKEN", "EMPTY", "GOOD"])
    folder = transcripts.parent
    (folder / "84-1-0001.flac").unlink()
    (folder / "84-1-0003.flac").write_bytes(b"this is no audio")
    soundfile.write(folder / "84-1-0004.flac", numpy.zeros(0), SAMPLE_RATE)
    message = problems_of(subset)
    assert "4 problems, nothing is written" in message
    assert f"{transcripts}:2: audio file not found: 84-1-0001 with one of .flac" in message
    assert f"{transcripts}:3: 84-1-0002 has no transcript" in message
    assert f"{transcripts}:4: {folder / '84-1-0003.flac'}: not audio that can be read" in message
    assert f"{transcripts}:5: {folder / '84-1-0004.flac'}: " in message


def test_a_file_of_no_bytes_is_a_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    (transcripts.parent / "84-1-0000.flac").write_bytes(b"")
    assert f"{transcripts}:1: " in problems_of(tmp_path / "mini")


def test_an_utterance_listed_twice_is_a_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    transcripts.write_text("84-1-0000 HELLO\n84-1-0000 AGAIN\n")
    assert f"{transcripts}:2: 84-1-0000 is already in {transcripts}:1" in problems_of(tmp_path / "mini")


def test_audio_without_a_line_is_a_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO", "THERE"])
    transcripts.write_text("84-1-0000 HELLO\n")
    assert f"{transcripts.parent / '84-1-0001.flac'}: has no line in" in problems_of(tmp_path / "mini")


def test_a_line_of_another_chapter_is_a_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    transcripts.write_text(transcripts.read_text() + "84-2-0000 STRAY\n")
    assert f"{transcripts}:2: id '84-2-0000' must begin with '84-1-'" in problems_of(tmp_path / "mini")


def test_a_transcript_file_named_after_another_folder_is_a_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    transcripts.rename(transcripts.with_name("84-2.trans.txt"))
    assert "the name must be 84-1.trans.txt" in problems_of(tmp_path / "mini")


def test_a_line_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    transcripts.write_bytes(b"84-1-0000 CAF\xc9\n")
    assert f"{transcripts}:1: not UTF-8" in problems_of(tmp_path / "mini")


def test_stereo_is_a_problem_because_a_channel_would_be_lost(tmp_path: Path) -> None:
    make_chapter(tmp_path / "mini", "84-1", ["HELLO"], num_channels=2)
    assert "has 2 channels" in problems_of(tmp_path / "mini")


def test_what_windows_writes_around_the_lines_changes_nothing(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "mini", "84-1", ["HELLO THERE"])
    transcripts.write_bytes(b"\xef\xbb\xbf84-1-0000 HELLO THERE\r\n\r\n")
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl")
    assert read_cuts(tmp_path / "mini.jsonl")[0]["supervisions"][0]["text"] == "HELLO THERE"


def test_a_folder_without_transcripts_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="no <speaker>/<chapter>/"):
        prepare_librispeech(tmp_path, tmp_path / "x.jsonl")


def test_a_manifest_of_another_kind_is_refused(tmp_path: Path) -> None:
    make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    with pytest.raises(AsrError, match=r"x\.csv: the name of a manifest must end in \.jsonl or \.jsonl\.gz"):
        prepare_librispeech(tmp_path / "mini", tmp_path / "x.csv")


def test_a_run_that_fails_leaves_the_earlier_manifest_as_it_was(tmp_path: Path) -> None:
    make_chapter(tmp_path / "mini", "84-1", ["HELLO"])
    prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl")
    before = (tmp_path / "mini.jsonl").read_bytes()
    (tmp_path / "mini/84/1/84-1-0000.flac").unlink()
    with pytest.raises(AsrError):
        prepare_librispeech(tmp_path / "mini", tmp_path / "mini.jsonl")
    assert (tmp_path / "mini.jsonl").read_bytes() == before


@pytest.mark.parametrize("parts", ["LibriSpeech", "."])
def test_all_subsets_below_a_folder_are_prepared(parts: str, tmp_path: Path) -> None:
    for subset in ("dev-clean-2", "train-clean-5"):
        make_chapter(tmp_path / "data" / parts / subset, "84-1", ["HELLO"])
    (tmp_path / "data" / parts / "SPEAKERS.TXT").touch()
    summaries = list(prepare_all(tmp_path / "data", tmp_path / "manifests"))
    assert [summary.path.name for summary in summaries] == ["dev-clean-2.jsonl.gz", "train-clean-5.jsonl.gz"]
    assert all(summary.path.is_file() for summary in summaries)


def test_the_folder_of_one_subset_is_prepared_as_that_subset(tmp_path: Path) -> None:
    make_chapter(tmp_path / "dev-clean", "84-1", ["HELLO"])
    (summary,) = prepare_all(tmp_path / "dev-clean", tmp_path)
    assert summary.path == tmp_path / "dev-clean.jsonl.gz"


def test_a_folder_without_subsets_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="no LibriSpeech subset found; expected LibriSpeech/<subset>"):
        list(prepare_all(tmp_path, tmp_path))


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str]

    def log_message(self, *_: object) -> None:
        self.requests.append(self.path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that offers a train-clean-5 of two utterances; its checksum replaces the real one."""
    make_chapter(tmp_path / "made/LibriSpeech/train-clean-5", "84-1", ["HELLO", "THERE"])
    archive = tmp_path / "served/31/train-clean-5.tar.gz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made/LibriSpeech", "LibriSpeech")
    content = archive.read_bytes()
    subset = Subset("train-clean-5", 31, hashlib.md5(content).hexdigest(), len(content))
    monkeypatch.setitem(SUBSETS, "train-clean-5", subset)
    Handler.requests = []
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_subset_is_downloaded_unpacked_and_ready_to_prepare(mirror: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert download_librispeech(["train-clean-5"], data, mirror=mirror, progress=False) == [
        data / "LibriSpeech/train-clean-5"
    ]
    assert (data / "LibriSpeech/.train-clean-5.completed").exists()
    assert [entry.name for entry in data.iterdir()] == ["LibriSpeech"]
    assert next(prepare_all(data, tmp_path / "manifests")).num_utterances == 2


def test_a_second_download_asks_the_network_for_nothing(mirror: str, tmp_path: Path) -> None:
    for _ in range(2):
        download_librispeech(["train-clean-5"], tmp_path / "data", mirror=mirror, progress=False)
    assert Handler.requests == ["/31/train-clean-5.tar.gz"]


def test_what_is_complete_may_lie_where_nothing_can_be_written(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_librispeech(["train-clean-5"], tmp_path / "data", mirror=mirror, progress=False)
    monkeypatch.setattr("asr.corpora.librispeech.locked", lambda path: pytest.fail("it writes there"))
    (folder,) = download_librispeech(["train-clean-5"], tmp_path / "data", mirror=mirror, progress=False)
    assert folder.is_dir()


def test_a_subset_without_transcripts_is_named_and_the_others_are_prepared(
    mirror: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = download_librispeech(["train-clean-5"], tmp_path / "data", mirror=mirror, progress=False)
    shutil.copytree(folder, folder.with_name("dev"))
    for path in folder.with_name("dev").rglob("*.trans.txt"):
        path.unlink()
    (summary,) = prepare_all(tmp_path / "data", tmp_path)
    assert summary.num_utterances == 2
    assert f"{folder.with_name('dev')}: left out, it holds audio and no *.trans.txt" in caplog.text


def test_a_run_killed_while_unpacking_goes_on_from_the_archive(mirror: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    download_librispeech("train-clean-5", data, mirror=mirror, keep_archives=True, progress=False)
    (data / "LibriSpeech/.train-clean-5.completed").unlink()
    (data / "LibriSpeech/train-clean-5/84/1/84-1-0000.flac").unlink()
    download_librispeech("train-clean-5", data, mirror=mirror, progress=False)
    assert (data / "LibriSpeech/train-clean-5/84/1/84-1-0000.flac").exists()
    assert len(Handler.requests) == 1
    assert not (data / "train-clean-5.tar.gz").exists()


def test_an_unknown_subset_is_said_before_anything_is_downloaded(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="no subset 'train-clean-50'; the subsets are train-clean-5, dev-clean-2"):
        download_librispeech(["train-clean-5", "train-clean-50"], tmp_path / "data", mirror=mirror)
    assert not Handler.requests


def test_a_python_that_cannot_unpack_is_told_before_anything_is_downloaded(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(AsrError, match=r"train-clean-5\.tar\.gz: Python .* cannot unpack it safely; use 3\.10\.12"):
        download_librispeech(["train-clean-5"], tmp_path / "data", mirror=mirror)
    assert not Handler.requests


def test_an_archive_with_other_contents_is_not_marked_complete(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served/12"
    (tmp_path / "served/31").rename(served)
    (served / "train-clean-5.tar.gz").rename(served / "dev-clean.tar.gz")
    monkeypatch.setitem(SUBSETS, "dev-clean", Subset("dev-clean", 12, SUBSETS["train-clean-5"].md5, 1000))
    with pytest.raises(AsrError, match="no folder LibriSpeech/dev-clean inside"):
        download_librispeech(["dev-clean"], tmp_path / "data", mirror=mirror, progress=False)
    assert not (tmp_path / "data/LibriSpeech/.dev-clean.completed").exists()


def test_room_for_archive_and_contents_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(url: str, path: Path, **options: object) -> Path:
        asked.update(options, url=url)
        raise AsrError("no network in this test")

    monkeypatch.setattr(librispeech, "fetch", fetch)
    with pytest.raises(AsrError):
        download_librispeech(["train-other-500"], tmp_path)
    assert asked["url"] == "https://www.openslr.org/resources/12/train-other-500.tar.gz"
    assert asked["room_bytes"] > 30_593_501_606


def test_the_table_has_every_subset_with_a_checksum_of_its_own() -> None:
    assert sum(subset.resource == 12 for subset in SUBSETS.values()) == 7
    assert sum(subset.resource == 31 for subset in SUBSETS.values()) == 2
    assert len({subset.md5 for subset in SUBSETS.values()}) == 9
    assert all(len(bytes.fromhex(subset.md5)) == 16 for subset in SUBSETS.values())


def test_a_chapter_without_a_transcript_file_is_a_problem(tmp_path: Path) -> None:
    make_chapter(tmp_path / "subset", "84-1", ["HELLO"])
    make_chapter(tmp_path / "subset", "84-2", ["THERE"]).unlink()
    assert problems_of(tmp_path / "subset").endswith("subset/84/2: holds audio and no *.trans.txt")


def test_what_a_mac_leaves_beside_files_is_no_problem(tmp_path: Path) -> None:
    transcripts = make_chapter(tmp_path / "subset", "84-1", ["HELLO"])
    for name in ("._84-1-0000.flac", "._84-1.trans.txt"):
        transcripts.with_name(name).write_bytes(b"\x00\x05\x16\x07")
    assert prepare_librispeech(tmp_path / "subset", tmp_path / "out.jsonl").num_utterances == 1


def test_two_downloads_at_once_fetch_a_subset_once(mirror: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ThreadPoolExecutor(2) as executor:
        folders = executor.map(
            lambda _: download_librispeech("train-clean-5", data, mirror=mirror, progress=False), range(2)
        )
    assert list(folders) == [[data / "LibriSpeech/train-clean-5"]] * 2
    assert Handler.requests == ["/31/train-clean-5.tar.gz"]
