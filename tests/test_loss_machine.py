"""Losses of pose machines: recorded values and gradients, what must not count, what the release gets wrong."""

import pytest
import torch

from lib.errors import ConfigError, GeometryError
from lib.loss.machine import bone_loss, bone_vectors, euclid_loss
from lib.models.pose_machine import PoseNormalizer
from lib.skeleton import get
from tests.conftest import golden

SKELETON = get("h36m16")


def recorded() -> dict[str, torch.Tensor]:
    z = {key: torch.from_numpy(value) for key, value in golden("pose_machines", "losses_metrics").items()}
    return {key: v.unflatten(-1, (16, -1)) if v.shape[-1:] in ((48,), (32,)) else v for key, v in z.items()}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-6, atol=1e-7 * expected.abs().max().item())


@pytest.mark.parametrize("axes", ["2d", "3d"])
def test_values_and_gradients_equal_the_recorded_ones(axes):
    z = recorded()
    pred, gt = z[f"pred{axes}"].double().requires_grad_(), z[f"gt{axes}"].double()
    losses = {
        ("euclid", "euclid_grad"): euclid_loss(pred, gt),
        ("bone", "bone_grad_exact"): bone_loss(pred, gt, SKELETON),
        ("bone", "bone_grad_published"): bone_loss(pred, gt, SKELETON, gradient="published"),
    }
    for (name, slope), value in losses.items():
        close(value.detach(), z[f"{name}_{axes}"])
        close(torch.autograd.grad(value, pred)[0], z[f"{slope}_{axes}"])


def test_the_exact_gradient_of_bones_does_not_move_the_whole_pose_and_the_published_one_does():
    z = recorded()
    for gradient, still in (("exact", True), ("published", False)):
        pred = z["pred3d"].double().requires_grad_()
        bone_loss(pred, z["gt3d"].double(), SKELETON, gradient=gradient).backward()
        assert (pred.grad.sum(1).abs().max() < 1e-12) == still


def test_millimetres_and_their_mean_error_equal_the_recorded_ones():
    z = recorded()
    ranges = PoseNormalizer().double()
    for name, recorded_mm in (("pred3d", z["unnorm_pred"]), ("gt3d", z["unnorm_gt"])):
        torch.testing.assert_close(ranges.denormalize(z[name].double())[:, 1:], recorded_mm[:, 1:], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(ranges.high[1:], z["max_16"].double()[1:], rtol=1e-6, atol=0)
    torch.testing.assert_close(ranges.low[1:], z["min_16"].double()[1:], rtol=1e-6, atol=0)
    mm = (ranges.denormalize(z["pred3d"].double()) - ranges.denormalize(z["gt3d"].double())).norm(dim=-1).mean(-1)
    torch.testing.assert_close(mm, z["mpjpe_per_frame"], rtol=1e-6, atol=0)


def test_bones_go_from_a_joint_to_its_parent():
    x = torch.randn(2, 3, 16, 3)
    b = bone_vectors(x, "h36m16")
    assert torch.equal(b[..., SKELETON.root_index, :], torch.zeros(2, 3, 3))
    assert torch.equal(b[..., SKELETON.index("l_wrist"), :], x[..., SKELETON.index("l_elbow"), :] - x[..., SKELETON.index("l_wrist"), :])


def test_what_is_masked_counts_neither_as_a_joint_nor_as_a_bone():
    pred, gt = torch.randn(4, 16, 3, dtype=torch.float64), torch.randn(4, 16, 3, dtype=torch.float64)
    mask = torch.rand(4, 16) > 0.3
    mask[1] = False  # a picture without 3D labels
    gt[~mask] = torch.nan
    pred.requires_grad_()
    joints, bones = euclid_loss(pred, gt, mask), bone_loss(pred, gt, SKELETON, mask)
    by_hand = sum((pred[n, j] - gt[n, j]).square().sum() for n in (0, 2, 3) for j in range(16) if mask[n, j])
    torch.testing.assert_close(joints, by_hand / 6)
    by_hand = sum(
        ((pred[n, p] - pred[n, c]) - (gt[n, p] - gt[n, c])).square().sum()
        for n in (0, 2, 3)
        for p, c in SKELETON.bones.tolist()
        if mask[n, p] and mask[n, c]
    )
    torch.testing.assert_close(bones, by_hand / 6)
    (joints + bones).backward()
    assert pred.grad.isfinite().all() and not pred.grad[1].any()
    assert euclid_loss(pred, gt, torch.zeros_like(mask)) == 0 and bone_loss(pred, gt, SKELETON, torch.zeros_like(mask)) == 0


def test_shapes_and_names_that_do_not_fit():
    x = torch.zeros(2, 16, 3)
    with pytest.raises(GeometryError, match=r"found shapes \(2, 16, 3\), \(2, 16, 2\)"):
        euclid_loss(x, x[..., :2])
    with pytest.raises(GeometryError, match="poses of 15 joints, but h36m16 has 16"):
        bone_loss(x[:, 1:], x[:, 1:], SKELETON)
    with pytest.raises(ConfigError, match="gradient 'parent' is not one of exact, published"):
        bone_loss(x, x, SKELETON, gradient="parent")
