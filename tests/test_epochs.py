"""Epochs: each has every utterance once, in a plan of its own, which a resume goes on with."""

from __future__ import annotations

import gc
import re
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import pytest
from short_trainings import (
    MANIFEST,
    Interrupt,
    Recorder,
    assert_same_run,
    make_config,
    read_scalars,
    sample_lines,
    stop_and_resume,
    train_with,
    write_lines,
)

from asr.errors import AsrError
from asr.manifest import read_manifest, write_manifest
from asr.plan import DurationBatchSampler
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


def write_uneven_manifest(folder: Path) -> tuple[list[str], list[int], list[str]]:
    """Utterances whose plans differ in length: their ids, the batches of four epochs, and the settings."""
    cuts = [
        {"audio": line["audio"], "text": "A", "id": f"{place}", "duration": 0.5 + 0.04 * place}
        for place, line in enumerate(sample_lines() * 4)
    ]
    manifest = write_lines(cuts, folder / "cuts.jsonl")
    durations = [cut["duration"] for cut in cuts]
    for batch_seconds, seed in product((3.0, 3.3, 3.7, 4.1, 4.6, 5.2), range(1, 50)):
        sampler = DurationBatchSampler(durations, batch_seconds, seed=seed)
        counts = [len(list(sampler)) for epoch in range(4) if sampler.set_epoch(epoch) is None]
        if {later > earlier for earlier, later in pairwise(counts) if later != earlier} == {True, False}:
            break
    else:
        pytest.fail("no plans whose epochs grow and shrink")
    sizes = [f"data.batch_seconds={batch_seconds}", "data.max_seconds=3", "trainer.epochs=4", f"trainer.seed={seed}"]
    return [cut["id"] for cut in cuts], counts, [f"data.train=[{manifest}]", *sizes]


def test_every_epoch_has_every_utterance_once_and_a_validation_though_plans_differ_in_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, counts, settings = write_uneven_manifest(tmp_path)
    recorder = Recorder()
    train_with(monkeypatch, recorder, make_config(tmp_path / "run", *settings, "data.num_workers=1"))
    assert [len(batches) for batches in recorder.epochs.values()] == counts
    for batches in recorder.epochs.values():
        assert Counter(name for batch_ids in batches for name in batch_ids) == Counter(ids)
    assert len(read_scalars(tmp_path / "run")["valid/wer"]) == 4
    assert_rate_falls_to_zero_behind_the_last_step(tmp_path / "run", sum(counts))


def assert_rate_falls_to_zero_behind_the_last_step(output_dir: Path, steps: int) -> None:
    rates = [values[-1] for _, values in sorted(read_scalars(output_dir)["lr"].items())]
    assert len(rates) == steps
    assert 0 < rates[-1] < 0.05 * max(rates)


def test_a_resumed_run_equals_a_whole_one_where_plans_differ_in_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counts, settings = write_uneven_manifest(tmp_path)
    train(make_config(tmp_path / "whole", *settings))
    middle_of_another = next(epoch for epoch in range(1, 4) if counts[epoch] != counts[0])
    stop = sum(counts[:middle_of_another]) + 3
    stop_and_resume(monkeypatch, make_config(tmp_path / "stopped", *settings), "on_train_batch_start", stop)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("changed", ["data.batch_seconds=14", "trainer.seed=5", "data.max_seconds=5"])
def test_another_plan_is_refused_in_the_middle_of_an_epoch_and_taken_between_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    middle, between = (make_config(tmp_path / name, "trainer.epochs=2") for name in ("middle", "between"))
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), middle)
    with pytest.raises(AsrError, match=r"^the run was stopped in the middle of an epoch with .*; resume it with that"):
        train(make_config(tmp_path / "middle", "trainer.epochs=2", changed), resume=True)
    train(middle, resume=True)  # it is as it was
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_epoch_start", 2), between)
    train(make_config(tmp_path / "between", "trainer.epochs=2", changed), resume=True)


def test_the_same_utterances_in_another_order_are_another_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = tmp_path / "backwards.jsonl"
    write_manifest(read_manifest(MANIFEST)[::-1], backwards)
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), make_config(tmp_path / "run"))
    with pytest.raises(AsrError, match="in the middle of an epoch with checksum of their order="):
        train(make_config(tmp_path / "run", f"data.train=[{backwards}]"), resume=True)


def test_the_progress_bar_of_a_resumed_epoch_shows_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    config = make_config(tmp_path, "trainer.epochs=2")
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 7), config)
    gc.collect()  # the stopped run's bar draws itself once more when it is freed
    capsys.readouterr()
    train(config, resume=True)
    drawn = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if line.startswith("Epoch 1:")]
    assert any("| 3/4 [" in line for line in drawn)
    assert not any("/? [" in line or "| 1/4 [" in line for line in drawn)
