"""Training by two processes: as one process would, with the same batches together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from asr.cli import main
from asr.modelfile import load_model
from asr.plotting import read_curves

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
    curves = [read_curves(folder) for folder in (one, two)]
    for tag in ("train/loss", "valid/wer", "valid/cer"):
        (steps, values), (other_steps, other_values) = (curve[tag] for curve in curves)
        assert steps.tolist() == other_steps.tolist()
        assert values == pytest.approx(other_values, abs=1e-5), tag
    weights = [load_model(folder / "model.safetensors").state_dict() for folder in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=2e-3)  # the files hold half precision


def find_process(rank: int, output_dir: Path) -> int:
    """The number of the process of that rank that trains into a folder."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            arguments, environment = (Path(f"/proc/{number}/{name}").read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended
            continue
        if f"output_dir={output_dir}".encode() in arguments and f"RANK={rank}".encode() in environment.split(b"\0"):
            return int(number)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the process to kill in /proc")
def test_torchrun_starts_a_killed_process_again_and_the_weights_are_those_of_an_undisturbed_run(
    recipe: str, tmp_path: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    settings = [
        "data.batch_seconds=3.5",
        "trainer.epochs=15",
        "trainer.valid_every_epochs=15",
        "trainer.devices=2",
        "--resume",
    ]
    weights = []
    for name in ("killed", "whole"):
        folder, talk = tmp_path / name, tmp_path / f"{name}.txt"
        command = [*launcher, "-m", "asr", "train", recipe, f"output_dir={folder}", "trainer.checkpoint_minutes=0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with talk.open("wb") as stderr:
            running = subprocess.Popen([*command, *settings], cwd=ROOT, env=environment, stderr=stderr)
        try:
            if name == "killed":
                while not (folder / "last.ckpt").exists() and running.poll() is None:
                    time.sleep(0.05)
                os.kill(find_process(1, folder), signal.SIGKILL)
            assert running.wait(timeout=300) == 0
        finally:
            running.terminate()
        assert talk.read_text(encoding="utf-8").count("going on from") == (name == "killed")
        checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 45
        weights.append(checkpoint["state_dict"])
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
