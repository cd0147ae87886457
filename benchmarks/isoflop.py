"""IsoFLOP curves of stacks with more and less attention: exponents, what state buys, and whether MAD ranks as they do.

python benchmarks/isoflop.py           # goes on where it stopped; for hours, see --plan
python benchmarks/isoflop.py --plan    # runs, FLOPs and hours, nothing trained
python benchmarks/isoflop.py --tiny    # every part, in a size whose figures mean nothing

Stacks of eight blocks, a token mixer and a SwiGLU each, differ in which mixers are attention; widths are the sizes.
They read bytes of Python's sources. Three of them have four budgets of five sizes; the others five sizes at one budget,
at which all are compared. Where a curve's lowest point lies outside of its sizes, up to two widths are added on that
side. One seed a run: how noisy one is, the residuals around the parabolas say.

Runs are kept as lines in results/isoflop.jsonl, the tables in results/isoflop.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from measure import RESULTS, write_json

from manticore.design_settings import Design
from manticore.errors import ManticoreError
from manticore.experiments.fits import IsoFlops, isoflops, rank_correlation, state_optimal
from manticore.search.designs.measures import training_flops
from manticore.search.designs.training import DesignTraining, Failed
from manticore.stacks.configuration import StackConfig
from manticore.stacks.scaling import stack, stretch
from manticore.stacks.sizes import layer_parameters

BLOCKS = 8
LENGTH, BATCH = 64, 16
BUDGETS = (1e11, 3e11, 9e11, 2.7e12)
COMMON = 2
"""Which of the budgets all architectures have."""
WIDTHS = (8, 12, 16, 20, 28, 40, 56, 80, 112)
SIZES = 5
MORE = 2
"""Widths that a curve may get beside those, where its lowest point lies beyond them."""
MAD_WIDTH = 32
MAD_TASKS = ["in-context-recall", "selective-copying", "fuzzy-in-context-recall", "memorization"]
A, S = ["mh-attention", {"num_heads": 2}], "mamba"
SMALL = [S, S, A, "swiglu"]
"""Striped Mamba of the MAD papers, the pattern of the two that are scaled."""


def blocks(attention: set[int]) -> list[Any]:
    """Eight blocks whose mixers are attention at those positions, else Mamba."""
    return [layer for block in range(BLOCKS) for layer in (A if block in attention else S, "swiglu")]


def stacked(how: Callable[[StackConfig, int], StackConfig], settings: dict[str, Any]) -> StackConfig:
    """Four times the layers of the small pattern, by its copies or by longer runs."""
    small = StackConfig(layers=SMALL, **settings)
    return how(small, 4 * layer_parameters(small))


ARCHITECTURES: dict[str, Callable[[dict[str, Any]], StackConfig]] = {
    **{
        name: lambda settings, at=at: StackConfig(layers=blocks(at), **settings)  # type: ignore[misc]
        for name, at in {
            "0": set(),
            "1/8": {3},
            "1/4 striped": {1, 5},
            "1/4 blocked": {3, 4},
            "1/2 striped": {1, 3, 5, 7},
            "1/2 blocked": {4, 5, 6, 7},
            "1": set(range(BLOCKS)),
        }.items()
    },
    "stacked": lambda settings: stacked(stack, settings),
    "stretched": lambda settings: stacked(stretch, settings),
}
"""Name, the share of attention among mixers and where it is, → its stack at a width."""
WHOLE = ("0", "1/4 striped", "1")
"""Those that have all budgets."""


class Table:
    """Runs that are finished, in a file of lines that grows by one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        # a line that was cut off by a kill is trained again
        whole = [line for line in lines if line.endswith("}")]
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in whole]
        if len(whole) < len(lines):
            path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")

    def of(self, **wanted: Any) -> dict[str, Any] | None:
        return next((row for row in self.rows if all(row.get(key) == wanted[key] for key in wanted)), None)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Benchmark:
    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.budgets = (5e7, 2e8) if tiny else BUDGETS
        self.common = 1 if tiny else COMMON
        self.widths = (8, 12, 16, 20) if tiny else WIDTHS
        self.sizes = 3 if tiny else SIZES
        self.more = 0 if tiny else MORE
        # steps are few there, so that FLOPs are less alike
        self.tolerance = 0.3 if tiny else 0.05
        self.length, self.batch = (16, 4) if tiny else (LENGTH, BATCH)
        self.table = Table((Path(tempfile.mkdtemp(prefix="isoflop-")) if tiny else RESULTS) / "isoflop.jsonl")
        most = 200_000 if tiny else 20_000_000
        self.text = {"text": "stdlib", "max_bytes": most, "batch_size": self.batch, "length": self.length}

    def made(self, architecture: str, width: int) -> Callable[..., StackConfig]:
        def make(*, vocab_size: int, positions: int) -> StackConfig:
            settings = {"vocab_size": vocab_size, "hidden_size": width, "max_position_embeddings": positions}
            return ARCHITECTURES[architecture](settings)

        return make

    def chosen(self, index: int) -> list[int]:
        """The widths of a budget: they move up with it."""
        first = min(index, len(self.widths) - self.sizes)
        return list(self.widths[first : first + self.sizes])

    def curves(self) -> list[tuple[str, int]]:
        """Architecture and index of the budget, cheapest first."""
        wanted = [
            (name, i) for name in ARCHITECTURES for i in range(len(self.budgets)) if name in WHOLE or i == self.common
        ]
        return sorted(wanted, key=lambda curve: curve[1])

    def train(self, architecture: str, width: int, budget: float) -> None:
        wanted = {"kind": "text", "architecture": architecture, "width": width, "budget": budget}
        if self.table.of(**wanted):
            return
        make = self.made(architecture, width)
        probe = DesignTraining(Design(**self.text, steps=1), cpu=True)
        config = probe.config(make)
        per_token = training_flops(config, self.length) / self.length
        tokens = max(1, round(budget / per_token / (self.length * self.batch))) * self.length * self.batch
        settings = Design(
            **self.text,
            tokens=tokens,
            workload=f"tokens={self.length},batch=1",
            validation_examples=64 if self.tiny else 1024,
        )
        begun = time.process_time()
        training = DesignTraining(settings, cpu=True)
        try:
            found = training.of_config(make, f"{architecture} at {width}")
        except Failed as error:
            self.table.add({**wanted, "failed": str(error)})
            return
        seconds = time.process_time() - begun
        self.table.add(
            {
                **wanted,
                "flops": per_token * tokens,
                "parameters": found.measures["parameters"],
                "tokens": tokens,
                "loss": found.measures["loss"],
                # fixed states, and keys and values of the length that was trained on
                "state": found.measures["cache_bytes"] / 2,
                "curve": found.curve,
                "cpu_seconds": round(seconds, 2),
            }
        )
        print(
            f"{architecture:12} width {width:3}: {found.measures['parameters']:9,.0f} parameters, {tokens:11,} tokens, "
            f"loss {found.measures['loss']:.4f}, {seconds:.0f} CPU s",
            flush=True,
        )

    def curve(self, architecture: str, index: int) -> None:
        """Train a curve's sizes, and more on the side where its lowest point is missing."""
        widths = self.chosen(index)
        for width in widths:
            self.train(architecture, width, self.budgets[index])
        for _ in range(self.more):
            own = self.runs(architecture, self.budgets[index])
            if len(own) < 3:
                return
            (minimum,) = isoflops(own, tolerance=self.tolerance, resamples=50).minima
            lower = [width for width in self.widths if width < min(widths)]
            upper = [width for width in self.widths if width > max(widths)]
            if minimum.edge == "below the smallest" and lower:
                widths.append(lower[-1])
            elif minimum.edge == "above the largest" and upper:
                widths.append(upper[0])
            else:
                return
            self.train(architecture, widths[-1], self.budgets[index])

    def runs(self, architecture: str | None = None, budget: float | None = None) -> list[dict[str, Any]]:
        return [
            row for row in self.table.rows
            if row["kind"] == "text" and "loss" in row and architecture in (None, row["architecture"])
            and budget in (None, row["budget"])
        ]  # fmt: skip

    def mad(self, architecture: str) -> None:
        wanted = {"kind": "mad", "architecture": architecture}
        if self.table.of(**wanted):
            return
        tasks = MAD_TASKS[:1] if self.tiny else MAD_TASKS
        width = 8 if self.tiny else MAD_WIDTH
        settings = Design(text=None, objectives=["mad"], mad_tasks=tasks, mad_epochs=1 if self.tiny else None)
        begun = time.process_time()
        try:
            found = DesignTraining(settings, cpu=True).of_config(self.made(architecture, width), architecture)
        except Failed as error:
            self.table.add({**wanted, "failed": str(error)})
            return
        scores = {name: value for name, value in found.measures.items() if name.startswith("mad")}
        self.table.add({**wanted, **scores, "cpu_seconds": round(time.process_time() - begun, 2)})
        print(f"{architecture:12} MAD {scores['mad']:.3f}", flush=True)

    def plan(self) -> None:
        curves = self.curves()
        runs = [(name, i, width) for name, i in curves for width in self.chosen(i)]
        flops = sum(self.budgets[i] for _, i, _ in runs)
        left = [
            run for run in runs if not self.table.of(architecture=run[0], width=run[2], budget=self.budgets[run[1]])
        ]
        timed = [row for row in self.table.rows if row["kind"] == "text" and row.get("cpu_seconds", 0) > 1]
        print(f"{len(runs)} runs, {flops:.3g} FLOPs, {len(left)} runs to go; {len(ARCHITECTURES)} times MAD")
        if timed:
            rate = sum(row["flops"] for row in timed) / sum(row["cpu_seconds"] for row in timed)
            hours = sum(self.budgets[i] for _, i, _ in left) / rate / 3600
            print(f"{rate:.3g} FLOPs a CPU second so far: {hours:.1f} CPU hours to go, without widths that are added")

    def tables(self) -> dict[str, Any]:
        runs = self.runs()
        found = isoflops(runs, tolerance=self.tolerance)
        report: dict[str, Any] = {"fits": found.to_dict(), "runs": self.table.rows, "tiny": self.tiny}
        self.print_minima(found)
        common = self.budgets[self.common]
        at = [m for m in found.minima if math.isclose(m.flops, common, rel_tol=self.tolerance)]
        # a minimum beyond the sizes is a guess
        best = {m.architecture: m.loss.value for m in at if m.edge is None and m.loss is not None}
        scores = {row["architecture"]: row["mad"] for row in self.table.rows if row["kind"] == "mad" and "mad" in row}
        shared = sorted(best.keys() & scores.keys())
        try:
            state = state_optimal(found, tolerance=self.tolerance)
            report["state"] = state.to_dict()
            print(f"\nstate-optimal: exp(loss) as M^c, c = {state.exponent}")
            print("\n".join(f"  at {flops:.2g} FLOPs: {c:.3f}" for flops, c in state.by_budget.items()))
            print("\n".join(f"  left out: {name}, {why}" for name, why in state.left_out.items()))
        except ManticoreError as error:
            report["state"] = str(error)
            print(f"\nno state-optimal fit: {error}")
        for method in ("spearman", "kendall"):
            try:
                ranks = rank_correlation({n: scores[n] for n in shared}, {n: best[n] for n in shared}, method)  # type: ignore[arg-type]
            except ManticoreError as error:
                report[method] = str(error)
                print(f"no {method}: {error}")
                continue
            report[method] = ranks.to_dict()
            print(
                f"{method}, MAD score against compute-optimal loss at {common:.2g} FLOPs, {ranks.pairs} architectures: "
                f"{ranks.correlation}, p {ranks.p_value:.3f} (-1: MAD ranks as the losses do)"
            )
        return report

    def print_minima(self, found: IsoFlops) -> None:
        print(f"\n{'architecture':12} {'FLOPs':>8} {'best size':>34} {'loss':>26} {'state':>8}")
        for m in sorted(found.minima, key=lambda m: (m.flops, m.loss.value if m.loss else math.inf)):
            state = "" if m.state is None else f"{m.state:8,.0f}"
            edge = "" if m.edge is None else "  no minimum" if m.loss is None else f"  minimum {m.edge} size"
            print(f"{m.architecture:12} {m.flops:8.2g} {m.parameters!s:>34} {m.loss!s:>26} {state}{edge}")
        for name, fit in found.exponents.items():
            print(f"{name}: size as C^{fit.size}, tokens as C^{fit.data}, {len(fit.budgets)} budgets")
        print("\n".join(found.notes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", action="store_true", help="say what there is to do, and stop")
    parser.add_argument("--tiny", action="store_true", help="all parts, in a size that says nothing")
    parser.add_argument("--tables", action="store_true", help="tables of the runs that are there, and stop")
    options = parser.parse_args()
    benchmark = Benchmark(options.tiny)
    if options.plan:
        benchmark.plan()
        return
    if not options.tables:
        for architecture in ARCHITECTURES:
            benchmark.mad(architecture)
        for architecture, index in benchmark.curves():
            benchmark.curve(architecture, index)
    tables = benchmark.tables()
    if options.tiny:
        json.dumps(tables, allow_nan=False)
    else:
        print(f"wrote {write_json('isoflop', tables)}")


if __name__ == "__main__":
    main()
