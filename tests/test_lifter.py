"""Keypoints to motion: a linear network against sums by hand, the real one against its own batches, files and script."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib.config import defaults
from lib.dataset.formats import keypoints_npz
from lib.dataset.formats.detections import VideoKeypoints, write_custom
from lib.dataset.formats.keypoints_npz import h36m_cameras, write_archives
from lib.engine import checkpoint
from lib.errors import DataError, RunError, WeightsError
from lib.geometry.camera import Cameras
from lib.prediction.lift_video import _poses, lift_video, read_keypoints
from lib.prediction.lifted import Lifted, OwnCamera, with_truth
from lib.predictor import Lifter, Predictor
from lib.skeleton import get
from lib.tasks import build
from lib.tasks.base import Task
from lib.video import Video
from scripts import predict as script
from tests.conftest import GOLDEN, golden, golden_json
from tests.tiny_dataset import NETWORK

H36M = get("h36m17")
SIZE = (1000, 1000)
WINDOW = 3
FORESHORTENING = [[0.3, 0.0], [0.0, 0.5], [0.2, -0.1]]


class Linear(Task):
    """The mean of a window of three frames, times a matrix: X = mean(x) M, in mm; the root likewise from the first joint."""

    def __init__(self, trajectory=False, causal=False, layout="h36m17", features=2, skeleton="h36m17"):
        super().__init__()
        self.layout, self.skeleton, self.causal = layout, skeleton, causal
        self.model = nn.Module()
        self.model.pose = SimpleNamespace(features=features, receptive_field=WINDOW, causal=causal)
        self.model.trajectory = object() if trajectory else None
        self.cfg = SimpleNamespace(DATASET=SimpleNamespace(TRAIN_FRAME=1), TEST=SimpleNamespace(FLIP_TEST=False))
        self.M = 1000 * torch.tensor(FORESHORTENING).double().T
        self.seen: list[np.ndarray] = []

    def lift(self, x):
        self.seen.append(x[0].numpy())
        before, after = (2, 0) if self.causal else (1, 1)
        x = torch.cat([x[:, :1].expand(-1, before, -1, -1), x, x[:, -1:].expand(-1, after, -1, -1)], 1)[..., :2].double()
        mean = (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 3
        return mean @ self.M, (mean[:, :, :1] @ self.M + torch.tensor([0.0, 0.0, 4000.0])) if self.model.trajectory else None


def walk(frames=20, seed=0) -> np.ndarray:
    """Smooth keypoints in px.   (T,17,2)"""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(300, 700, (17, 2)), rng.uniform(-4, 4, (17, 2))
    wave = 20 * np.sin(np.arange(frames)[:, None, None] / 5 + rng.uniform(0, 6, (17, 1)))
    return start + np.arange(frames)[:, None, None] * speed + wave


def person(frames=12, seed=1) -> np.ndarray:
    """A pose that walks away from the camera.   X_cam (T,17,3) mm"""
    rng = np.random.default_rng(seed)
    pose = rng.uniform(-1, 1, (17, 3)) * [400, 800, 300]
    return pose - pose[0] + [200.0, -100.0, 4000.0] + np.arange(frames)[:, None, None] * [15.0, 2.0, 30.0]


def test_lift_is_what_the_sums_say_with_repeated_ends():
    x = walk()
    found = Lifter(Linear(), "cpu").lift(x, SIZE, "h36m17", fps=50)
    screen = x / 500 - 1
    padded = np.concatenate([screen[:1], screen, screen[-1:]])
    expected = (padded[:-2] + padded[1:-1] + padded[2:]) / 3 @ (1000 * np.array(FORESHORTENING).T)
    np.testing.assert_allclose(found.X_root, expected, atol=1e-3)
    np.testing.assert_allclose(found.keypoints, x, rtol=1e-6)
    assert found.X_cam is None and len(found) == 20 and found.fps == 50 and "focal length 1.15" in found.assumed[0]
    half = Lifter(Linear(), "cpu").lift(x / 2, (500, 500), "h36m17", fps=50)
    np.testing.assert_allclose(half.X_root, found.X_root, atol=1e-3)


def test_a_long_clip_goes_in_pieces_that_do_not_show(monkeypatch):
    whole = Lifter(Linear(True), "cpu").lift(walk(50), SIZE)
    monkeypatch.setattr("lib.prediction.lifter.PIECE", 7)
    task = Linear(True)
    pieces = Lifter(task, "cpu").lift(walk(50), SIZE)
    assert len(task.seen) == 8 and max(map(len, task.seen)) == 7 + 2 * (WINDOW - 1)
    np.testing.assert_allclose(pieces.X_root, whole.X_root, atol=1e-3)
    np.testing.assert_allclose(pieces.X_cam, whole.X_cam, atol=1e-3)


def test_another_frame_rate_is_resampled_there_and_back():
    t25, t50 = np.arange(20), np.arange(39) / 2
    ramp = lambda t: 400 + t[:, None, None] * np.linspace(1, 5, 34).reshape(17, 2)  # noqa: E731
    task = Linear()
    found = Lifter(task, "cpu").lift(ramp(t25), SIZE, fps=25)
    np.testing.assert_allclose(task.seen[0], ramp(t50) / 500 - 1, atol=1e-6)  # the network saw 50 frames per second
    direct = Lifter(Linear(), "cpu").lift(ramp(t50), SIZE, fps=50)
    np.testing.assert_allclose(found.X_root, direct.X_root[::2], atol=1e-3)
    assert found.fps == 25 and any("resampled" in text for text in found.assumed)
    fine = Lifter(task, "cpu").lift(walk(), SIZE, fps=48.5)  # close enough
    assert len(task.seen[1]) == 20 and not any("resampled" in text for text in fine.assumed)
    assert len(Lifter(task, "cpu").lift(walk(7), SIZE, fps=120).X_root) == 7


def camera(focal: float, size=SIZE, dist=None, R=None, t=None) -> Cameras:
    K = np.array([[focal, 0, 0.48 * size[0]], [0, focal, 0.53 * size[1]], [0, 0, 1]])
    return Cameras.make(K, np.eye(3) if R is None else R, np.zeros(3) if t is None else t, dist, size, dtype=torch.float64)


def test_with_its_camera_a_pose_looks_the_same_whatever_the_focal_length():
    X, seen = torch.from_numpy(person()), []
    lens = (-0.2, 0.1, 0.01, -0.01, 0.0)
    for focal, size, dist in ((1145.0, (1000, 1000), None), (800.0, (1000, 1000), None), (2400.0, (1920, 1080), lens)):
        own, task = camera(focal, size, dist), Linear()
        Lifter(task, "cpu").lift(own.project_cam(X).numpy(), size, camera=own)
        seen.append(task.seen[0])
    np.testing.assert_allclose(seen[0], 2.29 * (X[..., :2] / X[..., 2:]).numpy(), atol=1e-6)
    np.testing.assert_allclose(seen[1], seen[0], atol=1e-6)
    np.testing.assert_allclose(seen[2], seen[0], atol=1e-6)
    other = Linear()
    other.screen_focal = 3.0
    Lifter(other, "cpu").lift(camera(900.0).project_cam(X).numpy(), SIZE, camera=camera(900.0).K.numpy())
    np.testing.assert_allclose(other.seen[0], seen[0] * 3.0 / 2.29, atol=1e-6)


class Right(Linear):
    """Knows the pose; the root is left to the camera."""

    def __init__(self, X_cam: np.ndarray):
        super().__init__()
        self.X = torch.from_numpy(X_cam - X_cam[:, :1])

    def lift(self, x):
        return self.X[None], None


def test_a_known_camera_places_the_root_and_the_world():
    X = person()
    R = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    R *= np.sign(np.linalg.det(R))
    own = camera(1300.0, dist=(-0.1, 0.05, 0.001, 0.002, 0.0), R=R, t=(100.0, -900.0, 300.0))
    x = own.project_cam(torch.from_numpy(X), tangential="h36m").numpy()
    found = Lifter(Right(X), "cpu").lift(x, SIZE, camera=own, tangential="h36m")
    np.testing.assert_allclose(found.X_cam, X, atol=0.05)
    np.testing.assert_allclose(found.X_world, (X - own.t.numpy()) @ R, atol=0.05)
    assert found.best[0] == "X_world" and any("project best" in text for text in found.assumed)
    nowhere = Lifter(Right(X), "cpu").lift(camera(1300.0).project_cam(torch.from_numpy(X)).numpy(), SIZE, camera=camera(1300.0))
    assert nowhere.X_world is None and nowhere.best[0] == "X_cam"
    np.testing.assert_allclose(nowhere.X_cam, X, atol=0.05)


def test_a_correction_moves_poses_to_their_keypoints_through_the_camera(tmp_path):
    """Wrists that were lifted 80 mm away from where their keypoints are come back, and what no keypoint contradicts stays."""
    X, own = person(), camera(1300.0, dist=(-0.1, 0.05, 0.001, 0.002, 0.0))
    x = own.project_cam(torch.from_numpy(X), tangential="h36m").numpy()
    wrong, wrist = X.copy(), H36M.index("r_wrist")
    wrong[:, wrist, :2] += [80.0, 0.0]
    lifter = Lifter(Right(wrong), "cpu")
    lifter.task.cfg = defaults().with_values({"CORRECTION.CAMERA.NOISE": 0.002, "CORRECTION.CAMERA.BONE_MM": 0.0})
    plain, m = (lifter.lift(x, SIZE, camera=own, tangential="h36m", correct=correct) for correct in (False, True))
    assert plain.X_before is None and plain.reprojection_px is None
    np.testing.assert_allclose(m.X_before, plain.X_root, atol=1e-3)
    off = [np.linalg.norm((found - (X - X[:, :1]))[:, wrist], axis=-1).mean() for found in (m.X_before, m.X_root)]
    assert off[0] == pytest.approx(80, abs=0.1) and off[1] < 25
    before, after = m.reprojection_px.T
    assert (after < before / 3).all()
    seen = own.project_cam(torch.from_numpy(m.X_cam).double(), tangential="h36m").numpy()
    undistorted = [own.to_norm(torch.from_numpy(v), tangential="h36m").numpy() * 1300 for v in (seen, x)]
    np.testing.assert_allclose(np.linalg.norm(undistorted[0] - undistorted[1], axis=-1).mean(1), after, atol=0.05)
    unseen = np.concatenate([x, np.ones_like(x[..., :1])], -1)
    unseen[:, wrist, 2] = 0  # not found, only guessed: nothing to go by
    kept = lifter.lift(unseen, SIZE, camera=own, tangential="h36m", correct=True)
    np.testing.assert_allclose(kept.X_root[:, wrist], kept.X_before[:, wrist], atol=2)
    np.testing.assert_array_equal(Lifted.read(m.save(tmp_path / "m.npz")).reprojection_px, m.reprojection_px)
    unseen[:3, :, 2] = 0  # frames without the person say nothing about how well the poses fit
    gone = lifter.lift(unseen, SIZE, camera=own, tangential="h36m", correct=True)
    assert np.isnan(gone.reprojection_px[:3]).all() and np.isfinite(gone.reprojection_px[3:]).all()
    frames = json.loads(gone.save(tmp_path / "m.json").read_text(), parse_constant=pytest.fail)["frames"]
    assert frames[0]["reprojection_px"] == [None, None]
    with pytest.raises(DataError, match="--camera"):
        lifter.lift(x, SIZE, correct=True)


def test_standing_poses_have_the_floor_at_zero_and_the_camera_ahead():
    X, pitch = person(), np.deg2rad(12.6)
    motion = Lifted(H36M, H36M, walk(12).astype("f4"), (X - X[:, :1]).astype("f4"), X.astype("f4"), size=SIZE)
    standing = motion.standing()
    assert standing[..., 2].min() == pytest.approx(0)
    np.testing.assert_allclose(standing[..., 0], X[..., 0], atol=1e-3)
    np.testing.assert_allclose(np.diff(standing[:, 0, 1]), 30 * np.cos(pitch) - 2 * np.sin(pitch), atol=0.01)
    np.testing.assert_allclose(np.diff(standing[:, 0, 2]), -30 * np.sin(pitch) - 2 * np.cos(pitch), atol=0.01)  # the camera looks down
    # with a camera in a world whose z is up, height is the world's, and what is further away is further ahead
    R = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # looks along the world's x
    placed = Lifted(H36M, H36M, motion.keypoints, motion.X_root, motion.X_cam, X, R=R, t=np.array([0.0, 1000.0, 0.0]), size=SIZE)
    expected = np.stack([X[..., 0], X[..., 2], 1000 - X[..., 1]], -1)
    np.testing.assert_allclose(placed.standing(settle=False), expected, atol=1e-3)
    lowest = expected[..., 2].min()
    level = dataclasses.replace(placed, t=placed.t - [0, lowest - 100, 0])  # within half a metre: the world's own floor
    np.testing.assert_allclose(level.standing(), expected - [0, 0, lowest - 100], atol=1e-3)
    aloft = dataclasses.replace(placed, t=np.array([0.0, 5000.0, 0.0]))  # the floor is not at 0 in this world
    np.testing.assert_allclose(aloft.standing(), expected - [0, 0, expected[..., 2].min()], atol=1e-3)
    shown, truth = with_truth(Lifted(H36M, H36M, motion.keypoints, motion.X_root), X)
    np.testing.assert_allclose(shown.X_cam, truth, atol=1e-2)


def test_a_network_with_a_trajectory_places_the_root_itself():
    found = Lifter(Linear(True), "cpu").lift(walk(), SIZE)
    root = found.X_cam - found.X_root
    np.testing.assert_allclose(root, np.broadcast_to(root[:, :1], root.shape), atol=1e-3)
    assert abs(root[..., 2] - 4000).max() < 300 and found.best[0] == "X_cam"


def test_keypoints_of_another_layout_are_matched_by_name():
    x = np.random.default_rng(0).uniform(300, 700, (5, 19, 3))
    task = Linear(layout="panoptic15", features=2)
    Lifter(task, "cpu").lift(x, SIZE, "panoptic19")
    order = get("panoptic19").indices(get("panoptic15").joints)
    np.testing.assert_allclose(task.seen[0], x[:, order, :2] / 500 - 1, atol=1e-6)
    x[2, get("panoptic19").index("l_ear")] = np.nan  # which the network does not look at
    assert np.isfinite(Lifter(task, "cpu").lift(x, SIZE, "panoptic19").X_root).all()


@pytest.mark.parametrize(
    ("keypoints", "more", "message"),
    [
        (walk()[:, :16], {}, r"\(20, 16, 2\).*17"),
        (walk(), {"layout": "coco17"}, "coco17 has no spine, head.*trained on coco17"),
        (np.where(np.arange(20)[:, None, None] == 7, np.nan, walk()), {}, "1 of 20 frames.*frame 7.*interpolate"),
        (walk() / 500 - 1, {}, "within.*px of images"),
        (walk() * 5, {}, "far outside.*1000 x 1000"),
        (walk()[:0], {}, r"\(0, 17, 2\)"),
        (walk(), {"fps": 0.0}, "fps: 0.0"),
        (walk(), {"size": (0, 5)}, "size"),
        (walk(), {"camera": np.eye(2)}, r"\(2, 2\).*\(3, 3\)"),
        (walk(), {"camera": camera(1000.0, (500, 500))}, "500 x 500.*1000 x 1000"),
        (walk(), {"camera": np.diag([-5.0, 5, 1])}, "focal lengths -5"),
    ],
)
def test_wrong_keypoints_are_named(keypoints, more, message):
    with pytest.raises(DataError, match=message):
        Lifter(Linear(), "cpu").lift(keypoints, **({"size": SIZE} | more))


def test_a_network_with_scores_asks_for_them():
    with pytest.raises(DataError, match="trained with scores"):
        Lifter(Linear(features=3), "cpu").lift(walk(), SIZE)
    task = Linear(features=3)
    Lifter(task, "cpu").lift(np.concatenate([walk(), np.full((20, 17, 1), 0.7)], -1), SIZE)
    np.testing.assert_allclose(task.seen[0][..., 2], 0.7, atol=1e-6)


def test_streams_need_a_network_that_looks_back():
    with pytest.raises(DataError, match="1 frames ahead.*TEMPORAL.CAUSAL"):
        Lifter(Linear(), "cpu").stream(SIZE)


# --- the real network


def save_checkpoint(path, **changes):
    values = {"TASK": "temporal", "MODEL.NAME": "temporal", "TEMPORAL.CHANNELS": 8, "TEMPORAL.WIDTHS": [3, 3]}
    cfg = defaults().with_values(values | changes)
    torch.manual_seed(0)
    task = build(cfg)
    for module in task.model.modules():  # a batch norm that has seen something
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    state = {"format": 1, "kind": "parallax", "task": cfg.TASK, "model": task.model.state_dict(), "config": cfg.to_dict()}
    checkpoint.save(path, state | {"skeleton": task.skeleton})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("w") / "lifter.pth.tar")


@pytest.mark.parametrize("flip", [False, True])
def test_streaming_gives_the_numbers_of_whole_clips(tmp_path, flip):
    changes = {"TEMPORAL.CAUSAL": True, "TEMPORAL.TRAJECTORY": str(not flip).lower(), "TEST.FLIP_TEST": flip}
    lifter = Lifter.from_checkpoint(save_checkpoint(tmp_path / "c.tar", **changes), "cpu")
    x, own = walk(15), camera(900.0, dist=(-0.1, 0.0, 0.0, 0.0, 0.0))
    for given in (None, own):
        whole, stream = lifter.lift(x, SIZE, camera=given), lifter.stream(SIZE, camera=given)
        for _ in range(2):
            poses = []
            for i, frame in enumerate(x):
                poses.append(stream.push(frame))
                if whole.X_cam is None:
                    assert stream.X_cam is None
                else:
                    np.testing.assert_allclose(stream.X_cam, whole.X_cam[i], rtol=1e-4, atol=0.05)
            np.testing.assert_allclose(poses, whole.X_root, atol=0.05)
            stream.reset()
    assert np.abs(np.diff(whole.X_root, axis=0)).max() > 1
    with pytest.raises(DataError, match="NaN"):
        stream.push(np.full((17, 2), np.nan))


def test_the_flip_test_is_symmetric(tmp_path):
    lifter = Lifter.from_checkpoint(save_checkpoint(tmp_path / "f.tar", **{"TEST.FLIP_TEST": True}), "cpu")
    x = walk()
    mirrored = (SIZE[0] - x * [1, 0]) * [1, 0] + x * [0, 1]
    a, b = lifter.lift(x, SIZE).X_root, lifter.lift(mirrored[:, H36M.flip], SIZE).X_root
    np.testing.assert_allclose(b[:, H36M.flip] * [-1, 1, 1], a, atol=0.05)


def test_lift_is_the_task_on_the_whole_clip(weights):
    lifter, x = Lifter.from_checkpoint(weights, "cpu"), walk(11)
    with torch.no_grad():
        expected = lifter.task.lift(torch.from_numpy(x / 500 - 1).float()[None])[0][0]
    np.testing.assert_allclose(lifter.lift(x, SIZE).X_root, expected.numpy(), atol=0.02)


def test_a_published_file_lifts_to_the_published_numbers():
    facts, expected = golden_json("videopose3d", "checkpoint_semi"), golden("videopose3d", "checkpoint_semi_expected")
    values = {"TEMPORAL.CHANNELS": facts["channels"], "TEMPORAL.WIDTHS": facts["filter_widths"], "TEMPORAL.TRAJECTORY": "true"}
    cfg = defaults().with_values(values | {"TASK": "temporal", "MODEL.NAME": "temporal", "TEST.FLIP_TEST": False, "TEMPORAL.CAUSAL": False})
    lifter = Lifter.from_checkpoint(GOLDEN / "videopose3d/checkpoint_semi_zip.bin", "cpu", cfg)
    screen = torch.randn(1, 15, 17, 2, generator=torch.Generator().manual_seed(42))[0].double().numpy()
    found = lifter.lift((screen + 1) * 500, SIZE)
    inner = slice(lifter.context // 2, -lifter.context // 2)  # the file's numbers are those without repeated ends
    np.testing.assert_allclose(found.X_root[inner] / 1000, expected["pos"][0], atol=1e-4)
    np.testing.assert_allclose((found.X_cam - found.X_root)[inner, :1] / 1000, expected["traj"][0], atol=1e-4)


def test_each_kind_of_checkpoint_says_what_it_is_for(weights, tmp_path):
    with pytest.raises(WeightsError, match="lifts keypoints.*Lifter"):
        Predictor.from_checkpoint(weights, "cpu")
    torch.manual_seed(0)
    cfg = defaults().with_values(NETWORK)
    state = {"format": 1, "kind": "parallax", "task": cfg.TASK, "model": build(cfg).model.state_dict(), "config": cfg.to_dict()}
    checkpoint.save(tmp_path / "pictures.tar", state | {"skeleton": "h36m17"})
    with pytest.raises(WeightsError, match="looks at a picture.*Predictor"):
        Lifter.from_checkpoint(tmp_path / "pictures.tar", "cpu")


# --- files


def motion(frames=4) -> Lifted:
    X = person(frames).astype(np.float32)
    R = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])
    world = ((X - [0, 1000, 0]) @ R).astype(np.float32)
    t, x = np.array([0.0, 1000, 0]), walk(frames).astype("f4")
    return Lifted(H36M, get("coco17"), x, X - X[:, :1], X, world, R, t, "z", SIZE, 25.0, ("a b",))


def test_npz_comes_back(tmp_path):
    m = motion()
    back = Lifted.read(m.save(tmp_path / "deep/m.npz"))
    for name in ("keypoints", "X_root", "X_cam", "X_world", "R", "t"):
        np.testing.assert_array_equal(getattr(back, name), getattr(m, name))
    assert (back.skeleton, back.layout, back.size, back.fps, back.assumed, back.up) == (H36M, get("coco17"), SIZE, 25.0, ("a b",), "z")
    with np.load(tmp_path / "deep/m.npz") as file:
        assert file["joints"].tolist() == list(H36M.joints) and "mm" in str(file["units"])
    bare = Lifted(H36M, H36M, m.keypoints, m.X_root)
    back = Lifted.read(bare.save(tmp_path / "bare.npz"))
    assert back.X_cam is None and back.assumed == () and back.best[0] == "X_root"
    (tmp_path / "other.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="other.npz"):
        Lifted.read(tmp_path / "other.npz")
    with pytest.raises(RunError, match=r"m\.bvh.*\.npz \.json \.csv"):
        m.save(tmp_path / "m.bvh")


def test_text_files_name_joints_and_units(tmp_path):
    m = motion()
    record = json.loads(m.save(tmp_path / "m.json").read_text())
    assert record["joints"] == list(H36M.joints) and record["fps"] == 25 and len(record["frames"]) == 4
    np.testing.assert_allclose([f["X_cam"] for f in record["frames"]], m.X_cam, atol=1e-3)
    rows = list(csv.DictReader(m.save(tmp_path / "m.csv").open()))
    assert rows[3]["frame"] == "3" and rows[3]["time_s"] == "0.1200"
    elbow = [float(rows[2][f"l_elbow.{axis}_mm"]) for axis in "xyz"]
    np.testing.assert_allclose(elbow, m.X_world[2, H36M.index("l_elbow")], atol=1e-3)


def test_camera_files(tmp_path):
    K = [[900, 0, 480], [0, 905, 530], [0, 0, 1]]
    (tmp_path / "c.json").write_text(json.dumps({"K": K, "dist": [-0.1, 0, 0, 0], "size": [1000, 1000], "up": "-y"}))
    own = OwnCamera.read(tmp_path / "c.json")
    assert own.camera.K.tolist() == K and not own.placed and own.up == "-y" and own.camera.size.tolist() == [1000, 1000]
    (tmp_path / "c.json").write_text(json.dumps({"K": K, "R": np.eye(3).tolist(), "t": [0, 0, 10], "tangential": "h36m"}))
    assert OwnCamera.read(tmp_path / "c.json").placed and OwnCamera.read(tmp_path / "c.json").tangential == "h36m"
    for values in ([1], {}, {"K": K, "R": K}, {"K": K, "focus": 1}, {"K": "x"}, {"K": K, "up": "x"}, {"K": K, "R": K, "t": [0, 0, 0]},
                   {"K": [K]}, {"K": K, "size": [[9, 9]]}):  # fmt: skip
        (tmp_path / "c.json").write_text(json.dumps(values))
        with pytest.raises(DataError, match=r"c\.json"):
            OwnCamera.read(tmp_path / "c.json")
    for name, value in (("dist", [np.nan] * 5), ("K", [[900, 0, np.nan], [0, 900, 5], [0, 0, 1]])):
        (tmp_path / "c.json").write_text(json.dumps({"K": K, name: value}))
        with pytest.raises(DataError, match=f"its {name} holds NaN"):
            OwnCamera.make(OwnCamera.read(tmp_path / "c.json"), SIZE)


def test_missing_joints_are_interpolated_and_said(weights, tmp_path):
    gaps, lifter = walk(9), Lifter.from_checkpoint(weights, "cpu")
    gaps[3:5] = np.nan
    np.savez(tmp_path / "x.npz", keypoints=gaps, size=SIZE)
    found, notes = lift_video(lifter, tmp_path / "x.npz", tmp_path / "out/x", ("npz",))
    gaps[3:5] = gaps[2] + (gaps[5] - gaps[2]) * np.array([1, 2])[:, None, None] / 3
    np.testing.assert_allclose(found.keypoints, gaps, rtol=1e-6)
    assert any("2 of 9 frames lacked" in note for note in notes) and "h36m17, images of 1000 x 1000" in notes[0]


def test_archives_of_videos_are_lifted(weights, tmp_path, capsys):
    everyone = {name: VideoKeypoints("h36m17", walk(9, i), np.ones((9, 17)), np.zeros((9, 4)), SIZE) for i, name in enumerate("ab")}
    path = write_custom(tmp_path / "data_2d_custom_mine.npz", everyone)
    np.testing.assert_allclose(read_keypoints(path, track="b").video.keypoints, walk(9, 1), rtol=1e-6)
    arguments = ["--keypoints", str(path), "--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--form", "csv"]
    assert script.main(arguments) == 2 and "2 tracks fit" in (said := capsys.readouterr().err) and "a/custom/0, b/custom/0" in said
    assert script.main([*arguments, "--track", "a/custom/0"]) == 0 and files(tmp_path / "out") == ["data_2d_custom_mine_a_custom_0.csv"]


def test_an_archive_with_poses_is_seen_beside_the_truth(weights, tmp_path):
    X_world = person(9) @ np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) + [0.0, -4000, 1000]  # z up, near the middle of the room
    own = h36m_cameras("S1").to(torch.float64)
    x = own.reshape(4, 1).project(torch.from_numpy(X_world))[0].numpy()
    write_archives(tmp_path, "h36m", "gt", {"S1": {"Walking": X_world / 1000}}, {"S1": {"Walking": list(x)}}, "h36m17")
    source = read_keypoints(tmp_path / "data_2d_h36m_gt.npz", track="S1/Walking/2")
    np.testing.assert_allclose(source.truth, own[2].to_cam(torch.from_numpy(X_world)).numpy(), atol=0.5)
    keypoints_npz.write(keypoints_npz.read(tmp_path, "all", keypoints="gt"), tmp_path, "my_set", "noisy_gt")
    named = read_keypoints(tmp_path / "data_2d_my_set_noisy_gt.npz", track="S1/Walking/2")
    np.testing.assert_allclose(named.truth, source.truth, atol=0.01)
    lifter = Lifter.from_checkpoint(weights, "cpu")
    lift_video(lifter, tmp_path / "data_2d_h36m_gt.npz", tmp_path / "out", ("mp4",), track="S1/Walking/2", height=64)
    assert Video.open(tmp_path / "out_pose.mp4").width > 3 * 64
    poses = _poses(lifter.lift(x[2], SIZE), source, None)
    np.testing.assert_allclose(poses["ground truth"][..., 2], X_world[..., 2], atol=0.5)  # heights of the world
    np.testing.assert_allclose(poses["3D reconstruction"][:, 0, 2], X_world[:, 0, 2], atol=200)


# --- the script


@pytest.fixture
def keypoints(tmp_path):
    np.savez(tmp_path / "walk.npz", keypoints=walk(), size=SIZE, fps=50.0, layout="h36m17")
    return tmp_path / "walk.npz"


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_script_writes_the_motion_and_its_film(weights, keypoints, tmp_path, capsys):
    arguments = ["--keypoints", str(keypoints), "--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert script.main([*arguments, "--size", "96", "--skip", "2", "--limit", "11", "--downsample", "2"]) == 0
    assert files(tmp_path / "out") == ["walk.csv", "walk.json", "walk.npz", "walk_pose.gif", "walk_pose.mp4"]
    m = Lifted.read(tmp_path / "out/walk.npz")
    np.testing.assert_allclose(m.X_root, Lifter.from_checkpoint(weights, "cpu").lift(walk(), SIZE).X_root, atol=1e-3)
    film = Video.open(tmp_path / "out/walk_pose.mp4")
    assert len(list(film.frames())) == 6 and film.fps == 25
    said = capsys.readouterr()
    assert "20 frames done, X_root" in said.out and "assumed: the camera is like" in said.err
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert script.main(arguments) == 2 and "exists" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    # a second look at its own result, whose keypoints are the same, and which it would not overwrite
    again = ["--keypoints", str(tmp_path / "out/walk.npz"), *arguments[2:]]
    assert script.main([*again, "--form", "npz", "--overwrite"]) == 2 and "themselves" in capsys.readouterr().err
    assert script.main([*again[:4], "--out", str(tmp_path / "2"), "--form", "csv"]) == 0 and files(tmp_path / "2") == ["walk.csv"]


def test_script_takes_a_camera_and_the_truth(weights, keypoints, tmp_path, capsys):
    K = [[900, 0, 480], [0, 905, 530], [0, 0, 1]]
    (tmp_path / "c.json").write_text(json.dumps({"K": K, "R": np.eye(3).tolist(), "t": [0, 0, 10]}))
    np.save(tmp_path / "truth.npy", person(20))
    arguments = ["--keypoints", str(keypoints), "--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert script.main([*arguments, "--camera", str(tmp_path / "c.json"), "--form", "npz"]) == 0
    expected = Lifter.from_checkpoint(weights, "cpu").lift(walk(), SIZE, camera=OwnCamera.read(tmp_path / "c.json"))
    np.testing.assert_allclose(Lifted.read(tmp_path / "out/walk.npz").X_world, expected.X_world, atol=1e-2)
    more = ["--camera", str(tmp_path / "c.json"), "--out", str(tmp_path / "corrected"), "--correct", "--form", "npz", "mp4", "--size", "64"]
    assert script.main([*arguments, *more, "--limit", "2"]) == 0
    corrected = Lifted.read(tmp_path / "corrected/walk.npz")
    np.testing.assert_allclose(corrected.X_before, expected.X_root, atol=1e-2)
    said, known = capsys.readouterr().err, np.isfinite(corrected.reprojection_px).all(1)
    assert ("px from their keypoints on average" in said) == known.any()
    assert (f"not corrected: {(~known).sum()} of 20" in said) == (~known).any()
    assert corrected.reprojection_px.shape == (20, 2)
    assert script.main([*arguments, "--truth", str(tmp_path / "truth.npy"), "--form", "mp4", "--size", "64", "--limit", "2"]) == 0
    assert Video.open(tmp_path / "out/walk_pose.mp4").width == 3 * 64 + 2 * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--keypoints": "none.npz"}, "none.npz"),
        ({"--checkpoint": "none.tar"}, "none.tar"),
        ({"--layout": "coco17"}, "no spine"),
        ({"--camera": "none.json"}, "none.json"),
        ({"--video": "none.mp4"}, "none.mp4"),
        ({"--truth": "walk.npz"}, "walk.npz|truth"),
        ({"--skip": "20"}, "--skip 20"),
    ],
)
def test_script_says_what_is_wrong(weights, keypoints, tmp_path, capsys, change, message):
    paths = {"--keypoints": "walk.npz", "--checkpoint": weights, "--out": "out"} | change
    names = {k: v if k in ("--layout", "--skip") else str(tmp_path / v) for k, v in paths.items()}
    assert script.main([word for pair in names.items() for word in pair]) == 2
    said = capsys.readouterr().err
    assert any(part in said for part in message.split("|")) and len(said.strip().splitlines()) == 1
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    "arguments",
    [["--keypoints", "a.npz"], ["a.jpg", "--camera", "c.json"], ["--keypoints", "a", "--checkpoint", "b", "--focal", "3"],
     ["a.jpg", "--keypoints", "a", "--checkpoint", "b"], ["--keypoints", "a", "--checkpoint", "b", "--downsample", "0"],
     ["--keypoints", "a", "--checkpoint", "b", "--size", "3"]],
)  # fmt: skip
def test_script_refuses_options_of_the_other_mode(arguments):
    with pytest.raises(SystemExit):
        script.main(arguments)


def test_the_size_of_the_images_is_asked_for(tmp_path, weights, capsys):
    np.savez(tmp_path / "x.npz", keypoints=walk())
    assert read_keypoints(tmp_path / "x.npz", default="h36m17").video.size == (0, 0)
    arguments = ["--keypoints", str(tmp_path / "x.npz"), "--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--form", "csv"]
    assert script.main(arguments) == 2 and "--image-size" in capsys.readouterr().err
    assert script.main([*arguments, "--image-size", "1000", "1000"]) == 0
