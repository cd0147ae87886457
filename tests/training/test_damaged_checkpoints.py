"""Whatever happens to the folder of a stopped training, it ends in the same numbers or in one clear line."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from copying_task import copying_task
from safetensors.torch import load_file, save_file
from small_models import gpt_model

from manticore.cache import MANIFEST
from manticore.errors import ManticoreError
from manticore.training.checkpoints import checkpoints, open_folder
from manticore.training.finetune import finetune

STEPS, SAVE = 4, 2
FILES = (
    *("trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "seconds.json"),
    MANIFEST,
)


class Killed(Exception):
    """In place of a signal: nothing after it runs."""


def train(out: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": 8, "lr": 1e-2, "save_steps": SAVE, "cpu": True}
    return finetune(gpt_model(), copying_task(), out=out, **settings | options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights of an unstopped training, and its folder with two checkpoints."""
    out = tmp_path_factory.mktemp("whole") / "out"
    result = train(out)
    assert [checkpoint.name for checkpoint in checkpoints(out / "checkpoints")] == ["checkpoint-2", "checkpoint-4"]
    return weights(result.model), out


@pytest.fixture
def out(whole: tuple[dict[str, torch.Tensor], Path], tmp_path: Path) -> Path:
    """A copy of the folder, to damage."""
    shutil.copytree(whole[1], tmp_path / "out")
    return tmp_path / "out"


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) * 2 // 3] ^= 0x10
    file.write_bytes(content)


def zero_end(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.seek(-min(64, size), os.SEEK_END)
        stream.write(b"\0" * min(64, size))


def longer(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b" ")


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: tuple[Callable[[Path], None], ...] = (Path.unlink, cut, empty, flip, zero_end, folder_in_its_place)


def goes_on(out: Path, steps: set[int], whole: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture) -> str:
    """Resume; the steps that must be trained again, and what was said."""
    seen: set[int] = set()
    with caplog.at_level(logging.WARNING):
        result = train(out, resume=True, progress=lambda step, total, row: seen.add(step))
    assert seen == steps
    found = weights(result.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.items())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("manticore")]
    assert all("\n" not in line for line in said)
    return "\n".join(said)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_not_believed_and_the_one_before_it_is(
    out: Path, file: str, damage: Callable[[Path], None]
) -> None:
    newest = out / "checkpoints" / f"checkpoint-{STEPS}"
    damage(newest / file)
    record = json.loads((out / "checkpoints" / "settings.json").read_text())
    inputs = record.pop("inputs")
    settings = {name: value for name, value in record.items() if name not in ("conditions", "sha256")}
    found = open_folder(out / "checkpoints", settings, resume=True, stage="finetune", inputs=inputs)
    assert found is not None
    assert found.name == f"checkpoint-{SAVE}"
    assert not newest.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "trained.safetensors"])
def test_it_ends_in_the_same_weights_and_says_so(
    whole: tuple[dict[str, torch.Tensor], Path], out: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    (out / "checkpoints" / f"checkpoint-{STEPS}" / file).unlink()
    said = goes_on(out, {3, 4}, whole[0], caplog)
    assert f"checkpoint-{STEPS} is damaged ({file} is missing) and removed; goes on from checkpoint-{SAVE}" in said


def other_step(checkpoint: Path) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state["global_step"] += 1
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


def weights_of_another(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "trained.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, checkpoint / "trained.safetensors")


def swapped(checkpoint: Path) -> None:
    shutil.copy(checkpoint.parent / f"checkpoint-{SAVE}" / "optimizer.pt", checkpoint / "optimizer.pt")


def renamed(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.parent / f"checkpoint-{SAVE}", checkpoint)


def nothing_in_it(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def gone(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    "change",
    [other_step, weights_of_another, swapped, renamed, nothing_in_it, gone],
    ids=lambda change: change.__name__,
)
def test_a_foreign_part_is_seen(
    whole: tuple[dict[str, torch.Tensor], Path],
    out: Path,
    change: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(out / "checkpoints" / f"checkpoint-{STEPS}")
    goes_on(out, {3, 4}, whole[0], caplog)


def test_where_no_checkpoint_is_whole_it_begins_again(
    whole: tuple[dict[str, torch.Tensor], Path], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for checkpoint in checkpoints(out / "checkpoints"):
        flip(checkpoint / "optimizer.pt")
    assert "goes on from the beginning" in goes_on(out, {1, 2, 3, 4}, whole[0], caplog)


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, flip, folder_in_its_place], ids=lambda d: d.__name__)
def test_damaged_settings_are_one_line(out: Path, damage: Callable[[Path], None]) -> None:
    damage(out / "checkpoints" / "settings.json")
    with pytest.raises(ManticoreError, match=r"settings\.json.*Fix: choose another out") as caught:
        train(out, resume=True)
    assert "\n" not in str(caught.value)


def test_what_was_written_aside_and_strange_names_do_not_count(
    whole: tuple[dict[str, torch.Tensor], Path], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = out / "checkpoints"
    shutil.copytree(folder / "checkpoint-4", folder / ".partial" / "checkpoint-6")
    (folder / "checkpoint-x").mkdir()
    (folder / "checkpoint-9").write_text("a file")
    goes_on(out, set(), whole[0], caplog)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.5}, r"was started with lr=0\.01 \(got 0\.5\)"),
        ({"seed": 1}, r"was started with seed=0 \(got 1\)"),
        ({"resume": False}, "holds the checkpoints of an earlier run"),
    ],
)
def test_another_key_is_refused(out: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ManticoreError, match=said):
        train(out, **{"resume": True} | options)


def test_other_weights_and_other_data_are_refused(out: Path) -> None:
    settings: dict[str, Any] = {"steps": STEPS, "batch_size": 8, "lr": 1e-2, "cpu": True, "out": out, "resume": True}
    model = gpt_model()
    with torch.no_grad():
        # in the middle of a tensor, not at one of its ends
        model.transformer.wte.weight[6, 8] += 1
    with pytest.raises(ManticoreError, match="is of another model: it was started with weights="):
        finetune(model, copying_task(), **settings)
    task = copying_task()

    def other(row: dict[str, Any], index: int) -> dict[str, Any]:
        return row if index != 11 else {**row, "input_ids": row["input_ids"][::-1]}

    task.data["train"] = task.data["train"].map(other, with_indices=True)
    with pytest.raises(ManticoreError, match="is of other data: it was started with data="):
        finetune(gpt_model(), task, **settings)


def test_other_threads_are_said_and_not_refused(
    whole: tuple[dict[str, torch.Tensor], Path], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        said = goes_on(out, set(), whole[0], caplog)
    finally:
        torch.set_num_threads(before)
    assert f"was started with threads {before}, now {before + 1}: the last bits may differ" in said


def older(out: Path) -> None:
    """The folder as the version before left it: no manifests, fingerprints among flat settings."""
    for checkpoint in checkpoints(out / "checkpoints"):
        (checkpoint / MANIFEST).unlink()
    file = out / "checkpoints" / "settings.json"
    record = json.loads(file.read_text())
    for name in ("inputs", "conditions", "sha256"):
        record.pop(name)
    file.write_text(json.dumps(record | {"data": "0123456789abcdef"}))


def test_a_folder_of_the_version_before_goes_on(
    whole: tuple[dict[str, torch.Tensor], Path], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older(out)
    shutil.rmtree(out / "checkpoints" / "checkpoint-4")
    assert goes_on(out, {3, 4}, whole[0], caplog) == ""
    assert (out / "checkpoints" / "checkpoint-2" / MANIFEST).is_file()


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_its_damaged_checkpoints_are_seen_as_far_as_they_can_be(
    whole: tuple[dict[str, torch.Tensor], Path],
    out: Path,
    file: str,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    older(out)
    if file.endswith(".json") and damage is flip:
        other_step(out / "checkpoints" / "checkpoint-4")
    elif damage is flip:
        _flip_a_part(out / "checkpoints" / "checkpoint-4" / file)
    else:
        damage(out / "checkpoints" / "checkpoint-4" / file)
    goes_on(out, {3, 4}, whole[0], caplog)


def _flip_a_part(archive: Path) -> None:
    """One bit of a stored number, which the archive has a checksum for."""
    with zipfile.ZipFile(archive) as parts:
        largest = max(parts.infolist(), key=lambda part: part.file_size)
    content = bytearray(archive.read_bytes())
    name_length, extra_length = (int.from_bytes(content[largest.header_offset + at :][:2], "little") for at in (26, 28))
    content[largest.header_offset + 30 + name_length + extra_length + largest.file_size // 2] ^= 1
    archive.write_bytes(content)
