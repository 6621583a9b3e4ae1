"""lib/skeleton.py: the tables against the published orders, and conversion by name."""

import numpy as np
import pytest
import torch

from lib.errors import ConfigError, DataError
from lib.skeleton import APPROXIMATIONS, SKELETONS, Skeleton, check_same, convert, get
from tests.conftest import golden

# Parents as published: VideoPose3D's tables (root -1), MPII of EpipolarPose, the Integral variant, SMPL.
PARENTS = {
    "h36m17": [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15],
    "h36m16": [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11, 8, 13, 14],
    "h36m18": [-1, 0, 1, 2, 0, 4, 5, 0, 17, 17, 8, 17, 11, 12, 17, 14, 15, 0],
    "h36m32": [-1, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 0, 11, 12, 13, 14, 12, 16, 17, 18, 19, 20, 19, 22, 12, 24, 25, 26, 27,
               28, 27, 30],
    "mpii16": [1, 2, 6, 6, 3, 4, -1, 6, 7, 8, 11, 12, 7, 7, 13, 14],
    "humaneva15": [-1, 0, 1, 2, 3, 1, 5, 6, 0, 8, 9, 0, 11, 12, 1],
    "smpl24": [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21],
}
LEFT = {
    "h36m17": [4, 5, 6, 11, 12, 13],
    "h36m32": [6, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23],
    "mpii16": [3, 4, 5, 13, 14, 15],
    "coco17": [1, 3, 5, 7, 9, 11, 13, 15],
    "humaneva15": [2, 3, 4, 8, 9, 10],
    "humaneva20": [3, 4, 5, 6, 11, 12, 13, 14],
    "panoptic15": [3, 4, 5, 6, 7, 8],
    "shelf14": [3, 4, 5, 9, 10, 11],
}
FLIPS = {
    "h36m17": [(1, 4), (2, 5), (3, 6), (14, 11), (15, 12), (16, 13)],
    "mpii16": [(0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)],
    "coco17": [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)],
}


def taken(src: str, dst: str) -> list:
    """Which source joint each joint of `dst` is, as convert sees it: numbers, means of numbers, None where absent."""
    x, present = convert(np.arange(float(get(src).num))[:, None], src, dst)
    return [float(v) if p else None for v, p in zip(x[:, 0], present, strict=True)]


# --------------------------------------------------------------------------------------------------------- the tables


@pytest.mark.parametrize("name", PARENTS)
def test_parents_are_the_published_ones(name):
    skeleton = get(name)
    own_root = [-1 if j == p else p for j, p in enumerate(skeleton.parents)]
    assert own_root == PARENTS[name]


@pytest.mark.parametrize("name", LEFT)
def test_left_joints_are_the_published_ones(name):
    assert [j for j, joint in enumerate(get(name).joints) if joint.startswith("l_")] == LEFT[name]


@pytest.mark.parametrize("name", FLIPS)
def test_flip_exchanges_the_published_pairs(name):
    expected = np.arange(get(name).num)
    for a, b in FLIPS[name]:
        expected[[a, b]] = b, a
    np.testing.assert_array_equal(get(name).flip, expected)


@pytest.mark.parametrize("name", SKELETONS)
def test_every_skeleton_is_a_mirrored_tree(name):
    s = get(name)
    assert s.name == name and s.num == len(s.joints) and (name == "body25b" or name.endswith(str(s.num)))
    assert s.joints[s.root_index] == s.root and s.parents[s.root_index] == s.root_index
    np.testing.assert_array_equal(s.flip[s.flip], np.arange(s.num))
    assert s.bones.shape == (s.num - 1, 2)
    mirrored = {tuple(bone) for bone in s.flip[s.bones]}
    assert mirrored == {tuple(bone) for bone in s.bones}
    rows = np.concatenate(list(s.limbs.values()))
    np.testing.assert_array_equal(np.sort(rows), np.arange(s.num - 1))
    assert len(s.limbs["left"]) == len(s.limbs["right"])


def test_h36m_bones_are_those_of_the_specification():
    bones = [(0, 7), (7, 8), (8, 9), (9, 10), (8, 11), (11, 12), (12, 13), (8, 14), (14, 15), (15, 16), (0, 1), (1, 2),
             (2, 3), (0, 4), (4, 5), (5, 6)]
    assert {tuple(b) for b in get("h36m17").bones.tolist()} == set(bones)


def test_panoptic_bones_are_the_published_limbs():
    limbs = [(0, 1), (0, 2), (0, 3), (3, 4), (4, 5), (0, 9), (9, 10), (10, 11), (2, 6), (2, 12), (6, 7), (7, 8),
             (12, 13), (13, 14)]
    assert {tuple(sorted(b)) for b in get("panoptic15").bones.tolist()} == set(limbs)


def test_names_and_indices():
    h36m = get("h36m17")
    assert h36m.find("r_wrist") == 16 and h36m.find("l_ear") is None and get(h36m) is h36m
    np.testing.assert_array_equal(h36m.indices(["pelvis", "head"]), [0, 10])
    with pytest.raises(DataError, match="skeleton h36m17 has no joint 'r_wirst'; did you mean r_wrist"):
        h36m.index("r_wirst")
    with pytest.raises(ConfigError, match="skeleton: 'h36m_17' is not one of .*did you mean h36m17"):
        get("h36m_17")


@pytest.mark.parametrize(("joints", "parents", "root", "message"), [
    (("a", "a"), (0, 0), "a", "different joint names"),
    (("a", "b"), (0,), "a", "a parent for each"),
    (("a", "b"), (0, 0), "c", "its root"),
    (("a", "l_b"), (0, 0), "a", "l_b has no twin r_b"),
    (("a", "b", "c"), (0, 2, 1), "a", "not every joint leads to the root a"),
])
def test_a_wrong_table_is_refused(joints, parents, root, message):
    with pytest.raises(DataError, match=message):
        Skeleton("x", joints, parents, root)


def test_a_skeleton_cannot_be_changed():
    with pytest.raises(AttributeError):
        get("h36m17").root = "head"
    get("h36m17").flip[:] = 0  # a copy
    assert get("h36m17").flip[1] == 4


def test_mixing_two_is_an_error():
    check_same("h36m17", get("h36m17"), "x")
    with pytest.raises(DataError, match="labels and predictions: skeletons h36m17 and mpii16 are mixed; convert"):
        check_same("h36m17", "mpii16", "labels and predictions")


# --------------------------------------------------------------------------------------------------------- conversion


def test_h36m_to_mpii_is_the_recorded_permutation():
    assert taken("h36m17", "mpii16") == golden("epipolarpose", "projection")["perm_h36m_to_mpii"].tolist()


def test_mpii_to_h36m_loses_the_spine_alone():
    assert taken("mpii16", "h36m17") == [6, 2, 1, 0, 3, 4, 5, None, 7, 8, 9, 13, 14, 15, 12, 11, 10]


def test_raw_captures_to_seventeen_joints():
    assert taken("h36m32", "h36m17") == [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
    assert taken("mpi3dhp28", "mpi3dhp17") == [7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6]


def test_mpi3dhp_to_h36m():
    assert taken("mpi3dhp17", "h36m17") == [14, 8, 9, 10, 11, 12, 13, 15, 1, 16, 0, 5, 6, 7, 2, 3, 4]


def test_mpii_to_the_pose_machines_sixteen():
    assert taken("mpii16", "h36m16") == [6, 2, 1, 0, 3, 4, 5, None, 7, 9, 13, 14, 15, 12, 11, 10]


def test_the_pose_machines_sixteen_are_human36m_without_the_nose():
    assert taken("h36m17", "h36m16") == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16]
    assert taken("h36m16", "h36m17") == [0, 1, 2, 3, 4, 5, 6, 7, 8, None, 9, 10, 11, 12, 13, 14, 15]
    assert taken("h36m16", "mpii16") == [3, 2, 1, 4, 5, 6, 0, 8, None, 9, 15, 14, 13, 10, 11, 12]
    sides = {name: [SKELETONS["h36m16"].bones[row].tolist() for row in rows] for name, rows in get("h36m16").limbs.items()}
    assert sides["left"] == [[0, 4], [4, 5], [5, 6], [8, 10], [10, 11], [11, 12]] and sides["center"] == [[0, 7], [7, 8], [8, 9]]


def test_smpl_as_3dpw_is_used():
    assert taken("smpl24", "mpii16") == [8, 5, 2, 1, 4, 7, 0, 16.5, 12, None, 21, 19, 17, 16, 18, 20]
    assert taken("smpl24", "h36m17") == [0, 2, 5, 8, 1, 4, 7, 6, 12, None, None, 16, 18, 20, 17, 19, 21]
    assert taken("smpl24", "threedpw14") == [8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20, 12, 15]


def test_h36m_to_the_common_fourteen():
    assert taken("h36m17", "lsp14") == [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]


def test_coco_to_panoptic_takes_mid_points():  # SelfPose3d's labels: neck and mid-hip are means, nine joints are copied
    neck, hip = (5 + 6) / 2, (11 + 12) / 2
    assert taken("coco17", "panoptic15") == [neck, 0, hip, 5, 7, 9, 11, 13, 15, 6, 8, 10, 12, 14, 16]


def test_panoptic_and_coco_to_shelf_by_the_plain_head_rule():
    limbs = [14, 13, 12, 6, 7, 8, 11, 10, 9, 3, 4, 5]
    shoulders, nose = (3 + 9) / 2, 1
    bottom = (shoulders + nose) / 2
    assert taken("panoptic15", "shelf14") == [*limbs, bottom, bottom + 2 * (nose - bottom)]
    shoulders, ears = (5 + 6) / 2, (3 + 4) / 2
    bottom = (shoulders + ears) / 2
    limbs = [16, 14, 12, 11, 13, 15, 10, 8, 6, 5, 7, 9]
    assert taken("coco17", "campus14") == [*limbs, bottom, bottom + 2 * (ears - bottom)]


def test_humaneva_segments_to_joints():
    assert taken("humaneva20", "humaneva15") == [0, 1.5, 3, 4.5, 6, 7, 8.5, 10, 11, 12.5, 14, 15, 16.5, 18, 19]


def test_what_cannot_be_made_is_absent():
    def absent(src: str, dst: str) -> list[str]:
        return [joint for joint, v in zip(get(dst).joints, taken(src, dst), strict=True) if v is None]

    assert absent("mpii16", "coco17") == ["nose", "l_eye", "r_eye", "l_ear", "r_ear"]
    assert absent("coco17", "h36m17") == ["spine", "head"]


def test_approximations_are_means_over_known_joints():
    known = {joint for s in SKELETONS.values() for joint in s.joints}
    for joint, rules in APPROXIMATIONS.items():
        for rule in rules:
            assert joint in known and set(rule.joints) <= known
            assert not rule.weights or sum(rule.weights) == 1 and len(rule.weights) == len(rule.joints)
            assert all(any(name.startswith(prefix) for name in SKELETONS) for prefix in (*rule.src, *rule.dst))


@pytest.mark.parametrize("src", SKELETONS)
@pytest.mark.parametrize("dst", ["h36m17", "mpii16", "coco17", "panoptic15", "shelf14"])
def test_numpy_and_torch_agree_and_the_mirror_commutes(src, dst):
    x = np.random.default_rng(0).normal(size=(2, 3, get(src).num, 3)).astype(np.float32)
    y, present = convert(x, src, dst)
    assert y.shape == (2, 3, get(dst).num, 3) and y.dtype == np.float32 and (y[..., ~present, :] == 0).all()
    t, t_present = convert(torch.from_numpy(x), src, dst)
    np.testing.assert_allclose(t.numpy(), y, atol=1e-6)
    np.testing.assert_array_equal(t_present.numpy(), present)
    flipped, _ = convert(x[..., get(src).flip, :], src, dst)
    np.testing.assert_allclose(flipped, y[..., get(dst).flip, :], atol=1e-6)


def test_the_same_skeleton_is_the_identity():
    for name in SKELETONS:
        assert taken(name, name) == list(range(get(name).num))


def test_nan_of_one_joint_stays_with_it():
    x = np.ones((17, 2))
    x[[0, 5]] = np.nan  # nose and left shoulder
    for y in (convert(x, "coco17", "panoptic15")[0], convert(torch.from_numpy(x), "coco17", "panoptic15")[0].numpy()):
        bad = np.isnan(y).any(-1)
        assert [get("panoptic15").joints[j] for j in np.flatnonzero(bad)] == ["neck", "nose", "l_shoulder"]
    x[:] = np.nan
    y, present = convert(x, "coco17", "h36m17")
    assert (y[~present] == 0).all()


def test_gradients_reach_each_source_with_its_weight():
    x = torch.zeros(17, 3, dtype=torch.float64, requires_grad=True)
    convert(x, "coco17", "panoptic15")[0].sum().backward()
    expected = torch.tensor([1.0, 0, 0, 0, 0, 1.5, 1.5, 1, 1, 1, 1, 1.5, 1.5, 1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(x.grad[:, 0], expected)


def test_masks_keep_their_type_where_names_suffice():
    mask = np.ones((5, 17, 1), bool)
    mask[:, 16] = False
    y, _ = convert(mask, "h36m17", "mpii16")
    assert y.dtype == bool and not y[:, get("mpii16").index("r_wrist")].any() and y.sum() == 5 * 15
    assert convert(torch.from_numpy(mask), "h36m17", "mpii16")[0].dtype == torch.bool


def test_an_array_of_another_skeleton_is_refused():
    for x in (np.zeros((2, 16, 3)), torch.zeros(2, 16, 3), np.zeros(17)):
        with pytest.raises(DataError, match=r"lacks the 17 joints of h36m17 in axis -2"):
            convert(x, "h36m17", "mpii16")


@pytest.mark.parametrize("name", ["cmu_test", "bandai_test"])
def test_motion_capture_files_are_in_this_order(samples, name):
    with np.load(samples / "mocap" / f"{name}.npz") as file:
        names, parents, x = file["joint_names"].tolist(), file["parents"].tolist(), file["positions"][::500]
    renamed = {"Hip": "pelvis", "Neck/Nose": "nose", "RFoot": "r_ankle", "LFoot": "l_ankle"}
    ours = [renamed.get(n, f"{n[0].lower()}_{n[1:].lower()}" if n[1].isupper() else n.lower()) for n in names]
    assert tuple(ours) == get("h36m17").joints
    assert [p if p >= 0 else 0 for p in parents] == list(get("h36m17").parents)
    hips = x[:, get("h36m17").indices(["l_hip", "r_hip"])].mean(1)
    assert np.abs(hips - x[:, 0]).max() < 2e-3  # metres
