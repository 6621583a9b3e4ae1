"""Lifting over time: VideoPose3D's steps and whole runs number by number, learning without labels, streams, wrong settings."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from lib import config
from lib.correction import DECISIONS
from lib.dataset.chunks import TrackSamples
from lib.dataset.formats import keypoints_npz
from lib.dataset.loader import Key
from lib.engine import Trainer, commands, optim, run_dir, start
from lib.engine.batches import training_batches
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras
from lib.geometry.screen import project_held
from lib.loss.lifting import bone_length_loss, position_loss, trajectory_loss
from lib.tasks import build
from lib.tasks.base import Step
from lib.tasks.restore import restore
from lib.tasks.temporal import Lift, TemporalTask
from tests.conftest import ROOT, he, recorded_state

GOLDEN = ROOT / "tests" / "golden" / "videopose3d"
RUNS = json.loads((GOLDEN / "end_to_end.json").read_text())["runs"]
STEPS = json.loads((GOLDEN / "train_steps.json").read_text())
PUBLISHED = {  # what the published code does, where this repository does otherwise unless asked
    "TEMPORAL.ORDER": "reference", "TEMPORAL.NEAR_MM": 0.0, "TEMPORAL.CAUSAL_TARGET": "reference", "TEMPORAL.DROPOUT": 0.0,
}  # fmt: skip
ADAM = {"TRAIN.OPTIMIZER": "adam", "TRAIN.AMSGRAD": True, "TRAIN.LR": 1e-3, "TRAIN.SCHEDULE": "exponential", "TRAIN.LR_FACTOR": 0.95}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    for name in ("data_3d_h36m", "data_2d_h36m_gt", "data_2d_h36m_noisy_h36m"):
        shutil.copy(GOLDEN / f"tiny_{name}.npz", folder / f"{name}.npz")
    return folder


def configure(root, **values) -> config.Config:
    base = {
        "TASK": "temporal", "MODEL.NAME": "temporal", "DATASET.DATASET": "keypoints_npz", "DATASET.ROOT": str(root),
        "DATASET.OPTIONS": {"dataset": "h36m", "keypoints": "gt"}, "TEMPORAL.WIDTHS": [3, 3], "TEMPORAL.CHANNELS": 32, "WORKERS": 0,
        "DATASET.SUBJECTS": ["S1", "S5"], "TRAIN.BATCH_SIZE": 64,
    }  # fmt: skip
    return config.defaults().with_values(base | ADAM | {key.replace("__", "."): value for key, value in values.items()})


def by_rule(network: nn.Module, scale: float = 1.0, depth: float | None = None) -> None:
    """The weights of the fixtures: a function of each tensor's name."""
    network.load_state_dict(recorded_state(network, he))
    with torch.no_grad():
        network.shrink.weight.mul_(scale)
        if depth is not None:
            network.shrink.bias[2] = depth


def sums(network: nn.Module) -> dict[str, list[float]]:
    state = {k: v.double() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    return {name: [value.sum().item(), value.abs().sum().item()] for name, value in state.items()}


def check_sums(network: nn.Module, expected: dict[str, list[float]], rel: float) -> None:
    found = sums(network)
    for name, (total, size) in expected.items():
        if name in found:
            assert found[name] == pytest.approx([total, size], rel=rel, abs=rel * size), name


# ------------------------------------------------------------------------------------- published steps


def camera_rows(values: np.ndarray) -> Cameras:
    """Screen cameras of published vectors fx fy cx cy k1 k2 k3 p1 p2."""
    v = torch.from_numpy(values).float()
    K = torch.zeros(len(v), 3, 3)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = v[:, 0], v[:, 1], v[:, 2], v[:, 3], 1
    return Cameras.make(K, torch.eye(3), torch.zeros(3), torch.stack([v[:, 4], v[:, 5], v[:, 8], v[:, 7], v[:, 6]], 1))


def noise(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["supervised", "semi_supervised"])
def test_optimiser_steps_are_the_published_ones(name, root):
    case, semi = STEPS[name], name == "semi_supervised"
    values = {"TEMPORAL__WIDTHS": [3, 3, 3], "TEMPORAL__CHANNELS": 64} | ({"TEMPORAL__UNLABELED": ["S5"]} if semi else {})
    task = build(configure(root, **PUBLISHED, **values)).train()
    by_rule(task.model.pose, 0.1 if semi else 1.0)
    if semi:
        by_rule(task.model.trajectory, 0.1, 5.0)
        with np.load(GOLDEN / "cameras.npz") as file:
            intrinsics = file["h36m_intrinsic_normalised"]
    optimizer = optim.build_optimizer(task.param_groups(), task.cfg.TRAIN)
    for number, expected in enumerate(case["steps"]):
        if semi:
            y = noise((6, 1, 17, 3), 1100 + number, 0.3)
            y[:, :, 0] = 0
            root_m = noise((6, 1, 1, 3), 1200 + number, 0.5) + torch.tensor([0, 0, 5.0])
            batch = {
                "train": {"x_screen": noise((6, 27, 17, 2), 900 + number, 0.3), "X_cam": (y + root_m) * 1000},
                "unlabeled": {"x_screen": noise((5, 27, 17, 2), 1000 + number, 0.3), "camera": camera_rows(intrinsics[np.arange(5) % 4])},
            }
        else:
            y = noise((8, 1, 17, 3), 600 + number, 0.3)
            y[:, :, 0] = 0
            batch = {"train": {"x_screen": noise((8, 27, 17, 2), 500 + number), "X_cam": y * 1000}}
        if not semi:
            task.model.pose.set_momentum(expected["bn_momentum"])
        losses = task(batch, Step(number, 0 if expected.get("warmup") else 1, 0.0))
        rel = 1e-5 if number == 0 else 1e-3
        names = {"loss": "total", "total": "total", "loss_3d": "pose_m", "loss_traj": "trajectory", "loss_reproj": "reprojection"}
        for theirs, ours in (names | {"bone_penalty": "bones_m"}).items():
            if theirs in expected:
                assert losses[ours].item() == pytest.approx(expected[theirs], rel=rel), (number, theirs)
        optimizer.zero_grad()
        losses["total"].backward()
        for key, (_, size) in (expected.get("grad_sum_abs_sum") or {}).items():
            grad = dict(task.model.pose.named_parameters())[key].grad
            assert grad.abs().sum().item() == pytest.approx(size, rel=rel * 10), key
        optimizer.step()
    check_sums(task.model.pose, case["final_pos_state" if semi else "final_state_sum_abs_sum"], 1e-3)
    if semi:
        check_sums(task.model.trajectory, case["final_traj_state"], 1e-3)


def test_losses_without_labels_are_the_published_ones():
    facts = json.loads((GOLDEN / "metrics.json").read_text())["semi"]
    with np.load(GOLDEN / "metrics.npz") as file:
        data = {key[5:]: torch.from_numpy(file[key]) for key in file.files if key.startswith("semi/")}
    n, pose, trajectory = facts["n_labelled"], data["pos"], data["traj"]
    assert position_loss(pose[:n], data["target_pos"]) == pytest.approx(facts["loss_3d"], rel=1e-5)
    assert trajectory_loss(trajectory[:n], data["target_traj"]) == pytest.approx(facts["loss_traj"], rel=1e-5)
    cameras = camera_rows(data["camera"].numpy())
    X = ((pose + trajectory)[n:] * 1000).flatten(1, 2)
    for name, distort in (("reproj", True), ("reproj_linear", False)):
        seen = project_held(X, cameras, distort, near_mm=0)[:, None]
        assert torch.allclose(seen, data[name], atol=1e-5)
        assert position_loss(seen, data["target_2d"]) == pytest.approx(facts[f"loss_{name}"], rel=1e-5)
    bones = torch.tensor([[parent, child] for child, parent in enumerate(facts["parents"]) if parent >= 0])
    assert bone_length_loss(pose[:n], pose[n:], bones) == pytest.approx(facts["bone_penalty"], rel=1e-5)


# ------------------------------------------------------------------------------------- published runs


COLUMNS = {
    "mpjpe_mm": "mpjpe_unrooted_mm", "p_mpjpe_mm": "pa_mpjpe_mm", "n_mpjpe_mm": "n_mpjpe_unrooted_mm", "mpjve_mm": "mpjve_mm"
}  # fmt: skip


def settings(words: list[str]) -> dict:
    """Our keys for the arguments of a published run."""
    options = dict(re.findall(r"(-[a-z]+) ([^ ]+)", " ".join(w for w in words if not w.startswith("--"))))
    for flag in ("--subset", "--downsample", "--warmup"):
        if flag in words:
            options[flag] = words[words.index(flag) + 1]
    stride, step = int(options.get("-s", 1)), int(options.get("--downsample", 1))
    return PUBLISHED | {
        "DATASET.OPTIONS": {"dataset": "h36m", "keypoints": options["-k"]},
        "DATASET.SUBJECTS": options["-str"].split(","),
        "DATASET.FLIP": "-no-da" not in words,
        "DATASET.TRAIN_FRAME": step,
        "DATASET.VAL_FRAME": step,
        "TEMPORAL.UNLABELED": options["-sun"].split(",") if "-sun" in options else [],
        "TEMPORAL.WIDTHS": [int(w) for w in options["-arc"].split(",")],
        "TEMPORAL.CHANNELS": int(options["-ch"]),
        "TEMPORAL.CHUNK": stride,
        "TEMPORAL.ACTIONS": [f"{options['-a']}*"] if "-a" in options else [],
        "TEMPORAL.SUBSET": float(options.get("--subset", 1)),
        "TEMPORAL.WARMUP_EPOCHS": int(options.get("--warmup", 1)),
        "TEMPORAL.CAUSAL": "--causal" in words,
        "TEMPORAL.DENSE": "--dense" in words,
        "TEMPORAL.OPTIMIZED": "--disable-optimizations" not in words,
        "TEMPORAL.PROJECTION": "none" if "--no-proj" in words else "linear" if "--linear-projection" in words else "full",
        "TEMPORAL.WEIGHT_BONES": 0.0 if "--no-bone-length" in words else 1.0,
        "TRAIN.BATCH_SIZE": int(options["-b"]) // stride,
        "TRAIN.END_EPOCH": int(options["-e"]),
        "TRAIN.LR_FACTOR": float(options.get("-lrd", 0.95)),
        "TEST.FLIP_TEST": "-no-tta" not in words,
        "TEST.BY_SUBJECT": "--by-subject" in words,
    }


def judge(task, tracks, flip=False):
    data = TrackSamples(tracks, task.pad, task.shift)
    evaluator, plain = task.evaluator(data), task.cfg
    task.cfg = plain.with_values({"TEST.FLIP_TEST": flip})
    with torch.no_grad():
        batch = data.__getitems__([Key(i) for i in range(len(data))])
        evaluator.update(task.eval().predict(batch), batch)
    task.cfg = plain
    task.train()
    return evaluator.compute()


@pytest.mark.parametrize("name", RUNS)
def test_whole_runs_end_with_the_published_numbers(name, root):
    run = RUNS[name]
    cfg = configure(root).with_values(settings(run["args"]))
    semi = name.startswith("semi")
    rel = 2e-3 if semi else 1e-4
    task = build(cfg).train()
    by_rule(task.model.pose, 0.1 if semi else 1.0)
    if semi:
        by_rule(task.model.trajectory, 0.1, 5.0)
    sets, test = task.train_data(), task.eval_data()["valid"].tracks
    assert task.model.pose.receptive_field == run["receptive_field"]
    assert sum(p.numel() for p in task.model.pose.parameters()) == run["params"]
    train = cfg.TRAIN
    optimizer = optim.build_optimizer(task.param_groups(), train)
    per_epoch = -(-len(sets["train"]) // train.BATCH_SIZE)
    batches = training_batches(cfg, sets, 0, per_epoch * train.END_EPOCH, 0, 1, False)
    for epoch in range(train.END_EPOCH):
        task.on_epoch(epoch)
        sizes, values = [], {}
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            optim.set_lr(optimizer, optim.lr_factor(step, train, per_epoch, per_epoch * train.END_EPOCH))
            batch = next(batches)
            losses = task(batch, Step(step, epoch, 0.0))
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()
            sizes.append(len(batch["train"]["id"]))
            for key, value in losses.items():
                values.setdefault(key, []).append(value.item())
        assert np.average(values["pose_m"], weights=sizes) == pytest.approx(run["losses_3d_train"][epoch], rel=rel)
        for split, tracks in (("train_eval", sets["train"].tracks), ("valid", test)):
            scores = judge(task, tracks).metrics
            assert scores["mpjpe_unrooted_mm"] == pytest.approx(1000 * run[f"losses_3d_{split}"][epoch], rel=rel)
            if semi:
                seen = "valid" if split == "valid" else "train_labeled_eval"
                assert scores["trajectory_m"] == pytest.approx(run[f"losses_traj_{split}"][epoch], rel=rel)
                assert scores["reprojection_screen"] == pytest.approx(run[f"losses_2d_{seen}"][epoch], rel=rel)
        if semi:
            assert np.average(values["trajectory"], weights=sizes) == pytest.approx(run["losses_traj_train"][epoch], rel=rel)
    report = judge(task, test, cfg.TEST.FLIP_TEST)
    rows = [row for row in run["final_eval_per_action"] if "mpjpe_mm" in row]
    subjects = ["S9/", "S11/"] if cfg.TEST.BY_SUBJECT else [""]
    names = [subject + row["action"] for subject, row in zip(np.repeat(subjects, len(rows) // len(subjects)), rows, strict=True)]
    assert sorted(names) == sorted(report.per_action["mpjpe_unrooted_mm"])
    for action, row in zip(names, rows, strict=True):
        found = {theirs: report.per_action[ours][action] for theirs, ours in COLUMNS.items()}
        assert found == pytest.approx({key: row[key] for key in COLUMNS}, rel=rel)
    check_sums(task.model.pose, run["model_pos_sum_abs_sum"], rel)


# ------------------------------------------------------------------------------------- whole trainings of ours

SEMI = {"DATASET__SUBJECTS": ["S1"], "TEMPORAL__UNLABELED": ["S5"]}
SHORT = {"TEMPORAL__CHANNELS": 16, "TRAIN__END_EPOCH": 2, "TRAIN__BATCH_SIZE": 128, "DEBUG__FIGURES": 2}


class Stop(Exception):
    """Ends a training where it should be resumed."""


class Stopping(TemporalTask):
    """Stops before its sixth step."""

    def forward(self, batch, step):
        if step.step == 5:
            raise Stop
        return super().forward(batch, step)


@pytest.mark.parametrize("order", ["seeded", "reference"])
def test_a_training_is_resumed_to_the_last_bit_and_judged_again(root, tmp_path, order):
    cfg = configure(root, **SHORT, **SEMI, TEMPORAL__ORDER=order, OUTPUT_DIR=str(tmp_path / "whole"))
    results = commands.train(cfg)
    folder = run_dir.run_path(cfg)
    assert {"mpjpe_mm", "mpjpe_unrooted_action_mean_mm", "mpjve_mm", "trajectory_m", "reprojection_screen"} <= set(results["metrics"])
    assert results["protocol"]["frames_seen"] == 9 and list((folder / "figures").rglob("*"))
    assert results["protocol"]["options"]["exclude"] == keypoints_npz.EXCLUDED  # what is left out unless it is said
    assert "boxes" not in results["protocol"]
    with np.load(folder / "predictions.npz") as file:
        assert file["X_cam"].shape == file["X_cam_true"].shape == (len(file["ids"]), 17, 3)
        assert set(file["subjects"]) == {"S9", "S11"} and file["frames"][0] == 0

    told = restore(folder / run_dir.BEST)  # what a user of the network must know of its training data
    assert (told.fps, told.tangential) == (50.0, "h36m") and told.screen_focal == pytest.approx(2.29, abs=0.02)

    part = cfg.with_values({"OUTPUT_DIR": str(tmp_path / "part"), "TRAIN.SAVE_STEPS": 3})
    world = start(part)
    with pytest.raises(Stop):
        Trainer(part, Stopping(part), run_dir.run_path(part), world).fit()
    commands.train(part.with_values({"TRAIN.RESUME": True}))
    weights = [torch.load(run_dir.run_path(c) / run_dir.FINAL, weights_only=True) for c in (cfg, part)]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])

    judged = commands.validate(cfg.with_values({"MODEL.RESUME": str(folder / run_dir.BEST)}))
    assert judged["metrics"] == pytest.approx(results["metrics"], rel=1e-6)


def test_a_single_last_window_does_not_end_a_training(root, tmp_path):
    cfg = configure(root, **SHORT, TEMPORAL__ORDER="reference", OUTPUT_DIR=str(tmp_path)).with_values({"TRAIN.END_EPOCH": 1})
    count = len(next(iter(build(cfg).train_data().values())))
    batch = max(b for b in range(2, count // 2) if count % b == 1)
    results = commands.train(cfg.with_values({"TRAIN.BATCH_SIZE": batch, "TRAIN.MAX_STEPS": 0, "TRAIN.EVAL_EVERY": 0}))
    assert results["step"] == count // batch


def test_learning_without_labels_needs_no_3d_of_those_people(root):
    """Their poses are not in the batch at all, and what they teach changes the weights."""
    task = build(configure(root, **SEMI, TEMPORAL__CHANNELS=16, TEMPORAL__WARMUP_EPOCHS=0, TEMPORAL__DROPOUT=0.0))
    sets = task.train_data()
    assert set(sets["train"].tracks.subject) == {"S1"} and set(sets["unlabeled"].tracks.subject) == {"S5"}
    batch = {name: data.__getitems__([Key(i) for i in range(8)]) for name, data in sets.items()}
    assert "X_cam" not in batch["unlabeled"] and "camera" in batch["unlabeled"]
    losses = task(batch, Step(0, 0, 0.0))
    assert {"pose_m", "trajectory", "reprojection", "bones_m"} <= set(losses)
    losses["reprojection"].backward()
    grads = {name: p.grad is not None and bool(p.grad.abs().sum() > 0) for name, p in task.model.named_parameters()}
    assert grads["pose.shrink.weight"] and grads["trajectory.shrink.weight"]
    warm = build(task.cfg.with_values({"TEMPORAL.WARMUP_EPOCHS": 1}))
    assert "reprojection" not in warm(batch, Step(0, 0, 0.0)) and "reprojection" in warm(batch, Step(9, 1, 0.5))


@pytest.mark.parametrize("causal", [False, True], ids=["symmetric", "causal"])
def test_the_reprojection_is_compared_with_the_predicted_frame(root, causal):
    """A network that is told the truth has no reprojection error; the published comparison of causal ones is another frame."""
    task = build(configure(root, **SEMI, TEMPORAL__CHANNELS=8, TEMPORAL__CAUSAL=causal, TEMPORAL__CHUNK=4))
    tracks = task.tracks("all", ("S5",))
    data = task.windows(tracks, "unlabeled")
    batch = data.__getitems__([Key(i) for i in range(0, len(data), 3)])
    seen = task.reproject(batch["X_cam"], batch["camera"])
    assert (seen - task.observed(batch["x_screen"], 4)).abs().max() < 2e-4
    published = build(task.cfg.with_values({"TEMPORAL.CAUSAL_TARGET": "reference"}))
    other = (seen - published.observed(batch["x_screen"], 4)).abs().max()
    assert (other > 1e-2) == causal


def test_clips_are_lifted_frame_by_frame_with_their_ends_repeated(root):
    task = build(configure(root, TEMPORAL__CHANNELS=8, TEST__FLIP_TEST=True)).eval()
    x = torch.randn(2, 5, 17, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        lifted = task.lift(x)
        window = torch.cat([x[:, :1]] * 4 + [x] + [x[:, -1:]] * 4, 1)
        mirror = window[:, :, task.flip_in] * torch.tensor([-1.0, 1])
        plain, turned = task.model.pose(window), task.model.pose(mirror)[:, :, task.flip_out] * torch.tensor([-1.0, 1, 1])
    assert lifted.root is None and lifted.X_root.shape == (2, 5, 17, 3)
    assert torch.allclose(lifted.X_root, 500 * (plain + turned), atol=1e-2)
    mirrored = task.lift(x[:, :, task.flip_in] * torch.tensor([-1.0, 1])).X_root[:, :, task.flip_out] * torch.tensor([-1.0, 1, 1])
    assert torch.allclose(mirrored, lifted.X_root, atol=1e-2)


@pytest.mark.parametrize(("values", "message"), [
    ({"TEMPORAL__LAYOUT": "coco17", **SEMI}, "TEMPORAL.UNLABELED: compares projected joints of h36m17 with keypoints of coco17"),
    ({"TEMPORAL__TRAJECTORY": "false", **SEMI}, "TEMPORAL.UNLABELED: needs the trajectory network"),
    ({"TEMPORAL__ORDER": "reference", "TRAIN__ACCUMULATE": 2}, "TRAIN.ACCUMULATE 1"),
    ({"TRAIN__BATCH_SIZE": 1}, "TRAIN.BATCH_SIZE: is 1"),
    ({"MODEL__NUM_JOINTS": 16}, "MODEL.NUM_JOINTS: is 16, but skeleton h36m17 has 17"),
    ({"TEMPORAL__WIDTHS": [3, 2]}, "odd widths"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_data_are_read(tmp_path, values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(configure(tmp_path / "missing", **values))


def test_keypoints_of_another_layout_are_refused(root):
    task = build(configure(root, TEMPORAL__LAYOUT="coco17"))
    with pytest.raises(ConfigError, match="TEMPORAL.LAYOUT: is coco17, but the keypoints are those of h36m17; set it to h36m17"):
        task.train_data()
    with pytest.raises(DataError, match="no subjects"):
        build(configure(root, DATASET__SUBJECTS=["S2"])).train_data()


# ------------------------------------------------------------------------------------------ correction


@pytest.mark.parametrize("causal", [False, True])
def test_a_correction_pulls_wrong_poses_towards_the_keypoints(root, causal, monkeypatch):
    """Poses that were lifted wrongly come nearer to the truth by exact keypoints, and right ones stay."""
    values = {"TEMPORAL__CAUSAL": causal, "TEST__CORRECTION": "camera", "CORRECTION__CAMERA__NOISE": 0.002}
    values["CORRECTION__CAMERA__BONE_MM"] = 0.0  # these poses are drawn joint by joint
    task = build(configure(root, **values)).eval()
    data = task.eval_data()["valid"]
    batch = data.__getitems__([0, 1])
    frames, X = batch["frames"], batch["X_cam"]
    exact = X - X[:, task.root, None]
    for error in (0.0, 40.0):
        lifted = torch.zeros(*frames.shape, *exact.shape[1:])
        offset = torch.randn(exact.shape, generator=torch.Generator().manual_seed(0)) * error
        offset[:, task.root] = 0
        lifted[frames] = exact + offset
        monkeypatch.setattr(task, "lift_padded", lambda x, lifted=lifted: Lift(lifted, None))
        with torch.no_grad():
            pred = task.predict(batch)
        before, after = (value.norm(dim=-1).mean().item() for value in (offset, pred["X_root"] - exact))
        assert after < 0.95 * before if error else after < 1
    report = task.evaluator(data)
    report.update(pred, batch)
    assert sum(report.compute().counts[name] for name in DECISIONS) == len(exact)


def test_a_correction_that_a_task_does_not_have_is_refused(root):
    with pytest.raises(ConfigError, match="TEST.CORRECTION: is projector"):
        build(configure(root, TEST__CORRECTION="projector"))
