"""3D and 2D samples mixed: counts of an epoch, who is drawn, order and identity of a batch, workers, resuming; tables without 3D;
isotropic depth.
"""

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import concat, strong_and_weak, without_3d
from lib.dataset.augment import Augment
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key, StepSampler, make_loader, steps_per_epoch
from lib.dataset.mixed import MixedSamples
from lib.dataset.samples import CropSamples, ViewSamples
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.weak_perspective import depth_labels
from tests.tiny_dataset import SKELETON, edited, make, replace, write_images

SPEC = ImageSpec(size=(32, 32))
WILD = Augment(scale=0.25, rot_deg=30, rot_prob=0.6, color=0.2, flip_prob=0.5)
ROOT_JOINT = skeletons.get(SKELETON).root_index


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """24 observations: two subjects, three instants each, four views."""
    root = tmp_path_factory.mktemp("world")
    ann = make(sequences=2, frames=3)
    write_images(ann, root)
    return ann, root


def crops(world, rows=slice(None), weak=False, **options):
    ann, root = world
    ann = ann.select(np.arange(len(ann))[rows])
    return CropSamples(without_3d(ann) if weak else ann, root, SPEC, **{"augment": WILD, "seed": 7} | options)


def mixed(world, ratio, strong=slice(0, 14), weak=(slice(14, 20),), **options):
    return MixedSamples(crops(world, strong), [crops(world, rows, weak=True) for rows in weak], ratio, **options)


def same(a, b):
    def equal(x, y):
        return equal(x.K, y.K) and equal(x.R, y.R) if isinstance(x, Cameras) else torch.equal(x, y)

    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


# --- ratio


@pytest.mark.parametrize("ratio, drawn", [(1.0, 6), (0.5, 3), (2.0, 12), (float("inf"), 14), (0.0, 0), (0.01, 1)])
def test_an_epoch_has_all_weak_samples_and_the_ratio_of_strong_ones(world, ratio, drawn):
    data = mixed(world, ratio)
    assert len(data) == drawn + 6
    for epoch in (0, 1, 5):
        batch = data.__getitems__([Key(i, epoch) for i in range(len(data))])
        ids = batch["id"].tolist()
        assert len(set(ids)) == len(ids) and sorted(i for i in ids if i >= 14) == list(range(14, 20))
        assert batch["weak"].tolist() == [i >= 14 for i in ids] and batch["weak"].sum() == 6
        assert (batch["has_depth"] > 0).tolist() == [i < 14 for i in ids]


def test_few_strong_samples_come_again_and_look_different_each_time(world):
    data = mixed(world, 5.0)
    assert len(data) == 30 + 6
    for epoch in (0, 3):
        batch = data.__getitems__([Key(i, epoch) for i in range(len(data))])
        counts = np.bincount(batch["id"][~batch["weak"]], minlength=14)
        assert counts.sum() == 30 and set(counts.tolist()) == {2, 3}
        looks = {(int(i), tuple(A.flatten().tolist())) for i, A in zip(batch["id"], batch["patch_from_img"], strict=True)}
        assert len(looks) == 36
    rests = {frozenset(data.draw(epoch)[28:].tolist()) for epoch in range(20)}
    assert len(rests) > 10


def test_the_ratio_holds_for_what_a_loader_gives(world):
    data = mixed(world, 0.5)
    per_epoch = steps_per_epoch(len(data), 3)
    loader = make_loader(data, 3, seed=1, num_steps=4 * per_epoch)
    weak = torch.cat([batch["weak"] for batch in loader])
    assert len(weak) == 4 * 9 and weak.sum() == 4 * 6


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5, 2.0])
def test_all_strong_samples_are_seen_and_every_epoch_draws_anew(world, ratio):
    data = mixed(world, ratio)
    part = data.num_strong
    epochs = [data.draw(epoch).tolist() for epoch in range(60)]
    assert all(len(set(drawn)) == part for drawn in epochs)
    turn = -(-14 // part)
    for first in range(0, 60 - turn, turn):
        assert set().union(*epochs[first : first + turn]) == set(range(14))
    assert len({frozenset(drawn) for drawn in epochs}) > 20
    seen = np.bincount(np.concatenate(epochs), minlength=14)
    assert seen.min() > 0.5 * seen.mean() and seen.max() < 1.5 * seen.mean()


def test_the_draw_depends_on_seed_and_epoch_alone(world):
    data, other = mixed(world, 1.0, seed=3), mixed(world, 1.0, seed=3)
    forward = [data.draw(epoch).tolist() for epoch in range(12)]
    assert [other.draw(epoch).tolist() for epoch in reversed(range(12))][::-1] == forward
    assert [mixed(world, 1.0, seed=4).draw(epoch).tolist() for epoch in range(12)] != forward


def test_several_weak_sets_count_by_their_sizes(world):
    data = mixed(world, 1.0, weak=(slice(14, 20), slice(20, 22)))
    assert len(data) == 16 and data.offsets.tolist() == [0, 14, 20, 22]
    ids = data.__getitems__([Key(i, 2) for i in range(16)])["id"].tolist()
    assert sorted(ids)[8:] == list(range(14, 22))
    assert len(MixedSamples(crops(world, slice(0, 4)), crops(world, slice(4, 7), weak=True))) == 6  # one set without a list


def test_without_weak_samples_every_epoch_has_all_strong_ones(world):
    for ratio in (1.0, 0.0, float("inf")):
        data = MixedSamples(crops(world), [], ratio)
        batch = data.__getitems__([Key(i, 3) for i in range(24)])
        assert len(data) == 24 and batch["id"].tolist() == list(range(24)) and not batch["weak"].any()


# --- samples


def test_samples_are_those_of_their_sets_in_the_order_of_the_keys(world):
    sets = [crops(world, slice(0, 14)), crops(world, slice(14, 20), weak=True), crops(world, slice(20, 24), weak=True, seed=9)]
    data = MixedSamples(sets[0], sets[1:], 0.5)
    keys = [Key(i, epoch) for i, epoch in ((14, 1), (0, 1), (6, 1), (1, 2), (4, 1), (0, 2), (12, 1), (5, 2))]
    batch = data.__getitems__(keys)
    for i, key in enumerate(keys):
        number = int(batch["id"][i])
        which = int(np.searchsorted(data.offsets, number, side="right")) - 1
        assert which == (key.index >= 5) + (key.index >= 11) and batch["weak"][i] == (which > 0)
        if which == 0:
            assert number == data.draw(key.epoch)[key.index]
        expected = sets[which][Key(number - int(data.offsets[which]), key.epoch)]
        found = {name: value[i] for name, value in batch.items() if name != "weak"}
        assert _equal_but_id(found, expected)
        alone = data[key]
        assert _equal_but_id({k: v for k, v in alone.items() if k != "weak"}, found) and alone["id"] == number


def _equal_but_id(a, b):
    return same({k: v for k, v in a.items() if k != "id"}, {k: v for k, v in b.items() if k != "id"})


def test_worker_processes_and_a_later_start_change_nothing(world):
    data = mixed(world, 0.5)
    whole = list(make_loader(data, 2, seed=1, num_steps=12))  # two epochs and a half
    for workers, start in ((2, 0), (0, 7), (1, 5)):
        again = list(make_loader(mixed(world, 0.5), 2, seed=1, workers=workers, start_step=start, num_steps=12 - start))
        assert len(again) == 12 - start and all(same(a, b) for a, b in zip(whole[start:], again, strict=True))


def test_processes_share_an_epoch(world):
    data = mixed(world, 1.0)
    whole = [k for step in StepSampler(len(data), 4, seed=1, num_steps=6) for k in step]
    ranks = [[k for step in StepSampler(len(data), 2, seed=1, num_steps=6, rank=r, world=2) for k in step] for r in (0, 1)]
    ids = [data.__getitems__(keys)["id"].tolist() for keys in (whole, *ranks)]
    assert sorted(ids[0]) == sorted(ids[1] + ids[2]) and set(ids[0][:12]) >= set(range(14, 20))


@pytest.mark.parametrize(
    "make_it, message",
    [
        (lambda w: mixed(w, -1), "-1 strong samples per weak one"),
        (lambda w: mixed(w, float("nan")), "nan strong samples"),
        (lambda w: MixedSamples(crops(w), crops(w)), "24 of 24 weak observations have a 3D pose.*without_3d"),
        (lambda w: MixedSamples(crops(w), CropSamples(without_3d(w[0]).to_skeleton("mpii16"), w[1], SPEC)), "h36m17 and mpii16 are mixed"),
        (lambda w: MixedSamples(crops(w), CropSamples(without_3d(w[0]), w[1], ImageSpec((64, 32)))), "expected one image spec"),
    ],
)
def test_sets_that_do_not_fit_are_refused(world, make_it, message):
    with pytest.raises(DataError, match=message):
        make_it(world)


# --- tables without 3D


def test_nothing_in_three_dimensions_is_left(world):
    ann, root = world
    bare = without_3d(ann).check("bare")
    assert len(bare.X_world) == len(bare.X_valid) == len(bare.cameras) == 0
    assert (bare.pose == -1).all() and (bare.camera == -1).all()
    for name in ("x_img", "conf", "visible", "box", "image", "person", "sequence", "frame", "view"):
        assert np.array_equal(getattr(bare, name), getattr(ann, name))
    batch = CropSamples(bare, root, SPEC).__getitems__([0, 5])
    for name in ("X_cam", "root_cam", "X_valid", "valid_depth", "has_depth"):
        assert not batch[name].any(), name
    assert not batch["x_patch"][..., 2].any() and (batch["valid"] == 1).all()
    plain = CropSamples(ann, root, SPEC).__getitems__([0, 5])
    assert torch.equal(batch["image"], plain["image"]) and torch.equal(batch["x_patch"][..., :2], plain["x_patch"][..., :2])


@pytest.mark.parametrize(
    "chosen, count", [({"subjects": ["S2"]}, 12), ({"views": [1, 3]}, 12), ({"subjects": ["S2"], "views": [1]}, 3), ({}, 24)]
)
def test_a_table_is_split_by_subjects_and_views(world, chosen, count):
    ann = world[0]
    strong, weak = strong_and_weak(ann, **chosen)
    assert len(strong) == count and len(weak) == 24 - count and len(weak.X_world) == 0
    strong.check("strong")
    if len(weak):
        weak.check("weak")
    both = concat([strong, weak])
    assert sorted(zip(*(getattr(both, c).tolist() for c in ("frame", "view")), strict=True)) == sorted(
        zip(*(getattr(ann, c).tolist() for c in ("frame", "view")), strict=True)
    )
    rows = [i for i in range(24) if _is_chosen(ann, i, **chosen)]
    assert np.array_equal(strong.X_world[strong.pose], ann.X_world[ann.pose[rows]])
    assert len(strong.X_world) == len(np.unique(ann.pose[rows]))  # no pose of the others alone
    with pytest.raises(DataError, match="no subjects .'S9'."):
        strong_and_weak(ann, subjects=["S9"])


def _is_chosen(ann, row, subjects=None, views=None):
    return (not subjects or ann.subject(row) in subjects) and (not views or int(ann.view[row]) in views)


# --- isotropic depth


def test_isotropic_depth_is_in_the_pixels_of_the_patch_at_the_root(world):
    """A step along the optical axis has as many px as the same step across it, of a pinhole camera."""
    ann, root = world
    data = CropSamples(ann, root, SPEC, WILD, depth_mm=None, seed=2)
    batch = data.__getitems__([Key(i, 4) for i in range(24)])
    assert (batch["has_depth"] == 1).all() and batch["flipped"].any() and not batch["flipped"].all()
    root_cam = batch["root_cam"].double()
    pinhole = Cameras.make(ann.cameras.K, torch.eye(3).double().expand(4, 3, 3), torch.zeros(4, 3).double())
    pinhole = pinhole[torch.from_numpy(ann.camera.astype(np.int64))]
    for axis in (0, 1):
        step = torch.zeros(24, 1, 3, dtype=torch.float64)
        step[..., axis] = 1
        across = pinhole.project_cam(root_cam[:, None] + step) - pinhole.project_cam(root_cam[:, None])  # at the same depth
        patch_from_img = batch["patch_from_img"][:, :, :2].double()
        area = torch.linalg.det(patch_from_img).abs().sqrt()
        torch.testing.assert_close(across.norm(dim=-1)[:, 0] * area, batch["depth_scale"].double(), rtol=1e-4, atol=0)
    flip = torch.tensor(skeletons.get(SKELETON).flip)
    z = (batch["X_cam"][..., 2] - batch["root_cam"][:, None, 2]) * batch["depth_scale"][:, None]
    z = torch.where(batch["flipped"][:, None], z[:, flip], z)
    torch.testing.assert_close(batch["x_patch"][..., 2], z, rtol=1e-4, atol=1e-3)


def test_isotropic_depth_equals_the_labels_of_weak_perspective(world):
    ann, root = world
    center, side = (ann.box[:, :2] + ann.box[:, 2:]) / 2, (ann.box[:, 2:] - ann.box[:, :2]).max(1, keepdims=True)
    ann = replace(ann, box=np.concatenate([center - side / 2, center + side / 2], 1))
    batch = CropSamples(ann, root, SPEC, depth_mm=None, box_scale=1.2).__getitems__(range(24))
    label = depth_labels(batch["X_cam"], ann.cameras.K[0, 0, 0].item(), 1.2 * torch.from_numpy(side[:, 0]), ROOT_JOINT)
    torch.testing.assert_close(batch["x_patch"][..., 2] / SPEC.size[0], label.float(), rtol=1e-3, atol=1e-4)


def test_isotropic_depth_takes_the_mean_focal_length(world):
    ann, root = world
    K = ann.cameras.K.clone()
    K[:, 1, 1] *= 3
    oblong = replace(ann, cameras=Cameras.make(K, ann.cameras.R, ann.cameras.t, size=ann.cameras.size))
    scale = [CropSamples(a, root, SPEC, depth_mm=None)[3]["depth_scale"] for a in (ann, oblong)]
    torch.testing.assert_close(scale[1], 2 * scale[0])


def test_isotropic_depth_without_camera_pose_or_root_is_harmless(world):
    ann, root = world
    ann = edited(edited(ann, "pose", 1, -1), "camera", 2, -1)
    ann = edited(ann, "X_valid", (ann.pose[4], ROOT_JOINT), False)
    behind = ann.X_world.copy()
    behind[ann.pose[8]] = ann.cameras.center[ann.camera[8]].numpy() * 2
    ann = replace(ann, X_world=behind)
    batch = CropSamples(ann, root, SPEC, depth_mm=None).__getitems__([0, 1, 2, 4, 8])
    assert batch["depth_scale"][1:].tolist() == [1, 1, 1, 1] and 0 < batch["depth_scale"][0] < 1
    assert batch["has_depth"].tolist() == [1, 0, 0, 0, 0] and batch["X_valid"][4].all()
    assert not batch["x_patch"][1:, :, 2].any() and not batch["valid_depth"][1:].any()
    bare = CropSamples(without_3d(ann), root, SPEC, depth_mm=None).__getitems__([0, 1])
    assert bare["depth_scale"].tolist() == [1, 1]
    with pytest.raises(DataError, match="depth range 0 mm"):
        CropSamples(ann, root, SPEC, depth_mm=0)


def test_views_have_isotropic_depth_too(world):
    ann, root = world
    views = ViewSamples(ann, root, SPEC, depth_mm=None).__getitems__([0, 3])
    single = CropSamples(ann, root, SPEC, depth_mm=None).__getitems__(views["row"].reshape(-1).tolist())
    torch.testing.assert_close(views["depth_scale"].reshape(-1), single["depth_scale"])
