"""A path of one family as that family's own checkpoint: what it holds, that others load it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import Fresh
from small_tokenizers import byte_level
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    """A process that has not imported this package."""
    process = Fresh(tmp_path_factory.mktemp("fresh"), ROOT)
    yield process
    process.close()


@pytest.fixture(scope="module")
def llamas() -> list[PreTrainedModel]:
    """Two models of one configuration; read, never change them."""
    return [tiny_model("llama", seed=1), tiny_model("llama", seed=2)]


def small(models: Sequence[Any], path: Sequence[int], **how: Any) -> ManticoreForCausalLM:
    """A path through untrained projectors."""
    blocks: dict[str, Any] = {} if "boundaries" in how else {"num_blocks": len(path)}
    return manticore.discretize(manticore.combine(models, check=False, **blocks, **how), path)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """``[B, T, V]``, without a cache."""
    return model(ids, use_cache=False).logits


def test_a_parents_path_is_that_parents_checkpoint(
    llamas: list[PreTrainedModel], ids: Tensor, tmp_path: Path, fresh: Fresh
) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    parents = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(parents):
        model = tiny_model("llama", seed=seed, vocab_size=len(tokenizer))
        model.generation_config.max_new_tokens = 3 + seed
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    hybrid = small(parents, [1, 1])
    written = manticore.export(hybrid, tmp_path / "out")
    assert (written.model_type, written.architecture, written.num_layers) == ("llama", "LlamaForCausalLM", 4)
    assert written.difference == 0.0
    assert written.tokenizer
    theirs, ours = (AutoModelForCausalLM.from_pretrained(folder) for folder in (parents[1], tmp_path / "out"))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {"bos_token_id": 1, "eos_token_id": 2, "max_new_tokens": 4}.items() <= settings.items()
    for file in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_text() == (parents[1] / file).read_text(), file
    assert not [file for file in (tmp_path / "out").iterdir() if b"manticore" in file.read_bytes().lower()]
    torch.save({"ids": ids, "logits": logits(hybrid, ids)}, tmp_path / "expected.pt")
    code, printed, errors = fresh.run(
        f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "out")!r})
expected = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    found = model(expected["ids"], use_cache=False).logits
print(type(model).__name__, float((found - expected["logits"]).abs().max()) < 1e-6, "manticore" in sys.modules)
tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "out")!r})
print(tokenizer.apply_chat_template([{{"role": "user", "content": "hello"}}], tokenize=False))
print(model.generate(expected["ids"]).shape[1] - expected["ids"].shape[1])
"""
    )
    assert code == 0, errors
    assert printed.splitlines() == ["LlamaForCausalLM True False", "hello", "4"]


@pytest.mark.parametrize("family", ["gpt_neo", "opt", "mamba", "gemma3_text", "qwen2", "bloom", "deepseek_v3"])
def test_layers_of_two_parents_in_their_order(family: str, ids: Tensor, tmp_path: Path) -> None:
    a, b = tiny_model(family, seed=1), tiny_model(family, seed=2)
    depth = a.config.num_hidden_layers
    # the first of the one, then the other's from its third on: at other places than they had
    hybrid = small([a, b], [0, 1], boundaries=[[0, 1, depth], [0, 2, depth]])
    assert manticore.export(hybrid, tmp_path / "out").difference == 0.0
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(ours) is type(a)
    assert ours.config.num_hidden_layers == depth - 1
    assert torch.equal(logits(ours, ids), logits(hybrid, ids))
    for name in ("layer_types", "attention_layers"):
        if hasattr(a.config, name):
            kinds = getattr(a.config, name)
            assert getattr(ours.config, name) == [kinds[0], *kinds[2:]]
            assert kinds[1] != kinds[2] or name == "layer_types"
    assert torch.equal(ours.get_input_embeddings().weight, a.get_input_embeddings().weight)
    assert torch.equal(ours.get_output_embeddings().weight, b.get_output_embeddings().weight)


def test_parents_of_two_depths(ids: Tensor, tmp_path: Path) -> None:
    deep = tiny_model("llama", seed=3, num_hidden_layers=7)
    hybrid = small([tiny_model("llama", seed=1), deep], [1, 0])
    assert manticore.export(hybrid, tmp_path / "out").num_layers == 4 + 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), ids), logits(hybrid, ids))


def test_tables_are_tied_where_they_are_one(tmp_path: Path) -> None:
    a, b = (tiny_model("llama", seed=seed, tie_word_embeddings=True) for seed in (1, 2))
    for name, path, tied in (("alone", [0, 0], True), ("mixed", [0, 1], False), ("back", [0, 1, 0], True)):
        manticore.export(small([a, b], path), tmp_path / name)
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert ours.config.tie_word_embeddings is tied
        assert (ours.get_input_embeddings().weight is ours.get_output_embeddings().weight) is tied


def test_rows_of_padding_that_one_table_has_are_left_out(ids: Tensor, tmp_path: Path) -> None:
    tokenizer = byte_level()
    rows = len(tokenizer)
    a, b = tiny_model("llama", seed=1, vocab_size=rows), tiny_model("llama", seed=2, vocab_size=rows + 7)
    hybrid = small([a, b], [0, 1], tokenizer=tokenizer)
    manticore.export(hybrid, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert ours.config.vocab_size == rows
    assert torch.equal(logits(ours, ids), logits(hybrid, ids))
    manticore.export(small([a, b], [1, 0, 1], tokenizer=tokenizer), tmp_path / "whole")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "whole").config.vocab_size == rows + 7


def test_precision_is_kept(tmp_path: Path) -> None:
    hybrid = small([tiny_model("llama", seed=1), tiny_model("llama", seed=2)], [0, 1], dtype="bfloat16")
    assert manticore.export(hybrid, tmp_path / "out").difference == 0.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}


def test_a_twin_whose_exchanged_layers_are_off_the_path(llamas: list[PreTrainedModel], tmp_path: Path) -> None:
    twin = manticore.twin(llamas[0], layers=[3])
    with torch.no_grad():
        # what was trained in it, apart from the table
        twin.parent.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    hybrid = small([llamas[0], twin], [1, 0])
    assert hybrid.config.feature_spaces == [0, 0]
    assert manticore.export(hybrid, tmp_path / "out").difference == 0.0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"
    with pytest.raises(ManticoreError, match=r"layer 3 of component 1 \(llama\) has a mixer of manticore's own"):
        manticore.export(small([llamas[0], twin], [0, 1]), tmp_path / "none")


def test_adapters_are_merged(llamas: list[PreTrainedModel], ids: Tensor, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    hybrid = small(llamas, [0, 1])
    before = logits(hybrid, ids)
    adapted: Any = get_peft_model(
        hybrid, LoraConfig(target_modules=manticore.lora_targets(hybrid), init_lora_weights=False)
    )
    expected = logits(adapted, ids)
    assert float((expected - before).abs().max()) > 1e-3
    manticore.export(adapted, tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(ours, ids), expected, rtol=1e-4, atol=1e-5)
    # it was merged in a copy
    assert adapted.peft_config
    with pytest.raises(ManticoreError, match=r"its adapters are not part of its weights\. Fix: peft_model\.merge"):
        manticore.export(adapted.get_base_model(), tmp_path / "none")


def test_plain_transformers_does_not_rescale_what_it_loads(ids: Tensor, tmp_path: Path) -> None:
    models = [tiny_model("mamba", seed=seed, rescale_prenorm_residual=True) for seed in (1, 2)]
    hybrid = small(models, [0, 1])
    assert manticore.export(hybrid, tmp_path / "out").difference == 0.0
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), ids), logits(hybrid, ids))


@pytest.mark.parametrize(
    ("projector", "options"),
    [("linear", {}), ("linear-skip", {}), ("low-rank", {"rank": 3}), ("two-layer", {}), ("two-layer", {"skip": True})],
)
def test_projectors_vanish_while_they_are_the_identity(
    projector: str, options: dict[str, Any], llamas: list[PreTrainedModel], tmp_path: Path
) -> None:
    hybrid = small(llamas, [0, 1], projector=projector, projector_options=options)
    assert manticore.export(hybrid, tmp_path / "out").difference < 1e-5
    (made,) = hybrid.mixing.projectors.values()
    with torch.no_grad():
        next(parameter for name, parameter in made.named_parameters() if "bias" in name)[-1] += 1e-4
    if projector == "two-layer" and options:
        # a bias inside, in front of maps that are zero
        made.weight_out.data[0, 0] = 1e-3
    with pytest.raises(ManticoreError, match=r"block 1 translates from component 0 to 1 .* not the identity") as caught:
        manticore.export(hybrid, tmp_path / "none")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_classifiers_of_sequences_and_tokens(llamas: list[PreTrainedModel], ids: Tensor, tmp_path: Path) -> None:
    names = {0: "ham", 1: "spam", 2: "neither"}
    for kind, auto in (
        (manticore.ManticoreForSequenceClassification, AutoModelForSequenceClassification),
        (manticore.ManticoreForTokenClassification, AutoModelForTokenClassification),
    ):
        hybrid = kind.from_causal_lm(small(llamas, [0, 1]), id2label=names)
        written = manticore.export(hybrid, tmp_path / auto.__name__)
        assert written.architecture == auto.__name__.replace("AutoModel", "Llama")
        assert written.difference == 0.0
        ours = auto.from_pretrained(tmp_path / auto.__name__)
        assert ours.config.id2label == names
        mask = torch.ones_like(ids)
        with torch.no_grad():
            expected = hybrid(ids, attention_mask=mask, use_cache=False).logits
            assert torch.equal(ours(ids, attention_mask=mask, use_cache=False).logits, expected)
    mambas = [tiny_model("mamba", seed=seed) for seed in (1, 2)]
    hybrid = manticore.ManticoreForSequenceClassification.from_causal_lm(small(mambas, [0, 1]), num_labels=2)
    with pytest.raises(ManticoreError, match=r"export: mamba has no class of transformers for such classes\. Fix: "):
        manticore.export(hybrid, tmp_path / "none")


def test_a_task_with_a_vocabulary_of_its_own(llamas: list[PreTrainedModel], tmp_path: Path) -> None:
    written = manticore.export(small(llamas, [0, 1], vocab_size=13), tmp_path / "out")
    assert not written.tokenizer
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 13
    with pytest.raises((OSError, ValueError)):
        AutoTokenizer.from_pretrained(tmp_path / "out")


def refusals() -> dict[str, tuple[Any, str]]:
    """What cannot be exported, and what is said of it."""
    llama, other = tiny_model("llama", seed=1), tiny_model("llama", seed=2)

    def supernet(**how: Any) -> Any:
        return manticore.combine([llama, other], num_blocks=2, check=False, **how)

    def far(**changes: Any) -> Any:
        return small([llama, tiny_model("llama", seed=2, **changes)], [0, 1])

    neos = [tiny_model("gpt_neo", seed=seed) for seed in (1, 2)]
    released = manticore.combine(neos, num_blocks=2, check=False, mixing="gated", released=True)
    return {
        "supernet": (supernet(), r"the hybrid is a supernet of 2 components, which .* Fix: discretize it first"),
        "bayes": (supernet(output="bayes"), r"a supernet of 2 components and output 'bayes', which"),
        "families": (
            small([llama, tiny_model("mistral", seed=2)], [0, 1]),
            r"several families, component 0 \(llama\) and component 1 \(mistral\)",
        ),
        "widths": (
            far(hidden_size=48),
            r"components of several widths: component 0 \(llama\) 32, component 1 \(llama\) 48",
        ),
        "mlps": (far(intermediate_size=64), r"intermediate_size is 48 in component 0 \(llama\), 64 in component 1"),
        "rotations": (
            far(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
            r"rope_parameters is .* in component 0 \(llama\), .* in component 1 \(llama\); one model has one",
        ),
        "fresh": (
            small([llama, "fresh:mh-linear-attention"], [0, 1]),
            r"the path goes through component 1 \(manticore_stack\), a model of manticore's own",
        ),
        "places": (
            small(
                [tiny_model("jamba", seed=1), tiny_model("jamba", seed=2)], [0, 1], boundaries=[[0, 1, 4], [0, 2, 4]]
            ),
            r"layer 2 of component 1 \(jamba\) would be layer 1, where its family's class makes another layer",
        ),
        "released": (manticore.discretize(released, [0, 0]), r"the released gated function has norms inside"),
        "pairs": (
            manticore.ManticoreForPairClassification.from_causal_lm(small([llama, other], [0, 1]), num_labels=2),
            r"no family has a class for what a ManticoreForPairClassification answers",
        ),
        "parent": (llama, r"export: a LlamaForCausalLM is not a hybrid"),
    }


def test_what_is_no_model_of_one_family_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, (hybrid, reason) in refusals().items():
        with pytest.raises(ManticoreError, match=rf"^export: .*{reason.removeprefix('export: ')}") as caught:
            manticore.export(hybrid, tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1, name
        assert "Fix: " in str(caught.value), name
        assert not list(tmp_path.iterdir()), name


def test_logits_that_differ_leave_nothing_behind(llamas: list[PreTrainedModel], tmp_path: Path) -> None:
    hybrid = small(llamas, [0, 1])
    hybrid.component(1).lm_head.register_forward_hook(lambda _module, _given, output: output * 1.001)
    with pytest.raises(ManticoreError, match=r"as a LlamaForCausalLM its logits differ .* nothing was kept"):
        manticore.export(hybrid, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_as_it_is(llamas: list[PreTrainedModel], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(ManticoreError, match="exists already, nothing was changed"):
        manticore.export(small(llamas, [0, 1]), tmp_path / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "config.json"]
