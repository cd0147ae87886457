"""What a run was made with: packages, hardware, source revision, and the kernel that Mamba's scan took."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from manticore import __version__
from manticore.kernels.scan_dispatch import choose

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "safetensors",
    "tokenizers",
    "numpy",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
)


def package_versions() -> dict[str, str | None]:
    """Package → installed version, None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Everything about this machine and installation that can change numbers."""
    return {
        "manticore": __version__,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "threads": torch.get_num_threads(),
        "scan": choose(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def git_state() -> dict[str, Any] | None:
    """Revision of the source and whether it has changes of its own; None where it is not a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return {"revision": revision, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
