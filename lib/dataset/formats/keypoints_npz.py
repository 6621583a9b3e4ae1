"""The archives of the lifting ecosystem (VideoPose3D and what came after it), read and written:

<root>/data_3d_<dataset>.npz                positions_3d: {subject: {action: (T,J,3) float32, metres in the world}}
<root>/data_2d_<dataset>_<keypoints>.npz    positions_2d: {subject: {action: [(T,J,2 or more) float32 px, one per camera]}},
                                            metadata: layout_name, num_joints, keypoints_symmetry = [left, right]
<root>/cameras_<dataset>.npz                ours, plain arrays: the rigs of data sets besides those below

Both dictionaries are NumPy objects, that is pickles; they are read without running anything in them (lib/unpickle.py). The cameras
of `h36m`, `humaneva15` and `humaneva20` are no part of the archives but constants; `custom` holds keypoints of videos alone, with
metadata.video_metadata = {video: {w, h}} and one action, `custom`, per video.
Source: Pavllo et al., 3D human pose estimation in video with temporal convolutions, CVPR 2019, and its published files.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.formats import h36m, h36m_constants, humaneva_constants
from lib.dataset.formats.files import CAMERA_FIELDS, LIMBS_MM
from lib.dataset.formats.h36m_constants import cameras as h36m_cameras
from lib.dataset.formats.humaneva_constants import cameras as humaneva_cameras
from lib.dataset.tracks import Tracks
from lib.errors import MALFORMED, DataError
from lib.files import new_file, refuse_existing
from lib.geometry.camera import Cameras
from lib.unpickle import load_npz

log = logging.getLogger("parallax")

SKELETON = "h36m17"
LAYOUTS = {"mpii": "mpii16", "coco": "coco17", "h36m": "h36m17", "humaneva15": "humaneva15", "humaneva20": "humaneva20"}
TRAIN, VALID = ("S1", "S5", "S6", "S7", "S8"), ("S9", "S11")
SPLITS = {"train": (TRAIN, "Train/"), "valid": (VALID, "Validate/"), "all": ((), "")}  # subjects, or how their names begin
EXCLUDED = ("S11/Directions",)  # its video is damaged; the published archives lack it, and so do the published numbers
OVERVIEW = "_ALL"  # in the names of Human3.6M's files that are no sequence
CUSTOM = "custom"  # the dataset of videos without poses, and its only action
HOURGLASS = "sh"  # in names: Stacked Hourglass
TRUTH = "gt"  # keypoints that are projected 3D joints: of the same skeleton
MM = 1000.0  # per metre
MOST = 3000  # frames that `inspect` looks at
MISSED = 0.1  # by which 2D and projected 3D joints may differ in the median, of a metre at the person


@dataclass(frozen=True)
class Rigs:
    """What a data set's archives leave out.

    Attributes:
        skeleton: of the 3D poses.
        cameras: the rig (V,) of a subject.
        tangential: lens formula, see lib.geometry.camera.
        fps: frames per second, 0 = unknown.
    """

    skeleton: str
    cameras: Callable[[str], Cameras]
    tangential: str = "opencv"
    fps: float = 0.0


KNOWN = {
    "h36m": Rigs("h36m17", h36m_cameras, h36m_constants.LENS, h36m.FPS),
    "humaneva15": Rigs("humaneva15", humaneva_cameras, fps=humaneva_constants.FPS),
    "humaneva20": Rigs("humaneva20", humaneva_cameras, fps=humaneva_constants.FPS),
}

# -------------------------------------------------------------------------------------------------------------- reading


def read(
    root: str | Path,
    split: str = "all",
    dataset: str = "h36m",
    keypoints: str = "cpn_ft_h36m_dbb",
    layout: str = "",
    exclude: Sequence[str] = EXCLUDED,
) -> Tracks:
    """The tracks of a split: subjects in the usual order, actions in that of the 2D archive, then cameras.

    3D poses are seen from each camera, in mm; the 32 joints of Human3.6M become 17. Keypoints that go on after the poses end are
    cut off. Subjects and actions without 3D poses (has_3d is False) come with "all" only.

    Args:
        root: folder of the archives.
        split: train (S1 S5 S6 S7 S8, or Train/...), valid (S9 S11, or Validate/...) or all.
        dataset: h36m, humaneva15, humaneva20, custom, or one that `write` made.
        keypoints: what follows in the name of the 2D archive: the detector, or gt.
        layout: joint order of the keypoints, where the archive does not say and its name does not tell: mpii, coco, h36m, humaneva15,
            humaneva20 or a name of lib.skeleton.
        exclude: SUBJECT/ACTION or SUBJECT to be left out.

    Raises:
        DataError: an archive is missing, damaged, names code to be run, or 2D and 3D contradict one another.
    """
    root = Path(root)
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}; set DATASET.TRAIN_SET and TEST_SET to one of them")
    path = _archive(root, "2d", dataset, keypoints)
    content = load_npz(path)
    positions, metadata = _by_subject(content, "positions_2d", path), _dictionary(content, "metadata", path, needed=False)
    rigs = _rigs(root, dataset, path, metadata)
    joints = skeletons.get(_layout(path, keypoints, layout, metadata, rigs.skeleton, joint_number(positions)))
    _check_symmetry(path, metadata, joints)
    poses = _poses(_archive(root, "3d", dataset), rigs.skeleton) if rigs.skeleton else {}
    excluded = _excluded(path, exclude, positions, poses)
    tracks = _Builder(path, joints, rigs)
    subjects, prefix = SPLITS[split]
    chosen = [s for s in _ordered(dict.fromkeys([*positions, *poses])) if split == "all" or s in subjects or s.startswith(prefix)]
    if missing := [s for s in chosen if s not in positions and poses[s] and not excluded(s)]:
        raise DataError(f"{path}: has no keypoints of {', '.join(missing)}, which have 3D poses; exclude them or get the whole archive")
    for subject in (s for s in chosen if s in positions):
        _check_covered(path, subject, positions, poses, excluded)
        for action, views in positions[subject].items():
            X_world = poses.get(subject, {}).get(action)
            if not excluded(subject, action) and (X_world is not None or split == "all"):
                tracks.add(subject, action, views, X_world)
    if not tracks.keypoints:
        raise DataError(
            f"{path}: has nothing of split {split} ({', '.join(subjects) or 'all'}{f' or {prefix}...' if prefix else ''}), only "
            f"{', '.join(positions) or 'no subject'}; choose another split, such as all, and name subjects in the configuration"
        )
    if absent := [s for s in subjects if dataset == "h36m" and s not in tracks.subjects and not excluded(s)]:
        log.warning("%s: %s of split %s are not there and are left out", path, ", ".join(absent), split)
    return tracks.table().check(str(path))


class _Builder:
    """Tracks under construction."""

    def __init__(self, path: Path, layout: skeletons.Skeleton, rigs: Rigs):
        self.path, self.layout, self.rigs = path, layout, rigs
        self.num = skeletons.get(rigs.skeleton).num if rigs.skeleton else 0
        self.keypoints: list[np.ndarray] = []
        self.X_cam: list[np.ndarray] = []
        self.rows: list[tuple[str, str, int, int, bool]] = []  # subject, action, view, camera, has_3d
        self.subjects: dict[str, tuple[Cameras, int]] = {}  # rig, row of its first camera

    def add(self, subject: str, action: str, views: Any, X_world: np.ndarray | None) -> None:
        """One action before its cameras; those without keypoints (None) are left out."""
        where = f"{self.path}: {subject} {action!r}"
        if not isinstance(views, list | tuple | np.ndarray):
            raise DataError(f"{where}: is {type(views).__name__}, expected a list with an array for each camera; write it again")
        if subject not in self.subjects:
            self.subjects[subject] = self.rigs.cameras(subject), sum(len(rig) for rig, _ in self.subjects.values())
        rig, first = self.subjects[subject]
        if len(views) > len(rig):
            raise DataError(f"{where}: has keypoints of {len(views)} cameras, but its rig has {len(rig)}; is it of another data set?")
        X_cam = None if X_world is None else _seen_from(rig, X_world)
        for view, data in enumerate(views):
            if data is None:
                continue
            x_img = self._pixels(f"{where} camera {view}", data)
            if X_cam is not None and len(x_img) < X_cam.shape[1]:
                raise DataError(
                    f"{where} camera {view}: has {len(x_img)} frames of keypoints for {X_cam.shape[1]} poses, expected as many or more; "
                    "run the detector on the whole video, or exclude the action"
                )
            x_img = x_img if X_cam is None else x_img[: X_cam.shape[1]]
            if len(x_img):
                self.keypoints.append(x_img)
                self.X_cam.append(np.zeros((len(x_img), self.num, 3), np.float32) if X_cam is None else X_cam[view])
                self.rows.append((subject, action, view, first + view, X_cam is not None))

    def _pixels(self, where: str, data: Any) -> np.ndarray:
        try:
            x_img = np.ascontiguousarray(data, np.float32)
        except MALFORMED:
            raise DataError(f"{where}: is no array of numbers, expected (frames, {self.layout.num}, 2 or more) px") from None
        if x_img.ndim != 3 or x_img.shape[1] != self.layout.num or x_img.shape[2] < 2:
            raise DataError(
                f"{where}: has shape {x_img.shape}, expected (frames, {self.layout.num}, 2 or more) px for the layout "
                f"{self.layout.name}; say the right one with DATASET.OPTIONS.layout"
            )
        if self.keypoints and self.keypoints[0].shape[2] != x_img.shape[2]:
            found = f"{x_img.shape[2]} numbers per joint, others {self.keypoints[0].shape[2]}"
            raise DataError(f"{where}: has {found}; write the archive again")
        return x_img

    def table(self) -> Tracks:
        subject, action, view, camera, has_3d = zip(*self.rows, strict=True)
        return Tracks(
            layout=self.layout.name,
            skeleton=self.rigs.skeleton,
            keypoints=np.concatenate(self.keypoints),
            X_cam=np.concatenate(self.X_cam),
            start=np.cumsum([0, *(len(x) for x in self.keypoints)]).astype(np.int64),
            subject=np.array(subject, dtype=str),
            action=np.array(action, dtype=str),
            view=np.array(view, np.int32),
            person=np.zeros(len(view), np.int32),
            camera=np.array(camera, np.int32),
            has_3d=np.array(has_3d, bool),
            cameras=Cameras.cat([rig for rig, _ in self.subjects.values()]),
            tangential=self.rigs.tangential,
            fps=self.rigs.fps,
        )


def _seen_from(rig: Cameras, X_world: np.ndarray) -> np.ndarray:
    """X_world (T,J,3) m -> (V,T,J,3) float32 mm in the axes of each camera"""
    points = X_world.reshape(-1, 3).astype(np.float64) * MM
    X_cam = points @ rig.R.mT.numpy() + rig.t[:, None].numpy()  # Cameras.to_cam, by a matrix product: millions of points are read
    with np.errstate(over="ignore"):  # what becomes infinite is answered by the check of the table
        return X_cam.astype(np.float32).reshape(len(rig), *X_world.shape)


def _archive(root: Path, kind: str, dataset: str, keypoints: str = "") -> Path:
    path = root / f"data_{kind}_{dataset}{f'_{keypoints}' if keypoints else ''}.npz"
    if not path.exists():
        there = sorted(p.name for p in root.glob("data_*.npz"))
        found = f"the folder has {', '.join(there)}" if there else "the folder has no such archive"
        raise DataError(
            f"{path}: no such file; {found}. Download or convert it (data/README.md), or correct DATASET.ROOT and "
            "DATASET.OPTIONS.dataset and .keypoints"
        )
    return path


def _dictionary(content: Mapping[str, Any], key: Any, path: Path, needed: bool = True) -> dict:
    """A dictionary in an archive or in another dictionary; empty if it is absent and not needed."""
    value = content.get(key)
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if value is None and not needed:
        return {}
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(value).__name__
        raise DataError(f"{path}: {key} is {found}, expected a dictionary; is it an archive of another kind?")
    return value


def _by_subject(content: Mapping[str, Any], key: str, path: Path) -> dict[str, dict[str, Any]]:
    """The dictionary of dictionaries {subject: {action: ...}}."""
    positions = _dictionary(content, key, path)
    return {str(s): {str(action): value for action, value in _dictionary(positions, s, path).items()} for s in positions}


def layout_of(name: str, joints: int = 0) -> str:
    """The skeleton that a name of keypoints tells, such as cpn_ft_h36m_dbb -> h36m17; "" = it does not.

    Of several names in it, the first with this number of joints (0 = not known) counts. Stacked Hourglass (sh_ft_h36m) has the joints of
    MPII, whatever it was tuned on.
    """
    named = [ours for word, ours in LAYOUTS.items() if word in name]
    if HOURGLASS in name.split("_"):
        named.append(LAYOUTS["mpii"])
    return next((ours for ours in named if joints in (0, skeletons.get(ours).num)), named[0] if named else "")


def joint_number(positions: Mapping[str, Mapping[str, Any]]) -> int:
    """Joints of the first keypoints, 0 = there are none; all of them are checked later."""
    views = (x for actions in positions.values() for of in actions.values() if isinstance(of, list | tuple | np.ndarray) for x in of)
    shape = next((x.shape for x in views if isinstance(x, np.ndarray)), ())
    return shape[1] if len(shape) == 3 else 0


def _layout(path: Path, keypoints: str, layout: str, metadata: Mapping[str, Any], skeleton: str, number: int) -> str:
    """The skeleton of the keypoints: as asked for, as the archive says, as its name tells, or that of the poses they were made from."""
    said = layout or str(metadata.get("layout_name") or "") or layout_of(keypoints, number)
    if not said and keypoints == TRUTH:
        said = skeleton
    name = LAYOUTS.get(said, said)
    if name not in skeletons.SKELETONS:
        found = f"its layout is {said!r}" if said else "it does not say which joints it has, nor does its name"
        raise DataError(f"{path}: {found}, expected one of {', '.join(LAYOUTS)}; say it with DATASET.OPTIONS.layout")
    return name


def _check_symmetry(path: Path, metadata: Mapping[str, Any], joints: skeletons.Skeleton) -> None:
    """Holds the archive's left and right joints against the skeleton's. Their pairing is not: published MPII lists cross hip and ankle."""
    number, symmetry = metadata.get("num_joints"), metadata.get("keypoints_symmetry")
    if number is not None and number != joints.num:
        raise DataError(f"{path}: holds {number} joints, but the layout {joints.name} has {joints.num}; say the right one as layout")
    if symmetry is None:
        return
    expected = [list(side) for side in sides(joints)]
    try:
        found = [sorted(int(j) for j in side) for side in symmetry]
    except MALFORMED:
        found = None
    if found != [sorted(side) for side in expected]:
        raise DataError(
            f"{path}: keypoints_symmetry is {symmetry}, but the layout {joints.name} has left and right joints {expected}; "
            "the joints are in another order than their layout says: name it with DATASET.OPTIONS.layout, or correct the archive"
        )


def sides(layout: str | skeletons.Skeleton) -> tuple[list[int], list[int]]:
    """Left joints, and their twins on the right in the same order."""
    joints = skeletons.get(layout)
    left = [j for j, name in enumerate(joints.joints) if name.startswith("l_")]
    return left, joints.flip[left].tolist()


def _poses(path: Path, skeleton: str) -> dict[str, dict[str, np.ndarray]]:
    """The 3D archive over the joints of the skeleton, still in metres of the world."""
    num, out = skeletons.get(skeleton).num, {}
    for subject, actions in _by_subject(load_npz(path), "positions_3d", path).items():
        out[subject] = {}
        for action, data in actions.items():
            where = f"{path}: {subject} {action!r}"
            try:
                X = np.asarray(data, np.float32)
            except MALFORMED:
                raise DataError(f"{where}: is no array of numbers, expected (frames, {num}, 3) in metres") from None
            raw = skeletons.get("h36m32")
            if X.ndim == 3 and X.shape[1:] == (raw.num, 3) and skeleton == SKELETON:
                X, _ = skeletons.convert(X, raw, skeleton)
            if X.ndim != 3 or X.shape[1:] != (num, 3):
                raise DataError(f"{where}: has shape {X.shape}, expected (frames, {num}, 3) for {skeleton}; convert the joints")
            out[subject][action] = X
    return out


def _ordered(subjects: Mapping[str, Any]) -> list[str]:
    """Human3.6M's training and then its test subjects, others as they come."""
    usual = {name: i for i, name in enumerate(TRAIN + VALID)}
    return sorted(subjects, key=lambda name: usual.get(name, len(usual)))


def _excluded(path: Path, exclude: Sequence[str], *archives: Mapping[str, Mapping[str, Any]]) -> Callable[..., bool]:
    """Whether a subject, or an action of it, is left out; a name that occurs nowhere is refused."""
    names = {s for a in archives for s in a} | {f"{s}/{action}" for a in archives for s in a for action in a[s]}
    if unknown := [name for name in exclude if name not in names and name not in EXCLUDED]:
        raise DataError(f"exclude: {', '.join(unknown)} does not occur in {path}; write SUBJECT/ACTION, such as {EXCLUDED[0]}")
    return lambda subject, action="": subject in exclude or f"{subject}/{action}" in exclude


def _check_covered(path: Path, subject: str, positions: Mapping, poses: Mapping, excluded: Callable[..., bool]) -> None:
    missing = [a for a in poses.get(subject, ()) if a not in positions[subject] and not excluded(subject, a)]
    if missing:
        raise DataError(
            f"{path}: has no keypoints of {subject} {', '.join(map(repr, missing))}, which have 3D poses; get the whole archive, or add "
            f"them to DATASET.OPTIONS.exclude as {subject}/{missing[0]}"
        )


# ---------------------------------------------------------------------------------------------------------------- rigs


def _rigs(root: Path, dataset: str, path: Path, metadata: Mapping[str, Any]) -> Rigs:
    if dataset in KNOWN:
        return KNOWN[dataset]
    if dataset == CUSTOM:
        return _video_rigs(path, _dictionary(metadata, "video_metadata", path))
    return _stored_rigs(root / f"cameras_{dataset}.npz")


def _video_rigs(path: Path, videos: Mapping[str, Any]) -> Rigs:
    """A camera for each video: its size is known, and it stands as the first of S1 does, so that renderings are upright."""
    place, rates = h36m_cameras("S1")[:1], {float(v.get("fps", 0)) for v in videos.values() if isinstance(v, dict)}

    def cameras(video: str) -> Cameras:
        try:
            size = [float(videos[video]["w"]), float(videos[video]["h"])]
        except MALFORMED:
            raise DataError(f"{path}: metadata.video_metadata lacks the size of {video}, expected w and h in px; add them") from None
        return _uncalibrated(place.R, place.t, size)

    return Rigs("", cameras, fps=rates.pop() if len(rates) == 1 else 0.0)


def _uncalibrated(R: torch.Tensor, t: torch.Tensor, size: Any) -> Cameras:
    K = torch.full((3, 3), torch.nan, dtype=R.dtype)
    K[2] = torch.tensor([0, 0, 1], dtype=R.dtype)
    return Cameras.make(K, R, t, size=torch.as_tensor(size, dtype=R.dtype))


def _stored_rigs(path: Path) -> Rigs:
    """The rigs that `write` has stored."""
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        fields = [torch.from_numpy(content[name]) for name in CAMERA_FIELDS]
        subjects = content["subjects"].tolist()
        all_cameras = Cameras.make(fields[0], fields[1], fields[2], dist=fields[3], size=fields[4], dtype=torch.float64)
        skeleton, tangential, fps = str(content["skeleton"]), str(content["tangential"]), float(content["fps"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; the cameras are known of {', '.join(KNOWN)} only: write the data set again") from None
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: cannot be read as cameras ({error}); write the data set again") from None

    def cameras(subject: str) -> Cameras:
        if subject not in subjects:
            raise DataError(f"{path}: has no cameras of {subject}, only of {', '.join(subjects)}; write the data set again")
        return all_cameras[subjects.index(subject)]

    return Rigs(skeleton, cameras, tangential, fps)


# -------------------------------------------------------------------------------------------------------------- writing


def write(tracks: Tracks, root: str | Path, dataset: str, keypoints: str) -> dict[str, Path]:
    """The archives of a table, which `read` makes the same table of.

    Known data sets must have their own cameras; under any other name, which is then that of a new data set, the cameras are stored
    beside the archives. Tables without 3D poses are written as `custom`, or leave the 3D archive out.

    Returns:
        The files by kind: 3d, cameras, 2d.

    Raises:
        DataError: a file exists, or the table holds what the archives cannot: several people in a sequence, views that are missing.
    """
    root = Path(root)
    positions_2d: dict[str, dict[str, list[np.ndarray]]] = {}
    positions_3d: dict[str, dict[str, np.ndarray]] = {}
    rows: dict[str, dict[int, int]] = {}  # subject -> view -> row of the cameras
    for s in np.argsort(tracks.view, kind="stable"):
        subject, action, view = str(tracks.subject[s]), str(tracks.action[s]), int(tracks.view[s])
        frames = slice(int(tracks.start[s]), int(tracks.start[s + 1]))
        where = f"tracks: {subject} {action!r}"
        views = positions_2d.setdefault(subject, {}).setdefault(action, [])
        if len(views) != view:
            raise DataError(f"{where}: view {view} comes where {len(views)} was expected; archives hold one person before views 0, 1, ...")
        views.append(np.ascontiguousarray(tracks.keypoints[frames]))
        row = rows.setdefault(subject, {}).setdefault(view, int(tracks.camera[s]))
        if row != tracks.camera[s] and not _same_camera(tracks.cameras[row], tracks.cameras[int(tracks.camera[s])]):
            raise DataError(f"{where}: camera {view} stands elsewhere than in other actions; archives hold one rig for each subject")
        if tracks.has_3d[s] and action not in positions_3d.setdefault(subject, {}):
            X_cam = torch.from_numpy(tracks.X_cam[frames].astype(np.float64))
            X_world = tracks.cameras[row].to_world(X_cam.reshape(-1, 3)).reshape(X_cam.shape) / MM
            positions_3d[subject][action] = X_world.float().numpy()
    videos = None
    if dataset == CUSTOM:
        if tracks.has_3d.any() or any(list(actions) != [CUSTOM] or len(actions[CUSTOM]) > 1 for actions in positions_2d.values()):
            raise DataError(f"tracks: a data set {CUSTOM} has videos with one action, {CUSTOM}, one camera and no 3D poses; choose a name")
        sizes = {video: tracks.cameras.size[views[0]].tolist() for video, views in rows.items()}
        videos = {video: {"w": int(w), "h": int(h)} | ({"fps": tracks.fps} if tracks.fps else {}) for video, (w, h) in sizes.items()}
    rigs = _rigs_of(tracks, rows) if dataset != CUSTOM else None
    if dataset in KNOWN:
        _check_known(tracks, dataset, rows)
        rigs = None
    return _write(root, dataset, keypoints, positions_3d, positions_2d, tracks.layout, videos, rigs)


def write_archives(
    root: str | Path,
    dataset: str,
    keypoints: str,
    positions_3d: Mapping[str, Mapping[str, np.ndarray]],
    positions_2d: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    layout: str,
    video_metadata: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Path]:
    """Archives as VideoPose3D writes them.

    A 3D archive that is there already with the same poses is kept, so that keypoints of several detectors can be added to it.

    Args:
        root: folder; made if need be.
        dataset, keypoints: parts of the file names.
        positions_3d: (T,J,3) metres in the world by subject and action; empty = no 3D archive.
        positions_2d: (T,J,2 or more) px of each camera by subject and action; empty = no 2D archive.
        layout: joints of the keypoints, a key of LAYOUTS or a name of lib.skeleton.
        video_metadata: of `custom`: width w and height h of each video, in px.

    Returns:
        The files by kind: 3d, 2d.

    Raises:
        DataError: a file exists, or an array has not the joints of the layout.
    """
    return _write(Path(root), dataset, keypoints, positions_3d, positions_2d, layout, video_metadata, None)


def _write(
    root: Path,
    dataset: str,
    keypoints: str,
    positions_3d: Mapping,
    positions_2d: Mapping,
    layout: str,
    videos: Mapping | None,
    rigs: dict[str, np.ndarray] | None,
) -> dict[str, Path]:
    layout = LAYOUTS.get(layout, layout)
    joints = skeletons.get(layout)
    poses = {s: {a: np.asarray(X, np.float32) for a, X in actions.items()} for s, actions in positions_3d.items()}
    pixels = {s: {a: [np.asarray(x, np.float32) for x in v] for a, v in actions.items()} for s, actions in positions_2d.items()}
    for subject, action, view, x in ((s, a, v, x) for s in pixels for a in pixels[s] for v, x in enumerate(pixels[s][a])):
        if x.ndim != 3 or x.shape[1] != joints.num or x.shape[2] < 2:
            raise DataError(f"{subject} {action!r} camera {view}: has shape {x.shape}, expected (frames, {joints.num}, 2 or more)")
    metadata = {
        "layout_name": {name: known for known, name in LAYOUTS.items()}.get(layout, layout),
        "num_joints": joints.num,
        "keypoints_symmetry": [list(side) for side in sides(joints)],
    }
    if videos is not None:
        metadata["video_metadata"] = {str(video): dict(facts) for video, facts in videos.items()}
    files = {
        "3d": (root / f"data_3d_{dataset}.npz", {"positions_3d": poses} if any(poses.values()) else {}),
        "cameras": (root / f"cameras_{dataset}.npz", rigs or {}),
        "2d": (root / f"data_2d_{dataset}_{keypoints}.npz", {"positions_2d": pixels, "metadata": metadata} if pixels else {}),
    }
    files = {kind: (path, content) for kind, (path, content) in files.items() if content}
    new = {kind for kind, (path, content) in files.items() if not (kind != "2d" and path.exists() and _equal(load_npz(path), content))}
    with ExitStack() as stack:  # files appear when all of them are complete
        for kind in new:
            refuse_existing(files[kind][0])
        for kind in reversed([k for k in files if k in new]):
            path, content = files[kind]
            np.savez_compressed(stack.enter_context(new_file(path)), **content)
    return {kind: path for kind, (path, _) in files.items()}


def _rigs_of(tracks: Tracks, rows: Mapping[str, Mapping[int, int]]) -> dict[str, np.ndarray]:
    """The cameras (S,V) of every subject as arrays; those that a subject lacks are not calibrated."""
    views = max((max(of) + 1 for of in rows.values()), default=0)
    none = _uncalibrated(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), [0, 0])
    rigs = Cameras.stack([Cameras.stack([tracks.cameras[of[v]] if v in of else none for v in range(views)]) for of in rows.values()])
    arrays = {name: getattr(rigs, name).numpy() for name in CAMERA_FIELDS}
    facts = {
        "skeleton": np.array(tracks.skeleton if tracks.has_3d.any() else ""),
        "tangential": np.array(tracks.tangential),
        "fps": np.float64(tracks.fps),
    }
    return {"subjects": np.array(list(rows), dtype=str)} | arrays | facts


def _check_known(tracks: Tracks, dataset: str, rows: Mapping[str, Mapping[int, int]]) -> None:
    """Raises DataError unless the table has the skeleton and cameras that are read with the archives of a known data set."""
    known = KNOWN[dataset]
    if tracks.has_3d.any() and tracks.skeleton != known.skeleton:
        raise DataError(f"tracks: the skeleton is {tracks.skeleton}, but {dataset} has {known.skeleton}; convert it or choose another name")
    for subject, of in rows.items():
        rig = known.cameras(subject)
        for view, row in of.items():
            if view >= len(rig) or not _same_camera(rig[view], tracks.cameras[row]):
                raise DataError(
                    f"tracks: camera {view} of {subject} is not that of {dataset}, whose archives are read with known cameras; "
                    "choose another name for the data set, and its cameras are stored with it"
                )


def _same_camera(a: Cameras, b: Cameras) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in CAMERA_FIELDS)
    return all(torch.allclose(x, y.to(x), rtol=1e-5, atol=1e-3 if x.shape == (3,) else 1e-5, equal_nan=True) for x, y in pairs)


def _equal(a: Any, b: Any) -> bool:
    """Whether two nested containers hold the same."""
    if isinstance(a, np.ndarray) and a.dtype == object and a.shape == ():
        a = a.item()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray | np.generic) and isinstance(b, np.ndarray | np.generic):
        return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return type(a) is type(b) and a == b


# ------------------------------------------------------------------------------------------------------------- checking


def archives(root: str | Path) -> list[tuple[str, str]]:
    """Data sets and keypoints that a folder has 2D archives of."""
    return [named(path) for path in sorted(Path(root).glob("data_2d_*.npz"))]


def named(path: Path) -> tuple[str, str]:
    """Data set and keypoints of a 2D archive by its name; names with _ are known by the 3D archives beside it."""
    stored = [p.stem.split("_", 2)[2] for p in path.parent.glob("data_3d_*.npz")]
    rest = path.stem.removeprefix("data_2d_")
    names = [n for n in sorted({*KNOWN, CUSTOM, *stored}, key=len, reverse=True) if rest.startswith(f"{n}_")]
    dataset = names[0] if names else rest.partition("_")[0]
    return dataset, rest.removeprefix(dataset).removeprefix("_")


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What looks wrong in the archives of a folder, a sentence each; empty = nothing."""
    return inspect(root, split)[0]


def inspect(root: str | Path, split: str | None = None) -> tuple[list[str], str]:
    """What looks wrong in the archives of a folder, and how much is in them.

    Returns:
        Sentences; a line of counts for every 2D archive that can be read.
    """
    said, counts = [], []
    pairs = archives(root)
    if not pairs:
        said.append(f"{root}: no archive data_2d_*.npz found; download or convert one (data/README.md), or correct the path")
    for dataset, keypoints in pairs:
        name = f"data_2d_{dataset}_{keypoints}"
        try:
            tracks = read(root, split or "all", dataset, keypoints)
        except DataError as error:
            said.append(str(error))
            continue
        subjects = list(dict.fromkeys(tracks.subject.tolist()))
        with_3d = int(tracks.lengths[tracks.has_3d].sum())
        counts.append(
            f"{name}: {len(tracks)} tracks, {len(tracks.keypoints)} frames ({with_3d} with 3D poses) of {len(subjects)} subjects "
            f"({', '.join(subjects)}), {len(np.unique(tracks.view))} views, {tracks.layout}"
        )
        said += [f"{Path(root) / name}.npz: {sentence}" for sentence in _findings(tracks)]
    return said, "\n".join(counts)


def _findings(tracks: Tracks) -> Iterator[str]:
    track = tracks.track
    rows = np.arange(len(track))[:: max(1, len(track) // MOST)]
    size = tracks.cameras.size.numpy()[tracks.camera[track[rows]]]
    inside = ((tracks.keypoints[rows, :, :2] > -0.5) & (tracks.keypoints[rows, :, :2] < size[:, None] - 0.5)).all(-1)
    if inside.mean() < 0.5:
        yield f"{1 - inside.mean():.0%} of the keypoints lie outside of the images; expected px of images of {size[0].astype(int).tolist()}"
    rows = rows[tracks.has_3d[track[rows]]]
    if not len(rows):
        return
    joints, X = skeletons.get(tracks.skeleton), tracks.X_cam[rows].astype(np.float64)
    for a, b, low, high in LIMBS_MM:
        ends = [joints.find(f"l_{joint}") for joint in (a, b)]
        if None not in ends:
            length = float(np.median(np.linalg.norm(X[:, ends[0]] - X[:, ends[1]], axis=-1)))
            if not low <= length <= high:
                yield f"the median distance from l_{a} to l_{b} is {length:.4g} mm, expected {low} to {high}; are the poses in metres?"
                return
    rows = rows[tracks.has_intrinsics[track[rows]]]
    if not len(rows):
        return
    layout = skeletons.get(tracks.layout)
    shared = [name for name in layout.joints if name[:2] in ("l_", "r_") and name in joints.joints]
    X = torch.from_numpy(tracks.X_cam[rows][:, joints.indices(shared)].astype(np.float64))
    cameras = tracks.cameras[torch.from_numpy(tracks.camera[track[rows]].astype(np.int64))]
    missed = cameras.project_cam(X, True, tracks.tangential).numpy() - tracks.keypoints[rows][:, layout.indices(shared), :2]
    missed = float(np.median(np.linalg.norm(missed, axis=-1)))
    metre = float((cameras.K[:, 0, 0, None] / X[..., 2]).median()) * MM
    if missed > MISSED * metre:
        yield (
            f"the keypoints lie {missed:.4g} px from the projected 3D joints (median), expected less than {MISSED * metre:.4g}; "
            "are the frames of 2D and 3D the same, and the joints in the order of the layout?"
        )
