"""Campus: three cameras, 360 x 288 px, three actors; the layout is described in actors.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib.dataset.annotations import Annotations
from lib.dataset.formats import actors

SKELETON = "campus14"
LAYOUT = actors.Layout("campus", SKELETON, "Camera{camera}/campus4-c{camera}-{frame:05d}.png", (360, 288), ((350, 470), (650, 750)))
RULES = actors.CAMPUS_RULES
SPLITS = actors.SPLITS


def read(root: str | Path, split: str, labels: str = "actors", missing: str = "empty") -> Annotations:
    """One split: valid (or test) = the published test frames, train = all others, all; see lib.dataset.formats.actors.read.

    Args:
        labels: "actors" = annotated 3D joints; "detections" = published 2D detections in COCO's joints, without 3D.
        missing: what frames are whose actors are annotated and whom the detections do not name: "empty" = nobody was detected, "skip" =
            left out.
    """
    return actors.read(LAYOUT, root, split, labels, missing)


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes a data set that holds the frames of one split; see lib.dataset.formats.actors.write."""
    actors.write(LAYOUT, ann, root, split, image, workers, progress)


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good."""
    return actors.check(LAYOUT, root, split)
