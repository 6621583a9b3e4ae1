"""Evaluation of 3D human pose machines (Wang et al., TPAMI 2019): errors by action of the lifted, the regressed and the corrected pose.

Their numbers are means over frames of the mean error over all 16 joints, the root included, relative to the root and without any other
alignment: mpjpe_mm here. Over actions they print the plain mean of the actions' means. Both means are given, by name.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lib.errors import DataError
from lib.metrics import pose
from lib.metrics.evaluator import PoseEvaluator
from lib.metrics.report import Report
from lib.skeleton import Skeleton

STAGES = ("coarse", "regressed")  # of the published system, before the correction: lifted, and what the regression makes of that


class MachineEvaluator(PoseEvaluator):
    """PoseEvaluator that also judges the poses before the result, stage by stage: <stage>_mpjpe_mm and <stage>_pa_mpjpe_mm.

    The main numbers (mpjpe_mm and all others of PoseEvaluator) are those of the result, the refined pose.

    Args:
        stages: names of the poses before it, in the order in which they are made.
        others: as for PoseEvaluator.
    """

    def __init__(self, skeleton: Skeleton | str, stages: Sequence[str] = STAGES, **others: Any):
        super().__init__(skeleton, **others)
        self.stages = tuple(stages)
        self.tabled = tuple(f"{stage}_{metric}" for metric in ("mpjpe_mm", "pa_mpjpe_mm") for stage in self.stages)

    def update(self, pred: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Add a batch: pred X_cam (B,J,3) mm, the result, and X_<stage> (B,J,3) mm of each stage; batch X_cam, X_valid, id.

        Raises:
            DataError: the number of joints is not the skeleton's, or a stage is missing.
            RunError: a prediction is NaN or infinite.
        """
        missing = [f"X_{stage}" for stage in self.stages if f"X_{stage}" not in pred]
        if missing:
            raise DataError(f"MachineEvaluator: the prediction lacks {', '.join(missing)}; name the stages that the model has")
        staged = {f"X_{stage}": pred[f"X_{stage}"].detach().float() for stage in self.stages}
        self._add(batch["id"], pred["X_cam"], gt=batch["X_cam"].float(), valid=batch["X_valid"].bool(), **staged)
        self._keep(pred)

    def _values(self, id: Tensor, pred: Tensor, gt: Tensor, valid: Tensor, **staged: Tensor) -> dict[str, Tensor]:
        values = super()._values(id, pred, gt, valid)
        mask = None if valid.all() else valid
        for stage in self.stages:
            X = staged[f"X_{stage}"]
            values[f"{stage}_mpjpe_mm"] = pose.mpjpe(X, gt, self.root, mask, self.joints)
            values[f"{stage}_pa_mpjpe_mm"] = pose.pa_mpjpe(X, gt, self.root, mask, self.joints)
        return values

    def compute(self) -> Report:
        """All numbers; in tables the stages come in their order, before the result."""
        report = super().compute()
        first = [f"{stage}_mpjpe_mm" for stage in self.stages] + ["mpjpe_mm"]
        second = [f"{stage}_pa_mpjpe_mm" for stage in self.stages] + ["pa_mpjpe_mm"]
        order = [name for name in first + second if name in report.per_action]
        per_action = {name: report.per_action[name] for name in [*order, *(n for n in report.per_action if n not in order)]}
        return replace(report, per_action=per_action)
