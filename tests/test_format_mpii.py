"""MPII's layout: real records, the order of gt_valid.mat, boxes, writing and reading back, PCKh."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import scipy.io
import torch

from lib.config import defaults
from lib.config import load as load_config
from lib.dataset import load
from lib.dataset.annotations import concat
from lib.dataset.formats import mpii
from lib.dataset.formats.files import load_table, save_table
from lib.dataset.image import ImageSpec, read_image
from lib.dataset.samples import CropSamples
from lib.engine import commands, run_dir
from lib.errors import DataError
from lib.metrics import Keypoint2DEvaluator, PCKhEvaluator
from lib.metrics.keypoints import HEAD_BIAS
from lib.skeleton import get
from lib.synthetic.world import World
from lib.tasks import build, data
from lib.vis import draw_skeleton_2d
from tests.conftest import golden


@pytest.fixture
def real(samples, tmp_path):
    """The three published records as a tree."""
    (tmp_path / "annot").mkdir()
    (tmp_path / "images").symlink_to(samples / "mpii" / "images")
    (tmp_path / "annot" / "train.json").write_text((samples / "mpii" / "test_mpii.json").read_text())
    return tmp_path


@pytest.fixture(scope="module")
def world():
    return World(split="pretrain", frames=3, size=(96, 96), people=2)


@pytest.fixture
def tree(world, tmp_path):
    mpii.write(world.annotations(), tmp_path, "valid", world.image)
    return tmp_path


def records(root, split="valid"):
    return json.loads((root / "annot" / f"{split}.json").read_text())


def rewrite(root, changed, split="valid"):
    (root / "annot" / f"{split}.json").write_text(json.dumps(changed))


def test_real_records(real):
    ann = load("mpii", real, "train")
    raw = records(real, "train")
    assert len(ann) == len(raw) == 3 and mpii.check(real, "train") == []
    for row, record in enumerate(raw):
        assert ann.image_path(row) == f"images/{record['image']}"
        known = np.array(record["joints_vis"]) > 0
        np.testing.assert_allclose(ann.x_img[row][known], np.array(record["joints"])[known] - 1, atol=1e-3)
        assert ((ann.conf[row] > 0) == known).all()
        height, width = read_image(real / ann.image_path(row)).shape[:2]
        assert (ann.x_img[row][known] >= 0).all() and (ann.x_img[row][known] < [width, height]).all()
        assert draw_skeleton_2d(np.zeros((height, width, 3), np.uint8), ann.x_img[row], get("mpii16"), conf=ann.conf[row]).any()
    assert (ann.camera == -1).all() and (ann.pose == -1).all() and np.isnan(ann.head_px).all()


def test_real_boxes_hold_the_joints_with_the_published_margin(real):
    ann = load("mpii", real, "train")
    for box, x, known in zip(ann.box, ann.x_img, ann.conf > 0, strict=True):
        low, high = x[known].min(0), x[known].max(0)
        np.testing.assert_allclose(box[2:] - box[:2], 1.25 * (high - low), rtol=1e-5)
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, (low + high) / 2, rtol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((192, 256), (225, 300)), ((256, 256), (300, 300)), ((256, 192), (400, 300))])
def test_crops_are_as_wide_as_the_network_asks_and_no_wider(real, shape, size):
    """The published rule: the extent of the joints, widened to the shape of the patch, times 1.25. Here 40 x 240 px."""
    raw = records(real, "train")
    raw[0]["joints"] = [[101 + 40 * (k % 2), 51 + 16 * k] for k in range(16)]
    rewrite(real, raw[:1], "train")
    box = data.in_proportion(defaults(), load("mpii", real, "train"), ImageSpec(shape)).box[0]
    np.testing.assert_allclose(box[2:] - box[:2], size, rtol=1e-5)
    raw[0]["joints"] = [[101, 51 + 16 * k] for k in range(16)]  # one above the other
    rewrite(real, raw[:1], "train")
    assert mpii.check(real, "train") == []


def test_published_boxes_equal_the_release(tmp_path):
    """And joints lie in them where its program saw them."""
    z = golden("weakly_supervised", "geometry_targets")
    vis = (z["mpii_joints"] > 0).any(1)
    record = {"image": "a.png", "center": z["mpii_center"].tolist(), "scale": float(z["mpii_scale"])}
    record |= {"joints": z["mpii_joints"].tolist(), "joints_vis": vis.astype(int).tolist()}
    for folder in ("annot", "images"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), z["image"])
    rewrite(tmp_path, [record, record | {"scale": 2.0}], "train")
    ann = load("mpii", tmp_path, "train", {"box": "published"})
    np.testing.assert_allclose((ann.box[0, :2] + ann.box[0, 2:]) / 2, z["mpii_meta_center"], rtol=1e-6)
    np.testing.assert_allclose(ann.box[0, 2:] - ann.box[0, :2], z["mpii_meta_scale"], rtol=1e-6)
    np.testing.assert_allclose(ann.box[1], [95 - 100, 101 - 100, 95 + 100, 101 + 100])  # not 500 px: the image has 200
    crop = CropSamples(ann, tmp_path, ImageSpec((64, 64)))[0]
    cells = crop["x_patch"][:, :2].numpy()
    there = vis & (cells >= 0).all(1)
    assert there.sum() > 10 and (cells[there].astype(int) == z["mpii_pts_crop"][there]).all()
    del record["center"]
    rewrite(tmp_path, [record], "test")
    with pytest.raises(DataError, match="record 0 .* no 'center' and 'scale'"):
        mpii.read(tmp_path, "test", box="published")
    with pytest.raises(DataError, match="box: 'head' is not one of joints, published"):
        mpii.read(tmp_path, "test", box="head")


def test_the_validation_file_has_two_names(tree):
    expected = mpii.read(tree, "valid")
    assert np.isfinite(expected.head_px).all()
    (tree / "annot" / "valid.json").rename(tree / "annot" / "val.json")
    for split in ("valid", "val"):
        ann = mpii.read(tree, split)
        assert np.array_equal(ann.x_img, expected.x_img) and np.array_equal(ann.head_px, expected.head_px)
    (tree / "annot" / "val.json").rename(tree / "annot" / "valid.json")
    assert np.array_equal(mpii.read(tree, "val").head_px, expected.head_px)


def test_crops_of_real_records(real):
    crop = CropSamples(load("mpii", real, "train"), real, ImageSpec((64, 64)))[1]
    x = crop["x_patch"][crop["valid"] > 0, :2]
    assert crop["image"].float().std() > 10 and (x > 5).all() and (x < 59).all() and crop["has_depth"] == 0


def test_records_without_joints_keep_their_place(real):
    raw = records(real, "train")
    raw[1] |= {"joints_vis": [1] + [0] * 15}
    del raw[2]["joints"], raw[2]["joints_vis"]
    rewrite(real, raw, "test")
    ann = load("mpii", real, "test")
    assert len(ann) == 3 and (ann.conf[2] == 0).all() and ann.conf[1].sum() == 1
    for row in (1, 2):
        side, center = 250 * raw[row]["scale"], np.array(raw[row]["center"]) - 1
        np.testing.assert_allclose(ann.box[row], [*(center - side / 2), *(center + side / 2)], rtol=1e-5)
    del raw[2]["center"]
    rewrite(real, raw, "test")
    with pytest.raises(DataError, match=r"record 2 .* 0 joints and no 'center'"):
        load("mpii", real, "test")


def test_written_and_read_back(tree, world):
    wrote, ann = world.annotations().to_skeleton("mpii16"), load("mpii", tree, "valid")
    assert len(ann) == len(wrote) == 6 and ann.skeleton == "mpii16" and mpii.check(tree) == []
    known = wrote.conf > 0
    assert known.all(1).any() and ((ann.conf > 0) == known).all()
    assert np.abs(ann.x_img - wrote.x_img)[known].max() < 1e-3
    again = [read_image(tree / name.decode()) for name in ann.images]
    assert len(again) == 3 and all(np.abs(a.astype(int) - world.image(i)).mean() < 6 for i, a in enumerate(again))
    pairs = [(int(i), int(p)) for i, p in zip(ann.image, ann.person, strict=True)]
    assert sorted(pairs) == [(i, p) for i in range(3) for p in range(2)]
    # the head is as long as from the neck to its top, or a tenth of the person where it is shorter in the image
    ends = get("mpii16").indices(["upper_neck", "head"])
    length = np.linalg.norm(wrote.x_img[:, ends[0]] - wrote.x_img[:, ends[1]], axis=-1)
    extent = np.ptp(wrote.x_img, axis=1).max(1)
    np.testing.assert_allclose(ann.head_px, np.maximum(length, extent / 10), rtol=1e-4)
    with pytest.raises(DataError, match="exists already"):
        mpii.write(wrote, tree, "valid")


def test_head_sizes_pass_through_the_table(tree, tmp_path):
    ann = load("mpii", tree, "valid", skeleton="coco17")
    assert np.isfinite(ann.head_px).all()
    assert ann.select([2, 0]).head_px.tolist() == ann.head_px[[2, 0]].tolist()
    assert concat([ann, ann]).head_px.tolist() == [*ann.head_px, *ann.head_px]
    ann = load("mpii", tree, "valid")
    save_table(ann, ["a.jpg"] * len(ann.images), tmp_path / "table.npz")
    assert load_table(tmp_path / "table.npz").head_px.tolist() == ann.head_px.tolist()
    mpii.write(ann, tmp_path / "again", "valid")
    np.testing.assert_allclose(load("mpii", tmp_path / "again", "valid").head_px, ann.head_px, rtol=1e-5)
    wrong = dataclasses.replace(ann, head_px=np.zeros(len(ann), np.float32))
    with pytest.raises(DataError, match="'head_px' of row 0 is not a positive length"):
        wrong.check("made up")


def test_another_order_or_number_than_the_head_boxes_is_refused(tree):
    raw = records(tree)
    rewrite(tree, raw[::-1])
    with pytest.raises(DataError, match=r"gt_valid.mat: \d of 6 people are not those of .*valid.json"):
        load("mpii", tree, "valid")
    assert "not those of" in mpii.check(tree)[0]
    rewrite(tree, raw[:5])
    with pytest.raises(DataError, match="holds 6 people, but .*valid.json has 5 records"):
        load("mpii", tree, "valid")


def test_joints_of_gt_valid_count_by_name(tree):
    """The joints that are judged are those of the .mat file, whatever the order of its names."""
    path = tree / "annot" / "gt_valid.mat"
    mat, before = scipy.io.loadmat(path), load("mpii", tree, "valid")
    turn = np.roll(np.arange(16), 5)
    missing = mat["jnt_missing"].copy()
    missing[0, 3] = 1
    scipy.io.savemat(
        path,
        {
            "dataset_joints": mat["dataset_joints"][:, turn],
            "jnt_missing": missing[turn],
            "pos_gt_src": mat["pos_gt_src"][turn],
            "headboxes_src": mat["headboxes_src"],
        },
    )
    after = load("mpii", tree, "valid")
    expected = before.conf.copy()
    expected[3, 0] = 0
    assert np.array_equal(after.conf, expected)
    np.testing.assert_allclose(after.x_img[expected > 0], before.x_img[expected > 0], atol=1e-3)


def test_without_head_boxes_there_is_a_warning(tree, caplog):
    (tree / "annot" / "gt_valid.mat").unlink()
    with caplog.at_level("WARNING", logger="parallax"):
        ann = load("mpii", tree, "valid")
    assert "gt_valid.mat is missing" in caplog.text and np.isnan(ann.head_px).all()
    assert any("gt_valid.mat" in text for text in mpii.check(tree, "valid"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "cannot be read as JSON"),
        ("{}", "holds dict of no records"),
        ('[{"joints": []}]', "record 0 has no 'image'"),
        ('[{"image": "a.jpg", "joints": [[1, 2]]}]', r"record 0 \(a.jpg\): 'joints' has shape \(1, 2\)"),
    ],
)
def test_damaged_records_are_named(tmp_path, text, message):
    (tmp_path / "annot").mkdir()
    (tmp_path / "annot" / "train.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load("mpii", tmp_path, "train")
    with pytest.raises(DataError, match="no split 'valid' .*only train"):
        load("mpii", tmp_path, "valid")
    assert mpii.check(tmp_path / "nowhere")[0].count("no annotations") == 1


def test_missing_images_are_found(tree):
    next((tree / "images").iterdir()).unlink()
    assert any("1 of 3 images are missing" in text for text in mpii.check(tree))


# --- PCKh


def batch_of(x, gt, conf, ids):
    eye = torch.eye(2, 3).expand(len(x), 2, 3)
    return {"x_img": x}, {"id": ids, "x_img": gt, "conf": conf, "patch_from_img": eye, "image": torch.zeros(len(x), 3, 256, 256)}


def test_pckh_of_the_evaluator_equals_the_release():
    z = golden("epipolarpose", "heatmap_pckh")
    pred = torch.from_numpy(z["pckh_pred_0based"]).float()
    gt = torch.from_numpy(z["pckh_gt_1based"]).permute(2, 0, 1).float() - 1
    boxes = z["pckh_headboxes"]
    head = HEAD_BIAS * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    conf = torch.from_numpy(1 - z["pckh_missing"]).T.float()
    recorded = dict(zip(z["pckh_names"].tolist(), z["pckh_values"].tolist(), strict=True))
    evaluator = PCKhEvaluator("mpii16", head, variants=("standard", "reference"))
    for ids in torch.arange(len(pred)).flip(0).split(7):  # in any order and any batches
        evaluator.update(*batch_of(pred[ids], gt[ids], conf[ids], ids))
    report = evaluator.compute()
    metrics = report.metrics
    for name in ("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"):
        assert metrics[f"pckh_{name.lower()}_percent"] == pytest.approx(recorded[name], rel=1e-6)
    assert metrics["pckh_percent"] == pytest.approx(recorded["Mean"], rel=1e-6)
    assert metrics["pckh_at11_percent"] == pytest.approx(recorded["Mean@0.1"], rel=1e-6)
    assert list(metrics)[:9] == [f"pckh_{n.lower()}_percent" for n in list(recorded)[:7]] + ["pckh_percent", "pckh_at10_percent"]
    standard = PCKhEvaluator("mpii16", head)
    standard.load_rows([evaluator.rows()])
    assert "pckh_at11_percent" not in standard.compute().metrics
    heads, values = (line.split() for line in run_dir.table(standard.compute().to_dict()).splitlines()[:2])
    assert heads == [n for n in recorded if n != "Mean@0.1"] + ["Mean@0.1"] and values[:2] == ["PCKh,", "percent"]
    assert values[2:10] == [f"{recorded[n]:.2f}" for n in heads[:8]] and float(values[10]) <= recorded["Mean@0.1"]
    assert report.table().splitlines()[0].split() == [*heads, "Mean@0.11"]
    assert "pckh_head_percent" not in report.table() and "pck2d_percent" in report.table()


def test_unknown_heads_do_not_count():
    gt = torch.rand(4, 16, 2) * 200
    pred = gt.clone()
    pred[2:] += 500
    head = np.array([20.0, 30.0, np.nan, np.nan])
    evaluator = PCKhEvaluator("mpii16", head)
    evaluator.update(*batch_of(pred, gt, torch.ones(4, 16), torch.arange(4)))
    report = evaluator.compute()
    assert report.metrics["pckh_percent"] == 100 and report.metrics["pck2d_percent"] == 50 and report.counts["heads"] == 2
    assert report.per_joint["pckh_percent"]["r_ankle"] == 100


def task_config(tree, *further):
    values = ["DATASET.DATASET", "mpii", "DATASET.ROOT", str(tree), "DATASET.TEST_SET", "valid", "MODEL.NUM_JOINTS", "16"]
    values += ["MODEL.INIT_WEIGHTS", "false", "MODEL.EXTRA.NUM_LAYERS", "18", "MODEL.IMAGE_SIZE", "[64,64]", "MODEL.DEPTH_RES", "8"]
    values += ["MODEL.EXTRA.NUM_DECONV_FILTERS", "[8,8,8]"]
    return load_config(None, [*values, *further])


def test_the_task_judges_by_pckh_where_heads_are_known(tree):
    for head in ("heatmap", "volume"):
        task = build(task_config(tree, "MODEL.HEAD", head))
        dataset = task.eval_data()["valid"]
        evaluator = task.evaluator(dataset)
        assert isinstance(evaluator, PCKhEvaluator) and task.key_metric == ("pckh_percent", "max")
        batch = dataset.__getitems__(list(range(len(dataset))))
        with torch.no_grad():
            evaluator.update(task.eval().predict(batch), batch)
        report = evaluator.compute()
        assert 0 <= report.metrics["pckh_percent"] <= 100 and report.counts["heads"] == len(dataset) and not report.per_action
    (tree / "annot" / "gt_valid.mat").unlink()
    dataset = task.eval_data()["valid"]
    assert type(task.evaluator(dataset)) is Keypoint2DEvaluator and task.key_metric == ("pck2d_percent", "max")


def test_records_of_one_joint_are_judged_but_not_learned_from(tree):
    raw = records(tree)
    only = [k for k, vis in enumerate(raw[2]["joints_vis"]) if vis][0]
    raw[2]["joints_vis"] = [int(k == only) for k in range(16)]
    rewrite(tree, raw)
    (tree / "annot" / "gt_valid.mat").unlink()
    cfg = task_config(tree, "MODEL.HEAD", "heatmap")
    ann = data.annotations(cfg, "valid")
    judged = data.crops(cfg, ann, ImageSpec((64, 64)), None, 2000.0)
    trained = data.crops(cfg, ann, ImageSpec((64, 64)), data.augmentation(cfg), 2000.0)
    assert (len(judged), len(trained)) == (6, 5)
    crop = judged[2]
    assert crop["valid"].sum() == 1 and crop["image"].float().std() > 1
    center = np.array(raw[2]["center"]) - 1  # its own joints are too few for a box
    np.testing.assert_allclose((judged.ann.box[2, :2] + judged.ann.box[2, 2:]) / 2, center, atol=1e-3)


def test_predictions_for_mpii_count_from_one(tmp_path):
    x = np.random.default_rng(0).uniform(0, 500, (3, 16, 2))
    mpii.write_predictions_mat(tmp_path / "pred.mat", x)
    np.testing.assert_allclose(scipy.io.loadmat(tmp_path / "pred.mat")["preds"], x + 1)
    with pytest.raises(DataError, match="exists already"):
        mpii.write_predictions_mat(tmp_path / "pred.mat", x)
    with pytest.raises(DataError, match=r"shape \(3, 15, 2\)"):
        mpii.write_predictions_mat(tmp_path / "other.mat", x[:, :15])


def test_valid_writes_what_mpii_evaluates(tree, tmp_path):
    """On `test`, which has no joints and no scores; a second call replaces the file."""
    raw = records(tree)
    for record in raw:
        del record["joints"], record["joints_vis"]
    rewrite(tree, raw, "test")
    values = ["DATASET.TEST_SET", "test", "OUTPUT_DIR", str(tmp_path / "out"), "DEBUG.FIGURES", "0", "WORKERS", "0", "DEVICE", "cpu"]
    cfg = task_config(tree, "MODEL.HEAD", "heatmap", *values)
    torch.save(build(cfg).model.state_dict(), tmp_path / "made.pth")
    for _ in range(2):
        assert commands.validate(cfg.with_values({"MODEL.RESUME": str(tmp_path / "made.pth")}))["counts"]["joints"] == 0
    (found,) = (tmp_path / "out").rglob("*.mat")
    assert found.name == "pred.mat" and found.parent.name == "valid-made"
    x_img = np.load(found.with_name("predictions.npz"))["x_img"]
    assert len(x_img) == len(raw) and np.allclose(scipy.io.loadmat(found)["preds"], x_img + 1)


@pytest.mark.parametrize("keep", [0, 100, 600], ids=["empty", "header", "cut short"])
def test_damaged_head_boxes_are_named(tree, keep):
    path = tree / "annot" / "gt_valid.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="gt_valid.mat: cannot be read"):
        mpii.read(tree, "valid")
