"""Bodies: human proportions, forward kinematics with joint limits, and the round solids that a body is made of.

Body frame: x forward, y left, z up, mm, origin on the floor below the pelvis; at rest the person stands with hanging
arms and every segment frame has these axes. Sides are ordered left, right.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SKELETON = "h36m17"
JOINTS = (
    *("pelvis", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "spine", "thorax", "nose", "head"),
    *("l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist"),
)
SEGMENTS = (
    *("pelvis", "abdomen", "chest", "head", "l_upperarm", "r_upperarm", "l_forearm", "r_forearm", "l_hand", "r_hand"),
    *("l_thigh", "r_thigh", "l_shank", "r_shank", "l_foot", "r_foot"),
)
MAX_FLEXION = {"knee": 150.0, "elbow": 148.0}  # degrees from straight; both bend in one direction only
STRAIGHT = 0.999  # share of the full length that a limb can reach, so that it never folds over backwards

# Segment lengths as shares of the stature (after Drillis and Contini, and the mean Human3.6M skeleton).
SHARES = {
    "ankle": 0.043,  # height of the ankle joint
    "shank": 0.247,
    "thigh": 0.245,
    "hip": 0.070,  # half distance of the hip joints
    "lumbar": 0.132,  # pelvis to spine
    "dorsal": 0.142,  # spine to thorax
    "neck": 0.040,  # thorax to the pivot of the head
    "skull": 0.151,  # pivot of the head to its top
    "shoulder": 0.092,  # half distance of the shoulder joints
    "upperarm": 0.164,
    "forearm": 0.146,
    "hand": 0.095,
    "foot": 0.118,  # ankle to toe tip
}


@dataclass(frozen=True)
class Body:
    """The sizes of a person; lengths in mm."""

    height: float
    girth: float  # 1 = average radius of trunk and limbs
    female: float  # 0..1, moves width from the shoulders to the hips
    lengths: dict  # SHARES' names -> mm

    @staticmethod
    def draw(rng: np.random.Generator) -> "Body":
        """A body drawn from adult ranges: stature 1.50 to 1.98 m, proportions within some 4 % of the average."""
        female = float(rng.random() < 0.5)
        height = float(np.clip(rng.normal(1765 - 125 * female, 68), 1500, 1980))
        girth = float(np.clip(rng.normal(1.0, 0.10), 0.82, 1.28))
        spread = np.clip(rng.normal(1.0, 0.025, len(SHARES)), 0.93, 1.07)
        lengths = {name: share * height * s for (name, share), s in zip(SHARES.items(), spread, strict=True)}
        lengths["shoulder"] *= 1.03 - 0.09 * female
        lengths["hip"] *= 0.98 + 0.06 * female
        tall = sum(lengths[n] for n in ("ankle", "shank", "thigh", "lumbar", "dorsal", "neck", "skull"))
        lengths = {name: value * height / tall for name, value in lengths.items()}
        return Body(height, girth, female, lengths)

    @property
    def leg(self) -> float:
        """Height of the hip joints above the floor when standing straight, mm."""
        return self.lengths["ankle"] + self.lengths["shank"] + self.lengths["thigh"]

    @property
    def arm(self) -> float:
        """Shoulder to wrist of the straight arm, mm."""
        return self.lengths["upperarm"] + self.lengths["forearm"]

    def shoulders(self) -> np.ndarray:
        """Offsets of the shoulder joints from the thorax in the chest frame, left and right.   -> (2, 3)"""
        y, h = self.lengths["shoulder"], self.height
        return np.array([[-0.004 * h, y, -0.014 * h], [-0.004 * h, -y, -0.014 * h]])

    def rest_origins(self) -> np.ndarray:
        """Origins of the segment frames at rest, in the body frame.   -> (F, 3)"""
        n, side = self.lengths, np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
        up = np.array([0.0, 0.0, 1.0])
        pelvis = up * self.leg
        spine = pelvis + up * n["lumbar"]
        thorax = spine + up * n["dorsal"]
        shoulder, hip = thorax + self.shoulders(), pelvis + side * n["hip"]
        elbow = shoulder - up * n["upperarm"]
        wrist, knee = elbow - up * n["forearm"], hip - up * n["thigh"]
        ankle = knee - up * n["shank"]
        trunk = np.stack([pelvis, pelvis, spine, thorax + up * n["neck"]])
        return np.concatenate([trunk, shoulder, elbow, wrist, hip, knee, ankle])


class Stance(NamedTuple):
    """What a motion asks of a body at T instants, in the world; limbs are driven by their ends (left, right)."""

    pelvis: np.ndarray  # (T,3) mm
    pelvis_R: np.ndarray  # (T,3,3) world from segment, as the next three
    abdomen_R: np.ndarray
    chest_R: np.ndarray
    head_R: np.ndarray
    wrist: np.ndarray  # (T,2,3) mm, where the wrists should be
    elbow_pole: np.ndarray  # (T,2,3) direction to which the elbows point
    ankle: np.ndarray  # (T,2,3) mm, where the ankles should be
    knee_pole: np.ndarray  # (T,2,3)
    foot_R: np.ndarray  # (T,2,3,3)
    hand_bend: np.ndarray  # (T,2) radians of wrist flexion


class Posed(NamedTuple):
    """Joints and segment frames of a body at T instants."""

    joints: np.ndarray  # (T,17,3) mm, world, order JOINTS
    R: np.ndarray  # (T,F,3,3) world from segment
    origin: np.ndarray  # (T,F,3) mm


def rotation(axis: str, angle: np.ndarray) -> np.ndarray:
    """Rotations about a coordinate axis, x y or z.   angle (...) rad -> (...,3,3)"""
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    angle = np.asarray(angle, np.float64)
    R = np.zeros((*angle.shape, 3, 3))
    R[..., i, i] = 1
    R[..., j, j] = R[..., k, k] = np.cos(angle)
    R[..., k, j] = np.sin(angle)
    R[..., j, k] = -R[..., k, j]
    return R


def unit(v: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1.   (...,3) -> (...,3)"""
    return v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)


def limb_frame(down: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Segment frames whose -z points along a bone and whose x is as near to `front` as it can be.

    (...,3), (...,3) -> (...,3,3)
    """
    z = -unit(down)
    y = unit(np.cross(z, front))
    return np.stack([np.cross(y, z), y, z], -1)


def two_bones(
    start: np.ndarray,  # (...,3) mm, hip or shoulder
    target: np.ndarray,  # (...,3) mm, where the end should be
    pole: np.ndarray,  # (...,3) side to which the middle joint points
    upper: float,
    lower: float,
    max_flexion: float,  # degrees
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middle and end joint of a two-bone limb: the end is at the target, or as near to it as lengths and the joint's
    limit allow.

    -> mid (...,3) mm, end (...,3) mm, across (...,3): unit vector from the line start-end towards mid, defined for
    the straight limb too
    """
    along = target - start
    distance = np.linalg.norm(along, axis=-1, keepdims=True)
    closest = np.sqrt(upper**2 + lower**2 + 2 * upper * lower * np.cos(np.radians(max_flexion)))
    reach = np.clip(distance, closest, STRAIGHT * (upper + lower))
    along = along / np.maximum(distance, 1e-9)
    across = unit(pole - (pole * along).sum(-1, keepdims=True) * along)
    cos = (upper**2 + reach**2 - lower**2) / (2 * upper * reach)
    mid = start + upper * (cos * along + np.sqrt(np.maximum(1 - cos**2, 0)) * across)
    return mid, start + reach * along, across


def pose(body: Body, stance: Stance) -> Posed:
    """Joints and segment frames of a body that follows a stance within its joint limits."""
    n = body.lengths

    def moved(R: np.ndarray, offset) -> np.ndarray:
        return np.einsum("...ij,...j->...i", R, np.asarray(offset, np.float64))

    side = np.array([1.0, -1.0])
    spine = stance.pelvis + moved(stance.abdomen_R, (0, 0, n["lumbar"]))
    thorax = spine + moved(stance.chest_R, (0, 0, n["dorsal"]))
    pivot = thorax + moved(stance.chest_R, (0, 0, n["neck"]))
    nose = pivot + moved(stance.head_R, (0.044 * body.height, 0, 0.026 * body.height))
    top = pivot + moved(stance.head_R, (-0.004 * body.height, 0, n["skull"]))

    # Collarbones rise with the arm: up to 20 degrees about the thorax.
    towards = np.einsum("tji,tsj->tsi", stance.chest_R, stance.wrist - thorax[:, None]) / body.arm
    raised = np.clip(0.22 * (towards[..., 2] + 0.3), 0, 0.35)
    shoulder = thorax[:, None] + moved(stance.chest_R[:, None] @ rotation("x", side * raised), body.shoulders())
    wrist = out_of_torso(body, stance, thorax, stance.wrist)
    arm = n["upperarm"], n["forearm"], MAX_FLEXION["elbow"]
    elbow, wrist, outer = two_bones(shoulder, wrist, stance.elbow_pole, *arm)

    hip = stance.pelvis[:, None] + moved(stance.pelvis_R[:, None], n["hip"] * np.array([[0, 1, 0], [0, -1, 0]]))
    knee, ankle, shin = two_bones(hip, stance.ankle, stance.knee_pole, n["thigh"], n["shank"], MAX_FLEXION["knee"])

    # Elbows point away from the side to which the forearm folds, knees towards the front of both thigh and shank.
    upperarm_R, forearm_R = limb_frame(elbow - shoulder, -outer), limb_frame(wrist - elbow, -outer)
    hand_R = forearm_R @ rotation("y", -stance.hand_bend)
    thigh_R, shank_R = limb_frame(knee - hip, shin), limb_frame(ankle - knee, shin)
    trunk_R = np.stack([stance.pelvis_R, stance.abdomen_R, stance.chest_R, stance.head_R], 1)
    R = np.concatenate([trunk_R, upperarm_R, forearm_R, hand_R, thigh_R, shank_R, stance.foot_R], 1)
    trunk = np.stack([stance.pelvis, stance.pelvis, spine, pivot], 1)
    origin = np.concatenate([trunk, shoulder, elbow, wrist, hip, knee, ankle], 1)
    legs = [limb[:, s] for s in (1, 0) for limb in (hip, knee, ankle)]
    arms = [limb[:, s] for s in (0, 1) for limb in (shoulder, elbow, wrist)]
    return Posed(np.stack([stance.pelvis, *legs, spine, thorax, nose, top, *arms], 1), R, origin)


def out_of_torso(body: Body, stance: Stance, thorax: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points moved horizontally (in the chest frame) out of the trunk.   points (T,2,3) mm -> (T,2,3)"""
    local = np.einsum("tji,tsj->tsi", stance.chest_R, points - thorax[:, None])
    half = np.array([0.088, 0.112]) * body.height * body.girth + np.array([30.0, 30.0])
    radius = np.linalg.norm(local[..., :2] / half, axis=-1, keepdims=True)
    # Full effect between hips and collarbones, none above the chin or below the crotch, so that motion stays smooth.
    low, high = -(body.lengths["lumbar"] + body.lengths["dorsal"]) - 60, 0.01 * body.height
    inside = np.clip(np.minimum((local[..., 2:] - low) / 80 + 1, (high - local[..., 2:]) / 60 + 1), 0, 1)
    pushed = local[..., :2] * np.maximum(1, 1 / np.maximum(radius, 0.05))
    local = np.concatenate([local[..., :2] + inside * (pushed - local[..., :2]), local[..., 2:]], -1)
    return thorax[:, None] + np.einsum("tij,tsj->tsi", stance.chest_R, local)


class Solids(NamedTuple):
    """N round cones (hulls of two balls), each stretched along its own axes: balls, capsules, ellipsoids and more.

    In the local frame, coordinates divided by `scale`, a ball of radius[0] sits at the origin and one of radius[1] at
    (0, 0, length).
    """

    segment: np.ndarray  # (N,) index into SEGMENTS
    axes: np.ndarray  # (N,3,3) segment from local, columns are the local axes; x is the front where there is one
    origin: np.ndarray  # (N,3) mm in the segment frame
    scale: np.ndarray  # (N,3) mm per local unit
    length: np.ndarray  # (N,) local units
    radius: np.ndarray  # (N,2) local units


def solids(parts: dict[str, tuple]) -> Solids:
    """Solids from a table name -> (segment, p0 mm, p1 mm, r0 mm, r1 mm, (scale x, y, z)); p0 = p1 makes an ellipsoid.

    The stretched radii are r * scale: scale (1, 1, 1) is a plain round cone.
    """
    segment, p0, p1, r0, r1, scale = zip(*parts.values(), strict=True)
    p0, p1, scale = (np.array(v, np.float64) for v in (p0, p1, scale))
    along = p1 - p0
    distance = np.linalg.norm(along, axis=-1)
    z = np.where(distance[:, None] > 1e-6, along / np.maximum(distance, 1e-6)[:, None], [0.0, 0.0, 1.0])
    # x stays the front of the person; for solids that themselves point forward (feet), it is up.
    hint = np.where(np.abs(z[:, :1]) > 0.8, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    y = unit(np.cross(z, hint))
    axes = np.stack([np.cross(y, z), y, z], -1)
    radius = np.stack([np.array(r0, np.float64), np.array(r1, np.float64)], -1)
    index = np.array([SEGMENTS.index(s) for s in segment])
    return Solids(index, axes, p0, scale, distance / scale[:, 2], radius)
