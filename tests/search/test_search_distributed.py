"""Data-parallel search: two processes find what one finds."""

import json
import os
import subprocess
import sys

import torch
from tiny_search import make_hybrid, recall

from manticore.search.search import search

RUN = """
import json, os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_search_distributed import run

result = run(sys.argv[2])
with open(os.path.join(sys.argv[2], os.environ["RANK"] + ".json"), "w") as file:
    json.dump({"weights": result.weights.tolist(), "losses": [row["loss"] for row in result.history]}, file)
"""


def run(out):
    """Both halves of the data in turn."""
    return search(
        make_hybrid(),
        recall(),
        method="dash",
        order="bilevel",
        steps=4,
        batch_size=8,
        mixture_lr=0.2,
        cpu=True,
        out=out,
    )


def test_two_processes_search_like_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    ended = subprocess.run([*command, __file__, str(tmp_path)], env=environment, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = run(tmp_path / "alone")
    torch.testing.assert_close(torch.tensor(first["weights"]), alone.weights, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        torch.tensor(first["losses"]), torch.tensor([row["loss"] for row in alone.history]), atol=1e-4, rtol=0
    )
    # written by one process only
    lines = (tmp_path / "mixture_weights.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 2
