import csv
import math

import pytest
import torch
from tiny_search import make_hybrid, recall

import manticore
from manticore.errors import ManticoreError
from manticore.search.search import search
from manticore.tasks.task import load_task

METHODS = ["darts", "dash", "gaea"]
QUICK = {"method": "darts", "steps": 4, "batch_size": 8, "mixture_lr": 0.1, "cpu": True}


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mixing", ["translated", "routed", "gated"])
def test_every_method_searches_every_mixing(method, mixing):
    hybrid = make_hybrid(mixing)
    start = hybrid.mixture_weights
    result = search(hybrid, recall(), **{**QUICK, "method": method})
    assert result.weights.shape == (2, 2)
    torch.testing.assert_close(result.weights.sum(-1), torch.ones(2))
    assert not torch.equal(result.weights, start)
    assert result.path == hybrid.mixing.best_path()
    assert torch.equal(result.weights, hybrid.mixture_weights)
    assert not any(parameter.requires_grad for parameter in hybrid.mixing.mixture_parameters())
    assert manticore.discretize(hybrid, result.path).config.path == result.path


def test_a_users_choice_of_scan_outlives_the_search():
    hybrid = make_hybrid()
    before = [type(module) for module in hybrid.modules()]
    search(hybrid, recall(), method="darts", steps=1, batch_size=4, cpu=True)
    assert [type(module) for module in hybrid.modules()] == before


@pytest.mark.parametrize(
    ("method", "mixing", "useless"),
    [
        ("darts", "translated", 0),
        ("darts", "routed", 1),
        ("darts", "gated", 0),
        ("dash", "translated", 1),
        ("gaea", "translated", 1),
        ("gaea", "routed", 0),
    ],
)
def test_the_weights_leave_a_component_whose_head_is_noise(method, mixing, useless):
    hybrid = make_hybrid(mixing)
    with torch.no_grad():
        # the final norm's scale: large random logits, frozen by trainable="projectors"
        final_norm = (hybrid.component_0.transformer.ln_f, hybrid.component_1.backbone.norm_f)[useless]
        final_norm.weight.mul_(30)
        embeddings = hybrid.component(useless).get_input_embeddings()
        embeddings.weight.mul_(10)
    result = search(
        hybrid, recall(), method=method, steps=40, batch_size=8, mixture_lr=0.1, trainable="projectors", cpu=True
    )
    assert result.weights[-1, useless] < 0.3
    assert result.path[-1] == 1 - useless


def test_the_log_holds_every_step(tmp_path):
    hybrid = make_hybrid()
    result = search(hybrid, recall(), out=tmp_path, **QUICK)
    assert [row["step"] for row in result.history] == [1, 2, 3, 4]
    assert all(math.isfinite(row["loss"]) for row in result.history)
    torch.testing.assert_close(torch.tensor(result.history[-1]["weights"]), result.weights)
    rows = rows_of(tmp_path / "mixture_weights.csv")
    assert list(rows[0]) == ["step", "block", "c0", "c1", "entropy"]
    assert [(row["step"], row["block"]) for row in rows] == [(str(s), str(n)) for s in (1, 2, 3, 4) for n in (0, 1)]
    for row in rows:
        weights = [float(row["c0"]), float(row["c1"])]
        assert weights == result.history[int(row["step"]) - 1]["weights"][int(row["block"])]
        assert float(row["entropy"]) == pytest.approx(-sum(w * math.log(w) for w in weights), abs=1e-5)
    mean = sum(float(row["entropy"]) for row in rows[-2:]) / 2
    assert result.history[-1]["entropy"] == pytest.approx(mean)


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_gives_the_same_search_whatever_was_drawn_before(method):
    weights, losses = [], []
    for noise in (1, 2):
        hybrid = make_hybrid()
        torch.manual_seed(noise)
        result = search(hybrid, recall(), seed=3, **{**QUICK, "method": method})
        weights.append(result.weights)
        losses.append([row["loss"] for row in result.history])
    assert torch.equal(weights[0], weights[1])
    assert losses[0] == losses[1]
    other = search(make_hybrid(), recall(), seed=4, **{**QUICK, "method": method})
    assert [row["loss"] for row in other.history] != losses[0]


def test_dash_leaves_no_noise_in_weights_logs_and_checkpoints(tmp_path):
    hybrid = make_hybrid()
    result = search(hybrid, recall(), method="dash", out=tmp_path, save_steps=2, steps=4, batch_size=8, mixture_lr=1e-9)
    # so small a rate moves nothing: what is seen is the start, uniform, unless a sample were left
    uniform = torch.full((2, 2), 0.5)
    torch.testing.assert_close(result.weights, uniform)
    for row in result.history:
        torch.testing.assert_close(torch.tensor(row["weights"]), uniform)
    losses = [row["loss"] for row in result.history]
    plain = search(make_hybrid(), recall(), method="darts", steps=4, batch_size=8, mixture_lr=1e-9)
    assert losses != [row["loss"] for row in plain.history]


def test_the_start_is_the_mixings_own_or_what_is_given():
    def first(**options):
        hybrid = make_hybrid()
        hybrid.set_mixture_weights([0, 1])
        quick = {**QUICK, "steps": 1, "mixture_lr": 1e-6}
        return search(hybrid, recall(), start_floor=0.05, **quick, **options).weights

    def near(weights):
        return pytest.approx(torch.tensor(weights), abs=1e-4)

    low, high = 0.05 / 1.05, 1 / 1.05
    assert first() == near([[0.5, 0.5], [0.5, 0.5]])
    assert first(start="current") == near([[high, low], [low, high]])
    assert first(start=[1, 1]) == near([[low, high], [low, high]])
    assert first(start=[[0.3, 0.7], [0.9, 0.1]]) == near([[0.3, 0.7], [0.9, 0.1]])


def test_a_routed_search_starts_at_the_ensemble_and_leaves_it():
    moved = []
    for steps in (1, 20):
        hybrid = make_hybrid("routed")
        search(
            hybrid,
            recall(),
            method="darts",
            steps=steps,
            batch_size=8,
            mixture_lr=0.2 if steps > 1 else 1e-6,
            start_floor=0.1,
        )
        moved.append(hybrid.mixing.routing.detach())
    lifted = torch.tensor([[1.0, 0.1], [0.1, 1.0]]) / 1.1
    torch.testing.assert_close(moved[0], lifted.expand(2, 2, 2), atol=1e-4, rtol=0)
    assert (moved[1] - lifted).abs().amax(dim=(1, 2)).min() > 0.05


def test_a_task_with_another_vocabulary_gives_fresh_embeddings_and_heads():
    task = load_task(
        "mad/in-context-recall",
        vocab_size=6,
        seq_len=8,
        num_train_examples=32,
        num_validation_examples=8,
        num_test_examples=8,
    )
    hybrid = make_hybrid()
    search(hybrid, task, **QUICK)
    assert hybrid.config.vocab_size == task.vocab_size
    assert hybrid(torch.zeros(1, 4, dtype=torch.long)).logits.shape[-1] == task.vocab_size


def test_projectors_only_leaves_the_components_layers_as_they_were():
    hybrid = make_hybrid()
    layers = {n: p.clone() for n, p in hybrid.named_parameters() if ".h." in n or ".layers." in n}
    projectors = {n: p.clone() for n, p in hybrid.mixing.projectors.named_parameters()}
    search(hybrid, recall(), trainable="projectors", **QUICK)
    after = dict(hybrid.named_parameters())
    assert layers
    assert all(torch.equal(after[name], before) for name, before in layers.items())
    assert any(not torch.equal(p, projectors[n]) for n, p in hybrid.mixing.projectors.named_parameters())


def test_lora_is_merged_afterwards():
    hybrid = make_hybrid()
    before = {n: p.clone() for n, p in hybrid.named_parameters()}
    result = search(hybrid, recall(), trainable="lora", lora_rank=2, **QUICK)
    after = dict(hybrid.named_parameters())
    assert after.keys() == before.keys()
    changed = [name for name in after if ".h." in name and not torch.equal(after[name], before[name])]
    assert changed
    assert not torch.equal(result.weights, torch.full((2, 2), 0.5))


def test_a_budget_buys_whole_steps():
    one = search(make_hybrid(), recall(), method="darts", steps=1, batch_size=8)
    step = one.flops - sum(each.flops for each in one.shared)
    result = search(make_hybrid(), recall(), method="darts", budget_flops=int(step * 3.5), batch_size=8)
    assert (result.steps, result.flops) == (3, 3 * step + sum(each.flops for each in result.shared))
    assert result.tokens == 3 * 8 * recall().length


@pytest.mark.parametrize("options", [{"gradient_checkpointing": True}, {"accumulation": 2}], ids=str)
def test_saving_memory_changes_nothing_but_rounding(options):
    plain = search(make_hybrid(), recall(), **{**QUICK, "method": "dash"})
    result = search(make_hybrid(), recall(), **{**QUICK, "method": "dash"}, **options)
    torch.testing.assert_close(result.weights, plain.weights, atol=1e-4, rtol=0)


def test_bfloat16_keeps_the_weights_in_single_precision():
    result = search(make_hybrid(), recall(), bf16=True, **QUICK)
    assert result.weights.dtype == torch.float32
    torch.testing.assert_close(result.weights.sum(-1), torch.ones(2))
    assert not torch.equal(result.weights, torch.full((2, 2), 0.5))


def test_the_hybrid_keeps_its_mode():
    hybrid = make_hybrid().eval()
    search(hybrid, recall(), **QUICK)
    assert not any(module.training for module in hybrid.modules())


def test_a_loss_that_is_not_finite_ends_the_search_and_leaves_clean_weights():
    hybrid = make_hybrid()
    with torch.no_grad():
        next(hybrid.mixing.projectors.parameters()).fill_(math.nan)
    with pytest.raises(ManticoreError, match=r"search: loss is nan at step 1 of 4"):
        search(hybrid, recall(), **{**QUICK, "method": "dash"})
    torch.testing.assert_close(hybrid.mixture_weights, torch.full((2, 2), 0.5))
    assert not any(parameter.requires_grad for parameter in hybrid.mixing.mixture_parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dart"}, "Did you mean 'darts'"),
        ({"order": "bilevell"}, "Did you mean 'bilevel'"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"mixture_lr": -1.0}, "mixture_lr is -1.0"),
        ({"steps": 2, "budget_flops": 10}, "both given"),
        ({"start": "uniform"}, "start is 'uniform'"),
        ({"start": [[0.5, 0.6], [0.5, 0.5]]}, "row 0 sums to 1.1"),
        ({"temperature": 1.0}, "method 'darts' has no temperature"),
        ({"method": "gaea", "mixture_weight_decay": 0.1}, "method 'gaea' has no mixture_weight_decay"),
        ({"mixture_schedule": "cosin"}, "schedule"),
        ({"trainable": "projector"}, "Did you mean 'projectors'"),
        ({"order": "bilevel", "batch_size": 64}, "bilevel"),
        ({"start_floor": 0.5}, "start_floor"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ManticoreError, match=message):
        search(make_hybrid(), recall(), **{"method": "darts", "steps": 2, "batch_size": 8, **options})


def test_a_discretized_hybrid_is_refused():
    small = manticore.discretize(make_hybrid(), [0, 1])
    with pytest.raises(ManticoreError, match=r"nothing to choose from.*Fix"):
        search(small, recall(), **QUICK)
