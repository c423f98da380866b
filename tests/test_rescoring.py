"""Choosing among the texts of a search by a GRU language model."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")

from asr import beam
from asr.beam import BeamDecoder
from asr.errors import AsrError
from asr.lm_training import LanguageModelSettings, train_language_model
from asr.ngrams import build_ngrams, write_arpa
from asr.pronunciation import Pronunciations
from asr.rescoring import GRU_SHARE
from asr.search import WordSearch
from asr.vocabulary import CharacterVocabulary
from tests.command_line import Run

SAMPLES = Path(__file__).parents[1] / "samples"
VOCABULARY = CharacterVocabulary()
TEXT = ["CAT OR A CAT", "BAT OR A BAT"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    write_arpa(build_ngrams(TEXT, 3), folder / "lm.arpa")
    settings = LanguageModelSettings(
        pieces=60, embedding_size=16, hidden_size=48, epochs=5, batch_tokens=100, learning_rate=0.02
    )
    train_language_model(TEXT * 400, folder / "lm.safetensors", settings)
    return folder


def log_probs_of(text: str, last: dict[str, float]) -> Tensor:
    """(1, steps, vocabulary): each character surely for two steps, then a blank; the last word's first as is given."""
    probabilities = torch.full((3 * len(text), len(VOCABULARY)), 1e-4)
    for place, character in enumerate(text):
        options = last if place == len(text) - 3 else {character: 1.0}
        for other, probability in options.items():
            probabilities[3 * place : 3 * place + 2, VOCABULARY.encode(other)[0]] = probability
        probabilities[3 * place + 2, 0] = 1.0
    return (probabilities / probabilities.sum(1, keepdim=True)).log()[None]


def text_of(decoder: BeamDecoder, log_probs: Tensor) -> str:
    (tokens,) = decoder(log_probs, torch.tensor([log_probs.shape[1]]))
    return VOCABULARY.decode(tokens.token_ids)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_whole_sentence_tells_what_three_words_do_not(folder: Path, processes: int) -> None:
    alone = BeamDecoder(VOCABULARY, folder / "lm.arpa")
    settings: dict[str, Any] = {"rescore": folder / "lm.safetensors", "processes": processes}
    rescored = BeamDecoder(VOCABULARY, folder / "lm.arpa", **settings)
    unlikely = {"CAT OR A CAT": {"C": 0.45, "B": 0.55}, "BAT OR A BAT": {"B": 0.45, "C": 0.55}}
    misheard = {"CAT OR A CAT": "CAT OR A BAT", "BAT OR A BAT": "BAT OR A CAT"}
    heard = [log_probs_of(text, last) for text, last in unlikely.items()]
    assert [text_of(alone, each) for each in heard] == [*misheard.values()]
    assert [text_of(rescored, each) for each in heard] == [*misheard]
    both = rescored(torch.cat(heard), torch.tensor([heard[0].shape[1]] * 2))
    assert [VOCABULARY.decode(tokens.token_ids) for tokens in both] == [*misheard]


@pytest.mark.parametrize(("share", "written"), [(0.9, "CAT OR A BAT"), (1.1, "CAT OR A CAT")])
def test_its_weight_is_a_share_of_the_language_models(
    folder: Path, share: float, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-grams find both alike, so the GRU's weighted difference of two nats stands against what was heard."""
    stub = SimpleNamespace(
        vocabulary=VOCABULARY,
        text_log_probs=lambda texts: [0.0 if text.endswith("BAT") else -2.0 for text in texts],
    )
    monkeypatch.setattr(beam, "load_language_model", lambda _: stub)
    settings: dict[str, Any] = {"rescore": "any", "lm_weight": 0.8, "prior_weight": 0.0}
    decoder = BeamDecoder(VOCABULARY, folder / "lm.arpa", **settings)
    clearer = math.exp(share * 0.8 * GRU_SHARE * 2.0 / 2)  # in each of two steps
    assert text_of(decoder, log_probs_of("CAT OR A CAT", {"B": 1.0, "C": clearer})) == written


def test_nothing_but_blanks_is_an_empty_text(folder: Path) -> None:
    blanks = torch.full((1, 20, len(VOCABULARY)), -20.0)
    blanks[..., 0] = 0.0
    assert text_of(BeamDecoder(VOCABULARY, folder / "lm.arpa", rescore=folder / "lm.safetensors"), blanks) == ""


def test_silence_changes_nothing_and_takes_no_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = BeamDecoder(VOCABULARY, folder / "lm.arpa", rescore=folder / "lm.safetensors")
    heard = log_probs_of("CAT OR A CAT", {"C": 0.6, "B": 0.4})
    silence = torch.full((1, 500, len(VOCABULARY)), -20.0)
    silence[..., 0] = 0.0
    words = heard.tensor_split([12, 21], dim=1)  # cut behind two spaces
    paused = torch.cat([silence, words[0], silence, words[1], silence, words[2], silence], dim=1)
    steps: list[int] = []
    search = WordSearch.__call__
    monkeypatch.setattr(
        WordSearch, "__call__", lambda self, log_probs: steps.append(len(log_probs)) or search(self, log_probs)
    )
    assert text_of(decoder, heard) == text_of(decoder, paused) == "CAT OR A CAT"
    assert steps[1] <= steps[0] + 4  # of each silence the first


def test_the_packaged_one_stands_beside_the_packaged_n_grams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []

    def load(path: object) -> SimpleNamespace:
        loaded.append(path)
        return SimpleNamespace(vocabulary=VOCABULARY)

    monkeypatch.setattr(beam, "load_language_model", load)
    monkeypatch.setattr(beam, "PACKAGED_LANGUAGE_MODEL", folder / "lm.arpa")
    other = folder / "other.arpa"
    other.write_bytes((folder / "lm.arpa").read_bytes())
    BeamDecoder(VOCABULARY, other)
    for language_model in ("packaged", folder / "lm.arpa"):
        BeamDecoder(VOCABULARY, language_model, rescore="none")
    assert loaded == []
    BeamDecoder(VOCABULARY, other, rescore="packaged")
    for language_model in ("packaged", folder / "lm.arpa"):
        BeamDecoder(VOCABULARY, language_model)
    assert loaded == ["packaged"] * 3


def test_commands_rescore(folder: Path, run: Run) -> None:
    recording = SAMPLES / "84-121123-0001.flac"
    lm = "--lm", folder / "lm.arpa"
    done = run("transcribe", recording, *lm, "--rescore", folder / "lm.safetensors")
    assert done.code == 0, done.errors
    assert done.output.strip()
    assert set(done.output.split()) <= {"CAT", "OR", "A", "BAT"}
    commands: list[list[str | Path]] = [["transcribe", recording], ["tune-lm", "packaged", SAMPLES / "manifest.jsonl"]]
    for command in commands:
        done = run(*command, *lm, "--rescore", folder / "lm.arpa")
        assert done.code == 1
        assert "lm.arpa: the GRU language model is damaged" in done.errors
    assert run("transcribe", recording, "--rescore", folder / "lm.safetensors").code == 2


def test_of_words_that_are_written_alike_the_likelier_ones_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arpa(build_ngrams(["the cat", "the cat", "The mat", "cat the"], 2), tmp_path / "lm.arpa")
    heard = log_probs_of("THE CAT", {"C": 1.0})
    scores = []
    for rescore in (None, "any"):
        monkeypatch.setattr(
            beam,
            "load_language_model",
            lambda _: SimpleNamespace(text_log_probs=lambda texts: [0.0] * len(texts), vocabulary=VOCABULARY),
        )
        (tokens,) = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", rescore=rescore)(
            heard, torch.tensor([heard.shape[1]])
        )
        assert VOCABULARY.decode(tokens.token_ids) == "THE CAT"
        scores.append(tokens.lm_log_prob)
    assert scores[0] == scores[1]


def test_a_model_that_cannot_read_what_is_written_is_refused(folder: Path, tmp_path: Path) -> None:
    vocabulary = CharacterVocabulary(" ACT5")
    write_arpa(build_ngrams(["CAT 55", "CAT"], 2), tmp_path / "lm.arpa")
    with pytest.raises(AsrError, match="does not know '5', which the model writes"):
        BeamDecoder(vocabulary, tmp_path / "lm.arpa", rescore=folder / "lm.safetensors")


def test_phonemes_and_the_whole_sentence_are_heard_together(folder: Path) -> None:
    """Letters that leave two words open, phonemes that say the wrong one softly, and a sentence that says the other."""
    pronunciations = Pronunciations({"CAT": ["K", "AE", "T"], "BAT": ["B", "AE", "T"], "OR": ["AO"], "A": ["AX"]})
    letters = log_probs_of("CAT OR A CAT", {"C": 0.5, "B": 0.5})
    phonemes = torch.full((1, letters.shape[1], len(pronunciations)), 1e-4)
    heard = pronunciations.encode("CAT OR A CAT")
    for place, token in enumerate(heard):
        phonemes[0, 3 * place : 3 * place + 2, token] = 1.0
        phonemes[0, 3 * place + 2, 0] = 1.0
    phonemes[0, 3 * len(heard) :, 0] = 1.0
    last = 3 * (len(heard) - 3)
    phonemes[0, last : last + 2, pronunciations.encode("BAT")[0]] = 1.1
    log_probs = torch.cat([letters, (phonemes / phonemes.sum(2, keepdim=True)).log()], dim=2)
    texts = []
    for rescore in (None, folder / "lm.safetensors"):
        decoder = BeamDecoder(VOCABULARY, folder / "lm.arpa", pronunciations=pronunciations, rescore=rescore)
        texts.append(text_of(decoder, log_probs))
    assert texts == ["CAT OR A BAT", "CAT OR A CAT"]
