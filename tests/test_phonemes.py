"""A model that hears phonemes beside its tokens: outputs, training, file, and the search that reads both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from command_line import Run
from rapidfuzz.distance import Levenshtein
from short_trainings import (
    MANIFEST,
    Interrupt,
    assert_same_run,
    last_value,
    make_config,
    read_scalars,
    stop_and_resume,
    train_with,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr.averaging import average
from asr.check import Example, check_corpus
from asr.config import DataConfig
from asr.data import SpeechDataset
from asr.decoder import decode_greedy
from asr.errors import AsrError
from asr.finetuning import finetune_config
from asr.initial import make_model as make_initial_model
from asr.learning import CTCTrainingModule, disagreement
from asr.manifest import Utterance, read_manifest
from asr.model import CTCModel
from asr.modelfile import PACKAGED_MODEL, load_model, save_model
from asr.ngrams import build_ngrams, write_arpa
from asr.pronunciation import Pronunciations
from asr.recipe import load_config
from asr.surgery import with_dropout, with_phonemes, with_vocabulary
from asr.training import train
from asr.vocabulary import CharacterVocabulary

VOCABULARY = CharacterVocabulary()
WORDS = {"THE": "DH AX", "CAT": "K AE T", "KIT": "K IH T", "SAT": "S AE T", "SEE": "S IY", "SEA": "S IY"}
PRONUNCIATIONS = Pronunciations({word: phonemes.split() for word, phonemes in WORDS.items()})
SEE_THE = {"SEE": ["S", "IY"], "THE": ["DH", "AX"], "SEETHE": ["S", "IY", "DH", "AX"]}


@pytest.fixture(scope="module")
def hearing(make_model: Callable[..., CTCModel]) -> CTCModel:
    """The small model with a head for phonemes on the lower of its two layers; a test must not change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return with_phonemes(make_model(), 1, PRONUNCIATIONS).requires_grad_(False)


def head_of(model: CTCModel) -> Tensor:
    """The weights of each phoneme."""
    return model.state_dict()["phoneme_head.1.weight"]


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """Phonemes for all words of the samples: their letters, but Q as K and W, and without E behind a word."""
    words = {word for utterance in read_manifest(MANIFEST) for word in utterance.text.split()}
    spoken = {word: " ".join(word.replace("'", "").replace("Q", "KW").removesuffix("E") or "E") for word in words}
    path = tmp_path / "lexicon.txt"
    path.write_text("".join(f"{word} {phonemes}\n" for word, phonemes in sorted(spoken.items())), encoding="utf-8")
    return path


def test_phonemes_stand_behind_the_tokens_and_both_are_distributions(hearing: CTCModel, speech: list[Tensor]) -> None:
    lengths = torch.tensor([len(speech[0])])
    log_probs, steps = hearing.all_log_probs(speech[0][None], lengths)
    tokens, phonemes = log_probs.tensor_split([len(VOCABULARY)], dim=2)
    assert phonemes.shape[2] == len(PRONUNCIATIONS) == 9
    for part in (tokens, phonemes):
        torch.testing.assert_close(part.exp().sum(2), torch.ones(part.shape[:2]))
    alone, same_steps = hearing(speech[0][None], lengths)
    assert torch.equal(alone, tokens)
    assert torch.equal(steps, same_steps)


def test_hearing_phonemes_changes_no_token(
    hearing: CTCModel, make_model: Callable[..., CTCModel], speech: list[Tensor]
) -> None:
    arguments = speech[1][None], torch.tensor([len(speech[1])])
    assert torch.equal(hearing(*arguments)[0], make_model()(*arguments)[0])


def test_phonemes_are_the_same_alone_and_in_any_batch(hearing: CTCModel, speech: list[Tensor]) -> None:
    lengths = torch.tensor([len(each) for each in speech])
    together, steps = hearing.all_log_probs(pad_sequence(speech, batch_first=True), lengths)
    for samples, row, count in zip(speech, together, steps.tolist(), strict=True):
        alone, _ = hearing.all_log_probs(samples[None], torch.tensor([len(samples)]))
        torch.testing.assert_close(row[:count], alone[0], atol=1e-4, rtol=0)


def test_the_model_file_keeps_the_phonemes(hearing: CTCModel, speech: list[Tensor], tmp_path: Path) -> None:
    save_model(hearing, tmp_path / "m.safetensors", dtype=torch.float32)
    loaded = load_model(tmp_path / "m.safetensors")
    assert loaded.pronunciations is not None
    assert loaded.pronunciations.pronounce("KIT") == ["K", "IH", "T"]
    arguments = speech[0][None], torch.tensor([len(speech[0])])
    assert torch.equal(loaded.all_log_probs(*arguments)[0], hearing.all_log_probs(*arguments)[0])


def test_a_layer_and_a_dictionary_belong_together(model: CTCModel, hearing: CTCModel) -> None:
    with pytest.raises(AsrError, match=r"model\.encoder\.phoneme_layer=0 must be above 0 beside a pronouncing"):
        CTCModel(model.config, VOCABULARY, PRONUNCIATIONS)
    with pytest.raises(AsrError, match=r"phoneme_layer=1 must .* 0 without one"):
        CTCModel(hearing.config, VOCABULARY)


def test_a_recipe_with_one_of_both_is_refused(dictionary: Path, tmp_path: Path) -> None:
    for override in ("model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}"):
        with pytest.raises(AsrError, match="phoneme_layer"):
            train(make_config(tmp_path / "run", override))


def test_other_letters_without_a_dictionary_are_told() -> None:
    config = load_config(
        Path(__file__).parents[1] / "recipes" / "base" / "phonemes.yaml",
        [f"initial_model={PACKAGED_MODEL}", "vocabulary.characters=' abc'", "vocabulary.pronunciations="],
    )
    with pytest.raises(AsrError, match=r"its phonemes are of words in its own letters, not the new; name a dictionary"):
        make_initial_model(config, ["abc"])


def test_a_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"model\.encoder\.phoneme_layer=2 must be 0 to num_layers=1"):
        make_config(tmp_path / "run", "model.encoder.phoneme_layer=2")


def test_copies_keep_the_phonemes_but_for_other_tokens(hearing: CTCModel) -> None:
    copy = with_dropout(hearing, 0.3)
    weights = copy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in hearing.state_dict().items())
    assert with_vocabulary(hearing, CharacterVocabulary(" abc")).pronunciations is None


def test_what_is_heard_already_is_kept_with_another_dictionary(hearing: CTCModel) -> None:
    more = Pronunciations({**{word: text.split() for word, text in WORDS.items()}, "KITE": ["K", "IH", "T"]})
    kept = with_phonemes(hearing, 1, more).state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in hearing.state_dict().items())
    fewer = with_phonemes(hearing, 1, Pronunciations({"CAT": ["K", "AE", "T"]}))
    assert fewer.phoneme_head is not None
    assert fewer.phoneme_head[1].out_features == 4


def test_phonemes_written_in_the_other_case_are_kept(hearing: CTCModel) -> None:
    small = Pronunciations({word: phonemes.lower().split() for word, phonemes in WORDS.items()}).with_starts()
    changed = with_phonemes(hearing, 1, small)
    for phoneme in ("ae", "▁ae"):
        new, old = small.phonemes.index(phoneme), PRONUNCIATIONS.phonemes.index("AE")
        assert torch.equal(head_of(changed)[new], head_of(hearing)[old])


def test_other_letters_leave_the_phonemes_where_a_dictionary_is_given(
    hearing: CTCModel, dictionary: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(hearing, tmp_path / "m.safetensors", dtype=torch.float32)
    manifest, letters = str(MANIFEST), " abcdefghijklmnopqrstuvwxyz'"
    override = f"vocabulary.pronunciations={dictionary}"
    config = finetune_config(tmp_path / "m.safetensors", [manifest], [manifest], [override], characters=letters)
    with caplog.at_level("INFO"):
        changed = make_initial_model(config, [])
    kept = changed.phonemes.index("K"), hearing.phonemes.index("K")
    assert torch.equal(head_of(changed)[kept[0]], head_of(hearing)[kept[1]])
    assert any(message.startswith("phonemes: kept ") for message in caplog.messages)


def test_a_phoneme_at_the_start_of_a_word_begins_as_it_sounds_elsewhere(hearing: CTCModel) -> None:
    marked = with_phonemes(hearing, 1, PRONUNCIATIONS.with_starts())
    for name in ("phoneme_head.1.weight", "phoneme_head.1.bias"):
        blank, *known = hearing.state_dict()[name]
        assert torch.equal(marked.state_dict()[name], torch.stack([blank, *known, *known]))


def test_models_of_other_phonemes_have_no_mean(hearing: CTCModel, model: CTCModel, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    others = with_phonemes(model, 1, Pronunciations({"CAT": ["K", "AE", "T"]}))
    for path, each in zip(paths, (hearing, others, hearing), strict=True):
        save_model(each, path)
    assert average([paths[0], paths[2]]).pronunciations is not None
    with pytest.raises(AsrError, match="have no mean"):
        average(paths[:2])


def test_an_utterance_with_too_few_steps_for_its_phonemes_is_left_out(model: CTCModel) -> None:
    long = Pronunciations({"A": ["AH", "B"] * 15})
    utterances = [replace(utterance, text="A", duration_seconds=1.0) for utterance in read_manifest(MANIFEST)[:1]]
    utterances += [replace(utterances[0], id="long enough", duration_seconds=1.5)]
    corpus = check_corpus(utterances, with_phonemes(model, 1, long), DataConfig())
    assert [example.utterance.id for example in corpus.examples] == ["long enough"]
    assert "1.00 s at speed 1 for 30 phonemes" in corpus.report()


def test_training_learns_phonemes_beside_tokens(dictionary: Path, tmp_path: Path) -> None:
    overrides = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}", "trainer.epochs=4"]
    path = train(make_config(tmp_path / "run", *overrides))
    curve = read_scalars(tmp_path / "run")["train/phoneme_loss"]
    assert curve[max(curve)][0] < 0.9 * curve[min(curve)][0]
    learned = load_model(path).pronunciations
    assert learned is not None
    assert learned.pronounce("THE") == ["▁T", "H"]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer
def test_maximum_mutual_information_is_a_share_of_the_phonemes_loss(hearing: CTCModel, tmp_path: Path) -> None:
    texts = ["THE CAT", "SEE", "THE CAT SAT " * 10]
    utterance = read_manifest(MANIFEST)[0]
    dataset = SpeechDataset([Example(utterance, text) for text in texts], VOCABULARY, 16000, 0.0, PRONUNCIATIONS)
    waveforms, sample_lengths = torch.randn(3, 16000) * 0.1, torch.tensor([16000, 12000, 8000])

    def loss(share: float, indices: list[int]) -> Tensor:
        config = make_config(tmp_path, f"optimizer.mmi_share={share}", "optimizer.phoneme_weight=0.5")
        module = CTCTrainingModule(with_dropout(hearing, 0.0), config, texts)
        batch = replace(dataset[indices], waveforms=waveforms[indices], sample_lengths=sample_lengths[indices])
        return module.training_step(batch, 0)

    of_ctc, half, whole = (loss(share, [0, 1]) for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (of_ctc + whole) / 2)
    assert 0 < whole < of_ctc  # the right ones are likelier among all than step by step
    assert loss(1.0, [2]) == 0  # too few steps for its phonemes and its letters


def test_maximum_mutual_information_is_learned(dictionary: Path, tmp_path: Path) -> None:
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}", "optimizer.mmi_share=1"]
    train(make_config(tmp_path / "run", *hears, "trainer.epochs=6"))
    curve = read_scalars(tmp_path / "run")["train/phoneme_loss"]
    assert 0 < curve[max(curve)][0] < 0.95 * curve[min(curve)][0]


def test_the_model_file_tells_how_the_phonemes_were_learned(dictionary: Path, tmp_path: Path) -> None:
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}", "trainer.epochs=1"]
    path = tmp_path / "0.9" / "model.safetensors"
    for share in (0.9, 0.0):
        start = [f"initial_model={path}", "vocabulary.pronunciations="] if path.exists() else []
        train(make_config(tmp_path / str(share), *hears, f"optimizer.mmi_share={share}", *start))
        assert load_model(tmp_path / str(share) / "model.safetensors").phonemes_by_mmi == (share > 0)
    assert with_dropout(load_model(path), 0.5).phonemes_by_mmi
    assert average([path, path]).phonemes_by_mmi


def test_the_logged_phoneme_error_rate_is_that_of_the_saved_model(dictionary: Path, tmp_path: Path) -> None:
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}", "optimizer.learning_rate=1e-2"]
    path = train(make_config(tmp_path, *hears, "trainer.epochs=1", "trainer.average_decay=0"))
    model, errors, length = load_model(path), 0, 0
    assert model.pronunciations is not None
    for utterance in read_manifest(MANIFEST):
        samples = utterance.read(model.sample_rate)
        with torch.no_grad():
            log_probs, lengths = model.all_log_probs(samples[None], torch.tensor([len(samples)]))
        (heard,) = decode_greedy(log_probs[:, :, len(model.vocabulary) :], lengths)
        spoken = [
            each.removeprefix("▁") for word in utterance.text.split() for each in model.pronunciations.pronounce(word)
        ]
        found = [model.phonemes[each].removeprefix("▁") for each in heard.token_ids]
        errors += Levenshtein.distance(spoken, found)
        length += len(spoken)
    assert last_value(tmp_path, "valid/per") == pytest.approx(errors / length, abs=2 / length)


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer
def test_two_views_are_drawn_together_in_their_phonemes_as_in_their_tokens(hearing: CTCModel, tmp_path: Path) -> None:
    def make(weight: float) -> CTCTrainingModule:
        config = make_config(tmp_path, f"augment.consistency_weight={weight}", "optimizer.phoneme_weight=0.25")
        return CTCTrainingModule(with_dropout(hearing, 0.0), config)

    waveforms, sample_lengths = torch.randn(2, 16000) * 0.1, torch.tensor([16000, 12000])
    examples = [Example(read_manifest(MANIFEST)[0], text) for text in ("THE CAT", "SEE")]
    spoken = SpeechDataset(examples, VOCABULARY, 16000, pronunciations=PRONUNCIATIONS)[[0, 1]]
    batch = replace(spoken, waveforms=waveforms, sample_lengths=sample_lengths)
    little, much = (make(weight).training_step(batch, 0) for weight in (1.0, 3.0))

    module = make(1.0)
    views = replace(batch, waveforms=waveforms.repeat(2, 1), sample_lengths=sample_lengths.repeat(2))
    log_probs, lengths = module.model.log_probs_of_features(*module.augmented_features(views))
    of_tokens, of_phonemes = log_probs.tensor_split([len(VOCABULARY)], dim=2)
    apart = 0.75 * disagreement(of_tokens, lengths) / 20 + 0.25 * disagreement(of_phonemes, lengths) / 14
    torch.testing.assert_close(much - little, 2 * apart)


def test_a_training_without_a_dictionary_goes_on_from_a_model_that_hears(dictionary: Path, tmp_path: Path) -> None:
    hears = ["model.encoder.phoneme_layer=1", "trainer.epochs=1"]
    first = train(make_config(tmp_path / "first", *hears, f"vocabulary.pronunciations={dictionary}"))
    second = train(make_config(tmp_path / "second", *hears, f"initial_model={first}"))
    before, after = load_model(first), load_model(second)
    assert before.pronunciations is not None
    assert after.pronunciations is not None
    assert after.pronunciations.to_dict() == before.pronunciations.to_dict()


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    write_arpa(build_ngrams(["THE CAT SAT", "THE KIT SAT", "SEE THE SEA"] * 3, 2), path)
    return path


class TestSearch:
    def heard(self, letters: list[dict[str, float]], phonemes: list[dict[str, float]]) -> Tensor:
        """(1, steps, vocabulary + phonemes): each for two steps, then a blank, stretched to as many steps."""
        names = [token.upper() for token in VOCABULARY.tokens], PRONUNCIATIONS.phonemes
        count = 3 * max(len(letters), len(phonemes))
        parts = []
        for tokens, places in zip(names, (letters, phonemes), strict=True):
            part = torch.full((count, len(tokens)), 1e-4)
            part[:, 0] = 1.0
            for number, options in enumerate(places):
                part[3 * number : 3 * number + 2, 0] = 1e-4
                for token, probability in options.items():
                    part[3 * number : 3 * number + 2, tokens.index(token)] = probability
            parts.append((part / part.sum(1, keepdim=True)).log())
        return torch.cat(parts, dim=1)[None]

    def one_word_or_two(self, pronunciations: Pronunciations, text: str) -> Tensor:
        """SEE THE or SEETHE, as heard by letters that do not tell which, and by the text's phonemes."""
        letters: list[dict[str, float]] = [{letter: 1.0} for letter in "SEE THE"]
        letters[3] = {" ": 0.5, "<BLANK>": 0.5}
        tokens = self.heard(letters, [])[:, :, : len(VOCABULARY)]
        phonemes = torch.full((1, tokens.shape[1], len(pronunciations)), 1e-4)
        for step in range(tokens.shape[1]):
            phonemes[0, step, pronunciations.encode(text)[step // 3] if step < 12 and step % 3 < 2 else 0] = 1.0
        return torch.cat([tokens, phonemes.log().log_softmax(2)], dim=2)

    def text_of(self, decoder: object, log_probs: Tensor) -> str:
        (tokens,) = decoder(log_probs, torch.tensor([log_probs.shape[1]]))  # type: ignore[operator]
        return VOCABULARY.decode(tokens.token_ids)

    def test_phonemes_tell_words_apart_that_the_letters_do_not(self, arpa: Path) -> None:
        from asr.beam import BeamDecoder

        letters: list[dict[str, float]] = [{letter: 1.0} for letter in "THE "]
        letters += [{"C": 0.5, "K": 0.5}, {"A": 0.5, "I": 0.5}, {"T": 1.0}]
        letters += [{letter: 1.0} for letter in " SAT"]
        decoder = BeamDecoder(VOCABULARY, arpa, pronunciations=PRONUNCIATIONS)
        for vowel, text in (("AE", "THE CAT SAT"), ("IH", "THE KIT SAT")):
            phonemes = [{phoneme: 1.0} for phoneme in ["DH", "AX", "K", vowel, "T", "S", "AE", "T"]]
            assert self.text_of(decoder, self.heard(letters, phonemes)) == text

    def test_the_language_model_counts_more_beside_phonemes_that_know_their_rivals(
        self, hearing: CTCModel, arpa: Path
    ) -> None:
        from asr.beam import BeamDecoder

        by_ctc, by_mmi = with_dropout(hearing, 0.0), with_dropout(hearing, 0.0)
        by_mmi.phonemes_by_mmi = True
        letters = [{letter: 1.0} for letter in "THE "] + [{"C": 0.5, "K": 0.5}, {"A": 0.5, "I": 0.5}, {"T": 1.0}]
        write_arpa(build_ngrams(["THE CAT"] * 8 + ["THE KIT"], 2), arpa.with_name("cat.arpa"))
        decoders = [BeamDecoder.for_model(model, arpa.with_name("cat.arpa")) for model in (by_ctc, by_mmi)]
        cats = [0, 0]
        for share in numpy.linspace(0.05, 0.5, 10):
            vowel = {"AE": share, "IH": 1 - share}
            phonemes = [*({phoneme: 1.0} for phoneme in ["DH", "AX", "K"]), vowel, {"T": 1.0}]
            for number, decoder in enumerate(decoders):
                cats[number] += self.text_of(decoder, self.heard(letters, phonemes)) == "THE CAT"
        assert 0 < cats[0] < cats[1] < 10

    def test_letters_tell_words_apart_that_sound_alike(self, arpa: Path) -> None:
        from asr.beam import BeamDecoder

        decoder = BeamDecoder(VOCABULARY, arpa, pronunciations=PRONUNCIATIONS, lm_weight=0.1)
        phonemes = [{phoneme: 1.0} for phoneme in ("S", "IY", "DH", "AX", "S", "IY")]
        for text in ("SEE THE SEA", "SEA THE SEE"):
            assert self.text_of(decoder, self.heard([{letter: 1.0} for letter in text], phonemes)) == text

    def test_the_start_of_a_word_tells_two_words_from_one(self, tmp_path: Path) -> None:
        from asr.beam import BeamDecoder

        pronunciations = Pronunciations(SEE_THE).with_starts()
        write_arpa(build_ngrams(["SEE THE", "SEETHE"], 2), tmp_path / "lm.arpa")
        decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", pronunciations=pronunciations)
        for text in ("SEE THE", "SEETHE"):
            assert self.text_of(decoder, self.one_word_or_two(pronunciations, text)) == text

    def test_the_word_score_counts_in_both(self, tmp_path: Path) -> None:
        from asr.beam import BeamDecoder

        pronunciations = Pronunciations(SEE_THE)
        write_arpa(build_ngrams(["SEE THE", "SEETHE"], 2), tmp_path / "lm.arpa")
        log_probs = self.one_word_or_two(pronunciations, "SEETHE")
        for word_score, text in ((9.0, "SEE THE"), (-9.0, "SEETHE")):
            decoder = BeamDecoder(
                VOCABULARY, tmp_path / "lm.arpa", pronunciations=pronunciations, word_score=word_score
            )
            assert self.text_of(decoder, log_probs) == text

    def test_without_the_phonemes_it_says_what_it_wants(self, arpa: Path) -> None:
        from asr.beam import BeamDecoder

        decoder = BeamDecoder(VOCABULARY, arpa, pronunciations=PRONUNCIATIONS)
        with pytest.raises(AsrError, match=r"give it what model\.all_log_probs returns"):
            decoder(torch.zeros(1, 5, len(VOCABULARY)), torch.tensor([5]))

    def test_words_that_cannot_be_pronounced_and_too_many_homophones_leave_the_rest(self, tmp_path: Path) -> None:
        from asr.beam import BeamDecoder

        alike = [f"SEE{letter}" for letter in "ABCDEFGHIJ"]
        pronunciations = Pronunciations({**{word: ["S", "IY"] for word in alike}, "CAT": ["K", "AE", "T"]})
        write_arpa(build_ngrams(["'", *alike, "CAT SEEJ", "SEEJ"], 2), tmp_path / "lm.arpa")
        decoder = BeamDecoder(VOCABULARY, tmp_path / "lm.arpa", pronunciations=pronunciations)
        letters = [{letter: 1.0} for letter in "CAT SEEJ"]
        width = len(VOCABULARY) + len(pronunciations)
        log_probs = torch.full((1, 24, width), 1.0 / len(pronunciations)).log()
        log_probs[:, :, : len(VOCABULARY)] = self.heard(letters, [])[:, :, : len(VOCABULARY)]
        assert self.text_of(decoder, log_probs) == "CAT SEEJ"

    def test_hotwords_work_behind_it(self, arpa: Path) -> None:
        from asr.beam import BeamDecoder
        from asr.hotwords import HotwordDecoder

        decoder = HotwordDecoder(
            BeamDecoder(VOCABULARY, arpa, pronunciations=PRONUNCIATIONS), VOCABULARY, {"CATT": 20.0}
        )
        letters = [{letter: 1.0} for letter in "THE CAT SAT"]
        silence = "<blank>"  # so that both outputs say a word at the same time
        spoken = ["DH", "AX", silence, silence, "K", "AE", "T", silence, "S", "AE", "T"]
        assert self.text_of(decoder, self.heard(letters, [{each: 1.0} for each in spoken])) == "THE CATT SAT"
        assert decoder.reads_phonemes
        assert not HotwordDecoder(decode_greedy, VOCABULARY, {"CATT": 20.0}).reads_phonemes

    def test_what_the_phonemes_say_keeps_hotwords_from_other_words(self, arpa: Path) -> None:
        from asr.beam import BeamDecoder
        from asr.hotwords import HotwordDecoder

        letters = [{"C": 0.5, "K": 0.5}, {"A": 0.4, "I": 0.6}, {"T": 1.0}]
        decoder = HotwordDecoder(BeamDecoder(VOCABULARY, arpa, pronunciations=PRONUNCIATIONS), VOCABULARY, {"KIT": 2.0})
        for vowel, text in (("AE", "CAT"), ("IH", "KIT")):
            phonemes = [{"K": 1.0}, {"AE": 0.01, "IH": 0.01, vowel: 0.98}, {"T": 1.0}]
            assert self.text_of(decoder, self.heard(letters, phonemes)) == text

    def test_commands_search_with_phonemes(self, hearing: CTCModel, arpa: Path, tmp_path: Path, run: Run) -> None:
        save_model(hearing, tmp_path / "m.safetensors")
        arguments = "--model", tmp_path / "m.safetensors", "--lm", arpa
        done = run("transcribe", *arguments, "--format", "json", MANIFEST.parent / "84-121123-0001.flac")
        assert done.code == 0, done.errors
        words = {word["text"] for segment in json.loads(done.output)["segments"] for word in segment["words"]}
        assert words <= set(WORDS)
        tuned = run("tune-lm", tmp_path / "m.safetensors", MANIFEST, "--lm", arpa, "--beam-size", "5")
        assert tuned.code == 0, tuned.errors


def test_the_phonemes_are_of_the_references() -> None:
    utterance: Utterance = read_manifest(MANIFEST)[0]
    examples = [Example(utterance, "THE CAT"), Example(utterance, "SEE")]
    batch = SpeechDataset(examples, VOCABULARY, 16000, pronunciations=PRONUNCIATIONS)[[0, 1]]
    assert batch.phonemes is not None
    assert batch.phoneme_lengths is not None
    assert batch.phoneme_lengths.tolist() == [5, 2]
    names = numpy.array(PRONUNCIATIONS.phonemes)
    assert list(names[batch.phonemes[0].numpy()]) == ["DH", "AX", "K", "AE", "T"]


def test_fine_tuning_goes_on_hearing_phonemes_and_drops_them_with_the_letters(
    dictionary: Path, tmp_path: Path, run: Run
) -> None:
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}", "trainer.epochs=1"]
    start = train(make_config(tmp_path / "start", *hears))
    short = ["--train", MANIFEST, "--valid", MANIFEST, "trainer.epochs=1", "data.batch_seconds=20"]
    for name, extra in (("same", []), ("small", ["--new-vocabulary", " 'abcdefghijklmnopqrstuvwxyz"])):
        done = run("finetune", start, *short, f"output_dir={tmp_path / name}", *extra)
        assert done.code == 0, done.errors
    assert load_model(tmp_path / "same" / "model.safetensors").pronunciations is not None
    assert load_model(tmp_path / "small" / "model.safetensors").pronunciations is None


@pytest.mark.usefixtures("one_thread")
def test_a_training_with_phonemes_that_is_resumed_equals_one_that_was_not_stopped(
    dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}"]
    train(make_config(tmp_path / "whole", *hears))
    stop_and_resume(monkeypatch, make_config(tmp_path / "stopped", *hears), "on_train_batch_start", 7)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    curves = [read_scalars(tmp_path / name)["train/phoneme_loss"] for name in ("whole", "stopped")]
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("one_thread")
def test_a_run_whose_dictionary_has_other_phonemes_now_is_not_resumed(
    dictionary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears = ["model.encoder.phoneme_layer=1", f"vocabulary.pronunciations={dictionary}"]
    config = make_config(tmp_path / "run", *hears)
    with pytest.raises(SystemExit):
        train_with(monkeypatch, Interrupt("on_train_batch_start", 3), config)
    dictionary.write_text(dictionary.read_text(encoding="utf-8") + "YES Y EH S\n", encoding="utf-8")
    with pytest.raises(AsrError, match=r"^the pronouncing dictionary has other phonemes now; start with"):
        train(config, resume=True)


def test_a_run_is_resumed_with_a_dictionary_that_says_words_otherwise_and_tells_it(
    hearing: CTCModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, checkpoint = make_config(tmp_path), {"optimizer_states": [], "lr_schedulers": []}
    CTCTrainingModule(hearing, config).on_save_checkpoint(checkpoint)
    otherwise = Pronunciations({word: phonemes.split() for word, phonemes in (WORDS | {"CAT": "K IH T"}).items()})
    for pronunciations, warns in ((PRONUNCIATIONS, False), (otherwise, True)):
        CTCTrainingModule(with_phonemes(hearing, 1, pronunciations), config).on_load_checkpoint(dict(checkpoint))
        assert ("the pronouncing dictionary has changed; the run goes on with what it says now" in caplog.text) == warns
