"""A training step beside that of the nearest rival's model: Deep Speech 2 as deepspeech.pytorch describes it.

    python benchmarks/rival_step.py [--parameters 6.6] [--batch-seconds 70] [--batches 2] [--repeats 2]

The rival, written here from its description (Amodei et al., 2016): spectrograms of 161 bins; two convolutions of 32
channels, 41 × 11 and 21 × 11, that halve the time once, each with batch norm and a ReLU cut at 20; five bidirectional
recurrent layers over packed sequences whose directions are summed, with batch norm over all steps of a batch between
them; a batch norm and a linear layer. Its hidden size is chosen so that it has as many parameters as our default model.
Both train on the same batches of the samples' audio with CTC, clipping and AdamW, in turns; both compute their features
in the step, without augmentation.

Aim: our step is at least 1.5 times as fast as the rival's with GRUs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import make_parser, medians, report, start
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from training_step import choose_batches, librispeech_durations, write_corpus

from asr.check import check_corpus
from asr.config import DataConfig, ModelConfig
from asr.data import Batch
from asr.features import valid_positions
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.vocabulary import BLANK_ID, CharacterVocabulary

WINDOW, HOP = 320, 160
"""Samples of 16 kHz: 161 bins every 10 ms."""


class DeepSpeech(nn.Module):
    """Waveforms to log-probs, as CTCModel."""

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], hidden_size: int, tokens: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hamming_window(WINDOW))
        first = nn.Conv2d(1, 32, (41, 11), stride=(2, 2), padding=(20, 5))
        second = nn.Conv2d(32, 32, (21, 11), stride=(2, 1), padding=(10, 5))
        self.convolutions = nn.ModuleList(
            nn.Sequential(convolution, nn.BatchNorm2d(32), nn.Hardtanh(0, 20)) for convolution in (first, second)
        )
        sizes = [32 * 41, *[hidden_size] * 4]
        self.cells = nn.ModuleList(cell(size, hidden_size, bidirectional=True) for size in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden_size) for _ in range(5))
        self.head = nn.Linear(hidden_size, tokens, bias=False)

    def forward(self, waveforms: Tensor, sample_lengths: Tensor) -> tuple[Tensor, Tensor]:
        window = self.get_buffer("window")
        spectra = torch.stft(waveforms, WINDOW, HOP, window=window, return_complex=True).abs().log1p()
        mean, deviation = spectra.mean((1, 2), keepdim=True), spectra.std((1, 2), keepdim=True)
        images = ((spectra - mean) / deviation)[:, None]
        lengths = (sample_lengths // HOP) // 2 + 1
        for convolution in self.convolutions:
            images = convolution(images)
            images = images * valid_positions(lengths, images.shape[3])[:, None, None]
        steps = images.flatten(1, 2).permute(2, 0, 1)
        for cell, norm in zip(self.cells, self.norms):
            packed = pack_padded_sequence(steps, lengths, enforce_sorted=False)
            both, _ = pad_packed_sequence(cell(packed)[0])
            steps = norm(both.unflatten(2, (2, -1)).sum(2).flatten(0, 1)).view(*both.shape[:2], -1)
        return self.head(steps).log_softmax(2).transpose(0, 1), lengths


def main() -> None:
    parser = make_parser(__doc__, has_model=False)
    parser.add_argument("--parameters", type=float, help="millions of each rival (default: as many as our model has)")
    parser.add_argument("--batch-seconds", type=float, default=70.0)
    parser.add_argument("--batches", type=int, default=2, help="measured, from the shortest to the longest utterances")
    parser.add_argument("--repeats", type=int, default=2)
    options = start(parser)
    if options.quick:
        options.batches, options.repeats = 1, 1
    ours = CTCModel(ModelConfig(), CharacterVocabulary())
    tokens = len(ours.vocabulary)
    wanted = 1e6 * options.parameters if options.parameters else count_parameters(ours)
    rivals = {name: rival_of_size(cell, wanted, tokens) for name, cell in (("GRU", nn.GRU), ("LSTM", nn.LSTM))}
    models: dict[str, nn.Module] = {"ours": ours, **rivals}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_corpus(Path(folder), librispeech_durations, 300 if options.quick else 1500)
        corpus = check_corpus(read_manifest(manifest), ours, DataConfig(), None)
        batches = choose_batches(corpus, ours, options.batch_seconds, options.batches)
        seconds = medians({name: make_steps(model, batches) for name, model in models.items()}, options.repeats)
    for name, model in models.items():
        size, milliseconds = count_parameters(model) / 1e6, 1000 * seconds[name] / len(batches)
        print(f"{name}: {size:.1f} million parameters, {milliseconds:.0f} ms per step of {options.batch_seconds:g} s")
    report("step of Deep Speech 2 with GRUs / ours", seconds["GRU"] / seconds["ours"], at_least=1.5)
    report("step of Deep Speech 2 with LSTMs / ours", seconds["LSTM"] / seconds["ours"], at_least=1.5)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def rival_of_size(cell: type[nn.GRU] | type[nn.LSTM], parameters: float, tokens: int) -> DeepSpeech:
    """The rival with the hidden size, a multiple of 8, whose number of parameters is nearest."""

    def distance(size: int) -> float:
        with torch.device("meta"):  # without weights
            return abs(count_parameters(DeepSpeech(cell, size, tokens)) - parameters)

    return DeepSpeech(cell, min(range(64, 1025, 8), key=distance), tokens)


def make_steps(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """A training step over each of the batches."""
    optimizer = torch.optim.AdamW(model.parameters())

    def steps() -> None:
        for batch in batches:
            log_probs, lengths = model(batch.waveforms, batch.sample_lengths)
            loss = ctc_loss(
                log_probs.transpose(0, 1), batch.targets, lengths, batch.target_lengths, BLANK_ID, zero_infinity=True
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()

    return steps


if __name__ == "__main__":
    main()
