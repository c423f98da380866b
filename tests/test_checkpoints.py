"""Checkpoints: when they are written, and that a kill, a damage or a full disk leaves one to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from short_trainings import Interrupt, assert_same_run, make_config, make_module, read_checkpoint, train_with

import asr.checkpoints
import asr.training
from asr.check import CheckedCorpus
from asr.checkpoints import find_checkpoint
from asr.config import TrainConfig
from asr.errors import AsrError
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


class FiveMinutes(lightning.Callback):
    """A clock by which the sixth step takes five minutes; the run is stopped before the seventh."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.now = 300.0 if trainer.global_step == 6 else 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        if self.now:
            raise SystemExit


@pytest.mark.parametrize(("minutes", "saved"), [(4.9, 6), (5.1, 4)])
def test_a_checkpoint_is_written_every_so_many_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, saved: int
) -> None:
    clock = FiveMinutes()
    monkeypatch.setattr(asr.checkpoints, "time", clock)
    monkeypatch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
    with pytest.raises(SystemExit):
        train_with(monkeypatch, clock, make_config(tmp_path, f"trainer.checkpoint_minutes={minutes}"))
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == saved


@pytest.mark.slow
@pytest.mark.parametrize("call", [2, 4, 5, 6, 10])
def test_a_killed_run_with_checkpoints_inside_epochs_loses_one_step_and_equals_a_whole_one(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    monkeypatch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
    config = make_config(tmp_path, "trainer.checkpoint_minutes=0")
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_end", call), config)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == call - 1
    train(config, resume=True)
    assert_same_run(finished_run, tmp_path)


def test_a_kill_between_the_two_checkpoints_of_an_epoch_does_not_cost_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = asr.checkpoints.write_checkpoint, iter(range(1, 100))

    def killed(*arguments: Any) -> None:
        if next(calls) == 3:  # before the validation, behind it, and here
            raise KeyboardInterrupt
        write(*arguments)

    config = make_config(tmp_path, "trainer.epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr(asr.checkpoints, "write_checkpoint", killed)
        patch.setattr(asr.checkpoints.Checkpoints, "on_exception", lambda *_: None)  # as kill -9 leaves it
        with pytest.raises(SystemExit):
            train(config)
    train(config, resume=True)
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in ("best.ckpt", "last.ckpt")] == [4, 4]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    config = make_config(tmp_path, "trainer.checkpoint_minutes=0")
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), config)
    last = tmp_path / "last.ckpt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:10000])
    else:
        last.unlink()  # killed between two renames
    train(config, resume=True)
    assert ("last.ckpt is damaged and left out" in caplog.text) == (damage == "cut")
    assert_same_run(finished_run, tmp_path)


def test_a_model_file_that_is_gone_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path, "trainer.epochs=2")
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 6), config)
    (tmp_path / "model.safetensors").unlink()
    load = asr.checkpoints.BestModelFile.load_state_dict
    monkeypatch.setattr(
        asr.checkpoints.BestModelFile,
        "load_state_dict",
        lambda self, state: load(self, {**state, "best_wer": 0.0}),  # nothing is better
    )
    assert train(config, resume=True).exists()
    assert "model.safetensors is gone; the next validation writes it anew" in caplog.text
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(AsrError, match="is gone, and no validation is left to write it"):
        train(config, resume=True)


def test_the_best_of_another_valid_set_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    state = asr.checkpoints.BestModelFile(path, 1).state_dict() | {"best_wer": 0.1, "best_cer": 0.1, "best_loss": 1.0}
    for checksum, best in ((1, (0.1, 0.1, 1.0)), (2, asr.checkpoints.NONE_YET)):
        resumed = asr.checkpoints.BestModelFile(path, checksum)
        resumed.load_state_dict(state)
        assert resumed.best == best
    assert caplog.text.count("the valid set is another one now") == 1


def make_checkpoints(folder: Path) -> asr.checkpoints.Checkpoints:
    return asr.checkpoints.RunCheckpoints(folder, asr.checkpoints.BestModelFile(folder / "model.safetensors"), 10.0)


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_bytes(b"half")
    previous.write_bytes(b"the one before")
    trainer: Any = SimpleNamespace(
        world_size=1,
        is_global_zero=True,
        lightning_module=torch.nn.Linear(1, 1),
        save_checkpoint=lambda path: path.write_bytes(b"the new one"),
    )
    checkpoints = make_checkpoints(tmp_path)
    checkpoints.on_train_start(trainer, lightning.LightningModule())
    checkpoints._save(trainer)
    assert (last.read_bytes(), previous.read_bytes()) == (b"the new one", b"the one before")


def test_a_process_that_is_stopped_alone_does_not_wait_for_the_others_to_save(tmp_path: Path) -> None:
    checkpoints, saved = make_checkpoints(tmp_path), []
    trainer: Any = SimpleNamespace(world_size=2, global_step=5, validating=False, save_checkpoint=saved.append)
    module = make_module(make_config(tmp_path))
    checkpoints._has_begun = True
    checkpoints.on_exception(trainer, module, KeyboardInterrupt())  # the second Ctrl-C, anywhere in a step
    assert saved == []


def test_where_all_checkpoints_are_damaged_it_is_told(tmp_path: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(AsrError, match="no checkpoint there can be read"):
        train(make_config(tmp_path), resume=True)


@pytest.mark.parametrize("place", range(-60, 0, 3))
def test_no_damage_to_a_checkpoints_directory_raises(finished_run: Path, tmp_path: Path, place: int) -> None:
    content = bytearray((finished_run / "last.ckpt").read_bytes())
    content[place] ^= 0xFF
    (tmp_path / "last.ckpt").write_bytes(content)
    shutil.copy(finished_run / "last.ckpt", tmp_path / "previous.ckpt")
    assert find_checkpoint(tmp_path) in (tmp_path / "last.ckpt", tmp_path / "previous.ckpt")


def test_a_broken_write_leaves_the_last_checkpoint_whole(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    shutil.copytree(finished_run, tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()

    def fill_the_disk(trainer: lightning.Trainer, path: Path, *_: Any) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", fill_the_disk)
    with pytest.raises(
        AsrError, match=r"last\.ckpt: the checkpoint cannot be written \(No space left on device\); make"
    ):
        train(make_config(tmp_path / "run", "trainer.epochs=4"), resume=True)
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert f"--resume continues from {tmp_path}/run/last.ckpt" in caplog.text
    assert list((tmp_path / "run").glob("*.tmp")) == [], "it would fill the disk"


def test_where_no_checkpoint_could_be_written_there_is_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", fail_to_save)
    with pytest.raises(AsrError, match=r"last\.ckpt: the checkpoint cannot be written \(No space left on device\)"):
        train(make_config(tmp_path))
    assert "stopped at step 4; there is nothing to resume: start again" in caplog.text
    assert "--resume" not in caplog.text


def fail_to_save(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("epochs_before", [0, 1])
def test_weights_that_diverged_take_the_place_of_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, epochs_before: int
) -> None:
    class Diverge(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any) -> None:
            if trainer.current_epoch == epochs_before:
                with torch.no_grad():
                    next(module.parameters()).fill_(1e30)

    caplog.set_level("INFO")
    with pytest.raises(AsrError, match="the training diverged; lower its learning rate"):
        train_with(monkeypatch, Diverge(), make_config(tmp_path))
    if epochs_before:
        assert f"--resume continues from {tmp_path}/last.ckpt" in caplog.text
        train(make_config(tmp_path, "optimizer.learning_rate=1e-4"), resume=True)
    else:
        assert "there is nothing to resume: start again" in caplog.text
        train(make_config(tmp_path, "optimizer.learning_rate=1e-4"))


def test_a_run_that_came_while_the_data_were_checked_is_not_replaced(
    tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = asr.training.prepare_training

    def prepare_slowly(config: TrainConfig) -> Any:
        shutil.copytree(finished_run, tmp_path / "run")
        return prepare(config)

    monkeypatch.setattr(asr.training, "prepare_training", prepare_slowly)
    with pytest.raises(AsrError, match="holds a run; continue it with --resume"):
        train(make_config(tmp_path / "run"))
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == (finished_run / "last.ckpt").read_bytes()


def test_a_disk_that_is_full_at_a_resume_leaves_the_settings_that_were(tmp_path: Path, full_disk: Any) -> None:
    (tmp_path / "config.yaml").write_text("as it was")
    reports = asr.training._Reports(make_config(tmp_path), CheckedCorpus(), CheckedCorpus())
    with full_disk(), pytest.raises(AsrError, match=r"config\.yaml: cannot be written \(File too large\); make room"):
        reports.on_train_start(None, None)  # type: ignore[arg-type]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["as it was"]
