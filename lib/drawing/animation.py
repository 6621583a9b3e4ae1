"""Motion pictures of poses: the input with its keypoints, and 3D poses walking over a floor beside it.

Pictures are made one after another from a video that is read one frame after another, so a clip of any length needs the memory of one
frame. A 3D panel is drawn with OpenCV in perspective: bones are sorted by depth, the view follows the person, the floor stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from lib.drawing.paint import FAINT, FLOOR, INK, PAPER, RGB, beside, dot, line, mix, write_texts
from lib.errors import DataError
from lib.skeleton import Skeleton
from lib.video import Video
from lib.vis import bone_colors, draw_skeleton_2d

SUPER = 2  # panels are drawn this many times larger and averaged down
GAP = 8  # px between panels
HEAD = 26  # px above the panels, for their names
TILE_MM = 500.0  # of the floor's chequers
DISTANCE = 4.2  # of the viewer, in heights of the view's half: mild perspective
BODY_MM = 26.0  # radius of a bone, thick enough to be seen in a small GIF
LEAST_HALF_MM, MARGIN = 1000.0, 1.12  # half of the height that a panel shows, at least, and around the poses
SMOOTH_S = 0.6  # the view follows the root averaged over so many seconds to each side
LIGHT, DARK = (250, 251, 253), (232, 236, 242)  # the floor's chequers
SHADE = (196, 203, 214)


@dataclass(frozen=True)
class Stage:
    """A view of a floor with one person on it; poses stand upright: z up, floor at 0, y ahead, x right, in mm."""

    skeleton: Skeleton
    size: int = 480  # px, side of the picture
    azimuth: float = 0.0  # degrees; 0 looks along y, positive walks to the viewer's right
    elevation: float = 12.0  # degrees the viewer is raised
    half_mm: float = 1150.0  # half of the picture's height, at the middle of the view

    def axes(self) -> np.ndarray:
        """The viewer's axes as rows: right, up, into the picture.   -> (3, 3)"""
        a, e = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        right = np.array([np.cos(a), np.sin(a), 0.0])
        level = np.array([-np.sin(a), np.cos(a), 0.0])
        up = np.array([0.0, 0.0, 1.0])
        return np.stack([right, np.cos(e) * up + np.sin(e) * level, np.cos(e) * level - np.sin(e) * up])

    def project(self, X, middle) -> tuple[np.ndarray, np.ndarray]:
        """Where points are seen by a viewer turned to `middle`.   X (..., 3), middle (3,) mm -> (..., 2) px, mm per px (...)"""
        seen = (np.asarray(X, float) - middle) @ self.axes().T
        distance = DISTANCE * self.half_mm
        depth = np.maximum(distance + seen[..., 2], 0.1 * distance)
        mm_per_px = depth / distance * (2 * self.half_mm / self.size)
        at = seen[..., :2] * (1.0, -1.0) / mm_per_px[..., None] + (self.size - 1) / 2
        return at, mm_per_px

    def draw(self, X, middle) -> np.ndarray:
        """One pose on the floor.

        Args:
            X: (J, 3) mm, upright; joints that are not finite are left out.
            middle: (3,) mm, what the viewer looks at.

        Returns:
            (size, size, 3) uint8 RGB.
        """
        X, middle = np.asarray(X, float), np.asarray(middle, float)
        big = np.full((self.size * SUPER, self.size * SUPER, 3), PAPER, np.uint8)
        self._paint_floor(big, middle)
        self._paint_shadow(big, X, middle)
        self._paint_body(big, X, middle)
        return cv2.resize(big, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def _large(self, X: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`project` onto the larger canvas that is averaged down."""
        at, mm_per_px = self.project(X, middle)
        return (at + 0.5) * SUPER - 0.5, mm_per_px / SUPER

    def _paint_floor(self, canvas: np.ndarray, middle: np.ndarray) -> None:
        reach = 2.4 * self.half_mm
        first = np.floor((middle[:2] - reach) / TILE_MM).astype(int)
        last = np.ceil((middle[:2] + reach) / TILE_MM).astype(int)
        i, j = np.meshgrid(*(np.arange(a, b) for a, b in zip(first, last, strict=True)), indexing="ij")
        corner = np.stack([i, j], -1).reshape(-1, 2)
        away = np.linalg.norm((corner + 0.5) * TILE_MM - middle[:2], axis=1) / reach
        near = away < 1
        around = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        tiles = np.pad((corner[near, None] + around) * TILE_MM, ((0, 0), (0, 0), (0, 1)))
        for polygon, (a, b), fade in zip(self._large(tiles, middle)[0], corner[near], away[near] ** 2, strict=True):
            color = mix(DARK if (a + b) % 2 else LIGHT, PAPER, float(fade))
            cv2.fillConvexPoly(canvas, np.rint(polygon * 16).astype(np.int32), color, cv2.LINE_AA, 4)

    def _paint_shadow(self, canvas: np.ndarray, X: np.ndarray, middle: np.ndarray) -> None:
        small = np.zeros((self.size // 2, self.size // 2), np.uint8)
        at, mm_per_px = self.project(X * (1.0, 1.0, 0.0), middle)
        at, mm_per_px = (at + 0.5) / 2 - 0.5, mm_per_px * 2
        for a, b in self.skeleton.bones:
            if np.isfinite(at[[a, b]]).all():
                line(small[..., None], at[a], at[b], (255,), 3.0 * BODY_MM / mm_per_px[a])
        soft = cv2.GaussianBlur(small, (0, 0), max(0.8, 0.9 * BODY_MM * self.size / (4 * self.half_mm)))
        share = cv2.resize(soft, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)[..., None].astype(np.uint16)
        low, high = np.flatnonzero(share.any((1, 2)))[[0, -1]] if share.any() else (0, -1)
        rows = slice(low, high + 1)
        canvas[rows] = (canvas[rows] * (255 - share[rows]) + np.array(SHADE, np.uint16) * share[rows]) // 255

    def _paint_body(self, canvas: np.ndarray, X: np.ndarray, middle: np.ndarray) -> None:
        at, mm_per_px = self._large(X, middle)
        known = np.isfinite(X).all(-1)
        radius = BODY_MM / mm_per_px
        depth = (X - middle) @ self.axes()[2] / self.half_mm  # -1 .. 1 for an upright person
        bones = self.skeleton.bones
        jobs = [(e, a, b) for e, (a, b) in enumerate(bones) if known[a] and known[b]]
        colors = bone_colors(self.skeleton)
        for e, a, b in sorted(jobs, key=lambda job: -(depth[job[1]] + depth[job[2]])):
            color = mix(colors[e], FLOOR, float(np.clip(0.12 + 0.35 * (depth[a] + depth[b]) / 2, 0.0, 0.4)))
            for grow, paint in ((1.3 * SUPER, mix(color, INK, 0.6)), (0.0, color)):
                _capsule(canvas, at[a], at[b], radius[a] + grow, radius[b] + grow, paint)
            aside = np.array([-0.3, -0.35]) * radius[[a, b], None]  # light from the upper left rounds the limb
            _capsule(canvas, *(at[[a, b]] + aside), 0.28 * radius[a], 0.28 * radius[b], mix(color, PAPER, 0.38))


def _capsule(canvas: np.ndarray, a: np.ndarray, b: np.ndarray, ra: float, rb: float, color: RGB) -> None:
    """A limb with round ends that tapers from radius `ra` at `a` to `rb` at `b`."""
    if max(np.abs(a).max(), np.abs(b).max()) > 4 * max(canvas.shape):
        return  # far outside the picture
    along = b - a
    length = float(np.linalg.norm(along))
    if length > 1e-3:
        side = np.array([-along[1], along[0]]) / length
        outline = np.stack([a + ra * side, b + rb * side, b - rb * side, a - ra * side])
        cv2.fillConvexPoly(canvas, np.rint(outline * 16).astype(np.int32), color, cv2.LINE_AA, 4)
    dot(canvas, a, ra, color)
    dot(canvas, b, rb, color)


def followed(poses: np.ndarray, root: int, fps: float) -> tuple[np.ndarray, float]:
    """What the view looks at in each frame, and half of the height it shows.

    The path of the root over the floor, smoothed, at half of the person's height.   poses (T,J,3) mm -> (T,3) mm, mm
    """
    reach = max(1, round(SMOOTH_S * fps))
    path = np.pad(poses[:, root, :2], ((reach, reach), (0, 0)), mode="edge")
    total = np.pad(np.cumsum(path, 0), ((1, 0), (0, 0)))
    path = (total[2 * reach + 1 :] - total[: -2 * reach - 1]) / (2 * reach + 1)
    height = float(np.percentile(poses[..., 2].max(1), 95)) / 2
    aside = np.linalg.norm(poses[..., :2] - path[:, None], axis=-1).max(1)
    half = MARGIN * max(float(np.percentile(aside, 98)), height + 150.0, LEAST_HALF_MM / MARGIN)
    return np.column_stack([path, np.full(len(path), height)]), half


@dataclass(frozen=True, eq=False)
class Film:
    """A clip: its keypoints and, by name, its poses; every picture shows them side by side.

    Raises:
        DataError: poses and keypoints have different numbers of frames, there is nothing left to show, or the video has another shape.
    """

    keypoints: np.ndarray  # (T,J_in,2) px; NaN is left out
    layout: Skeleton
    poses: Mapping[str, np.ndarray]  # title -> (T,J,3) mm, upright (z up, floor at 0)
    skeleton: Skeleton
    size: tuple[int, int]  # width, height of the images in px
    fps: float  # frames per second of the keypoints
    video: Video | None = None  # drawn below the keypoints; None = an empty canvas
    height: int = 480  # px of a panel
    azimuth: float = 0.0
    elevation: float = 12.0
    skip: int = 0  # frames left out at the beginning
    limit: int | None = None  # frames shown at most, from there
    downsample: int = 1  # so many frames are averaged into one picture

    def __post_init__(self):
        for title, X in self.poses.items():
            if X.shape != (len(self.keypoints), self.skeleton.num, 3):
                found = f"{len(self.keypoints)} frames of keypoints"
                raise DataError(f"{title}: poses of shape {X.shape}, expected ({found}, {self.skeleton.num}, 3)")
        if len(self) == 0:
            raise DataError(f"film: nothing is left of {len(self.keypoints)} frames after --skip {self.skip}; show more")
        if self.video is not None:
            ratio = np.array([self.video.width, self.video.height]) / self.size
            if abs(ratio[0] / ratio[1] - 1) > 0.02:
                raise DataError(
                    f"{self.video.path}: pictures of {self.video.width} x {self.video.height} px, but the keypoints belong to "
                    f"{self.size[0]} x {self.size[1]}; give the video in which they were found"
                )

    def __len__(self) -> int:
        """Pictures."""
        frames = max(0, len(self.keypoints) - self.skip)
        return -(-min(frames, self.limit or frames) // self.downsample)

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.fps / self.downsample

    def pictures(self) -> Iterator[np.ndarray]:
        """The pictures, (height + a head, width, 3) uint8 RGB, made as they are asked for."""
        last = len(self.keypoints) if self.limit is None else min(len(self.keypoints), self.skip + self.limit)
        starts = range(self.skip, last, self.downsample)
        x = np.stack([self.keypoints[a : min(a + self.downsample, last), :, :2].mean(0) for a in starts])
        shown = {title: np.stack([X[a : min(a + self.downsample, last)].mean(0) for a in starts]) for title, X in self.poses.items()}
        views = [(X, *followed(X, self.skeleton.root_index, self.rate)) for X in shown.values()]
        half = max((h for *_, h in views), default=LEAST_HALF_MM)
        stage = Stage(self.skeleton, self.height, self.azimuth, self.elevation, half)
        scale = self.height / self.size[1]
        width = max(1, round(self.size[0] * scale))
        head = self._head(width)
        frames = self._backgrounds(width, last)
        for i, image in zip(range(len(x)), frames, strict=False):
            panels = [draw_skeleton_2d(image, (x[i] + 0.5) * scale - 0.5, self.layout)]
            panels += [stage.draw(X[i], middle[i]) for X, middle, _ in views]
            yield np.concatenate([head, beside(panels, GAP)])

    def _head(self, width: int) -> np.ndarray:
        """The names of the panels."""
        total = width + len(self.poses) * (self.height + GAP)
        head = np.full((HEAD, total, 3), PAPER, np.uint8)
        left = [0] + [width + GAP + i * (self.height + GAP) for i in range(len(self.poses))]
        names = ["input", *self.poses]
        write_texts(head, [((x + 3, 5), name, 13.0, FAINT, True) for x, name in zip(left, names, strict=True)])
        return head

    def _backgrounds(self, width: int, last: int) -> Iterator[np.ndarray]:
        """What lies below the keypoints of each picture; a video that ends early holds its last frame."""
        image = np.full((self.height, width, 3), FLOOR, np.uint8)
        if self.video is None:
            while True:
                yield image
        total, count = None, 0
        for number, frame in self.video.frames(limit=last):
            if number < self.skip:
                continue
            small = cv2.resize(frame, (width, self.height), interpolation=cv2.INTER_AREA)
            total, count = small.astype(np.uint32) if total is None else total + small, count + 1
            if count == self.downsample:
                image, total, count = (total // count).astype(np.uint8), None, 0
                yield image
        if count:
            image = (total // count).astype(np.uint8)
        while True:
            yield image
