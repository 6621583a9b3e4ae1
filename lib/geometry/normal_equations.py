"""Triangulation as many tiny linear systems side by side: layout, normal equations and their closed-form solution.

A view with projection rows p1, p2, p3 that sees a point at (x, y) gives two rows of the linear system A (X, 1) = 0:
`x p3 - p1` and `y p3 - p2`. All solvers here but `solve_rows` need only A^T A, ten numbers per point, which are linear in (w^2 (x^2
+ y^2), w^2 x, w^2 y, w^2) of each view. So one matrix product makes the systems of a whole batch, and everything
after it is arithmetic on long rows of numbers (one row per matrix entry), in blocks that stay in the cache.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.precision import solve_dtype

BLOCK = 8192
_ROW = [0, 0, 0, 1, 1, 2, 0, 1, 2, 3]  # the ten entries of a symmetric 4x4 matrix: the 3x3 corner (00 01 02 11 12 22),
_COL = [0, 1, 2, 1, 2, 2, 3, 3, 3, 3]  # the first three of the last column, the last corner


class Points(NamedTuple):
    """A block of n points seen by each of G rigs, structure of arrays, in the solver's type."""

    x: Tensor  # (V, 2, G, n) px; 0 where a view is missing
    P: Tensor  # (G, V, 3, 4)
    weight: Tensor | None  # (V, G, n) >= 0; 0 = missing
    present: Tensor | None  # (V, G, n) bool, None = all


def check_shapes(x: Tensor, P: Tensor, weight: Tensor | None, least: int = 2) -> torch.Size:
    """Leading shape shared by x (..., V, J, 2), P (..., V, 3, 4) and weight (..., V, J); GeometryError when they do
    not fit."""
    shapes = f"x {tuple(x.shape)}, P {tuple(P.shape)}" + ("" if weight is None else f", weight {tuple(weight.shape)}")
    if x.ndim < 3 or x.shape[-1] != 2 or P.ndim < 3 or P.shape[-2:] != (3, 4):
        raise GeometryError(f"{shapes}: expected x (..., V, J, 2) and P (..., V, 3, 4)")
    views, joints = x.shape[-3:-1]
    if P.shape[-3] != views or (weight is not None and (weight.ndim < 2 or weight.shape[-2:] != (views, joints))):
        raise GeometryError(f"{shapes}: expected the same number of views in all and weight (..., V, J)")
    if views < least:
        raise GeometryError(f"{shapes}: a point needs at least {least} views, found {views}")
    try:
        return torch.broadcast_shapes(x.shape[:-3], P.shape[:-3], *(() if weight is None else (weight.shape[:-2],)))
    except RuntimeError as error:
        raise GeometryError(f"{shapes}: the leading dimensions do not broadcast") from error


def map_points(function: Callable, x: Tensor, P: Tensor, weight: Tensor | None, block: int = BLOCK) -> list[Tensor]:
    """Apply `function(Points) -> tuple of (G, n, C)` to all points, block by block on a CPU -> list of (..., J, C).

    Cameras that are the same for trailing leading dimensions (one rig, many frames) are recognised by their shape and
    shared: they cost one matrix product instead of one per frame.
    """
    lead = check_shapes(x, P, weight)
    views, joints = x.shape[-3:-1]
    dtype = solve_dtype(x.device)
    rig = P.shape[:-3]
    rig = (1,) * (len(lead) - len(rig)) + tuple(rig)
    split = len(lead)
    while split and rig[split - 1] == 1:
        split -= 1
    rigs, batch = lead[:split].numel(), lead[split:].numel()
    P = P.reshape(rig + P.shape[-3:]).expand(*lead[:split], *rig[split:], views, 3, 4).reshape(rigs, views, 3, 4).to(dtype)
    x = x.expand(*lead, views, joints, 2).reshape(rigs, batch, views, joints, 2)
    if weight is not None:
        weight = weight.expand(*lead, views, joints).reshape(rigs, batch, views, joints)

    if x.device.type != "cpu" or torch.compiler.is_compiling():
        block = max(x.numel(), 1)
    step_j = min(max(joints, 1), block)
    step_b = min(max(batch, 1), max(1, block // step_j))
    step_g = max(1, block // (step_j * step_b))

    def run(g: int, b: int, j: int) -> list[Tensor]:
        part = (slice(g, g + step_g), slice(b, b + step_b), slice(None), slice(j, j + step_j))
        points, shape = _points(x[part], P[part[0]], None if weight is None else weight[part], dtype)
        return [out.reshape(*shape, out.shape[-1]) for out in function(points)]

    def join(parts: list[list[Tensor]], dim: int) -> list[Tensor]:
        return parts[0] if len(parts) == 1 else [torch.cat(outs, dim) for outs in zip(*parts, strict=True)]

    outs = join([join([join([run(g, b, j) for j in range(0, max(joints, 1), step_j)], 2)
                       for b in range(0, max(batch, 1), step_b)], 1)
                 for g in range(0, max(rigs, 1), step_g)], 0)  # fmt: skip
    return [out.reshape(*lead, joints, out.shape[-1]) for out in outs]


def _points(x: Tensor, P: Tensor, weight: Tensor | None, dtype: torch.dtype) -> tuple[Points, tuple[int, int, int]]:
    g, b, views, j, _ = x.shape
    x = x.permute(2, 4, 0, 1, 3).to(dtype, memory_format=torch.contiguous_format).reshape(views, 2, g, b * j)
    if weight is None:
        return Points(x, P, None, None), (g, b, j)
    weight = weight.permute(2, 0, 1, 3).to(dtype, memory_format=torch.contiguous_format).reshape(views, g, b * j)
    present = weight > 0  # false for NaN, so a missing view may hold anything
    # selected, not multiplied: 0 * NaN is NaN, in the value and in the gradient
    return Points(x.where(present[:, None], 0.0), P, weight.where(present, 0.0), present), (g, b, j)


def enough(points: Points) -> Tensor | None:
    """Points that at least two views see.    -> (G, n) bool, None = all"""
    return None if points.present is None else points.present.sum(0) >= 2


def row_products(P: Tensor) -> Tensor:
    """What a view adds to the ten entries of A^T A per x^2 + y^2, x, y and 1.    P (G, V, 3, 4) -> (G, 10, 4, V)"""
    p1, p2, p3 = P.transpose(1, 3).unbind(2)  # (G, 4, V)
    a1, a2, a3, b1, b2, b3 = (p[:, index] for index in (_ROW, _COL) for p in (p1, p2, p3))
    return torch.stack([a3 * b3, -(a1 * b3 + a3 * b1), -(a2 * b3 + a3 * b2), a1 * b1 + a2 * b2], 2)


def features(x: Tensor) -> Tensor:
    """x^2 + y^2, x, y and 1 of each view.    x (V, 2, G, n) -> (4, V, G, n)"""
    x, y = x[:, 0], x[:, 1]
    return torch.stack([torch.addcmul(x * x, y, y), x, y, torch.ones_like(x)])


def normal_matrix(products: Tensor, rows: Tensor, weight: Tensor | None) -> tuple[Tensor, ...]:
    """The ten entries of A^T A of each point.

    products (G, 10, 4, V) of `row_products`, rows (4, V, G, n) of `features`, weight (V, G, n) on the equations ->
    10 x (G, n)
    """
    if weight is not None:
        rows = rows * (weight * weight)
    entries = products.flatten(2) @ rows.flatten(0, 1).transpose(0, 1)  # float64, which neither autocast nor TF32 touches
    return entries.transpose(0, 1).contiguous().unbind(0)  # from (G, 10, n)


def points_matrix(points: Points) -> tuple[Tensor, ...]:
    """`normal_matrix` of points with their own weights, solvable everywhere."""
    return guard(normal_matrix(row_products(points.P), features(points.x), points.weight), enough(points))


def guard(m: tuple[Tensor, ...], seen: Tensor | None) -> tuple[Tensor, ...]:
    """Make the systems of points without two views solvable (their result is dropped later), so no NaN arises."""
    if seen is None:
        return m
    diagonal = [torch.where(seen, m[k], m[k] + 1.0) for k in (0, 3, 5)]
    return (diagonal[0], m[1], m[2], diagonal[1], m[4], diagonal[2], *m[6:])


def cofactors(m: tuple[Tensor, ...], shift: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
    """Adjugate (00 01 02 11 12 22) and 1 / determinant of the symmetric 3x3 corner minus shift times the identity."""
    a00, a01, a02, a11, a12, a22 = m[:6]
    if shift is not None:
        a00, a11, a22 = a00 - shift, a11 - shift, a22 - shift
    c00 = torch.addcmul(a11 * a22, a12, a12, value=-1)
    c01 = torch.addcmul(a02 * a12, a01, a22, value=-1)
    c02 = torch.addcmul(a01 * a12, a02, a11, value=-1)
    c11 = torch.addcmul(a00 * a22, a02, a02, value=-1)
    c12 = torch.addcmul(a01 * a02, a00, a12, value=-1)
    c22 = torch.addcmul(a00 * a11, a01, a01, value=-1)
    det = torch.addcmul(torch.addcmul(a00 * c00, a01, c01), a02, c02)
    return (c00, c01, c02, c11, c12, c22), det.reciprocal()


def _apply(c: tuple[Tensor, ...], inverse: Tensor, b: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """-adj b / det"""
    c00, c01, c02, c11, c12, c22 = c
    b0, b1, b2 = b
    scale = -inverse
    return (
        torch.addcmul(torch.addcmul(c00 * b0, c01, b1), c02, b2) * scale,
        torch.addcmul(torch.addcmul(c01 * b0, c11, b1), c12, b2) * scale,
        torch.addcmul(torch.addcmul(c02 * b0, c12, b1), c22, b2) * scale,
    )


def solve_affine(m: tuple[Tensor, ...], shift: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The X that minimises |A (X, 1)|^2 - shift (|X|^2 + 1): linear least squares when there is no shift."""
    return _apply(*cofactors(m, shift), m[6:9])


def solve_rows(points: Points, weight: Tensor | None, seen: Tensor | None) -> tuple[Tensor, ...]:
    """Linear least squares from the rows themselves, by QR: slower than `solve_affine`, and good for weights of very different size.

    weight (V, G, n) on the equations, None = 1; seen (G, n) of `enough` -> X, 3 x (G, n), finite where not seen
    """
    x = points.x.permute(2, 3, 0, 1)[..., None]  # (G, n, V, 2, 1)
    rows = x * points.P[:, None, :, 2:] - points.P[:, None, :, :2]  # (G, n, V, 2, 4)
    if weight is not None:
        rows = rows * weight.permute(1, 2, 0)[..., None, None]
    rows = rows.flatten(2, 3)
    if seen is not None:
        rows = torch.where(seen[..., None, None], rows, torch.eye(rows.shape[-2], 4, dtype=rows.dtype, device=rows.device))
    Q, R = torch.linalg.qr(rows[..., :3])
    side = -(Q * rows[..., 3:]).sum(-2)  # no matrix product: neither autocast nor TF32 touches it
    return torch.linalg.solve_triangular(R, side[..., None], upper=True)[..., 0].unbind(-1)


def solve_homogeneous(m: tuple[Tensor, ...], steps: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """The X for which (X, 1) is the eigenvector of A^T A with the smallest eigenvalue: A's last right singular vector.

    With A^T A = [[B, b], [b^T, c]], the smallest eigenvalue s is the first zero of f(s) = c - s + b^T X(s), X(s) =
    -(B - s)^-1 b, and of the characteristic polynomial f(s) det(B - s). Newton's method on the latter rises to it
    from s = 0 (linear least squares) without ever passing it. A last step written through f restores the digits
    that the polynomial loses. The gradient is that of one step taken at the solution, which is the exact (implicit)
    one.
    """
    fixed = tuple(entry.detach() for entry in m)
    with torch.no_grad():
        check = m[0].device.type == "cpu" and not torch.compiler.is_compiling()
        shift = _first_zero(fixed, steps if check else 2 * steps)
        X, move, relative = _refined(fixed, shift)
        # The error is about relative^2. Nearly equal eigenvalues (in mm: points within some cm of the origin, where
        # this method is no good anyhow) need more steps; off the CPU the check would be a wait for the device.
        if check:
            for _ in range(20):
                if not (relative > 1e-6).any():
                    break
                shift = shift + move
                X, move, relative = _refined(fixed, shift)
    if torch.is_grad_enabled() and any(entry.requires_grad for entry in m):
        return solve_affine(m, shift + move + _step(m, shift + move)[-1])
    return X


def _first_zero(m: tuple[Tensor, ...], steps: int) -> Tensor:
    """Smallest zero of the characteristic polynomial s^4 - e1 s^3 + e2 s^2 - e3 s + e4 of A^T A, by Newton steps
    from 0."""
    c, inverse, _, f, norm, _ = _step(m, None)
    det, minors, trace = inverse.reciprocal(), c[0] + c[3] + c[5], m[0] + m[3] + m[5]
    e4 = det * f  # through f, since products of entries would cancel; the same for e3
    minus_e3 = -torch.addcmul(minors * f, det, norm)
    e2 = torch.addcmul(minors, m[9], trace)
    for b in m[6:9]:
        e2 = torch.addcmul(e2, b, b, value=-1)
    e1 = trace + m[9]
    twice_e2, minus_3_e1 = 2 * e2, -3 * e1
    zero = -e4 / minus_e3
    for _ in range(steps - 1):
        p = torch.addcmul(e4, zero, torch.addcmul(minus_e3, zero, torch.addcmul(e2, zero, zero - e1)))
        slope = torch.addcmul(minus_e3, zero, torch.addcmul(twice_e2, zero, torch.add(minus_3_e1, zero, alpha=4)))
        zero = zero - p / slope
    return zero


def _refined(m: tuple[Tensor, ...], shift: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """X after one more step from shift, that step, and its size beside the second eigenvalue."""
    c, inverse, X, _, _, move = _step(m, shift)
    moved = _apply(c, inverse, X)  # the change of X to first order, without another factorisation
    X = tuple(torch.addcmul(a, move, b, value=-1) for a, b in zip(X, moved, strict=True))
    return X, move, (move * inverse * (c[0] + c[3] + c[5])).abs()  # the sum is the trace of (B - shift)^-1


def _step(m: tuple[Tensor, ...], shift: Tensor | None) -> tuple:
    """Adjugate and 1 / determinant of B - shift, X(shift), f(shift), |X|^2 + 1 and Newton's step."""
    c, inverse = cofactors(m, shift)
    X = _apply(c, inverse, m[6:9])
    f = m[9] if shift is None else m[9] - shift
    for b, value in zip(m[6:9], X, strict=True):
        f = torch.addcmul(f, b, value)
    norm = 1.0 + torch.addcmul(torch.addcmul(X[0] * X[0], X[1], X[1]), X[2], X[2])
    return c, inverse, X, f, norm, f / torch.addcmul(norm, f * inverse, c[0] + c[3] + c[5])


def depths(P: Tensor, X: tuple[Tensor, ...]) -> Tensor:
    """Third homogeneous coordinate of the projection.    P (G, V, 3, 4), X 3 x (G, n) -> (V, G, n)"""
    return (P[:, :, 2] @ torch.stack([*X, torch.ones_like(X[0])], 1)).transpose(0, 1)
