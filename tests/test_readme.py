"""What the README and the docs tell people to type is what the commands take."""

import re
import shlex
from pathlib import Path

import pytest

from asr.cli import build_parser, parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("recipes/**/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def asr_commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|", line.split(" #")[0])]
    return sorted({part for part in parts if part.startswith("asr ")})


def test_the_pages_show_every_command() -> None:
    shown = {command.split()[1] for command in asr_commands()}
    (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    assert commands is not None
    assert set(commands) == shown


@pytest.mark.parametrize("command", asr_commands())
def test_a_command_of_the_pages_is_understood(command: str) -> None:
    options = parse(shlex.split(command)[1:])
    recipe = getattr(options, "recipe", None)
    assert recipe is None or (ROOT / recipe).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    samples, rate = soundfile.read(ROOT / "samples" / "1272-128104-0000.flac")
    monkeypatch.chdir(tmp_path)
    soundfile.write("talk.mp3", samples, rate)
    (code,) = blocks(ROOT / "README.md", "python")
    printed: list[tuple[object, ...]] = []
    exec(code, {"samples": samples, "print": lambda *values: printed.append(values)})
    (text,), (word, start, confidence), (other,) = printed
    assert len(str(text).split()) > 5
    assert str(text).split()[0] == word
    assert isinstance(start, float)
    assert isinstance(confidence, float)
    assert str(other)


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "docs" / "python.md", "python"))))
def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import shutil

    import soundfile
    import torch

    from asr.audio import resample
    from asr.modelfile import PACKAGED_MODEL

    monkeypatch.chdir(tmp_path)
    samples = torch.from_numpy(soundfile.read(ROOT / "samples" / "1272-128104-0000.flac")[0])
    for name in ("talk.mp3", "talk.wav"):
        soundfile.write(name, resample(samples, 16000, 44100)[:, None].repeat(1, 2).numpy(), 44100)
    shutil.copy(PACKAGED_MODEL, "model.safetensors")
    printed: list[str] = []
    code = blocks(ROOT / "docs" / "python.md", "python")[number]
    exec(code, {"print": lambda *values: printed.append(" ".join(map(str, values)))})
    assert printed
    assert all(line.strip() for line in printed)


def test_the_readme_shows_what_the_packaged_model_writes() -> None:
    import asr

    text = asr.transcribe(ROOT / "samples" / "1272-128104-0000.flac").text
    assert text
    assert text in (ROOT / "README.md").read_text(encoding="utf-8")


def test_settings_may_stand_behind_options() -> None:
    options = parse(["train", "mini.yaml", "trainer.seed=2", "--resume", "trainer.epochs=60"])
    assert options.overrides == ["trainer.seed=2", "trainer.epochs=60"]
    with pytest.raises(SystemExit):
        parse(["train", "mini.yaml", "--resum", "trainer.epochs=60", "--nonsense"])
