"""Jobs in processes: all results, own memory, errors and deaths told, nobody left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from manticore.errors import ManticoreError
from manticore.experiments.side_by_side import side_by_side, useful_workers


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_is_answered_once(workers):
    offset = torch.arange(3.0)  # reached through the closure, never pickled
    results = dict(side_by_side(lambda job: (offset.sum() + job).item(), [1, 2, 3], workers))
    assert results == {1: 4.0, 2: 5.0, 3: 6.0}


def test_no_jobs():
    assert list(side_by_side(abs, [], 2)) == []


def test_jobs_have_processes_memory_and_one_thread_of_their_own():
    seen = []

    def work(job):
        seen.append(job)
        return os.getpid(), len(seen), torch.get_num_threads()

    results = [result for _, result in side_by_side(work, [0, 1, 2], 2)]
    assert len({pid for pid, _, _ in results} | {os.getpid()}) == 4
    assert {(calls, threads) for _, calls, threads in results} == {(1, 1)}
    assert seen == []


def test_a_gradient_can_be_taken_after_the_caller_took_one():
    weight = torch.ones(64, 64, requires_grad=True)

    def work(job):
        (gradient,) = torch.autograd.grad((weight @ weight * job).sum(), weight)
        return gradient.sum().item()

    here = work(2)
    assert [result for _, result in side_by_side(work, [2, 2], 2)] == [here, here]


def test_an_error_ends_the_others(tmp_path):
    def work(job):
        if job == "bad":
            while not (tmp_path / "pid").exists():
                time.sleep(0.01)
            raise ManticoreError("work: bad job. Fix: give a good one")
        (tmp_path / "pid.tmp").write_text(str(os.getpid()))
        (tmp_path / "pid.tmp").rename(tmp_path / "pid")
        time.sleep(60)

    with pytest.raises(ManticoreError, match="bad job"):
        list(side_by_side(work, ["slow", "bad"], 2))
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_dead_process_is_an_error_that_names_its_job():
    def work(job):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ManticoreError, match=r"the process of seven died \(exit code -9"):
        list(side_by_side(work, ["seven"], 2))


CALLER = """
import os, sys, time
from manticore.experiments.side_by_side import side_by_side

def work(job):
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(60)

list(side_by_side(work, [0, 1], 2))
"""


def test_a_killed_caller_takes_its_processes_along(tmp_path):
    pids = tmp_path / "pids"
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(pids)])
    try:
        until = time.monotonic() + 60
        while not (pids.exists() and pids.read_text().count("\n") == 2):
            assert caller.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        caller.kill()
        caller.wait()
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_processes_only_where_they_help(monkeypatch):
    if sys.platform == "linux":
        assert useful_workers(3, cpu=True) == 3
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert useful_workers(3, cpu=False) == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert useful_workers(3, cpu=True) == 1
