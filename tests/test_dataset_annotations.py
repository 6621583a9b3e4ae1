"""The annotation table: selections, groups, protocols, conversions, and one clear error per kind of damage."""

import numpy as np
import pytest

from lib import dataset
from lib import skeleton as skeletons
from lib.dataset.annotations import attach_detections, concat, with_poses
from lib.errors import ConfigError, DataError
from tests.tiny_dataset import edited, make, replace


def test_select_by_rows_and_by_mask_keeps_the_tables():
    ann = make()
    rows = np.array([5, 2, 9])
    by_rows = ann.select(rows)
    assert len(by_rows) == 3 and by_rows.frame.tolist() == ann.frame[rows].tolist()
    assert len(by_rows.X_world) == len(ann.X_world)
    np.testing.assert_array_equal(by_rows.X_world[by_rows.pose], ann.X_world[ann.pose[rows]])
    assert ann.select(ann.view == 2).view.tolist() == [2] * 6
    assert by_rows.image_path(0) == "s0_f1_v1.png" and by_rows.subject(2) == "S1" and ann.action(-1) == "Sitting"
    with pytest.raises(DataError, match="mask has shape"):
        ann.select(np.ones(3, dtype=bool))


def test_groups_hold_all_views_of_an_instant_in_order():
    ann = make(sequences=2, frames=3, people=2)
    shuffled = ann.select(np.random.default_rng(0).permutation(len(ann)))
    rows, starts = shuffled.group("sequence", "frame", "person")
    assert len(starts) == 2 * 3 * 2 + 1 and starts[-1] == len(ann)
    views = shuffled.view[rows].reshape(-1, 4)
    assert (views == [0, 1, 2, 3]).all()
    keys = np.stack([shuffled.sequence, shuffled.frame, shuffled.person], 1)[rows[starts[:-1]]]
    assert keys.tolist() == sorted(keys.tolist())
    rows, starts = ann.group("view")  # a track: ordered by frame within the view
    assert np.diff(starts).tolist() == [12] * 4
    with pytest.raises(DataError, match="columns"):
        ann.group("colour")


def test_protocol_selects_subjects_views_and_every_nth_frame_from_the_first():
    ann = make(sequences=2, frames=5)
    ann = replace(ann, frame=ann.frame * 2 + 7)  # numbered 7, 9, 11, 13, 15
    part = ann.protocol(subjects=["S2"], step=4, views=[1, 3])
    assert part.subject(0) == "S2" and set(part.sequence) == {1}
    assert sorted(set(part.frame)) == [7, 11, 15] and sorted(set(part.view)) == [1, 3]
    assert ann.protocol() is ann
    for wrong, message in (
        ({"subjects": ["S9"]}, "S9.*S1.*S2"),
        ({"views": [7]}, "views \\[7\\]"),
        ({"step": 0}, "step is 0"),
    ):
        with pytest.raises(DataError, match=message):
            ann.protocol(**wrong)


def test_concat_keeps_every_row_pointing_at_its_own_tables():
    a, b = make(sequences=1, seed=1), make(sequences=2, seed=2)
    both = concat([a, b]).check("both")
    assert len(both) == len(a) + len(b) and both.fps == 50.0
    last = len(a) + 5
    assert both.subject(last) == b.subject(5) and both.image_path(last) == b.image_path(5)
    np.testing.assert_array_equal(both.X_world[both.pose[last]], b.X_world[b.pose[5]])
    assert both.camera[last] == len(a.cameras) + b.camera[5]
    with pytest.raises(DataError, match="mpii16"):
        concat([a, b.to_skeleton("mpii16")])
    with pytest.raises(DataError, match="no annotation table"):
        concat([])


def test_to_skeleton_goes_by_name_and_masks_what_has_no_source():
    ann = edited(make(), "X_valid", (0, 16), False)
    ann = edited(edited(ann, "X_world", (0, 16), np.nan), "conf", (3, 16), 0)
    out = ann.to_skeleton("mpii16").check("converted")
    old, new = skeletons.get("h36m17"), skeletons.get("mpii16")
    for joint in ("l_ankle", "r_elbow", "pelvis"):
        np.testing.assert_array_equal(out.x_img[:, new.index(joint)], ann.x_img[:, old.index(joint)])
    wrist = new.index("r_wrist")
    assert not out.X_valid[0, wrist] and (out.X_world[0, wrist] == 0).all() and out.X_valid[1, wrist]
    assert out.conf[3, wrist] == 0 and out.conf[4, wrist] == 1 and not out.visible[3, wrist]
    coco = ann.to_skeleton("coco17").check("coco")  # eyes have no source at all
    coco_joints = skeletons.get("coco17")
    eye, hips = coco_joints.index("l_eye"), coco_joints.indices(["l_hip", "r_hip"])
    assert not coco.X_valid[:, eye].any() and not coco.conf[:, eye].any() and (coco.x_img[:, eye] == 0).all()
    # COCO has no pelvis: it becomes the middle of the hips, where both are known
    back = edited(edited(coco, "conf", (6, hips[0]), 0.5), "conf", (7, hips[1]), 0).to_skeleton("h36m17").check("back")
    assert back.conf[5:8, 0].tolist() == [1, 0.75, 0] and not back.visible[7, 0]
    np.testing.assert_allclose(back.x_img[5, 0], coco.x_img[5, hips].mean(0), rtol=1e-5)
    assert ann.to_skeleton("h36m17") is ann


def test_detections_are_matched_by_key_in_any_order():
    ann = make(sequences=2, frames=2, people=2)
    rows = np.random.default_rng(0).permutation(len(ann))[:-3]  # three observations have no detection
    conf = np.random.default_rng(1).uniform(0.1, 1, ann.conf.shape).astype(np.float32)
    keys = [getattr(ann, name)[rows] for name in ("sequence", "frame", "view", "person")]
    out = attach_detections(ann, *keys, ann.x_img[rows] + 2, conf[rows])
    np.testing.assert_array_equal(out.conf[rows], conf[rows])
    np.testing.assert_array_equal(out.x_img[rows], ann.x_img[rows] + 2)
    left = np.setdiff1d(np.arange(len(ann)), rows)
    assert (out.conf[left] == 0).all()
    twice = [np.append(k, k[:1]) for k in keys]
    with pytest.raises(DataError, match="two rows for sequence"):
        attach_detections(ann, *twice, ann.x_img[np.append(rows, rows[0])], conf[np.append(rows, rows[0])])
    with pytest.raises(DataError, match="none of"):
        attach_detections(ann, keys[0] + 50, *keys[1:], ann.x_img[rows], conf[rows])
    with pytest.raises(DataError, match="expected \\(D, 17, 2\\)"):
        attach_detections(ann, *keys, ann.x_img[rows][:, :16], conf[rows][:, :16])
    with pytest.raises(DataError, match="'x_img'.*not finite"):
        attach_detections(ann, *keys, ann.x_img[rows] * np.nan, conf[rows])


def test_poses_can_be_replaced_by_other_labels():
    ann = make()
    out = with_poses(ann, ann.X_world + 1.0, ann.X_valid)
    np.testing.assert_allclose(out.X_world, ann.X_world + 1, rtol=1e-6)
    with pytest.raises(DataError, match="with_poses"):
        with_poses(ann, ann.X_world[:-1], ann.X_valid[:-1])
    with pytest.raises(DataError, match="'X_world' of row 0"):
        with_poses(ann, ann.X_world * np.nan, ann.X_valid)


def test_a_sound_table_passes_also_with_missing_values():
    ann = make()
    assert ann.check("tiny") is ann
    ann = edited(edited(ann, "conf", (2, 3), 0), "x_img", (2, 3), np.nan)
    ann = edited(edited(ann, "X_valid", (1, 3), False), "X_world", (1, 3), np.nan)
    edited(edited(edited(ann, "box", 0, np.nan), "image", 0, -1), "pose", 0, -1).check("tiny")


DAMAGE = {
    "NaN where valid, 3D": (lambda a: edited(a, "X_world", (2, 4), np.nan), "'X_world' of row 2.*l_hip.*X_valid"),
    "NaN where valid, 2D": (lambda a: edited(a, "x_img", (3, 1), np.inf), "'x_img' of row 3.*r_hip.*conf to 0"),
    "confidence above 1": (lambda a: edited(a, "conf", (5, 0), 1.5), "'conf' of row 5.*0..1.*1.5"),
    "confidence NaN": (lambda a: edited(a, "conf", (5, 0), np.nan), "'conf' of row 5"),
    "pose out of range": (lambda a: edited(a, "pose", 7, 6), "'pose' of row 7.*-1..5"),
    "image out of range": (lambda a: edited(a, "image", 0, 99), "'image' of row 0"),
    "camera below -1": (lambda a: edited(a, "camera", 0, -2), "'camera' of row 0"),
    "no sequence": (lambda a: edited(a, "sequence", 1, -1), "'sequence' of row 1"),
    "infinite box": (lambda a: edited(a, "box", (1, 2), np.inf), "'box' of row 1"),
    "unknown skeleton": (lambda a: replace(a, skeleton="h36m71"), "'skeleton'.*h36m71"),
    "wrong skeleton": (lambda a: replace(a, skeleton="mpii16"), "has shape .*17.*expected .*16.*DATASET.SKELETON"),
    "wrong type": (lambda a: replace(a, frame=a.frame.astype(np.int64)), "'frame' has type int64, expected int32"),
    "list for array": (lambda a: replace(a, conf=a.conf.tolist()), "'conf' has type list"),
    "ragged rows": (lambda a: replace(a, view=a.view[:-1]), "'view' has shape \\(23,\\), expected \\(24,\\)"),
    "text names": (lambda a: replace(a, images=a.images.astype(str)), "'images' is not a 1-D array of bytes"),
    "names per sequence": (lambda a: replace(a, actions=a.actions[:1]), "'actions' has 1 entries, expected 2"),
    "empty": (lambda a: a.select(np.zeros(0, dtype=int)), "holds no observation"),
    "one number": (lambda a: replace(a, subjects=np.array(b"S1")), "'subjects' is not a 1-D array of bytes"),
    "camera type": (lambda a: replace(a, cameras=a.cameras.to(a.cameras.K.float().dtype)), "expected torch.float64"),
    "camera NaN": (lambda a: replace(a, cameras=replace(a.cameras, t=a.cameras.t * np.nan)), "'cameras.t' of row 0"),
    "camera scale": (lambda a: replace(a, cameras=replace(a.cameras, R=a.cameras.R * 2)), "'cameras.R' of row 0"),
    "camera mirrored": (lambda a: replace(a, cameras=replace(a.cameras, K=-a.cameras.K)), "'cameras.K' of row 0"),
    "one camera": (lambda a: replace(a, cameras=a.cameras[0]), "'cameras'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_field_row_and_file(kind):
    damage, message = DAMAGE[kind]
    with pytest.raises(DataError, match=f"(?s)^world/train: .*{message}"):
        damage(make()).check("world/train")


def test_image_path_of_a_keypoint_only_row():
    with pytest.raises(DataError, match="observation 3 has no image"):
        edited(make(), "image", 3, -1).image_path(3)


class Layout:
    """A layout that makes up its data."""

    SKELETON = "h36m17"

    @staticmethod
    def read(root, split, frames, people=1):
        return make(frames=frames, people=people)


def test_load_checks_options_against_the_layout(monkeypatch):
    monkeypatch.setitem(dataset.FORMATS, "made_up", Layout)
    assert len(dataset.load("made_up", "x", "train", {"frames": 2})) == 2 * 2 * 4
    assert dataset.load("made_up", "x", "train", {"frames": 1}, skeleton="mpii16").num_joints == 16
    for options, message in (
        ({"frames": 1, "pepole": 2}, "DATASET.OPTIONS.*pepole.*did you mean people"),
        ({}, "made_up needs frames"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataset.load("made_up", "x", "train", options)
    with pytest.raises(ConfigError, match="DATASET.DATASET.*made_op.*made_up"):
        dataset.load("made_op", "x", "train")
