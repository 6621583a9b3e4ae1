"""Two-view geometry: fundamental and essential matrices, relative pose, Sampson distance.

Convention: view 0 and view 1, x1^T F x0 = 0 for matching pixels, `X_cam1 = R X_cam0 + t`. All functions broadcast
over leading dimensions, work in float64 and return the type of their input.
"""

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.precision import matmul, matvec, no_autocast, promote


@no_autocast
def fundamental(x0: Tensor, x1: Tensor, weight: Tensor | None = None) -> Tensor:
    """Fundamental matrix from N >= 8 matches by the normalised eight-point algorithm, |F| = 1.

    x0, x1 (..., N, 2) px, weight (..., N) >= 0 on the equations, 0 = no match -> F (..., 3, 3) with x1^T F x0 = 0.
    Hartley, "In Defense of the Eight-Point Algorithm", 1997. The matches must not lie on one plane: a single
    standing person is close to one, so gather many frames. GeometryError for wrong shapes or fewer than eight
    matches.
    """
    _check_matches(x0, x1, weight)
    (x0, x1, weight), dtype = promote(x0, x1, weight)
    x0, x1 = torch.broadcast_tensors(x0, x1)
    weight = torch.ones_like(x0[..., 0]) if weight is None else weight.expand(x0.shape[:-1])
    fewest = int((weight > 0).sum(-1).min())
    if fewest < 8:
        raise GeometryError(f"fundamental: found {fewest} matches, expected at least 8; gather more joints or frames")
    present = (weight > 0)[..., None]
    x0, x1, weight = x0.where(present, 0.0), x1.where(present, 0.0), weight.where(present[..., 0], 0.0)
    T0, T1 = _normalisation(x0, present), _normalisation(x1, present)
    (u0, v0), (u1, v1) = _transformed(T0, x0), _transformed(T1, x1)
    one = torch.ones_like(u0)
    rows = [u1 * u0, u1 * v0, u1, v1 * u0, v1 * v0, v1, u0, v0, one]
    rows = torch.stack(rows, -1) * weight[..., None]  # (..., N, 9)
    if rows.shape[-2] < 9:  # eight equations leave the ninth singular vector out of the reduced form
        rows = torch.cat([rows, torch.zeros_like(rows[..., :1, :])], -2)
    triangle = torch.linalg.qr(rows, mode="r")[1]  # same right singular vectors, 9x9 whatever N is
    F = torch.linalg.svd(triangle)[2][..., -1, :].unflatten(-1, (3, 3))
    U, S, Vh = torch.linalg.svd(F)
    F = matmul(U * (S * S.new_tensor([1.0, 1.0, 0.0]))[..., None, :], Vh)
    return _unit(matmul(matmul(T1.mT, F), T0)).to(dtype)


@no_autocast
def essential(F: Tensor, K0: Tensor, K1: Tensor) -> Tensor:
    """Essential matrix E = K1^T F K0 with its singular values made (1, 1, 0).    F, K0, K1 (..., 3, 3) -> (..., 3,
    3)"""
    (F, K0, K1), dtype = promote(F, K0, K1)
    U, _, Vh = torch.linalg.svd(matmul(matmul(K1.mT, F), K0))
    return matmul(U[..., :, :2], Vh[..., :2, :]).to(dtype)


@no_autocast
def relative_pose(E: Tensor, x0_norm: Tensor, x1_norm: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Relative pose from an essential matrix: of the four hypotheses the one with most points in front of both cameras.

    E (..., 3, 3), x0_norm, x1_norm (..., N, 2) pixels times K^-1, undistorted, weight (..., N), 0 = no match -> R
    (..., 3, 3), t (..., 3) of unit length with X_cam1 = R X_cam0 + t, in_front (...) the fraction of matches in
    front of both cameras. Treat in_front < 0.7 as a failure; it is 0 when two hypotheses tie. Hartley and
    Zisserman, result 9.19.
    """
    _check_matches(x0_norm, x1_norm, weight)
    (E, x0, x1, weight), dtype = promote(E, x0_norm, x1_norm, weight)
    U, _, Vh = torch.linalg.svd(E)
    U = U * torch.linalg.det(U)[..., None, None].sign()  # the sign of E is free, so both may be made rotations
    Vh = Vh * torch.linalg.det(Vh)[..., None, None].sign()
    W = E.new_tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    R = torch.stack([matmul(matmul(U, W), Vh), matmul(matmul(U, W.mT), Vh)] * 2, -3)  # (..., 4, 3, 3)
    t = torch.stack([U[..., 2], U[..., 2], -U[..., 2], -U[..., 2]], -2)  # (..., 4, 3)

    present = torch.ones_like(x0[..., 0]) if weight is None else (weight > 0).to(x0.dtype)
    ray0, ray1 = (_homogeneous(x.where(present[..., None] > 0, 0.0)).unsqueeze(-3) for x in (x0, x1))  # (..., 1, N, 3)
    turned = matvec(R, ray0)  # (..., 4, N, 3)
    # depth1 ray1 = depth0 turned + t: the cross product with either ray leaves the sign of the other depth
    normal = torch.linalg.cross(ray1.expand_as(turned), turned)
    depth0 = -(torch.linalg.cross(ray1.expand_as(turned), t[..., None, :].expand_as(turned)) * normal).sum(-1)
    depth1 = -(torch.linalg.cross(turned, t[..., None, :].expand_as(turned)) * normal).sum(-1)
    both = ((depth0 > 0) & (depth1 > 0)).to(x0.dtype) * present.unsqueeze(-2)
    in_front = both.sum(-1) / present.sum(-1, keepdim=True).clamp(min=1)  # (..., 4)

    best, order = in_front.topk(2, -1)
    score = best[..., 0].where(best[..., 0] > best[..., 1], 0.0)
    pick = order[..., 0, None]  # (..., 1)
    R = R.gather(-3, pick[..., None, None].expand(*pick.shape, 3, 3)).squeeze(-3)
    t = t.gather(-2, pick[..., None].expand(*pick.shape, 3)).squeeze(-2)
    return R.to(dtype), t.to(dtype), score.to(dtype)


@no_autocast
def relative_from_cameras(R0: Tensor, t0: Tensor, R1: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
    """Pose of camera 1 in the frame of camera 0.    R (..., 3, 3), t (..., 3) mm -> R, t with X_cam1 = R X_cam0 + t"""
    (R0, t0, R1, t1), dtype = promote(R0, t0, R1, t1)
    R = matmul(R1, R0.mT)
    return R.to(dtype), (t1 - matvec(R, t0[..., None, :])[..., 0, :]).to(dtype)


@no_autocast
def essential_from_pose(R: Tensor, t: Tensor) -> Tensor:
    """Essential matrix [t]x R of X_cam1 = R X_cam0 + t; its scale is |t|.    R (..., 3, 3), t (..., 3) -> (..., 3,
    3)"""
    (R, t), dtype = promote(R, t)
    return torch.linalg.cross(t[..., :, None].expand_as(R), R, dim=-2).to(dtype)


@no_autocast
def fundamental_from_pose(R: Tensor, t: Tensor, K0: Tensor, K1: Tensor) -> Tensor:
    """Fundamental matrix K1^-T [t]x R K0^-1, |F| = 1.    R, K0, K1 (..., 3, 3), t (..., 3) -> (..., 3, 3)"""
    return fundamental_from_essential(essential_from_pose(R, t), K0, K1)


@no_autocast
def fundamental_from_essential(E: Tensor, K0: Tensor, K1: Tensor) -> Tensor:
    """Fundamental matrix K1^-T E K0^-1, |F| = 1.    E, K0, K1 (..., 3, 3) -> (..., 3, 3)"""
    (E, K0, K1), dtype = promote(E, K0, K1)
    return _unit(matmul(matmul(torch.linalg.inv(K1).mT, E), torch.linalg.inv(K0))).to(dtype)


@no_autocast
def fundamental_from_cameras(P0: Tensor, P1: Tensor) -> Tensor:
    """Fundamental matrix of two projection matrices, |F| = 1.    P0, P1 (..., 3, 4) -> F (..., 3, 3), x1^T F x0 = 0

    Entry (j, i) is the determinant of P0 without row i over P1 without row j, up to sign: Hartley and Zisserman,
    eq. 17.3. It needs no inverse, so any two cameras with different centres will do.
    """
    (P0, P1), dtype = promote(P0, P1)
    others = [[1, 2], [2, 0], [0, 1]]  # cyclic, which carries the sign
    lead = torch.broadcast_shapes(P0.shape[:-2], P1.shape[:-2])
    rows0 = P0[..., others, :].unsqueeze(-4).expand(*lead, 3, 3, 2, 4)  # [j, i]
    rows1 = P1[..., others, :].unsqueeze(-3).expand(*lead, 3, 3, 2, 4)
    return _unit(torch.linalg.det(torch.cat([rows0, rows1], -2))).to(dtype)


@no_autocast
def sampson_distance(F: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    """First-order distance of each match from the epipolar constraint, in px (not squared).

    F (..., 3, 3), x0, x1 (..., N, 2) px -> (..., N). Hartley and Zisserman, eq. 11.9.
    """
    (F, x0, x1), dtype = promote(F, x0, x1)
    ray0, ray1 = _homogeneous(x0), _homogeneous(x1)
    line1, line0 = matvec(F, ray0), matvec(F.mT, ray1)
    gradient = line1[..., 0] ** 2 + line1[..., 1] ** 2 + line0[..., 0] ** 2 + line0[..., 1] ** 2
    residual = (ray1 * line1).sum(-1).abs()
    return (residual / gradient.clamp(min=torch.finfo(gradient.dtype).tiny).sqrt()).to(dtype)


def _check_matches(x0: Tensor, x1: Tensor, weight: Tensor | None) -> None:
    wrong = x0.ndim < 2 or x0.shape[-1] != 2 or x0.shape[-2:] != x1.shape[-2:]
    if wrong or (weight is not None and weight.shape[-1] != x0.shape[-2]):
        found = f"{tuple(x0.shape)}, {tuple(x1.shape)}" + ("" if weight is None else f", weight {tuple(weight.shape)}")
        raise GeometryError(f"matches have shapes {found}; expected two of (..., N, 2) and weight (..., N)")


def _homogeneous(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


def _unit(F: Tensor) -> Tensor:
    norm = torch.linalg.matrix_norm(F, keepdim=True)
    return F / norm.clamp(min=torch.finfo(F.dtype).tiny)


def _normalisation(x: Tensor, present: Tensor) -> Tensor:
    """Similarity that moves the present points to centroid 0 and mean distance sqrt(2).    x (..., N, 2) -> (...,
    3, 3)"""
    count = present.sum(-2)
    centre = x.sum(-2) / count
    distance = torch.linalg.vector_norm(x - centre[..., None, :], dim=-1, keepdim=True).where(present, 0.0)
    s = 2**0.5 * count[..., 0] / distance.sum((-2, -1)).clamp(min=torch.finfo(x.dtype).tiny)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    entries = [s, zero, -s * centre[..., 0], zero, s, -s * centre[..., 1], zero, zero, one]
    return torch.stack(entries, -1).unflatten(-1, (3, 3))


def _transformed(T: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return T[..., 0, 0, None] * x[..., 0] + T[..., 0, 2, None], T[..., 1, 1, None] * x[..., 1] + T[..., 1, 2, None]
