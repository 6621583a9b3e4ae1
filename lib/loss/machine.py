"""Losses of 3D human pose machines (Wang et al., IEEE TPAMI 2020): squared errors of joints and of the vectors between them.

Poses are (..., J, k) with k = 2 or 3, in any unit; all leading axes together are the batch. A mask (..., J) tells which joints count.
What is masked may be NaN.
"""

import torch
from torch import Tensor

from lib.errors import ConfigError, GeometryError
from lib.geometry.precision import no_autocast, result_dtype
from lib.skeleton import Skeleton, get

GRADIENTS = ("exact", "published")


@no_autocast
def euclid_loss(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Sum of squared differences over twice the number of samples.   pred, target (..., J, k), mask (..., J) -> ()

    Samples without any joint in the mask are not counted; without any sample it is 0. Raises GeometryError for shapes that do not fit.
    """
    pred, target, mask = _checked(pred, target, mask)
    return (pred - target).square().sum() / (2 * _samples(mask))


def bone_vectors(x: Tensor, skeleton: Skeleton | str) -> Tensor:
    """From each joint to its parent; 0 for the root.   x (..., J, k) -> (..., J, k)"""
    parents = torch.tensor(get(skeleton).parents, device=x.device)
    return x[..., parents, :] - x


@no_autocast
def bone_loss(pred: Tensor, target: Tensor, skeleton: Skeleton | str, mask: Tensor | None = None, gradient: str = "exact") -> Tensor:
    """As `euclid_loss` on the vectors of bones; a bone counts where both of its ends do.   pred, target (..., J, k) -> ()

    gradient: "published" is the release's, which reaches the far end of a bone alone and not its parent; the value is the same.

    Raises:
        ConfigError: another gradient.
        GeometryError: shapes do not fit each other or the skeleton.
    """
    if gradient not in GRADIENTS:
        raise ConfigError(f"bone loss: gradient {gradient!r} is not one of {', '.join(GRADIENTS)}")
    skeleton = get(skeleton)
    pred, target, mask = _checked(pred, target, mask, skeleton)
    parents = torch.tensor(skeleton.parents, device=pred.device)
    above = pred.detach() if gradient == "published" else pred
    difference = (above[..., parents, :] - pred) - bone_vectors(target, skeleton)
    both = mask & mask[..., parents]
    moved = torch.arange(skeleton.num, device=pred.device) != parents  # the root is no bone, and gets no gradient as one
    difference = torch.where((both & moved)[..., None], difference, 0.0)
    return difference.square().sum() / (2 * _samples(mask))


def _samples(mask: Tensor) -> Tensor:
    return mask.any(-1).sum().clamp(min=1)


def _checked(pred: Tensor, target: Tensor, mask: Tensor | None, skeleton: Skeleton | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Poses of one type, 0 where they do not count, and the mask as booleans."""
    if pred.ndim < 2 or pred.shape != target.shape or (mask is not None and mask.shape != pred.shape[:-1]):
        found = ", ".join(str(tuple(v.shape)) for v in (pred, target, mask) if v is not None)
        raise GeometryError(f"losses of poses: found shapes {found}; expected pred and target (..., J, k) and a mask (..., J)")
    if skeleton is not None and pred.shape[-2] != skeleton.num:
        raise GeometryError(f"losses of bones: poses of {pred.shape[-2]} joints, but {skeleton.name} has {skeleton.num}")
    dtype = result_dtype(pred)
    pred, target = pred.to(dtype), target.to(dtype)
    if mask is None:
        return pred, target, torch.ones(pred.shape[:-1], dtype=torch.bool, device=pred.device)
    mask = mask.bool()
    return torch.where(mask[..., None], pred, 0.0), torch.where(mask[..., None], target, 0.0), mask
