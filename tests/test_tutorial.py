"""The tutorial runs from top to bottom, as a reader would paste it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tutorial_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "tutorial.py").write_text("\n".join(blocks))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MANTICORE_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "tutorial.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "trainable params" in done.stdout
    assert "base_model" not in done.stdout  # folders are no parents that a reader of the hub could open
    assert (tmp_path / "searched/mixture_weights.csv").is_file()
    assert (tmp_path / "adapter/adapter_config.json").is_file()
