"""The space that cameras share, seen from its side and from above: cameras, space, proposals, people, truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch

from lib.drawing.paint import FAINT, FLOOR, INK, PAPER, RGB, TRUTH, beside, dot, line, mix, to_numpy, write_texts
from lib.geometry.camera import Cameras
from lib.skeleton import Skeleton
from lib.vis import PEOPLE, view_axes

SUPER = 2  # drawn so many times larger and averaged down
GRID_MM = 1000.0  # the floor's squares
CAMERA, SPACE = (66, 72, 84), (150, 178, 222)
TOP = 90.0  # degrees of elevation
EDGES = ((0, 1), (1, 3), (3, 2), (2, 0), (4, 5), (5, 7), (7, 6), (6, 4), (0, 4), (1, 5), (2, 6), (3, 7))  # of a box


def person_color(number: int) -> RGB:
    """The colour of a person in all pictures."""
    return PEOPLE[number % len(PEOPLE)]


def frusta(cameras: Cameras) -> np.ndarray:
    """Corners of the cameras' pictures, from the upper left one clockwise, at a depth that is seen well, and the centres.

    cameras (V,) -> (V,5,3) mm of the world
    """
    cams = cameras.to("cpu", torch.float64)
    K = cams.K.numpy()
    size = np.where(cams.size.numpy() > 0, cams.size.numpy(), 2 * K[:, :2, 2])  # where unknown: the axis is in the middle
    corner = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])[None] * size[:, None]
    ray = np.concatenate([corner, np.ones((*corner.shape[:2], 1))], -1) @ np.linalg.inv(K).transpose(0, 2, 1)
    R, t = cams.R.numpy(), cams.t.numpy()
    depth = 0.09 * max(2000.0, np.linalg.norm(np.ptp(-np.einsum("vij,vi->vj", R, t), axis=0)))
    seen = np.concatenate([ray * depth, np.zeros((len(K), 1, 3))], 1)
    return np.einsum("vij,vni->vnj", R, seen - t[:, None])


@dataclass(frozen=True, eq=False)
class SpaceView:
    """An orthographic view that holds all cameras; what stays from picture to picture is drawn once."""

    cameras: Cameras  # (V,)
    skeleton: Skeleton
    names: Sequence[str] = ()  # of the cameras
    space: tuple[Sequence[float], Sequence[float]] | None = None  # size and center, mm
    size: tuple[int, int] = (480, 420)  # width, height in px
    azimuth: float = 35.0
    elevation: float = 24.0  # TOP looks straight down
    up: str = "z"
    floor_mm: float = 0.0  # height of the floor in the world
    around: np.ndarray | None = None  # (N,3) mm, more points that must be seen, such as all people of a film

    @cached_property
    def _axes(self) -> np.ndarray:
        return view_axes(self.up, self.azimuth, self.elevation)

    @cached_property
    def _frusta(self) -> np.ndarray:
        return frusta(self.cameras)

    @cached_property
    def _box(self) -> np.ndarray | None:
        if self.space is None:
            return None
        size, center = (np.asarray(v, float) for v in self.space)
        sign = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)
        return center + sign * size

    @cached_property
    def _points(self) -> np.ndarray:
        """What must be seen besides the space.   -> (N,3) mm"""
        points = self._frusta.reshape(-1, 3)
        points = points if self.around is None else np.concatenate([points, np.asarray(self.around, float).reshape(-1, 3)])
        return points[np.isfinite(points).all(-1)]

    @cached_property
    def _frame(self) -> tuple[np.ndarray, float]:
        """Middle of the picture in the viewer's axes (2,) mm, and px per mm of the large canvas."""
        points = self._points if self._box is None else np.concatenate([self._points, self._box])
        seen = points @ self._axes[:2].T
        low, high = seen.min(0), seen.max(0)
        scale = (np.array(self.size) * SUPER / np.maximum(high - low, 1000.0)).min() * 0.88
        return (low + high) / 2, float(scale)

    def place(self, X) -> np.ndarray:
        """Where points lie in the picture.   (..., 3) mm -> (..., 2) px"""
        return (self._large(np.asarray(X, float)) + 0.5) / SUPER - 0.5

    def _large(self, X: np.ndarray) -> np.ndarray:
        middle, scale = self._frame
        return (X @ self._axes[:2].T - middle) * (scale, -scale) + np.array(self.size) * SUPER / 2

    @cached_property
    def _background(self) -> np.ndarray:
        canvas = np.full((self.size[1] * SUPER, self.size[0] * SUPER, 3), FLOOR, np.uint8)
        right, up, ahead = view_axes(self.up)
        across, along = self._points @ right, self._points @ ahead
        low = np.floor(np.array([across.min(), along.min()]) / GRID_MM) * GRID_MM
        high = np.ceil(np.array([across.max(), along.max()]) / GRID_MM) * GRID_MM
        base = self.floor_mm * up
        for axis, (one, other) in enumerate(((right, ahead), (ahead, right))):
            for at in np.arange(low[axis], high[axis] + 1, GRID_MM):
                ends = base + at * one + np.array([[low[1 - axis]], [high[1 - axis]]]) * other
                strong = abs(at) < 1
                line(canvas, *self._large(ends), (196, 202, 212) if strong else (224, 228, 234), SUPER * (1.2 if strong else 0.8))
        if self._box is not None:
            corners = self._large(self._box)
            for a, b in EDGES:
                line(canvas, corners[a], corners[b], SPACE, SUPER * 1.0)
        for corners in self._large(self._frusta):
            cv2.fillPoly(canvas, [np.rint(corners[:4]).astype(np.int32)], mix(CAMERA, FLOOR, 0.8), cv2.LINE_AA)
            for a, b in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4), (2, 4), (3, 4)):
                line(canvas, corners[a], corners[b], CAMERA, SUPER * 1.1)
            dot(canvas, corners[4], 2.6 * SUPER, CAMERA)
        return canvas

    def draw(self, X=None, numbers: Sequence[int] | None = None, truth=None, proposals=None) -> np.ndarray:
        """The space with the people of one instant.

        Args:
            X: (P,J,3) mm; joints that are not finite are left out.
            numbers: of the people, which decide their colours and are written beside them; None = by order, not written.
            truth: (P',J,3) mm, drawn grey and dashed.
            proposals: (N,3) mm, where people were suspected: rings.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        canvas, texts = self._background.copy(), []
        width = SUPER * max(1.6, min(self.size) / 190)
        for pose in self._poses(truth):
            self._bones(canvas, pose, TRUTH, 0.7 * width, dash=3 * width)
        people = self._poses(X)
        ahead = np.nan_to_num(people @ self._axes[2], nan=0.0).mean(1) if len(people) else np.zeros(0)
        for i in np.argsort(-ahead):  # far people first
            number = i if numbers is None else int(numbers[i])
            color = person_color(number)
            self._shadow(canvas, people[i], width)
            self._bones(canvas, people[i], mix(color, INK, 0.55), width + 1.2 * SUPER)
            self._bones(canvas, people[i], color, width)
            known = people[i][np.isfinite(people[i]).all(-1)]
            if len(known) and numbers is not None:
                at = self.place(known)
                texts.append(((at[:, 0].max() + 4, at[:, 1].min() - 5), str(number), 12.5, mix(color, INK, 0.25), True))
        for point in np.zeros((0, 3)) if proposals is None else to_numpy(proposals).astype(float).reshape(-1, 3):
            at = tuple(np.rint(self._large(point)).astype(int).tolist())
            cv2.circle(canvas, at, round(0.02 * min(self.size) * SUPER), INK, max(1, round(SUPER * 0.9)), cv2.LINE_AA)
        picture = cv2.resize(canvas, self.size, interpolation=cv2.INTER_AREA)
        corners = self.place(self._frusta)
        behind = corners[:, 4] - corners[:, :4].mean(1)  # a name stands behind its camera, where nothing is drawn
        behind = behind / np.maximum(np.linalg.norm(behind, axis=1, keepdims=True), 1e-6)
        for v, name in enumerate(self.names):
            wide = 7.3 * len(name)
            x, y = corners[v, 4] + behind[v] * (10 + wide / 2, 12) - (wide / 2, 7)
            texts.append(((min(max(x, 2), self.size[0] - wide), min(max(y, 2), self.size[1] - 15)), name, 11, FAINT, False))
        write_texts(picture, texts)
        return picture

    def _poses(self, X) -> np.ndarray:
        return np.zeros((0, self.skeleton.num, 3)) if X is None else to_numpy(X).astype(float).reshape(-1, self.skeleton.num, 3)

    def _shadow(self, canvas: np.ndarray, pose: np.ndarray, width: float) -> None:
        up = view_axes(self.up)[1]
        self._bones(canvas, pose - (pose @ up - self.floor_mm)[:, None] * up, (214, 219, 227), 1.3 * width)

    def _bones(self, canvas: np.ndarray, pose: np.ndarray, color: RGB, width: float, dash: float = 0.0) -> None:
        at, known = self._large(pose), np.isfinite(pose).all(-1)
        for a, b in self.skeleton.bones:
            if known[a] and known[b]:
                pieces = max(1, round(np.linalg.norm(at[b] - at[a]) / dash)) if dash else 1
                for i in range(pieces):
                    start, end = i / pieces, (i + (0.55 if dash else 1.0)) / pieces
                    line(canvas, at[a] + start * (at[b] - at[a]), at[a] + end * (at[b] - at[a]), color, width)
        for j in np.flatnonzero(known):
            dot(canvas, at[j], 0.75 * width, color)


def space_sheet(
    cameras: Cameras,
    skeleton: Skeleton,
    X=None,
    truth=None,
    proposals=None,
    space: tuple[Sequence[float], Sequence[float]] | None = None,
    names: Sequence[str] = (),
    height: int = 420,
) -> np.ndarray:
    """Scene and top view of one instant beside each other; arguments as for SpaceView.   -> (height + a head, W, 3) uint8 RGB"""
    points = [to_numpy(p).reshape(-1, 3) for p in (X, truth) if p is not None and len(p)]
    around = np.concatenate(points) if points else None
    panels = []
    for title, width, elevation, azimuth in (("scene", round(1.4 * height), 24.0, 35.0), ("from above", height, TOP, 0.0)):
        view = SpaceView(cameras, skeleton, names, space, (width, height), azimuth, elevation, around=around)
        head = np.full((22, width, 3), PAPER, np.uint8)
        write_texts(head, [((2, 4), title, 12.5, FAINT, True)])
        panels.append(np.concatenate([head, view.draw(X, None, truth, proposals)]))
    return beside(panels, 6)
