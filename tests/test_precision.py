"""On a GPU, float32 is not rounded to TF32: nothing here needs one, for what is set is seen without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from short_trainings import make_config, train_with
from torch.backends import cudnn

from asr.devices import full_float32
from asr.model import CTCModel

EXACT, ROUNDED = ["ieee", "ieee"], ["tf32", "tf32"]


def set_now() -> list[str]:
    return [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]


@pytest.fixture(params=[True, False])
def before(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What is set at first, which must be so at the end too."""
    torch.backends.cudnn.allow_tf32 = request.param
    yield (expected := set_now())
    assert set_now() == expected
    assert torch.backends.cudnn.allow_tf32 == request.param, "torch's older name for it can be read still"
    torch.backends.cudnn.allow_tf32 = True


def seen_in_forward(model: CTCModel) -> list[str]:
    seen: list[list[str]] = []
    hook = model.head.register_forward_hook(lambda *_: seen.append(set_now()))
    model(torch.zeros(1, 8000), torch.tensor([8000]))
    hook.remove()
    return seen[0]


def test_what_is_recognised_is_computed_in_full_float32(model: CTCModel, before: list[str]) -> None:
    with torch.inference_mode():
        assert seen_in_forward(model) == EXACT


def test_a_forward_pass_that_may_be_differentiated_leaves_the_setting_to_its_caller(
    model: CTCModel, before: list[str]
) -> None:
    assert seen_in_forward(model) == before


def test_the_setting_is_given_back_when_the_last_of_several_callers_is_done(before: list[str]) -> None:
    with ExitStack() as second:
        with full_float32():
            second.enter_context(full_float32())
        assert set_now() == EXACT


class Watch(lightning.Callback):
    """What is set in the forward and in the backward passes of a training."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append(set_now())

    def on_after_backward(self, *_: Any) -> None:
        self.seen.append(set_now())


@pytest.mark.usefixtures("one_thread")
def test_a_training_augments_and_learns_in_full_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    train_with(monkeypatch, watch, make_config(tmp_path, "trainer.epochs=1"))
    assert watch.seen == [EXACT] * 8
    assert set_now() == ROUNDED
