"""Batches that the memory does not hold: the same training from parts, and a sentence where no part is small enough."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pytest
import torch
from short_trainings import make_config, make_module, read_checkpoint
from torch import Tensor

from asr.batchsize import Sizes, Trial, _is_enough
from asr.cli import main
from asr.errors import AsrError
from asr.learning import CTCTrainingModule
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.recipe import load_config
from asr.splitting import MemoryLimit
from asr.training import train

MANIFEST = Path(__file__).parents[1] / "samples" / "manifest.jsonl"
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB."
SETTINGS = [
    f"data.train=[{MANIFEST}]",
    f"data.valid=[{MANIFEST}]",
    "model.frontend.num_mels=16",
    "model.encoder={conv_channels: 4, num_layers: 2, hidden_size: 16, dropout: 0}",
    "data={batch_seconds: 60, max_seconds: 20, num_workers: 0}",
    "trainer={epochs: 2, accelerator: cpu, precision: 32-true}",
]


class FullInBackward(torch.autograd.Function):
    """The identity, whose gradient does not fit into the memory."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError(OUT_OF_MEMORY)


@pytest.fixture(params=["forward", "backward"])
def small_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine that holds [0] frames in training, and runs out of memory in that pass; [1:] is what was computed."""
    whole, frames = CTCModel.log_probs_of_features, [0]

    def log_probs(model: CTCModel, features: Tensor, feature_lengths: Tensor) -> tuple[Tensor, Tensor]:
        size = features.shape[0] * features.shape[1]
        is_full = model.training and size > frames[0]
        if is_full and request.param == "forward":
            raise RuntimeError(OUT_OF_MEMORY)
        outputs, lengths = whole(model, features, feature_lengths)
        if is_full:
            outputs = FullInBackward.apply(outputs)  # type: ignore[no-untyped-call]
        elif model.training:
            frames.append(size)
        return outputs, lengths

    monkeypatch.setattr(CTCModel, "log_probs_of_features", log_probs)
    return frames


def run(output_dir: Path, *overrides: str) -> CTCModel:
    return load_model(train(load_config(None, [f"output_dir={output_dir}", *SETTINGS, *overrides])))


def test_parts_of_a_batch_have_its_outputs_and_gradients(make_model: Callable[[], CTCModel]) -> None:
    model = make_model()
    torch.manual_seed(0)
    features, lengths = torch.randn(5, 120, model.config.frontend.num_mels), torch.tensor([120, 90, 7, 64, 119])
    results = []
    for most_frames in (math.inf, 3 * 120, 1):
        limit = MemoryLimit()
        limit.most_frames = most_frames
        model.zero_grad()
        log_probs, steps = limit.log_probs(model, features, lengths)
        log_probs.square().mean().backward()
        results.append([steps, log_probs.detach(), *(parameter.grad for parameter in model.parameters())])
    for parts in results[1:]:
        for one, other in zip(results[0], parts, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_training_in_too_little_memory_equals_one_with_enough(
    small_memory: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asr")
    small_memory[0] = 10**9
    whole = run(tmp_path / "whole")
    assert "fit into the memory" not in caplog.text
    small_memory[:] = [max(small_memory[1:]) // 2]
    parts = run(tmp_path / "parts")
    assert "data.batch_seconds=" in caplog.text
    assert max(small_memory[1:]) <= small_memory[0]
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_with_two_views_of_each_utterance_the_advice_is_of_the_data(
    small_memory: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_memory[0] = 10**9
    run(tmp_path / "whole", "augment.consistency_weight=0.2", "trainer.epochs=1")
    small_memory[:] = [max(small_memory[1:]) // 2]
    run(tmp_path / "parts", "augment.consistency_weight=0.2", "trainer.epochs=1")
    at_once, advised = re.findall(r"at most (\d+) s .*data\.batch_seconds=(\d+)", caplog.text)[0]
    assert int(advised) == pytest.approx(int(at_once) / 2, abs=1)


def test_an_utterance_that_does_not_fit_alone_is_told(small_memory: list[int], tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"one utterance of \d+ s does not fit; lower data.max_seconds: CUDA out of"):
        run(tmp_path / "run")


def test_what_is_computed_again_draws_as_the_first_time_and_the_limit_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws: list[Tensor] = []
    step = CTCTrainingModule.training_step

    def too_much_at_first(module: CTCTrainingModule, batch: Any, batch_idx: int) -> Tensor:
        draws.append(torch.rand(1))
        loss = step(module, batch, batch_idx)
        if len(draws) == 1:
            raise RuntimeError(OUT_OF_MEMORY)
        return loss

    monkeypatch.setattr(CTCTrainingModule, "training_step", too_much_at_first)
    train(make_config(tmp_path, "trainer.epochs=1"))
    assert draws[0] == draws[1]
    assert len({float(draw) for draw in draws}) == len(draws) - 1
    kept = read_checkpoint(tmp_path / "last.ckpt")
    module = make_module(make_config(tmp_path))
    module.on_load_checkpoint(kept)
    assert 0 < module.memory.most_frames == kept["most_frames"] < math.inf


def test_other_errors_are_left_alone() -> None:
    def fail() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        MemoryLimit().fit(fail, 0.01)


def test_where_other_processes_wait_nothing_is_computed_again() -> None:
    def fail() -> None:
        calls.append(1)
        raise RuntimeError(OUT_OF_MEMORY)

    calls: list[int] = []
    with pytest.raises(AsrError, match=r"lower data\.batch_seconds: CUDA out of memory"):
        MemoryLimit().fit(fail, 0.01, may_split=False)
    assert calls == [1]


@pytest.fixture
def recipe(tmp_path: Path) -> list[str]:
    (tmp_path / "empty.yaml").touch()
    return ["train", str(tmp_path / "empty.yaml"), f"output_dir={tmp_path}/run", *SETTINGS]


def sizes(printed: str) -> list[list[str]]:
    """The rows of the table of batch sizes."""
    return [line.split() for line in printed.splitlines()[1:] if "=" not in line]


def test_find_batch_prints_the_speed_of_sizes_and_writes_nothing(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*recipe, "--find-batch"]) == 0
    printed = capsys.readouterr().out
    assert "smallest that is as fast as any: data.batch_seconds=" in printed
    assert "less a reserve" not in printed
    seconds = [float(row[0]) for row in sizes(printed)]
    assert seconds == [seconds[0] * 2**number for number in range(len(seconds))]
    assert all(float(rate) > 0 and float(memory) > 0 for _, rate, memory in sizes(printed))
    assert not (tmp_path / "run").exists()


def test_find_batch_finds_the_largest_that_fits(
    small_memory: list[int], recipe: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.batchsize._is_enough", lambda trials: False)  # as on a GPU
    small_memory[0] = 2000  # the longest utterance takes 586, 651 at speed 0.9: three fit
    assert main([*recipe, "--find-batch"]) == 0
    printed = capsys.readouterr().out
    fitting = [float(row[0]) for row in sizes(printed) if len(row) == 3]
    too_large = [float(row[0]) for row in sizes(printed) if "fit" in row]
    assert fitting
    assert too_large
    assert max(fitting) < min(too_large) <= 1.2 * max(fitting)
    assert f"largest that fits, less a reserve: data.batch_seconds={0.9 * max(fitting):.0f}" in printed


def test_find_batch_tells_where_nothing_fits(
    small_memory: list[int], recipe: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*recipe, "--find-batch"]) == 1
    assert "does not fit into the memory; lower data.max_seconds" in capsys.readouterr().err


def test_find_batch_tells_what_else_is_wrong_as_a_training_does(
    recipe: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = (f"{first}{second} {first}{second}" for first in ascii_uppercase for second in "ABCDEF")
    (tmp_path / "lexicon.txt").write_text("\n".join(entries), encoding="utf-8")
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={tmp_path}/lexicon.txt"]
    assert main([*recipe, *hears, "--find-batch"]) == 1
    assert "are more than 256: set optimizer.mmi_share=0" in capsys.readouterr().err


def test_the_smallest_of_the_fast_sizes_is_the_best() -> None:
    rates = {10: 90, 20: 99, 40: 100, 80: 0}
    trials = [Trial(seconds, rate, 1, on_gpu=True, fits=rate > 0) for seconds, rate in rates.items()]
    sizes = Sizes(trials, max_seconds=20.0)
    assert (sizes.best.batch_seconds, sizes.largest.batch_seconds) == (20, 40)
    assert "data.batch_seconds=36\n" in sizes.summary(), "a tenth of what fits is kept free"
    assert sizes.summary().endswith("data.batch_seconds=20")
    assert Sizes(trials, max_seconds=30.0).summary().endswith("data.batch_seconds=20 data.max_seconds=20")


@pytest.mark.parametrize(
    ("rates", "gigabytes", "on_gpu", "is_enough"),
    [
        ([100], 1, False, False),
        ([100, 106], 1, False, False),
        ([100, 103], 1, False, True),
        ([100, 200], 2.1, False, True),
        ([100, 94], 2.1, True, False),
    ],
    ids=["the first", "faster", "hardly faster", "twice as much is half of the memory", "a GPU"],
)
def test_larger_batches_are_tried_while_they_are_faster_and_leave_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, rates: list[int], gigabytes: float, on_gpu: bool, is_enough: bool
) -> None:
    monkeypatch.setattr("asr.batchsize._physical_memory", lambda: 8e9)
    trials = [Trial(10, rate, int(gigabytes * 1e9), on_gpu=on_gpu, fits=True) for rate in rates]
    assert _is_enough(trials) == is_enough


def test_memory_that_ends_before_the_model_is_told_as_that() -> None:
    limit = MemoryLimit()

    def compute() -> None:
        raise RuntimeError(OUT_OF_MEMORY)

    with pytest.raises(AsrError, match=r"^the features of a batch do not fit into the memory; lower data.batch_sec"):
        limit.fit(compute, 0.01)
