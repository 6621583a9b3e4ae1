"""Pictures of poses: 2D overlays, 3D views, contact sheets, curves. All return uint8 RGB arrays; no window is opened.

Colours follow the person's own sides: left blue, right orange, middle green; the truth is grey and dashed. The 3D views
are orthographic and drawn with OpenCV in some ten milliseconds, so a sheet of many poses costs little.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lib.drawing.paint import (
    FAINT,
    FLOOR,
    INK,
    LEFT,
    MIDDLE,
    PAPER,
    RGB,
    RIGHT,
    SHADOW,
    TRUTH,
    below,
    beside,
    check_rgb,
    cut_out,
    dot,
    letterbox,
    line,
    mix,
    page,
    save_image,
    to_numpy,
    write_texts,
)
from lib.errors import MALFORMED, GeometryError, RunError
from lib.skeleton import Skeleton

__all__ = [
    "SheetRow", "bone_colors", "draw_skeleton_2d", "draw_skeleton_3d", "multi_view_sheet", "pose_sheet", "save_image",
    "training_curves", "view_axes",
]  # fmt: skip
PEOPLE = ((38, 126, 240), (240, 106, 34), (30, 170, 118), (176, 82, 214), (214, 168, 20), (16, 168, 196), (222, 60, 96))
SUPER = 3  # shapes are drawn this many times larger and averaged down: smooth edges, sub-pixel positions
GRID_MM = 500.0  # spacing of the ground grid in 3D views
UPS = {"-y": (0.0, -1.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


def side_color(name: str) -> RGB:
    """Colour of a joint by the side in its name (`l_knee`, `r_knee`, `pelvis`)."""
    return LEFT if name.startswith("l_") else RIGHT if name.startswith("r_") else MIDDLE


def bone_colors(skeleton: Skeleton) -> list[RGB]:
    """One colour per row of `skeleton.bones`, by the side of the body."""
    sides = {"left": LEFT, "right": RIGHT, "center": MIDDLE}
    by_bone = {int(bone): sides[side] for side, bones in skeleton.limbs.items() for bone in bones}
    return [by_bone[bone] for bone in range(len(skeleton.bones))]


def draw_skeleton_2d(
    image,
    x,
    skeleton: Skeleton,
    conf=None,
    min_conf: float = 0.05,
    color: RGB | None = None,
    thickness: float | None = None,
) -> np.ndarray:
    """Draw one pose, or several, over a copy of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        x: (J, 2) or (M, J, 2) px; joints that are not finite are left out.
        conf: (J,) or (M, J) in [0, 1]; joints up to `min_conf` are left out, uncertain ones are drawn thinner.
        color: one colour for everything instead of the colours of the sides.
        thickness: bone width in px; default: in proportion to the size of the person.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        GeometryError: the number of joints is not that of the skeleton.
    """
    out = np.ascontiguousarray(check_rgb(image)).copy()
    people = _poses(x, skeleton, 2)
    confs = np.ones(people.shape[:2]) if conf is None else np.nan_to_num(to_numpy(conf)).reshape(people.shape[:2])
    for points, c in zip(people, confs, strict=True):
        _paint_2d(out, points, skeleton, c, min_conf, color, thickness)
    return out


def _paint_2d(out, points, skeleton, conf, min_conf, color, thickness) -> None:
    shown = np.isfinite(points).all(-1) & (conf > min_conf)
    if not shown.any():
        return
    height, width = out.shape[:2]
    low, high = points[shown].min(0), points[shown].max(0)
    width_px = float(np.clip(np.linalg.norm(high - low) / 60, 1.2, 14)) if thickness is None else float(thickness)
    margin = 3 * width_px + 2
    x0, y0 = np.clip(np.floor(low - margin), 0, (width, height)).astype(int)
    x1, y1 = np.clip(np.ceil(high + margin) + 1, 0, (width, height)).astype(int)
    if x1 <= x0 or y1 <= y0:
        return  # the person lies outside the picture
    # nearest up and area down by a whole factor are inverse, so pixels without a line keep their exact value
    window = out[y0:y1, x0:x1]
    big = cv2.resize(window, None, fx=SUPER, fy=SUPER, interpolation=cv2.INTER_NEAREST)
    place = (points - (x0, y0) + 0.5) * SUPER - 0.5
    colors = bone_colors(skeleton) if color is None else [color] * len(skeleton.bones)
    for layer in (2.0, 0.0):  # dark outlines first, so that crossings stay clean
        for (a, b), paint in zip(skeleton.bones, colors, strict=True):
            if shown[a] and shown[b]:
                w = (width_px * (0.5 + 0.5 * min(conf[a], conf[b], 1.0)) + 0.5 * layer) * SUPER
                line(big, place[a], place[b], INK if layer else paint, w)
    for j in np.flatnonzero(shown):
        radius = width_px * (0.55 + 0.35 * min(conf[j], 1.0)) * SUPER
        dot(big, place[j], radius + 0.5 * SUPER, INK)
        dot(big, place[j], radius, mix(side_color(skeleton.joints[j]) if color is None else color, PAPER, 0.55))
    out[y0:y1, x0:x1] = cv2.resize(big, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)


def view_axes(up="-y", azimuth: float = 0.0, elevation: float = 0.0) -> np.ndarray:
    """Axes of an orthographic viewer as rows: right, up, into the picture; (3, 3).

    Args:
        up: "-y" (camera axes), "z" (world axes), "y", or a vector (3,): what stands upright in the picture.
        azimuth: degrees; 0 looks along the camera (or along +y for "z"), positive walks to the viewer's right.
        elevation: degrees the viewer is raised.
    """
    u = np.asarray(UPS[up] if isinstance(up, str) else to_numpy(up), float)
    u = u / np.linalg.norm(u)
    ahead = next(a for a in np.array([[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]]) if abs(a @ u) < 0.8)
    ahead = -ahead if isinstance(up, str) and up == "y" else ahead  # y up: the usual viewer looks along -z
    ahead = ahead - (ahead @ u) * u
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, u)
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    right, ahead = np.cos(a) * right + np.sin(a) * ahead, np.cos(a) * ahead - np.sin(a) * right
    return np.stack([right, np.cos(e) * u + np.sin(e) * ahead, np.cos(e) * ahead - np.sin(e) * u])


def draw_skeleton_3d(
    X,
    skeleton: Skeleton,
    truth=None,
    size: int = 320,
    azimuth: float = 35.0,
    elevation: float = 14.0,
    up="-y",
    half_mm: float | None = None,
    center=None,
    colors: Sequence[RGB] | None = None,
    shown=None,
) -> np.ndarray:
    """Draw one 3D pose, or several, from one viewpoint above a ground grid of 0.5 m.

    Args:
        X: (J, 3) or (M, J, 3) mm; joints that are not finite are left out.
        truth: (J, 3) or (M, J, 3) mm in the same frame, drawn grey and dashed; None: no truth.
        size: side of the square picture, px.
        azimuth, elevation, up: see `view_axes`.
        half_mm: half of the side of the picture in mm; default: what holds all poses from any angle.
        center: (3,) mm, the middle of the picture; default: the middle of all poses.
        colors: one colour per pose; default: the colours of the sides for one pose, one colour per person for several.
        shown: (J,) or (M, J) bool; False leaves a joint of X out.

    Returns:
        (size, size, 3) uint8 RGB.

    Raises:
        GeometryError: the number of joints is not that of the skeleton.
    """
    people = _poses(X, skeleton, 3).copy()
    if shown is not None:
        people[~np.broadcast_to(to_numpy(shown).astype(bool), people.shape[:2])] = np.nan
    truths = np.empty((0, skeleton.num, 3)) if truth is None else _poses(truth, skeleton, 3)
    everything = np.concatenate([people, truths]).reshape(-1, 3)
    everything = everything[np.isfinite(everything).all(-1)]
    if not len(everything):
        return np.full((size, size, 3), FLOOR, np.uint8)
    middle = 0.5 * (everything.min(0) + everything.max(0)) if center is None else to_numpy(center).astype(float)
    half = max(600.0, 1.12 * np.linalg.norm(everything - middle, axis=-1).max()) if half_mm is None else float(half_mm)
    axes = view_axes(up, azimuth, elevation)
    scale = 0.5 * size * SUPER / half
    canvas = np.full((size * SUPER, size * SUPER, 3), FLOOR, np.uint8)

    def place(points: np.ndarray) -> np.ndarray:  # (..., 3) mm -> (..., 3): canvas x, y, depth in mm
        seen = (points - middle) @ axes.T
        return np.stack(
            [0.5 * canvas.shape[1] + scale * seen[..., 0], 0.5 * canvas.shape[0] - scale * seen[..., 1], seen[..., 2]],
            -1,
        )

    upright = view_axes(up, 0.0, 0.0)  # the ground does not turn with the viewer
    ground = ((everything - middle) @ upright[1]).min()
    _paint_ground(canvas, place, middle, upright, ground, half)
    width = max(1.6, size / 95) * SUPER * min(1.0, 1150 / half) ** 0.5
    bones = skeleton.bones
    height = ((people - middle) @ upright[1] - ground)[..., None]
    for shadow in place(people - height * upright[1]):  # a soft shadow ties the feet to the ground
        _paint_bones(canvas, shadow, bones, SHADOW, 1.3 * width)
    for pose in place(truths):
        _paint_bones(canvas, pose, bones, TRUTH, 0.62 * width, dash=2.6 * width)
    if colors is None and len(people) > 1:
        colors = [PEOPLE[i % len(PEOPLE)] for i in range(len(people))]
    _paint_solid(canvas, place(people), skeleton, colors, width, half)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def _paint_ground(canvas, place, middle, upright, ground, half) -> None:
    reach = np.ceil(0.78 * half / GRID_MM) * GRID_MM
    ticks = np.arange(-reach, reach + 1, GRID_MM)
    base = middle + ground * upright[1]
    for t in ticks:
        for along, across in ((upright[0], upright[2]), (upright[2], upright[0])):
            a, b = place(np.stack([base + t * across - reach * along, base + t * across + reach * along]))
            line(canvas, a[:2], b[:2], (219, 223, 230), SUPER * (1.0 if abs(t) < 1 else 0.6))


def _paint_bones(canvas, points, bones, color: RGB, width, dash: float = 0.0) -> None:
    ok = np.isfinite(points).all(-1)
    for a, b in bones:
        if not (ok[a] and ok[b]):
            continue
        start, end = points[a, :2], points[b, :2]
        pieces = max(1, round(np.linalg.norm(end - start) / (1.8 * dash))) if dash else 1
        for i in range(pieces):
            f0, f1 = (i / pieces, (i + 0.55) / pieces) if dash else (0.0, 1.0)
            line(canvas, start + f0 * (end - start), start + f1 * (end - start), color, width)


def _paint_solid(canvas, points, skeleton, colors, width, half) -> None:
    """Bones of all poses, far ones first and paler; points (M, J, 3) canvas x, y and depth in mm."""
    bones, jobs = skeleton.bones, []
    side = bone_colors(skeleton)
    for person, pose in enumerate(points):
        for e, (a, b) in enumerate(bones):
            if np.isfinite(pose[[a, b]]).all():
                color = side[e] if colors is None else colors[person]
                jobs.append((0.5 * (pose[a, 2] + pose[b, 2]), pose[a], pose[b], color))
    for depth, a, b, color in sorted(jobs, key=lambda job: -job[0]):
        paint = mix(color, FLOOR, float(np.clip(0.24 + 0.30 * depth / half, 0.0, 0.5)))
        line(canvas, a[:2], b[:2], mix(paint, INK, 0.55), width + 1.1 * SUPER)
        line(canvas, a[:2], b[:2], paint, width)
        for end in (a, b):
            dot(canvas, end[:2], 0.72 * width, mix(paint, INK, 0.35))
            dot(canvas, end[:2], 0.45 * width, mix(paint, PAPER, 0.65))


@dataclass
class SheetRow:
    """One sample of a contact sheet; only `image` is needed.

    `X` is one prediction (J, 3) mm or several by name, {"self-supervised": (J, 3), ...}; `truth` is in the same frame;
    `caption` may hold several lines.
    """

    image: Any
    x: Any = None  # (J, 2) px of `image`, or (M, J, 2)
    X: Any = None
    truth: Any = None
    conf: Any = None
    crop: Any = None  # (4,) x0 y0 x1 y1 px: show this area of the image only
    caption: str = ""
    up: Any = "-y"


def pose_sheet(
    rows: Sequence[SheetRow],
    skeleton: Skeleton,
    title: str = "",
    subtitle: str = "",
    tile: int = 208,
    columns: int = 1,
    angles: Sequence[tuple[float, float]] = ((0.0, 8.0), (70.0, 8.0)),
) -> np.ndarray:
    """A contact sheet: per sample the image, its 2D overlay, and each 3D prediction with the truth from several angles.

    Args:
        rows: the samples.
        title, subtitle: printed on top, above the legend.
        tile: side of one picture, px.
        columns: samples beside each other.
        angles: (azimuth, elevation) in degrees of the 3D views.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    names: list[str] = []
    for row in rows:
        names += [n for n in _named(row.X) if n not in names]
    heads = ["image", "2D prediction"] + [
        f"{name or '3D prediction'}, {'camera view' if a == 0 else f'{a:+.0f}°'}" for name in names for a, _ in angles
    ]
    blocks = [_sheet_block(row, skeleton, tile, names, angles) for row in rows]
    width = max(block.shape[1] for block in blocks)
    gap = 26
    columns = max(1, min(columns, len(blocks)))
    head = np.full((20, width, 3), PAPER, np.uint8)
    small = min(12.5, 1.62 * tile / max(len(text) for text in heads))  # the longest heading stays in its column
    write_texts(head, [((i * (tile + 6) + 1, 2), text, small, FAINT, True) for i, text in enumerate(heads)])
    stacks = [np.concatenate([head, below(blocks[c::columns], 12)]) for c in range(columns)]
    body = beside(stacks, gap)
    return page(body, title, subtitle, truth=any(row.truth is not None for row in rows))


def _sheet_block(row: SheetRow, skeleton, tile, names, angles) -> np.ndarray:
    image, corner = cut_out(check_rgb(row.image), row.crop)
    image, scale, offset = letterbox(image, tile)
    pictures = [image]
    if row.x is not None:
        x = (to_numpy(row.x).astype(float) - corner + 0.5) * scale - 0.5 + offset
        pictures.append(draw_skeleton_2d(image, x, skeleton, conf=row.conf))
    elif names:
        pictures.append(np.full_like(image, FLOOR))
    given = _named(row.X)
    views = [to_numpy(v) for v in (*given.values(), row.truth) if v is not None]
    half, center = _common_frame(views)
    for name in names:
        for azimuth, elevation in angles:
            X = given.get(name)
            pictures.append(
                np.full((tile, tile, 3), FLOOR, np.uint8)
                if X is None
                else draw_skeleton_3d(X, skeleton, row.truth, tile, azimuth, elevation, row.up, half, center)
            )
    strip = beside(pictures, 6)
    lines = row.caption.split("\n") if row.caption else []
    foot = np.full((19 * len(lines) + (3 if lines else 0), strip.shape[1], 3), PAPER, np.uint8)
    write_texts(foot, [((1, 4 + 19 * i), text, 12.5, INK, False) for i, text in enumerate(lines)])
    return np.concatenate([strip, foot])


def multi_view_sheet(
    images: Sequence,
    skeleton: Skeleton,
    x_img: Sequence | None = None,
    X=None,
    truth=None,
    captions: Sequence[str] = (),
    title: str = "",
    subtitle: str = "",
    tile: int = 260,
    up="z",
    conf: Sequence | None = None,
) -> np.ndarray:
    """All views of one instant with their 2D poses, then the 3D scene from the front, from the side and from above.

    Args:
        images: V pictures (H, W, 3) uint8 RGB, of any sizes.
        x_img: per view (J, 2) or (M, J, 2) px; conf: per view (J,) or (M, J).
        X, truth: (J, 3) or (M, J, 3) mm, usually in world axes (`up="z"`).
        captions: one text per view.
    """
    tiles, tops, crowd = [], [], False
    for v, image in enumerate(images):
        small, scale, offset = letterbox(check_rgb(image), tile)
        if x_img is not None:
            x = (to_numpy(x_img[v]).astype(float) + 0.5) * scale - 0.5 + offset
            people = x.ndim == 3
            for m, pose in enumerate(x if people else [x]):
                c = None if conf is None else to_numpy(conf[v])[m] if people else conf[v]
                many = people and len(x) > 1
                crowd |= many
                small = draw_skeleton_2d(small, pose, skeleton, c, color=PEOPLE[m % len(PEOPLE)] if many else None)
        tiles.append(small)
        tops.append(int(offset[1]))
    for v in range(len(tiles)):  # letterbox no more than the tallest view needs
        caption = captions[v] if v < len(captions) else f"view {v}"
        foot = np.full((20, tile, 3), PAPER, np.uint8)
        write_texts(foot, [((1, 3), caption, 12.5, FAINT, True)])
        tiles[v] = np.concatenate([tiles[v][min(tops) : tile - min(tops)], foot])
    rows = [beside(tiles[i : i + 4], 6) for i in range(0, len(tiles), 4)]
    if X is not None:
        half, center = _common_frame([to_numpy(v) for v in (X, truth) if v is not None])
        side = max(tile, (max(row.shape[1] for row in rows) - 12) // 3)
        rows.append(
            beside(
                [
                    draw_skeleton_3d(X, skeleton, truth, side, a, e, up, half, center)
                    for a, e in ((0.0, 12.0), (60.0, 12.0), (0.0, 80.0))
                ],
                6,
            )
        )
    return page(below(rows, 10), title, subtitle, truth=truth is not None, sides=not crowd)


def training_curves(
    runs: Mapping[str, Any],
    keys: Sequence[str] | None = None,
    title: str = "",
    x: str = "step",
    lines: Mapping[str, Mapping[str, float]] | None = None,
    dpi: int = 110,
) -> np.ndarray:
    """Curves of logged numbers, one panel per key, one line per run.

    Args:
        runs: name -> path of a `metrics.jsonl`, a list of its records (dicts), or a dict {key: list} of equal lengths.
        keys: what to draw; default: every `train/...loss...` or `total` and every `val/...` number that occurs.
        lines: key -> {label: value}, drawn as dashed horizontal lines (baselines).
        x: the key of the horizontal axis; records without it are counted 0, 1, 2, ...

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        RunError: a file cannot be read, or nothing in it can be drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # lazily: importing matplotlib takes half a second
    from matplotlib.figure import Figure

    records = {name: _records(source) for name, source in runs.items()}
    if keys is None:
        seen = dict.fromkeys(k for rows in records.values() for r in rows for k, v in r.items() if _number(v))
        keys = [k for k in seen if k.startswith("val/") or (k.startswith("train/") and ("loss" in k or "total" in k))]
        keys = keys or [k for k in seen if k not in (x, "step", "epoch")]
    keys = [k for k in keys if any(_number(r.get(k)) for rows in records.values() for r in rows)]
    if not keys:
        raise RunError(f"nothing to draw: none of the runs {', '.join(runs)} holds a number under the wanted keys")
    across = min(3, len(keys))
    down = -(-len(keys) // across)
    figure = Figure(figsize=(4.3 * across, 3.1 * down + (0.5 if title else 0)), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    for axis, key in zip(axes, keys, strict=False):
        for i, (name, rows) in enumerate(records.items()):
            points = [(float(r.get(x, n)), float(r[key])) for n, r in enumerate(rows) if _number(r.get(key))]
            if points:
                color = np.array(PEOPLE[i % len(PEOPLE)]) / 255
                mark = "." if len(points) < 30 else None
                axis.plot(*np.array(points).T, color=color, label=name, linewidth=1.6, marker=mark)
        for i, (label, value) in enumerate((lines or {}).get(key, {}).items()):
            axis.axhline(value, color=str(0.35 + 0.2 * (i % 3)), linestyle="--", linewidth=1.1, label=label)
        axis.set_title(key, fontsize=10)
        axis.set_xlabel(x, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _poses(x, skeleton: Skeleton, dims: int) -> np.ndarray:
    x = to_numpy(x).astype(np.float64)
    if x.ndim not in (2, 3) or x.shape[-2] != skeleton.num or x.shape[-1] < dims:
        wanted = f"({skeleton.num}, {dims})"
        raise GeometryError(f"pose: found shape {x.shape}, expected {wanted} or (M, {wanted[1:]} for {skeleton.name}")
    return x.reshape(-1, skeleton.num, x.shape[-1])[..., :dims]


def _named(X) -> dict[str, Any]:
    return {} if X is None else dict(X) if isinstance(X, Mapping) else {"": X}


def _common_frame(poses: list[np.ndarray]) -> tuple[float | None, np.ndarray | None]:
    """Scale and middle that all 3D views of one sample share, so that they can be compared."""
    points = np.concatenate([p.reshape(-1, 3) for p in poses]) if poses else np.empty((0, 3))
    points = points[np.isfinite(points).all(-1)]
    if not len(points):
        return None, None
    center = 0.5 * (points.min(0) + points.max(0))
    return max(600.0, 1.12 * float(np.linalg.norm(points - center, axis=-1).max())), center


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _records(source) -> list[dict]:
    if isinstance(source, Mapping):
        return [dict(zip(source, values, strict=True)) for values in zip(*source.values(), strict=True)]
    if not isinstance(source, (str, os.PathLike)):
        return list(source)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunError(f"{source}: the log cannot be read ({why}); expected a run's metrics.jsonl") from error
    rows = []
    for number, record in enumerate(text.splitlines(), 1):
        try:
            rows.append(dict(json.loads(record)))
        except MALFORMED as error:
            if number < len(text.splitlines()):  # a run that was killed may leave half a last line
                raise RunError(f"{source}:{number}: no JSON record ({error}); expected one per line") from error
    return rows
