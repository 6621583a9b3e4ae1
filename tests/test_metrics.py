"""Metrics: hand-made numbers, slow twins, the recorded evaluation of EpipolarPose's release; evaluators and rows."""

import math
import re
import time

import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.engine import run_dir
from lib.errors import ConfigError, DataError, GeometryError, RunError
from lib.metrics import METRICS, Keypoint2DEvaluator, PCKhEvaluator, PoseEvaluator, Report, pose
from lib.metrics.keypoints import HEAD_BIAS, heatmap_accuracy, pckh, pckh_table
from lib.metrics.pose import aligned_joint_errors, axis_errors, joint_errors, joint_set, mpjpe, n_mpjpe, pa_mpjpe
from lib.metrics.procrustes import procrustes
from lib.metrics.report import RELEASE_NAMES
from lib.skeleton import convert, get
from scripts.benchmarks import metrics as metrics_race
from tests.conftest import golden, golden_json


def people(count: int, joints: int = 17) -> torch.Tensor:
    """Bodies of roughly human proportions, 5 m in front of the camera.    -> (N,J,3) float64 mm"""
    base = torch.randn(joints, 3, dtype=torch.float64) * torch.tensor([150.0, 450.0, 100.0])
    return base + 80 * torch.randn(count, joints, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 5000.0])


def procrustes_slow(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """One pose at a time, by SVD (Umeyama, PAMI 1991): X (J,3) moved onto Y (J,3)."""
    X0, Y0 = X - X.mean(0), Y - Y.mean(0)
    U, S, Vt = np.linalg.svd(X0.T @ Y0)
    D = np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    return np.trace(np.diag(S) @ D) / (X0**2).sum() * X0 @ U @ D @ Vt + Y.mean(0)


# --- definitions


def test_three_joints_by_hand():
    gt = torch.tensor([[[0.0, 0, 1000], [0, 100, 1000], [0, 0, 1100]]])
    pred = gt + torch.tensor([[[10.0, 0, 0], [10, 30, 40], [10, 0, 100]]])  # a shift of 10, then 50 and 100 mm
    torch.testing.assert_close(joint_errors(pred, gt, 0), torch.tensor([[0.0, 50, 100]], dtype=torch.float64))
    assert mpjpe(pred, gt, 0).tolist() == [50.0]
    assert mpjpe(pred, gt, None).item() == pytest.approx((10 + math.hypot(10, 30, 40) + math.hypot(10, 100)) / 3)
    assert mpjpe(pred, gt, 0, joints=[1, 2]).tolist() == [75.0]
    assert axis_errors(pred, gt, 0).mean((0, 1)).tolist() == [0.0, 10.0, pytest.approx(140 / 3)]
    assert METRICS["pck3d"](pred, gt, 0).tolist() == [1.0]
    assert METRICS["auc3d"](pred, gt, 0).item() == pytest.approx((30 + 20 + 10) / 31 / 3)  # thresholds strictly above
    far = gt + torch.tensor([[[0.0, 0, 0], [150, 0, 0], [149.9, 0, 0]]])
    assert METRICS["pck3d"](far, gt, 0).item() == pytest.approx(2 / 3)  # 150 mm itself is a miss


def test_scale_is_removed_by_n_mpjpe_and_a_similarity_by_pa_mpjpe():
    gt = people(20)
    angle = torch.tensor(0.7, dtype=torch.float64)
    R = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]], dtype=torch.float64)
    assert n_mpjpe(1.3 * gt + 50, gt, 0).max() < 1e-9
    assert mpjpe(1.3 * gt, gt, 0).min() > 10
    assert pa_mpjpe(0.7 * gt @ R.T - 300, gt, 0).max() < 1e-9
    assert pa_mpjpe(gt * torch.tensor([-1.0, 1, 1]), gt, 0).min() > 10  # a mirror image is no rotation


def test_n_mpjpe_scale_is_the_optimum():
    pred, gt = people(5) + 60 * torch.randn(5, 17, 3), people(5)
    p, g = pred - pred[:, :1], gt - gt[:, :1]
    scale = (p * g).sum((1, 2)) / (p * p).sum((1, 2))
    best = (scale[:, None, None] * p - g).square().sum((1, 2))
    for other in (0.999, 1.001):
        assert ((other * scale[:, None, None] * p - g).square().sum((1, 2)) > best).all()
    torch.testing.assert_close(n_mpjpe(pred, gt, 0), (scale[:, None, None] * p - g).norm(dim=-1).mean(1))


@pytest.mark.parametrize("kind", ["good", "bad", "unrelated", "mirrored", "flat", "line"])
def test_closed_form_alignment_equals_the_svd_of_one_pose_at_a_time(kind):
    gt = people(200)
    pred = {
        "good": gt + 40 * torch.randn_like(gt),
        "bad": gt + 400 * torch.randn_like(gt),
        "unrelated": 500 * torch.randn_like(gt),
        "mirrored": gt * torch.tensor([-1.0, 1, 1]),
        "flat": gt * torch.tensor([1.0, 1, 0]),
        "line": gt * torch.tensor([0.0, 1, 0]),
    }[kind]
    slow = np.stack([procrustes_slow(x, y) for x, y in zip(pred.numpy(), gt.numpy(), strict=True)])
    errors = np.linalg.norm(slow - gt.numpy(), axis=-1)
    np.testing.assert_allclose(aligned_joint_errors(pred, gt).mean(1), errors.mean(1), rtol=0, atol=1e-9)
    valid = torch.rand(200, 17) > 0.3
    some = np.stack(
        [np.linalg.norm(procrustes_slow(x[v], y[v]) - y[v], axis=-1).mean() for x, y, v in
         zip(pred.numpy(), gt.numpy(), valid.numpy(), strict=True)]
    )  # fmt: skip
    np.testing.assert_allclose(pa_mpjpe(pred, gt, 0, valid), some, rtol=0, atol=1e-9)


def test_points_that_coincide_align_to_the_mean():
    gt = people(2)
    R, t, scale = procrustes(torch.zeros_like(gt), gt)
    assert torch.isfinite(R).all() and (scale == 0).all()
    torch.testing.assert_close(t, gt.mean(1))
    assert torch.isfinite(n_mpjpe(torch.zeros_like(gt), gt, 0)).all()
    point = gt.mean(1, keepdim=True).expand_as(gt) + 0.1
    torch.testing.assert_close(pa_mpjpe(point, gt, None), (gt - gt.mean(1, keepdim=True)).norm(dim=-1).mean(1))
    assert pa_mpjpe(gt, point, None).max() < 1e-9 and pa_mpjpe(point, point, None).max() < 1e-9


def test_alignment_far_from_the_origin():
    gt, pred = people(20), people(20) + 60 * torch.randn(20, 17, 3, dtype=torch.float64)
    away = torch.tensor([1e5, -1e5, 1e5], dtype=torch.float64)  # 100 m
    torch.testing.assert_close(pa_mpjpe(pred + away, gt + away, None), pa_mpjpe(pred, gt, None), rtol=0, atol=1e-7)


# --- properties of every metric


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_gives_one_value_per_pose_and_its_best_for_the_truth(name):
    gt = people(7)
    values = METRICS[name](gt, gt, 0)
    assert values.shape == (7,) and values.dtype == torch.float64
    best = 30 / 31 if name == "auc3d" else 1.0 if "pck" in name else 0.0
    torch.testing.assert_close(values, torch.full((7,), best, dtype=torch.float64), rtol=0, atol=1e-9)
    assert METRICS[name](gt.float(), gt.float(), 0, joints=[1, 2, 3, 4]).shape == (7,)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_joints_without_truth_do_not_count_whatever_they_hold(name):
    gt = people(6)
    pred = gt + 60 * torch.randn_like(gt)
    valid = torch.ones(6, 17, dtype=torch.bool)
    valid[:, [4, 9, 16]] = False
    kept = valid[0].nonzero()[:, 0].tolist()
    spoiled = gt.clone()
    spoiled[~valid] = torch.nan
    torch.testing.assert_close(METRICS[name](pred, spoiled, 0, valid), METRICS[name](pred[:, kept], gt[:, kept], 0))
    valid[0] = False  # nothing known
    values = METRICS[name](pred, gt, 0, valid)
    assert values[0].isnan() and not values[1:].isnan().any()


@pytest.mark.parametrize("name", ["mpjpe", "n_mpjpe", "pck3d", "auc3d"])
def test_a_pose_without_its_root_has_no_value(name):
    gt = people(2)
    valid = torch.ones(2, 17, dtype=torch.bool)
    valid[0, 0] = False
    assert METRICS[name](gt, gt, 0, valid).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", sorted(METRICS))
def test_wrong_shapes_are_named(name):
    with pytest.raises(GeometryError, match=r"\(2, 16, 3\)"):
        METRICS[name](people(2, 16), people(2), 0)
    with pytest.raises(GeometryError, match="valid"):
        METRICS[name](people(2), people(2), 0, torch.ones(2, 16, dtype=torch.bool))


# --- the recorded evaluation of the release


def h36m_poses() -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Predictions and truth of the recorded evaluation in camera mm, through image and root depth as in the release."""
    z = golden("epipolarpose", "h36m_evaluate")

    def camera(x):
        depth = x[..., 2] + z["gt_pelvis"][:, None, 2]
        return np.concatenate([(x[..., :2] - z["gt_c_p"][:, None]) / z["gt_fl"][:, None] * depth[..., None],
                               depth[..., None]], -1)

    pred, gt = camera(z["pred_h36m17"][..., :3]), camera(z["gt_joints_3d"])
    return torch.from_numpy(pred), torch.from_numpy(gt), z["actions"].tolist()


MPII_TO_RELEASE = {"upper_neck": "nose"}  # the release fills MPII's neck with Human3.6M's Neck/Nose


@pytest.mark.parametrize("order", ["h36m_order", "mpii_order"])
def test_evaluation_equals_the_release_in_both_joint_orders(order):
    pred, gt, actions = h36m_poses()
    skeleton = get("h36m17")
    if order == "mpii_order":
        mpii = get("mpii16")
        rows = [skeleton.index(MPII_TO_RELEASE.get(joint, joint)) for joint in mpii.joints]
        pred, gt, skeleton = pred[:, rows], gt[:, rows], mpii
    recorded = golden_json("epipolarpose", "h36m_evaluate")[order]
    evaluator = PoseEvaluator(skeleton, actions=actions, variants=("standard", "reference"))
    # As double: the recorded numbers have no float32 step in between.
    values = evaluator._values(torch.arange(len(gt)), pred, gt, torch.ones(gt.shape[:2], dtype=torch.bool))
    for theirs, ours in RELEASE_NAMES.items():
        assert values[ours].mean().item() == pytest.approx(recorded["name_value"][theirs], rel=1e-6), ours

    evaluator.update({"X_cam": pred}, {"X_cam": gt, "X_valid": torch.ones(gt.shape[:2]), "id": torch.arange(len(gt))})
    report = evaluator.compute()
    for theirs, ours in RELEASE_NAMES.items():
        assert report.metrics[ours] == pytest.approx(recorded["name_value"][theirs], abs=1e-3), ours
    printed = [line.rsplit(" ", 1) for line in recorded["printed"]]
    joints, by_action = printed[: skeleton.num], printed[skeleton.num : skeleton.num + 15]
    for (_, value), ours in zip(joints, report.per_joint["mpjpe_mm"].values(), strict=True):
        assert ours == pytest.approx(float(value), abs=1e-3)
    assert report.per_action["mpjpe_mm"] == {name: pytest.approx(float(v), abs=1e-3) for name, v in by_action}
    aligned = {name: pytest.approx(float(v), abs=1e-3) for name, v in printed[skeleton.num + 15 :]}
    assert len(aligned) == 15 and report.per_action["pa_mpjpe_rooted_mm"] == aligned
    assert "aligned, rooted, pa_mpjpe_rooted_mm" in report.action_table()
    assert report.protocol["names_of_the_release"]["hm36_17j_align"] == "pa_mpjpe_rooted_mm"
    mean = np.mean([float(v) for _, v in by_action])
    assert report.metrics["mpjpe_action_mean_mm"] == pytest.approx(mean, abs=1e-3)


def test_reference_variants_differ_from_the_definitions():
    pred, gt, _ = h36m_poses()
    assert METRICS["pa_mpjpe_rooted"](pred, gt, 0).mean() > pa_mpjpe(pred, gt, 0).mean() + 1
    assert METRICS["n_mpjpe_procrustes"](pred, gt, 0).mean() > n_mpjpe(pred, gt, 0).mean() + 0.1


def test_published_definitions():
    z = golden("epipolarpose", "h36m_evaluate")
    pred, gt = torch.from_numpy(z["pss_pred"]), torch.from_numpy(z["pss_gt"])  # MPII order, root 6
    root = get("mpii16").root_index
    assert n_mpjpe(pred, gt, root).mean().item() == pytest.approx(float(z["nmpjpe_definition"]), rel=1e-9)
    assert METRICS["pck3d"](pred, gt, root).mean().item() == pytest.approx(float(z["pck150_definition"]), rel=1e-9)
    assert METRICS["auc3d"](pred, gt, root).mean().item() == pytest.approx(float(z["auc_definition"]), rel=1e-9)


def test_recorded_similarity_transforms():
    z = golden("epipolarpose", "h36m_evaluate")
    X, Y = torch.from_numpy(z["sim_Y"]), torch.from_numpy(z["sim_X"])  # the release calls the target X
    R, t, scale = procrustes(X, Y)
    torch.testing.assert_close(scale[:, None, None] * X @ R.mT + t[:, None], torch.from_numpy(z["sim_scaled_Z"]))
    torch.testing.assert_close(scale, torch.from_numpy(z["sim_scaled_b"]))


def test_recorded_skeleton_lengths_with_the_legacy_thorax():
    z = golden("epipolarpose", "h36m_evaluate")
    skeleton = get("h36m17")
    parents = list(skeleton.parents)
    parents[skeleton.index("thorax")] = skeleton.index("thorax")  # the release's table: a bone of no length
    length = np.linalg.norm(z["world"] - z["world"][:, parents], axis=-1).sum(1)
    np.testing.assert_allclose(length, z["skeleton_len"], rtol=1e-9)


# --- 2D


def test_pckh_table_equals_the_release():
    z = golden("epipolarpose", "heatmap_pckh")
    pred = torch.from_numpy(z["pckh_pred_0based"]) + 1
    gt = torch.from_numpy(z["pckh_gt_1based"]).permute(2, 0, 1)
    head = torch.from_numpy(z["pckh_headboxes"])
    size = HEAD_BIAS * (head[1] - head[0]).norm(dim=0)
    valid = torch.from_numpy(1 - z["pckh_missing"]).T.bool()
    table = pckh_table(pred, gt, size, get("mpii16").joints, valid)
    recorded = dict(zip(z["pckh_names"].tolist(), z["pckh_values"].tolist(), strict=True))
    for name in ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"):
        assert table[f"pckh_{name.lower()}_percent"] == pytest.approx(recorded[name], rel=1e-9)
    assert table["pckh_percent"] == pytest.approx(recorded["Mean"], rel=1e-9)
    assert table["pckh_percent"] == pytest.approx(float(z["pckh_perf"]), rel=1e-9)
    assert table["pckh_at11_percent"] == pytest.approx(recorded["Mean@0.1"], rel=1e-9)
    assert table["pckh_at10_percent"] < table["pckh_at11_percent"]
    with pytest.raises(GeometryError, match="head_size"):
        pckh(pred, gt, size[:5])


def test_a_joint_at_half_a_head_counts_unless_strict():
    gt, size = torch.zeros(1, 16, 2), torch.tensor([10.0])
    pred = torch.zeros(1, 16, 2)
    pred[0, :3, 0] = torch.tensor([4.9, 5.0, 5.1])
    assert pckh(pred, gt, size)[0, :3].tolist() == [1, 1, 0]
    assert pckh(pred, gt, size, strict=True)[0, :3].tolist() == [1, 0, 0]
    percent = []
    batch = {"id": torch.zeros(1, dtype=torch.int64), "x_img": gt, "conf": torch.ones(1, 16), "image": torch.zeros(1, 3, 8, 8)}
    for strict in (False, True):
        evaluator = PCKhEvaluator("mpii16", size.numpy(), strict=strict)
        evaluator.update({"x_img": pred}, batch | {"patch_from_img": torch.eye(3)[None, :2]})
        percent.append(evaluator.compute().metrics["pckh_percent"])
    assert percent == pytest.approx([100 * 13 / 14, 100 * 12 / 14])


def test_heatmap_accuracy_equals_the_release():
    z = golden("epipolarpose", "heatmap_pckh")
    pred, target = torch.from_numpy(z["heatmaps"]), torch.from_numpy(z["acc_target"])
    mean, per_joint = heatmap_accuracy(pred, target, axes="swapped")
    assert mean.item() == pytest.approx(float(z["acc_avg"]), rel=1e-6)
    assert int((~per_joint.isnan()).sum()) == int(z["acc_cnt"])
    recorded = torch.from_numpy(z["acc"])[1:]
    known = ~per_joint.isnan()
    torch.testing.assert_close(per_joint[known], recorded[known])
    assert heatmap_accuracy(target, target)[0] == 1


def test_2d_evaluator_measures_in_boxes():
    matrix = torch.tensor([[0.5, 0.0, -10.0], [0.0, 0.25, 3.0]])  # box 512 x 1024 px -> patch 256 x 256
    gt = torch.full((2, 16, 2), 100.0)
    pred = gt.clone()
    pred[0, :, 0] += 0.04 * 512
    pred[1, :, 1] += 0.06 * 1024
    conf = torch.ones(2, 16)
    conf[1, 8:] = 0
    pred[1, 8:] = 1e4  # not annotated, so not judged
    batch = {"id": torch.tensor([3, 1]), "x_img": gt, "conf": conf, "patch_from_img": matrix.expand(2, 2, 3),
             "image": torch.zeros(2, 3, 256, 256, dtype=torch.uint8)}  # fmt: skip
    evaluator = Keypoint2DEvaluator("mpii16")
    evaluator.update({"x_img": pred}, batch)
    report = evaluator.compute()
    assert report.metrics == {
        "pck2d_percent": 50.0,
        "pck2d_at10_percent": 100.0,
        "error_px": pytest.approx((0.04 * 512 + 0.06 * 1024) / 2, rel=1e-5),
        "error_box_percent": pytest.approx(5.0, rel=1e-5),
    }
    assert report.counts == {"poses": 2, "joints": 24}
    assert report.per_joint["pck2d_percent"]["r_wrist"] == 100


# --- 3D evaluator


def evaluate(pred, gt, valid=None, ids=None, batch=4, **options) -> PoseEvaluator:
    ids = torch.arange(len(gt)) if ids is None else ids
    valid = torch.ones(gt.shape[:2], dtype=torch.bool) if valid is None else valid
    evaluator = PoseEvaluator("h36m17", **options)
    for i in range(0, len(gt), batch):
        part = slice(i, i + batch)
        evaluator.update({"X_cam": pred[part]}, {"X_cam": gt[part], "X_valid": valid[part], "id": ids[part]})
    return evaluator


def test_report_holds_the_metrics_by_name():
    gt = people(12)
    pred = gt + 40 * torch.randn_like(gt)
    actions = ["Walking", "Sitting", "Waving"] * 4
    report = evaluate(pred, gt, actions=actions).compute()
    for ours, name in (("mpjpe_mm", "mpjpe"), ("pa_mpjpe_mm", "pa_mpjpe"), ("n_mpjpe_mm", "n_mpjpe")):
        assert report.metrics[ours] == pytest.approx(METRICS[name](pred, gt, 0).mean().item(), abs=1e-3)
    for ours, name in (("pck150_percent", "pck3d"), ("auc_percent", "auc3d"), ("n_pck150_percent", "n_pck3d")):
        assert report.metrics[ours] == pytest.approx(100 * METRICS[name](pred, gt, 0).mean().item(), abs=0.1)
    fourteen = joint_set(get("h36m17").joints, "14")
    assert report.metrics["mpjpe14_mm"] == pytest.approx(mpjpe(pred, gt, 0, joints=fourteen).mean().item(), abs=1e-3)
    assert report.metrics["mpjpe14_mm"] == evaluate(pred, gt, joints="14").compute().metrics["mpjpe_mm"]
    walking = mpjpe(pred[::3], gt[::3], 0).mean().item()
    assert report.per_action["mpjpe_mm"]["Walking"] == pytest.approx(walking, abs=1e-3)
    assert list(report.per_action["mpjpe_mm"]) == ["Sitting", "Walking", "Waving"]
    assert list(report.per_joint["mpjpe_mm"]) == list(get("h36m17").joints)
    table = report.table()
    assert table.split("\n")[0].split() == ["mpjpe_mm", f"{report.metrics['mpjpe_mm']:.2f}"]
    assert "Protocol 2, pa_mpjpe_mm" in table and "l_wrist" in table and "12 poses" in table
    assert report.to_dict()["metrics"] == report.metrics


def test_action_table_is_laid_out_as_papers_print_it():
    """A row per protocol, Human3.6M's actions in the published order, the mean over poses and that over actions."""
    gt = people(10)
    pred = gt + 40 * torch.randn_like(gt)
    actions = ["Waving", "Walking", "Walking", "Walking", "WalkTogether", "WalkDog", "Photo", "Posing", "Phoning", "Directions"]
    report = evaluate(pred, gt, actions=actions).compute()
    published = ["Directions", "Phoning", "Photo", "Posing", "WalkDog", "Walking", "WalkTogether"]
    assert list(report.per_action["mpjpe_mm"]) == [*published, "Waving"]
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in report.action_table().split("\n")]
    assert head == ["Dir.", "Phone", "Photo", "Pose", "WalkD.", "Walk", "WalkT.", "Waving", "Mean", "of actions"]
    assert [row[0] for row in rows] == ["Protocol 1, mpjpe_mm", "Protocol 2, pa_mpjpe_mm", "Protocol 3, n_mpjpe_mm"]
    errors = n_mpjpe(pred, gt, 0)
    expected = [errors[k].mean() for k in ([9], [8], [6], [7], [5], [1, 2, 3], [4], [0])]
    expected += [errors.mean(), torch.stack(expected).mean()]
    assert [float(cell) for cell in rows[2][1:]] == pytest.approx([value.item() for value in expected], abs=0.06)
    assert report.action_table() in report.table()
    assert evaluate(pred, gt).compute().action_table() == ""
    own = Report({}, per_action={"pck2d_percent": {"Waving": 50.0}})
    assert own.action_table().split("\n")[1].split() == ["Waving", "50.00"]  # belongs to no protocol
    many = Report({}, per_action={"mpjpe_mm": {f"sequence_{i:02d}": float(i) for i in range(24)}})
    assert [line.split() for line in many.action_table().split("\n")][24] == ["sequence_23", "23.00"]  # a row each


def test_reports_say_how_they_were_measured():
    gt = people(3)
    protocol = evaluate(gt, gt, joints="14", protocol={"intrinsics": "known"}).compute().to_dict()["protocol"]
    assert protocol["skeleton"] == "h36m17" and protocol["root"] == "pelvis" and protocol["variants"] == ["standard"]
    assert sorted(protocol["joints"]) == sorted(pose.JOINT_SETS["14"]) and protocol["intrinsics"] == "known"
    assert "similarity" in protocol["alignment"]["pa_mpjpe_mm"] and "scale" in protocol["alignment"]["n_mpjpe_mm"]


def test_results_files_hold_the_protocol_of_configuration_and_evaluator():
    gt = people(3)
    cfg = defaults().with_values({"TEST.PROTOCOL": "p1", "DATASET.VAL_FRAME": 64})
    protocol = run_dir.results(cfg, evaluate(gt, gt).compute().to_dict(), "float32", {"boxes": "found", "root": "any"})["protocol"]
    expected = {"name": "p1", "frame_stride": 64, "boxes": "found", "subjects": "all", "root": "pelvis"}
    assert expected.items() <= protocol.items() and len(protocol["joints"]) == 17 and "alignment" in protocol
    without = run_dir.results(defaults(), Report({}).to_dict(), "float32", {})
    assert not {"root", "boxes", "flip_test"} & without["protocol"].keys()


def test_the_whole_report_equals_that_of_one_pose_at_a_time():
    """The slow twin is the one that scripts/benchmark.py metrics races against."""
    pred, gt = metrics_race.poses(60)
    actions = ["Walking", "Eating", "Photo"] * 20
    report = evaluate(torch.from_numpy(pred), torch.from_numpy(gt), actions=actions, batch=7).compute()
    slow = metrics_race.evaluate_slowly(pred, gt, actions)
    assert report.metrics == pytest.approx(slow["metrics"], rel=1e-9)
    for found, name in ((report.per_joint, "per joint"), (report.per_action, "per action")):
        assert metrics_race.flat(found) == pytest.approx(metrics_race.flat(slow[name]), rel=1e-9, abs=1e-9)
    batched = metrics_race.batched_svd(pred.astype(np.float64), gt.astype(np.float64))
    np.testing.assert_allclose(pa_mpjpe(torch.from_numpy(pred), torch.from_numpy(gt), 0), batched, rtol=1e-9)


def test_fourteen_joints_are_limbs_pelvis_and_thorax():
    for name in ("h36m17", "mpii16"):
        kept = {get(name).joints[k] for k in joint_set(get(name).joints, "14")}
        assert len(kept) == 14 and kept.isdisjoint({"spine", "nose", "upper_neck", "head"})
    assert joint_set(get("coco17").joints, "14") is None


def test_order_batches_and_processes_do_not_change_the_report():
    gt = people(11)
    pred = gt + 40 * torch.randn_like(gt)
    whole = evaluate(pred, gt).compute()
    shuffled = torch.randperm(11)
    parts = [evaluate(pred[k], gt[k], ids=k, batch=3) for k in (shuffled[:6], shuffled[6:])]
    gathered = PoseEvaluator("h36m17")
    gathered.load_rows([part.rows() for part in parts] + [PoseEvaluator("h36m17").rows()])
    assert gathered.compute() == whole


def test_partly_known_poses_count_with_what_is_known():
    gt = people(3)
    pred = gt + 40 * torch.randn_like(gt)
    valid = torch.ones(3, 17, dtype=torch.bool)
    valid[0, 5] = False
    valid[1, 0] = False  # the root
    spoiled = gt.clone()
    spoiled[~valid] = torch.nan
    report = evaluate(pred, spoiled, valid).compute()
    expected = mpjpe(pred, spoiled, 0, valid)
    assert report.metrics["mpjpe_mm"] == pytest.approx(expected[[0, 2]].mean().item(), abs=1e-3)
    assert report.counts == {"poses": 3, "poses_without_value": 1}
    gap = people(3)
    gap[:, 3] = torch.nan  # undefined predictions, such as labels that were rejected, are marked by pred["valid"]
    defined = torch.ones(3, 17, dtype=torch.bool)
    defined[:, 3] = False
    evaluator = PoseEvaluator("h36m17")
    evaluator.update(
        {"X_cam": gap, "valid": defined},
        {"X_cam": gt, "X_valid": torch.ones(3, 17), "id": torch.arange(3)},
    )
    report = evaluator.compute()
    assert "r_ankle" not in report.per_joint["mpjpe_mm"] and len(report.per_joint["mpjpe_mm"]) == 16


def test_what_an_evaluator_refuses():
    gt = people(4)
    with pytest.raises(DataError, match="3 samples came twice.*ids 0, 1, 2"):
        evaluate(torch.cat([gt, gt[:3]]), torch.cat([gt, gt[:3]]), ids=torch.tensor([0, 1, 2, 3, 0, 1, 2])).compute()
    broken = gt.clone()
    broken[2, 5, 1] = torch.inf
    with pytest.raises(RunError, match="ids 12"):
        evaluate(broken, gt, ids=torch.arange(10, 14))
    with pytest.raises(DataError, match="nothing was evaluated"):
        PoseEvaluator("h36m17").compute()
    with pytest.raises(DataError, match=r"\(4, 16, 3\).*h36m17.*MODEL.NUM_JOINTS"):
        evaluate(gt[:, :16], gt)
    with pytest.raises(ConfigError, match="TEST.JOINTS.*13.*14"):
        PoseEvaluator("h36m17", joints="13")
    with pytest.raises(ConfigError, match="pelvis.*coco17"):
        PoseEvaluator("coco17", joints="14")
    with pytest.raises(ConfigError, match="standard"):
        PoseEvaluator("h36m17", variants=("standart",))


def test_conversion_and_evaluation_agree_on_common_joints():
    gt = people(3)
    pred = gt + 30 * torch.randn_like(gt)
    names = [j for j in get("h36m17").joints if j in get("mpii16").joints]
    (p, _), (g, _) = convert(pred, "h36m17", "mpii16"), convert(gt, "h36m17", "mpii16")
    rows17, rows16 = get("h36m17").indices(names), get("mpii16").indices(names)
    torch.testing.assert_close(
        mpjpe(p, g, get("mpii16").root_index, joints=rows16.tolist()), mpjpe(pred, gt, 0, joints=rows17.tolist())
    )


def test_the_whole_set_is_several_times_faster_than_one_pose_at_a_time():
    gt = people(20000).float()
    pred = gt + 40 * torch.randn_like(gt)
    evaluator = evaluate(pred, gt, batch=1000)
    evaluator.compute()

    def seconds(function) -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    ours = min(seconds(evaluator.compute) for _ in range(3)) / len(gt)
    few = [(x.double().numpy(), y.double().numpy()) for x, y in zip(pred[:200], gt[:200], strict=True)]
    slow = min(seconds(lambda: [procrustes_slow(x, y) for x, y in few]) for _ in range(3)) / len(few)  # PA alone
    assert slow > 3 * ours
