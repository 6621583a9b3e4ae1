"""Losses by name; the names are those of the published configuration files (LOSS.FN)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from lib.loss.heatmap import heatmap_mse
from lib.loss.joints import l1_joint_loss, l2_joint_loss, smooth_l1_joint_loss
from lib.registry import resolve

LOSSES = {
    "L1JointLocationLoss": l1_joint_loss,
    "SmoothL1JointLocationLoss": smooth_l1_joint_loss,
    "L2JointLocationLoss": l2_joint_loss,
}

__all__ = ["LOSSES", "build_joint_loss", "heatmap_mse", "l1_joint_loss", "l2_joint_loss", "smooth_l1_joint_loss"]


def build_joint_loss(
    name: str, norm: bool = False, size_average: bool = True, beta: float = 1.0
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The loss `name` of LOSSES as a function of (pred, target, weight); `beta` only matters to the smooth L1 loss.

    Raises:
        ConfigError: `name` is not in LOSSES.
    """
    function = resolve(LOSSES, name, key="LOSS.FN")
    options = {"beta": beta} if function is smooth_l1_joint_loss else {}
    return partial(function, norm=norm, size_average=size_average, **options)
