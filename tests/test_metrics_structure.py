"""Pose Structure Score: recorded assignments, clusters made by hand and fitted, files, and how an evaluation finds them."""

import logging

import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.dataset.formats import synthetic
from lib.errors import ConfigError, DataError, GeometryError
from lib.metrics import PoseEvaluator, structure
from lib.metrics.structure import Clusters
from lib.skeleton import get
from lib.tasks import build
from lib.tasks import structure as tasks
from tests import tiny_dataset
from tests.conftest import golden

J = get("h36m17").num


def kinds(kind_count: int = 4, each: int = 30, noise: float = 5.0) -> torch.Tensor:
    """Poses scattered about a few that differ much, of other sizes and places.    -> (kinds * each, J, 3) mm, a kind after another"""
    typical = 300 * torch.randn(kind_count, 1, J, 3)
    poses = typical + noise * torch.randn(kind_count, each, J, 3)
    size, place = 0.5 + torch.rand(kind_count, each, 1, 1), 1000 * torch.randn(kind_count, each, 1, 3)
    return (size * poses + place).flatten(0, 1)


def by_hand() -> Clusters:
    """Two clusters: the right ankle far to the right, or far down, of the pelvis."""
    centers = torch.zeros(2, J, 3, dtype=torch.float64)
    centers[0, get("h36m17").index("r_ankle"), 0] = 1
    centers[1, get("h36m17").index("r_ankle"), 1] = 1
    return Clusters(centers, "h36m17")


def pose(x: float, y: float) -> torch.Tensor:
    X = torch.full((1, J, 3), 700.0)
    X[0, get("h36m17").index("r_ankle")] += torch.tensor([x, y, 0.0])
    return X


# --- the score


def test_recorded_assignments_and_score():
    z = golden("epipolarpose", "h36m_evaluate")
    clusters = Clusters(torch.from_numpy(z["pss_centers"]).unflatten(1, (-1, 3)), "mpii16")
    pred, gt = torch.from_numpy(z["pss_pred"]), torch.from_numpy(z["pss_gt"])
    assert structure.assign(pred, clusters).tolist() == z["pss_assign_pred"].tolist()
    assert structure.assign(gt, clusters).tolist() == z["pss_assign_gt"].tolist()
    assert structure.pss(pred, gt, clusters).mean().item() == float(z["pss_value"])
    evaluator = PoseEvaluator("mpii16", structure=[clusters])
    batch = {"X_cam": gt, "X_valid": torch.ones(gt.shape[:2]), "id": torch.arange(len(gt))}
    evaluator.update({"X_cam": pred}, batch)
    assert evaluator.compute().metrics["pss50_percent"] == pytest.approx(100 * float(z["pss_value"]))


def test_size_and_place_do_not_count_but_turning_does():
    right, also_right, down = pose(400, 10), 3 * pose(100, 30) + 50, pose(10, 400)
    assert structure.pss(also_right, right, by_hand()).tolist() == [1.0]
    assert structure.pss(down, right, by_hand()).tolist() == [0.0]  # the same pose, turned by a quarter
    truth = torch.cat([right, right, down])
    valid = torch.ones(3, J, dtype=torch.bool)
    valid[2, 5] = False
    truth[2, 5] = torch.nan
    values = structure.pss(torch.cat([right, down, down]), truth, by_hand(), valid)
    assert values[:2].tolist() == [1.0, 0.0] and values[2].isnan()
    collapsed = torch.zeros(1, J, 3)
    assert structure.assign(collapsed, by_hand()).shape == (1,)  # without extent there is no direction: any cluster will do


def test_wrong_shapes_are_named():
    with pytest.raises(GeometryError, match=r"\(1, 16, 3\).*\(N, 17, 3\)"):
        structure.assign(torch.zeros(1, 16, 3), by_hand())
    with pytest.raises(GeometryError, match=r"gt \(3, 17, 3\)"):
        structure.pss(torch.zeros(1, J, 3), torch.zeros(3, J, 3), by_hand())
    with pytest.raises(ConfigError, match="clusters are of skeleton h36m17, the poses of mpii16"):
        PoseEvaluator("mpii16", structure=[by_hand()])


# --- fitting


def test_kinds_of_poses_are_found():
    X = kinds()
    clusters = structure.fit(X, "h36m17", 4)
    labels = structure.assign(X, clusters).view(4, -1)
    assert (labels == labels[:, :1]).all() and len(set(labels[:, 0].tolist())) == 4
    assert (clusters.poses, clusters.seed, clusters.metric) == (120, 0, "pss4_percent")


def test_fit_is_repeatable_and_no_worse_than_scipy():
    from scipy.cluster.vq import kmeans2

    X = kinds(12, 20, noise=250.0)
    points = structure.normalise(X, 0)

    def inertia(clusters: Clusters) -> float:
        return (points - clusters.centers.flatten(1)[structure.assign(X, clusters)]).square().sum().item()

    first = structure.fit(X, "h36m17", 10)
    assert torch.equal(first.centers, structure.fit(X, "h36m17", 10).centers)
    assert not torch.equal(first.centers, structure.fit(X, "h36m17", 10, seed=1).centers)
    labels = structure.assign(X, first)  # converged: each center is the mean of its poses
    for k in range(10):
        torch.testing.assert_close(first.centers[k].flatten(), points[labels == k].mean(0))
    theirs = []
    for seed in range(5):
        centers, label = kmeans2(points.numpy(), 10, iter=50, minit="++", seed=seed)
        theirs.append(((points.numpy() - centers[label]) ** 2).sum())
    assert inertia(first) <= np.median(theirs)
    assert inertia(first) < 0.7 * (points - points.mean(0)).square().sum()


def test_copies_of_one_pose_still_make_clusters():
    X = pose(400, 10).repeat(8, 1, 1)
    clusters = structure.fit(X, "h36m17", 5, n_init=2)
    assert clusters.centers.isfinite().all() and structure.pss(X, X, clusters).eq(1).all()


def test_what_cannot_be_fitted():
    with pytest.raises(DataError, match="3 poses cannot make 50 clusters"):
        structure.fit(kinds(3, 1), "h36m17")
    broken = kinds()
    broken[3, 2] = torch.nan
    with pytest.raises(DataError, match="1 of 120 poses"):
        structure.fit(broken, "h36m17", 4)
    with pytest.raises(ConfigError, match="0 clusters"):
        structure.fit(kinds(), "h36m17", 0)
    with pytest.raises(GeometryError, match="mpii16"):
        structure.fit(kinds(), "mpii16", 4)


# --- files


def test_files_come_back_and_are_never_replaced(tmp_path):
    path = tmp_path / "pss.npz"
    clusters = structure.fit(kinds(), "h36m17", 4, seed=3, n_init=2, source="train", step=5)
    structure.save(path, clusters)
    again = structure.load(path, "h36m17")
    assert torch.equal(again.centers, clusters.centers) and again.describe() == clusters.describe()
    assert again.describe() == {
        "clusters": 4, "root": "pelvis", "frame": "camera", "skeleton": "h36m17", "source": "train", "step": 5, "poses": 120,
        "seed": 3, "n_init": 2,
    }  # fmt: skip
    with pytest.raises(DataError, match="is there already"):
        structure.save(path, clusters)
    with pytest.raises(DataError, match="cannot be written"):
        structure.save(tmp_path / "absent" / "pss.npz", clusters)
    assert [p.name for p in tmp_path.iterdir()] == ["pss.npz"]


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "pss.npz"
    with pytest.raises(DataError, match="no such file; make it with scripts/prepare.py pss"):
        structure.load(path)
    structure.save(path, by_hand())
    with pytest.raises(DataError, match="skeleton h36m17 .*expected mpii16"):
        structure.load(path, "mpii16")
    with np.load(path) as file:
        arrays = dict(file)
    for changed, words in (
        ({"version": np.array(9)}, "version 9, expected 1"),
        ({"centers": arrays["centers"][:, :5]}, r"\(2, 5, 3\)"),
        ({"joints": arrays["joints"][::-1]}, "skeleton h36m17"),
        ({"extra": np.zeros(1)}, "extra"),
    ):
        np.savez(path, **(arrays | changed))
        with pytest.raises(DataError, match=words):
            structure.load(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="not a readable file of pose clusters"):
        structure.load(path)
    np.savez(path, version=np.array(1), objects=np.array([object()]))  # would be unpickled
    with pytest.raises(DataError, match="not a readable file"):
        structure.load(path)


# --- beside the data


def test_complete_poses_are_in_camera_frames_and_thinned_by_instant():
    ann = tiny_dataset.make(frames=10)  # 20 instants, 4 views
    X, step = tasks.complete_poses(ann)
    expected = ann.cameras[torch.from_numpy(ann.camera).long()].to_cam(torch.from_numpy(ann.X_world[ann.pose]).double())
    assert step == 1
    torch.testing.assert_close(X, expected.float())
    few, step = tasks.complete_poses(ann, most=30)  # a third of the instants, each with all of its views
    assert step == 3 and len(few) == 7 * 4
    torch.testing.assert_close(few[:8], X[[0, 1, 2, 3, 12, 13, 14, 15]])
    gap = tiny_dataset.edited(ann, "X_valid", (2, 5), False)
    assert len(tasks.complete_poses(gap)[0]) == len(X) - 4
    assert len(tasks.complete_poses(tiny_dataset.edited(ann, "pose", slice(None), -1))[0]) == 0


def test_make_writes_what_there_are_poses_for(tmp_path, caplog):
    ann = tiny_dataset.make(frames=8)  # 64 poses
    with caplog.at_level(logging.INFO, "parallax"):
        assert [p.name for p in tasks.make(ann, tmp_path, "train")] == ["pss-h36m17-50.npz"]
    assert "PSS@100: left out, train has only 64 poses" in caplog.text
    assert structure.load(tmp_path / "pss-h36m17-50.npz").source == "train"
    assert tasks.make(ann, tmp_path, "train") == []  # what is there stays
    with pytest.raises(DataError, match="no 3D pose"):
        tasks.make(tiny_dataset.edited(ann, "pose", slice(None), -1), tmp_path, "train")


def test_the_embedded_world_makes_its_own_and_other_data_take_what_is_there(tmp_path):
    ann = tiny_dataset.make(frames=8)
    synthetic.write(ann, tmp_path / "world", "train")
    cfg = defaults().with_values(tiny_dataset.NETWORK | {"DATASET.ROOT": str(tmp_path / "world"), "DATASET.SUBJECTS": ["S2"]})
    assert tasks.clusters(cfg.with_values({"TEST.PSS": "off"}), "h36m17") == ()
    assert not list((tmp_path / "world").glob("pss*"))
    clusters = tasks.clusters(cfg, "h36m17")
    assert [(len(c.centers), c.poses, c.source) for c in clusters] == [(50, 64, "train")]  # of all subjects
    other = cfg.with_values({"DATASET.DATASET": "h36m"})
    assert torch.equal(tasks.clusters(other, "h36m17")[0].centers, clusters[0].centers)
    assert tasks.clusters(other.with_values({"DATASET.ROOT": str(tmp_path)}), "h36m17") == ()


def test_the_score_is_in_the_report_of_a_task(tmp_path):
    ann = tiny_dataset.make(frames=8)
    tasks.make(ann, tmp_path, "train")
    task = build(defaults().with_values(tiny_dataset.NETWORK | {"DATASET.ROOT": str(tmp_path), "TEST.VARIANTS": ["standard", "reference"]}))
    evaluator = task.evaluator(task.crops(ann, train=False))
    X, _ = tasks.complete_poses(ann)
    evaluator.update({"X_cam": X}, {"X_cam": X, "X_valid": torch.ones(X.shape[:2]), "id": torch.arange(len(X))})
    report = evaluator.compute()
    assert report.metrics["pss50_percent"] == 100 and "pss100_percent" not in report.metrics
    assert report.metrics["pa_mpjpe_rooted_mm"] < 1e-3
    (described,) = report.protocol["pose_structure"]
    assert (described["clusters"], described["source"], described["seed"]) == (50, "train", 0)
    assert report.protocol["root_depth"] == "of the ground truth" and report.protocol["root"] == "pelvis"
    assert list(report.protocol["alignment"]) == ["mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm"]
