"""Which families can be components, and what always holds for hybrids of them: differences that have to be 0.0.

    python benchmarks/families.py            # about four minutes on one core
    python benchmarks/families.py --quick

Configurations: random models of a few layers, one per family and more with the multipliers, windows, rotary embeddings
and flags of real checkpoints, each paired with a tiny Mamba (or GPT-Neo), three blocks. The largest difference of any
logit between the component's own forward and the hybrid at its vertex, on CPU in float32; then between hybrids at
random weights and what a new process loads ("reloaded": the supernet, "discretized"). "unpadded" compares left-padded
rows with the same rows alone, "cached" a left-padded prompt and single tokens after it with one pass, beyond windows
and switches: the largest difference over fresh, reloaded and discretized, relative to the largest logit, within
``ROUNDING``. Where "padded" is a dash the family's own forward leaks padding, and the hybrid does not.

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
import copy
import json
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
from tiny_variants import REFUSED_VARIANTS, VARIANTS, variant
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

import manticore
from manticore.components.runner import Runner
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

MIXINGS = ("translated", "routed", "gated")
BLOCKS = 3
TOLERANCE = 2e-6
ROUNDING = 1e-5
QUICK = ("gpt2", "gpt_neo", "opt", "mistral", "jamba", "zamba2", "mamba, biases", "phi3, longrope")
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
# longer than the tiny models' windows, chunks and convolutions; the prompt is beyond every switch, padding left out
BATCH, TOKENS, PADDING, PROMPT = 2, 13, 3, 10


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
    # a runner keeps padding out of its model, which here is what is compared with
    if Runner(copy.deepcopy(model)).accepts_positions:
        yield (
            "left-padded, positions",
            {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions},
        )


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference of any logit, relative to the largest."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def steadiness(hybrid: ManticoreForCausalLM) -> dict[str, float]:
    """How much padding and a cache change, relative to the largest logit."""
    input_ids, mask, positions = inputs()
    padded = hybrid(input_ids, attention_mask=mask, position_ids=positions).logits
    alone = hybrid(input_ids[:1, PADDING:]).logits
    cache, pieces = hybrid.new_cache(), []
    for start, stop in [(0, PROMPT), *((i, i + 1) for i in range(PROMPT, TOKENS))]:
        pieces.append(
            hybrid(
                input_ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=positions[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            ).logits
        )
    decoded = torch.cat(pieces, 1)
    return {
        "unpadded": relative(padded[:1, PADDING:], alone),
        "cached": max(relative(decoded[1:], padded[1:]), relative(decoded[:1, PADDING:], padded[:1, PADDING:])),
    }


@torch.no_grad()
def leaks(model: PreTrainedModel) -> bool:
    """Whether padding changes what the model itself computes for the tokens after it."""
    input_ids, mask, positions = inputs()
    given = {"position_ids": positions} if Runner(copy.deepcopy(model)).accepts_positions else {}
    padded = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **given).logits[:1, PADDING:]
    return relative(padded, model(input_ids=input_ids[:1, PADDING:], use_cache=False).logits) > ROUNDING


@torch.no_grad()
def vertex_differences(hybrid: ManticoreForCausalLM, k: int, model: PreTrainedModel) -> dict[str, float]:
    """Largest difference of any logit between ``model`` and the hybrid at the vertex of component k, per setting."""
    hybrid.set_mixture_weights([k] * hybrid.config.num_blocks)
    leaky = leaks(model)
    return {
        name: float((hybrid(**given).logits - model(use_cache=False, **given).logits).abs().max())
        for name, given in settings(model)
        if name == "plain" or not leaky
    }


def random_weights(rows: int, columns: int, seed: int) -> Tensor:
    """``[rows, columns]`` on the simplex, no two alike."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@torch.no_grad()
def save_with_logits(hybrid: ManticoreForCausalLM, path: list[int], folder: Path) -> dict[str, dict[str, float]]:
    """Save the supernet, at random weights and with random projectors, and the discretized hybrid if there can be one.

    Beside them lie their logits. Random, since projectors that are lost on the way would not show as identities.
    Returns the :func:`steadiness` of each.
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
    return {name: steadiness(each) for name, each in hybrids.items()}


def family_row(name: str, root: Path) -> dict[str, Any]:
    """One configuration beside a tiny Mamba, or beside a GPT-Neo if it is a Mamba; leaves hybrids in ``root``."""
    start = time.perf_counter()
    model = variant(name)
    family = model.config.model_type
    partner = tiny_model("gpt_neo" if family == "mamba" else "mamba", seed=1)
    hybrid = manticore.combine([model, partner], num_blocks=BLOCKS)
    differences = vertex_differences(hybrid, 0, model)
    steady = {"vertex": steadiness(hybrid), **save_with_logits(hybrid, [0, 1, 0], root / folder_of(name))}
    return {
        "configuration": name,
        "family": family,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
        "differences": differences,
        "steadiness": steady,
        "one_token_at_a_time": hybrid.config.one_token_at_a_time[0],
        "discretizes": "discretized" in steady,
        "seconds": round(time.perf_counter() - start, 2),
    }


def folder_of(name: str) -> str:
    """The name of a configuration as that of a folder."""
    return name.replace(" ", "-").replace(",", "")


def refused_row(family: str) -> dict[str, Any]:
    """The reason for which a family is not a component, or None if it was taken."""
    if family == "t5":
        shape = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_heads=4)
        model: PreTrainedModel = T5ForConditionalGeneration(shape)
    else:
        model = variant(family)
    try:
        manticore.combine([model, tiny_model("mamba")], num_blocks=BLOCKS)
    except ManticoreError as error:
        return {"configuration": family, "reason": str(error)}
    return {"configuration": family, "reason": None}


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
def reload_differences(root: Path) -> dict[str, dict[str, float]]:
    """Load every hybrid under ``root``, compare with the logits beside it (runs in the new process)."""
    input_ids, mask, _ = inputs()
    found = {}
    for path in sorted(root.rglob("logits.pt")):
        for name, logits in torch.load(path, weights_only=True).items():
            loaded = AutoModelForCausalLM.from_pretrained(path.parent / name)
            difference = (loaded(input_ids, attention_mask=mask).logits - logits).abs().max()
            found[f"{path.parent.relative_to(root)}/{name}"] = {"logits": float(difference), **steadiness(loaded)}
    return found


def reload_in_new_process(root: Path) -> dict[str, dict[str, float]]:
    """:func:`reload_differences` from a fresh interpreter: ``family/name`` or ``pair/mixing/name`` → difference."""
    command = [sys.executable, __file__, "--reload", str(root)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


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
    names = QUICK if quick else (*FAMILIES, *VARIANTS)
    pairs = PAIRS[:2] if quick else PAIRS
    rows, refused, pair_rows = [], [], []
    with Console().status("families") as status, tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in names:
            status.update(f"configuration {name}")
            try:
                rows.append(family_row(name, root))
            except ManticoreError as error:
                refused.append({"configuration": name, "reason": str(error), "expected": False})
        for family in ("t5", *REFUSED, *REFUSED_VARIANTS):
            status.update(f"family {family}")
            refused.append(refused_row(family))
        for names in pairs:
            for mixing in MIXINGS:
                status.update(f"pair {'+'.join(names)}, {mixing}")
                pair_rows.append(pair_row(names, mixing, root))
        status.update("a new process loads all hybrids")
        reloaded = reload_in_new_process(root)
    for row in rows:
        row["reloaded"] = {}
        for key in ("supernet", "discretized")[: 1 + row["discretizes"]]:
            found = reloaded[f"{folder_of(row['configuration'])}/{key}"]
            row["reloaded"][key] = found.pop("logits")
            row["steadiness"][f"{key}, reloaded"] = found
    for row in pair_rows:
        where = f"{row['pair']}/{row['mixing']}"
        row["reloaded"] = {key: reloaded[f"{where}/{key}"]["logits"] for key in ("supernet", "discretized")}
    return {
        "tolerance_of_copies": TOLERANCE,
        "rounding": ROUNDING,
        "configurations": rows,
        "refused": refused,
        "pairs": pair_rows,
        "seconds": round(time.perf_counter() - start, 1),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = [
        f"{row['configuration']}, {name}: {value:.2g}"
        for row in figures["configurations"]
        for name, value in {**row["differences"], **row["reloaded"]}.items()
        if value != 0.0
    ]
    found += [
        f"{row['configuration']}, {where}, {name}: {value:.2g} of the largest logit"
        for row in figures["configurations"]
        for where, values in row["steadiness"].items()
        for name, value in values.items()
        if not value <= ROUNDING
    ]
    for row in figures["refused"]:
        if row["reason"] is None:
            found.append(f"{row['configuration']}: not refused")
        elif not row.get("expected", True):
            found.append(f"{row['configuration']}: refused: {row['reason']}")
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
    columns = (
        *("configuration", "layers", "width", "plain", "padded", "+ positions", "reloaded", "discretized"),
        *("unpadded", "cached", "seconds"),
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "configuration" else "right")
    for row in figures["configurations"]:
        differences = row["differences"]
        table.add_row(
            row["configuration"],
            str(row["layers"]),
            str(row["width"]),
            str(differences["plain"]),
            str(differences.get("left-padded", "-")),
            str(differences.get("left-padded, positions", "-")),
            str(row["reloaded"]["supernet"]),
            str(row["reloaded"].get("discretized", "refused")),
            *(f"{max(values[name] for values in row['steadiness'].values()):.0e}" for name in ("unpadded", "cached")),
            f"{row['seconds']:.2f}",
        )
    console.print(table)
    table = Table(title="Refused", title_justify="left")
    table.add_column("configuration")
    table.add_column("reason")
    for row in figures["refused"]:
        table.add_row(row["configuration"], row["reason"] or "NOT REFUSED")
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
    parser.add_argument("--quick", action="store_true", help="eight configurations, two pairs; writes no results")
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if arguments.reload:
        sys.stdout.write(f"\n{json.dumps(reload_differences(arguments.reload))}\n")
        return 0
    console = Console()
    figures = measure(arguments.quick)
    show(figures, console)
    found = faults(figures)
    for fault in found:
        console.print(f"[red]{fault}[/red]")
    counts = f"{len(figures['configurations'])} configurations, {len(figures['pairs'])} hybrids"
    console.print(f"{counts}, {len(found)} faults, {figures['seconds']:.0f} s")
    if not arguments.quick:
        console.print(f"wrote {write_json('families', figures)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
