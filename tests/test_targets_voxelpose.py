"""What VoxelPose and SelfPose3d learn from: 2D maps of several people, root volumes, drawn roots. Truth: recorded numbers."""

import itertools

import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import compose, crop_affine, invert, scale_affine, transform_points
from lib.geometry.heatmap import people_heatmaps, person_sigma, summed_heatmaps
from lib.geometry.voxel import voxel_grid
from lib.geometry.voxel_targets import (
    MARGINS,
    draw_roots,
    fitting_margins,
    joints_in_patch,
    people_in_views,
    root_heatmaps,
    root_points,
    root_volume,
)
from tests import tiny_dataset as tiny
from tests.conftest import golden

SPACE = ((8000.0, 8000.0, 2000.0), (0.0, -500.0, 800.0))
PATCH, CELLS = (240, 128), (60, 32)  # of the recorded cases


def case(file: str, name: str) -> dict[str, torch.Tensor]:
    return {k.split("/")[1]: torch.from_numpy(v) for k, v in golden("selfpose3d", file).items() if k.startswith(name + "/")}


@pytest.fixture(scope="module")
def dome() -> Cameras:
    """The five recorded cameras of CMU Panoptic."""
    g = case("geometry", "project_distorted")
    K = torch.diag_embed(torch.cat([g["f"], torch.ones(5, 1)], 1))
    K[:, :2, 2] = g["c"]
    dist = torch.cat([g["k"][:, :2, 0], g["p"][..., 0], g["k"][:, 2:, 0]], 1)
    return Cameras.make(K, g["R"], center=g["T"][..., 0], dist=dist, size=torch.tensor([1920.0, 1080], dtype=torch.float64))


def affine(rot_deg: float, zoom: float) -> torch.Tensor:
    return crop_affine((960.0, 540.0), (2025.0, 1080.0), [float(v) for v in PATCH], scale=1 + zoom, rot_deg=rot_deg)


def cells(patch_from_img: torch.Tensor) -> torch.Tensor:
    return compose(scale_affine(CELLS, PATCH), patch_from_img)


# --- geometry as published


def test_projection_and_affines_equal_the_recorded_ones(dome):
    g = case("geometry", "project_distorted")
    x, depth = dome.project(g["points"])
    compared = g["compare_mask"].bool()
    assert (x - g["cpu"])[compared].abs().max() < 0.01
    assert (depth - g["depth_mm"])[compared].abs().max() < 1e-6
    a = case("geometry", "affine")
    image, out, turn, zoom = a["cases"][:, :2], a["cases"][:, 2:4], a["cases"][:, 4], a["cases"][:, 5]
    box = (image / out).amax(-1, keepdim=True) * out
    torch.testing.assert_close(box.float() / 200, a["get_scale"].float())
    patch_from_img = crop_affine(image / 2, box, out, scale=1 + zoom, rot_deg=turn)
    torch.testing.assert_close(patch_from_img, a["trans"], atol=1e-4, rtol=0)
    torch.testing.assert_close(invert(patch_from_img), a["trans_inv"], atol=2e-4, rtol=0)
    points = a["points_in_out"]
    torch.testing.assert_close(transform_points(patch_from_img, points[..., :2]), points[..., 2:], atol=1e-3, rtol=0)


def test_rotation_about_a_point_equals_the_recorded_one():
    g = case("geometry", "rotate_points")
    turned = crop_affine(g["center"], (2.0, 2.0), (2.0, 2.0), rot_deg=-float(g["deg"]))
    back = transform_points(turned, g["points"]) - 1 + g["center"]
    torch.testing.assert_close(back, g["out"], atol=1e-6, rtol=0)


def test_the_annotation_time_projector_differs_by_its_known_bug():
    g = case("geometry", "projectPoints_dataset")
    cam = Cameras.make(g["K"], g["R"], g["t"][:, 0], g["Kd"], size=(1920.0, 1080.0))
    x, _ = cam.project(g["points_cm"])
    error = (x - g["uv"][:, :2]).abs()
    seen, middle = (cam.in_view(g["points_cm"], margin) for margin in (0, -200))  # the bug grows towards the corners
    assert middle.sum() >= 5 and error[middle].max() < 0.02 and error[seen].max() < 0.05


def test_people_in_all_views_equal_the_recorded_ones(dome):
    g = case("ssv", "project_batch")
    for b, augmentation in enumerate(((20.0, 0.15), (-10.0, -0.1))):
        pose = g[f"pose_b{b}"]
        A = affine(*augmentation).expand(1, 5, 2, 3)
        x, seen = people_in_views(pose[None], torch.ones(1, len(pose), 15), dome[None], A, rule="reference")
        assert x.dtype == torch.float32 and seen.all()
        torch.testing.assert_close(x[0], g[f"kps_b{b}"], atol=1e-2, rtol=0)


def test_people_behind_a_camera_are_not_seen(dome):
    behind = dome.center + (dome.center - torch.tensor([0.0, 0, 1000]))  # of each camera
    X = behind[None, :, None].float()
    _, seen = people_in_views(X, torch.ones(1, 5, 1), dome[None], affine(0, 0).expand(1, 5, 2, 3))
    assert not seen[0, range(5), range(5)].any()
    _, seen = people_in_views(X, torch.ones(1, 5, 1), dome[None], affine(0, 0).expand(1, 5, 2, 3), rule="reference")
    assert seen.all()
    with pytest.raises(GeometryError, match="exakt"):
        people_in_views(X, torch.ones(1, 5, 1), dome[None], affine(0, 0).expand(1, 5, 2, 3), rule="exakt")


def test_joints_outside_image_or_patch_are_unknown():
    x = torch.tensor([[10.0, 10], [-1, 10], [159, 119], [159.5, 10], [80, 60]]).reshape(1, 1, 1, 5, 2)
    conf = torch.tensor([1.0, 1, 0.5, 1, 0]).reshape(1, 1, 1, 5)
    A = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]]).expand(1, 1, 2, 3)
    moved, known = joints_in_patch(x, conf, A, (80, 60), torch.tensor([[[160.0, 120]]]))
    torch.testing.assert_close(moved[..., :4, :], x[..., :4, :] / 2)
    assert torch.equal(moved[..., 4, :], x[..., 4, :])  # unknown before: it stays where it was
    assert known.flatten().tolist() == [1, 0, 0.5, 0, 0]
    assert joints_in_patch(x, conf, A, (80, 60))[1].flatten().tolist() == [1, 0, 0.5, 1, 0]
    assert joints_in_patch(x, conf, A, (40, 60))[1].flatten().tolist() == [1, 0, 0, 0, 0]


# --- 2D maps


@pytest.mark.parametrize("letter", "ab")
@pytest.mark.parametrize(("file", "scaled"), [("targets_selfpose3d", False), ("targets_voxelpose", True)])
def test_maps_of_several_people_equal_the_recorded_ones(file, scaled, letter):
    g = case(file, f"heatmap2d_{letter}")
    size = g["target"].shape[:0:-1]
    x, seen = g["joints"] / 4, g["vis"][..., 0].bool()
    for peak, name in ((seen, "target"), (g["conf"], "input_conf"), (torch.ones_like(g["conf"]), "input_campus")):
        maps = people_heatmaps(x, peak, size, 3.0, scaled, snap=True)
        torch.testing.assert_close(maps.float(), g[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.any(0).float(), g["weight"][:, 0])


def test_the_persons_sigma_is_the_published_one():
    g = case("targets_voxelpose", "heatmap2d_a")
    seen = g["vis"][..., 0].bool()
    sigma = person_sigma(g["joints"] / 4, seen, 3.0)
    torch.testing.assert_close(sigma, 3 * (2 * g["human_scale"].double() / 96**2).sqrt())
    assert sigma.unique().numel() > 1
    wide = torch.tensor([[[0.0, 0], [1000, 5]], [[0, 0], [1, 1]]])
    torch.testing.assert_close(person_sigma(wide, torch.ones(2, 2), 3.0), torch.tensor([6.0, 1.5]) * 2**0.5)


@pytest.mark.parametrize("scaled", [False, True])
def test_centred_maps_are_the_formula(scaled):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, 4, 5, 2, generator=generator) * torch.tensor([70.0, 50]) - 10
    peak = torch.rand(2, 3, 4, 5, generator=generator).round() * torch.rand(2, 3, 4, 5, generator=generator)
    x[peak == 0] = float("nan")
    maps = people_heatmaps(x, peak, (48, 36), 2.5, scaled)
    assert maps.shape == (2, 3, 5, 36, 48)
    ys, xs = torch.meshgrid(torch.arange(36.0), torch.arange(48.0), indexing="ij")
    for b, v, j in itertools.product(range(2), range(3), range(5)):
        expected = torch.zeros(36, 48)
        for m in range(4):
            if peak[b, v, m, j] > 0:
                s = float(person_sigma(x[b, v, m], peak[b, v, m] > 0, 2.5)) if scaled else 2.5
                dx, dy = xs - x[b, v, m, j, 0], ys - x[b, v, m, j, 1]
                blob = peak[b, v, m, j] * torch.exp(-(dx**2 + dy**2) / (2 * s * s))
                near = (dx.abs() <= 3 * s) & (dy.abs() <= 3 * s)
                expected = torch.maximum(expected, torch.where(near, blob, 0.0))
        torch.testing.assert_close(maps[b, v, j], expected, atol=1e-6, rtol=1e-5)


def test_published_targets_lie_half_a_cell_short_on_average():
    x = torch.rand(1, 400, 1, 2, dtype=torch.float64) * 20 + 20
    x = x.transpose(0, 1)[:, :, None][:, 0]  # 400 maps of one person
    grid = torch.stack(torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="xy"), -1).double()

    def offset(snap):
        maps = people_heatmaps(x, torch.ones(400, 1, 1), (60, 60), 3.0, snap=snap)[:, 0]
        centre = (maps[..., None] * grid).sum((1, 2)) / maps.sum((1, 2))[:, None]
        return (centre - x[:, 0, 0]).mean(0)

    assert (offset(True) + 0.5).abs().max() < 0.05 and offset(False).abs().max() < 0.005


def test_people_far_outside_leave_nothing():
    x = torch.tensor([[[-1e6, -1e6]], [[1e9, 3]], [[float("inf"), 0]]])
    for snap in (False, True):
        maps = people_heatmaps(x, torch.tensor([[1.0], [1], [0]]), (20, 10), snap=snap)
        assert maps.abs().max() == 0 and maps.isfinite().all()


# --- drawn people, for losses


def recorded_stage3():
    g = case("ssv", "ssv_no_attn_no_l1")
    augmentations = [torch.stack([affine(r, z) for r, z in pairs]) for pairs in (((20, 0.15), (-10, -0.1)), ((-35, -0.12), (0, 0.3)))]
    there = (g["grid_centers"][..., 3] >= 0)[..., None].expand(2, 3, 15)
    return g, augmentations, there


def test_sums_and_their_gradients_equal_the_recorded_ones(dome):
    g, (first, second), there = recorded_stage3()
    poses = [g["pose1"].clone().requires_grad_(), g["pose2"].clone().requires_grad_()]
    loss = 0
    sides = ((poses[1], first, 2070, "render_aug1_from_pose2"), (poses[0], second, 2080, "render_aug2_from_pose1"))
    for pose, A, seed, name in sides:
        x, seen = people_in_views(pose, there, dome[None].expand(2, 5), cells(A)[:, None].expand(2, 5, 2, 3), rule="reference")
        maps = summed_heatmaps(x, seen, CELLS)
        torch.testing.assert_close(maps.transpose(0, 1)[:, :, ::2], g[name].float(), atol=2e-3, rtol=0)
        target = torch.stack([torch.rand(2, 15, 32, 60, generator=torch.Generator().manual_seed(seed + v)) for v in range(5)], 1)
        loss = loss + (target - maps).square().mean()
    torch.testing.assert_close(loss, g["loss_pose3d_ssv"], atol=1e-5, rtol=0)
    loss.backward()
    for pose, name in zip(poses, ("grad_pose1_first", "grad_pose2_first"), strict=True):
        torch.testing.assert_close(pose.grad[:, 0], g[name], atol=1e-3 * float(g[name].abs().max()), rtol=1e-3)
        assert not pose.grad[~there[..., 0]].any()


def test_sums_are_cut_at_one_and_have_the_right_gradient():
    x = torch.tensor([[[5.0, 4]], [[5.5, 4]], [[12, 6]]], dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[1.0], [1], [0]])
    maps = summed_heatmaps(x, valid, (16, 9), 1.5)
    assert maps.max() == 1 and maps[0, 6, 12] < 0.01
    assert torch.autograd.gradcheck(lambda p: summed_heatmaps(p, valid, (16, 9), 1.5), x)


# --- root volumes


@pytest.mark.parametrize(("name", "root"), [("target3d_a", 2), ("target3d_b", [2, 3])])
def test_root_volumes_equal_the_recorded_ones(name, root):
    g = case("targets_selfpose3d", name)
    roots, valid = root_points(g["joints"][None], torch.ones(1, *g["joints"].shape[:2]), root)
    volume = root_volume(roots, valid, *SPACE, g["target"].shape)
    torch.testing.assert_close(volume[0].float(), g["target"], atol=1e-6, rtol=0)


def test_nodes_at_three_sigma_belong_to_a_root_on_both_sides():
    """The published window, node by node, for people who stand on nodes, so that nodes lie at its very ends."""
    shape, sigma = (41, 41, 21), 200.0
    axes = [np.linspace(-s / 2, s / 2, n) + c for s, c, n in zip(*SPACE, shape, strict=True)]  # whole numbers
    places = [(axes[0][i], axes[1][j], axes[2][k]) for i, j, k in ((0, 40, 10), (13, 20, 3), (27, 1, 20))]
    expected = np.zeros(shape)
    for place in places:
        inside = tuple(
            slice(np.searchsorted(a, p - 3 * sigma, "left"), np.searchsorted(a, p + 3 * sigma, "right"))
            for a, p in zip(axes, place, strict=True)
        )
        d2 = [(a[s] - p) ** 2 for a, s, p in zip(axes, inside, place, strict=True)]
        blob = np.exp(-(d2[0][:, None, None] + d2[1][:, None] + d2[2]) / (2 * sigma**2))
        expected[inside] = np.maximum(expected[inside], blob)
    for shift in (0.0, 3e-4):  # as float32 rounds a place
        roots = torch.tensor(places, dtype=torch.float32)[None] + shift
        volume = root_volume(roots, torch.ones(1, 3), *SPACE, shape, sigma)
        assert volume.dtype == torch.float32
        np.testing.assert_allclose(volume[0].numpy(), expected, atol=2e-6)


def test_root_volumes_are_batched_and_peak_at_the_nodes():
    shape = (16, 12, 8)
    grid = voxel_grid(torch.tensor(SPACE[1]), SPACE[0], shape)
    nodes = torch.tensor([[17, 900], [1200, 5]])
    volume = root_volume(grid[nodes], torch.tensor([[True, True], [True, False]]), *SPACE, shape)
    flat = volume.flatten(1)
    assert flat.max() == 1
    assert (flat[0] == 1).nonzero().flatten().tolist() == [17, 900]
    assert flat[1].argmax() == 1200 and flat[1, 5] < 1
    apart = root_volume(grid[nodes[1:]], torch.tensor([[True, False]]), *SPACE, shape)
    assert torch.equal(apart[0], volume[1])
    spaces = torch.tensor([SPACE[0], (4000.0, 4000.0, 2000.0)]), torch.tensor([SPACE[1], (0.0, 0, 900)])
    mixed = root_volume(grid[nodes], torch.tensor([[True, True], [True, False]]), *spaces, shape)
    assert torch.equal(mixed[0], volume[0]) and not torch.equal(mixed[1], volume[1])
    assert not root_volume(torch.full((1, 1, 3), 9e9), torch.ones(1, 1), *SPACE, shape).any()
    with pytest.raises(GeometryError, match="root_volume"):
        root_volume(grid, torch.ones(3), *SPACE, shape)


def test_a_root_between_two_joints_needs_both():
    X = torch.arange(18.0).reshape(1, 1, 6, 3)
    valid = torch.tensor([[[True, True, False, True, True, True]]])
    roots, known = root_points(X, valid, [1, 4])
    assert roots.tolist() == [[[7.5, 8.5, 9.5]]] and known.tolist() == [[True]]
    assert root_points(X, valid, [2, 3])[1].tolist() == [[False]]
    assert root_points(X, valid, 2)[1].tolist() == [[False]]


# --- people who never were


def test_drawn_roots_their_maps_and_their_volume_equal_the_recorded_ones(dome):
    g = case("ssv", "root_synth")
    roots, valid = draw_roots(1, *SPACE, spread=0, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(roots[0], g["roots"])
    A = affine(20.0, 0.15).expand(1, 5, 2, 3)
    x, _ = people_in_views(roots[:, :, None], valid[..., None], dome[None], A)
    torch.testing.assert_close(x[0, :, :, 0], g["uv"], atol=1e-2, rtol=0)
    maps = root_heatmaps(roots, valid, dome[None], cells(A), CELLS, noise=0)
    assert maps.shape == (1, 5, 1, 32, 60)
    torch.testing.assert_close(maps[0, :, 0], g["heatmaps"].float(), atol=2e-3, rtol=0)
    volume = root_volume(roots, valid, *SPACE, (16, 12, 8))
    torch.testing.assert_close(volume, g["target_cubes"], atol=1e-5, rtol=0)


def test_drawn_roots_fill_the_space_scene_by_scene():
    roots, valid = draw_roots(600, *SPACE, max_people=10, spread=50, generator=torch.Generator().manual_seed(0))
    assert roots.shape == (600, 9, 3) and set(valid.sum(1).tolist()) == set(range(1, 10))
    x = roots[valid]
    low, high = torch.tensor([-1500.0, -3000]), torch.tensor([2000.0, 2000])
    assert (x[:, :2] >= low).all() and (x[:, :2] <= high).all()
    assert ((x[:, :2].amin(0) - low) < 50).all() and ((high - x[:, :2].amax(0)) < 50).all()
    full = roots[valid.all(1)]
    assert abs(float(full[..., 2].std(1).mean()) - 50) < 5  # within a scene
    assert float(full[..., 2].mean(1).std()) > 300  # between scenes
    again = draw_roots(600, *SPACE, generator=torch.Generator().manual_seed(0))[0]
    assert torch.equal(roots, again)


def test_margins_fit_the_space_or_are_refused():
    assert fitting_margins(SPACE[0]) == MARGINS
    with pytest.raises(GeometryError, match="margins"):
        draw_roots(1, (4000.0, 4000, 1500), (0.0, 0, 800))
    roots, _ = draw_roots(50, (4000.0, 4000, 1500), (0.0, 0, 800), margins=fitting_margins((4000, 4000, 1500)), spread=0)
    assert (roots[..., :2].abs() <= 2000).all() and (roots[..., 2] <= 1550).all()


def test_noise_is_added_cell_by_cell_and_cut():
    cameras = tiny.rig(3).to(torch.float32)
    roots, valid = draw_roots(4, (4000.0, 4000, 1500), (0.0, 0, 800), margins=fitting_margins((4000, 4000, 1500)))
    A = torch.tensor([[0.25, 0, 0], [0, 0.25, 0]]).expand(4, 3, 2, 3)
    cams = cameras[None].expand(4, 3)
    clean = root_heatmaps(roots, valid, cams, A, (40, 30), noise=0)
    noisy = root_heatmaps(roots, valid, cams, A, (40, 30), generator=torch.Generator().manual_seed(1))
    again = root_heatmaps(roots, valid, cams, A, (40, 30), generator=torch.Generator().manual_seed(1))
    assert torch.equal(noisy, again) and noisy.min() == 0 and noisy.max() <= 1
    middle = (clean > 0.2) & (clean < 0.8)
    assert abs(float((noisy - clean)[middle].std()) - 0.02) < 0.004
