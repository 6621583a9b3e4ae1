"""The embedded world on disk, in its own layout or in that of a real data set: generated once, checked and reused after; and
pictures of it to look at. Its motions alone, long and without images, go into the archives of VideoPose3D.
"""

import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib import skeleton as skeletons
from lib import vis
from lib.dataset.formats import FORMATS, h36m_constants, keypoints_npz, synthetic
from lib.errors import MALFORMED, ConfigError, DataError
from lib.files import locked, write_text
from lib.geometry.camera import Cameras
from lib.registry import resolve
from lib.synthetic import stage
from lib.synthetic.world import VERSION, World

SHEET_COLUMNS, SHEET_ROWS = 6, 4
MARKER = "synthetic.json"  # of a native layout: what was generated, and so is no real data
MOTION_LAYOUT = "keypoints_npz"  # that ensure_motion writes, into these files
ARCHIVES = ("data_3d_h36m.npz", "data_2d_h36m_gt.npz", "data_2d_h36m_noisy.npz")
OTHER_ROOT = "set DATASET.ROOT (or --root) to another folder"
OTHER_PEOPLE = 1_000_003  # added to the seed where two native splits come from one split of the world


class Native(NamedTuple):
    """A split of a real data set, and the split of the world that stands in for it."""

    split: str
    source: str  # pretrain, train or valid
    traces: tuple[str, ...]  # one of these exists where the split does
    count: str = ""  # the number of instants is that asked for this split; "" = for `source`
    shift: int = 0  # of the seed
    lens: bool = True  # whether the layout knows lens distortion; without it cameras are pinholes


LAYOUTS: dict[str, tuple[Native, ...]] = {
    "h36m": (
        Native("train-fs", "train", ("annot/train-fs.npz", "annot/train-fs.pkl")),
        Native("valid", "valid", ("annot/valid.npz", "annot/valid.pkl")),
    ),
    "h36m_raw": (Native("train", "train", ("S1",)), Native("valid", "valid", ("S9",))),
    "h36m_challenge": (Native("train", "train", ("Train/POSE",)), Native("valid", "valid", ("Val/POSE",))),
    "machine_lists": (
        Native("train", "train", ("16skel_train_2d3d_clip.txt",)),
        Native("test", "valid", ("16skel_test_2d3d_clip.txt",)),
        Native("mpii", "pretrain", ("train_h36m.txt",)),
    ),
    "mpii": (
        Native("train", "pretrain", ("annot/train.json",)),
        Native("valid", "pretrain", ("annot/valid.json",), "valid", OTHER_PEOPLE),
    ),
    "coco": (
        Native("train", "pretrain", ("annotations/person_keypoints_train2017.json",)),
        Native("val", "pretrain", ("annotations/person_keypoints_val2017.json",), "valid", OTHER_PEOPLE),
    ),
    "mpi_inf_3dhp": (Native("train", "train", ("S1",), lens=False), Native("test", "valid", ("TS1",), lens=False)),
    "threedpw": (
        Native("train", "train", ("sequenceFiles/train",), lens=False),
        Native("validation", "valid", ("sequenceFiles/validation",), shift=OTHER_PEOPLE, lens=False),
        Native("test", "valid", ("sequenceFiles/test",), lens=False),
    ),
    "panoptic": (
        Native("train", "train", ("160422_ultimatum1",)),
        Native("valid", "valid", ("160906_pizza1",)),
    ),
}


def ensure(
    root: str | Path,
    pretrain: int = 4000,
    train: int = 1000,
    valid: int = 200,
    size: tuple[int, int] = (256, 256),
    rig: str = "h36m",
    seed: int = 0,
    workers: int | None = None,
    **options,
) -> None:
    """Makes the splits of the embedded world that are missing in `root`, with a progress bar, and checks those that
    are there.

    Args:
        root: folder of the world.
        pretrain, train, valid: instants; those of train and valid are each seen by all cameras of the rig. 0 = no
            such split.
        size: width, height of the images, px.
        rig, seed: as for lib.synthetic.world.World.
        workers: processes; None = one per core. The images do not depend on it.
        options: further arguments of World (people, distortion, objects, fps, ...).

    Raises:
        DataError: the folder holds another world or something else, or files are missing or damaged. Nothing is
            overwritten.
        ConfigError: an unknown rig or action.
    """
    root = Path(root)
    worlds = {
        split: World(seed=seed, split=split, frames=frames, size=size, rig=rig, **options)
        for split, frames in (("pretrain", pretrain), ("train", train), ("valid", valid))
        if frames
    }
    synthetic.manifest(root)  # a foreign folder is refused before a lock is put there
    workers = workers or len(os.sched_getaffinity(0))
    with locked(root, OTHER_ROOT):  # the ranks of a distributed run come here together
        found = synthetic.manifest(root)["splits"]
        for split, world in worlds.items():
            if split in found:
                check_same(root, split, found[split].get("origin"), origin(world))
        for split, world in worlds.items():
            if split in found and (root / split).exists():
                synthetic.check_images(root, split)
            else:
                synthetic.write(world.annotations(), root, split, world.image, origin(world), workers, progress=True)


def ensure_native(
    layout: str,
    root: str | Path,
    pretrain: int = 4000,
    train: int = 1000,
    valid: int = 200,
    size: tuple[int, int] = (256, 256),
    rig: str = "h36m",
    seed: int = 0,
    workers: int | None = None,
    form: str = "",
    **options,
) -> list[str]:
    """As `ensure`, but in the layout of a real data set, so that its commands run without it.

    `synthetic.json` in `root` remembers what was generated. 2D data sets (mpii, coco) get single images of `pretrain` for training, and
    `valid` more of other people.

    Args:
        layout: a name in LAYOUTS.
        form: h36m only: "npz" or "pickle" ("" = npz).
        others: as for `ensure`.

    Returns:
        The splits that the layout now has.

    Raises:
        ConfigError: a layout that the world cannot be written in.
        DataError: the folder holds other data, which is never overwritten, or cannot be written.
    """
    root = Path(root)
    if layout not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise ConfigError(f"DATASET.DATASET: the embedded world cannot be written as {layout}, only as {known}; set SYNTH.NATIVE false")
    write = resolve(FORMATS, layout, key="DATASET.DATASET").write
    counts = {"pretrain": pretrain, "train": train, "valid": valid}
    worlds = {}
    for native in LAYOUTS[layout]:
        frames = counts[native.count or native.source]
        lens = {} if native.lens else {"distortion": False}
        if frames:
            worlds[native] = World(
                seed=seed + native.shift, split=native.source, frames=frames, size=size, rig=rig, **options | lens
            )
    keywords = {"workers": workers or len(os.sched_getaffinity(0)), "progress": True} | ({"form": form} if form else {})
    keywords = {k: v for k, v in keywords.items() if k in inspect.signature(write).parameters}
    _check_native(root, layout, worlds)  # real data are refused before a lock is put there
    with locked(root, OTHER_ROOT):
        found = _check_native(root, layout, worlds)
        for native, world in worlds.items():
            if _exists(root, native):
                continue
            found[native.split] = origin(world)  # the marker comes first: a split that it names but that is missing is made again
            write_text(root / MARKER, json.dumps({"layout": layout, "splits": found}, indent=1) + "\n", advice=OTHER_ROOT)
            write(world.annotations(), root, native.split, world.image, **keywords)
    return [native.split for native in worlds]


def ensure_motion(root: str | Path, seconds: float = 240.0, seed: int = 0) -> None:
    """Makes the motions of the embedded world in `root` as VideoPose3D's archives, or checks those that are there.

    data_3d_h36m.npz, data_2d_h36m_gt.npz (exact) and data_2d_h36m_noisy.npz (lib.synthetic.detector.detect_tracks), with the subjects
    and cameras of Human3.6M, 50 frames per second; every subject does every action of lib.synthetic.actions. `synthetic.json` remembers
    what was generated.

    Args:
        root: folder of the archives.
        seconds: of every subject, spread over the actions, two trials of each.
        seed: another seed gives other bodies, motions and noise.

    Raises:
        DataError: the folder holds other motions or real data, which are never overwritten; or cannot be written; or no frame is asked for.
    """
    root = Path(root)
    wanted = {"version": stage.VERSION, "seed": int(seed), "seconds": float(seconds), "fps": stage.FPS}
    _check_motion(root, wanted)  # real data are refused before a lock is put there
    with locked(root, OTHER_ROOT):
        _check_motion(root, wanted)
        if all((root / name).exists() for name in ARCHIVES):
            return
        rigs = {name: h36m_constants.cameras(name) for name in stage.subjects()}
        clips = list(stage.clips(rigs, seed, seconds))
        # the marker comes first: an archive that is missing beside it is made again
        write_text(root / MARKER, json.dumps({"layout": MOTION_LAYOUT, "splits": {"motion": wanted}}, indent=1) + "\n", advice=OTHER_ROOT)
        write_archives(root, clips, rigs, seed)


def _check_motion(root: Path, wanted: dict) -> None:
    if (root / MARKER).exists():
        found = read_marker(root, MOTION_LAYOUT)
        check_same(root, "motion", found.get("motion"), wanted)
        return
    there = [name for name in ARCHIVES if (root / name).exists()]
    if there:
        raise DataError(
            f"{root}: has {', '.join(there)}, which are not of the embedded world (there is no {MARKER}); set SYNTH.NATIVE false to use "
            f"them, or {OTHER_ROOT}"
        )


def write_archives(root: Path, clips: Iterable[stage.Clip], rigs: dict[str, Cameras], seed: int) -> dict[str, int]:
    """ARCHIVES of clips that are filmed by the cameras of their subjects; those that exist are kept.   -> frames of each subject"""
    positions: dict[str, dict[str, np.ndarray]] = {}
    exact: dict[str, dict[str, list[np.ndarray]]] = {}
    noisy: dict[str, dict[str, list[np.ndarray]]] = {}
    for clip in clips:
        filmed = stage.film(clip, rigs[clip.subject], stage.generator(seed, "detector", clip.subject, clip.action))
        positions.setdefault(clip.subject, {})[clip.action] = (clip.X_world / 1000).astype(np.float32)
        exact.setdefault(clip.subject, {})[clip.action] = list(filmed.x_img)
        noisy.setdefault(clip.subject, {})[clip.action] = list(filmed.x_noisy)
    for name, keypoints in (("gt", exact), ("noisy", noisy)):
        there = (root / f"data_2d_h36m_{name}.npz").exists()
        keypoints_npz.write_archives(root, "h36m", name, positions, {} if there else keypoints, layout=keypoints_npz.SKELETON)
    return {subject: sum(map(len, actions.values())) for subject, actions in positions.items()}


def _exists(root: Path, native: Native) -> bool:
    return any((root / trace).exists() for trace in native.traces)


def _check_native(root: Path, layout: str, worlds: dict[Native, World]) -> dict[str, dict]:
    """The splits that the marker of `root` names, after those asked for were found to be the same worlds or to be missing."""
    found = read_marker(root, layout)
    for native, world in worlds.items():
        if native.split in found:
            check_same(root, native.split, found[native.split], origin(world))
        elif _exists(root, native):
            raise DataError(
                f"{root}: has a split {native.split} that is not of the embedded world ({MARKER} does not name it); set SYNTH.NATIVE false "
                f"to use it, or {OTHER_ROOT}"
            )
    return found


def read_marker(root: Path, layout: str) -> dict[str, dict]:
    """What the marker of `root` names, split by split; nothing where there is no marker."""
    marker = root / MARKER
    if not marker.exists():
        return {}
    try:
        data = json.loads(marker.read_text())
        found, kind = dict(data["splits"]), data["layout"]
    except (OSError, *MALFORMED):
        raise DataError(f"{marker}: damaged, or of another program; {OTHER_ROOT}") from None
    if kind != layout:
        raise DataError(f"{root}: holds the embedded world in the layout {kind}, expected {layout}; {OTHER_ROOT}")
    return found


def origin(world: World) -> dict:
    """What tells one world from another, as stored in world.json."""
    return {"version": VERSION} | {k: list(v) if isinstance(v, tuple) else v for k, v in world.arguments.items()}


def check_same(root: Path, split: str, found: dict | None, wanted: dict) -> None:
    found = {"zoom": 1.0, "strangers": False} | (found or {})  # worlds made before there was a choice
    for key, value in wanted.items():
        if found.get(key) != value:
            raise DataError(
                f"{root}: holds another world: {key} of split {split} is {found.get(key)}, expected {value}; "
                f"ask for what is there (section SYNTH, or the arguments of scripts/synth.py), set DATASET.ROOT "
                f"(or --root) to another folder, or delete {root} to have it made anew"
            )


def sheet(path: str | Path, split: str, frames: int, overlay: bool = False, **options) -> None:
    """Writes a contact sheet of images spread over a split, with the exact 2D joints drawn in if `overlay`.

    Raises:
        ParallaxError: wrong options of World, or a file that cannot be written.
    """
    world = World(split=split, frames=frames, **options)
    chosen = np.linspace(0, len(world) - 1, min(SHEET_COLUMNS * SHEET_ROWS, len(world))).astype(int)
    images = {int(i): world.image(int(i)) for i in chosen}
    if overlay:
        ann = world.annotations()
        skeleton = skeletons.get(ann.skeleton)
        images = {i: vis.draw_skeleton_2d(image, ann.x_img[ann.image == i], skeleton) for i, image in images.items()}
    tiles = list(images.values())
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % SHEET_COLUMNS)
    vis.save_image(
        path,
        np.concatenate([np.concatenate(tiles[k : k + SHEET_COLUMNS], 1) for k in range(0, len(tiles), SHEET_COLUMNS)]),
    )
