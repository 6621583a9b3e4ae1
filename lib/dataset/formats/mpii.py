"""MPII Human Pose in the JSON form that 2D pose code shares (Simple Baselines, EpipolarPose): 2D joints only.

<root>/annot/{train,valid,trainval,test}.json     one record per person, coordinates counted from 1
<root>/annot/gt_valid.mat                         joints and head boxes of `valid`, in the order of valid.json
<root>/images/*.jpg

No record is ever left out: predictions stay in the order that MPII's own evaluation expects.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.dataset.formats.files import findings, image_size, labelled_pictures, need, place_images
from lib.dataset.formats.matlab import load_mat
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing, replaced
from lib.metrics.keypoints import HEAD_BIAS

log = logging.getLogger("parallax")

SKELETON = "mpii16"
JOINTS = skeletons.get(SKELETON).num
SPLITS = ("train", "valid", "trainval", "test")
ALIASES = {"valid": "val", "val": "valid"}  # programs differ in what they call the file
BOXES = ("joints", "published")
DOWN = 15.0  # px for a scale of 1 that published boxes lie below the record's centre, as people reach further down than up from it
TRUTH = "gt_valid.mat"  # of the split `valid` only
BOX_MARGIN = 1.25  # the box is this much larger than the extent of the joints, or than the record's own scale says
SCALE_PX = 200.0  # a record's `scale` counts heights of 200 px
SHORT_HEAD = 0.1  # of the extent of the joints: a head that is made up is never smaller, as one seen from above is short
AGREE_PX = 1.0  # by which valid.json, which is rounded, may differ from gt_valid.mat
# Joint names of gt_valid.mat.
MAT_JOINTS = {
    "rank": "r_ankle", "rkne": "r_knee", "rhip": "r_hip", "lhip": "l_hip", "lkne": "l_knee", "lank": "l_ankle",
    "pelv": "pelvis", "thor": "thorax", "neck": "upper_neck", "head": "head", "rwri": "r_wrist", "relb": "r_elbow",
    "rsho": "r_shoulder", "lsho": "l_shoulder", "lelb": "l_elbow", "lwri": "l_wrist",
}  # fmt: skip


def read(root: str | Path, split: str, box: str = "joints") -> Annotations:
    """One split; row i is record i of the JSON file.

    Boxes are those of the joints, times 1.25, which crops widen to their own shape; a record with fewer than two joints takes `center`
    and `scale` (side 200 * scale * 1.25 px). `valid` gets its joints and head sizes from gt_valid.mat where that file is there.

    Args:
        root: folder that holds annot/ and images/.
        split: train, valid (or val; either file will do), trainval, test, or the name of any other JSON file in annot/.
        box: "joints", or "published" for the rule of Zhou et al.'s release (ICCV 2017): squares of 250 * scale px, at most as long as
            the image, with their middles 15 * scale px below `center`; joints stay as the files count them, from 1, so that they
            lie one px right of and below where they are shown.

    Raises:
        DataError: no such split, a record that is damaged or has neither joints nor a place, or another order than gt_valid.mat's.
    """
    root = Path(root)
    if box not in BOXES:
        raise DataError(f"box: {box!r} is not one of {', '.join(BOXES)}; correct DATASET.OPTIONS")
    path = root / "annot" / f"{split}.json"
    if split in ALIASES and not path.exists() and path.with_name(f"{ALIASES[split]}.json").exists():
        path = path.with_name(f"{ALIASES[split]}.json")
    records = _records(path, root, split)
    joints, known = _joints(path, records)
    boxes = _boxes(path, records, joints, known) if box == "joints" else _published_boxes(path, records, root)
    head_px = np.full(len(records), np.nan, np.float32)
    if split in ALIASES:
        truth = root / "annot" / TRUTH
        if truth.exists():
            joints, known, heads = _truth(truth, path, joints, known)
            head_px = (HEAD_BIAS * np.linalg.norm(heads[:, 1] - heads[:, 0], axis=-1)).astype(np.float32)
            head_px[head_px <= 0] = np.nan
        else:
            log.warning("%s is missing: there will be no PCKh, which needs its head boxes; it comes with the annotations", truth)
    if box == "published":
        joints = joints + 1
    names, image = np.unique([f"images/{record['image']}" for record in records], return_inverse=True)
    return labelled_pictures(
        SKELETON,
        names,
        image,
        x_img=joints.astype(np.float32),
        conf=known.astype(np.float32),
        visible=known,
        box=boxes.astype(np.float32),
        head_px=head_px,
    )


def _records(path: Path, root: Path, split: str) -> list[dict]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(p.stem for p in (root / "annot").glob("*.json"))
        raise DataError(
            f"{root}/annot: has no split {split!r} (.json), only {', '.join(names) or 'none'}; set DATASET.ROOT to the folder "
            "that holds annot/ and images/, and the split to one of these"
        ) from None
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: holds {type(records).__name__} of no records, expected a list of one or more; download it again")
    for i, record in enumerate(records):
        name = record.get("image") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: record {i} has no 'image' (found {name!r}), expected a file name; download the file again")
    return records


def _field(path: Path, records: list[dict], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A field of all records, (N, *shape) float64; NaN where a record lacks it."""
    out = np.full((len(records), *shape), np.nan)
    for i, record in enumerate(records):
        if record.get(name) is not None:
            try:
                value = np.asarray(record[name], dtype=np.float64)
            except MALFORMED:
                value = np.empty(0)
            if value.shape != shape:
                raise DataError(
                    f"{path}: record {i} ({record['image']}): '{name}' has shape {value.shape}, expected {shape} numbers; "
                    "check that the file is MPII's and complete"
                )
            out[i] = value
    return out


def _joints(path: Path, records: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N,16,2) px counted from 0, and which are annotated (N,16)."""
    joints = _field(path, records, "joints", (JOINTS, 2)) - 1
    vis = _field(path, records, "joints_vis", (JOINTS,))
    return joints, (vis > 0) & np.isfinite(joints).all(-1)


def _extent(joints: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest x and y of the annotated joints, (N,2) each; 0 and 0 without any."""
    low = np.where(known[..., None], joints, np.inf).min(1)
    high = np.where(known[..., None], joints, -np.inf).max(1)
    any_joint = known.any(1)[:, None]
    return np.where(any_joint, low, 0), np.where(any_joint, high, 0)


def _boxes(path: Path, records: list[dict], joints: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Boxes (N,4) x0 y0 x1 y1 px."""
    place, side = _field(path, records, "center", (2,)) - 1, SCALE_PX * _field(path, records, "scale", ())
    low, high = _extent(joints, known)
    enough = (known.sum(1) >= 2) & ((high - low).max(1) > 0)
    lost = np.flatnonzero(~enough & ~(np.isfinite(place).all(-1) & (side > 0)))
    if len(lost):
        i = int(lost[0])
        raise DataError(
            f"{path}: record {i} ({records[i]['image']}) has {int(known[i].sum())} joints and no 'center' and 'scale', "
            "expected two joints or a place; records are never left out, as results must stay in order"
        )
    center = np.where(enough[:, None], (low + high) / 2, place)
    extent = np.maximum(high - low, 1.0)  # joints in a line have a box with area, too
    half = np.where(enough[:, None], extent, side[:, None]) * (BOX_MARGIN / 2)
    return np.concatenate([center - half, center + half], -1)


def _published_boxes(path: Path, records: list[dict], root: Path) -> np.ndarray:
    """Boxes (N,4) x0 y0 x1 y1 px by the rule of Zhou et al.'s release. What is longer than its image is cut to the same length."""
    center, scale = _field(path, records, "center", (2,)), _field(path, records, "scale", ())
    lost = np.flatnonzero(~(np.isfinite(center).all(-1) & (scale > 0)))
    if len(lost):
        i = int(lost[0])
        raise DataError(f"{path}: record {i} ({records[i]['image']}) has no 'center' and 'scale', which the box needs; set box joints")
    names, image = np.unique([record["image"] for record in records], return_inverse=True)
    longest = np.array([max(image_size(root / "images" / name)) for name in names], np.float64)
    longest[longest == 0] = np.inf  # not there
    half = np.minimum(BOX_MARGIN * SCALE_PX * scale, longest[image])[:, None] / 2
    center = center + scale[:, None] * [0, DOWN] - 1
    return np.concatenate([center - half, center + half], 1)


# --------------------------------------------------------------------------------------------------------- gt_valid.mat


def _truth(path: Path, records: Path, joints: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What MPII's evaluation compares with: joints (N,16,2) px counted from 0, which exist (N,16), head boxes (N,2,2)."""
    try:
        mat = load_mat(path)
        names = [_text(cell) for cell in np.ravel(mat["dataset_joints"])]
        missing, heads = np.atleast_2d(mat["jnt_missing"]), mat["headboxes_src"].astype(np.float64)
        x_img = mat["pos_gt_src"].astype(np.float64) - 1
    except DataError:
        raise
    except Exception as error:  # SciPy, zlib and struct have errors of their own
        raise DataError(
            f"{path}: cannot be read ({error}), expected dataset_joints, jnt_missing, pos_gt_src and headboxes_src; download it again"
        ) from None
    unknown = [name for name in names if name not in MAT_JOINTS]
    if unknown or len(names) != JOINTS:
        raise DataError(f"{path}: dataset_joints are {names}, expected {list(MAT_JOINTS)}; download the file again")
    if x_img.ndim == 2:  # MATLAB drops a last dimension of 1
        x_img, heads = x_img[..., None], heads[..., None]
    count = len(joints)
    found = x_img.shape[-1]
    if found != count or missing.shape != (JOINTS, found) or heads.shape != (2, 2, found) or x_img.shape[:2] != (JOINTS, 2):
        raise DataError(
            f"{path}: holds {found} people, but {records} has {count} records; both must list the same people in the same order, so "
            "take both files from one download, and leave no record out"
        )
    order = [names.index(name) for name in _mat_order()]
    x_img, exists = x_img[order].transpose(2, 0, 1), (missing[order] == 0).T
    both = exists & known
    apart = np.where(both, np.abs(x_img - np.where(known[..., None], joints, 0)).max(-1), 0).max(1)
    wrong = np.flatnonzero(apart > AGREE_PX)
    if len(wrong):
        i = int(wrong[0])
        raise DataError(
            f"{path}: {len(wrong)} of {count} people are not those of {records}: the joints of record {i} lie {apart[i]:.4g} px apart, "
            f"expected at most {AGREE_PX:g}; the files are of different versions or in another order, so take both from one download"
        )
    return np.where(exists[..., None], x_img, 0), exists, heads.transpose(2, 0, 1)


def _text(cell: Any) -> str:
    while isinstance(cell, np.ndarray) and cell.size == 1:
        cell = cell.ravel()[0]
    return str(cell)


def _mat_order() -> list[str]:
    """The names of gt_valid.mat in the order of SKELETON."""
    short = {joint: name for name, joint in MAT_JOINTS.items()}
    return [short[joint] for joint in skeletons.get(SKELETON).joints]


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes annot/<split>.json, gt_valid.mat for `valid`, and the images if there is something to make them.

    Joints are converted to MPII's by name. Head boxes come from `head_px`; where that is unknown, the head is taken to be as long as
    from `upper_neck` to `head` and at least a tenth of the extent of the joints, and the box is a square about the middle of the two.

    Args:
        ann: the table; observations without image are refused.
        root: folder of the data set, made if missing.
        split: name of the file.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images. With workers it must be picklable.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the split or one of its images exists, or an observation has no image or no box.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})").to_skeleton(SKELETON)
    lost = np.flatnonzero((ann.image < 0) | ~np.isfinite(ann.box).all(-1))
    if len(lost):
        raise DataError(f"{root}: {len(lost)} observations have no image or no box (row {lost[0]}), expected both; leave them out")
    path, truth = root / "annot" / f"{split}.json", root / "annot" / TRUTH
    refuse_existing(path)
    names = _image_names(ann, split, keep=image is None)
    known = ann.conf > 0
    joints = np.where(known[..., None], ann.x_img.astype(np.float64) + 1, -1)
    center = (ann.box[:, :2] + ann.box[:, 2:]).astype(np.float64) / 2 + 1
    side = (ann.box[:, 2:] - ann.box[:, :2]).astype(np.float64).max(1)
    records = [
        {
            "image": names[i].removeprefix("images/"),
            "center": c.round(4).tolist(),
            "scale": round(float(s) / (BOX_MARGIN * SCALE_PX), 6),
            "joints": x.round(4).tolist(),
            "joints_vis": v.astype(int).tolist(),
        }
        for i, c, s, x, v in zip(ann.image, center, side, joints, known, strict=True)
    ]
    with new_file(path) as part:
        part.write_text(json.dumps(records))
        if image is not None:
            place_images(root, names, image, split, workers, f"{root}: {split}" if progress else None)
        if split == "valid":
            with new_file(truth) as part_mat, open(part_mat, "xb") as file:
                need("scipy.io", f"{truth}: writing it").savemat(file, _mat(ann, joints, known))


def _image_names(ann: Annotations, split: str, keep: bool) -> list[str]:
    names = [name.decode() for name in ann.images]
    if keep and all(name.startswith("images/") for name in names):
        return names
    flat = [name.removeprefix("images/").replace("/", "_").rpartition(".")[0] for name in names]
    return [f"images/{name if name.startswith(split) else f'{split}_{name}'}.jpg" for name in flat]


def _mat(ann: Annotations, joints: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """The contents of gt_valid.mat; joints (N,16,2) px counted from 1."""
    skeleton = skeletons.get(SKELETON)
    ends = skeleton.indices(["upper_neck", "head"])
    spot, length = joints[:, ends].mean(1), np.linalg.norm(joints[:, ends[1]] - joints[:, ends[0]], axis=-1)
    there = known[:, ends].all(1)
    low, high = _extent(joints, known)
    extent = np.where(known.any(1), (high - low).max(1), (ann.box[:, 2:] - ann.box[:, :2]).max(1))
    made_up = np.maximum(np.where(there, length, 0), SHORT_HEAD * extent)
    head_px = np.where(np.isfinite(ann.head_px), ann.head_px, made_up)
    spot = np.where(there[:, None], spot, (ann.box[:, :2] + ann.box[:, 2:]) / 2 + 1)
    half = (head_px / HEAD_BIAS / 2 / np.sqrt(2))[:, None]
    return {
        "dataset_joints": np.array([_mat_order()], dtype=object),
        "jnt_missing": (~known).T.astype(np.uint8),
        "pos_gt_src": joints.transpose(1, 2, 0),
        "headboxes_src": np.stack([spot - half, spot + half]).transpose(0, 2, 1),
    }


def write_predictions_mat(path: str | Path, x_img: np.ndarray) -> None:
    """The file that MPII's evaluation reads: `preds` (N,16,2), counted from 1, in the order of the JSON file.

    Args:
        path: file to be made, such as pred.mat.
        x_img: (N,16,2) px counted from 0, one row per record, joints in the order of mpii16.

    Raises:
        DataError: the shape is another, or the file exists.
    """
    with new_file(path) as part:
        _save_mat(part, path, x_img)


def _save_mat(part: Path, path: str | Path, x_img: np.ndarray) -> None:
    """What becomes `path`, under its temporary name."""
    x_img = np.asarray(x_img, dtype=np.float64)
    if x_img.ndim != 3 or x_img.shape[1:] != (JOINTS, 2) or not np.isfinite(x_img).all():
        raise DataError(f"{path}: predictions have shape {x_img.shape}, expected (N, {JOINTS}, 2) finite pixels of skeleton {SKELETON}")
    with open(part, "xb") as file:
        need("scipy.io", f"{path}: writing it").savemat(file, {"preds": x_img + 1})


def splits(root: str | Path) -> list[str]:
    """The names of the splits that are there, those of own making too."""
    return [p.stem for p in sorted((Path(root) / "annot").glob("*.json")) if not p.name.startswith(".")]


def write_predictions(folder: Path, predictions: Mapping[str, np.ndarray]) -> Path | None:
    """pred.mat of an evaluation's columns, in place of an earlier one; None unless they hold the joints of mpii16 in the image."""
    if "x_img" not in predictions or str(predictions.get("skeleton")) != SKELETON:
        return None
    path = folder / "pred.mat"
    with replaced(path) as part:
        _save_mat(part, path, predictions["x_img"])
    return path


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Without `split`, all splits of annot/."""
    root = Path(root)
    names = [split] if split else splits(root)
    if not names:
        return [f"{root}/annot: no annotations (.json) found, expected some of {', '.join(SPLITS)}; set the root to MPII's folder"]
    said = []
    for name in names:
        path = root / "annot" / f"{name}.json"
        try:
            ann = read(root, name).check(str(path))
        except DataError as error:
            said.append(str(error))
            continue
        said += findings(ann, root, str(path))
        if name == "valid" and not np.isfinite(ann.head_px).any():
            said.append(f"{root}/annot/{TRUTH}: is missing or holds no head box, expected one per person; PCKh needs it")
        empty = int((ann.conf > 0).any(1).size - (ann.conf > 0).any(1).sum())
        if empty and name != "test":
            said.append(f"{path}: {empty} of {len(ann)} records have no joint at all, expected joints; is it the right split?")
    return said
