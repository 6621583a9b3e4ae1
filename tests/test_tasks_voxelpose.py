"""Several people before several cameras: what each stage learns, what is predicted, and what a checkpoint remembers."""

import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.engine import commands, run_dir
from lib.errors import ConfigError
from lib.metrics.peaks import peak_hits
from lib.tasks import Step, build, data
from lib.tasks.restore import restore
from lib.tasks.voxelpose import VoxelPoseTask
from tests.engine_runs import calls_of

SMALL = {
    "TASK": "voxelpose", "MODEL.NAME": "voxelpose", "MODEL.NUM_JOINTS": 15, "MODEL.IMAGE_SIZE": [96, 64], "MODEL.INIT_WEIGHTS": False,
    "MODEL.EXTRA.NUM_LAYERS": 18, "MODEL.EXTRA.NUM_STAGES": 2, "MODEL.EXTRA.NUM_DECONV_LAYERS": 1,
    "MODEL.EXTRA.NUM_DECONV_FILTERS": [8], "MODEL.EXTRA.NUM_DECONV_KERNELS": [4],
    "DATASET.DATASET": "panoptic", "DATASET.TRAIN_SET": "train", "DATASET.TEST_SET": "valid", "DATASET.OPTIONS": {"interval": 1},
    "DATASET.ROT_FACTOR": 0.0, "DATASET.SCALE_FACTOR": 0.0, "DATASET.FLIP": False, "LOSS.SIGMA": 1.5,
    "VOXEL.SPACE_SIZE": [5120, 5120, 2000], "VOXEL.SPACE_CENTER": [0, 0, 900], "VOXEL.CUBES": [20, 20, 8],
    "VOXEL.PERSON_CUBES": [16, 16, 16], "VOXEL.MAX_PEOPLE": 4,
    "SYNTH.NATIVE": True, "SYNTH.RIG": "panoptic5", "SYNTH.SIZE": [96, 54], "SYNTH.PEOPLE": [2, 3], "SYNTH.PRETRAIN": 0,
    "SYNTH.TRAIN": 4, "SYNTH.VALID": 2, "TRAIN.BATCH_SIZE": 2, "TRAIN.MAX_STEPS": 1, "TEST.BATCH_SIZE": 2, "WORKERS": 0, "DEBUG.FIGURES": 1,
}  # fmt: skip
KEYPOINTS = {"VOXEL.HEATMAPS": "keypoints", "VOXEL.PARTS": ["root_net", "pose_net"]}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    return SMALL | {"DATASET.ROOT": str(folder / "world"), "OUTPUT_DIR": str(folder / "output")}


def task_of(settings, **changes) -> VoxelPoseTask:
    torch.manual_seed(0)
    return build(defaults().with_values(settings | changes))


def batch_of(task, count=2) -> dict:
    return task.train_data()["train"].__getitems__([(i, 0) for i in range(count)])


@pytest.mark.parametrize("parts", [["backbone"], ["root_net"], ["pose_net"], ["backbone", "root_net", "pose_net"]], ids="+".join)
def test_only_the_parts_that_are_named_learn(settings, parts):
    # An untrained root network proposes places far from everybody: whatever it proposes is matched.
    task = task_of(settings, **{"VOXEL.PARTS": parts, "VOXEL.THRESHOLD": 0.0, "VOXEL.MATCH_MM": 1e5}).train()
    losses = task({"train": batch_of(task)}, Step(0, 0, 0.0))
    losses["total"].backward()
    learning = {name.split(".")[0] for name, p in task.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learning == set(parts)
    names = {"backbone": "heatmaps", "root_net": "roots", "pose_net": "poses_mm"}
    assert set(losses) == {names[part] for part in parts} | {"total"}
    assert losses["total"].item() == pytest.approx(sum(losses[names[part]].item() for part in parts), rel=1e-5)


@pytest.mark.parametrize("size", [[64, 64], [64, 96]], ids=str)
def test_crops_of_the_same_people_do_not_stretch_them(settings, size):
    """Boxes around joints are narrow; a crop shows all of one, as large in x as in y."""
    own = {k: v for k, v in settings.items() if not k.startswith("VOXEL.")}
    own |= {"TASK": "integral", "MODEL.NAME": "pose3d_resnet", "MODEL.HEAD": "heatmap", "LOSS.FN": "HeatmapMSELoss"}
    task = build(defaults().with_values(own | {"MODEL.IMAGE_SIZE": size}))
    crops = task.eval_data()["valid"]
    batch = crops.__getitems__(list(range(len(crops))))
    assert torch.allclose(batch["patch_from_img"][:, 0, 0], batch["patch_from_img"][:, 1, 1])
    shown = batch["x_patch"][..., :2][batch["valid"].bool()]
    assert (shown > 0).all() and (shown < torch.tensor(size)).all()


def test_the_first_stage_leaves_the_backbone_alone_to_the_next(settings, tmp_path):
    """Networks that nothing has trained yet are no start for those of the next stage, which may be of another kind."""
    first = task_of(settings, **{"VOXEL.PARTS": ["backbone"]})
    state = first.model.state_dict()
    assert {name.split(".")[0] for name in state} == {"backbone"} and first.extra_state() == first.facts() == {}
    torch.save(state, tmp_path / "first.pth.tar")
    with torch.no_grad():
        state["backbone.final_layer.bias"] += 1
    torch.save(state, tmp_path / "first.pth.tar")
    start = {"MODEL.PRETRAINED": str(tmp_path / "first.pth.tar"), "VOXEL.ROOT_HEATMAP": True, "VOXEL.START": "input"}
    one, other = task_of(settings, **start), task_of(settings, **start | {"MODEL.PRETRAINED": ""})
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, state[name] if name.startswith("backbone.") else other.model.state_dict()[name]), name


def test_joints_that_the_first_weights_lack_are_made_as_asked(settings, tmp_path):
    seventeen = {"DATASET.SKELETON": "coco17", "MODEL.NUM_JOINTS": 17}
    coco = task_of(settings, **{"VOXEL.PARTS": ["backbone"]} | seventeen).model.backbone.state_dict()
    with torch.no_grad():
        coco["final_layer.bias"] += torch.arange(17)
    torch.save(coco, tmp_path / "coco.pth")
    start = {"VOXEL.PARTS": ["backbone"], "MODEL.PRETRAINED": str(tmp_path / "coco.pth")}
    mean, published = (
        task_of(settings, **start | {"VOXEL.NEW_JOINTS": rule}).model.backbone.final_layer.bias for rule in ("mean", "reference")
    )
    assert mean[:3].tolist() == [5.5, 0, 11.5] and published[:3].tolist() == [5, 0, 11] and torch.equal(mean[3:], published[3:])


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_an_instant_may_lack_a_view(settings, monkeypatch, rule):
    """What is predicted and how it is judged is then as if the rig had no such camera."""
    own = {"VOXEL.RULE": rule, "VOXEL.THRESHOLD": 0.0, "VOXEL.PERSON_CUBES": [4, 4, 4], "VOXEL.CUBES": [8, 8, 4]}
    fewer = task_of(settings, **own | {"DATASET.VIEWS": [0, 1, 2, 3]})
    expected = fewer.eval_data()["valid"]
    whole = data.annotations(fewer.cfg.with_values({"DATASET.VIEWS": []}), "valid")
    first = (whole.sequence == expected.instants[0, 0]) & (whole.frame == expected.instants[0, 1])
    monkeypatch.setattr(data, "annotations", lambda *args: whole.select((whole.view < 4) | ~first))
    task = task_of(settings, **own | {"DATASET.ALLOW_MISSING": True})
    samples = task.eval_data()["valid"]
    left_out = task_of(settings, **own).eval_data()["valid"]
    assert len(samples) == len(expected) == 2 and len(left_out) == 1
    reports = []
    for t, s in ((task, samples), (fewer, expected)):
        batch = s.__getitems__([0])
        with torch.no_grad():
            pred = t.eval().predict(batch)
        evaluator = t.evaluator(s)
        evaluator.update(pred | {"X_world": batch["X_world"], "found": batch["X_valid"].any(-1)}, batch)
        reports.append((pred, evaluator.compute()))
    (one, report), (other, same) = reports
    torch.testing.assert_close(one["score"], other["score"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one["X_world"], other["X_world"], atol=0.5, rtol=0)
    assert report.metrics["reprojection_percent"] == pytest.approx(same.metrics["reprojection_percent"], abs=1e-4)
    assert report.counts["instants_left_out"] == 0
    evaluator = task.evaluator(left_out)
    batch = left_out.__getitems__([0])
    with torch.no_grad():
        evaluator.update(task.predict(batch), batch)
    assert evaluator.compute().counts["instants_left_out"] == 1
    losses = task.train()({"train": samples.__getitems__([0, 1])}, Step(0, 0, 0.0))
    assert losses["total"].isfinite()


def test_a_joint_that_no_one_shows_in_the_network_s_input_does_not_count(settings):
    """Labels reach beyond the picture and its input; a map counts where its joint is drawn, at least once."""
    task = task_of(settings, **{"VOXEL.PARTS": ["backbone"]})
    batch = batch_of(task, 1)
    batch["conf"] = torch.ones_like(batch["conf"])
    batch["x_img"] = torch.full_like(batch["x_img"], 40.0)
    batch["x_img"][0, 1, :, 3] = -5.0  # beyond the picture, whoever it is
    batch["x_img"][0, 2, 0, 4] = -5.0  # one of the people alone
    hm, hm_from_img = task.heatmaps(batch)
    hm = torch.zeros_like(hm)
    plain = task.heatmap_loss(hm, hm_from_img, batch)
    for view, joint, counts in ((1, 3, False), (2, 4, True), (0, 0, True)):
        wrong = hm.clone()
        wrong[0, view, joint, 0, 0] = 5.0
        assert (task.heatmap_loss(wrong, hm_from_img, batch) > plain) == counts


def test_places_alone_are_judged_as_places(settings):
    """Poses of a network that nothing has trained do not choose the network of places."""
    chosen = {"root_net": "root_map_percent", "pose_net": "map_percent", "backbone": "peak_f1_percent"}
    for part, metric in chosen.items():
        assert task_of(settings, **{"VOXEL.PARTS": [part]}).key_metric == (metric, "max")
    assert task_of(settings, **{"VOXEL.PARTS": ["backbone", "root_net"]}).key_metric[0] == "root_map_percent"
    assert task_of(settings).key_metric[0] == "map_percent"
    task = task_of(settings, **KEYPOINTS | {"VOXEL.PARTS": ["root_net"], "VOXEL.THRESHOLD": 0.0})
    samples = task.eval_data()["valid"]
    batch = samples.__getitems__([0, 1])
    there = batch["X_valid"].any(-1)
    far = {"X_world": batch["X_world"] + 900.0, "score": torch.ones(there.shape), "found": there}
    evaluator = task.evaluator(samples)
    evaluator.update(far | {"centers": batch["X_world"][:, :, task.roots].mean(2)}, batch)
    metrics = evaluator.compute().metrics
    assert metrics["root_map_percent"] == pytest.approx(100) and metrics["map_percent"] == 0


def test_a_step_in_which_nobody_is_found_changes_nothing(settings):
    task = task_of(settings, **{"VOXEL.PARTS": ["pose_net"], "VOXEL.MATCH_MM": 0.0}).train()
    losses = task({"train": batch_of(task, 1)}, Step(0, 0, 0.0))
    losses["total"].backward()
    assert losses["total"].item() == 0 and not any(p.grad is not None and p.grad.any() for p in task.model.parameters())


def test_exact_heatmaps_teach_where_people_are(settings):
    """From drawn keypoints alone the root network learns an instant by heart, and then finds its people."""
    own = {"VOXEL.SPACE_SIZE": [3300, 3300, 2000], "VOXEL.CUBES": [12, 12, 8], "VOXEL.ROOT_SIGMA_MM": 300.0, "VOXEL.THRESHOLD": 0.2}
    task = task_of(settings, **KEYPOINTS | own | {"VOXEL.PARTS": ["root_net"]})
    batch = batch_of(task, 1)
    assert "image" not in batch
    optimizer = torch.optim.Adam(task.param_groups(), 1e-3)
    task.train()
    for step in range(30):
        optimizer.zero_grad()
        task({"train": batch}, Step(step, 0, 0.0))["total"].backward()
        optimizer.step()
    task.eval()
    with torch.no_grad():
        pred = task.predict(batch)
    found = pred["centers"][0][pred["found"][0]]
    roots = batch["X_world"][0, : int(batch["n_people"][0]), task.roots].mean(1)
    distance = torch.cdist(roots, found).amin(1)
    pitch = max(task.facts()["voxel_mm"])
    assert len(found) == len(roots) and (distance < pitch).all()
    evaluator = task.evaluator(task.train_data()["train"])
    evaluator.update(pred, batch)
    assert evaluator.compute().metrics["root_recall500_percent"] == 100


def test_mirrored_frames_give_the_same_heatmaps_to_the_space(settings):
    """A mirrored picture has left and right exchanged; what meets the voxels and the labels has not."""
    flipped = task_of(settings, **{"DATASET.FLIP": True, "DATASET.FLIP_PROB": 1.0})
    plain = task_of(settings)
    one, other = batch_of(flipped, 1), batch_of(plain, 1)
    assert one["flipped"].all() and not other["flipped"].any()

    class Bright(torch.nn.Module):  # its maps show the picture, each joint's in a strength of its own
        def forward(self, image):
            maps = torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 8)
            return maps.expand(-1, 15, -1, -1) * torch.arange(1, 16)[:, None, None]

    for task in (flipped, plain):
        task.model.backbone = Bright()
    hm, _ = flipped.heatmaps(one)
    back, _ = plain.heatmaps(other)
    mirrored = back.flip(-1)[:, :, flipped.flip]
    assert (hm - mirrored).abs().max() < 0.35 * mirrored.abs().max()  # pictures are warped, so equal but for their edges


def test_flip_test_averages_what_the_mirrored_picture_shows(settings):
    """A network that sees all joints one cell too far right, and some brighter than those of the other side, errs the other way there."""

    class Shifted(torch.nn.Module):
        def forward(self, image):
            maps = torch.zeros(len(image), 15, image.shape[-2] // 8, image.shape[-1] // 8)
            bright = torch.nn.functional.avg_pool2d(image.mean(1), 8) > 0
            maps[:, :, :, 1:] = bright[:, None, :, :-1].float()
            return maps * torch.where(torch.arange(15) > 8, 1.0, 0.5)[:, None, None]

    batch = batch_of(task_of(settings), 1)
    image = torch.zeros_like(batch["image"])
    image[..., 40:48] = 255  # the sixth column of cells; of the others black, which lies below 0
    seen = {}
    for flip in (False, True):
        task = task_of(settings, **{"TEST.FLIP_TEST": flip}).eval()
        task.model.backbone = Shifted()
        seen[flip] = task.heatmaps(batch | {"image": image})[0][0, 0]
    assert (seen[False].sum(1).argmax(-1) == 6).all() and (seen[False][9:].amax() == 2 * seen[False][:9].amax())
    columns = seen[True].sum(1)  # (J,w)
    assert (columns[:, [5, 6]] > 0).all() and columns[:, [4, 7]].abs().max() == 0  # one look errs to the right, the other to the left
    left, right = columns[:, 5] / columns[task.flip, 5], columns[:, 6] / columns[task.flip, 6]
    torch.testing.assert_close(left, right.reciprocal())  # joints are found at their own side in both


@pytest.mark.parametrize("changes", [{"VOXEL.PARTS": ["backbone"]}, {}, KEYPOINTS], ids=["backbone", "network", "keypoints"])
def test_a_run_is_judged_and_its_checkpoint_restored(settings, changes):
    cfg = defaults().with_values(settings | changes | {"EXP_NAME": "-".join(changes) or "all", "VOXEL.THRESHOLD": 0.0})
    results = commands.train(cfg)
    expected = "peak_f1_percent" if changes.get("VOXEL.PARTS") == ["backbone"] else "map_percent"
    assert expected in results["metrics"] or expected == "peak_f1_percent" and "peak_recall_percent" in results["metrics"]
    task = restore(run_dir.run_path(cfg) / run_dir.LAST)
    batch = task.eval_data()["valid"].__getitems__([0, 1])
    with torch.no_grad():
        pred = task.predict(batch)
    if expected == "map_percent":
        kept = np.load(run_dir.run_path(cfg) / "predictions.npz")
        assert pred["X_world"].shape == (2, 4, 15, 3) and np.array_equal(kept["ids"], [0, 1])
        assert np.allclose(kept["centers"], pred["centers"].numpy(), atol=1e-2)


def test_a_space_that_is_not_named_is_found_and_kept(settings):
    task = task_of(settings, **{"VOXEL.SPACE_SIZE": [], "VOXEL.SPACE_CENTER": []})
    assert task.extra_state() == {}
    samples = task.train_data()["train"]
    people = samples.ann.X_world[samples.ann.X_valid].reshape(-1, 3)
    space = task.model.root_net.space
    low = np.array(space.center) - np.array(space.size) / 2
    assert (np.abs(people - np.array(space.center))[:, :2] <= np.array(space.size)[:2] / 2).mean() > 0.95 and low[2] <= 0
    other = task_of(settings, **{"VOXEL.SPACE_SIZE": [], "VOXEL.SPACE_CENTER": []})
    other.load_extra_state(task.extra_state())
    assert other.model.root_net.space == space and other.facts()["voxel_mm"] == list(space.pitch)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"VOXEL.ROOT_JOINTS": ["tail"]}, "VOXEL.ROOT_JOINTS: ['tail'] are no joints of panoptic15"),
        ({"VOXEL.SPACE_CENTER": []}, "VOXEL.SPACE_SIZE: and SPACE_CENTER belong together"),
        (KEYPOINTS | {"VOXEL.PARTS": ["backbone"]}, "VOXEL.PARTS: trains the backbone, but VOXEL.HEATMAPS keypoints needs none"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_data_are_read(settings, changes, text):
    with pytest.raises(ConfigError) as error:
        task_of(settings, **changes)
    assert text in str(error.value)


def test_peaks_are_counted_where_joints_are():
    hm = torch.zeros(1, 2, 12, 16)
    hm[0, 0, 5, 4], hm[0, 0, 9, 14], hm[0, 1, 2, 2] = 0.9, 0.8, 0.2  # the last is below the threshold
    x_hm = torch.tensor([[[[5.4, 5.0], [2.0, 2.0]], [[8.0, 2.0], [40.0, 2.0]]]])  # two people, two joints
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    hits = peak_hits(hm, x_hm, valid, 0.3, 2)
    assert hits.tolist() == [[[1, 2, 1, 2], [0, 1, 0, 0]]]


def test_no_part_at_all_is_refused(settings):
    with pytest.raises(ConfigError, match="VOXEL.PARTS: is empty"):
        task_of(settings, **{"VOXEL.PARTS": []})


def test_all_that_compile_is_for_is_called(settings):
    task = task_of(settings, **{"VOXEL.PARTS": ["backbone", "root_net", "pose_net"], "VOXEL.THRESHOLD": 0.0, "VOXEL.MATCH_MM": 1e5})
    with calls_of(task.called()) as called:
        task({"train": batch_of(task)}, Step(0, 0, 0.0))
    assert len(called) == 3 and len(task_of(settings, **KEYPOINTS).called()) == 2


def test_results_tell_no_boxes_and_no_mirror_images_of_drawn_keypoints(settings):
    for changes, flipped in (({}, True), (KEYPOINTS, False)):
        told = task_of(settings, **{"TEST.FLIP_TEST": True}, **changes).protocol()
        assert told["flip_test"] is flipped and told["options"]["interval"] == 1 and "min_confidence" in told["options"]
        assert "boxes" not in told
