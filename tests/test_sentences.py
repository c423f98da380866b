"""The GRU language model: its probabilities, its file, and what it learns that n-grams cannot."""

from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from asr import lm_training, text_training
from asr.errors import AsrError
from asr.lm_training import LanguageModelSettings, perplexity, train_language_model
from asr.sentences import SENTENCE_END, GRULanguageModel, load_language_model, save_language_model
from asr.text_batches import ShuffledBatches, TextBatches
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary
from tests.command_line import Run, process

TEXTS = ["THE CAT SAT", "A DOG", "", "THE MAT IS ON THE FLOOR AND A CAT ON THE MAT"]


@pytest.fixture(scope="module")
def model() -> GRULanguageModel:
    torch.manual_seed(0)
    return GRULanguageModel(CharacterVocabulary(), 8, 16).eval()


def ids(model: GRULanguageModel, text: str) -> torch.Tensor:
    return torch.tensor(model.vocabulary.encode(text)).long()


def test_what_may_come_next_adds_up_to_one(model: GRULanguageModel) -> None:
    log_probs, lengths = model(ids(model, "THE CAT")[None], torch.tensor([7]))
    assert log_probs.shape == (1, 8, len(model.vocabulary))
    assert lengths.tolist() == [8]
    torch.testing.assert_close(log_probs.exp().sum(2), torch.ones(1, 8))


def test_a_sentence_is_as_probable_as_its_tokens_one_after_the_other_and_its_end(model: GRULanguageModel) -> None:
    for text in TEXTS:
        tokens = ids(model, text)
        expected = 0.0
        for place in range(len(tokens) + 1):
            log_probs, _ = model(tokens[None, :place], torch.tensor([place]))
            expected += log_probs[0, place, tokens[place] if place < len(tokens) else SENTENCE_END].item()
        assert model.text_log_probs([text]) == pytest.approx([expected], abs=1e-4)


def test_a_text_has_the_same_score_alone_and_beside_others(model: GRULanguageModel) -> None:
    alone = [model.text_log_probs([text])[0] for text in TEXTS]
    assert model.text_log_probs(TEXTS) == pytest.approx(alone, abs=1e-4)
    sentences = [ids(model, text) for text in TEXTS]
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    for padding in (0, 5):
        padded = pad_sequence(sentences, batch_first=True, padding_value=padding)
        assert model.sentence_log_probs(padded, lengths).tolist() == pytest.approx(alone, abs=1e-4)
    assert model.text_log_probs([]) == []


def test_a_text_is_scored_as_the_model_writes_it(model: GRULanguageModel) -> None:
    assert model.text_log_probs(["the café"]) == model.text_log_probs(["THE CAFE"])


@pytest.mark.parametrize("pieces", [False, True])
def test_a_file_gives_the_model_back(model: GRULanguageModel, tmp_path: Path, pieces: bool) -> None:
    if pieces:
        model = GRULanguageModel(SentencePieceVocabulary.train(TEXTS * 9, 24), 8, 16)
    save_language_model(model, tmp_path / "lm.safetensors")
    loaded = load_language_model(tmp_path / "lm.safetensors")
    assert not loaded.training
    assert loaded.text_log_probs(TEXTS) == pytest.approx(model.text_log_probs(TEXTS), abs=0.02)  # half precision
    assert loaded.vocabulary.tokens == model.vocabulary.tokens


def metadata_of(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    header: dict[str, dict[str, str]] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "2"}, "no GRU language model that this release can read"),
        ({"sizes": "[8, 17]"}, "its weights do not fit its own sizes"),
        ({"sizes": "[1000000000000, 1000000]"}, "its weights do not fit its own sizes"),
        ({"sizes": "x"}, "its weights do not fit its own sizes"),
        ({"vocabulary": '{"kind": "words"}'}, "its weights do not fit its own sizes"),
    ],
)
def test_a_file_that_is_no_language_model_is_told(
    model: GRULanguageModel, tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    path = tmp_path / "lm.safetensors"
    save_language_model(model, path)
    save_file(load_file(path), path, {**metadata_of(path), **changes})
    with pytest.raises(AsrError, match=reason):
        load_language_model(path)


def test_a_damaged_file_is_told(model: GRULanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "lm.safetensors"
    with pytest.raises(AsrError, match="language model not found"):
        load_language_model(path)
    save_language_model(model, path)
    metadata = metadata_of(path)
    weights = load_file(path)
    weights["bias"][3] = math.nan
    save_file(weights, path, metadata)
    with pytest.raises(AsrError, match="not finite numbers"):
        load_language_model(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AsrError, match="damaged or not a GRU language model"):
        load_language_model(path)


ANIMALS = ["CAT", "DOG", "BIRD", "FISH"]
AGREEING = [f"{animal} IS A {animal}" for animal in ANIMALS]
SMALL = LanguageModelSettings(
    pieces=60, embedding_size=16, hidden_size=48, epochs=5, batch_tokens=100, learning_rate=0.02
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.safetensors"
    train_language_model(AGREEING * 200, path, SMALL)
    return path


def test_it_learns_what_is_further_back_than_n_grams_reach(trained: Path) -> None:
    model = load_language_model(trained)
    for animal in ANIMALS:
        texts = [f"{animal} IS A {other}" for other in ANIMALS]
        scores = dict(zip(ANIMALS, model.text_log_probs(texts)))
        assert max(scores, key=scores.__getitem__) == animal


def test_perplexity_is_of_the_words_and_the_end(trained: Path) -> None:
    model = load_language_model(trained)
    assert perplexity(model, AGREEING) < 1.4  # one of four animals, for five words and ends
    expected = math.exp(-sum(model.text_log_probs(TEXTS)) / sum(len(text.split()) + 1 for text in TEXTS))
    assert perplexity(model, TEXTS) == pytest.approx(expected)
    assert perplexity(model, TEXTS) > perplexity(model, AGREEING)


def test_a_training_is_the_same_every_time_and_resumed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lm.safetensors"
    monkeypatch.setattr(lm_training._Saver, "on_exception", lambda *_: None)  # as kill -9 leaves it
    save, epochs = lm_training._Saver.on_train_epoch_end, []

    def stop_after_two(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        epochs.append(0)
        if len(epochs) == 2:
            raise OSError("as if the power had gone")

    monkeypatch.setattr(lm_training._Saver, "on_train_epoch_end", stop_after_two)
    with pytest.raises(OSError, match="the power"):
        train_language_model(AGREEING * 200, path, SMALL)
    monkeypatch.undo()
    assert load_language_model(path)
    with pytest.raises(AsrError, match="continue it with --resume"):
        train_language_model(AGREEING * 200, path, SMALL)
    with pytest.raises(AsrError, match=r"had another text, --model, .*; resume it as it was"):
        train_language_model(AGREEING[::-1] * 200, path, SMALL, resume=True)
    with pytest.raises(AsrError, match="had seed=1; resume"):
        train_language_model(AGREEING * 200, path, replace(SMALL, seed=2), resume=True)
    checkpoint = tmp_path / "lm.safetensors.ckpt"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-100])
    with pytest.raises(AsrError, match="is damaged"):
        train_language_model(AGREEING * 200, path, SMALL, resume=True)
    checkpoint.write_bytes(content)
    train_language_model(AGREEING * 200, path, SMALL, resume=True)
    weights, expected = load_file(path), load_file(trained)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert [file.name for file in tmp_path.iterdir()] == ["lm.safetensors"]
    with pytest.raises(AsrError, match="nothing to resume"):
        train_language_model(AGREEING * 200, path, SMALL, resume=True)
    with pytest.raises(AsrError, match="is there already"):
        train_language_model(AGREEING * 200, path, SMALL)


def test_a_training_goes_on_inside_an_epoch_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, step = tmp_path / "lm.safetensors", lm_training._Training.training_step
    steps: list[int] = []

    def stop_in_the_second_epoch(module: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if module.trainer.global_step == 100 and len(steps) == 100:
            raise OSError("as if the power had gone")
        steps.append(module.trainer.global_step)
        return step(module, batch, batch_idx)

    monkeypatch.setattr(text_training, "CHECKPOINT_MINUTES", 0)
    monkeypatch.setattr(lm_training._Saver, "on_exception", lambda *_: None)  # as kill -9 leaves it
    monkeypatch.setattr(lm_training._Training, "training_step", stop_in_the_second_epoch)
    with pytest.raises(OSError, match="the power"):
        train_language_model(AGREEING * 200, path, SMALL)
    steps.append(-1)
    train_language_model(AGREEING * 200, path, SMALL, resume=True)
    assert steps == [*range(100), -1, *range(100, 290)]
    weights, expected = load_file(path), load_file(trained)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert [file.name for file in tmp_path.iterdir()] == ["lm.safetensors"]


def test_a_launchers_first_command_with_resume_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_training, "is_started_again", lambda: True)
    train_language_model(AGREEING, tmp_path / "lm.safetensors", SMALL, resume=True)
    assert load_language_model(tmp_path / "lm.safetensors")


def test_a_training_begins_with_the_model_that_it_is_given(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "lm.safetensors"
    train_language_model(TEXTS[:2], path, replace(SMALL, epochs=1, learning_rate=1e-9), initial_model=trained)
    assert load_language_model(path).text_log_probs(AGREEING) == pytest.approx(
        load_language_model(trained).text_log_probs(AGREEING), abs=0.02
    )
    with pytest.raises(AsrError, match="holds no word to learn from"):
        train_language_model([""], tmp_path / "other.safetensors", SMALL, initial_model=trained)
    with pytest.raises(AsrError, match="are not in the vocabulary"):
        train_language_model(["ÄÄ"], tmp_path / "other.safetensors", SMALL, initial_model=trained)


def test_every_sentence_is_learned_from_once_an_epoch_by_all_processes_together() -> None:
    vocabulary = CharacterVocabulary()
    texts = [*filter(None, TEXTS), *AGREEING, "A" * 40] * 20
    batches = TextBatches(texts, vocabulary, 200, 1)
    orders = [[[*ShuffledBatches(len(batches), 1, epoch, 2, rank)] for rank in range(2)] for epoch in range(2)]
    assert orders[0] != orders[1]
    for first, second in orders:
        assert len(first) == len(second) == math.ceil(len(batches) / 2)
        order = [*first, *second]
        assert len(set(order)) == len(batches) >= len(order) - 1
        read = [batches[index] for index in set(order)]
        assert all(tokens.shape[0] * (tokens.shape[1] + 1) <= 200 for tokens, _ in read)
        seen = [row[:length].tolist() for tokens, lengths in read for row, length in zip(tokens, lengths)]
        assert sorted(seen) == sorted(vocabulary.encode(text) for text in texts)


def test_a_line_of_any_length_is_learned_in_parts(tmp_path: Path) -> None:
    text = " ".join(AGREEING * 300)
    batches = TextBatches([text, "B"], CharacterVocabulary(), 4096, 1)
    lengths = torch.cat([batches[index][1] for index in range(len(batches))])
    assert sorted(lengths.tolist())[-2:] == [128, 128]
    assert batches.num_tokens == int(lengths.sum()) == len(text) + 1
    train_language_model([text], tmp_path / "lm.safetensors", replace(SMALL, epochs=1))
    assert len(load_language_model(tmp_path / "lm.safetensors").vocabulary) > 28  # whole words among the letters


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"hidden_size": 0}, "hidden_size=0 must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be above 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
    ],
)
def test_settings_out_of_range_are_told(setting: dict[str, Any], reason: str) -> None:
    with pytest.raises(AsrError, match=reason):
        LanguageModelSettings(**setting)


def test_texts_and_outputs_that_do_not_do_are_told_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="does not suit the training text"):
        train_language_model([], tmp_path / "lm.safetensors", SMALL)
    (tmp_path / "folder").mkdir()
    with pytest.raises(AsrError, match="is there already"):
        train_language_model(AGREEING, tmp_path / "folder", SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(AsrError, match="cannot be written"):
        train_language_model(AGREEING, tmp_path / "file" / "lm.safetensors", SMALL)
    with pytest.raises(AsrError, match="cannot be written"):
        train_language_model(AGREEING, tmp_path / "file" / "folder" / "lm.safetensors", SMALL)


def test_a_training_that_diverges_ends_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match="the training diverged"):
        train_language_model(AGREEING * 200, tmp_path / "lm.safetensors", replace(SMALL, learning_rate=1e30))
    assert not (tmp_path / "lm.safetensors").exists()


def test_the_command_trains_without_the_valid_sets_sentences(
    tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES"
    (tmp_path / "valid.jsonl").write_text(json.dumps({"audio": "a.wav", "text": held_out, "duration": 5.0}) + "\n")
    (tmp_path / "text.txt").write_text("\n".join([held_out, *AGREEING * 20]))
    arguments: list[str | Path] = [
        tmp_path / "text.txt",
        "--held-out",
        tmp_path / "valid.jsonl",
        "--epochs",
        "1",
        "--pieces",
        "40",
    ]
    caplog.set_level(logging.INFO)
    done = run("lm", "train", *arguments, "--hidden-size", "16", "-o", tmp_path / "lm.safetensors")
    assert done.code == 0, done.errors
    assert done.output.startswith(f"{tmp_path / 'lm.safetensors'}\t")
    assert "1 sentences share 8 words in a row" in caplog.text
    assert "perplexity" in caplog.text
    assert run("lm", "train", *arguments, "-o", tmp_path / "lm.arpa").code == 2


def test_text_for_a_model_that_is_trained_on_is_written_in_its_alphabet(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    alphabet, first = " abcdefghijklmnopqrstuvwxyzäöü", tmp_path / "a.safetensors"
    train_language_model(["über den wolken", "öl und äpfel"] * 20, first, SMALL, alphabet=alphabet)
    (tmp_path / "text.txt").write_text("Über den Wolken\n", encoding="utf-8")
    read: list[tuple[list[str], str]] = []

    def note(text: Iterable[str], path: Path, *_: Any, **settings: Any) -> None:
        read.append((list(text), settings["alphabet"]))
        path.touch()

    monkeypatch.setattr("asr.lm_training.train_language_model", note)
    arguments = "--initial-model", first, "-o", tmp_path / "b.safetensors"
    assert run("lm", "train", tmp_path / "text.txt", *arguments).code == 0
    assert read == [(["über den wolken"], load_language_model(first).vocabulary.alphabet)]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_training_says_that_it_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(AGREEING * 2000))
    sizes = "--pieces", "40", "--hidden-size", "16", "--epochs", "500"
    interrupted = process("lm", "train", tmp_path / "text.txt", *sizes, "-o", tmp_path / "lm.safetensors")
    deadline = time.monotonic() + 120
    while not (tmp_path / "lm.safetensors.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=120)
    assert interrupted.returncode != 0
    assert "Traceback" not in errors
    assert "--resume continues from" in errors
    assert load_language_model(tmp_path / "lm.safetensors")


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(AGREEING * 100))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "asr", "lm", "train", "text.txt", "--pieces", "40", "--hidden-size", "16"]
    done = subprocess.run([*command, "-o", "lm.safetensors"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("lm.safetensors\t")
    assert done.stderr.count("pieces of words") == 1
    assert load_language_model(tmp_path / "lm.safetensors")
