"""`asr plot`: the curves of trainings as a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from asr.cli import main
from asr.errors import AsrError
from asr.plotting import read_curves


def write_run(folder: Path, losses: dict[int, float], age: float = 0.0) -> None:
    before = set(folder.rglob("events.*"))
    with SummaryWriter(str(folder / "tensorboard" / str(len(before)))) as writer:
        for step, loss in losses.items():
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("valid/wer", loss / 3, step)
            writer.add_scalar("lr", 1e-3, step)
    for path in set(folder.rglob("events.*")) - before:
        os.utime(path, (1e9 - age, 1e9 - age))


def test_what_a_resumed_run_did_again_counts(tmp_path: Path) -> None:
    write_run(tmp_path, {1: 3.0, 2: 2.0, 3: 1.5}, age=100)
    write_run(tmp_path, {3: 1.0, 4: 0.5}, age=50)
    steps, values = read_curves(tmp_path)["train/loss"]
    assert steps.tolist() == [1, 2, 3, 4]
    assert values.tolist() == [3.0, 2.0, 1.0, 0.5]


def test_two_runs_make_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, {step: 3.0 / step for step in range(1, 300)})
    assert main(["plot", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    path = tmp_path / "one" / "curves.png"
    assert capsys.readouterr().out == f"{path}\n"
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 500
    assert picture.std() > 0.05, "it is not blank"


def test_a_folder_of_several_trainings_names_them_and_draws_no_one_curve(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name, {1: 3.0, 2: 2.0})
    with pytest.raises(AsrError, match=rf"other trainings; name those .*\({tmp_path}/one, {tmp_path}/two\)"):
        read_curves(tmp_path)


def test_a_folder_without_curves_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", str(tmp_path)]) == 1
    assert "no training has written its curves there" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, {1: 1.0})
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "missing" / "curves.png")]) == 1
    assert "the picture cannot be written" in capsys.readouterr().err


def test_a_picture_has_an_ending_and_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "runs" / "a"
    write_run(run, {1: 1.0})
    assert main(["plot", str(run), "-o", str(tmp_path / "runs")]) == 1
    assert "runs: is a folder; name a file in it" in capsys.readouterr().err
    assert main(["plot", str(run), "-o", str(tmp_path / "both")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/both.png\n"
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "both.png"}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["_old", r"a$\no$b"])
def test_a_run_of_any_name_is_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inside: bool
) -> None:
    drawn: list[str] = []
    save = Figure.savefig

    def look(figure: Figure, *arguments: Any, **settings: Any) -> None:
        drawn.extend(text.get_text() for axes in figure.axes if axes.lines for text in axes.get_legend().get_texts())
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", look)
    write_run(tmp_path / name, {1: 3.0, 2: 2.0})
    monkeypatch.chdir(tmp_path / name if inside else tmp_path)
    assert main(["plot", "." if inside else name, "-o", str(tmp_path / "curves.png")]) == 0
    assert f"train/loss {name}" in [text.replace(r"\$", "$") for text in drawn]
