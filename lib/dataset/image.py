"""Reading and warping images, and what a network expects of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from lib.errors import DataError

COLORS = ("rgb", "bgr")
# RGB on 0..255, as torchvision's weights expect
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
# What the networks of Zhou et al., ICCV 2017, were trained on: BGR over 256, with ImageNet's numbers for red on blue and the reverse ...
HG3D = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 256, "color": "bgr"}
# ... and without them, for their hourglasses
HG3D_HOURGLASS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1 / 256, "color": "bgr"}
# What the release of 3D human pose machines (TPAMI 2020) was trained on: BGR, (x - 128) / 256
MACHINE = {"mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0), "scale": 1 / 256, "color": "bgr"}


@dataclass(frozen=True)
class ImageSpec:
    """What a network eats. It belongs to the weights and is stored with them: x = (image * scale - mean) / std.

    `mean` and `std` are per channel in the order of `color`, on the scale of `image * scale`, where image is 0..255.
    """

    size: tuple[int, int] = (256, 256)  # width, height px
    mean: tuple[float, float, float] = IMAGENET["mean"]
    std: tuple[float, float, float] = IMAGENET["std"]
    scale: float = 1.0
    color: str = "rgb"  # rgb or bgr: channel order of the network's input; images in batches are always RGB

    def __post_init__(self):
        for name, kind, length in (("size", int, 2), ("mean", float, 3), ("std", float, 3)):
            value = getattr(self, name)
            if len(value) != length:
                raise DataError(f"ImageSpec.{name} is {value}, expected {length} numbers")
            object.__setattr__(self, name, tuple(kind(v) for v in value))
        if min(self.size) < 1 or min(self.std) <= 0:
            raise DataError(f"ImageSpec: size {self.size} and std {self.std} must be positive")
        if self.color not in COLORS:
            raise DataError(f"ImageSpec.color is {self.color!r}, expected one of {', '.join(COLORS)}")

    def to_dict(self) -> dict:
        """Plain values, as a checkpoint stores them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @staticmethod
    def from_dict(values: dict) -> ImageSpec:
        """The inverse of `to_dict`; DataError for a field that is unknown."""
        known = [f.name for f in dataclasses.fields(ImageSpec)]
        extra = sorted(set(values) - set(known))
        if extra:
            raise DataError(
                f"image spec has unknown fields {extra}, expected some of {known}; was it written by a newer version?"
            )
        return ImageSpec(**values)

    def normalize(self, image: Tensor) -> Tensor:
        """RGB image 0..255 to network input, on its device.   (..., 3, H, W) uint8 -> float32; a float type stays"""
        dtype = image.dtype if image.is_floating_point() else torch.float32
        std = torch.tensor(self.std, dtype=dtype, device=image.device)[:, None, None]
        mean = torch.tensor(self.mean, dtype=dtype, device=image.device)[:, None, None]
        if self.color == "bgr":
            image = image.flip(-3)
        # A third faster on a CPU than addcmul, which is not vectorised for broadcast operands.
        return image.to(dtype, copy=True).mul_(self.scale / std).add_(-mean / std)

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`, for pictures.   (..., 3, H, W) float -> uint8 RGB"""
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device)[:, None, None]
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device)[:, None, None]
        image = ((x * std + mean) / self.scale).round().clamp(0, 255).to(torch.uint8)
        return image.flip(-3) if self.color == "bgr" else image


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB.

    Args:
        upright: turn it as its EXIF orientation says, as viewers do. Labels of data sets are in stored pixels, which are not turned.

    Raises:
        DataError: with the path, when the file is missing, empty, cut short or not an image.
    """
    return cv2.cvtColor(read_bgr(path, upright), cv2.COLOR_BGR2RGB)


def read_bgr(path: str | Path, upright: bool = False) -> np.ndarray:
    """As `read_image`, in OpenCV's channel order: saves a pass over the full frame where only a crop is wanted."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such image; check the path, or DATASET.ROOT and that the images were extracted there") from None
    except OSError as error:
        raise DataError(
            f"{path}: the image cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    if not data:
        raise DataError(f"{path}: the image is empty (0 bytes); copy or extract it again")
    if is_truncated(data):
        # OpenCV would return the part that is there, and grey below it, without a word.
        raise DataError(
            f"{path}: the image is cut short (its end marker is missing, {len(data)} bytes); copy or extract it again"
        )
    try:
        flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # too large for OpenCV, for example
        image = None
    if image is None:
        raise DataError(
            f"{path}: not an image that OpenCV can read ({len(data)} bytes); expected JPEG, PNG or the like"
        )
    return image


def is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG file ends before its end marker; other kinds of file are never called truncated."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return b"IEND\xaeB`\x82" not in data[-4096:] and b"IEND\xaeB`\x82" not in data
    if data[:2] != b"\xff\xd8":
        return False
    # An EXIF thumbnail holds an end marker of its own: only one behind the start of the scan (marker SOS) counts.
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:
        if data[position + 1] == 0xFF:  # fill byte
            position += 1
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return data.rfind(b"\xff\xd9") < position


def warp(image: np.ndarray, patch_from_img: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The patch that an affine cuts out of an image: bilinear, black outside.

    image (H, W, 3) uint8, patch_from_img (2, 3) px, size = (width, height) px -> (height, width, 3) uint8
    """
    width, height = size
    (a, b, u), (c, d, v) = patch_from_img.tolist()
    det = a * d - b * c
    corners = [(x - u, y - v) for x in (0, width - 1) for y in (0, height - 1)]
    xs, ys = [(d * x - b * y) / det for x, y in corners], [(a * y - c * x) / det for x, y in corners]
    # Only what the patch shows, with a rim for the interpolation; beyond the image's own border all is black.
    x0, x1 = (int(min(max(e, 0), image.shape[1])) for e in (min(xs) - 2, max(xs) + 4))
    y0, y1 = (int(min(max(e, 0), image.shape[0])) for e in (min(ys) - 2, max(ys) + 4))
    if x0 >= x1 or y0 >= y1:
        return np.zeros((height, width, 3), np.uint8)
    shifted = np.array([[a, b, u + a * x0 + b * y0], [c, d, v + c * x0 + d * y0]])
    # OpenCV warps four channels more than twice as fast as three.
    source = cv2.cvtColor(image[y0:y1, x0:x1], cv2.COLOR_BGR2BGRA)
    patch = cv2.warpAffine(source, shifted, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return cv2.cvtColor(patch, cv2.COLOR_BGRA2BGR)
