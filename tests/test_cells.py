"""recipes/cells: which trainings it starts, and what it reads from them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from asr.cli import main
from asr.config import EncoderConfig, ModelConfig
from asr.errors import AsrError
from asr.model import CTCModel
from asr.vocabulary import CharacterVocabulary

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "cells"
MANIFEST = ROOT / "samples" / "manifest.jsonl"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arguments", [[], ["trainer.epochs=2"]])
def test_run_trains_each_model_with_each_seed(tmp_path: Path, arguments: list[str]) -> None:
    fake = tmp_path / "asr"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["sh", str(FOLDER / "run.sh"), *arguments]
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(set(lines)) == 15
    settings = "model.encoder.cell=rnn", "model.encoder.hidden_size=128", "trainer.seed=1"
    assert lines[3].split() == [
        *("train", "recipes/cells/cells.yaml", *settings, "output_dir=runs/cells/rnn-128-1", *arguments)
    ]


def test_the_models_of_equal_size_are_of_equal_size() -> None:
    sizes = {
        (cell, hidden): sum(
            parameter.numel()
            for parameter in CTCModel(
                ModelConfig(encoder=EncoderConfig(8, cell, num_layers=2, hidden_size=hidden)), CharacterVocabulary()
            ).parameters()
        )
        for cell, hidden in (("gru", 128), ("lstm", 111), ("rnn", 215))
    }
    assert max(sizes.values()) < 1.03 * min(sizes.values())


def test_the_table_has_a_row_per_model_over_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        settings = [
            f"data.train=[{MANIFEST}]",
            f"data.valid=[{MANIFEST}]",
            "model.encoder={cell: rnn, hidden_size: 8, num_layers: 1, conv_channels: 4}",
            f"output_dir={tmp_path}/rnn-8-{seed}",
            "trainer={epochs: 2, accelerator: cpu, log_every_steps: 1}",
        ]
        assert main(["train", str(FOLDER / "cells.yaml"), *settings, f"trainer.seed={seed}"]) == 0
    capsys.readouterr()
    table = script("table")
    table.main([str(tmp_path), "--loss", "1000"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| rnn, 8 | 0.0")
    assert row.count("±") == 5
    assert row.endswith("| 2 |")


def test_the_epochs_to_a_loss_lie_between_two_validations() -> None:
    first_below = script("table").first_below
    steps, losses = numpy.array([10, 20, 30]), numpy.array([3.0, 2.0, 1.0])
    assert first_below(steps, losses, 1.5) == pytest.approx(25)
    assert first_below(steps, losses, 4.0) == 10
    assert first_below(steps, losses, 0.5) == float("inf")


def test_a_cell_that_forgets_has_a_gradient_that_fades() -> None:
    gradients = script("gradients")
    samples = [torch.randn(16000 * 9, generator=torch.Generator().manual_seed(0))]
    shares = {}
    for keep in (-4.0, 4.0):
        torch.manual_seed(0)
        model = CTCModel(ModelConfig(encoder=EncoderConfig(4, num_layers=1, hidden_size=8)), CharacterVocabulary())
        with torch.no_grad():
            layer: Any = model.encoder.layers[0]
            layer.forward_cell.bias_ih_l0[8:16] = keep  # of the update gate: how much of its state it keeps
        shares[keep] = gradients.gradient_shares(model.eval().double(), samples)
    assert shares[4.0][1] == shares[-4.0][1] == 1
    assert 0 < shares[-4.0][200] < shares[-4.0][50] < 1e-6 < 1e-3 < shares[4.0][50]


def test_no_picture_is_drawn_of_no_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "cells.svg"
    monkeypatch.setattr(sys, "argv", ["gradients.py", str(MANIFEST), str(picture), "--runs", str(tmp_path)])
    with pytest.raises(AsrError, match="no trainings of seed 1 there"):
        script("gradients").main()
    assert not picture.exists()
