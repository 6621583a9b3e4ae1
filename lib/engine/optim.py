"""Optimizers, and learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop


def multistep(step: int, steps_per_epoch: int, milestones: Sequence[float], factor: float) -> float:
    """`factor` to the power of the number of milestones (epochs) that lie behind."""
    return factor ** sum(step >= round(epoch * steps_per_epoch) for epoch in milestones)


def exponential(step: int, steps_per_epoch: int, factor: float) -> float:
    """`factor` to the power of the epochs that lie behind; constant within an epoch."""
    return factor ** (step // steps_per_epoch)


def staircase(step: int, every: int, factor: float) -> float:
    """`factor` once more after each `every` steps; the schedule of EpipolarPose's refiner."""
    return factor ** (step // every)


def cosine(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Half a cosine from 1, where the warm-up ends, to 0 at the end of training."""
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


def warmup(step: int, warmup_steps: int) -> float:
    """Linear from 1 / warmup_steps to 1, which it reaches at the last warm-up step."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def lr_factor(step: int, train, steps_per_epoch: int, total_steps: int) -> float:
    """What the base learning rates are multiplied by at `step` (0-based); `train` is the TRAIN section."""
    values = {
        "multistep": lambda: multistep(step, steps_per_epoch, train.LR_STEP, train.LR_FACTOR),
        "exponential": lambda: exponential(step, steps_per_epoch, train.LR_FACTOR),
        "staircase": lambda: staircase(step, train.LR_EVERY, train.LR_FACTOR),
        "cosine": lambda: cosine(step, total_steps, train.WARMUP_STEPS),
        "constant": lambda: 1.0,
    }
    return values[train.SCHEDULE]() * warmup(step, train.WARMUP_STEPS)


def set_lr(optimizer: Optimizer, factor: float) -> float:
    """Sets each group to its base rate times `factor`; returns the rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def build_optimizer(groups: list[dict], train) -> Optimizer:
    """The optimizer that TRAIN names, fused where the device and the optimizer have it.

    Weight decay: L2 in the gradient for adam, sgd and rmsprop, decoupled for adamw. rmsprop is torch's, without momentum:
    alpha 0.99, eps 1e-8. A group may have its own `lr` and `weight_decay`.
    """
    for group in groups:
        group.setdefault("lr", train.LR)
        group["initial_lr"] = group["lr"]
    if train.OPTIMIZER == "rmsprop":
        return RMSprop(groups, lr=train.LR, weight_decay=train.WD)  # there is no fused one
    if train.OPTIMIZER == "sgd":
        kind, options = SGD, {"momentum": train.MOMENTUM, "nesterov": train.NESTEROV}
    else:
        kind, options = {"adam": Adam, "adamw": AdamW}[train.OPTIMIZER], {"amsgrad": train.AMSGRAD}
    try:
        return kind(groups, lr=train.LR, weight_decay=train.WD, fused=True, **options)
    except RuntimeError:  # raised where the device, or a parameter's number format, has no fused kernel
        return kind(groups, lr=train.LR, weight_decay=train.WD, **options)


def gradient_norm(parameters: Sequence[nn.Parameter], clip: float) -> torch.Tensor:
    """Norm () of all gradients before clipping; where it exceeds `clip` (0: never) they are scaled down to it."""
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads).to(parameters[0].device)
    if clip > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm
