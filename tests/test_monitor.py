"""What TensorBoard shows of a training."""

from __future__ import annotations

import itertools
import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from short_trainings import MANIFEST, Interrupt, make_config, read_checkpoint, read_scalars, train_with
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asr.data import Batch
from asr.manifest import read_manifest
from asr.monitor import TrainingMonitor
from asr.training import train


def test_tensorboard_gets_every_promised_curve_and_the_transcripts(finished_run: Path) -> None:
    scalars = read_scalars(finished_run)
    steps = int(read_checkpoint(finished_run / "last.ckpt")["global_step"])
    by_step = ["train/loss", "train/gradient_norm", "train/impossible_utterances", "lr"]
    speeds = ["utterances_per_second", "audio_seconds_per_second", "data_wait_share"]
    for tag in by_step + [f"speed/{name}" for name in speeds]:
        assert list(scalars[tag]) == list(range(steps)), tag
    for tag in ("loss", "wer", "cer", "blank_share", "empty_hypothesis_share"):
        assert len(scalars[f"valid/{tag}"]) == 3, tag
    assert all(0 <= value <= 1 for values in scalars["speed/data_wait_share"].values() for value in values)
    (path,) = (finished_run / "tensorboard").glob("events*")
    events = EventAccumulator(str(path)).Reload()
    shown = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("valid/transcripts/text_summary")]
    assert len(shown) == 3
    assert all("ref " in text and "hyp " in text for text in shown)


def test_tensorboard_gets_pictures_of_the_augmentation_and_of_how_valid_utterances_are_read(finished_run: Path) -> None:
    (path,) = (finished_run / "tensorboard").glob("events*")
    events = EventAccumulator(str(path), size_guidance={"images": 0}).Reload()
    pictures = {tag: [event.encoded_image_string for event in events.Images(tag)] for tag in events.Tags()["images"]}
    alignments = [f"valid/alignment_{number}" for number in range(2)]
    assert pictures.keys() >= {"train/features", "train/features_augmented", *alignments}
    assert all(len(drawn) == 3 for drawn in pictures.values()), "one an epoch"
    for plain, augmented in zip(pictures["train/features"], pictures["train/features_augmented"], strict=True):
        assert plain != augmented
    assert len(set(pictures["valid/alignment_0"])) == 3, "they change as the model learns"


def test_a_log_gets_a_line_a_minute_and_one_for_each_validation_in_place_of_a_bar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("asr.monitor.time", SimpleNamespace(perf_counter=itertools.count(0, 7).__next__))
    with caplog.at_level(logging.INFO, "asr.monitor"):
        train(make_config(tmp_path))
    lines = [record.getMessage() for record in caplog.records if record.name == "asr.monitor"]
    validations = [line for line in lines if "valid" in line]
    assert [re.sub(r"\d+\.\d", "#", line) for line in validations] == [
        f"epoch {epoch} of 3: valid WER # %, CER # %" for epoch in (1, 2, 3)
    ]
    minutes = [line for line in lines if line not in validations]
    assert 2 <= len(minutes) < 12, "not one a step"
    form = r"epoch \d of 3, batch \d of 4: loss \d+\.\d{3}, 0:\d\d:\d\d left"
    assert all(re.fullmatch(form, line) for line in minutes), minutes
    assert "Epoch 0" not in capsys.readouterr().err


@pytest.mark.parametrize(("stopped_at", "first"), [(7, 3), (5, 1)], ids=["within an epoch", "killed after one"])
def test_the_time_left_of_a_resumed_run_is_that_of_its_own_speed(
    stopped_at: int, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(tmp_path)
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", stopped_at), config)
    if first == 1:
        (tmp_path / "last.ckpt").unlink()  # which a kill does not write: what is left is of the epoch's end
    monkeypatch.setattr("asr.monitor.SECONDS_PER_LINE", 0.0)
    clock = SimpleNamespace(now=0.0)

    class Minutes(lightning.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            clock.now += 60

    monkeypatch.setattr("asr.monitor.time", SimpleNamespace(perf_counter=lambda: clock.now))
    with caplog.at_level(logging.INFO, "asr.monitor"):
        train_with(monkeypatch, Minutes(), config, resume=True)
    left = [match.groups() for line in caplog.messages if (match := re.search(r"batch (\d) of 4.*, (\S+) left", line))]
    places = [*range(first, 5), 1, 2, 3, 4]
    assert left == [(str(place), f"0:0{len(places) - done}:00") for done, place in enumerate(places, start=1)]


def test_speed_in_tensorboard_is_audio_over_time(finished_run: Path) -> None:
    scalars = read_scalars(finished_run)
    pairs = zip(scalars["speed/audio_seconds_per_second"].values(), scalars["speed/utterances_per_second"].values())
    durations = [utterance.duration_seconds for utterance in read_manifest(MANIFEST)]
    for audio_seconds, utterances in pairs:
        assert min(durations) - 0.01 <= audio_seconds[0] / utterances[0] <= max(durations) + 0.01


def test_speeds_are_per_second_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    logged: dict[str, float] = {}
    monkeypatch.setattr("asr.monitor.time", SimpleNamespace(perf_counter=lambda: now[0]))
    module: Any = SimpleNamespace(log_dict=lambda rates, **_: logged.update(rates))
    trainer: Any = SimpleNamespace(global_step=1)
    lengths, none = torch.tensor([32000, 16000]), torch.zeros(2)
    batch = Batch(torch.zeros(2, 9), lengths, none, none, ["", ""], ["a", "b"])
    monitor = TrainingMonitor(16000, log_every_steps=1)
    monitor.on_train_start(trainer, module)
    now[0] = 1.0
    monitor.on_train_batch_start(trainer, module, batch, 0)
    now[0] = 4.0
    monitor.on_train_batch_end(trainer, module, None, batch, 0)
    assert logged == {
        "speed/utterances_per_second": 0.5,
        "speed/audio_seconds_per_second": 0.75,
        "speed/data_wait_share": 0.25,
    }


def test_averaging_the_weights_is_no_waiting_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.training.get_ema_multi_avg_fn", lambda decay: lambda *_: time.sleep(1.0))
    train(make_config(tmp_path, "trainer.epochs=1", "trainer.average_decay=0.9"))
    shares = [value for values in read_scalars(tmp_path)["speed/data_wait_share"].values() for value in values]
    assert max(shares[1:]) < 0.5
