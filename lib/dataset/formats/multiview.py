"""What layouts of several people before a fixed rig share: their table, and the rigs of a table that is written."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lib.dataset.annotations import Annotations
from lib.errors import DataError
from lib.geometry.camera import Cameras


def observed(
    skeleton: str,
    cameras: Cameras,  # (V,) float64; slot v of the rig is row v
    frame: np.ndarray,  # (P,) int, of each person at an instant
    person: np.ndarray,  # (P,) int
    X_world: np.ndarray,  # (P,J,3) mm
    X_valid: np.ndarray,  # (P,J) bool
    image: Callable[[int, int], str],  # (frame, slot) -> path below the root
    subject: str,
    action: str = "",
    fps: float = 0.0,
) -> Annotations:
    """One sequence in which every camera sees everyone: rows by frame, then view, then person.

    2D joints are the exact projections. `conf` is 1 where a joint is known in 3D and in front of the camera, `visible` where it is in the
    picture besides, between the middles of its outermost pixels (0 to width - 1, as VoxelPose's tables have it); boxes are those of the
    visible joints.
    """
    order = np.lexsort([person, frame])
    frame, person, X, valid = frame[order], person[order], X_world[order], X_valid[order]
    views, people = len(cameras), len(frame)
    frames, instant = np.unique(frame, return_inverse=True)
    rig = cameras[:, None]  # (V,1) against (P,J,3)
    points = torch.from_numpy(np.where(valid[..., None], X, 0.0).astype(np.float64))
    X_cam = rig.to_cam(points)  # (V,P,J,3)
    pixels = rig.project_cam(X_cam)
    inside = rig.sees(X_cam, pixels, -0.5).numpy()
    front = X_cam[..., 2].numpy() > 0
    p, v = (index.ravel() for index in np.meshgrid(np.arange(people), np.arange(views), indexing="ij"))
    rows = np.lexsort([p, v, instant[p]])
    p, v = p[rows], v[rows]
    x, conf = pixels.numpy()[v, p], front[v, p] & valid[p]
    visible = conf & inside[v, p]
    columns = {
        "sequence": np.zeros(len(p)),
        "frame": frame[p],
        "view": v,
        "person": person[p],
        "image": instant[p] * views + v,
        "camera": v,
        "pose": p,
    }
    return Annotations(
        skeleton=skeleton,
        cameras=cameras,
        X_world=np.where(valid[..., None], X, 0).astype(np.float32),
        X_valid=valid,
        **{key: value.astype(np.int32) for key, value in columns.items()},
        x_img=np.where(conf[..., None], x, 0).astype(np.float32),
        conf=conf.astype(np.float32),
        visible=visible,
        box=boxes_of(x, visible),
        images=names_of(image, frames, views),
        subjects=np.array([subject.encode()]),
        actions=np.array([action.encode()]),
        subactions=np.array([b""]),
        fps=fps,
    )


def names_of(image: Callable[[int, int], str], frames: Sequence[int], views: int) -> np.ndarray:
    """The images of all frames and views, views innermost.   -> (F*V,) bytes"""
    return np.array([image(int(f), v).encode() for f in frames for v in range(views)], dtype=bytes)


def boxes_of(x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Boxes around the joints that are seen, a tenth wider on each side; NaN for fewer than two.   (N,J,2), (N,J) -> (N,4) float32"""
    low = np.where(seen[..., None], x, np.inf).min(1)
    high = np.where(seen[..., None], x, -np.inf).max(1)
    few = seen.sum(1) < 2
    low, high = (np.where(few[:, None], np.nan, value) for value in (low, high))
    margin = 0.1 * (high - low)
    return np.concatenate([low - margin, high + margin], -1).astype(np.float32)


def rigs(ann: Annotations) -> tuple[np.ndarray, list[dict[int, int]]]:
    """The rig of each sequence that has rows.

    Returns:
        group (S,) int64: number of the rig of each sequence, -1 for one without rows; per rig its cameras' rows by view.

    Raises:
        DataError: an observation without a camera, or a camera that moves within a sequence.
    """
    if (ann.camera < 0).any():
        raise DataError("observations without a camera have no place in a layout of a calibrated rig; leave them out")
    triples = np.unique(np.stack([ann.sequence, ann.view, ann.camera], 1), axis=0)
    group = np.full(len(ann.subjects), -1, np.int64)
    found: list[dict[int, int]] = []
    for s in np.unique(ann.sequence):
        rows = triples[triples[:, 0] == s]
        if len(np.unique(rows[:, 1])) < len(rows):
            raise DataError(f"a camera of sequence {s} moves, which has no place in a layout of a fixed rig; leave the sequence out")
        rig = {int(view): int(camera) for _, view, camera in rows}
        # a camera that saw nobody in one sequence is still of the same rig
        fitting = [k for k, other in enumerate(found) if all(other.get(view, camera) == camera for view, camera in rig.items())
                   and set(other.values()) & set(rig.values())]  # fmt: skip
        if fitting:
            found[fitting[0]].update(rig)
        else:
            found.append(rig)
        group[s] = fitting[0] if fitting else len(found) - 1
    return group, found


def renumbered(ann: Annotations, sequences: np.ndarray, start: int = 0, step: int = 1) -> np.ndarray:
    """Numbers `start`, `start + step`, ... for the frames of some sequences, one after the other.   -> (N,) int64, -1 elsewhere"""
    rows = np.flatnonzero(np.isin(ann.sequence, sequences))
    number = np.full(len(ann), -1, np.int64)
    if len(rows):
        _, place = np.unique(np.stack([ann.sequence[rows], ann.frame[rows]], 1), axis=0, return_inverse=True)
        number[rows] = start + step * np.ravel(place)
    return number


class ChosenImages:
    """Some of the images, numbered from 0; can be sent to another process."""

    def __init__(self, image: Callable[[int], np.ndarray], rows: Sequence[int]):
        self.image, self.rows = image, list(rows)

    def __call__(self, i: int) -> np.ndarray:
        return self.image(self.rows[i])
