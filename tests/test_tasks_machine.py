"""Pose machines from YAML to numbers: what each stage learns, what is predicted and judged, and what the correction is given."""

import json

import numpy as np
import pytest
import torch

from lib.config import defaults, load
from lib.dataset.clips import MASKED
from lib.engine import commands, run_dir
from lib.errors import ConfigError
from lib.skeleton import get
from lib.tasks import Step, build
from lib.tasks import data as task_data
from lib.tasks.machine import LEARNS, MachineTask
from tests.conftest import ROOT
from tests.engine_runs import calls_of

SMALL = {
    "TASK": "machine", "MODEL.NAME": "pose_machine", "MODEL.NUM_JOINTS": 16, "MODEL.IMAGE_SIZE": [64, 64], "MODEL.INIT_WEIGHTS": False,
    "DATASET.SKELETON": "h36m16", "MODEL.EXTRA.NUM_LAYERS": 18, "MODEL.EXTRA.NUM_STAGES": 2, "MODEL.EXTRA.NUM_DECONV_LAYERS": 0,
    "MODEL.EXTRA.NUM_DECONV_FILTERS": [], "MODEL.EXTRA.NUM_DECONV_KERNELS": [],
    "MACHINE.TRUNK": "resnet", "MACHINE.CHANNELS": 8, "MACHINE.HIDDEN": 32, "MACHINE.CLIP": 3,
    "SYNTH.SIZE": [96, 96], "SYNTH.PRETRAIN": 4, "SYNTH.TRAIN": 12, "SYNTH.VALID": 4, "TRAIN.BATCH_SIZE": 2, "TRAIN.MAX_STEPS": 1,
    "TEST.BATCH_SIZE": 4, "WORKERS": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return SMALL | {"DATASET.ROOT": str(tmp_path_factory.mktemp("machine") / "world")}


def task_of(settings, **changes):
    torch.manual_seed(0)
    return build(defaults().with_values(settings | changes))


def batch_of(task, count=2) -> dict:
    return task.train_data()["train"].__getitems__([(i, 0) for i in range(count)])


@pytest.mark.parametrize("stage", LEARNS)
def test_each_stage_moves_its_own_parts_alone(settings, stage):
    task = task_of(settings, **{"MACHINE.STAGE": stage}).train()
    losses = task({"train": batch_of(task)}, Step(0, 0, 0.0))
    losses["total"].backward()
    moved = {n.split(".")[0] for n, p in task.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == set(LEARNS[stage])
    assert losses["total"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "total"), rel=1e-5)


def test_parts_can_be_kept_and_keeping_all_is_refused(settings):
    task = task_of(settings, **{"MACHINE.STAGE": "joint", "MACHINE.FROZEN": ["trunk", "head2d"]})
    assert {n.split(".")[0] for n, p in task.model.named_parameters() if p.requires_grad} == {"lifter", "regressor", "projector"}
    with pytest.raises(ConfigError, match="MACHINE.FROZEN"):
        task_of(settings, **{"MACHINE.STAGE": "lift", "MACHINE.FROZEN": ["lifter"]})


def test_learning_rates_of_biases_and_of_the_last_layer(settings):
    task = task_of(settings, **{"MACHINE.STAGE": "lift", "TRAIN.LR": 1e-3})
    rates = {id(p): group["lr"] for group in task.param_groups() for p in group["params"]}
    last = task.model.lifter.fc_final
    assert rates[id(last.weight)] == pytest.approx(1e-2) and rates[id(last.bias)] == pytest.approx(2e-2)
    assert rates[id(task.model.lifter.fc.weight)] == pytest.approx(1e-3) and rates[id(task.model.lifter.fc.bias)] == pytest.approx(2e-3)


# Factors of weights and biases by step of training, as the release's definitions of its networks have them.
PUBLISHED_RATES = {
    "lift": {"lifter.special_conv_1": (1, 2), "lifter.fc": (1, 2), "lifter.fc_final": (10, 20)},
    "projector": {"regressor.change_tmp": (1, 2), "regressor.change": (2, 2), "projector.project_3": (1, 2),
                  "projector.project_2d": (5, 5)},
    "joint": {"trunk.squeeze": (1, 1), "lifter.fc": (1, 2), "lifter.fc_final": (2, 2), "regressor.change_tmp": (1, 2),
              "regressor.change": (2, 2), "projector.project_2d": (5, 5)},
    "mask": {"lifter.fc": (1, 1), "lifter.fc_final": (1, 1), "regressor.change_tmp": (1, 1), "regressor.change": (2, 1),
             "projector.project_1": (1, 1), "projector.project_2d": (2, 1)},
}  # fmt: skip


@pytest.mark.parametrize("step", PUBLISHED_RATES)
def test_learning_rates_of_the_published_steps(step):
    cfg = load(ROOT / "experiments" / "machine" / f"{step}.yaml")
    small = {key: value for key, value in SMALL.items() if key.startswith(("MODEL.", "MACHINE."))}
    task = build(cfg.with_values(small | {"MODEL.PRETRAINED": ""}))
    rates = {id(p): group["lr"] / cfg.TRAIN.LR for group in task.param_groups() for p in group["params"]}
    for layer, expected in PUBLISHED_RATES[step].items():
        weight, bias = (task.model.get_parameter(f"{layer}.{name}") for name in ("weight", "bias"))
        assert (rates[id(weight)], rates[id(bias)]) == pytest.approx(expected), layer


def test_published_augmentation_and_masks():
    """Turned by up to 40 degrees; every joint left out once in fifty times, spine and head twice as often."""
    step = {name: load(ROOT / "experiments" / "machine" / f"{name}.yaml") for name in ("2d", "joint", "mask")}
    augment, rng = task_data.augmentation(step["2d"]), np.random.default_rng(0)
    turns = np.abs([augment.draw(rng).rot_deg for _ in range(500)])
    assert 35 < turns.max() <= 40 and (turns > 0).all()
    joints = get("h36m16").joints
    assert step["mask"].MACHINE.JOINT_MASK == {joint: 0.04 if joint in ("spine", "head") else 0.02 for joint in joints}
    assert (step["joint"].TRAIN.SAVE_STEPS, step["mask"].TRAIN.SAVE_STEPS) == (20_000, 50_000)


def test_joints_are_left_out_of_the_2d_pose_that_the_projection_learns_from(settings):
    def losses(chance, train=True):
        task = task_of(settings, **{"MACHINE.STAGE": "projector", "MACHINE.MASK_2D": chance, "MACHINE.WEIGHT_BONES2D": 1.0}).train(train)
        return task({"train": batch_of(task)}, Step(0, 0, 0.0))

    whole, half, none, judged = losses(0.0), losses(0.5), losses(1.0), losses(1.0, train=False)
    for name in ("projected", "projected_bones"):
        assert 0 == none[name] < half[name] < whole[name] == judged[name]
    assert whole["regressed"] == none["regressed"]


@pytest.mark.parametrize("evidence", ["network", "labels"])
def test_a_projection_that_teaches_itself_looks_at_no_label(settings, evidence):
    """Whatever the correction goes by."""
    task = task_of(settings, **{"MACHINE.STAGE": "projector", "MACHINE.SELF": True, "CORRECTION.EVIDENCE": evidence}).train()
    batch = batch_of(task)
    unlabelled = batch | {"x_patch": batch["x_patch"] + 9, "valid": torch.zeros_like(batch["valid"])}
    found, again = (task({"train": b}, Step(0, 0, 0.0))["projected"] for b in (batch, unlabelled))
    assert found == again > 0
    with torch.no_grad():
        feat = task.model.features(task.prepare(batch["image"]))
        seen, made = task.model.locate(feat), task.model.project(task.model.regress(task.model.lift(feat)))
    squares = ((seen - made) ** 2).sum((-1, -2))[batch["mask"]]
    assert found.item() == pytest.approx(squares.mean().item() / 2, rel=1e-4)


@pytest.mark.parametrize("head", ["fc", "maps", "lstm"])
def test_a_still_beside_clips_is_looked_at_once(settings, head):
    """And what stands behind it in its clip has no share in losses, gradients and norms."""
    changes = {"MACHINE.STAGE": "joint", "MACHINE.HEAD2D": head, "MACHINE.NORM": "batch"}
    tasks = [task_of(settings, **changes).train() for _ in range(2)]
    batch = batch_of(tasks[0])
    for name in ("mask", *MASKED):  # the first one is a whole clip, of which all is known
        batch[name][0, 1:], batch[name][1, 1:] = batch[name][0, 0].clone(), False
    noise = {name: batch[name].clone() for name in ("image", "x_patch", "X_rel")}
    noise["image"][1, 1:], noise["x_patch"][1, 1:], noise["X_rel"][1, 1:] = 255, 7, 99
    looked: list[int] = []
    tasks[0].model.trunk.register_forward_hook(lambda module, given, made: looked.append(len(given[0])))
    found = [task({"train": b}, Step(0, 0, 0.0)) for task, b in zip(tasks, (batch, batch | noise), strict=True)]
    assert looked == [batch["mask"].shape[1] + 1]
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for part in found:
        part["total"].backward()
    for (name, p), q in zip(tasks[0].model.named_parameters(), tasks[1].model.parameters(), strict=True):
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad), name
    norms = [task.model.state_dict() for task in tasks]
    assert all(torch.equal(value, norms[1][name]) for name, value in norms[0].items())


def test_ranges_hold_all_training_poses_and_come_with_the_weights(settings):
    task = task_of(settings, **{"MACHINE.STAGE": "lift", "DATASET.FLIP": False, "DATASET.ROT_FACTOR": 0.0})
    batch = batch_of(task, 4)
    shares = task.model.normalizer.normalize(batch["X_rel"])[batch["X_rel_valid"]]
    assert (shares >= 0).all() and (shares <= 1).all()
    later = task_of(settings, **{"MACHINE.STAGE": "projector"})
    later.model.load_state_dict(task.model.state_dict())
    later.train_data()
    assert torch.equal(later.model.normalizer.high, task.model.normalizer.high)


def test_every_frame_of_a_clip_is_judged_once_in_mm(settings):
    task = task_of(settings, **{"MACHINE.STAGE": "lift"}).eval()
    task.train_data()
    data = task.eval_data()["valid"]
    evaluator, ids = task.evaluator(data), []
    with torch.no_grad():
        for i in range(len(data)):
            batch = data.__getitems__([i])
            pred, rows = task.rows(task.predict(batch), batch)
            assert torch.allclose(pred["X_cam"] - rows["root_cam"][:, None], pred["X_root"], atol=0.5)
            evaluator.update(pred, rows)
            ids += rows["id"].tolist()
    assert sorted(ids) == list(range(len(data.ann)))
    assert evaluator.compute().metrics["mpjpe_mm"] > 0


@pytest.mark.parametrize("evidence", ["network", "labels"])
def test_a_correction_moves_poses_and_no_weights(settings, evidence):
    changes = {"MACHINE.STAGE": "projector", "TEST.CORRECTION": "projector", "CORRECTION.EVIDENCE": evidence, "CORRECTION.LR": 1e-3}
    task = task_of(settings, **changes, **{"CORRECTION.TAU_MM": 0.0}).eval()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    batch = task.eval_data()["valid"].__getitems__([0, 1])
    with torch.no_grad():
        pred = task.predict(batch)
        alone = task.predict({name: value[:1] for name, value in batch.items()})
    moved = (pred["X_cam"] - pred["X_regressed"]).norm(dim=-1)[batch["mask"]]
    assert (pred["updates"][batch["mask"]] >= 1).all() and moved.amax() > 0.1
    assert torch.allclose(alone["X_cam"], pred["X_cam"][:1], atol=0.05)  # whoever else is in the batch
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_a_single_picture_is_a_clip_of_one_frame(settings):
    task = task_of(settings, **{"MACHINE.STAGE": "joint", "MACHINE.CLIP": 1}).eval()
    batch = task.eval_data()["valid"].__getitems__([0, 1])
    crops = {name: value[:, 0] for name, value in batch.items() if name in ("image", "patch_from_img", "root_cam", "x_patch", "valid")}
    with torch.no_grad():
        clips, single = task.predict(batch), task.predict(crops)
    assert torch.allclose(single["X_root"], clips["X_root"][:, 0], atol=1e-3) and single["X_root"].shape == (2, 16, 3)


def test_stages_follow_one_another_and_the_table_has_the_poses_before_the_correction(settings, tmp_path, capsys):
    run = settings | {"OUTPUT_DIR": str(tmp_path)}
    weights, tables = "", []
    for stage in LEARNS:
        cfg = defaults().with_values(run | {
            "MACHINE.STAGE": stage, "EXP_NAME": stage, "MODEL.PRETRAINED": weights,
            "TEST.CORRECTION": "projector" if stage in ("projector", "joint") else "off", "TEST.FLIP_TEST": True,
            "TEST.PCP": "off" if stage == "2d" else "rooted",
        })  # fmt: skip
        commands.train(cfg)
        weights = str(run_dir.run_path(cfg) / run_dir.BEST)
        tables.append(json.loads((run_dir.run_path(cfg) / "results.json").read_text()))
    assert not any(table["protocol"]["flip_test"] for table in tables)  # poses are not mirrored, whatever is asked for
    assert "pck2d_percent" in tables[0]["metrics"] and "mpjpe_mm" in tables[1]["metrics"]
    final = tables[-1]
    assert {"coarse_mpjpe_mm", "regressed_mpjpe_mm", "mpjpe_mm"} <= final["metrics"].keys()
    assert 0 <= final["metrics"]["pcp_lower_arms_percent"] <= 100 and "camera1" in str(final["per_joint"])
    assert final["metrics"]["reprojection_px"] < final["metrics"]["reprojection_before_px"]
    heads = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.startswith("action")]
    assert heads[-2].startswith("action coarse, mm regressed, mm refined, mm coarse, PA mm") and heads[-1] == "action pcp_percent"
    assert sum(final["counts"][name] for name in ("converged", "stopped", "discarded")) == final["counts"]["poses"]
    arrays = np.load(tmp_path / "synthetic" / "pose_machine" / "joint" / "predictions.npz")
    assert arrays["X_cam"].shape == (final["counts"]["poses"], 16, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MODEL.NAME": "pose3d_resnet"}, "MODEL.NAME"),
        ({"MACHINE.STAGE": "2d", "MACHINE.HEAD2D": "none"}, "MACHINE.HEAD2D"),
        ({"MACHINE.SELF": True, "MACHINE.HEAD2D": "none", "CORRECTION.EVIDENCE": "labels"}, "MACHINE.SELF"),
        ({"TEST.PCP": "twice"}, "TEST.PCP"),
        ({"TEST.CORRECTION": "projector", "MACHINE.STAGE": "2d"}, "TEST.CORRECTION.*MACHINE.STAGE 2d"),
        ({"TEST.CORRECTION": "projector", "MACHINE.STAGE": "lift"}, "TEST.CORRECTION.*MACHINE.STAGE lift"),
        ({"MACHINE.LR_OF": {"project_2": [1, 1], "projekt_2d": [5, 5]}}, "MACHINE.LR_OF.*projekt_2d.*did you mean project_2d"),
        ({"MACHINE.HEAD2D": "none", "TEST.CORRECTION": "projector"}, "CORRECTION.EVIDENCE"),
    ],
    ids=["another network", "no head to train", "no head to learn from", "no such rule", "nothing to correct", "no projector yet",
         "no such layer", "nothing to go by"],
)
def test_settings_that_do_not_fit_are_refused(settings, changes, said):
    with pytest.raises(ConfigError, match=said):
        task_of(settings, **changes)


@pytest.mark.parametrize("head", ["fc", "maps", "lstm"])
def test_all_that_compile_is_for_is_called(settings, head):
    task = task_of(settings, **{"MACHINE.STAGE": "joint", "MACHINE.HEAD2D": head})
    with calls_of(task.called()) as called:
        task({"train": batch_of(task)}, Step(0, 0, 0.0))
    assert called and set(called) == set(task.called())
    assert task.model.trunk in called and (task.model.head2d in called) == (head != "lstm")
    correcting = task_of(settings, **{"MACHINE.STAGE": "joint", "TEST.CORRECTION": "projector"})
    assert not {correcting.model.regressor, correcting.model.projector} & set(correcting.called())


def test_overfit_judges_the_people_that_are_learned(settings, tmp_path):
    """A protocol would judge others, of whom the training split has none."""
    own = {"MACHINE.STAGE": "joint", "MACHINE.PROTOCOL": "machine1", "MACHINE.MASK_2D": 0.5, "MACHINE.JOINT_MASK": {"head": 0.5}}
    cfg = defaults().with_values(settings | own | {"OUTPUT_DIR": str(tmp_path)})
    results = commands.train(cfg, overfit=True)
    assert results["metrics"]["mpjpe_mm"] > 0 and not list(tmp_path.iterdir())
    assert MachineTask.overfit(cfg) == {"MACHINE.PROTOCOL": "", "MACHINE.JOINT_MASK": {}, "MACHINE.MASK_2D": 0.0}
