import pytest

from manticore.errors import ManticoreError
from manticore.tasks.mad.examples import KINDS
from manticore.tasks.mad.protocol import PROTOCOLS, TIERS, choose_protocol, tier_settings


def test_the_full_tier_has_396_runs_per_model():
    protocol = choose_protocol("published", tier="full")
    assert len(tier_settings("full")) * len(protocol.grid) == 396
    assert len(tier_settings("baseline")) * len(protocol.grid) == 36
    assert {(h.lr, h.weight_decay) for h in protocol.grid} == {(a, b) for a in (1e-4, 5e-4, 1e-3) for b in (0.0, 0.1)}


def test_the_published_rate_is_a_cosine_and_that_of_the_code_constant():
    published, released = PROTOCOLS["published"], PROTOCOLS["released"]
    rates = [5e-4 * published.lr_factor(epoch, 5e-4) for epoch in range(201)]
    assert rates[0] == pytest.approx(5e-4)
    assert rates[100] == pytest.approx((5e-4 + 1e-6) / 2)
    assert rates[200] == pytest.approx(1e-6)
    assert rates == sorted(rates, reverse=True)
    assert {released.lr_factor(epoch, 5e-4) for epoch in range(200)} == {1.0}
    assert (published.betas, released.betas) == ((0.9, 0.98), (0.9, 0.999))


def test_what_was_chosen_on_test_data_is_said():
    assert "on the test split" in choose_protocol("published", tier="full").note
    assert "on a validation split" in choose_protocol("published", tier="full", selection="validation").note


def test_the_older_start_belongs_to_the_published_protocol():
    assert choose_protocol("published", tier="full").linear_init == "uniform"
    assert choose_protocol("published", tier="full", linear_init="normal").linear_init == "normal"
    with pytest.raises(ManticoreError, match=r"the protocol released starts language models as torch does. Fix: "):
        choose_protocol("released", tier="full", linear_init="normal")
    with pytest.raises(ManticoreError, match=r"unknown linear-init 'gaussian'"):
        choose_protocol("published", tier="full", linear_init="gaussian")


def test_smoke_settings_are_smaller_than_any_published_one():
    smoke = tier_settings("smoke")
    assert [setting.task for setting in smoke] == list(KINDS)
    for setting, baseline in zip(smoke, tier_settings("baseline")):
        assert setting.name != baseline.name
        data = setting.generate(cache=False)
        shape = data["train"][0].shape
        assert shape[1] <= baseline.options["seq_len"]
        assert shape[0] <= baseline.num_train_examples
    assert len(choose_protocol("published", tier="smoke").grid) == 1


def test_bad_names_end_in_one_line():
    for call, message in (
        (lambda: choose_protocol("publishd", tier="full"), "Did you mean 'published'"),
        (lambda: choose_protocol("published", tier="ful"), "Did you mean 'full'"),
        (lambda: choose_protocol("published", tier="full", selection="train"), "unknown select 'train'"),
        (lambda: tier_settings("smok"), "Did you mean 'smoke'"),
        (lambda: tier_settings(TIERS[0], ["mad/copying"]), "unknown task 'copying'"),
    ):
        with pytest.raises(ManticoreError, match=r"^[^\n]*$") as caught:
            call()
        assert message in str(caught.value)
