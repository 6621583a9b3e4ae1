"""Single frames of a video as JPEG files."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2

from lib.errors import DataError

JPEG_QUALITY = 95


def extract_frames(video: str | Path, frames: Sequence[int], names: Sequence[str | Path], quality: int = JPEG_QUALITY) -> None:
    """Writes frame `frames[i]` (0-based) of the video to `names[i]`; resumable.

    The video is gone through once and only the wanted frames are decoded into pictures: seeking is off by a few frames in
    many containers. Names that exist are left as they are; a file appears under its name only when it is complete.

    Raises:
        DataError: the video cannot be opened, ends before a wanted frame, a frame cannot be decoded or a file not written.
    """
    if len(frames) != len(names):
        raise DataError(f"{video}: {len(frames)} frames for {len(names)} names, expected one name per frame")
    missing = sorted((int(frame), Path(name)) for frame, name in zip(frames, names, strict=True) if not Path(name).exists())
    if not missing:
        return
    if missing[0][0] < 0:
        raise DataError(f"{video}: frame {missing[0][0]} was asked for, expected 0 or more")
    if not Path(video).is_file():
        raise DataError(f"{video}: no such video, but {len(missing)} frames of it are wanted; download it again")
    capture = cv2.VideoCapture(str(video))
    try:
        if not capture.isOpened():
            raise DataError(
                f"{video}: cannot be opened as a video; check that the download is complete and that this OpenCV reads "
                "its codec (pip install opencv-python-headless has FFmpeg)"
            )
        _write(capture, video, missing, quality)
    finally:
        capture.release()


def _write(capture: cv2.VideoCapture, video: str | Path, missing: list[tuple[int, Path]], quality: int) -> None:
    at, image = -1, None
    for frame, name in missing:
        while at < frame:
            if not capture.grab():
                raise DataError(
                    f"{video}: ends after {at + 1} frames, but frame {frame} (0-based) is wanted for {name}; download the "
                    "video again, or check that it belongs to these annotations"
                )
            at, image = at + 1, None
        if image is None:
            good, image = capture.retrieve()
            if not good:
                raise DataError(f"{video}: frame {frame} (0-based) for {name} cannot be decoded; download the video again")
        name.parent.mkdir(parents=True, exist_ok=True)
        part = name.with_name(name.name + ".part")
        good, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, quality))
        try:
            part.write_bytes(data.tobytes() if good else b"")
            os.replace(part, name)
        except OSError as e:
            raise DataError(f"{name}: cannot be written ({e.strerror}); free some space or choose another folder") from None
