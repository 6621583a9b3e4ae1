"""Learning depth from 3D and 2D labels together: the variance of bone lengths beside a loop over samples, and its share of a training
step."""

import argparse

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.optim import Adam

from lib.errors import RunError
from lib.geometry.heatmap import joint_cells, read_depth, render_heatmaps
from lib.loss.fusion import BoneGroups, bone_groups, bone_variance_loss, depth_loss
from lib.models.fusion import FusionNet
from lib.skeleton import get
from scripts.benchmarks.harness import Contestant, Report, Target, begin, race, same, timer

SKELETON = "mpii16"
LOOP = 32  # samples given to the loop
LOOPED, OURS = "loop: a bone at a time", "ours: one table"
WITHOUT, WITH = "step without the variance", "step with the variance"
SHARE = 5.0  # percent of a step that the loss may take


class Labels:
    """Random people: half of the samples have depths, the others only joints in the image."""

    def __init__(self, batch: int, size: tuple[int, int], device: torch.device, seed: int = 0):
        rng = torch.Generator().manual_seed(seed)
        joints = get(SKELETON).num
        limit = torch.tensor(size, dtype=torch.float32)
        x_hm = torch.rand(batch, joints, 2, generator=rng) * limit * 1.1  # a few lie beside the map
        self.depth = torch.randn(batch, joints, generator=rng) * 0.2
        self.cells, self.inside = joint_cells(x_hm, torch.rand(batch, joints, generator=rng) > 0.1, size)
        self.x = x_hm / max(size)
        self.weak = torch.arange(batch) % 2 == 1
        self.target = render_heatmaps(x_hm, self.inside, size, 2.0, snap=True)
        for name, value in list(vars(self).items()):
            setattr(self, name, value.to(device))


def run(args: argparse.Namespace) -> Report:
    """Race the loss alone, and steps with and without it.    -> harness.Report"""
    if args.batch < 2 or args.side < 64 or args.side % 32:
        raise RunError(f"--batch {args.batch} --side {args.side}: expected at least 2 samples of 64 pixels or another multiple of 32")
    report, device = begin("fusion", "samples", args.device)
    alone(report, args, device, args.points)
    alone(report, args, device, args.batch)
    training(report, args, device)
    return report


def alone(report: Report, args: argparse.Namespace, device: torch.device, batch: int) -> None:
    """Value and gradient for a batch of depths; the loop gets a part of a large batch."""
    groups = bone_groups(SKELETON)
    many, few = Labels(batch, (64, 64), device), Labels(min(batch, LOOP), (64, 64), device)

    def slope(function, labels: Labels) -> tuple[Tensor, Tensor]:
        depth = labels.depth.clone().requires_grad_()
        value = function(labels.x, depth, labels.inside, labels.weak, groups)
        return value.detach(), torch.autograd.grad(value, depth)[0]

    for what, ours, other in zip(("variance", "gradient"), slope(bone_variance_loss, few), slope(variance_slowly, few), strict=True):
        same(what, ours, other, 1e-5)
    contestants = [
        Contestant(LOOPED, lambda: slope(variance_slowly, few), len(few.depth)),
        Contestant(OURS, lambda: slope(bone_variance_loss, many), batch),
    ]
    group = f"variance of bone lengths, {batch} samples"
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, OURS, LOOPED, 15)


def training(report: Report, args: argparse.Namespace, device: torch.device) -> None:
    """Whole steps in float32: forward, losses, backward, Adam; and how much of one the variance is."""
    torch.manual_seed(0)
    model = FusionNet(get(SKELETON).num, args.layers).to(device).train()
    optimizer = Adam(model.parameters(), lr=1e-3, fused=True)
    image = torch.randn(args.batch, 3, args.side, args.side, device=device)
    labels = Labels(args.batch, (args.side // 4, args.side // 4), device)
    groups = BoneGroups(*(table.to(device) for table in bone_groups(SKELETON)))
    strong = labels.inside & ~labels.weak[:, None]

    def step(weight: float) -> None:
        maps = model(image)
        depth = read_depth(maps.depth, labels.cells)
        loss = mse_loss(maps.hm, labels.target) + 0.1 * depth_loss(depth, labels.depth, strong)
        if weight:
            loss = loss + weight * bone_variance_loss(labels.x, depth, labels.inside, labels.weak, groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def loss_alone() -> None:
        depth = labels.depth.clone().requires_grad_()
        bone_variance_loss(labels.x, depth, labels.inside, labels.weak, groups).backward()

    lone = "the variance alone, value and gradient"
    contestants = [
        Contestant(WITHOUT, lambda: step(0), args.batch),
        Contestant(WITH, lambda: step(0.01), args.batch),
        Contestant(lone, loss_alone, args.batch),
    ]
    group = f"ResNet-{args.layers}, {args.batch} crops of {args.side} px"
    report.rows += race(group, contestants, args.rounds, timer(device))
    share = 100 * report.speed(group, WITHOUT) / report.speed(group, lone)
    report.targets.append(Target(f"{group}: the variance in percent of a step", share, SHARE, at_most=True))


def variance_slowly(x: Tensor, depth: Tensor, visible: Tensor, weak: Tensor, groups: BoneGroups, halved: bool = True) -> Tensor:
    """`bone_variance_loss` a sample, a group and a bone at a time."""
    total = depth.new_zeros(())
    for b in range(len(depth)):
        if not weak[b]:
            continue
        for ends, weights in zip(groups.ends.tolist(), groups.weight.tolist(), strict=True):
            lengths = []
            for (i, k), weight in zip(ends, weights, strict=True):
                if weight > 0 and visible[b, i] and visible[b, k]:
                    across = (x[b, i] - x[b, k]).square().sum()
                    lengths.append(weight * (across + (depth[b, i] - depth[b, k]) ** 2).sqrt())
            if len(lengths) > 1:
                mean = sum(lengths) / len(lengths)
                total = total + sum((one - mean) ** 2 for one in lengths) / len(lengths)
    return total / (2 * len(depth) if halved else len(depth))
