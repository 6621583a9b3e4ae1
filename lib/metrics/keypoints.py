"""Errors of 2D joints: PCKh as on MPII (Andriluka et al., CVPR 2014) and the heatmap accuracy of a training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.errors import GeometryError

PCKH = 0.5
HEAD_BIAS = 0.6  # MPII: the head size is 0.6 times the diagonal of the annotated head box
LEGACY_MEAN_AT = 0.11  # what EpipolarPose's release prints as "Mean@0.1": element 11 of 0, 0.01, ..., 0.5
_GROUPS = ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_NOT_IN_MEAN = ("pelvis", "thorax")


def pckh(
    pred: Tensor,  # (N,J,2) px
    gt: Tensor,  # (N,J,2) px
    head_size: Tensor,  # (N,) px
    valid: Tensor | None = None,  # (N,J)
    threshold: float = PCKH,
    strict: bool = False,
) -> Tensor:  # (N,J)
    """1 where a joint lies within threshold * head_size of the truth, 0 where not, NaN where there is no truth.

    Right at that distance it counts (EpipolarPose's release), or with `strict` does not (Zhou et al., ICCV 2017).

    Raises:
        GeometryError: shapes do not fit.
    """
    if pred.shape != gt.shape or pred.ndim != 3 or pred.shape[-1] != 2 or head_size.shape != pred.shape[:1]:
        raise GeometryError(
            f"pckh: pred {tuple(pred.shape)}, gt {tuple(gt.shape)}, head_size {tuple(head_size.shape)}; "
            "expected (N, J, 2), the same, and (N,)"
        )
    error = (pred.double() - gt.double()).norm(dim=-1) / head_size.double()[:, None]
    hits = (error < threshold if strict else error <= threshold).double()
    return hits if valid is None else hits.masked_fill(~valid.bool(), torch.nan)


def pckh_table(
    pred: Tensor,
    gt: Tensor,
    head_size: Tensor,
    joints: Sequence[str],
    valid: Tensor | None = None,
    equal_joints: bool = False,
    strict: bool = False,
) -> dict[str, float]:
    """MPII's table in percent: groups (left and right averaged), Mean and Mean@0.1 (and the release's Mean@0.11).

    The means are weighted by the number of annotated joints and leave out pelvis and thorax, as in the release.

    Args:
        joints: names of the J joints.
        equal_joints: all joints have the same weight in the means, however often they are annotated.
        strict: see `pckh`.
    """
    joints = list(joints)
    hits = pckh(pred, gt, head_size, valid, strict=strict)
    per_joint = 100 * hits.nanmean(0)
    table = {}
    for group in _GROUPS:
        members = [k for k, joint in enumerate(joints) if joint.split("_")[-1] == group or joint == group]
        if members:
            table[f"pckh_{group}_percent"] = float(per_joint[members].nanmean())
    counted = [k for k, joint in enumerate(joints) if joint not in _NOT_IN_MEAN]
    table["pckh_percent"] = 100 * _mean(hits[:, counted], equal_joints)
    for limit in (0.1, LEGACY_MEAN_AT):
        close = pckh(pred, gt, head_size, valid, limit, strict)[:, counted]
        table[f"pckh_at{limit:.2f}".replace("0.", "") + "_percent"] = 100 * _mean(close, equal_joints)
    return table


def _mean(hits: Tensor, equal_joints: bool) -> float:
    return float((hits.nanmean(0) if equal_joints else hits).nanmean())


def heatmap_accuracy(
    pred: Tensor,  # (B,J,h,w)
    target: Tensor,  # (B,J,h,w)
    threshold: float = 0.5,
    axes: str = "own",
    joints: Sequence[int] | None = None,
    beyond: int = 1,
    legacy_rows: bool = False,
) -> tuple[Tensor, Tensor]:  # (), (J,)
    """Fraction of peaks within threshold / 10 of the map size of the target's peak: mean over joints, and per joint.

    Targets whose peak is not beyond cell `beyond` in both axes do not count (EpipolarPose: 1; Zhou et al., ICCV 2017: 0); a
    joint without any gets NaN and is left out of the mean, and so are all but `joints` (indices; default all).
    The map size is, by `axes`, "own": the width for x and the height for y; "swapped": the other one, as in EpipolarPose's release;
    "height": the height for both, as in Zhou et al.'s. All are equal for square maps.
    `legacy_rows` adds x / width to y, as Zhou et al.'s release does under Python 3.

    Raises:
        GeometryError: shapes differ, or axes is another word.
    """
    if pred.shape != target.shape or pred.ndim != 4:
        raise GeometryError(
            f"heatmap accuracy: pred {tuple(pred.shape)}, target {tuple(target.shape)}; expected the same (B, J, h, w)"
        )
    height, width = pred.shape[-2:]
    sizes = {"own": (width, height), "swapped": (height, width), "height": (height, height)}
    if axes not in sizes:
        raise GeometryError(f"heatmap accuracy: axes {axes!r} is not one of {', '.join(sizes)}")
    size = pred.new_tensor(sizes[axes], dtype=torch.float64) / 10
    x_pred, x_target = _peak(pred, legacy_rows), _peak(target, legacy_rows)
    counts = (x_target > beyond).all(-1)
    hits = (((x_pred - x_target) / size).norm(dim=-1) < threshold).double().masked_fill(~counts, torch.nan)
    per_joint = hits.nanmean(0)
    counted = per_joint if joints is None else per_joint[list(joints)]
    return counted.nanmean().nan_to_num(0.0), per_joint


def _peak(hm: Tensor, legacy_rows: bool) -> Tensor:
    """Cell (x, y) of the largest value, (0, 0) where nothing is positive.    (B,J,h,w) -> (B,J,2) float64"""
    value, index = hm.flatten(2).max(-1)
    width = hm.shape[-1]
    row = index.double() / width if legacy_rows else (index // width).double()
    cell = torch.stack([(index % width).double(), row], -1)
    return cell * (value > 0)[..., None]
