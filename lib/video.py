"""Videos in and out: frames of a file one after another, and clips as MP4 and GIF that appear only when they are complete."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from lib.errors import DataError, RunError

log = logging.getLogger("parallax")

GIF_WIDTH = 640  # px at most
GIF_FPS = 12.5  # at most
GIF_FRAMES = 300  # at most; the rest is in the MP4
DEFAULT_FPS = 25.0  # for files that do not say
MISCOUNT = 0.02  # share by which the frames of a video may be more or fewer than is told elsewhere before that is said


@dataclass(frozen=True)
class Video:
    """A video file that can be read."""

    path: Path
    width: int
    height: int
    fps: float
    count: int  # frames as the file says, which may be wrong; 0 = unknown

    @staticmethod
    def open(path: str | Path) -> Video:
        """The facts of a video, after its first frame was decoded.

        Raises:
            DataError: no such file, empty, not a video, or no frame in it can be decoded.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such video")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the video is empty (0 bytes); copy it again")
        capture = cv2.VideoCapture(str(path))
        try:
            good, frame = capture.read() if capture.isOpened() else (False, None)
            if not good:
                raise DataError(f"{path}: no frame of it can be decoded; expected a video whose codec OpenCV reads, such as MP4 (H.264)")
            fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        finally:
            capture.release()
        height, width = frame.shape[:2]
        return Video(path, width, height, fps if 0 < fps < 1000 else DEFAULT_FPS, max(0, int(count)))

    def frames(self, every: int = 1, limit: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Number (0-based) and picture (H, W, 3) uint8 RGB of every n-th frame, at most `limit` of them.

        A file that ends clearly before the last frame it announces is given as far as it goes, with a warning.
        """
        capture, number, given = cv2.VideoCapture(str(self.path)), 0, 0
        try:
            while (limit is None or given < limit) and capture.grab():
                if number % every == 0:
                    good, frame = capture.retrieve()
                    if not good:
                        raise DataError(f"{self.path}: frame {number} cannot be decoded; copy the video again, or use --limit {given}")
                    yield number, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                    given += 1
                number += 1
            if (limit is None or given < limit) and miscounted(number, self.count):
                log.warning("%s: ends after %d of the %d frames that it announces; copy it again", self.path, number, self.count)
        finally:
            capture.release()

    def wanted(self, every: int = 1, limit: int | None = None) -> int | None:
        """How many frames `frames` gives, if the file is right; None = unknown."""
        count = -(-self.count // every) or None
        return count if limit is None else min(limit, count or limit)


def miscounted(found: int, told: int) -> bool:
    """Whether a number of frames is clearly another one than is told, 0 = not told."""
    return told > 0 and abs(found - told) > max(2, MISCOUNT * found)


class Clip:
    """Writes pictures of one size to an MP4 and a GIF file, or one of them; `with` closes it, and removes both where an error ends it.

    Raises:
        RunError: this OpenCV has no MP4 encoder, a file cannot be written, or a picture has another size than the first.
    """

    def __init__(self, mp4: Path | None, gif: Path | None, fps: float):
        self.mp4, self.gif, self.fps = mp4, gif, fps
        self.part = None if mp4 is None else mp4.with_name(f".{mp4.stem}.part.mp4")
        self.writer: cv2.VideoWriter | None = None
        self.count, self.step, self.images = 0, max(1, int(np.ceil(fps / GIF_FPS - 1e-6))), []
        self.shape: tuple[int, ...] | None = None

    def add(self, picture: np.ndarray) -> None:
        """One more picture, (H, W, 3) uint8 RGB."""
        self.shape = self.shape or picture.shape
        if picture.shape != self.shape:  # the encoder would leave it out without a word
            raise RunError(f"{self.mp4 or self.gif}: picture {self.count} has shape {picture.shape}, the others {self.shape}")
        if self.mp4 is not None:
            self._film(picture)
        if self.gif is not None and self.count % self.step == 0 and len(self.images) < GIF_FRAMES:
            self.images.append(_paletted(picture))
        self.count += 1

    def _film(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        if self.writer is None:
            size = (width + width % 2, height + height % 2)  # the encoder takes even sizes only
            self.writer = cv2.VideoWriter(str(self.part), cv2.VideoWriter_fourcc(*"mp4v"), self.fps, size)
            if not self.writer.isOpened():
                raise RunError(f"{self.mp4}: cannot be written; choose another --out, or install an OpenCV with FFmpeg")
        even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self.writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> Clip:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.writer is not None:
            self.writer.release()
        part = None if self.gif is None else self.gif.with_name(f".{self.gif.stem}.part.gif")
        if kind is None and self.mp4 is None and self.count > self.step * GIF_FRAMES:
            log.warning("%s: ends after %d pictures of %d; write an MP4 as well", self.gif, GIF_FRAMES, -(-self.count // self.step))
        try:
            if kind is None and self.images:
                first, *rest = self.images
                first.save(part, save_all=True, append_images=rest, duration=round(1000 * self.step / self.fps), loop=0, disposal=1)
                os.replace(part, self.gif)
            if kind is None and self.writer is not None:
                os.replace(self.part, self.mp4)
        except OSError as failed:
            name, why = self.gif or self.mp4, failed.strerror or failed
            raise RunError(f"{name}: cannot be written ({why}); free space or choose another --out") from failed
        finally:
            for path in (part, self.part):
                if path is not None:
                    path.unlink(missing_ok=True)


def _paletted(picture: np.ndarray):
    from PIL import Image

    share = min(1.0, GIF_WIDTH / picture.shape[1])
    small = cv2.resize(picture, None, fx=share, fy=share, interpolation=cv2.INTER_AREA) if share < 1 else picture
    return Image.fromarray(small).quantize(128)
