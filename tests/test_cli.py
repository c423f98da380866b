"""The `asr` command: its help, its scripts, and what it says of mistakes in what it is given."""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command_line import ROOT, SAMPLES, Outcome, Run
from safetensors.torch import load_file, save_file

import asr.beam
import asr.formats
import asr.hotwords
import asr.longform
import asr.shards
from asr.cli import build_parser, main
from asr.commands.options import FORMATS
from asr.modelfile import FORMAT_NUMBER


def commands() -> list[str]:
    (choices,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert choices is not None
    return list(choices)


@pytest.mark.parametrize(
    "arguments",
    [
        ["transcribe", "a.wav", "--lm"],
        ["transcribe", "a.wav", "--output-dir"],
        ["align", "a.wav", "a.txt", "--model"],
        ["evaluate", "packaged", "a.csv", "--lm", "packaged", "--rescore"],
        ["check", "a.csv", "--report"],
        ["check", "a.csv", "--valid"],
        ["download", "librispeech", "--subsets", "dev-clean-2", "--dir"],
        ["lm", "build", "a.txt", "-o", "a.arpa", "--model"],
        ["tune-lm", "packaged", "a.csv", "--lm"],
    ],
)
def test_an_option_without_a_name_in_it_is_not_one_that_is_left_out(run: Run, arguments: list[str]) -> None:
    done = run(*arguments, "")
    assert (done.code, done.output) == (2, "")
    assert done.errors.endswith(
        f"argument {arguments[-1]}: must not be empty; name something, or leave the option out\n"
    )


@pytest.mark.parametrize("missing", ["asr.cli.parse", "asr.cli.build_parser"])
def test_ctrl_c_before_the_command_runs_ends_it_too(run: Run, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(missing, Mock(side_effect=KeyboardInterrupt))
    assert run("verify") == Outcome(130, "", "")


@pytest.mark.parametrize("command", [None, *commands()])
def test_help_explains_and_ends_well(run: Run, command: str | None) -> None:
    done = run(*([command] if command else []), "--help")
    assert (done.code, done.errors) == (0, "")
    assert done.output.startswith(f"usage: asr {command or '[-h]'}")
    for other in [] if command else commands():
        assert re.search(rf"^ +{other}\s+\w", done.output, flags=re.MULTILINE)


def test_what_help_says_without_importing_torch_is_what_the_modules_have(run: Run) -> None:
    assert set(FORMATS) == {"text", *asr.formats.FORMATS} - {"txt"}
    said = " ".join(run("transcribe", "--help").output.split())
    defaults = [
        asr.longform.BATCH_SECONDS,
        asr.beam.BEAM_SIZE,
        asr.beam.WORD_SCORE,
        asr.beam.PRIOR_WEIGHT,
    ]
    for default in defaults:
        assert f"(default: {default:g})" in said
    assert f"(default: {asr.beam.LM_WEIGHT:g}; of pieces {asr.beam.LM_WEIGHT_OF_PIECES:g})" in said
    kinds = [
        {"with_language_model": lm, "with_phonemes": phonemes} for lm, phonemes in product([False, True], repeat=2)
    ]
    boosts = [asr.hotwords.usual_boost(**kind) for kind in kinds]
    assert "(default: {:g}, by sound too {:g}; with --lm {:g}, by sound too {:g})".format(*boosts) in said
    assert f"(default: {asr.shards.SHARD_SIZE})" in " ".join(run("shard", "--help").output.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["transcrib", "a.wav"], "invalid choice: 'transcrib' (choose from"),
        (["transcribe"], "the following arguments are required: FILE"),
        (["transcribe", "a.wav", "--frmat", "json"], "unrecognized arguments: --frmat"),
        (["transcribe", "a.wav", "--format", "xml"], "'xml' must be one of text, json, srt, vtt, tsv, ctm"),
        (
            ["transcribe", "a.wav", "--format", "srt,json"],
            "--format srt,json needs --output-dir: the screen shows one format",
        ),
        (["transcribe", "a", "b", "--format", "srt"], "--format srt of several files needs --output-dir"),
        (["transcribe", str(SAMPLES), "--format", "srt"], "--format srt of several files needs --output-dir"),
        (["transcribe", "a.wav", "--skip-existing"], "--skip-existing needs --output-dir"),
        (["transcribe", "a.wav", "--batch-seconds", "0"], "0 must be a number above 0"),
        (["transcribe", "a.wav", "--batch-seconds", "nan"], "nan must be a number above 0"),
        (["transcribe", "a.wav", "--batch-seconds=-1"], "-1 must be a number above 0"),
        (["transcribe", "a.wav", "--batch-seconds", "many"], "many must be a number above 0"),
        (["train"], "the following arguments are required: recipe"),
        (["train", "mini.yaml", "--epochs", "3"], "unrecognized arguments: --epochs 3"),
        (["train", "mini.yaml", "--resume", "trainer.epochs"], "unrecognized arguments: trainer.epochs"),
        (["evaluate", "packaged"], "the following arguments are required: MANIFEST"),
        (["evaluate", "packaged", "a.jsonl", "b.jsonl"], "unrecognized arguments: b.jsonl"),
        (["download", "librispeech", "--subsets", "dev-clean-2"], "the following arguments are required: --dir"),
        (["download", "librispeech", "--dir", "data"], "the following arguments are required: --subsets"),
        (["download", "librispeach", "--dir", "data", "--subsets", "dev-clean"], "invalid choice: 'librispeach'"),
        (["prepare", "librispeech", "data"], "the following arguments are required: --output-dir"),
        (["prepare", "librispeech", "--output-dir", "data"], "the following arguments are required: DIR"),
        (["prepare", "timit", "data", "--output-dir", "data"], "invalid choice: 'timit'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_told_with_exit_code_2(run: Run, arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith("usage: asr")
    assert said in done.errors.splitlines()[-1]


def test_a_name_cannot_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "a\x1b[2J\r\x9b1mb"]) == 1
    message = capsys.readouterr().err
    assert r"a\x1b[2J\r\x9b1mb: no training has written its curves there" in message
    assert message.isascii()
    assert message.rstrip("\n").isprintable()


def truncated_model(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:-1000])


def newer_model(path: Path, source: Path) -> None:
    save_file(load_file(source), path, {"format": str(FORMAT_NUMBER + 1)})


def foreign_weights(path: Path, source: Path) -> None:
    save_file(load_file(source), path)


def recording_as_model(path: Path, source: Path) -> None:
    shutil.copy(SAMPLES / "84-121123-0001.flac", path)


@pytest.mark.parametrize("command", ["transcribe", "evaluate"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path, source: None, "model file not found"),
        (lambda path, source: path.mkdir(), "model file not found"),
        (lambda path, source: path.touch(), "the model file is damaged or not a model file"),
        (truncated_model, "the model file is damaged or not a model file"),
        (recording_as_model, "the model file is damaged or not a model file"),
        (foreign_weights, "not a model file of bigru-asr"),
        (newer_model, f"has model format {FORMAT_NUMBER + 1}, this release reads up to {FORMAT_NUMBER}; upgrade"),
    ],
    ids=["missing", "folder", "empty", "truncated", "a recording", "foreign weights", "newer"],
)
def test_a_model_file_that_is_none_is_told_in_one_sentence(
    run: Run, model_path: Path, tmp_path: Path, command: str, make: Callable[[Path, Path], None], reason: str
) -> None:
    path = tmp_path / "m.safetensors"
    make(path, model_path)
    recording, manifest = SAMPLES / "84-121123-0001.flac", SAMPLES / "manifest.jsonl"
    rest = (path, manifest) if command == "evaluate" else ("--model", path, recording)
    done = run(command, *rest)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr {command}: {path}: {reason}")
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("tpu", "--device tpu must be cpu, cuda or auto"),
        ("cpu:x", "--device cpu:x must be cpu, cuda or auto"),
        ("meta", "--device meta must be cpu, cuda or auto"),
        pytest.param(
            "cuda",
            "--device cuda: no GPU is available here; use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)
def test_a_device_that_is_not_there_is_told(run: Run, sample_paths: list[Path], device: str, said: str) -> None:
    done = run("transcribe", "--device", device, sample_paths[0])
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr transcribe: {said}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.epoch=3", "unknown setting trainer.epoch; did you mean trainer.epochs?"),
        ("trainr.epochs=3", "unknown setting trainr; did you mean trainer?"),
        ("trainer.epochs=many", "trainer.epochs"),
        ("trainer.epochs=0", "trainer.epochs=0 must be at least 1"),
    ],
)
def test_a_wrong_setting_is_told_with_what_is_right(run: Run, override: str, said: str) -> None:
    recipe = ROOT / "recipes" / "librispeech" / "mini.yaml"
    done = run("train", recipe, override)
    assert (done.code, done.output) == (1, "")
    assert done.errors.startswith(f"asr train: {recipe}: ")
    assert said in done.errors
    assert done.errors.count("\n") == 1


def test_a_recipe_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert run("train", path) == Outcome(1, "", f"asr train: recipe not found: {path}\n")


def test_a_mirror_that_is_no_web_address_is_told(run: Run, tmp_path: Path) -> None:
    done = run("download", "librispeech", "--subsets", "dev-clean-2", "--dir", tmp_path, "--mirror", "openslr")
    assert (done.code, done.output) == (1, "")
    assert "openslr/31/dev-clean-2.tar.gz" in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_the_corpus_is_told(run: Run, tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "data" / "LibriSpeech" / "dev-clean-2").mkdir(parents=True)
    done = run("prepare", "librispeech", tmp_path / "data", "--output-dir", tmp_path / "manifests")
    assert (done.code, done.output) == (1, "")
    assert "no LibriSpeech subset found; expected LibriSpeech/<subset>/" in done.errors
    assert not (tmp_path / "manifests").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("transcribe", [str(SAMPLES / "84-121123-0001.flac")]),
        ("transcribe", ["--format", "json", str(SAMPLES / "84-121123-0001.flac"), "none.wav"]),
        ("transcribe", []),
        ("train", ["none.yaml"]),
        ("train", [str(ROOT / "recipes" / "librispeech" / "mini.yaml"), "--resume", "trainer.epoch=1"]),
        ("evaluate", ["packaged", str(SAMPLES / "manifest.jsonl")]),
        ("evaluate", ["packaged", "none.jsonl"]),
    ],
    ids=lambda value: " ".join(Path(item).name for item in value) if isinstance(value, list) else None,
)
def test_a_script_does_what_the_command_does(
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    arguments: list[str],
) -> None:
    def without_speed(output: str) -> str:
        return re.sub(r"RTF .*", "RTF", output)

    expected = run(name, *arguments)
    script = ROOT / "scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    captured = capsys.readouterr()
    assert stopped.value.code == expected.code
    assert without_speed(captured.out) == without_speed(expected.output)
    assert captured.err == expected.errors
    assert captured.out or captured.err
