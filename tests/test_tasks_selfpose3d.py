"""Several people without 3D labels: what each stage learns, from what, and how it is judged."""

import dataclasses

import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.dataset.annotations import unmatched
from lib.dataset.formats import pseudo_labels
from lib.engine import commands, run_dir
from lib.errors import ConfigError, DataError
from lib.geometry.crop import transform_points
from lib.geometry.voxel_targets import draw_roots
from lib.models.voxelpose import Proposals
from lib.tasks import Step, build, data
from lib.tasks.restore import restore
from lib.tasks.selfpose3d import SelfPose3dTask
from tests.engine_runs import calls_of
from tests.test_tasks_voxelpose import SMALL

STAGES = {
    "backbone": {"SSL.STAGE": "backbone"},
    "root": {"SSL.STAGE": "root", "SSL.COLORS": 0, "SSL.CUTS": [0, 0]},
    "pose": {"SSL.STAGE": "pose", "SSL.L1_EPOCH": 1},
    "finetune": {"SSL.STAGE": "finetune", "SSL.L1_EPOCH": 0, "SSL.TRAIN_BACKBONE": False},
}
LEARNS = {"backbone": {"backbone"}, "root": {"root_net"}, "pose": {"backbone", "attn", "pose_net"}, "finetune": {"attn", "pose_net"}}
LOSSES = {
    "backbone": {"heatmaps"}, "root": {"drawn_roots", "consistency"}, "pose": {"heatmaps", "projected", "attention"},
    "finetune": {"projected", "attention", "joints"},
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    own = {
        "TASK": "selfpose3d", "VOXEL.ROOT_HEATMAP": True, "VOXEL.THRESHOLD": 0.0, "DATASET.ROT_FACTOR": 20.0, "DATASET.SCALE_FACTOR": 0.2,
        "VOXEL.CUBES": [8, 8, 4], "VOXEL.PERSON_CUBES": [8, 8, 8], "VOXEL.MAX_PEOPLE": 3,
        "DATASET.ROOT": str(folder / "world"), "OUTPUT_DIR": str(folder / "output"),
    }  # fmt: skip
    return SMALL | own


def task_of(settings, stage, **changes) -> SelfPose3dTask:
    torch.manual_seed(0)
    return build(defaults().with_values(settings | STAGES[stage] | changes))


def batch_of(task, count=2) -> dict:
    return task.train_data()["train"].__getitems__([(i, 0) for i in range(count)])


def losses_of(task, batch, epoch=0) -> dict:
    torch.manual_seed(1)  # places are drawn
    return task({"train": batch}, Step(0, epoch, 0.0))


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_trains_its_parts_and_no_others(settings, stage):
    task = task_of(settings, stage).train()
    losses = losses_of(task, batch_of(task))
    losses["total"].backward()
    learning = {name.split(".")[0] for name, p in task.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == LEARNS[stage]
    assert set(losses) == LOSSES[stage] | {"total"} and all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("stage", STAGES)
def test_no_3d_label_is_read_and_no_label_is_changed(settings, stage):
    task = task_of(settings, stage).eval()  # so that a second pass gives the same
    batch = batch_of(task, 1)
    assert not batch["X_valid"].any() and not batch["n_people"].any()
    kept = {name: batch[name].clone() for name in ("x_img", "conf", "patch_from_img")}
    losses = losses_of(task, batch, 9)
    garbage = {"X_world": 1e3 * torch.randn_like(batch["X_world"]), "X_valid": ~batch["X_valid"], "n_people": batch["n_people"] + 2}
    again = losses_of(task, batch | garbage, 9)
    assert all(torch.equal(losses[name], again[name]) for name in losses)
    assert all(torch.equal(batch[name], value) for name, value in kept.items())


def test_garbage_in_the_3d_annotations_changes_no_label(settings, monkeypatch):
    task = task_of(settings, "pose")
    before = task.labels()
    read = data.annotations

    def spoiled(*args):
        ann = read(*args)
        assert len(ann.X_world)
        return dataclasses.replace(ann, X_world=np.full_like(ann.X_world, 123.0))

    monkeypatch.setattr(data, "annotations", spoiled)
    after = task.labels()
    assert len(after.X_world) == 0 and len(np.unique(after.person)) == len(after) and (after.pose == -1).all()
    assert np.array_equal(before.x_img, after.x_img) and np.array_equal(before.conf, after.conf)


def test_pseudo_labels_are_read_from_their_file(settings):
    own = task_of(settings, "pose").labels()
    pseudo_labels.write(own, settings["DATASET.ROOT"], "group_train_pseudo", form="pickle")
    task = task_of(settings, "pose", **{"SSL.LABELS": "group_train_pseudo"})
    labels = task.labels()
    assert len(labels.X_world) == 0 and len(labels) == len(own)
    one, other = batch_of(task, 1), batch_of(task_of(settings, "pose"), 1)
    people = [b["conf"].gt(0).any(-1).sum(-1) for b in (one, other)]
    assert torch.equal(*people) and (people[0] > 0).all()
    assert torch.equal(one["image"], other["image"])
    with pytest.raises(DataError, match="group_train_lost"):
        task_of(settings, "pose", **{"SSL.LABELS": "group_train_lost"}).labels()


def test_joints_are_compared_from_their_epoch_on(settings):
    task = task_of(settings, "pose").eval()
    batch = batch_of(task, 1)
    assert "joints" not in losses_of(task, batch, 0)
    losses = losses_of(task, batch, 1)
    expected = losses["heatmaps"] + losses["projected"] + 0.1 * losses["attention"] + 0.01 * losses["joints"]
    assert losses["joints"] > 0
    torch.testing.assert_close(losses["total"], expected)


def test_a_step_without_anybody_changes_nothing(settings):
    task = task_of(settings, "finetune", **{"VOXEL.THRESHOLD": 1.0}).train()
    losses = losses_of(task, batch_of(task))
    losses["total"].backward()
    assert losses["total"] == 0
    assert not any(p.grad is not None and p.grad.any() for p in task.parameters())


def test_true_poses_fit_the_labels_of_every_augmentation(settings):
    """People at their true places: projected, they lie on the 2D labels, mirrored, turned and zoomed as these are."""
    changes = {"VOXEL.HEATMAPS": "keypoints", "DATASET.FLIP": True, "DATASET.FLIP_PROB": 0.5, "SSL.L1_EPOCH": 0, "VOXEL.RULE": "exact"}
    task = task_of(settings, "pose", **changes).train()
    batch = batch_of(task)
    true = task.frames(data.annotations(task.cfg, "train")).__getitems__(batch["id"].tolist())
    there = true["X_valid"].any(-1)

    class Told(torch.nn.Module):
        def __init__(self, X):
            super().__init__()
            self.X, self.scale = X, torch.nn.Parameter(torch.ones(()))

        def forward(self, hm, cams, hm_from_img, centers, sample):
            return self.scale * self.X.repeat(2, 1, 1, 1)[there.repeat(2, 1)]

    class Places(torch.nn.Module):
        def forward(self, hm, cams, hm_from_img):
            return Proposals(true["X_world"].mean(2), there.float(), there, there)

    task.model.pose_net, task.model.root_net = Told(true["X_world"]), Places()
    exact = losses_of(task, batch)
    task.model.pose_net = Told(true["X_world"] + 150)
    off = losses_of(task, batch)
    assert exact["joints"] < 2e-3 and off["joints"] > 5 * exact["joints"]
    assert off["projected"] > 3 * exact["projected"]


def test_places_are_drawn_within_what_is_asked(settings, monkeypatch):
    drawn = []

    def kept(*args, **kwargs):
        drawn.append(draw_roots(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr("lib.tasks.selfpose3d.draw_roots", kept)
    own = {"VOXEL.HEATMAPS": "keypoints", "SSL.DRAWN_WITHIN": [5000, 0, 0, -5000, 900, -1000]}  # of 5120 x 5120 x 2000 around 0, 0, 900
    task = task_of(settings, "root", **own)
    losses_of(task, batch_of(task))
    x = drawn[0][0][drawn[0][1]]
    assert (x[:, 0] >= 2440).all() and (x[:, 1] <= -2440).all() and (abs(x[:, 2] - 850) < 400).all()
    task = task_of(settings, "root", **own | {"SSL.DRAWN_WITHIN": []})
    losses_of(task, batch_of(task))
    assert (drawn[1][0][drawn[1][1]][:, 0] < 2440).all()  # the published shares


def test_how_many_views_must_keep_everybody_is_asked(settings):
    for views in (0, 1, 3):
        assert task_of(settings, "pose", **{"SSL.FULL_VIEWS": views}).train_data()["train"].keep_people == views


@pytest.mark.parametrize("stage", ["backbone", "pose"])
def test_the_report_says_what_it_is_judged_by(settings, stage):
    task = task_of(settings, stage)
    samples = task.eval_data()["valid"]
    assert task.evaluator(samples).protocol["judged_by"] == "the 2D side of its 3D truth in valid"
    pseudo_labels.write(unmatched(data.annotations(task.cfg, "valid")), settings["DATASET.ROOT"], f"group_valid_{stage}")
    task = task_of(settings, stage, **{"SSL.VALID_LABELS": f"group_valid_{stage}"})
    assert task.evaluator(task.eval_data()["valid"]).protocol["judged_by"] == f"group_valid_{stage}"


def test_under_the_published_rule_absent_people_are_matched_with_nobody(settings, monkeypatch):
    """Slots of nobody cost nothing, so a person who met one there would be right wherever he stands."""
    changes = {"VOXEL.HEATMAPS": "keypoints", "SSL.L1_EPOCH": 0, "VOXEL.RULE": "reference", "SSL.DROP_WORST": False, "VOXEL.MAX_PEOPLE": 8}
    task = task_of(settings, "pose", **changes).train()
    batch = batch_of(task, 1)
    batch["x_img"][:, :, 0], batch["conf"][:, :, 0] = torch.tensor([40.0, 20]), 1.0  # one person, and seven slots of nobody
    batch["x_img"][:, :, 1:], batch["conf"][:, :, 1:] = 0.0, 0.0
    height, found = batch["patch_from_img"].new_tensor(6.0), torch.arange(8)[None] < 1

    def off(X, known, cameras, new_from_img, rule):  # the person, six pixels lower than labelled
        there = known.bool()[:, None].expand(-1, 5, -1, 15)
        x = transform_points(new_from_img, torch.tensor([40.0, 20]).expand(1, 5, 1, 2)) + torch.stack([0 * height, height])
        return x[:, :, :, None].expand(*there.shape, 2), there

    monkeypatch.setattr("lib.tasks.selfpose3d.people_in_views", off)
    monkeypatch.setattr(task, "locate", lambda *args: Proposals(torch.zeros(1, 8, 3), found.float(), found, found))
    monkeypatch.setattr(task.model, "pose", lambda *args: torch.zeros(2, 8, 15, 3, requires_grad=True))
    losses = losses_of(task, batch)
    torch.testing.assert_close(losses["joints"], 2 * 0.5 * height / task.image_spec.size[1])  # two augmentations; x is right


def test_places_are_learned_from_drawn_ones_for_several_samples_at_once(settings):
    small = {"VOXEL.HEATMAPS": "keypoints", "VOXEL.SPACE_SIZE": [3500, 3500, 2000], "VOXEL.ROOT_SIGMA_MM": 400.0, "VOXEL.MAX_PEOPLE": 2}
    task = task_of(settings, "root", **small).train()
    batch = batch_of(task)
    assert "image" not in batch and batch["patch_from_img"].shape[:2] == (2, 3)
    optimizer = torch.optim.Adam(task.param_groups(), 3e-3)
    with torch.no_grad():
        before = losses_of(task, batch)["drawn_roots"].item()  # of places that training does not see
    torch.manual_seed(0)
    for step in range(12):
        optimizer.zero_grad()
        task({"train": batch}, Step(step, 0, 0.0))["total"].backward()
        optimizer.step()
    with torch.no_grad():
        after = losses_of(task, batch)["drawn_roots"].item()
    assert after < 0.6 * before


@pytest.mark.parametrize("stage", ["backbone", "root", "pose"])
def test_a_run_is_judged_without_3d_truth_and_its_checkpoint_restored(settings, stage):
    cfg = defaults().with_values(settings | STAGES[stage] | {"EXP_NAME": stage})
    results = commands.train(cfg)
    expected = "peak_recall_percent" if stage == "backbone" else "reprojection_percent"
    assert expected in results["metrics"]
    if stage != "backbone":
        assert "root_map_percent" in results["metrics"]  # there is a truth in this world, so it is reported
    task = restore(run_dir.run_path(cfg) / run_dir.LAST)
    assert (task.model.attn is not None) == (stage == "pose")
    batch = task.eval_data()["valid"].__getitems__([0, 1])
    with torch.no_grad():
        pred = task.predict(batch)
    if stage == "root":
        assert pred["valid"].sum(-1).max() <= 1
        torch.testing.assert_close(pred["X_world"][:, :, 3], pred["centers"])
    if stage != "backbone":
        only_2d = {name: value for name, value in batch.items() if not name.startswith("X_")}
        evaluator = task.evaluator(task.eval_data()["valid"])
        evaluator.update(pred, only_2d)
        assert task.key_metric == ("reprojection_percent", "min") and set(evaluator.compute().metrics) >= {"reprojection_percent"}


def test_places_from_all_joints_cannot_be_drawn(settings):
    with pytest.raises(ConfigError, match="VOXEL.ROOT_HEATMAP: is false"):
        task_of(settings, "root", **{"VOXEL.ROOT_HEATMAP": False})
    with pytest.raises(ConfigError, match="SSL.STAGE: trains the backbone"):
        task_of(settings, "backbone", **{"VOXEL.HEATMAPS": "keypoints"})


@pytest.mark.parametrize("stage", STAGES)
def test_the_networks_that_learn_are_called_as_compile_needs_it(settings, stage):
    task = task_of(settings, stage)
    with calls_of(task.called()) as called:
        losses_of(task, batch_of(task), epoch=1)
    parts = {name.split(".")[0] for name, module in task.model.named_modules() if any(module is one for one in called)}
    assert parts >= LEARNS[stage]


def test_overfit_judges_by_the_labels_that_are_learned(settings, tmp_path):
    """Nothing is painted over, and labels of the judged split are not asked for pictures of the other."""
    for split in ("train", "valid"):
        pseudo_labels.write(unmatched(data.annotations(task_of(settings, "pose").cfg, split)), settings["DATASET.ROOT"], f"labels_{split}")
    files = {"SSL.LABELS": "labels_train", "SSL.VALID_LABELS": "labels_valid", "OUTPUT_DIR": str(tmp_path / "out"), "SSL.COLORS": 2}
    cfg = defaults().with_values(settings | STAGES["pose"] | files)
    results = commands.train(cfg, overfit=True)
    assert results["protocol"]["judged_by"] == "labels_train" and not (tmp_path / "out").exists()
    changed = SelfPose3dTask.overfit(cfg)
    assert changed["SSL.COLORS"] == 0 and changed["SSL.CUTS"] == [0, 0]
