"""Losses of 2D + 3D fusion: recorded values and gradients of the release, a loop over samples as the twin, what must not count."""

import math

import pytest
import torch

from lib.errors import DataError, GeometryError
from lib.geometry.heatmap import joint_cells, read_depth, render_heatmaps
from lib.loss.fusion import (
    FOREARM,
    GROUPS,
    SHIN,
    bone_groups,
    bone_variance_loss,
    depth_loss,
    hourglass_loss,
)
from lib.loss.heatmap import heatmap_mse
from lib.models.fusion import FusionNet
from lib.skeleton import get
from scripts.benchmarks.fusion import variance_slowly
from tests.conftest import golden

MPII = get("mpii16")
RECORDS = ["losses_mixed", "losses_missing_joints"]


def recorded(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in golden("weakly_supervised", name).items()}


def scene(batch: int = 6, joints: int = 16, dtype=torch.float64):
    """Joints, depths, who is seen, and which samples are weakly labelled."""
    return (
        torch.rand(batch, joints, 2, dtype=dtype),
        torch.randn(batch, joints, dtype=dtype) * 0.3,
        torch.rand(batch, joints) > 0.3,
        torch.arange(batch) % 3 > 0,
    )


@pytest.mark.parametrize("name", RECORDS)
def test_losses_and_gradients_equal_the_release(name):
    z = recorded(name)
    weight = {"losses_mixed": 0.01, "losses_missing_joints": 1.0}[name]
    side = z["hm"].shape[-1]
    depth_at = read_depth(z["depth"], z["pts_crop"])
    used = (z["reg_mask"] | (z["reg_target"][..., 0] > 0)).bool()  # the others are read in some place
    assert torch.equal(depth_at[used], z["gathered"][..., 0][used])
    d = depth_at.requires_grad_()
    mask, target = z["reg_mask"].bool(), z["reg_target"][..., 0]

    labelled = depth_loss(d, target, mask)
    torch.testing.assert_close(labelled, z["reg_loss"], rtol=1e-5, atol=1e-8)
    (slope,) = torch.autograd.grad(labelled, d)
    torch.testing.assert_close(slope, z["reg_loss_grad"][..., 0], rtol=1e-5, atol=1e-8)

    variance = weight * bone_variance_loss(z["pts_crop"] / side, d, target > 0.5, ~mask.any(1), bone_groups(MPII))
    torch.testing.assert_close(variance, z["var_loss_weighted"][0], rtol=1e-5, atol=1e-8)
    (slope,) = torch.autograd.grad(variance, d)
    torch.testing.assert_close(slope, z["var_grad_weighted"][..., 0], rtol=1e-4, atol=1e-8)
    assert (slope != 0).any()

    torch.testing.assert_close(0.1 * labelled + variance, z["fusion_loss"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(2 * heatmap_mse(z["hm"], z["hm_target"]), z["hm_mse"], rtol=1e-5, atol=1e-8)


def test_the_hourglass_criterion_equals_the_release_with_targets_scaled_once():
    z = recorded("hourglass3d_criterion")
    depth, x, z_or_seen = z["reg"].requires_grad_(), z["target"][..., :2], z["target"][..., 2]
    weak = x.sum((1, 2)).abs() >= 1e-6
    visible = torch.where(weak[:, None], z_or_seen > 0.5, True)
    loss = hourglass_loss(x, depth, z_or_seen, visible, weak, bone_groups(MPII))
    torch.testing.assert_close(loss, z["loss"][0], rtol=1e-5, atol=1e-8)
    (slope,) = torch.autograd.grad(loss, depth)
    torch.testing.assert_close(slope, z["grad"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("halved", [True, False])
def test_variance_equals_a_loop_over_samples_groups_and_bones(halved):
    x, depth, visible, weak = scene(40)
    visible[1] = False  # nothing to compare
    visible[4] = True
    visible[7] = torch.zeros(16).index_fill(0, torch.tensor([0, 1]), 1).bool()  # a single bone
    groups = bone_groups(MPII)
    found = []
    for function in (bone_variance_loss, variance_slowly):
        d = depth.clone().requires_grad_()
        value = function(x, d, visible, weak, groups, halved)
        (slope,) = torch.autograd.grad(value, d)
        found.append((value, slope))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
    slope = found[0][1]
    assert (slope[~weak] == 0).all() and (slope[[1, 7]] == 0).all() and (slope[4] != 0).any()


def test_gradients_of_the_variance_are_those_of_the_formula():
    x, depth, visible, weak = scene()
    groups = bone_groups(MPII)
    assert torch.autograd.gradcheck(lambda d: bone_variance_loss(x, d, visible, weak, groups), depth.requires_grad_())
    assert torch.autograd.gradcheck(lambda u: bone_variance_loss(u, depth.detach(), visible, weak, groups), x.requires_grad_())


def test_equal_bones_cost_nothing_and_the_weights_make_them_equal():
    x, depth, _, weak = scene(1)
    everyone = torch.ones(1, 16, dtype=torch.bool)
    weak[:] = True
    # A body along x whose shins and forearms are shorter than thighs and upper arms by the canonical ratios.
    position = {"pelvis": 0, "r_hip": 1, "l_hip": -1, "r_knee": 2, "l_knee": -2, "r_ankle": 2 + 1 / SHIN, "l_ankle": -2 - 1 / SHIN,
                "upper_neck": 0, "r_shoulder": 1, "l_shoulder": -1, "r_elbow": 2, "l_elbow": -2,
                "r_wrist": 2 + 1 / FOREARM, "l_wrist": -2 - 1 / FOREARM, "thorax": 7, "head": 9}  # fmt: skip
    x[0, :, 0] = torch.tensor([position[joint] for joint in MPII.joints])
    x[..., 1], depth[:] = 0, 0
    assert bone_variance_loss(x, depth, everyone, weak, bone_groups(MPII)).item() == pytest.approx(0, abs=1e-15)
    unweighted = {name: [bone[:2] for bone in bones] for name, bones in GROUPS.items()}
    expected = sum(4 * ((1 - 1 / ratio) / 2) ** 2 / 8 for ratio in (SHIN, FOREARM))
    assert bone_variance_loss(x, depth, everyone, weak, bone_groups(MPII, unweighted)).item() == pytest.approx(expected)


def test_missing_joints_do_not_count_whatever_stands_there():
    x, depth, visible, weak = scene()
    groups = bone_groups(MPII)
    expected = bone_variance_loss(x, depth, visible, weak, groups)
    seen = visible & weak[:, None]
    x = torch.where(seen[..., None], x, torch.nan)
    depth = torch.where(seen, depth, torch.nan).requires_grad_()
    value = bone_variance_loss(x, depth, visible, weak, groups)
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(value, depth)
    assert slope.isfinite().all() and (slope[~seen] == 0).all() and (slope[seen] != 0).any()

    target = torch.randn(6, 16).double()
    labelled = depth_loss(depth, torch.where(seen, target, torch.nan), seen)
    (slope,) = torch.autograd.grad(labelled, depth)
    torch.testing.assert_close(labelled, depth_loss(depth.detach().nan_to_num(), target, seen))
    assert slope.isfinite().all() and (slope[~seen] == 0).all()


def test_bones_without_length_and_batches_without_labels_give_finite_gradients():
    depth = torch.zeros(2, 16, requires_grad=True)
    everyone = torch.ones(2, 16)
    value = bone_variance_loss(torch.zeros(2, 16, 2), depth, everyone, torch.ones(2), bone_groups(MPII))
    none = depth_loss(depth, torch.zeros(2, 16), torch.zeros(2, 16))
    strong = bone_variance_loss(torch.rand(2, 16, 2), depth, everyone, torch.zeros(2), bone_groups(MPII))
    for loss in (value, none, strong):
        assert loss == 0
        assert (torch.autograd.grad(loss, depth)[0] == 0).all()


def test_low_precision_comes_in_and_float32_goes_on():
    x, depth, visible, weak = scene(dtype=torch.float32)
    exact = bone_variance_loss(x, depth, visible, weak, bone_groups(MPII))
    with torch.autocast("cpu", torch.bfloat16):
        value = bone_variance_loss(x, depth.bfloat16(), visible, weak, bone_groups(MPII))
        labelled = depth_loss(depth.bfloat16(), depth, visible)
    assert value.dtype == labelled.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.02)


def test_groups_of_other_skeletons():
    tables = bone_groups("h36m17")
    skeleton = get("h36m17")
    named = [{(skeleton.joints[a], skeleton.joints[b]) for a, b in ends[weight > 0].tolist()} for ends, weight in zip(*tables, strict=True)]
    assert ("r_shoulder", "thorax") in named[-1] and len(named) == 4 and sum(map(len, named)) == 12
    assert sum(bone_groups("coco17").weight.flatten().tolist()) == pytest.approx(4 + 2 * SHIN + 2 * FOREARM)  # no pelvis, no neck
    own = bone_groups("h36m17", {"trunk": [["pelvis", "spine"], ["spine", "thorax", 2]]})
    assert own.weight.tolist() == [[1, 2]] and own.ends[0, 1].tolist() == [skeleton.index("spine"), skeleton.index("thorax")]


@pytest.mark.parametrize(("groups", "message"), [
    ({"legs": [["r_ankle", "r_kne"], ["l_ankle", "l_knee"]]}, "did you mean r_knee"),
    ({"legs": [["r_ankle", "r_knee", -1], ["l_ankle", "l_knee"]]}, "bone group legs.*positive weight"),
    ({"legs": [["r_ankle", "r_knee", "1.0"], ["l_ankle", "l_knee"]]}, "bone group legs.*'1.0'"),
    ({"legs": "r_ankle"}, "bone group legs: 'r_ankle' is not"),
    ({"legs": 3}, "bone group legs: 3 is not"),
    ({"legs": [["r_ankle"], ["l_ankle", "l_knee"]]}, "bone group legs"),
    ({"legs": [["r_ankle", "r_knee"]]}, "bone groups legs of mpii16: none has two bones"),
    ({}, "none has two bones"),
])  # fmt: skip
def test_wrong_groups_are_refused(groups, message):
    with pytest.raises(DataError, match=message):
        bone_groups("mpii16", groups)


def test_shapes_are_checked():
    x, depth, visible, weak = scene()
    with pytest.raises(GeometryError, match=r"bone variance.*\(6, 16, 2\).*\(5,\)"):
        bone_variance_loss(x, depth, visible, weak[:5], bone_groups(MPII))
    with pytest.raises(GeometryError, match="depth loss"):
        depth_loss(depth, depth[:5], visible)
    with pytest.raises(GeometryError, match="hourglass loss"):
        hourglass_loss(x, depth, depth, visible[:5], weak, bone_groups(MPII))
    with pytest.raises(GeometryError, match="read_depth"):
        read_depth(torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 2))


def test_training_on_the_variance_makes_the_bones_equal():
    """Depth alone explains unequal bones of the picture: the loss finds it."""
    x, _, _, _ = scene(1, dtype=torch.float32)
    depth = (0.1 * torch.randn(1, 16)).requires_grad_()
    optimizer = torch.optim.Adam([depth], lr=0.02)
    losses = []
    for _ in range(200):
        loss = bone_variance_loss(x, depth, torch.ones(1, 16), torch.ones(1), bone_groups(MPII))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1]) and losses[-1] < 0.05 * losses[0]


def test_a_network_learns_from_both_kinds_of_labels():
    """One sample with depths, one without: a few steps lower all three losses."""
    net = FusionNet(16, 18, stages=2, deconv_filters=(32, 32), deconv_kernels=(4, 4)).train()
    image = torch.randn(2, 3, 32, 32)
    x_hm = torch.rand(2, 16, 2) * 15
    cells, inside = joint_cells(x_hm, torch.ones(2, 16), (16, 16))
    hm, depth = render_heatmaps(x_hm, inside, (16, 16), 1.0), 0.3 * torch.randn(2, 16)
    weak, groups = torch.tensor([False, True]), bone_groups(MPII)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        maps = net(image)
        at = read_depth(maps.depth, cells)
        strong = depth_loss(at, depth, inside & ~weak[:, None])
        parts = torch.stack([2 * heatmap_mse(maps.hm, hm), strong, bone_variance_loss(x_hm / 16, at, inside, weak, groups)])
        optimizer.zero_grad()
        (parts * torch.tensor([1.0, 0.1, 0.1])).sum().backward()
        optimizer.step()
        losses.append(parts.detach())
    assert (losses[-1] < 0.8 * losses[0]).all(), (losses[0], losses[-1])
