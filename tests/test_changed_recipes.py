"""A resume by a recipe that has changed: what is taken from it, and what is refused."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from short_trainings import Interrupt, make_config, make_module, read_scalars, sample_lines, train_with, write_lines

from asr.errors import AsrError
from asr.learning import CTCTrainingModule
from asr.optimizers import make_optimizer
from asr.resuming import find_resume_point
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_that_has_done_more_epochs_than_are_wanted_now_is_told(tmp_path: Path, finished_run: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(AsrError, match=r"^trainer\.epochs=1: the run has done 3 already"):
        train(make_config(tmp_path / "run", "trainer.epochs=1"), resume=True)


@pytest.mark.parametrize(
    ("override", "section"), [("model.encoder.hidden_size=8", "model"), ("vocabulary.size=99", "vocabulary")]
)
def test_another_model_cannot_be_resumed(finished_run: Path, override: str, section: str) -> None:
    with pytest.raises(AsrError, match=f"was trained with another {section} section"):
        train(make_config(finished_run, override), resume=True)


@pytest.mark.parametrize(
    ("override", "kept"), [("optimizer.name=muon", "name=adamw"), ("optimizer.frozen_layers=1", "frozen_layers=0")]
)
def test_an_optimizer_of_other_weights_cannot_be_resumed(finished_run: Path, override: str, kept: str) -> None:
    with pytest.raises(AsrError, match=rf"was trained with optimizer\.{kept}; resume it with that"):
        train(make_config(finished_run, "trainer.epochs=4", override), resume=True)


def test_a_run_with_an_average_is_not_resumed_without_one(finished_run: Path) -> None:
    with pytest.raises(AsrError, match=r"was trained with trainer\.average_decay=0\.8; resume it with an average"):
        train(make_config(finished_run, "trainer.average_decay=0"), resume=True)


def test_a_run_from_random_weights_is_not_resumed_as_one_from_a_model(
    tmp_path: Path, finished_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    with pytest.raises(AsrError, match=r"run was trained with initial_model=; resume it with that"):
        train(make_config(run, "initial_model=m.safetensors"), resume=True)
    before = OmegaConf.structured(make_config(run, "initial_model=old.safetensors"))
    (run / "config.yaml").write_text(OmegaConf.to_yaml(before), encoding="utf-8")
    assert find_resume_point(make_config(run, "initial_model=moved.safetensors"), resume=True)
    assert "began with old.safetensors; what is in moved.safetensors is not taken" in caplog.text


def test_a_dictionary_may_have_moved_before_a_resume(tmp_path: Path, finished_run: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    hears = "model.encoder.phoneme_layer=1"
    before = OmegaConf.structured(make_config(run, hears, "vocabulary.pronunciations=a.txt"))
    (run / "config.yaml").write_text(OmegaConf.to_yaml(before), encoding="utf-8")
    assert find_resume_point(make_config(run, hears, "vocabulary.pronunciations=/there/a.txt"), resume=True)
    with pytest.raises(AsrError, match="another vocabulary section"):
        find_resume_point(make_config(run, hears), resume=True)


def test_patience_may_end_at_a_resume_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    stop = Interrupt("on_train_batch_start", 6, RuntimeError)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train_with(monkeypatch, stop, make_config(tmp_path, "trainer.patience=2"))
    train(make_config(tmp_path, "trainer.patience=0", "trainer.epochs=2"), resume=True)
    assert not [warning for warning in recwarn if "ckpt_path" in str(warning.message)]


def test_phonemes_are_not_learned_in_another_way_by_a_resume(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with zipfile.ZipFile(tmp_path / "last.ckpt", "w"):
        pass
    hears = ["model.encoder.phoneme_layer=1", "vocabulary.pronunciations=packaged"]
    for settings in ([], hears):
        before = OmegaConf.structured(make_config(tmp_path, *settings, "optimizer.mmi_share=0.5"))
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(before), encoding="utf-8")
        for share in ("0.9", "0"):
            config = make_config(tmp_path, *settings, f"optimizer.mmi_share={share}")
            if settings and share == "0":
                with pytest.raises(AsrError, match=r"was trained with optimizer\.mmi_share=0\.5; resume it with"):
                    find_resume_point(config, resume=True)
            else:
                assert find_resume_point(config, resume=True) == tmp_path / "last.ckpt"


def test_a_run_whose_pieces_were_learned_from_other_texts_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = sample_lines()
    manifest = write_lines(lines, tmp_path / "train.jsonl")
    pieces = ["vocabulary.kind=sentencepiece", "vocabulary.size=40", f"data.train=[{manifest}]", "trainer.epochs=1"]
    config = make_config(tmp_path / "run", *pieces)
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 3), config)
    lines[0]["text"] = "QUITE QUEER QUESTIONS ABOUT QUICK QUAINT QUILTS"
    write_lines(lines, manifest)
    with pytest.raises(AsrError, match=r"^the training texts have changed, and their pieces with them; start with"):
        train(config, resume=True)


def test_a_resume_that_fails_leaves_all_as_it_was(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    names = ("last.ckpt", "previous.ckpt", "best.ckpt", "config.yaml", "data.txt", "model.safetensors")
    before = {name: (run / name).read_bytes() for name in names}
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW, "load_state_dict", lambda *_: (_ for _ in ()).throw(ValueError("other groups"))
        )
        with pytest.raises(ValueError, match="other groups"):
            train(make_config(run, "trainer.epochs=4", "optimizer.learning_rate=1e-5"), resume=True)
    assert {name: (run / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("is_old", [False, True])
def test_a_resumed_run_takes_the_rates_of_its_recipe(tmp_path: Path, name: str, is_old: bool) -> None:
    """An old checkpoint does not say which weights decay."""

    def begin(*overrides: str) -> tuple[CTCTrainingModule, dict[str, Any]]:
        module = make_module(make_config(tmp_path, f"optimizer.name={name}", *overrides))
        return module, make_optimizer(module.model, module.config.optimizer, 10)

    def step(parts: dict[str, Any]) -> None:
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()

    changed = ("optimizer.learning_rate=1e-5", "optimizer.weight_decay=0.5", "optimizer.beta2=0.7")
    _, before = begin("optimizer.learning_rate=2e-3")
    module, expected = begin(*changed)
    for _ in range(4):
        step(before)
        step(expected)
    scheduler = before["lr_scheduler"]["scheduler"]
    checkpoint = {"optimizer_states": [before["optimizer"].state_dict()], "lr_schedulers": [scheduler.state_dict()]}
    for group in checkpoint["optimizer_states"][0]["param_groups"] if is_old else []:
        del group["decays"]
    module.on_load_checkpoint({"vocabulary": module.model.vocabulary.to_dict(), **checkpoint})
    _, resumed = begin(*changed)
    resumed["optimizer"].load_state_dict(checkpoint["optimizer_states"][0])
    resumed["lr_scheduler"]["scheduler"].load_state_dict(checkpoint["lr_schedulers"][0])
    for _ in range(6):
        for ours, theirs in zip(resumed["optimizer"].param_groups, expected["optimizer"].param_groups, strict=True):
            assert ours["lr"] == pytest.approx(theirs["lr"])
            for key in ("decays", "weight_decay", "betas"):
                assert ours[key] == theirs[key]
        step(resumed)
        step(expected)


def test_a_run_that_goes_on_longer_has_the_longer_schedules_rate_from_its_first_step_on(
    tmp_path: Path, finished_run: Path
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    config = make_config(run, "trainer.epochs=5")
    train(config, resume=True)
    parts = make_optimizer(make_module(config).model, config.optimizer, 20)
    planned = []
    for _ in range(20):
        planned.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    rates = [values[-1] for _, values in sorted(read_scalars(run)["lr"].items())]
    assert rates[12:] == pytest.approx(planned[12:])
