"""The best map of a lower rank, in mean squared error over the inputs (reduced-rank regression)."""

from __future__ import annotations

import torch
from torch import Tensor

from manticore.projectors.projector import InputMoments


def truncated(weight: Tensor, bias: Tensor, rank: int, moments: InputMoments | None) -> tuple[Tensor, Tensor, Tensor]:
    """The best map of rank r = min(rank, d_in, d_out): (up [d_out, r], down [r, d_in], bias [d_out]).

    Best in mean squared error over the inputs if their moments are known (reduced-rank regression: the part
    of the output that is kept spans its first principal components), else over white inputs. The bias takes
    over the mean of what is cut away.
    """
    d_out, d_in = weight.shape
    if rank >= min(d_out, d_in):
        eye = torch.eye(min(d_out, d_in), dtype=weight.dtype, device=weight.device)
        return (weight, eye, bias) if d_in <= d_out else (eye, weight, bias)
    # eigh sorts upwards
    up = torch.linalg.eigh(_spread(weight, moments)).eigenvectors[:, d_out - rank :]
    down = up.T @ weight
    if moments is not None:
        bias = bias + (weight - up @ down) @ moments.mean.to(weight)
    return up, down, bias


def lost(weight: Tensor, rank: int, moments: InputMoments | None) -> float:
    """The mean squared error of the best map of that rank."""
    if rank >= min(weight.shape):
        return 0.0
    values = torch.linalg.eigvalsh(_spread(weight, moments))
    return float(values[: len(values) - rank].clamp_min(0).sum())


def _spread(weight: Tensor, moments: InputMoments | None) -> Tensor:
    """Covariance ``[d_out, d_out]`` of the outputs of a linear map."""
    outputs = weight @ weight.T if moments is None else weight @ moments.covariance.to(weight) @ weight.T
    return (outputs + outputs.T) / 2
