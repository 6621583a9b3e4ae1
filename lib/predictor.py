"""From a checkpoint and a picture to a pose, in three lines:

    predictor = Predictor.from_checkpoint("output/demo/student.pth.tar")
    pose = predictor("photo.jpg", box=(120, 80, 360, 560))
    pose.x_img, pose.X_root, pose.conf           # px of the photo, mm from the root joint, 0..1

A network that sees one crop knows shape, not size. Its unit is the side of the box: in training that is a square which
spans a known length at the depth of the root joint (2000 mm in Human3.6M and the embedded world), so such a box gives
millimetres. With another box (a detector's, the whole picture) the pose is right up to one factor, which `box_mm`, or
camera and root depth together, set. Networks of TASK fusion and machine know how large people are instead: `X_root` is then in
mm with any box, and neither of them changes it.

Where a network looks at several frames of a person together (TASK machine), `predict_frames` takes who is who: `people`. A single picture
is a clip of one frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lib.config import Config
from lib.correction import DECISIONS
from lib.dataset.annotations import widened
from lib.dataset.clips import Clips, in_clips, sequential
from lib.dataset.image import ImageSpec, read_image, warp
from lib.dataset.loader import to_device
from lib.engine.distributed import autocast_dtype, choose_device
from lib.errors import MALFORMED, DataError, WeightsError
from lib.geometry.camera import Cameras
from lib.geometry.crop import crop_affine, transform_points
from lib.models.freeze import freeze
from lib.prediction.lifted import OwnCamera
from lib.prediction.lifter import Lifter
from lib.prediction.rig import RigPredictor
from lib.skeleton import Skeleton, get
from lib.tasks.base import Task
from lib.tasks.correction import as_evidence
from lib.tasks.restore import restore

__all__ = ["Correction", "Lifter", "Prediction", "Predictor", "RigPredictor"]


@dataclass(frozen=True)
class Correction:
    """What a correction at test time did to a pose."""

    X_before: np.ndarray  # (J, 3) float32 mm relative to the root joint, the pose before it
    before_px: float  # how far the image of that pose is from the 2D joints that the correction goes by, on average,
    after_px: float  # and that of the result; as the camera projects, or a projector that was learned
    decision: str  # one of lib.correction.DECISIONS: of a discarded one the pose is as before


@dataclass(frozen=True)
class Prediction:
    """One person. Arrays are float32 NumPy; the 3D ones are None for a network without depth."""

    skeleton: Skeleton
    box: np.ndarray  # (4,) x0 y0 x1 y1 px: what was cropped, of the shape of the network's crops
    x_img: np.ndarray  # (J, 2) px
    conf: np.ndarray  # (J,) 0..1
    X_root: np.ndarray | None = None  # (J, 3) mm relative to the root joint, camera axes: x right, y down, z forward
    X_cam: np.ndarray | None = None  # (J, 3) mm from the camera
    K: np.ndarray | None = None  # (3, 3) the intrinsics X_cam belongs to
    assumed: tuple[str, ...] = ()  # what had to be assumed for X_root and X_cam, in words
    correction: Correction | None = None  # of X_root and X_cam, where one was asked for

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        values = {"skeleton": self.skeleton.name, "joints": list(self.skeleton.joints), "assumed": list(self.assumed)}
        for name in ("box", "x_img", "conf", "X_root", "X_cam", "K"):
            array = getattr(self, name)
            values[name] = None if array is None else np.round(array.astype(float), 4).tolist()
        if (c := self.correction) is not None:
            values["correction"] = {"X_before": np.round(c.X_before.astype(float), 4).tolist(), "before_px": round(c.before_px, 4),
                                    "after_px": round(c.after_px, 4), "decision": c.decision}  # fmt: skip
        return values


class Predictor:
    """A trained network on one device.

    Args:
        task: a task with its weights.
        device: "auto" (a GPU if there is one), or the name of a torch device.
        depth_mm: range of the network's depth.
        box_mm: what the side of a training box spans at the person; None = `depth_mm`, the custom of Human3.6M.
        box_scale: factor on the side of a box before it is cropped, as in training.
        box_fit: how boxes get the shape of the network's crops, as in training: "around" or "within" (DATASET.BOX_FIT).
        correction: TEST.CORRECTION of the task.
        evidence: what finds the 2D joints that corrections go by; None = what the network sees.
        amp: number format of the network: "off" = float32, "bf16", "fp16", or "auto" = bf16 where the device computes it fast.
    """

    def __init__(
        self,
        task: Task,
        device: str = "auto",
        depth_mm=2000.0,
        box_mm: float | None = None,
        box_scale=1.0,
        box_fit: str = "around",
        correction: str = "off",
        evidence: "Predictor | None" = None,
        amp: str = "off",
    ):
        self.device = choose_device(device)
        self.amp_dtype = autocast_dtype(amp, self.device)
        self.task = task.to(self.device).eval()
        self.spec: ImageSpec = task.image_spec
        self.skeleton = get(task.pose_skeleton)
        self.depth_mm, self.box_mm, self.box_scale = depth_mm, box_mm or depth_mm, box_scale
        self.box_fit, self.correction, self.evidence = box_fit, correction, evidence

    @staticmethod
    def from_checkpoint(
        path: str | Path,
        device: str = "auto",
        config: Config | None = None,
        correct: bool = False,
        evidence: "Predictor | None" = None,
        amp: str = "off",
        compiled: bool = False,
    ) -> "Predictor":
        """The network of a checkpoint, rebuilt from the configuration inside it; no data is read. It is frozen: batch norms are folded.

        Args:
            path: a checkpoint of a run. Bare weights (`final_state.pth.tar`, published files) need `config`.
            config: what bare weights are built with, from `lib.config.load("experiments/....yaml")`.
            correct: correct poses by 2D joints, as the CORRECTION section of the configuration says: those that the network sees, or those
                of `evidence`.
            evidence: another network that looks at the same boxes, for its 2D joints.
            amp: see the class.
            compiled: torch.compile the network: the first batches take minutes, each later one less. For many pictures.

        Raises:
            WeightsError: the file is missing or damaged, does not fit its model, needs `config`, its network looks at no pictures, or its
                poses cannot be corrected.
            ConfigError: no such device on this machine, or the poses can only be corrected by `evidence`.
        """
        choose_device(device)  # a mistyped device is reported before a large file is read
        source = "" if not correct else "network" if evidence is None else "labels"
        task = restore(path, fallback=config, evidence=source, sees=["person"])
        cfg = task.cfg.DATASET
        options = {"correction": task.cfg.TEST.CORRECTION, "evidence": evidence, "amp": amp}
        predictor = Predictor(task, device, cfg.DEPTH_RANGE, box_scale=cfg.BOX_SCALE, box_fit=cfg.BOX_FIT, **options)
        freeze(task.model, predictor.amp_dtype, compiled, task.called())
        return predictor

    def __call__(
        self, image, box=None, camera=None, root_depth_mm: float | None = None, box_mm: float | None = None
    ) -> Prediction:
        """The pose of the person in a box.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of a picture, which is turned as its EXIF orientation says.
            box: x0, y0, x1, y1 px; None = the whole picture. It gets the shape of the network's crops (a square, for most) around its
                middle, as boxes in training do; what lies outside the picture is black.
            camera: (3, 3) intrinsics in px of `image`, or `Cameras` (with distortion); None = unknown: the pose is read
                with weak perspective, before a camera whose focal length is the longer side of the picture.
            root_depth_mm: distance of the root joint along the camera's axis; None = where the box spans `box_mm`.
            box_mm: what the side of the box spans at the person; None = as much as in training. Not needed, and not
                read, where both `camera` and `root_depth_mm` are given.

        Raises:
            DataError: the picture cannot be read or is no uint8 RGB array, the box is empty or outside the picture, or the camera cannot be
                one or belongs to pictures of another size.
        """
        return self.predict_boxes(image, [box], camera, root_depth_mm, box_mm)[0]

    def predict_boxes(
        self, image, boxes: Sequence, camera=None, root_depth_mm=None, box_mm=None, batch_size: int = 32
    ) -> list[Prediction]:
        """The poses of several people in one picture, computed in batches.

        `boxes` holds one entry per person, as `box` above; `root_depth_mm` and `box_mm` one number, or one per person.
        """
        return self.predict_frames([image], [boxes], camera, root_depth_mm, box_mm, batch_size)[0]

    @property
    def clip(self) -> int:
        """Frames of one person that the network looks at together, if it is told who is who."""
        return self.task.clip

    def predict_frames(
        self,
        images: Sequence,
        boxes: Sequence[Sequence],
        camera=None,
        root_depth_mm=None,
        box_mm=None,
        batch_size: int = 32,
        people: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Prediction]]:
        """The poses of the people in several pictures of one camera, such as frames of a video, computed in common batches.

        Args:
            images: of one size; with `people` frames that follow one another.
            boxes: the boxes of each picture.
            camera: see `__call__`.
            root_depth_mm, box_mm: one number, or one per box of all pictures.
            batch_size: boxes that are looked at together.
            people: the number of the person in each box. A network for clips then sees the frames of one person in their order, as many at
                once as in training, and never across a frame without the person; None = each box by itself.

        Raises:
            DataError: as above, the pictures differ in size, are more or fewer than the lists of boxes, or a person is twice in one.
        """
        images = [read_image(image, upright=True) if isinstance(image, str | Path) else _check_image(image) for image in images]
        if len({image.shape for image in images}) > 1:
            found = sorted({f"{image.shape[1]} x {image.shape[0]}" for image in images})
            raise DataError(f"pictures: found sizes {', '.join(found)} px, expected the same for all of one camera")
        if len(boxes) != len(images):
            raise DataError(f"boxes: {len(boxes)} lists for {len(images)} pictures, expected one list of boxes for each")
        which = [i for i, given in enumerate(boxes) for _ in given]
        given = [self._checked(box, *images[i].shape[1::-1]) for i, row in enumerate(boxes) for box in row]
        crops = widened(np.array(given).reshape(-1, 4), self.aspect, self.box_scale, within=self.box_fit == "within")
        depths, sides = _lengths(root_depth_mm, len(which), "root_depth_mm"), _lengths(box_mm, len(which), "box_mm")
        seen = self._joints(images, boxes, batch_size)
        clips = self._clips(which, people)
        size = max(1, batch_size // clips.rows.shape[1])
        done: dict[int, Prediction] = {}
        for start in range(0, len(clips.rows), size):
            part = Clips(*(values[start : start + size] for values in clips))
            rows, place = np.unique(part.rows, return_inverse=True)
            given = depths[rows], sides[rows], {name: value[rows] for name, value in seen.items()}
            made = self._predict([images[which[i]] for i in rows], crops[rows], camera, *given, part, place.reshape(part.rows.shape))
            done |= zip(part.rows[part.judged].tolist(), made, strict=True)
        found: list[list[Prediction]] = [[] for _ in boxes]
        for row, i in enumerate(which):
            found[i].append(done[row])
        return found

    def _clips(self, which: list[int], people: Sequence[Sequence[int]] | None) -> Clips:
        """What is looked at together, numbers of boxes, each judged once.   which: the picture of each box"""
        frame, rows, starts = np.array(which, np.int64), np.arange(len(which)), np.arange(len(which) + 1)
        if people is None or self.clip == 1:
            return sequential(rows, starts, 1)
        person = np.array([number for given in people for number in given], np.int64)
        if len(person) != len(frame):
            raise DataError(f"people: {len(person)} numbers for {len(frame)} boxes, expected one for each")
        rows = np.lexsort([frame, person])
        step, same = np.diff(frame[rows]), np.diff(person[rows]) == 0
        if (same & (step == 0)).any():
            raise DataError(f"people: one is twice in picture {frame[rows][1:][same & (step == 0)][0]}; give each box there its own number")
        first = np.flatnonzero(np.append(True, ~same | (step > 1))) if len(rows) else []
        return sequential(rows, np.append(first, len(rows)).astype(np.int64), self.clip)

    def _joints(self, images: list, boxes: Sequence[Sequence], batch_size: int) -> dict[str, torch.Tensor]:
        """2D joints of another network, x_img (N, J, 2) px and conf (N, J); of joints that it lacks 0."""
        if self.evidence is None or self.correction == "off":
            return {}
        people = [p for picture in self.evidence.predict_frames(images, boxes, batch_size=batch_size) for p in picture]
        source = self.evidence.skeleton
        x = torch.from_numpy(np.array([p.x_img for p in people], np.float32).reshape(-1, source.num, 2))
        conf = torch.from_numpy(np.array([p.conf for p in people], np.float32).reshape(-1, source.num))
        x, conf = as_evidence(x, conf, source, self.skeleton)
        return {"x_img": x, "conf": conf}

    @cached_property
    def has_depth(self) -> bool:
        """Whether people have X_root and X_cam; tried with a black picture."""
        width, height = self.spec.size
        camera = [[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]]
        return self.predict_boxes(np.zeros((height, width, 3), np.uint8), [None], camera)[0].X_cam is not None

    @property
    def aspect(self) -> float:
        """Width / height of the crops that the network sees."""
        return self.spec.size[0] / self.spec.size[1]

    @staticmethod
    def _checked(box, width: int, height: int) -> np.ndarray:
        """A box in a picture of this size; None is the whole picture.   -> (4,) x0 y0 x1 y1 px"""
        try:
            given = np.array((0, 0, width, height) if box is None else box, dtype=np.float64).reshape(-1)
        except MALFORMED:
            given = np.empty(0)
        if given.shape != (4,) or not np.isfinite(given).all():
            raise DataError(f"box {box}: expected four numbers x0 y0 x1 y1 in px")
        low, high = given[:2], given[2:]
        if (high <= low).any():
            raise DataError(f"box {given.tolist()}: is empty; expected x0 < x1 and y0 < y1 in px")
        if (high <= 0).any() or (low >= (width, height)).any():
            raise DataError(f"box {given.tolist()}: lies outside the picture of {width} x {height} px")
        return given

    def _predict(self, images, crops, camera, depth_mm, box_mm, seen, clips: Clips, place: np.ndarray) -> list[Prediction]:
        """One batch, a picture per crop (N, 4) px; depth_mm and box_mm (N,) hold NaN where nothing was given.

        place (K, T): the crops that make clips. -> the judged frames of clips, in their order
        """
        box = torch.from_numpy(crops)
        # boxes in training are squares; a network that sees wide crops sees more beside them
        side_px = (crops[:, 2] - crops[:, 0]) / max(1.0, self.aspect)
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
            "image": torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous(),
            "patch_from_img": patch_from_img.float(),
            "depth_scale": torch.from_numpy(depth_scale).float(),
        }
        if seen:
            batch |= seen | {"x_patch": transform_points(patch_from_img.float(), seen["x_img"]), "valid": (seen["conf"] > 0).float()}
        if self.correction == "camera":
            if camera is None:
                raise DataError("camera: is not known, but poses are corrected through it; give its focal length (--focal) or intrinsics")
            batch["camera"] = cameras.expand(len(crops)).to(dtype=torch.float32)
            batch["root_cam"] = torch.from_numpy(np.stack([0 * depth_mm, 0 * depth_mm, depth_mm], -1)).float()
        pred, frames = self._seen(batch, clips, place)
        crops, side_px, side_mm, depth_mm, root_mm = (values[frames] for values in (crops, side_px, side_mm, depth_mm, root_mm))
        X_root = X_cam = None
        if "X_root" in pred:  # of people whose size the task knows: the box tells nothing about it
            X_root, root, depth = pred["X_root"], self.skeleton.root_index, torch.tensor(root_mm)
            depth = torch.where(depth.isfinite(), depth, focal * pred["mm_per_px"])[:, None]
            X_cam = X_root + cameras.unproject_cam(pred["x_img"][:, root, None], depth)
            assumed = [*about_camera, *self.task.assumed()]
        elif "X_cam" in pred:
            X_cam = pred["X_cam"]
            X_root = X_cam - X_cam[:, self.skeleton.root_index, None]
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
        rows = [crops, pred["x_img"], pred["conf"], X_root, X_cam]
        columns = [[None] * len(crops) if a is None else np.asarray(a, dtype=np.float32) for a in rows]
        K, said = (None, ()) if X_cam is None else (cameras.K.numpy().astype(np.float32), tuple(assumed))
        ends = self._corrections(pred, len(crops))
        return [Prediction(self.skeleton, *row, K, said, end) for *row, end in zip(*columns, ends, strict=True)]

    def _seen(self, batch: dict, clips: Clips, place: np.ndarray) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        """What the task makes of a batch of crops, in the order of the judged frames of clips, and the crops of those."""
        over_time = place.shape[1] > 1
        flat, shape = torch.from_numpy(place.reshape(-1)), place.shape if over_time else place.shape[:1]
        batch = {name: in_clips(value, flat, shape) for name, value in batch.items()}
        if over_time:
            batch["mask"] = torch.from_numpy(clips.mask)
        with torch.no_grad(), torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            pred = self.task.predict(to_device(batch, self.device))
        pred = {name: (value[torch.from_numpy(clips.judged)] if over_time else value).cpu().double() for name, value in pred.items()}
        if "x_img" not in pred:
            raise WeightsError(
                "checkpoint: its network tells no 2D joints, by which a person has a place in the picture; give one that has a 2D head "
                "(MACHINE.HEAD2D), or whose projector has learned (MACHINE.STAGE projector, joint)"
            )
        return pred, place[clips.judged]

    def _corrections(self, pred: dict[str, torch.Tensor], count: int) -> list[Correction | None]:
        if self.correction == "off":
            return [None] * count
        if "X_before" not in pred:
            raise WeightsError(
                "checkpoint: its network has no poses to correct, as it tells no depth; give another one, or leave the correction out"
            )
        before, after = (pred[name].tolist() for name in ("reprojection_before_px", "reprojection_px"))
        ends = [DECISIONS[k] for k in pred["decision"].long().tolist()]
        return [Correction(*row) for row in zip(pred["X_before"].numpy().astype(np.float32), before, after, ends, strict=True)]


def _cameras(camera, image: np.ndarray) -> tuple[Cameras, list[str]]:
    """The camera of a picture, in float64 at the origin, and what was assumed about it."""
    height, width = image.shape[:2]
    assumed = []
    if camera is None:
        focal = float(max(width, height))
        camera = [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
        assumed.append(f"the focal length is {focal:.0f} px, the axis in the middle of the picture")
    own = OwnCamera.make(camera, (width, height)).camera
    return Cameras.make(own.K, torch.eye(3).double(), torch.zeros(3).double(), own.dist, (width, height)), assumed


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
