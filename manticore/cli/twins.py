"""The verb that makes twins."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from manticore.cli.faults import exit_code_of
from manticore.cli.parameters import Out, Seed, takes
from manticore.cli.terminal import done, progress_bar, quiet_libraries, say
from manticore.twin_settings import Twin
from manticore.writing import new_folder, refuse_existing, write_json

NOTE = "twin.json"
"""Beside the twin: how far its mixers are from the parent's attention."""


@takes(Twin)
def twin(
    parent: Annotated[str, typer.Argument(metavar="PARENT", help="A folder or hub id, with softmax attention.")],
    out: Out,
    seed: Seed = 0,
    *,
    settings: dict[str, Any],
) -> None:
    """Make a model of a parent's MLPs and fresh linear-time mixers; a killed fit goes on from where it was.

    Example: manticore twin ./smollm2 --layers 3,7,11 --text notes.jsonl -o twin
    """
    refuse_existing(out)
    where = "all layers" if settings["layers"] is None else f"layers {','.join(map(str, settings['layers']))}"
    fitted = (
        "as it starts" if settings["text"] is None else f"fitted on {settings['tokens']:,} tokens of {settings['text']}"
    )
    say(f"twin: {parent} with {settings['mixer']} in {where}, {fitted}")
    quiet_libraries()
    import manticore
    from manticore.cache import cache_folder, content_key

    checkpoint = cache_folder("twins") / f"{content_key({**settings, 'parent': parent, 'seed': seed})}.safetensors"
    try:
        with progress_bar("twin") as progress:
            made = manticore.twin(parent, seed=seed, checkpoint=checkpoint, progress=progress, **settings)
    except KeyboardInterrupt as stop:
        say("stopped; what the fit goes on from is kept in the cache")
        say(f"next: {shlex.join(['manticore', *sys.argv[1:]])}")
        raise SystemExit(exit_code_of(stop)) from None
    with new_folder(out) as folder:
        made.save_pretrained(folder)
        if made.fitted is not None:
            write_json(folder / NOTE, made.fitted.to_dict())
    if made.fitted is not None:
        say("relative error of each layer on held-out text, before and after:")
        for index, error in made.fitted.after.items():
            say(f"  layer {index}: {made.fitted.before[index]:.3f} {error:.3f}")
    blocks = made.config.num_hidden_layers
    done(out, shlex.join(["manticore", "combine", parent, out, "--num-blocks", str(blocks), "-o", "hybrid"]))
