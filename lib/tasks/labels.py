"""3D labels from 2D predictions in several calibrated views: the self-supervision of EpipolarPose (Kocabas et al., CVPR 2019, §3).

A teacher that has never seen a 3D label predicts joints in every view; they are triangulated, and what the views agree on
becomes the label of the single-view student.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.dataset.annotations import Annotations
from lib.dataset.rig import view_pairs, view_table
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.precision import solve_dtype
from lib.geometry.triangulation import (
    enough_views,
    ransac_triangulate,
    reprojection_error,
    triangulate,
    triangulate_pairs,
)

PAIRWISE = ("optimal2", "midpoint", "median")  # of two views; of more, the vector median of their pairs is taken
# Solvers that go by another name in lib.geometry.triangulation. linear_ls, unlike dlt, is safe near the world's origin.
SOLVERS = {"weighted": "linear_ls", "median": "optimal2"}


@dataclass(frozen=True)
class Rule:
    """How views become a label."""

    method: str = "reweighted"  # EPIPOLAR.METHOD: dlt weighted reweighted ransac, or of pairs of views: optimal2 midpoint median
    pairs: str = "all"  # all views at once, or which pairs of them: a name of lib.dataset.rig.PAIRINGS
    threshold_px: float = 0.0  # a joint needs two views whose reprojection error is below; 0 = any error, which ransac cannot do
    min_conf: float = 0.0  # views less confident than this are left out


def triangulate_views(
    x_img: Tensor,  # (...,V,J,2) px, as seen in the image
    conf: Tensor,  # (...,V,J) 0 = unseen
    cameras: Cameras,  # (...,V)
    rule: Rule,
    joined: Tensor | None = None,  # (...,V,V) bool, views that may be paired; None = any two
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints in the world, their validity, and how well each view agrees.

    Lens distortion is removed first. A joint is valid when two views used it, it lies in front of every camera that used it, and
    two views agree with it to `rule.threshold_px`; all other values are finite but mean nothing.

    Returns:
        X_world (...,J,3) mm, valid (...,J) bool, error_px (...,V,J) reprojection error (0 where a view was not used).
    """
    x = cameras.undistort(x_img)
    weight = conf * (conf > max(rule.min_conf, 0.0))
    P = cameras.P.to(x.dtype)
    if rule.method == "dlt" or rule.method in PAIRWISE:
        weight = (weight > 0).to(x.dtype)
    used = weight > 0
    if rule.method == "ransac":
        X, inlier = ransac_triangulate(x, P, weight, rule.threshold_px)
        used = used & inlier
    elif joined is not None or rule.method in PAIRWISE:
        X = triangulate_pairs(x, P, weight, SOLVERS.get(rule.method, rule.method), joined)
    else:
        X = triangulate(x, P, weight, SOLVERS.get(rule.method, rule.method))
    error = torch.where(weight > 0, reprojection_error(X, x, P), 0.0)  # inf behind a camera
    depth = cameras.to_cam(X[..., None, :, :])[..., 2]
    in_front = ((depth > 0) | ~used).all(-2)
    agree = used & (error < rule.threshold_px) if rule.threshold_px > 0 else used
    valid = enough_views(agree.to(x.dtype)) & in_front & torch.isfinite(X).all(-1)
    return torch.where(valid[..., None], X, 0.0), valid, error


@dataclass(frozen=True)
class Labels:
    """Triangulated poses of a table: one per (sequence, frame, person), and where each observation finds its own."""

    X_world: np.ndarray  # (G,J,3) float32 mm
    X_valid: np.ndarray  # (G,J) bool
    error_px: np.ndarray  # (G,V,J) float32, 0 where a view was not used
    pose: np.ndarray  # (N,) int32, row of the above for each observation of the table


def make_labels(
    ann: Annotations,
    x_img: np.ndarray,  # (N,J,2) px, 2D predictions per observation
    conf: np.ndarray,  # (N,J)
    rule: Rule,
    device: torch.device | str = "cpu",
    chunk: int = 4096,
) -> Labels:
    """Triangulate predictions of a whole table, `chunk` people at a time on `device`.

    Raises:
        DataError: no instant is seen by two views.
    """
    row = view_table(ann, np.unique(ann.view).tolist())  # (G,V)
    if ((row >= 0).sum(1) < 2).all():
        raise DataError(
            "triangulation: no person is seen by two cameras at the same instant; "
            "use DATASET.VIEWS with two or more views, and check that the cameras' frame numbers agree"
        )
    joined = None if rule.pairs == "all" else torch.from_numpy(view_pairs(ann, row, rule.pairs))
    parts, dtype = [], solve_dtype(torch.device(device))
    for begin in range(0, len(row), chunk):
        r = row[begin : begin + chunk]
        present = torch.from_numpy(r >= 0)
        r = np.maximum(r, 0)
        x = torch.from_numpy(x_img[r]).to(dtype).to(device)
        c = (torch.from_numpy(conf[r]) * present[..., None]).to(dtype).to(device)
        cameras = ann.observing(r).to(dtype).to(device)
        pairs = None if joined is None else joined[begin : begin + chunk].to(device)
        parts.append([t.cpu() for t in triangulate_views(x, c, cameras, rule, pairs)])
    pose = np.zeros(len(ann), np.int32)
    group, view = np.nonzero(row >= 0)
    pose[row[group, view]] = group
    X, valid, error = (torch.cat(p).numpy() for p in zip(*parts, strict=True))
    return Labels(X.astype(np.float32), valid, error.astype(np.float32), pose)


def relabel(ann: Annotations, labels: Labels, root_index: int, box_mm: float) -> Annotations:
    """The table as a student sees it: no trace of the annotated 3D, all of it replaced by labels.

    `x_img` becomes the projection of the label into each image and `box` the projection of a square of `box_mm` around the
    labelled root, as in the published data; observations whose root has no label are left out.
    """
    pose = labels.pose
    rows = np.flatnonzero(labels.X_valid[pose, root_index])
    if not len(rows):
        raise DataError(
            "labels: not one person has a triangulated root; raise EPIPOLAR.THRESHOLD_PX, or check the teacher's 2D predictions"
        )
    kept = ann.select(rows)
    pose = pose[rows]
    X = torch.from_numpy(labels.X_world[pose]).double()
    cameras = kept.observing()
    x_img = cameras.project(X)[0].numpy()
    valid = labels.X_valid[pose]
    root_px = x_img[:, root_index]
    depth = cameras.to_cam(X[:, root_index : root_index + 1])[:, 0, 2].numpy()
    half = 0.5 * box_mm * np.stack([cameras.K[:, 0, 0].numpy(), cameras.K[:, 1, 1].numpy()], -1) / depth[:, None]
    return dataclasses.replace(
        kept,
        X_world=labels.X_world,
        X_valid=labels.X_valid,
        pose=pose,
        x_img=np.where(valid[..., None], x_img, 0).astype(np.float32),
        conf=valid.astype(np.float32),
        visible=valid,
        box=np.concatenate([root_px - half, root_px + half], -1).astype(np.float32),
    )
