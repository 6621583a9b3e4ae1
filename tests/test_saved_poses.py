"""Saved poses corrected by saved 2D poses: as an evaluation corrects them, from the release's files, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from lib.config import defaults
from lib.correction import OnlineCorrector, counts
from lib.dataset.formats import machine_lists
from lib.dataset.formats.machine_files import read_ranges, read_results, write_actions, write_results
from lib.engine import checkpoint, commands, run_dir
from lib.errors import DataError, WeightsError
from lib.models.pose_machine import PoseNormalizer
from lib.prediction import saved_poses
from lib.skeleton import get
from scripts import correct as script
from tests.test_format_machine_lists import made, source  # noqa: F401 (fixtures)
from tests.test_tasks_machine import SMALL
from tests.test_weights_machine import pickled


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose evaluation corrects poses; its ranges of poses are not the published ones."""
    out = tmp_path_factory.mktemp("run")
    settings = SMALL | {"DATASET.ROOT": str(out / "world"), "OUTPUT_DIR": str(out)}
    weights = ""
    for stage in ("lift", "projector"):
        cfg = defaults().with_values(settings | {"MACHINE.STAGE": stage, "EXP_NAME": stage, "MODEL.PRETRAINED": weights,
                                                 "CORRECTION.LR": 1e-3, "CORRECTION.TAU_MM": 0.0,
                                                 "TEST.CORRECTION": "off" if stage == "lift" else "projector"})  # fmt: skip
        commands.train(cfg)
        weights = str(run_dir.run_path(cfg) / run_dir.BEST)
    # What a lifter says about the root is not saved; a trained one says 0.
    state = torch.load(weights, weights_only=False)
    for name in ("weight", "bias"):
        state["model"][f"lifter.fc_final.{name}"][:3] = 0
    checkpoint.save(run_dir.run_path(cfg) / "rooted.pth.tar", state)
    commands.validate(cfg.with_values({"MODEL.RESUME": str(run_dir.run_path(cfg) / "rooted.pth.tar")}))
    return run_dir.run_path(cfg) / "valid-rooted"


@pytest.fixture(scope="module")
def weights(run):
    return run.parent / "rooted.pth.tar"


def test_saved_poses_are_corrected_as_in_the_evaluation(run, weights, tmp_path, capsys):
    out, arguments = tmp_path / "out", [str(run / "predictions.npz"), "--checkpoint", str(weights)]
    assert script.main([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    ends = counts(torch.from_numpy(np.load(out / "corrected.npz")["decision"]))
    told = ", ".join(f"{ends[name]} {name}" for name in ("converged", "stopped", "discarded"))
    assert re.search(rf"{sum(ends.values())} poses corrected \({told}\), \d+\.\d\d ms each", said)
    assert said.splitlines()[0].split()[:3] == ["action", "coarse,", "mm"]
    judged = json.loads((run / "results.json").read_text())["metrics"]
    again = json.loads((out / "results.json").read_text())
    with np.load(run / "predictions.npz") as before, np.load(out / "corrected.npz") as after:
        X = before["X_cam"] - before["X_cam"][:, :1]
        assert np.abs(X - (before["X_regressed"] - before["X_regressed"][:, :1])).max() > 1
        np.testing.assert_allclose(after["X_root"], X, atol=0.1)
        np.testing.assert_allclose(after["reprojection_px"], before["reprojection_px"], atol=0.05)
        assert after["images"].tolist() == before["images"].tolist() and str(after["skeleton"]) == "h36m16"
    for name in ("mpjpe_mm", "coarse_mpjpe_mm", "reprojection_before_px", "reprojection_px"):
        assert again["metrics"][name] == pytest.approx(judged[name], abs=0.05)
    assert script.main([*arguments, "--out", str(out)]) == 2 and "corrected.npz" in capsys.readouterr().err
    assert script.main([*arguments, "--out", str(tmp_path / "other"), "CORRECTION.STEPS", "1", "CORRECTION.LR", "1e-6"]) == 0
    with np.load(tmp_path / "other/corrected.npz") as other:
        assert (other["updates"] == 1).all() and np.abs(other["X_root"] - other["X_regressed"]).max() < 1


def test_2d_poses_of_another_run_are_matched_by_row(run, tmp_path):
    with np.load(run / "predictions.npz") as file:
        arrays = dict(file)
    other = {name: arrays[name] for name in ("ids", "images", "skeleton")} | {"x_img": arrays["x_img"] + 3, "conf": arrays["conf"]}
    np.savez(tmp_path / "other.npz", **other)
    own, found = (saved_poses.read_predictions(run / "predictions.npz", e) for e in (None, tmp_path / "other.npz"))
    np.testing.assert_allclose(((found.x - own.x) * own.px[:, None, None]).numpy(), 3, atol=1e-3)
    np.savez(tmp_path / "other.npz", **other | {"ids": arrays["ids"] + 1})
    with pytest.raises(DataError, match="other rows"):
        saved_poses.read_predictions(run / "predictions.npz", tmp_path / "other.npz")
    np.savez(tmp_path / "old.npz", **{name: value for name, value in arrays.items() if name != "crop_from_img"})
    with pytest.raises(DataError, match="crop_from_img"):
        saved_poses.read_predictions(tmp_path / "old.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ids": np.array(3)}, "ids"), ({"crop_from_img": np.zeros((1, 2, 3), "f4")}, "crop_from_img"),
        ({"X_coarse": np.array("none")}, "X_coarse"), ({"actions": np.arange(2)}, "actions"), ({"skeleton": np.array("robot")}, "robot"),
    ],
    ids=["no row", "another number of crops", "a text for poses", "numbers for texts", "unknown joints"],
)  # fmt: skip
def test_damaged_predictions_are_told_by_array(change, said, tmp_path):
    X = np.ones((2, 17, 3), "f4")
    arrays = {"ids": np.arange(2), "X_coarse": X, "x_img": X[..., :2], "skeleton": np.array("h36m17"), "actions": np.array(["a", "b"]),
              "crop_from_img": np.tile(np.eye(2, 3, dtype="f4"), (2, 1, 1))}  # fmt: skip
    path = tmp_path / "predictions.npz"
    np.savez(path, **arrays)
    assert saved_poses.read_predictions(path).x.shape == (2, 17, 2) and set(saved_poses.as_saved(path)[1]) == {"X_coarse"}
    np.savez(path, **arrays | change)
    with pytest.raises(DataError, match=f"{path.name}: .*{said}"):
        saved_poses.read_predictions(path)
    np.save(tmp_path / "array.npy", X)
    with pytest.raises(DataError, match="array.npy: cannot be read"):
        saved_poses.read_predictions(tmp_path / "array.npy")


def test_joints_of_another_lifter_are_matched_by_name():
    h36m = get("h36m17")
    X = 100 * torch.randn(3, 17, 3)
    poses = saved_poses.SavedPoses("mine", X - X[:, :1], h36m, torch.rand(3, 17, 2), torch.rand(3, 17), torch.ones(3), X - X[:, :1])
    found, release = poses.to_skeleton(get("h36m16")), get("h36m16")
    for joint in ("r_wrist", "head", "spine"):
        a, b = release.index(joint), h36m.index(joint)
        assert torch.equal(found.X[:, a], poses.X[:, b]) and torch.equal(found.x[:, a], poses.x[:, b])
        assert torch.equal(found.conf[:, a], poses.conf[:, b]) and torch.equal(found.truth[:, a], poses.truth[:, b])
    with pytest.raises(DataError, match="mine: poses of coco17 have no"):
        saved_poses.SavedPoses("mine", X, get("coco17")).to_skeleton(release)


def test_stages_become_the_files_of_the_release(run, tmp_path, capsys):
    """Without a projector nothing changes but the form; actions of Human3.6M have numbers, others are refused."""
    with np.load(run / "predictions.npz") as file:
        arrays = dict(file)
    walking = tmp_path / "walking.npz"
    np.savez(walking, **arrays | {"actions": np.full(len(arrays["ids"]), "Walking")})
    assert script.main([str(walking), "--form", "csv", "--out", str(tmp_path / "csv")]) == 0
    names = sorted(path.name for path in (tmp_path / "csv").iterdir())
    assert len(names) == 3 and all(name.endswith("_unnorm.csv") for name in names)
    refined = read_results(next((tmp_path / "csv").glob("*_refined_unnorm.csv")))
    np.testing.assert_allclose(refined, arrays["X_cam"] - arrays["X_cam"][:, :1], atol=1e-2)
    assert script.main([str(walking), "--form", "csv", "--out", str(tmp_path / "csv")]) == 2
    np.savez(walking, **arrays | {"actions": np.full(len(arrays["ids"]), "Fly")})
    assert script.main([str(walking), "--form", "csv", "--out", str(tmp_path / "2")]) == 2
    assert "Fly" in capsys.readouterr().err


def test_the_releases_files_are_corrected_by_its_pickle(made, tmp_path, capsys):  # noqa: F811
    root = shutil.copytree(made, tmp_path / "lists")
    truth = machine_lists.read_coarse(root, _saved(root, "p3d", lambda X: X + 20 * np.sign(X), "_norm.csv"))
    X, ranges = truth.X, read_ranges(root / machine_lists.RANGES)
    np.testing.assert_allclose(truth.truth, np.where(np.arange(16)[:, None] > 0, X - 20 * np.sign(X), 0), atol=0.5)
    path, regressor, projector = pickled(tmp_path)
    arguments = [str(root), "--coarse", "p3d/result{action}_norm.csv", "--checkpoint", str(path), "--out", str(tmp_path / "out")]
    assert script.main([*arguments, "CORRECTION.LR", "1e-3", "CORRECTION.TAU_MM", "0", "--form", "npz", "csv"]) == 0
    assert "refined, mm" in capsys.readouterr().out
    to_mm, to_shares = PoseNormalizer().denormalize, PoseNormalizer().normalize
    corrector = OnlineCorrector(regressor, projector, to_mm, lr=1e-3, tau_mm=np.inf)
    conf = torch.from_numpy((truth.x != 0).any(-1)).float()
    expected = corrector(to_shares(torch.from_numpy(X).float()), torch.from_numpy(truth.x).float(), conf)
    with np.load(tmp_path / "out/corrected.npz") as found:
        np.testing.assert_allclose(found["X_root"], expected.X_root, atol=0.1)
        rows = found["actions"] == "Walking"
        numbers = sorted(int(path.name[6:].partition("_")[0]) for path in (tmp_path / "out").glob("*_refined_unnorm.csv"))
        walking = read_results(tmp_path / f"out/result{max(numbers)}_refined_unnorm.csv")
        np.testing.assert_allclose(walking, found["X_root"][rows], atol=1e-2)
    for number in numbers:  # 2D joints of another source
        count = len(read_results(root / f"p3d/result{number}_norm.csv"))
        write_results(root / f"result{number}_norm.csv", np.full((count, 16, 2), 0.5))
    other = saved_poses.read_lists(root, "p3d/result{action}_norm.csv", "result{action}_norm.csv")
    assert (other.x == 0.5).all() and ranges.high.shape == (16, 3)


def test_the_pickle_of_seventeen_joints_has_the_release_s_ranges_and_others_have_none(tmp_path):
    path, *_ = pickled(tmp_path, joints=17)
    found, nose = saved_poses.SavedProjector.read(path), get("h36m17").index("nose")
    assert found.skeleton.name == "h36m17"
    assert found.normalizer.high[nose].tolist() == pytest.approx([598.2568057, 471.3413488, 589.6111938])
    X = 300 * torch.randn(4, 17, 3)
    poses = saved_poses.SavedPoses("mine", X - X[:, :1], found.skeleton, torch.rand(4, 17, 2), torch.ones(4, 17), torch.ones(4))
    assert found.correct(poses).X_root.shape == (4, 17, 3)
    path, *_ = pickled(tmp_path, joints=14)
    with pytest.raises(WeightsError, match=f"{path.name}: corrects poses of 14 joints"):
        saved_poses.SavedProjector.read(path)


def _saved(root, folder, change, ending) -> str:
    """Changed truth as CSV files; the pattern of their names."""
    ann = machine_lists.read(root, "actions", side=64)
    X = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
    ranges = read_ranges(root / machine_lists.RANGES)
    write_actions(root / folder, change(X - X[:, :1]), [ann.action(i) for i in range(len(ann))], "", ranges)
    return folder + "/result{action}" + ending


def test_what_has_no_projector_is_refused(run, weights, tmp_path):
    with pytest.raises(WeightsError, match="not learned"):
        saved_poses.SavedProjector.read(run.parents[1] / "lift" / run_dir.BEST)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="regressor or projector"):
        saved_poses.SavedProjector.read(tmp_path / "other.pth")
    blind = tmp_path / "blind.npz"
    with np.load(run / "predictions.npz") as file:
        np.savez(blind, **{name: file[name] for name in file.files if name != "x_img"})
    with pytest.raises(DataError, match="--evidence"):
        saved_poses.SavedProjector.read(weights).correct(saved_poses.read_predictions(blind))


@pytest.mark.parametrize(
    "arguments",
    [["p.npz"], ["p.npz", "--checkpoint", "c", "--coarse", "x"], [".", "--checkpoint", "c"], ["p.npz", "--form", "csv", "--odd"]],
)
def test_options_that_do_not_fit_are_refused(arguments):
    with pytest.raises(SystemExit):
        script.main(arguments)
