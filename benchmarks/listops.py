"""Do heads for classes learn? Short ListOps, by a hybrid of pretrained parents, by its parents and by a stack.

    python benchmarks/listops.py          # some minutes on one core

The task is ``listops-short``: the grammar of the Long Range Arena's ListOps with shorter trees, so no figure here is
one of LRA. Every model is fine-tuned with the same FLOPs. Beside their accuracies on the test split stand the share of
the commonest label and that of the best guess from the root operator alone: a model at the second has read one symbol.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

import torch
from measure import write_json
from pairs import pretrained_pair
from rich.console import Console
from rich.table import Table

import manticore
from manticore.components.loading import load_component
from manticore.stacks.modeling import StackForCausalLM
from manticore.stacks.presets import preset_config
from manticore.tasks.lra.listops import OPERATORS, SYMBOLS
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step
from manticore.training.prepare import fit_to_task

MAMBA_THEN_GPT = [1, 0]
STACK = "striped-mamba"


def models(seed: int, arguments: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Name → model."""
    gpt, mamba = pretrained_pair(seed, steps=arguments.pretrain_steps)
    supernet = manticore.combine([str(gpt), str(mamba)], num_blocks=2, seed=seed)
    manticore.align(supernet, tokens=arguments.align_tokens, seed=seed)
    torch.manual_seed(seed)
    config = preset_config(
        STACK, hidden_size=64, vocab_size=task.vocab_size, max_position_embeddings=max(64, task.length),
        layer_options={"mh-attention": {"num_heads": 4}},
    )  # fmt: skip
    return {
        "hybrid, mamba → gpt": manticore.discretize(supernet, MAMBA_THEN_GPT),
        "gpt": load_component(gpt),
        "mamba": load_component(mamba),
        f"stack, {STACK}": StackForCausalLM(config),
    }


def guesses(task: Task) -> dict[str, float]:
    """Test accuracy of the commonest label of the training split, alone and by the root operator."""
    train, test = ([(row["input_ids"][0], row["label"]) for row in task.data[split]] for split in ("train", "test"))
    commonest = Counter(label for _, label in train).most_common(1)[0][0]
    by_root = {
        root: Counter(label for other, label in train if other == root).most_common(1)[0][0]
        for root in {root for root, _ in train}
    }
    assert all(SYMBOLS[root] in OPERATORS for root in by_root)
    return {
        "majority": sum(label == commonest for _, label in test) / len(test),
        "root operator": sum(label == by_root.get(root, commonest) for root, label in test) / len(test),
    }


def main() -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=600, help="of the hybrid; the others match its FLOPs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--min-length", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--train", type=int, default=20_000)
    parser.add_argument("--test", type=int, default=1_000)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--align-tokens", type=int, default=32_768)
    parser.add_argument("--only", nargs="*", help="beginnings of the names of models to run, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(
        "listops-short", min_length=arguments.min_length, max_length=arguments.max_length,
        num_train=arguments.train, num_validation=100, num_test=arguments.test,
    )  # fmt: skip
    baseline = guesses(task)
    runs = []
    for seed in range(arguments.seeds):
        made = models(seed, arguments, task)
        first = next(iter(made.values()))
        budget = arguments.steps * flops_per_step(fit_to_task(first, task, seed), arguments.batch_size, task.length)
        for name, model in made.items():
            if arguments.only and not name.startswith(tuple(arguments.only)):
                continue
            result = manticore.finetune(
                model, task, budget_flops=budget, batch_size=arguments.batch_size, lr=arguments.lr, seed=seed,
                schedule="cosine", warmup_steps=arguments.steps // 20,
            )  # fmt: skip
            runs.append({"model": name, "seed": seed, "steps": result.steps, "flops": result.flops,
                         "seconds": result.seconds, **result.metrics})  # fmt: skip
            print(f"{name}, seed {seed}: accuracy {result.metrics['accuracy']:.3f}, {result.seconds:.0f} s", flush=True)
    table = Table("model", "seed", "steps", "accuracy", "loss", title=task.name)
    for guess, share in baseline.items():
        table.add_row(f"guess: {guess}", "", "", f"{share:.3f}", "")
    for run in runs:
        table.add_row(run["model"], str(run["seed"]), str(run["steps"]), f"{run['accuracy']:.3f}", f"{run['loss']:.3f}")
    Console().print(table)
    if not arguments.only:
        settings = {key: value for key, value in vars(arguments).items() if key != "only"}
        figures = {"task": task.name, "origin": "generated", "settings": settings, "guesses": baseline, "runs": runs}
        print(f"written to {write_json('listops', figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
