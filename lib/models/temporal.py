"""The temporal convolutions of VideoPose3D (Pavllo et al., CVPR 2019): 2D keypoints of a clip -> 3D joints of its frames.

One set of weights, three ways to run it. `TemporalModel.forward` slides over a clip (dilated convolutions), for long sequences and for
training on chunks. `TemporalModel.single` computes isolated windows, only what one output frame of each needs (strided convolutions):
15 times less work in training with 243 frames. `TemporalModel.stream` takes a frame at a time and keeps what earlier ones gave.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lib.errors import ConfigError, DataError, RunError

_FEWEST_IMAGES = 16  # PyTorch gives 1x1 convolutions of fewer images to its slow path when there is one thread


class TemporalModel(nn.Module):
    """Keypoints (B,T,J_in,F) in screen coordinates -> joints (B,T-RF+1,J_out,3) in metres, of the frame each window is about.

    With widths w_0 .. w_n-1 the window has RF = w_0 w_1 .. w_n-1 frames; its pose is that of the centre frame, or of the last one
    (causal). Nothing is padded inside: to get a pose for each frame, repeat the first frame `pad + shift` and the last one `pad - shift`
    times (`padded` does). State dicts have the names and shapes of VideoPose3D's. Causal and symmetric networks have the same shapes: a
    state dict of one loads into the other and gives wrong poses.

    Args:
        joints_in, features: J_in keypoints of F features each: x, y, and further ones such as a score.
        joints_out: J_out; 1 for the network that predicts the root's place.
        widths: frames under each filter, odd numbers; 1 everywhere = a network of single frames.
        causal: the pose of the window's last frame, from no later ones.
        dropout: share of activations set to zero in training.
        channels: C of all hidden layers.
        dense: filters over all frames of their span, instead of dilated ones with gaps (an ablation of the paper; many more weights).

    Raises:
        ConfigError: an even width, or another argument out of its range.
    """

    def __init__(
        self,
        joints_in: int = 17,
        features: int = 2,
        joints_out: int = 17,
        widths: Sequence[int] = (3, 3, 3),
        causal: bool = False,
        dropout: float = 0.25,
        channels: int = 1024,
        dense: bool = False,
    ):
        super().__init__()
        _check_arguments(joints_in, features, joints_out, widths, dropout, channels)
        self.joints_in, self.features, self.joints_out = joints_in, features, joints_out
        self.widths, self.causal, self.channels, self.dense = tuple(int(w) for w in widths), causal, channels, dense
        self.dropout = dropout
        self.receptive_field = math.prod(self.widths)
        self.pad = (self.receptive_field - 1) // 2
        self.shift = self.pad if causal else 0
        # In the order of published state dicts.
        self.expand_bn = nn.BatchNorm1d(channels)
        self.shrink = nn.Conv1d(channels, joints_out * 3, 1)
        self.expand_conv = nn.Conv1d(joints_in * features, channels, self.widths[0], bias=False)
        self.layers_conv, self.layers_bn = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(self.widths[1:], 1):
            gap = math.prod(self.widths[:i])
            kernel, dilation = ((width - 1) * gap + 1, 1) if dense else (width, gap)
            self.layers_conv.append(nn.Conv1d(channels, channels, kernel, dilation=dilation, bias=False))
            self.layers_conv.append(nn.Conv1d(channels, channels, 1, bias=False))
            self.layers_bn.extend([nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """A pose for every window of a clip.

        Args:
            x: (B,T,J_in,F) screen coordinates, T >= RF.

        Returns:
            (B,T-RF+1,J_out,3) m; row t is of frame t + pad + shift of x.

        Raises:
            DataError: another shape, or a clip shorter than a window.
        """
        self._check_input(x)
        if x.shape[1] < self.receptive_field:
            raise DataError(
                f"temporal model: clips have {x.shape[1]} frames, but a window has {self.receptive_field} (widths "
                f"{list(self.widths)}); repeat the first and last frame (TemporalModel.padded), or choose a smaller network"
            )
        if not self.dense and _is_full_precision_on_processor(x) and not _convolutions_are_faster(x):
            return self._as_products(x, isolated=False)
        h = self._activated(x.flatten(2).transpose(1, 2), self.expand_conv, self.expand_bn)
        for wide, wide_bn, point, point_bn in self._blocks():
            span = (wide.kernel_size[0] - 1) * wide.dilation[0]  # frames that this layer loses
            first = span if self.causal else span // 2
            kept = h[:, :, first : h.shape[2] - span + first]
            h = self._activated(h, wide, wide_bn)
            h = kept + self._activated(h, point, point_bn)
        return self.shrink(h).transpose(1, 2).unflatten(2, (self.joints_out, 3))

    def single(self, x: Tensor) -> Tensor:
        """A pose for each of m isolated windows that follow one another; equals `forward` on each, except for batch statistics.

        In training, batch norm sees only the activations that lead to the outputs. `forward` averages over more of them, so that the
        losses of the two differ slightly; published models were trained with this form.

        Args:
            x: (B,m RF,J_in,F) screen coordinates.

        Returns:
            (B,m,J_out,3) m.

        Raises:
            DataError: another shape, or a number of frames that is no multiple of RF.
            RunError: the network is dense: its filters look at all frames.
        """
        self._check_input(x)
        if self.dense:
            raise RunError("temporal model: isolated windows of a dense network (TEMPORAL.DENSE) are not cheaper; use forward")
        if x.shape[1] == 0 or x.shape[1] % self.receptive_field:
            raise DataError(
                f"temporal model: clips have {x.shape[1]} frames, expected a multiple of the {self.receptive_field} of a window "
                f"(widths {list(self.widths)}); cut windows of that length, or use forward"
            )
        return self._as_products(x, isolated=True)

    def padded(self, x: Tensor) -> Tensor:
        """A clip with its ends repeated, so that `forward` gives a pose for each of its frames.   (B,T,J,F) -> (B,T+RF-1,J,F)"""
        self._check_input(x)
        before, after = self.pad + self.shift, self.pad - self.shift
        parts = x[:, :1].expand(-1, before, -1, -1), x, x[:, -1:].expand(-1, after, -1, -1)
        return torch.cat(parts, 1)

    def stream(self) -> "Stream":
        """For frames that arrive one by one; holds a copy of the weights as they are now."""
        return Stream(self)

    def set_momentum(self, value: float) -> None:
        """The weight of the newest batch in the running statistics, in all batch norms; see `momentum`."""
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = value

    def _blocks(self) -> Iterator[tuple[nn.Conv1d, _BatchNorm, nn.Conv1d, _BatchNorm]]:
        convs, norms = list(self.layers_conv), list(self.layers_bn)
        for i in range(0, len(convs), 2):
            yield convs[i], norms[i], convs[i + 1], norms[i + 1]

    def _as_products(self, x: Tensor, isolated: bool) -> Tensor:
        """All layers as products of frames and channels: a row holds, tap by tap, what one filter position looks at.

        (B,T,J_in,F) -> (B,T',J_out,3)
        """
        rows = _rows(x.flatten(2), self.expand_conv, isolated)
        h = self._activated(rows, self.expand_conv, self.expand_bn, as_product=True)
        for wide, wide_bn, point, point_bn in self._blocks():
            rows = _rows(h, wide, isolated)
            tap = wide.kernel_size[0] - 1 if self.causal else wide.kernel_size[0] // 2
            kept = rows[:, :, tap * self.channels : (tap + 1) * self.channels]
            h = self._activated(rows, wide, wide_bn, as_product=True)
            h = kept + self._activated(h, point, point_bn, as_product=True)
        return F.linear(h, self.shrink.weight[:, :, 0], self.shrink.bias).unflatten(2, (self.joints_out, 3))

    def _activated(self, h: Tensor, conv: nn.Conv1d, bn: _BatchNorm, as_product: bool = False) -> Tensor:
        """Convolution, batch norm, ReLU, dropout.   (B,C,T) -> (B,C,T'), or as a product of rows (B,T',w C_in) -> (B,T',C)"""
        frames = h.shape[0] * h.shape[1 if as_product else 2]
        # Folding the batch norm costs a pass over the weights and saves one over the activations.
        folding = not self.training and not torch.is_grad_enabled() and frames >= conv.in_channels * conv.kernel_size[0]
        weight, bias = _folded(conv, bn) if folding else (conv.weight, None)
        if as_product:
            clips, h = len(h), _product(h.flatten(0, 1), _taps_first(weight), bias)
            return self._dropped(h if folding else bn(h)).unflatten(0, (clips, -1))
        h = F.conv1d(h, weight, bias, dilation=conv.dilation)
        return self._dropped(h if folding else bn(h))

    def _dropped(self, h: Tensor) -> Tensor:
        return F.dropout(F.relu(h, inplace=True), self.dropout, self.training)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[2:] != (self.joints_in, self.features):
            raise DataError(
                f"temporal model: the input has shape {tuple(x.shape)}, expected (clips, frames, {self.joints_in}, {self.features}), "
                "joints and features of the 2D keypoints; give keypoints of the layout it was trained with (TEMPORAL.FEATURES 3 has scores)"
            )


class Stream:
    """A network that is fed frame by frame: each layer keeps the activations its next filter positions need.

    A frame costs what it adds, 17 M multiplications for 243 frames and 1024 channels. Uses the running statistics of batch norm.
    """

    def __init__(self, model: TemporalModel):
        self.causal, self.joints_out, self.receptive_field = model.causal, model.joints_out, model.receptive_field
        self._check = model._check_input
        with torch.no_grad():
            self._layers = [_Layer(model.expand_conv, model.expand_bn)]
            for wide, wide_bn, point, point_bn in model._blocks():
                self._layers += [_Layer(wide, wide_bn), _Layer(point, point_bn)]
            self._weight, self._bias = model.shrink.weight[:, :, 0].clone(), model.shrink.bias.clone()
        self.reset()

    def reset(self) -> None:
        """Forget all frames: the next one begins another clip."""
        self.frames = 0
        for layer in self._layers:
            layer.reset()

    @torch.no_grad()
    def push(self, x: Tensor) -> Tensor | None:
        """The pose that the newest frame completes.

        Causal: that of the newest frame; before the first frame the clip is thought to stand still, as in the padding of evaluation.
        Otherwise: that of `pad` frames ago, and None until RF frames were seen.

        Args:
            x: (B,J_in,F) screen coordinates.

        Returns:
            (B,J_out,3) m, or None.

        Raises:
            DataError: another shape, or another number of clips than before.
        """
        self._check(x[:, None])
        first, *rest = self._layers
        h = first.push(x.flatten(1))
        for wide, point in zip(rest[::2], rest[1::2], strict=True):
            out = point.push(wide.push(h))
            h = wide.tap(-1 if self.causal else wide.kernel // 2) + out
        self.frames += 1
        if not self.causal and self.frames < self.receptive_field:
            return None
        return F.linear(h, self._weight, self._bias).unflatten(1, (self.joints_out, 3))


class _Layer:
    """One convolution with its batch norm folded in, and the inputs that its filter spans, as a ring of frames."""

    def __init__(self, conv: nn.Conv1d, bn: _BatchNorm):
        weight, self.bias = _folded(conv, bn)
        self.weight = _taps_first(weight).contiguous()
        self.kernel, self.gap = conv.kernel_size[0], conv.dilation[0]
        self.length = (self.kernel - 1) * self.gap + 1
        self.reset()

    def reset(self) -> None:
        self.ring: Tensor | None = None
        self.newest = 0

    def push(self, h: Tensor) -> Tensor:
        """(B,C_in) -> (B,C)"""
        if self.ring is None:  # the first frame stands for all before it
            self.ring = h.expand(self.length, -1, -1).clone()
        if self.ring.shape[1] != len(h):
            raise DataError(f"temporal model: {len(h)} clips are pushed, expected {self.ring.shape[1]} as before; reset() begins others")
        self.newest = (self.newest + 1) % self.length
        self.ring[self.newest] = h
        taps = h if self.kernel == 1 else torch.cat([self.tap(k) for k in range(self.kernel)], 1)
        return F.linear(taps, self.weight, self.bias).relu_()

    def tap(self, number: int) -> Tensor:
        """What filter position `number` looks at, -1 = the newest frame.   -> (B,C_in)"""
        back = (self.kernel - 1 - number % self.kernel) * self.gap
        return self.ring[(self.newest - back) % self.length]


def momentum(epoch: int, epochs: int, first: float = 0.1, last: float = 0.001) -> float:
    """Batch-norm momentum after `epoch` of `epochs`: falls exponentially from `first` (epoch 0) to `last` (the final one)."""
    return first * math.exp(-epoch / epochs * math.log(first / last))


def _folded(conv: nn.Conv1d, bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight (C,C_in,w) and bias (C,) of the convolution that includes the batch norm after it, with its running statistics."""
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    return conv.weight * scale[:, None, None], bn.bias - bn.running_mean * scale


def _taps_first(weight: Tensor) -> Tensor:
    """Filters as a matrix whose rows run over taps, then channels.   (C,C_in,w) -> (C,w C_in)"""
    return weight.transpose(1, 2).flatten(1)


def _rows(h: Tensor, conv: nn.Conv1d, isolated: bool) -> Tensor:
    """What the positions of a filter look at, tap behind tap: of every frame, or of groups of frames that do not overlap.

    (B,T,C) -> (B,T',w C)
    """
    width, gap = conv.kernel_size[0], conv.dilation[0]
    if isolated:
        return h.reshape(len(h), -1, width * h.shape[2])
    frames = h.shape[1] - (width - 1) * gap
    return h if width == 1 else torch.cat([h[:, k * gap : k * gap + frames] for k in range(width)], 2)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows times filters: a linear layer, or the same as a 1x1 convolution over images that the rows are cut into.

    x (N,K), weight (C,K), bias (C,) -> (N,C)
    """
    images = _images(len(x)) if _convolutions_are_faster(x) else 0
    if not images:
        return F.linear(x, weight, bias)
    pixels = x.reshape(images, -1, 1, x.shape[1]).permute(0, 3, 1, 2)  # channels-last: nothing moves
    return F.conv2d(pixels, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(len(x), -1)


# Which form is computed fastest. On processors, PyTorch gives convolutions to oneDNN and products to MKL. With AVX-512, MKL reaches half of
# oneDNN's speed on processors of other makers than its own: products are best written as 1x1 convolutions, and clips as convolutions.
# With AVX2 alone the two are equal, but gradients of convolutions take twice as long as those of products: everything is a product.
# In half precision and on accelerators, windows are products and clips are convolutions (measured in bf16 with AVX-512 alone).
# So they are in an exported graph, which must not depend on the processor it was made on.


def _is_full_precision_on_processor(x: Tensor) -> bool:
    if torch.compiler.is_exporting():
        return False
    return x.is_cpu and x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


def _convolutions_are_faster(x: Tensor) -> bool:
    oneDNN = x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return _is_full_precision_on_processor(x) and oneDNN and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _images(rows: int) -> int:
    """The fewest images of equal size that are enough and have a few pixels each; 0 if there is no such number."""
    fitting = (n for n in range(_FEWEST_IMAGES, min(rows // 4, 4096) + 1) if rows % n == 0)
    return next(fitting, 0)


def _check_arguments(joints_in: int, features: int, joints_out: int, widths: Sequence[int], dropout: float, channels: int) -> None:
    if not len(widths) or any(w < 1 or w % 2 == 0 for w in widths):
        raise ConfigError(f"TEMPORAL.WIDTHS: found {list(widths)}, expected odd numbers such as 3 3 3 (filters have a centre frame)")
    if not 0 <= dropout < 1:
        raise ConfigError(f"TEMPORAL.DROPOUT: found {dropout}, expected a share from 0 up to, but not including, 1")
    numbers = {"joints_in": joints_in, "joints_out": joints_out, "TEMPORAL.FEATURES": features, "TEMPORAL.CHANNELS": channels}
    for name, value in numbers.items():
        least = 2 if name == "TEMPORAL.FEATURES" else 1
        if value < least:
            raise ConfigError(f"{name}: found {value}, expected {least} or more")
