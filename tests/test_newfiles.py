"""New text files: whole or not there, under the name that was asked for, whatever bears it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from threading import Thread

import pytest

from asr.errors import AsrError
from asr.newfiles import _temporary_name, new_text_file


def test_what_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError), new_text_file(path) as file:
        file.writelines(["new" * 100_000, 5])  # type: ignore[list-item]
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    link, target = tmp_path / "link.txt", tmp_path / "folder" / "target.txt"
    target.parent.mkdir()
    link.symlink_to(target)
    for text in ("first", "second"):
        with new_text_file(link) as file:
            file.write(text)
        assert link.is_symlink()
        assert target.read_text(encoding="utf-8") == text


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders there")
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    with new_text_file(pipe) as file:
        file.write("what the other end reads\n")
    reader.join(timeout=30)
    assert read == ["what the other end reads\n"]
    assert pipe.is_fifo()


@pytest.mark.skipif(sys.platform == "win32", reason="its paths are counted otherwise")
def test_a_name_as_long_as_the_disk_takes_is_written_and_a_longer_one_told(tmp_path: Path) -> None:
    for letter in ("a", "é"):
        size = len(letter.encode())
        path = tmp_path / (letter * (251 // size) + ".txt")
        with new_text_file(path) as file:
            file.write("whole")
        assert path.read_text(encoding="utf-8") == "whole"
        with pytest.raises(AsrError, match="cannot be written"), new_text_file(tmp_path / f"{letter * 251}.json"):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="rights are others there")
def test_who_may_read_a_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "private.txt"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o600)
    with new_text_file(path) as file:
        file.write("new")
    assert path.read_text(encoding="utf-8") == "new"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_waits_under_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_text("of somebody else", encoding="utf-8")
    (tmp_path / _temporary_name("a.txt")).symlink_to(victim)
    with new_text_file(path) as file:
        file.write("new")
    assert victim.read_text(encoding="utf-8") == "of somebody else"
    assert path.read_text(encoding="utf-8") == "new"
    assert not path.is_symlink()
