"""The similarity (rotation, translation, scale) between two point sets, many sets at once."""

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.precision import matvec, no_autocast, promote


@no_autocast
def similarity(X: Tensor, Y: Tensor, weight: Tensor | None = None, scale: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Least-squares R, t, s with Y ~ s X R^T + t, never a reflection.   X, Y (..., N, 3), weight (..., N)

    Returns R (..., 3, 3), t (..., 3) in the unit of Y, s (...); scale=False keeps s = 1. Points of weight 0 may hold
    anything. Points that coincide give s = 0, points on one line one of the rotations that fit. Differentiable (first
    order), also where singular values coincide. Source: Umeyama (PAMI 1991), by an SVD in float64. Raises GeometryError
    for shapes that do not fit.
    """
    if X.ndim < 2 or Y.ndim < 2 or X.shape[-1] != 3 or X.shape[-2:] != Y.shape[-2:]:
        raise GeometryError(f"similarity: X {tuple(X.shape)} and Y {tuple(Y.shape)}, expected two (..., N, 3)")
    if weight is not None and weight.shape[-1:] != X.shape[-2:-1]:
        raise GeometryError(f"similarity: weight {tuple(weight.shape)} for points {tuple(X.shape)}, expected (..., N)")
    (X, Y, weight), dtype = promote(X, Y, weight)
    w = X.new_ones(1, 1) if weight is None else weight[..., None]
    try:
        X, Y, w = torch.broadcast_tensors(X, Y, w)
    except RuntimeError as error:
        found = f"X {tuple(X.shape)}, Y {tuple(Y.shape)}, weight {tuple(w.shape[:-1])}"
        raise GeometryError(f"similarity: leading shapes do not fit together: {found}") from error
    X, Y = torch.where(w > 0, X, 0.0), torch.where(w > 0, Y, 0.0)
    total = _positive(w.sum(-2))
    mean_X, mean_Y = (w * X).sum(-2) / total, (w * Y).sum(-2) / total
    X, Y = X - mean_X[..., None, :], Y - mean_Y[..., None, :]
    M = (w * X).mT @ Y  # sum of w x y^T
    R = _Rotation.apply(M)
    s = torch.ones_like(M[..., 0, 0])
    if scale:
        s = (R.mT * M).sum((-2, -1)) / _positive((w * X * X).sum((-2, -1)))  # trace(R M) / variance of X
    t = mean_Y - s[..., None] * matvec(R, mean_X[..., None, :])[..., 0, :]
    return R.to(dtype), t.to(dtype), s.to(dtype)


def apply_similarity(X: Tensor, R: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
    """s X R^T + t.   X (..., N, 3), R (..., 3, 3), t (..., 3), s (...) -> (..., N, 3)"""
    rotated = matvec(R, X)
    return (rotated if s is None else s[..., None, None] * rotated) + t[..., None, :]


def _positive(x: Tensor) -> Tensor:
    """A divisor: 1 in place of 0, where the numerator is 0 as well."""
    return torch.where(x > 0, x, 1.0)


class _Rotation(torch.autograd.Function):
    """The rotation R that maximises trace(R M).   M (..., 3, 3) = sum of x y^T -> R (..., 3, 3)

    Derivative: R M = P stays symmetric, so dR = W R with W skew and W P + P W = (R dM)^T - R dM, which is solved in the
    eigenbasis of P. Unlike the derivative through U and V it has no poles where singular values coincide, only where
    the rotation itself is undetermined.
    """

    @staticmethod
    def forward(ctx, M: Tensor) -> Tensor:
        U, S, Vh = torch.linalg.svd(M.nan_to_num(0.0, 0.0, 0.0))  # a bad set must not fail the batch
        sign = torch.where(torch.linalg.det(U) * torch.linalg.det(Vh) < 0, -1.0, 1.0).to(M)
        D = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
        V = Vh.mT
        R = (V * D[..., None, :]) @ U.mT
        ctx.save_for_backward(R, V, S * D)
        return R

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        R, V, p = ctx.saved_tensors
        G = grad @ R.mT
        pairs = p[..., :, None] + p[..., None, :]
        solid = pairs > 1e-12 * p[..., :1, None]  # else: points on a line or fewer, the rotation is free; no gradient
        skew = V.mT @ ((G - G.mT) / 2) @ V
        W = V @ torch.where(solid, skew / torch.where(solid, pairs, 1.0), 0.0) @ V.mT
        return -2 * R.mT @ W
