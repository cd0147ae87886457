"""Does a plan say what a run holds on a CPU? Resident memory of every stage, each in its own process, over the plan's.

    python benchmarks/resident.py

A Llama of SmolLM2-135M's shape and a Mamba of 130M's, random weights, are combined, searched, discretized and
fine-tuned for two steps on text. Resident memory is the highest that the process of a stage had (``ru_maxrss``): the
interpreter, the libraries, loading and saving included. Bar: at most 1.2 times what the plan says. Takes about two
minutes of CPU time and 8 GB of disk.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import write_json

BAR = 1.2
ROWS = 49_152
PLANNED = {"combine": "combine", "search": "search", "discretize": "evaluate", "finetune": "finetune"}
"""Stage of a run → row of the plan that covers it."""
RECIPE = """\
name: resident
components: [{name: llama, source: LLAMA}, {name: mamba, source: MAMBA}]
task: {name: text, options: {length: 128, max_bytes: 400000}}
combine: {num_blocks: 2}
align: null
search: {method: darts, steps: 2, batch_size: 4}
discretize: {path: [0, 1]}
finetune: {steps: 2, batch_size: 4, test_examples: 64}
compare: null
"""


def make_parents(folder: Path) -> None:
    """Two checkpoints with one tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig

    from manticore.tasks.corpus import read_corpus
    from manticore.training.tokenizers import train_tokenizer

    shapes = {
        "llama": LlamaConfig(
            vocab_size=ROWS, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
            intermediate_size=1536, max_position_embeddings=2048, tie_word_embeddings=True,
        ),
        "mamba": MambaConfig(vocab_size=ROWS, hidden_size=768, num_hidden_layers=24),
    }  # fmt: skip
    tokenizer = train_tokenizer(read_corpus(max_bytes=200_000), 1024)
    for name, shape in shapes.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        model.config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def run_stage(run: str, name: str) -> None:
    """One stage of a run, and what this process held at most."""
    from manticore.runs.folder import open_run
    from manticore.runs.ledger import write_record
    from manticore.runs.stages import STATE
    from manticore.stages import STAGES
    from manticore.stages.run import Run

    folder = open_run(run)
    stage = next(stage for stage in STAGES if stage.name == name)
    own = folder.path / name
    own.mkdir(exist_ok=True)
    outcome = stage.work(Run(folder), own)
    # as a run does, for later stages
    state = {"status": "finished", "summary": outcome.summary, "results": outcome.results, "seconds": 0}
    write_record(own / STATE, state)
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def planned(run: str) -> dict[str, float]:
    """Row → bytes, as the verb prints them on a machine without an accelerator."""
    from manticore.cli.plan import process_bytes
    from manticore.plan.planner import plan
    from manticore.runs.folder import open_run

    recipe = open_run(run).recipe
    found = plan(recipe, device_memory=1e12, accelerator=False, process_bytes=process_bytes())
    return {stage.name: stage.bytes or 0 for stage in found.stages}


def child(*words: str) -> str:
    """The last line that a fresh process prints."""
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def main() -> int:
    """Print the ratios, write the JSON, and fail where the bar is missed."""
    from manticore.runs.folder import create_run
    from manticore.schema.loading import load_recipe

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child("parents", scratch)
        text = RECIPE.replace("LLAMA", str(folder / "llama")).replace("MAMBA", str(folder / "mamba"))
        (folder / "resident.yaml").write_text(text)
        run = str(create_run(load_recipe(str(folder / "resident.yaml")), str(folder / "run")).path)
        expected = json.loads(child("plan", run))
        rows = {}
        for stage, row in PLANNED.items():
            seen = json.loads(child("stage", run, stage))
            rows[stage] = {"planned": expected[row], "resident": seen, "ratio": seen / expected[row]}
            print(f"{stage}: planned {expected[row] / 1e9:.2f} GB, resident {seen / 1e9:.2f} GB, "
                  f"ratio {rows[stage]['ratio']:.2f}", flush=True)  # fmt: skip
    print(f"written to {write_json('resident', rows)}")
    return 0 if all(row["ratio"] <= BAR for row in rows.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    what, *rest = sys.argv[1:]
    if what == "parents":
        make_parents(Path(rest[0]))
    elif what == "plan":
        print(json.dumps(planned(rest[0])))
    else:
        run_stage(*rest)
