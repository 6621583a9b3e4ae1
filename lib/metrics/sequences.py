"""Evaluation of poses over time: the numbers of single poses, and what only a sequence has.

Source of the protocols: Pavllo et al., VideoPose3D, CVPR 2019, section 6.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.metrics import pose
from lib.metrics.evaluator import PoseEvaluator
from lib.metrics.report import TABLED, Report, action_means
from lib.skeleton import Skeleton


class SequenceEvaluator(PoseEvaluator):
    """PoseEvaluator for frames of tracks: row i belongs to the track that holds i, and rows follow one another in time.

    Beside the numbers of PoseEvaluator, which centre prediction and truth on the root joint each:

    - mpjpe_unrooted_mm, n_mpjpe_unrooted_mm: as lifting papers report them. The predicted root is not moved onto the true one; the scale of
      Protocol 3 is that of vectors from the true root. Protocol 2 is the same in both.
    - mpjve_mm: mean error of the joints' velocities, mm per frame; acceleration_mm: of their accelerations, mm per frame^2.
    - trajectory_m: mean distance of the predicted root joint from the true one, in metres, where a network predicts it; and
      reprojection_screen: of the pose's image there from the keypoints, in half widths of the image. It needs no 3D truth.

    Predictions may also hold root (B,3) mm, the predicted place of the root joint, and reprojection (B,).

    Every number is a mean over frames; `*_action_mean_mm` is the mean of the actions' means, which papers print.

    Args:
        start: (S+1,) first row of each track.
        groups: (S,) names under which the tables list the tracks: an action, or "subject/action".
    """

    further = (*PoseEvaluator.further, "root", "reprojection")

    def __init__(
        self,
        skeleton: Skeleton | str,
        start: np.ndarray,
        groups: Sequence[str],
        joints: str | None = None,
        variants: Sequence[str] = ("standard",),
        protocol: dict[str, Any] | None = None,
    ):
        start = np.asarray(start)
        super().__init__(
            skeleton, actions=np.repeat(np.asarray(groups, dtype=str), np.diff(start)), joints=joints, variants=variants, protocol=protocol
        )
        self.start = torch.from_numpy(start.astype(np.int64))

    def compute(self) -> Report:
        """All numbers over all rows."""
        report, rows = super().compute(), self._sorted_rows()
        values = self._over_time(rows["id"], rows["pred"] - rows["gt"], rows["valid"])
        shown, truth = (rows[key] - rows["gt"][:, self.root, None] for key in ("pred", "gt"))
        for name, metric in (("mpjpe_unrooted_mm", pose.mpjpe), ("n_mpjpe_unrooted_mm", pose.n_mpjpe)):
            values[name] = metric(shown, truth, None, rows["valid"], self.joints)
        if "root" in rows:
            values["trajectory_m"] = (rows["root"] - rows["gt"][:, self.root]).norm(dim=-1) / 1000
        if "reprojection" in rows:
            values["reprojection_screen"] = rows["reprojection"]
        arrays = {name: value.double().numpy() for name, value in values.items()}
        metrics = {name: float(np.nanmean(v)) for name, v in arrays.items() if np.isfinite(v).any()}
        in_mm = {name: value for name, value in arrays.items() if name.endswith("_mm") and name in metrics}
        per_action = self._per_action(rows["id"], in_mm)
        tabled = {name: row for name, row in per_action.items() if name in TABLED}
        return Report(
            metrics=report.metrics | metrics | action_means(per_action),
            per_joint=report.per_joint,
            per_action=report.per_action | tabled,
            counts=report.counts | {"tracks": len(torch.unique(self._track(rows["id"])))},
            protocol=report.protocol,
        )

    def _track(self, ids: Tensor) -> Tensor:
        return torch.searchsorted(self.start, ids, right=True) - 1

    def _over_time(self, ids: Tensor, error: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Errors of velocity and acceleration; each frame has the mean of its track, so that tracks count by their length.

        ids (N,) ascending, error (N,J,3) mm, valid (N,J) -> (N,) each, NaN where a track is too short
        """
        track = self._track(ids)
        joints = slice(None) if self.joints is None else self.joints
        found = {}
        for name, order in (("mpjve_mm", 1), ("acceleration_mm", 2)):
            error = error[1:] - error[:-1]
            valid = valid[1:] & valid[:-1]
            size = pose.mean_over(error.double().norm(dim=-1).masked_fill(~valid, torch.nan)[:, joints])
            joined = (ids[order:] - ids[:-order] == order) & (track[order:] == track[:-order]) & size.isfinite()
            total = torch.zeros(len(self.start), dtype=torch.double).index_add_(0, track[order:][joined], size[joined])
            count = torch.bincount(track[order:][joined], minlength=len(self.start))
            found[name] = (total / count)[track]
        return found
