"""Forced alignment of known texts, short and long, true and false."""

from __future__ import annotations

import io
import json
from itertools import pairwise, product
from pathlib import Path

import pytest
import soundfile
import torch
from praatio import textgrid
from test_decoder import reference_collapse
from torch import Tensor

from asr import load_model, transcribe
from asr.alignment import align, align_log_probs, align_tokens, find_cuts
from asr.cli import main
from asr.errors import AsrError
from asr.manifest import read_manifest
from asr.model import CTCModel
from asr.pronunciation import Pronunciations
from asr.surgery import with_phonemes
from asr.transcript import Word
from asr.vocabulary import BLANK_ID, CharacterVocabulary, SentencePieceVocabulary

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def references() -> list[str]:
    lines = (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def packaged() -> CTCModel:
    return load_model()


def joined(speech: list[Tensor], times: int) -> io.BytesIO:
    """All recordings one after another, again and again."""
    file = io.BytesIO()
    soundfile.write(file, torch.cat(speech * times).numpy(), 16000, format="WAV")
    file.seek(0)
    return file


def edges(words: tuple[Word, ...]) -> list[float]:
    return [time for word in words for time in (word.start_seconds, word.end_seconds)]


def test_the_words_that_were_recognised_align_where_they_were_recognised(sample_paths: list[Path]) -> None:
    for path in sample_paths:
        heard = transcribe(path)
        aligned = align(load_model(), path, heard.text)
        assert aligned.text == heard.text
        aside = [abs(one - other) for one, other in zip(edges(aligned.words), edges(heard.words), strict=True)]
        assert sum(aside) / len(aside) < 0.06  # seconds
        assert max(aside) < 0.5


def test_the_text_comes_back_as_it_was_written_without_what_has_no_letter(packaged: CTCModel) -> None:
    text = "“Mister Quilter” is — in 1900 — the apostle of the middle-classes, and…\nwe are glad to welcome his gospel!"
    transcript = align(packaged, SAMPLES / "1272-128104-0000.flac", text)
    assert transcript.text == text.replace(" — in 1900 —", " in").replace("\n", " ")
    middle = next(word for word in transcript.words if word.text == "middle-classes,")
    assert " ".join(part.text for part in middle.parts) == "m ih d ax l k l ae s ax z"
    assert middle.parts[0].start_seconds == middle.start_seconds < middle.parts[-1].end_seconds == middle.end_seconds


@pytest.mark.parametrize("marks", ["''", "‘’"])
def test_quotation_marks_are_not_spoken(packaged: CTCModel, marks: str) -> None:
    text = "MISTER QUILTER IS THE APOSTLE OF THE MIDDLE CLASSES, AND WE ARE GLAD TO WELCOME HIS GOSPEL"
    quoted = f"{marks[0]}{text.replace(',', ',' + marks[1])}"
    plain, shown = (align(packaged, SAMPLES / "1272-128104-0000.flac", each) for each in (text, quoted))
    assert shown.text == quoted
    assert [word.confidence for word in shown.words] == [word.confidence for word in plain.words]


def test_what_the_model_cannot_write_is_told(packaged: CTCModel, caplog: pytest.LogCaptureFixture) -> None:
    align(packaged, SAMPLES / "1272-128104-0000.flac", "In 1999 he met Борис, and others.")
    assert "left out of the text, for the model cannot write them: '9' × 3, '1' × 1, 'Б' × 1" in caplog.text


def test_a_long_recording_in_pieces_is_aligned_as_it_is_at_once(
    packaged: CTCModel, speech: list[Tensor], references: list[str]
) -> None:
    long = torch.cat(speech * 2)
    with torch.inference_mode():
        log_probs = packaged(long[None], torch.tensor([len(long)]))[0][0]
    token_ids = packaged.vocabulary.encode(" ".join(references * 2))
    cuts = list(find_cuts(log_probs, token_ids, packaged.vocabulary.tokens, 50))
    whole, pieces = align_tokens(log_probs, token_ids), align_tokens(log_probs, token_ids, cuts)
    assert len(cuts) > 3
    assert pieces.token_ids == whole.token_ids == token_ids
    assert pieces.steps == whole.steps
    assert pieces.end_steps == whole.end_steps


def test_words_of_a_long_recording_are_where_they_are_in_its_parts(
    packaged: CTCModel, speech: list[Tensor], sample_paths: list[Path], references: list[str]
) -> None:
    times = 6
    transcript = align(packaged, joined(speech, times), " ".join(references * times))
    assert transcript.duration_seconds > 2 * 60
    words, offset = iter(transcript.words), 0.0
    for _ in range(times):
        for path, text, samples in zip(sample_paths, references, speech, strict=True):
            for expected in align(packaged, path, text).words:
                word = next(words)
                assert word.text == expected.text
                assert word.start_seconds - offset == pytest.approx(expected.start_seconds, abs=0.4)
            offset += len(samples) / 16000


def test_words_that_are_not_there_fit_badly_and_do_not_move_words_far_from_them(
    packaged: CTCModel, speech: list[Tensor], references: list[str]
) -> None:
    true = " ".join(references).split()
    place = len(" ".join(references[:3]).split())
    false = [*true[:place], "XYLOPHONE", "JUXTAPOSE", *true[place:]]
    right, wrong = (align(packaged, joined(speech, 1), " ".join(words)).words for words in (true, false))
    strangers = [word.confidence for word in wrong[place : place + 2]]
    assert max(strangers) < 0.05 < sorted(word.confidence for word in right)[len(right) // 2]
    assert edges(wrong[: place - 10]) == edges(right[: place - 10])
    assert edges(wrong[place + 12 :]) == edges(right[place + 10 :])


def test_more_text_than_the_audio_has_time_for_gets_no_confidence(
    packaged: CTCModel, references: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    transcript = align(packaged, SAMPLES / "1272-128104-0000.flac", " ".join(references * 3))
    assert transcript.text == " ".join(references * 3)
    assert {word.confidence for word in transcript.words} == {0.0}
    assert edges(transcript.words) == sorted(edges(transcript.words))
    assert edges(transcript.words)[-1] == transcript.duration_seconds
    assert "text and audio differ there" in caplog.text


def test_silence_is_aligned_without_confidence(packaged: CTCModel) -> None:
    file = io.BytesIO()
    soundfile.write(file, torch.zeros(5 * 16000).numpy(), 16000, format="WAV")
    file.seek(0)
    assert max(word.confidence for word in align(packaged, file, "HELLO WORLD").words) < 0.2


def test_the_best_alignment_is_that_of_the_equations() -> None:
    """Against every path of a small case."""
    torch.manual_seed(3)
    log_probs = torch.randn(6, 4).log_softmax(1)
    for token_ids in ([1], [1, 2], [1, 1], [2, 1, 3], [3, 3, 3]):
        found = align_tokens(log_probs, token_ids)
        paths = [
            path
            for path in product(range(4), repeat=6)
            if reference_collapse(list(path), [0.0] * 6).token_ids == token_ids
        ]
        best = max(paths, key=lambda path: sum(float(log_probs[step, token]) for step, token in enumerate(path)))
        expected = reference_collapse(list(best), [float(log_probs[step, token]) for step, token in enumerate(best)])
        assert (found.steps, found.end_steps) == (expected.steps, expected.end_steps)
        assert found.log_probs == pytest.approx(expected.log_probs)


def test_a_text_that_just_fits_is_placed_and_one_that_misses_a_step_is_told(caplog: pytest.LogCaptureFixture) -> None:
    twice = [1, 1]  # with a blank between
    fits, misses = (align_tokens(torch.zeros(steps, 4).log_softmax(1), twice) for steps in (3, 2))
    assert (fits.steps, fits.end_steps) == ([0, 2], [1, 3])
    assert (misses.steps, misses.end_steps) == ([0, 1], [1, 2])
    assert caplog.messages == ["2 tokens cannot be placed in 2 steps: text and audio differ there"]


@pytest.mark.parametrize("text", ["", " \n", "1912 — !"])
def test_a_text_without_a_letter_is_refused(model: CTCModel, text: str) -> None:
    with pytest.raises(AsrError, match=r"^the text to align holds no letter of the model's alphabet$"):
        align_log_probs(model, torch.zeros(10, len(CharacterVocabulary())), text)


def test_what_the_dictionary_cannot_pronounce_is_told(model: CTCModel, caplog: pytest.LogCaptureFixture) -> None:
    hearing = with_phonemes(model, 1, Pronunciations({"CAT": ["k", "ae", "t"]}))
    log_probs = torch.randn(20, len(hearing.vocabulary) + 4).log_softmax(1)
    words = align_log_probs(hearing, log_probs, "Cat, dog; TACT!")
    assert [word.text for word in words] == ["Cat,", "TACT!"]
    assert [part.text for part in words[1].parts] == ["t", "ae", "k", "t"]
    assert caplog.messages == ["left out of the text, for the model cannot pronounce them: DOG"]
    with pytest.raises(AsrError, match=r"^the text to align holds no word that the model can pronounce$"):
        align_log_probs(hearing, log_probs, "dog")
    with pytest.raises(AsrError, match=r"^of each step the model computes 33 numbers, not 29: all_log_probs does$"):
        align_log_probs(hearing, log_probs[:, 4:], "cat")


def test_the_command_prints_a_ctm(tmp_path: Path, references: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(references[0])
    assert main(["align", str(SAMPLES / "1272-128104-0000.flac"), str(text)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [fields[4] for fields in lines] == references[0].split()


def test_a_textgrid_is_what_praats_readers_expect(
    tmp_path: Path, references: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text, grid = tmp_path / "text.txt", tmp_path / "a.TextGrid"
    text.write_text(references[0])
    assert main(["align", str(SAMPLES / "1272-128104-0000.flac"), str(text), "--format", "TextGrid"]) == 0
    grid.write_text(capsys.readouterr().out)
    read = textgrid.openTextgrid(str(grid), includeEmptyIntervals=False)
    assert list(read.tierNames) == ["words", "parts"]
    assert [entry.label for entry in read.getTier("words").entries] == references[0].split()
    phonemes = " ".join(entry.label for entry in read.getTier("parts").entries)
    assert phonemes.startswith("m ih s t er k w ih l t er ih z dh ax ax p aa s ax l")
    full = textgrid.openTextgrid(str(grid), includeEmptyIntervals=True).getTier("words").entries
    assert full[0].start == 0
    assert full[-1].end == pytest.approx(5.855)
    assert all(one.end == other.start for one, other in pairwise(full))


def test_a_text_file_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", str(SAMPLES / "1272-128104-0000.flac"), str(tmp_path / "none.txt")]) == 1
    assert capsys.readouterr().err == (
        f"asr align: {tmp_path}/none.txt: the text cannot be read: No such file or directory\n"
    )


def test_the_screen_shows_one_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["align", str(SAMPLES / "1272-128104-0000.flac"), str(tmp_path / "a.txt"), "--format", "srt,json"])
    assert exited.value.code == 2
    assert "--format srt,json: the screen shows one format" in capsys.readouterr().err


def test_a_text_that_was_heard_in_other_pieces_is_cut_where_a_piece_begins_in_both() -> None:
    sentences = [utterance.text for utterance in read_manifest(SAMPLES / "manifest.jsonl")]
    vocabulary = SentencePieceVocabulary.train(sentences, 80)
    letter_ids = [vocabulary.tokens.index(letter) for letter in " ".join(["", *sentences]).replace(" ", "\u2581")]
    heard = torch.tensor([[letter_id, BLANK_ID] for letter_id in letter_ids]).flatten()
    heard[::80] = BLANK_ID  # every fortieth letter was missed
    log_probs = torch.nn.functional.one_hot(heard, len(vocabulary)).double().log_softmax(1)
    token_ids = vocabulary.encode(" ".join(sentences))
    cuts = list(find_cuts(log_probs, token_ids, vocabulary.tokens, 100))
    assert len(cuts) > 3
    for step, token in cuts:
        letters, pieces = (
            "".join(vocabulary.tokens[token_id] for token_id in ids)
            for ids in (letter_ids[: step // 2], token_ids[:token])
        )
        assert letters == pieces


def test_a_stretch_that_is_too_large_to_search_is_spread_evenly_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("asr.alignment.MOST_CELLS", 10)
    tokens = align_tokens(torch.randn(8, 29).log_softmax(1), [3, 4])
    assert (tokens.steps, tokens.end_steps) == ([0, 4], [4, 8])
    assert tokens.log_probs == [-float("inf")] * 2
    assert "too long a stretch without a word that was heard" in caplog.text
