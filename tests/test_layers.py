"""The map in asr/__init__.py is true, and importing costs and changes nothing that was not asked for."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import asr
from asr.model import CTCModel
from asr.modelfile import save_model

PACKAGE = Path(asr.__file__).parent


def listed_modules() -> list[str]:
    """Modules in the order of asr/__init__.py, such as `text` and `corpora.download`; a folder's own name is last."""
    modules: list[str] = []
    folder: str | None = None
    for line in (asr.__doc__ or "").splitlines():
        if entry := re.match(r"    (\w+) {2,}\S", line):
            modules.extend([folder] if folder else [])
            is_folder = (PACKAGE / entry[1]).is_dir()
            folder = entry[1] if is_folder else None
            modules.extend([] if is_folder else [entry[1]])
        elif folder and re.match(r" {8}\w", line):
            modules.extend(f"{folder}.{name}" for name in re.findall(r"\w+", line))
    return [*modules, folder] if folder else modules


def path_of(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imported_modules(node: ast.AST, modules: set[str]) -> set[str]:
    """Those of `modules` that a file imports anywhere, what is for type checkers only left out."""
    if isinstance(node, ast.If) and is_type_checking(node.test):
        return set().union(*(imported_modules(child, modules) for child in node.orelse))
    names: set[str] = set()
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        names = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = {name.removeprefix("asr.") for name in names} & modules if names else set()
    return found.union(*(imported_modules(child, modules) for child in ast.iter_child_nodes(node)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import asr.cli", {"cli"}),
        ("from asr import cli, __version__", {"cli"}),
        ("from asr.corpora import download", {"corpora", "corpora.download"}),
        ("from asr.corpora.download import fetch", {"corpora.download"}),
        ("def late():\n    from asr.cli import main", {"cli"}),
        ("if TYPE_CHECKING:\n    from asr.cli import main\nelse:\n    from asr.data import Batch", {"data"}),
        ("import asrlike.cli, torch", set()),
    ],
)
def test_the_check_itself_finds_imports_in_every_form(source: str, expected: set[str]) -> None:
    assert imported_modules(ast.parse(source), {"cli", "data", "corpora", "corpora.download"}) == expected


def test_the_map_lists_every_file_of_the_package_once() -> None:
    files = set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
    assert sorted(path_of(module) for module in listed_modules()) == sorted(files)


@pytest.mark.parametrize("module", listed_modules())
def test_a_file_imports_only_from_files_above_it(module: str) -> None:
    order = listed_modules()
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    below = imported_modules(tree, set(order)) - set(order[: order.index(module)])
    assert below == ({"transcription"} if module == "model" else set()), "model.transcribe() is for who looks for it"


def modules_imported_by(*arguments: str) -> tuple[set[str], str]:
    """Top-level modules that a `python` command imports, and its standard output."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    names = re.findall(r"^import time:.*\|\s+(\S+)$", done.stderr, re.MULTILINE)
    return {name.split(".")[0] for name in names}, done.stdout


@pytest.mark.parametrize("arguments", [("-c", "import asr"), ("-m", "asr", "--help"), ("-m", "asr", "--version")])
def test_what_needs_no_model_imports_no_torch(arguments: tuple[str, ...]) -> None:
    modules, _ = modules_imported_by(*arguments)
    assert "asr" in modules
    assert not modules & {"torch", "torchaudio", "numpy", "soundfile", "omegaconf"}


def test_transcribing_imports_nothing_that_only_training_needs(
    model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    save_model(model, tmp_path / "tiny.safetensors")
    modules, output = modules_imported_by(
        "-m", "asr", "transcribe", "--model", str(tmp_path / "tiny.safetensors"), str(sample_paths[1])
    )
    assert output.strip()
    assert {"torch", "soundfile"} <= modules
    needless = {"pytorch_lightning", "lightning", "lhotse", "librosa", "numba", "tensorboard", "omegaconf", "jiwer"}
    assert not modules & {*needless, "pytest"}


# What the libraries do at their own import is not ours, so they come first.
GLOBAL_STATE = """
import importlib, json, logging, os, random, signal, sys, warnings
import jiwer, numpy, omegaconf, pytorch_lightning, soundfile, torch, torchaudio, tqdm
import pytorch_lightning.callbacks, pytorch_lightning.loggers, safetensors.torch

def state():
    return {
        "root handlers": repr(logging.root.handlers),
        "root level": logging.root.level,
        "torch draws": torch.get_rng_state().tolist(),
        "numpy draws": repr(numpy.random.get_state()),
        "python draws": hash(random.getstate()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "dtype": str(torch.get_default_dtype()),
        "gradient": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": [torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "warnings": repr(warnings.filters),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "path": sys.path[:],
        "standard streams": [id(sys.stdout), id(sys.stderr), id(sys.excepthook)],
    }

before = state()
for name in sys.argv[1:]:
    importlib.import_module(f"asr.{name}")
after = state()
print(json.dumps([key for key in before if before[key] != after[key]]))
"""


def test_a_program_sees_the_types_and_the_names_of_the_package() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert set(asr.__all__) <= set(dir(asr))


def test_importing_every_file_changes_no_global_state_and_prints_nothing() -> None:
    command = [sys.executable, "-c", GLOBAL_STATE, *listed_modules()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []


def test_the_model_factory_of_these_tests_leaves_the_seed_alone(make_model: Callable[..., CTCModel]) -> None:
    import torch

    before = torch.get_rng_state()
    make_model(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
