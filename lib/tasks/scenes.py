"""Shelf and Campus as VoxelPose treats them: heatmaps drawn from 2D detections, learned on scenes that never were.

Trained on poses of other people that are put before the cameras of the place (lib.dataset.scenes), judged by PCP on the detections of its
pictures. No picture is read. DATASET.TRAIN_SET names the file of poses in DATASET.ROOT; `synthetic` takes those of the embedded world.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from lib.config import Config
from lib.dataset.annotations import Annotations
from lib.dataset.formats import FORMATS, actors
from lib.dataset.frames import FrameSamples
from lib.dataset.image import ImageSpec
from lib.dataset.scenes import SceneSamples
from lib.errors import DataError
from lib.geometry.voxel import space_from_cameras
from lib.metrics.people_evaluator import PCPEvaluator
from lib.registry import resolve
from lib.synthetic.world import World
from lib.tasks import data
from lib.tasks.voxelpose import VoxelPoseTask

EMBEDDED = "synthetic"  # DATASET.TRAIN_SET: poses of the embedded world
EMBEDDED_POSES = 1000
DETECTIONS = {"labels": "detections"}  # DATASET.OPTIONS of what is judged
SKELETONS = (actors.DETECTED, "panoptic15")  # VoxelPose's, and SelfPose3d's in these places
log = logging.getLogger("parallax")


class ScenesTask(VoxelPoseTask):
    """2D detections of all views to the people in them, in mm of the world."""

    def __init__(self, cfg: Config):
        self.format = resolve(FORMATS, cfg.DATASET.DATASET, key="DATASET.DATASET")
        if not hasattr(self.format, "RULES"):
            found = f"is {cfg.DATASET.DATASET}, which tells no rules for scenes; TASK scenes is for shelf and campus"
            raise cfg.error("DATASET.DATASET", found)
        if cfg.VOXEL.HEATMAPS != "keypoints":
            raise cfg.error("VOXEL.HEATMAPS", f"is {cfg.VOXEL.HEATMAPS}, but TASK scenes has no pictures; set keypoints")
        if cfg.DATASET.SKELETON not in SKELETONS:
            raise cfg.error(
                "DATASET.SKELETON", f"must be {' or '.join(SKELETONS)} for TASK scenes: the joints of the detections, or Panoptic's, "
                "which are made of them"
            )  # fmt: skip
        super().__init__(cfg)
        self.key_metric = ("pcp_percent", "max")

    @classmethod
    def overfit(cls, cfg: Config) -> dict:
        found = "is scenes, which learns from scenes that are made up and is judged by the pictures alone, so that --overfit cannot judge "
        raise cfg.error("TASK", found + "what was learned; use --dry-run, or a short run with TRAIN.MAX_STEPS")

    # --- data

    def train_data(self) -> dict[str, Dataset]:
        cfg = self.cfg
        X, valid = self.poses()
        cameras = actors.rig(self.format.LAYOUT, cfg.DATASET.ROOT)
        views = list(cfg.DATASET.VIEWS) or list(range(len(cameras)))
        if unknown := [v for v in views if v >= len(cameras)]:
            raise cfg.error("DATASET.VIEWS", f"names {unknown}, but {cfg.DATASET.ROOT} has the cameras 0 to {len(cameras) - 1}")
        cameras = cameras[views]
        if not self.space_known:
            self.set_space(*space_from_cameras(cameras))
        samples = SceneSamples(X, valid, cameras, self.format.RULES, self.image_spec, cfg.VOXEL.SCENES, cfg.VOXEL.MAX_PEOPLE,
                               self.skeleton, cfg.SEED)  # fmt: skip
        return {"train": samples}

    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """The pool that scenes are made of.   -> (P,J,3) mm, (P,J) bool

        Raises:
            DataError: DATASET.TRAIN_SET names no file of poses, or a damaged one.
        """
        cfg = self.cfg
        if cfg.DATASET.TRAIN_SET == EMBEDDED:
            log.info("scenes are made of the embedded world's poses, which have neither eyes nor ears")
            ann = World(seed=cfg.SYNTH.SEED, split="train", frames=EMBEDDED_POSES).annotations().to_skeleton(self.skeleton)
            return ann.X_world.astype(np.float64), ann.X_valid
        path = Path(cfg.DATASET.ROOT) / cfg.DATASET.TRAIN_SET
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; DATASET.TRAIN_SET names the file of poses that scenes are made of ({actors.POSES} is the published "
                f"one), or {EMBEDDED} for poses of the embedded world, which need no file"
            )
        return actors.read_poses(path, self.skeleton)

    def eval_data(self) -> dict[str, Dataset]:
        """Detections of the pictures of the test split; the rig tells the space, where the configuration does not."""
        cfg, d = self.cfg, self.cfg.DATASET
        cfg = cfg.with_values({"DATASET.OPTIONS": d.OPTIONS | DETECTIONS})
        ann = data.annotations(cfg, d.TEST_SET, d.VAL_FRAME, cfg.TEST.SUBJECTS)
        if cfg.VOXEL.PEAKS == "ones":
            ann = dataclasses.replace(ann, conf=(ann.conf > 0).astype(ann.conf.dtype))
        samples = detected_frames(ann, d.ROOT, self.image_spec, d.VIEWS)
        if not self.space_known:
            self.set_space(*space_from_cameras(samples.cameras[samples.camera[0].tolist()]))
        return {"valid": samples}

    # --- evaluation

    def protocol(self) -> dict:
        told = super().protocol()
        return told | {"options": told["options"] | DETECTIONS}

    def evaluator(self, dataset: FrameSamples) -> PCPEvaluator:
        space = self.model.root_net.space
        return PCPEvaluator(
            self.skeleton,
            true_actors(self.format.LAYOUT, self.cfg.DATASET.ROOT, self.cfg.DATASET.TEST_SET, dataset),
            self.cfg.TEST.HEAD_RULE,
            rule="reference" if self.cfg.VOXEL.RULE == "reference" else "exact",
            protocol={
                "views": dataset.views,
                "peaks": self.cfg.VOXEL.PEAKS,
                "space_mm": [list(space.size), list(space.center)],
                "voxels": list(space.shape),
            },
        )


def detected_frames(ann: Annotations, root: str | Path, spec: ImageSpec, views: Sequence[int] = ()) -> FrameSamples:
    """Frames of 2D detections, with room for everybody in the fullest picture; pictures are not read."""
    most = np.unique(np.stack([ann.sequence, ann.frame, ann.view], 1), axis=0, return_counts=True)[1].max(initial=1)
    return FrameSamples(ann, root, spec, views or None, int(most), images=False)


def true_actors(layout: actors.Layout, root: str | Path, split: str, dataset: FrameSamples) -> np.ndarray:
    """Where the actors are at the instants of a set of frames.   -> (N,A,14,3) mm, NaN where an actor is absent

    Frames that have actors but are no part of the set (DATASET.OPTIONS {missing: skip}) are not judged: a warning tells how many.
    """
    X = actors.read_actors(Path(root) / actors.ACTORS)
    number = dataset.instants[:, 1]
    out = np.full((len(number), *X.shape[1:]), np.nan)
    there = number < len(X)
    out[there] = X[number[there]]
    missed = np.setdiff1d(actors.annotated_frames(layout, X, split), dataset.ann.frame)
    if len(missed):
        log.warning("%d frames of %s have actors but are not among the detections (%s); they are not judged", len(missed), root,
                    ", ".join(map(str, missed[:5])))  # fmt: skip
    return out
