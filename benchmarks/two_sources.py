"""Parents that know different texts, on a mixture of both: which hybrid is worth its compute, and until when?

    python benchmarks/two_sources.py [--only NAME …] [--work DIR]      # about 4 hours of one core; it resumes

Two parents, a GPT-Neo (G) or a Mamba (M) each, are pretrained by the script, the first on Python source, the second on
English, with one tokenizer; they and their hybrids are fine-tuned on a 1:1 mixture of text of both that neither has
read. Budgets are FLOPs, counted in steps of a GPT-Neo on 16 sequences of 128 tokens; a parent has had 300 of its own.
Every model takes the best of three learning rates at each budget. "Everything" counts what aligning and searching cost
on top, for all. The oracle is the right parent for each source. Then: texts that change their source inside, three
components, and how often a model ends a held-out line as it ends. Writes ``benchmarks/results/two_sources.json``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contextual_mixing import CONTEXTUAL
from measure import RESULTS, write_json
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import manticore
from manticore.components.loading import load_tokenizer
from manticore.experiments.intervals import mean_interval
from manticore.experiments.models import averaged
from manticore.settings import Compare
from manticore.tasks import metrics
from manticore.tasks.answers import Answer, line_ending
from manticore.tasks.corpus import read_corpus
from manticore.tasks.task import Task, load_task
from manticore.training.budget import flops_per_step
from manticore.training.evaluate import evaluate
from manticore.training.pretrain import pretrain

FILE = "two_sources"
SOURCES = {"code": "stdlib", "english": "docstrings"}
"""Name of a source → text that comes with every installation."""
TEXT_BYTES = 6_000_000
LENGTH, BATCH = 128, 16
STEPS = 300
SIZES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"layers": 4, "width": 96},
    "mamba": {"layers": 4, "width": 128},
}
LARGER: dict[str, Any] = {"layers": 8, "width": 144, "steps": 2 * STEPS}
"""A Mamba of about twice the size, pretrained on both texts for as long as both parents together."""
FAMILIES = {"G": "gpt_neo", "M": "mamba"}
MARKS = (0, 6, 12, 25, 75)
LONGER = (*MARKS, 200)
"""Budgets in steps of the GPT-Neo; the longest for G/M and those rows alone that do not need more than the parents."""
RATES = [3e-4, 1e-3, 3e-3]
EXAMPLES = 192
FORGETTING = (0.0, 0.003, 0.01, 0.03, 0.1)


@dataclass(frozen=True)
class Case:
    """A pair of families and a seed, of the parents, their data order and the fine-tunings."""

    pair: str
    seed: int

    def __str__(self) -> str:
        return f"{self.pair[0]}/{self.pair[1]}, seed {self.seed}"


CASES = [Case("GM", 0), Case("GM", 1), Case("GM", 2), Case("MG", 0), Case("MM", 0)]


class Models:
    """The parents of a case and what is made of them, each made when it is asked for."""

    def __init__(self, case: Case, work: Path) -> None:
        self.case, self.work = case, work
        self.texts = texts(work)

    def parent(self, k: int) -> Path:
        """The first, of code, or the second, of English."""
        return self._pretrained(FAMILIES[self.case.pair[k]], [list(SOURCES)[k]])

    @functools.cached_property
    def parents(self) -> list[Path]:
        """Both folders."""
        return [self.parent(0), self.parent(1)]

    def generalist(self) -> Path:
        """A GPT-Neo that has read half as much of each text."""
        return self._pretrained("gpt_neo", list(SOURCES))

    def larger(self) -> Path:
        """A larger Mamba that has read both."""
        return self._pretrained("mamba", list(SOURCES), **LARGER)

    def _pretrained(self, family: str, sources: Sequence[str], **sizes: Any) -> Path:
        everything = [str(self.texts / name / "parents") for name in SOURCES]
        read = [str(self.texts / name / "parents") for name in sources]
        text: Any = read[0] if len(read) == 1 else [each for one in read for each in read_corpus(one)]
        options: dict[str, Any] = {**SIZES[family], "steps": STEPS, **sizes}
        return pretrain(
            family, **options, text=text, tokenizer_texts=everything, batch_size=BATCH, length=LENGTH,
            seed=self.case.seed,
        )  # fmt: skip

    def task(self, *, length: int = LENGTH, change_every: int | None = None) -> Task:
        """The mixture that neither parent has read."""
        sources = {name: {"text": str(self.texts / name / "task"), "share": 0.5} for name in SOURCES}
        options: dict[str, Any] = {"sources": sources, "length": length}
        if change_every is not None:
            options["change_every"] = change_every
        return load_task("text", tokenizer=load_tokenizer(self.parents[0]), **options)

    def interpolated(self, output: str, folders: Sequence[Path] | None = None, **options: Any) -> PreTrainedModel:
        """The parents side by side, nothing crossing between them."""
        forgetting = {"forgetting": 0.0} if output == "bayes" else {}
        given = {**forgetting, **options}
        return averaged(folders or self.parents, self.task(), seed=self.case.seed, output=output, **given)

    @functools.cache  # noqa: B019
    def aligned(self, mixing: str, output: str = "logits") -> tuple[Path, int]:
        """A supernet of two blocks, aligned on text that the parents have read, and what that cost."""
        folder = self.work / f"{self.case.pair}-{self.case.seed}" / mixing
        note = folder / "aligned.json"
        if not note.exists():
            hybrid = manticore.combine(self.parents, num_blocks=2, mixing=mixing, output=output, seed=self.case.seed)
            documents = [each for name in SOURCES for each in read_corpus(self.texts / name / "parents")]
            report = manticore.align(hybrid, documents, seed=self.case.seed)
            hybrid.save_pretrained(folder)
            note.write_text(json.dumps({"flops": report.flops}))
        return folder, json.loads(note.read_text())["flops"]

    @functools.cache  # noqa: B019
    def searched(self, flops: int) -> tuple[list[list[float]], int]:
        """Mixture weights that darts finds, and what it and the alignment cost."""
        folder, spent = self.aligned("translated")
        note = folder / "searched.json"
        if not note.exists():
            found = manticore.search(
                manticore.ManticoreForCausalLM.from_pretrained(folder), self.task(), method="darts",
                budget_flops=flops, batch_size=BATCH, seed=self.case.seed, cpu=True,
            )  # fmt: skip
            weights = found.weights.tolist()
            note.write_text(json.dumps({"weights": weights, "flops": found.flops}))
        kept = json.loads(note.read_text())
        return kept["weights"], kept["flops"] + spent


def texts(work: Path) -> Path:
    """Folders of text, ``NAME/parents`` and ``NAME/task``: a document is in one of the two, by its digest."""
    folder = work / "texts"
    for name, source in SOURCES.items():
        if not (folder / name / "complete").exists():
            for number, document in enumerate(read_corpus(source, max_bytes=TEXT_BYTES)):
                half = "task" if hashlib.sha256(document.encode()).digest()[0] % 2 else "parents"
                (folder / name / half).mkdir(parents=True, exist_ok=True)
                (folder / name / half / f"{number:05}.txt").write_text(document, encoding="utf-8")
            (folder / name / "complete").touch()
    return folder


def rows(models: Models, step: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Name → model; and what was spent on some before."""
    code, english = (f"{models.case.pair[k]} on {name}" for k, name in enumerate(SOURCES))
    translated, aligning = models.aligned("translated")
    gated, aligning_gated = models.aligned("gated")
    contextual, aligning_contextual = models.aligned(CONTEXTUAL, "gate")
    weights, searching = models.searched(25 * step)

    def soft(folder: Path, mixture: list[list[float]] | None = None) -> Callable[[int], PreTrainedModel]:
        def make(seed: int) -> PreTrainedModel:
            hybrid = manticore.ManticoreForCausalLM.from_pretrained(folder)
            if mixture is not None:
                hybrid.set_mixture_weights(mixture)
            return hybrid

        return make

    def path(*components: int) -> Callable[[int], PreTrainedModel]:
        return lambda seed: manticore.discretize(
            manticore.ManticoreForCausalLM.from_pretrained(translated), list(components)
        )

    def together(output: str) -> Callable[[int], PreTrainedModel]:
        return lambda seed: models.interpolated(output)

    models_by_name = {
        code: models.parents[0],
        english: models.parents[1],
        "larger Mamba on both": models.larger(),
        "logits averaged": together("logits"),
        "probabilities averaged": together("probabilities"),
        "bayes": together("bayes"),
        "gate": together("gate"),
        "soft, aligned": soft(translated),
        "soft, aligned, darts": soft(translated, weights),
        "soft gated, aligned": soft(gated),
        "soft, aligned, weights per token": soft(contextual),
        "path, code then English": path(0, 1),
        "path, English then code": path(1, 0),
    }
    spent = dict.fromkeys(("soft, aligned", "path, code then English", "path, English then code"), aligning)
    spent["soft, aligned, darts"] = searching
    spent["soft gated, aligned"] = aligning_gated
    spent["soft, aligned, weights per token"] = aligning_contextual
    return models_by_name, spent


def measure(case: Case, work: Path) -> dict[str, Any]:
    """All rows of a case at all budgets."""
    models = Models(case, work)
    task, step = models.task(), step_flops(models)
    compared, spent = rows(models, step)
    most = max(spent.values())
    simple = [*list(compared)[:2], "logits averaged", "bayes"]
    others = [name for name in compared if name not in simple]
    found: dict[str, list[dict[str, Any]]] = {}
    for names, marks in ((simple, LONGER if case.pair == "GM" else MARKS), (others, MARKS)):
        budgets = {step * mark + extra: (mark, extra > 0) for mark in marks for extra in (0, most)}
        # where nothing was spent before, both kinds of budget are plain ones
        given = budgets if names is simple else [step * mark for mark in marks]
        how = Compare(
            batch_size=BATCH, warmup_steps=5, learning_rates=RATES, seeds=[case.seed], ensemble=False,
            test_examples=EXAMPLES,
        )  # fmt: skip
        table = manticore.compare(
            {name: compared[name] for name in names}, task, how, budget_flops=max(given),
            budgets=[float(flops) for flops in given],
            spent_flops={name: cost for name, cost in spent.items() if name in names},
            out=work / f"{case.pair}-{case.seed}" / f"compare-{len(names)}", resume=True, cpu=True,
            progress=lambda done, of, what: print(f"{case}: {what} ({done} of {of})", flush=True),
        )  # fmt: skip
        for row in table.rows:
            flops, (seed,) = table.budgets[row.budget].flops, row.seeds
            mark, with_spent = budgets[flops]
            facts = {"model": row.model, "steps": mark, "with_spent": with_spent, "flops": flops}
            facts |= {"lr": seed["lr"], "parameters": row.parameters, "metrics": seed["metrics"]}
            found.setdefault(row.model, []).append(facts)
    kept = [facts for name in compared for facts in found[name]]
    facts = {"oracle": oracle(models, task), "step_flops": step, "spent": spent, "changing": changing(models)}
    return {"rows": kept, **facts}


def step_flops(models: Models) -> int:
    """What a step of the GPT-Neo costs: the unit of all budgets."""
    folder = models._pretrained("gpt_neo", [next(iter(SOURCES))])
    return flops_per_step(manticore.training.saved_models.load_model(folder)[0], BATCH, LENGTH)


def oracle(models: Models, task: Task) -> float:
    """The mean over sources of the better parent's loss there, untrained."""
    scores = [scored(folder, task) for folder in models.parents]
    return statistics.fmean(min(score[f"loss:{name}"] for score in scores) for name in SOURCES)


def scored(model: Any, task: Task) -> dict[str, float]:
    """Test metrics of a model as it is."""
    if isinstance(model, Path):
        model = manticore.training.saved_models.load_model(model)[0]
    return evaluate(model, task, max_examples=EXAMPLES)


def changing(models: Models) -> dict[str, Any]:
    """Untrained: texts of 256 tokens that change their source every 64 tokens on average, and such that do not."""
    found = {}
    for name, task in {
        "one source": models.task(length=256),
        "changing": models.task(length=256, change_every=64),
    }.items():
        rows = {
            f"{models.case.pair[k]} on {source}": scored(models.parents[k], task) for k, source in enumerate(SOURCES)
        }
        rows["probabilities averaged"] = scored(models.interpolated("probabilities"), task)
        for forgetting in FORGETTING:
            rows[f"bayes, forgetting {forgetting:g}"] = scored(
                models.interpolated("bayes", forgetting=forgetting), task
            )
        found[name] = rows
    return found


def three(models: Models) -> dict[str, Any]:
    """Untrained: a third parent, which has read half as much of each text."""
    folders, task = [*models.parents, models.generalist()], models.task()
    return {
        "G on both": scored(folders[2], task),
        "bayes of two": scored(models.interpolated("bayes"), task),
        "bayes of three": scored(models.interpolated("bayes", folders), task),
        "probabilities of three": scored(models.interpolated("probabilities", folders), task),
    }


def lines(models: Models) -> dict[str, Any]:
    """Untrained: the share of held-out lines that greedy decoding ends as they end, by source."""
    tokenizer, task = load_tokenizer(models.parents[0]), models.task()
    ends = torch.tensor(["\n" in tokenizer.decode([token]) for token in range(len(tokenizer))])
    rows = {f"{models.case.pair[k]} on {source}": models.parents[k] for k, source in enumerate(SOURCES)}
    made: dict[str, Any] = {
        name: manticore.training.saved_models.load_model(folder)[0] for name, folder in rows.items()
    }
    for output in ("logits", "probabilities", "bayes"):
        made[output] = models.interpolated(output)
    found: dict[str, Any] = {}
    for index, source in enumerate(SOURCES):
        data = task.data["test"][:]
        chosen = (data[metrics.SOURCES][:, 0] == index).nonzero().flatten()[:EXAMPLES]
        prompts = [answer for ids in data["input_ids"][chosen] for answer in line_ending(ids, ends)]
        for name, model in made.items():
            hits = [_ends_alike(model.eval(), tokenizer, each) for each in prompts]
            found.setdefault(name, {})[source] = {"share": statistics.fmean(hits), "lines": len(hits)}
    return found


def _ends_alike(model: Any, tokenizer: Any, answer: Answer) -> bool:
    prompt = answer.prompt[None]
    written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(answer.tokens), do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return bool(written[0, prompt.shape[1] :].tolist() == answer.tokens)


def show(figures: Mapping[str, Any], console: Console) -> None:
    """All tables."""
    for pair in dict.fromkeys(case.pair for case in CASES):
        found = [figures[str(case)] for case in CASES if case.pair == pair and str(case) in figures]
        if not found:
            continue
        for everything in (False, True):
            title = f"{pair[0]} on code, {pair[1]} on English, {len(found)} seeds: held-out loss"
            title += ", everything counted" if everything else ", fine-tuning counted"
            table = Table("model", *map(str, LONGER), title=title, caption="columns: steps of G; oracle untrained: "
                          + " ".join(f"{each['oracle']:.3f}" for each in found))  # fmt: skip
            for name in dict.fromkeys(row["model"] for row in found[0]["rows"]):
                cells = [_cell(found, name, mark, everything) for mark in LONGER]
                if any(cells):
                    table.add_row(name, *cells)
            console.print(table)
    _show_changing([figures[str(case)]["changing"] for case in CASES if str(case) in figures], console)
    for title in ("three", "lines"):
        if title in figures:
            _show_extra(title, figures[title], console)


def _cell(found: Sequence[Mapping[str, Any]], name: str, mark: int, everything: bool) -> str:
    values = [
        row["metrics"]["loss"]
        for each in found
        for row in each["rows"]
        if (row["model"], row["steps"], row["with_spent"]) == (name, mark, everything)
    ]
    if not values:
        return ""
    mean, interval = mean_interval(values)
    return f"{mean:.3f}" + (f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval is not None else "")


def _show_changing(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not found:
        return
    title = f"texts of 256 tokens, untrained: mean loss of {len(found)} cases"
    table = Table("model", *found[0], title=title)
    for at, name in enumerate(found[0]["changing"]):
        shown = ("first parent", "second parent")[at] if at < 2 else name
        rows = [[list(each[kind].values())[at]["loss"] for each in found] for kind in found[0]]
        table.add_row(shown, *(f"{statistics.fmean(row):.3f}" for row in rows))
    console.print(table)


def _show_extra(title: str, figures: Mapping[str, Any], console: Console) -> None:
    if title == "three":
        table = Table("model", "loss", title="three components, untrained")
        for name, metrics in figures.items():
            table.add_row(name, f"{metrics['loss']:.3f}")
    else:
        table = Table("model", *SOURCES, "mean", title="held-out lines ended as they end, untrained")
        for name, shares in figures.items():
            values = [shares[source]["share"] for source in SOURCES]
            table.add_row(name, *(f"{value:.3f}" for value in values), f"{statistics.fmean(values):.3f}")
    console.print(table)


def main() -> int:
    """Measure what is missing and print the tables."""
    names = [*map(str, CASES), "three", "lines"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/manticore/two-sources").expanduser())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / f"{FILE}.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    figures.pop("environment", None)
    extra = {"three": three, "lines": lines}
    for name in arguments.only:
        if name not in figures:
            case = next((case for case in CASES if str(case) == name), None)
            if case is not None:
                figures[name] = measure(case, arguments.work)
            else:
                figures[name] = extra[name](Models(CASES[0], arguments.work))
            write_json(FILE, figures)
    show(figures, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
