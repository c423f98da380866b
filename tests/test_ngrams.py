"""n-gram models: probabilities that add up, and those of a plain implementation of the equations."""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path

import numpy
import pytest
from command_line import Run
from hypothesis import given
from hypothesis import strategies as st

from asr.cli import main
from asr.errors import AsrError
from asr.manifest import read_manifest
from asr.ngrams import NgramModel, _discounts, build_ngrams, drop_shared, read_arpa_unigrams, read_sentences, write_arpa

SAMPLES = Path(__file__).parents[1] / "samples"

TEXT = [
    "THE CAT SAT ON THE MAT",
    "THE DOG SAT ON THE CAT",
    "A CAT AND A DOG",
    "THE MAT IS ON THE FLOOR",
    "ON THE FLOOR SAT A DOG AND A CAT",
] * 2 + ["THE BIRD SANG", "A BIRD SAT ON THE DOG"]


class Backoff:
    """A model as an ARPA reader uses it."""

    def __init__(self, model: NgramModel) -> None:
        self.words = model.words
        self.probabilities, self.backoffs = {}, {}
        for rows, probabilities, backoffs in zip(model.ngrams, model.log10_probabilities, model.log10_backoffs):
            for row, probability, backoff in zip(rows.tolist(), probabilities, backoffs):
                ngram = tuple(model.words[word] for word in row)
                self.probabilities[ngram], self.backoffs[ngram] = 10**probability, 10**backoff

    def probability(self, word: str, context: tuple[str, ...]) -> float:
        if (*context, word) in self.probabilities:
            return self.probabilities[(*context, word)]
        return self.backoffs.get(context, 1.0) * self.probability(word, context[1:])


sentences = st.lists(st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=12)


@given(sentences, st.integers(1, 4), st.sampled_from([(), (0, 1), (0, 0, 1), (0, 1, 2)]))
def test_the_probabilities_behind_every_context_add_up_to_one(
    text: list[str], order: int, prune: tuple[int, ...]
) -> None:
    model = Backoff(build_ngrams(text, order, prune=prune[:order]))
    predicted = [word for word in model.words if word != "<s>"]
    for length in range(order):
        for context in product(["<s>", *"ABF"], repeat=length):
            total = sum(model.probability(word, context) for word in predicted)
            assert total == pytest.approx(1.0, abs=1e-9)


def kneser_ney(text: list[str], order: int) -> dict[tuple[str, ...], float]:
    """Interpolated modified Kneser-Ney, n-gram by n-gram, from its definition."""
    padded = [("<s>", *sentence.split(), "</s>") for sentence in text]
    raw: dict[int, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for sentence, length in product(padded, range(1, order + 1)):
        raw[length].update(sentence[start : start + length] for start in range(len(sentence) - length + 1))
    counts = {order: raw[order]}
    for length in range(1, order):
        before = defaultdict(set)
        for ngram in raw[length + 1]:
            before[ngram[1:]].add(ngram[0])
        counts[length] = Counter({ngram: len(before[ngram]) or raw[length][ngram] for ngram in raw[length]})
    del counts[1][("<s>",)]
    words = {word for sentence in padded for word in sentence} - {"<s>"} | {"<unk>"}
    probabilities: dict[tuple[str, ...], float] = {}
    for length in range(1, order + 1):
        off = _discounts(numpy.array(list(counts[length].values())))
        for ngram in counts[length] if length > 1 else [(word,) for word in words]:
            alike = [other for other in counts[length] if other[:-1] == ngram[:-1]]
            total = sum(counts[length][other] for other in alike)
            taken = sum(off[min(3, counts[length][other])] for other in alike) / total
            lower = probabilities[ngram[1:]] if length > 1 else 1 / len(words)
            own = counts[length][ngram]
            probabilities[ngram] = (own - off[min(3, own)]) / total + taken * lower
    return probabilities


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_probabilities_are_those_of_the_definition(order: int) -> None:
    model, expected = Backoff(build_ngrams(TEXT, order)), kneser_ney(TEXT, order)
    found = {ngram: probability for ngram, probability in model.probabilities.items() if ngram != ("<s>",)}
    assert found.keys() == expected.keys()
    for ngram, probability in expected.items():
        assert found[ngram] == pytest.approx(probability), ngram


def test_discounts_are_estimated_where_there_are_counts_of_each_kind() -> None:
    counts = numpy.array([1] * 40 + [2] * 15 + [3] * 8 + [4] * 5 + [9])
    share = 40 / 70
    expected = [0, 1 - 2 * share * 15 / 40, 2 - 3 * share * 8 / 15, 3 - 4 * share * 5 / 8]
    assert _discounts(counts).tolist() == pytest.approx(expected)
    assert _discounts(numpy.array([1, 1, 2])).tolist() == [0, 0.5, 1.0, 1.5]


def test_pruning_drops_rare_long_ngrams_and_no_word() -> None:
    full, pruned = build_ngrams(TEXT, 3), build_ngrams(TEXT, 3, prune=[0, 0, 2])
    assert pruned.words == full.words
    assert [len(rows) for rows in pruned.ngrams[:2]] == [len(rows) for rows in full.ngrams[:2]]
    assert 0 < len(pruned.ngrams[2]) < len(full.ngrams[2])


def test_rare_words_are_taken_for_unknown_ones() -> None:
    model = build_ngrams(TEXT, 2, min_count=2)
    assert "SANG" not in model.words
    assert "BIRD" in model.words
    probabilities = Backoff(model).probabilities
    assert probabilities[("BIRD", "<unk>")] > probabilities[("<unk>",)]


@pytest.mark.parametrize(
    ("text", "settings", "reason"),
    [
        ([], {}, "the text holds no word"),
        (["<s> A </s>"], {}, "the text holds </s>, <s>, which the model adds by itself; leave them out"),
        (["A <unk>"], {}, "the text holds <unk>, which the model adds by itself; leave them out"),
        (TEXT, {"order": 1, "min_count": 999}, "min_count=999 must be lower: no word of the text occurs so often"),
        (TEXT, {"order": 0}, "order=0 must be at least 1"),
        (TEXT, {"order": 2, "min_count": 0}, "min_count=0 must be at least 1"),
        (TEXT, {"prune": [1]}, r"prune=\[1\] must begin with 0 and not fall"),
        (TEXT, {"prune": [0, 0, 1, 7]}, r"prune=\[0, 0, 1, 7\] must have at most 3 counts, one for each length"),
        (TEXT, {"prune": [0, 2, 1]}, r"prune=\[0, 2, 1\] must begin with 0 and not fall"),
    ],
)
def test_bad_settings_are_told(text: list[str], settings: dict, reason: str) -> None:
    with pytest.raises(AsrError, match=rf"^{reason}$"):
        build_ngrams(text, **({"order": 3} | settings))


def test_text_is_read_normal_from_plain_and_packed_files(tmp_path: Path) -> None:
    text = "It's here.\n\n—\nSo is “that”!\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(text.encode()))
    paths = [tmp_path / name for name in ("a.txt", "a.txt.gz", "a.txt.xz")]
    assert list(read_sentences(paths)) == ["IT'S HERE", "SO IS THAT"] * 3


@pytest.mark.parametrize("name", ["none.txt", "bad.gz", "damaged.gz", "bad.xz", "latin.txt"])
def test_a_text_that_cannot_be_read_is_told(tmp_path: Path, name: str) -> None:
    if name == "damaged.gz":
        packed = bytearray(gzip.compress(bytes(range(65, 91)) * 99, mtime=0))
        packed[12] ^= 0xFF
        (tmp_path / name).write_bytes(packed)
    elif name != "none.txt":
        (tmp_path / name).write_bytes(b"caf\xe9")
    with pytest.raises(AsrError, match=rf"{name}: the text cannot be read: "):
        list(read_sentences([tmp_path / name]))


def test_what_is_lost_of_a_manifests_texts_is_told_as_of_a_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("FÜR 3\n", encoding="utf-8")
    assert list(read_sentences([tmp_path / "a.txt"], texts=["дом 42", "THE END"])) == ["FUR", "THE END"]
    assert "dropped from the text, for the model cannot write them: " in caplog.text
    assert all(f"'{character}' × 1" in caplog.text for character in "дом342")


def test_held_out_texts_that_share_nothing_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert list(drop_shared(["A CAT"], ["A DOG"])) == ["A CAT"]
    assert not caplog.text


def test_a_folder_is_no_place_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (Path(), tmp_path):
        with pytest.raises(AsrError, match="is a folder; name a file in it"):
            write_arpa(build_ngrams(TEXT, 1), folder)


def test_kenlm_reads_the_arpa_and_gives_the_same_scores(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    dictionary = pytest.importorskip("flashlight.lib.text.dictionary")
    model = build_ngrams(TEXT, 3, prune=[0, 0, 1])
    write_arpa(model, tmp_path / "lm.arpa")
    words = dictionary.Dictionary()
    for word in model.words:
        words.add_entry(word)
    read, ours = kenlm.KenLM(str(tmp_path / "lm.arpa"), words), Backoff(model)
    for sentence in ("THE CAT SAT ON A DOG", "FLOOR FLOOR BIRD", "SANG"):
        state, context = read.start(False), ("<s>",)
        for word in sentence.split():
            state, score = read.score(state, words.get_index(word))
            assert score == pytest.approx(math.log10(ours.probability(word, context[-2:])), abs=1e-4)
            context = (*context, word)
        _, score = read.finish(state)
        assert score == pytest.approx(math.log10(ours.probability("</s>", context[-2:])), abs=1e-4)


def test_sentences_that_share_eight_words_with_a_held_out_text_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    held_out = ["ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE", "A SHORT ONE"]
    kept = ["ONE TWO THREE FOUR FIVE SIX SEVEN AND EIGHT NINE", "A SHORT ONE", "SOMETHING ELSE"]
    dropped = ["TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE", "THEN ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT CAME"]
    assert list(drop_shared([*kept[:1], *dropped, *kept[1:]], held_out)) == kept
    assert "2 sentences share 8 words in a row" in caplog.text


def test_a_language_model_is_built_without_the_sentences_of_a_valid_set(tmp_path: Path) -> None:
    text = SAMPLES.joinpath("manifest.jsonl").read_text(encoding="utf-8")
    said = [json.loads(line)["text"] for line in text.splitlines()]
    (tmp_path / "text.txt").write_text("\n".join([*said, *TEXT]), encoding="utf-8")
    command = ["lm", "build", str(tmp_path / "text.txt"), "-o", str(tmp_path / "lm.arpa")]
    assert main([*command, "--held-out", str(SAMPLES / "manifest.jsonl")]) == 0
    words = set(dict(read_arpa_unigrams(tmp_path / "lm.arpa")))
    assert words == {word for sentence in TEXT for word in sentence.split()}


def test_a_manifest_gives_its_transcripts(tmp_path: Path, run: Run) -> None:
    done = run("lm", "build", SAMPLES / "manifest.jsonl", "-o", tmp_path / "lm.arpa")
    assert done.code == 0, done.errors
    said = {word for utterance in read_manifest(SAMPLES / "manifest.jsonl") for word in utterance.text.split()}
    assert set(dict(read_arpa_unigrams(tmp_path / "lm.arpa"))) == said


def test_an_output_that_cannot_be_written_is_told_before_the_text_is_read(tmp_path: Path, run: Run) -> None:
    (tmp_path / "valid.jsonl").write_text("")
    for output in (tmp_path, tmp_path / "valid.jsonl" / "a.arpa", tmp_path / "valid.jsonl"):
        done = run("lm", "build", tmp_path / "missing.txt", "--held-out", tmp_path / "valid.jsonl", "-o", output)
        assert done.code in (1, 2)
        assert "missing.txt" not in done.errors
        assert str(output) in done.errors


def test_what_a_text_loses_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("In 1984 we met, and 9 % lived!\n", encoding="utf-8")
    assert list(read_sentences([tmp_path / "a.txt"])) == ["IN WE MET AND LIVED"]
    (message,) = caplog.messages
    assert message.startswith("dropped from the text, for the model cannot write them: '9' × 2, '")
    assert "'%' × 1" in message


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("a.txt", "would replace the text"),
        ("a.arpa.xz", "reads .arpa and"),
        ("a.safetensors", "an ARPA file is written; call it a.arpa or a.arpa.gz"),
    ],
)
def test_a_language_model_is_not_written_over_its_text_nor_under_a_name_by_which_nobody_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, reason: str
) -> None:
    text = tmp_path / "a.txt"
    text.write_text("A CAT\n")
    with pytest.raises(SystemExit):
        main(["lm", "build", str(text), "-o", str(tmp_path / output)])
    assert f"--output {tmp_path / output}: " in (said := capsys.readouterr().err)
    assert reason in said
    assert text.read_text() == "A CAT\n"
