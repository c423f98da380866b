"""Layers that read the phonemes which a model hears: their model, the sentences put together, and the training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from command_line import Run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from short_trainings import MANIFEST, make_config
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr import reading, text_training
from asr.check import Example, check_corpus
from asr.config import AugmentConfig, OptimizerConfig
from asr.decoder import decode_greedy
from asr.encoder import UtteranceDropout
from asr.errors import AsrError
from asr.finetuning import finetune_config
from asr.initial import make_model as make_initial_model
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.modelfile import load_model, save_model
from asr.optimizers import make_optimizer
from asr.reading import ReadingSettings, SaidBatches, train_reader
from asr.surgery import with_phonemes, with_reader, with_vocabulary
from asr.training import train
from asr.units import SURENESS, Heard, Units, hear, vary_sureness
from asr.vocabulary import BLANK_ID, CharacterVocabulary

SPOKEN = [[1, 2, 3, 1, 4], [2, 3, 5, 5, 1], [4, 2]]
"""Phonemes of three recordings."""

PLAIN = AugmentConfig(speeds=[1.0], gain_db=0.0, noise_probability=0.0, num_frequency_masks=0, num_time_masks=0)
SMALL = ReadingSettings(layers=1, size=24, pieces=60, epochs=3, steps=6, batch_steps=800, learning_rate=5e-3)


def recording(phoneme_ids: list[int], number: int) -> Heard:
    """Each phoneme for two sure steps with a blank behind them; the last column tells the recording."""
    steps = [column for phoneme in phoneme_ids for column in (phoneme, phoneme, 0)]
    log_probs = numpy.full((len(steps), 8), -20.0, dtype=numpy.float16)
    log_probs[range(len(steps)), steps] = 0.0
    log_probs[:, 7] = -100 - number
    return Heard(log_probs, "", phoneme_ids)


UNITS = Units([recording(phonemes, number) for number, phonemes in enumerate(SPOKEN)])


def sounds(log_probs: numpy.ndarray) -> list[int]:
    """The phonemes that are sure, in their order."""
    [tokens] = decode_greedy(torch.from_numpy(log_probs).float()[None], torch.tensor([len(log_probs)]))
    return list(tokens.token_ids)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 99))
def test_a_sentence_is_said_by_parts_of_the_recordings(sentence: list[int], seed: int) -> None:
    said = UNITS.say(sentence, numpy.random.default_rng(seed))
    assert said is not None
    assert sounds(said) == sentence
    heard = {tuple(row) for row in UNITS.log_probs.tolist()}
    assert all(tuple(row) in heard for row in said.tolist())
    again = UNITS.say(sentence, numpy.random.default_rng(seed))
    assert numpy.array_equal(said, again)


def test_what_is_taken_in_one_piece_is_as_long_as_the_recordings_allow() -> None:
    for phonemes in ([2, 3], [2, 3, 1]):
        voices = [UNITS.say(phonemes, numpy.random.default_rng(seed)) for seed in range(20)]
        assert all(len(set(voice[:, 7].tolist())) == 1 for voice in voices if voice is not None)
        assert len({voice[0, 7] for voice in voices if voice is not None}) == 3 - len(phonemes) + 1


@given(st.integers(0, 999))
def test_the_same_phonemes_are_heard_with_other_certainty(seed: int) -> None:
    generator = numpy.random.default_rng(seed)
    heard = torch.from_numpy(generator.normal(size=(9, 7))).log_softmax(1).numpy()
    varied = vary_sureness(heard.astype(numpy.float16), generator)
    assert numpy.exp(varied).sum(1) == pytest.approx(1.0, abs=1e-5)
    shares = numpy.diff(varied, axis=1) / numpy.diff(heard, axis=1)
    share = float(numpy.median(shares))
    assert SURENESS[0] - 0.01 < share < SURENESS[1] + 0.01
    assert numpy.diff(varied, axis=1) == pytest.approx(share * numpy.diff(heard, axis=1), abs=0.02)


def test_a_sentence_of_which_a_phoneme_is_nowhere_is_not_said() -> None:
    assert UNITS.say([1, 6], numpy.random.default_rng(0)) is None
    assert UNITS.say([], numpy.random.default_rng(0)) is None
    assert UNITS.missing(["<blank>", *"ABCDEFG"]) == ["F", "G"]
    with pytest.raises(AsrError, match="of no recording"):
        Units([])


@pytest.fixture(scope="module")
def hearing(make_model: Callable[..., CTCModel]) -> CTCModel:
    """The small model, which hears the phonemes of the packaged one behind the lower of its two layers."""
    pronunciations = load_model().pronunciations
    assert pronunciations is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return with_phonemes(make_model(dropout=0.1), 1, pronunciations).requires_grad_(False)


@pytest.fixture(scope="module")
def reader(hearing: CTCModel) -> CTCModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return with_reader(hearing, 2, 16, hearing.vocabulary).requires_grad_(False)


@pytest.fixture(scope="module")
def examples(hearing: CTCModel) -> list[Example]:
    return check_corpus(read_manifest(MANIFEST), hearing).examples


def padded(speech: list[Tensor]) -> tuple[Tensor, Tensor]:
    return pad_sequence(speech, batch_first=True), torch.tensor([len(samples) for samples in speech])


def test_what_is_heard_stays_and_is_all_that_is_read(hearing: CTCModel, reader: CTCModel, speech: list[Tensor]) -> None:
    before, _ = hearing.all_log_probs(*padded(speech))
    log_probs, lengths = reader.all_log_probs(*padded(speech))
    tokens, phonemes = reader.split(log_probs)
    assert torch.equal(phonemes, hearing.split(before)[1])
    assert torch.equal(tokens, reader.read(phonemes.transpose(0, 1), lengths))
    assert reader.config.encoder.num_layers == 1
    assert reader.reader is not None
    assert len(reader.reader.layers) == 2
    moved = phonemes + 5 * torch.randn_like(phonemes)
    assert not torch.allclose(tokens, reader.read(moved.transpose(0, 1), lengths))


def test_steps_in_which_no_phoneme_is_heard_are_not_read(reader: CTCModel) -> None:
    """Nothing is written there, and around them what would be without them."""
    phonemes = torch.randn(20, 2, len(reader.phonemes)).log_softmax(2)
    silence = torch.full((len(reader.phonemes),), -20.0)
    silence[0] = -1e-6
    lengths = torch.tensor([20, 13])
    expected = reader.read(phonemes, lengths)
    places = torch.tensor([number + number // 3 for number in range(20)])
    longer = silence.expand(27, 2, -1).clone()
    longer[places] = phonemes
    written = reader.read(longer, torch.tensor([27, int(places[13])]))
    for row, length in enumerate(lengths.tolist()):
        heard = places[:length]
        torch.testing.assert_close(written[row, heard], expected[row, :length], atol=1e-5, rtol=0)
        silent = [step for step in range(int(heard[-1])) if step not in heard]
        assert written[row, silent, 0].eq(0).all()
        assert written[row, silent, 1:].eq(-30).all()
    quiet = reader.read(silence.expand(5, 1, -1), torch.tensor([5]))
    assert quiet[..., 0].eq(0).all()


def test_batching_is_invisible_where_phonemes_are_read(reader: CTCModel, speech: list[Tensor]) -> None:
    together, lengths = reader(*padded(speech))
    for row, length, samples in zip(together, lengths.tolist(), speech, strict=True):
        alone, _ = reader(*padded([samples]))
        torch.testing.assert_close(row[:length], alone[0], atol=1e-4, rtol=0)


def test_each_gate_of_a_reader_of_another_size_steps_by_itself(reader: CTCModel) -> None:
    optimizer = make_optimizer(with_reader(reader, 1, 10, reader.vocabulary).train(), OptimizerConfig(name="muon"), 10)
    assert optimizer["optimizer"].param_groups[0]["blocks"] == 3


def test_a_file_keeps_it(reader: CTCModel, speech: list[Tensor], tmp_path: Path) -> None:
    save_model(reader, tmp_path / "model.safetensors", dtype=torch.float32)
    again = load_model(tmp_path / "model.safetensors")
    assert torch.equal(again(*padded(speech))[0], reader(*padded(speech))[0])


def test_other_letters_do_without_layers_that_read(reader: CTCModel, hearing: CTCModel, speech: list[Tensor]) -> None:
    vocabulary = CharacterVocabulary(" abc")
    changed = with_vocabulary(reader, vocabulary)
    assert changed.config.encoder.num_layers == 1
    assert changed.reader is None
    mine, others = changed.state_dict(), hearing.state_dict()
    assert all(torch.equal(mine[name], others[name]) for name in mine if name.startswith("encoder.layers.0"))
    assert changed(*padded(speech))[0].shape[2] == len(vocabulary)


def test_it_is_fine_tuned_with_and_without_other_letters(reader: CTCModel, tmp_path: Path) -> None:
    path = tmp_path / "reader.safetensors"
    save_model(reader, path)
    for characters, others in (("", False), (reader.vocabulary.alphabet, False), (" abcdefghijklmnopqrstuvwxyz", True)):
        config = finetune_config(path, [str(MANIFEST)], [str(MANIFEST)], characters=characters)
        model = make_initial_model(config, ["a b c"])
        assert (model.reader is None) == others
        assert model.config == config.model


def test_it_is_trained_as_a_whole(tmp_path: Path) -> None:
    hears = ["model.encoder.phoneme_layer=1", "vocabulary.pronunciations=packaged", "trainer.epochs=1"]
    config = make_config(tmp_path / "run", *hears, "model.encoder.num_layers=1", "model.encoder.reader_layers=1")
    model = load_model(train(config))
    assert model.reader is not None


def test_phonemes_are_read_where_the_last_layer_hears_them(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"reader_layers=1 must be 0 unless phoneme_layer is num_layers"):
        make_config(
            tmp_path, "model.encoder.num_layers=2", "model.encoder.phoneme_layer=1", "model.encoder.reader_layers=1"
        )


def test_recordings_are_heard_as_the_model_hears_them(
    hearing: CTCModel, examples: list[Example], speech: list[Tensor]
) -> None:
    heard = {recording.reference: recording for recording in hear(hearing, examples, PLAIN)}
    assert len(heard) == len(examples)
    for example, samples in zip(examples, speech, strict=True):
        phonemes = hearing.split(hearing.all_log_probs(*padded([samples]))[0])[1][0]
        mine = heard[example.reference]
        # Half precision, where the CPU computes in it.
        torch.testing.assert_close(torch.from_numpy(mine.log_probs).float(), phonemes, atol=0.1, rtol=0.02)
        cuts = mine.cuts()
        assert cuts == sorted(cuts)
        assert len(cuts) == len(mine.phoneme_ids) + 1
        assert 0 <= cuts[0] <= cuts[-1] <= len(phonemes)


def test_what_cannot_be_heard_is_left_out_and_told(
    hearing: CTCModel, examples: list[Example], caplog: pytest.LogCaptureFixture
) -> None:
    gone = replace(examples[0].utterance, audio_path="gone.flac")
    short = replace(examples[1].utterance, duration_seconds=0.3)
    others = [Example(gone, "GONE"), Example(short, examples[1].reference)]
    assert len(hear(hearing, [*examples[2:], *others])) == len(examples) - 2
    assert "2 recordings are left out" in caplog.text


TEXT = ["HE TOOK HIS HAT", "THE OLD MAN CAME IN", "ALL OF THEM WENT HOME", "SHE SAID NOTHING MORE"] * 20


@pytest.fixture(scope="module")
def learned(hearing: CTCModel, examples: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("reader") / "reader.safetensors"
    train_reader(hearing, TEXT, examples, path, SMALL, valid=examples)
    return path


def test_only_the_layers_that_read_learn(learned: Path, hearing: CTCModel) -> None:
    model = load_model(learned)
    assert model.reader is not None
    assert model.phonemes == hearing.phonemes
    mine, others = model.state_dict(), hearing.state_dict()
    kept = [name for name in mine if name.startswith(("encoder.subsampling", "encoder.layers.0", "phoneme_head"))]
    assert len(kept) > 10
    assert all(torch.equal(mine[name], others[name].half().float()) for name in kept)


def test_a_packaged_model_learns_to_write_a_text(tmp_path: Path) -> None:
    """By heart, from the phonemes of six recordings."""
    model, losses = load_model(), []
    examples = check_corpus(read_manifest(MANIFEST), model).examples
    settings = replace(SMALL, epochs=2, steps=40, batch_steps=400, size=64)

    def note(training: Any, loss: Tensor) -> Tensor:
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_training.TextTraining, "check_loss", note)
        train_reader(model, TEXT, examples, tmp_path / "reader.safetensors", settings)
    assert len(losses) >= 20
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert 30 < len(load_model(tmp_path / "reader.safetensors").vocabulary) <= 60


def test_a_stopped_training_goes_on_to_the_same_weights(
    learned: Path, hearing: CTCModel, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, step = tmp_path / "reader.safetensors", reading._Training.training_step

    def stop(module: Any, batch: Any, batch_idx: int) -> Tensor:
        if module.trainer.global_step == 8:
            raise OSError("as if the power had gone")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(text_training, "CHECKPOINT_MINUTES", 0)
    monkeypatch.setattr(reading._Saver, "on_exception", lambda *_: None)  # as kill -9 leaves it
    monkeypatch.setattr(reading._Training, "training_step", stop)
    with pytest.raises(OSError, match="the power"):
        train_reader(hearing, TEXT, examples, path, SMALL)
    monkeypatch.undo()
    with pytest.raises(AsrError, match="continue it with --resume"):
        train_reader(hearing, TEXT, examples, path, SMALL)
    with pytest.raises(AsrError, match="had another text, model, --recordings or --held-out; resume"):
        train_reader(hearing, TEXT[1:], examples, path, SMALL, resume=True)
    with pytest.raises(AsrError, match="had steps=6; resume"):
        train_reader(hearing, TEXT, examples, path, replace(SMALL, steps=7), resume=True)
    train_reader(hearing, TEXT, examples, path, SMALL, resume=True)
    weights, expected = load_file(path), load_file(learned)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert [file.name for file in tmp_path.iterdir()] == ["reader.safetensors"]


def test_a_trained_reader_is_trained_on(learned: Path, examples: list[Example], tmp_path: Path) -> None:
    """Its own weights are what it begins with, the blank as probable as it was learned."""
    path = tmp_path / "more.safetensors"
    model = load_model(learned)
    train_reader(model, TEXT, examples, path, replace(SMALL, layers=0, epochs=1, steps=1, learning_rate=1e-9))
    before, after = load_file(learned), load_file(path)
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=1e-6) for name in before)
    lowered = model.head.bias[BLANK_ID] - after["head.bias"][BLANK_ID]
    assert lowered.item() == pytest.approx(reading.BLANK_PENALTY, abs=1e-2)


def test_layers_that_read_have_a_dropout_of_their_own(
    hearing: CTCModel, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file keeps the model's, which is for trainings by recordings."""
    path, step, shares = tmp_path / "reader.safetensors", reading._Training.training_step, set()

    def note(module: Any, batch: Any, batch_idx: int) -> Tensor:
        shares.update(part.p for part in module.model.reader.modules() if isinstance(part, UtteranceDropout))
        return step(module, batch, batch_idx)

    monkeypatch.setattr(reading._Training, "training_step", note)
    train_reader(hearing, TEXT, examples, path, replace(SMALL, epochs=1, steps=1, dropout=0.37))
    assert shares == {0.37}
    model = load_model(path)
    assert model.config.encoder.dropout == hearing.config.encoder.dropout != 0.37
    with pytest.raises(AsrError, match=r"dropout=1\.0 must be in \[0, 1\)"):
        replace(SMALL, dropout=1.0)


def test_batches_are_a_function_of_seed_and_epoch(reader: CTCModel, examples: list[Example]) -> None:
    recordings = hear(reader, examples)
    batches = SaidBatches(TEXT, recordings, reader, SMALL)
    first = [batch[0] for batch in map(batches.__getitem__, range(len(batches)))]
    again = [batch[0] for batch in map(SaidBatches(TEXT, recordings, reader, SMALL).__getitem__, range(len(batches)))]
    assert all(map(torch.equal, first, again))
    batches.epoch = 1
    other = [batch[0] for batch in map(batches.__getitem__, range(len(batches)))]
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other))
    lengths = [steps for _, steps, _, _ in map(batches.__getitem__, range(len(batches)))]
    assert max(len(steps) * int(steps.max()) for steps in lengths if len(steps) > 1) < 3 * SMALL.batch_steps


def test_what_cannot_be_learned_from_is_refused(
    hearing: CTCModel, model: CTCModel, examples: list[Example], tmp_path: Path
) -> None:
    path = tmp_path / "reader.safetensors"
    with pytest.raises(AsrError, match="hears no phonemes"):
        train_reader(model, TEXT, examples, path, SMALL)
    with pytest.raises(AsrError, match="holds no sentence"):
        train_reader(hearing, ["", "A " * 50], examples, path, SMALL)
    with pytest.raises(AsrError, match="of no recording"):
        train_reader(hearing, TEXT, [], path, SMALL)
    with pytest.raises(AsrError, match="has no layers that read phonemes"):
        train_reader(hearing, TEXT, examples, path, replace(SMALL, layers=0))
    with pytest.raises(AsrError, match="steps=0 must be at least 1"):
        replace(SMALL, steps=0)
    assert not path.exists()


def test_the_command(run: Run, hearing: CTCModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "asr")
    save_model(hearing, tmp_path / "hearing.safetensors")
    text, output = tmp_path / "text.txt", tmp_path / "reader.safetensors"
    held_out = read_manifest(MANIFEST)[0].text
    text.write_text("\n".join([*TEXT, held_out]), encoding="utf-8")
    data = ["--recordings", str(MANIFEST), "--valid", str(MANIFEST), "-o", str(output)]
    sizes = ["--layers", "1", "--size", "8", "--epochs", "1", "--steps", "2", "--batch-steps", "800", "--pieces", "60"]
    outcome = run("learn-text", str(tmp_path / "hearing.safetensors"), str(text), *data, *sizes)
    assert outcome.code == 0
    assert outcome.output.strip() == str(output)
    assert "80 sentences" in caplog.text
    assert "sentences with what no recording has are left out: " in caplog.text
    assert "of the valid set" in caplog.text
    assert load_model(output).config.encoder.reader_size == 8


def test_the_command_replaces_no_model(run: Run, tmp_path: Path) -> None:
    for output, reason in (("model.txt", "must end in .safetensors"), ("same.safetensors", "would replace the model")):
        outcome = run("learn-text", "same.safetensors", "a.txt", "--recordings", "a.jsonl", "-o", output)
        assert outcome.code == 2
        assert reason in outcome.errors


HEAR_TOGETHER = """
import sys
import torch
from asr import load_model, units
from asr.check import check_corpus
from asr.manifest import read_manifest
from asr.reading import WIDE

model = load_model(sys.argv[1])
examples = check_corpus(read_manifest(sys.argv[2]), model).examples
units.BATCH_SECONDS = 20.0  # of several batches
torch.set_num_threads(1)
alone = units.hear(model, examples, WIDE)
torch.distributed.init_process_group("gloo")
together = units.hear(model, examples, WIDE)
assert len(together) == len(alone) == len(examples)
for one, other in zip(together, alone):
    assert one.reference == other.reference and one.phoneme_ids == other.phoneme_ids
    assert (one.log_probs == other.log_probs).all()
torch.distributed.destroy_process_group()
"""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
def test_two_processes_hear_what_one_hears(hearing: CTCModel, tmp_path: Path) -> None:
    save_model(hearing, tmp_path / "hearing.safetensors")
    (tmp_path / "together.py").write_text(HEAR_TOGETHER, encoding="utf-8")
    command = [*TORCHRUN, "together.py", "hearing.safetensors", str(MANIFEST)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_two_processes_train_one_reader(hearing: CTCModel, tmp_path: Path) -> None:
    save_model(hearing, tmp_path / "hearing.safetensors")
    (tmp_path / "text.txt").write_text("\n".join(TEXT), encoding="utf-8")
    data = ["--recordings", str(MANIFEST), "--valid", str(MANIFEST), "-o", "reader.safetensors"]
    sizes = ["--layers", "1", "--size", "8", "--epochs", "1", "--steps", "2", "--batch-steps", "200", "--pieces", "60"]
    command = [*TORCHRUN, "-m", "asr", "learn-text", "hearing.safetensors", "text.txt", *data, *sizes]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "reader.safetensors"
    assert done.stderr.count("of the valid set") == 1
    assert load_model(tmp_path / "reader.safetensors").reader is not None
