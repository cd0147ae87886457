"""doctor: what is installed, what runs fast here, what falls back, and how to change that."""

from __future__ import annotations

import platform

from rich.table import Table

from manticore import __version__
from manticore.cli.terminal import console, say


def doctor() -> None:
    """Say what this machine has, which path Mamba's scan takes, and what could be made faster.

    Example: manticore doctor
    """
    import torch

    from manticore.cache import cache_folder
    from manticore.kernels.doctor import scan_status
    from manticore.kernels.scan_dispatch import PATHS
    from manticore.runs.environment import git_state, package_versions

    versions = package_versions()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("manticore", __version__)
    git = git_state()
    if git is not None:
        table.add_row("source", f"{git['revision'][:12]}{', with changes' if git['dirty'] else ''}")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name, version in versions.items():
        table.add_row(name, version or "not installed")
    table.add_row("device", torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU")
    table.add_row("threads", str(torch.get_num_threads()))
    status = scan_status(device)
    table.add_row("Mamba's scan", f"{status.path} (float32 on {device.type}): {status.why}")
    if status.faster is not None:
        table.add_row("  to change that", status.faster)
    for name, path in PATHS.items():
        problem = path.problem()
        table.add_row(f"  {name}", f"{path.summary}{f': {problem}' if problem else ''}")
    table.add_row("cache", str(cache_folder("models").parent))
    console.print(table)
    say("next: manticore run quickstart")
