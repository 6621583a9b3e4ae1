"""Cameras: pinhole with lens distortion, any number at once. Frames, units and letters: README.md beside this file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.precision import matmul, matvec, promote

# Human3.6M's official code writes the tangential part without OpenCV's factor 2; they differ by < 1 px in its images.
TANGENTIAL = {"opencv": 2.0, "h36m": 1.0}
NEWTON_STEPS = 10  # float64 accuracy needs 4 to 6 inside an image; the rest is for wide lenses
MIN_DEPTH = 1e-6  # mm; below it a point lies in the plane of the camera centre and has no image
MAX_RADIUS = 4.0  # in the plane z = 1, 76 degrees; further out the radial factor is held, as r^6 would overflow float32


@dataclass(frozen=True, eq=False)
class Cameras:
    """Cameras of any leading shape (...): one, the V of a rig, or (B, V) of a batch.

    X_cam = R X_world + t in mm, axes x right, y down, z forward. All fields share one floating type and device.

    Broadcasting: points are rows, (..., N, 3) or (..., N, 2), and the dimensions in front of N broadcast against the
    cameras' shape. Cameras (V,) see X_world (J, 3) as (V, J, 2); cameras (B, V) see X_world (B, 1, J, 3), or (J, 3), as
    (B, V, J, 2); cameras (B,) see X_world (B, J, 3) as (B, J, 2).
    """

    K: Tensor  # (..., 3, 3) px, last row 0 0 1; a warped camera may have all of its upper 2x2 part
    R: Tensor  # (..., 3, 3) rotation, world to camera
    t: Tensor  # (..., 3) mm
    dist: Tensor  # (..., 5) k1 k2 p1 p2 k3, OpenCV's order; zeros = no distortion
    size: Tensor  # (..., 2) width, height in px; 0 = unknown

    @staticmethod
    def make(K, R, t=None, dist=None, size=None, center=None, dtype: torch.dtype | None = None) -> "Cameras":
        """Cameras from tensors, arrays or lists, checked, with leading shapes broadcast to one another.

        K (..., 3, 3) px, R (..., 3, 3), one of t (..., 3) mm and center (..., 3) mm (t = -R center), dist (..., 4 or
        5), size (..., 2) px. Raises GeometryError when a shape does not fit, K's last row is not 0 0 1, or R is not a
        rotation.
        """
        K, R = _tensor(K, dtype), _tensor(R, dtype)
        if (t is None) == (center is None):
            raise GeometryError("Cameras.make: give one of t (translation) and center (camera centre)")
        dtype = dtype or torch.promote_types(K.dtype, R.dtype)
        position = _tensor(center if t is None else t, dtype)
        dist = K.new_zeros(5) if dist is None else _tensor(dist, dtype)
        size = K.new_zeros(2) if size is None else _tensor(size, dtype)
        if dist.shape[-1:] == (4,):
            dist = torch.cat([dist, torch.zeros_like(dist[..., :1])], -1)
        fields = {"K": (K, (3, 3)), "R": (R, (3, 3)), "t": (position, (3,)), "dist": (dist, (5,)), "size": (size, (2,))}
        for name, (value, tail) in fields.items():
            if tuple(value.shape[-len(tail) :]) != tail:
                expected = ", ".join(map(str, tail))
                raise GeometryError(f"Cameras.{name} has shape {tuple(value.shape)}, expected (..., {expected})")
        try:
            shape = torch.broadcast_shapes(*(value.shape[: -len(tail)] for value, tail in fields.values()))
        except RuntimeError as error:
            found = ", ".join(f"{name} {tuple(value.shape)}" for name, (value, _) in fields.items())
            raise GeometryError(f"Cameras: leading shapes do not fit together: {found}") from error
        K, R, position, dist, size = (value.to(dtype).expand(*shape, *tail) for value, tail in fields.values())
        if not torch.allclose(K[..., 2, :], K.new_tensor([0.0, 0.0, 1.0]).expand_as(K[..., 2, :])):
            raise GeometryError("Cameras.K: the last row is not 0 0 1; divide the matrix by its last element")
        identity = torch.eye(3, dtype=dtype, device=R.device).expand_as(R)
        right_handed = bool((torch.linalg.det(R) > 0).all())
        if not right_handed or not torch.allclose(matmul(R, R.mT), identity, atol=1e-3):
            raise GeometryError("Cameras.R is not a rotation (R R^T = 1, det R = 1), or is not finite")
        t = position if center is None else -matvec(R, position[..., None, :])[..., 0, :]
        return Cameras(K.contiguous(), R.contiguous(), t.contiguous(), dist.contiguous(), size.contiguous())

    @staticmethod
    def stack(cameras: Sequence["Cameras"], dim: int = 0) -> "Cameras":
        """Cameras of equal shape along a new leading dimension (`dim` counts leading dimensions, not negative)."""
        return Cameras(*(torch.stack(values, dim) for values in zip(*(c._fields() for c in cameras), strict=True)))

    @staticmethod
    def cat(cameras: Sequence["Cameras"], dim: int = 0) -> "Cameras":
        """Cameras joined along an existing leading dimension (not negative)."""
        return Cameras(*(torch.cat(values, dim) for values in zip(*(c._fields() for c in cameras), strict=True)))

    def _fields(self) -> tuple[Tensor, ...]:
        return self.K, self.R, self.t, self.dist, self.size

    def to(self, *args, **kwargs) -> "Cameras":
        """Cameras of another device or floating type; arguments as for Tensor.to."""
        return Cameras(*(f.to(*args, **kwargs) for f in self._fields()))

    def pin_memory(self) -> "Cameras":
        """Copies in page-locked memory, as a DataLoader asks for."""
        return Cameras(*(f.pin_memory() for f in self._fields()))

    def __getitem__(self, index) -> "Cameras":
        """Cameras chosen along the leading dimensions: numbers, slices, None, `...`, index and mask tensors."""
        index = index if isinstance(index, tuple) else (index,)
        if any(i is Ellipsis for i in index):  # the matrix dimensions come after the leading ones
            full = slice(None)
            return Cameras(*(f[(*index, *[full] * (f.ndim - len(self.shape)))] for f in self._fields()))
        if sum(i is not None for i in index) > len(self.shape):
            raise GeometryError(f"Cameras of shape {tuple(self.shape)} cannot be indexed with {len(index)} indices")
        return Cameras(*(f[index] for f in self._fields()))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a single camera has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Cameras(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r})"

    @property
    def shape(self) -> torch.Size:
        """The leading shape."""
        return self.K.shape[:-2]

    @property
    def dtype(self) -> torch.dtype:
        return self.K.dtype

    @property
    def device(self) -> torch.device:
        return self.K.device

    def reshape(self, *shape: int) -> "Cameras":
        """The same cameras under another leading shape; one entry may be -1."""
        tails = (f.shape[len(self.shape) :] for f in self._fields())
        return Cameras(*(f.reshape(*shape, *tail) for f, tail in zip(self._fields(), tails, strict=True)))

    def expand(self, *shape: int) -> "Cameras":
        """The same cameras repeated, without copying, to a larger leading shape."""
        tails = (f.shape[len(self.shape) :] for f in self._fields())
        return Cameras(*(f.expand(*shape, *tail) for f, tail in zip(self._fields(), tails, strict=True)))

    @property
    def P(self) -> Tensor:
        """Projection matrix K [R | t] without distortion; maps homogeneous mm to homogeneous px.   -> (..., 3, 4)"""
        return matmul(self.K, torch.cat([self.R, self.t[..., None]], -1))

    @property
    def center(self) -> Tensor:
        """Camera centre in world mm, C = -R^T t.   -> (..., 3)"""
        return -matvec(self.R.mT, self.t[..., None, :])[..., 0, :]

    def to_cam(self, X_world: Tensor) -> Tensor:
        """World to camera frame, mm.   X_world (..., N, 3) -> X_cam (..., N, 3)"""
        return matvec(self.R, _points(X_world, 3, "X_world")) + self.t[..., None, :]

    def to_world(self, X_cam: Tensor) -> Tensor:
        """Camera to world frame, mm.   X_cam (..., N, 3) -> X_world (..., N, 3)"""
        return matvec(self.R.mT, _points(X_cam, 3, "X_cam") - self.t[..., None, :])

    def project(self, X_world: Tensor, distort: bool = True, tangential: str = "opencv") -> tuple[Tensor, Tensor]:
        """Image points and depths.   X_world (..., N, 3) mm -> x_img (..., N, 2) px, depth (..., N) mm

        Points behind the camera keep their negative depth (their pixel is that of the line through the centre); a point
        in the plane of the centre gets a huge but finite pixel and a finite gradient. `tangential`: see `distort_norm`.
        """
        X_cam = self.to_cam(X_world)
        return self.project_cam(X_cam, distort, tangential), X_cam[..., 2]

    def project_cam(self, X_cam: Tensor, distort: bool = True, tangential: str = "opencv") -> Tensor:
        """Image points of points given in the camera frame.   X_cam (..., N, 3) mm -> x_img (..., N, 2) px"""
        z = X_cam[..., 2:3]
        tiny = torch.full_like(z, MIN_DEPTH)
        x_norm = X_cam[..., :2] / torch.where(z.abs() < MIN_DEPTH, torch.where(z < 0, -tiny, tiny), z)
        return self.from_norm(x_norm, distort, tangential)

    def from_norm(self, x_norm: Tensor, distort: bool = True, tangential: str = "opencv") -> Tensor:
        """Undistorted points of the plane z = 1 to the image.   x_norm (..., N, 2) -> x_img (..., N, 2) px"""
        x_norm = distort_norm(x_norm, self.dist, tangential) if distort else x_norm
        return matvec(self.K[..., :2, :2], x_norm) + self.K[..., None, :2, 2]

    def to_norm(self, x_img: Tensor, undistort: bool = True, tangential: str = "opencv") -> Tensor:
        """Image points to undistorted points of the plane z = 1.   x_img (..., N, 2) px -> x_norm (..., N, 2)"""
        (x, K, dist), dtype = promote(_points(x_img, 2, "x_img"), self.K, self.dist)
        x = matvec(torch.linalg.inv(K[..., :2, :2]), x - K[..., None, :2, 2])
        if undistort:
            x = undistort_norm(x, dist, tangential)
        return x.to(dtype)

    def undistort(self, x_img: Tensor, tangential: str = "opencv") -> Tensor:
        """Where a pinhole camera with the same K would see the points.   x_img (..., N, 2) px -> (..., N, 2) px

        Newton's method in float64, to convergence (below 1e-6 px where the lens is invertible), differentiable.
        """
        return self.from_norm(self.to_norm(x_img, True, tangential), distort=False)

    def unproject(self, x_img: Tensor, depth: Tensor, undistort: bool = True, tangential: str = "opencv") -> Tensor:
        """World points of image points with known depth.

        x_img (..., N, 2) px, depth (..., N) mm -> X_world (..., N, 3) mm
        """
        return self.to_world(self.unproject_cam(x_img, depth, undistort, tangential))

    def unproject_cam(self, x_img: Tensor, depth: Tensor, undistort: bool = True, tangential: str = "opencv") -> Tensor:
        """Camera-frame points of image points with known depth.

        x_img (..., N, 2) px, depth (..., N) mm -> X_cam (..., N, 3) mm
        """
        x_norm = self.to_norm(x_img, undistort, tangential)
        shape = torch.broadcast_shapes(x_norm.shape[:-1], depth.shape)
        return torch.cat([x_norm, torch.ones_like(x_norm[..., :1])], -1).expand(*shape, 3) * depth[..., None]

    def in_view(self, X_world: Tensor, margin_px: float = 0.0) -> Tensor:
        """Whether points are in front of the camera and inside its image (of known size).

        X_world (..., N, 3) mm -> (..., N) bool

        A wide point that the distortion polynomial folds back into the image is not in view (see `max_radius`).
        """
        X_cam = self.to_cam(X_world)
        return self.sees(X_cam, self.project_cam(X_cam), margin_px)

    def sees(self, X_cam: Tensor, x_img: Tensor, margin_px: float = 0.0) -> Tensor:
        """`in_view` of points already projected.   X_cam (..., N, 3) mm, x_img (..., N, 2) px -> (..., N) bool"""
        low, high = -0.5 - margin_px, self.size[..., None, :] - 0.5 + margin_px
        inside = ((x_img >= low) & (x_img <= high)).all(-1) | (self.size[..., None, :] <= 0).any(-1)
        z = X_cam[..., 2]
        return inside & (z > MIN_DEPTH) & (X_cam[..., :2].norm(dim=-1) <= self.max_radius[..., None] * z)

    @property
    def max_radius(self) -> Tensor:
        """Radius in the plane z = 1 up to which the distorted radius grows (MAX_RADIUS at most); then the lens folds.

        -> (...)
        """
        r2 = torch.linspace(0.0, MAX_RADIUS**2, 1025, dtype=self.dtype, device=self.device)
        k1, k2, _, _, k3 = self.dist[..., None].unbind(-2)
        falls = 1 + r2 * (3 * k1 + r2 * (5 * k2 + r2 * 7 * k3)) <= 0  # d/dr of r (1 + k1 r^2 + k2 r^4 + k3 r^6)
        first = torch.where(falls, r2, r2[-1]).amin(-1)
        return first.sqrt()

    def warped(self, new_from_img: Tensor, size=None) -> "Cameras":
        """The cameras of a crop: an affine of the image is one of K, K' = A K; distortion acts before it and stays.

        new_from_img (..., 2, 3), rotation and mirror allowed; size: width, height of the new image, None = the old one.
        """
        A = new_from_img.to(self.K)
        affine = matmul(A, self.K)
        K = torch.cat([affine, self.K[..., 2:, :].expand(*affine.shape[:-2], 1, 3)], -2)
        shape = K.shape[:-2]
        size = self.size if size is None else torch.as_tensor(size, dtype=self.dtype, device=self.device)
        R, t, dist = self.R.expand(*shape, 3, 3), self.t.expand(*shape, 3), self.dist.expand(*shape, 5)
        return dataclasses.replace(self, K=K, R=R, t=t, dist=dist, size=size.expand(*shape, 2))


def distort_norm(x_norm: Tensor, dist: Tensor, tangential: str = "opencv") -> Tensor:
    """Lens distortion of points of the plane z = 1.   x_norm (..., N, 2), dist (..., 5) k1 k2 p1 p2 k3 -> (..., N, 2)

    OpenCV's model (Brown-Conrady). tangential="h36m": the official Human3.6M formula, which lacks OpenCV's factor 2 on
    the x (p1 y + p2 x) and y (p1 y + p2 x) terms; its published 2D joints follow that formula. Raises GeometryError for
    another name.
    """
    x, y = x_norm[..., 0], x_norm[..., 1]
    k1, k2, p1, p2, k3 = dist[..., None].unbind(-2)
    r2 = x * x + y * y
    c2 = r2.clamp(max=MAX_RADIUS**2)
    scale = 1 + c2 * (k1 + c2 * (k2 + c2 * k3)) + _factor(tangential) * (p1 * y + p2 * x)
    return torch.stack([x * scale + p2 * r2, y * scale + p1 * r2], -1)


def undistort_norm(x_dist: Tensor, dist: Tensor, tangential: str = "opencv") -> Tensor:
    """Inverse of `distort_norm` by Newton's method.   x_dist (..., N, 2), dist (..., 5) -> x_norm (..., N, 2)

    Converges for points within `Cameras.max_radius`; beyond it the lens has no inverse and the result is only finite.
    Gradients are those of the implicit function (first order), for points and coefficients alike.
    """
    with torch.no_grad():
        x = x_dist.detach()
        for _ in range(NEWTON_STEPS):
            x = x - _solve(*_jacobian(x, dist, tangential), distort_norm(x, dist, tangential) - x_dist)
        jacobian = _jacobian(x, dist, tangential)
    # One step more, with gradient: dx = J^-1 d(x_dist - f).
    return x - _solve(*jacobian, distort_norm(x, dist, tangential) - x_dist)


def _jacobian(x_norm: Tensor, dist: Tensor, tangential: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivative of `distort_norm` by its point: du/dx, du/dy, dv/dx, dv/dy, each (..., N)."""
    x, y = x_norm[..., 0], x_norm[..., 1]
    k1, k2, p1, p2, k3 = dist[..., None].unbind(-2)
    r2, factor = x * x + y * y, _factor(tangential)
    c2 = r2.clamp(max=MAX_RADIUS**2)
    slope = torch.where(r2 < MAX_RADIUS**2, 2 * (k1 + c2 * (2 * k2 + c2 * 3 * k3)), 0.0)
    scale = 1 + c2 * (k1 + c2 * (k2 + c2 * k3)) + factor * (p1 * y + p2 * x)
    sx, sy = x * slope + factor * p2, y * slope + factor * p1  # d scale / dx, dy
    return scale + x * sx + 2 * p2 * x, x * sy + 2 * p2 * y, y * sx + 2 * p1 * x, scale + y * sy + 2 * p1 * y


def _solve(a: Tensor, b: Tensor, c: Tensor, d: Tensor, rhs: Tensor) -> Tensor:
    """Solution s of [[a b] [c d]] s = rhs, damped when nearly singular.   a b c d (..., N), rhs and s (..., N, 2)"""
    det = (a * d - b * c).clamp(min=0.05)
    u, v = rhs[..., 0], rhs[..., 1]
    return torch.stack([(d * u - b * v) / det, (a * v - c * u) / det], -1)


def _factor(tangential: str) -> float:
    if tangential not in TANGENTIAL:
        raise GeometryError(f"tangential: {tangential!r} is not one of {', '.join(TANGENTIAL)}")
    return TANGENTIAL[tangential]


def _tensor(value, dtype: torch.dtype | None) -> Tensor:
    value = torch.as_tensor(value)
    return value if value.is_floating_point() and dtype is None else value.to(dtype or torch.get_default_dtype())


def _points(x: Tensor, dim: int, name: str) -> Tensor:
    if x.ndim < 2 or x.shape[-1] != dim:
        raise GeometryError(f"{name} has shape {tuple(x.shape)}, expected points in rows (..., N, {dim})")
    return x
