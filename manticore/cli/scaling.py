"""The verb that makes a large stack after the pattern of a small one: scale."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manticore.cli.parameters import Out, pairs
from manticore.cli.terminal import done, quiet_libraries, say
from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.quantities import count, memory, read_count
from manticore.writing import new_folder, refuse_existing

if TYPE_CHECKING:
    from manticore.stacks.configuration import StackConfig

_LETTERS = {"A": "grouped-query-attention", "M": "swiglu", "S": "mamba"}
"""What the letters of a list stand for unless ``--layer`` says otherwise: Composer's two, and a state space."""
_WAYS = ("stack", "stretch")


def scale(
    design: Annotated[
        str,
        typer.Argument(
            metavar="DESIGN", help="Folder of a stack or of a design, or a list of layers such as AAMMMM or 2A4M."
        ),
    ],
    parameters: Annotated[
        str, typer.Option(metavar="NUMBER", help="Of all layers, embeddings and head left out: 350M, 1.5B, 2e6.")
    ],
    out: Out,
    how: Annotated[
        str, typer.Option(help="stack repeats the list, for short ones; stretch makes its runs longer, from 16 on.")
    ] = "stack",
    width: Annotated[
        int | None,
        typer.Option(
            help="Of the hidden states. Default: what comes nearest to 64 per layer.", show_default=False, min=1
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="LETTER=LAYER",
            help="What a letter stands for, repeatable. Default: A=grouped-query-attention, M=swiglu, S=mamba.",
        ),
    ] = None,
    layer_option: Annotated[
        list[str] | None,
        typer.Option(
            "--layer-option",
            metavar="LAYER.KEY=VALUE",
            help="Option of the layers of a name at the new width, repeatable: swiglu.inner_width=8192.",
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Length of the sequence whose cache is told.", min=1)] = 4096,
) -> None:
    """Make a large stack after the pattern of a small one; writes its configuration, without weights.

    Example: manticore scale AAMMMM --parameters 350M --how stack -o large
    """
    refuse_existing(out)
    wanted = read_count(parameters)
    if not wanted:
        raise ManticoreError(
            f"--parameters: got {parameters!r} (expected a number such as 350M or 1.5B). Fix: write 350M"
        )
    if how not in _WAYS:
        raise ManticoreError(f"--how: got {how!r} (expected {' or '.join(_WAYS)}). Fix: --how stack")
    options = _layer_options(layer_option or [])
    given = pairs(layer or [], "--layer", "A=mamba")
    if (wrong := next((each for each in given if len(each) != 1 or not each.isalpha()), None)) is not None:
        raise ManticoreError(f"--layer: {wrong!r} is no letter (expected LETTER=LAYER). Fix: for instance A=mamba")
    say(f"scale: {design}, {how}, to {count(wanted)} parameters")
    quiet_libraries()
    from manticore.stacks.scaling import runs, scaled
    from manticore.stacks.sizes import cache_bytes, layer_parameters

    small = _read(design, given)
    large = scaled(small, wanted, how, width=width, layer_options=options)  # type: ignore[arg-type]
    with new_folder(out) as folder:
        large.save_pretrained(folder)
    say(f"{len(large.layer_names)} layers of width {large.hidden_size}: {_told(runs(large.layer_names))}")
    each = {name: large.layer_names.count(name) for name in dict.fromkeys(large.layer_names)}
    say(", ".join(f"{number} {name}" for name, number in each.items()))
    say(
        f"{count(layer_parameters(large))} parameters in the layers ({len(small.layer_names)} layers have "
        f"{count(layer_parameters(small))} at width {small.hidden_size}), a cache of "
        f"{memory(cache_bytes(large, tokens))} after {tokens:,} tokens in bfloat16"
    )
    done(
        f"{out}/config.json",
        shlex.join(["manticore", "pretrain", f"./{out}" if "/" not in out else out, "-o", f"{out}-trained"]),
    )


def _told(found: list[tuple[str, int]]) -> str:
    """From the bottom to the top: ``2 grouped-query-attention, 4 swiglu, …``; long lists are cut."""
    shown = [f"{length} {name}" for name, length in found]
    return ", ".join(shown) if len(shown) <= 12 else ", ".join([*shown[:6], "…", *shown[-3:]])


def _layer_options(given: list[str]) -> dict[str, dict[str, Any]]:
    """``swiglu.inner_width=8192`` → options by names of layers."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in pairs(given, "--layer-option", "swiglu.inner_width=8192").items():
        name, dot, option = key.partition(".")
        if not dot or not option:
            raise ManticoreError(
                f"--layer-option: got {key!r} (expected LAYER.KEY=VALUE). Fix: for instance swiglu.inner_width=8192"
            )
        found.setdefault(name, {})[option] = value
    return found


def _read(design: str, given: Mapping[str, Any]) -> StackConfig:
    """The stack of a folder, or of letters, of which some are given, which has no width of its own yet."""
    from manticore.components.sources import nearest_folder
    from manticore.search.designs.layer_lists import runs_written_out
    from manticore.stacks.configuration import StackConfig
    from manticore.stacks.saved import saved_stack

    if design and expanded(design).exists():
        if given:
            raise ManticoreError(f"--layer: {design} is a folder, whose layers have names. Fix: leave it out")
        return saved_stack(design)
    if not design.isalnum() or not design.isascii():
        fix = (nearest_folder(design) if design else "") or "Fix: give the folder of a stack, or letters such as AAMMMM"
        raise ManticoreError(f"{design}: no such folder, and no list of layers. {fix}")
    layers, letters = [], {**_LETTERS, **given}
    for position, letter in enumerate(runs_written_out(design), 1):
        if letter not in letters:
            known = ", ".join(f"{each} {name}" for each, name in letters.items())
            raise ManticoreError(
                f"{design}: no such folder, and as a list of layers it has {letter!r} at position {position} "
                f"(expected one of {known}). Fix: one of these, or "
                + (f"--layer {letter}=LAYER" if letter.isalpha() else "numbers before their letters, 2A4M")
            )
        layers.append(letters[letter])
    if not layers:
        raise ManticoreError(f"{design}: no such folder, and a list of no layers. Fix: letters such as AAMMMM or 2A4M")
    return StackConfig(layers=layers)
