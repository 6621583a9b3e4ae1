"""3DPW's sequence files and evaluation: recorded results, the embedded world, and what is wrong."""

import dataclasses
import io
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from lib.dataset import load
from lib.dataset.formats import threedpw as layout
from lib.dataset.image import read_image
from lib.errors import ConfigError, DataError
from lib.metrics.threedpw import ThreeDPWEvaluator, area_under_curve, within
from lib.skeleton import convert, get
from lib.synthetic.world import World
from scripts import prepare
from tests.conftest import golden

SIZE = (96, 80)
NAME = "downtown_arguing_00"


@pytest.fixture(scope="module")
def recorded():
    return golden("weakly_supervised", "threedpw_labels_metrics")


def content(g, **changes):
    """A sequence as 3DPW's files hold it, of recorded arrays."""
    return {
        "sequence": NAME,
        "jointPositions": list(g["jointPositions"]),
        "poses2d": list(g["poses2d"]),
        "campose_valid": list(g["campose_valid"]),
        "cam_poses": g["cam_poses"],
        "cam_intrinsics": g["cam_intrinsics"],
        "genders": ["m", "f"],
        "betas": [np.zeros(10)] * 2,
        "texture_maps": [np.zeros((4, 4, 3), np.uint8)] * 2,
        "img_frame_ids": np.arange(0, 2 * len(g["cam_poses"]), 2),
    } | changes


def put(root, data, name=NAME, split="test"):
    path = root / "sequenceFiles" / split / f"{name}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dumps(data))
    return path


def dumps(data):
    """A pickle as Python 2 writes it, whose texts and arrays are byte strings."""
    file = io.BytesIO()
    Python2(file, protocol=2).dump(data)
    return file.getvalue()


class Python2(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(text)

    dispatch[bytes] = dispatch[str] = save_text


@pytest.fixture
def tree(recorded, tmp_path):
    put(tmp_path, content(recorded))
    return tmp_path


@pytest.fixture(scope="module")
def world():
    return World(split="train", frames=6, length=3, people=2, size=SIZE, distortion=False)


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("threedpw")
    layout.write(world.annotations(), root, "train", world.image)
    return root


# --- recorded results


def test_labels_are_those_recorded(tree, recorded):
    ann = load("threedpw", tree, "test")
    kept = recorded["valid_mask"]
    assert ann.skeleton == "smpl24" and ann.fps == 30 and len(ann) == len(ann.X_world) == kept.sum() and set(ann.view) == {0}
    assert kept[ann.person, ann.frame].all()
    X_cam = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
    np.testing.assert_allclose(X_cam, 1000 * recorded["joints_cam_m"][ann.person, ann.frame], atol=2e-3)  # the table is float32
    np.testing.assert_allclose(ann.x_img, recorded["joints_px"][ann.person, ann.frame], atol=1e-3)
    assert ann.X_valid.all() and (ann.conf == 1).all()
    assert [ann.image_path(i) for i in range(len(ann))] == [f"imageFiles/{NAME}/image_{k:05d}.jpg" for k in ann.frame]
    center, side = (ann.box[:, :2] + ann.box[:, 2:]) / 2, ann.box[:, 2:] - ann.box[:, :2]
    low, high = ann.x_img.min(1), ann.x_img.max(1)
    np.testing.assert_allclose(side, np.repeat(1.25 * (high - low).max(1, keepdims=True), 2, 1), rtol=1e-4)
    np.testing.assert_allclose(center, (low + high) / 2, atol=1e-2)


def test_every_frame_has_its_own_camera(tree, recorded):
    ann = load("threedpw", tree, "test")
    assert len(ann.cameras) == len(set(ann.frame)) == len(ann.images)
    poses = recorded["cam_poses"][ann.frame]
    centers = -np.einsum("nij,ni->nj", poses[:, :3, :3], poses[:, :3, 3])
    turned = 1000 * np.stack([centers[:, 0], centers[:, 2], -centers[:, 1]], -1)  # z up
    np.testing.assert_allclose(ann.observing().center, turned, atol=1e-6)
    np.testing.assert_array_equal(ann.cameras.size, np.tile(np.round(2 * recorded["cam_intrinsics"][:2, 2]), (len(ann.cameras), 1)))


def test_mpii_labels_are_those_recorded_where_mpii_has_them(tree, recorded):
    ann = load("threedpw", tree, "test", skeleton="mpii16")
    X_cam = ann.observing().to_cam(torch.from_numpy(ann.X_world[ann.pose]).double()).numpy()
    valid = recorded["mpii16_valid"]
    np.testing.assert_array_equal(ann.X_valid[ann.pose], np.tile(valid, (len(ann), 1)))
    np.testing.assert_allclose(X_cam[:, valid], 1000 * recorded["mpii16_cam_m"][ann.person, ann.frame][:, valid], atol=2e-3)
    assert not ann.X_valid[:, get("mpii16").index("head")].any() and (ann.conf > 0).sum() == len(ann) * valid.sum()


def evaluated(recorded, pred, skeleton="smpl24", joints="", **options):
    """The report on every valid person-frame, the two actors standing for two sequences."""
    kept = np.argwhere(recorded["valid_mask"])
    truth = 1000 * recorded["joints_cam_m"][kept[:, 0], kept[:, 1]]
    truth, present = convert(truth, "smpl24", skeleton)
    pred, _ = convert(1000 * pred[kept[:, 0], kept[:, 1]], "smpl24", skeleton)
    evaluator = ThreeDPWEvaluator(skeleton, [f"sequence_{a}" for a in kept[:, 0]], joints, **options)
    for rows in np.array_split(np.arange(len(kept)), 2):
        batch = {"X_cam": torch.from_numpy(truth[rows]), "X_valid": torch.from_numpy(present)[None].expand(len(rows), -1)}
        evaluator.update({"X_cam": torch.from_numpy(pred[rows])}, batch | {"id": torch.from_numpy(rows)})
    return evaluator.compute()


def test_challenge_numbers_are_those_recorded(recorded):
    report = evaluated(recorded, recorded["pred_cam_m"])
    expected = {
        "mpjpe_mm": recorded["mpjpe_mm"],
        "pa_mpjpe_mm": recorded["pa_mpjpe_mm"],
        "pck50_percent": recorded["pck50"],
        "auc199_percent": 100 * recorded["auc_trapezoid"],
    }
    count = recorded["valid_mask"].sum(1)
    for name, value in expected.items():
        assert report.metrics[name] == pytest.approx(float(value), rel=1e-5), name
        rows = report.per_action[name]
        assert list(rows) == ["sequence_0", "sequence_1"]
        assert np.average(list(rows.values()), weights=count) == pytest.approx(float(value), rel=1e-5), name
    assert report.protocol["root"] == "pelvis" and report.protocol["joint_set"].startswith("24 joints of SMPL")
    assert "sequence_1" in report.table() and "pck50_percent" in report.table()


def test_area_under_the_curve_is_the_trapezoids(recorded):
    borders = torch.tensor([[0.0, 1, 50, 198.5, 199, 199.01, 200, 1e4, 5, 5, 5, 5]])
    errors = torch.cat([torch.rand(40, 12, dtype=torch.float64) * 260, borders])
    limits = np.arange(200)
    curve = (errors.numpy()[:, :, None] <= limits).mean(1)
    np.testing.assert_allclose(area_under_curve(errors), np.trapezoid(curve, limits / 199), rtol=1e-12)
    np.testing.assert_allclose(within(errors, 50), curve[:, 50])
    one = torch.tensor([[50.0, torch.nan], [torch.nan, torch.nan]])
    assert within(one, 50)[0] == 1 and within(one, 50)[1].isnan() and area_under_curve(one)[1].isnan()


def test_reports_name_their_joints(recorded):
    fourteen = evaluated(recorded, recorded["pred_cam_m"], joints="threedpw14")
    assert fourteen.protocol["joint_set"].startswith("14 of the 24 joints") and len(fourteen.protocol["joints"]) == 14
    assert fourteen.metrics["mpjpe_mm"] != pytest.approx(float(recorded["mpjpe_mm"]), rel=1e-3)
    assert fourteen.metrics["pck50_percent"] == pytest.approx(float(recorded["pck50"]), rel=1e-5)  # always over the twelve
    mpii = evaluated(recorded, recorded["pred_cam_m"], "mpii16")  # whose head has no truth
    assert mpii.protocol["joint_set"].startswith("15 joints of mpii16") and "head" not in mpii.protocol["joints"]
    mesh = evaluated(recorded, recorded["pred_cam_m"], "h36m_mesh17", "lsp14", mesh=True)  # this one has no head, either
    assert mesh.protocol["joint_set"].startswith("13 joints of") and mesh.protocol["truth"] == "regressed from the mesh"
    whole = ThreeDPWEvaluator("h36m17", ["a"], "lsp14", mesh=True)
    X = torch.randn(1, 17, 3)
    whole.update({"X_cam": X}, {"X_cam": X, "X_valid": torch.ones(1, 17), "id": torch.arange(1)})
    assert whole.compute().protocol["joint_set"] == "14 joints regressed from the mesh, as in the literature"
    with pytest.raises(ConfigError, match="lsp14.*needs head, which skeleton smpl24 lacks"):
        ThreeDPWEvaluator("smpl24", ["a"], "lsp14")


# --- who is kept


def test_people_behind_the_camera_or_outside_of_the_picture_are_dropped(recorded, tmp_path):
    g = {k: recorded[k].copy() for k in ("jointPositions", "cam_poses", "cam_intrinsics")}
    g |= {"poses2d": np.ones_like(recorded["poses2d"]), "campose_valid": np.ones_like(recorded["campose_valid"])}
    put(tmp_path, content(g))
    everyone = load("threedpw", tmp_path, "test")
    assert len(everyone) == recorded["valid_mask"].size
    X = g["jointPositions"].reshape(2, 4, 24, 3)
    R = g["cam_poses"][:, :3, :3]
    X[0, 1] -= 100 * R[1, 2]  # behind
    X[1, 2] += 100 * R[2, 0]  # far to the right
    g["cam_poses"][3] = 0  # no pose at all, though it is said to be trusted
    put(tmp_path, content(g))
    ann = load("threedpw", tmp_path, "test")
    assert sorted(zip(ann.person.tolist(), ann.frame.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 0), (1, 1)]


def test_a_broken_camera_of_a_frame_without_people_does_no_harm(recorded, tmp_path):
    poses, valid = recorded["cam_poses"].copy(), recorded["campose_valid"].copy()
    poses[2], valid[:, 2] = np.nan, 0
    put(tmp_path, content(recorded, cam_poses=poses, campose_valid=list(valid)))
    assert set(load("threedpw", tmp_path, "test").frame) <= {0, 1, 3}


def test_a_sequence_without_people_is_left_out(tree, recorded):
    put(tree, content(recorded, poses2d=[np.zeros((4, 3, 18))] * 2), "alley_00")
    assert [s.decode() for s in load("threedpw", tree, "test").subjects] == [NAME]
    with pytest.raises(DataError, match="nobody is detected before a trusted camera in 1 sequences of test"):
        load("threedpw", tree, "test", {"sequences": ["alley_00"]})


# --- splits, sequences, pictures, tables


def test_splits_and_sequences_are_chosen_by_name(tree, recorded):
    put(tree, content(recorded), "bar_01")
    put(tree, content(recorded), "courtyard_02", "validation")
    assert layout.splits(tree) == ["validation", "test"]
    both = load("threedpw", tree, "test")
    assert [s.decode() for s in both.subjects] == ["bar_01", NAME] and both.action(0) == "bar_01"
    assert len(load("threedpw", tree, "test", {"sequences": [NAME]})) * 2 == len(both)
    np.testing.assert_array_equal(load("threedpw", tree, "valid").x_img, load("threedpw", tree, "validation").x_img)
    with pytest.raises(DataError, match="split test has no cafe_00, it has bar_01, downtown_arguing_00"):
        load("threedpw", tree, "test", {"sequences": ["cafe_00"]})
    with pytest.raises(DataError, match="no split 'val', only train, validation, test"):
        load("threedpw", tree, "val")
    with pytest.raises(DataError, match="train: holds no sequence.*DATASET.ROOT"):
        load("threedpw", tree, "train")


def test_pictures_numbered_otherwise_are_taken_in_order(tree, world):
    import cv2

    folder = tree / "imageFiles" / NAME
    folder.mkdir(parents=True)
    for k in (1, 2, 9, 10):
        cv2.imwrite(str(folder / f"image_{k}.png"), np.zeros((1080, 1920, 3), np.uint8))
    ann = load("threedpw", tree, "test")
    names = [f"imageFiles/{NAME}/image_{k}.png" for k in (1, 2, 9, 10)]
    assert [ann.image_path(i) for i in range(len(ann))] == [names[k] for k in ann.frame]
    assert (ann.cameras.size == torch.tensor([1920.0, 1080.0])).all()
    (folder / "image_10.png").unlink()
    with pytest.raises(DataError, match="holds 3 images image_1.png ..., but the sequence has 4 frames"):
        load("threedpw", tree, "test")


def test_pictures_of_five_digits_may_count_from_one(tree):
    import cv2

    folder = tree / "imageFiles" / NAME
    folder.mkdir(parents=True)
    for k in (1, 2, 3, 4):
        cv2.imwrite(str(folder / f"image_{k:05d}.jpg"), np.zeros((1080, 1920, 3), np.uint8))
    ann = load("threedpw", tree, "test")
    assert [ann.image_path(i)[-9:-4] for i in range(len(ann))] == [f"{k + 1:05d}" for k in ann.frame]
    (folder / "image_00004.jpg").unlink()  # three of four: 3DPW's own, of which the first is missing
    ann = load("threedpw", tree, "test")
    assert [ann.image_path(i)[-9:-4] for i in range(len(ann))] == [f"{k:05d}" for k in ann.frame]


def test_large_files_are_parsed_once(tree, recorded, monkeypatch):
    monkeypatch.setattr(layout, "KEEP_FROM", 0)
    first = load("threedpw", tree, "test")
    kept = list((tree / ".tables").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith(f"test-{NAME}-")
    with monkeypatch.context() as m:
        m.setattr(layout, "labels", lambda path: pytest.fail("parsed again"))
        again = load("threedpw", tree, "test")
    for field in dataclasses.fields(first):
        if field.name != "cameras":
            np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert torch.equal(first.cameras.R, again.cameras.R)
    # a damaged table and another pickle of the same name are parsed anew
    kept[0].write_bytes(b"cut short")
    assert len(load("threedpw", tree, "test")) == len(first)
    path = put(tree, content(recorded, campose_valid=[np.array([0, 1, 0, 0]), np.zeros(4)]))
    os.utime(path, ns=(1, 1))
    assert len(load("threedpw", tree, "test")) == 1
    assert len(list((tree / ".tables").iterdir())) == 1 and list((tree / ".tables").iterdir()) != kept
    shutil.rmtree(tree / ".tables")
    (tree / ".tables").write_text("in the way")  # where nothing can be written, the files are parsed each time
    assert len(load("threedpw", tree, "test")) == 1
    assert len(load("threedpw", tree, "test", {"cache": ""})) == 1


# --- joints regressed from the mesh


def mesh_of(recorded):
    """(A,N,17,3) m, some way off the joints of the files."""
    X, present = convert(recorded["jointPositions"].reshape(2, 4, 24, 3), "smpl24", "h36m_mesh17")
    X[..., ~present, :] = X[..., :1, :]
    return X + 0.02


def test_joints_of_the_mesh_replace_those_of_the_files(tree, recorded):
    np.savez(tree / "mesh.npz", **{NAME: mesh_of(recorded)})
    ann = load("threedpw", tree, "test", {"mesh_joints": "mesh.npz"})
    plain = load("threedpw", tree, "test")
    assert ann.skeleton == "h36m_mesh17" and ann.X_valid.all()
    np.testing.assert_array_equal(ann.box, plain.box)
    h36m, own = ann.to_skeleton("h36m17"), plain.to_skeleton("h36m17")
    for joint in ("l_ankle", "r_wrist", "thorax"):
        j = get("h36m17").index(joint)
        offset = h36m.X_world[:, j] - own.X_world[:, j]
        np.testing.assert_allclose(offset, np.tile([20.0, 20.0, -20.0], (len(ann), 1)), atol=0.01)
    projected = ann.observing().project(torch.from_numpy(ann.X_world[ann.pose]).double())[0]
    np.testing.assert_allclose(ann.x_img, projected, atol=1e-3)


def test_joints_of_the_mesh_in_another_order_or_unit_are_refused(tree, recorded):
    good = mesh_of(recorded)
    wrong = {
        "l_knee lies .* mm from that of the sequence files": good[:, :, get("h36m_mesh17").flip],
        "l_knee lies .*the unit": 1000 * good,
        r"has shape \(2, 4, 14, 3\), expected \(2 or more, 4 or more, 17, 3\)": good[:, :, :14],
        r"has shape \(1, 4, 17, 3\)": good[:1],
    }
    for k, (message, value) in enumerate(wrong.items()):
        np.savez(tree / f"{k}.npz", **{NAME: value})
        with pytest.raises(DataError, match=message):
            load("threedpw", tree, "test", {"mesh_joints": f"{k}.npz"})
    np.savez(tree / "none.npz", other=good)
    with pytest.raises(DataError, match=f"has no array {NAME}"):
        load("threedpw", tree, "test", {"mesh_joints": "none.npz"})
    with pytest.raises(DataError, match="missing.npz: cannot be read"):
        load("threedpw", tree, "test", {"mesh_joints": "missing.npz"})


# --- the embedded world


def test_the_world_comes_back(written, world):
    ann, wrote = load("threedpw", written, "train"), world.annotations().to_skeleton("smpl24")
    names = [s.decode() for s in ann.subjects]
    assert len(names) == 8 and all(name.startswith("train_S") and name[-3:] in ("_c0", "_c1", "_c2", "_c3") for name in names)
    rows = {}
    for i in range(len(wrote)):
        s = wrote.sequence[i]
        words = ("train", wrote.subject(i), wrote.action(i), wrote.subactions[s].decode(), f"c{wrote.view[i]}")
        rows["_".join(words), int(wrote.frame[i]), int(wrote.person[i])] = i
    inside = wrote.observing().in_view(torch.from_numpy(wrote.X_world[wrote.pose]).double()).numpy() & wrote.X_valid[wrote.pose]
    detectable = world.annotations().to_skeleton("openpose18")
    size = np.array(SIZE)
    seen = ((detectable.conf > 0) & (detectable.x_img > -0.5).all(-1) & (detectable.x_img < size - 0.5).all(-1)).sum(1) >= 6
    assert len(ann) == seen.sum() > 30
    for i in range(len(ann)):
        j = rows[ann.subject(i), int(ann.frame[i]), int(ann.person[i])]
        known = wrote.X_valid[wrote.pose[j]]
        np.testing.assert_array_equal(ann.X_valid[ann.pose[i]], known)
        np.testing.assert_allclose(ann.X_world[ann.pose[i]][known], wrote.X_world[wrote.pose[j]][known], atol=1e-3)
        np.testing.assert_allclose(ann.x_img[i][known], wrote.x_img[j][known], atol=1e-2)
        np.testing.assert_array_equal(ann.visible[i], inside[j])
        a, b = ann.cameras[int(ann.camera[i])], wrote.cameras[int(wrote.camera[j])]
        torch.testing.assert_close(a.R, b.R, atol=1e-12, rtol=0)
        torch.testing.assert_close(a.t, b.t, atol=1e-9, rtol=0)
    row = rows[ann.subject(5), int(ann.frame[5]), int(ann.person[5])]
    difference = read_image(written / ann.image_path(5)).astype(int) - world.image(int(wrote.image[row]))
    assert np.abs(difference).mean() < 4  # JPEG
    assert layout.check(written) == []


def test_a_moving_camera_keeps_its_frames(recorded, tree, tmp_path):
    """What was read is written and read again; frames without people stay empty."""
    ann = load("threedpw", tree, "test")
    ann = dataclasses.replace(ann, frame=ann.frame + 2)
    layout.write(ann, tmp_path / "copy", "train")
    again = load("threedpw", tmp_path / "copy", "train")
    detectable = ann.to_skeleton("openpose18")
    size = 2 * np.round(recorded["cam_intrinsics"][:2, 2])
    inside = ((detectable.x_img > -0.5) & (detectable.x_img < size - 0.5)).all(-1) & (detectable.conf > 0)
    kept = inside.sum(1) >= 6
    assert [s.decode() for s in again.subjects] == [NAME] and kept.any()
    ours = np.lexsort([again.person, again.frame])
    wrote = np.flatnonzero(kept)[np.lexsort([ann.person[kept], ann.frame[kept]])]
    np.testing.assert_array_equal(again.frame[ours], ann.frame[wrote])
    np.testing.assert_allclose(again.x_img[ours], ann.x_img[wrote], atol=1e-2)
    told = layout.labels(tmp_path / "copy" / "sequenceFiles" / "train" / f"{NAME}.pkl")
    assert len(told.R) == ann.frame.max() + 1 and not told.tracked[:, :2].any()


def test_what_the_layout_cannot_hold_is_refused(world, written, tmp_path):
    ann = world.annotations()
    lens = dataclasses.replace(ann.cameras, dist=ann.cameras.dist + 0.01)
    zoom = dataclasses.replace(ann.cameras, K=ann.cameras.K * torch.linspace(1, 1.5, len(ann.cameras))[:, None, None].double())
    zoom.K[:, 2, 2] = 1
    refused = {
        "has no place in 3DPW, expected train, validation, test": (ann, "pretrain"),
        "knows no lens distortion": (dataclasses.replace(ann, cameras=lens), "train"),
        "one image and one camera for each frame": (dataclasses.replace(ann, view=np.zeros_like(ann.view)), "train"),
        "without 3D, camera or image": (dataclasses.replace(ann, pose=np.full_like(ann.pose, -1)), "train"),
        "a person comes twice": (dataclasses.replace(ann, person=np.zeros_like(ann.person)), "train"),
        "K changes over time": (
            dataclasses.replace(ann, cameras=zoom, camera=(ann.frame % len(zoom)).astype(np.int32)),
            "train",
        ),
    }
    for message, (table, split) in refused.items():
        with pytest.raises(DataError, match=message):
            layout.write(table, tmp_path, split)
        assert not any(tmp_path.rglob("*.pkl"))
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="train: exists already"):
        layout.write(ann, written, "train")
    assert before == {p: p.stat().st_mtime_ns for p in before}


# --- what is wrong


def test_damaged_files_are_told(tree, recorded):
    path = tree / "sequenceFiles" / "test" / f"{NAME}.pkl"
    good = path.read_bytes()
    wrong = {
        "has no cam_intrinsics, campose_valid|has no campose_valid, cam_intrinsics": {
            k: v for k, v in content(recorded).items() if k not in ("cam_intrinsics", "campose_valid")
        },
        "holds list, expected a sequence of 3DPW": [1, 2],
        r"cam_poses is not of shape \(frames, 4, 4\), it has \(4, 3, 4\)": content(recorded, cam_poses=np.zeros((4, 3, 4))),
        r"jointPositions is not of shape \(2, 4, 72\)": content(recorded, jointPositions=[np.zeros((4, 72)), np.zeros((3, 72))]),
        r"poses2d is not of shape \(2, 4, 3, 18\), it has \(2, 4, 18, 3\)": content(recorded, poses2d=np.zeros((2, 4, 18, 3))),
        "cam_intrinsics is not of shape": content(recorded, cam_intrinsics="K"),
        "cam_intrinsics is .*expected focal lengths": content(recorded, cam_intrinsics=np.zeros((3, 3))),
        "jointPositions is no list of actors": content(recorded, jointPositions=3),
    }
    for message, data in wrong.items():
        path.write_bytes(dumps(data))
        with pytest.raises(DataError, match=message):
            load("threedpw", tree, "test")
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=f"{NAME}.pkl: not a pickle, cut short or damaged"):
        load("threedpw", tree, "test")
    path.write_bytes(b"cos\nsystem\n(S'touch parallax-was-here'\ntR.")
    with pytest.raises(DataError, match="wants to call os.system"):
        load("threedpw", tree, "test")
    assert any("os.system" in sentence for sentence in layout.check(tree))


def test_the_key_may_be_spelled_as_in_the_text(tree, recorded):
    data = content(recorded)
    data["poses2D"] = data.pop("poses2d")
    before = load("threedpw", tree, "test")
    put(tree, data)
    np.testing.assert_array_equal(load("threedpw", tree, "test").x_img, before.x_img)


def test_check_tells_missing_images_and_units(written, tmp_path, capsys):
    assert prepare.main(["check", "threedpw", str(written)]) == 0
    assert "good: train: " in capsys.readouterr().out
    root = tmp_path / "copy"
    shutil.copytree(written, root)
    name = load("threedpw", root, "train").subject(0)
    shutil.rmtree(root / "imageFiles" / name)
    said = layout.check(root)
    assert len(said) == 1 and "images are missing" in said[0] and f"{name}/image_00000.jpg" in said[0]
    path = root / "sequenceFiles" / "train" / f"{name}.pkl"
    data = pickle.loads(path.read_bytes())  # our own
    put(tmp_path / "cm", data | {"jointPositions": [10 * X for X in data["jointPositions"]]})
    assert any("expected 200 to 650" in sentence for sentence in layout.check(tmp_path / "cm"))
    nothing = layout.check(tmp_path / "nothing")
    assert len(nothing) == 1 and "expected sequenceFiles/train/*.pkl" in nothing[0]
