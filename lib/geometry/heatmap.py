"""Heatmaps: Gaussians in, coordinates out. Cells count from 0 at their centres; see README.md beside this file."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.precision import no_autocast, result_dtype

CPU_BLOCK = 1 << 18  # cells worked on at a time: 1 MiB of float32, the second-level cache of a core
GPU_BLOCK = 1 << 26  # launches cost more than memory there; still bounds the extra memory to 256 MiB
LOWEST = -70.0  # exponents below it count as it: e^-70 = 4e-31 of the largest share is nothing
NEXT_TO_NOTHING = (2 * math.exp(LOWEST), 0.0)  # of F.threshold: no gradient there, not even a tiny one
MIN_SIDE, NORMAL_SIDE, MAX_SIDE = 48.0, 96.0, 192.0  # cells; sides of people that VoxelPose's sigma goes by


@no_autocast
def render_heatmaps(
    x_hm: Tensor, valid: Tensor, size, sigma: float, cut: float | None = 3.0, snap: bool | str = False
) -> Tensor:
    """Gaussians of peak 1.   x_hm (..., J, 2) cells, valid (..., J) -> (..., J, h, w); size = (w, h), sigma in cells

    cut: the Gaussian is zero beyond cut * sigma along x or y (Simple Baselines: 3); None leaves it whole. snap: the
    centre is rounded to a cell, floor(x + 0.5). snap="toward_zero" cuts the decimals of x + 0.5 off instead, as int() does in
    Simple Baselines and in Zhou et al.'s release (ICCV 2017): left of the map and above it, the centre is a cell nearer.
    Maps of joints that are not valid are zero. Differentiable in x_hm unless snapped. Raises GeometryError for another snap.
    """
    if snap not in (False, True, "toward_zero"):
        raise GeometryError(f"render_heatmaps: snap {snap!r} is not one of False, True, 'toward_zero'")
    (w, h), dtype = size, result_dtype(x_hm)
    x = torch.where(valid.bool()[..., None], x_hm.to(dtype), 0.0)  # what stands in an invalid place may be NaN
    if snap:
        x = (x + 0.5).trunc() if snap == "toward_zero" else (x + 0.5).floor()
    cells = torch.arange(max(w, h), dtype=dtype, device=x.device)
    profiles = []
    for n, center in ((w, x[..., 0]), (h, x[..., 1])):
        d = cells[:n] - center[..., None]
        profile = torch.exp(d.square() * (-0.5 / sigma**2))
        profiles.append(profile if cut is None else torch.where(d.abs() <= cut * sigma, profile, 0.0))
    along_x, along_y = profiles
    return (along_y * valid.to(dtype)[..., None])[..., :, None] * along_x[..., None, :]


def people_heatmaps(
    x_hm: Tensor, peak: Tensor, size, sigma: float = 3.0, scaled: bool = False, snap: bool = False
) -> Tensor:
    """Training targets of several people: in each joint's map the largest of their Gaussians.

    x_hm (..., M, J, 2) cells, peak (..., M, J) height, 0 = no such joint (True counts as 1) -> (..., J, h, w)

    The Gaussian is zero beyond 3 sigma along x or y. scaled: VoxelPose's sigma, which grows with the person's size in the map (see
    `person_sigma`), up to 2.8 times `sigma`; otherwise it is the same for all (SelfPose3d). snap: the published targets, centred on
    the cell that the joint lies in (the coordinate cut off, half a cell short on average) with their windows; False centres them
    where the joint is. Not differentiable; cost and memory go with the windows, not with the maps.
    """
    (w, h), dtype = size, result_dtype(x_hm)
    lead, (people, joints) = x_hm.shape[:-3], x_hm.shape[-3:-1]
    peak = peak.to(dtype)
    x = torch.where(peak[..., None] > 0, x_hm.detach().to(dtype), 0.0)
    width = person_sigma(x, peak > 0, sigma) if scaled else x.new_full(x.shape[:-2], sigma)
    width = width[..., None, None].expand(*lead, people, joints, 1)  # sigma of each joint, cells
    reach = 3 * width
    largest = 3 * sigma * (math.sqrt(2 * MAX_SIDE**2 / NORMAL_SIDE**2) if scaled else 1.0)
    window = torch.arange(2 * math.ceil(largest) + 2, device=x.device, dtype=dtype)
    if snap:
        center = x.trunc()
        first = (center - reach).trunc()
        steps = torch.minimum((center + reach + 1).trunc() - first, (2 * reach + 1).ceil())
        d = window - (reach + 0.5).floor()[..., None, :]  # (..., M, J, 1, K)
        d = d.expand(*x.shape, len(window))
        inside = window < steps[..., None]
    else:
        first = (x - reach).ceil()
        d = first[..., None] + window - x[..., None]
        inside = d <= reach[..., None]
    cells = first[..., None] + window  # (..., M, J, 2, K)
    limit = x.new_tensor([w, h])[:, None]
    inside = inside & (cells >= 0) & (cells < limit)
    profile = torch.where(inside, torch.exp(d.square() * (-0.5 / width[..., None].square())), 0.0)
    value = (profile[..., 1, :] * peak[..., None])[..., :, None] * profile[..., 0, None, :]  # (..., M, J, K, K)
    cells = torch.where(inside, cells, 0).long()  # whatever lies outside adds a zero to cell 0
    place = (cells[..., 1, :] * w)[..., :, None] + cells[..., 0, None, :]
    count = math.prod(lead)
    # (lead, M, J, K K) -> (lead, J, M K K): the people of a joint share its map
    place, value = (v.reshape(count, people, joints, -1).transpose(1, 2).reshape(count * joints, -1) for v in (place, value))
    maps = x.new_zeros(count * joints, h * w).scatter_reduce_(1, place, value, "amax")
    return maps.clamp_(max=1).reshape(*lead, joints, h, w)


def person_sigma(x_hm: Tensor, valid: Tensor, sigma: float) -> Tensor:
    """The sigma of a person's Gaussians by VoxelPose's rule: sigma sqrt(2 s^2 / 96^2), s = the longer side of the box around the valid
    joints in cells, within 48 .. 192.

    x_hm (..., J, 2) cells, valid (..., J) -> (...) cells
    """
    far = torch.finfo(x_hm.dtype).max
    known = valid.bool()[..., None]
    low = torch.where(known, x_hm, far).amin(-2)
    side = (torch.where(known, x_hm, -far).amax(-2) - low).amax(-1)
    return sigma * math.sqrt(2) / NORMAL_SIDE * side.clamp(MIN_SIDE, MAX_SIDE)


@no_autocast
def summed_heatmaps(x_hm: Tensor, valid: Tensor, size, sigma: float = 3.0) -> Tensor:
    """Predicted people drawn for a loss: the sum of their Gaussians, cut at 1; differentiable in x_hm where it is below 1.

    x_hm (..., M, J, 2) cells, valid (..., M, J) or peaks -> (..., J, h, w)

    Gaussians are whole and centred at the joints (SelfPose3d, CVPR 2024). One matrix product per map adds its people up.
    """
    (w, h), dtype = size, result_dtype(x_hm)
    weight = valid.to(dtype).transpose(-1, -2)  # (..., J, M)
    x = torch.where(weight[..., None] > 0, x_hm.to(dtype).transpose(-2, -3), 0.0)
    cells = torch.arange(max(w, h), dtype=dtype, device=x.device)
    exponents = ((cells[:n] - x[..., k, None]).square() * (-0.5 / sigma**2) for k, n in ((0, w), (1, h)))  # (..., J, M, n)
    along_x, along_y = (torch.where(e < LOWEST / 2, 0.0, e.exp()) for e in exponents)
    return ((along_y * weight[..., None]).transpose(-1, -2) @ along_x).clamp(max=1)


def touches_map(x_hm: Tensor, size, reach: float) -> Tensor:
    """Whether a blob of half width `reach` cells overlaps the map; a target wholly outside gets no loss.

    x_hm (..., 2) -> (...) bool
    """
    limit = torch.as_tensor(size, dtype=x_hm.dtype, device=x_hm.device)
    return ((x_hm > -reach - 0.5) & (x_hm < limit - 0.5 + reach)).all(-1)


@torch.compiler.disable  # a loop over blocks is no graph; torch.compile breaks here and continues behind it
@no_autocast
def soft_argmax(
    logits: Tensor, dims: int | None = None, score: bool = False, beta: float = 1.0
) -> Tensor | tuple[Tensor, Tensor]:
    """Expected cell under the softmax over each joint's map, of beta times the logits.

    logits (..., J, [D,] h, w) -> (..., J, k) cells, order x, y[, z]

    dims: how many trailing axes a map has (1 to 3); None = all behind (B, J). score=True also returns the largest
    probability (..., J), without gradient. Cells count from 0, no half-cell offset; any sizes; float32 inside even
    under autocast (float64 for float64). Equation: Sun et al., Integral Human Pose Regression (ECCV 2018), with the
    analytic gradient p g (c - E[c]). It works on blocks that stay in cache; where a gradient will be asked for, the exponentials stay in
    the memory that later holds it, so that the extra memory is the gradient alone. First derivatives only. Raises GeometryError.
    """
    dims = logits.ndim - 2 if dims is None else dims
    if not 1 <= dims <= 3 or logits.ndim <= dims or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} of {logits.dtype} with dims {dims}"
        raise GeometryError(f"soft_argmax: logits {found}, expected floats (..., J, [D,] h, w) and 1 to 3 map axes")
    if not beta > 0:
        raise GeometryError(f"soft_argmax: beta {beta} is not positive")
    if torch.compiler.is_exporting():
        coords, peak = _plain_soft_argmax(logits, dims, beta)
        return (coords, peak) if score else coords
    lead = logits.shape[:-dims]
    # of a half type they would take twice the gradient's memory: there they are worked out a second time
    keep = torch.is_grad_enabled() and logits.requires_grad and logits.dtype == result_dtype(logits)
    coords, peak = _SoftArgmax.apply(logits.reshape(-1, lead[-1], *logits.shape[-dims:]), dims, beta, keep)
    coords = coords.reshape(*lead, dims)
    return (coords, peak.reshape(lead)) if score else coords


def _plain_soft_argmax(logits: Tensor, dims: int, beta: float) -> tuple[Tensor, Tensor]:
    """The same as one graph without blocks, for other programs to run.   -> coordinates (..., J, k), largest probability (..., J)"""
    p = (logits.to(result_dtype(logits)).flatten(-dims) * beta).softmax(-1)
    peak, p = p.amax(-1), p.unflatten(-1, logits.shape[-dims:])
    coords = []
    for axis in range(-1, -dims - 1, -1):  # map axes are z y x, coordinates x y z
        marginal = p.sum([other for other in range(-dims, 0) if other != axis]) if dims > 1 else p
        coords.append((marginal * torch.arange(p.shape[axis], dtype=p.dtype, device=p.device)).sum(-1))
    return torch.stack(coords, -1), peak


class _SoftArgmax(torch.autograd.Function):
    """logits (B, J, map axes) -> coordinates (B, J, k), largest probability (B, J)."""

    @staticmethod
    def forward(ctx, logits: Tensor, dims: int, beta: float, keep: bool) -> tuple[Tensor, Tensor]:
        dtype = result_dtype(logits)
        order, maps = _memory_order(logits, dims)
        sizes = maps.shape[2:]
        first = logits.new_empty(*maps.shape[:2], sizes[0], dtype=dtype)  # marginal of the outermost axis in memory
        rest = logits.new_empty(*maps.shape[:2], *sizes[1:], dtype=dtype)  # ... and of the others together
        top = logits.new_empty(*maps.shape[:2], *[1] * dims, dtype=dtype)
        ctx.kept = torch.empty_like(logits) if keep else None  # exponentials, and in the end the gradient
        kept = _ordered(ctx.kept, order)
        in_place = keep and kept.is_contiguous()  # else they are worked out in a row, which is faster, and copied
        for part, work in _blocks(maps, dtype, kept if in_place else None):
            block = maps[part]
            peak = block.amax((-1, -2, -3)[:dims], keepdim=True).to(dtype)
            _exponentials(block, peak, beta, work)
            top[part] = peak
            torch.sum(work[..., None], tuple(range(3, 3 + dims)), out=first[part])
            torch.sum(work, 2, out=rest[part])
            if keep:
                F.threshold_(work, *NEXT_TO_NOTHING)
                if not in_place:
                    kept[part].copy_(work)
        total = first.sum(-1)
        marginals = [first]
        if dims == 2:
            marginals.append(rest)
        elif dims == 3:
            marginals += [rest.sum(-1), rest.sum(-2)]
        coords = logits.new_empty(*maps.shape[:2], dims, dtype=dtype)
        for axis, marginal in zip(order, marginals, strict=True):  # map axes are z y x, coordinates x y z
            cells = torch.arange(marginal.shape[-1], dtype=dtype, device=logits.device)
            coords[..., dims - 1 - axis] = (marginal * cells).sum(-1) / total
        ctx.save_for_backward(logits, coords, top, total)
        ctx.dims, ctx.beta = dims, beta
        peak = total.reciprocal()
        ctx.mark_non_differentiable(peak)
        return coords, peak

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, _) -> tuple[Tensor, None, None, None]:
        logits, coords, top, total = ctx.saved_tensors
        dims, dtype = ctx.dims, coords.dtype
        order, maps = _memory_order(logits, dims)
        kept, ctx.kept = ctx.kept, None  # a second backward of a retained graph finds none, and works them out again
        out = torch.empty_like(logits) if kept is None else kept
        slots = _ordered(out, order)
        slope = grad.to(dtype) * (ctx.beta / total[..., None])  # of the unnormalised exponentials
        tables = []  # g (c - E[c]) / total along each axis of the memory order, (B, J, 1.., n, ..1)
        for place, axis in enumerate(order):
            k = dims - 1 - axis
            cells = torch.arange(maps.shape[2 + place], dtype=dtype, device=logits.device)
            table = slope[..., k, None] * (cells - coords[..., k, None])
            tables.append(table.reshape(*table.shape[:2], *(table.shape[2] if p == place else 1 for p in range(dims))))
        inner = tables[1] if dims > 1 else torch.zeros_like(tables[0][..., :1])
        inner = inner + tables[2] if dims > 2 else inner
        weight = None
        for part, work in _blocks(maps, dtype, _ordered(kept, order)):
            if kept is None:
                _exponentials(maps[part], top[part], ctx.beta, work)
                F.threshold_(work, *NEXT_TO_NOTHING)
            weight = work.new_empty(work.shape) if weight is None or weight.shape != work.shape else weight
            torch.add(tables[0][part], inner[part], out=weight)
            torch.mul(work, weight, out=slots[part])
        return out, None, None, None


def _exponentials(logits: Tensor, peak: Tensor, beta: float, out: Tensor) -> None:
    """exp(beta (logits - peak)) into `out`, at least e^LOWEST: processors are many times slower with numbers below 1e-38.

    As a power of 2, since on many processors PyTorch's exp takes two to three times as long as its exp2.
    """
    torch.sub(logits, peak, out=out).clamp_(min=LOWEST / beta).mul_(beta / math.log(2)).exp2_()


def _memory_order(logits: Tensor, dims: int) -> tuple[list[int], Tensor]:
    """The map axes from the outermost to the innermost in memory (a channels-last volume has depth innermost), and that
    view.
    """
    order = sorted(range(dims), key=lambda axis: -logits.stride(2 + axis))
    return order, _ordered(logits.detach(), order)


def _ordered(maps: Tensor | None, order: list[int]) -> Tensor | None:
    """The view of (B, J, map axes) in that order."""
    return None if maps is None else maps.permute(0, 1, *(2 + axis for axis in order))


def _blocks(maps: Tensor, dtype: torch.dtype, kept: Tensor | None = None):
    """Pieces of (B, J) whose maps fit the cache: an index, and its part of `kept`, or a work tensor that serves all pieces in turn."""
    limit = CPU_BLOCK if maps.device.type == "cpu" else GPU_BLOCK
    batch, joints = maps.shape[:2]
    fit = max(1, limit // max(1, math.prod(maps.shape[2:])))
    rows, columns = max(1, fit // max(1, joints)), min(joints, fit)
    work = maps.new_empty(min(rows, batch), columns, *maps.shape[2:], dtype=dtype) if kept is None else None
    for b in range(0, batch, rows):
        for j in range(0, joints, columns):
            part = (slice(b, b + rows), slice(j, j + columns))
            yield part, kept[part] if work is None else work[: min(rows, batch - b), : min(columns, joints - j)]


@no_autocast
def decode_heatmap(
    hm: Tensor, method: str = "quarter", sigma: float = 2.0, empty_at_origin: bool = True
) -> tuple[Tensor, Tensor]:
    """Joint position and score of each 2D heatmap.   hm (..., h, w) -> x_hm (..., 2) cells, score (...)

    method "argmax": the highest cell. "quarter": plus a quarter cell towards the higher neighbour, inside the border of
    two cells (Simple Baselines). "dark": plus the Newton step on the logarithm of the map blurred with `sigma` cells
    (Zhang et al., DARK, CVPR 2020). "soft": `soft_argmax` of a map of logits; its score is the largest probability, for
    the others the largest value. Argmax methods give 0, 0 where nothing is above zero, as Simple Baselines does; with
    empty_at_origin False the highest cell there, too. Raises GeometryError for another name.
    """
    if method not in ("argmax", "quarter", "dark", "soft"):
        raise GeometryError(f"decode_heatmap: method {method!r} is not one of argmax, quarter, dark, soft")
    if hm.ndim < 2:
        raise GeometryError(f"decode_heatmap: shape {tuple(hm.shape)}, expected (..., h, w)")
    if method == "soft":
        lead = hm.shape[:-2]
        cells, score = soft_argmax(hm.reshape(-1, 1, *hm.shape[-2:]), 2, score=True)
        return cells.reshape(*lead, 2), score.reshape(lead)
    hm = hm.detach().to(result_dtype(hm))
    h, w = hm.shape[-2:]
    score, index = hm.flatten(-2).max(-1)
    cells = torch.stack([index % w, index // w], -1).to(hm.dtype)
    if empty_at_origin:
        cells = torch.where(score[..., None] > 0, cells, 0.0)
    if method == "quarter":
        cells = cells + _quarter(hm, cells.long())
    elif method == "dark":
        cells = cells + torch.where(score[..., None] > 0, _newton(_blurred(hm, sigma), cells.long()), 0.0)
    return cells, score


def _at(hm: Tensor, cells: Tensor, dx: int, dy: int) -> Tensor:
    """Values beside integer cells, clamped to the map.   hm (..., h, w), cells (..., 2) -> (...)"""
    h, w = hm.shape[-2:]
    index = (cells[..., 1] + dy).clamp(0, h - 1) * w + (cells[..., 0] + dx).clamp(0, w - 1)
    return hm.flatten(-2).gather(-1, index[..., None])[..., 0]


def _inside(hm: Tensor, cells: Tensor) -> Tensor:
    """Whether a cell has two neighbours on every side but the last, 1 < x < w - 1 as published.   -> (..., 1) bool"""
    limit = torch.tensor([hm.shape[-1] - 1, hm.shape[-2] - 1], device=hm.device)
    return ((cells > 1) & (cells < limit)).all(-1, keepdim=True)


def _quarter(hm: Tensor, cells: Tensor) -> Tensor:
    along_x = _at(hm, cells, 1, 0) - _at(hm, cells, -1, 0)
    along_y = _at(hm, cells, 0, 1) - _at(hm, cells, 0, -1)
    return torch.where(_inside(hm, cells), 0.25 * torch.stack([along_x, along_y], -1).sign(), 0.0)


def _blurred(hm: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur with zero border; a network's map has several ripples near its peak."""
    radius = max(1, math.ceil(2.5 * sigma))
    d = torch.arange(-radius, radius + 1, dtype=hm.dtype, device=hm.device)
    kernel = torch.exp(-0.5 * (d / sigma) ** 2)
    kernel = kernel / kernel.sum()
    maps = hm.reshape(-1, 1, *hm.shape[-2:])
    maps = F.conv2d(maps, kernel.reshape(1, 1, 1, -1), padding=(0, radius))
    return F.conv2d(maps, kernel.reshape(1, 1, -1, 1), padding=(radius, 0)).reshape(hm.shape)


def _newton(hm: Tensor, cells: Tensor) -> Tensor:
    """Offset of the maximum of log hm by its second-order Taylor expansion, at most one cell.   -> (..., 2)"""
    log = hm.clamp(min=1e-10).log()
    value = {(dx, dy): _at(log, cells, dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}
    gx, gy = (value[1, 0] - value[-1, 0]) / 2, (value[0, 1] - value[0, -1]) / 2
    xx = value[1, 0] - 2 * value[0, 0] + value[-1, 0]
    yy = value[0, 1] - 2 * value[0, 0] + value[0, -1]
    xy = (value[1, 1] - value[1, -1] - value[-1, 1] + value[-1, -1]) / 4
    det = xx * yy - xy * xy
    peak = (det > 1e-12) & (xx < 0)  # curved downwards in all directions
    det = torch.where(peak, det, 1.0)
    offset = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], -1) / det[..., None]
    return torch.where(_inside(hm, cells) & peak[..., None], offset.clamp(-1, 1), 0.0)


def joint_cells(x_hm: Tensor, valid: Tensor, size, cut_off: bool = False, missing_at_origin: bool = False) -> tuple[Tensor, Tensor]:
    """The cell of a map that each labelled joint lies in, and whether the map has it.

    x_hm (..., J, 2) cells, valid (..., J), size = (w, h) -> cells (..., J, 2) int64, 0 where not valid; inside (..., J) bool

    The nearest cell by default. Two ways of Zhou et al.'s release (ICCV 2017), for comparison with it: cut_off drops the decimals
    instead, half a cell short on average; missing_at_origin says that joints without a label are inside, in cell 0, 0.
    """
    valid = valid.bool()
    x = torch.where(valid[..., None], x_hm.detach().to(result_dtype(x_hm)), 0.0)
    cells = (x.trunc() if cut_off else (x + 0.5).floor()).long()
    inside = ((cells >= 0) & (cells < torch.tensor(size, device=cells.device))).all(-1)
    return cells, inside if missing_at_origin else inside & valid


def read_depth(depth: Tensor, x_cells: Tensor) -> Tensor:
    """One-layer depth maps at the places of the joints (Zhou et al., ICCV 2017).   depth (..., J, h, w), x_cells (..., J, 2) -> (..., J)

    x_cells: labelled cells in training, those of the heatmaps' maxima in testing; decimals are rounded to the nearest cell, and what
    lies beside the map is read at its border. Differentiable in depth. Raises GeometryError.
    """
    if depth.ndim < 3 or x_cells.shape != (*depth.shape[:-2], 2):
        found = f"depth {tuple(depth.shape)} and x_cells {tuple(x_cells.shape)}"
        raise GeometryError(f"read_depth: {found}, expected (..., J, h, w) and (..., J, 2)")
    if x_cells.is_floating_point():
        x_cells = (x_cells.detach() + 0.5).floor().nan_to_num(0.0).long()
    return _at(depth, x_cells, 0, 0)


def patch_from_cells(cells: Tensor, patch, shape, rule: str = "scale") -> Tensor:
    """Heatmap cells to patch pixels.   cells (..., 2 or 3) x y[ z] -> x_patch (..., 2 or 3) px, depth px

    patch = (W, H) px, shape = (w, h[, D]) cells. "scale": x_patch = x * W / w; "half_pixel": outer edges together.
    Depth is in pixels of the patch, the middle of the D bins is the root: z_px = (z / D - 0.5) * W (W px of depth is
    the whole depth range).
    """
    ratio, cell, pixel = _resize(cells, patch, shape, rule)
    return (cells + cell) * ratio - pixel


def cells_from_patch(x_patch: Tensor, patch, shape, rule: str = "scale") -> Tensor:
    """Patch pixels to heatmap cells, the inverse of `patch_from_cells`.

    x_patch (..., 2 or 3) px -> cells (..., 2 or 3)
    """
    ratio, cell, pixel = _resize(x_patch, patch, shape, rule)
    return (x_patch + pixel) / ratio - cell


def _resize(x: Tensor, patch, shape, rule: str) -> tuple[Tensor, float, Tensor]:
    """Per axis: pixels per cell, what is added to a cell, and what is subtracted from a pixel."""
    if rule not in ("scale", "half_pixel"):
        raise GeometryError(f"rule {rule!r} is not one of scale, half_pixel")
    if not x.shape[-1] == len(shape) in (2, 3):
        found = f"points {tuple(x.shape)} with cells {tuple(shape)}"
        raise GeometryError(f"{found}, expected (..., 2) with (w, h) or (..., 3) with (w, h, D)")
    cell = 0.0 if rule == "scale" else 0.5
    size = [patch[0], patch[1], patch[0]][: len(shape)]
    ratio = [pixels / n for pixels, n in zip(size, shape, strict=True)]
    return x.new_tensor(ratio), cell, x.new_tensor([cell, cell, patch[0] / 2][: len(shape)])
