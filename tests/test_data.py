"""Batches: their plan, their place in an epoch, their ranks, and the audio in them."""

from __future__ import annotations

import math
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from asr.audio import read_audio
from asr.check import CheckedCorpus, Example
from asr.config import DataConfig
from asr.data import Batch, SpeechDataModule, SpeechDataset
from asr.errors import AsrError
from asr.manifest import Utterance, read_manifest
from asr.model import CTCModel
from asr.plan import DurationBatchSampler, Place, plan_batches
from asr.text import normalize_transcript
from asr.vocabulary import CharacterVocabulary

SAMPLES = Path(__file__).parents[1] / "samples"
BATCH_SECONDS = 30.0

some_durations = st.lists(st.floats(0.3, BATCH_SECONDS), min_size=1, max_size=120)


def librispeech_like_durations(count: int) -> list[float]:
    """As in train-clean-100: most between 10 and 17 s, a tail of short ones."""
    generator = numpy.random.default_rng(0)
    long, short = generator.normal(14.3, 1.3, count * 3 // 4), generator.uniform(1.4, 14, count - count * 3 // 4)
    durations: list[float] = numpy.concatenate([long, short]).clip(1.4, 20).tolist()
    return durations


def make_sampler(durations: list[float], *, rank: int = 0, world_size: int = 1, seed: int = 1) -> DurationBatchSampler:
    return DurationBatchSampler(
        durations, BATCH_SECONDS, seed=seed, shortest_first=True, rank=rank, world_size=world_size
    )


def epoch_of(sampler: DurationBatchSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def padded_seconds(batch: list[int], durations: list[float]) -> float:
    return len(batch) * max(durations[index] for index in batch)


# The plan


@given(durations=some_durations, seed=st.integers(0, 9))
def test_a_plan_has_every_index_once_in_batches_of_at_most_batch_seconds(durations: list[float], seed: int) -> None:
    batches = plan_batches(durations, BATCH_SECONDS, numpy.random.default_rng(seed))
    assert sorted(index for batch in batches for index in batch) == list(range(len(durations)))
    assert all(0 < padded_seconds(batch, durations) <= BATCH_SECONDS for batch in batches)


def test_an_utterance_longer_than_a_batch_gets_a_batch_of_its_own() -> None:
    assert plan_batches([99.0, 98.0], 30.0, numpy.random.default_rng(0)) in ([[0], [1]], [[1], [0]])


def test_a_plan_of_nothing_is_empty() -> None:
    assert plan_batches([], BATCH_SECONDS, numpy.random.default_rng(0)) == []


def test_padding_is_at_most_a_tenth_and_batches_are_full_on_librispeech_like_durations() -> None:
    durations = librispeech_like_durations(5000)
    batches = plan_batches(durations, 120.0, numpy.random.default_rng(0))
    padded = sum(padded_seconds(batch, durations) for batch in batches)
    assert 1 - sum(durations) / padded <= 0.10
    assert padded / len(batches) > 0.85 * 120


# Epochs


@given(durations=some_durations, epoch=st.integers(0, 5))
def test_the_same_seed_and_epoch_give_the_same_plan(durations: list[float], epoch: int) -> None:
    sampler = make_sampler(durations)
    epoch_of(sampler, epoch + 1)
    assert epoch_of(sampler, epoch) == epoch_of(make_sampler(durations), epoch)


def test_another_epoch_or_another_seed_gives_other_batches_and_not_only_another_order() -> None:
    durations = librispeech_like_durations(200)
    sampler = make_sampler(durations)
    plans = [epoch_of(sampler, epoch) for epoch in (1, 2)] + [epoch_of(make_sampler(durations, seed=2), 1)]
    as_sets = [{frozenset(batch) for batch in plan} for plan in plans]
    assert as_sets[0] != as_sets[1]
    assert as_sets[0] != as_sets[2]


def test_the_first_epoch_goes_from_short_to_long_and_the_next_does_not() -> None:
    durations = librispeech_like_durations(500)
    correlations = []
    for epoch in (0, 1):
        means = [numpy.mean([durations[i] for i in batch]) for batch in epoch_of(make_sampler(durations), epoch)]
        correlations.append(float(numpy.corrcoef(means, range(len(means)))[0, 1]))
    assert correlations[0] > 0.8
    assert abs(correlations[1]) < 0.3


def test_without_shortest_first_the_first_epoch_is_mixed_too() -> None:
    durations = librispeech_like_durations(500)
    mixed = DurationBatchSampler(durations, BATCH_SECONDS, seed=1)
    assert sorted(map(sorted, mixed)) == sorted(map(sorted, make_sampler(durations)))
    assert list(mixed) != list(make_sampler(durations))


def test_a_resumed_epoch_continues_at_the_right_batch_and_the_next_one_is_whole() -> None:
    durations = librispeech_like_durations(100)
    whole, resumed = make_sampler(durations), make_sampler(durations)
    resumed.resumed_at = Place(2, 7)
    resumed.set_epoch(2)
    assert list(resumed) == epoch_of(whole, 2)[7:]
    assert list(resumed) == epoch_of(whole, 2)[7:], "Lightning iterates more than once"
    assert epoch_of(resumed, 3) == epoch_of(whole, 3)


# Ranks


@given(durations=some_durations, world_size=st.sampled_from([1, 2, 3, 8]), epoch=st.integers(0, 2))
def test_ranks_have_as_many_batches_each_and_see_all_utterances(
    durations: list[float], world_size: int, epoch: int
) -> None:
    ranks = [epoch_of(make_sampler(durations, rank=r, world_size=world_size), epoch) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(0 < padded_seconds(batch, durations) <= BATCH_SECONDS for batches in ranks for batch in batches)
    seen = Counter(index for batches in ranks for batch in batches for index in batch)
    assert set(seen) == set(range(len(durations)))
    enough = len(durations) >= world_size * len(ranks[0])
    assert seen.total() == (len(durations) if enough else world_size * len(ranks[0]))


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_a_real_epoch_without_overlap_and_in_like_durations(world_size: int) -> None:
    durations = librispeech_like_durations(1000)
    ranks = [epoch_of(make_sampler(durations, rank=r, world_size=world_size), 1) for r in range(world_size)]
    seen = [index for batches in ranks for batch in batches for index in batch]
    assert sorted(seen) == list(range(1000))
    longest = [[max(durations[index] for index in batch) for batch in step] for step in zip(*ranks, strict=True)]
    assert numpy.mean([max(step) / min(step) for step in longest]) < 1.2


# Audio


def sample_examples() -> list[Example]:
    utterances = read_manifest(SAMPLES / "manifest.jsonl")
    return [Example(utterance, normalize_transcript(utterance.text)) for utterance in utterances]


def make_dataset(cache_hours: float = 0.0) -> SpeechDataset:
    return SpeechDataset(sample_examples(), CharacterVocabulary(), 16000, cache_hours)


def test_a_batch_holds_the_recordings_padded_with_zeros_and_their_token_ids() -> None:
    dataset, examples = make_dataset(), sample_examples()
    batch = dataset[[2, 0]]
    assert batch.ids == [examples[2].utterance.id, examples[0].utterance.id]
    assert batch.references == [examples[2].reference, examples[0].reference]
    assert batch.waveforms.shape == (2, int(batch.sample_lengths.max()))
    for row, place in enumerate([2, 0]):
        samples = read_audio(examples[place].utterance.audio_path, 16000)
        length, tokens = int(batch.sample_lengths[row]), int(batch.target_lengths[row])
        assert torch.equal(batch.waveforms[row, :length], samples)
        assert not batch.waveforms[row, length:].any()
        assert dataset.vocabulary.decode(batch.targets[row, :tokens].tolist()) == examples[place].reference


def test_only_the_stretch_of_an_utterance_is_read() -> None:
    path = str(SAMPLES / "84-121123-0001.flac")
    utterance = Utterance("u", path, "A", 1.0, 0.5, "", "m.jsonl", 1)
    batch = SpeechDataset([Example(utterance, "A")], CharacterVocabulary(), 16000)[[0]]
    assert torch.equal(batch.waveforms[0], read_audio(path, 16000)[16000:24000])


def test_an_empty_reference_gives_integer_targets_of_length_zero() -> None:
    silent = Example(sample_examples()[0].utterance, "")
    batch = SpeechDataset([silent, sample_examples()[1]], CharacterVocabulary(), 16000)[[0, 1]]
    assert batch.targets.dtype == torch.long
    assert batch.target_lengths[0] == 0


def test_cached_audio_is_the_same_within_16_bit_rounding_and_the_same_each_time() -> None:
    plain, cached = make_dataset(), make_dataset(cache_hours=1.0)
    indices = list(range(len(plain)))
    first, again, expected = cached[indices], cached[indices], plain[indices]
    assert torch.equal(first.waveforms, again.waveforms)
    assert (first.waveforms - expected.waveforms).abs().max() <= 0.5 / 32768
    assert torch.equal(first.sample_lengths, expected.sample_lengths)


def test_cached_audio_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = make_dataset(cache_hours=1.0)
    expected = cached[[0, 1]]
    monkeypatch.setattr("asr.manifest.read_audio", lambda *_, **__: pytest.fail("read again"))
    assert torch.equal(cached[[0, 1]].waveforms, expected.waveforms)


def test_the_cache_stays_within_its_budget_and_what_does_not_fit_is_still_right() -> None:
    plain = make_dataset()
    indices = list(range(len(plain)))
    lengths = plain[indices].sample_lengths
    budget_samples = int(lengths.sum()) // 2
    cached = make_dataset(cache_hours=budget_samples / 16000 / 3600)
    for _ in range(2):
        batch = cached[indices]
        assert (batch.waveforms - plain[indices].waveforms).abs().max() <= 0.5 / 32768
    held = [samples for samples, _ in cached._cache.values() if samples.dtype == torch.int16]
    assert len(held) == len(cached._cache) >= 1
    assert sum(len(samples) for samples in held) <= budget_samples


def test_which_utterances_the_cache_holds_changes_nothing() -> None:
    """After a resume they are others, and the run must go on exactly."""
    first, other = make_dataset(cache_hours=10 / 3600), make_dataset(cache_hours=10 / 3600)
    indices = list(range(len(first)))
    expected = [first[[index]].waveforms for index in indices]
    for index, waveforms in zip(reversed(indices), reversed(expected)):
        assert torch.equal(other[[index]].waveforms, waveforms)
    assert first._cache.keys() != other._cache.keys()


def test_cached_audio_beyond_full_scale_is_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, 3 * numpy.sin(numpy.arange(16000) / 10), 16000, subtype="FLOAT")
    example = replace(sample_examples()[0], utterance=replace(sample_examples()[0].utterance, audio_path=str(path)))
    plain, cached = (SpeechDataset([example], CharacterVocabulary(), 16000, hours) for hours in (0.0, 1.0))
    for _ in range(2):
        assert (cached[[0]].waveforms - plain[[0]].waveforms).abs().max() <= 0.51 * 3 / 32768 + 3 / 32768


def test_the_batches_of_all_epochs_are_counted() -> None:
    sampler = DurationBatchSampler(librispeech_like_durations(3000), BATCH_SECONDS * 5, seed=1)
    counts = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        counts.append(len(list(sampler)))
    assert len(set(counts)) > 1
    assert [sampler.count_batches(range(epochs)) for epochs in (1, 3, 5)] == [sum(counts[:n]) for n in (1, 3, 5)]


def test_a_batch_moves_whole_to_another_device() -> None:
    batch = make_dataset()[[0, 1]]
    moved = batch.to(torch.device("meta"))
    tensors = [name for name, value in vars(batch).items() if isinstance(value, Tensor)]
    assert tensors == ["waveforms", "sample_lengths", "targets", "target_lengths"]
    assert all(getattr(moved, name).device.type == "meta" for name in tensors)
    assert (moved.references, moved.ids) == (batch.references, batch.ids)
    assert batch.waveforms.device.type == "cpu"


# The data module


class StandInTrainer:
    """What the data module asks of Lightning's."""

    global_rank, world_size, current_epoch = 0, 1, 0


def epochs_of(model: CTCModel, num_workers: int, cache_hours: float) -> Iterator[list[Batch]]:
    """Two epochs of the samples in batches of at most 15 s."""
    corpus = CheckedCorpus(examples=sample_examples())
    config = DataConfig(batch_seconds=15, max_seconds=15, num_workers=num_workers, cache_hours=cache_hours)
    data = SpeechDataModule(corpus, corpus, config, model, seed=1)
    data.trainer = StandInTrainer()  # type: ignore[assignment]
    for epoch in range(2):
        data.trainer.current_epoch = epoch  # type: ignore[misc, union-attr]
        loader = data.train_dataloader()
        assert isinstance(loader, DataLoader)
        yield list(loader)


@pytest.mark.parametrize("cache_hours", [0.0, 1.0])
def test_worker_processes_give_the_same_batches_as_none(model: CTCModel, cache_hours: float) -> None:
    alone, beside = (list(epochs_of(model, workers, cache_hours)) for workers in (0, 2))
    ids = [[batch.ids for batch in epoch] for epoch in alone]
    assert ids == [[batch.ids for batch in epoch] for epoch in beside]
    assert ids[0] != ids[1]
    for left, right in zip(alone[0] + alone[1], beside[0] + beside[1], strict=True):
        for name in ("waveforms", "sample_lengths", "targets", "target_lengths"):
            assert torch.equal(getattr(left, name), getattr(right, name))


def test_valid_batches_hold_every_utterance_however_long(model: CTCModel) -> None:
    corpus = CheckedCorpus(examples=sample_examples())
    shortest = min(example.utterance.duration_seconds for example in corpus.examples)
    config = DataConfig(batch_seconds=shortest, max_seconds=shortest, num_workers=0)
    data = SpeechDataModule(corpus, corpus, config, model, seed=1)
    data.trainer = StandInTrainer()  # type: ignore[assignment]
    batches = list(data.val_dataloader())
    assert sorted(name for batch in batches for name in batch.ids) == sorted(e.utterance.id for e in corpus.examples)
    longest = max(example.utterance.duration_seconds for example in corpus.examples)
    assert all(batch.waveforms.numel() <= math.ceil(longest * 16000) for batch in batches)


def test_only_the_training_keeps_its_workers(model: CTCModel) -> None:
    corpus = CheckedCorpus(examples=sample_examples())
    data = SpeechDataModule(corpus, corpus, DataConfig(num_workers=1), model, seed=1)
    data.trainer = StandInTrainer()  # type: ignore[assignment]
    before = set(multiprocessing.active_children())
    list(data.train_dataloader())
    (worker,) = set(multiprocessing.active_children()) - before
    validation, batches = data.val_dataloader(), []
    for batch in (iterator := iter(validation)):
        batches.append(batch)
        if len(batches) == len(validation):  # as Lightning, which keeps the iterator
            break
    assert set(multiprocessing.active_children()) - before == {worker}
    assert list(iterator) == []


@pytest.mark.parametrize("processes", [1, 2, 4, 9])
def test_an_utterance_is_validated_by_one_process(model: CTCModel, processes: int) -> None:
    corpus = CheckedCorpus(examples=sample_examples())
    shares = []
    for rank in range(processes):
        data = SpeechDataModule(corpus, corpus, DataConfig(batch_seconds=20.0, num_workers=0), model, seed=1)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=processes)  # type: ignore[assignment]
        shares.append(list(data.val_dataloader()))
    assert all(shares), "each has something to wait for the others with"
    assert sorted(id for share in shares for batch in share for id in batch.ids) == sorted(
        example.utterance.id for example in corpus.examples
    )


def test_another_number_of_processes_is_refused_in_the_middle_of_an_epoch(model: CTCModel) -> None:
    corpus = CheckedCorpus(examples=sample_examples())
    data = SpeechDataModule(corpus, corpus, DataConfig(), model, seed=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, current_epoch=0, max_epochs=None)  # type: ignore[assignment]
    plan = data._plan_settings()
    data.trainer.world_size = 3
    with pytest.raises(AsrError, match=r"with processes=2; resume it with that"):
        data.load_state_dict({"epoch": 1, "batches_done": 4, "plan": plan})
    data.load_state_dict({"epoch": 1, "batches_done": 0, "plan": plan})


@pytest.mark.parametrize(("epoch", "batches_done"), [(1, 0), (2, 0), (1, 3)])
def test_the_steps_of_a_resumed_training_are_those_done_and_those_to_come(
    model: CTCModel, epoch: int, batches_done: int
) -> None:
    def begin(batch_seconds: float) -> SpeechDataModule:
        data = SpeechDataModule(corpus, corpus, DataConfig(batch_seconds=batch_seconds), model, seed=1)
        data.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, max_epochs=None)  # type: ignore[assignment]
        return data

    corpus = CheckedCorpus(examples=sample_examples() * 20)
    before, same, other = begin(20.0), begin(20.0), begin(40.0)
    steps = before.count_steps(epoch) + batches_done
    state = {"epoch": epoch, "batches_done": batches_done, "steps": steps, "plan": before._plan_settings()}
    same.load_state_dict(state)
    assert same.count_steps(4) == before.count_steps(4)
    if batches_done == 0:
        expected = steps + other.count_steps(4) - other.count_steps(epoch)
        other.load_state_dict(state)
        assert other.count_steps(4) == expected < before.count_steps(4)


@pytest.mark.parametrize("name", ["data.batch_seconds", "data.shortest_first", "trainer.seed", "seconds of them"])
def test_each_thing_that_a_plan_depends_on_is_named_where_it_is_another(model: CTCModel, name: str) -> None:
    corpus = CheckedCorpus(examples=sample_examples())
    data = SpeechDataModule(corpus, corpus, DataConfig(), model, seed=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, max_epochs=None)  # type: ignore[assignment]
    plan = {**data._plan_settings(), name: -1}
    with pytest.raises(AsrError, match=f"with {name}=-1; resume it with that"):
        data.load_state_dict({"epoch": 0, "batches_done": 4, "plan": plan})
