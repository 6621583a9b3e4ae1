"""The official release: a small one written from the embedded world, and the real cameras."""

import dataclasses
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lib.dataset import load
from lib.dataset.formats import h36m, h36m_raw
from lib.dataset.formats import video as video_frames
from lib.dataset.image import read_image
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras
from lib.synthetic.world import World
from tests.conftest import golden

SIZE = (96, 80)
POSES = "MyPoseFeatures/D3_Positions"


@pytest.fixture(scope="module")
def world() -> World:
    return World(split="train", frames=8, size=SIZE, length=4)  # S1 and S5, 4 instants each


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("release")
    h36m_raw.write(world.annotations(), root, "train", world.image)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "release")


def rows_of(ann) -> dict:
    return {(ann.subject(i), ann.action(i), int(ann.frame[i]), int(ann.view[i])): i for i in range(len(ann))}


def test_poses_and_places_of_cameras_survive(world, made):
    wrote, got = world.annotations(), load("h36m_raw", made, "train", {"step": 1})
    one, two = rows_of(wrote), rows_of(got)
    assert set(one) == set(two) and len(got.X_world) == 8
    for key, i in one.items():
        j = two[key]
        assert np.allclose(wrote.X_world[wrote.pose[i]], got.X_world[got.pose[j]], atol=1e-3)
        a, b = wrote.cameras[int(wrote.camera[i])], got.cameras[int(got.camera[j])]
        assert np.allclose(a.R, b.R, atol=1e-9) and np.allclose(a.t, b.t, atol=1e-6) and torch.equal(a.size, b.size)
        assert np.allclose((wrote.box[i, 2:] - wrote.box[i, :2]) / a.K[0, 0], (got.box[j, 2:] - got.box[j, :2]) / b.K[0, 0], atol=1e-4)
        assert wrote.subactions[wrote.sequence[i]] == got.subactions[got.sequence[j]]
    for view in range(4):  # one lens per camera for all subjects, as in the release
        rows = torch.from_numpy(np.unique(got.camera[got.view == view])).long()
        assert len(rows) == 2 and torch.equal(got.cameras.K[rows[0]], got.cameras.K[rows[1]])
    x_img, _ = got.cameras[torch.from_numpy(got.camera).long()].project(torch.from_numpy(got.X_world[got.pose]).double(), True, "h36m")
    assert np.allclose(got.x_img, x_img, atol=1e-3) and got.cameras.dist.any()


def test_steps_offsets_subjects_and_projections(made, caplog):
    assert sorted(set(h36m_raw.read(made, "train", step=2, offset=1).frame)) == [1, 3]
    assert set(h36m_raw.read(made, "train").frame) == {0}  # every 32nd
    assert "S6, S7, S8 of split train are not there" in caplog.text
    one = h36m_raw.read(made, "train", step=1, subjects=["S5"])
    assert set(one.subjects) == {b"S5"} and len(one) == 16
    pinhole = h36m_raw.read(made, "train", step=1, subjects=["S5"], project="pinhole")
    assert not pinhole.cameras.dist.any() and 0.05 < np.abs(pinhole.x_img - one.x_img).max() < 5
    fx, fy = pinhole.cameras.K[pinhole.camera[0]].diagonal()[:2]
    Z = pinhole.cameras[int(pinhole.camera[0])].to_cam(torch.from_numpy(pinhole.X_world[0]).double())[0, 2]
    width, height = pinhole.box[0, 2:] - pinhole.box[0, :2]
    assert np.allclose([width, height], [2000 * fx / Z, 2000 * fy / Z], rtol=1e-5)
    with pytest.raises(DataError, match="S9 is not in split train"):
        h36m_raw.read(made, "train", subjects=["S9"])
    with pytest.raises(DataError, match="no folder S7"):
        h36m_raw.read(made, "train", subjects=["S7"])
    with pytest.raises(DataError, match="split 'test' is not one of train, valid, all"):
        h36m_raw.read(made, "test")
    with pytest.raises(DataError, match="no pose of S1, S5 is left"):
        h36m_raw.read(made, "train", offset=99)
    with pytest.raises(ConfigError, match="DATASET.OPTIONS"):
        load("h36m_raw", made, "train", {"stride": 1})


def test_images_are_extracted_where_the_joints_are_and_extraction_goes_on(world, made, tmp_path, monkeypatch):
    ann = h36m_raw.read(made, "train", step=2)
    assert h36m_raw.extract(made, ann, tmp_path, progress=False) is ann
    files = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert sorted(str(p.relative_to(tmp_path)) for p in files) == sorted(n.decode() for n in ann.images)
    wrote = rows_of(world.annotations())
    for i in range(0, len(ann), 5):
        image = read_image(tmp_path / ann.image_path(i)).astype(float)
        j = wrote[ann.subject(i), ann.action(i), int(ann.frame[i]), int(ann.view[i])]
        theirs = world.image(int(world.annotations().image[j]))
        source = world.cameras[int(world.annotations().camera[j])]
        maps = h36m_raw._resampling(source, ann.cameras[int(ann.camera[i])])
        expected = cv2.remap(theirs, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert np.abs(image - expected).mean() < 12  # JPEG and mp4
    # the resampled pixel of a joint is the original pixel of that joint
    i = 0
    j = wrote[ann.subject(i), ann.action(i), int(ann.frame[i]), int(ann.view[i])]
    maps = h36m_raw._resampling(world.cameras[int(world.annotations().camera[j])], ann.cameras[int(ann.camera[i])])
    u, v = np.rint(ann.x_img[i, 0]).astype(int)
    assert np.allclose([maps[0][v, u], maps[1][v, u]], world.annotations().x_img[j, 0], atol=0.8)
    # gone and damaged images are made again, the others are left alone
    before = {p: p.stat().st_mtime_ns for p in files}
    files[0].unlink()
    decoded = []
    real = video_frames._save
    monkeypatch.setattr(video_frames, "_save", lambda path, image: (decoded.append(path), real(path, image)))
    h36m_raw.extract(made, ann, tmp_path, progress=False)
    assert decoded == [files[0]] and all(p.stat().st_mtime_ns == t for p, t in before.items() if p != files[0])
    assert not list(tmp_path.rglob("*.part"))


def video(root: Path, view: int = 0, subject: str = "S1") -> Path:
    return root / subject / "Videos" / f"Directions 1.{h36m.CAMERA_IDS[view]}.mp4"


def test_videos_and_poses_of_different_length(root, tmp_path):
    """Videos hold a few frames more or fewer than the poses."""
    long, short = video(root, 0), video(root, 1)
    for path, count in ((long, 6), (short, 3)):
        path.unlink()
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 50, SIZE)
        for _ in range(count):
            writer.write(np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
        writer.release()
    ann = h36m_raw.read(root, "train", step=1, subjects=["S1"])
    assert set(ann.frame) == {0, 1, 2}  # the shortest counts
    assert len(h36m_raw.extract(root, ann, tmp_path / "out", progress=False)) == 12
    # a table made before the videos were there
    for path in (root / "S1" / "Videos").iterdir():
        path.rename(root / path.name)
    ann = h36m_raw.read(root, "train", step=1, subjects=["S1"])
    assert set(ann.frame) == {0, 1, 2, 3}
    for path in root.glob("*.mp4"):
        path.rename(root / "S1" / "Videos" / path.name)
    kept = h36m_raw.extract(root, ann, tmp_path / "more", progress=False)
    assert len(kept) == 15 and (3, 1) not in set(zip(kept.frame, kept.view, strict=True))


def test_missing_and_cut_videos_are_named_with_the_next_step(root, tmp_path, monkeypatch):
    ann = h36m_raw.read(root, "train", step=1)
    good = video(root).read_bytes()
    video(root).unlink()
    with pytest.raises(DataError, match=r"Directions 1.54138969.mp4: no such video, but 4 frames of it are wanted; unpack Videos_S1.tgz"):
        h36m_raw.extract(root, ann, tmp_path, progress=False)
    video(root).write_bytes(good[: len(good) // 3])
    with pytest.raises(DataError, match=r"54138969.mp4: cannot be opened.*Videos_S1.tgz into .* again"):
        h36m_raw.extract(root, ann, tmp_path, progress=False)
    monkeypatch.setattr(h36m_raw, "TOLERATED", 0)
    writer = cv2.VideoWriter(str(video(root)), cv2.VideoWriter_fourcc(*"mp4v"), 50, SIZE)
    writer.write(np.zeros((SIZE[1], SIZE[0], 3), np.uint8))
    writer.release()
    with pytest.raises(DataError, match=r"ends after 1 frames, but frame 3 \(0-based\) is wanted for .*000004.jpg; unpack Videos_S1.tgz"):
        h36m_raw.extract(root, ann, tmp_path, progress=False)
    said = "\n".join(h36m_raw.check(root, "train"))
    assert "has 1 frames, its poses 4" in said


def test_spellings_of_subject_1(root, tmp_path):
    names = [p for p in (root / "S1").rglob("Directions 1*")]
    for path in names:
        path.rename(path.with_name(path.name.replace("Directions", "WalkingDog")))
    ann = h36m_raw.read(root, "train", step=1, subjects=["S1"])
    assert ann.action(0) == "WalkDog" and ann.image_path(0) == "images/S1/WalkDog_1.54138969/000001.jpg"
    assert len(h36m_raw.extract(root, ann, tmp_path / "out", progress=False)) == 16


def test_damaged_sequences_are_flagged_or_left_out(tmp_path, caplog):
    world = World(split="valid", frames=8, size=SIZE, length=1, actions=("Directions", "Greeting", "SittingDown"))
    ann = world.annotations()
    ann = dataclasses.replace(ann, subactions=np.full(len(ann.subjects), b"2"))
    keep = np.unique(np.stack([ann.subjects, ann.actions], 1), axis=0, return_index=True)[1]  # one take of each
    h36m_raw.write(ann.select(np.isin(ann.sequence, keep)), tmp_path, "valid")
    assert (tmp_path / "S9" / POSES / "SittingDown 1.cdf").exists() and (tmp_path / "S11" / POSES / "Directions.cdf").exists()
    every = h36m_raw.read(tmp_path, "valid", step=1)
    assert "known to be damaged: S11 Directions of camera 54138969 (the video" in caplog.text and "S9 SittingDown_1" in caplog.text
    good = h36m_raw.read(tmp_path, "valid", step=1, exclude_damaged=True)
    assert "left out as damaged: S11 Directions" in caplog.text
    whole = {("S9", "Greeting"), ("S9", "SittingDown")}
    lost = {k for k in rows_of(every) if k[:2] in whole or k == ("S11", "Directions", 0, 0)}
    assert set(rows_of(every)) - set(rows_of(good)) == lost and len(lost) == 9
    # without its video the damaged view is left out, any other is an error
    with pytest.raises(DataError, match="no such video"):
        h36m_raw.extract(tmp_path, every, tmp_path / "out", progress=False)
    only = every.select([rows_of(every)["S11", "Directions", 0, 0]])
    assert len(h36m_raw.extract(tmp_path, only, tmp_path / "out", progress=False)) == 0


def test_splits_are_added_and_nothing_is_overwritten(world, root):
    before = h36m_raw.read(root, "train", step=1)
    valid = World(split="valid", frames=1, size=SIZE)
    h36m_raw.write(valid.annotations(), root, "valid")
    after = h36m_raw.read(root, "train", step=1)
    assert np.array_equal(before.x_img, after.x_img) and torch.equal(before.cameras.K, after.cameras.K)
    got = h36m_raw.read(root, "valid", step=1)
    assert torch.equal(got.cameras.K[0], after.cameras.K[0])  # the lens stays
    assert np.allclose(got.X_world[0], valid.annotations().X_world[0], atol=1e-3)
    with pytest.raises(DataError, match=r"S1: exists already"):
        h36m_raw.write(world.annotations(), root, "train")


def test_an_interrupted_write_leaves_no_subject_behind(world, tmp_path):
    def broken(i: int):
        if i > 20:
            raise OSError(28, "No space left on device")
        return world.image(i)

    with pytest.raises(DataError, match="No space left"):
        h36m_raw.write(world.annotations(), tmp_path, "train", broken)
    assert list(tmp_path.iterdir()) == []


def test_from_the_release_to_the_annotations_that_are_trained_on(made, tmp_path):
    ann = h36m_raw.extract(made, h36m_raw.read(made, "train", step=2), tmp_path, progress=False)
    h36m.write(ann, tmp_path, "train-fs")
    h36m.write(ann, tmp_path, "train-pkl", form="pickle")
    assert h36m.check(tmp_path) == []
    got = h36m.read(tmp_path, "train-fs")
    assert np.array_equal(got.x_img, ann.x_img) and got.images.tolist() == ann.images.tolist()
    assert read_image(tmp_path / got.image_path(0)).shape == (SIZE[1], SIZE[0], 3)
    other = h36m.read(tmp_path, "train-pkl", project="distorted")
    assert np.allclose(other.x_img, ann.x_img, atol=2e-3) and np.allclose(other.X_world[other.pose], ann.X_world[ann.pose], atol=1e-3)


def test_other_forms_of_the_poses(made, tmp_path):
    import h5py
    import scipy.io

    ann = h36m_raw.read(made, "train", step=1, subjects=["S1"])
    (name, path), = h36m_raw.sequences(made, "S1").items()
    pose = h36m_raw.pose_file(path)
    assert pose.shape == (4, 32, 3) and name == "Directions_1"
    shutil.copy(made / "metadata.xml", tmp_path)
    folder = tmp_path / "S1" / "MyPoses" / "3D_positions"
    folder.mkdir(parents=True)
    with h5py.File(folder / "Directions 1.h5", "w") as file:
        file["3D_positions"] = pose.reshape(4, 96).T
    assert np.array_equal(h36m_raw.read(tmp_path, "train", step=1).X_world, ann.X_world)
    folder = tmp_path / "S1" / POSES
    folder.mkdir(parents=True)
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = pose.reshape(4, 96)
    scipy.io.savemat(folder / "Directions 1.cdf.mat", {"data": cell})
    scipy.io.savemat(folder / "_ALL 1.cdf.mat", {"data": cell})
    assert list(h36m_raw.sequences(tmp_path, "S1")) == ["Directions_1"]
    assert np.array_equal(h36m_raw.read(tmp_path, "train", step=1).X_world, ann.X_world)


def test_contradictions_are_told(root):
    for path in (root / "S1" / "MyPoseFeatures" / "D3_Positions_mono").iterdir():
        os.rename(root / "S5" / "MyPoseFeatures" / "D3_Positions_mono" / path.name, path)
    with pytest.raises(DataError, match=r"D3_Positions_mono/Directions 1.*mm from the world joints"):
        h36m_raw.read(root, "train", step=1)
    shutil.rmtree(root / "S1" / "MyPoseFeatures" / "D3_Positions_mono")
    for path in (root / "S1" / "MyPoseFeatures" / "D2_Positions").iterdir():
        os.rename(root / "S5" / "MyPoseFeatures" / "D2_Positions" / path.name, path)
    assert "px from the projected world joints" in "\n".join(h36m_raw.check(root, "train"))


def test_check(root, tmp_path):
    said = h36m_raw.check(root, "train")
    assert [s for s in said if "S6" not in s and "S7" not in s and "S8" not in s] == [] and len(said) == 3
    video(root, 2).unlink()
    (root / "S5" / POSES / "Directions 1.cdf").write_bytes(b"CDF")
    said = "\n".join(h36m_raw.check(root, "train"))
    assert "Directions 1.58860488.mp4 is missing" in said
    assert f"S5/{POSES}/Directions 1.cdf: cannot be read as poses" in said
    assert "metadata.xml: no such file" in h36m_raw.check(tmp_path / "none")[0]


def test_without_the_table_of_names_actions_follow_from_the_files(root):
    text = (root / "metadata.xml").read_text()
    (root / "metadata.xml").write_text(re.sub("<mapping>.*</mapping>", "", text))
    for path in list((root / "S5").rglob("Directions 1*")):
        path.rename(path.with_name(path.name.replace("Directions 1", "SittingDown")))
    ann = h36m_raw.read(root, "train", step=1)
    assert ann.actions.tolist() == [b"Directions", b"SittingDown"] and ann.subactions.tolist() == [b"1", b"2"]
    assert not ann.cameras.size.any()


@pytest.mark.parametrize(("text", "message"), [
    (b"", "cannot be read as the release's"),
    (b"<a><w0>[1 2 3]</w0></a>", "w0 holds 3 numbers, 3 of them finite, expected 300"),
    (b"<a><w0>[" + b"nan " * 300 + b"]</w0></a>", "300 numbers, 0 of them finite"),
    (b"<?xml version='1.0' encoding='utf8x'?><a></a>", "unknown encoding|cannot be read as the release's"),
    (b"<a><w0>[1 x]</w0></a>", "cannot be read as the release's"),
    (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declares entities"),
])  # fmt: skip
def test_other_metadata(root, text, message):
    (root / "metadata.xml").write_bytes(text)
    with pytest.raises(DataError, match=message):
        h36m_raw.read(root, "train")


def test_what_a_release_cannot_hold(tmp_path):
    for arguments, text in (
        ({"split": "train", "people": 2}, "shows a second person"),
        ({"split": "train", "rig": "panoptic5"}, "view beyond the 4 cameras"),
        ({"split": "pretrain"}, "split 'pretrain' with subjects P001"),
    ):
        with pytest.raises(DataError, match=text):
            world = World(frames=1, size=SIZE, **arguments)
            h36m_raw.write(world.annotations(), tmp_path, world.split)
    world = World(frames=1, size=(33, 32))
    with pytest.raises(DataError, match="33 x 32 px, expected even numbers"):
        h36m_raw.write(world.annotations(), tmp_path / "odd", "train", world.image)


def test_the_three_published_forms_of_the_cameras_agree(samples):
    folder = samples / "h36m"
    cameras = h36m_raw.metadata(folder / "metadata.xml").cameras
    known = json.loads((folder / "camera-parameters.json").read_text())
    others = pickle.loads((folder / "cameras.pkl").read_bytes())
    count = 0
    for person in range(11):
        for view, camera in enumerate(h36m.CAMERA_IDS):
            mine, outer, inner = cameras[person, view], known["extrinsics"].get(f"S{person + 1}"), known["intrinsics"][camera]
            assert np.allclose(mine.K, inner["calibration_matrix"], rtol=0, atol=1e-12)
            assert np.allclose(mine.dist, inner["distortion"], rtol=0, atol=1e-12)
            if outer:
                assert np.abs(mine.R.numpy() - outer[camera]["R"]).max() < 1e-12
                assert np.abs(mine.t.numpy() - np.ravel(outer[camera]["t"])).max() < 1e-9  # mm, of thousands
            theirs = others.get((f"S{person + 1}", camera))
            if theirs:
                count += 1
                assert np.abs(mine.R.numpy() - np.asarray(theirs["R"]).T).max() < 1e-12
                assert np.allclose(mine.center, 1000 * np.ravel(theirs["T"]), rtol=1e-12)
                assert np.allclose(mine.K[:2, 2], np.ravel(theirs["c"]), rtol=1e-12)
                assert np.allclose(mine.dist[[0, 1, 4, 2, 3]], np.r_[np.ravel(theirs["k"]), np.ravel(theirs["p"])], rtol=1e-12)
                assert mine.size.tolist() == [theirs["w"], theirs["h"]] or person in (3, 6, 9)
    assert count >= 28
    assert np.allclose(h36m_raw.rotation(h36m_raw.angles(cameras.R.numpy())), cameras.R, atol=1e-12)


def test_real_names_of_sequences(samples):
    names = h36m_raw.metadata(samples / "h36m" / "metadata.xml").subactions
    assert names["S1", "Photo_1"] == (12, 1) and names["S9", "SittingDown_1"] == (10, 2) and names["S11", "Directions"] == (2, 2)
    assert names["S9", "Greeting"] == (5, 2) and names["S9", "Waiting_1"] == (13, 1)
    for (_, name), (action, _) in names.items():
        if action > 1:
            assert name.partition("_")[0] == h36m.ACTIONS[action - 2]
    for (subject, name, _) in h36m_raw.DAMAGED:
        assert (subject, name) in names


def test_golden_projections_and_boxes():
    """The original's 2D joints and boxes, which ignore the lens."""
    g = golden("epipolarpose", "projection")
    release = h36m_raw.Release(whole_rig(g), {})
    for i, (subject, camera) in enumerate(g["subject_cam"]):
        part = {
            "subject": f"S{subject}", "name": "Walking", "action": "Walking", "subaction": "2", "X": g["world"][i : i + 1],
            "frame": np.array([i]), "views": np.array([camera]), "person": subject - 1,
        }  # fmt: skip
        ann = h36m_raw._table([part], release, "pinhole", "h36m")
        assert np.allclose(ann.x_img[0], g["joints_3d"][i, :, :2], atol=1e-3)
        x, y, width, height = g["center_w_h"][i]
        assert np.allclose(ann.box[0], [x - width / 2, y - height / 2, x + width / 2, y + height / 2], atol=1e-3)
        assert np.allclose(h36m_raw._table([part], release, "distorted", "h36m").x_img[0], g["proj_radial"][i], atol=1e-3)


def whole_rig(g: dict) -> Cameras:
    """Cameras (11,4) with those of the golden file filled in."""
    K, R = (np.broadcast_to(np.eye(3), (11, 4, 3, 3)).copy() for _ in range(2))
    center, dist = np.zeros((11, 4, 3)), np.zeros((11, 4, 5))
    for i, (subject, camera) in enumerate(g["subject_cam"]):
        at = subject - 1, camera
        K[at][[0, 1], [0, 1]], K[at][:2, 2], R[at], center[at] = g["f"][i, :, 0], g["c"][i, :, 0], g["R"][i], g["T"][i, :, 0]
        dist[at] = np.concatenate([g["k"][i, :2, 0], g["p"][i, :, 0], g["k"][i, 2:, 0]])
    return Cameras.make(K, R, center=center, dist=dist)
