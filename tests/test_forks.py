"""Copies of the process compute what the process itself would, and are gone when it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asr.errors import AsrError
from asr.forks import Forks

ROOT = Path(__file__).parents[1]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("processes", [1, 3])
def test_results_come_in_the_order_of_their_arguments(processes: int) -> None:
    forks = Forks(lambda seconds: (time.sleep(seconds), seconds)[1], processes)
    assert list(forks.map([0.2, 0.0, 0.1, 0.0])) == [0.2, 0.0, 0.1, 0.0]
    assert list(forks.map([])) == []


def two_copies() -> Forks[int, int]:
    """Each answers with its number, once both were asked."""
    barrier = multiprocessing.get_context("fork").Barrier(2)
    return Forks(lambda _: (barrier.wait(300), os.getpid())[1], 2)


@linux_only
def test_many_are_computed_in_other_processes_and_one_is_computed_here() -> None:
    forks = two_copies()
    assert len({os.getpid(), *forks.map(range(2))}) == 3
    assert list(Forks(lambda _: os.getpid(), 2).map([0])) == [os.getpid()]


@linux_only
def test_a_copy_that_a_program_makes_itself_computes_all_where_it_is() -> None:
    forks = Forks(lambda number: number + 1, 2)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    copy = context.Process(target=lambda: sender.send([*forks.map(range(3))]))
    copy.start()
    try:
        assert receiver.poll(60)
        assert receiver.recv() == [1, 2, 3] == [*forks.map(range(3))]
    finally:
        copy.kill()


def refuse(argument: int) -> int:
    raise AsrError(f"{argument} is refused")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_is_told_as_it_is(processes: int) -> None:
    with pytest.raises(AsrError, match=r"^5 is refused$"):
        list(Forks(refuse, processes).map([5, 6]))


@linux_only
def test_a_copy_that_is_killed_ends_the_work_with_one_sentence() -> None:
    forks = Forks(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == 3 else number, 2)
    with pytest.raises(AsrError, match="a process that computed beside this one was ended"):
        list(forks.map(range(9)))


@linux_only
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_copies_end_with_the_process_and_say_nothing(how: signal.Signals) -> None:
    program = """
import multiprocessing, os, signal, time
from asr.forks import Forks
barrier = multiprocessing.get_context("fork").Barrier(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
forks = Forks(lambda _: (barrier.wait(300), os.getpid())[1], 2)
try:
    print(*forks.map(range(2)), flush=True)
    while True:
        time.sleep(0.05)  # signal.pause() would wait for another signal where one has just come
except KeyboardInterrupt:
    pass
"""
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    copies = [int(word) for word in process.stdout.readline().split()]
    assert len(copies) == 2
    for process_id in [*copies, process.pid] if how == signal.SIGINT else [process.pid]:
        os.kill(process_id, how)  # Ctrl-C in a terminal goes to all of them
    process.wait()
    assert wait_until(lambda: not any(map(is_alive, copies)))
    assert process.stderr.read() == ""


@linux_only
def test_the_copies_end_once_nobody_can_ask_them() -> None:
    forks = two_copies()
    copies = set(forks.map(range(2)))
    del forks
    assert wait_until(lambda: not any(map(is_alive, copies)))
