"""`asr verify`: the packaged model writes here what it wrote when it was published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import asr.verification
from asr.cli import main
from asr.errors import AsrError
from asr.verification import BY_LANGUAGE_MODEL, GREEDY, PUBLISHED_TEXTS, verify


@pytest.mark.parametrize(("name", "options"), [(GREEDY, []), (BY_LANGUAGE_MODEL, ["--lm", "packaged"])])
def test_this_installation_reproduces_the_published_texts(
    name: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if options:
        pytest.importorskip("flashlight.lib.text")
    assert main(["verify", "--device", "cpu", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    published = json.loads(PUBLISHED_TEXTS.read_text(encoding="utf-8"))[name]
    assert len(published) == 6
    assert lines[:-1] == [f"{name}\tas published\t{text}" for name, text in published.items()]
    assert lines[-1].startswith("6 of 6 texts as published; WER ")


def test_another_text_is_shown_beside_the_published_one_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published = json.loads(PUBLISHED_TEXTS.read_text(encoding="utf-8"))[GREEDY]
    name = list(published)[2]
    altered = tmp_path / "texts.json"
    altered.write_text(json.dumps({GREEDY: published | {name: "ANOTHER TEXT"}}), encoding="utf-8")
    monkeypatch.setattr(asr.verification, "PUBLISHED_TEXTS", altered)
    assert main(["verify", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == [f"{name}\tpublished\tANOTHER TEXT", f"{name}\tdiffers\t{published[name]}"]
    assert lines[-1].startswith("5 of 6 texts as published; ")


@pytest.mark.parametrize("part", ["PUBLISHED_TEXTS", "SAMPLES"])
def test_a_package_with_a_part_missing_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(asr.verification, part, tmp_path / "nothing")
    with pytest.raises(AsrError, match=r"the package is not whole, install it again: .*nothing"):
        verify()
