"""Similarity alignment of many small point sets in closed form: the speed behind PA-MPJPE.

The largest value of the trace that the rotation maximises is the largest root of a quartic, found by Newton's method from
above (Theobald, Acta Cryst. A 2005); with it the rotation follows from products and cofactors of the 3x3 correlation matrix
(Markley, FOAM, J. Astronautical Sciences 1993). It must be done in float64: in float32 the quartic costs hundreds of mm.
`python scripts/benchmark.py metrics` measures it beside the SVD.
"""

import torch
from torch import Tensor

from lib.geometry.alignment import similarity
from lib.metrics.columns import mean_joints, sum_joints

NEWTON_STEPS = 12
# Slope of the normalised quartic at its root: the product of the distances to the other roots, about 1 for a person.
# Where it is small, two rotations fit nearly as well and the closed form loses digits: those take the SVD.
MIN_SLOPE = 0.03


def procrustes(X: Tensor, Y: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation, translation and scale of the similarity Y ~ s X R^T + t of least squared error, never a reflection.

    Args:
        X, Y: (N,J,3) float64 points, any unit; finite everywhere.
        valid: (N,J) joints that count; None means all.

    Returns:
        R (N,3,3), t (N,3), s (N,). Points that coincide give R = 1 and s = 0.
    """
    X0, mean_X = _moments(X, valid)
    Y0, mean_Y = _moments(Y, valid)
    tiny = torch.finfo(X.dtype).tiny
    size_X = sum_joints(X0.square()).sum(1).clamp_min(tiny)
    size_Y = sum_joints(Y0.square()).sum(1).clamp_min(tiny)
    M = torch.stack([sum_joints(X0[..., axis, None] * Y0) for axis in range(3)], 1)  # X0^T Y0
    M = M / (size_X * size_Y).sqrt()[:, None, None]  # entries and eigenvalues now lie in [-1, 1]
    R, eigenvalue, slope = _rotation(M)
    scale = eigenvalue * (size_Y / size_X).sqrt()
    hard = (slope < MIN_SLOPE).nonzero()[:, 0]
    if len(hard):
        weight = None if valid is None else valid[hard].to(X.dtype)
        R_hard, _, scale_hard = similarity(X[hard], Y[hard], weight)
        R, scale = R.index_copy(0, hard, R_hard), scale.index_copy(0, hard, scale_hard)
    t = transformed(-scale[:, None, None] * R, mean_Y, mean_X[:, None])[:, 0]
    return R, t, scale


def transformed(A: Tensor, t: Tensor, X: Tensor) -> Tensor:
    """X A^T + t of each pose, in the memory layout of X.   A (N,3,3), t (N,3), X (N,J,3) -> (N,J,3)"""
    out = t[:, None]
    for axis in range(3):
        out = torch.addcmul(out, X[..., axis, None], A[:, None, :, axis])
    return out


def _moments(X: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Points minus their mean (zero where not valid), and the mean."""
    if valid is None:
        mean = mean_joints(X)
        return X - mean[:, None], mean
    weight = valid.to(X.dtype)[..., None]
    mean = sum_joints(X * weight) / sum_joints(weight).clamp_min(1.0)
    return (X - mean[:, None]) * weight, mean


def _rotation(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rotation R that maximises trace(R M), that maximum, and the slope of the quartic there.

    M (N,3,3) is the sum of x y^T over the points, normalised to singular values of at most 1.
    """
    B = M.permute(2, 1, 0).contiguous()  # (3,3,N), M transposed: with the poses last, every product below runs along memory
    cofactors = torch.linalg.cross(B[[1, 2, 0]], B[[2, 0, 1]], dim=1)
    det, square = (B[0] * cofactors[0]).sum(0), B.square().sum((0, 1))
    # x^4 + c2 x^2 + c1 x + c0, whose roots are s1+s2+s3, s1-s2-s3, s2-s1-s3, s3-s1-s2 for singular values with det's sign.
    c2, c1, c0 = -2 * square, -8 * det, square.square() - 4 * cofactors.square().sum((0, 1))
    x = torch.ones_like(c0)  # no root of the normalised matrix is above 1, so Newton falls monotonically
    step = x
    for _ in range(NEWTON_STEPS):
        x2 = x * x
        quadratic = x2 + c2
        cubic = torch.addcmul(c1, quadratic, x)
        value, slope = torch.addcmul(c0, cubic, x), torch.addcmul(cubic, x, torch.add(quadratic, x2, alpha=2))
        step = value / slope.clamp_min(1e-12)
        x = x - step
    slope = (4 * x * x + 2 * c2) * x + c1
    slope = slope.masked_fill(step.abs() > 1e-12, 0.0)  # not converged
    kappa = (x * x - square) / 2
    BtB = (B[:, :, None] * B[:, None]).sum(0)
    BBtB = (B[:, :, None] * BtB[None]).sum(1)
    R = ((kappa + square) * B + x * cofactors - BBtB) / (slope / 8).clamp_min(torch.finfo(x.dtype).tiny)
    return R.permute(2, 0, 1), x, slope
