"""Losses of learning depth from 3D and 2D labels together (Zhou et al., Towards 3D Human Pose Estimation in the Wild, ICCV 2017)."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from lib.errors import DataError, GeometryError
from lib.geometry.precision import no_autocast, result_dtype
from lib.skeleton import Skeleton, get

Groups = Mapping[str, Sequence[Sequence]]  # name -> bones: two joints and, optionally, the weight of the length

# Bones that are as long as each other once their lengths are multiplied by the weights, the ratios of canonical lengths.
SHIN, FOREARM = 1.0085885098415446, 1.1375361376887123
GROUPS: Groups = {
    "legs": (("r_ankle", "r_knee", SHIN), ("r_knee", "r_hip"), ("l_hip", "l_knee"), ("l_knee", "l_ankle", SHIN)),
    "arms": (("r_wrist", "r_elbow", FOREARM), ("r_elbow", "r_shoulder"), ("l_shoulder", "l_elbow"), ("l_elbow", "l_wrist", FOREARM)),
    "hips": (("r_hip", "pelvis"), ("l_hip", "pelvis")),
    "shoulders": (("r_shoulder", "upper_neck"), ("l_shoulder", "upper_neck")),
}
_NECKS = ("upper_neck", "thorax", "neck")  # what the shoulders of a skeleton hang on


class BoneGroups(NamedTuple):
    """Groups of a skeleton as tables; a place that a group does not need has weight 0.

    Attributes:
        ends: (G,K,2) int64, joints at both ends of each bone.
        weight: (G,K) factor of its length.
    """

    ends: Tensor
    weight: Tensor


def bone_groups(skeleton: Skeleton | str, groups: Groups | None = None) -> BoneGroups:
    """Tables for `bone_variance_loss`.

    Args:
        skeleton: whose joints the tables index.
        groups: as GROUPS. None takes GROUPS itself, as far as the skeleton has the joints; without an upper neck the shoulders hang on
            its thorax or neck.

    Raises:
        DataError: the skeleton lacks a joint of `groups`, a bone is no pair of joints with a positive weight, or nothing is left to
            compare.
    """
    skeleton = get(skeleton)
    table = groups if groups is not None else _as_far_as_there(skeleton)
    rows = {}
    for name, bones in table.items():
        for bone in bones if isinstance(bones, list | tuple) else [bones]:
            weight = bone[2] if isinstance(bone, list | tuple) and len(bone) == 3 else 1.0
            pair = isinstance(bone, list | tuple) and len(bone) in (2, 3)
            if not pair or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise DataError(f"bone group {name}: {bone!r} is not [joint, joint] or [joint, joint, positive weight]")
            rows.setdefault(name, []).append((*skeleton.indices(bone[:2]).tolist(), float(weight)))
    if not any(len(bones) > 1 for bones in rows.values()):
        names = ", ".join(table) or "(none)"
        raise DataError(f"bone groups {names} of {skeleton.name}: none has two bones to compare; give groups with two")
    longest = max(map(len, rows.values()))
    padded = torch.tensor([bones + [(0, 0, 0.0)] * (longest - len(bones)) for bones in rows.values()], dtype=torch.float64)
    return BoneGroups(padded[..., :2].long(), padded[..., 2])


def _as_far_as_there(skeleton: Skeleton) -> Groups:
    """GROUPS without the bones that the skeleton lacks."""
    neck = next((joint for joint in _NECKS if joint in skeleton.joints), "upper_neck")
    table = {}
    for name, bones in GROUPS.items():
        named = [tuple(neck if word == "upper_neck" else word for word in bone) for bone in bones]
        table[name] = [bone for bone in named if set(bone[:2]) <= set(skeleton.joints)]
    return table


@no_autocast
def depth_loss(depth_at: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Smooth L1 of depths at the joints, mean over the labelled ones of the batch (the release's L_reg).

    depth_at, target (B,J) in sides of the crop (`lib.geometry.weak_perspective.depth_labels`), mask (B,J) -> ()

    Without any label it is 0. Raises GeometryError for different shapes.
    """
    if not depth_at.shape == target.shape == mask.shape:
        found = ", ".join(str(tuple(v.shape)) for v in (depth_at, target, mask))
        raise GeometryError(f"depth loss: depth, target and mask have shapes {found}; expected the same (B, J)")
    dtype = result_dtype(depth_at)
    known = mask.bool()
    error = smooth_l1_loss(torch.where(known, depth_at.to(dtype), 0.0), torch.where(known, target.to(dtype), 0.0), reduction="sum")
    return error / (known.sum() + 1e-4)


@no_autocast
def bone_variance_loss(x: Tensor, depth: Tensor, visible: Tensor, weak: Tensor, groups: BoneGroups, halved: bool = True) -> Tensor:
    """How unequal the bones of each group are in samples without depth labels: sum of variances over groups, mean over the batch.

    x (B,J,2) true joints in the unit of depth, depth (B,J) predicted at them, visible (B,J), weak (B,) samples that count -> ()

    For each group, sum (l - mean l)^2 / (2 n) over its n bones with both ends visible (equation 3); a group with less than two gives 0.
    The batch is that of x, samples with depth labels included, as published. halved=False leaves the 2 out (the paper's hourglass). No
    loop: one table (B, groups, bones), differentiated exactly. Bones without length get no gradient, NaN where nothing is visible does
    no harm. Raises GeometryError.
    """
    batch, joints = depth.shape if depth.ndim == 2 else (-1, -1)
    if x.shape != (batch, joints, 2) or visible.shape != depth.shape or weak.shape != (batch,):
        found = ", ".join(str(tuple(v.shape)) for v in (x, depth, visible, weak))
        raise GeometryError(f"bone variance: x, depth, visible, weak have shapes {found}; expected (B, J, 2), (B, J), (B, J), (B,)")
    dtype = result_dtype(x, depth)
    ends, weight = groups.ends.to(depth.device), groups.weight.to(depth.device, dtype)
    counted = visible.bool() & weak.bool()[:, None]
    pose = torch.cat([x.to(dtype), depth.to(dtype)[..., None]], -1)
    pose = torch.where(counted[..., None], pose, 0.0)
    first, second = ends.unbind(-1)
    usable = counted[:, first] & counted[:, second] & (weight > 0)  # (B, G, K)
    square = (pose[:, first] - pose[:, second]).square().sum(-1)
    long = usable & (square > 0)  # the root has no slope at 0
    length = weight * torch.where(long, torch.where(long, square, 1.0).sqrt(), 0.0)
    count = usable.sum(-1, keepdim=True).clamp(min=1)
    spread = torch.where(usable, length - length.sum(-1, keepdim=True) / count, 0.0).square() / count
    return spread.sum() / (2 * batch if halved else batch)


def hourglass_loss(
    x_hm: Tensor,
    depth: Tensor,
    target: Tensor,
    visible: Tensor,
    weak: Tensor,
    groups: BoneGroups,
    side: float = 64.0,
    depth_weight: float = 0.1,
    variance_weight: float = 0.01,
) -> Tensor:
    """The depth criterion of the paper's hourglass: squared errors where there is a label, bone variances elsewhere.   -> ()

    x_hm (B,J,2) true joints in cells of a map of `side` cells, depth (B,J) predicted and target (B,J) in -1 .. 1 from side to side of
    the map, visible (B,J) joints that have a label, weak (B,) samples without depth labels

    The squared errors of a sample are divided by J, also where joints have no label, and all is a mean over the batch.

    Raises:
        GeometryError: shapes do not fit.
    """
    if not depth.shape == target.shape == visible.shape:
        found = ", ".join(str(tuple(v.shape)) for v in (depth, target, visible))
        raise GeometryError(f"hourglass loss: depth, target and visible have shapes {found}; expected the same (B, J)")
    known = visible.bool() & ~weak.bool()[:, None]
    dtype = result_dtype(depth)
    error = torch.where(known, depth.to(dtype), 0.0) - torch.where(known, target.to(dtype), 0.0)
    variance = bone_variance_loss(2 * x_hm / side - 1, depth, visible, weak, groups, halved=False)
    return depth_weight * error.square().mean() + variance_weight * variance
