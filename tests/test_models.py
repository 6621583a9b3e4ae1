"""Networks: recorded outputs and names of the published ones, every parameter trained, arguments that make no sense."""

import re

import pytest
import torch

from lib.errors import ConfigError
from lib.geometry.heatmap import soft_argmax
from lib.models import MODELS
from lib.models.pose_resnet import HEADS, PoseResNet
from lib.registry import resolve
from tests.conftest import golden, golden_json, recorded_state

NETWORKS = {case["case"]: case for case in golden_json("epipolarpose", "networks")["networks"]}


def factor(key: str, inputs: int) -> float:
    """Of networks.json: heads that soft-argmax reads are sharp."""
    return (20 if key in ("final_layer.weight", "depth_fc.weight") else 1) / inputs**0.5


def recorded_network(case: dict) -> PoseResNet:
    head = "volume" if case["volume"] else "heatmap_depth"
    return PoseResNet(case["layers"], case["joints"], head, case["depth_bins"]).eval()


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_published_networks(name):
    case, z = NETWORKS[name], golden("epipolarpose", name)
    model = recorded_network(case)
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == case["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == case["n_params"]

    model.load_state_dict(recorded_state(model, factor))
    image = torch.randn(case["input"]["shape"], generator=torch.Generator().manual_seed(case["input"]["seed"]))
    torch.testing.assert_close(image.flatten()[:8], torch.from_numpy(z["input_head"]), rtol=0, atol=0)
    with torch.no_grad():
        output = model(image)
    maps, depth = (output, None) if case["volume"] else output
    channels, rows, columns = (int(n) for n in re.findall(r"::(\d+)", case["subsample"]))
    subset = (maps.flatten(1, 2) if case["volume"] else maps)[:, ::channels, ::rows, ::columns]
    torch.testing.assert_close(subset, torch.from_numpy(z["heatmap_sub"]), rtol=1e-3, atol=1e-3)
    if case["volume"]:
        joints = soft_argmax(maps, 3) / 64 - 0.5
        torch.testing.assert_close(joints, torch.from_numpy(z["softargmax_norm"]), rtol=0, atol=1e-4)
    else:
        torch.testing.assert_close(depth.flatten(1), torch.from_numpy(z["depth"]), rtol=1e-3, atol=1e-3)
        bins = torch.arange(64, dtype=torch.float64)
        depth_mm = ((depth.double().softmax(-1) * bins).sum(-1) / 64 - 0.5) * 2000
        torch.testing.assert_close(depth_mm, torch.from_numpy(z["depth_mm"]), rtol=0, atol=0.1)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(head):
    model = resolve(MODELS, "pose3d_resnet", key="MODEL.NAME")(18, 5, head, depth_bins=6, deconv_filters=(16, 16, 16))
    output = model(torch.randn(2, 3, 64, 96))
    maps = output[0] if isinstance(output, tuple) else output
    expected = {"volume": (2, 5, 6, 16, 24), "heatmap": (2, 5, 16, 24), "heatmap_depth": (2, 5, 16, 24)}
    assert maps.shape == expected[head]
    if head == "heatmap_depth":
        assert output[1].shape == (2, 5, 6)
        (output[0].square().sum() + output[1].square().sum()).backward()
    else:
        output.square().sum().backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("layers", [18, 34, 50, 101, 152])
def test_trunks_have_torchvision_names_and_sizes(layers):
    import torchvision

    with torch.device("meta"):
        ours = PoseResNet(layers, 17).state_dict()
        theirs = getattr(torchvision.models, f"resnet{layers}")().state_dict()
    trunk = {key: value.shape for key, value in ours.items() if key.startswith(("conv1", "bn1", "layer"))}
    assert trunk == {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}


def test_head_starts_as_published():
    model = PoseResNet(18, 17, depth_bins=8, deconv_bias=True)
    for weight in (model.deconv_layers[0].weight, model.deconv_layers[6].weight, model.final_layer.weight):
        assert weight.std().item() == pytest.approx(1e-3, rel=0.02)
        assert weight.mean().item() == pytest.approx(0, abs=1e-5)
    assert (model.final_layer.bias == 0).all() and (model.deconv_layers[3].bias == 0).all()
    assert (model.deconv_layers[1].weight == 1).all() and (model.deconv_layers[1].bias == 0).all()


@pytest.mark.parametrize("kernels", [(4, 3, 2), (4, 4), (2,)])
@pytest.mark.parametrize("final", [1, 3])
def test_each_deconvolution_doubles_the_maps(kernels, final):
    model = PoseResNet(18, 3, "heatmap", deconv_filters=(8,) * len(kernels), deconv_kernels=kernels, final_kernel=final)
    size = 2 * 2 ** len(kernels)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3, size, size)


def test_channels_last_and_bfloat16_give_the_same_volume():
    model = PoseResNet(18, 4, depth_bins=8, deconv_filters=(16, 16, 16)).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(image)
        last = model.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(image)
    assert half.dtype == torch.bfloat16 and torch.corrcoef(torch.stack([half.flatten(), plain.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 20}, "NUM_LAYERS.*18, 34, 50, 101, 152"),
        ({"head": "volumetric"}, "MODEL.HEAD.*volume, heatmap, heatmap_depth"),
        ({"deconv_kernels": (5, 4, 4)}, "NUM_DECONV_KERNELS.*5"),
        ({"deconv_filters": (256, 256)}, "2 NUM_DECONV_FILTERS and 3"),
        ({"final_kernel": 2}, "FINAL_CONV_KERNEL"),
        ({"joints": 0}, "NUM_JOINTS"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PoseResNet(**arguments)
