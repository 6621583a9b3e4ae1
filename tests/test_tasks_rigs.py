"""Training without known extrinsics: labels close to the truth up to scale, and nothing of the annotated R and t in them."""

import dataclasses
import logging

import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.errors import ConfigError, DataError, GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.rig_recovery import rig_errors
from lib.skeleton import SKELETONS, get
from lib.tasks import build
from lib.tasks import data as task_data
from lib.tasks.baselines import label_report
from lib.tasks.labels import Rule, make_labels
from lib.tasks.rigs import ADULT, Scale, adult_bones, adult_pose, log_rigs, recover_rigs
from tests import tiny_dataset
from tests.scene import rotations

RULE = Rule("reweighted")


@pytest.fixture
def table():
    """Two subjects in two rooms, which have a rig of four cameras each."""
    ann = tiny_dataset.make(frames=4)
    other = Cameras.make(ann.cameras.K, ann.cameras.R, 1.2 * ann.cameras.t + 40, dist=ann.cameras.dist, size=ann.cameras.size)
    second = ann.sequence == 1
    cameras = Cameras.cat([ann.cameras, other])
    x = cameras[4 + torch.from_numpy(ann.view[second]).long()].project(torch.from_numpy(ann.X_world[ann.pose[second]]).double())[0]
    ann = tiny_dataset.edited(ann, "x_img", second, x.numpy())
    return tiny_dataset.replace(tiny_dataset.edited(ann, "camera", second, 4 + ann.view[second]), cameras=cameras)


def spoiled(ann):
    """Other extrinsics and other 3D joints behind the same images."""
    order = torch.randperm(len(ann.cameras))
    cameras = dataclasses.replace(ann.cameras, R=ann.cameras.R[order] @ rotations(1)[0], t=3 * ann.cameras.t[order] - 100)
    return tiny_dataset.replace(ann, cameras=cameras, X_world=ann.X_world + 300)


def test_each_rig_is_recovered_on_its_own(table, caplog):
    caplog.set_level(logging.INFO, logger="parallax")
    cameras, rigs = recover_rigs(table, table.x_img, table.conf, Scale())
    assert [sorted(n.split()[2:3]) for n in rigs] == [["S1"], ["S2"]]
    for rows in (slice(0, 4), slice(4, 8)):
        errors = rig_errors(cameras[rows], table.cameras[rows])
        assert errors.rotation_deg.max() < 0.01 and errors.direction_deg.max() < 0.01  # x_img is float32
        torch.testing.assert_close(cameras.R[rows][0], torch.eye(3, dtype=torch.float64))
    found = log_rigs(cameras, table)
    assert set(found) == {f"{s} view {v}" for s in ("S1", "S2") for v in (1, 2, 3)}
    assert all(v["rotation_deg"] < 0.01 and v["direction_deg"] < 0.01 for v in found.values())
    assert "S2 view 3" in caplog.text
    caplog.clear()
    unknown = tiny_dataset.replace(table, cameras=dataclasses.replace(table.cameras, t=0 * table.cameras.t))
    assert log_rigs(cameras, unknown) == {} and "rigs recovered" not in caplog.text


def test_labels_without_extrinsics_are_the_truth_up_to_scale(table):
    cameras, _ = recover_rigs(table, table.x_img, table.conf, Scale())
    labels = make_labels(tiny_dataset.replace(table, cameras=cameras), table.x_img, table.conf, RULE)
    report = label_report(table, labels, cameras)
    assert report.metrics["n_mpjpe_mm"] < 0.1 and report.metrics["pa_mpjpe_mm"] < 0.1 and report.metrics["labels_kept_percent"] == 100
    bones, adult = adult_bones(table.skeleton)
    for sequence in (0, 1):  # as large as an adult, whatever they were
        X = labels.X_world[np.unique(labels.pose[table.sequence == sequence])]
        assert np.median(np.linalg.norm(X[:, bones[:, 0]] - X[:, bones[:, 1]], axis=-1), 0).sum() == pytest.approx(adult, rel=1e-4)


def test_scales_of_a_rig(table):
    apart = float((table.cameras.center[1] - table.cameras.center[0]).norm())
    cameras, _ = recover_rigs(table, table.x_img, table.conf, Scale("baseline", baseline_mm=apart))
    labels = make_labels(tiny_dataset.replace(table, cameras=cameras), table.x_img, table.conf, RULE)
    X = table.cameras[:4].to_cam(torch.from_numpy(table.X_world[:4, None]).double())
    torch.testing.assert_close(cameras[:4].to_cam(torch.from_numpy(labels.X_world[:4, None]).double()), X, atol=0.2, rtol=0)
    cameras, _ = recover_rigs(table, table.x_img, table.conf, Scale("body", body_mm=100.0))
    small = make_labels(tiny_dataset.replace(table, cameras=cameras), table.x_img, table.conf, RULE)
    assert np.abs(small.X_world - small.X_world[:, :1]).max() < 30
    cameras, _ = recover_rigs(table, table.x_img, table.conf, Scale("none", box_mm=1000.0))
    boxed = make_labels(tiny_dataset.replace(table, cameras=cameras), table.x_img, table.conf, RULE)
    moved = tiny_dataset.replace(table, cameras=cameras)
    depth = moved.observing().to_cam(torch.from_numpy(boxed.X_world[boxed.pose]).double())[:, 0, 2].numpy()
    width = np.sqrt((table.box[:, 2:] - table.box[:, :2]).prod(1)) * depth / 180
    for sequence in (0, 1):
        assert np.median(width[table.sequence == sequence]) == pytest.approx(1000, rel=1e-3)


def test_cameras_that_move_and_rigs_that_fail_are_named(table):
    moving = tiny_dataset.edited(table, "camera", 0, 5)
    with pytest.raises(GeometryError, match=r"view 0 of sequence 0 \(S1\) has several calibrations.*set EPIPOLAR.EXTRINSICS known"):
        recover_rigs(moving, table.x_img, table.conf, Scale())
    blind = np.where((table.camera == 6)[:, None], 0, table.conf)
    with pytest.raises(GeometryError, match=r"rig of S2 \(cameras 4, 5, 6, 7\): camera 2 cannot be joined"):
        recover_rigs(table, table.x_img, blind, Scale())


def test_an_adult_has_the_length_of_human36m():
    """Integral Pose's tree of 18 joints, the last of them the middle of the shoulders; its mean over Human3.6M is 4502.9 mm."""
    X = adult_pose()
    X = np.concatenate([X, X[[11, 14]].mean(0, keepdims=True)])
    parents = np.array([0, 0, 1, 2, 0, 4, 5, 0, 17, 17, 8, 17, 11, 12, 17, 14, 15, 0])
    assert np.linalg.norm(X - X[parents], axis=1).sum() == pytest.approx(4502.9, abs=2)
    assert adult_bones("h36m17")[1] == pytest.approx(4150, abs=2)
    assert set(get("h36m17").joints) >= set(ADULT)
    for name in set(SKELETONS) - {"humaneva20"}:
        bones, length = adult_bones(name)
        assert len(bones) >= 10 and 3000 < length < 4700, name


def test_a_skeleton_of_unknown_lengths_needs_its_sum(table):
    ends = table.to_skeleton("humaneva20")
    with pytest.raises(GeometryError, match="of skeleton humaneva20 only 2 bones have a known length, expected 8; set EPIPOLAR.BODY_MM"):
        recover_rigs(ends, ends.x_img, ends.conf, Scale())


# --- the task


@pytest.fixture
def task_of(table, tmp_path, monkeypatch):
    tiny_dataset.write_images(table, tmp_path)
    shown = {"ann": table}
    monkeypatch.setattr(task_data, "annotations", lambda cfg, split, step=1, subjects=(): shown["ann"])

    def make(ann=table, root="a", **changes):
        shown["ann"] = ann
        folder = tmp_path / root
        folder.mkdir(exist_ok=True)
        for image in tmp_path.glob("*.png"):
            (folder / image.name).write_bytes(image.read_bytes())
        settings = {"DATASET.ROOT": str(folder), "TASK": "epipolar", "EPIPOLAR.TEACHER": "annotation", "EPIPOLAR.EXTRINSICS": "estimated"}
        return build(defaults().with_values(tiny_dataset.NETWORK | settings | changes))

    make.folder = tmp_path
    return make


def test_no_known_extrinsics_in_cached_labels(table, task_of):
    """Shuffled cameras and moved 3D joints change no field that the student learns from."""
    settings = {"EPIPOLAR.PAIRS": "neighbours"}  # which is decided by where cameras stand
    honest = task_of(root="a", **settings).train_data()["train"].ann
    blind = task_of(spoiled(table), root="b", **settings).train_data()["train"].ann
    for field in ("X_world", "X_valid", "x_img", "conf", "visible", "box", "pose"):
        np.testing.assert_array_equal(getattr(honest, field), getattr(blind, field))
    for field in ("K", "R", "t", "dist"):
        assert torch.equal(getattr(honest.cameras, field), getattr(blind.cameras, field))
    np.testing.assert_allclose(honest.x_img, table.x_img, atol=0.02)


def test_no_known_extrinsics_in_online_labels(table, task_of):
    batches = []
    for root, ann in (("a", table), ("b", spoiled(table))):
        task = task_of(ann, root=root, **{"EPIPOLAR.LABELS": "online", "EPIPOLAR.PAIRS": "neighbours"})
        batch = task.train_data()["train"].__getitems__([(i, 0) for i in range(4)])
        assert not batch["X_valid"].any() and not batch["X_world"].any()
        batches.append(task.online_labels(batch))
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a, b)
    assert batches[0][1].all() and batches[0][2] < 0.01


def test_rigs_are_recovered_once_per_teacher_and_options(task_of):
    def files(pattern):
        return sorted((task_of.folder / "a" / "train").glob(pattern))

    task_of().train_data()
    stamps = [f.stat().st_mtime_ns for f in files("*.npz")]
    assert len(stamps) == 2
    again = task_of()
    again.train_data()
    assert [f.stat().st_mtime_ns for f in files("*.npz")] == stamps and again.predicted is None
    (rigs,) = files("rigs-*")
    task_of(**{"EPIPOLAR.EXTRINSICS": "known"}).train_data()
    assert len(files("rigs-*")) == 1 and len(files("labels-*")) == 2
    task_of(**{"EPIPOLAR.SCALE": "baseline", "EPIPOLAR.BASELINE_MM": 3000.0}).train_data()
    assert len(files("rigs-*")) == 2 and len(files("labels-*")) == 3
    task_of(**{"EPIPOLAR.RIG_METHOD": "magsac"}).train_data()
    assert len(files("rigs-*")) == 3
    with pytest.raises(GeometryError, match="px, expected at most 1e-07"):
        task_of(**{"EPIPOLAR.RIG_LIMIT_PX": 1e-7}).train_data()
    rigs.write_bytes(rigs.read_bytes()[:100])
    with pytest.raises(DataError, match="rigs-.*not a readable label file.*delete it, and it is made again"):
        task_of().train_data()


def test_errors_of_the_rigs_are_facts_of_the_results(task_of):
    task = task_of()
    assert task.facts() == {}
    task.train_data()
    errors = task.facts()["rig_errors"]
    assert set(errors) == {f"{s} view {v}" for s in ("S1", "S2") for v in (1, 2, 3)} and errors["S2 view 3"]["rotation_deg"] < 0.01
    judged = task_of()  # as scripts/valid.py has it, which reads no training data
    judged.load_extra_state(task.extra_state())
    judged.load_extra_state({})
    assert judged.facts() == task.facts()
    known = task_of(**{"EPIPOLAR.EXTRINSICS": "known"})
    known.train_data()
    assert known.facts() == {} and known.extra_state() == {}


def test_a_baseline_must_be_given(task_of):
    with pytest.raises(ConfigError, match="EPIPOLAR.BASELINE_MM: is 0, but SCALE baseline needs the distance of the first two cameras"):
        task_of(**{"EPIPOLAR.SCALE": "baseline"})
