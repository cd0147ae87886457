"""Checkpoints and recipes made to do harm: none runs code, none ends in a traceback, each is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind that loads: a component, a hybrid, a stack."""
    sound = tmp_path_factory.mktemp("sound")
    for name in ("gpt", "mamba"):
        shutil.copytree(shelf / name, sound / name)
    manticore.combine([str(sound / "gpt"), str(sound / "mamba")], num_blocks=2).save_pretrained(sound / "hybrid")
    stack = manticore.StackConfig(layers=["mlp", "attention"], hidden_size=16, vocab_size=48)
    manticore.StackForCausalLM(stack).save_pretrained(sound / "stack")
    return sound


def settings(**values: Any) -> Change:
    """Overwrites fields of config.json; a dict goes into the component of that name."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(config.get(key), dict):
                config[key].update(value)
            else:
                config[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def file(name: str, content: str | bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def sharded(target: Any) -> Change:
    """Weights that are found through an index which leads to `target`."""

    def change(folder: Path) -> None:
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder / "shard.safetensors")
        torch.save({}, folder / "shard.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def weights(change_of: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change_of(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def only_a_pickle(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def inside_itself(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for _ in range(30):
        config = {**config, "component_0": json.loads(json.dumps(config))}
        if len(json.dumps(config)) > 10**6:
            break
    (folder / "config.json").write_text(json.dumps(config))


HOSTILE: dict[str, tuple[str, Change, str]] = {
    "a component that is a pickle": ("gpt", only_a_pickle, "weights only as pickle"),
    "a hybrid that is a pickle": ("hybrid", only_a_pickle, "weights only as pickle"),
    "an index that leads to a pickle": (
        "gpt",
        sharded("shard.bin"),
        "is 'shard.bin')",
    ),
    "an index that leads out of the folder": (
        "gpt",
        sharded("../mamba/model.safetensors"),
        "is '../mamba/model.safetensors')",
    ),
    "an index that is not an index": (
        "gpt",
        lambda folder: (sharded("")(folder), file("model.safetensors.index.json", "[]")(folder)),
        "model.safetensors.index.json does not lead to safetensors files beside it",
    ),
    "an adapter that names another model": (
        "gpt",
        file("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "/etc"}'),
        "it holds an adapter",
    ),
    "an index of numbers": ("gpt", sharded(5), ".weight is 5)"),
    "classes that are numbers": ("gpt", settings(architectures=[5]), "names no classes in architectures"),
    "one class that is a number": ("gpt", settings(architectures=5), ""),
    "weights of whole numbers": (
        "gpt",
        weights(lambda t: t.update({"transformer.ln_f.weight": t["transformer.ln_f.weight"].long()})),
        "transformer.ln_f.weight holds whole numbers (I64; expected floating point)",
    ),
    "complex weights": (
        "gpt",
        weights(lambda t: t.update({"transformer.ln_f.bias": t["transformer.ln_f.bias"].to(torch.complex64)})),
        "transformer.ln_f.bias holds complex numbers (C64; expected floating point)",
    ),
    "a search wider than memory": (
        "gpt",
        file("generation_config.json", '{"num_beams": 100000}'),
        "generation_config.json: num_beams is 100000 (expected a whole number up to 1000)",
    ),
    "a hybrid with a search wider than memory": (
        "hybrid",
        file("generation_config.json", '{"num_return_sequences": 100000}'),
        "num_return_sequences is 100000",
    ),
    "settings of generation that are a list": (
        "gpt",
        file("generation_config.json", "[]"),
        "a list, expected an object",
    ),
    "truncated weights": ("gpt", truncated, "a weights file is damaged"),
    "a truncated hybrid": ("hybrid", truncated, "a weights file is damaged"),
    "a header that claims exabytes": (
        "gpt",
        file("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        "a weights file is damaged",
    ),
    "weights of another width": ("gpt", settings(hidden_size=32), "does not fit config.json"),
    "a hybrid with weights of another width": (
        "hybrid",
        settings(component_0={"hidden_size": 32}),
        "does not fit config.json",
    ),
    "a hybrid without its weights": ("hybrid", weights(lambda t: [t.pop(n) for n in list(t)[3:]]), "are not in the"),
    "mixture weights that are not shares": (
        "hybrid",
        weights(lambda t: t.update({"mixing.weights": t["mixing.weights"] * 7})),
        "row 0 sums to 7",
    ),
    "NaN": ("hybrid", weights(lambda t: t[max(t)].fill_(float("nan"))), "holds NaN"),
    "a billion layers": ("gpt", settings(num_layers=10**9), "num_layers 1000000000"),
    "a billion layers in a component": ("hybrid", settings(component_1={"num_hidden_layers": 10**9}), "1000000000"),
    "a trillion tokens": ("gpt", settings(vocab_size=10**12), "the files hold"),
    "a trillion states": ("mamba", settings(state_size=10**12), "the files hold"),
    "overflowing sizes": ("gpt", settings(hidden_size=2**62), "config.json describes no model"),
    "negative sizes": ("gpt", settings(hidden_size=-16), "config.json describes no model"),
    "no heads": ("gpt", settings(num_heads=0), "config.json describes no model"),
    "a stack of many layers": ("stack", settings(layers=["mlp"] * 20_000), "20000 layers"),
    "a layer that is a function": ("stack", settings(layers=["os.system"]), "unknown layer 'os.system'"),
    "a billion components": ("hybrid", settings(num_components=10**9), "num_components 1000000000"),
    "components that are missing": ("hybrid", settings(num_components=3), "component_2 is missing"),
    "blocks that are not a number": ("hybrid", settings(num_blocks=0), "num_blocks is 0"),
    "a trillion rows of logits": ("hybrid", settings(vocab_size=10**12), "vocab_size is 1000000000000"),
    "a mixing that is a function": ("hybrid", settings(mixing="os:system"), "unknown mixing 'os:system'"),
    "a projector that is a path": ("hybrid", settings(projector="../../x"), "unknown projector '../../x'"),
    "a path through components that are not there": ("hybrid", settings(path=[0, 10**9]), "path [0, 1000000000]"),
    "layer outputs of another model": ("hybrid", settings(layer_outputs=[[0]]), "layer_outputs does not name"),
    "a hybrid that contains itself": ("hybrid", inside_itself, "component_0 is a hybrid itself"),
    "a refused family inside": ("hybrid", settings(component_0={"model_type": "rwkv"}), "family 'rwkv' is refused"),
    "a component that is a list": ("hybrid", settings(component_0=[1]), "component_0 is a list"),
    "a configuration without an end": ("gpt", file("config.json", '{"a":' * 10**5), "config.json cannot be read"),
    "a tokenizer without an end": ("gpt", file("tokenizer.json", '{"a":' * 10**5), "its tokenizer cannot be loaded"),
    "remote code": (
        "gpt",
        settings(model_type="trojan", auto_map={"AutoConfig": "trojan.C", "AutoModelForCausalLM": "trojan.M"}),
        "its own Python code",
    ),
}
HARMLESS_WITHOUT_THEIR_CODE: dict[str, tuple[str, Change]] = {
    "a known family": ("gpt", settings(auto_map={"AutoConfig": "trojan.C", "AutoModelForCausalLM": "trojan.M"})),
    "a hybrid": ("hybrid", settings(auto_map={"AutoConfig": "trojan.C", "AutoModelForCausalLM": "trojan.M"})),
    "a component": ("hybrid", settings(component_0={"auto_map": {"AutoModelForCausalLM": "trojan.M"}})),
    "own generation": ("gpt", file("custom_generate/generate.py", "raise SystemExit('code was run')\n")),
}


def put(sound: Path, desk: Path, kind: str, change: Change) -> Path:
    """The working directory with the sound models, and beside them ``hostile``, whose code leaves a trace."""
    shutil.copytree(sound, desk)
    shutil.copytree(sound / kind, desk / "hostile")
    code = f"open({str(desk / 'trace')!r}, 'w').write('code from a checkpoint was run')\n"
    (desk / "hostile" / "trojan.py").write_text(code)
    change(desk / "hostile")
    return desk / "trace"


def verb(kind: str) -> list[str]:
    if kind == "hybrid":
        return ["generate", "hostile", "w1 w2", "--max-new-tokens", "2"]
    return ["combine", "hostile", "mamba", "--num-blocks", "2", "-o", "new"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_one_line(
    name: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, change, expected = HOSTILE[name]
    trace = put(sound, tmp_path / "desk", kind, change)
    monkeypatch.chdir(tmp_path / "desk")
    result = CliRunner().invoke(app, verb(kind))
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2, result.exception
    assert len(lines) == 1
    assert lines[0].startswith("error: hostile: ")
    assert expected in lines[0]
    assert "Traceback" not in result.output
    assert not (tmp_path / "desk" / "new").exists()
    assert not trace.exists()


@pytest.mark.parametrize("name", HARMLESS_WITHOUT_THEIR_CODE)
def test_code_beside_a_model_that_needs_none_is_not_run(
    name: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, change = HARMLESS_WITHOUT_THEIR_CODE[name]
    trace = put(sound, tmp_path / "desk", kind, change)
    monkeypatch.chdir(tmp_path / "desk")
    assert CliRunner().invoke(app, verb(kind)).exit_code == 0
    assert not trace.exists()


RECIPE = "name: {name}\ncomponents: [{{name: a, source: gpt}}, {{name: b, source: mamba}}]\ntask: {{name: text}}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(RECIPE.format(name="../../outside"), "name: wrong value", id="a name that is a path"),
        pytest.param(RECIPE.format(name="<script>alert(1)</script>"), "name: wrong value", id="a name that is HTML"),
        pytest.param(RECIPE.format(name="!!python/object/apply:os.system [touch trace]"), "YAML tags", id="a tag"),
        pytest.param(
            "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(3)),
            "aliases (*name) are not allowed",
            id="aliases",
        ),
        pytest.param(RECIPE.format(name="x").replace("gpt", "../../../etc/passwd"), "source", id="a path to a file"),
        pytest.param("[" * 5000, "mine.yaml", id="without an end"),
    ],
)
def test_a_hostile_recipe_is_refused(
    text: str, expected: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sound, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    Path("mine.yaml").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["run", "mine.yaml", "-o", "new"])
    assert result.exit_code == 2, result.exception
    assert expected in result.stderr
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    assert sorted(tmp_path.rglob("*")) == before
