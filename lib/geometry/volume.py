"""Volumes of scores over a box of the world: their peaks as places of people, and their expected positions as joints."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.heatmap import soft_argmax
from lib.geometry.precision import no_autocast, result_dtype
from lib.geometry.voxel import voxel_grid


@dataclass(frozen=True)
class Space:
    """A box of the world, cut into voxels; the first and the last voxel of each axis lie on its faces.

    size (3,) and center (3,) mm along x, y, z; shape (3,) voxels. The default is VoxelPose's for CMU Panoptic.

    Raises:
        GeometryError: not three numbers each, a size that is not positive, or an axis of fewer than two voxels.
    """

    size: tuple[float, float, float] = (8000.0, 8000.0, 2000.0)
    center: tuple[float, float, float] = (0.0, -500.0, 800.0)
    shape: tuple[int, int, int] = (80, 80, 20)

    def __post_init__(self):
        for name, kind in (("size", float), ("center", float), ("shape", int)):
            object.__setattr__(self, name, tuple(kind(value) for value in getattr(self, name)))
        if not len(self.size) == len(self.center) == len(self.shape) == 3 or min(self.size) <= 0 or min(self.shape) < 2:
            raise GeometryError(
                f"space: size {self.size} mm, center {self.center} mm, shape {self.shape} voxels; expected three numbers each, positive "
                "sizes, and two voxels or more along each axis"
            )

    @property
    def pitch(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along x, y, z, mm."""
        return tuple(length / (n - 1) for length, n in zip(self.size, self.shape, strict=True))

    def grid(self) -> Tensor:
        """All voxels, x slowest and z fastest.   -> (nx*ny*nz, 3) world mm"""
        return voxel_grid(torch.tensor(self.center), self.size, self.shape)

    def points(self, index: Tensor) -> Tensor:
        """World points of voxels, or between them.   index (..., 3) along x, y, z -> (..., 3) world mm"""
        dtype = result_dtype(index) if index.is_floating_point() else torch.float32
        size, center, last = (torch.tensor(v, dtype=dtype, device=index.device) for v in (self.size, self.center, self.shape))
        return index / (last - 1) * size + center - size / 2


class Peaks(NamedTuple):
    """The highest peaks of volumes, the highest first; `real` is false where a volume has fewer of them."""

    index: Tensor  # (B, M, 3) voxel along x, y, z
    score: Tensor  # (B, M)
    real: Tensor  # (B, M) bool


def find_peaks(volume: Tensor, count: int, rule: str = "exact") -> Peaks:
    """Local maxima: voxels as high as the highest of the 27 around them.   volume (B, nx, ny, nz) -> M = count at most

    A plateau counts as often as it has voxels. rule="reference": where there are fewer peaks, voxels that are none follow with score 0,
    before peaks below zero, and count as real: only a threshold tells them apart, as in VoxelPose. Raises GeometryError.
    """
    if rule not in ("exact", "reference"):
        raise GeometryError(f"find_peaks: rule {rule!r} is not one of exact, reference")
    if volume.ndim != 4:
        raise GeometryError(f"find_peaks: volume {tuple(volume.shape)}, expected (B, nx, ny, nz)")
    volume = volume.detach().float() if volume.itemsize < 4 else volume.detach()
    is_peak = F.max_pool3d(volume[:, None], 3, stride=1, padding=1)[:, 0] == volume
    ranked = torch.where(is_peak, volume, 0.0 if rule == "reference" else -torch.inf).flatten(1)
    score, place = ranked.topk(min(count, ranked.shape[1]))
    real = score > -torch.inf
    _, ny, nz = volume.shape[1:]
    index = torch.stack([place // (ny * nz), place // nz % ny, place % nz], -1)
    return Peaks(index, torch.where(real, score, 0.0), real)


def apart(X: Tensor, radius: float) -> Tensor:
    """Which points remain when each one removes the later ones nearer than the radius, unless it was removed itself.

    X (B, M, 3) mm, the best first -> (B, M) bool
    """
    distance = (X[:, :, None] - X[:, None]).norm(dim=-1)
    near = (distance < radius).tril(-1)  # [m, k]: k comes before m and is near
    kept = torch.ones_like(near[..., 0])
    while True:  # each round settles at least one more point
        now = ~(near & kept[:, None]).any(-1)
        if torch.equal(now, kept):
            return kept
        kept = now


@no_autocast
def expected_position(volume: Tensor, size, beta: float = 100.0) -> Tensor:
    """Mean voxel under the softmax of beta times the scores, relative to the centre of the volume.

    volume (P, J, nx, ny, nz), size (3,) mm of the whole volume, first to last voxel -> (P, J, 3) mm; in float32 or more
    """
    cells = soft_argmax(volume, 3, beta=beta).flip(-1)  # it counts from the last axis
    size = torch.as_tensor(size, dtype=cells.dtype, device=cells.device)
    last = torch.tensor(volume.shape[2:], dtype=cells.dtype, device=cells.device) - 1
    return (cells / last - 0.5) * size
