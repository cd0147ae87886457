"""How long do verbs take to begin? CPU seconds of each, its imports beside the rest, and beside an earlier revision's.

    python benchmarks/startup.py                                     # about four minutes of CPU time
    python benchmarks/startup.py --before CHECKOUT --revision NAME   # twice as much: both in turn

Every figure is the least of some rounds, of processes of one thread. Imports: a second process that imports what the
verb has imported, and nothing else. The rest is the verb's work, the reading of weights (538 MB of a Llama of
SmolLM2-135M's shape, with random weights) and the garbage collections while it imports. A verb that reads no model
has a bar of .6 s, a plan one of 5 s, and the rest of each verb one of 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import RESULTS, write_json
from resident import make_parents
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "import manticore"
BASE = "from transformers import PreTrainedModel"
"""What no verb on models can do without."""
VERBS = {
    "--help": "",
    "fetch --help": "",
    "design --help": "",
    "check quickstart": "",
    "doctor": "",
    "plan quickstart": "",
    "plan llama llama": "",
    "combine llama llama": "-o OUT",
    "evaluate llama": "--task text --task-option length=64 --task-option max_bytes=40000 --max-examples 1",
}
"""Verb as the table calls it → the rest of its words."""
RUN = """
import atexit, json, sys
noted = sys.argv.pop(1)
atexit.register(lambda: open(noted, "w").write(json.dumps(list(sys.modules))))
from manticore.cli import main
main()
"""
IMPORT = """
import gc, importlib, json, sys
gc.disable()
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except Exception:
        # names that libraries put among the modules without a file
        pass
"""


def cpu_seconds(code: str, words: list[str], folder: Path, checkout: Path) -> float:
    """User and system time of a fresh process.

    Args:
        code: what it runs, as ``python -c`` does.
        words: its arguments.
        folder: where it works.
        checkout: whose package it imports.

    Raises:
        CalledProcessError: it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one_round(folder: Path, checkout: Path) -> dict[str, dict[str, float]]:
    """Row → CPU seconds in all and of imports."""
    rows = {
        name: dict.fromkeys(("all", "imports"), cpu_seconds(name, [], folder, checkout)) for name in (PACKAGE, BASE)
    }
    with tempfile.TemporaryDirectory() as scratch:
        noted = Path(scratch) / "modules.json"
        for verb, more in VERBS.items():
            words = f"{verb} {more.replace('OUT', str(Path(scratch) / 'hybrid'))}".split()
            seconds = cpu_seconds(RUN, [str(noted), *words], folder, checkout)
            rows[verb] = {"all": seconds, "imports": cpu_seconds(IMPORT, [str(noted)], folder, checkout)}
    return rows


def least(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each figure."""
    return {
        row: {kind: round(min(each[row][kind] for each in rounds), 2) for kind in ("all", "imports")}
        for row in rounds[0]
    }


def show(figures: dict[str, Any]) -> None:
    """The table."""
    table = Table("CPU seconds", "revision", "imports", "the rest", "all", title="Start of each verb")
    for row in figures["now"]["rows"]:
        for when in ("before", "now"):
            if when in figures:
                seconds = figures[when]["rows"][row]
                rest = max(0.0, seconds["all"] - seconds["imports"])
                shown = (seconds["imports"], rest, seconds["all"])
                table.add_row(row, figures[when]["revision"], *(f"{value:.2f}" for value in shown))
    Console(width=110).print(table)


def main() -> None:
    """Measure, print and write the JSON after every round; what was measured of an earlier revision stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier revision")
    parser.add_argument("--revision", help="its name")
    arguments = parser.parse_args()
    stored = RESULTS / "startup.json"
    kept = json.loads(stored.read_text()) if stored.exists() else {}
    checkouts = {"now": ("this", ROOT)}
    if arguments.before is not None:
        checkouts = {"before": (arguments.revision, arguments.before.resolve()), **checkouts}
    measured: dict[str, list[dict[str, dict[str, float]]]] = {when: [] for when in checkouts}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_parents(folder)
        for _ in range(arguments.rounds):
            for when, (_, checkout) in checkouts.items():
                measured[when].append(one_round(folder, checkout))
            figures = {"before": kept["before"]} if "before" in kept else {}
            for when, (revision, _) in checkouts.items():
                rounds = measured[when]
                figures[when] = {"revision": revision, "rounds": len(rounds), "rows": least(rounds)}
            show(figures)
            print(f"written to {write_json('startup', figures)}", flush=True)


if __name__ == "__main__":
    main()
