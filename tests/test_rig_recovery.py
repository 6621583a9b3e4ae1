"""Rigs from joints alone: exact without noise, close with noise and outliers, honest about degenerate matches, right on real data."""

import json

import cv2
import numpy as np
import pytest
import torch

from lib.errors import GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.rig_recovery import METHODS, body_length, bundle_adjust, pair_pose, recover_rig, rig_errors
from lib.geometry.triangulation import reprojection_error, triangulate
from lib.skeleton import get
from tests.scene import ring_of_cameras, rotations

BONES = get("h36m17").bones


def scene(frames=30, views=4, noise=0.0, outliers=0.0, seed=0):
    """A crowd of points as joints, which wanders about the room.   -> Cameras (V,), X (T,17,3) mm, x (T,V,17,2) px, conf"""
    rng = np.random.default_rng(seed)
    cameras = ring_of_cameras(views, distortion=True)
    place = rng.uniform(-1, 1, (frames, 1, 3)) * [1000, 1000, 50] + [0, 0, 1000]
    X = torch.from_numpy(place + rng.uniform(-1, 1, (frames, 17, 3)) * [400, 400, 800])
    x = cameras.project(X[:, None])[0].numpy()
    x = x + noise * rng.standard_normal(x.shape)
    wrong = rng.random(x.shape[:-1]) < outliers
    x[wrong] = rng.uniform(0, 1000, (wrong.sum(), 2))
    return cameras, X, torch.from_numpy(x), torch.ones(x.shape[:-1])


def worst(recovered, true):
    """Largest rotation and direction error over all pairs of cameras, degrees."""
    errors = rig_errors(recovered, true)
    return float(errors.rotation_deg.max()), float(errors.direction_deg.max())


# --- synthetic truth


def test_without_noise_the_rig_is_exact():
    cameras, X, x, conf = scene()
    x[0, 0] = torch.nan  # missing without being told
    conf[1:5, 2] = 0
    rig = recover_rig(x, conf, cameras)
    assert max(worst(rig.cameras, cameras)) < 1e-5 and rig.error_px < 1e-6
    torch.testing.assert_close(rig.cameras.R[0], torch.eye(3, dtype=torch.float64))
    assert (rig.cameras.center[1] - rig.cameras.center[0]).norm() == pytest.approx(1.0)
    unit = (cameras.center[1] - cameras.center[0]).norm()
    expected = cameras[0].to_cam(X) / unit
    assert rig.X_valid.all()
    torch.testing.assert_close(rig.X_world, expected, atol=1e-6, rtol=0)
    assert len(rig.pairs) == 6 and all(pair.in_front == 1.0 and pair.sampson_px < 1e-6 for pair in rig.pairs.values())


@pytest.mark.parametrize(("noise", "outliers", "bound"), [(4.0, 0.05, 0.8), (13.0, 0.0, 2.5), (2.0, 0.25, 0.5)])
def test_noise_and_outliers_of_a_2d_network(noise, outliers, bound):
    cameras, _, x, conf = scene(frames=120, noise=noise, outliers=outliers)
    rig = recover_rig(x, conf, cameras, max_sampson_px=15)
    assert max(worst(rig.cameras, cameras)) < bound


@pytest.mark.parametrize("method", METHODS)
def test_each_search_finds_a_pair(method):
    cameras, _, x, _ = scene(noise=1.0, outliers=0.2)
    pair = cameras[[0, 1]]
    found = pair_pose(x[:, 0].flatten(0, 1), x[:, 1].flatten(0, 1), pair, method=method)
    R, t = torch.stack([torch.eye(3).double(), found.R]), torch.stack([torch.zeros(3).double(), found.t])
    rig = Cameras(pair.K, R, t, pair.dist, pair.size)
    assert max(worst(rig, pair)) < 0.5
    assert found.t.norm() == pytest.approx(1.0) and found.in_front > 0.95 and 0.5 < found.sampson_px < 1.2
    assert 0.5 < found.inlier.double().mean() < 0.9  # an outlier in either view spoils a match, and some lie on their line by chance


def test_confidence_weighs():
    """Joints that the detector itself doubts do less harm when it says so."""
    cameras, _, x, conf = scene(frames=40, noise=1.0)
    doubtful = torch.rand(conf.shape) < 0.4
    noisy = torch.where(doubtful[..., None], x + 25 * torch.randn_like(x), x)
    told = recover_rig(noisy, torch.where(doubtful, 0.02, 1.0), cameras, max_sampson_px=30, loss="huber", f_scale_px=50.0)
    plain = recover_rig(noisy, conf, cameras, max_sampson_px=30, loss="huber", f_scale_px=50.0)
    assert max(worst(told.cameras, cameras)) < 0.5 * max(worst(plain.cameras, cameras))


@pytest.mark.parametrize("loss", ("cauchy", "soft_l1", "huber"))
def test_the_adjustment_lowers_the_errors(loss):
    cameras, _, x, conf = scene(frames=60, noise=3.0, outliers=0.03)
    rough = recover_rig(x, conf, cameras, max_steps=0)
    fine = recover_rig(x, conf, cameras, loss=loss)
    assert rough.error_px == pytest.approx(rough.start_px) and fine.start_px == rough.start_px and fine.error_px < rough.error_px
    assert np.mean(worst(fine.cameras, cameras)) < np.mean(worst(rough.cameras, cameras))


def test_the_adjustment_from_disturbed_cameras():
    """The same minimum as without disturbance; camera 0 and the first baseline keep their place."""
    cameras, X, x, conf = scene(frames=20)
    x, X, w = cameras.undistort(x).transpose(0, 1).flatten(1, 2), X.flatten(0, 1), conf.transpose(0, 1).flatten(1).double()
    angles = torch.tensor(np.random.default_rng(0).normal(0, 0.01, (4, 3)))
    angles[0] = 0
    turn = torch.linalg.matrix_exp(torch.linalg.cross(angles[:, None].expand(4, 3, 3), torch.eye(3).double().expand(4, 3, 3)).mT)
    shift = torch.tensor([[0.0, 0, 0], [20, 0, 0], [0, -30, 0], [0, 0, 40]])
    off = Cameras(cameras.K, turn @ cameras.R, cameras.t + shift, cameras.dist, cameras.size)
    found = bundle_adjust(off, X + 20 * torch.randn_like(X), x, w)
    assert found.cost < 1e-9 * found.start
    rig = Cameras(cameras.K, found.R, found.t, cameras.dist, cameras.size)
    assert max(worst(rig, cameras)) < 1e-4
    torch.testing.assert_close(rig.center[0], off.center[0])
    assert (rig.center[1] - rig.center[0]).norm() == pytest.approx(float((off.center[1] - off.center[0]).norm()))


@pytest.mark.parametrize("views", (2, 3, 5))
def test_other_numbers_of_cameras(views):
    cameras, _, x, conf = scene(views=views)
    assert max(worst(recover_rig(x, conf, cameras).cameras, cameras)) < 1e-5


def test_cameras_that_never_see_the_same_are_joined_through_others():
    """A ring in which opposite cameras share no frame."""
    cameras, _, x, conf = scene(frames=60, views=5)
    for t in range(60):
        conf[t, [(t + k) % 5 for k in (3, 4)]] = 0
    rig = recover_rig(x, conf, cameras)
    assert max(worst(rig.cameras, cameras)) < 1e-5
    assert (0, 3) in rig.pairs


def test_scales():
    cameras, X, x, conf = scene()
    apart = float((cameras.center[1] - cameras.center[0]).norm())
    true = body_length(X, torch.ones(X.shape[:2], dtype=torch.bool), BONES)
    body = recover_rig(x, conf, cameras, scale="body", length_mm=true, bones=BONES)
    tape = recover_rig(x, conf, cameras, scale="baseline", length_mm=apart)
    for rig in (body, tape):
        torch.testing.assert_close(rig.X_world, cameras[0].to_cam(X), atol=1e-3, rtol=0)
        assert (rig.cameras.center[1] - rig.cameras.center[0]).norm() == pytest.approx(apart)


def test_body_length_forgives_hidden_joints_and_outliers():
    X = torch.tensor([[[0.0, 0, 0], [0, 0, 400], [0, 0, 700]]]).repeat(7, 1, 1)
    X[0, 1] = 1e6
    valid = torch.ones(7, 3, dtype=torch.bool)
    valid[1:4, 0] = False
    X[1:4, 0] = torch.nan
    assert body_length(X, valid, np.array([[0, 1], [1, 2]])) == pytest.approx(700)
    valid[:, 0] = False
    with pytest.raises(GeometryError, match="joints 0 and 1 are never known together"):
        body_length(X, valid, np.array([[0, 1]]))


def test_frames_are_drawn_by_the_seed():
    cameras, _, x, conf = scene(frames=40, noise=1.0)
    a, b, c = (recover_rig(x, conf, cameras, max_frames=15, seed=s) for s in (1, 1, 2))
    assert len(a.frames) == 15 and a.frames.tolist() == b.frames.tolist() != c.frames.tolist()
    torch.testing.assert_close(a.cameras.R, b.cameras.R, atol=0, rtol=0)


# --- what no recovery can solve


def flat(x, X, cameras):
    X = X.clone()
    X[..., 1] = 0
    return cameras.project(X[:, None])[0], cameras


def turned(x, X, cameras):
    """All cameras in the place of the first."""
    center = cameras.center[:1] + torch.zeros(len(cameras), 3).double()
    R = cameras.R[:1] @ torch.eye(3).double().expand(len(cameras), 3, 3)
    yaw = torch.tensor(0.05) * torch.arange(len(cameras))
    rotate = torch.stack([yaw.cos(), 0 * yaw, yaw.sin(), 0 * yaw, 0 * yaw + 1, 0 * yaw, -yaw.sin(), 0 * yaw, yaw.cos()], -1).view(-1, 3, 3)
    rig = Cameras.make(cameras.K, rotate.double() @ R, center=center, dist=cameras.dist, size=cameras.size)
    return rig.project(X[:, None])[0], rig


def shuffled(x, X, cameras):
    return torch.stack([x[torch.randperm(len(x)), v] for v in range(len(cameras))], 1), cameras


@pytest.mark.parametrize(("spoil", "message"), [
    (flat, "all joints lie on one plane: a homography explains"),
    (turned, "no baseline: a rotation explains"),
    (shuffled, "median Sampson distance of .* px, expected at most 5; check that the frames of both cameras are synchronised"),
])
@pytest.mark.parametrize("noise", (0.0, 1.5))
def test_degenerate_matches_are_named(spoil, message, noise):
    cameras, X, x, conf = scene(frames=40)
    x, cameras = spoil(x, X, cameras)
    x = x + noise * torch.randn_like(x)
    with pytest.raises(GeometryError, match=f"no pair of cameras can be joined: cameras 0 and 1: .*{message}"):
        recover_rig(x, conf, cameras)


@pytest.mark.parametrize(("share", "message"), [(0.5, "(in two of the four solutions equally many|only 5. %)"), (0.4, "only 6. %")])
def test_matches_behind_the_cameras_are_refused(share, message):
    """Epipolar lines that all fit, with a share of the matches behind the cameras."""
    cameras, X, _, _ = scene(frames=40)
    pair = Cameras.make(cameras.K[:2], cameras.R[:2], cameras.t[:2])  # no lens: what lies behind has no image in one
    X = X.flatten(0, 1)
    behind = pair.center.mean(0) + 2 * (pair.center.mean(0) - X.mean(0)) + 300 * torch.randn(len(X), 3).double()
    X = torch.where((torch.arange(len(X)) < share * len(X))[:, None], behind, X)
    x = pair.project(X)[0]
    with pytest.raises(GeometryError, match=f"{message} of the matches lie in front of both cameras, expected 70 % in one solution"):
        pair_pose(x[0], x[1], pair)


def test_too_little_to_go_by_is_told():
    cameras, _, x, conf = scene(frames=40)
    with pytest.raises(GeometryError, match="found 17 matching joints, expected at least 30; gather more frames"):
        recover_rig(x[:1], conf[:1], cameras)
    alone = conf.clone()
    alone[:, 3] = 0
    with pytest.raises(GeometryError, match="camera 3 cannot be joined to the others: cameras 0 and 3: found 0 matching joints"):
        recover_rig(x, alone, cameras)
    alone[:, 1:] = 0
    with pytest.raises(GeometryError, match="none of 40 frames has a joint that two cameras see"):
        recover_rig(x, alone, cameras)
    in_turn = conf.clone()
    in_turn[::2, 2:], in_turn[1::2, 0], in_turn[1::2, 3] = 0, 0, 0  # 0 sees with 1, 1 with 2, never three at once
    with pytest.raises(GeometryError, match="cannot be joined to the others: .*found 0 matching joints|no joint is seen by three"):
        recover_rig(x, in_turn, cameras)


@pytest.mark.parametrize(("change", "message"), [
    ({"x_img": torch.zeros(4, 3, 17, 2)}, r"x_img \(4, 3, 17, 2\), conf .* expected \(T, V, J, 2\), \(T, V, J\) and \(V,\)"),
    ({"method": "guess"}, "'guess' is not one of lmeds, ransac, magsac"),
    ({"loss": "linear"}, "'linear' is not one of huber, soft_l1, cauchy"),
    ({"scale": "feet"}, "'feet' is not one of body, baseline, none"),
    ({"scale": "baseline"}, "scale baseline: the length is 0.0 mm"),
    ({"scale": "body", "length_mm": 4000.0}, "no bones were given"),
])  # fmt: skip
def test_wrong_arguments_are_named(change, message):
    cameras, _, x, conf = scene(frames=3)
    arguments = {"x_img": x, "conf": conf, "cameras": cameras} | change
    with pytest.raises(GeometryError, match=message):
        recover_rig(**arguments)


def test_errors_do_not_depend_on_world_and_unit():
    cameras = ring_of_cameras(4)
    Q = rotations(1)[0]
    moved = Cameras.make(cameras.K, cameras.R @ Q, center=0.01 * (cameras.center @ Q) + 7)
    assert max(worst(moved, cameras)) < 1e-5
    R = cameras.R.clone()
    angle = torch.deg2rad(torch.tensor(3.0).double())
    R[2] = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]]).double() @ R[2]
    errors = rig_errors(Cameras.make(cameras.K, R, center=cameras.center), cameras)
    assert errors.rotation_deg[0].tolist() == pytest.approx([0, 0, 3, 0], abs=1e-5)
    assert errors.direction_deg[0].max() < 1e-5 and errors.direction_deg[2, :2].min() > 0.2
    with pytest.raises(GeometryError, match="rig_errors"):
        rig_errors(cameras[:3], cameras)


# --- real recordings


def openpose(folder, views=4, frames=40):
    """The actor of each json: of the people in it the one whose confident joints span the most height."""
    x, conf = np.zeros((frames, views, 25, 2)), np.zeros((frames, views, 25))
    for v in range(views):
        for t in range(frames):
            file = folder / f"cam{v + 1:02d}_json" / f"cam{v + 1:02d}.{t:04d}.json"
            people = np.array([p["pose_keypoints_2d"] for p in json.loads(file.read_text())["people"]]).reshape(-1, 25, 3)
            heights = [np.ptp(p[p[:, 2] > 0.3, 1]) if (p[:, 2] > 0.3).sum() > 1 else 0.0 for p in people]
            if len(people):
                actor = people[int(np.argmax(heights))]
                x[t, v], conf[t, v] = actor[:, :2], np.where(actor[:, 2] > 0.3, actor[:, 2], 0)
    return torch.from_numpy(x), torch.from_numpy(conf)


def qualisys(calibration):
    """Cameras of a calibration in Pose2Sim's form (metres)."""
    found = [c for name, c in calibration.items() if name != "metadata"]
    R = np.stack([cv2.Rodrigues(np.array(c["rotation"]))[0] for c in found])
    K, dist, t, size = (np.array([c[key] for c in found]) for key in ("matrix", "distortions", "translation", "size"))
    return Cameras.make(K, R, 1000 * t, dist=dist, size=size)


def test_four_cameras_of_a_real_scene_from_openpose(samples):
    """Pose2Sim's demo: 40 frames (0.7 s) of one person, from OpenPose's joints.

    The published calibration misses these joints by 13 px, cameras 0 and 2 by 12 px to one side, so it is itself known to a degree or
    two only; what is recovered must explain them better.
    """
    tomllib = pytest.importorskip("tomllib")
    folder = samples / "pose2sim"
    true = qualisys(tomllib.loads((folder / "calibration" / "Calib_qualisys.toml").read_text()))
    x, conf = openpose(folder / "single" / "pose")
    rig = recover_rig(x, conf, true, max_sampson_px=15)
    errors = rig_errors(rig.cameras, true)
    assert errors.rotation_deg[0].max() < 3.5 and errors.direction_deg[0].max() < 2.0
    pinhole = true.undistort(x)
    published = reprojection_error(triangulate(pinhole, true.P, conf, "reweighted"), pinhole, true.P)
    assert rig.error_px < 0.6 * published[conf > 0].median()


@pytest.mark.parametrize("subject", ("S1", "S3"))
def test_three_cameras_of_humaneva(samples, subject):
    folder = samples / "humaneva"
    found = json.loads((folder / "recovered_cameras.json").read_text())[subject]
    K, R, t, dist, size = (np.array([c[key] for c in found]) for key in ("K", "R", "t", "dist_k1k2p1p2k3", "image_size"))
    true = Cameras.make(K, R, 1000 * t, dist=dist, size=size)
    with np.load(folder / "data_2d_humaneva15_gt.npz", allow_pickle=True) as file:  # a trusted file of objects
        clips = file["positions_2d"].item()[f"Train/{subject}"]
    x = torch.from_numpy(np.concatenate([np.stack(views, 1) for views in clips.values()]).astype(np.float64))  # (T, 3, 15, 2)
    conf = torch.ones(x.shape[:-1])
    rig = recover_rig(x, conf, true, max_frames=120)
    assert max(worst(rig.cameras, true)) < 0.01
    noisy = recover_rig(x + 3 * torch.randn_like(x), conf, true, max_frames=300)
    assert max(worst(noisy.cameras, true)) < 0.3
