"""Errors by action and stage, the recorded evaluation, PCP of limbs by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.config import defaults
from lib.dataset import load
from lib.dataset.formats import h36m
from lib.errors import ConfigError, DataError
from lib.metrics import Keypoint2DEvaluator, PoseEvaluator, pose
from lib.metrics.limbs import LIMBS, LimbEvaluator, correct_limbs
from lib.metrics.machine import MachineEvaluator
from lib.tasks.limbs import with_limbs
from tests.conftest import golden
from tests.tiny_dataset import make

SIXTEEN = skeletons.get("h36m16")
N = 12


def poses(seed: int, count: int = N) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 300 * torch.randn(count, SIXTEEN.num, 3, generator=generator)


def batch(gt: torch.Tensor, ids=None, valid=None) -> dict[str, torch.Tensor]:
    ids = torch.arange(len(gt)) if ids is None else ids
    return {"id": ids, "X_cam": gt, "X_valid": torch.ones(gt.shape[:2], dtype=torch.bool) if valid is None else valid}


# --- stages


def test_the_recorded_evaluation():
    """Un-normalised poses of the transcription: mean over all 16 joints, root included, per frame and over frames."""
    data = golden("pose_machines", "losses_metrics")
    pred, gt = (torch.from_numpy(data[f"unnorm_{k}"]).reshape(-1, SIXTEEN.num, 3) for k in ("pred", "gt"))
    pred, gt = (X - X[:, :1] for X in (pred, gt))
    per_frame = pose.mpjpe(pred, gt, 0).numpy()
    root = np.linalg.norm(data["unnorm_pred"][:, :3] - data["unnorm_gt"][:, :3], axis=-1)
    assert root.max() < 1e-3  # the recorded poses leave the root within its table's tiny range
    np.testing.assert_allclose(per_frame, data["mpjpe_per_frame"], atol=1e-3)
    evaluator = MachineEvaluator("h36m16", stages=())
    evaluator.update({"X_cam": pred}, batch(gt))
    assert evaluator.compute().metrics["mpjpe_mm"] == pytest.approx(float(data["mpjpe"]), abs=1e-3)


def test_each_stage_is_judged_and_both_means_are_named():
    gt, actions = poses(0), ["Walking"] * 9 + ["Eating"] * 3
    made = {"X_coarse": gt + poses(1) / 3, "X_regressed": gt + poses(2) / 6, "X_cam": gt + poses(3) / 10}
    evaluator = MachineEvaluator("h36m16", actions=actions)
    order = torch.randperm(N)
    for rows in order.split(5):  # batches of any size, the last one smaller: none is dropped
        evaluator.update({name: X[rows] for name, X in made.items()}, batch(gt[rows], rows))
    report = evaluator.compute()
    for name, key in (("coarse_mpjpe_mm", "X_coarse"), ("regressed_mpjpe_mm", "X_regressed"), ("mpjpe_mm", "X_cam")):
        error = pose.mpjpe(made[key], gt, 0)
        assert report.metrics[name] == pytest.approx(float(error.mean()), rel=1e-5)
        assert report.per_action[name]["Eating"] == pytest.approx(float(error[9:].mean()), rel=1e-5)
        mean = float(error[:9].mean() + error[9:].mean()) / 2
        assert report.metrics[name.replace("_mm", "_action_mean_mm")] == pytest.approx(mean, rel=1e-5)
    aligned = float(pose.pa_mpjpe(made["X_coarse"], gt, 0).mean())
    assert report.metrics["coarse_pa_mpjpe_mm"] == pytest.approx(aligned, rel=1e-5)
    assert list(report.per_action)[:3] == ["coarse_mpjpe_mm", "regressed_mpjpe_mm", "mpjpe_mm"]
    assert report.counts["poses"] == N


def test_the_table_by_action():
    gt = torch.zeros(4, SIXTEEN.num, 3)
    far = torch.zeros_like(gt)
    far[:, 1:, 0] = torch.tensor([16.0, 32.0, 32.0, 64.0])[:, None]  # 15 of 16 joints: 15, 30, 30 and 60 mm
    evaluator = MachineEvaluator("h36m16", actions=["Walking", "Walking", "Walking", "Eating"])
    evaluator.update({"X_coarse": far, "X_regressed": far / 3, "X_cam": far / 5, "decision": torch.ones(4)}, batch(gt))
    report = evaluator.compute()
    lines = [line.split() for line in report.stage_table().splitlines()]
    assert " ".join(lines[0]) == "action coarse, mm regressed, mm refined, mm coarse, PA mm regressed, PA mm refined, PA mm"
    assert [line[:-3] for line in lines[1:]] == [
        "Eating 60.00 20.00 12.00".split(),
        "Walking 25.00 8.33 5.00".split(),
        "mean of actions 42.50 14.17 8.50".split(),
        "mean of frames 33.75 11.25 6.75".split(),
    ]
    text = report.table()
    assert report.stage_table() in text and text.count("Eating") == 1 and "Protocol 1, mpjpe_mm" in text and "coarse_mpjpe_mm, " not in text


def test_a_missing_stage_is_told():
    evaluator = MachineEvaluator("h36m16")
    with pytest.raises(DataError, match="lacks X_regressed"):
        evaluator.update({"X_coarse": poses(0), "X_cam": poses(0)}, batch(poses(0)))
    plain = MachineEvaluator("h36m16", stages=("coarse",))
    plain.update({"X_coarse": poses(1), "X_cam": poses(0)}, batch(poses(0)))
    assert plain.compute().stage_table() == ""  # no actions


def test_the_mean_is_of_all_frames_and_never_starts_again():
    """The published evaluation prints and resets its mean after every 30 frames."""
    gt = torch.zeros(75, SIXTEEN.num, 3)
    pred = torch.zeros_like(gt)
    pred[:60, 1:, 0] = 32.0
    evaluator = MachineEvaluator("h36m16", stages=())
    evaluator.update({"X_cam": pred}, batch(gt))
    assert evaluator.compute().metrics["mpjpe_mm"] == pytest.approx(30 * 60 / 75)


# --- limbs


def body(off: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A straight body with limbs of 400 mm, and a prediction whose named joints are off by so many mm across."""
    gt = torch.zeros(1, SIXTEEN.num, 3)
    for side, x in (("l", 100.0), ("r", -100.0)):
        for chain, y in ((("hip", "knee", "ankle"), 0.0), (("shoulder", "elbow", "wrist"), -600.0)):
            for k, joint in enumerate(chain):
                gt[0, SIXTEEN.index(f"{side}_{joint}")] = torch.tensor([x, y + 400.0 * k, 0.0])
    pred = gt.clone()
    for joint, mm in off.items():
        pred[0, SIXTEEN.index(joint), 2] += mm
    return pred, gt


def right(off: dict[str, float], rule: str, **options) -> set[str]:
    pred, gt = body(off)
    correct, known = correct_limbs(pred, gt, "h36m16", rule=rule, **options)
    assert known.all() and correct.shape == (1, 8)
    names = [f"{group} {pair[1][0]}" for group, pairs in LIMBS.items() for pair in pairs]
    return {name for name, good in zip(names, correct[0].tolist(), strict=True) if not good}


def test_both_ends_or_their_mean():
    assert right({}, "strict") == right({}, "loose") == set()
    assert right({"l_wrist": 200.0}, "strict") == set()  # exactly half of the limb still counts
    assert right({"l_wrist": 201.0}, "strict") == {"lower arms l"}
    assert right({"l_wrist": 201.0}, "loose") == set()
    assert right({"l_elbow": 201.0}, "strict") == {"lower arms l", "upper arms l"}
    assert right({"r_knee": 390.0, "r_ankle": 20.0}, "loose") == {"lower legs r"}
    assert right({"r_knee": 390.0, "r_ankle": 20.0}, "strict") == {"lower legs r", "upper legs r"}
    assert right({"l_wrist": 150.0}, "strict", alpha=0.25) == {"lower arms l"}


def test_limbs_without_truth_do_not_count():
    pred, gt = body({"l_wrist": 900.0})
    valid = torch.ones(1, SIXTEEN.num, dtype=torch.bool)
    valid[0, SIXTEEN.index("l_wrist")] = False
    gt[0, SIXTEEN.index("l_wrist")] = torch.nan
    correct, known = correct_limbs(pred, gt, "h36m16", valid)
    assert known.sum() == 7 and correct.sum() == 7
    valid[0, 0] = False
    assert correct_limbs(pred, gt, "h36m16", valid)[1].sum() == 7  # the root matters only where poses are centred on it
    assert correct_limbs(pred, gt, "h36m16", valid, root=0)[1].sum() == 0


def test_centring_removes_the_place():
    pred, gt = body({})
    far = pred + 5000.0
    assert not correct_limbs(far, gt, "h36m16")[0].any()
    assert correct_limbs(far, gt, "h36m16", root=0)[0].all()


def test_rows_by_group_and_camera():
    parts = [body({}), body({"l_elbow": 201.0}), body({"l_wrist": 201.0, "r_wrist": 201.0})]
    pred, gt = (torch.cat(column) for column in zip(*parts, strict=True))
    evaluator = LimbEvaluator("h36m16", cameras=["cam1", "cam1", "cam2"], actions=["Kick", "Kick", "Run"], root="pelvis")
    for k in (2, 0, 1):
        evaluator.update({"X_cam": pred[k : k + 1]}, batch(gt[k : k + 1], torch.tensor([k])))
    report = evaluator.compute()
    assert report.metrics["pcp_percent"] == pytest.approx(100 * 20 / 24)
    assert report.metrics["pcp_loose_percent"] == pytest.approx(100.0)
    assert report.metrics["pcp_lower_arms_percent"] == pytest.approx(50.0)
    assert report.per_joint["pcp_cam1_percent"] == pytest.approx(
        {"upper arms": 75.0, "lower arms": 75.0, "upper legs": 100.0, "lower legs": 100.0}
    )
    assert report.per_joint["pcp_cam2_percent"]["lower arms"] == 0.0
    assert report.per_action["pcp_percent"] == pytest.approx({"Kick": 100 * 14 / 16, "Run": 75.0})
    assert report.counts == {"poses": 3, "limbs": 24} and "part" in report.table()


def test_limbs_are_judged_beside_the_poses():
    """The numbers of both, from the same rows; parts of the body and joints have tables of their own."""
    pred, gt = (torch.cat(column) for column in zip(body({}), body({"l_elbow": 201.0}), strict=True))
    evaluator, alone = PoseEvaluator("h36m16", actions=["Kick", "Run"]), LimbEvaluator("h36m16", ["a", "b"], ["Kick", "Run"])
    evaluator.update({"X_cam": pred}, batch(gt))
    plain = evaluator.compute()
    evaluator.beside = (LimbEvaluator("h36m16", ["a", "b"], ["Kick", "Run"]),)
    alone.update({"X_cam": pred}, batch(gt))
    report, limbs = evaluator.compute(), alone.compute()
    assert report.metrics == plain.metrics | limbs.metrics and report.per_joint == plain.per_joint | limbs.per_joint
    assert report.per_action == plain.per_action | limbs.per_action and report.counts["limbs"] == 16
    assert report.protocol["root"] == "pelvis" and report.protocol["pcp"]["centred_on"] is None
    titles = [line.split()[0] for line in report.table().splitlines() if line.split() and line.split()[0] in ("joint", "part", "action")]
    assert titles == ["action", "joint", "part"] and "Protocol 1, mpjpe_mm" in report.table()


def test_limbs_of_ones_own_table_by_camera_and_of_tracks(tmp_path):
    """Any table that is read, here one written by hand into Human3.6M's layout, by TEST.PCP; and tracks."""
    h36m.write(make(sequences=1, frames=3, views=2), tmp_path, "valid")
    ann = load("h36m", tmp_path, "valid")
    truth = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).float()
    wrong = truth.clone()
    wrong[ann.view == 1, skeletons.get(ann.skeleton).index("l_wrist")] += 500
    cfg = defaults().with_values({"TEST.PCP": "absolute"})
    evaluator = with_limbs(cfg, PoseEvaluator(ann.skeleton), SimpleNamespace(ann=ann))
    evaluator.update({"X_cam": wrong}, batch(truth))
    table = evaluator.compute().per_joint
    assert table["pcp_camera1_percent"]["lower arms"] == 100 and table["pcp_camera2_percent"]["lower arms"] == 50
    tracks = SimpleNamespace(view=np.array([0, 2]), start=np.array([0, 1, 3]))
    assert with_limbs(cfg, PoseEvaluator("h36m17"), SimpleNamespace(tracks=tracks)).beside[0].cameras == ["camera1", "camera3", "camera3"]
    with pytest.raises(ConfigError, match="TEST.PCP: is absolute"):
        with_limbs(cfg, Keypoint2DEvaluator("h36m17"), None)


def test_wrong_requests_are_told():
    pred, gt = body({})
    with pytest.raises(ConfigError, match="strictly"):
        correct_limbs(pred, gt, "h36m16", rule="strictly")
    with pytest.raises(DataError, match="no joint 'l_toe'"):
        LimbEvaluator("h36m16", limbs={"feet": (("l_ankle", "l_toe"),)})
    with pytest.raises(ConfigError, match="alpha is 0"):
        LimbEvaluator("h36m16", alpha=0)
