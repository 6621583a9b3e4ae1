"""The Human3.6M challenge of ECCV 2018, as Integral pose regression (Sun et al., 2018) trained on it:

<root>/{Train,Val,Test}/IMG/00001.jpg
<root>/{Train,Val}/POSE/00001.csv            17 rows x, y, z: mm in camera axes, relative to the root

No camera, action or subject is known, nor where the person is in the image. The table gives every image a camera of its own, so far
away that its picture is a scaled parallel projection. With `keypoints` (2D joints of a network trained on MPII) the pose is laid over
them by the best scaling, turn and shift, as Integral does, and gives the 2D labels. Without, the pose is placed in the middle of the
image so that it fills 1/1.25 of the shorter side; then the 2D joints have confidence 0 and only the pose is a label. With `cache` all of it
is read from the files that Integral's program left, and that later programs share:

<cache>/HM36_eccv_challenge_{Train,Val}_cache/HM36_eccv_challenge_{Train,Val}_w288xh384_keypoint_jnt_bbox_db.pkl
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, widened
from lib.dataset.formats.files import findings, image_size, part_folder, write_images
from lib.errors import MALFORMED, ConfigError, DataError
from lib.files import refuse_existing
from lib.geometry.camera import Cameras
from lib.unpickle import load as load_pickle

SKELETON = "h36m17"
SPLITS = {"train": "Train", "valid": "Val", "test": "Test"}
MARGIN = 1.25  # side of the box over the extent of the pose
ASPECT = 288 / 384  # width over height that Integral widens boxes to before that; the square about them is what is cropped
CACHE = "HM36_eccv_challenge_{0}_cache/HM36_eccv_challenge_{0}_w288xh384_keypoint_jnt_bbox_db.pkl"
CACHED = {"joints_3d": (18, 3), "joints_3d_vis": (18, 3), "joints_3d_relative": (18, 3)}  # the last row is none of the 17 joints
CACHED_BOX = ("center_x", "center_y", "width", "height")
FAR = 100.0  # focal length of the assumed cameras in sides of the image
SIDE_PX = 1000.0  # of images that are not there, as Human3.6M has them
LEAST_JOINTS = 3  # 2D joints that place a pose
MIN_CONF = 0.2  # of a 2D joint that counts


def read(root: str | Path, split: str, keypoints: str = "", cache: str = "") -> Annotations:
    """One split.

    Args:
        root: folder with Train, Val and Test.
        split: train, valid or test (which has images only: no poses, boxes of the whole image).
        keypoints: .npz with 2D joints of all images in order, relative to the root: `x_img` (N,J,2) px, `conf` (N,J), `skeleton` (name);
            "{split}" in its name stands for the split; "" = none.
        cache: folder of the cache above, relative to the root; poses, 2D joints and boxes are those of its file, POSE is not read;
            "" = none.

    Raises:
        DataError: files are missing or hold something else.
    """
    root = Path(root)
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}; set DATASET.TRAIN_SET and TEST_SET to one of them")
    folder, posed = root / SPLITS[split], split != "test"
    if cache and posed:
        if keypoints:
            raise DataError("keypoints and cache: both hold 2D joints; leave one of the two out of DATASET.OPTIONS")
        return _cached(root, root / cache / CACHE.format(SPLITS[split]), split)
    numbers = _numbers(folder / "POSE", ".csv") if posed else _numbers(folder / "IMG", ".jpg")
    n, size = len(numbers), _sizes(root, split, numbers)
    J = skeletons.get(SKELETON).num
    X = np.stack([_pose(folder / "POSE" / f"{number}.csv") for number in numbers]) if posed else np.zeros((0, J, 3))
    x_img, conf, box = np.zeros((n, J, 2)), np.zeros((n, J)), np.concatenate([-0.5 + 0 * size, size - 0.5], 1)
    box[(size <= 0).any(1)] = np.nan
    cameras = Cameras.make(np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), np.zeros((0, 3)), np.zeros((0, 5)), np.zeros((0, 2)))
    if posed:
        side, found = _assumed(size), np.zeros(n, bool)
        scale, shift = in_the_middle(X, side)
        if keypoints:
            scale, shift, found = _laid_over(root / keypoints.replace("{split}", split), X, n, scale, shift)
            conf[found] = 1
        # Complex numbers are points of the image: `scale` turns and enlarges (px per mm), `shift` is where the root lies.
        placed = scale[:, None] * _complex(X) + shift[:, None]
        x_img = np.stack([placed.real, placed.imag], -1)
        low, high = x_img.min(1), x_img.max(1)
        wide = widened(np.concatenate([low, high], 1), ASPECT, MARGIN)
        box = _squares((low + high) / 2, np.where(found, np.minimum((wide[:, 2:] - wide[:, :2]).max(1), side.max(1)), side.min(1)))
        cameras = far_cameras(scale, shift, FAR * side.max(1), size)
    return _table(split, numbers, X, x_img, conf, box, cameras).check(f"{root} ({split})")


def _table(
    split: str, numbers: list[str], X: np.ndarray, x_img: np.ndarray, conf: np.ndarray, box: np.ndarray, cameras: Cameras
) -> Annotations:
    """The rows of all images; without cameras, those of images alone."""
    n = len(numbers)
    row = np.arange(n, dtype=np.int32)
    return Annotations(
        skeleton=SKELETON,
        cameras=cameras,
        X_world=X.astype(np.float32),
        X_valid=np.ones(X.shape[:2], bool),
        sequence=np.zeros(n, np.int32),
        frame=np.array([int(number) for number in numbers], np.int32),
        view=np.zeros(n, np.int32),
        person=np.zeros(n, np.int32),
        image=row,
        camera=row if len(cameras) else np.full(n, -1, np.int32),
        pose=row if len(X) else np.full(n, -1, np.int32),
        x_img=x_img.astype(np.float32),
        conf=conf.astype(np.float32),
        visible=conf > 0,
        box=box.astype(np.float32),
        images=np.array([_image(split, number) for number in numbers], dtype=bytes),
        subjects=np.array([b"unknown"]),
        actions=np.array([b"unknown"]),
        subactions=np.array([b""]),
    )


def _image(split: str, number: str) -> str:
    return f"{SPLITS[split]}/IMG/{number}.jpg"


def _sizes(root: Path, split: str, numbers: list[str]) -> np.ndarray:
    """Width and height of the images in px, 0 0 where they are not there.   -> (N,2)"""
    return np.array([image_size(root / _image(split, number)) for number in numbers], np.float64)


def _assumed(size: np.ndarray) -> np.ndarray:
    """The same with the usual size for images that are not there."""
    return np.where((size > 0).all(1, keepdims=True), size, SIDE_PX)


def _squares(center: np.ndarray, side: np.ndarray) -> np.ndarray:
    """center (N,2), side (N,) px -> boxes (N,4)"""
    return np.concatenate([center - side[:, None] / 2, center + side[:, None] / 2], 1)


def _cached(root: Path, path: Path, split: str) -> Annotations:
    """A split from the file of Integral's program: record i is image i + 1."""
    records = load_pickle(path)
    if not isinstance(records, list) or not records:
        raise DataError(f"{path}: holds {type(records).__name__} of no records, expected a list with one for each image; get it again")
    try:
        fields = {name: np.array([record[name] for record in records], np.float64) for name in (*CACHED, *CACHED_BOX)}
    except (KeyError, *MALFORMED) as error:
        raise DataError(f"{path}: its records do not all have {', '.join((*CACHED, *CACHED_BOX))} ({error}); get the file again") from None
    n = len(records)
    for name, value in fields.items():
        if value.shape != (n, *CACHED.get(name, ())) or not np.isfinite(value).all():
            raise DataError(f"{path}: {name} has shape {value.shape}, expected finite {(n, *CACHED.get(name, ()))}; get the file again")
    J = skeletons.get(SKELETON).num
    joints, vis, X = (fields[name][:, :J] for name in CACHED)
    center_x, center_y, width, height = (fields[name] for name in CACHED_BOX)
    numbers = [f"{i + 1:05d}" for i in range(n)]
    size = _sizes(root, split, numbers)
    side = _assumed(size)
    x_img, conf = joints[..., :2], (vis[..., 0] > 0).astype(np.float64)
    scale, shift, found = _fitted(X, x_img, np.ones((n, J)))
    if not found.all():
        raise DataError(f"{path}: the 2D joints of record {int(found.argmin())} all lie in one place; get the file again")
    box = _squares(np.stack([center_x, center_y], 1), np.minimum(np.maximum(width, height), side.max(1)))
    cameras = far_cameras(scale, shift, FAR * side.max(1), size)
    return _table(split, numbers, X, x_img, conf, box, cameras).check(str(path))


def _complex(x: np.ndarray) -> np.ndarray:
    """The first two coordinates as complex numbers.   x (...,2 or 3) -> (...)"""
    return x[..., 0] + 1j * x[..., 1]


def _numbers(folder: Path, ending: str) -> list[str]:
    """The file names of a folder without their ending, in the order of their numbers."""
    numbers = sorted((p.stem for p in folder.glob(f"*{ending}") if p.stem.isdigit()), key=int)
    if not numbers:
        raise DataError(f"{folder}: no files like 00001{ending}; unpack the challenge there, or correct DATASET.ROOT and the split")
    return numbers


def _pose(path: Path) -> np.ndarray:
    """-> (17,3) mm"""
    shape = (skeletons.get(SKELETON).num, 3)
    try:
        pose = np.loadtxt(path, delimiter=",", ndmin=2)
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as numbers with commas ({error}); copy the file again") from None
    if pose.shape != shape or not np.isfinite(pose).all():
        raise DataError(f"{path}: holds {pose.shape[0]} rows of {pose.shape[1]} numbers, expected {shape} finite ones; copy the file again")
    return pose


def in_the_middle(X: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale (N,) px per mm and place of the root (N,), complex, that put poses (N,17,3) into the middle of images (N,2)."""
    low, high = X[..., :2].min(1), X[..., :2].max(1)
    scale = size.min(1) / (MARGIN * np.maximum((high - low).max(1), 1.0))
    return scale + 0j, _complex((size - 1) / 2) - scale * _complex((low + high) / 2)


def _laid_over(
    path: Path, X: np.ndarray, n: int, scale: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scaling, turn and shift of least squares from poses to 2D joints.   -> scale (N,), shift (N,), where it was found (N,)"""
    try:
        with np.load(path, allow_pickle=False) as file:
            x_img, conf, name = np.asarray(file["x_img"], np.float64), np.asarray(file["conf"], np.float64), str(file["skeleton"])
        pose, common = skeletons.convert(X, SKELETON, name)
    except (OSError, KeyError, ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{path}: not a file of 2D joints ({error}); expected an .npz with x_img, conf and skeleton") from None
    J = pose.shape[1]
    if x_img.shape != (n, J, 2) or conf.shape != (n, J):
        raise DataError(f"{path}: x_img has shape {x_img.shape} and conf {conf.shape}, expected {(n, J, 2)} and {(n, J)} for {name}")
    weight = np.where((conf > MIN_CONF) & common & np.isfinite(x_img).all(-1), conf, 0)
    fitted, offset, found = _fitted(pose, x_img, weight)
    return np.where(found, fitted, scale), np.where(found, offset, shift), found


def _fitted(pose: np.ndarray, x_img: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares from poses (N,J,3) to 2D joints (N,J,2), weighted (N,J).   -> scale (N,), shift (N,), where there is one (N,)"""
    found = (weight > 0).sum(1) >= LEAST_JOINTS
    total = np.maximum(weight.sum(1), 1e-9)
    p, q = _complex(pose), _complex(np.where(weight[..., None] > 0, x_img, 0))
    p0, q0 = ((weight * v).sum(1) / total for v in (p, q))
    p, q = p - p0[:, None], q - q0[:, None]
    fitted = (weight * p.conj() * q).sum(1) / np.maximum((weight * np.abs(p) ** 2).sum(1), 1e-9)
    found &= np.abs(fitted) > 1e-6
    return fitted, q0 - fitted * p0, found


def far_cameras(scale: np.ndarray, shift: np.ndarray, focal: np.ndarray, size: np.ndarray) -> Cameras:
    """Cameras (N,) of focal length (N,) px that see the root at `shift` and a mm there as |scale| px."""
    n, turn = len(scale), scale / np.abs(scale)
    K, R, t = np.zeros((n, 3, 3)), np.zeros((n, 3, 3)), np.zeros((n, 3))
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = shift.real, shift.imag, 1
    R[:, 0, 0] = R[:, 1, 1] = turn.real
    R[:, 1, 0], R[:, 0, 1], R[:, 2, 2] = turn.imag, -turn.imag, 1
    t[:, 2] = focal / np.abs(scale)
    return Cameras.make(K, R, t, np.zeros(5), size)


def write(ann: Annotations, root: str | Path, split: str, image: Callable[[int], np.ndarray] | None = None) -> None:
    """Writes a split: the image and the root-relative pose in camera axes of every row, numbered from 1 in their order.

    Args:
        ann: rows with 3D joints, all of them valid (or any rows for `test`).
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes poses only.

    Raises:
        DataError: the split exists, or a row has no complete pose.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})").to_skeleton(SKELETON)
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    final = root / SPLITS[split]
    refuse_existing(final)
    numbers = [f"{i + 1:05d}" for i in range(len(ann))]
    with part_folder(root, SPLITS[split]) as part:
        (part / "IMG").mkdir()
        if split != "test":
            (part / "POSE").mkdir()
            for number, pose in zip(numbers, _camera_poses(ann), strict=True):
                np.savetxt(part / "POSE" / f"{number}.csv", pose, fmt="%.6f", delimiter=",")
        if image is not None:
            write_images(lambda i: image(int(ann.image[i])), [str(part / "IMG" / f"{number}.jpg") for number in numbers])
        os.rename(part, final)


def _camera_poses(ann: Annotations) -> np.ndarray:
    """Root-relative poses in camera axes.   -> (N,17,3) mm"""
    bad = (ann.pose < 0) | (ann.camera < 0)
    bad[~bad] = ~ann.X_valid[ann.pose[~bad]].all(1)
    if bad.any():
        raise DataError(f"row {np.flatnonzero(bad)[0]} has no complete pose and camera; the challenge has all 17 joints: select other rows")
    X = ann.X_world[ann.pose].astype(np.float64)
    X = X - X[:, [skeletons.get(SKELETON).root_index]]
    return np.einsum("nij,nkj->nki", ann.cameras.R.numpy()[ann.camera], X)


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong, one sentence each; empty = good. Without `split`, all splits that are there."""
    root = Path(root)
    splits = [split] if split else [s for s, folder in SPLITS.items() if (root / folder).is_dir()]
    said = [] if splits else [f"{root}: has none of the folders {', '.join(SPLITS.values())}; unpack the challenge there"]
    for name in splits:
        try:
            ann = read(root, name)
        except DataError as error:
            said.append(str(error))
            continue
        place = str(root / SPLITS[name])
        said += findings(ann, root, place)
        if name == "test":
            continue
        skel = skeletons.get(SKELETON)
        center = np.linalg.norm(ann.X_world[:, skel.root_index], axis=-1)
        if (center > 1).any():
            i = int(center.argmax())
            said.append(f"{place}: the root of image {ann.frame[i]} lies at {center[i]:.4g} mm, expected 0: poses must be relative to it")
        if len(ann) > 20 and np.median(ann.X_world[:, skel.index("head"), 1] - ann.X_world[:, skel.index("r_ankle"), 1]) > 0:
            said.append(f"{place}: heads lie below feet in most poses, expected y down (camera axes)")
    return said
