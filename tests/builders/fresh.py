"""Code in processes that have imported neither transformers nor this package; what both stand on is imported once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_BEFORE = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
import accelerate, datasets, numpy, torch
assert not {"manticore", "transformers"} & set(sys.modules)
print("ready", flush=True)
for line in sys.stdin:
    code, *printed = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream, name in enumerate(printed, 1):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        sys.argv = ["-c"]
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__", "sys": sys})
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Fresh:
    """Runs code, each in a process of its own; to be closed.

    Args:
        folder: what is printed goes to files there.
        root: of the code, where it works and finds modules.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._printed = [folder / "output.txt", folder / "errors.txt"]
        command = [sys.executable, "-c", _BEFORE, json.dumps([str(root)])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
        assert self._answer() == "ready"

    def run(self, code: str) -> tuple[int, str, str]:
        """Its exit code, and what it printed as output and as errors."""
        assert self._process.stdin is not None
        print(json.dumps([code, *map(str, self._printed)]), file=self._process.stdin, flush=True)
        exit_code = int(self._answer())
        output, errors = (file.read_text(encoding="utf-8") for file in self._printed)
        return exit_code, output, errors

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
