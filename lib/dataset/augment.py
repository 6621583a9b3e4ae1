"""Augmentation: parameters are drawn from an rng first, then applied, so that a sample is a function of its key.

Source: Integral Human Pose, EpipolarPose (scale, rotation and colour as there); occlusion by pasted objects: Sarandi
et al. 2018; whole frames of several views: SelfPose3d, CVPR 2024.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from lib.dataset.color_ops import cut_patches, random_colors
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


class FrameParams(NamedTuple):
    """What is done to the views of one instant."""

    scale: float = 1.0  # factor on the part of the image that is shown: above 1 zooms out
    rot_deg: float = 0.0
    flip: bool = False
    paint_seeds: tuple[int, ...] = ()  # one per view


@dataclass(frozen=True)
class FrameAugment:
    """Ranges of the augmentation of whole frames; the defaults change nothing.

    All views of an instant are turned, scaled and mirrored alike, so that people keep their places in relation to each other; colours
    and cuts are drawn for each view.
    """

    rot_deg: float = 0.0  # rotation uniform in -rot_deg .. rot_deg
    rot_prob: float = 0.5
    scale: float = 0.0  # zoomed out by 0.1 .. scale, or in by half as much, with even chance
    flip_prob: float = 0.0
    color_ops: int = 0  # colour operations drawn per view, each done every second time (SelfPose3d: 2)
    cuts: tuple[int, int] = (0, 0)  # lowest number of cut-out rectangles and first one that is too large (SelfPose3d: 2, 16)
    cut_px: tuple[int, int] = (20, 40)  # their sides likewise, px of the network's input

    def __post_init__(self):
        if not 0 <= self.scale < 1:
            raise DataError(f"FrameAugment.scale is {self.scale}, expected 0 or more and below 1")
        for name in ("rot_prob", "flip_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"FrameAugment.{name} is {getattr(self, name)}, expected a number in 0..1")
        for name in ("cuts", "cut_px"):
            low, high = getattr(self, name)
            if not (0 <= low < high or low == high == 0):
                raise DataError(f"FrameAugment.{name} is {low}, {high}, expected two rising numbers from 0 on")

    def draw(self, rng: np.random.Generator, views: int) -> FrameParams:
        """Parameters of one instant: always the same draws, so switching one kind off leaves the others as they were."""
        turned, turn, zoomed_out, zoom, flipped = rng.random(5)
        seeds = rng.integers(1 << 62, size=views)
        low = min(0.1, self.scale)
        change = low + (self.scale - low) * zoom
        return FrameParams(
            scale=float(1 + (change if zoomed_out < 0.5 else -change / 2)),
            rot_deg=float(self.rot_deg * (2 * turn - 1)) if turned < self.rot_prob else 0.0,
            flip=bool(flipped < self.flip_prob),
            paint_seeds=tuple(seeds.tolist()),
        )

    def paint(self, patch: np.ndarray, seed: int) -> np.ndarray:
        """Colours, then cuts, of a warped view (H, W, 3) uint8 RGB; the patch may be written into."""
        if not self.color_ops and not self.cuts[1]:
            return patch
        rng = np.random.default_rng(seed)
        patch = random_colors(patch, rng, self.color_ops) if self.color_ops else patch
        return cut_patches(patch, rng, self.cuts, self.cut_px) if self.cuts[1] else patch


def scale_colors(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    """Each channel times its factor, rounded and clipped to 0..255.   (H, W, 3) uint8 -> same"""
    if factors == (1.0, 1.0, 1.0):
        return image
    r, g, b = factors
    return cv2.transform(image, np.array([[r, 0, 0], [0, g, 0], [0, 0, b]]))
