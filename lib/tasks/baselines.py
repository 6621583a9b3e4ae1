"""What a trained network is compared with: the mean pose, and the triangulated labels themselves."""

import dataclasses

import torch

from lib.dataset.annotations import Annotations
from lib.geometry.camera import Cameras
from lib.metrics import PoseEvaluator
from lib.metrics.report import Report
from lib.skeleton import get
from lib.tasks.labels import Labels


def true_poses(ann: Annotations) -> tuple[torch.Tensor, torch.Tensor]:
    """Ground truth of every observation in its camera.   -> X_cam (N,J,3) mm, valid (N,J)"""
    cameras = ann.observing()
    valid = torch.from_numpy(ann.X_valid[ann.pose]) & torch.from_numpy(ann.pose >= 0)[:, None]
    return cameras.to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()), valid


def mean_pose_report(train: Annotations, valid: Annotations) -> Report:
    """The score of answering every image with the mean root-relative pose of the training set, in camera axes."""
    root = get(train.skeleton).root_index
    X, known = true_poses(train)
    centred = torch.where(known[..., None], X - X[:, root : root + 1], 0.0)
    mean = centred.sum(0) / known.sum(0).clamp(min=1)[:, None]
    X_true, _ = true_poses(valid)
    return _report(valid, X_true[:, root : root + 1] + mean)


def label_report(ann: Annotations, labels: Labels, cameras: Cameras | None = None) -> Report:
    """The score of triangulated labels against the truth, over the joints that have one; `labels_kept_percent` tells how many.

    `cameras`: those in whose world the labels are, where they are others than the table's (lib/tasks/rigs.py).
    """
    cameras = dataclasses.replace(ann, cameras=cameras or ann.cameras).observing()
    X = cameras.to_cam(torch.from_numpy(labels.X_world[labels.pose]).double())
    kept = torch.from_numpy(labels.X_valid[labels.pose])
    root = get(ann.skeleton).root_index
    report = _report(ann, X, kept & kept[:, root : root + 1])
    report.metrics["labels_kept_percent"] = 100 * float(kept.float().mean())
    return report


def _report(ann: Annotations, X_cam: torch.Tensor, defined: torch.Tensor | None = None) -> Report:
    evaluator = PoseEvaluator(ann.skeleton, actions=[ann.action(i) for i in range(len(ann))])
    X_true, known = true_poses(ann)
    pred = {"X_cam": X_cam} if defined is None else {"X_cam": X_cam, "valid": defined}
    evaluator.update(pred, {"id": torch.arange(len(ann)), "X_cam": X_true, "X_valid": known})
    return evaluator.compute()
