import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.epipolar import (
    essential,
    essential_from_pose,
    fundamental,
    fundamental_from_cameras,
    fundamental_from_pose,
    relative_from_cameras,
    relative_pose,
    sampson_distance,
)
from tests.scene import points, ring_of_cameras

F64 = torch.float64


@pytest.fixture
def pair():
    """Two neighbouring cameras of a ring of five, 40 points in their pixels: cams (2,), X (40, 3), x (2, 40, 2)."""
    cams = ring_of_cameras(5)[:2]
    X = points(40)
    return cams, X, cams.project(X)[0]


def same_up_to_sign(A, B, atol=1e-9):
    A, B = A / A.norm(), B / B.norm()
    assert min((A - B).abs().max(), (A + B).abs().max()) < atol


def normalised(K, x):
    return torch.einsum("ij,nj->ni", torch.linalg.inv(K), torch.cat([x, torch.ones_like(x[:, :1])], 1))[:, :2]


@pytest.mark.parametrize("count", [8, 9, 40])
def test_fundamental_of_exact_matches_is_that_of_the_cameras(pair, count):
    cams, _, x = pair
    F = fundamental(x[0, :count], x[1, :count])
    same_up_to_sign(F, fundamental_from_cameras(cams.P[0], cams.P[1]))
    assert torch.linalg.svdvals(F)[2] < 1e-12 and abs(float(F.norm()) - 1) < 1e-12


def test_every_route_to_the_fundamental_matrix_agrees(pair):
    cams, _, x = pair
    R, t = relative_from_cameras(cams.R[0], cams.t[0], cams.R[1], cams.t[1])
    F = fundamental_from_pose(R, t, cams.K[0], cams.K[1])
    same_up_to_sign(F, fundamental_from_cameras(cams.P[0], cams.P[1]))
    E = essential_from_pose(R, t)
    same_up_to_sign(essential(F, cams.K[0], cams.K[1]), E)
    cross = torch.tensor([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]], dtype=F64)
    torch.testing.assert_close(E, cross @ R)
    one = torch.ones(40, 1, dtype=F64)
    residual = torch.einsum("ni,ij,nj->n", torch.cat([x[1], one], 1), F, torch.cat([x[0], one], 1))
    assert residual.abs().max() < 1e-9


def test_zero_weight_leaves_a_match_out_whatever_it_holds(pair):
    cams, _, x = pair
    weight = torch.ones(40, dtype=F64)
    weight[30:] = 0
    spoiled = x.clone()
    spoiled[0, 30:35], spoiled[1, 35:] = float("nan"), 1e6
    same_up_to_sign(fundamental(spoiled[0], spoiled[1], weight), fundamental_from_cameras(cams.P[0], cams.P[1]))
    R, t = relative_from_cameras(cams.R[0], cams.t[0], cams.R[1], cams.t[1])
    n0, n1 = normalised(cams.K[0], spoiled[0]), normalised(cams.K[1], spoiled[1])
    R_hat, t_hat, in_front = relative_pose(essential_from_pose(R, t), n0, n1, weight)
    torch.testing.assert_close(R_hat, R)
    assert in_front == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_relative_pose_is_recovered_from_noise_free_and_noisy_matches(pair, sign):
    cams, _, x = pair
    R, t = relative_from_cameras(cams.R[0], cams.t[0], cams.R[1], cams.t[1])
    n0, n1 = normalised(cams.K[0], x[0]), normalised(cams.K[1], x[1])
    E = sign * essential(fundamental(x[0], x[1]), cams.K[0], cams.K[1])
    R_hat, t_hat, in_front = relative_pose(E, n0, n1)
    torch.testing.assert_close(R_hat, R, atol=1e-8, rtol=0)
    torch.testing.assert_close(t_hat, t / t.norm(), atol=1e-8, rtol=0)
    assert in_front == 1
    noisy = x + torch.randn_like(x) * 0.5
    E = essential(fundamental(noisy[0], noisy[1]), cams.K[0], cams.K[1])
    R_hat, t_hat, in_front = relative_pose(E, n0, n1)
    angle = torch.acos(((R_hat.mT @ R).trace() - 1) / 2)
    assert torch.rad2deg(angle) < 2 and torch.dot(t_hat, t) / t.norm() > np.cos(np.radians(3)) and in_front > 0.9


def test_relative_pose_reports_a_tie_as_zero(pair):
    cams, _, x = pair
    R, t = relative_from_cameras(cams.R[0], cams.t[0], cams.R[1], cams.t[1])
    n0, n1 = normalised(cams.K[0], x[0]), normalised(cams.K[1], x[1])
    nothing = torch.zeros(40, dtype=F64)
    assert relative_pose(essential_from_pose(R, t), n0, n1, nothing)[2] == 0


def test_leading_shapes_broadcast_and_equal_single_calls():
    cams = ring_of_cameras(5)
    x = cams.project(points(12))[0]  # (5, 12, 2)
    F = fundamental(x[0], x[1:4])  # one view against three
    assert F.shape == (3, 3, 3)
    for k in range(3):
        same_up_to_sign(F[k], fundamental(x[0], x[1 + k]))
    K = cams.K
    E = essential(F, K[0], K[1:4])
    n = torch.stack([normalised(K[v], x[v]) for v in range(4)])
    R, t, in_front = relative_pose(E, n[0], n[1:4])
    assert R.shape == (3, 3, 3) and t.shape == (3, 3) and in_front.shape == (3,)
    for k in range(3):
        R_k, t_k, _ = relative_pose(E[k], n[0], n[1 + k])
        torch.testing.assert_close(R[k], R_k)
        torch.testing.assert_close(t[k], t_k)


def test_sampson_distance_is_the_distance_a_point_was_moved_off_its_epipolar_line(pair):
    cams, _, x = pair
    F = fundamental_from_cameras(cams.P[0], cams.P[1])
    assert sampson_distance(F, x[0], x[1]).max() < 1e-8
    # slow twin, one point, term by term
    moved = x[1] + torch.tensor([1.0, -2.0], dtype=F64)
    a, b = [*x[0, 3].tolist(), 1.0], [*moved[3].tolist(), 1.0]
    Fx = [sum(float(F[i, j]) * a[j] for j in range(3)) for i in range(3)]
    Ftx = [sum(float(F[j, i]) * b[j] for j in range(3)) for i in range(3)]
    expected = abs(sum(b[i] * Fx[i] for i in range(3))) / (Fx[0] ** 2 + Fx[1] ** 2 + Ftx[0] ** 2 + Ftx[1] ** 2) ** 0.5
    assert float(sampson_distance(F, x[0], moved)[3]) == pytest.approx(expected, rel=1e-9)
    # moved by d at right angles to the line, one of two views takes the error: between d / sqrt(2) or so and d
    line = torch.einsum("ij,nj->ni", F, torch.cat([x[0], torch.ones(40, 1, dtype=F64)], 1))
    normal = line[:, :2] / line[:, :2].norm(dim=1, keepdim=True)
    distance = sampson_distance(F, x[0], x[1] + 3 * normal)
    assert (distance < 3).all() and (distance > 1).all()


def test_float32_in_float32_out_under_autocast(pair):
    cams, _, x = pair
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F = fundamental(x[0].float(), x[1].float())
        assert sampson_distance(F, x[0].float(), x[1].float()).max() < 0.05
    assert F.dtype == torch.float32


def test_gradient_of_the_differentiable_parts(pair):
    cams, _, x = pair
    P = [cams.P[k].clone().requires_grad_() for k in range(2)]
    assert torch.autograd.gradcheck(fundamental_from_cameras, (P[0] / 1000, P[1] / 1000), atol=1e-6)
    F = fundamental_from_cameras(cams.P[0], cams.P[1]) * 1e4
    a, b = x[0, :3].clone().requires_grad_(), (x[1, :3] + 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sampson_distance(F, a, b), (a, b), atol=1e-5)


@pytest.mark.parametrize(
    "shapes, words",
    [(((7, 2), (7, 2), None), "expected at least 8"), (((9, 2), (8, 2), None), "expected two of"),
     (((9, 3), (9, 3), None), "expected two of"), (((9, 2), (9, 2), (8,)), "weight")],
)  # fmt: skip
def test_bad_input_is_one_clear_error(shapes, words):
    x0, x1, weight = (None if s is None else torch.rand(s) for s in shapes)
    with pytest.raises(GeometryError, match=words):
        fundamental(x0, x1, weight)
