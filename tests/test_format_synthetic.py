"""The world's layout on disk: round trip, reuse, and what happens to damaged or foreign folders."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lib.dataset import load
from lib.dataset.annotations import INDEX_COLUMNS
from lib.dataset.formats import files, synthetic
from lib.dataset.image import read_image
from lib.errors import ConfigError, DataError
from lib.synthetic.world import World
from lib.tasks.world import ensure
from scripts import synth

TINY = {"pretrain": 3, "train": 2, "valid": 0, "size": (48, 40)}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made") / "world"
    ensure(root, **TINY, workers=1)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    for path in made.rglob("*"):
        if path.is_file():
            copy = tmp_path / "world" / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "world"


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.name != ".lock"}


def test_what_is_read_is_what_was_written(made):
    for split, frames in (("pretrain", 3), ("train", 2)):
        world = World(split=split, frames=frames, size=TINY["size"])
        wrote, read = world.annotations(), synthetic.read(made, split).check(split)
        for field in (
            *INDEX_COLUMNS,
            "X_world",
            "X_valid",
            "x_img",
            "conf",
            "visible",
            "box",
            "images",
            "subjects",
            "actions",
            "subactions",
        ):
            a, b = getattr(wrote, field), getattr(read, field)
            assert a.dtype == b.dtype and np.array_equal(a, b), field
        for field in files.CAMERA_FIELDS:
            assert np.array_equal(getattr(wrote.cameras, field), getattr(read.cameras, field))
        assert (read.skeleton, read.fps) == (wrote.skeleton, wrote.fps)
        image = read_image(made / read.image_path(1))
        assert image.shape == (40, 48, 3)
        assert np.abs(image.astype(int) - world.image(1)).mean() < 6  # JPEG


def test_images_do_not_depend_on_the_number_of_workers(made, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 3)
    monkeypatch.setattr(files, "PARALLEL_FROM", 1)
    world = World(split="train", frames=2, size=TINY["size"])
    synthetic.write(world.annotations(), tmp_path, "train", world.image, workers=2)
    for path in (made / "train" / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "train" / "images" / path.name).read_bytes()
    one, two = (json.loads((r / "world.json").read_text())["splits"]["train"]["images"] for r in (made, tmp_path))
    assert one == two


def test_a_complete_world_is_reused_and_a_missing_split_is_added(root):
    before = contents(root)
    ensure(root, **TINY)
    assert contents(root) == before
    ensure(root, **(TINY | {"valid": 1}), workers=1)
    after = contents(root)
    assert {k: v for k, v in after.items() if k in before and k != "world.json"} == {k: v for k, v in before.items() if k != "world.json"}
    assert len(synthetic.read(root, "valid")) == 4


def test_an_interrupted_run_is_taken_up_again(root):
    import shutil

    before = contents(root)
    shutil.rmtree(root / "train")
    (root / ".train.part" / "images").mkdir(parents=True)
    (root / ".train.part" / "images" / "half.jpg").write_bytes(b"\xff\xd8")
    ensure(root, **TINY, workers=1)
    assert contents(root) == before and not (root / ".train.part").exists()


def test_foreign_image_names_are_replaced_by_numbers(tmp_path):
    import dataclasses

    world = World(split="train", frames=1, size=(32, 32))
    ann = world.annotations()
    ann = dataclasses.replace(ann, images=np.array([b"../../evil.jpg", b"a.png", b"a.png", b"b.png"]))
    synthetic.write(ann, tmp_path / "w", "train", world.image)
    assert [p.name for p in sorted((tmp_path / "w" / "train" / "images").iterdir())] == [f"{i:06d}.jpg" for i in range(4)]
    assert synthetic.read(tmp_path / "w", "train").image_path(2) == "train/images/000002.jpg"


def flip_byte(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 0xFF
    path.write_bytes(bytes(data))


def with_other_table(root: Path, **arrays) -> None:
    """A table of somebody else whose checksum world.json vouches for."""
    import hashlib

    path = root / "train" / "annotations.npz"
    path.unlink()
    np.savez(path, **arrays)
    manifest = json.loads((root / "world.json").read_text())
    manifest["splits"]["train"]["annotations_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / "world.json").write_text(json.dumps(manifest))


DAMAGE = {
    "a byte of the table": (
        lambda r: flip_byte(r / "train" / "annotations.npz", 0.5),
        r"annotations.npz.*checksum.*synth.py --root",
    ),
    "a truncated table": (
        lambda r: (r / "train" / "annotations.npz").write_bytes(b"PK\x03\x04"),
        r"annotations.npz.*checksum.*delete",
    ),
    "an empty table": (lambda r: (r / "train" / "annotations.npz").write_bytes(b""), r"annotations.npz.*checksum"),
    "a missing table": (
        lambda r: (r / "train" / "annotations.npz").unlink(),
        r"annotations.npz: cannot be read.*synth.py",
    ),
    "a table of something else": (
        lambda r: with_other_table(r, a=np.zeros(3)),
        r"annotations.npz: not an annotation table",
    ),
    "a table with pickled objects": (
        lambda r: with_other_table(r, skeleton=np.array([{"a": 1}], dtype=object)),
        r"annotations.npz: not an annotation table",
    ),
    "no manifest": (
        lambda r: (r / "world.json").unlink(),
        r"no synthetic world there; run `python scripts/synth.py --root",
    ),
    "a cut manifest": (lambda r: (r / "world.json").write_text('{"format": 1, "spl'), r"world.json: damaged"),
    "a manifest of something else": (
        lambda r: (r / "world.json").write_text("[1, 2]"),
        r"world.json: damaged, or of another program",
    ),
    "a manifest of a newer version": (
        lambda r: (r / "world.json").write_text('{"format": 99, "splits": {}}'),
        r"another program or version",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_and_nothing_is_touched(root, damage):
    spoil, text = DAMAGE[damage]
    spoil(root)
    before = contents(root)
    with pytest.raises(DataError, match=text):
        load("synthetic", root, "train")
    assert contents(root) == before


def test_missing_and_cut_images_are_noticed(root):
    next((root / "train" / "images").iterdir()).unlink()
    with pytest.raises(DataError, match=r"holds 7 images.*expected 8.*delete .*train and run"):
        ensure(root, **TINY)
    first = next((root / "pretrain" / "images").iterdir())
    first.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(DataError, match="pretrain.*3 images of"):
        ensure(root, **(TINY | {"train": 0}))


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 3}, {"size": (64, 64)}, {"rig": "ring"}, {"people": 2}])
def test_another_world_is_never_overwritten(root, change):
    before = contents(root)
    with pytest.raises(DataError, match="holds another world.*set DATASET.ROOT"):
        ensure(root, **(TINY | change))
    assert contents(root) == before


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "S1").mkdir()
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(DataError, match="not a synthetic world.*S1, notes.txt"):
        ensure(tmp_path, **TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["S1", "notes.txt"]
    with pytest.raises(DataError, match="cannot be written"):
        ensure(tmp_path / "notes.txt" / "world", **TINY)


def test_a_split_that_exists_is_not_written_twice(root):
    world = World(split="train", frames=2, size=TINY["size"])
    before = contents(root)
    with pytest.raises(DataError, match="exists already and is never overwritten"):
        synthetic.write(world.annotations(), root, "train", world.image)
    assert contents(root) == before


def test_unknown_splits_and_options(made):
    with pytest.raises(DataError, match="no split 'test', only pretrain, train"):
        load("synthetic", made, "test")
    with pytest.raises(ConfigError, match="takes no options"):
        load("synthetic", made, "train", {"fast": True})


def test_a_failing_writer_leaves_nothing_behind(tmp_path):
    world = World(split="train", frames=1, size=(32, 32))

    def broken(i: int):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left"):
        synthetic.write(world.annotations(), tmp_path / "w", "train", broken)
    assert not contents(tmp_path / "w") and not (tmp_path / "w" / "train").exists()


def test_script_makes_a_world_and_a_sheet_and_tells_errors(tmp_path, monkeypatch, capsys):
    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["synth.py", *words])
        return synth.main()

    small = ["--pretrain", "0", "--train", "1", "--valid", "0", "--size", "32", "32", "--workers", "1"]
    assert call("--root", str(tmp_path / "w"), *small) == 0
    assert call("--sheet", str(tmp_path / "sheet.png"), "--overlay", *small) == 0
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[1] == 6 * 32
    assert call("--root", str(tmp_path / "w"), *small, "--seed", "5") == 2
    assert "holds another world: seed" in capsys.readouterr().err
    assert call("--root", str(tmp_path / "v"), "--rig", "cube") == 2
    assert "is not one of" in capsys.readouterr().err
