"""manticore scale: what it writes loads and is what it says, and every mistake is one line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import manticore
from manticore.cli.app import app
from manticore.stacks.sizes import cache_bytes, layer_parameters


def scale(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["scale", *arguments])


ATTENTION = "grouped-query-attention"
OPTIONS = (
    f"{ATTENTION}.num_heads=32",
    f"{ATTENTION}.num_kv_heads=8",
    f"{ATTENTION}.bias=false",
    "swiglu.inner_width=8192",
)
LLAMA = [word for option in OPTIONS for word in ("--layer-option", option)]


def test_a_list_of_letters_becomes_the_published_stack(tmp_path: Path) -> None:
    out = tmp_path / "large model"
    result = scale("2A4M", "--parameters", "973078528", "--width", "2048", *LLAMA, "-o", str(out))
    assert result.exit_code == 0, result.output
    config = manticore.StackConfig.from_pretrained(out)
    names = config.layer_names
    assert (names.count("grouped-query-attention"), names.count("swiglu")) == (9, 18)
    assert "27 layers of width 2048" in result.output
    assert "1 G parameters in the layers (6 layers have" in result.output
    assert cache_bytes(config, 4096) == 9 * 2 * 512 * 4096 * 2
    assert "a cache of 72 MiB after 4,096 tokens" in result.output


def test_a_folder_is_scaled_and_the_next_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layers: list[Any] = [["mamba", {"state_size": 8}], "swiglu"]
    manticore.StackConfig(layers=layers, hidden_size=16, vocab_size=23).save_pretrained("small")
    result = scale("small", "--parameters", "60K", "--how", "stretch", "--width", "32", "-o", "it's large")
    assert result.exit_code == 0, result.output
    config = manticore.StackConfig.from_pretrained("it's large")
    assert (config.vocab_size, config.hidden_size) == (23, 32)
    assert config.layers is not None
    assert config.layers[0] == ["mamba", {"state_size": 8}]
    assert layer_parameters(config) >= 60_000
    words = shlex.split(result.output.splitlines()[-1].removeprefix("next: "))
    assert words == ["manticore", "pretrain", "./it's large", "-o", "it's large-trained"]
    monkeypatch.setenv("MANTICORE_CACHE", "cache")
    Path("words.txt").write_text("\n".join(f"the {n} of {n + 1}" for n in range(400)))
    quick = ["--text", "words.txt", "--vocab-size", "260", "--steps", "1", "--batch-size", "2", "--length", "8"]
    trained = CliRunner().invoke(app, [*words[1:], *quick])
    assert trained.exit_code == 0, trained.output
    model = manticore.StackForCausalLM.from_pretrained("it's large-trained")
    assert (model.config.layers, model.config.vocab_size) == (config.layers, 260)
    next_ = shlex.split(trained.output.splitlines()[-1].removeprefix("next: manticore "))
    assert CliRunner().invoke(app, next_).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["AAXM", "--parameters", "1M"], "it has 'X' at position 3 (expected one of A grouped-query-attention, "),
        (["nowhere/x", "--parameters", "1M"], "no such folder, and no list of layers"),
        (["", "--parameters", "1M"], "no such folder, and no list of layers"),
        (["4", "--parameters", "1M"], "it has '4' at position 1"),
        (["A2", "--parameters", "1M"], "Fix: one of these, or numbers before their letters, 2A4M"),
        (["0A", "--parameters", "1M"], "0A: no such folder, and a list of no layers"),
        (["gpt", "--parameters", "1M"], "a gpt2 (expected a stack, manticore_stack)"),
        (["AM", "--parameters", "1Q"], "--parameters: got '1Q' (expected a number such as 350M or 1.5B)"),
        (["AM", "--parameters", "0"], "--parameters: got '0'"),
        (["AM", "--parameters", "1K", "--width", "64"], "1,000 parameters are fewer than the"),
        (["AM", "--parameters", "1M", "--how", "stac"], "--how: got 'stac' (expected stack or stretch)"),
        (["AM", "--parameters", "1M", "--width", "33"], "16 heads do not divide width 33"),
        (["AM", "--parameters", "1M", "--layer", "A=mh-atention"], "unknown layer 'mh-atention'"),
        (["AM", "--parameters", "1M", "--layer", "A"], "expected KEY=VALUE). Fix: write A=mamba"),
        # what would change nothing is refused
        (["AM", "--parameters", "1M", "--layer", "AB=mamba"], "--layer: 'AB' is no letter"),
        (["gpt", "--parameters", "1M", "--layer", "A=mamba"], "--layer: gpt is a folder"),
        (["AM", "--parameters", "1M", "--layer-option", "x=3"], "--layer-option: got 'x' (expected LAYER.KEY=VALUE)"),
        (["AM", "--parameters", "1M", "--layer-option", "swiglu.inner=3"], "unknown option 'inner'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gpt").mkdir()
    Path("gpt/config.json").write_text('{"model_type": "gpt2"}')
    result = scale(*arguments, "-o", "large")
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert sum(line.startswith("error:") for line in result.output.splitlines()) == 1
    assert not Path("large").exists()
