"""The clip lists of 3D Human Pose Machines (Wang et al., TPAMI 2019): a line per square picture of one person.

<root>/16skel_train_2d3d_clip.txt                     path, a space, 81 numbers: 2D of 16 joints in sides of the picture, 3D of 16 joints
<root>/16skel_test_2d3d_clip.txt                      between the least and the greatest of each coordinate, and 0 where a clip begins
<root>/16skel_{train,test}_2d3d_p3_clip.txt           the same of that paper's protocol 3
<root>/train_h36m.txt                                 MPII: path, 2D, flag
<root>/gt/test/test1.txt ... test15.txt               the test by action, in the order of Human3.6M's numbers; 81 numbers or 3D and flag
<root>/16point_mean_limb_scaled_max_min.csv           greatest and least of the 48 coordinates, mm
<root>/skel_16.mat                                    the tree of the joints, for pictures

Poses are in camera axes, relative to the root, and no camera is known: every row gets one of its own, so far away that its picture is
the scaled parallel projection that fits the 2D joints best. A picture's side is its longer one, the root lies at exactly 0 mm.
Results of the published programs, CSV files by action, are read, written and judged here, too.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, number_within, widened
from lib.dataset.clips import LENGTH
from lib.dataset.formats import h36m
from lib.dataset.formats.files import findings_of, image_size, no_cameras, place_images
from lib.dataset.formats.h36m_challenge import FAR, far_cameras, in_the_middle
from lib.dataset.formats.machine_files import (
    JOINTS,
    ROOT,
    SKELETON,
    Listed,
    Ranges,
    fit_ranges,
    read_list,
    read_ranges,
    read_results,
    read_tree,
    write_list,
    write_ranges,
)
from lib.dataset.image import warp
from lib.errors import DataError
from lib.files import refuse_existing
from lib.geometry.crop import crop_affine, transform_points
from lib.metrics.machine import MachineEvaluator
from lib.metrics.report import Report
from lib.registry import unknown

log = logging.getLogger("parallax")

LISTS = {
    "train": "16skel_train_2d3d_clip.txt", "test": "16skel_test_2d3d_clip.txt",
    "train_p3": "16skel_train_2d3d_p3_clip.txt", "test_p3": "16skel_test_2d3d_p3_clip.txt",
    "mpii": "train_h36m.txt",
}  # fmt: skip
ACTIONS = "actions"  # the split of all files of TRUTH
ORDERS = {"h36m": SKELETON, "mpii": "mpii16"}  # of the joints in a list
TRUTH = "gt/test/test{action}.txt"
RANGES = "16point_mean_limb_scaled_max_min.csv"
TREE = "skel_16.mat"
SIDE_PX = 368  # of pictures that are not there, or are to be made: what the published network eats


# ------------------------------------------------------------------------------------------------------------- a split


def read(
    root: str | Path,
    split: str,
    strip: str = "",
    side: int = 0,
    resets: bool = False,
    keypoints: str = "",
    ranges: str = RANGES,
    order: str = "h36m",
) -> Annotations:
    """One list as a table: row i is its line i, a pose and a camera for each row with 3D. Poses are mm relative to the root.

    2D joints at exactly 0, 0 count as not annotated, and so does the spine in lists without 3D, as MPII has none. Subject, action, camera
    and frame come from paths that are named as Human3.6M's usually are; otherwise a folder is a sequence, and the number in the file
    name the frame.

    Args:
        root: folder of the lists.
        split: a name in LISTS, "actions" for all of gt/test, or the path of another list below root, with or without .txt.
        strip: what paths in the lists begin with and images below root do not, such as "/home/me/h36m/".
        side: of all pictures in px, which saves looking at each; 0 = that of each picture, 368 where there is none.
        resets: every line with flag 0 begins a sequence of its own, so that clips are those of the list.
        keypoints: 2D joints that replace those of the lists, a list or a CSV file of results below root; with {action} in it one per
            file of gt/test, such as "hg2dh36m/test{action}_square2d.txt".
        ranges: file with the greatest and least values, below root.
        order: of the joints in the lists: h36m, that of the release's data, or mpii, that of MPII, which its read-me prints; then the spine
            is not annotated, and the upper neck left out. `keypoints` and `ranges` are in the order of the data.

    Raises:
        DataError: files are missing, damaged or do not fit together.
        ConfigError: no such order.
    """
    root = Path(root)
    if order not in ORDERS:
        raise unknown(order, ORDERS, "DATASET.OPTIONS.order")
    layout = ORDERS[order]
    files = _files(root, split)
    lists = [_renamed(read_list(path), layout) for path in files.values()]
    places = list(files)
    if len({(part.x is None, part.X is None, part.resets is None) for part in lists}) > 1:
        raise DataError(f"{root}/{TRUTH}: the files of actions hold different kinds of numbers; take all of them from one release")
    counts = [len(part.names) for part in lists]
    raw = [name for part in lists for name in part.names]
    names = _image_names(next(iter(files.values())), raw, strip)
    x, X, reset = (None if getattr(lists[0], k) is None else np.concatenate([getattr(p, k) for p in lists]) for k in ("x", "X", "resets"))
    if resets and reset is None:
        raise DataError(f"{next(iter(files.values()))}: its lines have no flags; remove `resets` from DATASET.OPTIONS")
    known = None if x is None else (x != 0).any(-1)
    if X is None:
        known[:, skeletons.get(SKELETON).index("spine")] = False
    if keypoints:
        x = np.concatenate([_other_2d(root, keypoints, place, count) for place, count in zip(places, counts, strict=True)])
        known = (x != 0).any(-1)
    actions = [h36m.ACTIONS[place - 1] if place else "" for place, count in zip(places, counts, strict=True) for _ in range(count)]
    columns, sequences = _columns(names, actions, reset if resets else None)

    n = len(names)
    size = np.full((n, 2), float(side)) if side else np.array([image_size(root / name) for name in names], np.float64)
    length = np.where(size.max(1) > 0, size.max(1), SIDE_PX)
    x_img = np.zeros((n, JOINTS, 2)) if x is None else x * length[:, None, None]
    conf = np.zeros((n, JOINTS), bool) if known is None else known
    poses, cameras = np.zeros((0, JOINTS, 3)), no_cameras()
    present = skeletons.convert(np.zeros((JOINTS, 1)), layout, SKELETON)[1]
    if X is not None:
        poses = np.where(present[:, None], read_ranges(root / ranges).to_mm(X), 0)
        scale, shift = _laid_over(poses, x_img, conf, np.repeat(length[:, None], 2, 1))
        cameras = far_cameras(scale.astype(complex), shift, FAR * length, size)
        placed = scale[:, None] * (poses[..., 0] + 1j * poses[..., 1]) + shift[:, None]
        x_img = np.where(conf[..., None], x_img, np.stack([placed.real, placed.imag], -1))
    row = np.arange(n, dtype=np.int32) if X is not None else np.full(n, -1, np.int32)
    inside = ((x_img >= 0) & (x_img < length[:, None, None])).all(-1)
    return Annotations(
        skeleton=SKELETON,
        cameras=cameras,
        X_world=poses.astype(np.float32),
        X_valid=np.tile(present, (len(poses), 1)),
        person=np.zeros(n, np.int32),
        image=np.arange(n, dtype=np.int32),
        camera=row,
        pose=row.copy(),
        x_img=x_img.astype(np.float32),
        conf=conf.astype(np.float32),
        visible=conf & inside,
        # from edge to edge of the square, as the 2D joints are counted: x px = side * x
        box=np.concatenate([np.zeros((n, 2)), np.repeat(length[:, None], 2, 1)], 1).astype(np.float32),
        images=np.array([name.encode() for name in names]),
        **{column: np.array([key[i].encode() for key in sequences]) for i, column in enumerate(("subjects", "actions", "subactions"))},
        fps=h36m.FPS if X is not None else 0.0,
        **columns,
    ).check(f"{root} ({split})")


def _renamed(listed: Listed, layout: str) -> Listed:
    """A list of joints of another layout in those of the release; 0 where it has none."""
    x, X = (None if values is None else skeletons.convert(values, layout, SKELETON)[0] for values in (listed.x, listed.X))
    return listed._replace(x=x, X=X)


def splits(root: str | Path) -> list[str]:
    """The splits that are there."""
    root = Path(root)
    there = [split for split, name in LISTS.items() if (root / name).is_file()]
    return there + ([ACTIONS] if any(_truth(root)) else [])


def _truth(root: Path) -> dict[int, Path]:
    """The files of the test by action, those that are there."""
    paths = {number: root / TRUTH.format(action=number) for number in range(1, len(h36m.ACTIONS) + 1)}
    return {number: path for number, path in paths.items() if path.is_file()}


def _files(root: Path, split: str) -> dict[int, Path]:
    """The files of a split by number of the action, 0 = of several."""
    if split == ACTIONS:
        files = _truth(root)
        if not files:
            raise DataError(f"{root / TRUTH.format(action=1)}: no such file, nor any other action's; copy the folder gt there")
        if len(files) < len(h36m.ACTIONS):
            absent = [f"{k} ({name})" for k, name in enumerate(h36m.ACTIONS, 1) if k not in files]
            log.warning("%s: has no files of the actions %s; numbers are of the others", root / "gt/test", ", ".join(absent))
        return files
    name = LISTS.get(split, split)
    path = root / (name if name.endswith(".txt") else f"{name}.txt")
    if not path.is_file():
        known = ", ".join(splits(root)) or "none"
        raise DataError(f"{path}: no such list; set DATASET.ROOT to the folder of the lists, and the split to one of those there: {known}")
    return {0: path}


def _image_names(path: Path, names: list[str], strip: str) -> list[str]:
    """Paths as they are below the root."""
    names = [name.replace("\\", "/") for name in names]
    if strip:
        lost = next((name for name in names if not name.startswith(strip)), None)
        if lost is not None:
            raise DataError(f"{path}: {lost!r} does not begin with {strip!r}; correct `strip` in DATASET.OPTIONS")
        names = [name[len(strip) :].lstrip("/") for name in names]
    absolute = next((name for name in names if name.startswith("/") or re.match(r"[A-Za-z]:/", name)), None)
    if absolute is not None:
        raise DataError(
            f"{path}: {absolute!r} is a path of another computer; set `strip` in DATASET.OPTIONS to the part that stands for DATASET.ROOT"
        )
    return [name.removeprefix("./") for name in names]


def _other_2d(root: Path, keypoints: str, action: int, count: int) -> np.ndarray:
    """2D joints of another source, (count,16,2) in sides of the picture."""
    if "{action}" in keypoints and not action:
        raise DataError(f"keypoints: {keypoints!r} has a file per action, but the split is one list; use the split {ACTIONS!r}")
    path = root / keypoints.replace("{action}", str(action))
    x = read_results(path, 2) if path.suffix == ".csv" else read_list(path).x
    if x is None or len(x) != count:
        found = "no 2D joints" if x is None else f"{len(x)} rows"
        raise DataError(f"{path}: holds {found}, the list has {count} rows, expected 2D joints for each; take files of one split")
    return x


def _columns(names: list[str], actions: list[str], resets: np.ndarray | None) -> tuple[dict[str, np.ndarray], list[tuple[str, str, str]]]:
    """sequence, frame and view of each row; subject, action and subaction of each sequence."""
    keys, views, frames = [], [], []
    for name, action in zip(names, actions, strict=True):
        place = h36m.parse_path(name)
        if place is not None:
            keys.append((place.subject, action or place.action, place.number, place.sequence))
            views.append(place.view)
            frames.append(place.frame)
            continue
        folder, _, file = name.rpartition("/")
        subject = re.search(r"(?:^|[/_])(S\d+)[/_]", name)
        number = re.search(r"(\d{1,9})\D*$", file.rpartition(".")[0])
        keys.append((subject[1] if subject else "", action, "", folder))
        views.append(0)
        frames.append(int(number[1]) if number else -1)
    unique: dict[tuple, int] = {}
    sequence = np.array([unique.setdefault(key, len(unique)) for key in keys], np.int64)
    if resets is not None:
        sequence = np.cumsum(resets | np.append(True, np.diff(sequence) != 0)) - 1
        order = [keys[i] for i in np.flatnonzero(np.diff(sequence, prepend=-1))]
    else:
        order = list(unique)
    view, frame = np.array(views, np.int32), np.array(frames, np.int64)
    track = np.unique(np.stack([sequence, view], 1), axis=0, return_inverse=True)[1].reshape(-1)
    rows = np.lexsort([frame, track])
    twice = (np.diff(track[rows]) == 0) & (np.diff(frame[rows]) == 0)
    unclear = np.isin(track, np.append(track[rows][1:][twice], track[frame < 0]))
    frame = np.where(unclear, number_within(track), frame)  # file names that do not tell: the order of the list does
    return {"sequence": sequence.astype(np.int32), "frame": frame.astype(np.int32), "view": view}, [key[:3] for key in order]


def _laid_over(X: np.ndarray, x_img: np.ndarray, conf: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Px per mm (N,) and place of the root (N,), complex, of the scaled parallel projection that fits best; in the middle of the picture
    where nothing fits.   X (N,J,3) mm, x_img (N,J,2) px, conf (N,J), size (N,2) px
    """
    scale, shift = in_the_middle(X, size)
    weight = conf / np.maximum(conf.sum(1, keepdims=True), 1)
    p0, q0 = (np.einsum("nj,njc->nc", weight, v[..., :2]) for v in (X, x_img))
    p, q = X[..., :2] - p0[:, None], x_img - q0[:, None]
    fitted = np.einsum("nj,njc,njc->n", weight, p, q) / np.maximum(np.einsum("nj,njc,njc->n", weight, p, p), 1e-9)
    found = (conf.sum(1) >= 2) & (fitted > 1e-6)
    offset = q0 - fitted[:, None] * p0
    return np.where(found, fitted, scale.real), np.where(found, offset[:, 0] + 1j * offset[:, 1], shift)


# ------------------------------------------------------------------------------------------------------------- writing


class _Squares:
    """Cuts the square of every observation out of its picture; it can be sent to another process."""

    def __init__(self, image: Callable[[int], np.ndarray], number: np.ndarray, patch_from_img: np.ndarray, side: int):
        self.image, self.number, self.patch_from_img, self.side = image, number, patch_from_img, side

    def __call__(self, i: int) -> np.ndarray:
        return warp(self.image(int(self.number[i])), self.patch_from_img[i], (self.side, self.side))


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    clip: int = LENGTH,
    side: int = SIDE_PX,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes the list of a split, and the squares around people if there is something to make them of.

    Lines are ordered by sequence, camera and frame, and a clip begins every `clip` lines of a track. The table of ranges is that of the
    folder; where there is none it is fitted to the poses, so the training split comes first. Rows without 3D make a list like MPII's.

    Args:
        ann: the table, one person in a picture; boxes are widened to squares. Joints it lacks are written as 0, 0.
        root: folder of the lists, made if missing.
        split: a name in LISTS, "actions" for a file per action in gt/test, or the name of another list.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no pictures. With workers it must be picklable.
        clip: frames.
        side: of the pictures, px.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the list or a picture exists, or the table does not fit the layout.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})").to_skeleton(SKELETON)
    if clip < 1 or side < 1:
        raise DataError(f"{root}: clips of {clip} frames and pictures of {side} px, expected 1 or more")
    if ann.person.any():
        raise DataError(f"{root}: the lists have one person in a picture; select one person of each sequence")
    rows, starts = ann.group("sequence", "view")
    ann = ann.select(rows)
    posed = (ann.pose >= 0) & (ann.camera >= 0)
    if posed.any() and not (posed.all() and ann.X_valid[ann.pose].all()):
        lost = int(np.flatnonzero(~posed | ~ann.X_valid[ann.pose].all(1))[0])
        raise DataError(f"{root}: row {rows[lost]} has no complete 3D pose, others have; write them as a list of their own")
    boxless = ~(ann.box[:, 2:] > ann.box[:, :2]).all(1)
    if boxless.any():
        raise DataError(f"{root}: {int(boxless.sum())} observations have no box with area, expected one for each; leave them out")
    names = _written_names(ann, split)
    box = torch.from_numpy(widened(ann.box.astype(np.float64), 1.0))
    unit_from_img = crop_affine((box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2], torch.ones(2, dtype=torch.float64))
    x = transform_points(unit_from_img, torch.from_numpy(np.nan_to_num(ann.x_img)).double()).numpy()
    x = np.where(ann.conf[..., None] > 0, x, 0)
    X = None
    place = np.arange(len(ann)) - np.repeat(starts[:-1], np.diff(starts))
    files = _written_files(ann, root, split)
    for path in files:
        refuse_existing(path)
    if posed.all():
        X_cam = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
        X_cam = X_cam - X_cam[:, ROOT, None]
        if not (root / RANGES).exists():
            write_ranges(root / RANGES, fit_ranges(X_cam))
        X = read_ranges(root / RANGES).from_mm(X_cam)
    if image is not None:
        squares = _Squares(image, ann.image, (unit_from_img * side).numpy(), side)
        place_images(root, names, squares, split.replace("/", "_"), workers, f"{root}: {split}" if progress else None)
    for path, own in files.items():
        write_list(path, Listed([names[i] for i in own], x[own], None if X is None else X[own], place[own] % clip == 0))


def _written_files(ann: Annotations, root: Path, split: str) -> dict[Path, np.ndarray]:
    """The rows of each file."""
    if split != ACTIONS:
        name = LISTS.get(split, split)
        return {root / (name if name.endswith(".txt") else f"{name}.txt"): np.arange(len(ann))}
    action = np.array([h36m.canonical(name.decode()) for name in ann.actions])[ann.sequence]
    strange = sorted(set(action.tolist()) - set(h36m.ACTIONS))
    if strange:
        raise DataError(f"{root}/{TRUTH}: {', '.join(strange)} is no action of Human3.6M, which has {', '.join(h36m.ACTIONS)}")
    files = {root / TRUTH.format(action=k): np.flatnonzero(action == name) for k, name in enumerate(h36m.ACTIONS, 1)}
    return {path: rows for path, rows in files.items() if len(rows)}


def _written_names(ann: Annotations, split: str) -> list[str]:
    """Paths that tell subject, sequence, camera and frame where those are like Human3.6M's."""
    subjects = [name.decode() for name in ann.subjects]
    if all(re.fullmatch(r"S\d+", name) for name in subjects) and ann.view.max() < len(h36m.CAMERA_IDS):
        labels = h36m.sequence_labels(ann)
        rows = zip(ann.sequence.tolist(), ann.view.tolist(), ann.frame.tolist(), strict=True)
        names = [h36m.image_name(subjects[s], labels[s], v, f) for s, v, f in rows]
        if len(set(names)) == len(names):
            return names
    return [f"images/{split.replace('/', '_')}/{s}_{v}/{i:06d}.jpg" for i, (s, v) in enumerate(zip(ann.sequence, ann.view, strict=True))]


# ------------------------------------------------------------------------------------------------- checking and judging


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong, one sentence each; empty = good. Without `split`, all splits that are there."""
    root = Path(root)
    names = [split] if split else splits(root)
    said = [] if names else [f"{root}: has none of the lists {', '.join(LISTS.values())}; copy them there, or correct the root"]
    if (root / TREE).exists():
        try:
            tree = read_tree(root / TREE)
            if tree.parents != skeletons.get(SKELETON).parents:
                found = f"the parents are {list(tree.parents)}"
                said.append(f"{root / TREE}: {found}, expected those of {SKELETON}; the lists may have other joints")
        except DataError as error:
            said.append(str(error))
    return said + findings_of(lambda name: read(root, name), {name: f"{root} ({name})" for name in names}, root)


class Coarse(NamedTuple):
    """Poses by action that a published program wrote, and what the lists know of the same rows."""

    X: np.ndarray  # (M,16,3) mm
    x: np.ndarray | None  # (M,16,2) in sides of the picture
    truth: np.ndarray | None  # (M,16,3) mm relative to the root
    actions: list[str]  # (M,)
    images: list[str]  # (M,) paths as they are written


def read_coarse(root: str | Path, pattern: str, keypoints: str = "", ranges: str = RANGES) -> Coarse:
    """Results of all actions in gt/test that have a file; files may end early.

    Args:
        root: folder of the lists.
        pattern: files below root with {action} in them; in mm where their names end in _unnorm.csv.
        keypoints: 2D joints, see `read`; empty = those of gt/test.
        ranges: file with the greatest and least values, below root.

    Raises:
        DataError: files are missing, damaged, or do not fit together.
    """
    root = Path(root)
    table, rows = read_ranges(root / ranges), []
    for number, path in _files(root, ACTIONS).items():
        part, X = read_list(path), _stage(root, pattern, number, table)
        count = len(X)
        if count > len(part.names):
            raise DataError(f"{root}: results of action {number} have {count} rows, its truth {len(part.names)}; take files of one split")
        x = _other_2d(root, keypoints, number, len(part.names)) if keypoints else part.x
        truth = None if part.X is None else table.to_mm(part.X)[:count]
        rows.append((X, None if x is None else x[:count], truth, [h36m.ACTIONS[number - 1]] * count, part.names[:count]))
    X, x, truth, actions, images = zip(*rows, strict=True)
    x, truth = (None if any(a is None for a in parts) else np.concatenate(parts) for parts in (x, truth))
    return Coarse(np.concatenate(X), x, truth, [a for part in actions for a in part], [name for part in images for name in part])


def judge(root: str | Path, stages: Mapping[str, str], ranges: str = RANGES) -> Report:
    """The errors of the published programs' results, as their evaluation by action prints them (see lib.metrics.report.Report.stage_table).

    Truth is gt/test of the lists; all frames count, and so do all actions that have both. Files that end early, as the published test
    drops its last batch, are judged as far as they go, which the counts tell.

    Args:
        root: folder of the lists.
        stages: name of a stage -> its files below root with {action} in them, such as {"coarse": "p3d/result{action}_norm.csv",
            "regressed": "p3d/result{action}_change_unnorm.csv"}; the last one gives the main numbers. Files are in mm where their names
            end in _unnorm.csv.
        ranges: file with the greatest and least values, below root.

    Raises:
        DataError: files are missing, damaged, or longer than the truth.
    """
    root, names = Path(root), list(stages)
    if not names:
        raise DataError(f"{root}: no stage to be judged, expected one or more, each with its files")
    table = read_ranges(root / ranges)
    truth = {number: read_list(path) for number, path in _files(root, ACTIONS).items()}
    if any(part.X is None for part in truth.values()):
        raise DataError(f"{root}/{TRUTH}: holds no 3D joints, expected lines of {5 * JOINTS + 1} or {3 * JOINTS + 1} numbers")
    actions, parts, absent = [], [], 0
    for number, part in truth.items():
        poses = [_stage(root, pattern, number, table) for pattern in stages.values()]
        gt = table.to_mm(part.X)
        shortest, longest = (bound(map(len, poses)) for bound in (min, max))
        if longest > len(gt):
            raise DataError(f"{root}: results of action {number} have {longest} rows, its truth {len(gt)}; take files of one split")
        absent += len(gt) - shortest
        actions += [h36m.ACTIONS[number - 1]] * shortest
        parts.append(tuple(torch.from_numpy(X[:shortest]) for X in (gt, *poses)))
    gt, *poses = (torch.cat(column) for column in zip(*parts, strict=True))
    if absent:
        log.warning("%s: %d frames of the truth have no result and are not judged", root, absent)
    evaluator = MachineEvaluator(SKELETON, stages=names[:-1], actions=actions, protocol={"frames_without_result": absent})
    pred = {f"X_{name}": X for name, X in zip(names[:-1], poses, strict=False)} | {"X_cam": poses[-1]}
    evaluator.update(pred, {"id": torch.arange(len(gt)), "X_cam": gt, "X_valid": torch.ones(gt.shape[:2], dtype=torch.bool)})
    return evaluator.compute()


def _stage(root: Path, pattern: str, action: int, ranges: Ranges) -> np.ndarray:
    """Results of an action, (M,16,3) mm."""
    X = read_results(root / pattern.replace("{action}", str(action)))
    return X if pattern.endswith("_unnorm.csv") else ranges.to_mm(X)
