"""Poses of the official releases into the archives of keypoints_npz.py.

<src>/S1/MyPoseFeatures/D3_Positions/<Name>.cdf     Human3.6M: also .cdf.mat, or S1/MyPoses/3D_positions/<Name>.h5 (h36m_raw.py)
<src>/Train/S1/Walking_1.mat                        HumanEva-I, exported with its own MATLAB code, see `humaneva`
<src>/S1/**/<Name>.<camera>.h5                      keypoints of Stacked Hourglass on Human3.6M: `poses` (T,16,2) px
<src>/S1/**/Walking_1_(C1).avi.npz                  keypoints of HumanEva-I's videos by a detector, beside Train/ and Validate/

Source: Pavllo et al., 3D human pose estimation in video with temporal convolutions, CVPR 2019, and the notes to its data.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.formats import h36m, h36m_raw, humaneva_constants, keypoints_npz
from lib.dataset.formats.detections import read_sequence
from lib.dataset.formats.files import need
from lib.dataset.formats.keypoints_npz import EXCLUDED, LAYOUTS, MM, OVERVIEW, SKELETON, TRUTH
from lib.dataset.formats.matlab import load_mat
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.screen import project_held

log = logging.getLogger("parallax")

SEQUENCES = 30  # of each subject of Human3.6M
HUMANEVA_SPLITS = ("Train", "Validate")
HUMANEVA_SUBJECTS = ("S1", "S2", "S3")
HUMANEVA_VARIABLES = ("poses_3d", "poses_2d")
Trials = Mapping[str, Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]]]  # subject -> action -> X (T,J,3) mm, x (T,J,2) px by camera

# ------------------------------------------------------------------------------------------------------------ Human3.6M


def h36m_archives(src: str | Path, out: str | Path, keypoints: str = TRUTH) -> dict[str, Path]:
    """data_3d_h36m.npz, 32 joints in the world, and data_2d_h36m_gt.npz, 17 of them projected by the lenses of the release.

    Names of actions are those of the published archives: `Photo 1` for TakingPhoto_1. S11 Directions is left out as there.

    Args:
        src: the release, folders S1, S5, ...
        out: folder of the archives.
        keypoints: name of the 2D archive's keypoints.

    Returns:
        The files by kind: 3d, 2d.

    Raises:
        DataError: no poses, damaged files, or an archive that exists.
    """
    src, poses, projected = Path(src), {}, {}
    for subject in _subjects(src):
        files = h36m_raw.sequences(src, subject)
        if len(files) != SEQUENCES:
            log.warning("%s: %d sequences of %s, the release has %d", src, len(files), subject, SEQUENCES)
        names = {name.replace("_", " "): path for name, path in files.items()}
        poses[subject] = {
            action: (h36m_raw.pose_file(path) / MM).astype(np.float32)
            for action, path in names.items()
            if f"{subject}/{action}" not in EXCLUDED
        }
        rig = keypoints_npz.h36m_cameras(subject)
        projected[subject] = {action: projections(rig, X_world) for action, X_world in poses[subject].items()}
    return keypoints_npz.write_archives(out, "h36m", keypoints, poses, projected, "h36m")


def projections(rig: Cameras, X_world: np.ndarray) -> list[np.ndarray]:
    """What the cameras (V,) of Human3.6M see of its raw poses.   X_world (T,32,3) m -> [(T,17,2) float32 px] by camera"""
    X, _ = skeletons.convert(X_world.astype(np.float64) * MM, "h36m32", SKELETON)
    X_cam = rig.to_cam(torch.from_numpy(X.reshape(-1, 3)))
    x_img = project_held(X_cam, rig, True, keypoints_npz.KNOWN["h36m"].tangential, 0)
    return list(x_img.float().numpy().reshape(len(rig), *X.shape[:2], 2))


def _subjects(src: Path) -> list[str]:
    known = h36m_raw.SPLITS["all"]
    there = [s for s in known if (src / s).is_dir()]
    if not there:
        raise DataError(f"{src}: has no folder {', '.join(known)}; unpack the archives of the release there, or correct the path")
    if absent := [s for s in known if s not in there]:
        log.warning("%s: %s are not there and are left out", src, ", ".join(absent))
    return there


def hourglass_archive(src: str | Path, out: str | Path, keypoints: str = "sh_pt_mpii") -> dict[str, Path]:
    """data_2d_h36m_<keypoints>.npz of the files <Name>.<camera>.h5 anywhere below the subjects' folders.

    Returns:
        The file, as kind 2d.

    Raises:
        DataError: no such files, files of several detectors, cameras that are missing, or an archive that exists.
    """
    src, positions = Path(src), {}
    for subject in _subjects(src):
        found: dict[str, dict[int, Path]] = {}
        for path in sorted((src / subject).rglob("*.h5")):
            name, _, camera = path.stem.rpartition(".")
            if camera not in h36m.CAMERA_IDS or OVERVIEW in name:
                continue
            action, view = h36m.canonical(name).replace("_", " "), h36m.CAMERA_IDS.index(camera)
            if f"{subject}/{action}" in EXCLUDED:
                continue
            before = found.setdefault(action, {}).setdefault(view, path)
            if before != path:
                raise DataError(f"{path}: {before} holds keypoints of the same video; keep the files of one detector there")
        for action, views in found.items():
            if missing := [camera for view, camera in enumerate(h36m.CAMERA_IDS) if view not in views]:
                raise DataError(f"{src / subject}: {action} has no keypoints of camera {', '.join(missing)}; complete the files")
        positions[subject] = {action: [_hourglass(views[v]) for v in sorted(views)] for action, views in found.items()}
    if not any(positions.values()):
        raise DataError(f"{src}: has no files S1/.../<Name>.<camera>.h5 with keypoints; correct the path")
    return keypoints_npz.write_archives(out, "h36m", keypoints, {}, positions, "mpii")


def _hourglass(path: Path) -> np.ndarray:
    joints = skeletons.get(LAYOUTS["mpii"]).num
    try:
        with need("h5py", str(path)).File(path) as file:
            poses = np.asarray(file["poses"], np.float32)
        if poses.ndim != 3 or poses.shape[1:] != (joints, 2):
            raise ValueError(f"poses have shape {poses.shape}")
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}), expected a data set poses (frames, {joints}, 2) px; get it again") from None
    return poses


# ----------------------------------------------------------------------------------------------------------- HumanEva-I


def humaneva_archives(src: str | Path, out: str | Path, keypoints: str = TRUTH) -> dict[str, Path]:
    """data_3d_humaneva15.npz and data_2d_humaneva15_gt.npz, or humaneva20 by the number of joints in the files.

    The motion capture of the release is turned into joints by its own MATLAB code, one file <src>/<Train or Validate>/<S1>/
    <Action>_<trial>.mat for each trial and split: `poses_3d` (T,J,3) mm and `poses_2d` (3 cameras,T,J,2) px, NaN where the capture
    is not valid. J = 20 are the ends of the limbs in the order of humaneva20 (torsoDistal, torsoProximal, headProximal, upperLArm
    proximal and distal, lowerLArm proximal and distal, the right arm, the left and the right leg alike, headDistal); J = 15
    those of humaneva15, which has the mean of two ends where limbs meet.

    Only first trials are kept, without S3 ThrowCatch, which is damaged. Each is cut into chunks, see `humaneva_chunks`.

    Returns:
        The files by kind: 3d, 2d.

    Raises:
        DataError: no such files, other contents, or an archive that exists.
    """
    trials = humaneva_trials(src)
    joints = {X.shape[1] for actions in trials.values() for X, _ in actions.values()}
    if len(joints) != 1:
        raise DataError(f"{src}: files with {' and '.join(map(str, sorted(joints)))} joints are mixed; export all of them alike")
    name = f"humaneva{joints.pop()}"
    poses, pixels = humaneva_positions(trials)
    return keypoints_npz.write_archives(out, name, keypoints, poses, pixels, name)


def humaneva_trials(src: str | Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The files that `humaneva_archives` describes.   -> subject (Train/S1) -> action -> poses_3d (T,J,3), poses_2d (3,T,J,2)"""
    src, trials = Path(src), {}
    for split in HUMANEVA_SPLITS:
        for person in HUMANEVA_SUBJECTS:
            trials[f"{split}/{person}"] = {}
            for action in humaneva_constants.ACTIONS:
                path = src / split / person / f"{action.replace(' ', '_')}.mat"
                if path.exists() and (person, action) != humaneva_constants.DAMAGED:
                    trials[f"{split}/{person}"][action] = _trial(path)
    if not any(trials.values()):
        raise DataError(
            f"{src}: has no file Train/S1/Walking_1.mat or the like; export the motion capture with the MATLAB code of HumanEva first"
        )
    return trials


def _trial(path: Path) -> tuple[np.ndarray, np.ndarray]:
    cameras = len(humaneva_constants.CAMERA_IDS)
    try:
        file = load_mat(path, HUMANEVA_VARIABLES)
        X, x = (np.asarray(file[name], np.float64) for name in HUMANEVA_VARIABLES)
    except DataError:
        raise
    except Exception as error:  # scipy raises errors of many kinds about damaged files
        raise DataError(f"{path}: cannot be read ({error}), expected variables {' and '.join(HUMANEVA_VARIABLES)}") from None
    if X.ndim == 3 and X.shape[1] in (15, 20) and X.shape[2] == 3:
        # (cameras,T,J,2) first; as MATLAB code may also have grown it, with the cameras last or second
        for axis in (0, 3, 1):
            if x.ndim == 4 and np.moveaxis(x, axis, 0).shape == (cameras, *X.shape[:2], 2):
                return X, np.moveaxis(x, axis, 0)
    expected = f"(T,J,3) with 15 or 20 joints and ({cameras},T,J,2)"
    raise DataError(f"{path}: poses_3d has shape {X.shape} and poses_2d {x.shape}, expected {expected}; export it again")


def runs(valid: np.ndarray) -> list[tuple[int, int, bool]]:
    """Pieces of equal value, first and one past the last index.   valid (T,) bool"""
    out, first = [], 0
    for value, group in groupby(valid.tolist()):
        length = sum(1 for _ in group)
        out.append((first, first + length, value))
        first += length
    return out


def humaneva_chunks(X: np.ndarray) -> dict[int, tuple[int, int, bool]]:
    """The chunks of a trial by number: runs of frames that are valid (all numbers are finite) or not.   X (T,...) -> first, end, valid"""
    return dict(enumerate(runs(np.isfinite(X.reshape(len(X), -1)).all(1))))


def humaneva_positions(trials: Trials) -> tuple[dict, dict]:
    """The valid chunks of all trials as positions_3d (metres) and positions_2d: `Walking 1 chunk1` is the second, valid or not.

    Raises:
        DataError: the keypoints of a camera fall into another number of chunks than the poses.
    """
    poses: dict = {subject: {} for subject in trials}
    pixels: dict = {subject: {} for subject in trials}
    for subject, actions in trials.items():
        for action, (X, views) in actions.items():
            chunks, of_views = humaneva_chunks(X), [humaneva_chunks(x) for x in views]
            for view, of_view in enumerate(of_views):
                if [c[2] for c in of_view.values()] != [c[2] for c in chunks.values()]:
                    raise DataError(
                        f"{subject} {action!r}: the keypoints of camera {view} fall into {len(of_view)} chunks, the poses into "
                        f"{len(chunks)}, expected the same; export the trial again"
                    )
            for k, (first, end, valid) in chunks.items():
                if valid:
                    name = f"{action} chunk{k}"
                    poses[subject][name] = (X[first:end] / MM).astype(np.float32)
                    pixels[subject][name] = [np.float32(x[slice(*of[k][:2])]) for x, of in zip(views, of_views, strict=True)]
    return poses, pixels


def humaneva_detections(trials: Trials, videos: Mapping[str, Mapping[str, Sequence[np.ndarray]]]) -> dict[str, dict[str, list[np.ndarray]]]:
    """Keypoints of whole videos as positions_2d, cut as the motion capture of their trials is and shifted by the videos' delays.

    Chunks without valid poses come under Unlabeled/Train/S1 and Unlabeled/Validate/S1, videos without poses whole under Unlabeled/S1.

    Args:
        trials: see `humaneva_trials`.
        videos: S1 -> `Box 1` -> (frames,J,2 or more) px of each camera.

    Raises:
        DataError: a video ends before its motion capture, or a trial has another number of frames than its split.
    """
    positions: dict[str, dict[str, list[np.ndarray]]] = {}
    for person, actions in videos.items():
        for action, views in actions.items():
            subjects = [f"{split}/{person}" for split in HUMANEVA_SPLITS if action in trials.get(f"{split}/{person}", {})]
            if not subjects:
                positions.setdefault(f"Unlabeled/{person}", {})[action] = [np.asarray(x, np.float32) for x in views]
            number = humaneva_constants.ACTIONS.index(action) if subjects else 0
            for subject in subjects:
                start, stop = humaneva_constants.FRAMES[subject][number]
                X, _ = trials[subject][action]
                first = [start + sync - 1 for sync in humaneva_constants.SYNC[person][number]]
                if len(X) != stop - start or any(len(x) < a + len(X) for x, a in zip(views, first, strict=True)):
                    found = f"{len(X)} poses and videos of {', '.join(str(len(x)) for x in views)} frames"
                    expected = f"{stop - start} poses from frame {first} on"
                    raise DataError(f"{subject} {action!r}: {found}, expected {expected}; complete the files")
                for k, (a, b, valid) in humaneva_chunks(X).items():
                    of = positions.setdefault(subject if valid else f"Unlabeled/{subject}", {})
                    of[f"{action} chunk{k}"] = [np.asarray(x[f + a : f + b], np.float32) for x, f in zip(views, first, strict=True)]
    return positions


def humaneva_detection_archive(src: str | Path, out: str | Path, keypoints: str = "detectron_pt_coco") -> dict[str, Path]:
    """data_2d_humaneva15_<keypoints>.npz of a detector's files for the videos, see `humaneva_detections`.

    Args:
        src: folder of the motion capture as `humaneva_archives` takes it, and of S1, S2, ... with a file for each whole video anywhere
            below: Walking_1_(C1).avi.npz or Walking_1_(C1).npz, see detections.read_sequence.
        keypoints: name of the archive's keypoints, which tells their joints.

    Returns:
        The file, as kind 2d.

    Raises:
        DataError: no such files, cameras that are missing, a name that does not tell the joints, or an archive that exists.
    """
    src, videos = Path(src), {}
    trials = humaneva_trials(src)
    for person in humaneva_constants.SUBJECTS:
        found: dict[str, dict[str, Path]] = {}
        for path in sorted((src / person).rglob("*.npz")):
            if match := re.fullmatch(r"(.+)_\((C\d)\)(\.\w+)?\.npz", path.name):
                before = found.setdefault(match[1].replace("_", " "), {}).setdefault(match[2], path)
                if before != path:
                    raise DataError(f"{path}: {before} holds keypoints of the same video; keep the files of one detector there")
        for action, views in found.items():
            if missing := [camera for camera in humaneva_constants.CAMERA_IDS if camera not in views]:
                raise DataError(f"{src / person}: {action} has no keypoints of camera {', '.join(missing)}; complete the files")
        if found:
            videos[person] = {a: [read_sequence(v[c]) for c in humaneva_constants.CAMERA_IDS] for a, v in found.items()}
    if not videos:
        raise DataError(f"{src}: has no files S1/.../Walking_1_(C1).avi.npz with keypoints; correct the path")
    positions = humaneva_detections(trials, videos)
    layout = keypoints_npz.layout_of(keypoints, keypoints_npz.joint_number(positions))
    if not layout:
        raise DataError(f"--keypoints {keypoints}: does not tell the joints; one of {', '.join(LAYOUTS)} in the name does")
    joints = next(X.shape[1] for actions in trials.values() for X, _ in actions.values())
    return keypoints_npz.write_archives(out, f"humaneva{joints}", keypoints, {}, positions, layout)


SOURCES: dict[str, Callable[..., dict[str, Path]]] = {
    "h36m": h36m_archives,
    "humaneva": humaneva_archives,
    "humaneva-detections": humaneva_detection_archive,
    "hourglass": hourglass_archive,
}
