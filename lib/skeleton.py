"""Joint sets: names, order, tree, mirror, and the conversion of one set to another by name.

Every array of joints travels with the name of its skeleton; a permutation is never written down, it follows from names.
One name is one anatomical point in all skeletons, as far as the data sets agree:

    pelvis        mid-point of the hips                          spine       half-way up the back
    thorax, neck  base of the neck; `thorax` where the data set says so (Human3.6M, MPII, HumanEva), `neck` where it
                  says neck and means the base (Panoptic, OpenPose: mid-shoulders; MPI-INF-3DHP, LSP, SMPL); each
                  stands in for the other
    upper_neck    where the head begins (MPII, BODY_25B, "bottom of the head" of Shelf and Campus)
    nose          the nose; Human3.6M's "Neck/Nose" lies between nose and upper neck, and is called nose as usual
    head          top of the head; the middle is head_center (MPI-INF-3DHP), its lower end skull_base (SMPL)
    l_ r_         the person's left and right; r_ankle is what Human3.6M and MPII call RFoot
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from lib.errors import DataError
from lib.registry import nearest, unknown

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Skeleton:
    """A joint set: an order of names and a tree over them.

    Attributes:
        name: key in SKELETONS.
        joints: J names; sides begin with l_ and r_, and come in pairs.
        parents: index of each joint's parent; the root's is its own.
        root: name of the joint at which the tree begins, and relative to which poses are given.

    Raises:
        DataError: names are repeated, a side lacks its twin, or the parents are no tree.
    """

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    root: str

    def __post_init__(self):
        if len(set(self.joints)) != self.num or len(self.parents) != self.num or self.root not in self.joints:
            raise DataError(f"skeleton {self.name}: needs different joint names, a parent for each, and its root")
        for joint in self.joints:
            if _twin(joint) not in self.joints:
                raise DataError(f"skeleton {self.name}: joint {joint} has no twin {_twin(joint)}")
        ends = np.arange(self.num)
        for _ in range(self.num):
            ends = np.asarray(self.parents)[ends]
        if (ends != self.root_index).any():
            raise DataError(f"skeleton {self.name}: not every joint leads to the root {self.root}")

    @property
    def num(self) -> int:
        """Number of joints J."""
        return len(self.joints)

    @property
    def root_index(self) -> int:
        return self.joints.index(self.root)

    def find(self, name: str) -> int | None:
        """Index of a joint, or None if this skeleton lacks it."""
        return self.joints.index(name) if name in self.joints else None

    def index(self, name: str) -> int:
        """Index of a joint.

        Raises:
            DataError: this skeleton lacks it.
        """
        if name not in self.joints:
            guess = nearest(name, self.joints)
            hint = f"; did you mean {guess}?" if guess else f"; it has {', '.join(self.joints)}"
            raise DataError(f"skeleton {self.name} has no joint {name!r}{hint}")
        return self.joints.index(name)

    def indices(self, names: Iterable[str]) -> np.ndarray:
        """Indices of several joints, (n,) int64. Raises DataError for one that is missing."""
        return np.array([self.index(name) for name in names], dtype=np.int64)

    @property
    def bones(self) -> np.ndarray:
        """(J-1, 2) int64: parent and child of each bone, in the order of the children."""
        return np.array([(p, j) for j, p in enumerate(self.parents) if p != j], dtype=np.int64)

    @property
    def flip(self) -> np.ndarray:
        """(J,) int64: `x[..., flip, :]` are the joints of the mirror image, left and right exchanged."""
        return self.indices(_twin(joint) for joint in self.joints)

    @property
    def limbs(self) -> dict[str, np.ndarray]:
        """Rows of `bones` by side, for colours: left, right, center; the side is that of the child."""
        side = {"l_": "left", "r_": "right"}
        sides = np.array([side.get(self.joints[child][:2], "center") for _, child in self.bones])
        return {name: np.flatnonzero(sides == name) for name in ("left", "right", "center")}


def _twin(joint: str) -> str:
    """The joint of the other side; the joint itself in the middle of the body."""
    return {"l_": "r_", "r_": "l_"}.get(joint[:2], joint[:2]) + joint[2:]


def _skeleton(name: str, text: str) -> Skeleton:
    """A skeleton from `joint:parent` words in its order; the word without a parent is the root."""
    pairs = [word.partition(":")[::2] for word in text.split()]
    joints = tuple(joint for joint, _ in pairs)
    root = next(joint for joint, parent in pairs if not parent)
    return Skeleton(name, joints, tuple(joints.index(parent or joint) for joint, parent in pairs), root)


# --------------------------------------------------------------------------------------------------------- the tables

_H36M = """
    pelvis r_hip:pelvis r_knee:r_hip r_ankle:r_knee l_hip:pelvis l_knee:l_hip l_ankle:l_knee
    spine:pelvis thorax:spine nose:thorax head:nose
    l_shoulder:thorax l_elbow:l_shoulder l_wrist:l_elbow r_shoulder:thorax r_elbow:r_shoulder r_wrist:r_elbow"""
_COCO = """
    nose l_eye:nose r_eye:nose l_ear:l_eye r_ear:r_eye l_shoulder:nose r_shoulder:nose
    l_elbow:l_shoulder r_elbow:r_shoulder l_wrist:l_elbow r_wrist:r_elbow
    l_hip:l_shoulder r_hip:r_shoulder l_knee:l_hip r_knee:r_hip l_ankle:l_knee r_ankle:r_knee"""
_PANOPTIC = """
    neck:pelvis nose:neck pelvis l_shoulder:neck l_elbow:l_shoulder l_wrist:l_elbow
    l_hip:pelvis l_knee:l_hip l_ankle:l_knee
    r_shoulder:neck r_elbow:r_shoulder r_wrist:r_elbow r_hip:pelvis r_knee:r_hip r_ankle:r_knee"""
_FOURTEEN = """
    r_ankle:r_knee r_knee:r_hip r_hip:{neck} l_hip:{neck} l_knee:l_hip l_ankle:l_knee
    r_wrist:r_elbow r_elbow:r_shoulder r_shoulder:{neck} l_shoulder:{neck} l_elbow:l_shoulder l_wrist:l_elbow
    {neck} {head}:{neck}"""
_OPENPOSE_BODY = "nose:neck {root} r_shoulder:neck r_elbow:r_shoulder r_wrist:r_elbow " \
    "l_shoulder:neck l_elbow:l_shoulder l_wrist:l_elbow "
_FEET = " l_big_toe:l_ankle l_small_toe:l_ankle l_heel:l_ankle r_big_toe:r_ankle r_small_toe:r_ankle r_heel:r_ankle"

SKELETONS: dict[str, Skeleton] = {name: _skeleton(name, text) for name, text in {
    "h36m17": _H36M,
    # the pose machines' order: Human3.6M without the nose
    "h36m16": _H36M.replace("nose:thorax head:nose", "head:thorax"),
    # Integral pose regression appends the mid-point of the shoulders and hangs the upper body on it
    "h36m18": _H36M.replace("head:nose", "head:thorax").replace("thorax:spine", "thorax:mid_shoulder")
    .replace("nose:thorax", "nose:mid_shoulder").replace("shoulder:thorax", "shoulder:mid_shoulder")
    + " mid_shoulder:pelvis",
    # the raw motion capture with its helpers: pelvis_copy and *_shoulder_base lie where pelvis and thorax are
    "h36m32": """
        pelvis r_hip:pelvis r_knee:r_hip r_ankle:r_knee r_toe_base:r_ankle r_toe_end:r_toe_base
        l_hip:pelvis l_knee:l_hip l_ankle:l_knee l_toe_base:l_ankle l_toe_end:l_toe_base
        pelvis_copy:pelvis spine:pelvis_copy thorax:spine nose:thorax head:nose
        l_shoulder_base:spine l_shoulder:l_shoulder_base l_elbow:l_shoulder l_wrist:l_elbow
        l_thumb:l_wrist l_thumb_end:l_thumb l_hand:l_wrist l_hand_end:l_hand
        r_shoulder_base:spine r_shoulder:r_shoulder_base r_elbow:r_shoulder r_wrist:r_elbow
        r_thumb:r_wrist r_thumb_end:r_thumb r_hand:r_wrist r_hand_end:r_hand""",
    # what Human3.6M's regressor makes of SMPL's mesh: its legs come left first
    "h36m_mesh17": """
        pelvis l_hip:pelvis l_knee:l_hip l_ankle:l_knee r_hip:pelvis r_knee:r_hip r_ankle:r_knee
        spine:pelvis thorax:spine nose:thorax head:nose
        l_shoulder:thorax l_elbow:l_shoulder l_wrist:l_elbow r_shoulder:thorax r_elbow:r_shoulder r_wrist:r_elbow""",
    "mpii16": """
        r_ankle:r_knee r_knee:r_hip r_hip:pelvis l_hip:pelvis l_knee:l_hip l_ankle:l_knee
        pelvis thorax:pelvis upper_neck:thorax head:upper_neck
        r_wrist:r_elbow r_elbow:r_shoulder r_shoulder:thorax l_shoulder:thorax l_elbow:l_shoulder l_wrist:l_elbow""",
    "coco17": _COCO,
    "voxelpose17": _COCO,  # VoxelPose's poses for Shelf and Campus; they are placed by the mid-point of the hips
    "panoptic15": _PANOPTIC,
    "panoptic19": _PANOPTIC + " l_eye:nose l_ear:l_eye r_eye:nose r_ear:r_eye",
    "shelf14": _FOURTEEN.format(neck="upper_neck", head="head"),
    "campus14": _FOURTEEN.format(neck="upper_neck", head="head"),
    "lsp14": _FOURTEEN.format(neck="neck", head="head"),
    "threedpw14": _FOURTEEN.format(neck="neck", head="skull_base"),  # the common 14, as SMPL's skeleton has them
    "humaneva15": """
        pelvis thorax:pelvis l_shoulder:thorax l_elbow:l_shoulder l_wrist:l_elbow
        r_shoulder:thorax r_elbow:r_shoulder r_wrist:r_elbow
        l_hip:pelvis l_knee:l_hip l_ankle:l_knee r_hip:pelvis r_knee:r_hip r_ankle:r_knee head:thorax""",
    # both ends of each segment apart: the upper arm's elbow and the lower arm's elbow are different points
    "humaneva20": """
        pelvis torso_top:pelvis head_base:torso_top
        l_shoulder:torso_top l_elbow_upper:l_shoulder l_elbow_lower:l_elbow_upper l_wrist:l_elbow_lower
        r_shoulder:torso_top r_elbow_upper:r_shoulder r_elbow_lower:r_elbow_upper r_wrist:r_elbow_lower
        l_hip:pelvis l_knee_upper:l_hip l_knee_lower:l_knee_upper l_ankle:l_knee_lower
        r_hip:pelvis r_knee_upper:r_hip r_knee_lower:r_knee_upper r_ankle:r_knee_lower head:head_base""",
    "smpl24": """
        pelvis l_hip:pelvis r_hip:pelvis spine1:pelvis l_knee:l_hip r_knee:r_hip spine2:spine1
        l_ankle:l_knee r_ankle:r_knee spine3:spine2 l_foot:l_ankle r_foot:r_ankle neck:spine3
        l_collar:spine3 r_collar:spine3 skull_base:neck
        l_shoulder:l_collar r_shoulder:r_collar l_elbow:l_shoulder r_elbow:r_shoulder
        l_wrist:l_elbow r_wrist:r_elbow l_hand:l_wrist r_hand:r_wrist""",
    "mpi3dhp17": """
        head:head_center neck:spine r_shoulder:neck r_elbow:r_shoulder r_wrist:r_elbow
        l_shoulder:neck l_elbow:l_shoulder l_wrist:l_elbow r_hip:pelvis r_knee:r_hip r_ankle:r_knee
        l_hip:pelvis l_knee:l_hip l_ankle:l_knee pelvis spine:pelvis head_center:neck""",
    "mpi3dhp28": """
        spine3:spine2 spine4:spine3 spine2:spine spine:pelvis pelvis neck:spine4 head_center:neck head:head_center
        l_clavicle:spine4 l_shoulder:l_clavicle l_elbow:l_shoulder l_wrist:l_elbow l_hand:l_wrist
        r_clavicle:spine4 r_shoulder:r_clavicle r_elbow:r_shoulder r_wrist:r_elbow r_hand:r_wrist
        l_hip:pelvis l_knee:l_hip l_ankle:l_knee l_foot:l_ankle l_toe:l_foot
        r_hip:pelvis r_knee:r_hip r_ankle:r_knee r_foot:r_ankle r_toe:r_foot""",
    # 3DPW's 2D detections; the order of its ears is taken from OpenPose
    "openpose18": _OPENPOSE_BODY.format(root="neck") + "r_hip:neck r_knee:r_hip r_ankle:r_knee "
    "l_hip:neck l_knee:l_hip l_ankle:l_knee r_eye:nose l_eye:nose r_ear:r_eye l_ear:l_eye",
    "openpose25": _OPENPOSE_BODY.format(root="neck:pelvis") + "pelvis r_hip:pelvis r_knee:r_hip r_ankle:r_knee "
    "l_hip:pelvis l_knee:l_hip l_ankle:l_knee r_eye:nose l_eye:nose r_ear:r_eye l_ear:l_eye" + _FEET,
    # COCO's joints and six more of the body, then the feet; Halpe-136 begins with the same
    "halpe26": _COCO.replace("nose l_eye", "nose:neck l_eye").replace("shoulder:nose", "shoulder:neck")
    .replace("hip:l_shoulder", "hip:pelvis").replace("hip:r_shoulder", "hip:pelvis")
    + " head:neck neck:pelvis pelvis l_big_toe:l_ankle r_big_toe:r_ankle l_small_toe:l_ankle r_small_toe:r_ankle"
    " l_heel:l_ankle r_heel:r_ankle",
    "body25b": _COCO.replace("nose l_eye", "nose:upper_neck l_eye").replace("shoulder:nose", "shoulder:upper_neck")
    + " upper_neck head:upper_neck" + _FEET,
}.items()}


class Approximation(NamedTuple):
    """How a joint that the source lacks is made from joints it has: their mean, or the sum with `weights`."""

    joints: tuple[str, ...]
    weights: tuple[float, ...] = ()
    src: tuple[str, ...] = ()  # only from skeletons whose names begin so; empty = from any
    dst: tuple[str, ...] = ()  # only into skeletons whose names begin so; empty = into any


HIPS, SHOULDERS = ("l_hip", "r_hip"), ("l_shoulder", "r_shoulder")

# Tried in this order; the first whose joints the source has is used. What is not here cannot be made and stays absent.
APPROXIMATIONS: dict[str, tuple[Approximation, ...]] = {
    "pelvis": (Approximation(HIPS),),
    "mid_shoulder": (Approximation(SHOULDERS),),
    "neck": (Approximation(("thorax",)), Approximation(("torso_top", "head_base")), Approximation(SHOULDERS)),
    "thorax": (
        Approximation(SHOULDERS, src=("smpl",), dst=("mpii",)),  # SMPL's neck is taken for MPII's upper neck, see below
        Approximation(("neck",)),
        Approximation(("torso_top", "head_base")),  # VideoPose3D's HumanEva-15
        Approximation(SHOULDERS),
    ),
    "spine": (Approximation(("spine2",), src=("smpl",)),),  # no mid-point of others: a back bends
    "spine2": (Approximation(("spine",), src=("h36m",)),),
    "skull_base": (Approximation(("nose",), src=("h36m",)),),  # where Human3.6M's bone of the head begins
    "upper_neck": (
        Approximation(("nose",), src=("h36m",)),  # EpipolarPose: Human3.6M's "Neck/Nose" is MPII's upper neck
        Approximation(("neck",), src=("smpl",)),
        # half-way from shoulders to head: VoxelPose's plain rule for the bottom of the head in Shelf and Campus
        Approximation(("l_ear", "r_ear", *SHOULDERS), dst=("shelf", "campus")),
        Approximation(("nose", *SHOULDERS), (0.5, 0.25, 0.25), dst=("shelf", "campus")),
    ),
    "head": (  # the same rule for the top: as far beyond the head's centre as that is beyond the bottom
        Approximation(("l_ear", "r_ear", *SHOULDERS), (0.75, 0.75, -0.25, -0.25), dst=("shelf", "campus")),
        Approximation(("nose", *SHOULDERS), (1.5, -0.25, -0.25), dst=("shelf", "campus")),
    ),
    "nose": (  # only where nose means Human3.6M's point between nose and neck
        Approximation(("upper_neck",), dst=("h36m",)),
        Approximation(("head_center",), src=("mpi3dhp",), dst=("h36m",)),
    ),
    "head_center": (Approximation(("nose",), src=("h36m",)),),
    "l_elbow": (Approximation(("l_elbow_upper", "l_elbow_lower")),),
    "r_elbow": (Approximation(("r_elbow_upper", "r_elbow_lower")),),
    "l_knee": (Approximation(("l_knee_upper", "l_knee_lower")),),
    "r_knee": (Approximation(("r_knee_upper", "r_knee_lower")),),
}

# --------------------------------------------------------------------------------------------------------- conversion


def get(name: str | Skeleton) -> Skeleton:
    """The skeleton of that name; a Skeleton is returned as it is.

    Raises:
        ConfigError: there is none; the message lists the known ones.
    """
    if isinstance(name, Skeleton):
        return name
    if name not in SKELETONS:
        raise unknown(name, SKELETONS, "skeleton")
    return SKELETONS[name]


def check_same(a: str | Skeleton, b: str | Skeleton, what: str) -> None:
    """Refuse to mix two skeletons.

    Raises:
        DataError: `a` and `b` differ; `what` says where they meet.
    """
    a, b = get(a), get(b)
    if a != b:
        raise DataError(f"{what}: skeletons {a.name} and {b.name} are mixed; convert one to the other "
                        "(lib.skeleton.convert, or DATASET.SKELETON in the configuration)")


@cache
def _plan(src: Skeleton, dst: Skeleton) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source joints (J2,K), their weights (J2,K), and what is present (J2,).

    Unused places of a row repeat its first joint with weight 0, so a NaN elsewhere in the pose cannot leak into it.
    """
    rows: list[tuple[tuple[str, ...], tuple[float, ...]]] = []
    for joint in dst.joints:
        rules = (Approximation((joint,)), *APPROXIMATIONS.get(joint, ()))
        fitting = (r for r in rules if all(j in src.joints for j in r.joints)
                   and (not r.src or src.name.startswith(r.src)) and (not r.dst or dst.name.startswith(r.dst)))
        rule = next(fitting, Approximation(()))
        rows.append((rule.joints, rule.weights or (1 / len(rule.joints),) * len(rule.joints) if rule.joints else ()))
    width = max(len(joints) for joints, _ in rows) or 1
    index, weight = np.zeros((dst.num, width), np.int64), np.zeros((dst.num, width))
    for row, (joints, weights) in enumerate(rows):
        if joints:
            index[row] = src.index(joints[0])
            index[row, : len(joints)] = src.indices(joints)
            weight[row, : len(joints)] = weights
    return index, weight, np.array([bool(joints) for joints, _ in rows])


def _fitting(x: Array, src: Skeleton, axis: int) -> None:
    if x.ndim < -axis or x.shape[axis] != src.num:
        raise DataError(f"array of shape {tuple(x.shape)} lacks the {src.num} joints of {src.name} in axis {axis}")


def convert(x: Array, src: str | Skeleton, dst: str | Skeleton) -> tuple[Array, Array]:
    """The same pose in another joint set: by name, else by the table of APPROXIMATIONS, else absent.

    Linear in x, so it holds for world, camera and image points alike (a mean of image points is approximate).

    Args:
        x: (..., J, C) array or tensor over the joints of `src`; gradients flow through tensors.
        src, dst: skeletons or their names.

    Returns:
        x over the joints of `dst`, (..., J2, C), zero where absent; present (J2,) bool.

    Raises:
        DataError: x has not the joints of `src`.
        ConfigError: unknown skeleton.
    """
    src, dst = get(src), get(dst)
    _fitting(x, src, -2)
    index, weight, present = _plan(src, dst)
    if isinstance(x, torch.Tensor):
        there = torch.from_numpy(present).to(x.device)
        if index.shape[1] == 1:  # names alone: values stay as they are, of any dtype
            y = x[..., index[:, 0], :]
        else:
            w = torch.from_numpy(weight).to(x.device, x.dtype if x.is_floating_point() else torch.get_default_dtype())
            y = sum(x[..., index[:, k], :] * w[:, k, None] for k in range(index.shape[1]))
        return torch.where(there[:, None], y, torch.zeros((), dtype=y.dtype, device=y.device)), there
    if index.shape[1] == 1:
        y = x[..., index[:, 0], :]
    else:
        w = weight.astype(x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64)
        y = sum(x[..., index[:, k], :] * w[:, k, None] for k in range(index.shape[1]))
    y[..., ~present, :] = 0
    return y, present.copy()
