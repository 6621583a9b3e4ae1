"""The release's lists: by hand, round trip with pictures, results by action, damaged files; protocols and mean limbs."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from lib import skeleton as skeletons
from lib.dataset import load
from lib.dataset.annotations import concat
from lib.dataset.clips import ClipSamples, strands
from lib.dataset.formats import h36m, machine_files, machine_lists
from lib.dataset.formats.machine_files import (
    Ranges,
    fit_ranges,
    read_list,
    read_ranges,
    read_results,
    read_tree,
    write_actions,
    write_ranges,
    write_results,
)
from lib.dataset.image import ImageSpec, read_image
from lib.dataset.protocols import PROTOCOLS, describe, select
from lib.dataset.retarget import bone_lengths, mean_lengths, retarget, retargeted
from lib.errors import ConfigError, DataError
from tests.conftest import golden
from tests.tiny_dataset import SKELETON, edited, make, replace, write_images

SIXTEEN = skeletons.get("h36m16")
SIDE = 64
LIST = "16skel_train_2d3d_clip.txt"


def camera_poses(ann) -> np.ndarray:
    """(N,J,3) mm relative to the root, in camera axes."""
    X = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
    return X - X[:, :1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two sequences of seven frames before two cameras, with pictures; the table in the lists' order and joints."""
    root = tmp_path_factory.mktemp("source")
    ann = make(sequences=2, frames=7, views=2)
    write_images(ann, root)
    rows, _ = ann.group("sequence", "view")
    return ann, ann.select(rows).to_skeleton("h36m16"), root


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    ann, _, pictures = source
    root = tmp_path_factory.mktemp("lists")
    machine_lists.write(ann, root, "train", lambda i: read_image(pictures / ann.images[i].decode()), side=SIDE)
    machine_lists.write(ann, root, "actions")
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "lists")


def ranges_of(X: np.ndarray) -> Ranges:
    return fit_ranges(X - X[:, :1])


# --- a list by hand


def by_hand(root: Path, lines: list[str], name: str = "small.txt") -> Path:
    root.mkdir(exist_ok=True)
    write_ranges(root / machine_lists.RANGES, Ranges(np.full((16, 3), 500.0), np.full((16, 3), -300.0)))
    (root / name).write_text("\n".join(lines) + "\n")
    return root


def values(x: float, X: float, flag: int) -> str:
    return ",".join([f"{x}"] * 32 + [f"{X}"] * 48 + [str(flag)])


def test_numbers_become_pixels_and_millimetres(tmp_path):
    root = by_hand(tmp_path / "a", [f"my pictures/S1/Sitting_1.54138969/000{k}.jpg {values(0.25, 0.5, int(k > 1))}" for k in (1, 6, 11)])
    ann = load("machine_lists", root, "small", {"side": 200})
    assert ann.image_path(1) == "my pictures/S1/Sitting_1.54138969/0006.jpg"  # the last space ends a path
    assert ann.frame.tolist() == [0, 5, 10] and ann.subject(0) == "S1" and ann.action(0) == "Sitting" and ann.view.tolist() == [0] * 3
    assert ann.x_img.tolist() == np.full((3, 16, 2), 50).tolist() and ann.conf.all() and ann.visible.all()
    assert ann.box.tolist() == [[0, 0, 200, 200]] * 3
    assert (ann.X_world[:, 0] == 0).all() and (ann.X_world[:, 1:] == 100).all()  # 0.5 between -300 and 500; the root is 0
    assert runs_of(ann) == [[0, 5, 10]]  # every 5th frame is no gap


def runs_of(ann) -> list[list[int]]:
    rows, starts = strands(ann)
    return [ann.frame[rows[a:b]].tolist() for a, b in zip(starts[:-1], starts[1:], strict=True)]


def test_flags_can_begin_sequences(tmp_path):
    flags = [0, 1, 1, 0, 1, 0]
    root = by_hand(tmp_path / "a", [f"video/{k:04d}.jpg {values(0.5, 0.4, flag)}" for k, flag in enumerate(flags)])
    assert runs_of(machine_lists.read(root, "small", side=100)) == [list(range(6))]
    ann = machine_lists.read(root, "small", side=100, resets=True)
    assert runs_of(ann) == [[0, 1, 2], [3, 4], [5]] and len(ann.subjects) == 3
    (root / "flat.txt").write_text("video/1.jpg " + ",".join(["0.5"] * 32) + "\n")
    with pytest.raises(DataError, match="flat.txt: its lines have no flags"):
        machine_lists.read(root, "flat", resets=True)


def test_names_that_tell_no_frame_keep_the_order_of_the_list(tmp_path):
    names = ["a/x1.jpg", "a/y1.jpg", "é/one.jpg", "é/two.jpg", "ü/7.jpg"]
    root = by_hand(tmp_path / "a", [f"{name} {values(0.5, 0.4, 1)}" for name in names])
    ann = machine_lists.read(root, "small", side=100)
    assert ann.sequence.tolist() == [0, 0, 1, 1, 2] and ann.frame.tolist() == [0, 1, 0, 1, 7] and ann.image_path(4) == "ü/7.jpg"


def test_paths_of_another_computer(tmp_path):
    root = by_hand(tmp_path / "a", [f"/home/me/h36m/video/1.jpg {values(0.5, 0.4, 0)}"])
    with pytest.raises(DataError, match="'/home/me/h36m/video/1.jpg' is a path of another computer; set `strip`"):
        machine_lists.read(root, "small")
    assert machine_lists.read(root, "small", strip="/home/me/h36m", side=9).image_path(0) == "video/1.jpg"
    with pytest.raises(DataError, match="does not begin with '/data'"):
        machine_lists.read(root, "small", strip="/data")


def test_pictures_without_3d(tmp_path):
    """MPII's list: 33 numbers; 0, 0 is no label, and MPII has no spine."""
    x = np.full((16, 2), 0.5)
    x[SIXTEEN.index("l_wrist")] = 0
    root = by_hand(tmp_path / "a", [f"mpii/{k}.jpg {','.join(map(str, x.ravel()))},0" for k in (3, 4)], "train_h36m.txt")
    ann = load("machine_lists", root, "mpii")
    assert (ann.pose == -1).all() and (ann.camera == -1).all() and ann.box[0].tolist() == [0, 0, 368, 368]
    assert {SIXTEEN.joints[j] for j in np.flatnonzero(ann.conf[1] == 0)} == {"l_wrist", "spine"}
    assert runs_of(ann) == [[3], [4]]  # pictures are never frames of a pseudo clip


def test_lists_in_the_order_that_the_read_me_prints(tmp_path):
    """MPII's: each joint at its number there; the numbers of ours in MPII's order are written out."""
    number = {0: 6, 1: 2, 2: 1, 3: 0, 4: 3, 5: 4, 6: 5, 8: 7, 9: 9, 10: 13, 11: 14, 12: 15, 13: 12, 14: 11, 15: 10}
    x, X = (np.repeat((np.arange(16) + 1) / 20, k) for k in (2, 3))
    root = by_hand(tmp_path / "a", [f"S1/{k}.jpg {','.join(map(str, [*x, *X]))},1" for k in (1, 2)])
    ann = load("machine_lists", root, "small", {"side": 100, "order": "mpii"})
    assert ann.skeleton == "h36m16"
    for ours, theirs in number.items():
        share = (theirs + 1) / 20
        np.testing.assert_allclose(ann.x_img[:, ours], 100 * share, atol=1e-3)
        np.testing.assert_allclose(ann.X_world[:, ours], 800 * share - 300 if ours else 0, atol=1e-3)
    unknown = np.arange(16) == SIXTEEN.index("spine")
    assert (ann.X_valid == ~unknown).all() and (ann.conf == ~unknown).all()
    with pytest.raises(ConfigError, match="order.*'coco' is not one of h36m, mpii"):
        load("machine_lists", root, "small", {"order": "coco"})


def test_poses_without_2d(tmp_path):
    root = by_hand(tmp_path / "a", [f"video/{k}.jpg " + ",".join(["0.5"] * 48) + ",1" for k in (1, 2)])
    ann = machine_lists.read(root, "small", side=100)
    assert not ann.conf.any() and ann.X_valid.all() and (ann.X_world[:, 1:] == 100).all()
    assert ((ann.x_img >= 0) & (ann.x_img < 100)).all()  # placed in the middle


@pytest.mark.parametrize(("line", "message"), [
    ("x.jpg 1,2,3", "line 2 holds 3 numbers, the first one 81"),
    ("x.jpg", "line 2 has no path and a space"),
    ("x.jpg " + values(0.5, 0.5, 2), "line 2 ends in 2, expected the flag"),
    ("x.jpg " + values(0.5, 0.5, 0).replace("0.5", "half", 1), "line 2 holds something else than numbers"),
    ("x.jpg " + values(float("nan"), 0.5, 0), "line 2 holds NaN"),
])  # fmt: skip
def test_damaged_lines_are_told(tmp_path, line, message):
    root = by_hand(tmp_path / "a", [f"a/1.jpg {values(0.5, 0.5, 0)}", line, f"a/2.jpg {values(0.5, 0.5, 1)}"])
    with pytest.raises(DataError, match=f"small.txt: {message}"):
        machine_lists.read(root, "small", side=100)


def test_other_damage_is_told(tmp_path):
    root = by_hand(tmp_path / "a", ["a/1.jpg 1,2,3"])
    with pytest.raises(DataError, match="line 1 holds 3 numbers, expected 32 or 33 or 49 or 81"):
        machine_lists.read(root, "small")
    (root / "small.txt").write_text("\n")
    with pytest.raises(DataError, match="small.txt: is empty"):
        machine_lists.read(root, "small")
    (root / "small.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        machine_lists.read(root, "small")
    with pytest.raises(DataError, match="valid.txt: no such list.*small|none"):
        machine_lists.read(root, "valid")
    (root / "small.txt").write_text(f"a/1.jpg {values(0.5, 0.5, 0)}\n")
    (root / machine_lists.RANGES).unlink()
    with pytest.raises(DataError, match=f"{machine_lists.RANGES}: no such file; it comes with the lists"):
        machine_lists.read(root, "small")


# --- the table of ranges


def test_the_published_ranges(tmp_path):
    data = golden("pose_machines", "losses_metrics")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(",".join(map(repr, data[f"{k}_16"].tolist())) for k in ("max", "min")) + "\n")
    ranges = read_ranges(path)
    hip = SIXTEEN.index("r_hip")
    assert np.allclose(ranges.high[hip], 134, atol=0.1) and np.allclose(ranges.low[hip], -134, atol=0.1)  # the mean limb: a sphere
    mm = ranges.to_mm(data["pred3d"].reshape(-1, 16, 3))
    recorded = data["unnorm_pred"].reshape(-1, 16, 3)
    np.testing.assert_allclose(mm[:, 1:], recorded[:, 1:], atol=1e-3)
    assert (mm[:, 0] == 0).all()  # the root has a range of nothing and is left out
    np.testing.assert_allclose(ranges.to_mm(ranges.from_mm(mm)), mm, atol=1e-9)
    write_ranges(tmp_path / "again.csv", ranges)
    np.testing.assert_allclose(read_ranges(tmp_path / "again.csv"), ranges, rtol=1e-9)
    path.write_text("\n".join(path.read_text().splitlines()[::-1]))
    with pytest.raises(DataError, match="first row must hold the greatest"):
        read_ranges(path)
    path.write_text("")
    with pytest.raises(DataError, match="holds 0 rows"):
        read_ranges(path)


# --- round trip


def test_a_table_survives(source, made):
    _, wrote, _ = source
    got = load("machine_lists", made, "train")
    assert len(got) == len(wrote) and got.skeleton == "h36m16" and got.fps == 50
    for column in ("view", "frame"):
        assert getattr(got, column).tolist() == getattr(wrote, column).tolist()
    assert [got.subject(i) for i in range(len(got))] == [wrote.subject(i) for i in range(len(wrote))]
    assert [got.action(i) for i in range(len(got))] == [wrote.action(i) for i in range(len(wrote))]
    np.testing.assert_allclose(camera_poses(got), camera_poses(wrote), atol=1e-2)
    assert (camera_poses(got)[:, 0] == 0).all()
    side = (wrote.box[:, 2:] - wrote.box[:, :2]).max(1)[:, None, None]
    middle = ((wrote.box[:, :2] + wrote.box[:, 2:]) / 2)[:, None]
    np.testing.assert_allclose(got.x_img, (wrote.x_img - middle) / side * SIDE + SIDE / 2, atol=1e-3)


def test_labels_sit_on_the_pixels_of_the_squares(made):
    """The red dot at the right wrist, in the squares and in crops of them."""
    ann = load("machine_lists", made, "train")
    wrist, seen = SIXTEEN.index("r_wrist"), 0
    batch = ClipSamples(ann, made, ImageSpec(size=(SIDE, SIDE)), length=7).__getitems__(range(4))
    for row, image, x in zip(*(batch[k].flatten(0, 1) for k in ("row", "image", "x_patch")), strict=True):
        weight = (image[0].double() - 80).clamp(min=0)
        place = torch.stack([(weight.sum(k) * torch.arange(SIDE)).sum() / weight.sum() for k in (0, 1)])
        if ((x[wrist, :2] > 9) & (x[wrist, :2] < SIDE - 9)).all():
            np.testing.assert_allclose(place, x[wrist, :2], atol=0.7)
            np.testing.assert_allclose(x[wrist, :2], ann.x_img[row, wrist], atol=1e-3)
            seen += 1
    assert seen > 8


def test_flags_begin_a_clip_every_five_frames(made):
    listed = read_list(made / LIST)
    assert listed.resets.tolist() == [True, False, False, False, False, True, False] * 4
    assert len(load("machine_lists", made, "train", {"resets": True}).subjects) == 8


def test_the_assumed_cameras_lie_over_the_2d_joints(tmp_path):
    """A scaled parallel projection is found again: root, scale, and no turn."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-600, 600, (4, 16, 3))
    X -= X[:, :1]
    ranges = ranges_of(X)
    x = X[..., :2] * 3e-4 + rng.uniform(0.4, 0.6, (4, 1, 2))
    listed = machine_files.Listed([f"a/{i}.jpg" for i in range(4)], x, ranges.from_mm(X), np.zeros(4, bool))
    machine_files.write_list(tmp_path / "a.txt", listed)
    write_ranges(tmp_path / machine_lists.RANGES, ranges)
    ann = machine_lists.read(tmp_path, "a", side=400)
    seen, depth = ann.observing().project(torch.from_numpy(ann.X_world[ann.pose]).double())
    assert (depth > 0).all()
    np.testing.assert_allclose(seen, ann.x_img, atol=2.0)  # px: the camera is far away
    np.testing.assert_allclose(seen[:, 0], ann.x_img[:, 0], atol=0.01)
    np.testing.assert_allclose(camera_poses(ann), X, atol=0.01)


def test_what_is_there_is_found_and_checked(made):
    assert machine_lists.splits(made) == ["train", "actions"]
    findings = machine_lists.check(made)
    assert all("the median distance" in text for text in findings)  # random poses have no limbs
    assert "has none of the lists" in machine_lists.check(made.parent / "nowhere")[0]


def test_nothing_is_overwritten(source, root):
    before = (root / LIST).read_bytes()
    with pytest.raises(DataError, match="exists already"):
        machine_lists.write(source[0], root, "train")
    (root / LIST).unlink()
    with pytest.raises(DataError, match="exists already"):  # the pictures
        machine_lists.write(source[0], root, "train", lambda i: np.zeros((120, 160, 3), np.uint8))
    machine_lists.write(source[0], root, "train", side=SIDE)
    assert (root / LIST).read_bytes() == before and not list(root.glob(".*"))


def test_tables_that_do_not_fit_are_refused(source, tmp_path):
    ann = source[0]
    with pytest.raises(DataError, match="one person"):
        machine_lists.write(make(people=2), tmp_path, "train")
    with pytest.raises(DataError, match="row 3 has no complete 3D pose"):
        machine_lists.write(edited(ann, "pose", 3, -1), tmp_path, "train")
    with pytest.raises(DataError, match="1 observations have no box"):
        machine_lists.write(edited(ann, "box", 3, np.nan), tmp_path, "train")
    with pytest.raises(DataError, match="Juggling is no action"):
        machine_lists.write(replace(ann, actions=np.array([b"Juggling", b"Sitting"])), tmp_path, "actions")
    assert not list(tmp_path.rglob("*.txt"))


# --- results by action


def test_results_are_read_as_published(tmp_path):
    path = tmp_path / "result.csv"
    path.write_text("," + ",".join(["0.5"] * 48) + "\n,\r\n".replace(",\r", "") + "7," + ",".join(["1.5"] * 48) + ",\n")
    X = read_results(path)
    assert X.shape == (2, 16, 3) and (X[0] == 0.5).all() and (X[1] == 1.5).all()
    with pytest.raises(DataError, match="line 1 holds 48 numbers, expected 32"):
        read_results(path, dims=2)
    x = np.random.default_rng(0).random((3, 16, 2))
    write_results(tmp_path / "2d.csv", x)
    np.testing.assert_allclose(read_results(tmp_path / "2d.csv", 2), x, rtol=1e-7)
    assert (tmp_path / "2d.csv").read_text().startswith(",0.")
    write_results(tmp_path / "mm.csv", 1000 * X, numbered=True)
    assert [line.split(",")[0] for line in (tmp_path / "mm.csv").read_text().splitlines()] == ["0", "1"]


def test_the_evaluation_by_action(source, root):
    """Coarse results are off by 10 mm along x, regressed ones by 6, refined ones by 3; in Sitting by twice as much."""
    ann = machine_lists.read(root, "actions", side=SIDE)
    ranges, actions = read_ranges(root / machine_lists.RANGES), [ann.action(i) for i in range(len(ann))]
    assert sorted(set(actions)) == ["Sitting", "Walking"] and actions.count("Walking") == 14
    away = np.zeros((len(ann), 16, 3))
    away[:, 1:, 0] = np.where(np.array(actions) == "Sitting", 2, 1)[:, None]
    X = camera_poses(ann)
    write_actions(root / "p3d", X + 10 * away, actions, "", ranges)
    write_actions(root / "p3d", X + 6 * away + 40, actions, "change")  # mm; the root is not at 0 and is centred
    write_actions(root / "p3d", X + 3 * away, actions, "refined")
    stages = {"coarse": "p3d/result{action}_norm.csv", "regressed": "p3d/result{action}_change_unnorm.csv"}
    report = machine_lists.judge(root, stages | {"refined": "p3d/result{action}_refined_unnorm.csv"})
    share = 15 / 16  # the root counts, with 0
    assert report.per_action["coarse_mpjpe_mm"] == pytest.approx({"Sitting": 20 * share, "Walking": 10 * share}, abs=1e-3)
    assert report.metrics["regressed_mpjpe_action_mean_mm"] == pytest.approx(9 * share, abs=1e-3)
    assert report.metrics["mpjpe_mm"] == pytest.approx(4.5 * share, abs=1e-3)
    assert "mean of actions" in report.stage_table() and report.protocol["frames_without_result"] == 0
    two = machine_lists.judge(root, stages)
    assert two.metrics["mpjpe_mm"] == pytest.approx(9 * share, abs=1e-3)  # the last stage gives the main numbers


def test_results_that_end_early_are_counted_and_longer_ones_refused(root, caplog):
    ann = machine_lists.read(root, "actions", side=SIDE)
    actions = [ann.action(i) for i in range(len(ann))]
    kept = np.array([i for i in range(len(ann)) if i not in (13, 27)])  # the last of each action
    write_actions(root, camera_poses(ann)[kept], [actions[i] for i in kept], "")
    with caplog.at_level(logging.WARNING, logger="parallax"):
        report = machine_lists.judge(root, {"coarse": "result{action}_unnorm.csv"})
    assert report.counts["poses"] == 26 and report.protocol["frames_without_result"] == 2
    assert "2 frames of the truth have no result" in caplog.text and "no files of the actions 1 (Directions)" in caplog.text
    short = root / "gt/test/test13.txt"  # Walking
    short.write_text("".join(short.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(DataError, match="results of action 13 have 13 rows, its truth 5"):
        machine_lists.judge(root, {"coarse": "result{action}_unnorm.csv"})
    with pytest.raises(DataError, match="refined_norm.csv: no such file"):
        machine_lists.judge(root, {"coarse": "result{action}_refined_norm.csv"})


def test_2d_joints_of_another_source(root):
    truth = machine_lists.read(root, "actions", side=SIDE)
    (root / "hg").mkdir()
    for number, path in machine_lists._truth(root).items():
        listed = read_list(path)
        x = listed.x + 0.01
        x[:, SIXTEEN.index("spine")] = 0
        machine_files.write_list(root / f"hg/test{number}_square2d.txt", machine_files.Listed(listed.names, x, None, None))
        write_results(root / f"hg/result{number}_norm.csv", x)
    ann = machine_lists.read(root, "actions", side=SIDE, keypoints="hg/test{action}_square2d.txt")
    other = np.arange(16) != SIXTEEN.index("spine")
    np.testing.assert_allclose(ann.x_img[:, other], truth.x_img[:, other] + 0.01 * SIDE, atol=1e-3)
    assert (ann.conf.all(0) == other).all()
    np.testing.assert_allclose(camera_poses(ann), camera_poses(truth), atol=1e-3)
    same = machine_lists.read(root, "actions", side=SIDE, keypoints="hg/result{action}_norm.csv")
    np.testing.assert_allclose(same.x_img, ann.x_img, atol=1e-3)
    with pytest.raises(DataError, match="a file per action"):
        machine_lists.read(root, "train", side=SIDE, keypoints="hg/test{action}_square2d.txt")
    with pytest.raises(DataError, match="holds 14 rows, the list has 28"):
        machine_lists.read(root, "train", side=SIDE, keypoints="hg/result13_norm.csv")


def test_all_fifteen_actions_have_their_numbers():
    assert len(h36m.ACTIONS) == 15 and h36m.ACTIONS[0] == "Directions" and h36m.ACTIONS[12] == "Walking"


# --- the tree


def test_the_tree_of_joints(root):
    children = [[j + 1 for j, p in enumerate(SIXTEEN.parents) if p == k != j] for k in range(16)]
    sides = {"l_": "g", "r_": "r"}
    nodes = np.array(
        [(name, np.array(children[k], float), sides.get(name[:2], "b")) for k, name in enumerate(SIXTEEN.joints)],
        dtype=[("name", object), ("children", object), ("color", object)],
    )
    savemat(root / machine_lists.TREE, {"skel": {"tree": nodes, "torso": np.array([1, 2, 5, 8, 9, 12, 15])}})
    tree = read_tree(root / machine_lists.TREE)
    assert tree.parents == SIXTEEN.parents and tree.names == SIXTEEN.joints
    assert tree.torso == (0, 1, 4, 7, 8, 11, 14) and tree.colors[SIXTEEN.index("l_knee")] == "g"
    assert not any("parents" in text for text in machine_lists.check(root))
    nodes["children"][0], nodes["children"][1] = nodes["children"][1], nodes["children"][0]
    savemat(root / machine_lists.TREE, {"skel": {"tree": nodes, "torso": np.array([1])}})
    assert any("the parents are" in text for text in machine_lists.check(root))
    (root / machine_lists.TREE).write_bytes(b"not a mat file at all")
    with pytest.raises(DataError, match="not a tree of joints"):
        read_tree(root / machine_lists.TREE)


# --- protocols


def everyone(frames: int = 130):
    """Every subject in two trials of one action, 130 frames before four cameras; no pictures."""
    parts = []
    for subject in ("S1", "S5", "S6", "S7", "S8", "S9", "S11"):
        ann = make(sequences=2, frames=frames, seed=int(subject[1:]))
        names = {"subjects": [subject.encode()] * 2, "actions": [b"Eating"] * 2, "subactions": [b"1", b"2"]}
        parts.append(replace(ann, **{field: np.array(value) for field, value in names.items()}))
    return concat(parts)


def test_protocols_by_name():
    ann = everyone()

    def of(name, part, **options):
        chosen = select(ann, name, part, **options)
        who = sorted({chosen.subject(i) for i in range(len(chosen))}, key=lambda s: int(s[1:]))
        trials = {chosen.subactions[s].decode() for s in chosen.sequence}
        return who, sorted(set(chosen.frame.tolist())), sorted(set(chosen.view.tolist())), sorted(trials)

    train = ["S1", "S5", "S6", "S7", "S8"]
    second = [0, 25, 50, 75, 100, 125]  # 50 -> 2 frames per second
    assert of("machine1", "train") == (train, second, [0, 1, 2, 3], ["1", "2"])
    assert of("machine1", "test") == (["S9", "S11"], second, [0, 1, 2, 3], ["1", "2"])
    assert of("machine1", "train", step=5)[1] == list(range(0, 130, 5))  # as the read-me has it
    assert of("machine2", "train") == of("machine1", "train")
    assert of("machine2", "test") == (["S9", "S11"], list(range(0, 130, 5)), [3], ["1"])
    assert of("machine2", "test", views=[1])[2] == [1]
    assert of("machine3", "train")[0] == [*train, "S9"]
    assert of("machine3", "test") == (["S11"], [0, 64, 128], [0, 1, 2, 3], ["1", "2"])
    assert {sorted(parts)[0] for parts in PROTOCOLS.values()} == {"test"}
    assert describe("machine2")["views"] == [3] and describe("machine3", "train", step=5)["every_nth_frame"] == 5


def test_the_papers_numbers_of_pictures():
    """2 frames per second is what 104 pictures of a training sequence mean: 1.56 million frames in 600 of them."""
    frames, sequences = 1_559_752, 5 * 30 * 4
    assert round(frames / sequences / 25) == 104 == round(62_437 / sequences)


def test_protocols_refuse_a_table_that_lacks_their_frames():
    """Every 32nd and 64th frame, as Human3.6M is prepared for other papers, have one in 32 of every 25th."""
    thin = everyone(900).protocol(step=32)
    with pytest.raises(DataError, match=r"data/h36m \(train\): holds one frame in 32 of S1,.*one in 25,.*--train-step 25"):
        select(thin, "machine1", "train", source="data/h36m (train)")
    mixed = concat([everyone(130).protocol(["S1", "S5", "S6", "S7", "S8"], 25), everyone(130).protocol(["S9", "S11"], 64)])
    assert set(select(mixed, "machine1", "train").frame) == {0, 25, 50, 75, 100, 125}
    assert set(select(mixed, "machine3", "test").frame) == {0, 64, 128}
    assert set(select(mixed, "machine1", "train", step=50).frame) == {0, 50, 100}
    with pytest.raises(DataError, match="one frame in 64 of S9"):
        select(mixed, "machine3", "train")
    with pytest.raises(DataError, match="one frame in 64 of S11"):
        select(mixed, "machine1", "test")


def test_protocols_refuse_what_is_not_there():
    ann = everyone(2)
    with pytest.raises(ConfigError, match="machine4"):
        select(ann, "machine4", "test")
    with pytest.raises(ConfigError, match="valid"):
        select(ann, "machine1", "valid")
    with pytest.raises(DataError, match=r"no subjects \['S11'\]"):
        select(ann.protocol(["S9"]), "machine3", "test")
    with pytest.raises(DataError, match="no sequence is of the trials 1, there are 2"):
        select(replace(ann, subactions=np.array([b"2"] * len(ann.subactions))), "machine2", "test")
    with pytest.raises(DataError, match="no sequence is of the actions Walking, there are Eating"):
        select(ann, "machine1", "test", actions=["Walking"])
    assert len(select(ann, "machine1", "test", actions=["Eating"])) == 2 * 2 * 4


# --- mean limbs


def test_retargeting_keeps_directions_and_gives_lengths():
    ann = make(sequences=1, frames=20)
    skel, X = skeletons.get(SKELETON), ann.X_world.astype(np.float64)
    lengths = mean_lengths(X, SKELETON)
    np.testing.assert_allclose(lengths[skel.flip], lengths)
    both = (bone_lengths(X, SKELETON).mean(0) + bone_lengths(X, SKELETON).mean(0)[skel.flip]) / 2
    np.testing.assert_allclose(lengths, both)
    moved, valid = retarget(X, SKELETON, lengths)
    assert valid.all() and np.allclose(moved[:, skel.root_index], X[:, skel.root_index])
    np.testing.assert_allclose(bone_lengths(moved, SKELETON)[:, skel.bones[:, 1]], np.tile(lengths[skel.bones[:, 1]], (20, 1)))

    def directions(Y):
        bones = Y[:, skel.bones[:, 1]] - Y[:, skel.bones[:, 0]]
        return bones / np.linalg.norm(bones, axis=-1, keepdims=True)

    np.testing.assert_allclose(directions(moved), directions(X), atol=1e-9)
    slow = np.empty_like(X)  # joint by joint, from the root
    for joint in (order := sorted(range(skel.num), key=lambda j: len(path(skel, j)))):
        parent = skel.parents[joint]
        bone = X[:, joint] - X[:, parent]
        length = np.linalg.norm(bone, axis=-1, keepdims=True)
        slow[:, joint] = X[:, joint] if joint == parent else slow[:, parent] + bone / length * lengths[joint]
    assert order[0] == skel.root_index
    np.testing.assert_allclose(moved, slow, atol=1e-9)
    np.testing.assert_allclose(retarget(moved, SKELETON, lengths)[0], moved, atol=1e-9)


def path(skel, joint: int) -> list[int]:
    out = []
    while skel.parents[joint] != joint:
        out.append(joint)
        joint = skel.parents[joint]
    return out


def test_joints_behind_a_missing_one_are_lost():
    ann = make(sequences=1, frames=4)
    skel = skeletons.get(SKELETON)
    broken = edited(edited(ann, "X_valid", (1, skel.index("l_knee")), False), "X_world", (1, skel.index("l_knee")), np.nan)
    table, lengths = retargeted(broken)
    lost = {skel.joints[j] for j in np.flatnonzero(~table.X_valid[1])}
    assert lost == {"l_knee", "l_ankle"} and table.X_valid.sum() == 4 * skel.num - 2 and np.isfinite(table.X_world).all()
    assert np.array_equal(table.x_img, broken.x_img) and np.array_equal(retargeted(ann, lengths)[1], lengths)
    table.check("retargeted")
    with pytest.raises(DataError, match="expected 17 positive ones"):
        retarget(ann.X_world, SKELETON, np.zeros(17))
    with pytest.raises(DataError, match=r"shape \(4, 17, 3\).*expected \(N, 16, 3\)"):
        mean_lengths(ann.X_world, "h36m16")
    never = replace(ann, X_valid=np.where(np.arange(17) == skel.index("head"), False, ann.X_valid))
    with pytest.raises(DataError, match="no pose has the bone to head"):
        retargeted(never)
