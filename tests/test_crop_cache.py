"""Samples from cached crops beside those from whole images, and a cache that notices what it was made of."""

import logging
import multiprocessing
import os

import cv2
import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.dataset import crop_cache
from lib.dataset.augment import NEUTRAL, Augment, Params
from lib.dataset.crop_cache import open_cache
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key, make_loader
from lib.dataset.samples import CropSamples, ViewSamples
from lib.errors import DataError
from lib.synthetic.world import World
from lib.tasks import build
from tests.tiny_dataset import NETWORK, Fixed, edited, make, write_images

SPEC = ImageSpec(size=(64, 64))
LABELS = ("x_patch", "valid", "valid_depth", "patch_from_img", "depth_scale", "root_cam", "X_cam", "x_img", "conf", "flipped")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Two people of the embedded world, each in four views of 320 x 320 px."""
    root = tmp_path_factory.mktemp("rendered")
    world = World(split="train", frames=2, size=(320, 320))
    ann = world.annotations()
    for i, name in enumerate(ann.images):
        path = root / name.decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), world.image(i)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return ann, root


@pytest.fixture
def tiny(tmp_path):
    ann = make(sequences=1, frames=2, people=2, views=2)
    (tmp_path / "data").mkdir()
    write_images(ann, tmp_path / "data")
    return ann.check("tiny"), tmp_path / "data"


def made(caplog) -> int:
    return sum("this is done once" in record.message for record in caplog.records)


@pytest.mark.parametrize("size", [384, 96], ids=["unscaled", "downscaled"])
@pytest.mark.parametrize(("params", "wide"), [
    (NEUTRAL, False), (Params(1.1, 20.0, True), False), (Params(0.8, -30.0), False), (Params(1.25, 40.0), True),
], ids=["plain", "mirrored", "turned", "wide"])  # fmt: skip
def test_samples_from_the_cache_are_those_of_the_images(rendered, tmp_path, size, params, wide):
    ann, root = rendered
    cache = open_cache(ann, root, tmp_path, size=size)
    full, cached = (CropSamples(ann, root, SPEC, Fixed(params=params), cache=c) for c in (None, cache))
    keys = [Key(i) for i in range(len(ann))]
    a, b = full.__getitems__(keys), cached.__getitems__(keys)
    for name in LABELS:
        assert torch.equal(a[name], b[name]), name
    crop, _ = cache.affines(np.arange(len(ann)), a["patch_from_img"].double(), SPEC.size)
    assert (crop >= 0).all() and ((crop >= len(ann)) == wide).all()
    difference = (a["image"].int() - b["image"].int()).abs().float().mean((1, 2, 3))
    assert 0 < difference.max() < 8, difference  # grey levels; another crop of the scene differs by 20 and more
    moved = (a["image"].int() - b["image"].roll(2, -1).int()).abs().float().mean((1, 2, 3))
    assert (difference < 0.6 * moved).all()


def test_views_read_the_cache_too(rendered, tmp_path, monkeypatch):
    ann, root = rendered
    cache = open_cache(ann, root, tmp_path)
    full = ViewSamples(ann, root, SPEC, augment=Fixed(params=Params(1.1, 10.0)))[0]
    monkeypatch.setattr("lib.dataset.samples.read_bgr", None)  # no image may be read
    views = ViewSamples(ann, root, SPEC, augment=Fixed(params=Params(1.1, 10.0)), cache=cache)[0]
    assert torch.equal(full["patch_from_img"], views["patch_from_img"]) and torch.equal(full["x_img"], views["x_img"])
    assert (full["image"].int() - views["image"].int()).abs().float().mean() < 4


def test_what_reaches_beyond_the_margin_comes_from_the_image(rendered, tmp_path):
    ann, root = rendered
    cache = open_cache(ann, root, tmp_path, size=96, margin=1.0)
    params = Params(1.4, 15.0)
    full, cached = (CropSamples(ann, root, SPEC, Fixed(params=params), cache=c) for c in (None, cache))
    a, b = (data.__getitems__([Key(i) for i in range(len(ann))]) for data in (full, cached))
    crop, affine = cache.affines(np.arange(len(ann)), a["patch_from_img"].double(), SPEC.size)
    assert (crop == -1).all() and torch.equal(affine, a["patch_from_img"].double())
    assert torch.equal(a["image"], b["image"])


def test_what_lies_outside_of_the_image_is_black_in_both(rendered, tmp_path):
    ann, root = rendered
    ann = ann.select([0])
    box = np.array([[-60, -60, 60, 60]], np.float32)
    ann = edited(ann, "box", slice(None), box)
    cache = open_cache(ann, root, tmp_path)
    a, b = (CropSamples(ann, root, SPEC, cache=c)[0]["image"] for c in (None, cache))
    assert cache.affines(np.array([0]), torch.tensor([[[64 / 120, 0, 32], [0, 64 / 120, 32]]]).double(), SPEC.size)[0] == [0]
    assert (b[:, :30] == 0).all() and (b[:, :, :30] == 0).all() and b[:, 34:, 34:].float().mean() > 20
    assert (a.int() - b.int()).abs().float().mean() < 3


def test_crops_are_made_once_and_small_people_are_not_enlarged(tiny, tmp_path, caplog):
    caplog.set_level(logging.INFO, "parallax")
    ann, root = tiny
    for _ in range(2):
        cache = open_cache(ann, root, tmp_path / "c", size=384)
    assert made(caplog) == 1 and len(cache) == len(ann)
    assert [p.suffix for p in sorted((tmp_path / "c").iterdir())] == [".bin", ".lock"]
    for row in range(len(ann)):
        width, height = (ann.box[row, 2:] - ann.box[row, :2]) * 1.5
        crop = cache.read(row)
        assert crop.shape[0] <= height + 8 and crop.shape[1] <= width + 8
    small = open_cache(ann, root, tmp_path / "c", size=40)
    assert max(max(small.read(row).shape) for row in range(len(ann))) in (39, 40)


def test_changed_boxes_images_and_settings_are_noticed(tiny, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "parallax")
    ann, root = tiny
    folder, count = tmp_path / "c", 0

    def expect_made(table=ann, **options) -> crop_cache.CropCache:
        nonlocal count
        cache, count = open_cache(table, root, folder, **options), count + 1
        assert made(caplog) == count
        open_cache(table, root, folder, **options)
        assert made(caplog) == count
        return cache

    before = expect_made()
    moved = edited(ann, "box", 0, ann.box[0] + 5)
    after = expect_made(moved)
    assert after.path == before.path and "other boxes or images" in caplog.text
    np.testing.assert_array_equal(before.read(1), after.read(1))  # an open cache keeps its contents when its file is replaced
    expect_made(margin=1.25)
    expect_made(size=64)
    expect_made(box_scale=1.1)
    expect_made()  # the first one again: its file holds the wider boxes now
    image = root / ann.image_path(0)
    os.utime(image, ns=(1, 1))
    expect_made()
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, ns=(1, 1))
    expect_made()
    expect_made(ann.select(np.arange(3)))
    monkeypatch.setattr(crop_cache, "VERSION", crop_cache.VERSION + 1)
    expect_made()


@pytest.mark.parametrize("damage", ["cut", "end", "index", "empty", "foreign"])
def test_a_damaged_file_is_made_again(tiny, tmp_path, caplog, damage):
    caplog.set_level(logging.INFO, "parallax")
    ann, root = tiny
    cache = open_cache(ann, root, tmp_path / "c")
    whole = cache.path.read_bytes()
    broken = {
        "cut": whole[: len(whole) // 2], "end": whole[:-1], "index": whole[:-300] + b"\xff" * 100 + whole[-200:], "empty": b"",
        "foreign": b"something else, and long enough to hold a trailer of any kind",
    }[damage]  # fmt: skip
    cache.path.write_bytes(broken)
    again = open_cache(ann, root, tmp_path / "c")
    assert made(caplog) == 2 and "damaged" in caplog.text and cache.path.read_bytes() == whole
    assert again.read(0).size


def test_a_crop_that_is_damaged_later_is_named(tiny, tmp_path):
    ann, root = tiny
    cache = open_cache(ann, root, tmp_path / "c")
    data = bytearray(cache.path.read_bytes())
    middle = int(cache.start[3] + cache.end[3]) // 2
    data[middle] ^= 0xFF
    cache.path.write_bytes(data)
    loaded = open_cache(ann, root, tmp_path / "c")
    assert loaded.read(0).size
    with pytest.raises(DataError, match=r"crops-.*crop 3 is damaged; delete"):
        CropSamples(ann, root, SPEC, cache=loaded)[3]


def test_nothing_is_left_when_an_image_is_missing_or_the_folder_cannot_be_used(tiny, tmp_path):
    ann, root = tiny
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="DATASET.CACHE"):
        open_cache(ann, root, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (root / ann.image_path(2)).unlink()
    with pytest.raises(DataError, match="no such image"):
        open_cache(ann, root, tmp_path / "c")
    assert [p.suffix for p in (tmp_path / "c").iterdir()] == [".lock"]
    with pytest.raises(DataError, match="margin"):
        open_cache(ann, root, tmp_path / "c", margin=0.9)


def test_a_cache_of_another_table_is_refused(tiny, tmp_path):
    ann, root = tiny
    cache = open_cache(ann, root, tmp_path)
    with pytest.raises(DataError, match="another table"):
        CropSamples(ann.select(np.arange(len(ann))[::-1]), root, SPEC, cache=cache)


def _open_and_count(ann, root, folder, queue) -> None:
    made_here = []
    original = crop_cache._build
    crop_cache._build = lambda *args: (made_here.append(1), original(*args))
    cache = open_cache(ann, root, folder)
    queue.put((len(made_here), len(cache)))


def test_of_several_processes_one_makes_it(tiny, tmp_path):
    ann, root = tiny
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    jobs = [context.Process(target=_open_and_count, args=(ann, root, tmp_path / "c", queue)) for _ in range(3)]
    for job in jobs:
        job.start()
    found = [queue.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(60)
    assert sorted(found) == [(0, len(ann)), (0, len(ann)), (1, len(ann))]


def test_workers_read_the_same_samples(tiny, tmp_path):
    ann, root = tiny
    wild = Augment(scale=0.25, rot_deg=30, flip_prob=0.5, color=0.2)
    data = CropSamples(ann, root, SPEC, wild, seed=3, cache=open_cache(ann, root, tmp_path / "c", size=64))
    batches = [list(make_loader(data, 4, workers=workers, num_steps=4)) for workers in (0, 2)]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["x_patch"], b["x_patch"])


def test_training_reads_the_cache_and_evaluation_does_not(tmp_path, caplog):
    caplog.set_level(logging.INFO, "parallax")
    world = {"SYNTH.TRAIN": 2, "SYNTH.VALID": 1, "SYNTH.PRETRAIN": 0, "SYNTH.SIZE": [96, 96], "DATASET.ROOT": str(tmp_path / "world")}
    cfg = defaults().with_values(NETWORK | world | {"DATASET.CACHE": "auto", "DATASET.CACHE_SIZE": 60})
    task = build(cfg)
    train, valid = task.train_data()["train"], task.eval_data()["valid"]
    assert train.cache.path.parent == tmp_path / "world/.crops" and valid.cache is None
    assert "CACHE_SIZE to 96" in caplog.text  # 60 px for 1.5 boxes are 40 px for a box: less than the 64 px of the crop
    elsewhere = build(cfg.with_values({"DATASET.CACHE": str(tmp_path / "other")})).train_data()["train"]
    assert elsewhere.cache.path.parent == tmp_path / "other"
    assert build(cfg.with_values({"DATASET.CACHE": ""})).train_data()["train"].cache is None
