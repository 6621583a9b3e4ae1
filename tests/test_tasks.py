"""Tasks on a tiny rig with known truth: labels, losses, predictions, teachers."""

import dataclasses

import numpy as np
import pytest
import torch

from lib.config import defaults, load
from lib.dataset.formats import FORMATS
from lib.dataset.loader import collate
from lib.engine import checkpoint
from lib.errors import ConfigError, DataError, WeightsError
from lib.geometry.crop import invert, transform_points
from lib.metrics import PoseEvaluator
from lib.metrics.threedpw import ThreeDPWEvaluator
from lib.skeleton import get
from lib.tasks import TASKS, Step, build
from lib.tasks import data as task_data
from lib.tasks import epipolar as epipolar_task
from lib.tasks import labels as label_task
from lib.tasks.baselines import label_report, mean_pose_report
from lib.tasks.integral import PoseReader, mirror
from lib.tasks.labels import Rule, make_labels, relabel, triangulate_views
from tests import tiny_dataset
from tests.conftest import ROOT

ROOT_JOINT = get("h36m17").root_index
START = Step(0, 0, 0.0)


@pytest.fixture
def ann(tmp_path, monkeypatch):
    """Four cameras, two people at three instants; `data.annotations` answers with it."""
    table = tiny_dataset.make()
    (tmp_path / "train").mkdir()
    tiny_dataset.write_images(table, tmp_path)
    monkeypatch.setattr(task_data, "annotations", lambda cfg, split, step=1, subjects=(): table)
    return table


def task_of(tmp_path, **changes):
    return build(defaults().with_values(tiny_dataset.NETWORK | {"DATASET.ROOT": str(tmp_path)} | changes))


def test_weights_without_a_known_scale_are_chosen_by_the_pose_at_its_best_scale(ann, tmp_path):
    known, estimated = ({"TASK": "epipolar", "EPIPOLAR.EXTRINSICS": how} for how in ("known", "estimated"))
    asked = {"TEST.KEY": "pa_mpjpe_mm"}
    for changes, key in (({}, "mpjpe"), (known, "mpjpe"), (estimated, "n_mpjpe"), (asked, "pa_mpjpe"), (estimated | asked, "pa_mpjpe")):
        assert task_of(tmp_path, **changes).key_metric == (f"{key}_mm", "min")
    for path in ("h36m/train-ss-wo-rt.yaml", "synthetic/h36m/train-ss-wo-rt.yaml"):  # labels of estimated cameras, read from a file
        assert load(ROOT / "experiments" / path).TEST.KEY == "n_mpjpe_mm"
    with pytest.raises(ConfigError, match="TEST.KEY: is pa_mpjpe_mm, but MODEL.HEAD heatmap has no depth"):
        task_of(tmp_path, **{"MODEL.HEAD": "heatmap"}, **asked)


def test_heatmap_targets_on_whole_cells_as_simple_baselines(tmp_path):
    """Loss 0 for maps whose peaks of 1 lie on int(x / 4 + 0.5), and only with LOSS.SNAP."""
    x_patch = torch.tensor([[9.0, 22, 0], [10, 21, 0], [-3, 30, 0]]).tile(1, 6, 1)[:, :17]
    cells = (x_patch[0, :, :2] / 4 + 0.5).int()  # 64 px of the crop on 16 cells; int() cuts towards 0
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    d = torch.stack([x - cells[:, 0, None, None], y - cells[:, 1, None, None]])
    maps = torch.where((d.abs() <= 6).all(0), torch.exp(-d.square().sum(0) / 8.0), 0.0)[None]
    valid = torch.ones(1, 17)
    for snap, off in ((True, False), (False, True)):
        task = task_of(tmp_path, **HEADS["heatmap"], **{"LOSS.SNAP": snap, "LOSS.SIGMA": 2.0, "MODEL.IMAGE_SIZE": [64, 64]})
        assert (task.heatmap_supervision(maps, x_patch, valid) > 1e-5).item() is off
    assert load(ROOT / "experiments/mpii/train-heatmap.yaml").LOSS.SNAP


HEADS = {
    "volume": {},
    "heatmap_depth": {"MODEL.HEAD": "heatmap_depth"},
    "heatmap, integral": {"MODEL.HEAD": "heatmap"},
    "heatmap": {"MODEL.HEAD": "heatmap", "LOSS.FN": "HeatmapMSELoss"},
}


@pytest.mark.parametrize("head", HEADS)
def test_each_head_learns_one_batch(ann, tmp_path, head):
    """Loss falls, every parameter gets a gradient, predictions and evaluators take it."""
    task = task_of(tmp_path, **HEADS[head], **{"DATASET.FLIP": False})
    train, valid = task.train_data()["train"], task.eval_data()["valid"]
    batch = {"train": train.__getitems__([(i, 0) for i in range(4)])}
    optimizer = torch.optim.Adam(task.param_groups(), 2e-3)
    losses = []
    for step in range(25):
        total = task(batch, Step(step, 0, 0.0))["total"]
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            without = [name for name, p in task.model.named_parameters() if p.grad is None]
            assert not without
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.85 * losses[0]
    task.eval()
    evaluator = task.evaluator(valid)
    with torch.no_grad():
        for i in range(0, len(valid), 8):
            b = valid.__getitems__(range(i, min(i + 8, len(valid))))
            pred = task.predict(b)
            evaluator.update(pred, b)
    report = evaluator.compute()
    assert task.key_metric[0] in report.metrics
    figure = next(iter(task.figures(b, pred, 2).values()))
    assert figure.dtype == np.uint8 and figure.ndim == 3


@pytest.mark.parametrize("decode", ["argmax", "quarter", "dark"])
@pytest.mark.parametrize("head", ["heatmap", "heatmap_depth"])
def test_how_maps_are_read_in_evaluation_changes_no_training(ann, tmp_path, head, decode):
    results = []
    for how in ("auto", decode):
        torch.manual_seed(0)
        task = task_of(tmp_path, **{"MODEL.HEAD": head, "TEST.DECODE": how})
        total = task({"train": task.train_data()["train"].__getitems__([(0, 0), (1, 0)])}, START)["total"]
        total.backward()
        results.append((total.item(), task.model.final_layer.weight.grad.clone(), task.reader.decode))
    (soft, gradient, _), (hard, same, read) = results
    assert soft == hard and torch.equal(gradient, same) and gradient.abs().sum() > 0 and read == decode


def test_results_say_which_options_and_boxes_are_judged(tmp_path):
    told = task_of(tmp_path, **{"DATASET.DATASET": "h36m_raw", "DATASET.BOX_SCALE": 1.5, "DATASET.OPTIONS": {"step": 5}}).protocol()
    assert told["boxes"] == "annotated, side x 1.5" and told["flip_test"] is False
    assert told["options"]["step"] == 5 and told["options"]["exclude_damaged"] is False


NETWORKS = {
    "integral": ["hourglass", "fusion", "voxelpose", "temporal", "refiner"], "epipolar": ["pose_machine"], "temporal": ["pose3d_resnet"],
    "voxelpose": ["pose3d_resnet"], "selfpose3d": ["hourglass"], "scenes": ["fusion"], "fusion": ["temporal"], "machine": ["voxelpose"],
    "refine": ["pose3d_resnet"],
}  # fmt: skip


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in NETWORKS.items() for name in names])
def test_a_network_of_another_task_is_refused(task, name):
    with pytest.raises(ConfigError, match=f"MODEL.NAME: is {name}, which TASK {task} does not train; set it to "):
        build(defaults().with_values({"TASK": task, "MODEL.NAME": name}))
    assert NETWORKS.keys() == TASKS.keys()


def test_who_is_out_of_a_view_has_no_crop_of_it(ann, tmp_path, monkeypatch):
    visible, box = ann.visible.copy(), ann.box.copy()
    visible[3], box[3] = False, np.nan  # out of sight
    visible[5, 1:], box[5] = False, np.nan  # one joint is no extent
    table = dataclasses.replace(ann, visible=visible, box=box)
    monkeypatch.setattr(task_data, "annotations", lambda cfg, split, step=1, subjects=(): table)
    task = task_of(tmp_path)
    for samples in (task.train_data()["train"], task.eval_data()["valid"]):
        kept = np.delete(np.arange(len(ann)), [3, 5])
        assert np.array_equal(samples.ann.frame, ann.frame[kept]) and np.array_equal(samples.ann.image, ann.image[kept])


def test_prediction_inverts_the_labels(ann, tmp_path, monkeypatch):
    """A network that answers with the label gets the true camera-space pose: crop, depth scale and lens are all undone."""
    task = task_of(tmp_path)
    batch = task.eval_data()["valid"].__getitems__(range(8))
    monkeypatch.setattr(task, "predict_patch", lambda image: (batch["x_patch"], torch.ones(len(image), 17)))
    pred = task.predict(batch)
    torch.testing.assert_close(pred["X_cam"], batch["X_cam"], atol=0.2, rtol=0)  # float32 pixels at 3 m
    torch.testing.assert_close(pred["x_img"], batch["x_img"], atol=1e-2, rtol=0)


def test_a_correction_brings_poses_to_the_joints_of_the_data(ann, tmp_path, monkeypatch):
    """A network that answers with the labels and an error; the joints of the data have none."""
    options = {"TEST.CORRECTION": "camera", "CORRECTION.EVIDENCE": "labels", "CORRECTION.CAMERA.NOISE": 0.002}
    task = task_of(tmp_path, **options)
    batch = task.eval_data()["valid"].__getitems__(range(8))
    error = 3 * torch.randn(batch["x_patch"].shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(task, "predict_patch", lambda image: (batch["x_patch"] + error, torch.ones(len(image), 17)))
    pred = task.predict(batch)
    off = [(pred["x_img"] - batch["x_img"]), (batch["camera"].project_cam(pred["X_cam"].double()) - batch["x_img"])]
    seen = batch["conf"] > 0
    before, after = (value.norm(dim=-1)[seen].mean() for value in off)
    assert after < 0.3 * before and (pred["updates"] > 0).all()
    with pytest.raises(ConfigError, match="CORRECTION.NETWORK"):
        task_of(tmp_path, **{"TEST.CORRECTION": "camera"})


@pytest.mark.parametrize("fit", ["around", "within"])
def test_crops_of_all_views_fit_boxes_as_single_ones_do(ann, tmp_path, fit):
    options = {"MODEL.IMAGE_SIZE": [64, 96], "DATASET.BOX_FIT": fit}
    single = task_of(tmp_path, **options).train_data()["train"].ann.box
    online = {"TASK": "epipolar", "EPIPOLAR.TEACHER": "annotation", "EPIPOLAR.LABELS": "online"}
    np.testing.assert_array_equal(task_of(tmp_path, **options | online).train_data()["train"].ann.box, single)


def detector_file(tmp_path, **changes):
    detector = task_of(tmp_path, **{"MODEL.HEAD": "heatmap", "LOSS.FN": "HeatmapMSELoss"} | changes)
    path = tmp_path / "detector.pth.tar"
    checkpoint.save(path, checkpoint.network_of(detector, detector.cfg))
    return path


def test_a_correction_goes_by_what_another_network_sees(ann, tmp_path, monkeypatch):
    path = detector_file(tmp_path)
    task = task_of(tmp_path, **{"TEST.CORRECTION": "camera", "CORRECTION.NETWORK": str(path), "CORRECTION.CAMERA.NOISE": 0.002})
    assert not any(p.requires_grad for p in task.detector.parameters())
    batch = task.eval_data()["valid"].__getitems__(range(8))
    error = 3 * torch.randn(batch["x_patch"].shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(task, "predict_patch", lambda image: (batch["x_patch"] + error, torch.ones(len(image), 17)))
    monkeypatch.setattr(task.detector, "predict_patch", lambda image: (batch["x_patch"][..., :2], 0.5 * torch.ones(len(image), 17)))
    truth = batch["x_img"]
    pred = task.predict(batch | {"x_img": torch.zeros_like(truth), "conf": torch.zeros_like(batch["conf"])})  # of the data nothing is read
    off = [pred["x_img"] - truth, batch["camera"].project_cam(pred["X_cam"].double()) - truth]
    before, after = (value.norm(dim=-1).mean() for value in off)
    assert after < 0.3 * before


def test_a_correction_by_a_network_of_other_crops_is_refused(tmp_path):
    path = detector_file(tmp_path, **{"MODEL.IMAGE_SIZE": [96, 96]})
    with pytest.raises(ConfigError, match=r"CORRECTION\.NETWORK: .*detector.pth.tar: sees crops of \(96, 96\) px"):
        task_of(tmp_path, **{"TEST.CORRECTION": "camera", "CORRECTION.NETWORK": str(path)})


def test_flip_test_undoes_the_mirror_of_the_crop(ann, tmp_path, monkeypatch):
    """The second look is the crop that training mirrors, to the pixel; its joints come back to where the first look has them."""
    task = task_of(tmp_path, **{"TEST.FLIP_TEST": True}).eval()
    plain = task.eval_data()["valid"].__getitems__(range(4))
    train = task_of(tmp_path, **dict.fromkeys(("DATASET.SCALE_FACTOR", "DATASET.ROT_FACTOR", "DATASET.COLOR_FACTOR"), 0.0),
                    **{"DATASET.FLIP_PROB": 1.0}).train_data()["train"]  # fmt: skip
    flipped = train.__getitems__(range(4))
    difference = (mirror(plain["image"]).int() - flipped["image"].int()).abs()
    assert difference[..., 1:].max() <= 2  # interpolation rounds to grey levels; column 0 lies outside the plain crop
    looks = iter([plain, flipped])
    monkeypatch.setattr(task, "reader", lambda output: (next(looks)["x_patch"], torch.full((4, 17), 0.5)))
    x_patch, conf = task.predict_patch(plain["image"])
    torch.testing.assert_close(x_patch, plain["x_patch"], atol=1e-3, rtol=0)
    assert (conf == 0.5).all()


def test_reader_normalises_as_published():
    """zn = z / 2000 mm, xn = X / W - 0.5 (EpipolarPose): a sharp peak in a volume, read and normalised."""
    volume = torch.full((1, 1, 8, 16, 16), -50.0)
    volume[0, 0, 6, 4, 12] = 50.0
    x_patch, conf = PoseReader("volume", (64, 64), "soft")(volume)
    torch.testing.assert_close(x_patch[0, 0], torch.tensor([48.0, 16.0, (6 / 8 - 0.5) * 64]))
    torch.testing.assert_close(PoseReader("volume", (64, 64), "soft").normalized(x_patch)[0, 0], torch.tensor([0.25, -0.25, 0.25]))
    assert conf[0, 0] == pytest.approx(1.0)


def test_depth_free_samples_supervise_x_and_y_alone(ann, tmp_path):
    task = task_of(tmp_path)
    table = tiny_dataset.replace(ann, pose=np.full_like(ann.pose, -1))
    batch = task.crops(table, train=False).__getitems__(range(2))
    volume = torch.randn(2, 17, 8, 16, 16, requires_grad=True)
    losses = task.joint_supervision(volume, batch["x_patch"], batch["valid"], batch["valid_depth"])
    shifted = task.joint_supervision(volume.roll(1, 2), batch["x_patch"], batch["valid"], batch["valid_depth"])
    assert not batch["valid_depth"].any()
    torch.testing.assert_close(losses["total"], shifted["total"])


# --- labels


METHODS = ("dlt", "weighted", "reweighted", "optimal2", "midpoint", "median")
RULES = [("ransac", "all"), *((method, pairs) for method in METHODS for pairs in ("all", "neighbours", "consecutive"))]


@pytest.mark.parametrize("method, pairs", RULES)
def test_labels_from_true_2d_are_the_truth(ann, method, pairs):
    labels = make_labels(ann, ann.x_img, ann.conf, Rule(method, pairs, threshold_px=2.0))
    assert labels.X_valid.all()
    np.testing.assert_allclose(labels.X_world[labels.pose], ann.X_world[ann.pose], atol=0.1)  # x_img is float32


def test_a_wrong_view_is_outvoted_or_the_joint_is_dropped(ann):
    """One camera is 40 px off: RANSAC finds the truth with the other three, plain least squares drops the joint."""
    x = ann.x_img.copy()
    x[ann.view == 2, 5] += 40
    robust = make_labels(ann, x, ann.conf, Rule("ransac", threshold_px=3.0))
    plain = make_labels(ann, x, ann.conf, Rule("dlt", threshold_px=3.0))
    np.testing.assert_allclose(robust.X_world[robust.pose], ann.X_world[ann.pose], atol=0.5)
    assert robust.X_valid.all() and not plain.X_valid[:, 5].any() and plain.X_valid[:, :5].all()


def test_unseen_views_take_no_part(ann):
    """Views below the confidence limit may hold anything; with one view left there is no label."""
    x, conf = ann.x_img.copy(), ann.conf.copy()
    x[ann.view == 0] = 1e4
    conf[ann.view == 0] = 0.05
    labels = make_labels(ann, x, conf, Rule("dlt", threshold_px=2.0, min_conf=0.1))
    np.testing.assert_allclose(labels.X_world[labels.pose], ann.X_world[ann.pose], atol=0.1)
    assert (labels.error_px[:, 0] == 0).all()
    conf[ann.view != 3] = 0
    alone = make_labels(ann, x, conf, Rule("dlt"))
    assert not alone.X_valid.any() and np.isfinite(alone.X_world).all()


def test_points_behind_a_camera_are_no_labels():
    cameras = tiny_dataset.rig(2)
    behind = cameras.center.mean(0) + 50 * (cameras.center[0] - cameras.center.mean(0))
    X = behind[None].expand(17, 3)
    x = cameras.project(X, distort=False)[0]
    x = cameras.from_norm(cameras.to_norm(x, undistort=False))
    _, valid, _ = triangulate_views(x, torch.ones(2, 17).double(), cameras, Rule("dlt"))
    assert not valid.any()


def test_a_student_never_sees_the_annotated_3d(ann):
    """Relabelling takes 3D, 2D, box and visibility from the labels; changing the truth behind them changes nothing."""
    labels = make_labels(ann, ann.x_img, ann.conf, Rule("reweighted"))
    lies = tiny_dataset.replace(ann, X_world=ann.X_world + 500, x_img=ann.x_img + 9, box=ann.box * 2)
    a, b = relabel(ann, labels, ROOT_JOINT, 2000.0), relabel(lies, labels, ROOT_JOINT, 2000.0)
    for field in ("X_world", "X_valid", "x_img", "conf", "visible", "box", "pose"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    np.testing.assert_allclose(a.x_img, ann.x_img, atol=0.01)
    center, side = (a.box[:, :2] + a.box[:, 2:]) / 2, a.box[:, 2:] - a.box[:, :2]
    np.testing.assert_allclose(center, ann.x_img[:, ROOT_JOINT], atol=0.01)
    depth = ann.cameras[torch.from_numpy(ann.camera.astype(np.int64))].to_cam(torch.from_numpy(ann.X_world[ann.pose]).double())[:, 0, 2]
    np.testing.assert_allclose(side[:, 0], 2000 * 180 / depth.numpy(), rtol=1e-3)


def test_a_person_without_a_root_label_is_left_out(ann):
    labels = make_labels(ann, ann.x_img, ann.conf, Rule("reweighted"))
    labels.X_valid[0, ROOT_JOINT] = False
    assert len(relabel(ann, labels, ROOT_JOINT, 2000.0)) == len(ann) - 4
    labels.X_valid[:, ROOT_JOINT] = False
    with pytest.raises(DataError, match="not one person has a triangulated root; raise EPIPOLAR.THRESHOLD_PX"):
        relabel(ann, labels, ROOT_JOINT, 2000.0)


def test_labels_are_made_where_there_is_no_float64(ann, tmp_path, monkeypatch):
    """What solvers get is of the type that the device has; float32 stands in for Apple's GPUs here."""
    seen = []

    def triangulated(x_img, conf, cameras, *rest):
        seen.extend([x_img.dtype, conf.dtype, cameras.K.dtype, cameras.t.dtype])
        return triangulate_views(x_img, conf, cameras, *rest)

    for module in (label_task, epipolar_task):
        monkeypatch.setattr(module, "solve_dtype", lambda device: torch.float32)
        monkeypatch.setattr(module, "triangulate_views", triangulated)
    labels = make_labels(ann, ann.x_img, ann.conf, Rule("dlt"))
    np.testing.assert_allclose(labels.X_world[labels.pose], ann.X_world[ann.pose], atol=5.0)
    task = epipolar(tmp_path, **{"EPIPOLAR.LABELS": "online"})
    assert task.online_labels(task.train_data()["train"].__getitems__([(0, 0), (1, 0)]))[1].all()
    assert len(seen) == 8 and set(seen) == {torch.float32}


def test_one_camera_cannot_triangulate(ann):
    with pytest.raises(DataError, match="no person is seen by two cameras"):
        make_labels(ann.select(ann.view == 1), ann.x_img[ann.view == 1], ann.conf[ann.view == 1], Rule())


def test_layouts_may_be_judged_in_a_way_of_their_own(ann, tmp_path):
    own = task_of(tmp_path, **{"DATASET.DATASET": "threedpw", "DATASET.SKELETON": "h36m17"})
    assert type(own.evaluator(own.crops(ann, train=False))) is ThreeDPWEvaluator
    task = task_of(tmp_path)
    assert type(task.evaluator(task.crops(ann, train=False))) is PoseEvaluator


def test_limbs_are_judged_where_they_are_asked_for(ann, tmp_path):
    task = task_of(tmp_path, **{"TEST.PCP": "absolute"})
    valid = task.eval_data()["valid"]
    assert [type(e).__name__ for e in task.judge(valid).beside] == ["LimbEvaluator"]
    assert not task_of(tmp_path).judge(valid).beside


# --- whose data


@pytest.mark.parametrize("name", ("integral", "epipolar"))
def test_subjects_are_chosen_apart_for_training_and_for_judging(tmp_path, monkeypatch, name):
    table = tiny_dataset.make()  # of S1 and S2
    monkeypatch.setattr(task_data, "load", lambda *args: table)
    monkeypatch.setattr(task_data, "ensure", lambda *args, **options: None)

    def used(**changes):
        task = task_of(tmp_path, TASK=name, **({"EPIPOLAR.TEACHER": "annotation"} if name == "epipolar" else {}), **changes)
        sets = task.train_data()["train"].ann, task.eval_data()["valid"].ann
        return [sorted({ann.subject(row) for row in range(len(ann))}) for ann in sets]

    assert used() == [["S1", "S2"], ["S1", "S2"]]
    assert used(**{"DATASET.SUBJECTS": ["S1"]}) == [["S1"], ["S1", "S2"]]
    assert used(**{"TEST.SUBJECTS": ["S2"]}) == [["S1", "S2"], ["S2"]]
    assert used(**{"DATASET.SUBJECTS": ["S1"], "TEST.SUBJECTS": ["S2"]}) == [["S1"], ["S2"]]
    with pytest.raises(DataError, match=r"no subjects \['S9'\] in the annotations, which have \['S1', 'S2'\]"):
        used(**{"TEST.SUBJECTS": ["S9"]})


# --- the self-supervised task


def epipolar(tmp_path, **changes):
    return task_of(tmp_path, TASK="epipolar", **{"EPIPOLAR.TEACHER": "annotation", **changes})


@pytest.mark.parametrize("pairs", ("all", "random_neighbours"))
def test_online_labels_are_those_of_the_augmented_crop(ann, tmp_path, pairs):
    """Mirrored, rotated, scaled crops: the label lands where the crop shows the joint, left stays left."""
    task = epipolar(tmp_path, **{"EPIPOLAR.LABELS": "online", "EPIPOLAR.PAIRS": pairs, "DATASET.FLIP_PROB": 0.5})
    batch = task.train_data()["train"].__getitems__([(i, 3) for i in range(6)])
    x_patch, valid, error = task.online_labels(batch)
    assert batch["flipped"].any() and not batch["flipped"].all() and valid.all() and error < 0.01
    x_img = transform_points(invert(batch["patch_from_img"].double()), x_patch[..., :2].double())
    mirrored = batch["flipped"][..., None, None]
    x_img = torch.where(mirrored, x_img[..., task.flip, :], x_img)
    torch.testing.assert_close(x_img.float(), batch["x_img"], atol=0.05, rtol=0)
    X_cam = batch["camera"].to_cam(batch["X_world"][:, None])
    z = (X_cam[..., 2] - X_cam[..., :1, 2]) * batch["depth_scale"][..., None]
    z = torch.where(mirrored[..., 0], z[..., task.flip], z)
    torch.testing.assert_close(x_patch[..., 2], z, atol=0.02, rtol=0)
    assert torch.isfinite(task({"train": batch}, START)["total"])


def test_cached_labels_are_made_once_and_belong_to_their_options(ann, tmp_path):
    task = epipolar(tmp_path)
    supervised = task_of(tmp_path).train_data()["train"]
    crops = task.train_data()["train"]
    file = next((tmp_path / "train").glob("labels-*.npz"))
    stamp = file.stat().st_mtime_ns
    assert len(crops) == len(supervised)
    np.testing.assert_allclose(crops.ann.X_world[crops.ann.pose], ann.X_world[ann.pose], atol=0.1)
    epipolar(tmp_path).train_data()
    assert file.stat().st_mtime_ns == stamp
    epipolar(tmp_path, **{"EPIPOLAR.METHOD": "dlt"}).train_data()
    assert len(list((tmp_path / "train").glob("labels-*.npz"))) == 2
    kept = file.read_bytes()
    with pytest.raises(DataError, match="holds labels of another teacher, rig or EPIPOLAR section"):
        epipolar(tmp_path, **{"EPIPOLAR.METHOD": "median", "EPIPOLAR.CACHE": file.name}).train_data()
    assert file.read_bytes() == kept
    file.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(DataError, match="not a readable label file"):
        epipolar(tmp_path).train_data()


def save_checkpoint(task, path):
    values = {"format": 1, "kind": "parallax", "model": task.model.state_dict(), "config": task.cfg.to_dict(),
              "image_spec": task.image_spec.to_dict(), "skeleton": task.skeleton}  # fmt: skip
    torch.save(values, path)
    return str(path)


def test_a_frozen_teacher_teaches_and_never_changes(ann, tmp_path):
    teacher = task_of(tmp_path, **HEADS["heatmap"])
    path = save_checkpoint(teacher, tmp_path / "teacher.pth.tar")
    changes = {"EPIPOLAR.TEACHER": path, "EPIPOLAR.LABELS": "online", "EPIPOLAR.THRESHOLD_PX": 0.0, "EPIPOLAR.METHOD": "dlt"}
    task = epipolar(tmp_path, **changes)
    dataset = task.train_data()["train"]
    task.train()
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    task({"train": dataset.__getitems__([(0, 0), (1, 0)])}, START)["total"].backward()
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.state_dict().items())  # running statistics as well
    assert all(p.grad is None for p in task.teacher.parameters())
    assert {id(p) for g in task.param_groups() for p in g["params"]} == {id(p) for p in task.model.parameters()}
    assert not any(k.startswith("teacher") for k in task.model.state_dict())


def test_labels_of_bare_weights_belong_to_what_is_assumed_of_them(ann, tmp_path):
    """Size, network and reading of the maps then come from the student's configuration; a checkpoint knows its own."""
    teacher = task_of(tmp_path)
    torch.save(teacher.model.state_dict(), bare := tmp_path / "teacher.pth")
    known = save_checkpoint(teacher, tmp_path / "teacher.pth.tar")
    changes = ({"MODEL.IMAGE_SIZE": [96, 96]}, {"TEST.FLIP_TEST": True}, {"TEST.DECODE": "soft"}, {"TEST.POST_PROCESS": False})

    def key(path, **values):
        return epipolar(tmp_path, **{"EPIPOLAR.TEACHER": str(path), **values}).cache_key(ann)

    assert len({key(bare), key(known), *(key(bare, **values) for values in changes)}) == 6
    assert {key(known, **values) for values in changes} == {key(known)}
    assert key(bare, **{"TRAIN.LR": 0.5, "TEST.BATCH_SIZE": 3}) == key(bare)  # which change no prediction


def test_cached_teacher_predictions_cover_every_view(ann, tmp_path):
    teacher = task_of(tmp_path, **HEADS["heatmap"])
    path = save_checkpoint(teacher, tmp_path / "teacher.pth.tar")
    task = epipolar(tmp_path, **{"EPIPOLAR.TEACHER": path})
    x_img, conf = task.teacher_predictions(ann)
    b = teacher.eval().crops(ann, train=False).__getitems__(range(len(ann)))
    with torch.no_grad():
        expected = teacher.predict(b)["x_img"]
    np.testing.assert_allclose(x_img, expected, atol=1e-3)
    assert conf.shape == ann.conf.shape


BAD = {
    "student without depth": ({"MODEL.HEAD": "heatmap"}, ConfigError, "MODEL.HEAD: is heatmap, but the student"),
    "no teacher": ({"EPIPOLAR.TEACHER": ""}, ConfigError, "EPIPOLAR.TEACHER: is empty; give the checkpoint"),
    "teacher is missing": ({"EPIPOLAR.TEACHER": "nowhere.pth.tar"}, WeightsError, "nowhere.pth.tar"),
    "joints do not fit": ({"MODEL.NUM_JOINTS": 16}, ConfigError, "is 16, but skeleton h36m17 has 17 joints; set it to 17"),
    "heatmap loss on a volume": ({"LOSS.FN": "HeatmapMSELoss"}, ConfigError, "HeatmapMSELoss trains MODEL.HEAD heatmap"),
    "ransac among pairs": ({"EPIPOLAR.METHOD": "ransac", "EPIPOLAR.PAIRS": "neighbours"}, ConfigError, "METHOD ransac chooses its views"),
    "ransac without a threshold": ({"EPIPOLAR.METHOD": "ransac", "EPIPOLAR.THRESHOLD_PX": 0.0}, ConfigError,
                                   "EPIPOLAR.THRESHOLD_PX: is 0, but METHOD ransac"),
    "maximum of a volume": ({"TEST.DECODE": "dark"}, ConfigError, "TEST.DECODE: is dark, but MODEL.HEAD volume"),
    "heatmaps read softly": ({"MODEL.HEAD": "heatmap", "LOSS.FN": "HeatmapMSELoss", "TEST.DECODE": "soft"}, ConfigError,
                             "TEST.DECODE: is soft, but LOSS.FN HeatmapMSELoss"),
    "unknown network": ({"MODEL.NAME": "pose3d_resnett"}, ConfigError, "did you mean pose3d_resnet?"),
    "unknown skeleton": ({"DATASET.SKELETON": "h36m71"}, ConfigError, "h36m17"),
    "unknown format": ({"DATASET.DATASET": "syntetic", "DATASET.SKELETON": ""}, ConfigError, "did you mean synthetic?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_one_clear_error(ann, tmp_path, case):
    changes, error, text = BAD[case]
    with pytest.raises(error, match=text.replace("?", r"\?")):
        epipolar(tmp_path, **changes).train_data()
    assert not list(tmp_path.rglob("labels-*"))


def test_a_teacher_of_another_crop_size_is_refused_online(ann, tmp_path):
    path = save_checkpoint(task_of(tmp_path, **HEADS["heatmap"], **{"MODEL.IMAGE_SIZE": [96, 96]}), tmp_path / "teacher.pth.tar")
    with pytest.raises(ConfigError, match="MODEL.IMAGE_SIZE: is .64, 64., but the teacher"):
        epipolar(tmp_path, **{"EPIPOLAR.TEACHER": path, "EPIPOLAR.LABELS": "online"}).train_data()


# --- what the results are compared with


def test_mean_pose_and_label_reports_by_hand(ann):
    """True labels score 0; the mean pose scores the mean distance to the mean, computed here per row."""
    labels = make_labels(ann, ann.x_img, ann.conf, Rule("reweighted"))
    report = label_report(ann, labels)
    assert report.metrics["mpjpe_mm"] < 0.1 and report.metrics["labels_kept_percent"] == 100
    poses = []
    for row in range(len(ann)):
        X = ann.cameras[int(ann.camera[row])].to_cam(torch.from_numpy(ann.X_world[ann.pose[row]]).double())
        poses.append((X - X[ROOT_JOINT]).numpy())
    poses = np.stack(poses)
    expected = np.linalg.norm(poses - poses.mean(0), axis=-1).mean()
    assert mean_pose_report(ann, ann).metrics["mpjpe_mm"] == pytest.approx(expected, rel=1e-4)


def test_formats_name_their_skeleton():
    from importlib import import_module

    for name, module in FORMATS.items():
        assert get(import_module(module).SKELETON).num > 0, name


def test_collate_takes_samples_of_any_task(ann, tmp_path):
    dataset = task_of(tmp_path).train_data()["train"]
    batch = collate([dataset[0], dataset[1]])
    assert batch["image"].shape == (2, 3, 64, 64)
