"""Number types of the geometry: solve in float64, return what came in, keep autocast out.

Why float64: noise-free, 4 views, a triangulation by `eigh(A^T A)` in float32 errs by metres, in float64 by nanometres,
and it costs nothing at the sizes of pose estimation. Why no autocast: bfloat16 has 8 bits, so a coordinate of 1000 px
comes in steps of 4 px. Why no TF32: matrix products with ten mantissa bits lose whole pixels;
`torch.backends.cuda.matmul.allow_tf32` stays False (torch's default), and the small products of this package are
written as sums of products, which neither TF32 nor autocast touches.
"""

import functools

import torch
from torch import Tensor


def solve_dtype(device: torch.device) -> torch.dtype:
    """Type in which solvers work on a device: float64, or float32 where the device has no float64 (Apple's GPU)."""
    return torch.float32 if device.type == "mps" else torch.float64


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Type of a geometric result: the common type of the inputs, but never less than float32."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def promote(*tensors: Tensor | None) -> tuple[list[Tensor | None], torch.dtype]:
    """The tensors in the type of solvers, and the type in which to return the result; None stays None."""
    return [None if t is None else t.to(solve_dtype(t.device)) for t in tensors], result_dtype(*tensors)


def no_autocast(function):
    """Decorator: run `function` with autocast off on the device of its first tensor argument."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if first is None or not torch.amp.is_autocast_available(first.device.type):
            return function(*args, **kwargs)
        if not torch.is_autocast_enabled(first.device.type):  # nothing to turn off, and exported graphs cannot hold the switch
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return run


def matvec(M: Tensor, x: Tensor) -> Tensor:
    """Apply one small matrix to many row vectors without a matrix product.

    M (..., C, D), x (..., N, D) -> (..., N, C)
    """
    out = M[..., None, :, 0] * x[..., 0:1]
    for d in range(1, M.shape[-1]):
        out = out + M[..., None, :, d] * x[..., d : d + 1]
    return out


def matmul(A: Tensor, B: Tensor) -> Tensor:
    """Product of small matrices as a sum of products, exact under autocast and TF32.

    A (..., C, D), B (..., D, E) -> (..., C, E)
    """
    return (A.unsqueeze(-1) * B.unsqueeze(-3)).sum(-2)
