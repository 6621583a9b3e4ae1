import math
from itertools import combinations

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from lib.errors import GeometryError
from lib.geometry.crop import crop_affine, transform_points
from lib.geometry.epipolar import fundamental_from_cameras
from lib.geometry.triangulation import (
    CONVERGED,
    NOT_CONVERGED,
    TOO_FEW_VIEWS,
    _nearest_pairs,
    enough_views,
    point_covariance,
    ransac_triangulate,
    reprojection_error,
    triangulate,
    triangulate_reweighted,
    triangulation_quality,
    vector_median,
)
from tests.conftest import golden
from tests.scene import points, ring_of_cameras

F64 = torch.float64
ANY_VIEWS = ("dlt", "linear_ls", "reweighted", "midpoint", "median")
METHODS = (*ANY_VIEWS, "optimal2")


def scene(views, *shape, noise=0.0, seed=0):
    """P (V, 3, 4), X (*shape, 3), x (*shape[:-1], V, J, 2) of a ring, of five or more so that no two cameras face."""
    cams = ring_of_cameras(max(views, 5))[:views]
    X = points(*shape, seed=seed)
    x = torch.stack([cams[v].project(X)[0] for v in range(views)], -3)
    return cams.P, X, x + noise * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# Slow readable twins: one point, NumPy, straight from the definitions -----------------------------------------------


def rows_of(x, P, weight):
    rows = []
    for (u, v), p, w in zip(x, P, weight, strict=True):
        rows += [w * (u * p[2] - p[0]), w * (v * p[2] - p[1])]
    return np.array(rows)


def dlt_twin(x, P, weight):
    X = np.linalg.svd(rows_of(x, P, weight))[2][3]
    return X[:3] / X[3]


def linear_ls_twin(x, P, weight):
    A = rows_of(x, P, weight)
    return np.linalg.lstsq(A[:, :3], -A[:, 3], rcond=None)[0]


def reweighted_twin(x, P, weight):
    X = linear_ls_twin(x, P, weight)
    for _ in range(30):
        X = linear_ls_twin(x, P, weight / (P[:, 2, :3] @ X + P[:, 2, 3]))
    return X


def midpoint_twin(x, P, weight):
    A, b = np.zeros((3, 3)), np.zeros(3)
    for u, p, w in zip(x, P, weight, strict=True):
        center = -np.linalg.inv(p[:, :3]) @ p[:, 3]
        d = np.linalg.inv(p[:, :3]) @ [*u, 1]
        d /= np.linalg.norm(d)
        projector = w**2 * (np.eye(3) - np.outer(d, d))
        A, b = A + projector, b + projector @ center
    return np.linalg.solve(A, b)


def optimal2_twin(x, P, weight=None):
    """Least reprojection error, by Levenberg and Marquardt in the scaled point (OpenCV's polynomial loses digits)."""

    def residual(X):
        image = P @ np.append(1000 * X, 1.0)
        return (image[:, :2] / image[:, 2:] - x).ravel()

    start = linear_ls_twin(x, P, np.ones(2)) / 1000
    return 1000 * least_squares(residual, start, jac="3-point", method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15).x


def median_twin(x, P, weight):
    seen = [v for v in range(len(P)) if weight[v] > 0]
    found = [optimal2_twin(x[list(pair)], P[list(pair)]) for pair in combinations(seen, 2)]
    return min(found, key=lambda a: sum(np.linalg.norm(a - b) for b in found))


TWINS = {"dlt": dlt_twin, "linear_ls": linear_ls_twin, "reweighted": reweighted_twin, "midpoint": midpoint_twin,
         "optimal2": optimal2_twin, "median": median_twin}  # fmt: skip


@pytest.mark.parametrize("method, views", [*((m, v) for m in ANY_VIEWS for v in (2, 3, 5)), ("optimal2", 2)])
def test_noise_free_points_are_exact(method, views):
    P, X, x = scene(views, 4, 17)
    assert (triangulate(x, P, method=method) - X).abs().max() < 1e-6  # mm


@pytest.mark.parametrize("method, views", [*((m, v) for m in ANY_VIEWS for v in (2, 4)), ("optimal2", 2)])
def test_noisy_points_equal_the_slow_twin(method, views):
    P, _, x = scene(views, 12, noise=3.0)
    weight = torch.rand(views, 12, dtype=F64) + 0.2
    if views > 2:
        weight[1, :4] = 0
    out = triangulate(x, P, weight, method).numpy()
    for j in range(12):
        expected = TWINS[method](x[:, j].numpy(), P.numpy(), weight[:, j].numpy())
        # "reweighted" stops when no depth moves by 3e-5 of itself; the search for the least error is good to 1e-4
        tolerance = {"reweighted": 1e-2, "optimal2": 1e-4, "median": 1e-4}.get(method, 1e-5)
        np.testing.assert_allclose(out[j], expected, atol=tolerance)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_dlt_is_the_smallest_singular_vector_also_near_and_far_from_the_origin(scale):
    """Near the origin (in mm) the two smallest singular values come close, and Newton's method needs more steps."""
    cams = ring_of_cameras(5)[:3]
    X = torch.randn(300, 3, dtype=F64) * min(scale, 500) + (scale if scale > 1e3 else 0)
    P = cams.P.clone()
    P[:, :, 3] -= P[:, :, :3] @ X.mean(0)  # the cameras look at the points wherever these are
    P[:, :, 3] += P[:, :, :3] @ torch.tensor([0, 0, 1000.0], dtype=F64)
    image = torch.einsum("vij,nj->vni", P, torch.cat([X, torch.ones(300, 1, dtype=F64)], 1))
    x = image[..., :2] / image[..., 2:] + 3 * torch.randn(3, 300, 2, dtype=F64)
    expected = np.stack([dlt_twin(x[:, j].numpy(), P.numpy(), np.ones(3)) for j in range(300)])
    error = np.abs(triangulate(x, P).numpy() - expected).max(1) / (1 + np.abs(expected).max(1))
    assert np.median(error) < 1e-9 and error.max() < 1e-6


@pytest.mark.parametrize("case", range(12))
@pytest.mark.parametrize("suffix, names", [("", ("u", "P")), ("_norm", ("n", "E"))])
def test_golden_two_view_methods(case, suffix, names):
    data = golden("epipolarpose", "triangulation")
    x, P = (torch.from_numpy(np.stack([data[f"c{case}_{name}{k}"] for k in (1, 2)])) for name in names)
    for method, key in (("dlt", "linear_eigen"), ("linear_ls", "linear_ls"), ("optimal2", "polynomial")):
        expected = data[f"c{case}_{key}{suffix}"]
        np.testing.assert_allclose(triangulate(x, P, method=method).numpy(), expected, rtol=1e-6, atol=1e-6)
    out = triangulate_reweighted(x, P, reweight="cumulative")
    np.testing.assert_allclose(out.X.numpy(), data[f"c{case}_iterative_ls{suffix}"], rtol=1e-10, atol=1e-8)
    # the release calls its ten passes without convergence 1 as well; ours says so
    assert (data[f"c{case}_iterative_status{suffix}"] == 1).all()
    assert out.status.unique().tolist() == [CONVERGED if case % 3 == 0 else NOT_CONVERGED]
    # the correct weights converge for all, next to the optimum
    right = triangulate_reweighted(x, P)
    assert (right.status == CONVERGED).all() and right.solves.max() <= 3
    np.testing.assert_allclose(right.X.numpy(), data[f"c{case}_polynomial{suffix}"], atol=1.1)


def test_cumulative_weights_with_missing_views_and_gradients():
    P, _, x = scene(3, 4, noise=3.0)
    weight = torch.ones(3, 4, dtype=F64)
    weight[1, :2], weight[:2, 3], x[:2, 3] = 0, 0, float("nan")
    solve = lambda x, weight=weight, P=P: triangulate_reweighted(x, P, weight, "cumulative")  # noqa: E731
    torch.testing.assert_close(solve(x).X[:2], triangulate_reweighted(x[[0, 2], :2], P[[0, 2]], reweight="cumulative").X)
    assert solve(x).status[3] == TOO_FEW_VIEWS and (solve(x).X[3] == 0).all()
    few = x[:, :2].clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: solve(x, weight[:, :2]).X, (few,), atol=1e-4, rtol=1e-5)
    whole = x.clone().requires_grad_()
    solve(whole).X.sum().backward()
    assert whole.grad.isfinite().all() and (whole.grad[:, 3] == 0).all() and (whole.grad[1, :2] == 0).all()


@pytest.mark.parametrize("noise", [1.5, 15.0, 40.0])
def test_optimal2_is_the_optimum_however_far_the_rays_pass_each_other(noise):
    """Against OpenCV's polynomial solution, and where that loses digits against a search for the least error."""
    P, _, x = scene(2, 60, noise=noise)
    out = triangulate(x, P, method="optimal2")
    twin = np.stack([optimal2_twin(x[:, j].numpy(), P.numpy()) for j in range(60)])
    np.testing.assert_allclose(out, twin, rtol=0, atol=1e-4)
    F = fundamental_from_cameras(P[0], P[1]).numpy()
    near = [pair[0] for pair in cv2.correctMatches(F, x[:1].numpy(), x[1:].numpy())]
    X = cv2.triangulatePoints(P[0].numpy(), P[1].numpy(), near[0].T, near[1].T)
    assert np.median(np.linalg.norm((X[:3] / X[3]).T - out.numpy(), axis=1)) < 1e-4
    all_ten = _nearest_pairs(tuple(x.permute(0, 2, 1).flatten(0, 1)), torch.from_numpy(F)[..., None], 10)[0]
    always = triangulate(torch.stack(all_ten).unflatten(0, (2, 2)).permute(0, 2, 1), P, method="linear_ls")
    assert (always - out).norm(dim=-1).max() < 1e-5  # what a GPU computes


def test_golden_status_codes_behind_cameras():
    data = golden("epipolarpose", "triangulation")
    x, P = (torch.from_numpy(np.stack([data[f"st_{name}{k}"] for k in (1, 2)])) for name in "uP")
    out = triangulate_reweighted(x, P, reweight="cumulative")
    assert out.status.tolist() == data["st_status"].tolist()
    np.testing.assert_allclose(out.X.numpy(), data["st_out"], rtol=1e-9)


def test_golden_two_view_labels():
    """Two halves of a batch are the two views; label = patch coordinates and root-relative depth over 2 m."""
    data = {key: torch.from_numpy(value) for key, value in golden("epipolarpose", "triangulation").items()}
    x = data["ss_kps"][..., :2].unflatten(0, (2, 3)).transpose(0, 1)  # (3, 2, 17, 2)
    P = data["ss_meta_projection_matrix"].unflatten(0, (2, 3)).transpose(0, 1)
    X_world = triangulate(x, P, method="reweighted", reweight="cumulative").repeat(2, 1, 1)  # (6, 17, 3)
    torch.testing.assert_close(X_world, data["ss_world"], rtol=1e-6, atol=1e-6)
    R, C = data["ss_meta_R"], data["ss_meta_T"][..., 0]
    X_cam = (X_world - C[:, None]) @ R.mT
    x_img = X_cam[..., :2] / X_cam[..., 2:] * data["ss_meta_f"].mT + data["ss_meta_c"].mT
    center = torch.stack([data["ss_meta_center_x"], data["ss_meta_center_y"]], -1)
    box = torch.stack([data["ss_meta_width"], data["ss_meta_height"]], -1)
    scale = data["ss_meta_scale"]
    x_patch = transform_points(crop_affine(center, box, (256, 256), scale, data["ss_meta_rot"]), x_img)
    depth = (X_cam[..., 2:] - X_cam[:, :1, 2:]) / (2000 * scale[:, None, None])
    label = torch.cat([x_patch / 256 - 0.5, depth], -1).flatten(1)
    torch.testing.assert_close(label.float(), data["ss_label"], rtol=0, atol=1e-5)
    assert (data["ss_weight"] == 1).all()


@pytest.mark.parametrize("method", METHODS)
def test_leading_shapes_rigs_and_blocks_give_the_same_points(method, monkeypatch):
    P, _, x = scene(2, 3, 4, 5, noise=2.0)  # x (3, 4, 2, 5, 2)
    whole = triangulate(x, P, method=method)
    assert whole.shape == (3, 4, 5, 3)
    for k in range(3):
        torch.testing.assert_close(triangulate(x[k, 1], P, method=method), whole[k, 1], rtol=1e-9, atol=1e-7)
    per_sample = triangulate(x, P.expand(3, 4, 2, 3, 4), method=method)  # cameras of their own: another layout
    per_row = triangulate(x, P.expand(3, 1, 2, 3, 4), method=method)
    per_column = triangulate(x, P.expand(4, 2, 3, 4), method=method)
    monkeypatch.setattr("lib.geometry.normal_equations.map_points.__defaults__", (3,))
    blocks = [triangulate(x, p, method=method) for p in (P, P.expand(3, 4, 2, 3, 4))]
    for other in (per_sample, per_row, per_column, *blocks):
        torch.testing.assert_close(other, whole, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("method", (*ANY_VIEWS, "ransac"))
def test_zero_weight_excludes_a_view_exactly_and_keeps_gradients_finite(method):
    def solve(x, P, weight):
        return ransac_triangulate(x, P, weight, 30.0)[0] if method == "ransac" else triangulate(x, P, weight, method)

    P, _, x = scene(4, 6, noise=2.0)
    weight = torch.ones(4, 6, dtype=F64)
    weight[2] = 0
    weight[:3, 5] = 0  # one view left
    weight[:, 4] = 0  # none
    spoiled = x.clone()
    spoiled[2, :3], spoiled[2, 3], spoiled[:, 4] = float("nan"), float("inf"), float("nan")
    weight[2, 1] = float("nan")
    spoiled.requires_grad_()
    leaf = weight.clone().requires_grad_()
    out = solve(spoiled, P, leaf)
    torch.testing.assert_close(out[:4], solve(x[[0, 1, 3], :4], P[[0, 1, 3]], None), rtol=0, atol=1e-4)
    assert (out[4:] == 0).all() and enough_views(weight).tolist() == [True] * 4 + [False] * 2
    out.sum().backward()
    assert spoiled.grad.isfinite().all() and leaf.grad.isfinite().all()
    assert (spoiled.grad[2] == 0).all() and (spoiled.grad[:, 4:] == 0).all() and (spoiled.grad[0, :4] != 0).any()


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method):
    P, _, x = scene(2, 2, noise=3.0)
    x.requires_grad_()
    weight = torch.rand(2, 2, dtype=F64) + 0.5
    torch.autograd.gradcheck(lambda x: triangulate(x, P, weight, method), (x,), atol=1e-4, rtol=1e-5)
    # in the entries of P that are not huge numbers of px mm
    small = P[:, :, :3].clone().requires_grad_()
    full = lambda p: triangulate(x.detach(), torch.cat([p, P[:, :, 3:]], -1), weight, method)  # noqa: E731
    torch.autograd.gradcheck(full, (small,), atol=1e-2, rtol=1e-4)
    if method not in ("optimal2", "median"):
        leaf = weight.requires_grad_()
        torch.autograd.gradcheck(lambda w: triangulate(x.detach(), P, w, method), (leaf,), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_float32_and_bfloat16_in_under_autocast(method):
    P, X, x = scene(2, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = triangulate(x.float(), P.float(), method=method)
        low = triangulate(x.bfloat16(), P.float(), method=method)
    assert out.dtype == low.dtype == torch.float32
    assert (out - X).abs().max() < 0.05  # what float32 pixels allow
    assert low.isfinite().all()


def test_reweighted_status_of_missing_views_and_of_unfinished_points():
    P, _, x = scene(3, 4, noise=10.0)
    weight = torch.ones(3, 4)
    weight[0, 1] = 0
    weight[:2, 2] = 0
    out = triangulate_reweighted(x, P, weight)
    assert out.status.tolist() == [CONVERGED, CONVERGED, TOO_FEW_VIEWS, CONVERGED]
    one = triangulate_reweighted(x, P, weight, max_solves=1)
    assert one.status.tolist() == [NOT_CONVERGED, NOT_CONVERGED, TOO_FEW_VIEWS, NOT_CONVERGED]
    behind = P.clone()
    behind[1] *= -1  # same pixels, negative depths
    assert triangulate_reweighted(x, behind, weight).status.tolist() == [-2, -2, TOO_FEW_VIEWS, -2]


def test_reweighting_beats_linear_least_squares_when_a_camera_is_near():
    """A pixel of a near camera says more; the linear rows of a far one are long and would dominate."""
    near, far = ring_of_cameras(5, radius=1500.0)[:2], ring_of_cameras(5, radius=9000.0)[2:4]
    P = torch.cat([near.P, far.P])
    X = points(2000) * 0.3 + torch.tensor([0, 0, 700.0], dtype=F64)
    x = torch.cat([near.project(X[None])[0], far.project(X[None])[0]])
    x = x + torch.randn_like(x) * 2
    error = {m: (triangulate(x, P, method=m) - X).norm(dim=-1).mean() for m in ("linear_ls", "reweighted")}
    assert error["reweighted"] < 0.8 * error["linear_ls"]


@pytest.mark.parametrize("views", [4, 8, 10])
def test_ransac_finds_the_views_that_agree(views):
    P, X, x = scene(views, 300, noise=1.0)
    gross = torch.rand(views, 300, dtype=F64) < 0.15
    gross[:, gross.sum(0) > views - 3] = False  # keep three good views
    wrong = torch.where(gross[..., None], torch.rand(views, 300, 2, dtype=F64) * 1000, x)
    far = (wrong - x).norm(dim=-1) > 60
    out, inlier = ransac_triangulate(wrong, P, threshold_px=15.0)
    assert (out - X).norm(dim=-1).quantile(0.99) < 15 and (triangulate(wrong, P) - X).norm(dim=-1).quantile(0.9) > 100
    assert (inlier & far).double().mean() < 1e-3 and (inlier | gross).double().mean() > 0.99
    again = ransac_triangulate(wrong, P, threshold_px=15.0)
    assert torch.equal(again[0], out) and torch.equal(again[1], inlier)
    batched = ransac_triangulate(wrong.unflatten(1, (3, 100)).transpose(0, 1), P.expand(3, views, 3, 4), None, 15.0)
    torch.testing.assert_close(batched[0].flatten(0, 1), out)


def test_ransac_agrees_alike_far_from_the_worlds_origin():
    P, X, x = scene(5, 100, noise=1.0)
    x[0, ::2] += 40
    away = torch.eye(4, dtype=F64)
    away[:3, 3] = torch.tensor([3e6, -2e6, 1e5])  # mm; in float32 that alone moves pixels
    there, inlier = ransac_triangulate(x, P @ away, threshold_px=5.0)
    here, same = ransac_triangulate(x, P, threshold_px=5.0)
    assert torch.equal(inlier, same) and not inlier[0, ::2].any() and inlier[1:].double().mean() > 0.95
    torch.testing.assert_close(there + away[:3, 3], here, rtol=0, atol=1e-3)


def test_ransac_with_missing_views_and_without_agreement():
    P, X, x = scene(4, 5)
    weight = torch.ones(4, 5)
    weight[1] = 0
    x[1] = float("nan")
    x[0, 1] += 300  # two good views of three left: they agree
    x[0, 2], x[2, 2], x[3, 2] = x[0, 2] + 200, x[2, 2] - 300, x[3, 2].flip(0)  # nobody agrees
    weight[:3, 3] = 0
    out, inlier = ransac_triangulate(x, P, weight, threshold_px=5.0)
    torch.testing.assert_close(out[[0, 1, 4]], X[[0, 1, 4]], rtol=0, atol=1e-6)
    assert inlier[:, 0].tolist() == [True, False, True, True] and inlier[:, 1].tolist() == [False, False, True, True]
    if not inlier[:, 2].any():
        torch.testing.assert_close(out[2], triangulate(x, P, weight, "reweighted")[2])
    assert not inlier[:, 3].any() and (out[3] == 0).all()


def test_reprojection_error_by_hand_and_behind():
    P = torch.tensor([[[1000.0, 0, 0, 0], [0, 1000, 0, 0], [0, 0, 1, 0]]], dtype=F64)
    X = torch.tensor([[0.0, 0, 2000], [200, -100, 1000], [0, 0, -10]], dtype=F64, requires_grad=True)
    x = torch.tensor([[[3.0, 4], [200, -100], [0, 0]]], dtype=F64)
    error = reprojection_error(X, x, P)
    assert error.tolist() == [[5.0, 0.0, math.inf]]
    error[:, :2].sum().backward()
    assert X.grad.isfinite().all()


def test_point_covariance_predicts_the_scatter_of_triangulated_points():
    P, X, x = scene(3, 3)
    weight = torch.tensor([[1.0, 1, 0], [0.5, 2, 1], [1, 1, 1]], dtype=F64)
    root = torch.tensor([[2.0, 0.0], [0.8, 1.0]], dtype=F64)
    cov_x = (root @ root.mT).expand(3, 3, 2, 2)
    draws = x + torch.randn(20000, 3, 3, 2, dtype=F64) @ root.mT
    found = triangulate(draws, P, weight, "reweighted") - X
    scatter = torch.einsum("njb,njc->jbc", found, found) / len(found)
    expected = point_covariance(X, P, cov_x, weight)
    for j in range(3):  # compared in the frame where the prediction is the identity
        whitener = torch.linalg.inv(torch.linalg.cholesky(expected[j]))
        torch.testing.assert_close(whitener @ scatter[j] @ whitener.mT, torch.eye(3, dtype=F64), atol=0.06, rtol=0)
    # equal weights and unit errors: the inverse of the information matrix, by finite differences
    step = 1e-3
    moved = [reproject(X + step * axis, P) - reproject(X - step * axis, P) for axis in torch.eye(3, dtype=F64)]
    J = torch.stack(moved, -1) / (2 * step)  # (V, J, 2, 3)
    torch.testing.assert_close(point_covariance(X, P), torch.linalg.inv((J.mT @ J).sum(0)), rtol=1e-6, atol=1e-6)


def reproject(X, P):
    image = torch.einsum("vij,nj->vni", P, torch.cat([X, torch.ones_like(X[:, :1])], 1))
    return image[..., :2] / image[..., 2:]


def test_quality_marks_what_cannot_be_trusted():
    P, X, x = scene(3, 4)
    x[1, 1] += 20
    weight = torch.ones(3, 4)
    weight[:2, 2] = 0
    weight[0, 3] = 0
    quality = triangulation_quality(triangulate(x, P, weight, "reweighted"), x, P, weight)
    assert quality.valid.tolist() == [True, True, False, True]
    assert quality.error[:, 0].max() < 1e-6 and quality.error[:, 1].max() > 5 and quality.error[0, 3] == 0
    assert quality.covariance[2].diagonal().isinf().all() and quality.covariance[0].isfinite().all()
    worse = quality.covariance[3].diagonal().sum()  # two views instead of three
    assert worse > quality.covariance[0].diagonal().sum()


def test_equal_cameras_and_empty_batches_stay_quiet():
    P, _, x = scene(2, 4)
    same = triangulate(x[:1].expand(2, 4, 2), P[:1].expand(2, 3, 4), method="linear_ls")
    assert same.shape == (4, 3)  # no parallax: any point, but no exception
    for shape in ((0, 2, 4, 2), (3, 2, 0, 2)):
        out = triangulate(torch.zeros(shape), P)
        assert out.shape == (shape[0], shape[2], 3)
        assert ransac_triangulate(torch.zeros(shape), P)[1].shape == shape[:-1]


@pytest.mark.parametrize(
    "x, P, weight, words",
    [((1, 5, 2), (1, 3, 4), None, "at least 2"), ((3, 5, 2), (2, 3, 4), None, "same number of views"),
     ((2, 5, 3), (2, 3, 4), None, "expected x"), ((2, 5, 2), (2, 4, 4), None, "expected x"),
     ((2, 5, 2), (2, 3, 4), (2, 4), "weight"), ((4, 2, 5, 2), (3, 2, 3, 4), None, "broadcast")],
)  # fmt: skip
def test_wrong_shapes_are_one_clear_error(x, P, weight, words):
    weight = None if weight is None else torch.rand(weight)
    for solve in (triangulate, triangulate_reweighted, ransac_triangulate):
        with pytest.raises(GeometryError, match=words):
            solve(torch.rand(x), torch.rand(P), weight)


def test_wrong_names_and_too_many_views_are_told():
    P, _, x = scene(3, 2)
    with pytest.raises(GeometryError, match="dlt, linear_ls"):
        triangulate(x, P, method="DLT2")
    with pytest.raises(GeometryError, match="exactly two"):
        triangulate(x, P, method="optimal2")
    with pytest.raises(GeometryError, match="absolute, cumulative"):
        triangulate(x, P, method="reweighted", reweight="both")


def test_vector_median_is_one_of_the_usable_candidates():
    X = torch.tensor([[[0.0, 0, 0]], [[1.0, 0, 0]], [[1.2, 0, 0]], [[50.0, 0, 0]]])  # (E,J=1,3)
    usable = torch.ones(4, 1, dtype=torch.bool)
    assert vector_median(X, usable)[0, 0] == 1.0
    usable[1] = False
    assert vector_median(X, usable)[0, 0] == pytest.approx(1.2)
