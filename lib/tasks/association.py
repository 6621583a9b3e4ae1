"""How far 2D detections go without any network in 3D: people put together across views, triangulated, judged by PCP."""

from pathlib import Path

import torch

from lib.dataset import load
from lib.dataset.formats import FORMATS
from lib.dataset.image import ImageSpec
from lib.geometry.association import MIN_CONF, associate_people
from lib.metrics.people_evaluator import PCPEvaluator
from lib.metrics.report import Report
from lib.registry import resolve
from lib.tasks.scenes import detected_frames, true_actors

BLOCK = 64  # frames at once


def judge(
    dataset: str, root: str | Path, split: str = "valid", head_rule: str = "plain", min_conf: float = MIN_CONF, missing: str = "empty"
) -> Report:
    """PCP of people who are associated and triangulated (lib.geometry.association) from the detections of Shelf or Campus.

    Args:
        dataset: "shelf" or "campus".
        root: folder with calibration, detections and actorsGT.mat.
        split, missing: as for lib.dataset.formats.shelf.read.
        head_rule: see lib.metrics.people.to_fourteen.
        min_conf: joints that the detector is less sure of are not used.

    Raises:
        DataError: a file is missing or damaged.
    """
    layout = resolve(FORMATS, dataset, key="dataset").LAYOUT
    ann = load(dataset, root, split, {"labels": "detections", "missing": missing})
    frames = detected_frames(ann, root, ImageSpec(layout.size))
    truth = true_actors(layout, root, split, frames)
    protocol = {"method": "association", "views": frames.views, "min_conf": min_conf}
    evaluator = PCPEvaluator(ann.skeleton, truth, head_rule, protocol=protocol)
    for start in range(0, len(frames), BLOCK):
        batch = frames.__getitems__(list(range(start, min(start + BLOCK, len(frames)))))
        conf = batch["conf"].where(batch["conf"] >= min_conf, 0.0)
        found = associate_people(batch["x_img"].double(), conf.double(), batch["camera"].to(torch.float64))
        pred = {"X_world": found.X_world, "valid": found.valid, "found": found.found, "score": found.score}
        evaluator.update(pred, {"id": batch["id"]})
    return evaluator.compute()
