"""Kills a run in each of its stages, over and over, and compares its bits with those of a run that nothing stopped.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--work DIR] [--out benchmarks/results/kills.json]

Every kill is a SIGKILL at a random moment of the stage; the next process resumes. Where a stage ends before it has been
killed often enough, it is put back to its beginning. Written after every stage; ``--work`` keeps the unstopped run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECIPE = """\
name: kills
pretrain:
  - {{name: gpt, family: gpt_neo, layers: 3, width: 32, {shared}}}
  - {{name: mamba, family: mamba, layers: 2, width: 24, {shared}}}
components: [{{name: gpt, source: gpt}}, {{name: mamba, source: mamba}}]
task:
  name: mad/in-context-recall
  options: {{seq_len: 16, num_train_examples: 256, num_test_examples: 32, num_validation_examples: 32}}
combine: {{num_blocks: 2}}
align: {{text: {text}, tokens: 4096, length: 32}}
search: {{method: darts, steps: 24, batch_size: 8, save_steps: 3}}
finetune: {{steps: 24, batch_size: 8, save_steps: 3}}
compare: {{seeds: [0]}}
"""
STAGES = ("pretrain", "combine", "align", "search", "discretize", "finetune", "compare")
SOON = 0.002


def work(recipe: str, place: str) -> None:
    """In a process of its own: begin the run, or go on with it."""
    os.environ["MANTICORE_CACHE"] = f"{place}/cache"
    import torch

    from manticore.cli.terminal import quiet_libraries
    from manticore.runs.folder import create_run, open_run
    from manticore.schema.loading import load_recipe
    from manticore.stages.pipeline import execute

    torch.set_num_threads(1)
    quiet_libraries()
    out = f"{place}/run"
    execute(open_run(out) if Path(out).exists() else create_run(load_recipe(recipe), out))


def start(recipe: Path, place: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["manticore.stages.pipeline", "manticore.cli.terminal"])
    process = context.Process(target=work, args=(str(recipe), str(place)))
    process.start()
    return process


def state(place: Path, stage: str) -> dict[str, Any]:
    try:
        return dict(json.loads((place / "run" / stage / "state.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def kill(process: Any, place: Path, stage: str, delay: float) -> str:
    """Kill it ``delay`` seconds after the stage has begun or gone on; what became of the stage."""
    before = (place / "run" / stage / "state.json").stat().st_mtime_ns if state(place, stage) else 0
    while process.is_alive():
        file = place / "run" / stage / "state.json"
        if file.exists() and file.stat().st_mtime_ns != before:
            break
        time.sleep(SOON)
    time.sleep(delay)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        return "failed"
    return str(state(place, stage).get("status", "not begun"))


def forget(place: Path, stages: Sequence[str]) -> None:
    """Put a run back to before some stages: a process is killed a little late, and may have begun or made them."""
    for name in (*stages, "model"):
        shutil.rmtree(place / "run" / name, ignore_errors=True)


def bits(place: Path, stage: str) -> dict[str, Any]:
    """What a finished stage has left: its results, and the bytes of its weights."""
    own = place / "run" / stage
    weights = {file.name: file.read_bytes() for file in own.glob("model/*.safetensors")}
    return {"results": numbers(state(place, stage).get("results")), "weights": weights}


def numbers(value: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items() if key not in ("seconds", "created")}
    return [numbers(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kills.json"))
    arguments = parser.parse_args()
    folder: Path = arguments.work or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.py"
    text.write_text(Path(argparse.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    shared = f"text: {text}, vocab_size: 300, length: 32, steps: 20, batch_size: 4"
    recipe.write_text(RECIPE.format(text=text, shared=shared), encoding="utf-8")
    whole, killed = folder / "whole", folder / "killed"
    if state(whole, STAGES[-1]).get("status") != "finished":
        process = start(recipe, whole)
        process.join()
        assert process.exitcode == 0, "the run that nothing stops has failed"
    draw = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    print(f"{'stage':12} kills  in it  put back  equal")
    for stage in STAGES:
        backup = folder / f"before {stage}"
        if not backup.exists():
            killed.mkdir(exist_ok=True)
            forget(killed, STAGES[STAGES.index(stage) :])
            shutil.copytree(killed, backup)
        row: dict[str, Any] = {"stage": stage, "kills": 0, "in it": 0, "put back": 0, "failed": 0}
        lasts = state(whole, stage)["seconds"]
        while row["kills"] < arguments.kills:
            found = kill(start(recipe, killed), killed, stage, draw.uniform(0, 0.9 * lasts))
            row["kills"] += 1
            row["in it"] += found == "started"
            row["failed"] += found == "failed"
            if found == "finished" and row["kills"] < arguments.kills:
                row["put back"] += 1
                shutil.rmtree(killed)
                shutil.copytree(backup, killed)
        if state(killed, stage).get("status") != "finished":
            process = start(recipe, killed)
            while process.is_alive() and state(killed, stage).get("status") != "finished":
                time.sleep(SOON)
            if stage != STAGES[-1] and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        row["equal"] = bits(killed, stage) == bits(whole, stage)
        rows.append(row)
        print(f"{stage:12} {row['kills']:5}  {row['in it']:5}  {row['put back']:8}  {row['equal']}", flush=True)
        record = {"kills": arguments.kills, "seed": arguments.seed, "stages": rows}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    process = start(recipe, killed)
    process.join()
    names = ("metrics.jsonl", "mixture_weights.csv", "model/model.safetensors")
    same = all((killed / "run" / name).read_bytes() == (whole / "run" / name).read_bytes() for name in names)
    results = [numbers(json.loads((place / "run" / "results.json").read_text())) for place in (whole, killed)]
    record["run"] = {"exit code": process.exitcode, "files equal": same, "results equal": results[0] == results[1]}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(record["run"])


if __name__ == "__main__":
    main()
