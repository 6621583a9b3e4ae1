"""Synthetic occlusion: cut-out objects pasted into training images (Sarandi et al. 2018; numbers as in
EpipolarPose). The objects are those of Pascal VOC 2012, or made up.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from lib.dataset.image import read_image
from lib.errors import MALFORMED, DataError
from lib.files import replaced

log = logging.getLogger("parallax")

MAX_OBJECTS = 7  # pasted per image: uniform in 1..7
SIZE_FACTORS = (0.2, 1.0)  # uniform range of the object's scale in a patch of REFERENCE_SIZE
REFERENCE_SIZE = 256.0  # px, shorter patch side for which the objects' stored size was chosen
RIM_ALPHA = 192  # of the outline, so that it blends; the inside is opaque
RIM_KERNEL = 8  # px, the outline is what an erosion with this ellipse removes
VOC_MIN_AREA = 500  # px of the mask; smaller objects are left out
VOC_SCALE = 0.5  # objects are kept at half their size
VOC_PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")  # where the data may lie below the folder that was named
CACHE_VERSION = 1


class Occluders:
    """Objects (h, w, 4) uint8 RGBA to paste; read-only, so that forked workers share them."""

    def __init__(self, objects: Sequence[np.ndarray]):
        if not objects:
            raise DataError("occluders: no object to paste, expected one or more; see DATASET.VOC")
        for number, item in enumerate(objects):
            if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 4 or item.size == 0:
                raise DataError(
                    f"occluders: object {number} is {item.dtype} {item.shape}, expected uint8 (h, w, 4) RGBA"
                )
        self.objects = list(objects)

    def __len__(self) -> int:
        return len(self.objects)

    def paste_random(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image (H, W, 3) uint8 with 1 to 7 objects of random size and place pasted into it, in place."""
        height, width = image.shape[:2]
        count = int(rng.integers(1, MAX_OBJECTS + 1))
        which = rng.integers(len(self.objects), size=count)
        factors = rng.uniform(*SIZE_FACTORS, size=count) * (min(width, height) / REFERENCE_SIZE)
        centers = rng.uniform(0, 1, size=(count, 2)) * (width, height)
        for index, factor, center in zip(which, factors, centers, strict=True):
            paste(image, resize(self.objects[index], factor), center)
        return image


def resize(item: np.ndarray, factor: float) -> np.ndarray:
    """An object scaled by a factor, at least 1 px: bilinear when it grows, area average when it shrinks."""
    size = np.maximum(np.rint(np.array(item.shape[1::-1]) * factor).astype(int), 1)
    return cv2.resize(item, size.tolist(), interpolation=cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA)


def paste(image: np.ndarray, item: np.ndarray, center: Sequence[float]) -> None:
    """Blends an RGBA object (h, w, 4) over an image (H, W, 3), both uint8, in place, cut off at the borders.

    center = (x, y) px; the object's corner lies at round(center) - size // 2.
    """
    height, width = item.shape[:2]
    x, y = (int(v) for v in np.rint(center))
    x, y = x - width // 2, y - height // 2
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, image.shape[1]), min(y + height, image.shape[0])
    if right <= left or bottom <= top:
        return
    source = item[top - y : bottom - y, left - x : right - x]
    target = image[top:bottom, left:right]
    alpha = cv2.cvtColor(source[..., 3], cv2.COLOR_GRAY2BGR)
    # In bytes, off by at most one grey level: a third of the time that floating point takes.
    shown, kept = cv2.multiply(source[..., :3], alpha, scale=1 / 255), cv2.multiply(target, 255 - alpha, scale=1 / 255)
    target[:] = cv2.add(shown, kept)


def soft_rim(mask: np.ndarray, pad: int = RIM_KERNEL) -> np.ndarray:
    """Alpha channel of an object's mask (h, w) bool: opaque inside, its rim part transparent.   -> (h, w) uint8

    With `pad`, the border of the cut-out is an outline, too; with 0 the object may go on behind it.
    """
    solid = np.pad(mask, pad).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (RIM_KERNEL, RIM_KERNEL))
    inside = cv2.erode(solid, kernel)[pad : pad + mask.shape[0], pad : pad + mask.shape[1]]
    return np.where(inside > 0, 255, np.where(mask, RIM_ALPHA, 0)).astype(np.uint8)


# ----------------------------------------------------------------------------------------------------------- Pascal VOC


def voc_occluders(folder: str | Path) -> Occluders:
    """The segmented objects of Pascal VOC 2012 except people, and those that are difficult or truncated.

    Read once and kept as plain arrays in `<folder>.occluders.npz` beside the folder, or in the user's cache where that place
    cannot be written.

    Args:
        folder: VOC2012 (with Annotations/, JPEGImages/ and SegmentationObject/), VOCdevkit, or the folder that holds one of them.

    Raises:
        DataError: the folder is none of these, a file is missing or damaged, or nothing in it can be used.
    """
    folder = Path(folder)
    found = [folder / place for place in VOC_PLACES if (folder / place / "Annotations").is_dir()]
    if not found:
        raise DataError(
            f"{folder}: no Annotations folder in it, expected Pascal VOC 2012 (Annotations, JPEGImages, SegmentationObject); set "
            "DATASET.VOC to the folder VOC2012, or leave it empty for made-up objects"
        )
    voc = found[0].resolve()
    files = sorted((voc / "Annotations").glob("*.xml"))
    stamp = np.array([CACHE_VERSION, len(files)])
    caches = (voc.with_name(f"{voc.name}.occluders.npz"), _user_cache(voc))
    for cache in caches:
        if (objects := _load_cache(cache, stamp)) is not None:
            return Occluders(objects)
    log.info("reading the objects of %s (%d annotations); this is done once", voc, len(files))
    objects = [item for file in files for item in _voc_objects(voc, file)]
    if not objects:
        raise DataError(
            f"{voc}: none of {len(files)} annotations has a segmented object that can be used, expected some thousand objects; "
            "extract the whole of VOCtrainval_11-May-2012.tar"
        )
    for cache in caches:
        if _save_cache(cache, stamp, objects):
            log.info("%d objects kept in %s", len(objects), cache)
            break
    return Occluders(objects)


def _voc_objects(voc: Path, file: Path) -> Iterator[np.ndarray]:
    """The objects (h, w, 4) uint8 RGBA of one annotated image."""
    try:
        root = ElementTree.parse(file).getroot()
        if int(root.findtext("segmented", "0")) == 0:
            return
        wanted = [
            (i + 1, *(int(float(item.findtext(f"bndbox/{side}"))) for side in ("xmin", "ymin", "xmax", "ymax")))
            for i, item in enumerate(root.findall("object"))
            if item.findtext("name") != "person" and not any(int(item.findtext(f, "0")) for f in ("difficult", "truncated"))
        ]
        name = Path(root.findtext("filename", file.with_suffix(".jpg").name)).name
    except (ElementTree.ParseError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not an annotation of Pascal VOC ({error}); extract it again") from None
    if not wanted:
        return
    image, mask = read_image(voc / "JPEGImages" / name), _palette_indices(voc / "SegmentationObject" / f"{file.stem}.png")
    if mask.shape != image.shape[:2]:
        raise DataError(f"{file}: the image is {image.shape[1::-1]} px, but its mask {mask.shape[::-1]} px; extract both again")
    for value, x0, y0, x1, y1 in wanted:
        item = mask[y0:y1, x0:x1] == value
        if np.count_nonzero(item) >= VOC_MIN_AREA:
            yield resize(np.dstack([image[y0:y1, x0:x1], soft_rim(item, pad=0)]), VOC_SCALE)


def _palette_indices(path: Path) -> np.ndarray:
    """The numbers of a palette image, (H, W) uint8."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise DataError(f"{path}: has mode {image.mode}, expected a palette (P), whose numbers are the objects; extract it again")
            return np.array(image)
    except OSError as error:
        raise DataError(f"{path}: the mask cannot be read ({error}); extract the whole of VOCtrainval_11-May-2012.tar") from None


def _user_cache(voc: Path) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "parallax" / f"occluders-{hashlib.sha256(str(voc).encode()).hexdigest()[:16]}.npz"


def _load_cache(path: Path, stamp: np.ndarray) -> list[np.ndarray] | None:
    """The objects, as views of one array; None where the file is missing, damaged or of other data."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not np.array_equal(file["stamp"], stamp):
                return None
            shapes, pixels = file["shapes"], file["pixels"]
        ends = np.cumsum(4 * shapes.prod(1))
        return [part.reshape(*shape, 4) for part, shape in zip(np.split(pixels, ends[:-1]), shapes, strict=True)]
    except (OSError, *MALFORMED):
        return None


def _save_cache(path: Path, stamp: np.ndarray, objects: Sequence[np.ndarray]) -> bool:
    shapes, pixels = np.array([item.shape[:2] for item in objects]), np.concatenate([item.ravel() for item in objects])
    try:
        with replaced(path) as part:
            np.savez(part, stamp=stamp, shapes=shapes, pixels=pixels)
    except DataError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ made-up objects


def procedural_occluders(seed: int = 0, count: int = 64, size: tuple[int, int] = (64, 200)) -> Occluders:
    """Made-up objects with the outlines of household things, a stand-in for Pascal VOC's; a function of the seed.

    Boxes, balls, bottles, leafy blobs and tables with legs, of one or two colours, shaded and textured; the longer
    side in `size` px.
    """
    rng = np.random.default_rng((seed, count))
    return Occluders([_procedural_object(rng, int(rng.integers(size[0], size[1] + 1))) for _ in range(count)])


def _procedural_object(rng: np.random.Generator, side: int) -> np.ndarray:
    aspect = rng.uniform(0.5, 1.0)
    width, height = (side, int(side * aspect)) if rng.random() < 0.5 else (int(side * aspect), side)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    mask = OUTLINES[rng.integers(len(OUTLINES))](x, y, rng)
    base, second = rng.uniform(30, 230, (2, 3))
    texture = _texture(rng, x, y)
    light = rng.uniform(-1, 1, 2)
    shade = 0.85 + 0.25 * (x * light[0] + y * light[1]) - 0.15 * (x * x + y * y)
    grain = rng.normal(0, 6, (height, width, 1))
    color = (base + (second - base) * texture[..., None]) * shade[..., None] + grain
    return np.dstack([np.clip(color, 0, 255).astype(np.uint8), soft_rim(mask)])


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weight 0..1 of the second colour: plain, stripes, checks or smooth spots."""
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(4, 16), rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    stripes, checks = np.sin(frequency * along + phase), np.sin(frequency * across + phase)
    kinds = (np.zeros_like(x), stripes > 0, stripes * checks > 0, 0.5 + 0.5 * stripes * np.cos(frequency * across / 2))
    return np.asarray(kinds[rng.integers(len(kinds))], dtype=np.float64)


def _box(x, y, rng):
    lean = rng.uniform(-0.3, 0.3)
    return np.abs(x - lean * y) < 1 - abs(lean)


def _ball(x, y, rng):
    return x * x + y * y < 1


def _bottle(x, y, rng):
    neck, shoulder = rng.uniform(0.25, 0.5), rng.uniform(-0.6, 0.0)
    half = np.clip(neck + (1 - neck) * (y - shoulder) / 0.3, neck, 1)
    return np.abs(x) < half


def _blob(x, y, rng):
    angle = np.arctan2(y, x)
    waves = np.arange(1, 6)
    radius = 0.72 + (rng.uniform(-0.1, 0.1, 5) * np.sin(angle[..., None] * waves + rng.uniform(0, 2 * np.pi, 5))).sum(
        -1
    )
    return np.hypot(x, y) < radius


def _table(x, y, rng):
    top, leg = rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.45)
    return (y < top - 1) | (np.abs(x) > 1 - leg)


OUTLINES = (_box, _ball, _bottle, _blob, _table)
