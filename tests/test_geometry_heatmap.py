"""Heatmaps: soft-argmax against a plain twin and recorded values, decoding, rendering, units."""

import math

import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry import heatmap
from lib.geometry.crop import crop_affine, invert, transform_points
from lib.geometry.heatmap import (
    cells_from_patch,
    decode_heatmap,
    patch_from_cells,
    render_heatmaps,
    soft_argmax,
    touches_map,
)
from tests.conftest import golden


def twin(logits: torch.Tensor, dims: int) -> torch.Tensor:
    """The defining formula: softmax, one sum per axis, expected index."""
    p = logits.flatten(-dims).softmax(-1).reshape(logits.shape)
    coords = []
    for axis in range(-1, -dims - 1, -1):
        others = [a for a in range(-dims, 0) if a != axis]
        marginal = p.sum(others) if others else p
        coords.append((marginal * torch.arange(logits.shape[axis], dtype=p.dtype)).sum(-1))
    return torch.stack(coords, -1)


@pytest.mark.parametrize("lead", [(1,), (5,), (2, 5), (1, 2, 3)])
@pytest.mark.parametrize("size", [(6,), (4, 3), (1, 7), (4, 5, 6), (3, 1, 2)])
def test_soft_argmax_equals_the_plain_form(lead, size):
    shape, dims = (*lead, *size), len(size)
    logits = torch.randn(shape, dtype=torch.float64) * 3
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = soft_argmax(a, dims), twin(b, dims)
    assert found.shape == (*shape[:-dims], dims)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("block", [1, 60, 130, 1 << 18])
def test_soft_argmax_does_not_depend_on_blocks_or_memory_layout(monkeypatch, block):
    monkeypatch.setattr(heatmap, "CPU_BLOCK", block)
    joints, depth = 5, 4
    flat = torch.randn(3, joints * depth, 3, 5)
    expected = twin(flat.unflatten(1, (joints, depth)), 3)
    layouts = {
        "contiguous": flat,
        "channels last": flat.contiguous(memory_format=torch.channels_last),
        "part of a larger tensor": torch.cat([flat, flat], -1)[..., :5],
        "expanded": flat[:1].expand(3, -1, -1, -1),
    }
    for name, values in layouts.items():
        a, b = (values.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2))
        found, reference = (f(x.unflatten(1, (joints, depth)), 3) for f, x in ((soft_argmax, a), (twin, b)))
        if name != "expanded":
            torch.testing.assert_close(found, expected, msg=name)
        torch.testing.assert_close(found, reference, msg=name)
        found.square().sum().backward()
        reference.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_soft_argmax_gradcheck_and_score():
    logits = (torch.randn(2, 2, 3, 4, 2).double() * 2).requires_grad_()
    assert torch.autograd.gradcheck(soft_argmax, logits)
    coords, score = soft_argmax(logits, score=True)
    assert not score.requires_grad and coords.requires_grad
    torch.testing.assert_close(score, logits.flatten(2).softmax(-1).amax(-1).detach())
    torch.testing.assert_close(decode_heatmap(logits[:, :, 0], "soft")[0], twin(logits[:, :, 0], 2))


def test_soft_argmax_is_float32_under_autocast_and_for_half_types():
    logits = (torch.randn(2, 3, 6, 8, 8) * 4).bfloat16()
    expected = twin(logits.float(), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(soft_argmax(logits), expected)
    a, b = logits.clone().requires_grad_(), logits.float().requires_grad_()
    soft_argmax(a).sum().backward()
    twin(b, 3).sum().backward()
    assert a.grad.dtype == torch.bfloat16
    torch.testing.assert_close(a.grad.float(), b.grad, atol=1e-3, rtol=1e-2)


def test_soft_argmax_gives_the_gradient_again_but_no_second_derivative():
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    coords = soft_argmax(logits)
    first, second = (torch.autograd.grad(coords.square().sum(), logits, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)
    (slope,) = torch.autograd.grad(coords.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_soft_argmax_of_huge_and_lonely_logits():
    logits = torch.full((1, 1, 4, 6, 5), -1e4)
    logits[0, 0, 1, 2, 3] = 1e4
    coords, score = soft_argmax(logits.requires_grad_(), score=True)
    assert coords.tolist() == [[[3.0, 2.0, 1.0]]] and score.item() == 1
    coords.sum().backward()
    assert logits.grad.eq(0).all()
    assert soft_argmax(torch.zeros(0, 17, 4, 4)).shape == (0, 17, 2)


def test_soft_argmax_with_beta_is_that_of_scaled_logits():
    a = (torch.randn(2, 3, 5, 6, 7) * 3).requires_grad_()  # times 20: most cells are far below any share
    b = a.detach().clone().requires_grad_()
    found, expected = soft_argmax(a, beta=20.0), twin(b * 20, 3)
    torch.testing.assert_close(found, expected)
    weight = torch.rand_like(found)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    with pytest.raises(GeometryError, match="beta"):
        soft_argmax(a, beta=0.0)


def test_soft_argmax_beside_torch_compile():
    def head(x):
        return soft_argmax(x * 2, 2) + 1

    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(torch.compile(head, backend="eager")(x), twin(x * 2, 2) + 1)


def test_soft_argmax_refuses_what_is_no_map():
    for logits, dims in ((torch.zeros(4), 1), (torch.zeros(2, 3, 4), 0), (torch.zeros(2, 3, 4).long(), 1)):
        with pytest.raises(GeometryError):
            soft_argmax(logits, dims)


def test_golden_soft_argmax_in_patch_units():
    g = golden("epipolarpose", "softargmax_losses")
    volume = torch.from_numpy(g["vol_cubic"]).reshape(2, 3, 8, 8, 8)
    for patch in ((256, 256), (192, 384)):
        x = patch_from_cells(soft_argmax(volume), patch, (8, 8, 8))
        np.testing.assert_allclose(x.numpy(), g["patch_result_{}x{}".format(*patch)][..., :3], rtol=1e-5, atol=1e-3)
    volume = torch.from_numpy(g["vol_rect_J4_D5_H6_W7"]).reshape(2, 4, 5, 6, 7)
    norm = soft_argmax(volume) / torch.tensor([7.0, 6.0, 5.0]) - 0.5
    np.testing.assert_allclose(norm.reshape(2, 12).numpy(), g["norm_rect"], atol=1e-5)
    line = soft_argmax(torch.from_numpy(g["softargmax1d_in"]), 1)
    np.testing.assert_allclose(line[:, 0].numpy(), g["softargmax1d_out"], rtol=1e-5)


def test_golden_decoding():
    g = golden("epipolarpose", "heatmap_pckh")
    hm = torch.from_numpy(g["heatmaps"])
    cells, score = decode_heatmap(hm, "argmax")
    np.testing.assert_allclose(cells.numpy(), g["max_preds"], atol=1e-5)
    np.testing.assert_allclose(score.numpy(), g["max_vals"][..., 0], atol=1e-5)
    side = torch.from_numpy(g["scale"][:, :1]) * 200
    hm_from_img = crop_affine(torch.from_numpy(g["center"]), side * torch.tensor([1.0, 24 / 18]), (18, 24))
    for method, name in (("argmax", "final_preds_no_post"), ("quarter", "final_preds")):
        x_img = transform_points(invert(hm_from_img), decode_heatmap(hm, method)[0])
        np.testing.assert_allclose(x_img.numpy(), g[name], rtol=1e-5, atol=1e-2)  # float32 affines there


def test_decoding_finds_the_rendered_place():
    x = torch.rand(5, 17, 2) * torch.tensor([40.0, 30.0]) + 8
    hm = render_heatmaps(x, torch.ones(5, 17), (56, 46), sigma=2.0, cut=None)
    error = {m: (decode_heatmap(hm, m)[0] - x).abs().max().item() for m in ("argmax", "quarter", "dark")}
    assert error["argmax"] <= 0.5 and error["quarter"] <= 0.26 and error["dark"] < 0.02, error
    soft, _ = decode_heatmap((hm + 1e-12).log() * 1.0, "soft")
    assert (soft - x).abs().max() < 0.05


def test_dark_survives_noise_borders_and_empty_maps():
    hm = torch.rand(2, 3, 12, 9)
    hm[0, 0] = 0
    hm[1, 2] = 0
    hm[1, 2, 0, 8] = 1
    cells, score = decode_heatmap(hm, "dark")
    assert cells.isfinite().all() and cells[0, 0].tolist() == [0, 0] and score[0, 0] == 0
    assert cells[1, 2].tolist() == [8, 0]
    assert (cells - decode_heatmap(hm, "argmax")[0]).abs().max() <= 1


def test_wrong_decoding():
    with pytest.raises(GeometryError, match="quarter"):
        decode_heatmap(torch.zeros(4, 4), "halves")
    with pytest.raises(GeometryError):
        decode_heatmap(torch.zeros(4))


def test_render_by_hand():
    x = torch.tensor([[2.0, 1.0], [float("nan"), 3.0], [2.4, 1.6]])
    hm = render_heatmaps(x, torch.tensor([True, False, True]), (6, 4), sigma=1.0)
    assert hm.shape == (3, 4, 6)
    assert hm[0, 1, 2] == 1 and hm[1].eq(0).all()
    for (col, row), expected in {(3, 1): math.exp(-0.5), (3, 3): math.exp(-2.5), (5, 1): math.exp(-4.5)}.items():
        assert hm[0, row, col].item() == pytest.approx(expected)
    assert hm[2, 2, 2].item() == pytest.approx(math.exp(-0.5 * (0.4**2 + 0.4**2)))
    snapped = render_heatmaps(x[2:], torch.ones(1), (6, 4), sigma=1.0, snap=True)
    assert snapped[0, 2, 2] == 1
    wide = render_heatmaps(torch.tensor([[0.0, 0.0]]), torch.ones(1), (9, 9), sigma=1.0)
    assert wide[0, 0, 3] > 0 and wide[0, 0, 4] == 0
    full = render_heatmaps(torch.tensor([[0.0, 0.0]]), torch.ones(1), (9, 9), sigma=1.0, cut=None)
    assert full[0, 0, 4].item() == pytest.approx(math.exp(-8))


@pytest.mark.parametrize("shape", [(), (2,), (1, 2)])
def test_render_shapes_and_gradient(shape):
    x = (torch.rand(*shape, 3, 2).double() * 6).requires_grad_()
    valid = torch.rand(*shape, 3) > 0.3
    assert render_heatmaps(x, valid, (7, 5), 1.5).shape == (*shape, 3, 5, 7)
    assert torch.autograd.gradcheck(lambda x: render_heatmaps(x, valid, (7, 5), 1.5, cut=None), x)


def test_touches_map():
    x = torch.tensor([[-6.4, 5.0], [-6.6, 5.0], [9.4, 5.0], [15.6, 5.0], [5.0, float("nan")]])
    assert touches_map(x, (10, 10), reach=6).tolist() == [True, False, True, False, False]


@pytest.mark.parametrize("rule", ["scale", "half_pixel"])
def test_units_there_and_back(rule):
    cells = torch.rand(4, 17, 3) * 30
    x = patch_from_cells(cells, (192, 256), (48, 64, 32), rule)
    torch.testing.assert_close(cells_from_patch(x, (192, 256), (48, 64, 32), rule), cells, atol=1e-4, rtol=1e-5)
    flat = patch_from_cells(cells[..., :2], (192, 256), (48, 64), rule)
    torch.testing.assert_close(flat, x[..., :2])


def test_units_by_hand():
    x = patch_from_cells(torch.tensor([[10.0, 20.0, 32.0], [0.0, 0.0, 0.0]]), (256, 256), (64, 64, 64))
    assert x.tolist() == [[40.0, 80.0, 0.0], [0.0, 0.0, -128.0]]  # bin 32 of 64 is the root's depth
    x = patch_from_cells(torch.tensor([[0.0, 63.0]]), (256, 256), (64, 64), "half_pixel")
    assert x.tolist() == [[1.5, 253.5]]
    for axes, shape, rule in ((2, (8, 8, 8), "scale"), (3, (8, 8), "scale"), (2, (8, 8), "x")):
        with pytest.raises(GeometryError):
            patch_from_cells(torch.zeros(axes), (64, 64), shape, rule)
