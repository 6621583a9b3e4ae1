"""From a checkpoint and a picture to a pose, in three lines:

    predictor = Predictor.from_checkpoint("output/demo/student.pth.tar")
    pose = predictor("photo.jpg", box=(120, 80, 360, 560))
    pose.x_img, pose.X_root, pose.conf           # px of the photo, mm from the root joint, 0..1

A network that sees one crop knows shape, not size. Its unit is the side of the box: in training that is a square which
spans a known length at the depth of the root joint (2000 mm in Human3.6M and the embedded world), so such a box gives
millimetres. With another box (a detector's, the whole picture) the pose is right up to one factor, which `box_mm`, or
camera and root depth together, set. A network of TASK fusion knows the sum of people's bone lengths instead: `X_root` is then in
mm with any box, and neither of them changes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.config import Config
from lib.dataset.image import ImageSpec, read_image, warp
from lib.engine.distributed import choose_device
from lib.errors import DataError, WeightsError
from lib.geometry.camera import Cameras
from lib.geometry.crop import crop_affine
from lib.lifter import Lifter
from lib.predict_rig import RigPredictor
from lib.skeleton import Skeleton, get
from lib.tasks.base import Task
from lib.tasks.restore import restore

__all__ = ["Lifter", "Prediction", "Predictor", "RigPredictor"]


@dataclass(frozen=True)
class Prediction:
    """One person. Arrays are float32 NumPy; the 3D ones are None for a network without depth."""

    skeleton: Skeleton
    box: np.ndarray  # (4,) x0 y0 x1 y1 px: the square that was cropped
    x_img: np.ndarray  # (J, 2) px
    conf: np.ndarray  # (J,) 0..1
    X_root: np.ndarray | None = None  # (J, 3) mm relative to the root joint, camera axes: x right, y down, z forward
    X_cam: np.ndarray | None = None  # (J, 3) mm from the camera
    K: np.ndarray | None = None  # (3, 3) the intrinsics X_cam belongs to
    assumed: tuple[str, ...] = ()  # what had to be assumed for X_root and X_cam, in words

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        values = {"skeleton": self.skeleton.name, "joints": list(self.skeleton.joints), "assumed": list(self.assumed)}
        for name in ("box", "x_img", "conf", "X_root", "X_cam", "K"):
            array = getattr(self, name)
            values[name] = None if array is None else np.round(array.astype(float), 4).tolist()
        return values


class Predictor:
    """A trained network on one device.

    Args:
        task: a task with its weights.
        device: "auto" (a GPU if there is one), or the name of a torch device.
        depth_mm: range of the network's depth.
        box_mm: what the side of a training box spans at the person; None = `depth_mm`, the custom of Human3.6M.
        box_scale: factor on the side of a box before it is cropped, as in training.
    """

    def __init__(self, task: Task, device: str = "auto", depth_mm=2000.0, box_mm: float | None = None, box_scale=1.0):
        self.device = choose_device(device)
        self.task = task.to(self.device).eval()
        self.spec: ImageSpec = task.image_spec
        self.skeleton = get(task.pose_skeleton)
        self.depth_mm, self.box_mm, self.box_scale = depth_mm, box_mm or depth_mm, box_scale

    @staticmethod
    def from_checkpoint(path: str | Path, device: str = "auto", config: Config | None = None) -> "Predictor":
        """The network of a checkpoint, rebuilt from the configuration inside it; no data is read.

        Args:
            path: a checkpoint of a run. Bare weights (`final_state.pth.tar`, published files) need `config`.
            config: what bare weights are built with, from `lib.config.load("experiments/....yaml")`.

        Raises:
            WeightsError: the file is missing or damaged, does not fit its model, needs `config`, or its network looks at no pictures.
            ConfigError: no such device on this machine.
        """
        choose_device(device)  # a mistyped device is reported before a large file is read
        task = restore(path, fallback=config)
        if task.image_spec is None:
            raise WeightsError(f"{path}: its network lifts keypoints, expected one that looks at pictures; use Lifter, or --keypoints")
        if hasattr(task, "in_space"):
            raise WeightsError(f"{path}: its network finds people before several cameras, expected one that looks at a single person; "
                               "use RigPredictor, or --rig")  # fmt: skip
        cfg = task.cfg.DATASET
        return Predictor(task, device, cfg.DEPTH_RANGE, box_scale=cfg.BOX_SCALE)

    def __call__(
        self, image, box=None, camera=None, root_depth_mm: float | None = None, box_mm: float | None = None
    ) -> Prediction:
        """The pose of the person in a box.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of a picture.
            box: x0, y0, x1, y1 px; None = the whole picture. It is widened around its middle to a square, as boxes in
                training are; what lies outside the picture is black.
            camera: (3, 3) intrinsics in px of `image`, or `Cameras` (with distortion); None = unknown: the pose is read
                with weak perspective, before a camera whose focal length is the longer side of the picture.
            root_depth_mm: distance of the root joint along the camera's axis; None = where the box spans `box_mm`.
            box_mm: what the side of the box spans at the person; None = as much as in training. Not needed, and not
                read, where both `camera` and `root_depth_mm` are given.

        Raises:
            DataError: the picture cannot be read or is no uint8 RGB array, or the box is empty or outside the picture.
        """
        return self.predict_boxes(image, [box], camera, root_depth_mm, box_mm)[0]

    def predict_boxes(
        self, image, boxes: Sequence, camera=None, root_depth_mm=None, box_mm=None, batch_size: int = 32
    ) -> list[Prediction]:
        """The poses of several people in one picture, computed in batches.

        `boxes` holds one entry per person, as `box` above; `root_depth_mm` and `box_mm` one number, or one per person.
        """
        return self.predict_frames([image], [boxes], camera, root_depth_mm, box_mm, batch_size)[0]

    def predict_frames(
        self, images: Sequence, boxes: Sequence[Sequence], camera=None, root_depth_mm=None, box_mm=None, batch_size: int = 32
    ) -> list[list[Prediction]]:
        """The poses of the people in several pictures of one camera, such as frames of a video, computed in common batches.

        `boxes` holds the boxes of each picture; `root_depth_mm` and `box_mm` one number, or one per box of all pictures.

        Raises:
            DataError: as above, or the pictures differ in size.
        """
        images = [read_image(image) if isinstance(image, str | Path) else _check_image(image) for image in images]
        if len({image.shape for image in images}) > 1:
            found = sorted({f"{image.shape[1]} x {image.shape[0]}" for image in images})
            raise DataError(f"pictures: found sizes {', '.join(found)} px, expected the same for all of one camera")
        which = [i for i, given in enumerate(boxes) for _ in given]
        squares = np.array([self._square(box, *images[i].shape[1::-1]) for i, given in enumerate(boxes) for box in given]).reshape(-1, 4)
        depths, sides = _lengths(root_depth_mm, len(which), "root_depth_mm"), _lengths(box_mm, len(which), "box_mm")
        found: list[list[Prediction]] = [[] for _ in boxes]
        for start in range(0, len(squares), batch_size):
            part = slice(start, start + batch_size)
            shown = [images[i] for i in which[part]]
            for i, person in zip(which[part], self._predict(shown, squares[part], camera, depths[part], sides[part]), strict=True):
                found[i].append(person)
        return found

    def _square(self, box, width: int, height: int) -> np.ndarray:
        """The square around a box that is cropped.   -> (4,) x0 y0 x1 y1 px"""
        given = np.array((0, 0, width, height) if box is None else box, dtype=np.float64).reshape(-1)
        if given.shape != (4,) or not np.isfinite(given).all():
            raise DataError(f"box {box}: expected four numbers x0 y0 x1 y1 in px")
        low, high = given[:2], given[2:]
        if (high <= low).any():
            raise DataError(f"box {given.tolist()}: is empty; expected x0 < x1 and y0 < y1 in px")
        if (high <= 0).any() or (low >= (width, height)).any():
            raise DataError(f"box {given.tolist()}: lies outside the picture of {width} x {height} px")
        center, half = (low + high) / 2, 0.5 * (high - low).max() * self.box_scale
        return np.concatenate([center - half, center + half])

    def _predict(self, images, squares, camera, depth_mm, box_mm) -> list[Prediction]:
        """One batch, a picture per square; depth_mm and box_mm (N,) hold NaN where nothing was given."""
        box = torch.from_numpy(squares)
        side_px = (box[:, 2] - box[:, 0]).numpy()
        patch_from_img = crop_affine((box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2], self.spec.size)
        patches = np.stack([warp(image, A, self.spec.size) for image, A in zip(images, patch_from_img.numpy(), strict=True)])

        cameras, about_camera = _cameras(camera, images[0])
        assumed, root_mm = [*about_camera], depth_mm
        focal = float(cameras.K[0, 0])
        given = np.isfinite(depth_mm) & (camera is not None)
        side_mm = np.where(np.isfinite(box_mm), box_mm, self.box_mm) * self.box_scale
        side_mm = np.where(given, side_px * depth_mm / focal, side_mm)
        depth_mm = np.where(np.isfinite(depth_mm), depth_mm, focal * side_mm / side_px)
        if not (given | np.isfinite(box_mm)).all():
            assumed.append(f"the side of the box spans {self.box_mm:.0f} mm at the person")

        # a patch is as wide as the range of depth is long, for a training box; another box scales depth with its sides
        depth_scale = self.spec.size[0] / self.depth_mm * (self.box_mm * self.box_scale / side_mm)
        batch = {
            "image": torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous().to(self.device),
            "patch_from_img": patch_from_img.float().to(self.device),
            "depth_scale": torch.from_numpy(depth_scale).float().to(self.device),
        }
        with torch.no_grad():
            pred = {k: v.double().cpu() for k, v in self.task.predict(batch).items()}
        X_root = X_cam = None
        if "X_root" in pred:  # of people whose size the task knows: the box tells nothing about it
            X_root, root, depth = pred["X_root"], self.skeleton.root_index, torch.tensor(root_mm)
            depth = torch.where(depth.isfinite(), depth, focal * pred["mm_per_px"])[:, None]
            X_cam = X_root + cameras.unproject_cam(pred["x_img"][:, root, None], depth)
            assumed = [*about_camera, *self.task.assumed()]
        elif "z_mm" in pred:
            x, z, root = pred["x_img"], pred["z_mm"], self.skeleton.root_index
            depth = torch.from_numpy(depth_mm)[:, None]
            if camera is None:
                mm_per_px = torch.from_numpy(side_mm / side_px)[:, None, None]
                X_root = torch.cat([(x - x[:, root, None]) * mm_per_px, (z - z[:, root, None])[..., None]], -1)
                X_cam = X_root + cameras.unproject_cam(x[:, root, None], depth)
            else:
                X_cam = cameras.unproject_cam(x, z + depth)
                X_root = X_cam - X_cam[:, root, None]
        rows = [squares, pred["x_img"], pred["conf"], X_root, X_cam]
        columns = [[None] * len(squares) if a is None else np.asarray(a, dtype=np.float32) for a in rows]
        K, said = (None, ()) if X_cam is None else (cameras.K.numpy().astype(np.float32), tuple(assumed))
        return [Prediction(self.skeleton, *row, K=K, assumed=said) for row in zip(*columns, strict=True)]


def _cameras(camera, image: np.ndarray) -> tuple[Cameras, list[str]]:
    """The camera of a picture, in float64 at the origin, and what was assumed about it."""
    height, width = image.shape[:2]
    assumed = []
    if isinstance(camera, Cameras):
        K, dist = camera.K.detach().cpu().double(), camera.dist.detach().cpu().double()
    elif camera is None:
        focal = float(max(width, height))
        K, dist = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]).double(), None
        assumed.append(f"the focal length is {focal:.0f} px, the axis in the middle of the picture")
    else:
        K, dist = torch.as_tensor(np.asarray(camera, dtype=np.float64)), None
    if K.shape != (3, 3):
        raise DataError(f"camera: found intrinsics of shape {tuple(K.shape)}, expected (3, 3), in px of the picture")
    return Cameras.make(K, torch.eye(3).double(), torch.zeros(3).double(), dist, (width, height)), assumed


def _check_image(image) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(f"image: found {image.dtype} of shape {image.shape}, expected uint8 (H, W, 3) in RGB order")
    return image


def _lengths(value, count: int, name: str) -> np.ndarray:
    """One length per person from a number or a list; NaN = not given.   -> (count,) mm"""
    if value is None:
        return np.full(count, np.nan)
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (count,)) or not (array > 0).all():
        raise DataError(f"{name}: found {value}, expected millimetres above 0, one number or one per box ({count})")
    return np.broadcast_to(array, count)
