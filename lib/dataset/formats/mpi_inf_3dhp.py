"""MPI-INF-3DHP as released (Mehta et al., 3DV 2017), every joint in mm and pixels of the undistorted images.

<root>/S1/Seq1/annot.mat                 train: annot2, annot3, univ_annot3: one cell per camera, 28 joints, all frames
<root>/S1/Seq1/camera.calibration        train: text, 4x4 intrinsics and extrinsics per camera
<root>/S1/Seq1/imageSequence/video_0.avi
<root>/S1/Seq1/imageFrames/video_0/frame_000001.jpg     what `extract` makes of the video, counted from 1
<root>/TS1/annot_data.mat                test: annot2, annot3, univ_annot3, valid_frame, activity_annotation; 17 joints
<root>/TS1/imageSequence/img_000001.jpg
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, concat
from lib.dataset.formats.files import findings_of, image_size, need, part_folder, write_images
from lib.dataset.formats.matlab import load_mat
from lib.dataset.formats.video import extract_videos
from lib.errors import MALFORMED, DataError
from lib.files import refuse_existing
from lib.geometry.camera import Cameras

log = logging.getLogger("parallax")

SKELETON = "mpi3dhp17"
RAW_SKELETON = "mpi3dhp28"  # of annot.mat
CHEST_HEIGHT = (0, 2, 4, 7, 8)  # cameras of the training set that see people as most pictures do
TEST_SPLITS = ("test", "valid")
ACTIVITIES = ("Standing/Walking", "Exercising", "Sitting", "Reaching/Crouching", "On the Floor", "Sports", "Miscellaneous")
OUTDOOR, OUTDOOR_SIZE, STUDIO_SIZE = ("TS5", "TS6"), (1920, 1080), (2048, 2048)
BOX_MM = 2000.0  # side of the square around the root that is cropped, as for Human3.6M
REFUSE_MM = 100.0  # by which the cameras of an instant may disagree about the pose, in the median
REFUSE_PX = 20.0  # by which a fitted test camera may miss the 2D joints, in the median
GROUPINGS = ("activity", "sequence")
CALIBRATION_HEAD = "Skeletool Camera Calibration File V1.0"
_HDF5 = b"\x89HDF\r\n\x1a\n"


# ------------------------------------------------------------------------------------------------------------- reading


def read(
    root: str | Path,
    split: str,
    cameras: Sequence[int] = (),
    universal: bool = False,
    step: int = 1,
    actions: str = "activity",
) -> Annotations:
    """The training (S*) or the test sequences (TS*); joints that a file holds no number for are not annotated.

    Training: a table's view is the number of the camera, its world that of the calibration. Test: one camera per sequence, whose
    frame is the world, with intrinsics fitted to annot2 and annot3; frames that are not valid are left out.

    Args:
        root: folder of S1 ... or TS1 ...
        split: "train", or "test" (also called "valid").
        cameras: numbers of the training cameras; empty = those of 0, 2, 4, 7, 8 (chest height) that are there.
        universal: univ_annot3, poses scaled to one height, as the published results use, instead of annot3.
        step: keep every step-th frame of a sequence, counted from the first (valid) one.
        actions: of the test set: "activity" (the seven of activity_annotation, where a file has it), or "sequence".

    Raises:
        DataError: no such sequences, or a file that is missing, damaged or does not fit its calibration.
    """
    root = Path(root)
    if step < 1:
        raise DataError(f"step: {step} is not a step, expected 1 or more (1 keeps every frame); correct DATASET.OPTIONS")
    if actions not in GROUPINGS:
        raise DataError(f"actions: {actions!r} is not one of {', '.join(GROUPINGS)}; correct DATASET.OPTIONS")
    if split == "train":
        folders = _numbered(root.glob("S*/Seq*"), r"S\d+/Seq\d+$")
        parts = [_train_sequence(root, folder, cameras, universal, step) for folder in folders]
    elif split in TEST_SPLITS:
        folders = _numbered(root.glob("TS*"), r"TS\d+$")
        parts = [part for folder in folders for part in _test_sequence(root, folder, universal, step, actions)]
    else:
        raise DataError(f"{root}: has no split {split!r}, only train and test; set DATASET.TRAIN_SET and TEST_SET to one of them")
    if not parts:
        kind = "S1/Seq1 ..." if split == "train" else "TS1 ..."
        raise DataError(f"{root}: no sequences of the split {split!r} found, expected folders {kind}; set DATASET.ROOT to their parent")
    return concat(parts)


def _numbered(folders: Iterable[Path], pattern: str) -> list[Path]:
    """The folders whose path ends in the pattern, in the order of their numbers."""
    found = [f for f in folders if f.is_dir() and re.search(rf"(?:^|/){pattern}", f.as_posix())]
    return sorted(found, key=lambda f: [int(n) for n in re.findall(r"\d+", "/".join(f.parts[-2:]))])


def _train_sequence(root: Path, folder: Path, cameras: Sequence[int], universal: bool, step: int) -> Annotations:
    path = folder / "annot.mat"
    name = "univ_annot3" if universal else "annot3"
    mat = _mat(path, ("annot2", name))
    cells2, cells3 = _cells(mat["annot2"]), _cells(mat[name])
    calibrated = read_calibration(folder / "camera.calibration")
    filled = [c for c in range(min(len(cells2), len(cells3))) if cells2[c].size and c in calibrated]
    numbers = sorted(cameras) or [c for c in CHEST_HEIGHT if c in filled]
    absent = sorted(set(numbers) - set(filled))
    if absent or not numbers:
        raise DataError(
            f"{path}: no annotation or calibration of cameras {absent or list(CHEST_HEIGHT)}, only of {filled}; set `cameras` in "
            "DATASET.OPTIONS to some of these"
        )
    count = skeletons.get(RAW_SKELETON).num
    poses = [[_poses(path, cells[c], count, dims) for c in numbers] for cells, dims in ((cells2, 2), (cells3, 3))]
    if len(lengths := {len(p) for p in (*poses[0], *poses[1])}) != 1:
        raise DataError(f"{path}: {' and '.join(map(str, sorted(lengths)))} frames of different cameras, expected one; copy it again")
    x, X = (_to_17(np.stack(p, 1)[::step]) for p in poses)  # (T,C,17,2 and 3)
    cams = Cameras.stack([calibrated[c] for c in numbers])
    worlds = cams.to_world(torch.from_numpy(X)).numpy()  # cameras (C) and poses (T,C,J,3)
    with np.errstate(invalid="ignore"):
        X_world = _mean_of_finite(worlds)
        apart = np.linalg.norm(worlds - X_world[:, None], axis=-1)
    for k, c in enumerate(numbers):
        known = np.isfinite(apart[:, k])
        if known.any() and np.median(apart[:, k][known]) > REFUSE_MM:
            raise DataError(
                f"{path}: the poses of camera {c} lie {np.median(apart[:, k][known]):.4g} mm from those of the others (median), expected "
                f"less than {REFUSE_MM:g}; check that camera.calibration belongs to this sequence"
            )
    frames = step * np.arange(len(x))
    names = [[f"{_frames_folder(root, folder, c)}/frame_{t + 1:06d}.jpg" for c in numbers] for t in frames]
    subject = folder.parent.name
    return _table(frames, numbers, cams, np.arange(len(numbers)), x, X[..., 2], X_world, names, subject, folder.name)


def _frames_folder(root: Path, folder: Path, camera: int) -> str:
    return f"{folder.relative_to(root).as_posix()}/imageFrames/video_{camera}"


def _mean_of_finite(X: np.ndarray) -> np.ndarray:
    """Mean over axis 1 of what is known, NaN where nothing is.   (T,C,J,3) -> (T,J,3)"""
    known = np.isfinite(X).all(-1, keepdims=True)
    count = known.sum(1)
    return np.where(count > 0, np.where(known, X, 0).sum(1) / np.maximum(count, 1), np.nan)


def _test_sequence(root: Path, folder: Path, universal: bool, step: int, actions: str) -> list[Annotations]:
    """One table per activity of the sequence."""
    path = folder / "annot_data.mat"
    mat = _mat(path, ("annot2", "annot3", "univ_annot3", "valid_frame"), ("activity_annotation",))
    joints = skeletons.get(SKELETON).num
    x, X, X_universal = (_test_poses(path, mat[n], n, joints, d) for n, d in (("annot2", 2), ("annot3", 3), ("univ_annot3", 3)))
    valid = np.ravel(mat["valid_frame"]) > 0
    if not len(x) == len(X) == len(X_universal) == len(valid):
        raise DataError(
            f"{path}: annot2, annot3, univ_annot3 and valid_frame hold {len(x)}, {len(X)}, {len(X_universal)} and {len(valid)} frames, "
            "expected the same number; download the file again"
        )
    kept = np.flatnonzero(valid)
    kept = kept[(kept - kept[:1]) % step == 0]
    if not len(kept):
        raise DataError(f"{path}: none of {len(valid)} frames is marked valid (step {step}), expected some; download the file again")
    names = np.array([f"{folder.relative_to(root).as_posix()}/imageSequence/img_{t + 1:06d}.jpg" for t in kept])
    camera = _fitted_camera(path, x[valid], X[valid], _size(folder, root / names[0]))[None]
    x, X = x[kept], (X_universal if universal else X)[kept]
    kind = np.zeros(len(kept), np.int64)
    if actions == "activity" and "activity_annotation" in mat:
        kind = np.ravel(mat["activity_annotation"]).astype(np.int64)[kept]
    parts = []
    for number in np.unique(kind):
        rows = kind == number
        action = ACTIVITIES[number - 1] if 1 <= number <= len(ACTIVITIES) else folder.name
        parts.append(
            _table(
                kept[rows], [0], camera, [0], x[rows][:, None], X[rows][:, None, :, 2], X[rows], names[rows][:, None], folder.name, action
            )
        )
    return parts


def _size(folder: Path, image: Path) -> tuple[int, int]:
    """Width and height of a test sequence's images: those of the first one, else as published."""
    size = image_size(image)
    return size if size != (0, 0) else OUTDOOR_SIZE if folder.name in OUTDOOR else STUDIO_SIZE


def _fitted_camera(path: Path, x: np.ndarray, X: np.ndarray, size: tuple[int, int]) -> Cameras:
    """The camera (), in whose frame the poses are, from x (T,J,2) px and X (T,J,3) mm."""
    try:
        K = fit_intrinsics(x.reshape(-1, 2), X.reshape(-1, 3))
    except DataError as error:
        raise DataError(f"{path}: annot2 and annot3: {error}; download the file again") from None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = X[..., :2] / X[..., 2:]
        error = np.linalg.norm(ratio * K[[0, 1], [0, 1]] + K[:2, 2] - x, axis=-1)
    median = np.nanmedian(error)
    if not (K[0, 0] > 0 and K[1, 1] > 0 and median < REFUSE_PX):
        raise DataError(
            f"{path}: no camera fits annot2 and annot3: the best one has focal lengths {K[0, 0]:.4g}, {K[1, 1]:.4g} px and misses by "
            f"{median:.4g} px, expected positive ones and less than {REFUSE_PX:g}; download the file again"
        )
    eye = torch.eye(3, dtype=torch.float64)
    return Cameras.make(torch.from_numpy(K), eye, torch.zeros(3, dtype=torch.float64), size=torch.tensor(size, dtype=torch.float64))


def fit_intrinsics(x_img: np.ndarray, X_cam: np.ndarray) -> np.ndarray:
    """Focal lengths and principal point, by least squares in pixels.   (M,2) px, (M,3) mm -> (3,3); rows with NaN do not count

    Raises:
        DataError: fewer than two points, or all in one direction.
    """
    known = np.isfinite(x_img).all(-1) & np.isfinite(X_cam).all(-1) & (np.abs(X_cam[:, 2]) > 1)
    ratio = X_cam[known, :2] / X_cam[known, 2:]
    K = np.eye(3)
    for axis in (0, 1):
        A = np.stack([ratio[:, axis], np.ones(len(ratio))], -1)
        if len(A) < 2 or np.linalg.matrix_rank(A) < 2:
            raise DataError(f"a camera cannot be fitted to {len(A)} points, expected two or more in different directions")
        (K[axis, axis], K[axis, 2]), *_ = np.linalg.lstsq(A, x_img[known, axis], rcond=None)
    return K


def _table(
    frames: np.ndarray,  # (T,) from 0
    views: Sequence[int],  # (C,) numbers of the cameras
    cams: Cameras,
    camera: Sequence[int],  # (C,) rows of cams
    x: np.ndarray,  # (T,C,J,2) px, NaN = unknown
    depth: np.ndarray,  # (T,C,J) mm
    X_world: np.ndarray,  # (T,J,3) mm
    names,  # (T,C) images
    subject: str,
    action: str,
) -> Annotations:
    """One sequence; rows by frame, then view. Views in which nothing is annotated, or the root is behind the camera, have none."""
    T, C = x.shape[:2]
    root = skeletons.get(SKELETON).root_index
    conf, valid = np.isfinite(x).all(-1), np.isfinite(X_world).all(-1)
    t, k = np.nonzero(conf.any(-1) & (depth[..., root] > 0))
    camera = np.asarray(camera)[k]
    K, size = cams.K.numpy()[camera], cams.size.numpy()[camera]
    center = x[t, k, root]
    half = BOX_MM / 2 * K[:, [0, 1], [0, 1]] / depth[t, k, root][:, None]
    x, conf = x[t, k], conf[t, k]
    inside = ((x > -0.5) & (x < size[:, None] - 0.5)).all(-1)
    columns = {
        "sequence": np.zeros_like(t),
        "frame": np.asarray(frames)[t],
        "view": np.asarray(views)[k],
        "person": np.zeros_like(t),
        "image": np.arange(len(t)),
        "camera": camera,
        "pose": t,
    }
    return Annotations(
        skeleton=SKELETON,
        cameras=cams,
        X_world=np.where(valid[..., None], X_world, 0).astype(np.float32),
        X_valid=valid,
        **{key: value.astype(np.int32) for key, value in columns.items()},
        x_img=np.where(conf[..., None], x, 0).astype(np.float32),
        conf=conf.astype(np.float32),
        visible=conf & inside,
        box=np.concatenate([center - half, center + half], -1).astype(np.float32),
        images=np.array([names[i][j] for i, j in zip(t, k, strict=True)], dtype=bytes),
        subjects=np.array([subject.encode()]),
        actions=np.array([action.encode()]),
        subactions=np.array([b""]),
    )


def _to_17(x: np.ndarray) -> np.ndarray:
    return skeletons.convert(x, RAW_SKELETON, SKELETON)[0]


# --------------------------------------------------------------------------------------------------------------- files


def _mat(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict:
    """Variables of a .mat file of either kind, in MATLAB's order of axes; cells as lists or object arrays."""
    try:
        with open(path, "rb") as file:
            start = file.read(520)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); download the data set again, or correct DATASET.ROOT") from None
    try:
        mat = _hdf5(path, (*names, *optional)) if _HDF5 in (start[:8], start[512:]) else _mat5(path, (*names, *optional))
    except DataError:  # a package is missing
        raise
    except Exception as error:  # SciPy, h5py, zlib and struct have errors of their own
        raise DataError(f"{path}: not a .mat file that can be read ({error}); download it again") from None
    missing = [name for name in names if name not in mat]
    if missing:
        raise DataError(f"{path}: has no {', '.join(missing)}, expected {', '.join(names)}; download it again")
    return mat


def _mat5(path: Path, names: Sequence[str]) -> dict:
    mat = load_mat(path, names)
    return {name: mat[name] for name in names if name in mat}


def _hdf5(path: Path, names: Sequence[str]) -> dict:
    h5py = need("h5py", f"{path}: reading it")
    with h5py.File(path, "r") as file:
        return {
            name: [np.array(file[r]).T for r in np.ravel(file[name][()])] if file[name].dtype == object else np.array(file[name]).T
            for name in names
            if name in file
        }


def _cells(value) -> list[np.ndarray]:
    """A cell array as a list of numeric arrays, whatever it is wrapped in."""
    cells = list(value) if isinstance(value, list) else list(np.ravel(value)) if value.dtype == object else [value]
    out = []
    for cell in cells:
        while isinstance(cell, np.ndarray) and cell.dtype == object and cell.size == 1:
            cell = cell.ravel()[0]
        out.append(np.asarray(cell))
    return out


def _poses(path: Path, cell: np.ndarray, joints: int, dims: int) -> np.ndarray:
    """(T, joints * dims) -> (T, joints, dims) float64"""
    if cell.ndim != 2 or cell.shape[1] != joints * dims or cell.dtype.kind not in "fiu":
        raise DataError(f"{path}: a cell has shape {cell.shape}, expected (frames, {joints * dims}) numbers; download the file again")
    return cell.astype(np.float64).reshape(-1, joints, dims)


def _test_poses(path: Path, value, name: str, joints: int, dims: int) -> np.ndarray:
    """(dims, joints, 1, T) -> (T, joints, dims) float64"""
    value = np.asarray(value)
    if value.ndim not in (3, 4) or value.shape[:2] != (dims, joints) or value.size != dims * joints * value.shape[-1]:
        raise DataError(f"{path}: {name} has shape {value.shape}, expected ({dims}, {joints}, 1, frames); download the file again")
    return value.reshape(dims, joints, -1).transpose(2, 1, 0).astype(np.float64)


def read_calibration(path: str | Path) -> dict[int, Cameras]:
    """The cameras of a camera.calibration file by their numbers; X_cam = R X_world + t, mm.

    Raises:
        DataError: the file is missing, or not seven lines per camera.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it comes with the data set, download the sequence again") from None
    found: dict[int, dict[str, list[float]]] = {}
    entry: dict[str, list[float]] = {}  # what comes before the first name belongs to nobody
    try:
        for line in lines[1:]:
            key, *values = line.split() or [""]
            if key == "name":
                found[int(values[0])] = entry = {}
            elif key:
                entry[key] = [float(v) for v in values]
        cameras = {}
        for number, entry in found.items():
            K, M = np.reshape(entry["intrinsic"], (4, 4)), np.reshape(entry["extrinsic"], (4, 4))
            values = (K[:3, :3], M[:3, :3], M[:3, 3])
            cameras[number] = Cameras.make(*(torch.from_numpy(v) for v in values), size=torch.tensor(entry["size"], dtype=torch.float64))
    except MALFORMED as error:
        raise DataError(
            f"{path}: not a calibration ({error}), expected name, sensor, size, animated, intrinsic (16 numbers), extrinsic (16) and "
            "radial per camera; download the file again"
        ) from None
    if not cameras:
        raise DataError(f"{path}: holds no camera, expected 14; download the file again")
    return cameras


def extract(root: str | Path, ann: Annotations, progress: bool = True) -> None:
    """Makes the images of a training table from its videos; those that are there are kept, so it can be resumed.

    Raises:
        DataError: a video is missing or damaged; see lib.dataset.formats.video.extract_frames.
    """
    root = Path(root)
    videos: dict[Path, dict[Path, int]] = {}
    for i in np.unique(ann.image[ann.image >= 0]):
        name = Path(ann.images[i].decode())
        if name.parent.parent.name == "imageFrames":
            video = name.parent.parent.parent / "imageSequence" / f"{name.parent.name}.avi"
            videos.setdefault(root / video, {})[root / name] = int(name.stem.rpartition("_")[2]) - 1
    extract_videos(videos, f"{root}: images", progress)


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes the sequences of one split: "train" as S*/Seq*, "test" (or "valid") as one TS* per camera.

    Frames are numbered anew without gaps. Joints of the 28 that the table lacks are NaN; univ_annot3 is annot3 as it is. Training
    cameras keep the numbers of their views if those are 0, 2, 4, 7 and 8, else get these in order. The layout knows no lens
    distortion: 2D joints are stored as the images show them, and a distorted camera is told.

    Args:
        ann: the table: calibrated, with 3D, one person per instant; subjects are named S and a number.
        root: folder of the data set, made if missing.
        split: "train", "test" or "valid".
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images. With workers it must be picklable.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the table does not fit the layout, a subject's or sequence's folder exists, or the files cannot be written.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})")
    if split != "train" and split not in TEST_SPLITS:
        raise DataError(f"{root}: split {split!r} has no place in MPI-INF-3DHP, expected train or test")
    if (ann.pose < 0).any() or (ann.camera < 0).any() or (ann.image < 0).any():
        raise DataError(f"{root}: observations without 3D, camera or image have no place in MPI-INF-3DHP; leave them out")
    keys = np.stack([ann.sequence, ann.frame, ann.view], 1)
    if len(np.unique(keys, axis=0)) < len(ann) or len(np.unique(ann.image)) < len(ann):
        raise DataError(f"{root}: several people in an image have no place in MPI-INF-3DHP, expected one; select one of them")
    if float(ann.cameras.dist.abs().max()) > 0:
        log.warning("%s: MPI-INF-3DHP has no lens distortion; the 2D joints will not lie exactly where the cameras project the 3D", root)
    with part_folder(root, split) as part:
        names = (_write_train if split == "train" else _write_test)(ann, part)
        folders = sorted(path.name for path in part.iterdir())
        for folder in folders:
            refuse_existing(root / folder)
        if image is not None:
            for name in names.values():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
            files, rows = [str(part / name) for name in names.values()], list(names)
            write_images(_Chosen(image, rows), files, workers, f"{root}: {split}" if progress else None)
        for folder in folders[::-1]:  # where the first one is, all are
            os.rename(part / folder, root / folder)


class _Chosen:
    """Some of the images, numbered from 0; can be sent to another process."""

    def __init__(self, image: Callable[[int], np.ndarray], rows: list[int]):
        self.image, self.rows = image, rows

    def __call__(self, i: int) -> np.ndarray:
        return self.image(self.rows[i])


def _arrays(ann: Annotations, skeleton: str) -> tuple[np.ndarray, np.ndarray]:
    """x (N,J,2) px and X_cam (N,J,3) mm in another skeleton, NaN where unknown."""
    ann = ann.to_skeleton(skeleton)
    cams = ann.observing()
    X = cams.to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
    return (
        np.where((ann.conf > 0)[..., None], ann.x_img.astype(np.float64), np.nan),
        np.where(ann.X_valid[ann.pose][..., None], X, np.nan),
    )


def _write_train(ann: Annotations, root: Path) -> dict[int, str]:
    """Annotations and calibrations.   -> names of the images by their rows"""
    sio = need("scipy.io", f"{root}: writing annot.mat")
    x, X = _arrays(ann, RAW_SKELETON)
    views = np.unique(ann.view).tolist()
    numbers = views if set(views) <= set(CHEST_HEIGHT) else [*CHEST_HEIGHT, *(c for c in range(14) if c not in CHEST_HEIGHT)][: len(views)]
    if len(numbers) < len(views):
        raise DataError(f"{root.parent}: {len(views)} views have no place in MPI-INF-3DHP, expected 14 or fewer; select some of them")
    number_of, count, names = dict(zip(views, numbers, strict=True)), {}, {}
    for s in np.unique(ann.sequence):
        subject = ann.subjects[s].decode()
        if not re.fullmatch(r"S\d+", subject):
            raise DataError(f"{root.parent}: subject {subject!r} has no place in MPI-INF-3DHP, expected S and a number, such as S1")
        count[subject] = count.get(subject, 0) + 1
        folder = root / subject / f"Seq{count[subject]}"
        folder.mkdir(parents=True)
        rows = np.flatnonzero(ann.sequence == s)
        frames, place = np.unique(ann.frame[rows], return_inverse=True)
        annot2, annot3 = (np.full((max(numbers) + 1, len(frames), *v.shape[1:]), np.nan) for v in (x, X))
        number = np.array([number_of[v] for v in ann.view[rows].tolist()])
        annot2[number, place], annot3[number, place] = x[rows], X[rows]
        filled = set(number.tolist())
        cells2, cells3 = np.empty((len(annot2), 1), object), np.empty((len(annot2), 1), object)
        for c in range(len(annot2)):
            cells2[c, 0] = annot2[c].reshape(len(frames), -1) if c in filled else np.zeros((0, 0))
            cells3[c, 0] = annot3[c].reshape(len(frames), -1) if c in filled else np.zeros((0, 0))
        index = np.arange(1, len(frames) + 1)[:, None]
        sio.savemat(folder / "annot.mat", {"annot2": cells2, "annot3": cells3, "univ_annot3": cells3, "frames": index})
        cams = {int(c): ann.cameras[int(row)] for c, row in zip(number, ann.camera[rows], strict=True)}
        (folder / "camera.calibration").write_text(_calibration_text(cams))
        for row, c, t in zip(rows, number, place, strict=True):
            names[int(ann.image[row])] = f"{_frames_folder(root, folder, c)}/frame_{t + 1:06d}.jpg"
    return names


def _calibration_text(cameras: dict[int, Cameras]) -> str:
    lines = [CALIBRATION_HEAD]
    for number, cam in sorted(cameras.items()):
        K, M = np.eye(4), np.eye(4)
        K[:3, :3], M[:3, :3], M[:3, 3] = cam.K.numpy(), cam.R.numpy(), cam.t.numpy()
        rows = {
            "sensor": "10 10",
            "size": " ".join(str(int(v)) for v in cam.size.tolist()),
            "animated": "0",
            "intrinsic": " ".join(repr(float(v)) for v in K.ravel()),
            "extrinsic": " ".join(repr(float(v)) for v in M.ravel()),
            "radial": "0",
        }
        lines += [f"name          {number}", *(f"  {key:<11} {value}" for key, value in rows.items())]
    return "\n".join(lines) + "\n"


def _write_test(ann: Annotations, root: Path) -> dict[int, str]:
    """Annotations, one folder per camera.   -> names of the images by their rows"""
    h5py = need("h5py", f"{root}: writing annot_data.mat")
    x, X = _arrays(ann, SKELETON)
    names = {}
    for k, c in enumerate(np.unique(ann.camera), 1):
        rows = np.flatnonzero(ann.camera == c)
        rows = rows[np.lexsort([ann.frame[rows], ann.sequence[rows]])]
        folder = root / f"TS{k}"
        folder.mkdir()
        with h5py.File(folder / "annot_data.mat", "w") as file:
            for name, value in (("annot2", x), ("annot3", X), ("univ_annot3", X)):
                file[name] = value[rows][:, None]
            file["valid_frame"] = np.ones((1, len(rows)))
        names |= {int(ann.image[row]): f"{folder.name}/imageSequence/img_{t:06d}.jpg" for t, row in enumerate(rows, 1)}
    return names


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Without `split`, whatever sequences there are."""
    root = Path(root)
    kinds = {"train": "S*/Seq*", "test": "TS*"}
    splits = [split] if split else [name for name, pattern in kinds.items() if any(root.glob(pattern))]
    if not splits:
        return [f"{root}: no sequences found, expected folders S1/Seq1 ... or TS1 ...; set the root to their parent"]
    return findings_of(lambda name: read(root, name), {name: f"{root} ({name})" for name in splits}, root)
