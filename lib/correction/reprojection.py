"""Correction of lifted poses by 2D evidence through the camera that saw it.

The idea of lib/correction/online.py with the true projection in place of a learned one (the middle form of equation 3 of Wang et al.,
TPAMI 2020, optimises the pose itself): the joints move until their images agree with the keypoints, as far as a prior lets them. It is
a maximum a posteriori estimate with these terms, each a square over a variance:

- images: distance in the plane z = 1 from the keypoints, weighted by confidence, with Huber's loss against outliers;
- pose: each joint stays near where it was lifted relative to the root, along the line of sight less so than across it;
- bones: each keeps its length, by which a displacement in the image also says something about depth;
- root: stays near where it was put, or is free.

Levenberg and Marquardt's steps, all in closed form: of all poses at once, in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.correction.rules import CONVERGED, DISCARDED, STOPPED, StopRule
from lib.errors import ConfigError, GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.precision import matvec, no_autocast, result_dtype, solve_dtype
from lib.skeleton import Skeleton, get

NEAR_MM = 100.0  # joints closer to the camera's plane, or behind it, have no image
FEWEST = 6  # keypoints that place a root
ANYWHERE_MM = 1e5  # the prior of a root that nothing is known about, so that its equations can always be solved
DAMPING = 1e-3  # of the first step that had to be taken again, beside the diagonal
CHUNK = 1024  # poses whose equations are held at once


@dataclass(frozen=True)
class Reprojected:
    """Poses before and after; X_root and root as given where the correction was discarded."""

    X_root: Tensor  # (...,J,3) mm
    root: Tensor  # (...,3) mm; NaN where none was given and too few keypoints are there to place one
    steps: Tensor  # (...) int64
    decision: Tensor  # (...) int64, place in lib.correction.DECISIONS
    error_before: Tensor  # (...) mean distance from the keypoints, weighted by conf, in the unit of x_img; 0 without any, NaN without root
    error_after: Tensor  # (...)

    @property
    def X_cam(self) -> Tensor:
        """(...,J,3) mm from the camera"""
        return self.X_root + self.root[..., None, :]


@dataclass(frozen=True)
class _Problem:
    """What poses must agree with. B of them; E bones, P = J - 1 joints beside the root."""

    x: Tensor  # (B,J,2) keypoints in the plane z = 1
    weight: Tensor  # (B,J) 1 / variance
    huber: float  # distance in the plane from which on the loss grows linearly
    expected: Tensor  # (B,P,3) mm, lifted joints relative to the root, and
    precision: Tensor  # (B,3,3) of them
    lengths: Tensor  # (B,E) mm, and
    stiffness: float  # of them, 1 / mm^2
    root: Tensor  # (B,3) mm, and
    root_precision: float
    star: Tensor  # (P,J) the prior's differences of joints: joint minus root
    tree: Tensor  # (E,J) the bones': child minus parent

    def keep(self, rows: Tensor) -> "_Problem":
        """The same for some poses."""
        return _Problem(self.x[rows], self.weight[rows], self.huber, self.expected[rows], self.precision[rows], self.lengths[rows],
                        self.stiffness, self.root[rows], self.root_precision, self.star, self.tree)  # fmt: skip

    def images(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets from the keypoints (B,J,2), images (B,J,2) and depths (B,J) of joints (B,J,3)."""
        z = X[..., 2].clamp(min=NEAR_MM)
        image = X[..., :2] / z[..., None]
        return image - self.x, image, z

    def energy(self, X: Tensor, root_index: int) -> Tensor:
        """What is minimised.   X (B,J,3) mm from the camera -> (B,)"""
        distance = self.images(X)[0].norm(dim=-1)
        held = distance.clamp(max=self.huber)
        total = (self.weight * held * (2 * distance - held)).sum(-1)  # Huber's loss, twice
        off = torch.einsum("pj,bjc->bpc", self.star, X) - self.expected
        total = total + torch.einsum("bpc,bcd,bpd->b", off, self.precision, off)
        stretch = torch.einsum("ej,bjc->bec", self.tree, X).norm(dim=-1) - self.lengths
        total = total + self.stiffness * stretch.square().sum(-1)
        return total + self.root_precision * (X[:, root_index] - self.root).square().sum(-1)

    def equations(self, X: Tensor, root_index: int) -> tuple[Tensor, Tensor]:
        """Gauss and Newton's equations at X.   (B,J,3) -> H (B,J,3,J,3), g (B,J,3), for a step of -H^-1 g"""
        joints = X.shape[1]
        eye = torch.eye(3, dtype=X.dtype, device=X.device)
        offset, image, z = self.images(X)
        distance = offset.norm(dim=-1)
        weight = self.weight * (self.huber / distance.clamp(min=self.huber))
        weight = torch.where(X[..., 2] > NEAR_MM, weight, 0.0)
        slope = torch.cat([eye[:2, :2].expand(*image.shape, 2), -image[..., None]], -1) / z[..., None, None]  # (B,J,2,3)
        weighted = slope * weight[..., None, None]
        own = weighted.mT @ slope  # (B,J,3,3)
        g = (weighted * offset[..., None]).sum(-2)

        off = torch.einsum("pj,bjc->bpc", self.star, X) - self.expected
        bone = torch.einsum("ej,bjc->bec", self.tree, X)
        length = bone.norm(dim=-1).clamp(min=1e-6)
        along = bone / length[..., None]
        pull = self.stiffness * (length - self.lengths)[..., None] * along
        g = g + torch.einsum("pj,bpc->bjc", self.star, matvec(self.precision, off)) + torch.einsum("ej,bec->bjc", self.tree, pull)
        g[:, root_index] += self.root_precision * (X[:, root_index] - self.root)

        own[:, root_index] += self.root_precision * eye
        stars = (self.star.T @ self.star).flatten()  # (J J,)
        pairs = (self.tree[:, :, None] * self.tree[:, None]).flatten(1)  # (E, J J)
        along = along[..., None] * along[..., None, :]  # (B,E,3,3)
        # Newton's term of a bone that is too long makes fewer steps; that of one too short would spoil the matrix
        slack = (1 - self.lengths / length).clamp(min=0)[..., None, None]
        stiff = self.stiffness * (along + slack * (eye - along))
        H = torch.einsum("ek,ben->bkn", pairs, stiff.flatten(2)) + stars[:, None] * self.precision.flatten(1)[:, None]
        H = H.view(len(X), joints, joints, 3, 3)
        H.diagonal(dim1=1, dim2=2).add_(own.permute(0, 2, 3, 1))
        return H.transpose(2, 3), g


@no_autocast
@torch.no_grad()
def correct_by_projection(
    X_root: Tensor,
    x_img: Tensor,
    camera: Cameras | None = None,
    root: Tensor | None = None,
    conf: Tensor | None = None,
    skeleton: Skeleton | str = "h36m17",
    *,
    steps: int = 6,
    eps_mm: float = 1.0,
    tau_mm: float = 100.0,
    noise: float = 0.01,
    prior_mm: float | Sequence[float] = (30.0, 60.0),
    bone_mm: float = 10.0,
    root_mm: float = 200.0,
    lengths_mm: Tensor | None = None,
    huber: float = 2.0,
    tangential: str = "opencv",
) -> Reprojected:
    """Move lifted poses so that they project to where the joints were seen.

    Args:
        X_root: (...,J,3) mm relative to the root joint, camera axes.
        x_img: (...,J,2) keypoints of the same joints, in the unit of the camera's K (px, or screen coordinates); NaN = not seen.
        camera: one, or (...) cameras; their R and t play no role. None: x_img lies undistorted in the plane z = 1.
        root: (...,3) mm, where the root joint is before the camera. None: where the joints project best onto the keypoints, and free.
        conf: (...,J) 0..1, factors on 1 / variance; 0 = not seen, whatever x_img holds. None = 1.
        skeleton: of the poses.
        steps: at most.
        eps_mm, tau_mm: see StopRule, of poses relative to their root.
        noise: standard deviation of keypoints, in focal lengths (10 px where the focal length is 1000 px).
        prior_mm: standard deviation of lifted joints; one, or two: across the line of sight and along it.
        bone_mm: standard deviation of bone lengths; infinity = bones are free.
        root_mm: standard deviation of a root that is given; 0 = it stays.
        lengths_mm: (...,E) or (E,) better known lengths of `skeleton.bones`, see `shared_lengths`; None = those of X_root.
        huber: where Huber's loss becomes linear, in standard deviations of a keypoint.
        tangential: lens formula, see lib.geometry.camera.distort_norm.

    Returns:
        Poses of X_root's type. Without any keypoint they are as given.

    Raises:
        GeometryError: shapes do not fit.    ConfigError: a standard deviation or a number of steps that is not possible.
    """
    skeleton = get(skeleton)
    lead, joints, dtype = X_root.shape[:-2], skeleton.num, result_dtype(X_root)
    across, along = (prior_mm, prior_mm) if isinstance(prior_mm, int | float) else prior_mm
    if steps < 1 or min(noise, across, along, bone_mm, huber) <= 0 or root_mm < 0:
        raise ConfigError(
            f"correction: steps {steps}, noise {noise}, prior {prior_mm} mm, bones {bone_mm} mm, root {root_mm} mm, huber {huber}; "
            "expected at least 1, more than 0 (root: or 0)"
        )
    rule = StopRule(skeleton, eps_mm, tau_mm)
    conf = x_img.new_ones(x_img.shape[:-1]) if conf is None else conf
    expected = {"X_root": (X_root, (joints, 3)), "x_img": (x_img, (joints, 2)), "conf": (conf, (joints,))}
    expected |= {} if root is None else {"root": (root, (3,))}
    for name, (value, tail) in expected.items():
        if value.shape != (*lead, *tail):
            raise GeometryError(f"correction: {name} has shape {tuple(value.shape)}, expected {(*lead, *tail)}")
    number = {"dtype": solve_dtype(X_root.device), "device": X_root.device}
    bones = torch.as_tensor(skeleton.bones, device=X_root.device)
    if lengths_mm is not None and lengths_mm.shape not in ((len(bones),), (*lead, len(bones))):
        raise GeometryError(f"correction: lengths_mm has shape {tuple(lengths_mm.shape)}, expected {(*lead, len(bones))}")

    focal = torch.ones((), **number)
    if camera is not None:
        camera = camera.to(**number)
        focal = (camera.K[..., 0, 0] + camera.K[..., 1, 1]) / 2
    seen = (conf > 0) & x_img.isfinite().all(-1)
    x = x_img.to(**number).where(seen[..., None], 0.0)
    x = x if camera is None else camera.to_norm(x, tangential=tangential)
    weight = conf.to(**number).where(seen, 0.0).reshape(-1, joints)
    X = X_root.to(**number).reshape(-1, joints, 3)
    X = X - X[:, skeleton.root_index, None]
    x = x.reshape(-1, joints, 2)
    start = _placed(X, x, weight) if root is None else root.to(**number).reshape(-1, 3)
    lengths = (X[:, bones[:, 1]] - X[:, bones[:, 0]]).norm(dim=-1)
    if lengths_mm is not None:
        lengths = lengths_mm.to(**number).expand(*lead, len(bones)).reshape(-1, len(bones))

    sight = torch.nn.functional.normalize(start, dim=-1)
    precision = torch.eye(3, **number) / across**2 + (along**-2 - across**-2) * sight[..., None] * sight[:, None]
    others = [j for j in range(joints) if j != skeleton.root_index]
    unit = torch.eye(joints, **number)
    spread = ANYWHERE_MM if root is None else root_mm
    problem = _Problem(
        x=x,
        weight=weight / noise**2,
        huber=huber * noise,
        expected=X[:, others],
        precision=precision,
        lengths=lengths,
        stiffness=bone_mm**-2,
        root=start,
        root_precision=spread**-2 if spread else 0.0,
        star=unit[others] - unit[skeleton.root_index],
        tree=unit[bones[:, 1]] - unit[bones[:, 0]],
    )
    free = torch.tensor(others if spread == 0 else range(joints), device=X.device)
    rows = torch.arange(len(X), device=X.device)
    parts = [_solve(problem.keep(part), X[part], rule, skeleton.root_index, free, steps) for part in rows.split(CHUNK)]
    after, decision, taken = (torch.cat(values) for values in zip(*parts, strict=True)) if parts else (X, rows, rows)

    before = X + start[:, None]
    focal = focal.expand(lead).reshape(-1)
    errors = [_error(problem, pose) * focal for pose in (before, after)]
    moved = after[:, skeleton.root_index]
    pose = torch.where((decision == DISCARDED)[:, None, None], X_root.reshape(-1, joints, 3).to(after), after - moved[:, None])
    values = [pose.to(dtype), moved.to(dtype), taken, decision, *(e.to(dtype) for e in errors)]
    return Reprojected(*(value.reshape((*lead, *value.shape[1:])) for value in values))


def shared_lengths(X_root: Tensor, group: Tensor, skeleton: Skeleton | str = "h36m17") -> Tensor:
    """Bone lengths of people rather than of single poses: means over the poses of one person, which err less.

    X_root (N,J,3) mm, group (N,) int64 number of the person or clip, from 0 -> (N,E) mm, in the order of `skeleton.bones`
    """
    bones = torch.as_tensor(get(skeleton).bones, device=X_root.device)
    lengths = (X_root[:, bones[:, 1]] - X_root[:, bones[:, 0]]).norm(dim=-1)
    groups = int(group.max()) + 1 if len(group) else 0
    total = lengths.new_zeros(groups, len(bones)).index_add_(0, group, lengths)
    count = lengths.new_zeros(groups).index_add_(0, group, torch.ones_like(lengths[:, 0]))
    return (total / count[:, None])[group]


def _solve(problem: _Problem, X_root: Tensor, rule: StopRule, root_index: int, free: Tensor, steps: int) -> tuple[Tensor, ...]:
    """-> joints (B,J,3) mm from the camera, decisions (B,), steps taken (B,)"""
    X = first = X_root + problem.root[:, None]
    taken = torch.zeros(len(X), dtype=torch.long, device=X.device)
    decision, result = torch.full_like(taken, STOPPED), X.clone()
    unknown = ~(problem.weight > 0).any(1) | ~first.isfinite().all((1, 2))
    decision[unknown] = DISCARDED
    rows = (~unknown).nonzero()[:, 0]
    X, problem = X[rows], problem.keep(rows)
    energy, damping = problem.energy(X, root_index), X.new_zeros(len(X))
    for step in range(1, steps + 1):
        if not len(rows):
            break
        H, g = problem.equations(X, root_index)
        if len(free) < X.shape[1]:
            H, g = H[:, free][:, :, :, free], g[:, free]
        size = len(free) * 3
        H = H.reshape(len(X), size, size)
        H.diagonal(dim1=1, dim2=2).mul_(1 + damping[:, None])
        factor, failed = torch.linalg.cholesky_ex(H)
        change = torch.cholesky_solve(g.reshape(len(X), size, 1), factor).view(len(X), len(free), 3)
        moved = X.clone()
        moved[:, free] -= change
        trial = problem.energy(moved, root_index)
        better = (trial <= energy * (1 + 1e-12)) & (failed == 0)  # rounding aside
        last = X
        X = torch.where(better[:, None, None], moved, X)
        energy = torch.where(better, trial, energy)
        damping = torch.where(better, damping / 10, (damping * 10).clamp(min=DAMPING))
        relative, before, start = (pose - pose[:, root_index, None] for pose in (X, last, first[rows]))
        ended, dropped = rule(relative, before, start)
        ended &= better
        taken[rows], result[rows] = step, X
        decision[rows[ended]] = CONVERGED
        decision[rows[dropped]] = DISCARDED
        going = ~(ended | dropped)
        rows, X, energy, damping, problem = rows[going], X[going], energy[going], damping[going], problem.keep(going)
    result = torch.where((decision == DISCARDED)[:, None, None], first, result)
    return result, decision, taken


def _placed(X_root: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`root_by_image`, NaN with fewer than FEWEST keypoints, or behind the camera."""
    root = root_by_image(X_root, x, weight)
    known = ((weight > 0).sum(1) >= FEWEST) & (root[:, 2] > NEAR_MM)
    return torch.where(known[:, None], root, torch.nan)


def root_by_image(X_root: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Roots for which joints project best onto keypoints, by linear least squares: (X + t)_x = x (X + t)_z and the same for y.

    X_root (B,J,3) mm, x (B,J,2) in the plane z = 1, weight (B,J) of the squares, None = 1 -> (B,3) mm
    """
    eye = torch.eye(2, dtype=x.dtype, device=x.device)
    A = torch.cat([eye.expand(*x.shape, 2), -x[..., None]], -1)  # (B,J,2,3)
    b = x * X_root[..., 2:] - X_root[..., :2]
    weighted = (A if weight is None else A * weight[..., None, None]).flatten(1, 2)
    tiny = 1e-9 * torch.eye(3, dtype=x.dtype, device=x.device)
    return torch.linalg.solve(weighted.mT @ A.flatten(1, 2) + tiny, weighted.mT @ b.flatten(1)[..., None])[..., 0]


def _error(problem: _Problem, X: Tensor) -> Tensor:
    """Mean distance from the keypoints in the plane z = 1.   (B,J,3) mm -> (B,)"""
    distance = problem.images(X)[0].norm(dim=-1).where(problem.weight > 0, 0.0)
    return (problem.weight * distance).sum(-1) / problem.weight.sum(-1).clamp(min=1e-12)
