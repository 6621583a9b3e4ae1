"""Several people per frame: the published evaluations' own numbers, and what the rules say on small scenes that can be counted by hand."""

import pytest
import torch

from lib.errors import ConfigError, DataError, RunError
from lib.metrics import people
from lib.metrics.people_evaluator import PCPEvaluator, PeopleEvaluator
from lib.skeleton import convert, get
from tests.conftest import golden
from tests.scene import ring_of_cameras

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def recorded():
    arrays = {k: torch.from_numpy(v) for k, v in golden("selfpose3d", "metrics").items()}
    return lambda case: {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith(f"{case}/")}


def scene(*poses: list[float], joints: int = 15) -> torch.Tensor:
    """People (1,M,J,3) whose joints all lie on the x axis at the given place, in mm."""
    X = torch.zeros(1, len(poses), joints, 3)
    X[0, :, :, 0] = torch.tensor(poses)[:, None]
    return X


def batch_of(gt: torch.Tensor, ids=None, **others) -> dict:
    valid = torch.ones(gt.shape[:3], dtype=torch.bool)
    people = torch.full((len(gt),), gt.shape[1])
    return {"id": torch.arange(len(gt)) if ids is None else ids, "X_world": gt, "X_valid": valid, "n_people": people} | others


def pred_of(X: torch.Tensor, score=None, found=None) -> dict:
    score = torch.ones(X.shape[:2]) if score is None else torch.tensor(score).expand(X.shape[:2])
    return {"X_world": X, "score": score, "found": torch.ones(X.shape[:2], dtype=torch.bool) if found is None else found}


# ------------------------------------------------------------------------------------------------------------ Panoptic


def panoptic(data, batches=(12,), **options) -> PeopleEvaluator:
    evaluator = PeopleEvaluator("panoptic15", **options)
    for rows in torch.arange(12).split(list(batches)):
        p = data["preds"][rows]
        pred = {"X_world": p[..., :3], "score": p[:, :, 0, 4], "found": p[:, :, 0, 3] >= 0, "centers": data["roots"][rows][..., :3]}
        valid = data["gt_vis"][rows].bool()
        evaluator.update(pred, {"id": rows, "X_world": data["gt"][rows], "X_valid": valid, "n_people": data["num_gt"][rows]})
    return evaluator


def test_the_numbers_of_poses_and_roots_are_the_recorded_ones(recorded):
    data = recorded("panoptic_eval")
    metrics = panoptic(data, rule="reference").compute().metrics
    for prefix, suffix in (("", ""), ("root_", "_root")):
        for name, key in (("ap", "ap"), ("recall", "recall_at")):
            found = [metrics[f"{prefix}{name}{mm:.0f}_percent"] / 100 for mm in people.AP_MM]
            assert found == pytest.approx(data[key + suffix].tolist(), abs=TOLERANCE)
        assert metrics[f"{prefix}mpjpe_mm"] == pytest.approx(float(data["mpjpe" + suffix]), abs=TOLERANCE)
        assert metrics[f"{prefix}recall500_percent"] / 100 == pytest.approx(float(data["recall500" + suffix]), abs=TOLERANCE)
        assert metrics[f"{prefix}map_percent"] / 100 == pytest.approx(float(data["ap" + suffix].mean()), abs=TOLERANCE)


def test_ghosts_in_empty_frames_cost_precision_but_no_recall(recorded):
    data = recorded("panoptic_eval")
    empty = data["num_gt"] == 0
    data["preds"][empty] = data["preds"][0].clone()
    with_ghosts, without = (panoptic(data, count_empty_frames=count).compute().metrics for count in (True, False))
    assert panoptic(data).compute().metrics == with_ghosts  # the default counts them
    assert with_ghosts["map_percent"] < without["map_percent"] - 0.1
    for same in ("mar_percent", "recall500_percent", "mpjpe_mm"):
        assert with_ghosts[same] == without[same]


def test_ranks_and_batches_change_nothing(recorded):
    data = recorded("panoptic_eval")
    whole = panoptic(data, sequences=["a", "b"] * 6).compute()
    assert set(whole.per_action["map_percent"]) == {"a", "b"}
    rows = panoptic(data).rows()
    ranks = [PeopleEvaluator("panoptic15", ["a", "b"] * 6) for _ in range(2)]
    for rank, own in zip(ranks, (slice(1, None, 2), slice(0, None, 2)), strict=True):
        rank.load_rows([{k: v[own] for k, v in rows.items()}])
    ranks[0].load_rows([rank.rows() for rank in ranks])
    assert ranks[0].compute() == whole
    assert panoptic(data, (5, 4, 3), sequences=["a", "b"] * 6).compute() == whole


def test_batches_of_different_padding_are_joined():
    evaluator = PeopleEvaluator("panoptic15")
    evaluator.update(pred_of(scene(0, 2000)), batch_of(scene(0, 2000)))
    evaluator.update(pred_of(scene(10)), batch_of(scene(0, 1000, 3000), torch.tensor([1])))
    report = evaluator.compute()
    assert report.counts == {"frames": 2, "predictions": 3, "people": 5, "frames_without_people": 0}
    assert report.metrics["ap25_percent"] == pytest.approx(60) and report.metrics["mpjpe_mm"] == pytest.approx(10 / 3)


def test_average_precision_by_hand():
    # by score: right, a second one of the same person, right; one of three people stays unseen
    evaluator = PeopleEvaluator("panoptic15")
    evaluator.update(pred_of(scene(5, 0, 1010), [0.9, 0.8, 0.7]), batch_of(scene(0, 1000, 5000)))
    metrics = evaluator.compute().metrics
    assert metrics["ap25_percent"] == pytest.approx(100 * (1 / 3 + 1 / 3 * 2 / 3), rel=1e-6)
    assert metrics["recall25_percent"] == pytest.approx(100 * 2 / 3) and metrics["recall500_percent"] == pytest.approx(100 * 2 / 3)
    assert metrics["mpjpe_mm"] == pytest.approx(7.5, rel=1e-5)  # the best scored of a person counts, not the nearest


def test_thresholds_are_strict_and_joints_without_truth_are_not_judged():
    gt = scene(0.0)
    pred = gt.clone()
    pred[..., 1] = 25.0
    evaluator = PeopleEvaluator("panoptic15")
    evaluator.update(pred_of(pred), batch_of(gt))
    metrics = evaluator.compute().metrics
    assert metrics["ap25_percent"] == 0 and metrics["ap50_percent"] == 100
    pred[0, 0, 3] = 4000.0
    batch = batch_of(gt)
    batch["X_valid"][0, 0, 3] = False
    evaluator = PeopleEvaluator("panoptic15")
    evaluator.update(pred_of(pred), batch)
    report = evaluator.compute()
    assert report.metrics["mpjpe_mm"] == pytest.approx(25) and get("panoptic15").joints[3] not in report.per_joint["mpjpe_mm"]


def test_frames_without_people_or_predictions_alone():
    evaluator = PeopleEvaluator("panoptic15")
    evaluator.update(pred_of(scene(0.0)), batch_of(torch.zeros(1, 0, 15, 3)))
    report = evaluator.compute()  # nobody to find: precision and recall have no value
    assert not report.metrics and report.counts["frames_without_people"] == 1
    evaluator = PeopleEvaluator("panoptic15")
    evaluator.update(pred_of(torch.zeros(1, 0, 15, 3)), batch_of(scene(0.0)))
    metrics = evaluator.compute().metrics
    assert metrics["map_percent"] == 0 == metrics["recall500_percent"] and "mpjpe_mm" not in metrics


def test_what_cannot_be_evaluated_is_refused():
    evaluator = PeopleEvaluator("panoptic15")
    with pytest.raises(DataError, match=r"expected \(1, P, 15, 3\)"):
        evaluator.update(pred_of(scene(0, joints=17)), batch_of(scene(0)))
    with pytest.raises(DataError, match="true people have 17 joints"):
        evaluator.update(pred_of(scene(0)), batch_of(scene(0, joints=17)))
    broken = pred_of(scene(0, 1))
    broken["X_world"][0, 1, 0] = torch.nan
    with pytest.raises(RunError, match="NaN or infinite"):
        evaluator.update(broken, batch_of(scene(0)))
    broken["found"][0, 1] = False  # nobody is there, so it does not matter what the slot holds
    evaluator.update(broken, batch_of(scene(0)))
    assert evaluator.compute().metrics["ap25_percent"] == 100
    with pytest.raises(ConfigError, match="exact"):
        PeopleEvaluator("panoptic15", rule="exakt")


def test_the_table_reads_as_in_the_papers(recorded):
    text = panoptic(recorded("panoptic_eval"), rule="reference").compute().table().splitlines()
    assert text[0].split() == ["AP25", "AP50", "AP75", "AP100", "AP125", "AP150", "mAP", "Recall@500", "MPJPE"]
    assert text[1].split()[-9:] == "0.28 18.63 25.59 31.66 34.48 34.48 24.19 81.82 108.44".split()
    assert text[2].startswith("roots")


# --------------------------------------------------------------------------------------------------------- Shelf, Campus


def actors(data, frames=slice(None), **options) -> PCPEvaluator:
    p, gt = data["preds"][frames], 1000 * data["gt_m"].transpose(0, 1)[frames]
    evaluator = PCPEvaluator("coco17", **options)
    pred = {"X_world": p[..., :3], "score": p[:, :, 0, 4], "found": p[:, :, 0, 3] >= 0}
    evaluator.update(pred, {"id": torch.arange(len(p)), "X_world": gt, "X_valid": gt.isfinite().all(-1)})
    return evaluator


@pytest.mark.parametrize("name", ["campus", "shelf"])
def test_pcp_is_the_recorded_one(recorded, name):
    data = recorded(f"pcp_{name}")
    report = actors(data, head_rule="blended", rule="reference").compute()
    found = [report.metrics[f"pcp_actor{k + 1}_percent"] / 100 for k in range(len(data["actor_pcp"]))]
    assert found == pytest.approx(data["actor_pcp"].tolist(), abs=TOLERANCE)
    assert report.metrics["pcp_percent"] / 100 == pytest.approx(float(data["avg_pcp"]), abs=TOLERANCE)
    assert report.metrics["pcp_recall500_percent"] / 100 == pytest.approx(float(data["recall"]), abs=TOLERANCE)
    for k, column in enumerate(data["bone"].T.tolist()):
        rows = report.per_joint[f"pcp_actor{k + 1}_percent"]
        assert [rows[group] / 100 for group in people.GROUPS] == pytest.approx(column, abs=TOLERANCE)
    lines = report.table().splitlines()
    assert lines[0].split() == [w for k in range(len(found)) for w in ("Actor", str(k + 1))] + ["Average"] and lines[1].startswith("PCP")


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=TOLERANCE, rtol=0)


def test_conversions_and_both_head_rules_are_the_recorded_ones(recorded):
    for name in ("campus", "shelf"):
        data = recorded(f"pcp_{name}")
        first = data["preds"][0, :3, :, :3]
        same(people.to_fourteen(first, "coco17", "blended")[0], data["converted_first3"])
        same(people.to_fourteen(data["panoptic15"], "panoptic15", "blended")[0], data["panoptic15_to14"])
        same(convert(data["coco17"], "coco17", "panoptic15")[0], data["coco17_to_panoptic15"])
    heads = {k.partition("/")[2]: torch.from_numpy(v) for k, v in golden("selfpose3d", "metrics_voxelpose").items()}
    for rule, key in (("plain", "campus14"), ("blended", "shelf14")):
        same(people.to_fourteen(heads["coco17"], "coco17", rule)[0], heads[key])
    with pytest.raises(ConfigError, match="lacks the nose"):
        PCPEvaluator("smpl24", head_rule="blended")


def test_the_truth_may_come_by_id(recorded):
    data = recorded("pcp_shelf")
    evaluator = PCPEvaluator("coco17", 1000 * data["gt_m"].transpose(0, 1), head_rule="blended")
    for ids in (torch.tensor([2, 0]), torch.tensor([1])):
        p = data["preds"][ids]
        evaluator.update({"X_world": p[..., :3], "score": p[:, :, 0, 4], "found": p[:, :, 0, 3] >= 0}, {"id": ids})
    assert evaluator.compute() == actors(data, head_rule="blended").compute()
    with pytest.raises(DataError, match=r"expected \(..., actors, 14, 3\)"):
        PCPEvaluator("coco17", torch.zeros(3, 4, 17, 3))


def test_actors_who_never_appear_and_frames_without_predictions(recorded):
    data = recorded("pcp_campus")
    report = actors(data, head_rule="blended").compute()
    assert report.metrics["pcp_percent"] == 100 and "pcp_actor2_percent" not in report.metrics  # nobody to be found wrong
    data["preds"][0, :, :, 3] = -1
    metrics = actors(data, head_rule="blended").compute().metrics
    assert metrics["pcp_actor1_percent"] == pytest.approx(200 / 3) and metrics["pcp_recall500_percent"] == pytest.approx(200 / 3)
    data["preds"] = data["preds"][:, :0]
    assert actors(data, head_rule="blended").compute().metrics["pcp_percent"] == 0


def fourteen() -> torch.Tensor:
    """(1,1,14,3): joints that lie 100 mm apart along x, in their order."""
    X = torch.zeros(1, 1, 14, 3)
    X[..., 0] = 100.0 * torch.arange(14)
    return X


def test_a_part_may_be_off_by_half_its_length_on_average():
    gt, valid, found = fourteen(), torch.ones(1, 1, 14, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    elbow = get("shelf14").index("r_elbow")
    for off, right in ((99.0, True), (101.0, False)):  # one end is off: half of that on average, of 100 mm
        pred = gt.clone()
        pred[0, 0, elbow, 2] = off
        pcp = people.pcp3d(pred, found, gt, valid)
        wrong = [people.PARTS[k][0] for k in (~pcp.correct[0, 0]).nonzero()[:, 0].tolist()]
        assert wrong == ([] if right else ["lower arms", "upper arms"])
    lacking = valid.clone()
    lacking[0, 0, elbow] = False
    assert (~people.pcp3d(gt, found, gt, valid, lacking).correct).sum() == 2  # a joint that was not found is no right one
    pcp = people.pcp3d(gt, found, gt, lacking)
    assert pcp.known.sum() == 8 and float(people.pcp_scores(pcp).actor[0]) == 1  # without a truth a part does not count


def test_average_over_the_first_three_actors_and_packed_actors():
    gt = torch.cat([fourteen() + torch.tensor([0.0, 3000.0 * k, 0]) for k in range(4)], 1)
    valid = torch.ones(1, 4, 14, dtype=torch.bool)
    pred = pred_of(gt[:, :3])  # the fourth is missed: the third is nearest to him
    batch = {"id": torch.tensor([0]), "X_world": gt, "X_valid": valid}
    for average_over, mean in ((3, 100), (None, 75)):
        evaluator = PCPEvaluator("shelf14", average_over=average_over)
        evaluator.update(pred, batch)
        assert evaluator.compute().metrics["pcp_percent"] == pytest.approx(mean)
    order = torch.tensor([[3, 1, 0, 2]])
    packed = {"id": batch["id"], "X_world": gt[:, order[0]], "X_valid": valid, "actor": order}
    evaluator.update(pred, packed | {"id": torch.tensor([1])})
    assert evaluator.compute().metrics["pcp_actor4_percent"] == 0 and evaluator.compute().metrics["pcp_actor1_percent"] == 100


# ----------------------------------------------------------------------------------------------------------- reprojection


def crowd(frames: int = 2):
    """Three people seen by four cameras, in another order in every view."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(frames, 3, 15, 3, generator=generator) * torch.tensor([150.0, 150, 400]) + torch.tensor([0.0, 0, 1000])
    X = X + torch.tensor([[-900.0, 0, 0], [0, 800, 0], [900, -300, 0]])[:, None]
    cameras = ring_of_cameras(4, distortion=True, dtype=torch.float32)
    x = cameras.project(X.flatten(1, 2)[:, None])[0].unflatten(2, (3, 15))
    order = torch.rand(frames, 4, 3, generator=generator).argsort(-1)
    return X, cameras.expand(frames, 4), x.take_along_dim(order[..., None, None], 2), torch.ones(frames, 4, 3, 15)


def test_reprojection_needs_no_truth_and_falls_with_the_error():
    X, cameras, x, conf = crowd()
    values = []
    for noise in (0.0, 20.0, 60.0, 200.0):
        evaluator = PeopleEvaluator("panoptic15")
        shifted = X + noise * torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
        evaluator.update(pred_of(shifted), {"id": torch.arange(2), "camera": cameras, "x_img": x, "conf": conf})
        report = evaluator.compute()
        values.append(report.metrics["reprojection_percent"])
        assert "map_percent" not in report.metrics and report.table()
    assert values[0] < 1e-3 and values == sorted(values)


def test_reprojection_charges_people_missed_and_invented():
    X, cameras, x, conf = crowd()
    sums = people.reprojection_people(X[:, :2], torch.ones(2, 2, dtype=torch.bool), cameras, x, conf)
    assert (sums.seen == 3).all() and (sums.matched == 2).all() and sums.ospa() == pytest.approx(0.5 / 3, abs=1e-4)
    ghost = torch.cat([X, X[:, :1] + torch.tensor([0.0, -900, 0])], 1)
    sums = people.reprojection_people(ghost, torch.ones(2, 4, dtype=torch.bool), cameras, x, conf)
    assert (sums.matched == 3).all() and sums.ospa() == pytest.approx(0.5 * float((sums.shown - 3).sum() / sums.shown.sum()), abs=1e-4)
    assert sums.shown.sum() > 3 * 8
    hidden = conf.clone()
    hidden[:, :, 0] = 0  # what has no confidence may hold anything
    x = x.where(hidden[..., None] > 0, torch.nan)
    sums = people.reprojection_people(X, torch.ones(2, 3, dtype=torch.bool), cameras, x, hidden)
    assert (sums.seen == 2).all() and (sums.matched == 2).all() and sums.ospa() == pytest.approx(0.5 / 3, abs=1e-4)


def test_reprojection_of_people_who_lack_joints_or_are_not_there():
    X, cameras, x, conf = crowd()
    valid = torch.rand(X.shape[:3], generator=torch.Generator().manual_seed(0)) > 0.4
    evaluator = PeopleEvaluator("panoptic15")
    pred = pred_of(X.where(valid[..., None], torch.nan)) | {"valid": valid}
    evaluator.update(pred, {"id": torch.arange(2), "camera": cameras, "x_img": x, "conf": conf})
    assert evaluator.compute().metrics["reprojection_percent"] < 1e-3
    nobody = people.reprojection_people(X[:, :0], torch.ones(2, 0), cameras, x, conf)
    assert (nobody.seen == 3).all() and not nobody.shown.any() and nobody.ospa() == pytest.approx(0.5)
    nobody = people.reprojection_people(X, torch.ones(2, 3), cameras, x[:, :, :0], conf[:, :, :0])
    assert not nobody.seen.any() and nobody.ospa() == pytest.approx(0.5)


def test_reprojection_is_measured_in_sizes_of_the_person():
    X, cameras, x, conf = crowd()
    found = torch.ones(2, 3, dtype=torch.bool)
    shift = 0.1 * (x.amax(-2) - x.amin(-2)).amax(-1)[..., None, None] * torch.tensor([0.6, 0.8])
    assert people.reprojection_people(X, found, cameras, x + shift, conf).ospa() == pytest.approx(0.1, rel=1e-4)


def test_pairs_are_taken_from_the_least_cost_on():
    cost = torch.tensor([[[1.0, 2.0], [1.5, 9.0]], [[torch.inf, 3.0], [torch.inf, 2.0]]])
    total, pairs, partner = people.greedy_pairs(cost)
    assert total.tolist() == [10.0, 2.0] and pairs.tolist() == [2, 1] and partner.tolist() == [[0, 1], [-1, 1]]
