"""What the page's 3D views show, as plain lists: poses beside the truth, and cameras around the people whom they see. Whole mm."""

from typing import Any

import numpy as np
import torch

from lib.drawing.space_view import frusta
from lib.geometry.camera import Cameras
from lib.report.samples import Poses, try_cameras

MOST_CAMERAS = 24  # of a rig: one that moves has as many as its film has frames


def bones(poses: Poses) -> list[list[Any]]:
    """Bones as [joint, joint, "left" | "right" | "center"]."""
    if poses.skeleton is None:
        return []
    side = {int(b): name for name, rows in poses.skeleton.limbs.items() for b in rows}
    return [[int(a), int(b), side[i]] for i, (a, b) in enumerate(poses.skeleton.bones)]


def pose_scene(poses: Poses, row: int) -> dict[str, Any]:
    """Predicted and true people of a sample, with the direction that stands upright."""
    truth = [] if poses.truth is None else people(poses.truth[row])
    return {"up": upright(poses, row), "people": people(poses.X[row]), "truth": truth}


def people(X: np.ndarray) -> list[list[list[int] | None]]:
    """(P,J,3) mm as lists: a joint without a place is None, a person without any is left out."""
    return [[[round(float(v)) for v in x] if np.isfinite(x).all() else None for x in pose] for pose in X if np.isfinite(pose).any()]


def upright(poses: Poses, row: int) -> list[int]:
    """The axis of the world that points upwards: the one nearest to the upper edges of the images; of camera axes always -y."""
    cameras = try_cameras(poses, row) if poses.in_world else None
    if not poses.in_world:
        return [0, -1, 0]
    return [0, 0, 1] if cameras is None else _up(cameras.R.reshape(-1, 3, 3).numpy())


def _up(R: np.ndarray) -> list[int]:
    mean = -R[:, 1].mean(0)
    axis = int(np.abs(mean).argmax())
    return [int(np.sign(mean[axis])) if i == axis else 0 for i in range(3)]


def camera_scene(poses: Poses, row: int) -> dict[str, Any] | None:
    """The cameras of a sample's recording around its people, in mm of the world; None where no camera is known."""
    rig = _rig(poses, row)
    if rig is None:
        return None
    cameras, names, count = rig
    scene = {"up": _up(cameras.R.numpy()), "people": [], "truth": [], "count": count}
    corners = frusta(cameras)
    if not np.isfinite(corners).all():
        return None
    scene["cameras"] = [{"name": name, "points": np.rint(c).astype(int).tolist()} for name, c in zip(names, corners, strict=True)]
    if poses.in_world:
        return scene | pose_scene(poses, row) | {"up": scene["up"]}
    own = try_cameras(poses, row)
    for key, place in (("X_cam", "people"), ("X_cam_true", "truth")):
        if own is not None and key in poses.arrays:
            X = own.to_world(torch.from_numpy(poses.arrays[key][row].astype(np.float64))).numpy()
            if key == "X_cam_true" and "X_valid" in poses.arrays:
                X = np.where(poses.arrays["X_valid"][row][:, None].astype(bool), X, np.nan)
            scene[place] = people(X[None])
    return scene


def _rig(poses: Poses, row: int) -> tuple[Cameras, list[str], int] | None:
    """Cameras, their names, and how many there are in all: of a whole frame its own, of a person those of the same recording."""
    a = poses.arrays
    if "cameras" not in a or not len(a["camera_K"]):
        return None
    views = a.get("views")
    if a["cameras"].ndim == 2:
        cameras = try_cameras(poses, row)
        if cameras is None:
            return None
        known = views is not None and views.shape == a["cameras"].shape
        return cameras, [f"view {v}" for v in (views[row] if known else range(len(cameras)))], len(cameras)
    same = np.ones(len(poses), bool)
    for key in ("subjects", "actions"):
        if key in a:
            same &= a[key] == a[key][row]
    rows = np.flatnonzero(same & (a["cameras"] >= 0))
    index = a["cameras"][rows]
    calibrations = np.concatenate([a["camera_R"][index].reshape(-1, 9) * 1e3, a["camera_t"][index]], 1)
    # told apart by where they are: sets of films have a calibration for each frame even where the camera stands still
    rows = rows[np.unique(np.rint(calibrations), axis=0, return_index=True)[1]]
    rows = rows[np.argsort(a["cameras"][rows], kind="stable")]
    count = len(rows)
    if count > MOST_CAMERAS:
        rows = rows[np.linspace(0, count - 1, MOST_CAMERAS).round().astype(int)]
    cameras = try_cameras(poses, rows) if count else None
    if cameras is None:
        return None
    named = views is not None and views.shape == (len(poses),) and len(np.unique(views[rows])) == len(rows)
    return cameras, [f"view {views[r]}" if named else "" for r in rows], count
