"""The refinement unit: parity with the release, pairs in both forms, statistics in the checkpoint, training to the end."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.config import defaults, load
from lib.engine import checkpoint, commands, optim, run_dir
from lib.engine.batches import overfit_config
from lib.errors import ConfigError, DataError, RunError, WeightsError
from lib.skeleton import convert, get
from lib.tasks import Step, build
from lib.tasks.restore import restore
from lib.weights.load import load_into, read
from refiner import published
from refiner.data import PairSamples, Statistics, dump, mirrored, write_published
from refiner.data import read as read_pairs
from refiner.main import NEEDED
from refiner.model import Refiner
from refiner.task import RefineEvaluator, RefineTask, without_root_values
from tests.conftest import ROOT, golden, golden_json, recorded_state

RNG = np.random.default_rng(3)
BASE = RNG.normal(size=(17, 3)) * 300
BASE = (BASE + mirrored(BASE, get("h36m17").flip)) / 2  # both sides alike, as people are


def poses(n: int, joints: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true poses in a camera (n,J,3) mm: the truth is larger by a fifth."""
    inp = BASE[:joints] + RNG.normal(size=(n, joints, 3)) * 20
    out = inp * 1.2 + RNG.normal(size=(n, joints, 3)) * 2
    return (inp + [0, 0, 4000]).astype(np.float32), (out + [0, 0, 4000]).astype(np.float32)


def write_predictions(path: Path, n: int = 96, joints: str = "h36m17", **changes) -> Path:
    inp, out = poses(n, get(joints).num)
    subjects = np.array([f"S{1 + i * 4 // n}" for i in range(n)])
    arrays = {
        "ids": np.arange(n), "X_cam": inp, "X_cam_true": out, "X_valid": np.ones(inp.shape[:2], bool),
        "skeleton": np.array(joints), "subjects": subjects, "actions": np.array(["Walking", "Eating"])[np.arange(n) % 2],
    } | changes  # fmt: skip
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.fixture
def config(tmp_path):
    """A small experiment on random pairs."""
    write_predictions(tmp_path / "train.npz")
    write_predictions(tmp_path / "valid.npz", 40)

    def make(**changes):
        settings = {
            "TASK": "refine", "MODEL.NAME": "refiner", "REFINE.TRAIN": str(tmp_path / "train.npz"),
            "REFINE.VALID": str(tmp_path / "valid.npz"), "REFINE.WIDTH": 32, "REFINE.DROPOUT": 0.1, "DATASET.FLIP": False,
            "TRAIN.BATCH_SIZE": 32, "TRAIN.END_EPOCH": 40, "TRAIN.SCHEDULE": "cosine", "TRAIN.EVAL_EVERY": 0, "TRAIN.CLIP": 1.0,
            "WORKERS": 0, "DEVICE": "cpu", "OUTPUT_DIR": str(tmp_path / "out"), "EXP_NAME": "refine",
        }  # fmt: skip
        return defaults().with_values(settings | changes)

    return make


# --------------------------------------------------------------------------------------------------------- the network


def published_weights(model: torch.nn.Module) -> None:
    model.load_state_dict(recorded_state(model, lambda key, inputs: 0.05))


def test_network_has_the_names_and_numbers_of_the_release():
    model, recorded = Refiner().eval(), golden("epipolarpose", "refiner_45")
    keys = list(model.state_dict())
    assert len(keys) == 74
    assert keys[:3] == ["linear_stages.0.w1.weight", "linear_stages.0.w1.bias", "linear_stages.0.w2.weight"]
    assert [key for key in keys if "." in key and not key.startswith("linear_stages")][:2] == ["w1.weight", "w1.bias"]
    assert not any(key.startswith(("batch_norm2", "batch_norm4")) for key in keys)
    published_weights(model)
    with torch.no_grad():
        outputs = model(torch.from_numpy(recorded["input"]))
    for output, name in zip(outputs, ("p1", "p2"), strict=True):
        np.testing.assert_allclose(output.numpy(), recorded[name], atol=1e-4)


def test_residual_network_starts_as_the_identity_and_leaky_differs():
    x = torch.randn(4, 45)
    p1, p2 = Refiner(width=16, residual=True).eval()(x)
    assert torch.equal(p1, x) and torch.equal(p2, x)
    plain, leaky = Refiner(width=16).eval(), Refiner(width=16, leaky=True).eval()
    leaky.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain(x)[1], leaky(x)[1])


def test_evaluation_gives_the_numbers_of_the_release():
    z, expected = golden("epipolarpose", "h36m_evaluate"), golden_json("epipolarpose", "refiner_evaluate")
    pred, gt = (torch.from_numpy(v).view(-1, 15, 3).double() for v in (z["ref_pred_norm"] * z["ref_std"] + z["ref_mean"], z["ref_labels"]))
    names = [joint for joint in get("mpii16").joints if joint != "pelvis"]
    values = {key: value.mean().item() for key, value in without_root_values(pred, gt, None, names).items()}
    names = {
        "hm36_17j": "mpjpe", "hm36_17j_align": "pa_mpjpe", "hm36_17j_14": "mpjpe13", "hm36_17j_14_al": "pa_mpjpe13",
        "hm36_17j_x": "mpjpe_x", "hm36_17j_y": "mpjpe_y", "hm36_17j_z": "mpjpe_z",
    }  # fmt: skip
    for theirs, ours in names.items():
        assert values[f"{ours}_without_root_mm"] == pytest.approx(expected[theirs], rel=1e-6), theirs


def test_before_and_after_count_the_same_joints():
    inp, out = (torch.from_numpy(X) for X in poses(6))
    valid = torch.ones(6, 17, dtype=torch.bool)
    valid[0, 3] = False
    evaluator = RefineEvaluator("h36m17")
    evaluator.update({"X_cam": inp}, {"id": torch.arange(6), "X_input": inp, "X_cam": out, "X_valid": valid})
    report = evaluator.compute()
    metrics = report.metrics
    assert report.counts["joints_a_pose_with_its_root"] == 17
    for name in RefineEvaluator.BEFORE:
        assert metrics[f"input_{name}"] == metrics[name]
    error = ((inp - inp[:, :1]) - (out - out[:, :1])).norm(dim=-1)
    error[0, 3] = torch.nan
    assert metrics["mpjpe_mm"] == pytest.approx(error.nanmean(1).mean().item(), rel=1e-6)
    assert metrics["mpjpe_without_root_mm"] == pytest.approx(error[:, 1:].nanmean(1).mean().item(), rel=1e-6)


# ----------------------------------------------------------------------------------------------------------- the pairs


def test_predictions_become_root_relative_pairs(tmp_path):
    valid = np.ones((96, 17), bool)
    valid[0, 0], valid[1, 5] = False, False
    pairs = read_pairs(write_predictions(tmp_path / "p.npz", X_valid=valid))
    assert len(pairs) == 95 and pairs.skeleton == "h36m17"  # without the one whose root is unknown
    assert (pairs.inp[:, 0] == 0).all() and (pairs.out[:, 0] == 0).all() and not pairs.valid[0, 5]
    assert np.allclose(pairs.inp_root[:, 2], 4000, atol=1500)
    assert set(pairs.subjects) == {"S1", "S2", "S3", "S4"} and set(pairs.of_subjects(["S2"]).subjects) == {"S2"}
    assert set(pairs.of_subjects(["S2"], kept=False).subjects) == {"S1", "S3", "S4"}
    with pytest.raises(DataError, match="no subject 'S9'"):
        pairs.of_subjects(["S9"])


def test_published_form_there_and_back(tmp_path):
    """h36m17 -> MPII order in the pickle -> the same poses; joints that MPII's order lacks cannot come back."""
    pairs = read_pairs(write_predictions(tmp_path / "p.npz"))
    assert write_published(pairs, tmp_path / "train.pkl") == 96
    with open(tmp_path / "train.pkl", "rb") as file:
        plain = pickle.load(file)  # our own file, as the release opens it
    hip = get("mpii16").index("pelvis")
    assert plain["inp"].shape == plain["out"].shape == (96, 16, 3) and (plain["inp"][:, hip] == 0).all()
    assert b"numpy._core" not in (tmp_path / "train.pkl").read_bytes()
    again = read_pairs(tmp_path / "train.pkl")
    expected, present = convert(pairs.inp, "h36m17", "mpii16")
    assert again.skeleton == "mpii16" and present.all()
    np.testing.assert_allclose(again.inp, expected, atol=1e-3)
    with pytest.raises(DataError, match="has no spine"):
        read_pairs(tmp_path / "train.pkl", "h36m17")
    dump({"inp": plain["inp"].reshape(96, 48), "out": plain["out"].reshape(96, 48).astype(np.float64)}, tmp_path / "flat.pkl")
    np.testing.assert_array_equal(read_pairs(tmp_path / "flat.pkl").out, again.out)
    with pytest.raises(DataError, match="never overwritten"):
        write_published(pairs, tmp_path / "train.pkl")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch parallax-was-here",)


@pytest.mark.parametrize(("content", "message"), [
    ({"inp": Hostile(), "out": 1}, "wants to call .*system"),
    ({"inp": np.zeros((4, 16, 3))}, r"a dict with inp; expected a dict \{inp, out\}"),
    ({"inp": np.zeros((4, 45)), "out": np.zeros((4, 45))}, r"inp is float64 \(4, 45\); expected"),
    ({"inp": np.zeros((4, 48)), "out": np.zeros((5, 48))}, "4 inputs, but 5 outputs"),
    ({"inp": np.full((4, 48), np.nan), "out": np.zeros((4, 48))}, "4 of 4 predicted poses hold NaN"),
    ([1, 2], "holds list; expected a dict"),
])  # fmt: skip
def test_pickles_that_are_refused(tmp_path, content, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        read_pairs(path)
    assert not Path("parallax-was-here").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"X_cam": None}, "no X_cam: expected 3D predictions"),
    ({"X_valid": np.zeros((96, 17), bool)}, "no pair whose root has a truth"),
    ({"skeleton": None}, "does not name its skeleton"),
    ({"skeleton": np.array("mpii16")}, r"expected \(96, 16, 3\)"),
])  # fmt: skip
def test_predictions_that_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_pairs(write_predictions(tmp_path / "p.npz", **changes))
    with pytest.raises(DataError, match="no such file; write it with `python refiner/main.py --mode build`"):
        read_pairs(tmp_path / "other.npz")


def test_samples_are_functions_of_their_key(tmp_path):
    pairs = read_pairs(write_predictions(tmp_path / "p.npz"))
    plain, varied = PairSamples(pairs), PairSamples(pairs, noise_mm=10, joint_drop=0.3, flip_prob=0.5, seed=4)
    keys = [(i, 2) for i in range(40)]
    batch = varied.__getitems__(keys)
    one = varied[keys[7]]
    assert all(torch.equal(batch[name][7], one[name]) for name in batch)
    assert not torch.equal(varied[7, 3]["X_in"], one["X_in"])
    assert 0.15 < 1 - batch["kept"].float().mean() < 0.45
    still = plain.__getitems__(keys)
    flip = torch.from_numpy(get("h36m17").flip)
    turned = mirrored(torch.from_numpy(pairs.out[:40]), flip)[:, 1:]
    is_flipped = (batch["X_out"] - turned).abs().amax((1, 2)) < 1e-3
    assert 8 < is_flipped.sum() < 32 and torch.equal(batch["X_out"][~is_flipped], still["X_out"][~is_flipped])
    noise = (batch["X_in"] - still["X_in"])[~is_flipped]
    assert 9 < noise.std() < 11


# ---------------------------------------------------------------------------------------------------------- the training


def test_training_improves_unseen_pairs_and_keeps_its_statistics(config):
    cfg = config()
    results = commands.train(cfg)["metrics"]
    assert results["mpjpe_mm"] < 0.7 * results["input_mpjpe_mm"]
    folder = run_dir.run_path(cfg)
    extra = checkpoint.load(folder / run_dir.BEST)["task_extra"]
    expected = Statistics.of(read_pairs(cfg.REFINE.TRAIN))
    assert extra.keys() == {"input_mean", "input_std", "label_mean", "label_std"}
    assert torch.equal(extra["label_mean"], expected.label_mean) and torch.equal(extra["input_std"], expected.input_std)
    # judged with the checkpoint's own statistics: the training pairs are not needed again
    judged = commands.validate(cfg.with_values({"REFINE.TRAIN": ""}))["metrics"]
    assert judged == results
    with np.load(folder / "valid-model_best" / "predictions.npz") as file:
        assert file["X_cam"].shape == file["X_input"].shape == (40, 17, 3)
    task = restore(folder / run_dir.BEST)
    assert task.has_statistics and task.refine(torch.zeros(2, 17, 3)).shape == (2, 17, 3)


@pytest.mark.parametrize("changes", [
    {"REFINE.RESIDUAL": True, "TEST.FLIP_TEST": True}, {"REFINE.JOINT_DROP": 0.1, "REFINE.NOISE_MM": 5.0, "DATASET.FLIP": True},
])  # fmt: skip
def test_options_train(config, changes):
    results = commands.train(config(**changes))["metrics"]
    assert results["mpjpe_mm"] < 0.8 * results["input_mpjpe_mm"]


def test_residual_network_returns_its_input_before_training(config):
    """Shared statistics make equal numbers equal poses."""
    task = build(config(**{"REFINE.RESIDUAL": True})).eval()
    task.train_data()
    batch = task.eval_data()["valid"].__getitems__(range(5))
    with torch.no_grad():
        pred = task.predict(batch)
    assert torch.allclose(pred["X_cam"], batch["X_input"], atol=1e-2)


def test_loss_ignores_joints_without_truth(config):
    task = build(config(**{"REFINE.DROPOUT": 0.0}))
    data = task.train_data()["train"]
    batch = data.__getitems__([(i, 0) for i in range(8)])
    batch["valid"][:, 3] = False
    other = dict(batch, X_out=batch["X_out"].clone())
    other["X_out"][:, 3] += 1000
    assert task({"train": batch}, Step(0, 0, 0.0))["total"] == task({"train": other}, Step(0, 0, 0.0))["total"]


def test_resume_is_exact(config):
    noisy = {"REFINE.NOISE_MM": 10.0, "TRAIN.END_EPOCH": 4, "TRAIN.SCHEDULE": "staircase"}
    whole, halves = config(**noisy, EXP_NAME="whole"), config(**noisy, EXP_NAME="halves")
    commands.train(whole)
    commands.train(halves.with_values({"TRAIN.END_EPOCH": 2}))
    commands.train(halves.with_values({"TRAIN.RESUME": True}))
    first, second = (torch.load(run_dir.run_path(c) / run_dir.FINAL, weights_only=True) for c in (whole, halves))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_held_out_subjects_are_judged_not_trained_on(config):
    task = build(config(**{"REFINE.VALID": "", "REFINE.HOLDOUT": ["S2", "S4"]}))
    assert set(task.train_data()["train"].pairs.subjects) == {"S1", "S3"}
    assert set(task.eval_data()["valid"].pairs.subjects) == {"S2", "S4"}


def test_staircase_schedule_is_that_of_the_release():
    train = load(ROOT / "experiments" / "refiner" / "train.yaml").TRAIN
    factors = [optim.lr_factor(step, train, 5000, 10**6) for step in (0, 99_999, 100_000, 250_000)]
    assert factors == pytest.approx([1, 1, 0.96, 0.96**2])


def test_mistakes_name_the_key(config):
    with pytest.raises(ConfigError, match="MODEL.NAME: is pose3d_resnet.*set it to refiner"):
        build(config(**{"MODEL.NAME": "pose3d_resnet"}))
    with pytest.raises(ConfigError, match="REFINE.TRAIN: is empty"):
        build(config(**{"REFINE.TRAIN": ""})).train_data()
    with pytest.raises(ConfigError, match="REFINE.VALID: is empty"):
        build(config(**{"REFINE.VALID": ""})).eval_data()
    with pytest.raises(ConfigError, match="REFINE.NORM: is empty, and these weights come without"):
        build(config(**{"REFINE.TRAIN": ""})).eval_data()
    with pytest.raises(DataError, match="has no nose.*DATASET.SKELETON"):
        build(config(**{"DATASET.SKELETON": "coco17", "REFINE.TRAIN": str(write_mpii(config)), "MODEL.NUM_JOINTS": 17})).train_data()


def write_mpii(config) -> Path:
    return write_predictions(Path(config().OUTPUT_DIR).parent / "mpii.npz", joints="mpii16")


# ------------------------------------------------------------------------------------------------------ published weights


def test_published_checkpoint_is_judged_with_its_norm_file(config, tmp_path):
    """{epoch, lr, step, err, state_dict, optimizer} and norm.pkl, written and read; they mean the same network."""
    mpii = {"DATASET.SKELETON": "mpii16", "MODEL.NUM_JOINTS": 16}
    cfg = config(**mpii)
    expected = commands.train(cfg)["metrics"]
    folder = run_dir.run_path(cfg)
    published.export(folder / run_dir.LAST, tmp_path / "release" / "refiner.pth.tar")
    raw = torch.load(tmp_path / "release" / "refiner.pth.tar", weights_only=True)
    assert list(raw) == ["epoch", "lr", "step", "err", "state_dict", "optimizer"]
    assert raw["epoch"] == 40 and raw["step"] == 120 and list(raw["state_dict"]) == list(Refiner(width=32).state_dict())
    torch.optim.Adam(Refiner(width=32).parameters()).load_state_dict(raw["optimizer"])
    found = read(tmp_path / "release" / "refiner.pth.tar")
    assert found.kind == "refiner"
    load_into(Refiner(width=32), found, strict=True)
    release = {"MODEL.RESUME": str(tmp_path / "release" / "refiner.pth.tar"), "REFINE.NORM": str(tmp_path / "release" / "norm.pkl")}
    judged = commands.validate(cfg.with_values(release | {"REFINE.TRAIN": "", "EXP_NAME": "release"}))["metrics"]
    assert judged == expected
    with pytest.raises(DataError, match="never overwritten"):
        published.export(folder / run_dir.LAST, tmp_path / "release" / "other.pth.tar")  # norm.pkl is there


def test_norm_files_that_are_refused(tmp_path):
    dump(tuple(np.ones(48) for _ in range(4)), tmp_path / "norm.pkl")
    with pytest.raises(DataError, match="four arrays of 45 numbers"):
        Statistics.read(tmp_path / "norm.pkl", 45)
    dump({"mean": 1}, tmp_path / "dict.pkl")
    with pytest.raises(DataError, match="holds dict; expected a tuple"):
        Statistics.read(tmp_path / "dict.pkl", 45)
    with pytest.raises(WeightsError, match="no checkpoint of a refiner"):
        torch.save(Refiner(width=8).state_dict(), tmp_path / "bare.pth")
        published.export(tmp_path / "bare.pth", tmp_path / "out.pth.tar")


def test_a_residual_network_is_not_exported_as_something_else(config, tmp_path):
    cfg = config(**{"REFINE.RESIDUAL": True, "TRAIN.MAX_STEPS": 1})
    commands.train(cfg)
    with pytest.raises(WeightsError, match="train with REFINE.RESIDUAL false"):
        published.export(run_dir.run_path(cfg) / run_dir.BEST, tmp_path / "out.pth.tar")


# ---------------------------------------------------------------------------------------------------- pairs from a real run


def test_build_predicts_both_splits_of_a_run(tmp_path):
    """World -> student of one step -> pairs -> a refiner of one epoch."""
    small = {
        "SYNTH.PRETRAIN": 0, "SYNTH.TRAIN": 4, "SYNTH.VALID": 2, "SYNTH.SIZE": [64, 64], "MODEL.IMAGE_SIZE": [32, 32],
        "MODEL.DEPTH_RES": 8, "MODEL.EXTRA.NUM_LAYERS": 18, "MODEL.EXTRA.NUM_STAGES": 3, "MODEL.EXTRA.NUM_DECONV_LAYERS": 2,
        "MODEL.EXTRA.NUM_DECONV_FILTERS": [8, 8], "MODEL.EXTRA.NUM_DECONV_KERNELS": [4, 4], "MODEL.INIT_WEIGHTS": False,
        "TRAIN.BATCH_SIZE": 4, "TRAIN.MAX_STEPS": 1, "WORKERS": 0, "DATASET.ROOT": str(tmp_path / "world"),
        "OUTPUT_DIR": str(tmp_path / "out"), "EXP_NAME": "student",
    }  # fmt: skip
    cfg = defaults().with_values(small)
    commands.train(cfg)
    before = {path: path.read_bytes() for path in run_dir.run_path(cfg).rglob("*.json")}
    published.build_pairs(run_dir.run_path(cfg), tmp_path / "pairs", ["TEST.FLIP_TEST", "true"], pickle=True)
    assert {p.name for p in (tmp_path / "pairs").iterdir()} == {"train.npz", "valid.npz", "train.pkl", "valid.pkl"}
    assert {path: path.read_bytes() for path in before} == before  # the run itself is untouched
    train, valid = (read_pairs(tmp_path / "pairs" / f"{split}.npz") for split in ("train", "valid"))
    assert len(train) == 16 and len(valid) == 8
    assert set(train.subjects) <= {"S1", "S5", "S6", "S7", "S8"} and set(valid.subjects) <= {"S9", "S11"}
    with pytest.raises(DataError, match="never overwritten"):
        published.build_pairs(run_dir.run_path(cfg), tmp_path / "pairs")
    with pytest.raises(RunError, match="give the run directory"):
        published.build_pairs(tmp_path, tmp_path / "other")
    refine = load(ROOT / "experiments" / "synthetic" / "refine.yaml").with_values({
        "REFINE.TRAIN": str(tmp_path / "pairs" / "train.npz"), "REFINE.VALID": str(tmp_path / "pairs" / "valid.npz"),
        "REFINE.WIDTH": 16, "TRAIN.BATCH_SIZE": 8, "TRAIN.END_EPOCH": 1, "OUTPUT_DIR": str(tmp_path / "out"),
    })  # fmt: skip
    assert {"mpjpe_mm", "input_mpjpe_mm", "mpjpe_without_root_mm"} <= commands.train(refine)["metrics"].keys()


def test_modes_are_documented():
    text = (ROOT / "refiner" / "README.md").read_text() + (ROOT / "refiner" / "main.py").read_text()
    assert all(f"--mode {mode}" in text for mode in NEEDED)


def test_overfit_judges_the_pairs_that_are_learned_as_they_are(config):
    cfg = config(**{"REFINE.HOLDOUT": ["S2"], "REFINE.NOISE_MM": 20.0, "REFINE.JOINT_DROP": 0.2})
    task = build(overfit_config(cfg, RefineTask.overfit(cfg)))
    train, valid = task.train_data()["train"], task.eval_data()["valid"]
    first, same = train.__getitems__([(i, 0) for i in range(8)]), valid.__getitems__(list(range(8)))
    assert len(train) == len(valid) and all(torch.equal(first[name], same[name]) for name in ("X_in", "X_input", "X_cam", "kept"))
    assert task.protocol()["split"] == cfg.REFINE.TRAIN
