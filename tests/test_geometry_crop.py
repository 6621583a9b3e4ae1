"""Crop affines against EpipolarPose's recorded crops (points, labels and pixels), and the algebra of affines."""

import cv2
import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.crop import compose, crop_affine, invert, letterbox_affine, longer_side, scale_affine, transform_points
from tests.conftest import golden

FLIP_PAIRS_H36M = [(1, 4), (2, 5), (3, 6), (14, 11), (15, 12), (16, 13)]


def crop_data() -> dict:
    return golden("epipolarpose", "crop_affine")


def test_golden_forward_inverse_and_points():
    g = {k: torch.from_numpy(v) for k, v in crop_data().items() if v.dtype.kind in "fi"}
    box, patch = g["box_cx_cy_w_h"], torch.stack([g["patch_w"], g["patch_h"]], -1)
    A = crop_affine(box[:, :2], box[:, 2:], patch, g["scale"], g["rot_deg"])
    assert A.shape == (12, 2, 3) and A.dtype == torch.float64
    torch.testing.assert_close(transform_points(A, g["pts"]), g["pts_fwd"], atol=1e-3, rtol=0)
    torch.testing.assert_close(A, g["fwd"], atol=1e-3, rtol=0)
    torch.testing.assert_close(invert(A), g["inv"], atol=1e-3, rtol=0)
    xy = g["patch_xyz"][..., :2]
    augmented = transform_points(invert(A), xy)
    torch.testing.assert_close(augmented, g["image_xyz_with_scale_rot"][..., :2], atol=1e-3, rtol=0)
    plain = transform_points(invert(crop_affine(box[:, :2], box[:, 2:], patch)), xy)
    torch.testing.assert_close(plain, g["image_xyz"][..., :2], atol=1e-3, rtol=0)


def test_golden_centre_scale_affine_of_simple_baselines():
    """A person of `scale` fills a width of 200 scale px; recorded for maps of 64x64 and, for the way back, 64x48."""
    g = crop_data()
    center, side, rot = torch.from_numpy(g["cs_center"]), torch.from_numpy(g["cs_scale"][:, :1] * 200), g["cs_rot"]
    square = crop_affine(center, side * torch.tensor([1.0, 1.0]), [64, 64], rot_deg=rot)
    np.testing.assert_allclose(square.numpy(), g["cs_fwd"], atol=1e-3)
    wide = crop_affine(center, side * torch.tensor([1.0, 0.75]), [64, 48], rot_deg=rot)
    np.testing.assert_allclose(invert(wide).numpy(), g["cs_inv"], atol=1e-3)


@pytest.mark.parametrize("case", ["plain", "aug", "flip"])
def test_golden_samples(case):
    """The reference mirrors the whole image before it crops; ours is one affine. Same labels, same pixels."""
    g = crop_data()
    scale, rot, flip, *color = g[f"sample_{case}_params"]
    box, (w, h) = g["sample_box_cx_cy_w_h"], g["sample_patch_wh"]
    A = crop_affine(torch.from_numpy(box[:2]), torch.from_numpy(box[2:]), (w, h), scale, rot, bool(flip))
    x = transform_points(A, torch.from_numpy(g["img_joints"][:, :2])).numpy()
    z = g["img_joints"][:, 2:] / (2000 * scale)
    label = np.concatenate([x / (w, h) - 0.5, z], -1)
    if flip:
        order = np.arange(17)
        for a, b in FLIP_PAIRS_H36M:
            order[[a, b]] = b, a
        label = label[order]
    np.testing.assert_allclose(label.reshape(-1), g[f"sample_{case}_label"], atol=1e-5)

    patch = cv2.warpAffine(g["img_bgr"], A.numpy(), (int(w), int(h)), flags=cv2.INTER_LINEAR)[..., ::-1]
    patch = np.clip(patch * np.array(color), 0, 255)
    patch = (patch - (123.675, 116.280, 103.530)) / (58.395, 57.120, 57.375)
    assert np.abs(patch.transpose(2, 0, 1) - g[f"sample_{case}_patch"]).max() < 0.06


def test_golden_flip_of_joints_is_the_mirror_of_the_affine():
    g, width = crop_data(), 1000
    x, mirrored = torch.from_numpy(g["flip_in"][:, :2]), g["flip_out"][:, :2].copy()
    for a, b in FLIP_PAIRS_H36M:
        mirrored[[a, b]] = mirrored[[b, a]]  # undo the label swap, keep the mirrored place
    box = dict(box=[400.0, 500.0], patch=[192, 256], scale=0.9, rot_deg=33.0)
    ours = transform_points(crop_affine([350.0, 420.0], flip=True, **box), x.float())
    theirs = transform_points(crop_affine([width - 1 - 350.0, 420.0], **box), torch.from_numpy(mirrored).float())
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(), (2,), (1, 2)])
def test_shapes_broadcast(shape):
    center = torch.rand(*shape, 2) * 100 + 200
    A = crop_affine(center, [300.0, 200.0], (64, 96), flip=torch.zeros(shape, dtype=torch.bool))
    assert A.shape == (*shape, 2, 3) and A.dtype == torch.float32
    middle = transform_points(A, center[..., None, :])
    torch.testing.assert_close(middle, torch.tensor([32.0, 48.0]).expand(*shape, 1, 2))
    A = crop_affine([1.0, 2.0], [3.0, 4.0], (5, 6), scale=torch.ones(3, 1), rot_deg=torch.zeros(4))
    assert A.shape == (3, 4, 2, 3)


def test_rules_differ_by_the_pixel_centre():
    """Halving a 8x8 image: `scale` keeps pixel 0 at 0; `half_pixel` keeps the outer pixel edges together."""
    edges = torch.tensor([[-0.5, -0.5], [7.5, 7.5]])
    halved = transform_points(crop_affine([3.5, 3.5], [8.0, 8.0], [4, 4], rule="half_pixel"), edges)
    torch.testing.assert_close(halved, torch.tensor([[-0.5, -0.5], [3.5, 3.5]]))
    torch.testing.assert_close(transform_points(scale_affine((4, 4), (8, 8), "half_pixel"), edges), halved)
    scaled = transform_points(crop_affine([4.0, 4.0], [8.0, 8.0], [4, 4]), torch.tensor([[0.0, 0.0], [6.0, 2.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[0.0, 0.0], [3.0, 1.0]]))
    torch.testing.assert_close(transform_points(scale_affine((4, 4), (8, 8)), torch.tensor([[6.0, 2.0]])), scaled[1:])


@pytest.mark.parametrize("rule, last", [("scale", 64.0), ("half_pixel", 63.0)])
def test_mirror_in_the_patch(rule, last):
    A, M = (crop_affine([100.0, 90.0], [80.0, 80.0], [64, 64], flip=f, rule=rule) for f in (False, True))
    x = torch.rand(5, 2) * 80 + 50
    a, m = transform_points(A, x), transform_points(M, x)
    torch.testing.assert_close(m, torch.stack([last - a[:, 0], a[:, 1]], -1), atol=1e-4, rtol=0)


def test_rotation_turns_the_box_clockwise_in_the_image():
    A = crop_affine([0.0, 0.0], [2.0, 2.0], [2, 2], rot_deg=90.0)
    below = transform_points(A, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(below, torch.tensor([[2.0, 1.0]]))  # what lay below the centre now lies on its right


def test_compose_and_invert():
    rng = torch.Generator().manual_seed(1)
    A, B = (crop_affine(torch.rand(3, 2, generator=rng) * 50, [90.0, 60.0], [64, 64], rot_deg=r) for r in (20.0, -70.0))
    x = torch.rand(3, 4, 2, generator=rng) * 100
    both = transform_points(compose(A, B), x)
    torch.testing.assert_close(both, transform_points(A, transform_points(B, x)), atol=1e-4, rtol=1e-5)
    identity = torch.eye(2, 3).expand(3, 2, 3)
    torch.testing.assert_close(compose(invert(A), A), identity, atol=1e-4, rtol=0)
    assert invert(torch.zeros(2, 3)).isfinite().logical_not().any()


def test_gradients():
    center, box, rot = (torch.tensor(v).double().requires_grad_() for v in ([50.0, 60.0], [20.0, 30.0], 12.0))
    assert torch.autograd.gradcheck(lambda c, b, r: crop_affine(c, b, (8, 8), 1.1, r, True), (center, box, rot))
    A = crop_affine(center, box, (8, 8)).detach().requires_grad_()
    x = torch.rand(3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda A, x: transform_points(invert(compose(A, A)), x), (A, x))


def test_wrong_input():
    for wrong in (
        lambda: crop_affine([1.0, 2.0], [0.0, 3.0], (4, 4)),
        lambda: crop_affine([1.0, 2.0], [float("nan"), 3.0], (4, 4)),
        lambda: crop_affine([1.0, 2.0, 3.0], [2.0, 3.0], (4, 4)),
        lambda: crop_affine([1.0, 2.0], [2.0, 3.0], (4, 4), rule="centre"),
        lambda: scale_affine((4, 4), (8, 8), rule="centre"),
        lambda: transform_points(torch.zeros(3, 3), torch.zeros(5, 2)),
        lambda: transform_points(torch.zeros(2, 3), torch.zeros(5, 3)),
    ):
        with pytest.raises(GeometryError):
            wrong()


def test_the_whole_image_lies_centred_in_the_patch():
    A = letterbox_affine([[200, 100], [50, 100]], (64, 32))
    corners = torch.tensor([[[0.0, 0.0], [200.0, 100.0]], [[0.0, 0.0], [50.0, 100.0]]])
    expected = torch.tensor([[[0.0, 0.0], [64.0, 32.0]], [[24.0, 0.0], [40.0, 32.0]]])
    torch.testing.assert_close(transform_points(A, corners).float(), expected)
    turned = letterbox_affine(torch.tensor([200, 100]), (64, 32), scale=2.0, flip=True)
    torch.testing.assert_close(transform_points(turned, corners[0]).float(), torch.tensor([[48.0, 8.0], [16.0, 24.0]]))


def test_the_longer_side_is_that_of_known_joints():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0]]).expand(4, 3, 2)
    known = torch.tensor([[True, True, True], [True, True, False], [False, True, False], [False, False, False]])
    assert longer_side(x, known).tolist() == [100, 4, 0, 0]
