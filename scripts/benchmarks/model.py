"""The volumetric ResNet on crops, predicting and training, beside the same network as it comes: eager, float32, channels first."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

from lib.engine.distributed import has_fast_bf16
from lib.errors import RunError
from lib.geometry.heatmap import soft_argmax
from lib.loss.joints import l1_joint_loss
from lib.models.freeze import freeze
from lib.models.pose_resnet import PoseResNet
from scripts.benchmarks.harness import Contestant, Entry, Report, begin, race, race_apart, same, timer
from scripts.benchmarks.integral import plain_soft_argmax

JOINTS, DEPTH = 17, 64
TOLERANCE = {None: 1e-4, torch.bfloat16: 0.05}  # of outputs, in shares of the largest


@dataclass(frozen=True)
class Way:
    """How to run the network: the configuration's keys, and whether the allocator is set as all scripts do."""

    channels_last: bool = True  # CHANNELS_LAST
    amp: torch.dtype | None = None  # AMP
    compiled: bool = False  # COMPILE
    frozen: bool = False  # TEST.FREEZE, what lib.predictor does, too; predicting only
    plain: bool = False  # training: the published soft-argmax and Adam as it comes
    keep_heap: bool = True


PLAIN, KEPT = "plain: eager, float32", "plain, heap kept"
PLAIN_WAYS = {PLAIN: Way(False, plain=True, keep_heap=False), KEPT: Way(False, plain=True)}


@dataclass(frozen=True)
class Size:
    layers: int
    batch: int
    side: int  # px of a crop
    device: str


def run(args: argparse.Namespace) -> Report:
    """Race all ways of predicting and of training.    -> harness.Report in images/s"""
    side = 32 * round(args.points**0.5 / 32)
    if side < 32 or args.batch < 1:
        raise RunError(f"--pixels {args.points} --batch {args.batch}: expected crops of at least 32x32 pixels and one of them")
    report, device = begin("model", "images", args.device)
    bf16 = has_fast_bf16(device)
    report.machine["convolution GFLOP/s"] = convolution_ceiling(device, torch.float32)
    report.machine["bf16"] = f"{convolution_ceiling(device, torch.bfloat16)} GFLOP/s" if bf16 else "not in hardware, left out"
    size = Size(args.layers, args.batch, side, str(device))
    half = {"bf16": torch.bfloat16} if bf16 else {}
    predicting(report, args, size, half)
    if args.training:
        training(report, args, size, half)
    return report


def predicting(report: Report, args: argparse.Namespace, size: Size, half: dict[str, torch.dtype]) -> None:
    """Crops to logits."""
    ways = PLAIN_WAYS | {"ours: channels last": Way(), "ours: frozen": Way(frozen=True)}
    ways |= {f"ours: frozen, {name}": Way(amp=dtype, frozen=True) for name, dtype in half.items()}
    if args.compile:
        ways["ours: frozen, compiled"] = Way(frozen=True, compiled=True)
        ways |= {f"ours: frozen, {name}, compiled": Way(amp=dtype, frozen=True, compiled=True) for name, dtype in half.items()}
    model = network(size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size.side, size.side, device=size.device))
    group = f"ResNet-{size.layers}, {size.batch} x {size.side} px, {counter.get_total_flops() / 1e9:.1f} GFLOP"
    compete(report, args, group, prediction, ways, size)
    report.aim(group, "ours: frozen, compiled" if args.compile else "ours: frozen", PLAIN, 1.7)
    for name in half:
        report.aim(group, f"ours: frozen, {name}", PLAIN, 3.4)


def training(report: Report, args: argparse.Namespace, size: Size, half: dict[str, torch.dtype]) -> None:
    """Whole steps: forward, soft-argmax, L1, backward, Adam."""
    ways = PLAIN_WAYS | {"ours: float32": Way()} | {f"ours: {name}": Way(amp=dtype) for name, dtype in half.items()}
    if args.compile:
        ways |= {f"ours: {name}, compiled": Way(amp=dtype, compiled=True) for name, dtype in half.items()}
    group = f"training, {size.batch} x {size.side} px"
    compete(report, args, group, training_step, ways, size)
    for name in half:
        on_gpu = args.compile and torch.device(size.device).type != "cpu"  # there compilation pays in training, too
        report.aim(group, f"ours: {name}, compiled" if on_gpu else f"ours: {name}", PLAIN, 2.5)


def compete(report: Report, args: argparse.Namespace, group: str, setup: Callable, ways: dict[str, Way], size: Size) -> None:
    device = torch.device(size.device)
    entries = [Entry(name, setup, (name, way, size), device, way.keep_heap) for name, way in ways.items()]
    report.rows += race_apart(group, entries, size.batch, args.rounds)


def network(size: Size) -> PoseResNet:
    """Random weights that keep the size of what passes through, and statistics that batch norm has to correct."""
    torch.manual_seed(0)
    model = PoseResNet(size.layers, JOINTS, depth_bins=DEPTH)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.normal_(model.final_layer.weight, std=0.1)
    return model.to(size.device).eval()


def images(size: Size, way: Way) -> Tensor:
    x = torch.randn(size.batch, 3, size.side, size.side, generator=torch.Generator().manual_seed(1)).to(size.device)
    return x.contiguous(memory_format=torch.channels_last) if way.channels_last else x


def prediction(name: str, way: Way, size: Size) -> tuple[Callable[[int], Any], int, str]:
    """One way to predict, checked against the network as it comes.   -> function, images a call, a note"""
    model, x = network(size), images(size, way)
    with torch.no_grad():
        expected = model(x.contiguous())
    if way.channels_last:
        model.to(memory_format=torch.channels_last)
    if way.frozen:
        freeze(model, way.amp, way.compiled)

    @torch.no_grad()
    def function(_: int) -> Tensor:
        with torch.autocast(x.device.type, way.amp, enabled=way.amp is not None):
            return model(x)

    same(name, function(0).float(), expected, TOLERANCE[way.amp])
    return function, size.batch, ""


def training_step(name: str, way: Way, size: Size) -> tuple[Callable[[int], Any], int, str]:
    """One way to train, its loss checked against the plain one.   -> as `prediction`"""
    model, x = network(size).train(), images(size, way)
    target = torch.rand(size.batch, JOINTS, 3, generator=torch.Generator().manual_seed(2)).to(size.device) - 0.5
    scale = target.new_tensor([size.side // 4, size.side // 4, DEPTH])

    def loss(model: nn.Module, head: Callable[[Tensor], Tensor], amp: torch.dtype | None) -> Tensor:
        with torch.autocast(x.device.type, amp, enabled=amp is not None):
            return l1_joint_loss(head(model(x)) / scale - 0.5, target)

    with torch.no_grad():
        expected = loss(copy.deepcopy(model), plain_soft_argmax, None)
    if way.channels_last:
        model.to(memory_format=torch.channels_last)
    if way.compiled:
        model.compile()
    head = plain_soft_argmax if way.plain else soft_argmax
    same(name, loss(copy.deepcopy(model), head, way.amp).detach(), expected, TOLERANCE[way.amp])
    optimizer = Adam(model.parameters(), lr=1e-5) if way.plain else Adam(model.parameters(), lr=1e-5, fused=True)

    def function(_: int) -> None:
        loss(model, head, way.amp).backward()
        optimizer.step()
        optimizer.zero_grad()

    return function, size.batch, ""


def convolution_ceiling(device: torch.device, dtype: torch.dtype) -> int:
    """GFLOP/s of one large 3x3 convolution, channels last: what the network could reach at most."""
    channels, side, batch = 256, 32, 4
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device, dtype, memory_format=torch.channels_last)
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    flop = 2 * batch * side * side * channels * channels * 9
    with torch.no_grad():
        row = race("ceiling", [Contestant("convolution", lambda: conv(x), flop)], 5, timer(device))[0]
    return round(row.per_second / 1e9)
