"""The one table that every dataset is read into and every sampling is taken from (design: lib/dataset/README.md).

Arrays only, names as byte arrays, so that forked worker processes share the memory. -1 in an index column means none.
Lengths in mm, pixels in the frame of the stored image (distorted, pixel centres at integers). Missing is a mask:
values under a mask may be NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras

INDEX_COLUMNS = ("sequence", "frame", "view", "person", "image", "camera", "pose")
ROW_COLUMNS = INDEX_COLUMNS + ("x_img", "conf", "visible", "box", "head_px")


@dataclass(frozen=True, eq=False)
class Annotations:
    """Cameras (C), poses (P, a person at an instant) and observations (N, a person seen by a camera) of a split."""

    skeleton: str  # name in lib.skeleton.SKELETONS; the order of every J axis
    cameras: Cameras  # (C,) float64 on the CPU; one row per camera, or per camera and frame where it moves
    X_world: np.ndarray  # (P,J,3) float32 mm
    X_valid: np.ndarray  # (P,J) bool
    sequence: np.ndarray  # (N,) int32, row of subjects, actions, subactions
    frame: np.ndarray  # (N,) int32, number in the sequence
    view: np.ndarray  # (N,) int32, slot of the camera in its rig: the same slot in every sequence
    person: np.ndarray  # (N,) int32, identity within the sequence
    image: np.ndarray  # (N,) int32, row of images; -1 in keypoint-only sets
    camera: np.ndarray  # (N,) int32, row of cameras
    pose: np.ndarray  # (N,) int32, row of X_world; -1 in 2D-only sets
    x_img: np.ndarray  # (N,J,2) float32 px, as seen in the image (distorted)
    conf: np.ndarray  # (N,J) float32 in 0..1; 0 = not annotated
    visible: np.ndarray  # (N,J) bool, in the frame and not hidden
    box: np.ndarray  # (N,4) float32 px x0 y0 x1 y1; NaN = none
    images: np.ndarray  # (I,) bytes, paths relative to the dataset's root
    subjects: np.ndarray  # (S,) bytes, one per sequence, as the two below
    actions: np.ndarray
    subactions: np.ndarray
    fps: float = 0.0  # frames per second; 0 = unknown
    head_px: np.ndarray | None = None  # (N,) float32 px, size of the head that PCKh is relative to; NaN, the default = unknown

    def __post_init__(self):
        if self.head_px is None:
            object.__setattr__(self, "head_px", np.full(len(self.sequence), np.nan, np.float32))

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def num_joints(self) -> int:
        return self.x_img.shape[1]

    def image_path(self, row: int) -> str:
        """The path of the image of one observation, relative to the dataset's root; DataError where it has none."""
        if self.image[row] < 0:
            raise DataError(f"observation {row} has no image (keypoints only), but an image was asked for")
        return self.images[self.image[row]].decode()

    def subject(self, row: int) -> str:
        """The subject's name of one observation."""
        return self.subjects[self.sequence[row]].decode()

    def action(self, row: int) -> str:
        """The action's name of one observation."""
        return self.actions[self.sequence[row]].decode()

    def observing(self, rows: np.ndarray | None = None) -> Cameras:
        """The camera of every observation, or of those at `rows` (any shape).   -> Cameras (N,) or of the shape of rows"""
        camera = self.camera if rows is None else self.camera[rows]
        return self.cameras[torch.from_numpy(np.asarray(camera, np.int64))]

    def describe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What predictions.npz says of observations: skeleton (), images, subjects, actions, frames, views (N,), boxes (N,4) px and the
        columns of `camera_columns`; images and boxes only where there are some.
        """
        image, sequence = self.image[rows], self.sequence[rows]
        columns = {"skeleton": np.array(self.skeleton), "frames": self.frame[rows], "views": self.view[rows]}
        names = {"subjects": self.subjects[sequence], "actions": self.actions[sequence]}
        columns |= {key: np.char.decode(name, "utf-8") for key, name in names.items()}
        if len(self.images):
            columns["images"] = np.char.decode(np.where(image >= 0, self.images[image], b""), "utf-8")
        if np.isfinite(self.box[rows]).any():
            columns["boxes"] = self.box[rows]
        return columns | camera_columns(self.cameras, self.camera[rows])

    def select(self, rows: np.ndarray | Sequence[int]) -> Annotations:
        """The observations at `rows` (indices in any order, or a boolean mask); all other tables stay as they are."""
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape != (len(self),):
            raise DataError(
                f"select: the mask has shape {rows.shape}, expected ({len(self)},), one value per observation"
            )
        if rows.dtype != bool:
            rows = rows.astype(np.int64)
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in ROW_COLUMNS})

    def group(self, *columns: str) -> tuple[np.ndarray, np.ndarray]:
        """Observations that agree in `columns`, such as "sequence", "frame".

        Returns:
            rows (N,) int64: ordered by the columns, then by frame, view and row; starts (G+1,) int64: group g is
            `rows[starts[g]:starts[g + 1]]`.
        """
        if not columns or not set(columns) <= set(INDEX_COLUMNS):
            raise DataError(f"group: columns are {columns}, expected some of {', '.join(INDEX_COLUMNS)}")
        keys = [getattr(self, name) for name in columns]
        rows = np.lexsort([np.arange(len(self)), self.view, self.frame, *keys[::-1]])
        new = np.zeros(len(self), dtype=bool)
        new[:1] = True
        for key in keys:
            new[1:] |= np.diff(key[rows]) != 0
        return rows, np.append(np.flatnonzero(new), len(self))

    def protocol(
        self, subjects: Iterable[str] | None = None, step: int = 1, views: Iterable[int] | None = None
    ) -> Annotations:
        """The observations of some subjects and views (None or empty: all), every `step`-th frame of each sequence.

        Frames count by their numbers, from the first of the sequence.

        Raises:
            DataError: a subject or view that is not in the table, or a step below 1.
        """
        if step < 1:
            raise DataError(f"protocol: the frame step is {step}, expected 1 or more (1 keeps every frame)")
        keep = self.chosen(subjects, views)
        if step > 1:
            first = np.full(len(self.subjects), np.iinfo(np.int32).max, dtype=np.int32)
            np.minimum.at(first, self.sequence, self.frame)
            keep &= (self.frame - first[self.sequence]) % step == 0
        return self if keep.all() else self.select(keep)

    def chosen(self, subjects: Iterable[str] | None = None, views: Iterable[int] | None = None) -> np.ndarray:
        """Which observations are of some subjects and views (None or empty: all), (N,) bool.

        Raises:
            DataError: a subject or view that is not in the table.
        """
        keep = np.ones(len(self), dtype=bool)
        subjects, views = list(subjects or ()), list(views if views is not None else ())
        if subjects:
            wanted = np.array([name.encode() for name in subjects])
            _check_known("subjects", subjects, [name.decode() for name in np.unique(self.subjects[self.sequence])])
            keep &= np.isin(self.subjects, wanted)[self.sequence]
        if views:
            _check_known("views", views, np.unique(self.view).tolist())
            keep &= np.isin(self.view, views)
        return keep

    def to_skeleton(self, name: str) -> Annotations:
        """The same data in another joint order, by joint name; a joint without source gets conf 0, X_valid False and
        value 0.

        A joint that is an average (such as a neck between two shoulders) is valid where all of its sources are.
        """
        if name == self.skeleton:
            return self

        def converted(x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (..., J, C), (..., J)
            # NaN marks what is missing: it survives averaging, so the mask of the result can be read off it.
            out, present = skeletons.convert(np.where(mask[..., None], x, np.float32(np.nan)), self.skeleton, name)
            valid = np.isfinite(out).all(-1) & present
            return np.where(valid[..., None], out, 0).astype(np.float32), valid

        X_world, X_valid = converted(self.X_world, self.X_valid)
        labels = np.concatenate([self.x_img, self.conf[..., None], self.visible[..., None]], -1)
        labels, seen = converted(labels, self.conf > 0)
        return dataclasses.replace(
            self,
            skeleton=name,
            X_world=X_world,
            X_valid=X_valid,
            x_img=np.ascontiguousarray(labels[..., :2]),
            conf=labels[..., 2].clip(0, 1),
            visible=seen & (labels[..., 3] > 0.999),
        )

    def check(self, name: str) -> Annotations:
        """Itself, after every field was found to have the shape, type and range it promises.

        Args:
            name: what the table was read from, first in each message.

        Raises:
            DataError: naming the field, the row, what was found and expected, and the next step.
        """
        _check(self, name)
        return self


def number_within(group: np.ndarray) -> np.ndarray:
    """Running number of each entry among the equal ones before it: its slot, where rows of a group are packed.   (N,) -> (N,) int32"""
    order = np.argsort(group, kind="stable")
    number = np.empty(len(group), np.int32)
    number[order] = np.arange(len(group)) - np.searchsorted(group[order], group[order])
    return number


def camera_columns(cameras: Cameras, camera: np.ndarray) -> dict[str, np.ndarray]:
    """Which calibration each row has, and those that occur, for predictions.npz; empty where no row has one.

    Args:
        cameras: (C,).
        camera: (N,) or (N,V) int, rows of `cameras`, -1 = none.

    Returns:
        cameras (N,) or (N,V) int32, rows of the others, -1 = none; camera_K (C',3,3) px, camera_R (C',3,3), camera_t (C',3) mm,
        camera_dist (C',5), camera_size (C',2) px, as the fields of lib.geometry.camera.Cameras.
    """
    used = np.unique(camera[camera >= 0])
    if not len(used):
        return {}
    index = np.where(camera >= 0, np.searchsorted(used, camera), -1).astype(np.int32)
    chosen = cameras[torch.from_numpy(used.astype(np.int64))]
    return {"cameras": index} | {f"camera_{field}": getattr(chosen, field).numpy() for field in ("K", "R", "t", "dist", "size")}


def concat(tables: Sequence[Annotations]) -> Annotations:
    """One table of several; their sequences, cameras, poses and images stay apart. fps becomes 0 where they differ.

    Raises:
        DataError: no table, or two skeletons.
    """
    if not tables:
        raise DataError("concat: no annotation table was given, expected one or more")
    first = tables[0]
    for other in tables[1:]:
        skeletons.check_same(first.skeleton, other.skeleton, "concat of annotation tables")

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(t, field) for t in tables])

    def shifted(field: str, sizes: list[int]) -> np.ndarray:
        offsets = np.cumsum([0, *sizes[:-1]])
        parts = [getattr(t, field) for t in tables]
        return np.concatenate([np.where(p < 0, p, p + o) for p, o in zip(parts, offsets, strict=True)]).astype(np.int32)

    plain = ("X_world", "X_valid", "frame", "view", "person", "x_img", "conf", "visible", "box", "head_px")
    names = ("images", "subjects", "actions", "subactions")
    return Annotations(
        skeleton=first.skeleton,
        cameras=Cameras.cat([t.cameras for t in tables]),
        sequence=shifted("sequence", [len(t.subjects) for t in tables]),
        image=shifted("image", [len(t.images) for t in tables]),
        camera=shifted("camera", [len(t.cameras.K) for t in tables]),
        pose=shifted("pose", [len(t.X_world) for t in tables]),
        fps=first.fps if all(t.fps == first.fps for t in tables) else 0.0,
        **{f: joined(f) for f in plain + names},
    )


def attach_detections(
    ann: Annotations,
    sequence: np.ndarray,  # (D,) int, as the table's columns
    frame: np.ndarray,
    view: np.ndarray,
    person: np.ndarray,
    x_img: np.ndarray,  # (D,J,2) px
    conf: np.ndarray,  # (D,J) 0..1
) -> Annotations:
    """The table with `x_img` and `conf` replaced by detections, matched by sequence, frame, view and person.

    Observations without a detection get conf 0; detections without an observation are left out.

    Raises:
        DataError: shapes do not fit, NaN, conf outside 0..1, two detections of one observation, or no match.
    """
    x_img, conf = np.asarray(x_img, np.float32), np.asarray(conf, np.float32)
    joints = ann.num_joints
    if x_img.shape[1:] != (joints, 2) or conf.shape != x_img.shape[:2]:
        raise DataError(
            f"detections: x_img has shape {x_img.shape} and conf {conf.shape}, expected (D, {joints}, 2) and (D, "
            f"{joints}) "
            f"for skeleton {ann.skeleton}; convert them with lib.skeleton.convert"
        )
    found = np.stack([np.asarray(c, np.int64) for c in (sequence, frame, view, person)], 1)  # (D,4)
    wanted = np.stack([c.astype(np.int64) for c in (ann.sequence, ann.frame, ann.view, ann.person)], 1)  # (N,4)
    if len(found) != len(x_img):
        raise DataError(f"detections: {len(found)} keys for {len(x_img)} rows of x_img, expected one key per row")
    low = np.minimum(found.min(0, initial=0), wanted.min(0, initial=0))
    span = np.maximum(found.max(0, initial=0), wanted.max(0, initial=0)) - low + 1
    radix = np.append(np.cumprod(span[:0:-1])[::-1], 1)
    found_key, wanted_key = (found - low) @ radix, (wanted - low) @ radix
    order = np.argsort(found_key, kind="stable")
    found_key = found_key[order]
    twice = np.flatnonzero(found_key[1:] == found_key[:-1])
    if len(twice):
        row = found[order[twice[0]]]
        raise DataError(
            f"detections: two rows for sequence {row[0]}, frame {row[1]}, view {row[2]}, person {row[3]}, expected at "
            "most one; "
            "keep the more confident one"
        )
    place = np.minimum(np.searchsorted(found_key, wanted_key), max(len(found_key) - 1, 0))
    hit = found_key[place] == wanted_key if len(found_key) else np.zeros(len(ann), dtype=bool)
    if not hit.any():
        raise DataError(
            f"detections: none of {len(found)} rows matches one of {len(ann)} observations by (sequence, frame, view, "
            "person); "
            "check that both number their sequences, frames and views alike"
        )
    source = order[place[hit]]
    new_x, new_conf = np.zeros_like(ann.x_img), np.zeros_like(ann.conf)
    new_x[hit], new_conf[hit] = x_img[source], conf[source]
    return dataclasses.replace(ann, x_img=new_x, conf=new_conf).check("detections")


def with_poses(ann: Annotations, X_world: np.ndarray, X_valid: np.ndarray) -> Annotations:
    """The table with other 3D labels for the same P poses: X_world (P,J,3) mm, X_valid (P,J)."""
    shape = ann.X_world.shape
    if np.shape(X_world) != shape or np.shape(X_valid) != shape[:2]:
        raise DataError(
            f"with_poses: X_world has shape {np.shape(X_world)} and X_valid {np.shape(X_valid)}, expected {shape} and "
            f"{shape[:2]}"
        )
    replaced = {"X_world": np.asarray(X_world, np.float32), "X_valid": np.asarray(X_valid, bool)}
    return dataclasses.replace(ann, **replaced).check("with_poses")


def unmatched(ann: Annotations) -> Annotations:
    """The 2D side alone, as a detector leaves it: no 3D poses, and nobody known to be the same person in two images."""
    shape = ann.X_world.shape
    return dataclasses.replace(
        ann,
        X_world=np.zeros((0, *shape[1:]), np.float32),
        X_valid=np.zeros((0, shape[1]), bool),
        pose=np.full_like(ann.pose, -1),
        person=np.arange(len(ann), dtype=np.int32),
    )


def without_3d(ann: Annotations) -> Annotations:
    """The 2D labels alone: no poses and no cameras are left in the table. Who is who, images, boxes and 2D joints stay."""
    shape = ann.X_world.shape
    none = np.full_like(ann.pose, -1)
    return dataclasses.replace(
        ann,
        cameras=ann.cameras[:0],
        X_world=np.zeros((0, *shape[1:]), np.float32),
        X_valid=np.zeros((0, shape[1]), bool),
        camera=none,
        pose=none.copy(),
    )


def strong_and_weak(
    ann: Annotations, subjects: Iterable[str] | None = None, views: Iterable[int] | None = None
) -> tuple[Annotations, Annotations]:
    """A table split into observations that keep their 3D labels and those that lose them (see `without_3d`).

    Args:
        ann: the table.
        subjects, views: of the observations that keep them; None or empty = all. With both, an observation must be of both. By views
            alone, the poses of the others are those of the same instants.

    Returns:
        strong, weak: together all rows of `ann`, each in its order. Either may be empty. `strong` holds the poses that its rows use.

    Raises:
        DataError: a subject or view that is not in the table.
    """
    kept = ann.chosen(subjects, views)
    strong = ann.select(kept)
    used = np.unique(strong.pose[strong.pose >= 0])
    row = np.full(len(ann.X_world) + 1, -1, np.int32)  # the last one is that of pose -1
    row[used] = np.arange(len(used))
    strong = dataclasses.replace(strong, X_world=ann.X_world[used], X_valid=ann.X_valid[used], pose=row[strong.pose])
    return strong, without_3d(ann.select(~kept))


def widened(box: np.ndarray, aspect: float, margin: float = 1.0, within: bool = False) -> np.ndarray:
    """The smallest boxes of one width / height around boxes with the same middles, times margin.   (N,4) x0 y0 x1 y1 px -> (N,4)

    within: the largest ones inside them instead, which shorten the side that is too long.
    """
    center, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
    choose = np.minimum if within else np.maximum
    half = np.stack([choose(size[:, 0], aspect * size[:, 1]), choose(size[:, 1], size[:, 0] / aspect)], -1) * (margin / 2)
    return np.concatenate([center - half, center + half], -1)


def enlarged(box: np.ndarray, margin: float) -> np.ndarray:
    """Boxes with the same middles and shapes, `margin` times as long on each side.   (N,4) x0 y0 x1 y1 px -> (N,4)"""
    center, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) * (margin / 2)
    return np.concatenate([center - half, center + half], -1)


def check_crops(ann: Annotations) -> None:
    """DataError unless every observation has an image and a box with area."""
    if len(ann) == 0:
        raise DataError(
            "samples: the annotation table is empty, expected one observation or more; check split, subjects and views"
        )
    advice = "drop such observations with ann.select, or prepare the annotations with boxes and images"
    missing = int((ann.image < 0).sum())
    if missing:
        raise DataError(f"samples: {missing} of {len(ann)} observations have no image, expected one for each; {advice}")
    size = ann.box[:, 2:] - ann.box[:, :2]
    bad = np.flatnonzero(~(size > 0).all(1))
    if len(bad):
        row = int(bad[0])
        raise DataError(
            f"{ann.image_path(row)}: {len(bad)} of {len(ann)} observations have no box with area, the first is row "
            f"{row} with "
            f"{ann.box[row].tolist()} (x0 y0 x1 y1 px); {advice}"
        )


def _check_known(what: str, asked: Sequence, known: Sequence) -> None:
    missing = [name for name in asked if name not in known]
    if missing:
        raise DataError(
            f"protocol: no {what} {missing} in the annotations, which have {list(known)}; correct the list of {what}"
        )


def _check(ann: Annotations, name: str) -> None:
    """See Annotations.check."""

    def fail(field: str, text: str, advice: str, row: int | None = None) -> None:
        place = f"field '{field}'" + (f" of row {row}" if row is not None else "")
        raise DataError(f"{name}: {place} {text}; {advice}")

    def refuse_any(bad: np.ndarray, field: str, text: str, advice: str) -> None:  # bad (rows, ...) bool
        if bad.any():
            where = np.argwhere(bad)[0]
            joint = f" at joint {skel.joints[where[1]]}" if len(where) > 1 else ""
            fail(field, f"{text}{joint} (found {getattr(ann, field)[tuple(where)]})", advice, int(where[0]))

    try:
        skel = skeletons.get(ann.skeleton)
    except ConfigError as error:
        raise DataError(
            f"{name}: field 'skeleton': {error}; use one of the names in lib/skeleton.py or add one there"
        ) from error
    n, p, s = (len(column) if np.ndim(column) else 0 for column in (ann.sequence, ann.X_world, ann.subjects))
    j = skel.num
    if n == 0:
        raise DataError(
            f"{name}: holds no observation, expected one or more; check the split, subjects, views and frame step"
        )
    again = "prepare the annotations again"
    expected = {column: ((n,), np.int32) for column in INDEX_COLUMNS} | {
        "X_world": ((p, j, 3), np.float32),
        "X_valid": ((p, j), np.bool_),
        "x_img": ((n, j, 2), np.float32),
        "conf": ((n, j), np.float32),
        "visible": ((n, j), np.bool_),
        "box": ((n, 4), np.float32),
        "head_px": ((n,), np.float32),
    }
    for field, (shape, dtype) in expected.items():
        value = getattr(ann, field)
        if not isinstance(value, np.ndarray) or value.dtype != dtype:
            fail(field, f"has type {getattr(value, 'dtype', type(value).__name__)}, expected {np.dtype(dtype)}", again)
        if value.shape != shape:
            advice = f"set DATASET.SKELETON to the skeleton the file was written with, or {again}"
            fail(
                field,
                f"has shape {value.shape}, expected {shape} for {n} observations of skeleton {ann.skeleton}",
                advice,
            )
    for field, rows in (("images", None), ("subjects", s), ("actions", s), ("subactions", s)):
        value = getattr(ann, field)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "S" or value.ndim != 1:
            fail(field, f"is not a 1-D array of bytes (found {getattr(value, 'dtype', type(value).__name__)})", again)
        if rows is not None and len(value) != rows:
            fail(field, f"has {len(value)} entries, expected {rows}, one per sequence", again)
    _check_cameras(ann.cameras, fail)

    limits = {"sequence": s, "image": len(ann.images), "camera": len(ann.cameras.K), "pose": p}
    for field in INDEX_COLUMNS:
        value, low = getattr(ann, field), 0 if field in ("sequence", "view") else -1
        high = limits.get(field, np.iinfo(np.int32).max)
        refuse_any((value < low) | (value >= high), field, f"is out of range {low}..{high - 1}", again)
    refuse_any(
        ~((ann.conf >= 0) & (ann.conf <= 1)),
        "conf",
        "is not in 0..1",
        "scale the confidences to 0..1 and set unknown ones to 0",
    )
    advice = "set conf to 0 where a joint is not annotated"
    refuse_any((ann.conf > 0) & ~np.isfinite(ann.x_img).all(-1), "x_img", "is not finite though conf > 0", advice)
    advice = "set X_valid to False where a joint is unknown"
    refuse_any(ann.X_valid & ~np.isfinite(ann.X_world).all(-1), "X_world", "is not finite though X_valid", advice)
    refuse_any(np.isinf(ann.box).any(-1), "box", "is infinite", "use NaN for an observation without a box")
    wrong = np.isinf(ann.head_px) | (ann.head_px <= 0)
    refuse_any(wrong, "head_px", "is not a positive length", "use NaN for an observation without a head size")


def _check_cameras(cameras: Cameras, fail) -> None:
    c = len(cameras.K) if isinstance(cameras, Cameras) and cameras.K.ndim == 3 else -1
    if c < 0:
        fail(
            "cameras",
            f"is {type(cameras).__name__} without a row axis, expected Cameras of shape (C,)",
            "stack the cameras",
        )
    for field, shape in (("K", (c, 3, 3)), ("R", (c, 3, 3)), ("t", (c, 3)), ("dist", (c, 5)), ("size", (c, 2))):
        value = getattr(cameras, field)
        if value.shape != shape:
            fail(f"cameras.{field}", f"has shape {tuple(value.shape)}, expected {shape}", "check the calibration file")
        if field != "size" and (value.dtype != torch.float64 or value.device.type != "cpu"):
            fail(
                f"cameras.{field}",
                f"is {value.dtype} on {value.device}, expected torch.float64 on the CPU",
                "convert with .to()",
            )
        bad = ~torch.isfinite(value.double()).flatten(1).all(1)
        if bad.any():
            fail(f"cameras.{field}", "is not finite", "check the calibration file", int(bad.nonzero()[0]))
    eye = torch.eye(3, dtype=torch.float64)
    skewed = ((cameras.R @ cameras.R.mT - eye).abs().flatten(1).amax(1) > 1e-2) | (torch.linalg.det(cameras.R) < 0)
    if skewed.any():
        advice = "check that the calibration holds R of X_cam = R X_world + t, not its transpose times a scale"
        fail("cameras.R", "is not a rotation", advice, int(skewed.nonzero()[0]))
    flat = (cameras.K[:, 0, 0] <= 0) | (cameras.K[:, 1, 1] <= 0)
    if flat.any():
        fail(
            "cameras.K", "has a focal length that is not positive", "check the calibration file", int(flat.nonzero()[0])
        )
