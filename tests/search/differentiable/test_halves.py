import pytest
from torch.utils.data import BatchSampler

from manticore.errors import ManticoreError
from manticore.search.differentiable.halves import AlternatingHalves


def test_steps_read_disjoint_halves_in_turn_over_all_epochs():
    sampler = AlternatingHalves(50, chunk=6, seed=3)
    seen = [set(), set()]
    for epoch in range(4):
        sampler.set_epoch(epoch)
        batches = list(BatchSampler(sampler, 6, drop_last=False))
        assert len(batches) == len(sampler) / 6 == 8
        for step, batch in enumerate(batches):
            assert len(batch) == 6
            seen[step % 2].update(batch)
    assert not seen[0] & seen[1]
    # examples that do not fill a chunk are left out of an epoch, not of the search
    assert len(seen[0] | seen[1]) == 50


def test_the_order_depends_on_seed_and_epoch_only():
    first, second, other = (AlternatingHalves(40, chunk=4, seed=seed) for seed in (0, 0, 1))
    assert list(first) == list(second)
    assert list(first) != list(other)
    epoch_0 = list(first)
    first.set_epoch(1)
    assert list(first) != epoch_0
    first.set_epoch(0)
    assert list(first) == epoch_0


def test_too_few_examples_are_refused():
    with pytest.raises(ManticoreError, match=r"got 15 examples, 8 per step.*Fix"):
        AlternatingHalves(15, chunk=8, seed=0)
