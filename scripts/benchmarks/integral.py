"""The soft-argmax of volumes beside softmax and three sums: time forward and backward, memory, and the bound that the exponentials set."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from lib.errors import RunError
from lib.geometry.heatmap import CPU_BLOCK, soft_argmax
from scripts.benchmarks.harness import Entry, PeakMemory, Report, Target, begin, race_apart, same

PLAIN, KEPT, OURS = "plain: softmax, three sums", "plain, heap kept", "ours"
BOUND = "the exponentials alone, in cache"
SPREAD = 3.0  # of the logits: a trained network's are about as far apart


def run(args: argparse.Namespace) -> Report:
    """Race forward and forward with backward, in small and large batches.    -> harness.Report in volumes/s"""
    side = round(args.points ** (1 / 3))
    if args.batch < 1 or args.joints < 1 or args.large < 0:
        raise RunError(f"--batch {args.batch} --joints {args.joints} --large {args.large}: expected one or more, --large 0 or more")
    report, device = begin("integral", "volumes", args.device)
    on_cpu = device.type == "cpu"
    check(device, args.joints, side)
    goals = {False: 2.5, True: 1.9} if on_cpu else {False: 4.0, True: 4.0}
    for batch in dict.fromkeys(n for n in (args.batch, args.large) if n):
        shape = (batch, args.joints, side, side, side)
        for backward in (False, True):
            group = f"{batch} x {args.joints} of {side}^3, {'forward and backward' if backward else 'forward'}"
            work = {name: (name, shape, str(device), backward) for name in contestants(device)}
            entries = [Entry(name, head, given, device, keep_heap=name != PLAIN) for name, given in work.items()]
            report.rows += race_apart(group, entries, batch * args.joints, args.rounds)
            report.aim(group, OURS, PLAIN, 4.0 if backward and batch >= 32 else goals[backward])
    memory = {name: extra_memory(name, (args.batch, args.joints, side, side, side), device) for name in (PLAIN, OURS)}
    for row in report.rows:
        if row.name in memory and "backward" in row.group:
            row.note = f"beside the logits {memory[row.name]:.2f} times their memory"
    report.targets.append(Target("extra memory, forward and backward, in multiples of the logits", memory[OURS], 1.1, at_most=True))
    return report


def contestants(device: torch.device) -> tuple[str, ...]:
    """The heap is that of the C library, so only the processor has two ways to keep it."""
    return (PLAIN, KEPT, OURS, BOUND) if device.type == "cpu" else (PLAIN, OURS)


def head(name: str, shape: tuple[int, ...], device: str, backward: bool) -> tuple[Callable[[int], object], int, str]:
    """One way to read volumes, of `shape` (B, J, D, h, w).   -> function, volumes a call, a note"""
    logits, weight = example(shape, torch.device(device))
    items = shape[0] * shape[1]
    if name == BOUND:
        block = logits.flatten()[: min(CPU_BLOCK, logits.numel())]
        out, passes = torch.empty_like(block), max(1, logits.numel() // block.numel()) * (2 if backward else 1)

        def exponentials(_: int) -> None:
            for _ in range(passes):
                torch.exp2(block, out=out)

        return exponentials, items, ""
    form = soft_argmax if name == OURS else plain_soft_argmax
    logits.requires_grad_(backward)

    def step(_: int) -> None:
        coords = form(logits)
        if backward:
            logits.grad = None
            coords.backward(weight)

    return step, items, ""


def plain_soft_argmax(logits: Tensor) -> Tensor:
    """As published (Sun et al., ECCV 2018): softmax over the volume, its three marginals, their means.    (B,J,D,h,w) -> (B,J,3)"""
    p = logits.flatten(2).softmax(-1).reshape(logits.shape)
    means = []
    for axis in (4, 3, 2):  # x y z
        marginal = p.sum([a for a in (2, 3, 4) if a != axis])
        means.append((marginal * torch.arange(logits.shape[axis], dtype=p.dtype, device=p.device)).sum(-1))
    return torch.stack(means, -1)


def example(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits (B,J,D,h,w), and a gradient of the coordinates (B,J,3)."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=rng) * SPREAD
    return logits.to(device), torch.randn(*shape[:2], 3, generator=rng).to(device)


def check(device: torch.device, joints: int, side: int) -> None:
    """Both forms give the same coordinates and gradients: ours those of the plain form in float64, which in float32 itself is up to
    1e-4 away from that: 262,144 shares of a softmax do not add up to 1.
    """
    logits, weight = example((1, joints, side, side, side), device)
    forms = {"ours": (soft_argmax, logits), "plain": (plain_soft_argmax, logits), "exact": (plain_soft_argmax, logits.double())}
    found = {}
    for what, (form, x) in forms.items():
        leaf = x.clone().requires_grad_()
        coords = form(leaf)
        found[what] = coords.detach(), torch.autograd.grad(coords, leaf, weight.to(x.dtype))[0]
    for place, what in enumerate(("coordinates", "gradients")):
        same(what, found["ours"][place], found["exact"][place], 2e-6)
        same(f"{what} of the plain form", found["plain"][place], found["exact"][place], 2e-4)


def extra_memory(name: str, shape: tuple[int, ...], device: torch.device) -> float:
    """Most bytes alive at once beside the logits, forward and backward, as a multiple of theirs."""
    logits, weight = example(shape, device)
    logits.requires_grad_()
    form = soft_argmax if name == OURS else plain_soft_argmax
    return PeakMemory.of(lambda: form(logits).backward(weight)) / logits.nbytes
