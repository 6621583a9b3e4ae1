"""Could this be people? What a table that can be read may still have wrong: the unit, the joint order, left and right, the cameras.

Every test is relative to what bodies are like, so that none needs to know the data set. Each gives sentences for a user: what was
found, what was expected, what to do.
"""

from collections.abc import Iterator

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.skeleton import Skeleton

MOST = 3000  # poses or observations that are looked at, spread over the table
# Mean lengths of adults, mm; people differ by some 15 %, children by 50.
LIMBS_MM = (("hip", "knee", 440.0), ("knee", "ankle", 430.0), ("shoulder", "elbow", 290.0), ("elbow", "wrist", 250.0))
RATIO = (0.5, 1.8)  # of found to mean lengths
UNITS = {0.001: "metres", 0.01: "decimetres", 0.1: "centimetres", 10.0: "tenths of a millimetre"}
SHORTER = 0.85  # the tree of another joint set is so much shorter than that of the claimed one: its order is meant
UNEQUAL = 0.25  # by which the two sides of a body may differ
BENT_MM = 60.0  # a knee is bent when it lies so far from the line from hip to ankle
NEAR_MM, FAR_MM = 300.0, 1e6  # of a person from the camera; made-up cameras without perspective stand far away
APART_MM = 100.0  # by which 2D joints may miss the projected 3D joints, at the person


def findings(ann: Annotations) -> list[str]:
    """What looks wrong in a table; empty = nothing.

    Args:
        ann: a table that passed its own check.
    """
    return [*_poses(ann), *_cameras(ann), *_image_joints(ann)]


def _poses(ann: Annotations) -> Iterator[str]:
    """Unit, order and sides of the 3D joints."""
    used = _spread(np.unique(ann.pose[ann.pose >= 0]))
    skel = skeletons.get(ann.skeleton)
    X = np.where(ann.X_valid[used][..., None], ann.X_world[used], np.nan).astype(np.float64)
    if not len(used) or np.isnan(X).all():
        return
    other = _better_order(X, skel)
    if other:
        yield (
            f"the 3D joints are listed as {skel.name}, but bones are much shorter if they are read as {other}; "
            "check the joint order of the files"
        )
        return
    ratio = _limb_ratio(X, skel)
    if ratio and not RATIO[0] <= ratio <= RATIO[1]:
        unit = next((name for scale, name in UNITS.items() if RATIO[0] <= ratio / scale <= RATIO[1]), "")
        if unit:
            yield f"limbs are {ratio:.3g} times as long as an adult's in mm: the 3D joints are in {unit}, expected mm; convert them"
        else:
            yield f"limbs are {ratio:.3g} times as long as an adult's, expected about 1 in mm; check the unit and the joint order"
        return
    yield from _sides(X, skel)


def _limb_ratio(X: np.ndarray, skel: Skeleton) -> float:
    """Found to mean length of the limbs, median; 0 = no limb."""
    found = []
    for a, b, mean in LIMBS_MM:
        for side in "lr":
            ends = skel.find(f"{side}_{a}"), skel.find(f"{side}_{b}")
            if None not in ends:
                found.append(_length(X, *ends) / mean)
    found = [f for f in found if np.isfinite(f)]
    return float(np.median(found)) if found else 0.0


def _length(X: np.ndarray, a: int, b: int) -> float:
    """Median distance of two joints; NaN where they never occur together.   X (N,J,C)"""
    d = np.linalg.norm(X[:, a] - X[:, b], axis=-1)
    return float(np.median(d[np.isfinite(d)])) if np.isfinite(d).any() else np.nan


def _better_order(X: np.ndarray, skel: Skeleton) -> str:
    """Another joint set of as many joints whose bones fit these points much better; "" = none.   X (N,J,C)"""
    if np.isnan(X).all((0, 2)).any():  # a joint that never occurs: sets cannot be compared
        return ""
    sums = {name: float(np.nansum([_length(X, *bone) for bone in other.bones])) for name, other in skeletons.SKELETONS.items()
            if other.num == skel.num}  # fmt: skip
    best = min(sums, key=sums.__getitem__)
    return best if sums[best] < SHORTER * sums[skel.name] else ""


def _sides(X: np.ndarray, skel: Skeleton) -> Iterator[str]:
    """Left against right.   X (N,J,3) mm"""
    for a, b, _ in LIMBS_MM:
        ends = [(skel.find(f"{s}_{a}"), skel.find(f"{s}_{b}")) for s in "lr"]
        if None in (*ends[0], *ends[1]):
            continue
        left, right = (_length(X, *e) for e in ends)
        if abs(left - right) > UNEQUAL * max(left, right):
            yield (
                f"from {a} to {b} it is {left:.4g} mm on the left and {right:.4g} mm on the right, expected about the same; "
                f"check that the joints are in the order of {skel.name}"
            )
            return
    crossed = _crossed(X, skel)
    if crossed > 0.5:
        yield (
            f"the shoulders point against the hips in {crossed:.0%} of the poses, expected the same sense; left and right of the arms or "
            "of the legs are exchanged: check the joint order"
        )
        return
    backwards, bent = _backwards(X, skel)
    if bent >= 5 and backwards > 0.6:
        yield (
            f"knees bend backwards in {backwards:.0%} of {bent} bent legs: left and right are exchanged, or the 3D joints are mirrored; "
            "check the joint order and that the axes are right-handed"
        )


def _crossed(x: np.ndarray, skel: Skeleton) -> float:
    """Share of poses whose shoulders point against their hips.   x (N,J,2|3)"""
    ends = [skel.find(name) for name in ("l_hip", "r_hip", "l_shoulder", "r_shoulder")]
    if None in ends:
        return 0.0
    lh, rh, ls, rs = (x[:, j] for j in ends)
    dot = ((rh - lh) * (rs - ls)).sum(-1)
    dot = dot[np.isfinite(dot)]
    return float((dot < 0).mean()) if len(dot) else 0.0


def _backwards(X: np.ndarray, skel: Skeleton) -> tuple[float, int]:
    """Share of bent legs whose knee lies behind the line from hip to ankle, and their number.   X (N,J,3) mm, right-handed axes

    Forward is up x right, up being from the hips to the shoulders.
    """
    names = ("l_hip", "r_hip", "l_shoulder", "r_shoulder", "l_knee", "r_knee", "l_ankle", "r_ankle")
    ends = [skel.find(name) for name in names]
    if None in ends:
        return 0.0, 0
    lh, rh, ls, rs, lk, rk, la, ra = (X[:, j] for j in ends)
    forward = np.cross((ls + rs) / 2 - (lh + rh) / 2, rh - lh)
    forward /= np.maximum(np.linalg.norm(forward, axis=-1, keepdims=True), 1e-9)
    hip, knee, ankle = (np.concatenate(pair) for pair in ((lh, rh), (lk, rk), (la, ra)))
    line = ankle - hip
    along = ((knee - hip) * line).sum(-1, keepdims=True) / np.maximum((line**2).sum(-1, keepdims=True), 1e-9)
    offset = knee - hip - along * line
    ahead = (offset * np.concatenate([forward, forward])).sum(-1)
    bent = np.isfinite(ahead) & (np.abs(ahead) > BENT_MM)
    return (float((ahead[bent] < 0).mean()), int(bent.sum())) if bent.any() else (0.0, 0)


def _cameras(ann: Annotations) -> Iterator[str]:
    """People before the cameras, and 2D where the 3D is seen."""
    rows = _spread(np.flatnonzero((ann.pose >= 0) & (ann.camera >= 0)))
    if not len(rows):
        return
    skel = skeletons.get(ann.skeleton)
    valid = ann.X_valid[ann.pose[rows]]
    cameras = ann.observing(rows)
    X_world = torch.from_numpy(ann.X_world[ann.pose[rows]]).double()
    depth = cameras.to_cam(X_world)[..., 2].numpy()
    known = depth[valid]
    if not len(known):
        return
    middle = float(np.median(known))
    if not NEAR_MM <= middle <= FAR_MM:
        guess = " (t in metres?)" if 0 <= middle < NEAR_MM else ""
        yield (
            f"people stand {middle:.4g} mm before their cameras (median), expected {NEAR_MM:g} to {FAR_MM:g}{guess}; check the unit of t "
            "and the sense of R (X_cam = R X_world + t)"
        )
        return
    both = valid & (ann.conf[rows] > 0) & (depth > 0)
    x_img = cameras.project(X_world)[0].numpy()
    apart = np.linalg.norm(x_img - ann.x_img[rows], axis=-1) * depth / cameras.K[:, 0, 0].numpy()[:, None]  # mm at the person
    if not both.any() or np.median(apart[both]) <= APART_MM:
        return
    mirrored = np.linalg.norm(x_img[:, skel.flip] - ann.x_img[rows], axis=-1) * depth / cameras.K[:, 0, 0].numpy()[:, None]
    exchanged = both & both[:, skel.flip]
    if exchanged.any() and np.median(mirrored[exchanged]) <= APART_MM / 2:
        yield "the 2D joints fit the projected 3D joints if left and right are exchanged in one of the two; check both joint orders"
    else:
        yield (
            f"2D joints lie {np.median(apart[both]):.4g} mm (at the person, median) from the projected 3D joints, expected less than "
            f"{APART_MM:g}; check the cameras, the frame numbers and the joint order"
        )


def _image_joints(ann: Annotations) -> Iterator[str]:
    """Order and sides of the 2D joints, and boxes around them."""
    rows = _spread(np.arange(len(ann)))
    skel = skeletons.get(ann.skeleton)
    x = np.where((ann.conf[rows] > 0)[..., None], ann.x_img[rows], np.nan).astype(np.float64)
    if np.isnan(x).all():
        return
    other = _better_order(x, skel)
    if other:
        yield (
            f"the 2D joints are listed as {skel.name}, but bones are much shorter if they are read as {other}; "
            "check the joint order of the files"
        )
    elif (crossed := _crossed(x, skel)) > 0.5:
        yield (
            f"the shoulders point against the hips in {crossed:.0%} of the images, expected the same sense; left and right of the arms or "
            "of the legs are exchanged: check the joint order"
        )
    box = ann.box[rows]
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    flat = np.flatnonzero((width <= 1) | (height <= 1))
    if len(flat):
        yield f"{len(flat)} boxes have no area (the first is {box[flat[0]].tolist()}); expected x0 y0 x1 y1 in px"
        return
    within = ((x >= box[:, None, :2] - 1) & (x <= box[:, None, 2:] + 1)).all(-1)
    known = np.isfinite(x).all(-1) & np.isfinite(box).all(-1)[:, None]
    if known.any() and within[known].mean() < 0.5:
        yield (
            f"only {within[known].mean():.0%} of the 2D joints lie in their boxes, expected nearly all; check that boxes are "
            "x0 y0 x1 y1 (not x, y, width, height), in px of the same image"
        )


def _spread(rows: np.ndarray) -> np.ndarray:
    """At most MOST of the entries, evenly."""
    return rows[:: -(-len(rows) // MOST)] if len(rows) else rows
