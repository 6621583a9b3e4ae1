"""Losses of SelfPose3d: the recorded numbers and gradients of the published training, and what is right beyond them."""

import math

import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.heatmap import summed_heatmaps
from lib.geometry.volume import Space
from lib.geometry.voxel_targets import draw_roots, people_in_views, root_heatmaps, root_volume
from lib.loss.selfpose3d import attended_heatmap_loss, attention_penalty, drawn_roots_loss, matched_l1, root_consistency_loss
from lib.loss.voxels import view_heatmap_loss, volume_loss
from lib.models.voxelpose import RootNet
from tests.conftest import golden_json
from tests.test_model_voxelpose import with_recorded_weights
from tests.test_targets_voxelpose import CELLS, PATCH, SPACE, affine, case, cells, dome  # noqa: F401

CASES = golden_json("selfpose3d", "ssv")["cases"]
STAGE3 = ["ssv_full", "ssv_no_attn_no_l1", "ssv_l1_before_epoch"]


def maps(seed: int) -> torch.Tensor:
    """Recorded draws of five views.   -> (2,5,15,32,60)"""
    return torch.stack([torch.rand(2, 15, 32, 60, generator=torch.Generator().manual_seed(seed + v)) for v in range(5)], 1)


@pytest.mark.parametrize("name", STAGE3)
def test_losses_of_poses_and_their_gradients_equal_the_recorded_ones(dome, name):  # noqa: F811
    facts, g = CASES[name], case("ssv", name)
    config = facts["config"]
    affines = [torch.stack([affine(r, z) for r, z in zip(*facts[side], strict=True)]) for side in ("aug1", "aug2")]
    there = (g["grid_centers"][..., 3] >= 0)[..., None].expand(2, 3, 15)
    assert there[..., 0].sum(1).tolist() == facts["valid_per_batch"]
    poses = [g["pose1"].clone().requires_grad_(), g["pose2"].clone().requires_grad_()]
    cameras = dome[None].expand(2, 5)
    hm, targets = (torch.stack([maps(seed) for seed in facts[key][1:]]) for key in ("pred_heatmaps", "targets"))
    losses = {"loss_2d": view_heatmap_loss(hm, targets), "loss_pose3d_ssv": 0.0}
    for a, (A, pose, render) in enumerate(zip(affines, poses[::-1], ("render_aug1_from_pose2", "render_aug2_from_pose1"), strict=True)):
        x, seen = people_in_views(pose, there, cameras, cells(A)[:, None].expand(2, 5, 2, 3), rule="reference")
        drawn = summed_heatmaps(x, seen, CELLS)
        torch.testing.assert_close(drawn.transpose(0, 1)[:, :, ::2], g[render].float(), atol=2e-3, rtol=0)
        attention = maps(facts["attention"][1 + a]) if config["attn"] else None
        losses["loss_pose3d_ssv"] += attended_heatmap_loss(drawn, targets[a], attention)
        if config["attn"]:
            losses["loss_attn_ssv"] = losses.get("loss_attn_ssv", 0) + config["ATTN_WEIGHT"] * attention_penalty(attention)
        if config["l1"] and facts["epoch"] >= config["L1_EPOCH"]:
            x, seen = people_in_views(pose, there, cameras, A[:, None].expand(2, 5, 2, 3), rule="reference")
            label, conf = g[f"joints_aug{a + 1}"].transpose(0, 1), g[f"vis_aug{a + 1}"].transpose(0, 1)[..., 0]
            before = label.clone()
            loss = matched_l1(x, seen, label, conf, PATCH, config["l1attn"], "reference")
            losses["loss_pose3d_l1_ssv"] = losses.get("loss_pose3d_l1_ssv", 0) + config["L1_WEIGHT"] * loss
            assert torch.equal(label, before)
    assert set(losses) | {"total"} == {key for key in g if key.startswith("loss") or key == "total"}
    for key, value in losses.items():
        torch.testing.assert_close(value, g[key], atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}")
    total = sum(losses.values())
    torch.testing.assert_close(total, g["total"], atol=2e-5, rtol=0)
    total.backward()
    for pose, key in zip(poses, ("grad_pose1_first", "grad_pose2_first"), strict=True):
        torch.testing.assert_close(pose.grad[:, 0], g[key], atol=1e-3 * float(g[key].abs().max()), rtol=1e-3)
        assert not pose.grad[~there[..., 0]].any()


@pytest.mark.parametrize(("name", "drop"), [("l1_matching_mean", False), ("l1_matching_drop_worst", True)])
def test_matched_distances_equal_the_recorded_ones(name, drop):
    g = case("ssv", name)
    preds = [g["pred_b0"], g["pred_b1"]]
    x = torch.stack([torch.nn.functional.pad(p, (0, 0, 0, 0, 0, 4 - p.shape[1])) for p in preds])
    shown = (torch.arange(4) < torch.tensor([[p.shape[1]] for p in preds]))[:, None, :, None].expand(x.shape[:-1])
    label, conf = g["joints"].transpose(0, 1), g["vis"].transpose(0, 1)[..., 0]
    before = label.clone()
    for _ in range(2):  # labels are not changed, so the second call gives the same
        loss = matched_l1(x, shown, label, conf, PATCH, drop, "reference")
        torch.testing.assert_close(loss, g["loss"], atol=1e-5, rtol=0)
    assert torch.equal(label, before)


def test_drawn_roots_and_their_loss_equal_the_recorded_ones(dome):  # noqa: F811
    facts, g = CASES["root_synth"], case("ssv", "root_synth")
    roots, valid = draw_roots(1, *SPACE, spread=0, generator=torch.Generator().manual_seed(facts["seed"]))
    A = cells(affine(facts["aug"][0][0], facts["aug"][1][0]).expand(1, 5, 2, 3))
    net = with_recorded_weights(RootNet(1, 0, Space(*SPACE, facts["cube"]), rule="reference"))
    with torch.no_grad():
        volume = net.volume(root_heatmaps(roots, valid, dome[None], A, CELLS, noise=0, rule="reference"), dome[None], A)
    target = root_volume(roots, valid, *SPACE, facts["cube"])
    torch.testing.assert_close(target, g["target_cubes"], atol=1e-5, rtol=0)
    torch.testing.assert_close(volume, g["root_cubes"], atol=1e-3 * float(g["root_cubes"].abs().max()), rtol=1e-3)
    torch.testing.assert_close(volume_loss(g["root_cubes"], target), g["loss"], atol=1e-5, rtol=0)
    torch.testing.assert_close(drawn_roots_loss(volume[None], target[None]), g["loss"], atol=1e-5, rtol=1e-3)


def test_losses_of_root_volumes_equal_the_recorded_ones():
    facts, g = CASES["root_losses"], case("ssv", "root_losses")

    def draw(seed):
        return torch.rand(2, 8, 8, 4, generator=torch.Generator().manual_seed(seed))

    cubes = torch.stack([draw(facts["cubes"][1] + i) for i in range(6)])
    target = torch.stack([draw(facts["synthetic_targets"][1] + i) for i in range(3)])
    main = cubes[::2].clone().requires_grad_()
    plain = main[2].detach().clone().requires_grad_()
    drawn = facts["WEIGHT_ROOT_SYN"] * drawn_roots_loss(cubes[1::2], target)
    torch.testing.assert_close(drawn, g["loss_root_syn"], atol=1e-5, rtol=1e-6)
    loss = facts["WEIGHT_ROOT_REG"] * root_consistency_loss(main[:2], plain)
    torch.testing.assert_close(loss, g["loss_root_reg"], atol=1e-5, rtol=0)
    loss.backward()
    torch.testing.assert_close(main.grad[0], g["grad_main1"], atol=1e-7, rtol=1e-5)
    assert plain.grad is None and bool(g["grad_main3_is_none"])


def people(seed=0, count=3):
    return 100 * torch.rand(2, 2, count, 5, 2, generator=torch.Generator().manual_seed(seed))


def test_people_are_matched_whatever_their_slots():
    label = people()
    x = (label + 1).flip(2).requires_grad_()
    shown, conf = torch.ones(2, 2, 3, 5, dtype=torch.bool), torch.ones(2, 2, 3, 5)
    loss = matched_l1(x, shown, label, conf, (100, 50))
    torch.testing.assert_close(loss, torch.tensor((1 / 100 + 1 / 50) / 2))
    loss.backward()
    assert (x.grad > 0).all()
    conf[:, :, 1] = 0  # nobody in the middle slot: the others stay where they are
    torch.testing.assert_close(matched_l1(x, shown, label, conf, (100, 50)), loss)


def test_joints_that_are_unknown_or_not_shown_do_not_count():
    label = people()
    x, shown, conf = label + 1, torch.ones(2, 2, 3, 5, dtype=torch.bool), torch.ones(2, 2, 3, 5)
    label, x = label.clone(), x.clone()
    label[..., 0, :], conf[..., 0] = math.nan, 0
    x[..., 1, :], shown[..., 1] = math.inf, False
    x.requires_grad_()
    loss = matched_l1(x, shown, label, conf, (100, 100))
    torch.testing.assert_close(loss, torch.tensor(0.01))
    loss.backward()
    assert x.grad.isfinite().all() and not x.grad[..., :2, :].any()
    nobody = matched_l1(x, torch.zeros_like(shown), label, conf, (100, 100), True)
    assert nobody == 0


def test_the_worst_view_may_be_dropped_and_the_last_one_not():
    label = people()
    x, shown, conf = label + 1, torch.ones(2, 2, 3, 5, dtype=torch.bool), torch.ones(2, 2, 3, 5)
    x[1, 0] += 30
    assert matched_l1(x, shown, label, conf, (100, 100)) > 0.03
    torch.testing.assert_close(matched_l1(x, shown, label, conf, (100, 100), True), torch.tensor(0.01))
    one = [values[:1, :1] for values in (x, shown, label, conf)]
    torch.testing.assert_close(matched_l1(*one, (100, 100), True), torch.tensor(0.01))


def test_attention_takes_cells_out():
    drawn, target = torch.rand(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    assert attended_heatmap_loss(drawn, target, torch.zeros_like(drawn)) == 0
    torch.testing.assert_close(attended_heatmap_loss(drawn, target), drawn.square().mean())
    assert attention_penalty(torch.full((3,), 0.5)) == 0.25


@pytest.mark.parametrize("call", [
    lambda z: matched_l1(z, torch.ones(2, 2, 3, 5), z, torch.ones(2, 2, 3, 5), (9, 9), rule="exakt"),
    lambda z: matched_l1(z, torch.ones(2, 2, 3), z, torch.ones(2, 2, 3, 5), (9, 9)),
    lambda z: attended_heatmap_loss(z, z[:1]),
    lambda z: root_consistency_loss(z, z),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(call):
    with pytest.raises(GeometryError):
        call(people())
