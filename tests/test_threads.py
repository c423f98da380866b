"""The threads of a transcription: they change no text, are given back, and survive a copy of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest
import torch
from recordings import results_of

from asr.model import CTCModel
from asr.modelfile import save_model
from asr.threads import lent_threads
from asr.transcription import Recording, transcribe_recordings


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many cores this process may use, until the test is over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_cores_changes_no_text(
    packaged_model: CTCModel, sample_paths: list[Path], threads: Callable[[int], None]
) -> None:
    recordings = [Recording(path, str(path)) for path in sample_paths] * 2
    texts = []
    for number in (1, 2, 3):
        threads(number)
        texts.append([str(result) for result in results_of(packaged_model, recordings, batch_seconds=25)])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("taken", [0, 1, 3, None])
def test_the_number_of_threads_is_afterwards_as_before_even_if_results_are_left(
    model: CTCModel, sample_paths: list[Path], threads: Callable[[int], None], taken: int | None
) -> None:
    threads(3)
    results = transcribe_recordings(model, [Recording(path, str(path)) for path in sample_paths], batch_seconds=20)
    list(islice(results, taken))
    results.close()  # type: ignore[attr-defined]
    with ThreadPoolExecutor(1) as executor:
        assert (torch.get_num_threads(), executor.submit(torch.get_num_threads).result()) == (3, 3)


def test_the_number_of_threads_is_given_back_when_the_last_of_several_callers_is_done() -> None:
    before = torch.get_num_threads()
    with ExitStack() as second:
        with lent_threads() as first_number:
            torch.set_num_threads(before + 1)  # as a batch of the first caller does
            second_number = second.enter_context(lent_threads())
        assert torch.get_num_threads() == before + 1
    assert first_number == second_number == torch.get_num_threads() == before


FORK = """
import os, signal, sys, torch, asr

def text():
    return asr.transcribe(sys.argv[2], model=sys.argv[1]).text

torch.set_num_threads(4)
for _ in range(10):
    before = text()  # its threads are ending when the copy is made
    if os.fork() == 0:
        signal.alarm(100)
        os._exit(0 if text() == before else 1)
    if status := os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system copies no process")
def test_a_copy_of_a_process_that_has_transcribed_does_not_wait_for_its_threads(
    model: CTCModel, sample_paths: list[Path], tmp_path: Path
) -> None:
    save_model(model, tmp_path / "m.safetensors")
    command = [sys.executable, "-c", FORK, str(tmp_path / "m.safetensors"), str(sample_paths[0])]
    assert subprocess.run(command, timeout=300).returncode == 0


BUSY = """
import os, threading
from asr.threads import compute_alone_in_forks

def compute():
    while True:
        pass

compute_alone_in_forks()
threading.Thread(target=compute, daemon=True).start()
if os.fork() == 0:
    os._exit(3)
os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system copies no process")
def test_a_thread_that_never_rests_does_not_hold_up_a_copy_of_its_process() -> None:
    assert subprocess.run([sys.executable, "-c", BUSY], timeout=100).returncode == 3
