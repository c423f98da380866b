"""`asr train --overfit`: a few utterances learned by heart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from short_trainings import Interrupt, train_with

from asr.cli import main
from asr.errors import AsrError
from asr.manifest import read_manifest
from asr.overfitting import prepare_trial
from asr.recipe import load_config
from asr.training import prepare_training

MANIFEST = Path(__file__).parents[1] / "samples" / "manifest.jsonl"
RECIPE = f"""
data: {{train: [{MANIFEST}], valid: [{MANIFEST}], num_workers: 0, max_seconds: 5, batch_seconds: 5}}
model: {{encoder: {{num_layers: 2, hidden_size: 64, conv_channels: 8}}}}
optimizer: {{learning_rate: 8e-3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml")


@pytest.mark.slow
def test_two_utterances_are_learned_by_heart(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--overfit", "2", f"output_dir={tmp_path}/run"]) == 0
    assert "WER 0.00%" in capsys.readouterr().out
    assert main(["train", recipe, "--overfit", "1", f"output_dir={tmp_path}/run"]) == 0, "it can be done again"


def test_settings_that_cannot_learn_are_told_and_a_second_trial_has_curves_of_its_own(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("asr.overfitting.EPOCHS", 10)
    for count in ("2", "1"):
        arguments = ["--overfit", count, f"output_dir={tmp_path}/run", "optimizer.learning_rate=1e-9"]
        assert main(["train", recipe, *arguments]) == 1
        assert "not learned: more than 5% of the words are wrong" in capsys.readouterr().err
        assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1


def test_the_recipe_keeps_its_model_and_optimizer_and_loses_its_augmentation(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe, [f"output_dir={tmp_path}/run"])
    small = prepare_trial(config, 3)
    assert len(read_manifest(small.data.train[0])) == 3
    assert all(utterance.duration_seconds <= 5 for utterance in read_manifest(small.data.train[0]))
    assert small.output_dir == f"{tmp_path}/run-overfit"
    assert small.optimizer == config.optimizer
    assert small.model.encoder.hidden_size == config.model.encoder.hidden_size
    assert (small.augment.speeds, small.augment.num_time_masks, small.model.encoder.dropout) == ([1.0], 0, 0.0)


def test_a_trial_of_nothing_is_told(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="count=0 must be at least 1"):
        prepare_trial(load_config(recipe, [f"output_dir={tmp_path}/run"]), 0)
    with pytest.raises(AsrError, match=r"data\.train must name a manifest"):
        prepare_trial(load_config(recipe, [f"output_dir={tmp_path}/run", "data.train=[]"]), 1)


def test_a_folder_may_be_named_with_a_stroke_behind_it(recipe: str, tmp_path: Path) -> None:
    small = prepare_trial(load_config(recipe, [f"output_dir={tmp_path}/run/"]), 1)
    assert small.output_dir == f"{tmp_path}/run-overfit"


def test_a_training_that_is_no_trial_is_left_alone(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "run-overfit").mkdir()
    (tmp_path / "run-overfit" / "last.ckpt").write_bytes(b"a week of training")
    with pytest.raises(AsrError, match="run-overfit holds a training that is no trial; move it, or set another output"):
        prepare_trial(load_config(recipe, [f"output_dir={tmp_path}/run"]), 1)
    assert [path.name for path in (tmp_path / "run-overfit").iterdir()] == ["last.ckpt"]


@pytest.mark.usefixtures("one_thread")
def test_a_trial_that_is_stopped_is_begun_anew(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = load_config(recipe, [f"output_dir={tmp_path}/run"])
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 2), prepare_trial(config, 1), is_trial=True)
    assert "stopped at step 1; there is nothing to resume: start again" in caplog.text
    prepare_trial(config, 1)
    assert list((tmp_path / "run-overfit").glob("*.ckpt")) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--overfit", "0"], "--overfit must be at least 1"),
        (["--overfit", "2", "--resume"], "--overfit and --resume do not go together"),
    ],
)
def test_what_cannot_be_meant_is_told(
    recipe: str, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", recipe, *arguments])
    assert reason in capsys.readouterr().err


def test_what_training_would_leave_out_is_passed_over_and_pieces_come_from_all_texts(
    recipe: str, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in MANIFEST.read_text(encoding="utf-8").splitlines()]
    lines = [line | {"audio": str(MANIFEST.parent / line["audio"])} for line in lines]
    lines.sort(key=lambda line: line["duration"])
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in [lines[0] | {"text": "1912"}, *lines]), encoding="utf-8")
    pieces = ["vocabulary.kind=sentencepiece", "vocabulary.size=80"]
    settings = [f"output_dir={tmp_path}/run", f"data.train=[{manifest}]", *pieces]
    small = prepare_trial(load_config(recipe, settings), 1)
    assert [utterance.text for utterance in read_manifest(small.data.train[0])] == [lines[0]["text"]]
    model, train_corpus, _ = prepare_training(small)
    assert len(model.vocabulary) == 80
    assert len(train_corpus.examples) == 1
