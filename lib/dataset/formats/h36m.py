"""Human3.6M as EpipolarPose published it: images and a list of records per split; or our own table beside the same images.

<root>/annot/<split>.npz             our table: plain arrays, nothing in it can execute; preferred where both exist
<root>/annot/<split>.pkl             the published form: a list of records, or one list per camera {1: [...], ..., 4: [...]}
<root>/images/S1/Photo_1.58860488/000781.jpg        subject / sequence . camera / number of the frame, from 1

The published records say joints twice: as `joints_3d` (px, px and depth relative to the root), which the release trains and judges
on, and as `joints_3d_cam`. Where the two differ, as they do in triangulated labels, `joints_3d` counts.

The published 2D joints and boxes ignore the lens, though the images show its distortion (some px, 10 in the corners). Read with
`project="pinhole"` (what was published) the table has pinhole cameras, so that its 2D and 3D joints agree; with "distorted" it has
the lenses too, and 2D joints where the images show them.
"""

import dataclasses
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch

from lib import skeleton as skeletons
from lib import unpickle
from lib.dataset.annotations import Annotations
from lib.dataset.formats.files import findings, image_size, load_table, place_images, save_table
from lib.errors import MALFORMED, DataError, GeometryError
from lib.files import new_file, refuse_existing
from lib.geometry.camera import Cameras

log = logging.getLogger("parallax")

SKELETON = "h36m17"
ORDERS = {17: "h36m17", 16: "mpii16"}  # the published files are known by their number of joints
CAMERA_IDS = ("54138969", "55011271", "58860488", "60457274")  # views 0 to 3
FPS = 50.0
PROJECT = ("pinhole", "distorted", "stored")
CAMERA_CLASS = "lib.utils.cameras.Camera"  # whose objects the published pickles hold
# Action numbers 2 to 16 of the release, in the spelling that tables of results use.
ACTIONS = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases", "Sitting", "SittingDown", "Smoking",
    "Photo", "Waiting", "Walking", "WalkDog", "WalkTogether",
)  # fmt: skip
SPELLINGS = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog", "WalkingTogether": "WalkTogether"}
_PATH = re.compile(r"(?:^|/)S(\d+)/(?:S\d+_)?([^/]+)\.([^./]+)/(?:[^/]*_)?(\d+)\.\w+$")
_NUMBERED = re.compile(r"(?:^|/)s_(\d+)_act_(\d+)_subact_(\d+)_ca_(\d+)(?:/[^/]*)?_(\d+)\.\w+$")
AGREE_MM = 5.0  # how far the views of one instant may disagree about a joint before it is told ...
REFUSE_MM = 100.0  # ... and, in the median, before the cameras must be wrong
LABEL_PX, LABEL_MM = 0.1, 1.0  # how far joints_3d and joints_3d_cam may lie apart and still be the same, in the image and in depth


class Place(NamedTuple):
    """What the path of an image says."""

    subject: str  # S1
    sequence: str  # Photo_1
    view: int
    frame: int  # from 0

    @property
    def action(self) -> str:
        return re.sub(r"_\d+$", "", self.sequence)

    @property
    def number(self) -> str:
        """The number in the sequence's name, which is not the subaction; "" = none."""
        return self.sequence[len(self.action) + 1 :]


def canonical(sequence: str) -> str:
    """A sequence or action in the spelling used here: `TakingPhoto 1` -> `Photo_1`."""
    name, _, number = sequence.replace(" ", "_").partition("_")
    return SPELLINGS.get(name, name) + (f"_{number}" if number else "")


def spellings(sequence: str) -> list[str]:
    """A canonical sequence in every spelling that was published, with underscores."""
    name, _, number = sequence.partition("_")
    return [n + (f"_{number}" if number else "") for n in (name, *(k for k, v in SPELLINGS.items() if v == name))]


def parse_path(path: str) -> Place | None:
    """What an image path says, in this layout's naming or in that of Integral pose regression; None for another naming.

    images/S1/Photo_1.58860488/000781.jpg, S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000001.jpg,
    s_09_act_05_subact_02_ca_01/s_09_act_05_subact_02_ca_01_000001.jpg
    """
    if found := _PATH.search(path):
        subject, sequence, camera, frame = found.groups()
        if camera in CAMERA_IDS:
            return Place(f"S{int(subject)}", canonical(sequence), CAMERA_IDS.index(camera), int(frame) - 1)
    if found := _NUMBERED.search(path):
        subject, action, subaction, camera, frame = (int(n) for n in found.groups())
        if 2 <= action <= len(ACTIONS) + 1 and 1 <= camera <= len(CAMERA_IDS):
            return Place(f"S{subject}", f"{ACTIONS[action - 2]}_{subaction}", camera - 1, frame - 1)
    return None


def image_name(subject: str, sequence: str, view: int, frame: int) -> str:
    """The path of an image in this layout; `frame` counts from 0, file names from 1."""
    return f"images/{subject}/{sequence}.{CAMERA_IDS[view]}/{frame + 1:06d}.jpg"


# ------------------------------------------------------------------------------------------------------------- reading


def read(root: str | Path, split: str, project: str = "", tangential: str = "h36m") -> Annotations:
    """One split: annot/<split>.npz, else annot/<split>.pkl.

    Args:
        root: folder that holds annot/ and images/.
        split: `train-fs`, `train-ss`, `valid`, or the name of any other file in annot/.
        project: where the 2D joints of 3D joints lie. "pinhole": as published, without lens; "distorted": as the images show them;
            "stored": the values in the file, taken for those of a pinhole. "" = as stored in an .npz, pinhole for a .pkl.
        tangential: lens formula of "distorted": that of the release ("h36m"), or "opencv" (they differ by < 1 px).

    Raises:
        DataError: no such split, a pickle that holds something else than plain data and cameras, or records that do not fit.
    """
    return _read(Path(root), split, project, tangential)


def _read(root: Path, split: str, project: str, tangential: str = "h36m", labels: bool = True) -> Annotations:
    """See `read`; without `labels` the 3D joints of a pickle are its joints_3d_cam, whatever its joints_3d say."""
    if project not in ("", *PROJECT):
        raise DataError(f"project: {project!r} is not one of {', '.join(PROJECT)}; correct DATASET.OPTIONS")
    table, records = (root / "annot" / f"{split}{suffix}" for suffix in (".npz", ".pkl"))
    if table.exists():
        try:
            ann = load_table(table).check(str(table))
        except (OSError, *MALFORMED) as error:
            raise DataError(f"{table}: not an annotation table of this program ({error}); prepare it again") from None
        ann = reprojected(ann, project, tangential) if project not in ("", "stored") else ann
    elif records.exists():
        ann = _from_records(records, root, project or "pinhole", tangential, labels)
    else:
        names = {p.stem for s in (".npz", ".pkl") for p in (root / "annot").glob(f"*{s}") if not p.name.startswith(".")}
        raise DataError(
            f"{root}/annot: has no split {split!r} (.npz or .pkl), only {', '.join(sorted(names)) or 'none'}; set DATASET.ROOT and the "
            "split, or make it with `python scripts/prepare.py h36m`"
        )
    names = _spelled_as_on_disk(root, [n.decode() for n in ann.images])
    return dataclasses.replace(ann, images=np.array(names, dtype=bytes))


def reprojected(ann: Annotations, project: str, tangential: str = "h36m") -> Annotations:
    """The table with 2D joints projected from its 3D joints where those are valid; "pinhole" removes the lenses as well."""
    rows = np.flatnonzero((ann.pose >= 0) & (ann.camera >= 0))
    cameras = ann.observing(rows)
    X_world = torch.from_numpy(ann.X_world[ann.pose[rows]]).double()
    x_img, depth = (v.numpy() for v in cameras.project(X_world, project == "distorted", tangential))
    moved = ann.X_valid[ann.pose[rows]] & (depth > 0)
    changed = ann.x_img.copy()
    changed[rows] = np.where(moved[..., None], x_img, changed[rows])
    cameras = ann.cameras if project == "distorted" else _without_lens(ann.cameras)
    return dataclasses.replace(ann, x_img=changed.astype(np.float32), cameras=cameras)


def _without_lens(cameras: Cameras) -> Cameras:
    return Cameras(cameras.K, cameras.R, cameras.t, torch.zeros_like(cameras.dist), cameras.size)


def _from_records(path: Path, root: Path, project: str, tangential: str, labels: bool) -> Annotations:
    records, known_views = _records(path)
    try:
        J = len(records[0].get("joints_3d"))
    except TypeError:  # a number, nothing, or an array of no axis
        J = 0
    if J not in ORDERS:
        raise DataError(f"{path}: record 0: joints_3d has {J} rows, expected 17 (Human3.6M) or 16 (MPII's order); see the file")
    skeleton, n = ORDERS[J], len(records)
    places = [_place(path, i, record, view) for i, (record, view) in enumerate(zip(records, known_views, strict=True))]
    view = np.array([p.view for p in places], np.int32)
    frame = np.array([p.frame for p in places], np.int32)
    sequences: dict[tuple[str, str], int] = {}
    sequence = np.array([sequences.setdefault((p.subject, p.sequence), len(sequences)) for p in places], np.int32)

    take = _Taker(path, records)
    K, R, center, lens = take.cameras()
    joints_3d = take("joints_3d", (J, 3))
    vis = take("joints_3d_vis", (J, 3), np.ones((J, 3)))
    X_cam = take("joints_3d_cam", (J, 3), np.full((J, 3), np.nan))
    published = _published(path, joints_3d, X_cam, take("pelvis", (3,), np.full(3, np.nan)), K, skeletons.get(skeleton).root_index)
    derived = np.isnan(X_cam).all((1, 2))
    X_cam = np.where(derived[:, None, None], published, X_cam)
    if labels:
        X_cam = _labelled(path, X_cam, published, K, (vis > 0).any(-1))
    X_world = np.einsum("nij,nkj->nki", np.swapaxes(R, 1, 2), X_cam) + center[:, None]
    seen, valid = (vis[..., :2] > 0).all(-1), (vis[..., 2] > 0) & np.isfinite(X_cam).all(-1)

    params = np.concatenate([view[:, None], K.reshape(n, 9), R.reshape(n, 9), center, lens], 1)
    rows, camera = np.unique(params, axis=0, return_inverse=True)
    camera = camera.reshape(-1)
    first = np.array([np.flatnonzero(camera == k)[0] for k in range(len(rows))])
    images = [_image(record["image"]) for record in records]
    size = np.array([image_size(root / name) for name in _spelled_as_on_disk(root, [images[i] for i in first])], np.float64)
    try:
        cameras = Cameras.make(K[first], _nearest_rotation(R[first]), center=center[first], dist=lens[first], size=size)
    except GeometryError as error:
        raise DataError(f"{path}: {error}; get the complete file") from None

    wide = cameras[torch.from_numpy(camera.astype(np.int64))]
    projected = wide.project_cam(torch.from_numpy(np.nan_to_num(X_cam)), project == "distorted", tangential).numpy()
    use = np.isfinite(X_cam).all(-1) & (X_cam[..., 2] > 0) & (project != "stored")
    x_img = np.where(use[..., None], projected, joints_3d[..., :2])
    seen &= np.isfinite(x_img).all(-1)
    inside = ((x_img >= -0.5) & (x_img <= size[camera][:, None] - 0.5)).all(-1) | (size[camera] <= 0).any(-1)[:, None]
    pose, poses, poses_valid = _instants(path, images, sequence, frame, view, X_world, valid)
    middle = np.stack([take(name, ()) for name in ("center_x", "center_y")], -1)
    half = np.stack([take(name, ()) for name in ("width", "height")], -1) / 2
    actions, subactions = {}, {}
    for record, s, p in zip(records, sequence, places, strict=True):
        if s not in actions:
            actions[s] = canonical(str(record.get("action") or p.action))
            subactions[s] = str(record.get("subaction") or p.number)
    every = range(len(sequences))
    return Annotations(
        skeleton=skeleton,
        cameras=cameras if project == "distorted" else _without_lens(cameras),
        X_world=poses.astype(np.float32),
        X_valid=poses_valid,
        sequence=sequence,
        frame=frame,
        view=view,
        person=np.zeros(n, np.int32),
        image=np.arange(n, dtype=np.int32),
        camera=camera.astype(np.int32),
        pose=pose.astype(np.int32),
        x_img=x_img.astype(np.float32),
        conf=seen.astype(np.float32),
        visible=seen & inside,
        box=np.concatenate([middle - half, middle + half], -1).astype(np.float32),
        images=np.array(images, dtype=bytes),
        subjects=np.array([s for s, _ in sequences], dtype=bytes),
        actions=np.array([actions[s] for s in every], dtype=bytes),
        subactions=np.array([subactions[s] for s in every], dtype=bytes),
        fps=FPS,
    ).check(str(path))


def _published(path: Path, joints_3d: np.ndarray, X_cam: np.ndarray, pelvis: np.ndarray, K: np.ndarray, root: int) -> np.ndarray:
    """The joints that joints_3d means, in camera space; a record without pelvis has the root of its joints_3d_cam.

    joints_3d (N,J,3) px, px, mm; X_cam (N,J,3) mm, NaN where missing; pelvis (N,3) mm, NaN where missing -> (N,J,3) mm
    """
    depth = np.where(np.isnan(pelvis[:, 2]), X_cam[:, root, 2], pelvis[:, 2])
    if np.isnan(depth).any():
        row = np.flatnonzero(np.isnan(depth))[0]
        raise DataError(f"{path}: record {row} has neither joints_3d_cam nor pelvis, so its depth is unknown; get the complete file")
    z = joints_3d[..., 2:] + depth[:, None, None]
    return np.concatenate([(joints_3d[..., :2] - K[:, None, :2, 2]) / K[:, None, (0, 1), (0, 1)] * z, z], -1)


def _labelled(path: Path, X_cam: np.ndarray, published: np.ndarray, K: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Joints of joints_3d_cam, but those of joints_3d where the two differ, which is told.   (N,J,3) mm, known (N,J) -> (N,J,3)"""
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = np.abs(X_cam[..., :2] / X_cam[..., 2:] - published[..., :2] / published[..., 2:]) * K[:, None, (0, 1), (0, 1)]
    same = (offset <= LABEL_PX).all(-1) & (np.abs(X_cam[..., 2] - published[..., 2]) <= LABEL_MM)
    apart = known & ~same & np.isfinite(published).all(-1)
    if apart.any():
        log.warning(
            "%s: %d joints of %d of %d records lie elsewhere in joints_3d than in joints_3d_cam; those of joints_3d are used, as the "
            "release does", path, int(apart.sum()), int(apart.any(-1).sum()), len(apart),
        )  # fmt: skip
    return np.where(apart[..., None], published, X_cam)


def _records(path: Path) -> tuple[list[dict], list[int]]:
    """The records of a pickle, and the view that each has by its place in a dict of lists (-1: a flat list)."""
    data = unpickle.load(path, (CAMERA_CLASS,))
    if isinstance(data, Mapping):
        lists = [(int(key) - 1, list(data[key])) for key in sorted(data, key=str) if str(key).isdigit() and isinstance(data[key], list)]
        if len(lists) != len(data):
            raise DataError(f"{path}: holds a dict with keys {list(data)[:6]}, expected one list per camera under 1, 2, 3, 4")
    elif isinstance(data, list):
        lists = [(-1, data)]
    else:
        raise DataError(f"{path}: holds {type(data).__name__}, expected a list of records or one list per camera")
    records = [r for _, part in lists for r in part]
    if not records or not all(isinstance(r, dict) and isinstance(r.get("image"), str) for r in records):
        bad = next((i for i, r in enumerate(records) if not isinstance(r, dict) or not isinstance(r.get("image"), str)), "")
        found = f"record {bad} is not a dict with a text `image`" if records else "no records"
        raise DataError(f"{path}: {found}; expected the annotations of EpipolarPose (image, joints_3d, cam, ...)")
    return records, [view for view, part in lists for _ in part]


def _place(path: Path, i: int, record: dict, view: int) -> Place:
    place = parse_path(record["image"])
    if place is None:
        raise DataError(
            f"{path}: record {i}: the image path {record['image']!r} does not tell subject, sequence, camera and frame; expected a path "
            f"like images/S1/Photo_1.58860488/000781.jpg with a camera of {', '.join(CAMERA_IDS)}"
        )
    if view not in (-1, place.view):
        raise DataError(
            f"{path}: record {i}: {record['image']} is in the list of camera {view + 1}, but is of camera {place.view + 1} "
            f"({CAMERA_IDS[place.view]}); the lists must be in the order {', '.join(CAMERA_IDS)}"
        )
    return place


class _Taker:
    """Fields of all records as arrays, float64."""

    def __init__(self, path: Path, records: list[dict]):
        self.path, self.records = path, records
        self.cams = [r.get("cam") for r in records]

    def __call__(self, name: str, shape: tuple[int, ...], default: Any = None) -> np.ndarray:
        return self._stack(name, [r.get(name) for r in self.records], shape, default)

    def cameras(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """K (N,3,3), R (N,3,3), centre (N,3) mm, lens (N,5) in OpenCV's order."""
        bad = next((i for i, cam in enumerate(self.cams) if not isinstance(cam, unpickle.Record | dict)), None)
        if bad is not None:
            raise DataError(f"{self.path}: record {bad} has no camera (`cam`, of class {CAMERA_CLASS}); get the complete file")
        attributes = [cam if isinstance(cam, dict) else vars(cam) for cam in self.cams]

        def of(name: str, shape: tuple[int, ...], field: str = "", default: Any = None) -> np.ndarray:
            """A camera's attribute, or the record's own field where it has one."""
            values = [r[field] if r.get(field) is not None else a.get(name) for r, a in zip(self.records, attributes, strict=True)]
            return self._stack(f"cam.{name}", values, shape, default)

        n = len(self.records)
        K = np.tile(np.eye(3), (n, 1, 1))
        focal, K[:, :2, 2] = of("f", (2,), "fl"), of("c", (2,), "c_p")
        if not (focal > 0).all():
            row = np.flatnonzero(~(focal > 0).all(1))[0]
            found = f"focal lengths (fl or cam.f) {focal[row].tolist()} px"
            raise DataError(f"{self.path}: record {row}: {found}, expected positive ones; get the complete file")
        K[:, (0, 1), (0, 1)] = focal
        k, p = of("k", (3,), default=np.zeros(3)), of("p", (2,), default=np.zeros(2))
        return K, of("R", (3, 3)), of("T", (3,)), np.concatenate([k[:, :2], p, k[:, 2:]], 1)

    def _stack(self, name: str, values: Iterable[Any], shape: tuple[int, ...], default: Any) -> np.ndarray:
        size, out = int(np.prod(shape)), []
        for i, value in enumerate(values):
            value = default if value is None else value
            try:
                array = np.asarray(value, np.float64)
            except MALFORMED:
                array = np.empty(0)
            if name in ("cam.f", "cam.c") and array.size > size:  # published as two or more numbers
                array = array.reshape(-1)[:size]
            if value is None or array.size != size:
                found = "is missing" if value is None else f"has shape {array.shape}"
                raise DataError(f"{self.path}: record {i}: {name} {found}, expected {shape or 'a number'}; get the complete file")
            out.append(array.reshape(shape))
        return np.stack(out)


def _nearest_rotation(R: np.ndarray) -> np.ndarray:
    """Removes the rounding of matrices stored in short; others are left for the check of the table.   R (N,3,3)"""
    u, _, v = np.linalg.svd(R)
    near = u @ v
    return np.where(np.abs(near - R).max((-1, -2), keepdims=True) < 1e-4, near, R)


def _instants(
    path: Path,
    images: list[str],
    sequence: np.ndarray,
    frame: np.ndarray,
    view: np.ndarray,
    X_world: np.ndarray,
    valid: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses shared by the views of an instant.

    X_world (N,J,3) mm, valid (N,J) -> row of the pose (N,), poses (P,J,3) mm, their validity (P,J)
    """
    _, first, pose = np.unique(np.stack([sequence, frame], 1), axis=0, return_index=True, return_inverse=True)
    pose = pose.reshape(-1)
    poses, poses_valid = np.zeros((len(first), *X_world.shape[1:])), np.zeros((len(first), X_world.shape[1]), bool)
    for v in np.unique(view)[::-1]:  # the first view that knows a joint counts
        rows = np.flatnonzero(view == v)
        at = pose[rows]
        poses[at] = np.where(valid[rows][..., None], X_world[rows], poses[at])
        poses_valid[at] |= valid[rows]
    apart = np.where(valid, np.linalg.norm(np.nan_to_num(X_world) - poses[pose], axis=-1), 0).max(-1)
    shared = np.bincount(pose)[pose] > 1
    if shared.any() and np.median(apart[shared]) > REFUSE_MM:
        raise DataError(
            f"{path}: the views of an instant put their joints {np.median(apart[shared]):.4g} mm apart (median), expected the same place; "
            "check the cameras: X_cam = R (X_world - T) with T the camera centre in mm, not in metres, and R not transposed"
        )
    if (apart > AGREE_MM).any():
        worst = int(apart.argmax())
        log.warning(
            "%s: %d of %d records differ by more than %g mm from another view of the same instant (%s: %.0f mm); the first view is used",
            path, int((apart > AGREE_MM).sum()), len(apart), AGREE_MM, images[worst], apart[worst],
        )  # fmt: skip
    return pose, poses, poses_valid


def _image(path: str) -> str:
    """An image path relative to the root: the published ones begin with h36m/images, images, or the subject."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if "images" in parts:
        return "/".join(parts[parts.index("images") :])
    return "/".join(("images", *(parts[1:] if parts[0] == "h36m" else parts)))


def _spelled_as_on_disk(root: Path, names: list[str]) -> list[str]:
    """Image paths with the folder's spelling of the sequence (Photo or TakingPhoto, WalkDog or WalkingDog)."""
    folders: dict[str, str] = {}
    for name in names:
        folder = os.path.dirname(name)
        if folder not in folders:
            folders[folder] = folder
            parent, _, last = folder.rpartition("/")
            sequence, dot, camera = last.rpartition(".")
            if dot and not (root / folder).is_dir():
                others = [f"{parent}/{other}.{camera}" for other in spellings(canonical(sequence))]
                folders[folder] = next((o for o in others if (root / o).is_dir()), folder)
    return [f"{folders[os.path.dirname(n)]}/{os.path.basename(n)}" if "/" in n else n for n in names]


# ------------------------------------------------------------------------------------------------------------- writing


class Camera:
    """The attributes that the original's camera objects have; written under the name of CAMERA_CLASS."""

    def __init__(self, K: np.ndarray, R: np.ndarray, t: np.ndarray, dist: np.ndarray, name: str):
        self.R, self.T = R, -R.T @ t[:, None]
        self.f, self.c = K[(0, 1), (0, 1)][:, None], K[:2, 2][:, None]
        self.k, self.p = dist[[0, 1, 4]][:, None], dist[2:4][:, None]
        self.name, self.camera_matrix, self.dist_coeffs, self.tvec = name, K, dist, t[:, None]
        self.projection_matrix = K @ np.concatenate([R, self.tvec], 1)
        self.cam_params = (self.R, self.T, self.f, self.c, self.k, self.p, name)


class _Pickler(pickle._Pickler):  # the C one cannot name a class that does not exist here
    """Writes our Camera under the original's name, and NumPy under the names that NumPy 1 knows as well."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, qualified = getattr(obj, "__module__", None) or "", name or obj.__qualname__
        if obj is Camera:
            module, _, qualified = CAMERA_CLASS.rpartition(".")
        elif module.startswith("numpy._core"):
            module = module.replace("numpy._core", "numpy.core", 1)
        else:
            return super().save_global(obj, name)
        self.write(pickle.GLOBAL + f"{module}\n{qualified}\n".encode())
        self.memoize(obj)


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    form: str = "npz",
    per_camera: bool = False,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes annot/<split>.npz or .pkl, and the images if there is something to make them.

    Args:
        ann: the table. Its images keep their names if they lie under images/ and none are to be written.
        root: folder of the data set, made if missing.
        split: name of the file.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images. With workers it must be picklable.
        form: "npz" (the table as it is) or "pickle" (what the original reads: pinhole 2D joints, one person, known 3D).
        per_camera: pickle only: one list per camera, index by index of the same instants; incomplete instants are left out.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the split or one of its images exists, or the table does not fit the layout.
    """
    root = Path(root)
    ann.check(f"annotations to be written to {root} ({split})")
    if form not in ("npz", "pickle"):
        raise DataError(f"form: {form!r} is not one of npz, pickle")
    path = root / "annot" / f"{split}{'.npz' if form == 'npz' else '.pkl'}"
    refuse_existing(path)
    names = [name.decode() for name in ann.images]
    if image is not None or not all(n.startswith("images/") for n in names):
        names = image_names(ann)
    with new_file(path) as part:
        if form == "npz":
            save_table(ann, names, part)
        else:
            with open(part, "xb") as file:
                _Pickler(file, protocol=2).dump(_to_records(ann, names, per_camera))
        if image is not None:
            place_images(root, names, image, split, workers, f"{root}: {split}" if progress else None)


def image_names(ann: Annotations) -> list[str]:
    """Names of this layout for all images of a table.

    Raises:
        DataError: an image shows several people or instants, or a view that has no camera here.
    """
    if len(ann.view) and ann.view.max() >= len(CAMERA_IDS):
        raise DataError(f"view {ann.view.max()}: Human3.6M has the cameras {', '.join(CAMERA_IDS)} only; use a rig of four, such as h36m")
    labels = sequence_labels(ann)
    names = [""] * len(ann.images)
    for i, s, v, f in zip(ann.image, ann.sequence, ann.view, ann.frame, strict=True):
        if i >= 0:
            name = image_name(ann.subjects[s].decode(), labels[s], int(v), int(f))
            if names[i] not in ("", name):
                raise DataError(f"image {i} ({ann.images[i].decode()}) shows {names[i]} and {name}; Human3.6M has one instant in an image")
            names[i] = name
    unused = [f"images/unused/{i:06d}.jpg" for i in range(len(names))]  # of people who have left the picture
    names = [n or u for n, u in zip(names, unused, strict=True)]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"{twice}: two images would get this name; sequences of a subject need different actions or subactions")
    return names


def sequence_labels(ann: Annotations) -> list[str]:
    """Photo_1, ...: action and subaction of every sequence.   -> S texts"""
    pairs = [(canonical(a.decode()), b.decode()) for a, b in zip(ann.actions, ann.subactions, strict=True)]
    for subject in ann.subjects:
        if not re.fullmatch(r"S\d+", subject.decode()):
            raise DataError(f"subject {subject.decode()!r}: expected S and a number, as Human3.6M names its subjects")
    return [f"{action}_{number}" if number else action for action, number in pairs]


def _to_records(ann: Annotations, names: list[str], per_camera: bool) -> list[dict] | dict[int, list[dict]]:
    """The published records; see `write`."""
    if ann.skeleton not in ORDERS.values():
        raise DataError(f"skeleton {ann.skeleton}: the published records have {' or '.join(ORDERS.values())}; convert with .to_skeleton")
    for field, text in (("pose", "3D joints"), ("camera", "a camera"), ("image", "an image")):
        missing = np.flatnonzero(getattr(ann, field) < 0)
        if len(missing):
            raise DataError(f"row {missing[0]} has no {text}; the published records need it, write form npz instead")
    if ann.person.any():
        raise DataError("the published records have one person in an image; write form npz instead, or select one person")
    skel = skeletons.get(ann.skeleton)
    wide = ann.observing()
    X_cam = wide.to_cam(torch.from_numpy(ann.X_world[ann.pose]).double())
    x_img = wide.project_cam(torch.nan_to_num(X_cam), distort=False).numpy()
    X_cam, root = X_cam.numpy(), skel.root_index
    vis = np.concatenate([np.repeat((ann.conf > 0)[..., None], 2, -1), ann.X_valid[ann.pose][..., None]], -1).astype(np.float64)
    fields = {name: getattr(ann.cameras, name).numpy() for name in ("K", "R", "t", "dist")}
    view_of = {int(c): int(v) for c, v in zip(ann.camera, ann.view, strict=True)}
    objects = {c: Camera(**{k: v[c] for k, v in fields.items()}, name=CAMERA_IDS[v]) for c, v in view_of.items()}
    flip = [(i, int(j)) for i, j in enumerate(skel.flip) if i < j]
    box = ann.box.astype(np.float64)
    flip_pairs, parents = np.array(flip), np.array(skel.parents)
    records = []
    for i in range(len(ann)):
        cam, s = objects[int(ann.camera[i])], ann.sequence[i]
        records.append({
            "image": names[ann.image[i]],
            "center_x": float(box[i, 0] + box[i, 2]) / 2,
            "center_y": float(box[i, 1] + box[i, 3]) / 2,
            "width": float(box[i, 2] - box[i, 0]),
            "height": float(box[i, 3] - box[i, 1]),
            "joints_3d": np.concatenate([x_img[i], X_cam[i, :, 2:] - X_cam[i, root, 2]], -1),
            "joints_3d_vis": vis[i],
            "joints_3d_cam": X_cam[i],
            "pelvis": X_cam[i, root],
            "fl": cam.f,
            "c_p": cam.c,
            "flip_pairs": flip_pairs,
            "parent_ids": parents,
            "action": canonical(ann.actions[s].decode()),
            "subaction": ann.subactions[s].decode(),
            "subject": int(ann.subjects[s].decode()[1:]),
            "cam": cam,
        })  # fmt: skip
    if not per_camera:
        return records
    rows, starts = ann.group("sequence", "frame")
    views = np.unique(ann.view)
    groups = [rows[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    complete = [g for g in groups if np.array_equal(ann.view[g], views)]
    if not complete:
        raise DataError("no instant is seen by every camera; write a flat list instead (per_camera=False)")
    if len(complete) < len(groups):
        lost = len(groups) - len(complete)
        log.warning("%d of %d instants are not seen by every camera and are left out of the lists", lost, len(groups))
    return {int(v) + 1: [records[g[k]] for g in complete] for k, v in enumerate(views)}


# ------------------------------------------------------------------------------------------------------------ checking


def splits(root: str | Path) -> list[str]:
    """The names of the splits that are there in either form, those of own making too."""
    return sorted({p.stem for p in (Path(root) / "annot").glob("*") if p.suffix in (".npz", ".pkl") and not p.name.startswith(".")})


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Without `split`, all splits of annot/."""
    root = Path(root)
    folder = root / "annot"
    names = splits(root) if split is None else [split]
    if not names:
        return [f"{folder}: no annotations (.npz or .pkl) found; make them with `python scripts/prepare.py h36m`, or set the root"]
    said = []
    for name in names:
        try:
            ann = _read(root, name, "stored", labels=False)  # so that the 2D joints of the file are held against its 3D joints
        except DataError as error:
            said.append(str(error))
            continue
        said += findings(ann, root, str(folder / name))
        keys = np.stack([ann.sequence, ann.frame, ann.view, ann.person], 1)
        unique, count = np.unique(keys, axis=0, return_counts=True)
        if (count > 1).any():
            s, frame, view, _ = unique[count > 1][0]
            said.append(
                f"{folder / name}: {int((count - 1).sum())} records are repeated ({ann.subjects[s].decode()} "
                f"{ann.actions[s].decode()}, frame {frame + 1}, camera {CAMERA_IDS[view]}), expected once per image; remove them"
            )
    return said
