"""The model file: there and back, and one sentence for every file that is not one."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from asr.config import EncoderConfig, FrontendConfig, ModelConfig
from asr.errors import AsrError
from asr.model import CTCModel
from asr.modelfile import FORMAT_NUMBER, load_model, save_model
from asr.quantization import dequantize, quantize
from asr.surgery import with_vocabulary
from asr.vocabulary import CharacterVocabulary, SentencePieceVocabulary


def log_probs(model: CTCModel, waveform: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(waveform[None], torch.tensor([len(waveform)]))[0][0]


@pytest.fixture
def path(model: CTCModel, tmp_path: Path) -> Path:
    """A whole model file, which the test may damage."""
    save_model(model, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def read_parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), dict(file.metadata())


def refusal(path: Path) -> str:
    """The one sentence with which a file is refused; it names the file."""
    with pytest.raises(AsrError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_float32_weights_give_exactly_the_same_log_probs(model: CTCModel, tmp_path: Path, speech: list[Tensor]) -> None:
    save_model(model, tmp_path / "new folder" / "m.safetensors", dtype=torch.float32)
    again = load_model(str(tmp_path / "new folder" / "m.safetensors"))
    assert torch.equal(log_probs(again, speech[1]), log_probs(model, speech[1]))


def test_others_may_read_it_as_any_new_file(model: CTCModel, tmp_path: Path) -> None:
    save_model(model, tmp_path / "m.safetensors")
    (tmp_path / "new").write_bytes(b"")
    assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_full_disk_leaves_the_old_file_and_is_one_sentence(path: Path, model: CTCModel, full_disk: Any) -> None:
    before = path.read_bytes()
    reason = r"tiny\.safetensors: cannot be written \(File too large\); make room or choose another folder$"
    with full_disk(), pytest.raises(AsrError, match=reason):
        save_model(model, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_float16_weights_give_nearly_the_same_log_probs(model: CTCModel, path: Path, speech: list[Tensor]) -> None:
    again = load_model(path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    torch.testing.assert_close(log_probs(again, speech[1]), log_probs(model, speech[1]), atol=0.1, rtol=0)


def test_eight_bits_are_off_by_half_a_scale_at_most_and_a_second_time_by_nothing(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    packaged = load_model()
    save_model(packaged, one, dtype=torch.int8)
    assert one.stat().st_size < 0.56 * sum(weight.numel() * 2 for weight in packaged.state_dict().values())
    before, after = packaged.state_dict(), load_model(one).state_dict()
    for name, weight in before.items():
        largest = weight.abs().flatten(1).amax(1) if weight.dim() > 1 else weight.abs() * 0.1
        off = (after[name] - weight).abs().flatten(1).amax(1) if weight.dim() > 1 else (after[name] - weight).abs()
        assert (off <= 0.501 / 127 * largest).all(), name
    save_model(load_model(one), two, dtype=torch.int8)
    assert all(torch.equal(after[name], again) for name, again in load_model(two).state_dict().items())


def test_a_matrix_of_nothing_has_eight_bits_too() -> None:
    weights = {"one": torch.tensor([[0.0, 0.0], [1e-9, -1e-9], [3.0, -1.5]]), "two": torch.randn(4, 2, 3, 3)}
    again = dequantize(quantize(weights))
    torch.testing.assert_close(again["one"], torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, -1.5]]), atol=0.012, rtol=0)
    assert again["two"].shape == (4, 2, 3, 3)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_eight_bits_without_their_scales_are_refused(model: CTCModel, path: Path, damage: str) -> None:
    save_model(model, path, dtype=torch.int8)
    weights, metadata = read_parts(path)
    scales = weights.pop("head.weight.scale")
    save_file(weights if damage == "missing" else {**weights, "head.weight.scale": scales[1:].clone()}, path, metadata)
    assert "is damaged or not a model file: head.weight has " in refusal(path)


def test_a_float16_file_does_not_round_the_frontend(model: CTCModel, path: Path, speech: list[Tensor]) -> None:
    """The window and the mel bands follow from the configuration; only what was learned may be rounded."""
    again = load_model(path)
    torch.testing.assert_close(
        again.frontend.log_mel(speech[1][None]), model.frontend.log_mel(speech[1][None]), atol=1e-4, rtol=0
    )


def test_a_loaded_model_is_in_evaluation_mode_on_its_device(path: Path, device: torch.device) -> None:
    again = load_model(path, device)
    assert not again.training
    assert {tensor.device.type for tensor in again.state_dict().values()} == {device.type}


@pytest.mark.parametrize("device", ["gpu", "cuda:99", torch.device("cuda:99")])
def test_a_device_that_is_not_there_is_told(path: Path, device: str | torch.device) -> None:
    with pytest.raises(AsrError, match=rf"^device='{device}' cannot be used here \(.+\); use device='cpu'$"):
        load_model(path, device)


def test_a_loaded_model_is_in_float32_whatever_the_default_is(path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        again = load_model(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in (*again.parameters(), *again.buffers())} == {torch.float32}


def test_saving_leaves_the_model_as_it_was(make_model: Callable[..., CTCModel], tmp_path: Path) -> None:
    model = make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path / "m.safetensors")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["characters", "sentencepiece"])
def test_configuration_and_vocabulary_come_back(kind: str, tmp_path: Path) -> None:
    sentences = ["THE CAT SAT ON THE MAT", "THE DOG DID NOT", "A CAT IS NOT A DOG"]
    vocabulary = SentencePieceVocabulary.train(sentences, 16) if kind == "sentencepiece" else CharacterVocabulary("AB ")
    config = ModelConfig(
        FrontendConfig(8000, 40, 32.0, 8.0), EncoderConfig(cell="lstm", num_layers=1, hidden_size=8, conv_channels=2)
    )
    save_model(CTCModel(config, vocabulary), tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    assert again.config == config
    assert type(again.vocabulary) is type(vocabulary)
    assert again.vocabulary.tokens == vocabulary.tokens
    assert again.sample_rate == 8000


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "not found" in refusal(tmp_path / "none.safetensors")
    refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, 0.999])
def test_a_truncated_or_empty_file_is_refused(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert "damaged" in refusal(path)


def test_bytes_of_something_else_are_refused(path: Path, sample_paths: list[Path]) -> None:
    for content in (b"\0" * 1000, b"RIFF" * 500, torch.randn(5000).numpy().tobytes(), sample_paths[0].read_bytes()):
        path.write_bytes(content)
        refusal(path)


def test_a_safetensors_file_without_our_metadata_is_refused(path: Path) -> None:
    weights, metadata = read_parts(path)
    save_file(weights, path)
    assert "format number" in refusal(path)
    save_file(weights, path, {**metadata, "format": "one"})
    assert "format number" in refusal(path)


def test_a_newer_format_says_to_upgrade(path: Path) -> None:
    weights, metadata = read_parts(path)
    save_file(weights, path, {**metadata, "format": str(FORMAT_NUMBER + 1), "config": "what only the future knows"})
    message = refusal(path)
    assert f"format {FORMAT_NUMBER + 1}" in message
    assert "upgrade" in message


def encoder_config(**changes: Any) -> str:
    config = dataclasses.asdict(ModelConfig(encoder=EncoderConfig(num_layers=2, hidden_size=24, conv_channels=4)))
    config["encoder"].update(changes)
    return json.dumps(config)


@pytest.mark.parametrize(
    "changed",
    [
        {"config": "{"},
        {"config": "[]"},
        {"config": "{}"},
        {"config": encoder_config(colour="red")},
        {"config": encoder_config(cell="transformer")},
        {"config": encoder_config(num_layers=0)},
        {"config": encoder_config(hidden_size="24")},
        {"config": encoder_config(hidden_size=10**15)},
        {"config": encoder_config().replace("25.0", "Infinity")},
        {"config": encoder_config().replace("80", "1" + "0" * 400)},
        {"format": "1" * 5000},
        {"vocabulary": "null"},
        {"vocabulary": "{}"},
        {"vocabulary": '{"kind": "words"}'},
        {"vocabulary": '{"kind": "characters", "characters": "AA"}'},
        {"vocabulary": '{"kind": "characters", "characters": 3}'},
        {"vocabulary": '{"kind": "sentencepiece", "model_proto": "AAAA"}'},
        {"vocabulary": '{"kind": "sentencepiece", "model_proto": ""}'},
    ],
    ids=lambda changed: next(f"{key}={value[:12]}…{value[-45:]}" for key, value in changed.items()),
)
def test_damaged_metadata_is_refused(path: Path, changed: dict[str, str]) -> None:
    weights, metadata = read_parts(path)
    save_file(weights, path, {**metadata, **changed})
    refusal(path)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 2000},
        {"num_layers": 1000},
        {"conv_channels": 4000},
        {"phoneme_layer": 2, "reader_layers": 1, "reader_size": 20_000},
    ],
)
def test_a_configuration_larger_than_its_weights_takes_no_memory(path: Path, sizes: dict[str, int]) -> None:
    weights, metadata = read_parts(path)
    save_file(weights, path, {**metadata, "config": encoder_config(**sizes)})
    assert "too few" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_are_no_numbers_in_half_precision_are_not_written(
    make_model: Callable[..., CTCModel], tmp_path: Path, value: float
) -> None:
    model = make_model()
    torch.nn.init.constant_(model.head.bias, value)
    with pytest.raises(AsrError, match=r"not written: the weights are not finite numbers; where .* lower its learning"):
        save_model(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(path: Path, value: float) -> None:
    weights, metadata = read_parts(path)
    weights["head.bias"][0] = value
    save_file(weights, path, metadata)
    assert "not finite" in refusal(path)


def test_weights_of_a_type_that_cannot_be_computed_with_are_refused(path: Path) -> None:
    header = json.dumps({"head.bias": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert "damaged" in refusal(path)


def test_who_names_a_checkpoint_is_told_of_the_model_file(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert refusal(tmp_path / "last.ckpt").endswith("; of a run take model.safetensors")


@pytest.mark.parametrize("missing", ["config", "vocabulary"])
def test_missing_metadata_is_refused(path: Path, missing: str) -> None:
    weights, metadata = read_parts(path)
    save_file(weights, path, {key: value for key, value in metadata.items() if key != missing})
    assert missing in refusal(path)


@pytest.mark.parametrize("change", ["other configuration", "other vocabulary", "missing weight", "spare weight"])
def test_weights_that_do_not_fit_are_refused(path: Path, change: str) -> None:
    weights, metadata = read_parts(path)
    if change == "other configuration":
        metadata["config"] = encoder_config(hidden_size=25)
    elif change == "other vocabulary":
        metadata["vocabulary"] = json.dumps(CharacterVocabulary("AB").to_dict())
    elif change == "missing weight":
        del weights["head.bias"]
    else:
        weights["head.spare"] = torch.zeros(1)
    save_file(weights, path, metadata)
    assert "do not fit" in refusal(path)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt", "model.safetensors"])
def test_no_code_from_a_file_runs(tmp_path: Path, name: str) -> None:
    trap = Trap(tmp_path / "sprung")
    for write in (lambda: torch.save(trap, tmp_path / name), lambda: (tmp_path / name).write_bytes(pickle.dumps(trap))):
        write()
        refusal(tmp_path / name)
        assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # the trap works


def test_a_kill_before_the_new_file_is_renamed_leaves_the_old_one(
    path: Path, make_model: Callable[..., CTCModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_model(make_model(seed=1), path)
    assert path.read_bytes() == before
    load_model(path)
    save_model(make_model(seed=1), path)
    assert path.read_bytes() != before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_new_token_begins_as_improbable_as_the_rarest_old_one(make_model: Callable[..., CTCModel]) -> None:
    model = make_model()
    changed = with_vocabulary(model, CharacterVocabulary(" ABCDEFGHIJKLMNOPQRSTUVWXYZÄ"))
    assert changed.head.bias[-1] == model.head.bias.min()
