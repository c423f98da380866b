"""The check before the first step: what it keeps, what it finds, and the page that tells it."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from asr.check import MOST_LISTED, CheckedCorpus, Example, check_corpus, find_shared
from asr.config import AugmentConfig, DataConfig
from asr.errors import AsrError
from asr.manifest import Utterance, read_manifest
from asr.model import CTCModel
from asr.text import normalize_transcript
from asr.vocabulary import BLANK_ID, CharacterVocabulary

SAMPLES = Path(__file__).parents[1] / "samples"
RECORDING = str(SAMPLES / "84-121123-0001.flac")
LIMITS = DataConfig(min_seconds=0.3, max_seconds=20.0)


def utterance(text: str = "HELLO", seconds: float = 4.0, audio_path: str = RECORDING, line: int = 1) -> Utterance:
    return Utterance(f"u{line}", audio_path, text, 0.0, seconds, "", "train.jsonl", line)


def check(*utterances: Utterance, model: CTCModel, limits: DataConfig | None = LIMITS) -> CheckedCorpus:
    """The check of `utterances` and a good one, so that something is left."""
    return check_corpus([*utterances, utterance(line=0)], model, limits, None)


def ctc_can_write(text: str, steps: int) -> bool:
    """By the loss itself: it is finite where a path of so many steps writes the text."""
    vocabulary = CharacterVocabulary()
    targets = torch.tensor([vocabulary.encode(text)])
    log_probs = torch.zeros(steps, 1, len(vocabulary)).log_softmax(2)
    lengths = torch.tensor([steps]), torch.tensor([targets.shape[1]])
    return math.isfinite(functional.ctc_loss(log_probs, targets, *lengths, blank=BLANK_ID))


def test_the_samples_are_all_kept_with_their_normal_transcripts(model: CTCModel) -> None:
    utterances = read_manifest(SAMPLES / "manifest.jsonl")
    corpus = check_corpus(utterances, model, LIMITS, AugmentConfig())
    assert [example.utterance for example in corpus.examples] == utterances
    assert [example.reference for example in corpus.examples] == [item.text for item in utterances]
    assert corpus.hours == pytest.approx(sum(item.duration_seconds for item in utterances) / 3600)
    assert corpus.findings == {}
    assert corpus.report() == "6 utterances, 0.01 hours"


def test_missing_files_are_told_with_the_place_of_each_line_that_names_them(model: CTCModel, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.wav")
    lines = [utterance(), *(utterance(audio_path=path, line=n) for n, path in ((2, missing), (3, str(tmp_path))))]
    lines.append(utterance(audio_path=missing, line=4))
    with pytest.raises(AsrError) as caught:
        check_corpus(lines, model, LIMITS, None)
    assert str(caught.value).split("\n") == [
        "audio files are missing; mend the manifest, then run again",
        "1 utterances, 0.00 hours",
        "audio file not found: 3",
        f"  train.jsonl:2: u2: {missing}",
        f"  train.jsonl:3: u3: {tmp_path}",
        f"  train.jsonl:4: u4: {missing}",
    ]


def test_many_missing_files_are_told_in_a_page(model: CTCModel, tmp_path: Path) -> None:
    lines = [utterance(audio_path=str(tmp_path / f"{line}.wav"), line=line) for line in range(1, 1001)]
    with pytest.raises(AsrError) as caught:
        check_corpus(lines, model, None, None)
    page = str(caught.value).split("\n")
    assert len(page) == 3 + MOST_LISTED + 1
    assert page[2] == "audio file not found: 1000"
    assert page[-1] == f"  ... and {1000 - MOST_LISTED} more"


def test_unknown_characters_are_dropped_and_counted(model: CTCModel) -> None:
    corpus = check(utterance("Wait! 2 o\u2019clock \u2013 caf\u00e9 no. 22!"), utterance("no! §", line=2), model=model)
    assert [example.reference for example in corpus.examples[:2]] == ["WAIT O'CLOCK CAFE NO", "NO"]
    assert corpus.dropped_characters == Counter({"!": 3, "2": 3, ".": 1, "§": 1})
    line = "characters dropped from transcripts: '!' × 3, '2' × 3, '.' × 1, '§' × 1"
    assert corpus.report().split("\n")[1:] == [line]


def test_the_most_frequent_unknown_characters_are_shown_and_the_rest_counted(model: CTCModel) -> None:
    kinds = [chr(0x4E00 + number) for number in range(MOST_LISTED + 22)]
    text = "A" + "".join(character * (number + 1) for number, character in enumerate(kinds))
    corpus = check(utterance(text), model=model)
    shown = corpus.report().split("\n")[1]
    assert shown.startswith(f"characters dropped from transcripts: {kinds[-1]!r} × 30, {kinds[-2]!r} × 29, ")
    assert shown.count("×") == MOST_LISTED
    assert shown.endswith(", and 22 more kinds")
    in_full = corpus.report(most=None).split("\n")[1]
    assert all(f"{character!r} × {number + 1}" in in_full for number, character in enumerate(kinds))
    assert "more kinds" not in in_full


@pytest.mark.parametrize("text", ["1984", "!?", "\u2014"])
def test_a_transcript_of_which_nothing_is_left_is_not_learned_from_but_is_evaluated(model: CTCModel, text: str) -> None:
    corpus = check(utterance(text, line=7), model=model)
    assert corpus.findings == {"left out, nothing left of the transcript": [f"train.jsonl:7: u7: {text!r}"]}
    evaluated = check(utterance(text, line=7), model=model, limits=None)
    assert evaluated.findings == {}
    assert evaluated.examples[0].reference == ""


def test_letters_that_the_model_cannot_write_are_told_and_not_learned_from(model: CTCModel) -> None:
    small = CTCModel(model.config, CharacterVocabulary(" HELO"))
    corpus = check(utterance("hello world", line=3), model=small)
    assert corpus.findings == {
        "left out, letters that are not in the vocabulary": ["train.jsonl:3: u3: drw of 'hello world'"]
    }
    assert len(corpus.examples) == 1
    assert check(utterance("hello world", line=3), model=small, limits=None).findings == {}


@pytest.mark.parametrize(("text", "lost"), [("漢字", "字漢"), ("Ørsted said", "Ø"), ("naïve café", "")])
def test_a_word_without_one_of_its_letters_is_not_learned(model: CTCModel, text: str, lost: str) -> None:
    findings = check(utterance(text, line=7), model=model).findings
    kind = "left out, letters that are not in the vocabulary"
    assert findings == ({kind: [f"train.jsonl:7: u7: {lost} of {text!r}"]} if lost else {})


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [
        (0.29, "left out, too short"),
        (0.3, None),
        (20.0, None),
        (20.01, "left out, too long"),
        (7200.0, "left out, too long"),
    ],
)
def test_durations_outside_the_limits_are_not_learned_from_but_are_evaluated(
    model: CTCModel, seconds: float, kind: str | None
) -> None:
    corpus = check(utterance("A", seconds, line=5), model=model)
    told = f"train.jsonl:5: u5: {seconds:.2f} s (allowed: 0.3 to 20 s)"
    assert corpus.findings == ({} if kind is None else {kind: [told]})
    assert check(utterance("A", seconds), model=model, limits=None).findings == {}


@given(
    text=st.text("AB '", min_size=1, max_size=30).map(normalize_transcript).filter(bool),
    samples=st.integers(4800, 24000),
)
def test_an_utterance_is_learned_from_where_ctc_can_write_it_in_its_steps(
    model: CTCModel, text: str, samples: int
) -> None:
    corpus = check(utterance(text, samples / model.sample_rate), model=model)
    steps = int(model.output_lengths(torch.tensor(samples)))
    assert (len(corpus.examples) == 2) is ctc_can_write(text, steps)


@pytest.mark.parametrize("text", ["ABABABABAB", "AAAAA", "HELLO BOOKKEEPER"])
def test_one_step_too_few_is_told_and_just_enough_is_not(model: CTCModel, text: str) -> None:
    repeats = sum(left == right for left, right in pairwise(text))
    needed = len(text) + repeats
    candidates = range(4800, 32000)
    steps = model.output_lengths(torch.tensor(candidates)).tolist()
    enough = candidates[steps.index(needed)] / model.sample_rate
    too_few = (candidates[steps.index(needed)] - 1) / model.sample_rate
    assert ctc_can_write(text, needed)
    assert not ctc_can_write(text, needed - 1)
    assert check(utterance(text, enough), model=model).findings == {}
    told = f"train.jsonl:9: u9: {too_few:.2f} s at speed 1 for {len(text)} tokens"
    findings = check(utterance(text, too_few, line=9), model=model).findings
    assert findings == {"left out, too few steps for CTC": [told]}


@given(text=st.text("AB", min_size=4, max_size=30), samples=st.integers(4800, 24000))
def test_what_is_learned_from_can_be_written_at_every_speed(model: CTCModel, text: str, samples: int) -> None:
    augment = AugmentConfig(speeds=[0.8, 1.0, 1.25])
    corpus = check_corpus([utterance(text, samples / 16000), utterance(line=0)], model, LIMITS, augment)
    steps = [int(model.output_lengths(torch.tensor(int(samples / speed)))) for speed in augment.speeds]
    assert (len(corpus.examples) == 2) is all(ctc_can_write(text, count) for count in steps)


def test_the_fastest_speed_is_named_where_only_it_leaves_too_few_steps(model: CTCModel) -> None:
    tight = utterance("ABABABABAB", 0.39, line=2)
    assert check(tight, model=model).findings == {}
    corpus = check_corpus([tight, utterance(line=0)], model, LIMITS, AugmentConfig(speeds=[0.9, 1.0, 1.1]))
    assert corpus.findings == {
        "left out, too few steps for CTC": ["train.jsonl:2: u2: 0.39 s at speed 1.1 for 10 tokens"]
    }


def test_what_ctc_cannot_write_is_still_evaluated(model: CTCModel) -> None:
    assert check(utterance("A" * 100, 0.3), model=model, limits=None).findings == {}


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["HELLO", "", "漢", "A" * 60]), st.sampled_from([0.1, 0.5, 5.0, 50.0])), max_size=40
    )
)
def test_every_utterance_is_an_example_or_one_line_of_the_findings(
    model: CTCModel, rows: list[tuple[str, float]]
) -> None:
    utterances = [utterance(text, seconds, line=line) for line, (text, seconds) in enumerate(rows, start=1)]
    corpus = check(*utterances, model=model)
    kept = [example.utterance.place for example in corpus.examples]
    found = [place.split(": ")[0] for places in corpus.findings.values() for place in places]
    assert sorted(kept + found) == sorted([item.place for item in utterances] + ["train.jsonl:0"])


def test_the_report_is_a_page_and_the_full_list_comes_on_demand(model: CTCModel) -> None:
    long, short = (
        [utterance(seconds=seconds, line=line) for line in range(first, first + 500)]
        for seconds, first in ((30.0, 1), (0.1, 501))
    )
    corpus = check(*long, *short, model=model)
    page = corpus.report().split("\n")
    assert page[0] == "1 utterances, 0.00 hours"
    assert page[1] == "left out, too long: 500"
    assert page[2] == "  train.jsonl:1: u1: 30.00 s (allowed: 0.3 to 20 s)"
    assert page[2 + MOST_LISTED] == f"  ... and {500 - MOST_LISTED} more"
    assert len(page) == 1 + 2 * (1 + MOST_LISTED + 1)
    assert len(corpus.report(most=2).split("\n")) == 1 + 2 * (1 + 2 + 1)
    places = [f"train.jsonl:{line}" for line in range(1, 1001)]
    in_full = corpus.report(most=None).split("\n")
    assert [line.strip().split(": ")[0] for line in in_full if line.startswith("  ")] == places


def test_a_page_that_shows_all_does_not_speak_of_more(model: CTCModel) -> None:
    corpus = check(*[utterance(seconds=30.0, line=line) for line in range(MOST_LISTED)], model=model)
    assert corpus.report() == corpus.report(most=None)
    assert "more" not in corpus.report()


@pytest.mark.parametrize(
    ("utterances", "advice"),
    [
        ([], "mend the manifest"),
        ([utterance(seconds=0.1)], "mend the manifest"),
        (
            [utterance(seconds=600.0)],
            r"cut what is too long with recipes/base/cut_at_pauses\.py, or raise data\.max_seconds",
        ),
    ],
)
def test_a_set_of_which_nothing_is_left_is_refused(model: CTCModel, utterances: list[Utterance], advice: str) -> None:
    with pytest.raises(AsrError, match=rf"^no utterance is left to use; {advice}, then run again\n0 utterances"):
        check_corpus(utterances, model, LIMITS, None)


# What a valid set shares with a training set


def corpus_of(*utterances: tuple[str, str, str]) -> CheckedCorpus:
    """Of (id, text, speaker)."""
    return CheckedCorpus(
        [
            Example(Utterance(name, RECORDING, text, crc32(f"{name} {text}".encode()), 1.0, speaker, "m", line), text)
            for line, (name, text, speaker) in enumerate(utterances)
        ]
    )


def test_a_valid_set_of_its_own_shares_nothing() -> None:
    train = corpus_of(("a", "ONE TWO THREE FOUR FIVE", "ann"), ("b", "YES SIR", ""), ("001", "HERE", ""))
    valid = corpus_of(("001", "OF ANOTHER FOLDER", ""), ("c", "ONE TWO THREE FOUR SIX", "bob"), ("d", "YES SIR", ""))
    assert find_shared(train, valid) == []


def test_utterances_sentences_and_speakers_of_both_sets_are_told() -> None:
    train = corpus_of(("a", "ONE TWO THREE FOUR FIVE", "ann"), ("b", "NO", "bob"), ("c", "WELL", "cid"))
    valid = corpus_of(("b", "NO", "bob"), ("x", "ONE TWO THREE FOUR FIVE", "cid"))
    assert find_shared(train, valid) == [
        "utterances of the valid set that are in the training set too: 1: b",
        "recordings of the valid set that are in the training set too: 1: b",
        "sentences of the valid set that are in the training set too: 1: ONE TWO THREE FOUR FIVE",
        "speakers of the valid set that are in the training set too: 2: bob, cid",
    ]


def test_a_recording_of_both_sets_is_told_under_another_name_and_path(tmp_path: Path) -> None:
    (tmp_path / "link.flac").symlink_to(RECORDING)
    train, valid = (
        CheckedCorpus([Example(Utterance(name, path, "YES", 0.5, 1.0, "", "m", 1), "YES")])
        for name, path in (("a", RECORDING), ("b", str(tmp_path / "link.flac")))
    )
    assert find_shared(train, valid) == ["recordings of the valid set that are in the training set too: 1: b"]


def test_of_many_shared_ones_some_are_shown() -> None:
    both = corpus_of(*[(f"{number:02}", "NO", "") for number in range(20)])
    line, _ = find_shared(both, both)
    assert line.startswith("utterances of the valid set that are in the training set too: 20: 00, 01, ")
    assert line.endswith("07, ...")
