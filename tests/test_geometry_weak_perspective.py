"""From joints and depths of a crop to mm, labels, maps and accuracy: recorded numbers of Zhou et al.'s release, and plain geometry."""

import numpy as np
import pytest
import torch

from lib.dataset.annotations import widened
from lib.dataset.image import warp
from lib.errors import DataError, GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import crop_affine, invert, transform_points
from lib.geometry.heatmap import decode_heatmap, joint_cells, read_depth, render_heatmaps
from lib.geometry.weak_perspective import (
    BONE_SUM_MM,
    H36M_BONES,
    MPII_BONES,
    bone_sum,
    crop_pose,
    depth_labels,
    h36m_pose,
    mm_per_unit,
    mpii_from_h36m,
)
from lib.metrics.keypoints import HEAD_BIAS, heatmap_accuracy, pckh, pckh_table
from lib.metrics.pose import mpjpe
from lib.skeleton import get
from tests.conftest import golden

MPII, H36M = get("mpii16"), get("h36m17")
MAP, SIGMA = (64, 64), 2.0


def recorded(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in golden("weakly_supervised", name).items()}


def published_maps(cells: torch.Tensor, drawn=True) -> torch.Tensor:
    return render_heatmaps(cells, torch.full(cells.shape[:-1], True) & drawn, MAP, SIGMA, snap="toward_zero")


def placed(cells: torch.Tensor, depth: torch.Tensor, skeleton=MPII, total: float = BONE_SUM_MM["published"], rule: str = "names"):
    """The chain from what a network reads to poses (...,17,3) mm, relative to the pelvis."""
    pose = h36m_pose(crop_pose(cells, depth, MAP), skeleton, rule)
    return (pose - pose[..., :1, :]) * mm_per_unit(bone_sum(pose), total)[..., None, None]


# --- labels


def test_affines_and_crops_equal_the_release():
    z = recorded("geometry_targets")
    center, scale, rot = z["affine_params"][:, :2], z["affine_params"][:, 2:3], z["affine_params"][:, 4]
    patch_from_img = crop_affine(center, scale.expand(-1, 2), [256, 256], rot_deg=rot)
    torch.testing.assert_close(patch_from_img, z["affine_256x256"], rtol=0, atol=1e-3)
    wide = crop_affine(center, torch.cat([scale, scale * 48 / 64], 1), [64, 48], rot_deg=rot)
    torch.testing.assert_close(invert(wide), z["affine_inv_64x48"], rtol=0, atol=1e-3)


def test_boxes_get_the_shape_of_the_input_as_in_the_release():
    z = golden("weakly_supervised", "geometry_targets")
    box = np.concatenate([100 - z["aar_in"] / 2, 100 + z["aar_in"] / 2], 1)
    for within, name in ((False, "long"), (True, "short")):
        shaped = widened(box, 0.75, within=within)
        np.testing.assert_allclose(shaped[:, 2:] - shaped[:, :2], z[f"aar_{name}_0.75"])
        np.testing.assert_allclose((shaped[:, 2:] + shaped[:, :2]) / 2, 100)


def test_gaussians_equal_the_release():
    z = recorded("geometry_targets")
    hm = published_maps(z["gauss_centers"])
    torch.testing.assert_close(hm.float(), z["gauss_maps"], rtol=0, atol=1e-6)
    ours = render_heatmaps(z["gauss_centers"], torch.ones(8), MAP, SIGMA, snap=True)
    inside = ((z["gauss_centers"] >= 0) & (z["gauss_centers"] < 64)).all(-1)
    torch.testing.assert_close(ours[inside].float(), z["gauss_maps"][inside], rtol=0, atol=1e-6)
    assert not torch.allclose(ours[~inside].float(), z["gauss_maps"][~inside])  # theirs are a cell nearer
    with pytest.raises(GeometryError, match="snap 'nearest'"):
        render_heatmaps(z["gauss_centers"], torch.ones(8), MAP, SIGMA, snap="nearest")


def test_labels_of_a_2d_sample_equal_the_release():
    z = recorded("geometry_targets")
    joints = z["mpii_joints"].float()
    labelled = (joints > 0).any(-1)
    hm_from_img = crop_affine(z["mpii_meta_center"], z["mpii_meta_scale"].float(), list(MAP))
    x_hm = transform_points(hm_from_img, joints)
    cells, inside = joint_cells(x_hm, labelled, MAP, cut_off=True)
    assert torch.equal(cells.int(), z["mpii_pts_crop"])
    torch.testing.assert_close(published_maps(cells, labelled), z["mpii_target"], rtol=0, atol=1e-6)
    as_published = joint_cells(x_hm, labelled, MAP, cut_off=True, missing_at_origin=True)[1]
    assert torch.equal(as_published, z["weak_reg_target"][:, 0] > 0.5)
    assert torch.equal(inside, as_published & labelled) and not torch.equal(inside, as_published)


def test_labels_of_a_3d_sample_equal_the_release():
    z = recorded("geometry_targets")
    joints = mpii_from_h36m(z["h36m_joints_3d"][:17].float())
    side = float(z["h36m_box"][2:].max())
    hm_from_img = crop_affine(z["h36m_box"][:2].float(), [side, side], list(MAP))
    x_hm = transform_points(hm_from_img, joints[:, :2])
    cells, inside = joint_cells(x_hm, torch.ones(16), MAP, cut_off=True)
    assert torch.equal(inside, z["h36m_reg_mask"].bool())
    assert torch.equal(cells[inside].int(), z["h36m_pts_crop"][inside])
    torch.testing.assert_close(published_maps(cells, inside), z["h36m_target"], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.where(inside, joints[:, 2] / side, 0.0), z["h36m_reg_target"][:, 0], rtol=0, atol=1e-6)
    index = (cells[:, 1] * 64 + cells[:, 0]) * 16 + torch.arange(16)
    assert torch.equal(index[inside], z["h36m_reg_ind"][inside])  # the place that `read_depth` reads


def test_warped_images_equal_the_release():
    z = recorded("geometry_targets")
    x, y, side, _, rot = z["affine_params"][1].tolist()
    crop = warp(z["image"].numpy(), crop_affine([x, y], [side, side], MAP, rot_deg=rot).numpy(), MAP)
    assert np.abs(crop.astype(int) - z["crop_64"].numpy()).max() <= 1
    for name, center, side in (("mpii", z["mpii_meta_center"], float(z["mpii_meta_scale"][0])), ("h36m", z["h36m_box"][:2], 144.0)):
        patch_from_img = crop_affine(center.double(), [side, side], [256, 256])
        patch = warp(z["image"].numpy(), patch_from_img.numpy(), (256, 256)).astype(np.float32)
        ours = ((patch / 256 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[:, ::8, ::8]
        difference = np.abs(ours - z[f"{name}_input"].numpy())
        assert difference.max() < 2.1 / 256 / 0.224 and (difference > 1.1 / 256 / 0.224).mean() < 0.01  # grey levels


def test_cells_by_hand():
    x = torch.tensor([[0.0, 0.4], [2.6, 1.5], [-0.6, 1.0], [5.6, 0.0], [float("nan"), 0.0]])
    valid = torch.tensor([True, True, True, True, False])
    cells, inside = joint_cells(x, valid, (6, 4))
    assert cells.tolist() == [[0, 0], [3, 2], [-1, 1], [6, 0], [0, 0]] and inside.tolist() == [True, True, False, False, False]
    cells, inside = joint_cells(x, valid, (6, 4), cut_off=True, missing_at_origin=True)
    assert cells.tolist() == [[0, 0], [2, 1], [0, 1], [5, 0], [0, 0]] and inside.all()


def test_depth_is_read_where_the_joint_is():
    depth = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5).requires_grad_()
    cells = torch.tensor([[[0, 0], [4, 3], [2, 1]], [[1, 2], [9, 9], [-5, 0]]])
    read = read_depth(depth, cells)
    expected = [[depth[b, j, min(max(y, 0), 3), min(max(x, 0), 4)] for j, (x, y) in enumerate(row)] for b, row in enumerate(cells.tolist())]
    assert read.tolist() == torch.stack([torch.stack(row) for row in expected]).tolist()
    assert torch.equal(read_depth(depth, cells + 0.3), read) and torch.equal(read_depth(depth, cells - 0.3), read)
    assert read_depth(depth, torch.full((2, 3, 2), torch.nan)).tolist() == depth[:, :, 0, 0].tolist()
    read.sum().backward()
    assert depth.grad.sum() == 6 and depth.grad[0, 1, 3, 4] == 1


def test_depth_labels_have_the_unit_of_the_crop():
    """A far bar along the image and one along the axis of the camera are as long in the crop as each other."""
    focal, side, Z = 1500.0, 300.0, 4e6
    X = torch.tensor([[0.0, 0.0, Z], [500.0, 0.0, Z], [0.0, 0.0, Z + 500.0]], dtype=torch.float64)
    K = torch.tensor([[focal, 0, 500], [0, focal, 500], [0, 0, 1]], dtype=torch.float64)
    x_img = Cameras.make(K, torch.eye(3).double(), torch.zeros(3).double()).project_cam(X)
    depth = depth_labels(X, focal, side, root=0)
    assert depth[:2].tolist() == [0, 0]
    assert depth[2].item() == pytest.approx((x_img[1, 0] - x_img[0, 0]).item() / side, rel=1e-9)
    both = depth_labels(torch.stack([X, X]), torch.tensor([focal, 2 * focal]), torch.tensor([side, side]), 0)
    assert both[1, 2].item() == pytest.approx(2 * both[0, 2].item())


# --- poses


def test_maps_to_poses_to_errors_equal_the_release():
    z = recorded("metrics_h36m")
    hm = published_maps(z["pred_centers"].float())
    cells, score = decode_heatmap(hm, "argmax")
    torch.testing.assert_close(cells.double(), z["preds_floor"])
    torch.testing.assert_close(score, z["conf"][..., 0])
    depth = read_depth(z["depth_8x8"].repeat_interleave(8, -1).repeat_interleave(8, -2), cells)
    pose = crop_pose(cells, depth, MAP)
    pose = pose - pose[:, MPII.root_index, None]
    torch.testing.assert_close(pose, z["preds_3d"], rtol=0, atol=1e-6)
    mm = placed(cells, depth, rule="published")
    torch.testing.assert_close(mm.double(), z["converted_mm"], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(bone_sum(mm), z["sum_bone_length"], rtol=1e-5, atol=0)
    gt = z["gt_3d"].double()
    known = (gt != 0).any(-1).any(-1)  # images without a pose have zeros
    errors = mpjpe(mm, gt, 0, known[:, None].expand(-1, 17))
    assert int(known.sum()) == int(z["mpjpe_count"]) and errors.isnan().sum() == 1
    assert errors.nanmean().item() == pytest.approx(float(z["mpjpe"]), rel=1e-6)


def test_accuracy_of_maps_equals_the_release():
    z = recorded("metrics_h36m")
    drawn = torch.ones(4, 16, dtype=torch.bool)
    drawn[0, 3] = False  # recorded so
    pred, target = published_maps(z["pred_centers"].float()), published_maps(z["target_centers"].float(), drawn)
    limbs = [k for k, joint in enumerate(MPII.joints) if joint.split("_")[-1] in ("ankle", "knee", "hip", "wrist", "elbow")]
    mean, per_joint = heatmap_accuracy(pred, target, joints=limbs, beyond=0, legacy_rows=True)
    assert len(limbs) == 10 and mean.item() == pytest.approx(float(z["accuracy"]), rel=1e-6)
    assert mean.item() == pytest.approx(per_joint[limbs].mean().item())
    assert heatmap_accuracy(pred, target)[0] != mean
    beside = torch.tensor([[[0.0, 5.0], [1.0, 5.0], [5.0, 5.0]]])
    maps = published_maps(beside)
    assert heatmap_accuracy(maps, maps)[1].isnan().tolist() == [True, True, False]
    assert heatmap_accuracy(maps, maps, beyond=0)[1].isnan().tolist() == [True, False, False]


def test_maps_that_are_not_square_are_judged_by_their_height():
    """Of 48 x 64 cells 0.5 * 64 / 10 = 3.2 cells are right in both axes, by their own sizes 2.4 across."""
    target = published_maps(torch.tensor([[[20.0, 20.0], [20.0, 20.0], [20.0, 20.0]]]))[..., :48]
    pred = published_maps(torch.tensor([[[23.0, 20.0], [20.0, 23.0], [24.0, 20.0]]]))[..., :48]
    right = {axes: heatmap_accuracy(pred, target, axes=axes)[1].tolist() for axes in ("own", "swapped", "height")}
    assert right == {"own": [0, 1, 0], "swapped": [1, 0, 0], "height": [1, 1, 0]}
    with pytest.raises(GeometryError, match="axes 'width'"):
        heatmap_accuracy(pred, target, axes="width")


def test_mirrored_maps_equal_the_release():
    z = recorded("metrics_h36m")
    hm = published_maps(z["pred_centers"].float())
    torch.testing.assert_close(hm[0, MPII.flip].flip(-1)[:, ::4, ::4], z["flip_shuffle_hm"])


def test_pckh_equals_the_release():
    z = recorded("metrics_pckh")
    gt, pred = (z[key].permute(2, 0, 1) for key in ("gt", "pred"))
    size = HEAD_BIAS * (z["headboxes"][1] - z["headboxes"][0]).norm(dim=0)
    valid = ~z["missing"].T.bool()
    table = pckh_table(pred, gt, size, MPII.joints, valid, equal_joints=True, strict=True)
    rows = [table[f"pckh_{name}_percent"] for name in ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
    np.testing.assert_allclose(rows, z["rows"], rtol=1e-9)
    assert table["pckh_percent"] == pytest.approx(float(z["mean"]), rel=1e-9)
    hits = pckh(pred, gt, size, valid)[:, [k for k in range(16) if MPII.joints[k] not in ("pelvis", "thorax")]]
    weighted = pckh_table(pred, gt, size, MPII.joints, valid)["pckh_percent"]
    assert weighted == pytest.approx(100 * hits.nansum().item() / hits.isfinite().sum().item()) != table["pckh_percent"]


@pytest.mark.parametrize("rule", ["names", "published"])
def test_a_true_pose_comes_back(rule):
    """Of a person seen from far away, up to what the joints of MPII do not tell."""
    X = torch.randn(5, 17, 3, dtype=torch.float64) * 300
    X = X - X[:, :1]
    middles = {"spine": ("pelvis", "thorax"), "nose": ("thorax", "head")} if rule == "published" else {"spine": ("pelvis", "thorax")}
    for joint, ends in middles.items():
        X[:, H36M.index(joint)] = X[:, H36M.indices(ends)].mean(1)
    total = bone_sum(X)
    X = X * (4000 / total)[:, None, None]
    x = torch.zeros(5, 16, 3, dtype=torch.float64)
    names = {"thorax": "thorax", "upper_neck": "nose"} if rule == "names" else {"thorax": "spine", "upper_neck": "thorax"}
    for k, joint in enumerate(MPII.joints):
        x[:, k] = X[:, H36M.index(names.get(joint, joint))] / 2500
    x_hm = (x[..., :2] + 0.5) * 64
    torch.testing.assert_close(placed(x_hm, x[..., 2], rule=rule), X)
    single = placed(x_hm.float(), x[..., 2].float(), total=4465.869, rule=rule)
    torch.testing.assert_close(single, (X * 4.465869 / 4).float(), rtol=1e-4, atol=1e-2)


def test_networks_of_human36m_joints_need_no_rule():
    x = torch.rand(2, 17, 3)
    assert torch.equal(h36m_pose(x, "h36m17"), x)
    mm = placed(64 * x[..., :2], x[..., 2], H36M)
    torch.testing.assert_close(mm, 4000 * (x - x[:, :1]) / bone_sum(x)[:, None, None], rtol=1e-4, atol=1e-2)
    with pytest.raises(GeometryError, match="'published' for h36m17"):
        h36m_pose(x, "h36m17", "published")
    with pytest.raises(DataError, match="head cannot be had"):
        h36m_pose(x, "coco17")
    with pytest.raises(GeometryError, match="crop_pose"):
        crop_pose(x[..., :2], x[..., :2], MAP)


def test_the_bones_of_the_sums():
    assert len(H36M_BONES) == 15 and len(MPII_BONES) == 14
    for skeleton, bones in ((H36M, H36M_BONES), (MPII, MPII_BONES)):
        assert len({frozenset(skeleton.indices(bone).tolist()) for bone in bones}) == len(bones)
    X = torch.zeros(1, 17, 3)
    X[0, H36M.index("head"), 1] = -200.0
    X[0, H36M.index("nose")] = 1e3  # no bone ends there
    assert bone_sum(X).item() == 200


def test_a_pose_without_extent_has_no_size():
    assert mm_per_unit(bone_sum(torch.ones(2, 17, 3)), 4000.0).tolist() == [0, 0]


def test_true_labels_of_real_people_leave_what_perspective_takes(samples):
    """Zhou et al. report 17 to 18 mm for true joints and depths on Human3.6M; a wrong size costs more."""
    with np.load(samples / "h36m" / "test_h36m_body3d.npz") as z:
        X, x_img = (torch.from_numpy(z[key]) for key in ("S", "part"))
        center, side = torch.from_numpy(z["center"]), torch.from_numpy(200 * z["scale"])
    X = 1000 * X[..., :3]
    x_hm = 64 * ((x_img[..., :2] - center[:, None]) / side[:, None, None] + 0.5)
    depth = depth_labels(X, 1145.0, side, 0)
    total = bone_sum(X)
    errors = torch.stack([mpjpe(placed(x_hm, depth, H36M, float(t)), X, 0)[i] for i, t in enumerate(total)])
    assert (errors < 25).all() and (errors > 5).all()
    assert (mpjpe(placed(x_hm, depth, H36M, 1.1 * float(total.mean())), X, 0) > errors + 10).all()
