"""What was recorded of EpipolarPose's release and belongs to no other test file: labels, mirrors, boxes, residuals, lenses."""

import json

import cv2
import numpy as np
import pytest
import torch

from lib.dataset.annotations import widened
from lib.dataset.formats import mpii
from lib.geometry.alignment import apply_similarity, similarity
from lib.geometry.camera import Cameras, distort_norm
from lib.geometry.crop import crop_affine, transform_points
from lib.geometry.heatmap import decode_heatmap, patch_from_cells
from lib.skeleton import get
from lib.tasks.integral import PoseReader
from tests.conftest import golden


@pytest.mark.parametrize(("record", "skeleton", "width"), [("flip", "h36m17", 1000), ("flip16", "mpii16", 640)])
def test_joints_of_mirrored_samples_keep_their_names_depth_and_visibility(record, skeleton, width):
    z, flip = golden("epipolarpose", "crop_affine"), get(skeleton).flip
    joints, mirrored = z[f"{record}_in"], z[f"{record}_out"]
    box = dict(box=[400.0, 500.0], patch=[192, 256], rot_deg=20.0)
    ours = transform_points(crop_affine([350.0, 420.0], flip=True, **box), torch.from_numpy(joints[:, :2]))[flip]
    theirs = transform_points(crop_affine([width - 1 - 350.0, 420.0], **box), torch.from_numpy(mirrored[:, :2]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(joints[flip, 2], mirrored[:, 2])
    np.testing.assert_array_equal(z[f"{record}_vis"][flip], z[f"{record}_vis_out"])


def test_labels_of_a_patch_and_back():
    z = golden("epipolarpose", "crop_affine")
    patch, cells = (256, 192), torch.tensor([64, 48, 32])
    label = PoseReader("volume", patch, "soft").normalized(torch.from_numpy(z["label_in"]))
    np.testing.assert_allclose(label.flatten(), z["label_256x192"], atol=1e-6)
    back = patch_from_cells((label + 0.5) * cells, patch, cells.tolist())
    np.testing.assert_allclose(back, z["label_reversed"], atol=1e-3)


@pytest.mark.parametrize("network", ["resnet18_vol_j17", "resnet34_vol_j16", "resnet50_vol_j17", "resnet50_vol_j16"])
def test_joints_of_networks_in_the_patch(network):
    z = golden("epipolarpose", network)
    x_patch = torch.from_numpy(z["joint_location_patch"])
    label = PoseReader("volume", (256, 256), "soft").normalized(x_patch[..., :3])
    np.testing.assert_allclose(label, z["softargmax_norm"], atol=1e-6)
    cells = (torch.from_numpy(z["softargmax_norm"]) + 0.5) * 64
    np.testing.assert_allclose(patch_from_cells(cells, (256, 256), (64, 64, 64)), x_patch[..., :3], atol=1e-3)
    assert (x_patch[..., 3] == 1).all()  # the release knows no confidence


@pytest.mark.parametrize(("aspect", "record"), [(1.0, "bound_pad_a1"), (0.75, "bound_pad_a075")])
def test_boxes_around_visible_joints(tmp_path, aspect, record):
    z = golden("epipolarpose", "h36m_evaluate")
    joints, seen = z["bound_kpts"], z["bound_vis"][:, 0] * z["bound_vis"][:, 1]
    up, down, left, right = z["bound_udlr"]
    kept = joints[seen > 0]
    np.testing.assert_allclose([*kept.min(0)[::-1], *kept.max(0)[::-1]], [up, left, down, right])
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((1000, 1000, 3), np.uint8))
    one = {"image": "a.jpg", "joints": (joints + 1).tolist(), "joints_vis": seen.tolist(), "center": [500.0, 500.0], "scale": 4.0}
    (tmp_path / "annot" / "train.json").write_text(json.dumps([one]))
    x0, y0, x1, y1 = widened(mpii.read(tmp_path, "train").box, aspect)[0]  # as for crops of that shape
    np.testing.assert_allclose([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], z[record], atol=1e-3)


def test_skeleton_lengths_with_the_bone_that_the_release_leaves_out():
    z = golden("epipolarpose", "h36m_evaluate")
    parents, children = get("h36m17").bones.T
    length = np.linalg.norm(z["world"][:, children] - z["world"][:, parents], axis=-1).sum(1)
    np.testing.assert_allclose(length, z["skeleton_len_bone"], rtol=1e-9)
    assert (z["skeleton_len_bone"] - z["skeleton_len"] > 100).all()  # spine to thorax, mm


@pytest.mark.parametrize(("name", "scale"), [("scaled", True), ("rigid", False)])
def test_residuals_of_the_similarity(name, scale):
    z = {key: torch.from_numpy(value) for key, value in golden("epipolarpose", "h36m_evaluate").items() if key.startswith("sim_")}
    aligned = apply_similarity(z["sim_Y"], *similarity(z["sim_Y"], z["sim_X"], scale=scale))
    centred = z["sim_X"] - z["sim_X"].mean(1, keepdim=True)
    residual = (aligned - z["sim_X"]).square().sum((1, 2)) / centred.square().sum((1, 2))
    torch.testing.assert_close(residual, z[f"sim_{name}_d"], rtol=1e-6, atol=1e-9)


def test_maps_of_the_mirrored_image_and_joints_read_from_them():
    """The release mirrors maps back, ours the joints that were read: the same places."""
    z, flip = golden("epipolarpose", "heatmap_pckh"), get("mpii16").flip
    maps, back = torch.from_numpy(z["heatmaps"]), torch.from_numpy(z["flip_back"])
    cells, score = (value[:, flip] for value in decode_heatmap(maps, "argmax"))
    theirs, theirs_score = decode_heatmap(back, "argmax")
    some = theirs_score > 0  # an empty map has no place
    ours = torch.stack([maps.shape[-1] - 1 - cells[..., 0], cells[..., 1]], -1)
    assert some.float().mean() > 0.9
    torch.testing.assert_close(ours[some], theirs[some])
    torch.testing.assert_close(score, theirs_score)


def test_joints_of_mpii_by_name():
    short = {"ank": "ankle", "kne": "knee", "hip": "hip", "wri": "wrist", "elb": "elbow", "sho": "shoulder"}
    middle = {"pelv": "pelvis", "thor": "thorax", "neck": "upper_neck", "head": "head"}
    names = golden("epipolarpose", "heatmap_pckh")["pckh_joint_names"].tolist()
    assert [middle.get(name) or f"{name[0]}_{short[name[1:]]}" for name in names] == list(get("mpii16").joints)


def test_parts_of_the_projection():
    z = {key: torch.from_numpy(value) for key, value in golden("epipolarpose", "projection").items()}
    X_cam, root = z["cam"], get("h36m17").root_index
    torch.testing.assert_close(z["joints_3d_cam"], X_cam, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z["pelvis"], X_cam[:, root], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z["mpii_root_pelvis"], X_cam[0, root], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(z["joints_3d"][..., 2], X_cam[..., 2] - X_cam[:, root, None, 2], rtol=1e-6, atol=1e-6)
    # The lens in its parts: radial and tangential factors of the official formula.
    (k1, k2, k3), (p1, p2) = z["k"][..., 0].unbind(-1), z["p"][..., 0].unbind(-1)
    x_norm = X_cam[..., :2] / X_cam[..., 2:]
    parts = x_norm * (z["radial"] + z["tangential"])[..., None] + z["p"][:, None, [1, 0], 0] * z["r2"][..., None]
    torch.testing.assert_close(distort_norm(x_norm, torch.stack([k1, k2, p1, p2, k3], -1), "h36m"), parts, rtol=1e-9, atol=1e-9)
    # The box: a square of two metres that faces the camera at the root.
    K = torch.diag_embed(torch.cat([z["f"][..., 0], torch.ones(len(X_cam), 1).double()], -1))
    K[:, :2, 2] = z["c"][..., 0]
    corner = X_cam[:, root, None] + torch.tensor([[-1000.0, -1000, 0], [1000, 1000, 0]], dtype=torch.float64)
    low, high = Cameras.make(K, torch.eye(3).double(), torch.zeros(3).double()).project(corner)[0].unbind(1)
    torch.testing.assert_close(torch.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], -1), z["rect_lrtb"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([(low + high) / 2, high - low], -1), z["center_w_h"], rtol=1e-6, atol=1e-6)
