"""Which views of an instant go together, and which pictures show all of them."""

import numpy as np

from lib.dataset.annotations import Annotations
from lib.errors import DataError

PAIRINGS = ("all", "neighbours", "consecutive", "random_neighbours")


def view_table(ann: Annotations, views: list[int]) -> np.ndarray:
    """Rows of a person at an instant, one column per view.   -> (G, V) int64, -1 where a view does not see them

    Groups are ordered by sequence, frame, person.

    Raises:
        DataError: a person appears twice in one view, or its rows name two poses.
    """
    ann_rows = np.flatnonzero(np.isin(ann.view, views))
    picked = ann.select(ann_rows)
    rows, starts = picked.group("sequence", "frame", "person")
    counts = np.diff(starts)
    group = np.repeat(np.arange(len(counts)), counts)
    slot = np.zeros(max(views) + 1, dtype=np.int64)
    slot[views] = np.arange(len(views))
    column = slot[picked.view[rows]]
    cells = group * len(views) + column
    _, first, seen = np.unique(cells, return_index=True, return_counts=True)
    if (seen > 1).any():
        raise DataError(
            f"{_name(picked, rows[first[seen > 1][0]])} appears twice; give each person of an image another number"
        )
    poses = picked.pose[rows]
    other = np.flatnonzero(poses != np.repeat(poses[starts[:-1]], counts)) if len(rows) else []
    if len(other):
        raise DataError(
            f"{_name(picked, rows[other[0]])} has pose {poses[other[0]]}, another view of the same instant a different "
            "one; "
            "all views of a person at an instant share one row of X_world"
        )
    table = np.full((len(counts), len(views)), -1, dtype=np.int64)
    table[group, column] = ann_rows[rows]
    return table


def view_pairs(ann: Annotations, table: np.ndarray, pairs: str) -> np.ndarray:
    """Which views of each instant may be paired.   table (G, V) of `view_table` -> (G, V, V) bool, symmetric

    pairs: "consecutive" (columns i and i + 1) or one of the neighbour modes.
    """
    seen = table >= 0
    width = table.shape[1]
    if pairs == "consecutive":
        joined = np.abs(np.subtract.outer(np.arange(width), np.arange(width))) == 1
    else:
        centers = ann.cameras.center.numpy()
        sequence = ann.sequence[table.max(1)]
        known, group = np.unique(sequence, return_inverse=True)
        rig = np.full((len(known), width, 3), np.nan)  # each sequence has a rig of its own
        where = np.nonzero(seen)
        rig[group[where[0]], where[1]] = centers[ann.camera[table[where]]]
        joined = neighbours(rig)[group]
    return joined & seen[:, :, None] & seen[:, None, :]


def neighbours(centers: np.ndarray) -> np.ndarray:
    """The neighbours of each camera: the two that are nearest in angle, as seen from the middle of the rig.

    It is enough that one of a pair is near the other: the relation is symmetric.

    centers (..., V, 3) mm, NaN for cameras that are not there -> (..., V, V) bool, symmetric. Of four cameras in the
    corners of a rectangle these are its sides (as in EpipolarPose), never its diagonals.
    """
    there = np.isfinite(centers).all(-1)
    filled = np.where(there[..., None], centers, 0)
    middle = filled.sum(-2, keepdims=True) / np.maximum(there.sum(-1), 1)[..., None, None]
    ray = filled - middle
    ray /= np.maximum(np.linalg.norm(ray, axis=-1, keepdims=True), 1e-9)
    cosine = ray @ np.swapaxes(ray, -1, -2)
    both = there[..., :, None] & there[..., None, :] & ~np.eye(centers.shape[-2], dtype=bool)
    rank = np.argsort(np.argsort(np.where(both, -cosine, np.inf), axis=-1, kind="stable"), axis=-1, kind="stable")
    near = (rank < 2) & both
    return near | np.swapaxes(near, -1, -2)


def _name(ann: Annotations, row: int) -> str:
    return f"person {ann.person[row]} at sequence {ann.sequence[row]}, frame {ann.frame[row]}, view {ann.view[row]}"


def views_in_turn(view: np.ndarray, most: int) -> np.ndarray:
    """Rows from all over a table, of all views in turn.   view (N,) -> at most `most` different rows, in order"""
    views, chosen = np.unique(view), []
    for k, place in enumerate(np.linspace(0, len(view) - 1, min(most, len(view))).astype(int)):
        near = np.argsort(np.abs(np.arange(len(view)) - place), kind="stable")
        chosen.append(int(near[view[near] == views[k % len(views)]][0]))
    return np.array(sorted(set(chosen)), np.int64)
