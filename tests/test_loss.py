"""Losses: hand-made numbers, the recorded values of EpipolarPose's release, exact gradients."""

import pytest
import torch

from lib.errors import ConfigError, GeometryError
from lib.geometry.heatmap import soft_argmax
from lib.loss import LOSSES, build_joint_loss, heatmap_mse, l1_joint_loss, l2_joint_loss, smooth_l1_joint_loss
from tests.conftest import golden

RECORDED = {
    "L1JointLocationLoss": ("L1JointLocationLoss", "raw_weighted_l1_loss"),
    "SmoothL1JointLocationLoss": ("SmoothL1JointLocationLoss", "raw_weighted_smooth_l1_loss"),
    "L2JointLocationLoss": ("weighted_mse", "raw_weighted_mse_loss"),
}


def test_every_loss_of_the_table_has_a_recorded_value():
    assert set(LOSSES) == set(RECORDED)


def test_losses_by_hand():
    pred = torch.tensor([[[0.5, -2.0]], [[0.0, 3.0]]])  # (B,J,C) = (2,1,2), target 0
    weight = torch.tensor([[[1.0, 1.0]], [[1.0, 0.5]]])
    zero = torch.zeros_like(pred)
    assert l1_joint_loss(pred, zero, weight) == (0.5 + 2 + 1.5) / 2
    assert l1_joint_loss(pred, zero, weight, size_average=False) == 0.5 + 2 + 1.5
    assert l2_joint_loss(pred, zero) == (0.25 + 4 + 9) / 2
    assert smooth_l1_joint_loss(pred, zero) == (0.125 + 1.5 + 2.5) / 2
    assert smooth_l1_joint_loss(pred, zero, beta=4.0) == (0.25 + 4 + 9) / 8 / 2
    with pytest.raises(GeometryError, match=r"\(2, 1, 2\).*\(2, 1, 3\)"):
        l1_joint_loss(pred, torch.zeros(2, 1, 3))
    with pytest.raises(GeometryError, match="weight"):
        l1_joint_loss(pred, zero, torch.ones(2, 1, 3))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_equal_the_release(name, norm, average):
    z = golden("epipolarpose", "softargmax_losses")
    case = f"norm{int(norm)}_avg{int(average)}"
    integral, raw = RECORDED[name]
    loss = build_joint_loss(name, norm, average)

    a, b, w = (torch.from_numpy(z[f"raw_{k}"]).unflatten(1, (-1, 2)) for k in "abw")
    torch.testing.assert_close(loss(a, b, w).double(), torch.tensor(float(z[f"{raw}_{case}"]), dtype=torch.float64),
                               rtol=1e-5, atol=1e-7)

    volume = torch.from_numpy(z["loss_vol_J5"]).unflatten(1, (5, -1)).requires_grad_()
    label, weight = (torch.from_numpy(z[f"loss_{k}"]).unflatten(1, (5, 3)) for k in ("label", "weight"))
    pred = soft_argmax(volume, 3) / 8 - 0.5
    value = loss(pred, label, weight)
    assert value.item() == pytest.approx(float(z[f"{integral}_{case}"]), rel=1e-5)
    key = f"{integral}_{case}_grad_sum_abs"
    if key in z:
        (grad,) = torch.autograd.grad(value, volume)
        assert float(grad.double().abs().sum()) == pytest.approx(float(z[key]), rel=2e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_are_exact_for_any_number_of_coordinates(name):
    for coordinates in (2, 3):
        pred = torch.randn(3, 4, coordinates, dtype=torch.float64, requires_grad=True)
        target = torch.randn(3, 4, coordinates, dtype=torch.float64)
        weight = torch.rand(3, 4, coordinates, dtype=torch.float64)
        for norm in (False, True):
            assert torch.autograd.gradcheck(build_joint_loss(name, norm), (pred, target, weight))


def test_half_precision_predictions_are_compared_in_float32():
    pred = torch.full((1, 1, 2), 0.25, dtype=torch.bfloat16)
    assert l1_joint_loss(pred, torch.full((1, 1, 2), 0.2501)).item() == pytest.approx(2e-4, rel=1e-3)


def test_unknown_loss_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match="L2JointLocationLoss.*did you mean SmoothL1JointLocationLoss"):
        build_joint_loss("SmothL1JointLocationLoss")


def test_heatmap_mse_is_the_mean_over_joints_of_half_the_weighted_mse():
    pred, target = torch.randn(2, 3, 4, 5, requires_grad=True), torch.rand(2, 3, 4, 5)
    weight = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])
    maps = weight[:, :, None, None]
    per_joint = [0.5 * ((maps * pred)[:, j] - (maps * target)[:, j]).square().mean() for j in range(3)]
    torch.testing.assert_close(heatmap_mse(pred, target, weight), sum(per_joint) / 3)
    torch.testing.assert_close(heatmap_mse(pred, target), 0.5 * (pred - target).square().mean())
    (grad,) = torch.autograd.grad(heatmap_mse(pred, target, weight), pred)
    assert (grad[0, 1] == 0).all() and (grad[0, 0] != 0).any()
    with pytest.raises(GeometryError, match="weight"):
        heatmap_mse(pred, target, torch.ones(2, 4))
