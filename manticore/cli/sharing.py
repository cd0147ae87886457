"""The verbs that make a model ready for others: share, export."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from manticore.cli.parameters import Out
from manticore.cli.terminal import done, quiet_libraries, say
from manticore.writing import refuse_existing


def share(folder: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a hybrid or a stack.")]) -> None:
    """Make a model's folder ready for others: a model card, and a loader for tools that do not import manticore.

    Example: manticore share tuned
    """
    say(f"share: {folder}")
    quiet_libraries()
    from manticore.report.sharing import share as share_folder

    written = share_folder(folder)
    say(f"added {', '.join(written)}")
    done(folder, f"hf upload YOUR-NAME/{quote(Path(folder).resolve().name)} {quote(folder)}")


def export(
    hybrid: Annotated[str, typer.Argument(metavar="HYBRID", help="Folder of a discretized hybrid.")], out: Out
) -> None:
    """Write a hybrid whose path is of one family as that family's own checkpoint, which needs no manticore.

    Example: manticore export tuned -o served
    """
    refuse_existing(out)
    say(f"export: {hybrid}")
    import manticore
    from manticore.stages.commands import evaluate_command, noted_task, words_for
    from manticore.stages.finetune import Finetune
    from manticore.training.saved_models import load_hybrid

    quiet_libraries()
    loaded = load_hybrid(hybrid)
    written = manticore.export(loaded, out)
    what = f"{written.architecture}, {written.num_layers} layers"
    say(f"{what}; logits as the hybrid's to within {written.difference:.2g}")
    if not written.tokenizer:
        say("the hybrid has no tokenizer, so none lies beside it")
    done(out, evaluate_command(out, noted_task(Path(hybrid) / Finetune.note, as_text=True) or words_for(loaded)))
