"""plan: what a recipe will train, compute and hold in memory, before anything is spent."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from shlex import join, quote
from typing import Annotated

import typer

from manticore.cli.terminal import console, quiet_libraries, say
from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.quantities import count, duration, flops
from manticore.schema.loading import LoadedRecipe, is_of_designs, load_design, load_recipe
from manticore.schema.recipe import Recipe
from manticore.writing import refuse_existing, write_json

_PIPED_WIDTH = 160


def plan(
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|MODEL... [KEY=VALUE]...",
            help="A recipe, or two and more models: folders with a config.json, or names such as pythia-6.9b. "
            "Values over the recipe's: finetune.trainable=lora",
        ),
    ],
    devices: Annotated[int, typer.Option(help="How many devices share the work.", min=1)] = 1,
    device_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of each: 80GB, 24GiB. Default: this machine's.")
    ] = None,
    flops_per_second: Annotated[
        float | None, typer.Option(help="What each device reaches in training, for the time: 1e14.", min=1.0)
    ] = None,
    measure: Annotated[
        int | None, typer.Option(help="Time so many steps on this machine, for the time; else nothing is run.", min=1)
    ] = None,
    json: Annotated[str | None, typer.Option("--json", help="JSON file to write; must not exist yet.")] = None,
) -> None:
    """Say what a run will cost and whether it fits, from configurations alone: no weights, nothing downloaded.

    Example: manticore plan text --devices 8 --device-memory 80GB

    Example: manticore plan pythia-6.9b mamba-2.8b-hf task.options.length=2048 finetune.trainable=lora
    """
    if json is not None:
        refuse_existing(json)
    if measure is not None and flops_per_second is not None:
        raise ManticoreError("--measure and --flops-per-second are both given. Fix: give one of them")
    names, overrides = [word for word in what if "=" not in word], [word for word in what if "=" in word]
    if len(names) == 1 and is_of_designs(names[0], overrides):
        _plan_study(names[0], overrides, flops_per_second, measure, json)
        return
    loaded = _load(names, overrides)
    quiet_libraries()
    from manticore.plan.fit import parse_bytes
    from manticore.plan.planner import plan as make_plan
    from manticore.plan.table import render_plan

    memory = parse_bytes(device_memory) if device_memory is not None else None
    # imports leave many objects that every collection would look at again
    gc.freeze()
    room = float(memory if memory is not None else _own_memory())
    if measure is not None:
        from manticore.plan.speed import measured_flops_per_second

        flops_per_second = measured_flops_per_second(loaded.recipe, measure, _own_memory())
    found = make_plan(
        loaded.recipe,
        devices=devices,
        device_memory=room,
        flops_per_second=flops_per_second,
        # whoever names a device's memory means another machine's
        accelerator=True if memory is not None else None,
        process_bytes=process_bytes() if memory is None else 0,
    )
    for part in render_plan(found):
        console.print(part, width=None if console.is_terminal else _PIPED_WIDTH)
    if json is not None:
        write_json(expanded(json), found.to_dict())
        say(f"wrote {json}")
    if not found.runnable:
        say(f"next: change that, then {join(['manticore', 'plan', *names, *overrides])}")
    elif len(names) == 1:
        say(f"next: {join(['manticore', 'run', *names, *overrides])}")
    else:
        task = "text" if found.task.vocab_size is None else found.task.name
        say(f"next: manticore combine {' '.join(map(quote, names))} -o hybrid   # then align, search … --task {task}")


def _plan_study(
    name: str, overrides: list[str], flops_per_second: float | None, measure: int | None, json: str | None
) -> None:
    """What an architecture search will cost."""
    recipe = load_design(name, overrides).recipe
    quiet_libraries()
    from manticore.plan.designs import plan_study

    found = plan_study(recipe, flops_per_second=flops_per_second, measure=measure)
    seeds = "" if found.repeats == 1 else f", {found.repeats} trainings each"
    say(f"{found.name}: at most {found.trials} of {count(found.designs)} designs{seeds}, {found.baselines} baselines")
    say(f"  each reads {found.tokens:,} tokens of text" if found.tokens else "  none is trained on text")
    for what, (least, median, most), shown in (
        ("parameters of a design", found.parameters, count),
        ("training of a design", found.flops_of_one, flops),
    ):
        say(f"  {what}: {shown(median)} ({shown(least)} to {shown(most)})")
    time = "" if found.seconds is None else f", about {duration(found.seconds)} on {found.workers} workers"
    say(f"  all trainings: {flops(found.flops)}{time}")
    if found.seconds is None:
        say("  for the time: --measure 20, or --flops-per-second")
    if json is not None:
        write_json(expanded(json), found.to_dict())
        say(f"wrote {json}")
    say(f"next: {join(['manticore', 'design', name, *overrides])}")


def _load(names: list[str], overrides: list[str]) -> LoadedRecipe | _Given:
    if not names:
        raise ManticoreError("plan: no recipe and no models. Fix: manticore plan quickstart")
    if len(names) == 1:
        return load_recipe(names[0], overrides)
    return _Given(names, overrides)


class _Given:
    """Models on the command line, as a recipe with the default of everything else; the task is text."""

    def __init__(self, names: list[str], overrides: list[str]) -> None:
        import json
        import tempfile

        taken: list[str] = []
        for name in names:
            short = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(name).name).lstrip("._-") or "model"
            taken.append(short if short not in taken else f"{short}-{len(taken)}")
        components = [{"name": short, "source": name} for short, name in zip(taken, names)]
        recipe = {"name": "plan", "components": components, "task": {"name": "text"}}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "models.yaml"
            # JSON is YAML
            file.write_text(json.dumps(recipe), encoding="utf-8")
            self.recipe: Recipe = load_recipe(str(file), overrides).recipe


def process_bytes() -> int:
    """What this process holds after its imports, where a model would share its memory: as much as a run's holds."""
    import torch

    statm = Path("/proc/self/statm")
    if torch.accelerator.is_available() or not statm.is_file():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _own_memory() -> int:
    """Bytes of this machine's accelerator, or of the machine."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
