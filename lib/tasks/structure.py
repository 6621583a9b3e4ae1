"""The clusters behind the Pose Structure Score: made from a training set, stored beside the data, found for an evaluation.

They take the true 3D poses of the training set. That is part of judging, not of training: no task learns from them, and a
self-supervised student stays self-supervised.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.config import Config
from lib.dataset import load
from lib.dataset.annotations import Annotations
from lib.errors import DataError
from lib.metrics import structure
from lib.metrics.structure import COUNTS, Clusters
from lib.ranks import once
from lib.tasks.world import LAYOUTS

MOST = 25_000  # poses; of Human3.6M's every 32nd frame this keeps every second, and so the stride of 64 of published work
log = logging.getLogger("parallax")


def path_of(root: str | Path, skeleton: str, count: int) -> Path:
    """Where the clusters of a data set lie."""
    return Path(root) / f"pss-{skeleton}-{count}.npz"


def complete_poses(ann: Annotations, most: int = MOST) -> tuple[Tensor, int]:
    """The poses of a table of which every joint is known, in the frame of each camera that sees them.

    Args:
        most: at most so many; then every step-th instant is kept, with all of its views.

    Returns:
        X_cam (N,J,3) float32 mm, step.
    """
    complete = (ann.pose >= 0) & ann.X_valid.all(1)[np.maximum(ann.pose, 0)] if len(ann.X_valid) else np.zeros(len(ann), bool)
    step = max(1, -(-int(complete.sum()) // most))
    instants = np.unique(ann.pose[complete])[::step]
    rows = np.flatnonzero(complete & np.isin(ann.pose, instants))
    X_world = torch.from_numpy(ann.X_world[ann.pose[rows]]).double()
    cameras = ann.observing(rows)
    return cameras.to_cam(X_world).float(), step


def make(ann: Annotations, root: str | Path, source: str, counts: Sequence[int] = COUNTS, most: int = MOST, seed: int = 0) -> list[Path]:
    """Fits clusters to the true poses of `ann` and writes pss-<skeleton>-<K>.npz into `root`; files that are there stay.

    Args:
        source: name of the split, stored with the clusters.
        counts: K, one file each; one that exceeds the number of poses is left out, with a line in the log.
        most, seed: see complete_poses and lib.metrics.structure.fit.

    Returns:
        The files that were written.

    Raises:
        DataError: `ann` has no complete 3D pose, or a file cannot be written.
    """
    X, step = complete_poses(ann, most)
    if not len(X):
        raise DataError(f"pose structure: {source} of {root} has no 3D pose with all joints known; fit to a split that has some")
    written = []
    for count in counts:
        path = path_of(root, ann.skeleton, count)
        if path.exists():
            continue
        if len(X) < count:
            log.info("PSS@%d: left out, %s has only %d poses", count, source, len(X))
            continue
        start = time.perf_counter()
        structure.save(path, structure.fit(X, ann.skeleton, count, seed, source=source, step=step))
        log.info("PSS@%d: clusters of %d poses of %s in %.1f s: %s", count, len(X), source, time.perf_counter() - start, path)
        written.append(path)
    return written


def clusters(cfg: Config, skeleton: str) -> tuple[Clusters, ...]:
    """The clusters that an evaluation in this skeleton uses, as TEST.PSS says; the embedded world makes its own when missing.

    Raises:
        DataError: a file that lies there is damaged or does not fit.
    """
    if cfg.TEST.PSS == "off":
        return ()
    root = Path(cfg.DATASET.ROOT)
    paths = [path_of(root, skeleton, count) for count in COUNTS]
    split = _world_split(cfg)
    if split:
        try:  # of all subjects and views, whatever part of them this run uses: a metric must not depend on that
            once(paths, lambda: make(load(cfg.DATASET.DATASET, root, split, cfg.DATASET.OPTIONS, skeleton), root, split))
        except DataError as error:
            log.info("no Pose Structure Score: %s", error)
    found = [path for path in paths if path.exists()]
    if not found and not split:
        log.info("no Pose Structure Score: there is no %s; scripts/prepare.py pss makes it", paths[0])
    return tuple(structure.load(path, skeleton) for path in found)


def _world_split(cfg: Config) -> str:
    """The split of the embedded world with the poses of the people that 3D is learned from; "" for other data."""
    if cfg.DATASET.DATASET == "synthetic":
        return "train"
    native = LAYOUTS.get(cfg.DATASET.DATASET, ()) if cfg.SYNTH.NATIVE else ()
    return next((layout.split for layout in native if layout.source == "train"), "")
