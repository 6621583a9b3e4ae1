"""Triangulation: joints seen by V calibrated cameras to points in space, with a quality for each.

x (..., V, J, 2) undistorted px, P (..., V, 3, 4) projection matrices of the same pixels, weight (..., V, J) >= 0 ->
X (..., J, 3) in the unit of the cameras (mm). A weight multiplies the equations of a view (an inverse standard
deviation); a view with weight 0 (or NaN) is left out exactly, whatever its x holds. Joints that fewer than two
views see get X = 0: ask `enough_views`. All methods work in float64, return the type of the input (at least
float32) and are differentiable in x, P and weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.epipolar import fundamental_from_cameras
from lib.geometry.normal_equations import (
    BLOCK,
    Points,
    check_shapes,
    cofactors,
    depths,
    enough,
    features,
    guard,
    map_points,
    normal_matrix,
    points_matrix,
    row_products,
    solve_affine,
    solve_homogeneous,
    solve_rows,
)
from lib.geometry.precision import no_autocast, result_dtype, solve_dtype

# Status of `triangulate_reweighted`; other values below 0 are minus the bit mask of the views that the point is behind.
CONVERGED, NOT_CONVERGED = 1, 0
TOO_FEW_VIEWS = -(2**62)
ALL_PAIRS_UP_TO = 8  # views; 28 pairs


class Reweighted(NamedTuple):
    """Result of `triangulate_reweighted`."""

    X: Tensor  # (..., J, 3)
    status: Tensor  # (..., J) int64
    solves: Tensor  # (..., J) int64, how many systems were solved until convergence


class Quality(NamedTuple):
    """How far triangulated joints can be trusted."""

    valid: Tensor  # (..., J) bool: at least two views, in front of all of them
    error: Tensor  # (..., V, J) px, reprojection error; 0 for missing views, inf behind a camera
    covariance: Tensor  # (..., J, 3, 3) mm^2, first order


@no_autocast
def triangulate(x: Tensor, P: Tensor, weight: Tensor | None = None, method: str = "dlt", reweight: str = "absolute") -> Tensor:
    """Triangulate every joint.    x (..., V, J, 2) px, P (..., V, 3, 4), weight (..., V, J) -> X (..., J, 3) mm

    method     views  minimises
    dlt        any    |A (X, 1)| over unit (X, 1), as OpenCV's triangulatePoints: depends on unit and origin (see below)
    linear_ls  any    |A (X, 1)|: linear least squares, the fastest
    reweighted any    the same, rows divided by the depth: nearly the reprojection error (Hartley and Sturm 1997)
    optimal2   two    exact reprojection error in two views (theirs too; by Lindstrom's correction, CVPR 2010)
    midpoint   any    squared distances in space to the viewing rays
    median     any    the vector median of the `optimal2` points of all pairs (EpipolarPose, section 3.1)

    dlt in mm is bad near the world origin: with 4 views 4.5 m away and 3 px noise, the median error is 20 % larger
    than linear_ls at 5 cm from it, three times at 1 cm, where one point in a hundred errs by over a metre. optimal2
    and median use a weight only to leave a view out. Only "reweighted" reads `reweight`, see
    `triangulate_reweighted`. Raises GeometryError for wrong shapes, fewer than two views, more than two for
    optimal2, or an unknown name.
    """
    if method == "reweighted":
        return triangulate_reweighted(x, P, weight, reweight).X
    if method == "median":
        return triangulate_pairs(x, P, weight)
    if method not in _SOLVERS:
        raise GeometryError(f"method: '{method}' is not one of {', '.join((*_SOLVERS, 'reweighted', 'median'))}")
    check_shapes(x, P, weight)
    if method == "optimal2" and x.shape[-3] != 2:
        raise GeometryError(f"optimal2 needs exactly two views, found {x.shape[-3]}; use reweighted or median")
    (X,) = map_points(_SOLVERS[method], x, P, weight)
    return X.to(result_dtype(x))


@no_autocast
def triangulate_reweighted(
    x: Tensor,
    P: Tensor,
    weight: Tensor | None = None,
    reweight: str = "absolute",
    max_solves: int = 10,
    limit: float = 3e-5,
) -> Reweighted:
    """Linear least squares with each view's rows divided by the point's depth in it, until the depths stay.

    x (..., V, J, 2) px, P (..., V, 3, 4), weight (..., V, J) -> X (..., J, 3), status and solves (..., J). Hartley
    and Sturm 1997, "Iterative-LS". It stops when no depth moved by more than `limit`. reweight "absolute" divides
    the original rows and takes the limit relative to the depth; "cumulative" divides the already divided rows once
    more, with an absolute limit, as EpipolarPose's release does: it drifts to one view and is here for parity. Its weights
    are tenth powers of depths, which normal equations would square: these systems are solved by QR, to 1e-10 of the release.
    status: 1 converged and in front of all views, 0 in front but not converged, otherwise minus the bit mask of the
    views the point is behind (two views: -1 only in front of the second, -2 only of the first, -3 of none),
    TOO_FEW_VIEWS where fewer than two views see the joint.
    """
    if reweight not in ("absolute", "cumulative"):
        raise GeometryError(f"reweight: '{reweight}' is not one of absolute, cumulative")
    absolute = reweight == "absolute"
    tiny = 1e-30

    def solve(points: Points) -> tuple[Tensor, Tensor]:
        seen, present = enough(points), points.present
        products, rows = row_products(points.P), features(points.x)
        weight, X, done, solves = points.weight, None, None, 0
        depth = 1.0
        for _ in range(max_solves):
            if absolute:
                X_new = solve_affine(guard(normal_matrix(products, rows, weight), seen))
            else:
                X_new = solve_rows(points, weight, seen)
            X = X_new if done is None else tuple(a.where(done, b) for a, b in zip(X, X_new, strict=True))
            new = depths(points.P, X)
            still = (new - depth).abs() <= (limit * new.abs() if absolute else limit)
            still = (still if present is None else still | ~present).all(0)
            solves = solves + (1 if done is None else (~done).to(torch.int64))
            done = still if done is None else done | still
            if new.device.type == "cpu" and not torch.compiler.is_compiling() and bool(done.all()):
                break
            depth = new
            # only ratios matter, so the largest is made 1: products of many depths would leave the number range
            base = points.weight if absolute else weight
            weight = new.abs().clamp(min=tiny).reciprocal()
            weight = weight if base is None else base * weight
            weight = weight / weight.amax(0).clamp(min=tiny)
        behind = new <= 0
        if points.present is not None:
            behind = behind & points.present
        bits = 2 ** torch.arange(new.shape[0], device=new.device)[:, None, None]
        mask = (behind * bits).sum(0)
        status = torch.where(mask > 0, -mask, done.to(torch.int64))
        solves = torch.as_tensor(solves, device=new.device).expand_as(status)
        if seen is not None:
            status = status.where(seen, TOO_FEW_VIEWS)
        return _stack(X, seen), torch.stack([status, solves], -1)

    X, numbers = map_points(solve, x, P, weight)
    return Reweighted(X.to(result_dtype(x)), numbers[..., 0], numbers[..., 1])


@no_autocast
def ransac_triangulate(
    x: Tensor,
    P: Tensor,
    weight: Tensor | None = None,
    threshold_px: float = 15.0,
    method: str = "reweighted",
    max_pairs: int = 64,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Triangulate from the views that agree: the pair of views whose point costs least, then `method` on its inliers.

    x (..., V, J, 2) px, P (..., V, 3, 4), weight (..., V, J) -> X (..., J, 3) mm, inlier (..., V, J) bool. A pair's
    point costs the sum over views of min(squared reprojection error, threshold^2) (MSAC, Torr and Zisserman 2000).
    All pairs are tried up to eight views, so nothing is random there; above, `max_pairs` pairs drawn from `seed`.
    Where fewer than two views agree, inlier is false and X is the plain solution of all views that see the joint.
    Raises GeometryError as `triangulate` does.
    """
    lead, views, joints = check_shapes(x, P, weight), x.shape[-3], x.shape[-2]
    pairs = torch.combinations(torch.arange(views), 2)
    if views > ALL_PAIRS_UP_TO and len(pairs) > max_pairs:
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:max_pairs].sort()[0]]
    pairs = pairs.to(x.device)

    with torch.no_grad():
        # a block holds one row per pair and view, so it takes fewer points
        block = max(256, 48 * BLOCK // (views * len(pairs)))
        agree = map_points(lambda points: _consensus(points, pairs, threshold_px), x, P, weight, block)[0]
        agree = agree.movedim(-1, -2)  # (..., V, J)
        inlier = agree & enough_views(agree)[..., None, :]
        given = torch.ones_like(agree) if weight is None else (weight > 0).expand_as(agree)
        use = inlier | (given & ~enough_views(agree)[..., None, :])
    shape = lead + (views, joints)
    base = torch.ones((), dtype=x.dtype, device=x.device) if weight is None else weight
    return triangulate(x, P, base.expand(shape).where(use, 0.0), method), inlier


def _consensus(points: Points, pairs: Tensor, threshold: float) -> tuple[Tensor]:
    """Views that agree with the cheapest pair.    -> (G, n, V) bool"""
    views, _, rigs, n = points.x.shape
    first, second = pairs.unbind(-1)
    products = row_products(points.P)[:, :9, :, pairs]  # (G, 9, 4, Q, 2)
    rows = features(points.x)[:, pairs]  # (4, Q, 2, G, n)
    entries = products.permute(0, 3, 1, 2, 4).flatten(3) @ rows.permute(3, 1, 0, 2, 4).flatten(2, 3)  # (G, Q, 9, n)
    X = solve_affine(entries.unbind(2))

    # Projected in float32, which is plenty for the comparison with a threshold in px, around the first camera: the world's origin may
    # be far away. A pair of equal rays has no point; any finite one will do, since no view agrees with it by chance.
    origin = -(torch.linalg.inv_ex(points.P[:, :1, :, :3])[0] @ points.P[:, :1, :, 3:]).nan_to_num(0.0, 0.0, 0.0)  # (G, 1, 3, 1)
    shifted = (points.P[..., :3] @ origin + points.P[..., 3:]).float()
    P = torch.cat([points.P[..., :3].float(), shifted], -1)[..., None, None]  # (G, V, 3, 4, 1, 1)
    X = [(value - at).nan_to_num_(0.0).clamp_(-1e12, 1e12).float()[:, None] for value, at in zip(X, origin.unbind(2), strict=True)]

    def projected(row: int) -> Tensor:
        out = torch.addcmul(P[:, :, row, 3], P[:, :, row, 0], X[0])  # (G, V, Q, n)
        return out.addcmul_(P[:, :, row, 1], X[1]).addcmul_(P[:, :, row, 2], X[2])

    x = points.x.permute(2, 0, 1, 3).unsqueeze(-2).float()  # (G, V, 2, 1, n)
    inverse = projected(2).clamp_(min=1e-9).reciprocal_()  # behind the camera: far outside the image
    u, v = (projected(axis).mul_(inverse).sub_(x[:, :, axis]) for axis in (0, 1))
    cost = u.mul_(u).addcmul_(v, v).clamp_(max=threshold**2)
    if points.present is None:
        total = cost.sum(1)
    else:
        present = points.present.transpose(0, 1)  # (G, V, n)
        total = cost.where(present[:, :, None], 0.0).sum(1)
        total = total.where(present[:, first] & present[:, second], float("inf"))
    best = total.argmin(1)  # (G, n)
    agree = cost.gather(2, best[:, None, None].expand(rigs, views, 1, n)).squeeze(2) < threshold**2
    if points.present is not None:
        agree &= present
    return (agree.transpose(1, 2),)


def enough_views(weight: Tensor) -> Tensor:
    """Joints that at least two views see, i.e. whose triangulated X means something.    weight (..., V, J) -> (...,
    J) bool"""
    return (weight > 0).sum(-2) >= 2


@no_autocast
def reprojection_error(X: Tensor, x: Tensor, P: Tensor) -> Tensor:
    """Distance in px between x and the projection of X; inf where X is not in front of the camera.

    X (..., J, 3), x (..., V, J, 2), P (..., V, 3, 4) -> (..., V, J)
    """
    dtype = result_dtype(X, x)
    u, w, depth, _ = _projected(X, P)
    front = depth > 0
    inverse = depth.where(front, 1.0).reciprocal()
    x = x.to(depth.dtype)
    offset = torch.stack([u * inverse - x[..., 0], w * inverse - x[..., 1]], -1)
    return torch.linalg.vector_norm(offset, dim=-1).where(front, float("inf")).to(dtype)


@no_autocast
def point_covariance(X: Tensor, P: Tensor, cov_x: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Covariance of points that minimise the weighted reprojection error, to first order in the 2D errors.

    X (..., J, 3), P (..., V, 3, 4), cov_x (..., V, J, 2, 2) px^2, weight (..., V, J) -> (..., J, 3, 3) mm^2. With
    J_v = dx_v / dX, H = sum w^2 J_v^T J_v:  H^-1 (sum w^4 J_v^T cov_v J_v) H^-1. Without cov_x the weights are
    taken as inverse standard deviations in px, and that is H^-1. Joints with fewer than two views have the
    covariance inf on the diagonal, 0 beside it.
    """
    dtype = result_dtype(X)
    u, w, depth, P = _projected(X, P)
    inverse = depth.reciprocal()
    p = P[..., None, :, :3]  # (..., V, 1, 3, 3)
    rows = [(p[..., k, :] - (value * inverse)[..., None] * p[..., 2, :]) * inverse[..., None] for k, value in enumerate((u, w))]
    jacobian = torch.stack(rows, -2)  # (..., V, J, 2, 3)
    seen = None
    if weight is not None:
        weight = weight.to(depth.dtype)
        seen = enough_views(weight)
        weight = weight.where(weight > 0, 0.0)[..., None, None]
        jacobian = jacobian.where(weight > 0, 0.0) * weight
    H = torch.einsum("...vjab,...vjac->...jbc", jacobian, jacobian)
    packed = tuple(H[..., a, b] for a, b in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)))
    c, scale = cofactors(guard(packed, seen))
    inverse_H = torch.stack([c[k] * scale for k in (0, 1, 2, 1, 3, 4, 2, 4, 5)], -1).unflatten(-1, (3, 3))
    if cov_x is not None:
        cov_x = cov_x.to(depth.dtype)
        if weight is not None:
            cov_x = cov_x.where(weight > 0, 0.0) * weight * weight
        middle = torch.einsum("...vjab,...vjac,...vjcd->...jbd", jacobian, cov_x, jacobian)
        inverse_H = inverse_H @ middle @ inverse_H
    if seen is not None:
        unknown = torch.diag_embed(torch.full_like(inverse_H[..., 0], float("inf")))
        inverse_H = inverse_H.where(seen[..., None, None], unknown)
    return inverse_H.to(dtype)


@no_autocast
def triangulation_quality(X: Tensor, x: Tensor, P: Tensor, weight: Tensor | None = None, cov_x: Tensor | None = None) -> Quality:
    """Validity, reprojection error per view and covariance of triangulated joints; shapes as in `triangulate`."""
    error = reprojection_error(X, x, P)
    present = torch.ones_like(error, dtype=torch.bool) if weight is None else (weight > 0).expand_as(error)
    error = error.where(present, 0.0)
    valid = enough_views(present) & error.isfinite().all(-2)
    return Quality(valid, error, point_covariance(X, P, cov_x, weight))


def _projected(X: Tensor, P: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Homogeneous projection.    X (..., J, 3), P (..., V, 3, 4) -> u, v, depth (..., V, J) and P in the solver's
    type"""
    if X.shape[-1] != 3 or P.shape[-2:] != (3, 4):
        raise GeometryError(f"X {tuple(X.shape)}, P {tuple(P.shape)}: expected X (..., J, 3) and P (..., V, 3, 4)")
    X, P = X.to(solve_dtype(X.device)), P.to(solve_dtype(P.device))
    coordinates = X.unsqueeze(-3).unbind(-1)  # 3 x (..., 1, J)
    u, v, depth = (
        P[..., row, 0, None] * coordinates[0]
        + P[..., row, 1, None] * coordinates[1]
        + P[..., row, 2, None] * coordinates[2]
        + P[..., row, 3, None]
        for row in range(3)
    )
    return u, v, depth, P


def _stack(X: tuple[Tensor, ...], seen: Tensor | None) -> Tensor:
    stacked = torch.stack(X, -1)
    return stacked if seen is None else stacked.where(seen[..., None], 0.0)


def _dlt(points: Points) -> tuple[Tensor]:
    return (_stack(solve_homogeneous(points_matrix(points)), enough(points)),)


def _linear_ls(points: Points) -> tuple[Tensor]:
    return (_stack(solve_affine(points_matrix(points)), enough(points)),)


def _midpoint(points: Points) -> tuple[Tensor]:
    """Nearest point to the viewing rays: normal equations sum w^2 (I - d d^T) (X - C) = 0."""
    inverse = torch.linalg.inv(points.P[..., :3])  # (G, V, 3, 3)
    center = -(inverse @ points.P[..., 3:])[..., 0]  # (G, V, 3)
    center, m = (
        center.permute(2, 1, 0)[..., None],
        inverse.permute(2, 3, 1, 0)[..., None],
    )  # (3, V, G, 1), (3, 3, V, G, 1)
    ray = [torch.addcmul(torch.addcmul(m[k, 2], m[k, 0], points.x[:, 0]), m[k, 1], points.x[:, 1]) for k in range(3)]
    scale = (ray[0] ** 2 + ray[1] ** 2 + ray[2] ** 2).rsqrt()
    d = [r * scale for r in ray]
    w2 = torch.ones_like(scale) if points.weight is None else points.weight**2
    entry = {(a, b): w2 * (float(a == b) - d[a] * d[b]) for a in range(3) for b in range(a, 3)}  # (V, G, n)
    corner = [entry[key].sum(0) for key in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    side = [-sum(entry[min(a, b), max(a, b)] * center[b] for b in range(3)).sum(0) for a in range(3)]
    seen = enough(points)
    return (_stack(solve_affine(guard((*corner, *side), seen)), seen),)


def _optimal2(points: Points) -> tuple[Tensor]:
    """Move both points of each match to the nearest pair whose rays meet, then intersect.

    On a CPU the points that still move after three passes of `_nearest_pairs` get ten; where that look would be a wait for the
    device, all do. A person's joint is then within 1e-5 mm of the optimum, also where noise of 40 px makes the rays miss.
    """
    F = fundamental_from_cameras(points.P[:, 0], points.P[:, 1]).permute(1, 2, 0)[..., None]  # (3, 3, G, 1)
    pairs = (*points.x[0].unbind(0), *points.x[1].unbind(0))
    if points.x.device.type != "cpu" or torch.compiler.is_compiling():
        moved, _ = _nearest_pairs(pairs, F, 10)
    else:
        moved, before = _nearest_pairs(pairs, F, 3)
        with torch.no_grad():  # in the first image, which tells as much as both: they move together
            (step_u, step_v), (way_u, way_v) = ([a - b for a, b in zip(moved[:2], x[:2], strict=True)] for x in (before, pairs))
            digits = 1e-12 * points.x[0].abs().max()
            limit = torch.addcmul(way_u * way_u, way_v, way_v).mul_(1e-12).add_(digits * digits)
            late = torch.addcmul(step_u * step_u, step_v, step_v) > limit
        if late.any():
            again, _ = _nearest_pairs(tuple(x[late] for x in pairs), F.expand(3, 3, *late.shape)[..., late], 10)
            moved = tuple(x.index_put((late,), y) for x, y in zip(moved, again, strict=True))
    return _linear_ls(points._replace(x=torch.stack(moved).unflatten(0, (2, 2))))


def _nearest_pairs(pairs: tuple[Tensor, ...], F: Tensor, passes: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The pairs of points that fulfil the epipolar condition, next to given ones, after some passes and one pass before that.

    Lindstrom, "Triangulation made easy", CVPR 2010, with general F: the exact condition is x = x' - s n(x) for the
    normals n of the epipolar lines, repeated with n at the last x.

    pairs: u0, v0, u1, v1 px, each of a shape that the entries of F (3, 3, ...) broadcast to
    """
    u0, v0, u1, v1 = pairs

    def normals(u0: Tensor, v0: Tensor, u1: Tensor, v1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            torch.addcmul(torch.addcmul(F[2, 0], F[0, 0], u1), F[1, 0], v1),
            torch.addcmul(torch.addcmul(F[2, 1], F[0, 1], u1), F[1, 1], v1),
            torch.addcmul(torch.addcmul(F[0, 2], F[0, 0], u0), F[0, 1], v0),
            torch.addcmul(torch.addcmul(F[1, 2], F[1, 0], u0), F[1, 1], v0),
        )

    start = n = normals(*pairs)
    c = u1 * n[2] + v1 * n[3] + torch.addcmul(torch.addcmul(F[2, 2], F[2, 0], u0), F[2, 1], v0)
    tiny = torch.finfo(c.dtype).tiny
    moved = pairs
    for step in range(passes):
        a = n[2] * torch.addcmul(F[0, 0] * n[0], F[0, 1], n[1])
        a = torch.addcmul(a, n[3], torch.addcmul(F[1, 0] * n[0], F[1, 1], n[1]))
        b = n[0] * start[0]
        for k in (1, 2, 3):
            b = torch.addcmul(b, n[k], start[k])
        b = 0.5 * b
        s = c / (b + torch.addcmul(b * b, a, c, value=-1).clamp(min=tiny).sqrt())
        before, moved = moved, tuple(torch.addcmul(old, s, normal, value=-1) for old, normal in zip(pairs, n, strict=True))
        if step < passes - 1:
            n = normals(*moved)
    return moved, before


def triangulate_pairs(
    x: Tensor, P: Tensor, weight: Tensor | None = None, method: str = "optimal2", joined: Tensor | None = None
) -> Tensor:
    """Triangulate every joint from each pair of views and take the vector median (EpipolarPose, section 3.1).

    x (..., V, J, 2) px, P (..., V, 3, 4), weight (..., V, J), joined (..., V, V) bool: the views that may be paired, None = any two
    -> X (..., J, 3) mm, 0 where no pair sees the joint. `method`: of `triangulate`, for two views. Raises GeometryError as it does.
    """
    check_shapes(x, P, weight)
    first, second = torch.triu_indices(x.shape[-3], x.shape[-3], 1, device=x.device)
    pairs = torch.stack([first, second], -1)  # (Q, 2)
    weight = torch.ones_like(x[..., 0]) if weight is None else weight
    weight = weight[..., pairs, :]  # (..., Q, 2, J)
    X = triangulate(x[..., pairs, :, :].to(solve_dtype(x.device)), P[..., pairs, :, :], weight, method)  # (..., Q, J, 3)
    usable = enough_views(weight)
    if joined is not None:
        usable = usable & joined[..., first, second, None]
    X = vector_median(X, usable.expand(X.shape[:-1]))
    return X.where(usable.any(-2)[..., None], 0.0).to(result_dtype(x))


def vector_median(candidates: Tensor, usable: Tensor) -> Tensor:
    """The usable candidate with the least sum of distances to the others.

    candidates (..., Q, J, 3), usable (..., Q, J) bool -> (..., J, 3); the first candidate where none is usable
    """
    with torch.no_grad():
        distance = torch.linalg.vector_norm(candidates.unsqueeze(-3) - candidates.unsqueeze(-4), dim=-1)  # (..., Q, Q, J)
        cost = distance.where(usable.unsqueeze(-3), 0.0).sum(-2)
        best = cost.where(usable, float("inf")).argmin(-2, keepdim=True)  # (..., 1, J)
    return candidates.gather(-3, best[..., None].expand(*best.shape, 3)).squeeze(-3)


_SOLVERS = {"dlt": _dlt, "linear_ls": _linear_ls, "optimal2": _optimal2, "midpoint": _midpoint}
