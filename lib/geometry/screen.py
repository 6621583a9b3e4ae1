"""Screen coordinates, which lifting networks see: px divided by half the image's width, around its middle.

x runs from -1 to 1 over the width, y as far as the aspect ratio takes it. Source: Pavllo et al., VideoPose3D, CVPR 2019; pixels there
run from 0 at the left edge to `width` at the right one, without the half px of this repository's convention, and so they do here,
because published weights expect it.
"""

import dataclasses

import torch
from torch import Tensor

from lib.geometry.camera import Cameras
from lib.geometry.crop import transform_points

LIMIT = 1.0  # of x / z and y / z: further out, 45 degrees off the axis, a published projection holds them there
NEAR_MM = 100.0  # points closer to the camera's plane, or behind it, are projected as if they were here


def screen_from_img(size: Tensor) -> Tensor:
    """The affine from px to screen coordinates.   size (...,2) width, height px -> (...,2,3)"""
    width, height = size.unbind(-1)
    zero, scale = torch.zeros_like(width), 2 / width
    rows = [torch.stack([scale, zero, zero - 1], -1), torch.stack([zero, scale, -height / width], -1)]
    return torch.stack(rows, -2)


def to_screen(x_img: Tensor, size: Tensor) -> Tensor:
    """x_img (...,N,2) px of images of `size` (...,2) -> (...,N,2) screen coordinates"""
    return transform_points(screen_from_img(size), x_img)


def from_screen(x_screen: Tensor, size: Tensor) -> Tensor:
    """The inverse of `to_screen`."""
    width = size[..., None, :1]
    return (x_screen + torch.cat([torch.ones_like(width), size[..., None, 1:] / width], -1)) * width / 2


def screen_cameras(cameras: Cameras) -> Cameras:
    """Cameras whose images are measured in screen coordinates; intrinsics and size must be known."""
    return cameras.warped(screen_from_img(cameras.size))


def mirrored(cameras: Cameras) -> Cameras:
    """The screen cameras of mirrored images: the principal point's x and the lens's p2 change sign."""
    K, dist = cameras.K.clone(), cameras.dist.clone()
    K[..., 0, 2] *= -1
    dist[..., 3] *= -1
    return dataclasses.replace(cameras, K=K, dist=dist)


def project_held(X_cam: Tensor, cameras: Cameras, distort: bool = True, tangential: str = "h36m", near_mm: float = NEAR_MM) -> Tensor:
    """Perspective projection that stays finite whatever a network in training may predict: directions are held within LIMIT, where
    their gradient ends, and depths at `near_mm` or more (0: as published, where points behind the camera come out mirrored).

    X_cam (...,N,3) mm, cameras (...) -> (...,N,2) in the units of the cameras' K
    """
    depth = X_cam[..., 2:].clamp(min=near_mm) if near_mm > 0 else X_cam[..., 2:]
    return cameras.from_norm((X_cam[..., :2] / depth).clamp(-LIMIT, LIMIT), distort, tangential)
