"""Canvas work under lib/vis.py: anti-aliased lines and dots, texts, tiles and pages, and writing a picture to disk."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lib.errors import GeometryError, RunError
from lib.files import replaced

RGB = tuple[int, int, int]
LEFT, RIGHT, MIDDLE, TRUTH = (38, 126, 240), (240, 106, 34), (30, 170, 118), (120, 124, 132)
INK, FAINT, PAPER, FLOOR, SHADOW = (34, 37, 43), (112, 117, 126), (255, 255, 255), (247, 248, 250), (226, 229, 234)


def to_numpy(x: Any) -> np.ndarray:
    """A tensor on any device, an array or a list as a NumPy array."""
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def check_rgb(image) -> np.ndarray:
    image = to_numpy(image)
    if image.ndim == 3 and image.shape[-1] == 3 and image.dtype == np.uint8:
        return image
    raise GeometryError(f"image: found {image.dtype} of shape {image.shape}, expected uint8 (H, W, 3) in RGB order")


def line(canvas, a, b, color: RGB, width: float) -> None:
    if np.abs([a, b]).max() > 4 * max(canvas.shape):  # a joint projected far away: OpenCV's fixed point overflows
        shape = (-4096, -4096, canvas.shape[1] + 8192, canvas.shape[0] + 8192)
        inside, a, b = cv2.clipLine(shape, *(tuple(int(v) for v in np.clip(p, -1e8, 1e8)) for p in (a, b)))
        if not inside:
            return
    p, q = (tuple(int(round(float(v) * 16)) for v in point) for point in (a, b))
    cv2.line(canvas, p, q, color, max(1, round(width)), cv2.LINE_AA, 4)


def dot(canvas, center, radius: float, color: RGB) -> None:
    if np.abs(center).max() <= 4 * max(canvas.shape):
        at = tuple(int(round(float(v) * 16)) for v in center)
        cv2.circle(canvas, at, max(8, round(radius * 16)), color, -1, cv2.LINE_AA, 4)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    return tuple(int(round((1 - share) * p + share * q)) for p, q in zip(a, b, strict=True))


def cut_out(image: np.ndarray, crop) -> tuple[np.ndarray, np.ndarray]:
    """An area of the image, black outside of it, and the area's corner in px."""
    if crop is None:
        return image, np.zeros(2)
    x0, y0, x1, y1 = np.round(to_numpy(crop)).astype(int)
    out = np.zeros((max(1, y1 - y0), max(1, x1 - x0), 3), np.uint8)
    rows, columns = slice(max(0, y0), max(0, y1)), slice(max(0, x0), max(0, x1))
    part = image[rows, columns]
    out[max(0, -y0) :, max(0, -x0) :][: part.shape[0], : part.shape[1]] = part
    return out, np.array([x0, y0], float)


def letterbox(image: np.ndarray, tile: int) -> tuple[np.ndarray, float, np.ndarray]:
    """The image letterboxed into a square tile; x_tile = (x + 0.5) * scale - 0.5 + offset."""
    height, width = image.shape[:2]
    scale = tile / max(height, width)
    small = cv2.resize(
        image,
        (max(1, round(width * scale)), max(1, round(height * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
    )
    out = np.full((tile, tile, 3), FLOOR, np.uint8)
    y, x = (tile - small.shape[0]) // 2, (tile - small.shape[1]) // 2
    out[y : y + small.shape[0], x : x + small.shape[1]] = small
    return out, scale, np.array([x, y], float)


def beside(pictures: Sequence[np.ndarray], gap: int) -> np.ndarray:
    height = max(p.shape[0] for p in pictures)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, gap), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded, 1)[:, :-gap]


def below(pictures: Sequence[np.ndarray], gap: int) -> np.ndarray:
    return beside([p.swapaxes(0, 1) for p in pictures], gap).swapaxes(0, 1)


def page(body: np.ndarray, title: str, subtitle: str, truth: bool, sides: bool = True) -> np.ndarray:
    margin, texts, y = 20, [], 16
    width = max(body.shape[1], 420) + 2 * margin
    if title:
        texts.append(((margin, y), title, 20, INK, True))
        y += 30
    for line in subtitle.split("\n") if subtitle else []:
        texts.append(((margin, y), line, 13.5, FAINT, False))
        y += 20
    legend = [("left", LEFT), ("right", RIGHT), ("middle", MIDDLE)] if sides else []
    legend += [("truth (dashed)", TRUTH)] if truth else []
    head = np.full((y + 30, width, 3), PAPER, np.uint8)
    x = margin
    for name, color in legend:
        cv2.circle(head, (x + 5, y + 11), 5, color, -1, cv2.LINE_AA)
        texts.append(((x + 15, y + 2), name, 12.5, FAINT, False))
        x += 34 + round(7.2 * len(name))
    texts.append(((x, y + 2), "ground grid 0.5 m", 12.5, FAINT, False))
    write_texts(head, texts)
    page = np.full((body.shape[0], width, 3), PAPER, np.uint8)
    page[:, margin : margin + body.shape[1]] = body
    return np.concatenate([head, page, np.full((margin, width, 3), PAPER, np.uint8)])


@lru_cache(maxsize=32)
def _font(size: float, bold: bool):
    from matplotlib import get_data_path  # matplotlib brings DejaVu Sans and Pillow along
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts/ttf" / name), size)


def write_texts(canvas: np.ndarray, items: Sequence[tuple[tuple[float, float], str, float, RGB, bool]]) -> None:
    """Write ((x, y) of the top left corner, text, size in px, colour, bold) on the canvas, in place."""
    if not items or not canvas.size:
        return
    from PIL import Image, ImageDraw

    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for at, text, size, color, bold in items:
        draw.text(at, text, fill=tuple(color), font=_font(size, bold))
    canvas[:] = np.asarray(picture)


def save_image(path, rgb) -> Path:
    """Write a picture (.png, .jpg) under a temporary name, then rename it: a reader never sees half a file.

    Raises:
        RunError: the folder cannot be written, or the ending names no picture format.
    """
    path = Path(path)
    try:
        ok, data = cv2.imencode(path.suffix, np.ascontiguousarray(check_rgb(rgb)[..., ::-1]))
    except cv2.error:
        ok = False
    if not ok:
        ending = path.suffix or "no ending"
        raise RunError(f"{path}: {ending!r} is not a picture format that can be written; use .png or .jpg")
    with replaced(path, RunError) as part:
        part.write_bytes(data.tobytes())
    return path
