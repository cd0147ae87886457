"""Which families can be components, and what always holds for hybrids of them: differences that have to be 0.0.

    python benchmarks/families.py            # about a minute on one core
    python benchmarks/families.py --quick

Families: random models of a few layers, each paired with a tiny Mamba (or GPT-Neo), three blocks; the largest
difference of any logit between the component's own forward and the hybrid at its vertex, on CPU in float32; then
between hybrids at random weights and what a new process loads ("reloaded": the supernet, "discretized").

Pairs, under each mixing:

1. at a vertex the hybrid's logits are the component's own (plain and left-padded);
2. three copies of a component with shared embeddings and identity projectors are the single one, at random weights
   (within ``TOLERANCE`` of the largest logit: sums of rounded products);
3. mixture weights sum to 1 and come back unchanged from save, load, discretize, save, load;
5. a new process that loads the supernet or the discretized hybrid computes the same logits.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import write_json
from rich.console import Console
from rich.table import Table
from tiny_families import FAMILIES, REFUSED, VOCABULARY, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

import manticore
from manticore.components.runner import Runner
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

MIXINGS = ("translated", "routed", "gated")
BLOCKS = 3
TOLERANCE = 2e-6
QUICK_FAMILIES = ("gpt2", "gpt_neo", "opt", "llama", "mistral", "mamba", "jamba", "zamba2")
PAIRS = (
    ("gpt_neo", "mamba"),
    ("gpt_neox", "mamba2"),
    ("llama", "falcon_mamba"),
    ("gpt2", "lfm2"),
    ("opt", "jamba"),
    ("gemma2", "bamba"),
    ("mistral", "qwen3_next"),
    ("bloom", "falcon_h1"),
)
# longer than the tiny models' windows, chunks and convolutions
BATCH, TOKENS, PADDING = 2, 11, 3


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Random ids, a mask that pads one sequence on the left, and the positions that follow from it: ``[B, T]`` each."""
    input_ids = torch.randint(3, VOCABULARY, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[0, :PADDING] = 0
    return input_ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


def settings(model: PreTrainedModel) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Plain, left-padded, and left-padded with positions where the family takes them."""
    input_ids, mask, positions = inputs()
    yield "plain", {"input_ids": input_ids}
    yield "left-padded", {"input_ids": input_ids, "attention_mask": mask}
    if Runner(model).accepts_positions:
        yield (
            "left-padded, positions",
            {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions},
        )


@torch.no_grad()
def vertex_differences(hybrid: ManticoreForCausalLM, k: int, model: PreTrainedModel) -> dict[str, float]:
    """Largest difference of any logit between ``model`` and the hybrid at the vertex of component k, per setting."""
    hybrid.set_mixture_weights([k] * hybrid.config.num_blocks)
    return {
        name: float((hybrid(**given).logits - model(use_cache=False, **given).logits).abs().max())
        for name, given in settings(model)
    }


def random_weights(rows: int, columns: int, seed: int) -> Tensor:
    """``[rows, columns]`` on the simplex, no two alike."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@torch.no_grad()
def save_with_logits(hybrid: ManticoreForCausalLM, path: list[int], folder: Path) -> bool:
    """Save the supernet, at random weights and with random projectors, and the discretized hybrid if there can be one.

    Beside them lie their logits. Random, since projectors that are lost on the way would not show as identities.
    """
    hybrid.set_mixture_weights(random_weights(BLOCKS, hybrid.config.num_components, seed=5))
    for seed, parameter in enumerate(hybrid.mixing.projectors.parameters()):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    hybrids = {"supernet": hybrid}
    with contextlib.suppress(ManticoreError):
        hybrids["discretized"] = manticore.discretize(hybrid, path)
    input_ids, mask, _ = inputs()
    for name, each in hybrids.items():
        each.save_pretrained(folder / name)
    logits = {name: each(input_ids, attention_mask=mask).logits for name, each in hybrids.items()}
    torch.save(logits, folder / "logits.pt")
    return "discretized" in hybrids


def family_row(family: str, root: Path) -> dict[str, Any]:
    """One family beside a tiny Mamba, or beside a GPT-Neo if it is a Mamba; leaves hybrids in ``root``."""
    start = time.perf_counter()
    model = tiny_model(family)
    partner = tiny_model("gpt_neo" if family == "mamba" else "mamba", seed=1)
    hybrid = manticore.combine([model, partner], num_blocks=BLOCKS)
    return {
        "family": family,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "differences": vertex_differences(hybrid, 0, model),
        "one_token_at_a_time": hybrid.config.one_token_at_a_time[0],
        "discretizes": save_with_logits(hybrid, [0, 1, 0], root / family),
        "seconds": round(time.perf_counter() - start, 2),
    }


def refused_row(family: str) -> dict[str, Any]:
    """The reason for which a family is no component, or None if it was taken."""
    if family == "t5":
        shape = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4)
        model: PreTrainedModel = T5ForConditionalGeneration(shape)
    else:
        model = tiny_model(family)
    try:
        manticore.combine([model, tiny_model("mamba")], num_blocks=BLOCKS)
    except ManticoreError as error:
        return {"family": family, "reason": str(error)}
    return {"family": family, "reason": None}


@torch.no_grad()
def copies_difference(model: PreTrainedModel, mixing: str) -> float:
    """Three copies of ``model`` at random weights against the single one, relative to the largest logit."""
    hybrid = manticore.combine([model] * 3, num_blocks=BLOCKS, mixing=mixing, check=False)
    for seed, parameter in enumerate(hybrid.mixing.mixture_parameters()):
        rows = parameter.numel() // parameter.shape[-1]
        parameter.copy_(random_weights(rows, parameter.shape[-1], seed).view_as(parameter))
    worst = 0.0
    for _, given in settings(model):
        own = model(use_cache=False, **given).logits
        worst = max(worst, float((hybrid(**given).logits - own).abs().max() / own.abs().max()))
    return worst


@torch.no_grad()
def weights_survive(before: Tensor, folder: Path) -> bool:
    """Whether the supernet's weights are the same to the bit after load, discretize, save and load."""
    loaded = AutoModelForCausalLM.from_pretrained(folder / "supernet")
    small = manticore.discretize(loaded, [1, 0, 1])
    small.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again")
    sums = before.double().sum(-1)
    return bool(
        torch.allclose(sums, torch.ones_like(sums), atol=1e-6)
        and torch.equal(loaded.mixture_weights, before)
        and torch.equal(torch.tensor(small.config.searched_weights), before)
        and torch.equal(torch.tensor(again.config.searched_weights), before)
        and again.mixture_weights.argmax(-1).tolist() == [1, 0, 1]
    )


@torch.no_grad()
def reload_differences(root: Path) -> dict[str, float]:
    """Load every hybrid under ``root`` and compare with the logits beside it (runs in the new process)."""
    input_ids, mask, _ = inputs()
    found = {}
    for path in sorted(root.rglob("logits.pt")):
        for name, logits in torch.load(path, weights_only=True).items():
            loaded = AutoModelForCausalLM.from_pretrained(path.parent / name)
            difference = (loaded(input_ids, attention_mask=mask).logits - logits).abs().max()
            found[f"{path.parent.relative_to(root)}/{name}"] = float(difference)
    return found


def reload_in_new_process(root: Path) -> dict[str, float]:
    """:func:`reload_differences` from a fresh interpreter: ``family/name`` or ``pair/mixing/name`` → difference."""
    command = [sys.executable, __file__, "--reload", str(root)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: float(value) for name, value in (line.split("\t") for line in output.splitlines())}


def pair_row(names: tuple[str, str], mixing: str, root: Path) -> dict[str, Any]:
    """Invariants 1 to 3 of one pair; files for invariant 5."""
    models = [tiny_model(name, seed=k) for k, name in enumerate(names)]
    hybrid = manticore.combine(models, num_blocks=BLOCKS, mixing=mixing)
    vertex = max(max(vertex_differences(hybrid, k, model).values()) for k, model in enumerate(models))
    folder = root / "+".join(names) / mixing
    save_with_logits(hybrid, [1, 0, 1], folder)
    return {
        "pair": "+".join(names),
        "mixing": mixing,
        "vertex": vertex,
        "copies": max(copies_difference(model, mixing) for model in models),
        "weights_survive": weights_survive(hybrid.mixture_weights, folder),
    }


def measure(quick: bool) -> dict[str, Any]:
    """All rows."""
    start = time.perf_counter()
    families = QUICK_FAMILIES if quick else tuple(FAMILIES)
    pairs = PAIRS[:2] if quick else PAIRS
    rows, refused, pair_rows = [], [], []
    with Console().status("families") as status, tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for family in families:
            status.update(f"family {family}")
            rows.append(family_row(family, root))
        for family in ("t5", *REFUSED):
            status.update(f"family {family}")
            refused.append(refused_row(family))
        for names in pairs:
            for mixing in MIXINGS:
                status.update(f"pair {'+'.join(names)}, {mixing}")
                pair_rows.append(pair_row(names, mixing, root))
        status.update("a new process loads all hybrids")
        reloaded = reload_in_new_process(root)
    for row in rows:
        row["reloaded"] = {
            key: reloaded[f"{row['family']}/{key}"] for key in ("supernet", "discretized")[: 1 + row["discretizes"]]
        }
    for row in pair_rows:
        where = f"{row['pair']}/{row['mixing']}"
        row["reloaded"] = {key: reloaded[f"{where}/{key}"] for key in ("supernet", "discretized")}
    return {
        "tolerance_of_copies": TOLERANCE,
        "families": rows,
        "refused": refused,
        "pairs": pair_rows,
        "seconds": round(time.perf_counter() - start, 1),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = [
        f"{row['family']}, {name}: {value:.2g}"
        for row in figures["families"]
        for name, value in {**row["differences"], **row["reloaded"]}.items()
        if value != 0.0
    ]
    found += [f"{row['family']}: not refused" for row in figures["refused"] if row["reason"] is None]
    for row in figures["pairs"]:
        where = f"{row['pair']}, {row['mixing']}"
        found += [
            f"{where}, {name}: {value:.2g}"
            for name, value in {"vertex": row["vertex"], **row["reloaded"]}.items()
            if value != 0.0
        ]
        if not row["copies"] <= TOLERANCE:
            found.append(f"{where}, copies: {row['copies']:.2g} of the largest logit")
        if not row["weights_survive"]:
            found.append(f"{where}: mixture weights changed")
    return found


def show(figures: dict[str, Any], console: Console) -> None:
    """The three tables."""
    table = Table(title="Component against hybrid at its vertex: largest difference of any logit", title_justify="left")
    columns = ("family", "layers", "width", "plain", "padded", "+ positions", "reloaded", "discretized", "seconds")
    for column in columns:
        table.add_column(column, justify="left" if column == "family" else "right")
    for row in figures["families"]:
        differences = row["differences"]
        table.add_row(
            row["family"],
            str(row["layers"]),
            str(row["width"]),
            str(differences["plain"]),
            str(differences["left-padded"]),
            str(differences.get("left-padded, positions", "-")),
            str(row["reloaded"]["supernet"]),
            str(row["reloaded"].get("discretized", "refused")),
            f"{row['seconds']:.2f}",
        )
    console.print(table)
    table = Table(title="Refused", title_justify="left")
    table.add_column("family")
    table.add_column("reason")
    for row in figures["refused"]:
        table.add_row(row["family"], row["reason"] or "NOT REFUSED")
    console.print(table)
    table = Table(
        title=f"Pairs: 1 vertex, 2 copies (within {TOLERANCE:g} of the largest logit), 3 weights, 5 new process",
        title_justify="left",
    )
    for column in ("pair", "mixing", "1 vertex", "2 copies", "3 weights", "5 supernet", "5 discretized"):
        table.add_column(column, justify="left" if column in ("pair", "mixing") else "right")
    for row in figures["pairs"]:
        table.add_row(
            row["pair"],
            row["mixing"],
            str(row["vertex"]),
            f"{row['copies']:.1e}",
            "unchanged" if row["weights_survive"] else "CHANGED",
            str(row["reloaded"]["supernet"]),
            str(row["reloaded"]["discretized"]),
        )
    console.print(table)


def main() -> int:
    """0 if every number is as it must be, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="eight families, two pairs; writes no results")
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.reload:
        for name, difference in reload_differences(arguments.reload).items():
            sys.stdout.write(f"{name}\t{difference}\n")
        return 0
    console = Console()
    figures = measure(arguments.quick)
    show(figures, console)
    found = faults(figures)
    for fault in found:
        console.print(f"[red]{fault}[/red]")
    counts = f"{len(figures['families'])} families, {len(figures['pairs'])} hybrids"
    console.print(f"{counts}, {len(found)} faults, {figures['seconds']:.0f} s")
    if not arguments.quick:
        console.print(f"wrote {write_json('families', figures)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
