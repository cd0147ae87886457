"""What each of several processes says when something goes wrong."""

from __future__ import annotations

import pytest

from manticore.cli import faults
from manticore.errors import ManticoreError


@pytest.fixture(autouse=True)
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This process is the second of two; the seconds that it waited."""
    waited: list[float] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(faults.time, "sleep", waited.append)
    return waited


def ended_by(error: BaseException) -> int:
    with pytest.raises(SystemExit) as end, faults.reported():
        raise error
    return int(str(end.value.code))


def test_an_error_that_only_another_process_knows_of_is_said_with_its_number(
    second_of_two: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_by(ManticoreError("search: no room. Fix: make some")) == 2
    assert capsys.readouterr().err == "error (process 1): search: no room. Fix: make some\n"
    # the first process had the time to say it, and the launcher to end this one
    assert sum(second_of_two) > 0


def test_the_loss_of_another_process_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:9")) == 2
    assert capsys.readouterr().err.startswith("error (process 1): processes: another process of this run has ended.")


def test_ctrl_c_is_left_to_the_launcher_to_tell(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended_by(KeyboardInterrupt()) == 130
    assert ended_by(faults.Terminated()) == 143
    assert capsys.readouterr().err == ""
