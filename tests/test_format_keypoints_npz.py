"""The archives of the lifting ecosystem: read, written, refused, and made from the releases; against recorded and published numbers."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import dataset
from lib import skeleton as skeletons
from lib.dataset.formats import h36m_constants, h36m_raw, humaneva_constants, keypoints_npz, lifting_sources
from lib.dataset.tracks import Tracks, from_annotations
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras
from lib.geometry.screen import from_screen, project_held, screen_cameras, to_screen
from lib.unpickle import load_npz
from scripts import prepare
from tests.conftest import GOLDEN, golden, golden_json
from tests.tiny_dataset import make

SYSTEM = "videopose3d"
NAMES = ("2d_h36m_gt", "2d_h36m_noisy_h36m", "3d_h36m")


@pytest.fixture
def root(tmp_path) -> Path:
    """The miniature data set under its own names."""
    for name in NAMES:
        shutil.copy(GOLDEN / SYSTEM / f"tiny_data_{name}.npz", tmp_path / f"data_{name}.npz")
    return tmp_path


def content(path: Path, key: str) -> dict:
    """As the ecosystem reads it."""
    return np.load(path, allow_pickle=True)[key].item()


def save(path: Path, **values) -> Path:
    path.unlink(missing_ok=True)
    np.savez_compressed(path, **values)
    return path


def changed(root: Path, kind: str, change) -> None:
    """Writes an archive of the miniature data set again after `change(dictionary, metadata)`."""
    path = root / (f"data_{kind}_h36m" + ("_gt.npz" if kind == "2d" else ".npz"))
    key = f"positions_{kind}"
    values, metadata = content(path, key), content(path, "metadata") if kind == "2d" else {}
    change(values, metadata)
    save(path, **{key: values}, **({"metadata": metadata} if kind == "2d" else {}))


def rotate(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Points turned by a unit quaternion w x y z, in float64."""
    u = np.cross(q[1:], v)
    return v + 2 * (q[0] * u + np.cross(q[1:], u))


# ------------------------------------------------------------------------------------------------------------ constants


def test_the_reduction_of_the_skeleton_is_the_recorded_one():
    facts = golden_json(SYSTEM, "skeletons")
    x = np.arange(32.0)[:, None]
    got, present = skeletons.convert(x, "h36m32", "h36m17")
    assert present.all() and got[:, 0].astype(int).tolist() == facts["h36m_17_kept"]
    for name, fact in (("h36m32", "h36m_32"), ("h36m17", "h36m_17_after_rewire"), ("humaneva15", "humaneva_15")):
        skel, want = skeletons.get(name), facts[fact]
        assert [-1 if p == j else p for j, p in enumerate(skel.parents)] == want["parents"]
        if name != "h36m32":
            left, right = keypoints_npz.sides(name)
            assert (left, right) == (want["joints_left"], want["joints_right"])
    raw, others = skeletons.get("h36m32"), [(r["kept"], r["result"]) for r in facts["h36m_32_other_removals"]]
    for kept, want in [(facts["h36m_17_kept"], facts["h36m_17_before_rewire"]), *others]:
        names = [raw.joints[j] for j in kept]
        assert [j for j, name in enumerate(names) if name.startswith("l_")] == want["joints_left"]
        assert [j for j, name in enumerate(names) if name.startswith("r_")] == want["joints_right"]
    ours = {name: [sorted(side) for side in keypoints_npz.sides(skeleton)] for name, skeleton in keypoints_npz.LAYOUTS.items()}
    assert ours["mpii"] == [[3, 4, 5, 13, 14, 15], [0, 1, 2, 10, 11, 12]]
    assert ours["coco"] == [[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]]
    assert ours["humaneva20"] == [[3, 4, 5, 6, 11, 12, 13, 14], [7, 8, 9, 10, 15, 16, 17, 18]]


def test_cameras_and_projections_are_the_recorded_ones():
    values = golden(SYSTEM, "cameras")
    for subject in ("S1", "S5", "S9", "S11"):
        rig = keypoints_npz.h36m_cameras(subject)
        for view in range(4):
            names = ("world", "camera", "proj", "proj_linear", "proj_pixels")
            want = {k: values[f"h36m/{subject}/{view}/{k}"].astype(np.float64) for k in names}
            camera, X = rig[view], torch.from_numpy(want["world"].reshape(-1, 3)) * 1000
            X_cam = camera.to_cam(X)
            assert np.allclose(X_cam / 1000, want["camera"].reshape(-1, 3), atol=1e-5)
            assert np.allclose(camera.to_world(X_cam), X, atol=1e-6)
            full = project_held(X_cam, camera, True, h36m_constants.LENS, 0)
            linear = project_held(X_cam, screen_cameras(camera), False, h36m_constants.LENS, 0)
            assert np.allclose(full, want["proj_pixels"].reshape(-1, 2), atol=1e-3)  # px; recorded in float32
            assert np.allclose(to_screen(full, camera.size), want["proj"].reshape(-1, 2), atol=1e-5)
            assert np.allclose(linear, want["proj_linear"].reshape(-1, 2), atol=1e-5)
            assert np.allclose(from_screen(to_screen(full, camera.size), camera.size), full)
    screen = screen_cameras(keypoints_npz.h36m_cameras("S1"))
    vector = torch.cat([screen.K[:, [0, 1], [0, 1]], screen.K[:, :2, 2], screen.dist[:, [0, 1, 4, 3, 2]]], -1)
    assert np.allclose(vector, values["h36m_intrinsic_normalised"], atol=1e-6)
    q, v = (torch.from_numpy(values[f"quat/{k}"].astype(np.float64)) for k in ("q", "v"))
    turned = h36m_constants.rotation(q.numpy()) @ v.numpy()[..., None]
    assert np.allclose(turned[..., 0], values["quat/rotated"], atol=1e-5)


def test_constants_of_both_data_sets():
    table = golden_json(SYSTEM, "h36m_cameras")
    for subject, places in table["extrinsics_mm"].items():
        rig = keypoints_npz.h36m_cameras(subject)
        assert rig.dtype == torch.float64 and rig.size.tolist() == [[1000, 1002], [1000, 1000], [1000, 1000], [1000, 1002]]
        for view, (place, inner) in enumerate(zip(places, table["intrinsics"], strict=True)):
            assert rig.K[view, [0, 1], [0, 1]].tolist() == inner["focal_length"] and rig.K[view, :2, 2].tolist() == inner["center"]
            assert rig.dist[view, [3, 2]].tolist() == inner["tangential_distortion"]  # p_x is OpenCV's p2
            assert rig.dist[view, [0, 1, 4]].tolist() == inner["radial_distortion"]
            if place:
                assert np.allclose(rig[view].center, place["translation"], atol=1e-9)
            else:  # poses are withheld
                assert torch.equal(rig[view].R, torch.eye(3).double()) and not rig[view].t.any()
    table = golden_json(SYSTEM, "humaneva_constants")
    names = humaneva_constants.ACTIONS
    for subject, ranges in table["frame_ranges"].items():
        assert {n: list(r) for n, r in zip(names, humaneva_constants.FRAMES[subject], strict=True)} == ranges
    for subject, sync in table["sync_first_frame_1based"].items():
        assert dict(zip(names, map(list, humaneva_constants.SYNC.get(subject, ())), strict=False)) == sync
    for subject, places in table["extrinsics_mm"].items():
        for prefix in ("Train/", "Validate/", "Unlabeled/", "Unlabeled/Train/"):
            rig = keypoints_npz.humaneva_cameras(prefix + subject)
            for view, place in enumerate(places):
                assert not place or np.allclose(rig[view].center, place["translation"], atol=1e-9)
    with pytest.raises(DataError, match="'S10'.*S1, S2"):
        keypoints_npz.h36m_cameras("S10")
    with pytest.raises(DataError, match="'Train/S9'.*S1, S2"):
        keypoints_npz.humaneva_cameras("Train/S9")


def test_cameras_are_those_of_the_release(samples):
    release = h36m_raw.metadata(samples / "h36m" / "metadata.xml").cameras
    X = torch.tensor([[0.0, 0, 0], [500, 500, 1000], [-2000, 1000, 1800]]).double()
    for subject in h36m_constants.EXTRINSICS:
        rig = keypoints_npz.h36m_cameras(subject)
        assert torch.allclose(rig.to_cam(X), release[int(subject[1:]) - 1].to_cam(X), atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("keypoints", ["gt", "noisy_h36m"])
def test_the_miniature_data_set(root, keypoints):
    tracks = dataset.load_tracks("keypoints_npz", root, "all", {"dataset": "h36m", "keypoints": keypoints})
    assert isinstance(tracks, Tracks) and len(tracks) == 4 * 3 * 4 and tracks.has_3d.all() and tracks.has_intrinsics.all()
    assert (tracks.layout, tracks.skeleton, tracks.tangential, tracks.fps) == ("h36m17", "h36m17", "h36m", 50.0)
    poses, pixels = content(root / "data_3d_h36m.npz", "positions_3d"), content(root / f"data_2d_h36m_{keypoints}.npz", "positions_2d")
    assert list(zip(tracks.subject, tracks.action, tracks.view, strict=True)) == [
        (s, a, v) for s in ("S1", "S5", "S9", "S11") for a in pixels[s] for v in range(4)
    ]
    kept = golden_json(SYSTEM, "skeletons")["h36m_17_kept"]
    places = golden_json(SYSTEM, "h36m_cameras")["extrinsics_mm"]
    for s in range(len(tracks)):
        subject, action, view = str(tracks.subject[s]), str(tracks.action[s]), int(tracks.view[s])
        rows, X = slice(tracks.start[s], tracks.start[s + 1]), poses[subject][action]
        place = {k: np.array(v) for k, v in places[subject][view].items()}
        conjugate = place["orientation"] * [1, -1, -1, -1]
        want = rotate(conjugate, X[:, kept].astype(np.float64) * 1000 - place["translation"])
        assert np.allclose(tracks.X_cam[rows], want, atol=2e-3)
        np.testing.assert_array_equal(tracks.keypoints[rows], pixels[subject][action][view][: len(X)])  # noisy ones go on after the end
        assert np.allclose(tracks.cameras[int(tracks.camera[s])].center, place["translation"])
    train = keypoints_npz.read(root, "train", "h36m", keypoints)
    valid = keypoints_npz.read(root, "valid", "h36m", keypoints)
    assert set(train.subject) == {"S1", "S5"} and set(valid.subject) == {"S9", "S11"} and len(train) + len(valid) == len(tracks)


def test_true_keypoints_are_projected_poses(root):
    tracks = keypoints_npz.read(root, "all", "h36m", "gt")
    x = tracks.observing()[torch.from_numpy(tracks.track)].project_cam(torch.from_numpy(tracks.X_cam).double(), True, tracks.tangential)
    off = np.abs(x.numpy() - tracks.keypoints)
    assert np.quantile(off, 0.99) < 1e-2  # where a direction is wider than 45 degrees, it is held there
    X_world = content(root / "data_3d_h36m.npz", "positions_3d")["S1"]["Eating"]
    first = lifting_sources.projections(keypoints_npz.h36m_cameras("S1"), X_world)
    want = content(root / "data_2d_h36m_gt.npz", "positions_2d")["S1"]["Eating"]
    assert all(np.allclose(a, b, atol=2e-3) for a, b in zip(first, want, strict=True))


def test_exclusion(root):
    def add(values, _):
        values["S11"]["Directions"] = values["S11"]["Walking"]

    for kind in ("2d", "3d"):
        changed(root, kind, add)
    assert "Directions" not in keypoints_npz.read(root, "valid", "h36m", "gt").action
    assert "Directions" in keypoints_npz.read(root, "valid", "h36m", "gt", exclude=()).action
    got = keypoints_npz.read(root, "all", "h36m", "gt", exclude=["S9", "S11/Eating", "S11/Directions"])
    assert "S9" not in got.subject and set(got.action[got.subject == "S11"]) == {"Walking", "Walking 1"}
    with pytest.raises(DataError, match="S9/Wlking does not occur .*SUBJECT/ACTION"):
        keypoints_npz.read(root, "all", "h36m", "gt", exclude=["S9/Wlking"])


def test_keypoints_without_poses_come_with_all_only(root):
    def add(values, _):
        values["S2"] = {"Walking": values["S1"]["Walking"]}
        values["S1"]["Posing"] = values["S1"]["Walking"][:2]

    changed(root, "2d", add)
    tracks = keypoints_npz.read(root, "all", "h36m", "gt")
    blind = ~tracks.has_3d
    assert blind.sum() == 4 + 2 and tracks.has_intrinsics.all()
    assert not tracks.X_cam[np.repeat(blind, tracks.lengths)].any()
    assert set(tracks.action[blind & (tracks.subject == "S1")]) == {"Posing"} and tracks.subject[-1] == "S2"
    assert keypoints_npz.read(root, "train", "h36m", "gt").has_3d.all()


@pytest.mark.parametrize(("layout", "name", "skeleton"), [
    ("mpii", "gt", "mpii16"), ("", "sh_pt_mpii", "mpii16"), ("", "detectron_pt_coco", "coco17"), ("", "sh_ft_h36m", "h36m17"),
    ("", "sh_ft_h36m", "mpii16"), ("", "sh", "mpii16"),
    ("coco", "sh_ft_h36m", "coco17"), ("", "gt", "h36m17"),
])  # fmt: skip
def test_layout_where_the_archive_does_not_say(root, layout, name, skeleton):
    num = skeletons.get(skeleton).num
    pixels = content(root / "data_2d_h36m_gt.npz", "positions_2d")
    pixels = {s: {a: [x[:, :num] for x in v] for a, v in of.items()} for s, of in pixels.items()}
    save(root / f"data_2d_h36m_{name}.npz", positions_2d=pixels)
    assert keypoints_npz.read(root, "all", "h36m", name, layout=layout).layout == skeleton


def test_the_mpii_lists_that_were_published_are_accepted(root):
    """They name the right sides, in an order that does not pair hip with hip."""

    def mpii(values, metadata):
        for of in values.values():
            for action in of:
                of[action] = [x[:, :16] for x in of[action]]
        metadata.update(layout_name="mpii", num_joints=16, keypoints_symmetry=[[3, 4, 5, 13, 14, 15], [0, 1, 2, 10, 11, 12]])

    changed(root, "2d", mpii)
    assert keypoints_npz.read(root, "all", "h36m", "gt").layout == "mpii16"
    left, right = keypoints_npz.sides("mpii16")
    assert [skeletons.get("mpii16").joints[j][2:] for j in left] == [skeletons.get("mpii16").joints[j][2:] for j in right]


def test_seventeen_joints_and_scores_pass(root):
    kept = golden_json(SYSTEM, "skeletons")["h36m_17_kept"]
    before = keypoints_npz.read(root, "all", "h36m", "gt")

    def reduce(values, _):
        for of in values.values():
            for action in of:
                of[action] = of[action][:, kept]

    def score(values, _):
        for of in values.values():
            for action in of:
                of[action] = [np.concatenate([x, np.full_like(x[..., :1], 0.5)], -1) for x in of[action]]

    changed(root, "3d", reduce)
    changed(root, "2d", score)
    after = keypoints_npz.read(root, "all", "h36m", "gt")
    np.testing.assert_array_equal(before.X_cam, after.X_cam)
    assert after.keypoints.shape[2] == 3 and (after.keypoints[..., 2] == 0.5).all()


def test_custom_videos(tmp_path):
    clip = np.random.default_rng(0).uniform(0, 400, (7, 17, 2)).astype(np.float32)
    pixels = {"a.mp4": {"custom": [clip]}, "b.mp4": {"custom": [clip[:3]]}}
    sizes = {"a.mp4": {"w": 640, "h": 480}, "b.mp4": {"w": 320, "h": 568}}
    keypoints_npz.write_archives(tmp_path, "custom", "mine", {}, pixels, "coco", sizes)
    metadata = content(tmp_path / "data_2d_custom_mine.npz", "metadata")
    assert metadata == {
        "layout_name": "coco", "num_joints": 17, "video_metadata": sizes,
        "keypoints_symmetry": [[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]],
    }  # fmt: skip
    tracks = dataset.load_tracks("keypoints_npz", tmp_path, "all", {"dataset": "custom", "keypoints": "mine"})
    assert tracks.subject.tolist() == ["a.mp4", "b.mp4"] and tracks.action.tolist() == ["custom"] * 2 and not tracks.has_3d.any()
    assert tracks.layout == "coco17" and tracks.skeleton == "" and not tracks.has_intrinsics.any() and tracks.fps == 0
    assert tracks.observing().size.tolist() == [[640, 480], [320, 568]]
    assert torch.equal(tracks.observing().R[1], keypoints_npz.h36m_cameras("S1").R[0])
    keypoints_npz.write(tracks, tmp_path / "again", "custom", "mine")
    again = keypoints_npz.read(tmp_path / "again", "all", "custom", "mine")
    np.testing.assert_array_equal(again.keypoints, tracks.keypoints)
    with pytest.raises(DataError, match="nothing of split train"):
        keypoints_npz.read(tmp_path, "train", "custom", "mine")
    save(tmp_path / "data_2d_custom_mine.npz", positions_2d=pixels, metadata=metadata | {"video_metadata": {"a.mp4": {"w": 640, "h": 480}}})
    with pytest.raises(DataError, match="lacks the size of b.mp4"):
        keypoints_npz.read(tmp_path, "all", "custom", "mine")


def test_published_humaneva_archives(samples):
    folder = samples / "humaneva"
    tracks = dataset.load_tracks("keypoints_npz", folder, "all", {"dataset": "humaneva15", "keypoints": "gt"})
    assert len(tracks) == 75 and set(tracks.view) == {0, 1, 2} and tracks.fps == 60
    assert tracks.has_3d.all() and not tracks.has_intrinsics.any()
    assert tracks.layout == tracks.skeleton == "humaneva15" and {"Train/S1", "Validate/S1"} <= set(tracks.subject)
    assert all(s.startswith("Train/") for s in keypoints_npz.read(folder, "train", "humaneva15", "gt").subject)
    poses = content(folder / "data_3d_humaneva15.npz", "positions_3d")
    fitted, errors = json.loads((folder / "recovered_cameras.json").read_text()), []
    for s in range(len(tracks)):
        subject, action, view = str(tracks.subject[s]), str(tracks.action[s]), int(tracks.view[s])
        rows = slice(tracks.start[s], tracks.start[s + 1])
        # the constants' rotation and centre keep every distance
        X_world = poses[subject][action].astype(np.float64) * 1000
        back = tracks.cameras[int(tracks.camera[s])].to_world(torch.from_numpy(tracks.X_cam[rows]).double().reshape(-1, 3))
        assert np.allclose(back.reshape(X_world.shape), X_world, atol=2e-3)
        if humaneva_constants.person(subject) in fitted:
            fit = fitted[humaneva_constants.person(subject)][view]
            camera = Cameras.make(fit["K"], fit["R"], fit["t"], fit["dist_k1k2p1p2k3"], dtype=torch.float64)
            known = keypoints_npz.humaneva_cameras(subject)[view]
            assert torch.allclose(camera.R, known.R, atol=2e-4) and torch.allclose(camera.center * 1000, known.center, atol=0.2)
            x = camera.project(torch.from_numpy(X_world / 1000).reshape(-1, 3))[0].reshape(*X_world.shape[:2], 2)
            errors.append(np.linalg.norm(x.numpy() - tracks.keypoints[rows], axis=-1).ravel())
    errors = np.concatenate(errors)
    assert len(errors) == tracks.keypoints.shape[0] * 15
    assert np.median(errors) < 1e-3 and errors.max() < 0.27
    assert keypoints_npz.check(folder) == []


# -------------------------------------------------------------------------------------------------------------- writing


def test_what_is_written_is_read_the_same_here_and_elsewhere(root, tmp_path):
    tracks = keypoints_npz.read(root, "all", "h36m", "noisy_h36m")
    files = keypoints_npz.write(tracks, tmp_path / "out", "h36m", "mine")
    assert {kind: path.name for kind, path in files.items()} == {"3d": "data_3d_h36m.npz", "2d": "data_2d_h36m_mine.npz"}
    again = keypoints_npz.read(tmp_path / "out", "all", "h36m", "mine")
    assert np.allclose(again.X_cam, tracks.X_cam, atol=5e-3)
    for name in ("keypoints", "start", "subject", "action", "view", "camera", "has_3d"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tracks, name))
    # bytes of dictionaries of our own: as given, through NumPy's own reader
    poses, pixels = content(root / "data_3d_h36m.npz", "positions_3d"), content(root / "data_2d_h36m_gt.npz", "positions_2d")
    files = keypoints_npz.write_archives(tmp_path / "copy", "h36m", "gt", poses, pixels, "h36m")
    with np.load(files["3d"], allow_pickle=True) as file:
        assert file.files == ["positions_3d"] and file["positions_3d"].shape == () and file["positions_3d"].dtype == object
    np.testing.assert_equal(content(files["3d"], "positions_3d"), poses)
    np.testing.assert_equal(content(files["2d"], "positions_2d"), pixels)
    assert content(files["2d"], "metadata") == content(root / "data_2d_h36m_gt.npz", "metadata")
    assert {x.dtype for of in content(files["3d"], "positions_3d").values() for x in of.values()} == {np.dtype(np.float32)}


def test_nothing_is_overwritten_but_the_same_poses_are_shared(root, tmp_path):
    tracks, out = keypoints_npz.read(root, "all", "h36m", "gt"), tmp_path / "out"
    keypoints_npz.write(tracks, out, "h36m", "a")
    before = (out / "data_3d_h36m.npz").stat().st_mtime_ns
    keypoints_npz.write(tracks, out, "h36m", "b")
    assert (out / "data_3d_h36m.npz").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="data_2d_h36m_a.npz: exists already"):
        keypoints_npz.write(tracks, out, "h36m", "a")
    with pytest.raises(DataError, match="data_3d_h36m.npz: exists already"):
        keypoints_npz.write(tracks.thinned(2), out, "h36m", "c")
    assert sorted(p.name for p in out.iterdir()) == ["data_2d_h36m_a.npz", "data_2d_h36m_b.npz", "data_3d_h36m.npz"]


def test_other_rigs_are_stored_beside_the_archives(tmp_path):
    tracks = from_annotations(make(sequences=2, frames=5))
    with pytest.raises(DataError, match="choose another name"):
        keypoints_npz.write(tracks, tmp_path, "h36m", "gt")
    files = keypoints_npz.write(tracks, tmp_path, "studio", "gt")
    assert set(files) == {"3d", "cameras", "2d"}
    with np.load(files["cameras"], allow_pickle=False) as file:
        assert {"subjects", "K", "R", "t", "dist", "size"} <= set(file.files)
    again = dataset.load_tracks("keypoints_npz", tmp_path, "all", {"dataset": "studio", "keypoints": "gt"})
    assert again.skeleton == tracks.skeleton and again.tangential == tracks.tangential and again.fps == tracks.fps
    assert np.allclose(again.X_cam, tracks.X_cam, atol=2e-2) and again.action.tolist() == tracks.action.tolist()
    np.testing.assert_array_equal(again.keypoints, tracks.keypoints)
    for name in ("K", "R", "t", "dist", "size"):
        assert torch.allclose(getattr(again.observing(), name), getattr(tracks.observing(), name))
    blind = from_annotations(make(sequences=2, frames=5))
    blind = dataclasses.replace(blind, has_3d=np.zeros(len(blind), bool))
    assert set(keypoints_npz.write(blind, tmp_path, "blind", "gt_h36m")) == {"cameras", "2d"}
    seen = keypoints_npz.read(tmp_path, "all", "blind", "gt_h36m")
    assert seen.skeleton == "" and not seen.has_3d.any() and len(seen) == len(blind)
    files["cameras"].unlink()
    with pytest.raises(DataError, match="cameras_studio.npz: no such file"):
        keypoints_npz.read(tmp_path, "all", "studio", "gt")
    files["cameras"].write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as cameras"):
        keypoints_npz.read(tmp_path, "all", "studio", "gt")


def test_tables_that_archives_cannot_hold(root):
    tracks = keypoints_npz.read(root, "all", "h36m", "gt")
    with pytest.raises(DataError, match="view 1 comes where 0 was expected"):
        keypoints_npz.write(tracks.protocol(views=[1]), root / "out", "h36m", "x")
    with pytest.raises(DataError, match="view 0 comes where 1 was expected"):
        keypoints_npz.write(tracks.select([0, 0]), root / "out", "h36m", "x")
    with pytest.raises(DataError, match="choose a name"):
        keypoints_npz.write(tracks, root / "out", "custom", "x")
    with pytest.raises(DataError, match=r"'a' camera 0: has shape \(4, 16, 2\), expected \(frames, 17"):
        keypoints_npz.write_archives(root / "out", "h36m", "x", {}, {"S1": {"a": [np.zeros((4, 16, 2))]}}, "h36m")
    assert not (root / "out").exists()


# ------------------------------------------------------------------------------------------------------------- refusals


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_hostile_archives_are_refused_by_name(root, protocol):
    mark = root / "touched"
    for payload in ({"S1": Hostile(mark)}, Hostile(mark)):
        value = np.empty((), object)
        value[()] = payload
        npy = io.BytesIO()
        np.lib.format.write_array_header_1_0(npy, {"descr": "|O", "fortran_order": False, "shape": ()})
        npy.write(pickle.dumps(value, protocol))
        with zipfile.ZipFile(root / "data_2d_h36m_bad_h36m.npz", "w") as archive:
            archive.writestr("positions_2d.npy", npy.getvalue())
        with pytest.raises(DataError, match=r"bad_h36m.npz: the pickle wants to call (posix|nt).system, .*nothing was run"):
            keypoints_npz.read(root, "all", "h36m", "bad_h36m")
        assert not mark.exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_archives_of_all_protocols_and_of_old_numpy(root, tmp_path, protocol):
    values = content(root / "data_3d_h36m.npz", "positions_3d")
    array = np.array(values, object)
    for core in (b"numpy._core", b"numpy.core"):
        data = pickle.dumps(array, protocol)
        if core == b"numpy.core" and protocol < 4:  # names are lines there, of any length
            data = data.replace(b"numpy._core", core)
        npy = io.BytesIO()
        np.lib.format.write_array_header_1_0(npy, {"descr": "|O", "fortran_order": False, "shape": ()})
        npy.write(data)
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("positions_3d.npy", npy.getvalue())
        np.testing.assert_equal(load_npz(tmp_path / "a.npz")["positions_3d"].item(), values)


def test_damaged_archives(root, tmp_path):
    path = root / "data_2d_h36m_gt.npz"
    whole = path.read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], whole[:400] + b"\0" * 64 + whole[464:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="data_2d_h36m_gt.npz: not an .npz archive, cut short or damaged"):
            keypoints_npz.read(root, "all", "h36m", "gt")
    path.unlink()
    with pytest.raises(DataError, match="data_2d_h36m_gt.npz: no such file; the folder has data_2d_h36m_noisy_h36m.npz, data_3d"):
        keypoints_npz.read(root, "all", "h36m", "gt")
    with pytest.raises(DataError, match="the folder has no such archive. Download"):
        keypoints_npz.read(tmp_path / "none", "all", "h36m", "gt")
    plain = save(tmp_path / "plain.npz", a=np.arange(3), b=np.array(["x"]))
    got = load_npz(plain)
    assert got["a"].tolist() == [0, 1, 2] and got["b"].tolist() == ["x"]


def cut(values, _):
    values["S1"]["Walking"] = [x[:5] for x in values["S1"]["Walking"]]


def drop_action(values, _):
    del values["S1"]["Walking"]


def drop_subject(values, _):
    del values["S5"]


def five_cameras(values, _):
    values["S1"]["Walking"] += values["S1"]["Walking"][:1]


def thirteen_joints(values, _):
    values["S1"]["Walking"][1] = values["S1"]["Walking"][1][:, :13]


def text(values, _):
    values["S1"]["Walking"][1] = ["x"]


def one_array(values, _):
    values["S1"]["Walking"] = 3


def scores(values, _):
    values["S1"]["Walking"][1] = np.concatenate([values["S1"]["Walking"][1]] * 2, -1)


def no_dictionary(values, _):
    values["S1"] = [1]


def number(values, _):
    values["S1"] = 3


def missing(values, _):
    values["S1"]["Walking"][1][2] = np.nan


def stranger(values, _):
    values["S10"] = values["S1"]


def other_layout(_, metadata):
    metadata.update(layout_name="body99")


def fewer(_, metadata):
    metadata.update(num_joints=16)


def other_sides(_, metadata):
    metadata.update(keypoints_symmetry=[[1, 2, 3, 14, 15, 16], [4, 5, 6, 11, 12, 13]])


def strange_sides(_, metadata):
    metadata.update(keypoints_symmetry=[["a"], 3])


@pytest.mark.parametrize(("change", "message"), [
    (cut, "S1 'Walking' camera 0: has 5 frames of keypoints for 20 poses"),
    (drop_action, "has no keypoints of S1 'Walking', .*exclude as S1/Walking"),
    (drop_subject, "has no keypoints of S5, which have 3D poses"),
    (five_cameras, "keypoints of 5 cameras, but its rig has 4"),
    (thirteen_joints, r"camera 1: has shape \(20, 13, 2\), expected \(frames, 17.*DATASET.OPTIONS.layout"),
    (text, "camera 1: is no array of numbers"),
    (one_array, "is int, expected a list with an array for each camera"),
    (scores, "has 4 numbers per joint, others 2"),
    (no_dictionary, "S1 is list, expected a dictionary"),
    (number, "S1 is int, expected a dictionary"),
    (missing, "1 frames hold NaN .*frame 2 of S1 'Walking' camera 1"),
    (stranger, "'S10': Human3.6M has S1"),
    (other_layout, "its layout is 'body99', expected one of mpii, coco"),
    (fewer, "holds 16 joints, but the layout h36m17 has 17"),
    (other_sides, "keypoints_symmetry is .*the joints are in another order than their layout says"),
    (strange_sides, "keypoints_symmetry is .*expected|keypoints_symmetry is .*left and right joints"),
])  # fmt: skip
def test_contradictions_in_2d(root, change, message):
    changed(root, "2d", change)
    with pytest.raises(DataError, match=message):
        keypoints_npz.read(root, "all", "h36m", "gt")
    assert keypoints_npz.check(root)


def test_contradictions_in_3d_and_in_the_arguments(root):
    def short(values, _):
        values["S1"]["Walking"] = values["S1"]["Walking"][:, :20]

    def words(values, _):
        values["S1"]["Walking"] = ["x"]

    with pytest.raises(DataError, match="split 'test' is not one of train, valid, all"):
        keypoints_npz.read(root, "test", "h36m", "gt")
    with pytest.raises(ConfigError, match="DATASET.OPTIONS: 'keypoint' is not one of .*did you mean keypoints"):
        dataset.load_tracks("keypoints_npz", root, "all", {"keypoint": "gt"})
    with pytest.raises(ConfigError, match="'keypoints_npy' is not one of .*keypoints_npz"):
        dataset.load_tracks("keypoints_npy", root, "all")
    shutil.copy(root / "data_2d_h36m_gt.npz", root / "data_2d_h36m_mystery.npz")
    save(root / "data_2d_h36m_mystery.npz", positions_2d=content(root / "data_2d_h36m_gt.npz", "positions_2d"))
    with pytest.raises(DataError, match="does not say which joints it has, nor does its name"):
        keypoints_npz.read(root, "all", "h36m", "mystery")
    save(root / "data_2d_h36m_mystery.npz", boxes=np.zeros(3))
    with pytest.raises(DataError, match="positions_2d is nothing, expected a dictionary"):
        keypoints_npz.read(root, "all", "h36m", "mystery")
    changed(root, "3d", short)
    with pytest.raises(DataError, match=r"S1 'Walking': has shape \(20, 20, 3\), expected \(frames, 17, 3\)"):
        keypoints_npz.read(root, "all", "h36m", "gt")
    changed(root, "3d", words)
    with pytest.raises(DataError, match="S1 'Walking': is no array of numbers"):
        keypoints_npz.read(root, "all", "h36m", "gt")


def test_tracks_of_annotated_layouts(tmp_path):
    from lib.synthetic.world import World

    world = World(split="train", frames=4, size=(64, 48), length=4)
    h36m_raw.write(world.annotations(), tmp_path, "train", None)
    tracks = dataset.load_tracks("h36m_raw", tmp_path, "train", {"step": 1})
    assert tracks.tangential == "h36m" and tracks.has_3d.all()
    x = tracks.observing()[torch.from_numpy(tracks.track)].project_cam(torch.from_numpy(tracks.X_cam).double(), True, "h36m")
    assert np.allclose(x, tracks.keypoints, atol=1e-2)
    assert dataset.load_tracks("h36m_raw", tmp_path, "train", {"step": 1, "tangential": "opencv"}).tangential == "opencv"


def test_check_says_what_looks_wrong(root, samples, tmp_path):
    folder = samples / "humaneva"
    poses = content(folder / "data_3d_humaneva15.npz", "positions_3d")
    pixels = content(folder / "data_2d_humaneva15_gt.npz", "positions_2d")
    small = {s: {a: X * 1000 for a, X in of.items()} for s, of in poses.items()}
    keypoints_npz.write_archives(tmp_path / "mm", "humaneva15", "gt", small, pixels, "humaneva15")
    assert "are the poses in metres?" in keypoints_npz.check(tmp_path / "mm")[0]
    unit = {s: {a: [x / 640 + 900 for x in v] for a, v in of.items()} for s, of in pixels.items()}
    keypoints_npz.write_archives(tmp_path / "px", "humaneva15", "gt", poses, unit, "humaneva15")
    assert "100% of the keypoints lie outside" in keypoints_npz.check(tmp_path / "px")[0]
    assert "no archive data_2d" in keypoints_npz.check(root / "empty")[0]
    rig = keypoints_npz.h36m_cameras("S1")
    body = {"S1": {"Walking": np.concatenate([X for of in poses.values() for X in of.values()])[:200]}}
    joints, _ = skeletons.convert(body["S1"]["Walking"], "humaneva15", "h36m17")
    joints[:, [7, 9]] = joints[:, [8, 10]]
    true = rig.project(torch.from_numpy(joints).double().reshape(-1, 3) * 1000, True, "h36m")[0].float().numpy()
    true = list(true.reshape(4, 200, 17, 2))
    keypoints_npz.write_archives(tmp_path / "order", "h36m", "gt", {"S1": {"Walking": joints}}, {"S1": {"Walking": true}}, "h36m")
    assert keypoints_npz.check(tmp_path / "order") == []
    keypoints_npz.write_archives(tmp_path / "order", "h36m", "late_h36m", {}, {"S1": {"Walking": [x[::-1] for x in true[::-1]]}}, "h36m")
    assert "px from the projected 3D joints" in keypoints_npz.check(tmp_path / "order")[0]


# ----------------------------------------------------------------------------------------------------------- converters


def test_archives_from_the_release_of_human36m(tmp_path, capsys):
    rng, raw = np.random.default_rng(0), {}
    folder = "MyPoseFeatures/D3_Positions"
    for subject, names in {"S1": ("TakingPhoto", "WalkingDog 1"), "S11": ("Directions", "Directions 1")}.items():
        for name in names:
            raw[subject, name] = rng.normal(0, 300, (5, 32, 3)) + [0, 0, 900]
            h36m_raw._write_cdf(tmp_path / "src" / subject / folder / f"{name}.cdf", raw[subject, name])
    out = tmp_path / "out"
    assert prepare.main(["archives", "h36m", str(tmp_path / "src"), str(out)]) == 0
    assert "data_2d_h36m_gt.npz: written" in capsys.readouterr().out
    poses, pixels = content(out / "data_3d_h36m.npz", "positions_3d"), content(out / "data_2d_h36m_gt.npz", "positions_2d")
    assert {s: set(of) for s, of in poses.items()} == {"S1": {"Photo", "WalkDog 1"}, "S11": {"Directions 1"}}
    X = poses["S1"]["WalkDog 1"]
    assert X.dtype == np.float32 and X.shape == (5, 32, 3) and np.allclose(X * 1000, raw["S1", "WalkingDog 1"], atol=1e-2)
    tracks = keypoints_npz.read(out, "all", "h36m", "gt")
    x = tracks.observing()[torch.from_numpy(tracks.track)].project_cam(torch.from_numpy(tracks.X_cam).double(), True, "h36m")
    assert np.allclose(x, tracks.keypoints, atol=1e-2) and pixels["S1"]["Photo"][0].dtype == np.float32
    assert prepare.main(["archives", "h36m", str(tmp_path / "src"), str(out)]) == 2  # never overwritten
    assert "exists already" in capsys.readouterr().err
    assert prepare.main(["archives", "h36m", str(tmp_path / "none"), str(out)]) == 2
    assert "has no folder S1" in capsys.readouterr().err


def test_other_forms_of_the_poses_give_the_same(tmp_path):
    from scipy.io import savemat

    h5py = pytest.importorskip("h5py")
    X = np.random.default_rng(0).normal(0, 300, (4, 32, 3)) + [0, 0, 900]
    h36m_raw._write_cdf(tmp_path / "cdf/S1/MyPoseFeatures/D3_Positions/Walking.cdf", X)
    (tmp_path / "mat/S1/MyPoseFeatures/D3_Positions").mkdir(parents=True)
    cell = np.empty((1, 1), object)
    cell[0, 0] = X.reshape(4, 96)
    savemat(tmp_path / "mat/S1/MyPoseFeatures/D3_Positions/Walking.cdf.mat", {"data": cell})
    (tmp_path / "h5/S1/MyPoses/3D_positions").mkdir(parents=True)
    with h5py.File(tmp_path / "h5/S1/MyPoses/3D_positions/Walking.h5", "w") as file:
        file["3D_positions"] = X.reshape(4, 96).T
    for kind in ("cdf", "mat", "h5"):
        files = lifting_sources.h36m_archives(tmp_path / kind, tmp_path / "out" / kind)
        assert np.allclose(content(files["3d"], "positions_3d")["S1"]["Walking"] * 1000, X, atol=1e-2)


def test_hourglass_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    poses = rng.uniform(0, 1000, (4, 6, 16, 2))
    folder = tmp_path / "src" / "S9" / "StackedHourglass"
    folder.mkdir(parents=True)

    def put(name: str, data: np.ndarray) -> Path:
        with h5py.File(folder / name, "w") as file:
            file["poses"] = data
        return folder / name

    ids = ("54138969", "55011271", "58860488", "60457274")
    files = [put(f"TakingPhoto_1.{camera}.h5", poses[view]) for view, camera in enumerate(ids)]
    put(f"Photo_ALL.{ids[0]}.h5", poses[0])  # no sequence
    made = lifting_sources.hourglass_archive(tmp_path / "src", tmp_path / "out")
    assert made["2d"].name == "data_2d_h36m_sh_pt_mpii.npz"
    assert content(made["2d"], "metadata")["layout_name"] == "mpii"
    np.testing.assert_array_equal(content(made["2d"], "positions_2d")["S9"]["Photo 1"], poses.astype(np.float32))
    files[1].unlink()
    with pytest.raises(DataError, match="Photo 1 has no keypoints of camera 55011271"):
        lifting_sources.hourglass_archive(tmp_path / "src", tmp_path / "b")
    put(f"TakingPhoto_1.{ids[1]}.h5", poses[0, :, :14])
    with pytest.raises(DataError, match=r"poses have shape \(6, 14, 2\)"):
        lifting_sources.hourglass_archive(tmp_path / "src", tmp_path / "b")
    put(f"Photo_1.{ids[0]}.h5", poses[0])
    with pytest.raises(DataError, match="keep the files of one detector"):
        lifting_sources.hourglass_archive(tmp_path / "src", tmp_path / "b")


def recorded_trials() -> tuple[dict, dict]:
    """The input that the recorded chunks were made from."""
    facts, trials = golden_json(SYSTEM, "humaneva_chunks"), {f"{s}/S{n}": {} for s in ("Train", "Validate") for n in (1, 2, 3)}
    for split, (start, stop) in facts["index_range"].items():
        rows = np.arange(stop - start, dtype=np.float64)
        for first, end in facts["invalid_rows"][split]:
            rows[first:end] = np.nan
        X = np.broadcast_to(rows[:, None, None], (len(rows), 15, 3)).copy()
        trials[f"{split}/S1"]["Box 1"] = X, np.stack([X[..., :2]] * 3)
    return facts, trials


def test_chunks_of_humaneva_are_the_recorded_ones(tmp_path):
    from scipy.io import savemat

    facts, trials = recorded_trials()
    for subject, actions in trials.items():
        for action, (X, x) in actions.items():
            path = tmp_path / "src" / subject / f"{action.replace(' ', '_')}.mat"
            path.parent.mkdir(parents=True)
            x = {"Train/S1": x, "Validate/S1": np.moveaxis(x, 0, 3)}[subject]  # both forms that MATLAB code may write
            savemat(path, {"poses_3d": X, "poses_2d": x})
    files = lifting_sources.humaneva_archives(tmp_path / "src", tmp_path / "out")
    assert {path.name for path in files.values()} == {"data_3d_humaneva15.npz", "data_2d_humaneva15_gt.npz"}
    poses, pixels = content(files["3d"], "positions_3d"), content(files["2d"], "positions_2d")
    assert {
        s: {a: {"len": len(X), "first": float(X[0, 0, 0]), "last": float(X[-1, 0, 0])} for a, X in of.items()} for s, of in poses.items()
    } == facts["positions_3d"]
    assert {
        s: {a: {"cams": len(v), "len": len(v[0]), "first": float(v[0][0, 0, 0])} for a, v in of.items()} for s, of in pixels.items()
    } == facts["positions_2d_gt"]
    tracks = keypoints_npz.read(tmp_path / "out", "valid", "humaneva15", "gt")
    assert tracks.action[::3].tolist() == ["Box 1 chunk0", "Box 1 chunk2", "Box 1 chunk4"] and tracks.base_action()[0] == "Box"
    frames = np.broadcast_to(np.arange(900.0)[:, None, None], (900, 17, 2))
    got = lifting_sources.humaneva_detections(trials, {"S1": {"Box 1": [frames] * 3, "Gestures 3": [frames] * 3}})
    assert {
        s: {a: [{"len": len(x), "first_frame": float(x[0, 0, 0]), "last_frame": float(x[-1, 0, 0])} for x in v] for a, v in of.items()}
        for s, of in got.items()
    } == facts["detections"]


def test_detections_of_humaneva_become_the_published_archive(tmp_path):
    from scipy.io import savemat

    facts, trials = recorded_trials()
    src, ids = tmp_path / "src", ("C1", "C2", "C3")
    for subject in ("Train/S1", "Validate/S1"):
        (src / subject).mkdir(parents=True)
        X, x = trials[subject]["Box 1"]
        savemat(src / subject / "Box_1.mat", {"poses_3d": X, "poses_2d": x})
    folder = src / "S1" / "Image_Data"
    folder.mkdir(parents=True)
    frames = np.broadcast_to(np.arange(900.0)[:, None, None], (900, 17, 2))
    for video, ending in (("Box_1", ".avi"), ("Gestures_3", "")):
        for camera in ids:
            np.savez(folder / f"{video}_({camera}){ending}.npz", keypoints=frames)
    arguments = ["archives", "humaneva-detections", str(src), str(tmp_path / "out")]
    assert prepare.main([*arguments, "--keypoints", "mine"]) == 2
    assert prepare.main(arguments) == 0
    path = tmp_path / "out" / "data_2d_humaneva15_detectron_pt_coco.npz"
    assert content(path, "metadata")["layout_name"] == "coco"
    assert {
        s: {a: [{"len": len(x), "first_frame": float(x[0, 0, 0]), "last_frame": float(x[-1, 0, 0])} for x in v] for a, v in of.items()}
        for s, of in content(path, "positions_2d").items()
    } == facts["detections"]
    (folder / "Box_1_(C2).avi.npz").unlink()
    with pytest.raises(DataError, match="Box 1 has no keypoints of camera C2"):
        lifting_sources.humaneva_detection_archive(src, tmp_path / "b")


def test_refusals_about_humaneva(tmp_path):
    from scipy.io import savemat

    _, trials = recorded_trials()
    X, x = trials["Train/S1"]["Box 1"]
    with pytest.raises(DataError, match="has no file Train/S1/Walking_1.mat"):
        lifting_sources.humaneva_archives(tmp_path, tmp_path / "out")
    other = x.copy()
    other[1, 0:3] = 5
    with pytest.raises(DataError, match="keypoints of camera 1 fall into 4 chunks, the poses into 5"):
        lifting_sources.humaneva_positions({"Train/S1": {"Box 1": (X, other)}})
    with pytest.raises(DataError, match="videos of 500, 500, 500 frames, expected 404 poses from frame"):
        lifting_sources.humaneva_detections(trials, {"S1": {"Box 1": [np.zeros((500, 17, 2))] * 3}})
    (tmp_path / "Train/S1").mkdir(parents=True)
    savemat(tmp_path / "Train/S1/Box_1.mat", {"poses_3d": X[:, :14], "poses_2d": x})
    with pytest.raises(DataError, match=r"poses_3d has shape \(404, 14, 3\)"):
        lifting_sources.humaneva_archives(tmp_path, tmp_path / "out")
    (tmp_path / "Train/S1/Box_1.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match="Box_1.mat: cannot be read"):
        lifting_sources.humaneva_archives(tmp_path, tmp_path / "out")
