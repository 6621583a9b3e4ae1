"""Errors of 3D poses: pure functions, one value per pose, computed in float64 whatever comes in.

Every metric has the signature `metric(pred (N,J,3), gt (N,J,3), root, valid=None (N,J), joints=None) -> (N,)`. Poses
are in mm and in the same frame (camera or world). `root` is the index of the joint both poses are centred on; None
leaves them where they are. `valid` marks the joints that have a ground truth; a pose without any, or whose root has
none, gets NaN. `joints` (indices) restricts the metric to a subset; the root may lie outside of it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.errors import GeometryError
from lib.metrics.columns import columns, mean_joints, some_joints, sum_joints
from lib.metrics.procrustes import TINY, Moments, moments, procrustes, squares, transformed

PCK_MM = 150.0
AUC_STEP_MM = 5.0
AUC_MM = tuple(AUC_STEP_MM * k for k in range(31))  # 0, 5, ..., 150 mm (MPI-INF-3DHP, Mehta et al., 3DV 2017)
CHUNK = 10_000  # poses; a table of as many x 17 joints, 4 MB, stays in a processor's cache

LIMBS = tuple(f"{side}_{part}" for side in "rl" for part in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist"))
JOINT_SETS: dict[str, tuple[str, ...]] = {
    "14": ("pelvis", "thorax", *LIMBS),
    "3dhp14": ("head", "neck", *LIMBS),  # what MPI-INF-3DHP's own evaluation counts
    "lsp14": ("head", "neck", *LIMBS),  # the same, as 3DPW is judged in the literature: joints regressed from the mesh
    "threedpw14": ("skull_base", "neck", *LIMBS),  # what comes nearest to them among the 24 joints of SMPL
}
_OTHER_NAME = {"neck": "thorax", "thorax": "neck"}  # the same point between the shoulders; a skeleton has one of them
# What EpipolarPose's release calls 14 joints in Human3.6M order: indices meant for MPII order drop these three.
LEGACY_14_DROPS = ("r_ankle", "l_wrist", "r_wrist")


def joint_set(joints: Sequence[str], name: str) -> list[int] | None:
    """Indices in `joints` (a skeleton's names) of the set `name` of JOINT_SETS, None when one of them is absent."""
    joints = list(joints)
    wanted = [j if j in joints else _OTHER_NAME.get(j, j) for j in JOINT_SETS[name]]
    return [joints.index(j) for j in wanted] if set(wanted) <= set(joints) else None


def joint_errors(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None) -> Tensor:
    """Distance of each joint after both poses are centred on the root, NaN where not valid.    (N,J,3) -> (N,J) mm"""
    pred, gt, valid = _inputs(pred, gt, root, valid)
    return _masked(length(_centred(pred, root) - _centred(gt, root)), valid)


def axis_errors(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None) -> Tensor:
    """Absolute root-relative difference along x, y and z, NaN where not valid.    (N,J,3) -> (N,J,3) mm"""
    pred, gt, valid = _inputs(pred, gt, root, valid)
    error = (_centred(pred, root) - _centred(gt, root)).abs_()
    return error if valid is None else error.masked_fill(~valid[..., None], torch.nan)


def scaled_joint_errors(
    pred: Tensor,
    gt: Tensor,
    root: int | None,
    valid: Tensor | None = None,
    joints: Sequence[int] | None = None,
    sums: Moments | None = None,
) -> Tensor:
    """As joint_errors after the optimal scale b = <p,g> / <p,p> of the centred prediction p (Rhodin et al., CVPR 2018).

    `joints` are those the scale is fitted to; the errors are of all joints. sums: `moments` of the centred poses, where they are known.
    """
    pred, gt, valid = _inputs(pred, gt, root, valid)
    pred, gt = _centred(pred, root), _centred(gt, root)
    if sums is None:
        sums = moments(pred, gt, valid, joints)
    scale = sums.xy.diagonal(dim1=1, dim2=2).sum(1) / sums.xx.clamp_min(TINY)
    return _masked(length((scale[:, None, None] * pred).sub_(gt)), valid)


def aligned_joint_errors(
    pred: Tensor, gt: Tensor, valid: Tensor | None = None, joints: Sequence[int] | None = None, sums: Moments | None = None
) -> Tensor:
    """Distance of each joint after the similarity (scale, rotation, translation) that fits best, NaN where not valid.

    `joints` are those the similarity is fitted to; the errors are of all joints. Fewer than three valid ones give NaN.
    sums: `moments` of the poses, where they are known.
    """
    pred, gt, valid = _inputs(pred, gt, None, valid)
    aligned, _ = _procrustes(pred, gt, valid, joints, sums)
    return _masked(length(aligned.sub_(gt)), valid)


def mpjpe(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """Mean per-joint position error after centring on the root (Protocol 1).    (N,J,3) -> (N,) mm"""
    return mean_over(joint_errors(pred, gt, root, valid), joints)


def pa_mpjpe(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """Mean error after the similarity fitted to the same joints (Protocol 2); the root plays no part.    -> (N,) mm"""
    pred, gt, valid = _inputs(pred, gt, None, valid)
    valid = None if valid is None else some_joints(valid, joints)
    return mean_over(aligned_joint_errors(some_joints(pred, joints), some_joints(gt, joints), valid))


def n_mpjpe(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """Mean root-relative error after the best scale for the same joints (Rhodin et al., CVPR 2018).    -> (N,) mm"""
    return mean_over(scaled_joint_errors(pred, gt, root, valid, joints), joints)


def pa_mpjpe_rooted(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """EpipolarPose's released variant: aligned on all joints, then centred on the root; above pa_mpjpe as a rule."""
    pred, gt, valid = _inputs(pred, gt, root, valid)
    aligned, _ = _procrustes(pred, gt, valid)
    return mean_over(joint_errors(aligned, gt, root, valid), joints)


def n_mpjpe_procrustes(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """EpipolarPose's released variant: the scale is that of the similarity fit on all joints, rotation included."""
    pred, gt, valid = _inputs(pred, gt, root, valid)
    _, scale = _procrustes(pred, gt, valid)
    return mean_over(joint_errors(scale[:, None, None] * pred, gt, root, valid), joints)


def pck3d(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """Fraction of joints with a root-relative error below (strictly) 150 mm; the root counts as correct.    -> (N,)"""
    return fraction_below(joint_errors(pred, gt, root, valid), PCK_MM, joints)


def auc3d(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """Mean of the fractions below the 31 thresholds 0, 5, ..., 150 mm.    -> (N,)"""
    return area_below(joint_errors(pred, gt, root, valid), joints)


def n_pck3d(pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None = None, joints=None) -> Tensor:
    """As pck3d after the best scale of the prediction (NPCK, Rhodin et al., CVPR 2018).    -> (N,)"""
    return fraction_below(scaled_joint_errors(pred, gt, root, valid, joints), PCK_MM, joints)


Metric = Callable[..., Tensor]
METRICS: dict[str, Metric] = {
    "mpjpe": mpjpe,
    "pa_mpjpe": pa_mpjpe,
    "n_mpjpe": n_mpjpe,
    "pck3d": pck3d,
    "auc3d": auc3d,
    "n_pck3d": n_pck3d,
    "pa_mpjpe_rooted": pa_mpjpe_rooted,
    "n_mpjpe_procrustes": n_mpjpe_procrustes,
}


def mean_over(errors: Tensor, joints: Sequence[int] | None = None) -> Tensor:
    """Mean over the joints that have a value (NaN: none), optionally of a subset.    (N,J) -> (N,)"""
    errors = some_joints(errors, joints)
    mean = mean_joints(errors)
    return errors.nanmean(dim=1) if mean.isnan().any() else mean  # the plain mean is several times faster


def fraction_below(errors: Tensor, threshold: float, joints: Sequence[int] | None = None) -> Tensor:
    """Fraction of the joints that have a value with an error strictly below a threshold.    (N,J) -> (N,)"""
    errors = some_joints(errors, joints)
    return sum_joints(errors < threshold).to(errors.dtype) / _known(errors)


def area_below(errors: Tensor, joints: Sequence[int] | None = None) -> Tensor:
    """Mean of the fractions below the thresholds AUC_MM.    (N,J) -> (N,)"""
    errors = some_joints(errors, joints)
    reached = (errors.nan_to_num(torch.inf) / AUC_STEP_MM).floor_()  # the last threshold that an error is not below; thresholds are even
    return sum_joints(reached.neg_().add_(len(AUC_MM) - 1).clamp_(min=0)) / (_known(errors) * len(AUC_MM))


def _known(errors: Tensor) -> Tensor:
    """Joints that have a value.    (N,J) -> (N,)"""
    return errors.shape[1] - sum_joints(errors.isnan())


def _inputs(
    pred: Tensor, gt: Tensor, root: int | None, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """float64 poses without NaN at joints that are not valid, and the mask of joints that get a value."""
    if pred.shape != gt.shape or pred.ndim != 3 or pred.shape[-1] != 3:
        raise GeometryError(
            f"pose metric: pred has shape {tuple(pred.shape)} and gt {tuple(gt.shape)}; expected the same (N, J, 3)"
        )
    pred, gt = columns(pred), columns(gt)
    if valid is None:
        return pred, gt, None
    if valid.shape != pred.shape[:2]:
        raise GeometryError(f"pose metric: valid has shape {tuple(valid.shape)}, expected {tuple(pred.shape[:2])}")
    valid = valid.bool()
    if valid.all():
        return pred, gt, None
    pred = pred.masked_fill(~valid[..., None], 0.0)
    gt = gt.masked_fill(~valid[..., None], 0.0)
    if root is not None:
        valid = valid & valid[:, root, None]
    return pred, gt, valid


def _procrustes(
    pred: Tensor, gt: Tensor, valid: Tensor | None, joints: Sequence[int] | None = None, sums: Moments | None = None
) -> tuple[Tensor, Tensor]:
    """All joints after the similarity fitted to `joints`, and its scale; NaN for poses with fewer than three."""
    R, t, scale = procrustes(pred, gt, valid, joints, sums)
    if valid is not None:
        scale = scale.masked_fill(some_joints(valid, joints).sum(1) < 3, torch.nan)
    return transformed(scale[:, None, None] * R, t[:, None], pred), scale


def _centred(X: Tensor, root: int | None) -> Tensor:
    return X if root is None else X - X[:, root, None]


def length(X: Tensor) -> Tensor:
    """Euclidean length of vectors.    (...,3) -> (...)"""
    return squares(X).sqrt()


def _masked(errors: Tensor, valid: Tensor | None) -> Tensor:
    return errors if valid is None else errors.masked_fill(~valid, torch.nan)
