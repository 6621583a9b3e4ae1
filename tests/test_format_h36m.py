"""Human3.6M as published: records of restricted pickles, our own table, both spellings, damaged and hostile files."""

import json
import pickle
import pickletools
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import unpickle
from lib.dataset import load
from lib.dataset.formats import h36m
from lib.dataset.image import read_image
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.synthetic.world import World
from tests.conftest import golden

SIZE = (64, 48)


@pytest.fixture(scope="module")
def world() -> World:
    return World(split="valid", frames=3, size=SIZE, length=2)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("h36m")
    ann = world.annotations()
    h36m.write(ann, root, "valid", world.image)
    h36m.write(ann, root, "flat", form="pickle")
    h36m.write(ann, root, "dict", form="pickle", per_camera=True)
    return root


def same_but(a, b, skip=()):
    """Both tables hold the same rows, whatever the numbers of their cameras and images."""
    for field in ("frame", "view", "person", "X_world", "X_valid", "x_img", "conf", "box"):
        if field not in skip:
            assert np.allclose(getattr(a, field), getattr(b, field), atol=2e-3), field
    for i in range(len(a)):
        assert (a.subject(i), a.action(i)) == (b.subject(i), b.action(i))
        one, two = a.cameras[int(a.camera[i])], b.cameras[int(b.camera[i])]
        for field in ("K", "R", "t", "dist"):
            if field not in skip:
                assert np.allclose(getattr(one, field), getattr(two, field), atol=1e-9), field


def records(path: Path) -> list[dict]:
    """The records of a flat list, with cameras that can be written again."""
    data, cameras = unpickle.load(path, (h36m.CAMERA_CLASS,)), {}
    for record in data:
        old = record["cam"]
        record["cam"] = cameras.setdefault(id(old), h36m.Camera.__new__(h36m.Camera))
        vars(record["cam"]).update(vars(old))
    return data


def dump(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        h36m._Pickler(file, protocol=2).dump(value)
    return path


def test_the_table_survives(world, made):
    wrote, got = world.annotations(), load("h36m", made, "valid")
    same_but(wrote, got)
    assert np.array_equal(wrote.visible, got.visible) and got.fps == wrote.fps
    name = got.image_path(5)
    assert name == "images/S9/Directions_1.55011271/000002.jpg"
    assert np.abs(read_image(made / name).astype(int) - world.image(5)).mean() < 8


@pytest.mark.parametrize("split", ["flat", "dict"])
def test_records_survive(world, made, split):
    wrote = world.annotations()
    got = h36m.read(made, split, project="distorted", tangential="opencv")
    order = np.lexsort([got.view, got.frame, got.sequence])
    got = got.select(order)
    same_but(wrote, got)
    assert got.subactions.tolist() == wrote.subactions.tolist()
    assert np.allclose(got.cameras.size, torch.tensor(SIZE, dtype=torch.float64))  # from the images
    # the four views of an instant share their pose
    rows, starts = got.group("sequence", "frame")
    assert all(len(set(got.pose[rows[a:b]])) == 1 for a, b in zip(starts[:-1], starts[1:], strict=True))
    assert len(got.X_world) == len(starts) - 1


def test_published_labels_are_those_of_a_pinhole(world, made):
    wrote = world.annotations()
    got = h36m.read(made, "flat")
    x_img, _ = wrote.cameras[torch.from_numpy(wrote.camera).long()].project(torch.from_numpy(wrote.X_world[wrote.pose]).double(), False)
    assert np.allclose(got.x_img, x_img, atol=1e-3) and not got.cameras.dist.any()
    assert np.abs(got.x_img - wrote.x_img).max() > 0.05  # the lens matters
    assert np.allclose(h36m.read(made, "flat", project="stored").x_img, got.x_img, atol=1e-3)
    again = h36m.read(made, "valid", project="pinhole")
    assert np.allclose(again.x_img, got.x_img, atol=1e-3) and not again.cameras.dist.any()
    official = h36m.read(made, "flat", project="distorted").x_img
    assert 0 < np.abs(official - wrote.x_img).max() < 0.05  # px: the release's formula lacks a factor 2


def test_the_original_can_read_what_is_written(made, monkeypatch):
    """Its unpickler finds a class Camera in a module lib.utils.cameras."""

    class Camera:
        pass

    module = types.ModuleType("lib.utils.cameras")
    module.Camera, Camera.__module__, Camera.__qualname__ = Camera, "lib.utils.cameras", "Camera"
    monkeypatch.setitem(__import__("sys").modules, "lib.utils", types.ModuleType("lib.utils"))
    monkeypatch.setitem(__import__("sys").modules, "lib.utils.cameras", module)
    data = pickle.loads((made / "annot" / "dict.pkl").read_bytes())
    assert sorted(data) == [1, 2, 3, 4] and len({len(v) for v in data.values()}) == 1
    record = data[2][0]
    assert set(record) >= {
        "image", "center_x", "center_y", "width", "height", "joints_3d", "joints_3d_vis", "joints_3d_cam", "pelvis", "fl", "c_p",
        "flip_pairs", "parent_ids", "action", "subject", "cam",
    }  # fmt: skip
    cam = record["cam"]
    assert type(cam) is Camera and cam.name == "55011271"
    assert set(vars(cam)) == {
        "cam_params", "R", "T", "f", "c", "k", "p", "name", "camera_matrix", "dist_coeffs", "tvec", "projection_matrix",
    }  # fmt: skip
    X_world = record["joints_3d_cam"] @ cam.R + cam.T.T
    x = np.c_[X_world, np.ones(17)] @ cam.projection_matrix.T
    assert np.allclose(x[:, :2] / x[:, 2:], record["joints_3d"][:, :2])
    assert np.allclose(record["joints_3d"][:, 2], record["joints_3d_cam"][:, 2] - record["pelvis"][2])
    names = {arg for op, arg, _ in pickletools.genops((made / "annot" / "dict.pkl").read_bytes()) if op.name == "GLOBAL"}
    assert not any("numpy._core" in str(name) or "formats" in str(name) for name in names)  # NumPy 1 knows numpy.core only
    assert [data[k][0]["image"] for k in data] == [h36m.image_name("S9", "Directions_1", v, 0) for v in range(4)]


def test_sixteen_joints_and_what_can_be_left_out(made, tmp_path):
    ann = h36m.read(made, "valid").to_skeleton("mpii16")
    h36m.write(ann, tmp_path, "train-ss", form="pickle")
    path = tmp_path / "annot" / "train-ss.pkl"
    data = records(path)
    for record in data:
        del record["joints_3d_cam"], record["action"]
        record["image"] = "h36m/" + record["image"].replace("Directions_1", "TakingPhoto_1")
        record["cam"] = dict(vars(record["cam"]))
        record["fl"], record["c_p"] = record["fl"].reshape(-1).tolist(), record["c_p"].reshape(1, 2)
    got = h36m.read(dump(tmp_path / "b" / "annot" / "x.pkl", data).parents[1], "x")
    assert got.skeleton == "mpii16" and np.allclose(got.X_world, ann.X_world, atol=0.01)
    assert got.action(0) == "Photo" and got.image_path(0) == "images/S9/TakingPhoto_1.54138969/000001.jpg"
    (tmp_path / "b" / "images" / "S9" / "Photo_1.54138969").mkdir(parents=True)
    assert h36m.read(tmp_path / "b", "x").image_path(0) == "images/S9/Photo_1.54138969/000001.jpg"
    (tmp_path / "b" / "images" / "S9" / "TakingPhoto_1.54138969").mkdir()
    assert h36m.read(tmp_path / "b", "x").image_path(0) == "images/S9/TakingPhoto_1.54138969/000001.jpg"


@pytest.mark.parametrize(("path", "place"), [
    ("h36m/images/S1/Photo_1.58860488/000781.jpg", ("S1", "Photo_1", 2, 780)),
    ("images/S11/WalkingDog.54138969/000001.jpg", ("S11", "WalkDog", 0, 0)),
    ("S1/S1_Directions_1.54138969/S1_Directions_1.54138969_000001.jpg", ("S1", "Directions_1", 0, 0)),
    ("s_09_act_05_subact_02_ca_01/s_09_act_05_subact_02_ca_01_000001.jpg", ("S9", "Greeting_2", 0, 0)),
    ("images/S1/Photo_1.12345678/000781.jpg", None),
    ("a.jpg", None),
])  # fmt: skip
def test_image_paths(path, place):
    assert h36m.parse_path(path) == place


SPOIL = {
    "a missing field": (lambda r: r[3].pop("center_x"), r"record 3: center_x is missing"),
    "a field of another shape": (lambda r: r[2].update(joints_3d=np.zeros((17, 2))), r"record 2: joints_3d has shape \(17, 2\)"),
    "neither camera joints nor pelvis": (
        lambda r: (r[1].pop("joints_3d_cam"), r[1].pop("pelvis")),
        "record 1 has neither joints_3d_cam nor pelvis",
    ),
    "another number of joints": (lambda r: r[0].update(joints_3d=np.zeros((14, 3))), "14 rows, expected 17 .*or 16"),
    "no camera": (lambda r: r[4].pop("cam"), r"record 4 has no camera"),
    "an unknown path": (lambda r: r[0].update(image="holiday.jpg"), r"holiday.jpg' does not tell subject"),
    "a centre in metres": (
        lambda r: [setattr(c, "T", c.T / 1000) for c in {id(x["cam"]): x["cam"] for x in r}.values()],
        r"mm apart \(median\).*centre in mm, not in metres",
    ),
}


@pytest.mark.parametrize("what", SPOIL)
def test_records_that_do_not_fit_are_named(made, tmp_path, what):
    spoil, text = SPOIL[what]
    data = records(made / "annot" / "flat.pkl")
    spoil(data)
    with pytest.raises(DataError, match=text):
        h36m.read(dump(tmp_path / "annot" / "x.pkl", data).parents[1], "x")


def test_views_that_disagree_are_told(made, tmp_path, caplog):
    data = records(made / "annot" / "flat.pkl")
    data[1]["joints_3d"] = data[1]["joints_3d"] + [0, 0, 30]
    h36m.read(dump(tmp_path / "annot" / "x.pkl", data).parents[1], "x")
    assert "1 of 12 records differ by more than 5 mm" in caplog.text


@pytest.mark.parametrize("project", ["", "stored", "distorted"])
def test_labels_of_joints_3d_count_where_they_are_not_those_of_joints_3d_cam(made, tmp_path, caplog, project):
    """The release trains on joints_3d; here one joint of each record was moved there, as triangulated labels are."""
    h36m.write(h36m.read(made, "valid").to_skeleton("mpii16"), tmp_path, "train-ss", form="pickle")
    data = records(tmp_path / "annot" / "train-ss.pkl")
    truth = h36m.read(tmp_path, "train-ss", project=project)
    assert "joints_3d_cam" not in caplog.text  # what agrees is told of nobody
    for record in data:  # the place of the joint in space moves, and so its label in every view
        X_cam = record["joints_3d_cam"].copy()
        X_cam[3] += record["cam"].R @ [90.0, -60, 120]
        uv = X_cam[:, :2] / X_cam[:, 2:] * record["fl"].reshape(-1) + record["c_p"].reshape(-1)
        record["joints_3d"] = np.c_[uv, X_cam[:, 2] - record["pelvis"][2]]
    got = h36m.read(dump(tmp_path / "b" / "annot" / "x.pkl", data).parents[1], "x", project=project)
    assert f"{len(data)} joints of {len(data)} of {len(data)} records lie elsewhere in joints_3d" in caplog.text
    moved = np.zeros((16, 3))
    moved[3] = [90, -60, 120]
    assert np.allclose(got.X_world, truth.X_world + moved, atol=0.01)  # also in depth
    expected = got.observing().project(torch.from_numpy(got.X_world[got.pose]).double(), True, "h36m")[0].numpy()
    assert np.allclose(got.x_img, expected, atol=1e-3)
    assert any("joints" in text for text in h36m.check(tmp_path / "b", "x"))  # the two are still told apart


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused_by_name_and_run_nothing(tmp_path, protocol):
    import os

    path = tmp_path / "annot" / "x.pkl"
    path.parent.mkdir()
    mark = tmp_path / "mark"
    for call, arguments, name in (
        (os.system, (f"touch {mark}",), r"(posix|nt)\.system"),
        (eval, (f"open({str(mark)!r}, 'w')",), r"builtins\.eval|__builtin__\.eval"),
        (np.load, (str(mark),), r"numpy.*load"),
        (torch.load, (str(mark),), r"torch.*load"),
    ):
        path.write_bytes(pickle.dumps([{"image": "a", "cam": Evil(call, *arguments)}], protocol))
        with pytest.raises(DataError, match=f"wants to call ({name}).*nothing was run"):
            h36m.read(tmp_path, "x")
    # attributes of an allowed class, and a name with dots, are other names
    path.write_bytes(b"\x80\x04\x8c\x11lib.utils.cameras\x8c\x0fCamera.__init__\x93.")
    with pytest.raises(DataError, match="wants to call"):
        h36m.read(tmp_path, "x")
    assert not mark.exists()


@pytest.mark.parametrize("stream", [
    b"cnumpy.core.multiarray\nscalar\n(N}S'__defaults__'\n(I1\nI2\ntstb.",  # attributes of a function
    b"clib.utils.cameras\nCamera\n(N}S'__init__'\nI1\nstb.",  # ... of a class
    b"ccollections\nOrderedDict\n(N}S'get'\nI1\nstb.",
    b"cnumpy\nndarray\n(tR.",  # called, though it only marks a place
    b"ccopy_reg\n_reconstructor\n(cnumpy\ndtype\nc__builtin__\nobject\nNtR.",
    b"c__builtin__\nbytearray\n(tR.",
    b"Pname\n.",  # a persistent id
])  # fmt: skip
def test_what_is_allowed_cannot_be_misused(tmp_path, stream):
    from collections import OrderedDict

    (tmp_path / "a.pkl").write_bytes(stream)
    with pytest.raises(DataError, match="a.pkl"):
        unpickle.load(tmp_path / "a.pkl", (h36m.CAMERA_CLASS,))
    assert OrderedDict().get(1) is None and unpickle._scalar.__defaults__ is None


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickles_of_any_protocol(tmp_path, protocol):
    value = {
        "a": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "s": [np.float64(2.5), np.int64(3), np.bool_(True), np.array("text")],
        "o": np.array([1, "b", None, np.arange(2)], dtype=object),
        "e": np.zeros((0, 3)),
        "t": (1, np.arange(3), b"bytes"),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    got = unpickle.load(tmp_path / "a.pkl")
    assert np.array_equal(got["a"], value["a"]) and np.array_equal(got["f"], value["f"]) and got["e"].shape == (0, 3)
    assert got["s"][:3] == [2.5, 3, True] and str(got["s"][3]) == "text"
    assert got["o"][:3].tolist() == [1, "b", None] and np.array_equal(got["o"][3], [0, 1])
    assert np.array_equal(got["t"][1], [0, 1, 2]) and got["t"][2] == b"bytes"


def test_numpy_1_and_python_2_names(tmp_path):
    array = np.arange(3.0)
    modern = pickle.dumps([array, array[0]], 2)
    for old in (b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"):
        stream = modern.replace(b"cnumpy._core.multiarray\n", old).replace(b"cnumpy.core.multiarray\n", old)
        (tmp_path / "a.pkl").write_bytes(stream)
        got = unpickle.load(tmp_path / "a.pkl")
        assert np.array_equal(got[0], array) and got[1] == 0
    stream = b"ccopy_reg\n_reconstructor\n(clib.utils.cameras\nCamera\nc__builtin__\nobject\nNtR(dS'name'\nS'c1'\nsb."
    (tmp_path / "a.pkl").write_bytes(stream)
    assert unpickle.load(tmp_path / "a.pkl", (h36m.CAMERA_CLASS,)).name == "c1"


@pytest.mark.parametrize("cut", [0, 1, 40, 4000])
def test_damaged_files_are_named(made, tmp_path, cut):
    (tmp_path / "annot").mkdir()
    for name in ("flat.pkl", "valid.npz"):
        (tmp_path / "annot" / name).write_bytes((made / "annot" / name).read_bytes()[:cut])
        with pytest.raises(DataError, match=name):
            h36m.read(tmp_path, Path(name).stem)


def test_cameras_and_numbers_that_cannot_be(made, tmp_path):
    data = records(made / "annot" / "flat.pkl")
    data[3]["fl"] = np.array([[1000.0], [0.0]])
    dump(tmp_path / "annot" / "x.pkl", data)
    with pytest.raises(DataError, match=r"x.pkl: record 3: focal lengths \(fl or cam.f\) \[1000.0, 0.0\] px, expected positive"):
        h36m.read(tmp_path, "x")
    data[3]["fl"], data[3]["cam"].R = np.array([1000.0, 1000.0]), np.zeros((3, 3))
    dump(tmp_path / "annot" / "x.pkl", data)
    with pytest.raises(DataError, match="x.pkl: Cameras.R is not a rotation"):
        h36m.read(tmp_path, "x")
    for ragged, rows in (([[1, 2], [3]], 2), (np.array(1.0), 0), (None, 0)):
        data[0]["joints_3d"] = ragged
        dump(tmp_path / "annot" / "x.pkl", data)
        with pytest.raises(DataError, match=f"x.pkl: record 0: joints_3d has {rows} rows, expected 17"):
            h36m.read(tmp_path, "x")
    data[3]["fl"] = np.array([1000.0, 1000.0j])
    dump(tmp_path / "annot" / "x.pkl", data)
    np.savez(tmp_path / "x.npz", boxes=np.zeros(3, np.complex64))
    for read in (lambda: h36m.read(tmp_path, "x"), lambda: unpickle.load_npz(tmp_path / "x.npz")):
        with pytest.raises(DataError, match=r"type complex\d+; expected real numbers"):
            read()


def test_damaged_bytes_raise_nothing_else(made, tmp_path):
    whole = (made / "annot" / "flat.pkl").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[:6000])
        for at in rng.integers(0, len(data), 4):
            data[at] = rng.integers(256)
        (tmp_path / "a.pkl").write_bytes(data)
        with pytest.raises(DataError):
            unpickle.load(tmp_path / "a.pkl", (h36m.CAMERA_CLASS,))


def test_nothing_is_overwritten(world, made, tmp_path):
    ann = world.annotations()
    with pytest.raises(DataError, match=r"valid.npz: exists already"):
        h36m.write(ann, made, "valid", world.image)
    with pytest.raises(DataError, match=r"000001.jpg: exists already"):
        h36m.write(ann, made, "again", world.image)
    assert not (made / "annot" / "again.npz").exists()
    assert not [p for p in made.rglob("*.part*")]

    def broken(i: int):
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="No space left"):
        h36m.write(ann, tmp_path, "valid", broken)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_what_the_layout_cannot_hold(tmp_path):
    with pytest.raises(DataError, match="two images would get this name|one person|shows"):
        h36m.write(World(split="train", frames=1, people=2, size=SIZE).annotations(), tmp_path, "a", form="pickle")
    with pytest.raises(DataError, match="view 4: Human3.6M has the cameras"):
        h36m.write(World(split="train", frames=1, rig="panoptic5", size=SIZE).annotations(), tmp_path, "a")
    with pytest.raises(DataError, match="subject 'P001'"):
        h36m.write(World(split="pretrain", frames=1, size=SIZE).annotations(), tmp_path, "a")
    with pytest.raises(DataError, match="has no split 'train' .*only none"):
        h36m.read(tmp_path, "train")


def test_check_tells_what_is_wrong(made, tmp_path):
    assert h36m.check(made) == []
    assert "no annotations" in h36m.check(tmp_path)[0]
    data = records(made / "annot" / "flat.pkl")
    for record in data:
        record["joints_3d_cam"], record["cam"].T = record["joints_3d_cam"] / 1000, record["cam"].T / 1000
        record["cam"].R = record["cam"].R
    dump(tmp_path / "annot" / "metres.pkl", data)
    said = "\n".join(h36m.check(tmp_path))
    assert "12 of 12 images are missing" in said and "(metres?)" in said
    data = records(made / "annot" / "flat.pkl")
    dump(tmp_path / "annot" / "twice.pkl", data + data[:2])
    assert "2 records are repeated (S9 Directions, frame 1, camera 54138969)" in "\n".join(h36m.check(tmp_path, "twice"))
    data[3]["center_x"] = "left"
    dump(tmp_path / "annot" / "text.pkl", data)
    assert "record 3: center_x" in h36m.check(tmp_path, "text")[0]


def read_body3d(folder: Path) -> dict[str, np.ndarray]:
    """test_h36m_body3d.npz: image paths (2,), joints u v visible (2,17,3), joints in camera axes (2,17,3) mm."""
    with np.load(folder / "test_h36m_body3d.npz", allow_pickle=False) as file:
        return {"image": file["imgname"], "part": file["part"], "X_cam": file["S"][..., :3] * 1000.0}


def test_real_joints_project_where_the_real_images_show_them(samples):
    data = read_body3d(samples / "h36m")
    known = json.loads((samples / "h36m" / "camera-parameters.json").read_text())
    for name, part, X_cam in zip(data["image"], data["part"], data["X_cam"], strict=True):
        place = h36m.parse_path(str(name))
        inner, outer = known["intrinsics"][h36m.CAMERA_IDS[place.view]], known["extrinsics"][place.subject][h36m.CAMERA_IDS[place.view]]
        camera = Cameras.make(
            torch.tensor(inner["calibration_matrix"]), torch.tensor(outer["R"]), torch.tensor(outer["t"])[:, 0], inner["distortion"],
            dtype=torch.float64,
        )  # fmt: skip
        X = torch.from_numpy(X_cam)

        def error(*lens, X=X, camera=camera, part=part) -> float:
            return float(np.linalg.norm(camera.project_cam(X, *lens).numpy() - part[:, :2], axis=-1).max())

        assert error(True, "h36m") < 0.001 < error(True, "opencv") < 0.07 < 1 < error(False)  # px


def test_real_names_and_skeleton(samples):
    data = read_body3d(samples / "h36m")
    assert [h36m.parse_path(str(n))[:2] for n in data["image"]] == [("S1", "Directions_1"), ("S5", "SittingDown")]
    assert [h36m.parse_path(str(n)).frame for n in data["image"]] == [0, 2060]
    assert all((samples / "h36m" / str(n)).exists() for n in data["image"])


def test_a_missing_pickle(tmp_path):
    with pytest.raises(DataError, match="none.pkl: cannot be read"):
        unpickle.load(tmp_path / "none.pkl")


def test_golden_records(tmp_path):
    """The fields of the original's own projection: world joints, pinhole and distorted 2D joints."""
    g = golden("epipolarpose", "projection")
    data = []
    for i, (subject, camera) in enumerate(g["subject_cam"]):
        cam = h36m.Camera.__new__(h36m.Camera)
        vars(cam).update({name: g[name][i] for name in "RTfckp"})
        center_x, center_y, width, height = g["center_w_h"][i]
        data.append({
            "image": f"S{subject}/Walking.{h36m.CAMERA_IDS[camera]}/{i + 1:06d}.jpg", "cam": cam, "pelvis": g["pelvis"][i],
            "joints_3d": g["joints_3d"][i], "joints_3d_vis": np.ones((17, 3)), "fl": g["f"][i], "c_p": g["c"][i],
            "center_x": center_x, "center_y": center_y, "width": width, "height": height,
        })  # fmt: skip
    dump(tmp_path / "annot" / "x.pkl", data)
    got = h36m.read(tmp_path, "x")
    assert np.allclose(got.X_world[got.pose], g["world"], atol=0.01)
    assert np.allclose(got.x_img, g["joints_3d"][..., :2], atol=1e-3)
    assert np.allclose(h36m.read(tmp_path, "x", project="distorted").x_img, g["proj_radial"], atol=1e-3)
    assert np.allclose((got.box[:, 0] + got.box[:, 2]) / 2, g["center_w_h"][:, 0], atol=1e-3)
    assert np.allclose(got.box[:, 3] - got.box[:, 1], g["center_w_h"][:, 3], atol=1e-3)
