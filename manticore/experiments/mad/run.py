"""A folder of MAD results: one file per run, a table and a plot of scores, and going on after a kill.

    OUT/grid.json                        what is run: models, settings, protocol, seed
    OUT/runs/MODEL/TASK/SETTING/RUN.json one per model, setting, learning rate and weight decay
    OUT/scores.json, scores.svg, scores.png

The runs of one model on one setting that are not there yet are trained together; their files appear when all are done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from manticore.cache import content_key
from manticore.errors import ManticoreError
from manticore.experiments.mad.models import Candidate
from manticore.experiments.mad.training import TrainedRun, Watcher, train_runs
from manticore.paths import expanded, refuse_links_out
from manticore.runs.ledger import (
    CONDITIONS,
    INPUTS,
    SETTINGS,
    key,
    read_record,
    refuse_changed,
    say_changed,
    write_record,
)
from manticore.runs.lineage import model_lineage
from manticore.runs.lock import locked
from manticore.tasks.mad.examples import KINDS, generate_validation
from manticore.tasks.mad.grid import Setting
from manticore.tasks.mad.protocol import Protocol
from manticore.tasks.mad.score import ModelScore, Run, model_scores
from manticore.tasks.mad.streams import Arrays
from manticore.tasks.task import Backbone
from manticore.training.budget import count_parameters
from manticore.writing import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRICS = ("mad_macro", "accuracy")

Say = Callable[[str], None]


class MadFolder:
    """The results of a list of models on a list of settings.

    Args:
        out: the folder; made if it is not there.
        models: what is scored.
        settings: on what.
        protocol: how.
        tier: its name, for the record.
        seed: of weights and data order.
        resume: whether results in the folder count.

    Raises:
        ManticoreError: the folder has results and `resume` is off, or they were made with other choices.
    """

    def __init__(
        self,
        out: str | Path,
        models: list[Candidate],
        settings: list[Setting],
        protocol: Protocol,
        *,
        tier: str,
        seed: int = 0,
        resume: bool = False,
    ) -> None:
        self.path = expanded(out)
        self.models, self.settings, self.protocol, self.seed = models, settings, protocol, seed
        record = {
            "tier": tier,
            "protocol": asdict(protocol),
            "note": protocol.note,
            "seed": seed,
            "models": [asdict(model) for model in models],
            "settings": [setting.name for setting in settings],
        }
        self.tier = tier
        for model in models:
            # what cannot be built or scored is found out before anything is written or trained
            if not any(model.can_be(KINDS[setting.task].backbone) for setting in settings):
                tasks = ", ".join(dict.fromkeys(setting.task for setting in settings))
                raise ManticoreError(
                    f"mad: {model.name} has no form for any of the tasks ({tasks}): they are made for auto-encoders, "
                    "which only stacks can be. Fix: another task or a stack"
                )
            longest = max(settings, key=lambda setting: int(setting.options["seq_len"]))
            self._build(model, longest, "causal")
        # every part of a name that is a folder is a saved model
        parts = {part for model in models for part in model.name.split("+") if Path(part).expanduser().is_dir()}
        self._open(key(record, {f"weights of {part}": model_lineage(part)["sha256"] for part in sorted(parts)}), resume)

    def run(
        self,
        *,
        stacked: bool | None = None,
        cpu: bool = False,
        say: Say = lambda text: None,
        progress: Watcher = lambda done, whole, row: None,
    ) -> list[ModelScore]:
        """Train what is missing, write every run's file, then the scores.

        Args:
            stacked: as in :func:`train_runs`.
            cpu: stay on the CPU where an accelerator is present.
            say: told what begins, is skipped, or was done before.
            progress: called after every epoch with how far the whole is, in epochs, and the training loss.

        Raises:
            ManticoreError: another process is working in the folder.
        """
        with locked(self.path):
            self._train_missing(stacked, cpu, say, progress)
            return self.write_scores()

    def _train_missing(self, stacked: bool | None, cpu: bool, say: Say, progress: Watcher) -> None:
        device = torch.device("cpu" if cpu else torch.accelerator.current_accelerator() or "cpu")
        pairs = len(self.settings) * len(self.models)
        for place, setting in enumerate(self.settings):
            data: dict[str, Arrays] | None = None
            for index, model in enumerate(self.models):
                watch = _share(progress, place * len(self.models) + index, pairs, self.protocol.epochs)
                title = f"{model.name} on {setting.name}"
                missing = [h for h in self.protocol.grid if self._read(self._file(model, setting, h.name)) is None]
                if not missing:
                    say(f"{title}: done before")
                    continue
                backbone = KINDS[setting.task].backbone
                if not model.can_be(backbone):
                    say(f"{title}: left out, it has no form with backbone {backbone}")
                    continue
                data = data or self._data(setting)
                built = self._build(model, setting, backbone).to(device)  # type: ignore[arg-type]
                outcomes = train_runs(
                    built,
                    data,
                    missing,
                    self.protocol,
                    seed=self.seed,
                    stacked=stacked,
                    bf16=device.type == "cuda",
                    watch=watch,
                )
                parameters = count_parameters(built).total
                for outcome in outcomes:
                    self._write(model, setting, outcome, parameters, device.type)
                finite = [score for o in outcomes if math.isfinite(score := o.selection.get("mad_macro", math.nan))]
                say(f"{title}: best mad_macro {max(finite, default=math.nan):.3f}")

    def results(self) -> list[dict[str, Any]]:
        """Everything in the files of single runs, in the order of models, settings and grid."""
        files = [
            self._file(model, setting, hyper.name)
            for model in self.models
            for setting in self.settings
            for hyper in self.protocol.grid
        ]
        rows = map(self._read, files)
        return [row for row in rows if row is not None]

    def _read(self, file: Path) -> dict[str, Any] | None:
        return read_record(file, "remove it, then resume")

    def scores(self, metric: str) -> list[ModelScore]:
        """Scores by one of :data:`METRICS`."""
        return model_scores(
            Run(
                row["model"],
                row["task"],
                row["setting"],
                row["lr"],
                row["weight_decay"],
                _number(row["selection"].get(metric)),
                _number(row["test"].get(metric)),
            )
            for row in self.results()
        )

    def write_scores(self) -> list[ModelScore]:
        """Write ``scores.json``; returns the scores by ``mad_macro``."""
        scores = {metric: self.scores(metric) for metric in METRICS}
        record = {
            "tier": self.tier,
            "protocol": self.protocol.name,
            "note": self.protocol.note,
            **{metric: [_score_record(score) for score in scores[metric]] for metric in METRICS},
        }
        write_json(self.path / "scores.json", record)
        return scores["mad_macro"]

    def chance(self) -> dict[str, float]:
        """Task → what a uniform guess scores, mean over its settings."""
        return {
            task: fmean(KINDS[task].chance(**s.options) for s in self.settings if s.task == task)
            for task in {setting.task for setting in self.settings}
        }

    def _open(self, now: dict[str, Any], resume: bool) -> None:
        file = self.path / "grid.json"
        if file.exists():
            if not resume:
                raise ManticoreError(
                    f"--out {self.path}: holds results already. Fix: --resume goes on with them, or choose another name"
                )
            refuse_links_out(self.path)
            before = read_record(file, "choose another name for --out") or {}
            for name, value in now[SETTINGS].items():
                if before.get(name) != value:
                    raise ManticoreError(
                        f"--out {self.path}: was started with another {name}{_difference(before.get(name), value)}. "
                        "Fix: resume with the same choices, or choose another name"
                    )
            refuse_changed(before.get(INPUTS, {}), now[INPUTS], f"--out {self.path}", "choose another name")
            say_changed(before.get(CONDITIONS, {}), now[CONDITIONS], f"--out {self.path}")
            return
        # a process that was killed at once has left a half-written file with such a name
        if self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise ManticoreError(f"--out {self.path}: is not a folder of MAD results. Fix: choose another name")
        self.path.mkdir(parents=True, exist_ok=True)
        write_record(file, {**now.pop(SETTINGS), **now})

    def _build(self, model: Candidate, setting: Setting, backbone: Backbone) -> PreTrainedModel:
        sizes = {name: int(setting.options[name]) for name in ("vocab_size", "seq_len")}
        return model.build(
            vocab_size=sizes["vocab_size"],
            positions=sizes["seq_len"],
            seed=self.seed,
            backbone=backbone,
            linear_init=self.protocol.linear_init,
        )

    def _data(self, setting: Setting) -> dict[str, Arrays]:
        data = setting.generate()
        if self.protocol.selection == "validation":
            data["validation"] = generate_validation(setting.task, **setting.options)
        return data

    def _file(self, model: Candidate, setting: Setting, run: str) -> Path:
        return self.path / "runs" / _file_name(model.name) / setting.name / f"{run}.json"

    def _write(self, model: Candidate, setting: Setting, outcome: TrainedRun, parameters: int, device: str) -> None:
        file = self._file(model, setting, outcome.hyper.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        row = outcome.to_dict()
        hyper = row.pop("hyper")
        write_record(
            file,
            {
                "model": model.name,
                "task": setting.task,
                "setting": setting.name,
                **hyper,
                "parameters": parameters,
                "device": device,
                **_finite(row),
            },
        )


def _share(progress: Watcher, pair: int, pairs: int, epochs: int) -> Watcher:
    """A watcher of one model on one setting that reports how far all of them are."""
    return lambda done, whole, row: progress(pair * epochs + epochs * done // whole, pairs * epochs, row)


def _score_record(score: ModelScore) -> dict[str, Any]:
    return {
        "model": score.model,
        "score": score.score,
        "num_scored_tasks": score.num_scored_tasks,
        "tasks": {
            name: {"score": task.score, "settings": [asdict(setting) for setting in task.settings]}
            for name, task in score.tasks.items()
        },
    }


def _difference(before: Any, now: Any) -> str:
    """`` (epochs: 200, now 5)``: the first choice that differs, where it has a name or is short."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in {**now, **before} if before.get(name) != now.get(name))
        return f" ({name}: {before.get(name)}, now {now.get(name)})"
    return "" if isinstance(now, list) else f" ({before}, now {now})"


def _file_name(model: str) -> str:
    """A model's name as the name of one folder; what loses characters, as paths do, is told apart by a hash."""
    name = re.sub(r"[^\w.+-]+", "_", model.strip("./~"))
    return name if name == model else f"{name or 'model'}-{content_key(model)[:8]}"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _finite(value: Any) -> Any:
    """The same JSON value with null for every number that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
