"""``manticore report`` on the folder of an architecture search."""

from __future__ import annotations

from pathlib import Path

from study_records import build_study, write_study
from typer.testing import CliRunner

from manticore.cli.app import app


def test_a_study_gets_its_page_again(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "found", build_study(("loss",), generations=2))
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert (folder / "report.html").is_file()
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert f"wrote {folder}/report.html" in lines
    assert any(line.startswith(f"next: manticore scale {folder}/designs/") for line in lines)
    assert "was seen" in done.output


def test_a_damaged_study_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "found", build_study(generations=1) | {"trials": []})
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 2
    assert "study.json: trials: wrong value" in " ".join(done.output.split())
