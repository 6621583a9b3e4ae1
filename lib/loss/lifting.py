"""Losses of lifting over time (Pavllo et al., VideoPose3D, CVPR 2019, section 4): poses, trajectory, reprojection, bone lengths.

Means over everything, in the unit of what is given; nothing is squared.
"""

import torch
from torch import Tensor

from lib.errors import GeometryError


def position_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean distance of points: MPJPE of joints, or the reprojection error of their images (the paper's E and W).

    pred, target (..., J, C), weight broadcasts to (..., J); None = 1 -> ()

    Raises:
        GeometryError: the shapes differ.
    """
    if pred.shape != target.shape:
        raise GeometryError(f"position loss: pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}; expected the same")
    distance = torch.linalg.vector_norm(pred.float() - target.float(), dim=-1)
    return distance.mean() if weight is None else (weight * distance).mean()


def trajectory_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Distance of root positions, divided by the true depth: what is far away is hard to place (equation 1).

    pred, target (..., 1, 3) in the camera's frame -> ()
    """
    return position_loss(pred, target, 1 / target[..., 2])


def bone_length_loss(X: Tensor, Y: Tensor, bones: Tensor) -> Tensor:
    """How much the mean bone lengths of two groups of poses differ: unlabelled people are as large as labelled ones.

    X (B,T,J,3), Y (B',T,J,3), bones (E,2) parent and child -> (), mean over bones; the gradient reaches both groups
    """
    return (_mean_lengths(X, bones) - _mean_lengths(Y, bones)).abs().mean()


def _mean_lengths(X: Tensor, bones: Tensor) -> Tensor:
    parent, child = bones.unbind(1)
    return torch.linalg.vector_norm(X[..., child, :] - X[..., parent, :], dim=-1).mean((0, 1))
