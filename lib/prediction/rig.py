"""People of a calibrated multi-view recording in space, instant by instant, and a film of them; what scripts/predict.py --rig does.

    people = RigPredictor.from_checkpoint("model_best.pth.tar")("data/mine")      # a network's, or without one:
    people = associate(Recording.read("data/mine"))
    people.X_world, people.person, people.save("people.csv")                      # (N,J,3) mm, who is who

Two ways lead there: a VoxelPose network that looks at the pictures (or, trained so, at a detector's joints), or 2D people of any detector
put together and triangulated, without a network. Numbers of people stay the same through the recording (lib/tracking.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from lib import skeleton as skeletons
from lib.config import Config
from lib.dataset.annotations import Annotations, number_within
from lib.dataset.formats import custom
from lib.dataset.image import read_image, warp
from lib.drawing.paint import FAINT, FLOOR, PAPER, below, beside, write_texts
from lib.drawing.space_view import TOP, SpaceView, person_color
from lib.engine.distributed import choose_device
from lib.errors import DataError, WeightsError
from lib.geometry.association import MIN_CONF, associate_people, triangulate_people
from lib.geometry.camera import Cameras
from lib.geometry.crop import letterbox_affine
from lib.geometry.voxel import space_from_cameras
from lib.models.freeze import freeze
from lib.prediction.lifted import FLOOR_MM
from lib.prediction.rig_people import RigPeople
from lib.skeleton import Skeleton, get
from lib.tasks.restore import restore
from lib.tasks.voxelpose import VoxelPoseTask
from lib.tracking import GAP, GATE_MM, track
from lib.video import Video
from lib.vis import draw_skeleton_2d, view_axes

log = logging.getLogger("parallax")

ASSOCIATIONS = ("search", "given")
SPACES = ("checkpoint", "cameras")
METHODS = ("robust", "dlt", "linear_ls", "reweighted")
EDGE_PX = 16  # so much may be cut off at an edge of a picture by an encoder that wants whole blocks
WIDTH, GAP_PX, HEAD = 1280, 8, 24  # px: of a film, between its panels, above them


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording of V cameras: F instants, up to M 2D people in each view."""

    root: Path
    names: tuple[str, ...]  # of the cameras
    cameras: Cameras  # (V,) float64
    skeleton: Skeleton  # of the 2D people, J joints
    frames: np.ndarray  # (F,) int, instants
    x_img: Tensor  # (F,V,M,J,2) px
    conf: Tensor  # (F,V,M,J), 0 = not there
    number: Tensor  # (F,V,M) long, of the people as the detector (or their order) tells; -1 = nobody
    images: dict[tuple[int, int], Path] = field(default_factory=dict)  # by instant and view
    videos: dict[int, Video] = field(default_factory=dict)  # by view
    fps: float = 0.0  # frames per second of the recording, of which `frames` may be every so many; 0 = unknown

    @staticmethod
    def read(
        root: str | Path, split: str = "", calibration: str = "", unit: str = "", layout: str = "", labels: str = "raw",
        every: int = 1, skip: int = 0, limit: int | None = None, fps: float | None = None,
    ) -> Recording:  # fmt: skip
        """A folder in the layout of lib/dataset/formats/custom.py; its images need not be extracted from the videos.

        Args:
            every, skip, limit: every n-th instant after the first `skip`, at most so many.
            fps: of the recording; None = as the videos say, 0 (unknown) where there are none.

        Raises:
            DataError: see lib.dataset.formats.custom.read; or nothing is left of the recording.
        """
        root = Path(root)
        ann = custom.read(root, split, calibration, unit, labels=labels, layout=layout)
        _, rig, files = custom.recording(root, split, calibration, unit)
        videos = {v: Video.open(path) for v, path in files.items()}
        frames = np.unique(ann.frame)[skip::every][:limit]
        if not len(frames):
            raise DataError(f"{root}: nothing is left of {len(np.unique(ann.frame))} instants after --skip {skip}")
        there = np.isin(ann.frame, frames)
        first = {(int(ann.frame[r]), int(ann.view[r])): root / ann.image_path(int(r)) for r in np.flatnonzero(there & (ann.image >= 0))}
        fps = fps or next((video.fps for video in videos.values()), 0.0)
        return Recording(root, rig.names, rig.cameras, get(ann.skeleton), frames, *_dense(ann, frames, len(rig)), first, videos, fps)

    def detected(self) -> Recording:
        """The instants from the first to the last at which a detector found somebody."""
        seen = np.flatnonzero((self.conf > 0).flatten(1).any(1).numpy())
        if not len(seen):
            raise DataError(f"{self.root}: no 2D people; expected what a detector found in poses2d/{self.names[0]}.json (or a folder)")
        return self.part(slice(int(seen[0]), int(seen[-1]) + 1))

    def part(self, rows: slice) -> Recording:
        columns = {name: getattr(self, name)[rows] for name in ("frames", "x_img", "conf", "number")}
        facts = {name: getattr(self, name) for name in ("root", "names", "cameras", "skeleton", "images", "videos", "fps")}
        return Recording(**columns, **facts)

    def check_pictures(self) -> None:
        """Raises DataError unless every view has a picture of every instant."""
        for frame in self.frames.tolist():
            for v, name in enumerate(self.names):
                if (frame, v) not in self.images:
                    need = f"the network needs all of {', '.join(self.names)}"
                    raise DataError(f"{self.root}: {name} has no picture of frame {frame}; {need}: add it, or leave the frame out")

    def pictures(self) -> Iterator[list[np.ndarray | None]]:
        """All views of one instant after another, (H,W,3) uint8 RGB in the size of the calibration; None = the view has no picture.

        Raises:
            DataError: a picture cannot be read, a video ends too early, or a picture has another size than its calibration.
        """
        wanted = {v: {f for f, view in self.images if view == v} for v in range(len(self.names))}
        readers = {v: _Sequential(video) for v, video in self.videos.items()}
        said: set[int] = set()
        try:
            for frame in self.frames.tolist():
                shown: list[np.ndarray | None] = []
                for v, name in enumerate(self.names):
                    if frame not in wanted[v]:
                        shown.append(None)
                        continue
                    path = self.images[frame, v]
                    on_disk = v not in readers or path.exists()
                    image = read_image(path) if on_disk else readers[v].at(frame)
                    size = tuple(int(n) for n in self.cameras.size[v].tolist())
                    fitted, note = fit_to_calibration(image, size, f"{path if on_disk else self.videos[v].path}: {name}")
                    if note and v not in said:
                        said.add(v)
                        log.warning("%s", note)
                    shown.append(fitted)
                yield shown
        finally:
            for reader in readers.values():
                reader.close()


def _dense(ann: Annotations, frames: np.ndarray, views: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_img (F,V,M,J,2), conf (F,V,M,J) and number (F,V,M) of a table's 2D people, in the table's order."""
    rows = np.flatnonzero(np.isin(ann.frame, frames) & (ann.person >= 0) & (ann.conf > 0).any(1))
    cell = np.searchsorted(frames, ann.frame[rows]) * views + ann.view[rows]
    slot = number_within(cell)
    most = int(slot.max(initial=-1)) + 1
    x = np.zeros((len(frames) * views, most, ann.num_joints, 2))
    conf, number = np.zeros(x.shape[:-1]), np.full(x.shape[:2], -1, np.int64)
    x[cell, slot], conf[cell, slot], number[cell, slot] = ann.x_img[rows], ann.conf[rows], ann.person[rows]
    return tuple(torch.from_numpy(a).unflatten(0, (len(frames), views)) for a in (x, conf, number))


class _Sequential:
    """A video whose pictures are asked for in rising order."""

    def __init__(self, video: Video):
        self.video, self.capture, self.next = video, cv2.VideoCapture(str(video.path)), 0

    def at(self, number: int) -> np.ndarray:
        good = True
        while good and self.next <= number:
            good, self.next = self.capture.grab(), self.next + 1
        good, image = self.capture.retrieve() if good else (False, None)
        if not good:
            raise DataError(f"{self.video.path}: picture {number} cannot be read; copy the video again, or use --limit")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self.capture.release()


def fit_to_calibration(image: np.ndarray, size: tuple[int, int], name: str) -> tuple[np.ndarray, str]:
    """A picture in the size it is calibrated for, and what had to be assumed.   (H,W,3), (width, height) px; 0 = unknown

    Up to 16 px that are missing or too many count as cut off (or added) at the right and the bottom by a video encoder: pixels stay where
    they are, so calibration and 2D joints hold.

    Raises:
        DataError: the sizes differ by more.
    """
    have = image.shape[1::-1]
    if have == size or min(size) <= 0:
        return image, ""
    if max(abs(a - b) for a, b in zip(have, size, strict=True)) > EDGE_PX:
        raise DataError(
            f"{name}: pictures of {have[0]} x {have[1]} px, but the calibration is for {size[0]} x {size[1]}; scale the calibration's "
            "matrix and size to the pictures, or use the original pictures"
        )
    fitted = np.zeros((size[1], size[0], 3), np.uint8)
    width, height = (min(a, b) for a, b in zip(have, size, strict=True))
    fitted[:height, :width] = image[:height, :width]
    note = (
        f"{name}: pictures of {have[0]} x {have[1]} px, calibrated for {size[0]} x {size[1]}: right and lower edge are taken for cut off, "
        "no pixel is moved"
    )
    return fitted, note


# -------------------------------------------------------------------------------------------------------- without network


def associate(
    recording: Recording, how: str = "search", method: str = "robust", min_conf: float = MIN_CONF, max_people: int = 10,
    gate_mm: float = GATE_MM, max_gap: int = GAP, min_length: int = 1,
) -> RigPeople:  # fmt: skip
    """People put together from 2D people of the views and triangulated.

    Args:
        how: "search" = who belongs together is found out (lib/geometry/association.py); "given" = 2D people of one number are one person.
        method: of triangulation: "robust" leaves out views that disagree; "dlt", "linear_ls", "reweighted" use all.
        min_conf: joints of less confidence are not used.
        gate_mm, max_gap, min_length: see lib.tracking.track; numbers that are given are kept.

    Raises:
        DataError: nobody was detected, or an argument is none of these.
    """
    if how not in ASSOCIATIONS or method not in METHODS:
        raise DataError(f"association {how!r}, method {method!r}; expected one of {ASSOCIATIONS} and one of {METHODS}")
    r = recording.detected()
    conf = r.conf.where(r.conf >= min_conf, 0.0)
    if how == "given":
        member = _members(r.number, conf)
        score = (member >= 0).sum(-1).double()
    else:
        found = associate_people(r.x_img, conf, r.cameras, max_people)
        member, score = found.member, found.score
    X, used = (
        triangulate_people(r.x_img, conf, r.cameras, member)
        if method == "robust"
        else triangulate_people(r.x_img, conf, r.cameras, member, method, near=None)
    )
    valid = (used.sum(-2) >= 2) & X.isfinite().all(-1)
    there = valid.any(-1)
    if how == "given":
        ids = torch.arange(member.shape[1]).expand(there.shape).where(there, -1)
    else:
        ids = track(X, valid, there, gate_mm, max_gap=max_gap, min_length=min_length)
    error = _reprojection(X, used, r, member)
    return _rows(r, r.skeleton, ids, score, X, valid, used.transpose(-1, -2), error, f"association {how}, triangulation {method}")


def _members(number: Tensor, conf: Tensor) -> Tensor:
    """The place of each number's 2D person in every view, -1 = none.   number (F,V,M) -> (F,P,V) long"""
    shown = (number >= 0) & (conf > 0).any(-1)
    frame, view, slot = shown.nonzero(as_tuple=True)
    member = number.new_full((number.shape[0], int(number.max()) + 1, number.shape[1]), -1)
    member[frame, number[frame, view, slot], view] = slot
    return member


def _reprojection(X: Tensor, used: Tensor, r: Recording, member: Tensor) -> Tensor:
    """Mean distance in px from the 2D joints that were used, NaN without any.   X (F,P,J,3), used (F,P,V,J) -> (F,P,J)"""
    seen = r.cameras.project(X.flatten(1, 2)[:, None])[0].unflatten(2, X.shape[1:3]).transpose(1, 2)  # (F,P,V,J,2)
    index = member.clamp(min=0).transpose(1, 2)[..., None, None]  # (F,V,P,1,1)
    x = r.x_img.take_along_dim(index, 2).transpose(1, 2)
    distance = (seen - x).norm(dim=-1).where(used, 0.0).sum(2)
    return (distance / used.sum(2)).masked_fill(~used.any(2), torch.nan)


def _rows(
    r: Recording, skeleton: Skeleton, ids: Tensor, score: Tensor, X: Tensor, valid: Tensor, views: Tensor, error: Tensor, made_by: str
) -> RigPeople:
    """ids, score (F,P), X (F,P,J,3), valid, error (F,P,J), views (F,P,J,V) as rows, by instant and number."""
    frame, place = np.nonzero(ids.numpy() >= 0)
    person = ids.numpy()[frame, place]
    order = np.lexsort([person, frame])
    frame, place, person = frame[order], place[order], person[order]
    X, valid, views, error, score = (a.numpy()[frame, place] for a in (X, valid, views, error, score))
    return RigPeople(
        skeleton, r.names, r.frames.astype(np.int64), r.frames[frame].astype(np.int64), person, score.astype(np.float32),
        np.where(valid[..., None], X, np.nan).astype(np.float32), valid, views & valid[..., None], error.astype(np.float32), r.fps, made_by,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- with network


class RigPredictor:
    """A trained network that finds people in the space of several cameras, on one device.

    Args:
        task: with its weights, from lib.tasks.restore.restore; without a known space it takes that of the first recording's cameras.
        device: "auto" (a GPU if there is one), or the name of a torch device.
        space: where people are looked for: "checkpoint" = where they were in training, "cameras" = before the cameras of each recording.

    Raises:
        WeightsError: the task finds no people in space.
    """

    def __init__(self, task: VoxelPoseTask, device: str = "auto", space: str = "checkpoint"):
        if not task.in_space:
            expected = "expected one whose root_net or pose_net was trained"
            raise WeightsError(f"the checkpoint's network finds no people in space (VOXEL.PARTS backbone); {expected}")
        if "pose_net" not in task.parts:
            log.warning("the checkpoint is of a training of people's places (VOXEL.PARTS %s): its poses may mean nothing", list(task.parts))
        if space not in SPACES:
            raise DataError(f"space {space!r}; expected one of {', '.join(SPACES)}")
        self.device = choose_device(device)
        self.task, self.from_cameras = task.to(self.device).eval(), space == "cameras"
        self.skeleton = get(task.skeleton)

    @staticmethod
    def from_checkpoint(path: str | Path, device: str = "auto", config: Config | None = None, space: str = "checkpoint") -> RigPredictor:
        """The network of a checkpoint, rebuilt from the configuration inside it; no data is read. It is frozen: batch norms are folded.

        Args:
            path: a checkpoint of a run. Bare weights (published files) need `config`.
            config: what bare weights are built with, from `lib.config.load("experiments/....yaml")`.

        Raises:
            WeightsError: the file is missing or damaged, does not fit its model, needs `config`, or its network finds no people in space.
            ConfigError: no such device on this machine.
        """
        choose_device(device)  # a mistyped device is reported before a large file is read
        predictor = RigPredictor(restore(path, fallback=config, sees=["views"]), device, space)
        freeze(predictor.task.model)
        return predictor

    @property
    def space(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Size and center of where people are looked for, mm of the world."""
        space = self.task.model.root_net.space
        return space.size, space.center

    def __call__(
        self, recording: Recording | str | Path, gate_mm: float = GATE_MM, max_gap: int = GAP, min_length: int = 1, batch_size: int = 4,
        progress=iter,
    ) -> RigPeople:  # fmt: skip
        """The people of all instants.

        Args:
            recording: or its folder (see `Recording.read`); read with labels="soft" for a network that looks at a detector's joints.
            gate_mm, max_gap, min_length: see lib.tracking.track.
            progress: wraps what is gone through, such as tqdm.

        Raises:
            DataError: pictures (or 2D people) are missing, or have another size than their calibration.
        """
        task, device = self.task, self.device
        if not isinstance(recording, Recording):
            recording = Recording.read(recording, labels="soft")
        r = recording if task.from_images else recording.detected()
        size = r.cameras.size
        if bool((size <= 0).any()):
            raise DataError(f"{r.root}: the calibration knows no image sizes; give them with scripts/prepare.py calibration --size")
        if self.from_cameras or not task.space_known:
            task.set_space(*space_from_cameras(r.cameras))
        if task.from_images:
            r.check_pictures()
        joints = None if task.from_images else _joints_for(r, task)
        A = letterbox_affine(size, task.image_spec.size)  # (V,2,3)
        pictures = iter(r.pictures()) if task.from_images else None
        found = []
        for start in progress(range(0, len(r.frames), batch_size)):
            rows = slice(start, min(start + batch_size, len(r.frames)))
            count = rows.stop - rows.start
            batch = {
                "patch_from_img": A.expand(count, *A.shape).float().to(device),
                "flipped": torch.zeros(count, dtype=torch.bool, device=device),
                "camera": r.cameras.expand(count, len(r.names)).to(torch.float32).to(device),
            }
            if pictures is not None:
                shown = np.stack([_patches(next(pictures), A.numpy(), task.image_spec.size) for _ in range(count)])
                batch["image"] = torch.from_numpy(shown).movedim(-1, -3).contiguous().to(device)
            else:
                batch |= {"x_img": joints[0][rows].float().to(device), "conf": joints[1][rows].float().to(device)}
            with torch.no_grad():
                pred = task.predict(batch)
            found.append({name: pred[name].cpu().double() for name in ("X_world", "score", "found")})
        X, score, there = (torch.cat([part[name] for part in found]) for name in ("X_world", "score", "found"))
        there = there > 0
        valid = there[..., None].expand(X.shape[:-1])
        ids = track(X, valid, there, gate_mm, max_gap=max_gap, min_length=min_length)
        x, depth = r.cameras.project(X.flatten(1, 2)[:, None])  # (F,V,P*J,2)
        inside = ((x >= -0.5) & (x <= size[:, None] - 0.5)).all(-1) & (depth > 0)
        views = inside.unflatten(2, X.shape[1:3]).movedim(1, -1)
        error = torch.full(X.shape[:-1], torch.nan)
        return _rows(r, get(task.skeleton), ids, score, X, valid, views, error, "network")


def _joints_for(r: Recording, task: VoxelPoseTask) -> tuple[Tensor, Tensor]:
    """2D people in the joints of the task.   -> x_img (F,V,M,J,2), conf (F,V,M,J)"""
    x, present = skeletons.convert(torch.cat([r.x_img, r.conf[..., None]], -1), r.skeleton, task.skeleton)
    if not bool(present.any()):
        raise DataError(f"{r.root}: joints of {r.skeleton.name} are none of {task.skeleton}, which the network was trained on")
    return x[..., :2], x[..., 2]


def _patches(shown: Sequence[np.ndarray], A: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([warp(image, a, size) for image, a in zip(shown, A, strict=True)])


# ------------------------------------------------------------------------------------------------------------------- film


def film(
    recording: Recording, people: RigPeople, height: int = 480, azimuth: float = 35.0, elevation: float = 24.0, up: str = "z", space=None
) -> Iterator[np.ndarray]:
    """The views with everyone's joints projected, the scene and the space from above; one picture per instant of `people`.

    height: px of the scene. -> (H,W,3) uint8 RGB
    """
    first = int(np.searchsorted(recording.frames, people.frames[0])) if len(people.frames) else 0
    r = recording.part(slice(first, first + len(people.frames)))
    panels = _Panels(r, height)
    points = people.X_world[people.valid]
    low = float(np.percentile(points @ view_axes(up)[1], 1)) if len(points) else 0.0
    floor = low if abs(low) > FLOOR_MM else 0.0
    around = np.percentile(points, [0.5, 99.5], axis=0) if len(points) else None
    where = {"names": r.names, "space": space, "up": up, "floor_mm": floor, "around": around}
    tall = (panels.width - GAP_PX - height, height)
    scene = SpaceView(r.cameras, people.skeleton, size=tall, azimuth=azimuth, elevation=elevation, **where)
    top = SpaceView(r.cameras, people.skeleton, size=(height, height), azimuth=0.0, elevation=TOP, **where)
    for frame, shown in zip(r.frames.tolist(), r.pictures(), strict=True):
        rows = np.flatnonzero(people.frame == frame)
        X, numbers = people.X_world[rows], people.person[rows]
        x = _projected(X, r.cameras)  # (V,P,J,2)
        clock = f"frame {frame}" + (f"   {frame / r.fps:.2f} s" if r.fps else "")
        grid = panels.draw(shown, x, numbers, people.skeleton)
        lower = beside(
            [_titled(scene.draw(X, numbers), f"scene   {clock}"), _titled(top.draw(X, numbers), "from above, squares of 1 m")], GAP_PX
        )
        yield below([grid, lower], GAP_PX)


def _projected(X: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Pixels of people in all views, NaN behind a camera.   X (P,J,3) -> (V,P,J,2)"""
    points = torch.from_numpy(X).to(cameras.dtype).flatten(0, 1)
    x, depth = cameras.project(points)
    return x.masked_fill(~(depth > 0)[..., None], torch.nan).unflatten(1, X.shape[:2]).numpy()


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    head = np.full((HEAD, picture.shape[1], 3), PAPER, np.uint8)
    write_texts(head, [((3, 4), title, 13.0, FAINT, True)])
    return np.concatenate([head, picture])


class _Panels:
    """Where and how large the views are shown: rows of equal height."""

    def __init__(self, r: Recording, height: int):
        size = r.cameras.size.numpy()
        self.names, self.size = r.names, np.where(size > 0, size, 2 * r.cameras.K[:, :2, 2].numpy())
        ratio = self.size[:, 0] / self.size[:, 1]
        count = len(ratio)
        per_row = next(
            n for n in range(count, 0, -1)
            if n == 1 or (WIDTH - GAP_PX * (n - 1)) / max(ratio[i : i + n].sum() for i in range(0, count, n)) >= 0.45 * height
        )  # fmt: skip
        per_row = -(-count // -(-count // per_row))  # rows as full as each other
        widest = max(ratio[i : i + per_row].sum() for i in range(0, count, per_row))
        self.height = round(min((WIDTH - GAP_PX * (per_row - 1)) / widest, 1.6 * height))
        self.columns = [range(i, min(i + per_row, count)) for i in range(0, count, per_row)]
        self.widths = np.maximum(np.rint(self.height * ratio).astype(int), 1)
        widest = max(int(self.widths[row].sum()) + GAP_PX * (len(row) - 1) for row in self.columns)
        self.width = max(widest, 2 * height + GAP_PX)

    def draw(self, shown: Sequence[np.ndarray | None], x: np.ndarray, numbers: np.ndarray, skeleton: Skeleton) -> np.ndarray:
        """x (V,P,J,2) px of the views."""
        return below([beside([self._view(v, shown[v], x[v], numbers, skeleton) for v in row], GAP_PX) for row in self.columns], GAP_PX)

    def _view(self, v: int, image: np.ndarray | None, x: np.ndarray, numbers: np.ndarray, skeleton: Skeleton) -> np.ndarray:
        width = int(self.widths[v])
        share = self.height / (self.size[v, 1] if image is None else image.shape[0])
        small = (
            np.full((self.height, width, 3), FLOOR, np.uint8)
            if image is None
            else cv2.resize(image, (width, self.height), interpolation=cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR)
        )
        for pose, number in zip((x + 0.5) * share - 0.5, numbers, strict=True):
            small = draw_skeleton_2d(small, pose, skeleton, color=person_color(int(number)))
        return _titled(small, self.names[v])
