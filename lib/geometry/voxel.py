"""Heatmaps of several views brought together in a grid of world points (VoxelPose's projection layer)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import transform_points
from lib.geometry.precision import no_autocast, result_dtype


def voxel_grid(center: Tensor, size, shape) -> Tensor:
    """Points of a box-shaped grid around each centre.   center (..., 3) world mm -> (..., nx*ny*nz, 3) world mm

    size = (sx, sy, sz) mm, end points included, so the pitch is size / (n - 1); shape = (nx, ny, nz). Order: x slowest,
    z fastest.
    """
    axes = []
    for length, n in zip(size, shape, strict=True):
        steps = torch.linspace(-0.5, 0.5, n, dtype=center.dtype, device=center.device) if n > 1 else center.new_zeros(1)
        axes.append(steps * length)
    return center[..., None, :] + torch.cartesian_prod(*axes)


@no_autocast
def unproject_heatmaps(
    hm: Tensor, cams: Cameras, hm_from_img: Tensor, grid: Tensor, chunk: int | None = None
) -> Tensor:
    """Mean heatmap value of each grid point over the views that see it.

    hm (B, V, J, h, w), cams (B, V) or (V,), hm_from_img (B, V, 2, 3), grid (B, N, 3) world mm -> (B, J, N)

    A view sees a point that lies in front of it, inside its image (where the camera's size is known) and inside its
    map; the others do not count, and a point that no view sees gets 0. Bilinear between cell centres
    (align_corners=True), the outer half cell repeats the border. Mirror and rotation of a crop are in hm_from_img.
    Differentiable in all tensors but the masks. chunk: grid points at a time, to bound the memory of V J N values.
    Raises GeometryError for shapes that do not fit.
    """
    if hm.ndim != 5 or grid.ndim != 3 or grid.shape[-1] != 3 or hm_from_img.shape[-2:] != (2, 3):
        found = f"hm {tuple(hm.shape)}, hm_from_img {tuple(hm_from_img.shape)}, grid {tuple(grid.shape)}"
        raise GeometryError(f"unproject_heatmaps: {found}, expected (B, V, J, h, w), (B, V, 2, 3), (B, N, 3)")
    batch, views, joints, h, w = hm.shape
    if cams.shape[-1:] != (views,) or grid.shape[0] not in (1, batch):
        found = f"{views} views of {batch} samples, cameras {tuple(cams.shape)}, grid {tuple(grid.shape)}"
        raise GeometryError(f"unproject_heatmaps: {found}, expected cameras (B, V) and a grid (B, N, 3)")
    hm = hm.to(result_dtype(hm))
    limit = torch.tensor([w, h], dtype=grid.dtype, device=grid.device)
    parts = []
    for points in grid.split(chunk or grid.shape[1], dim=1):
        X_cam = cams.to_cam(points[:, None])  # (B, V, n, 3)
        x_img = cams.project_cam(X_cam)
        x_hm = transform_points(hm_from_img, x_img)
        seen = cams.sees(X_cam, x_img) & ((x_hm >= -0.5) & (x_hm <= limit - 0.5)).all(-1)
        place = (2 * x_hm / (limit - 1).clamp(min=1) - 1).clamp(-2, 2)  # a point behind may be very far out
        place = place.to(hm.dtype).expand(batch, views, -1, 2).reshape(batch * views, 1, -1, 2)
        value = F.grid_sample(hm.flatten(0, 1), place, "bilinear", "border", align_corners=True)
        seen = seen.expand(batch, views, -1)[:, :, None].to(hm.dtype)
        value = (value.reshape(batch, views, joints, -1) * seen).sum(1)
        parts.append(value / seen.sum(1).clamp(min=1))
    return torch.cat(parts, -1)
