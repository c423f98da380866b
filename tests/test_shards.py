"""Shards: the same utterances, samples and trainings as from single files, and only what is damaged is lost."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from asr.audio import open_audio, read_audio
from asr.cli import main
from asr.errors import AsrError
from asr.folders import read_data
from asr.manifest import Utterance, read_manifest
from asr.shards import write_shards
from asr.tarfiles import is_recording

SAMPLES = Path(__file__).parents[1] / "samples"
MANIFEST = SAMPLES / "manifest.jsonl"


@pytest.fixture(scope="module")
def utterances() -> list[Utterance]:
    return read_manifest(MANIFEST)


@pytest.fixture
def shards(utterances: list[Utterance], tmp_path: Path) -> Path:
    """The six samples, two in a shard."""
    assert write_shards(utterances, tmp_path / "shards", shard_size=2) == 3
    return tmp_path / "shards"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def address(shards: Path, tmp_path: Path) -> Iterator[str]:
    """Where a server on this machine offers the shards."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/shards"
        server.shutdown()


def spoken(utterance: Utterance) -> torch.Tensor:
    span = {"start_seconds": utterance.start_seconds, "duration_seconds": utterance.duration_seconds}
    return read_audio(utterance.audio_path, 16000, **span)


def assert_same(read: list[Utterance], written: list[Utterance]) -> None:
    for one, other in zip(read, written, strict=True):
        assert (one.id, one.text, one.speaker) == (other.id, other.text, other.speaker)
        assert one.duration_seconds == pytest.approx(other.duration_seconds, abs=1e-4)
        assert torch.equal(spoken(one), spoken(other))


def test_shards_hold_the_same_utterances_sample_by_sample(shards: Path, utterances: list[Utterance]) -> None:
    assert_same(read_data(shards), utterances)
    assert_same(read_data(shards / "cuts.000001.jsonl.gz"), utterances[2:4])


def test_shards_can_be_sharded_again(shards: Path, utterances: list[Utterance], tmp_path: Path) -> None:
    assert write_shards(read_data(shards), tmp_path / "again", shard_size=4) == 2
    assert_same(read_data(tmp_path / "again"), utterances)


def test_lhotse_reads_them(shards: Path, utterances: list[Utterance]) -> None:
    from lhotse import CutSet

    cuts = list(CutSet.from_shar(in_dir=shards))
    assert [cut.id for cut in cuts] == [utterance.id for utterance in utterances]
    for cut, utterance in zip(cuts, utterances):
        assert cut.supervisions[0].text == utterance.text
        assert torch.equal(torch.from_numpy(cut.load_audio())[0], spoken(utterance))


def test_what_lhotse_writes_is_read(utterances: list[Utterance], tmp_path: Path) -> None:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    cuts = []
    for one in utterances:
        recording = Recording.from_file(one.audio_path, recording_id=one.id)
        supervision = SupervisionSegment(one.id, one.id, 0.0, recording.duration, text=one.text, speaker=one.speaker)
        cuts.append(MonoCut(one.id, 0.0, recording.duration, 0, [supervision], recording=recording))
    (tmp_path / "theirs").mkdir()
    CutSet.from_cuts(cuts).to_shar(tmp_path / "theirs", fields={"recording": "flac"}, shard_size=4)
    assert_same(read_data(tmp_path / "theirs"), utterances)


def test_cuts_of_one_name_in_a_shard_do_not_take_each_others_recording(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    recording = Recording.from_file(utterances[0].audio_path)
    texts = {0.0: "ONE", 2.0: "TWO"}
    cuts = [
        MonoCut(
            "same", start, 2.0, 0, [SupervisionSegment(text, recording.id, 0.0, 2.0, text=text)], recording=recording
        )
        for start, text in texts.items()
    ]
    (tmp_path / "theirs").mkdir()
    CutSet.from_cuts(cuts).to_shar(tmp_path / "theirs", fields={"recording": "flac"})
    with pytest.raises(AsrError, match=r"cuts\.000000\.jsonl\.gz: 2 cuts are called same\n.*an id of its own"):
        read_data(tmp_path / "theirs")


def test_a_stretch_of_a_recording_becomes_a_recording(utterances: list[Utterance], tmp_path: Path) -> None:
    stretch = replace(utterances[0], start_seconds=1.25, duration_seconds=2.5)
    write_shards([stretch], tmp_path / "shards")
    (read,) = read_data(tmp_path / "shards")
    assert (read.start_seconds, read.duration_seconds) == (0.0, 2.5)
    assert torch.equal(spoken(read), spoken(stretch)), "FLAC to FLAC, 16 bits both"


@pytest.mark.parametrize(("rate", "packed"), [(65535, 65535), (65537, 65530), (192001, 192000), (700001, 655350)])
def test_a_stretch_of_any_rate_can_be_packed(tmp_path: Path, rate: int, packed: int) -> None:
    soundfile.write(tmp_path / "odd.wav", torch.zeros(rate).numpy(), rate)
    stretch = Utterance("odd", str(tmp_path / "odd.wav"), "HELLO", 0.25, 0.5, "", "mine.csv", 2)
    write_shards([stretch], tmp_path / "shards")
    (read,) = read_data(tmp_path / "shards")
    with open_audio(read.audio_path) as audio:
        assert audio.file.samplerate == packed
        assert audio.duration_seconds == pytest.approx(0.5, abs=1e-4)


def test_samples_beyond_full_scale_stay_as_they_are(tmp_path: Path) -> None:
    samples = torch.linspace(-11744, 11744, 16000)
    soundfile.write(tmp_path / "loud.wav", samples.numpy(), 16000, subtype="FLOAT")
    loud = Utterance("loud", str(tmp_path / "loud.wav"), "A", 0.25, 0.5, "", "m.csv", 1)
    write_shards([loud], tmp_path / "shards")
    (read,) = read_data(tmp_path / "shards")
    assert torch.equal(spoken(read), samples[4000:12000])


def test_a_link_is_no_new_folder(utterances: list[Utterance], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(AsrError, match="link: is a link or a disk; name a new folder in it"):
        write_shards(utterances, tmp_path / "link")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"], "nothing was packed"


def test_a_shard_whose_cuts_are_gone_is_named(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shards / "cuts.000001.jsonl.gz").unlink()
    read_data(shards)
    assert f"shard left out: {shards / 'recording.000001.tar'} is there, but not cuts.000001.jsonl.gz" in caplog.text


def test_utterances_of_the_same_name_stay_apart(utterances: list[Utterance], tmp_path: Path) -> None:
    named = [replace(one, id=name) for one, name in zip(utterances, ("a", "a", "a-2", "b.c/d", "a"))]
    write_shards(named, tmp_path / "shards")
    read = read_data(tmp_path / "shards")
    assert [one.id for one in read] == ["a", "a-2", "a-2-2", "b.c/d", "a-3"]
    for one, other in zip(read, named, strict=True):
        assert torch.equal(spoken(one), spoken(other))


def test_a_recording_of_two_channels_becomes_mono_for_everyone(tmp_path: Path) -> None:
    from lhotse import CutSet

    generator = torch.Generator().manual_seed(0)
    samples = (torch.randint(-20000, 20000, (8000, 2), generator=generator) * 2).to(torch.int16)
    soundfile.write(tmp_path / "two.wav", samples.numpy(), 16000)
    two = Utterance("two", str(tmp_path / "two.wav"), "A", 0.0, 0.5, "", "m.csv", 1)
    write_shards([two], tmp_path / "shards")
    (read,) = read_data(tmp_path / "shards")
    assert torch.equal(spoken(read), spoken(two))
    (cut,) = CutSet.from_shar(in_dir=tmp_path / "shards")
    assert cut.load_audio().shape == (1, 8000)


def test_a_training_from_shards_is_that_from_files(shards: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {frontend: {num_mels: 16}, encoder: {conv_channels: 4, num_layers: 1, hidden_size: 16}}\n"
        "data: {batch_seconds: 11, max_seconds: 11}\n"
        "trainer: {epochs: 2, precision: 32-true, accelerator: cpu}\n"
    )
    for name, data in (("files", MANIFEST), ("shards", shards)):
        settings = [f"output_dir={tmp_path / name}_run", f"data.train=[{data}]", f"data.valid=[{data}]"]
        assert main(["train", str(recipe), *settings]) == 0
    weights = [torch.load(tmp_path / f"{name}_run" / "last.ckpt", weights_only=True) for name in ("files", "shards")]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(weights[1]["state_dict"][name], tensor)


def test_shards_in_a_folder_named_like_a_tar_file_are_read(utterances: list[Utterance], tmp_path: Path) -> None:
    folder = tmp_path / "a.tar"
    folder.mkdir()
    copy = folder / "speech.flac"
    copy.write_bytes(Path(utterances[0].audio_path).read_bytes())
    assert is_recording(copy)
    assert torch.equal(read_audio(copy, 16000), spoken(utterances[0]))
    write_shards(utterances, tmp_path / "shards")
    shutil.move(tmp_path / "shards", folder)
    assert_same(read_data(folder / "shards"), utterances)


# Damage


def test_a_shard_that_is_cut_short_loses_only_what_is_behind(
    shards: Path, utterances: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    tar = shards / "recording.000001.tar"
    tar.write_bytes(tar.read_bytes()[:-50_000])
    with caplog.at_level(logging.WARNING):
        read = read_data(shards)
    assert_same(read, [*utterances[:3], *utterances[4:]])
    assert "cuts.000001.jsonl.gz: 1 of its 2 recordings are damaged or missing, and left out" in caplog.text


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_that_broke_off_is_not_packed_with_all_of_its_text(
    utterances: list[Utterance], tmp_path: Path, channels: int
) -> None:
    samples = utterances[0].read(16000)[:16000].numpy()
    soundfile.write(tmp_path / "short.wav", samples[:, None].repeat(channels, axis=1), 16000)
    short = replace(utterances[0], audio_path=str(tmp_path / "short.wav"))
    with pytest.raises(AsrError, match=r"is not inside its 1 s"):
        write_shards([short], tmp_path / "shards")


@pytest.mark.parametrize("name", ["recording.000001.tar", "cuts.000001.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"no such thing" * 100], ids=["empty", "other"])
def test_a_broken_shard_is_named_and_left_out(
    shards: Path, utterances: list[Utterance], name: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (shards / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert_same(read_data(shards), [*utterances[:2], *utterances[4:]])
    assert "cuts.000001.jsonl.gz" in caplog.text


@pytest.mark.parametrize("size", [b"-0000001000\0", b"\xff" * 4 + b"\0" * 8], ids=["-512", "-2^64"])
def test_a_size_below_zero_in_a_shard_is_damage(shards: Path, utterances: list[Utterance], size: bytes) -> None:
    tar = shards / "recording.000001.tar"
    content = bytearray(tar.read_bytes())
    content[124:136], content[148:156] = size, b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    tar.write_bytes(content)
    assert_same(read_data(shards), [*utterances[:2], *utterances[4:]])


def test_where_no_shard_is_left_that_is_told(shards: Path) -> None:
    for path in shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(AsrError, match="no shard there can be read"):
        read_data(shards)


def test_a_recording_that_is_gone_from_a_shard_is_told_by_its_path(shards: Path) -> None:
    with pytest.raises(AsrError, match=r"recording\.000000\.tar/none: audio file cannot be opened: No such file"):
        read_audio(shards / "recording.000000.tar" / "none", 16000)


def test_recordings_that_cannot_be_read_are_listed_and_nothing_is_written(
    utterances: list[Utterance], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    bad = replace(utterances[1], audio_path=str(tmp_path / "bad.wav"), manifest="mine.csv", line=7)
    with pytest.raises(AsrError, match=r"^mine\.csv:7: .*bad\.wav: not audio that can be read"):
        write_shards([utterances[0], bad], tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]


@pytest.mark.parametrize("name", ["a/", ".", "..", "a/.", "caf\udce9", "a\0b"])
def test_an_id_that_can_name_no_file_is_told(utterances: list[Utterance], tmp_path: Path, name: str) -> None:
    with pytest.raises(AsrError, match="cannot name a file in a tar file; give the utterance another"):
        write_shards([replace(utterances[0], id=name)], tmp_path / "shards")


@pytest.mark.parametrize("name", ["می\u200cروم", "会議\u3000一", "a\u00a0b", "co\u00adop"])
def test_an_id_may_hold_signs_that_cannot_be_seen(utterances: list[Utterance], tmp_path: Path, name: str) -> None:
    from lhotse import CutSet

    write_shards([replace(utterances[0], id=name)], tmp_path / "shards")
    (packed,) = read_data(tmp_path / "shards")
    assert packed.id == name
    assert packed.read(16000).equal(utterances[0].read(16000))
    (cut,) = CutSet.from_shar(in_dir=tmp_path / "shards")
    assert (cut.id, cut.load_audio().shape[1]) == (name, len(utterances[0].read(16000)))


def test_a_line_that_is_wrong_is_told_and_not_taken_for_damage(shards: Path) -> None:
    with gzip.open(shards / "cuts.000001.jsonl.gz", "at") as file:
        file.write('{"audio": "a.wav", "text": "", "duration": 1}\n')
    with pytest.raises(AsrError, match=r"cuts\.000001\.jsonl\.gz:3: 'text' is empty"):
        read_data(shards)


@pytest.mark.parametrize("there", ["shards/a.txt", "shards", "shards.json"])
def test_what_is_there_is_left_alone(utterances: list[Utterance], tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(AsrError, match=r"shards(\.json)?: is there already; name a new folder"):
        write_shards(utterances, tmp_path / "shards")
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_the_folder_that_one_is_in_can_be_named(
    utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_shards(utterances, ".")
    assert_same(read_data(tmp_path / "here"), utterances)


# Over HTTP


def test_shards_are_read_over_http_and_fetched_once(address: str, shards: Path, utterances: list[Utterance]) -> None:
    assert_same(read_data(address), utterances)
    for path in shards.glob("*.tar"):
        path.unlink()
    assert_same(read_data(f"{address}/"), utterances)


def test_an_address_may_have_any_letters(address: str, shards: Path, utterances: list[Utterance]) -> None:
    shards.rename(shards.with_name("séance 1"))
    shards.with_name("shards.json").rename(shards.with_name("séance 1.json"))
    assert_same(read_data(address.replace("shards", "séance 1")), utterances)
    assert_same(read_data(address.replace("shards", "s%C3%A9ance%201")), utterances)


def test_new_shards_behind_an_address_are_fetched_and_the_old_ones_forgotten(
    address: str, shards: Path, utterances: list[Utterance]
) -> None:
    read_data(address)
    shutil.rmtree(shards)
    shards.with_name("shards.json").unlink()
    write_shards(utterances[4:], shards, shard_size=2)
    assert_same(read_data(address), utterances[4:])


def test_where_the_server_is_away_what_was_fetched_is_used(
    address: str, shards: Path, utterances: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    read_data(address)
    shards.with_name("shards.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert_same(read_data(address), utterances)
    assert "what was fetched before is used" in caplog.text


def test_a_shard_that_the_server_lacks_is_told(address: str, shards: Path) -> None:
    (shards / "recording.000002.tar").unlink()
    with pytest.raises(AsrError, match=rf"{address}/recording\.000002\.tar"):
        read_data(address)


def test_a_full_disk_leaves_neither_shards_nor_an_index(tmp_path: Path, full_disk: Any) -> None:
    utterances = read_manifest(MANIFEST)
    with full_disk(), pytest.raises(AsrError, match=r"cannot be written \(File too large\); make room or choose"):
        write_shards(utterances, tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []
    assert write_shards(utterances, tmp_path / "shards") == 1


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("[]", "is not the index that asr shard writes"),
        ('{"cuts.000000.jsonl.gz": {}}', "is not the index that asr shard writes"),
        ('{"cuts.000000.jsonl.gz": {"size": 1e400, "md5": ""}}', "is not the index that asr shard writes"),
        ("[" * 100_000, "is not the index that asr shard writes"),
        ('{"../evil": {"size": 1, "md5": ""}}', "names '../evil', which is no part of a shard"),
        (None, "cannot be fetched: .*File not found"),
    ],
)
def test_what_is_no_index_is_told_in_a_sentence(address: str, shards: Path, index: str | None, reason: str) -> None:
    path = shards.with_name("shards.json")
    path.unlink()
    if index is not None:
        path.write_text(index)
    with pytest.raises(AsrError, match=rf"/shards\.json: {reason}"):
        read_data(address)


@pytest.mark.parametrize(
    ("url", "reason"), [("http://127.0.0.1:9/shards", "refused"), ("http://127.0.0.1:9", "nonnumeric port")]
)
def test_where_no_server_answers_that_is_told(url: str, reason: str) -> None:
    with pytest.raises(AsrError, match=f"cannot be fetched: .*{reason}"):
        read_data(url)
    assert not (Path(os.environ["XDG_CACHE_HOME"])).exists()


# The command


def test_the_command_writes_them_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shards"
    assert main(["shard", str(MANIFEST), "-o", str(folder), "--shard-size", "4"]) == 0
    assert capsys.readouterr().out == f"{folder}\t2 shards\t6 utterances\t0.01 hours\n"
    index = json.loads((tmp_path / "shards.json").read_text())
    assert sorted(index) == sorted(path.name for path in folder.iterdir())
    with gzip.open(folder / "cuts.000000.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == 4


def test_the_command_refuses_shards_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["shard", str(MANIFEST), "-o", str(tmp_path / "shards"), "--shard-size", "0"])
    assert "--shard-size must be at least 1" in capsys.readouterr().err


def test_two_processes_do_not_write_one_folder(tmp_path: Path, utterances: list[Utterance]) -> None:
    def begin_again() -> Iterator[Utterance]:
        yield utterances[0]
        with pytest.raises(AsrError, match="another process is writing there; wait for it"):
            write_shards(utterances, tmp_path / "shards")
        yield from utterances[1:]

    assert write_shards(begin_again(), tmp_path / "shards") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "shards.json"]
    assert len(read_data(tmp_path / "shards")) == len(utterances)


def test_the_root_is_no_name_of_a_folder(utterances: list[Utterance]) -> None:
    with pytest.raises(AsrError, match=r"^/: name a new folder$"):
        write_shards(utterances, "/")
