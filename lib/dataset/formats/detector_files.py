"""Files of 2D pose detectors: every candidate that was found in a video, frame by frame.

A file is recognised by what it holds, never by its name alone:

    Detectron, Detectron2   npz per video: boxes, keypoints, segments, metadata (the archives of VideoPose3D)
    OpenPose                folder with a JSON file per frame: BODY_25, BODY_25B, COCO-18
    AlphaPose               one JSON list: COCO-17, Halpe-26, Halpe-136
    COCO                    JSON list of results, or JSON of annotations with its images
    MMPose                  JSON of its inferencer or of its demos: COCO-17, COCO-WholeBody, Halpe-26
    scripts/predict.py      JSON or npz of a video
    arrays                  npy, or npz with `keypoints` and where known `size`, `fps`, `layout`: (T,J,2), (T,J,3) with scores,
                            (M,T,J,2|3) for M people

Of layouts with more joints than a skeleton here has (Halpe-136, COCO-WholeBody) the joints of the body, which come first, are kept.
`read_detections` takes one video; `read_pictures` takes results for the pictures of a whole data set and finds each by its name.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lib import skeleton as skeletons
from lib.errors import MALFORMED, ConfigError, DataError
from lib.unpickle import load_npz

log = logging.getLogger("parallax")

# joints in a file -> skeleton of the first of them; what has 25 is told apart by where the joints lie
BY_COUNT = {15: "", 16: "", 17: "coco17", 18: "openpose18", 25: "openpose25", 26: "halpe26", 133: "coco17", 136: "halpe26"}
PERSON = 1  # slot of Detectron's classes, category of COCO
SPARSE = 1000  # frames without anyone that are believed beyond 20 per frame with someone: more means the numbers are no frames
FARTHEST = 1e6  # px: a joint or box beyond was not found, whatever its score


@dataclass(frozen=True, eq=False)
class Detections:
    """N candidates in the T frames of one video, ordered by frame."""

    source: str  # kind of file, for messages
    layout: str  # skeleton of the joints
    frames: int  # T
    frame: np.ndarray  # (N,) int64, 0 <= frame < T
    keypoints: np.ndarray  # (N,J,2) float64 px, NaN where a joint was not found
    scores: np.ndarray  # (N,J) float64 confidence, 0 where a joint was not found
    boxes: np.ndarray  # (N,4) float64 x0 y0 x1 y1 px
    box_scores: np.ndarray  # (N,) float64
    identity: np.ndarray  # (N,) int64: number that the file gives the person, -1 = none
    size: tuple[int, int] = (0, 0)  # width and height of the picture in px, 0 0 = the file does not say
    fps: float = 0.0  # 0 = unknown
    first: int = 0  # number of frame 0 in the video

    def __len__(self) -> int:
        return len(self.frame)


@dataclass
class _Rows:
    """Candidates as they come out of a file."""

    source: str
    path: Path
    frame: list[int]
    points: list[np.ndarray]  # (K,3) x, y, score
    boxes: list[Any]  # (4,) x0 y0 x1 y1, or None
    box_scores: list[float]
    identity: list[int]

    @classmethod
    def empty(cls, source: str, path: Path) -> _Rows:
        return cls(source, path, [], [], [], [], [])

    def add(self, frame: int, points: Any, score: Any = None, box: Any = None, identity: int = -1) -> None:
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"keypoints of shape {points.shape}, expected x, y and a score per joint")
        if self.points and len(points) != len(self.points[0]):
            raise ValueError(f"a person has {len(points)} joints, another {len(self.points[0])}")
        if box is not None:
            box = np.asarray(box, np.float64).reshape(-1)[:4]
            if box.shape != (4,):
                raise ValueError("a box needs four numbers")
            box = box if (np.abs(box) < FARTHEST).all() else None
        self.frame.append(int(frame))
        self.points.append(points)
        self.boxes.append(box)
        self.box_scores.append(np.nan if score is None else float(np.asarray(score, np.float64).reshape(-1)[0]))
        self.identity.append(int(identity))

    def finish(self, frames: int, layout: str | None, unseen_at_zero: bool = True, **more: Any) -> Detections:
        """The table, ordered by frame; the joints are those of `layout`, else guessed from their number and place.

        Args:
            frames: T.
            unseen_at_zero: joints with a score of 0 were not found.
        """
        if not self.points:
            raise DataError(f"{self.path}: the {self.source} file has no person in any frame; lower the detector's threshold")
        x = np.stack(self.points)
        layout, x = _joints(self.path, self.source, x, layout)
        scores = np.nan_to_num(x[..., 2], nan=0.0, posinf=0.0, neginf=0.0)
        unseen = ~(np.abs(x[..., :2]) < FARTHEST).all(-1) | ((scores <= 0) if unseen_at_zero else False)
        keypoints = np.where(unseen[..., None], np.nan, x[..., :2])
        scores = np.where(unseen, 0.0, scores)
        boxes = np.stack([np.full(4, np.nan) if box is None else box for box in self.boxes])
        boxes = np.where(np.isfinite(boxes), boxes, _boxes_of(keypoints))
        box_scores = np.array(self.box_scores, np.float64)
        box_scores = np.where(np.isfinite(box_scores), box_scores, scores.mean(1))
        frame, identity = np.array(self.frame, np.int64), np.array(self.identity, np.int64)
        kept = np.flatnonzero((~unseen).any(1))
        kept = kept[np.argsort(frame[kept], kind="stable")]
        if not len(kept):
            raise DataError(f"{self.path}: no joint of anyone has coordinates and a score above 0; check the {self.source} file")
        columns = (column[kept] for column in (frame, keypoints, scores, boxes, box_scores, identity))
        return Detections(self.source, layout, frames, *columns, **more)


def read_detections(path: str | Path, layout: str | None = None, size: Sequence[int] | None = None, fps: float = 0.0) -> Detections:
    """Everyone whom a detector found in one video.

    Args:
        path: a file or, of OpenPose, a folder; see the module for the kinds.
        layout: skeleton of the joints in the file, for files that do not make it clear.
        size: width and height of the pictures in px; it goes before what the file says.
        fps: frames per second, where the file does not say.

    Raises:
        DataError: missing, of no known kind, damaged, empty, or its joints need `layout`.
        ConfigError: there is no such layout.
    """
    path = Path(path)
    if layout is not None:
        skeletons.get(layout)
    try:
        found = _reader(path)(layout)
    except MALFORMED as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise DataError(f"{path}: damaged, or not as its kind is written ({said}); run the detector again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    changes = {"fps": found.fps or float(fps)} | ({} if size is None else {"size": _size(size, path)})
    return Detections(**{**found.__dict__, **changes})


# ------------------------------------------------------------------------------------------------------- which kind


def _reader(path: Path) -> Callable[[str | None], Detections]:
    """What reads the file, by its contents."""
    if path.is_dir():
        return lambda layout: _openpose(path, layout)
    with open(path, "rb") as file:
        head = file.read(6)
    if head[:4] == b"PK\x03\x04":
        return lambda layout: _npz(path, layout)
    if head == b"\x93NUMPY":
        return lambda layout: _arrays(path, "array", np.load(path, mmap_mode="r", allow_pickle=False), layout)
    content = _json(path)
    for fits, read in _JSON_KINDS:
        if fits(content):
            return lambda layout: read(path, content, layout)
    raise DataError(f"{path}: the JSON is of no known detector; expected OpenPose, AlphaPose, COCO, MMPose or scripts/predict.py")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except MALFORMED as error:
        raise DataError(f"{path}: neither npz, npy nor complete JSON ({str(error)[:80]}); expected the file of a 2D detector") from None


def _entries(content: Any, *keys: str) -> bool:
    """A list of mappings, the first of which has the keys."""
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and all(key in content[0] for key in keys)


def _mapping(content: Any, *keys: str) -> bool:
    return isinstance(content, dict) and all(key in content for key in keys)


# ---------------------------------------------------------------------------------------------------------- joints


def _joints(path: Path, source: str, x: np.ndarray, layout: str | None) -> tuple[str, np.ndarray]:
    """Name of the layout, and x (N,K,3) cut to its joints (N,J,3)."""
    count = x.shape[1]
    guess = BY_COUNT.get(count, "")
    if guess == "openpose25" and layout is None:
        guess = _body25(x)
    if layout is not None and layout != guess and skeletons.get(layout).num != count:  # a guess may be part of a whole body
        raise DataError(f"{path}: {count} joints, but {layout} has {skeletons.get(layout).num}; give the layout of the file")
    layout = layout or guess
    if not layout:
        raise DataError(f"{path}: which {count} joints are these in the {source} file? Give the layout of the file (--layout NAME)")
    return layout, x[:, : skeletons.get(layout).num]


def _body25(x: np.ndarray) -> str:
    """Which of OpenPose's two orders of 25 joints: in BODY_25 the pelvis lies half-way between the hips."""
    pelvis, *hips = skeletons.get("openpose25").indices(("pelvis", "l_hip", "r_hip"))
    seen = (x[:, [pelvis, *hips], 2] > 0).all(1)
    if not seen.any():
        return "openpose25"
    x = x[seen]
    found = x[..., 2:] > 0
    extent = np.max(np.where(found, x[..., :2], -np.inf), 1) - np.min(np.where(found, x[..., :2], np.inf), 1)
    off = np.linalg.norm(x[:, pelvis, :2] - x[:, hips, :2].mean(1), axis=-1) / np.maximum(np.linalg.norm(extent, axis=-1), 1e-9)
    return "openpose25" if np.median(off) < 0.05 else "body25b"


def _named(names: Sequence[str]) -> str | None:
    """The skeleton whose joints have these names in this order (left_knee, l_knee), if there is one."""
    ours = tuple(re.sub(r"^(left|right)_", lambda side: f"{side[1][0]}_", str(name).lower()) for name in names)
    return next((name for name, skeleton in skeletons.SKELETONS.items() if skeleton.joints == ours), None)


def _stated(layout: str, path: Path) -> str:
    """The skeleton that a file says its joints are of."""
    try:
        return skeletons.get(layout).name
    except ConfigError as error:
        raise DataError(f"{path}: {error}; write the file again") from None


def _boxes_of(keypoints: np.ndarray) -> np.ndarray:
    """Boxes around the joints that were found, of (N,J,2); without any joint infinite.   -> (N,4)"""
    seen = np.isfinite(keypoints)
    return np.concatenate([np.where(seen, keypoints, np.inf).min(1), np.where(seen, keypoints, -np.inf).max(1)], -1)


def _size(size: Any, path: Path) -> tuple[int, int]:
    w, h = (int(v) for v in size)
    if not (0 < w < 1 << 20 and 0 < h < 1 << 20):
        raise DataError(f"{path}: a picture of {w} x {h} px; expected its width and height")
    return w, h


def _triples(values: Any) -> np.ndarray:
    """Flat x, y, score, ... of one person.   -> (K,3)"""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) == 0 or len(values) % 3:
        raise ValueError(f"{values.size} numbers in keypoints, expected x, y and a score per joint")
    return values.reshape(-1, 3)


def _length(path: Path, numbers: Iterable[int], first: int) -> int:
    """T of frames numbered from `first` on, if the numbers can be those of frames."""
    numbers = set(numbers)
    frames = max(numbers) - first + 1
    if frames > 20 * len(numbers) + SPARSE:
        raise DataError(
            f"{path}: {len(numbers)} pictures with numbers up to {max(numbers)} are no frames of one video; give the annotation "
            "file that lists all images, or number the frames one by one"
        )
    return frames


def _numbers(path: Path, names: Iterable[str]) -> dict[str, int]:
    """Frame number by picture: the last digits of its name; by order where a name has none."""
    names = sorted(set(names))
    digits = {name: re.findall(r"\d+", re.sub(r"(_keypoints)?\.\w+$", "", name)) for name in names}
    if not all(digits.values()):
        return {name: i for i, name in enumerate(names)}
    numbers = {name: int(found[-1][-18:]) for name, found in digits.items()}
    if len(set(numbers.values())) != len(numbers):
        raise DataError(f"{path}: two pictures have the same frame number ({names[0]}, ...); expected one video per file")
    return numbers


# ---------------------------------------------------------------------------------------------------------- readers


def person_slot(frame: Any) -> np.ndarray:
    """What Detectron's archive holds of people in one frame, (n,...) float64; empty where it found none."""
    found = frame[PERSON] if len(frame) > PERSON else ()
    return np.zeros((0,)) if found is None or len(found) == 0 else np.asarray(found, np.float64)


def _npz(path: Path, layout: str | None) -> Detections:
    content = load_npz(path)
    if "positions_2d" in content:
        raise DataError(f"{path}: this is an archive of keypoints already; expected the files of a detector")
    if {"boxes", "keypoints"} <= set(content) and np.asarray(content["boxes"]).dtype == object:
        return _detectron(path, content, layout)
    if {"joints", "x_img", "frame"} <= set(content):
        return _predicted_table(path, content)
    if {"joints", "x_img"} <= set(content):
        content["frame"] = np.zeros(len(content["x_img"]), np.int64)
        return _predicted_table(path, content)
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray) and value.ndim in (3, 4)}
    if "joints" in content and layout is None:
        layout = _named(np.asarray(content["joints"]).astype(str).tolist())
    if "layout" in content and layout is None:
        layout = _stated(str(content["layout"]), path)
    chosen = arrays.get("keypoints", next(iter(arrays.values()))) if len(arrays) == 1 or "keypoints" in arrays else None
    if chosen is None:
        raise DataError(f"{path}: holds {', '.join(content) or 'nothing'}; expected one array (T,J,2) or (T,J,3), or `keypoints`")
    size = np.asarray(content.get("size", (0, 0))).reshape(-1)
    size, fps = _size(size, path) if size.any() else (0, 0), float(content.get("fps", 0.0))
    return _arrays(path, "array", chosen, layout, size=size, fps=fps)


def _detectron(path: Path, content: dict[str, Any], layout: str | None) -> Detections:
    boxes, keypoints = content["boxes"], content["keypoints"]
    if len(boxes) != len(keypoints):
        raise DataError(f"{path}: boxes of {len(boxes)} frames but keypoints of {len(keypoints)}")
    rows = _Rows.empty("Detectron", path)
    for t, (box, kp) in enumerate(zip(map(person_slot, boxes), map(person_slot, keypoints), strict=True)):
        if len(box) == 0 or len(kp) == 0:
            continue
        if box.ndim != 2 or box.shape[1] != 5 or kp.ndim != 3 or kp.shape[1] not in (4, 6) or len(box) != len(kp):
            raise DataError(f"{path}: frame {t}: boxes {box.shape} and keypoints {kp.shape}; expected (n,5) and (n,4,K) or (n,6,K)")
        place = kp[:, 4:6] if kp.shape[1] == 6 else kp[:, :2]  # the last two rows of six are the finer soft-argmax
        for points, b in zip(np.concatenate([place, kp[:, 3:4]], 1).swapaxes(1, 2), box, strict=True):
            rows.add(t, points, b[4], b[:4])
    meta = content.get("metadata")
    meta = meta.item() if isinstance(meta, np.ndarray) and meta.shape == () else meta
    size = _size((meta["w"], meta["h"]), path) if _mapping(meta, "w", "h") else (0, 0)
    return rows.finish(len(boxes), layout, unseen_at_zero=False, size=size)


def _openpose(path: Path, layout: str | None) -> Detections:
    files = [file for file in sorted(path.iterdir()) if file.suffix == ".json"]
    if not files:
        raise DataError(f"{path}: a folder without JSON files; expected those of OpenPose, one per frame")
    numbers = _numbers(path, [file.name for file in files])
    first = min(numbers.values())
    rows = _Rows.empty("OpenPose", path)
    contents = {file: _json(file) for file in files}
    # Pose2Sim's association keeps everyone's place in the list with an empty entry where a view does not show a person
    placed = any(person == {} for content in contents.values() if _mapping(content, "people") for person in content["people"])
    for file, content in contents.items():
        try:
            _openpose_frame(rows, numbers[file.name] - first, content, placed)
        except MALFORMED as error:
            raise DataError(f"{file}: not a frame of OpenPose ({error}); expected people with pose_keypoints_2d") from None
    return rows.finish(_length(path, numbers.values(), first), layout, first=first)


def _openpose_frame(rows: _Rows, frame: int, content: Any, placed: bool = False) -> None:
    """The people of one frame; `placed`: whom an entry is of is told by its place."""
    if not _mapping(content, "people"):
        raise KeyError("people")
    for place, person in enumerate(content["people"]):
        points = person["pose_keypoints_2d"] if person or not placed else ()
        if len(points):
            rows.add(frame, _triples(points), identity=place if placed else _identity(person.get("person_id")))


def _openpose_picture(path: Path, content: Any, layout: str | None) -> Detections:
    rows = _Rows.empty("OpenPose", path)
    _openpose_frame(rows, 0, content)
    return rows.finish(1, layout)


def _identity(value: Any) -> int:
    """The number of a person: 3, 3.0, [3]; -1 = none."""
    while isinstance(value, list) and value:
        value = value[0]
    return int(value) if isinstance(value, int | float) and np.isfinite(value) and value >= 0 else -1


def _results(path: Path, content: list, layout: str | None) -> Detections:
    """AlphaPose and COCO results: a list with a picture, keypoints and a score per person."""
    people = [entry for entry in content if int(entry.get("category_id", PERSON)) == PERSON]
    alphapose = any(isinstance(entry["image_id"], str) for entry in people)
    names = [str(entry["image_id"]) for entry in people]
    if not names:
        raise DataError(f"{path}: none of the {len(content)} entries is a person (category_id {PERSON})")
    numbers = _numbers(path, names)
    # AlphaPose names the frames of a video 0.jpg, 1.jpg, ... and leaves out those without people
    first = 0 if alphapose and all(re.fullmatch(r"(0|[1-9]\d*)\.\w+", name) for name in names) else min(numbers.values())
    rows = _Rows.empty("AlphaPose" if alphapose else "COCO results", path)
    for entry, name in zip(people, names, strict=True):
        box = entry.get("box", entry.get("bbox"))
        person = next((entry[key] for key in ("track_id", "idx", "person_id") if key in entry), None)
        rows.add(numbers[name] - first, _triples(entry["keypoints"]), entry.get("score"), _corners(box), _identity(person))
    return rows.finish(_length(path, numbers.values(), first), layout, first=first)


def _corners(box: Any) -> np.ndarray | None:
    """x0 y0 x1 y1 of COCO's x, y, width, height."""
    if box is None:
        return None
    x, y, w, h = np.asarray(box, np.float64)
    return np.array([x, y, x + w, y + h])


def _annotations(path: Path, content: dict, layout: str | None) -> Detections:
    """COCO annotations: every listed image is a frame, in the order of frame_id, else of the numbers in the names, else of the ids."""
    images = content["images"]
    if not images:
        raise DataError(f"{path}: lists no images; expected the frames of one video")
    sizes = {(int(image["width"]), int(image["height"])) for image in images if "width" in image}
    if len(sizes) > 1:
        some = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:2])
        raise DataError(f"{path}: pictures of {len(sizes)} sizes ({some}, ...); expected the frames of one video")
    if all("frame_id" in image for image in images):
        order = {image["id"]: int(image["frame_id"]) for image in images}
    elif all("file_name" in image for image in images):
        numbers = _numbers(path, [image["file_name"] for image in images])
        order = {image["id"]: numbers[image["file_name"]] for image in images}
    else:
        order = {image["id"]: int(image["id"]) for image in images}
    frame = {name: t for t, name in enumerate(sorted(order, key=order.__getitem__))}
    if layout is None:
        layout = _category(path, content)
    rows = _Rows.empty("COCO annotation", path)
    for entry in content["annotations"]:
        if entry.get("iscrowd") or "keypoints" not in entry or int(entry.get("category_id", PERSON)) != PERSON:
            continue
        if entry["image_id"] not in frame:
            raise DataError(f"{path}: a person of image {entry['image_id']}, which is not listed in images")
        points = _triples(entry["keypoints"])
        if "score" not in entry:
            points[:, 2] = points[:, 2] > 0  # 1 hidden, 2 visible: both have a place
        rows.add(frame[entry["image_id"]], points, entry.get("score"), _corners(entry.get("bbox")), _identity(entry.get("track_id")))
    return rows.finish(len(images), layout, size=_size(sizes.pop(), path) if sizes else (0, 0))


def _category(path: Path, content: dict) -> str | None:
    """The skeleton of COCO's named keypoints; None where the file does not name them."""
    named = [category for category in content.get("categories", []) if category.get("keypoints")]
    if not named:
        return None
    layout = _named(named[0]["keypoints"])
    if layout is None:
        raise DataError(f"{path}: joints {', '.join(map(str, named[0]['keypoints'][:4]))}, ... are of no known layout; give --layout NAME")
    return layout


def _mmpose(path: Path, content: Any, layout: str | None) -> Detections:
    """MMPose's demos ({instance_info: frames}) and inferencer (frames, or the people of one picture); frames count from 0 or 1."""
    frames = content["instance_info"] if isinstance(content, dict) else content
    if not _entries(frames, "instances"):
        frames = [{"frame_id": 0, "instances": frames}]
    meta = content.get("meta_info", {}) if isinstance(content, dict) else {}
    if layout is None and isinstance(meta, dict) and meta.get("keypoint_id2name"):
        names = meta["keypoint_id2name"]
        layout = _named([names[key] for key in sorted(names, key=int)])
    numbers = [int(frame.get("frame_id", i)) for i, frame in enumerate(frames)]
    rows = _Rows.empty("MMPose", path)
    for number, frame in zip(numbers, frames, strict=True):
        for person in frame["instances"]:
            points = np.asarray(person["keypoints"], np.float64)
            scores = np.asarray(person.get("keypoint_scores", np.ones(len(points))), np.float64)
            box = person.get("bbox")
            rows.add(
                number - numbers[0], np.column_stack([points[:, :2], scores]), person.get("bbox_score"),
                None if box is None else np.asarray(box, np.float64).reshape(-1)[:4], _identity(person.get("track_id")),
            )  # fmt: skip
    if min(numbers) < numbers[0] or len(set(numbers)) != len(numbers):
        raise DataError(f"{path}: frames are not in order; expected one video")
    return rows.finish(_length(path, numbers, numbers[0]), layout)


def _predicted(path: Path, content: dict, layout: str | None) -> Detections:
    """The JSON of scripts/predict.py."""
    frames = content.get("frames", [{"frame": 0, "people": content.get("people", [])}])
    rows = _Rows.empty("predict.py", path)
    names = set()
    for frame in frames:
        for person in frame["people"]:
            names.add(str(person["skeleton"]))
            points = np.column_stack([np.asarray(person["x_img"], np.float64), np.asarray(person["conf"], np.float64)])
            rows.add(frame["frame"], points, box=person["box"])
    if len(names) > 1:
        raise DataError(f"{path}: skeletons {', '.join(sorted(names))} are mixed")
    layout = _stated(names.pop(), path) if names else layout
    size, numbers = _size((content["width"], content["height"]), path), [int(frame["frame"]) for frame in frames]
    if not numbers or min(numbers) < 0:
        raise DataError(f"{path}: holds no frames")
    return rows.finish(_length(path, numbers, 0), layout, size=size, fps=float(content.get("fps", 0.0)))


def _predicted_table(path: Path, content: dict[str, Any]) -> Detections:
    """The npz of scripts/predict.py: one row per person and frame."""
    layout = _named(np.asarray(content["joints"]).astype(str).tolist())
    if layout is None:
        raise DataError(f"{path}: its joints are of no known skeleton; use the JSON file beside it")
    rows, frame = _Rows.empty("predict.py", path), np.asarray(content["frame"]).astype(np.int64)
    x = np.concatenate([np.asarray(content["x_img"], np.float64), np.asarray(content["conf"], np.float64)[..., None]], -1)
    if len(frame) and frame.min() < 0:
        raise DataError(f"{path}: negative frame numbers")
    for number, points, box in zip(frame, x, content["box"], strict=True):
        rows.add(number, points, box=box)
    return rows.finish(_length(path, frame.tolist() or [0], 0), layout)


def _arrays(path: Path, source: str, x: np.ndarray, layout: str | None, **more: Any) -> Detections:
    """Plain arrays (T,J,2|3) or (M,T,J,2|3); joints at 0, 0 and NaN were not found."""
    if x.ndim not in (3, 4) or x.shape[-1] not in (2, 3) or x.dtype.kind not in "fiu" or x.size == 0:
        raise DataError(f"{path}: an array of shape {x.shape} and type {x.dtype}; expected numbers (T,J,2), (T,J,3) or (M,T,J,2|3)")
    if layout is None:
        raise DataError(f"{path}: an array does not say which {x.shape[-2]} joints it holds; give the layout of the file (--layout NAME)")
    x = np.asarray(x, np.float64)[None] if x.ndim == 3 else np.asarray(x, np.float64)
    scores = x[..., 2] if x.shape[-1] == 3 else np.ones(x.shape[:-1])
    scores = np.where((x[..., :2] == 0).all(-1), 0.0, scores)
    full = np.concatenate([x[..., :2], scores[..., None]], -1)
    rows = _Rows.empty(source, path)
    for person, track in enumerate(full):
        for t, points in enumerate(track):
            rows.add(t, points, identity=person)
    return rows.finish(x.shape[1], layout, **more)


_JSON_KINDS: tuple[tuple[Callable[[Any], bool], Callable[[Path, Any, str | None], Detections]], ...] = (
    (lambda c: _mapping(c, "units", "width") and ("frames" in c or "people" in c), _predicted),
    (lambda c: _mapping(c, "people"), _openpose_picture),
    (lambda c: _mapping(c, "images", "annotations"), _annotations),
    (lambda c: _mapping(c, "instance_info") or _entries(c, "instances") or _entries(c, "keypoints", "keypoint_scores"), _mmpose),
    (lambda c: _entries(c, "image_id", "keypoints"), _results),
)


# ------------------------------------------------------------------------------------------------- pictures of a data set


def read_pictures(path: str | Path, images: Sequence[str], layout: str | None = None) -> Detections | None:
    """Everyone whom a detector found in the pictures of a data set; `frame` of the result is the place in `images`.

    Kinds: COCO results and HRNet's, AlphaPose's list (image_id is a number in `images`, or the name of the picture), COCO annotations (by
    file_name), and one JSON per picture called like it, of OpenPose (NAME_keypoints.json) or MMPose's inferencer.

    A name fits the picture whose path, or whose end of it, it is. Else the name without folders and ending must be that of a picture
    (or have the same numbers: hd_00_03_000000000168 is 00_03_00000168); where several are called so, the folders decide: those of the
    name, those below `path` that the file lies in, and the file's own name. So `RESULTS/160906_band1/00_03/00_03_00000168_keypoints.json`
    and a list `RESULTS/160906_band1.json` both say which sequence they are of.

    Args:
        path: a JSON file, or a folder with such files at any depth. In a folder there may be more pictures than in `images`; they are
            passed over. A file must not name any other picture.
        images: paths of the pictures; an empty one is a number that no picture has.
        layout: skeleton of the joints, for files that do not make it clear.

    Returns:
        None where nobody was found in any picture.

    Raises:
        DataError: missing, of no known kind, damaged, or it names a picture that is not there or may be any of several.
    """
    path = Path(path)
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: a folder without JSON files; expected those of a detector")
    names, rows, passed = _Pictures(images), _Rows.empty("picture", path), 0
    owner: dict[int, Any] = {}
    for file in files:
        said_by = [*file.relative_to(path).parts[:-1], file.stem] if path.is_dir() else [file.stem]
        try:
            content = json.loads(file.read_bytes())
            layout = _category(file, content) if layout is None and _mapping(content, "categories") else layout
            for name, people in _by_picture(file, content):
                place = names.find(name, said_by, file)
                if place is None and path.is_dir():
                    passed += 1
                    continue
                if place is None:
                    raise DataError(
                        f"{file}: a person of picture {name!r}, which is not in the list; run the detector on the list that was written"
                    )
                source = name if len(files) == 1 else (file, name)
                if owner.setdefault(place, source) != source:
                    both = f"{name!r} and {owner[place]} are both taken for {images[place]}"
                    raise DataError(f"{file}: {both}; rename a folder, or leave one out")
                for points, score, box in people:
                    rows.add(place, points, score, box)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from None
        except MALFORMED as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)[:120]
            raise DataError(
                f"{file}: no COCO results of keypoints ({said}), nor people of OpenPose, AlphaPose or MMPose; expected a list of image_id, "
                "keypoints, score, bbox, or one of these detectors' files"
            ) from None
    if passed and not owner:
        raise DataError(f"{path}: none of {passed} pictures is in the list of {len(images)}, such as {images[0]}; name files like pictures")
    if passed:
        log.info("%s: %d pictures are not in the list and were passed over", path, passed)
    found = any(np.isfinite(p).all(1).any() and (p[:, 2] > 0).any() for p in rows.points)
    return rows.finish(len(images), layout) if found else None


def read_boxes(path: str | Path, images: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """People's boxes in COCO results: a list of image_id, bbox (x y w h), score; joints are not needed. Names as for `read_pictures`.

    -> place in `images` (N,), boxes (N,4) x0 y0 x1 y1 px, scores (N,), 1 where there is none

    Raises:
        DataError: missing, damaged, or it names a picture that is not there.
    """
    path, names = Path(path), _Pictures(images)
    try:
        entries = [entry for entry in json.loads(path.read_bytes()) if int(entry.get("category_id", PERSON)) == PERSON]
        place = [names.find(entry["image_id"], [path.stem], path) for entry in entries]
        boxes = np.array([_corners(entry["bbox"]) for entry in entries], np.float64).reshape(-1, 4)
        scores = np.array([entry.get("score", 1.0) for entry in entries], np.float64)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except MALFORMED as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)[:120]
        raise DataError(f"{path}: no boxes in COCO's form ({said}); expected a list of image_id, bbox, score") from None
    if None in place:
        lost = entries[place.index(None)]["image_id"]
        raise DataError(f"{path}: a person of picture {lost!r}, which is not in the list; run the detector on the list that was written")
    return np.array(place, np.int64), boxes, scores


class _Pictures:
    """The pictures of a data set, to be found by what a detector calls them."""

    def __init__(self, images: Sequence[str]):
        self.images = [PurePosixPath(name) for name in images]
        self.exact = {str(name): i for i, name in enumerate(self.images)}
        self.like: dict[Any, list[int]] = {}
        for i, name in enumerate(self.images):
            for key in self._keys(name.stem):
                self.like.setdefault(key, []).append(i)

    @staticmethod
    def _keys(stem: str) -> list[Any]:
        numbers = tuple(int(d[-18:]) for d in re.findall(r"\d+", stem))
        return [stem.lower(), numbers] if numbers else [stem.lower()]

    def find(self, name: Any, said_by: Sequence[str], file: Path) -> int | None:
        """Place of a picture, None = not there.   DataError where it may be any of several"""
        if isinstance(name, int):
            return name if 0 <= name < len(self.images) and self.images[name].name else None
        path = PurePosixPath(str(name).replace("\\", "/"))
        if (place := self.exact.get(str(path))) is not None:
            return place
        stem = re.sub(r"_keypoints$", "", path.stem if path.suffix.lower() in _PICTURES else path.name)
        candidates = next((self.like[key] for key in self._keys(stem) if key in self.like), [])
        ends = [i for i in candidates if _end_of(path, self.images[i]) or _end_of(self.images[i], path)]
        if len(ends) == 1:
            return ends[0]
        words = {word.lower() for word in (*said_by, *path.parts[:-1])}
        shared = Counter({i: len(words & {word.lower() for word in self.images[i].parts[:-1]}) for i in candidates})
        best = [i for i in candidates if shared[i] == max(shared.values())]
        if len(best) > 1:
            raise DataError(
                f"{file}: picture {str(name)!r} may be {self.images[best[0]]} or {self.images[best[1]]}; put the file into a folder called "
                "like the picture's, or name the picture with its folders"
            )
        return best[0] if best else None


_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def _end_of(short: PurePosixPath, path: PurePosixPath) -> bool:
    """Whether a path ends with another, whatever the endings of their files."""
    a, b = (p.with_suffix("").parts for p in (short, path))
    return len(a) > 1 and a == b[-len(a) :]


def _by_picture(file: Path, content: Any) -> list[tuple[Any, list[tuple]]]:
    """Name of a picture and its people: points (K,3), score, box x0 y0 x1 y1; the last two may be None."""
    stem = re.sub(r"_keypoints$", "", file.stem)
    if not content:
        return []
    if _mapping(content, "people"):
        rows = _Rows.empty("OpenPose", file)
        _openpose_frame(rows, 0, content)
        return [(stem, [(points, None, None) for points in rows.points])]
    if _entries(content, "keypoints", "keypoint_scores"):
        people = [
            (
                np.column_stack([np.asarray(p["keypoints"], np.float64)[:, :2], np.asarray(p["keypoint_scores"], np.float64)]),
                p.get("bbox_score"),
                None if p.get("bbox") is None else np.asarray(p["bbox"], np.float64).reshape(-1)[:4],
            )
            for p in content
        ]
        return [(stem, people)]
    names = {}
    if _mapping(content, "images", "annotations"):
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        content = [entry for entry in content["annotations"] if not entry.get("iscrowd") and "keypoints" in entry]
    found: dict[Any, list[tuple]] = {}
    for entry in content:
        if int(entry.get("category_id", PERSON)) == PERSON:
            name = names[entry["image_id"]] if names else entry["image_id"]
            points = _triples(entry["keypoints"])
            if names and "score" not in entry:
                points[:, 2] = points[:, 2] > 0
            found.setdefault(name, []).append((points, entry.get("score"), _corners(entry.get("bbox", entry.get("box")))))
    return list(found.items())
