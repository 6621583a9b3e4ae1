"""Keypoints of people in COCO, as released in 2017: 2D joints only.

<root>/annotations/person_keypoints_{train,val}2017.json     images and people; also person_keypoints_<name>.json of other names
<root>/train2017/*.jpg, val2017/*.jpg                        a folder of images per name

People without labelled joints, without area, and crowds are left out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, enlarged
from lib.dataset.formats.files import findings_of, image_size, labelled_pictures, place_images
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing

SKELETON = "coco17"
JOINTS = skeletons.get(SKELETON).num
YEAR = 2017  # that a split named without one is of
PERSON = "person"
BOX_MARGIN = 1.25  # of a crop over the annotated box
LONG = {"l": "left", "r": "right"}  # sides in the file's joint names
UNKNOWN, HIDDEN, SEEN = 0, 1, 2  # marks of joints: not labelled, labelled though hidden, visible
PREFIX = "person_keypoints_"


def read(root: str | Path, split: str, images: str = "") -> Annotations:
    """One split; rows are people in the order of the file.

    A box is the annotated one, cut off at the borders of the image, times 1.25; crops widen it to their own shape.

    Args:
        root: folder that holds annotations/ and the folders of images.
        split: train, val, or the rest of the name of any person_keypoints_*.json, such as val2017 or train2014.
        images: folder of the images below root; "" = that of the split's name, such as val2017.

    Raises:
        DataError: no such split, a file that is damaged or of other joints, a person without an image, or nobody at all.
    """
    root = Path(root)
    name, path = _find(root, split)
    content = _content(path)
    rows, names, size = _images(path, content["images"])
    people = _people(path, content, rows)
    image = np.array([rows[person["image_id"]] for person in people], np.int32)
    points = _numbers(path, people, "keypoints", 3 * JOINTS).reshape(-1, JOINTS, 3)
    box = _boxes(_numbers(path, people, "bbox", 4), size[image])
    keep = (points[..., 2] > UNKNOWN).any(1) & (box[:, 2:] > box[:, :2]).all(1)
    for field in ("num_keypoints", "area"):
        keep &= _numbers(path, people, field, 0, default=1) > 0
    if not keep.any():
        raise DataError(
            f"{path}: none of {len(people)} people has joints and a box with area, expected some; take the file of keypoints "
            f"({PREFIX}*.json), of a split that is labelled"
        )
    points, image, box = points[keep], image[keep], box[keep]
    known = points[..., 2] > UNKNOWN
    used, image = np.unique(image, return_inverse=True)
    folder = (images or name).rstrip("/")
    return labelled_pictures(
        SKELETON,
        [f"{folder}/{names[i]}" for i in used],
        image,
        x_img=np.where(known[..., None], points[..., :2], 0).astype(np.float32),
        conf=known.astype(np.float32),
        visible=points[..., 2] >= SEEN,
        box=enlarged(box, BOX_MARGIN).astype(np.float32),
    )


def _find(root: Path, split: str) -> tuple[str, Path]:
    """The whole name of a split, and its file."""
    folder = root / "annotations"
    for name in (split, f"{split}{YEAR}"):
        if (path := folder / f"{PREFIX}{name}.json").exists():
            return name, path
    raise DataError(
        f"{folder}: has no split {split!r} ({PREFIX}{split}{YEAR}.json), only {', '.join(splits(root)) or 'none'}; set DATASET.ROOT to the "
        "folder that holds annotations/, and the split to one of these"
    )


def splits(root: str | Path) -> list[str]:
    """The names of the splits that are there."""
    return sorted(p.stem.removeprefix(PREFIX) for p in (Path(root) / "annotations").glob(f"{PREFIX}*.json"))


def _content(path: Path) -> dict[str, list]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); download it again") from None
    for field in ("images", "annotations"):
        found = content.get(field) if isinstance(content, dict) else None
        if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
            said = f"{type(found).__name__} of {len(found)}" if isinstance(found, list) else type(found).__name__
            raise DataError(f"{path}: '{field}' is {said}, expected a list of one or more objects; is it COCO's file of keypoints?")
    return content


def _images(path: Path, images: list[dict]) -> tuple[dict[Any, int], list[str], np.ndarray]:
    """Row of each image by its id, names of files, sizes (I,2) px."""
    rows: dict[Any, int] = {}
    for i, entry in enumerate(images):
        name, key = entry.get("file_name"), entry.get("id")
        if not isinstance(name, str) or not name or not isinstance(key, int) or key in rows:
            raise DataError(
                f"{path}: image {i} has file_name {name!r} and id {key!r}, expected a name and a number of its own; download it again"
            )
        rows[key] = i
    names = [entry["file_name"] for entry in images]
    size = np.stack([_numbers(path, images, side, 0, "image") for side in ("width", "height")], -1)
    if not (size > 0).all():
        raise DataError(f"{path}: image {names[int(np.argmin(size.min(1)))]} has no size, expected width and height; download it again")
    return rows, names, size


def _people(path: Path, content: dict, rows: dict[Any, int]) -> list[dict]:
    """The annotated people, without crowds."""
    categories = content.get("categories")
    categories = [c for c in categories if isinstance(c, dict) and c.get("name") == PERSON] if isinstance(categories, list) else []
    ours = _long_names()
    for category in categories:
        if category.get("keypoints", ours) != ours:
            raise DataError(f"{path}: a person's keypoints are {category['keypoints']}, expected {ours}; convert the file to COCO's joints")
    persons = [category.get("id") for category in categories] or [1]
    people = []
    for entry in content["annotations"]:
        if entry.get("category_id") not in persons or entry.get("iscrowd") or not entry.get("keypoints"):
            continue
        if not isinstance(entry.get("image_id"), int) or entry["image_id"] not in rows:
            raise DataError(
                f"{path}: annotation {entry.get('id')} is of image {entry.get('image_id')!r}, which 'images' lacks; download it again"
            )
        people.append(entry)
    return people


def _numbers(path: Path, entries: list[dict], field: str, count: int, what: str = "annotation", default: Any = None) -> np.ndarray:
    """A field of all entries, (N, count) float64, or (N,) where count is 0; `default` for entries that lack it."""
    shape = (count,) if count else ()
    try:
        values = np.array([entry.get(field, default) for entry in entries], np.float64)
        if values.shape == (len(entries), *shape) and np.isfinite(values).all():
            return values
    except MALFORMED:
        pass
    for entry in entries:  # which one it is
        try:
            value = np.asarray(entry.get(field, default), np.float64)
        except MALFORMED:
            value = np.full(1 + count, np.nan)
        if value.shape != shape or not np.isfinite(value).all():
            said = f"{count} finite numbers" if count else "a finite number"
            raise DataError(
                f"{path}: {what} {entry.get('id')}: '{field}' is {str(entry.get(field))[:60]}, expected {said}; "
                "check that the file is COCO's and complete"
            )
    return np.empty((0, *shape))  # there are no entries


def _boxes(bbox: np.ndarray, size: np.ndarray) -> np.ndarray:
    """x y width height -> x0 y0 x1 y1 (N,4) px between the centres of the outer pixels of an image of `size` (N,2)."""
    low, high = bbox[:, :2], bbox[:, :2] + np.maximum(bbox[:, 2:] - 1, 0)
    return np.concatenate([np.clip(low, 0, size - 1), np.clip(high, 0, size - 1)], 1)


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes annotations/person_keypoints_<split>2017.json, and the images if there is something to make them.

    Joints are converted to COCO's by name; those outside of the image are not labelled. An annotated box is that of the labelled
    joints, or the table's without the margin where these have no area. The area is that of the box, as there are no outlines.

    Args:
        ann: the table; observations without image are refused.
        root: folder of the data set, made if missing.
        split: train, val, or a name that ends in its year.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images, which are those below `root` then. With workers it
            must be picklable.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the split or one of its images exists, an observation has no image or no box, or an image's size is unknown.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})").to_skeleton(SKELETON)
    lost = np.flatnonzero((ann.image < 0) | ~np.isfinite(ann.box).all(-1))
    if len(lost):
        raise DataError(f"{root}: {len(lost)} observations have no image or no box (row {lost[0]}), expected both; leave them out")
    name = split if split[-1:].isdigit() else f"{split}{YEAR}"
    path = root / "annotations" / f"{PREFIX}{name}.json"
    refuse_existing(path)
    used = np.unique(ann.image)
    names = _image_names(ann, name, keep=image is None)
    size = _sizes(ann, root, names, image)
    inside = ((ann.x_img >= 0) & (ann.x_img <= size[ann.image][:, None] - 1)).all(-1)
    known = (ann.conf > 0) & inside
    mark = np.where(known, np.where(ann.visible, SEEN, HIDDEN), UNKNOWN)
    points = np.concatenate([np.where(known[..., None], ann.x_img, 0).astype(np.float64), mark[..., None]], -1)
    box = _annotated(ann, known, size[ann.image])
    edges = (np.array(skeletons.get(SKELETON).bones) + 1).tolist()
    content = {
        "info": {"description": f"{name} in the layout of COCO's person keypoints"},
        "licenses": [],
        "categories": [{"id": 1, "name": PERSON, "supercategory": PERSON, "keypoints": _long_names(), "skeleton": edges}],
        "images": [
            {"id": int(i) + 1, "file_name": names[i].removeprefix(f"{name}/"), "width": int(size[i, 0]), "height": int(size[i, 1])}
            for i in used
        ],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(ann.image[row]) + 1,
                "category_id": 1,
                "iscrowd": 0,
                "num_keypoints": int(known[row].sum()),
                "keypoints": points[row].round(4).reshape(-1).tolist(),
                "bbox": box[row].round(4).tolist(),
                "area": round(float(box[row, 2] * box[row, 3]), 4),
                "segmentation": [],
            }
            for row in range(len(ann))
        ],
    }
    with new_file(path) as part:
        part.write_text(json.dumps(content))
        if image is not None:
            place_images(root, names, image, name, workers, f"{root}: {split}" if progress else None)


def _long_names() -> list[str]:
    """The joints as the file names them, in the order of SKELETON."""
    return [LONG[j[0]] + j[1:] if j[1] == "_" else j for j in skeletons.get(SKELETON).joints]


def _image_names(ann: Annotations, folder: str, keep: bool) -> list[str]:
    names = [name.decode() for name in ann.images]
    if keep and all(name.startswith(f"{folder}/") for name in names):
        return names
    return [f"{folder}/{i:012d}.jpg" for i in range(1, len(names) + 1)]


def _sizes(ann: Annotations, root: Path, names: list[str], image: Callable | None) -> np.ndarray:
    """Width and height (I,2) px of the images that are used: of their cameras, else of the images themselves."""
    size = np.zeros((len(names), 2))
    known = ann.camera >= 0
    size[ann.image[known]] = ann.cameras.size.numpy()[ann.camera[known]]
    for i in np.unique(ann.image):
        if not (size[i] > 0).all():
            size[i] = image_size(root / names[i]) if image is None else np.shape(image(int(i)))[1::-1]
            if not (size[i] > 0).all():
                raise DataError(f"{root / names[i]}: its size is unknown, as there is neither a camera nor this image; put the image there")
    return size


def _annotated(ann: Annotations, known: np.ndarray, size: np.ndarray) -> np.ndarray:
    """x y width height (N,4) px of the known joints; of the table's box without its margin where these have no area."""
    low = np.where(known[..., None], ann.x_img, np.inf).min(1).astype(np.float64)
    high = np.where(known[..., None], ann.x_img, -np.inf).max(1).astype(np.float64)
    center, half = (ann.box[:, :2] + ann.box[:, 2:]) / 2, (ann.box[:, 2:] - ann.box[:, :2]) / 2 / BOX_MARGIN
    area = (high > low).all(1)[:, None]
    low = np.clip(np.where(area, low, center - half), 0, size - 1)
    high = np.clip(np.where(area, high, center + half), 0, size - 1)
    return np.concatenate([low, high - low + 1], 1)


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Without `split`, all splits of annotations/."""
    root = Path(root)
    names = [split] if split else splits(root)
    if not names:
        return [f"{root}/annotations: no {PREFIX}*.json found, expected {PREFIX}train{YEAR}.json and others; set the root to COCO's folder"]
    return findings_of(lambda name: read(root, name), {name: f"{root} ({name})" for name in names}, root)
