"""A fuzzer: whatever stands in a recipe, a checkpoint, a tokenizer, data, the cache or a run's records, a command ends
soon, with exit code 0 or with 2 and a line per mistake, and leaves what it was given as it was.

Here a sample drawn with a fixed seed runs; ``make test-long`` runs every case (MANTICORE_FUZZ=long), or those whose
name holds a word (MANTICORE_FUZZ=rope).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from tiny_models import gpt_neo_config, mamba_config, seeded
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.schema.recipe import Recipe
from manticore.tasks.lra.images import write_pathfinder
from manticore.tasks.lra.pathfinder import examples
from manticore.training.tokenizers import train_tokenizer

WANTED = os.environ.get("MANTICORE_FUZZ", "")
SECONDS = 60
"""What a command on tiny inputs may take before it counts as hanging."""

Case = tuple[str, Callable[[], None]]

DIGITS = "1" * 4301
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 99, 2**31, 2**63, 2**64, 10**400, 0.5, -0.5, 1e-30, 1e308, -1e308,
    float("inf"), float("nan"), "", " ", "x", "x" * 300, "\x1b[31m\nnext: rm", "~nosuchuser", "../..", "/dev/zero",
    "²", "null", "1e400", "é☃", "\ud800", [], [1], [[]], ["x"], [None], {}, {"a": 1},
]  # fmt: skip
"""JSON can hold all of them, in Python's spelling."""
TEXTS = [
    *("null", "true", "0", "1", "-1", "2", "1e400", "1.5", ".inf", "-.inf", ".nan", "''", "' '", "x", "~nosuchuser/a"),
    *("../..", "/dev/zero", "²", "é☃", "[]", "[1, 2]", "[[]]", "{}", "{a: 1}", "{a: {b: c}}", "x" * 300, "1:30", "0o7"),
    *(DIGITS, f"0x{'f' * 5000}", f"-{DIGITS}", f"1.{DIGITS}", '"\\0"', '"\\e[31m\\n"', "!!python/object:os.system x"),
    *("*a", "&a [*a]", "{", "[" * 50, "'", "yes", "2020-01-01", "1_000", "<<: {}", "task", "stdlib", "mad/"),
]
"""Values of a recipe's keys as YAML."""


class Hung(BaseException):
    """A command took too long; nothing that it calls may catch this."""


def run(*words: str) -> None:
    """Run a command here.

    Raises:
        AssertionError: a traceback, another exit code, or an error that is not one line each.
    """

    def stop(_number: int, _frame: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        result = CliRunner().invoke(app, list(words))
    except Hung:
        raise AssertionError(f"took more than {SECONDS} s") from None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        frames = traceback.extract_tb(result.exception.__traceback__)
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames][-3:]
        raise AssertionError(f"{type(result.exception).__name__}: {str(result.exception)[:200]!r} at {where}")
    assert result.exit_code in (0, 2), f"exit code {result.exit_code}: {result.stderr[-300:]!r}"
    assert result.exit_code == 0 or result.stderr.splitlines()[-1].startswith("error: "), result.stderr[-300:]
    assert "\x1b" not in result.output, "an escape was printed"


def chosen(cases: Iterator[Case], most: int) -> list[Case]:
    found = list(cases)
    if WANTED == "long":
        return found
    if WANTED:
        return [case for case in found if WANTED in case[0]]
    return random.Random(len(found)).sample(found, min(most, len(found)))


def report(cases: list[Case]) -> None:
    failed = []
    for name, action in cases:
        try:
            action()
        except AssertionError as error:
            failed.append(f"{name}: {error}")
    shown = "\n".join(line[:500] for line in failed[:60])
    assert not failed, f"{len(failed)} of {len(cases)} cases:\n{shown}"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a cache and sound checkpoints: a GPT-Neo, a Mamba, a hybrid of them, a stack."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANTICORE_CACHE", str(root / "cache"))
        patch.chdir(root)
        sound = root / "sound"
        tokenizer = train_tokenizer(["def f(x):\n    return x + 1\n"] * 3, 260)
        rows = len(tokenizer)
        ends = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 0}
        local = {"attention_types": [[["global", "local"], 1]], "window_size": 4}
        neo, mamba = gpt_neo_config(rows, 8, 2, **local, **ends), mamba_config(rows, 8, 2, expand=1, **ends)
        for seed, (name, config) in enumerate((("gpt", neo), ("mamba", mamba))):
            seeded(config, seed).save_pretrained(sound / name)
            tokenizer.save_pretrained(sound / name)
        parents = [str(sound / name) for name in ("gpt", "mamba")]
        manticore.combine(parents, num_blocks=2).save_pretrained(sound / "hybrid")
        config = manticore.StackConfig(layers=["mlp", "attention"], hidden_size=8, vocab_size=rows)
        manticore.StackForCausalLM(config).save_pretrained(sound / "stack")
        tokenizer.save_pretrained(sound / "stack")
        (root / "text.txt").write_text("def f(x):\n    return x + 1\n" * 400)
        yield root


MODELS = ("gpt", "mamba", "hybrid", "stack")


def changed(place: Path, model: str, change: Callable[[Path], None]) -> None:
    """Generate with a changed copy of a checkpoint; the copy must stay as it was changed."""
    copy = place / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place / "sound" / model, copy)
    change(copy)
    before = digests(copy)
    run("generate", "copy", "def f", "--max-new-tokens", "2")
    assert digests(copy) == before, "the checkpoint was written to"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        nested = [each for each in _kinds(field.annotation) if isinstance(each, type) and issubclass(each, BaseModel)]
        item = "0." if "list[" in str(field.annotation) else ""
        for each in nested:
            yield from keys(each, f"{prefix}{name}.{item}")


def _kinds(annotation: Any) -> Iterator[Any]:
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for each in inner:
        yield from _kinds(each)


def test_every_key_of_a_recipe(place: Path) -> None:
    found = sorted(set(keys(Recipe)))
    assert len(found) > 60
    before = digests(place)
    cases = [
        (f"{key}={value[:30]}", functools.partial(run, "check", "quickstart", f"{key}={value}"))
        for key in [*found, "components.².source", f"components.{DIGITS}.source", "components.-1", "..", "a.b", "\x1b"]
        for value in TEXTS
    ]
    report(chosen(iter(cases), 220))
    assert digests(place) == before


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value, of long lists the first entries."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from fields(inner, (*path, key))


def placed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = placed(value[path[0]], path[1:], new)
    return copy


def json_cases(file: Path, more: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(name, new content) of a JSON file: each value in it replaced by each scalar; keys added; no JSON at all."""
    value = json.loads(file.read_text())
    for key in more:
        value.setdefault(key, None)
    for path in fields(value):
        for scalar in SCALARS:
            yield f"{'.'.join(map(str, path))}={str(scalar)[:30]!r}", json.dumps(placed(value, path, scalar))
    yield from (("cut off", file.read_text()[:-5]), ("empty", ""), ("deep", "[" * 10**5), ("digits", DIGITS))


def write(name: str, content: str | bytes, folder: Path) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


MORE = {
    "config.json": ("architectures", "auto_map", "quantization_config", "num_beams", "tie_word_embeddings", "dtype"),
    "generation_config.json": ("num_beams", "num_return_sequences", "do_sample", "temperature", "max_length", "top_k"),
}


@pytest.mark.parametrize(("file", "most"), [("config.json", 70), ("generation_config.json", 20)])
def test_settings_of_checkpoints(place: Path, file: str, most: int) -> None:
    def cases() -> Iterator[Case]:
        for model in MODELS:
            for name, content in json_cases(place / "sound" / model / file, MORE[file]):
                change = functools.partial(write, file, content)
                yield f"{model}/{file} {name}", functools.partial(changed, place, model, change)

    report(chosen(cases(), most))


def test_tokenizers(place: Path) -> None:
    def cases() -> Iterator[Case]:
        folder = place / "sound" / "gpt"
        for file in ("tokenizer.json", "tokenizer_config.json"):
            for name, content in json_cases(folder / file):
                change = functools.partial(write, file, content)
                yield f"{file} {name}", functools.partial(changed, place, "gpt", change)
        longer = json.loads((folder / "tokenizer.json").read_text())
        longer["model"]["vocab"]["d"], longer["model"]["merges"] = 4000, []
        more = functools.partial(write, "tokenizer.json", json.dumps(longer))
        yield "tokenizer.json more tokens than rows", functools.partial(changed, place, "gpt", more)

    report(chosen(cases(), 25))


def flips(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Flipped bytes in the beginning, where formats keep their sizes, and all over; cut off; other content."""
    drawn = random.Random(zlib.crc32(content))
    for place in [*range(min(16, len(content))), *(drawn.randrange(len(content)) for _ in range(120))]:
        changed_one = bytearray(content)
        changed_one[place] ^= 1 << drawn.randrange(8)
        yield f"flipped at {place}", bytes(changed_one)
    for share in (0, 1, 8, len(content) // 2, len(content) - 1):
        yield f"cut off at {share}", content[:share]
    yield "garbage", drawn.randbytes(900)
    yield "longer", content + b"\0" * 9


def test_weights(place: Path) -> None:
    def tensors(change: Callable[[torch.Tensor], torch.Tensor | None], which: int, folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        key = sorted(held)[which % len(held)]
        new = change(held.pop(key))
        if new is not None:
            held[key] = new.contiguous()
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    def index(target: Any, folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        weight_map = dict.fromkeys(held, target) if not isinstance(target, dict) else target
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    kinds = (torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float64, torch.float16)
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        **{str(kind): functools.partial(torch.Tensor.to, dtype=kind) for kind in kinds},
        "missing": lambda t: None,
        "NaN": lambda t: t * float("nan"),
        "infinity": lambda t: t + float("inf"),
        "empty": lambda t: t[:0],
        "scalar": lambda t: t.sum(),
        "flat": torch.flatten,
        "doubled": lambda t: torch.cat([t, t]),
        "one more dimension": lambda t: t[None],
    }

    def cases() -> Iterator[Case]:
        for model in MODELS:
            file = place / "sound" / model / "model.safetensors"
            for name, content in flips(file.read_bytes()):
                change = functools.partial(write, "model.safetensors", content)
                yield f"{model} {name}", functools.partial(changed, place, model, change)
            for name, kind in changes.items():
                for which in (0, 3, 6):
                    change = functools.partial(tensors, kind, which)
                    yield f"{model} {name} {which}", functools.partial(changed, place, model, change)
            for target in [*SCALARS, "part.safetensors", "../x.safetensors", "part.bin", {"x": "part.safetensors"}]:
                change = functools.partial(index, target)
                yield f"{model} index to {str(target)[:20]!r}", functools.partial(changed, place, model, change)

    report(chosen(cases(), 45))


def lra_folder(place: Path) -> Path:
    folder = place / "release"
    if not folder.exists():
        (folder / "listops-1000").mkdir(parents=True)
        (folder / "tsv_data").mkdir()
        (folder / "cifar-10-batches-bin").mkdir()
        expression = "( ( ( ( ( [MAX 2 ) 3 ) 1 ) ] ) )"
        for part in ("train", "val", "test"):
            (folder / f"listops-1000/basic_{part}.tsv").write_text("Source\tTarget\n" + f"{expression}\t3\n" * 9)
        for part in ("train", "eval", "test"):
            (folder / f"tsv_data/new_aan_pairs.{part}.tsv").write_text("1.0\t1\t2\t'abc'\t'def'\n" * 9)
        for part in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
            record = bytes([3]) + bytes(range(256)) * 12
            (folder / f"cifar-10-batches-bin/{part}.bin").write_bytes(record * 2)
        write_pathfinder(folder / "pathfinder32", examples("train", 20, level="easy"))
    return folder


def test_data(place: Path) -> None:
    release = lra_folder(place)
    files = {
        "listops": "listops-1000/basic_train.tsv",
        "retrieval": "tsv_data/new_aan_pairs.train.tsv",
        "image": "cifar-10-batches-bin/data_batch_1.bin",
        "pathfinder32": "pathfinder32/curv_contour_length_14/metadata/0.npy",
    }

    def load(task: str, file: str, content: bytes) -> None:
        path = release / file
        whole = path.read_bytes()
        path.write_bytes(content)
        before = digests(release)
        try:
            run("evaluate", "sound/gpt", "--task", f"lra/{task}", "--task-option", f"data_dir={release}")
            assert digests(release) == before
        finally:
            path.write_bytes(whole)

    def text(name: str, content: bytes | None) -> None:
        path = place / name
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)
        try:
            run(
                "evaluate",
                "sound/gpt",
                "--task",
                "text",
                "--task-option",
                f"source={path}",
                "--task-option",
                "length=8",
            )
        finally:
            path.unlink()

    def cases() -> Iterator[Case]:
        for task, file in files.items():
            for name, content in flips((release / file).read_bytes()):
                yield f"{file} {name}", functools.partial(load, task, file, content)
        rows = b'{"text": "a b c d e f g h i j k l m n o p"}\n' * 40
        for ending in ("txt", "jsonl", "csv", "json", "parquet", "txt.gz", "arrow", "yaml"):
            for name, content in flips(rows):
                yield f"text.{ending} {name}", functools.partial(text, f"words.{ending}", content)
            yield f"text.{ending} pipe", functools.partial(text, f"words.{ending}", None)
        for name in (
            "/dev/zero",
            "/dev/null",
            "/proc/self/mem",
            "/nowhere",
            "~nosuchuser",
            "x" * 300,
            "\x1b[31m",
            "hf:",
        ):
            words = ("--task", "text", "--task-option", f"source={name}", "--task-option", "max_bytes=1000")
            yield f"text {name[:9]!r}", functools.partial(run, "evaluate", "sound/gpt", *words)

    report(chosen(cases(), 40))


def test_cached_files(place: Path) -> None:
    """Whatever happens to a cached file, the numbers are those of a sound one."""
    cache = place / "cache" / "mad"
    shutil.rmtree(cache, ignore_errors=True)
    words = ("--task-option", "num_train_examples=20", "--task-option", "num_test_examples=20")
    score = functools.partial(run, "evaluate", "sound/gpt", "--task", "mad/selective-copying", *words)
    score()
    path = next(path for path in cache.iterdir() if "selective-copying" in path.name)
    whole = path.read_bytes()

    def damaged(content: bytes | None) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
        score()
        assert path.is_file(), "not repaired"
        assert path.read_bytes() == whole, "not repaired"

    def cases() -> Iterator[Case]:
        for name, content in flips(whole):
            yield f"mad {name}", functools.partial(damaged, content)
        with np.load(path) as stored:
            columns = {name: stored[name] for name in stored.files}
        for value in (99, -7, 2**40):
            changed_ids = dict(columns, train_inputs=np.full_like(columns["train_inputs"], value, dtype=np.int64))
            np.savez(place / "other.npz", **changed_ids)
            yield f"mad ids {value}", functools.partial(damaged, (place / "other.npz").read_bytes())
        yield "mad a folder", functools.partial(damaged, None)

    report(chosen(cases(), 40))


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run with all of its stages done."""
    small = (
        "task.options.seq_len=32",
        "task.options.num_train_examples=32",
        "task.options.num_test_examples=8",
        "compare=null",
        "align=null",
    )
    steps = ("search={method: darts, steps: 2, batch_size: 4}", "finetune.steps=1", "finetune.batch_size=4")
    models = ("components.0.source=sound/gpt", "components.1.source=sound/mamba", "pretrain=[]")
    run("run", "quickstart", *models, *small, *steps, "combine.num_blocks=2", "-o", "finished")
    assert (place / "finished" / "report.html").is_file()
    return place / "finished"


def test_records_of_a_run(place: Path, finished: Path) -> None:
    def go_on(verb: str, file: str, content: bytes | None) -> None:
        copy = place / "run"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(finished, copy)
        (copy / file).unlink(missing_ok=True)
        if content is None:
            (copy / file).mkdir()
        else:
            (copy / file).write_bytes(content)
        before = {name: digest for name, digest in digests(copy).items() if name.endswith(("safetensors", ".yaml"))}
        run(verb, "run")
        after = digests(copy)
        assert all(after[name] == before[name] for name in before), "weights or recipe were written to"

    def cases() -> Iterator[Case]:
        for file in ("environment.json", "lineage.json", "results.json", "finetune/state.json", "search/state.json"):
            for verb in ("report", "resume"):
                for name, content in json_cases(finished / file):
                    if "finetune" not in file or name.count(".") < 2:
                        yield f"{verb} {file} {name}", functools.partial(go_on, verb, file, content.encode())
        for file in ("environment.json", "finetune/state.json", ".lock", ".owner", "resolved.yaml", "metrics.jsonl"):
            for verb in ("report", "resume"):
                for name, content in (("empty", b""), ("garbage", b"\xff\x00{["), ("a folder", None)):
                    yield f"{verb} {file} {name}", functools.partial(go_on, verb, file, content)

    report(chosen(cases(), 14))
