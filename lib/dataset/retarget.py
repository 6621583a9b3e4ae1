"""Poses moved to one skeleton: every bone keeps its direction and gets a common length.

The published ground truth of 3D Human Pose Machines (Wang et al., TPAMI 2019) was made so ("mean limb scaled"): errors against it are not
errors against people. It is off unless asked for.
"""

import dataclasses

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.errors import DataError
from lib.skeleton import Skeleton


def bone_lengths(X: np.ndarray, skeleton: Skeleton | str) -> np.ndarray:
    """Length of the bone that leads to each joint; 0 for the root.   X (...,J,3) -> (...,J), in the unit of X"""
    parents = np.asarray(skeletons.get(skeleton).parents)
    return np.linalg.norm(X - X[..., parents, :], axis=-1)


def mean_lengths(X: np.ndarray, skeleton: Skeleton | str, valid: np.ndarray | None = None) -> np.ndarray:
    """Mean length of the bone that leads to each joint, the same for left and right.

    Args:
        X: (N,J,3) mm; valid (N,J), None = all.

    Returns:
        (J,) mm, 0 for the root.

    Raises:
        DataError: a bone is in no pose, or shapes do not fit.
    """
    skeleton = skeletons.get(skeleton)
    X, valid = _checked(X, skeleton, valid)
    known = valid & valid[:, np.asarray(skeleton.parents)]
    count = known.sum(0)
    if not count.all():
        joint = skeleton.joints[int(np.flatnonzero(count == 0)[0])]
        raise DataError(f"mean limbs: no pose has the bone to {joint}, expected one or more; use poses with all joints")
    mean = np.where(known, bone_lengths(X, skeleton), 0).sum(0) / count
    return (mean + mean[skeleton.flip]) / 2


def retarget(
    X: np.ndarray, skeleton: Skeleton | str, lengths: np.ndarray, valid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Poses with the given bone lengths; the root and the directions of bones stay.

    Args:
        X: (N,J,3) mm; valid (N,J), None = all.
        lengths: (J,) mm of the bone that leads to each joint; the root's means nothing.

    Returns:
        X (N,J,3) float64, 0 where not valid; valid (N,J) bool: a joint needs all joints between it and the root, and bones with a
        length.

    Raises:
        DataError: shapes do not fit, or a length is not positive.
    """
    skeleton = skeletons.get(skeleton)
    X, valid = _checked(X, skeleton, valid)
    lengths, root = np.asarray(lengths, np.float64), skeleton.root_index
    if lengths.shape != (skeleton.num,) or not (np.delete(lengths, root) > 0).all():
        raise DataError(f"retarget: lengths are {lengths.tolist()}, expected {skeleton.num} positive ones for skeleton {skeleton.name}")
    bones = X - X[:, np.asarray(skeleton.parents)]
    found = np.linalg.norm(bones, axis=-1)
    known = valid & ((found > 0) | (np.arange(skeleton.num) == root))
    above = _above(skeleton)  # (J,J): the joints whose bones lead to a joint
    complete = ~((~known).astype(int) @ above.T.astype(int) > 0)
    scaled = bones * (np.where(found > 0, lengths / np.where(found > 0, found, 1), 0))[..., None]
    moved = X[:, root, None] + np.einsum("jk,nkc->njc", above.astype(np.float64), scaled)
    return np.where(complete[..., None], moved, 0), complete


def retargeted(ann: Annotations, lengths: np.ndarray | None = None) -> tuple[Annotations, np.ndarray]:
    """The table with poses of one skeleton; 2D joints stay, so that 3D and 2D no longer agree exactly.

    Args:
        ann: the table.
        lengths: (J,) mm; None = the mean of its poses. A test set needs those of its training set.

    Returns:
        the table; the lengths (J,) mm.

    Raises:
        DataError: no pose, or lengths that do not fit.
    """
    if lengths is None:
        lengths = mean_lengths(ann.X_world, ann.skeleton, ann.X_valid)
    X, valid = retarget(ann.X_world, ann.skeleton, lengths, ann.X_valid)
    return dataclasses.replace(ann, X_world=X.astype(np.float32), X_valid=valid), lengths


def _checked(X: np.ndarray, skeleton: Skeleton, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    X = np.asarray(X, np.float64)
    valid = np.ones(X.shape[:2], bool) if valid is None else np.asarray(valid, bool)
    if X.shape[1:] != (skeleton.num, 3) or valid.shape != X.shape[:2]:
        shape = f"(N, {skeleton.num}, 3) and (N, {skeleton.num}) for skeleton {skeleton.name}"
        raise DataError(f"limbs: poses have shape {X.shape} and valid {valid.shape}, expected {shape}")
    return np.where(valid[..., None], X, 0), valid


def _above(skeleton: Skeleton) -> np.ndarray:
    """above[j,k]: joint k lies on the way from the root to joint j, both ends included.   -> (J,J) bool"""
    above = np.eye(skeleton.num, dtype=bool)
    joint = np.arange(skeleton.num)
    for _ in range(skeleton.num):
        joint = np.asarray(skeleton.parents)[joint]
        above[np.arange(skeleton.num), joint] = True
    return above
