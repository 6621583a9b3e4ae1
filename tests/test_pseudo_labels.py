"""2D pseudo labels: found by networks, imported by picture, judged with and without truth, and models chosen by them."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision

from lib.config import defaults
from lib.dataset import load
from lib.dataset.formats import panoptic, pseudo_labels
from lib.dataset.formats.detector_files import read_boxes, read_pictures
from lib.dataset.formats.pseudo_labels import People
from lib.errors import DataError, WeightsError
from lib.geometry.camera import Cameras
from lib.geometry.heatmap import people_heatmaps
from lib.metrics.people_evaluator import PeopleEvaluator
from lib.prediction import detection, labeller
from lib.predictor import Prediction
from lib.skeleton import get
from lib.synthetic.world import World
from lib.tasks import build, pseudo
from scripts import prepare
from tests.test_tasks_voxelpose import SMALL

EVERY = {"interval": 1}
TRAIN = panoptic.TRAIN[0]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("panoptic")
    world = World(split="train", frames=12, length=2, people=2, size=(128, 96))  # several sequences of two instants
    panoptic.write(world.annotations(), root, "train", world.image)
    return root


@pytest.fixture(scope="module")
def ann(tree):
    return load("panoptic", tree, "train", EVERY)


def people_of(ann, noise=0.0, seed=0, skeleton="panoptic15") -> People:
    """Everyone whom a good detector would find."""
    seen = np.flatnonzero(ann.visible.sum(1) >= 4)
    true = ann.to_skeleton(skeleton)
    x = true.x_img[seen] + np.random.default_rng(seed).normal(0, noise, true.x_img[seen].shape)
    keypoints = np.concatenate([x, 0.9 * (true.visible[seen] & (true.conf[seen] > 0))[..., None]], -1)
    return People(skeleton, ann.image[seen], keypoints, ann.box[seen].astype(np.float64), np.full(len(seen), 0.9))


# ------------------------------------------------------------------------------------------------- files of detectors


def written(ann, kind: str, folder: Path) -> Path:
    """A detector's results for all pictures, as its program leaves them."""
    people = people_of(ann, skeleton="coco17")
    by_picture = [np.flatnonzero(people.image == i) for i in range(len(ann.images))]
    for i, rows in enumerate(by_picture):
        sequence, _, camera, name = ann.images[i].decode().split("/")
        stem = name.removesuffix(".jpg")
        persons = [people.keypoints[r] for r in rows]
        if kind in ("openpose", "openpose-video"):
            twenty_five = [_as_openpose(p) for p in persons]
            stem = stem if kind == "openpose" else f"hd_{camera}_{int(stem.rpartition('_')[2]):012d}"
            file, content = folder / sequence / camera / f"{stem}_keypoints.json", {
                "people": [{"person_id": [-1], "pose_keypoints_2d": p.ravel().tolist()} for p in twenty_five]
            }
        elif kind == "mmpose":
            file, content = folder / sequence / "predictions" / f"{stem}.json", [
                {"keypoints": p[:, :2].tolist(), "keypoint_scores": p[:, 2].tolist(), "bbox_score": 0.9} for p in persons
            ]
        else:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    if kind == "alphapose":  # a list per sequence, pictures by their bare names
        folder.mkdir()
        for sequence in {n.decode().split("/")[0] for n in ann.images}:
            entries = [
                {"image_id": Path(ann.images[i].decode()).name, "keypoints": people.keypoints[r].ravel().tolist(), "score": 2.5}
                for i, rows in enumerate(by_picture) for r in rows if ann.images[i].decode().startswith(sequence)
            ]  # fmt: skip
            (folder / f"{sequence}.json").write_text(json.dumps(entries))
    if kind == "hrnet":
        folder.mkdir()
        entries = [
            {"image_id": int(people.image[r]), "category_id": 1, "keypoints": people.keypoints[r].ravel().tolist(), "score": 0.9,
             "center": [1, 2], "scale": [3, 4]} for r in range(len(people))
        ]  # fmt: skip
        (folder / "keypoints_results.json").write_text(json.dumps(entries))
    return folder


def _as_openpose(coco: np.ndarray) -> np.ndarray:
    source, target = get("coco17"), get("openpose25")
    out = np.zeros((25, 3))
    for j, joint in enumerate(source.joints):
        out[target.index(joint)] = coco[j]
    for joint, pair in (("pelvis", ("l_hip", "r_hip")), ("neck", ("l_shoulder", "r_shoulder"))):
        out[target.index(joint)] = coco[source.indices(pair)].mean(0)
    return out


@pytest.mark.parametrize("kind", ["openpose", "openpose-video", "mmpose", "alphapose", "hrnet"])
def test_detectors_files_are_found_by_picture(ann, tmp_path, kind):
    folder = written(ann, kind, tmp_path / "found")
    names = [Path(n.decode()).name for n in ann.images]
    assert len(set(names)) < len(names)  # pictures of several sequences are called alike
    made = pseudo_labels.labels_of(ann, pseudo_labels.read_people(ann, folder))
    expected = pseudo_labels.labels_of(ann, people_of(ann, skeleton="coco17"))
    np.testing.assert_array_equal(made.image, expected.image)
    np.testing.assert_array_equal(made.conf > 0, expected.conf > 0)
    seen = made.conf > 0
    np.testing.assert_allclose(made.x_img[seen], expected.x_img[seen], atol=1e-3)
    assert seen[:, 3:].any()


def test_pictures_that_cannot_be_told_are_refused(ann, tmp_path):
    images = [n.decode() for n in ann.images]
    name = Path(images[0]).name
    person = {"category_id": 1, "keypoints": np.tile([5.0, 6.0, 0.5], 17).tolist(), "score": 0.5}

    def read(content, path=tmp_path / "r.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return read_pictures(path if path.parent == tmp_path else tmp_path / "folder", images)

    with pytest.raises(DataError, match="may be .* or .*; put the file into a folder called like"):
        read([{**person, "image_id": name}])
    with pytest.raises(DataError, match=r"r\.json: a person of picture 'nothing\.jpg', which is not in the list"):
        read([{**person, "image_id": "nothing.jpg"}])
    assert read([{**person, "image_id": f"D:\\data\\{images[3]}".replace("/", "\\")}]).frame.tolist() == [3]
    assert read([]) is None
    assert read([{**person, "image_id": images[1], "keypoints": [0.0] * 51}]) is None
    inside = tmp_path / "folder"
    shutil.rmtree(inside, ignore_errors=True)
    with pytest.raises(DataError, match="none of 1 pictures is in the list"):
        read({"people": [{"pose_keypoints_2d": [1.0] * 75}]}, inside / "walk_9999_keypoints.json")
    read({"people": [{"pose_keypoints_2d": np.arange(75.0).tolist()}]}, inside / f"{Path(images[0]).parent}/{Path(images[0]).stem}.json")
    with pytest.raises(DataError, match="are both taken for"):
        read({"people": []}, inside / f"copy/{Path(images[0]).parent}/{Path(images[0]).stem}_keypoints.json")


def test_boxes_alone_are_read(ann, tmp_path):
    images, path = [n.decode() for n in ann.images], tmp_path / "boxes.json"
    path.write_text(json.dumps([{"image_id": images[2], "bbox": [1, 2, 10, 20], "score": 0.5}, {"image_id": 0, "bbox": [0, 0, 5, 5]}]))
    place, boxes, scores = read_boxes(path, images)
    assert place.tolist() == [2, 0] and boxes.tolist() == [[1, 2, 11, 22], [0, 0, 5, 5]] and scores.tolist() == [0.5, 1.0]
    find = labeller.boxes_of_file(ann, path, 0.8)
    assert find(None, 0)[0].tolist() == [[0, 0, 5, 5]] and find(None, 2)[0].shape == (0, 4)
    path.write_text(json.dumps([{"image_id": 10**6, "bbox": [1, 2, 3, 4]}]))
    with pytest.raises(DataError, match="picture 1000000, which is not in the list"):
        read_boxes(path, images)
    path.write_text(json.dumps([{"image_id": 0}]))
    with pytest.raises(DataError, match="no boxes in COCO's form \\(no 'bbox'\\)"):
        read_boxes(path, images)


# ----------------------------------------------------------------------------------------------------------- networks


class Detector(torch.nn.Module):
    """torchvision's interface with given people."""

    def forward(self, images):
        one = {"boxes": [[0, 0, 4, 4], [1, 1, 9, 9], [2, 2, 8, 8]], "labels": [1, 1, 2], "scores": [0.75, 0.9, 0.99]}
        one = {name: torch.tensor(value) for name, value in one.items()}
        one["keypoints"] = torch.arange(3 * 17 * 3).reshape(3, 17, 3).float()
        one["keypoints_scores"] = torch.linspace(-4, 4, 51).reshape(3, 17)
        return [one for _ in images]


def test_keypoint_rcnn_gives_people_with_confidences():
    images = [np.zeros((12, 10, 3), np.uint8)] * 2
    first, second = labeller.JointDetector(Detector(), 0.7)(images, [5, 8])
    assert first.image.tolist() == [5, 5] and second.image.tolist() == [8, 8] and first.skeleton == "coco17"
    assert first.score.tolist() == pytest.approx([0.9, 0.75]) and first.boxes[0].tolist() == [1, 1, 9, 9]
    np.testing.assert_array_equal(first.keypoints[0, :, :2], np.arange(51).reshape(17, 3)[:, :2] + 51)
    logits = np.linspace(-4, 4, 51).reshape(3, 17)
    np.testing.assert_allclose(first.keypoints[0, :, 2], 1 / (1 + np.exp(-logits[1])), atol=1e-6)
    assert len(labeller.JointDetector(Detector(), 0.95)(images, [0, 1])[0]) == 0


def small_rcnn(weights=None, weights_backbone=None, num_classes=2, num_keypoints=17):
    """A Keypoint R-CNN as torchvision builds it, on a backbone that is made in no time."""
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 16, 1), torch.nn.ReLU())
    backbone.out_channels = 8
    models = torchvision.models.detection
    anchors = models.anchor_utils.AnchorGenerator(((32, 64),), ((1.0,),))
    pools = {
        f"{what}_roi_pool": torchvision.ops.MultiScaleRoIAlign(["0"], size, 2) for what, size in (("box", 7), ("keypoint", 14))
    }
    return models.KeypointRCNN(
        backbone, num_classes, rpn_anchor_generator=anchors, num_keypoints=num_keypoints, min_size=64, max_size=96,
        box_detections_per_img=5, rpn_post_nms_top_n_test=50, **pools,
    )


def test_keypoint_rcnn_weights_are_loaded_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.models.detection, detection.JOINTS, small_rcnn)
    path = tmp_path / "mine.pth"
    model = small_rcnn()
    torch.save(model.state_dict(), path)
    loaded = detection.load_joint_detector(path, "cpu")
    assert not loaded.training and all(torch.equal(a, loaded.state_dict()[k]) for k, a in model.state_dict().items())
    (people,) = labeller.JointDetector(loaded, 0.0)([np.random.default_rng(0).integers(0, 255, (80, 64, 3), np.uint8)], [3])
    assert len(people) and people.keypoints.shape[1:] == (17, 3) and (people.image == 3).all()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"keypointrcnn.*download\.py keypointrcnn_resnet50_fpn.*into models/.*--weights"):
        detection.load_joint_detector(None, "cpu")
    torch.save({"backbone.body.conv1.weight": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"c\.pth: holds no Keypoint R-CNN"):
        detection.load_joint_detector(tmp_path / "c.pth", "cpu")
    monkeypatch.undo()
    with torch.device("meta"):
        keys = getattr(torchvision.models.detection, detection.JOINTS)(weights=None, weights_backbone=None).state_dict()
    assert any(key.startswith("roi_heads.keypoint_predictor.") for key in keys)  # by which the file is known


class TellTale:
    """A predictor that knows where MPII's joints are: on the diagonal of the box."""

    skeleton = get("mpii16")

    def __init__(self):
        self.calls = []

    def predict_frames(self, images, boxes, batch_size):
        self.calls.append(([image.shape for image in images], boxes))
        at = np.linspace(0, 1, 16)[:, None]
        return [[Prediction(self.skeleton, b, (1 - at) * b[:2] + at * b[2:], np.full(16, 0.6)) for b in given] for given in boxes]


def test_a_network_of_ours_runs_on_boxes(ann):
    shapes = [(40, 60, 3), (50, 60, 3), (40, 60, 3)]
    boxes = {0: [[10, 10, 20, 30], [-20, -20, -1, -1]], 1: [], 2: [[0, 0, 40, 40], [5, 5, 10, 10]]}
    predictor = TellTale()
    find = labeller.CropNetwork(predictor, lambda image, row: (np.array(boxes[row]).reshape(-1, 4), np.ones(len(boxes[row]))), margin=2.0)
    found = find([np.zeros(shape, np.uint8) for shape in shapes], [0, 1, 2])
    assert [len(p) for p in found] == [1, 0, 2] and found[2].image.tolist() == [2, 2]  # outside the picture is nobody
    assert found[0].boxes.tolist() == [[10, 10, 20, 30]]
    assert found[0].keypoints[0, 0].tolist() == [5, 0, 0.6] and found[0].keypoints[0, -1].tolist() == [25, 40, 0.6]
    assert sorted(len(shown) for shown, _ in predictor.calls) == [1, 2] and all(len(set(shown)) == 1 for shown, _ in predictor.calls)
    made = pseudo_labels.labels_of(ann, found[0])
    joint, mpii = get("panoptic15"), get("mpii16")
    row = made.person >= 0
    assert row.sum() == 1 and made.conf[row, joint.index("nose")] == 0  # MPII has none
    np.testing.assert_allclose(made.x_img[row][0, joint.index("l_knee")], found[0].keypoints[0, mpii.index("l_knee"), :2])


def test_peaks_of_heatmaps_are_taken_in_each_box():
    x = torch.tensor([[[[20.3, 11.6]], [[44.8, 30.2]]]])  # (1,M,J,2) cells
    maps = people_heatmaps(x, torch.ones(1, 2, 1), (64, 48), 2.0)[0].double()
    half = torch.tensor([[0.5, 0, 3], [0, 0.5, 1]], dtype=torch.float64)  # picture px -> cells
    boxes = torch.tensor([[10, 5, 60, 40], [70, 40, 140, 90], [-50, 100, -20, 120]], dtype=torch.float64)  # the last one sees nobody
    found = labeller.peaks_in(maps, half, boxes)
    expected = (x[0, :, 0].double() - torch.tensor([3.0, 1.0])) * 2
    assert (found[:2, 0, :2] - expected).abs().max() <= 2 * 0.26 and (found[:2, 0, 2] > 0.9).all() and found[2, 0, 2] < 0.01
    assert labeller.peaks_in(maps, half, boxes[:0]).shape == (0, 1, 3)


def test_the_2d_network_of_voxelpose_looks_at_whole_pictures(ann, tree, monkeypatch):
    torch.manual_seed(0)
    task = build(defaults().with_values(SMALL))
    row = int(np.flatnonzero(ann.visible.all(1))[0])
    image = cv2.cvtColor(cv2.imread(str(tree / ann.image_path(row))), cv2.COLOR_BGR2RGB)
    find = labeller.FrameNetwork(task, labeller.annotated_boxes(ann), "cpu")
    raw = find([image], [int(ann.image[row])])[0]  # what an untrained network says
    assert raw.skeleton == "panoptic15" and len(raw) == ((ann.image == ann.image[row]) & (ann.conf > 0).any(1)).sum()

    def told(batch):
        affine = task._hm_from_img(batch, (96, 64))
        alone = {"x_img": torch.from_numpy(ann.x_img[row])[None, None, None], "conf": torch.ones(1, 1, 1, 15)}
        place = alone["x_img"] @ affine[:, :, None, :, :2].mT + affine[:, :, None, None, :, 2]
        return people_heatmaps(place, alone["conf"], (96, 64), 1.5), affine

    monkeypatch.setattr(task, "heatmaps", told)
    found = find([image], [int(ann.image[row])])[0]
    mine = int(np.abs(found.boxes - ann.box[row]).sum(1).argmin())
    assert np.abs(found.keypoints[mine, :, :2] - ann.x_img[row]).max() < 0.6 * 128 / 96
    with pytest.raises(WeightsError, match="looks at keypoints"):
        labeller.FrameNetwork(build(defaults().with_values(SMALL | {"VOXEL.HEATMAPS": "keypoints"})), None, "cpu")


class Stopping:
    """Finds a person in every picture, and breaks after some."""

    def __init__(self, after=10**9):
        self.seen, self.after = [], after

    def __call__(self, images, rows):
        if len(self.seen) >= self.after:
            raise KeyboardInterrupt
        self.seen += rows
        return [People("coco17", np.array([r]), np.full((1, 17, 3), r + 0.5), np.array([[0.0, 0, 9, 9]]), np.ones(1)) for r in rows]


def test_a_run_that_was_stopped_goes_on(ann, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo, "PIECE", 6)
    first, second, keep = Stopping(after=14), Stopping(), tmp_path / "keep"
    with pytest.raises(KeyboardInterrupt):
        pseudo.detected(ann, tree, first, keep, {"network": "a"}, 2)
    people = pseudo.detected(ann, tree, second, keep, {"network": "a"}, 2)
    count = len(ann.images)
    assert people.image.tolist() == list(range(count)) and second.seen == list(range(12, count))
    np.testing.assert_array_equal(people.keypoints[:, 0, 0], np.arange(count) + 0.5)
    with pytest.raises(DataError, match="was begun with another detector"):
        pseudo.detected(ann, tree, second, keep, {"network": "b"}, 2)


# ------------------------------------------------------------------------------------------------------------- quality


def test_quality_tells_good_labels_from_bad_ones(ann):
    def judged(people, truth=True):
        return pseudo.judge(pseudo_labels.labels_of(ann, people), ann if truth else None)

    good = judged(people_of(ann))
    assert good.truth["recall_percent"] == good.truth["precision_percent"] == 100 and good.truth["median_px"] < 0.01
    assert good.across["matched_percent"] == 100 and good.across["p90_px"] < 0.05 and good.across["confirmed_percent"] == 100
    rough = judged(people_of(ann, 1.5))
    assert 1.2 < rough.truth["median_px"] < 2.3  # sigma times 1.18
    assert 0.5 < rough.across["median_px"] < 2.3 and rough.across["confirmed_percent"] < 95
    whole = people_of(ann)
    half = dataclasses.replace(whole, **{n: getattr(whole, n)[::2] for n in ("image", "keypoints", "boxes", "score")})
    assert judged(half).truth["recall_percent"] == pytest.approx(50, abs=2) and judged(half).truth["precision_percent"] == 100
    away = dataclasses.replace(whole, keypoints=whole.keypoints + np.array([400.0, 0, 0]))
    assert judged(away).truth["recall_percent"] == 0 and judged(away).truth["precision_percent"] == 0
    unknown = judged(whole, truth=False)
    assert unknown.truth == {} and unknown.across == good.across
    assert "against the annotation" not in unknown.table() and "against the annotation: recall 100.0 %" in good.table()
    assert set(json.loads(json.dumps(good.to_dict(), allow_nan=False))) == {"counts", "across", "truth", "joints", "views"}


def test_one_wrong_camera_shows_without_truth(ann):
    made = pseudo_labels.labels_of(ann, people_of(ann))
    turned = Cameras(**{f.name: getattr(made.cameras, f.name).clone() for f in dataclasses.fields(Cameras)})
    wrong = np.unique(made.camera[made.view == 1])
    angle = torch.tensor(0.08, dtype=torch.float64)
    turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]], dtype=torch.float64)
    turned.R[wrong] = turn @ turned.R[wrong]
    turned.t[wrong] = (turn @ turned.t[wrong][..., None])[..., 0]
    views = pseudo.judge(dataclasses.replace(made, cameras=turned)).views
    bad = views.pop("view 1")
    assert all(bad["matched_percent"] < v["matched_percent"] or bad["across_px"] > v["across_px"] for v in views.values())


def test_nobody_anywhere_is_reported(ann):
    nobody = pseudo.judge(pseudo_labels.labels_of(ann, People.nobody()), ann)
    assert nobody.counts["people"] == 0 and nobody.truth["recall_percent"] == 0 and "nobody in" in nobody.table()
    json.dumps(nobody.to_dict(), allow_nan=False)


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_labels_a_split_with_a_network(tree, tmp_path, capsys, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(tree, root)
    ann = load("panoptic", root, "train", EVERY)
    true = people_of(ann, 0.5)

    class Network:
        def __call__(self, images, rows):
            return [dataclasses.replace(true, **{n: getattr(true, n)[true.image == r] for n in ("image", "keypoints", "boxes", "score")})
                    for r in rows]  # fmt: skip

    monkeypatch.setattr(labeller, "network", lambda path, boxes, device, margin: Network())
    checkpoint = tmp_path / "net.pth"
    checkpoint.write_bytes(b"weights")
    words = ["pseudo-labels", "--root", str(root), "--interval", "1"]
    assert prepare.main([*words, "--network", str(checkpoint), "--boxes", "annotated"]) == 0
    out = capsys.readouterr().out
    assert f"{len(true)} people in {len(ann.images)} pictures" in out and "recall 100.0 %" in out and "look at" in out
    made = load("pseudo_labels", root, "group_train_pseudo_soft")
    np.testing.assert_allclose(made.x_img[made.conf > 0], pseudo_labels.labels_of(ann, true).x_img[made.conf > 0], atol=1e-4)
    report = json.loads((root / "group_train_pseudo_soft.quality.json").read_text())
    assert report["made"]["margin"] == 1.2 and report["made"]["network_sha256"] and report["quality"]["truth"]["median_px"] < 1
    assert (root / "group_train_pseudo_soft.png").stat().st_size > 1000
    assert not [p for p in root.iterdir() if p.name.startswith(".")]
    before = (root / "group_train_pseudo_soft.npz").read_bytes()
    assert prepare.main(["pseudo_labels", *words[1:], "--network", str(checkpoint), "--boxes", "annotated"]) == 2
    assert "exists already" in capsys.readouterr().err and (root / "group_train_pseudo_soft.npz").read_bytes() == before
    (root / "h.quality.json").write_text("of other labels")
    monkeypatch.setattr(labeller, "network", lambda *_: pytest.fail("the network came before the check"))
    assert prepare.main([*words, "--network", str(checkpoint), "--boxes", "annotated", "--out", "h"]) == 2
    assert "h.quality.json: exists already" in capsys.readouterr().err and (root / "h.quality.json").read_text() == "of other labels"
    assert prepare.main([*words, "--keypointrcnn", "--boxes", "annotated", "--out", "g"]) == 2
    assert "--boxes: only --network" in capsys.readouterr().err
    assert prepare.main(["pseudo-labels", "--root", str(root), "--dataset", "custom", "--interval", "2", "--list", "x"]) == 2
    assert "are for --dataset panoptic" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ choosing models


def test_models_are_judged_by_pseudo_labels_alone(tree, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(tree, root)
    ann = load("panoptic", root, "train", EVERY)
    made = pseudo_labels.labels_of(ann, people_of(ann, 1.0))
    pseudo_labels.write(made, root, "group_valid_pseudo")
    own = SMALL | {
        "TASK": "selfpose3d", "SSL.STAGE": "pose", "VOXEL.ROOT_HEATMAP": True, "DATASET.ROOT": str(root), "SYNTH.NATIVE": False,
        "DATASET.TEST_SET": "train",
    }  # fmt: skip
    task = build(defaults().with_values(own | {"SSL.VALID_LABELS": "group_valid_pseudo"}))
    assert task.key_metric == ("reprojection_percent", "min")

    def scores(ann, labels):
        """Of the true people, as if a network had found them."""
        from lib.tasks import data

        monkeypatch.setattr(data, "annotations", lambda *args: ann)
        monkeypatch.setattr(task, "_labels_of", lambda name: labels)
        samples = task.eval_data()["valid"]
        batch = samples.__getitems__(list(range(len(samples))))
        evaluator = task.evaluator(samples)
        assert isinstance(evaluator, PeopleEvaluator) and evaluator.protocol["judged_by"] == "group_valid_pseudo"
        evaluator.update({"X_world": found, "score": torch.ones(found.shape[:2]), "found": there}, batch)
        return evaluator.compute().metrics

    plain = build(defaults().with_values(own)).eval_data()["valid"]
    true = plain.__getitems__(list(range(len(plain))))
    found, there = true["X_world"], true["X_valid"].any(-1)
    fitting = scores(ann, made)
    assert fitting["mpjpe_mm"] < 0.01 and 0 < fitting["reprojection_percent"] < 60  # the truth is reported beside it
    spoiled = dataclasses.replace(ann, X_world=ann.X_world + 777, x_img=ann.x_img[::-1].copy(), visible=~ann.visible)
    blind = scores(spoiled, made)
    assert blind["reprojection_percent"] == fitting["reprojection_percent"] and blind["map_percent"] < fitting["map_percent"]
    rough = scores(ann, pseudo_labels.labels_of(ann, people_of(ann, 4.0)))
    assert rough["reprojection_percent"] > fitting["reprojection_percent"]
    exact = scores(ann, pseudo_labels.labels_of(ann, people_of(ann)))
    assert exact["reprojection_percent"] < fitting["reprojection_percent"]
    with pytest.raises(DataError, match="pictures of the frames have none, the first is"):
        scores(ann, made.select(made.frame == made.frame.min()))
