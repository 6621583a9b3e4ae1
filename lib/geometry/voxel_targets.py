"""What root networks learn from: the volume that people's roots make, and people who never were.

A space is a box in the world: size (3,) and center (3,) mm, shape (3,) nodes per axis; its first and last node lie on the faces, as
in lib/geometry/voxel.py. Sources: VoxelPose (ECCV 2020), SelfPose3d (CVPR 2024).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import transform_points
from lib.geometry.heatmap import summed_heatmaps
from lib.geometry.precision import no_autocast, result_dtype, solve_dtype

# How far inside the space drawn people stay: added to its lower and upper limits along x, y and z, mm (the published choice).
MARGINS = ((2500.0, -2000.0), (1500.0, -1500.0), (250.0, -300.0))
ROOT_SPREAD = 50.0  # mm, standard deviation of the height of roots around that of their scene
PIXEL_NOISE = 0.02  # standard deviation of what is added to each cell of a drawn heatmap
NEAR = 1e-3  # mm; more than float32 rounds the place of a person within 8 m of the origin


def root_points(X_world: Tensor, X_valid: Tensor, joints: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """The point a person is found by: a joint, or the middle of several, such as of the hips.

    X_world (..., J, 3) mm, X_valid (..., J) -> roots (..., 3) mm, valid (...) bool: where all of its joints are
    """
    chosen = [joints] if isinstance(joints, int) else list(joints)
    return X_world[..., chosen, :].mean(-2), X_valid[..., chosen].bool().all(-1)


@no_autocast
def root_volume(roots: Tensor, valid: Tensor, size, center, shape, sigma: float = 200.0) -> Tensor:
    """Target of a root network: at each node the largest of the people's Gaussians.

    roots (B, M, 3) mm, valid (B, M), size, center (3,) or (B, 3) mm, shape (3,) nodes -> (B, nx, ny, nz), 0..1

    A person's Gaussian is zero beyond 3 sigma along an axis; nodes at just that distance, on both sides, have it. Not differentiable.
    """
    if roots.ndim != 3 or roots.shape[-1] != 3 or valid.shape != roots.shape[:2]:
        raise GeometryError(f"root_volume: roots {tuple(roots.shape)} and valid {tuple(valid.shape)}, expected (B, M, 3) and (B, M)")
    dtype, fine = result_dtype(roots), solve_dtype(roots.device)
    size, center = (torch.as_tensor(v, dtype=fine, device=roots.device).expand(len(roots), 3) for v in (size, center))
    x = torch.where(valid.bool()[..., None], roots.detach().to(fine), 0.0)
    profiles = []
    for axis, nodes in enumerate(shape):
        steps = torch.linspace(-0.5, 0.5, int(nodes), dtype=fine, device=roots.device)
        d = (steps * size[:, axis, None] + center[:, axis, None])[:, None] - x[..., axis, None]  # (B, M, n)
        profiles.append(torch.where(d.abs() <= 3 * sigma + NEAR, torch.exp(d.square() * (-0.5 / sigma**2)), 0.0).to(dtype))
    along_x, along_y, along_z = profiles
    along_x = along_x * valid.to(dtype)[..., None]
    plane = along_x[..., :, None] * along_y[..., None, :]
    volume = plane.new_zeros(len(x), *plane.shape[-2:], along_z.shape[-1])
    for person in range(x.shape[1]):  # each passes over the volume once; all at once would hold M volumes
        torch.maximum(volume, plane[:, person, :, :, None] * along_z[:, person, None, None], out=volume)
    return volume


def draw_roots(
    batch: int,
    size,
    center,
    max_people: int = 10,
    margins: Sequence[tuple[float, float]] = MARGINS,
    spread: float = ROOT_SPREAD,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Roots of people who never were, uniform over the floor, each scene at one height with `spread` around it.

    size, center (3,) mm of the space; 1 to max_people - 1 people per scene; `margins`: see MARGINS.
    -> roots (B, M, 3) float32 mm on the generator's device, valid (B, M) bool; M is the largest number drawn

    Raises:
        GeometryError: margins that leave nothing of the space.
    """
    size, center, margins = (torch.as_tensor(v, dtype=torch.float32).cpu() for v in (size, center, margins))
    low, high = center - size / 2 + margins[:, 0], center + size / 2 + margins[:, 1]
    if not bool((high > low).all()):
        raise GeometryError(
            f"draw_roots: of a space of {size.tolist()} mm the margins {margins.tolist()} leave {low.tolist()} to {high.tolist()}; "
            "give margins that fit this space (about a fifth of each side)"
        )
    device = generator.device if generator is not None else torch.device("cpu")
    low, span = low.to(device), (high - low).to(device)

    def uniform(axis: int, people: int) -> Tensor:
        return low[axis] + span[axis] * torch.rand(batch, people, 1, generator=generator, device=device)

    count = torch.randint(1, max(max_people, 2), (batch,), generator=generator, device=device)
    people = int(count.max())
    x, y, z = uniform(0, people), uniform(1, people), uniform(2, 1)
    z = z + spread * torch.randn(batch, people, 1, generator=generator, device=device)
    return torch.cat([x, y, z], -1), torch.arange(people, device=device) < count[:, None]


def fitting_margins(size) -> tuple[tuple[float, float], ...]:
    """MARGINS for a space of another size, mm: the same shares of its sides as of the published 8 x 8 x 2 m."""
    shares = [float(side) / full for side, full in zip(size, (8000.0, 8000.0, 2000.0), strict=True)]
    return tuple((low * share, high * share) for (low, high), share in zip(MARGINS, shares, strict=True))


@no_autocast
def people_in_views(X_world: Tensor, valid: Tensor, cams: Cameras, new_from_img: Tensor, rule: str = "exact") -> tuple[Tensor, Tensor]:
    """Joints of several people in the patches or heatmaps of all views, differentiable.

    X_world (B, M, J, 3) mm, valid (B, M, J) or (B, M, 1), cams (B, V), new_from_img (B, V, 2, 3)
    -> x_new (B, V, M, J, 2), valid (B, V, M, J) bool

    rule "exact": what lies behind a camera or beyond the range of its lens is not valid there; "reference": everything projects.
    """
    if rule not in ("exact", "reference"):
        raise GeometryError(f"people_in_views: rule {rule!r} is not one of exact, reference")
    batch, people, joints, _ = X_world.shape
    views = cams.shape[1]
    X_cam = cams.to_cam(X_world.reshape(batch, 1, people * joints, 3).to(cams.K.dtype))
    x_img = cams.project_cam(X_cam)
    x_new = transform_points(new_from_img.to(x_img.dtype), x_img).reshape(batch, views, people, joints, 2)
    seen = valid.bool()[:, None].expand(batch, views, people, joints)
    if rule == "exact":
        seen = seen & cams.sees(X_cam, x_img, math.inf).reshape(batch, views, people, joints)
    return x_new.to(result_dtype(X_world)), seen


def joints_in_patch(x_img: Tensor, conf: Tensor, patch_from_img: Tensor, patch, img: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Joints of full images moved into the network's inputs; those that lie outside either are unknown there.

    A joint that is unknown already keeps its coordinates, as published: a slot of nobody stays at 0, by which `matched_l1` knows it.

    x_img (B, V, M, J, 2) px, conf (B, V, M, J), patch_from_img (B, V, 2, 3), patch = (W, H) px, img (B, V, 2) sizes in px (0 =
    unknown) or None -> x_patch (B, V, M, J, 2) px, conf (B, V, M, J), 0 where outside
    """
    x_patch = transform_points(patch_from_img, x_img.flatten(2, 3)).reshape(x_img.shape)
    inside = ((x_patch >= 0) & (x_patch < x_patch.new_tensor(patch))).all(-1)
    if img is not None:
        last = img[:, :, None, None].to(x_img.dtype) - 1
        inside = inside & ((x_img >= 0) & ((x_img <= last) | (last < 0))).all(-1)
    return x_patch.where(conf[..., None] > 0, x_img), torch.where(inside, conf, 0)


@no_autocast
def root_heatmaps(
    roots: Tensor,
    valid: Tensor,
    cams: Cameras,
    hm_from_img: Tensor,
    size,
    sigma: float = 3.0,
    noise: float = PIXEL_NOISE,
    generator: torch.Generator | None = None,
    rule: str = "exact",
) -> Tensor:
    """What views would show of drawn roots: their Gaussians added up, noise on every cell, cut to 0..1.

    roots (B, M, 3) mm, valid (B, M), cams (B, V), hm_from_img (B, V, 2, 3), size = (w, h) cells -> (B, V, 1, h, w)
    """
    x_hm, seen = people_in_views(roots[..., None, :], valid[..., None], cams, hm_from_img, rule)
    maps = summed_heatmaps(x_hm, seen, size, sigma)
    if noise:
        device = generator.device if generator is not None else maps.device
        maps = maps + noise * torch.randn(maps.shape, generator=generator, device=device, dtype=maps.dtype).to(maps.device)
    return maps.clamp(0, 1)
