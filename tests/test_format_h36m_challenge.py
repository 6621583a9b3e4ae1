"""The challenge's layout: round trip, 2D labels laid over a network's joints, damaged files."""

import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib import skeleton
from lib.dataset import load
from lib.dataset.formats import files, h36m_challenge
from lib.dataset.image import read_image
from lib.errors import DataError
from lib.synthetic.world import World

SIZE = (64, 48)


@pytest.fixture(scope="module")
def world() -> World:
    return World(split="valid", frames=2, size=SIZE)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("challenge")
    for split in ("valid", "test"):
        h36m_challenge.write(world.annotations(), root, split, world.image)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "challenge")


def camera_poses(ann) -> np.ndarray:
    """(N,17,3) mm relative to the root, in camera axes."""
    cameras = ann.cameras[torch.from_numpy(ann.camera).long()]
    X = cameras.to_cam(torch.from_numpy(ann.X_world[ann.pose]).double())
    return (X - X[:, :1]).numpy()


def seen(ann) -> np.ndarray:
    cameras = ann.cameras[torch.from_numpy(ann.camera).long()]
    return cameras.project(torch.from_numpy(ann.X_world[ann.pose]).double())[0].numpy()


def test_poses_and_images_survive(world, made):
    wrote, got = world.annotations(), load("h36m_challenge", made, "valid")
    assert np.allclose(camera_poses(got), camera_poses(wrote), atol=1e-3)
    assert np.allclose(got.X_world, camera_poses(wrote), atol=1e-3)
    assert got.image_path(3) == "Val/IMG/00004.jpg" and got.frame.tolist() == list(range(1, 9))
    assert np.abs(read_image(made / got.image_path(3)).astype(int) - world.image(3)).mean() < 8
    test = h36m_challenge.read(made, "test").check("test")
    assert len(test) == 8 and len(test.X_world) == 0 and test.box[0].tolist() == [-0.5, -0.5, 63.5, 47.5]
    assert h36m_challenge.check(made) == []


def test_without_2d_the_pose_fills_the_image_and_has_no_2d_label(made):
    ann = h36m_challenge.read(made, "valid")
    assert not ann.conf.any() and ann.X_valid.all()
    middle, side = (ann.box[:, :2] + ann.box[:, 2:]) / 2, ann.box[:, 2:] - ann.box[:, :2]
    assert np.allclose(middle, [31.5, 23.5], atol=1e-3) and np.allclose(side, 48, atol=1e-3)
    extent = (ann.x_img.max(1) - ann.x_img.min(1)).max(1)
    assert np.allclose(extent, 48 / 1.25, atol=1e-3)
    assert np.allclose(seen(ann), ann.x_img, atol=0.2)  # px: the camera is far away


def test_laid_over_2d_joints(world, root):
    wrote = world.annotations()
    flat = camera_poses(wrote)[..., :2]
    scale, turn, shift = np.array([0.02, 0.03]), np.radians([5, -20]), np.array([[30.0, 20.0], [10.0, 25.0]])
    R = np.stack([np.stack([np.cos(turn), -np.sin(turn)], -1), np.stack([np.sin(turn), np.cos(turn)], -1)], 1)
    x = scale[:, None, None] * np.einsum("nij,nkj->nki", R, flat[:2]) + shift[:, None]
    x_img = np.concatenate([x, np.full((6, 17, 2), np.nan)])
    mpii, _ = skeleton.convert(x_img, "h36m17", "mpii16")
    conf = np.zeros((8, 16))
    conf[:2] = 1
    conf[0, 0], mpii[0, 0] = 0.1, 500  # a joint that is not trusted
    np.savez(root / "2d.npz", x_img=mpii, conf=conf, skeleton="mpii16")
    ann = h36m_challenge.read(root, "valid", keypoints="2d.npz")
    assert np.allclose(ann.x_img[:2], x, atol=1e-3)
    assert ann.conf[:2].all() and not ann.conf[2:].any()
    assert np.allclose(seen(ann)[:2], x, atol=0.2)
    shutil.copy(root / "2d.npz", root / "of-valid.npz")
    assert np.array_equal(h36m_challenge.read(root, "valid", keypoints="of-{split}.npz").x_img, ann.x_img)
    x_cam = ann.cameras[torch.arange(2)].to_cam(torch.from_numpy(ann.X_world[:2]).double())
    assert np.allclose(x_cam[..., 2] - x_cam[:, :1, 2], camera_poses(wrote)[:2, :, 2], atol=1e-3)  # depth is not touched
    np.savez(root / "2d.npz", x_img=mpii[:3], conf=conf, skeleton="mpii16")
    with pytest.raises(DataError, match=r"x_img has shape \(3, 16, 2\)"):
        h36m_challenge.read(root, "valid", keypoints="2d.npz")
    with pytest.raises(DataError, match="none.npz: not a file of 2D joints"):
        h36m_challenge.read(root, "valid", keypoints="none.npz")


@pytest.mark.parametrize(("extent", "expected"), [((545, 509), 908), ((783, 339), 1305), ((448, 197), 747), ((900, 900), 1400)])
def test_boxes_leave_the_room_that_the_published_ones_do(tmp_path, extent, expected):
    """The extent of the joints, widened to 288 / 384, times 1.25, then the square, no larger than the image."""
    for folder in ("POSE", "IMG"):
        (tmp_path / "Val" / folder).mkdir(parents=True)
    pose = np.zeros((17, 3))
    pose[1:5, :2] = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]]) * np.array(extent) / 2
    np.savetxt(tmp_path / "Val" / "POSE" / "00001.csv", pose, delimiter=",")
    cv2.imwrite(str(tmp_path / "Val" / "IMG" / "00001.jpg"), np.zeros((1000, 1400, 3), np.uint8))
    np.savez(tmp_path / "2d.npz", x_img=pose[None, :, :2] + [700, 500], conf=np.ones((1, 17)), skeleton="h36m17")
    box = h36m_challenge.read(tmp_path, "valid", keypoints="2d.npz").box[0]
    assert (box[:2] + box[2:]) / 2 == pytest.approx([700, 500], abs=0.01)
    assert box[2:] - box[:2] == pytest.approx([expected] * 2, abs=1)


def published_cache(root: Path, ann, x: np.ndarray, boxes: np.ndarray) -> Path:
    """What Integral's program leaves of x (N,17,2) px and boxes (N,4) center_x center_y width height: 18 joints, mm, px."""
    folder = root / "cache" / "HM36_eccv_challenge_Val_cache"
    folder.mkdir(parents=True)
    X = np.concatenate([ann.X_world, ann.X_world[:, 11:12]], 1)
    joints = np.concatenate([x, x[:, 11:12]], 1)
    records = []
    for i in range(len(ann)):
        box = dict(zip(("center_x", "center_y", "width", "height"), boxes[i].tolist(), strict=True))
        both = {"joints_3d": np.concatenate([joints[i], X[i, :, 2:]], 1), "joints_3d_relative": X[i], "joints_3d_vis": np.ones((18, 3))}
        records.append({"image": "somewhere.jpg", "bone_len": 4500.0, "flip_pairs": np.array([[3, 6]])} | both | box)
    path = folder / "HM36_eccv_challenge_Val_w288xh384_keypoint_jnt_bbox_db.pkl"
    path.write_bytes(pickle.dumps(records, protocol=2))
    return path


def test_the_published_cache_has_poses_2d_joints_and_boxes(root):
    ann = h36m_challenge.read(root, "valid")
    turned = np.exp(0.2j) * 0.03 * (ann.X_world[..., 0] + 1j * ann.X_world[..., 1]) + (30 + 20j)
    x = np.stack([turned.real, turned.imag], -1)
    boxes = np.array([[30.0, 20.0, 30.0, 40.0], [31.0, 22.0, 90.0, 50.0]] * 4)
    path = published_cache(root, ann, x, boxes)
    shutil.rmtree(root / "Val" / "POSE")
    got = load("h36m_challenge", root, "valid", {"cache": "cache"})
    assert np.allclose(got.X_world, ann.X_world, atol=1e-3) and np.array_equal(got.images, ann.images)
    assert np.allclose(got.x_img, x, atol=1e-3) and (got.conf == 1).all()
    assert got.box[:2].tolist() == [[10, 0, 50, 40], [31 - 32, 22 - 32, 31 + 32, 22 + 32]]  # the second at most as large as the image
    assert np.allclose(seen(got), x, atol=0.2)
    cameras = got.cameras
    px_per_mm = cameras.K[:, 0, 0] / cameras.t[:, 2]
    assert np.allclose(px_per_mm, 0.03, atol=1e-6)  # so that depth, in px as in the cache, is 0.03 z
    with pytest.raises(DataError, match="leave one of the two out"):
        h36m_challenge.read(root, "valid", keypoints="2d.npz", cache="cache")
    records = pickle.loads(path.read_bytes())
    for wrong, message in (
        ([], "of no records"),
        ([{**records[0], "joints_3d": np.zeros((17, 3))}], r"joints_3d has shape \(1, 17, 3\)"),
        ([{k: v for k, v in records[0].items() if k != "width"}], "do not all have .*width"),
        ([3], "do not all have"),
    ):
        path.write_bytes(pickle.dumps(wrong, protocol=2))
        with pytest.raises(DataError, match=message):
            h36m_challenge.read(root, "valid", cache="cache")


@pytest.mark.filterwarnings("ignore:loadtxt")
def test_damage_is_told(world, root):
    path = root / "Val" / "POSE" / "00002.csv"
    good = path.read_text()
    for text, message in (
        ("", "00002.csv: (holds 0 rows|cannot be read)"),
        ("1,2,3\n" * 16, "00002.csv: holds 16 rows"),
        ("a,b,c\n" * 17, "00002.csv: cannot be read as numbers"),
        ("nan,2,3\n" * 17, "finite"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            h36m_challenge.read(root, "valid")
        assert "00002.csv" in h36m_challenge.check(root, "valid")[0]
    path.write_text(good)
    metres = np.loadtxt(path, delimiter=",") / 1000
    for number in range(1, 9):
        np.savetxt(root / "Val" / "POSE" / f"{number:05d}.csv", metres + [1, 2, 3], delimiter=",")
    (root / "Val" / "IMG" / "00003.jpg").unlink()
    said = "\n".join(h36m_challenge.check(root, "valid"))
    assert "(metres?)" in said and "1 of 8 images are missing" in said and "relative to it" in said
    with pytest.raises(DataError, match="exists already"):
        h36m_challenge.write(world.annotations(), root, "valid")
    with pytest.raises(DataError, match=r"Train/POSE: no files like 00001.csv"):
        h36m_challenge.read(root, "train")
    with pytest.raises(DataError, match="row 0 has no complete pose"):
        h36m_challenge.write(World(split="pretrain", frames=1, size=SIZE).annotations(), root, "train")
    assert "none of the folders" in h36m_challenge.check(root / "Val")[0]


def test_sizes_of_images(tmp_path):
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((30, 50, 3), np.uint8))
        assert files.image_size(tmp_path / name) == (50, 30)
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:10])
    assert files.image_size(tmp_path / "c.jpg") == files.image_size(tmp_path / "none.jpg") == (0, 0)
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\0" + b"\xff" * 30)  # a segment without even its length would be read forever
    assert files.image_size(tmp_path / "d.jpg") == (0, 0)


def test_sizes_of_real_images(samples):
    for path in (samples / "h36m").rglob("*.jpg"):
        image = cv2.imread(str(path))
        assert files.image_size(path) == (image.shape[1], image.shape[0])
