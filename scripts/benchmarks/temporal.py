"""Lifting with temporal convolutions (VideoPose3D): training steps, batches of windows and long sequences, beside plain convolutions
and a loop over windows."""

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv1d, dropout
from torch.optim import Adam, Optimizer

from lib.dataset.chunks import ChunkSamples, screen_keypoints
from lib.dataset.loader import Key
from lib.dataset.tracks import Tracks
from lib.engine.distributed import has_fast_bf16
from lib.errors import RunError
from lib.geometry.camera import Cameras
from lib.models.temporal import TemporalModel
from lib.skeleton import get
from scripts.benchmarks.harness import Contestant, Report, begin, race, same, timer

WIDTHS = (3, 3, 3, 3, 3)
SKELETON = "h36m17"
TRACKS = 24  # of 1000 to 2500 frames
WINDOWS = 1024  # of a batch
PLAIN, OURS, BF16 = "plain: convolutions", "ours", "ours, bf16"


def run(args: argparse.Namespace) -> Report:
    """Race all parts of training and evaluation.    -> harness.Report"""
    if args.batch < 2 or args.channels < 8:
        raise RunError(f"--batch {args.batch} --channels {args.channels}: expected at least 2 windows and 8 channels")
    report, device = begin("temporal", "items", args.device)
    if not has_fast_bf16(device):
        report.machine["bf16"] = "not in hardware, left out"
    torch.manual_seed(0)
    model = TemporalModel(widths=WIDTHS, channels=args.channels).to(device)
    assembly(report, args, model.pad)
    evaluation(report, args, model)
    training(report, args, model)
    optimizer_step(report, args, model)
    return report


def training(report: Report, args: argparse.Namespace, model: TemporalModel) -> None:
    """A whole step on windows of 243 frames: forward, backward, Adam."""
    device = model.shrink.weight.device
    x = torch.randn(args.batch, model.receptive_field, model.joints_in, model.features, device=device)
    target = torch.randn(args.batch, 1, model.joints_out, 3, device=device)
    check_training(model, x, target)

    def contestant(name: str, forward: Callable, optimizer: Callable[[TemporalModel], Optimizer], amp: bool) -> Contestant:
        network = copy.deepcopy(model).train()
        adam = optimizer(network)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                output = forward(network, x)
            mpjpe(output, target).backward()
            adam.step()
            adam.zero_grad()

        return Contestant(name, step, len(x))

    contestants = [contestant(PLAIN, plain_single, default_adam, False), contestant(OURS, TemporalModel.single, fused_adam, False)]
    if has_fast_bf16(device):
        contestants.append(contestant("plain: convolutions, bf16", plain_single, default_adam, True))
        contestants.append(contestant(BF16, TemporalModel.single, fused_adam, True))
    group = f"training step, {len(x)} windows"
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, OURS, PLAIN, 1.4)
    if has_fast_bf16(device):
        report.aim(group, BF16, PLAIN, 2.5)


def optimizer_step(report: Report, args: argparse.Namespace, model: TemporalModel) -> None:
    """Adam with amsgrad alone."""
    contestants = []
    count = sum(p.numel() for p in model.parameters())
    for name, optimizer in (("default", default_adam), ("ours: fused", fused_adam)):
        network = copy.deepcopy(model)
        for p in network.parameters():
            p.grad = torch.randn_like(p)
        contestants.append(Contestant(name, optimizer(network).step, count))
    group = "Adam with amsgrad, parameters"
    report.rows += race(group, contestants, args.rounds, timer(model.shrink.weight.device))
    report.aim(group, "ours: fused", "default", 2.5)


@torch.no_grad()
def evaluation(report: Report, args: argparse.Namespace, model: TemporalModel) -> None:
    """Poses of all frames of one sequence and of its mirror image."""
    model = randomised(model).eval()
    x = torch.randn(2, args.points, model.joints_in, model.features, device=model.shrink.weight.device)
    x = model.padded(x)

    def ours(amp: bool = False) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            return model(x)

    def plain() -> Tensor:
        return plain_forward(model, x)

    same("evaluation", ours(), plain(), 2e-6)
    contestants = [Contestant(PLAIN, torch.no_grad()(plain), args.points), Contestant(OURS, torch.no_grad()(ours), args.points)]
    if has_fast_bf16(x.device):
        same("evaluation, bf16", ours(True).float(), plain(), 0.05)
        contestants.append(Contestant(BF16, torch.no_grad()(lambda: ours(True)), args.points))
    stream = TemporalModel(widths=WIDTHS, channels=model.channels, causal=True).to(x.device).eval().stream()
    frames = x[:, :100].unbind(1)
    contestants.append(Contestant("ours: frame by frame (stream)", lambda: [stream.push(frame) for frame in frames], len(frames)))
    group = f"evaluation, {args.points} frames and mirrored"
    report.rows += race(group, contestants, args.rounds, timer(x.device))
    report.aim(group, OURS, PLAIN, 0.95)
    if has_fast_bf16(x.device):
        report.aim(group, BF16, PLAIN, 2.3)


def assembly(report: Report, args: argparse.Namespace, pad: int) -> None:
    """Batches of windows, in random order, half of them mirrored."""
    tracks = random_tracks()
    ours = ChunkSamples(tracks, 1, pad, 0, flip=True)
    loop = WindowLoop(tracks, pad)
    entries = np.random.default_rng(1).integers(len(ours), size=(8, WINDOWS))
    keys = [[Key(int(i)) for i in row] for row in entries]
    batch, (x_screen, X_cam) = ours.__getitems__(keys[0]), loop.batch(ours.windows, entries[0])
    same("windows", batch["x_screen"], x_screen, 0)
    same("poses", batch["X_cam"], X_cam, 0)
    turn = iter(range(1 << 30))
    slowly, fast = "loop over windows", "ours: slices of padded tables"
    contestants = [
        Contestant(slowly, lambda: loop.batch(ours.windows, entries[next(turn) % 8]), WINDOWS),
        Contestant(fast, lambda: ours.__getitems__(keys[next(turn) % 8]), WINDOWS),
    ]
    group = f"batches of {WINDOWS} windows of {2 * pad + 1} frames"
    report.rows += race(group, contestants, args.rounds, timer(torch.device("cpu")))  # the tables lie on the host here
    report.aim(group, fast, slowly, 10)


def random_tracks(seed: int = 0) -> Tracks:
    """Tracks of random numbers before one camera."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1000, 2500, TRACKS)
    joints, frames = get(SKELETON).num, int(lengths.sum())
    return Tracks(
        layout=SKELETON,
        skeleton=SKELETON,
        keypoints=rng.uniform(0, 1000, (frames, joints, 2)).astype(np.float32),
        X_cam=rng.normal(0, 500, (frames, joints, 3)).astype(np.float32),
        start=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        subject=np.full(TRACKS, "S1"),
        action=np.full(TRACKS, "Walking"),
        view=np.zeros(TRACKS, np.int32),
        person=np.zeros(TRACKS, np.int32),
        camera=np.zeros(TRACKS, np.int32),
        has_3d=np.ones(TRACKS, bool),
        cameras=Cameras.make(K=np.eye(3)[None], R=np.eye(3)[None], t=np.zeros((1, 3)), size=np.full((1, 2), 1000.0)),
        fps=50.0,
    )


def mpjpe(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).norm(dim=-1).mean()


def default_adam(model: TemporalModel) -> Optimizer:
    return Adam(model.parameters(), lr=1e-3, amsgrad=True)


def fused_adam(model: TemporalModel) -> Optimizer:
    return Adam(model.parameters(), lr=1e-3, amsgrad=True, fused=True)


def randomised(model: TemporalModel) -> TemporalModel:
    """A copy whose running statistics are those of random input."""
    model = copy.deepcopy(model).train()
    model.set_momentum(1.0)
    with torch.no_grad():
        model.single(torch.randn(8, model.receptive_field, model.joints_in, model.features, device=model.shrink.weight.device))
    return model


def check_training(model: TemporalModel, x: Tensor, target: Tensor) -> None:
    """Output of the trained form, and every gradient of a step without dropout, against plain convolutions."""
    x, target = x[:16], target[:16]
    frozen = randomised(model).eval()
    with torch.no_grad():
        same("windows", frozen.single(x), plain_single(frozen, x), 2e-6)
    found = []
    for forward in (plain_single, TemporalModel.single):
        network = copy.deepcopy(model).double().train()
        network.dropout = 0.0
        mpjpe(forward(network, x.double()), target.double()).backward()
        found.append(dict(network.named_parameters()))
    for name, parameter in found[0].items():
        same(f"gradient of {name}", found[1][name].grad, parameter.grad, 1e-8)


# The plain formulations ------------------------------------------------------------------------------------


def plain_layer(model: TemporalModel, h: Tensor, conv: torch.nn.Conv1d, bn: torch.nn.BatchNorm1d, stride: int, dilation: int) -> Tensor:
    """Convolution, batch norm, ReLU, dropout.    (B, C, T) -> (B, C, T')"""
    h = conv1d(h, conv.weight, stride=stride, dilation=dilation)
    h = batch_norm(h, bn.running_mean, bn.running_var, bn.weight, bn.bias, model.training, bn.momentum, bn.eps)
    return dropout(h.relu_(), model.dropout, model.training)


def plain_single(model: TemporalModel, x: Tensor) -> Tensor:
    """One pose per window by strided convolutions.    (B, RF, J_in, F) -> (B, 1, J_out, 3)"""
    h = plain_layer(model, x.flatten(2).transpose(1, 2), model.expand_conv, model.expand_bn, model.widths[0], 1)
    for i, width in enumerate(model.widths[1:]):
        kept = h[:, :, width // 2 :: width]
        h = plain_layer(model, h, model.layers_conv[2 * i], model.layers_bn[2 * i], width, 1)
        h = kept + plain_layer(model, h, model.layers_conv[2 * i + 1], model.layers_bn[2 * i + 1], 1, 1)
    return model.shrink(h).transpose(1, 2).unflatten(2, (-1, 3))


def plain_forward(model: TemporalModel, x: Tensor) -> Tensor:
    """A pose per frame by dilated convolutions.    (B, T, J_in, F) -> (B, T - RF + 1, J_out, 3)"""
    h = plain_layer(model, x.flatten(2).transpose(1, 2), model.expand_conv, model.expand_bn, 1, 1)
    gap = model.widths[0]
    for i, width in enumerate(model.widths[1:]):
        side = (width - 1) * gap // 2
        kept = h[:, :, side : h.shape[2] - side]
        h = plain_layer(model, h, model.layers_conv[2 * i], model.layers_bn[2 * i], 1, gap)
        h = kept + plain_layer(model, h, model.layers_conv[2 * i + 1], model.layers_bn[2 * i + 1], 1, 1)
        gap *= width
    return model.shrink(h).transpose(1, 2).unflatten(2, (-1, 3))


class WindowLoop:
    """Batches made a window at a time: slice, repeat what is missing at the ends, mirror, copy into the batch, convert at the end."""

    def __init__(self, tracks: Tracks, pad: int):
        bounds = list(zip(tracks.start[:-1], tracks.start[1:], strict=True))
        keypoints = screen_keypoints(tracks).numpy()
        self.pad = pad
        self.keypoints = [keypoints[a:b] for a, b in bounds]
        self.poses = [tracks.X_cam[a:b] for a, b in bounds]
        self.flip = list(get(tracks.layout).flip)

    def batch(self, windows, entries: np.ndarray) -> tuple[Tensor, Tensor]:
        """-> (B, 2 pad + 1, J_in, 2), (B, 1, J, 3)"""
        joints = len(self.flip)
        x, X = np.empty((len(entries), 2 * self.pad + 1, joints, 2)), np.empty((len(entries), 1, joints, 3))
        for i, entry in enumerate(entries):
            track, first, flipped = windows.track[entry], windows.first[entry], windows.flipped[entry]
            keypoints, low, high = self.keypoints[track], first - self.pad, first + self.pad + 1
            start, stop = max(low, 0), min(high, len(keypoints))
            if (start, stop) == (low, high):
                x[i] = keypoints[low:high]
            else:
                x[i] = np.pad(keypoints[start:stop], ((start - low, high - stop), (0, 0), (0, 0)), "edge")
            X[i] = self.poses[track][first : first + 1]
            if flipped:
                x[i, ..., 0] *= -1
                x[i] = x[i][:, self.flip]
                X[i, ..., 0] *= -1
                X[i] = X[i][:, self.flip]
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(X.astype(np.float32))
