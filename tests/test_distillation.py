"""Learning from teachers: what they say, what it does to the loss and to a run, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_trainings import assert_same_run, last_value, make_config, make_module, read_checkpoint, stop_and_resume
from torch import Tensor

from asr.config import DistillationConfig
from asr.data import Batch
from asr.distillation import Teachers, divergence
from asr.errors import AsrError
from asr.model import CTCModel
from asr.modelfile import load_model, save_model
from asr.splitting import MemoryLimit
from asr.text import CharacterVocabulary
from asr.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


def make_teacher(path: Path, *overrides: str, seed: int = 3) -> Path:
    """A model file of a small model with random weights."""
    torch.manual_seed(seed)
    save_model(CTCModel(make_config(path.parent, *overrides).model, CharacterVocabulary()), path)
    return path


def taught_by(path: Path, output_dir: Path, *overrides: str) -> list[str]:
    return [f"distillation.teachers=[{path}]", f"output_dir={output_dir}", "trainer.epochs=1", *overrides]


def some_features(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, 80, 16), torch.tensor([80, 50])


def test_a_model_that_says_what_its_teacher_says_has_no_divergence_and_no_gradient() -> None:
    scores = torch.randn(2, 5, 7, requires_grad=True)
    log_probs = scores.log_softmax(2)
    apart = divergence(log_probs, log_probs.detach(), torch.tensor([5, 2]))
    (gradient,) = torch.autograd.grad(apart, scores)
    assert apart == 0
    torch.testing.assert_close(gradient, torch.zeros_like(scores))


def test_what_stands_behind_an_utterance_is_not_learned() -> None:
    log_probs, target = torch.randn(2, 2, 5, 7).log_softmax(3)
    changed = target.clone()
    changed[1, 2:] = torch.randn(3, 7).log_softmax(1)
    lengths = torch.tensor([5, 2])
    assert divergence(log_probs, changed, lengths) == divergence(log_probs, target, lengths)


def test_several_teachers_say_the_normalized_geometric_mean_of_what_each_says(tmp_path: Path) -> None:
    paths = [make_teacher(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2, 3)]
    models = [load_model(path) for path in paths]
    config = DistillationConfig(teachers=[str(path) for path in paths])
    features, lengths = some_features()
    said = Teachers.load(config, models[0], MemoryLimit()).log_probs(features, lengths)
    product = torch.ones(())
    for model in models:
        product = product * model.log_probs(features, lengths)[0].exp()
    mean = product ** (1 / 3)
    torch.testing.assert_close(said.exp(), mean / mean.sum(2, keepdim=True))


def test_a_teacher_says_the_same_where_its_memory_holds_a_part_of_the_batch(tmp_path: Path) -> None:
    model, memory = load_model(make_teacher(tmp_path / "t.safetensors")), MemoryLimit()
    features, lengths = some_features()
    whole = Teachers([model], memory).log_probs(features, lengths)
    memory.most_frames = 80
    parts = Teachers([model], memory).log_probs(features, lengths)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1, :13], whole[1, :13])


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # there is no trainer
def test_a_step_weighs_its_ctc_loss_against_the_divergence_from_what_is_heard_without_masks(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "t.safetensors")
    plain = make_module(make_config(tmp_path, "model.encoder.dropout=0"))
    taught = make_module(
        make_config(tmp_path, "model.encoder.dropout=0", *taught_by(teacher, tmp_path, "distillation.weight=0.3"))
    )
    targets, target_lengths = torch.tensor([[3, 9, 4], [5, 6, 0]]), torch.tensor([3, 2])
    batch = Batch(
        torch.randn(2, 16000) * 0.1, torch.tensor([16000, 12000]), targets, target_lengths, ["", ""], ["a", "b"]
    )
    features, feature_lengths, unmasked = taught.augmented_features(batch)
    assert not torch.equal(features, unmasked)
    target, _ = load_model(teacher).log_probs(unmasked, feature_lengths)
    log_probs, lengths = taught.model.log_probs(features, feature_lengths)
    apart = divergence(log_probs, target, lengths) / 5
    loss = taught.training_step(batch, 0)
    torch.testing.assert_close(loss, 0.7 * plain.training_step(batch, 0) + 0.3 * apart)
    loss.backward()
    assert all(parameter.grad is not None for parameter in taught.parameters())


def test_a_teacher_without_weight_changes_nothing_and_is_in_no_checkpoint(tmp_path: Path, finished_run: Path) -> None:
    teacher = make_teacher(tmp_path / "t.safetensors", "model.encoder.hidden_size=24")
    before = teacher.read_bytes()
    train(make_config(tmp_path / "run", f"distillation.teachers=[{teacher}]", "distillation.weight=0"))
    assert_same_run(finished_run, tmp_path / "run")
    states = [read_checkpoint(folder / "last.ckpt")["state_dict"].keys() for folder in (finished_run, tmp_path / "run")]
    assert states[0] == states[1]
    assert teacher.read_bytes() == before


def test_a_pupil_comes_closer_to_its_teacher_than_to_the_transcripts(tmp_path: Path, finished_run: Path) -> None:
    teacher = finished_run / "model.safetensors"
    train(make_config(tmp_path / "run", f"distillation.teachers=[{teacher}]", "distillation.weight=1"))
    assert last_value(tmp_path / "run", "train/divergence") < 0.5
    assert last_value(finished_run, "train/loss") < last_value(tmp_path / "run", "train/loss")


def test_a_pupil_is_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = make_teacher(tmp_path / "t.safetensors")
    taught = [f"distillation.teachers=[{teacher}]"]
    train(make_config(tmp_path / "whole", *taught))
    stop_and_resume(monkeypatch, make_config(tmp_path / "stopped", *taught), "on_train_batch_end", 6)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped", missing_steps=[5])


@pytest.mark.parametrize(
    ("overrides", "characters", "message"),
    [
        ([], " ab", r"t\.safetensors writes with other tokens than the model that is trained$"),
        (["model.frontend.num_mels=20"], "", r"t\.safetensors hears with another frontend: .*num_mels=20"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    tmp_path: Path, overrides: list[str], characters: str, message: str
) -> None:
    vocabulary = CharacterVocabulary(characters) if characters else CharacterVocabulary()
    save_model(CTCModel(make_config(tmp_path, *overrides).model, vocabulary), tmp_path / "t.safetensors")
    with pytest.raises(AsrError, match=rf"^distillation\.teachers: .*{message}"):
        train(make_config(tmp_path / "run", *taught_by(tmp_path / "t.safetensors", tmp_path / "run")))
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_teacher_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"nobody\.safetensors: model file not found$"):
        train(make_config(tmp_path / "run", *taught_by(tmp_path / "nobody.safetensors", tmp_path / "run")))


@pytest.mark.parametrize("override", ["distillation.weight=1.5", "distillation.weight=-1", "distillation.teachers=t"])
def test_settings_out_of_their_range_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(AsrError, match=r"distillation\..* must be"):
        make_config(tmp_path, override)
