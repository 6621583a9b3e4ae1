"""Your own calibrated rig: any number of cameras, any number of people.

<root>/cameras.json                     or cameras.toml, or another calibration (lib/dataset/calibrations.py)
<root>/images/<camera>/000123.jpg       the number is the instant: cameras are synchronised by it
<root>/videos/<camera>.mp4              or videos, frame 0 of all at the same instant; `extract` makes images/<camera>/00000000.jpg of them
<root>/poses2d/<camera>.json            optional: what a 2D detector found (lib/dataset/formats/detector_files.py), file or folder

Several recordings of one project lie in `<root>/<split>/`; the calibration may lie in either. Names of cameras are those of the
calibration; `cam01`, `Cam_01` and `cam_01_json` are taken for `cam_01`. There is no 3D in this layout.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.dataset.calibrations import Calibration, read_calibration, report, write_cameras
from lib.dataset.formats.detector_files import read_detections
from lib.dataset.formats.files import findings, image_size, part_folder, write_images
from lib.dataset.formats.multiview import ChosenImages, renumbered, rigs
from lib.dataset.formats.pseudo_labels import clipped, hard_labels, to_panoptic
from lib.dataset.formats.video import extract_frames
from lib.errors import DataError
from lib.files import refuse_existing
from lib.geometry.camera import Cameras

SKELETON = "panoptic15"
DETECTED = "coco17"
CALIBRATIONS = ("cameras.json", "cameras.toml", "calibration.json", "calibration.toml", "intri.yml", "intrinsics.yml", "calibration")
IMAGES, VIDEOS = (".jpg", ".jpeg", ".png", ".bmp"), (".mp4", ".avi", ".mov", ".mkv", ".webm")
LABELS = ("soft", "hard", "raw")


# ------------------------------------------------------------------------------------------------------------- reading


def read(
    root: str | Path,
    split: str,
    calibration: str = "",
    unit: str = "",
    step: int = 1,
    labels: str = "soft",
    layout: str = "",
    min_score: float = 0.0,
) -> Annotations:
    """What the cameras saw, with the 2D joints of a detector where there are any; no 3D, and people are numbered per picture.

    Every picture has a row: one in which nobody was detected has a row of person -1 whose `conf` is 0. Videos whose frames were not
    extracted are named by the images they would give.

    Args:
        root: folder of the recording, or of several.
        split: name of the recording's folder below `root`; where there is none, `root` is the recording, whatever the split is called.
        calibration: file below `root`, where it is not called as above.
        unit: of lengths in the calibration: mm, cm, m; empty = see lib.dataset.calibrations.read_calibration.
        step: every how many instants.
        labels: of detectors that find COCO's joints (and more): "soft" = all with their confidence, "hard" = only sure ones inside the
            box, both as Panoptic's 15 joints (see lib.dataset.formats.pseudo_labels); "raw" = as detected. Other joints stay raw.
        layout: joints of the detector's files, where they do not say.
        min_score: people with a lower box score are left out.

    Raises:
        DataError: no calibration, no camera with pictures or detections, or a file that is damaged.
    """
    folder, rig = _rig(Path(root), split, calibration, unit)
    if labels not in LABELS:
        raise DataError(f"labels: {labels!r} is not one of {', '.join(LABELS)}; correct DATASET.OPTIONS")
    if step < 1:
        raise DataError(f"step: {step}, expected 1 or more; correct DATASET.OPTIONS")
    prefix = f"{folder.relative_to(root).as_posix()}/" if folder != Path(root) else ""
    pictures = {k: {f: prefix + name for f, name in found.items()} for k, found in _pictures(folder, rig).items()}
    people = _people(folder, rig, layout, min_score)
    if not any(pictures.values()) and not people:
        raise DataError(
            f"{folder}: no pictures or detections of the cameras {', '.join(rig.names)}; expected images/{rig.names[0]}/, "
            f"videos/{rig.names[0]}.mp4 or poses2d/{rig.names[0]}.json"
        )
    return _table(rig, pictures, people, step, labels, folder.resolve().name)


def _rig(root: Path, split: str, calibration: str, unit: str) -> tuple[Path, Calibration]:
    """The folder of the recording, and its cameras."""
    folder = root / split if split and (root / split).is_dir() else root
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected a recording's (experiments/custom/README.md): correct the path")
    places = [root / calibration] if calibration else [place / name for place in (folder, root) for name in CALIBRATIONS]
    path = next((path for path in places if path.exists()), None)
    if path is None:
        raise DataError(
            f"{folder}: no calibration ({'expected ' + calibration if calibration else 'expected cameras.json or cameras.toml'}); import "
            f"yours with `python scripts/prepare.py calibration FILE --out {folder / 'cameras.json'}`"
        )
    return folder, read_calibration(path, unit)


def recording(root: str | Path, split: str = "", calibration: str = "", unit: str = "") -> tuple[Path, Calibration, dict[int, Path]]:
    """The folder of a recording, its cameras, and by their numbers the videos that it has; arguments and errors as for `read`."""
    folder, rig = _rig(Path(root), split, calibration, unit)
    return folder, rig, _videos(folder, rig)


def _plain(name: str) -> str:
    """A camera's name without case, blanks and marks."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"_(json|keypoints)$", "", name.lower()))


def _matched(entries: list[Path], rig: Calibration) -> dict[int, Path]:
    """The entry of each camera that has one; by its name, else by its plain name."""
    exact = {path.name if path.is_dir() else path.stem: path for path in entries}
    loose: dict[str, list[Path]] = {}
    for path in entries:
        loose.setdefault(_plain(path.name if path.is_dir() else path.stem), []).append(path)
    found = {}
    for k, name in enumerate(rig.names):
        like = loose.get(_plain(name), [])
        if name in exact:
            found[k] = exact[name]
        elif len(like) > 1:
            raise DataError(f"{like[0].parent}: {' and '.join(p.name for p in like)} are both like camera {name}; rename one")
        elif like:
            found[k] = like[0]
    return found


def _entries(folder: Path, suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """Folders, or files with these suffixes, that are not hidden."""
    if not folder.is_dir():
        return []
    there = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    return [p for p in there if (p.is_dir() if suffixes is None else p.is_file() and p.suffix.lower() in suffixes)]


def _pictures(folder: Path, rig: Calibration) -> dict[int, dict[int, str]]:
    """Images by camera and instant, as paths below the folder of the recording."""
    found: dict[int, dict[int, str]] = {}
    for k, place in _matched(_entries(folder / "images"), rig).items():
        files = _entries(place, IMAGES)
        digits = [re.findall(r"\d+", file.stem) for file in files]
        numbers = [int(d[-1]) for d in digits] if all(digits) else list(range(len(files)))
        if len(set(numbers)) < len(numbers):
            twice = max(numbers, key=numbers.count)
            raise DataError(f"{place}: two pictures have the number {twice}; the last number of a name is its instant")
        found[k] = {n: f"images/{place.name}/{file.name}" for n, file in zip(numbers, files, strict=True)}
    for k, video in _videos(folder, rig).items():
        if not found.get(k):
            found[k] = {n: f"images/{rig.names[k]}/{n:08d}.jpg" for n in range(_length(video))}
    return found


def pictures_of(folder: str | Path, rig: Calibration) -> dict[int, Path]:
    """A picture of each camera that has one: `<camera>.jpg` in the folder, or the first in the folder `<camera>/`."""
    folder = Path(folder)
    found = {k: path for k, place in _matched(_entries(folder), rig).items() for path in _entries(place, IMAGES)[:1]}
    return found | _matched(_entries(folder, IMAGES), rig)


def _videos(folder: Path, rig: Calibration) -> dict[int, Path]:
    return _matched(_entries(folder / "videos", VIDEOS), rig)


def _length(video: Path) -> int:
    capture = cv2.VideoCapture(str(video))
    try:
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()
    if count < 1:
        raise DataError(f"{video}: cannot be opened as a video, or does not know its length; copy it again, or give images/ instead")
    return count


def _people(folder: Path, rig: Calibration, layout: str, min_score: float) -> dict[int, tuple]:
    """Per camera the instants (n,), keypoints (n,J,3), boxes (n,4) and identities (n,) of everyone, and the joints' skeleton."""
    place = folder / "poses2d"
    entries = _entries(place) + _entries(place, (".json", ".npz", ".npy"))
    found = {}
    for k, path in _matched(entries, rig).items():
        seen = read_detections(path, layout or None)
        keep = seen.box_scores >= min_score
        joints = np.concatenate([np.nan_to_num(seen.keypoints), seen.scores.clip(0, 1)[..., None]], -1)
        found[k] = (seen.frame[keep] + seen.first, joints[keep], seen.boxes[keep], seen.identity[keep], seen.layout)
    kinds = {value[-1] for value in found.values()}
    if len(kinds) > 1:
        raise DataError(f"{place}: joints of {' and '.join(sorted(kinds))}, expected one kind; give all cameras to the same detector")
    return found


def _table(rig: Calibration, pictures: dict[int, dict], people: dict[int, tuple], step: int, labels: str, name: str) -> Annotations:
    """The table, ordered by instant, view and person."""
    skeleton = next(iter(people.values()))[-1] if people else DETECTED
    joints = skeletons.get(skeleton).num
    none = (np.zeros(0, np.int64), np.zeros((0, joints, 3)), np.zeros((0, 4)), np.zeros(0, np.int64))
    views = range(len(rig))
    parts = [people.get(k, (*none, skeleton))[:4] for k in views]
    view = np.repeat(np.arange(len(rig)), [len(part[0]) for part in parts])
    frame, x, box, identity = (np.concatenate(column) for column in zip(*parts, strict=True))
    empty = [(f, k) for k in views for f in sorted(set(pictures.get(k, {})) - set(frame[view == k].tolist()))]
    if empty:
        new = np.array(empty, np.int64)
        frame, view = np.concatenate([frame, new[:, 0]]), np.concatenate([view, new[:, 1]])
        x, box = np.concatenate([x, np.zeros((len(new), joints, 3))]), np.concatenate([box, np.full((len(new), 4), np.nan)])
        identity = np.concatenate([identity, np.full(len(new), -2)])
    keep = np.flatnonzero((frame - frame.min()) % step == 0)
    order = keep[np.lexsort([identity[keep], view[keep], frame[keep]])]
    frame, view, x, box, identity = (value[order] for value in (frame, view, x, box, identity))
    skeleton, x, conf, box = _labels(skeleton, x, box, identity, labels, rig.cameras.size.numpy()[view])
    names = sorted({(f, k) for k, found in pictures.items() for f in found} & set(zip(frame.tolist(), view.tolist(), strict=True)))
    row_of = {key: i for i, key in enumerate(names)}
    columns = {
        "sequence": np.zeros(len(frame)),
        "frame": frame,
        "view": view,
        "person": _numbers(frame, view, identity),
        "image": np.array([row_of.get(key, -1) for key in zip(frame.tolist(), view.tolist(), strict=True)]),
        "camera": view,
        "pose": np.full(len(frame), -1),
    }
    size = rig.cameras.size.numpy()[view][:, None]
    inside = ((x >= -0.5) & (x <= size - 0.5)).all(-1) | (size <= 0).any(-1)
    count = skeletons.get(skeleton).num
    return Annotations(
        skeleton=skeleton,
        cameras=rig.cameras,
        X_world=np.zeros((0, count, 3), np.float32),
        X_valid=np.zeros((0, count), bool),
        **{key: value.astype(np.int32) for key, value in columns.items()},
        x_img=np.where((conf > 0)[..., None], x, 0).astype(np.float32),
        conf=conf.astype(np.float32),
        visible=(conf > 0) & inside,
        box=box.astype(np.float32),
        images=np.array([pictures[k][f].encode() for f, k in names], dtype=bytes),
        subjects=np.array([name.encode()]),
        actions=np.array([b""]),
        subactions=np.array([b""]),
    )


def _labels(
    skeleton: str, x: np.ndarray, box: np.ndarray, identity: np.ndarray, labels: str, size: np.ndarray
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Skeleton, x (N,J,2), conf (N,J) and boxes of the labels asked for; boxes are held against the picture where its size is known."""
    coco, present = skeletons.convert(x, skeleton, DETECTED)
    if labels == "raw" or not present.all():
        return skeleton, x[..., :2], x[..., 2], box
    x = coco.copy()
    if labels == "hard":
        extent = np.nan_to_num(box[:, 2:] - box[:, :2])
        within = clipped(np.concatenate([np.nan_to_num(box[:, :2]), extent], -1), np.where(size > 0, size, np.inf))
        x = hard_labels(x, within)
        x[..., 2] = x[..., 2] > 0
    points, conf = to_panoptic(x)
    return SKELETON, points, conf, box


def _numbers(frame: np.ndarray, view: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Numbers of people: those of the detector if it numbers everyone in a view, else by order in the picture; -1 for nobody."""
    someone = identity > -2
    _, inverse, count = np.unique(np.stack([frame, view, identity], 1), axis=0, return_inverse=True, return_counts=True)
    unclear = someone & ((identity < 0) | (count[inverse.reshape(-1)] > 1))
    numbered = ~np.isin(view, view[unclear])
    first = np.concatenate([[True], (np.diff(frame) != 0) | (np.diff(view) != 0)])
    place = np.arange(len(frame)) - np.maximum.accumulate(np.where(first, np.arange(len(frame)), 0))
    return np.where(someone, np.where(numbered, identity, place), -1)


# --------------------------------------------------------------------------------------------------------------- images


def extract(root: str | Path, split: str, ann: Annotations, calibration: str = "", progress: bool = True) -> int:
    """Takes the images that a table names out of videos/; those that exist stay. Cameras without a video are left alone.

    Returns:
        How many of the named images are there now.

    Raises:
        DataError: a video is damaged or ends too early.
    """
    root = Path(root)
    folder, rig = _rig(root, split, calibration, "")
    videos = _videos(folder, rig)
    wanted: dict[int, dict[Path, int]] = {}
    for i, first in zip(*np.unique(ann.image, return_index=True), strict=True):
        if i >= 0 and int(ann.view[first]) in videos:
            wanted.setdefault(int(ann.view[first]), {})[root / ann.images[i].decode()] = int(ann.frame[first])
    with tqdm(total=sum(map(len, wanted.values())), desc=f"{folder}: images", unit="image", disable=not progress) as bar:
        for k, frames in wanted.items():
            extract_frames(videos[k], list(frames.values()), list(frames), short=2, bar=bar)
    return sum((root / name.decode()).exists() for name in ann.images)


# -------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes a table as the recording `<root>/<split>`: cameras.json, poses2d/ in COCO's joints, images/. Its 3D is not written.

    Raises:
        DataError: it has several rigs or no cameras, the recording exists, or something cannot be written.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})")
    group, found = rigs(ann)
    if len(found) != 1:
        raise DataError(f"{root}: {len(found)} rigs in one recording, expected one; select one subject (Annotations.protocol)")
    refuse_existing(root / split)
    views = sorted(found[0])
    names = [f"cam{k + 1}" for k in range(len(views))]
    used = np.flatnonzero(group >= 0)
    frame = ann.frame if len(used) == 1 else renumbered(ann, used)
    slot = np.searchsorted(views, ann.view)
    with part_folder(root, split) as part:
        write_cameras(part / "cameras.json", names, Cameras.stack([ann.cameras[found[0][v]] for v in views]))
        (part / "poses2d").mkdir()
        entries = _results(ann.to_skeleton(DETECTED), frame, slot, len(views))
        for k, name in enumerate(names):
            if entries[k]:
                (part / "poses2d" / f"{name}.json").write_text(json.dumps(entries[k]) + "\n")
        there = ann.image >= 0
        images = {
            int(i): f"images/{names[k]}/{f:08d}.jpg" for i, k, f in zip(ann.image[there], slot[there], frame[there], strict=True)
        }  # fmt: skip
        if image is not None:
            for name in images.values():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
            files = [str(part / name) for name in images.values()]
            write_images(ChosenImages(image, list(images)), files, workers, f"{root}: {split}" if progress else None)
        (root / split).mkdir(parents=True)
        for path in sorted(part.iterdir(), key=lambda p: p.name == "cameras.json"):  # with cameras it is complete
            os.rename(path, root / split / path.name)


def _results(ann: Annotations, frame: np.ndarray, slot: np.ndarray, views: int) -> list[list[dict]]:
    """COCO results per camera."""
    seen = ann.conf * ann.visible
    x = np.concatenate([ann.x_img, seen[..., None]], -1).astype(np.float64).round(4)
    out: list[list[dict]] = [[] for _ in range(views)]
    for row in np.flatnonzero(seen.any(1)):
        entry = {
            "image_id": int(frame[row]), "category_id": 1, "keypoints": x[row].ravel().tolist(), "score": round(float(seen[row].max()), 4),
        }  # fmt: skip
        if np.isfinite(ann.box[row]).all():
            low, high = ann.box[row, :2].astype(np.float64), ann.box[row, 2:].astype(np.float64)
            entry["bbox"] = [*low.round(3).tolist(), *(high - low).round(3).tolist()]
        out[slot[row]].append(entry)
    return out


# ---------------------------------------------------------------------------------------------------------------- check


def splits(root: str | Path) -> list[str]:
    """The recordings below `root`: folders with pictures, videos or detections; "all" where `root` itself is one."""
    root = Path(root)

    def recorded(folder: Path) -> bool:
        return any((folder / name).is_dir() for name in ("images", "videos", "poses2d"))

    return ["all"] if recorded(root) else [p.name for p in _entries(root) if recorded(p)]


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a recording, or in all of them, one sentence each; empty = good."""
    root = Path(root)
    return [text for name in ([split] if split else splits(root) or ["all"]) for text in _check(root, name)]


def _check(root: Path, split: str) -> list[str]:
    try:
        folder, rig = _rig(root, split, "", "")
        ann = read(root, split).check(f"{folder}")
    except DataError as error:
        return [str(error)]
    said = [f"{folder}: {text}" for text in report(replace(rig, guessed=False))[1]]
    pictures = (ann.image >= 0).any()
    for k, name in enumerate(rig.names):
        rows = np.flatnonzero((ann.view == k) & (ann.image >= 0))
        if not len(rows):
            if pictures or not (ann.view == k).any():
                said.append(f"{folder}: camera {name} has no pictures (images/{name}/ or videos/{name}.mp4)")
            continue
        size = image_size(root / ann.image_path(int(rows[0])))
        wanted = tuple(int(v) for v in rig.cameras.size[k].tolist())
        if size != (0, 0) and min(wanted) > 0 and size != wanted:
            said.append(
                f"{root / ann.image_path(int(rows[0]))}: {size[0]} x {size[1]} px, but the calibration of {name} is for {wanted[0]} x "
                f"{wanted[1]}; crop or scale the pictures (or the matrix) alike"
            )
    counts = {int(np.unique(ann.frame[ann.view == k]).size) for k in range(len(rig)) if (ann.view == k).any()}
    if pictures and len(counts) > 1:
        said.append(f"{folder}: cameras have between {min(counts)} and {max(counts)} instants; are they synchronised?")
    return said + findings(ann, root, str(folder))
