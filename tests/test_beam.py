"""Beam search: what the language model changes, and what it must not."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import sys
import threading
import time
from argparse import ArgumentParser
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from torch import Tensor

pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")

from asr import load_model
from asr.audio import open_audio, read_audio
from asr.beam import BeamDecoder
from asr.cli import main
from asr.commands.options import add_language_model_options, make_decode
from asr.decoder import decode_greedy
from asr.errors import AsrError
from asr.longform import stream_log_probs
from asr.manifest import read_manifest
from asr.metrics import word_errors
from asr.model import CTCModel
from asr.ngrams import NgramModel, build_ngrams, read_arpa_unigrams, write_arpa
from asr.search import _without_stderr
from asr.transcript import find_words
from asr.transcription import Recording, transcribe_recordings
from asr.tuning import Example, compute_log_probs, find_best, tune
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary, Vocabulary

SAMPLES = Path(__file__).parents[1] / "samples"
VOCABULARY = CharacterVocabulary()
TEXT = ["THE CAT SAT ON THE MAT", "THE CAT SAT ON THE CHAIR", "A BAT SAT ON A HAT", "THE CAT ATE"]


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa(build_ngrams(TEXT, 3), path)
    return path


def log_probs_of(text: str, alternatives: dict[int, dict[str, float]] | None = None) -> Tensor:
    """(1, steps, vocabulary): each character surely for two steps, then a blank, but for the given alternatives."""
    probabilities = torch.full((3 * len(text), len(VOCABULARY)), 1e-4)
    for place, character in enumerate(text):
        options = (alternatives or {}).get(place, {character: 1.0})
        for other, probability in options.items():
            probabilities[3 * place : 3 * place + 2, VOCABULARY.encode(other)[0]] = probability
        probabilities[3 * place + 2, 0] = 1.0
    return (probabilities / probabilities.sum(1, keepdim=True)).log()[None]


def text_of(decoder: object, log_probs: Tensor) -> str:
    (tokens,) = decoder(log_probs, torch.tensor([log_probs.shape[1]]))  # type: ignore[operator]
    return VOCABULARY.decode(tokens.token_ids)


def test_what_is_clear_is_written_as_it_is_greedily(arpa: Path) -> None:
    decoder = BeamDecoder(VOCABULARY, arpa)
    for text in TEXT:
        assert text_of(decoder, log_probs_of(text)) == text_of(decode_greedy, log_probs_of(text)) == text


def test_the_language_model_decides_what_is_not_clear(arpa: Path) -> None:
    """The pitfall of wrong word numbers: with them the ranking would not follow the model."""
    unclear = log_probs_of("THE CAT SAT", {4: {"C": 0.45, "B": 0.55}})
    assert text_of(decode_greedy, unclear) == "THE BAT SAT"
    assert text_of(BeamDecoder(VOCABULARY, arpa, lm_weight=1.0), unclear) == "THE CAT SAT"
    assert text_of(BeamDecoder(VOCABULARY, arpa, lm_weight=0.0), unclear) == "THE BAT SAT"
    other = log_probs_of("A BAT SAT", {2: {"C": 0.55, "B": 0.45}})
    assert text_of(BeamDecoder(VOCABULARY, arpa, lm_weight=1.0), other) == "A BAT SAT"


def log_probability(model: NgramModel, sentence: str) -> float:
    """The natural logarithm of what a bigram model gives a sentence."""
    probabilities, backoffs = {}, {}
    for rows, log10_probabilities, log10_backoffs in zip(model.ngrams, model.log10_probabilities, model.log10_backoffs):
        for row, probability, backoff in zip(rows.tolist(), log10_probabilities, log10_backoffs):
            ngram = tuple(model.words[word] for word in row)
            probabilities[ngram], backoffs[ngram] = probability, backoff
    pairs = pairwise(["<s>", *sentence.split(), "</s>"])
    return math.log(10) * sum(
        probabilities.get(pair, backoffs.get(pair[:1], 0.0) + probabilities[pair[1:]]) for pair in pairs
    )


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(("share", "written"), [(0.9, "CAT"), (1.1, "BAT")])
def test_the_weight_is_of_natural_logarithms(tmp_path: Path, weight: float, share: float, written: str) -> None:
    """The language model wins as long as the weighted difference of its log-probabilities is the larger one."""
    model = build_ngrams([*TEXT, "CAT", "CAT", "BAT"], 2)
    write_arpa(model, tmp_path / "lm.arpa")
    difference = log_probability(model, "CAT") - log_probability(model, "BAT")
    assert difference > 0.2
    heard = math.exp(share * weight * difference / 2)  # in each of two steps
    unclear = log_probs_of("CAT", {0: {"C": 1.0, "B": heard}})
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", lm_weight=weight, prior_weight=0.0)
    assert text_of(decoder, unclear) == written


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize(("share", "written"), [(0.9, "CAC"), (1.1, "TAC")])
def test_the_prior_takes_off_how_common_a_letter_is(tmp_path: Path, weight: float, share: float, written: str) -> None:
    """The word with the commoner letter must be heard better, by the weighted difference of the log-frequencies."""
    write_arpa(build_ngrams(["TAC CAC", "CAC TAC", "TAT TUT", "TUT TAT"], 2), tmp_path / "lm.arpa")
    unigrams = [(word, 10**probability) for word, probability in read_arpa_unigrams(tmp_path / "lm.arpa")]
    of_t, of_c = (sum(word.count(letter) * probability for word, probability in unigrams) for letter in "TC")
    assert of_t > 1.2 * of_c
    unclear = log_probs_of("CAC", {0: {"C": 1.0, "T": (of_t / of_c) ** (weight * share)}})
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", lm_weight=0.0, prior_weight=weight)
    assert text_of(decoder, unclear) == written


def test_the_paths_of_a_text_are_summed(tmp_path: Path) -> None:
    """As CTC sums them: a letter somewhere in three steps is likelier than three blanks, which no single path is."""
    write_arpa(build_ngrams(["CAT ACAT", "ACAT CAT"], 2), tmp_path / "lm.arpa")
    heard = log_probs_of("ACAT").exp()
    heard[0, :3] = 1e-6
    heard[0, :3, 0], heard[0, :3, VOCABULARY.encode("A")[0]] = 0.7, 0.3
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", lm_weight=0.0, prior_weight=0.0)
    assert text_of(decoder, heard.log()) == "ACAT"


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize(("share", "written"), [(0.9, "CAT"), (1.1, "ACAT")])
def test_a_blank_is_as_common_as_all_that_is_written(tmp_path: Path, weight: float, share: float, written: str) -> None:
    write_arpa(build_ngrams(["CAT ACAT", "ACAT CAT"], 2), tmp_path / "lm.arpa")
    unigrams = [(word, 10**probability) for word, probability in read_arpa_unigrams(tmp_path / "lm.arpa")]
    of_a = sum(word.count("A") * probability for word, probability in unigrams)
    of_all = sum((len(word) + 1) * probability for word, probability in unigrams)  # the space behind it included
    unclear = log_probs_of("ACAT")
    unclear[0, 0] = unclear[0, 2]  # a blank: only at one step is it open whether there is a letter
    unclear[0, 1, 0] = unclear[0, 1, VOCABULARY.encode("A")[0]] - math.log((of_a / of_all) ** weight * share)
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", lm_weight=0.0, prior_weight=weight)
    assert text_of(decoder, unclear) == written


@pytest.mark.parametrize("text", ["THE CAT SAT", "A CAT AND A DOG", ""])
def test_the_score_is_the_language_models_own(tmp_path: Path, text: str) -> None:
    model = build_ngrams([*TEXT, "A CAT AND A DOG"], 2)
    write_arpa(model, tmp_path / "lm.arpa")
    log_probs = (
        log_probs_of(text) if text else torch.full((1, 9, len(VOCABULARY)), -20.0).index_fill(2, torch.tensor(0), 0)
    )
    (tokens,) = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa")(log_probs, torch.tensor([log_probs.shape[1]]))
    assert VOCABULARY.decode(tokens.token_ids) == text
    if text:
        assert tokens.lm_log_prob == pytest.approx(log_probability(model, text), abs=1e-3)


def test_only_words_of_the_lexicon_are_written(arpa: Path) -> None:
    spoken = log_probs_of("THE KAT SAT")
    first, *middle, last = text_of(BeamDecoder(VOCABULARY, arpa), spoken).split()
    assert (first, last) == ("THE", "SAT")
    assert set(middle) < {word for line in TEXT for word in line.split()}
    assert text_of(BeamDecoder(VOCABULARY, arpa, lexicon=["THE", "KAT", "SAT"]), spoken) == "THE KAT SAT"


def test_times_are_those_of_the_words_that_were_heard(arpa: Path, model: CTCModel) -> None:
    log_probs = log_probs_of("THE CAT SAT")
    lengths = torch.tensor([log_probs.shape[1]])
    (greedy,), (searched,) = decode_greedy(log_probs, lengths), BeamDecoder(VOCABULARY, arpa)(log_probs, lengths)
    assert find_words(searched, model) == find_words(greedy, model)


def test_a_batch_decodes_as_each_of_it_alone(arpa: Path) -> None:
    decoder = BeamDecoder(VOCABULARY, arpa)
    long, short = log_probs_of("THE CAT SAT ON THE MAT"), log_probs_of("A BAT")
    padded = torch.cat([short, long[:, short.shape[1] :]], dim=1)
    both = decoder(torch.cat([long, padded]), torch.tensor([long.shape[1], short.shape[1]]))
    assert [VOCABULARY.decode(tokens.token_ids) for tokens in both] == ["THE CAT SAT ON THE MAT", "A BAT"]


def test_log_probs_with_a_gradient_are_decoded_as_those_without(arpa: Path) -> None:
    decoder, heard = BeamDecoder(VOCABULARY, arpa), log_probs_of("THE CAT SAT")
    assert text_of(decoder, heard.clone().requires_grad_()) == text_of(decoder, heard) == "THE CAT SAT"


def test_nothing_but_blanks_is_an_empty_text(arpa: Path) -> None:
    blanks = torch.full((1, 20, len(VOCABULARY)), -20.0)
    blanks[..., 0] = 0.0
    assert text_of(BeamDecoder(VOCABULARY, arpa), blanks) == ""


def test_pieces_of_words_can_be_searched_too(arpa: Path) -> None:
    vocabulary = SentencePieceVocabulary.train(TEXT * 20, 18)
    token_ids = vocabulary.encode("THE CAT SAT")
    probabilities = torch.full((2 * len(token_ids), len(vocabulary)), 1e-4)
    probabilities[torch.arange(0, 2 * len(token_ids), 2), token_ids] = 1.0
    probabilities[1::2, 0] = 1.0
    log_probs = (probabilities / probabilities.sum(1, keepdim=True)).log()[None]
    (tokens,) = BeamDecoder(vocabulary, arpa)(log_probs, torch.tensor([log_probs.shape[1]]))
    assert vocabulary.decode(tokens.token_ids) == "THE CAT SAT"


UNSPACED = ["你好 吗", "中文 字 ABC 二", "ABC 你好 XYZ ABC 三", "ABC"]
LETTERS = CharacterVocabulary(" ABCXYZ一二三中文字你好吗")
PIECES = SentencePieceVocabulary.train([*map(LETTERS.normalize, UNSPACED)] * 3, 80, LETTERS.alphabet)


@pytest.mark.parametrize("vocabulary", [LETTERS, PIECES])
def test_words_without_spaces_between_them_are_found_at_each_place(tmp_path: Path, vocabulary: Vocabulary) -> None:
    texts = [vocabulary.normalize(text) for text in UNSPACED]
    write_arpa(build_ngrams(texts * 5, 2), tmp_path / "lm.arpa")
    decoder = BeamDecoder(vocabulary, tmp_path / "lm.arpa")
    for text in texts:
        path = [token_id for each in vocabulary.encode(text) for token_id in (each, 0)]
        heard = torch.full((1, len(path), len(vocabulary)), -8.0)
        heard[0, range(len(path)), path] = 0.0
        (tokens,) = decoder(heard.log_softmax(2), torch.tensor([len(path)]))
        assert vocabulary.decode(tokens.token_ids) == text


@pytest.mark.parametrize(
    ("vocabulary", "weight"), [(VOCABULARY, 1.2), (SentencePieceVocabulary.train(TEXT * 20, 18), 0.8)]
)
def test_the_weight_is_that_of_letters_or_of_pieces(arpa: Path, vocabulary: Vocabulary, weight: float) -> None:
    torch.manual_seed(0)
    unclear = (2 * torch.randn(20, 40, len(vocabulary))).log_softmax(2)
    searches = [
        BeamDecoder(vocabulary, arpa, **given).search for given in ({}, {"lm_weight": weight}, {"lm_weight": 0.5})
    ]
    by_default, as_said, otherwise = ([search(row) for row in unclear.numpy()] for search in searches)
    assert by_default == as_said != otherwise


def test_real_speech_in_windows_and_whole_has_words_of_the_language_model_only(
    tmp_path: Path, sample_paths: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES\nWE ARE GLAD TO WELCOME HIS GOSPEL\nAND\n")
    assert main(["lm", "build", str(text), "--order", "2", "-o", str(tmp_path / "lm.arpa")]) == 0
    assert "n-grams by length: 19 of 1, " in capsys.readouterr().out
    assert main(["transcribe", str(sample_paths[0]), "--lm", str(tmp_path / "lm.arpa")]) == 0
    said = capsys.readouterr().out.strip()
    assert set(said.split()) <= set(text.read_text().split())
    assert (
        word_errors(
            "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES AND WE ARE GLAD TO WELCOME HIS GOSPEL", said
        ).rate
        < 0.3
    )
    monkeypatch.setattr("asr.transcription.LONG_SECONDS", 0.0)
    decode = BeamDecoder.for_model(load_model(), tmp_path / "lm.arpa")
    (result,) = transcribe_recordings(load_model(), [Recording(sample_paths[0], "a")], decode=decode)
    assert str(result) == said


def test_tuning_finds_the_weights_of_the_lowest_error_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "text.txt").write_text("\n".join(line["text"] for line in lines))
    assert main(["lm", "build", str(tmp_path / "text.txt"), "-o", str(tmp_path / "lm.arpa")]) == 0
    capsys.readouterr()
    arguments = ["packaged", str(SAMPLES / "manifest.jsonl"), "--lm", str(tmp_path / "lm.arpa")]
    assert main(["tune-lm", *arguments]) == 0
    *points, best = capsys.readouterr().out.splitlines()
    assert len({point.split("\t")[0] for point in points}) == len(points) > 16
    rates = [float(point.split("WER ")[1].rstrip("%")) for point in points]
    assert best.split("WER ")[1] == f"{min(rates):.2f}%"
    assert best.removeprefix("best: ") in points
    weights = [[float(option) for option in point.split("\t")[0].split()[1::2]] for point in points]
    lm_weight, word_score, prior_weight = weights[rates.index(min(rates))]
    around = {(lm_weight + lm, word_score + word) for lm in (-0.25, 0, 0.25) for word in (-0.5, 0, 0.5)}
    assert around <= {(lm, word) for lm, word, _ in weights}
    assert {(lm_weight, word_score, prior_weight + step) for step in (-0.25, 0.25)} <= set(map(tuple, weights))
    options = best.removeprefix("best: ").split("\t")[0].split()
    assert main(["evaluate", *arguments, *options, "--beam-size", "100"]) == 0
    assert f"WER {min(rates):.2f}%" in capsys.readouterr().out


def test_tuning_goes_on_past_the_edge_of_its_grid_as_long_as_it_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = build_ngrams(["CAT", "CAT", "CAT", "ACT"], 2)
    write_arpa(lm, tmp_path / "lm.arpa")
    difference = log_probability(lm, "CAT") - log_probability(lm, "ACT")

    def heard(weight: float) -> Example:
        """CAT is written from this weight of the language model on, and before it ACT, of the same letters."""
        clearer = math.exp(weight * difference / 4)
        return "CAT", [log_probs_of("CAT", {0: {"C": 1.0, "A": clearer}, 1: {"A": 1.0, "C": clearer}})[0].numpy()]

    examples = [heard(weight) for weight in (1.9, 2.1, 2.4, 2.6, 2.9)]
    monkeypatch.setattr("asr.tuning.compute_log_probs", lambda *_, **__: examples)
    points = list(
        tune(
            SimpleNamespace(vocabulary=VOCABULARY, pronunciations=None, phonemes_by_mmi=False),
            [],
            tmp_path / "lm.arpa",
            processes=1,
        )
    )  # type: ignore[arg-type]
    best = find_best(points)
    assert (best.lm_weight, best.words.errors) == (3.0, 0)
    assert len({point.weights for point in points}) == len(points)


def test_tuning_hears_what_transcription_hears(monkeypatch: pytest.MonkeyPatch) -> None:
    model, utterances = load_model(), read_manifest(SAMPLES / "manifest.jsonl")[:4]
    utterances[0] = replace(utterances[0], start_seconds=1.0, duration_seconds=2.0)
    sorted_utterances = sorted(utterances, key=lambda utterance: utterance.duration_seconds)
    alone = [compute_log_probs(model, [utterance])[0] for utterance in sorted_utterances]
    for most in (160.0, sorted_utterances[1].duration_seconds * 2):
        monkeypatch.setattr("asr.tuning.BATCH_SECONDS", most)
        together = compute_log_probs(model, utterances)
        assert [text for text, _ in together] == [text for text, _ in alone]
        for (_, (ours,)), (_, (theirs,)) in zip(together, alone, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-3)
    monkeypatch.setattr("asr.tuning.LONG_SECONDS", 0.0)
    for utterance, (text, ours) in zip(sorted_utterances, compute_log_probs(model, utterances), strict=True):
        with open_audio(utterance.audio_path, model.sample_rate) as audio:
            blocks = audio.blocks(utterance.start_seconds, utterance.duration_seconds)
            stretches = list(stream_log_probs(model, blocks, batch_seconds=160.0))
        assert text == model.vocabulary.normalize(utterance.text)
        for part, stretch in zip(ours, stretches, strict=True):
            torch.testing.assert_close(torch.tensor(part), stretch, rtol=0, atol=1e-3)


def test_of_a_long_utterance_tuning_hears_each_stretch_that_may_hold_speech(
    tmp_path: Path, sample_paths: list[Path]
) -> None:
    model = load_model()
    rate, speech = model.sample_rate, [read_audio(path, model.sample_rate) for path in sample_paths[:2]]
    soundfile.write(tmp_path / "a.flac", torch.cat([speech[0], torch.zeros(40 * rate), speech[1]]).numpy(), rate)
    (tmp_path / "a.csv").write_text(f"audio,text\n{tmp_path}/a.flac,A\n")
    ((_, rows),) = compute_log_probs(model, read_manifest(tmp_path / "a.csv"))
    assert len(rows) >= 2
    assert sum(map(len, rows)) * model.step_samples < sum(map(len, speech)) + 20 * rate, "half of the silence at most"


def test_the_packaged_language_model_takes_a_quarter_of_the_errors_on_real_speech(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = []
    for options in ([], ["--lm", "packaged"]):
        assert main(["evaluate", "packaged", str(SAMPLES / "manifest.jsonl"), *options]) == 0
        rates.append(float(capsys.readouterr().out.split("WER ")[1].split("%")[0]))
    assert rates[1] < 0.75 * rates[0]


def test_a_hotword_must_be_surer_to_replace_a_word_that_the_language_model_chose(arpa: Path) -> None:
    parser = ArgumentParser()
    add_language_model_options(parser)
    heard = log_probs_of("THE CAT SAT ON THE MAT", {4: {"C": 0.97, "R": 0.03}})  # two steps of 3.5 nats

    def said(*arguments: str) -> str:
        model = SimpleNamespace(vocabulary=VOCABULARY, pronunciations=None, phonemes_by_mmi=False)
        return text_of(make_decode(parser.parse_args(arguments), model), heard)  # type: ignore[arg-type]

    assert said("--hotword", "Rat") == "THE RAT SAT ON THE MAT"
    assert said("--hotword", "Rat", "--lm", str(arpa)) == "THE CAT SAT ON THE MAT"
    assert said("--hotword", "Rat:8", "--lm", str(arpa)) == "THE RAT SAT ON THE MAT"


def test_a_compressed_language_model_is_the_same(arpa: Path, tmp_path: Path) -> None:
    model = build_ngrams(TEXT, 3)
    for name in ("a.arpa.gz", "B.ARPA.GZ"):
        write_arpa(model, tmp_path / name)
    content = (tmp_path / "a.arpa.gz").read_bytes()
    assert content == (tmp_path / "B.ARPA.GZ").read_bytes()
    assert gzip.decompress(content) == arpa.read_bytes()
    unclear = log_probs_of("THE CAT SAT", {4: {"C": 0.4, "B": 0.6}})
    names = arpa, tmp_path / "a.arpa.gz", tmp_path / "B.ARPA.GZ"
    assert len({text_of(BeamDecoder(VOCABULARY, path), unclear) for path in names}) == 1
    (tmp_path / "cut.arpa.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(AsrError, match=r"cut\.arpa\.gz: the language model "):
        BeamDecoder(VOCABULARY, tmp_path / "cut.arpa.gz")


def test_the_words_of_an_arpa_file_are_read_with_their_probabilities(arpa: Path) -> None:
    read = dict(read_arpa_unigrams(arpa))
    assert sorted(read) == sorted({word for line in TEXT for word in line.split()})
    assert 0.5 < sum(10**probability for probability in read.values()) < 1  # the rest is that of </s> and <unk>


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u0085"])
def test_a_word_with_white_space_in_it_is_left_out_and_not_taken_for_its_beginning(
    arpa: Path, tmp_path: Path, space: str
) -> None:
    changed = arpa.read_text().replace("\tCAT", f"\tCAT{space}FISH").replace(" CAT", f" CAT{space}FISH")
    (tmp_path / "lm.arpa").write_text(changed, encoding="utf-8")
    words = [word for word, _ in read_arpa_unigrams(arpa)]
    assert [word for word, _ in read_arpa_unigrams(tmp_path / "lm.arpa")] == [word for word in words if word != "CAT"]
    assert text_of(BeamDecoder(VOCABULARY, tmp_path / "lm.arpa"), log_probs_of("THE BAT SAT")) == "THE BAT SAT"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the language model cannot be read: No such file or directory"),
        (b"\x10\x00\xff{}", r"not a language model in ARPA form, which is text in UTF-8 \(.*\); `asr lm build`"),
        (b"hello\n", "not a language model in ARPA form"),
        (b"\\1-grams:\nhello\tTHE\n", "the language model cannot be read: could not convert string to float"),
        (b"\\data\\\nngram 1=-5\n\n\\1-grams:\n", "the language model cannot be read: 'ngram 1=-5' is no count"),
    ],
)
def test_a_file_that_is_no_language_model_is_told(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "lm.arpa"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AsrError, match=reason):
        BeamDecoder(VOCABULARY, path)


@pytest.mark.parametrize(
    ("written", "other", "reason"),
    [
        (r"\t</s>", r"\tX", "The ARPA file is missing </s>"),
        (r"-[\d.]+\tTHE\t", r"0.2\tTHE\t", "Positive log probability 0.2 in the model"),
    ],
)
def test_what_kenlm_refuses_is_told_without_its_own_advice(
    arpa: Path, tmp_path: Path, written: str, other: str, reason: str
) -> None:
    (tmp_path / "lm.arpa").write_text(re.sub(written, other, arpa.read_text(), count=1))
    with pytest.raises(AsrError) as error:
        BeamDecoder(VOCABULARY, tmp_path / "lm.arpa")
    mend = "mend the file, or make one by `asr lm build`"
    assert str(error.value) == f"{tmp_path}/lm.arpa: the language model cannot be used: {reason}; {mend}"


@pytest.mark.parametrize("kept", [0.4, 0.7, 0.9])
def test_a_language_model_that_was_cut_short_is_told(arpa: Path, tmp_path: Path, kept: float) -> None:
    content = arpa.read_text()
    (tmp_path / "cut.arpa").write_text(content[: int(kept * len(content))])
    with pytest.raises(AsrError, match=r"cut\.arpa: (the language model cannot be used: |not a language model)"):
        BeamDecoder(VOCABULARY, tmp_path / "cut.arpa")


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"beam_size": 0}, "beam_size=0 must be a whole number from 1 to 1,000,000"),
        ({"beam_size": 2**31}, "beam_size=2147483648 must be a whole number from 1"),
        ({"beam_size": 10.5}, "beam_size=10.5 must be a whole number"),
        ({"lm_weight": float("nan")}, "lm_weight=nan must be a finite number"),
        ({"word_score": float("inf")}, "word_score=inf must be a finite number"),
        ({"prior_weight": float("nan")}, "prior_weight=nan must be a finite number"),
    ],
)
def test_settings_out_of_range_are_told(arpa: Path, setting: dict[str, float], reason: str) -> None:
    with pytest.raises(AsrError, match=reason):
        BeamDecoder(VOCABULARY, arpa, **setting)  # type: ignore[arg-type]


def test_one_decoder_serves_batches_side_by_side(arpa: Path) -> None:
    decoder = BeamDecoder(VOCABULARY, arpa)
    inputs = [log_probs_of(text) for text in TEXT * 20]
    with ThreadPoolExecutor(8) as executor:
        texts = list(executor.map(lambda log_probs: text_of(decoder, log_probs), inputs))
    assert texts == TEXT * 20


def test_searches_in_other_processes_find_the_same(arpa: Path) -> None:
    log_probs = torch.nn.utils.rnn.pad_sequence([log_probs_of(text)[0] for text in TEXT * 3], batch_first=True)
    lengths = torch.tensor([log_probs_of(text).shape[1] for text in TEXT * 3])
    alone, beside = (BeamDecoder(VOCABULARY, arpa, processes=processes)(log_probs, lengths) for processes in (1, 2))
    assert beside == alone
    assert [VOCABULARY.decode(tokens.token_ids) for tokens in beside] == TEXT * 3


def test_the_processes_end_with_the_decoder(arpa: Path) -> None:
    before = set(active_children())
    decoder = BeamDecoder(VOCABULARY, arpa, processes=2)
    copies = set(active_children()) - before
    del decoder
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{copy.pid}").exists() for copy in copies) and time.monotonic() < deadline:
        time.sleep(0.05)  # the executor reaps them: to wait for them here too would be a race for their exit codes
    assert len(copies) == 2
    assert not any(Path(f"/proc/{copy.pid}").exists() for copy in copies)


def test_a_file_of_words_is_a_lexicon_and_one_of_spellings_is_refused(
    tmp_path: Path, arpa: Path, model: CTCModel
) -> None:
    path = tmp_path / "words.txt"
    parser = ArgumentParser()
    add_language_model_options(parser)
    options = parser.parse_args(["--lm", str(arpa), "--lexicon", str(path)])
    path.write_text("the\n\nkat\nSAT\n")
    decode = make_decode(options, model)
    assert text_of(decode, log_probs_of("THE KAT SAT")) == "THE KAT SAT"
    path.write_text("THE\nKAT K A T |\n")
    with pytest.raises(AsrError, match=r"words\.txt: 'KAT K A T \|' is not one word; leave spellings out"):
        make_decode(options, model)


def test_a_language_model_without_word_pairs_is_refused_in_words(tmp_path: Path) -> None:
    write_arpa(build_ngrams(TEXT, 1), tmp_path / "one.arpa")
    with pytest.raises(AsrError, match=r"one\.arpa: the language model cannot be used: This .* at least a bigram"):
        BeamDecoder(VOCABULARY, tmp_path / "one.arpa")


def test_a_decoder_of_another_model_is_told(arpa: Path) -> None:
    decoder = BeamDecoder(VOCABULARY, arpa)
    with pytest.raises(AsrError, match="made for 29 tokens, and the model has 31; make it with that model's"):
        decoder(torch.zeros(1, 9, 31), torch.tensor([9]))


def test_decoders_that_are_made_side_by_side_leave_standard_error_where_it_was() -> None:
    first_is_in, second_is_in = threading.Event(), threading.Event()

    def first() -> None:
        with _without_stderr():
            first_is_in.set()
            second_is_in.wait(0.5)  # in vain, where one waits for the other

    def second() -> None:
        first_is_in.wait()
        with _without_stderr():
            second_is_in.set()
            thread.join()

    before, thread = os.fstat(2), threading.Thread(target=first)
    thread.start()
    second()
    assert os.path.samestat(before, os.fstat(2))


def test_a_program_whose_standard_error_is_closed_has_a_decoder_too(arpa: Path) -> None:
    before = os.dup(2)
    os.close(2)
    try:
        BeamDecoder(VOCABULARY, arpa)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(2)
    finally:
        os.dup2(before, 2)
        os.close(before)


def test_weights_are_not_tuned_where_there_is_nothing_to_count(model: CTCModel, arpa: Path, tmp_path: Path) -> None:
    samples = read_manifest(SAMPLES / "manifest.jsonl")[:1]
    with pytest.raises(AsrError, match=r"^no reference holds a letter that the model writes"):
        next(tune(model, [replace(samples[0], text="123")], arpa, processes=1, beam_size=2))
    with pytest.raises(AsrError, match=r"^.*manifest\.jsonl:1: /none\.wav: audio file cannot be opened"):
        next(tune(model, [replace(samples[0], audio_path="/none.wav")], arpa, processes=1, beam_size=2))


def test_a_word_of_absurd_length_is_not_written_and_does_not_end_the_process(tmp_path: Path) -> None:
    write_arpa(build_ngrams(["THE CAT", "W" * 100_000], 2), tmp_path / "long.arpa")
    assert text_of(BeamDecoder(VOCABULARY, tmp_path / "long.arpa"), log_probs_of("THE CAT")) == "THE CAT"


def test_an_empty_lexicon_and_a_vocabulary_with_the_mark_of_the_space_are_told(arpa: Path) -> None:
    with pytest.raises(AsrError, match=r"^the lexicon: none of its words can be written"):
        BeamDecoder(VOCABULARY, arpa, lexicon=[])
    with pytest.raises(AsrError, match=r"^lexicon='WORDS' must be a list of words; of a file, give its lines"):
        BeamDecoder(VOCABULARY, arpa, lexicon="WORDS")
    with pytest.raises(AsrError, match=r"^a model that writes '\|' cannot be used with a language model"):
        BeamDecoder(CharacterVocabulary("AB |"), arpa)


@pytest.mark.parametrize("lexicon", [None, ["THE", "CAT", "BAT", "SAT"], ["The", "cat", "bat", "sat"]])
def test_a_language_model_in_lower_case_is_as_good_as_one_in_capitals(
    arpa: Path, tmp_path: Path, lexicon: list[str] | None
) -> None:
    write_arpa(build_ngrams([text.lower() for text in TEXT], 3), tmp_path / "lower.arpa")
    heard = log_probs_of("THE CAT SAT", {4: {"C": 0.45, "B": 0.55}})
    found = []
    for path in (arpa, tmp_path / "lower.arpa"):
        found += BeamDecoder(VOCABULARY, path, lexicon=lexicon, lm_weight=1.0)(heard, torch.tensor([heard.shape[1]]))
    assert [VOCABULARY.decode(tokens.token_ids) for tokens in found] == ["THE CAT SAT"] * 2
    assert found[0].lm_log_prob == pytest.approx(found[1].lm_log_prob, abs=1e-4)


def test_spaces_around_a_word_of_a_lexicon_are_no_part_of_it(arpa: Path) -> None:
    heard = log_probs_of("THE CAT SAT")
    plain = BeamDecoder(VOCABULARY, arpa, lexicon=["THE", "CAT", "SAT"])(heard, torch.tensor([heard.shape[1]]))
    spaced = BeamDecoder(VOCABULARY, arpa, lexicon=["THE ", " CAT", " SAT "])(heard, torch.tensor([heard.shape[1]]))
    assert VOCABULARY.decode(spaced[0].token_ids) == "THE CAT SAT"
    assert spaced[0].lm_log_prob == plain[0].lm_log_prob
    with pytest.raises(AsrError, match=r"^the lexicon: none of its words \('THE CAT'\) can be written"):
        BeamDecoder(VOCABULARY, arpa, lexicon=["THE CAT"])


def test_of_the_words_of_a_language_model_those_are_written_that_stay_one_word(tmp_path: Path) -> None:
    write_arpa(build_ngrams(["The café", "the Café hi-fi", "42 no.", "the cafe"], 2), tmp_path / "lm.arpa")
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa")
    assert text_of(decoder, log_probs_of("THE CAFE")) == "THE CAFE"
    for text in ("HI FI", "HIFI", "NO"):
        assert set(text_of(decoder, log_probs_of(text)).split()) <= {"THE", "CAFE"}


def test_of_many_words_that_are_written_alike_the_most_frequent_are_searched_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """flashlight-text holds six words of one spelling, and would drop the last ones that it is given."""
    alike = ["COTE", "COTÉ", "CÔTE", "Cote", "Coté", "cote", "coté", "côte"]
    text = [f"LA {word} SAT" for word in [*alike, *["côte"] * 50, *["CUTE"] * 30]]
    write_arpa(build_ngrams([*text, "UNE côte SAT"], 2), tmp_path / "lm.arpa")  # behind two words: more frequent
    unclear = log_probs_of("LA COTE SAT", {4: {"O": 0.5, "U": 0.5}})
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", lm_weight=1.0, prior_weight=0.0)
    assert text_of(decoder, unclear) == "LA COTE SAT"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("word", ["ЖЖ", "42"])
def test_a_language_model_of_other_letters_is_told_with_one_of_its_words(tmp_path: Path, word: str) -> None:
    write_arpa(build_ngrams([word], 1), tmp_path / "lm.arpa")
    with pytest.raises(AsrError, match=rf"none of its words \('{word}'\) can be written .*; `asr lm build"):
        BeamDecoder(VOCABULARY, tmp_path / "lm.arpa")


def test_where_flashlight_is_missing_it_is_told_what_to_install(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.dictionary", None)
    with pytest.raises(AsrError, match=r"pip install \"bigru-asr\[lm\]\""):
        BeamDecoder(VOCABULARY, arpa)


@pytest.mark.parametrize(
    "option", ["--beam-size=5", "--lm-weight=1", "--word-score=1", "--prior-weight=1", "--lexicon=words.txt"]
)
def test_options_of_a_language_model_need_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["transcribe", "a.wav", option])
    assert "need --lm" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["1", "7"])
def test_a_model_that_the_search_cannot_read_is_refused_where_it_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    assert main(["lm", "build", str(tmp_path / "text.txt"), "--order", order, "-o", str(tmp_path / "lm.arpa")]) == 1
    assert f"--order {order} must be 2 to 6: the beam search reads no other models" in capsys.readouterr().err


@pytest.mark.parametrize("word_score", [1.0, 3.0])
@pytest.mark.parametrize(("share", "written"), [(0.9, "A CAT"), (1.1, "ACAT")])
def test_the_word_score_is_added_for_every_word(tmp_path: Path, word_score: float, share: float, written: str) -> None:
    write_arpa(build_ngrams(["A CAT", "ACAT"], 2), tmp_path / "lm.arpa")
    heard = log_probs_of("A CAT").exp()
    heard[0, 3] = heard[0, 5]  # a blank: only at one step is it open whether a word ends
    heard[0, 4] = 1e-6
    heard[0, 4, 0] = 1.0
    heard[0, 4, VOCABULARY.encode(" ")[0]] = math.exp(-share * word_score)
    decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", lm_weight=0.0, word_score=word_score, prior_weight=0.0)
    assert text_of(decoder, heard.log()) == written
