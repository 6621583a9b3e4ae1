"""Supervised losses of VoxelPose (Tu et al., ECCV 2020), and which proposals belong to which people.

The published training adds the three: heatmaps of the views, the volume of roots, and poses.
"""

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.loss.heatmap import heatmap_mse

MATCH_MM = 500.0  # a proposal further from every root belongs to nobody


def view_heatmap_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of the heatmaps, mean over views.   pred, target (...,J,h,w), weight (...,J) or None -> ()

    The weight, 0 for a joint that nobody shows, is squared, and joints without one count in the mean.

    Raises:
        GeometryError: the shapes differ.
    """
    if pred.shape != target.shape or pred.ndim < 4 or (weight is not None and weight.shape != pred.shape[:-2]):
        given = "" if weight is None else f", weight {tuple(weight.shape)}"
        raise GeometryError(
            f"heatmap loss: pred {tuple(pred.shape)}, target {tuple(target.shape)}{given}; expected twice (..., J, h, w), and (..., J)"
        )
    weight = None if weight is None else weight.flatten(0, -2)
    return 2 * heatmap_mse(pred.flatten(0, -4), target.flatten(0, -4), weight)


def volume_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the root network's volume.   pred, target (B,nx,ny,nz) -> ()

    Raises:
        GeometryError: the shapes differ.
    """
    if pred.shape != target.shape:
        raise GeometryError(f"volume loss: pred {tuple(pred.shape)}, target {tuple(target.shape)}; expected the same (B, nx, ny, nz)")
    return (pred.float() - target.float()).square().mean()


def match_people(centers: Tensor, roots: Tensor, valid: Tensor, radius_mm: float = MATCH_MM) -> Tensor:
    """The person whose root is nearest to each proposal; several proposals may belong to one.

    centers (B,M,3) mm, roots (B,G,3) mm, valid (B,G) bool: there is a person -> (B,M) int64 index of the person, -1 = none within radius

    Raises:
        GeometryError: the shapes do not fit together.
    """
    if centers.ndim != 3 or roots.ndim != 3 or len(centers) != len(roots) or valid.shape != roots.shape[:2]:
        raise GeometryError(
            f"match_people: centers {tuple(centers.shape)}, roots {tuple(roots.shape)}, valid {tuple(valid.shape)}; expected (B, M, 3), "
            "(B, G, 3), (B, G)"
        )
    if not roots.shape[1]:
        return torch.full(centers.shape[:2], -1, device=centers.device)
    distance = (centers[:, :, None] - roots[:, None]).norm(dim=-1)
    distance, person = torch.where(valid.bool()[:, None], distance, torch.inf).min(-1)
    return torch.where(distance <= radius_mm, person, -1)


def pose_loss(pred: Tensor, target: Tensor, valid: Tensor, match: Tensor) -> Tensor:
    """Mean absolute error of the coordinates of matched proposals, mm; 0 when there are none.

    pred (B,M,J,3), target (B,G,J,3) mm, valid (B,G,J) joint known, match (B,M) person of each proposal, -1 = none -> ()

    Mean over all matched proposals, of the mean over their coordinates. A coordinate of an unknown joint counts as 0 in that mean, as in
    the published training.

    Raises:
        GeometryError: the shapes do not fit together.
    """
    batch, places, joints, _ = pred.shape
    if target.shape[0] != batch or target.shape[2:] != (joints, 3) or valid.shape != target.shape[:3] or match.shape != (batch, places):
        raise GeometryError(
            f"pose loss: pred {tuple(pred.shape)}, target {tuple(target.shape)}, valid {tuple(valid.shape)}, match {tuple(match.shape)}; "
            "expected (B, M, J, 3), (B, G, J, 3), (B, G, J), (B, M)"
        )
    sample, place = (match >= 0).nonzero(as_tuple=True)
    person = match[sample, place]
    known = valid[sample, person].bool()[..., None]
    error = torch.where(known, (pred[sample, place].float() - target[sample, person].float()).abs(), 0.0)
    return error.sum() / max(1, error.numel())
