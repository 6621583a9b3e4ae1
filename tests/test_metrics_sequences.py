"""Evaluation over time: VideoPose3D's numbers on its own examples, tracks of different length, tables by action and by subject."""

import json

import numpy as np
import pytest
import torch

from lib.loss.lifting import position_loss
from lib.metrics.pose import n_mpjpe
from lib.metrics.sequences import SequenceEvaluator
from lib.skeleton import Skeleton
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "videopose3d"
CASES = json.loads((GOLDEN / "metrics.json").read_text())["cases"]


def chain(joints: int) -> Skeleton:
    return Skeleton("chain", tuple(f"j{i}" for i in range(joints)), tuple([0, *range(joints - 1)]), "j0")


def evaluate(pred, target, lengths, groups, skeleton, order=None, root=None) -> SequenceEvaluator:
    """pred, target (N,J,3) mm; rows in the given order, in batches of seven."""
    evaluator = SequenceEvaluator(skeleton, np.concatenate([[0], np.cumsum(lengths)]), groups)
    order = torch.arange(len(pred)) if order is None else order
    for ids in order.split(7):
        batch = {"id": ids, "X_cam": target[ids], "X_valid": torch.ones(len(ids), target.shape[1], dtype=torch.bool)}
        found = {"X_cam": pred[ids]} | ({"root": root[ids]} if root is not None else {})
        evaluator.update(found, batch)
    return evaluator


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["id"]))
def test_the_numbers_are_the_published_ones(case):
    with np.load(GOLDEN / "metrics.npz") as file:
        pred, target, weight = (torch.from_numpy(file[f"{case['id']}/{name}"]) for name in ("pred", "target", "w"))
    clips, frames, joints = pred.shape[:3]
    in_mm = [v.flatten(0, 1) * 1000 for v in (pred, target)]
    report = evaluate(*in_mm, [frames] * clips, ["a"] * clips, chain(joints)).compute()
    assert report.metrics["mpjpe_unrooted_mm"] == pytest.approx(1000 * case["mpjpe"], rel=1e-5)
    assert report.metrics["pa_mpjpe_mm"] == pytest.approx(1000 * np.mean(case["p_mpjpe_per_frame"]), rel=1e-5)
    assert n_mpjpe(*in_mm, None).mean() == pytest.approx(1000 * case["n_mpjpe"], rel=1e-5)
    assert position_loss(pred, target) == pytest.approx(case["mpjpe"], rel=1e-5)
    assert position_loss(pred, target, weight) == pytest.approx(case["weighted_mpjpe"], rel=1e-5)
    if frames > 1:
        first = evaluate(*(v[:frames] for v in in_mm), [frames], ["a"], chain(joints)).compute()
        assert first.metrics["mpjve_mm"] == pytest.approx(1000 * case["mpjve"], rel=1e-5)
    else:
        assert "mpjve_mm" not in report.metrics


def test_protocol_3_scales_about_the_true_root():
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(6, 5, 3, generator=rng) * 300 + torch.tensor([0, 0, 4000.0])
    root = target[:, :1]
    report = evaluate(root + 1.7 * (target - root), target, [6], ["a"], chain(5)).compute()
    assert report.metrics["n_mpjpe_unrooted_mm"] < 1e-2 < report.metrics["mpjpe_unrooted_mm"]
    pred = target + torch.tensor([30.0, 0, 40])  # a shift costs 50 mm unless prediction and truth are centred
    report = evaluate(pred, target, [6], ["a"], chain(5)).compute()
    assert report.metrics["mpjpe_unrooted_mm"] == pytest.approx(50, rel=1e-4) and report.metrics["mpjpe_mm"] < 1e-2


def test_velocity_counts_each_track_by_its_length_and_never_crosses_tracks():
    lengths = [4, 1, 3]
    target = torch.zeros(8, 3, 3)
    pred = torch.zeros(8, 3, 3)
    pred[:4, :, 0] = torch.arange(4)[:, None] * 6.0  # 6 mm a frame, no acceleration
    pred[5:, :, 1] = torch.tensor([500.0, 502, 508])[:, None]  # 2 and 6 mm a frame, 4 mm a frame^2
    for order in (None, torch.randperm(8, generator=torch.Generator().manual_seed(1))):
        report = evaluate(pred, target, lengths, ["Walk", "Walk", "Sit"], chain(3), order).compute()
        assert report.metrics["mpjve_mm"] == pytest.approx((4 * 6 + 3 * 4) / 7)
        assert report.metrics["acceleration_mm"] == pytest.approx((4 * 0 + 3 * 4) / 7)
        assert report.metrics["mpjve_action_mean_mm"] == pytest.approx((6 + 4) / 2)
        assert report.per_action["mpjve_mm"] == pytest.approx({"Walk": 6, "Sit": 4})
        assert report.counts["tracks"] == 3


def test_tables_by_subject_have_a_row_for_each():
    target, pred = torch.zeros(4, 3, 3), torch.zeros(4, 3, 3)
    pred[:, 1, 0] = torch.tensor([3.0, 6, 9, 12])
    groups = ["Train/S1/Walking", "Train/S1/Eating", "S9/Walking", "S9/Eating"]
    report = evaluate(pred, target, [1, 1, 1, 1], groups, chain(3)).compute()
    assert report.per_action["mpjpe_mm"] == pytest.approx(dict(zip(groups, [1, 2, 3, 4], strict=True)))
    rows = {line.split("  ")[0]: line.split() for line in report.action_table().splitlines()}
    assert rows["Protocol 1, mpjpe_mm, S9"][-3:] == ["4.0", "3.0", "3.5"]
    assert rows["Protocol 1, mpjpe_mm, Train/S1"][-3:] == ["2.0", "1.0", "1.5"]


def test_the_trajectory_is_judged_in_metres():
    target = torch.randn(5, 3, 3) * 100 + torch.tensor([0, 0, 4000.0])
    root = target[:, 0] + torch.tensor([0, 300.0, 400])
    report = evaluate(target, target, [5], ["a"], chain(3), root=root).compute()
    assert report.metrics["trajectory_m"] == pytest.approx(0.5, rel=1e-5)
