"""Own rigs: pictures, videos and detections by camera, in whatever form they come."""

import json
import shutil

import cv2
import numpy as np
import pytest

from lib.dataset import load
from lib.dataset.calibrations import write_cameras
from lib.dataset.formats import custom
from lib.dataset.frames import FrameSamples
from lib.dataset.image import ImageSpec, read_image
from lib.errors import DataError
from lib.synthetic.world import World
from scripts import prepare
from tests.test_format_mpi_inf_3dhp import make_video

IMAGE = (96, 80)


@pytest.fixture(scope="module")
def world():
    return World(split="valid", frames=8, length=4, people=2, size=IMAGE)


@pytest.fixture(scope="module")
def tree(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("custom")
    custom.write(world.annotations().protocol(["S9"]), root, "walk", world.image)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    shutil.copytree(tree / "walk", tmp_path / "mine")
    return tmp_path / "mine"


def test_world_as_recording(tree, world):
    wrote = world.annotations().protocol(["S9"])
    coco, wrote15 = wrote.to_skeleton("coco17"), wrote.to_skeleton("panoptic15")
    raw = load("custom", tree, "walk", {"labels": "raw"})
    assert len(raw) == len(wrote) and custom.check(tree) == [] and custom.splits(tree) == ["walk"]
    shown = (coco.conf * coco.visible) > 0
    np.testing.assert_array_equal(raw.conf > 0, shown)
    np.testing.assert_allclose(raw.x_img[shown], coco.x_img[shown], atol=1e-3)
    soft, hard = (load("custom", tree, "walk", {"labels": labels}) for labels in ("soft", "hard"))
    assert soft.skeleton == hard.skeleton == "panoptic15" and (soft.pose == -1).all() and soft.person.tolist() == [0, 1] * 16
    shared = [k for k, name in enumerate(("neck", "nose", "pelvis")) if name == "nose"] + list(range(3, 15))
    both = (soft.conf > 0) & (wrote15.conf > 0)
    both[:, [0, 2]] = False  # neck and pelvis follow from other joints here
    assert both[:, shared].mean() > 0.6
    np.testing.assert_allclose(soft.x_img[both], wrote15.x_img[both], atol=1e-3)
    assert set(np.unique(hard.conf)) <= {0, 1} and (hard.conf[soft.conf == 0] == 0).all()
    np.testing.assert_allclose(raw.cameras.t, wrote.cameras[np.unique(wrote.camera)].t)
    assert read_image(tree / soft.image_path(0)).shape == (*IMAGE[::-1], 3)
    sample = FrameSamples(soft, tree, ImageSpec((64, 48)))[1]
    assert sample["image"].shape == (4, 3, 48, 64) and int(sample["n_people"]) == 0 and (sample["conf"] > 0).any()
    with pytest.raises(DataError, match="walk: exists already"):
        custom.write(world.annotations().protocol(["S9"]), tree, "walk")
    with pytest.raises(DataError, match="2 rigs in one recording"):
        custom.write(world.annotations(), tree, "other")


def test_pictures_alone(copy):
    """No detector: every picture has a row of nobody, so that networks can be run on it."""
    shutil.rmtree(copy / "poses2d")
    ann = load("custom", copy, "mine", {"step": 2})
    assert len(ann) == 8 and (ann.person == -1).all() and not ann.conf.any() and np.unique(ann.frame).tolist() == [0, 2]
    assert FrameSamples(ann, copy, ImageSpec((64, 48)))[0]["image"].shape == (4, 3, 48, 64)
    assert custom.check(copy) == [] and custom.splits(copy) == ["all"]
    (copy / "images/cam2/00000003.jpg").rename(copy / "images/cam2/late_9.jpg")
    ann = load("custom", copy, "all")
    late = int(np.flatnonzero(ann.frame == 9)[0])
    assert ann.frame[ann.view == 1].tolist() == [0, 1, 2, 9] and ann.image_path(late).endswith("cam2/late_9.jpg")


def test_pictures_where_nobody_was_detected_keep_their_row(copy):
    entries = json.loads((copy / "poses2d/cam1.json").read_text())
    (copy / "poses2d/cam1.json").write_text(json.dumps([e for e in entries if e["image_id"] != 2]))
    ann = load("custom", copy, "mine")
    empty = (ann.frame == 2) & (ann.view == 0)
    assert empty.sum() == 1 and ann.person[empty].tolist() == [-1] and ann.image[empty][0] >= 0 and np.isnan(ann.box[empty]).all()
    assert len(FrameSamples(ann, copy, ImageSpec((64, 48)))) == 4


def test_detections_alone_and_scores(copy):
    shutil.rmtree(copy / "images")
    entries = json.loads((copy / "poses2d/cam1.json").read_text())
    for k, entry in enumerate(entries):
        entry["score"] = 0.2 + 0.7 * (k % 2)
    (copy / "poses2d/cam1.json").write_text(json.dumps(entries))
    ann = load("custom", copy, "mine", {"min_score": 0.7})
    assert (ann.view == 0).sum() == len(entries) // 2 and (ann.image == -1).all() and len(ann.images) == 0
    assert custom.check(copy) == []


def test_sample_of_another_program(samples, tmp_path):
    """Pose2Sim's recording: Qualisys names, folders of OpenPose, joints of BODY_25B."""
    (tmp_path / "calibration.toml").symlink_to(samples / "pose2sim/calibration/Calib_qualisys.toml")
    (tmp_path / "poses2d").symlink_to(samples / "pose2sim/multi/pose")
    ann = load("custom", tmp_path, "all")
    assert ann.skeleton == "panoptic15" and np.unique(ann.view).tolist() == [0, 1, 2, 3] and ann.frame.max() == 39
    file = json.loads((samples / "pose2sim/multi/pose/cam02_json/cam02.0003.json").read_text())["people"][0]["pose_keypoints_2d"]
    row = np.flatnonzero((ann.view == 1) & (ann.frame == 3) & (ann.person == 0))[0]
    np.testing.assert_allclose(ann.x_img[row, 1], file[:2], atol=1e-3)  # the nose
    raw = load("custom", tmp_path, "all", {"labels": "raw"})
    assert raw.skeleton == "body25b" and len(raw) == len(ann)


def test_videos(copy, capsys):
    shutil.rmtree(copy / "images")
    shutil.rmtree(copy / "poses2d")
    for k in range(4):
        make_video(copy / "videos" / f"Cam_{k + 1}.mp4", frames=6, size=IMAGE)
    assert prepare.main(["custom", "--root", str(copy), "--step", "2"]) == 0
    assert "mine: 3 instants, 0 people, 4 views, 12 of 12 images are there\ngood" in capsys.readouterr().out
    ann = load("custom", copy, "all", {"step": 2})
    assert {p.name for p in (copy / "images/cam3").iterdir()} == {f"0000000{k}.jpg" for k in (0, 2, 4)}
    for row in range(len(ann)):
        assert round(read_image(copy / ann.image_path(row)).mean() / 20) == ann.frame[row]
    (copy / "images").rename(copy / "old")
    (copy / "videos" / "Cam_2.mp4").write_bytes(b"none")
    with pytest.raises(DataError, match="Cam_2.mp4: cannot be opened as a video"):
        load("custom", copy, "all")


def test_what_is_wrong_is_named(copy, world):
    big = cv2.resize(cv2.imread(str(copy / "images/cam1/00000000.jpg")), (100, 80))
    for k in range(4):
        cv2.imwrite(str(copy / f"images/cam1/0000000{k}.jpg"), big)
    (copy / "images/cam4/00000001.jpg").unlink()
    said = custom.check(copy)
    assert any("100 x 80 px, but the calibration of cam1 is for 96 x 80" in s for s in said)
    shutil.rmtree(copy / "images/cam2")
    assert any("camera cam2 has no pictures" in s for s in custom.check(copy))
    (copy / "images/cam3/a_00000001.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="two pictures have the number 1"):
        load("custom", copy, "all")
    (copy / "images/cam3/a_00000001.jpg").unlink()
    (copy / "images/cam_3x").mkdir()
    (copy / "images/CAM-2").mkdir()
    (copy / "images/Cam_2").mkdir()
    with pytest.raises(DataError, match="are both like camera cam2"):
        load("custom", copy, "all")
    for options, text in (({"labels": "both"}, "labels: 'both'"), ({"step": 0}, "step: 0"), ({"calibration": "x.toml"}, "expected x.toml")):
        with pytest.raises(DataError, match=text):
            load("custom", copy, "all", options)
    shutil.rmtree(copy / "images")
    (copy / "poses2d/cam1.json").write_text("{")
    with pytest.raises(DataError, match="cam1.json: neither npz"):
        load("custom", copy, "all")
    (copy / "poses2d/cam1.json").write_text(json.dumps([{"image_id": 0, "category_id": 1, "keypoints": [5, 5, 1] * 26, "score": 1}]))
    with pytest.raises(DataError, match="joints of coco17 and halpe26, expected one kind"):
        load("custom", copy, "all")
    shutil.rmtree(copy / "poses2d")
    with pytest.raises(DataError, match="no pictures or detections of the cameras cam1, cam2"):
        load("custom", copy, "all")
    (copy / "cameras.json").unlink()
    with pytest.raises(DataError, match="no calibration .*prepare.py calibration FILE --out"):
        load("custom", copy, "all")
    write_cameras(copy / "cameras.json", ["a"], world.cameras[:1])
    assert len(custom.check(copy)) == 1
    with pytest.raises(DataError, match="no such folder"):
        load("custom", copy / "x", "all")
