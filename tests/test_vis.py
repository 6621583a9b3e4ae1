"""Pictures: they show what they are given, where it belongs, and are written whole or not at all."""

import json
import os

import cv2
import numpy as np
import pytest
import torch

from lib import vis
from lib.dataset.image import read_image
from lib.errors import GeometryError, RunError
from lib.skeleton import SKELETONS, get

H36M = get("h36m17")


def standing() -> np.ndarray:
    """A standing pose in camera axes (y down): the right side at negative x.   (17, 3) mm"""
    x = {"hip": 130, "knee": 140, "ankle": 140, "shoulder": 170, "elbow": 250, "wrist": 270}
    y = {"pelvis": 0, "hip": 0, "knee": 430, "ankle": 870, "spine": -240, "thorax": -490, "nose": -580, "head": -700}
    y |= {"shoulder": -480, "elbow": -210, "wrist": 30}
    pose = np.zeros((17, 3))
    for j, name in enumerate(H36M.joints):
        part = name.removeprefix("l_").removeprefix("r_")
        pose[j, :2] = x.get(part, 0) * (-1 if name.startswith("r_") else 1), y[part]
    return pose


def color_at(image, x, y) -> np.ndarray:
    return image[round(float(y)), round(float(x))].astype(int)


def close(a, b, tolerance=60) -> bool:
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= tolerance


# --- 2D


def test_overlay_paints_the_sides_at_their_joints_and_nothing_elsewhere():
    image = np.full((400, 400, 3), 200, np.uint8)
    x = standing()[:, :2] / 5 + 200
    out = vis.draw_skeleton_2d(image, x, H36M)
    for side, color in (("l", vis.LEFT), ("r", vis.RIGHT)):
        thigh = (x[H36M.index(f"{side}_hip")] + x[H36M.index(f"{side}_knee")]) / 2
        assert close(color_at(out, *thigh), color)
    assert (image == 200).all()
    far = np.ones((400, 400), bool)
    far[int(x[:, 1].min()) - 20 : int(x[:, 1].max()) + 20, int(x[:, 0].min()) - 20 : int(x[:, 0].max()) + 20] = False
    assert (out[far] == 200).all()


def test_overlay_leaves_out_joints_without_confidence_or_place():
    image = np.full((300, 300, 3), 90, np.uint8)
    x = np.full((17, 2), np.nan)
    assert (vis.draw_skeleton_2d(image, x, H36M) == image).all()
    x[:] = standing()[:, :2] / 7 + 150
    assert (vis.draw_skeleton_2d(image, x, H36M, conf=np.zeros(17)) == image).all()
    x[H36M.index("l_ankle")] = np.nan
    knee = x[H36M.index("l_knee")]
    shin = knee + (0, 30)
    assert close(color_at(vis.draw_skeleton_2d(image, x, H36M), *shin), (90, 90, 90), 0)


@pytest.mark.parametrize("offset", [1e3, -1e3, 1e7, -1e7])
def test_poses_outside_the_picture_are_harmless(offset):
    image = np.zeros((64, 64, 3), np.uint8)
    x = standing()[:, :2] / 30 + 32
    assert (vis.draw_skeleton_2d(image, x + offset, H36M) == 0).all()
    x[H36M.index("l_wrist")] += offset
    assert vis.draw_skeleton_2d(image, x, H36M).any()


def test_overlay_takes_tensors_and_several_people():
    image = torch.zeros(120, 200, 3, dtype=torch.uint8)
    x = torch.from_numpy(standing()[:, :2] / 20) + torch.tensor([[[40.0, 50.0]], [[150.0, 50.0]]])
    out = vis.draw_skeleton_2d(image, x, H36M)
    assert out[:, :90].any() and out[:, 110:].any() and not out[:, 92:100].any()


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_every_skeleton_can_be_drawn(name):
    skeleton = get(name)
    rng = np.random.default_rng(0)
    assert vis.draw_skeleton_2d(np.zeros((50, 50, 3), np.uint8), rng.uniform(5, 45, (skeleton.num, 2)), skeleton).any()
    assert (vis.draw_skeleton_3d(rng.normal(0, 400, (skeleton.num, 3)), skeleton, size=64) < 200).any()


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_wrong_images_are_named(image):
    with pytest.raises(GeometryError, match="uint8"):
        vis.draw_skeleton_2d(image, np.zeros((17, 2)), H36M)


def test_wrong_number_of_joints_is_named():
    with pytest.raises(GeometryError, match=r"\(16, 3\).*17.*h36m17"):
        vis.draw_skeleton_3d(np.zeros((16, 3)), H36M)


# --- 3D


@pytest.mark.parametrize("up", ["-y", "y", "z", (0.3, -0.9, 0.1)])
def test_view_axes_are_a_rotation_with_up_upright(up):
    vector = np.asarray(vis.UPS[up] if isinstance(up, str) else up, float)
    vector /= np.linalg.norm(vector)
    for azimuth, elevation in ((0, 0), (35, 14), (-120, 60)):
        axes = vis.view_axes(up, azimuth, elevation)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
        assert abs(axes[0] @ vector) < 1e-12 and axes[1] @ vector > 0
        np.testing.assert_allclose(np.cross(axes[0], axes[1]), -axes[2], atol=1e-12)
    np.testing.assert_allclose(vis.view_axes(up)[1], vector, atol=1e-12)


def test_view_axes_by_hand():
    np.testing.assert_allclose(vis.view_axes("-y"), [[1, 0, 0], [0, -1, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(vis.view_axes("z"), [[1, 0, 0], [0, 0, 1], [0, 1, 0]], atol=1e-12)
    right = vis.view_axes("z", azimuth=90)  # the viewer stands at the right (+x) and looks back along -x
    np.testing.assert_allclose(right[2], [-1, 0, 0], atol=1e-12)


def test_3d_view_places_joints_orthographically_and_tells_left_from_right():
    pose = standing()
    out = vis.draw_skeleton_3d(pose, H36M, size=400, azimuth=0, elevation=0, half_mm=1000, center=(0, 0, 0))
    for side, color in (("l", vis.LEFT), ("r", vis.RIGHT)):
        shin = pose[[H36M.index(f"{side}_knee"), H36M.index(f"{side}_ankle")]].mean(0)
        assert close(color_at(out, 200 + shin[0] / 5, 200 + shin[1] / 5), color, 110)
    behind = vis.draw_skeleton_3d(pose, H36M, size=400, azimuth=180, elevation=0, half_mm=1000, center=(0, 0, 0))
    shin = pose[[H36M.index("l_knee"), H36M.index("l_ankle")]].mean(0)
    assert close(color_at(behind, 200 - shin[0] / 5, 200 + shin[1] / 5), vis.LEFT, 110)


def test_nearer_bones_cover_farther_ones():
    pose = np.full((17, 3), np.nan)
    pose[H36M.indices(("r_knee", "r_ankle"))] = (-500, 0, 300), (500, 0, 300)
    pose[H36M.indices(("l_knee", "l_ankle"))] = (0, -500, -300), (0, 500, -300)
    for flip, color in ((1, vis.LEFT), (-1, vis.RIGHT)):
        out = vis.draw_skeleton_3d(pose * (1, 1, flip), H36M, size=300, azimuth=0, elevation=0, center=(0, 0, 0))
        assert close(color_at(out, 150, 150), color, 80)


def test_truth_is_drawn_beside_the_prediction_and_everything_fits():
    pose = standing()
    alone = vis.draw_skeleton_3d(pose, H36M, size=200, center=(0, 0, 0), half_mm=1200)
    both = vis.draw_skeleton_3d(pose, H36M, pose + (200, 0, 0), size=200, center=(0, 0, 0), half_mm=1200)
    assert (alone != both).any()
    for azimuth in range(0, 360, 60):
        out = vis.draw_skeleton_3d(pose * 7, H36M, size=200, azimuth=azimuth)
        assert (np.abs(out[:4].astype(int) - vis.FLOOR) < 40).all() and (out[20:180] < 150).any()


def test_absent_poses_give_an_empty_view():
    out = vis.draw_skeleton_3d(np.full((17, 3), np.nan), H36M, size=50)
    assert out.shape == (50, 50, 3) and (out == out[0, 0]).all()
    hidden = vis.draw_skeleton_3d(standing(), H36M, size=50, shown=np.zeros(17, bool))
    assert (hidden == out).all()


# --- sheets


def test_pose_sheet_grows_with_rows_columns_and_predictions():
    image = np.full((96, 64, 3), 128, np.uint8)
    x, X = standing()[:, :2] / 25 + (32, 48), standing()
    row = vis.SheetRow(image, x, X, truth=X, conf=np.ones(17), caption="S9 Walking: 40.1 mm")
    one = vis.pose_sheet([row], H36M, "Title", "Subtitle", tile=100)
    two = vis.pose_sheet([row, row], H36M, "Title", "Subtitle", tile=100)
    wide = vis.pose_sheet([row, row], H36M, "Title", "Subtitle", tile=100, columns=2)
    assert two.shape[0] > one.shape[0] and two.shape[1] == one.shape[1]
    assert wide.shape[0] == one.shape[0] and wide.shape[1] > 1.8 * one.shape[1]
    named = vis.SheetRow(image, x, {"self-supervised": X, "fully supervised": X}, truth=X)
    assert vis.pose_sheet([named, vis.SheetRow(image)], H36M, tile=100).shape[1] > 1.3 * one.shape[1]


def test_pose_sheet_shows_the_crop():
    image = np.zeros((100, 100, 3), np.uint8)
    image[60:80, 60:80] = 255
    whole = vis.pose_sheet([vis.SheetRow(image)], H36M, tile=200)
    part = vis.pose_sheet([vis.SheetRow(image, crop=(60, 60, 80, 80))], H36M, tile=200)
    outside = vis.pose_sheet([vis.SheetRow(image, crop=(200, 200, 220, 220))], H36M, tile=200)
    dark = [(picture[:, 40:200] < 10).all(-1).sum() for picture in (part, whole, outside)]
    assert dark[0] < 500 < dark[1] < dark[2]


def test_multi_view_sheet_holds_all_views_and_the_scene():
    images = [np.full((60, 100, 3), 40 * v, np.uint8) for v in range(5)]
    X = np.stack([standing()[:, [0, 2, 1]] * (1, 1, -1) + (0, 0, 870)] * 2) + [[[0, 0, 0]], [[900, 0, 0]]]
    x = np.stack([standing()[:, :2] / 20 + (30, 30)] * 2)
    sheet = vis.multi_view_sheet(images, H36M, [x] * 5, X, X, title="Room", tile=120)
    assert sheet.dtype == np.uint8 and sheet.shape[0] > 2 * 72 + 120 and sheet.shape[1] > 4 * 120


# --- curves


def test_training_curves_read_logs_lists_and_columns(tmp_path):
    log = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "epoch": s // 10, "train/total": 1 / (s + 1), "train/lr": 0.1} for s in range(0, 50, 5)]
    rows += [{"step": 50, "val/mpjpe_mm": 80.0, "val/none": None}]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 55, "trai')  # killed while writing
    one = vis.training_curves({"a": log})
    lines = {"val/mpjpe_mm": {"mean pose": 200.0}}
    more = vis.training_curves(
        {"a": log, "b": rows, "c": {"step": [0, 1], "val/pck": [1.0, 2.0]}}, title="t", lines=lines
    )
    assert one.ndim == 3 and one.dtype == np.uint8 and more.shape[1] > one.shape[1]
    assert len(np.unique(more.reshape(-1, 3), axis=0)) > 10


def test_training_curves_name_what_is_wrong(tmp_path):
    with pytest.raises(RunError, match="none.jsonl"):
        vis.training_curves({"a": tmp_path / "none.jsonl"})
    (tmp_path / "bad.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(RunError, match="bad.jsonl:2"):
        vis.training_curves({"a": tmp_path / "bad.jsonl"})
    with pytest.raises(RunError, match="nothing to draw"):
        vis.training_curves({"a": [{"step": 1}]})


# --- files


def test_save_image_writes_rgb_and_replaces_whole_files(tmp_path):
    image = np.zeros((5, 7, 3), np.uint8)
    image[..., 0] = 250
    path = vis.save_image(tmp_path / "new/deep/a.png", image)
    np.testing.assert_array_equal(read_image(path), image)
    np.testing.assert_array_equal(cv2.imread(str(path))[0, 0], [0, 0, 250])
    vis.save_image(path, image[:3])
    assert read_image(path).shape == (3, 7, 3)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_save_image_refuses_clearly_and_keeps_what_is_there(tmp_path):
    image = np.zeros((5, 7, 3), np.uint8)
    with pytest.raises(RunError, match="format"):
        vis.save_image(tmp_path / "a.xyz", image)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written"):
        vis.save_image(tmp_path / "file/a.png", image)
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]
