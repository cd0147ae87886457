"""Five architectures on the six baseline settings of MAD, against the scores that were published for them.

    python benchmarks/mad_baseline.py -o mad-baseline             # made for an accelerator; goes on where it was ended
    python benchmarks/mad_baseline.py -o check --smallest --cpu   # a minute or two: does everything run? no scores

Every architecture trains 36 runs by the published protocol, one seed. The published numbers are those of Poli et al.
2024 as Yang et al. 2024 (arXiv 2406.06484) print them; each is a mean over all settings of its task, ours is that of
the baseline alone, so what can be compared is the order of the architectures: Spearman's rank correlation, per task and
of the means. Which layers "GLA" stands for is not said there; ours has eight heads, the size of state of the others.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from measure import write_json

from manticore.cli.terminal import console, progress_bar, quiet_libraries, say
from manticore.experiments.mad.models import candidates
from manticore.experiments.mad.run import MadFolder
from manticore.report.mad_scores import render_scores
from manticore.tasks.mad.grid import EXAMPLES, Setting
from manticore.tasks.mad.protocol import choose_protocol, tier_settings
from manticore.tasks.mad.score import ModelScore, rank_correlation

TASKS = (
    *("compression", "fuzzy-in-context-recall", "in-context-recall"),
    *("memorization", "noisy-in-context-recall", "selective-copying"),
)
PUBLISHED = {
    "transformer": (0.516, 0.298, 0.941, 0.852, 0.868, 0.996),
    "hyena-swiglu": (0.452, 0.079, 0.817, 0.895, 0.788, 0.931),
    "mh-hyena-swiglu": (0.448, 0.144, 0.990, 0.894, 0.986, 0.930),
    "mamba": (0.527, 0.067, 0.904, 0.895, 0.901, 0.863),
    "mh-gla-swiglu": (0.388, 0.069, 0.808, 0.633, 0.816, 0.886),
}
"""Our name → published scores of TASKS."""
PUBLISHED_MEAN = {
    "transformer": 0.745,
    "hyena-swiglu": 0.660,
    "mh-hyena-swiglu": 0.732,
    "mamba": 0.693,
    "mh-gla-swiglu": 0.600,
}


def correlations(scores: list[ModelScore]) -> dict[str, float | None]:
    """Task, and ``mean`` → rank correlation of our scores with the published; None: no order to compare."""
    published = {task: {name: row[place] for name, row in PUBLISHED.items()} for place, task in enumerate(TASKS)}
    found = {}
    for task, theirs in {**published, "mean": PUBLISHED_MEAN}.items():
        values = {s.model: s.score if task == "mean" else s.tasks[task].score for s in scores}
        correlation = rank_correlation({name: value for name, value in values.items() if value is not None}, theirs)
        found[task] = None if correlation != correlation else correlation
    return found


def smallest() -> list[Setting]:
    """The settings of the smoke tier with 64 training examples each."""
    few = {EXAMPLES: 64}
    return [
        Setting(setting.task, tuple({**dict(setting.changes), **few}.items())) for setting in tier_settings("smoke")
    ]


def main() -> None:
    """Train what is missing, print the tables, write the JSON unless this was a check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", default="mad-baseline")
    parser.add_argument("--smallest", action="store_true", help="one epoch of smaller settings, one run each")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    quiet_libraries()
    tier = "smoke" if arguments.smallest else "baseline"
    protocol = choose_protocol("published", tier=tier)
    settings = tier_settings(tier)
    if arguments.smallest:
        protocol, settings = replace(protocol, epochs=1), smallest()
    folder = MadFolder(
        arguments.out, candidates(list(PUBLISHED)), settings, protocol, tier=tier, seed=arguments.seed, resume=True
    )
    with progress_bar("mad") as progress:
        scores = folder.run(cpu=arguments.cpu, say=say, progress=progress)
    console.print(render_scores(scores, metric="mad_macro", title=f"MAD, {tier} tier"))
    found = correlations(scores)
    print(f"{'rank correlation with the published scores':50} {'ours':>6} {'published':>10}")
    for task, correlation in found.items():
        print(f"{task:50} {'–' if correlation is None else f'{correlation:.2f}':>6}")
    for score in scores:
        ours = "–" if score.score is None else f"{score.score:.3f}"
        print(f"mean of {score.model:42} {ours:>6} {PUBLISHED_MEAN[score.model]:10.3f}")
    print(folder.protocol.note)
    if arguments.smallest:
        print("A check that everything runs: these are no scores, and no results were written.")
        return
    figures = {
        "seed": arguments.seed,
        "devices": sorted({row["device"] for row in folder.results()}),
        "tasks": list(TASKS),
        "ours": {s.model: [*(s.tasks[task].score for task in TASKS), s.score] for s in scores},
        "published": {name: [*row, PUBLISHED_MEAN[name]] for name, row in PUBLISHED.items()},
        "rank_correlation": found,
    }
    print(write_json("mad_baseline", figures))


if __name__ == "__main__":
    main()
