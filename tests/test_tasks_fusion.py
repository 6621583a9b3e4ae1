"""2D + 3D fusion: what each stage minimises, who is looked at in 3D and who is not, from maps to mm, files of ours and of the release."""

import numpy as np
import pytest
import torch
from torch import nn

from lib import skeleton as skeletons
from lib.config import defaults
from lib.dataset.annotations import without_3d
from lib.engine.batches import overfit_config
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras
from lib.geometry.heatmap import render_heatmaps
from lib.geometry.weak_perspective import BONE_SUM_MM, H36M_BONES, MPII_BONES, bone_lengths, bone_sum, mpii_from_h36m
from lib.loss.fusion import hourglass_loss
from lib.models.fusion import FusionNet, Maps
from lib.tasks import Step, build
from lib.tasks import data as task_data
from lib.tasks.fusion import FusionTask
from lib.tasks.integral import mirror
from lib.tasks.restore import restore
from scripts import convert
from tests import tiny_dataset
from tests.conftest import golden

START = Step(0, 0, 0.0)
H36M, MPII = skeletons.get("h36m17"), skeletons.get("mpii16")
NETWORK = tiny_dataset.NETWORK | {
    "TASK": "fusion", "MODEL.NAME": "fusion", "MODEL.HEAD": "heatmap_depth", "MODEL.EXTRA.NUM_STAGES": 3,
    "MODEL.EXTRA.NUM_DECONV_LAYERS": 2, "MODEL.EXTRA.NUM_DECONV_FILTERS": [32, 32], "MODEL.EXTRA.NUM_DECONV_KERNELS": [4, 4],
    "TEST.PSS": "off",
}  # fmt: skip
IN_MPII = {"DATASET.SKELETON": "mpii16", "MODEL.NUM_JOINTS": 16}
PUBLISHED = IN_MPII | {"FUSION.RULE": "published"}
HOURGLASS = {
    "MODEL.NAME": "hourglass", "MODEL.EXTRA.NUM_STACKS": 2, "MODEL.EXTRA.NUM_MODULES": 1, "MODEL.EXTRA.NUM_FEATURES": 8,
    "MODEL.EXTRA.DEPTH_MODULES": 1,
}  # fmt: skip
SPREADS = ("DATASET.SCALE_FACTOR", "DATASET.ROT_FACTOR", "DATASET.COLOR_FACTOR", "FUSION.ROT_FACTOR")
STILL = {"DATASET.FLIP": False} | dict.fromkeys(SPREADS, 0.0)
WORLD = {"SYNTH.PRETRAIN": 6, "SYNTH.TRAIN": 3, "SYNTH.VALID": 2, "SYNTH.SIZE": [96, 96], "SYNTH.OBJECTS": False, "SYNTH.NATIVE": True}


class Known(nn.Module):
    """Answers with maps that are given."""

    def __init__(self, *maps: Maps):
        super().__init__()
        self.answers = iter(maps)

    def forward(self, image):
        return next(self.answers)


class Seeing(Known):
    """The same, and keeps what it was asked."""

    def __init__(self, seen: list, maps):
        super().__init__(*maps)
        self.seen = seen

    def forward(self, image):
        self.seen.append(image)
        return super().forward(image)


def patched(monkeypatch, table):
    def annotations(cfg, split, step=1, subjects=(), skeleton=""):
        return table.to_skeleton(skeleton or task_data.skeleton_name(cfg)).protocol(subjects, step)

    monkeypatch.setattr(task_data, "annotations", annotations)


@pytest.fixture
def ann(tmp_path, monkeypatch):
    """Two subjects, three instants each, four cameras; `data.annotations` answers with it."""
    table = tiny_dataset.make()
    tiny_dataset.write_images(table, tmp_path)
    patched(monkeypatch, table)
    return table


def task_of(tmp_path, **changes):
    return build(defaults().with_values(NETWORK | {"DATASET.ROOT": str(tmp_path)} | changes))


def batch_of(task, count=8, epoch=0):
    data = task.train_data()["train"]
    return {"train": data.__getitems__([(i, epoch) for i in np.linspace(0, len(data) - 1, count).astype(int)])}


def maps_of(batch, size=(16, 16), sigma=2.0, depth=None) -> Maps:
    hm = render_heatmaps(batch["x_patch"][..., :2] * (size[0] / 64), batch["valid"], size, sigma)
    return Maps(hm, torch.zeros_like(hm) if depth is None else depth, (hm,))


# --- training


STAGES = {
    "2D alone": {"MODEL.HEAD": "heatmap"},
    "with depth": {},
    "with variance": {"FUSION.WEIGHT_VARIANCE": 0.5, "FUSION.SUBJECTS": ["S1"]},
    "hourglass": HOURGLASS | {"FUSION.WEIGHT_VARIANCE": 0.5, "FUSION.SUBJECTS": ["S1"]},
    "published hourglass": HOURGLASS | PUBLISHED | {"FUSION.WEIGHT_VARIANCE": 0.5, "FUSION.SUBJECTS": ["S1"]},
}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_learns_a_batch_and_is_judged(ann, tmp_path, stage):
    torch.manual_seed(0)
    weights = {"FUSION.WEIGHT_DEPTH": 1.0} | STILL
    task = task_of(tmp_path, **weights | STAGES[stage])
    batch, valid = batch_of(task), task.eval_data()["valid"]
    optimizer, seen = torch.optim.Adam(task.param_groups(), 2e-3), []
    for step in range(60 if "hourglass" in stage else 30):  # from fresh weights these are slow to begin
        losses = task(batch, Step(step, 0, 0.0))
        optimizer.zero_grad()
        losses["total"].backward()
        if step == 0:
            assert not [name for name, p in task.model.named_parameters() if p.requires_grad and p.grad is None and "ll_" not in name]
        optimizer.step()
        seen.append({name: value.item() for name, value in losses.items()})
    first, last = seen[0], seen[-1]
    assert ("depth" in first) == ("variance" in first) == (stage != "2D alone")
    assert last["heatmaps"] < 0.9 * first["heatmaps"] and last["total"] < first["total"]
    if "depth" in first:
        assert last["depth"] < 0.8 * first["depth"]
    if stage == "with variance":
        assert batch["train"]["weak"].sum() == 4 and last["variance"] < max(s["variance"] for s in seen)
    task.eval()
    evaluator = task.evaluator(valid)
    with torch.no_grad():
        b = valid.__getitems__(range(len(valid)))
        pred = task.predict(b)
        evaluator.update(pred, b)
    assert task.key_metric[0] in evaluator.compute().metrics
    assert task.figures(b, pred, 2)["predictions"].dtype == np.uint8


def test_all_losses_fall_on_the_embedded_world(tmp_path):
    """3D labels of one subject, 2D labels of the others."""
    torch.manual_seed(0)
    weights = {"FUSION.SUBJECTS": ["S1"], "FUSION.WEIGHT_VARIANCE": 10.0, "FUSION.WEIGHT_DEPTH": 1.0}
    task = task_of(tmp_path, **STILL | WORLD | {"DATASET.ROOT": str(tmp_path / "world"), "SYNTH.TRAIN": 10} | weights)
    batch, optimizer, seen = batch_of(task), torch.optim.Adam(task.param_groups(), 2e-3), []
    assert 2 <= batch["train"]["weak"].sum() <= 6
    for _ in range(40):
        losses = task(batch, START)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        seen.append({name: value.item() for name, value in losses.items()})
    assert all(seen[-1][name] < 0.7 * seen[0][name] for name in ("heatmaps", "depth", "variance")), (seen[0], seen[-1])


def test_losses_by_hand(ann, tmp_path):
    task = task_of(tmp_path, **STILL | {"FUSION.SUBJECTS": ["S1"], "FUSION.WEIGHT_VARIANCE": 0.25})
    batch = batch_of(task, 6)
    b = batch["train"]
    b["valid"][0, 3] = 0
    hm, depth = torch.rand(6, 17, 16, 16), torch.randn(6, 17, 16, 16) * 0.3
    task.model = Known(Maps(hm, depth, (hm,)))
    losses = task(batch, START)

    target, weight = render_heatmaps(b["x_patch"][..., :2] / 4, b["valid"], (16, 16), 2.0), b["valid"][..., None, None]
    heatmaps = ((hm - target) * weight).square().mean().item()
    errors, spread = [], 0.0
    for i in range(6):
        x = b["x_patch"][i, :, :2] / 4
        column, row = (x + 0.5).floor().long().T
        inside = (column >= 0) & (column < 16) & (row >= 0) & (row < 16) & (b["valid"][i] > 0)
        d = torch.tensor([depth[i, j, row[j], column[j]] if inside[j] else torch.nan for j in range(17)])
        if not b["weak"][i]:
            error = (d - b["x_patch"][i, :, 2] / 64)[inside].abs()
            errors += torch.where(error < 1, error.square() / 2, error - 0.5).tolist()
            continue
        pose = torch.cat([x / 16, d[:, None]], -1)
        for ends, factor in zip(task.groups.ends, task.groups.weight, strict=True):
            length = torch.stack([f * (pose[a] - pose[c]).norm() for (a, c), f in zip(ends.tolist(), factor, strict=True) if f > 0])
            length = length[length.isfinite()]
            spread += (length - length.mean()).square().sum().item() / (2 * len(length)) if len(length) > 1 else 0.0
    assert b["weak"].tolist() == [False] * 3 + [True] * 3 and len(errors) > 20 and spread > 0
    expected = {"heatmaps": heatmaps, "depth": sum(errors) / (len(errors) + 1e-4), "variance": spread / 6}
    expected["total"] = heatmaps + 0.1 * expected["depth"] + 0.25 * expected["variance"]
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_losses_equal_the_release(ann, tmp_path):
    z = {key: torch.from_numpy(value) for key, value in golden("weakly_supervised", "losses_mixed").items()}
    task = task_of(tmp_path, **PUBLISHED, **{"FUSION.WEIGHT_VARIANCE": 0.01, "FUSION.WEIGHT_DEPTH": 0.1})
    mask, target = z["reg_mask"].bool(), z["reg_target"][..., 0]
    strong = mask.any(1)
    label = torch.where(mask, target, 0.0) * 64
    seen = torch.where(strong[:, None], mask, target > 0.5).float()
    elsewhere = z["pts_crop"].float() * 4 + 1.0
    elsewhere[seen == 0] = -40.0  # beside the map, as missing_at_origin would look at the first cell
    batch = {
        "image": torch.zeros(4, 3, 64, 64, dtype=torch.uint8), "x_patch": torch.cat([elsewhere, label[..., None]], -1),
        "valid": torch.ones(4, 16), "valid_depth": mask.float(), "has_depth": strong.float(),
    }  # fmt: skip
    depth = z["depth"].requires_grad_()
    task.model = Known(Maps(z["hm"], depth, (z["hm"],)))
    losses = task({"train": batch}, START)
    torch.testing.assert_close(losses["depth"], z["reg_loss"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(0.01 * losses["variance"], z["var_loss_weighted"][0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(losses["total"] - losses["heatmaps"], z["fusion_loss"], rtol=1e-4, atol=1e-7)
    losses["total"].backward()
    assert (depth.grad != 0).any(-1).any(-1)[strong].any()


def test_the_published_hourglass_is_trained_by_its_own_criterion(ann, tmp_path):
    task = task_of(tmp_path, **HOURGLASS, **PUBLISHED, **{"FUSION.SUBJECTS": ["S1"], "FUSION.WEIGHT_VARIANCE": 0.01})
    batch = batch_of(task, 4)
    b = batch["train"]
    depth, hm = torch.randn(4, 16), torch.zeros(4, 16, 16, 16)
    task.model = Known(Maps(hm, depth, (hm, hm)))
    losses = task(batch, START)
    cells = (b["x_patch"][..., :2] / 4).trunc()
    inside = ((cells >= 0) & (cells < 16)).all(-1)
    expected = hourglass_loss(cells, depth, b["x_patch"][..., 2] / 32, inside, b["has_depth"] == 0, task.groups, 16)
    torch.testing.assert_close(losses["total"] - losses["heatmaps"], expected, rtol=1e-4, atol=1e-6)
    target = render_heatmaps(cells, inside | (b["has_depth"] == 0)[:, None], (16, 16), 2.0)
    torch.testing.assert_close(losses["heatmaps"], 2 * target.square().mean())


def recorded_crop(name, strong) -> tuple[dict, torch.Tensor]:
    """A crop of the release's data sets as a batch of 64 px, and its heatmaps."""
    z = {key: torch.from_numpy(value) for key, value in golden("weakly_supervised", "geometry_targets").items()}
    if name == "mpii":
        x, center, side = z["mpii_joints"], z["mpii_meta_center"].double(), z["mpii_meta_scale"][0]
    else:
        x, center, side = z["h36m_joints_3d"][:17, :2], z["h36m_box"][:2], z["h36m_meta_scale"][0]
        x = mpii_from_h36m(x)
    known = (x > 0).any(-1)
    x_patch = (x - center) / side * 64 + 32
    assert torch.equal(x_patch.trunc().int()[known & (x_patch >= 0).all(-1)], z[f"{name}_pts_crop"][known & (x_patch >= 0).all(-1)])
    has_depth = torch.full((1,), float(strong))
    batch = {"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "x_patch": torch.cat([x_patch, 0 * x_patch[:, :1]], -1)[None].float(),
             "valid": known[None].float(), "valid_depth": known[None].float() * strong, "has_depth": has_depth}  # fmt: skip
    return batch, z[f"{name}_target"][None]


RECORDED = (("mpii", "heatmap", False), ("mpii", "heatmap_depth", False), ("h36m", "heatmap_depth", True))


@pytest.mark.parametrize(("name", "head", "strong"), RECORDED)
def test_published_heatmaps_equal_the_release(tmp_path, name, head, strong):
    """A joint just beside the map shows its edge there, but not in crops with 3D labels."""
    task = task_of(tmp_path, **PUBLISHED, **{"MODEL.HEAD": head})
    batch, target = recorded_crop(name, strong)
    if name == "mpii":
        assert target[0, 7].sum() > 10 and batch["x_patch"][0, 7, 0] < -1
    task.model = Known(Maps(target, 0 * target if task.has_depth else None, (target,)))
    assert task({"train": batch}, START)["heatmaps"].item() < 1e-12


# --- who is looked at


def test_3d_labels_of_the_others_change_nothing(ann, tmp_path, monkeypatch):
    """Their poses may be anything: samples, losses and the size of people stay as they are."""
    rng = np.random.default_rng(0)
    others = np.unique(ann.pose[ann.chosen(["S2"])])
    X = ann.X_world.copy()
    X[others] += rng.normal(size=X[others].shape).astype(np.float32) * 400
    results = []
    for table in (ann, tiny_dataset.replace(ann, X_world=X)):
        patched(monkeypatch, table)
        torch.manual_seed(0)
        task = task_of(tmp_path, **{"FUSION.SUBJECTS": ["S1"], "FUSION.WEIGHT_VARIANCE": 1.0})
        batch = batch_of(task, 12)
        results.append((batch["train"], task(batch, START), task.bone_sum_mm))
    (batch, losses, size), (other, others_losses, other_size) = results
    assert size == other_size and all(torch.equal(losses[name], others_losses[name]) for name in losses)
    assert all(torch.equal(batch[name], other[name]) for name in ("image", "x_patch", "valid_depth", "X_cam", "has_depth"))
    rows = np.unique(ann.pose[ann.chosen(["S1"])])
    assert size == pytest.approx(float(bone_sum(torch.from_numpy(ann.X_world[rows]).double()).mean()), rel=1e-6)


def test_cameras_with_3d_labels_can_be_chosen(ann, tmp_path):
    task = task_of(tmp_path, **{"FUSION.VIEWS": [0, 2], "FUSION.RATIO_3D": 0.5})
    data = task.train_data()["train"]
    assert (data.num_strong, data.num_weak) == (6, 12)
    batch = data.__getitems__([(i, 0) for i in range(len(data))])
    assert torch.equal(batch["weak"], batch["has_depth"] == 0) and batch["weak"].sum() == 12
    assert set(data.sets[0].ann.view.tolist()) == {0, 2} and set(data.sets[1].ann.view.tolist()) == {1, 3}


def test_boxes_fit_around_or_within(ann, tmp_path):
    sides = {}
    for fit in ("around", "within"):
        box = task_of(tmp_path, **{"MODEL.IMAGE_SIZE": [64, 96], "DATASET.BOX_FIT": fit}).train_data()["train"].ann.box
        sides[fit] = box[:, 2:] - box[:, :2]
        np.testing.assert_allclose(sides[fit][:, 0], sides[fit][:, 1] * 64 / 96, rtol=1e-4)
    was = ann.box[:, 2:] - ann.box[:, :2]
    assert (sides["around"] >= was - 0.01).all() and (sides["within"] <= was + 0.01).all()


def test_sets_of_other_layouts_join_in_2d(tmp_path):
    weak = {
        "synthetic": {"ROOT": str(tmp_path / "world"), "SPLIT": "pretrain"},
        "mpii": {"ROOT": str(tmp_path / "mpii"), "SPLIT": "train", "BOX_SCALE": 1.0},
        "coco": {"ROOT": str(tmp_path / "coco"), "SPLIT": "val", "OPTIONS": {}},
    }
    changes = WORLD | IN_MPII | {"DATASET.ROOT": str(tmp_path / "world"), "FUSION.WEAK": weak, "DATASET.BOX_SCALE": 1.15}
    task = task_of(tmp_path, **changes)
    data = task.train_data()["train"]
    assert [part.box_scale for part in data.sets] == [1.15, 1.15, 1.0, 1.15]
    assert all((part.ann.pose < 0).all() and part.ann.skeleton == "mpii16" for part in data.sets[1:])
    batch = data.__getitems__([(i, 0) for i in range(len(data))])
    assert batch["weak"].sum() == sum(len(part) for part in data.sets[1:]) and not batch["X_cam"][batch["weak"]].any()
    assert all(value.isfinite() for value in task({"train": batch}, START).values())
    task.eval()
    valid = task.eval_data()["valid"]
    assert valid.ann.skeleton == task.pose_skeleton == "h36m17" and task.key_metric == ("mpjpe_mm", "min")


def test_the_published_rule_lays_human36m_over_mpii_as_the_release_did(ann, tmp_path):
    for rule, neck, middle in (("published", "thorax", "spine"), ("names", None, "thorax")):
        table = task_of(tmp_path, **IN_MPII, **{"FUSION.RULE": rule}).train_data()["train"].ann.check("labels")
        assert table.skeleton == "mpii16"
        assert np.array_equal(table.X_world[:, MPII.index("thorax")], ann.X_world[:, H36M.index(middle)])
        assert np.array_equal(table.x_img[:, MPII.index("upper_neck")], ann.x_img[:, H36M.index("thorax")]) == (neck is not None)


def test_3d_labels_without_2d_ones_are_left_out(ann, tmp_path, monkeypatch):
    """They would only say that there is nobody, or, as a whole set, nothing at all."""
    conf = ann.conf.copy()
    conf[3] = 0
    patched(monkeypatch, tiny_dataset.replace(ann, conf=conf))
    kept = task_of(tmp_path).train_data()["train"].ann
    assert np.array_equal(kept.x_img, np.delete(ann.x_img, 3, 0))
    patched(monkeypatch, tiny_dataset.replace(ann, conf=0 * conf))
    with pytest.raises(DataError, match="none of the 24 observations of train.* keypoints or cache"):
        task_of(tmp_path).train_data()


def test_2d_sets_are_judged_in_the_joints_of_the_network(ann, tmp_path, monkeypatch):
    patched(monkeypatch, without_3d(ann))
    task = task_of(tmp_path, **IN_MPII).eval()
    assert task.pose_skeleton == "h36m17"
    valid = task.eval_data()["valid"]
    batch, evaluator = valid.__getitems__(range(4)), task.evaluator(valid)
    with torch.no_grad():
        evaluator.update(task.predict(batch), batch)
    assert task.pose_skeleton == "mpii16" and task.key_metric == ("pck2d_percent", "max")
    assert "pck2d_percent" in evaluator.compute().metrics


# --- from maps to mm


def far_scene() -> tuple:
    """One person before cameras 60 m away, which show a parallel projection but for 1 %."""
    table = tiny_dataset.make(sequences=1, frames=1)
    near = tiny_dataset.rig(distance=60_000.0)
    K = near.K.clone()
    K[:, [0, 1], [0, 1]] *= 15
    cameras = Cameras.make(K, near.R, center=near.center, size=near.size)
    x = cameras.project(torch.from_numpy(table.X_world[0]).double()[None].expand(4, -1, -1))[0].float().numpy()
    low, high = x.min(1), x.max(1)
    half = 0.6 * (high - low).max(1, keepdims=True)
    box = np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half], 1)
    return tiny_dataset.replace(table, cameras=cameras, x_img=x, box=box.astype(np.float32)), K[0, 0, 0].item()


@pytest.mark.parametrize("flip", [False, True])
def test_exact_maps_give_the_true_pose(tmp_path, monkeypatch, flip):
    table, focal = far_scene()
    tiny_dataset.write_images(table, tmp_path)
    patched(monkeypatch, table)
    task = task_of(tmp_path, **{"TEST.FLIP_TEST": flip}).eval()
    task.train_data()
    batch = task.eval_data()["valid"].__getitems__(range(4))
    size = (256, 256)
    depth = (batch["x_patch"][..., 2] / 64)[..., None, None].expand(-1, -1, 256, 256)
    maps = maps_of(batch, size, 4.0, depth)
    mirrored = Maps(mirror(maps.hm)[:, task.flip], mirror(maps.depth)[:, task.flip], ())
    task.model = Known(maps, mirrored)
    pred = task.predict(batch)
    truth = batch["X_cam"] - batch["root_cam"][:, None]
    assert truth.abs().max() > 400
    torch.testing.assert_close(pred["X_root"], truth, atol=12, rtol=0)  # a cell is 5 mm, and the root is read in one, too
    torch.testing.assert_close(pred["X_cam"] - pred["X_root"], batch["root_cam"][:, None].expand(-1, 17, -1), atol=0.02, rtol=0)
    torch.testing.assert_close(pred["x_img"], batch["x_img"], atol=0.3, rtol=0)
    torch.testing.assert_close(pred["mm_per_px"], batch["root_cam"][:, 2] / focal, rtol=0.02, atol=0)


def test_flip_test_averages_both_looks(ann, tmp_path):
    """Of a network that says left for right in the mirror, nothing changes; of one that does not, half is moved."""
    task = task_of(tmp_path, **{"TEST.FLIP_TEST": True}).eval()
    batch = task.eval_data()["valid"].__getitems__(range(2))
    maps = maps_of(batch, depth=torch.rand(2, 17, 16, 16))
    task.model = Known(maps, Maps(mirror(maps.hm)[:, task.flip], mirror(maps.depth)[:, task.flip], ()), maps, Maps(maps.hm, maps.depth, ()))
    both = task._maps(batch["image"])
    torch.testing.assert_close(both.hm[..., 1:], maps.hm[..., 1:])  # column 0 lies outside the mirrored crop
    torch.testing.assert_close(both.depth[..., 1:], maps.depth[..., 1:])
    assert not torch.allclose(task._maps(batch["image"]).hm[..., 1:], maps.hm[..., 1:])


def test_the_published_flip_test_equals_the_release(ann, tmp_path):
    """Columns are reversed, without the step of one that ours takes."""
    z = {key: torch.from_numpy(value) for key, value in golden("weakly_supervised", "metrics_h36m").items()}
    task = task_of(tmp_path, **PUBLISHED, **{"TEST.FLIP_TEST": True}).eval()
    hm = render_heatmaps(z["pred_centers"].float(), torch.ones(4, 16), (64, 64), 2.0, snap="toward_zero")[:1]
    seen, answers = [], iter([Maps(0 * hm, 0 * hm, ()), Maps(hm, hm, ())])
    task.model = Seeing(seen, answers)
    image = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    both = task._maps(image)
    torch.testing.assert_close(2 * both.hm[0, :, ::4, ::4], z["flip_shuffle_hm"])
    torch.testing.assert_close(2 * both.depth[0, :, ::4, ::4], z["flip_shuffle_hm"])
    assert torch.equal(seen[1], seen[0].flip(-1))


def test_published_networks_are_read_at_their_maximum_whatever_it_is(ann, tmp_path):
    hm = torch.full((1, 16, 64, 64), -2.0)
    hm[0, :, 40, 10:26] = torch.eye(16) - 1.5  # below zero everywhere, joint j highest in column 10 + j
    depth = torch.zeros_like(hm)
    depth[..., 40, :] = torch.arange(64.0) / 64
    batch = {"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "patch_from_img": torch.eye(3)[:2].expand(1, 2, 3)}
    task = task_of(tmp_path, **PUBLISHED, **{"MODEL.HEAD": "heatmap"}).eval()
    task.model = Known(Maps(hm, None, (hm,)))
    assert task.predict(batch)["x_img"][0].tolist() == [[10.0 + j, 40.0] for j in range(16)]
    task = task_of(tmp_path, **PUBLISHED).eval()
    task.model = Known(Maps(hm, depth, (hm,)))
    X = task.predict(batch)["X_root"][0]  # depth grows with the column, so that z = x
    torch.testing.assert_close(X[:, 2], X[:, 0], rtol=1e-4, atol=1e-2)
    assert X[:, 0].abs().max() > 100


def test_maps_to_mm_equal_the_release(ann, tmp_path):
    z = {key: torch.from_numpy(value) for key, value in golden("weakly_supervised", "metrics_h36m").items()}
    task = task_of(tmp_path, **PUBLISHED).eval()
    hm = render_heatmaps(z["pred_centers"].float(), torch.ones(4, 16), (64, 64), 2.0, snap="toward_zero")
    depth = z["depth_8x8"].repeat_interleave(8, -1).repeat_interleave(8, -2)
    task.model = Known(Maps(hm, depth, (hm,)))
    patch_from_img = torch.eye(3)[:2].expand(4, 2, 3)
    pred = task.predict({"image": torch.zeros(4, 3, 64, 64, dtype=torch.uint8), "patch_from_img": patch_from_img})
    torch.testing.assert_close(pred["X_root"].double(), z["converted_mm"], rtol=1e-5, atol=1e-3)
    assert task.bone_sum_mm == BONE_SUM_MM["published"] and task.pose_skeleton == "h36m17" and "X_cam" not in pred


def test_hourglass_poses(ann, tmp_path):
    """Depths of -1 .. 1 span the map like its columns do; the thorax, learnt in two meanings, is put between its neighbours."""
    task = task_of(tmp_path, **HOURGLASS, **PUBLISHED).eval()
    cells, depth = torch.randint(4, 60, (3, 16, 2)), torch.rand(3, 16) * 2 - 1
    hm = render_heatmaps(cells.float(), torch.ones(3, 16), (64, 64), 2.0)
    task.model = Known(Maps(hm, depth, (hm,)))
    pred = task.predict({"image": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "patch_from_img": torch.eye(3)[:2].expand(3, 2, 3)})
    pose = torch.cat([cells / 64, depth[..., None] / 2], -1)
    pose = (pose - pose[:, MPII.root_index, None]) * (4296.99233013 / bone_sum(pose, MPII, MPII_BONES))[:, None, None]
    pose[:, MPII.index("thorax")] = (pose[:, MPII.root_index] + pose[:, MPII.index("upper_neck")]) / 2
    assert task.pose_skeleton == "mpii16"
    torch.testing.assert_close(pred["X_root"], pose, rtol=1e-4, atol=0.05)


def test_people_are_sized_by_the_bones_that_are_known(ann, tmp_path, monkeypatch):
    """As in 3DPW, whose bodies have no top of the head."""
    valid = ann.X_valid.copy()
    valid[:, H36M.index("head")] = False
    patched(monkeypatch, tiny_dataset.replace(ann, X_valid=valid))
    task = task_of(tmp_path)
    task.train_data()
    bones = tuple(bone for bone in H36M_BONES if "head" not in bone)
    assert task.bones == bones
    assert task.bone_sum_mm == pytest.approx(float(bone_lengths(torch.from_numpy(ann.X_world).double(), H36M, bones).sum(-1).mean()))
    fixed = task_of(tmp_path, **{"FUSION.BONE_SUM_MM": 4000.0})
    fixed.train_data()
    assert fixed.bone_sum_mm == 4000 and fixed.bones == H36M_BONES


# --- files


def test_a_checkpoint_keeps_the_size_of_people(ann, tmp_path):
    task = task_of(tmp_path)
    task.train_data()
    path = tmp_path / "ours.pth.tar"
    values = {
        "format": 1, "kind": "parallax", "model": task.model.state_dict(), "task_extra": task.extra_state(), "config": task.cfg.to_dict(),
        "image_spec": task.image_spec.to_dict(), "skeleton": task.skeleton,
    }  # fmt: skip
    torch.save(values, path)
    again = restore(path)
    assert again.bone_sum_mm == task.bone_sum_mm != BONE_SUM_MM["published"] and again.bones == task.bones
    assert again.image_spec.color == "bgr" and again.image_spec.scale == 1 / 256


def test_published_weights_become_a_checkpoint_of_ours(tmp_path):
    source, path, out = FusionNet(16, 18), tmp_path / "fusion_3d_var.pth", tmp_path / "ours.pth.tar"
    torch.save({"epoch": 10, "state_dict": source.state_dict(), "optimizer": {}}, path)
    assert convert.main(["convert", str(path), str(out)]) == 0
    task = restore(out)
    assert (task.skeleton, task.pose_skeleton, task.cfg.TASK) == ("mpii16", "h36m17", "fusion") and task.image_spec.color == "bgr"
    assert task.published and task.bone_sum_mm == 4000
    assert all(torch.equal(value, task.model.state_dict()[key]) for key, value in source.state_dict().items())


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.HEAD": "volume"}, "MODEL.HEAD.*is volume"),
        ({"MODEL.NAME": "pose3d_resnet"}, "MODEL.NAME.*fusion or hourglass"),
        ({"TEST.DECODE": "soft"}, "TEST.DECODE.*soft"),
        ({"FUSION.RULE": "published"}, "FUSION.RULE.*they are h36m17"),
        ({"FUSION.GROUPS": {"legs": [["r_knee", "tail"], ["l_knee", "l_hip"]]}}, "FUSION.GROUPS.*tail"),
        ({"FUSION.GROUPS": {"legs": 3}}, "FUSION.GROUPS.*legs"),
    ],
)
def test_wrong_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        task_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("weak", "message"),
    [
        ({"mpii": {"ROOT": "x"}}, "FUSION.WEAK.*mpii.*ROOT and SPLIT"),
        ({"mpii": {"ROOT": "x", "SPLIT": "train", "FRAMES": 3}}, "FUSION.WEAK.*FRAMES"),
        ({"mpii": {"ROOT": "x", "SPLIT": 3}}, "FUSION.WEAK.*mpii.SPLIT.*3"),
        ({"mpii": 3}, "FUSION.WEAK.*mpii"),
    ],
)
def test_wrong_sets_are_named(ann, tmp_path, weak, message):
    with pytest.raises(ConfigError, match=message):
        task_of(tmp_path, **{"FUSION.WEAK": weak}).train_data()


def test_overfit_turns_no_crop_with_2d_labels_alone():
    cfg = defaults().with_values(NETWORK | {"FUSION.ROT_FACTOR": 40.0})
    assert overfit_config(cfg, FusionTask.overfit(cfg)).FUSION.ROT_FACTOR == 0
