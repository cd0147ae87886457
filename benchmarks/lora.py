"""Which linear maps can carry a low-rank update, measured map by map, and whether ``lora_targets`` picks only those.

    python benchmarks/lora.py            # two minutes on one core
    python benchmarks/lora.py --quick

Models: a random one of every family that can be a component, and a stack of every kind of layer. On each kind of
linear map inside a decoder layer (per owner class and name) an update that is not zero is put alone. It is active if
the logits change in evaluation, in training, and in a step of one token on a cache that was filled without it; it
merges if the merged model's logits are the unmerged one's, with and without the cache. Both are told in units of the
largest change: up to ``INACTIVE`` a change is none, up to ``TOLERANCE`` a distance to the merged model is rounding.

Then all of ``lora_targets`` at once: every update gets a gradient, and the merged model is the unmerged one, by the
scan of transformers and by this package's. A map that is safe here and yet refused is one that another branch (fused
kernels on a GPU) reads past its module.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from measure import write_json
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.table import Table
from tiny_families import FAMILIES, VOCABULARY, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import manticore
from manticore.components.adapters import remove_adapters, unsafe_maps
from manticore.components.cache_argument import cache_argument, cache_in
from manticore.components.runner import Runner
from manticore.kernels.mamba import fast_scan
from manticore.registry import entries
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM

TOLERANCE, INACTIVE = 1e-2, 1e-3
BATCH, TOKENS = 2, 12
QUICK = ("gpt2", "llama", "mamba", "mamba2", "jamba", "zamba2")


class Box(nn.Module):
    """Hides a model's configuration from peft, which refuses some maps by family."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model


def put_updates(model: PreTrainedModel, names: list[str]) -> None:
    """Low-rank updates that are not zero beside the maps ``names``; nobody is asked whether that is safe."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=[f"model.{name}" for name in names])
    inject_adapter_in_model(config, Box(model))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for maps in (*module.lora_A.values(), *module.lora_B.values()):
                nn.init.normal_(maps.weight)


def cached_prompt(model: PreTrainedModel, ids: Tensor) -> dict[str, Any]:
    """The cache after ``ids``, under the argument name of the family."""
    output = model(input_ids=ids, use_cache=True)
    return {cache_argument(type(model).forward): cache_in(output)}


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor, cache: dict[str, Any]) -> dict[str, Tensor]:
    """In evaluation, in training (same dropout), and of one token on a copy of ``cache``."""
    found = {"eval": model.eval()(input_ids=ids, use_cache=False).logits}
    torch.manual_seed(2)
    found["train"] = model.train()(input_ids=ids, use_cache=False).logits
    model.eval()
    found["step"] = model(input_ids=ids[:, -1:], use_cache=True, **copy.deepcopy(cache)).logits
    return found


def largest(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of any logit, per way of running."""
    return {way: float((a[way] - b[way]).abs().max()) for way in a}


def faults_of(changed: dict[str, float], unmerged: dict[str, float]) -> list[str]:
    """What is wrong with an update that changes logits by ``changed`` and is ``unmerged`` away from its merged self."""
    scale = max(*changed.values(), *unmerged.values(), 1e-12)
    inactive = [f"inactive in {way}" for way, value in changed.items() if value <= INACTIVE * scale]
    apart = [f"merged differs in {way}" for way, value in unmerged.items() if value > TOLERANCE * scale]
    return inactive + apart


def measure_updates(model: PreTrainedModel, names: list[str], ids: Tensor, scan: Callable[[Any], Any]) -> list[str]:
    """Faults of updates on ``names`` together; the model is left untouched."""
    model = copy.deepcopy(model)
    with scan(model):
        with torch.no_grad():
            cache = cached_prompt(model.eval(), ids[:, :-1])
        before = logits(model, ids, cache)
        put_updates(model, names)
        unmerged = logits(model, ids, cache)
        remove_adapters(model, merge=True)
        merged = logits(model, ids, cache)
    return faults_of(largest(unmerged, before), largest(merged, unmerged))


def without_gradient(model: PreTrainedModel, names: list[str], ids: Tensor) -> list[str]:
    """Maps whose update gets no gradient."""
    model = copy.deepcopy(model)
    put_updates(model, names)
    model.train()(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    return [
        name
        for name, parameter in model.named_parameters()
        if "lora_" in name and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]


def linear_maps(model: PreTrainedModel) -> dict[tuple[str, str], list[str]]:
    """(owner class, name) → full names of the linear maps inside decoder layers."""
    modules = dict(model.named_modules())
    inside = {id(module) for layer in Runner(model).layers for module in layer.modules()}
    kinds: dict[tuple[str, str], list[str]] = {}
    for name, module in modules.items():
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside:
            owner, _, leaf = name.rpartition(".")
            kinds.setdefault((type(modules[owner]).__name__, leaf), []).append(name)
    return kinds


def row(name: str, model: PreTrainedModel) -> dict[str, Any]:
    """What was measured on one model."""
    start = time.perf_counter()
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    picked, refused = manticore.lora_targets(model), unsafe_maps(model)
    maps = []
    for (owner, leaf), names in linear_maps(model).items():
        maps.append(
            {
                "owner": owner,
                "map": leaf,
                "count": len(names),
                "picked": sum(each in picked for each in names),
                "faults": measure_updates(model, names[:1], ids, nullcontext),
                "refused": refused.get(names[0]),
            }
        )
    return {
        "model": name,
        "maps": maps,
        "together": measure_updates(model, picked, ids, nullcontext),
        "together_fast_scan": measure_updates(model, picked, ids, fast_scan),
        "without_gradient": without_gradient(model, picked, ids),
        "seconds": round(time.perf_counter() - start, 2),
    }


def stack(layer: str) -> PreTrainedModel:
    """Two layers of one kind; their widths suit every option's default."""
    torch.manual_seed(0)
    config = StackConfig(layers=[layer] * 2, vocab_size=VOCABULARY, hidden_size=64, max_position_embeddings=64)
    model = StackForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # maps that start at zero would hide what lies behind them
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def measure(quick: bool, status: Any) -> dict[str, Any]:
    """All rows."""
    start = time.perf_counter()
    rows = []
    for family in QUICK if quick else FAMILIES:
        status.update(f"family {family}")
        rows.append(row(family, tiny_model(family)))
    skipped = []
    for layer in ("mamba", "mlp") if quick else entries("layer"):
        status.update(f"layer {layer}")
        try:
            rows.append(row(f"stack of {layer}", stack(layer)))
        except manticore.ManticoreError as error:
            skipped.append({"layer": layer, "reason": str(error)})
    return {
        "tolerance": TOLERANCE,
        "rows": rows,
        "without_targets": skipped,
        "seconds": round(time.perf_counter() - start, 1),
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    found = []
    for each in figures["rows"]:
        for kind in each["maps"]:
            where = f"{each['model']}, {kind['owner']}.{kind['map']}"
            if kind["faults"] and kind["picked"]:
                found.append(f"{where}: picked, but {', '.join(kind['faults'])}")
            if kind["faults"] and not kind["refused"]:
                found.append(f"{where}: not refused, but {', '.join(kind['faults'])}")
        for check in ("together", "together_fast_scan", "without_gradient"):
            found += [f"{each['model']}, all targets: {fault} ({check})" for fault in each[check]]
    return found


def counts(each: dict[str, Any]) -> dict[str, int]:
    """Maps of one model: safe and picked, safe but refused, unsafe."""
    maps = each["maps"]
    return {
        "picked": sum(kind["picked"] for kind in maps),
        "left": sum(kind["count"] - kind["picked"] for kind in maps if not kind["faults"]),
        "unsafe": sum(kind["count"] for kind in maps if kind["faults"]),
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """The tables: a line per model, then the maps that are not picked."""
    table = Table(title="Linear maps in decoder layers, by lora_targets", title_justify="left")
    for column in ("model", "picked", "safe here, left out", "unsafe", "seconds"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for each in figures["rows"]:
        found = counts(each)
        table.add_row(
            each["model"], str(found["picked"]), str(found["left"]), str(found["unsafe"]), f"{each['seconds']:.2f}"
        )
    console.print(table)
    table = Table(title="Maps that are left out", title_justify="left")
    for column in ("model", "map", "measured", "refused because"):
        table.add_column(column, overflow="fold")
    for each in figures["rows"]:
        for kind in each["maps"]:
            if kind["picked"] < kind["count"]:
                measured = ", ".join(kind["faults"]) or "safe here"
                table.add_row(each["model"], kind["map"], measured, kind["refused"] or "-")
    console.print(table)
    for each in figures["without_targets"]:
        console.print(f"{each['layer']}: {each['reason']}")


def main() -> int:
    """0 if every number is as it must be, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six families, two layers; writes no results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    console = Console()
    with console.status("families") as status:
        figures = measure(arguments.quick, status)
    show(figures, console)
    found = faults(figures)
    for fault in found:
        console.print(f"[red]{fault}[/red]")
    console.print(f"{len(figures['rows'])} models, {len(found)} faults, {figures['seconds']:.0f} s")
    if not arguments.quick:
        console.print(f"wrote {write_json('lora', figures)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
