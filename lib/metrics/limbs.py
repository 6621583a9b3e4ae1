"""Percentage of correct parts for limbs in 3D, as KTH Football II is judged: each limb is right or wrong by how far its ends are off.

A limb counts when its ends lie within half of its true length of the truth: each of them ("strict"), or on average ("loose"). Sources:
Ferrari et al., CVPR 2008; Kazemi et al., BMVC 2013 (KTH Multiview Football II); Burenius et al., CVPR 2013 for 3D. Papers differ in
which of the two they mean, so both are computed. For several people in a scene see lib.metrics.people.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.errors import ConfigError
from lib.metrics import pose
from lib.metrics.evaluator import RowEvaluator
from lib.metrics.report import Report
from lib.registry import resolve
from lib.skeleton import Skeleton, get

RULES = ("strict", "loose")
ALPHA = 0.5  # of the limb's true length
# The limbs of published tables: group -> pairs of joints.
LIMBS: dict[str, tuple[tuple[str, str], ...]] = {
    "upper arms": (("l_shoulder", "l_elbow"), ("r_shoulder", "r_elbow")),
    "lower arms": (("l_elbow", "l_wrist"), ("r_elbow", "r_wrist")),
    "upper legs": (("l_hip", "l_knee"), ("r_hip", "r_knee")),
    "lower legs": (("l_knee", "l_ankle"), ("r_knee", "r_ankle")),
}
Limbs = Mapping[str, Sequence[tuple[str, str]]]


def correct_limbs(
    pred: Tensor,
    gt: Tensor,
    skeleton: Skeleton | str,
    valid: Tensor | None = None,
    root: int | None = None,
    rule: str = "strict",
    alpha: float = ALPHA,
    limbs: Limbs = LIMBS,
) -> tuple[Tensor, Tensor]:
    """Which limbs are right.

    Args:
        pred, gt: (N,J,3) mm in one frame.
        skeleton: of both.
        valid: (N,J) bool, joints that have a truth; None = all.
        root: joint that both are centred on; None leaves them where they are.
        rule: "strict" = each end within alpha of the true length, "loose" = the mean of both.
        alpha: part of the true length that an end may be off.
        limbs: group -> pairs of joints by name; L limbs in all, in this order.

    Returns:
        correct (N,L) bool; known (N,L) bool, limbs whose two ends have a truth, and with a root the root too.

    Raises:
        GeometryError: shapes do not fit. ConfigError: an unknown rule.
        DataError: the skeleton lacks a joint.
    """
    resolve(dict.fromkeys(RULES), rule, key="PCP rule")
    skeleton = get(skeleton)
    ends = torch.from_numpy(np.array([skeleton.indices(pair) for pairs in limbs.values() for pair in pairs]))  # (L,2)
    error = pose.joint_errors(pred, gt, root, valid)[:, ends]  # (N,L,2), NaN where there is no truth
    known = error.isfinite().all(-1)
    off = error.amax(-1) if rule == "strict" else error.mean(-1)
    a, b = gt.double()[:, ends].unbind(2)
    return known & (off <= alpha * pose.length(a - b)), known


class LimbEvaluator(RowEvaluator):
    """PCP of limbs in percent, by group of limbs, camera and action.

    Numbers: pcp_percent (every end within half of the limb) and pcp_loose_percent (on average), over all limbs with a truth;
    pcp_<group>_percent, such as pcp_upper_arms_percent; and tables of the groups, pcp_percent, pcp_loose_percent, and with `cameras`
    pcp_<camera>_percent of each one, by the strict rule.

    Args:
        skeleton: of predictions and truth.
        cameras: name of the camera of each id, None = no table by camera.
        actions: as for RowEvaluator.
        root: name of the joint that poses are centred on; None leaves them where they are, which judges absolute positions.
        alpha, limbs: as for `correct_limbs`.

    Raises:
        ConfigError: alpha is not positive. DataError: the skeleton lacks a joint.
    """

    def __init__(
        self,
        skeleton: Skeleton | str,
        cameras: Sequence[str] | None = None,
        actions: Sequence[str] | None = None,
        root: str | None = None,
        alpha: float = ALPHA,
        limbs: Limbs = LIMBS,
        protocol: Mapping[str, Any] | None = None,
    ):
        super().__init__(skeleton, actions)
        if not alpha > 0:
            raise ConfigError(f"PCP: alpha is {alpha}, expected a positive part of the limb's length, such as {ALPHA}")
        self.root = None if root is None else self.skeleton.index(root)
        for pairs in limbs.values():
            for pair in pairs:
                self.skeleton.indices(pair)
        self.cameras, self.alpha, self.limbs, self.protocol = cameras, alpha, dict(limbs), dict(protocol or {})

    def update(self, pred: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """Add a batch: pred X_cam (B,J,3) mm; batch X_cam (B,J,3) mm, X_valid (B,J), id (B,).

        Raises:
            DataError: the number of joints is not the skeleton's.
            RunError: a prediction is NaN or infinite.
        """
        self._add(batch["id"], pred["X_cam"], gt=batch["X_cam"].float(), valid=batch["X_valid"].bool())

    def compute(self) -> Report:
        """All numbers over all rows."""
        rows = self._sorted_rows()
        ids = rows["id"].numpy()
        hits = {
            rule: correct_limbs(rows["pred"], rows["gt"], self.skeleton, rows["valid"], self.root, rule, self.alpha, self.limbs)
            for rule in RULES
        }
        correct, known = (value.numpy() for value in hits["strict"])
        loose = hits["loose"][0].numpy()
        group = np.repeat(np.arange(len(self.limbs)), [len(pairs) for pairs in self.limbs.values()])
        tables = {"pcp_percent": self._by_group(correct, known, group), "pcp_loose_percent": self._by_group(loose, known, group)}
        metrics = {"pcp_percent": _percent(correct, known), "pcp_loose_percent": _percent(loose, known)}
        metrics |= {f"pcp_{name.replace(' ', '_')}_percent": value for name, value in tables["pcp_percent"].items()}
        if self.cameras is not None:
            names = np.asarray(self.cameras)[ids]
            for name in np.unique(names):
                own = names == name
                tables[f"pcp_{name}_percent"] = self._by_group(correct[own], known[own], group)
        per_pose = np.where(known.any(1), 100 * correct.sum(1) / np.maximum(known.sum(1), 1), np.nan)
        return Report(
            metrics={name: value for name, value in metrics.items() if np.isfinite(value)},
            per_joint={name: column for name, column in tables.items() if column},
            per_action=self._per_action(rows["id"], {"pcp_percent": per_pose}),
            counts={"poses": len(ids), "limbs": int(known.sum())},
            protocol={
                "skeleton": self.skeleton.name,
                "pcp": {
                    "alpha": self.alpha,
                    "centred_on": None if self.root is None else self.skeleton.joints[self.root],
                    "pcp_percent": "each end of a limb",
                    "pcp_loose_percent": "the mean of both ends",
                },
                **self.protocol,
            },
        )

    def _by_group(self, correct: np.ndarray, known: np.ndarray, group: np.ndarray) -> dict[str, float]:
        values = {name: _percent(correct[:, group == k], known[:, group == k]) for k, name in enumerate(self.limbs)}
        return {name: value for name, value in values.items() if np.isfinite(value)}


def _percent(correct: np.ndarray, known: np.ndarray) -> float:
    return 100 * float(correct.sum()) / float(known.sum()) if known.any() else float("nan")
