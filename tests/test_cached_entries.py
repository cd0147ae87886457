"""What is cached is checked before it is believed, whatever happened to it, and made again where it is not whole."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Features, Value
from PIL import Image

from manticore.cache import Entry, cache_folder
from manticore.errors import ManticoreError
from manticore.tasks.lra.examples import load
from manticore.tasks.lra.images import write_pathfinder
from manticore.tasks.lra.pathfinder import examples
from manticore.tasks.mad.examples import generate
from manticore.tasks.stored_rows import stored_rows
from manticore.training.pretrain import pretrain
from manticore.writing import new_folder, write_bytes

SMALL = {"num_train_examples": 20, "num_test_examples": 10}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flipped(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "flipped near the beginning": lambda path: flipped(path, 0.02),
    "flipped in the middle": flipped,
    "flipped at the end": lambda path: flipped(path, 1.0),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(900)),
}


def mad(seed: int = 0) -> list[np.ndarray]:
    data = generate("in-context-recall", seed=seed, **SMALL)
    return [array for pair in data.values() for array in pair]


@pytest.mark.parametrize("value", [99, -7, np.nan])
def test_mad_data_with_other_ids_are_made_again(own_cache: Path, value: float) -> None:
    first = mad()
    (path,) = own_cache.rglob("*.npz")
    with np.load(path) as stored:
        columns = {name: stored[name] for name in stored.files}
    columns["train_inputs"] = columns["train_inputs"].astype(np.float64 if np.isnan(value) else np.int64)
    columns["train_inputs"][0, 3] = value
    np.savez(path, **columns)
    for array, expected in zip(mad(), first, strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_mad_data_are_replaced(own_cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    first = mad()
    (path,) = own_cache.rglob("*.npz")
    whole = path.read_bytes()
    DAMAGE[damage](path)
    for array, expected in zip(mad(), first, strict=True):
        np.testing.assert_array_equal(array, expected)
    assert f"{path} is damaged; it is made again" in caplog.messages
    assert path.read_bytes() == whole


def test_data_of_another_setting_are_not_taken(own_cache: Path) -> None:
    first = mad(0)
    (path,) = own_cache.rglob("*.npz")
    second = mad(1)
    (other,) = set(own_cache.rglob("*.npz")) - {path}
    swap(path, other)
    for data, expected in ((mad(0), first), (mad(1), second)):
        for array, right in zip(data, expected, strict=True):
            np.testing.assert_array_equal(array, right)
    # nor where the digest came along with the content
    digest, name = other.name.split(".")[1], path.name.split(".")[0]
    path.unlink()
    shutil.copy(other, path.with_name(f"{name}.{digest}.npz"))
    np.testing.assert_array_equal(mad(0)[0], first[0])


def rows(count: int) -> list[int]:
    features = Features({"x": Value("int64")})
    return stored_rows("lra", "numbers", {"count": count}, features, lambda: ({"x": i + count} for i in range(count)))[
        "x"
    ][:]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_rows_are_replaced(own_cache: Path, damage: str) -> None:
    expected = rows(300)
    (path,) = own_cache.rglob("*.arrow")
    whole = path.read_bytes()
    DAMAGE[damage](path)
    assert rows(300) == expected
    assert path.read_bytes() == whole


def test_rows_of_another_setting_are_not_taken(own_cache: Path) -> None:
    expected = rows(300), rows(301)
    swap(*own_cache.rglob("*.arrow"))
    assert (rows(300), rows(301)) == expected


def swap(path: Path, other: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def test_files_changed_under_the_same_size_and_time_are_read_again(tmp_path: Path) -> None:
    lines = [f"( ( ( ( ( [MAX {i % 9} ) 3 ) 1 ) ] ) )\t{max(i % 9, 3)}" for i in range(30)]
    for part in ("train", "val", "test"):
        (tmp_path / f"basic_{part}.tsv").write_text("Source\tTarget\n" + "\n".join(lines) + "\n")
    path = tmp_path / "basic_train.tsv"
    first = load("listops", tmp_path)["train"]["label"][:]
    before = path.stat()
    path.write_text(path.read_text().replace("\t3\n", "\t4\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load("listops", tmp_path)["train"]["label"][:] == [4 if label == 3 else label for label in first]


def test_an_image_changed_under_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    folder = write_pathfinder(tmp_path / "pathfinder32", examples("train", 20, level="easy"), "easy")
    first = load("pathfinder32", tmp_path, level="easy")
    image = next(folder.rglob("*.png"))
    with Image.open(image) as opened:
        pixels = np.asarray(opened)
    before = image.stat()
    Image.fromarray(255 - pixels).save(image)
    content = image.read_bytes()
    image.write_bytes(content[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    try:
        again = load("pathfinder32", tmp_path, level="easy")
    except ManticoreError as error:
        assert image.name in str(error)  # noqa: PT017
    else:
        assert any(again[split][:] != first[split][:] for split in first)


TINY = {"layers": 1, "width": 16, "text": ["a b c d e f g h " * 40] * 8, "vocab_size": 270, "length": 8, "steps": 0}


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "pretraining.json"])
def test_a_damaged_pretrained_model_is_made_again(file: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = pretrain("gpt_neo", **TINY)
    whole = (folder / file).read_bytes()
    flipped(folder / file)
    assert pretrain("gpt_neo", **TINY) == folder
    assert (folder / file).read_bytes() == whole
    assert f"{folder} is damaged; it is pretrained again" in caplog.messages
    (folder / file).unlink()
    assert (pretrain("gpt_neo", **TINY) / file).read_bytes() == whole


def test_a_sound_pretrained_model_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pretrain("gpt_neo", **TINY)
    monkeypatch.setattr("manticore.training.pretrain.train_tokenizer", None)
    assert pretrain("gpt_neo", **TINY) == folder


def keep_repeatedly(folder: Path, content: bytes) -> None:
    entry = Entry(folder, "shared", ".bin")
    for _ in range(60):
        found = entry.read()
        assert found in (None, content)
        with entry.aside() as aside:
            aside.write_bytes(content)
            assert entry.keep(aside).read_bytes() == content


def test_several_processes_may_make_an_entry_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=keep_repeatedly, args=(tmp_path, b"x" * 5000)) for _ in range(3)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_entry_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda stream: (events.append("fsync"), fsync(stream)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    entry = Entry(tmp_path, "name", ".bin")
    with entry.aside() as aside:
        aside.write_bytes(b"content")
        entry.keep(aside)
    assert events == ["fsync", "replace"]


KILLED = """
import sys, time
from pathlib import Path
from manticore.writing import new_folder, partial_path
with partial_path(Path(sys.argv[1]) / "file") as file, new_folder(Path(sys.argv[1]) / "folder") as folder:
    file.write_bytes(b"weights")
    (folder / "model.safetensors").write_bytes(b"weights")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed, living = (subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2))
    try:
        for process in (killed, living):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.iterdir())) == 4
        killed.kill()
        killed.wait()
        write_bytes(tmp_path / "another", b"")
        left = sorted(path.name for path in tmp_path.iterdir())
        assert len(left) == 3
        assert all(str(living.pid) in name or name == "another" for name in left)
    finally:
        for process in (killed, living):
            process.kill()
            process.communicate()
    with new_folder(tmp_path / "folder"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "folder"]


def test_links_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("kept")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / ".x.partial-1").symlink_to(outside)
    (inside / ".notes.partial").write_text("kept")
    write_bytes(inside / "file", b"")
    assert (outside / "mine").read_text() == "kept"
    assert (inside / ".notes.partial").exists()


def test_a_user_without_a_home_has_a_private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MANTICORE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / f"manticore-{os.getuid()}"
    assert cache_folder("mad") == place / "mad"
    assert place.stat().st_mode & 0o077 == 0
    place.chmod(0o777)
    with pytest.raises(ManticoreError, match=r"may not be used\. Fix: set HOME or MANTICORE_CACHE"):
        cache_folder("mad")
    monkeypatch.setenv("MANTICORE_CACHE", "~nosuchuser/cache")
    with pytest.raises(ManticoreError, match=r"no home folder for '~nosuchuser/cache'\. Fix: write the path in full"):
        cache_folder("mad")
