"""COCO's layout: real people, what is left out, boxes, writing and reading back, damaged files."""

import json

import numpy as np
import pytest

from lib.config import defaults
from lib.dataset import load
from lib.dataset.annotations import without_3d
from lib.dataset.formats import coco
from lib.dataset.image import ImageSpec, read_image
from lib.dataset.samples import CropSamples
from lib.errors import DataError
from lib.skeleton import get
from lib.synthetic.world import World
from lib.tasks import prepare
from lib.tasks.data import in_proportion
from lib.tasks.world import ensure_native

NAME = "person_keypoints_val2017.json"


@pytest.fixture
def real(samples, tmp_path):
    """Two published images with four people as a tree; one of the four has no joints."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(samples / "coco")
    (tmp_path / "annotations" / NAME).write_text((samples / "coco" / "test_coco.json").read_text())
    return tmp_path


def person(number=1, **fields):
    joints = [[20 + 2 * j, 30 + j, 2] for j in range(17)]
    plain = {"id": number, "image_id": 7, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "area": 900.0}
    return plain | {"bbox": [10, 20, 40, 60], "keypoints": np.ravel(joints).tolist()} | fields


def tree(root, people, name=NAME, **fields):
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": 7, "file_name": "000000000007.jpg", "width": 200, "height": 100}]
    (root / "annotations" / name).write_text(json.dumps({"images": images, "annotations": people} | fields))
    return root


def test_real_people(real):
    ann = load("coco", real, "val")
    people = json.loads((real / "annotations" / NAME).read_text())["annotations"]
    assert ann.skeleton == "coco17" and len(ann) == 3 and coco.check(real) == [] and len(load("coco", real, "val2017")) == 3
    for row, found in enumerate(people[:3]):  # the fourth has no joints
        points = np.reshape(found["keypoints"], (17, 3))
        assert ((ann.conf[row] > 0) == (points[:, 2] > 0)).all() and (ann.visible[row] == (points[:, 2] == 2)).all()
        known = points[:, 2] > 0
        assert np.array_equal(ann.x_img[row][known], points[known, :2]) and (ann.x_img[row][~known] == 0).all()
        height, width = read_image(real / ann.image_path(row)).shape[:2]
        assert (ann.x_img[row] < [width, height]).all()
    assert not ann.visible[1].all() and (ann.visible[1] != (ann.conf[1] > 0)).sum() == 3  # hidden, but labelled
    assert ann.image.tolist() == [0, 1, 1] and ann.person.tolist() == [0, 0, 1]
    assert (ann.camera == -1).all() and (ann.pose == -1).all()


def test_crops_of_real_people(real):
    spec = ImageSpec((48, 64))
    batch = CropSamples(in_proportion(defaults(), load("coco", real, "val"), spec), real, spec).__getitems__([0, 1, 2])
    assert batch["has_depth"].tolist() == [0, 0, 0] and (batch["image"].float().std((1, 2, 3)) > 10).all()
    x = batch["x_patch"][batch["valid"] > 0][:, :2]
    assert (x > 1).all() and (x[:, 0] < 47).all() and (x[:, 1] < 63).all()


def test_joints_of_mpii_that_coco_lacks_are_masked(real):
    path, hips, names = real / "annotations" / NAME, get("coco17").indices(["l_hip", "r_hip"]), get("mpii16")
    content = json.loads(path.read_text())
    content["annotations"][2]["keypoints"][3 * hips[0] + 2] = 0
    path.write_text(json.dumps(content))
    raw, ann = load("coco", real, "val"), load("coco", real, "val", skeleton="mpii16")
    assert (ann.conf[:, names.indices(["upper_neck", "head"])] == 0).all()
    pelvis, thorax = names.indices(["pelvis", "thorax"])
    assert ann.conf[:, pelvis].tolist() == [1, 1, 0] and ann.conf[:, thorax].tolist() == [1, 1, 1]
    assert ann.visible[:, pelvis].tolist() == [True, False, False]  # both hips of the second person are hidden
    np.testing.assert_allclose(ann.x_img[0, pelvis], raw.x_img[0, hips].mean(0))


def test_boxes_are_cut_off_at_the_image_then_widened_to_the_shape_of_the_crop(tmp_path):
    people = [person(), person(2, bbox=[150, -20, 100, 80])]
    tree(tmp_path, people)
    ann = coco.read(tmp_path, "val")
    for row, center, size in ((0, [29.5, 49.5], [39, 59]), (1, [174.5, 29.5], [49, 59])):  # 10..49 by 20..79, 150..199 by 0..59
        half = 1.25 / 2 * np.array(size)
        np.testing.assert_allclose(ann.box[row], [*(center - half), *(center + half)], rtol=1e-6)
    tall, square = (in_proportion(defaults(), ann, ImageSpec(shape)).box[0] for shape in ((48, 64), (64, 64)))
    np.testing.assert_allclose(tall[2:] - tall[:2], [1.25 * 0.75 * 59, 1.25 * 59], rtol=1e-6)
    np.testing.assert_allclose(square[2:] - square[:2], [1.25 * 59, 1.25 * 59], rtol=1e-6)


def test_who_is_left_out(tmp_path):
    others = [
        person(2, iscrowd=1, keypoints=[0] * 51),
        person(3, num_keypoints=0),
        person(4, keypoints=[0] * 51),
        person(5, area=0),
        person(6, bbox=[500, 500, 30, 30]),
        person(7, category_id=3),
    ]
    tree(tmp_path, [*others, person(8, bbox=[10, 20, 50, 60])])
    ann = load("coco", tmp_path, "val")
    assert len(ann) == 1 and ann.box[0, 0] + ann.box[0, 2] == 2 * 34.5
    tree(tmp_path, others)
    with pytest.raises(DataError, match=f"{NAME}: none of 4 people has joints and a box"):
        load("coco", tmp_path, "val")


def test_files_and_folders_of_other_names(tmp_path):
    tree(tmp_path, [person()], "person_keypoints_mine.json")
    assert load("coco", tmp_path, "mine").image_path(0) == "mine/000000000007.jpg"
    assert load("coco", tmp_path, "mine", {"images": "pictures/all"}).image_path(0) == "pictures/all/000000000007.jpg"
    with pytest.raises(DataError, match="no split 'val' .person_keypoints_val2017.json., only mine"):
        load("coco", tmp_path, "val")
    assert "no person_keypoints_" in coco.check(tmp_path / "nowhere")[0]
    assert "1 of 1 images are missing" in coco.check(tmp_path)[0]


DAMAGED = [
    ({"keypoints": [1, 2, 2]}, r"annotation 1: 'keypoints' is \[1, 2, 2\], expected 51 finite numbers"),
    ({"keypoints": ["x"] * 51}, "annotation 1: 'keypoints'"),
    ({"bbox": [1, 2, 3]}, r"annotation 1: 'bbox' is \[1, 2, 3\], expected 4"),
    ({"bbox": [1, 2, None, 4]}, "annotation 1: 'bbox'"),
    ({"area": "big"}, "annotation 1: 'area' is big, expected a finite number"),
    ({"image_id": 9}, "annotation 1 is of image 9, which 'images' lacks"),
    ({"image_id": [7]}, r"annotation 1 is of image \[7\]"),
]


@pytest.mark.parametrize("fields, message", DAMAGED)
def test_damaged_people_are_named(tmp_path, fields, message):
    tree(tmp_path, [person(**fields), person(2)])
    with pytest.raises(DataError, match=f"{NAME}: {message}"):
        load("coco", tmp_path, "val")
    assert coco.check(tmp_path)[0].startswith(str(tmp_path))


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "cannot be read as JSON"),
        ("[]", "'images' is NoneType"),
        ('{"images": [], "annotations": []}', "'images' is list of 0"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "'annotations' is NoneType"),
        ('{"images": [{"id": 1}], "annotations": [{}]}', "image 0 has file_name None and id 1"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{}]}', "image 1: 'width' is None"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    tree(tmp_path, [])
    (tmp_path / "annotations" / NAME).write_text(text)
    with pytest.raises(DataError, match=f"{NAME}: {message}"):
        load("coco", tmp_path, "val")


def test_other_joints_are_refused(tmp_path):
    joints = [j.replace("l_", "left_").replace("r_", "right_") for j in get("coco17").joints]
    category = {"id": 1, "name": "person", "keypoints": joints}
    assert len(load("coco", tree(tmp_path, [person()], categories=[category]), "val")) == 1
    tree(tmp_path, [person()], categories=[category | {"keypoints": joints[::-1]}])
    with pytest.raises(DataError, match="a person's keypoints are .'right_ankle'"):
        load("coco", tmp_path, "val")


def test_written_and_read_back(tmp_path):
    world = World(split="pretrain", frames=3, size=(96, 96), people=2)
    table = world.annotations()
    table.x_img[0] -= [20, 0]  # to joints outside of the image
    wrote = table.to_skeleton("coco17")
    coco.write(table, tmp_path, "val", world.image)
    ann = load("coco", tmp_path, "val")
    assert len(ann) == len(wrote) == 6 and coco.check(tmp_path) == []
    inside = (wrote.conf > 0) & (wrote.x_img >= 0).all(-1) & (wrote.x_img <= 95).all(-1)
    assert inside.any() and not inside[0, 5:].all() and ((ann.conf > 0) == inside).all()
    assert np.abs(ann.x_img - wrote.x_img)[inside].max() < 1e-3 and (ann.visible == (wrote.visible & inside)).all()
    for i, name in enumerate(ann.images):
        assert np.abs(read_image(tmp_path / name.decode()).astype(int) - world.image(i)).mean() < 6
    x = np.where(inside[..., None], wrote.x_img, np.nan)
    low, high = np.nanmin(x, 1), np.nanmax(x, 1)
    np.testing.assert_allclose((ann.box[:, :2] + ann.box[:, 2:]) / 2, (low + high) / 2, atol=1e-2)
    np.testing.assert_allclose(ann.box[:, 2:] - ann.box[:, :2], 1.25 * (high - low), rtol=1e-3)
    with pytest.raises(DataError, match="exists already"):
        coco.write(wrote, tmp_path, "val")


def test_sizes_of_images_without_a_camera(tmp_path):
    world = World(split="pretrain", frames=2, size=(80, 64))
    ann = without_3d(world.annotations())
    with pytest.raises(DataError, match="train2017/000000000001.jpg: its size is unknown"):
        coco.write(ann, tmp_path, "train")
    assert not (tmp_path / "annotations" / "person_keypoints_train2017.json").exists()
    coco.write(ann, tmp_path, "train", world.image)
    content = json.loads((tmp_path / "annotations" / "person_keypoints_train2017.json").read_text())
    assert {(i["width"], i["height"]) for i in content["images"]} == {(80, 64)}
    again = load("coco", tmp_path, "train")
    (tmp_path / "annotations" / "person_keypoints_train2017.json").unlink()
    coco.write(again, tmp_path, "train")  # of the images that are there
    assert np.array_equal(load("coco", tmp_path, "train").x_img, again.x_img)


def test_train_and_val_of_the_world_are_different_people(tmp_path):
    assert ensure_native("coco", tmp_path, pretrain=6, valid=4, size=(64, 64), workers=1) == ["train", "val"]
    train, val = (load("coco", tmp_path, s) for s in ("train", "val"))
    assert len(train) == 6 and len(val) == 4
    said, counts = prepare.check("coco", tmp_path)
    assert said == [] and "train2017: 6" in counts and "val2017: 4" in counts
    assert not np.isclose(train.x_img[:4, 11:13], val.x_img[:, 11:13], atol=0.01).all((1, 2)).any()
