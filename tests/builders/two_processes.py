"""Runs a test module's ``work`` in two processes that a launcher has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from manticore.schema.loading import launch_configurations

_SCRIPT = """
import importlib, json, os, sys
module, folder = sys.argv[1:]
sys.path.insert(0, os.path.dirname(module))
outcome = importlib.import_module(os.path.basename(module).removesuffix(".py")).work(folder)
with open(os.path.join(folder, "outcome-" + os.environ["RANK"] + ".json"), "w") as file:
    json.dump(outcome, file)
"""


def run_by_two(module: str, folder: Path, configuration: str | None = None, **environment: str) -> list[Any]:
    """What ``work(folder)`` of a test module returns in each of two processes, as JSON keeps it.

    torchrun starts them, or accelerate launch with the shipped configuration of that name.
    """
    script = folder / "run.py"
    script.write_text(_SCRIPT)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment}
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    if configuration is not None:
        file = str(launch_configurations()[configuration])
        launcher = ["accelerate.commands.launch", "--main_process_port", "0", "--config_file", file]
    command = [sys.executable, "-m", *launcher, str(script)]
    ended = subprocess.run([*command, module, str(folder)], env=variables, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    return [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in (0, 1)]
