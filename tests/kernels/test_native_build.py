"""Building and caching of compiled files: races, hostile folders, missing compilers."""

import logging
import os
import stat
import subprocess
import sys

import pytest

from manticore.kernels import native_build
from manticore.kernels.native_build import BASELINE, BuildError, InstructionSet, load_library

pytestmark = pytest.mark.skipif(
    not hasattr(os, "getuid") or native_build.shutil.which("cc") is None, reason="needs a C compiler"
)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return LANES + 38; }\n")
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def libraries(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_builds_once(source, cache, monkeypatch):
    assert load_library(source, BASELINE).answer() == 42
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    (name,) = libraries(cache)
    built = (cache / name).stat().st_mtime_ns

    def no_build(*arguments):
        raise AssertionError("built again")

    monkeypatch.setattr(native_build, "_build", no_build)
    assert load_library(source, BASELINE).answer() == 42
    assert (cache / name).stat().st_mtime_ns == built


def test_source_and_flags_make_another_file(source, cache):
    load_library(source, BASELINE)
    assert load_library(source, InstructionSet("other", 8, ())).answer() == 46
    source.write_text("int answer(void) { return 7; }\n")
    assert load_library(source, BASELINE).answer() == 7
    assert len(libraries(cache)) == 3


def test_a_changed_header_is_a_changed_source(source, cache):
    header = source.with_name("words.h")
    header.write_text("#define ANSWER 3\n")
    source.write_text('#include "words.h"\nint answer(void) { return ANSWER; }\n')
    assert load_library(source, BASELINE).answer() == 3
    header.write_text("#define ANSWER 4\n")
    assert load_library(source, BASELINE).answer() == 4


def test_two_processes_at_once(source, cache):
    code = (
        "import sys; from pathlib import Path; from manticore.kernels.native_build import BASELINE, load_library;"
        "sys.exit(load_library(Path(sys.argv[1]), BASELINE).answer() != 42)"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(source)]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert len(libraries(cache)) == 1


needs_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
needs_user = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")


@pytest.mark.parametrize(
    "trap",
    [
        "writable by others",
        pytest.param("another user's", marks=needs_root),
        pytest.param("read-only", marks=needs_user),
        "a link",
        "a file",
        "not creatable",
    ],
)
def test_hostile_folder_is_not_used(trap, source, cache, tmp_path, caplog, monkeypatch):
    cache.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if trap == "writable by others":
        cache.mkdir()
        cache.chmod(0o777)
    elif trap == "another user's":
        cache.mkdir(mode=0o700)
        os.chown(cache, 12345, 12345)
    elif trap == "read-only":
        cache.mkdir(mode=0o500)
    elif trap == "a link":
        cache.symlink_to(elsewhere)
    elif trap == "a file":
        cache.write_text("")
    else:
        # a folder that not even root can write to
        monkeypatch.setenv("MANTICORE_CACHE", "/proc/self/nothing")
    with caplog.at_level(logging.WARNING, "manticore.kernels.native_build"):
        assert load_library(source, BASELINE).answer() == 42
    assert libraries(elsewhere) == []
    assert not cache.is_dir() or libraries(cache) == []
    (record,) = caplog.records
    assert "is not usable" in record.getMessage()
    assert "Fix: set MANTICORE_CACHE" in record.getMessage()


def planted(source, cache, content_of):
    """Put another library where the cache expects this one; returns its path."""
    load_library(source, BASELINE)
    (name,) = libraries(cache)
    evil = source.with_name("evil.c")
    evil.write_text("int answer(void) { return 666; }\n")
    evil_cache = source.parent / "evil-cache"
    os.environ["MANTICORE_CACHE"] = str(evil_cache)
    load_library(evil, BASELINE)
    os.environ["MANTICORE_CACHE"] = str(cache.parent)
    (evil_library,) = (evil_cache / "kernels").glob("*.so")
    target = cache / name
    target.unlink()
    content_of(evil_library, target)
    return target


def test_planted_files_are_replaced(source, cache):
    def writable_by_others(evil, target):
        target.write_bytes(evil.read_bytes())
        target.chmod(0o666)

    target = planted(source, cache, writable_by_others)
    assert load_library(source, BASELINE).answer() == 42
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@needs_root
def test_files_of_another_user_are_replaced(source, cache):
    def given_away(evil, target):
        target.write_bytes(evil.read_bytes())
        os.chown(target, 12345, 12345)

    target = planted(source, cache, given_away)
    assert load_library(source, BASELINE).answer() == 42
    assert target.stat().st_uid == os.getuid()


def test_planted_links_are_replaced(source, cache):
    target = planted(source, cache, lambda evil, target: target.symlink_to(evil))
    assert load_library(source, BASELINE).answer() == 42
    assert not target.is_symlink()


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "cut off by a page": lambda content: content[:-4096],
    "flipped bits": lambda content: bytes(byte ^ (index % 97 == 0) for index, byte in enumerate(content)),
    "garbage": lambda content: b"not a library",
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
}


def test_a_damaged_library_is_repaired_once(tmp_path, cache):
    whole = {}
    for number, damage in enumerate(DAMAGE):
        source = tmp_path / f"answer{number}.c"
        source.write_text(f"int answer(void) {{ return {number}; }}\n")
        load_library(source, BASELINE)
        (path,) = cache.glob(f"answer{number}-*.so")
        whole[path] = path.read_bytes()
        path.write_bytes(DAMAGE[damage](whole[path]))
    # another process: this one has the libraries open already
    code = (
        "import sys; from pathlib import Path; from manticore.kernels.native_build import BASELINE, load_library\n"
        "for number in 2 * list(range(int(sys.argv[2]))):\n"
        "    assert load_library(Path(sys.argv[1]) / f'answer{number}.c', BASELINE).answer() == number"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(len(DAMAGE))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"{path} is damaged; it is made again" for path in whole]
    assert {path: path.read_bytes() for path in cache.iterdir()} == whole


def test_no_compiler(source, cache, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BuildError, match=r"no C compiler \(cc, gcc, clang not on PATH\)\. Fix: install one"):
        load_library(source, BASELINE)
    monkeypatch.setenv("CC", "strange-cc")
    with pytest.raises(BuildError, match="strange-cc not on PATH"):
        load_library(source, BASELINE)


def test_source_that_does_not_compile(source, cache):
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(BuildError, match=r"failed \(.*answer\.c.*error.*Fix: "):
        load_library(source, BASELINE)
    assert libraries(cache) == []


def test_compiler_that_does_not_run(source, cache, tmp_path, monkeypatch):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(BuildError, match="--version failed"):
        load_library(source, BASELINE)
