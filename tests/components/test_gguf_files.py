"""A GGUF file is a checkpoint like any other: its weights to the bit, its tokenizer, its quantisation told."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from gguf_models import llama, tokenizer, write_gguf
from typer.testing import CliRunner

import manticore
from manticore.cache import MANIFEST
from manticore.cli.app import app
from manticore.components import gguf_files
from manticore.components.checkpoint_folder import quantization_of
from manticore.components.gguf_files import checkpoint_folder
from manticore.components.loading import load_component, load_config, load_tokenizer
from manticore.components.sources import stated_license
from manticore.errors import ManticoreError
from manticore.runs.lineage import model_lineage
from manticore.training.saved_models import load_model

IDS = torch.arange(40).reshape(2, 20) * 7 % 320
SENTENCE = "def café(x): return 12345 naïve  words\n"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a tokenizer, quantised, and what it holds as an ordinary checkpoint."""
    shelf = tmp_path_factory.mktemp("shelf")
    held = write_gguf(shelf / "tiny.gguf", llama(), "Q4_1", tokens=tokenizer())
    held.save_pretrained(shelf / "held")
    tokenizer().save_pretrained(shelf / "held")
    return shelf


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One for all tests of this file but those that damage it: what was converted is found again."""
    cache = tmp_path_factory.getbasetemp() / "gguf-cache"
    monkeypatch.setenv("MANTICORE_CACHE", str(cache))
    return cache


def test_the_weights_are_those_of_the_file_to_the_bit(shelf):
    model, held = load_component(shelf / "tiny.gguf"), load_component(shelf / "held")
    assert torch.equal(model(IDS).logits, held(IDS).logits)
    assert model.dtype == torch.float32
    assert (model.config.eos_token_id, model.config.pad_token_id, model.generation_config.eos_token_id) == (0, 1, 0)
    assert quantization_of(model) == "Q4_1"
    assert not hasattr(model.config, "quantization_config")


def test_its_tokenizer_and_chat_template_come_along(shelf):
    read, written = load_tokenizer(shelf / "tiny.gguf"), tokenizer()
    assert read is not None
    assert read(SENTENCE).input_ids == written(SENTENCE).input_ids
    assert read.get_vocab() == written.get_vocab()
    assert (read.eos_token_id, read.pad_token_id) == (0, 1)
    said = read.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert said == "user: hello\n"


@pytest.mark.parametrize(
    ("kind", "rounded", "dtype"),
    [
        ("F32", False, torch.float32),
        ("F32", True, torch.bfloat16),
        ("BF16", True, torch.bfloat16),
        ("Q8_0", True, torch.float32),
    ],
)
def test_weights_are_kept_in_the_smallest_type_that_holds_all_of_them(tmp_path, kind, rounded, dtype):
    model = llama(3)
    if rounded:
        model = model.to(torch.bfloat16).float()
    held = write_gguf(tmp_path / "one.gguf", model, kind)
    read = load_component(tmp_path / "one.gguf")
    assert read.dtype == dtype
    assert all(torch.equal(a.float(), b) for a, b in zip(read.parameters(), held.parameters(), strict=True))
    assert quantization_of(read) == (None if kind in ("F32", "BF16") else kind)


def test_it_is_named_by_its_path_beside_its_folder_or_by_a_folder_that_holds_nothing_else(shelf, tmp_path):
    folder = checkpoint_folder(str(shelf / "tiny.gguf"))
    assert checkpoint_folder(f"{shelf}:tiny.gguf") == folder
    shutil.copy(shelf / "tiny.gguf", tmp_path / "Other Name.GGUF")
    assert load_config(str(tmp_path)).hidden_size == 64
    # safetensors come first
    llama().save_pretrained(tmp_path)
    assert checkpoint_folder(str(tmp_path)) == str(tmp_path)
    assert "README.md" in os.listdir(folder)
    assert stated_license(folder) == "apache-2.0"


def test_several_files_in_a_folder_are_to_be_told_apart(shelf, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(shelf / "tiny.gguf", tmp_path / name)
    with pytest.raises(ManticoreError) as caught:
        load_component(tmp_path)
    assert str(caught.value) == f"{tmp_path}: 2 GGUF files (a.gguf, b.gguf). Fix: name one, {tmp_path}:a.gguf"
    for name in (f"{tmp_path}:c.gguf", str(tmp_path / "c.gguf")):
        with pytest.raises(ManticoreError) as caught:
            load_component(name)
        assert str(caught.value) == f"{name}: no such file. Fix: there: a.gguf, b.gguf"


def test_a_hybrid_of_it_is_it_at_its_vertex_and_says_what_its_weights_are(shelf, tmp_path):
    file = str(shelf / "tiny.gguf")
    hybrid = manticore.combine([file, str(shelf / "held")], num_blocks=2)
    hybrid.set_mixture_weights([0, 0])
    assert torch.equal(hybrid(IDS).logits, load_component(file)(IDS).logits)
    assert hybrid.config.parents[0] == {"source": "tiny.gguf", "commit": None, "license": "apache-2.0"}
    assert hybrid.tokenizer is not None
    hybrid.save_pretrained(tmp_path / "hybrid")
    assert quantization_of(load_model(tmp_path / "hybrid")[0]) == "Q4_1"
    assert model_lineage(file)["license"] == "apache-2.0"


def test_a_damaged_entry_of_the_cache_is_made_again_and_a_changed_file_is_another(shelf, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.gguf"
    shutil.copy(shelf / "tiny.gguf", file)
    forget = gguf_files._converted.cache_clear
    forget()
    folder = Path(checkpoint_folder(str(file)))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8] + bytes(8))
    forget()
    with caplog.at_level(logging.WARNING):
        assert Path(checkpoint_folder(str(file))) == folder
    assert "model.safetensors is not what was written" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == whole
    write_gguf(file, llama(5), "Q8_0")
    changed = Path(checkpoint_folder(str(file)))
    assert changed != folder
    assert json.loads((changed / "config.json").read_text())["dequantized_from"] == "Q8_0"
    # nothing is left of the work
    assert {path.name for path in changed.parent.iterdir() if not path.name.endswith(".lock")} == {
        folder.name,
        changed.name,
    }
    assert (changed / MANIFEST).is_file()


def unread(writer):
    import numpy

    writer.add_tensor("blk.0.attn_q.bias", numpy.zeros(64, dtype=numpy.float32))


def factors(writer):
    import numpy

    writer.add_tensor("rope_freqs.weight", numpy.ones(8, dtype=numpy.float32))


REFUSED = {
    "a family that transformers does not read": (
        "rwkv6",
        None,
        r"of family 'rwkv6', which transformers does not read \(",
    ),
    "an encoder-decoder": ("t5", None, "t5"),
    "tensors that would be left out": (
        "llama",
        unread,
        "it holds 82,304 weights, the llama .* has 82,240, so that some",
    ),
    "scaled positions": ("llama", factors, r"rotary positions are scaled \(rope_freqs.weight\)"),
    "scaled positions by name": (
        "llama",
        lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"),
        r"rotary positions are scaled \(yarn\)",
    ),
    "an adapter": ("llama", lambda writer: writer.add_string("general.type", "adapter"), "it is of type 'adapter'"),
    "one of several parts": ("llama", lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts. Fix: join"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_taken_as_it_is_is_refused_in_a_line(tmp_path, case):
    family, add, message = REFUSED[case]
    file = tmp_path / "odd.gguf"
    write_gguf(file, llama(), architecture=family, add=add or (lambda writer: None))
    with pytest.raises(ManticoreError, match=message) as caught:
        load_component(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert "Fix: " in str(caught.value)


def test_without_the_package_the_line_says_what_to_install(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("MANTICORE_CACHE", str(tmp_path))
    gguf_files._converted.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        ManticoreError, match=r"package gguf, which is not installed. Fix: pip install 'manticore-hybrid"
    ):
        load_component(shelf / "tiny.gguf")


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_verbs_and_recipes_take_it_and_say_what_their_scores_are_of(shelf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shelf / "tiny.gguf", "tiny.gguf")
    Path("words.txt").write_text("some words of a text that is long enough\n" * 200)
    text = ("-t", "text", "--task-option", "source=words.txt", "--task-option", "length=16")
    said = "was dequantised from Q4_1: its scores are those of the quantised model."

    code, output = run("evaluate", "tiny.gguf", *text, "--max-examples", "4", "-o", "scores.json")
    assert (code, f"tiny.gguf {said}" in output) == (0, True), output
    assert json.loads(Path("scores.json").read_text())["dequantized_from"] == "Q4_1"

    code, output = run("plan", "tiny.gguf", ".:tiny.gguf", "task.options.length=16", "combine.num_blocks=2")
    assert (code, "llama" in output) == (0, True), output
    assert "a plan downloads nothing" not in output

    Path("mine.yaml").write_text(
        "name: mine\ncomponents: [{name: a, source: tiny.gguf}, {name: b, source: tiny.gguf}]\n"
        "combine: {num_blocks: 3}\ntask: {name: text, options: {source: words.txt, length: 16}}\n"
    )
    code, output = run("check", "mine.yaml")
    assert code == 2
    assert "3 blocks, but a has 2 layers" in output
    Path("tiny.gguf").write_bytes(Path("tiny.gguf").read_bytes()[:-100])
    code, output = run("check", "mine.yaml")
    assert code == 2
    assert "components[0].source" in output
    assert "not a usable GGUF file" in output


def test_a_comparison_notes_it(shelf, tmp_path):
    file = str(shelf / "tiny.gguf")
    words = tmp_path / "words.txt"
    words.write_text("some words of a text that is long enough\n" * 200)
    from manticore.tasks.task import load_task

    task = load_task("text", tokenizer=load_tokenizer(file), source=str(words), length=16)
    found = manticore.compare(
        {"parent": file}, task, budgets=[0.0], seeds=[0], test_examples=4, ensemble=False, cpu=True
    )
    assert "parent was dequantised from Q4_1: its scores are those of the quantised model." in found.notes
