"""From a file of keypoints to files of the 3D motion and a film of it; what scripts/predict.py --keypoints does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib import skeleton as skeletons
from lib.dataset.formats import detections, keypoints_npz
from lib.dataset.formats.detections import VideoKeypoints
from lib.dataset.tracks import Tracks
from lib.drawing.animation import Film
from lib.errors import MALFORMED, ConfigError, DataError, RunError
from lib.geometry.camera import Cameras
from lib.prediction.lifted import Lifted, OwnCamera, with_truth
from lib.prediction.lifter import Lifter
from lib.video import DEFAULT_FPS, Clip, Video, miscounted

FORMS = ("npz", "json", "csv", "mp4", "gif")
ENDINGS = {"npz": ".npz", "json": ".json", "csv": ".csv", "mp4": "_pose.mp4", "gif": "_pose.gif"}
LISTED = 12  # tracks of an archive that a message names


@dataclass(frozen=True, eq=False)
class Source:
    """The keypoints of one person in a video, and what an archive knows besides."""

    video: VideoKeypoints
    truth: np.ndarray | None = None  # (T,J,3) mm, camera axes
    skeleton: str = ""  # of the truth
    camera: Cameras | None = None  # that the truth was seen from


def read_keypoints(
    path: str | Path, layout: str | None = None, track: str | None = None, person: int | None = None, default: str = "h36m17"
) -> Source:
    """Keypoints of one person; missing frames are NaN.

    Args:
        path: an archive data_2d_<dataset>_<keypoints>.npz (with data_3d_<dataset>.npz beside it unless it is of custom videos); an npz or
            npy file with the plain array `keypoints` (T,J,F) px and where known `size`, `fps`, `layout`; or what a detector wrote (see
            lib/dataset/formats/detector_files.py).
        layout: skeleton of the keypoints; None = as the file says.
        track: of an archive: "video" or "subject/action/view"; None = the only one.
        person: of a detector's file: 0 = whoever is seen longest, 1 = the next, ...
        default: layout of plain arrays that do not say theirs.

    Raises:
        DataError: no such file, its form is not known, or there are several tracks to choose from.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder of keypoints")
    if re.fullmatch(r"data_2d_[^_]+_.+\.npz", path.name):
        return _track(path, keypoints_npz.read(path.parent, "all", *keypoints_npz.named(path), layout or ""), track)
    if track is not None:
        raise DataError(f"{path}: --track chooses from an archive data_2d_..., but this is none; leave it out")
    plain = _plain(path) if person is None else None
    if plain is None:
        return Source(detections.read_video(path, layout, person=person))
    try:
        return _of_arrays(path, plain, layout or str(plain.get("layout", default)))
    except (ConfigError, *MALFORMED) as error:
        raise DataError(f"{path}: no keypoints of one person ({error}); write them again") from error


def _of_arrays(path: Path, plain: dict[str, np.ndarray], named: str) -> Source:
    """Keypoints from plain arrays whose layout is called `named`."""
    x, size = plain["keypoints"].astype(np.float64), np.asarray(plain.get("size", (0, 0))).reshape(-1)
    joints = skeletons.get(named).num
    if size.shape != (2,) or x.shape[1] != joints or x.shape[2] not in (2, 3) or not len(x):
        raise DataError(
            f"{path}: keypoints {x.shape} and size {size.tolist()}, expected (frames, {joints}, 2 or 3) for the layout {named}, and width "
            "and height; name the layout they have (--layout)"
        )
    known = np.isfinite(x[..., :2]).all(-1)
    scores = np.where(known, x[..., 2] if x.shape[2] == 3 else 1.0, 0.0)
    boxes, size = np.full((len(x), 4), np.nan), (int(size[0]), int(size[1]))
    return Source(VideoKeypoints(named, x[..., :2], scores, boxes, size, float(plain.get("fps", 0.0))))


def _plain(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file if `keypoints` is among them and is numbers (T,J,F); archives of detectors hold objects."""
    if path.suffix not in (".npz", ".npy") or not path.is_file():
        return None
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            found = {"keypoints": loaded}
        else:
            with loaded as file:
                found = {name: file[name] for name in ("keypoints", "size", "fps", "layout") if name in file.files}
    except ValueError:  # objects, which are not loaded
        return None
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read ({error}); write the keypoints again") from error
    x = found.get("keypoints")
    return found if x is not None and x.ndim == 3 and np.issubdtype(x.dtype, np.number) else None


def _track(path: Path, tracks: Tracks, wanted: str | None) -> Source:
    """One track of an archive."""
    labels = [f"{s}/{a}/{v}" for s, a, v in zip(tracks.subject, tracks.action, tracks.view, strict=True)]
    fitting = [i for i, label in enumerate(labels) if wanted is None or label == wanted or label.startswith(f"{wanted}/")]
    if len(fitting) != 1:
        shown = [labels[i] for i in (fitting or range(len(labels)))]
        names = ", ".join(shown[:LISTED]) + (f" and {len(shown) - LISTED} more" if len(shown) > LISTED else "")
        raise DataError(f"{path}: {len(fitting)} tracks fit {wanted or 'without a name'}; choose one with --track: {names}")
    one = tracks.select(fitting)
    x = one.keypoints.astype(np.float64)
    scores = x[..., 2] if x.shape[2] == 3 else np.ones(x.shape[:2])
    camera, has_3d = one.cameras[int(one.camera[0])], bool(one.has_3d[0])
    size = tuple(int(v) for v in camera.size.tolist())
    video = VideoKeypoints(one.layout, x[..., :2], scores, np.full((len(x), 4), np.nan), size, one.fps)
    return Source(video, one.X_cam, one.skeleton, camera) if has_3d else Source(video)


def result_files(target: Path, forms: Sequence[str]) -> dict[str, Path]:
    """The file of each form."""
    return {form: target.with_name(target.name + ENDINGS[form]) for form in FORMS if form in forms}


def lift_video(
    lifter: Lifter,
    path: Path,
    target: Path,
    forms: Sequence[str] = FORMS,
    layout: str | None = None,
    track: str | None = None,
    person: int | None = None,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    camera: OwnCamera | None = None,
    video: Video | None = None,
    truth: Path | None = None,
    correct: bool = False,
    progress: bool = False,
    **film,
) -> tuple[Lifted, list[str]]:
    """Reads keypoints, interpolates what is missing, lifts them, and writes the results.

    Args:
        path, layout, track, person: see `read_keypoints`.
        target: path of the results without their endings.
        forms: some of FORMS.
        size, fps: what the file does not say, or says wrongly; None = as the file, else the video, else the camera has it.
        video: shown below the keypoints.
        truth: .npy of the true poses, (T,J,3) mm in the camera's frame, shown beside the others; None = those of an archive.
        correct: move the poses until they agree with the keypoints, through the camera; see `Lifter.lift`.
        film: height, azimuth, elevation, skip, limit and downsample of lib.drawing.animation.Film.

    Returns:
        The motion, and notes in words.

    Raises:
        DataError: a file cannot be read or does not fit. RunError: a result cannot be written.
    """
    source = read_keypoints(path, layout, track, person, lifter.layout.name)
    given, notes = detections.interpolate(source.video), []
    known = tuple(int(v) for v in camera.camera.size.tolist()) if camera is not None else (0, 0)
    sizes = [size, given.size, (video.width, video.height) if video else None, known]
    size = next((s for s in sizes if s is not None and min(s) > 0), None)
    if size is None:
        raise DataError(f"{path}: does not say how large the images are; give --image-size, --video or a camera with its size")
    fps = fps or given.fps or (video.fps if video else None)
    notes.append(f"{len(given)} frames of {given.layout}, images of {size[0]} x {size[1]} px")
    if gaps := int(given.filled.any(1).sum()):
        notes.append(f"{gaps} of {len(given)} frames lacked joints, which were interpolated")
    if absent := detections.never_seen(source.video):
        notes.append("never found: " + ", ".join(f"{joint} (placed at {other})" for joint, other in absent.items()))
    if video is not None and miscounted(len(given), video.count):
        notes.append(f"{len(given)} frames of keypoints, but the video has {video.count}")
    x = np.concatenate([given.keypoints, given.scores[..., None]], -1)
    motion = lifter.lift(x, size, given.layout, camera, fps, correct=correct)
    if motion.reprojection_px is not None:
        known = motion.reprojection_px[np.isfinite(motion.reprojection_px).all(1)]
        left = len(motion) - len(known)
        if len(known):
            before, after = known.mean(0)
            notes.append(f"corrected: the poses are {after:.2f} px from their keypoints on average, {before:.2f} px before")
        if left:
            notes.append(f"not corrected: {left} of {len(motion)} frames, whose keypoints are too few, or put nobody before the camera")
    shown = Film(motion.keypoints, motion.layout, _poses(motion, source, truth), motion.skeleton, size, motion.fps or DEFAULT_FPS, video,
                 **film)  # fmt: skip
    files = result_files(target, forms)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{target.parent}: cannot be made ({error.strerror}); choose another --out") from error
    for form in ("npz", "json", "csv"):
        if form in files:
            motion.save(files[form])
    if "mp4" in files or "gif" in files:
        bar = tqdm(shown.pictures(), total=len(shown), desc=target.name, unit="picture", disable=not progress)
        with Clip(files.get("mp4"), files.get("gif"), shown.rate) as clip:
            for picture in bar:
                clip.add(picture)
    return motion, [*notes, *(f"assumed: {text}" for text in motion.assumed)]


def _poses(motion: Lifted, source: Source, truth: Path | None) -> dict[str, np.ndarray]:
    """What the film shows in 3D; beside a truth, the pose has the true place."""
    X_true = _truth(truth) if truth else source.truth if source.skeleton == motion.skeleton.name else None
    if X_true is None and motion.X_before is not None:
        place = 0 if motion.X_cam is None else motion.X_cam - motion.X_root
        return {"before the correction": motion.standing(motion.X_before + place), "corrected": motion.standing()}
    if X_true is None:
        return {"3D reconstruction": motion.standing()}
    placed, X_true = with_truth(motion, X_true)
    settle = None
    if source.camera is not None and truth is None:  # worlds of archives have their floor at 0
        placed, settle = dataclasses.replace(placed, R=source.camera.R.numpy(), t=source.camera.t.numpy()), False
    return {"3D reconstruction": placed.standing(settle=settle), "ground truth": placed.standing(X_true, settle)}


def _truth(path: Path) -> np.ndarray:
    expected = "expected a .npy file of poses (T,J,3) in mm of the camera's frame"
    try:
        poses = np.load(path, allow_pickle=False)
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read ({error}); {expected}") from error
    if not isinstance(poses, np.ndarray):
        raise DataError(f"{path}: holds several arrays, {expected}")
    return poses
