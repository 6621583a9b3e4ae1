"""Shelf and Campus from detections: learned on made-up scenes, judged by PCP, with and without a network."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.config import defaults
from lib.dataset.formats import actors, campus, shelf
from lib.engine import commands, run_dir
from lib.errors import ConfigError, DataError
from lib.synthetic.world import World
from lib.tasks import Step, association, build
from lib.tasks.restore import restore
from lib.tasks.scenes import ScenesTask
from scripts import prepare

FORMATS = {"shelf": shelf, "campus": campus}
BOTH = pytest.mark.parametrize("name", list(FORMATS))
SMALL = {
    "TASK": "scenes", "MODEL.NAME": "voxelpose", "MODEL.NUM_JOINTS": 17, "MODEL.IMAGE_SIZE": [96, 64], "DATASET.SKELETON": "coco17",
    "DATASET.TRAIN_SET": actors.POSES, "DATASET.TEST_SET": "valid", "LOSS.SIGMA": 1.5,
    "VOXEL.HEATMAPS": "keypoints", "VOXEL.SCENES": 4, "VOXEL.ROOT_JOINTS": ["l_hip", "r_hip"], "VOXEL.THRESHOLD": 0.1,
    "VOXEL.SPACE_SIZE": [5120, 5120, 2000], "VOXEL.SPACE_CENTER": [0, 0, 900], "VOXEL.CUBES": [20, 20, 8],
    "VOXEL.PERSON_CUBES": [16, 16, 16], "VOXEL.MAX_PEOPLE": 4, "TRAIN.BATCH_SIZE": 2, "TRAIN.MAX_STEPS": 1, "TEST.BATCH_SIZE": 4,
    "WORKERS": 0,
}  # fmt: skip
LIMBS = 80.0  # percent of the parts that are no head and no torso: the embedded world has no ears, which the ends of the head are made of


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The embedded world as Shelf and as Campus, without pictures: two people before five cameras."""
    world = World(split="valid", frames=12, length=3, people=2, size=(240, 160), rig="panoptic5", distortion=False, objects=False)
    ann, roots = world.annotations().protocol(["S9"]), {}
    ann = dataclasses.replace(ann, visible=ann.conf > 0)  # nobody hides anything
    for name, layout in FORMATS.items():
        roots[name] = tmp_path_factory.mktemp(name)
        layout.write(ann, roots[name], "valid")
    return roots


def config(trees, name="shelf", **changes):
    root = str(trees[name])
    return defaults().with_values(SMALL | {"DATASET.DATASET": name, "DATASET.ROOT": root, "OUTPUT_DIR": root + "-output"} | changes)


def task_of(*args, **changes) -> ScenesTask:
    torch.manual_seed(0)
    return build(config(*args, **changes))


@BOTH
def test_a_run_is_judged_by_pcp_and_its_checkpoint_restored(trees, name):
    cfg = config(trees, name, **{"VOXEL.THRESHOLD": 0.0, "TEST.HEAD_RULE": "blended"})
    results = commands.train(cfg)
    assert results["step"] == 1 and 0 <= results["metrics"]["pcp_percent"] <= 100
    told = json.loads((run_dir.run_path(cfg) / "results.json").read_text())["protocol"]
    assert told["head_rule"] == "blended" and told["peaks"] == "scores"
    task = restore(run_dir.run_path(cfg) / run_dir.LAST)
    data = task.eval_data()["valid"]
    with torch.no_grad():
        pred = task.predict(data.__getitems__([0, 1]))
    kept = np.load(run_dir.run_path(cfg) / "predictions.npz")
    assert len(kept["ids"]) == len(data) and pred["X_world"].shape == (2, 4, 17, 3)
    assert np.allclose(kept["centers"][:2], pred["centers"].numpy(), atol=1e-2)


def test_a_scene_teaches_where_its_people_are(trees):
    """The root network learns a made-up scene by heart, and then finds its people."""
    own = {"VOXEL.SPACE_SIZE": [4480, 4480, 2000], "VOXEL.CUBES": [16, 16, 8], "VOXEL.ROOT_SIGMA_MM": 300.0}
    task = task_of(trees, **own | {"VOXEL.PARTS": ["root_net"]}).train()
    batch = task.train_data()["train"].__getitems__([2])
    optimizer = torch.optim.Adam(task.param_groups(), 1e-3)
    for step in range(25):
        optimizer.zero_grad()
        task({"train": batch}, Step(step, 0, 0.0))["total"].backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        pred = task.predict(batch)
    roots = batch["X_world"][0, : int(batch["n_people"][0]), task.roots].mean(1)
    distance = torch.cdist(roots, pred["centers"][0][pred["found"][0]]).amin(1)
    assert len(roots) and (distance < max(task.facts()["voxel_mm"])).all()


@BOTH
def test_true_people_have_all_limbs_right(trees, name):
    """Pose and truth come from different files, and meet at the number of the frame."""
    task = task_of(trees, name)
    data = task.eval_data()["valid"]
    with open(trees[name] / actors.POSES, "rb") as file:
        poses = torch.from_numpy(np.stack([person["pose"] for person in pickle.load(file)]))
    everybody = poses[None].expand(len(data), -1, -1, -1)
    pred = {"X_world": everybody, "score": torch.ones(everybody.shape[:2]), "found": torch.ones(everybody.shape[:2], dtype=torch.bool)}
    for evaluator, expected in ((task.evaluator(data), LIMBS), (task.evaluator(data), None)):
        moved = pred if expected else pred | {"X_world": everybody + 400}
        evaluator.update(moved, {"id": torch.arange(len(data))})
        value = evaluator.compute().metrics["pcp_percent"]
        assert value == pytest.approx(LIMBS) if expected else value < 20


def test_peaks_may_all_be_one(trees):
    sure, plain = (task_of(trees, "campus", **{"VOXEL.PEAKS": peaks}) for peaks in ("ones", "scores"))
    one, other = (task.eval_data()["valid"] for task in (sure, plain))
    assert set(np.unique(one.ann.conf)) <= {0.0, 1.0} and np.array_equal(one.ann.conf > 0, other.ann.conf > 0)
    x = {**other.__getitems__([0])}
    x["conf"] = 0.5 * x["conf"]
    assert plain.heatmaps(x)[0].amax() <= 0.5 + 1e-6 and sure.heatmaps(one.__getitems__([0]))[0].amax() > 0.5


def test_the_embedded_world_s_poses_serve_where_there_is_no_file(trees):
    task = task_of(trees, **{"DATASET.TRAIN_SET": "synthetic"})
    batch = task.train_data()["train"].__getitems__([0, 1])
    assert batch["X_valid"].any() and batch["conf"].any() and "image" not in batch
    losses = task.train()({"train": batch}, Step(0, 0, 0.0))
    assert torch.isfinite(losses["total"])
    with pytest.raises(DataError, match=r"none\.pkl: no such file; DATASET.TRAIN_SET .* or synthetic for poses of the embedded world"):
        task_of(trees, **{"DATASET.TRAIN_SET": "none.pkl"}).train_data()


def test_panoptic_s_joints_are_made_of_the_detections_and_learned(trees, tmp_path):
    """SelfPose3d's way at these places: 15 joints, found by the pelvis, from poses of 15 joints or of COCO's."""
    own = {"DATASET.SKELETON": "panoptic15", "MODEL.NUM_JOINTS": 15, "VOXEL.ROOT_JOINTS": ["pelvis"], "TEST.HEAD_RULE": "blended"}
    task, plain = task_of(trees, **own), task_of(trees)
    (X, valid), (coco, known) = task.poses(), plain.poses()
    hips = skeletons.get("coco17").indices(("l_hip", "r_hip"))
    pelvis = skeletons.get("panoptic15").index("pelvis")
    both = known[:, hips].all(1)
    assert np.array_equal(valid[:, pelvis], both)
    np.testing.assert_allclose(X[both, pelvis], coco[both][:, hips].mean(1), atol=1e-6)
    frames, detected = (t.eval_data()["valid"].__getitems__([0]) for t in (task, plain))
    sure = (detected["conf"][..., hips] > 0).all(-1)
    expected = detected["x_img"][..., hips, :].mean(-2)
    assert frames["x_img"].shape[3] == 15 and sure.any()
    torch.testing.assert_close(frames["x_img"][..., pelvis, :][sure], expected[sure])
    batch = task.train_data()["train"].__getitems__([0, 1])
    losses = task.train()({"train": batch}, Step(0, 0, 0.0))
    assert batch["X_world"].shape[2:] == (15, 3) and losses["total"].isfinite()
    (tmp_path / "own.pkl").write_bytes(pickle.dumps([{"pose": x, "vis": v} for x, v in zip(X, valid, strict=True)]))
    again, there = actors.read_poses(tmp_path / "own.pkl", "panoptic15")
    assert np.array_equal(again, X) and np.array_equal(there, valid)
    results = commands.train(config(trees, **own | {"OUTPUT_DIR": str(tmp_path)}))
    assert 0 <= results["metrics"]["pcp_percent"] <= 100


def test_people_that_a_network_found_are_a_pool_for_scenes(trees, tmp_path, capsys):
    X = np.random.default_rng(0).normal(size=(3, 2, 15, 3)) * 300
    found, score = np.array([[True, True], [True, False], [False, True]]), np.array([[0.9, 0.2], [0.8, 0.9], [0.9, 0.7]])
    predictions, out = tmp_path / "predictions.npz", tmp_path / "shelf" / "own.pkl"
    np.savez(predictions, X_world=X, found=found, score=score, X_valid=np.zeros((3, 4, 15), bool))
    assert prepare.main(["poses", str(predictions), str(out), "--min-score", "0.5"]) == 0
    assert "3 poses" in capsys.readouterr().out
    poses, valid = actors.read_poses(out, "panoptic15")
    np.testing.assert_array_equal(poses, X[[0, 1, 2], [0, 0, 1]])
    assert valid.all()
    assert prepare.main(["poses", str(predictions), str(out)]) == 2  # nothing is overwritten
    assert prepare.main(["poses", str(predictions), str(tmp_path / "b.pkl"), "--min-score", "2"]) == 2
    np.savez(predictions, X_cam=X)
    assert prepare.main(["poses", str(predictions), str(tmp_path / "b.pkl")]) == 2
    said = capsys.readouterr()
    assert "not predictions of several people" in said.out + said.err and not (tmp_path / "b.pkl").exists()


def test_a_space_that_is_not_named_is_that_of_the_rig(trees):
    free = {"VOXEL.SPACE_SIZE": [], "VOXEL.SPACE_CENTER": []}
    one, other = task_of(trees, **free), task_of(trees, **free)
    one.train_data(), other.eval_data()
    assert one.model.root_net.space == other.model.root_net.space and one.space_known


def test_some_of_the_views(trees):
    task = task_of(trees, **{"DATASET.VIEWS": [3, 0]})
    scenes, frames = task.train_data()["train"].__getitems__([0]), task.eval_data()["valid"].__getitems__([0])
    assert scenes["conf"].shape[1] == 2 and torch.equal(scenes["camera"].t, frames["camera"].t)
    assert torch.equal(scenes["patch_from_img"], frames["patch_from_img"])
    with pytest.raises(ConfigError, match=r"DATASET.VIEWS: names \[7\], but .* has the cameras 0 to 4"):
        task_of(trees, **{"DATASET.VIEWS": [0, 7]}).train_data()


def test_frames_without_detections_are_told(trees, tmp_path, caplog):
    for file in trees["shelf"].iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / shelf.LAYOUT.detections
    with open(path, "rb") as file:
        found = pickle.load(file)
    path.write_bytes(pickle.dumps({key: people for key, people in found.items() if not key.endswith("_301")}))
    whole = association.judge("shelf", trees["shelf"])
    with caplog.at_level("WARNING", "parallax"):
        report = association.judge("shelf", tmp_path)
    assert "does not name 1 frames in which there are actors (301)" in caplog.text
    assert report.counts["frames"] == whole.counts["frames"] == 6
    assert report.metrics["pcp_percent"] == pytest.approx(5 / 6 * whole.metrics["pcp_percent"])  # nobody is found in one of six
    caplog.clear()
    with caplog.at_level("WARNING", "parallax"):
        report = association.judge("shelf", tmp_path, missing="skip")
    assert "1 frames of" in caplog.text and "301" in caplog.text and report.counts["frames"] == 5
    assert report.metrics["pcp_percent"] == pytest.approx(whole.metrics["pcp_percent"])
    options = {"DATASET.ROOT": str(tmp_path), "DATASET.OPTIONS": {"missing": "skip"}}
    assert [len(task_of(trees, **change).eval_data()["valid"]) for change in (options, options | {"DATASET.OPTIONS": {}})] == [5, 6]


@BOTH
def test_exact_keypoints_associated_have_all_limbs_right(trees, name, capsys):
    report = association.judge(name, trees[name])
    assert report.metrics["pcp_percent"] == pytest.approx(LIMBS) and report.metrics["pcp_recall500_percent"] == 100
    assert prepare.main([name, "--root", str(trees[name]), "--associate"]) == 0
    said = capsys.readouterr().out
    assert "PCP" in said and "80.0" in said and "lower arms" in said


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"DATASET.DATASET": "panoptic", "DATASET.SKELETON": ""}, "DATASET.DATASET: is panoptic, which tells no rules for scenes"),
        ({"VOXEL.HEATMAPS": "network"}, "VOXEL.HEATMAPS: is network, but TASK scenes has no pictures; set keypoints"),
        ({"DATASET.SKELETON": ""}, "DATASET.SKELETON: must be coco17"),
    ],
)
def test_settings_that_cannot_be_are_refused(trees, changes, text):
    with pytest.raises(ConfigError) as error:
        task_of(trees, **changes)
    assert text in str(error.value)


def test_made_up_scenes_cannot_be_judged_by_overfitting(trees):
    with pytest.raises(ConfigError, match="TASK: is scenes.*--overfit.*--dry-run"):
        commands.train(config(trees), overfit=True)


def test_results_say_that_detections_are_judged_without_boxes_or_mirror_images(trees):
    told = task_of(trees, **{"TEST.FLIP_TEST": True}).protocol()
    assert told == {"options": {"labels": "detections", "missing": "empty"}, "flip_test": False}
