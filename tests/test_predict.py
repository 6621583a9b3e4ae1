"""The predictor's geometry on a network that is always right, and scripts/predict.py on a tiny real checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision

from lib import vis
from lib.config import defaults
from lib.dataset.image import ImageSpec, read_image
from lib.engine import checkpoint
from lib.errors import ConfigError, DataError, WeightsError
from lib.geometry.camera import Cameras
from lib.geometry.crop import invert
from lib.geometry.weak_perspective import bone_sum
from lib.prediction import detection
from lib.predictor import Predictor
from lib.skeleton import get
from lib.synthetic.world import World
from lib.tasks import build
from lib.tasks.base import Task
from lib.tasks.restore import restore
from lib.tasks.world import ensure_native
from lib.video import Video
from scripts import predict as script
from tests.tiny_dataset import NETWORK

ROOT = Path(__file__).resolve().parents[1]
H36M = get("h36m17")
K = np.array([[1100.0, 0, 480], [0, 1100.0, 520], [0, 0, 1]])
DIST = (-0.2, 0.2, 0.0, 0.0, 0.0)
SIZE = (1000, 1000)


def people() -> torch.Tensor:
    """Two poses in front of the camera.   (2, 17, 3) mm, camera axes"""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([350.0, 500.0, 250.0])
    X = torch.randn(2, 17, 3, generator=generator, dtype=torch.float64).clamp(-1.5, 1.5) * spread
    X -= X[:, :1].clone()
    return X + torch.tensor([[[300.0, -100, 4500]], [[-900.0, 200, 6000]]])


def camera(dist=None) -> Cameras:
    return Cameras.make(K, np.eye(3), np.zeros(3), dist, SIZE, dtype=torch.float64)


def square_boxes(X_cam: torch.Tensor, side_mm: float) -> list[np.ndarray]:
    """Boxes that span `side_mm` at the depth of the root, around it."""
    root = camera().project_cam(X_cam[:, :1])[:, 0].numpy()
    half = 0.5 * side_mm * K[0, 0] / X_cam[:, 0, 2].numpy()
    return [np.concatenate([c - h, c + h]) for c, h in zip(root, half, strict=True)]


class Oracle(Task):
    """A network that sees, in each patch, where the joints are and how deep, in the units of its training.

    There, the side of a box spanned `box_mm` at the root, and the same number of px stood for 2000 mm of depth.
    """

    def __init__(self, X_cam: torch.Tensor, dist=None, size=(256, 192), box_mm=2000.0):
        super().__init__()
        self.X, self.x_img, self.seen = X_cam, camera(dist).project_cam(X_cam), 0
        self.depth_unit = box_mm / 2000.0
        self.skeleton, self.image_spec = "h36m17", ImageSpec(size)

    def predict(self, batch):
        rows = slice(self.seen, self.seen + len(batch["image"]))
        self.seen += len(batch["image"])
        assert batch["image"].shape[1:] == (3, *self.image_spec.size[::-1]) and batch["image"].dtype == torch.uint8
        X, A = self.X[rows], batch["patch_from_img"].double()
        patch_px_per_mm = A[:, 0, 0] * K[0, 0] / X[:, 0, 2]  # weak perspective: the scale at the root
        wide = max(1.0, self.image_spec.size[0] / self.image_spec.size[1])  # crops show so much more than the square box, in x
        z_px = (X[..., 2] - X[:, :1, 2]) * patch_px_per_mm[:, None] * wide * self.depth_unit
        return {
            "x_img": self.x_img[rows],
            "z_mm": z_px / batch["depth_scale"].double()[:, None],
            "conf": torch.ones(len(X), 17),
        }


IMAGE = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)


@pytest.mark.parametrize("dist", [None, DIST])
@pytest.mark.parametrize("side_mm", [1400.0, 2000.0, 3100.0])
@pytest.mark.parametrize("box_mm", [2000.0, 2200.0])
def test_camera_and_root_depth_give_the_true_pose_whatever_the_box(side_mm, dist, box_mm):
    X = people()
    predictor = Predictor(Oracle(X, dist, box_mm=box_mm), "cpu", box_mm=box_mm)
    found = predictor.predict_boxes(IMAGE, square_boxes(X, side_mm), camera(dist), X[:, 0, 2].numpy(), batch_size=1)
    for person, truth in zip(found, X.numpy(), strict=True):
        np.testing.assert_allclose(person.X_cam, truth, atol=0.05)
        np.testing.assert_allclose(person.X_root, truth - truth[0], atol=0.05)
        assert person.assumed == () and person.X_cam.dtype == np.float32


@pytest.mark.parametrize("box_mm", [2000.0, 2200.0])
def test_training_boxes_give_millimetres_and_the_distance_when_only_the_camera_is_known(box_mm):
    X = people()
    predictor = Predictor(Oracle(X, box_mm=box_mm), "cpu", box_mm=box_mm)
    for person, truth in zip(predictor.predict_boxes(IMAGE, square_boxes(X, box_mm), K), X.numpy(), strict=True):
        np.testing.assert_allclose(person.X_cam, truth, atol=0.1)
        assert len(person.assumed) == 1 and f"{box_mm:.0f} mm" in person.assumed[0]


def test_unknown_camera_gives_the_pose_of_weak_perspective():
    X = people()
    found = Predictor(Oracle(X), "cpu").predict_boxes(IMAGE, square_boxes(X, 2000.0))
    x = camera().project_cam(X)
    expected = torch.cat([(x - x[:, :1]) * (X[:, :1, 2:] / K[0, 0]), X[..., 2:] - X[:, :1, 2:]], -1).numpy()
    for person, truth in zip(found, expected, strict=True):
        np.testing.assert_allclose(person.X_root, truth, atol=0.05)
        assert any("focal length is 1000 px" in text for text in person.assumed)
        placed = person.X_cam - person.X_root
        np.testing.assert_allclose(placed, np.broadcast_to(person.X_cam[0], placed.shape), atol=0.01)
        assert person.K[0, 0] == 1000


def test_the_unit_of_an_unknown_box_can_be_set():
    X = people()[:1]
    (box,) = square_boxes(X, 3000.0)
    poses = [Predictor(Oracle(X), "cpu")(IMAGE, box, box_mm=mm).X_root for mm in (None, 3000.0)]
    np.testing.assert_allclose(poses[0] * 1.5, poses[1], rtol=1e-4, atol=0.01)
    # depth and sides have one unit: the true box brings the true depth
    np.testing.assert_allclose(poses[1][:, 2], (X[0, :, 2] - X[0, 0, 2]).numpy(), atol=0.05)


def test_box_scale_of_training_widens_the_crop_only():
    X = people()[:1]
    (box,) = square_boxes(X, 2000.0)
    person = Predictor(Oracle(X), "cpu", box_scale=1.25)(IMAGE, box, K)
    np.testing.assert_allclose(person.box[2:] - person.box[:2], 1.25 * (box[2:] - box[:2]) * [256 / 192, 1], rtol=1e-5)
    np.testing.assert_allclose(person.X_cam[:, :2], X[0, :, :2].numpy(), rtol=0.15, atol=60)


@pytest.mark.parametrize(("size", "box", "crop"), [
    ((64, 64), (100, 200, 200, 500), (0, 200, 300, 500)), ((64, 64), None, (0, 0, 1000, 1000)),
    ((256, 192), (100, 200, 200, 500), (-50, 200, 350, 500)),  # four to three, as in training
    ((192, 256), (100, 200, 200, 500), (37.5, 200, 262.5, 500)), ((192, 256), (100, 200, 400, 500), (100, 150, 400, 550)),
])  # fmt: skip
def test_boxes_are_widened_to_the_shape_of_the_crops(size, box, crop):
    person = Predictor(Oracle(people()[:1], size=size), "cpu")(IMAGE, box)
    np.testing.assert_allclose(person.box, crop, atol=1e-3)


def test_boxes_are_cut_to_the_shape_of_the_crops_where_training_did(tmp_path):
    person = Predictor(Oracle(people()[:1], size=(64, 64)), "cpu", box_fit="within")(IMAGE, (100, 200, 200, 500))
    np.testing.assert_allclose(person.box, (100, 300, 200, 400), atol=1e-3)
    assert Predictor.from_checkpoint(save_checkpoint(tmp_path / "w.tar", **{"DATASET.BOX_FIT": "within"}), "cpu").box_fit == "within"


def test_photographs_are_turned_as_viewers_turn_them(tmp_path):
    from PIL import Image

    upright = np.zeros((40, 20, 3), np.uint8)
    upright[:20] = 200
    facts = Image.Exif()
    facts[0x0112] = 6  # the camera lay on its side: a viewer turns it by 90 degrees to the right
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=facts)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", upright=True), upright)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(upright))  # as labels are
    network = Oracle(people()[:1], size=(64, 64))
    assert Predictor(network, "cpu")(tmp_path / "a.png").box.tolist() == [-10, 0, 30, 40]


def test_the_patch_shows_the_square():
    image = np.zeros((100, 200, 3), np.uint8)
    image[40:60, 120:140] = (255, 0, 0)
    task = Oracle(people()[:1], size=(64, 64))
    inner, seen = task.predict, []
    task.predict = lambda batch: (seen.append(batch), inner(batch))[1]
    Predictor(task, "cpu")(image, (120, 40, 140, 60))
    (batch,) = seen
    red = batch["image"][0].float().mean((1, 2))
    assert red[0] > 200 and red[1] == red[2] == 0
    np.testing.assert_allclose(
        invert(batch["patch_from_img"])[0] @ torch.tensor([32.0, 32.0, 1.0]), [130, 50], atol=0.01
    )


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (9, 5, 5, 9), (1, 2, 3), (2000, 0, 2100, 90), (0, 0, np.nan, 5), (-9, -9, -1, -1), "abc", ["a", 0, 1, 2]]
)
def test_wrong_boxes_are_named(box):
    with pytest.raises(DataError, match="box"):
        Predictor(Oracle(people()), "cpu")(IMAGE, box)


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_wrong_images_are_named(image):
    with pytest.raises(DataError, match="uint8"):
        Predictor(Oracle(people()), "cpu")(image)


@pytest.mark.parametrize("wrong", [
    {"root_depth_mm": -5}, {"box_mm": [1.0, 2.0, 3.0]}, {"camera": np.eye(4)}, {"camera": np.diag([0.0, 900.0, 1.0])},
    {"camera": K * np.nan}, {"camera": {"K": K}}, {"camera": camera((np.nan, 0, 0, 0, 0))},
])  # fmt: skip
def test_wrong_lengths_and_cameras_are_named(wrong):
    with pytest.raises(DataError, match="expected"):
        Predictor(Oracle(people()), "cpu").predict_boxes(IMAGE, [None, None], **wrong)


def test_a_camera_of_pictures_of_another_size_is_refused():
    with pytest.raises(DataError, match="calibrated for images of 1000 x 1000 px, but these are 500 x 1000"):
        Predictor(Oracle(people()), "cpu")(IMAGE[:, :500], camera=camera())


def test_no_boxes_no_people():
    assert Predictor(Oracle(people()), "cpu").predict_boxes(IMAGE, []) == []


# --- a real checkpoint and the script


def save_checkpoint(path: Path, **changes) -> Path:
    torch.manual_seed(0)
    cfg = defaults().with_values(NETWORK | changes)
    task = build(cfg)
    state = {
        "format": 1,
        "kind": "parallax",
        "task": cfg.TASK,
        "model": task.model.state_dict(),
        "config": cfg.to_dict(),
    }
    checkpoint.save(path, state | {"image_spec": task.image_spec.to_dict(), "skeleton": task.skeleton})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "student.pth.tar")


@pytest.fixture
def folder(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg"):
        vis.save_image(tmp_path / "in" / name, rng.integers(0, 255, (80, 60, 3), dtype=np.uint8))
    return tmp_path


def files(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir()) if path.exists() else []


def fusion_checkpoint(path: Path) -> Path:
    network = {"TASK": "fusion", "MODEL.NAME": "fusion", "MODEL.HEAD": "heatmap_depth", "FUSION.BONE_SUM_MM": 4100.0}
    return save_checkpoint(path, **network, **{"DATASET.SKELETON": "mpii16", "MODEL.NUM_JOINTS": 16})


def test_people_of_known_size_are_in_mm_whatever_the_box(tmp_path):
    """TASK fusion: neither box_mm nor a camera changes the pose; the distance is that of weak perspective, or as given."""
    predictor = Predictor.from_checkpoint(fusion_checkpoint(tmp_path / "fusion.pth.tar"), "cpu")
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    box = (10, 10, 60, 80)
    plain, other = predictor(image, box), predictor(image, box, box_mm=777.0)
    assert plain.skeleton == H36M and plain.X_root.shape == (17, 3) and plain.conf.shape == (17,)
    assert float(bone_sum(torch.from_numpy(plain.X_root))) == pytest.approx(4100, rel=1e-4)
    assert plain.assumed[0].startswith("the focal length is 120 px") and plain.assumed[1] == "15 bones of a person add up to 4100 mm"
    np.testing.assert_array_equal(plain.X_root, other.X_root)
    x, X = plain.x_img, plain.X_root
    mm_per_px = np.linalg.norm(X[:, :2], axis=1).sum() / np.linalg.norm(x - x[0], axis=1).sum()  # parallel to the picture
    assert plain.X_cam[0, 2] == pytest.approx(120 * mm_per_px, rel=1e-3)
    placed = predictor(image, box, camera=[[100, 0, 60], [0, 100, 45], [0, 0, 1]], root_depth_mm=5000)
    np.testing.assert_allclose(placed.X_root, plain.X_root)
    assert placed.X_cam[0, 2] == 5000 and placed.X_cam[0, 0] == pytest.approx(50 * (x[0, 0] - 60), abs=1)
    assert placed.assumed == ("15 bones of a person add up to 4100 mm",)


def test_script_does_the_images_of_3dpw(tmp_path, capsys):
    """A folder of sequences, people by its annotations or whole pictures, results in folders of the same names."""
    weights, root, out = fusion_checkpoint(tmp_path / "fusion.pth.tar"), tmp_path / "3dpw", tmp_path / "out"
    ensure_native("threedpw", root, 0, 0, 1, (64, 64), workers=1, objects=False)
    pictures, arguments = root / "imageFiles", ["--checkpoint", str(weights), "--device", "cpu"]
    count = len(list(pictures.rglob("*.jpg")))
    chosen = ["--annotated", "threedpw", str(root), "test"]
    assert script.main([str(pictures), *arguments, *chosen, "--out", str(out)]) == 0
    said, made = capsys.readouterr().out, sorted(out.rglob("*.json"))
    assert 0 < len(made) < count and f"{len(made)} done" in said
    assert all((pictures / path.relative_to(out)).with_suffix(".jpg").exists() for path in made)
    assert all(path.with_name(f"{path.stem}_2d.png").exists() for path in made)
    person = json.loads(made[0].read_text())["people"][0]
    assert person["skeleton"] == "h36m17" and len(person["X_root"]) == 17
    sequence = made[0].parent.name
    (tmp_path / "boxes.json").write_text(json.dumps({f"{sequence}/{made[0].stem}.jpg": [[5, 5, 50, 60], [1, 1, 40, 40]]}))
    by_name = ["--boxes", str(tmp_path / "boxes.json"), "--out", str(tmp_path / "named")]
    assert script.main([str(pictures), *arguments, *by_name]) == 0 and "1 done" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "named" / sequence / made[0].name).read_text())["people"]) == 2
    (tmp_path / "none").mkdir()
    vis.save_image(tmp_path / "none" / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert script.main([str(tmp_path / "none"), *arguments, *chosen]) == 2 and "tells of nobody" in capsys.readouterr().err


def test_a_checkpoint_predicts_without_data_and_boxes_do_not_influence_each_other(weights, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # nothing of the repository's data/ is there
    predictor = Predictor.from_checkpoint(weights, "cpu")
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    boxes = [(10, 10, 60, 80), None, (30, 0, 120, 90)]
    together = predictor.predict_boxes(image, boxes)
    for box, person in zip(boxes, together, strict=True):
        alone = predictor(image, box)
        np.testing.assert_allclose(person.x_img, alone.x_img, atol=1e-2)
        np.testing.assert_allclose(person.X_root, alone.X_root, atol=0.5)
        assert person.X_root.shape == (17, 3) and (person.X_root[0] == 0).all() and person.skeleton == H36M
        assert ((person.x_img > person.box[:2] - 1) & (person.x_img < person.box[2:] + 1)).all()
    assert files(tmp_path) == []


def test_frozen_networks_and_other_number_formats_give_nearly_the_same(weights):
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    as_trained = Predictor(restore(weights), "cpu")
    frozen, half = (Predictor.from_checkpoint(weights, "cpu", amp=amp) for amp in ("off", "bf16"))
    final = torch.randn(frozen.task.model.final_layer.weight.shape, generator=torch.Generator().manual_seed(0))
    for predictor in (as_trained, frozen, half):  # fresh weights would find every joint in the middle
        predictor.task.model.final_layer.weight.data.copy_(final)
    expected, found, rounded = (predictor(image).x_img for predictor in (as_trained, frozen, half))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(found, expected, atol=1e-2)
    np.testing.assert_allclose(rounded, expected, atol=3.0)
    assert rounded.dtype == np.float32 and (rounded != found).any()
    with pytest.raises(ConfigError, match="AMP"):
        Predictor.from_checkpoint(weights, "cpu", amp="int8")


def test_the_predictor_knows_what_the_boxes_of_the_embedded_world_span(weights):
    ann = World(split="valid", frames=1, size=(64, 64)).annotations()
    cameras = ann.cameras[torch.as_tensor(ann.camera).long()]
    X_cam = cameras.to_cam(torch.as_tensor(ann.X_world[ann.pose]).double())
    depth = X_cam[:, H36M.root_index, 2].numpy()
    spans = (ann.box[:, 2] - ann.box[:, 0]) * depth / cameras.K[:, 0, 0].numpy()
    np.testing.assert_allclose(spans, Predictor.from_checkpoint(weights, "cpu").box_mm, rtol=0.02)


def test_a_network_without_depth_has_no_3d(tmp_path):
    predictor = Predictor.from_checkpoint(save_checkpoint(tmp_path / "w.tar", **{"MODEL.HEAD": "heatmap"}), "cpu")
    person = predictor(IMAGE[:50, :50])
    assert person.X_root is None and person.X_cam is None and person.x_img.shape == (17, 2)
    assert json.loads(json.dumps(person.to_dict()))["X_root"] is None


def test_wrong_devices_and_files_are_named(weights, tmp_path):
    with pytest.raises(ConfigError, match="abacus"):
        Predictor.from_checkpoint(weights, "abacus")
    with pytest.raises(WeightsError, match="none.tar"):
        Predictor.from_checkpoint(tmp_path / "none.tar", "cpu")
    bare = tmp_path / "bare.tar"
    torch.save(torch.load(weights, weights_only=True)["model"], bare)
    with pytest.raises(WeightsError, match="configuration"):
        Predictor.from_checkpoint(bare, "cpu")
    Predictor.from_checkpoint(bare, "cpu", config=defaults().with_values(NETWORK))


def test_script_writes_four_files_per_picture(weights, folder):
    arguments = [
        str(folder / "in/a.png"),
        "--checkpoint",
        str(weights),
        "--out",
        str(folder / "out"),
        "--device",
        "cpu",
    ]
    assert (
        script.main([*arguments, "--box", "5", "5", "40", "70", "--box", "20", "5", "60", "75", "--margin", "1.2"]) == 0
    )
    assert files(folder / "out") == ["a.json", "a.npz", "a_2d.png", "a_3d.png"]
    record = json.loads((folder / "out/a.json").read_text())
    assert len(record["people"]) == 2 and record["people"][0]["joints"] == list(H36M.joints)
    np.testing.assert_allclose(record["people"][0]["box"], [22.5 - 39, 37.5 - 39, 22.5 + 39, 37.5 + 39], atol=0.01)
    with np.load(folder / "out/a.npz") as arrays:
        assert arrays["X_root"].shape == (2, 17, 3) and arrays["conf"].shape == (2, 17)
        np.testing.assert_allclose(arrays["x_img"][1], record["people"][1]["x_img"], atol=1e-3)
    before = {p.name: p.read_bytes() for p in (folder / "out").iterdir()}
    assert script.main(arguments) == 2
    assert {p.name: p.read_bytes() for p in (folder / "out").iterdir()} == before
    assert script.main([*arguments, "--overwrite", "--focal", "100", "--root-depth", "4000"]) == 0
    person = json.loads((folder / "out/a.json").read_text())["people"][0]
    assert person["assumed"] == [] and person["K"][0][0] == 100


def test_results_never_replace_what_is_not_theirs(weights, folder, capsys):
    arguments = [str(folder / "in"), "--checkpoint", str(weights), "--device", "cpu", "--out"]
    assert script.main([*arguments, str(folder / "in")]) == 2 and "is the folder of the pictures" in capsys.readouterr().err
    (folder / "out").mkdir()
    (folder / "out/a.json").write_text('{"labels": "mine"}')
    assert script.main([*arguments, str(folder / "out")]) == 1
    assert "a.json: exists and is no result of this command; use --overwrite" in capsys.readouterr().err
    assert (folder / "out/a.json").read_text() == '{"labels": "mine"}' and "b.json" in files(folder / "out")
    (folder / "out/b_2d.png").unlink()  # as an interrupted run leaves it
    assert script.main([*arguments, str(folder / "out")]) == 1 and "b_2d.png" in files(folder / "out")


def test_pictures_of_like_names_have_results_of_their_own(tmp_path):
    names = [tmp_path / name for name in ("a.jpg", "a.png", "a_jpg.png", "b.jpg")]
    stems = script.result_names(names, Path("out"), tmp_path)
    assert [stem.name for stem in stems] == ["a_jpg", "a_png", "a_jpg_2", "b"]


def test_script_does_a_folder_and_reports_what_it_skips(weights, folder, capsys):
    data = (folder / "in/b.jpg").read_bytes()
    (folder / "in/cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "in/a.jpg").write_bytes(data)
    arguments = [str(folder / "in"), "--checkpoint", str(weights), "--out", str(folder / "out"), "--device", "cpu"]
    assert script.main(arguments) == 1
    said = capsys.readouterr()
    assert "3 done, 1 skipped" in said.out and "cut.jpg" in said.err
    assert {name for name in files(folder / "out") if name.endswith(".json")} == {"a_jpg.json", "a_png.json", "b.json"}
    (folder / "in/cut.jpg").write_bytes(data)
    assert script.main(arguments) == 0
    assert "1 done, 3 left as they were" in capsys.readouterr().out


def test_script_takes_boxes_by_picture(weights, folder, capsys):
    (folder / "boxes.json").write_text(json.dumps({"a.png": [[1, 1, 40, 60]], "b.jpg": [[1, 2, 3]]}))
    arguments = ["--checkpoint", str(weights), "--out", str(folder / "out"), "--boxes", str(folder / "boxes.json")]
    assert script.main([str(folder / "in"), *arguments]) == 1
    assert "b.jpg" in capsys.readouterr().err and "a.json" in files(folder / "out")
    (folder / "boxes.json").write_text(json.dumps({"zzz.png": []}))
    assert script.main([str(folder / "in"), *arguments]) == 2
    assert "zzz.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"picture": "none.png"}, "none.png"),
        ({"picture": "empty"}, "holds no picture"),
        ({"picture": "notes.txt"}, "notes.txt"),
        ({"--checkpoint": "none.tar"}, "none.tar"),
        ({"--checkpoint": "notes.txt"}, "notes.txt"),
        ({"--boxes": "notes.txt"}, "notes.txt"),
        ({"--out": "notes.txt/deep"}, "notes.txt"),
        ({"--device": "abacus"}, "abacus"),
    ],
)
def test_script_says_what_is_wrong_in_one_line(weights, folder, capsys, change, message):
    (folder / "notes.txt").write_text("mine")
    (folder / "empty").mkdir()
    values = {"picture": "in/a.png", "--checkpoint": weights, "--out": "out", "--device": "cpu"} | change
    names = {k: v if k == "--device" else str(folder / v) for k, v in values.items()}
    picture = names.pop("picture")
    assert script.main([picture, *(word for pair in names.items() for word in pair)]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert (folder / "notes.txt").read_text() == "mine" and files(folder / "out") == []


def test_script_help_shows_examples_from_any_folder(tmp_path):
    script_file = ROOT / "scripts/predict.py"
    done = subprocess.run([sys.executable, script_file, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--box 120 80 360 560" in done.stdout and "Exit status" in done.stdout


# --- videos and the detector


class Stub(torch.nn.Module):
    """Finds what it was told, as torchvision's detectors give it."""

    def __init__(self, boxes, labels, scores):
        super().__init__()
        self.found = {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}
        self.seen = []

    def forward(self, images):
        self.seen += images
        return [self.found for _ in images]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Six frames of 64 x 48 px, each of another grey."""
    path = tmp_path_factory.mktemp("clip") / "walk.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for grey in range(0, 240, 40):
        writer.write(np.full((48, 64, 3), grey, np.uint8))
    writer.release()
    return path


def test_people_come_by_score_and_other_things_are_left_out():
    model = Stub([[0, 0, 5, 9], [1, 1, 6, 9], [2, 2, 7, 9], [3, 3, 8, 9]], [1, 18, 1, 1], [0.8, 0.99, 0.95, 0.3])
    image = np.full((10, 20, 3), (255, 0, 51), np.uint8)
    boxes, scores = detection.find_people(image, model, 0.7)
    assert boxes.tolist() == [[2, 2, 7, 9], [0, 0, 5, 9]] and scores.tolist() == pytest.approx([0.95, 0.8])
    (x,) = model.seen
    assert x.shape == (3, 10, 20) and x[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert detection.find_people(image, model, 0.999)[0].shape == (0, 4)


def test_detector_weights_are_recognised_by_their_keys(tmp_path):
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    path = tmp_path / "mine.pth"
    torch.save(model.state_dict(), path)
    loaded = detection.load_detector(path, "cpu")
    both = zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert not loaded.training and all(torch.equal(a, b) for a, b in both)
    boxes, scores = detection.find_people(np.zeros((64, 64, 3), np.uint8), loaded, 0.0)
    assert boxes.shape == (len(scores), 4)
    with torch.device("meta"):
        for name in detection.DETECTORS:
            keys = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None).state_dict()
            assert detection._architecture(keys) == name


def test_missing_or_foreign_detector_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"--box.*https://download\.pytorch\.org/models/fasterrcnn.*into models/"):
        detection.load_detector(None, "cpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: holds no Faster R-CNN"):
        detection.load_detector(tmp_path / "a.pth", "cpu")
    (tmp_path / "b.pth").write_text("nothing")
    with pytest.raises(WeightsError, match=r"b\.pth: damaged"):
        detection.load_detector(tmp_path / "b.pth", "cpu")
    torch.save({"backbone.body.conv1.weight": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"c\.pth: looks like fasterrcnn_resnet50_fpn "):
        detection.load_detector(tmp_path / "c.pth", "cpu")


def test_a_box_follows_the_joints_and_stays_without_motion():
    box, x = np.array([100.0, 100, 300, 300]), np.random.default_rng(0).uniform(130, 260, (17, 2))
    start = detection.anchor(box, x)
    np.testing.assert_allclose(detection.follow(box, x, start), box)
    np.testing.assert_allclose(detection.follow(box, x + [12, -7], start), box + [12, -7, 12, -7])
    np.testing.assert_allclose(detection.follow(box, x + 500, start), box + 50)  # a quarter of the side at most
    np.testing.assert_allclose(detection.follow(box, np.full((17, 2), np.nan), start), box)
    grown, shrunk = (detection.follow(box, 200 + (x - 200) * factor, start) for factor in (2.0, 0.2))
    assert grown[2] - grown[0] == pytest.approx(206) and shrunk[2] - shrunk[0] == pytest.approx(194)


def test_found_people_keep_their_places():
    before = np.array([[0, 0, 10, 10], [50, 0, 60, 10], [90, 0, 99, 10.0]])
    found = np.array([[200, 0, 210, 10], [52, 0, 62, 10], [1, 0, 11, 10.0]])
    ordered, who = detection.in_order_of(found, before)
    np.testing.assert_array_equal(ordered, found[[2, 1, 0]])
    assert who.tolist() == [0, 1, 3] and detection.in_order_of(found[:2], before)[1].tolist() == [1, 3]
    np.testing.assert_array_equal(detection.in_order_of(found, np.zeros((0, 4)))[0], found)
    assert detection.in_order_of(np.zeros((0, 4)), before)[0].shape == (0, 4)


def test_frames_of_a_video_are_predicted_together(weights):
    predictor = Predictor.from_checkpoint(weights, "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), dtype=np.uint8)
    boxes = [[None], [], [(5, 5, 50, 55), (20, 5, 70, 55)]]
    together = predictor.predict_frames(frames, boxes, batch_size=2)
    assert [len(people) for people in together] == [1, 0, 2]
    for image, given, people in zip(frames, boxes, together, strict=True):
        for alone, person in zip(predictor.predict_boxes(image, given), people, strict=True):
            np.testing.assert_allclose(person.x_img, alone.x_img, atol=1e-2)
    with pytest.raises(DataError, match="80 x 60"):
        predictor.predict_frames([frames[0], frames[1][:50]], [[None], [None]])
    for images, given in ((frames[:2], [[None]]), (frames[:1], [[None], [None]])):
        with pytest.raises(DataError, match="lists for . pictures"):
            predictor.predict_frames(images, given)


def test_script_does_a_video(weights, clip, tmp_path):
    arguments = [str(clip), "--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert script.main([*arguments, "--box", "5", "5", "40", "45", "--every", "2"]) == 0
    assert files(tmp_path / "out") == ["walk.json", "walk.npz", "walk_pose.gif", "walk_pose.mp4"]
    record = json.loads((tmp_path / "out/walk.json").read_text())
    assert [f["frame"] for f in record["frames"]] == [0, 2, 4] and record["fps"] == 10
    with np.load(tmp_path / "out/walk.npz") as arrays:
        assert arrays["frame"].tolist() == [0, 2, 4] and arrays["X_root"].shape == (3, 17, 3)
    made = Video.open(tmp_path / "out/walk_pose.mp4")
    assert made.fps == 5 and len(list(made.frames())) == 3 and made.height == script.PANEL
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert script.main(arguments) == 2
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert script.main([*arguments, "--overwrite", "--limit", "1"]) == 0
    assert len(json.loads((tmp_path / "out/walk.json").read_text())["frames"]) == 1


@pytest.mark.parametrize(("every", "detections"), [("1", 6), ("4", 2)])
def test_script_finds_people_with_the_detector(weights, clip, tmp_path, monkeypatch, every, detections):
    model = Stub([[10, 5, 30, 45], [40, 5, 60, 45]], [1, 1], [0.9, 0.8])
    monkeypatch.setattr(script, "load_detector", lambda *args: model)
    arguments = ["--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu", "--detector", "torchvision"]
    assert script.main(["--image", str(clip), *arguments, "--detect-every", every]) == 0
    record = json.loads((tmp_path / "out/walk.json").read_text())
    assert len(model.seen) == detections and [len(f["people"]) for f in record["frames"]] == [2] * 6
    np.testing.assert_allclose(record["frames"][0]["people"][0]["box"], [20 - 24, 25 - 24, 20 + 24, 25 + 24])  # square, with margin
    model.found = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
    vis.save_image(tmp_path / "empty.png", np.zeros((20, 20, 3), np.uint8))
    assert script.main([str(tmp_path / "empty.png"), *arguments]) == 0
    assert json.loads((tmp_path / "out/empty.json").read_text())["people"] == []


@pytest.mark.parametrize("head", ["volume", "heatmap"])
def test_the_film_has_all_frames_where_nobody_is_found_at_first(clip, tmp_path, monkeypatch, head):
    model = Stub([[10, 5, 30, 45]], [1], [0.9])
    frames, look = iter(range(6)), model.forward
    monkeypatch.setattr(model, "forward", lambda images: look(images) if next(frames) > 1 else [{k: v[:0] for k, v in model.found.items()}])
    monkeypatch.setattr(script, "load_detector", lambda *args: model)
    network = save_checkpoint(tmp_path / "w.tar", **{"MODEL.HEAD": head})
    arguments = ["--checkpoint", str(network), "--out", str(tmp_path / "out"), "--device", "cpu", "--detector", "torchvision"]
    assert script.main([str(clip), *arguments, "--detect-every", "1"]) == 0
    assert [len(f["people"]) for f in json.loads((tmp_path / "out/walk.json").read_text())["frames"]] == [0, 0, 1, 1, 1, 1]
    assert len(list(Video.open(tmp_path / "out/walk_pose.mp4").frames())) == 6


@pytest.mark.parametrize("wrong", [("--focal", "0"), ("--focal", "nan"), ("--root-depth", "-5"), ("--margin", "0")])
def test_lengths_that_cannot_be_are_refused_at_once(wrong, capsys):
    with pytest.raises(SystemExit):
        script.main(["a.png", *wrong])
    assert f"{wrong[0]}: {float(wrong[1]):g}, expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("empty.mp4", b"", "empty"), ("cut.mp4", b"\0\0\0\x18ftypmp42" * 20, "no frame"), ("none.mp4", None, "no such")],
)
def test_script_names_videos_that_cannot_be_read(weights, tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert script.main([str(tmp_path / name), *arguments]) == 2
    said = capsys.readouterr().err
    assert name in said and message in said and files(tmp_path / "out") == []


def test_script_says_where_a_box_is_wrong_in_a_video(weights, clip, tmp_path, capsys):
    arguments = [str(clip), "--checkpoint", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert script.main([*arguments, "--box", "500", "500", "600", "600"]) == 2
    assert "outside" in capsys.readouterr().err and files(tmp_path / "out") == []
    assert script.main([str(clip), *arguments[1:], "--detector-weights", str(tmp_path / "none.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err
