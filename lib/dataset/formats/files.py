"""What several layouts share: the table as plain arrays in a file, images written by several processes, folders that
appear only when they are complete, and what can be said about any table before it is trained on.
"""

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, number_within
from lib.errors import DataError
from lib.files import refuse_existing
from lib.geometry.camera import Cameras

JPEG_QUALITY = 95
CHUNK = 48  # images per piece of work; neighbours share a sequence, and so its backdrops
PARALLEL_FROM = 400  # images; for fewer, starting processes takes longer than it saves
CAMERA_FIELDS = tuple(f.name for f in fields(Cameras))
PLAIN_FIELDS = tuple(f.name for f in fields(Annotations) if f.name not in ("skeleton", "cameras", "fps"))
OPTIONAL_FIELDS = ("head_px",)  # not stored where it says nothing
LIMBS_MM = (("hip", "knee", 200, 650), ("knee", "ankle", 200, 650), ("shoulder", "elbow", 120, 480), ("elbow", "wrist", 120, 450))
NAMED = 3  # examples in a finding; the rest is counted


def load_table(path: str | Path) -> Annotations:
    """The table in a file of `save_table`, not yet checked. Raises OSError or one of MALFORMED if it is something else."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    cameras = Cameras(*(torch.from_numpy(arrays[f"camera_{name}"]) for name in CAMERA_FIELDS))
    plain = {name: arrays[name] for name in PLAIN_FIELDS if name in arrays or name not in OPTIONAL_FIELDS}
    return Annotations(skeleton=str(arrays["skeleton"]), cameras=cameras, fps=float(arrays["fps"]), **plain)


def save_table(ann: Annotations, names: list[str], path: str | Path) -> str:
    """Writes the table as an .npz of plain arrays, with `names` for its images.   -> sha256 of the new file"""
    arrays = {name: getattr(ann, name) for name in PLAIN_FIELDS} | {"images": np.array(names, dtype=bytes)}
    arrays = {name: value for name, value in arrays.items() if name not in OPTIONAL_FIELDS or not np.isnan(value).all()}
    arrays |= {f"camera_{name}": getattr(ann.cameras, name).numpy() for name in CAMERA_FIELDS}
    with open(path, "xb") as file:
        np.savez_compressed(file, skeleton=np.array(ann.skeleton), fps=np.float64(ann.fps), **arrays)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@contextmanager
def part_folder(root: str | Path, split: str) -> Iterator[Path]:
    """A hidden folder below `root` for what is not complete yet: empty at first, and removed with all that was not moved out of it.

    Raises:
        DataError: something cannot be written.
    """
    part = Path(root) / f".{split}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
        part.mkdir(parents=True)
        yield part
    except OSError as error:
        raise DataError(f"{root}: {split} cannot be written ({error.strerror or error}); free space or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def no_cameras() -> Cameras:
    """Of a data set without calibration.   -> Cameras (0,)"""
    eye = torch.eye(3, dtype=torch.float64)
    return Cameras.make(eye[None], eye[None], torch.zeros(1, 3, dtype=torch.float64))[:0]


def labelled_pictures(skeleton: str, names: Sequence[str], image: np.ndarray, **columns: np.ndarray) -> Annotations:
    """The table of N people in single pictures of unknown cameras, with 2D labels alone.

    Args:
        skeleton: of the labels.
        names: of the pictures, below the root.
        image: (N,) the picture of each person, a place in `names`.
        columns: x_img (N,J,2), conf (N,J), visible (N,J) and box (N,4), as in Annotations, and what else there is.
    """
    joints, count = columns["x_img"].shape[1], len(image)
    return Annotations(
        skeleton=skeleton,
        cameras=no_cameras(),
        X_world=np.zeros((0, joints, 3), np.float32),
        X_valid=np.zeros((0, joints), bool),
        sequence=np.zeros(count, np.int32),
        frame=image.astype(np.int32),
        view=np.zeros(count, np.int32),
        person=number_within(image),
        image=image.astype(np.int32),
        camera=np.full(count, -1, np.int32),
        pose=np.full(count, -1, np.int32),
        images=np.array([name.encode() for name in names], dtype=bytes),
        subjects=np.array([b""]),
        actions=np.array([b""]),
        subactions=np.array([b""]),
        **columns,
    )


def need(package: str, what: str):
    """The optional package that reads a kind of file.   -> the module

    Raises:
        DataError: it is not installed; the message holds the command.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.split(".")[0]
        raise DataError(f"{what} needs the package {name}, which is not installed; run `pip install {name}`") from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image, of JPEG files from their head; 0, 0 where there is none that can be read."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\xff\xd8":
                while (mark := file.read(2)) and len(mark) == 2 and mark[0] == 0xFF:
                    if 0xC0 <= mark[1] <= 0xCF and mark[1] not in (0xC4, 0xC8, 0xCC):  # frame header
                        head = file.read(7)
                        return int.from_bytes(head[5:7], "big"), int.from_bytes(head[3:5], "big")
                    length = int.from_bytes(file.read(2), "big")  # of the segment, these two bytes among them
                    if length < 2:
                        break
                    file.seek(length - 2, os.SEEK_CUR)
    except (OSError, ValueError):  # a name with a null byte, for example
        return 0, 0
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return (0, 0) if image is None else (image.shape[1], image.shape[0])


def findings_of(read: Callable[[str], Annotations], places: Mapping[str, str], root: str | Path) -> list[str]:
    """The findings of several splits, or why one cannot be read.   places: split -> what its sentences begin with"""
    said = []
    for split, place in places.items():
        try:
            ann = read(split).check(place)
        except DataError as error:
            said.append(str(error))
            continue
        said += findings(ann, root, place)
    return said


def findings(ann: Annotations, root: str | Path, name: str) -> list[str]:
    """What looks wrong in a table that can be read: images, units, joint order, boxes. Empty = nothing.

    Args:
        ann: the table.
        root: folder that its image names are relative to.
        name: what the sentences begin with.
    """
    return [f"{name}: {text}" for text in (*_image_findings(ann, Path(root)), *_pose_findings(ann), *_box_findings(ann))]


def _image_findings(ann: Annotations, root: Path) -> Iterator[str]:
    used = np.unique(ann.image[ann.image >= 0])
    names = [ann.images[i].decode() for i in used]
    present: dict[str, set[str]] = {}
    for folder in {os.path.dirname(n) for n in names}:
        present[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
    missing = [n for n in names if os.path.basename(n) not in present[os.path.dirname(n)]]
    if missing:
        yield (
            f"{len(missing)} of {len(names)} images are missing below {root} ({', '.join(missing[:NAMED])}); "
            "extract them, or correct DATASET.ROOT"
        )


def _pose_findings(ann: Annotations) -> Iterator[str]:
    skel = skeletons.get(ann.skeleton)
    used = np.unique(ann.pose[ann.pose >= 0])
    X, valid = ann.X_world[used], ann.X_valid[used]
    for a, b, low, high in LIMBS_MM:
        for side in "lr":
            ends = [skel.find(f"{side}_{joint}") for joint in (a, b)]
            if None in ends:
                continue
            both = valid[:, ends[0]] & valid[:, ends[1]]
            if both.any():
                length = float(np.median(np.linalg.norm(X[both, ends[0]] - X[both, ends[1]], axis=-1)))
                if not low <= length <= high:
                    unit = " (metres?)" if low <= 1000 * length <= high else ""
                    yield (
                        f"the median distance from {side}_{a} to {side}_{b} is {length:.4g} mm, expected {low} to {high}{unit}; "
                        f"check the unit, and that the joints are in the order of {ann.skeleton}"
                    )
                    return
    rows = np.flatnonzero((ann.pose >= 0) & (ann.camera >= 0))
    root, chosen = skel.root_index, rows[:: max(1, len(rows) // 2000)]
    chosen = chosen[ann.X_valid[ann.pose[chosen], root] & (ann.conf[chosen, root] > 0)]
    if len(chosen):
        cameras = ann.observing(chosen)
        X_world = torch.from_numpy(ann.X_world[ann.pose[chosen]]).double()
        depth = cameras.to_cam(X_world)[:, root, 2].numpy()
        if np.median(depth) < 300:
            yield (
                f"the root lies {np.median(depth):.4g} mm in front of its camera (median), expected more than 300; check R "
                "(X_cam = R X_world + t) and the unit of t"
            )
            return
        error = np.linalg.norm(cameras.project(X_world)[0].numpy() - ann.x_img[chosen], axis=-1)
        both = ann.X_valid[ann.pose[chosen]] & (ann.conf[chosen] > 0)
        scale = np.median(cameras.K[:, 0, 0].numpy() / depth) * 1000  # px of a metre at the person
        median = float(np.median(error[both])) if both.any() else 0.0
        if median > 0.1 * scale:
            yield (
                f"the 2D joints lie {median:.4g} px from the projected 3D joints (median), expected less than "
                f"{0.1 * scale:.4g}; check the cameras and the joint order"
            )


def _box_findings(ann: Annotations) -> Iterator[str]:
    width, height = ann.box[:, 2] - ann.box[:, 0], ann.box[:, 3] - ann.box[:, 1]
    bad = np.flatnonzero((width <= 1) | (height <= 1))
    if len(bad):
        yield f"{len(bad)} boxes have no area (row {bad[0]}: {ann.box[bad[0]].tolist()}); expected x0 y0 x1 y1 in px"
    if len(ann.cameras) == 0:
        return
    size = ann.cameras.size.numpy()[ann.camera]
    inside = ((ann.x_img > -0.5) & (ann.x_img < size[:, None] - 0.5)).all(-1) | (ann.conf <= 0)
    known = (ann.camera >= 0) & (size > 0).all(-1) & (ann.conf > 0).any(-1)
    if known.any() and inside[known].mean() < 0.5:
        yield (
            f"{1 - inside[known].mean():.0%} of the 2D joints lie outside of the images; check the image sizes and the unit "
            "of the 2D joints (px of the stored image)"
        )


def write_images(image: Callable, files: list[str], workers: int = 0, title: str | None = None) -> dict:
    """Writes all images.   -> their count, total size and common sha256, which does not depend on the number of
    workers
    """
    pieces = [(first, files[first : first + CHUNK]) for first in range(0, len(files), CHUNK)]
    total, digest = 0, hashlib.sha256()
    bar = tqdm(total=len(files), desc=title, unit="image", disable=title is None, smoothing=0.05)

    def count(results) -> None:
        nonlocal total
        for sizes, digests in results:
            total += sum(sizes)
            digest.update(b"".join(digests))
            bar.update(len(sizes))

    with bar:
        if min(workers, len(pieces)) <= 1 or len(files) < PARALLEL_FROM:
            count(_make_images(image, piece) for piece in pieces)
        else:
            # Not forked from here, as the fork of a process with running threads can hang; the server imports the
            # heavy modules once.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["torch", "cv2", "scipy.interpolate", __name__])
            with ProcessPoolExecutor(min(workers, len(pieces)), context, _start_worker, (image,)) as pool:
                count(pool.map(_work, pieces))
    return {"count": len(files), "bytes": total, "sha256": digest.hexdigest()}


def place_images(root: Path, names: list[str], image: Callable, split: str, workers: int = 0, title: str | None = None) -> None:
    """Writes images below `root`, first into a hidden folder, so that a run that is killed leaves none half done."""
    for name in names:
        refuse_existing(root / name)
    with part_folder(root, split) as part:
        for folder in {os.path.dirname(n) for n in names}:
            (part / folder).mkdir(parents=True, exist_ok=True)
            (root / folder).mkdir(parents=True, exist_ok=True)
        write_images(image, [str(part / n) for n in names], workers, title)
        for name in names:
            os.rename(part / name, root / name)


def _make_images(image: Callable, piece: tuple[int, list[str]]) -> tuple[list[int], list[bytes]]:
    """Makes and writes some images.   -> sizes and sha256 of their files"""
    first, files = piece
    sizes, digests = [], []
    for i, path in enumerate(files, first):
        suffix, quality = (".png", []) if path.endswith(".png") else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        done, data = cv2.imencode(suffix, image(i)[..., ::-1], quality)
        if not done:
            raise DataError(f"{path}: OpenCV cannot encode the image; check that it is (H, W, 3) uint8")
        Path(path).write_bytes(data.tobytes())
        sizes.append(data.size)
        digests.append(hashlib.sha256(data).digest())
    return sizes, digests


_worker_image: list[Callable] = []  # of a worker process: what makes its images


def _start_worker(image: Callable) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker_image[:] = [image]


def _work(piece: tuple[int, list[str]]) -> tuple[list[int], list[bytes]]:
    return _make_images(_worker_image[0], piece)
