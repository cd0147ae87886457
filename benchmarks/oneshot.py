"""One-shot search in twelve blocks: does a step cost what one path costs, and the search what ``plan`` says?

    python benchmarks/oneshot.py [--part steps | search | ranking]          # about three minutes on one core

A GPT-Neo and a Mamba of twelve layers (widths 128 and 96), cut into twelve blocks, train on text. Step: the supernet
at a sampled path beside the same path discretized, each a whole optimizer step (clipping and AdamW included), CPU time
of interleaved rounds, four paths. Activations: what a step keeps for its backward pass, each storage once, without
weights; and how far resident memory rises in forward and backward, less the gradients. Search:
``search(method="oneshot")`` on smaller parents, its FLOPs over those of the plan of the same recipe. Bars: 1.1, 1.1,
within 5 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import landscapes
import torch
from measure import RESULTS, interleaved, paired_ratio, peak_bytes, write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

import manticore
from manticore.experiments.landscapes import regret, replay
from manticore.kernels.mamba import fast_scan
from manticore.search.choice import Shared
from manticore.search.curves import MARKS, SharedScores
from manticore.search.objective import Objective, unit_flops
from manticore.search.oneshot import oneshot
from manticore.search.sampling import Sampler
from manticore.search.shared import follow, shared_scores
from manticore.search.space import Space, spelled
from manticore.training.trainable import set_trainable

BLOCKS = 12
VOCABULARY = 1024
RANKED = ("noisy-recall-32", "recall-64", "recall-32", "recall-32-four-blocks")
RATIOS = ("seconds", "activations", "resident")
BARS = {"seconds": 1.1, "activations": 1.1, "resident": 1.1, "flops": 0.05}
RECIPE = """\
name: oneshot
pretrain:
  - {{name: gpt, family: gpt_neo, layers: 12, width: 32, steps: 20, batch_size: 8, length: 64, max_bytes: 400000}}
  - {{name: mamba, family: mamba, layers: 12, width: 24, steps: 20, batch_size: 8, length: 64, max_bytes: 400000}}
components: [{{name: gpt, source: gpt}}, {{name: mamba, source: mamba}}]
task: {{name: text, options: {{length: 64, max_bytes: 1000000}}}}
combine: {{num_blocks: 12}}
align: null
search: {{method: oneshot, sampling: {sampling}}}
finetune: {{steps: 36, batch_size: 16, lr: 2e-3}}
compare: null
"""


def gpt_neo() -> GPTNeoForCausalLM:
    """GPT-Neo of width 128 without dropout."""
    config = GPTNeoConfig(
        hidden_size=128, num_layers=BLOCKS, num_heads=4, intermediate_size=512, vocab_size=VOCABULARY,
        attention_types=[[["global", "local"], BLOCKS // 2]], max_position_embeddings=1024,
        bos_token_id=0, eos_token_id=0, embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0,
    )  # fmt: skip
    return GPTNeoForCausalLM(config)


def mamba() -> MambaForCausalLM:
    """Mamba of width 96."""
    return MambaForCausalLM(MambaConfig(hidden_size=96, num_hidden_layers=BLOCKS, vocab_size=VOCABULARY, state_size=16))


def stepping(model: PreTrainedModel, input_ids: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """A whole optimizer step, and forward + backward alone."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def passes() -> None:
        model(input_ids=input_ids, labels=input_ids, use_cache=False).loss.backward()

    def step() -> None:
        passes()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, passes


def kept_bytes(model: PreTrainedModel, input_ids: Tensor) -> int:
    """What a forward pass keeps for its backward pass."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    total = sum(kept.values())
    del loss
    return total


def resident(model: PreTrainedModel, passes: Callable[[], None]) -> int:
    """How far memory rises in forward + backward, without the gradients that stay."""
    rise = peak_bytes(passes)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return rise - gradients


def measure(paths: int, rounds: int, batch: int, tokens: int) -> list[dict[str, Any]]:
    """The supernet at each of some sampled paths over that path alone."""
    torch.manual_seed(0)
    input_ids = torch.randint(0, VOCABULARY, (batch, tokens))
    supernet = manticore.combine([gpt_neo(), mamba()], num_blocks=BLOCKS, check=False).train()
    set_trainable(supernet, "all")
    shared_step, shared_passes = stepping(supernet, input_ids)
    sampler = Sampler(Space(BLOCKS, 2), "uniform", 0, [])
    rows = []
    for number in range(paths):
        path = sampler.path(number)
        alone = manticore.discretize(supernet, path).train()
        set_trainable(alone, "all")
        step, passes = stepping(alone, input_ids)
        follow(supernet, path)
        with fast_scan(supernet), fast_scan(alone):
            seconds = interleaved({"shared": shared_step, "alone": step}, rounds=rounds, warmup=2)
            rises = [(resident(supernet, shared_passes), resident(alone, passes)) for _ in range(3)]
            kept = kept_bytes(supernet, input_ids), kept_bytes(alone, input_ids)
        rows.append(
            {
                "path": list(path),
                "milliseconds": 1e3 * statistics.median(seconds["shared"]),
                "kept_mib": kept[0] / 2**20,
                "seconds": paired_ratio(seconds["shared"], seconds["alone"]),
                "activations": kept[0] / kept[1],
                "resident": statistics.median(shared / own for shared, own in rises),
            }
        )
    return rows


def searched(sampling: str) -> dict[str, Any]:
    """A whole search, and what the plan says of it."""
    from manticore.plan.planner import plan
    from manticore.runs.folder import create_run
    from manticore.schema.loading import load_recipe
    from manticore.stages import STAGES
    from manticore.stages.run import Run

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "oneshot.yaml")
        file.write_text(RECIPE.format(sampling=sampling))
        loaded = load_recipe(str(file))
        rows = plan(loaded.recipe, device_memory=1e12, accelerator=False).stages
        planned = next(row for row in rows if row.name == "search")
        folder = create_run(loaded, str(Path(scratch, "run")))
        run = Run(folder)
        for name in ("pretrain", "combine", "search"):
            for stage in (stage for stage in STAGES if stage.name == name):
                own = folder.path / name
                own.mkdir(exist_ok=True)
                outcome = stage.work(run, own)
        found = outcome.results["search"]
    raced = {tuple(each["path"]): each["points"][-1] for each in found["candidates"] if each["points"]}
    compared = sorted(found["shared"], key=lambda each: each["points"][0]["loss"])
    return {
        "sampling": sampling,
        "planned": planned.flops,
        "what": planned.what,
        "flops": found["flops"],
        "units": found["flops"] / found["unit_flops"],
        "unit_flops": found["unit_flops"],
        "ratio": found["flops"] / planned.flops,
        "compared": len(compared),
        "path": list(found["path"]),
        "reason": found["reason"],
        "raced": {"".join("GM"[k] for k in path): point["loss"] for path, point in raced.items()},
        "mark": max(point["mark"] for point in raced.values()),
    }


def ranks(values: list[float]) -> list[float]:
    """Of each value among all, the mean where several are equal."""
    return [sum(b < a for b in values) + sum(b == a for b in values) / 2 for a in values]


def ranked(name: str, seed: int) -> dict[str, Any] | None:
    """Do shared weights order paths as training them does? On a landscape of ``benchmarks/landscapes.py``."""
    landscape = landscapes.recorded(name, seed)
    if landscape is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        supernet, task = landscapes.prepared(landscapes.CASES[name], seed)
        unit, settings = unit_flops(supernet, task, landscapes.TUNING, None)
        objective = Objective(supernet, task, settings, unit, Path(scratch), seed, cpu=True)
        found: list[SharedScores] = []

        def shared(request: Shared) -> SharedScores:
            found.append(shared_scores(objective, request))
            return found[0]

        replayed = replay(landscape, oneshot, seed, range(1, MARKS + 1), shared=shared)
    points, truth = found[0].points, landscape.truth(1)
    paths = sorted(truth)
    sign = 1 if landscape.higher_is_better else -1
    scores = {"loss": [-points[p].loss for p in paths], "metric": [sign * points[p].metric for p in paths]}
    true = [truth[path] for path in paths]
    return {
        "name": name,
        "seed": seed,
        "shared": {spelled(path): [points[path].loss, points[path].metric] for path in paths},
        "truth": {spelled(path): truth[path] for path in paths},
        "correlation": {kind: statistics.correlation(ranks(values), ranks(true)) for kind, values in scores.items()},
        "best_is_number": 1 + sum(points[p].loss < points[max(truth, key=truth.__getitem__)].loss for p in paths),
        "shared_units": (found[0].flops + sum(point.spent for point in points.values())) / objective.unit,
        "units": replayed.cost,
        "path": spelled(replayed.choice.path),
        "regret": {units: regret(landscape.truth(units), replayed.choice.path) for units in (1, 2, 4)},
        "reason": replayed.choice.reason,
    }


def main() -> int:
    """Print the tables, write the JSON, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--part", choices=["steps", "search", "ranking"], help="measure only this; the rest stays")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS / "oneshot.json"
    figures = json.loads(kept.read_text()) if arguments.part and kept.exists() else {}
    if arguments.part in (None, "ranking"):
        trials = ((name, seed) for seed in range(3) for name in RANKED)
        figures["ranking"] = [row for trial in trials if (row := ranked(*trial)) is not None]
    if arguments.part in (None, "steps"):
        rows = measure(arguments.paths, arguments.rounds, arguments.batch, arguments.tokens)
        figures |= {"rows": rows, "medians": {name: statistics.median(row[name] for row in rows) for name in RATIOS}}
    if arguments.part in (None, "search"):
        figures["search"] = searched("uniform")
    written = write_json("oneshot", {name: value for name, value in figures.items() if name != "environment"})
    console, met = Console(), True
    if "rows" in figures:
        table = Table("path", "CPU ms", "kept MiB", *RATIOS, title="supernet of 12 blocks at a path ÷ the path alone")
        for row in figures["rows"]:
            shown = "".join("GM"[k] for k in row["path"])
            ratios = (f"{row[name]:.3f}" for name in RATIOS)
            table.add_row(shown, f"{row['milliseconds']:.1f}", f"{row['kept_mib']:.1f}", *ratios)
        table.add_row("median", "", "", *(f"{figures['medians'][name]:.3f}" for name in RATIOS))
        console.print(table)
        met = met and all(figures["medians"][name] <= BARS[name] for name in RATIOS)
    if "search" in figures:
        search = figures["search"]
        console.print(
            f"search: {search['what']}: {search['flops']:.4g} FLOPs ({search['units']:.2f} units), "
            f"planned {search['planned']:.4g}, ratio {search['ratio']:.3f}; {search['reason']}"
        )
        met = met and abs(search["ratio"] - 1) <= BARS["flops"]
    for row in figures.get("ranking", []):
        best = "".join("GM"[int(k)] for k in max(row["truth"], key=row["truth"].get).split("-"))
        console.print(
            f"{row['name']}, seed {row['seed']}: rank correlation with the truth {row['correlation']['loss']:.2f}, by "
            f"metric {row['correlation']['metric']:.2f}; the best path {best} is number {row['best_is_number']} of "
            f"{len(row['truth'])}; {row['units']:.2f} units (shared {row['shared_units']:.2f}), regret at 1, 2, 4: "
            + ", ".join(f"{value:.3f}" for value in row["regret"].values())
        )
    console.print(f"written to {written}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
