"""The label pickles of SelfPose3d and VoxelPose for Panoptic, and how 2D pseudo labels are made of a detector's output.

<root>/group_train_cam5_pseudo_hrnet_soft_9videos.pkl      2D pseudo labels, people of a picture in any order
<root>/group_validation_cam5_sub.pkl                       annotated 3D and 2D
<root>/<split>.npz                                         the same table as plain arrays, which this program writes by default
<root>/160906_band1/hdImgs/00_03/00_03_00000168.jpg

A pickle holds `db`, a list of records: a picture with its camera and everyone in it.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lib import skeleton as skeletons
from lib import unpickle
from lib.dataset.annotations import Annotations
from lib.dataset.calibrations import center_form
from lib.dataset.formats import panoptic
from lib.dataset.formats.detector_files import read_pictures
from lib.dataset.formats.files import findings_of, load_table, place_images, save_table
from lib.dataset.formats.multiview import boxes_of
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing
from lib.geometry.camera import Cameras

SKELETON = "panoptic15"
DETECTED = "coco17"
HD = (1920, 1080)  # px of the pictures, where a record does not say
THRESHOLD = 0.05
FEWEST_SURE, FEWEST_INSIDE = 4, 3  # joints of a person that must be sure, and of those inside the box
LABELLED = 2.0  # COCO's mark of a visible joint


# ----------------------------------------------------------------------------------------- from detections to labels


def hard_labels(keypoints: np.ndarray, boxes: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """COCO keypoints of which only the sure ones inside their box are left; others are 0 0 0.

    A person with fewer than four joints that are sure, or fewer than three of them inside, loses all.

    Args:
        keypoints: (N,17,3) px, px, confidence.
        boxes: (N,4) x0 y0 x1 y1 px, clipped to the picture (see `clipped`).
        threshold: a joint is sure where its confidence is not less.

    Returns:
        (N,17,3) float64; the third column is 2 for joints that are left.
    """
    keypoints, boxes = np.asarray(keypoints, np.float64), np.asarray(boxes, np.float64)[:, None]
    sure = keypoints[..., 2] >= threshold
    inside = ((keypoints[..., :2] >= boxes[..., :2]) & (keypoints[..., :2] <= boxes[..., 2:])).all(-1)
    left = sure & inside
    left &= ((sure.sum(1) >= FEWEST_SURE) & (left.sum(1) >= FEWEST_INSIDE))[:, None]
    labelled = np.concatenate([keypoints[..., :2], np.full_like(keypoints[..., :1], LABELLED)], -1)
    return np.where(left[..., None], labelled, 0.0)


def clipped(boxes: np.ndarray, size: tuple[int, int] | np.ndarray) -> np.ndarray:
    """Boxes x y w h of a detector -> x0 y0 x1 y1 inside the picture; without area where it lies outside.   (N,4), (2,) -> (N,4)"""
    boxes = np.asarray(boxes, np.float64)
    last = np.asarray(size, np.float64) - 1
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(last, low + np.maximum(boxes[:, 2:] - 1, 0))
    return np.concatenate([low, high], -1)


def to_panoptic(keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO keypoints in Panoptic's 15 joints.   (N,17,3) px, px, confidence -> (N,15,2) px, (N,15) float64 confidence

    Neck and mid-hip are the mean of both shoulders or hips, or the one that was found; a mean is as sure as the less sure of the two.
    Joints that were not found stay where they are and have confidence 0.
    """
    keypoints = np.asarray(keypoints, np.float64)
    found = keypoints[..., 2:] > 0
    source, target = skeletons.get(DETECTED), skeletons.get(SKELETON)
    x, _ = skeletons.convert(keypoints[..., :2], source, target)
    conf, _ = skeletons.convert(np.where(found, keypoints[..., 2:], 0.0), source, target)
    x, conf = x.copy(), conf[..., 0].copy()
    for joint, sides in (("neck", skeletons.SHOULDERS), ("pelvis", skeletons.HIPS)):
        k, pair = target.index(joint), source.indices(sides)
        seen = found[:, pair, 0]
        one = seen.sum(1) == 1
        only = keypoints[np.arange(len(keypoints)), pair[np.argmax(seen, 1)]]
        x[:, k] = np.where(one[:, None], only[:, :2], x[:, k])
        conf[:, k] = np.where(one, only[:, 2], keypoints[:, pair, 2].min(1) * seen.all(1))
    return x, conf


def image_list(ann: Annotations) -> dict[str, Any]:
    """The pictures of a table in COCO's form, for a detector to be run on; ids are rows of `ann.images`."""
    first = _rows_of_images(ann)
    size = ann.cameras.size[ann.camera[first]].int().tolist()
    images = [
        {"id": int(ann.image[row]), "file_name": ann.image_path(int(row)), "width": w, "height": h}
        for row, (w, h) in zip(first, size, strict=True)
    ]  # fmt: skip
    joints = list(skeletons.get(DETECTED).joints)
    return {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person", "keypoints": joints, "skeleton": []}]}


def names_of(ann: Annotations) -> list[str]:
    """The pictures of a table by their number; those that no row shows have no name."""
    names = [""] * len(ann.images)
    for row in _rows_of_images(ann):
        names[ann.image[row]] = ann.image_path(int(row))
    return names


def _rows_of_images(ann: Annotations) -> np.ndarray:
    """A row of each picture that has one."""
    if (ann.image < 0).any() or (ann.camera < 0).any():
        raise DataError("pseudo labels: rows without image or camera; leave them out (Annotations.select)")
    return np.unique(ann.image, return_index=True)[1]


@dataclass(frozen=True, eq=False)
class People:
    """N people as a detector found them in pictures."""

    skeleton: str  # of J joints
    image: np.ndarray  # (N,) int, rows of the table's `images`
    keypoints: np.ndarray  # (N,J,3) float64 px, px, confidence; 0 = not found
    boxes: np.ndarray  # (N,4) float64 x0 y0 x1 y1 px
    score: np.ndarray  # (N,)

    def __len__(self) -> int:
        return len(self.image)

    @staticmethod
    def nobody(skeleton: str = DETECTED) -> "People":
        joints = skeletons.get(skeleton).num
        return People(skeleton, np.zeros(0, np.int64), np.zeros((0, joints, 3)), np.zeros((0, 4)), np.zeros(0))


def read_people(ann: Annotations, path: str | Path, layout: str = "") -> People:
    """What a detector found in the pictures of a table.

    Args:
        path: COCO results, whose image_id is an id of `image_list` or the name of a picture, or what else
            lib.dataset.formats.detector_files.read_pictures knows, which says how pictures are told by their names.
        layout: joints of the files, where they do not say.

    Raises:
        DataError: the file is missing or damaged, or names a picture that is not in the table.
    """
    found = read_pictures(path, names_of(ann), layout or None)
    if found is None:
        return People.nobody(layout or DETECTED)
    keypoints = np.concatenate([np.nan_to_num(found.keypoints), found.scores[..., None]], -1)
    return People(found.layout, found.frame, keypoints, found.boxes, found.box_scores)


def labels_of(ann: Annotations, people: People, kind: str = "soft", threshold: float = THRESHOLD, min_score: float = 0.0) -> Annotations:
    """Pseudo labels of the pictures of a table from the people that were found there; nothing else of the table's labels is used.

    Where COCO's joints are among those found, neck and pelvis are made of shoulders and hips (`to_panoptic`); other skeletons are converted
    by the names of their joints, and joints that they lack have confidence 0.

    Args:
        ann: the pictures, with their cameras.
        kind: "soft" = all joints with their confidence; "hard" = `hard_labels`.
        threshold: of hard labels.
        min_score: people with a lower score are left out, and so are those whose box has no area.

    Returns:
        Table in SKELETON without 3D; a picture of nobody has a row of person -1.

    Raises:
        DataError: another kind, or a row without image or camera.
    """
    if kind not in ("soft", "hard"):
        raise DataError(f"kind {kind!r}: expected soft or hard")
    first = _rows_of_images(ann)
    kept = np.flatnonzero(people.score >= min_score)
    rows = first[np.searchsorted(ann.image[first], people.image[kept])]
    joints, boxes = people.keypoints[kept], people.boxes[kept]
    size = ann.cameras.size.numpy()[ann.camera[rows]]
    inner = clipped(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], -1), np.where(size > 0, size, np.inf))
    good = (boxes[:, 2:] > boxes[:, :2]).all(1) & (inner[:, 2:] > inner[:, :2]).all(1)
    rows, joints, boxes, inner = rows[good], joints[good], boxes[good], inner[good]
    coco, present = skeletons.convert(joints, people.skeleton, DETECTED)
    joints = coco if present.all() else joints
    if kind == "hard":
        joints = hard_labels(joints, inner, threshold)
    x, conf = to_panoptic(joints) if present.all() else _by_name(joints, people.skeleton)
    if kind == "hard":
        conf = (conf > 0).astype(np.float64)
    nobody = np.setdiff1d(first, rows)
    order = np.argsort(ann.image[np.append(rows, nobody)], kind="stable")

    def with_nobody(values: np.ndarray, fill: float) -> np.ndarray:
        return np.concatenate([values, np.full((len(nobody), *values.shape[1:]), fill, values.dtype)])[order]

    conf = with_nobody(conf.clip(0, 1), 0).astype(np.float32)
    place, rows = np.append(np.zeros(len(rows), np.int64), np.full(len(nobody), -1))[order], np.append(rows, nobody)[order]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    number = np.arange(len(rows)) - np.repeat(starts, np.diff(starts, append=len(rows)))
    joints_out = skeletons.get(SKELETON).num
    return replace(
        ann.select(rows),
        skeleton=SKELETON,
        X_world=np.zeros((0, joints_out, 3), np.float32),
        X_valid=np.zeros((0, joints_out), bool),
        person=np.where(place < 0, -1, number).astype(np.int32),
        pose=np.full(len(rows), -1, np.int32),
        x_img=np.where((conf > 0)[..., None], with_nobody(x, 0), 0).astype(np.float32),
        conf=conf,
        visible=conf > 0,
        box=with_nobody(boxes, np.nan).astype(np.float32),
        head_px=np.full(len(rows), np.nan, np.float32),
    )


def _by_name(keypoints: np.ndarray, skeleton: str) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N,J,3) of another skeleton in Panoptic's, (N,15,2) and (N,15); what is made of one that was not found has confidence 0."""
    known = np.where(keypoints[..., 2:] > 0, keypoints, np.nan)
    out, present = skeletons.convert(known, skeleton, SKELETON)
    good = np.isfinite(out).all(-1) & present
    return np.where(good[..., None], out[..., :2], 0.0), np.where(good, out[..., 2], 0.0)


# ------------------------------------------------------------------------------------------------------------- reading


def read(root: str | Path, split: str) -> Annotations:
    """The labels in `<root>/<split>.npz` or `.pkl`. A view is a camera's place among those of the file, by ascending name.

    Records with 3D give poses that the views share; pseudo labels have none (`pose` is -1), and a number of a person says nothing beyond
    its picture. A picture of nobody has a row of person -1 without joints. Image paths are relative to `root` and begin with the sequence.

    Raises:
        DataError: no such file, damaged, or not these records.
    """
    root = Path(root)
    plain, pickled = root / f"{split}.npz", root / f"{split}.pkl"
    if plain.is_file():
        try:
            return load_table(plain)
        except (OSError, *MALFORMED) as error:
            raise DataError(f"{plain}: not an annotation table of this program ({error}); write it again") from None
    if not pickled.is_file():
        some = ", ".join(sorted(p.stem for p in root.glob("group_*.pkl"))) or "none"
        raise DataError(f"{root}: has neither {plain.name} nor {pickled.name}; label files there: {some}; set DATASET.TRAIN_SET to one")
    content = unpickle.load(pickled)
    try:
        return _table(content["db"])
    except MALFORMED as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)[:160]
        raise DataError(f"{pickled}: not label records of VoxelPose or SelfPose3d ({said}); download the file again") from None


def _table(db: list[dict[str, Any]]) -> Annotations:
    """The table of all records."""
    joints = skeletons.get(SKELETON).num
    placed = [panoptic.parse_name(str(record["image"])) or _parse_key(str(record["key"])) for record in db]
    sequences, slots = list(dict.fromkeys(p[0] for p in placed)), sorted({p[1] for p in placed})
    number = {name: i for i, name in enumerate(sequences)}
    order = sorted(range(len(db)), key=lambda i: (number[placed[i][0]], placed[i][2], placed[i][1]))
    db, placed = [db[i] for i in order], [placed[i] for i in order]
    rigs: dict[tuple[str, str], int] = {}
    entries: list[Cameras] = []
    for place, record in zip(placed, db, strict=True):
        if place[:2] not in rigs:
            rigs[place[:2]] = len(entries)
            entries.append(_camera(record["camera"], (record.get("width", HD[0]), record.get("height", HD[1]))))
    count = np.array([len(record["joints_2d"]) for record in db])
    image = np.repeat(np.arange(len(db)), count)
    person = np.arange(len(image)) - np.repeat(np.cumsum(count) - count, count)
    x, visible = _people(db, "joints_2d", (joints, 2)), _people(db, "joints_2d_vis", (joints, 2)).all(-1)
    conf = visible.astype(np.float32)
    pose, X, valid = np.full(len(image), -1), np.zeros((0, joints, 3)), np.zeros((0, joints), bool)
    if "joints_3d" in db[0] and len(image):
        everyone, known = _people(db, "joints_3d", (joints, 3)), _people(db, "joints_3d_vis", (joints, 3)) > 0
        keys = np.array([(number[p[0]], p[2]) for p in placed])[image]
        _, first, pose = np.unique(np.column_stack([keys, person]), axis=0, return_index=True, return_inverse=True)
        X, valid, pose = everyone[first], known[first].all(-1), np.ravel(pose)
        conf = valid[pose].astype(np.float32)  # beyond the picture's border a joint is annotated, though not visible
    box = boxes_of(x, visible)
    if "bboxes" in db[0]:
        box = _people(db, "bboxes", (4,))
        box[:, 2:] += box[:, :2]
    nobody = np.flatnonzero(count == 0)
    image = np.append(image, nobody)
    person, pose = (np.append(column, np.full(len(nobody), -1)) for column in (person, pose))
    x, conf, visible, box = (
        np.concatenate([value, np.full((len(nobody), *value.shape[1:]), fill, value.dtype)])
        for value, fill in ((x, 0), (conf, 0), (visible, False), (box, np.nan))
    )
    order = np.argsort(image, kind="stable")
    image, person, pose, x, conf, visible, box = (value[order] for value in (image, person, pose, x, conf, visible, box))
    columns = {
        "sequence": np.array([number[p[0]] for p in placed])[image],
        "frame": np.array([p[2] for p in placed])[image],
        "view": np.array([slots.index(p[1]) for p in placed])[image],
        "person": person,
        "image": image,
        "camera": np.array([rigs[p[:2]] for p in placed])[image],
        "pose": pose,
    }
    return Annotations(
        skeleton=SKELETON,
        cameras=Cameras.stack(entries),
        X_world=np.where(valid[..., None], X, 0).astype(np.float32),
        X_valid=valid,
        **{key: value.astype(np.int32) for key, value in columns.items()},
        x_img=np.where((conf > 0)[..., None], x, 0).astype(np.float32),
        conf=conf,
        visible=visible,
        box=box.astype(np.float32),
        images=np.array([panoptic.image_name(*p).encode() for p in placed], dtype=bytes),
        subjects=np.array([name.encode() for name in sequences]),
        actions=np.array([name.partition("_")[2].rstrip("0123456789").encode() for name in sequences], dtype=bytes),
        subactions=np.array([b""] * len(sequences)),
        fps=panoptic.FPS,
    )


def _parse_key(key: str) -> tuple[str, str, int]:
    """Sequence, camera and frame of a record's key <sequence>_PP_NN_%08d."""
    sequence, panel, node, frame = key.rsplit("_", 3)
    return sequence, f"{int(panel):02d}_{int(node):02d}", int(frame)


def _people(db: list[dict[str, Any]], field: str, shape: tuple[int, ...]) -> np.ndarray:
    """Everyone's values in all records, (N, *shape)."""
    parts = [np.asarray(record[field], np.float64).reshape(-1, *shape) for record in db]
    if any(len(part) != len(record["joints_2d"]) for part, record in zip(parts, db, strict=True)):
        raise ValueError(f"{field} and joints_2d have different numbers of people")
    values = np.concatenate(parts)
    if not np.isfinite(values).all():
        raise ValueError(f"{field} is not finite")
    return values


def _camera(record: dict[str, Any], size: tuple[int, int]) -> Cameras:
    """One camera of a record: R, T (centre), f and c or fx fy cx cy, k, p."""
    fx, fy = np.ravel(record["f"]) if "f" in record else (record["fx"], record["fy"])
    cx, cy = np.ravel(record["c"]) if "c" in record else (record["cx"], record["cy"])
    k, p = (np.ravel(np.asarray(record[name], np.float64)) for name in "kp")
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
    dist = np.array([k[0], k[1], p[0], p[1], k[2]], np.float64)
    R, center = np.asarray(record["R"], np.float64).reshape(3, 3), np.ravel(np.asarray(record["T"], np.float64))
    return Cameras.make(K, R, center=center, dist=dist, size=np.asarray(size, np.float64))


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    form: str = "npz",
    interval: int = 1,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes `<split>.npz`, or `<split>.pkl` as the original programs read it; with `image` the pictures as well.

    The records of a table without 3D have the form of pseudo labels, those of one with 3D the form of the annotated groups.

    Args:
        ann: the table, with images; for a pickle those must be called as Panoptic's are (see lib.dataset.formats.panoptic).
        root, split: where, and the name of the file without its suffix.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images.
        form: "npz" or "pickle".
        interval: stored in the pickle; the original programs compare it with theirs.

    Raises:
        DataError: the table does not fit the layout, a file exists, or something cannot be written.
    """
    root = Path(root)
    if form not in ("npz", "pickle"):
        raise DataError(f"form {form!r}: expected npz or pickle")
    ann = ann.check(f"annotations to be written to {root} ({split})").to_skeleton(SKELETON)
    path = root / f"{split}{'.npz' if form == 'npz' else '.pkl'}"
    refuse_existing(path)
    names = [name.decode() for name in ann.images]
    strange = next((name for name in names if panoptic.parse_name(name) is None), None) if form == "pickle" else None
    if strange is not None or (ann.image < 0).any() or (ann.camera < 0).any():
        raise DataError(
            f"{root}: {strange or 'a row without image or camera'} has no place among Panoptic's labels, expected "
            "<sequence>/hdImgs/00_03/00_03_00000168.jpg for every row; write it as npz, or the table as panoptic first"
        )
    posed = ann.pose[~_nobody(ann)] >= 0
    if posed.any() != posed.all():
        raise DataError(f"{root}: some rows have 3D and some have none; write them as two splits")
    root.mkdir(parents=True, exist_ok=True)
    if image is not None:
        place_images(root, names, image, split, workers, f"{root}: {split}" if progress else None)
    if form == "npz":
        with new_file(path) as part:
            save_table(ann, names, part)
    else:
        content = _content(ann, interval)
        with new_file(path) as part, open(part, "wb") as file:
            pickle.dump(content, file)


def _nobody(ann: Annotations) -> np.ndarray:
    """Rows that stand for a picture in which nobody is, (N,) bool."""
    return (ann.pose < 0) & (ann.person < 0)


def _content(ann: Annotations, interval: int) -> dict[str, Any]:
    """What a pickle holds."""
    forms, labelled, nobody = list(center_form(ann.cameras).values()), bool((ann.pose >= 0).any()), _nobody(ann)
    rows, starts = ann.group("image")
    db, sequences, cameras = [], [], []
    for row in np.split(rows, starts[1:-1]):
        first = int(row[0])
        sequence, camera, frame = panoptic.parse_name(ann.image_path(first))
        row = row[~nobody[row]]
        sequences.append(sequence)
        cameras.append(camera)
        form = {key: np.asarray(value) if isinstance(value, list) else value for key, value in forms[ann.camera[first]].items()}
        form |= {"f": np.array([[form["fx"]], [form["fy"]]]), "c": np.array([[form["cx"]], [form["cy"]]])}
        width, height = ann.cameras.size[int(ann.camera[first])].int().tolist()
        seen = ann.visible[row] if labelled else ann.conf[row] > 0
        record = {
            "key": f"{sequence}_{camera}_{frame:08d}",
            "image": ann.image_path(first),
            "camera": form,
            "joints_2d": list(ann.x_img[row].astype(np.float64)),
            "joints_2d_vis": list(np.repeat(seen[..., None], 2, -1)),
        }
        if labelled:
            record["joints_3d"] = list(ann.X_world[ann.pose[row]].astype(np.float64))
            record["joints_3d_vis"] = list(np.repeat(ann.X_valid[ann.pose[row]][..., None], 3, -1))
        else:
            box = ann.box[row].astype(np.float64)
            extent = box[:, 2:] - box[:, :2]
            record |= {
                "height": height, "width": width, "bboxes": np.concatenate([box[:, :2], extent], -1).tolist(),
                "scores": ann.conf[row].mean(1).tolist(), "centers": (box[:, :2] + extent / 2).tolist(), "scales": (extent / 200).tolist(),
            }  # fmt: skip
        db.append(record)
    numbers = [tuple(int(n) for n in name.split("_")) for name in sorted(set(cameras))]
    return {"sequence_list": list(dict.fromkeys(sequences)), "interval": interval, "cam_list": numbers, "db": db}


# ---------------------------------------------------------------------------------------------------------------- check


def splits(root: str | Path) -> list[str]:
    """The label files below `root`: those called group_*."""
    return sorted({p.stem for suffix in ("npz", "pkl") for p in Path(root).glob(f"group_*.{suffix}")})


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong, one sentence each; empty = good. Without `split`, all files called group_*."""
    root = Path(root)
    names = [split] if split else splits(root)
    if not names:
        return [f"{root}: no label files found, expected such as group_train_cam5_pseudo_hrnet_soft_9videos.pkl"]
    return findings_of(lambda name: read(root, name), {name: f"{root} ({name})" for name in names}, root)
