"""A plan as tables for a terminal or a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from manticore.plan.dropping import Dropping
from manticore.plan.fit import RESERVED
from manticore.plan.planner import Plan
from manticore.quantities import MISSING, count, duration, flops


def _size(value: float | None) -> str:
    """Bytes with decimal prefixes, as devices are sold."""
    return MISSING if value is None else f"{count(value)}B"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in _WORDS else "right", overflow="fold")
    return table


_WORDS = ("from", "family", "what", "segments", "fits")


def render_plan(plan: Plan) -> Iterator[Table | Text]:
    """The parts, one after the other."""
    components = _table("Components", "name", "from", "family", "parameters", "layers", "width", "rows", "segments")
    for c in plan.components:
        segments = "+".join(map(str, c.segments))
        row = (f"{c.parameters:,}", str(c.layers), str(c.width), f"{c.vocab_size:,}", segments)
        components.add_row(c.name, c.origin, c.family, *row)
    yield components
    projectors = Counter(plan.projectors)
    shown = "\n             ".join(f"{n} × {name} ({count(size)})" for (name, size), n in projectors.items()) or "none"
    vocabulary = "the components'" if plan.task.vocab_size is None else f"{plan.task.vocab_size} rows"
    names = [c.name for c in plan.components]
    lines = [
        f"hybrid       {plan.num_blocks} blocks, {plan.mixing}, output {plan.output}",
        f"projectors   {shown}",
        f"parameters   {plan.parameters['supernet']:,}: supernet",
        *(f"             {plan.parameters[end]:,}: {end} path, {_path(plan.paths[end], names)}" for end in plan.paths),
        f"tokenizers   {plan.tokenizers}",
        f"task         {plan.task.name}: examples of {plan.task.length:,} tokens, vocabulary: {vocabulary}",
    ]
    yield Text("\n".join(lines))
    stages = _table(
        f"Stages, {plan.devices} × {_size(plan.device_memory)}",
        *("stage", "trained", "FLOP/step", "steps", "FLOP in all", "per device", "fits", "what"),
    )
    for stage in plan.stages:
        stages.add_row(
            stage.name, count(stage.trained), flops(stage.step_flops).removesuffix("FLOP"),
            MISSING if stage.steps is None else f"{stage.steps:,}",
            flops(stage.flops).removesuffix("FLOP"), _size(stage.bytes),
            "no" if stage.verdict.startswith("does not") else "yes", stage.what,
        )  # fmt: skip
    stages.add_row("all", "", "", "", flops(plan.flops).removesuffix("FLOP"), "", "")
    yield stages
    for name in ("search", "finetune"):
        if name not in plan.fits:
            continue
        columns = ("setting", "FLOP/step", "data parallel", "sharded", "fits", "least devices")
        table = _table(f"Per device, {name}", *columns)
        for f in plan.fits[name]:
            table.add_row(
                str(f.setting), flops(f.step_flops).removesuffix("FLOP"), _size(f.data_parallel), _size(f.sharded),
                f.fits or "no", "none" if f.least_devices is None else str(f.least_devices),
            )  # fmt: skip
        yield table
    caches = {c.name: (c.cache_bytes_per_token, c.state_bytes) for c in plan.components} | plan.cache
    cache = "\n             ".join(f"{_size(a)} per token + {_size(b)}: {name}" for name, (a, b) in caches.items())
    drops = [] if plan.dropping is None else list(_dropping(plan.dropping, plan.flops_per_second))
    speed = f"{flops(plan.flops_per_second)}/s on each device" if plan.flops_per_second else ""
    lines = [
        f"cache        {cache}",
        *drops,
        f"disk         {_size(plan.disk_bytes)} in the run folder at most",
        f"time         {duration(plan.seconds)} at {speed}" if speed else
        "time         give --flops-per-second, or --measure 3 to time steps here",
        f"             memory is compared with {100 * (1 - RESERVED):.0f} % of a device",
    ]  # fmt: skip
    yield Text("\n".join(lines))
    if plan.problems:
        yield Text("\n".join(["This run cannot go through as it is:", *(f"  {problem}" for problem in plan.problems)]))


def _path(path: list[int], names: list[str]) -> str:
    return names[path[0]] if len(set(path)) == 1 else " → ".join(names[k] for k in path)


def _dropping(found: Dropping, flops_per_second: float | None) -> Iterator[str]:
    """The bounds of per-sequence discretization, a line each."""
    yield (
        f"dropping     below {found.below:g} after {found.after} tokens, never while a model trains; of one sequence, "
        f"to score {found.tokens:,} tokens, for the next one, and what is cached:"
    )
    readings = {"nothing dropped": found.nothing, **{f"{name} alone left": each for name, each in found.alone.items()}}
    for what, each in readings.items():
        speed = f" (at most {flops_per_second / each.token_flops:,.0f} tokens/s)" if flops_per_second else ""
        cached = f"{_size(each.cache_bytes_per_token)} per token + {_size(each.state_bytes)}"
        yield f"             {flops(each.flops)}, {flops(each.token_flops)}{speed}, {cached}: {what}"
