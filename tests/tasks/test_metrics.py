import math

import pytest
import torch
import torch.nn.functional as F

from manticore.tasks.metrics import IGNORE, MadMetrics, TokenMetrics, macro_accuracy


def random_batch(examples: int, tokens: int = 7, vocab: int = 5):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(examples, tokens, vocab, generator=generator)
    targets = torch.randint(0, vocab, (examples, tokens), generator=generator)
    targets[torch.rand(examples, tokens, generator=generator) < 0.5] = IGNORE
    return logits, targets


def gather(state, logits, targets, batch_size):
    for rows, wanted in zip(logits.split(batch_size), targets.split(batch_size)):
        state.update(rows, wanted)
    return state.compute()


def test_published_example_of_macro_accuracy():
    targets = torch.tensor([[4] * 9 + [5]])
    predictions = torch.tensor([[4] * 9 + [0]])
    assert macro_accuracy(predictions, targets) == pytest.approx(1 / 3)


def test_what_is_ignored_counts_neither_as_target_nor_as_prediction():
    targets = torch.tensor([[1, IGNORE, 1]])
    assert macro_accuracy(torch.tensor([[1, 7, 1]]), targets) == 1.0
    assert macro_accuracy(torch.tensor([[1, 7, 7]]), targets) == pytest.approx(0.25)
    assert macro_accuracy(torch.tensor([[1]]), torch.tensor([[IGNORE]])) == 0.0


def test_macro_accuracy_is_averaged_over_batches_of_128_sequences():
    logits, targets = random_batch(300)
    predictions = logits.argmax(-1)
    batches = [slice(0, 128), slice(128, 256), slice(256, 300)]
    expected = sum(len(predictions[rows]) * macro_accuracy(predictions[rows], targets[rows]) for rows in batches)
    whole = macro_accuracy(predictions, targets)
    result = gather(MadMetrics(), logits, targets, 300)["mad_macro"]
    assert result == pytest.approx(expected / 300, abs=1e-12)
    assert result != pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 64, 77, 128, 299])
@pytest.mark.parametrize("metrics", [TokenMetrics, MadMetrics])
def test_the_evaluation_batch_size_does_not_matter(metrics, batch_size):
    logits, targets = random_batch(300)
    expected = gather(metrics(), logits, targets, 300)
    result = gather(metrics(), logits, targets, batch_size)
    assert result == pytest.approx(expected, rel=1e-12)


def test_loss_and_accuracy_are_those_of_torch():
    logits, targets = random_batch(20)
    result = gather(TokenMetrics(), logits, targets, 6)
    loss = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), ignore_index=IGNORE).item()
    scored = targets != IGNORE
    assert result["loss"] == pytest.approx(loss, rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert result["accuracy"] == pytest.approx((logits.argmax(-1) == targets)[scored].float().mean().item())


def test_compute_may_be_called_in_between():
    logits, targets = random_batch(200)
    state = MadMetrics()
    state.update(logits[:150], targets[:150])
    assert state.compute() == state.compute()
    state.update(logits[150:], targets[150:])
    assert state.compute() == pytest.approx(gather(MadMetrics(), logits, targets, 200))


def test_mad_perplexity_is_averaged_over_batches_of_128_sequences():
    logits, targets = random_batch(200)
    logits[128:] *= 3
    batches = [slice(0, 128), slice(128, 200)]
    each = [gather(TokenMetrics(), logits[rows], targets[rows], 50)["perplexity"] for rows in batches]
    result = gather(MadMetrics(), logits, targets, 70)
    assert result["mad_perplexity"] == pytest.approx((128 * each[0] + 72 * each[1]) / 200)
    assert result["mad_perplexity"] != pytest.approx(math.exp(result["loss"]), rel=1e-3)
    assert gather(MadMetrics(), logits * 1e6, targets, 70)["mad_perplexity"] == math.inf
    assert math.isnan(gather(MadMetrics(), logits * math.nan, targets, 70)["mad_perplexity"])


def test_half_precision_logits_are_scored_in_float32():
    logits, targets = random_batch(9)
    result = gather(TokenMetrics(), logits.bfloat16(), targets, 9)
    assert result["loss"] == pytest.approx(gather(TokenMetrics(), logits.bfloat16().float(), targets, 9)["loss"])


def test_nothing_scored_is_nan_and_not_a_perfect_score():
    logits, targets = random_batch(4)
    state = MadMetrics()
    state.update(logits, torch.full_like(targets, IGNORE))
    assert math.isnan(state.compute()["accuracy"])
    assert all(math.isnan(value) for value in MadMetrics().compute().values())


def test_a_model_gone_wrong_shows_in_the_loss():
    logits, targets = random_batch(4)
    state = TokenMetrics()
    state.update(logits * math.nan, targets)
    result = state.compute()
    assert math.isnan(result["loss"])
    assert math.isnan(result["perplexity"])
    state = TokenMetrics()
    state.update(logits * 1e5, targets)
    assert state.compute()["perplexity"] == math.inf
