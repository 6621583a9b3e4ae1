"""One person's 3D motion: what lifting makes of keypoints, and its files (npz, JSON, CSV)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.errors import MALFORMED, DataError, ParallaxError
from lib.geometry.camera import TANGENTIAL, Cameras
from lib.prediction.motion_files import csv_bytes, npz_bytes, read_npz, save_as
from lib.skeleton import Skeleton, get
from lib.vis import view_axes

PITCH_DEG = 12.6  # how far Human3.6M's cameras look down, on average over its 44; networks learn it along with the poses
UNITS = "keypoints px, X_* mm; camera axes: x right, y down, z forward"
FLOOR_MM = 500.0  # how far a clip may stay away from height 0 of its world: further, and the floor must lie elsewhere
FORMS = (".npz", ".json", ".csv")
FIELDS = "expected K (3x3), dist (4 or 5), size (2), R (3x3) and t (3) as finite numbers"
ARRAYS = ("keypoints", "X_root", "X_cam", "X_world", "X_before", "reprojection_px")
UPS = ("z", "y", "-y")


@dataclass(frozen=True, eq=False)
class Lifted:
    """T frames of one person. Arrays are float32 NumPy."""

    skeleton: Skeleton  # of the 3D poses, J joints
    layout: Skeleton  # of the keypoints, J_in joints
    keypoints: np.ndarray  # (T,J_in,2) px as given, in the layout of the network
    X_root: np.ndarray  # (T,J,3) mm relative to the root joint, camera axes: x right, y down, z forward
    X_cam: np.ndarray | None = None  # (T,J,3) mm from the camera; None = nothing says where the person is
    X_world: np.ndarray | None = None  # (T,J,3) mm in the world of the given camera; None = no R, t were given
    R: np.ndarray | None = None  # (3,3) world to camera, beside X_world
    t: np.ndarray | None = None  # (3,) mm
    up: str = "z"  # the axis of that world that points upwards: z, y or -y
    size: tuple[int, int] = (0, 0)  # width, height of the images in px
    fps: float = 0.0  # frames per second; 0 = unknown
    assumed: tuple[str, ...] = ()  # what had to be assumed, in words
    X_before: np.ndarray | None = None  # (T,J,3) mm, X_root before a correction; None = there was none
    reprojection_px: np.ndarray | None = None  # (T,2) beside X_before: from poses' images to keypoints, before, after; NaN = too few

    def __len__(self) -> int:
        return len(self.X_root)

    @property
    def best(self) -> tuple[str, np.ndarray]:
        """Name and values of the poses that say most: X_world, else X_cam, else X_root."""
        return next((name, X) for name in ("X_world", "X_cam", "X_root") if (X := getattr(self, name)) is not None)

    def standing(self, X_cam=None, settle: bool | None = None) -> np.ndarray:
        """Poses for pictures: z up with the floor at 0, y ahead of the camera, x to its right, mm.

        Of a camera without R and t, the average pitch of Human3.6M's cameras is assumed.

        Args:
            X_cam: (T,J,3) mm in the camera's frame, such as the truth; None = the poses of this motion.
            settle: put the lowest point of the whole clip on the floor (VideoPose3D's rule); None = where the floor is not known: without
                R and t, and in a world whose origin is clearly not on the floor.
        """
        own = self.X_root if self.X_cam is None else self.X_cam
        X = np.asarray(own if X_cam is None else X_cam, np.float64)
        if self.R is None:
            right, up, ahead = view_axes("-y", 0.0, -PITCH_DEG)
            return _settled(X @ np.stack([right, ahead, up]).T, settle is not False)
        up = view_axes(self.up)[1]
        ahead = self.R[2] - (self.R[2] @ up) * up
        ahead = ahead / np.linalg.norm(ahead) if np.linalg.norm(ahead) > 1e-3 else view_axes(self.up)[2]  # it looks straight down
        upright = (X - self.t) @ self.R @ np.stack([np.cross(ahead, up), ahead, up]).T
        return _settled(upright, abs(upright[..., 2].min()) > FLOOR_MM if settle is None else settle)

    def save(self, path: str | Path) -> Path:
        """Writes the motion; the ending decides the form, and the file appears whole or not at all.

        .npz: all arrays, joint names and units, read again by `Lifted.read`. .json: the same as text. .csv: one row per frame of the
        poses that say most (`best`), columns `joint.x_mm`.

        Raises:
            RunError: the ending is none of these, or the file cannot be written.
        """
        return save_as(path, dict(zip(FORMS, (self._npz, self._json, self._csv), strict=True)))

    def _facts(self) -> dict:
        return {
            "skeleton": self.skeleton.name, "joints": list(self.skeleton.joints), "parents": list(self.skeleton.parents),
            "layout": self.layout.name, "keypoint_joints": list(self.layout.joints), "units": UNITS, "fps": float(self.fps),
            "size": list(self.size), "up": self.up, "assumed": list(self.assumed),
        }  # fmt: skip

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name: X for name in (*ARRAYS, "R", "t") if (X := getattr(self, name)) is not None}

    def _npz(self) -> bytes:
        facts = {name: np.asarray(value) if value != [] else np.zeros(0, "U1") for name, value in self._facts().items()}
        return npz_bytes(facts | self._arrays())

    def _json(self) -> bytes:
        rounded = {name: np.round(np.asarray(X, np.float64), 3 if name in ARRAYS else 9) for name, X in self._arrays().items()}
        values = {name: np.where(np.isfinite(X), X, None).tolist() for name, X in rounded.items()}  # JSON knows no NaN
        frames = [{"frame": i, **{name: values[name][i] for name in ARRAYS if name in values}} for i in range(len(self))]
        camera = {name: values[name] for name in ("R", "t") if name in values}
        return (json.dumps(self._facts() | camera | {"frames": frames}) + "\n").encode()

    def _csv(self) -> bytes:
        timed = ["time_s"] if self.fps else []
        rows = [["frame", *timed, *(f"{joint}.{axis}_mm" for joint in self.skeleton.joints for axis in "xyz")]]
        for i, pose in enumerate(self.best[1].reshape(len(self), -1)):
            now = [f"{i / self.fps:.4f}"] if self.fps else []
            rows.append([str(i), *now, *(f"{v:.3f}" for v in pose)])
        return csv_bytes(rows)

    @staticmethod
    def read(path: str | Path) -> Lifted:
        """A motion from the npz file that `save` wrote.

        Raises:
            DataError: no such file, or not one of these.
        """
        try:
            given = read_npz(path)
            arrays = {name: given[name] for name in (*ARRAYS, "R", "t") if name in given}
            names = {name: get(str(given[name])) for name in ("skeleton", "layout")}
            facts = {"up": str(given["up"]), "fps": float(given["fps"]), "assumed": tuple(given["assumed"].tolist())}
            motion = Lifted(**names, **arrays, **facts, size=tuple(given["size"].tolist()))
        except (OSError, ParallaxError, *MALFORMED) as error:
            raise DataError(f"{path}: is no motion ({error}); expected an npz file that scripts/predict.py --keypoints wrote") from error
        return motion


@dataclass(frozen=True, eq=False)
class OwnCamera:
    """A camera of one's own and the conventions it comes with."""

    camera: Cameras  # float64; R = 1, t = 0 where the place of the camera is not known
    placed: bool = False  # whether R and t are known
    tangential: str = "opencv"  # lens formula, see lib.geometry.camera.distort_norm
    up: str = "z"  # the world axis that points upwards

    @staticmethod
    def make(camera, size: tuple[int, int]) -> OwnCamera:
        """From (3,3) intrinsics in px, `Cameras` (R and t count as known unless they are 1 and 0) or itself, for images of `size`.

        Raises:
            DataError: no camera or several, intrinsics of another shape or not positive, or the camera belongs to images of another size.
        """
        if not isinstance(camera, OwnCamera):
            if not isinstance(camera, Cameras):
                try:
                    K = np.asarray(camera, np.float64)
                except MALFORMED:
                    raise DataError(f"camera: found {type(camera).__name__}, expected (3, 3) intrinsics or Cameras") from None
                if K.shape != (3, 3):
                    raise DataError(f"camera: intrinsics of shape {K.shape}, expected (3, 3), in px of the image")
                camera = _made("camera", K=K)
            camera = camera.to("cpu", torch.float64)
            camera = OwnCamera(camera, not (torch.equal(camera.R, torch.eye(3).to(camera.R)) and not camera.t.any()))
        if camera.camera.shape:
            raise DataError(f"camera: {tuple(camera.camera.shape)} cameras were given, expected one")
        K, known = camera.camera.K, camera.camera.size
        for name in ("K", "R", "t", "dist"):
            if not bool(torch.isfinite(getattr(camera.camera, name)).all()):
                raise DataError(f"camera: its {name} holds NaN or infinite numbers; expected finite ones")
        if not bool((K.diagonal() > 0).all()):
            raise DataError(f"camera: focal lengths {K[0, 0]:g}, {K[1, 1]:g}, expected numbers above 0, in px of the image")
        if bool((known > 0).all()) and tuple(known.tolist()) != tuple(map(float, size)):
            found = " x ".join(f"{v:g}" for v in known.tolist())
            raise DataError(f"camera: calibrated for images of {found} px, but these are {size[0]} x {size[1]}; scale its K to them")
        return camera

    @staticmethod
    def read(path: str | Path) -> OwnCamera:
        """From JSON: K (3x3, px), and where known dist (k1 k2 p1 p2 k3), size (width, height), R and t (mm, X_cam = R X_world + t),
        up ("z", the axis of the world that points upwards: z, y, -y) and tangential ("opencv", "h36m").

        Raises:
            DataError: the file cannot be read, lacks K, has other keys, or a value does not fit.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, *MALFORMED) as error:
            raise DataError(f"{path}: the camera cannot be read ({error}); expected JSON with K, see --help") from error
        keys = {"K", "dist", "size", "R", "t", "up", "tangential"}
        if not isinstance(values, dict) or "K" not in values or set(values) - keys or ("R" in values) != ("t" in values):
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise DataError(f"{path}: holds {found}, expected K and, where known, dist, size, R with t, up, tangential")
        up, tangential = values.get("up", "z"), values.get("tangential", "opencv")
        if up not in tuple(UPS) or tangential not in tuple(TANGENTIAL):  # a value may be a list, which a mapping cannot be asked for
            raise DataError(f"{path}: up {up!r}, tangential {tangential!r}, expected one of {UPS} and one of {tuple(TANGENTIAL)}")
        try:
            fields = {name: np.array(values[name], np.float64) for name in ("K", "dist", "size", "R", "t") if name in values}
        except MALFORMED as error:
            raise DataError(f"{path}: {error}; {FIELDS}") from error
        camera = _made(path, **fields)
        if camera.shape:
            raise DataError(f"{path}: holds {tuple(camera.shape)} cameras, as its numbers are nested; {FIELDS}")
        return OwnCamera(camera, "R" in values, tangential, up)


def _made(where: str | Path, **fields: np.ndarray) -> Cameras:
    """A camera in float64, at the origin without R and t; what cannot be one is answered with `where` it is from."""
    try:
        return Cameras.make(**{"R": np.eye(3), "t": np.zeros(3)} | fields, dtype=torch.float64)
    except MALFORMED as error:
        raise DataError(f"{where}: {error}; {FIELDS}") from error


def _settled(X: np.ndarray, settle: bool) -> np.ndarray:
    return X - [0, 0, X[..., 2].min()] if settle else X


def with_truth(motion: Lifted, truth_cam: np.ndarray) -> tuple[Lifted, np.ndarray]:
    """The motion at the true place of the root, to be seen beside the truth.   truth_cam (T,J,3) mm -> motion, truth (T,J,3)

    Raises:
        DataError: the truth has other frames or joints.
    """
    try:
        truth = np.asarray(truth_cam, np.float32)
    except MALFORMED as error:
        raise DataError(f"truth: holds no numbers ({error}), expected poses (T, J, 3) in mm") from None
    if truth.shape != motion.X_root.shape:
        raise DataError(f"truth: shape {truth.shape}, expected {motion.X_root.shape}, the frames and joints of the motion")
    root = motion.skeleton.root_index
    return dataclasses.replace(motion, X_cam=motion.X_root + truth[:, root, None]), truth
