"""From a checkpoint and 2D keypoints of a video to 3D motion:

    lifter = Lifter.from_checkpoint("model_best.pth.tar")
    motion = lifter.lift(keypoints, size=(1920, 1080), fps=30)      # (T, J_in, 2) px of one person
    motion.X_root, motion.save("walk.csv")                          # (T, J, 3) mm from the root joint

Networks that look into the past only answer frame by frame as well: `stream = lifter.stream(size)`, `stream.push(keypoints)`.

A lifting network knows the cameras it was trained with. Of another camera, give the intrinsics: its keypoints are then undistorted and
turned into those that a camera of the training's focal length would see from the same place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.config import Config
from lib.correction import Reprojected
from lib.correction.reprojection import root_by_image
from lib.engine.distributed import choose_device
from lib.errors import DataError
from lib.geometry.screen import to_screen
from lib.prediction.lifted import Lifted, OwnCamera
from lib.skeleton import Skeleton, convert, get
from lib.tasks.base import Task
from lib.tasks.correction import by_keypoints
from lib.tasks.restore import restore

SCREEN_FOCAL = 2.29  # of Human3.6M's cameras: 1145 px in images 1000 px wide, in units of half the width
TRAINING_FPS = {"h36m17": 50.0, "humaneva15": 60.0}  # of the recordings whose skeletons these are
FPS_TOLERANCE = 0.05  # frame rates this close are taken for equal
PIECE = 4096  # frames lifted at once
FEWEST_LIMBS = 6  # joints with a side that place the root
OUTSIDE = 0.5  # share of keypoints far outside the image at which its size must be wrong


class Lifter:
    """A trained lifting network on one device.

    Args:
        task: a task with its weights that lifts keypoints (lib/tasks/temporal.py).
        device: "auto" (a GPU if there is one), or the name of a torch device.
        fps: frame rate that the network was trained at; None = what the task says, else that of the data set its skeleton comes from.
        screen_focal: focal length of the training cameras in screen units; None = what the task says, else Human3.6M's.
    """

    def __init__(self, task: Task, device: str = "auto", fps: float | None = None, screen_focal: float | None = None):
        self.device = choose_device(device)
        self.task = task.to(self.device).eval()
        self.layout, self.skeleton = get(task.layout), get(task.skeleton)
        self.fps = float(fps or getattr(task, "fps", 0) or _training_fps(task))
        self.screen_focal = float(screen_focal or getattr(task, "screen_focal", 0) or SCREEN_FOCAL)

    @staticmethod
    def from_checkpoint(path: str | Path, device: str = "auto", config: Config | None = None) -> Lifter:
        """The network of a checkpoint, rebuilt from the configuration inside it; no data is read.

        Args:
            path: a checkpoint of a run. Bare weights (published files) need `config`.
            config: what bare weights are built with, from `lib.config.load("experiments/....yaml")`.

        Raises:
            WeightsError: the file is missing or damaged, does not fit its model, needs `config`, or its network looks at pictures.
            ConfigError: no such device on this machine.
        """
        choose_device(device)  # a mistyped device is reported before a large file is read
        return Lifter(restore(path, fallback=config, sees=["keypoints"]), device)

    @property
    def features(self) -> int:
        return int(self.task.model.pose.features)

    @property
    def context(self) -> int:
        """Frames before and after a frame that its pose may depend on."""
        return int(self.task.model.pose.receptive_field) - 1

    def lift(
        self,
        keypoints,
        size,
        layout: str | None = None,
        camera=None,
        fps: float | None = None,
        tangential: str = "opencv",
        correct: bool = False,
    ) -> Lifted:
        """The motion of one person; beyond the ends of the clip its first and last frame are repeated.

        Args:
            keypoints: (T,J_in,F) px, one row per frame; F = 2, or 3 with a score.
            size: width and height of the images in px.
            layout: skeleton of the keypoints, a name of lib.skeleton; None = the network's. Another one is converted by names.
            camera: (3,3) intrinsics in px, one `Cameras` (with distortion; R and t that are not 1 and 0 give world coordinates), or
                `lib.prediction.lifted.OwnCamera`; None = like those of the training.
            fps: frame rate of the keypoints; None = that of the training. Another one is resampled to that of the training, and the poses
                back to the frames given.
            tangential: lens formula of `Cameras`, see lib.geometry.camera.distort_norm.
            correct: move poses until they agree with the keypoints (by their scores, where there are any) through the camera, with bones as
                long as the mean of the clip, as CORRECTION.CAMERA of the network's configuration says. It needs the camera.

        Returns:
            T frames. X_cam is there if the network has a trajectory, or a camera is given: then the root is placed where the limbs
            project best onto their keypoints.

        Raises:
            DataError: shapes do not fit, keypoints are missing (NaN) or not in px of such an image, the network needs joints or scores
                that the keypoints lack, or the camera does not fit.
        """
        size = _size(size)
        if correct and camera is None:
            raise DataError("correct: poses are corrected through the camera; give it (--camera), or leave the correction out")
        assumed = []
        x = self._checked(keypoints, layout, assumed)
        self._check_place(x, size)
        own = None if camera is None else _own(camera, size, tangential)
        norm, screen = self._seen(x, size, own)
        if own is None:
            assumed.append(f"the camera is like those of the training: focal length {self.screen_focal / 2:.3g} x the image's width")
        if fps is None and self.fps and self.context:
            assumed.append(f"the frames come at {self.fps:g} per second, as in the training")
        fps = self._rate(fps)
        times = self._times(len(x), fps, assumed)
        X, root = self._pieces(screen if times is None else _resample(screen, times))
        if times is not None:  # back to the frames that were given
            back = np.arange(len(x)) / fps * self.fps
            X, root = _resample(X, back), None if root is None else _resample(root, back)
        before, found = X, None
        if correct:
            scores = self._scores(keypoints, layout)
            found = self._corrected(X, root, norm, scores)
            X, root = found.X_root.numpy(), None if root is None else found.root[:, None].numpy()
        if root is None and own is not None:
            root = self._place(X, norm)
            if root is not None:
                assumed.append("the root is where the limbs project best onto their keypoints, at the network's body size")
        if found is not None and root is not None:  # of a discarded pose, or one without keypoints, it may not be known
            root = np.where(found.root.isfinite().numpy()[:, None], found.root.numpy()[:, None], root)
        X_cam = None if root is None else X + root
        X_world = None
        if X_cam is not None and own is not None and own.placed:
            X_world = own.camera.to_world(torch.from_numpy(X_cam)).numpy()
        more = {} if X_world is None else {"R": own.camera.R.numpy(), "t": own.camera.t.numpy(), "up": own.up}
        if found is not None:
            focal = float(own.camera.K.diagonal()[:2].mean())
            more["X_before"] = before.astype(np.float32)
            errors = focal * torch.stack([found.error_before, found.error_after], -1).numpy()
            more["reprojection_px"] = np.where((scores > 0).any(1)[:, None], errors, np.nan).astype(np.float32)
        X, X_cam, X_world = (None if a is None else a.astype(np.float32) for a in (X, X_cam, X_world))
        return Lifted(self.skeleton, self.layout, x[..., :2].astype(np.float32), X, X_cam, X_world, **more, size=size, fps=fps,
                      assumed=tuple(assumed))  # fmt: skip

    def stream(self, size, layout: str | None = None, camera=None, tangential: str = "opencv") -> LiftStream:
        """Frame by frame, for a network that looks into the past only; frames must come at the rate of the training.

        Args:
            size, layout, camera, tangential: see `lift`.

        Raises:
            DataError: the network needs frames that lie ahead, or the camera does not fit.
        """
        if not self.task.model.pose.causal:
            raise DataError(
                f"stream: this network needs {self.context // 2} frames ahead of each pose; "
                "lift whole clips, or train with TEMPORAL.CAUSAL true"
            )
        size = _size(size)
        return LiftStream(self, size, layout, None if camera is None else _own(camera, size, tangential))

    def _checked(self, keypoints, layout: str | None, assumed: list[str]) -> np.ndarray:
        """Keypoints in the layout and with the features of the network.   -> (T,J_in,F) float64 px"""
        given = self.layout if layout is None else get(layout)
        x = np.asarray(keypoints, np.float64)
        if x.ndim != 3 or x.shape[1] != given.num or x.shape[2] < 2 or not len(x):
            raise DataError(
                f"keypoints: shape {x.shape}, expected (frames, {given.num}, 2 or 3) for the layout {given.name}; name the layout they have"
            )
        if layout is None:
            assumed.append(f"the keypoints have the layout {given.name}, that of the network")
        if x.shape[2] < self.features:
            raise DataError(f"keypoints: {x.shape[2]} numbers per joint, expected {self.features}: the network was trained with scores")
        x = x[..., : self.features]
        bad = ~np.isfinite(x).all((1, 2))
        if given != self.layout:
            x, present = convert(x, given, self.layout)
            if not present.all():
                missing = ", ".join(np.array(self.layout.joints)[~present])
                raise DataError(
                    f"keypoints: {given.name} has no {missing}, which the network ({self.layout.name}) needs; "
                    f"use a detector that finds them, or a checkpoint trained on {given.name}"
                )
            bad = ~np.isfinite(x).all((1, 2))
            assumed.append(f"keypoints of {given.name} stand for those of {self.layout.name}, matched by name")
        if bad.any():
            raise DataError(
                f"keypoints: {int(bad.sum())} of {len(x)} frames hold NaN, the first is frame {int(np.flatnonzero(bad)[0])}; "
                "interpolate missing detections first (lib.dataset.formats.detections.interpolate)"
            )
        return x

    def _check_place(self, x: np.ndarray, size: tuple[int, int]) -> None:
        points = x[..., :2]
        if np.abs(points).max() <= 2.0 and min(size) > 16:
            raise DataError(f"keypoints: all lie within {np.abs(points).max():.2f}, expected px of images of {size[0]} x {size[1]} px")
        far = ((points < -0.5 * np.array(size)) | (points > 1.5 * np.array(size))).any(-1)
        if far.mean() > OUTSIDE:
            raise DataError(
                f"keypoints: {far.mean():.0%} of them lie far outside images of {size[0]} x {size[1]} px; "
                "give the size of the images in which they were found"
            )

    def _seen(self, x: np.ndarray, size: tuple[int, int], own: OwnCamera | None) -> tuple[Tensor | None, np.ndarray]:
        """Directions (T,J_in,2) where a camera is known, and what the network sees, (T,J_in,F) screen coordinates."""
        points = torch.from_numpy(np.ascontiguousarray(x[..., :2]))
        norm = None if own is None else own.camera.to_norm(points, tangential=own.tangential)
        screen = to_screen(points, torch.tensor(size, dtype=torch.float64)) if norm is None else self.screen_focal * norm
        return norm, np.concatenate([screen.numpy(), x[..., 2:]], -1)

    def _scores(self, keypoints, layout: str | None) -> np.ndarray:
        """How sure each joint of the network's layout is, 1 where keypoints do not say.   -> (T,J_in)"""
        x = np.asarray(keypoints, np.float64)
        scores = x[..., 2:3] if x.shape[2] > 2 else np.ones_like(x[..., :1])
        return convert(scores, layout or self.layout, self.layout)[0][..., 0]

    def _corrected(self, X: np.ndarray, root: np.ndarray | None, norm: Tensor, scores: np.ndarray) -> Reprojected:
        """Poses (T,J,3) mm that agree with directions (T,J_in,2), in float64."""
        x = torch.cat([norm.double(), torch.from_numpy(scores)[..., None]], -1)
        root = None if root is None else torch.from_numpy(root[:, 0]).double()
        clip = torch.zeros(len(X), dtype=torch.long)
        return by_keypoints(self.task.cfg, torch.from_numpy(X).double(), x, self.layout.name, self.skeleton.name, clip, None, root)

    def _rate(self, fps: float | None) -> float:
        if fps is not None and not 0 < fps < float("inf"):
            raise DataError(f"fps: {fps}, expected frames per second above 0, or None where it is not known")
        return float(fps or self.fps)

    def _times(self, frames: int, fps: float, assumed: list[str]) -> np.ndarray | None:
        """Where frames of the training's rate lie, in frames given; None = nothing to resample."""
        if not self.fps or abs(fps / self.fps - 1) <= FPS_TOLERANCE or self.context == 0 or frames == 1:
            return None
        assumed.append(f"{fps:g} frames per second were resampled to the {self.fps:g} of the training, and the poses back")
        return np.arange(int(np.ceil((frames - 1) / fps * self.fps - 1e-9)) + 1) * (fps / self.fps)

    @torch.no_grad()
    def _pieces(self, screen: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Poses (T,J,3) and roots (T,1,3) in mm; a long clip goes in overlapping pieces, which changes nothing."""
        x = torch.from_numpy(screen).float()
        poses, roots = [], []
        for a in range(0, len(x), PIECE):
            low, b = max(0, a - self.context), min(len(x), a + PIECE)
            X, root = self.task.lift(x[None, low : b + self.context].to(self.device))
            poses.append(X[0, a - low : b - low].cpu().double().numpy())
            if root is not None:
                roots.append(root[0, a - low : b - low].cpu().double().numpy())
        return np.concatenate(poses), np.concatenate(roots) if roots else None

    def _place(self, X: np.ndarray, norm: Tensor) -> np.ndarray | None:
        """The root (T,1,3) mm for which the joints with a side project best onto directions (T,J_in,2)."""
        names = [joint for joint in self.skeleton.joints if joint[:2] in ("l_", "r_") and joint in self.layout.joints]
        if len(names) < FEWEST_LIMBS:
            return None
        X, x = X[:, self.skeleton.indices(names)], norm.numpy()[:, self.layout.indices(names)]
        return root_by_image(torch.from_numpy(X), torch.from_numpy(x)).numpy()[:, None]


class LiftStream:
    """Keypoints in, poses out, one frame at a time; made by `Lifter.stream`. Its numbers are those of `Lifter.lift`."""

    def __init__(self, lifter: Lifter, size: tuple[int, int], layout: str | None, own: OwnCamera | None):
        self.lifter, self.size, self.layout, self.own = lifter, size, layout, own
        task = lifter.task
        self.flip = bool(task.cfg.TEST.FLIP_TEST)
        self.pose = task.model.pose.stream()
        self.trajectory = None if task.model.trajectory is None else task.model.trajectory.stream()
        self.X_cam: np.ndarray | None = None  # (J,3) mm of the last frame, where `lift` has X_cam

    @torch.no_grad()
    def push(self, keypoints) -> np.ndarray:
        """The pose of the next frame.   keypoints (J_in,F) px -> X_root (J,3) float32 mm; X_cam is kept beside it

        Raises:
            DataError: see `Lifter.lift`.
        """
        lifter = self.lifter
        x = lifter._checked(np.asarray(keypoints)[None], self.layout, [])
        lifter._check_place(x, self.size)
        norm, screen = lifter._seen(x, self.size, self.own)
        seen = torch.from_numpy(screen).float().to(lifter.device)
        mirror = torch.ones(seen.shape[-1], device=seen.device)
        mirror[0] = -1
        x = torch.cat([seen, (seen * mirror)[:, lifter.layout.flip]]) if self.flip else seen
        X = self._metres(self.pose.push(x), lifter.skeleton) * 1000
        self.X_cam = None
        if self.trajectory is not None:
            self.X_cam = X + self._metres(self.trajectory.push(x), None) * 1000
        elif norm is not None and (root := lifter._place(X[None].astype(np.float64), norm)) is not None:
            self.X_cam = (X + root[0]).astype(np.float32)
        return X

    def reset(self) -> None:
        """Forgets what was seen: another clip begins."""
        self.pose.reset()
        if self.trajectory is not None:
            self.trajectory.reset()

    def _metres(self, X: Tensor, skeleton: Skeleton | None) -> np.ndarray:
        if self.flip:
            mirrored = X[1:] * X.new_tensor([-1.0, 1.0, 1.0])
            X = (X[:1] + (mirrored if skeleton is None else mirrored[:, skeleton.flip])) / 2
        return X[0].cpu().numpy()


def _training_fps(task: Task) -> float:
    """Frames per second that the network saw in training; 0 = not known."""
    return TRAINING_FPS.get(task.skeleton, 0.0) / task.cfg.DATASET.TRAIN_FRAME


def _own(camera, size: tuple[int, int], tangential: str) -> OwnCamera:
    own = OwnCamera.make(camera, size)
    return own if isinstance(camera, OwnCamera) else OwnCamera(own.camera, own.placed, tangential)


def _size(size) -> tuple[int, int]:
    given = np.asarray(size, np.float64).reshape(-1)
    if given.shape != (2,) or not (np.isfinite(given) & (given > 0)).all():
        raise DataError(f"size: {size}, expected width and height of the images in px")
    return int(given[0]), int(given[1])


def _resample(x: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values between frames, linearly; the last frame holds.   x (T,...), at (S,) in frames -> (S,...)"""
    at = np.clip(at, 0, len(x) - 1)
    low = np.minimum(at.astype(np.int64), max(len(x) - 2, 0))
    share = (at - low).reshape(-1, *[1] * (x.ndim - 1))
    return x[low] * (1 - share) + x[np.minimum(low + 1, len(x) - 1)] * share
