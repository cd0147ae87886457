"""Beyond a component's last position a hybrid says so in one line, in every way of running it."""

import pytest
import torch

import manticore
from benchmarks.tiny_families import tiny_model
from manticore.errors import ManticoreError

LIMIT = 64
END = r"but component 0 \(gpt_neo\) has positions for 64. Fix: "


@pytest.fixture(scope="module")
def hybrid():
    return manticore.combine([tiny_model("gpt_neo"), tiny_model("mamba")], num_blocks=2, check=False)


def ids(tokens):
    return torch.ones(1, tokens, dtype=torch.long)


def test_a_sequence_that_is_too_long(hybrid):
    assert hybrid(input_ids=ids(LIMIT)).logits.shape[1] == LIMIT
    with pytest.raises(ManticoreError, match=f"^forward: 65 tokens, {END}"):
        hybrid(input_ids=ids(LIMIT + 1))


@pytest.mark.parametrize("more", [1, 3])
def test_a_cached_continuation_that_goes_beyond_leaves_the_cache_alone(hybrid, more):
    cache = hybrid(input_ids=ids(LIMIT - more + 1), use_cache=True).past_key_values
    with pytest.raises(ManticoreError, match=rf"^forward: 65 tokens \({65 - more} of them cached\), {END}"):
        hybrid(input_ids=ids(more), past_key_values=cache, use_cache=True)
    assert cache.seen_tokens == 65 - more
    if more > 1:
        hybrid(input_ids=ids(1), past_key_values=cache, use_cache=True)


def test_generation_is_refused_before_the_first_token(hybrid):
    written = hybrid.generate(input_ids=ids(60), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert written.shape[1] == LIMIT + 1
    with pytest.raises(ManticoreError, match=f"^generate: prompt and new tokens make 66, {END}"):
        hybrid.generate(input_ids=ids(60), max_new_tokens=6)


def test_a_length_that_nobody_asked_for_ends_where_positions_do(hybrid):
    # as of the component itself
    assert hybrid.generate(input_ids=ids(60), eos_token_id=None).shape[1] == LIMIT


def test_what_has_no_part_has_no_say(hybrid):
    other = manticore.discretize(hybrid, [1, 1])
    assert other(input_ids=ids(LIMIT + 6)).logits.shape[1] == LIMIT + 6
    kept = manticore.discretize(hybrid, [1, 0])
    with pytest.raises(ManticoreError, match=END):
        kept(input_ids=ids(LIMIT + 6))


def test_padding_takes_no_positions_of_a_cached_continuation():
    hybrid = manticore.combine([tiny_model("opt"), tiny_model("mamba")], num_blocks=2, check=False)
    mask = torch.ones(1, LIMIT + 4, dtype=torch.long)
    mask[:, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = None
    for part in (slice(0, LIMIT), *(slice(t, t + 1) for t in range(LIMIT, LIMIT + 4))):
        output = hybrid(
            input_ids=ids(LIMIT + 4)[:, part],
            attention_mask=mask[:, : part.stop],
            position_ids=positions[:, part],
            past_key_values=cache,
            use_cache=True,
        )
        assert output.logits.isfinite().all()
        cache = output.past_key_values
