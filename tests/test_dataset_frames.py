"""Whole frames of several views and people: slots, images, augmentation, what is missing."""

import logging

import cv2
import numpy as np
import pytest
import torch

from lib.dataset import frames
from lib.dataset.annotations import unmatched
from lib.dataset.augment import FrameAugment
from lib.dataset.color_ops import COLOR_OPS, CUT_COLOR, color_op, cut_patches
from lib.dataset.frames import FrameSamples
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key, eval_loader, make_loader
from lib.errors import DataError
from lib.geometry.crop import transform_points
from lib.skeleton import get
from tests import tiny_dataset as tiny
from tests.conftest import golden

SPEC = ImageSpec((96, 64))
STRONG = FrameAugment(rot_deg=45, rot_prob=1, scale=0.35, flip_prob=0.5)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two sequences of three instants, four views, three people, with images."""
    root = tmp_path_factory.mktemp("frames")
    ann = tiny.make(people=3)
    tiny.write_images(ann, root)
    return ann, root


def keypoints_only(ann):
    return tiny.replace(ann, image=np.full_like(ann.image, -1))


def detected(ann):
    """What a detector reports, in an order that means nothing."""
    return unmatched(ann).select(np.random.default_rng(3).permutation(len(ann)))


# --- one frame


def test_people_have_one_slot_in_all_views_and_in_the_world(scene):
    ann, root = scene
    data = FrameSamples(ann, root, SPEC, max_people=5)
    batch = data.__getitems__([0, 4])
    assert batch["x_img"].shape == (2, 4, 5, 17, 2) and batch["X_world"].shape == (2, 5, 17, 3)
    assert batch["n_people"].tolist() == [3, 3]
    assert batch["X_valid"][:, :3].all() and not batch["X_valid"][:, 3:].any()
    assert (batch["conf"][:, :, :3] == 1).all() and (batch["conf"][:, :, 3:] == 0).all()
    X = batch["X_world"][:, None, :3].double().flatten(2, 3)
    x = batch["camera"].project(X)[0].unflatten(2, (3, 17))
    torch.testing.assert_close(x.float(), batch["x_img"][:, :, :3], atol=0.01, rtol=0)
    assert data.instants[batch["id"]].tolist() == [[0, 0], [1, 1]]


def test_the_order_of_rows_does_not_matter(scene):
    ann, root = scene
    a = FrameSamples(ann, root, SPEC).__getitems__([1, 2])
    b = FrameSamples(ann.select(np.random.default_rng(0).permutation(len(ann))), root, SPEC).__getitems__([1, 2])
    for name in ("image", "x_img", "conf", "X_world", "patch_from_img"):
        assert torch.equal(a[name], b[name]), name


def test_views_are_chosen_and_ordered_and_absent_people_still_count(scene):
    ann, root = scene
    whole = FrameSamples(ann, root, SPEC).__getitems__([0])
    data = FrameSamples(ann, root, SPEC, views=[2, 0])
    batch = data.__getitems__([0])
    assert torch.equal(batch["image"], whole["image"][:, [2, 0]])
    # Person 1 is hidden from the chosen views, but is there.
    some = ann.select(~((ann.person == 1) & np.isin(ann.view, [0, 2])))
    batch = FrameSamples(some, root, SPEC, views=[2, 0]).__getitems__([0])
    assert batch["n_people"].item() == 3 and (batch["conf"][0, :, 1] == 0).all() and batch["X_valid"][0, 1].all()
    torch.testing.assert_close(batch["X_world"], whole["X_world"])


def test_people_nobody_matched_are_packed_view_by_view(scene):
    ann, root = scene
    conf = ann.conf.copy()
    conf[(ann.view == 1) & (ann.person == 0)] = 0  # not found there
    conf[(ann.view == 2)] *= (0.2 + 0.3 * ann.person[ann.view == 2])[:, None].astype(np.float32)
    loose = detected(tiny.replace(ann, conf=conf))
    batch = FrameSamples(loose, root, SPEC, max_people=4).__getitems__([0])
    found = (batch["conf"] > 0).any(-1)
    assert found[0].tolist() == [[True] * 3 + [False]] + [[True] * 2 + [False] * 2] + [[True] * 3 + [False]] * 2
    assert batch["conf"][0, 2, :3, 0].tolist() == pytest.approx([0.8, 0.5, 0.2])  # the surest first
    assert batch["n_people"].item() == 0 and not batch["X_valid"].any()


def test_too_many_detections_lose_the_least_sure_and_too_many_poses_are_refused(scene, caplog):
    ann, root = scene
    conf = ann.conf * (0.3 + 0.2 * ann.person[:, None]).astype(np.float32)
    with caplog.at_level(logging.WARNING, "parallax"):
        batch = FrameSamples(detected(tiny.replace(ann, conf=conf)), root, SPEC, max_people=2).__getitems__([0])
    assert "max_people" in caplog.text
    assert batch["conf"][0, :, :, 0].flatten().tolist() == pytest.approx([0.7, 0.5] * 4)
    with pytest.raises(DataError, match="raise max_people"):
        FrameSamples(ann, root, SPEC, max_people=2)


# --- images


def dot(image, channel):
    """The centre of a coloured dot.   (3,H,W) uint8 -> (2,)"""
    weight = (image[channel].float() - 90).clamp(min=0)
    ys, xs = torch.meshgrid(torch.arange(image.shape[1]), torch.arange(image.shape[2]), indexing="ij")
    return torch.stack([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("augment", [None, STRONG])
def test_images_follow_the_affine(tmp_path, augment):
    ann = tiny.make(sequences=1, frames=2, people=1)
    # All joints near the middle, so that nothing leaves the picture.
    X = (ann.X_world - [0, 0, 900]) * 0.6 + [0, 0, 900]
    x = np.stack([tiny.rig().project(torch.from_numpy(p))[0].numpy() for p in X])[ann.pose, ann.view]
    ann = tiny.replace(ann, X_world=X.astype(np.float32), x_img=x.astype(np.float32))
    tiny.write_images(ann, tmp_path)
    batch = FrameSamples(ann, tmp_path, ImageSpec((192, 128)), augment=augment).__getitems__([Key(i % 2, i) for i in range(5)])
    wrist = get(ann.skeleton).index("r_wrist")
    expected = transform_points(batch["patch_from_img"], batch["x_img"][:, :, 0, wrist, None])[:, :, 0]
    found = torch.stack([torch.stack([dot(view, 0) for view in views]) for views in batch["image"]])
    assert (found - expected).abs().max() < 1.0
    if augment is not None:
        assert batch["flipped"].any() and not batch["flipped"].all()
    flips = torch.linalg.det(batch["patch_from_img"][..., :2]) < 0
    assert torch.equal(flips, batch["flipped"][:, None].expand(flips.shape))


def test_the_whole_image_is_letterboxed_as_published():
    g = {k.split("/")[1]: v for k, v in golden("selfpose3d", "geometry").items() if k.startswith("affine/")}
    for row, trans in zip(g["cases"], g["trans"], strict=True):
        if row[4] or row[5]:
            continue
        ann = tiny.make(sequences=1, frames=1)
        cameras = ann.cameras
        cameras.size[:] = torch.tensor(row[:2])
        data = FrameSamples(keypoints_only(ann), "", ImageSpec(tuple(int(v) for v in row[2:4])))
        affine = data.__getitems__([0])["patch_from_img"]
        torch.testing.assert_close(affine, torch.from_numpy(trans).float().expand(1, 4, 2, 3), atol=1e-4, rtol=0)


def test_views_may_differ_in_size_and_an_unknown_size_is_looked_up(scene, tmp_path):
    ann, root = scene
    for name in ann.images:
        image = cv2.imread(str(root / name.decode()))
        big = cv2.resize(image, (320, 240)) if b"v1" in name else image
        cv2.imwrite(str(tmp_path / name.decode()), big)
    size = torch.tensor([[160.0, 120], [320, 240], [160, 120], [160, 120]], dtype=torch.float64)
    sized, unsized = tiny.make(people=3), tiny.make(people=3)
    sized.cameras.size[:], unsized.cameras.size[:] = size, 0
    a, b = (FrameSamples(x, tmp_path, SPEC).__getitems__([0, 3]) for x in (sized, unsized))
    assert torch.equal(a["image"], b["image"]) and torch.equal(a["patch_from_img"], b["patch_from_img"])
    zoom = a["patch_from_img"][0, :, 0, 0]
    torch.testing.assert_close(zoom * 2, zoom[[1, 0, 1, 1]] * torch.tensor([4.0, 1, 4, 4]))
    with pytest.raises(DataError, match="320 x 240.*calibrated for 160 x 120"):
        FrameSamples(tiny.make(people=3), tmp_path, SPEC).__getitems__([0])
    with pytest.raises(DataError, match="no image size"):
        FrameSamples(keypoints_only(unsized), "", SPEC)


def test_a_missing_image_is_named(scene, tmp_path):
    ann, _ = scene
    with pytest.raises(DataError, match=r"s0_f0_v0\.png.*DATASET\.ROOT"):
        FrameSamples(ann, tmp_path, SPEC)[0]


# --- what is missing


def test_an_instant_without_a_view_is_left_out_or_masked(scene, caplog):
    ann, root = scene
    some = ann.select(~((ann.frame == 1) & (ann.sequence == 0) & (ann.view == 2)))
    with caplog.at_level(logging.INFO, "parallax"):
        assert len(FrameSamples(some, root, SPEC)) == 5
    assert "left out 1 of 6 instants" in caplog.text
    data = FrameSamples(some, root, SPEC, allow_missing=True)
    assert len(data) == 6
    batch = data.__getitems__([0, 1])
    assert batch["view_there"].tolist() == [[True] * 4, [True, True, False, True]]
    assert not batch["image"][1, 2].any() and not batch["conf"][1, 2].any()
    assert batch["n_people"].tolist() == [3, 3]
    shown = transform_points(batch["patch_from_img"][1, 2], torch.tensor([[0.0, 0], [4000, 4000]]))
    assert (shown < -1000).all()  # a voxel cannot see it, wherever the camera's stand-in is
    everywhere = 5000 * torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    assert not batch["camera"][1, 2].in_view(everywhere).any() and batch["camera"][0, 2].in_view(everywhere).any()
    assert data.left_out == 0 and FrameSamples(some, root, SPEC).left_out == 1
    rest = ann.select(np.where(ann.view == 2, ann.sequence == 0, ann.sequence == 1))
    with pytest.raises(DataError, match=r"none of 6 instants.*0: 3, 1: 3, 2: 3, 3: 3"):
        FrameSamples(rest, root, SPEC)


def test_a_row_without_confidence_brings_image_and_camera(scene):
    ann, root = scene
    first = (ann.sequence == 0) & (ann.frame == 0) & (ann.view == 3)
    conf, pose = ann.conf.copy(), ann.pose.copy()
    conf[first], pose[first] = 0, -1
    batch = FrameSamples(tiny.replace(ann, conf=conf, pose=pose), root, SPEC).__getitems__([0])
    assert batch["view_there"].all() and batch["image"][0, 3].any()
    assert not batch["conf"][0, 3].any() and batch["n_people"].item() == 3


def test_keypoints_alone_need_no_images_and_nobody_in_sight_is_not_missing(scene):
    ann, root = scene
    some = keypoints_only(ann.select(~((ann.frame == 1) & (ann.view == 2))))
    batch = FrameSamples(some, "nowhere", SPEC).__getitems__([0, 1])
    assert "image" not in batch and batch["view_there"].all()
    assert batch["conf"][0, 2].any() and not batch["conf"][1, 2].any()
    torch.testing.assert_close(batch["camera"].K[1, 2], ann.cameras.K[2].float())
    unread = FrameSamples(ann, "nowhere", SPEC, images=False).__getitems__([0])
    assert "image" not in unread and unread["conf"].any()


def test_contradictions_are_refused(scene):
    ann, root = scene
    with pytest.raises(DataError, match=r"pose 0 appears twice.*view 0"):
        FrameSamples(tiny.edited(ann, "pose", 4, 0).select(ann.view == 0), root, SPEC)
    with pytest.raises(DataError, match="two images"):
        FrameSamples(tiny.edited(ann, "image", 0, 5), root, SPEC)
    with pytest.raises(DataError, match="two cameras"):
        FrameSamples(tiny.edited(ann, "camera", 0, 1), root, SPEC)
    with pytest.raises(DataError, match="no camera"):
        FrameSamples(tiny.edited(ann, "camera", 0, -1), root, SPEC)
    with pytest.raises(DataError, match=r"views \[0, 7\]"):
        FrameSamples(ann, root, SPEC, views=[0, 7])
    with pytest.raises(DataError, match="empty"):
        FrameSamples(ann.select(np.zeros(0, int)), root, SPEC)
    with pytest.raises(DataError, match="2 augmentations for n_augment 3"):
        FrameSamples(ann, root, SPEC, augment=[STRONG, STRONG], n_augment=3)


# --- augmentation


def test_a_sample_is_a_function_of_its_key(scene):
    ann, root = scene
    augment = FrameAugment(rot_deg=45, scale=0.35, flip_prob=0.5, color_ops=2, cuts=(2, 5), cut_px=(4, 9))
    data = FrameSamples(ann, root, SPEC, augment=augment, n_augment=2, keep_people=1, seed=5)
    together = data.__getitems__([Key(2, 1), Key(4, 1)])
    alone = data[Key(4, 1)]
    for name in ("image", "patch_from_img", "flipped", "x_img", "id"):
        assert torch.equal(together[name][1], alone[name]), name
    assert not torch.equal(data[Key(4, 2)]["patch_from_img"], alone["patch_from_img"])
    here, there = (next(iter(make_loader(data, 2, seed=1, workers=workers))) for workers in (0, 1))
    assert torch.equal(here["image"], there["image"])
    assert sum(len(b["id"]) for b in eval_loader(FrameSamples(ann, root, SPEC), 4)) == 6


def test_augmented_frames_come_first_and_the_plain_one_last(scene):
    ann, root = scene
    calm = FrameAugment(rot_deg=5, rot_prob=1)
    data = FrameSamples(ann, root, SPEC, augment=[STRONG, calm], n_augment=2)
    plain = FrameSamples(ann, root, SPEC).__getitems__([3])
    batch = data.__getitems__([3])
    assert batch["image"].shape == (1, 3, 4, 3, 64, 96) and batch["patch_from_img"].shape == (1, 3, 4, 2, 3)
    for name in ("image", "patch_from_img", "flipped"):
        assert torch.equal(batch[name][:, 2], plain[name]), name
    linear = batch["patch_from_img"][0, :, :, :, :2]
    assert (linear == linear[:, :1]).all()  # one draw for all views of equal size
    turn = torch.rad2deg(torch.atan2(linear[:, 0, 0, 1], linear[:, 0, 0, 0])).abs()
    assert 0 < turn[1] <= 5 and turn[2] == 0
    torch.testing.assert_close(torch.linalg.det(linear[1:, 0]), torch.linalg.det(linear[2:, 0]).expand(2))  # calm does not zoom


def test_draws_have_the_published_ranges():
    rng = np.random.default_rng(0)
    augment = FrameAugment(rot_deg=45, scale=0.35)
    drawn = [augment.draw(rng, 2) for _ in range(2000)]
    scale, turn = (np.array([getattr(p, k) for p in drawn]) for k in ("scale", "rot_deg"))
    out = scale > 1
    assert abs(out.mean() - 0.5) < 0.05 and abs((turn == 0).mean() - 0.5) < 0.05
    assert 1.1 <= scale[out].min() < 1.11 and 1.34 < scale[out].max() <= 1.35
    assert 0.825 <= scale[~out].min() < 0.83 and 0.945 < scale[~out].max() <= 0.95
    assert 44 < abs(turn).max() <= 45
    still = [FrameAugment().draw(rng, 1) for _ in range(9)]
    assert all((p.scale, p.rot_deg, p.flip) == (1, 0, False) for p in still)


def test_frames_whose_people_leave_the_picture_are_drawn_again_from_all(scene, caplog):
    ann, root = scene
    x = np.broadcast_to(np.array([80.0, 60]), ann.x_img.shape).astype(np.float32).copy()
    first = ann.sequence == 0  # there people stand in two corners: every turn loses one of them
    x[first] = np.array([[0, 0], [159, 0], [80, 60]])[ann.person[first], None]
    ann = keypoints_only(tiny.replace(ann, x_img=x))
    augment = FrameAugment(rot_deg=45, rot_prob=1)
    data = FrameSamples(ann, "", SPEC, augment=augment, n_augment=2, keep_people=1)
    ids = np.concatenate([data.__getitems__([Key(i, e) for i in range(6)])["id"].numpy() for e in range(20)])
    assert set(ids) == {3, 4, 5}  # the second sequence, all of it
    assert (ids.reshape(20, 6)[:, 3:] == [3, 4, 5]).all()  # kept where nothing is lost
    assert set(FrameSamples(ann, "", SPEC, augment=augment, n_augment=2).__getitems__(range(6))["id"].tolist()) == set(range(6))
    lost = FrameSamples(ann.select(ann.sequence == 0), "", SPEC, augment=augment, n_augment=1, keep_people=1)
    with caplog.at_level(logging.WARNING, "parallax"):
        batch = lost.__getitems__([1])
    assert "keeps its people" in caplog.text and batch["id"].item() == 1
    assert torch.equal(batch["patch_from_img"][:, 0], batch["patch_from_img"][:, 1])  # taken as it is


def test_people_whose_root_is_unknown_are_missed_as_well(scene):
    """The rule compares roots in sight with the people of a view, not with their roots."""
    ann, root = scene
    conf, x = ann.conf.copy(), np.broadcast_to(np.array([80.0, 60]), ann.x_img.shape).astype(np.float32)
    hidden = (ann.sequence == 0) & (ann.person == 0)
    conf[hidden, get(ann.skeleton).root_index] = 0
    table = keypoints_only(tiny.replace(ann, conf=conf, x_img=x))
    data = FrameSamples(table, "", SPEC, augment=FrameAugment(), keep_people=1)
    assert set(data.__getitems__([0, 1, 2])["id"].tolist()) <= {3, 4, 5}
    conf[hidden] = 0  # nobody at all: the others are everybody
    data = FrameSamples(keypoints_only(tiny.replace(ann, conf=conf, x_img=x)), "", SPEC, augment=FrameAugment(), keep_people=1)
    assert data.__getitems__([0, 1, 2])["id"].tolist() == [0, 1, 2]


def test_a_frame_that_one_view_sees_nobody_in_is_drawn_again(scene):
    ann, root = scene
    conf = ann.conf.copy()
    conf[(ann.sequence == 0) & (ann.view == 1)] = 0
    x = np.broadcast_to(np.array([80.0, 60]), ann.x_img.shape).astype(np.float32)
    data = FrameSamples(
        detected(keypoints_only(tiny.replace(ann, conf=conf, x_img=x))), "", SPEC, augment=STRONG, keep_people=2, roots=[1, 4]
    )
    assert set(data.__getitems__([0, 1, 2])["id"].tolist()) <= {3, 4, 5}


# --- colours


@pytest.fixture(scope="module")
def recorded():
    return {k.split("/")[1]: v for k, v in golden("selfpose3d", "datasets").items() if k.startswith("randaugment_ops/")}


@pytest.mark.parametrize("op", COLOR_OPS)
def test_colour_operations_equal_the_recorded_ones(recorded, op):
    for level in (1, 5, 9):
        for letter, sign in (("p", 1), ("m", -1)):
            before = recorded["image"].copy()
            out = color_op(before, op, level, sign)
            np.testing.assert_array_equal(out, recorded[f"{op}_{level}_{letter}"])
            np.testing.assert_array_equal(before, recorded["image"])


def test_flat_and_tiny_images_survive_every_operation():
    for image in (np.full((5, 7, 3), 77, np.uint8), np.zeros((1, 2, 3), np.uint8)):
        for op in COLOR_OPS:
            assert color_op(image, op, 9, -1).shape == image.shape
    with pytest.raises(DataError, match="Solarize"):
        color_op(image, "Solarize", 1)


def test_cut_patches_lie_everywhere_and_have_the_asked_size():
    rng = np.random.default_rng(0)
    hit = np.zeros((64, 96))
    for _ in range(1500):
        image = cut_patches(np.zeros((64, 96, 3), np.uint8), rng, (1, 2), (10, 12))
        cut = (image == CUT_COLOR).all(-1)
        assert (cut == image.any(-1)).all()
        rows, columns = cut.any(1).sum(), cut.any(0).sum()
        assert cut.sum() == rows * columns and 1 <= max(rows, columns) <= 12
        hit += cut
    assert (hit > 0).all()  # borders included
    counts = [int(cv2.connectedComponents((cut_patches(np.zeros((900, 900, 3), np.uint8), rng) > 0).any(-1).astype(np.uint8))[0]) - 1
              for _ in range(40)]  # fmt: skip
    assert 1 <= min(counts) and 10 <= max(counts) <= 15


def test_colours_and_cuts_differ_between_views(scene):
    ann, root = scene
    same = ann.images.copy()
    same[:] = same[0]
    data = FrameSamples(tiny.replace(ann, images=same), root, SPEC, augment=FrameAugment(cuts=(8, 9), cut_px=(6, 10)))
    image = data.__getitems__([Key(0, e) for e in range(3)])["image"]
    assert len({view.numpy().tobytes() for views in image for view in views}) == 12
    assert frames.TRIES > 10
