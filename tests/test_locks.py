"""Locks: one process at a time, and none where the disk has none."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from asr.errors import AsrError
from asr.locks import locked


def test_a_second_one_waits_or_is_told(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "lock"):
            second = locked(tmp_path / "lock", wait_seconds=0)
            with pytest.raises(AsrError, match="another process is writing there; wait for it"):
                second.__enter__()


def test_a_disk_that_cannot_lock_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    done = []
    with locked(tmp_path / "lock"):
        done.append(1)
    assert done == [1]
