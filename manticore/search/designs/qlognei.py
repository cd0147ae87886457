"""BoTorch's noisy expected improvement as a method: the engine that Composer names, where BoTorch is installed.

SingleTaskGP with an RBF kernel, acquisition qLogNoisyExpectedImprovement. Composer does not say how a list of layers
becomes numbers; here every position is one-hot, so the kernel falls with the number of exchanged layers.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch

from manticore.errors import ManticoreError
from manticore.option_types import Count, Pair
from manticore.search.designs.drawn import ENUMERABLE, refuse_too_many, unasked
from manticore.search.designs.method import Asking
from manticore.search.designs.scores import Scores
from manticore.search.designs.space import Design, DesignSpace
from manticore.seeding import derive_seed

_SAMPLED = 2048
_NEAR = 10


def qlognei(scores: Scores, seed: int, trials: int, *, batch: Count = 1, first: Pair = 10) -> Asking:
    """Noisy expected improvement under a Gaussian process, by BoTorch.

    Args:
        scores: with the space and one goal.
        seed: of all draws.
        trials: distinct designs.
        batch: designs that are asked for together, chosen together.
        first: designs drawn at random before the process is asked.

    Raises:
        ManticoreError: BoTorch is not installed, several goals, limits, more trials than designs.
    """
    try:
        import botorch  # noqa: F401
    except ImportError as error:
        raise ManticoreError(
            f"qlognei: BoTorch cannot be imported ({error}). Fix: pip install 'manticore-hybrids[botorch]', "
            "or method gp"
        ) from error
    if len(scores.goals) > 1 or scores.limits or scores.least:
        what = f"{len(scores.goals)} goals" if len(scores.goals) > 1 else "limits"
        raise ManticoreError(f"qlognei: {what} (expected one goal without limits). Fix: method gp, tpe or evolution")
    refuse_too_many(trials, scores.space)
    return _asking(scores, seed, trials, batch, first)


def _asking(scores: Scores, seed: int, trials: int, batch: int, first: int) -> Asking:
    draws = random.Random(derive_seed(seed, "design/qlognei"))
    asked: dict[Design, None] = {}
    while len(asked) < trials:
        wanted = min(batch, trials - len(asked))
        scored = [design for design in asked if all(map(math.isfinite, scores.values(design)))]
        if len(scored) < first:
            drawn: list[Design] = []
            for _ in range(wanted):
                new = unasked(scores.space, asked, draws)
                if new is not None:
                    asked[new] = None
                    drawn.append(new)
            named = drawn
        else:
            left = _left(scores.space, asked, scored, scores, draws)
            named = _improving(scores, scored, left, wanted, derive_seed(seed, "design/qlognei", len(asked)))
        if not named:
            return
        asked.update(dict.fromkeys(named))
        yield named


def _left(
    space: DesignSpace, asked: dict[Design, None], scored: list[Design], scores: Scores, draws: random.Random
) -> list[Design]:
    """The designs that are not asked for; of too many to be listed a sample, with the neighbours of the best."""
    if space.size <= ENUMERABLE:
        return [design for design in space.designs() if design not in asked]
    found: dict[Design, None] = {}
    for design in sorted(scored, key=scores.values)[:_NEAR]:
        for position, among in enumerate(space.values):
            for value in among:
                near = space.repaired((*design[:position], value, *design[position + 1 :]), draws)
                if near not in asked:
                    found[near] = None
    for _ in range(_SAMPLED):
        new = unasked(space, asked, draws)
        if new is not None:
            found[new] = None
    return list(found)


def _improving(scores: Scores, scored: list[Design], left: list[Design], wanted: int, seed: int) -> list[Design]:
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf_discrete
    from botorch.sampling import SobolQMCNormalSampler
    from gpytorch.kernels import RBFKernel, ScaleKernel
    from gpytorch.mlls import ExactMarginalLogLikelihood

    if not left:
        return []
    known, choices = _one_hot(scores.space, scored), _one_hot(scores.space, left)
    values = torch.tensor([[-scores.values(design)[0]] for design in scored], dtype=torch.float64)
    values = (values - values.mean()) / values.std().clamp_min(1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = SingleTaskGP(known, values, covar_module=ScaleKernel(RBFKernel()), outcome_transform=None)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        sampler = SobolQMCNormalSampler(torch.Size([128]), seed=seed)
        acquisition = qLogNoisyExpectedImprovement(model, known, sampler=sampler, prune_baseline=True)
        found, _ = optimize_acqf_discrete(acquisition, q=min(wanted, len(left)), choices=choices, unique=True)
    return [left[int((choices == each).all(-1).nonzero()[0, 0])] for each in found]


def _one_hot(space: DesignSpace, designs: list[Design]) -> torch.Tensor:
    """``[designs, sum of the positions' values]``, float64."""
    rows = [
        [float(design[position] == value) for position, among in enumerate(space.values) for value in among]
        for design in designs
    ]
    return torch.tensor(rows, dtype=torch.float64)
