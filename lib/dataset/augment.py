"""Augmentation: parameters are drawn from an rng first, then applied, so that a sample is a function of its key.

Source: Integral Human Pose, EpipolarPose (scale, rotation and colour as there); occlusion by pasted objects: Sarandi
et al. 2018.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from lib.dataset.occluders import Occluders
from lib.errors import DataError

MAX_DEVIATIONS = {"scale": 1.0, "rot": 2.0}  # normal draws are clipped at this many standard deviations


class Params(NamedTuple):
    """What is done to one image."""

    scale: float = 1.0  # factor on the box: above 1 shows the person smaller
    rot_deg: float = 0.0  # of the box, clockwise
    flip: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors on R, G, B
    occlusion_seed: int = 0


NEUTRAL = Params()


@dataclass(frozen=True)
class Augment:
    """Ranges of the augmentation; the defaults change nothing."""

    scale: float = 0.0  # box scale 1 + scale * N(0,1) clipped at 1 deviation
    rot_deg: float = 0.0  # rotation rot_deg * N(0,1) clipped at 2 deviations, degrees
    rot_prob: float = 0.6  # share of the images that are rotated
    color: float = 0.0  # factor per RGB channel, uniform in 1 - color .. 1 + color
    flip_prob: float = 0.0
    occluders: Occluders | None = None  # objects pasted into every image

    def __post_init__(self):
        if not 0 <= self.scale < 1:
            raise DataError(
                f"Augment.scale is {self.scale}, expected 0 or more and below 1, where the box would vanish"
            )
        for name in ("rot_prob", "flip_prob", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"Augment.{name} is {getattr(self, name)}, expected a number in 0..1")

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one image: always the same draws, so switching one kind off leaves the others as they were."""
        size, turn = rng.standard_normal(2)
        turned, flipped, *color = rng.random(5)
        seed = int(rng.integers(1 << 62))
        size = min(max(size, -MAX_DEVIATIONS["scale"]), MAX_DEVIATIONS["scale"])  # np.clip takes ten times as long
        turn = min(max(turn, -MAX_DEVIATIONS["rot"]), MAX_DEVIATIONS["rot"])
        return Params(
            scale=float(1 + self.scale * size),
            rot_deg=float(self.rot_deg * turn) if turned < self.rot_prob else 0.0,
            flip=bool(flipped < self.flip_prob),
            color=tuple(float(1 + self.color * (2 * c - 1)) for c in color),
            occlusion_seed=seed,
        )

    def paint(self, patch: np.ndarray, params: Params) -> np.ndarray:
        """Occlusion, then colour, of a warped patch (H, W, 3) uint8 RGB; the patch may be written into."""
        if self.occluders is not None:
            patch = self.occluders.paste_random(patch, np.random.default_rng(params.occlusion_seed))
        return scale_colors(patch, params.color)


def scale_colors(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """Each channel times its factor, rounded and clipped to 0..255.   (H, W, 3) uint8 -> same"""
    if factors == (1.0, 1.0, 1.0):
        return image
    r, g, b = factors
    return cv2.transform(image, np.array([[r, 0, 0], [0, g, 0], [0, 0, b]]))
