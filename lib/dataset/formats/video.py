"""Single frames of a video as JPEG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from lib.dataset.formats.files import JPEG_QUALITY
from lib.errors import DataError
from lib.files import replaced


def extract_frames(
    video: str | Path,
    frames: Sequence[int],
    names: Sequence[str | Path],
    short: float = 0,
    advice: str = "download the video again, or check that it belongs to these annotations",
    bar: tqdm | None = None,
) -> set[Path]:
    """Writes frame `frames[i]` (0-based) of the video to `names[i]` (JPEG, quality 95); resumable.

    The video is gone through once and only the wanted frames are decoded into pictures: seeking is off by a few frames in
    many containers. Names that exist are left as they are; a file appears under its name only when it is complete.

    Args:
        short: by how many frames the video may end before the last wanted one; math.inf takes what there is, were it no video at all.
        advice: next step of a user whose video is missing or damaged.
        bar: moved on by one for each name.

    Returns:
        The names for which the video has no frame; empty unless it is allowed to be short.

    Raises:
        DataError: the video is missing, cannot be opened or decoded, ends too early, or a file cannot be written.
    """
    if len(frames) != len(names):
        raise DataError(f"{video}: {len(frames)} frames for {len(names)} names, expected one name per frame")
    missing = sorted((int(frame), Path(name)) for frame, name in zip(frames, names, strict=True) if not Path(name).exists())
    bar = tqdm(disable=True) if bar is None else bar
    bar.update(len(names) - len(missing))
    if not missing:
        return set()
    if missing[0][0] < 0:
        raise DataError(f"{video}: frame {missing[0][0]} was asked for, expected 0 or more")
    if not Path(video).is_file() and short < math.inf:
        raise DataError(f"{video}: no such video, but {len(missing)} frames of it are wanted; {advice}")
    capture = cv2.VideoCapture(str(video))
    try:
        if not capture.isOpened() and short < math.inf:
            raise DataError(
                f"{video}: cannot be opened as a video; {advice} (or is it of a codec that this OpenCV does not read? "
                "pip install opencv-python-headless has FFmpeg)"
            )
        readable = _write(capture, missing, bar)
    finally:
        capture.release()
    last, name = missing[-1]
    if last + 1 - readable > short:
        raise DataError(f"{video}: ends after {readable} frames, but frame {last} (0-based) is wanted for {name}; {advice}")
    lost = {name for frame, name in missing if frame >= readable}
    bar.update(len(lost))
    return lost


def extract_videos(videos: Mapping[Path, Mapping[Path, int]], title: str, progress: bool = True) -> None:
    """Frames of several videos under one progress bar; those that exist stay, so that it can be taken up again.

    videos: video -> picture -> number of its frame

    Raises:
        DataError: see extract_frames.
    """
    with tqdm(total=sum(map(len, videos.values())), desc=title, unit="image", disable=not progress) as bar:
        for video, frames in videos.items():
            extract_frames(video, list(frames.values()), list(frames), bar=bar)


def _write(capture: cv2.VideoCapture, wanted: list[tuple[int, Path]], bar: tqdm) -> int:
    """Writes the wanted frames, in ascending order.   -> frames that can be read: all up to the last wanted one, or fewer"""
    at, image = -1, None
    for frame, name in wanted:
        while at < frame:
            if not capture.grab():
                return at + 1
            at, image = at + 1, None
        if image is None:
            good, image = capture.retrieve()
            if not good:
                return at
        _save(name, image)
        bar.update()
    return at + 1


def _save(name: Path, image: np.ndarray) -> None:
    data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
    with replaced(name, advice="free some space and run again, it goes on there") as part:
        part.write_bytes(data.tobytes())
