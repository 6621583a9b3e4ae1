"""What the layouts of Shelf and Campus (Belagiannis et al., CVPR 2014; files as VoxelPose uses them) have in common:

<root>/actorsGT.mat                                   actor3D: actors -> frames -> (14,3) metres, or empty where the actor is absent
<root>/calibration_shelf.json                         per camera R, T (centre, mm), fx fy cx cy, k, p
<root>/pred_shelf_maskrcnn_hrnet_coco.pkl             "<camera>_<frame>" -> [{"pred": (17,3) x y confidence}, ...], COCO joints
<root>/panoptic_training_pose.pkl                     [{"pose": (17,3) mm, "vis": (17,3)}, ...], to make training scenes from
<root>/Camera0/img_000000.png                         shelf;  Camera0/campus4-c0-00000.png  campus

The published networks never see the images: they look at the detections, and learn from scenes that `synthetic_people` makes.
"""

import json
import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lib import skeleton as skeletons
from lib import unpickle
from lib.dataset.annotations import Annotations
from lib.dataset.calibrations import center_form, read_calibration, resized
from lib.dataset.formats.files import findings, need, part_folder, write_images
from lib.dataset.formats.matlab import load_mat
from lib.dataset.formats.multiview import ChosenImages, boxes_of, names_of, observed, renumbered, rigs
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing
from lib.geometry.camera import Cameras

DETECTED = "coco17"
LABELS = ("actors", "detections")
MISSING = ("empty", "skip")
SPLITS = ("valid", "train")  # besides "all"
MM = 1000.0  # per metre
POSES = "panoptic_training_pose.pkl"
ACTORS = "actorsGT.mat"
log = logging.getLogger("parallax")


class Layout(NamedTuple):
    """One of the two data sets."""

    name: str
    skeleton: str
    image: str  # path of an image from `camera` and `frame`
    size: tuple[int, int]  # of the images, px
    test: tuple[tuple[int, int], ...]  # first and last frame of what is tested on

    @property
    def calibration(self) -> str:
        return f"calibration_{self.name}.json"

    @property
    def detections(self) -> str:
        return f"pred_{self.name}_maskrcnn_hrnet_coco.pkl"

    def image_name(self, frame: int, camera: int) -> str:
        return self.image.format(camera=camera, frame=frame)

    def chosen(self, frames: np.ndarray, split: str) -> np.ndarray:
        """Which frames are of a split, bool.   Raises DataError for an unknown split."""
        test = np.zeros(len(frames), bool)
        for first, last in self.test:
            test |= (frames >= first) & (frames <= last)
        masks = {"valid": test, "test": test, "train": ~test, "all": np.ones(len(frames), bool)}
        if split not in masks:
            known = ", ".join(masks)
            raise DataError(f"{self.name} has no split {split!r}, only {known}; set DATASET.TRAIN_SET and TEST_SET to one of them")
        return masks[split]


# ------------------------------------------------------------------------------------------------------------- reading


def read(layout: Layout, root: str | Path, split: str, labels: str, missing: str = "empty") -> Annotations:
    """One split: valid (or test) = the published test frames, train = all others, all.

    Args:
        layout: the data set.
        root: its folder.
        split: see above.
        labels: "actors" = the annotated actors in 3D, projected into every camera; "detections" = the published 2D detections, people of
            a picture numbered as they are listed, without 3D, in COCO's joints. A picture of nobody has a row of person -1 without
            joints. Detections come with images where there are any (folder Camera0).
        missing: what a frame is whose actors are annotated but that the detections do not name for any camera. "empty" = nobody was
            detected there, since the published files leave such pictures out; "skip" = no part of the table, for a file that was cut.

    Raises:
        DataError: no such split, no frame in it, or a file that is missing or damaged.
    """
    root = Path(root)
    for name, value, known in (("labels", labels, LABELS), ("missing", missing, MISSING)):
        if value not in known:
            raise DataError(f"{name}: {value!r} is not one of {', '.join(known)}; correct DATASET.OPTIONS")
    cameras = rig(layout, root)
    if labels == "detections":
        return _detected(layout, root, split, cameras, missing)
    X = read_actors(root / ACTORS)  # (F,P,14,3)
    frame, person = np.nonzero(np.isfinite(X).all(-1).any(-1))
    keep = layout.chosen(frame, split)
    if not keep.any():
        raise DataError(
            f"{root / 'actorsGT.mat'}: {len(X)} frames, and no actor in one of the split {split!r} "
            f"({', '.join(f'{a} to {b}' for a, b in layout.test)} are tested on); use the split all for a shortened file"
        )
    frame, person = frame[keep], person[keep]
    known = X[frame, person]
    return observed(
        layout.skeleton, cameras, frame, person, known, np.isfinite(known).all(-1), layout.image_name, layout.name, layout.name
    )  # fmt: skip


def rig(layout: Layout, root: str | Path) -> Cameras:
    """The cameras (V,), in the order of their numbers, with the published size of the images unless the file has another."""
    path = Path(root) / layout.calibration
    known = read_calibration(path, unit="mm")
    numbers = [int(name) if name.isdigit() else -1 for name in known.names]
    if sorted(numbers) != list(range(len(numbers))):
        raise DataError(f"{path}: cameras are called {', '.join(known.names)}, expected 0, 1, ...; copy the file again")
    return resized(known.select([str(k) for k in range(len(numbers))]), layout.size).cameras


def read_actors(path: str | Path) -> np.ndarray:
    """actor3D of an actorsGT.mat.   -> (F,P,14,3) float64 mm, NaN where an actor is absent

    Cells may be wrapped in further cells of one element, at any depth.

    Raises:
        DataError: missing, no .mat file, or not nested like that.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; copy actorsGT.mat of the data set there")
    try:
        content = load_mat(path, ["actor3D"])
    except DataError:
        raise
    except Exception as error:  # SciPy, zlib and struct have errors of their own
        raise DataError(f"{path}: not a .mat file that can be read ({str(error)[:120]}); download it again") from None
    if "actor3D" not in content:
        raise DataError(f"{path}: has no actor3D; expected the annotations of Shelf or Campus")
    top = _unwrapped(content["actor3D"])
    cells = list(top.ravel()) if top.dtype == object else [top]
    # a row of actors, each a column of frames; or the frames of one actor
    several = top.dtype == object and (any(_unwrapped(c).dtype == object for c in cells) or top.shape[0] == 1)
    actors = [_frames(path, c) for c in cells] if several else [_frames(path, top)]
    lengths = {len(actor) for actor in actors}
    if len(lengths) != 1:
        raise DataError(f"{path}: the actors have {', '.join(map(str, sorted(lengths)))} frames, expected as many each; download it again")
    return np.stack(actors, 1) * MM


def annotated_frames(layout: Layout, X: np.ndarray, split: str) -> np.ndarray:
    """Numbers of the frames of a split in which there is an actor.   X as of `read_actors` -> (F,) int64"""
    frames = np.flatnonzero(np.isfinite(X).all(-1).any((1, 2)))
    return frames[layout.chosen(frames, split)]


def _unwrapped(value: Any) -> np.ndarray:
    """The first array within cells of one element that is no such cell."""
    value = np.asarray(value)
    while value.dtype == object and value.size == 1:
        value = np.asarray(value.flat[0])
    return value


def _frames(path: Path, value: Any) -> np.ndarray:
    """The poses of one actor.   -> (F,14,3) metres, NaN where absent"""
    value = _unwrapped(value)
    cells = [_unwrapped(c) for c in value.ravel()] if value.dtype == object else [value]
    out = np.full((len(cells), 14, 3), np.nan)
    for t, pose in enumerate(cells):
        if pose.size == 0:
            continue
        if pose.shape != (14, 3) or pose.dtype.kind not in "fiu":
            raise DataError(f"{path}: frame {t} holds an array of shape {pose.shape} of {pose.dtype}, expected (14, 3) or nothing")
        out[t] = pose
    return out


def read_detections(path: str | Path) -> dict[tuple[int, int], np.ndarray]:
    """Published 2D detections by (camera, frame).   -> (n,17,3) float64 each: x y px and confidence; n may be 0

    Raises:
        DataError: missing, damaged, or not these.
    """
    content = unpickle.load(path)
    found = {}
    try:
        for key, people in content.items():
            camera, frame = re.fullmatch(r"(\d+)_(\d+)", str(key)).groups()
            joints = [np.asarray(person["pred"], np.float64) for person in people]
            if any(x.shape != (17, 3) or not np.isfinite(x).all() for x in joints):
                raise ValueError(f"{key}: a person of shape {[x.shape for x in joints]}, expected finite (17, 3)")
            found[int(camera), int(frame)] = np.array(joints).reshape(-1, 17, 3)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not 2D detections of Shelf or Campus ({error}); download the file again") from None
    return found


def _detected(layout: Layout, root: Path, split: str, cameras: Cameras, missing: str) -> Annotations:
    path = root / layout.detections
    found = read_detections(path)
    strange = sorted({c for (c, _), people in found.items() if len(people) and c >= len(cameras)})
    if strange:
        raise DataError(f"{path}: detections of cameras {strange}, but the calibration has {len(cameras)}; do they belong together?")
    keys = sorted((f, c) for c, f in found if c < len(cameras))
    keys = [key for key, there in zip(keys, layout.chosen(np.array([f for f, _ in keys], np.int64), split), strict=True) if there]
    if not keys:
        raise DataError(f"{path}: no frame of the split {split!r}; use another split, or download the file again")
    if missing == "empty" and (root / ACTORS).is_file():
        unnamed = np.setdiff1d(annotated_frames(layout, read_actors(root / ACTORS), split), [f for f, _ in keys]).tolist()
        if unnamed:
            log.warning(
                "%s: does not name %d frames in which there are actors (%s): nobody is detected there, and all parts are wrong; if the "
                "file was cut, DATASET.OPTIONS {missing: skip} leaves them out", path, len(unnamed), ", ".join(map(str, unnamed[:5])),
            )  # fmt: skip
        keys = sorted([*keys, *((f, c) for f in unnamed for c in range(len(cameras)))])
    nobody = np.zeros((1, skeletons.get(DETECTED).num, 3))
    seen = [found.get((c, f), nobody[:0]) for f, c in keys]
    joints = np.concatenate([x if len(x) else nobody for x in seen])
    people = np.array([len(x) for x in seen])
    count = np.maximum(people, 1)
    rows = np.repeat(np.arange(len(keys)), count)
    frame, view = np.array(keys).T[:, rows]
    frames, instant = np.unique(frame, return_inverse=True)
    conf = joints[..., 2].clip(0, 1)
    person = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    pictures = (root / os.path.dirname(layout.image_name(0, 0))).is_dir()
    size = np.array(layout.size)
    inside = ((joints[..., :2] >= 0) & (joints[..., :2] <= size - 1)).all(-1)
    columns = {
        "sequence": np.zeros(len(rows)),
        "frame": frame,
        "view": view,
        "person": np.where(people[rows] > 0, person, -1),
        "image": instant * len(cameras) + view if pictures else np.full(len(rows), -1),
        "camera": view,
        "pose": np.full(len(rows), -1),
    }
    none = skeletons.get(DETECTED).num
    return Annotations(
        skeleton=DETECTED,
        cameras=cameras,
        X_world=np.zeros((0, none, 3), np.float32),
        X_valid=np.zeros((0, none), bool),
        **{key: value.astype(np.int32) for key, value in columns.items()},
        x_img=joints[..., :2].astype(np.float32),
        conf=conf.astype(np.float32),
        visible=(conf > 0) & inside,
        box=boxes_of(joints[..., :2], conf > 0),
        images=names_of(layout.image_name, frames if pictures else (), len(cameras)),
        subjects=np.array([layout.name.encode()]),
        actions=np.array([layout.name.encode()]),
        subactions=np.array([b""]),
    )


# -------------------------------------------------------------------------------------------------------------- writing


def write(
    layout: Layout,
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None,
    workers: int,
    progress: bool,
) -> None:
    """Writes a whole data set: actors, calibration, the 2D joints as if they had been detected, training poses, images.

    Frames are numbered from the first of the split on (valid: the published test frames). The layout knows one rig of pinholes.

    Raises:
        DataError: the table does not fit the layout, a file exists, or something cannot be written.
    """
    sio = need("scipy.io", "writing actorsGT.mat")
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})")
    group, found = rigs(ann)
    if len(found) != 1 or (ann.pose < 0).any() or (ann.image < 0).any():
        raise DataError(
            f"{root}: {len(found)} rigs, or observations without 3D or image, have no place in {layout.name}, expected one rig; select "
            "one subject (Annotations.protocol)"
        )
    views = sorted(found[0])
    cameras = Cameras.stack([ann.cameras[found[0][v]] for v in views])
    number = _numbers(layout, root, split, renumbered(ann, np.flatnonzero(group >= 0)))
    slot = np.searchsorted(views, ann.view)
    actor = np.ravel(np.unique(ann.person, return_inverse=True)[1])  # a number of a person is one actor in all sequences
    with part_folder(root, split) as part:
        X = ann.to_skeleton(layout.skeleton)
        cells = _cells(X, number, actor, slot, len(views))
        sio.savemat(part / ACTORS, cells)
        sizes = cameras.size.int().tolist()  # of pictures that are not those of the data set
        forms = {name: form | {"size": size} for (name, form), size in zip(center_form(cameras).items(), sizes, strict=True)}
        (part / layout.calibration).write_text(json.dumps(forms, indent=1) + "\n")
        with open(part / layout.detections, "wb") as file:
            pickle.dump(_as_detected(ann.to_skeleton(DETECTED), number, slot, len(views)), file)
        with open(part / POSES, "wb") as file:
            pickle.dump(_as_poses(ann.to_skeleton(DETECTED)), file)
        images = {
            int(i): layout.image_name(int(f), int(v)) for i, f, v in zip(ann.image, number, slot, strict=True)
        }  # fmt: skip
        files = [ACTORS, layout.calibration, layout.detections, POSES]
        for name in [*files, *images.values()]:
            refuse_existing(root / name)
        if image is not None:
            for folder in {os.path.dirname(name) for name in images.values()}:
                (part / folder).mkdir(parents=True, exist_ok=True)
                (root / folder).mkdir(parents=True, exist_ok=True)
            names = [str(part / name) for name in images.values()]
            write_images(ChosenImages(image, list(images)), names, workers, f"{root}: {split}" if progress else None)
            files = [*images.values(), *files]  # annotations last
        for name in files:
            os.rename(part / name, root / name)


def _numbers(layout: Layout, root: Path, split: str, place: np.ndarray) -> np.ndarray:
    """Frame numbers of a split for places 0, 1, ...; the published test frames in order, or any others."""
    last = max(b for _, b in layout.test) + 1 + int(place.max(initial=0))
    frames = np.arange(last + 1)
    frames = frames[layout.chosen(frames, split)]
    if place.max(initial=0) >= len(frames):
        raise DataError(f"{root}: {place.max() + 1} frames, but the split {split} of {layout.name} has {len(frames)}; select fewer")
    return frames[place]


def _cells(ann: Annotations, number: np.ndarray, actor: np.ndarray, slot: np.ndarray, views: int) -> dict[str, np.ndarray]:
    """actor3D and actor2D as nested cells."""
    frames, actors = int(number.max()) + 1, int(actor.max()) + 1
    three, two = np.empty((1, actors), object), np.empty((1, actors), object)
    for a in range(actors):
        three[0, a], two[0, a] = np.empty((frames, 1), object), np.empty((frames, 1), object)
        for t in range(frames):
            three[0, a][t, 0] = np.zeros((1, 0))
            two[0, a][t, 0] = np.empty((1, views), object)
            two[0, a][t, 0][0, :] = [np.zeros((1, 0))] * views
    for row in range(len(ann)):
        X, valid = ann.X_world[ann.pose[row]].astype(np.float64) / MM, ann.X_valid[ann.pose[row]]
        three[0, actor[row]][number[row], 0] = np.where(valid[:, None], X, np.nan)
        two[0, actor[row]][number[row], 0][0, slot[row]] = ann.x_img[row].astype(np.float64)
    return {"actor3D": three, "actor2D": two}


def _as_detected(ann: Annotations, number: np.ndarray, slot: np.ndarray, views: int) -> dict[str, list[dict]]:
    """The 2D joints in the form of the detections' pickle."""
    found: dict[str, list[dict]] = {f"{v}_{t}": [] for t in np.unique(number) for v in range(views)}
    seen = ann.conf * ann.visible
    for row in range(len(ann)):
        if seen[row].any():
            found[f"{slot[row]}_{number[row]}"].append({"pred": np.column_stack([ann.x_img[row], seen[row]]).astype(np.float64)})
    return found


def _as_poses(ann: Annotations) -> list[dict]:
    """The 3D poses in the form of the training poses' pickle."""
    used = np.unique(ann.pose)
    return _pose_list(ann.X_world[used], ann.X_valid[used])


# ---------------------------------------------------------------------------------------------------------------- check


def check(layout: Layout, root: str | Path, split: str | None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Images are not asked for: the networks do without."""
    root = Path(root)
    said = []
    for labels in LABELS:
        try:
            ann = read(layout, root, split or "all", labels).check(f"{root} ({labels})")
        except DataError as error:
            if str(error) not in said:
                said.append(str(error))
            continue
        present = [i for i in np.unique(ann.image[ann.image >= 0]) if (root / ann.images[i].decode()).exists()]
        told = findings(ann, root, f"{root} ({labels})")
        if not ann.conf.any():
            said.append(f"{root / layout.detections}: nobody is detected in any frame; download the file again")
        said += told if present else [text for text in told if "images are missing" not in text]
    if not (root / POSES).is_file():
        said.append(f"{root / POSES}: no such file; the published networks learn from scenes made of its poses")
    return said


# ------------------------------------------------------------------------------------------- scenes to be trained on


class SceneRules(NamedTuple):
    """How people are put into a scene, and how their 2D joints are disturbed."""

    most: int  # people
    x: tuple[float, float]  # mm, where a person may stand
    y: tuple[float, float]
    views: int = 0  # that must see the place 1 m above the floor; 0 = any
    margin_px: float = 10.0  # ... this far inside the picture
    apart: float = 0.7  # share of people who stand anywhere; the others stand beside somebody
    beside_mm: tuple[float, float] = (500.0, 50.0)  # mean and standard deviation of that shift, in x and in y
    overlap: float = 0.01  # IoU of two people seen from above must be less
    tries: int = 100  # for one person; then the scene has fewer
    legs: bool = False  # whether knees suffer as elbows do, and ankles as wrists
    missed: float = 0.0  # share of people whom a view does not detect


SHELF_RULES = SceneRules(5, (-1000.0, 2000.0), (-1600.0, 1600.0), legs=True, missed=0.05)
CAMPUS_RULES = SceneRules(9, (-2500.0, 8500.0), (-1000.0, 10000.0), views=2)


def read_poses(path: str | Path, skeleton: str = DETECTED) -> tuple[np.ndarray, np.ndarray]:
    """Poses to make scenes from (panoptic_training_pose.pkl, or predictions in its form).   -> (P,J,3) float64 mm, (P,J) bool

    Poses of COCO's 17 joints become those of `skeleton`; a joint that is made of several is known where all of them are.

    Raises:
        DataError: missing, damaged, or neither the joints of `skeleton` nor COCO's.
    """
    content, joints = unpickle.load(path), skeletons.get(skeleton).num
    try:
        X = np.stack([np.asarray(person["pose"], np.float64) for person in content])
        vis = np.stack([np.asarray(person["vis"]) > 0 for person in content])
    except MALFORMED as error:
        raise DataError(f"{path}: not a list of pose and vis ({error}); expected the training poses of Shelf and Campus") from None
    valid = vis if vis.ndim == 2 else vis.all(-1)
    if X.shape[1:] == (skeletons.get(DETECTED).num, 3) and valid.shape == X.shape[:2] and skeleton != DETECTED:
        X, present = skeletons.convert(np.where(valid[..., None], X, np.nan), DETECTED, skeleton)
        valid = np.isfinite(X).all(-1) & present
    if X.shape[1:] != (joints, 3) or valid.shape != X.shape[:2] or not np.isfinite(X[valid]).all():
        raise DataError(f"{path}: poses of shape {X.shape} and vis {vis.shape}, expected ({len(X)}, {joints}, 3) finite for {skeleton}")
    return np.where(valid[..., None], X, 0.0), valid


def write_poses(path: str | Path, X: np.ndarray, valid: np.ndarray) -> None:
    """Poses in the form of panoptic_training_pose.pkl, for `read_poses` and the original program.   X (P,J,3) mm, valid (P,J) bool

    Raises:
        DataError: the file exists, or cannot be written.
    """
    with new_file(path) as part, open(part, "wb") as file:
        pickle.dump(_pose_list(X, valid), file)


def _pose_list(X: np.ndarray, valid: np.ndarray) -> list[dict]:
    vis = np.repeat(valid[..., None], 3, -1)
    return [{"pose": pose, "vis": v} for pose, v in zip(X.astype(np.float64), vis, strict=True)]


def synthetic_people(
    rng: np.random.Generator,
    X: np.ndarray,  # (P,J,3) mm, z up
    valid: np.ndarray,  # (P,J) bool
    rules: SceneRules,
    cameras: Cameras | None = None,  # (V,), needed where `rules.views` > 0
    skeleton: str = DETECTED,
) -> tuple[np.ndarray, np.ndarray]:
    """A scene of poses drawn with replacement, each turned about its pelvis and put to another place.   -> (n,J,3) mm, (n,J) bool

    The places of a person are drawn `rules.tries` at a time and the first is taken that keeps clear of all others; where there is none,
    the scene ends (the first person is always tried before that, so n may be 0 only where no place is seen).
    """
    if rules.views and cameras is None:
        raise DataError("synthetic_people: these rules ask for places that cameras see; give the cameras")
    chosen = rng.integers(len(X), size=rng.integers(1, rules.most + 1))
    pelvis, there = (skeletons.convert(x, skeleton, "panoptic15") for x in (X[chosen], valid[chosen, :, None].astype(np.float64)))
    root = skeletons.get("panoptic15").root_index
    # a pelvis that is not known is the middle of what is
    known = valid[chosen, :, None]
    middle = np.where(there[0][:, root] > 0.999, pelvis[0][:, root], (X[chosen] * known).sum(1) / np.maximum(known.sum(1), 1))
    angle = rng.uniform(-np.pi, np.pi, len(chosen))
    turned = _turned(X[chosen] - middle[:, None] * [1, 1, 0], angle)
    centers, boxes = np.zeros((0, 2)), np.zeros((0, 4))
    for k, pose in enumerate(turned):
        places = _places(rng, rules, centers)  # (T,2)
        inside = pose[valid[chosen[k]], :2] if valid[chosen[k]].any() else pose[:1, :2]
        box = np.concatenate([inside.min(0), inside.max(0)]) + np.tile(places, 2)  # (T,4)
        good = (_overlap(box, boxes) < rules.overlap).all(1)
        if rules.views:
            good &= _seen(places, cameras, rules) >= rules.views
        if not good.any():
            break
        first = int(np.argmax(good))
        centers, boxes = np.concatenate([centers, places[[first]]]), np.concatenate([boxes, box[[first]]])
    n = len(centers)
    out = turned[:n] + np.pad(centers, ((0, 0), (0, 1)))[:, None]
    kept = valid[chosen[:n]]
    return np.where(kept[..., None], out, 0.0), kept


def _turned(X: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """X (n,J,3) turned about z by angle (n,) rad."""
    sin, cos = np.sin(angle)[:, None], np.cos(angle)[:, None]
    return np.stack([cos * X[..., 0] - sin * X[..., 1], sin * X[..., 0] + cos * X[..., 1], X[..., 2]], -1)


def _places(rng: np.random.Generator, rules: SceneRules, centers: np.ndarray) -> np.ndarray:
    """Places for one more person.   centers (k,2) mm -> (tries,2) mm"""
    anywhere = np.stack([rng.uniform(*rules.x, rules.tries), rng.uniform(*rules.y, rules.tries)], -1)
    if not len(centers):
        return anywhere
    shift = rng.normal(*rules.beside_mm, (rules.tries, 2)) * rng.choice([-1.0, 1.0], (rules.tries, 2))
    beside = centers[rng.integers(len(centers), size=rules.tries)] + shift
    return np.where(rng.random(rules.tries)[:, None] < rules.apart, anywhere, beside)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes x0 y0 x1 y1.   (T,4), (k,4) -> (T,k)"""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.maximum(high - low, 0).prod(-1)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b))
    return common / np.maximum(area_a[:, None] + area_b - common, 1e-9)


def _seen(places: np.ndarray, cameras: Cameras, rules: SceneRules) -> np.ndarray:
    """How many cameras see the point 1 m above each place.   (T,2) -> (T,)"""
    points = torch.from_numpy(np.pad(places, ((0, 0), (0, 1)), constant_values=1000.0))
    return cameras.in_view(points, -rules.margin_px).sum(0).numpy()


def detector_scores(
    rng: np.random.Generator, views: int, people: int, rules: SceneRules, skeleton: str = DETECTED
) -> tuple[np.ndarray, np.ndarray]:
    """How sure a detector would be of each joint: the height of its peak in a heatmap.   -> (V,n,J) float64, found (V,n) bool

    0.9 + 0.03 N(0,1) for 60 % and 1 for the others; then a tenth of the elbows is halved, a tenth of the wrists falls to a fifth, and a
    twentieth of all others is halved.
    """
    joints = skeletons.get(skeleton).joints
    weak = {"elbow", "knee"} if rules.legs else {"elbow"}
    weakest = {"wrist", "ankle"} if rules.legs else {"wrist"}
    kinds = [name.partition("_")[2] for name in joints]
    factor = np.array([0.2 if kind in weakest else 0.5 for kind in kinds])
    share = np.array([0.1 if kind in weak | weakest else 0.05 for kind in kinds])
    shape = (views, people, len(joints))
    height = np.where(rng.random(shape) < 0.6, 0.9 + 0.03 * rng.standard_normal(shape), 1.0)
    height = np.where(rng.random(shape) < share, factor, 1.0) * height
    return height, rng.random((views, people)) >= rules.missed
