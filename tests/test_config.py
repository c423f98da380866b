"""Settings: defaults, a recipe over them, overrides over both, and what is said about a wrong one."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import asr.config
from asr.config import DataConfig, FrontendConfig, ModelConfig, TrainConfig, model_config_from_dict
from asr.errors import AsrError
from asr.features import LogMelFrontend
from asr.recipe import load_config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("**/*.yaml"))


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def sections(config: object) -> list[object]:
    """A config and every config inside it."""
    inner = [getattr(config, field.name) for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    return [config, *(part for value in inner if dataclasses.is_dataclass(value) for part in sections(value))]


def test_nothing_given_gives_the_defaults() -> None:
    assert load_config(None) == TrainConfig()


def test_an_empty_recipe_gives_the_defaults(write_recipe: Callable[[str], Path]) -> None:
    assert load_config(write_recipe("# all as it is\n")) == TrainConfig()


def test_a_recipe_changes_what_it_names_and_nothing_else(write_recipe: Callable[[str], Path]) -> None:
    config = load_config(write_recipe("data: {train: [a.jsonl], batch_seconds: 60}\nmodel: {encoder: {cell: lstm}}\n"))
    assert (config.data.train, config.data.batch_seconds, config.model.encoder.cell) == (["a.jsonl"], 60.0, "lstm")
    default = TrainConfig()
    encoder = dataclasses.replace(default.model.encoder, cell="lstm")
    assert config == dataclasses.replace(
        default,
        data=dataclasses.replace(default.data, train=["a.jsonl"], batch_seconds=60.0),
        model=dataclasses.replace(default.model, encoder=encoder),
    )


def test_overrides_win_over_the_recipe(write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe("trainer: {epochs: 4, seed: 9}\n")
    trainer = load_config(path, ["trainer.epochs=8", "trainer.devices=2"]).trainer
    assert (trainer.epochs, trainer.seed, trainer.devices) == (8, 9, "2")


@pytest.mark.parametrize("text", ["5e-4", "0.0005", ".5e-3"])
def test_an_exponent_without_a_dot_is_a_number(write_recipe: Callable[[str], Path], text: str) -> None:
    by_override = load_config(None, [f"optimizer.learning_rate={text}"])
    by_recipe = load_config(write_recipe(f"optimizer: {{learning_rate: {text}}}"))
    assert by_override.optimizer.learning_rate == by_recipe.optimizer.learning_rate == 0.0005


def test_nothing_behind_the_sign_empties_a_setting(write_recipe: Callable[[str], Path]) -> None:
    path = write_recipe("initial_model: packaged\nvocabulary: {pronunciations: packaged}\n")
    config = load_config(path, ["initial_model=", "vocabulary.pronunciations="])
    assert config == TrainConfig()
    with pytest.raises(AsrError, match=r"trainer\.epochs: Value '' of type 'str' could not be converted to Integer"):
        load_config(path, ["trainer.epochs="])


@pytest.mark.parametrize("text", ["2026_11_30", "runs/a #b", "0777", "1:30", "yes", "null", "a: b", "[a", "{a", "é "])
def test_a_text_is_taken_as_it_stands(text: str) -> None:
    assert load_config(None, [f"output_dir={text}"]).output_dir == text
    assert load_config(None, [f'output_dir="{text}"']).output_dir == text
    assert load_config(None, [f"vocabulary.pronunciations={text}"]).vocabulary.pronunciations == text


def test_letters_begin_with_a_space_with_quotes_and_without() -> None:
    for text in (" ab", '" ab"', "' ab'"):
        assert load_config(None, [f"vocabulary.characters={text}"]).vocabulary.characters == " ab"


def test_a_list_can_be_overridden() -> None:
    assert load_config(None, ["data.train=[a.jsonl,b.jsonl]"]).data.train == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.encoder.hiden_size=3", "unknown setting model.encoder.hiden_size; did you mean model.encoder.hidden_s"),
        ("trainer.epoch=3", "unknown setting trainer.epoch; did you mean trainer.epochs?"),
        ("modle.encoder.hidden_size=3", "unknown setting modle; did you mean model?"),
        ("epochs=3", "unknown setting epochs; did you mean trainer.epochs?"),
        ("encoder.cell=lstm", "unknown setting encoder; did you mean model.encoder?"),
        ("trainer.epochs", "trainer.epochs: settings are written section.key=value, such as trainer.epochs=3"),
        ("zzz=1", "unknown setting zzz; known here: output_dir, initial_model, model, vocabulary"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_known_one(override: str, message: str) -> None:
    with pytest.raises(AsrError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"overrides: {message}")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("trainer: {epochs: many}", "trainer.epochs: Value 'many'"),
        ("trainer: {epochs: 1.5}", "trainer.epochs: Value '1.5'"),
        ("trainer: {epochs: null}", "trainer.epochs: Incompatible value"),
        ("augment: {speeds: [fast]}", "augment.speeds[0]: Value 'fast'"),
        ("data: {shortest_first: maybe}", "data.shortest_first: Value 'maybe'"),
        ("data: {train: a.jsonl}", "data.train='a.jsonl' must be a list such as [a.jsonl]"),
        ("data: {train: [[a.jsonl]]}", "data.train=[['a.jsonl']] must be a list of single values"),
        ("data: {valid: [path: a.jsonl]}", "data.valid=[{'path': 'a.jsonl'}] must be a list of single values"),
        ("trainer: 3", "trainer must be a section"),
        ("- a\n- b", "the recipe must be a section"),
        ("a: [1", "not YAML: "),
        ("5", "not YAML: "),
        ("trainer:\n  epochs: ???", "trainer.epochs=??? waits for a value"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_file_and_place(
    write_recipe: Callable[[str], Path], text: str, place: str
) -> None:
    path = write_recipe(text)
    with pytest.raises(AsrError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {place}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.frontend.sample_rate=8", "model.frontend.sample_rate=8 must be 1000 to 768000 Hz"),
        ("model.frontend.num_mels=4", "model.frontend.num_mels=4 must be 8 to 1000"),
        ("model.frontend.hop_ms=0", "model.frontend.hop_ms=0.0 must be at least a sample"),
        ("model.frontend.window_ms=5", "model.frontend.window_ms=5.0 must be at least model.frontend.hop_ms"),
        (
            "model.frontend.window_ms=.inf",
            "model.frontend.window_ms=inf must be at least model.frontend.hop_ms, at most",
        ),
        ("model.encoder.cell=gruu", "model.encoder.cell='gruu' must be gru, lstm or rnn"),
        ("model.encoder.num_layers=0", "model.encoder.num_layers=0 must be at least 1"),
        ("model.encoder.hidden_size=0", "model.encoder.hidden_size=0 must be at least 1"),
        ("model.encoder.conv_channels=0", "model.encoder.conv_channels=0 must be at least 1"),
        ("model.encoder.dropout=1", "model.encoder.dropout=1.0 must be in [0, 1)"),
        ("vocabulary.kind=words", "vocabulary.kind='words' must be characters or sentencepiece"),
        ("vocabulary.size=1", "vocabulary.size=1 must be at least 2"),
        ("augment.speeds=[]", "augment.speeds=[] must be numbers from 0.5 to 2"),
        ("augment.speeds=[1.0,.nan]", "augment.speeds=[1.0, nan] must be numbers from 0.5 to 2"),
        ("augment.speeds=[0.995]", "augment.speeds=[0.995] must be numbers from 0.5 to 2, in steps of 0.01"),
        ("augment.noise_snr_db=[-.inf,10]", "augment.noise_snr_db=[-inf, 10.0] must be [lowest, highest], both finite"),
        ("augment.noise_snr_db=[10,.inf]", "augment.noise_snr_db=[10.0, inf] must be [lowest, highest], both finite"),
        ("augment.gain_db=.inf", "augment.gain_db=inf must be at least 0, and finite"),
        ("augment.gain_db=.nan", "augment.gain_db=nan must be at least 0, and finite"),
        ("optimizer.weight_decay=.inf", "optimizer.weight_decay=inf must be at least 0, and finite"),
        ("augment.noise_snr_db=[40,10]", "augment.noise_snr_db=[40.0, 10.0] must be [lowest, highest]"),
        ("augment.time_mask_share=2", "augment.time_mask_share=2.0 must be in [0, 1]"),
        ("augment.noise_probability=-1", "augment.noise_probability=-1.0 must be in [0, 1]"),
        ("augment.gain_db=-3", "augment.gain_db=-3.0 must be at least 0"),
        ("augment.num_time_masks=-1", "augment.num_time_masks=-1 must be at least 0"),
        ("data.max_seconds=200", "data.batch_seconds=120.0 must be at least data.max_seconds=200.0"),
        ("data.min_seconds=30", "data.min_seconds=30.0 must be in [0, data.max_seconds=20.0]"),
        ("data.num_workers=-1", "data.num_workers=-1 must be at least 0"),
        ("data.cache_hours=-1", "data.cache_hours=-1.0 must be at least 0"),
        ("data.cache_hours=.inf", "data.cache_hours=inf must be at least 0"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate=0.0 must be above 0"),
        ("optimizer.warmup_share=10", "optimizer.warmup_share=10.0 must be in [0, 1]"),
        ("optimizer.beta2=1", "optimizer.beta2=1.0 must be in [0, 1)"),
        ("optimizer.frozen_layers=-1", "optimizer.frozen_layers=-1 must be at least 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=-1.0 must be at least 0"),
        ("optimizer.name=sgd", "optimizer.name='sgd' must be adamw or muon"),
        ("vocabulary.characters=ab", "vocabulary.characters='ab' must hold a space, which YAML keeps in quotes"),
        ("output_dir=", "output_dir='' must name a folder"),
        ("output_dir=~/runs/a", "output_dir='~/runs/a' must not begin with ~; write the home folder out"),
        ("trainer.patience=-1", "trainer.patience=-1 must be at least 0"),
        ("augment.consistency_weight=-1", "augment.consistency_weight=-1.0 must be at least 0"),
        ("augment.num_frequency_masks=-1", "augment.num_frequency_masks=-1 must be at least 0"),
        ("augment.frequency_mask_mels=-1", "augment.frequency_mask_mels=-1 must be at least 0"),
        ("optimizer.clip_norm=0", "optimizer.clip_norm=0.0 must be above 0"),
        ("trainer.epochs=0", "trainer.epochs=0 must be at least 1"),
        ("trainer.valid_every_epochs=0", "trainer.valid_every_epochs=0 must divide trainer.epochs=30"),
        ("trainer.valid_every_epochs=4", "trainer.valid_every_epochs=4 must divide trainer.epochs=30"),
        ("trainer.seed=-1", "trainer.seed=-1 must be at least 0"),
        (f"trainer.seed={10**30}", f"trainer.seed={10**30} must be at least 0 and below 2^63"),
        ("trainer.precision=half", "trainer.precision='half' must be one of ('auto', '32-true', 'bf16-mixed', '16-m"),
        ("trainer.accelerator=tpu", "trainer.accelerator='tpu' must be auto, cpu or gpu"),
        ("trainer.devices=both", "trainer.devices='both' must be auto or a number above 0"),
        ("trainer.average_decay=1", "trainer.average_decay=1.0 must be in [0, 1)"),
        ("trainer.log_every_steps=0", "trainer.log_every_steps=0 must be at least 1"),
    ],
)
def test_a_value_that_breaks_a_rule_is_told_with_the_rule(override: str, message: str) -> None:
    with pytest.raises(AsrError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(f"overrides: {message}")


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")  # of which two samples tell little
def test_a_window_is_long_enough_for_as_many_frames_as_are_counted() -> None:
    with pytest.raises(AsrError, match=r"^model\.frontend\.window_ms=1 must be at least two samples"):
        FrontendConfig(sample_rate=1000, hop_ms=1, window_ms=1)
    frontend = LogMelFrontend(FrontendConfig(sample_rate=1000, num_mels=8, hop_ms=1, window_ms=2))
    features, feature_lengths = frontend(torch.zeros(1, 50), torch.tensor([50]))
    assert features.shape[1] == feature_lengths[0]


def test_thousands_of_brackets_in_a_recipe_are_told_in_a_sentence(write_recipe: Callable[[str], Path]) -> None:
    with pytest.raises(AsrError, match=r"(?s)yaml: not YAML: .*exceeded"):
        load_config(write_recipe("output_dir: " + "[" * 3000 + "]" * 3000))


@pytest.mark.parametrize("name", ["train", "valid"])
def test_one_manifest_in_place_of_a_list_is_told_from_python_too(name: str) -> None:
    with pytest.raises(AsrError, match=rf"^data\.{name}='a\.csv' must be a list such as \['a\.csv'\]"):
        DataConfig(**{name: "a.csv"})  # type: ignore[arg-type]


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"^recipe not found: .*none\.yaml$"):
        load_config(tmp_path / "none.yaml")


def test_the_recipes_are_found() -> None:
    assert "base.yaml" in [path.name for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads_and_fits_on_a_page(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 30
    config = load_config(path)
    assert config.data.train
    assert config.data.valid


@pytest.mark.parametrize("section", sections(TrainConfig()), ids=lambda section: type(section).__name__)
def test_a_config_cannot_be_changed(section: object) -> None:
    name = dataclasses.fields(section)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section, name, None)


def test_every_setting_says_below_it_what_it_means() -> None:
    tree = ast.parse(inspect.getsource(asr.config))
    silent = []
    for section in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for statement, following in zip(section.body, [*section.body[1:], None]):
            if not isinstance(statement, ast.AnnAssign) or ast.unparse(statement.annotation).endswith("Config"):
                continue
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            silent.extend([] if documented else [f"{section.name}.{ast.unparse(statement.target)}"])
    assert silent == []


def test_a_model_config_comes_back_from_its_dict() -> None:
    config = load_config(None, ["model.encoder.cell=rnn", "model.frontend.num_mels=40"]).model
    assert model_config_from_dict(dataclasses.asdict(config)) == config != ModelConfig()
