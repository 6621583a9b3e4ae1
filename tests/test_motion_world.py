"""Motions without images: the embedded world's and real ones, filmed by Human3.6M's cameras and a detector that errs."""

import json

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.config import load
from lib.dataset.formats import h36m_constants, keypoints_npz
from lib.errors import DataError
from lib.synthetic import mocap, stage
from lib.synthetic.actions import ACTIONS
from lib.synthetic.body import SHARES
from lib.synthetic.detector import TrackNoise, bursts, detect_tracks, lasting
from lib.tasks.mocap import prepare_mocap
from lib.tasks.world import ARCHIVES, MARKER, ensure_motion
from scripts import prepare, synth
from tests.conftest import ROOT

SECONDS = 28.0  # 1 s of every trial
RIGS = {name: h36m_constants.cameras(name) for name in stage.subjects()}
H36M = skeletons.get("h36m17")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion")
    ensure_motion(root, SECONDS)
    return root


def joints(*names: str) -> list[int]:
    return [H36M.joints.index(name) for name in names]


# -------------------------------------------------------------------------------------------------- the embedded world


def test_archives_hold_all_subjects_and_actions(world):
    train, valid = (keypoints_npz.read(world, split, "h36m", "gt") for split in ("train", "valid"))
    assert set(train.subject) == {"S1", "S5", "S6", "S7", "S8"} and set(valid.subject) == {"S9", "S11"}
    assert set(train.base_action()) == set(ACTIONS) == set(valid.base_action())
    assert len(train) == 5 * len(ACTIONS) * 2 * 4 and (train.lengths == 50).all() and train.fps == 50 and train.has_3d.all()
    assert train.layout == train.skeleton == "h36m17" and train.tangential == "h36m"


def test_exact_keypoints_are_the_projected_poses(world):
    tracks = keypoints_npz.read(world, "all", "h36m", "gt")
    cameras = tracks.cameras[torch.from_numpy(tracks.camera[tracks.track].astype(np.int64))]
    x = cameras.project_cam(torch.from_numpy(tracks.X_cam).double(), tangential=tracks.tangential).numpy()
    assert np.abs(x - tracks.keypoints).max() < 0.01
    wrong = cameras.project_cam(torch.from_numpy(tracks.X_cam).double(), tangential="opencv").numpy()
    assert np.abs(wrong - tracks.keypoints).max() > 0.05  # the test sees which lens formula was used


def test_people_are_in_view_of_all_cameras_and_stand_on_the_floor(world):
    tracks = keypoints_npz.read(world, "all", "h36m", "gt")
    size = tracks.observing().size.numpy()[tracks.track][:, None]
    inside = ((tracks.keypoints > 0) & (tracks.keypoints < size)).all(-1)
    for view in range(4):
        assert inside[tracks.view[tracks.track] == view].mean() >= 0.95
    with np.load(world / ARCHIVES[0], allow_pickle=True) as file:
        positions = file["positions_3d"].item()
    for actions in positions.values():
        X = np.concatenate(list(actions.values()))
        assert X.dtype == np.float32 and 0.04 < X[..., 2].min() < 0.12 and 1.4 < X[..., 2].max() < 2.7  # m; ankles, raised hands
    walk = positions["S1"]["Walking 1"]
    ahead = np.cross(walk[:, joints("l_hip")[0]] - walk[:, joints("r_hip")[0]], [0, 0, 1])  # y left, z up: x forward
    moved = np.diff(walk[:, 0], axis=0)
    assert (ahead[1:] * moved).sum(-1).mean() > 0, "people walk forwards"


def test_bodies_differ_and_stay(world):
    with np.load(world / ARCHIVES[0], allow_pickle=True) as file:
        positions = file["positions_3d"].item()
    thigh = []
    for actions in positions.values():
        X = np.concatenate(list(actions.values()))
        length = np.linalg.norm(np.subtract(*(X[:, j] for j in joints("l_hip", "l_knee"))), axis=-1)
        assert np.ptp(length) < 1e-4
        thigh.append(length.mean())
    assert np.ptp(thigh) > 0.02 and len(np.unique(np.round(thigh, 4))) == 7


def test_the_same_seed_makes_the_same_and_another_another(world):
    rig = {"S9": RIGS["S9"]}
    first = next(stage.clips(rig, 0, SECONDS))
    with np.load(world / ARCHIVES[0], allow_pickle=True) as file:
        np.testing.assert_array_equal(file["positions_3d"].item()["S9"][first.action], (first.X_world / 1000).astype(np.float32))
    noisy = keypoints_npz.read(world, "valid", "h36m", "noisy")
    film = stage.film(first, RIGS["S9"], stage.generator(0, "detector", "S9", first.action))
    here = noisy.select((noisy.subject == "S9") & (noisy.action == first.action))
    np.testing.assert_array_equal(here.keypoints.reshape(4, -1, 17, 2), film.x_noisy)
    assert np.abs(next(stage.clips(rig, 1, SECONDS)).X_world - first.X_world).max() > 10


def test_a_second_call_keeps_and_other_data_are_refused(world, tmp_path):
    stamps = {name: (world / name).stat().st_mtime_ns for name in (*ARCHIVES, MARKER)}
    ensure_motion(world, SECONDS)
    assert stamps == {name: (world / name).stat().st_mtime_ns for name in stamps}
    with pytest.raises(DataError, match="another world: seconds"):
        ensure_motion(world, 56.0)
    (tmp_path / ARCHIVES[1]).write_bytes(b"mine")
    with pytest.raises(DataError, match="SYNTH.NATIVE false"):
        ensure_motion(tmp_path, SECONDS)
    assert (tmp_path / ARCHIVES[1]).read_bytes() == b"mine" and not (tmp_path / MARKER).exists()
    with pytest.raises(DataError, match="ask for more seconds"):
        ensure_motion(tmp_path / "new", 0.1)
    assert not (tmp_path / "new" / MARKER).exists()


def test_an_archive_that_was_lost_is_made_again(world, tmp_path):
    for name in (MARKER, ARCHIVES[0], ARCHIVES[1]):
        (tmp_path / name).write_bytes((world / name).read_bytes())
    ensure_motion(tmp_path, SECONDS)
    a, b = (keypoints_npz.read(root, "all", "h36m", "noisy") for root in (world, tmp_path))
    np.testing.assert_array_equal(a.keypoints, b.keypoints)


def test_the_command(tmp_path, capsys):
    assert synth.main(["--root", str(tmp_path), "--layout", "keypoints_npz", "--seconds", "1.2", "--seed", "3"]) == 0
    assert json.loads((tmp_path / MARKER).read_text())["splits"]["motion"]["seed"] == 3
    assert "complete" in capsys.readouterr().out
    assert synth.main(["--root", str(tmp_path), "--layout", "keypoints_npz", "--seconds", "2.4", "--seed", "3"]) == 2


# ----------------------------------------------------------------------------------------------------------- the noise


@pytest.fixture(scope="module")
def standing():
    """A person who stands still before two cameras: exact places (V,T,J,2) px, 300 px tall."""
    pose = np.random.default_rng(0).uniform(200, 500, (17, 2))
    pose[:2, 1] = 200, 500
    return np.broadcast_to(pose, (2, 4000, 17, 2))


def test_noise_lasts_and_has_heavy_tails(standing):
    noise = TrackNoise(swap=0, outlier=0)
    error = detect_tracks(standing, np.zeros(standing.shape[:3], bool), "h36m17", 50, np.random.default_rng(1), noise) - standing
    trunk = error[:, :, joints("pelvis", "spine", "thorax")]
    assert trunk.std() == pytest.approx(noise.jitter * 300, rel=0.15)
    ten = (trunk[:, 10:] * trunk[:, :-10]).mean() / trunk.var()
    assert ten == pytest.approx(noise.steady * np.exp(-10 / (noise.memory * 50)), abs=0.08)
    assert abs((trunk[:, 100:] * trunk[:, :-100]).mean() / trunk.var()) < 0.08
    assert np.mean(trunk**4) / trunk.var() ** 2 > 3.6  # a normal distribution has 3
    assert abs(trunk.mean()) < 0.25


def test_hidden_joints_and_limb_ends_err_more(standing):
    hidden = np.zeros(standing.shape[:3], bool)
    hidden[..., joints("head")[0]] = True
    noise = TrackNoise(swap=0, outlier=0)
    error = detect_tracks(standing, hidden, "h36m17", 50, np.random.default_rng(1), noise) - standing
    size = error.std((0, 1, 3))
    head, wrist, spine = size[joints("head", "l_wrist", "spine")]
    assert head / spine == pytest.approx(noise.hidden, rel=0.2) and wrist / spine == pytest.approx(noise.limb, rel=0.2)


def test_swaps_and_outliers_come_in_bursts(standing):
    hidden = np.zeros(standing.shape[:3], bool)
    noise = TrackNoise(jitter=0, swap=0.03, outlier=0)
    x = detect_tracks(standing, hidden, "h36m17", 50, np.random.default_rng(2), noise)
    left, right = joints("l_knee", "r_knee")
    swapped = (np.abs(x[:, :, left] - standing[:, :, right]) < 1e-3).all(-1)
    begins = (np.diff(swapped.astype(int), axis=1) == 1).sum()
    assert swapped.mean() == pytest.approx(0.03, abs=0.015) and swapped.sum() / begins > 4
    assert (np.abs(x[:, :, left] - standing[:, :, left]).max(-1)[~swapped] < 1e-3).all()
    assert (np.abs(x[:, :, 0] - standing[:, :, 0]) < 1e-3).all()  # what has no twin stays
    wild = detect_tracks(standing, hidden, "h36m17", 50, np.random.default_rng(2), TrackNoise(jitter=0, swap=0, outlier=0.02)) - standing
    assert (np.abs(wild).max(-1) > 1e-3).mean() == pytest.approx(0.02, abs=0.01)


def test_building_blocks_of_the_noise():
    rng = np.random.default_rng(0)
    assert lasting((3, 5000, 20), 10.0, rng).std() == pytest.approx(1, abs=0.05)
    spells = bursts(np.full((2, 20000), 0.05), 8.0, rng)
    assert spells.mean() == pytest.approx(0.05, abs=0.015) and not bursts(np.zeros((2, 100)), 8.0, rng).any()


def test_a_body_hides_its_far_side():
    stature = 1700.0
    X = np.zeros((1, 17, 3))
    z = {"hip": 0.53, "knee": 0.285, "ankle": 0.04, "shoulder": 0.81, "elbow": 0.65, "wrist": 0.5}
    for j, name in enumerate(H36M.joints):
        part = name.split("_")[-1]
        side = {"l": 1, "r": -1}.get(name[0] if name[1] == "_" else "", 0)
        height = z.get(part, {"pelvis": 0.53, "spine": 0.66, "thorax": 0.81, "nose": 0.92, "head": 0.99}.get(part))
        width = {"shoulder": 0.092, "elbow": 0.11, "wrist": 0.13}.get(part, SHARES["hip"])  # arms a little away from the trunk
        X[0, j] = stature * np.array([0.04 * (part == "nose"), side * width, height])
    centers = np.array([[4500.0, 0, 1000], [0, 4500.0, 1000]])  # before the person, and to the left
    hidden = stage.self_occluded(X, centers)[:, 0]
    assert not hidden[0, joints("l_hip", "r_hip", "l_knee", "r_knee", "nose", "l_wrist", "r_wrist")].any()
    assert hidden[1, joints("r_hip", "r_shoulder", "r_elbow")].all()
    assert not hidden[1, joints("l_hip", "l_knee", "l_ankle", "l_shoulder", "l_elbow", "l_wrist", "head")].any()


# -------------------------------------------------------------------------------------------------- real motion capture


def write_mocap(path, people: dict[str, int], **changes):
    """A file of clips: each actor raises one arm while walking 1 m per second along x, in joints of another order."""
    rng, rate = np.random.default_rng(0), 25.0
    names = np.array(["Hip", "RHip", "RKnee", "RFoot", "LHip", "LKnee", "LFoot", "Spine", "Thorax", "Neck/Nose", "Head",
                      "LShoulder", "LElbow", "LWrist", "RShoulder", "RElbow", "RWrist"])  # fmt: skip
    pose = next(stage.clips({"S1": RIGS["S1"]}, 0, SECONDS)).X_world[0] / 1000
    clips = []
    for frames in people.values():
        t = np.arange(frames) / rate
        X = np.repeat(pose[None], frames, 0) - pose[:1] * [1, 1, 0]
        X[:, :, 0] += t[:, None]
        X[:, 13, 2] += 0.1 * np.sin(t)
        clips.append(X)
    order = rng.permutation(17)
    data = {
        "positions": np.concatenate(clips)[:, order].astype(np.float32), "lengths": np.array(list(people.values()), np.int32),
        "sequence": np.array([f"{k:02d} x" for k in range(len(people))]), "subject": np.array(list(people)),
        "action": np.array(["walk, slowly"] * len(people)), "fps": np.full(len(people), rate, np.float32), "joint_names": names[order],
    }  # fmt: skip
    np.savez(path, **(data | changes))
    return str(path)


def test_real_motions_become_the_same_archives(tmp_path, capsys):
    train, test = write_mocap(tmp_path / "a.npz", {"Anna": 60, "Bob": 150}), write_mocap(tmp_path / "b.npz", {"Eve": 50, "Kim": 20})
    out = tmp_path / "out"
    assert prepare.main(["mocap", "--train", train, "--test", test, "--out", str(out)]) == 0
    assert "Anna plays S1" in capsys.readouterr().out
    tracks = keypoints_npz.read(out, "all", "h36m", "gt")
    assert list(dict.fromkeys(tracks.subject)) == ["S1", "S5", "S9"]  # Kim's clip is too short
    assert tracks.action[0] == "walk-slowly Anna:00-x:1" and set(tracks.base_action()) == {"walk-slowly"}
    bob = tracks.select((tracks.subject == "S5") & (tracks.view == 0))
    assert len(bob) == 3 and abs(bob.lengths.sum() - 300) <= 3  # 6 m in pieces of 2 m; 25 to 50 frames per second
    cameras = tracks.cameras[torch.from_numpy(tracks.camera[tracks.track].astype(np.int64))]
    x = cameras.project_cam(torch.from_numpy(tracks.X_cam).double(), tangential="h36m").numpy()
    assert np.abs(x - tracks.keypoints).max() < 0.01
    size = cameras.size.numpy()[:, None]
    assert ((tracks.keypoints > 0) & (tracks.keypoints < size)).all(-1).mean() >= 0.95
    pose = next(stage.clips({"S1": RIGS["S1"]}, 0, SECONDS)).X_world[0]
    X = tracks.X_cam[0]
    between = np.linalg.norm(X[:, None] - X[None], axis=-1)
    assert np.abs(between - np.linalg.norm(pose[:, None] - pose[None], axis=-1)).max() < 1.0  # joints were told by name, in mm
    assert prepare.main(["mocap", "--train", train, "--test", test, "--out", str(out)]) == 2  # nothing is overwritten


def test_shapes_change_lengths_and_keep_directions():
    X = next(stage.clips({"S1": RIGS["S1"]}, 0, SECONDS)).X_world
    Y = mocap.reshaped(X, np.random.default_rng(3))
    parents = np.asarray(H36M.parents)
    a, b = ((Z - Z[:, parents])[:, 1:] for Z in (X, Y))
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    ratio = (np.linalg.norm(b, axis=-1) / np.linalg.norm(a, axis=-1)).mean(0)
    assert cosine.min() > 1 - 1e-9 and 0.7 < ratio.min() < ratio.max() < 1.4 and np.ptp(ratio) > 0.02
    left, right = joints("l_knee", "r_knee")
    assert ratio[left - 1] == pytest.approx(ratio[right - 1])
    assert abs(np.percentile(Y[:, joints("l_ankle", "r_ankle"), 2], 2) - np.percentile(X[:, joints("l_ankle", "r_ankle"), 2], 2)) < 1e-6


def test_resampling_keeps_the_motion():
    t = np.arange(61) / 60
    X = np.broadcast_to(t[:, None, None], (61, 17, 3))
    Y = mocap.resample(X, 60, 50)
    np.testing.assert_allclose(Y[:, 0, 0], np.arange(51) / 50, atol=1e-12)
    assert len(mocap.resample(X, 30, 50)) == 101


@pytest.mark.parametrize("changes, message", [
    ({"joint_names": np.array(["Hip"] * 17)}, "joint_names lacks r_hip"),
    ({"lengths": np.array([1e300])}, r"lengths of clips from 1e\+300 to 1e\+300, expected 1 to 60 frames"),
    ({"lengths": np.array([59], np.int32)}, r"positions have shape \(60, 17, 3\), expected \(59, 17, 3\)"),
    ({"positions": np.full((60, 17, 3), np.nan, np.float32)}, "NaN"),
    ({"fps": np.zeros(1, np.float32)}, "expected a positive number"),
])  # fmt: skip
def test_files_that_cannot_be_used(tmp_path, changes, message):
    good, bad = write_mocap(tmp_path / "a.npz", {"Anna": 60}), write_mocap(tmp_path / "b.npz", {"Eve": 60}, **changes)
    with pytest.raises(DataError, match=message):
        prepare_mocap([good], [bad], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.npz"))


def test_actors_are_in_one_split_alone(tmp_path):
    path = write_mocap(tmp_path / "a.npz", {"Anna": 60})
    with pytest.raises(DataError, match="Anna: in the training files and in the test files"):
        prepare_mocap([path], [path], tmp_path / "out")
    np.savez(tmp_path / "c.npz", positions=np.zeros((3, 17, 3)))
    with pytest.raises(DataError, match="lacks lengths"):
        mocap.read(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 torn")
    for name in ("d.npz", "none.npz"):
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            mocap.read(tmp_path / name)


def test_real_samples(samples, tmp_path):
    path = samples / "mocap" / "cmu_test.npz"
    if not path.exists():
        pytest.skip("no sample of motion capture")
    motions = mocap.read(path)
    assert {m.subject for m in motions} == {"CMU03", "CMU08", "CMU10", "CMU12"} and sum(len(m.X) for m in motions) == 4650
    clips = list(mocap.clips(motions, mocap.cast(motions, ("S9", "S11")), RIGS, shapes=2))
    nose, thorax, left, right = joints("nose", "thorax", "l_hip", "r_hip")
    X = np.concatenate([clip.X_world for clip in clips])
    ahead = np.cross(X[:, left] - X[:, right], [0, 0, 1])
    assert (((X[:, nose] - X[:, thorax]) * ahead).sum(-1) > 0).mean() > 0.95  # noses point forwards: left is left
    inside = [RIGS[clip.subject].in_view(torch.from_numpy(clip.X_world.reshape(1, -1, 3))).float().mean(-1) for clip in clips]
    assert torch.stack(inside).mean(0).min() >= 0.95


# --------------------------------------------------------------------------------------------------------- experiments


VIDEO = sorted(p for p in (ROOT / "experiments" / "video").rglob("*.yaml") if not p.stem.startswith("base"))
LIFTING = sorted(p for name in ("temporal", "mocap") for p in (ROOT / "experiments" / "synthetic").glob(f"{name}*.yaml"))


@pytest.mark.parametrize("path", VIDEO + LIFTING, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_experiments_load(path):
    cfg = load(path)
    assert cfg.TASK == cfg.MODEL.NAME == "temporal" and cfg.DATASET.DATASET == "keypoints_npz"
    frames = int(np.prod(cfg.TEMPORAL.WIDTHS))
    number = next((int(word) for word in path.stem.split("-") if word.isdigit() and int(word) != 10), 27)
    assert frames == number
    assert cfg.TEMPORAL.CAUSAL == ("causal" in path.stem)
    assert bool(cfg.TEMPORAL.UNLABELED) == ("semi" in path.stem and "baseline" not in path.stem)
    assert cfg.SYNTH.NATIVE == path.stem.startswith("temporal")
    assert cfg.MODEL.NUM_JOINTS == skeletons.get(cfg.DATASET.SKELETON or "h36m17").num


@pytest.mark.parametrize("folder", ["video/h36m/semi-s1-10", "synthetic/temporal-semi", "synthetic/mocap-semi"])
def test_semi_supervision_differs_from_its_baseline_in_one_thing(folder):
    semi, baseline = (load(ROOT / "experiments" / f"{folder}{end}.yaml").flat() for end in ("", "-baseline"))
    assert {key for key in semi if semi[key] != baseline[key]} == {"TEMPORAL.UNLABELED", "TEMPORAL.WARMUP_EPOCHS"}
    assert not set(semi["TEMPORAL.UNLABELED"]) & {*semi["DATASET.SUBJECTS"], "S9", "S11"}


def test_twins_on_motion_capture_differ_in_data_and_length_alone():
    for path in LIFTING:
        if path.stem.startswith("temporal"):
            twin = load(path.with_name(path.name.replace("temporal", "mocap"))).flat()
            cfg = load(path).flat()
            assert {key for key in cfg if cfg[key] != twin[key]} - {"TRAIN.END_EPOCH"} == {"DATASET.ROOT", "SYNTH.NATIVE"}
