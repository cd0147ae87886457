"""mad: scores models on the MAD benchmark."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from manticore.cli.faults import exit_code_of
from manticore.cli.parameters import Out, Seed
from manticore.cli.terminal import console, done, progress_bar, quiet_libraries, say
from manticore.errors import ManticoreError
from manticore.paths import expanded
from manticore.writing import refuse_existing


def mad(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="A stack, stack:LAYER,LAYER,…, hf:FAMILY[:LAYERS], a folder, or a hybrid A+B."
        ),
    ],
    out: Out,
    tier: Annotated[
        str, typer.Option(help="smoke (small settings, not MAD's), baseline (36 runs per model) or full (396).")
    ] = "smoke",
    protocol: Annotated[
        str, typer.Option(help="published (cosine to 1e-6) or released (what the public code does: constant).")
    ] = "published",
    select: Annotated[
        str, typer.Option(help="Split that chooses epoch and best run: test, as the benchmark does, or validation.")
    ] = "test",
    linear_init: Annotated[
        str,
        typer.Option(
            help="Start of stacks as language models: uniform (torch's) or normal (N(0, 0.02), published only)."
        ),
    ] = "uniform",
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Only this task, repeatable; default: all six.")
    ] = None,
    mixing: Annotated[str, typer.Option(help="How a hybrid A+B mixes: translated, routed or gated.")] = "translated",
    stacked: Annotated[
        bool | None,
        typer.Option(
            "--together/--one-by-one",
            help="Train the runs of a setting in one pass. Default: together on an accelerator, if the model can.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Fewer or more than the protocol's.", min=1)] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a folder that was begun before.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where an accelerator is present.")] = False,
) -> None:
    """Score models on the MAD tasks, every one with all learning rates and weight decays of the protocol.

    Example: manticore mad transformer mamba striped-mh-hyena-swiglu transformer+mamba --tier smoke -o mad
    """
    from dataclasses import replace

    from manticore import registry

    if not expanded(out).exists():
        refuse_existing(out)
    if (refused := registry.refusal("mixing", mixing)) is not None:
        raise ManticoreError(f"--mixing: {refused}")
    from manticore.experiments.mad.models import candidates
    from manticore.tasks.mad.protocol import choose_protocol, tier_settings

    chosen = choose_protocol(protocol, tier=tier, selection=select, linear_init=linear_init)  # type: ignore[arg-type]
    if epochs is not None:
        chosen = replace(chosen, epochs=epochs)
    settings = tier_settings(tier, task)
    scored = candidates(models, mixing=mixing)
    runs = len(scored) * len(settings) * len(chosen.grid)
    say(
        f"mad: {_many(len(scored), 'model')}, {_many(len(settings), 'setting')}, {_many(len(chosen.grid), 'run')} "
        f"each: {_many(runs, 'run')} of at most {_many(chosen.epochs, 'epoch')}, protocol {chosen.name}"
    )
    quiet_libraries()
    from manticore.experiments.mad.run import METRICS, MadFolder
    from manticore.report.mad_scores import render_scores, write_scores_figure

    folder = MadFolder(out, scored, settings, chosen, tier=tier, seed=seed, resume=resume)
    same = ["--protocol", protocol] if protocol != "published" else []
    same += ["--select", select] if select != "test" else []
    same += ["--linear-init", linear_init] if linear_init != "uniform" else []
    same += [word for name in task or [] for word in ("--task", name)]
    same += ["--mixing", mixing] if mixing != "translated" else []
    same += ["--cpu"] if cpu else []
    same += [] if stacked is None else ["--together" if stacked else "--one-by-one"]
    try:
        with progress_bar("mad") as progress:
            folder.run(stacked=stacked, cpu=cpu, say=say, progress=progress)
    except KeyboardInterrupt as stop:
        again = ["--tier", tier, *same, "--seed", str(seed), "-o", out, "--resume"]
        again += ["--epochs", str(epochs)] if epochs is not None else []
        say("stopped; finished runs are kept")
        say(f"next: {shlex.join(['manticore', 'mad', *models, *again])}")
        raise SystemExit(exit_code_of(stop)) from None
    write_scores_figure(folder.path, folder.scores(METRICS[0]), tier=tier, chance=folder.chance())
    for metric in METRICS:
        console.print(render_scores(folder.scores(metric), metric=metric, title=f"MAD, {tier} tier"))
    if tier == "smoke":
        say("Smoke settings are shorter than any of the benchmark's: these are no MAD scores.")
    if any("+" in name for name in models):
        say("Hybrids kept all their components, at equal weights: they cost the sum of these.")
    say(chosen.note)
    # after the last tier the next thing to know is how far another seed is from this one
    larger = {"smoke": "baseline", "baseline": "full"}.get(tier, tier)
    more = ["--tier", larger, *same, "--seed", str(seed + (larger == tier)), "-o", f"{out.rstrip('/')}-more"]
    done(
        f"{out}/scores.json, {out}/scores.svg, {out}/scores.png",
        shlex.join(["manticore", "mad", *models, *more]),
    )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
