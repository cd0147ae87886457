"""How long should fine-tuning warm up? Small pretrained models, few and many steps, several rules.

Two jobs: text that the model was pretrained on (does fine-tuning begin by hurting what it knows?), and in-context
recall with a fresh vocabulary (does a warm-up cost anything where everything is to be learned?).

    python benchmarks/warmup.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable

from measure import write_json
from pairs import TEXT_BYTES, TOKENS, WIDTHS, pretrained
from transformers import AutoModelForCausalLM

from manticore.components.loading import load_tokenizer
from manticore.tasks.task import load_task
from manticore.training.evaluate import evaluate
from manticore.training.finetune import finetune

RULES: dict[str, Callable[[int], int]] = {
    "none": lambda steps: 0,
    "a twentieth": lambda steps: -(-steps // 20),
    "a tenth": lambda steps: -(-steps // 10),
    "a fifth": lambda steps: -(-steps // 5),
    "a tenth, at least 10": lambda steps: max(10, -(-steps // 10)),
}
"""Name → warm-up steps for so many steps."""

BATCH, SCORED = 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--lrs", type=float, nargs="+", default=[5e-4, 2e-3])
    parser.add_argument("--text-steps", type=int, nargs="*", default=[3, 30])
    parser.add_argument("--recall-steps", type=int, nargs="*", default=[100])
    parser.add_argument("--pretraining", type=int, default=300)
    arguments = parser.parse_args()
    rows = []
    for folder in (pretrained(family, 0, steps=arguments.pretraining) for family in arguments.families):
        tokenizer = load_tokenizer(folder)
        sizes = {"num_train_examples": 2048, "num_test_examples": 256}
        for name, lengths, options in (
            ("text", arguments.text_steps, {"length": TOKENS, "max_bytes": TEXT_BYTES}),
            ("mad/in-context-recall", arguments.recall_steps, {"seq_len": TOKENS // 2, **sizes}),
        ):
            task = load_task(name, tokenizer=tokenizer, **options)
            known = task.vocab_size is None
            before = evaluate(AutoModelForCausalLM.from_pretrained(folder), task, max_examples=SCORED) if known else {}
            for steps, lr, (rule, warmup) in itertools.product(lengths, arguments.lrs, RULES.items()):
                result = finetune(
                    AutoModelForCausalLM.from_pretrained(folder), task,
                    steps=steps, batch_size=BATCH, lr=lr, warmup_steps=warmup(steps), test_examples=SCORED, cpu=True,
                )  # fmt: skip
                row = {
                    "family": result.model.config.model_type, "task": name, "steps": steps, "lr": lr, "rule": rule,
                    "before": before.get("loss"), "after": result.metrics["loss"],
                }  # fmt: skip
                rows.append(row)
                print(json.dumps(row), flush=True)
    print(f"\n{'task':22} {'steps':>5} {'lr':>7}  " + "  ".join(f"{rule:>20}" for rule in RULES))
    for task_name, steps, lr in dict.fromkeys((r["task"], r["steps"], r["lr"]) for r in rows):
        means = [
            statistics.mean(
                r["after"] - (r["before"] or 0)
                for r in rows
                if (r["task"], r["steps"], r["lr"], r["rule"]) == (task_name, steps, lr, rule)
            )
            for rule in RULES
        ]
        print(f"{task_name:22} {steps:5} {lr:7.0e}  " + "  ".join(f"{mean:+20.3f}" for mean in means))
    print("held-out loss, nats, mean over the models: on text its change by fine-tuning, on recall the loss itself")
    print("wrote", write_json("warmup", {"rows": rows}))


if __name__ == "__main__":
    main()
