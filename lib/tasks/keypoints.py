"""What `scripts/prepare.py keypoints` does: the files of a 2D detector become an archive of keypoints, with a picture to check it by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import vis
from lib.dataset.formats import detections, h36m, keypoints_npz
from lib.dataset.formats.detections import VideoKeypoints
from lib.dataset.formats.detector_files import read_detections
from lib.errors import DataError
from lib.files import refuse_existing
from lib.skeleton import get
from lib.video import Video

SHEET = 12  # frames in a picture
BLANK = 244  # grey where there is no video
INTERPOLATED = 0.1  # confidence that interpolated joints are drawn with: thin
LEAST_DRAWN = 0.35  # ... and found ones at least


@dataclass(frozen=True)
class Prepared:
    """What was written, and what can be said about it."""

    archive: Path
    picture: Path | None
    lines: list[str]


def prepare_videos(
    sources: Sequence[str | Path],
    out: str | Path,
    layout: str | None = None,
    to: str = "coco17",
    size: Sequence[int] | None = None,
    videos: Sequence[str | Path] = (),
    person: int | None = None,
    rule: str = "track",
    gap: int | None = None,
    min_score: float = 0.0,
    picture: str | Path | None = None,
) -> Prepared:
    """An archive data_2d_custom_<name>.npz of one person per video, and a picture of some frames.

    Args:
        sources: files or folders that `read_detections` reads, one per video; a folder of .npz files stands for all of them.
        out: the archive, or its name alone.
        layout: joints of the sources, where they do not say.
        to: joints of the archive.
        size: width and height of the pictures, where neither source nor video says.
        videos: the videos themselves, one per source; they give names, sizes, frame rates and the backdrop of the picture.
        person, rule: who is taken, see `detections.read_video`.
        gap: missing frames in a row that may be interpolated; longer gaps are marked in the archive. None = any number.
        min_score: joints with a lower score are taken for missing.
        picture: default: beside the archive.

    Raises:
        DataError: a source cannot be used, two have one name, or archive or picture exist.
    """
    archive = detections.archive_path(out)
    picture = archive.with_suffix(".png") if picture is None else Path(picture)
    for path in (archive, picture):
        refuse_existing(path)
    get(to)
    files = [file for source in sources for file in expand(Path(source))]
    if videos and len(videos) != len(files):
        raise DataError(f"{len(videos)} videos for {len(files)} files of detections; give one --video per file, in the same order")
    opened = [Video.open(path) for path in videos] or [None] * len(files)
    taken: dict[str, VideoKeypoints] = {}
    lines, shown = [], []
    for file, video in zip(files, opened, strict=True):
        name = video.path.name if video else video_name(file)
        if name in taken:
            raise DataError(f"{file}: a second video of the name {name}; prepare them apart, or rename one")
        taken[name], said = one_video(file, name, video, layout, to, size, person, rule, gap, min_score)
        lines += said
        shown.append((name, taken[name], video))
    detections.write_custom(archive, taken)
    vis.save_image(picture, sheet(shown, archive.name))
    return Prepared(archive, picture, lines)


def expand(source: Path) -> list[Path]:
    """The file; for a folder of .npz files (Detectron archives, one per video) all of them."""
    inside = sorted(source.glob("*.npz")) if source.is_dir() else []
    return inside or [source]


def video_name(file: Path) -> str:
    """walk.mp4.npz -> walk.mp4; of other files and folders what stands before the ending."""
    return file.name if file.is_dir() else file.stem


def one_video(
    file: Path, name: str, video: Video | None, layout: str | None, to: str, size: Sequence[int] | None, person: int | None, rule: str,
    gap: int | None, min_score: float,
) -> tuple[VideoKeypoints, list[str]]:  # fmt: skip
    """The chosen person with gaps filled as far as `gap` allows, and what is to be told."""
    found = read_detections(file, layout, (video.width, video.height) if video else size)
    if rule == "best_box":
        if person is not None:
            raise DataError("--person needs --rule track: best_box takes whoever has the highest box score in each frame")
        everyone, chosen = [], detections.best_box(found)
    else:
        everyone = detections.people(found)
        if not 0 <= (person or 0) < len(everyone):
            raise DataError(f"{file}: no person {person}; {len(everyone)} were found, counted from 0")
        chosen = everyone[person or 0]
    converted = detections.convert(detections.confident(chosen, min_score), to)
    never = detections.never_seen(converted)
    result = detections.interpolate(converted, gap)
    if video:
        result = dataclasses.replace(result, fps=video.fps)
    detections.checked(name, result)
    frames = f"{found.frames} frames ({found.first} to {found.first + found.frames - 1})"
    joints = to if to == found.layout else f"{found.layout} -> {to}"
    lines = [f"{name}: {found.source}, {len(found)} candidates in {frames}, {joints}, {result.size[0]} x {result.size[1]} px"]
    if rule == "best_box":
        lines.append("  person: whoever has the highest box score in a frame")
    for i, other in enumerate(everyone):
        if i < 5 or i == (person or 0):
            number = f", number {other.person} in the file" if other.person >= 0 else ""
            mark = "taken" if i == (person or 0) else f"--person {i}"
            lines.append(f"  person {i} ({mark}): {(~other.missing).sum()} frames, mean score {mean_score(other):.2f}{number}")
    if len(everyone) > 5:
        lines.append(f"  {len(everyone)} people in all")
    beyond = np.isnan(result.keypoints).any((1, 2))
    lines.append(
        f"  missing frames: {result.missing.sum()} of {len(result)}, longest gap {longest(result.missing)}; "
        f"{(result.missing & ~beyond).sum()} interpolated, {(result.missing & beyond).sum()} beyond the limit "
        f"({'none' if gap is None else gap}); single joints missing: {joints_missing(result):.1%}; mean score {mean_score(result):.2f}"
    )
    if never:
        lines.append("  never found: " + ", ".join(f"{joint} (put where {other} is)" for joint, other in never.items()))
    if video and video.count and found.first + found.frames != video.count:
        lines.append(f"  the video has {video.count} frames")
    return result, lines


def longest(mask: np.ndarray) -> int:
    """Length of the longest run of true, (T,) bool."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    return int(max(np.flatnonzero(edges < 0) - np.flatnonzero(edges > 0), default=0))


def mean_score(video: VideoKeypoints) -> float:
    """Of the joints that were found."""
    return float(video.scores[video.found].mean()) if video.found.any() else 0.0


def joints_missing(video: VideoKeypoints) -> float:
    """Share of joints that were not found in frames with someone."""
    there = video.found[~video.missing]
    return float(1 - there.mean()) if there.size else 0.0


def sheet(videos: Sequence[tuple[str, VideoKeypoints, Video | None]], title: str) -> np.ndarray:
    """Some frames of each video with the skeleton; (H, W, 3) uint8 RGB."""
    rows, each = [], max(2, SHEET // len(videos))
    for name, track, video in videos[:SHEET]:
        step = max(1, -(-len(track) // each))
        for t, image in backdrops(track, video, step, each):
            found, x = track.found[t], track.keypoints[t]
            conf = np.where(found, np.clip(track.scores[t], LEAST_DRAWN, 1), INTERPOLATED)
            state = "interpolated" if track.missing[t] else f"score {track.scores[t][found].mean():.2f}"
            caption = f"{name[:24]} frame {track.first + t}: {state if np.isfinite(x).any() else 'missing'}"
            rows.append(vis.SheetRow(image, x, conf=conf, crop=around(x, track.size), caption=caption))
    subtitle = "thin = interpolated; look whether left is left, and whether every joint lies where it belongs"
    return vis.pose_sheet(rows, get(videos[0][1].layout), title, subtitle, columns=3)


def backdrops(track: VideoKeypoints, video: Video | None, step: int, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Frame of the track and picture, every `step` frames, `count` at most; grey without a video or beyond its end."""
    numbers = list(range(-(-track.first // step) * step, track.first + len(track), step))[:count]
    pictures = dict(video.frames(step, numbers[-1] // step + 1)) if video and numbers else {}
    blank = np.full((track.size[1], track.size[0], 3), BLANK, np.uint8)
    for number in numbers:
        yield number - track.first, pictures.get(number, blank)


def around(x: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The part of the picture about the joints, with some margin; x0 y0 x1 y1 px, None where there is none."""
    x = x[np.isfinite(x).all(-1)]
    if not len(x):
        return None
    middle, half = (x.min(0) + x.max(0)) / 2, 0.65 * max(40.0, float((x.max(0) - x.min(0)).max()))
    low, high = np.clip([middle - half, middle + half], 0, size)
    return np.concatenate([low, high]) if (high - low > 2).all() else None


def prepare_h36m(source: str | Path, out: str | Path, layout: str | None = None) -> Prepared:
    """An archive data_2d_h36m_<name>.npz from the detections of the sequences of Human3.6M (`detections.read_h36m`).

    Args:
        layout: joints of the files; default: what the name of the archive says (cpn_ft_h36m_dbb: h36m17).

    Raises:
        DataError: the files cannot be used, the name does not tell the joints, or the archive exists.
    """
    archive = detections.archive_path(out, "h36m")
    refuse_existing(archive)
    name = archive.stem.removeprefix("data_2d_h36m_")
    positions, skipped = detections.read_h36m(source)
    layout = layout or keypoints_npz.layout_of(name, keypoints_npz.joint_number(positions))
    if not layout:
        words = ", ".join(keypoints_npz.LAYOUTS)
        raise DataError(f"{archive}: the name {name} does not tell the joints (one of {words} in it would); give --layout NAME")
    detections.metadata(layout)
    detections.write_h36m(archive, positions, layout)
    lines = []
    for subject, actions in positions.items():
        frames = sum(len(x) for cameras in actions.values() for x in cameras)
        lines.append(f"{subject}: {len(actions)} actions, {frames} frames of {len(h36m.CAMERA_IDS)} cameras, {layout}")
    return Prepared(archive, None, lines + [f"skipped {text}" for text in skipped])
