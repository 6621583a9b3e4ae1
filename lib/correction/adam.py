"""Adam for every sample of a batch on its own, without a copy of the weights for each.

For one sample the gradient of a linear layer's weights is an outer product: gradient `a` at its output times input `x`. After t steps
Adam's moments are sums of t such products, so 2 t vectors hold all of a sample's state, and what the layer adds for a sample is
computed from them. Two cases need no matrix of the layer's size at all:

- Where the input is the same at every step (the first layer), both moments stay single outer products.
- After one step, element (i, j) of the change is -lr a_i x_j / (|a_i x_j| + e), in which 1 / (|a_i| + e / |x_j|) is a Cauchy matrix. Its
  product with a vector needs some 50 exponentials per row and column (Beylkin and Monzon, Applied and Computational Harmonic Analysis
  2005): 1 / z is the trapezoidal sum of s exp(-z s) over log s. The step log 2 makes three of four a square of the one before.

Source of the optimiser: Kingma and Ba, Adam, ICLR 2015.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.errors import ConfigError

FORMS = ("torch", "tensorflow")
STEP = math.log(2)  # of log s: the sum errs by 2 |Gamma(1 + 2 pi i / STEP)| = 1e-5 of its value, as much of a step of Adam
SQUARES = 4  # one exponential and three squares, which together lose eight times the rounding of the first
FIRST = 1e-6  # smallest s beside 1 / the largest z; what lies below contributes as much
LAST = 12.0  # largest s times the smallest z: exp(-12) = 6e-6
BLOCK = 8  # samples whose matrices a processor works on at once
DENSE = 128  # layers with a side no longer than this are cheaper as matrices


class Rate(NamedTuple):
    """What Adam's two forms make of their step t: p -= lr m / (sqrt(v) + eps)."""

    lr: float
    eps: float


class Adam(NamedTuple):
    """Settings. `form`: "torch" divides by sqrt(v / (1 - beta2^t)) + eps, "tensorflow" by sqrt(v) + eps, which the release uses."""

    lr: float
    form: str = "torch"
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def rate(self, step: int) -> Rate:
        """Of step 1, 2, ..."""
        root = math.sqrt(1 - self.beta2**step)
        return Rate(self.lr * root / (1 - self.beta1**step), self.eps * root if self.form == "torch" else self.eps)


class Dense:
    """Adam of a tensor whose rows (B,...) are samples, each with moments of its own."""

    def __init__(self, adam: Adam):
        self.adam = adam
        self.m: Tensor | None = None
        self.v: Tensor | None = None

    def change(self, gradient: Tensor, step: int) -> Tensor:
        """What is added to the tensor in step 1, 2, ...   (B,...) -> (B,...)"""
        b1, b2 = self.adam.beta1, self.adam.beta2
        if self.m is None:
            self.m, self.v = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.m = self.m.lerp(gradient, 1 - b1)
        self.v = self.v * b2 + gradient.square() * (1 - b2)
        rate = self.adam.rate(step)
        return -rate.lr * self.m / (_root(self.v) + rate.eps)

    def keep(self, rows: Tensor) -> None:
        """Forget all samples but these."""
        if self.m is not None:
            self.m, self.v = self.m[rows], self.v[rows]


class SampleLinear:
    """What each sample of a batch adds to a linear layer; the layer itself stays as it is.

    Use: while a model runs, `forward` replaces the layer's output; then `step` with the gradient there.

    Args:
        layer: to be adapted, weight and bias.
        adam: how.
    """

    def __init__(self, layer: nn.Linear, adam: Adam):
        self.shape, self.has_bias = layer.weight.shape, layer.bias is not None
        self.adam, self.steps = adam, 0
        self.bias = Dense(adam)
        self.shift: Tensor | None = None  # (B,out): of the bias, and of the weights where the input is fixed
        self.input: Tensor | None = None  # (B,in) of the last pass
        self.output: Tensor | None = None  # (B,out) of the last pass, within the graph
        self.fixed = False  # whether the input is the same in every pass
        self.m: Tensor | None = None  # (B,out): moments are m x^T and v (x^2)^T where it is
        self.v: Tensor | None = None
        self.a: list[Tensor] = []  # (B,out) gradients at the output, one per step, and
        self.x: list[Tensor] = []  # (B,in) inputs, where it is not
        self.first: _FirstStep | None = None  # the change of the weights by the first step,
        self.later: Tensor | None = None  # (B,out,in), and by all others

    def numbers(self, steps: int) -> int:
        """How many numbers are held per sample for so many steps, about."""
        outputs, inputs = self.shape
        own = outputs * inputs if min(self.shape) <= DENSE else 64 * (outputs + inputs)
        return own + (4 * outputs * inputs if steps > 2 or min(self.shape) <= DENSE else 0)

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """The layer's output with what the samples have learned.   input (B,in), output (B,out) -> (B,out)"""
        if self.shift is not None:
            out = out + self.shift
        if self.first is not None:
            out = out + self.first(x)
        if self.later is not None:
            out = out + _apply(self.later, x)
        if torch.is_grad_enabled():
            if self.output is not None:
                raise ConfigError("correction: a network uses one of its linear layers twice, which is not possible here")
            self.fixed = not x.requires_grad
            self.input, self.output = x.detach(), out if out.requires_grad else out.detach().requires_grad_()
            return self.output
        return out

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One step of Adam for every sample.   gradient of its loss at the output, (B,out)"""
        self.steps += 1
        rate, x = self.adam.rate(self.steps), self.input.contiguous()
        gradient = gradient.contiguous()  # of other layouts outer products take many times as long
        self.output = None
        shift = self.bias.change(gradient, self.steps) if self.has_bias else torch.zeros_like(gradient)
        if self.fixed:
            shift = shift + self._fixed_step(gradient, x, rate)
        else:
            self.a.append(gradient)
            self.x.append(x)
            if self.steps == 1:
                self.first = _FirstStep(gradient, x, self.adam)
            else:
                self._later_step(rate)
        self.shift = shift if self.shift is None else self.shift + shift

    def _fixed_step(self, a: Tensor, x: Tensor, rate: Rate) -> Tensor:
        """How the weights' step moves the output of the one input there is.   -> (B,out)"""
        b1, b2 = self.adam.beta1, self.adam.beta2
        m, v = (1 - b1) * a, (1 - b2) * a.square()
        self.m, self.v = (m, v) if self.m is None else (m + b1 * self.m, v + b2 * self.v)
        root, size, square = _root(self.v), x.abs(), x.square()
        sums = torch.cat([_apply(_inverse(root[part], size[part], rate.eps), square[part]) for part in _blocks(x)])
        return -rate.lr * self.m * sums

    def _later_step(self, rate: Rate) -> None:
        b1, b2 = self.adam.beta1, self.adam.beta2
        ages = range(len(self.a) - 1, -1, -1)
        first = [a * (-rate.lr * (1 - b1) * b1**age) for a, age in zip(self.a, ages, strict=True)]
        second = [a.square() * ((1 - b2) * b2**age) for a, age in zip(self.a, ages, strict=True)]
        squares = [x.square() for x in self.x]
        change = _room(first[0], self.x[0])
        for part in _blocks(change):
            m = _outer_sum([a[part] for a in first], [x[part] for x in self.x], change[part])
            v = _outer_sum([a[part] for a in second], [x[part] for x in squares])
            m.div_(v.rsqrt_().reciprocal_().add_(rate.eps))  # as `_root`
        self.later = change if self.later is None else self.later.add_(change)

    def keep(self, rows: Tensor) -> None:
        """Forget all samples but these, and the last pass."""
        self.bias.keep(rows)
        self.output = None
        for name in ("shift", "input", "m", "v", "later"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[rows])
        self.a, self.x = [a[rows] for a in self.a], [x[rows] for x in self.x]
        if self.first is not None:
            self.first.keep(rows)


class _FirstStep:
    """The change of the weights by the first step, -lr a x^T / (|a x^T| + e)."""

    def __init__(self, a: Tensor, x: Tensor, adam: Adam):
        self.lr, e = adam.lr, adam.rate(1).eps / math.sqrt(1 - adam.beta2)
        self.a, self.x = a, x
        self.inverse: Tensor | None = None  # (B,out,in), 1 / (|a x^T| + e)
        self.sums: tuple[Tensor, ...] = ()  # or 1 / (|a_i| + e / |x_j|), see `cauchy`
        if min(a.shape[1], x.shape[1]) <= DENSE:
            self.inverse, a, x = _room(a, x), a.abs(), x.abs()
            for part in _blocks(x):
                _inverse(a[part], x[part], e, self.inverse[part])
        else:
            self.sums = cauchy(a.abs(), e / x.abs())

    def __call__(self, x: Tensor) -> Tensor:
        """Change of the output for inputs (B,in) -> (B,out)"""
        if self.inverse is not None:
            return self.a * _apply(self.inverse, self.x * x) * -self.lr
        rows, weight, columns = self.sums
        return self.a * _apply(rows.mT, _apply(columns, self.x.sign() * x) * weight) * -self.lr

    def keep(self, rows: Tensor) -> None:
        """Forget all samples but these."""
        self.a, self.x = self.a[rows], self.x[rows]
        self.inverse = None if self.inverse is None else self.inverse[rows]
        self.sums = tuple(value[rows] for value in self.sums)


def cauchy(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 / (y_i + z_j) as a sum of Q products of exponentials.

    y (B,M) >= 0, z (B,N) > 0, may be infinite -> rows (B,Q,M), weight (B,Q), columns (B,Q,N), the sum of rows_i weight columns_j over Q
    being 1 / (y_i + z_j), to 1e-5 of that or 1e-6 / the largest y, whichever is larger
    """
    smallest = z.amin(1)
    largest = torch.maximum(y.amax(1), smallest)
    largest = torch.where(largest.isfinite(), largest, 1.0)  # of samples without any gradient, where all is 0
    ratio = torch.where(smallest.isfinite(), largest / smallest, 1.0).nan_to_num(nan=1.0, posinf=1e30).amax()
    groups = math.ceil((math.log(LAST / FIRST * float(ratio)) / STEP + 1) / SQUARES)
    power = torch.arange(groups * SQUARES, dtype=y.dtype, device=y.device).view(groups, SQUARES).mT.flatten()
    node = (power * STEP).exp() * (FIRST / largest)[:, None]
    return _exponentials(y, node[:, :groups]), node * STEP, _exponentials(z, node[:, :groups])


def _exponentials(y: Tensor, node: Tensor) -> Tensor:
    """exp(-y s) for s = node, then for 2, 4, 8 times that.   y (B,M), node (B,G) -> (B, SQUARES G, M)"""
    found = y.new_empty(len(y), SQUARES, node.shape[1], y.shape[1])
    torch.mul(node[..., None] / -math.log(2), y[:, None], out=found[:, 0]).exp2_()  # half the time of exp_
    for k in range(1, SQUARES):
        torch.mul(found[:, k - 1], found[:, k - 1], out=found[:, k])
    return found.flatten(1, 2)


def _root(v: Tensor) -> Tensor:
    """The square root; kernels for processors take five times as long for `sqrt` where many values are 0, as behind a ReLU."""
    return v.rsqrt().reciprocal_()


def _blocks(x: Tensor) -> list[slice]:
    """Samples whose matrices are worked on at once: on a processor so few that they stay in its cache."""
    size = BLOCK if x.is_cpu else max(len(x), 1)
    return [slice(i, i + size) for i in range(0, len(x), size)]


def _room(y: Tensor, z: Tensor) -> Tensor:
    """An empty (B,M,N) for (B,M) and (B,N); its memory runs along the longer side, as processors like it."""
    if y.shape[1] > z.shape[1]:
        return _room(z, y).mT
    return y.new_empty(len(y), y.shape[1], z.shape[1])


def _inverse(y: Tensor, z: Tensor, e: float, out: Tensor | None = None) -> Tensor:
    """1 / (y_i z_j + e).   (B,M), (B,N) -> (B,M,N)"""
    return _outer_sum([y], [z], out).add_(e).reciprocal_()


def _outer_sum(y: list[Tensor], z: list[Tensor], out: Tensor | None = None) -> Tensor:
    """Sum of outer products.   (B,M) each, (B,N) each -> (B,M,N)"""
    out = _room(y[0], z[0]) if out is None else out
    torch.mul(y[0][..., None], z[0][:, None], out=out)
    for one, other in zip(y[1:], z[1:], strict=True):
        out.addcmul_(one[..., None], other[:, None])
    return out


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """(B,M,N), (B,N) -> (B,M); vectors in rows, since kernels are slow where they are columns"""
    return torch.bmm(x[:, None], matrix.mT)[:, 0]


def linear_layers(*modules: nn.Module) -> list[nn.Linear]:
    """The linear layers within modules, each once."""
    return list(dict.fromkeys(m for module in modules for m in module.modules() if type(m) is nn.Linear))


class Adapting:
    """While active, layers run with what samples have learned; the modules themselves are never written to.

    adapted = [SampleLinear(layer, adam) for layer in layers]
    with Adapting(layers, adapted):
        output = model(x)
    """

    def __init__(self, layers: list[nn.Linear], adapted: list[SampleLinear]):
        self.pairs, self.handles = list(zip(layers, adapted, strict=True)), []

    def __enter__(self) -> None:
        for layer, own in self.pairs:
            self.handles.append(layer.register_forward_hook(lambda module, inputs, out, own=own: own.forward(inputs[0], out)))

    def __exit__(self, *exc) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
