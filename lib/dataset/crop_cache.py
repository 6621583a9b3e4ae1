"""Person crops kept ready for training, so that a sample need not decode a whole frame.

One file per table: the crops as JPEG, one after another, then an index of plain arrays, then a fixed trailer. It is
memory-mapped, so all loader workers share it. A crop is the person's box, enlarged by a margin and cut off at the borders of the
image; the longer side of the enlarged box becomes `size` px, where it is larger. Samples compose their affine with that of the
crop: labels and `patch_from_img` stay those of the full image, and pixels equal it up to resampling. A person is kept twice: once
with the margin and once with a wider one, for samples that are turned or show the person small, whose pixels are coarser anyway.
What reaches beyond that one, too, is served from the full image.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.dataset.annotations import Annotations, check_crops, enlarged
from lib.dataset.image import read_bgr
from lib.errors import MALFORMED, DataError
from lib.geometry.crop import compose, invert, transform_points

log = logging.getLogger("parallax")

VERSION = 1  # of what a crop is made of; raise it when the same inputs give other crops
MAGIC = b"PXCROPS1"
TRAILER = struct.Struct("<8sQI")  # magic, where the index begins, its CRC-32
JPEG_QUALITY = 90  # 15 % less to decode than 95, for a grey level of difference
WIDER = 1.2  # the second margin of a crop, as a factor on the first
LEVELS = (1.0, WIDER)
RIM = 1  # px of the crop around the margin, so that interpolation at its border has neighbours
BLOCK = 256  # images that are in work at once while a cache is built
FOLDER = ".crops"


class CropCache:
    """The crops of a table, row by row. Made by `open_cache`; a copy in another process opens the file again."""

    def __init__(self, path: Path, key: str, names: np.ndarray):
        index, self._data = _open(path, key)
        self.path, self.key, self.names = path, key, names
        self.start, self.end = index["place"], index["place"] + index["length"]
        self.crc, self.image_size = index["crc"], index["image_size"]
        region, size, full = (index[name].astype(np.float64) for name in ("region", "crop_size", "image_size"))
        low, high = region[:, :2], region[:, 2:]
        scale = size / (high - low)
        self.img_from_crop = torch.zeros(len(region), 2, 3, dtype=torch.float64)
        self.img_from_crop[:, 0, 0], self.img_from_crop[:, 1, 1] = torch.from_numpy(1 / scale).T
        self.img_from_crop[:, :, 2] = torch.from_numpy(low - 0.5 + 0.5 / scale)
        # Image px between the centres of a crop's outer pixels; where the image ends, so does what a patch can show.
        self._low = np.where(low > 0, low - 0.5 + 0.5 / scale, 0)
        self._high = np.where(high < full, high - 0.5 - 0.5 / scale, full - 1)

    def __len__(self) -> int:
        return len(self.crc) // len(LEVELS)

    def __reduce__(self):
        return CropCache, (self.path, self.key, self.names)

    def affines(self, rows: np.ndarray, patch_from_img: Tensor, size: tuple[int, int]) -> tuple[np.ndarray, Tensor]:
        """How to cut patches out of the crops.

        rows (R,), patch_from_img (R,2,3) float64, size = (width, height) px of the patch
        -> crop (R,): number of a crop that holds all that the patch shows of the image, or -1; patch_from_crop (R,2,3), or
        patch_from_img where there is none
        """
        width, height = size
        corners = torch.tensor([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=torch.float64)
        x_img = transform_points(invert(patch_from_img), corners.expand(len(rows), 4, 2)).numpy()
        last = self.image_size[rows] - 1
        low, high = np.clip(x_img.min(1), 0, last), np.clip(x_img.max(1), 0, last)
        crop = np.full(len(rows), -1)
        for level in reversed(range(len(LEVELS))):  # the narrowest one that will do
            at = rows + level * len(self)
            crop = np.where(((low >= self._low[at]) & (high <= self._high[at])).all(1), at, crop)
        patch_from_crop = compose(patch_from_img, self.img_from_crop[torch.from_numpy(np.maximum(crop, 0))])
        return crop, torch.where(torch.from_numpy(crop >= 0)[:, None, None], patch_from_crop, patch_from_img)

    def read(self, crop: int) -> np.ndarray:
        """A crop by its number, (h, w, 3) uint8 in OpenCV's channel order; the first ones are those of the rows with the margin.

        Raises:
            DataError: the file was damaged after it was opened.
        """
        data = self._data[self.start[crop] : self.end[crop]]
        if zlib.crc32(data) == self.crc[crop]:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
            if image is not None:
                return image
        raise DataError(f"{self.path}: crop {crop} is damaged; delete the file, the next start makes it again")


def open_cache(
    ann: Annotations,
    root: str | Path,
    folder: str | Path,
    size: int = 384,
    margin: float = 1.5,
    box_scale: float = 1.0,
    progress: bool = False,
) -> CropCache:
    """The cache of a table, made first where there is none or where boxes or images are no longer those it was made of.

    Several processes may ask at once: one makes the file, the others wait for it. It appears only when it is complete.

    Args:
        ann: every observation must have an image and a box with area.
        root: folder that image names are relative to.
        folder: where the file lies; made if missing.
        size: longer side of a crop in px, before it is cut off at the borders of the image; smaller ones are not enlarged.
        margin: side of the crop, as a factor on the box.
        box_scale: factor on the annotated boxes, as for the samples.
        progress: shows a bar while the cache is made.

    Raises:
        DataError: an image cannot be read, the folder cannot be written, or size or margin make no sense.
    """
    if size < 1 or not margin >= 1:
        raise DataError(f"crop cache: size {size} px and margin {margin}, expected 1 px or more and a margin of 1 or more")
    check_crops(ann)
    root, folder = Path(root), Path(folder)
    names = ann.images[ann.image]
    regions = _regions(ann, margin, box_scale)
    key = _content_key(ann, root, names, regions, size)
    path = folder / f"crops-{_identity(ann, names)[:16]}-{size}-{margin:g}.bin"
    try:
        if (cache := _valid(path, key, names)) is not None:
            return cache
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if (cache := _valid(path, key, names)) is not None:  # another process has made it meanwhile
                return cache
            log.info("crop cache: %d crops of at most %d px go to %s; this is done once", len(ann), size, path)
            _build(path, ann, root, key, regions, size, progress)
    except OSError as error:
        raise DataError(
            f"{path}: the crop cache cannot be written ({error.strerror or error}); free space, or set DATASET.CACHE to another "
            "folder or to '' (off)"
        ) from error
    return CropCache(path, key, names)


# ------------------------------------------------------------------------------------------------------ what belongs to it


def _regions(ann: Annotations, margin: float, box_scale: float) -> np.ndarray:
    """The enlarged boxes, (levels * N, 4) x0 y0 x1 y1 px, in float64."""
    box = ann.box.astype(np.float64)
    return np.concatenate([enlarged(box, box_scale * margin * level) for level in LEVELS])


def _identity(ann: Annotations, names: np.ndarray) -> str:
    """Who is seen where: the same for a table whose boxes or images were corrected."""
    digest = hashlib.sha256(b"\n".join(names.tolist()))
    for column in (ann.sequence, ann.frame, ann.view, ann.person):
        digest.update(np.ascontiguousarray(column))
    return digest.hexdigest()


def _content_key(ann: Annotations, root: Path, names: np.ndarray, regions: np.ndarray, size: int) -> str:
    """Changes whenever the crops would: with boxes, margin and size, and with the name, length or date of an image."""
    digest = hashlib.sha256(json.dumps([VERSION, JPEG_QUALITY, RIM, LEVELS, size]).encode())
    digest.update(np.ascontiguousarray(regions))
    used, which = np.unique(ann.image, return_inverse=True)
    stamps = np.array([_stamp(root / ann.images[i].decode()) for i in used], np.int64)
    digest.update(b"\n".join(names.tolist()))
    digest.update(stamps[which])
    return digest.hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1  # reading it says why
    return found.st_size, found.st_mtime_ns


# ---------------------------------------------------------------------------------------------------------------- the file


def _open(path: Path, key: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Index and bytes of a cache file.

    Raises:
        OSError: there is no such file. DataError: it is damaged, cut short, or of other contents.
    """
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - TRAILER.size))
            magic, start, crc = TRAILER.unpack(file.read(TRAILER.size))
            if magic != MAGIC or start > length:
                raise ValueError("wrong end")
            file.seek(start)
            data = file.read(length - TRAILER.size - start)
        if zlib.crc32(data) != crc:
            raise ValueError("wrong index")
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            index = {name: stored[name] for name in stored.files}
        found = str(index["key"])
        if (index["place"] + index["length"]).max() != start:
            raise ValueError("wrong index")
    except MALFORMED:
        raise DataError(f"{path}: the crop cache is damaged or cut short; delete it, the next start makes it again") from None
    if found != key:
        raise DataError(f"{path}: the crop cache was made of other boxes or images; delete it, the next start makes it again")
    return index, np.asarray(np.memmap(path, np.uint8, mode="r", shape=(max(start, 1),)))


def _valid(path: Path, key: str, names: np.ndarray) -> CropCache | None:
    """The cache at a path, or None where there is none that can be used."""
    try:
        return CropCache(path, key, names)
    except FileNotFoundError:
        return None
    except DataError as error:
        log.info("%s", str(error).split(";")[0])
        return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; the system lifts the lock of a process that dies."""
    with open(path.with_suffix(".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("crop cache: another process is making %s; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path, ann: Annotations, root: Path, key: str, regions: np.ndarray, size: int, progress: bool) -> None:
    """Makes and writes all crops, image by image, under a temporary name first."""
    shown = np.tile(ann.image, len(LEVELS))
    order = np.argsort(shown, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(shown[order])) + 1)  # the crops of each image
    count = len(shown)
    place, length = np.zeros(count, np.int64), np.zeros(count, np.int64)
    fields = {"region": (4, np.int32), "crop_size": (2, np.int32), "image_size": (2, np.int32)}
    index = {name: np.zeros((count, width), kind) for name, (width, kind) in fields.items()} | {"crc": np.zeros(count, np.uint32)}

    def crops(numbers: np.ndarray) -> list[tuple]:
        image = read_bgr(root / ann.image_path(numbers[0] % len(ann)))
        return [(number, *_make(image, regions[number], size)) for number in numbers]

    part = path.with_name(f".{path.name}.part")
    bar = tqdm(total=count, desc=f"crops: {path.parent}", unit="crop", disable=not progress, smoothing=0.05)
    try:
        # Threads suffice: OpenCV leaves Python's lock free while it decodes, resizes and encodes.
        with open(part, "wb") as file, ThreadPoolExecutor(os.cpu_count() or 1) as pool, bar:
            for first in range(0, len(groups), BLOCK):
                for results in pool.map(crops, groups[first : first + BLOCK]):
                    for n, data, region, crop_size, image_size in results:
                        place[n], length[n], index["crc"][n] = file.tell(), len(data), zlib.crc32(data)
                        index["region"][n], index["crop_size"][n], index["image_size"][n] = region, crop_size, image_size
                        file.write(data)
                        bar.update()
            _finish(file, key, place, length, index)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finish(file, key: str, place: np.ndarray, length: np.ndarray, index: dict) -> None:
    """Appends index and trailer, and flushes all to the disk."""
    start, stored = file.tell(), io.BytesIO()
    np.savez(stored, key=np.array(key), place=place, length=length, **index)
    file.write(stored.getbuffer())
    file.write(TRAILER.pack(MAGIC, start, zlib.crc32(stored.getbuffer())))
    file.flush()
    os.fsync(file.fileno())


def _make(image: np.ndarray, region: np.ndarray, size: int) -> tuple[np.ndarray, list[int], list[int], list[int]]:
    """One crop.   -> its JPEG; its region in the image x0 y0 x1 y1 px; its size; the size of the image"""
    height, width = image.shape[:2]
    scale = min(1.0, max(1, size - 2 * RIM - 1) / max(region[2:] - region[:2]))  # with rim and rounding, `size` px at most
    low = np.clip(np.floor(region[:2] - RIM / scale), 0, (width - 1, height - 1)).astype(int)
    high = np.clip(np.ceil(region[2:] + RIM / scale) + 1, low + 1, (width, height)).astype(int)
    crop = image[low[1] : high[1], low[0] : high[0]]
    crop_size = np.maximum(np.rint((high - low) * scale), 1).astype(int).tolist()
    if scale < 1:
        crop = cv2.resize(crop, crop_size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1])
    if not done:
        raise DataError(f"crop cache: OpenCV cannot encode a crop of {crop_size} px")
    return data, [*low, *high], crop_size, [width, height]
