"""What a training step costs, and what it waits for.

    python benchmarks/training_step.py [--recipes default base pieces mini] [--manifest FILE] [--batch-seconds 150]
        [--repeats 3] [--threads 1] [--precision 32-true]

Per recipe (default: none, asr.config's defaults) and size of batch: the whole step (augmentation, frontend, forward,
loss, backward, clipping, optimizer) against three times the operations of the forward pass at the rate at which this
machine multiplies matrices of the type that the step computes in, against the same step with two nn.GRUs per layer, and
where the model hears phonemes against the same step with CTC alone; and the padding in an epoch's plan. Then training
steps with the real loader, and how long they wait for it. Without a manifest the utterances are as long as
LibriSpeech's (default, base, mini) or as their pieces (pieces), their audio and words those of samples/. A step in
bfloat16 is told beside float32's bound too, without an aim.

Aims: at least 0.6 of the bound, at most 1.5 times CTC's step, at most 10 % padding, at most 5 % of the time waiting.
"""

import json
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy
import torch
from measure import (
    ROOT,
    Stopwatch,
    make_parser,
    matrix_product,
    matrix_rate,
    medians,
    operations_per_second,
    report,
    start,
    write_speech,
)
from torch import Tensor, nn

from asr.check import CheckedCorpus, check_corpus
from asr.config import TrainConfig
from asr.data import Batch, SpeechDataModule, SpeechDataset
from asr.devices import choose_precision
from asr.learning import CTCTrainingModule
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.modelfile import load_model
from asr.optimizers import make_optimizer
from asr.plan import plan_batches
from asr.recipe import load_config
from asr.vocabulary import CharacterVocabulary

Durations = Callable[[int], list[float]]


def main() -> None:
    parser = make_parser(__doc__, has_model=False)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--manifest", type=Path, help="default: the durations of the recipe's data, the samples' audio")
    parser.add_argument("--batch-seconds", type=float, nargs="+", help="default: the recipe's, and 150")
    parser.add_argument("--batches", type=int, default=5, help="measured, from the shortest to the longest utterances")
    parser.add_argument("--waiting-steps", type=int, default=40, help="steps with the real loader")
    parser.add_argument("--precision", default="auto", choices=("auto", "32-true", "bf16-mixed"))
    parser.add_argument("--repeats", type=int, default=3)
    options = start(parser)
    if options.quick:
        options.batches, options.waiting_steps, options.repeats = 2, 3, 1
    for recipe in options.recipes:
        print_recipe(recipe, options)


def print_recipe(recipe: str, options: Namespace) -> None:
    """All figures of one recipe."""
    overrides = [f"trainer.precision={options.precision}", "trainer.accelerator=cpu"]
    path = next((ROOT / "recipes").glob(f"*/{recipe}.yaml"), None)
    config = load_config(path, overrides)
    pronunciations = load_model().pronunciations if config.model.encoder.phoneme_layer else None
    model = CTCModel(config.model, CharacterVocabulary(), pronunciations)
    with tempfile.TemporaryDirectory() as folder:
        seconds_to_write = 600 if options.quick else 4500
        manifest = options.manifest or write_corpus(Path(folder), RECIPES[recipe], seconds_to_write)
        corpus = check_corpus(read_manifest(manifest), model, config.data, config.augment)
        durations = durations_of(corpus) if options.manifest else RECIPES[recipe](PLANNED_UTTERANCES)
        print(f"corpus: {len(corpus.examples)} utterances, {corpus.hours:.2f} hours; plan: {len(durations)} utterances")
        for batch_seconds in options.batch_seconds or [config.data.batch_seconds, 150.0]:
            name = f"{recipe}, {batch_seconds:g} s"
            batches = choose_batches(corpus, model, batch_seconds, options.batches)
            print_step(config, model, batches, name, options.repeats, references_of(corpus))
            report(f"{name}: padding, %", 100 * padding_share(durations, batch_seconds), at_most=10)
        waiting = waiting_share(config, model, corpus, options.waiting_steps)
        report(f"{recipe}, {config.data.batch_seconds:g} s: waiting for data, %", 100 * waiting, at_most=5)


def durations_of(corpus: CheckedCorpus) -> list[float]:
    return [example.utterance.duration_seconds for example in corpus.examples]


def references_of(corpus: CheckedCorpus) -> list[str]:
    return [example.reference for example in corpus.examples]


def choose_batches(corpus: CheckedCorpus, model: CTCModel, batch_seconds: float, count: int) -> list[Batch]:
    """`count` batches of a plan for the corpus, evenly spaced from short to long utterances."""
    plan = plan_batches(durations_of(corpus), batch_seconds, numpy.random.default_rng(0))
    dataset = SpeechDataset(corpus.examples, model.vocabulary, model.sample_rate, pronunciations=model.pronunciations)
    places = (numpy.arange(count) + 0.5) / count * len(plan)
    return [dataset[plan[int(place)]] for place in places]


def make_step(config: TrainConfig, model: CTCModel, references: list[str]) -> Callable[[Batch], None]:
    """A training step as Lightning runs it, without Lightning and the moving average of the weights."""
    module, dtype = CTCTrainingModule(model.train(), config, references), dtype_of(config)
    optimizer = make_optimizer(model, config.optimizer, total_steps=1000, dtype=dtype)["optimizer"]

    def step(batch: Batch) -> None:
        module.on_train_batch_start(batch, 0)
        half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
        with half, patch.object(module, "log"):  # it would ask for a Trainer
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()

    return step


def dtype_of(config: TrainConfig) -> torch.dtype:
    """What a training by `config` multiplies."""
    return torch.bfloat16 if choose_precision(config.trainer) == "bf16-mixed" else torch.float32


def print_step(
    config: TrainConfig, model: CTCModel, batches: list[Batch], name: str, repeats: int, references: list[str]
) -> None:
    """A step over each of the batches, its bound, and its rivals, in turns."""
    step = make_step(config, model, references)
    plain_step = make_step(replace(config, optimizer=replace(config.optimizer, mmi_share=0.0)), model, references)

    def steps() -> None:
        for batch in batches:
            step(batch)

    def rival_steps() -> None:
        with patch("asr.encoder.bidirectional_gru", two_grus):
            steps()

    def plain_steps() -> None:
        for batch in batches:
            plain_step(batch)

    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, dtype_of(config))}
    products = {kind: matrix_product(dtype) for kind, dtype in dtypes.items()}
    losses = {} if model.pronunciations is None else {"plain": plain_steps}
    seconds = medians({"step": steps, "rival": rival_steps, **losses, **products}, repeats)
    audio_seconds = sum(int(batch.sample_lengths.sum()) for batch in batches) / model.sample_rate
    per_step = ", ".join(f"{part} {1000 * seconds[part] / len(batches):.0f} ms" for part in ("step", "rival"))
    print(f"{name}: {len(batches)} batches of {audio_seconds / len(batches):.0f} s of audio on average; {per_step}")
    for kind in products:
        rate = matrix_rate(seconds[kind])
        bound = 3 * sum(operations_per_second(model).values()) * audio_seconds / rate
        share = f"{bound / seconds['step']:.3g} of the step"
        print(f"  bound in {kind} {1000 * bound / len(batches):.0f} ms at {rate / 1e9:.1f} GFLOP/s: {share}")
        if dtypes[kind] == dtype_of(config):
            report(f"{name}: bound / step", bound / seconds["step"], at_least=0.6)
    print(f"{name}: step with two nn.GRUs / step: {seconds['rival'] / seconds['step']:.2f}")
    if losses:
        report(f"{name}: step / step with CTC alone", seconds["step"] / seconds["plain"], at_most=1.5)


def two_grus(
    inputs_forward: Tensor, inputs_backward: Tensor, forward_cell: nn.GRU, backward_cell: nn.GRU
) -> tuple[Tensor, Tensor]:
    """What asr.recurrence.bidirectional_gru replaces."""
    return forward_cell(inputs_forward)[0], backward_cell(inputs_backward)[0]


def padding_share(durations: list[float], batch_seconds: float) -> float:
    """Of the frames of an epoch's batches, those past the end of their utterance."""
    plan = plan_batches(durations, batch_seconds, numpy.random.default_rng(0))
    padded = sum(len(batch) * max(durations[index] for index in batch) for batch in plan)
    return 1 - sum(durations) / padded


def waiting_share(config: TrainConfig, model: CTCModel, corpus: CheckedCorpus, num_steps: int) -> float:
    """Of the time of training steps with the recipe's loader, that in which the next batch was not there.

    The first batch is not counted: it waits for the worker to start, once per training.
    """
    data = SpeechDataModule(corpus, corpus, config.data, model, seed=0)
    data.trainer = SimpleNamespace(current_epoch=1, global_rank=0, world_size=1)  # type: ignore[assignment]
    loader = data.train_dataloader()
    batches, step, watch = iter(loader), make_step(config, model, references_of(corpus)), Stopwatch()
    step(next(batches))
    for _ in range(min(num_steps, len(loader) - 1)):
        batch = watch.timed(next, "waiting")(batches)
        watch.timed(step, "steps")(batch)
    return watch.seconds["waiting"] / sum(watch.seconds.values())


def librispeech_durations(count: int) -> list[float]:
    """Seconds, distributed much as in train-clean-100: two thirds just under the cut at 16 s, the rest shorter."""
    generator = numpy.random.default_rng(0)
    near_cut = generator.normal(14.6, 1.1, count).clip(max=17.0)
    durations: list[float] = numpy.where(
        generator.random(count) < 0.68, near_cut, generator.uniform(2.0, 14.0, count)
    ).tolist()
    return durations


def piece_durations(count: int) -> list[float]:
    """Seconds, distributed much as recipes/base/cut_at_pauses.py leaves them: nine of ten from 1.6 to 6.7."""
    durations: list[float] = numpy.random.default_rng(0).lognormal(numpy.log(3.5), 0.42, count).clip(1.0, 17.0).tolist()
    return durations


RECIPES: dict[str, Durations] = {
    "default": librispeech_durations,
    "base": librispeech_durations,
    "pieces": piece_durations,
    "mini": librispeech_durations,
}

PLANNED_UTTERANCES = 28_539
"""Of the epoch whose padding is told where no manifest is given: train-clean-100."""


def write_corpus(folder: Path, durations: Durations, seconds: float) -> Path:
    """FLAC files of such durations in `folder`, that many seconds in all, and their manifest."""
    lines: list[str] = []
    for number, duration in enumerate(durations(10_000)):
        if seconds <= 0:
            break
        audio = f"{number}.flac"
        text = write_speech(folder / audio, duration, first=number)
        lines.append(json.dumps({"audio": audio, "text": text, "duration": duration}))
        seconds -= duration
    manifest = folder / "corpus.jsonl"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    main()
