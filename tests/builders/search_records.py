"""Records of runs whose search trained candidates: what the report has to show of each way that can end."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

from run_records import build_record

UNIT = 2.0e12
"""FLOPs."""


def _curve(final: float, speed: float, end: int, noise: random.Random) -> list[dict[str, Any]]:
    """Points at every mark up to ``end``: the accuracy comes to ``final`` late, and the later the slower."""
    points = []
    for mark in range(1, end + 1):
        learned = final / (1 + math.exp(-1.6 * (mark - speed)))
        metric = min(1.0, max(0.0, 0.125 + (1 - 0.125) * learned + 0.01 * noise.random()))
        loss = 2.1 * (1 - learned) + 0.05 + 0.03 * noise.random()
        flops = mark * UNIT / 12
        points.append(
            {"mark": mark, "steps": 20 * mark, "flops": flops, "loss": loss, "metric": metric, "seconds": 2.0 * mark}
        )
    return points


def candidate(path: list[int], final: float, speed: float, end: int, **more: Any) -> dict[str, Any]:
    """A candidate that was trained to a mark."""
    points = _curve(final, speed, end, random.Random(str(path)))
    flops = (points[-1]["flops"] if points else 0) + 0.04 * UNIT / 12 * end
    return {"path": path, "points": points, "failed": "", "chosen": False, "flops": flops, **more}


def with_candidates(
    candidates: list[dict[str, Any]], method: str, reason: str, num_blocks: int, num_components: int = 2
) -> dict[str, Any]:
    """A complete record of a run whose search trained these."""
    record = build_record(num_components, num_blocks)
    path = next(each["path"] for each in candidates if each["chosen"])
    won = next(each for each in candidates if each["chosen"])
    record["search"] = {
        "method": method,
        "order": "",
        "steps": sum(each["points"][-1]["steps"] for each in candidates if each["points"]),
        "tokens": 1_000_000,
        "flops": sum(each["flops"] for each in candidates),
        "seconds": 71.0,
        "history": [],
        "weights": [[float(k == kept) for k in range(num_components)] for kept in path],
        "path": path,
        "candidates": candidates,
        "unit_flops": UNIT,
        "trained_flops": won["points"][-1]["flops"],
        "reason": reason,
        "metric": "accuracy",
        "higher_is_better": True,
    }
    record["finetune"]["begun_flops"] = won["points"][-1]["flops"]
    record["discretize"] = {
        "path": path,
        "loss_after": won["points"][-1]["loss"],
        "loss_finetuned": 0.071,
        "metric_after": won["points"][-1]["metric"],
        "metric_finetuned": 0.981,
    }
    compare = record["compare"]
    compare["budgets"] = [{"name": "fine-tuning", "flops": UNIT}, {"name": "everything", "flops": 4.6e12}]
    # nothing learned weights, so there is no soft supernet
    compare["rows"] = [row for row in compare["rows"] if row["model"] != "supernet (soft)"]
    by_place = {(row["model"], row["budget"]): row for row in compare["rows"]}
    for model in ("hybrid", "ensemble"):
        compare["rows"].append({**by_place[model, 0], "budget": 1, "seeds": []})
    return record


def race_won_by_a_hybrid() -> dict[str, Any]:
    """Four paths; ``mamba → gpt`` is ahead of both parents in both columns."""
    candidates = [
        candidate([0, 0], 0.7, 7.5, 7),
        candidate([1, 1], 0.2, 6.0, 7),
        candidate([0, 1], 0.97, 4.5, 7, chosen=True),
        candidate([1, 0], 0.5, 6.5, 7),
    ]
    record = with_candidates(candidates, "race", "0.63 nats ahead of the second after 7/12 of a unit", 2)
    set_scores(record, "mamba", 1, [0.751, 0.779, 0.783])
    return record


def race_won_by_a_parent() -> dict[str, Any]:
    """Four paths, and Mamba alone is as good as any."""
    candidates = [
        candidate([0, 0], 0.9, 5.5, 8, chosen=True),
        candidate([1, 1], 0.2, 6.0, 8),
        candidate([0, 1], 0.88, 5.6, 8),
        candidate([1, 0], 0.5, 6.5, 8),
    ]
    record = with_candidates(candidates, "race", "the race went to its end, 8/12 of a unit", 2)
    rows = record["compare"]["rows"]
    costs = {name: rows[0][name] for name in ("parameters", "flops_per_token", "cache_bytes_per_token", "state_bytes")}
    for row in rows:
        row.update(costs if row["model"] == "hybrid" else {})
    set_scores(record, "hybrid", 0, [0.871, 0.893, 0.882])
    set_scores(record, "hybrid", 1, [0.871, 0.893, 0.882])
    return record


def blockwise_with_a_failure() -> dict[str, Any]:
    """Seven of sixteen paths, one of which ran out of memory before its first mark, one that diverged later."""
    candidates = [
        candidate([0, 0, 0, 0], 0.4, 7.0, 6),
        candidate([1, 1, 1, 1], 0.15, 5.0, 6),
        candidate([1, 0, 0, 0], 0.3, 6.0, 6),
        candidate([0, 1, 0, 0], 0.8, 4.5, 6),
        candidate([0, 1, 1, 0], 0.95, 3.6, 6, chosen=True),
        candidate([0, 1, 1, 1], 0.6, 5.0, 3, failed="diverged: finetune: the loss is nan at step 71"),
        candidate([0, 1, 0, 1], 0.0, 5.0, 0, failed="out of memory"),
    ]
    return with_candidates(
        candidates, "auto", "best of 7 paths after 6/12 of a unit, 2 blocks away from the best parent", 4
    )


def exhaustive(num_components: int = 2, num_blocks: int = 4) -> dict[str, Any]:
    """All paths to a whole unit."""
    noise = random.Random(1)
    paths = [list(path) for path in itertools.product(range(num_components), repeat=num_blocks)]
    candidates = [candidate(path, noise.uniform(0.1, 0.9), noise.uniform(4, 9), 12) for path in paths]
    best = max(candidates, key=lambda each: each["points"][-1]["metric"])
    best["chosen"] = True
    reason = f"best of all {len(paths)} paths after 12/12 of a unit"
    return with_candidates(candidates, "exhaustive", reason, num_blocks, num_components)


def learned_with_one_hot(
    ends: dict[tuple[int, ...], tuple[float, float]], before: dict[tuple[int, ...], tuple[float, float]] | None = None
) -> dict[str, Any]:
    """A run whose search learned mixture weights, that name ``mamba → gpt``, and then scored paths.

    Args:
        ends: path → its loss and accuracy after the search.
        before: those of parents before it.
    """
    record = build_record()

    def point(steps: int, scores: tuple[float, float]) -> dict[str, Any]:
        return {"mark": 0, "steps": steps, "flops": 0, "loss": scores[0], "metric": scores[1], "seconds": 0.0}

    record["search"]["shared"] = [
        {
            "path": list(path),
            "points": [*([point(0, before[path])] if before and path in before else []), point(300, scores)],
            "failed": "",
            "chosen": False,
            "flops": 1.0e9,
        }
        for path, scores in ends.items()
    ]
    return record | {"search": {**record["search"], "shared_examples": 256, "metric": "accuracy"}}


def one_hot_paths_of_darts() -> dict[str, Any]:
    """The largest weights are not the best path's."""
    ends = {(0, 0): (1.4, 0.41), (1, 1): (1.9, 0.22), (0, 1): (1.5, 0.38), (1, 0): (2.1, 0.13)}
    return learned_with_one_hot(ends, {(0, 0): (2.8, 0.12), (1, 1): (2.9, 0.14)})


def set_scores(record: dict[str, Any], model: str, budget: int, scores: list[float]) -> None:
    """Give a row of the comparison these scores, one per seed, with an interval where there are several."""
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) if len(scores) > 1 else 0.0
    reach = 4.303 * spread / math.sqrt(len(scores))
    for row in record["compare"]["rows"]:
        if (row["model"], row["budget"]) == (model, budget):
            row.update(
                seeds=[{"seed": n, "metrics": {"accuracy": score}} for n, score in enumerate(scores)],
                mean=mean,
                interval=[mean - reach, mean + reach] if len(scores) > 1 else None,
            )


EXAMPLES = {
    "race-hybrid": race_won_by_a_hybrid,
    "race-parent": race_won_by_a_parent,
    "blockwise": blockwise_with_a_failure,
    "exhaustive": exhaustive,
    "gradient": build_record,
    "one-hot": one_hot_paths_of_darts,
}
