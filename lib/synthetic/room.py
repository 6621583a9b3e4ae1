"""Rooms: floor, walls with doors, windows and pictures, furniture of boxes; traced once per camera and kept as its
backdrop.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lib.geometry.camera import Cameras
from lib.synthetic.body import rotation
from lib.synthetic.motion import Seat
from lib.synthetic.render import FLOOR, FLOOR_CELLS, NEAR, Light, View, ball_boxes, flat_pairs, pixel_ranges
from lib.synthetic.texture import noise
from lib.synthetic.wardrobe import FABRICS, palette

WALLS = palette("d1ccbf b2bdc7 c7b89e 9eb29e d6d6db b89985 738094")
FLOORS = palette("8f6642 6b472e ad8f6b 8c8c8a 666e7a 5c6b5c a89e8f")
WOODS = palette("9e7045 614029 ccb28a d9d6cc 2e2e33 993329 385c7a")


class Boxes(NamedTuple):
    """Furniture: K boxes that stand upright, turned about z."""

    center: np.ndarray  # (K,3) mm
    heading: np.ndarray  # (K,) rad
    half: np.ndarray  # (K,3) mm
    color: np.ndarray  # (K,3) 0..1 display values

    @staticmethod
    def join(parts: list["Boxes"]) -> "Boxes":
        """All boxes of several lists, none of no list."""
        empty = Boxes(np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3)), np.zeros((0, 3)))
        return Boxes(*(np.concatenate(v) for v in zip(empty, *parts, strict=True)))


class Decal(NamedTuple):
    """A rectangle on a wall."""

    wall: int  # 0 x+, 1 x-, 2 y+, 3 y-
    low: tuple[float, float]  # mm along the wall, height
    high: tuple[float, float]
    kind: str  # door window picture shelf board
    color: np.ndarray  # (3,)
    other: np.ndarray  # (3,)


@dataclass(frozen=True)
class Room:
    """An empty room around the world's origin, and its light."""

    half: tuple[float, float]  # mm, x and y
    height: float
    wall: np.ndarray  # (4,3)
    floor: np.ndarray  # (2,3) its two colours
    pattern: str  # planks tiles carpet checker concrete
    period: float  # mm
    turn: float  # rad, of the floor's pattern
    decals: tuple[Decal, ...]
    light: Light
    shift: np.ndarray  # (2,) where the patterns start

    @staticmethod
    def draw(rng: np.random.Generator, reach: np.ndarray, painted: bool = True) -> "Room":
        """A room with all of |x|, |y| <= reach (2,) mm inside, where the cameras are; the walls stay bare unless
        painted.
        """
        half = np.maximum(reach + rng.uniform(350, 900, 2), 2600)
        height = float(rng.uniform(2700, 3600))
        base = WALLS[rng.integers(len(WALLS))] * rng.uniform(0.85, 1.08)
        wall = np.clip(base + rng.normal(0, 0.015, (4, 3)), 0.1, 0.95)
        if rng.random() < 0.35:
            wall[rng.integers(4)] = FABRICS[rng.integers(len(FABRICS))] * 0.6 + 0.25
        floor = FLOORS[rng.integers(len(FLOORS))] * rng.uniform(0.8, 1.15)
        other = np.clip(floor * rng.uniform(0.6, 1.25) + rng.normal(0, 0.02, 3), 0.05, 0.95)
        azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.9, 1.35)
        direction = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        tint = 1 + rng.normal(0, 0.05) * np.array([1.0, 0.1, -1.0])
        pattern = ("planks", "planks", "planks", "tiles", "tiles", "carpet", "carpet", "checker", "concrete")[rng.integers(9)]
        return Room(
            half=(float(half[0]), float(half[1])),
            height=height,
            wall=wall,
            floor=np.stack([floor, other]),
            pattern=pattern,
            period=float(rng.uniform(120, 190) if pattern == "planks" else rng.uniform(320, 620)),
            turn=float(rng.choice([0.0, np.pi / 2, 0.5])),
            light=Light(direction, rng.uniform(0.65, 1.05), rng.uniform(0.36, 0.58), tint),
            shift=rng.uniform(0, 4000, 2),
            decals=tuple(d for k in range(4) for d in _decals(rng, k, 2 * half[1 - k // 2], height)) if painted else (),
        )


def _decals(rng: np.random.Generator, wall: int, length: float, height: float) -> list[Decal]:
    """Things along a wall, from left to right, without overlap."""
    decals, at = [], -length / 2 + rng.uniform(200, 900)
    while at < length / 2 - 800:
        kind = str(rng.choice(["door", "window", "picture", "picture", "shelf", "board", "none"]))
        wide = {"door": 900, "window": rng.uniform(900, 1800), "shelf": rng.uniform(700, 1400), "board": 1500}.get(
            kind, rng.uniform(400, 900)
        )
        low, high = {
            "door": (0, 2050),
            "window": (900, 2200),
            "shelf": (0, rng.uniform(900, 2000)),
            "board": (950, 1950),
        }.get(kind, (rng.uniform(1000, 1300), rng.uniform(1600, min(2300, height - 150))))
        first, second = rng.choice(len(FABRICS), 2, replace=False)
        color = WOODS[rng.integers(len(WOODS))] if kind in ("door", "shelf") else FABRICS[first]
        if kind != "none" and at + wide < length / 2 - 150:
            decals.append(Decal(wall, (at, low), (at + wide, high), kind, color, FABRICS[second]))
        at += wide + rng.uniform(250, 1300)
    return decals


def seat_boxes(seat: Seat, rng: np.random.Generator) -> Boxes:
    """A stool or chair, with a table before it if the motion has one."""
    wood = WOODS[rng.integers(len(WOODS))]
    half, legs = rng.uniform(175, 215), rng.random() < 0.75
    corners = [(x, y) for x in (-1, 1) for y in (-1, 1)]
    parts = [((-20, 0, seat.height - 22), (half, half, 22))]
    if legs:
        out, high = half - 22, seat.height / 2 - 22
        parts += [((x * out - 20, y * out, high), (17, 17, high)) for x, y in corners]
    else:
        parts += [((-20, 0, seat.height / 2 - 24), (half * 0.85, half * 0.85, seat.height / 2 - 24))]
    if seat.back:
        parts += [((-half - 30, 0, seat.height + 330), (16, half * 0.92, 110))]
        parts += [((-half - 30, sy * half * 0.8, seat.height + 120), (14, 16, 140)) for sy in (-1, 1)]
    color = [wood] * len(parts)
    if seat.table:
        top, wood = seat.height + 245, WOODS[rng.integers(len(WOODS))]
        deep, wide, high = 290, rng.uniform(380, 560), top / 2 - 18
        parts += [((240 + deep, 0, top - 18), (deep, wide, 18))]
        parts += [((240 + deep + x * (deep - 40), y * (wide - 40), high), (22, 22, high)) for x, y in corners]
        parts += [((240 + deep * 0.55, rng.uniform(-40, 40), top + 8), (85, 85, 8))]  # plate
        color += [wood] * 5 + [np.array([0.92, 0.92, 0.92])]
    center, size = (np.array(v, np.float64) for v in zip(*parts, strict=True))
    place = center @ rotation("z", seat.heading).T + np.array([*seat.center, 0.0])
    return Boxes(place, np.full(len(parts), seat.heading), size, np.array(color))


def clutter(rng: np.random.Generator, half: tuple[float, float], free: float, count: int) -> Boxes:
    """Boxes and pillars at least `free` mm from the middle: some hide part of a person from some camera."""
    azimuth, away = rng.uniform(-np.pi, np.pi, count), free + rng.uniform(250, 900, count)
    wide = rng.uniform(120, 330, (count, 2))
    tall = rng.uniform(200, 480, count)  # half heights
    pillar = rng.random(count) < 0.12
    wide[pillar], tall[pillar] = rng.uniform(90, 140, (pillar.sum(), 1)), 1350
    limit = np.array(half) - 400
    xy = np.clip(np.stack([np.cos(azimuth), np.sin(azimuth)], -1) * away[:, None], -limit, limit)
    color = np.array([*WOODS, *FABRICS])[rng.integers(len(WOODS) + len(FABRICS), size=count)]
    return Boxes(np.column_stack([xy, tall]), rng.uniform(-np.pi, np.pi, count), np.column_stack([wide, tall]), color)


def box_hits(boxes: Boxes, start: np.ndarray, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First hits of rays on each box.

    start (3,) mm, ray (M,3) -> parameter (K,M), inf = missed; axis of the face hit (K,M)
    """
    turn = rotation("z", -boxes.heading)
    o = np.einsum("kij,kj->ki", turn, start - boxes.center)[:, None]
    d = np.einsum("kij,mj->kmi", turn, ray)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (-boxes.half[:, None] - o) / d, (boxes.half[:, None] - o) / d
    near, far = np.minimum(a, b), np.maximum(a, b).min(-1)
    axis = near.argmax(-1)
    enter = near.max(-1)
    return np.where((enter < far) & (enter > NEAR), enter, np.inf), axis


def view(room: Room, boxes: Boxes, camera: Cameras, rays: np.ndarray, look: np.random.Generator) -> View:
    """A camera () prepared for rendering in a furnished room.

    Args:
        rays: its `camera_rays`.
        look: draws its exposure, blur and sensor noise.
    """
    height, width = rays.shape[1:]
    R, t = camera.R.numpy(), camera.t.numpy()
    exposure = (look.uniform(0.82, 1.12) * (1 + look.normal(0, 0.025, 3))).astype(np.float32)
    blur, sensor = float(look.uniform(0.35, 0.75)), int(look.integers(1, 5))
    columns, rows = pixel_ranges(rays[0]), pixel_ranges(rays[1].T)
    start = (-R.T @ t).astype(np.float32)
    ray = [np.float32(R[0, i]) * rays[0] + np.float32(R[1, i]) * rays[1] + np.float32(R[2, i]) for i in range(3)]
    ray = np.stack(ray).reshape(3, -1)  # (3,M) world
    color, depth, floor = _walls(room, boxes, start, ray, np.ptp(rays[0, height // 2]) / max(width - 1, 1))
    bound = ball_boxes(boxes.center @ R.T + t, np.linalg.norm(boxes.half, axis=-1))
    box, pixel = flat_pairs(bound, columns, rows, width)
    _furniture(room, boxes, start, ray, color, depth, box, pixel)
    display = (255 * np.sqrt(np.minimum(color * exposure, 1))).astype(np.uint8)
    return View(
        R=R,
        t=t,
        rays=rays.reshape(2, -1),
        columns=columns,
        rows=rows,
        size=(width, height),
        backdrop=display.reshape(height, width, 3),
        depth=depth.reshape(height, width),
        floor=tuple(f.reshape(height, width) for f in floor),
        gain=exposure,
        blur=blur,
        noise=sensor,
    )


def _walls(room: Room, boxes: Boxes, start: np.ndarray, ray: np.ndarray, pixel: np.float32):
    """The empty room.

    ray (3,M), pixel: its width in the plane z = 1
    -> linear colour (M,3), depth (M,) mm, cells of the floor's shadow map, x and y (M,); all float32
    """
    half = np.array([*room.half, room.height], np.float32)
    with np.errstate(divide="ignore"):
        exits = [(np.where(r > 0, half[i], 0 if i == 2 else -half[i]) - start[i]) / r for i, r in enumerate(ray)]
    beside = exits[0] < exits[1]
    depth = np.where(beside, exits[0], exits[1])
    level = exits[2] < depth
    depth = np.where(level, exits[2], depth)
    down = level & (ray[2] < 0)
    light, place = room.light, start[:, None] + depth * ray  # (3,M)
    key, ambient = (light.key * light.color).astype(np.float32), np.float32(light.ambient)
    color = np.empty((len(depth), 3), np.float32)

    on = np.flatnonzero(down)
    x, y = place[0, on], place[1, on]
    edge = np.minimum(half[0] - np.abs(x), half[1] - np.abs(y))
    shade = 1 - np.float32(0.32) * np.exp(edge / np.float32(-260))
    shade *= 1 - np.float32(0.22 / half[:2].max() ** 2) * (x * x + y * y)
    shade *= 1 - np.float32(0.5) * _under(boxes, x, y)
    grain = depth[on] * pixel / np.maximum(np.abs(ray[2, on]), np.float32(0.1))  # mm of floor under a pixel
    color[on] = _floor(room, x, y, grain) * shade[:, None] * (key * np.float32(light.direction[2] * 0.85) + ambient)
    on = np.flatnonzero(level & ~down)
    edge = np.minimum(half[0] - np.abs(place[0, on]), half[1] - np.abs(place[1, on]))
    bright = np.float32(0.72) - np.float32(0.18) * np.exp(edge / np.float32(-400))
    color[on] = bright[:, None] * (np.float32(0.35) * key + ambient)

    for k in range(4):
        on = np.flatnonzero(~level & (beside == (k < 2)) & ((ray[k // 2] > 0) == (k % 2 == 0)))
        if not len(on):
            continue
        u, v = place[1 - k // 2, on], place[2, on]
        inward = -1 if k % 2 == 0 else 1
        facing = 0.35 + 0.65 * max(inward * float(light.direction[k // 2]) / np.linalg.norm(light.direction[:2]), 0.0)
        corner = half[1 - k // 2] - np.abs(u)
        shade = 1 - np.float32(0.28) * np.exp(corner / np.float32(-300))
        shade *= 1 - np.float32(0.25) * np.exp(v / np.float32(-250))
        shade *= 1 - np.float32(0.2) * np.exp((v - half[2]) / 400)
        color[on] = _wall(room, k, u, v) * shade[:, None] * (np.float32(0.55 * facing) * key + ambient)
    cells = [np.where(down, place[i] / np.float32(FLOOR) + np.float32(FLOOR_CELLS / 2), np.float32(-10)) for i in (0, 1)]
    return color, depth, cells


def _floor(room: Room, x: np.ndarray, y: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Linear reflectance of the floor at x, y (M,) mm, seen by pixels `grain` (M,) mm wide.   -> (M,3)"""
    c, s, wide = np.float32(np.cos(room.turn)), np.float32(np.sin(room.turn)), np.float32(room.period)
    a, b = (c * x + s * y + np.float32(room.shift[0])) / wide, (c * y - s * x + np.float32(room.shift[1])) / wide

    def joint(phase: np.ndarray, size: float, width: float) -> np.ndarray:
        # A line thinner than a pixel is drawn a pixel wide and as much fainter, so that it does not break into dots.
        shown = np.maximum(np.float32(width), grain)
        return (phase * np.float32(size) < shown) * (np.float32(width) / shown)

    if room.pattern == "planks":
        row = np.floor(a)
        long = b / 7 + noise(row * 3.7, row * 0 + 5.3) * 5
        piece = np.floor(long)
        mix = 0.65 * noise(row * 1.7 + 0.5, piece * 2.3 + 0.5) + 0.35 * noise(a * 9, b * 0.7 + row * 3.1)
        dark = np.maximum(joint(a - row, wide, 5), joint(long - piece, 7 * wide, 5))
    elif room.pattern in ("tiles", "checker"):
        i, j = np.floor(a), np.floor(b)
        mix = (i + j) % 2 * 0.85 if room.pattern == "checker" else 0.45 * noise(i * 1.9 + 0.5, j * 2.1 + 0.5)
        mix = mix + 0.12 * noise(a * 6, b * 6)
        dark = np.maximum(joint(a - i, wide, 9), joint(b - j, wide, 9))
    else:
        fine = 23 if room.pattern == "carpet" else 5
        mix, dark = 0.5 * noise(a * 1.1, b * 1.1) + 0.5 * noise(a * fine, b * fine), np.zeros(len(a), np.float32)
    color = room.floor[0].astype(np.float32) * (1 - mix[:, None]) + room.floor[1].astype(np.float32) * mix[:, None]
    return np.square(np.clip(color * (1 - np.float32(0.42) * dark)[:, None], 0.02, 0.95))


def _wall(room: Room, k: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Linear reflectance of wall k at u along it and height v (M,) mm.   -> (M,3)"""
    base = room.wall[k].astype(np.float32)
    color = base * (0.97 + 0.05 * noise(u / 130 + 7 * k, v / 130))[:, None]
    for d in room.decals:
        if d.wall != k:
            continue
        on = np.flatnonzero((u > d.low[0]) & (u < d.high[0]) & (v > d.low[1]) & (v < d.high[1]))
        if not len(on):
            continue
        a = (u[on] - d.low[0]) / (d.high[0] - d.low[0])
        b = (v[on] - d.low[1]) / (d.high[1] - d.low[1])
        rim = np.min([u[on] - d.low[0], d.high[0] - u[on], v[on] - d.low[1], d.high[1] - v[on]], 0)  # mm to the edge
        first, second = d.color.astype(np.float32), d.other.astype(np.float32)
        if d.kind == "door":
            panel = ((np.abs(a - 0.5) < 0.34) & (np.abs(np.abs(b - 0.5) - 0.24) < 0.18))[:, None]
            tone = first * np.where(panel, 0.85, 1.0) * (0.94 + 0.1 * noise(a * 20, b * 3))[:, None]
            tone[(np.abs(a - 0.9) < 0.035) & (np.abs(b - 0.49) < 0.012)] = 0.75
            tone[rim < 45] = first * 0.7
        elif d.kind == "window":
            sky = np.stack([0.72 + 0.2 * b, 0.82 + 0.13 * b, 0.90 + 0.07 * b], -1)
            tone = sky * (0.9 + 0.12 * noise(a * 3 + k, b * 4))[:, None]
            tone[(b < 0.35) & (noise(a * 5 + d.low[0], b * 0 + 3) * 0.5 > b)] = (0.45, 0.55, 0.42)
            tone[(rim < 55) | (np.abs(a - 0.5) < 0.02)] = 0.93
        elif d.kind == "shelf":
            book, level = np.floor(a * 22 + d.low[0]), np.floor(b * 5)
            tint = noise(book * 1.9 + 0.5, level * 3.3 + 0.5)[:, None]
            tone = first * 0.35 + (second * tint + first[::-1] * (1 - tint)) * 0.6
            tone[(b * 5 - level < 0.1) | (rim < 30)] = first
            tone[b * 5 - level > 0.62 + 0.3 * noise(book * 2.1 + 0.5, level + 0.5)] = first * 0.3
        elif d.kind == "board":
            tone = np.full((len(on), 3), 0.9, np.float32)
            tone[(noise(a * 40, b * 9 + d.low[0]) > 0.8) & (np.abs(a - 0.4) < 0.3)] = second
            tone[rim < 35] = 0.55
        else:
            mix = noise(a * 3 + d.low[0], b * 3 + d.high[0])[:, None]
            tone = first * mix + second * (1 - mix)
            tone[np.hypot(a - 0.5, (b - 0.55) * 1.3) < 0.2] = second[::-1] * 0.9
            tone[rim < 40] = 0.9 if d.low[1] > 1100 else 0.15
        color[on] = tone
    skirting = v < 95
    color[skirting] = 0.88 if base.mean() < 0.72 else base * 0.72
    color[v > room.height - 60] *= 0.93
    return np.square(np.clip(color, 0.02, 0.97))


def _under(boxes: Boxes, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much furniture darkens the floor, 0..1.   x, y (M,) mm -> (M,)"""
    dark = np.zeros(len(x), np.float32)
    for center, heading, half in zip(boxes.center, boxes.heading, boxes.half, strict=True):
        gap = center[2] - half[2]
        soft = 60 + 0.3 * gap
        reach = np.hypot(*half[:2]) + soft
        near = np.flatnonzero((np.abs(x - np.float32(center[0])) < reach) & (np.abs(y - np.float32(center[1])) < reach))
        local = (np.stack([x[near], y[near]], -1) - center[:2]) @ rotation("z", heading)[:2, :2]
        cover = np.clip((half[:2] + soft - np.abs(local)) / (2 * soft), 0, 1).prod(-1)
        dark[near] = np.maximum(dark[near], cover / (1 + gap / 500))
    return dark


def _furniture(room: Room, boxes: Boxes, start, ray, color: np.ndarray, depth: np.ndarray, covers, pixel) -> None:
    """Draws the boxes into colour (M,3) and depth (M,), in place; covers, pixel: which box may cover which pixel."""
    light = room.light
    for k in range(len(boxes.heading)):
        near = pixel[covers == k]
        box = Boxes(*(v[k : k + 1] for v in boxes))
        rays = ray[:, near].T
        t, axis = box_hits(box, start, rays)
        hit = t[0] < depth[near]
        on, axis, rays = near[hit], axis[0][hit], rays[hit]
        depth[on] = t[0][hit]
        turn = rotation("z", box.heading[0])
        local = (start + depth[on, None] * rays - box.center[0]) @ turn
        side = np.sign(np.take_along_axis(local, axis[:, None], 1)[:, 0])
        normal = turn.T[axis] * side[:, None]
        facing = np.maximum(normal @ light.direction, 0)
        grain = 0.9 + 0.2 * noise(local[:, 0] / 14 + 50 + local[:, 2] / 90, local[:, 1] / 14 + 90 + local[:, 2] / 240)
        rim = (box.half[0] - np.abs(local)) + 1e6 * np.eye(3)[axis]
        edge = np.where(rim.min(-1) < 6, 0.8, 1.0)
        tone = np.square(np.clip(box.color[0] * (grain * edge)[:, None], 0.02, 0.95))
        foot = 1 - 0.3 * np.exp(-(local[:, 2:] + box.center[0, 2]) / 120)
        lit = facing[:, None] * light.key * light.color * 0.9 + light.ambient * (0.75 + 0.25 * normal[:, 2:])
        color[on] = tone * foot * lit
