"""Affine maps of the image plane: crop, resize, rotation and mirror as one 2x3 matrix (README.md beside this file)."""

import math

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.precision import matmul, matvec, promote

RULES = ("scale", "half_pixel")


def crop_affine(center, box, patch, scale=1.0, rot_deg=0.0, flip=False, rule: str = "scale") -> Tensor:
    """The affine that cuts a rotated box out of an image, resizes it to the patch and mirrors it.

    -> patch_from_img (..., 2, 3)

    center (..., 2) px, box (..., 2) width and height px, patch (2,) or (..., 2) width and height px, scale (...) factor
    on the box, rot_deg (...) rotation of the box in the image (y down, so positive is clockwise), flip (...) bool.
    Leading shapes broadcast; numbers, lists and arrays are taken as well as tensors. The two axes scale on their own,
    so a box of another shape than the patch is stretched.

    rule="scale" (the published weights'): box centre -> patch / 2, and pixel sizes multiply. rule="half_pixel": box
    edges count in pixel edges, box centre -> (patch - 1) / 2, for a centre given in pixel centres; use it for new
    models. flip=True gives what cropping the mirrored image with the mirrored centre would give (x -> W-1-x, rotation
    as drawn): no image width is needed, because the mirror cancels but for the axis. With "scale" that is x -> patch_w
    - x in the patch, as the centre sits at patch_w / 2; with "half_pixel" it is x -> patch_w - 1 - x. Joint labels are
    swapped separately, by the skeleton. Source: Integral Human Pose / EpipolarPose crops. Raises GeometryError for an
    unknown rule, wrong shapes, and sizes that are not positive.
    """
    if rule not in RULES:
        raise GeometryError(f"crop_affine: rule {rule!r} is not one of {', '.join(RULES)}")
    given = [v if isinstance(v, Tensor) else torch.as_tensor(v) for v in (center, box, patch, scale, rot_deg, flip)]
    device = given[0].device
    (center, box, patch, scale, rot), dtype = promote(*(v.to(device) for v in given[:5]))
    for name, value in (("center", center), ("box", box), ("patch", patch)):
        if value.shape[-1:] != (2,):
            raise GeometryError(f"crop_affine: {name} has shape {tuple(value.shape)}, expected (..., 2)")
    size = box * scale[..., None]
    if device.type == "cpu" and not bool((size > 0).all() and (patch > 0).all()):  # a GPU would have to be waited for
        raise GeometryError("crop_affine: box, patch and scale must be positive; drop boxes without area beforehand")
    angle = rot * (math.pi / 180)
    flip = given[5].to(device, torch.bool)
    # A = diag(ratio) Rot^T diag(mirror, 1): x - cx changes its sign in the mirrored image, the rest follows.
    mirror = torch.where(flip, -1.0, 1.0).to(center)
    cos, sin, ratio = torch.cos(angle), torch.sin(angle), patch / size
    shape = torch.broadcast_shapes(center.shape[:-1], ratio.shape[:-1], cos.shape, mirror.shape)
    rows = [ratio[..., 0] * mirror * cos, ratio[..., 0] * sin, ratio[..., 1] * mirror * -sin, ratio[..., 1] * cos]
    A = torch.stack([row.expand(shape) for row in rows], -1).reshape(*shape, 2, 2)
    middle = patch / 2 if rule == "scale" else (patch - 1) / 2
    b = middle - matvec(A, center[..., None, :])[..., 0, :]
    return torch.cat([A, b.expand(*shape, 2)[..., None]], -1).to(dtype)


def letterbox_affine(size, patch, scale=1.0, rot_deg=0.0, flip=False) -> Tensor:
    """The affine that shows the whole image centred in the patch, as large as fits; the rest of the patch lies outside of the image.

    -> patch_from_img (..., 2, 3) float64. size (..., 2) and patch (2,): width and height px; scale, rot_deg, flip: see `crop_affine`.
    """
    size, patch = (torch.as_tensor(v).to(torch.float64) for v in (size, patch))
    return crop_affine(size / 2, (size / patch).amax(-1, keepdim=True) * patch, patch, scale, rot_deg, flip)


def longer_side(x: Tensor, known: Tensor) -> Tensor:
    """Longer side of the box around the known joints, 0 without any: the size of a person.    x (..., J, 2), known (..., J) -> (...)"""
    low, high = (x.masked_fill(~known[..., None], far) for far in (torch.inf, -torch.inf))
    return (high.amax(-2) - low.amin(-2)).amax(-1).clamp(min=0.0)


def transform_points(new_from_old: Tensor, x: Tensor) -> Tensor:
    """Apply affines to points.   new_from_old (..., 2, 3), x (..., N, 2) px -> (..., N, 2) px, leading shapes broadcast

    Raises GeometryError for wrong shapes.
    """
    if new_from_old.shape[-2:] != (2, 3) or x.ndim < 2 or x.shape[-1] != 2:
        found = f"{tuple(new_from_old.shape)} and {tuple(x.shape)}"
        raise GeometryError(f"transform_points: shapes {found}, expected (..., 2, 3) and (..., N, 2)")
    return matvec(new_from_old[..., :2], x) + new_from_old[..., None, :, 2]


def compose(c_from_b: Tensor, b_from_a: Tensor) -> Tensor:
    """The affine that applies the right one first, like a matrix product.

    (..., 2, 3), (..., 2, 3) -> c_from_a (..., 2, 3)
    """
    linear = matmul(c_from_b[..., :2], b_from_a)
    shift = torch.cat([torch.zeros_like(c_from_b[..., :2]), c_from_b[..., 2:]], -1)
    return linear + shift


def invert(b_from_a: Tensor) -> Tensor:
    """The inverse affine.   b_from_a (..., 2, 3) -> a_from_b (..., 2, 3); a singular one gives infinities"""
    (A,), dtype = promote(b_from_a)
    (a, b, u), (c, d, v) = A[..., 0, :].unbind(-1), A[..., 1, :].unbind(-1)
    rows = torch.stack([d, -b, b * v - d * u, -c, a, c * u - a * v], -1) / (a * d - b * c)[..., None]
    return rows.reshape(*A.shape).to(dtype)


def scale_affine(new_size, old_size, rule: str = "scale", dtype: torch.dtype = torch.float32, device=None) -> Tensor:
    """Resize of a whole image, for example hm_from_patch.

    new_size, old_size (..., 2) width and height -> new_from_old (..., 2, 3)

    rule="scale": x_new = x_old * ratio; rule="half_pixel": x_new = (x_old + 0.5) * ratio - 0.5. Raises GeometryError
    for another rule.
    """
    if rule not in RULES:
        raise GeometryError(f"scale_affine: rule {rule!r} is not one of {', '.join(RULES)}")
    new_size, old_size = (torch.as_tensor(v, dtype=dtype, device=device) for v in (new_size, old_size))
    ratio = new_size / old_size
    shift = torch.zeros_like(ratio) if rule == "scale" else ratio / 2 - 0.5
    return torch.cat([torch.diag_embed(ratio), shift[..., None]], -1)
