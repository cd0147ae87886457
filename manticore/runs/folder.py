"""A run folder: what is in it, how it is made, found again and kept up to date.

====================== =============================================================
recipe.yaml            the recipe as given
resolved.yaml          the same with every default and override written out
environment.json       packages, hardware and source revision, one entry per session
lineage.json           digests of the models' files and of the task's data
<stage>/               state.json, checkpoints, intermediate models
metrics.jsonl          every logged step of every training stage
mixture_weights.csv    the course of the search
results.json           all numbers
model/                 the hybrid, with its card
report.html, figures/  the page that shows it
====================== =============================================================
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from dataclasses import dataclass
from datetime import datetime, timezone
from glob import glob, has_magic
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from manticore.errors import ManticoreError
from manticore.file_names import ENVIRONMENT, RECIPE, RESOLVED, RESULTS, SCHEMA_VERSION
from manticore.paths import expanded, refuse_links_out
from manticore.reading import damaged, read_object
from manticore.runs.environment import environment
from manticore.runs.ledger import say_changed
from manticore.schema.loading import LoadedRecipe, load_recipe
from manticore.schema.options import mixtures, options_of
from manticore.schema.recipe import Recipe
from manticore.tasks.text_sources import BUILTIN
from manticore.writing import new_folder, write_json, write_text

KEYWORDS = (*BUILTIN, "task")
"""Texts with a meaning of their own where a path may stand."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder on disk and the recipe it follows."""

    path: Path
    recipe: Recipe

    def begin_session(self) -> None:
        """Note with what software and hardware the run goes on from here."""
        session = {"started": _now(), "process": os.getpid(), "host": socket.gethostname(), **environment()}
        before = self._sessions()
        if before:
            say_changed(before[-1], session, f"run: {self.path}")
        write_json(self.path / ENVIRONMENT, {"sessions": [*before, session]})

    def _sessions(self) -> list[dict[str, Any]]:
        file, fix = self.path / ENVIRONMENT, "remove it, then resume"
        record = read_object(file, fix)
        sessions = [] if record is None else record.get("sessions")
        if not isinstance(sessions, list) or not all(isinstance(s, dict) and "started" in s for s in sessions):
            raise damaged(file, "it lists no sessions", fix)
        return sessions

    def write_results(self, parts: dict[str, Any], status: str) -> dict[str, Any]:
        """Write ``results.json``, and return its content.

        Args:
            parts: what the stages have found so far.
            status: ``"running"``, ``"complete"``, ``"interrupted"`` or ``"failed"``.
        """
        sessions = self._sessions()
        head = {
            "schema_version": SCHEMA_VERSION,
            "name": self.recipe.name,
            "created": sessions[0]["started"] if sessions else _now(),
            "status": status,
            "seed": self.recipe.seed,
        }
        results = {**head, **parts}
        write_json(self.path / RESULTS, results)
        return results

    def replace(self, name: str, source: Path) -> None:
        """Move the finished folder ``source`` to ``name`` in the run folder, over what an earlier attempt left."""
        target, old = self.path / name, self.path / f".{name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.rename(target, old)
        os.rename(source, target)
        shutil.rmtree(old, ignore_errors=True)


def create_run(loaded: LoadedRecipe, out: str | None = None) -> RunFolder:
    """Make the run folder of a recipe.

    Args:
        loaded: the checked recipe.
        out: the folder; left out, ``runs/<name>-<date>-<hash>``.

    Raises:
        ManticoreError: the folder exists.
    """
    recipe = _rooted(loaded.recipe)
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if out is None:
        digest = hashlib.sha256(resolved.encode()).hexdigest()[:6]
        out = f"runs/{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}-{digest}"
    elif (expanded(out) / RESOLVED).is_file():
        raise ManticoreError(
            f"--out {out}: a run is there already, nothing was changed. "
            f"Fix: `manticore resume {quote(out)}` goes on with it, or choose another name"
        )
    with new_folder(out) as folder:
        write_text(folder / RECIPE, loaded.text)
        write_text(folder / RESOLVED, resolved)
    return RunFolder(expanded(out), recipe)


def open_run(path: str | Path) -> RunFolder:
    """An existing run folder.

    Raises:
        ManticoreError: it is none, or a link in it leads elsewhere.
    """
    folder = expanded(path)
    if not folder.is_dir():
        raise ManticoreError(f"{path}: no such run folder. Fix: check the path, or `manticore run RECIPE`")
    if not (folder / RESOLVED).is_file():
        raise ManticoreError(f"{path}: not a run folder (no {RESOLVED} in it). Fix: give one made by `manticore run`")
    refuse_links_out(folder)
    return RunFolder(folder, load_recipe(str(folder / RESOLVED)).recipe)


def _rooted(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that a run resumes from any working directory."""
    made_here = {entry.name for entry in recipe.pretrain}
    components = [
        c if c.source in made_here else c.model_copy(update={"source": _absolute(c.source)}) for c in recipe.components
    ]
    pretrain = [
        p.model_copy(
            update={
                "text": _absolute(p.text),
                "tokenizer": p.tokenizer if p.tokenizer == "train" else _absolute(p.tokenizer),
                "tokenizer_texts": p.tokenizer_texts and [_absolute(text) for text in p.tokenizer_texts],
            }
        )
        for p in recipe.pretrain
    ]
    align = recipe.align and recipe.align.model_copy(update={"text": _absolute(recipe.align.text)})
    known = options_of("task", recipe.task.name) or {}
    paths = {name for name, option in known.items() if "Path" in option.annotation}
    options = {
        name: _absolute(value) if name in paths and isinstance(value, str) else value
        for name, value in recipe.task.options.items()
    }
    for name, sources in mixtures(recipe.task.name, options).items():
        options[name] = {each: {**source, "text": _absolute(source["text"])} for each, source in sources.items()}
    task = recipe.task.model_copy(update={"options": options})
    return recipe.model_copy(update={"components": components, "pretrain": pretrain, "align": align, "task": task})


def _absolute(text: str) -> str:
    path = expanded(text)
    if text in KEYWORDS:
        return text
    if has_magic(text) and glob(str(path), recursive=True):
        return str(path.absolute())
    return str(path.resolve()) if path.exists() else text


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
