"""Voxel unprojection: peaks land where the joints are, views that cannot see do not count, a plain twin agrees."""

import math

import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import compose, crop_affine, scale_affine, transform_points
from lib.geometry.heatmap import render_heatmaps
from lib.geometry.voxel import unproject_heatmaps, voxel_grid
from tests.scene import points, ring_of_cameras

SIZE = (64, 48)  # w, h of the maps


def scene(batch=2, views=4, joints=3):
    """Rendered maps of random joints; sample 1 is seen through mirrored and rotated crops."""
    cams = Cameras.stack([ring_of_cameras(views, distortion=True, dtype=torch.float32)] * batch)
    X = points(batch, joints, dtype=torch.float32)
    flip = torch.arange(batch)[:, None].expand(batch, views) % 2 == 1
    patch_from_img = crop_affine([500.0, 480.0], [800.0, 600.0], [256, 192], rot_deg=flip * 10.0, flip=flip)
    hm_from_img = compose(scale_affine(SIZE, (256, 192)), patch_from_img)
    x_hm = transform_points(hm_from_img, cams.project(X[:, None])[0])
    hm = render_heatmaps(x_hm, torch.ones(batch, views, joints), SIZE, sigma=1.5, cut=None)
    return cams, X, hm, hm_from_img, x_hm


def twin(hm, cams, hm_from_img, grid):
    """One sample, view, point at a time, bilinear by hand."""
    B, V, J, h, w = hm.shape
    out = torch.zeros(B, J, grid.shape[1])
    for b in range(B):
        for n in range(grid.shape[1]):
            values = []
            for v in range(V):
                x_img, depth = cams[b, v].project(grid[b, n : n + 1])
                x, y = transform_points(hm_from_img[b, v], x_img)[0].tolist()
                u, z = x_img[0].tolist()
                seen = depth[0] > 0 and -0.5 <= u <= 999.5 and -0.5 <= z <= 999.5
                if not (seen and -0.5 <= x <= w - 0.5 and -0.5 <= y <= h - 0.5):
                    continue
                x, y = min(max(x, 0), w - 1), min(max(y, 0), h - 1)
                x0, y0 = min(math.floor(x), w - 2), min(math.floor(y), h - 2)
                fx, fy, m = x - x0, y - y0, hm[b, v, :, y0 : y0 + 2, x0 : x0 + 2]
                top, bottom = (m[:, i, 0] * (1 - fx) + m[:, i, 1] * fx for i in (0, 1))
                values.append(top * (1 - fy) + bottom * fy)
            if values:
                out[b, :, n] = torch.stack(values).mean(0)
    return out


def test_grid_order_and_pitch():
    grid = voxel_grid(torch.tensor([[10.0, 20.0, 30.0]]), (4.0, 6.0, 0.0), (3, 2, 1))
    assert grid.tolist() == [[[8, 17, 30], [8, 23, 30], [10, 17, 30], [10, 23, 30], [12, 17, 30], [12, 23, 30]]]
    assert voxel_grid(torch.zeros(2, 3, 3), (1.0, 1.0, 1.0), (2, 2, 2)).shape == (2, 3, 8, 3)


def test_peak_of_the_volume_is_the_joint():
    cams, X, hm, hm_from_img, _ = scene()
    center = X + torch.tensor([30.0, -20.0, 10.0])  # the cube need not be centred on the joint
    for j in range(X.shape[1]):
        grid = voxel_grid(center[:, j], (400.0, 400.0, 400.0), (21, 21, 21))  # 20 mm pitch
        volume = unproject_heatmaps(hm, cams, hm_from_img, grid)[:, j]
        best = grid[torch.arange(2), volume.argmax(-1)]
        assert (best - X[:, j]).norm(dim=-1).max() < 30
        at_joint = unproject_heatmaps(hm, cams, hm_from_img, X[:, j : j + 1])[:, j]
        assert at_joint.min() > 0.85  # bilinear sampling flattens the peak


def test_equals_the_plain_twin_also_outside_and_behind():
    cams, X, hm, hm_from_img, _ = scene()
    hm = torch.rand_like(hm)
    far = torch.tensor([[6000.0, 0.0, 1000.0], [0.0, 0.0, 9000.0], [-2500.0, 2500.0, 0.0], [900.0, -900.0, 2300.0]])
    near = points(2, 20, seed=5, dtype=torch.float32) * torch.tensor([2.0, 2.0, 1.0])
    grid = torch.cat([near, far.expand(2, 4, 3)], 1)
    found = unproject_heatmaps(hm, cams, hm_from_img, grid)
    torch.testing.assert_close(found, twin(hm, cams, hm_from_img, grid), atol=2e-3, rtol=0)
    assert (found == 0).all(1).any() and (found > 0).any()
    torch.testing.assert_close(unproject_heatmaps(hm, cams, hm_from_img, grid, chunk=7), found)


def test_views_that_do_not_see_are_left_out_of_the_mean():
    cams, X, hm, hm_from_img, _ = scene(batch=1, views=2)
    hm = torch.ones_like(hm)
    away = cams[:, 1].R.clone() * torch.tensor([1.0, -1.0, -1.0])[:, None]  # turned by 180 degrees about its x axis
    turned = Cameras.make(cams.K[:, 1], away, center=cams[:, 1].center, size=(1000, 1000))
    cams = Cameras.stack([cams[:, 0], turned], dim=1)
    torch.testing.assert_close(unproject_heatmaps(hm, cams, hm_from_img, X), torch.ones(1, 3, 3))


def test_gradients():
    cams, X, hm, hm_from_img, _ = scene(batch=1, views=2, joints=1)
    hm, grid = torch.rand(1, 2, 1, 48, 64).double().requires_grad_(), X.double().requires_grad_()
    cams, hm_from_img = cams.to(torch.float64), hm_from_img.double()
    assert torch.autograd.gradcheck(lambda m: unproject_heatmaps(m, cams, hm_from_img, grid), hm, fast_mode=True)
    assert torch.autograd.gradcheck(lambda g: unproject_heatmaps(hm, cams, hm_from_img, g), grid)


def test_one_rig_for_all_samples_and_bfloat16_maps():
    cams, X, hm, hm_from_img, _ = scene()
    expected = unproject_heatmaps(hm, cams, hm_from_img, X)
    torch.testing.assert_close(unproject_heatmaps(hm, cams[0], hm_from_img, X), expected)
    found = unproject_heatmaps(hm.bfloat16(), cams, hm_from_img, X)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_wrong_shapes():
    cams, X, hm, hm_from_img, _ = scene()
    for wrong in (
        lambda: unproject_heatmaps(hm[0], cams, hm_from_img, X),
        lambda: unproject_heatmaps(hm, cams[:, :3], hm_from_img, X),
        lambda: unproject_heatmaps(hm, cams, hm_from_img, X[:, :, :2]),
    ):
        with pytest.raises(GeometryError):
            wrong()
