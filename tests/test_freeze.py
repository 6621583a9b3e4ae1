"""Frozen networks say what they said before."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.models.freeze import fold_batch_norms, freeze
from lib.models.hourglass import Hourglass
from lib.models.pose_machine import ResNetFeatures
from lib.models.pose_resnet import PoseResNet
from lib.models.v2v import V2VNet


def lived(model: nn.Module) -> nn.Module:
    """Weights and statistics that leave no batch norm without effect."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for value in (module.running_mean, module.bias):
                nn.init.uniform_(value, -1, 1)
            for value in (module.running_var, module.weight):
                nn.init.uniform_(value, 0.5, 2)
        elif getattr(module, "weight", None) is not None and module.weight.ndim > 2:
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    return model.eval()


def flat(output) -> torch.Tensor:
    """All tensors of an output in one."""
    if torch.is_tensor(output):
        return output.flatten()
    return torch.cat([flat(part) for part in output if part is not None])


NETWORKS = {  # network, input, batch norms that stay: those that are not called on a convolution's output
    "basic blocks": (lambda: PoseResNet(18, 3, depth_bins=4, deconv_filters=(8, 8, 8), deconv_bias=True), (2, 3, 64, 64), 0),
    "bottlenecks": (lambda: PoseResNet(50, 3, "heatmap_depth", 4, (8, 8), (4, 4), stages=3), (1, 3, 32, 32), 0),
    "volumes": (lambda: V2VNet(2, 2), (1, 2, 8, 8, 8), 0),
    "features of clips": (lambda: ResNetFeatures(8, 18, 2, (8,), (4,)), (2, 3, 64, 64), 0),
    "hourglass": (lambda: Hourglass(3, 1, 1, 8), (1, 3, 64, 64), 17),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_folded_networks_say_the_same(name):
    make, shape, stay = NETWORKS[name]
    model, x = lived(make()), torch.randn(shape)
    frozen = copy.deepcopy(model)
    norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
    assert fold_batch_norms(frozen) == norms - stay
    assert sum(isinstance(m, _BatchNorm) for m in frozen.modules()) == stay
    expected = flat(model(x))
    torch.testing.assert_close(flat(frozen(x)), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


@torch.no_grad()
def test_weights_keep_their_memory_format():
    model = lived(PoseResNet(18, 3, "heatmap", deconv_filters=(8,), deconv_kernels=(4,))).to(memory_format=torch.channels_last)
    freeze(model)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_convolutions_are_kept_in_the_format_of_autocast():
    model = lived(PoseResNet(18, 3, "heatmap_depth", 4, deconv_filters=(8,), deconv_kernels=(4,)))
    frozen, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    freeze(frozen, torch.bfloat16)
    assert frozen.conv1.weight.dtype == torch.bfloat16 and frozen.depth_fc.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = flat(frozen(x)).float(), flat(model(x)).float()
    torch.testing.assert_close(found, expected, atol=0.05 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("parts", [None, (0, 2)])
def test_what_is_called_is_what_is_compiled(monkeypatch, parts):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, options: compiled.append(self))
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    called = None if parts is None else [model[i] for i in parts]
    freeze(model, compiled=True, called=called)
    assert compiled == ([model] if called is None else called)


@torch.no_grad()
def test_what_is_shared_or_out_of_order_is_left_alone():
    class Odd(nn.Sequential):
        def forward(self, x):
            return self[0](self[1](x))

    conv, norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    for model in (
        Odd(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),  # the norm comes first
        nn.Sequential(conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)),
    ):
        assert fold_batch_norms(model.eval()) == 0
