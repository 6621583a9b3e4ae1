"""From any 2D detector to keypoints of one person over time, and to the archives that lifting reads.

    candidates of a file (detector_files)  ->  people over time  ->  one person  ->  no missing frames  ->  archive

People are told apart by the numbers in the file, else by tracking: poses are carried on with their last motion and assigned
to the candidates of the next frame (Hungarian method) by the mean distance of their joints. Missing joints are filled by linear
interpolation between the frames around them, and stay marked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from lib import skeleton as skeletons
from lib.dataset.formats.detector_files import Detections, person_slot, read_detections
from lib.dataset.formats.h36m import CAMERA_IDS, canonical
from lib.dataset.formats.keypoints_npz import EXCLUDED, LAYOUTS, OVERVIEW, sides
from lib.errors import MALFORMED, DataError
from lib.files import new_file
from lib.skeleton import Skeleton
from lib.unpickle import load_npz

RULES = ("track", "best_box")
PATIENCE = 60  # frames that someone may be unseen and still be the same person
REACH = 0.35  # how far the joints may lie from where they are expected, in sizes of the person ...
REACH_GROWTH = 0.06  # ... more per frame unseen ...
REACH_MOST = 1.5  # ... and at most
COAST = 5  # frames that a motion is carried on
SEEN, FILLED, BEYOND = 0, 1, 2  # in archives: found by the detector, interpolated, interpolated over more frames than allowed


@dataclass(frozen=True, eq=False)
class VideoKeypoints:
    """One person in the T frames of one video."""

    layout: str  # skeleton of the joints, a name of lib.skeleton
    keypoints: np.ndarray  # (T,J,2) float64 px of the picture, NaN where unknown
    scores: np.ndarray  # (T,J) float64 confidence of the detector, 0 where it did not find the joint
    boxes: np.ndarray  # (T,4) float64 x0 y0 x1 y1 px, NaN where unknown
    size: tuple[int, int]  # width and height of the picture in px; 0 0 = unknown
    fps: float = 0.0  # 0 = unknown
    first: int = 0  # number of frame 0 in the video
    person: int = -1  # number that the file gives the person, -1 = none
    filled: np.ndarray | None = None  # (T,J) bool: interpolated; None = nothing was

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def found(self) -> np.ndarray:
        """Joints that the detector found, (T,J) bool."""
        return np.isfinite(self.keypoints).all(-1) & (True if self.filled is None else ~self.filled)

    @property
    def missing(self) -> np.ndarray:
        """Frames in which the detector found no joint, (T,) bool."""
        return ~self.found.any(1)


# ------------------------------------------------------------------------------------------------------ one person


def read_video(
    path: str | Path,
    layout: str | None = None,
    *,
    rule: str = "track",
    person: int | None = None,
    size: Sequence[int] | None = None,
    fps: float = 0.0,
) -> VideoKeypoints:
    """One person of a detector's file.

    Args:
        path: what `detector_files.read_detections` reads.
        layout: skeleton of the joints in the file, where it is not clear.
        rule: "track" = follow people, take the one who is seen longest and surest; "best_box" = in every frame whoever has the
            highest box score (VideoPose3D's rule, which may change between people).
        person: with "track": 0 = the first of `people`, 1 = the next, ...
        size: width and height of the pictures in px.
        fps: frames per second, where the file does not say.

    Returns:
        Frames in which the person was not found are NaN; see `interpolate`.

    Raises:
        DataError: the file cannot be used, or has no such person.
    """
    found = read_detections(path, layout, size, fps)
    if rule not in RULES:
        raise DataError(f"rule {rule!r}: expected one of {', '.join(RULES)}")
    if rule == "best_box":
        if person is not None:
            raise DataError("a person can be chosen with the rule track only: best_box takes whoever has the highest box score")
        return best_box(found)
    everyone = people(found)
    if not 0 <= (person or 0) < len(everyone):
        raise DataError(f"{path}: no person {person}; {len(everyone)} were found, counted from 0")
    return everyone[person or 0]


def best_box(found: Detections) -> VideoKeypoints:
    """Per frame the candidate with the highest box score; the first of equal ones."""
    order = np.lexsort((np.arange(len(found)), -found.box_scores, found.frame))
    _, at = np.unique(found.frame[order], return_index=True)
    return _video(found, order[at])


def people(found: Detections) -> list[VideoKeypoints]:
    """Everyone in the video, whoever is seen longest and surest first (by the sum over frames of the joints' mean confidence)."""
    track, count = track_people(found)
    # one candidate per person and frame: where a file repeats a number, the one with the best score
    order = np.lexsort((-found.box_scores, found.frame, track))
    same = (np.diff(track[order]) == 0) & (np.diff(found.frame[order]) == 0)
    order = order[np.concatenate([[True], ~same])]
    weight = np.bincount(track[order], np.maximum(found.scores[order].mean(1), 1e-6), minlength=count)
    rows = np.split(order, np.cumsum(np.bincount(track[order], minlength=count))[:-1])
    return [_video(found, rows[i]) for i in np.argsort(-weight, kind="stable")]


def _video(found: Detections, rows: np.ndarray) -> VideoKeypoints:
    """The track made of some candidates, one per frame at most."""
    t, joints = found.frame[rows], found.keypoints.shape[1]
    keypoints, scores = np.full((found.frames, joints, 2), np.nan), np.zeros((found.frames, joints))
    boxes = np.full((found.frames, 4), np.nan)
    keypoints[t], scores[t], boxes[t] = found.keypoints[rows], found.scores[rows], found.boxes[rows]
    known = np.unique(found.identity[rows])
    person = int(known[0]) if len(known) == 1 else -1
    return VideoKeypoints(found.layout, keypoints, scores, boxes, found.size, found.fps, found.first, person)


def track_people(found: Detections, patience: int = PATIENCE) -> tuple[np.ndarray, int]:
    """Who is who.

    A candidate continues the track whose pose, moved on as it moved last, lies nearest: mean distance of the joints that both have,
    over the size of the people: the square root of the area of the box, and half the extent of the joints at least. All candidates
    of a frame are assigned at once.

    Args:
        found: candidates; if the file numbers each of them, those numbers hold.
        patience: frames after which someone unseen counts as gone.

    Returns:
        Track of each candidate, (N,) int64, and the number of tracks.
    """
    if (found.identity >= 0).all():
        names, track = np.unique(found.identity, return_inverse=True)
        return track.astype(np.int64), len(names)
    joints = found.keypoints.shape[1]
    track = np.zeros(len(found), np.int64)
    last = np.zeros((0, joints, 2))  # of every track so far: pose,
    motion = np.zeros((0, 2))  # px per frame,
    when = np.zeros(0, np.int64)  # frame
    sizes = np.zeros(0)  # and size of the person
    wide = np.maximum(found.boxes[:, 2:] - found.boxes[:, :2], 0.0)
    extent = np.nanmax(found.keypoints, 1) - np.nanmin(found.keypoints, 1)
    scale = np.maximum(np.sqrt(wide.prod(1)), np.maximum(0.5 * np.linalg.norm(extent, axis=-1), 1.0))
    starts = np.flatnonzero(np.diff(found.frame, prepend=-1))
    for rows in np.split(np.arange(len(found)), starts[1:]):
        t = found.frame[rows[0]]
        alive = np.flatnonzero(t - when <= patience)
        unseen = t - when[alive]
        expected = last[alive] + (np.minimum(unseen, COAST)[:, None] * motion[alive])[:, None]
        shift = found.keypoints[rows][None] - expected[:, None]  # (M,N,J,2)
        mean, common = _mean_over_joints(np.linalg.norm(shift, axis=-1))
        cost = mean / np.sqrt(sizes[alive][:, None] * scale[rows])
        reach = np.minimum(REACH + REACH_GROWTH * (unseen - 1), REACH_MOST)[:, None]
        possible = (cost < reach) & common
        a, b = linear_sum_assignment(np.where(possible, cost, 1e6))
        good = possible[a, b]
        a, b = a[good], b[good]
        old, seen = alive[a], rows[b]
        step, both = _mean_over_joints((found.keypoints[seen] - last[old]).swapaxes(1, 2))
        # half of the new motion, half of the old one: a detector's noise would otherwise be carried on
        now = np.where(both, step, 0.0) / unseen[a][:, None]
        motion[old] = np.where((motion[old] == 0).all(1, keepdims=True), now, 0.5 * (motion[old] + now))
        last[old] = np.where(np.isfinite(found.keypoints[seen]), found.keypoints[seen], last[old] + step[:, None])
        when[old], sizes[old], track[seen] = t, scale[seen], old
        new = np.setdiff1d(rows, seen)
        track[new] = len(when) + np.arange(len(new))
        last = np.concatenate([last, found.keypoints[new]])
        motion = np.concatenate([motion, np.zeros((len(new), 2))])
        when, sizes = np.concatenate([when, np.full(len(new), t)]), np.concatenate([sizes, scale[new]])
    return track, len(when)


def _mean_over_joints(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the last axis of what is finite, 0 where nothing is; and whether something is."""
    finite = np.isfinite(values)
    count = finite.sum(-1)
    return np.where(finite, values, 0.0).sum(-1) / np.maximum(count, 1), count > 0


# -------------------------------------------------------------------------------------------------- missing frames


def confident(video: VideoKeypoints, least: float) -> VideoKeypoints:
    """The same without the joints whose score is below `least`: NaN, as if the detector had not found them."""
    kept = video.scores >= least
    keypoints, scores = np.where(kept[..., None], video.keypoints, np.nan), np.where(kept, video.scores, 0.0)
    return dataclasses.replace(video, keypoints=keypoints, scores=scores)


def interpolate(video: VideoKeypoints, gap: int | None = None) -> VideoKeypoints:
    """The same with missing joints filled: linear over frames between the two around, constant at both ends.

    A joint that is in no frame takes the place of the nearest joint of the skeleton's tree that is (see `never_seen`).

    Args:
        gap: frames in a row that are filled at most; what is longer stays NaN. None = any number.

    Returns:
        Boxes likewise; `filled` marks the joints that were interpolated, their scores stay 0.

    Raises:
        DataError: no frame has a joint.
    """
    known = np.isfinite(video.keypoints).all(-1)
    if not known.any():
        raise DataError(f"none of the {len(video)} frames has a person; lower the detector's threshold or check the video")
    keypoints, inside = _fill(video.keypoints, known, gap)
    boxes, _ = _fill(video.boxes[:, None], np.isfinite(video.boxes).all(-1)[:, None], gap)
    for joint, other in _stand_ins(video).items():
        keypoints[:, joint], inside[:, joint] = keypoints[:, other], inside[:, other] | known[:, other]
    filled = inside if video.filled is None else inside | video.filled
    return dataclasses.replace(video, keypoints=keypoints, boxes=boxes[:, 0], filled=filled)


def _fill(x: np.ndarray, known: np.ndarray, gap: int | None) -> tuple[np.ndarray, np.ndarray]:
    """x (T,K,C) with gaps filled, and what was filled (T,K); a column that is never known stays as it is."""
    frames = len(x)
    t = np.arange(frames)[:, None]
    before = np.maximum.accumulate(np.where(known, t, -1), 0)
    after = np.minimum.accumulate(np.where(known, t, frames)[::-1], 0)[::-1]
    ever = known.any(0)
    filled = ~known & ever & ((after - before - 1 <= gap) if gap is not None else True)
    a, b = np.where(before < 0, after, before), np.where(after >= frames, before, after)
    a, b = np.clip(a, 0, frames - 1), np.clip(b, 0, frames - 1)  # columns without a value
    share = ((t - a) / np.maximum(b - a, 1))[..., None]
    low, high = (np.take_along_axis(x, i[..., None], 0) for i in (a, b))
    return np.where(filled[..., None], low + share * (high - low), x), filled


def never_seen(video: VideoKeypoints) -> dict[str, str]:
    """Joints that the detector found in no frame, and the joint that stands in for each."""
    names = skeletons.get(video.layout).joints
    return {names[joint]: names[other] for joint, other in _stand_ins(video).items()}


def _stand_ins(video: VideoKeypoints) -> dict[int, int]:
    """Joints that are never found -> the nearest joint in the tree that is, of equal ones the one nearer to the root."""
    skeleton, ever = skeletons.get(video.layout), video.found.any(0)
    steps = np.full((skeleton.num, skeleton.num), np.inf)
    np.fill_diagonal(steps, 0)
    for parent, child in skeleton.bones:
        steps[parent, child] = steps[child, parent] = 1
    for middle in range(skeleton.num):
        steps = np.minimum(steps, steps[:, middle, None] + steps[middle])
    if not ever.any():
        return {}
    nearest = np.argmin(np.where(ever, steps + 1e-3 * steps[skeleton.root_index], np.inf), 1)
    return {int(j): int(nearest[j]) for j in np.flatnonzero(~ever)}


def convert(video: VideoKeypoints, layout: str) -> VideoKeypoints:
    """The same in another joint set (lib.skeleton.convert); a joint made from several has the least of their scores.

    Raises:
        DataError: joints of `layout` cannot be made from those of the video; the message names them.
        ConfigError: there is no such layout.
    """
    if layout == video.layout:
        return video
    source, target = skeletons.get(video.layout), skeletons.get(layout)
    keypoints, present = skeletons.convert(video.keypoints, source, target)
    if not present.all():
        lacking = [joint for joint, there in zip(target.joints, present, strict=True) if not there]
        raise DataError(
            f"{video.layout} has no {', '.join(lacking)}, which {layout} needs; keep {video.layout}, or use a detector with these joints"
        )
    scores = np.empty(keypoints.shape[:2])
    filled = np.empty(keypoints.shape[:2], bool)
    for joint, parts in enumerate(_parts(source, target)):
        scores[:, joint] = video.scores[:, parts].min(1)
        filled[:, joint] = False if video.filled is None else video.filled[:, parts].any(1)
    return dataclasses.replace(
        video, layout=layout, keypoints=keypoints, scores=scores, filled=None if video.filled is None else filled
    )


def _parts(source: Skeleton, target: Skeleton) -> list[np.ndarray]:
    """Joints of `source` that each joint of `target` is made from: those that move it."""
    moved, _ = skeletons.convert(np.eye(source.num), source, target)
    return [np.flatnonzero(row) for row in moved]


# -------------------------------------------------------------------------------------------------------- archives


def metadata(layout: str) -> dict[str, Any]:
    """What archives say of their joints: layout_name, num_joints, keypoints_symmetry = [left, right], each in ascending order.

    Raises:
        DataError: archives have no name for this joint set.
    """
    name = next((word for word, ours in LAYOUTS.items() if ours == layout), None)
    if name is None:
        raise DataError(f"archives cannot hold the joints of {layout}; convert to one of {', '.join(LAYOUTS.values())}")
    symmetry = [sorted(side) for side in sides(layout)]
    return {"layout_name": name, "num_joints": skeletons.get(layout).num, "keypoints_symmetry": symmetry}


def archive_path(out: str | Path, dataset: str = "custom") -> Path:
    """The file data_2d_<dataset>_<name>.npz: `out` itself, or beside it where `out` is only a name.

    Raises:
        DataError: an .npz of another name, which the readers of archives would not find.
    """
    out = Path(out)
    if out.suffix != ".npz":
        return out.with_name(f"data_2d_{dataset}_{out.name}.npz")
    if not re.fullmatch(rf"data_2d_{dataset}_.+\.npz", out.name):
        raise DataError(f"{out}: archives are found by their names; expected data_2d_{dataset}_NAME.npz, or NAME alone")
    return out


def write_custom(path: str | Path, videos: Mapping[str, VideoKeypoints]) -> Path:
    """An archive of own videos, data_2d_custom_<name>.npz, as VideoPose3D and its successors read it.

    `positions_2d` {video: {"custom": [(T,J,2) float32 px]}}, `metadata` with the joints and {video: {"w", "h"}}. What they do not
    know is kept beside it under `details` {video: {"scores" (T,J) float32, "state" (T,J) uint8, "fps", "first"}}, where state is
    0 found, 1 interpolated, 2 interpolated across a gap longer than was allowed. All coordinates are finite.

    Args:
        path: the new file; nothing is overwritten.
        videos: by the name of the video file.

    Raises:
        DataError: no video, one without size, different or unknown joint sets, or the file exists.
    """
    layouts = sorted({video.layout for video in videos.values()})
    if len(layouts) != 1:
        raise DataError(f"{path}: videos of {len(layouts)} joint sets ({', '.join(layouts)}); expected one; convert them")
    positions, details = {}, {}
    meta = metadata(layouts[0]) | {"video_metadata": {}}
    for name, video in videos.items():
        whole = checked(name, interpolate(video))
        positions[name] = {"custom": [whole.keypoints.astype(np.float32)]}
        meta["video_metadata"][name] = {"w": int(video.size[0]), "h": int(video.size[1])}
        details[name] = {"scores": whole.scores.astype(np.float32), "state": _state(video)}
        details[name] |= {"fps": float(video.fps), "first": int(video.first)}
    return _save(path, positions_2d=positions, metadata=meta, details=details)


def _state(video: VideoKeypoints) -> np.ndarray:
    """(T,J) uint8 before what is beyond the gap limit was filled too."""
    known = np.isfinite(video.keypoints).all(-1)
    filled = np.zeros(known.shape, bool) if video.filled is None else video.filled
    state = np.where(filled, FILLED, np.where(known, SEEN, BEYOND))
    if video.filled is None:  # no limit was set
        state = np.where(known, SEEN, FILLED)
    return state.astype(np.uint8)


def checked(name: str, video: VideoKeypoints) -> VideoKeypoints:
    """Itself, if its picture has a size and the joints lie in it.

    Raises:
        DataError: the size is unknown, or most joints lie outside.
    """
    w, h = video.size
    if w <= 0 or h <= 0:
        raise DataError(f"{name}: the size of the pictures is not known; give the video (--video FILE) or --size W H")
    x = video.keypoints[video.found]
    inside = ((x >= -0.5) & (x <= (w - 0.5, h - 0.5))).all(-1)
    if len(x) and inside.mean() < 0.5:
        raise DataError(
            f"{name}: {1 - inside.mean():.0%} of the joints lie outside of {w} x {h} px; check the size (portrait videos are taller "
            "than wide), and that keypoints are px of the whole picture"
        )
    return video


# ------------------------------------------------------------------------------------------------------- Human3.6M


def read_h36m(root: str | Path) -> tuple[dict[str, dict[str, list[np.ndarray]]], list[str]]:
    """Detections per sequence, `S*/<Action>.<camera>.mp4.npz` (or .npz alone), as detectors are run on Human3.6M.

    Detectron archives: the best box; six rows hold the finer place in the last two; where it found no one the previous pose is
    repeated. Plain npz: `keypoints` (T,J,2|3). `_` in an action stands for a blank, names that hold `_ALL` are skipped, and so is
    Directions of S11, which published archives leave out.

    Returns:
        {subject: {action: [(T,J,2) float32 px per camera]}}, and what was skipped.

    Raises:
        DataError: no such files, a sequence without one of the four cameras, or a file that cannot be used.
    """
    root, found, skipped = Path(root), {}, []
    for file in sorted(root.glob("S*/*.npz")):
        label = f"{file.parent.name}/{file.name}"
        match = re.fullmatch(r"(.+)\.(\d{8})(\.mp4)?\.npz", file.name)
        if OVERVIEW in file.name:
            skipped.append(f"{label}: _ALL in its name")
            continue
        if not match or match[2] not in CAMERA_IDS:
            raise DataError(f"{file}: expected <Action>.<camera>.mp4.npz with one of the cameras {', '.join(CAMERA_IDS)}")
        action = canonical(match[1]).replace("_", " ")
        if f"{file.parent.name}/{action}" in EXCLUDED:
            skipped.append(f"{label}: known to be damaged")
            continue
        found.setdefault(file.parent.name, {}).setdefault(action, {})[match[2]] = read_sequence(file)
    if not found:
        raise DataError(f"{root}: no detections; expected S1/Directions.54138969.mp4.npz, ...")
    for subject, actions in found.items():
        for action, cameras in actions.items():
            lacking = [camera for camera in CAMERA_IDS if camera not in cameras]
            if lacking:
                raise DataError(f"{root}: {subject} '{action}' lacks camera {', '.join(lacking)}; run the detector on all four")
    return {s: {a: [c[camera] for camera in CAMERA_IDS] for a, c in actions.items()} for s, actions in found.items()}, skipped


def read_sequence(path: str | Path) -> np.ndarray:
    """2D of one sequence of Human3.6M or HumanEva, see `read_h36m`.   -> (T,J,2) float32 px"""
    path = Path(path)
    try:
        content = load_npz(path)
        x = np.asarray(content["keypoints"])
        x = _repeating(path, content["boxes"], x) if x.dtype == object else x.astype(np.float64)
    except (OSError, *MALFORMED) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise DataError(f"{path}: damaged, or not a detection archive ({said}); run the detector again") from None
    if x.ndim != 3 or x.shape[2] not in (2, 3) or not len(x) or not np.isfinite(x[..., :2]).all():
        raise DataError(f"{path}: keypoints of shape {x.shape}; expected finite (T,J,2) or (T,J,3)")
    return x[..., :2].astype(np.float32)


def _repeating(path: Path, boxes: Sequence[Any], keypoints: Sequence[Any]) -> np.ndarray:
    """The best candidate of each frame of a Detectron archive, else the pose of the frame before; (T,K,2)."""
    if len(boxes) != len(keypoints):
        raise DataError(f"{path}: boxes of {len(boxes)} frames but keypoints of {len(keypoints)}")
    poses: list[np.ndarray] = []
    for t, (box, kp) in enumerate(zip(map(person_slot, boxes), map(person_slot, keypoints), strict=True)):
        if len(box) and len(kp):
            if box.ndim != 2 or box.shape[1] != 5 or kp.ndim != 3 or kp.shape[1] not in (4, 6) or len(box) != len(kp):
                raise DataError(f"{path}: frame {t}: boxes {box.shape} and keypoints {kp.shape}; expected (n,5) and (n,4,K) or (n,6,K)")
            best = kp[np.argmax(box[:, 4])]
            poses.append((best[4:6] if len(best) == 6 else best[:2]).T)
        elif poses:
            poses.append(poses[-1])
        else:
            raise DataError(f"{path}: no one was found in the first frame, so there is no pose to repeat; lower the detector's threshold")
    return np.stack(poses)


def write_h36m(path: str | Path, positions: Mapping[str, Mapping[str, Sequence[np.ndarray]]], layout: str) -> Path:
    """An archive data_2d_h36m_<name>.npz: `positions_2d` {subject: {action: [(T,J,2) float32 px per camera]}} and `metadata`.

    Raises:
        DataError: a sequence has not the joints of `layout`, archives have no name for it, or the file exists.
    """
    joints, meta = skeletons.get(layout).num, metadata(layout)
    for subject, actions in positions.items():
        for action, cameras in actions.items():
            for c, x in enumerate(cameras):
                if x.ndim != 3 or x.shape[1] != joints:
                    raise DataError(f"{subject} '{action}' camera {c}: shape {x.shape}, but {layout} has {joints} joints; give the layout")
    return _save(path, positions_2d=positions, metadata=meta)


def _save(path: str | Path, **parts: Mapping[str, Any]) -> Path:
    """Every part as a pickled object of its own, as archives are."""
    with new_file(path) as temporary:
        np.savez_compressed(temporary, **{name: np.array(part, object) for name, part in parts.items()})
    return Path(path)
