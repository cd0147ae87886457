"""peft on hybrids: safe targets, unsafe ones refused, and the same model saved, loaded and merged."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
from hybrids import Build, at_random_weights
from packaging.version import Version
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.peft import MIN_PEFT_VERSION

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.components.loading import align_memory
from manticore.errors import ManticoreError
from manticore.hybrid.modeling import ManticoreForCausalLM
from manticore.stacks.configuration import StackConfig
from manticore.stacks.modeling import StackForCausalLM

DOCS = Path(__file__).parents[2] / "docs"
UNSAFE = r"adapter: .*dt_proj.*MambaMixer reads its weight as a tensor.*Fix: target_modules=manticore\.lora_targets"

models_own_methods = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"add_adapter of this transformers refuses peft below {MIN_PEFT_VERSION}",
)


def config(model: PreTrainedModel, **changes: object) -> LoraConfig:
    """Updates that are not zero, as after training, on all safe maps."""
    settings = {"r": 2, "target_modules": manticore.lora_targets(model), "init_lora_weights": False, **changes}
    return LoraConfig(**{"task_type": "CAUSAL_LM", **settings})  # type: ignore[arg-type]


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    # where weights lie in memory decides the last bit
    align_memory(model)
    return model.eval()(input_ids=ids).logits


def leaves(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def adapted(model: torch.nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if "lora_" in name or "modules_to_save" in name]


@pytest.fixture(params=["supernet", "discretized"])
def hybrid(request: pytest.FixtureRequest, build: Build) -> ManticoreForCausalLM:
    """A GPT-Neo and a Mamba, whole or as a path that changes twice."""
    made = at_random_weights(build())
    return made if request.param == "supernet" else manticore.discretize(made, [1, 0, 1])


def test_targets_of_a_hybrid_are_attention_mlp_and_the_mixers_input(hybrid: ManticoreForCausalLM) -> None:
    targets = manticore.lora_targets(hybrid)
    assert leaves(targets) == {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj", "in_proj"}
    assert all("mixer" not in name or name.endswith("in_proj") for name in targets)
    assert all(name in dict(hybrid.named_modules()) for name in targets)


def test_targets_of_other_models() -> None:
    assert leaves(manticore.lora_targets(tiny_model("gpt2"))) == {"c_attn", "c_proj", "c_fc"}
    assert "dt_proj" not in leaves(manticore.lora_targets(tiny_model("jamba")))
    stack = StackForCausalLM(StackConfig(layers=["mamba", "swiglu"], vocab_size=31, hidden_size=16))
    assert leaves(manticore.lora_targets(stack)) == {
        *("in_proj", "x_proj", "out_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


def test_the_table_has_a_row_per_block_and_component(build: Build) -> None:
    supernet = build()
    table = manticore.lora_table(supernet)
    assert [(row.block, row.component, row.family) for row in table.rows] == [
        (n, k, family) for n in range(3) for k, family in enumerate(("gpt_neo", "mamba"))
    ]
    assert sum(row.count for row in table.rows) == len(manticore.lora_targets(supernet))
    mamba = table.rows[1]
    assert mamba.matched == {"in_proj 96×24": 2}
    assert set(mamba.refused) == {"conv1d", "x_proj", "dt_proj", "out_proj"}
    assert "dt_proj: MambaMixer reads its weight as a tensor" in str(table)
    assert [row.component for row in manticore.lora_table(manticore.discretize(supernet, [1, 0, 1])).rows] == [1, 0, 1]


def test_the_table_of_given_and_of_existing_adapters(build: Build) -> None:
    table = manticore.lora_table(build(), ["q_proj", "dt_proj"])
    assert [set(row.matched) for row in table.rows[:2]] == [{"q_proj 32×32"}, set()]
    model = get_peft_model(build(), LoraConfig(r=2, target_modules="component_1.*in_proj"))
    assert [row.count for row in manticore.lora_table(model).rows[:2]] == [0, 2]
    gpt2 = manticore.lora_table(tiny_model("gpt2")).rows[0].matched
    assert gpt2["c_attn 96×32"] == 4


@models_own_methods
@pytest.mark.parametrize(
    "targets", [["dt_proj", "q_proj"], "all-linear", r".*\.mixer\..*_proj"], ids=["list", "all-linear", "regex"]
)
def test_unsafe_targets_are_refused_and_leave_the_hybrid_as_it_was(
    build: Build, ids: Tensor, targets: list[str] | str
) -> None:
    hybrid = build()
    before, names = logits(hybrid, ids), set(hybrid.state_dict())
    for put in (lambda c: get_peft_model(hybrid, c), hybrid.add_adapter):
        with pytest.raises(ManticoreError, match=UNSAFE):
            put(LoraConfig(r=2, target_modules=targets))
        assert set(hybrid.state_dict()) == names
        # frozen weights go through other kernels of torch: the last bit may differ
        assert torch.allclose(logits(hybrid, ids), before, atol=1e-6)
    get_peft_model(hybrid, config(hybrid))
    assert not torch.allclose(logits(hybrid, ids), before, atol=1e-3)


def test_peft_itself_refuses_where_no_targets_are_given(build: Build) -> None:
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        get_peft_model(build(), LoraConfig(r=2))


def test_tied_heads_are_refused(build: Build) -> None:
    with pytest.raises(ManticoreError, match=r"component_0\.lm_head: its weight is also that of component_0\.transf"):
        get_peft_model(build(), LoraConfig(r=2, target_modules=["lm_head"]))


def test_other_adapters_than_lora_are_refused_too(build: Build) -> None:
    with pytest.raises(ManticoreError, match=UNSAFE):
        get_peft_model(build(), peft.LoHaConfig(r=2, target_modules=["dt_proj"]))


def test_an_adapter_that_comes_later_is_refused_at_the_next_pass(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    model = get_peft_model(hybrid, config(hybrid))
    expected = logits(model, ids)
    model.add_adapter("second", config(hybrid.component(0), target_modules=["dt_proj"]))
    with pytest.raises(ManticoreError, match=UNSAFE):
        model(input_ids=ids)
    model.delete_adapter("second")
    assert torch.equal(logits(model, ids), expected)


def test_classifiers_refuse_and_carry_adapters_too(build: Build, ids: Tensor) -> None:
    classifier = manticore.ManticoreForSequenceClassification.from_causal_lm(build(), num_labels=3)
    with pytest.raises(ManticoreError, match=UNSAFE):
        get_peft_model(classifier, LoraConfig(r=2, target_modules="all-linear"))
    heads = [f"score.{name}" for name in classifier.score]
    model = get_peft_model(classifier, config(classifier, task_type=None, modules_to_save=heads))
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n} == {
        f"base_model.model.{head}.modules_to_save.default.weight" for head in heads
    }
    mask = torch.ones_like(ids)
    with torch.no_grad():
        unmerged = model.eval()(input_ids=ids, attention_mask=mask).logits
        merged = model.merge_and_unload()(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(merged, unmerged, atol=1e-5)


def test_stacks_refuse_unsafe_targets_too() -> None:
    stack = StackForCausalLM(StackConfig(layers=["mamba", "mlp"], vocab_size=31, hidden_size=16))
    with pytest.raises(ManticoreError, match=r"dt_proj: Mamba reads its weight as a tensor"):
        get_peft_model(stack, LoraConfig(r=2, target_modules=["dt_proj"]))
    model = get_peft_model(stack, config(stack))
    ids = torch.arange(12)[None]
    unmerged = logits(model, ids)
    assert torch.allclose(logits(model.merge_and_unload(), ids), unmerged, atol=1e-5)


def test_saved_loaded_and_merged_adapters_are_the_same_model(
    hybrid: ManticoreForCausalLM, ids: Tensor, left_padding: dict[str, Tensor], tmp_path: Path
) -> None:
    hybrid.save_pretrained(tmp_path / "base")
    before = logits(hybrid, ids)
    projectors = [f"mixing.projectors.{name}" for name in hybrid.mixing.projectors]
    model = get_peft_model(hybrid, config(hybrid, modules_to_save=projectors))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    expected = logits(model, ids)
    assert not torch.allclose(expected, before, atol=1e-3)
    generated = model.generate(input_ids=ids, **left_padding, max_new_tokens=5, do_sample=False)
    model.save_pretrained(tmp_path / "adapter")

    loaded = PeftModel.from_pretrained(ManticoreForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), expected)
    with loaded.disable_adapter():
        assert torch.allclose(logits(loaded, ids), before, atol=1e-6)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, ManticoreForCausalLM)
    assert adapted(merged) == []
    assert torch.allclose(logits(merged, ids), expected, atol=1e-5)
    again = merged.generate(input_ids=ids, **left_padding, max_new_tokens=5, do_sample=False)
    assert torch.equal(again, generated)


@models_own_methods
def test_the_models_own_adapter_methods(hybrid: ManticoreForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    hybrid.save_pretrained(tmp_path / "base")
    hybrid.add_adapter(config(hybrid))
    expected = logits(hybrid, ids)
    hybrid.save_pretrained(tmp_path / "adapter")
    fresh = ManticoreForCausalLM.from_pretrained(tmp_path / "base")
    fresh.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(fresh, ids), expected)


def test_gradients_reach_every_update_and_the_named_projectors_only(hybrid: ManticoreForCausalLM, ids: Tensor) -> None:
    projectors = [f"mixing.projectors.{name}" for name in hybrid.mixing.projectors]
    model = get_peft_model(hybrid, config(hybrid, modules_to_save=projectors)).train()
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {n for n, _ in model.named_parameters() if "lora_" in n or "modules_to_save" in n}
    silent = [n for n, p in model.named_parameters() if "lora_" in n and not p.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert silent == []


def test_a_supernet_with_adapters_is_merged_before_it_is_discretized(build: Build, ids: Tensor) -> None:
    supernet = build()
    supernet.set_mixture_weights([1, 0, 0])
    model = get_peft_model(supernet, config(supernet))
    with pytest.raises(ManticoreError, match=r"has adapters.*Fix: hybrid = peft_model\.merge_and_unload\(\)"):
        manticore.discretize(model, [1, 0, 0])  # type: ignore[arg-type]
    unmerged = logits(model, ids)
    small = manticore.discretize(model.merge_and_unload(), [1, 0, 0])
    assert torch.allclose(logits(small, ids), unmerged, atol=1e-5)


def test_targets_are_asked_for_before_the_adapters_come(build: Build) -> None:
    hybrid = build()
    get_peft_model(hybrid, config(hybrid))
    with pytest.raises(ManticoreError, match="lora_targets: this ManticoreForCausalLM has adapters already"):
        manticore.lora_targets(hybrid)


def test_nothing_safe_is_said() -> None:
    stack = StackForCausalLM(StackConfig(layers=["mlp"], vocab_size=31, hidden_size=16))
    mixer = stack.model.layers[0].mixer
    mixer.down_proj.weight = mixer.up_proj.weight
    with pytest.raises(ManticoreError, match="have no linear map that could carry an update"):
        manticore.lora_targets(stack)


def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("gpt-neo", "mamba"):
        tiny_model(folder.replace("-", "_")).save_pretrained(folder)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "lora.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    seen: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks:
            exec(block, seen)
    assert "in_proj 96×24" in capsys.readouterr().out
    assert isinstance(seen["small"], ManticoreForCausalLM)
