"""Folders of data as others lay them out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from asr.cli import main
from asr.errors import MOST_PROBLEMS, AsrError
from asr.files import real_path
from asr.folders import find_audio, read_data, read_many

SAMPLES = Path(__file__).parents[1] / "samples"
ONE, OTHER = SAMPLES / "84-121123-0001.flac", SAMPLES / "174-168635-0000.flac"


def shut_folder(monkeypatch: pytest.MonkeyPatch, shut: Path) -> None:
    """As another user's; root may enter every real one."""
    scan = os.scandir

    def refuse(path: str | Path) -> Any:
        if Path(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("kind", [str, Path])
def test_one_manifest_is_not_taken_for_a_list_of_them(tmp_path: Path, kind: type) -> None:
    with pytest.raises(AsrError, match=rf"^{tmp_path}/m\.csv: is one manifest; give a list of them"):
        read_many(kind(tmp_path / "m.csv"))


def test_recordings_with_a_text_beside_each(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    shutil.copy(ONE, tmp_path / "b.FLAC")
    shutil.copy(OTHER, tmp_path / "sub" / "a.flac")
    (tmp_path / "b.txt").write_text("\ufeffBut in less.\n", encoding="utf-8")
    (tmp_path / "sub" / "a.txt").write_text("He had never", encoding="utf-8")
    (tmp_path / "readme.txt").write_text("no audio", encoding="utf-8")
    one, other = read_data(tmp_path)
    assert (one.id, one.audio_path, one.text) == ("b", str(tmp_path / "b.FLAC"), "But in less.")
    assert (one.start_seconds, one.duration_seconds) == (0.0, pytest.approx(3.99))
    assert (other.id, other.text, other.place) == ("a", "He had never", f"{tmp_path}/sub/a.txt:1")


def test_the_ending_of_a_text_may_be_capitals(tmp_path: Path) -> None:
    shutil.copy(ONE, tmp_path / "A.FLAC")
    shutil.copy(OTHER, tmp_path / "b.flac")
    (tmp_path / "A.TXT").write_text("But in less")
    (tmp_path / "b.txt").write_text("He had never")
    one, other = read_data(tmp_path)
    assert (one.id, one.text, one.place) == ("A", "But in less", f"{tmp_path}/A.TXT:1")
    assert other.text == "He had never"


UNREAD = "has no recording beside it but c.m4a, which is not read; `ffmpeg -i FILE NEW.flac` turns it"


def test_texts_without_a_recording_that_is_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "c.m4a").write_bytes(b"of another kind")
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("But in less")
    with pytest.raises(AsrError, match=rf"holds no data of a known kind \(.*\); {tmp_path}/c\.txt: {UNREAD}"):
        read_data(tmp_path)
    shutil.copy(ONE, tmp_path / "b.flac")
    faults: list[str] = []
    for told in (None, faults):
        assert [utterance.id for utterance in read_data(tmp_path, told)] == ["b"]
    (message,) = caplog.messages
    start = f"{tmp_path}: 2 texts without a recording are left out, such as {tmp_path}/c.txt: {UNREAD}"
    assert message.startswith(start)
    assert faults[0].startswith(f"{tmp_path}/c.txt: {UNREAD}")
    assert faults[1:] == [f"{tmp_path}/a.txt: has no recording beside it"]


def test_a_tree_of_librispeech(tmp_path: Path) -> None:
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    shutil.copy(ONE, chapter)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0001 BUT IN LESS\n")
    (utterance,) = read_data(tmp_path)
    assert (utterance.id, utterance.speaker, utterance.text) == ("84-121123-0001", "84", "BUT IN LESS")


@pytest.mark.parametrize(("place", "folder"), [("84/121123", "."), ("84/121123", ".."), ("84", "."), ("84", "121123")])
def test_part_of_a_tree_of_librispeech_can_be_named_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, folder: str
) -> None:
    chapter = tmp_path / "84" / "121123"
    chapter.mkdir(parents=True)
    shutil.copy(ONE, chapter)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0001 BUT IN LESS\n")
    monkeypatch.chdir(tmp_path / place)
    (utterance,) = read_data(folder)
    assert (utterance.id, utterance.speaker, utterance.text) == ("84-121123-0001", "84", "BUT IN LESS")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_of_hugging_face(tmp_path: Path, name: str) -> None:
    shutil.copy(ONE, tmp_path / "a.flac")
    row = {"file_name": "a.flac", "transcription": "But in less"}
    content = ",".join(row) + "\n" + ",".join(row.values()) + "\n" if name.endswith("csv") else json.dumps(row)
    (tmp_path / name).write_text(content)
    (utterance,) = read_data(tmp_path)
    assert (utterance.audio_path, utterance.text) == (str(tmp_path / "a.flac"), "But in less")


def kaldi(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")
    return folder


def test_a_folder_of_kaldi(tmp_path: Path) -> None:
    kaldi(tmp_path, wav_scp=f"r1 {ONE}\nr2 {OTHER}\n", text="r1 BUT IN LESS\nr2 HE HAD\n", utt2spk="r1 ann\n")
    one, other = read_data(tmp_path)
    assert (one.id, one.audio_path, one.text, one.speaker) == ("r1", str(ONE), "BUT IN LESS", "ann")
    assert (other.speaker, other.place) == ("", f"{tmp_path}/text:2")


def test_a_folder_of_kaldi_with_tabs(tmp_path: Path) -> None:
    kaldi(tmp_path, wav_scp=f"r1\t{ONE}\n", text="r1\tBUT IN\tLESS\n", utt2spk="\nr1\tann\n")
    (one,) = read_data(tmp_path)
    assert (one.id, one.audio_path, one.text, one.speaker) == ("r1", str(ONE), "BUT IN\tLESS", "ann")


def test_segments_of_kaldi(tmp_path: Path) -> None:
    kaldi(tmp_path, wav_scp=f"r1 {ONE}\n", text="u1 BUT IN\nu2 LESS THAN\n", segments="u1 r1 0.0 1.5\nu2 r1 1.5 3.25\n")
    spans = [(utterance.start_seconds, utterance.duration_seconds) for utterance in read_data(tmp_path)]
    assert spans == [(0.0, 1.5), (1.5, 1.75)]


def test_a_segment_of_kaldi_that_ends_at_minus_one_goes_to_the_end(tmp_path: Path) -> None:
    kaldi(tmp_path, wav_scp=f"r1 {ONE}\n", text="u1 BUT IN\n", segments="u1 r1 1.5 -1\n")
    (utterance,) = read_data(tmp_path)
    assert utterance.start_seconds + utterance.duration_seconds == soundfile.info(ONE).duration


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"wav_scp": f"r1 {ONE}", "text": "r1 A\nr2 HELLO"}, "text:2: r2 has no recording in wav.scp"),
        ({"wav_scp": f"r1 {ONE}\nr2 {OTHER}", "text": "r1 A"}, "text: has no line for r2"),
        ({"wav_scp": f"r1 {ONE}", "text": "r1"}, "text:1: r1 has no text"),
        ({"wav_scp": "r1 none.wav", "text": "r1 HELLO"}, "text:1: none.wav: audio file cannot be opened"),
        (
            {"wav_scp": "r1 sox a.wav - |", "text": "r1 HELLO"},
            "text:1: r1 is a command in wav.scp, and commands are not run",
        ),
        (
            {"wav_scp": f"r1 {ONE}", "text": "u1 HELLO", "segments": "u1 r1 2.0 1.0"},
            "segments:1: u1 must have a recording, a start and a later end in seconds",
        ),
        (
            {"wav_scp": f"r1 {ONE}", "text": "u1 HELLO", "segments": "u1 r1 0.0 1.0 2"},
            "segments:1: u1 must have a recording, a start and a later end in seconds, nothing else",
        ),
        (
            {"wav_scp": f"r1 {ONE}", "text": "u1 HELLO", "segments": "u1 r1 60 -1"},
            "text:1: u1 begins at 60 s, behind the end of",
        ),
        ({"wav_scp": f"r1 {ONE}", "text": "r1 A\n\nr1 B"}, "text:3: r1 is already in line 1"),
        ({"wav_scp": f"r1 {ONE}\nr1 {OTHER}", "text": "r1 A"}, "wav.scp:2: r1 is already in line 1"),
        (
            {"wav_scp": f"r1 {ONE}", "text": "u1 A", "segments": "u1 r1 0 1\nu1 r1 1 2"},
            "segments:2: u1 is already in line 1",
        ),
    ],
)
def test_what_is_wrong_in_a_folder_of_kaldi_is_told_with_its_line(
    tmp_path: Path, files: dict[str, str], fault: str
) -> None:
    with pytest.raises(AsrError) as caught:
        read_data(kaldi(tmp_path, **files))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_fault_is_told_up_to_a_page(tmp_path: Path) -> None:
    shutil.copy(ONE, tmp_path / "good.flac")
    (tmp_path / "good.txt").write_text("GOOD")
    for number in range(MOST_PROBLEMS + 3):
        shutil.copy(ONE, tmp_path / f"{number}.flac")
    with pytest.raises(AsrError) as caught:
        read_data(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path}/0.flac: has no 0.txt beside it"
    assert lines[-1] == "... and 3 more faults"


def test_a_folder_of_no_known_kind_is_told(tmp_path: Path) -> None:
    shutil.copy(ONE, tmp_path)
    with pytest.raises(AsrError, match="the folder holds no data of a known kind"):
        read_data(tmp_path)


def test_a_folder_from_a_mac_holds_its_recordings_alone(tmp_path: Path) -> None:
    shutil.copy(ONE, tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("BUT")
    for name in ("._a.flac", "._a.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7\xff")
    assert [utterance.id for utterance in read_data(tmp_path)] == ["a"]
    assert find_audio(tmp_path) == [tmp_path / "a.flac"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    other, folder = tmp_path / "other", tmp_path / "folder"
    other.mkdir()
    folder.mkdir()
    shutil.copy(ONE, other / "a.flac")
    (folder / "link").symlink_to(other)
    (other / "back").symlink_to(folder)
    assert find_audio(folder) == [folder / "link" / "a.flac"]


def test_a_folder_that_cannot_be_entered_is_told_as_a_recording_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    shutil.copy(ONE, tmp_path)
    shut_folder(monkeypatch, shut)
    assert find_audio(tmp_path) == sorted([tmp_path / ONE.name, shut])
    assert main(["transcribe", str(tmp_path)]) == 1
    done = capsys.readouterr()
    assert done.out.startswith(f"{tmp_path / ONE.name}\t")
    assert done.err.startswith(f"{shut}: ")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_pipe_in_a_folder_is_told_once_and_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(ONE, tmp_path / "b.flac")
    (tmp_path / "b.txt").write_text("BUT IN LESS")
    os.mkfifo(tmp_path / "a.wav")
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert find_audio(tmp_path) == [tmp_path / "b.flac", tmp_path / "gone.wav"]
    caplog.clear()
    faults: list[str] = []
    assert [utterance.id for utterance in read_data(tmp_path, faults)] == ["b"]
    assert caplog.messages == [f"{tmp_path / 'a.wav'}: is a pipe, a socket or a device, no file, and was left out"]
    assert faults == [f"{tmp_path / 'gone.wav'}: has no gone.txt beside it"]


def test_data_without_a_name_is_not_the_folder_one_is_in() -> None:
    with pytest.raises(AsrError, match="the name of the data is empty"):
        read_data("")


def test_texts_of_kaldi_are_parted_at_line_breaks_alone(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"a {ONE}\n", encoding="utf-8")
    (tmp_path / "text").write_bytes("a ONE\u2028TWO\x0cTHREE\r\n".encode())
    (utterance,) = read_data(tmp_path)
    assert utterance.text.split() == ["ONE", "TWO", "THREE"]


def test_manifests_and_folders_are_read_one_after_another(tmp_path: Path) -> None:
    shutil.copy(ONE, tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("BUT")
    assert [utterance.id for utterance in read_many([tmp_path, SAMPLES / "manifest.jsonl"])][:2] == [
        "a",
        "1272-128104-0000",
    ]


def test_a_folder_can_be_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ONE, tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("But in less than five minutes")
    assert main(["evaluate", "packaged", str(tmp_path)]) == 0
    assert "utterances 1 " in capsys.readouterr().out


def test_a_segment_of_kaldi_that_is_a_name_alone_is_told(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(f"rec {ONE}\n", encoding="utf-8")
    (tmp_path / "text").write_text("utt1 ONE\n", encoding="utf-8")
    (tmp_path / "segments").write_text("utt1\n", encoding="utf-8")
    with pytest.raises(AsrError, match=r"segments:1: utt1 must have a recording, a start and a later end in seconds"):
        read_data(tmp_path)


def test_two_recordings_with_one_text_are_told_and_learned_from_once(tmp_path: Path) -> None:
    shutil.copy(ONE, tmp_path / "a.flac")
    shutil.copy(ONE, tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("But in less")
    faults: list[str] = []
    assert [utterance.audio_path for utterance in read_data(tmp_path, faults)] == [str(tmp_path / "a.flac")]
    assert faults == [f"{tmp_path / 'a.wav'}: has the same text as a.flac beside it"]


def test_a_text_that_may_not_be_opened_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        shutil.copy(ONE, tmp_path / f"{name}.flac")
        (tmp_path / f"{name}.txt").write_text("But in less")
    read = Path.read_text

    def refuse(path: Path, **options: Any) -> str:
        if path.name == "a.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    faults: list[str] = []
    assert [utterance.id for utterance in read_data(tmp_path, faults)] == ["b"]
    assert faults == [f"{tmp_path / 'a.txt'}: cannot be opened: Permission denied"]


def test_chapters_of_librispeech_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter, untold, shut = (tmp_path / "84" / name for name in ("121123", "121550", "121551"))
    for folder in (chapter, untold, shut):
        folder.mkdir(parents=True)
        shutil.copy(ONE, folder / f"84-{folder.name}-0001.flac")
        (folder / f"._84-{folder.name}-0001.flac").write_bytes(b"as a Mac leaves it")
    (chapter / "84-121123.trans.txt").write_text("84-121123-0001 BUT IN LESS\n")
    shut_folder(monkeypatch, shut)
    faults: list[str] = []
    assert [utterance.id for utterance in read_data(tmp_path, faults)] == ["84-121123-0001"]
    assert faults == [f"{shut}: the folder cannot be entered", f"{untold}: holds audio and no *.trans.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_path_leads_where_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a/b", "c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "one.wav").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "c" / "two.wav").symlink_to(tmp_path / "a" / "b" / "one.wav")
    for folder in ("a", "c", "."):
        monkeypatch.chdir(tmp_path / folder)
        for path in ("one.wav", "two.wav", "b/one.wav", "../link/one.wav", "link/../one.wav", "none", ""):
            assert real_path(path) == os.path.realpath(path)
            assert real_path(str(tmp_path / path)) == os.path.realpath(tmp_path / path)
