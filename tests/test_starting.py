"""What a training starts from, and what is refused before its first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from short_trainings import make_config, sample_lines, write_lines

import asr.training
from asr.config import TrainerConfig
from asr.devices import choose_accelerator, choose_precision
from asr.errors import AsrError
from asr.finetuning import finetune
from asr.initial import make_model
from asr.locks import locked
from asr.modelfile import load_model, save_model
from asr.resuming import find_resume_point
from asr.training import prepare_training, train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_new_run_does_not_overwrite_another(finished_run: Path) -> None:
    with pytest.raises(AsrError, match=r"holds a run; continue it with --resume, or set another output_dir="):
        train(make_config(finished_run))


def test_a_new_run_does_not_overwrite_a_model_file_whose_checkpoints_were_deleted(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"a week of training")
    with pytest.raises(AsrError, match=r"model\.safetensors: is there already and would be replaced; set another"):
        find_resume_point(make_config(tmp_path), resume=False)


@pytest.mark.parametrize("place", ["file", "file/run", "a::b"])
@pytest.mark.parametrize("resume", [False, True])
def test_an_output_folder_that_cannot_be_made_is_told_at_once(tmp_path: Path, place: str, resume: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AsrError, match=r"cannot be written; choose another folder|must not hold ::, which Lightning"):
        find_resume_point(make_config(tmp_path / place), resume)


@pytest.mark.parametrize("name", ["data:a", "./data:a/run"])
def test_an_output_folder_that_lightning_takes_for_an_address_is_told_at_once(name: str) -> None:
    with pytest.raises(AsrError, match=f"output_dir={name} must not begin with data:"):
        find_resume_point(replace(make_config(Path()), output_dir=name), resume=False)


@pytest.mark.parametrize("setting", ["output_dir", "data.train", "initial_model"])
def test_a_name_that_is_no_text_is_told_before_the_first_step(tmp_path: Path, setting: str) -> None:
    config, name = make_config(tmp_path / "run"), f"{tmp_path}/caf\udce9"  # as Python writes a byte of Latin-1
    if setting == "data.train":
        config = replace(config, data=replace(config.data, train=[name]))
    else:
        config = replace(config, **{setting: name})
    with pytest.raises(AsrError, match=r"caf\\udce9': must be written in UTF-8"):
        find_resume_point(config, resume=False)


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"last\.ckpt not found: there is nothing to resume; start without --resume"):
        train(make_config(tmp_path), resume=True)


@pytest.mark.parametrize("launcher", ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"])
def test_a_launchers_resume_begins_where_there_is_nothing_yet_and_leaves_another_run_alone(
    launcher: str, tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(launcher, "1")
    assert find_resume_point(make_config(tmp_path / "new"), resume=True) is None
    assert find_resume_point(make_config(finished_run), resume=True) == finished_run / "last.ckpt"
    with pytest.raises(AsrError, match="holds a run"):
        find_resume_point(make_config(finished_run), resume=False)


def test_a_folder_that_another_process_trains_in_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asr.training, "LOCK_SECONDS", 0.1)
    with locked(tmp_path / ".lock"), pytest.raises(AsrError, match="another process is writing there"):
        train(make_config(tmp_path))
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("missing", ["data.train=[]", "data.valid=[]"])
def test_a_recipe_without_data_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(AsrError, match=r"data\.train and data\.valid must each name a manifest"):
        train(make_config(tmp_path, missing))


@pytest.mark.parametrize("role", ["train", "valid"])
def test_a_missing_recording_is_told_before_the_first_step(tmp_path: Path, role: str) -> None:
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"audio": "none.flac", "text": "HELLO", "duration": 2.0}\n', encoding="utf-8")
    with pytest.raises(AsrError, match=r"(?s)audio files are missing.*bad\.jsonl:1.*none\.flac"):
        train(make_config(tmp_path / "run", f"data.{role}=[{manifest}]"))
    assert not (tmp_path / "run").exists()


def test_data_of_which_nothing_is_left_is_told_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(AsrError, match=r"(?s)no utterance is left.*left out, too long: 6"):
        train(make_config(tmp_path / "run", "data.max_seconds=1"))
    assert not (tmp_path / "run").exists()


def test_what_the_fastest_speed_leaves_no_steps_for_is_not_trained_on(tmp_path: Path) -> None:
    tight, other, *_ = sample_lines()
    manifest = write_lines([tight | {"text": "ABABABABAB", "duration": 0.39}, other], tmp_path / "m.jsonl")
    _, corpus, _ = prepare_training(make_config(tmp_path, f"data.train=[{manifest}]"))
    assert list(corpus.findings) == ["left out, too few steps for CTC"]


def test_a_run_can_start_from_a_model_file(tmp_path: Path, finished_run: Path) -> None:
    start = finished_run / "model.safetensors"
    slow = ["optimizer.learning_rate=1e-12", "trainer.epochs=1", "trainer.average_decay=0"]
    path = train(make_config(tmp_path / "run", f"initial_model={start}", *slow))
    for name, weights in load_model(path).state_dict().items():
        torch.testing.assert_close(weights, load_model(start).state_dict()[name], rtol=0, atol=1e-6)


def test_a_run_can_start_from_a_model_of_another_dropout(tmp_path: Path, finished_run: Path) -> None:
    overrides = [f"initial_model={finished_run / 'model.safetensors'}", "model.encoder.dropout=0.35"]
    model = make_model(make_config(tmp_path, *overrides), [])
    assert model.encoder.layers[0].dropout.p == model.encoder.dropout.p == 0.35
    for name, weights in load_model(finished_run / "model.safetensors").state_dict().items():
        assert torch.equal(model.state_dict()[name], weights)


def test_a_run_cannot_start_from_a_model_of_another_shape(tmp_path: Path, finished_run: Path) -> None:
    start = finished_run / "model.safetensors"
    reason = r"model\.safetensors was made with another model or vocabulary section: model\.encoder\.hidden_size=16;"
    with pytest.raises(AsrError, match=reason):
        train(make_config(tmp_path / "run", f"initial_model={start}", "model.encoder.hidden_size=12"))


@pytest.fixture
def forty_pieces(tmp_path: Path) -> list[str]:
    """Settings that begin with a model of so many."""
    texts = [line["text"] for line in sample_lines()]
    pieces = make_model(make_config(tmp_path, "vocabulary.kind=sentencepiece", "vocabulary.size=40"), texts)
    assert len(pieces.vocabulary) == 40
    save_model(pieces, tmp_path / "pieces.safetensors")
    return [f"initial_model={tmp_path}/pieces.safetensors"]


@pytest.mark.parametrize(
    ("vocabulary", "others"),
    [
        ([], "vocabulary.kind=sentencepiece"),
        (["vocabulary.size=39"], "vocabulary.kind=sentencepiece, vocabulary.size=40"),
        (["vocabulary.kind=sentencepiece", "vocabulary.size=39"], "vocabulary.size=40"),
    ],
)
def test_a_model_of_other_tokens_is_told_by_what_is_not_as_in_the_recipe(
    forty_pieces: list[str], tmp_path: Path, vocabulary: list[str], others: str
) -> None:
    with pytest.raises(AsrError, match=f"or vocabulary section: {others}; set the same"):
        make_model(make_config(tmp_path, *forty_pieces, *vocabulary), [])


def test_a_model_may_have_fewer_pieces_than_the_recipe_allows(forty_pieces: list[str], tmp_path: Path) -> None:
    model = make_model(make_config(tmp_path, *forty_pieces, "vocabulary.kind=sentencepiece"), [])
    assert len(model.vocabulary) == 40


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("gpu", True, "cuda")],
)
def test_the_gpu_of_a_mac_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, has_gpu: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_accelerator(TrainerConfig(accelerator=accelerator)) == chosen


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AsrError, match=r"^trainer\.accelerator=gpu: no CUDA GPU is available here; use"):
        choose_accelerator(TrainerConfig(accelerator="gpu"))


def test_what_the_machine_lacks_is_told_before_the_data_are_read(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", "trainer.precision=16-mixed", "data.train=[not-read.jsonl]")
    for start in (train, finetune):
        with pytest.raises(AsrError, match=r"^trainer\.precision=16-mixed"):
            start(config)
    assert not any(tmp_path.iterdir())


def test_a_gpu_is_not_asked_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AsrError, match=r"^trainer\.precision=bf16-mixed: .* use trainer\.precision=16-mixed"):
        choose_precision(TrainerConfig(precision="bf16-mixed"))
    assert choose_precision(TrainerConfig(precision="bf16-mixed", accelerator="cpu")) == "bf16-mixed"


def test_a_cpu_is_not_asked_for_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AsrError, match=r"^trainer\.precision=16-mixed: a CPU has no fp16; use .*bf16-mixed, or auto$"):
        choose_precision(TrainerConfig(precision="16-mixed"))


@pytest.mark.parametrize(
    ("settings", "has_gpu", "has_bf16", "chosen"),
    [
        ({}, True, False, "16-mixed"),
        ({}, False, True, "bf16-mixed"),
        ({}, False, False, "32-true"),
        ({"accelerator": "cpu"}, True, False, "32-true"),
        ({"precision": "32-true"}, True, True, "32-true"),
    ],
)
def test_the_precision_is_half_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], has_gpu: bool, has_bf16: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    assert choose_precision(TrainerConfig(**settings)) == chosen
