"""CMU Panoptic's tool-box tree and the label pickles made of it: recorded results, the embedded world, and what is wrong."""

import dataclasses
import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch

from lib.dataset import load
from lib.dataset.annotations import unmatched
from lib.dataset.formats import panoptic as layout
from lib.dataset.formats import pseudo_labels as labels
from lib.dataset.formats.multiview import observed
from lib.dataset.image import read_image
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras
from lib.synthetic.world import World
from scripts import prepare
from tests.conftest import golden, golden_json
from tests.test_format_mpi_inf_3dhp import make_video

IMAGE = (96, 80)
BAND = "160906_band1"
EVERY = {"interval": 1}


@pytest.fixture(scope="module")
def world():
    return World(split="train", frames=10, length=2, people=2, size=IMAGE)


@pytest.fixture(scope="module")
def tree(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("panoptic")
    layout.write(world.annotations(), root, "train", world.image)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    """One sequence without its images, to be damaged."""
    name = layout.TRAIN[0]
    shutil.copytree(tree / name, tmp_path / name, ignore=shutil.ignore_patterns("hdImgs"))
    return tmp_path


def test_the_picture_ends_in_the_middle_of_its_last_pixels():
    """VoxelPose's tables: visible from 0 to width - 1 and height - 1."""
    K, eye = torch.diag(torch.tensor([1000.0, 1000, 1])).double()[None], torch.eye(3).double()[None]
    camera = Cameras.make(K, eye, torch.zeros(1, 3).double(), size=torch.tensor([[96.0, 80]]))
    px = [[0, 0], [95, 79], [-0.25, 5], [95.25, 5], [5, 79.25], [5, -0.25]]
    X = np.array([[[u, v, 1000] for u, v in px]])
    everybody = np.zeros(1, int), np.zeros(1, int)
    ann = observed("panoptic15", camera, *everybody, X, np.ones((1, 6), bool), lambda frame, view: "a.jpg", "s")
    assert ann.visible[0].tolist() == [True, True, False, False, False, False] and (ann.conf == 1).all()


# --- recorded results


def test_real_frames_are_parsed_as_recorded(samples):
    g, case = golden("selfpose3d", "datasets"), golden_json("selfpose3d", "datasets")["cases"]["panoptic_parse"]
    g = {k.partition("/")[2]: v for k, v in g.items() if k.startswith("panoptic_parse/")}
    ann = load("panoptic", samples / "panoptic", "train", {"sequences": [BAND], **EVERY})
    shape = (10, 3, 15)  # frames and cameras, people, joints
    assert [n.decode() for n in ann.images] == case["image_suffix"] and ann.view.tolist() == np.repeat([0, 1, 2, 3, 4] * 2, 3).tolist()
    assert ann.skeleton == "panoptic15" and ann.subject(0) == BAND and ann.action(0) == "band"
    known = ann.X_valid[ann.pose].reshape(shape)
    np.testing.assert_array_equal(known, g["joints_3d_vis"][..., 0])
    np.testing.assert_array_equal(ann.visible.reshape(shape), g["joints_2d_vis"][..., 0])
    np.testing.assert_allclose(ann.x_img.reshape(*shape, 2)[known], g["joints_2d"][known], atol=0.02)
    np.testing.assert_allclose(ann.X_world[ann.pose].reshape(*shape, 3), g["joints_3d"], atol=1e-3)  # the table is float32
    frame, person, joints = layout.bodies(samples / "panoptic" / BAND)
    assert frame.tolist() == [168] * 3 + [169] * 3 and person.tolist() == [0, 1, 2] * 2
    exact = np.repeat(joints.reshape(2, 3, 19, 4)[:, :, :15, :3], 5, 0)
    np.testing.assert_allclose(exact[known], g["joints_3d"][known], atol=1e-6)
    cams = ann.observing(np.arange(0, 30, 3))
    np.testing.assert_allclose(cams.R, g["cam_R"], atol=1e-12)
    np.testing.assert_allclose(cams.center[..., None], g["cam_T"], atol=1e-6)
    np.testing.assert_allclose(cams.K[:, [0, 1], [0, 1]], g["cam_f"].reshape(10, 2))
    np.testing.assert_allclose(cams.K[:, :2, 2], g["cam_c"].reshape(10, 2))
    np.testing.assert_allclose(cams.dist[:, [0, 1, 4]], g["cam_k"][..., 0])
    np.testing.assert_allclose(cams.dist[:, 2:4], g["cam_p"][..., 0])


def test_pseudo_labels_are_filtered_and_mapped_as_recorded():
    g = golden("selfpose3d", "datasets")
    case = golden_json("selfpose3d", "datasets")["cases"]["pseudo_labels"]
    raw = g["pseudo_labels/coco"]
    boxes = np.repeat([case["bbox_xyxy"]], len(raw), 0)
    hard = labels.hard_labels(raw, boxes, case["thresh"])
    np.testing.assert_array_equal(hard, g["pseudo_labels/hard"])
    np.testing.assert_array_equal((hard[..., 2] > 0).sum(1), g["pseudo_labels/count"])
    for k, source in enumerate((hard, raw)):
        x, conf = labels.to_panoptic(source)
        seen = g["pseudo_labels/vis"][:, k, :, 0] > 0
        np.testing.assert_array_equal(conf > 0, seen)
        np.testing.assert_allclose(x[seen], g["pseudo_labels/joints"][:, k][seen], atol=1e-6)


def test_few_joints_are_none_and_boxes_are_clipped():
    x = np.zeros((3, 17, 3))
    x[..., :2], x[:, :4, 2] = 50, 0.5
    x[1, 3, 2] = 0.04  # three that are sure
    x[2, :2, :2] = 200  # two inside
    hard = labels.hard_labels(x, np.repeat([[0, 0, 100, 100]], 3, 0))
    assert [int((h > 0).any(-1).sum()) for h in hard] == [4, 0, 0]
    boxes = labels.clipped([[-10, 5, 50, 50], [90, 70, 20, 20], [200, 0, 10, 10]], (100, 80))
    np.testing.assert_array_equal(boxes, [[0, 5, 49, 54], [90, 70, 99, 79], [200, 0, 99, 9]])
    one = np.zeros((1, 17, 3))
    one[0, 5] = [10, 20, 0.7]  # the left shoulder alone is the neck
    points, conf = labels.to_panoptic(one)
    assert points[0, 0].tolist() == [10, 20] and conf[0, 0] == 0.7 and conf[0, 2] == 0


# --- the embedded world


def by_place(ann):
    return np.lexsort([ann.person, ann.view, ann.frame, ann.sequence])


def test_world_as_tree(tree, world):
    ann, wrote = load("panoptic", tree, "train", EVERY), world.annotations().to_skeleton("panoptic15")
    assert len(ann) == len(wrote) == 80 and layout.check(tree) == []
    assert {s.decode() for s in ann.subjects} == set(layout.TRAIN[:5])  # a name per rig
    for a, b in zip(by_place(ann), by_place(wrote), strict=True):
        joints = wrote.conf[b] > 0
        np.testing.assert_allclose(ann.x_img[a][joints], wrote.x_img[b][joints], atol=0.02)
        np.testing.assert_allclose(ann.X_world[ann.pose[a]], wrote.X_world[wrote.pose[b]], atol=1e-3)
    assert np.unique(ann.view).tolist() == [0, 1, 2, 3] and ann.fps == 29.97
    image = tree / ann.image_path(3)
    assert read_image(image).shape == (*IMAGE[::-1], 3) and image.name == "00_06_00000000.jpg"
    with pytest.raises(DataError, match="160422_ultimatum1: exists already"):
        layout.write(world.annotations(), tree, "train")
    assert not [p for p in tree.iterdir() if p.name.startswith(".")]


def test_published_names_and_numbers_are_kept(tree, tmp_path):
    ann = load("panoptic", tree, "train", EVERY).protocol(step=1)
    late = dataclasses.replace(ann, frame=ann.frame * 7 + 100, person=ann.person + 5)
    layout.write(late, tmp_path, "train")
    again = load("panoptic", tmp_path, "train", EVERY)
    for field in ("frame", "view", "person", "X_valid", "images"):
        if field != "images":
            np.testing.assert_array_equal(getattr(again, field), getattr(late, field), err_msg=field)
    assert (tmp_path / layout.TRAIN[1] / layout.POSES / "body3DScene_00000100.json").exists()
    np.testing.assert_allclose(again.X_world, ann.X_world, atol=1e-3)


def test_options(tree):
    name = layout.TRAIN[0]
    two = load("panoptic", tree, "train", {"sequences": [name], "cameras": [[0, 12], "00_03"], **EVERY})
    assert np.unique(two.view).tolist() == [0, 1] and {n.decode().split("/")[2] for n in two.images} == {"00_03", "00_12"}
    every = load("panoptic", tree, "train", {"sequences": [name], **EVERY})
    assert np.unique(every.frame).tolist() == [0, 1] and len(two) * 2 == len(every)
    assert np.unique(load("panoptic", tree, "train", {"sequences": [name]}).frame).tolist() == [0]  # every third
    with pytest.raises(DataError, match="no body with a visible mid-hip"):
        load("panoptic", tree, "train", {"min_confidence": 1.0})
    for options, said in (
        ({"sequences": ["160906_pizza9"]}, "160906_pizza9: no such sequence"),
        ({"cameras": ["00_23"]}, "has no camera 00_23, only 00_03, 00_06, 00_12, 00_13"),
        ({"cameras": ["3"]}, "cameras: '3' is no camera"),
        ({"interval": -1}, "interval: -1"),
    ):
        with pytest.raises(DataError, match=said):
            load("panoptic", tree, "train", options)
    with pytest.raises(DataError, match="has none of the sequences of valid"):
        load("panoptic", tree, "valid")
    with pytest.raises(DataError, match="has no split 'val'"):
        load("panoptic", tree, "val")
    with pytest.raises(ConfigError, match="DATASET.OPTIONS"):
        load("panoptic", tree, "train", {"step": 3})


def test_unsure_joints_are_masked_and_bodies_without_hips_are_dropped(copy):
    file = copy / layout.TRAIN[0] / layout.POSES / "body3DScene_00000000.json"
    content = json.loads(file.read_text())
    content["bodies"][0]["joints19"][4 * 2 + 3] = 0.1  # the mid-hip is not surer than the threshold
    content["bodies"][1]["joints19"][4 * 5 + 3] = 0.05
    file.write_text(json.dumps(content))
    ann = load("panoptic", copy, "train", EVERY)
    first = ann.frame == 0
    assert np.unique(ann.person[first]).tolist() == [content["bodies"][1]["id"]] and len(np.unique(ann.person[~first])) == 2
    assert ann.X_valid[ann.pose[first][0]].tolist() == [k != 5 for k in range(15)] and (ann.conf[first][:, 5] == 0).all()
    content["bodies"] = []
    file.write_text(json.dumps(content))
    assert np.unique(load("panoptic", copy, "train", EVERY).frame).tolist() == [1]
    np.testing.assert_array_equal(load("panoptic", copy, "train", EVERY).image, np.repeat([0, 1, 2, 3], 2))


def test_archive_of_poses(copy):
    folder = copy / layout.TRAIN[0]
    before = load("panoptic", copy, "train", EVERY)
    with tarfile.open(folder / f"{layout.POSES}.tar", "w") as archive:
        archive.add(folder / layout.POSES, layout.POSES)
    shutil.rmtree(folder / layout.POSES)
    np.testing.assert_array_equal(load("panoptic", copy, "train", EVERY).X_world, before.X_world)
    (folder / f"{layout.POSES}.tar").write_bytes(b"none")
    with pytest.raises(DataError, match="coco19.tar: damaged, or no tar archive"):
        load("panoptic", copy, "train")


def test_what_is_wrong_is_named(copy, tree):
    folder = copy / layout.TRAIN[0]
    file = folder / layout.POSES / "body3DScene_00000000.json"
    good = file.read_text()
    for text, said in (
        ("{", "body3DScene_00000000.json: not a pose file"),
        ("[]", "not a pose file"),
        ('{"bodies": [{"id": 0}]}', "no 'joints19'"),
        ('{"bodies": [{"id": 0, "joints19": [1, 2]}]}', "holds 2 numbers, expected 76"),
        (good.replace('"id": 0', '"id": 99999999999999999999'), "too large"),
        (good.replace("[", "[NaN, ", 2).replace("[NaN, ", "[", 1), "joints19"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=said):
            load("panoptic", copy, "train")
    file.write_text(good)
    calibration = folder / f"calibration_{folder.name}.json"
    text = calibration.read_text()
    calibration.write_text(text.replace('"distCoef"', '"dist"'))
    with pytest.raises(DataError, match="calibration_.*json: not a calibration"):
        load("panoptic", copy, "train")
    assert len(layout.check(copy)) == 1
    calibration.unlink()
    with pytest.raises(DataError, match="calibration_.*json: cannot be read"):
        load("panoptic", copy, "train")
    calibration.write_text(text)
    assert "images are missing" in layout.check(copy)[0]
    for path in (folder / layout.POSES).iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds no body3DScene"):
        load("panoptic", copy, "train")
    (folder / layout.POSES).rmdir()
    with pytest.raises(DataError, match="has neither hdPose3d_stage1_coco19/ nor"):
        load("panoptic", copy, "train")
    assert layout.check(copy / "x")[0].endswith("set the root to their parent")


def test_videos_become_images(copy, capsys):
    name = layout.TRAIN[0]
    for camera in layout.CAMERAS[:4]:
        make_video(copy / name / "hdVideos" / f"hd_{camera}.mp4", size=IMAGE)
    words = ["panoptic", "--root", str(copy), "--splits", "train", "--interval", "1"]
    assert prepare.main(words) == 0
    said = capsys.readouterr().out
    assert f"{name}: 2 instants, 2 people, 4 views, 8 of 8 images are there" in said
    ann = load("panoptic", copy, "train", EVERY)
    for i, path in enumerate(ann.images):
        assert round(read_image(copy / path.decode()).mean() / 20) == i // 4
    (copy / name / "hdImgs/00_13/00_13_00000001.jpg").unlink()
    (copy / name / "hdVideos/hd_00_13.mp4").unlink()
    assert prepare.main(words) == 2
    assert "hd_00_13.mp4: no such video, but 1 frames" in capsys.readouterr().err
    assert prepare.main(["panoptic", "--root", str(copy / "x")]) == 1


# --- label pickles


def test_pickle_with_3d_both_ways(tree, tmp_path):
    ann = load("panoptic", tree, "train", EVERY)
    labels.write(ann, tmp_path, "group_train_cam4_sub", form="pickle", interval=3)
    content = pickle.loads((tmp_path / "group_train_cam4_sub.pkl").read_bytes())
    assert content["interval"] == 3 and content["cam_list"] == [(0, 3), (0, 6), (0, 12), (0, 13)] and len(content["db"]) == len(ann.images)
    record = content["db"][1]
    assert record["key"] == f"{layout.TRAIN[0]}_00_06_00000000" and len(record["joints_3d"]) == 2
    assert record["camera"]["T"].shape == (3, 1) and record["camera"]["k"].shape == (3, 1)
    again = load("pseudo_labels", tmp_path, "group_train_cam4_sub")
    for field in ("frame", "view", "person", "pose", "visible", "X_valid", "images", "subjects"):
        np.testing.assert_array_equal(getattr(again, field), getattr(ann, field), err_msg=field)
    np.testing.assert_allclose(again.x_img[again.visible], ann.x_img[ann.visible])
    x = again.observing().project(torch.from_numpy(again.X_world[again.pose]).double())[0].numpy()
    assert np.abs(x - again.x_img)[again.visible].max() < 0.01
    with pytest.raises(DataError, match="group_train_cam4_sub.pkl: exists already"):
        labels.write(ann, tmp_path, "group_train_cam4_sub", form="pickle")


@pytest.mark.parametrize("form", ["pickle", "npz"])
def test_pseudo_labels_both_ways(tree, tmp_path, form):
    ann = load("panoptic", tree, "train", EVERY)
    nobody = ann.image == 5
    ann = unmatched(ann)
    ann = dataclasses.replace(ann, conf=(ann.visible & ~nobody[:, None]).astype(np.float32), visible=ann.visible & ~nobody[:, None])
    person = np.tile([0, 1], len(ann) // 2)
    ann = dataclasses.replace(ann, person=np.where(nobody, -1, person).astype(np.int32))
    ann = ann.select(~nobody | (np.cumsum(nobody) == 1))
    labels.write(ann, tmp_path, "group_train_cam4_pseudo", form=form)
    again = load("pseudo_labels", tmp_path, "group_train_cam4_pseudo")
    for field in ("sequence", "frame", "view", "person", "image", "pose", "conf", "visible"):
        np.testing.assert_array_equal(getattr(again, field), getattr(ann, field), err_msg=field)
    assert (again.pose == -1).all() and (again.person == -1).sum() == 1 and len(again.X_world) == 0
    seen = again.conf > 0
    np.testing.assert_allclose(again.x_img[seen], ann.x_img[seen])
    np.testing.assert_allclose(again.box[again.person >= 0], ann.box[ann.person >= 0], atol=1e-3)
    assert len(again.images) == len(ann.images)
    assert "images are missing" in labels.check(tmp_path)[0]


def test_published_form_of_records(tmp_path):
    """Keys without an image name, cameras without f and c, lists for arrays."""
    camera = {"R": np.eye(3).tolist(), "T": [[0], [0], [0]], "fx": 100.0, "fy": 100.0, "cx": 50.0, "cy": 40.0, "k": [0] * 3, "p": [0] * 2}
    record = {
        "key": "160906_band1_00_03_00000168", "image": "./data/panoptic/x.jpg", "camera": camera, "height": 80, "width": 100,
        "joints_2d": [np.full((15, 2), 30.0)], "joints_2d_vis": [np.ones((15, 2), bool)], "bboxes": [[20, 20, 30, 40]],
    }  # fmt: skip
    path = tmp_path / "g.pkl"
    path.write_bytes(pickle.dumps({"interval": 3, "cam_list": [], "sequence_list": [], "db": [record]}))
    ann = load("pseudo_labels", tmp_path, "g")
    assert ann.images.tolist() == [b"160906_band1/hdImgs/00_03/00_03_00000168.jpg"] and ann.box.tolist() == [[20, 20, 50, 60]]
    assert ann.cameras.size.tolist() == [[100, 80]] and ann.frame.tolist() == [168]
    for change, said in (
        ({"key": "x", "image": "y"}, "not label records"),
        ({"joints_2d": [np.zeros((17, 2))]}, "not label records"),
        ({"joints_2d_vis": []}, "different numbers of people"),
        ({"joints_2d": [np.full((15, 2), np.nan)]}, "joints_2d is not finite"),
        ({"camera": {**camera, "R": np.ones((3, 3))}}, "not a rotation"),
        ({"camera": {}}, "not label records"),
    ):
        path.write_bytes(pickle.dumps({"db": [{**record, **change}]}))
        with pytest.raises(DataError, match=said):
            load("pseudo_labels", tmp_path, "g")
    path.write_bytes(pickle.dumps({"db": []}))
    with pytest.raises(DataError, match="g.pkl: not label records"):
        load("pseudo_labels", tmp_path, "g")
    path.write_bytes(pickle.dumps({"db": os.system}))
    with pytest.raises(DataError, match="wants to call posix.system"):
        load("pseudo_labels", tmp_path, "g")
    with pytest.raises(DataError, match="has neither h.npz nor h.pkl"):
        load("pseudo_labels", tmp_path, "h")
    (tmp_path / "h.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="h.npz: not an annotation table"):
        load("pseudo_labels", tmp_path, "h")


def results(ann, wide=1.0):
    """COCO results of a detector that sees what is visible."""
    coco = ann.to_skeleton("coco17")
    seen = coco.conf * coco.visible
    box = np.stack([ann.box[:, 0], ann.box[:, 1], *(ann.box[:, 2:] - ann.box[:, :2]).T * wide], 1)
    rows = np.flatnonzero(seen.any(1) & np.isfinite(box).all(1))
    return rows, [
        {"image_id": int(ann.image[r]), "category_id": 1, "keypoints": np.column_stack([coco.x_img[r], 0.8 * seen[r]]).ravel().tolist(),
         "score": 0.9, "bbox": box[r].tolist()}
        for r in rows
    ]  # fmt: skip


def test_labels_from_a_detector(copy, capsys):
    ann = load("panoptic", copy, "train", EVERY)
    rows, entries = results(ann)
    entries = [e for e in entries if e["image_id"] != 5] + [{**entries[0], "bbox": [5, 5, 0, 10]}]
    file, words = copy / "results.json", ["pseudo_labels", "--root", str(copy), "--interval", "1"]
    file.write_text(json.dumps(entries))
    assert prepare.main([*words, "--list", str(copy / "images.json")]) == 0
    listed = json.loads((copy / "images.json").read_text())
    assert [i["file_name"] for i in listed["images"]] == [n.decode() for n in ann.images] and listed["images"][0]["width"] == IMAGE[0]
    for kind in ("soft", "hard"):
        assert prepare.main([*words, "--detections", str(file), "--kind", kind]) == 0
        made = load("pseudo_labels", copy, f"group_train_pseudo_{kind}")
        people = made.person >= 0
        rows5 = rows[ann.image[rows] != 5]
        assert people.sum() == len(rows5) and made.image[~people].tolist() == [5] and (made.pose == -1).all()
        np.testing.assert_array_equal(made.image[people], ann.image[rows5])
        assert set(made.conf[made.conf > 0].astype(float).round(3).tolist()) == {0.8 if kind == "soft" else 1.0}
        wrists = [5, 11]
        seen = made.conf[people][:, wrists] > 0
        assert seen.mean() > 0.5
        np.testing.assert_allclose(made.x_img[people][:, wrists][seen], ann.x_img[rows5][:, wrists][seen], atol=1e-4)
    assert "nobody in 1 of them" in capsys.readouterr().out
    assert prepare.main([*words, "--detections", str(file), "--form", "pickle", "--out", "group_x"]) == 0
    assert len(load("pseudo_labels", copy, "group_x")) == len(made)
    assert prepare.main([*words, "--detections", str(file)]) == 2
    assert "group_train_pseudo_soft.npz: exists already" in capsys.readouterr().err
    named = [{**e, "image_id": "/data/" + ann.images[e["image_id"]].decode()} for e in entries]
    file.write_text(json.dumps(named))
    found = labels.labels_of(ann, labels.read_people(ann, file))
    np.testing.assert_array_equal(found.x_img, load("pseudo_labels", copy, "group_train_pseudo_soft").x_img)
    for content, said in (
        ([{**entries[0], "image_id": 99}], "picture 99, which is not in the list"),
        ([{**entries[0], "keypoints": [1, 2]}], "no COCO results"),
        ([{**entries[0], "bbox": [1, 2, 3]}], "no COCO results"),
        ([{"image_id": 0}], "no 'keypoints'"),
        ({}, None),
        ([1], "no COCO results"),
    ):
        file.write_text(json.dumps(content))
        if said is None:
            nobody = labels.read_people(ann, file)
            assert (labels.labels_of(ann, nobody).person == -1).all()
            continue
        with pytest.raises(DataError, match=said):
            labels.read_people(ann, file)
    with pytest.raises(DataError, match="none.json: cannot be read"):
        labels.read_people(ann, copy / "none.json")
    with pytest.raises(DataError, match="kind 'raw'"):
        labels.labels_of(ann, nobody, "raw")


def test_what_cannot_be_written(world, tmp_path):
    ann = world.annotations()
    with pytest.raises(DataError, match="has no place among Panoptic's labels"):
        labels.write(ann, tmp_path, "x", form="pickle")
    with pytest.raises(DataError, match="form 'json'"):
        labels.write(ann, tmp_path, "x", form="json")
    with pytest.raises(DataError, match="split 'all' has no place"):
        layout.write(ann, tmp_path, "all")
    with pytest.raises(DataError, match="without 3D or image"):
        layout.write(unmatched(ann), tmp_path, "train")
    moving = dataclasses.replace(ann, camera=((ann.frame + ann.camera) % len(ann.cameras)).astype(np.int32))
    with pytest.raises(DataError, match="a camera of sequence 0 moves"):
        layout.write(moving, tmp_path, "train")
    assert list(tmp_path.iterdir()) == []
