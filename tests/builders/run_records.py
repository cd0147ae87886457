"""Records of runs as the stages write them: a complete one, and builders for the odd ones."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

BUDGETS = [
    {"name": "fine-tuning alone", "flops": 2.0e12},
    {"name": "everything the hybrid cost", "flops": 4.6e12},
]


def _row(model: str, budget: int, scores: list[float], parameters: int, cache: int, state: int) -> dict[str, Any]:
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) if len(scores) > 1 else 0.0
    reach = 4.303 * spread / math.sqrt(len(scores))
    return {
        "model": model,
        "budget": budget,
        "parameters": parameters,
        "flops_per_token": 2.1 * parameters,
        "cache_bytes_per_token": cache,
        "state_bytes": state,
        "seeds": [
            {
                "seed": seed,
                "flops": BUDGETS[budget]["flops"] * 0.99,
                "steps": 200,
                "metrics": {"accuracy": score, "loss": 3 * (1 - score)},
            }
            for seed, score in enumerate(scores)
        ],
        "mean": mean,
        "interval": [mean - reach, mean + reach] if len(scores) > 1 else None,
        "mismatch": False,
    }


def build_record(num_components: int = 2, num_blocks: int = 2, steps: int = 60) -> dict[str, Any]:
    """A complete record of K components in N blocks with ``steps`` logged steps."""
    noise = random.Random(0)
    names = ["mamba", "gpt", "rwkv", "gemma"][:num_components]
    layers = [num_blocks + 2 * k + 1 for k in range(num_components)]
    path = [n % num_components for n in range(num_blocks)]
    cuts = [[round(n * total / num_blocks) for n in range(num_blocks + 1)] for total in layers]

    def weights(progress: float) -> list[list[float]]:
        sharp = [[math.exp(4 * progress * (k == path[n])) for k in range(num_components)] for n in range(num_blocks)]
        return [[w / sum(row) for w in row] for row in sharp]

    history = [
        {
            "step": 5 * i,
            "loss": 2.5 * math.exp(-3 * i / max(1, steps)) + 0.4 + 0.1 * noise.random(),
            "entropy": 0.69 * (1 - 0.8 * i / max(1, steps)),
            "weights": weights(i / max(1, steps - 1)),
        }
        for i in range(steps)
    ]
    rows = [
        _row("mamba", 0, [0.871, 0.893, 0.882], 1_190_000, 0, 81_920),
        _row("gpt", 0, [0.301, 0.296, 0.309], 1_040_000, 4096, 0),
        _row("ensemble", 0, [0.52, 0.61, 0.57], 2_230_000, 4096, 81_920),
        _row("supernet (soft)", 0, [0.60, 0.71, 0.64], 2_410_000, 4096, 81_920),
        _row("hybrid", 0, [0.981, 0.975, 0.988], 1_130_000, 2048, 40_960),
        _row("mamba", 1, [0.985, 0.979, 0.991], 1_190_000, 0, 81_920),
        _row("gpt", 1, [0.314, 0.309, 0.311], 1_040_000, 4096, 0),
    ]
    return {
        "schema_version": 1,
        "name": "quickstart",
        "created": "2026-03-01T12:00:00+00:00",
        "status": "complete",
        "seed": 0,
        "components": [
            {
                "name": name,
                "source": f"cache/components/{name}",
                "family": {"gpt": "gpt_neo"}.get(name, name),
                "parameters": 1_190_000 - 150_000 * k,
                "layers": layers[k],
                "width": 160 - 32 * k,
                "license": "apache-2.0" if k == 0 else "mit",
                "sha256": f"{k}" * 64,
            }
            for k, name in enumerate(names)
        ],
        "task": {
            "name": "mad/in-context-recall",
            "primary_metric": "accuracy",
            "higher_is_better": True,
            "chance": 0.125,
        },
        "combine": {
            "num_blocks": num_blocks,
            "mixing": "translated",
            "projector": "linear",
            "boundaries": cuts,
        },
        "align": {
            "tokens": 65_536,
            "seconds": 4.2,
            "loss_before": 5.15,
            "loss_after": 4.16,
            "translations": [
                {
                    "name": f"{n}_{a}_{b}",
                    "source": a,
                    "target": b,
                    "boundary": n,
                    "r2": 0.93 - 0.6 * n / num_blocks - 0.05 * a,
                    "r2_heldout": 0.91 - 0.65 * n / num_blocks - 0.05 * a,
                }
                for n in range(num_blocks)
                for a in range(num_components)
                for b in range(num_components)
                if a != b
            ],
        },
        "search": {
            "method": "darts",
            "order": "simultaneous",
            "steps": 5 * steps,
            "flops": 2.4e12,
            "seconds": 62.0,
            "history": history,
            "weights": weights(1.0),
            "path": path,
        },
        "discretize": {
            "path": path,
            "loss_before": 1.21,
            "loss_after": 2.384,
            "loss_finetuned": 0.071,
            "metric_before": 0.612,
            "metric_after": 0.334,
            "metric_finetuned": 0.981,
        },
        "finetune": {
            "steps": 240,
            "flops": 2.0e12,
            "seconds": 41.0,
            "metrics": {"accuracy": 0.981, "loss": 0.071},
            "history": [{"step": i, "loss": 2.4 * math.exp(-i / 60) + 0.05 * noise.random()} for i in range(0, 240, 2)],
        },
        "compare": {"budgets": copy.deepcopy(BUDGETS), "rows": rows},
        "model": {"path": "model", "loads_with": "AutoModelForCausalLM"},
    }


def written(record: dict[str, Any], *lengths: int) -> dict[str, Any]:
    """The record with what its models write, before any training and at its first budget; ``lengths`` of prompts."""
    rows = []
    for model in dict.fromkeys(row["model"] for row in record["compare"]["rows"]):
        for budget in (None, 0):
            gain = 0.25 if budget is None else 0.75
            generated = {
                "exact_match": gain,
                "examples": 64,
                "samples": [{"prompt": "def sum(a,\n", "expected": " b)", "written": f" {model} writes\n\n{budget}"}],
                "recall": [{"length": n, "share": gain / (1 + k), "examples": 8} for k, n in enumerate(lengths)],
                "speed": [
                    {
                        "context": n,
                        "first_token_ms": 0.02 * n,
                        "tokens_per_second": 321.4 - n / 64,
                        "cache_bytes": 1024 * n,
                    }
                    for n in lengths
                ],
            }
            rows.append({"model": model, "budget": budget, "seed": 0, "generated": generated, "left_out": ""})
    record["compare"]["writing"] = rows
    return record


def write_record(folder: Path, record: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "]]></svg><script>1</script><!--",
    "a$b_{c}$ | `x` [link](http://example.com)",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 3000,
    "模型 é 🜁",
    "nul\x00 esc\x1b[31m rtl\u202e half\ud800",
    "[bold red]rich[/]",
    "</title></style></pre>\n---\nlicense: mit\n---\n# heading",
)


def over_budgets(
    scores: dict[str, list[list[float]]], shares: tuple[float, ...] = (0, 0.25, 1), spent: float = 0.0
) -> dict[str, Any]:
    """A record whose comparison is of a loss, over budgets.

    Args:
        scores: model → per budget, those that count what was spent last, a score per seed.
        shares: of the fine-tuning budget.
        spent: FLOPs before it; 0: nothing was.
    """
    record = build_record()
    unit = BUDGETS[0]["flops"]
    budgets = [
        {"name": f"{share} × fine-tuning" if share else "untrained", "flops": share * unit, "share": share}
        for share in shares
    ]
    if spent:
        budgets += [
            {**b, "name": f"everything, {b['name']}", "flops": b["flops"] + spent, "with_spent": True} for b in budgets
        ]
    record["task"] = {"name": "text", "primary_metric": "loss", "higher_is_better": False}
    rows = []
    for model, found in scores.items():
        for budget, values in enumerate(found):
            row = _row(model, 0, values, 1_000_000 * len(model), 4096, 0)
            flops = budgets[budget]["flops"]
            for seed, value in zip(row["seeds"], values):
                seed.update(flops=flops, metrics={"loss": value}, lr=1e-3 if budgets[budget]["share"] else None)
            rates = [3e-4, 1e-3, 3e-3] if budgets[budget]["share"] else []
            rows.append({**row, "budget": budget, "rates": rates, "step_flops": unit / 100})
    record["compare"] = {"budgets": budgets, "rows": rows}
    return record
