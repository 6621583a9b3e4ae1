"""3DPW (von Marcard et al., ECCV 2018): people in the wild before a moving camera; read in mm with z up.

<root>/sequenceFiles/train/downtown_arguing_00.pkl          and validation/, test/: a pickle of Python 2 per sequence
<root>/imageFiles/downtown_arguing_00/image_00000.jpg       frame k of the arrays, 30 per second

A file holds one list entry per tracked person ("actor"). Its joints are those of the body model, SMPL, in metres with y down:
(x, y, z) m is (1000 x, 1000 z, -1000 y) mm here. They lie inside the body, and hips and shoulders several cm from the markers of Human3.6M:
numbers of the two are not comparable.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lib import skeleton as skeletons
from lib import unpickle
from lib.dataset.annotations import Annotations, concat
from lib.dataset.calibrations import PANOPTIC_TO_WORLD as Y_DOWN_TO_Z_UP
from lib.dataset.formats.files import findings_of, image_size, load_table, part_folder, save_table, write_images
from lib.dataset.formats.multiview import ChosenImages
from lib.errors import MALFORMED, DataError
from lib.files import refuse_existing, replaced
from lib.geometry.camera import Cameras
from lib.metrics.threedpw import ThreeDPWEvaluator

log = logging.getLogger("parallax")

SKELETON = "smpl24"
DETECTED = "openpose18"  # of `poses2d`
MESH_SKELETON = "h36m_mesh17"  # of joints that were regressed from the mesh
SPLITS = ("train", "validation", "test")
ALIASES = {"valid": "validation"}
FPS = 30.0
MM = 1000.0
BOX_SCALE = 1.25  # of the square around the projected joints
MIN_DETECTED = 6  # joints; with fewer the data set has no 2D pose
NEAREST, NEAREST_MM = 0.1, 1.0  # of the root's depth, and mm: what is nearer to the camera, or behind it, has no place in the picture
FARTHEST_M = 1e6  # numbers that are no metres
KEYS = ("jointPositions", "poses2d", "campose_valid", "cam_poses", "cam_intrinsics")
TABLES, VERSION = ".tables", 1  # folder and version of parsed sequences
KEEP_FROM = 1 << 20  # bytes of a pickle; smaller ones are read as fast as a parsed table
MESH_JOINTS = ("l_knee", "r_knee", "l_ankle", "r_ankle", "l_elbow", "r_elbow", "l_wrist", "r_wrist")
MESH_MM = 150.0  # by which those of the mesh and of the files may differ, in the median


class Labels(NamedTuple):
    """What a sequence's file tells about its A actors in N frames."""

    X_world: np.ndarray  # (A,N,24,3) float64 mm, z up; NaN = unknown
    detected: np.ndarray  # (A,N,18,3) float64: x, y px and score; all zero where the actor was not detected
    K: np.ndarray  # (3,3)
    R: np.ndarray  # (N,3,3); X_cam = R X_world + t
    t: np.ndarray  # (N,3) mm
    tracked: np.ndarray  # (A,N) bool: the camera's pose is trusted for this actor, and the actor was detected


# ------------------------------------------------------------------------------------------------------------- reading


def read(root: str | Path, split: str, sequences: Sequence[str] = (), mesh_joints: str = "", cache: str = "auto") -> Annotations:
    """Every actor in every frame in which the actor was detected, the camera's pose is trusted, and the body is in the picture.

    There is one view, whose camera moves: each frame has its own row of cameras. 2D joints are the projected 3D joints; boxes are squares
    around them, 1.25 times as large. Subjects and actions are the names of the sequences, so that tables by action are by sequence.

    Args:
        root: folder of sequenceFiles and imageFiles; images need not be there.
        split: train, validation (also called valid) or test.
        sequences: some of the split; each must be there. Empty = all.
        mesh_joints: an .npz file, relative to root, with one array per sequence, (A,N,17,3) m in the frame of the files: the joints that
            Human3.6M's regressor makes of the body model's mesh. They replace the joints of the files, in skeleton h36m_mesh17.
        cache: folder of parsed sequences, as the pickles are large; "auto" = .tables below root, "" = none.

    Raises:
        DataError: no such split or sequence, or a file that is missing, damaged or holds something else.
    """
    root, split = Path(root), ALIASES.get(split, split)
    paths = _files(root, split)
    if sequences:
        missing = sorted(set(sequences) - set(paths))
        if missing:
            raise DataError(
                f"{root}: the split {split} has no {', '.join(missing)}, it has {', '.join(paths)}; correct DATASET.OPTIONS.sequences"
            )
        paths = {name: paths[name] for name in paths if name in set(sequences)}
    folder = root / TABLES if cache == "auto" else Path(cache) if cache else None
    parts = [part for name, path in paths.items() if (part := _kept(root, name, path, folder)) is not None]
    if not parts:
        raise DataError(
            f"{root}: nobody is detected before a trusted camera in {len(paths)} sequences of {split}; download the sequence files again"
        )
    ann = concat(parts)
    return _with_mesh(ann, root / mesh_joints) if mesh_joints else ann


def splits(root: str | Path) -> list[str]:
    """The splits that are there."""
    return [split for split in SPLITS if any((Path(root) / "sequenceFiles" / split).glob("*.pkl"))]


def evaluator(
    skeleton: str, actions: Sequence[str] | None, joints: str, options: Mapping[str, Any], variants: Sequence[str], protocol: dict[str, Any]
) -> ThreeDPWEvaluator:
    """What judges tables that were read with these options."""
    return ThreeDPWEvaluator(skeleton, actions, joints, bool(options.get("mesh_joints")), variants, protocol)


def _files(root: Path, split: str) -> dict[str, Path]:
    """The sequences of a split by name, in order."""
    if split not in SPLITS:
        raise DataError(f"{root}: has no split {split!r}, only {', '.join(SPLITS)}; set DATASET.TRAIN_SET and TEST_SET to one of them")
    folder = root / "sequenceFiles" / split
    paths = {path.stem: path for path in sorted(folder.glob("*.pkl"))}
    if not paths:
        raise DataError(f"{folder}: holds no sequence (*.pkl); download sequenceFiles.zip of 3DPW, or set DATASET.ROOT to its parent")
    return paths


def _kept(root: Path, name: str, path: Path, folder: Path | None) -> Annotations | None:
    """The table of a sequence, from the folder of parsed ones if it is there and made of the same file."""
    pictures = _pictures(root / "imageFiles" / name)
    stat = path.stat()
    if folder is None or stat.st_size < KEEP_FROM:
        return _sequence(path, name, pictures)
    told = [VERSION, stat.st_size, stat.st_mtime_ns, pictures.size, pictures.names[:1], len(pictures.names)]
    stem = f"{path.parent.name}-{name}-"
    table = folder / f"{stem}{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.npz"
    try:
        if table.exists():
            return load_table(table).check(str(table))
    except (OSError, DataError, *MALFORMED) as error:
        log.info("%s: damaged (%s), it is made again", table, error)
    ann = _sequence(path, name, pictures)
    if ann is not None:
        _keep(ann, table, stem)
    return ann


def _keep(ann: Annotations, table: Path, stem: str) -> None:
    """Writes a parsed sequence in place of older ones of the same name; where that is not possible, it is parsed again next time."""
    try:
        with replaced(table, advice="the sequence is parsed each time") as part:
            save_table(ann, [name.decode() for name in ann.images], part)
        for old in table.parent.glob(f"{stem}????????????????.npz"):
            if old != table:
                old.unlink(missing_ok=True)
    except (OSError, DataError) as error:
        log.info("%s", error)


class _Pictures(NamedTuple):
    """The images of a sequence."""

    folder: Path
    names: list[str]  # those that do not count from image_00000.jpg as 3DPW does, in order; empty = as 3DPW does, or not there
    size: tuple[int, int]  # 0 0 = not there

    def paths(self, count: int) -> list[str]:
        """The images of `count` frames, relative to the root."""
        names = self.names
        if names and len(names) != count and re.fullmatch(r"image_\d{5}\.jpg", names[0]):
            names = []  # numbered as 3DPW does, but the first and others are missing
        if names and len(names) != count:
            raise DataError(
                f"{self.folder}: holds {len(names)} images {names[0]} ..., but the sequence has {count} frames; expected "
                f"{image_name(self.folder.name, 0)} ..., download the images again"
            )
        place = f"imageFiles/{self.folder.name}"
        return [f"{place}/{name}" for name in names] if names else [image_name(self.folder.name, k) for k in range(count)]


def image_name(sequence: str, frame: int) -> str:
    return f"imageFiles/{sequence}/image_{frame:05d}.jpg"


def _pictures(folder: Path) -> _Pictures:
    found = sorted(os.listdir(folder)) if folder.is_dir() else []
    found = [name for name in found if re.fullmatch(r"image_\d+\.(jpg|jpeg|png)", name)]
    if not found:
        return _Pictures(folder, [], (0, 0))
    size = image_size(folder / found[0])
    if "image_00000.jpg" in found:  # copies of five digits may also count from 1
        return _Pictures(folder, [], size)
    return _Pictures(folder, sorted(found, key=lambda name: int(re.findall(r"\d+", name)[0])), size)


def labels(path: str | Path) -> Labels:
    """The joints, detections and cameras in a sequence's file.

    Raises:
        DataError: missing or damaged, it names a class or function (nothing is run), or an array is missing or of another shape.
    """
    data = unpickle.load(path)
    if not isinstance(data, dict):
        raise DataError(f"{path}: holds {type(data).__name__}, expected a sequence of 3DPW; download it again")
    if "poses2D" in data:  # as the data set's text spells it
        data.setdefault("poses2d", data["poses2D"])
    absent = [key for key in KEYS if key not in data]
    if absent:
        raise DataError(f"{path}: has no {', '.join(absent)}, expected a sequence of 3DPW; download it again")
    pose, K = _array(path, data, "cam_poses", (-1, 4, 4)), _array(path, data, "cam_intrinsics", (3, 3))
    if not (np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0 and np.abs(K[2] - [0, 0, 1]).max() < 1e-6):
        raise DataError(f"{path}: cam_intrinsics is {K.tolist()}, expected focal lengths and a principal point in px; download it again")
    try:
        count, actors = len(pose), len(data["jointPositions"])
    except TypeError as error:
        raise DataError(f"{path}: jointPositions is no list of actors ({error}); download the sequence again") from None
    joints, detections = skeletons.get(SKELETON).num, skeletons.get(DETECTED).num
    X = _array(path, data, "jointPositions", (actors, count, 3 * joints)).reshape(actors, count, joints, 3)
    detected = _array(path, data, "poses2d", (actors, count, 3, detections)).swapaxes(2, 3)
    trusted = _array(path, data, "campose_valid", (actors, count)) > 0
    R = pose[:, :3, :3]
    rigid = (np.abs(pose) < FARTHEST_M).all((1, 2))
    R = np.where(rigid[:, None, None], R, np.eye(3))
    rigid &= (np.abs(R @ R.swapaxes(1, 2) - np.eye(3)).max((1, 2)) < 1e-3) & (np.linalg.det(R) > 0)
    X = np.where(np.abs(X) < FARTHEST_M, X, np.nan)
    return Labels(
        X_world=X @ Y_DOWN_TO_Z_UP * MM,
        detected=detected,
        K=K,
        R=R @ Y_DOWN_TO_Z_UP,
        t=pose[:, :3, 3] * MM,
        tracked=trusted & rigid & (detected != 0).any((2, 3)),
    )


def _array(path: str | Path, data: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One entry, a list of arrays or an array, as float64 of the shape; -1 = any number."""
    said = f"{path}: {key} is not of shape ({', '.join('frames' if n < 0 else str(n) for n in shape)})"
    try:
        value = np.asarray(data[key], dtype=np.float64)
    except MALFORMED as error:
        raise DataError(f"{said} ({error}); download the sequence again") from None
    if value.ndim != len(shape) or any(n not in (-1, found) for n, found in zip(shape, value.shape, strict=True)) or not value.size:
        raise DataError(f"{said}, it has {value.shape}; download the sequence again")
    return value


def _sequence(path: Path, name: str, pictures: _Pictures) -> Annotations | None:
    """The table of one sequence; None where nobody is kept."""
    told = labels(path)
    names = pictures.paths(len(told.R))
    # Without images their size is told by the principal point, which lies within a few pixels of the middle.
    size = np.array(pictures.size if min(pictures.size) > 0 else np.round(2 * told.K[:2, 2]), np.float64)
    frame, actor = (index.ravel() for index in np.nonzero(told.tracked.T))
    used, camera = np.unique(frame, return_inverse=True)
    if not len(used):
        log.info("%s: nobody is detected before a trusted camera", path)
        return None
    cameras = Cameras.make(*(torch.from_numpy(a) for a in (told.K, told.R[used], told.t[used])), size=torch.from_numpy(size))
    X = told.X_world[actor, frame]
    ann = _table(cameras, frame, actor, camera, X, [names[k] for k in used], name)
    center, side = (ann.box[:, :2] + ann.box[:, 2:]) / 2, ann.box[:, 2:] - ann.box[:, :2]
    with np.errstate(invalid="ignore"):
        seen = ((center + side / 2 > 0) & (center - side / 2 < size - 1) & (side > 0)).all(1)  # NaN: behind the camera
    log.debug("%s: %d of %d people in frames are kept", path, seen.sum(), told.tracked.size)
    return ann.select(seen) if seen.any() else None


def _table(
    cameras: Cameras,  # (C,)
    frame: np.ndarray,  # (P,), as the two below
    actor: np.ndarray,
    camera: np.ndarray,
    X: np.ndarray,  # (P,J,3) mm, NaN = unknown
    images: list[str],  # one per camera
    name: str,
) -> Annotations:
    """People in frames, one row each, every one with a pose of its own."""
    rows = np.arange(len(frame))
    valid = np.isfinite(X).all(-1)
    X = np.where(valid[..., None], X, 0)
    x, front, inside = _projected(cameras[torch.from_numpy(camera)], X, valid, skeletons.get(SKELETON).root_index)
    columns = {
        "sequence": np.zeros_like(rows), "frame": frame, "view": np.zeros_like(rows), "person": actor, "image": camera, "camera": camera,
        "pose": rows,
    }  # fmt: skip
    return Annotations(
        skeleton=SKELETON,
        cameras=cameras,
        X_world=X.astype(np.float32),
        X_valid=valid,
        **{key: value.astype(np.int32) for key, value in columns.items()},
        x_img=x.astype(np.float32),
        conf=front.astype(np.float32),
        visible=inside,
        box=_boxes(x, front).astype(np.float32),
        images=np.array(images, dtype=bytes),
        subjects=np.array([name.encode()]),
        actions=np.array([name.encode()]),
        subactions=np.array([b""]),
        fps=FPS,
    )


def _projected(cameras: Cameras, X: np.ndarray, valid: np.ndarray, root: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What cameras (P,) see of X (P,J,3) mm.   -> x_img (P,J,2) px, 0 if not in front; in front (P,J); in the picture (P,J)"""
    X_cam = cameras.to_cam(torch.from_numpy(X).double())
    pixels = cameras.project_cam(X_cam)
    depth = X_cam[..., 2].numpy()
    nearest = NEAREST * depth[:, root, None]
    front = valid & (depth > np.maximum(nearest, NEAREST_MM)) & (nearest > 0) & valid[:, root, None]
    inside = front & cameras.sees(X_cam, pixels).numpy()
    return np.where(front[..., None], pixels.numpy(), 0), front, inside


def _boxes(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Squares around the known joints; NaN where there are fewer than two.   (P,J,2), (P,J) -> (P,4)"""
    low = np.where(known[..., None], x, np.inf).min(1)
    high = np.where(known[..., None], x, -np.inf).max(1)
    few = (known.sum(1) < 2)[:, None]
    low, high = (np.where(few, np.nan, value) for value in (low, high))
    center, half = (low + high) / 2, BOX_SCALE * (high - low).max(1, keepdims=True) / 2
    return np.concatenate([center - half, center + half], -1)


def _with_mesh(ann: Annotations, path: Path) -> Annotations:
    """The table with joints that were regressed from the mesh; boxes stay those of the body model's joints."""
    joints = skeletons.get(MESH_SKELETON)
    regressed = unpickle.load_npz(path)
    X = np.full((len(ann.X_world), joints.num, 3), np.nan)
    for s in np.unique(ann.sequence):
        name = ann.subjects[s].decode()
        rows = np.flatnonzero(ann.sequence == s)
        person, frame = ann.person[rows], ann.frame[rows]
        value = regressed.get(name)
        if value is None:
            raise DataError(f"{path}: has no array {name}, expected one per sequence; regress the joints of all sequences")
        expected = f"({person.max() + 1} or more, {frame.max() + 1} or more, {joints.num}, 3)"
        if value.ndim != 4 or value.dtype.kind != "f" or value.shape[2:] != X.shape[1:]:
            raise DataError(f"{path}: {name} has shape {value.shape}, expected {expected} numbers: actors, frames, joints, x y z in m")
        if person.max() >= len(value) or frame.max() >= value.shape[1]:
            raise DataError(f"{path}: {name} has shape {value.shape}, expected {expected}; regress the joints of the whole sequence")
        X[ann.pose[rows]] = value[person, frame].astype(np.float64) @ Y_DOWN_TO_Z_UP * MM
    for joint in MESH_JOINTS:
        ours, own = joints.index(joint), skeletons.get(SKELETON).index(joint)
        apart = np.linalg.norm(X[:, ours] - ann.X_world[:, own], axis=-1)[ann.X_valid[:, own] & np.isfinite(X[:, ours]).all(-1)]
        if len(apart) and np.median(apart) > MESH_MM:
            raise DataError(
                f"{path}: {joint} lies {np.median(apart):.4g} mm from that of the sequence files (median), expected less than {MESH_MM:g}; "
                f"check the order ({', '.join(joints.joints)}), the unit (m) and the frame (that of jointPositions)"
            )
    valid = np.isfinite(X).all(-1)
    X = np.where(valid[..., None], X, 0)
    x, front, inside = _projected(ann.observing(), X[ann.pose], valid[ann.pose], joints.root_index)
    return dataclasses.replace(
        ann,
        skeleton=MESH_SKELETON,
        X_world=X.astype(np.float32),
        X_valid=valid,
        x_img=x.astype(np.float32),
        conf=front.astype(np.float32),
        visible=inside,
    )


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes a table as the sequences of a split: one per sequence and view, as the layout knows one camera, which may move.

    Frames keep their numbers; a frame without anybody has no trusted camera. `poses2d` are the table's 2D joints within the image; people
    with fewer than 6 of them there are written as not detected, as the data set does, and are not read again. Joints of SMPL that the table
    lacks are NaN; SMPL's own parameters, which no table has, are left out. A sequence whose subject has one view and no other sequence is
    called like the subject (such tables come from `read`), others like train_S1_Walking_1_c0.

    Args:
        ann: the table: calibrated, with 3D and images, lenses without distortion, the same K in all frames of a sequence and view.
        root: folder of the data set, made if missing.
        split: train, validation (also called valid) or test; it must not be there.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images. With workers it must be picklable.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the table does not fit the layout, the split or an image folder exists, or something cannot be written.
    """
    root, split = Path(root), ALIASES.get(split, split)
    ann = ann.check(f"annotations to be written to {root} ({split})")
    if split not in SPLITS:
        raise DataError(f"{root}: split {split!r} has no place in 3DPW, expected {', '.join(SPLITS)}")
    if (ann.pose < 0).any() or (ann.camera < 0).any() or (ann.image < 0).any():
        raise DataError(f"{root}: observations without 3D, camera or image have no place in 3DPW; leave them out")
    if float(ann.cameras.dist.abs().max()) > 0:
        raise DataError(f"{root}: 3DPW knows no lens distortion; undistort the images and labels, or make the world without (distortion)")
    final = root / "sequenceFiles" / split
    refuse_existing(final)
    smpl, detected = ann.to_skeleton(SKELETON), ann.to_skeleton(DETECTED)
    images: dict[int, str] = {}
    with part_folder(root, split) as part:
        (part / "sequenceFiles").mkdir()
        for name, rows in _sequences(ann, root, split):
            content = {"sequence": name} | _content(root, ann, smpl, detected, rows)
            (part / "sequenceFiles" / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
            images |= {int(i): image_name(name, int(f)) for i, f in zip(ann.image[rows], ann.frame[rows], strict=True)}
        if image is not None:
            folders = sorted({os.path.dirname(path) for path in images.values()})
            for folder in folders:
                refuse_existing(root / folder)
                (part / folder).mkdir(parents=True)
            files = [str(part / path) for path in images.values()]
            write_images(ChosenImages(image, list(images)), files, workers, f"{root}: {split}" if progress else None)
            (root / "imageFiles").mkdir(exist_ok=True)
            for folder in folders:
                os.rename(part / folder, root / folder)
        final.parent.mkdir(exist_ok=True)
        os.rename(part / "sequenceFiles", final)  # at last and at once: where the split is, all of it is


def _sequences(ann: Annotations, root: Path, split: str) -> Iterator[tuple[str, np.ndarray]]:
    """Names and rows of the sequences to be written, one for each view of each sequence."""
    pairs, which = np.unique(np.stack([ann.sequence, ann.view], 1), axis=0, return_inverse=True)
    frames = np.unique(np.stack([np.ravel(which), ann.frame], 1), axis=0)
    shown = np.unique(np.stack([np.ravel(which), ann.frame, ann.image, ann.camera], 1), axis=0)
    if len(shown) > len(frames) or len(np.unique(ann.image)) < len(frames):
        raise DataError(f"{root}: 3DPW has one image and one camera for each frame of a sequence and view; check the table's columns")
    subjects = [ann.subjects[s].decode() for s, _ in pairs]
    own = len(set(subjects)) == len(pairs) and all(re.fullmatch(r"[\w-]+", subject) for subject in subjects)
    taken: set[str] = set()
    for k, (s, view) in enumerate(pairs):
        words = (split, subjects[k], ann.actions[s].decode(), ann.subactions[s].decode(), f"c{view}")
        name = subjects[k] if own else re.sub(r"[^\w-]+", "-", "_".join(word for word in words if word))
        name = f"{name}_{s}" if name in taken else name
        taken.add(name)
        yield name, np.flatnonzero(np.ravel(which) == k)


def _content(root: Path, ann: Annotations, smpl: Annotations, detected: Annotations, rows: np.ndarray) -> dict[str, Any]:
    """What the file of one sequence holds besides its name."""
    cams = ann.observing(rows)
    K = cams.K.numpy()
    if np.abs(K - K[0]).max() > 1e-6:
        raise DataError(f"{root}: {ann.subject(int(rows[0]))}: the camera's K changes over time, but 3DPW has one for a sequence")
    people, actor = np.unique(ann.person[rows], return_inverse=True)
    frame = ann.frame[rows]
    if frame.min() < 0 or len(np.unique(np.stack([actor, frame]), axis=1).T) < len(rows):
        raise DataError(f"{root}: {ann.subject(int(rows[0]))}: a person comes twice in a frame, or a frame's number is below 0")
    actors, count = len(people), int(frame.max()) + 1
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[frame, :3, :3], pose[frame, :3, 3] = cams.R.numpy() @ Y_DOWN_TO_Z_UP.T, cams.t.numpy() / MM
    known = smpl.X_valid[smpl.pose[rows]]
    X = np.where(known[..., None], smpl.X_world[smpl.pose[rows]].astype(np.float64), np.nan) @ Y_DOWN_TO_Z_UP.T / MM
    positions = np.zeros((actors, count, X[0].size))
    positions[actor, frame] = X.reshape(len(rows), -1)
    size = cams.size.numpy()[:, None]
    x, conf = detected.x_img[rows].astype(np.float64), detected.conf[rows].astype(np.float64)
    conf *= ((x > -0.5) & ((x < size - 0.5) | (size <= 0))).all(-1)
    conf *= ((conf > 0).sum(1) >= MIN_DETECTED)[:, None]
    found = np.zeros((actors, count, 3, x.shape[1]))
    found[actor, frame] = np.concatenate([np.where(conf[..., None] > 0, x, 0), conf[..., None]], -1).swapaxes(1, 2)
    trusted = np.zeros((actors, count), bool)
    trusted[:, frame] = True
    return {
        "jointPositions": list(positions),
        "poses2d": list(found),
        "campose_valid": list(trusted),
        "cam_poses": pose,
        "cam_intrinsics": K[0],
        "img_frame_ids": 2 * np.arange(count),
    }


# ---------------------------------------------------------------------------------------------------------------- check


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Without `split`, the splits that are there."""
    root = Path(root)
    found = [split] if split else splits(root)
    if not found:
        return [f"{root}: no sequences of 3DPW found, expected sequenceFiles/train/*.pkl ...; set the root to the folder of sequenceFiles"]
    return findings_of(lambda name: read(root, name), {name: f"{root} ({name})" for name in found}, root)
