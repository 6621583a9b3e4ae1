"""People in space through a recording of several cameras, and their files (npz, JSON, CSV)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import MALFORMED, DataError, ParallaxError
from lib.prediction.motion_files import csv_bytes, npz_bytes, read_npz, save_as
from lib.skeleton import Skeleton, get

UNITS = "X_world mm, X_cam = R X_world + t; reprojection px of the stored images, mean over the views used"
ARRAYS = ("frames", "frame", "person", "score", "X_world", "valid", "views", "reprojection")


@dataclass(frozen=True, eq=False)
class RigPeople:
    """N people, each at one instant, ordered by instant and number. Arrays are NumPy."""

    skeleton: Skeleton  # J joints
    cameras: tuple[str, ...]  # names
    frames: np.ndarray  # (F,) int, all instants that were looked at
    frame: np.ndarray  # (N,) int, instant
    person: np.ndarray  # (N,) int, the same through the recording
    score: np.ndarray  # (N,) float32
    X_world: np.ndarray  # (N,J,3) float32 mm, NaN where not valid
    valid: np.ndarray  # (N,J) bool
    views: np.ndarray  # (N,J,V) bool, the cameras a joint was made from; of a network: those in whose picture it lies
    reprojection: np.ndarray  # (N,J) float32 px, NaN where nothing was measured in 2D
    fps: float = 0.0  # frames per second of the recording, whose numbers `frame` holds; 0 = unknown
    made_by: str = ""

    def __len__(self) -> int:
        return len(self.frame)

    def summary(self) -> str:
        """One line about what there is."""
        number, seen = len(np.unique(self.person)), len(np.unique(self.frame))
        text = f"{len(self.frames)} frames, people in {seen} of them; {number} {'track' if number == 1 else 'tracks'}"
        known = self.reprojection[self.valid & np.isfinite(self.reprojection)]
        if len(known):
            text += f"; reprojection error {np.median(known):.1f} px (median), from {self.views[self.valid].sum(-1).mean():.1f} views"
        return text

    def save(self, path: str | Path) -> Path:
        """Writes them; the ending decides the form, and the file appears whole or not at all.

        .npz: all arrays, joint names and units, read again by `RigPeople.read`. .json: people by instant. .csv: a row per instant, person
        and joint.

        Raises:
            RunError: the ending is none of these, or the file cannot be written.
        """
        return save_as(path, {".npz": self._npz, ".json": self._json, ".csv": self._csv})

    def _facts(self) -> dict:
        return {
            "skeleton": self.skeleton.name, "joints": list(self.skeleton.joints), "cameras": list(self.cameras), "units": UNITS,
            "fps": float(self.fps), "made_by": self.made_by,
        }  # fmt: skip

    def _npz(self) -> bytes:
        return npz_bytes({k: np.asarray(v) for k, v in self._facts().items()} | {k: getattr(self, k) for k in ARRAYS})

    def _json(self) -> bytes:
        people: dict[int, list[dict]] = {int(f): [] for f in self.frames}
        for i in range(len(self)):
            joints = {
                name: {
                    "X_world": np.round(self.X_world[i, j].astype(float), 3).tolist(),
                    "views": [self.cameras[v] for v in np.flatnonzero(self.views[i, j])],
                    "reprojection": round(float(self.reprojection[i, j]), 3) if np.isfinite(self.reprojection[i, j]) else None,
                }
                for j, name in enumerate(self.skeleton.joints)
                if self.valid[i, j]
            }
            entry = {"person": int(self.person[i]), "score": round(float(self.score[i]), 4), "joints": joints}
            people[int(self.frame[i])].append(entry)
        frames = [{"frame": frame, "people": found} for frame, found in people.items()]
        return (json.dumps(self._facts() | {"frames": frames}) + "\n").encode()

    def _csv(self) -> bytes:
        time = ["time_s"] if self.fps else []
        rows = [["frame", *time, "person", "joint", "x_mm", "y_mm", "z_mm", "views", "reprojection_px"]]
        for i, j in zip(*np.nonzero(self.valid), strict=True):
            now = [f"{self.frame[i] / self.fps:.4f}"] if self.fps else []
            error = f"{self.reprojection[i, j]:.3f}" if np.isfinite(self.reprojection[i, j]) else ""
            used = " ".join(self.cameras[v] for v in np.flatnonzero(self.views[i, j]))
            where = (f"{v:.3f}" for v in self.X_world[i, j])
            rows.append([self.frame[i], *now, self.person[i], self.skeleton.joints[j], *where, used, error])
        return csv_bytes(rows)

    @staticmethod
    def read(path: str | Path) -> RigPeople:
        """People from the npz file that `save` wrote.

        Raises:
            DataError: no such file, or not one of these.
        """
        try:
            given = read_npz(path)
            facts = {"cameras": tuple(given["cameras"].tolist()), "fps": float(given["fps"]), "made_by": str(given["made_by"])}
            return RigPeople(get(str(given["skeleton"])), **facts, **{name: given[name] for name in ARRAYS})
        except (OSError, ParallaxError, *MALFORMED) as error:
            raise DataError(f"{path}: holds no people of a rig ({error}); expected an npz file that predict.py --rig wrote") from error
