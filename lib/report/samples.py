"""Which samples a report shows, and their poses: the best, the worst and some at random, by the error of their predictions."""

from dataclasses import dataclass, field

import numpy as np
import torch

from lib.errors import ParallaxError
from lib.geometry.camera import Cameras
from lib.metrics.people import person_distances
from lib.skeleton import SKELETONS, Skeleton, get

MISSED_MM = 500.0  # error of a person whom nobody found, and the most that anyone found can have
SEED = 0  # of the choice at random


@dataclass
class Poses:
    """predictions.npz as the report needs it: one row per sample, with one person (crops, tracks) or several (whole frames)."""

    arrays: dict[str, np.ndarray]
    skeleton: Skeleton | None  # None: unknown, joints are points
    X: np.ndarray | None = None  # (N,P,J,3) mm, NaN where there is nobody; None: 2D only
    truth: np.ndarray | None = None  # (N,M,J,3) mm, NaN where unknown
    in_world: bool = False  # else in camera axes, y down
    error: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (N,), NaN where there is no truth
    measure: str = ""  # what the error is, in words
    unit: str = ""

    def __len__(self) -> int:
        return len(self.arrays.get("ids", ()))

    def name(self, row: int) -> str:
        """Subject, action, frame and view of a row, as far as they are known."""
        parts = [str(self.arrays[key][row]) for key in ("subjects", "actions") if key in self.arrays]
        parts = list(dict.fromkeys(part for part in parts if part))
        for key, word in (("frames", "frame"), ("views", "view")):
            values = self.arrays.get(key)
            if values is not None and values.shape == (len(self),):
                parts.append(f"{word} {values[row]}")
        return ", ".join(parts) or f"sample {self.arrays['ids'][row]}"

    def cameras(self, rows) -> Cameras | None:
        """Cameras of one row or of several, of the shape of `cameras` there; None where one is missing."""
        index = self.arrays.get("cameras")
        if index is None or (index[rows] < 0).any():
            return None
        fields = [torch.from_numpy(self.arrays[f"camera_{name}"][index[rows]]).double() for name in ("K", "R", "t", "dist", "size")]
        return Cameras(*fields)


def poses_of(arrays: dict[str, np.ndarray], skeleton: str = "") -> Poses:
    """The poses and their errors; without any where the arrays hold none.

    Args:
        skeleton: where the arrays name none.
    """
    name = str(arrays["skeleton"]) if "skeleton" in arrays else skeleton
    joints = get(name) if name in SKELETONS else None
    poses = Poses(arrays, joints, error=np.full(len(arrays.get("ids", ())), np.nan))
    if "X_world" in arrays:
        _several(poses)
    elif "X_cam" in arrays or "X_root" in arrays:
        _single(poses)
    elif "x_img" in arrays:
        _flat(poses)
    if poses.X is not None and joints is not None and poses.X.shape[2] != joints.num:
        poses.skeleton = None
    return poses


def _several(poses: Poses) -> None:
    a = poses.arrays
    poses.in_world = True
    there = a["found"][..., None].astype(bool) if "found" in a else np.ones((*a["X_world"].shape[:2], 1), bool)
    there = there & (a["valid"].astype(bool) if "valid" in a else np.ones(a["X_world"].shape[:3], bool))
    poses.X = np.where(there[..., None], a["X_world"], np.nan)
    truth, valid = a.get("X_world_true"), a.get("X_valid")
    if truth is None or valid is None or valid.shape != truth.shape[:3] or not valid.any():
        return
    valid = valid.astype(bool)
    poses.truth = np.where(valid[..., None], truth, np.nan)
    if truth.shape[2] != poses.X.shape[2]:
        return
    distance = person_distances(torch.from_numpy(np.nan_to_num(poses.X)), torch.from_numpy(truth), torch.from_numpy(valid))
    distance = distance.masked_fill(~torch.from_numpy(there.any(-1))[..., None], torch.inf).numpy()  # (N,P,M)
    nearest = np.minimum(distance.min(1, initial=np.inf), MISSED_MM)
    people = valid.any(-1)
    total = np.where(people, nearest, 0.0).sum(1)
    poses.error = np.where(people.any(1), total / np.maximum(people.sum(1), 1), np.nan)
    poses.measure = f"mean over the true people of the distance to the nearest person found, at most {MISSED_MM:g} mm"
    poses.unit = "mm"


def _single(poses: Poses) -> None:
    a = poses.arrays
    X = a["X_cam"] if "X_cam" in a else a["X_root"]
    root = poses.skeleton.root_index if poses.skeleton is not None and poses.skeleton.num == X.shape[1] else None
    truth, valid = a.get("X_cam_true"), None
    if truth is not None and truth.shape == X.shape:
        valid = a["X_valid"].astype(bool) if "X_valid" in a and a["X_valid"].shape == X.shape[:2] else np.ones(X.shape[:2], bool)
        truth = np.where(valid[..., None], truth, np.nan)
    else:
        truth = None
    if root is not None:
        X, truth = X - X[:, root, None], None if truth is None else truth - truth[:, root, None]
    poses.X = X[:, None]
    if truth is None:
        return
    poses.truth = truth[:, None]
    poses.error = _mean(np.linalg.norm(X - truth, axis=-1))
    poses.measure = "mean distance of the joints" + (" after both roots were put on each other (MPJPE)" if root is not None else "")
    poses.unit = "mm"


def _flat(poses: Poses) -> None:
    a = poses.arrays
    truth, conf = a.get("x_img_true"), a.get("conf_true")
    if truth is None or truth.shape != a["x_img"].shape:
        return
    error = np.linalg.norm(a["x_img"].astype(np.float64) - truth, axis=-1)
    if conf is not None and conf.shape == error.shape:
        error = np.where(conf > 0, error, np.nan)
    poses.error, poses.measure, poses.unit = _mean(error), "mean distance of the joints in the image", "px"
    if "boxes" in a:
        side = (a["boxes"][:, 2:] - a["boxes"][:, :2]).max(-1)
        poses.error = 100 * poses.error / np.where(side > 0, side, np.nan)
        poses.measure, poses.unit = "mean distance of the joints in the image, in percent of the box's longer side", "%"


def _mean(error: np.ndarray) -> np.ndarray:
    """Mean over the joints that have a truth; NaN without one.   (N,J) -> (N,)"""
    known = np.isfinite(error)
    total = np.where(known, error, 0.0).sum(-1)
    return np.where(known.any(-1), total / np.maximum(known.sum(-1), 1), np.nan)


def choose(poses: Poses, each: int = 3) -> dict[str, list[int]]:
    """Rows by group: best, worst and random, of different recordings as far as there are some; without errors random ones alone.

    No row is shown twice; the ones at random are always the same for the same number of rows.
    """
    known = np.flatnonzero(np.isfinite(poses.error))
    order = known[np.argsort(poses.error[known], kind="stable")]
    groups: dict[str, list[int]] = {}
    taken: set[int] = set()
    for name, ordered in (("best", order), ("worst", order[::-1])):
        if len(ordered):
            groups[name] = _apart(poses, [int(row) for row in ordered if row not in taken], each)
            taken.update(groups[name])
    drawn = np.random.default_rng(SEED).permutation(len(poses))
    groups["random"] = [int(row) for row in drawn[: each + len(taken)] if row not in taken][:each]
    return {name: rows for name, rows in groups.items() if rows}


def _apart(poses: Poses, ordered: list[int], count: int) -> list[int]:
    """The first rows of different subjects and actions, filled up with the first of all others."""
    first: dict[tuple, int] = {}
    for row in ordered:
        first.setdefault(tuple(str(poses.arrays[key][row]) for key in ("subjects", "actions") if key in poses.arrays), row)
        if len(first) == count:
            break
    chosen = list(first.values())
    chosen += [row for row in ordered[: 2 * count] if row not in chosen][: count - len(chosen)]
    return sorted(chosen, key=ordered.index)


def try_cameras(poses: Poses, rows) -> Cameras | None:
    """`Poses.cameras`; None also where the arrays do not fit one another."""
    try:
        return poses.cameras(rows)
    except (KeyError, IndexError, ValueError, TypeError, ParallaxError):
        return None
