"""Synthetic truth for geometry tests: camera rings, points and rotations, made without lib's own maths."""

import numpy as np
import torch

from lib.geometry.camera import Cameras

# Human3.6M's four lenses: fx fy cx cy, k1 k2 p1 p2 k3 (public calibration, OpenCV order).
H36M_LENSES = (
    ((1145.0494, 1143.7811, 512.5415, 515.4515), (-0.20709891, 0.24777518, -0.00142447, -0.00097570, -0.00307515)),
    ((1149.6757, 1147.5916, 508.8486, 508.0649), (-0.19421361, 0.24040854, -0.00274089, -0.00161903, 0.00681998)),
    ((1149.1407, 1148.7990, 519.8158, 501.4027), (-0.20833819, 0.25548801, -0.00076000, 0.00148439, -0.00246050)),
    ((1145.5113, 1144.7739, 514.9682, 501.8820), (-0.19838409, 0.21832368, -0.00181336, -0.00058721, -0.00894781)),
)


def look_at(center: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation world -> camera (x right, y down, z forward) of a camera at `center` that looks at `target`; z is up."""
    z = (target - center) / np.linalg.norm(target - center)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def ring_of_cameras(views: int, distortion: bool = False, dtype=torch.float64, radius=4500.0, height=1600.0) -> Cameras:
    """Cameras (V,) on a circle around a person-sized volume (mm), looking at its middle, 1000x1000 px."""
    K, R, C, dist = [], [], [], []
    for v in range(views):
        angle = 2 * np.pi * (v + 0.3) / views
        center = np.array([radius * np.cos(angle), radius * np.sin(angle), height + 40.0 * v])
        (fx, fy, cx, cy), lens = H36M_LENSES[v % 4]
        K.append([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
        R.append(look_at(center, np.array([0.0, 0.0, 1000.0])))
        C.append(center)
        dist.append(lens if distortion else [0.0] * 5)
    K, R, C, dist = (torch.tensor(np.array(a), dtype=dtype) for a in (K, R, C, dist))
    return Cameras.make(K, R, center=C, dist=dist, size=(1000, 1000))


def points(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Points in the 1.6 m cube in the middle of the ring, mm.   -> (*shape, 3)"""
    generator = torch.Generator().manual_seed(seed)
    middle = torch.tensor([0.0, 0.0, 1000.0], dtype=dtype)
    return (torch.rand(*shape, 3, generator=generator, dtype=torch.float64).to(dtype) - 0.5) * 1600 + middle


def rotations(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """Random rotations from unit quaternions.   -> (*shape, 3, 3)"""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).reshape(*shape, 3, 3).to(dtype)
