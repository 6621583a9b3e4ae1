"""Heatmaps of several views brought together in a grid of world points (VoxelPose's projection layer).

Three ways to the same numbers: `unproject_heatmaps` for any points, differentiable throughout; `sample_taps` for a fixed
rig and grid, whose projection is computed once; `sample_people` for boxes around people, projected on the way in blocks.
The last two read a table with the joints of a cell side by side, so a bilinear tap is one short read instead of J, and
return volumes whose channels lie last in memory, as 3D convolutions like them.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.camera import MAX_RADIUS, MIN_DEPTH, Cameras
from lib.geometry.crop import compose, transform_points
from lib.geometry.precision import no_autocast, result_dtype, solve_dtype

RULES = ("exact", "reference")
FAR = 2.0  # places beyond it are held there (the map goes from -1 to 1): a point beside a camera is very far out
REFERENCE_DEPTH = 1e-5  # mm, added to depths by the published code
REFERENCE_RADIUS2 = 1e10  # squared radius in the plane z = 1 at which it holds points
REFERENCE_FAR = 1.1
REFERENCE_SUM = 1e-6  # added to the number of seeing views
BLOCK = 16384  # points whose taps are made at a time on a processor: the intermediate arrays stay in its cache
LARGE_BLOCK = 1 << 19  # elsewhere
SORTED = 1 << 21  # taps sorted at a time in the backward pass
BELOW_FLOOR = 200.0  # mm
CACHE_BYTES = 512 << 20  # 8 MB is usual for a rig of five views and 128,000 points


def voxel_grid(center: Tensor, size, shape) -> Tensor:
    """Points of a box-shaped grid around each centre.   center (..., 3) world mm -> (..., nx*ny*nz, 3) world mm

    size = (sx, sy, sz) mm, end points included, so the pitch is size / (n - 1); shape = (nx, ny, nz). Order: x slowest,
    z fastest.
    """
    return center[..., None, :] + torch.cartesian_prod(*_axes(size, shape, center.dtype, center.device))


def _axes(size, shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Positions along the three axes of a grid around 0."""
    ends = ((-0.5, 0.5) if n > 1 else (0.0, 0.0) for n in shape)
    return [torch.linspace(*end, n, dtype=dtype, device=device) * s for end, n, s in zip(ends, shape, size, strict=True)]


@no_autocast
def unproject_heatmaps(
    hm: Tensor, cams: Cameras, hm_from_img: Tensor, grid: Tensor, chunk: int | None = None, rule: str = "exact"
) -> Tensor:
    """Mean heatmap value of each grid point over the views that see it.

    hm (B, V, J, h, w), cams (B, V) or (V,), hm_from_img (B, V, 2, 3), grid (B, N, 3) world mm -> (B, J, N)

    rule="exact": a view sees a point that lies in front of it and within its lens's valid radius, inside its image
    (where the camera's size is known) and inside its map; the others do not count, and a point that no view sees gets
    0. Bilinear between cell centres (align_corners=True), the outer half cell repeats the border.
    rule="reference": as VoxelPose's weights were trained and SelfPose3d's tests recorded. A point counts wherever its
    projection falls inside the original image (size must be known), also behind the camera and where the lens
    polynomial folds; outside the map values fade to 0 within a cell and count as zeros; the mean is clamped to [0, 1].
    Mirror and rotation of a crop are in hm_from_img. Differentiable in all tensors but the masks. chunk: grid points
    at a time, to bound the memory of V J N values. Raises GeometryError for shapes that do not fit and another rule.
    """
    _check("unproject_heatmaps", hm, cams, hm_from_img, rule)
    batch, views, joints, h, w = hm.shape
    if grid.ndim != 3 or grid.shape[-1] != 3 or grid.shape[0] not in (1, batch):
        raise GeometryError(f"unproject_heatmaps: grid {tuple(grid.shape)}, expected (B, N, 3) with {batch} or 1 samples")
    hm = hm.to(result_dtype(hm))
    limit = torch.tensor([w, h], dtype=grid.dtype, device=grid.device)
    padding, far = ("border", FAR) if rule == "exact" else ("zeros", REFERENCE_FAR)
    parts = []
    for points in grid.split(chunk or grid.shape[1], dim=1):
        x_hm, seen = _project(cams, hm_from_img, points[:, None], limit, rule)  # (B, V, n, ...)
        place = (2 * x_hm / (limit - 1).clamp(min=1) - 1).nan_to_num().clamp(-far, far)
        place = place.to(hm.dtype).expand(batch, views, -1, 2).reshape(batch * views, 1, -1, 2)
        value = F.grid_sample(hm.flatten(0, 1), place, "bilinear", padding, align_corners=True)
        seen = seen.expand(batch, views, -1)[:, :, None].to(hm.dtype)
        value = (value.reshape(batch, views, joints, -1) * seen).sum(1)
        seen = seen.sum(1)
        parts.append(value / seen.clamp(min=1) if rule == "exact" else (value / (seen + REFERENCE_SUM)).clamp(0, 1))
    return torch.cat(parts, -1)


def _check(caller: str, hm: Tensor, cams: Cameras, hm_from_img: Tensor, rule: str) -> None:
    _check_rule(caller, rule)
    both = tuple(hm.shape[:2])
    fitting = (both, (1, *both[1:]), both[1:])
    if hm.ndim != 5 or cams.shape not in fitting or hm_from_img.shape not in [(*lead, 2, 3) for lead in fitting]:
        found = f"hm {tuple(hm.shape)}, cameras {tuple(cams.shape)}, hm_from_img {tuple(hm_from_img.shape)}"
        raise GeometryError(f"{caller}: {found}, expected (B, V, J, h, w), (B, V) or (V,), (B, V, 2, 3)")


def _check_rule(caller: str, rule: str) -> None:
    if rule not in RULES:
        raise GeometryError(f"{caller}: rule {rule!r} is not one of {', '.join(RULES)}")


def _check_size(caller: str, h: int, w: int) -> None:
    if min(h, w) < 2:
        raise GeometryError(f"{caller}: maps of {h}x{w} cells, expected at least 2x2")


def _project(cams: Cameras, hm_from_img: Tensor, X_world: Tensor, limit: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """Places in the maps and whether they count.   X_world (..., N, 3), limit (2,) w, h -> (..., N, 2), (..., N) bool"""
    X_cam = cams.to_cam(X_world)
    if rule == "exact":
        x_img = cams.project_cam(X_cam)
        x_hm = transform_points(hm_from_img, x_img)
        return x_hm, cams.sees(X_cam, x_img) & ((x_hm >= -0.5) & (x_hm <= limit - 0.5)).all(-1)
    x = X_cam[..., :2] / (X_cam[..., 2:] + REFERENCE_DEPTH)
    k1, k2, p1, p2, k3 = cams.dist[..., None, :, None].unbind(-2)
    r2 = x.square().sum(-1, keepdim=True).clamp(max=REFERENCE_RADIUS2)
    scale = 1 + r2 * (k1 + r2 * (k2 + r2 * k3)) + 2 * (p1 * x[..., 1:] + p2 * x[..., :1])
    x = x * scale + torch.cat([p2, p1], -1) * r2
    x_img = transform_points(cams.K[..., :2, :], x)
    size = torch.where((cams.size > 0).all(-1, keepdim=True), cams.size, math.inf)[..., None, :]
    seen = ((x_img >= 0) & (x_img < size)).all(-1)
    return transform_points(hm_from_img, x_img.clamp(min=-1).minimum(size.amax(-1, keepdim=True))), seen


@dataclass(frozen=True)
class Taps:
    """Where each grid point reads in the maps, and with what weight: made by `voxel_taps`, used by `sample_taps`.

    Only taps of views that see a point are stored; their weights are bilinear and divided by the number of such views.
    """

    index: Tensor  # (T,) int32, cells of all rigs and views in a row
    weight: Tensor  # (T,)
    start: Tensor  # (R N + 1,) int32, first tap of each point
    rigs: int  # R: 1 = the same for all samples, or one for each
    points: int  # N
    views: int
    hm_size: tuple[int, int]  # h, w
    rule: str

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.weight.nbytes + self.start.nbytes

    @staticmethod
    def cat(taps: Sequence["Taps"]) -> "Taps":
        """Taps of several rigs, one for each sample of a batch."""
        index, start, cells, first = [], [taps[0].start[:1]], 0, 0
        for t in taps:
            index.append(t.index + cells)
            start.append(t.start[1:] + first)
            cells += t.rigs * t.views * math.prod(t.hm_size)
            first += len(t.index)
        weight = torch.cat([t.weight for t in taps])
        rigs, one = sum(t.rigs for t in taps), taps[0]
        return Taps(torch.cat(index), weight, torch.cat(start), rigs, one.points, one.views, one.hm_size, one.rule)


@no_autocast
@torch.no_grad()
def voxel_taps(cams: Cameras, hm_from_img: Tensor, grid: Tensor, hm_size: tuple[int, int], rule: str = "exact") -> Taps:
    """What `unproject_heatmaps` reads, computed once for rigs that do not move.

    cams (R, V) or (V,), hm_from_img (R, V, 2, 3), grid (R, N, 3) world mm, each R may be 1; hm_size = (h, w)

    Projects in float64, a block of points at a time. Raises GeometryError for shapes that do not fit, maps of fewer than
    2x2 cells and another rule.
    """
    h, w = hm_size
    _check_rule("voxel_taps", rule)
    _check_size("voxel_taps", h, w)
    if hm_from_img.ndim != 4 or hm_from_img.shape[-2:] != (2, 3) or grid.ndim != 3 or grid.shape[-1] != 3:
        found = f"hm_from_img {tuple(hm_from_img.shape)}, grid {tuple(grid.shape)}"
        raise GeometryError(f"voxel_taps: {found}, expected (R, V, 2, 3) and (R, N, 3)")
    dtype, exact = result_dtype(grid), solve_dtype(grid.device)
    cams, hm_from_img, grid = cams.to(exact), hm_from_img.to(exact), grid.to(exact)
    cams = cams if len(cams.shape) == 2 else cams[None]
    try:
        rigs, views = torch.broadcast_shapes(cams.shape, hm_from_img.shape[:2], (grid.shape[0], 1))
    except RuntimeError as error:
        found = f"cameras {tuple(cams.shape)}, hm_from_img {tuple(hm_from_img.shape)}, grid {tuple(grid.shape)}"
        raise GeometryError(f"voxel_taps: {found}; their rigs and views do not fit together") from error
    limit = grid.new_tensor([w, h])
    base = torch.arange(rigs * views, dtype=torch.int32, device=grid.device).reshape(rigs, views, 1) * (h * w)
    index, weight, count = [], [], []
    for r in range(rigs):
        one = slice(r, r + 1)
        rig, affine, points = (x if len(x) == 1 else x[one] for x in (cams, hm_from_img, grid))
        for part in points.split(_block(points), dim=1):
            x_hm, seen = _project(rig, affine, part[:, None], limit, rule)
            seen = seen.expand(1, views, -1)
            x_hm = x_hm.nan_to_num().expand(*seen.shape, 2).movedim(-1, 0)
            i, v = _corners(_held(x_hm, limit.reshape(2, 1, 1, 1), rule), _share(seen.to(exact), rule), base[one], w, h, rule)
            seen = seen[0].mT
            index.append(i[0][seen].flatten())
            weight.append(v[0][seen].flatten().to(dtype))
            count.append(4 * seen.sum(-1))
    start = F.pad(torch.cat(count).cumsum(0), (1, 0)).int()
    return Taps(torch.cat(index), torch.cat(weight), start, rigs, grid.shape[1], views, (h, w), rule)


@no_autocast
def sample_taps(hm: Tensor, taps: Taps) -> Tensor:
    """`unproject_heatmaps` with taps made before.   hm (B, V, J, h, w) -> (B, J, N)

    Differentiable in hm. The result's joints lie last in memory. Raises GeometryError for maps of another size, or
    another number of views or samples, than the taps were made for.
    """
    batch, views, joints, h, w = hm.shape if hm.ndim == 5 else (0,) * 5
    if (views, (h, w)) != (taps.views, taps.hm_size) or taps.rigs not in (1, batch):
        made = f"{taps.rigs} rigs of {taps.views} views with maps of {taps.hm_size} (h, w)"
        raise GeometryError(f"sample_taps: hm {tuple(hm.shape)}, expected (B, V, J, h, w) and taps for it, not for {made}")
    hm = hm.to(result_dtype(hm))
    weight = taps.weight.to(hm.dtype)
    if taps.rigs == 1:  # samples side by side
        table = hm.permute(1, 3, 4, 0, 2).reshape(views * h * w, batch * joints)
    else:
        table = _table(hm)
    out = _Bags.apply(table, lambda: iter([(taps.index, weight, taps.start)]), taps.rigs * taps.points)
    if taps.rule == "reference":
        out = out.clamp(0, 1)
    if taps.rigs == 1:
        return out.reshape(taps.points, batch, joints).permute(1, 2, 0)
    return out.reshape(batch, taps.points, joints).mT


class TapsCache:
    """Taps of the rigs met so far, found again by the content of cameras, affines and grid.

    The least recently used leave when `max_bytes` are exceeded. Finding costs one copy of the cameras to the host.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES):
        self.max_bytes = max_bytes
        self._taps: OrderedDict[tuple, Taps] = OrderedDict()

    def __len__(self) -> int:
        return len(self._taps)

    @torch.no_grad()
    def get(self, cams: Cameras, hm_from_img: Tensor, size, center, shape, hm_size: tuple[int, int], rule: str = "exact") -> Taps:
        """Taps of the grid `voxel_grid(center, size, shape)` for a batch.

        cams (B, V), hm_from_img (B, V, 2, 3), size and center (3,) mm, shape (3,) voxels, hm_size (h, w)

        One rig for all samples is stored, and sampled, once.
        """
        batch = hm_from_img.shape[0]
        cams = cams if len(cams.shape) == 2 else cams[None].expand(batch, -1)
        fields = (cams.K, cams.R, cams.t, cams.dist, cams.size, hm_from_img)
        content = torch.cat([f.to(solve_dtype(f.device)).reshape(batch, -1) for f in fields], 1).cpu().numpy()
        size, center = (tuple(float(v) for v in values) for values in (size, center))
        rest = (size, center, tuple(shape), tuple(hm_size), rule, hm_from_img.device, hm_from_img.dtype)
        keys = [(row.tobytes(), *rest) for row in content]
        keys = keys[:1] if len(set(keys)) == 1 else keys
        found = []
        for b, key in enumerate(keys):
            if key not in self._taps:
                grid = voxel_grid(hm_from_img.new_tensor([center]), size, shape)
                self._taps[key] = voxel_taps(cams[b : b + 1], hm_from_img[b : b + 1], grid, tuple(hm_size), rule)
            self._taps.move_to_end(key)
            found.append(self._taps[key])
        while len(self._taps) > 1 and sum(t.nbytes for t in self._taps.values()) > self.max_bytes:
            self._taps.popitem(last=False)
        return found[0] if len(found) == 1 else Taps.cat(found)


@no_autocast
def sample_people(
    hm: Tensor,
    cams: Cameras,
    hm_from_img: Tensor,
    centers: Tensor,
    sample: Tensor,
    size,
    shape,
    rule: str = "exact",
    block: int | None = None,
) -> Tensor:
    """Volumes around K people of a batch: `unproject_heatmaps` on the grids `voxel_grid(centers, size, shape)`.

    hm (B, V, J, h, w), cams (B, V) or (V,), hm_from_img (B, V, 2, 3), centers (K, 3) world mm, sample (K,) in which
    sample each person is -> (K, J, nx*ny*nz)

    Points are projected and read a block at a time, so little is stored beside the result; `block`: points of one, by
    default what fits into a processor's cache. The result's joints lie last in memory. Differentiable in hm only. With
    one centre per sample it serves a whole space too, where cameras or affines change with every batch. Raises
    GeometryError for shapes that do not fit, maps of fewer than 2x2 cells and another rule.
    """
    _check("sample_people", hm, cams, hm_from_img, rule)
    batch, views, joints, h, w = hm.shape
    _check_size("sample_people", h, w)
    if centers.ndim != 2 or centers.shape[-1] != 3 or sample.shape != centers.shape[:1]:
        found = f"centers {tuple(centers.shape)}, sample {tuple(sample.shape)}"
        raise GeometryError(f"sample_people: {found}, expected (K, 3) and (K,)")
    people = centers.shape[0]
    hm = hm.to(result_dtype(hm))
    with torch.no_grad():
        cams = cams if len(cams.shape) == 2 else cams[None]
        cams, hm_from_img = cams.expand(batch, views), hm_from_img.expand(batch, views, 2, 3)
        boxes = _Boxes(cams, hm_from_img, centers, sample, size, shape, rule)
    block = block or _block(hm)
    out = _Bags.apply(_table(hm), lambda: boxes.taps(w, h, block, hm.dtype), people * math.prod(shape))
    if rule == "reference":
        out = out.clamp(0, 1)
    return out.reshape(people, math.prod(shape), joints).mT


class _Boxes:
    """Grids around people and the projection of their points, coordinate by coordinate.

    A grid is the sum of three axes, so a point in a camera is the sum of three vectors: one addition for each coordinate
    instead of a product with a rotation. Numbers of views are (..., K, V, 1), coordinates (..., K, V, n).
    """

    def __init__(self, cams: Cameras, hm_from_img: Tensor, centers: Tensor, sample: Tensor, size, shape, rule: str):
        dtype, exact = result_dtype(centers), solve_dtype(centers.device)
        cams, affine = cams.to(exact)[sample], hm_from_img.to(exact)[sample]  # (K, V)
        views = affine.shape[1]
        origin = cams.to_cam(centers.to(exact)[:, None, None])[..., 0, :]
        K = cams.K[..., :2, :]
        known = (cams.size > 0).all(-1, keepdim=True)
        middle = torch.where(known, cams.size / 2 - (0.5 if rule == "exact" else 0.0), 0.0)
        half = torch.where(known, cams.size / 2, math.inf)
        radius2 = cams.max_radius.square()[..., None]
        numbers = [cams.R, origin, cams.dist, K, affine, compose(affine, K), middle, radius2]
        usable = torch.stack([x.flatten(2).isfinite().all(-1) for x in numbers]).all(0)
        half = torch.where(usable[..., None], half, -1.0)  # nothing lies inside
        numbers = [torch.where(usable.reshape(*usable.shape, *(1,) * (x.ndim - 2)), x, 0.0) for x in numbers]
        # The numbers of a matrix or vector come first.
        numbers = [x.flatten(2).to(dtype).movedim(-1, 0)[..., None].contiguous() for x in (*numbers, half)]
        view = (sample[:, None] * views + torch.arange(views, device=sample.device))[..., None].int()
        self.numbers = (*numbers, view)
        self.axes = _axes(size, shape, dtype, centers.device)
        self.rule = rule

    def taps(self, w: int, h: int, block: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, None]]:
        """Taps of all points in the order of the volumes, in blocks.   -> index, weight (n, 4 V) each"""
        ax, ay, az = self.axes
        in_plane = len(ay) * len(az)
        planes, together = min(len(ax), max(1, block // in_plane)), max(1, block // (len(ax) * in_plane))
        sides = ax.new_tensor([w, h]).reshape(2, 1, 1, 1)
        place = self._exact if self.rule == "exact" else self._reference
        for k in range(0, self.numbers[0].shape[1], together):
            R, origin, *lens, view = (x[..., k : k + together, :, :] for x in self.numbers)
            R = R.unflatten(0, (3, 3))
            plane = (R[:, 1, ..., None] * ay[:, None] + R[:, 2, ..., None] * az).flatten(3) + origin  # (3, k, V, ny nz)
            for part in ax.split(planes):
                X_cam = ((R[:, 0] * part)[..., None] + plane[..., None, :]).flatten(3)
                x_hm, outside = place(X_cam, sides, *lens)
                share = _share(1 - outside.sign_().clamp_(min=0), self.rule)
                index, weight = _corners(_held(x_hm, sides, self.rule), share, view * (h * w), w, h, self.rule)
                yield index.flatten(0, 1).flatten(1), weight.flatten(0, 1).flatten(1).to(dtype), None

    # Both rules: places in the maps (2, k, V, n), and how far a point misses the condition it misses most, (k, V, n),
    # which is faster than joining comparisons.

    def _exact(self, X_cam: Tensor, sides: Tensor, dist, K, _, hm_from_norm, middle, radius2, half) -> tuple[Tensor, Tensor]:
        depth = X_cam[2]
        x = X_cam[:2] / depth.clamp(min=MIN_DEPTH)
        r2 = x.square().sum(0)
        outside = (MIN_DEPTH - depth).maximum(r2 - radius2[0])
        x = _distorted(x, r2.clamp_(max=MAX_RADIUS**2), dist)
        outside = outside.maximum((_affine(K, x) - middle).abs_().sub_(half).amax(0))
        x = _affine(hm_from_norm, x)
        return x, outside.maximum((x - (sides - 1) / 2).abs_().sub_(sides / 2).amax(0))

    def _reference(self, X_cam: Tensor, _, dist, K, hm_from_img, __, middle, ___, half) -> tuple[Tensor, Tensor]:
        x = X_cam[:2] / (X_cam[2] + REFERENCE_DEPTH)
        x = _affine(K, _distorted(x, x.square().sum(0).clamp_(max=REFERENCE_RADIUS2), dist))
        outside = (x - middle).abs_().sub_(half).amax(0)
        return _affine(hm_from_img, x.clamp_(min=-1).minimum(2 * half.amax(0))), outside


def _distorted(x: Tensor, r2: Tensor, dist: Tensor) -> Tensor:
    """Lens distortion of points (2, k, V, n), changed in place, with squared radii r2 (k, V, n)."""
    k1, k2, p1, p2, k3 = dist
    scale = (r2 * k3).add_(k2).mul_(r2).add_(k1).mul_(r2).add_(1).add_(x[0] * (2 * p2)).add_(x[1] * (2 * p1))
    return x.mul_(scale).add_(r2 * dist[[3, 2]])


def _affine(numbers: Tensor, x: Tensor) -> Tensor:
    """numbers (6, k, V, 1) row by row, x (2, k, V, n) -> (2, k, V, n)"""
    return (numbers[0::3] * x[0]).add_(numbers[1::3] * x[1]).add_(numbers[2::3])


def _held(x: Tensor, sides: Tensor, rule: str) -> Tensor:
    """Places (2, ...) in maps, far ones moved to where the rule reads them.   sides (2, ...) w, h"""
    far = 0 * sides if rule == "exact" else ((REFERENCE_FAR - 1) / 2 * (sides - 1)).clamp(max=1)  # from a cell outside on all is 0
    return x.maximum(-far).minimum(sides - 1 + far)


def _share(seen: Tensor, rule: str) -> Tensor:
    """Share of each view in the mean.   seen (K, V, n) 0 or 1"""
    count = seen.sum(1, keepdim=True)
    return seen / (count.clamp(min=1) if rule == "exact" else count + REFERENCE_SUM)


def _corners(x: Tensor, share: Tensor, base: Tensor, w: int, h: int, rule: str) -> tuple[Tensor, Tensor]:
    """The four cells around places (2, K, V, n), as rows of a table, and their weights.   -> (K, n, V, 4) each"""
    first = x.floor()
    first[0].clamp_(0, w - 2)
    first[1].clamp_(0, h - 2)
    far = x.sub_(first)
    near = 1 - far
    if rule == "reference":  # a place outside is nearer than 1 to one row of cells, or to none
        near, far = ((1 - (1 - side).abs_()).clamp_(min=0) for side in (near, far))
    cell = (first[1] * w).add_(first[0]).int().add_(base)
    left, right, upper, lower = near[0], far[0], near[1].mul_(share), far[1].mul_(share)
    people, views, points = cell.shape
    index = cell.new_empty(people, points, views, 4)
    weight = x.new_empty(people, points, views, 4)
    for corner, (step, a, b) in enumerate(((0, upper, left), (1, upper, right), (w, lower, left), (w + 1, lower, right))):
        torch.add(cell.mT, step, out=index[..., corner])
        torch.mul(a.mT, b.mT, out=weight[..., corner])
    return index, weight


def _block(x: Tensor) -> int:
    return BLOCK if x.device.type == "cpu" else LARGE_BLOCK


def _table(hm: Tensor) -> Tensor:
    """(B, V, J, h, w) -> (B V h w, J): the joints of a cell side by side"""
    return hm.permute(0, 1, 3, 4, 2).reshape(-1, hm.shape[2])


class _Bags(torch.autograd.Function):
    """Weighted sums of table rows, block by block; the backward pass makes the blocks again instead of keeping them.

    table (rows, J), blocks() -> iterator of index, weight, start: (n, L), (n, L), None, or (T,), (T,), (n + 1,) -> (points, J)
    """

    @staticmethod
    def forward(ctx, table: Tensor, blocks: Callable[[], Iterator], points: int) -> Tensor:
        ctx.blocks, ctx.rows = blocks, len(table)
        out, first = table.new_empty(points, table.shape[1]), 0
        for index, weight, start in blocks():
            last = start is not None
            part = F.embedding_bag(index, table, start, mode="sum", per_sample_weights=weight, include_last_offset=last)
            out[first : first + len(part)] = part
            first += len(part)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        table, grad = grad.new_zeros(ctx.rows, grad.shape[1]), grad.contiguous()
        waiting, taps, first = [], 0, 0
        for index, weight, start in ctx.blocks():
            n = len(index) if start is None else len(start) - 1
            count = start.diff() if start is not None else torch.full_like(index[:, 0], index.shape[1])
            points = torch.arange(first, first + n, dtype=index.dtype, device=grad.device)
            index = index.flatten()
            waiting.append((index, weight.flatten(), points.repeat_interleave(count, output_size=len(index))))
            first, taps = first + n, taps + len(index)
            if taps > SORTED:
                table += _gathered(waiting, grad, ctx.rows)
                waiting, taps = [], 0
        if taps:
            table += _gathered(waiting, grad, ctx.rows)
        return table, None, None


def _gathered(taps: list[tuple[Tensor, Tensor, Tensor]], grad: Tensor, rows: int) -> Tensor:
    """What table rows get back: sums as well, over the taps sorted by row, much faster than adding tap by tap."""
    index, weight, points = (torch.cat(x) for x in zip(*taps, strict=True))
    index, order = index.sort()
    start = torch.searchsorted(index, torch.arange(rows + 1, dtype=index.dtype, device=index.device), out_int32=True)
    return F.embedding_bag(points[order], grad, start, mode="sum", per_sample_weights=weight[order], include_last_offset=True)


def space_from_cameras(
    cams: Cameras,
    views: int | None = None,
    height: float = 1800.0,
    reach: float | None = None,
    step: float = 100.0,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Bounds of the volume that a rig observes, for worlds in mm with z up and the floor at z = 0.

    cams (V,) with known sizes -> size (3,), center (3,) mm

    In x and y the box around all upright lines from the floor to `height` of which at least half is seen by `views`
    cameras (default: half of them, at least 2), in multiples of `step`; in z from 200 mm below the floor, as floors of
    calibrations are not exact, to `height`. A camera that looks at the horizon sees to infinity, so points further from
    it than `reach` do not count; default: the largest distance from a camera to where the rig looks (the point nearest
    to all optical axes), and half as much again, or at which `height` fills half of an image, if that is more. Only the
    motion to be captured tells how much of the result is needed, and a smaller space has finer voxels. Raises
    GeometryError where no such volume exists.
    """
    if len(cams.shape) != 1 or not len(cams) or not bool((cams.size > 0).all()):
        raise GeometryError(f"space_from_cameras: {cams!r}, expected cameras (V,) with image sizes; set Cameras.size")
    views = min(len(cams), max(2, (len(cams) + 1) // 2)) if views is None else views
    if not 1 <= views <= len(cams):
        raise GeometryError(f"space_from_cameras: views {views} of {len(cams)} cameras")
    cams = cams.to(solve_dtype(cams.device))
    center, axis = cams.center, cams.R[:, 2]
    if reach is None:
        to_middle = (center - _nearest_to_axes(center, axis, height / 2)).norm(dim=-1)
        half_filled = 2 * cams.K[:, 1, 1] * height / cams.size[:, 1]
        reach = float((1.5 * to_middle).maximum(half_filled).max())
    low, high = (center[:, :2].amin(0) - reach), (center[:, :2].amax(0) + reach)
    steps = torch.linspace(0.0, 1.0, 65, dtype=center.dtype, device=center.device)[:, None]
    levels = torch.linspace(0.0, height, 9, dtype=center.dtype, device=center.device)
    for _ in range(3):  # coarse, then closer around what was found
        pitch = (high - low) / (len(steps) - 1)
        points = torch.cartesian_prod(*(low + steps * (high - low)).mT, levels)
        near = (points - center[:, None]).norm(dim=-1) <= reach
        enough = (cams.in_view(points) & near).sum(0) >= views
        columns = points.unflatten(0, (-1, len(levels)))[:, 0, :2][enough.unflatten(0, (-1, len(levels))).double().mean(1) >= 0.5]
        if not len(columns):
            raise GeometryError(
                f"space_from_cameras: no place from z = 0 to {height:g} mm within {reach:g} mm is seen by {views} of {len(cams)} cameras. "
                f"The cameras stand at z = {_words(center[:, 2])} mm; check that the world is in mm, z is up and the floor is at 0"
            )
        low, high = columns.amin(0) - pitch, columns.amax(0) + pitch
    low, high = ((low + pitch) / step).floor() * step, ((high - pitch) / step).ceil() * step
    width, depth = (high - low).clamp(min=step).tolist()
    x, y = ((low + high) / 2).tolist()
    return (width, depth, height + BELOW_FLOOR), (x, y, (height - BELOW_FLOOR) / 2)


def _nearest_to_axes(center: Tensor, axis: Tensor, level: float) -> Tensor:
    """The point at the smallest squared distance from all optical axes, drawn a little to the point below the cameras' middle.

    center, axis (V, 3) -> (3,)
    """
    middle = torch.cat([center[:, :2].mean(0), center.new_tensor([level])])
    across = torch.eye(3, dtype=axis.dtype, device=axis.device) - axis[:, :, None] * axis[:, None, :]
    weak = 0.01 * torch.eye(3, dtype=axis.dtype, device=axis.device)
    offsets = (across @ (center - middle)[..., None]).sum(0)
    return middle + torch.linalg.solve(across.sum(0) + weak, offsets)[:, 0]


def _words(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.0f} to {high:.0f}"
