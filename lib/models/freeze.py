"""Networks that will not be trained any more: batch norms folded, weights in the format they are used in, compiled as constants."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.backbone.resnet import ResNetTrunk
from lib.models.hourglass import Hourglass, Residual
from lib.models.pose_machine import ResNetFeatures

# Modules that call bn<N> on the output of conv<N>, and on nothing else; in an nn.Sequential neighbours are such a pair.
NUMBERED = (ResNetTrunk, BasicBlock, Bottleneck)
PAIRS = {
    Hourglass: (("conv1_", "bn1"),),
    Residual: (("conv1", "bn1"), ("conv2", "bn2")),
    ResNetFeatures: (("squeeze", "squeeze_norm"),),
}


def freeze(
    model: nn.Module, dtype: torch.dtype | None = None, compiled: bool = False, called: Sequence[nn.Module] | None = None
) -> None:
    """Prepares a network, in place, for predictions alone; the same numbers to rounding, in less time.

    Each batch norm behind a convolution becomes part of its weights. The result can be neither trained nor saved as a checkpoint:
    its weights have other names and values.

    Args:
        model: on its device, in its memory format, with its final weights.
        dtype: what the forward passes will run in under autocast (AMP): convolutions are then kept in it, instead of being converted
            at each pass; None = float32.
        compiled: torch.compile it with the weights as constants. The first forward passes take minutes, and have to run without
            gradients.
        called: the parts that are called one by one, which are what is compiled; None = the model itself is called.
    """
    model.eval()
    fold_batch_norms(model)
    if dtype is not None:
        for module in model.modules():
            if isinstance(module, _ConvNd):  # only these: other layers may keep out of autocast's reach
                module.to(dtype)
    if compiled:
        for module in [model] if called is None else called:
            module.compile(options={"freezing": True})


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Batch norms that directly follow a convolution become part of its weights, and an identity in their place; says how many.

    Equation: w' = w g / sqrt(var + eps), b' = (b - mean) g / sqrt(var + eps) + beta, with the running statistics.
    """
    uses = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    folded = 0
    for parent in list(model.modules()):
        for conv_name, bn_name in _pairs(parent):
            conv, bn = parent.get_submodule(conv_name), parent.get_submodule(bn_name)
            if not isinstance(conv, _ConvNd) or not isinstance(bn, _BatchNorm) or bn.running_var is None:
                continue
            if uses[id(conv)] > 1 or uses[id(bn)] > 1:  # shared with a place that has another one
                continue
            transposed = isinstance(conv, _ConvTransposeNd)
            if transposed and conv.groups > 1:  # output channels lie in two axes of the weights
                continue
            statistics = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
            weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics, transpose=transposed)
            conv.weight.copy_(weight)  # in place: it keeps its memory format
            conv.bias = nn.Parameter(bias.detach())
            setattr(parent, bn_name, nn.Identity())
            folded += 1
    return folded


def _pairs(parent: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of two children of which the second is called on the output of the first."""
    if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
        names = [name for name, _ in parent.named_children()]
        yield from zip(names, names[1:], strict=False)
    if isinstance(parent, NUMBERED):
        yield from ((f"conv{n}", f"bn{n}") for n in (1, 2, 3) if hasattr(parent, f"conv{n}"))
    for kind, names in PAIRS.items():
        if isinstance(parent, kind):
            yield from names
