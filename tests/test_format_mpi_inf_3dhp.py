"""MPI-INF-3DHP's layout: real samples, the release's files made from a known world, videos, the 14 joints that are judged."""

import math
import re

import cv2
import h5py
import numpy as np
import pytest
import scipy.io
import torch

from lib import skeleton as skeletons
from lib import unpickle
from lib.dataset import load
from lib.dataset.formats import mpi_inf_3dhp as layout
from lib.dataset.formats.video import extract_frames
from lib.dataset.image import ImageSpec, read_image
from lib.dataset.samples import CropSamples, ViewSamples
from lib.errors import ConfigError, DataError
from lib.metrics import PoseEvaluator
from lib.metrics.pose import joint_set
from lib.synthetic.world import World

SKELETON = skeletons.get("mpi3dhp17")
IMAGE = (96, 80)


@pytest.fixture(scope="module")
def world():
    return World(split="train", frames=6, length=3, size=IMAGE, distortion=False)


@pytest.fixture(scope="module")
def tree(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("3dhp")
    layout.write(world.annotations(), root, "train", world.image)
    valid = World(split="valid", frames=12, length=3, size=IMAGE, distortion=False)
    layout.write(valid.annotations(), root, "test", valid.image)
    return root


@pytest.fixture
def copy(tree, tmp_path):
    """The annotations alone, to be damaged."""
    for path in [p for p in tree.rglob("*") if p.suffix in (".mat", ".calibration")]:
        target = tmp_path / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


# --- real samples


@pytest.mark.parametrize("split, number", [("train", "S4_Seq2_Cam0"), ("test", "TS1")])
def test_real_poses_lie_where_the_image_shows_them(samples, split, number):
    folder = samples / "mpi_inf_3dhp"
    z = np.load(folder / f"test_3dhp_{split}.npz")
    X, part = z["S"][0, :, :3] * 1000, z["part"][0, :, :2]
    cam = unpickle.load(folder / f"cameras_{split}.pkl")[number]
    focal, center = np.ravel(cam["f"]), np.ravel(cam["c"])
    error = np.abs(focal * X[:, :2] / X[:, 2:] + center - part)
    assert error.max() < 1.85
    K = layout.fit_intrinsics(part, X)  # as for the test set, here from the joints of one frame
    fitted = K[[0, 1], [0, 1]] * X[:, :2] / X[:, 2:] + K[:2, 2] - part
    assert np.square(fitted).mean() <= np.square(error).mean()
    np.testing.assert_allclose(K[[0, 1], [0, 1]], focal, rtol=0.03)
    image = read_image(folder / str(z["imgname"][0]))
    assert (part > 0).all() and (part < image.shape[1::-1]).all()
    y = dict(zip(SKELETON.joints, X[:, 1], strict=True))  # y points down
    assert y["head"] < y["neck"] < y["pelvis"] < y["r_ankle"] and y["head"] < y["head_center"]


def test_real_test_frame_as_a_tree(samples, tmp_path):
    """The sample in the release's file: it comes out as it went in, through a fitted camera."""
    z = np.load(samples / "mpi_inf_3dhp" / "test_3dhp_test.npz")
    X, x = z["S"][:, :, :3] * 1000, z["part"][:, :, :2]
    (tmp_path / "TS1" / "imageSequence").mkdir(parents=True)
    (tmp_path / "TS1" / "imageSequence" / "img_000001.jpg").symlink_to(samples / "mpi_inf_3dhp" / "TS1_002001.jpg")
    with h5py.File(tmp_path / "TS1" / "annot_data.mat", "w") as file:
        for name, value in (("annot2", x), ("annot3", X), ("univ_annot3", X * 0.9)):
            file[name] = value[:, None]
        file["valid_frame"], file["activity_annotation"] = np.ones((1, 1)), np.full((1, 1), 6)
    ann = load("mpi_inf_3dhp", tmp_path, "test")
    np.testing.assert_allclose(ann.X_world, X, atol=1e-2)
    np.testing.assert_allclose(ann.x_img, x, atol=1e-2)
    assert ann.cameras.size.tolist() == [[2048, 2048]] and ann.action(0) == "Sports" and ann.subject(0) == "TS1"
    assert np.linalg.norm(ann.cameras.project(torch.from_numpy(X))[0].numpy() - x, axis=-1).max() < 2.5
    crop = CropSamples(ann, tmp_path, ImageSpec((64, 64)))[0]
    np.testing.assert_allclose(crop["x_patch"][SKELETON.root_index], [32, 32, 0], atol=1e-3)
    universal = layout.read(tmp_path, "test", universal=True)
    np.testing.assert_allclose(universal.X_world, 0.9 * X, atol=1e-2)
    assert layout.check(tmp_path) == []


# --- the release's files


def test_training_tree(tree, world):
    wrote, ann = world.annotations().to_skeleton("mpi3dhp17"), load("mpi_inf_3dhp", tree, "train")
    assert len(ann) == len(wrote) and np.unique(ann.view).tolist() == [0, 2, 4, 7] and layout.check(tree) == []

    def by_place(table):  # sequences are numbered within a subject, in order
        return np.lexsort([table.view, table.frame, table.sequence])

    for a, b in zip(by_place(ann), by_place(wrote), strict=True):
        assert ann.subject(a) == wrote.subject(b)
        np.testing.assert_allclose(ann.x_img[a], wrote.x_img[b], atol=1e-2)
        np.testing.assert_allclose(ann.X_world[ann.pose[a]], wrote.X_world[wrote.pose[b]], atol=1e-2)
    assert ann.conf.all() and ann.X_valid.all() and {ann.action(0), ann.subject(0)} == {"S1", "Seq1"}
    image = read_image(tree / ann.image_path(2))
    assert image.shape == (*IMAGE[::-1], 3) and re.fullmatch(r"S1/Seq1/imageFrames/video_4/frame_000001.jpg", ann.image_path(2))
    views = ViewSamples(ann, tree, ImageSpec((64, 64)))[0]
    assert views["image"].shape == (4, 3, 64, 64)
    with pytest.raises(DataError, match="S1: exists already"):
        layout.write(world.annotations(), tree, "train")
    assert not [p for p in tree.iterdir() if p.name.startswith(".")]


def test_boxes_are_two_metres_around_the_root(tree):
    ann = load("mpi_inf_3dhp", tree, "train")
    cams = ann.cameras[torch.from_numpy(ann.camera.astype(np.int64))]
    root = torch.from_numpy(ann.X_world[ann.pose][:, [SKELETON.root_index]]).double()
    depth = cams.to_cam(root)[:, 0, 2].numpy()
    np.testing.assert_allclose(ann.box[:, 2] - ann.box[:, 0], 2000 * cams.K[:, 0, 0].numpy() / depth, rtol=1e-3)
    np.testing.assert_allclose((ann.box[:, :2] + ann.box[:, 2:]) / 2, cams.project(root)[0][:, 0].numpy(), atol=1e-2)


def test_joints_of_the_28_are_taken_by_name(copy):
    """annot.mat in the release's order: each joint carries its number there."""
    calibrated = layout.read_calibration(copy / "S1" / "Seq1" / "camera.calibration")
    raw = skeletons.get("mpi3dhp28")
    X_world = np.stack([np.arange(raw.num) * 10.0, np.arange(raw.num) * -5.0, np.full(raw.num, 900.0)], -1)[None]
    cells2, cells3 = np.empty((14, 1), object), np.empty((14, 1), object)
    for c in range(14):
        cam = calibrated.get(c, calibrated[0])
        cells2[c, 0], X = cam.project(torch.from_numpy(X_world))[0].numpy().reshape(1, -1), cam.to_cam(torch.from_numpy(X_world))
        cells3[c, 0] = X.numpy().reshape(1, -1)
    path = copy / "S1" / "Seq1" / "annot.mat"
    scipy.io.savemat(path, {"annot2": cells2, "annot3": cells3, "univ_annot3": cells3, "cameras": np.arange(14)})
    ann = load("mpi_inf_3dhp", copy, "train").protocol(["S1"])
    found = np.rint(ann.X_world[ann.pose[0], :, 0] / 10).astype(int)
    assert [raw.joints[k] for k in found] == list(SKELETON.joints)
    one = layout.read(copy, "train", cameras=[4]).protocol(["S1"])
    np.testing.assert_allclose(one.X_world[one.pose[0]], ann.X_world[ann.pose[0]], atol=1e-2)
    assert np.unique(one.view).tolist() == [4]
    with pytest.raises(DataError, match=r"no annotation or calibration of cameras \[5\], only of \[0, 2, 4, 7\]"):
        layout.read(copy, "train", cameras=[4, 5])


def test_test_tree(tree):
    ann = load("mpi_inf_3dhp", tree, "test")
    wrote = World(split="valid", frames=12, length=3, size=IMAGE, distortion=False).annotations().to_skeleton("mpi3dhp17")
    assert len(ann) == len(wrote) and (ann.view == 0).all() and layout.check(tree, "test") == []
    cams = ann.cameras[torch.from_numpy(ann.camera.astype(np.int64))]
    x = cams.project(torch.from_numpy(ann.X_world[ann.pose]).double())[0].numpy()
    assert np.abs(x - ann.x_img).max() < 0.01  # the camera was found again
    K = np.unique(wrote.cameras.K[:, 0, 0].numpy().round(3))
    assert set(ann.cameras.K[:, 0, 0].numpy().round(3)) <= set(K)
    assert {ann.subject(row) for row in range(len(ann))} == {f"TS{k + 1}" for k in range(len(np.unique(wrote.camera)))}
    assert read_image(tree / ann.image_path(0)).shape == (*IMAGE[::-1], 3) and ann.image_path(0) == "TS1/imageSequence/img_000001.jpg"
    assert ann.cameras.size[0].tolist() == list(IMAGE)


def test_only_valid_frames_and_their_activities(copy):
    with h5py.File(copy / "TS1" / "annot_data.mat", "a") as file:
        count = file["valid_frame"].size
        file["valid_frame"][0, 0] = 0
        file["annot3"][0] = np.nan
        file["activity_annotation"] = np.arange(1, count + 1)[None]
    before = load("mpi_inf_3dhp", copy, "valid").protocol(["TS1"])
    assert before.frame.tolist() == list(range(1, count)) and 3 <= count <= 7
    assert [before.action(r) for r in range(count - 1)] == list(layout.ACTIVITIES[1:count])
    assert before.image_path(0) == "TS1/imageSequence/img_000002.jpg"
    by_sequence = layout.read(copy, "test", actions="sequence", step=2).protocol(["TS1"])
    assert {by_sequence.action(r) for r in range(len(by_sequence))} == {"TS1"} and (by_sequence.frame % 2 == 1).all()
    with pytest.raises(ConfigError, match="DATASET.OPTIONS"):
        load("mpi_inf_3dhp", copy, "test", {"action": "sequence"})
    with pytest.raises(DataError, match="actions: 'subject' is not one of"):
        layout.read(copy, "test", actions="subject")


def test_unknown_joints_are_masked(copy):
    with h5py.File(copy / "TS1" / "annot_data.mat", "a") as file:
        file["annot2"][0, 0, 4], file["annot3"][0, 0, 7] = np.nan, np.nan
    ann = load("mpi_inf_3dhp", copy, "test").protocol(["TS1"])
    assert ann.conf[0].tolist() == [float(k != 4) for k in range(17)]
    assert ann.X_valid[ann.pose[0]].tolist() == [k != 7 for k in range(17)] and ann.conf[1].all()


def test_what_does_not_fit_is_named(copy, tmp_path):
    with pytest.raises(DataError, match="has no split 'val'"):
        load("mpi_inf_3dhp", copy, "val")
    with pytest.raises(DataError, match="no sequences of the split 'test'"):
        load("mpi_inf_3dhp", copy / "S1", "test")
    with h5py.File(copy / "TS1" / "annot_data.mat", "a") as file:
        file["annot2"][...] = file["annot2"][...] * 0 + 50
        file["annot2"][0] += 400
    with pytest.raises(DataError, match="TS1/annot_data.mat: no camera fits"):
        load("mpi_inf_3dhp", copy, "test")
    (copy / "TS1" / "annot_data.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    with pytest.raises(DataError, match="TS1/annot_data.mat: not a .mat file"):
        load("mpi_inf_3dhp", copy, "test")
    calibration = copy / "S1" / "Seq1" / "camera.calibration"
    text = calibration.read_text()
    numbers = [line for line in text.splitlines() if "extrinsic" in line]
    calibration.write_text(text.replace(numbers[0], numbers[2]))  # the camera of another
    with pytest.raises(DataError, match=r"S1/Seq1/annot.mat: the poses of camera \d lie .* mm from those of the others"):
        load("mpi_inf_3dhp", copy, "train")
    assert len(layout.check(copy)) == 2
    calibration.write_text(text.replace("intrinsic", "intrinsics"))
    with pytest.raises(DataError, match="camera.calibration: not a calibration"):
        load("mpi_inf_3dhp", copy, "train")
    calibration.unlink()
    with pytest.raises(DataError, match="camera.calibration: cannot be read"):
        load("mpi_inf_3dhp", copy, "train")
    assert layout.check(tmp_path / "nowhere")[0].endswith("set the root to their parent")


def test_calibration_file_of_the_release(tmp_path):
    """Numbers and lines as published; values of camera 0 from the sample's pickle."""
    (tmp_path / "camera.calibration").write_text(
        "Skeletool Camera Calibration File V1.0\n"
        "name          0\n  sensor      10 10\n  size        2048 2048\n  animated    0\n"
        "  intrinsic   1497.693 0 1024.704 0 0 1497.103 1051.394 0 0 0 1 0 0 0 0 1 \n"
        "  extrinsic   0.9650164 0.00488022 0.262144 -562.8666 -0.004488356 -0.9993728 0.0351275 1398.138 "
        "0.262151 -0.03507521 -0.9643893 3852.623 0 0 0 1 \n  radial      0\n"
    )
    (camera,) = layout.read_calibration(tmp_path / "camera.calibration").values()
    assert camera.K[0].tolist() == [1497.693, 0, 1024.704] and camera.t.tolist() == [-562.8666, 1398.138, 3852.623]
    assert camera.size.tolist() == [2048, 2048] and camera.R[1, 1].item() == -0.9993728


def test_distorted_cameras_are_told_and_crowds_refused(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="parallax"):
        layout.write(World(split="train", frames=1, size=IMAGE).annotations(), tmp_path / "a", "train")
    assert "no lens distortion" in caplog.text
    with pytest.raises(DataError, match="several people"):
        layout.write(World(split="train", frames=1, people=2, size=IMAGE).annotations(), tmp_path / "b", "train")
    with pytest.raises(DataError, match="without 3D, camera or image"):
        layout.write(World(split="pretrain", frames=1, size=IMAGE).annotations(), tmp_path / "b", "train")


# --- videos


def make_video(path, frames=12, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, size)
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * k, np.uint8))
    writer.release()
    return path


def test_only_wanted_frames_are_extracted_and_it_can_be_resumed(tmp_path):
    video = make_video(tmp_path / "v.avi")
    names = [tmp_path / "out" / f"{k}.jpg" for k in (7, 2, 11)]
    names[1].parent.mkdir()
    names[1].write_bytes(b"kept")
    extract_frames(video, [7, 2, 11], names)
    assert [round(read_image(n).mean() / 20) for n in (names[0], names[2])] == [7, 11] and names[1].read_bytes() == b"kept"
    assert sorted(p.name for p in names[0].parent.iterdir()) == ["11.jpg", "2.jpg", "7.jpg"]
    video.unlink()
    extract_frames(video, [7, 2, 11], names)  # nothing is left to do
    with pytest.raises(DataError, match="v.avi: no such video, but 1 frames"):
        extract_frames(video, [1], [tmp_path / "1.jpg"])


def test_frames_that_a_video_lacks_are_named(tmp_path):
    video = make_video(tmp_path / "v.avi", frames=4)
    with pytest.raises(DataError, match=r"v.avi: ends after 4 frames, but frame 9 \(0-based\) is wanted for .*b.jpg"):
        extract_frames(video, [1, 9], [tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert (tmp_path / "a.jpg").exists() and not list(tmp_path.glob("*.part"))
    (tmp_path / "w.avi").write_text("no video")
    with pytest.raises(DataError, match="w.avi: cannot be opened as a video"):
        extract_frames(tmp_path / "w.avi", [0], [tmp_path / "c.jpg"])
    lost = tmp_path / "b.jpg"
    assert extract_frames(video, [1, 5], [tmp_path / "a.jpg", lost], short=2) == {lost} and not lost.exists()
    assert extract_frames(tmp_path / "w.avi", [0], [lost], short=math.inf) == {lost}


def test_videos_of_the_tree_become_its_images(copy):
    ann = layout.read(copy, "train", cameras=[0]).protocol(["S1"])
    assert any("images are missing" in text for text in layout.check(copy, "train"))
    for folder in {ann.image_path(row).split("/imageFrames")[0] for row in range(len(ann))}:
        make_video(copy / folder / "imageSequence" / "video_0.avi", size=IMAGE)
    layout.extract(copy, ann, progress=False)
    for row in range(len(ann)):
        assert round(read_image(copy / ann.image_path(row)).mean() / 20) == ann.frame[row]


# --- what is judged


def test_fourteen_joints_of_the_evaluation():
    names = {SKELETON.joints[k] for k in joint_set(SKELETON.joints, "3dhp14")}
    assert names == set(SKELETON.joints[:14])  # the first 14 of the release's 17: no pelvis, spine, head centre
    assert {skeletons.get("h36m17").joints[k] for k in joint_set(skeletons.get("h36m17").joints, "3dhp14")} >= {"head", "thorax"}
    torch.manual_seed(0)
    gt = torch.randn(4, 17, 3) * 300
    pred = gt.clone()
    pred[:, SKELETON.index("spine")] += 1000
    pred[:, SKELETON.index("head")] += torch.tensor([140.0, 0, 0])
    batch = {"X_cam": gt, "X_valid": torch.ones(4, 17), "id": torch.arange(4)}
    evaluator = PoseEvaluator(SKELETON, actions=["Sports", "Sitting"] * 2, joints="3dhp14")
    evaluator.update({"X_cam": pred}, batch)
    report = evaluator.compute()
    assert report.metrics["pck150_percent"] == 100 and report.metrics["mpjpe_mm"] == pytest.approx(10, abs=1e-3)
    assert report.metrics["auc_percent"] == pytest.approx(100 * (13 * 30 + 2) / 14 / 31, abs=1e-3)
    assert report.per_action["pck150_percent"] == {"Sitting": 100, "Sports": 100} and "Sports" in report.table()
    with pytest.raises(ConfigError, match="3dhp14"):
        PoseEvaluator("coco17", joints="3dhp14")
