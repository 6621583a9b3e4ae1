"""2D heatmaps of several people: whether their peaks are where the joints are, without anybody's identity."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.metrics.evaluator import RowEvaluator
from lib.metrics.report import Report
from lib.skeleton import Skeleton


def peak_hits(hm: Tensor, x_hm: Tensor, valid: Tensor, threshold: float, radius: int) -> Tensor:
    """How many joints have a peak near them, how many peaks have a joint near them, and the numbers of both.

    hm (N,J,h,w), x_hm (N,M,J,2) cells, valid (N,M,J) bool -> (N,J,4) float: joints found, joints, true peaks, peaks

    A peak is the largest of its 3x3 cells and above `threshold`; near is within `radius` cells along x and along y.
    """
    height, width = hm.shape[-2:]
    hm = hm.detach().float()
    peaks = (hm == F.max_pool2d(hm, 3, 1, 1)) & (hm > threshold)
    cell = x_hm.round().long()
    inside = valid & (cell >= 0).all(-1) & (cell[..., 0] < width) & (cell[..., 1] < height)
    place = torch.where(inside, cell[..., 1] * width + cell[..., 0], 0).transpose(1, 2)  # (N,J,M)
    inside = inside.transpose(1, 2).float()
    side = 2 * radius + 1
    near_peak = F.max_pool2d(peaks.float(), side, 1, radius).flatten(2)
    found = (near_peak.gather(2, place) * inside).sum(-1)
    joints = torch.zeros_like(near_peak).scatter_reduce(2, place, inside, "amax").unflatten(2, (height, width))
    true = (F.max_pool2d(joints, side, 1, radius) * peaks).sum((-2, -1))
    return torch.stack([found, inside.sum(-1), true, peaks.sum((-2, -1)).float()], -1)


class PeakEvaluator(RowEvaluator):
    """Precision, recall and F1 of heatmap peaks, over all joints and by joint, in percent.

    Args:
        protocol: what else the report should say about how the maps came about.
        counts: what else it should count.
    """

    def __init__(
        self,
        skeleton: Skeleton | str,
        threshold: float,
        radius: int,
        protocol: Mapping[str, Any] | None = None,
        counts: Mapping[str, int] | None = None,
    ):
        super().__init__(skeleton)
        self.threshold, self.radius, self.protocol, self.counts = threshold, radius, dict(protocol or {}), dict(counts or {})

    def update(self, pred: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        """pred `peaks` (B,J,4) of `peak_hits`, summed over the views; batch `id` (B,)."""
        self._add(batch["id"], pred["peaks"])

    def compute(self) -> Report:
        """Shares over all rows."""
        rows = self._sorted_rows()
        hits = rows["pred"].double().sum(0)  # (J,4)
        recall, precision, f1 = _shares(hits.sum(0))
        by_joint = _shares(hits)
        metrics = {"peak_f1_percent": f1.item(), "peak_recall_percent": recall.item(), "peak_precision_percent": precision.item()}
        names = ("peak_recall_percent", "peak_precision_percent", "peak_f1_percent")
        return Report(
            metrics={name: value for name, value in metrics.items() if value == value},
            per_joint={name: self._per_joint(value[None]) for name, value in zip(names, by_joint, strict=True)},
            per_action={},
            counts={"instants": len(rows["id"]), "joints": int(hits[:, 1].sum()), **self.counts},
            protocol={
                "peak_threshold": self.threshold, "peak_radius_cells": self.radius, "skeleton": self.skeleton.name, **self.protocol,
            },
        )


def _shares(hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Recall, precision and F1 in percent.   (...,4) -> three of (...), NaN where there is nothing"""
    recall, precision = hits[..., 0] / hits[..., 1], hits[..., 2] / hits[..., 3]
    return 100 * recall, 100 * precision, 200 * recall * precision / (recall + precision)
