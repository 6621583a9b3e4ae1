"""People of calibrated recordings: the embedded world written as an own rig, a real one, networks, files and films."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

from lib.config import defaults, load
from lib.dataset.formats import custom
from lib.drawing.space_view import TOP, SpaceView, person_color, space_sheet
from lib.engine import commands, run_dir
from lib.errors import DataError, RunError, WeightsError
from lib.prediction.rig import Recording, associate, film, fit_to_calibration
from lib.prediction.rig_people import RigPeople
from lib.predictor import Predictor, RigPredictor
from lib.skeleton import get
from lib.synthetic.world import World
from lib.tasks import build
from lib.video import Video
from scripts import predict as script
from tests.conftest import ROOT
from tests.scene import ring_of_cameras
from tests.test_format_mpi_inf_3dhp import make_video
from tests.test_tasks_voxelpose import KEYPOINTS, SMALL, batch_of

IMAGE, FRAMES = (128, 96), 8


@pytest.fixture(scope="module")
def world():
    return World(split="valid", frames=FRAMES, length=FRAMES, people=2, size=IMAGE, fps=25.0)


@pytest.fixture(scope="module")
def tree(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("rig")
    custom.write(world.annotations().protocol(["S9"]), root, "walk", world.image)
    return root


@pytest.fixture(scope="module")
def truth(world):
    """Joints of both people, (F,2,J,3) mm, in COCO's joints, and which the pictures show in two views or more."""
    ann = world.annotations().protocol(["S9"]).to_skeleton("coco17")
    X, seen = np.full((FRAMES, 2, 17, 3), np.nan), np.zeros((FRAMES, 2, 17), int)
    np.add.at(seen, (ann.frame - ann.frame.min(), ann.person), ann.conf * ann.visible > 0)
    X[ann.frame - ann.frame.min(), ann.person] = ann.X_world[ann.pose]
    known = np.zeros((FRAMES, 2, 17), bool)
    known[ann.frame - ann.frame.min(), ann.person] = ann.X_valid[ann.pose]
    return X, known & (seen >= 2)


def distances(people: RigPeople, X: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Median distance of each number (K) from each person in the truth, (K,P) mm."""
    at = people.frame - people.frames[0]
    d = np.linalg.norm(people.X_world[:, None] - X[at], axis=-1)
    d[~(known[at] & people.valid[:, None])] = np.nan
    return np.array([[np.nanmedian(d[people.person == k, p]) for p in range(X.shape[1])] for k in np.unique(people.person)])


# ------------------------------------------------------------------------------------------------------------ association


def test_exact_detections_give_the_truth_under_numbers_that_stay(tree, truth):
    recording = Recording.read(tree / "walk")
    people = associate(recording, method="dlt")
    assert people.skeleton.name == "coco17" and people.cameras == ("cam1", "cam2", "cam3", "cam4") and len(people.frames) == FRAMES
    error = distances(people, *truth)
    assert error.shape == (2, 2) and np.sort(error.min(1)).max() < 0.5 and (error.max(1) > 200).all()
    assert set(error.argmin(1)) == {0, 1} and np.bincount(people.person).min() >= FRAMES - 1
    assert np.nanmedian(people.reprojection) < 0.1 and (people.views.sum(-1)[people.valid] >= 2).all()
    assert np.isnan(people.X_world[~people.valid]).all() and not people.views[~people.valid].any()
    robust = associate(recording)
    assert distances(robust, *truth).min(1).max() < 1


def test_given_numbers_are_kept(tree, truth):
    people = associate(Recording.read(tree / "walk"), "given", "dlt")
    error = distances(people, *truth)
    assert error.argmin(1).tolist() == [0, 1] and error.min(1).max() < 0.5
    with pytest.raises(DataError, match="association 'guess'"):
        associate(Recording.read(tree / "walk"), "guess")


def test_an_empty_entry_keeps_the_place_of_who_is_not_seen(tree, truth, tmp_path):
    """OpenPose's folders as Pose2Sim's association leaves them: the place in the list is the person."""
    whole = Recording.read(tree / "walk")
    (tmp_path / "mine").mkdir()
    shutil.copy(tree / "walk/cameras.json", tmp_path / "mine")
    joints = torch.cat([whole.x_img, whole.conf[..., None]], -1)
    for v, name in enumerate(whole.names):
        (tmp_path / f"mine/poses2d/{name}_json").mkdir(parents=True)
        for f in range(FRAMES):
            people: list[dict] = [{}, {}]
            for slot in np.flatnonzero((whole.number[f, v] >= 0).numpy()):
                person = int(whole.number[f, v, slot])
                if (f, v, person) != (3, 0, 0):
                    people[person] = {"person_id": [-1], "pose_keypoints_2d": joints[f, v, slot].flatten().tolist()}
            (tmp_path / f"mine/poses2d/{name}_json/{name}.{f:04d}.json").write_text(json.dumps({"version": 1.3, "people": people}))
    people = associate(Recording.read(tmp_path / "mine", layout="coco17"), "given", "dlt")
    assert distances(people, *truth).argmin(1).tolist() == [0, 1] and distances(people, *truth).min(1).max() < 0.5
    without = people.views[(people.frame == 3) & (people.person == 0)]
    assert len(without) and not without[..., 0].any()


def test_parts_of_a_recording(tree):
    part = Recording.read(tree, "walk", every=2, skip=1, limit=3)
    whole = Recording.read(tree / "walk")
    assert part.frames.tolist() == whole.frames[1::2][:3].tolist()
    torch.testing.assert_close(part.x_img, whole.x_img[1::2][:3])
    one, other = next(iter(part.pictures())), list(whole.pictures())[1]
    assert all((a == b).all() for a, b in zip(one, other, strict=True)) and one[0].shape == (*IMAGE[::-1], 3)
    with pytest.raises(DataError, match="nothing is left"):
        Recording.read(tree / "walk", skip=100)


def test_nobody_detected_is_said(tree, tmp_path):
    shutil.copytree(tree / "walk", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine/poses2d")
    with pytest.raises(DataError, match="poses2d/cam1.json"):
        associate(Recording.read(tmp_path / "mine"))


# ------------------------------------------------------------------------------------------------------- sizes of pictures


def test_an_edge_cut_off_by_an_encoder_moves_no_pixel():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    same, note = fit_to_calibration(image, (60, 40), "cam")
    assert same is image and note == ""
    wider, note = fit_to_calibration(image, (68, 40), "film.mp4: cam")
    assert (wider[:, :60] == image).all() and not wider[:, 60:].any() and "60 x 40 px, calibrated for 68 x 40" in note
    assert (fit_to_calibration(image, (60, 32), "cam")[0] == image[:32]).all()
    assert fit_to_calibration(image, (0, 0), "cam")[0] is image
    with pytest.raises(DataError, match="calibration is for 120 x 80"):
        fit_to_calibration(image, (120, 80), "cam")


def test_pictures_come_from_videos_that_were_not_extracted(tree, tmp_path, caplog):
    shutil.copytree(tree / "walk", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine/images")
    for k in range(1, 5):
        make_video(tmp_path / f"mine/videos/cam{k}.avi", FRAMES, (IMAGE[0] - (8 if k == 2 else 0), IMAGE[1]))
    recording = Recording.read(tmp_path / "mine", every=3)
    assert recording.frames.tolist() == [0, 3, 6]
    shown = list(recording.pictures())
    assert len(shown) == 3 and all(image.shape == (*IMAGE[::-1], 3) for views in shown for image in views)
    direct = [image for _, image in Video.open(tmp_path / "mine/videos/cam1.avi").frames(3)]
    assert all((views[0] == image).all() for views, image in zip(shown, direct, strict=True))
    assert caplog.text.count("cam2") == 2 * 1 and "120 x 96 px, calibrated for 128 x 96" in caplog.text


# ----------------------------------------------------------------------------------------------------------------- network


def network(**changes):
    """An untrained network that suspects people everywhere."""
    torch.manual_seed(0)
    task = build(defaults().with_values(SMALL | {"VOXEL.THRESHOLD": 0.0} | changes)).eval()
    if task.in_space:
        list(task.model.root_net.parameters())[-1].data.fill_(1.0)
    return task


def oracle(task, truth, order):
    """The task with true people as its answers, in an order that changes."""
    X = torch.from_numpy(np.nan_to_num(truth)).float()
    start = 0

    def predict(batch):
        nonlocal start
        count = len(batch["patch_from_img"])
        assert batch["camera"].shape == (count, 4) and ("image" in batch) == task.from_images
        rows = X[start : start + count].clone()
        for i in range(count):
            rows[i] = rows[i][list(order[(start + i) % len(order)])]
        start += count
        found = torch.tensor([[True, True, False]] * count)
        rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)
        return {"X_world": rows, "score": torch.ones(found.shape), "found": found, "centers": rows[:, :, 0]}

    task.predict = predict
    return task


def test_a_network_s_people_get_numbers_that_stay(tree, world):
    ann = world.annotations().protocol(["S9"]).to_skeleton("panoptic15")
    X = np.zeros((FRAMES, 2, 15, 3))
    X[ann.frame - ann.frame.min(), ann.person] = ann.X_world[ann.pose]
    task = oracle(network(), X, [(0, 1), (1, 0)])
    people = RigPredictor(task, "cpu")(Recording.read(tree / "walk"), batch_size=3)
    assert len(people) == 2 * FRAMES and people.valid.all() and np.isnan(people.reprojection).all()
    for k in range(2):
        np.testing.assert_allclose(people.X_world[people.person == k], X[:, k], atol=1e-2)
    assert 2 < people.views.sum(-1).mean() <= 4


@pytest.mark.parametrize("changes", [{}, KEYPOINTS], ids=["pictures", "keypoints"])
def test_an_untrained_network_runs(tree, changes):
    task = network(**changes, **{"VOXEL.SPACE_SIZE": [], "VOXEL.SPACE_CENTER": []})
    labels = "soft" if changes else "raw"
    people = RigPredictor(task, "cpu")(Recording.read(tree / "walk", labels=labels, limit=2))
    assert task.space_known and len(people) and np.isfinite(people.X_world).all() and people.skeleton.name == "panoptic15"


def test_networks_that_see_no_space_and_missing_pictures_are_refused(tree, tmp_path):
    with pytest.raises(WeightsError, match="no people in space"):
        RigPredictor(network(**{"VOXEL.PARTS": ["backbone"]}), "cpu")
    with pytest.raises(DataError, match="space 'room'; expected one of checkpoint, cameras"):
        RigPredictor(network(), "cpu", "room")
    shutil.copytree(tree / "walk", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine/images/cam2")
    with pytest.raises(DataError, match="cam2 has no picture of frame 0; the network needs all of cam1"):
        RigPredictor(network(), "cpu")(tmp_path / "mine")


def test_poses_that_nobody_trained_are_told(caplog):
    RigPredictor(network(**{"VOXEL.PARTS": ["root_net"]}), "cpu")
    assert "VOXEL.PARTS ['root_net']): its poses may mean nothing" in caplog.text


def test_pictures_without_a_clock_have_no_times(tree, tmp_path):
    recording = Recording.read(tree / "walk", limit=2)
    assert recording.fps == 0 and Recording.read(tree / "walk", limit=2, fps=30).fps == 30
    people = associate(recording)
    assert people.save(tmp_path / "a.csv").read_text().splitlines()[0].split(",")[:2] == ["frame", "person"]


# ----------------------------------------------------------------------------------------------------------- files and film


def test_files_say_the_same(tree, tmp_path):
    people = associate(Recording.read(tree / "walk", fps=50))
    for form in ("npz", "json", "csv"):
        people.save(tmp_path / f"out/mine.{form}")
    again = RigPeople.read(tmp_path / "out/mine.npz")
    assert again.skeleton is people.skeleton and again.cameras == people.cameras and again.summary() == people.summary()
    np.testing.assert_array_equal(again.X_world, people.X_world)
    record = json.loads((tmp_path / "out/mine.json").read_text())
    first = record["frames"][0]["people"][0]
    row = int(np.flatnonzero((people.frame == people.frames[0]) & (people.person == first["person"]))[0])
    joint, values = next(iter(first["joints"].items()))
    j = people.skeleton.joints.index(joint)
    np.testing.assert_allclose(values["X_world"], people.X_world[row, j], atol=1e-3)
    assert values["views"] == [people.cameras[v] for v in np.flatnonzero(people.views[row, j])]
    with open(tmp_path / "out/mine.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == people.valid.sum()
    last = rows[-1]
    assert float(last["time_s"]) == pytest.approx(int(last["frame"]) / 50) and len(last["views"].split()) >= 2
    with pytest.raises(RunError, match="ending .xml"):
        people.save(tmp_path / "mine.xml")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="holds no people"):
        RigPeople.read(tmp_path / "bad.npz")


def test_film_shows_everyone_in_every_panel(tree):
    recording = Recording.read(tree / "walk", limit=3)
    people = associate(recording)
    shown = list(film(recording, people, height=200, space=((4000, 4000, 2000), (0, 0, 1000))))
    assert len(shown) == 3 and len({picture.shape for picture in shown}) == 1 and shown[0].shape[1] >= 408
    nobody = list(film(recording, people_without(people), height=200))[0]
    for number in (0, 1):
        near = np.abs(shown[0].astype(int) - person_color(number)).max(-1) < 24
        before = np.abs(nobody.astype(int) - person_color(number)).max(-1) < 24
        half = shown[0].shape[0] - 200
        assert near[:half].sum() > before[:half].sum() + 50 and near[half:].sum() > before[half:].sum() + 50


def people_without(people: RigPeople) -> RigPeople:
    columns = {name: getattr(people, name)[:0] for name in ("frame", "person", "score", "X_world", "valid", "views", "reprojection")}
    return RigPeople(people.skeleton, people.cameras, people.frames, **columns)


def test_script_writes_all_results_and_nothing_over_others(tree, tmp_path, capsys):
    arguments = ["--rig", str(tree / "walk"), "--associate", "--limit", "2", "--out", str(tmp_path / "out"), "--size", "160"]
    assert script.main(arguments) == 0
    names = ["walk.csv", "walk.json", "walk.npz", "walk_pose.gif", "walk_pose.mp4"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert "2 frames, people in 2 of them; 2 tracks" in capsys.readouterr().out
    assert len(list(Video.open(tmp_path / "out/walk_pose.mp4").frames())) == 2
    before = (tmp_path / "out/walk.npz").read_bytes()
    assert script.main(arguments) == 2 and "exists" in capsys.readouterr().err
    assert (tmp_path / "out/walk.npz").read_bytes() == before
    assert script.main([*arguments[:-2], "--overwrite", "--form", "npz", "--every", "3", "--method", "dlt"]) == 0
    assert RigPeople.read(tmp_path / "out/walk.npz").frames.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rig", "x"], "expected --associate, or the --checkpoint"),
        (["--rig", "x", "--associate", "--box-mm", "3"], "--box-mm: not read with --rig"),
        (["photo.jpg", "--associate"], "--associate: not read without --rig"),
        (["--rig", "x", "--keypoints", "y"], "not allowed with --keypoints"),
        (["--rig", "x", "--associate", "--gap", "-1"], "--gap: 0 or more"),
    ],
)
def test_options_that_do_not_belong_together(more, message, capsys):
    with pytest.raises(SystemExit):
        script.main(more)
    assert message in capsys.readouterr().err


def test_script_with_a_checkpoint(tree, tmp_path, capsys):
    task = network()
    torch.save(task.model.state_dict(), tmp_path / "voxelpose.pth.tar")
    (tmp_path / "small.yaml").write_text(json.dumps(nested(SMALL | {"VOXEL.THRESHOLD": 0.0})))
    arguments = ["--rig", str(tree / "walk"), "--checkpoint", str(tmp_path / "voxelpose.pth.tar"), "--cfg", str(tmp_path / "small.yaml")]
    assert script.main([*arguments, "--device", "cpu", "--limit", "2", "--form", "npz", "--out", str(tmp_path), "--space", "cameras"]) == 0
    assert "looked for people in a space of" in capsys.readouterr().err
    assert len(RigPeople.read(tmp_path / "walk.npz")) > 0


def test_a_checkpoint_in_three_lines_and_what_it_is_not(tree, tmp_path):
    path, cfg = tmp_path / "voxelpose.pth.tar", defaults().with_values(SMALL | {"VOXEL.THRESHOLD": 0.0})
    torch.save(network().model.state_dict(), path)
    recording = Recording.read(tree / "walk", limit=1)
    there, here = (RigPredictor.from_checkpoint(path, "cpu", cfg, space) for space in ("checkpoint", "cameras"))
    assert len(there(recording)) and len(here(recording)) and here.skeleton.name == "panoptic15"
    assert there.space == ((5120, 5120, 2000), (0, 0, 900)) and here.space != there.space
    with pytest.raises(WeightsError, match="voxelpose.pth.tar: .*before several cameras.*RigPredictor"):
        Predictor.from_checkpoint(path, "cpu", cfg)


def nested(values: dict) -> dict:
    out: dict = {}
    for key, value in values.items():
        *path, name = key.split(".")
        place = out
        for part in path:
            place = place.setdefault(part, {})
        place[name] = value
    return out


# -------------------------------------------------------------------------------------------------------------- space views


def test_space_view_places_cameras_people_truth_and_proposals():
    cameras, skeleton = ring_of_cameras(4), get("coco17")
    X = np.random.default_rng(0).uniform(-300, 300, (1, 17, 3)) + [500, -400, 900]
    view = SpaceView(cameras, skeleton, list("abcd"), ((2000, 2000, 2000), (0, 0, 1000)), (300, 240), 0.0, TOP)
    at = view.place(cameras.center.numpy())
    assert ((at > 0) & (at < (300, 240))).all()
    # from above: x to the right, y upwards in the picture
    right, up = view.place(np.array([[0.0, 0, 0], [1000, 0, 0], [0, 1000, 0]]))[1:] - view.place(np.zeros(3))
    assert right[0] > 10 and abs(right[1]) < 1e-6 and up[1] < -10 and right[0] == pytest.approx(-up[1])
    empty, person = view.draw(), view.draw(X, [3])
    changed = np.argwhere((empty != person).any(-1))[:, ::-1]
    inside = view.place(X[0])
    assert len(changed) and (changed.min(0) >= inside.min(0) - 25).all() and (changed.max(0) <= inside.max(0) + 30).all()
    assert (view.draw(truth=X) != empty).any() and (view.draw(proposals=X[0, :1]) != empty).any()
    X[0, 3] = np.nan
    sheet = space_sheet(cameras, skeleton, torch.from_numpy(X), None, torch.zeros(1, 3), height=200)
    assert sheet.shape == (222, 486, 3) and sheet.dtype == np.uint8
    assert space_sheet(cameras, skeleton, np.zeros((0, 17, 3)), height=100).shape == (122, 246, 3)


def test_figures_of_training_show_the_space(tmp_path):
    task = network(**{"DATASET.ROOT": str(tmp_path / "world"), "OUTPUT_DIR": str(tmp_path)})
    batch = batch_of(task, 1)
    people = batch["X_world"].clone()
    pred = {"X_world": people + 50, "found": batch["X_valid"].all(-1), "centers": people[:, :, 2], "score": torch.ones(people.shape[:2])}
    sheets = task.figures(batch, pred, 1)
    assert set(sheets) == {"people_0", "space_0"} and sheets["space_0"].shape == (442, 1014, 3)
    colors = [(np.abs(sheets["space_0"].astype(int) - person_color(k)).max(-1) < 24).sum() for k in range(4)]
    assert all(colors[: int(batch["n_people"][0])]) and colors[3] == 0


# --------------------------------------------------------------------------------------------------------------- real people


@pytest.fixture(scope="module")
def pose2sim(samples, tmp_path_factory):
    """Pose2Sim's demo as own rigs: one person, two, and two whose association is given."""
    pytest.importorskip("tomllib")
    source, root = samples / "pose2sim", tmp_path_factory.mktemp("pose2sim")
    for name, poses in (("single", "single/pose"), ("multi", "multi/pose"), ("given", "multi/pose-associated")):
        (root / name / "videos").mkdir(parents=True)
        (root / name / "poses2d").mkdir()
        shutil.copy(source / "calibration/Calib_qualisys.toml", root / name / "cameras.toml")
        for v in range(1, 5):
            (root / name / f"poses2d/cam0{v}_json").symlink_to(source / poses / f"cam0{v}_json")
            (root / name / f"videos/cam0{v}.mp4").symlink_to(source / f"single/videos/cam0{v}.mp4")
    return root


def published(file) -> tuple[np.ndarray, list[str]]:
    """Points (F,K,3) in mm of the cameras' frame and their joints."""
    lines = file.read_text().splitlines()
    names = [re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=^[LR])(?=[A-Z])", "_", n).lower() for n in lines[3].split("\t")[2:] if n]
    cells = [line.split("\t")[2 : 2 + 3 * len(names)] for line in lines[5:] if line.strip()]
    X = np.array([[float(cell or "nan") for cell in row] for row in cells]).reshape(len(cells), -1, 3)
    return 1000 * X[..., [2, 0, 1]], ["upper_neck" if name == "neck" else name for name in names]


def medians(people: RigPeople, files) -> np.ndarray:
    """(people, files) mm"""
    out = []
    for k in np.unique(people.person):
        rows = people.person == k
        for file in files:
            X, names = published(file)
            error = np.linalg.norm(people.X_world[rows][:, people.skeleton.indices(names)] - X[people.frame[rows]], axis=-1)
            out.append(np.nanmedian(error))
    return np.array(out).reshape(-1, len(files))


def test_real_people_lie_where_they_were_published(pose2sim, samples):
    files = sorted((samples / "pose2sim/multi/pose-3d").glob("*.trc"))
    given = associate(Recording.read(pose2sim / "given", unit="m"), "given", "dlt")
    error = medians(given, files)
    print(f"given association, dlt: {error.diagonal().round(2).tolist()} mm; {given.summary()}")
    assert error.shape == (2, 2) and error.diagonal().max() < 1 and np.bincount(given.person).tolist() == [40, 40]
    found = associate(Recording.read(pose2sim / "multi", unit="m"), min_length=30)
    error = medians(found, files)
    print(f"own association: {error.min(0).round(2).tolist()} mm; {found.summary()}")
    assert error.shape == (2, 2) and error.min(0).max() < 6 and np.bincount(found.person).min() == 40


def test_the_real_film_shows_the_person_although_two_videos_are_narrower(pose2sim, samples, caplog):
    recording = Recording.read(pose2sim / "single", unit="m", limit=1)
    people = associate(recording, min_length=1)
    (picture,) = film(recording, people, height=240)
    assert "cam_01: pictures of 1080 x 1920 px, calibrated for 1088 x 1920" in caplog.text and "cam_03" not in caplog.text
    blue = np.abs(picture.astype(int) - person_color(int(people.person[0]))).max(-1) < 30
    assert all(part.sum() > 60 for part in np.array_split(blue[: -240 - 24], 4, axis=1))  # in each of the four views
    file = next((samples / "pose2sim/single/pose-3d").glob("*.trc"))
    assert medians(people, [file]).min() < 10


# --------------------------------------------------------------------------------------------------------------- experiments


@pytest.mark.parametrize("path", sorted((ROOT / "experiments/custom").glob("selfpose3d-*.yaml")), ids=lambda p: p.stem)
def test_each_experiment_on_an_own_rig_makes_a_step_and_its_network_predicts(tree, tmp_path, path):
    tiny = {name: value for name, value in SMALL.items() if name.startswith(("MODEL.", "TRAIN.", "TEST.")) or name == "WORKERS"}
    tiny |= {"VOXEL.CUBES": [16, 16, 8], "VOXEL.PERSON_CUBES": [16, 16, 16], "VOXEL.MAX_PEOPLE": 4, "MODEL.PRETRAINED": ""}
    cfg = load(path).with_values(tiny | {"DATASET.ROOT": str(tree / "walk"), "OUTPUT_DIR": str(tmp_path), "DATASET.VAL_FRAME": 4})
    results = commands.train(cfg)
    assert results["step"] == 1 and ("peak_recall_percent" if cfg.SSL.STAGE == "backbone" else "reprojection_percent") in results["metrics"]
    if cfg.SSL.STAGE == "pose":
        best = run_dir.run_path(cfg) / run_dir.BEST
        few = ["--limit", "2", "--form", "csv", "--out", str(tmp_path)]
        assert script.main(["--rig", str(tree / "walk"), "--checkpoint", str(best), *few]) == 0
        assert (tmp_path / "walk.csv").read_text().startswith("frame,person,joint")


def test_experiments_follow_each_other():
    for before, after in (("backbone", "root"), ("root", "pose")):
        first, second = (load(ROOT / f"experiments/custom/selfpose3d-{stage}.yaml") for stage in (before, after))
        assert second.MODEL.PRETRAINED == str(run_dir.run_path(first) / run_dir.BEST)
