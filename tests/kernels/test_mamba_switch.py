"""Models of transformers with our scan: the same results, gradients, caches, and the way back."""

import copy
import inspect
import pickle
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    ZambaConfig,
)

from manticore.components.cache_argument import cache_argument, cache_in
from manticore.errors import ManticoreError
from manticore.kernels.mamba import fast_scan, use_selective_scan

SMALL = {"hidden_size": 16, "vocab_size": 40}
PARTS = {"intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "mamba_dt_rank": 4}
CONFIGS = {
    "mamba": MambaConfig(**SMALL, num_hidden_layers=2, state_size=4),
    "falcon_mamba": FalconMambaConfig(**SMALL, num_hidden_layers=2, state_size=4),
    "jamba": JambaConfig(
        **SMALL, **PARTS, num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1, num_experts=1
    ),
    "zamba": ZambaConfig(
        **SMALL,
        **PARTS,
        num_hidden_layers=5,
        attn_layer_period=2,
        attn_layer_offset=1,
        attention_hidden_size=32,
    ),
}
MIXERS = {"mamba": 2, "falcon_mamba": 2, "jamba": 1, "zamba": 5}


def make(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # larger than at initialization, so that the state carries something
            if parameter.dim() == 2:
                parameter.mul_(3)
        for name, parameter in model.named_parameters():
            if name.endswith(("dt_proj.bias", "dt_proj_bias")):
                parameter.fill_(-1.0)
    return model


def tokens(steps=40):
    return torch.randint(0, 40, (2, steps), generator=torch.Generator().manual_seed(1))


def mask(steps=40):
    value = torch.ones(2, steps, dtype=torch.long)
    value[0, :7] = 0
    return value


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()


def gradients(model, attention_mask):
    model.train()
    model.zero_grad()
    model(tokens(), attention_mask=attention_mask, labels=tokens()).loss.backward()
    model.eval()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_gradients_stay(family, padded):
    model = make(family)
    attention_mask = mask() if padded else None
    logits, grads = model(tokens(), attention_mask=attention_mask).logits, gradients(model, attention_mask)
    assert use_selective_scan(model) == MIXERS[family]
    assert relative(model(tokens(), attention_mask=attention_mask).logits, logits) <= 1e-5
    found = gradients(model, attention_mask)
    assert found.keys() == grads.keys()
    scale = max(value.abs().max() for value in grads.values())
    for name, value in grads.items():
        assert (found[name] - value).abs().max() <= 1e-5 * torch.maximum(value.abs().max(), 1e-2 * scale), name


def test_the_scan_is_really_ours(family, monkeypatch):
    """A path that cannot exist stops the model: nothing of transformers' own scan is left in use."""
    model = make(family)
    use_selective_scan(model)
    monkeypatch.setenv("MANTICORE_SCAN", "nonsense")
    with pytest.raises(ManticoreError, match="MANTICORE_SCAN"):
        model(tokens())
    use_selective_scan(model, enabled=False)
    model(tokens())


def test_generation_stays(family):
    model = make(family)
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask(12), "pad_token_id": 0}
    expected = model.generate(tokens(12), **options)
    use_selective_scan(model)
    assert torch.equal(model.generate(tokens(12), **options), expected)


def go_on(model, ids, cache):
    return model(ids, use_cache=True, **{cache_argument(type(model).forward): cache})


def continued(model, cut):
    """Logits of the tokens after ``cut``, fed in one call after a cached prompt."""
    with torch.no_grad():
        cache = cache_in(model(tokens()[:, :cut], use_cache=True))
        return go_on(model, tokens()[:, cut:], cache).logits


@pytest.mark.parametrize("cut", [1, 3, 32, 39])
def test_continuing_a_cached_prompt(family, cut):
    model = make(family)
    use_selective_scan(model)
    whole = model(tokens()).logits[:, cut:]
    assert relative(continued(model, cut), whole) <= 1e-5


def test_gradients_through_a_continuation():
    """The cache is overwritten in place after the scan has read it; the backward pass must not notice."""
    model = make("mamba")
    use_selective_scan(model)
    norm = model.backbone.norm_f.weight
    (whole,) = torch.autograd.grad(model(tokens()).logits[:, 20:].square().sum(), norm)
    with torch.no_grad():
        cache = cache_in(model(tokens()[:, :20], use_cache=True))
    go_on(model, tokens()[:, 20:], cache).logits.square().sum().backward()
    assert relative(norm.grad, whole) <= 1e-5
    assert model.backbone.layers[0].mixer.A_log.grad.abs().max() > 0


def test_transformers_own_continuation_is_wrong():
    """The reason for handing over the state; when this fails, transformers has repaired it."""
    model = make("mamba")
    assert relative(continued(model, 32), model(tokens()).logits[:, 32:]) > 1e-3


def test_reset_cache_starts_from_zero():
    model = make("mamba")
    use_selective_scan(model)
    first = model(tokens(), use_cache=True)
    cache = cache_in(first)
    cache.reset()
    again = go_on(model, tokens(), cache)
    assert torch.equal(again.logits, first.logits)


def test_on_and_off(family):
    model = make(family)
    before = model(tokens()).logits
    classes = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    assert use_selective_scan(model) == MIXERS[family]
    assert use_selective_scan(model) == 0
    assert list(model.state_dict()) == keys
    assert use_selective_scan(model, enabled=False) == MIXERS[family]
    assert use_selective_scan(model, enabled=False) == 0
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(tokens()).logits, before)


def test_other_models_are_untouched():
    model, other = make("mamba"), make("mamba")
    use_selective_scan(model)
    assert use_selective_scan(other) == 2


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_switched_and_independent(clone):
    model = make("mamba")
    use_selective_scan(model)
    before = model(tokens()).logits
    twin = clone(model)
    assert torch.equal(twin(tokens()).logits, before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(tokens()).logits, before)
    assert not torch.equal(twin(tokens()).logits, before)
    assert use_selective_scan(twin, enabled=False) == 2
    assert use_selective_scan(model) == 0


def test_gradient_checkpointing():
    model = make("mamba")
    use_selective_scan(model)
    expected = gradients(model, None)
    model.activation_checkpointing_enable()
    found = gradients(model, None)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_flops_on_meta_equal_flops_on_cpu(family):
    ours = torch.ops.manticore.selective_scan, torch.ops.manticore.selective_scan_backward
    counts = []
    for device in ("meta", "cpu"):
        model = make(family).to(device)
        use_selective_scan(model)
        with FlopCounterMode(display=False) as counter:
            model(tokens(70).to(device)).logits.sum().backward()
        counts.append([counter.get_flop_counts()["Global"][operator] for operator in ours])
    assert counts[0] == counts[1]
    assert min(counts[0]) > 0


def test_models_without_mamba():
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**SMALL, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert use_selective_scan(model) == 0


def test_unexpected_mixers_are_refused():
    class OldMambaMixer(nn.Module):
        def forward(self, hidden_states):
            return hidden_states

    OldMambaMixer.__module__ = "transformers.models.mamba.modeling_mamba"
    model = nn.Sequential(make("mamba"), OldMambaMixer())
    with pytest.raises(ManticoreError, match=r"OldMambaMixer is not a mixer that can be switched.*Fix:"):
        use_selective_scan(model)
    assert use_selective_scan(model[0], enabled=False) == 0


def families_that_call(name):
    """The families of the installed transformers whose code calls a function of this name."""
    files = (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")
    return {path.parent.name for path in files if f"= {name}(" in path.read_text(encoding="utf-8")}


def test_every_family_with_a_mamba_1_mixer_is_tested_here():
    assert families_that_call("mamba_selective_scan") == set(CONFIGS)


@pytest.mark.parametrize("family", sorted(families_that_call("mamba2_chunk_scan")))
def test_every_mamba_2_mixer_can_be_switched(family):
    module = import_module(f"transformers.models.{family}.modeling_{family}")
    switchable = []
    for value in list(vars(module).values()):
        if inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module.__name__:
            # switching needs no parameters
            holder = value.__new__(value)
            nn.Module.__init__(holder)
            if use_selective_scan(holder):
                switchable.append(value.__name__)
    assert len(switchable) == 1, switchable


def mixer_of_another_version(scan, forward):
    """A mixer as some other version of transformers might have it, in a module of its own."""
    module = ModuleType("transformers.models.mamba.modeling_other")
    module.mamba_selective_scan = scan
    source = f"def forward({forward}):\n    return mamba_selective_scan(hidden_states)\n"
    exec(source, vars(module))
    sys.modules[module.__name__] = module
    return type("MambaMixer", (nn.Module,), {"forward": module.forward, "__module__": module.__name__})()


@pytest.mark.parametrize(
    ("scan", "forward", "reason"),
    [
        (
            lambda hidden_states, dt, A, B, C: None,
            "self, hidden_states, cache_params, attention_mask",
            "no parameter D",
        ),
        (
            transformers.models.mamba.modeling_mamba.mamba_selective_scan,
            "self, hidden_states, states, attention_mask",
            "its forward takes",
        ),
    ],
)
def test_other_signatures_are_refused(scan, forward, reason, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.models.mamba.modeling_other", None)
    model = nn.Sequential(make("mamba"), mixer_of_another_version(scan, forward))
    with pytest.raises(ManticoreError, match=rf"can be switched: .*{reason}.*Fix:"):
        use_selective_scan(model)
    assert use_selective_scan(model[0], enabled=False) == 0


def test_fast_scan_puts_back_what_was_there():
    model = make("mamba")
    first, second = (layer.mixer for layer in model.backbone.layers)
    use_selective_scan(second)
    before = type(first), type(second)
    with fast_scan(model):
        assert use_selective_scan(model) == 0
    assert (type(first), type(second)) == before
    with pytest.raises(ZeroDivisionError), fast_scan(model):
        raise ZeroDivisionError
    assert (type(first), type(second)) == before


def test_mamba2_runs_with_a_smaller_chunk():
    torch.manual_seed(0)
    config = Mamba2Config(**SMALL, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    mixer = model.backbone.layers[0].mixer
    expected = model(tokens(100)).logits
    assert use_selective_scan(model) == 1
    assert mixer.chunk_size == 64
    assert relative(model(tokens(100)).logits, expected) <= 1e-5
    assert use_selective_scan(model, enabled=False) == 1
    assert mixer.chunk_size == config.chunk_size == 256


def test_mamba2_keeps_a_chunk_that_is_small_already():
    config = Mamba2Config(
        **SMALL, num_hidden_layers=1, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=16
    )
    model = AutoModelForCausalLM.from_config(config)
    use_selective_scan(model)
    assert model.backbone.layers[0].mixer.chunk_size == 16
