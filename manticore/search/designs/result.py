"""What a study of designs has found, and its record on the disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manticore.file_names import STUDY
from manticore.runs.ledger import write_record
from manticore.search.designs.reuse import BASELINE, rows_by_name
from manticore.search.designs.scores import Scores
from manticore.search.designs.study import DesignStudy
from manticore.search.designs.training import DesignTraining, Made, Trained
from manticore.stacks.configuration import StackConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from manticore.search.designs.space import Design

SCHEMA_VERSION = 1
"""Of ``study.json``."""
DESIGNS = "designs"
"""The folder of configurations, in a study's."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,79}")


@dataclass(frozen=True)
class DesignTrial:
    """A design, or a hand-made stack, and what its training has found out."""

    name: str
    """As the space spells it, or the baseline's name."""
    config: StackConfig
    """With the vocabulary that it was trained with."""
    measures: Mapping[str, float] = field(default_factory=dict)
    trained: Trained | None = None
    """None where it has failed."""
    failed: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the method says about it: generation, parents, …"""
    batch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As ``study.json`` has it, without its name."""
        trained = self.trained or Trained()
        return {
            "layers": list(self.config.layers or []),
            "measures": dict(self.measures),
            "repeats": trained.repeats,
            "curve": trained.curve,
            "flops": trained.flops,
            "seconds": trained.seconds,
            "failed": self.failed,
            "stopped": trained.stopped,
            "taken_over": trained.taken_over,
        }


@dataclass(frozen=True)
class StudyResult:
    """What a study has found."""

    trials: list[DesignTrial]
    """Every design that was asked for, in that order, failed and poor ones included."""
    front: list[DesignTrial]
    """Those within the limits than which no other is as good by all objectives and better by one, the best by the first
    objective first."""
    baselines: list[DesignTrial]
    """Hand-made stacks of the same depth and width, trained in the same way."""
    record: dict[str, Any]
    """The content of ``study.json``."""
    tokenizer: Any = field(default=None, repr=False, compare=False)
    """Of the text."""

    @property
    def best(self) -> DesignTrial | None:
        """Of the front, the best by the first objective; None where no design is within the limits."""
        return self.front[0] if self.front else None

    @property
    def flops(self) -> int:
        """Of all trainings, those that were taken over from another study left out."""
        return int(self.record["flops"])

    def save(self, out: str | Path) -> None:
        """Write ``study.json``, and the front and the baselines as folders that ``StackConfig.from_pretrained`` loads.

        Args:
            out: the folder; what is there of these is replaced.
        """
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        rows = rows_by_name(self.record)
        kept = [(trial, trial.name) for trial in self.front]
        kept += [(each, f"{BASELINE}{each.name}") for each in self.baselines if each.failed is None]
        for rank, (trial, key) in enumerate(kept, 1):
            plain = key.replace(" ", "-")
            name = plain if _PLAIN_NAME.fullmatch(plain) else f"front-{rank}"
            trial.config.save_pretrained(folder / DESIGNS / name)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder / DESIGNS / name)
            rows[key]["folder"] = f"{DESIGNS}/{name}"
        write_record(folder / STUDY, self.record)


def result_of(
    study: DesignStudy,
    training: DesignTraining,
    makes: Mapping[str, Made],
    *,
    about: Mapping[str, Any],
    unfinished: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> StudyResult:
    """What a study has found, or has found so far.

    Args:
        study: that has run.
        training: of its designs.
        makes: baseline → its configuration.
        about: what the record says beside trials: name, method, seed, what trainings depend on.
        unfinished: the method would have asked on.
        tokenizer: of the text, which designs are saved with.
    """
    scores = study.scores
    place: dict[Design, int] = {}
    for index, batch in enumerate(study.batches):
        for design in batch:
            place.setdefault(design, index)
    known = [design for design in place if design in scores.found or design in scores.failed]
    trials = {design: _trial(study, training, scores, design, place[design]) for design in known}
    hand_made = [
        DesignTrial(
            name,
            training.config(makes[name]),
            {} if isinstance(found, str) else found.measures,
            None if isinstance(found, str) else found,
            found if isinstance(found, str) else None,
        )
        for name, found in study.baselines.items()
    ]
    front = [trials[design] for design in sorted(scores.front(), key=scores.values)]
    spent = [trial.trained for trial in [*trials.values(), *hand_made] if trial.trained is not None]
    spelled = scores.space.spelled
    record = {
        "schema_version": SCHEMA_VERSION,
        **about,
        "space": scores.space.key,
        "objectives": [{"measure": goal.measure, "maximise": goal.maximise} for goal in scores.goals],
        "max": dict(scores.limits),
        "least": dict(scores.least),
        "trials": [
            {"design": trial.name, "batch": trial.batch, **trial.notes, **trial.to_dict()} for trial in trials.values()
        ],
        "generations": [[spelled(design) for design in batch if design in trials] for batch in study.batches],
        "front": [trial.name for trial in front],
        "baselines": [{"name": trial.name, **trial.to_dict()} for trial in hand_made],
        "flops": sum(trained.flops for trained in spent if not trained.taken_over),
        "flops_taken_over": sum(trained.flops for trained in spent if trained.taken_over),
        "seconds": sum(trained.seconds for trained in spent),
        "unfinished": unfinished,
    }
    return StudyResult(list(trials.values()), front, hand_made, record, tokenizer)


def _trial(study: DesignStudy, training: DesignTraining, scores: Scores, design: Design, batch: int) -> DesignTrial:
    space = scores.space
    if design not in study.configs:
        study.configs[design] = training.config(partial(space.config, design))
    return DesignTrial(
        space.spelled(design),
        study.configs[design],
        scores.found.get(design, {}),
        study.trained.get(design),
        scores.failed.get(design),
        dict(scores.notes.get(design, {})),
        batch,
    )
