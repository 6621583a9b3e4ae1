"""Clips of frames: what follows what, every row judged once, one augmentation per clip, masks, mixing with single pictures."""


import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import concat, without_3d
from lib.dataset.augment import NEUTRAL, Augment, Params
from lib.dataset.clips import ClipSamples, sequential, strands
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key, eval_loader, make_loader
from lib.dataset.mixed import MixedSamples
from lib.dataset.samples import CropSamples
from lib.errors import DataError
from tests.tiny_dataset import SKELETON, Fixed, edited, make, replace, write_images

SPEC = ImageSpec(size=(32, 24))
WILD = Augment(scale=0.25, rot_deg=30, rot_prob=1.0, color=0.2, flip_prob=0.5)
SKEL = skeletons.get(SKELETON)
FRAMES, VIEWS = 7, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two sequences of seven frames before two cameras, rows shuffled."""
    root = tmp_path_factory.mktemp("world")
    ann = make(sequences=2, frames=FRAMES, views=VIEWS)
    write_images(ann, root)
    return ann.select(np.random.default_rng(3).permutation(len(ann))), root


def runs(ann, **options):
    """The frames of each strand, with the sequence and view that they must all be of."""
    rows, starts = strands(ann, **options)
    assert sorted(rows) == list(range(len(ann)))
    out = []
    for a, b in zip(starts[:-1], starts[1:], strict=True):
        own = rows[a:b]
        assert len({(ann.sequence[r], ann.view[r], ann.person[r]) for r in own}) == 1
        out.append(ann.frame[own].tolist())
    return out


# --- what follows what


def test_strands_are_tracks_in_time(world):
    assert runs(world[0]) == [list(range(FRAMES))] * 4


def test_a_stride_keeps_every_row(world):
    assert runs(world[0], stride=3) == [[0, 3, 6], [1, 4], [2, 5]] * 4


def test_a_gap_cuts_a_track(world):
    ann = world[0]
    left = ann.select(~((ann.sequence == 0) & (ann.view == 1) & (ann.frame == 2)))
    assert runs(left) == [list(range(7)), [0, 1], [3, 4, 5, 6], list(range(7)), list(range(7))]
    assert runs(left, gap=2)[1] == [0, 1, 3, 4, 5, 6]
    thin = ann.select(ann.frame % 3 == 0)  # 0, 3, 6: their usual distance is no gap
    assert runs(thin) == [[0, 3, 6]] * 4


def test_people_are_not_mixed():
    ann = make(sequences=1, frames=3, people=2, views=1)
    assert runs(ann) == [[0, 1, 2]] * 2
    with pytest.raises(DataError, match="person 0 is twice in frame 0"):
        strands(replace(ann, person=np.zeros_like(ann.person)))


def test_pictures_without_cameras_are_stills(world):
    ann = without_3d(world[0])
    assert all(len(run) == 1 for run in runs(ann))
    assert runs(ann, stills=False) == [list(range(FRAMES))] * 4
    assert all(len(run) == 1 for run in runs(world[0], stills=True))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_row_is_judged_once(world, length, stride):
    """Also the last, incomplete ones, which the published evaluation drops."""
    ann = world[0]
    clips = sequential(*strands(ann, stride), length)
    assert sorted(clips.rows[clips.judged]) == list(range(len(ann)))
    assert not (clips.judged & ~clips.mask).any() and clips.mask[:, 0].all()
    for rows, mask in zip(clips.rows, clips.mask, strict=True):
        there = rows[mask]
        assert (np.diff(ann.frame[there]) == stride).all() and len(set(ann.sequence[there])) == len(set(ann.view[there])) == 1
        assert (rows[~mask] == there[-1]).all()
        assert mask.all() or len(there) < length  # only a strand shorter than a clip leaves places empty
    overlap = sequential(np.arange(7), np.array([0, 7]), 5)
    assert overlap.rows.tolist() == [[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]
    assert overlap.judged.tolist() == [[True] * 5, [False, False, False, True, True]]


# --- samples


def test_frames_of_a_clip_are_those_of_crop_samples(world):
    ann, root = world
    data, crops = ClipSamples(ann, root, SPEC, length=5), CropSamples(ann, root, SPEC)
    batch = data.__getitems__([0, 1, 5])
    assert len(data) == 4 * 2 and batch["id"].tolist() == [0, 1, 5]
    for name in ("image", "x_patch", "patch_from_img", "X_cam", "root_cam", "x_img", "conf", "depth_scale", "valid_depth"):
        expected = torch.stack([torch.stack([crops[int(row)][name] for row in rows]) for rows in batch["row"]])
        torch.testing.assert_close(batch[name], expected)
    assert batch["camera"].shape == (3, 5)
    torch.testing.assert_close(batch["camera"][1, 2].t, crops[int(batch["row"][1, 2])]["camera"].t)
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (3, 5, 3, 24, 32) and batch["image"].is_contiguous()


def test_nothing_is_valid_behind_the_end(world):
    ann, root = world
    data = ClipSamples(ann, root, SPEC, length=9)
    batch = data.__getitems__([0, 2])
    assert batch["mask"].tolist() == [[True] * 7 + [False] * 2] * 2 and batch["judged"].equal(batch["mask"])
    for name in ("valid", "valid_depth", "conf", "X_valid", "X_rel_valid"):
        assert batch[name][:, :7].bool().all() and not batch[name][:, 7:].any(), name
    assert not batch["has_depth"][:, 7:].any()
    assert batch["image"][:, 7].equal(batch["image"][:, 6]) and batch["image"].any()


@pytest.mark.parametrize("params", [NEUTRAL, Params(rot_deg=25), Params(flip=True), Params(0.9, -35, True)])
def test_relative_poses_turn_with_the_picture(world, params):
    """x and y of X_rel move as the linear part of patch_from_img moves image points; depth stays; sides swap with the mirror."""
    ann, root = world
    spec = ImageSpec(size=(48, 48))
    square = replace(ann, box=np.tile(np.array([40, 20, 120, 100], np.float32), (len(ann), 1)))
    sample = ClipSamples(square, root, spec, length=3, augment=Fixed(params=params))[1]
    X = sample["X_cam"] - sample["root_cam"][:, None]
    A = sample["patch_from_img"][..., :2]
    A = A / torch.linalg.det(A).abs().sqrt()[:, None, None]
    expected = torch.cat([torch.einsum("tij,tkj->tki", A, X[..., :2]), X[..., 2:]], -1)
    expected = expected[:, torch.from_numpy(SKEL.flip)] if params.flip else expected
    torch.testing.assert_close(sample["X_rel"], expected, atol=1e-2, rtol=0)
    assert (sample["X_rel"][:, SKEL.root_index] == 0).all()
    # The projection of the pose and the labelled patch points agree in sign: no axis is mirrored twice.
    offset = sample["x_patch"][..., :2] - sample["x_patch"][:, SKEL.root_index, None, :2]
    assert (offset * sample["X_rel"][..., :2]).sum() > 0.8 * offset.norm() * sample["X_rel"][..., :2].norm()


def test_a_frame_without_root_has_no_relative_pose(world):
    ann, root = world
    knee = SKEL.index("l_knee")
    data = ClipSamples(ann, root, SPEC, length=3, augment=Fixed(params=Params(flip=True)))
    first, second = data.clips.rows[0, :2]
    broken = edited(edited(ann, "X_valid", (ann.pose[first], SKEL.root_index), False), "X_valid", (ann.pose[second], knee), False)
    sample = ClipSamples(broken, root, SPEC, length=3, augment=Fixed(params=Params(flip=True)))[0]
    assert not sample["X_rel_valid"][0].any() and (sample["X_rel"][0] == 0).all()
    assert sample["X_rel_valid"][1].sum() == SKEL.num - 1 and not sample["X_rel_valid"][1, SKEL.index("r_knee")]


def test_one_augmentation_for_all_frames_of_a_clip(world):
    ann, root = world
    data = ClipSamples(ann, root, SPEC, length=4, random_start=True, augment=WILD, seed=5)
    batch = data.__getitems__([Key(i, 1) for i in range(6)])
    scale = batch["depth_scale"]
    assert scale.equal(scale[:, :1].expand_as(scale)) and len(set(scale[:, 0].tolist())) > 3
    assert batch["flipped"].equal(batch["flipped"][:, :1].expand(6, 4)) and batch["flipped"][:, 0].any() and not batch["flipped"].all()


def test_random_starts_are_uniform_and_a_function_of_the_key(world):
    ann, root = world
    data = ClipSamples(ann, root, SPEC, length=5, random_start=True, augment=WILD, seed=1)
    a, b = (data.__getitems__([Key(3, 2), Key(0, 2)]) for _ in range(2))
    assert a["row"].equal(b["row"]) and a["image"].equal(b["image"])
    other = data.__getitems__([Key(3, 3)])
    assert not other["row"].equal(a["row"][:1]) or not other["image"].equal(a["image"][:1])
    keys = [Key(i, epoch) for epoch in range(300) for i in range(len(data))]
    drawn = data._choose(keys, [data._rng(key) for key in keys])
    assert drawn.mask.all() and drawn.judged.all()
    first = np.bincount(drawn.rows[:, 0], minlength=len(ann))
    begin = ann.frame <= FRAMES - 5  # three places in each of the four tracks
    assert (first[~begin] == 0).all() and np.abs(first[begin] / first.sum() - 1 / 12).max() < 0.03
    assert (np.diff(ann.frame[drawn.rows], axis=1) == 1).all()  # never into another sequence, as lines of a list would run


def test_the_augmentation_does_not_move_the_start(world):
    ann, root = world
    plain, wild = (ClipSamples(ann, root, SPEC, random_start=True, augment=a, seed=1) for a in (None, WILD))
    assert plain[Key(2, 4)]["row"].equal(wild[Key(2, 4)]["row"])


# --- loading and mixing


def test_loaders_take_clips(world):
    ann, root = world
    data = ClipSamples(ann, root, SPEC, length=5, random_start=True, augment=WILD)
    a = [batch["row"] for batch in make_loader(data, 3, seed=1, num_steps=4)]
    b = [batch["row"] for batch in make_loader(data, 3, seed=1, start_step=2, num_steps=2)]
    assert torch.stack(a[2:]).equal(torch.stack(b))
    loaders = [eval_loader(ClipSamples(ann, root, SPEC), 3, rank=rank, world=2) for rank in range(2)]
    rows = [batch["row"][batch["judged"]] for loader in loaders for batch in loader]
    assert sorted(torch.cat(rows).tolist()) == list(range(len(ann)))


def test_clips_and_stills_in_one_batch(world):
    """One clip to three pictures, as the published training mixes them; the pictures are clips of one frame, apart from all others."""
    ann, root = world
    clips = ClipSamples(ann, root, SPEC, length=5, random_start=True, augment=WILD)
    stills = ClipSamples(without_3d(ann), root, SPEC, length=5, augment=WILD)
    assert len(stills) == len(ann)
    data = MixedSamples(clips, stills, ratio=1 / 3)
    assert len(data) == 28 + 9  # one of the eight clips comes twice
    batch = data.__getitems__([Key(i, 0) for i in (0, 20, 3, 30)])
    assert batch["weak"].tolist() == [False, True, False, True] and batch["image"].shape == (4, 5, 3, 24, 32)
    assert batch["mask"].sum(1).tolist() == [5, 1, 5, 1]
    assert batch["X_rel_valid"].flatten(1).any(1).tolist() == [True, False, True, False]
    assert batch["valid"].flatten(1).any(1).all()
    with pytest.raises(DataError, match="clips of 5 frames and single frames"):
        MixedSamples(clips, CropSamples(without_3d(ann), root, SPEC))
    with pytest.raises(DataError, match="clips of 5 frames and clips of 1 frames"):
        MixedSamples(clips, ClipSamples(without_3d(ann), root, SPEC, length=1))


def test_impossible_numbers_are_refused(world):
    ann, root = world
    with pytest.raises(DataError, match="0 frames"):
        ClipSamples(ann, root, SPEC, length=0)
    with pytest.raises(DataError, match="stride 0"):
        ClipSamples(ann, root, SPEC, stride=0)
    with pytest.raises(DataError, match="empty"):
        ClipSamples(ann.select([]), root, SPEC)
    two = concat([ann, ann])
    assert len(ClipSamples(two, root, SPEC)) == 2 * len(ClipSamples(ann, root, SPEC))
