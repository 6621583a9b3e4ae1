"""People over time: 2D keypoints frame by frame, and the 3D poses they were made from. What lifting is trained and judged on.

A track is one person before one camera, frame after frame. All tracks lie behind one another in flat arrays, so that a window of
frames is a slice, and loaders and devices share one table. Lengths in mm, keypoints in px of the image; 2D and 3D may have different
joints, as detectors and motion capture do.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.errors import DataError
from lib.geometry.camera import Cameras

TRACK_FIELDS = ("subject", "action", "view", "person", "camera", "has_3d")


@dataclass(frozen=True, eq=False)
class Tracks:
    """S tracks of N frames in all, before C cameras."""

    layout: str  # skeleton of the keypoints, a name of lib.skeleton
    skeleton: str  # of the 3D poses; "" = there are none
    keypoints: np.ndarray  # (N,J_in,F) float32: x, y px as the image shows them (distorted), then further features such as scores
    X_cam: np.ndarray  # (N,J,3) float32 mm in the camera's frame; 0 where the track has no 3D
    start: np.ndarray  # (S+1,) int64: track s is the rows start[s]:start[s + 1]
    subject: np.ndarray  # (S,) str
    action: np.ndarray  # (S,) str, trial included, such as "Walking 1"
    view: np.ndarray  # (S,) int32, number of the camera in its rig
    person: np.ndarray  # (S,) int32
    camera: np.ndarray  # (S,) int32, row of cameras
    has_3d: np.ndarray  # (S,) bool
    cameras: Cameras  # (C,) float64; size is known, K is NaN where the intrinsics are not
    tangential: str = "opencv"  # lens formula, see lib.geometry.camera.distort_norm
    fps: float = 0.0  # frames per second; 0 = unknown

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each track, (S,) int64."""
        return np.diff(self.start)

    @property
    def track(self) -> np.ndarray:
        """The track of each row, (N,) int64."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def has_intrinsics(self) -> np.ndarray:
        """Whether each track's camera is calibrated, (S,) bool."""
        known = torch.isfinite(self.cameras.K).flatten(1).all(1).numpy()
        return known[self.camera]

    def base_action(self) -> np.ndarray:
        """The actions without their trials: what stands before the first space.   -> (S,) str"""
        return np.array([name.split(" ")[0] for name in self.action.tolist()], dtype=str)

    def observing(self) -> Cameras:
        """The camera of every track.   -> Cameras (S,)"""
        return self.cameras[torch.from_numpy(self.camera.astype(np.int64))]

    def select(self, tracks: np.ndarray | Sequence[int]) -> Tracks:
        """Some tracks, in the given order (indices or a boolean mask)."""
        tracks = np.flatnonzero(tracks) if np.asarray(tracks).dtype == bool else np.asarray(tracks, np.int64)
        return self._rows(tracks, [np.arange(self.start[s], self.start[s + 1]) for s in tracks])

    def without_3d(self) -> Tracks:
        """The same tracks, of whose poses nothing is known."""
        return dataclasses.replace(self, has_3d=np.zeros(len(self), bool))

    def thinned(self, step: int) -> Tracks:
        """Every `step`-th frame of each track, from its first."""
        if step < 1:
            raise DataError(f"tracks: the frame step is {step}, expected 1 or more (1 keeps every frame)")
        if step == 1:
            return self
        thin = self._rows(np.arange(len(self)), [np.arange(a, b, step) for a, b in zip(self.start, self.start[1:], strict=False)])
        return dataclasses.replace(thin, fps=self.fps / step)

    def subset(self, share: float, step: int = 1) -> Tracks:
        """A share of each track, in one piece, every `step`-th frame of it; where it lies depends on the track's length alone.

        As VideoPose3D's --subset (Pavllo et al., CVPR 2019), so that the same labels are chosen.
        """
        if not 0 < share <= 1:
            raise DataError(f"tracks: a subset of {share}, expected a share above 0 and up to 1")
        if share == 1:
            return self.thinned(step)
        pieces = []
        for first, length in zip(self.start[:-1].tolist(), self.lengths.tolist(), strict=True):
            count = round(length // step * share) * step
            begin = hashed_number(0, length - count + 1, str(length))
            pieces.append(first + np.arange(begin, begin + count, step))
        kept = self._rows(np.arange(len(self)), pieces)
        return dataclasses.replace(kept, fps=self.fps / step)

    def recordings(self, share: float) -> Tracks:
        """A share of each subject's recordings, at least one, before all cameras; which ones depends on their names alone."""
        if not 0 < share <= 1:
            raise DataError(f"tracks: a subset of {share}, expected a share above 0 and up to 1")
        kept = set()
        for subject in np.unique(self.subject).tolist():
            names = np.unique(self.action[self.subject == subject]).tolist()
            names.sort(key=lambda name: hashlib.sha256(f"{subject} {name}".encode()).digest())
            kept |= {(subject, name) for name in names[: max(1, round(share * len(names)))]}
        return self.select(np.array([key in kept for key in zip(self.subject.tolist(), self.action.tolist(), strict=True)], bool))

    def protocol(self, subjects: Sequence[str] = (), actions: Sequence[str] = (), views: Sequence[int] = ()) -> Tracks:
        """The tracks of some subjects (in the given order), actions and views; empty = all.

        An action means all of its trials ("Walking": "Walking 1", "Walking 2"), one trial is named in full, and a name that ends in *
        means all names that begin so.

        Raises:
            DataError: a subject, action or view that does not occur.
        """
        order = np.arange(len(self))
        if len(subjects):
            _known("subjects", subjects, np.unique(self.subject).tolist())
            order = np.concatenate([np.flatnonzero(self.subject == name) for name in dict.fromkeys(subjects)])
        if len(actions):
            masks = [self._named(name) for name in actions]
            missing = [name for name, mask in zip(actions, masks, strict=True) if not mask.any()]
            _known("actions", missing, np.unique(self.base_action()).tolist())
            order = order[np.logical_or.reduce(masks)[order]]
        if len(views):
            _known("views", views, np.unique(self.view).tolist())
            order = order[np.isin(self.view, views)[order]]
        return self if len(order) == len(self) and (order == np.arange(len(self))).all() else self.select(order)

    def _named(self, name: str) -> np.ndarray:
        if name.endswith("*"):
            return np.char.startswith(self.action, name[:-1])
        return (self.action == name) | (self.base_action() == name)

    def _rows(self, tracks: np.ndarray, rows: Sequence[np.ndarray]) -> Tracks:
        start = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
        rows = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
        columns = {name: getattr(self, name)[tracks] for name in TRACK_FIELDS}
        return dataclasses.replace(self, keypoints=self.keypoints[rows], X_cam=self.X_cam[rows], start=start, **columns)

    def check(self, name: str) -> Tracks:
        """Itself, after every field was found to have the shape and range it promises.

        Raises:
            DataError: naming what was read, the field or track, what was found and expected, and the next step.
        """
        frames, tracks = len(self.keypoints), len(self)
        joints = skeletons.get(self.layout).num
        if self.keypoints.ndim != 3 or self.keypoints.shape[1] != joints or self.keypoints.shape[2] < 2:
            raise DataError(
                f"{name}: keypoints have shape {self.keypoints.shape}, expected (frames, {joints}, 2 or more) for the layout "
                f"{self.layout}; name the layout that the detector uses"
            )
        poses = skeletons.get(self.skeleton).num if self.skeleton else self.X_cam.shape[1]
        if self.X_cam.shape != (frames, poses, 3):
            raise DataError(f"{name}: 3D poses have shape {self.X_cam.shape}, expected ({frames}, {poses}, 3) for skeleton {self.skeleton}")
        if self.start.shape != (tracks + 1,) or self.start[0] != 0 or self.start[-1] != frames or (self.lengths < 0).any():
            raise DataError(f"{name}: the tracks do not cover the {frames} frames one after another; write the file again")
        for field in TRACK_FIELDS:
            if getattr(self, field).shape != (tracks,):
                raise DataError(f"{name}: field {field} has shape {getattr(self, field).shape}, expected ({tracks},)")
        bad = ~np.isfinite(self.keypoints).all((1, 2)) | ~np.isfinite(self.X_cam).all((1, 2))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            s = int(self.track[row])
            place = f"frame {row - self.start[s]} of {self.subject[s]} '{self.action[s]}' camera {self.view[s]}"
            raise DataError(
                f"{name}: {int(bad.sum())} frames hold NaN or infinite numbers, the first is {place}; interpolate missing detections first "
                "(scripts/prepare.py keypoints does)"
            )
        size = self.observing().size
        if tracks and not bool((size > 0).all()):
            raise DataError(f"{name}: the image size of a camera is not known, expected width and height in px of each; add them")
        return self


def hashed_number(low: int, high: int, text: str) -> int:
    """A number in low..high that only depends on the text; VideoPose3D's `deterministic_random`."""
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    return int(digest / (2**32 - 1) * (high - low)) + low


def from_annotations(ann: Annotations, tangential: str = "opencv") -> Tracks:
    """The tracks in a table of annotations: each person of a sequence before each camera, in the order of the frames.

    Raises:
        DataError: a camera moves or is missing, or a joint is never seen in a whole track (gaps repeat what was last seen).
    """
    if (ann.camera < 0).any():
        raise DataError("tracks: some observations have no camera, expected one for each (its image size scales the keypoints)")
    rows, start = ann.group("sequence", "view", "person")
    first = rows[start[:-1]]
    if any(len(np.unique(ann.camera[rows[a:b]])) > 1 for a, b in zip(start, start[1:], strict=False)):
        raise DataError("tracks: a camera moves within a sequence; a lifting network needs cameras that stand still")
    pose = ann.pose[rows]
    known = np.zeros((len(rows), ann.num_joints), bool)
    known[pose >= 0] = ann.X_valid[pose[pose >= 0]]
    complete = np.logical_and.reduceat(known.all(1), start[:-1]) if len(rows) else np.zeros(0, bool)
    X_world = np.zeros((len(rows), ann.num_joints, 3), np.float32)
    X_world[known] = ann.X_world[pose[pose >= 0]][known[pose >= 0]]
    X_cam = ann.observing(rows).to_cam(torch.from_numpy(X_world).double()).float().numpy()
    X_cam[~np.repeat(complete, np.diff(start))] = 0
    trial = [f"{a.decode()} {s.decode()}".strip() for a, s in zip(ann.actions, ann.subactions, strict=True)]
    return Tracks(
        layout=ann.skeleton,
        skeleton=ann.skeleton,
        keypoints=_last_seen(ann.x_img[rows], ann.conf[rows] > 0, start),
        X_cam=X_cam,
        start=start.astype(np.int64),
        subject=np.char.decode(ann.subjects[ann.sequence[first]], "utf-8"),
        action=np.array([trial[s] for s in ann.sequence[first]], dtype=str),
        view=ann.view[first],
        person=ann.person[first],
        camera=ann.camera[first],
        has_3d=complete,
        cameras=ann.cameras,
        tangential=tangential,
        fps=ann.fps,
    )


def concat(tables: Sequence[Tracks]) -> Tracks:
    """One table of several, of the same joints; fps becomes 0 where they differ.

    Raises:
        DataError: no table, or different joints, features or lens formulas.
    """
    if not tables:
        raise DataError("tracks: no table was given, expected one or more")
    first = tables[0]
    for other in tables[1:]:
        for what in ("layout", "skeleton", "tangential"):
            if getattr(first, what) != getattr(other, what):
                raise DataError(f"tracks: {what} {getattr(first, what)} and {getattr(other, what)} are mixed; convert one of the two")
        if first.keypoints.shape[2] != other.keypoints.shape[2]:
            found = f"{first.keypoints.shape[2]} and {other.keypoints.shape[2]}"
            raise DataError(f"tracks: keypoints of {found} features are mixed; drop the scores")
    rows = np.cumsum([0, *(len(t.keypoints) for t in tables)])
    cameras = np.cumsum([0, *(len(t.cameras) for t in tables)])
    plain = ("keypoints", "X_cam", "subject", "action", "view", "person", "has_3d")
    joined = {name: np.concatenate([getattr(t, name) for t in tables]) for name in plain}
    return dataclasses.replace(
        first,
        **joined,
        start=np.concatenate([[0], *(t.start[1:] + r for t, r in zip(tables, rows, strict=False))]).astype(np.int64),
        camera=np.concatenate([t.camera + c for t, c in zip(tables, cameras, strict=False)]).astype(np.int32),
        cameras=Cameras.cat([t.cameras for t in tables]),
        fps=first.fps if all(t.fps == first.fps for t in tables) else 0.0,
    )


def _last_seen(x_img: np.ndarray, seen: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Joints that are not seen take the place where they were seen last in their track.   x_img (N,J,2), seen (N,J) -> (N,J,2)"""
    if seen.all():
        return np.ascontiguousarray(x_img)
    row = np.broadcast_to(np.arange(len(x_img))[:, None], seen.shape)
    begin = np.repeat(start[:-1], np.diff(start))[:, None]
    last = np.maximum.accumulate(np.where(seen, row, -1), 0)
    following = np.minimum.accumulate(np.where(seen, row, len(x_img))[::-1], 0)[::-1]  # before the first sight: the first one
    end = np.repeat(start[1:], np.diff(start))[:, None]
    source = np.where(last >= begin, last, np.where(following < end, following, -1))
    if (source < 0).any():
        raise DataError(
            f"tracks: joint {int(np.argwhere(source < 0)[0, 1])} is never seen in a whole track; choose a skeleton that the 2D joints have"
        )
    return x_img[source, np.arange(x_img.shape[1])]


def _known(what: str, asked: Sequence, known: Sequence) -> None:
    missing = [name for name in asked if name not in known]
    if missing:
        raise DataError(f"tracks: no {what} {missing}, expected some of {list(known)}; correct the list of {what}")
