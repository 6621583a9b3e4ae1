"""Evaluation of 3D poses: poses per second beside a loop over poses, a batched SVD, and a loop over crops."""

import argparse
from collections import defaultdict

import cv2
import numpy as np
import torch

from lib.errors import RunError
from lib.geometry.crop import crop_affine, invert, transform_points
from lib.metrics import PoseEvaluator, pose
from lib.metrics.report import ACTIONS
from lib.skeleton import get
from scripts.benchmarks.harness import Contestant, Report, begin, race, timer

SKELETON = "h36m17"
LOOP = 500  # poses given to the loops
PATCH = (256, 256)


def run(args: argparse.Namespace) -> Report:
    """Race all evaluations.    -> harness.Report in poses/s"""
    report, device = begin("metrics", "poses", args.device)
    pred, gt = poses(args.points)
    evaluation(report, args, pred, gt)
    alignment(report, args, pred, gt, device)
    back_transform(report, args, device)
    return report


def poses(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth 5 m in front of the camera and predictions 60 mm off in each coordinate.    -> (N, J, 3) float32 mm each"""
    rng = np.random.default_rng(seed)
    body = rng.normal(size=(get(SKELETON).num, 3)) * [150.0, 450.0, 100.0]
    gt = body + rng.normal(size=(count, *body.shape)) * 80 + [0.0, 0.0, 5000.0]
    return (gt + rng.normal(size=gt.shape) * 60).astype(np.float32), gt.astype(np.float32)


def evaluation(report: Report, args: argparse.Namespace, pred: np.ndarray, gt: np.ndarray) -> None:
    """All numbers of a report, from a batch of predictions to means by joint and action."""
    actions = [list(ACTIONS)[i % len(ACTIONS)] for i in range(len(gt))]

    def ours(count: int = len(gt)):
        evaluator = PoseEvaluator(SKELETON, actions=actions)
        truth = {"X_cam": torch.from_numpy(gt[:count]), "X_valid": torch.ones(gt[:count].shape[:2]), "id": torch.arange(count)}
        evaluator.update({"X_cam": torch.from_numpy(pred[:count])}, truth)
        return evaluator.compute()

    def loop():
        return evaluate_slowly(pred[:LOOP], gt[:LOOP], actions[:LOOP])

    few, slow = ours(LOOP), loop()
    for name, values in (("metrics", few.metrics), ("per joint", few.per_joint), ("per action", few.per_action)):
        for key, value in flat(values).items():
            same(f"{name} {key}", np.float64(value), np.float64(flat(slow[name])[key]), 1e-9 * max(1.0, abs(value)))
    group = f"evaluation, {len(gt)} poses of {gt.shape[1]} joints"
    contestants = [Contestant("loop: a pose at a time (numpy)", loop, LOOP), Contestant("ours: PoseEvaluator", ours, len(gt))]
    report.rows += race(group, contestants, args.rounds, timer(torch.device("cpu")))  # an evaluator keeps its rows on the CPU
    report.aim(group, "ours: PoseEvaluator", "loop: a pose at a time (numpy)", 75)


def alignment(report: Report, args: argparse.Namespace, pred: np.ndarray, gt: np.ndarray, device: torch.device) -> None:
    """P-MPJPE alone, from float64 poses."""
    pred, gt = pred.astype(np.float64), gt.astype(np.float64)
    tensors = [torch.from_numpy(x).to(device) for x in (pred, gt)]

    def ours(function=pose.pa_mpjpe):
        return function(*tensors, None)

    def loop() -> np.ndarray:
        return np.array([distances(align_slowly(p, g), g).mean() for p, g in zip(pred[:LOOP], gt[:LOOP], strict=True)])

    same("P-MPJPE, batched SVD", ours().cpu().numpy(), batched_svd(pred, gt), 1e-6)
    same("P-MPJPE, loop", ours().cpu().numpy()[:LOOP], loop(), 1e-6)
    group = f"P-MPJPE, {len(gt)} poses of {gt.shape[1]} joints"
    contestants = [
        Contestant("batched SVD (numpy)", lambda: batched_svd(pred, gt), len(gt)),
        Contestant("loop: SVD (numpy)", loop, LOOP),
        Contestant("ours: closed form", torch.no_grad()(ours), len(gt)),
    ]
    if args.compile:
        fused = torch.compile(pose.pa_mpjpe, dynamic=False)
        contestants.append(Contestant("ours: closed form, compiled", torch.no_grad()(lambda: ours(fused)), len(gt)))
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, "ours: closed form", "batched SVD (numpy)", 2.5)
    report.aim(group, "ours: closed form", "loop: SVD (numpy)", 20)


def back_transform(report: Report, args: argparse.Namespace, device: torch.device) -> None:
    """Joints of the network's patch back into the image, a box per pose."""
    rng = np.random.default_rng(1)
    center, box = rng.uniform(300, 700, size=(args.points, 2)), rng.uniform(300, 600, size=(args.points, 2))
    x_patch = rng.uniform(0, 256, size=(args.points, get(SKELETON).num, 2))
    tensors = [torch.from_numpy(x).to(device) for x in (center, box, x_patch)]

    def ours() -> torch.Tensor:
        return transform_points(invert(crop_affine(*tensors[:2], PATCH)), tensors[2])

    def loop() -> np.ndarray:
        return np.stack([back_slowly(*values) for values in zip(center[:LOOP], box[:LOOP], x_patch[:LOOP], strict=True)])

    same("patch to image", ours().cpu().numpy()[:LOOP], loop(), 1e-3)  # OpenCV takes the three points in float32
    group = f"patch to image, {args.points} poses of {x_patch.shape[1]} joints"
    contestants = [Contestant("loop: an affine per pose, a product per joint", loop, LOOP), Contestant("ours: batched", ours, args.points)]
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, "ours: batched", "loop: an affine per pose, a product per joint", 100)


def same(what: str, ours: np.ndarray, other: np.ndarray, tolerance: float) -> None:
    """Stop when two contestants do not compute the same."""
    worst = float(np.abs(ours - other).max())
    if not worst <= tolerance:
        raise RunError(f"{what}: the contestants differ by {worst:.3g}, expected at most {tolerance:g}")


def flat(values: dict) -> dict[str, float]:
    """{"a b": number} of {a: {b: number}} or {a: number}."""
    rows = {key: value if isinstance(value, dict) else {"": value} for key, value in values.items()}
    return {f"{key} {name}".strip(): value for key, row in rows.items() for name, value in row.items()}


# The plain formulations ------------------------------------------------------------------------------------


def distances(p: np.ndarray, g: np.ndarray) -> np.ndarray:
    """(J, 3), (J, 3) -> (J,)"""
    return np.sqrt(((p - g) ** 2).sum(-1))


def align_slowly(p: np.ndarray, g: np.ndarray, joints: slice | list[int] = np.s_[:]) -> np.ndarray:
    """One pose moved onto another by the similarity that fits `joints` best (Umeyama, PAMI 1991).    -> (J, 3)"""
    mean_p, mean_g = p[joints].mean(0), g[joints].mean(0)
    p0, g0 = p[joints] - mean_p, g[joints] - mean_g
    U, S, Vt = np.linalg.svd(p0.T @ g0)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    return (S * sign).sum() / (p0**2).sum() * (p - mean_p) @ (U * sign) @ Vt + mean_g


def scaled(p: np.ndarray, g: np.ndarray, joints: slice | list[int] = np.s_[:]) -> np.ndarray:
    return (p[joints] * g[joints]).sum() / (p[joints] ** 2).sum() * p


def evaluate_slowly(pred: np.ndarray, gt: np.ndarray, actions: list[str]) -> dict[str, dict]:
    """What PoseEvaluator reports, a pose at a time.    (N, J, 3) mm -> {"metrics", "per joint", "per action"}"""
    skeleton = get(SKELETON)
    root, fourteen, limits = skeleton.root_index, pose.joint_set(skeleton.joints, "14"), np.array(pose.AUC_MM)
    values, joints = defaultdict(list), defaultdict(list)
    by_action = {name: defaultdict(list) for name in ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm")}
    for p, g, action in zip(pred.astype(np.float64), gt.astype(np.float64), actions, strict=True):
        p0, g0 = p - p[root], g - g[root]
        error, aligned, rescaled = distances(p0, g0), distances(align_slowly(p, g), g), distances(scaled(p0, g0), g0)
        values["mpjpe_mm"].append(error.mean())
        values["pa_mpjpe_mm"].append(aligned.mean())
        values["n_mpjpe_mm"].append(rescaled.mean())
        values["pck150_percent"].append(100 * (error < pose.PCK_MM).mean())
        values["auc_percent"].append(100 * (error[:, None] < limits).mean())
        values["n_pck150_percent"].append(100 * (rescaled < pose.PCK_MM).mean())
        for axis, name in enumerate("xyz"):
            values[f"mpjpe_{name}_mm"].append(np.abs(p0[:, axis] - g0[:, axis]).mean())
        values["mpjpe14_mm"].append(error[fourteen].mean())
        values["pa_mpjpe14_mm"].append(distances(align_slowly(p, g, fourteen), g)[fourteen].mean())
        values["n_mpjpe14_mm"].append(distances(scaled(p0, g0, fourteen), g0)[fourteen].mean())
        joints["mpjpe_mm"].append(error)
        joints["pa_mpjpe_mm"].append(aligned)
        for name, column in by_action.items():
            column[action].append(values[name][-1])
    per_action = {name: {action: float(np.mean(row)) for action, row in column.items()} for name, column in by_action.items()}
    means = {name.replace("_mm", "_action_mean_mm"): float(np.mean(list(row.values()))) for name, row in per_action.items()}
    return {
        "metrics": {name: float(np.mean(row)) for name, row in values.items()} | means,
        "per joint": {name: dict(zip(skeleton.joints, np.mean(row, 0).tolist(), strict=True)) for name, row in joints.items()},
        "per action": per_action,
    }


def batched_svd(pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """P-MPJPE of all poses with one batched SVD.    (N, J, 3) -> (N,) mm"""
    mean_p, mean_g = pred.mean(1, keepdims=True), gt.mean(1, keepdims=True)
    p0, g0 = pred - mean_p, gt - mean_g
    U, S, Vt = np.linalg.svd(p0.transpose(0, 2, 1) @ g0)
    sign = np.ones_like(S)
    sign[:, 2] = np.sign(np.linalg.det(U) * np.linalg.det(Vt))
    scale = (S * sign).sum(1) / (p0**2).sum((1, 2))
    aligned = scale[:, None, None] * (p0 @ ((U * sign[:, None]) @ Vt)) + mean_g
    return np.sqrt(((aligned - gt) ** 2).sum(-1)).mean(1)


def back_slowly(center: np.ndarray, box: np.ndarray, x_patch: np.ndarray) -> np.ndarray:
    """Joints of one patch in the image, one by one.    center (2,), box (2,) px, x_patch (J, 2) px -> (J, 2) px"""
    (width, height), (w, h) = PATCH, box
    corners = [center, center + [0.0, h / 2], center + [w / 2, 0.0]]
    targets = [[width / 2, height / 2], [width / 2, height], [width, height / 2]]
    img_from_patch = cv2.getAffineTransform(np.float32(targets), np.float32(corners))
    x_img = np.zeros_like(x_patch)
    for joint, (x, y) in enumerate(x_patch):
        x_img[joint] = img_from_patch @ np.array([x, y, 1.0])
    return x_img
