"""Correction of poses at test time: all of a batch at once, beside an optimiser for one pose at a time with the same result."""

import argparse
import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

from lib.correction import OnlineCorrector, correct_by_projection
from lib.errors import RunError
from lib.models.pose_machine import Projector2D, Regressor3D
from lib.skeleton import get
from scripts.benchmarks.harness import Contestant, Report, begin, race, timer

SKELETON, CAMERA_SKELETON = "h36m16", "h36m17"
SINGLE, OURS = "one pose at a time", "ours: the batch"
GOALS = {"CP": 20, "C": 8, "pose": 8}  # at least so many times as fast
WHAT = {"CP": "both networks, 2 steps (the paper)", "C": "the regressor, 2 steps", "pose": "the pose itself, 2 steps"}
LR = {"CP": 1.5e-4, "C": 1.5e-4, "pose": 1e-2}
NOISE, ACROSS, ALONG, BONE = 0.01, 30.0, 60.0, 10.0  # of the race through a camera
TOLERANCE_MM = 0.05


def run(args: argparse.Namespace) -> Report:
    """Race all forms of the correction.    -> harness.Report"""
    if args.single < 1 or args.hidden < 8:
        raise RunError(f"--single {args.single} --hidden {args.hidden}: expected at least 1 frame and 8 units")
    report, device = begin("correction", "frames", args.device)
    for params, goal in GOALS.items():
        learned(report, args, device, params, goal)
    through_camera(report, args, device)
    return report


def learned(report: Report, args: argparse.Namespace, device: torch.device, params: str, goal: float) -> None:
    """Steps of Adam through a learned projector; eps and tau end nothing, so that all poses take all steps."""
    regressor, projector = networks(args.hidden, device)
    draw = torch.Generator().manual_seed(1)
    joints = get(SKELETON).num
    p3d, p2d = (torch.rand(args.points, joints, k, generator=draw).to(device) for k in (3, 2))
    some = min(args.single, args.points)
    options = {"lr": LR[params], "params": params, "steps": 2}
    ours = OnlineCorrector(regressor, projector, lambda p: p, SKELETON, eps_mm=0.0, tau_mm=math.inf, **options)

    def single() -> Tensor:
        return one_at_a_time(regressor, projector, p3d[:some], p2d[:some], **options)

    same(WHAT[params], ours(p3d, p2d).p3d[:some], single(), 2e-5)
    contestants = [Contestant(SINGLE, single, some), Contestant(OURS, lambda: ours(p3d, p2d), len(p3d))]
    report.rows += race(WHAT[params], contestants, args.rounds, timer(device))
    report.aim(WHAT[params], OURS, SINGLE, goal)


def through_camera(report: Report, args: argparse.Namespace, device: torch.device) -> None:
    """The same estimate through a known camera by a general solver of least squares."""
    X_root, root, x, lengths = lifted(args.points)
    some = min(args.single, args.points)
    options = {"noise": NOISE, "prior_mm": (ACROSS, ALONG), "bone_mm": BONE, "huber": 1e9, "tau_mm": math.inf, "steps": 100, "eps_mm": 1e-7}
    given = [a.to(device) for a in (X_root, x, root, lengths)]

    def ours() -> Tensor:
        return correct_by_projection(given[0], given[1], None, given[2], None, CAMERA_SKELETON, lengths_mm=given[3], **options).X_cam

    def single() -> Tensor:
        poses = [by_least_squares(*(a[i].numpy() for a in (X_root, root, x, lengths))) for i in range(some)]
        return torch.from_numpy(np.stack(poses))

    found = ours()[:some].cpu()
    worst = float((found - single()).abs().max())
    if not worst <= TOLERANCE_MM:
        raise RunError(f"through a camera: the contestants differ by {worst:.3g} mm, expected at most {TOLERANCE_MM:g}")
    group = "through a known camera, to convergence"
    contestants = [Contestant("one pose at a time: scipy", single, some), Contestant(OURS, ours, len(x))]
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, OURS, "one pose at a time: scipy", 20)


def networks(hidden: int, device: torch.device, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A regressor and a projector with random weights."""
    torch.manual_seed(seed)
    joints = get(SKELETON).num
    pair = Regressor3D(joints, hidden), Projector2D(joints, hidden)
    for layer in (m for module in pair for m in module.modules() if isinstance(m, nn.Linear)):
        nn.init.kaiming_normal_(layer.weight)
    return tuple(module.to(device).eval() for module in pair)


def one_at_a_time(
    regressor: nn.Module, projector: nn.Module, p3d: Tensor, p2d: Tensor, conf: Tensor | None = None, *, lr: float, params: str, steps: int
) -> Tensor:
    """`OnlineCorrector` as one would write it: for every pose the trained weights, a new torch.optim.Adam and its steps.

    p3d (N,J,3), p2d (N,J,2), conf (N,J) -> (N,J,3)
    """
    regressor, projector = copy.deepcopy(regressor), copy.deepcopy(projector)
    conf = torch.ones_like(p2d[..., 0]) if conf is None else conf
    moving = {"C": [regressor], "CP": [regressor, projector], "pose": []}[params]
    for module in {regressor, projector} - set(moving):
        module.requires_grad_(False)
    weights = [value for module in moving for value in module.parameters()]
    trained = [value.detach().clone() for value in weights]
    results = []
    for i in range(len(p3d)):
        with torch.no_grad():
            for value, original in zip(weights, trained, strict=True):
                value.copy_(original)
        pose = regressor(p3d[i : i + 1]).detach().requires_grad_()
        optimizer = torch.optim.Adam(weights or [pose], lr=lr)
        for _ in range(steps):
            seen = projector(regressor(p3d[i : i + 1]) if weights else pose)
            optimizer.zero_grad()
            (conf[i, :, None] * (seen - p2d[i]).square()).mean().backward()
            optimizer.step()
        with torch.no_grad():
            results.append(regressor(p3d[i : i + 1]) if weights else pose.detach())
    return torch.cat(results)


def lifted(count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Poses that were lifted badly, roots, keypoints in the plane z = 1, and true bone lengths.

    -> (N,J,3) mm, (N,3) mm, (N,J,2), (N,E) mm, float64
    """
    rng = np.random.default_rng(seed)
    skeleton = get(CAMERA_SKELETON)
    pose = np.zeros((count, skeleton.num, 3))
    for parent, child in skeleton.bones:
        way = rng.normal(size=(count, 3))
        pose[:, child] = pose[:, parent] + 250 * way / np.linalg.norm(way, axis=1, keepdims=True)
    root = rng.normal(scale=(600, 300, 600), size=(count, 3)) + (0, 0, 5000)
    X = pose + root[:, None]
    x = X[..., :2] / X[..., 2:] + rng.normal(scale=NOISE / 2, size=(*X.shape[:2], 2))
    guess = pose + rng.normal(scale=40, size=pose.shape)
    guess -= guess[:, skeleton.root_index, None]
    lengths = np.full((count, len(skeleton.bones)), 250.0)
    return tuple(torch.from_numpy(a) for a in (guess, root + rng.normal(scale=50, size=root.shape), x, lengths))


def by_least_squares(
    X_root: np.ndarray,
    root: np.ndarray,
    x: np.ndarray,
    lengths: np.ndarray,
    deviations: Sequence[float] = (NOISE, ACROSS, ALONG, BONE, 200),
) -> np.ndarray:
    """`correct_by_projection` of one pose without Huber's loss, by scipy.   (J,3), (3,), (J,2), (E,) -> (J,3) mm from the camera"""
    skeleton = get(CAMERA_SKELETON)
    noise, across, along, bone, spread = deviations
    parent, child = skeleton.bones.T
    others = [j for j in range(skeleton.num) if j != skeleton.root_index]
    sight = root / np.linalg.norm(root)

    def residuals(flat: np.ndarray) -> np.ndarray:
        X = flat.reshape(-1, 3)
        off = (X - X[skeleton.root_index] - X_root)[others]
        deep = off @ sight
        stretch = np.linalg.norm(X[child] - X[parent], axis=1) - lengths
        parts = ((X[:, :2] / X[:, 2:] - x) / noise, (off - deep[:, None] * sight) / across, deep / along, stretch / bone,
                 (X[skeleton.root_index] - root) / spread)  # fmt: skip
        return np.concatenate([part.ravel() for part in parts])

    start = (X_root + root).ravel()
    return least_squares(residuals, start, xtol=1e-12, ftol=1e-12, gtol=1e-12).x.reshape(-1, 3)


def same(what: str, ours: Tensor, other: Tensor, tolerance: float) -> None:
    """Stop when two contestants do not compute the same, in shares."""
    worst = float((ours - other).abs().max())
    if not worst <= tolerance:
        raise RunError(f"{what}: the contestants differ by {worst:.3g}, expected at most {tolerance:g}")
