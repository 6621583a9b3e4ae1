"""scripts/prepare.py and the embedded world in native layouts: what it makes, what it refuses, what it tells."""

import dataclasses
import json

import numpy as np
import pytest

from lib.config import load as load_config
from lib.dataset import load
from lib.dataset.formats import h36m, h36m_raw
from lib.errors import ConfigError, DataError
from lib.tasks import data
from lib.tasks.prepare import counts_table, damaged_sequences, prepare_labels, splits, spread
from lib.tasks.world import LAYOUTS, MARKER, ensure_native
from scripts import prepare, synth
from tests.conftest import ROOT

TINY = {"pretrain": 4, "train": 10, "valid": 4, "size": (64, 64), "workers": 1}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The official release of Human3.6M, of the embedded world."""
    root = tmp_path_factory.mktemp("release") / "official"
    ensure_native("h36m_raw", root, **TINY)
    return root


@pytest.fixture(scope="module")
def tree(release, tmp_path_factory):
    """What `prepare.py h36m` makes of it."""
    out = tmp_path_factory.mktemp("prepared") / "h36m"
    words = ["--release", str(release), "--out", str(out), "--train-step", "1", "--valid-step", "1"]
    assert prepare.main(["h36m", *words]) == 0
    return out


# ----------------------------------------------------------------------------------------------------- native layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_world_in_every_layout_is_read_and_kept(layout, tmp_path, capsys):
    root = tmp_path / layout
    words = ["--root", str(root), "--layout", layout, "--pretrain", "4", "--train", "5", "--valid", "2", "--size", "64", "64"]
    assert synth.main(words) == 0
    assert "complete in the layout" in capsys.readouterr().out
    for native in LAYOUTS[layout]:
        ann = load(layout, root, native.split, {"step": 1} if layout == "h36m_raw" else None)
        assert len(ann) and ((root / ann.image_path(0)).exists() or layout == "h36m_raw")  # whose images are still in videos
    stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file() and p.name != ".lock"}
    assert synth.main(words) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert synth.main([*words, "--seed", "1"]) == 2
    assert "holds another world: seed" in capsys.readouterr().err


def test_train_and_valid_of_mpii_are_different_people(tmp_path):
    ensure_native("mpii", tmp_path, pretrain=8, valid=8, size=(64, 64), workers=1)
    train, valid = (load("mpii", tmp_path, s) for s in ("train", "valid"))
    assert len(train) == len(valid) == 8
    assert not np.isclose(train.x_img[:, 6], valid.x_img[:, 6], atol=0.01).all(-1).any()


def test_real_data_are_never_touched(tmp_path):
    annotation = tmp_path / "annot" / "valid.pkl"
    annotation.parent.mkdir()
    annotation.write_bytes(b"the user's own")
    with pytest.raises(DataError, match="valid that is not of the embedded world.*SYNTH.NATIVE false"):
        ensure_native("h36m", tmp_path, **TINY)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["valid.pkl"]
    with pytest.raises(ConfigError, match="cannot be written as synthetic, only as h36m, "):
        ensure_native("synthetic", tmp_path, **TINY)


def test_one_folder_holds_one_layout(tmp_path):
    ensure_native("mpii", tmp_path, pretrain=4, valid=0, size=(64, 64), workers=1)
    with pytest.raises(DataError, match="in the layout mpii, expected h36m"):
        ensure_native("h36m", tmp_path, **TINY)
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(DataError, match="synthetic.json: damaged"):
        ensure_native("mpii", tmp_path, pretrain=4, valid=0, size=(64, 64), workers=1)


def test_a_split_that_was_not_finished_is_made_again(tmp_path):
    ensure_native("h36m", tmp_path, **TINY)
    before = load("h36m", tmp_path, "valid").x_img
    (tmp_path / "annot" / "valid.npz").unlink()
    for subject in ("S9", "S11"):
        for path in (tmp_path / "images" / subject).rglob("*.jpg"):
            path.unlink()
    ensure_native("h36m", tmp_path, **TINY)
    np.testing.assert_array_equal(load("h36m", tmp_path, "valid").x_img, before)


def test_native_data_come_by_the_configuration(tmp_path):
    changes = ["DATASET.ROOT", str(tmp_path / "w"), "SYNTH.TRAIN", "5", "SYNTH.VALID", "2", "SYNTH.SIZE", "[64,64]"]
    cfg = load_config(ROOT / "experiments/synthetic/h36m/train-s1.yaml", changes)
    ann = data.annotations(cfg, cfg.DATASET.TRAIN_SET, subjects=cfg.DATASET.SUBJECTS)
    assert ann.skeleton == "mpii16" and set(ann.subjects[ann.sequence]) == {b"S1"}
    with pytest.raises(ConfigError, match="MPII_ORDER: is true, but DATASET.SKELETON is h36m17"):
        data.skeleton_name(cfg.with_values({"DATASET.SKELETON": "h36m17"}))
    assert data.skeleton_name(cfg.with_values({"DATASET.SKELETON": "mpii16"})) == "mpii16"


# ---------------------------------------------------------------------------------------------------------- Human3.6M


def test_prepared_annotations_are_those_of_the_release(release, tree, capsys):
    for split, raw in (("train-fs", "train"), ("valid", "valid")):
        ours, truth = load("h36m", tree, split), h36m_raw.read(release, raw, step=1)
        np.testing.assert_allclose(ours.X_world[ours.pose], truth.X_world[truth.pose], atol=1e-3)
        np.testing.assert_allclose(ours.x_img, truth.x_img, atol=1e-3)
        assert all((tree / ours.image_path(i)).exists() for i in range(len(ours)))
        assert (tree / "annot" / f"{split}.png").stat().st_size > 10_000
    assert prepare.main(["check", "h36m", str(tree)]) == 0
    assert "good: train-fs: 40 people in 40 images, 4 views, 10 3D poses" in capsys.readouterr().out


def test_prepared_pickles_hold_the_published_numbers(release, tmp_path, tree):
    words = ["--release", str(release), "--out", str(tmp_path), "--valid-step", "1", "--subjects", "S9", "--no-images", "--form", "pickle"]
    assert prepare.main(["h36m", *words]) == 0
    assert [p.name for p in (tmp_path / "annot").iterdir()] == ["valid.pkl"]
    pinhole, ours = h36m.read(tmp_path, "valid"), h36m.read(tree, "valid", project="pinhole")
    ours = ours.protocol(["S9"])
    order = [{n.decode(): i for i, n in enumerate(pinhole.images[pinhole.image])}[ours.image_path(k)] for k in range(len(ours))]
    np.testing.assert_allclose(pinhole.x_img[order], ours.x_img, atol=0.02)


def test_prepare_refuses_before_it_works(release, tree, tmp_path, capsys):
    before = (tree / "annot" / "train-fs.npz").read_bytes()
    assert prepare.main(["h36m", "--release", str(release), "--out", str(tree)]) == 2
    assert "train-fs.npz: exists already" in capsys.readouterr().err
    assert (tree / "annot" / "train-fs.npz").read_bytes() == before
    assert prepare.main(["h36m", "--release", str(release), "--out", str(tmp_path / "n"), "--subjects", "S3"]) == 2
    assert "S3 is not in the release" in capsys.readouterr().err and not (tmp_path / "n").exists()
    assert prepare.main(["h36m", "--release", str(tmp_path), "--out", str(tmp_path / "n")]) == 2


def test_damaged_sequences_and_counts_are_told(tree):
    ann = load("h36m", tree, "valid")
    assert damaged_sequences(ann) == []
    names = np.array([n.replace(b"S9/Eating_1", b"S9/Greeting").replace(b"S11/Directions_1", b"S11/Directions") for n in ann.images])
    said = damaged_sequences(dataclasses.replace(ann, images=names))
    assert [s.split(":")[0] for s in said] == ["S11 Directions, camera 54138969", "S9 Greeting"]
    lines = counts_table(ann).splitlines()
    assert lines[0].split() == ["S11", "S9", "sum"] and lines[-1].split() == ["sum", "8", "8", "16"]
    rows = spread(ann, 8)
    assert len(rows) == 8 and set(ann.view[rows]) == {0, 1, 2, 3}


# --------------------------------------------------------------------------------------------------------------- MPII


@pytest.fixture
def mat(tmp_path):
    """A release of four images: two people, one of them without joints; one; one to test on; nobody."""
    sio = pytest.importorskip("scipy.io")
    rng = np.random.default_rng(0)

    def person(joints=16, **more):
        point = np.array([(*rng.uniform(1, 200, 2), i) for i in range(joints)], [("x", float), ("y", float), ("id", int)])
        head = {"x1": 10.0, "y1": 20.0, "x2": 40.0, "y2": 60.0}
        return {"scale": 1.5, "objpos": {"x": 100.0, "y": 120.0}, **head, **({"annopoints": {"point": point}} if joints else {}), **more}

    def image(name, rects):
        cells = np.zeros(len(rects), object)
        cells[:] = rects
        return {"image": {"name": name}, "annorect": cells if len(rects) != 1 else rects[0]}

    images = [image("a.jpg", [person(), person(0)]), image("b.jpg", [person(12)]), image("t.jpg", [person(0)]), image("e.jpg", [])]
    cells = np.zeros(4, object)
    cells[:] = images
    path = tmp_path / "release.mat"
    sio.savemat(path, {"RELEASE": {"annolist": cells, "img_train": np.array([1, 1, 0, 1])}})
    return path


def test_the_mat_file_of_mpii_becomes_json(mat, tmp_path, capsys):
    listed = tmp_path / "valid.txt"
    listed.write_text("b.jpg\n")
    out = tmp_path / "mpii"
    assert prepare.main(["mpii", "--mat", str(mat), "--out", str(out), "--valid-list", str(listed)]) == 0
    found = {s: load("mpii", out, s) for s in ("trainval", "train", "valid", "test")}
    assert {s: [found[s].image_path(i) for i in range(len(found[s]))] for s in found} == {
        "trainval": ["images/a.jpg", "images/b.jpg"], "train": ["images/a.jpg"], "valid": ["images/b.jpg"], "test": ["images/t.jpg"]
    }  # fmt: skip
    assert found["train"].conf.sum() == 16 and found["valid"].conf.sum() == 12 and found["test"].conf.sum() == 0
    assert found["valid"].head_px[0] == pytest.approx(0.6 * 50)  # of the diagonal
    assert (found["test"].box[0, 2] - found["test"].box[0, 0]) == pytest.approx(1.5 * 200 * 1.25)
    assert prepare.main(["mpii", "--mat", str(mat), "--out", str(out)]) == 2
    assert "trainval.json: exists already" in capsys.readouterr().err


def test_mistakes_with_mpii_are_told(mat, tmp_path, capsys):
    assert prepare.main(["mpii", "--mat", str(mat), "--out", str(tmp_path / "o")]) == 0
    assert "give --valid-list" in capsys.readouterr().out and not (tmp_path / "o/annot/valid.json").exists()
    (tmp_path / "list.txt").write_text("zebra.jpg\n")
    cases = {
        "no such file; unpack": ["--mat", "gone.mat"],
        "not MPII's release": ["--mat", str(tmp_path / "list.txt")],
        "zebra.jpg": ["--mat", str(mat), "--valid-list", str(tmp_path / "list.txt")],
        "gone.txt: cannot be read": ["--mat", str(mat), "--valid-list", "gone.txt"],
    }
    for words, arguments in cases.items():
        assert prepare.main(["mpii", *arguments, "--out", str(tmp_path / "p")]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "p").exists()


# -------------------------------------------------------------------------------------------------------------- check


def test_check_finds_what_is_wrong(tree, tmp_path, capsys):
    ann = load("h36m", tree, "train-fs")
    h36m.write(dataclasses.replace(ann, X_world=ann.X_world / 1000), tmp_path, "metres")
    order = np.array(h36m.skeletons.get(ann.skeleton).flip)
    h36m.write(dataclasses.replace(ann, X_world=ann.X_world[:, order], x_img=ann.x_img[:, order]), tmp_path, "mirrored")
    h36m.write(ann, tmp_path, "good")
    (tmp_path / "images").symlink_to(tree / "images")
    (tmp_path / "annot" / "broken.npz").write_bytes(b"no table")
    assert prepare.main(["check", "h36m", str(tmp_path)]) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert len(said) == 3, said
    assert any("metres" in s for s in said) and any("broken.npz: not an annotation table" in s for s in said)
    assert any("(mirrored): knees bend backwards" in s for s in said)
    assert prepare.main(["check", "h36m", str(tmp_path), "--split", "good"]) == 0
    assert prepare.main(["check", "h36m", str(tmp_path / "nowhere")]) == 1
    assert prepare.main(["check", "h37m", str(tmp_path)]) == 2
    assert "did you mean h36m" in capsys.readouterr().err


def test_layouts_tell_their_splits(tree, tmp_path):
    assert splits("h36m", tree) == ["train-fs", "valid"] and splits("mpii", tmp_path) == []
    for name in ("train.json", "mine.json", ".mine.1.part.json"):
        (tmp_path / "annot").mkdir(exist_ok=True)
        (tmp_path / "annot" / name).write_text("[]")
    assert splits("mpii", tmp_path) == ["mine", "train"]
    assert splits("synthetic", tmp_path / "nowhere") == []


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_need_a_task_a_layout_and_a_teacher():
    yaml = ROOT / "experiments/h36m"
    with pytest.raises(ConfigError, match="TASK: is integral.*labels.yaml"):
        prepare_labels(load_config(yaml / "train-ss.yaml"))
    with pytest.raises(ConfigError, match="is synthetic, but label files exist in the layout h36m only"):
        prepare_labels(load_config(ROOT / "experiments/synthetic/train-ss.yaml"))
    with pytest.raises(ConfigError, match="TEACHER: is empty"):
        prepare_labels(load_config(yaml / "labels.yaml", ["EPIPOLAR.TEACHER", ""]))
    with pytest.raises(ConfigError, match="TEACHER: no file 'models/mpii/mpii_integral.pth.tar'"):
        prepare_labels(load_config(yaml / "labels.yaml", ["DATASET.ROOT", "nowhere"]))


def test_rejected_joints_and_their_quality_are_stored(tree, tmp_path, capsys):
    ann = load("h36m", tree, "train-fs").to_skeleton("mpii16")
    wrist = h36m.skeletons.get("mpii16").index("l_wrist")
    x = ann.x_img.copy()
    x[(ann.pose % 2 == 0) & (ann.view > 0), wrist] += [25, 15]  # three of four cameras: nothing agrees any more
    x[(ann.pose % 2 == 0) & (ann.view == 2), wrist] -= [60, 5]
    h36m.write(dataclasses.replace(ann, x_img=x), tmp_path, "train-fs")
    (tmp_path / "images").symlink_to(tree / "images")
    words = ["DATASET.ROOT", str(tmp_path), "EPIPOLAR.THRESHOLD_PX", "3", "DEVICE=cpu", "MODEL.EXTRA.NUM_LAYERS=18", "DATASET.OPTIONS={}"]
    assert prepare.main(["labels", "--cfg", str(ROOT / "experiments/h36m/labels-2dgt.yaml"), *words]) == 0
    assert "of the joints have a label" in capsys.readouterr().out
    made = h36m.read(tmp_path, "train-ss-2dgt")
    bad = made.conf[:, wrist] == 0
    assert 0.3 < bad.mean() < 0.7 and not made.X_valid[made.pose][bad, wrist].any()
    assert (np.delete(made.conf, wrist, 1) == 1).all()
    stored = json.loads((tmp_path / "annot/train-ss-2dgt.quality.json").read_text())
    assert stored["made"]["teacher"] == "annotation"
    assert stored["quality"]["joints"]["l_wrist"]["kept"] == pytest.approx(1 - bad.mean())
    assert stored["quality"]["joints"]["r_wrist"]["kept"] == 1
    # neither the other form nor what lies beside a missing table may mix with labels of other options
    kept = {path.name: path.read_bytes() for path in (tmp_path / "annot").iterdir()}
    labels = ["labels", "--cfg", str(ROOT / "experiments/h36m/labels-2dgt.yaml"), "--form", "pickle"]
    for gone in ((), ("train-ss-2dgt.npz",), ("train-ss-2dgt.npz", "train-ss-2dgt.quality.json")):
        for name in gone:
            (tmp_path / "annot" / name).unlink(missing_ok=True)
        assert prepare.main([*labels, *words]) == 2
        assert "exists already and is never overwritten" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in (tmp_path / "annot").iterdir()} == {n: b for n, b in kept.items() if n not in gone}


def test_pss_clusters(tree, tmp_path, capsys):
    words = ["pss", "--cfg", str(ROOT / "experiments/h36m/train.yaml"), "--clusters", "5", "DATASET.ROOT", str(tree)]
    assert prepare.main(words) == 0
    assert "pss-h36m17-5.npz: written" in capsys.readouterr().out
    assert prepare.main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    ann = load("h36m", tree, "train-fs")
    for split in ("train-ss-mine", "mine"):  # by its name, or by what prepare.py labels wrote beside it
        h36m.write(ann, tmp_path, split)
    (tmp_path / "annot" / "mine.quality.json").write_text("{}")
    for split in ("train-ss-mine", "mine"):
        assert prepare.main([*words[:-1], str(tmp_path), "--split", split]) == 2
        assert f"{split} of {tmp_path} holds triangulated labels, expected true 3D joints; give" in capsys.readouterr().err
    assert not list(tmp_path.glob("pss-*"))
