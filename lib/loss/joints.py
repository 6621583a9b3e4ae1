"""Losses on joint coordinates, of EpipolarPose (Kocabas et al., CVPR 2019) after Integral Pose (Sun et al., ECCV 2018).

Coordinates are normalised crop coordinates (x, y, z in about -0.5..0.5), but nothing here depends on it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import GeometryError


def l1_joint_loss(
    pred: Tensor,  # (B, J, C)
    target: Tensor,  # (B, J, C)
    weight: Tensor | None = None,  # (B, J, C) or anything that broadcasts to it; None = 1
    norm: bool = False,
    size_average: bool = True,
) -> Tensor:  # ()
    """Weighted sum of |pred - target| over joints and coordinates, divided by the batch size (not by the joints).

    Args:
        norm: divide pred and target each by the L1 norm of the whole batch tensor first (LOSS.NORM of the release).
        size_average: False leaves out the division by the batch size.

    Raises:
        GeometryError: shapes of pred and target differ, or weight does not broadcast to them.
    """
    pred, target = _prepare(pred, target, weight, norm)
    return _reduce((pred - target).abs(), weight, size_average)


def smooth_l1_joint_loss(
    pred: Tensor,  # (B, J, C)
    target: Tensor,  # (B, J, C)
    weight: Tensor | None = None,  # (B, J, C)
    norm: bool = False,
    size_average: bool = True,
    beta: float = 1.0,
) -> Tensor:  # ()
    """As l1_joint_loss with e^2 / (2 beta) below |e| = beta and |e| - beta / 2 above.

    With labels within +-0.5 the published knee, beta = 1, makes this half a squared error everywhere.
    """
    pred, target = _prepare(pred, target, weight, norm)
    return _reduce(F.smooth_l1_loss(pred, target, reduction="none", beta=beta), weight, size_average)


def l2_joint_loss(
    pred: Tensor,  # (B, J, C)
    target: Tensor,  # (B, J, C)
    weight: Tensor | None = None,  # (B, J, C)
    norm: bool = False,
    size_average: bool = True,
) -> Tensor:  # ()
    """As l1_joint_loss with the squared error (no factor 1/2)."""
    pred, target = _prepare(pred, target, weight, norm)
    return _reduce((pred - target).square(), weight, size_average)


def _prepare(pred: Tensor, target: Tensor, weight: Tensor | None, norm: bool) -> tuple[Tensor, Tensor]:
    if pred.shape != target.shape or pred.ndim < 2:
        raise GeometryError(
            f"joint loss: pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}; "
            "expected the same (B, J, C)"
        )
    if weight is not None and (
        weight.ndim != pred.ndim or any(w not in (1, p) for w, p in zip(weight.shape, pred.shape, strict=True))
    ):
        raise GeometryError(f"joint loss: weight has shape {tuple(weight.shape)}, expected {tuple(pred.shape)}")
    if pred.dtype in (torch.float16, torch.bfloat16):
        pred = pred.float()  # a difference of coordinates in half precision would cost pixels
    target = target.to(pred.dtype)
    if norm:
        pred, target = pred / pred.abs().sum(), target / target.abs().sum()
    return pred, target


def _reduce(loss: Tensor, weight: Tensor | None, size_average: bool) -> Tensor:
    total = (loss if weight is None else loss * weight).sum()
    return total / len(loss) if size_average else total
