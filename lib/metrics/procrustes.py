"""Similarity alignment of many small point sets in closed form: the speed behind PA-MPJPE.

The largest value of the trace that the rotation maximises is the largest root of a quartic, found by Newton's method from
above (Theobald, Acta Cryst. A 2005); with it the rotation follows from products and cofactors of the 3x3 correlation matrix
(Markley, FOAM, J. Astronautical Sciences 1993). It must be done in float64: in float32 the quartic costs hundreds of mm.
`python scripts/benchmark.py metrics` measures it beside the SVD.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.geometry.alignment import similarity
from lib.metrics.columns import some_joints, sum_joints

NEWTON_STEPS = 12  # at most
CONVERGED = 1e-12  # of a step; the root lies between 0 and 1
ROUNDING = 1e-13  # what is left of sums of squares that cancel, relative to them
TINY = torch.finfo(torch.float64).tiny
# Slope of the normalised quartic at its root: the product of the distances to the other roots, about 1 for a person.
# Where it is small, two rotations fit nearly as well and the closed form loses digits: those take the SVD.
MIN_SLOPE = 0.03


class Moments(NamedTuple):
    """Sums over the joints x, y of pairs of poses: all that their best scale and their similarity depend on.

    Sums over disjoint joints add up, so that those of a subset may come from those of all.
    """

    count: Tensor  # (N,) or (), joints
    x: Tensor  # (N,3)
    y: Tensor  # (N,3)
    xx: Tensor  # (N,) of |x|^2
    yy: Tensor  # (N,)
    xy: Tensor  # (N,3,3) of x y^T

    def without(self, other: "Moments") -> "Moments":
        """Those of the joints that `other` does not have."""
        return Moments(*(a - b for a, b in zip(self, other, strict=True)))


def moments(X: Tensor, Y: Tensor, valid: Tensor | None = None, joints: Sequence[int] | None = None) -> Moments:
    """Sums over some joints of each pair of poses.   X, Y (N,J,3), valid (N,J), indices of joints; None = all"""
    X, Y = some_joints(X, joints), some_joints(Y, joints)
    if valid is None:
        count = X.new_tensor(X.shape[1])
    else:
        valid = some_joints(valid, joints)
        count = valid.sum(1).to(X.dtype)
        X, Y = X.masked_fill(~valid[..., None], 0.0), Y.masked_fill(~valid[..., None], 0.0)
    xy = torch.stack([sum_joints(X[..., axis, None] * Y) for axis in range(3)], 1)
    return Moments(count, sum_joints(X), sum_joints(Y), sum_joints(squares(X)), sum_joints(squares(Y)), xy)


def procrustes(
    X: Tensor, Y: Tensor, valid: Tensor | None = None, joints: Sequence[int] | None = None, sums: Moments | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation, translation and scale of the similarity Y ~ s X R^T + t of least squared error, never a reflection.

    Args:
        X, Y: (N,J,3) float64 points, any unit; finite where valid.
        valid: (N,J) joints that count; None means all.
        joints: indices of those it is fitted to; None means all.
        sums: `moments` of the same, where they are known already.

    Returns:
        R (N,3,3), t (N,3), s (N,). Points that coincide give R = 1 and s = 0.
    """
    sums = moments(X, Y, valid, joints) if sums is None else sums
    count = sums.count.clamp_min(1.0)
    mean_X, mean_Y = (total / count[..., None] for total in (sums.x, sums.y))
    size_X, size_Y = _size(sums.xx, mean_X, count), _size(sums.yy, mean_Y, count)
    M = sums.xy - sums.x[:, :, None] * mean_Y[:, None]
    # Entries and eigenvalues then lie in [-1, 1]; where all points coincide, M is the rounding of zero.
    M = torch.where(((size_X > 0) & (size_Y > 0))[:, None, None], M, 0.0) / (size_X * size_Y).sqrt().clamp_min(TINY)[:, None, None]
    R, eigenvalue, slope = _rotation(M)
    scale = eigenvalue * (size_Y / size_X.clamp_min(TINY)).sqrt()
    hard = (slope < MIN_SLOPE).nonzero()[:, 0]
    if len(hard):
        weight = None if valid is None else some_joints(valid[hard], joints).to(X.dtype)
        R_hard, _, scale_hard = similarity(some_joints(X[hard], joints), some_joints(Y[hard], joints), weight)
        R, scale = R.index_copy(0, hard, R_hard), scale.index_copy(0, hard, scale_hard)
    t = transformed(-scale[:, None, None] * R, mean_Y[:, None], mean_X[:, None])[:, 0]
    return R, t, scale


def transformed(A: Tensor, t: Tensor, X: Tensor) -> Tensor:
    """X A^T + t of each pose, in the memory layout of X.   A (N,3,3), t (N,1 or J,3), X (N,J,3) -> (N,J,3)"""
    out = torch.addcmul(t, X[..., 0, None], A[:, None, :, 0])
    for axis in (1, 2):
        out.addcmul_(X[..., axis, None], A[:, None, :, axis])
    return out


def squares(X: Tensor) -> Tensor:
    """Squared length of vectors.    (...,3) -> (...)"""
    x, y, z = X.unbind(-1)  # a reduction over three neighbours is several times slower
    return (x * x).addcmul_(y, y).addcmul_(z, z)


def _size(total: Tensor, mean: Tensor, count: Tensor) -> Tensor:
    """Sum of the squared distances from the mean, 0 where it is within what rounding leaves of it.   (N,), (N,3), (N,) -> (N,)"""
    size = total - count * squares(mean)
    return torch.where(size > ROUNDING * total, size, 0.0)


def _rotation(M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rotation R that maximises trace(R M), that maximum, and the slope of the quartic there.

    M (N,3,3) is the sum of x y^T over the points, normalised to singular values of at most 1.
    """
    B = M.permute(2, 1, 0).contiguous()  # (3,3,N), M transposed: with the poses last, every product below runs along memory
    around = torch.cat([B, B[:2]])
    around = torch.cat([around, around[:, :2]], 1)  # (5,5,N): rows and columns go round
    cofactors = torch.addcmul(around[1:4, 1:4] * around[2:, 2:], around[1:4, 2:], around[2:, 1:4], value=-1)
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
        if not (step > CONVERGED).any():
            break
    slope = (4 * x * x + 2 * c2) * x + c1
    slope = slope.masked_fill(step.abs() > CONVERGED, 0.0)
    kappa = (x * x - square) / 2
    BtB = (B[:, :, None] * B[:, None]).sum(0)
    BBtB = (B[:, :, None] * BtB[None]).sum(1)
    R = ((kappa + square) * B + x * cofactors - BBtB) / (slope / 8).clamp_min(TINY)
    return R.permute(2, 0, 1), x, slope
