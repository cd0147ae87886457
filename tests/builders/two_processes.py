"""Runs a test module's ``work`` in two processes that share each batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from forked import Script
from once import once

from manticore.schema.loading import launch_configurations

_SCRIPT = """
import importlib, json, os, sys
module, folder = sys.argv[1:]
sys.path.insert(0, os.path.dirname(module))
outcome = importlib.import_module(os.path.basename(module).removesuffix(".py")).work(folder)
with open(os.path.join(folder, "outcome-" + os.environ["RANK"] + ".json"), "w") as file:
    json.dump(outcome, file)
"""


def run_by_two(
    tmp_path_factory: pytest.TempPathFactory, module: str, configuration: str | None = None, **environment: str
) -> tuple[Path, list[Any]]:
    """A folder, and what ``work(folder)`` of a test module returns in each of two processes, as JSON keeps it.

    accelerate launch starts them with the shipped configuration of that name; without one they are forked, and are
    told what torchrun tells.
    """

    def start(folder: Path) -> None:
        if configuration is None:
            _fork_two(module, folder, environment)
        else:
            _launch_two(module, folder, configuration, environment)

    folder = once(tmp_path_factory, f"two {Path(module).stem}", start)
    return folder, [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in (0, 1)]


def _fork_two(module: str, folder: Path, environment: Mapping[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        Script(
            _SCRIPT, module, str(folder), said=folder / f"said-{rank}.txt",
            **told, RANK=str(rank), LOCAL_RANK=str(rank), **environment,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    ended = [script.end() for script in both]
    assert [code for code, _ in ended] == [0, 0], ended


def _launch_two(module: str, folder: Path, configuration: str, environment: Mapping[str, str]) -> None:
    script = folder / "run.py"
    script.write_text(_SCRIPT)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment}
    file = str(launch_configurations()[configuration])
    launcher = ["accelerate.commands.launch", "--main_process_port", "0", "--config_file", file]
    command = [sys.executable, "-m", *launcher, str(script), module, str(folder)]
    ended = subprocess.run(command, env=variables, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
