"""A checkpoint is loaded without running anything in it, or refused in one line that says why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2ForSequenceClassification,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.tiny_families import tiny_config, tiny_model
from manticore.components.loading import load_component, load_config, load_tokenizer
from manticore.errors import ManticoreError

WEIGHTS = "model.safetensors"
Change = Callable[[Path], Any]


def settings(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def weights(edit: Callable[[dict[str, Tensor]], Any]) -> Change:
    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def only_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut_off(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def lost_shard(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Change, str]] = {
    "pickle only": (only_pickle, r"weights only as pickle \(pytorch_model.bin\).*Fix: convert them to safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), r"no weights there \(expected \*.safetensors\)"),
    "truncated weights": (cut_off, "a weights file is damaged.*Fix: download it again"),
    "empty weights": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "a weights file is damaged"),
    "lost shard": (lost_shard, r"its weights cannot be loaded \(.*00002-of-00002"),
    "missing weight": (
        weights(lambda tensors: tensors.pop("transformer.h.1.ln_1.weight")),
        r"1 weights are not in the checkpoint \(first: transformer.h.1.ln_1.weight\)",
    ),
    "wrong shape": (
        weights(lambda tensors: tensors.update({"transformer.ln_f.bias": torch.zeros(7)})),
        r"transformer.ln_f.bias does not fit config.json \(got shape \[7\], expected \[32\]\)",
    ),
    "NaN": (
        weights(lambda tensors: tensors["transformer.wte.weight"].view(-1)[3:4].fill_(float("nan"))),
        "transformer.wte.weight holds NaN or infinity",
    ),
    "infinity": (
        weights(lambda tensors: tensors["transformer.ln_f.bias"][:1].fill_(float("inf"))),
        "transformer.ln_f.bias holds NaN or infinity",
    ),
    "another width": (settings(hidden_size=40), r"does not fit config.json \(got shape .*32"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json there"),
    "config is no JSON": (text("config.json", "{nope"), "config.json cannot be read"),
    "config is binary": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"),
        "config.json cannot be read",
    ),
    "config is a list": (text("config.json", "[1]"), "config.json cannot be read"),
    "config is null": (text("config.json", "null"), "config.json cannot be read"),
    "config is empty": (text("config.json", "{}"), r"config.json cannot be read \(it holds no settings\)"),
    "config of wrong type": (settings(hidden_size="wide"), r"config.json is not valid \(.*hidden_size"),
    "remote code": (
        settings(model_type="wombat", auto_map={"AutoModelForCausalLM": "modeling.Wombat"}),
        r"it asks to run its own Python code \(auto_map\)",
    ),
    "unknown family": (settings(model_type="wombat"), "model_type 'wombat' is unknown"),
    "no family": (settings(model_type=None), "model_type None is unknown"),
    "family of wrong type": (settings(model_type=["gpt_neo"]), "model_type .* is unknown"),
    "classifier": (
        settings(architectures=["GPTNeoForSequenceClassification"]),
        r"the checkpoint is a GPTNeoForSequenceClassification \(expected GPTNeoForCausalLM\)",
    ),
    "refused family": (settings(model_type="rwkv"), "family 'rwkv' is refused: it rescales its weights in place"),
    "quantised": (
        settings(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "its weights are quantised",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(name: str, checkpoints: list[Path], tmp_path: Path) -> None:
    change, reason = BROKEN[name]
    folder = tmp_path / "broken"
    shutil.copytree(checkpoints[0], folder)
    change(folder)
    with pytest.raises(ManticoreError, match=reason) as caught:
        load_component(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "\n" not in str(caught.value)


def test_code_beside_a_checkpoint_is_never_run(checkpoints: list[Path], tmp_path: Path) -> None:
    folder, trace = tmp_path / "trojan", tmp_path / "trace"
    shutil.copytree(checkpoints[0], folder)
    (folder / "trojan.py").write_text(f"open({str(trace)!r}, 'w').write('ran')\n")
    settings(auto_map={"AutoConfig": "trojan.C", "AutoModelForCausalLM": "trojan.M"})(folder)
    # the family is one that transformers ships, so the checkpoint is of use without its code
    assert load_component(folder).config.model_type == "gpt_neo"
    settings(model_type="trojan")(folder)
    with pytest.raises(ManticoreError, match="auto_map"):
        load_component(folder)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: BertForMaskedLM(BertConfig(vocab_size=9, hidden_size=12, num_hidden_layers=1)), "BertForMaskedLM"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1)), "'t5'"),
    ],
)
def test_checkpoints_that_are_no_causal_models(
    model: Callable[[], PreTrainedModel], reason: str, tmp_path: Path
) -> None:
    model().save_pretrained(tmp_path / "other")
    with pytest.raises(ManticoreError, match=f"{reason}.*Fix: give (a causal language model|one)"):
        load_component(tmp_path / "other")


def on_meta(family: str) -> PreTrainedModel:
    with torch.device("meta"):
        return tiny_model(family)


def quantised(family: str) -> PreTrainedModel:
    model = tiny_model(family)
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return model


def with_other_configuration(family: str) -> PreTrainedModel:
    model = tiny_model(family)
    model.config.__class__ = type("Mine", (type(model.config),), {})
    return model


def without_embeddings(family: str) -> PreTrainedModel:
    model = tiny_model(family)

    def missing(self: Any) -> Any:
        raise NotImplementedError

    model.__class__ = type("Mine", (type(model),), {"get_input_embeddings": missing})
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: LlamaModel(tiny_config("llama")), r"is a LlamaModel \(expected LlamaForCausalLM\)"),
        (lambda: GPT2ForSequenceClassification(tiny_config("gpt2")), r"expected GPT2LMHeadModel"),
        (lambda: BertForMaskedLM(tiny_config("bert")), "expected BertLMHeadModel"),
        (lambda: tiny_model("rwkv"), "family 'rwkv' is refused"),
        (lambda: nn.Linear(2, 2), "a Linear is not a component.*Fix: merge adapters"),
        (lambda: None, "a NoneType is not a component"),
        (lambda: T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1)), "'t5'"),
        (lambda: on_meta("llama"), "its weights are on the meta device"),
        (lambda: quantised("llama"), "its weights are quantised"),
        (lambda: with_other_configuration("llama"), "a Mine belongs to no causal language model that transformers"),
        (lambda: without_embeddings("llama"), "does not say where its embeddings are"),
    ],
)
def test_objects_that_are_no_causal_models(model: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ManticoreError, match=reason):
        load_component(model())


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(ManticoreError, match=f"{name}: no such folder"):
        load_component(name)


def test_a_name_that_no_hub_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(
        ManticoreError, match=r"nobody/nothing: no such folder here, and the hub cannot be reached. Fix: check the id"
    ) as caught:
        load_component("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_an_intact_checkpoint_is_what_transformers_loads(checkpoints: list[Path]) -> None:
    for path in checkpoints:
        model, own = load_component(path), AutoModelForCausalLM.from_pretrained(path)
        assert not model.training
        assert {name: value.tolist() for name, value in model.state_dict().items()} == {
            name: value.tolist() for name, value in own.state_dict().items()
        }
        # at any other address some kernels add in another order
        assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())


def test_a_model_in_memory_is_copied(tiny_gpt: PreTrainedModel) -> None:
    tiny_gpt.train()
    copy = load_component(tiny_gpt)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert not copy.training
    assert tiny_gpt.training
    assert all(parameter.abs().sum() > 0 for name, parameter in tiny_gpt.named_parameters() if "weight" in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_precision_rounds_weights_but_not_derived_tables(dtype: torch.dtype | str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "llama")
    for source in (model, tmp_path / "llama"):
        loaded = load_component(source, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
        assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("dtype", ["int8", "auto", "wide", torch.int64])
def test_precisions_that_are_none(dtype: Any, tiny_gpt: PreTrainedModel) -> None:
    with pytest.raises(ManticoreError, match=r"dtype is .*expected float32"):
        load_component(tiny_gpt, dtype=dtype)


def test_tokenizers(checkpoints: list[Path], tiny_gpt: PreTrainedModel, tmp_path: Path) -> None:
    found = load_tokenizer(checkpoints[0])
    assert found is not None
    assert found.decode(found("x = 1\n").input_ids) == "x = 1\n"
    assert load_tokenizer(tiny_gpt) is None
    tiny_gpt.save_pretrained(tmp_path / "bare")
    assert load_tokenizer(tmp_path / "bare") is None


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {"type": "Nonsense"}}'])
def test_a_tokenizer_that_cannot_be_read_is_not_taken_for_none(
    content: str, checkpoints: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints[0], folder)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ManticoreError, match="its tokenizer cannot be loaded") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_a_cached_hub_checkpoint_loads_offline(
    checkpoints: list[Path], tiny_mamba: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``hf download`` leaves it; the second repository has no tokenizer, and nobody can be asked for one."""
    revision = "0" * 40
    for name, source in (("with", checkpoints[0]), ("without", None)):
        root = tmp_path / f"models--someone--{name}"
        snapshot = root / "snapshots" / revision
        if source is None:
            tiny_mamba.save_pretrained(snapshot)
        else:
            shutil.copytree(source, snapshot)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    assert load_config("someone/with").model_type == "gpt_neo"
    assert load_tokenizer("someone/with") is not None
    assert load_tokenizer("someone/without") is None
    assert load_component("someone/without").config.model_type == "mamba"
