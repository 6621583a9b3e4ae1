"""The files of 3D Human Pose Machines' release (Wang et al., TPAMI 2019), one by one: lists of pictures, the table of ranges that
coordinates are normalised with, results by action, the tree of joints. What they are together: machine_lists.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.formats import h36m
from lib.dataset.formats.matlab import load_mat
from lib.errors import DataError
from lib.files import new_file, refuse_existing

SKELETON = "h36m16"
JOINTS, ROOT = skeletons.get(SKELETON).num, skeletons.get(SKELETON).root_index
# What a line of a list may hold, by the number of its values: 2D, 3D, flag.
FORMS = {
    5 * JOINTS + 1: (True, True, True), 2 * JOINTS + 1: (True, False, True), 3 * JOINTS + 1: (False, True, True),
    2 * JOINTS: (True, False, False),
}  # fmt: skip
CHUNK = 5_000  # lines whose numbers are parsed at once


class Listed(NamedTuple):
    """What a list holds, line by line."""

    names: list[str]  # M paths as they are written
    x: np.ndarray | None  # (M,16,2) in sides of the picture
    X: np.ndarray | None  # (M,16,3), 0 = least, 1 = greatest of the table of ranges
    resets: np.ndarray | None  # (M,) bool: the flag is 0, a clip begins


class Ranges(NamedTuple):
    """Greatest and least value of each coordinate, (16,3) mm each; of the root, whose values mean nothing, any."""

    high: np.ndarray
    low: np.ndarray

    def to_mm(self, X: np.ndarray) -> np.ndarray:
        """From 0..1 to mm; the root at exactly 0.   (...,16,3) -> (...,16,3) float64"""
        return _rooted(np.asarray(X, np.float64) * (self.high - self.low) + self.low)

    def from_mm(self, X: np.ndarray) -> np.ndarray:
        """The inverse of `to_mm`; the root gets 0.   (...,16,3) mm relative to the root -> (...,16,3) float64"""
        width = np.where(self.high > self.low, self.high - self.low, 1)
        return _rooted((np.asarray(X, np.float64) - self.low) / width)


def _rooted(X: np.ndarray) -> np.ndarray:
    X[..., ROOT, :] = 0
    return X


def read_list(path: str | Path) -> Listed:
    """A list of any of the forms of FORMS; all lines have one. Paths may contain spaces: the last one ends them.

    Raises:
        DataError: no such file, or a line that is damaged or of another form.
    """
    path = Path(path)
    lines = [(i, line) for i, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty, expected a line per picture; copy the list again")
    names, texts = [], []
    for number, line in lines:
        name, space, values = line.strip().rpartition(" ")
        if not space or not name.strip():
            raise DataError(f"{path}: line {number} has no path and a space before its numbers: {line[:60]!r}; copy the list again")
        names.append(name.strip())
        texts.append(values)
    numbers = [number for number, _ in lines]
    values = _numbers(path, texts, numbers, sorted(FORMS))
    has_2d, has_3d, has_flag = FORMS[values.shape[1]]
    flag = values[:, -1] if has_flag else None
    if flag is not None and not np.isin(flag, (0, 1)).all():
        i = int(np.flatnonzero(~np.isin(flag, (0, 1)))[0])
        raise DataError(f"{path}: line {numbers[i]} ends in {flag[i]:g}, expected the flag of a clip, 0 or 1; copy the list again")
    x = values[:, : 2 * JOINTS].reshape(-1, JOINTS, 2) if has_2d else None
    first = 2 * JOINTS if has_2d else 0
    X = values[:, first : first + 3 * JOINTS].reshape(-1, JOINTS, 3) if has_3d else None
    return Listed(names, x, X, None if flag is None else flag == 0)


def write_list(path: str | Path, listed: Listed) -> None:
    """Writes a list; what is None is left out.

    Raises:
        DataError: the file exists, or there is no such form.
    """
    parts = [part.reshape(len(listed.names), -1) for part in (listed.x, listed.X) if part is not None]
    width = sum(part.shape[1] for part in parts) + (listed.resets is not None)
    if FORMS.get(width) != (listed.x is not None, listed.X is not None, listed.resets is not None):
        raise DataError(f"{path}: {width} numbers to a line, expected one of {sorted(FORMS)} with flags; give 2D or 3D of {JOINTS} joints")
    flags = None if listed.resets is None else np.where(listed.resets, 0, 1)
    with new_file(path) as part, open(part, "x", encoding="utf-8") as file:
        for i, name in enumerate(listed.names):
            numbers = [f"{v:.8g}" for values in parts for v in values[i]] + ([] if flags is None else [str(flags[i])])
            file.write(f"{name} {','.join(numbers)}\n")


def read_ranges(path: str | Path) -> Ranges:
    """The table of ranges: a row of the greatest and one of the least values.

    Raises:
        DataError: no such file, or other numbers than two rows of 48, the greatest above the least.
    """
    path = Path(path)
    lines = [line.strip().rstrip(",") for line in _text(path, "it comes with the lists").splitlines() if line.strip().rstrip(",")]
    values = _numbers(path, lines, list(range(1, len(lines) + 1)), [3 * JOINTS]) if lines else []
    if len(values) != 2:
        raise DataError(f"{path}: holds {len(values)} rows, expected two, the greatest values and the least; copy the file again")
    high, low = values.reshape(2, JOINTS, 3)
    empty = (high <= low).any(1)
    empty[ROOT] = False
    if empty.any():
        joint = skeletons.get(SKELETON).joints[int(np.flatnonzero(empty)[0])]
        raise DataError(f"{path}: the greatest values of {joint} are not above the least; the first row must hold the greatest")
    return Ranges(high, low)


def write_ranges(path: str | Path, ranges: Ranges) -> None:
    """Writes a table of ranges; DataError where the file exists."""
    with new_file(path) as part, open(part, "x", encoding="utf-8") as file:
        for values in ranges:
            file.write(",".join(f"{v:.10g}" for v in np.ravel(values)) + "\n")


def fit_ranges(X: np.ndarray) -> Ranges:
    """The ranges of poses.   X (N,16,3) mm relative to the root"""
    high, low = X.max(0).astype(np.float64), X.min(0).astype(np.float64)
    high = np.maximum(high, low + 1)  # a joint that never moves still has a range
    low[ROOT], high[ROOT] = 0, 1e-4  # as published
    return Ranges(high, low)


def read_results(path: str | Path, dims: int = 3) -> np.ndarray:
    """A CSV file of results: an empty field or a number, then the joints.   -> (M,16,dims) float64, in the file's unit

    Raises:
        DataError: no such file, or a line with another number of values.
    """
    path = Path(path)
    lines = [line.strip().rstrip(",") for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty, expected a line per frame; write the results again")
    values = _numbers(path, [line.partition(",")[2] for line in lines], list(range(1, len(lines) + 1)), [dims * JOINTS])
    return values.reshape(-1, JOINTS, dims)


def write_results(path: str | Path, values: np.ndarray, numbered: bool = False) -> None:
    """Writes results as the published programs do: lines begin with a comma (*_norm.csv), or with their number (*_unnorm.csv).

    Args:
        values: (M,16,2 or 3).

    Raises:
        DataError: the file exists, or the values have another shape.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 3 or values.shape[1] != JOINTS:
        raise DataError(f"{path}: results have shape {values.shape}, expected (M, {JOINTS}, 2 or 3)")
    with new_file(path) as part, open(part, "x", encoding="utf-8") as file:
        for i, row in enumerate(values.reshape(len(values), -1)):
            file.write(f"{i if numbered else ''},{','.join(f'{v:.8g}' for v in row)}\n")


def write_actions(folder: str | Path, X: np.ndarray, actions: Sequence[str], stage: str, ranges: Ranges | None = None) -> None:
    """Writes results by action: folder/result<a>_norm.csv with `ranges`, else folder/result<a>_unnorm.csv in mm.

    Args:
        X: (N,16,3) mm relative to the root.
        actions: N names of actions.
        stage: what stands before the ending, "" or such as "change".

    Raises:
        DataError: a file exists, or an action is not one of Human3.6M's.
    """
    names = np.array([h36m.canonical(name) for name in actions])
    strange = sorted(set(names.tolist()) - set(h36m.ACTIONS))
    if strange:
        raise DataError(f"{folder}: {', '.join(strange)} is no action of Human3.6M, which has {', '.join(h36m.ACTIONS)}")
    ending = ("_" + stage if stage else "") + ("_norm.csv" if ranges else "_unnorm.csv")
    own = {k: np.flatnonzero(names == name) for k, name in enumerate(h36m.ACTIONS, 1)}
    paths = {k: Path(folder) / f"result{k}{ending}" for k, rows in own.items() if len(rows)}
    for path in paths.values():
        refuse_existing(path)
    for k, path in paths.items():
        write_results(path, ranges.from_mm(X[own[k]]) if ranges else X[own[k]], numbered=ranges is None)


class Tree(NamedTuple):
    """What skel_16.mat holds."""

    names: tuple[str, ...]
    parents: tuple[int, ...]  # the root's is its own
    colors: tuple[str, ...]  # b, g, r: centre, right, left
    torso: tuple[int, ...]  # joints of the trunk, counted from 0


def read_tree(path: str | Path) -> Tree:
    """The tree of joints: a struct `skel` with `tree` (name, children counted from 1, color) and `torso`.

    Raises:
        DataError: no such file, no SciPy, or something else in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; it comes with the lists, and nothing but pictures needs it")
    try:
        skel = load_mat(path, squeeze_me=True, struct_as_record=False)["skel"]
        nodes = np.atleast_1d(skel.tree)
        parents = list(range(len(nodes)))
        for parent, node in enumerate(nodes):
            for child in np.atleast_1d(node.children).ravel():
                parents[int(child) - 1] = parent
        torso = tuple(int(joint) - 1 for joint in np.atleast_1d(skel.torso))
        return Tree(tuple(str(n.name) for n in nodes), tuple(parents), tuple(str(n.color) for n in nodes), torso)
    except DataError:
        raise
    except Exception as error:  # SciPy has errors of its own, and a file may hold anything
        raise DataError(f"{path}: not a tree of joints ({error}), expected a struct skel with tree and torso; copy it again") from None


def _text(path: Path, advice: str = "copy it there, or correct DATASET.ROOT and the split") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {advice}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); copy it again") from None


def _numbers(path: Path, texts: list[str], lines: list[int], counts: list[int]) -> np.ndarray:
    """Numbers with commas, the same number on each line.   -> (M, one of counts) float64"""
    width = texts[0].count(",") + 1
    expected = " or ".join(map(str, counts))
    if width not in counts:
        raise DataError(f"{path}: line {lines[0]} holds {width} numbers, expected {expected} for {JOINTS} joints; is it another file?")
    parts = []
    for first in range(0, len(texts), CHUNK):
        chunk = texts[first : first + CHUNK]
        bad = next((i for i, text in enumerate(chunk) if text.count(",") + 1 != width), None)
        if bad is None:
            try:
                part = np.array(",".join(chunk).split(","), dtype=np.float64).reshape(-1, width)
            except ValueError as error:
                bad = next(i for i, text in enumerate(chunk) if not _is_numbers(text))
                raise DataError(f"{path}: line {lines[first + bad]} holds something else than numbers ({error}); copy it again") from None
            wild = np.flatnonzero(~np.isfinite(part).all(1))
            if len(wild):
                raise DataError(f"{path}: line {lines[first + wild[0]]} holds NaN or infinite numbers; write or copy the file again")
            parts.append(part)
        else:
            found = chunk[bad].count(",") + 1
            raise DataError(f"{path}: line {lines[first + bad]} holds {found} numbers, the first one {width}; the file is cut or mixed")
    return np.concatenate(parts)


def _is_numbers(text: str) -> bool:
    try:
        np.array(text.split(","), dtype=np.float64)
    except ValueError:
        return False
    return True
