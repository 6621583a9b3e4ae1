"""2D people of pictures from networks that are at hand: torchvision's Keypoint R-CNN, or a 2D network of ours on people's boxes.

Each is a function of pictures and their numbers that gives lib.dataset.formats.pseudo_labels.People of every picture, as
lib.tasks.pseudo.detected runs it over a data set.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib.dataset.annotations import Annotations, enlarged
from lib.dataset.formats.detector_files import read_boxes
from lib.dataset.formats.pseudo_labels import People, names_of
from lib.dataset.image import warp
from lib.engine.distributed import choose_device
from lib.errors import DataError, WeightsError
from lib.geometry.crop import invert, letterbox_affine, transform_points
from lib.geometry.heatmap import decode_heatmap
from lib.prediction.detection import find_joints, find_people
from lib.predictor import Predictor
from lib.tasks.restore import restore
from lib.tasks.voxelpose import VoxelPoseTask

COCO = "coco17"

# a picture (H,W,3) uint8 RGB and its number -> boxes (N,4) x0 y0 x1 y1 px, scores (N,)
Boxes = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class JointDetector:
    """Keypoint R-CNN: boxes and COCO's joints at once."""

    def __init__(self, model: nn.Module, threshold: float = 0.7):
        self.model, self.threshold = model, threshold

    def __call__(self, images: Sequence[np.ndarray], rows: Sequence[int]) -> list[People]:
        found = find_joints(images, self.model, self.threshold)
        return [People(COCO, np.full(len(s), row), x.astype(np.float64), b.astype(np.float64), s.astype(np.float64))
                for row, (x, b, s) in zip(rows, found, strict=True)]  # fmt: skip


class CropNetwork:
    """A network that sees one person's crop, run on boxes; the confidence is that of its heatmaps.

    Args:
        boxes: who is where.
        margin: factor on the sides of the boxes before they are cropped; labels keep the boxes as they were found.
    """

    def __init__(self, predictor: Predictor, boxes: Boxes, margin: float = 1.2, batch_size: int = 32):
        self.predictor, self.boxes, self.margin, self.batch_size = predictor, boxes, margin, batch_size

    def __call__(self, images: Sequence[np.ndarray], rows: Sequence[int]) -> list[People]:
        given = [_inside(*self.boxes(image, row), image) for image, row in zip(images, rows, strict=True)]
        wide = [enlarged(boxes, self.margin) for boxes, _ in given]
        found: list[list] = [[] for _ in images]
        shapes = [image.shape for image in images]
        for shape in set(shapes):  # pictures of one size share their batches
            own = [i for i, s in enumerate(shapes) if s == shape]
            poses = self.predictor.predict_frames([images[i] for i in own], [wide[i] for i in own], batch_size=self.batch_size)
            for i, people in zip(own, poses, strict=True):
                found[i] = people
        skeleton = self.predictor.skeleton
        out = []
        for row, people, (boxes, scores) in zip(rows, found, given, strict=True):
            x = np.array([np.column_stack([p.x_img, p.conf]) for p in people], np.float64).reshape(-1, skeleton.num, 3)
            out.append(People(skeleton.name, np.full(len(boxes), row), x, boxes, scores))
        return out


class FrameNetwork:
    """The 2D network of a VoxelPose or SelfPose3d checkpoint, which sees whole pictures: in everyone's box the highest place of each
    joint's heatmap, moved by a quarter of a cell towards the higher neighbour.

    Args:
        boxes: who is where; the maps do not say which peaks are one person's.
        margin: factor on the sides of the boxes in which peaks are looked for.
    """

    def __init__(self, task: VoxelPoseTask, boxes: Boxes, device: str = "auto", margin: float = 1.2):
        if not task.from_images:
            raise WeightsError("the checkpoint's network looks at keypoints (VOXEL.HEATMAPS keypoints), so it finds none in pictures")
        self.device = choose_device(device)
        self.task, self.boxes, self.margin = task.to(self.device).eval(), boxes, margin

    def __call__(self, images: Sequence[np.ndarray], rows: Sequence[int]) -> list[People]:
        spec = self.task.image_spec
        A = letterbox_affine([image.shape[1::-1] for image in images], spec.size)
        shown = np.stack([warp(image, a, spec.size) for image, a in zip(images, A.numpy(), strict=True)])
        batch = {
            "image": torch.from_numpy(shown).permute(0, 3, 1, 2).contiguous()[:, None].to(self.device),
            "patch_from_img": A.float()[:, None].to(self.device),
            "flipped": torch.zeros(len(images), dtype=torch.bool, device=self.device),
        }
        with torch.inference_mode():
            hm, hm_from_img = (t[:, 0].cpu().double() for t in self.task.heatmaps(batch))
        out = []
        for row, image, maps, affine in zip(rows, images, hm, hm_from_img, strict=True):
            boxes, scores = _inside(*self.boxes(image, row), image)
            x = peaks_in(maps, affine, torch.from_numpy(enlarged(boxes, self.margin)).double()).numpy()
            out.append(People(self.task.skeleton, np.full(len(boxes), row), x, boxes, scores))
        return out


def peaks_in(maps: Tensor, hm_from_img: Tensor, boxes: Tensor) -> Tensor:
    """The highest place of each heatmap in each box.   maps (J,h,w), hm_from_img (2,3), boxes (P,4) px -> (P,J,3) px, px, height 0..1"""
    height, width = maps.shape[-2:]
    corners = transform_points(hm_from_img, boxes.unflatten(-1, (2, 2)))  # (P,2,2)
    last = torch.tensor([width - 1, height - 1])
    low, high = (corner.clamp(min=torch.zeros_like(last), max=last) for corner in (corners.amin(1).floor(), corners.amax(1).ceil()))
    cells = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
    inside = ((cells >= low[:, None, None]) & (cells <= high[:, None, None])).all(-1)  # (P,h,w)
    x, score = decode_heatmap(maps.where(inside[:, None], 0.0), "quarter")
    return torch.cat([transform_points(invert(hm_from_img), x), score.clamp(0, 1)[..., None]], -1)


def network(path: str | Path, boxes: Boxes, device: str = "auto", margin: float = 1.2) -> CropNetwork | FrameNetwork:
    """The 2D network of a checkpoint, for crops or for whole pictures, as it was trained.

    Raises:
        WeightsError: the file cannot be read, holds no configuration, or its network finds no joints in pictures.
    """
    choose_device(device)
    task = restore(path, sees=["person", "views"])
    if task.sees == "views":
        return FrameNetwork(task, boxes, device, margin)
    cfg = task.cfg.DATASET
    return CropNetwork(Predictor(task, device, cfg.DEPTH_RANGE, box_scale=cfg.BOX_SCALE, box_fit=cfg.BOX_FIT), boxes, margin)


def detector_boxes(model: nn.Module, threshold: float = 0.7) -> Boxes:
    """Boxes of torchvision's person detector."""
    return lambda image, row: find_people(image, model, threshold)


def annotated_boxes(ann: Annotations) -> Boxes:
    """Boxes of the data set's own annotation, for trials; real labels are made without it."""
    good = np.flatnonzero(np.isfinite(ann.box).all(1) & (ann.box[:, 2:] > ann.box[:, :2]).all(1) & (ann.conf > 0).any(1))
    return _listed(ann.image[good], ann.box[good].astype(np.float64), np.ones(len(good)))


def boxes_of_file(ann: Annotations, path: str | Path, min_score: float = 0.0) -> Boxes:
    """Boxes of COCO results; see lib.dataset.formats.detector_files.read_boxes."""
    image, boxes, scores = read_boxes(path, names_of(ann))
    kept = scores >= min_score
    return _listed(image[kept], boxes[kept], scores[kept])


def _listed(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> Boxes:
    order = np.argsort(image, kind="stable")
    numbers, starts = np.unique(image[order], return_index=True)
    rows: Mapping[int, np.ndarray] = dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
    nobody = np.zeros(0, np.int64)
    return lambda _, row: (boxes[rows.get(row, nobody)], scores[rows.get(row, nobody)])


def _inside(boxes: np.ndarray, scores: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those that have an area in the picture."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise DataError("boxes: a coordinate is not finite; expected x0 y0 x1 y1 px")
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], image.shape[1::-1])
    good = (high > low).all(1)
    return boxes[good], np.asarray(scores, np.float64)[good]
