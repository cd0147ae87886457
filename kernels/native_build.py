"""Compile a C file of this folder once per machine, and load it.

The library lies in a cache folder under a name that is a hash of all that shapes it: source, the headers beside it,
flags, instruction set and the compiler's version. The folder is made for the user alone; a folder or file that another
user could have written is not loaded from. A library is built aside and renamed, so two processes that build at once
do no harm; one that was cut off or changed since is built again, since to load it would end the process or give other
numbers. Without a usable cache folder the library is built in a private temporary folder, in each process anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from manticore.cache import VARIABLE as CACHE_VARIABLE
from manticore.cache import Entry, cache_folder
from manticore.errors import ManticoreError
from manticore.writing import partial_path

logger = logging.getLogger(__name__)

_BUILD_SECONDS = 120
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread")


class BuildError(Exception):
    """The library cannot be had; the message is a phrase that says why and, after ``Fix:``, what to do."""


@dataclass(frozen=True)
class InstructionSet:
    """How wide the vectors may be, and the flags that allow it."""

    name: str
    lanes: int
    """float32 numbers in a vector."""
    flags: tuple[str, ...]


BASELINE = InstructionSet("baseline", 4, ())
INSTRUCTION_SETS = {
    "AVX512": InstructionSet(
        "AVX-512",
        16,
        ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    ),
    "AVX2": InstructionSet("AVX2", 8, ("-mavx2", "-mfma")),
}
"""By torch's name for what the processor can do. Vectors wider than that are several times slower, not wrong."""


def instruction_set() -> InstructionSet:
    """The widest one that this processor has."""
    return INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), BASELINE)


def find_compiler() -> str:
    """Path of a C compiler: ``$CC``, else the first of the usual names."""
    wanted = os.environ.get("CC")
    names = (wanted,) if wanted else _COMPILERS
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(
        f"no C compiler ({', '.join(names)} not on PATH). "
        "Fix: install one (Debian, Ubuntu: apt install gcc libc6-dev) or set CC to its path"
    )


def load_library(source: Path, target: InstructionSet) -> ctypes.CDLL:
    """The compiled ``source``, from the cache or built now.

    Raises:
        BuildError: no compiler, or it failed, or the library does not load.
    """
    if not hasattr(os, "getuid"):
        raise BuildError(f"not supported on {platform.system()}. Fix: use Linux or macOS")
    compiler = find_compiler()
    flags = (*_FLAGS, f"-DLANES={target.lanes}", *target.flags)
    name = f"{source.stem}-{_fingerprint(source, compiler, flags)}"
    try:
        folder = cache_folder("kernels")
    except ManticoreError as error:
        raise BuildError(str(error)) from error
    problem = _prepare(folder)
    if problem is None:
        entry = Entry(folder, name, ".so")
        try:
            library = entry.find()
            if library is None or not _is_ours(library):
                with partial_path(folder / f"{name}.so", folder=True) as aside:
                    library = entry.keep(_build(source, compiler, flags, aside / f"{name}.so"))
            return ctypes.CDLL(str(library))
        except OSError as error:
            # full disk, or no execution from this disk
            problem = f"{type(error).__name__}: {error}"
    logger.warning(
        "cache folder %s is not usable (%s): compiling %s for this process alone, some seconds each time. "
        "Fix: set %s to a folder of your own",
        folder,
        problem,
        source.name,
        CACHE_VARIABLE,
    )
    with tempfile.TemporaryDirectory(prefix="manticore-") as private:
        try:
            # the open library outlives its file
            return ctypes.CDLL(str(_build(source, compiler, flags, Path(private) / f"{name}.so")))
        except OSError as error:
            raise BuildError(
                f"the compiled library does not load ({error}). Fix: set {CACHE_VARIABLE} or TMPDIR to a folder "
                "that allows execution"
            ) from error


def _fingerprint(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    """Hash of everything that decides what the library contains."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_BUILD_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} --version failed ({error}). Fix: set CC to a working C compiler") from error
    code = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*code, " ".join(flags).encode(), platform.machine().encode(), version.stdout)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _prepare(folder: Path) -> str | None:
    """Make the folder, for this user alone; what is wrong with it, or None."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if found.st_uid != os.getuid():
        return "it belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others may write to it"
    return None


def _is_ours(library: Path) -> bool:
    """Whether a file is there that only this user can have written."""
    try:
        found = library.lstat()
    except FileNotFoundError:
        return False
    private = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and private


def _build(source: Path, compiler: str, flags: tuple[str, ...], output: Path) -> Path:
    """Compile ``source``; returns ``output``."""
    command = [compiler, *flags, str(source.resolve()), "-o", str(output)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} did not run ({error}). Fix: set CC to a working C compiler") from error
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no message"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(
            f"{compiler} failed ({first}). Fix: set CC to a recent gcc or clang with the C library's headers"
        )
    output.chmod(0o600)
    return output
