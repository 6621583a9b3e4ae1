"""Shelf and Campus: recorded results, cells of every wrapping, detections, the scenes that networks are trained on."""

import json
import pickle
from collections import defaultdict

import numpy as np
import pytest
import scipy.io
import torch

from lib import skeleton as skeletons
from lib.dataset import load
from lib.dataset.calibrations import center_form
from lib.dataset.formats import actors, campus, shelf
from lib.dataset.frames import FrameSamples
from lib.dataset.image import ImageSpec, read_image
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.synthetic.world import World
from scripts import prepare
from tests.conftest import golden, golden_json
from tests.scene import ring_of_cameras

IMAGE = (96, 80)
BOTH = pytest.mark.parametrize("layout", [shelf, campus], ids=["shelf", "campus"])


@pytest.fixture(scope="module")
def world():
    return World(split="valid", frames=8, length=2, people=2, size=IMAGE, distortion=False)


@pytest.fixture(scope="module")
def trees(world, tmp_path_factory):
    ann = world.annotations().protocol(["S9"])
    roots = {}
    for layout in (shelf, campus):
        roots[layout] = tmp_path_factory.mktemp(layout.LAYOUT.name)
        layout.write(ann, roots[layout], "valid", world.image)
    return roots, ann


@pytest.fixture
def poses(samples):
    return actors.read_poses(samples / "campus" / actors.POSES)


def cell(values, shape=None):
    """A MATLAB cell array, a column unless a shape is given."""
    out = np.empty(len(values), object)
    out[:] = values
    return out.reshape(shape or (-1, 1))


def wrapped(value, times):
    for _ in range(times):
        value = cell([value], (1, 1))
    return value


# --- recorded results


def test_campus_records_are_those_recorded(samples):
    g, case = golden("selfpose3d", "datasets"), golden_json("selfpose3d", "datasets")["cases"]["campus_parse"]
    ann = load("campus", samples / "campus", "all")
    assert len(np.unique(ann.image)) == case["n_records"] and np.unique(ann.frame).tolist() == case["frames"]
    assert [ann.image_path(r) for r in (0, 1)] == case["images"] and ann.skeleton == "campus14"
    X = actors.read_actors(samples / "campus/actorsGT.mat")
    assert X.shape == (3, 3, 14, 3) and np.isnan(X[:, 1:]).all()
    np.testing.assert_allclose(X[0, 0], g["campus_parse/joints_3d_first"][0], atol=1e-6)
    np.testing.assert_allclose(ann.X_world[ann.pose[:2]], g["campus_parse/joints_3d_first"], atol=1e-3)
    np.testing.assert_allclose(ann.x_img[:2], g["campus_parse/joints_2d_first"], atol=1e-4)
    np.testing.assert_array_equal(ann.visible[:2], g["campus_parse/vis2d_first"][..., 0])
    mat = scipy.io.loadmat(samples / "campus/actorsGT.mat")["actor2D"][0, 0]
    annotated = np.stack([mat[t, 0][0, v] for t in range(3) for v in range(3)])
    assert np.abs(ann.x_img - annotated).max() < 3  # the projections lie where the 2D was clicked
    assert campus.check(samples / "campus") == [
        f"{samples / 'campus/pred_campus_maskrcnn_hrnet_coco.pkl'}: nobody is detected in any frame; download the file again"
    ]


def test_shelf_records_are_those_recorded(samples, tmp_path):
    """The recorded 3D in a file of its own: the published annotations of Shelf are no part of the samples."""
    g, case = golden("selfpose3d", "datasets"), golden_json("selfpose3d", "datasets")["cases"]["shelf_parse"]
    X = g["shelf_parse/joints_3d_first"][0]
    scipy.io.savemat(tmp_path / "actorsGT.mat", {"actor3D": wrapped(cell([cell([X / 1000] * 3)], (1, 1)), 1)})
    for name in ("calibration_shelf.json", "pred_shelf_maskrcnn_hrnet_coco.pkl"):
        (tmp_path / name).write_bytes((samples / "shelf" / name).read_bytes())
    ann = load("shelf", tmp_path, "all")
    assert len(np.unique(ann.image)) == case["n_records"] and [ann.image_path(r) for r in (0, 1)] == case["images"]
    np.testing.assert_allclose(ann.x_img[:2], g["shelf_parse/joints_2d_first"], atol=1e-3)
    np.testing.assert_array_equal(ann.visible[:2], g["shelf_parse/vis2d_first"][..., 0])
    found = load("shelf", tmp_path, "all", {"labels": "detections", "missing": "skip"})  # a file that was cut to one frame
    assert np.bincount(found.view)[:2].tolist() == case["n_pred2d"] and len(found) == 19 and found.skeleton == "coco17"
    raw = pickle.loads((samples / "shelf/pred_shelf_maskrcnn_hrnet_coco.pkl").read_bytes())
    np.testing.assert_allclose(found.x_img[0], raw["0_0"][0]["pred"][:, :2], atol=1e-4)
    assert found.image.max() == -1 and found.pose.max() == -1 and found.person[:3].tolist() == [0, 1, 2]


def test_empty_detections_are_survived(samples):
    ann = load("campus", samples / "campus", "all", {"labels": "detections"})
    assert (ann.person == -1).all() and not ann.conf.any() and np.unique(ann.view).tolist() == [0, 1, 2]


def test_frames_that_the_detections_do_not_name_show_nobody(samples, tmp_path):
    """The recorded file names one frame of three; the others are annotated, so nobody was found there."""
    X = golden("selfpose3d", "datasets")["shelf_parse/joints_3d_first"][0]
    scipy.io.savemat(tmp_path / "actorsGT.mat", {"actor3D": wrapped(cell([cell([X / 1000] * 3)], (1, 1)), 1)})
    for name in ("calibration_shelf.json", "pred_shelf_maskrcnn_hrnet_coco.pkl"):
        (tmp_path / name).write_bytes((samples / "shelf" / name).read_bytes())
    named = load("shelf", tmp_path, "all", {"labels": "detections", "missing": "skip"})
    ann = load("shelf", tmp_path, "all", {"labels": "detections"}).check("detections")
    first = ann.frame == 0
    assert np.unique(ann.frame).tolist() == [0, 1, 2] and np.array_equal(ann.x_img[first], named.x_img)
    assert first.sum() == len(named) == 19 and (ann.person[~first] == -1).all() and not ann.conf[~first].any()
    assert ann.view[~first].tolist() == [0, 1, 2, 3, 4] * 2


# --- the embedded world


@BOTH
def test_world_as_tree(layout, trees):
    (roots, wrote), name = trees, layout.LAYOUT.name
    ann, wrote = load(name, roots[layout], "valid"), wrote.to_skeleton(layout.SKELETON)
    assert len(ann) == len(wrote) == 32 and layout.check(roots[layout]) == [] and len(ann.cameras) == 4
    order = np.lexsort([wrote.person, wrote.view, wrote.frame, wrote.sequence])
    known = wrote.conf[order] > 0
    np.testing.assert_allclose(ann.x_img[known], wrote.x_img[order][known], atol=0.02)
    np.testing.assert_allclose(ann.X_world[ann.pose], wrote.X_world[wrote.pose[order]], atol=1e-3)
    first = {"shelf": (300, "Camera0/img_000300.png"), "campus": (350, "Camera0/campus4-c0-00350.png")}[name]
    assert (ann.frame[0], ann.image_path(0)) == first and (roots[layout] / first[1]).read_bytes()[1:4] == b"PNG"
    assert read_image(roots[layout] / first[1]).shape == (*IMAGE[::-1], 3)
    found = load(name, roots[layout], "valid", {"labels": "detections"})
    coco = trees[1].to_skeleton("coco17").select(order)
    seen = found.conf > 0
    assert seen.sum() == (coco.conf * coco.visible > 0).sum()
    np.testing.assert_allclose(found.x_img[seen], coco.x_img[coco.conf * coco.visible > 0], atol=1e-3)
    with pytest.raises(DataError, match="no actor in one of the split 'train'"):
        load(name, roots[layout], "train")
    with pytest.raises(DataError, match="exists already"):
        layout.write(trees[1], roots[layout], "valid")
    assert not [p for p in roots[layout].iterdir() if p.name.startswith(".")]


@BOTH
def test_frames_of_several_people(layout, trees):
    """Actors and detections of an instant can be loaded side by side."""
    roots, _ = trees
    name, spec = layout.LAYOUT.name, ImageSpec((64, 48))
    frames = FrameSamples(load(name, roots[layout], "valid"), roots[layout], spec)
    found = FrameSamples(load(name, roots[layout], "valid", {"labels": "detections"}), roots[layout], spec, images=False)
    assert len(frames) == len(found) == 4
    sample, other = frames[0], found[0]
    assert int(sample["n_people"]) == 2 and sample["image"].shape == (4, 3, 48, 64) and int(other["n_people"]) == 0
    assert (other["conf"] > 0).any(-1).sum(-1).tolist() == [2] * 4


def test_commands(trees, samples, capsys):
    roots, _ = trees
    assert prepare.main(["shelf", "--root", str(roots[shelf])]) == 0
    said = capsys.readouterr().out
    assert "actors, valid: 4 instants, 2 people, 4 views, 16 of 16 images are there, 32 2D poses" in said and "good: valid: " in said
    assert prepare.main(["campus", "--root", str(samples / "shelf")]) == 1
    assert "calibration_campus.json: cannot be read" in capsys.readouterr().out


# --- files


@pytest.mark.parametrize("outer, inner, pose", [(0, 0, 0), (1, 0, 1), (0, 2, 2), (2, 1, 0)])
def test_cells_wrapped_in_cells(tmp_path, outer, inner, pose):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(5, 3, 14, 3))
    people = [
        wrapped(cell([wrapped(np.zeros((1, 0)) if (t + a) % 3 == 0 else X[t, a], pose) for t in range(5)]), inner) for a in range(3)
    ]  # fmt: skip
    scipy.io.savemat(tmp_path / "a.mat", {"actor3D": wrapped(cell(people, (1, 3)), outer)})
    found = actors.read_actors(tmp_path / "a.mat")
    absent = np.add.outer(np.arange(5), np.arange(3)) % 3 == 0
    assert found.shape == (5, 3, 14, 3) and (np.isnan(found).all((2, 3)) == absent).all()
    np.testing.assert_allclose(found[~absent], X[~absent] * 1000)


def test_one_actor_or_one_frame(tmp_path):
    X = np.arange(42.0).reshape(14, 3)
    row = (1, 2)
    for cells, shape in ((cell([cell([X] * 3)], (1, 1)), (3, 1)), (cell([X, X], row), row), (cell([cell([X]), cell([X])], row), row)):
        scipy.io.savemat(tmp_path / "a.mat", {"actor3D": cells})
        assert actors.read_actors(tmp_path / "a.mat").shape == (*shape, 14, 3)


def test_annotations_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "actorsGT.mat"
    with pytest.raises(DataError, match="actorsGT.mat: no such file"):
        actors.read_actors(path)
    for content, said in (
        ({"actor2D": np.zeros(3)}, "has no actor3D"),
        ({"actor3D": cell([cell([np.zeros((14, 2))] * 2)] * 2, (1, 2))}, r"frame 0 holds an array of shape \(14, 2\)"),
        ({"actor3D": cell([cell([np.zeros((14, 3))] * 2), cell([np.zeros((14, 3))] * 3)], (1, 2))}, "the actors have 2, 3 frames"),
        ({"actor3D": "text"}, "holds an array of shape"),
    ):
        scipy.io.savemat(path, content)
        with pytest.raises(DataError, match=said):
            actors.read_actors(path)
    path.write_bytes(b"no mat")
    with pytest.raises(DataError, match="not a .mat file"):
        actors.read_actors(path)


def test_detections_that_do_not_fit_are_named(tmp_path, trees):
    path = tmp_path / "pred_shelf_maskrcnn_hrnet_coco.pkl"
    good = np.ones((17, 3))
    for content, said in (
        ([1], "not 2D detections"),
        ({"0": []}, "not 2D detections"),
        ({"0_0": [{"pred": good[:15]}]}, "expected finite"),
        ({"0_0": [{"pred": good * np.nan}]}, "expected finite"),
        ({"0_0": [{"joints": good}]}, "not 2D detections"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=said):
            actors.read_detections(path)
    path.write_bytes(pickle.dumps(defaultdict(list, {"7_300": [{"pred": good}], "0_300": []}), protocol=3))
    assert {key: len(v) for key, v in actors.read_detections(path).items()} == {(7, 300): 1, (0, 300): 0}
    calibration = trees[0][shelf] / "calibration_shelf.json"
    (tmp_path / calibration.name).write_bytes(calibration.read_bytes())
    with pytest.raises(DataError, match=r"detections of cameras \[7\], but the calibration has 4"):
        shelf.read(tmp_path, "valid", labels="detections")
    path.write_bytes(pickle.dumps({"0_5": []}))
    with pytest.raises(DataError, match="no frame of the split 'valid'"):
        shelf.read(tmp_path, "valid", labels="detections")
    path.write_bytes(pickle.dumps(pickle.Unpickler))
    with pytest.raises(DataError, match="wants to call"):
        actors.read_detections(path)
    with pytest.raises(DataError, match="missing: 'zero' is not one of empty, skip"):
        shelf.read(trees[0][shelf], "valid", labels="detections", missing="zero")
    with pytest.raises(DataError, match="labels: 'both'"):
        shelf.read(tmp_path, "valid", labels="both")
    with pytest.raises(DataError, match="shelf has no split 'val'"):
        shelf.read(trees[0][shelf], "val")
    (tmp_path / calibration.name).write_text('{"left": 1}')
    with pytest.raises(DataError, match="calibration_shelf.json: not a calibration"):
        shelf.read(tmp_path, "valid")
    (tmp_path / calibration.name).write_text(calibration.read_text().replace('"0": ', '"5": '))
    with pytest.raises(DataError, match="cameras are called .*, expected 0, 1"):
        shelf.read(tmp_path, "valid")


def test_what_cannot_be_written(world, tmp_path):
    with pytest.raises(DataError, match="2 rigs, or observations without 3D"):
        shelf.write(world.annotations(), tmp_path, "valid")
    with pytest.raises(DataError, match="has no split 'val'"):
        shelf.write(world.annotations().protocol(["S9"]), tmp_path, "val")
    assert list(tmp_path.iterdir()) == []


# --- scenes to be trained on


def test_poses_that_do_not_fit_are_named(tmp_path, poses):
    assert poses[0].shape == (3, 17, 3) and poses[1].all()
    assert np.ptp(poses[0][0, :, 2]) > 1000  # z is up
    path = tmp_path / "p.pkl"
    other = [{"pose": np.zeros((15, 3)), "vis": np.ones(15)}]
    for content, said in (({}, "not a list of pose and vis"), (other, r"poses of shape \(1, 15, 3\)"), ([], "not a list")):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=said):
            actors.read_poses(path)
    X, valid = (np.zeros((15, 3)), np.ones((15, 3), bool))
    path.write_bytes(pickle.dumps([{"pose": X, "vis": valid}]))
    assert actors.read_poses(path, "panoptic15")[1].shape == (1, 15)


@BOTH
def test_scenes_keep_the_rules(layout, poses, samples):
    X, valid = poses
    rules = layout.RULES
    cameras = actors.rig(layout.LAYOUT, samples / layout.LAYOUT.name)
    made = [actors.synthetic_people(np.random.default_rng((1, i)), X, valid, rules, cameras) for i in range(60)]
    counts = [len(x) for x, _ in made]
    assert set(counts) <= set(range(1, rules.most + 1)) and max(counts) == rules.most
    coco = skeletons.get("coco17")
    hips = coco.indices(("l_hip", "r_hip"))
    for people, known in made:
        assert known.shape == people.shape[:2] and known.all()
        low, high = people[..., :2].min(1), people[..., :2].max(1)
        common = np.maximum(np.minimum(high[:, None], high) - np.maximum(low[:, None], low), 0).prod(-1)
        area = (high - low).prod(-1)
        overlap = common / (area[:, None] + area - common)
        assert (overlap[~np.eye(len(people), dtype=bool)] < 0.01).all()
        place = people[:, hips].mean(1)
        assert rules.x[0] <= place[0, 0] <= rules.x[1] and rules.y[0] <= place[0, 1] <= rules.y[1]
        if rules.views:
            stand = torch.from_numpy(np.concatenate([place[:, :2], np.full((len(place), 1), 1000.0)], 1))
            pixels = cameras.project(stand)[0]
            inside = ((pixels > 9) & (pixels < cameras.size[:, None] - 9)).all(-1) & (cameras.to_cam(stand)[..., 2] > 0)
            assert (inside.sum(0) >= 2).all()
        # a rigid motion about z: heights and distances stay
        spread = np.linalg.norm(people[:, :, None] - people[:, None], axis=-1)
        sources = np.linalg.norm(X[:, :, None] - X[:, None], axis=-1)
        assert (np.abs(spread[:, None] - sources).max((2, 3)).min(1) < 1e-6).all()
        assert (np.abs(people[:, None, :, 2] - X[:, :, 2]).max(2).min(1) < 1e-9).all()
    again = actors.synthetic_people(np.random.default_rng((1, 7)), X, valid, rules, cameras)
    np.testing.assert_array_equal(again[0], made[7][0])
    if rules.views:
        with pytest.raises(DataError, match="give the cameras"):
            actors.synthetic_people(np.random.default_rng(0), X, valid, rules)


def test_people_turn_and_stand_everywhere(poses):
    X, valid = poses
    rng = np.random.default_rng(0)
    one = shelf.RULES._replace(most=1)
    people = np.concatenate([actors.synthetic_people(rng, X[:1], valid[:1], one)[0] for _ in range(400)])
    coco = skeletons.get("coco17")
    left, right = (people[:, coco.index(name)] for name in ("l_hip", "r_hip"))
    angle = np.arctan2(*(left - right)[:, 1::-1].T)
    assert np.histogram(angle, 8, (-np.pi, np.pi))[0].min() > 25
    place = ((left + right) / 2)[:, :2]
    for axis, (low, high) in enumerate((shelf.RULES.x, shelf.RULES.y)):
        assert np.histogram(place[:, axis], 5, (low, high))[0].min() > 50


def test_a_crowded_place_gives_fewer_people_and_fifteen_joints_work(poses):
    X, valid = poses
    narrow = shelf.RULES._replace(most=40, x=(0.0, 10.0), y=(0.0, 10.0), apart=1.0)
    rng = np.random.default_rng(0)
    assert {len(actors.synthetic_people(rng, X, valid, narrow)[0]) for _ in range(10)} == {1}
    x15, present = skeletons.convert(X, "coco17", "panoptic15")
    people, known = actors.synthetic_people(rng, x15, np.tile(present, (3, 1)), shelf.RULES, skeleton="panoptic15")
    assert people.shape[1:] == (15, 3) and known.all()
    blind = ring_of_cameras(3)
    nowhere = campus.RULES._replace(x=(1e6, 1e6 + 1), y=(0.0, 1.0))
    assert len(actors.synthetic_people(rng, X, valid, nowhere, blind)[0]) == 0


def test_detector_scores_are_drawn_as_published():
    rng = np.random.default_rng(0)
    for rules, skeleton in ((shelf.RULES, "coco17"), (campus.RULES, "coco17"), (shelf.RULES, "panoptic15")):
        height, found = actors.detector_scores(rng, 4, 5000, rules, skeleton)
        names = skeletons.get(skeleton).joints
        assert height.shape == (4, 5000, len(names)) and found.mean() == pytest.approx(1 - rules.missed, abs=0.01)
        mean = 0.6 * 0.9 + 0.4
        weak, weakest = (("elbow", "knee"), ("wrist", "ankle")) if rules.legs else (("elbow",), ("wrist",))
        for k, name in enumerate(names):
            share, factor = (0.1, 0.2) if name[2:] in weakest else (0.1, 0.5) if name[2:] in weak else (0.05, 0.5)
            assert height[..., k].mean() == pytest.approx(mean * (1 - share * (1 - factor)), abs=0.004), name


def test_the_form_of_cameras_is_that_of_the_files(samples):
    text = json.loads((samples / "shelf/calibration_shelf.json").read_text())
    cameras = actors.rig(shelf.LAYOUT, samples / "shelf")
    assert isinstance(cameras, Cameras) and cameras.size.tolist() == [[1032, 776]] * 5
    for name, record in center_form(cameras).items():
        for key, value in record.items():
            np.testing.assert_allclose(value, text[name][key], atol=1e-2 if key == "T" else 1e-9)
