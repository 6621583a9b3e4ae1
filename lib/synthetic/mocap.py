"""Real motion capture brought before the cameras of Human3.6M: clips are read, resampled, given bodies and cut to fit."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib import skeleton as skeletons
from lib.errors import MALFORMED, DataError
from lib.geometry.camera import Cameras
from lib.synthetic import stage
from lib.synthetic.body import SKELETON

KEYS = ("positions", "lengths", "sequence", "subject", "action", "fps", "joint_names")
ROAM = 2600.0  # mm, a longer way over the floor is cut: its pieces are filmed in the middle of the hall each
SHORTEST = 1.0  # s, of a clip and of its pieces; shorter ones are left out
STATURE, PROPORTION = 0.06, 0.04  # standard deviations of the factors on a drawn body's lengths: on all, and on each limb
SIDES = {"L": "l_", "R": "r_"}
MIDDLE = {"hip": "pelvis", "neck/nose": "nose"}  # what such files call joints that have no side


class Motion(NamedTuple):
    """One recorded clip."""

    subject: str  # as the file calls the actor
    action: str
    sequence: str
    fps: float
    X: np.ndarray  # (T,17,3) mm, h36m17, z up, floor near 0


def read(path: str | Path) -> list[Motion]:
    """The clips of a file: positions (N,J,3) m, z up, and per clip lengths, sequence, subject, action and fps.

    Joints are told by their names (`joint_names`), in any order.

    Raises:
        DataError: the file cannot be read, lacks a field or a joint, its lengths do not add up, or a position or a rate cannot be.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {key: file[key] for key in KEYS if key in file.files}
        return _motions(path, data)
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as motion capture ({error}); expected an .npz file with {', '.join(KEYS)}") from None


def _motions(path: str | Path, data: dict[str, np.ndarray]) -> list[Motion]:
    missing = [key for key in KEYS if key not in data]
    if missing:
        raise DataError(f"{path}: lacks {', '.join(missing)}; expected an .npz file with {', '.join(KEYS)}")
    names = [joint_name(str(name)) for name in data["joint_names"]]
    order = skeletons.get(SKELETON).joints
    absent = [name for name in order if name not in names]
    if absent:
        raise DataError(f"{path}: joint_names lacks {', '.join(absent)}; found {', '.join(map(str, data['joint_names']))}")
    X, lengths = data["positions"], data["lengths"]
    if not ((lengths > 0) & (lengths <= len(X))).all():
        raise DataError(f"{path}: lengths of clips from {lengths.min():g} to {lengths.max():g}, expected 1 to {len(X)} frames")
    lengths = lengths.astype(np.int64)
    if X.shape != (lengths.sum(), len(names), 3):
        expected = f"({lengths.sum()}, {len(names)}, 3) for its lengths and joint_names"
        raise DataError(f"{path}: positions have shape {X.shape}, expected {expected}")
    if not np.isfinite(X).all():
        raise DataError(f"{path}: positions hold NaN or infinite numbers; cut those frames out")
    if not (data["fps"] > 0).all():
        raise DataError(f"{path}: fps is {data['fps'].min():g} in a clip, expected a positive number; correct it")
    X = 1000.0 * X[:, [names.index(name) for name in order]].astype(np.float64)
    ends = np.cumsum(lengths)
    return [
        Motion(str(subject), str(action), str(sequence), float(fps), X[end - n : end])
        for subject, action, sequence, fps, end, n in zip(
            data["subject"], data["action"], data["sequence"], data["fps"], ends.tolist(), lengths.tolist(), strict=True
        )
    ]


def joint_name(name: str) -> str:
    """The name that lib.skeleton has for a joint of such a file: RHip -> r_hip, Hip -> pelvis."""
    if name[:1] in SIDES and name[1:2].isupper():
        return SIDES[name[0]] + name[1:].lower().replace("foot", "ankle")
    return MIDDLE.get(name.lower(), name.lower())


def cast(motions: Sequence[Motion], roles: Sequence[str]) -> dict[str, str]:
    """Which subject of Human3.6M each actor plays: in the order of their names, in turn.   -> actor -> role"""
    return {actor: roles[k % len(roles)] for k, actor in enumerate(sorted({m.subject for m in motions}))}


def clips(
    motions: Sequence[Motion], roles: dict[str, str], rigs: dict[str, Cameras], seed: int = 0, shapes: int = 0, fps: float = stage.FPS
) -> Iterator[stage.Clip]:
    """The motions as `roles` cast them, each piece at a random heading in the middle of its rig.

    An action is called by what is done, then by actor, sequence and piece: "slow-walk CMU08:08_03:1".

    Args:
        shapes: bodies that each actor is given in turn, clip by clip; 0 = the recorded one.
        seed: of bodies, headings and places.
    """
    turn: dict[str, int] = {}
    for motion in motions:
        role, k = roles[motion.subject], turn.get(motion.subject, 0)
        turn[motion.subject] = k + 1
        X = resample(motion.X, motion.fps, fps)
        if shapes:
            X = reshaped(X, stage.generator(seed, "shape", motion.subject, k % shapes))
        for piece, part in enumerate(pieces(X, round(SHORTEST * fps)), 1):
            name = f"{slug(motion.action)} {slug(motion.subject)}:{slug(motion.sequence)}:{piece}"
            rng = stage.generator(seed, "place", motion.subject, motion.sequence, piece)
            yield stage.Clip(role, name, stage.placed(part, rigs[role], rng))


def slug(text: str) -> str:
    """A name without spaces and punctuation, as the first word of an action's name must be."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "motion"


def resample(X: np.ndarray, fps: float, wanted: float) -> np.ndarray:
    """Positions at another rate, linear between frames.   X (T,J,3) -> (T',J,3)"""
    if fps == wanted or len(X) < 2:
        return X
    at = np.arange(int((len(X) - 1) * wanted / fps) + 1) * fps / wanted
    first = np.minimum(at.astype(np.int64), len(X) - 2)
    share = (at - first)[:, None, None]
    return X[first] * (1 - share) + X[first + 1] * share


def reshaped(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same motion by another body: limb lengths change, alike on both sides, their directions do not.

    X (T,17,3) mm, z up -> (T,17,3). Ways over the floor and the height of the hips scale as the legs do, so that feet stay on the floor.
    """
    skeleton = skeletons.get(SKELETON)
    parents, names = np.asarray(skeleton.parents), [name.split("_")[-1] for name in skeleton.joints]
    kinds = sorted(set(names))
    factors = np.exp(STATURE * rng.standard_normal() + PROPORTION * rng.standard_normal(len(kinds)))
    factor = np.array([factors[kinds.index(name)] for name in names])
    bone = X - X[:, parents]
    length = np.linalg.norm(bone, axis=-1).mean(0)
    leg = np.array([name in ("knee", "ankle") for name in names])
    ratio = (factor * length)[leg].sum() / length[leg].sum()
    Y = np.empty_like(X)
    for j in depth_first(parents):
        Y[:, j] = ratio * X[:, j] if parents[j] == j else Y[:, parents[j]] + factor[j] * bone[:, j]
    feet = [j for j, name in enumerate(names) if name == "ankle"]
    lowest = np.percentile(X[:, feet, 2], 2) - np.percentile(Y[:, feet, 2], 2)
    return Y + np.array([0.0, 0.0, lowest])


def depth_first(parents: np.ndarray) -> list[int]:
    """Joints, each after its parent."""
    depth = np.zeros(len(parents), np.int64)
    above = np.arange(len(parents))
    for _ in range(len(parents)):
        depth += parents[above] != above
        above = parents[above]
    return np.argsort(depth, kind="stable").tolist()


def pieces(X: np.ndarray, shortest: int) -> list[np.ndarray]:
    """A motion in the fewest equal pieces that each stay within ROAM; none, if they are shorter than `shortest` frames.

    Where someone is so fast that a piece of the shortest length leaves ROAM, pieces of about that length are kept.
    """
    most = len(X) // max(shortest, 1)
    for count in range(1, most + 1):
        parts = np.array_split(X, count)
        if count == most or all(np.ptp(part[:, 0, :2], axis=0).max() <= ROAM for part in parts):
            return parts
    return []
