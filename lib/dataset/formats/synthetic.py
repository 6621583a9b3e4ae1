"""The embedded world's own layout: plain arrays, JPEG images and checksums; nothing in it can execute.

<root>/world.json                    what was generated, with checksums
<root>/<split>/annotations.npz       the Annotations table, one array per field
<root>/<split>/images/*.jpg
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib.dataset.annotations import Annotations
from lib.dataset.formats.files import load_table, part_folder, save_table, write_images
from lib.errors import MALFORMED, DataError
from lib.files import refuse_existing, write_text

SKELETON = "h36m17"
FORMAT = 1


def read(root: str | Path, split: str) -> Annotations:
    """One split of a world on disk.

    Raises:
        DataError: no world there, no such split, or a file that is damaged or not the one that was written.
    """
    root = Path(root)
    entry = _entry(root, split)
    path = root / split / "annotations.npz"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_again(root, split)}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != entry.get("annotations_sha256"):
        raise DataError(
            f"{path}: the checksum is {found[:12]}..., but {root / 'world.json'} promises "
            f"{str(entry.get('annotations_sha256'))[:12]}...: the file was cut short or changed; {_again(root, split)}"
        )
    try:
        return load_table(path)
    except (OSError, *MALFORMED) as error:
        raise DataError(f"{path}: not an annotation table of this program ({error}); {_again(root, split)}") from None


def write(
    ann: Annotations,
    root: str | Path,
    split: str,
    image: Callable[[int], np.ndarray] | None = None,
    origin: dict | None = None,
    workers: int = 0,
    progress: bool = False,
) -> None:
    """Writes one split, under a temporary name until it is complete.

    Args:
        ann: the table; image names that do not lie under `<split>/images/` are replaced by numbered ones.
        root: folder of the world, made if missing; splits that are there stay untouched.
        split: its name.
        image: i -> (H,W,3) uint8 RGB of row i of ann.images; None writes no images. With workers it must be picklable.
        origin: plain values that tell how to make the split again, stored in world.json.
        workers: processes that make images; 0 or 1 = this one.
        progress: shows a bar.

    Raises:
        DataError: the split exists, the folder holds something else, or it cannot be written.
    """
    root = Path(root)
    ann.check(f"annotations to be written to {root} ({split})")
    world = manifest(root)
    final = root / split
    refuse_existing(final)
    names = _image_names(ann, split)
    with part_folder(root, split) as part:
        (part / "images").mkdir()
        digest = save_table(ann, names, part / "annotations.npz")
        files = [str(part.joinpath(*Path(name).parts[1:])) for name in names]
        images = write_images(image, files, workers, f"{root}: {split}" if progress else None) if image else None
        entry = {"annotations_sha256": digest, "observations": len(ann), "images": images, "origin": origin}
        world["splits"][split] = entry
        # The manifest comes first: a split that it names but that is missing is simply made again.
        write_text(root / "world.json", json.dumps(world, indent=1) + "\n")
        os.rename(part, final)


def splits(root: str | Path) -> list[str]:
    """The names of the splits that were made."""
    return list(manifest(root)["splits"])


def manifest(root: str | Path) -> dict:
    """The contents of world.json, or an empty manifest for a folder that is missing or empty.

    Raises:
        DataError: the folder holds something else, or world.json is damaged.
    """
    root, path = Path(root), Path(root) / "world.json"
    if not path.exists():
        strangers = sorted(p.name for p in root.iterdir() if not p.name.startswith(".")) if root.is_dir() else []
        if strangers or root.is_file():
            raise DataError(
                f"{root}: not a synthetic world: it has no world.json but {', '.join(strangers[:3]) or 'is a file'}; "
                "set DATASET.ROOT (or --root) to a new folder"
            )
        return {"format": FORMAT, "splits": {}}
    try:
        world = json.loads(path.read_text())
        good = world["format"] == FORMAT and all(isinstance(e, dict) for e in world["splits"].values())
    except (OSError, *MALFORMED):
        good = False
    if not good:
        raise DataError(f"{path}: damaged, or of another program or version; set DATASET.ROOT to a new folder or delete {root}")
    return world


def check_images(root: str | Path, split: str) -> None:
    """Raises DataError unless the split's images are all there, by number and total size."""
    root = Path(root)
    images = _entry(root, split).get("images")
    if not images:
        return
    folder = root / split / "images"
    sizes = [entry.stat().st_size for entry in os.scandir(folder)] if folder.is_dir() else []
    found = {"count": len(sizes), "bytes": sum(sizes)}
    if any(found[key] != images.get(key) for key in found):
        raise DataError(
            f"{folder}: holds {found['count']} images of {found['bytes']} bytes, expected {images.get('count')} of "
            f"{images.get('bytes')}; {_again(root, split)}"
        )


def _entry(root: Path, split: str) -> dict:
    if not (root / "world.json").exists():
        raise DataError(f"{root}: no synthetic world there; run `python scripts/synth.py --root {root}`")
    splits = manifest(root)["splits"]
    if split not in splits:
        known = ", ".join(splits) or "none"
        raise DataError(f"{root}: has no split {split!r}, only {known}; set DATASET.TRAIN_SET and TEST_SET to one of them")
    return splits[split]


def _again(root: Path, split: str) -> str:
    return f"delete {root / split} and run `python scripts/synth.py --root {root}`"


def _image_names(ann: Annotations, split: str) -> list[str]:
    """Paths of the images relative to the root: the table's own if they fit this layout."""
    names = [name.decode() for name in ann.images]
    kept = all(Path(n).parts[:-1] == (split, "images") and n.endswith(".jpg") for n in names) and len(set(names)) == len(names)
    return names if kept else [f"{split}/images/{i:06d}.jpg" for i in range(len(names))]
