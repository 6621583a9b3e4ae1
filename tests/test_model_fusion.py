"""The networks of 2D + 3D fusion: recorded outputs and names of the release, every parameter trained, arguments that make no sense."""

import hashlib
import re

import pytest
import torch

from lib.errors import ConfigError
from lib.geometry.heatmap import soft_argmax
from lib.models import MODELS
from lib.models.fusion import FusionNet, Maps
from lib.models.hourglass import Hourglass
from lib.registry import resolve
from tests.conftest import golden, golden_json, recorded_state

RECORDS = golden_json("weakly_supervised", "networks")
NETWORKS = {
    "msra_resnet50_hm_depth": lambda: FusionNet(16, 50),
    "msra_resnet18_hm17_rect": lambda: FusionNet(17, 18, depth=False),
    "hourglass2d_s2m1f64": lambda: Hourglass(16, 2, 1, 64),
    "hourglass3d_s2m2f256r2": lambda: Hourglass(16, 2, 2, 256, depth_modules=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks(name):
    record, z = RECORDS[name], golden("weakly_supervised", name)
    model = NETWORKS[name]().eval()
    lines = [f"{key} {list(value.shape)}" for key, value in model.state_dict().items()]  # names, shapes and their order
    assert len(lines) == record["tensors"] and hashlib.sha256("\n".join(lines).encode()).hexdigest() == record["state_dict_sha256"]

    model.load_state_dict(recorded_state(model, lambda key, inputs: (record["gain"] / inputs) ** 0.5))
    shape, seed = record["input"]
    with torch.no_grad():
        maps = model(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    stacks = {"hm": maps.hm} if isinstance(model, FusionNet) else {f"out{i}": hm for i, hm in enumerate(maps.stacks)}
    found = stacks if maps.depth is None else stacks | {"depth" if isinstance(model, FusionNet) else f"out{len(stacks)}": maps.depth}
    assert set(found) == set(record["outputs"]) and maps.hm is maps.stacks[-1]
    step = int(re.search(r"::(\d+)", record["subsample"])[1])
    for key, output in found.items():
        told, expected = record["outputs"][key], torch.from_numpy(z[key])
        assert list(output.shape) == told["shape"]
        subset = output[:, :, ::step, ::step] if output.ndim == 4 else output
        torch.testing.assert_close(subset, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        assert output.double().std(correction=0) == pytest.approx(told["std"], rel=1e-4)
        assert output.double().sum().item() == pytest.approx(told["sum"], abs=1e-5 * told["std"] * output.numel())
    if "argmax_flat" in z:
        assert maps.hm.flatten(2).argmax(-1).tolist() == z["argmax_flat"].tolist()


def small(name: str, **options) -> torch.nn.Module:
    network = resolve(MODELS, name, key="MODEL.NAME")
    if name == "fusion":
        return network(5, 18, deconv_filters=(16, 12), deconv_kernels=(4, 3), deconv_bias=True, stages=3, **options)
    return network(5, 2, 1, 8, image_size=(64, 128), **options)


@pytest.mark.parametrize(
    ("name", "options", "depth"),
    [
        ("fusion", {}, (2, 5, 32, 16)),
        ("fusion", {"depth": False}, None),
        ("hourglass", {}, None),
        ("hourglass", {"depth_modules": 1}, (2, 5)),
    ],
)
def test_every_parameter_gets_a_gradient(name, options, depth):
    model = small(name, **options)
    maps = model(torch.randn(2, 3, 128, 64))
    assert isinstance(maps, Maps) and maps.hm.shape == (2, 5, 32, 16) and len(maps.stacks) == (1 if name == "fusion" else 2)
    assert (maps.depth is None) == (depth is None) and (depth is None or maps.depth.shape == depth)
    loss = sum(hm.square().sum() for hm in maps.stacks)
    (loss if depth is None else loss + maps.depth.square().sum()).backward()
    # A convolution's bias has no effect where a batch norm follows: its gradient is the rounding of zero.
    biases = {f"{name}.bias" for name, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))}
    without = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not without - biases and all(p.grad is not None for p in model.parameters())


def test_networks_of_the_release_without_weights_start_flat():
    maps = FusionNet(4, 18, stages=3, deconv_filters=(8, 8), deconv_kernels=(4, 4)).eval()(torch.randn(1, 3, 64, 64))
    assert maps.hm.abs().max() < 0.01 and maps.depth.abs().max() < 0.01
    x = soft_argmax(maps.hm, 2)
    assert (x - 7.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"joints": 0}, "joints 0; expected at least 1"),
        ({"stacks": 0, "modules": 0}, "stacks 0, modules 0"),
        ({"depth_modules": 0}, "depth_modules 0"),
        ({"features": 7}, "7 features; expected an even number"),
        ({"image_size": (256, 200)}, "MODEL.IMAGE_SIZE: found 256 x 200; an hourglass takes multiples of 64"),
    ],
)
def test_hourglasses_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Hourglass(**{"features": 8, "modules": 1} | arguments)


def test_pictures_and_networks_that_do_not_fit():
    with pytest.raises(ConfigError, match="MODEL.NUM_JOINTS: found 0"):
        FusionNet(0)
    with pytest.raises(ConfigError, match="multiples of 64"):
        small("hourglass")(torch.zeros(1, 3, 96, 64))
    with pytest.raises(ConfigError, match="64 x 64, but the depth module is made for 64 x 128"):
        small("hourglass", depth_modules=1)(torch.zeros(1, 3, 64, 64))
    assert small("hourglass").eval()(torch.zeros(1, 3, 64, 192)).hm.shape == (1, 5, 16, 48)  # without depth any multiple
