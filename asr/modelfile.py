"""The model file: one .safetensors with weights, configuration, vocabulary, pronunciations and a format number.

Reading it runs no code from the file.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from asr.config import ModelConfig, model_config_from_dict
from asr.errors import AsrError
from asr.model import CTCModel
from asr.newfiles import new_file
from asr.pronunciation import pronunciations_from_dict
from asr.quantization import dequantize, quantize
from asr.threads import compute_alone_in_forks
from asr.vocabulary import vocabulary_from_dict

__all__ = ["FORMAT_NUMBER", "PACKAGED_MODEL", "load_model", "read_weights", "save_model", "write_weights"]

FORMAT_NUMBER = 4
"""Goes up when an older release could not read the file; 2 since models may hear phonemes, 3 since they may read, 4
since weights may have eight bits.
"""

PACKAGED = "packaged"
"""In place of a path: what comes with the package."""

PACKAGED_MODEL = Path(str(files("asr") / "models" / "base.safetensors"))
"""The model that comes with the package."""


def save_model(model: CTCModel, path: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a model file; where that fails, `path` is as it was.

    dtype: of the weights in the file; half precision halves its size, and moved no word of the valid set; torch.int8
    halves it once more, and moved next to none.
    Raises AsrError where it cannot be written.
    """
    metadata = {
        "format": str(FORMAT_NUMBER),
        "config": json.dumps(dataclasses.asdict(model.config)),
        "vocabulary": json.dumps(model.vocabulary.to_dict()),
    }
    if model.pronunciations is not None:
        metadata["pronunciations"] = json.dumps(model.pronunciations.to_dict())
        metadata["phonemes_by_mmi"] = json.dumps(model.phonemes_by_mmi)
    write_weights(model, metadata, path, dtype)


def write_weights(module: nn.Module, metadata: dict[str, str], path: str | Path, dtype: torch.dtype) -> None:
    """A .safetensors file; where that fails, `path` is as it was, and AsrError is raised, as for infinite weights."""
    weights = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    if dtype == torch.int8:
        weights = quantize(weights)
    else:
        weights = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        reason = "the weights are not finite numbers; where a training diverged, lower its learning_rate"
        raise AsrError(f"{path}: not written: {reason}")
    content = save(weights, metadata)
    with new_file(Path(path)) as file:
        file.write(content)  # safetensors' own save_file hides the file from other users


def read_weights(path: Path, kind: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata of a .safetensors file and its weights, in float32; kind: what errors call it.

    Raises AsrError for a file that is missing or damaged, and for weights that are not finite.
    """
    if not path.is_file():
        inside = f"; it is a folder, take {path / 'model.safetensors'}" if path.is_dir() else ""
        raise AsrError(f"{path}: {kind} not found{inside}")
    compute_alone_in_forks()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = dequantize({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - it is no dict
    # A RuntimeError is of numbers that torch cannot convert.
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        hint = "; of a run take model.safetensors" if path.suffix == ".ckpt" else ""
        raise AsrError(f"{path}: the {kind} is damaged or not a {kind}: {error}{hint}") from error
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise AsrError(f"{path}: the {kind} holds weights that are not finite numbers; take another one")
    return metadata, weights


def load_model(path: str | Path | None = None, device: str | torch.device = "cpu") -> CTCModel:
    """The model of a model file in evaluation mode, on `device`, in float32.

    path: None and `packaged` are the model in the package.
    Raises AsrError for a file that is missing, damaged, of a newer format or not a model, and for a device that is not
    there.
    """
    path = PACKAGED_MODEL if path is None or str(path) == PACKAGED else Path(path)
    metadata, weights = read_weights(path, "model file")
    model = _build(path, metadata, sum(weight.numel() for weight in weights.values()))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise AsrError(f"{path}: the weights do not fit the model file's own configuration") from error
    try:
        return model.eval().to(device, torch.float32)  # torch's default type may be another
    except (AssertionError, RuntimeError) as error:  # an AssertionError is of a torch that was built for the CPU alone
        reason = str(error).partition("\n")[0].rstrip(".")
        raise AsrError(f"device={str(device)!r} cannot be used here ({reason}); use device='cpu'") from error


def _build(path: Path, metadata: dict[str, str], num_weights: int) -> CTCModel:
    """The model that the metadata describes, its weights, of which the file has so many, not yet loaded."""
    number = metadata.get("format", "")
    if not number.isdecimal() or len(number) > 9:
        raise AsrError(f"{path}: not a model file of bigru-asr (it has no format number)")
    if int(number) > FORMAT_NUMBER:
        raise AsrError(
            f"{path}: has model format {number}, this release reads up to {FORMAT_NUMBER}; upgrade bigru-asr"
        )
    try:
        config = model_config_from_dict(json.loads(metadata["config"]))
        if _least_weights(config) > num_weights:  # else a file of a kilobyte could fill the memory
            raise AsrError("the weights do not fit it: there are too few")
        words = json.loads(metadata.get("pronunciations", "null"))
        pronunciations = None if words is None else pronunciations_from_dict(words)
        vocabulary = vocabulary_from_dict(json.loads(metadata["vocabulary"]))
        by_mmi = json.loads(metadata.get("phonemes_by_mmi", "false")) is True
        return CTCModel(config, vocabulary, pronunciations, phonemes_by_mmi=by_mmi)
    except (AsrError, KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise AsrError(f"{path}: the model file's configuration is damaged: {error}") from error


def _least_weights(config: ModelConfig) -> float:
    """Fewer than a model of this configuration has, whatever its cell; it has at most some dozens of times as many."""
    encoder, num_mels = config.encoder, config.frontend.num_mels
    convolutions = encoder.conv_channels**2 + encoder.conv_channels * num_mels * encoder.hidden_size / 4
    reader = encoder.reader_layers * encoder.reader_size**2
    return convolutions + encoder.num_layers * encoder.hidden_size**2 + reader
