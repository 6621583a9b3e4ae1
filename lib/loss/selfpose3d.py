"""Losses without 3D labels, of SelfPose3d (Srivastav et al., CVPR 2024): 2D labels of unknown people against people found in 3D.

Poses found in one augmentation of the views are projected into another one, and meet its 2D labels there: as heatmaps, weighted by an
attention network, and as coordinates, after people have been matched in each view. Root volumes of several augmentations shall agree.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lib.errors import GeometryError
from lib.loss.voxels import volume_loss

FAR = 1e6  # cost of a pair that has nothing in common


def attended_heatmap_loss(drawn: Tensor, target: Tensor, attention: Tensor | None = None) -> Tensor:
    """Squared error of drawn people to the labels' heatmaps, each cell weighted by the attention.

    drawn, target (...,J,h,w), attention (...,J,h,w) 0..1 or None = 1 everywhere -> ()

    Raises:
        GeometryError: the shapes differ.
    """
    if drawn.shape != target.shape or (attention is not None and attention.shape != target.shape):
        given = "" if attention is None else f", attention {tuple(attention.shape)}"
        raise GeometryError(
            f"attended heatmap loss: drawn {tuple(drawn.shape)}, target {tuple(target.shape)}{given}; expected the same (..., J, h, w)"
        )
    error = (drawn.float() - target.float()).square()
    return (error if attention is None else error * attention.float()).mean()


def attention_penalty(attention: Tensor) -> Tensor:
    """Mean squared distance of the attention from 1, so that it does not look away from everything.   (...) -> ()"""
    return (attention.float() - 1).square().mean()


def matched_l1(
    x: Tensor, shown: Tensor, label: Tensor, conf: Tensor, size, drop_worst: bool = False, rule: str = "exact"
) -> Tensor:
    """Distance of projected people to the labelled ones that they are matched with, in each view by itself.

    x (B,V,M,J,2) px of the network's input, shown (B,V,M,J) bool, label (B,V,G,J,2) px, conf (B,V,G,J), 0 = unknown, size = (W, H) px
    -> (), in widths and heights of the input

    People are matched at the least total cost (Hungarian method), without gradient. Inputs are left as they are.

    drop_worst: the worst entry, a view of a sample, is left out ("hard attention"), if there are others.
    rule "exact": the cost of a pair is the mean distance over the joints that both have; an entry is the mean over its pairs; the loss is
    the mean over entries that have pairs. rule "reference": as published. Cost: the sum over known joints divided by all; a person is
    labelled where the coordinates do not add up to 0, and the count of those is taken from the front; an entry is the sum over its pairs,
    and one without pairs is 0 and counts.

    Raises:
        GeometryError: the shapes do not fit together, or another rule.
    """
    if rule not in ("exact", "reference"):
        raise GeometryError(f"matched_l1: rule {rule!r} is not one of exact, reference")
    fits = x.ndim == label.ndim == 5 and x.shape[:2] == label.shape[:2] and x.shape[3:] == label.shape[3:]
    if not fits or shown.shape != x.shape[:-1] or conf.shape != label.shape[:-1]:
        raise GeometryError(
            f"matched_l1: x {tuple(x.shape)}, shown {tuple(shown.shape)}, label {tuple(label.shape)}, conf {tuple(conf.shape)}; expected "
            "(B, V, M, J, 2), (B, V, M, J), (B, V, G, J, 2), (B, V, G, J)"
        )
    scale = x.new_tensor([float(side) for side in size])
    shown, known = shown.bool(), conf > 0
    if rule == "exact":
        labelled = known.any(-1)
    else:
        count = (label.flatten(3).sum(-1) != 0).sum(-1, keepdim=True)
        labelled = torch.arange(label.shape[2], device=x.device) < count
    x = torch.where(shown[..., None], x, 0.0) / scale  # what is not shown may be infinite
    label = torch.where(known[..., None], label, 0.0).to(x) / scale
    common = shown[:, :, :, None] & known[:, :, None]  # (B,V,M,G,J)
    distance = ((x[:, :, :, None] - label[:, :, None]).abs().mean(-1) * common).sum(-1)
    joints = common.sum(-1)
    cost = distance / (joints.clamp(min=1) if rule == "exact" else x.shape[3])  # (B,V,M,G)
    possible = shown.any(-1)[:, :, :, None] & labelled[:, :, None]
    possible = possible & (joints > 0) if rule == "exact" else possible
    pairs = _assign(cost.detach(), possible)
    entry, paired = (cost * pairs).sum((2, 3)).flatten(), pairs.sum((2, 3)).flatten()
    if rule == "exact":
        entry = (entry / paired.clamp(min=1))[paired > 0]
    dropped = drop_worst and len(entry) > 1
    total = entry.sum() - entry.max() if dropped else entry.sum()
    return total / max(1, len(entry) - dropped)


def _assign(cost: Tensor, possible: Tensor) -> Tensor:
    """Who belongs to whom at the least cost.   cost, possible (B,V,M,G) -> (B,V,M,G) bool, one at most in each row and column"""
    table = torch.where(possible, cost, FAR).nan_to_num(FAR).clamp(max=FAR).cpu().double().flatten(0, 1).numpy()
    pairs = torch.zeros(table.shape, dtype=torch.bool)
    for entry, costs in zip(pairs, table, strict=True):
        entry[linear_sum_assignment(costs)] = True
    return pairs.to(cost.device).reshape(cost.shape) & possible


def drawn_roots_loss(volume: Tensor, target: Tensor) -> Tensor:
    """Error of the volumes of people who never were, whose places are known: the sum over augmentations of the mean squared error.

    volume, target (A,B,nx,ny,nz) -> ()

    Raises:
        GeometryError: the shapes differ.
    """
    return volume_loss(volume.flatten(0, 1), target.flatten(0, 1)) * len(volume)


def root_consistency_loss(volume: Tensor, plain: Tensor) -> Tensor:
    """What the volumes of augmented views differ from that of the plain ones, which gets no gradient: they are of the same space.

    volume (A,B,nx,ny,nz), plain (B,nx,ny,nz) -> (), the sum over augmentations of the mean squared error

    Raises:
        GeometryError: the shapes do not fit together.
    """
    if volume.shape[1:] != plain.shape:
        found = f"volumes {tuple(volume.shape)}, plain {tuple(plain.shape)}"
        raise GeometryError(f"root consistency: {found}; expected (A, B, nx, ny, nz), (B, nx, ny, nz)")
    return (volume.float() - plain.detach().float()).square().mean() * len(volume)
