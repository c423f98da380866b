"""`asr check`: what the page says of real and of spoilt recordings."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from command_line import SAMPLES, process
from torch import Tensor

from asr import load_model
from asr.audio import AudioFile, read_audio
from asr.cli import main
from asr.errors import AsrError
from asr.folders import read_data
from asr.manifest import read_manifest
from asr.surgery import with_vocabulary
from asr.survey import _histogram, find_marks, survey, write_fixed
from asr.vocabulary import CharacterVocabulary


@pytest.fixture
def spoilt(tmp_path: Path, speech: list[Tensor]) -> Path:
    """A manifest of one good utterance and of one for each fault."""
    loud = (speech[1] * 50).clamp(-1, 1)
    quiet = torch.cat([torch.zeros(16000 * 9), speech[1]])
    for name, samples in {"good": speech[0], "loud": loud, "quiet": quiet, "slow": speech[2]}.items():
        soundfile.write(tmp_path / f"{name}.wav", samples.numpy(), 16000)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    rows = [
        {"audio": "good.wav", "text": "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES", "speaker": "1272"},
        {"audio": "loud.wav", "text": "But in less than 5 minutes & more"},
        {"audio": "quiet.wav", "text": "BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED BENEATH"},
        {"audio": "slow.wav", "text": "HM"},
        {"audio": "slow.wav", "text": "HM"},
        {"audio": "broken.wav", "text": "NOTHING", "duration": 2.0},
        {"audio": "good.wav", "start": 1.0, "duration": 1.0, "text": "FAR TOO MANY WORDS TO BE SAID " * 3},
        {"audio": "good.wav", "start": 3.0, "duration": 1.0, "text": "1912"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_real_speech_has_no_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SAMPLES / "manifest.jsonl")]) == 0
    page = capsys.readouterr().out
    assert page.startswith("utterances 6  hours 0.01  speakers 6\nsample rates: 16000 Hz × 6\nchannels: 1 × 6\n")
    for kind in ("cannot be read", "left out", "come again", "clipped", "mostly silent", "letters per second:"):
        assert (kind in page) == (kind == "letters per second:")


def test_each_fault_is_found_where_it_is_and_nowhere_else(spoilt: Path) -> None:
    found = survey(read_manifest(spoilt), load_model())
    lines = {
        kind: [utterance.line for utterance, _ in places] for kind, places in (found.keeping_out | found.odd).items()
    }
    assert {kind: places for kind, places in lines.items() if places} == {
        "audio that cannot be read": [6],
        "left out, too few steps for CTC": [7],
        "left out, nothing left of the transcript": [8],
        "recordings that come again": [5],
        "clipped": [2],
        "mostly silent": [3],
        "fewer than 4 or more than 25 letters per second": [4, 5, 7, 8],
    }
    assert found.dropped_characters == {"5": 1, "&": 1, "1": 2, "9": 1, "2": 1}


def test_the_page_names_places_and_proposes_words(spoilt: Path) -> None:
    page = survey(read_manifest(spoilt), load_model()).page()
    assert f"  {spoilt}:6: broken: {spoilt.parent}/broken.wav: not audio that can be read" in page
    assert "  '&' × 1: AND" in page
    assert "  '5' × 1: the number in words" in page
    assert f"recordings that come again: 1\n  {spoilt}:5: slow: the same recording as {spoilt}:4" in page


def test_many_signs_and_letters_of_another_language_take_a_few_lines(spoilt: Path) -> None:
    found = survey(read_manifest(spoilt)[:1], load_model())
    signs, letters = "!?.:;§#=$%&123", "абвгдежзийклмнопрст"
    found.dropped_characters.update({sign: 100 - place for place, sign in enumerate(signs + letters)})
    title, *lines = found.page().split("characters outside")[1].splitlines()
    assert title == " the alphabet, and what to write:"
    assert lines[0] == "  '!' × 100: nothing, it is dropped"
    assert [line[3] for line in lines[:8]] == [*signs[:8]]
    assert lines[8] == "  ... and 6 more kinds"
    assert lines[9].startswith("  'а' × 86, 'б' × 85, ")
    assert lines[9].endswith(
        " and 11 more letters: letters of the alphabet, else their utterances are left out; "
        "of another language, give its letters by --new-vocabulary"
    )
    assert len(lines) == 10


def test_a_fixed_manifest_can_be_learned_from_and_every_change_is_told(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = tmp_path / "sub" / "fixed.jsonl"
    fixed.parent.mkdir()
    assert main(["check", str(spoilt), "--fix", str(fixed)]) == 0
    said = capsys.readouterr().out
    texts = [utterance.text for utterance in read_manifest(fixed)]
    assert len(texts) == 3
    assert f"{spoilt}:2: loud: left out: '5' in the text; write it in words" in said
    assert f"{spoilt}:5: slow: left out: recordings that come again: " in said
    assert f"{spoilt}:7: good: left out: too few steps for CTC: " in said
    again = survey(read_manifest(fixed), load_model())
    assert [places for places in again.keeping_out.values() if places] == []
    assert write_fixed(again, tmp_path / "sub" / "again.jsonl") == []


def test_a_fixed_manifest_is_neither_a_table_nor_the_data_themselves(
    spoilt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = spoilt.read_bytes()
    table = spoilt.with_name("clean.csv")
    for fixed, reason in (
        (table, "JSON lines are written; call the file clean.jsonl"),
        (spoilt, "would replace the data"),
    ):
        with pytest.raises(SystemExit):
            main(["check", str(spoilt), "--fix", str(fixed)])
        assert f"--fix {fixed}: {reason}" in capsys.readouterr().err
    assert spoilt.read_bytes() == before
    assert not table.exists()


def test_what_a_valid_set_shares_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("SOMETHING ELSE")
    manifest = str(SAMPLES / "manifest.jsonl")
    assert main(["check", manifest, "--valid", manifest]) == 0
    assert "utterances of the valid set that are in the training set too: 6: " in capsys.readouterr().out
    assert main(["check", manifest, "--valid", str(tmp_path)]) == 0
    assert "nothing of the valid set is in it" in capsys.readouterr().out


@pytest.mark.parametrize("durations", [[0.2], [1.0, 2.0, 3.0], [0.5, 400.0], [3600.0 * 5, 2.0], [3.6e6, 2.0]])
def test_a_histogram_counts_every_utterance_in_a_dozen_lines_or_so(durations: list[float]) -> None:
    lines = _histogram(durations)
    assert sum(int(line.split()[-1]) for line in lines) == len(durations)
    assert len(lines) <= 31


def test_a_bar_of_the_histogram_stands_beside_the_durations_that_it_counts() -> None:
    bars = [line.split() for line in _histogram([0.2, 2.0, 2.9, 3.999, 11.0])]
    assert [(bar[0], bar[2], bar[-1]) for bar in bars if bar[-1] != "0"] == [
        ("0", "1", "1"),
        ("2", "3", "2"),
        ("3", "4", "1"),
        ("11", "12", "1"),
    ]
    (longest,) = (bar for bar in bars if bar[-1] == "2")
    assert len(longest[3]) == 2 * len(bars[0][3]) == 30


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_what_cannot_be_read_is_told_and_left_out_and_the_rest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder, fixed = tmp_path / "data", tmp_path / "fixed.jsonl"
    folder.mkdir()
    for place, recording in enumerate(sorted(SAMPLES.glob("*.flac"))[:2]):
        shutil.copy(recording, folder / f"{place}.flac")
        (folder / f"{place}.txt").write_text("SOME WORDS")
    (folder / "bad.wav").write_text("garbage")
    (folder / "bad.txt").write_text("HELLO")
    (folder / "alone.txt").write_text("NOBODY SAYS THIS")
    table = tmp_path / "table.csv"
    table.write_text("audio,text\n" + "".join(f"data/{name},HELLO\n" for name in ("0.flac", "bad.wav", "1.flac")))
    assert main(["check", str(folder if kind == "folder" else table), "--fix", str(fixed)]) == 0
    said = capsys.readouterr().out
    assert "utterances 2" in said
    assert re.search(r"not read: \d\n .*bad\.wav: not audio that can be read", said)
    assert (f"{folder}/alone.txt: has no recording beside it" in said) == (kind == "folder")
    assert len(read_manifest(fixed)) == 2
    with pytest.raises(AsrError, match=r"bad\.wav: not audio that can be read"):
        read_data(folder if kind == "folder" else table)


def test_a_folder_can_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    (tmp_path / "a.txt").write_text("BUT IN LESS THAN FIVE MINUTES THE STAIRCASE GROANED")
    assert len(read_data(tmp_path)) == 1
    assert main(["check", str(tmp_path)]) == 0
    assert "utterances 1  hours 0.00  speakers unknown" in capsys.readouterr().out


def test_a_valid_set_is_compared_though_recordings_are_missing(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"audio": "missing.wav", "text": "GONE", "duration": 1.0}
    spoilt.write_text(spoilt.read_text(encoding="utf-8") + json.dumps(missing) + "\n", encoding="utf-8")
    fixed = tmp_path / "fixed.jsonl"
    assert main(["check", str(spoilt), "--valid", str(SAMPLES / "manifest.jsonl"), "--fix", str(fixed)]) == 0
    said = capsys.readouterr().out
    assert f"{spoilt}:9: missing: {tmp_path}/missing.wav: audio file cannot be opened" in said
    assert "valid set" in said.splitlines()[-1]
    assert len(read_manifest(fixed)) == 3


def test_what_training_at_its_fastest_speed_leaves_out_is_told_before() -> None:
    (utterance, *_) = read_manifest(SAMPLES / "manifest.jsonl")
    model = load_model()
    letters = "AB" * int(0.95 * utterance.duration_seconds * 16000 / model.step_samples / 2)
    found = survey([replace(utterance, text=letters)], model)
    assert ["at speed 1.1" in detail for _, detail in found.keeping_out["left out, too few steps for CTC"]] == [True]


def test_a_long_recording_is_heard_and_copied_in_blocks(
    tmp_path: Path, speech: list[Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = torch.stack([torch.cat([speech[0] * 50, torch.zeros(60 * 16000), speech[1]])] * 2, 1)
    soundfile.write(tmp_path / "long.wav", both.clamp(-1, 1).numpy(), 16000)
    (tmp_path / "long.txt").write_text("BUT IN LESS THAN FIVE MINUTES")
    most, read = [0], AudioFile._read_native

    def watched(audio: AudioFile, start: int, count: int) -> Tensor:
        most.append(count)
        return read(audio, start, count)

    monkeypatch.setattr(AudioFile, "_read_native", watched)
    assert main(["check", str(tmp_path), "--report", str(tmp_path / "page"), "--pictures", "0"]) == 0
    assert max(most) <= 31 * 16000
    mono = both.mean(1).clamp(-1, 1)
    clipped, page = float((mono.abs() >= 0.999).float().mean()), capsys.readouterr().out
    assert f"{tmp_path}/long.txt:1: long: {clipped:.1%}" in page
    powers = mono.unfold(0, 400, 400).square().mean(1)
    assert f"silence: {(powers <= powers.quantile(0.95) * 1e-4).float().mean():.0%} of an utterance" in page
    assert (read_audio(tmp_path / "page" / "audio" / "1.flac", 16000) - mono).abs().max() <= 2**-15


def test_a_sign_with_an_english_word_becomes_it_and_that_is_told(tmp_path: Path) -> None:
    (utterance, *_) = read_manifest(SAMPLES / "manifest.jsonl")
    found = survey([replace(utterance, text="Strauss&Sons, all in €")], load_model())
    (change,) = write_fixed(found, tmp_path / "fixed.jsonl")
    assert (
        change == f"{utterance.place}: {utterance.id}: 'Strauss&Sons, all in €' is now 'STRAUSS AND SONS ALL IN EUROS'"
    )
    assert [fixed.text for fixed in read_manifest(tmp_path / "fixed.jsonl")] == ["STRAUSS AND SONS ALL IN EUROS"]


def test_marks_of_transcribers_are_told_and_not_learned_as_words(tmp_path: Path) -> None:
    utterance, *_ = read_manifest(SAMPLES / "manifest.jsonl")
    texts = ["[NOISE] MISTER <UNK> QUILTER", "{breath} IS (he said) THE <3 APOSTLE []", "A > B AND [ C"]
    parts = [replace(utterance, text=text, duration_seconds=3.0 + place) for place, text in enumerate(texts)]
    found = survey(parts, load_model())
    marks = [detail for _, detail in found.odd["marks whose letters become words"]]
    assert marks == ["[NOISE] <UNK>", "{breath}"]
    changes = write_fixed(found, tmp_path / "fixed.jsonl")
    assert changes[0].endswith(": left out: [NOISE] <UNK> in the text; take it out")
    assert [fixed.text for fixed in read_manifest(tmp_path / "fixed.jsonl")] == ["A B AND C"]
    bracketed = with_vocabulary(load_model(), CharacterVocabulary(" []ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    assert survey([replace(utterance, text="[NOISE] HM")], bracketed).odd["marks whose letters become words"] == []


@pytest.mark.parametrize("bracket", "<[{")
def test_a_mark_left_open_in_the_text_of_hours_takes_no_time(bracket: str) -> None:
    text = f"BUT {bracket} " + "IN LESS THAN FIVE MINUTES " * 4000
    began = time.process_time()
    assert find_marks(text + "[NOISE]", CharacterVocabulary()) == ["[NOISE]"]
    assert time.process_time() - began < 5


def test_words_for_signs_are_written_in_english_alone(tmp_path: Path) -> None:
    (utterance, *_) = read_manifest(SAMPLES / "manifest.jsonl")
    model = with_vocabulary(load_model(), CharacterVocabulary(" &ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜß"))
    found = survey([replace(utterance, text="Strauß & Söhne")], model)
    write_fixed(found, tmp_path / "fixed.jsonl")
    (fixed,) = read_manifest(tmp_path / "fixed.jsonl")
    assert "AND" not in fixed.text
    assert "&" in fixed.text


def test_overlapping_stretches_of_a_recording_are_no_repeats() -> None:
    (utterance, *_) = read_manifest(SAMPLES / "manifest.jsonl")
    parts = [utterance, replace(utterance, duration_seconds=utterance.duration_seconds / 2)]
    assert survey(parts, load_model()).keeping_out["recordings that come again"] == []


def test_of_two_copies_the_one_that_can_be_used_is_kept(tmp_path: Path) -> None:
    audio = str(SAMPLES / "84-121123-0001.flac")
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "".join(json.dumps({"audio": audio, "text": text}) + "\n" for text in ("Привет", "BUT IN LESS"))
    )
    assert main(["check", str(manifest), "--fix", str(tmp_path / "clean.jsonl")]) == 0
    assert [utterance.text for utterance in read_manifest(tmp_path / "clean.jsonl")] == ["BUT IN LESS"]


@pytest.mark.parametrize("worse", ["BUT IN 1 LESS", "[NOISE] BUT IN LESS"])
def test_a_copy_is_kept_though_one_before_it_cannot_be(tmp_path: Path, worse: str) -> None:
    audio = str(SAMPLES / "84-121123-0001.flac")
    manifest = tmp_path / "m.jsonl"
    lines = [{"audio": audio, "text": text} for text in (worse, "BUT IN LESS", "BUT IN LESS")]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert main(["check", str(manifest), "--fix", str(tmp_path / "clean.jsonl")]) == 0
    assert [utterance.text for utterance in read_manifest(tmp_path / "clean.jsonl")] == ["BUT IN LESS"]


def test_an_id_with_a_line_break_stays_in_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = str(SAMPLES / "84-121123-0001.flac")
    manifest = tmp_path / "m.jsonl"
    lines = ({"id": name, "audio": audio, "text": text} for name, text in (("a\nb", "N5"), ("c", "BUT IN LESS")))
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert main(["check", str(manifest), "--fix", str(tmp_path / "clean.jsonl")]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("b:")] == []


def test_texts_of_another_language_are_checked_in_its_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio = str(SAMPLES / "84-121123-0001.flac")
    manifest, clean = tmp_path / "m.jsonl", tmp_path / "clean.jsonl"
    manifest.write_text(json.dumps({"audio": audio, "text": "Привет, мир"}))
    assert main(["check", str(manifest), "--fix", str(clean)]) == 1
    assert "nothing is left to write; of another language, give its letters by --new-vocab" in capsys.readouterr().err
    assert main(["check", str(manifest), "--fix", str(clean), "--new-vocabulary", " абв"]) == 1
    assert main(["check", str(manifest), "--new-vocabulary", "веимпрт"]) == 1
    assert "must hold a space" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", str(manifest), "--new-vocabulary", ""])
    assert main(["check", str(manifest), "--fix", str(clean), "--new-vocabulary", " веимпрт"]) == 0
    assert read_manifest(clean)[0].text == "привет мир"


def test_what_cannot_be_is_told_before_the_recordings_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("asr.survey.survey", lambda *_: pytest.fail("it listened"))
    assert main(["check", str(SAMPLES / "manifest.jsonl"), "--valid", str(tmp_path / "none.csv")]) == 1
    assert "none.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", str(SAMPLES / "manifest.jsonl"), "--fix", str(tmp_path)])
    assert f"--fix {tmp_path}: is a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for option, path in (("--fix", tmp_path / "file" / "clean.jsonl"), ("--report", tmp_path / "file" / "page")):
        assert main(["check", str(SAMPLES / "manifest.jsonl"), option, str(path)]) == 1
        assert f"asr check: {path}" in (told := capsys.readouterr().err)
        assert "cannot be written; choose another folder" in told


def test_nothing_is_written_where_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": "none.flac", "duration": 2, "text": "HELLO"}))
    assert main(["check", str(manifest), "--fix", str(tmp_path / "clean.jsonl")]) == 1
    assert "clean.jsonl: nothing is left to write" in capsys.readouterr().err
    assert not (tmp_path / "clean.jsonl").exists()


def test_a_manifest_inside_a_folder_of_data_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", tmp_path / "a.flac")
    manifest = tmp_path / "metadata.jsonl"
    manifest.write_text(json.dumps({"file_name": "a.flac", "text": "But in less", "mine": 1}))
    assert main(["check", str(tmp_path), "--fix", str(manifest)]) == 1
    assert f"--fix {manifest}: would replace the data themselves" in capsys.readouterr().err
    assert json.loads(manifest.read_text())["mine"] == 1


def test_a_console_that_knows_letters_alone_shows_the_page_with_escapes() -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    asked = process("check", SAMPLES / "manifest.jsonl", stdout=subprocess.PIPE, env=plain)
    output, errors = asked.communicate(timeout=300)
    assert (asked.returncode, errors) == (0, "")
    assert "16000 Hz \\xd7 " in output
