"""Occluders: the objects of a made-up Pascal VOC, their cache, and painting in the published numbers."""

import os
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from lib import config
from lib.dataset import occluders
from lib.dataset.occluders import Occluders, paste, resize, voc_occluders
from lib.errors import DataError
from lib.tasks import data

SIZE = (120, 100)  # width, height


def add(voc, name, objects, segmented=1):
    """One image of the data set; objects: (class, flags, (xmin, ymin, xmax, ymax) of a filled box, colour)."""
    image, mask = np.full((*SIZE[::-1], 3), 10, np.uint8), np.zeros(SIZE[::-1], np.uint8)
    xml = f"<annotation><filename>{name}.jpg</filename><segmented>{segmented}</segmented>"
    for i, (kind, flags, (x0, y0, x1, y1), color) in enumerate(objects):
        image[y0:y1, x0:x1], mask[y0:y1, x0:x1] = color, i + 1
        xml += f"<object><name>{kind}</name>{''.join(f'<{f}>1</{f}>' for f in flags)}<bndbox>"
        xml += f"<xmax>{x1}</xmax><xmin>{x0}.00</xmin><ymax>{y1}</ymax><ymin>{y0}</ymin></bndbox></object>"
    for folder in ("Annotations", "JPEGImages", "SegmentationObject"):
        (voc / folder).mkdir(parents=True, exist_ok=True)
    (voc / "Annotations" / f"{name}.xml").write_text(xml + "</annotation>")
    cv2.imwrite(str(voc / "JPEGImages" / f"{name}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    palette = Image.fromarray(mask) if segmented else None
    if palette:
        palette.putpalette([7 * k % 256 for k in range(768)])  # colours that are not the numbers
        palette.save(voc / "SegmentationObject" / f"{name}.png")


@pytest.fixture
def voc(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "VOC2012"
    add(
        folder,
        "2007_000001",
        [
            ("person", (), (0, 0, 30, 90), (200, 200, 0)),
            ("chair", (), (40, 10, 80, 50), (255, 0, 0)),
            ("cat", (), (90, 10, 110, 30), (0, 255, 0)),  # 400 px
            ("sofa", ("truncated",), (40, 60, 80, 90), (0, 0, 255)),
            ("dog", ("difficult",), (85, 60, 118, 90), (0, 0, 255)),
        ],
    )
    add(folder, "2007_000002", [("boat", (), (0, 0, 100, 60), (9, 9, 9))], segmented=0)
    add(folder, "2007_000003", [("car", (), (20, 20, 100, 60), (0, 0, 200))])
    return folder


def test_objects_are_chosen_cut_out_and_halved(voc):
    chair, car = voc_occluders(voc).objects
    assert chair.shape == (20, 20, 4) and car.shape == (20, 40, 4)
    assert np.abs(chair[4:-4, 4:-4, :3].astype(int) - [255, 0, 0]).max() < 8  # RGB
    assert np.abs(car[4:-4, 4:-4, :3].astype(int) - [0, 0, 200]).max() < 8
    assert (chair[..., 3] == 255).all()  # the box is full: an erosion does not reach in from the border of the cut-out


def test_outline_is_what_the_erosion_takes(voc):
    ball = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 25, 1, -1)
    add(voc, "2007_000004", [("ball", (), (20, 20, 80, 80), (0, 99, 0))])
    full = np.zeros(SIZE[::-1], np.uint8)
    full[20:80, 20:80] = ball
    Image.fromarray(full).save(voc / "SegmentationObject" / "2007_000004.png")
    alpha = voc_occluders(voc).objects[-1][..., 3]
    inside = cv2.erode(ball, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (8, 8)))
    expected = resize(np.where(inside, 255, 192 * ball).astype(np.uint8)[..., None].repeat(4, -1), 0.5)[..., 0]
    assert np.array_equal(alpha, expected) and alpha[0, 0] == 0 and alpha[15, 15] == 255 and 192 in alpha


@pytest.mark.parametrize("place", ["VOC2012", "VOCdevkit/VOC2012"])
def test_folders_above_are_accepted(voc, tmp_path, place):
    (tmp_path / "above" / place).parent.mkdir(parents=True)
    shutil.move(voc, tmp_path / "above" / place)
    assert len(voc_occluders(tmp_path / "above")) == 2


def test_read_once(voc, monkeypatch):
    first = voc_occluders(voc)
    cache = voc.with_name("VOC2012.occluders.npz")
    assert [p.name for p in voc.parent.glob("*.npz")] == [cache.name] and not (voc.parent / "cache").exists()
    monkeypatch.setattr(occluders, "_voc_objects", lambda *_: pytest.fail("read again"))
    again = voc_occluders(voc)
    assert all(np.array_equal(a, b) for a, b in zip(first.objects, again.objects, strict=True))
    assert all(item.base is not None for item in again.objects)  # one array that processes share


def test_cache_of_other_data_or_damaged_is_made_again(voc):
    voc_occluders(voc)
    cache = voc.with_name("VOC2012.occluders.npz")
    add(voc, "2007_000005", [("bus", (), (0, 0, 60, 60), (1, 2, 3))])
    assert len(voc_occluders(voc)) == 3
    cache.write_bytes(cache.read_bytes()[:200])
    assert len(voc_occluders(voc)) == 3
    shutil.rmtree(voc / "JPEGImages")  # from here on only the cache can answer
    assert len(voc_occluders(voc)) == 3


def test_cache_goes_elsewhere_where_the_place_cannot_be_written(voc, monkeypatch):
    real = os.replace

    def refuse(source, target):
        if "parallax" not in str(target):
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(occluders.os, "replace", refuse)
    voc_occluders(voc)
    assert [p.suffix for p in (voc.parent / "cache" / "parallax").iterdir()] == [".npz"]
    assert not [p for p in voc.parent.iterdir() if "occluders" in p.name]
    monkeypatch.setattr(occluders, "_voc_objects", lambda *_: pytest.fail("read again"))
    assert len(voc_occluders(voc)) == 2


def test_what_is_missing_or_damaged_is_named(voc, tmp_path):
    with pytest.raises(DataError, match="no Annotations folder"):
        voc_occluders(tmp_path / "nowhere")
    (voc / "SegmentationObject" / "2007_000003.png").unlink()
    with pytest.raises(DataError, match="2007_000003.png: the mask cannot be read"):
        voc_occluders(voc)
    Image.fromarray(np.zeros((*SIZE[::-1], 3), np.uint8)).save(voc / "SegmentationObject" / "2007_000003.png")
    with pytest.raises(DataError, match="2007_000003.png: has mode RGB"):
        voc_occluders(voc)
    (voc / "Annotations" / "2007_000003.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="2007_000003.xml: not an annotation of Pascal VOC"):
        voc_occluders(voc)
    for file in (voc / "Annotations").glob("*[13].xml"):
        file.unlink()
    with pytest.raises(DataError, match="none of 1 annotations has a segmented object"):
        voc_occluders(voc)


def test_configuration(voc, tmp_path, caplog):
    def objects(*values):
        return data.augmentation(config.load(None, ["DATASET.OCCLUSION", "true", *values])).occluders

    assert len(objects("DATASET.VOC", str(voc))) == 2
    caplog.clear()
    with caplog.at_level("WARNING", logger="parallax"):
        made_up = len(objects())
        assert not caplog.text
        assert len(objects("DATASET.VOC", str(tmp_path / "lost"))) == made_up == 64
    assert f"there is no folder {tmp_path / 'lost'}" in caplog.text
    assert data.augmentation(config.load(None, ["DATASET.VOC", str(voc)])).occluders is None


# --- painting


def test_painting_follows_the_published_numbers(monkeypatch):
    """Count uniform in 1..7, size factor U(0.2, 1) min(w, h) / 256, centre anywhere."""
    item = np.full((40, 30, 4), 255, np.uint8)
    pasted = []
    monkeypatch.setattr(occluders, "paste", lambda image, item, center: pasted.append((item.shape[:2], *center)))
    counts, seen = [], []
    for seed in range(600):
        pasted.clear()
        Occluders([item]).paste_random(np.zeros((192, 256, 3), np.uint8), np.random.default_rng(seed))
        counts.append(len(pasted))
        seen += pasted
    share = np.bincount(counts, minlength=8)[1:] / len(counts)
    assert min(counts) == 1 and max(counts) == 7 and abs(share - 1 / 7).max() < 0.05
    height = np.array([shape[0] for shape, *_ in seen]) / 40 * 256 / 192
    assert 0.18 < height.min() < 0.24 and 0.95 < height.max() <= 1.02 and abs(height.mean() - 0.6) < 0.02
    x, y = np.array([(x, y) for _, x, y in seen]).T
    assert x.min() < 5 and 250 < x.max() < 256 and y.min() < 5 and 187 < y.max() < 192
    assert abs(x.mean() - 128) < 5 and abs(y.mean() - 96) < 5


@pytest.mark.parametrize("factor, method", [(0.37, cv2.INTER_AREA), (1.0, cv2.INTER_AREA), (1.3, cv2.INTER_LINEAR)])
def test_resizing(factor, method):
    item = np.random.default_rng(0).integers(0, 256, (41, 27, 4), dtype=np.uint8)
    size = (round(27 * factor), round(41 * factor))
    assert np.array_equal(resize(item, factor), cv2.resize(item, size, interpolation=method))


def test_blending_in_bytes_is_within_a_grey_level():
    rng = np.random.default_rng(0)
    image, item = rng.integers(0, 256, (64, 80, 3), dtype=np.uint8), rng.integers(0, 256, (64, 80, 4), dtype=np.uint8)
    alpha = item[..., 3:] / 255
    exact = alpha * item[..., :3] + (1 - alpha) * image
    paste(image, item, (40, 32))
    assert np.abs(image - exact).max() <= 1
