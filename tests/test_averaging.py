"""`asr average`: the mean of weights, and models that have none."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asr import load_model
from asr.averaging import average
from asr.cli import main
from asr.errors import AsrError
from asr.model import CTCModel
from asr.modelfile import save_model
from asr.surgery import with_vocabulary
from asr.vocabulary import CharacterVocabulary


@pytest.fixture
def trebled_path(model: CTCModel, tmp_path: Path) -> Path:
    """A model file with three times the weights of `model_path`."""
    trebled = copy.deepcopy(model)
    for parameter in trebled.parameters():
        parameter.mul_(3)
    save_model(trebled, tmp_path / "trebled.safetensors", dtype=torch.float32)
    return tmp_path / "trebled.safetensors"


def test_the_mean_has_the_mean_weights_and_a_model_named_twice_weighs_twice(
    model_path: Path, trebled_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, factor in (([trebled_path, model_path], 2.0), ([model_path, trebled_path, trebled_path], 7 / 3)):
        path = tmp_path / "mean.safetensors"
        assert main(["average", *map(str, names), "-o", str(path)]) == 0
        assert capsys.readouterr().out == f"{path}\n"
        mean, weights = load_model(path).state_dict(), load_model(model_path).state_dict()
        assert mean.keys() == weights.keys()
        for name in weights:
            torch.testing.assert_close(mean[name], factor * weights[name], rtol=1e-3, atol=1e-6)


def test_a_model_is_the_mean_of_itself_and_itself(packaged_model: CTCModel, speech: list[Tensor]) -> None:
    batch = speech[0][None], torch.tensor([len(speech[0])])
    assert torch.equal(average(["packaged", "packaged"])(*batch)[0], packaged_model(*batch)[0])


def test_another_dropout_is_no_other_shape(
    model: CTCModel, model_path: Path, make_model: Callable[..., CTCModel], tmp_path: Path
) -> None:
    save_model(make_model(dropout=0.4), tmp_path / "other.safetensors")
    assert average([model_path, tmp_path / "other.safetensors"]).config == model.config


def test_models_without_a_mean_are_told_apart(
    model: CTCModel, model_path: Path, make_model: Callable[..., CTCModel], tmp_path: Path
) -> None:
    tokens, shape = tmp_path / "tokens.safetensors", tmp_path / "shape.safetensors"
    save_model(with_vocabulary(model, CharacterVocabulary(" abc")), tokens)
    save_model(make_model(cell="lstm"), shape)
    for other, difference in ((tokens, "writes with other tokens than"), (shape, "has another shape or frontend than")):
        with pytest.raises(AsrError) as caught:
            average([model_path, other])
        assert str(caught.value) == f"{other}: {difference} {model_path}; their weights have no mean"


def test_a_mean_is_of_a_list(model_path: Path) -> None:
    for given in ([], str(model_path), model_path):
        with pytest.raises(AsrError, match="give a list of model files"):
            average(given)


def test_models_that_a_language_model_weighs_otherwise_have_no_mean(packaged_model: CTCModel, tmp_path: Path) -> None:
    other = copy.deepcopy(packaged_model)
    other.phonemes_by_mmi = False
    save_model(other, tmp_path / "by-ctc.safetensors")
    for pair in (["packaged", tmp_path / "by-ctc.safetensors"], [tmp_path / "by-ctc.safetensors", "packaged"]):
        with pytest.raises(AsrError, match="one learned its phonemes by maximum mutual information"):
            average(pair)


def test_a_mean_replaces_none_of_its_models(
    model_path: Path, trebled_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trebled_path.read_bytes()
    with pytest.raises(SystemExit):
        main(["average", str(model_path), str(trebled_path), "-o", str(trebled_path)])
    assert "would replace a model that goes into the mean" in capsys.readouterr().err
    assert trebled_path.read_bytes() == before


def test_a_mean_is_called_as_model_files_are(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "data.csv"
    manifest.write_text("audio,text\n")
    with pytest.raises(SystemExit):
        main(["average", str(model_path), str(model_path), "-o", str(manifest)])
    assert "must end in .safetensors" in capsys.readouterr().err
    assert manifest.read_text() == "audio,text\n"


def test_one_model_is_written_in_eight_bits(model_path: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.safetensors"
    assert main(["average", str(model_path), "--int8", "-o", str(small)]) == 0
    assert small.stat().st_size < 0.7 * model_path.stat().st_size
    before, after = (load_model(path).state_dict() for path in (model_path, small))
    assert all(torch.allclose(weight, after[name], atol=0.01) for name, weight in before.items())


def test_one_model_has_no_mean(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["average", str(model_path), "-o", str(tmp_path / "mean.safetensors")])
    assert caught.value.code == 2
    assert "a mean takes two models or more" in capsys.readouterr().err
