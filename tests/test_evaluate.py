"""`asr evaluate`: what it prints and writes, and what it says of a manifest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import SAMPLES, Outcome, Run
from recordings import write_silence

import asr
from asr.metrics import ErrorCounts, character_errors, pool, word_errors

RATES = (
    r"(WER|CER) (\d+\.\d\d)%  \[(\d+\.\d\d)%, (\d+\.\d\d)%\]  "
    r"substitutions ([\d,]+)  deletions ([\d,]+)  insertions ([\d,]+)  of ([\d,]+)"
)


def printed_rates(output: str) -> dict[str, tuple[float, float, float, ErrorCounts]]:
    """Rate, the ends of its interval and the counts, of WER and CER."""
    found = {}
    for name, *numbers in re.findall(rf"^{RATES}$", output, flags=re.MULTILINE):
        rate, low, high = (float(number) for number in numbers[:3])
        found[name] = (rate, low, high, ErrorCounts(*(int(number.replace(",", "")) for number in numbers[3:])))
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_evaluate_prints_rates_intervals_kinds_and_speed_and_writes_hypotheses(
    run: Run, sample_paths: list[Path], tmp_path: Path
) -> None:
    manifest = SAMPLES / "manifest.jsonl"
    done = run("evaluate", "packaged", manifest, "--hypotheses", tmp_path / "hypotheses.jsonl")
    assert (done.code, done.errors) == (0, "")
    lines = done.output.splitlines()
    assert len(lines) == 4
    assert lines[0] == "utterances 6  hours 0.01"
    assert re.fullmatch(r"RTF 0\.\d{4}  \(\d+ times real time\)", lines[3])

    written = read_lines(tmp_path / "hypotheses.jsonl")
    expected = read_lines(manifest)
    assert [line["id"] for line in written] == [line["id"] for line in expected]
    assert [line["reference"] for line in written] == [line["text"] for line in expected]
    assert [line["audio"] for line in written] == [str(path) for path in sample_paths]
    assert [line["hypothesis"] for line in written] == [asr.transcribe(path).text for path in sample_paths]

    printed = printed_rates(done.output)
    for name, count in (("WER", word_errors), ("CER", character_errors)):
        rate, low, high, counts = printed[name]
        assert counts == pool([count(line["reference"], line["hypothesis"]) for line in written])
        assert rate == pytest.approx(100 * counts.rate, abs=0.0051)
        assert low <= rate <= high
        assert low < high
    kinds = ("substitutions", "deletions", "insertions", "reference_length")
    assert ErrorCounts(*(sum(line[kind] for line in written) for kind in kinds)) == printed["WER"][3]


def test_prepare_prints_each_manifest_with_its_size_and_evaluate_reads_it(
    run: Run, model_path: Path, tmp_path: Path
) -> None:
    chapter = tmp_path / "LibriSpeech" / "dev-clean-2" / "84" / "121123"
    chapter.mkdir(parents=True)
    shutil.copy(SAMPLES / "84-121123-0001.flac", chapter)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0001 BUT IN LESS THAN FIVE MINUTES\n")
    done = run("prepare", "librispeech", tmp_path, "--output-dir", tmp_path / "manifests")
    manifest = tmp_path / "manifests" / "dev-clean-2.jsonl.gz"
    assert (done.code, done.output) == (0, f"{manifest}\t1 utterances\t0.00 hours\n")
    assert run("evaluate", model_path, manifest).output.startswith("utterances 1  hours 0.00\n")


def test_evaluate_is_the_same_for_any_batch_and_kind_of_manifest(run: Run, model_path: Path, tmp_path: Path) -> None:
    lines = read_lines(SAMPLES / "manifest.jsonl")
    table = "".join(f"{SAMPLES / line['audio']},{line['text'].lower()}\n" for line in lines)
    (tmp_path / "samples.csv").write_text(f"audio,text\n{table}")
    expected = run("evaluate", model_path, SAMPLES / "manifest.jsonl").output.splitlines()[:3]
    for arguments in (
        (SAMPLES / "manifest.jsonl", "--batch-seconds", "1"),
        (tmp_path / "samples.csv", "--device", "cpu"),
    ):
        assert run("evaluate", model_path, *arguments).output.splitlines()[:3] == expected


def test_evaluate_names_audio_that_fails_by_its_line_and_counts_its_words_as_deleted(
    run: Run, model_path: Path, tmp_path: Path
) -> None:
    good = {"audio": str(SAMPLES / "84-121123-0001.flac"), "text": "BUT IN LESS", "duration": 3.99}
    bad = [
        {"audio": "missing.wav", "text": "ONE TWO THREE", "duration": 3600.0},
        {"audio": "short.wav", "text": "FOUR", "duration": 0.01},
    ]
    write_silence(tmp_path / "short.wav")
    manifest, hypotheses = tmp_path / "m.jsonl", tmp_path / "h.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in (bad[0], good, bad[1])))
    done = run("evaluate", model_path, manifest, "--hypotheses", hypotheses)
    assert done.code == 1
    assert done.errors.splitlines() == [
        f"{manifest}:1: {tmp_path}/missing.wav: audio file cannot be opened: No such file or directory",
        f"{manifest}:3: {tmp_path}/short.wav: 0.01 s of audio is too short to recognise; at least 0.05 s is needed",
    ]
    written = read_lines(hypotheses)
    assert [line["hypothesis"] == "" for line in written] == [True, False, True]
    assert [line["deletions"] for line in written[::2]] == [3, 1]
    assert printed_rates(done.output)["WER"][3].reference_length == 7
    assert done.output.startswith("utterances 3  hours 0.00"), "an hour that was not there is not counted"
    assert "could not be read: 2 utterances; their words count as deleted" in done.output


@pytest.mark.parametrize(
    ("name", "content", "place", "said"),
    [
        ("m.jsonl", '{"audio": "a.wav", "text": "A", "duration": 1}\n{"audio": \n', ":2: ", "not a line of JSON"),
        ("m.jsonl", None, ": ", "manifest not found"),
    ],
)
def test_a_bad_manifest_is_told_by_file_and_line(
    run: Run, model_path: Path, tmp_path: Path, name: str, content: str | None, place: str, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    done = run("evaluate", model_path, tmp_path / name)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr evaluate: {tmp_path / name}{place}")
    assert said in done.errors
    assert done.errors.count("\n") == 1


def test_what_references_lose_is_told(run: Run, model_path: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    audio = str(SAMPLES / "84-121123-0001.flac")
    lines = [{"audio": audio, "text": text} for text in ("LESS THAN 55 MINUTES!", "LESS")]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    said = run("evaluate", model_path, manifest).output
    assert "dropped from the references, for the model cannot write them: '5' × 2\n" in said
    manifest.write_text(json.dumps(lines[1]))
    assert "dropped" not in run("evaluate", model_path, manifest).output


def test_where_no_reference_holds_a_word_there_is_no_rate(run: Run, model_path: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": str(SAMPLES / "84-121123-0001.flac"), "text": "5"}))
    done = run("evaluate", model_path, manifest)
    assert "WER none: no reference holds a letter that the model writes\n" in done.output
    assert "inf" not in done.output


def test_marks_in_references_are_scored_as_training_reads_them_and_told(
    run: Run, model_path: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "m.jsonl"
    audio = str(SAMPLES / "84-121123-0001.flac")
    lines = [{"audio": audio, "text": text} for text in ("[NOISE] LESS <UNK>", "[NOISE] LESS", "LESS")]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    said = run("evaluate", model_path, manifest).output
    assert "marks in the references, scored as words; take them out: '[NOISE]' × 2, '<UNK>' × 1\n" in said
    assert "of 6\n" in said
    manifest.write_text(json.dumps(lines[2]))
    assert "marks" not in run("evaluate", model_path, manifest).output


def test_hypotheses_that_cannot_be_written_are_told(run: Run, model_path: Path, tmp_path: Path) -> None:
    arguments = ("evaluate", model_path, SAMPLES / "manifest.jsonl", "--hypotheses")
    path = tmp_path / "none" / "h.jsonl"
    assert run(*arguments, path) == Outcome(1, "", f"asr evaluate: --hypotheses {path}: its folder does not exist\n")
    done = run(*arguments, tmp_path)
    assert done.code == 1
    assert done.errors == f"asr evaluate: {tmp_path}: is a folder; name a file in it\n"
    assert done.output == "", "told before anything was computed"


def test_hypotheses_do_not_replace_a_model(run: Run, model_path: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(model_path, tmp_path / "m.safetensors"))
    before = model.read_bytes()
    for arguments in ((model,), (model_path, "--report", tmp_path / "page", "--compare", model)):
        done = run("evaluate", arguments[0], SAMPLES / "manifest.jsonl", *arguments[1:], "--hypotheses", model)
        assert (done.code, done.output) == (1, "")
        assert f"--hypotheses {model}: would replace a file that is read here" in done.errors
    assert model.read_bytes() == before


def test_a_model_to_compare_with_that_cannot_be_read_is_told_before_the_first_hears(
    run: Run, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.evaluation.evaluate", lambda *_, **__: pytest.fail("it was evaluated"))
    arguments = ("evaluate", model_path, SAMPLES / "manifest.jsonl", "--report", tmp_path / "page", "--compare")
    done = run(*arguments, tmp_path / "typo.safetensors")
    assert (done.code, done.output) == (1, "")
    assert "typo.safetensors: model file not found" in done.errors


def test_evaluate_replaces_neither_its_manifest_nor_a_recording(run: Run, model_path: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio": "a.flac", "text": "BUT IN LESS"}))
    before = manifest.read_bytes()
    shutil.copy(SAMPLES / "84-121123-0001.flac", recording := tmp_path / "a.flac")
    heard = recording.read_bytes()
    for path in (manifest, recording):
        done = run("evaluate", model_path, manifest, "--hypotheses", path)
        assert done.code == 1
        assert done.errors.startswith(f"asr evaluate: --hypotheses {path}: would replace the data themselves; choose")
    assert (manifest.read_bytes(), recording.read_bytes()) == (before, heard)
