"""Extrinsics of a rig from the joints of moving people alone, with known intrinsics (EpipolarPose, section 3.2, "without R/t").

A pair of static cameras sees the same joints over many frames: the five-point algorithm gives its relative pose up to the length of
the baseline (Nister, PAMI 2004). Pairs are chained into one rig through joints that three cameras see, and a bundle adjustment
moves all cameras and joints together. What remains free is one length, see `SCALES`.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.epipolar import (
    essential,
    essential_from_pose,
    fundamental,
    fundamental_from_essential,
    fundamental_from_pose,
    relative_from_cameras,
    relative_pose,
    sampson_distance,
)
from lib.geometry.triangulation import ransac_triangulate, reprojection_error, triangulate

METHODS = {"lmeds": "LMEDS", "ransac": "RANSAC", "magsac": "USAC_MAGSAC"}
SCALES = ("body", "baseline", "none")
MAX_SAMPSON_PX = 5.0  # of the matches of a pair, in the median
THRESHOLD_PX = 3.0  # of the search by ransac and magsac; the refinement takes all matches
MIN_MATCHES = 30  # of one pair; a single frame of 17 joints is nearly degenerate
MIN_IN_FRONT = 0.7  # share of matches that must lie in front of both cameras
MINIMAL_SAMPLES = 3000  # matches that the five-point search looks at; the refinement takes all
PLAIN = 4.0  # a simpler model explains the matches when its error is below this many times that of the full one ...
FLOOR_PX = 0.5  # ... or below this


@dataclass(frozen=True)
class PairPose:
    """Relative pose of two cameras, X_cam1 = R X_cam0 + t."""

    R: Tensor  # (3, 3)
    t: Tensor  # (3,) of length 1
    inlier: Tensor  # (N,) bool, matches within three times `noise_px`
    sampson_px: float  # median Sampson distance of all matches
    noise_px: float  # standard deviation of the joints per coordinate, outliers aside
    in_front: float  # share of inliers in front of both cameras
    support: float  # inliers, each counted by the sine of the angle between its rays


@dataclass(frozen=True)
class Rig:
    """A recovered rig; the world is the frame of the first camera."""

    cameras: Cameras  # (V,) with the given K, dist, size
    X_world: Tensor  # (T', J, 3) joints of the frames that were used
    X_valid: Tensor  # (T', J) bool
    frames: Tensor  # (T',) int64, which frames of the input
    pairs: dict[tuple[int, int], PairPose]
    error_px: float  # median reprojection error after the adjustment
    start_px: float  # the same before it
    steps: int  # of the adjustment


@dataclass(frozen=True)
class RigErrors:
    """Errors of recovered extrinsics that no choice of world and unit changes; entry [i, j] is about camera j as seen from i."""

    rotation_deg: Tensor  # (V, V)
    direction_deg: Tensor  # (V, V) between the baselines from i to j, in the axes of camera i


def rig_errors(recovered: Cameras, true: Cameras) -> RigErrors:
    """Rotation and baseline-direction errors in degrees of every pair of cameras.    Cameras (V,), (V,)

    Row 0 is the usual report: each camera relative to the first. Raises GeometryError for different numbers of cameras.
    """
    if recovered.shape != true.shape or len(true.shape) != 1:
        raise GeometryError(f"rig_errors: cameras of shapes {tuple(recovered.shape)} and {tuple(true.shape)}, expected twice (V,)")
    recovered, true = recovered.to(torch.float64), true.to(torch.float64)
    (R_a, t_a), (R_b, t_b) = (relative_from_cameras(c.R[:, None], c.t[:, None], c.R[None], c.t[None]) for c in (recovered, true))
    rotation = torch.from_numpy(Rotation.from_matrix((R_a.mT @ R_b).flatten(0, 1).numpy()).magnitude()).view(R_a.shape[:2])
    b_a, b_b = (torch.nn.functional.normalize((R.mT @ t[..., None])[..., 0], dim=-1) for R, t in ((R_a, t_a), (R_b, t_b)))
    direction = torch.atan2(torch.linalg.cross(b_a, b_b).norm(dim=-1), (b_a * b_b).sum(-1))
    direction = direction * (1 - torch.eye(len(direction), dtype=direction.dtype))
    return RigErrors(rotation.rad2deg(), direction.rad2deg())


# ---------------------------------------------------------------------------------------------------------- two views


def pair_pose(
    x0: Tensor,  # (N, 2) px, as seen in the image
    x1: Tensor,
    cameras: Cameras,  # (2,), of which K and dist are read
    weight: Tensor | None = None,  # (N,) confidence >= 0, 0 = no match
    method: str = "lmeds",
    max_sampson_px: float = MAX_SAMPSON_PX,
) -> PairPose:
    """Relative pose from matches gathered over many frames.

    Lens distortion is removed; the five-point algorithm searches with least medians (no threshold, at most half of the matches
    wrong), RANSAC or MAGSAC++; a weighted Cauchy fit of the Sampson distances refines it, from there and from the eight-point
    solution.

    Raises:
        GeometryError: shapes or method, fewer than MIN_MATCHES matches, cameras in one place, matches on one plane, a median
            Sampson distance above `max_sampson_px`, or fewer than 70 % of the matches (or a tie) in front of both cameras.
    """
    if x0.ndim != 2 or x0.shape[-1] != 2 or x0.shape != x1.shape or cameras.shape != (2,):
        raise GeometryError(
            f"pair_pose: x0 {tuple(x0.shape)}, x1 {tuple(x1.shape)}, cameras {tuple(cameras.shape)}, expected (N, 2), (N, 2) and (2,)"
        )
    if method not in METHODS:
        raise GeometryError(f"method: '{method}' is not one of {', '.join(METHODS)}")
    weight = torch.ones_like(x0[:, 0]) if weight is None else weight
    weight = weight.to(torch.float64)
    used = weight > 0
    if int(used.sum()) < MIN_MATCHES:
        raise GeometryError(f"found {int(used.sum())} matching joints, expected at least {MIN_MATCHES}; gather more frames")
    cameras = cameras.to(torch.float64)
    x = torch.stack([x0[used], x1[used]]).to(torch.float64)
    n = cameras.to_norm(x)  # (2, N, 2)
    focal = float(torch.linalg.det(cameras.K[:, :2, :2]).sqrt().mean())
    x = cameras.from_norm(n, distort=False)
    w = weight[used] / weight[used].mean()

    def distance(R: Tensor, t: Tensor) -> Tensor:
        return sampson_distance(fundamental_from_pose(R, t, *cameras.K), x[0], x[1])

    R, t = _refined(n, x, w, cameras.K, _starts(n, x, cameras.K, w, method, THRESHOLD_PX / focal))
    error = distance(R, t)
    median = float(error.median())
    if median > max_sampson_px:
        raise GeometryError(
            f"the median Sampson distance of {len(error)} matches is {median:.1f} px, expected at most {max_sampson_px:g}; "
            "check that the frames of both cameras are synchronised and that the intrinsics are theirs"
        )
    _check_simple(n, focal, median)
    good = torch.ones_like(error, dtype=torch.bool)
    for _ in range(5):  # trimmed, so that outliers do not widen what counts as an inlier
        noise = 1.4826 * float(error[good].median())
        good = error <= max(3 * noise, 1e-6)
    R, t, share = relative_pose(essential_from_pose(R, t), n[0, good], n[1, good])
    share = float(share)
    if share < MIN_IN_FRONT:
        found = f"only {100 * share:.0f} %" if share else "in two of the four solutions equally many"
        raise GeometryError(
            f"{found} of the matches lie in front of both cameras, expected {100 * MIN_IN_FRONT:.0f} % in one solution; "
            "check that the matches belong together"
        )
    inlier = torch.zeros_like(used)
    inlier[used] = good
    ray0, ray1 = _rays(n)
    sine = torch.linalg.cross(ray0 @ R.mT, ray1).norm(dim=-1)
    return PairPose(R, t, inlier, median, noise, share, float(sine[good].sum()))


def _rays(n: Tensor) -> Tensor:
    """Directions of length 1 of points of the plane z = 1.   n (..., 2) -> (..., 3)"""
    return torch.nn.functional.normalize(torch.cat([n, torch.ones_like(n[..., :1])], -1), dim=-1)


def _starts(n: Tensor, x: Tensor, K: Tensor, w: Tensor, method: str, threshold: float) -> list[tuple[Tensor, Tensor]]:
    """Poses to refine: of the five-point search, and of eight points on the matches that agree with it."""
    chosen = slice(None)
    if n.shape[1] > MINIMAL_SAMPLES:
        chosen = torch.from_numpy(np.random.default_rng(0).choice(n.shape[1], MINIMAL_SAMPLES, replace=False))
    a, b = (np.ascontiguousarray(v[chosen].numpy()) for v in n)
    E, _ = cv2.findEssentialMat(a, b, np.eye(3), getattr(cv2, METHODS[method]), 0.9999, threshold)
    if E is None or not np.isfinite(E).all():
        raise GeometryError("no essential matrix explains the matches; check that they belong together")
    E = torch.from_numpy(E[:3]).to(torch.float64)
    error = sampson_distance(fundamental_from_essential(E, *K), x[0], x[1])
    best = w * (error <= error.quantile(0.6))
    second = essential(fundamental(x[0], x[1], best), K[0], K[1])
    return [relative_pose(e, n[0], n[1], best)[:2] for e in (E, second)]


def _refined(n: Tensor, x: Tensor, w: Tensor, K: Tensor, starts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The pose with the least weighted Cauchy cost of Sampson distances, from several starts."""
    scale = min(float(sampson_distance(fundamental_from_pose(R, t, *K), x[0], x[1]).median()) for R, t in starts)
    fits = []
    for R, t in starts:
        side = torch.linalg.svd(t[None])[2][1:].numpy()  # two directions across the baseline

        def moved(p: np.ndarray, R=R, t=t, side=side) -> tuple[Tensor, Tensor]:
            t_new = torch.from_numpy(t.numpy() + p[3:] @ side)
            return torch.from_numpy(Rotation.from_rotvec(p[:3]).as_matrix()) @ R, t_new / t_new.norm()

        def residual(p: np.ndarray, moved=moved) -> np.ndarray:
            return (w.sqrt() * sampson_distance(fundamental_from_pose(*moved(p), *K), x[0], x[1])).numpy()

        fit = least_squares(residual, np.zeros(5), loss="cauchy", f_scale=max(2 * scale, 1e-6), max_nfev=30)
        fits.append((fit.cost, moved(fit.x)))
    return min(fits, key=lambda f: f[0])[1]


def _check_simple(n: Tensor, focal: float, sampson_px: float) -> None:
    """GeometryError where a rotation alone, or a homography, explains the matches as well as the epipolar geometry does."""
    limit = max(PLAIN * sampson_px, FLOOR_PX)
    ray0, ray1 = _rays(n).numpy()
    chosen = np.ones(len(ray0), bool)
    for _ in range(3):  # trimmed, as some matches may be wrong
        turn, _ = Rotation.align_vectors(ray1[chosen], ray0[chosen])
        angle = np.linalg.norm(turn.apply(ray0) - ray1, axis=1)
        chosen = angle <= np.median(angle)
    if focal * np.median(angle) <= limit:
        raise GeometryError(
            f"no baseline: a rotation explains the matches to {focal * np.median(angle):.2f} px; both cameras stand in one place"
        )
    errors = []
    for a, b in ((n[0], n[1]), (n[1], n[0])):  # a view along the plane sees it poorly: the better direction counts
        H, _ = cv2.findHomography(a.numpy(), b.numpy(), cv2.LMEDS)
        if H is not None:
            mapped = np.concatenate([a.numpy(), np.ones((len(a), 1))], 1) @ H.T
            errors.append(focal * np.median(np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - b.numpy(), axis=1)))
    if errors and min(errors) <= limit:
        raise GeometryError(
            f"all joints lie on one plane: a homography explains the matches to {min(errors):.2f} px; "
            "gather frames in which people stand in other places"
        )


# ---------------------------------------------------------------------------------------------------------- many views


def recover_rig(
    x_img: Tensor,  # (T, V, J, 2) px, as seen in the image
    conf: Tensor,  # (T, V, J) >= 0, the weight of squared residuals, 0 = unseen
    cameras: Cameras,  # (V,), of which K, dist and size are read
    *,
    method: str = "lmeds",
    max_sampson_px: float = MAX_SAMPSON_PX,  # of a pair, in the median; for images of about 1000 px
    max_frames: int = 500,  # drawn at random by `seed`; 0 = all
    seed: int = 0,
    loss: str = "cauchy",
    f_scale_px: float = 0.0,  # residual at which the loss turns robust; 0 = three times the noise of the pairs
    max_steps: int = 50,  # of each of the two rounds of bundle adjustment; 0 = none
    scale: str = "none",
    length_mm: float = 0.0,  # of the body (scale body), or between the first two cameras (scale baseline)
    bones: np.ndarray | None = None,  # (E, 2) joints whose distances make up the body (scale body)
) -> Rig:
    """Cameras and joints from matching joints over many frames.

    A frame is one person at one instant: several people at an instant are several frames. Pairs of cameras are joined in the
    order of their support, each baseline is measured against the joints that are already known, and all is adjusted together.
    The unit is: scale "body", that in which the median lengths of `bones` sum to `length_mm`; "baseline", in which the first two
    cameras are `length_mm` apart; "none", in which they are 1 apart.

    Raises:
        GeometryError: shapes, names or lengths that do not fit, no frame seen by two cameras, a camera that shares nothing (or
            only degenerate matches: each is named) with the others, too few joints in front after the adjustment.
    """
    _check_arguments(x_img, conf, cameras, loss, scale, length_mm, bones)
    views, cameras = len(cameras), cameras.to(torch.float64)
    conf = torch.where(torch.isfinite(x_img).all(-1), conf, 0.0).to(torch.float64).clamp(min=0)
    shared = ((conf > 0).sum(1) >= 2).any(-1).nonzero()[:, 0].numpy()
    if not len(shared):
        raise GeometryError(f"none of {len(conf)} frames has a joint that two cameras see, expected many; check the frame numbers")
    if max_frames and len(shared) > max_frames:
        shared = np.sort(np.random.default_rng(seed).choice(shared, max_frames, replace=False))
    frames = torch.from_numpy(shared)
    joints = x_img.shape[2]
    seen = conf[frames].transpose(0, 1).flatten(1)  # (V, N)
    x_img = torch.where(seen[..., None] > 0, x_img[frames].to(torch.float64).transpose(0, 1).flatten(1, 2), 0.0)  # (V, N, 2)
    x = cameras.undistort(x_img)

    pairs, reasons = {}, {}
    for i in range(views):
        for j in range(i + 1, views):
            try:
                both = torch.minimum(seen[i], seen[j])
                pairs[i, j] = pair_pose(x_img[i], x_img[j], cameras[[i, j]], both, method, max_sampson_px)
            except GeometryError as error:
                reasons[i, j] = str(error)
    R, t = _chained(pairs, reasons, x, seen, cameras.K)
    good = torch.stack([_agreeing(pairs, v, seen[v]) for v in range(views)])

    def at(R: Tensor, t: Tensor) -> Cameras:
        return Cameras(cameras.K, R, t, cameras.dist, cameras.size)

    weight = torch.where(good, seen, 0.0)
    weight = torch.where((weight > 0).sum(0) >= 2, weight, seen)
    X = triangulate(x, at(R, t).P, weight, "reweighted")
    start_px = _median_error(X, x, at(R, t), seen)
    steps = 0
    if max_steps:
        # The chain of pairs may be far off, so the first round is tolerant; the second knows how large the noise is.
        rough = bundle_adjust(at(R, t), X, x, seen, loss, 0.0, max_steps, tolerance=1e-3)
        f_scale_px = f_scale_px or max(3 * float(np.median([p.noise_px for p in pairs.values()])), 1e-3)
        rig = at(rough.R, rough.t)
        X = rough.X if views == 2 else ransac_triangulate(x, rig.P, seen, f_scale_px)[0]
        fine = bundle_adjust(rig, X, x, seen, loss, f_scale_px, max_steps)
        R, t, X, steps = fine.R, fine.t, fine.X, rough.steps + fine.steps
    # the first two cameras, which `_chained` may have joined through others, are 1 apart
    unit = float(_distance(R, t))
    t, X = t / unit, X / unit
    rig = at(R, t)
    known = (seen > 0).sum(0) >= 2
    depth = rig.to_cam(X)[..., 2]
    share = float(((depth > 0) & (seen > 0) & known).sum() / ((seen > 0) & known).sum())
    if share < MIN_IN_FRONT:
        raise GeometryError(f"only {100 * share:.0f} % of the joints lie in front of their cameras, expected {100 * MIN_IN_FRONT:.0f} %")
    error_px = _median_error(X, x, rig, seen)
    valid = known & ((depth > 0) | (seen <= 0)).all(0)
    X, valid = X.view(len(frames), joints, 3), valid.view(len(frames), joints)
    factor = length_mm if scale == "baseline" else 1.0
    if scale == "body":
        factor = length_mm / body_length(X, valid, bones)
    rig = at(R, t * factor)
    return Rig(rig, torch.where(valid[..., None], X * factor, 0.0), valid, frames, pairs, error_px, start_px, steps)


def body_length(X: Tensor, valid: Tensor, bones: np.ndarray) -> float:
    """The sum of the bones' lengths, each the median over the frames.   X (T, J, 3), valid (T, J), bones (E, 2)

    Medians per bone rather than of the sum: hidden joints and outliers then cost a measurement of their bone only. Raises
    GeometryError for a bone that is seen in no frame.
    """
    total = 0.0
    for a, b in np.asarray(bones).tolist():
        known = valid[:, a] & valid[:, b]
        if not known.any():
            raise GeometryError(f"scale body: joints {a} and {b} are never known together; leave this bone out, or use another scale")
        total += float((X[known, a] - X[known, b]).norm(dim=-1).quantile(0.5))
    return total


def _check_arguments(x_img, conf, cameras, loss, scale, length_mm, bones) -> None:
    if x_img.ndim != 4 or x_img.shape[-1] != 2 or conf.shape != x_img.shape[:-1] or tuple(cameras.shape) != (x_img.shape[1],):
        raise GeometryError(
            f"recover_rig: x_img {tuple(x_img.shape)}, conf {tuple(conf.shape)}, cameras {tuple(cameras.shape)}; "
            "expected (T, V, J, 2), (T, V, J) and (V,)"
        )
    if len(cameras) < 2:
        raise GeometryError("recover_rig: one camera, expected two or more")
    for name, value, known in (("loss", loss, LOSSES), ("scale", scale, SCALES)):
        if value not in known:
            raise GeometryError(f"{name}: '{value}' is not one of {', '.join(known)}")
    if scale != "none" and not length_mm > 0:
        raise GeometryError(f"scale {scale}: the length is {length_mm} mm, expected more than 0")
    if scale == "body" and (bones is None or not len(bones)):
        raise GeometryError("scale body: no bones were given to measure")


def _distance(R: Tensor, t: Tensor) -> Tensor:
    """Between the centres of the first two cameras."""
    center = -(R[:2].mT @ t[:2, :, None])[..., 0]
    return (center[1] - center[0]).norm()


def _median_error(X: Tensor, x: Tensor, cameras: Cameras, weight: Tensor) -> float:
    error = reprojection_error(X, x, cameras.P)
    return float(error[(weight > 0) & ((weight > 0).sum(0) >= 2)].median())


def _agreeing(pairs: dict[tuple[int, int], PairPose], view: int, seen: Tensor) -> Tensor:
    """Observations of a view that at least half of its pairs count among their inliers.   -> (N,) bool"""
    mine = [p.inlier for pair, p in pairs.items() if view in pair]
    return (torch.stack(mine).double().mean(0) >= 0.5) & (seen > 0) if mine else seen > 0


def _chained(pairs, reasons, x: Tensor, seen: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Poses of all cameras in the frame of camera 0, joined pair by pair.   -> R (V, 3, 3), t (V, 3), any unit"""
    views = len(K)
    eye = torch.eye(3, dtype=torch.float64)
    if not pairs:
        raise GeometryError("no pair of cameras can be joined: " + _listed(reasons))
    (a, b), first = max(pairs.items(), key=lambda item: item[1].support)
    pose = {a: (eye, torch.zeros(3, dtype=torch.float64)), b: (first.R, first.t)}
    both = (seen[a] > 0) & (seen[b] > 0) & first.inlier
    while len(pose) < views:
        order = sorted(pose)
        P = torch.stack([K[v] @ torch.cat([pose[v][0], pose[v][1][:, None]], -1) for v in order])
        weight = torch.where(both, seen[order], 0.0) if len(order) == 2 else seen[order]
        known = (weight > 0).sum(0) >= 2
        X = triangulate(x[order], P, weight, "reweighted")
        joinable = []
        for pair, found in pairs.items():
            if (pair[0] in pose) == (pair[1] in pose):
                continue
            old, new = pair if pair[0] in pose else pair[::-1]
            R, t = (found.R, found.t) if old == pair[0] else (found.R.mT, -found.R.mT @ found.t)
            near = _depth_ratio(X, known & found.inlier, pose[old], R, t, x[[old, new]], K[[old, new]])
            if near is not None:
                joinable.append((found.support, new, (R @ pose[old][0], R @ pose[old][1] + t * near)))
        if not joinable:
            lost = sorted(set(range(views)) - set(pose))
            names = {pair: reason for pair, reason in reasons.items() if set(pair) & set(lost)}
            why = _listed(names) if names else "no joint is seen by three cameras at once, so that baselines cannot be compared"
            raise GeometryError(f"camera {', '.join(map(str, lost))} cannot be joined to the others: {why}")
        _, new, pose[new] = max(joinable, key=lambda item: item[0])
    R, t = (torch.stack([pose[v][k] for v in range(views)]) for k in (0, 1))
    t = t - (R @ R[0].mT @ t[0])  # the world is the frame of camera 0
    return R @ R[0].mT, t


def _depth_ratio(X: Tensor, known: Tensor, pose, R: Tensor, t: Tensor, x: Tensor, K: Tensor) -> float | None:
    """Length of a unit baseline in the unit of X: the median ratio of the joints' depths.   None: too few joints"""
    if int(known.sum()) < 5:
        return None
    P = torch.stack([K[0] @ torch.eye(3, 4, dtype=K.dtype), K[1] @ torch.cat([R, t[:, None]], -1)])
    alone = triangulate(x[:, known], P, None, "reweighted")[:, 2]
    depth = (X[known] @ pose[0].mT + pose[1])[:, 2]
    ratio = (depth / alone)[(depth > 0) & (alone > 0)]
    return float(ratio.median()) if len(ratio) >= 5 else None


def _listed(reasons: dict[tuple[int, int], str]) -> str:
    return "; ".join(f"cameras {i} and {j}: {reason}" for (i, j), reason in reasons.items())


# ---------------------------------------------------------------------------------------------------------- adjustment


@dataclass(frozen=True)
class Adjusted:
    """Result of `bundle_adjust`."""

    R: Tensor  # (V, 3, 3)
    t: Tensor  # (V, 3)
    X: Tensor  # (N, 3)
    cost: float  # robust cost, px^2
    start: float  # the same before
    steps: int


LOSSES = {  # s = squared residual over f^2 -> loss over f^2, its derivative
    "huber": (lambda s: np.where(s <= 1, s, 2 * np.sqrt(np.maximum(s, 1)) - 1), lambda s: 1 / np.sqrt(np.maximum(s, 1))),
    "soft_l1": (lambda s: 2 * (np.sqrt(1 + s) - 1), lambda s: 1 / np.sqrt(1 + s)),
    "cauchy": (np.log1p, lambda s: 1 / (1 + s)),
}


def bundle_adjust(
    cameras: Cameras,  # (V,)
    X: Tensor,  # (N, 3)
    x: Tensor,  # (V, N, 2) undistorted px
    weight: Tensor,  # (V, N) >= 0 on the squared residual, 0 = unseen
    loss: str = "cauchy",
    f_scale_px: float = 0.0,
    max_steps: int = 50,
    tolerance: float = 1e-6,
) -> Adjusted:
    """Least robust reprojection error over all poses and points: Levenberg and Marquardt's method, points eliminated.

    The normal equations of the points are 3x3 blocks, so each step solves a system of the cameras alone (Schur complement;
    Triggs et al., Bundle Adjustment, 2000). The first camera stays; the unit of length, which no residual determines, is kept by
    the damping and then put back: the distance of the first two cameras stays what it was. Points that fewer than two cameras see
    and observations behind their camera at the start take no part. `f_scale_px` 0: three times the median residual at the start.
    """
    if loss not in LOSSES:
        raise GeometryError(f"loss: '{loss}' is not one of {', '.join(LOSSES)}")
    rho, slope = LOSSES[loss]
    A, c = cameras.K[:, :2, :2].numpy(), cameras.K[:, None, :2, 2].numpy()
    seen = x.numpy()
    R, t, points = cameras.R.numpy().copy(), cameras.t.numpy().copy(), X.numpy().copy()
    w = weight.numpy().astype(np.float64)
    depth = np.einsum("vd,nd->vn", R[:, 2], points) + t[:, 2:]
    w = np.where(depth > 0, w, 0.0)
    w[:, (w > 0).sum(0) < 2] = 0.0
    alone = (w > 0).sum(0) < 2
    w /= max(w[w > 0].mean(), 1e-12) if (w > 0).any() else 1.0

    def residuals(R, t, points):
        cam = points @ R.transpose(0, 2, 1) + t[:, None]  # (V, N, 3)
        z = np.where(cam[..., 2:] > 1e-9, cam[..., 2:], 1e-9)
        r = np.where(w[..., None] > 0, (cam[..., :2] / z) @ A.transpose(0, 2, 1) + c - seen, 0.0)
        return r, cam, z

    r, cam, z = residuals(R, t, points)
    length = np.linalg.norm(r, axis=-1)
    f = f_scale_px or max(3 * float(np.median(length[w > 0])), 1e-3)

    def cost_of(r):
        return float((w * rho((r * r).sum(-1) / f**2)).sum() * f**2)

    cost = start = cost_of(r)
    views, damping, steps = len(R), 1e-4, 0
    free = slice(6, None)
    while steps < max_steps:
        steps += 1
        # residual by camera point: A [1/z 0 -x/z^2; 0 1/z -y/z^2]
        D = np.zeros((*cam.shape[:2], 2, 3))
        D[..., :2] = A[:, None] / z[..., None]
        D[..., 2] = -((cam[..., :2] / z) @ A.transpose(0, 2, 1)) / z
        turned = cam - t[:, None]  # R X
        J_c = np.concatenate([np.cross(turned[..., None, :], D), D], -1)  # d(R X) = omega x R X   (V, N, 2, 6)
        J_p = D @ R[:, None]  # (V, N, 2, 3)
        v = (w * slope((r * r).sum(-1) / f**2))[..., None, None]
        WJ_c, WJ_p = v * J_c, v * J_p
        g_c = (WJ_c * r[..., None]).sum((1, 2)).reshape(-1)[free]
        g_p = (WJ_p * r[..., None]).sum((0, 2))  # (N, 3)
        U = (WJ_c.transpose(0, 2, 1, 3).reshape(views, -1, 6).transpose(0, 2, 1) @ J_c.transpose(0, 2, 1, 3).reshape(views, -1, 6))
        W = (WJ_c.swapaxes(-1, -2) @ J_p)[1:].transpose(1, 0, 2, 3).reshape(len(points), -1, 3)  # (N, 6 (V - 1), 3)
        V = (WJ_p.swapaxes(-1, -2) @ J_p).sum(0)  # (N, 3, 3)
        gained = False
        while not gained and damping < 1e12:
            V_d = V + damping * V * np.eye(3) + np.where(alone, 1.0, 1e-12 * np.trace(V, axis1=1, axis2=2))[:, None, None] * np.eye(3)
            inverse = np.linalg.inv(V_d)
            Y = W @ inverse
            S = -np.tensordot(Y, W, ((0, 2), (0, 2)))
            for k in range(views - 1):
                block = slice(6 * k, 6 * k + 6)
                S[block, block] += U[k + 1] + damping * np.diag(np.diag(U[k + 1]))
            step = np.linalg.lstsq(S, -(g_c - np.einsum("nij,nj->i", Y, g_p)), rcond=1e-15)[0]
            move = -(inverse @ (g_p + W.swapaxes(1, 2) @ step)[..., None])[..., 0]
            d = np.concatenate([np.zeros((1, 6)), step.reshape(-1, 6)])
            R_new = Rotation.from_rotvec(d[:, :3]).as_matrix() @ R
            t_new, points_new = t + d[:, 3:], points + move
            new = residuals(R_new, t_new, points_new)
            cost_new = cost_of(new[0])
            gained = bool(cost_new < cost)
            damping = max(damping / 5, 1e-9) if gained else damping * 5
        if not gained:
            break
        fell = cost - cost_new
        R, t, points, (r, cam, z), cost = R_new, t_new, points_new, new, cost_new
        if fell <= tolerance * cost:
            break
    R, t, points = torch.from_numpy(R), torch.from_numpy(t), torch.from_numpy(points)
    unit = float(_distance(cameras.R, cameras.t) / _distance(R, t))
    # scaled about camera 0's frame, which is the world of a recovered rig
    center = -(R[0].mT @ t[0])
    t = unit * (t + (R @ center)) - R @ center
    return Adjusted(R, t, unit * (points - center) + center, cost, start, steps)
