"""`asr transcribe` to files: which recordings are taken, and what is written of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import SAMPLES, Outcome, Run

import asr
from asr.model import CTCModel


def test_several_formats_of_several_files_are_written_to_a_folder(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "texts"
    done = run("transcribe", "--model", model_path, "--format", "text,srt,json", "--output-dir", folder, *sample_paths)
    assert (done.code, done.output) == (0, "")
    assert re.fullmatch(r"6 of 6 files, 0\.01 hours in \S+ s, \d+ times real time\n", done.errors)
    names = {f"{path.stem}.{kind}" for path in sample_paths for kind in ("txt", "srt", "json")}
    assert {path.name for path in folder.iterdir()} == names
    for path in sample_paths:
        assert (folder / f"{path.stem}.txt").read_text() == asr.transcribe(path, model=saved_model).text + "\n"
        assert json.loads((folder / f"{path.stem}.json").read_text())["path"] == str(path)


def test_existing_files_are_skipped_where_that_is_asked_and_else_replaced(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    there, missing = (tmp_path / f"{path.stem}.txt" for path in sample_paths[:2])
    arguments = ["transcribe", "--model", model_path, "--output-dir", tmp_path, *sample_paths[:2]]
    there.write_text("mine")
    done = run(*arguments, "--skip-existing")
    assert done.code == 0
    assert re.fullmatch(r"1 of 1 files, .*; done before: 1\n", done.errors)
    assert there.read_text() == "mine"
    assert missing.read_text() != ""
    assert run(*arguments).code == 0
    assert there.read_text() != "mine"


def test_a_folder_stands_for_the_audio_in_it_and_below(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "talks"
    for place, path in zip(("b.FLAC", "sub/a.flac", "a.flac", "notes.txt"), sample_paths):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / place)
    texts = {
        place: asr.transcribe(folder / place, model=saved_model).text for place in ("a.flac", "b.FLAC", "sub/a.flac")
    }
    printed = run("transcribe", "--model", model_path, folder)
    assert printed == Outcome(0, "".join(f"{folder}/{place}\t{text}\n" for place, text in texts.items()), "")
    assert run("transcribe", "--model", model_path, folder, "--output-dir", tmp_path / "out").code == 0
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.txt")) == [
        "a.txt",
        "b.txt",
        "sub/a.txt",
    ]


def test_a_list_names_a_recording_in_each_line(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("\ufeff" + "".join(f"{path}\n\n" for path in sample_paths[:2]))
    expected = "".join(f"{path}\t{asr.transcribe(path, model=saved_model).text}\n" for path in sample_paths[:2])
    assert run("transcribe", "--model", model_path, f"@{tmp_path}/list.txt") == Outcome(0, expected, "")


def test_a_folder_in_a_list_stands_for_the_recordings_in_it(
    run: Run, model_path: Path, saved_model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "talks").mkdir()
    recording = shutil.copy(sample_paths[0], tmp_path / "talks")
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'talks'}\n")
    expected = f"{recording}\t{asr.transcribe(recording, model=saved_model).text}\n"
    assert run("transcribe", "--model", model_path, f"@{tmp_path}/list.txt") == Outcome(0, expected, "")


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("@none.txt", "@none.txt: the list cannot be read: No such file or directory"),
        ("@empty.txt", "@empty.txt: the list names no file"),
    ],
)
def test_a_list_without_a_file_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    assert run("transcribe", argument) == Outcome(1, "", f"asr transcribe: {reason}\n")


def test_a_recording_whose_name_begins_as_a_list_does_is_transcribed(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(sample_paths[0], "@a.flac")
    done = run("transcribe", "--model", model_path, "@a.flac", "--format", "ctm")
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith("@a 1 ")


def test_an_empty_name_is_not_the_folder_one_is_in(run: Run) -> None:
    done = run("transcribe", "")
    assert (done.code, done.output) == (2, "")
    assert done.errors.endswith("FILE must not be empty\n")


def test_failures_have_no_file_and_are_told_again_at_the_end_of_a_long_list(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    done = run("transcribe", "--model", model_path, "--output-dir", tmp_path, "none.wav", sample_paths[0])
    assert done.code == 1
    first, summary, last = done.errors.splitlines()
    assert first == "none.wav: audio file cannot be opened: No such file or directory"
    assert summary.startswith("1 of 2 files, ")
    assert last == "failed: none.wav"
    assert [path.name for path in tmp_path.iterdir()] == [f"{sample_paths[0].stem}.txt"]


def test_a_transcript_that_cannot_be_written_stops_no_other(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    long = tmp_path / f"{'a' * 251}.wav"  # of which a .json has one byte more than a disk takes
    shutil.copy(sample_paths[0], long)
    options = ("--model", model_path, "--format", "json", "--output-dir", tmp_path / "out")
    done = run("transcribe", *options, long, sample_paths[1])
    assert done.code == 1
    assert f"{'a' * 251}.json: cannot be written (File name too long)" in done.errors
    assert done.errors.endswith(f"failed: {long}\n")
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [sample_paths[1].stem]


def test_two_recordings_of_one_name_are_told_before_anything_is_done(run: Run, tmp_path: Path) -> None:
    done = run("transcribe", "--output-dir", tmp_path / "out", "a/x.wav", "b/x.wav")
    reason = f"a/x.wav and b/x.wav would both be written to {tmp_path}/out/x.*; rename one"
    assert done == Outcome(1, "", f"asr transcribe: {reason}\n")
    assert not (tmp_path / "out").exists()


def test_a_recording_named_twice_is_done_once_and_written_to_every_place(
    run: Run, model_path: Path, sample_paths: list[Path], tmp_path: Path
) -> None:
    folder, out = tmp_path / "rec", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(sample_paths[0], folder / "sub" / "a.flac")
    done = run("transcribe", "--model", model_path, folder, folder / "sub", "none.wav", "none.wav", "--output-dir", out)
    assert done.code == 1
    assert "1 of 2 files" in done.errors
    assert (out / "sub" / "a.txt").read_text(encoding="utf-8") == (out / "a.txt").read_text(encoding="utf-8") != ""


@pytest.mark.parametrize("kind", ["TextGrid", "srt"])
def test_annotations_beside_a_recording_are_not_replaced(run: Run, model_path: Path, tmp_path: Path, kind: str) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / f"a.{kind}").write_text("by hand")
    done = run("transcribe", "--model", model_path, tmp_path, "--output-dir", tmp_path, "--format", kind)
    assert done.code == 1
    assert f"a.{kind}: stands beside its recording and would be replaced" in done.errors
    assert (tmp_path / f"a.{kind}").read_text() == "by hand"


def test_a_recording_in_a_folder_that_is_gone_is_told_beside_its_earlier_output(
    run: Run, model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("before")
    done = run("transcribe", "--model", model_path, tmp_path / "gone" / "a.wav", "--output-dir", tmp_path)
    assert done.code == 1
    assert f"{tmp_path / 'gone' / 'a.wav'}: audio file cannot be opened" in done.errors
    assert (tmp_path / "a.txt").read_text() == "before"


def test_an_output_folder_that_cannot_be_is_told_before_anything_is_done(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("transcribe", "none.wav", "--output-dir", tmp_path / "file")
    assert done.code == 1
    assert "--output-dir" in done.errors
    assert "cannot be made (File exists); choose another folder" in done.errors


def test_a_text_beside_its_recording_is_not_replaced(run: Run, model_path: Path, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("what a person heard")
    arguments = ["transcribe", "--model", model_path, tmp_path, "--output-dir", tmp_path]
    done = run(*arguments)
    assert done.code == 1
    assert f"{tmp_path / 'a.txt'}: stands beside its recording and would be replaced" in done.errors
    assert run(*arguments, "--resume").code == 0
    assert run(*arguments, "--format", "srt").code == 0
    assert (tmp_path / "a.txt").read_text() == "what a person heard"


def test_a_resume_writes_the_missing_formats_and_keeps_the_others(run: Run, model_path: Path, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("what a person heard")
    options = ("--model", model_path, "--output-dir", tmp_path, "--format", "text,srt", "--resume")
    done = run("transcribe", *options, tmp_path)
    assert (done.code, done.output) == (0, "")
    assert done.errors.startswith("1 of 1 files, ")
    assert (tmp_path / "a.txt").read_text() == "what a person heard"
    assert (tmp_path / "a.srt").exists()
    assert "0 of 0 files" in (done := run("transcribe", *options, tmp_path)).errors
    assert done.errors.endswith("; done before: 1\n")
