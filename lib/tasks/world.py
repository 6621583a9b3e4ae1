"""The embedded world on disk: generated once, checked and reused after; and pictures of it to look at."""

import fcntl
import os
from pathlib import Path

import numpy as np

from lib import skeleton as skeletons
from lib import vis
from lib.dataset.formats import synthetic
from lib.errors import DataError
from lib.synthetic.world import VERSION, World

SHEET_COLUMNS, SHEET_ROWS = 6, 4


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
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "a")
    except OSError as error:
        raise DataError(f"{root}: cannot be written ({error.strerror}); choose another DATASET.ROOT (or --root)") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the ranks of a distributed run come here together: one generates, the others wait
        found = synthetic.manifest(root)["splits"]
        for split, world in worlds.items():
            if split in found:
                _check_same(root, split, found[split].get("origin"), origin(world))
        for split, world in worlds.items():
            if split in found and (root / split).exists():
                synthetic.check_images(root, split)
            else:
                synthetic.write(world.annotations(), root, split, world.image, origin(world), workers, progress=True)


def origin(world: World) -> dict:
    """What tells one world from another, as stored in world.json."""
    return {"version": VERSION} | {k: list(v) if isinstance(v, tuple) else v for k, v in world.arguments.items()}


def _check_same(root: Path, split: str, found: dict | None, wanted: dict) -> None:
    found = found or {}
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
