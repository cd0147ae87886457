"""What was done, with what, and whether it still is as it was written.

Three kinds of state, used by trainings, by everything that makes many runs, and by the stages of a run: a record (one
JSON object that carries its own digest), a log of runs (one line each), a sealed folder
(:func:`manticore.cache.seal`: a manifest of digests, written last). Each has a key: the settings, and the digests of
the inputs. What has another key is refused, what is damaged is never believed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manticore.cache import file_digest
from manticore.errors import ManticoreError, in_brief
from manticore.paths import refuse_links_out
from manticore.reading import damaged, read_object
from manticore.writing import write_json, write_text

logger = logging.getLogger(__name__)

SETTINGS = "settings"
INPUTS = "inputs"
CONDITIONS = "conditions"
"""Parts of a key's record."""

_DIGEST = "sha256"
RUNS = "units.jsonl"
_ALWAYS_READ = 1 << 24
"""Bytes of a file that is read anew whatever its size and times say."""


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own digest, whole or not at all."""
    write_json(path, _signed(value))


def read_record(path: Path, fix: str) -> dict[str, Any] | None:
    """What :func:`write_record` wrote, None where there is no file; older files carry no digest.

    Raises:
        ManticoreError: something else is there.
    """
    record = read_object(path, fix)
    if record is not None and not _is_signed(record):
        raise damaged(path, "its content is not what was written", fix)
    return record


def key(settings: Mapping[str, Any], inputs: Mapping[str, str | None], *, scan: bool = True) -> dict[str, Any]:
    """The record of what determines a result, as JSON values.

    What may change the last bits though it is no setting is noted beside it: threads, and the path of Mamba's scan.

    Args:
        settings: everything that somebody chose.
        inputs: name → digest of what is read.
        scan: whether Mamba layers may be among the models; else no path of the scan is chosen, or even built.
    """
    import torch

    from manticore.kernels.scan_dispatch import choose

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = choose(device, torch.float32) if scan else None
    conditions = {"threads": torch.get_num_threads(), "scan": path}
    return {SETTINGS: json.loads(json.dumps(settings)), INPUTS: dict(inputs), CONDITIONS: conditions}


def refuse_another(before: Mapping[str, Any], now: Mapping[str, Any], where: str, fix: str) -> None:
    """Refuse to go on with what was begun with other settings or inputs; other conditions are said.

    Args:
        before: the key's record, as it was written.
        now: the key of what is asked for.
        where: begins the message: stage and place.
        fix: the way out beside the same settings.

    Raises:
        ManticoreError: they differ; the message names the first difference.
    """
    for name in sorted({*before[SETTINGS], *now[SETTINGS]}):
        old, new = before[SETTINGS].get(name), now[SETTINGS].get(name)
        if old != new:
            raise ManticoreError(
                f"{where} was started with {name}={in_brief(repr(old), 100)} (got {in_brief(repr(new), 100)}). "
                f"Fix: resume with the same settings or {fix}"
            )
    refuse_changed(before.get(INPUTS, {}), now[INPUTS], where, fix)
    say_changed(before.get(CONDITIONS, {}), now[CONDITIONS], where)


def say_changed(before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Warn where threads, scan or torch are not what they were; what was not noted is passed over."""
    said = [
        f"{name} {before[name]}, now {now[name]}"
        for name in ("threads", "scan", "torch")
        if before.get(name) is not None and before[name] != now.get(name)
    ]
    if said:
        logger.warning("%s was started with %s: the last bits may differ", where, "; ".join(said))


def refuse_changed(before: Mapping[str, Any], now: Mapping[str, Any], where: str, fix: str) -> None:
    """Refuse inputs that are not what they were; what was not noted before, by an older version, is taken.

    Args:
        before: name → digest; names begin with ``data`` or ``weights``.
        now: the same of what is there now.
        where: begins the message.
        fix: the way out beside what was there before.

    Raises:
        ManticoreError: they differ; the message names the first difference.
    """
    for name in sorted({*before} & {*now}):
        if before[name] != now[name]:
            raise ManticoreError(
                f"{where} is of {'other data' if name.startswith('data') else 'another model'}: it was started with "
                f"{name}={str(before[name])[:12]} (sha256, got {str(now[name])[:12]}). "
                f"Fix: put them back as they were, or {fix}"
            )


class Digests:
    """Digests of files. A large one is read again only if its size, times or number say that it may have changed.

    A small file is always read: its content can change within one tick of the clock. The time of the last change of a
    file's state (ctime), which no program sets, is among the times, so a large file whose content was replaced under
    an old modification time is read too.

    Args:
        memory: a JSON file to remember them in; what is wrong with it only costs time.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            self._known = read_object(memory, "") or {}
        except ManticoreError:
            self._known = {}

    def of(self, path: Path) -> str:
        """The sha256 of a file's content, in hex."""
        status = path.stat()
        mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        known = self._known.get(str(path.absolute()))
        if status.st_size > _ALWAYS_READ and isinstance(known, dict) and known.get("mark") == mark:
            return str(known["digest"])
        digest = file_digest(path)
        if status.st_size > _ALWAYS_READ:
            self._known[str(path.absolute())] = {"mark": mark, "digest": digest}
            write_json(self._memory, self._known)
        return digest


class RunLog:
    """The key of a job of many runs on the first line of a file, then one line per finished run.

    A killed job repeats none that is there. Every line carries its own digest; a damaged one is dropped, with a
    warning, and its run is made again.

    Args:
        path: the file; None keeps results in memory only.
        settings: everything that the results depend on, apart from their names; JSON values.
        inputs: name → digest of what is read.
        resume: whether results found there count.
        stage: the caller's name in messages.

    Raises:
        ManticoreError: there are results and `resume` is off, or they were made with other settings or inputs.
    """

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str | None] | None = None,
        *,
        resume: bool,
        stage: str,
    ) -> None:
        self._path = path
        self._results: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        refuse_links_out(path.parent)
        lines, now = _whole_lines(path, stage), key(settings, inputs or {})
        if lines:
            if not resume:
                raise ManticoreError(
                    f"{stage}: {path} holds results of an earlier run. "
                    "Fix: resume it (resume=True) or choose another out"
                )
            refuse_another(lines[0], now, f"{stage}: {path}", "choose another out")
            self._results = {line["unit"]: line["result"] for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [now, *({"unit": run, "result": result} for run, result in self._results.items())]
        write_text(path, "".join(map(_line, kept)))

    def get(self, run: str) -> dict[str, Any] | None:
        """The result of a finished run."""
        return self._results.get(run)

    def add(self, run: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a finished run's result; returns it as it will be read back."""
        line = _line({"unit": run, "result": result})
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self._results[run] = json.loads(line)["result"]
        return self._results[run]


def _whole_lines(path: Path, stage: str) -> list[dict[str, Any]]:
    """The key's record and the lines of finished runs; nothing where no run has finished."""
    fix = "choose another out"
    try:
        if not path.is_file():
            if path.exists():
                raise damaged(path, "not a regular file", fix)
            return []
        # a line without its end was being written when the process was killed
        found = [_parsed(line) for line in path.read_bytes().split(b"\n")[:-1]]
    except OSError as error:
        raise damaged(path, str(error), fix) from error
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(found, 1):
        names = ("unit", "result") if lines else (SETTINGS,)
        if line is None and lines:
            logger.warning("%s: line %d of %s is damaged; its run is made again", stage, number, path)
        elif line is None or any(name not in line for name in names) or not isinstance(line[names[-1]], dict):
            raise damaged(path, f"line {number} lacks {names[0]}", fix)
        else:
            lines.append(line)
    if lines and INPUTS not in lines[0]:
        lines[0][SETTINGS] = without_fingerprints(lines[0][SETTINGS])
    return lines


def without_fingerprints(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings noted by an older version, without what stood for the ends of inputs in them."""
    return {n: value for n, value in settings.items() if n != "data" and not n.startswith(("data of ", "weights of "))}


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_signed(value) else None


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(_signed(value)) + "\n"


def _signed(value: Mapping[str, Any]) -> dict[str, Any]:
    return {**value, _DIGEST: digest_of(value)}


def _is_signed(record: dict[str, Any]) -> bool:
    """Whether a record is what was written; takes its digest out."""
    digest = record.pop(_DIGEST, None)
    return digest is None or digest == digest_of(record)


def digest_of(value: Mapping[str, Any]) -> str:
    """The sha256 of a JSON object, in hex; the order of its names does not matter."""
    # by way of JSON, which knows neither tuples nor keys that are numbers
    return hashlib.sha256(json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()).hexdigest()
