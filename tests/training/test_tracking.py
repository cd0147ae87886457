"""Trackers are told what metrics.jsonl holds, and a name that cannot be served ends in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from copying_task import VOCABULARY, copying_task

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Name → step → value, read by TensorBoard itself."""
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed: pip install -e '.[dev]'",
    )
    events = reading.EventAccumulator(str(folder))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_the_search_with_its_mixture_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -e '.[dev]'")
    parents = [tiny_model("gpt_neo", vocab_size=VOCABULARY), tiny_model("mamba", vocab_size=VOCABULARY)]
    hybrid = manticore.combine(parents, num_blocks=2, vocab_size=VOCABULARY, check=False)
    manticore.search(
        hybrid, copying_task(), method="darts", steps=3, batch_size=4, out=tmp_path, report_to="tensorboard"
    )
    seen, logged = curves(tmp_path / "tensorboard"), rows(tmp_path)
    assert len(logged) == 3
    for row in logged:
        assert seen["train/loss"][row["step"]] == pytest.approx(row["loss"])
        assert seen["train/entropy"][row["step"]] == pytest.approx(row["entropy"])
        assert seen["train/mixture_weights/1/0"][row["step"]] == pytest.approx(row["mixture_weights"][1][0])
    # transformers says so per row and cell where a value is not a number
    assert "Trainer is attempting to log" not in caplog.text


def test_tensorboard_writes_where_its_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -e '.[dev]'")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    model = tiny_model("gpt2", vocab_size=VOCABULARY)
    result = manticore.finetune(model, copying_task(), steps=2, batch_size=4, report_to=["tensorboard"])
    assert curves(tmp_path / "mine")["train/loss"] == {
        row["step"]: pytest.approx(row["loss"]) for row in result.history
    }


def test_what_cannot_be_reported_to_is_refused_before_anything_is_done() -> None:
    model = tiny_model("gpt2", vocab_size=VOCABULARY)
    before = model.config.to_dict()
    with pytest.raises(ManticoreError, match=r"no tracker 'tensorbord'. Did you mean 'tensorboard'"):
        manticore.finetune(model, copying_task(), report_to="tensorbord")
    # nothing here installs that one
    with pytest.raises(ManticoreError, match=r"finetune: report_to: swanlab cannot be used .* Fix: install it"):
        manticore.finetune(model, copying_task(), report_to=["swanlab"])
    assert model.config.to_dict() == before


def test_tensorboard_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install -e '.[dev]'")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(ManticoreError, match=r"tensorboard has no folder to write to. Fix: give out"):
        manticore.finetune(tiny_model("gpt2", vocab_size=VOCABULARY), copying_task(), report_to="tensorboard")
