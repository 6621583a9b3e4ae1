"""Evaluation on 3DPW: the numbers of its own challenge and of the literature, by sequence and over all people in frames.

Source of the challenge's definitions: 3DPW's evaluation code (von Marcard et al., ECCV 2018). Both protocols centre prediction and truth on
the pelvis, and so do we; they differ in the joints, which every report names.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lib.metrics import pose
from lib.metrics.evaluator import PoseEvaluator
from lib.metrics.report import Report
from lib.skeleton import Skeleton

PCK_MM = 50.0  # an error of that size still counts as right
AUC_MM = 199  # thresholds 0, 1, ..., 199 mm
# What numbers may be compared with, by the joint set and whether the truth was regressed from the mesh.
LABELS = {
    ("smpl24", False): "24 joints of SMPL, as in the data set's challenge",
    ("threedpw14", False): "14 of the 24 joints of SMPL, not the 14 joints regressed from the mesh that the literature reports",
    ("lsp14", True): "14 joints regressed from the mesh, as in the literature",
}


class ThreeDPWEvaluator(PoseEvaluator):
    """PoseEvaluator with the challenge's PCK and AUC, and tables by sequence.

    mpjpe_mm and pa_mpjpe_mm are those of both protocols: means over person-frames, after centring on the pelvis, and after the similarity
    that fits the joints best. pck50_percent is the share of hips, knees, ankles, shoulders, elbows and wrists with an error of at most
    50 mm after centring, auc199_percent that share integrated over thresholds from 0 to 199 mm. `*_action_mean_mm` is the mean of the
    sequences' means.

    Args:
        sequences: (N,) name of the sequence of each row of the table.
        joints: "" for all joints of the skeleton (the challenge's, if that is smpl24), "threedpw14" for 14 of them, "lsp14" for the
            literature's where the truth was regressed from the mesh; see lib.metrics.pose.JOINT_SETS.
        mesh: the truth was regressed from the mesh.
        protocol: as for PoseEvaluator.

    Raises:
        ConfigError: unknown joint set, or the skeleton lacks a joint of it.
    """

    tabled = ("pck50_percent", "auc199_percent")

    def __init__(
        self,
        skeleton: Skeleton | str,
        sequences: Sequence[str],
        joints: str = "",
        mesh: bool = False,
        variants: Sequence[str] = ("standard",),
        protocol: dict[str, Any] | None = None,
    ):
        super().__init__(skeleton, root="pelvis", actions=sequences, joints=joints, variants=variants, protocol=protocol)
        self.mesh = mesh
        self.limbs = [self.skeleton.index(name) for name in pose.LIMBS]

    def compute(self) -> Report:
        """All numbers over all rows; the protocol lists the joints that have a truth, and says whose they are."""
        report = super().compute()
        wanted = report.protocol["joints"]
        joints = [name for name in wanted if name in report.per_joint["mpjpe_mm"]]
        label = LABELS.get((self.joint_set or self.skeleton.name, self.mesh)) if joints == wanted else None
        label = label or f"{len(joints)} joints of {self.skeleton.name}, to be compared with no other joints"
        truth = "regressed from the mesh" if self.mesh else "the body model's own (jointPositions)"
        return replace(report, protocol={"joint_set": label, "truth": truth} | report.protocol | {"joints": joints})

    def _values(self, id: Tensor, pred: Tensor, gt: Tensor, valid: Tensor) -> dict[str, Tensor]:
        values = super()._values(id, pred, gt, valid)
        errors = values["joint_mm"][:, self.limbs]
        return values | {"pck50_percent": 100 * within(errors, PCK_MM), "auc199_percent": 100 * area_under_curve(errors)}


def within(errors: Tensor, limit: float) -> Tensor:
    """Share of the joints with an error of `limit` or less; NaN: no value.   (N,J) -> (N,)"""
    return pose.mean_over((errors <= limit).double().masked_fill(errors.isnan(), torch.nan))


def area_under_curve(errors: Tensor, limit: int = AUC_MM) -> Tensor:
    """Share of the joints within a threshold, integrated over the thresholds 0, 1, ..., `limit` mm by trapezoids, divided by `limit`.

    NaN: no value.   (N,J) mm -> (N,)
    """
    first = errors.ceil().clamp_min(0)  # the lowest threshold that a joint is within; the first and the last count half
    area = (limit - first + 0.5 - 0.5 * (first == 0)).clamp_min(0).masked_fill(first > limit, 0)
    return pose.mean_over((area / limit).masked_fill(errors.isnan(), torch.nan))
