"""Streamed ridge regression against dense float64 solutions, and its behaviour on degenerate features."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manticore.errors import ManticoreError
from manticore.projectors import ridge as ridge_module
from manticore.projectors.ridge import FeatureSums

fast = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**32 - 1)
widths = st.integers(1, 9)


def data(seed, tokens, d_in, d_out, noise=0.3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    x = x * torch.rand(d_in, generator=generator).double().add(0.1) + torch.randn(d_in, generator=generator) * 3
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.float64)
    bias = torch.randn(d_out, generator=generator, dtype=torch.float64)
    y = x @ weight.T + bias + noise * torch.randn(tokens, d_out, generator=generator, dtype=torch.float64)
    return x, y, weight, bias


class OnePair:
    """The sums of a single regression."""

    def __init__(self):
        self.sums = FeatureSums([("inputs", "outputs")])

    def update(self, x, y, mask=None):
        self.sums.update({"inputs": x, "outputs": y}, mask)

    def solve(self, ridge):
        return self.sums.solve("inputs", "outputs", ridge)

    def r_squared(self, weight, bias):
        return self.sums.r_squared("inputs", "outputs", weight, bias)


def accumulate(x, y, batch=10**9, mask=None):
    accumulator = OnePair()
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        accumulator.update(x[part], y[part], None if mask is None else mask[part])
    return accumulator


def dense_ridge(x, y, ridge):
    """Ridge with an unpenalised intercept as least squares on centred features with rows appended."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    d_in = x.shape[1]
    penalty = (ridge * (x - mean_x).square().mean() * len(x)) ** 0.5
    rows = torch.cat([x - mean_x, penalty * torch.eye(d_in, dtype=x.dtype)])
    targets = torch.cat([y - mean_y, torch.zeros(d_in, y.shape[1], dtype=x.dtype)])
    weight = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T
    return weight, mean_y - weight @ mean_x


def dense_r_squared(x, y, weight, bias):
    return 1 - float((x @ weight.T + bias - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize(("d_in", "d_out"), [(7, 12), (12, 7), (1, 1)])
def test_equals_dense_least_squares(ridge, d_in, d_out):
    x, y, _, _ = data(0, 300, d_in, d_out)
    weight, bias = accumulate(x, y, 64).solve(ridge)
    expected_weight, expected_bias = dense_ridge(x, y, ridge)
    torch.testing.assert_close(weight, expected_weight, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bias, expected_bias, rtol=1e-9, atol=1e-9)


@fast
@given(seed=seeds, d_in=widths, d_out=widths, tokens=st.integers(30, 200), batch=st.integers(1, 50))
def test_streamed_equals_one_batch(seed, d_in, d_out, tokens, batch):
    x, y, _, _ = data(seed, tokens, d_in, d_out)
    streamed, whole = accumulate(x, y, batch), accumulate(x, y)
    for left, right in zip(streamed.solve(1e-3), whole.solve(1e-3)):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)
    weight, bias = whole.solve(1e-3)
    assert streamed.r_squared(weight, bias) == pytest.approx(whole.r_squared(weight, bias), abs=1e-9)


@fast
@given(seed=seeds, d_in=widths, d_out=widths)
def test_affine_maps_are_recovered_exactly(seed, d_in, d_out):
    x, y, weight, bias = data(seed, 120, d_in, d_out, noise=0)
    accumulator = accumulate(x, y, 32)
    solved_weight, solved_bias = accumulator.solve(0.0)
    torch.testing.assert_close(solved_weight, weight, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(solved_bias, bias, rtol=1e-7, atol=1e-7)
    assert accumulator.r_squared(solved_weight, solved_bias) == pytest.approx(1, abs=1e-9)


@fast
@given(seed=seeds, d_in=widths, d_out=widths, ridge=st.sampled_from([0.0, 1e-4, 1.0]))
def test_r_squared_from_sums_equals_r_squared_from_features(seed, d_in, d_out, ridge):
    x, y, _, _ = data(seed, 100, d_in, d_out, noise=1)
    held_x, held_y, _, _ = data(seed + 1, 50, d_in, d_out, noise=1)
    weight, bias = accumulate(x, y, 33).solve(ridge)
    for inputs, outputs in ((x, y), (held_x, held_y)):
        expected = dense_r_squared(inputs, outputs, weight, bias)
        assert accumulate(inputs, outputs, 7).r_squared(weight, bias) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@fast
@given(seed=seeds, factor=st.sampled_from([1e-6, 1e-2, 1e5]), copies=st.integers(2, 4))
def test_ridge_means_the_same_at_any_scale_and_length(seed, factor, copies):
    x, y, _, _ = data(seed, 60, 5, 3)
    weight, _ = accumulate(x, y).solve(0.1)
    scaled, _ = accumulate((x * factor).repeat(copies, 1), y.repeat(copies, 1)).solve(0.1)
    torch.testing.assert_close(scaled * factor, weight, rtol=1e-7, atol=1e-9)


@fast
@given(seed=seeds, constant=st.floats(-1e6, 1e6), ridge=st.sampled_from([0.0, 1e-4]))
def test_constant_features_carry_no_weight(seed, constant, ridge):
    x, y, _, _ = data(seed, 80, 4, 3)
    padded = torch.cat([x, torch.full((80, 2), constant, dtype=x.dtype)], dim=1)
    weight, bias = accumulate(padded, y, 30).solve(ridge)
    assert weight[:, 4:].abs().max() < 1e-6
    # the mean variance that scales the penalty counts the constant channels as well
    expected_weight, _ = dense_ridge(x, y, ridge * 4 / 6)
    torch.testing.assert_close(weight[:, :4], expected_weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(padded.mean(0) @ weight.T + bias, y.mean(0), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1 / 3, -1e8])
@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_nothing_but_constants(constant, ridge):
    x = torch.full((50, 4), constant)
    _, y, _, _ = data(3, 50, 4, 3)
    accumulator = accumulate(x, y, 16)
    weight, bias = accumulator.solve(ridge)
    assert torch.equal(weight, torch.zeros_like(weight))
    torch.testing.assert_close(bias, y.mean(0))
    assert accumulator.r_squared(weight, bias) == pytest.approx(0, abs=1e-9)


def test_constant_targets():
    x, _, _, _ = data(4, 50, 4, 3)
    y = torch.full((50, 3), 1 / 3)
    accumulator = accumulate(x, y, 16)
    weight, bias = accumulator.solve(1e-4)
    assert weight.abs().max() < 1e-12
    assert accumulator.r_squared(weight, bias) == 1.0
    assert accumulator.r_squared(weight, bias + 1) == 0.0


@pytest.mark.parametrize("ridge", [0.0, 1e-9, 1e-4])
def test_linearly_dependent_features(ridge):
    x, _, weight, bias = data(5, 200, 4, 6, noise=0)
    mixing = torch.randn(9, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    wide = x @ mixing.T
    y = x @ weight.T + bias
    accumulator = accumulate(wide, y, 50)
    solved_weight, solved_bias = accumulator.solve(ridge)
    assert accumulator.r_squared(solved_weight, solved_bias) > 1 - 1e-4
    assert solved_weight.abs().max() < 100
    if ridge == 0:
        torch.testing.assert_close(wide @ solved_weight.T + solved_bias, y, rtol=1e-7, atol=1e-7)
        least_norm, _ = dense_ridge(wide, y, 0.0)
        torch.testing.assert_close(solved_weight, least_norm, rtol=1e-6, atol=1e-7)


def test_fewer_tokens_than_channels():
    x, y, _, _ = data(7, 5, 30, 4)
    weight, bias = accumulate(x, y).solve(0.0)
    torch.testing.assert_close(x @ weight.T + bias, y, rtol=1e-7, atol=1e-7)
    assert accumulate(x[:1], y[:1]).solve(1e-4)[0].abs().max() == 0


def test_large_means_lose_no_digits():
    """Float32 features whose mean is a thousand times their spread, as single channels of large models have."""
    x, y, _, _ = data(8, 500, 5, 3)
    x, y = (x + 1e3).float(), (y - 1e3).float()
    weight, _ = accumulate(x, y, 100).solve(0.0)
    expected_weight, _ = dense_ridge(x.double(), y.double(), 0.0)
    torch.testing.assert_close(weight, expected_weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64])
def test_masked_tokens_do_not_count(mask_dtype):
    x, y, _, _ = data(9, 60, 5, 3)
    mask = torch.rand(60, generator=torch.Generator().manual_seed(1)) < 0.6
    poisoned_x = torch.where(mask[:, None], x, float("nan"))
    masked = accumulate(poisoned_x.view(6, 10, 5), y.view(6, 10, 3), 2, mask.view(6, 10).to(mask_dtype))
    plain = accumulate(x[mask], y[mask])
    assert masked.sums.tokens == plain.sums.tokens == int(mask.sum())
    for left, right in zip(masked.solve(1e-4), plain.solve(1e-4)):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)


def test_a_batch_that_is_all_padding_changes_nothing():
    x, y, _, _ = data(10, 20, 5, 3)
    accumulator = OnePair()
    accumulator.update(x, y, torch.zeros(20))
    with pytest.raises(ManticoreError, match="no tokens were counted"):
        accumulator.solve(1e-4)
    accumulator.update(x, y)
    torch.testing.assert_close(accumulator.solve(1e-4), accumulate(x, y).solve(1e-4))


def test_chunks_do_not_change_the_result(monkeypatch):
    x, y, _, _ = data(11, 100, 5, 3)
    whole = accumulate(x, y).solve(1e-4)
    monkeypatch.setattr(ridge_module, "CHUNK_TOKENS", 7)
    torch.testing.assert_close(accumulate(x, y).solve(1e-4), whole, rtol=1e-9, atol=1e-10)


def test_shared_sums_equal_separate_regressions():
    """Three spaces, all ordered pairs, from one pass; a space used only as a target has no Gram matrix."""
    generator = torch.Generator().manual_seed(12)
    x = {key: torch.randn(90, d, generator=generator).double() for key, d in {"a": 4, "b": 6, "c": 5}.items()}
    pairs = [("a", "b"), ("b", "a"), ("a", "c")]
    sums = FeatureSums(pairs)
    for start in range(0, 90, 40):
        sums.update({key: value[start : start + 40] for key, value in x.items()})
    for source, target in pairs:
        expected = accumulate(x[source], x[target]).solve(1e-3)
        torch.testing.assert_close(sums.solve(source, target, 1e-3), expected, rtol=1e-9, atol=1e-10)
        weight, bias = expected
        assert sums.r_squared(source, target, weight, bias) == pytest.approx(
            dense_r_squared(x[source], x[target], weight, bias)
        )
    moments = sums.moments("b")
    torch.testing.assert_close(moments.covariance, x["b"].T.cov(correction=0))
    torch.testing.assert_close(moments.mean, x["b"].mean(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_before_anything_is_added(bad):
    x, y, _, _ = data(13, 20, 5, 3)
    accumulator = accumulate(x, y)
    before = accumulator.solve(1e-4)
    broken = x.clone()
    broken[3, 2] = bad
    with pytest.raises(ManticoreError, match="features of inputs hold NaN or infinity in 1 of 5"):
        accumulator.update(broken, y)
    assert accumulator.sums.tokens == 20
    torch.testing.assert_close(accumulator.solve(1e-4), before, rtol=0, atol=0)


def test_misuse_is_named():
    x, y, _, _ = data(14, 20, 5, 3)
    with pytest.raises(ManticoreError, match=r"differ in tokens \(got \[19, 20\]\)"):
        OnePair().update(x, y[:19])
    with pytest.raises(ManticoreError, match="must not be negative"):
        accumulate(x, y).solve(-1e-4)
