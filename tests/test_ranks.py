"""Training by two processes: as one process would, with the same batches together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from asr.cli import main
from asr.config import TrainerConfig
from asr.engine import quiet_lightning
from asr.errors import AsrError
from asr.modelfile import load_model
from asr.plotting import read_curves
from asr.ranks import NEW_STORE, _is_by_slurm, _is_by_torchrun, is_first_process, process_arguments

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
SECONDS = 1.75

RECIPE = """
data: {{train: [{manifest}], valid: [{manifest}], num_workers: 0, max_seconds: 3.5, shortest_first: false}}
model: {{frontend: {{num_mels: 16}}, encoder: {{num_layers: 1, hidden_size: 16, conv_channels: 4, dropout: 0.0}}}}
augment: {{speeds: [1.0], gain_db: 0, noise_probability: 0, num_frequency_masks: 0, num_time_masks: 0}}
trainer: {{epochs: 3, accelerator: cpu, precision: 32-true, log_every_steps: 1, average_decay: 0.5}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Of twelve pieces of equal length and unequal texts, so that both plans hold the same four in a step."""
    lines = []
    for line in (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for number, text in enumerate((entry["text"].split()[0], " ".join(entry["text"].split()[1:5]))):
            piece = {"id": f"{entry['id']}-{number}", "audio": str(SAMPLES / entry["audio"]), "text": text}
            lines.append(json.dumps({**piece, "start": SECONDS * number, "duration": SECONDS}))
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(manifest=tmp_path / "manifest.jsonl"))
    return str(tmp_path / "recipe.yaml")


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_from_the_same_batches(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["train", recipe, f"output_dir={one}", "data.batch_seconds=7"]) == 0
    command = [sys.executable, "-m", "asr", "train", recipe, f"output_dir={two}", "data.batch_seconds=3.5"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "trainer.devices=2"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two}/model.safetensors\n", "one of them speaks"
    assert done.stderr.count("12 utterances") == 2, "train and valid, once each"
    assert "sync_dist" not in done.stderr, "Lightning's advice to whoever wrote this"
    curves = [read_curves(folder) for folder in (one, two)]
    for tag in ("train/loss", "valid/wer", "valid/cer"):
        (steps, values), (other_steps, other_values) = (curve[tag] for curve in curves)
        assert steps.tolist() == other_steps.tolist()
        assert values == pytest.approx(other_values, abs=1e-5), tag
    weights = [load_model(folder / "model.safetensors").state_dict() for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-3)  # the files hold half precision


@pytest.mark.parametrize("name", ["wer", "cer", "per"])
def test_rates_that_are_pooled_over_the_processes_bring_no_advice_to_pool_them(name: str) -> None:
    with quiet_lightning(), warnings.catch_warnings(record=True) as caught:
        warnings.warn(f"It is recommended to use `self.log('valid/{name}', ..., sync_dist=True)` when", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else"]


ALONE = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID")
SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "overrides", "devices", "nodes"),
    [
        ({}, {"accelerator": "cpu"}, "auto", 1),
        ({}, {"devices": "2"}, 2, 1),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, {}, 8, 2),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, {"devices": "1"}, 1, 2),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "4"}, {}, 4, 2),
    ],
)
def test_a_launcher_tells_the_number_of_processes_and_machines(
    environment: dict[str, str],
    overrides: dict[str, str],
    devices: str | int,
    nodes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = process_arguments(TrainerConfig(**overrides))
    assert (arguments["devices"], arguments["num_nodes"]) == (devices, nodes)
    assert (arguments["strategy"] == "auto") == (nodes == 1 and devices == "auto")
    assert [plugin.auto_requeue for plugin in arguments["plugins"]] == [False] * ("SLURM_NTASKS" in environment)


def test_more_processes_than_there_are_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AsrError, match=r"^trainer\.devices=2: 1 GPU here; set as many, or trainer\.accelerator=cpu$"):
        process_arguments(TrainerConfig(devices="2"))
    assert process_arguments(TrainerConfig(devices="2", accelerator="cpu"))["devices"] == 2


def test_tasks_of_slurm_that_see_a_gpu_each_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**SLURM, "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AsrError, match=r"each of 4 tasks must see the GPUs of all, but there is 1 GPU here; ask SLURM"):
        process_arguments(TrainerConfig())
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(AsrError, match=r"told --nodes=2 and --ntasks=1; tell it --ntasks-per-node"):
        process_arguments(TrainerConfig())


def test_another_number_of_devices_than_torchrun_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(AsrError, match=r"^trainer\.devices=1: torchrun started 2 processes on this machine; set"):
        process_arguments(TrainerConfig(devices="1", accelerator="cpu"))


@pytest.mark.parametrize(
    ("without", "devices", "message"),
    [
        ("", "2", r"^trainer\.devices=2: SLURM started 4 processes on this machine; set"),
        ("SLURM_STEP_ID", "auto", r"^this job of SLURM has 8 tasks, and one is running; start them with srun"),
        ("SLURM_NTASKS_PER_NODE", "auto", r"^SLURM was told --ntasks=8; tell it --nodes and --ntasks-per-node$"),
    ],
)
def test_a_job_of_slurm_that_would_wait_for_ever_is_refused(
    without: str, devices: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**SLURM, "SLURM_NTASKS_PER_NODE": "4"}.items():
        if name == without:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(AsrError, match=message):
        process_arguments(TrainerConfig(devices=devices, accelerator="cpu"))


@pytest.mark.parametrize(
    ("restarts", "new_store", "warns"), [("0", None, False), ("3", None, True), ("3", "0", True), ("3", "1", False)]
)
def test_a_restart_that_may_wait_for_the_dead_is_warned_of(
    restarts: str, new_store: str | None, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.delenv(NEW_STORE, raising=False)
    if new_store is not None:
        monkeypatch.setenv(NEW_STORE, new_store)
    process_arguments(TrainerConfig(accelerator="cpu"))
    assert (f"start it as {NEW_STORE}=1 torchrun" in caplog.text) == warns


LAUNCHERS = [
    ({"TORCHELASTIC_RUN_ID": "x", "SLURM_PROCID": "0"}, "RANK"),
    ({}, "LOCAL_RANK"),
    ({**SLURM, "RANK": "0"}, "SLURM_PROCID"),
    ({**SLURM, "SLURM_JOB_NAME": "bash"}, "LOCAL_RANK"),
]


@pytest.mark.parametrize(("environment", "name"), LAUNCHERS)
def test_one_process_speaks(environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ALONE:
        monkeypatch.delenv(each, raising=False)
    for each, value in environment.items():
        monkeypatch.setenv(each, value)
    assert is_first_process()
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv(name, rank)
        assert is_first_process() == speaks


@pytest.mark.parametrize(("environment", "name"), LAUNCHERS)
def test_launchers_are_found_as_lightning_finds_them(
    environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ALONE:
        monkeypatch.delenv(each, raising=False)
    for each, value in environment.items():
        monkeypatch.setenv(each, value)
    assert _is_by_torchrun() == TorchElasticEnvironment.detect() == (name == "RANK")
    assert _is_by_slurm() == SLURMEnvironment.detect() == (name == "SLURM_PROCID")


def test_the_numbers_of_other_programs_do_not_silence_a_training(recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asr", "train", recipe, f"output_dir={tmp_path}/run", "trainer.epochs=1"]
    stray = {"RANK": "worker-1", "SLURM_PROCID": "1", "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in ALONE} | stray
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/run/model.safetensors\n"), done.stderr
    assert (tmp_path / "run" / "config.yaml").exists()
    assert "train/loss" in read_curves(tmp_path / "run")


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]


@pytest.mark.slow
def test_a_run_whose_process_is_killed_goes_on_by_itself_and_ends_with_the_same_weights(
    recipe: str, tmp_path: Path
) -> None:
    settings = ["data.batch_seconds=3.5", "trainer.epochs=60", "trainer.valid_every_epochs=30"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", NEW_STORE: "1"}
    for name in ("whole", "killed"):
        output_dir = tmp_path / name
        training = ["-m", "asr", "train", recipe, f"output_dir={output_dir}", *settings, "trainer.checkpoint_minutes=0"]
        talk = tmp_path / f"{name}.txt"
        with talk.open("w") as stderr:
            process = subprocess.Popen([*TORCHRUN, *training, "--resume"], cwd=ROOT, env=environment, stderr=stderr)
        if name == "killed":
            wait_for(output_dir / "previous.ckpt")
            kill_one_of_two(process.pid)
        assert process.wait(timeout=300) == 0, talk.read_text()
    assert "going on from" in talk.read_text(), "it was killed in the middle"
    states = [load_model(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "killed")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_one_process_of_two_ends_both_with_a_checkpoint(recipe: str, tmp_path: Path, number: int) -> None:
    settings = ["data.batch_seconds=3.5", "trainer.epochs=4000", "trainer.valid_every_epochs=4000"]
    training = ["-m", "asr", "train", recipe, f"output_dir={tmp_path}/run", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", NEW_STORE: "1"}
    talk = tmp_path / "talk.txt"
    with talk.open("w") as stderr:
        process = subprocess.Popen([*TORCHRUN[:-1], *training], cwd=ROOT, env=environment, stderr=stderr)
    wait_for(tmp_path / "run" / "last.ckpt")  # of the end of the first epoch
    time.sleep(1)
    saved_at = (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), number)
    process.wait(timeout=120)
    assert (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns > saved_at
    assert "--resume continues from" in talk.read_text()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def kill_one_of_two(launcher: int) -> None:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
