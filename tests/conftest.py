"""Real speech and small models with random weights, for every test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import soundfile
import torch
from command_line import Outcome, Run
from hypothesis import settings
from torch import Tensor

from asr.audio import read_audio
from asr.cli import main
from asr.config import EncoderConfig, ModelConfig
from asr.model import CTCModel
from asr.modelfile import load_model, save_model
from asr.vocabulary import CharacterVocabulary

SAMPLES = Path(__file__).parents[1] / "samples"

# The same examples in every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("asr", deadline=None, max_examples=25, derandomize=True, database=None)
settings.load_profile("asr")

pytest.register_assert_rewrite("recordings", "short_trainings")


if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, with a thread for each and for what each starts
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", "cuda"], scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return torch.device(request.param)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Of blocks in which no file can grow beyond a hundred bytes."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def block() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return block


@pytest.fixture
def one_thread() -> None:
    """Sums in the same order each time; not given back, for no later test may need more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of three epochs of the small model; a test must not write there."""
    from short_trainings import make_config  # imports Lightning, which takes seconds and which few tests need

    from asr.training import train

    torch.set_num_threads(1)
    output_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train(make_config(output_dir)) == output_dir / "model.safetensors"
    return output_dir


@pytest.fixture(scope="session")
def sample_paths() -> list[Path]:
    """The recordings in samples/, in the order of their manifest."""
    lines = (SAMPLES / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [SAMPLES / json.loads(line)["audio"] for line in lines]


@pytest.fixture(scope="session")
def speech(sample_paths: list[Path]) -> list[Tensor]:
    """The recordings in samples/ as (samples,) at 16 kHz."""
    return [read_audio(path, 16000) for path in sample_paths]


@pytest.fixture(scope="session")
def long_path(speech: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """87 s of speech, which are computed in windows."""
    path = tmp_path_factory.mktemp("long") / "long.wav"
    soundfile.write(path, torch.cat(speech * 3).numpy(), 16000, subtype="PCM_16")
    return path


@pytest.fixture(scope="session")
def talk(speech: list[Tensor]) -> Tensor:
    """The recordings in samples/ with a second behind each, in a room that is never quite still."""
    samples = torch.cat([torch.cat([utterance, torch.zeros(16000)]) for utterance in speech])
    return samples + 1e-3 * torch.randn(len(samples), generator=torch.Generator().manual_seed(0))


def make_small_model(cell: str = "gru", dropout: float = 0.0, seed: int = 0) -> CTCModel:
    """A small model with random weights, sure enough of itself that its transcripts are not empty or one letter."""
    encoder = EncoderConfig(num_layers=2, hidden_size=24, conv_channels=4, cell=cell, dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CTCModel(ModelConfig(encoder=encoder), CharacterVocabulary())
    with torch.no_grad():
        model.head.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., CTCModel]:
    return make_small_model


@pytest.fixture(scope="session")
def model() -> CTCModel:
    """Shared, so a test must not change it, and none can leave gradients in it for another's optimizer."""
    return make_small_model().requires_grad_(False)


@pytest.fixture(scope="session")
def packaged_model() -> CTCModel:
    """Shared, so a test must not change it."""
    return load_model()


@pytest.fixture(scope="session")
def model_path(model: CTCModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the small model."""
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(model, path)
    return path


@pytest.fixture(scope="session")
def saved_model(model_path: Path) -> CTCModel:
    """The small model as its file holds it, in half precision; a test must not change it."""
    return load_model(model_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The `asr` command in this process."""

    def call(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code: int | str | None
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
