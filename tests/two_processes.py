"""Runs a test module's ``work`` in two processes that torchrun has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SCRIPT = """
import importlib, json, os, sys
module, folder = sys.argv[1:]
sys.path.insert(0, os.path.dirname(module))
outcome = importlib.import_module(os.path.basename(module).removesuffix(".py")).work(folder)
with open(os.path.join(folder, "outcome-" + os.environ["RANK"] + ".json"), "w") as file:
    json.dump(outcome, file)
"""


def run_by_two(module: str, folder: Path, **environment: str) -> list[Any]:
    """What ``work(folder)`` of a test module returns in each of two processes, as JSON keeps it."""
    script = folder / "run.py"
    script.write_text(_SCRIPT)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    ended = subprocess.run([*command, module, str(folder)], env=variables, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    return [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in (0, 1)]
