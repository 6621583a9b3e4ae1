"""Many small poses laid out so that arithmetic on them runs along memory: those of one joint and axis side by side.

The layout is a matter of strides alone: a tensor (N,J,3) stays one. Elementwise operations keep it by themselves; sums over joints and
choices of joints do so through these functions, and are many times faster for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def columns(X: Tensor) -> Tensor:
    """The same poses in float64, poses side by side in memory.   (N,J,3) -> (N,J,3)"""
    swapped = _swapped(X).to(torch.float64, memory_format=torch.contiguous_format)
    return _swapped(swapped.contiguous())  # where X is float64 already, `to` leaves it as it lies


def sum_joints(x: Tensor) -> Tensor:
    """Sum over the joints.   (N,J) -> (N,), (N,J,C) -> (N,C)"""
    return _swapped(_swapped(x).sum(-2))


def mean_joints(x: Tensor) -> Tensor:
    """Mean over the joints.   (N,J) -> (N,), (N,J,C) -> (N,C)"""
    return _swapped(_swapped(x).mean(-2))


def some_joints(x: Tensor, joints: Sequence[int] | None) -> Tensor:
    """x at some joints; None = all.   (N,J) -> (N,K), (N,J,C) -> (N,K,C)"""
    if joints is None:
        return x
    return _swapped(_swapped(x).index_select(-2, torch.tensor(list(joints), device=x.device)))


def _swapped(x: Tensor) -> Tensor:
    """All axes in the opposite order."""
    return x.permute(*reversed(range(x.ndim)))
