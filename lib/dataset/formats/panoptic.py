"""CMU Panoptic (Joo et al., ICCV 2015) as its tool box downloads it; read in mm with z up.

<root>/160906_pizza1/calibration_160906_pizza1.json
<root>/160906_pizza1/hdPose3d_stage1_coco19/body3DScene_00000168.json      or hdPose3d_stage1_coco19.tar, as downloaded
<root>/160906_pizza1/hdVideos/hd_00_03.mp4
<root>/160906_pizza1/hdImgs/00_03/00_03_00000168.jpg                        what `extract` takes from the videos

Files hold cm with y down: (x, y, z) cm is (10 x, 10 z, -10 y) mm here.
"""

import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, concat
from lib.dataset.calibrations import PANOPTIC, PANOPTIC_TO_WORLD, UNITS, panoptic_form, read_calibration
from lib.dataset.formats.files import findings_of, part_folder, write_images
from lib.dataset.formats.multiview import ChosenImages, observed, renumbered, rigs
from lib.dataset.formats.video import extract_videos
from lib.errors import MALFORMED, DataError
from lib.files import refuse_existing
from lib.geometry.camera import Cameras

log = logging.getLogger("parallax")

SKELETON = "panoptic15"
RAW_SKELETON = "panoptic19"  # of the files; begins with the joints of SKELETON
TRAIN = (
    "160422_ultimatum1", "160224_haggling1", "160226_haggling1", "161202_haggling1", "160906_ian1", "160906_ian2", "160906_ian3",
    "160906_band1", "160906_band2",
)  # fmt: skip
VALID = ("160906_pizza1", "160422_haggling1", "160906_ian5", "160906_band4")
VOXELPOSE_TRAIN = (*TRAIN, "160906_band3")  # VoxelPose trains on one sequence more than SelfPose3d
SPLITS = {"train": TRAIN, "valid": VALID}
LISTS = SPLITS | {"voxelpose_train": VOXELPOSE_TRAIN}
INTERVALS = {"train": 3, "valid": 12, "voxelpose_train": 3}
CAMERAS = ("00_03", "00_06", "00_12", "00_13", "00_23")
MIN_CONFIDENCE = 0.1
FPS = 29.97
POSES = "hdPose3d_stage1_coco19"
ABSENT = (0.0, 0.0, 0.0, -1.0)  # a joint that the files do not know


# ------------------------------------------------------------------------------------------------------------- reading


def read(
    root: str | Path,
    split: str,
    sequences: Sequence[str] = (),
    cameras: Sequence[str] | Sequence[Sequence[int]] = (),
    interval: int = 0,
    min_confidence: float = MIN_CONFIDENCE,
) -> Annotations:
    """Everyone in the chosen frames before the chosen HD cameras. A view is a camera's place among those chosen, by ascending name.

    Images get the names that `extract` gives them, and need not be there. Bodies without a visible mid-hip are left out, and so are frames
    without a body.

    Args:
        root: folder of the sequences.
        split: train or valid (the published lists), voxelpose_train (VoxelPose's, with 160906_band3).
        sequences: others, or some, instead of the published list; each must be there. Empty = those of the list that are there.
        cameras: names such as 00_03, or pairs [panel, node]; each must be in the calibrations. Empty = those of the five published ones
            that are there.
        interval: every how many of the pose files, counted over all files of a sequence; 0 = 3 to train, 12 to test.
        min_confidence: a joint is known where its confidence is greater.

    Raises:
        DataError: no such split, sequence or camera, or a file that is missing or damaged.
    """
    root = Path(root)
    if split not in LISTS:
        raise DataError(f"{root}: has no split {split!r}, only {', '.join(LISTS)}; set DATASET.TRAIN_SET and TEST_SET to one of them")
    if interval < 0:
        raise DataError(f"interval: {interval}, expected 1 or more, or 0 for the published one; correct DATASET.OPTIONS")
    names = list(sequences) or [name for name in LISTS[split] if (root / name).is_dir()]
    if not names:
        raise DataError(
            f"{root}: has none of the sequences of {split} ({', '.join(LISTS[split])}); download them with Panoptic's tool box, set "
            "DATASET.ROOT to their parent, or name others in DATASET.OPTIONS.sequences"
        )
    missing = [name for name in LISTS[split] if name not in names]
    if missing and not sequences:
        log.info("%s: %s without %s, which are not there", root, split, ", ".join(missing))
    wanted = [camera_name(c) for c in cameras]
    found = [_sequence(root, name, wanted, interval or INTERVALS[split], min_confidence) for name in names]
    parts = [part for part in found if part is not None]
    if not parts:
        raise DataError(f"{root}: no body with a visible mid-hip in {', '.join(names)}; use a smaller interval or other sequences")
    return concat(parts)


def camera_name(camera: str | Sequence[int]) -> str:
    """00_03 of (0, 3) or of itself.   Raises DataError for anything else."""
    if isinstance(camera, str) and re.fullmatch(r"\d\d_\d\d", camera):
        return camera
    if not isinstance(camera, str):
        try:
            panel, node = (int(n) for n in camera)
            return f"{panel:02d}_{node:02d}"
        except MALFORMED:
            pass
    raise DataError(f"cameras: {camera!r} is no camera, expected a name such as 00_03, or [panel, node]; correct DATASET.OPTIONS")


def rig(folder: Path, wanted: Sequence[str] = ()) -> tuple[list[str], Cameras]:
    """Names and cameras (V,) of a sequence, by ascending name; empty = those of the five published ones that are there."""
    path = folder / f"calibration_{folder.name}.json"
    known = read_calibration(path, cameras=sorted(wanted))
    if known.kind != PANOPTIC:
        raise DataError(f"{path}: a calibration of {known.kind}, expected Panoptic's own; download it again")
    if wanted:
        return list(known.names), known.cameras
    names = [name for name in CAMERAS if name in known.names]
    if not names:
        raise DataError(f"{path}: has none of the cameras {', '.join(CAMERAS)}; set `cameras` in DATASET.OPTIONS")
    return names, known.select(names).cameras


def image_name(sequence: str, camera: str, frame: int) -> str:
    return f"{sequence}/hdImgs/{camera}/{camera}_{frame:08d}.jpg"


def parse_name(name: str) -> tuple[str, str, int] | None:
    """Sequence, camera and frame of an image's path; None for another path."""
    match = re.fullmatch(r"(?:.*/)?([^/]+)/hdImgs/(\d\d_\d\d)/\2_(\d+)\.\w+", name)
    return (match[1], match[2], int(match[3])) if match else None


def _sequence(root: Path, name: str, wanted: Sequence[str], interval: int, min_confidence: float) -> Annotations | None:
    """The table of one sequence; None where no body is kept."""
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{folder}: no such sequence; download it with Panoptic's tool box, or correct DATASET.OPTIONS.sequences")
    names, cameras = rig(folder, wanted)
    frame, person, joints = bodies(folder, interval)
    count = skeletons.get(SKELETON).num
    valid = joints[:, :count, 3] > min_confidence
    kept = valid[:, skeletons.get(SKELETON).root_index]
    if not kept.any():
        return None
    return observed(
        SKELETON,
        cameras,
        frame[kept],
        person[kept],
        joints[kept, :count, :3],
        valid[kept],
        lambda f, v: image_name(name, names[v], f),
        name,
        re.sub(r"^\d+_|\d+$", "", name),
        FPS,
    )


def bodies(folder: str | Path, interval: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Everyone in every `interval`-th pose file of a sequence.

    -> frame (P,) int64, person (P,) int64, joints (P,19,4) float64: x y z mm with z up, confidence
    """
    folder = Path(folder)
    frame, person, joints = [], [], []
    for number, name, data in _scenes(folder, interval):
        try:
            for body in json.loads(data)["bodies"]:
                values = np.asarray(body["joints19"], np.float64)
                if values.shape != (76,) or not np.isfinite(values).all():
                    raise ValueError(f"joints19 holds {values.size} numbers, expected 76 finite ones")
                joints.append(values.reshape(19, 4))
                person.append(np.int64(int(body["id"])))  # raises where it is too large
                frame.append(number)
        except MALFORMED as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{name}: not a pose file of Panoptic ({said}); download the sequence again") from None
    out = np.array(joints, np.float64).reshape(-1, 19, 4)
    out[..., :3] = out[..., :3] @ PANOPTIC_TO_WORLD * UNITS["cm"]
    return np.array(frame, np.int64), np.array(person, np.int64), out


def _scenes(folder: Path, interval: int) -> Iterator[tuple[int, Path, bytes]]:
    """Number, name and contents of every `interval`-th pose file, of the folder or of the archive."""
    unpacked, packed = folder / POSES, folder / f"{POSES}.tar"
    if unpacked.is_dir():
        files = _numbered({p.name: p for p in unpacked.iterdir()}, unpacked)
        for number, path in files[::interval]:
            yield number, path, path.read_bytes()
    elif packed.is_file():
        try:
            with tarfile.open(packed) as archive:
                members = {os.path.basename(m.name): m for m in archive.getmembers() if m.isfile()}
                for number, member in _numbered(members, packed)[::interval]:
                    yield number, packed / os.path.basename(member.name), archive.extractfile(member).read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{packed}: damaged, or no tar archive ({error}); download it again") from None
    else:
        raise DataError(f"{folder}: has neither {POSES}/ nor {POSES}.tar; download the poses with Panoptic's tool box")


def _numbered(files: dict, where: Path) -> list[tuple[int, object]]:
    """Frame numbers and files, in order."""
    found = [(int(m[1]), file) for name, file in files.items() if (m := re.fullmatch(r"body3DScene_(\d+)\.json", name))]
    if not found:
        raise DataError(f"{where}: holds no body3DScene_%08d.json; download the poses again")
    return sorted(found, key=lambda pair: pair[0])


# --------------------------------------------------------------------------------------------------------------- images


def extract(root: str | Path, ann: Annotations, progress: bool = True) -> None:
    """Takes the images that a table names out of hdVideos/; those that exist stay, so that it can be taken up again.

    Raises:
        DataError: a video is missing, damaged or too short; see lib.dataset.formats.video.
    """
    root = Path(root)
    videos: dict[Path, dict[Path, int]] = {}
    for i in np.unique(ann.image[ann.image >= 0]):
        name = ann.images[i].decode()
        parsed = parse_name(name)
        if parsed is None:
            raise DataError(f"{name}: no image name of Panoptic, expected <sequence>/hdImgs/00_03/00_03_00000168.jpg")
        sequence, camera, frame = parsed
        videos.setdefault(root / sequence / "hdVideos" / f"hd_{camera}.mp4", {})[root / name] = frame
    extract_videos(videos, f"{root}: images", progress)


# -------------------------------------------------------------------------------------------------------------- writing


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes a table as sequences of a split. Read it with `interval` 1: every frame becomes a pose file.

    Sequences with published names keep them, and their frame numbers and people. All others that share a rig are put behind one another
    into the next free published name, frames and people numbered anew. Cameras keep the names that image paths tell, else they get those
    of the five published ones, then 00_00, 00_01, ...

    Args:
        ann: the table: calibrated, with 3D and images.
        root: folder of the sequences, made if missing.
        split: train, valid or voxelpose_train.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images. With workers it must be picklable.
        workers, progress: see lib.dataset.formats.files.write_images.

    Raises:
        DataError: the table does not fit the layout, a sequence exists, or something cannot be written.
    """
    root = Path(root)
    ann = ann.check(f"annotations to be written to {root} ({split})")
    if split not in LISTS:
        raise DataError(f"{root}: split {split!r} has no place in Panoptic, expected {', '.join(LISTS)}")
    if (ann.pose < 0).any() or (ann.image < 0).any():
        raise DataError(f"{root}: observations without 3D or image have no place in Panoptic; leave them out")
    group, found = rigs(ann)
    raw = ann.to_skeleton(RAW_SKELETON)
    target = _targets(ann, root, split, group)
    with part_folder(root, split) as part:
        images: dict[int, str] = {}
        for name, members in target.items():
            images |= _write_sequence(ann, raw, part, name, members, found[group[members[0]]])
        for name in target:
            refuse_existing(root / name)
        if image is not None:
            for path in images.values():
                (part / path).parent.mkdir(parents=True, exist_ok=True)
            files = [str(part / path) for path in images.values()]
            write_images(ChosenImages(image, list(images)), files, workers, f"{root}: {split}" if progress else None)
        for name in list(target)[::-1]:  # where the first one is, all are
            os.rename(part / name, root / name)


def _targets(ann: Annotations, root: Path, split: str, group: np.ndarray) -> dict[str, list[int]]:
    """The sequences of the table behind each name."""
    used = np.flatnonzero(group >= 0)
    own = [ann.subjects[s].decode() for s in used]
    if set(own) <= set(LISTS[split]) and len(set(own)) == len(own):
        return {name: [int(s)] for name, s in zip(own, used, strict=True)}
    numbers = np.unique(group[used])
    if len(numbers) > len(LISTS[split]):
        raise DataError(f"{root}: {len(numbers)} rigs, but {split} of Panoptic has {len(LISTS[split])} sequences; select some subjects")
    return {name: np.flatnonzero(group == g).tolist() for name, g in zip(LISTS[split], numbers, strict=False)}


def _write_sequence(
    ann: Annotations, raw: Annotations, part: Path, name: str, members: list[int], cameras: dict[int, int]
) -> dict[int, str]:
    """Calibration and pose files of one sequence.   -> names of the images by their rows"""
    folder = part / name
    (folder / POSES).mkdir(parents=True)
    rows = np.flatnonzero(np.isin(ann.sequence, members))
    views = sorted(cameras)
    named = _camera_names(ann, rows, views)
    kept = len(members) == 1 and ann.subjects[members[0]].decode() == name
    number = (ann.frame if kept else renumbered(ann, np.array(members)))[rows]
    people = ann.person[rows].astype(np.int64)
    if not kept:  # people of different sequences are different people
        _, people = np.unique(np.stack([ann.sequence[rows], people], 1), axis=0, return_inverse=True)
        people = np.ravel(people)
    rig_rows = Cameras.stack([ann.cameras[cameras[v]] for v in views])
    (folder / f"calibration_{name}.json").write_text(json.dumps(panoptic_form([named[v] for v in views], rig_rows), indent=1) + "\n")
    first = np.unique(np.stack([number, people], 1), axis=0, return_index=True)[1]  # one row of each person at an instant
    X, valid = raw.X_world[raw.pose[rows[first]]].astype(np.float64), raw.X_valid[raw.pose[rows[first]]]
    values = np.concatenate([X @ PANOPTIC_TO_WORLD.T / UNITS["cm"], np.ones((*valid.shape, 1))], -1)
    values = np.where(valid[..., None], values.round(6), ABSENT)
    scenes: dict[int, list[dict]] = {}
    for i, row in enumerate(first):
        scenes.setdefault(int(number[row]), []).append({"id": int(people[row]), "joints19": values[i].ravel().tolist()})
    for frame, there in scenes.items():
        content = {"version": 0.7, "univTime": round(1000 * frame / FPS, 3), "fpsType": "hd_29_97", "bodies": there}
        (folder / POSES / f"body3DScene_{frame:08d}.json").write_text(json.dumps(content) + "\n")
    return {
        int(i): image_name(name, named[int(v)], int(f)) for i, v, f in zip(ann.image[rows], ann.view[rows], number, strict=True)
    }  # fmt: skip


def _camera_names(ann: Annotations, rows: np.ndarray, views: list[int]) -> dict[int, str]:
    """Names of the views in ascending order."""
    told = {}
    for view in views:
        row = rows[ann.view[rows] == view][:1]
        parsed = parse_name(ann.image_path(int(row[0]))) if len(row) else None
        told[view] = parsed[1] if parsed else ""
    names = list(told.values())
    if all(names) and names == sorted(set(names)):
        return told
    names = list(CAMERAS[: len(views)]) if len(views) <= len(CAMERAS) else [f"00_{k:02d}" for k in range(len(views))]
    return dict(zip(views, names, strict=True))


# ---------------------------------------------------------------------------------------------------------------- check


def check(root: str | Path, split: str | None = None) -> list[str]:
    """What is missing or wrong in a tree, one sentence each; empty = good. Without `split`, train and valid as far as they are there."""
    root = Path(root)
    splits = [split] if split else [name for name in SPLITS if any((root / s).is_dir() for s in SPLITS[name])]
    if not splits:
        return [f"{root}: no sequences of Panoptic found, expected folders such as {VALID[0]}; set the root to their parent"]
    return findings_of(lambda name: read(root, name), {name: f"{root} ({name})" for name in splits}, root)
