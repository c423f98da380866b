"""The optimizer: which weights it steps in which way, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from short_trainings import make_config, read_checkpoint, read_scalars, train_with

from asr.config import EncoderConfig, ModelConfig, OptimizerConfig
from asr.model import CTCModel
from asr.optimizers import make_optimizer
from asr.vocabulary import CharacterVocabulary

pytestmark = pytest.mark.usefixtures("one_thread")


def test_matrices_decay_and_vectors_do_not(make_model: Callable[[], CTCModel]) -> None:
    model = make_model()
    optimizer = make_optimizer(model, OptimizerConfig(weight_decay=0.3), 100)["optimizer"]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert decay.keys() == {id(parameter) for parameter in named.values()}
    assert {name: decay[id(parameter)] for name, parameter in named.items()} == {
        name: 0.0 if "bias" in name or "norm" in name else 0.3 for name in named
    }


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
def test_muon_steps_each_gate_of_the_recurrent_layers_and_leaves_the_rest_to_adamw(cell: str) -> None:
    encoder = EncoderConfig(cell=cell, hidden_size=8, num_layers=2, conv_channels=4)
    model = CTCModel(ModelConfig(encoder=encoder), CharacterVocabulary())
    optimizer = make_optimizer(model, OptimizerConfig(name="muon"), total_steps=10)["optimizer"]
    gates, *others = optimizer.param_groups
    assert {parameter.shape[0] // gates["blocks"] for parameter in gates["params"]} == {8}
    assert len(gates["params"]) == 2 * 2 * 2
    assert [group["blocks"] for group in others] == [0, 0]
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_memory_of_squared_gradients_is_the_settings(make_model: Callable[..., CTCModel], name: str) -> None:
    optimizer = make_optimizer(make_model(), OptimizerConfig(name=name, beta2=0.7), 10)["optimizer"]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.7)}


@pytest.mark.parametrize(("warmup_share", "warmup"), [(0.1, 20), (0.25, 50), (0.0, 1)])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(
    make_model: Callable[[], CTCModel], warmup_share: float, warmup: int
) -> None:
    parts = make_optimizer(make_model(), OptimizerConfig(learning_rate=0.5, warmup_share=warmup_share), 200)
    rates = []
    for _ in range(200):
        rates.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(0.5 / warmup)
    assert max(rates) == rates[warmup - 1] == 0.5
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert parts["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0)


def test_the_schedule_spans_the_whole_training(finished_run: Path) -> None:
    rates = [values[0] for values in read_scalars(finished_run)["lr"].values()]
    assert max(rates) == pytest.approx(2e-3)
    assert read_checkpoint(finished_run / "last.ckpt")["lr_schedulers"][0]["_last_lr"] == [0.0, 0.0]


class Norms(lightning.Callback):
    """The lengths of the gradients that the optimizer stepped with."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        self.norms += [float(torch.nn.utils.get_total_norm(gradients))] if gradients else []


def test_longer_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stepped_with = Norms()
    train_with(monkeypatch, stepped_with, make_config(tmp_path, "trainer.epochs=1", "optimizer.clip_norm=0.01"))
    found = [values[0] for values in read_scalars(tmp_path)["train/gradient_norm"].values()]
    assert stepped_with.norms
    assert max(stepped_with.norms) <= 0.01001 < min(found)
