"""Triangulation: points per second beside OpenCV, batched SVD and per-point loops, on a ring of cameras 4.5 m away,
3 px noise."""

import argparse
import random
from itertools import combinations

import cv2
import numpy as np
import torch

from lib.errors import RunError
from lib.geometry.triangulation import ALL_PAIRS_UP_TO, ransac_triangulate, triangulate
from scripts.benchmarks.harness import Contestant, Report, Target, begin, race, timer

LOOP = 400  # points given to the per-point loops, which take milliseconds each
SVD = 10_000  # points given to the batched SVD
THRESHOLD_PX = 15.0
VIEWS = {4: (120, 10), 8: (100, 10), 31: (35, 5)}  # how many times the DLT shall beat a loop, and a batched SVD


def run(args: argparse.Namespace) -> Report:
    """Race all triangulations.    -> harness.Report in points/s"""
    report, device = begin("geometry", "points", args.device)
    two_views(report, args, device)
    for views in VIEWS:
        many_views(report, args, device, views)
    for views in VIEWS:
        robust(report, args, device, views)
    return report


def scene(views: int, points: int, noise: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cameras on a ring, points around (0, 0, 1000) mm and their noisy images.    -> P (V, 3, 4), X (N, 3), x (V,
    N, 2)"""
    rng = np.random.default_rng(seed)
    K = np.array([[1145.0, 0.0, 512.0], [0.0, 1144.0, 515.0], [0.0, 0.0, 1.0]])
    P = []
    for view in range(views):
        angle = 0.3 + 2 * np.pi * view / max(views, 5)  # two views are neighbours, not opposite to each other
        center = np.array([4500 * np.cos(angle), 4500 * np.sin(angle), 1500.0])
        z = np.array([0.0, 0.0, 1000.0]) - center
        z /= np.linalg.norm(z)
        x = np.cross(z, [0.0, 0.0, 1.0])
        x /= np.linalg.norm(x)
        R = np.stack([x, np.cross(z, x), z])
        P.append(K @ np.concatenate([R, -R @ center[:, None]], 1))
    P = np.stack(P)
    X = rng.normal(size=(points, 3)) * 400 + [0, 0, 1000]
    image = np.einsum("vij,nj->vni", P, np.concatenate([X, np.ones((points, 1))], 1))
    return P, X, image[..., :2] / image[..., 2:] + rng.normal(size=(views, points, 2)) * noise


def two_views(report: Report, args: argparse.Namespace, device: torch.device) -> None:
    P, _, x = scene(2, args.points)
    x0, x1 = np.ascontiguousarray(x[0].T), np.ascontiguousarray(x[1].T)
    tx, tP = torch.from_numpy(x).to(device), torch.from_numpy(P).to(device)

    def opencv(a: np.ndarray = x0, b: np.ndarray = x1) -> np.ndarray:
        X = cv2.triangulatePoints(P[0], P[1], a, b)
        return (X[:3] / X[3]).T

    pixels = [np.ascontiguousarray(view[None]) for view in x]
    F = fundamental_loop(P)

    def corrected() -> np.ndarray:
        a, b = cv2.correctMatches(F, *pixels)
        return opencv(np.ascontiguousarray(a[0].T), np.ascontiguousarray(b[0].T))

    def svd() -> np.ndarray:
        return svd_numpy(x[:, :SVD], P, np.ones((2, min(SVD, args.points))))

    def loop_iterative() -> np.ndarray:
        return np.stack([iterative_point(x[:, i], P) for i in range(LOOP)])

    def loop_linear() -> np.ndarray:
        return np.stack([iterative_point(x[:, i], P, solves=1) for i in range(LOOP)])

    same("two-view DLT", triangulate(tx, tP), opencv(), 1e-6)
    same("two-view batched SVD", triangulate(tx, tP)[:SVD], svd(), 1e-6)
    same("two-view linear LS", triangulate(tx, tP, method="linear_ls")[:LOOP], loop_linear(), 1e-6)
    same("two-view reweighted LS", triangulate(tx, tP, method="reweighted")[:LOOP], loop_iterative(), 0.05)
    same("two-view optimal", triangulate(tx, tP, method="optimal2"), corrected(), 1e-3)

    group = f"two views, {args.points} points"
    contestants = [
        Contestant("OpenCV triangulatePoints", opencv, args.points),
        Contestant("OpenCV correctMatches + triangulatePoints", corrected, args.points),
        Contestant("batched SVD (numpy)", svd, min(SVD, args.points)),
        Contestant("loop: linear LS (cv2.solve)", loop_linear, LOOP),
        Contestant("loop: iterative LS (cv2.solve)", loop_iterative, LOOP),
    ]
    for method in ("dlt", "linear_ls", "reweighted", "optimal2", "midpoint"):
        contestants += ours(method, method, args, lambda f, m=method: f(tx, tP, method=m))
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, "ours: dlt", "OpenCV triangulatePoints", 2)
    report.aim(group, "ours: linear_ls", "OpenCV triangulatePoints", 6)
    report.aim(group, "ours: reweighted", "loop: iterative LS (cv2.solve)", 100)
    report.aim(group, "ours: optimal2", "OpenCV correctMatches + triangulatePoints", 60)


def many_views(report: Report, args: argparse.Namespace, device: torch.device, views: int) -> None:
    P, _, x = scene(views, args.points)
    weight = np.random.default_rng(1).uniform(0.2, 1.0, size=(views, args.points))
    tx, tP, tw = (torch.from_numpy(a).to(device) for a in (x, P, weight))
    few, some = np.s_[:, :LOOP], np.s_[:, :SVD]

    def svd() -> np.ndarray:
        return svd_numpy(x[some], P, weight[some])

    A = torch.from_numpy(rows(x[some], P, weight[some]))

    def svd_torch() -> np.ndarray:
        X = torch.linalg.svd(A, full_matrices=False)[2][:, 3]
        return (X[:, :3] / X[:, 3:]).numpy()

    def loop() -> np.ndarray:
        return np.stack([svd_point(x[:, i], P, weight[:, i]) for i in range(LOOP)])

    out = triangulate(tx, tP, tw)
    same(f"{views}-view DLT, numpy SVD", out[:SVD], svd(), 1e-6)
    same(f"{views}-view DLT, torch SVD", out[:SVD], svd_torch(), 1e-6)
    same(f"{views}-view DLT, loop", out[:LOOP], svd_point_all(x[few], P, weight[few]), 1e-6)

    group = f"{views} views, weighted, {args.points} points"
    contestants = [
        Contestant("batched SVD (numpy)", svd, min(SVD, args.points)),
        Contestant("batched SVD (torch, matrix not counted)", svd_torch, min(SVD, args.points)),
        Contestant("loop: SVD (numpy)", loop, LOOP),
    ]
    for method in ("dlt", "linear_ls", "reweighted"):
        contestants += ours(method, method, args, lambda f, m=method: f(tx, tP, tw, m))
    report.rows += race(group, contestants, args.rounds, timer(device))
    of_loop, of_svd = VIEWS[views]
    report.aim(group, "ours: dlt", "loop: SVD (numpy)", of_loop)
    report.aim(group, "ours: dlt", "batched SVD (numpy)", of_svd)
    report.aim(group, "ours: dlt", "batched SVD (torch, matrix not counted)", of_svd)


def robust(report: Report, args: argparse.Namespace, device: torch.device, views: int) -> None:
    """10 % gross outliers; errors are measured to the truth on the points that the loops can afford."""
    P, X, x = scene(views, args.points)
    rng = np.random.default_rng(2)
    gross = rng.random(x.shape[:2]) < 0.1
    x = np.where(gross[..., None], rng.uniform(0, 1000, size=x.shape), x)
    tx, tP = torch.from_numpy(x).to(device), torch.from_numpy(P).to(device)
    everything = list(combinations(range(views), 2))

    def loop(pairs: int | None, count: int = LOOP) -> np.ndarray:
        draw = random.Random(0)
        choose = (lambda: everything) if pairs is None else (lambda: draw.choices(everything, k=pairs))
        return np.stack([ransac_point(x[:, i], P, choose()) for i in range(count)])

    def error(X_hat: np.ndarray) -> tuple[float, float]:
        distance = np.linalg.norm(X_hat - X[: len(X_hat)], axis=1)
        return float(np.median(distance)), float(np.percentile(distance, 95))

    # of many views as many random pairs as the loop takes; Parallax itself takes more
    tried, limit = ("all pairs", {}) if views <= ALL_PAIRS_UP_TO else ("10 random pairs", {"max_pairs": 10})
    judged = min(5 * LOOP, args.points)
    solutions = {"10 random pairs": loop(10, judged)}
    for method in ("dlt", "reweighted"):  # the first solves the inliers as the loops do, the second is the default
        fast = ransac_triangulate(tx, tP, threshold_px=THRESHOLD_PX, method=method, **limit)[0]
        solutions[method] = fast[:judged].cpu().numpy()
    if views <= ALL_PAIRS_UP_TO:  # of more views the loop would take minutes
        solutions["all pairs"] = loop(None, judged)
    errors = {key: error(value) for key, value in solutions.items()}
    notes = {key: "error median {:.1f} p95 {:.1f} mm".format(*value) for key, value in errors.items()}

    group = f"{views} views, 10 % outliers, {args.points} points"
    contestants = [Contestant("loop: RANSAC, 10 random pairs", lambda: loop(10), LOOP, notes["10 random pairs"])]
    if "all pairs" in solutions:
        contestants.append(Contestant("loop: RANSAC, all pairs", lambda: loop(None), LOOP, notes["all pairs"]))
    for method, name in (("dlt", f"ransac, {tried}"), ("reweighted", f"ransac, {tried}, reweighted")):
        options = {"threshold_px": THRESHOLD_PX, "method": method, **limit}
        contestants += ours("ransac", name, args, lambda f, options=options: f(tx, tP, **options), notes[method])
    report.rows += race(group, contestants, min(args.rounds, 3), timer(device))
    report.aim(group, f"ours: ransac, {tried}", "loop: RANSAC, 10 random pairs", 150)
    for index, name in enumerate(("median", "p95")):
        best = min(errors[key][index] for key in errors if key.endswith("pairs"))
        goal = round(best + 0.05, 2)  # equal consensus sets leave differences of hundredths of a mm
        report.targets.append(Target(f"{group}: {name} error, mm, not above the loops'", errors["dlt"][index], goal, True))


def ours(kind: str, name: str, args: argparse.Namespace, call, note: str = "") -> list[Contestant]:
    function = ransac_triangulate if kind == "ransac" else triangulate
    contestants = [Contestant(f"ours: {name}", torch.no_grad()(lambda: call(function)), args.points, note)]
    if args.compile:
        fused = torch.compile(function, dynamic=False)
        contestants.append(Contestant(f"ours: {name}, compiled", torch.no_grad()(lambda: call(fused)), args.points, note))
    return contestants


def same(what: str, ours_X: torch.Tensor, other: np.ndarray, tolerance: float) -> None:
    """Stop when two contestants do not compute the same (mm)."""
    worst = float(np.abs(ours_X.cpu().numpy()[: len(other)] - other).max())
    if not worst <= tolerance:
        raise RunError(f"{what}: the contestants differ by {worst:.3g} mm, expected at most {tolerance:g} mm")


# The plain formulations ------------------------------------------------------------------------------------


def rows(x: np.ndarray, P: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Homogeneous systems.    x (V, N, 2), P (V, 3, 4), weight (V, N) -> (N, 2V, 4)"""
    A = (x[..., None] * P[:, None, 2:3] - P[:, None, :2]) * weight[..., None, None]  # (V, N, 2, 4)
    return np.ascontiguousarray(A.transpose(1, 0, 2, 3)).reshape(x.shape[1], -1, 4)


def svd_numpy(x: np.ndarray, P: np.ndarray, weight: np.ndarray) -> np.ndarray:
    X = np.linalg.svd(rows(x, P, weight[:, : x.shape[1]]), full_matrices=False)[2][:, 3]
    return X[:, :3] / X[:, 3:]


def svd_point(x: np.ndarray, P: np.ndarray, weight: np.ndarray) -> np.ndarray:
    A = np.concatenate([w * (u[:, None] * p[2:3] - p[:2]) for u, p, w in zip(x, P, weight, strict=True)])
    X = np.linalg.svd(A)[2][3]
    return X[:3] / X[3]


def svd_point_all(x: np.ndarray, P: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.stack([svd_point(x[:, i], P, weight[:, i]) for i in range(x.shape[1])])


def iterative_point(x: np.ndarray, P: np.ndarray, solves: int = 10, tolerance: float = 3e-5) -> np.ndarray:
    """Hartley and Sturm's Iterative-LS for one point, rows divided by the depth until it stays."""
    A = np.concatenate([u[:, None] * p[2:3] - p[:2] for u, p in zip(x, P, strict=True)])
    depth = np.ones(len(P))
    for _ in range(solves):
        scaled = A / np.repeat(depth, 2)[:, None]
        X = cv2.solve(np.ascontiguousarray(scaled[:, :3]), -scaled[:, 3:], flags=cv2.DECOMP_SVD)[1][:, 0]
        new = P[:, 2, :3] @ X + P[:, 2, 3]
        if np.all(np.abs(new - depth) <= tolerance * np.abs(new)):
            break
        depth = new
    return X


def ransac_point(x: np.ndarray, P: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Point of the pair with most inliers, solved again from all of them."""
    one = np.ones(len(P))
    best = np.zeros(len(P), dtype=bool)
    for pair in pairs:
        pair = list(pair)
        X = svd_point(x[pair], P[pair], one[pair])
        image = P[:, :, :3] @ X + P[:, :, 3]
        inlier = np.linalg.norm(image[:, :2] / image[:, 2:] - x, axis=1) < THRESHOLD_PX
        if inlier.sum() > best.sum():
            best = inlier
    if best.sum() < 2:
        best[:] = True
    return svd_point(x[best], P[best], one[best])


def fundamental_loop(P: np.ndarray) -> np.ndarray:
    """Fundamental matrix of two projection matrices from the epipole and the pseudo-inverse."""
    center = np.linalg.svd(P[0])[2][3]
    e = P[1] @ center
    cross = np.array([[0, -e[2], e[1]], [e[2], 0, -e[0]], [-e[1], e[0], 0]])
    F = cross @ P[1] @ np.linalg.pinv(P[0])
    return F / np.linalg.norm(F)
