"""Voxel unprojection: peaks land where the joints are, views that cannot see do not count, a plain twin and recorded volumes agree."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import compose, crop_affine, scale_affine, transform_points
from lib.geometry.heatmap import render_heatmaps
from lib.geometry.voxel import (
    RULES,
    TapsCache,
    sample_people,
    sample_taps,
    space_from_cameras,
    unproject_heatmaps,
    voxel_grid,
    voxel_taps,
)
from scripts.benchmarks.harness import PeakMemory
from tests.conftest import ROOT
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
        lambda: unproject_heatmaps(hm, cams, hm_from_img, X, rule="other"),
        lambda: sample_people(hm, cams, hm_from_img, X[0], torch.zeros(2, dtype=torch.long), (1, 1, 1), (2, 2, 2)),
        lambda: sample_people(hm[..., :1], cams, hm_from_img, X[0], torch.zeros(3, dtype=torch.long), (1, 1, 1), (2, 2, 2)),
        lambda: voxel_taps(cams, hm_from_img[:, :3], X, (48, 64)),
        lambda: voxel_taps(cams, hm_from_img, X, (1, 64)),
        lambda: sample_taps(hm, voxel_taps(cams, hm_from_img, X, (64, 48))),
        lambda: sample_taps(hm[:1], voxel_taps(cams, hm_from_img, X, (48, 64))),
    ):
        with pytest.raises(GeometryError):
            wrong()


# Against recorded results ---------------------------------------------------------------------------------------------


def recorded(file):
    folder = ROOT / "tests" / "golden" / "selfpose3d"
    return np.load(folder / f"{file}.npz"), json.loads((folder / f"{file}.json").read_text())["cases"]


def recorded_cameras(arrays, prefix, size, dtype=torch.float64):
    R, T, f, c, k, p = (torch.from_numpy(arrays[prefix + name]).to(dtype) for name in "RTfckp")
    K = torch.eye(3, dtype=dtype).repeat(len(R), 1, 1)
    K[:, :2, :2], K[:, :2, 2] = torch.diag_embed(f), c
    dist = torch.stack([k[:, 0, 0], k[:, 1, 0], p[:, 0, 0], p[:, 1, 0], k[:, 2, 0]], -1)
    return Cameras.make(K, R, center=T[..., 0], dist=dist, size=size)


def recorded_affine(case):
    """Cells of the maps from pixels of the image: the image fitted into the input, turned, scaled, mirrored.   -> (B, 2, 3)"""
    W, H = case["network_image_size"]
    w, h = case["image_wh"]
    box = (h / H * W, h) if w / W < h / H else (w, w / W * H)
    flips = torch.tensor(case.get("hflip") or [False] * len(case["rotation_deg"]))
    turns, scales = torch.tensor(case["rotation_deg"]).double(), torch.tensor(case["scale_aug"]).double()
    # A crop is mirrored before it is turned, the recorded input after.
    turns = torch.where(flips, -turns, turns)
    patch_from_img = crop_affine([w / 2, h / 2], box, [W, H], scale=1 + scales, rot_deg=turns, flip=flips)
    return compose(scale_affine(case["heatmap_size_wh"], (W, H), dtype=torch.float64), patch_from_img.double())


def recorded_maps(_, shape, seed, views):
    return torch.stack([torch.rand(shape, generator=torch.Generator().manual_seed(seed + v)) for v in range(views)], 1).double()


@pytest.mark.parametrize("name", ["panoptic_plain", "panoptic_affine", "panoptic_flip", "campus", "shelf"])
def test_reference_rule_gives_the_recorded_volumes(name):
    arrays, cases = recorded("networks")
    name = f"project_{name}"
    case, expected = cases[name], torch.from_numpy(arrays[f"{name}/cubes"]).double()
    hm = recorded_maps(*case["heatmaps"])
    cams = recorded_cameras(arrays, f"{name}/camera_", case["image_wh"])
    hm_from_img = recorded_affine(case)[:, None].repeat(1, hm.shape[1], 1, 1)
    batch, size, shape = len(hm), case["space_size"], case["cube"]
    center = torch.tensor([case["space_center"]] * batch).double()
    grid = voxel_grid(center, size, shape)
    found = unproject_heatmaps(hm, cams, hm_from_img, grid, rule="reference").reshape(expected.shape)
    torch.testing.assert_close(found, expected, atol=6e-5, rtol=0)  # what float32 did to the recorded projections
    taps = voxel_taps(cams, hm_from_img, grid[:1], hm.shape[-2:], "reference")
    torch.testing.assert_close(sample_taps(hm, taps).reshape(expected.shape), found, atol=1e-9, rtol=0)
    people = sample_people(hm, cams, hm_from_img, center, torch.arange(batch), size, shape, "reference")
    torch.testing.assert_close(people.reshape(expected.shape), found, atol=1e-9, rtol=0)
    float32 = unproject_heatmaps(hm.float(), cams.to(torch.float32), hm_from_img.float(), grid.float(), rule="reference")
    torch.testing.assert_close(float32.reshape(expected.shape).double(), expected, atol=2e-4, rtol=0)


def test_reference_rule_gives_the_recorded_people():
    arrays, cases = recorded("networks")
    case, rows = cases["project_person"], torch.from_numpy(arrays["project_person/centers"]).double()
    hm = recorded_maps(*case["heatmaps"])
    cams = recorded_cameras(arrays, "project_panoptic_plain/camera_", case["image_wh"])
    hm_from_img = recorded_affine(case)[:, None].repeat(1, 5, 1, 1)
    (valid,) = torch.nonzero(rows[:, 3] >= 0, as_tuple=True)
    assert 0 < len(valid) < len(rows)
    volumes = sample_people(hm, cams, hm_from_img, rows[valid, :3], valid, case["grid_size"], case["cube"], "reference")
    cubes = torch.zeros(3, 15, *case["cube"], dtype=torch.float64).index_copy(0, valid, volumes.unflatten(2, case["cube"]))
    torch.testing.assert_close(cubes[:, ::3], torch.from_numpy(arrays["project_person/cubes_sub"]).double(), atol=6e-5, rtol=0)
    assert float(cubes.sum()) == pytest.approx(float(arrays["project_person/cubes_stats"][0]), rel=1e-5)


def test_cameras_project_as_recorded():
    arrays, _ = recorded("geometry")
    x = {name: arrays[f"project_distorted/{name}"] for name in ("points", "depth_mm", "compare_mask", "cpu")}
    cams = recorded_cameras(arrays, "project_distorted/", (1920, 1080))
    found, depth = cams.project(torch.from_numpy(x["points"]))
    same = torch.from_numpy(x["compare_mask"]).bool()
    torch.testing.assert_close(depth, torch.from_numpy(x["depth_mm"]), atol=1e-6, rtol=1e-9)
    torch.testing.assert_close(found[same], torch.from_numpy(x["cpu"])[same], atol=1e-3, rtol=0)

    arrays, _ = recorded("ssv")
    trans = torch.from_numpy(arrays["project_batch/trans"]).double()
    cams = recorded_cameras(recorded("networks")[0], "project_panoptic_plain/camera_", (1920, 1080))
    for b in range(2):
        pose = torch.from_numpy(arrays[f"project_batch/pose_b{b}"]).double()
        found = transform_points(trans[b], cams.project(pose.flatten(0, 1))[0])
        expected = torch.from_numpy(arrays[f"project_batch/kps_b{b}"]).double().flatten(1, 2)
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


# The fast forms -------------------------------------------------------------------------------------------------------


def people_scene():
    """Two samples with their own cameras and crops, and five people between them, some half out of all views."""
    cams, _, hm, hm_from_img, _ = scene()
    moved = Cameras.make(cams.K[1], cams.R[1], t=cams.t[1] + 150.0, dist=cams.dist[1], size=cams.size[1])
    cams = Cameras.stack([cams[0], moved]).to(torch.float64)
    centers = torch.tensor([[0, 0, 900], [900, -700, 1000], [-1200, 300, 800], [4000, 0, 900], [300, 300, 2400]]).double()
    hm = torch.rand(hm.shape, generator=torch.Generator().manual_seed(0)).double()
    return hm, cams, hm_from_img.double(), centers, torch.tensor([0, 1, 1, 0, 1])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", [None, 1, 20, 130])
def test_people_of_several_samples_equal_one_by_one(rule, block):
    hm, cams, hm_from_img, centers, sample = people_scene()
    hm.requires_grad_()
    size, shape = (2000.0, 1600.0, 1800.0), (5, 4, 3)
    found = sample_people(hm, cams, hm_from_img, centers, sample, size, shape, rule, block)
    grid = voxel_grid(centers, size, shape)
    expected = [
        unproject_heatmaps(hm[i : i + 1], cams[i : i + 1], hm_from_img[i : i + 1], grid[k : k + 1], rule=rule)
        for k, i in enumerate(sample.tolist())
    ]
    expected = torch.cat(expected)
    assert (expected > 0).any() and (expected == 0).any()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    weight = torch.rand_like(found)
    ours, plain = (torch.autograd.grad((volume * weight).sum(), hm)[0] for volume in (found, expected))
    torch.testing.assert_close(ours, plain, atol=1e-9, rtol=0)
    assert found.mT.is_contiguous()  # joints last


@pytest.mark.parametrize("rule", RULES)
def test_taps_equal_unprojection(rule):
    hm, cams, hm_from_img, centers, _ = people_scene()
    hm.requires_grad_()
    grid = voxel_grid(centers[:1], (6000.0, 6000.0, 2000.0), (9, 8, 5))
    for some, affine, rigs in ((cams[:1], hm_from_img[:1], 1), (cams, hm_from_img, 2)):
        taps = voxel_taps(some, affine, grid, hm.shape[-2:], rule)
        assert taps.rigs == rigs
        found = sample_taps(hm, taps)
        expected = unproject_heatmaps(hm, some.expand(2, 4), affine.expand(2, -1, -1, -1), grid, rule=rule)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
        ours, plain = (torch.autograd.grad(volume.square().sum(), hm)[0] for volume in (found, expected))
        torch.testing.assert_close(ours, plain, atol=1e-9, rtol=0)
    single = sample_taps(hm.detach().bfloat16(), taps)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected.detach(), atol=0.01, rtol=0)
    assert torch.autograd.gradcheck(lambda m: sample_taps(m, taps), hm, fast_mode=True)


def test_cache_knows_rigs_by_their_content():
    hm, cams, hm_from_img, _, _ = people_scene()
    cache, space, hm_size = TapsCache(), ((6000.0, 6000.0, 2000.0), (0.0, 0.0, 900.0), (6, 6, 4)), tuple(hm.shape[-2:])
    grid = voxel_grid(torch.tensor([space[1]]).double(), space[0], space[2])
    first = cache.get(cams[:1], hm_from_img[:1], *space, hm_size)
    again = Cameras(*(field.clone() for field in (cams.K, cams.R, cams.t, cams.dist, cams.size)))
    assert cache.get(again[:1], hm_from_img[:1].clone(), *space, hm_size) is first
    assert cache.get(again[[0, 0]], hm_from_img[[0, 0]], *space, hm_size) is first and first.rigs == 1
    both = cache.get(cams, hm_from_img, *space, hm_size)
    assert len(cache) == 2 and both.rigs == 2
    torch.testing.assert_close(sample_taps(hm, both), unproject_heatmaps(hm, cams, hm_from_img, grid), atol=1e-9, rtol=0)
    for changed in ({"rule": "reference"}, {"hm_size": (47, 64)}, {"center": (0.0, 0.0, 901.0)}):
        size, center, shape = space
        options = {"size": size, "center": center, "shape": shape, "hm_size": hm_size} | changed
        assert cache.get(cams[:1], hm_from_img[:1], **options) is not first
    small = TapsCache(max_bytes=first.nbytes)
    for b in (0, 1):
        small.get(cams[b : b + 1], hm_from_img[b : b + 1], *space, hm_size)
    assert len(small) == 1


@pytest.mark.parametrize("rule", RULES)
def test_views_without_a_camera_do_not_count(rule):
    hm, cams, hm_from_img, centers, sample = people_scene()
    size, shape = (2000.0, 1600.0, 1800.0), (5, 4, 3)
    grid = voxel_grid(centers[:2], size, shape)
    with_gap = dataclasses.replace(cams, R=torch.cat([cams.R[:, :3], torch.full_like(cams.R[:, 3:], math.nan)], 1))
    expected = unproject_heatmaps(hm[:, :3], cams[:, :3], hm_from_img[:, :3], grid, rule=rule)
    two = torch.arange(2)
    for found in (
        unproject_heatmaps(hm, with_gap, hm_from_img, grid, rule=rule),
        sample_people(hm, with_gap, hm_from_img, centers[:2], two, size, shape, rule),
        sample_taps(hm, voxel_taps(with_gap, hm_from_img, grid, hm.shape[-2:], rule)),
    ):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_only_the_reference_rule_accepts_folded_and_hidden_points():
    lens = [-0.3, 0.02, 0.0, 0.0, 0.0]  # grows up to a radius of 1.2 only
    cams = Cameras.make([[300.0, 0, 500], [0, 300, 500], [0, 0, 1]], torch.eye(3), t=[0.0, 0, 0], dist=lens, size=(1000, 1000))
    cams, hm = cams.reshape(1, 1).to(torch.float64), torch.ones(1, 1, 1, 50, 50).double()
    hm_from_img = scale_affine((50, 50), (1000, 1000), dtype=torch.float64)[None, None]
    X = torch.tensor([[[0.0, 0, 1000], [1700, 0, 1000], [0, 0, -1000]]]).double()  # in view, beyond the lens, behind
    assert unproject_heatmaps(hm, cams, hm_from_img, X).tolist() == [[[1, 0, 0]]]
    published = unproject_heatmaps(hm, cams, hm_from_img, X, rule="reference")
    torch.testing.assert_close(published, torch.ones_like(published), atol=2e-6, rtol=0)
    for rule, expected in (("exact", [1, 0, 0]), ("reference", [1, 1, 1])):
        volumes = sample_people(hm, cams, hm_from_img, X[0], torch.zeros(3, dtype=torch.long), (1.0, 1, 1), (1, 1, 1), rule)
        torch.testing.assert_close(volumes.flatten(), torch.tensor(expected).double(), atol=2e-6, rtol=0)


def test_memory_beside_the_volumes_does_not_grow():
    hm, cams, hm_from_img, centers, sample = people_scene()
    size, extra, volumes = (2000.0, 2000.0, 2000.0), [], []
    for people in (1, 4):
        some = centers[:people], sample[:people]
        peak = PeakMemory.of(lambda some=some: volumes.append(sample_people(hm, cams, hm_from_img, *some, size, (48, 24, 32))))
        extra.append(peak - volumes[-1].nbytes)
    assert 0 < extra[1] < 1.1 * extra[0]
    # The meter sees what lives at the same time, and no more.
    peak = PeakMemory.of(lambda: [torch.zeros(1000, dtype=torch.uint8).clone() for _ in range(3)])
    assert 3900 <= peak <= 4100


def test_nobody():
    hm, cams, hm_from_img, centers, sample = people_scene()
    hm.requires_grad_()
    found = sample_people(hm, cams, hm_from_img, centers[:0], sample[:0], (1.0, 1.0, 1.0), (4, 4, 4))
    assert found.shape == (0, 3, 64)
    found.sum().backward()
    assert (hm.grad == 0).all()


# Automatic bounds -----------------------------------------------------------------------------------------------------


def test_space_of_a_ring_surrounds_what_the_cameras_see():
    cams = ring_of_cameras(5, distortion=True)
    size, center = space_from_cameras(cams, views=3)
    low, high = (torch.tensor(center) + sign * torch.tensor(size) / 2 for sign in (-1, 1))
    assert (low[2], high[2]) == (-200, 1800)
    generator = torch.Generator().manual_seed(0)
    feet = (torch.rand(20000, 2, generator=generator).double() - 0.5) * 20000
    columns = torch.stack([torch.cat([feet, torch.full_like(feet[:, :1], z)], 1) for z in torch.linspace(0, 1800, 9).tolist()], 1)
    near = (columns.flatten(0, 1) - cams.center[:, None]).norm(dim=-1) <= 5000
    seen = (cams.in_view(columns.flatten(0, 1)) & near).sum(0).reshape(-1, 9) >= 3
    inside = feet[seen.double().mean(1) >= 0.5]
    assert ((inside >= low[:2] - 1) & (inside <= high[:2] + 1)).all()
    larger = space_from_cameras(cams, views=2)[0]
    assert larger[0] > size[0] and larger[1] > size[1]


def test_space_is_bounded_where_cameras_look_at_the_horizon():
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # looks along +y, level
    K = [[800.0, 0, 500], [0, 800, 500], [0, 0, 1]]
    centers = torch.tensor([[-500.0, -3000, 1500], [500.0, -3000, 1500], [0.0, -3000, 1000]])
    cams = Cameras.make(K, turn.expand(3, 3, 3), center=centers, size=(1000, 1000))
    size, center = space_from_cameras(cams)
    assert max(size) < 10_000 and center[1] > -3000
    assert space_from_cameras(cams, reach=12_000.0)[0][1] > 8000


def test_space_without_cameras_that_see_is_an_error():
    cams = ring_of_cameras(4)
    metres = Cameras.make(cams.K, cams.R, center=cams.center / 1000, size=cams.size)
    with pytest.raises(GeometryError, match="mm"):
        space_from_cameras(metres)
    with pytest.raises(GeometryError, match="size"):
        space_from_cameras(dataclasses.replace(cams, size=torch.zeros_like(cams.size)))
    with pytest.raises(GeometryError, match="views 5"):
        space_from_cameras(cams, views=5)
