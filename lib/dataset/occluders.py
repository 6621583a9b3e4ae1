"""Synthetic occlusion: cut-out objects pasted into training images (Sarandi et al. 2018; numbers as in
EpipolarPose).
"""

from collections.abc import Sequence

import cv2
import numpy as np

from lib.errors import DataError

MAX_OBJECTS = 7  # pasted per image: uniform in 1..7
SIZE_FACTORS = (0.2, 1.0)  # uniform range of the object's scale in a patch of REFERENCE_SIZE
REFERENCE_SIZE = 256.0  # px, shorter patch side for which the objects' stored size was chosen
HALVINGS = 3  # stored reductions of each object: 1/2, 1/4, 1/8
RIM_ALPHA = 192  # of the outline, so that it blends; the inside is opaque
RIM_KERNEL = 8  # px, the outline is what an erosion with this ellipse removes


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
        # Halved copies: reducing from the next larger one costs a fraction of reducing from the original each time.
        self.levels = [self.objects]
        for _ in range(HALVINGS):
            self.levels.append([resize(item, 0.5) for item in self.levels[-1]])

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
            level = int(np.clip(np.floor(-np.log2(factor)), 0, HALVINGS))
            paste(image, resize(self.levels[level][index], factor * 2**level), center)
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
    alpha = source[..., 3:].astype(np.float32) * np.float32(1 / 255)
    target[:] = alpha * source[..., :3] + (1 - alpha) * target


def soft_rim(mask: np.ndarray) -> np.ndarray:
    """Alpha channel of an object's mask (h, w) bool: opaque inside, its rim part transparent.   -> (h, w) uint8"""
    solid = np.pad(mask, RIM_KERNEL).astype(np.uint8)  # the border of the cut-out is an outline, too
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (RIM_KERNEL, RIM_KERNEL))
    inside = cv2.erode(solid, kernel)[RIM_KERNEL:-RIM_KERNEL, RIM_KERNEL:-RIM_KERNEL]
    return np.where(inside > 0, 255, np.where(mask, RIM_ALPHA, 0)).astype(np.uint8)


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
