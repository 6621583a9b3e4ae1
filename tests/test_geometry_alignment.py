"""Similarity alignment: known transforms, EpipolarPose's recorded fits, a plain per-pose twin, degenerate sets."""

import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.alignment import apply_similarity, similarity
from tests.conftest import golden
from tests.scene import points, rotations


def twin(X: np.ndarray, Y: np.ndarray, w: np.ndarray):
    """Umeyama's solution for one weighted point set, step by step."""
    w = w / w.sum()
    mean_X, mean_Y = w @ X, w @ Y
    C = (Y - mean_Y).T @ np.diag(w) @ (X - mean_X)
    U, S, Vt = np.linalg.svd(C)
    D = np.diag([1, 1, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = U @ D @ Vt
    s = np.trace(np.diag(S) @ D) / (w * ((X - mean_X) ** 2).sum(1)).sum()
    return R, mean_Y - s * R @ mean_X, s


@pytest.mark.parametrize("shape", [(), (2,), (1, 2)])
def test_recovers_a_known_similarity(shape):
    X, R, t = points(*shape, 9), rotations(*shape), points(*shape, seed=3)
    s = torch.full(shape, 0.7).double()
    Y = apply_similarity(X, R, t, s)
    for found, expected in zip(similarity(X, Y), (R, t, s), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-6)
    R1, t1, s1 = similarity(X, apply_similarity(X, R, t), scale=False)
    torch.testing.assert_close(apply_similarity(X, R1, t1, s1), apply_similarity(X, R, t), rtol=0, atol=1e-6)
    assert s1.eq(1).all()


@pytest.mark.parametrize("name, scale", [("scaled", True), ("rigid", False)])
def test_golden(name, scale):
    """The reference writes b Y T + c with T applied from the right: our R is its transpose."""
    g = {k: torch.from_numpy(v) for k, v in golden("epipolarpose", "h36m_evaluate").items() if k.startswith("sim")}
    R, t, s = similarity(g["sim_Y"], g["sim_X"], scale=scale)
    torch.testing.assert_close(R.mT, g[f"sim_{name}_T"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(t, g[f"sim_{name}_c"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s, g[f"sim_{name}_b"], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(apply_similarity(g["sim_Y"], R, t, s), g[f"sim_{name}_Z"], rtol=1e-6, atol=1e-6)


def test_equals_the_plain_twin_with_weights_and_never_reflects():
    X, Y, w = points(6, 12), points(6, 12, seed=1), torch.rand(6, 12).double()
    X[3, :, 2] = 1000.0  # all points in one plane
    Y[0] = X[0] * torch.tensor([-1.0, 1.0, 1.0])  # the best orthogonal matrix would be a mirror
    found = similarity(X, Y, w)
    for i in range(6):
        for a, b in zip(found, twin(X[i].numpy(), Y[i].numpy(), w[i].numpy()), strict=True):
            np.testing.assert_allclose(a[i].numpy(), b, rtol=1e-7, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(found[0]), torch.ones(6).double())


def test_weight_zero_is_a_mask():
    X, Y = points(2, 8), points(2, 8, seed=1)
    expected = similarity(X[:, :6], Y[:, :6])
    X[:, 6:], Y[:, 7] = float("nan"), float("inf")
    w = torch.tensor([1.0] * 6 + [0.0] * 2)
    for a, b in zip(similarity(X, Y, w), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_bad_set_does_not_touch_the_others():
    X, Y = points(3, 8), points(3, 8, seed=1)
    X[1, 0, 0] = float("nan")
    R, t, s = similarity(X, Y)
    assert t[1].isnan().all() and s[1].isnan() and t[[0, 2]].isfinite().all() and R[[0, 2]].isfinite().all()


def test_gradients_also_for_equal_singular_values():
    X, Y, w = points(2, 7).requires_grad_(), points(2, 7, seed=1).requires_grad_(), torch.rand(2, 7).double()
    assert torch.autograd.gradcheck(lambda X, Y: similarity(X / 1000, Y / 1000, w), (X, Y))
    corners = torch.tensor([-1.0, 1.0]).double()
    cube = torch.cartesian_prod(corners, corners, corners).requires_grad_()  # three equal singular values
    turned = cube.detach() @ rotations().mT
    assert torch.autograd.gradcheck(lambda X: similarity(X, turned), cube)


def test_degenerate_sets_stay_finite():
    one = torch.tensor([1.0, 2.0, 3.0]).expand(5, 3).clone().requires_grad_()
    line = (torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0, 0.0])).requires_grad_()
    for X in (one, line):
        out = similarity(X, X.detach() + 1)
        moved = apply_similarity(X.detach(), *out)
        torch.testing.assert_close(moved, X.detach() + 1, atol=1e-5, rtol=0)
        sum(o.sum() for o in out).backward()
        assert X.grad.isfinite().all()


def test_float32_goes_through_float64_and_broadcasts():
    X, Y = points(4, 9, dtype=torch.float32), points(9, seed=1, dtype=torch.float32)
    R, t, s = similarity(X, Y)
    assert R.shape == (4, 3, 3) and R.dtype == t.dtype == s.dtype == torch.float32
    expected = similarity(X.double(), Y.double())
    torch.testing.assert_close(t, expected[1].float(), atol=0, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(similarity(X, Y)[1], t, atol=0, rtol=0)


def test_wrong_shapes():
    for X, Y, w in (
        (torch.zeros(5, 2), torch.zeros(5, 2), None),
        (torch.zeros(5, 3), torch.zeros(6, 3), None),
        (torch.zeros(5, 3), torch.zeros(5, 3), torch.ones(4)),
        (torch.zeros(2, 5, 3), torch.zeros(3, 5, 3), None),
    ):
        with pytest.raises(GeometryError):
            similarity(X, Y, w)
