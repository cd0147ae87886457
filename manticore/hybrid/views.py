"""A supernet seen as one of its paths, for measuring: nothing is copied."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch

from manticore.hybrid.discretize import copied_config
from manticore.hybrid.path import PathMixing
from manticore.hybrid.pretrained import ManticorePreTrainedModel

M = TypeVar("M", bound=ManticorePreTrainedModel)


def path_view(hybrid: M, path: Sequence[int]) -> M:
    """A hybrid that computes what ``discretize(hybrid, path)`` does, with the supernet's own components and projectors.

    It is for forward passes alone, one view at a time: what is off the path is still there, and a change of mode
    or of weights is one of the supernet.
    """
    view = copy.copy(hybrid)
    # a module's copy shares its registers
    view.__dict__["_modules"] = dict(hybrid._modules)
    for name in ("_kept", "_with_states"):
        # what a supernet has worked out about its own path
        view.__dict__.pop(name, None)
    view.config = copied_config(hybrid, path=list(path))
    # fresh projectors are drawn, and thrown away
    with torch.random.fork_rng(devices=[]):
        mixing = PathMixing(view.config)
    for name in mixing.projectors:
        mixing.projectors[name] = hybrid.mixing.projectors[name]
    view.mixing = mixing
    return view
