import pytest
from transformers import AutoModelForCausalLM

from manticore.errors import ManticoreError
from manticore.training.shapes import small_config


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt", "mamba2", "falcon_mamba", "qwen3"])
def test_shapes_of_other_families(family):
    config = small_config(family, layers=3, width=64)
    config.vocab_size, config.pad_token_id = 50, 0
    model = AutoModelForCausalLM.from_config(config)
    assert model.config.num_hidden_layers == 3
    assert model.get_input_embeddings().weight.shape[1] == 64
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_500_000


def test_options_win_over_what_is_derived():
    config = small_config("gpt_neo", layers=3, width=64, options={"num_attention_heads": 8, "window_size": 4})
    assert (config.num_heads, config.window_size) == (8, 4)
    assert config.attention_layers == ["global", "local", "global"]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt_neoo", {}, "Did you mean 'gpt_neo'"),
        ("zzz", {}, "such as gpt_neo or mamba"),
        ("vit", {}, "not a causal language model"),
        ("rwkv", {}, "is refused"),
        ("gpt_neo", {"width": 65}, "cannot have 2 layers of width 65"),
        ("gpt_neo", {"options": {"attention_types": [[["global"], 5]]}}, "cannot have 2 layers"),
        ("gpt_neo", {"options": {"num_heads": "many"}}, "cannot have 2 layers"),
        ("gpt_neo", {"options": {"window": 3}}, "no option 'window'"),
        ("mamba", {"options": {"state_sizes": 3}}, "Did you mean 'state_size'"),
        ("mamba", {"options": {"vocab_size": 3}}, "no option 'vocab_size'"),
        ("mamba", {"options": {"hidden_act": object()}}, "Fix: give a number, text, list or mapping"),
    ],
)
def test_bad_shapes_end_in_one_line(family, change, message):
    with pytest.raises(ManticoreError, match=message) as caught:
        small_config(family, **{"layers": 2, "width": 64, **change})
    assert "\n" not in str(caught.value)
