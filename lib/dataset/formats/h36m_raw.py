"""The official Human3.6M release, as its archives unpack:

<root>/metadata.xml                                   cameras, names of the sequences, image sizes (from the release's code)
<root>/S1/MyPoseFeatures/D3_Positions/<Name>.cdf      32 joints in the world, mm, 50 per second; also .cdf.mat, or the .h5 files of
                                                      3d-pose-baseline in S1/MyPoses/3D_positions/
<root>/S1/MyPoseFeatures/D3_Positions_mono/<Name>.<camera>.cdf      the same in camera axes; D2_Positions: in the image
<root>/S1/Videos/<Name>.<camera>.mp4

`read` makes the table, `extract` the images that it names. The lens formula of the release (its tangential part lacks OpenCV's
factor 2) is used for the 2D joints, as in D2_Positions; the cameras keep the published coefficients.
"""

import contextlib
import dataclasses
import logging
import math
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from tqdm import tqdm

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.dataset.formats import h36m
from lib.dataset.formats.files import findings, need, part_folder
from lib.dataset.formats.matlab import load_mat
from lib.dataset.formats.video import extract_frames
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing, replaced
from lib.geometry.camera import Cameras

log = logging.getLogger("parallax")

SKELETON = "h36m17"
TRAIN, VALID = ("S1", "S5", "S6", "S7", "S8"), ("S9", "S11")
SPLITS = {"train": TRAIN, "valid": VALID, "all": TRAIN + VALID}
STEPS = {"train": 32, "valid": 64, "all": 32}  # EpipolarPose keeps every 32nd frame to train, every 64th to test
PEOPLE, VIEWS = 11, len(h36m.CAMERA_IDS)
BOX_MM = 2000.0  # side of the square around the pelvis, facing the camera
TOLERATED = 10  # frames that a video may be shorter than its poses
AGREE_MM, AGREE_PX = 1.0, 1.0  # between world, camera and image joints of the release
NUMBERS = 6 * PEOPLE * VIEWS + 9 * VIEWS
# (subject, name of the file, view or None = all): what users found wrong, and what
DAMAGED = {
    ("S11", "Directions", 0): "the video is missing or cut short",
    ("S9", "Greeting", None): "the mocap drifts against the images",
    ("S9", "SittingDown_1", None): "the mocap drifts against the images",
    ("S9", "Waiting_1", None): "the mocap drifts against the images",
}
FOLDERS = (("MyPoseFeatures/D3_Positions", (".cdf", ".cdf.mat")), ("MyPoses/3D_positions", (".h5",)))


class Release(NamedTuple):
    """What metadata.xml holds."""

    cameras: Cameras  # (11, 4) subjects S1..S11 by views
    subactions: dict[tuple[str, str], tuple[int, int]]  # (subject, canonical name of a sequence) -> action, subaction


# --------------------------------------------------------------------------------------------------------- metadata.xml


def metadata(path: str | Path) -> Release:
    """Cameras and sequences of a metadata.xml.

    `w0` holds, for camera c (0..3) and subject s (1..11), three angles and the camera centre in mm at 6 (11 c + s - 1):
    R = Rx(a) Ry(b) Rz(c), X_cam = R (X_world - T); then for each camera fx fy cx cy k1 k2 k3 p1 p2.

    Raises:
        DataError: missing, not XML, or not this XML.
    """
    path = Path(path)
    try:
        top = ElementTree.fromstring(_plain_xml(path))
        numbers = np.array([float(n) for n in (top.findtext("w0") or "").strip("[] \n\t").split()])
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; copy metadata.xml of the release's code (Release-v1.1, or from its re-distributions) there"
        ) from None
    except (OSError, ElementTree.ParseError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as the release's metadata.xml ({error}); copy it again") from None
    if len(numbers) != NUMBERS or not np.isfinite(numbers).all():
        found = f"{len(numbers)} numbers, {int(np.isfinite(numbers).sum())} of them finite"
        raise DataError(f"{path}: element w0 holds {found}, expected {NUMBERS} finite ones (4 cameras of 11 subjects); copy it again")
    outer = numbers[: 6 * PEOPLE * VIEWS].reshape(VIEWS, PEOPLE, 6).swapaxes(0, 1)  # (11,4,6)
    fx, fy, cx, cy, k1, k2, k3, p1, p2 = numbers[6 * PEOPLE * VIEWS :].reshape(VIEWS, 9).T
    K = np.zeros((VIEWS, 3, 3))
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = fx, fy, cx, cy, 1
    dist = np.stack([k1, k2, p1, p2, k3], -1)
    try:
        cameras = Cameras.make(K, rotation(outer[..., :3]), center=outer[..., 3:], dist=dist, size=_sizes(top))
        return Release(cameras, _subactions(top))
    except MALFORMED as error:
        raise DataError(f"{path}: holds cameras or sequences that cannot be ({error}); copy it again") from None


def rotation(angles: np.ndarray) -> np.ndarray:
    """R = Rx(a) Ry(b) Rz(c).   angles (...,3) rad -> (...,3,3)"""
    turned = np.eye(3)
    for axis in range(3):
        sin, cos = np.sin(angles[..., axis]), np.cos(angles[..., axis])
        i, j = (axis + 1) % 3, (axis + 2) % 3
        R = np.zeros((*angles.shape[:-1], 3, 3))
        R[..., axis, axis], R[..., i, i], R[..., j, j], R[..., i, j], R[..., j, i] = 1, cos, cos, -sin, sin
        turned = turned @ R
    return turned


def angles(R: np.ndarray) -> np.ndarray:
    """The inverse of `rotation`.   R (...,3,3) -> (...,3) rad"""
    b = np.arcsin(np.clip(R[..., 0, 2], -1, 1))
    return np.stack([np.arctan2(-R[..., 1, 2], R[..., 2, 2]), b, np.arctan2(-R[..., 0, 1], R[..., 0, 0])], -1)


def _plain_xml(path: Path) -> bytes:
    """The file, unless it declares entities, with which a few bytes of XML can fill the memory."""
    data = path.read_bytes()
    if b"<!ENTITY" in data or b"<!DOCTYPE" in data:
        raise ValueError("it declares entities, which the release's file does not")
    return data


def _rows(top: ElementTree.Element, table: str) -> list[list[str]]:
    return [[(cell.text or "").strip() for cell in row] for row in top.findall(f"{table}/tr")]


def _sizes(top: ElementTree.Element) -> np.ndarray:
    """Width and height by subject and camera, (11,4,2); 0 where the file does not say."""
    sizes = np.zeros((PEOPLE, VIEWS, 2))
    for row in _rows(top, "mapping"):  # its last row
        for person, cell in enumerate(row[2 : 2 + PEOPLE]):
            if re.fullmatch(r"\[\d+ \d+(;\d+ \d+){3}\]", cell):  # rows and columns
                sizes[person] = np.array([[int(n) for n in pair.split()] for pair in cell[1:-1].split(";")])[:, ::-1]
    return sizes


def _subactions(top: ElementTree.Element) -> dict[tuple[str, str], tuple[int, int]]:
    rows = _rows(top, "mapping")
    people = rows[0][2:] if rows else []
    return {
        (person, h36m.canonical(name)): (int(row[0]), int(row[1]))
        for row in rows[1:]
        for person, name in zip(people, row[2:], strict=False)
        if name and row[0].isdigit() and row[1].isdigit()
    }


# -------------------------------------------------------------------------------------------------------------- reading


def read(
    root: str | Path,
    split: str,
    step: int = 0,
    offset: int = 0,
    subjects: tuple[str, ...] | list[str] | None = None,
    exclude_damaged: bool = False,
    project: str = "distorted",
    tangential: str = "h36m",
) -> Annotations:
    """The table of a split; images get the names that `extract` gives them, and need not be there.

    Args:
        root: folder with metadata.xml and the subjects' folders.
        split: train (S1 S5 S6 S7 S8), valid (S9 S11) or all.
        step: every how many frames; 0 = 32 to train, 64 to test. `offset`: the first of them.
        subjects: some of the split's; None = all that are on disk.
        exclude_damaged: leaves out the sequences and views of DAMAGED (for work that needs several views or absolute positions);
            else a line in the log names them.
        project: "distorted" = 2D joints and boxes where the images show them; "pinhole" = as EpipolarPose's published
            annotations have them, the lens ignored (and then left out of the cameras).
        tangential: the lens formula of "distorted": the release's ("h36m"), or "opencv" (they differ by < 1 px).

    Raises:
        DataError: nothing to read, damaged files, or world and camera joints that contradict the cameras.
    """
    root = Path(root)
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}; set DATASET.TRAIN_SET and TEST_SET to one of them")
    if project not in ("distorted", "pinhole"):
        raise DataError(f"project: {project!r} is not one of distorted, pinhole; correct DATASET.OPTIONS")
    if step < 0 or offset < 0:
        raise DataError(f"step {step}, offset {offset}: expected numbers that are not negative")
    wanted = _subjects(root, split, subjects)
    release, parts, damaged = metadata(root / "metadata.xml"), [], set()
    for subject in wanted:
        verified = False
        for name, path in sequences(root, subject).items():
            bad = {view: why for (s, n, view), why in DAMAGED.items() if (s, n) == (subject, name)}
            damaged |= {f"{subject} {name}" + ("" if v is None else f" of camera {h36m.CAMERA_IDS[v]}") + f" ({w})" for v, w in bad.items()}
            views = [v for v in range(VIEWS) if not (exclude_damaged and (v in bad or None in bad))]
            if not views:
                continue
            X32 = pose_file(path)
            if not verified:  # once per subject: the cameras are the subject's
                verified = _verify(root, subject, name, X32, release.cameras[int(subject[1:]) - 1])
            counts = [c for c in (_video_length(root, subject, name, v) for v in views) if c]
            length = min([len(X32), *(c for c in counts if c >= len(X32) - TOLERATED)])
            frames = np.arange(offset, length, step or STEPS[split])
            part = _sequence(release, subject, name, X32[frames], frames, views)
            if part:
                parts.append(part)
    if damaged:
        log.warning("Human3.6M: %s: %s", "left out as damaged" if exclude_damaged else "known to be damaged", "; ".join(sorted(damaged)))
    if not parts:
        raise DataError(f"{root}: no pose of {', '.join(wanted)} is left with step {step}, offset {offset}; use smaller ones")
    return _table(parts, release, project, tangential).check(f"{root} ({split})")


def sequences(root: str | Path, subject: str) -> dict[str, Path]:
    """Pose files of a subject by canonical sequence name, without `_ALL`.

    Raises:
        DataError: there are none.
    """
    for folder, endings in FOLDERS:
        found = {}
        for path in sorted((Path(root) / subject / folder).glob("*")):
            ending = next((e for e in reversed(endings) if path.name.endswith(e)), None)
            name = path.name.removesuffix(ending) if ending else ""
            if name and not name.startswith(("_ALL", ".")):
                found.setdefault(h36m.canonical(name), path)
        if found:
            return found
    places = " or ".join(f"{folder} (*{', *'.join(endings)})" for folder, endings in FOLDERS)
    raise DataError(f"{Path(root) / subject}: no poses in {places}; unpack Poses_D3_Positions_{subject}.tgz there")


def pose_file(path: str | Path, dims: int = 3) -> np.ndarray:
    """Joints of one file of the release or of its conversions.   -> (F,32,dims) float64

    Raises:
        DataError: the package that reads it is missing, or the file holds something else.
    """
    path = Path(path)
    try:
        if path.name.endswith(".cdf.mat"):
            file = load_mat(path)
            data = file["data"] if "data" in file else file["Pose"]
            while data.dtype == object and data.size == 1:  # MATLAB cells
                data = data.reshape(-1)[0]
        elif path.suffix == ".cdf":
            data = need("cdflib", str(path)).CDF(path).varget("Pose")
        elif path.suffix == ".h5":
            with need("h5py", str(path)).File(path) as file:
                data = np.asarray(file["3D_positions"]).T
        else:
            raise ValueError("the name ends neither in .cdf, .cdf.mat nor .h5")
        data = np.asarray(data, np.float64)
        return data.reshape(-1, data.shape[-1]).reshape(-1, 32, dims)
    except DataError:
        raise
    except Exception as error:  # three libraries, each with errors of its own
        expected = f"one variable Pose of {32 * dims} numbers per frame"
        raise DataError(f"{path}: cannot be read as poses ({error}), expected {expected}; unpack its archive again") from None


def _subjects(root: Path, split: str, subjects: tuple[str, ...] | list[str] | None) -> list[str]:
    known = SPLITS[split]
    for subject in subjects or ():
        if subject not in known:
            raise DataError(f"subjects: {subject} is not in split {split} ({', '.join(known)}); correct the list")
    wanted = list(subjects or known)
    there = [s for s in wanted if (root / s).is_dir()]
    absent = [s for s in wanted if s not in there]
    if not there or (subjects and absent):
        raise DataError(f"{root}: has no folder {', '.join(absent)}; unpack the archives of the release there, or correct DATASET.ROOT")
    if absent:
        log.warning("%s: %s of split %s are not there and are left out", root, ", ".join(absent), split)
    return there


def _verify(root: Path, subject: str, name: str, X32: np.ndarray, cameras: Cameras) -> bool:
    """Holds world joints and cameras against D3_Positions_mono where that exists.   -> whether it does

    Raises:
        DataError: they contradict each other.
    """
    done = False
    for view, path in _feature(root, subject, name, "D3_Positions_mono").items():
        mono = pose_file(path)
        n = min(len(mono), len(X32))
        rows = np.unique(np.linspace(0, n - 1, 16).astype(int))
        X_cam = cameras[view].to_cam(torch.from_numpy(X32[rows])).numpy()
        apart = np.nan_to_num(np.linalg.norm(X_cam - mono[rows], axis=-1)).max()
        if apart > AGREE_MM:
            raise DataError(
                f"{path}: its joints lie up to {apart:.4g} mm from the world joints of {name} seen by the camera in metadata.xml, "
                f"expected less than {AGREE_MM:g} mm; the files are of different subjects or releases: unpack them again"
            )
        done = True
    return done


def _feature(root: Path, subject: str, name: str, folder: str) -> dict[int, Path]:
    """Files of one sequence by view."""
    found = {}
    for view, camera in enumerate(h36m.CAMERA_IDS):
        for spelled in h36m.spellings(name):
            path = root / subject / "MyPoseFeatures" / folder / f"{spelled.replace('_', ' ')}.{camera}.cdf"
            if path.exists():
                found[view] = path
    return found


def _sequence(release: Release, subject: str, name: str, X32: np.ndarray, frames: np.ndarray, views: list[int]) -> dict | None:
    """Poses of one sequence (T,17,3) with what describes them; None without a frame."""
    X, _ = skeletons.convert(X32, "h36m32", SKELETON)
    known = np.isfinite(X).all((1, 2))
    if not known.any():
        return None
    action = re.sub(r"_\d+$", "", name)
    number, subaction = release.subactions.get((subject, name), (0, 0))
    if 2 <= number < 2 + len(h36m.ACTIONS):
        action = h36m.ACTIONS[number - 2]
    # Without the mapping: most names with a number are the first take, those without the second.
    subaction = str(subaction or (1 if name != action else 2))
    return {
        "subject": subject, "name": name, "action": action, "subaction": subaction,
        "X": X[known], "frame": frames[known], "views": np.array(views), "person": int(subject[1:]) - 1,
    }  # fmt: skip


def _table(parts: list[dict], release: Release, project: str, tangential: str) -> Annotations:
    """One table; rows are ordered by sequence, frame and view."""
    people = sorted({p["person"] for p in parts})
    cameras = Cameras.cat([release.cameras[person] for person in people])
    X = np.concatenate([p["X"] for p in parts])
    first = np.cumsum([0, *(len(p["X"]) for p in parts)])

    def each(value: Callable[[int, dict], np.ndarray]) -> np.ndarray:
        """value -> (T,V) per sequence, broadcast."""
        shapes = [(len(p["X"]), len(p["views"])) for p in parts]
        return np.concatenate([np.broadcast_to(value(s, p), shapes[s]).reshape(-1) for s, p in enumerate(parts)]).astype(np.int32)

    sequence, view = each(lambda s, p: np.array(s)), each(lambda s, p: p["views"])
    frame = each(lambda s, p: p["frame"][:, None])
    pose = each(lambda s, p: first[s] + np.arange(len(p["X"]))[:, None])
    camera = each(lambda s, p: people.index(p["person"]) * VIEWS + p["views"])
    wide = cameras[torch.from_numpy(camera.astype(np.int64))]
    X_cam = wide.to_cam(torch.from_numpy(X[pose]))
    lens = project == "distorted"
    x_img = wide.project_cam(X_cam, lens, tangential)
    seen = wide.sees(X_cam, x_img).numpy()
    root, depth = skeletons.get(SKELETON).root_index, X_cam[..., 2]
    half = BOX_MM / 2 * torch.diagonal(wide.K, dim1=-2, dim2=-1)[:, :2] / depth[:, root, None]
    half = torch.where(depth[:, root, None] > 0, half, torch.nan)
    names = [h36m.image_name(p["subject"], p["name"], v, int(f)) for p in parts for f in p["frame"] for v in p["views"]]
    if not lens:
        cameras = dataclasses.replace(cameras, dist=torch.zeros_like(cameras.dist))
    return Annotations(
        skeleton=SKELETON,
        cameras=cameras,
        X_world=X.astype(np.float32),
        X_valid=np.ones(X.shape[:2], bool),
        sequence=sequence,
        frame=frame,
        view=view,
        person=np.zeros_like(view),
        image=np.arange(len(view), dtype=np.int32),
        camera=camera,
        pose=pose,
        x_img=x_img.numpy().astype(np.float32),
        conf=(depth > 0).numpy().astype(np.float32),
        visible=seen,
        box=torch.cat([x_img[:, root] - half, x_img[:, root] + half], -1).numpy().astype(np.float32),
        images=np.array(names, dtype=bytes),
        subjects=np.array([p["subject"] for p in parts], dtype=bytes),
        actions=np.array([p["action"] for p in parts], dtype=bytes),
        subactions=np.array([p["subaction"] for p in parts], dtype=bytes),
        fps=h36m.FPS,
    )


# ----------------------------------------------------------------------------------------------------------- extraction


def extract(root: str | Path, ann: Annotations, out: str | Path, progress: bool = True) -> Annotations:
    """Decodes the images that a table names into `out`; those that are there already are kept, so it can be taken up again.

    Videos are read from front to back and only the wanted frames are decoded (JPEG, quality 95).

    Args:
        root: the release.
        ann: a table of `read`, or a selection of it.
        out: folder below which the images get the table's names.
        progress: shows a bar.

    Returns:
        The table without the rows whose frames no video has: a few at the end (videos and poses differ in length), and the
        views whose video is known to be damaged.

    Raises:
        DataError: a video is missing, cut short or cannot be decoded, named with the next step; or a disk that is full.
    """
    root, out = Path(root), Path(out)
    rows_of: dict[tuple[str, str, int], dict[Path, int]] = {}
    for i in np.unique(ann.image[ann.image >= 0]):
        name = ann.images[i].decode()
        place = h36m.parse_path(name)
        if place is None:
            raise DataError(f"image {name!r}: not named as this layout does; read the table with h36m_raw.read")
        rows_of.setdefault((place.subject, place.sequence, place.view), {})[out / name] = place.frame
    lost: set[Path] = set()
    total = sum(len(frames) for frames in rows_of.values())
    with tqdm(total=total, desc=f"{out}: images", unit="image", disable=not progress) as bar:
        for (subject, sequence, view), frames in rows_of.items():
            videos = root / subject / "Videos"
            path = _video(root, subject, sequence, view) or videos / f"{sequence.replace('_', ' ')}.{h36m.CAMERA_IDS[view]}.mp4"
            short = math.inf if (subject, sequence, view) in DAMAGED else TOLERATED
            advice = f"unpack Videos_{subject}.tgz into {videos.parent} again and go on: images that are there are kept"
            lost |= extract_frames(path, list(frames.values()), list(frames), short, advice, bar)
    if not lost:
        return ann
    log.warning("%d images have no frame in their video and are left out (%s ...)", len(lost), min(lost))
    gone = np.array([out / name.decode() in lost for name in ann.images])
    return ann.select((ann.image < 0) | ~gone[ann.image])


def _video(root: Path, subject: str, sequence: str, view: int) -> Path | None:
    for spelled in h36m.spellings(sequence):
        for name in dict.fromkeys((spelled.replace("_", " "), spelled)):
            path = root / subject / "Videos" / f"{name}.{h36m.CAMERA_IDS[view]}.mp4"
            if path.exists():
                return path
    return None


def _video_length(root: Path, subject: str, sequence: str, view: int) -> int:
    """Frames that the video promises, 0 = no video or unknown."""
    path = _video(root, subject, sequence, view)
    if path is None:
        return 0
    video = cv2.VideoCapture(str(path))
    try:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) if video.isOpened() else 0
    finally:
        video.release()


# -------------------------------------------------------------------------------------------------------------- writing


def write(ann: Annotations, root: str | Path, split: str, image: Callable[[int], np.ndarray] | None = None) -> None:
    """Writes a table as a release: poses (.cdf), metadata.xml and, with `image`, one video per sequence and camera.

    The release has one lens and focal length per camera for all subjects, and its own lens formula. Cameras of the table that
    differ keep their place and direction; their images are resampled, and 2D joints projected, through those of the first subject
    (or of the metadata.xml that is there). Instants without a pose get NaN, images that no row names are grey.

    Args:
        ann: one person with 3D joints, subjects S1 to S11, at most four views, frames from 0 on. Joints that Human3.6M's 17 lack are
            not kept.
        root: folder of the release, made if missing; further splits can be added.
        split: train, valid or all; each has its own subjects.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; width and height must be even (mp4).

    Raises:
        DataError: the table does not fit, or a subject's folder exists.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root}").to_skeleton(SKELETON)
    _refuse_misfits(ann, split)
    path = root / "metadata.xml"
    old = metadata(path) if path.exists() else None
    rig = _shared_rig(ann, old.cameras if old else None)
    labels = [file_name(a.decode(), b.decode()) for a, b in zip(ann.actions, ann.subactions, strict=True)]
    used = np.unique(ann.sequence)
    keys = [(ann.subjects[s].decode(), labels[s]) for s in used]
    if len(set(keys)) != len(keys):
        raise DataError("two sequences of a subject have the same action and subaction; number them apart")
    subjects = sorted({subject for subject, _ in keys})
    for subject in subjects:
        refuse_existing(root / subject)
    with part_folder(root, split) as part:
        for s in used:
            _write_sequence(part, ann, s, labels[s], rig, image)
        _write_metadata(path, ann, rig, old, labels)
        for subject in subjects:
            os.rename(part / subject, root / subject)


def file_name(action: str, subaction: str) -> str:
    """A sequence's name as most subjects have it: "Directions 1" is the first take, "Directions" the second; sitting down is the
    other way round.
    """
    if not subaction.isdigit():
        raise DataError(f"subaction {subaction!r} of {action}: expected a number, as Human3.6M counts the takes")
    suffix = {"1": " 1", "2": ""} if action != "SittingDown" else {"1": "", "2": " 1"}
    return action + suffix.get(subaction, f" {subaction}")


def _refuse_misfits(ann: Annotations, split: str) -> None:
    subjects = [s.decode() for s in np.unique(ann.subjects[ann.sequence])]
    if split not in SPLITS or not set(subjects) <= set(SPLITS[split]):
        known = ", ".join(f"{k} ({' '.join(v)})" for k, v in SPLITS.items())
        raise DataError(f"split {split!r} with subjects {', '.join(subjects)}: the release has {known}")
    for text, bad in (
        ("has no 3D joints", ann.pose < 0),
        ("has no camera", ann.camera < 0),
        ("shows a second person", ann.person > 0),
        (f"has a view beyond the {VIEWS} cameras", ann.view >= VIEWS),
        ("has a frame number below 0", ann.frame < 0),
    ):
        if bad.any():
            raise DataError(f"row {np.flatnonzero(bad)[0]} {text}; the release has one person, known in 3D, in {VIEWS} views")


def _shared_rig(ann: Annotations, old: Cameras | None) -> Cameras:
    """Cameras (11,4): the extrinsics of every subject, intrinsics shared by all."""
    eye = np.broadcast_to(np.eye(3), (PEOPLE, VIEWS, 3, 3))
    K, R = (eye.copy(), eye.copy()) if old is None else (old.K.numpy().copy(), old.R.numpy().copy())
    t, dist, size = (np.zeros((PEOPLE, VIEWS, n)) for n in (3, 5, 2))
    if old is not None:
        t, dist, size = (v.numpy().copy() for v in (old.t, old.dist, old.size))
    rows, first = np.unique(ann.camera, return_index=True)
    known = np.zeros(VIEWS, bool) if old is None else np.ones(VIEWS, bool)
    cams, seen = ann.cameras, {}
    for row, i in zip(rows, first, strict=True):
        person, view = int(ann.subject(i)[1:]) - 1, int(ann.view[i])
        if seen.setdefault((person, view), row) != row:
            raise DataError(f"S{person + 1}, view {view}: its cameras move or change; the release has one camera per subject and view")
        if not known[view]:
            K[:, view], dist[:, view], known[view] = cams.K[row].numpy(), cams.dist[row].numpy(), True
        R[person, view], t[person, view] = cams.R[row].numpy(), cams.t[row].numpy()
        size[person, view] = cams.size[row].numpy()
    return Cameras.make(K, R, t, dist, size)


def _write_metadata(path: Path, ann: Annotations, rig: Cameras, old: Release | None, labels: list[str]) -> None:
    """metadata.xml with this table's subjects added to those that are there."""
    outer = np.concatenate([angles(rig.R.numpy()), rig.center.numpy()], -1).swapaxes(0, 1).reshape(-1)
    K, dist = rig.K[0].numpy(), rig.dist[0].numpy()
    inner = np.concatenate([K[:, (0, 1), (0, 1)], K[:, :2, 2], dist[:, (0, 1, 4)], dist[:, 2:4]], -1).reshape(-1)
    names = {} if old is None else {(a, b, s): n.replace("_", " ") for (s, n), (a, b) in old.subactions.items()}
    more = [n for n in dict.fromkeys(h36m.canonical(a.decode()) for a in ann.actions) if n not in h36m.ACTIONS]
    taken = {n.rpartition(" ")[0] if n[-1].isdigit() else n: a for (a, _, _), n in names.items()}
    for name in more:
        taken.setdefault(name, max(len(h36m.ACTIONS) + 1, *taken.values(), 0) + 1)
    for s in np.unique(ann.sequence):
        action = h36m.canonical(ann.actions[s].decode())
        number = h36m.ACTIONS.index(action) + 2 if action in h36m.ACTIONS else taken[action]
        names[number, int(ann.subactions[s]), ann.subjects[s].decode()] = labels[s]

    def add(parent: ElementTree.Element, cells: list) -> None:
        row = ElementTree.SubElement(parent, "tr")
        for cell in cells:
            ElementTree.SubElement(row, "td").text = str(cell)

    top = ElementTree.Element("a")
    mapping = ElementTree.SubElement(top, "mapping")
    people = [f"S{k + 1}" for k in range(PEOPLE)]
    add(mapping, ["Action", "subaction", *people])
    for a, b in sorted({(a, b) for a, b, _ in names}):
        add(mapping, [a, b, *(names.get((a, b, p), "") for p in people)])
    sizes = rig.size.numpy().astype(int)
    cells = ["[" + ";".join(f"{height} {width}" for width, height in rows) + "]" for rows in sizes]
    add(mapping, ["", "", *cells])
    ElementTree.SubElement(top, "w0").text = "[" + " ".join(f"{n:.17g}" for n in np.concatenate([outer, inner])) + "]"
    cameras = ElementTree.SubElement(ElementTree.SubElement(top, "dbcameras"), "index2id")
    for camera in h36m.CAMERA_IDS:
        ElementTree.SubElement(cameras, "item").text = camera
    with replaced(path) as part:
        part.write_bytes(ElementTree.tostring(top, encoding="utf-8", xml_declaration=True))


def _write_sequence(root: Path, ann: Annotations, s: int, label: str, rig: Cameras, image: Callable | None) -> None:
    """Videos, and joints in the image, the camera and the world."""
    rows = np.flatnonzero(ann.sequence == s)
    subject, length = ann.subjects[s].decode(), int(ann.frame[rows].max()) + 1
    X = np.full((length, len(skeletons.get(SKELETON).joints), 3), np.nan)
    X[ann.frame[rows]] = np.where(ann.X_valid[ann.pose[rows]][..., None], ann.X_world[ann.pose[rows]], np.nan)
    X32 = _thirty_two(X)
    features = root / subject / "MyPoseFeatures"
    for view in np.unique(ann.view[rows]):
        camera = rig[int(subject[1:]) - 1, int(view)]
        name = f"{label}.{h36m.CAMERA_IDS[view]}"
        X_cam = camera.to_cam(torch.from_numpy(X32))
        if image is not None:
            _write_video(root / subject / "Videos" / f"{name}.mp4", ann, rows[ann.view[rows] == view], length, camera, image)
        _write_cdf(features / "D3_Positions_mono" / f"{name}.cdf", X_cam.numpy())
        _write_cdf(features / "D2_Positions" / f"{name}.cdf", camera.project_cam(X_cam, True, "h36m").numpy())
    _write_cdf(features / "D3_Positions" / f"{label}.cdf", X32)


def _thirty_two(X: np.ndarray) -> np.ndarray:
    """The release's joints; helpers lie where their nearest known joint does.   (F,17,3) -> (F,32,3)"""
    full = skeletons.get("h36m32")
    out, present = skeletons.convert(X, SKELETON, full)
    for j, joint in enumerate(full.joints):  # parents come first
        if not present[j]:
            out[:, j] = out[:, full.index("thorax") if joint.endswith("shoulder_base") else full.parents[j]]
    return out


def _write_cdf(path: Path, joints: np.ndarray) -> None:
    """(F,32,D) as variable Pose (1,F,32 D)."""
    writer = need("cdflib.cdfwrite", str(path)).CDF
    data = joints.reshape(1, len(joints), -1)
    spec = {"Variable": "Pose", "Data_Type": 45, "Num_Elements": 1, "Rec_Vary": True, "Dim_Sizes": list(data.shape[1:])}
    with new_file(path) as part:
        file = writer(part, cdf_spec={"Majority": "row_major", "Encoding": 6, "Compressed": 6})
        file.write_var(spec, var_data=data)
        file.close()


def _write_video(path: Path, ann: Annotations, rows: np.ndarray, length: int, camera: Cameras, image: Callable) -> None:
    width, height = (int(n) for n in camera.size)
    if width < 2 or height < 2 or width % 2 or height % 2:
        raise DataError(f"{path}: images of {width} x {height} px, expected even numbers; mp4 halves the colours: choose another size")
    source = ann.cameras[int(ann.camera[rows[0]])]
    maps = _resampling(source, camera)
    at = {int(ann.frame[i]): int(ann.image[i]) for i in rows}
    with new_file(path) as part:
        video = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*"mp4v"), h36m.FPS, (width, height))
        with contextlib.ExitStack() as stack:
            stack.callback(video.release)
            if not video.isOpened():
                raise DataError(f"{path}: OpenCV cannot write mp4 videos here; install opencv-python-headless from PyPI")
            for frame in range(length):
                picture = np.full((height, width, 3), 128, np.uint8) if at.get(frame, -1) < 0 else image(at[frame])
                if picture.shape != (height, width, 3):
                    raise DataError(f"image {at[frame]}: has shape {picture.shape}, its camera says {(height, width, 3)}")
                if maps is not None:
                    picture = cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                video.write(np.ascontiguousarray(picture[..., ::-1]))


def _resampling(source: Cameras, camera: Cameras) -> tuple[np.ndarray, np.ndarray] | None:
    """Where each pixel of `camera` lies in the image of `source`, which stands in the same place; None = just there."""
    if torch.equal(source.K, camera.K) and not source.dist.any() and not camera.dist.any():
        return None
    width, height = (int(n) for n in camera.size)
    x = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).double().reshape(-1, 2)
    found = source.from_norm(camera.to_norm(x, True, "h36m")).numpy().astype(np.float32).reshape(height, width, 2)
    return found[..., 0], found[..., 1]


# ------------------------------------------------------------------------------------------------------------- checking


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a release, one sentence each; empty = good. Without `split`, all subjects.

    World joints are held against the camera's (D3_Positions_mono) and the image's (D2_Positions) where those are there.
    """
    root, split = Path(root), split or "all"
    if split not in SPLITS:
        return [f"split {split!r} is not one of {', '.join(SPLITS)}"]
    try:
        release = metadata(root / "metadata.xml")
    except DataError as error:
        return [str(error)]
    said = []
    for subject in SPLITS[split]:
        if not (root / subject).is_dir():
            said.append(f"{root / subject}: missing; unpack the archives of {subject} there")
            continue
        try:
            files = sequences(root, subject)
        except DataError as error:
            said.append(str(error))
            continue
        expected = {name for (s, name), (action, _) in release.subactions.items() if s == subject and action > 1 and name}
        absent = sorted(expected - set(files))
        if absent:
            said.append(f"{root / subject}: poses of {', '.join(absent)} are missing; unpack Poses_D3_Positions_{subject}.tgz again")
        for name, path in files.items():
            try:
                said += _check_sequence(root, subject, name, pose_file(path), release.cameras[int(subject[1:]) - 1])
            except DataError as error:
                said.append(str(error))
    try:
        ann = read(root, split)
        said += [s for s in findings(ann, root, str(root)) if "images are missing" not in s]  # they are in the videos
    except DataError as error:
        if str(error) not in said:
            said.append(str(error))
    return said


def _check_sequence(root: Path, subject: str, name: str, X32: np.ndarray, cameras: Cameras) -> list[str]:
    said = []
    try:
        _verify(root, subject, name, X32, cameras)
    except DataError as error:
        said.append(str(error))
    for view, path in _feature(root, subject, name, "D2_Positions").items():
        flat = pose_file(path, 2)
        rows = np.unique(np.linspace(0, min(len(flat), len(X32)) - 1, 16).astype(int))
        x_img = cameras[view].project(torch.from_numpy(X32[rows]), True, "h36m")[0].numpy()
        apart = np.nan_to_num(np.linalg.norm(x_img - flat[rows], axis=-1)).max()
        if apart > AGREE_PX:
            said.append(f"{path}: its joints lie up to {apart:.4g} px from the projected world joints, expected less than {AGREE_PX:g} px")
    for view, camera in enumerate(h36m.CAMERA_IDS):
        if (subject, name, view) in DAMAGED:
            continue
        path, count = _video(root, subject, name, view), _video_length(root, subject, name, view)
        if path is None:
            said.append(f"{root / subject / 'Videos'}: {name.replace('_', ' ')}.{camera}.mp4 is missing; unpack Videos_{subject}.tgz there")
        elif count < len(X32) - TOLERATED:
            said.append(f"{path}: has {count} frames, its poses {len(X32)}; it is cut short or damaged: unpack Videos_{subject}.tgz again")
    return said
