"""Fine-tuning: what is learned, what stays, when it ends."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asr import load_model
from asr.beam import BeamDecoder
from asr.cli import main
from asr.errors import AsrError
from asr.evaluation import evaluate
from asr.finetuning import FEWEST_EPOCHS, MOST_EPOCHS, _write_mixed, finetune, finetune_config
from asr.manifest import read_manifest, write_manifest
from asr.model import CTCModel
from asr.modelfile import PACKAGED_MODEL, save_model
from asr.ngrams import build_ngrams, write_arpa
from asr.surgery import with_vocabulary
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary

SAMPLES = Path(__file__).parents[1] / "samples"
PLAIN = ["augment.speeds=[1.0]", "augment.noise_probability=0", "augment.num_time_masks=0", "data.num_workers=0"]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two of the samples to learn from, two others."""
    folder = tmp_path_factory.mktemp("manifests")
    lines = [json.loads(line) for line in (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    paths = {}
    for name, chosen in {"own": lines[:2], "other": lines[2:4]}.items():
        rows = [json.dumps(line | {"audio": str(SAMPLES / line["audio"])}) for line in chosen]
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("\n".join(rows), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def small_path(model: CTCModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(model, path, dtype=torch.float32)
    return path


def test_the_packaged_model_learns_a_speakers_words(
    manifests: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["trainer.epochs=12", "trainer.patience=0", "optimizer.learning_rate=2e-3", "trainer.average_decay=0"]
    arguments = ["--train", manifests["own"], "--valid", manifests["own"], "--also-valid", manifests["other"]]
    settings = [*more, *PLAIN, f"output_dir={tmp_path}/run", "trainer.valid_every_epochs=6"]
    assert main(["finetune", "packaged", *arguments, *settings]) == 0
    header, own, other, path = capsys.readouterr().out.splitlines()
    assert header == "before\tafter\tWER on"
    before, after, name = own.split("\t")
    assert name == manifests["own"]
    assert float(after.rstrip("%")) < float(before.rstrip("%")) - 20
    assert other.endswith(manifests["other"])
    assert path == f"{tmp_path}/run/model.safetensors"


def test_with_a_language_model_both_error_rates_are_those_of_the_search(
    manifests: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="flashlight-text is not installed")
    utterances = read_manifest(manifests["own"])
    arpa = tmp_path / "lm.arpa"
    write_arpa(build_ngrams([utterance.text for utterance in utterances], 2), arpa)
    arguments = ["--train", manifests["own"], "--valid", manifests["own"], "--lm", str(arpa), "trainer.epochs=1"]
    assert main(["finetune", "packaged", *arguments, *PLAIN, f"output_dir={tmp_path}/run"]) == 0
    _, own, path = capsys.readouterr().out.splitlines()
    for told, model_path in zip(own.split("\t"), ("packaged", path)):
        model = load_model(model_path)
        searched = evaluate(model, utterances, decode=BeamDecoder.for_model(model, arpa))
        assert told == f"{searched.words.rate:.2%}"
        assert searched.words.rate != evaluate(model, utterances).words.rate


@pytest.mark.parametrize("layers", [1, 2])
def test_frozen_layers_keep_their_weights_and_the_others_learn(
    manifests: dict[str, str], small_path: Path, tmp_path: Path, layers: int
) -> None:
    overrides = [f"output_dir={tmp_path}/run", "trainer.epochs=1", "trainer.average_decay=0", *PLAIN]
    config = finetune_config(small_path, [manifests["own"]], [manifests["own"]], overrides, frozen_layers=layers)
    path = finetune(config).path
    before, after = load_model(small_path).state_dict(), load_model(path).state_dict()
    frozen = ("encoder.subsampling.", *(f"encoder.layers.{layer}." for layer in range(layers)))
    for name, weights in before.items():
        same = torch.equal(weights.half(), after[name].half())
        assert same == name.startswith(frozen) or (same and "bias" in name), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_with_every_layer_frozen_the_head_still_learns(
    manifests: dict[str, str], small_path: Path, tmp_path: Path, name: str
) -> None:
    overrides = [f"output_dir={tmp_path}/run", "trainer.epochs=1", "trainer.average_decay=0", *PLAIN]
    overrides.append(f"optimizer.name={name}")
    config = finetune_config(small_path, [manifests["own"]], [manifests["own"]], overrides, frozen_layers=2)
    after = load_model(finetune(config).path)
    assert not torch.equal(after.head.weight, load_model(small_path).head.weight)


def test_a_new_vocabulary_keeps_the_rows_of_shared_symbols(small_path: Path, speech: list[Tensor]) -> None:
    model = load_model(small_path)
    changed = with_vocabulary(model, CharacterVocabulary(" ABCDEFGHIJKLMNOPQRSTUVWXYZÄ"))
    batch = speech[0][None], torch.tensor([len(speech[0])])
    old, _ = model(*batch)
    new, _ = changed(*batch)
    old_ids = [model.vocabulary.tokens.index(token) for token in changed.vocabulary.tokens if token != "Ä"]
    kept, before = new[..., :-1], old[..., old_ids]
    torch.testing.assert_close(kept - kept[..., :1], before - before[..., :1], rtol=0, atol=1e-4)


def test_a_letter_in_the_other_case_keeps_the_row_of_the_one_it_was(small_path: Path) -> None:
    model = load_model(small_path)
    changed = with_vocabulary(model, CharacterVocabulary(" aäZ"))
    rows = [model.head.weight[model.vocabulary.tokens.index(token)] for token in (" ", "A", "Z")]
    torch.testing.assert_close(changed.head.weight[[1, 2, 4]], torch.stack(rows))
    assert changed.head.bias[3] == model.head.bias.min()


def test_finetuning_with_a_new_vocabulary_tells_what_is_kept_and_new_and_writes_with_it(
    manifests: dict[str, str], small_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lines = [json.loads(line) for line in Path(manifests["own"]).read_text(encoding="utf-8").splitlines()]
    accented = tmp_path / "accented.jsonl"
    accented.write_text("\n".join(json.dumps(line | {"text": line["text"].replace("E", "É")}) for line in lines))
    characters = " ABCDEFGHIJKLMNOPQRSTUVWXYZÉ"
    overrides = [f"output_dir={tmp_path}/run", "trainer.epochs=1", *PLAIN]
    config = finetune_config(small_path, [str(accented)], [str(accented)], overrides, characters=characters)
    model = load_model(finetune(config).path)
    assert model.vocabulary.to_dict() == {"kind": "characters", "characters": characters}
    assert "tokens: kept 28: '<blank>' ' ' 'A'" in caplog.text
    assert "new 1: 'É'; gone 1: \"'\"" in caplog.text
    assert model.vocabulary.normalize("été") == "ÉTÉ"


def test_a_model_of_pieces_gets_another_alphabet_with_pieces_of_the_new_texts(
    manifests: dict[str, str], small_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old = load_model(small_path)
    pieces = SentencePieceVocabulary.train((one.text for one in read_manifest(manifests["own"])), 60)
    save_model(with_vocabulary(old, pieces), tmp_path / "pieces.safetensors")
    lines = [json.loads(line) for line in Path(manifests["own"]).read_text(encoding="utf-8").splitlines()]
    accented = tmp_path / "accented.jsonl"
    accented.write_text("\n".join(json.dumps(line | {"text": line["text"].replace("E", "É")}) for line in lines))
    overrides = [f"output_dir={tmp_path}/run", "trainer.epochs=1", *PLAIN]
    config = finetune_config(
        tmp_path / "pieces.safetensors",
        [str(accented)],
        [str(accented)],
        overrides,
        characters=" 'ABCDÉFGHIJKLMNOPQRSTUVWXYZ",
    )
    vocabulary = load_model(finetune(config).path).vocabulary
    assert max(len(token) for token in vocabulary.tokens if "É" in token) > 1
    assert len(vocabulary) <= 60
    assert vocabulary.normalize("été") == "ÉTÉ"
    assert "tokens: kept " in caplog.text


def test_more_frozen_layers_than_there_are_is_told(manifests: dict[str, str], small_path: Path, tmp_path: Path) -> None:
    config = finetune_config(
        small_path, [manifests["own"]], [manifests["own"]], [f"output_dir={tmp_path}/run"], frozen_layers=9
    )
    with pytest.raises(AsrError, match=r"^optimizer\.frozen_layers=9 must be at most 2, the layers$"):
        finetune(config)


def test_training_ends_where_the_error_rate_falls_no_more(
    manifests: dict[str, str], small_path: Path, tmp_path: Path
) -> None:
    still = ["optimizer.learning_rate=1e-12", "trainer.patience=2", "trainer.epochs=30", *PLAIN]
    config = finetune_config(small_path, [manifests["own"]], [manifests["own"]], [f"output_dir={tmp_path}/run", *still])
    finetune(config)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 2
    assert checkpoint["global_step"] == 3


def test_as_much_of_the_old_is_mixed_in_as_is_new_and_the_same_every_time(
    small_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = read_manifest(SAMPLES / "manifest.jsonl")
    write_manifest(samples[:2], tmp_path / "new.jsonl")
    write_manifest([*samples[2:] * 5, replace(samples[2], duration_seconds=0.2)], tmp_path / "old.jsonl")
    new, old = str(tmp_path / "new.jsonl"), str(tmp_path / "old.jsonl")
    drawn = []
    for name in ("a", "b"):
        config = finetune_config(
            small_path, [new], [new], [f"output_dir={tmp_path}/{name}", "trainer.epochs=1", *PLAIN]
        )
        with caplog.at_level(logging.INFO):
            finetune(config, mixed=[old])
        drawn.append(read_manifest(tmp_path / name / "mixed.jsonl"))
        assert str(tmp_path / name / "mixed.jsonl") in (tmp_path / name / "config.yaml").read_text()
        assert not list((tmp_path / name).glob(".mixed*"))
    seconds, new_seconds = (sum(one.duration_seconds for one in some) for some in (drawn[0], samples[:2]))
    assert new_seconds <= seconds <= new_seconds + max(one.duration_seconds for one in samples)
    assert min(one.duration_seconds for one in drawn[0]) > 0.2
    assert f"mixed in: {seconds / 3600:.2f} hours" in caplog.text
    assert [one.id for one in drawn[0]] == [one.id for one in drawn[1]]
    assert {Path(one.audio_path).resolve() for one in drawn[0]} <= {Path(one.audio_path) for one in samples[2:]}


def test_what_is_too_long_to_be_mixed_in_is_told(small_path: Path, tmp_path: Path) -> None:
    samples = read_manifest(SAMPLES / "manifest.jsonl")
    write_manifest([replace(samples[0], duration_seconds=30.0)], tmp_path / "old.jsonl")
    new, old = str(SAMPLES / "manifest.jsonl"), str(tmp_path / "old.jsonl")
    config = finetune_config(small_path, [new], [new], [f"output_dir={tmp_path}/run"])
    with pytest.raises(AsrError, match=r"old\.jsonl: no utterance lasts from 0\.3 to 20 s .* nothing to learn from"):
        finetune(config, mixed=[old])


def test_a_recording_that_training_leaves_out_counts_for_nothing(small_path: Path, tmp_path: Path) -> None:
    samples, other = read_manifest(SAMPLES / "manifest.jsonl"), str(SAMPLES / "manifest.jsonl")
    seconds = sum(one.duration_seconds for one in samples[:2])
    for name, lecture in {"short": [], "long": [replace(samples[2], duration_seconds=3600.0)]}.items():
        write_manifest([*samples[:2], *lecture], tmp_path / f"{name}.jsonl")
    short, long = (
        finetune_config(small_path, [str(tmp_path / name)], [other], [f"output_dir={tmp_path}/run"])
        for name in ("short.jsonl", "long.jsonl")
    )
    assert short.trainer == long.trainer
    mixed = read_manifest(_write_mixed([other], long))
    assert seconds <= sum(one.duration_seconds for one in mixed) <= seconds + 20
    with pytest.raises(AsrError, match=r"manifest\.jsonl: no utterance lasts from 19 to 20 s"):
        finetune_config(small_path, [other], [other], ["data.min_seconds=19"])


def test_a_valid_set_without_a_word_has_no_rate(manifests: dict[str, str], small_path: Path, tmp_path: Path) -> None:
    samples = read_manifest(SAMPLES / "manifest.jsonl")
    write_manifest([replace(samples[0], text="123")], tmp_path / "digits.jsonl")
    own, digits = manifests["own"], str(tmp_path / "digits.jsonl")
    config = finetune_config(small_path, [own], [own], [*PLAIN, f"output_dir={tmp_path}/run", "trainer.epochs=1"])
    assert f"none\tnone\t{digits}" in finetune(config, also_valid=[digits]).summary()
    write_manifest([replace(samples[0], audio_path="/none.wav")], tmp_path / "gone.jsonl")
    with pytest.raises(AsrError, match=rf"^{tmp_path}/gone\.jsonl:1: .*none\.wav: audio file cannot be opened"):
        finetune(config, also_valid=[str(tmp_path / "gone.jsonl")], resume=True)


def test_lists_of_manifests_are_lists(manifests: dict[str, str], small_path: Path) -> None:
    own = manifests["own"]
    for given in ((own, [own]), ([own], own)):
        with pytest.raises(AsrError, match="is one manifest; give a list of them"):
            finetune_config(small_path, *given)


@pytest.mark.parametrize("override", ["optimizer.frozen_layers=0", "vocabulary.characters=' abc'"])
def test_what_an_option_says_too_is_told(manifests: dict[str, str], small_path: Path, override: str) -> None:
    own = [manifests["own"]]
    with pytest.raises(AsrError, match=r"an option says the same; give one of the two$"):
        finetune_config(small_path, own, own, [override], frozen_layers=1, characters=" abcd")


def test_phonemes_for_a_model_that_hears_none_are_told(
    manifests: dict[str, str], small_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(AsrError, match="hears no phonemes; train by a recipe that hears them, with initial_model="):
        finetune_config(small_path, [manifests["own"]], [manifests["own"]], ["vocabulary.pronunciations=packaged"])


def test_an_alphabet_that_is_the_same_changes_nothing(manifests: dict[str, str]) -> None:
    own = [manifests["own"]]
    named = finetune_config("packaged", own, own, characters=load_model().vocabulary.alphabet)
    assert named == finetune_config("packaged", own, own)


def test_a_run_that_is_there_is_not_touched_by_another(
    manifests: dict[str, str], small_path: Path, tmp_path: Path
) -> None:
    config = finetune_config(small_path, [manifests["own"]], [manifests["own"]], [f"output_dir={tmp_path}"])
    torch.save({}, tmp_path / "last.ckpt")
    with pytest.raises(AsrError, match="holds a run; continue it with --resume"):
        finetune(config, mixed=[manifests["other"]])
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_shape_of_a_model_cannot_be_overruled(manifests: dict[str, str], small_path: Path) -> None:
    with pytest.raises(AsrError, match=r"model\.encoder\.num_layers=9: the model keeps its shape"):
        finetune_config(small_path, [manifests["own"]], [manifests["own"]], ["model.encoder.num_layers=9"])


@pytest.mark.parametrize(
    "override",
    ["initial_model=b.safetensors", "data.valid=[b.csv]", "data.train=[b.csv]", "vocabulary.kind=sentencepiece"],
)
def test_what_has_an_argument_of_its_own_cannot_be_overruled(
    manifests: dict[str, str], small_path: Path, override: str
) -> None:
    with pytest.raises(AsrError) as caught:
        finetune_config(small_path, [manifests["own"]], [manifests["own"]], [override])
    assert str(caught.value).startswith(f"{override}: fine-tuning takes it from its own arguments and the model")


def test_recordings_of_a_comparison_that_cannot_be_read_are_told(
    manifests: dict[str, str], small_path: Path, tmp_path: Path
) -> None:
    lost = tmp_path / "lost.jsonl"
    lost.write_text('{"audio": "gone.flac", "text": "HELLO", "duration": 2.0}\n')
    config = finetune_config(small_path, [manifests["own"]], [manifests["own"]], [f"output_dir={tmp_path}/run", *PLAIN])
    with pytest.raises(AsrError, match=r"gone\.flac: audio file cannot be opened: No such file"):
        finetune(config, also_valid=[str(lost)])
    assert not (tmp_path / "run").exists()


def test_layers_can_be_frozen_by_a_setting_as_in_training(manifests: dict[str, str], small_path: Path) -> None:
    own = [manifests["own"]]
    assert finetune_config(small_path, own, own, ["optimizer.frozen_layers=1"]).optimizer.frozen_layers == 1
    assert finetune_config(small_path, own, own, [], frozen_layers=2).optimizer.frozen_layers == 2


def test_a_model_that_became_no_better_is_told(
    manifests: dict[str, str], small_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = [f"output_dir={tmp_path}/run", "trainer.epochs=1", "optimizer.learning_rate=1e-12", *PLAIN]
    finetune(finetune_config(small_path, [manifests["own"]], [manifests["other"]], still))
    assert f"{manifests['other']}: no better than before; try more recordings" in caplog.text


def test_little_audio_gets_more_epochs_and_overrides_win(manifests: dict[str, str], tmp_path: Path) -> None:
    def epochs(hours: float, *overrides: str) -> int:
        manifest = tmp_path / "m.jsonl"
        entry = {"audio": "a.wav", "text": "A", "duration": 3600 * hours}
        manifest.write_text(json.dumps(entry))
        any_length = ["data.max_seconds=1e6", "data.batch_seconds=1e6"]
        return finetune_config(None, [str(manifest)], ["v.jsonl"], [*any_length, *overrides]).trainer.epochs

    assert [epochs(hours) for hours in (0.01, 0.5, 1.0, 50.0)] == [MOST_EPOCHS, 20, 10, FEWEST_EPOCHS]
    assert epochs(1.0, "trainer.epochs=3") == 3
    config = finetune_config(None, [manifests["own"]], ["v.jsonl"], ["optimizer.learning_rate=1e-4"])
    assert config.optimizer.learning_rate == 1e-4
    assert config.initial_model == str(PACKAGED_MODEL)
    assert config.model == load_model().config
    config = finetune_config(None, [manifests["own"]], ["v.jsonl"], ["model.encoder.dropout=0.45"])
    assert config.model.encoder.dropout == 0.45
