"""From joints and depths of a crop to poses in mm, and back to labels, for a camera taken as a scaled parallel projection.

Zhou et al., Towards 3D Human Pose Estimation in the Wild (ICCV 2017): x, y and depth share one unit, the side of the crop, so a
pose is known up to its size; the size follows from an assumed sum of bone lengths.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lib.errors import DataError, GeometryError
from lib.geometry.precision import result_dtype
from lib.skeleton import Skeleton, convert, get

# Sums of bone lengths, mm, that the published poses are given: ResNet's by H36M_BONES, the hourglass' by MPII_BONES.
BONE_SUM_MM = {"published": 4000.0, "hourglass": 4296.99233013}
LIMB_SUM_MM = 2850.0  # of LIMB_BONES, about that of Human3.6M's subjects

Bones = Sequence[tuple[str, str]]
_CHAINS = (("ankle", "knee"), ("knee", "hip"), ("wrist", "elbow"), ("elbow", "shoulder"))
LIMB_BONES: Bones = tuple((f"{side}_{a}", f"{side}_{b}") for side in "rl" for a, b in _CHAINS)
H36M_BONES: Bones = (
    *LIMB_BONES, ("r_hip", "pelvis"), ("pelvis", "l_hip"), ("pelvis", "spine"), ("spine", "thorax"), ("thorax", "head"),
    ("r_shoulder", "thorax"), ("thorax", "l_shoulder"),
)  # fmt: skip
MPII_BONES: Bones = (
    *LIMB_BONES, ("r_hip", "pelvis"), ("pelvis", "l_hip"), ("pelvis", "upper_neck"), ("upper_neck", "head"),
    ("r_shoulder", "upper_neck"), ("upper_neck", "l_shoulder"),
)  # fmt: skip

RULES = ("names", "published")
# The release's MPII networks learnt Human3.6M's spine and thorax in the places of MPII's thorax and upper neck.
PUBLISHED_NAMES = {"thorax": "spine", "upper_neck": "thorax"}


def crop_pose(x_hm: Tensor, depth: Tensor, size) -> Tensor:
    """Joints and depths of a crop in one unit, the longer side of the map.   x_hm (..., J, 2) cells, depth (..., J) -> (..., J, 3)

    size = (w, h) of the map; depth as `depth_labels` has it. Axes as a camera's. Raises GeometryError.
    """
    if x_hm.shape != (*depth.shape, 2):
        raise GeometryError(f"crop_pose: x_hm {tuple(x_hm.shape)} and depth {tuple(depth.shape)}, expected (..., J, 2) and (..., J)")
    dtype = result_dtype(x_hm, depth)
    return torch.cat([x_hm.to(dtype) / max(size), depth.to(dtype)[..., None]], -1)


def depth_labels(X_cam: Tensor, focal: Tensor | float, side: Tensor | float, root: int) -> Tensor:
    """What a depth map should say at the joints: depth relative to the root over the side of the crop, by weak perspective.

    X_cam (..., J, 3) mm, focal (...) px, mean of both axes, side (...) of the square crop in pixels of the image -> (..., J)

    (Z - Z_root) f / Z_root are pixels of the image at the root's distance, so x, y and depth of a crop have one unit.
    """
    Z = X_cam[..., 2].to(result_dtype(X_cam))
    Z_root = Z[..., root, None]
    focal, side = (torch.as_tensor(v, dtype=Z.dtype, device=Z.device)[..., None] for v in (focal, side))
    return (Z - Z_root) * focal / (Z_root * side)


def mpii_from_h36m(x: Tensor) -> Tensor:
    """Human3.6M's joints as the release lays them over MPII's, unlike `lib.skeleton.convert`.   (..., 17, C) -> (..., 16, C)"""
    source, target = get("h36m17"), get("mpii16")
    return x[..., source.indices(PUBLISHED_NAMES.get(joint, joint) for joint in target.joints), :]


def h36m_pose(x: Tensor, skeleton: Skeleton | str, rule: str = "names") -> Tensor:
    """A whole pose of Human3.6M's 17 joints from the joints of a network.   (..., J, C) -> (..., 17, C)

    A missing spine becomes the middle of pelvis and thorax, a missing nose that of thorax and head. rule: "names" converts by
    `lib.skeleton.convert`; "published" is for networks of MPII's joints trained as Zhou et al. did: their upper neck is the thorax,
    and the spine and the nose are always such middles.

    Raises:
        GeometryError: rule is none of RULES, or published for other joints than mpii16's.
        DataError: pelvis, thorax, head or a limb cannot be had from this skeleton.
    """
    source, target = get(skeleton), get("h36m17")
    if rule not in RULES or (rule == "published" and source.name != "mpii16"):
        raise GeometryError(f"h36m_pose: rule {rule!r} for {source.name}, expected one of {', '.join(RULES)}, published for mpii16 alone")
    if rule == "published":
        known = {PUBLISHED_NAMES[joint] if joint in PUBLISHED_NAMES else joint: joint for joint in source.joints}
        known.pop("spine")
        rows = {joint: x[..., source.index(name), :] for joint, name in known.items()}
    else:
        converted = convert(x, source, target)[0]
        present = convert(np.zeros((source.num, 1)), source, target)[1]  # of the skeletons alone: in an exported graph x has no values
        rows = {joint: converted[..., k, :] for k, joint in enumerate(target.joints) if present[k]}
    absent = [joint for joint in target.joints if joint not in rows and joint not in ("spine", "nose")]
    if absent:
        raise DataError(f"poses of {source.name} cannot become Human3.6M's: {', '.join(absent)} cannot be had; use a skeleton with them")
    rows.setdefault("spine", (rows["pelvis"] + rows["thorax"]) / 2)
    rows.setdefault("nose", (rows["thorax"] + rows["head"]) / 2)
    return torch.stack([rows[joint] for joint in target.joints], -2)


def bone_lengths(X: Tensor, skeleton: Skeleton | str = "h36m17", bones: Bones = H36M_BONES) -> Tensor:
    """Distance of both ends of each bone, NaN where one of them is NaN.   X (..., J, 3) -> (..., bones)"""
    skeleton = get(skeleton)
    ends = torch.as_tensor([[skeleton.index(joint) for joint in bone] for bone in bones], device=X.device)
    return torch.linalg.vector_norm(X[..., ends[:, 0], :] - X[..., ends[:, 1], :], dim=-1)


def bone_sum(X: Tensor, skeleton: Skeleton | str = "h36m17", bones: Bones = H36M_BONES) -> Tensor:
    """Sum of bone lengths; over training poses, its mean is a better size than the published 4000 mm.   X (..., J, 3) -> (...)"""
    return bone_lengths(X, skeleton, bones).sum(-1)


def mm_per_unit(length: Tensor, total: float) -> Tensor:
    """What a pose is scaled by so that its bones, of the sum `length` (...), add up to `total` mm; 0 for one without extent.   -> (...)"""
    return torch.where(length > 0, total / torch.where(length > 0, length, 1.0), 0.0)


def with_middle_thorax(pose: Tensor) -> Tensor:
    """MPII's joints of the paper's hourglass, which learnt the thorax in two meanings: it becomes the middle of pelvis and upper neck.

    pose (..., 16, 3) -> (..., 16, 3)
    """
    pelvis, thorax, neck = get("mpii16").indices(("pelvis", "thorax", "upper_neck")).tolist()
    middle = (pose[..., pelvis, :] + pose[..., neck, :]) / 2
    return pose.index_copy(-2, torch.tensor([thorax], device=pose.device), middle[..., None, :])
