"""On a device that is not the CPU, each stage finds its tensors there, and computes the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import ELSEWHERE, Away, Elsewhere
from short_trainings import make_config, make_module
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.alignment import align
from asr.augment import add_noise
from asr.data import Batch
from asr.model import CTCModel
from asr.optimizers import make_optimizer
from asr.recognition import Recogniser
from asr.transcript import Transcript
from asr.transcription import transcribe

pytestmark = [
    pytest.mark.usefixtures("one_thread", "autocast_elsewhere"),
    pytest.mark.filterwarnings("ignore:You are trying to `self.log"),  # there is no trainer
]


@pytest.fixture
def autocast_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no autocast for the pretended device."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda _, **options: autocast("cpu", **options))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, which the thread of a recognition has too."""
    decode_batch = Recogniser.decode_batch

    def decode_elsewhere(self: Recogniser, *arguments: Any) -> Any:
        with Elsewhere():
            return decode_batch(self, *arguments)

    monkeypatch.setattr(Recogniser, "decode_batch", decode_elsewhere)
    with Elsewhere():
        yield ELSEWHERE


def test_the_pretended_device_refuses_what_is_not_on_it(elsewhere: torch.device) -> None:
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        torch.ones(3, device=elsewhere) + torch.ones(3)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_training_step_is_that_of_the_cpu(
    tmp_path: Path, speech: list[Tensor], elsewhere: torch.device, cell: str
) -> None:
    rows = [speech[0][16000:32000], speech[1][16000:24000]]
    lengths, targets = torch.tensor([len(row) for row in rows]), torch.tensor([[3, 9, 4], [5, 6, 0]])
    waveforms = pad_sequence(rows, batch_first=True)
    batch = Batch(waveforms, lengths, targets, torch.tensor([3, 2]), ["A", "B"], ["a", "b"])
    noisy = ["augment.noise_probability=1", "augment.speeds=[0.9]", "augment.consistency_weight=0.5"]
    settings = ["optimizer.name=muon", "model.encoder.dropout=0", f"model.encoder.cell={cell}", *noisy]
    results = []
    for device in (torch.device("cpu"), elsewhere):
        module = make_module(make_config(tmp_path, *settings)).to(device)
        optimizer = make_optimizer(module.model, module.config.optimizer, 10)["optimizer"]
        loss = module.training_step(batch.to(device), 0)
        loss.backward()
        gradients = [weight.grad.cpu() for weight in module.parameters()]
        optimizer.step()
        assert all(isinstance(weight.data, Away) == (device == elsewhere) for weight in module.parameters())
        with torch.no_grad():
            module.validation_step(batch.to(device), 0)
        results.append((loss.item(), gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)


def test_noise_is_drawn_on_the_cpu_and_coloured_on_the_device(
    elsewhere: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform, transformed = torch.fft.rfft, []
    monkeypatch.setattr(torch.fft, "rfft", lambda samples: transformed.append(samples) or transform(samples))
    waveforms, lengths = torch.sin(torch.arange(4000.0)).repeat(2, 1), torch.tensor([4000, 3000])
    noisy = [
        add_noise(waveforms.to(device), lengths.to(device), 1.0, 10.0, 20.0, torch.Generator().manual_seed(0)).cpu()
        for device in (torch.device("cpu"), elsewhere)
    ]
    torch.testing.assert_close(*noisy)
    assert isinstance(transformed[1], Away)


def test_a_recording_has_the_words_and_times_of_the_cpu(
    model: CTCModel, sample_paths: list[Path], elsewhere: torch.device, make_model: Any
) -> None:
    away = make_model().to(elsewhere)
    assert timed(transcribe(sample_paths[0], model=away)) == timed(transcribe(sample_paths[0], model=model))
    expected, found = (align(each, sample_paths[0], "MISTER QUILTER IS THE APOSTLE") for each in (model, away))
    assert timed(found) == timed(expected)


def timed(transcript: Transcript) -> list[tuple[str, float, float]]:
    return [(word.text, word.start_seconds, word.end_seconds) for word in transcript.words]
