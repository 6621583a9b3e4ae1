"""Colour augmentation of uint8 images with the numbers of the Python Imaging Library, and patches cut out at random.

Sources: RandAugment (Cubuk et al., 2020), the colour operations of SelfPose3d (CVPR 2024); Cutout (DeVries and Taylor, 2017). Most
operations are one table per channel, so that an image is read once.
"""

from collections.abc import Callable

import cv2
import numpy as np

from lib.errors import DataError

LEVELS = 9  # magnitudes 1 .. LEVELS
POSTER_BITS = np.round(np.linspace(8, 4, LEVELS + 1)).astype(int)
CUT_COLOR = (125, 122, 113)  # RGB, the mean of natural images
# Smoothing by the sharpness operation. Thirteenths are never half-way between two integers, so how halves are rounded plays no part.
_KERNEL = np.ones((3, 3), np.float32) / 13
_KERNEL[1, 1] = 5 / 13
_VALUES = np.arange(256)


def color_op(image: np.ndarray, name: str, level: int, sign: int = 1) -> np.ndarray:
    """One operation of COLOR_OPS at magnitude `level` 0..LEVELS.   (H, W, 3) uint8 RGB -> same, never written into

    sign: +1 or -1, the side of the enhancements (sharpness, contrast, color, brightness: factor 1 + sign * level / 10);
    the others have none. Equal to PIL to the last bit.

    Raises:
        DataError: an unknown operation or level.
    """
    if name not in COLOR_OPS or not 0 <= level <= LEVELS:
        raise DataError(f"color_op: {name!r} at level {level}, expected one of {', '.join(COLOR_OPS)} at 0 to {LEVELS}")
    return COLOR_OPS[name](image, level, sign)


def random_colors(image: np.ndarray, rng: np.random.Generator, count: int = 2, share: float = 0.5) -> np.ndarray:
    """`count` operations of uniformly drawn kind and magnitude in their drawn order, each done with chance `share`.

    (H, W, 3) uint8 RGB -> same
    """
    kinds = rng.integers(len(COLOR_OPS), size=count)
    levels = rng.integers(1, LEVELS + 1, size=count)
    signs = rng.integers(2, size=count) * 2 - 1
    done = rng.random(count) < share
    names = tuple(COLOR_OPS)
    for kind, level, sign in zip(kinds[done], levels[done], signs[done], strict=True):
        image = color_op(image, names[kind], int(level), int(sign))
    return image


def cut_patches(
    image: np.ndarray,
    rng: np.random.Generator,
    count: tuple[int, int] = (2, 16),
    side: tuple[int, int] = (20, 40),
) -> np.ndarray:
    """Rectangles of one colour at uniformly drawn centres, clipped at the border.   (H, W, 3) uint8 RGB, written into -> itself

    count, side: lowest number and first one that is too large, of rectangles and of px along each side.
    """
    height, width = image.shape[:2]
    n = int(rng.integers(*count))
    half = rng.integers(*side, size=(n, 2)) / 2
    center = rng.random((n, 2)) * (width, height)
    low = np.maximum(np.rint(center - half), 0).astype(int)
    high = np.rint(center + half).astype(int)
    for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True):
        image[y0:y1, x0:x1] = CUT_COLOR
    return image


def _blend_table(base: float, factor: float) -> np.ndarray:
    """Every value moved away from (factor > 1) or towards `base`; PIL cuts off what is behind the point.   -> (256,) uint8"""
    return np.clip(base + np.float32(factor) * (_VALUES - base).astype(np.float32), 0, 255).astype(np.uint8)


def _blend(base: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """The same between two images.   base, image (H, W, 3) uint8 -> (H, W, 3) uint8"""
    mixed = np.subtract(image, base, dtype=np.float32)
    mixed *= np.float32(factor)
    mixed += base
    return (np.clip(mixed, 0, 255, out=mixed) if factor > 1 else mixed).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """Luminance (ITU-R 601-2) in PIL's integers.   (H, W, 3) uint8 -> (H, W) uint8"""
    r, g, b = cv2.split(image)
    grey = np.multiply(r, 19595, dtype=np.int32)
    grey += np.multiply(g, 38470, dtype=np.int32)
    grey += np.multiply(b, 7471, dtype=np.int32)
    grey += 0x8000
    return (grey >> 16).astype(np.uint8)


def _factor(level: int, sign: int) -> float:
    return 1 + sign * level / 10


def _sharpness(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    if min(image.shape[:2]) < 3:
        return image
    smooth = cv2.filter2D(image, -1, _KERNEL)
    for edge in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:]):  # the outermost pixels stay
        smooth[edge] = image[edge]
    return _blend(smooth, image, _factor(level, sign))


def _contrast(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    return cv2.LUT(image, _blend_table(int(_grey(image).mean(dtype=np.float64) + 0.5), _factor(level, sign)))


def _color(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    return _blend(cv2.merge([_grey(image)] * 3), image, _factor(level, sign))


def _brightness(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    return cv2.LUT(image, _blend_table(0, _factor(level, sign)))


def _posterize(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    return image & np.uint8(256 - (1 << (8 - POSTER_BITS[level])))


def _auto_contrast(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    """Every channel stretched to the whole range."""
    tables = np.empty((256, 3), np.uint8)
    for k in range(3):
        low, high = int(image[..., k].min()), int(image[..., k].max())
        scale = 255.0 / max(high - low, 1)
        stretched = np.clip((_VALUES * scale + -low * scale).astype(int), 0, 255)
        tables[:, k] = stretched if high > low else _VALUES
    return cv2.LUT(image, tables[:, None])


def _equalize(image: np.ndarray, level: int, sign: int) -> np.ndarray:
    """The histogram of every channel flattened."""
    tables = np.empty((256, 3), np.uint8)
    for k in range(3):
        counts = np.bincount(image[..., k].reshape(-1), minlength=256)
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        below = np.append(0, np.cumsum(counts)[:-1])
        tables[:, k] = np.clip((step // 2 + below) // max(step, 1), 0, 255) if step else _VALUES
    return cv2.LUT(image, tables[:, None])


COLOR_OPS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "Sharpness": _sharpness,
    "AutoContrast": _auto_contrast,
    "Posterize": _posterize,
    "Equalize": _equalize,
    "Contrast": _contrast,
    "Color": _color,
    "Brightness": _brightness,
}
