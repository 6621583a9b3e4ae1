"""Calibrations of other programs: real files, files written here, and what a report says about them."""

import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from lib.dataset import calibrations as cal
from lib.dataset.opencv_files import read_storage
from lib.errors import DataError
from lib.geometry.camera import Cameras
from scripts import prepare
from tests import tiny_dataset

FIELDS = ("K", "R", "t", "dist", "size")
FIVE = ("00_03", "00_06", "00_12", "00_13", "00_23")
NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def rig():
    return tiny_dataset.rig(4)


def apart(a, b, fields=FIELDS):
    return {f: float((getattr(a, f) - getattr(b, f)).abs().max()) for f in fields}


def same(a, b, atol=1e-9, fields=FIELDS):
    worst = apart(a, b, fields)
    assert max(worst.values()) < atol, worst


def rodrigues(R):
    return cv2.Rodrigues(R.numpy())[0].ravel()


# --- real files


def test_voxelpose_form_follows_from_the_native_file(samples):
    native = cal.read_calibration(samples / "panoptic/160906_band1/calibration_160906_band1.json", cameras=FIVE)
    five = cal.read_calibration(samples / "panoptic/five_views/calibration.json")
    assert native.unit == "cm" and not native.guessed and five.unit == "mm" and five.names == ("0", "1", "2", "3", "4")
    same(native.cameras, five.cameras, 1e-6, ("K", "R", "t", "dist"))
    assert (native.cameras.center - five.cameras.center).abs().max() < 1e-6
    assert native.cameras.size.tolist() == [[1920, 1080]] * 5
    assert len(cal.read_calibration(samples / "panoptic/160906_band1/calibration_160906_band1.json")) == 31  # the HD cameras


def test_pose2sim_and_qualisys_agree(samples):
    folder = samples / "pose2sim/calibration"
    toml, native = (cal.read_calibration(folder / name) for name in ("Calib_qualisys.toml", "Calib.qca.txt"))
    assert toml.names == native.names and (toml.unit, toml.guessed, native.unit, native.guessed) == ("m", True, "mm", False)
    same(toml.cameras, native.cameras, 1e-9)
    lines, said = cal.report(native)
    assert said == [] and "4 of 4 have it in front" in lines[2] and "up in the images is +z" in lines[3]


@pytest.mark.parametrize("name, count", [("shelf", 5), ("campus", 3)])
def test_shelf_and_campus(samples, name, count):
    found = cal.read_calibration(samples / name / f"calibration_{name}.json")
    assert len(found) == count and found.unit == "mm" and float(found.cameras.dist.abs().max()) == 0
    lines, said = cal.report(found)
    assert f"{count} of {count} have it in front" in lines[2] and [s for s in said if "image size" in s]


def test_shelf_agrees_with_the_other_publication(samples):
    z = np.load(samples / "shelf/shelf_multiview_150-300.npz")
    found = cal.read_calibration(samples / "shelf/calibration_shelf.json").cameras
    np.testing.assert_allclose(found.R, z["RT"][..., :3], atol=1e-4)
    np.testing.assert_allclose(found.t, z["RT"][..., 3] * 1000, atol=2e-2)
    np.testing.assert_allclose(found.K, z["K"], atol=1e-3)


# --- files of every kind, written from known cameras


def own(path, rig):
    return cal.write_cameras(path / "cameras.json", NAMES, rig)


def centers(path, rig):
    (path / "c.json").write_text(json.dumps(dict(zip(NAMES, cal.center_form(rig).values(), strict=True))))
    return path / "c.json"


def panoptic(path, rig):
    (path / "p.json").write_text(json.dumps(cal.panoptic_form([f"00_0{k}" for k in range(4)], rig)))
    return path / "p.json"


def toml(path, rig):
    parts = []
    for k, name in enumerate(NAMES):
        cam = rig[k]
        first, second, third = cam.K.tolist()
        parts.append(
            f'[cam_{k}] # one camera\nname = "{name}"\nsize = {cam.size.tolist()}\nmatrix = [\n  {first},\n  {second},\n'
            f"  {third},\n]\ndistortions = {cam.dist.tolist()}\nrotation = {rodrigues(cam.R).tolist()}\n"
            f"translation = {(cam.t / 1000).tolist()}\nfisheye = false\n"
        )
    (path / "c.toml").write_text("\n".join(parts) + "[metadata]\nadjusted = false\nerror = 0.5\n")
    return path / "c.toml"


def opencv(folder, suffix, rig, rotation="R"):
    folder.mkdir()
    for k, name in enumerate(NAMES):
        cam = rig[k]
        file = cv2.FileStorage(str(folder / f"{name}{suffix}"), cv2.FILE_STORAGE_WRITE)
        file.write("image_width", int(cam.size[0]))
        file.write("image_height", int(cam.size[1]))
        file.write("camera_matrix", cam.K.numpy())
        file.write("distortion_coefficients", cam.dist.numpy())
        file.write(rotation, cam.R.numpy() if rotation == "R" else rodrigues(cam.R))
        file.write("T" if rotation == "R" else "tvec", cam.t.numpy())
        file.release()
    return folder


def easymocap(path, rig):
    inner, outer = (cv2.FileStorage(str(path / f"{n}.yml"), cv2.FILE_STORAGE_WRITE) for n in ("intri", "extri"))
    for file in (inner, outer):
        file.startWriteStruct("names", cv2.FileNode_SEQ)
        for name in NAMES:
            file.write("", name)
        file.endWriteStruct()
    for k, name in enumerate(NAMES):
        inner.write(f"K_{name}", rig[k].K.numpy())
        inner.write(f"dist_{name}", rig[k].dist.numpy()[None])
        outer.write(f"R_{name}", rodrigues(rig[k].R)[:, None])
        outer.write(f"Rot_{name}", rig[k].R.numpy())
        outer.write(f"T_{name}", rig[k].t.numpy()[:, None] / 1000)
    inner.release()
    outer.release()
    return path / "intri.yml"


def test_own_and_published_forms(tmp_path, rig):
    for write, unit, guessed in ((own, "mm", False), (centers, "mm", True), (panoptic, "cm", False), (toml, "m", True)):
        found = cal.read_calibration(write(tmp_path, rig))
        assert (found.unit, found.guessed, len(found)) == (unit, guessed, 4)
        same(found.cameras, rig, 1e-6, FIELDS[:4] if write is centers else FIELDS)
        if write is not panoptic:
            assert found.names == NAMES
    sub = cal.read_calibration(tmp_path / "c.toml", unit="m", cameras=["d", "a"])
    same(sub.cameras, rig[torch.tensor([3, 0])], 1e-6)
    assert cal.plain_toml((tmp_path / "c.toml").read_text()) == cal.parse_toml((tmp_path / "c.toml").read_text())
    with pytest.raises(DataError, match="has no camera e, only a, b, c, d"):
        cal.read_calibration(tmp_path / "c.toml", cameras=["e"])
    with pytest.raises(DataError, match="cameras.json: exists already"):
        own(tmp_path, rig)


def test_opencv_files(tmp_path, rig):
    for suffix in (".yml", ".xml"):
        for rotation in ("R", "rvec"):
            found = cal.read_calibration(opencv(tmp_path / f"{suffix[1:]}_{rotation}", suffix, rig, rotation))
            assert found.names == NAMES and found.unit == "mm"
            same(found.cameras, rig, 1e-9)
    one = cal.read_calibration(tmp_path / "yml_R" / "b.yml")
    same(one.cameras, rig[1:2], 1e-9)
    for source in (easymocap(tmp_path, rig), tmp_path / "extri.yml"):
        found = cal.read_calibration(source)
        assert found.names == NAMES and found.unit == "m"
        same(found.cameras, rig, 1e-9, FIELDS[:4])


OLD_YAML = """%YAML:1.0
---
K: !!opencv-matrix
   rows: 1
   cols: 2
   dt: "2f"
   data: [ 1., 2., .Nan,
       1e-05 ]
names:
   - "1"
   - b
"""
OLD_XML = """<?xml version="1.0"?>
<opencv_storage>
<K type_id="opencv-matrix"><rows>1</rows><cols>2</cols><dt>"2f"</dt><data>
    1. 2. .Nan 1e-05</data></K>
<names>
  "1" b</names>
</opencv_storage>
"""


@pytest.mark.parametrize("text", [OLD_YAML, OLD_XML])
def test_nodes_of_opencv_files(tmp_path, text):
    path = tmp_path / "file"
    path.write_text(text)
    found = read_storage(path)
    np.testing.assert_array_equal(found["K"], [[[1, 2], [np.nan, 1e-5]]])
    assert found["names"] == ["1", "b"]
    for old, new in (("1. 2. ", "1. "), ("1., 2., ", "1., "), (".Nan", "<a>"), ("cols", "kols"), (">2<", ">-2<"), ("cols: 2", "cols: -2")):
        if old in text:
            path.write_text(text.replace(old, new))
            with pytest.raises(DataError, match="file: cannot be read as YAML or XML of OpenCV"):
                read_storage(path)


@pytest.mark.parametrize("suffix", [".yml", ".xml"])
def test_nodes_of_opencv_files_are_those_that_opencv_reads(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    wrote = {"matrix": np.arange(6.0).reshape(2, 3) / 7, "whole": np.arange(4).reshape(2, 2), "deep": np.arange(24.0).reshape(2, 3, 4)}
    file = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in wrote.items():
        file.write(name, value)
    file.write("number", 640)
    file.write("text", "two words")
    file.startWriteStruct("cam", cv2.FileNode_MAP)
    file.write("fx", 1.5)
    file.startWriteStruct("size", cv2.FileNode_SEQ)
    file.write("", 4)
    file.write("", 3)
    file.endWriteStruct()
    file.endWriteStruct()
    file.release()
    found, theirs = read_storage(path), cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
    for name in wrote:
        np.testing.assert_array_equal(found[name], theirs.getNode(name).mat())
    theirs.release()
    assert (found["number"], found["text"], found["cam"]) == (640, "two words", {"fx": 1.5, "size": [4, 3]})


def test_stereo_files(tmp_path, rig):
    first, second = rig[0], rig[1]
    R = second.R @ first.R.T
    t = second.t - R @ first.t
    inner, outer = (cv2.FileStorage(str(tmp_path / f"{n}.yml"), cv2.FILE_STORAGE_WRITE) for n in ("intrinsics", "extrinsics"))
    for k, cam in ((1, first), (2, second)):
        inner.write(f"M{k}", cam.K.numpy())
        inner.write(f"D{k}", cam.dist.numpy())
    outer.write("R", R.numpy())
    outer.write("T", t.numpy())
    inner.release()
    outer.release()
    found = cal.read_calibration(tmp_path / "intrinsics.yml")
    assert found.cameras.center[0].abs().max() == 0 and found.names == ("1", "2")
    x = torch.tensor([[100.0, -50, 2000]], dtype=torch.float64)
    np.testing.assert_allclose(found.cameras[1].project(x)[0], second.project(first.to_world(x))[0], atol=1e-6)


def test_toml_without_the_library(monkeypatch, tmp_path, rig):
    path = toml(tmp_path, rig)
    monkeypatch.setattr(sys, "version_info", (3, 10))
    same(cal.read_calibration(path).cameras, rig, 1e-6)
    for text in ("[a]\nb\n", "[a]\nb = [1, 2\n", "[a]\nb = nothing\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="c.toml: not a calibration"):
            cal.read_calibration(path)


# --- what does not fit


def changed(rig, k=1, **values):
    """cameras.json with one camera changed."""
    entry = dict(zip(("size", "K", "R", "t", "dist"), (getattr(rig[k], f).tolist() for f in ("size", *FIELDS[:4])), strict=True))
    return json.dumps({"format": 1, "unit": "mm", "cameras": [{"name": "x", **entry, **values}]})


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "of no known kind"),
        ("{", "not a calibration that can be read"),
        ("{}", "has no camera"),
        ('{"a": {"R": 1}}', "JSON of no known calibration"),
        ('{"cameras": [{"name": "a"}]}', "format None and unit None"),
        ("[cam]\nfisheye = true\nmatrix = [1]\n", "fisheye"),
        ("[cam]\nmatrix = [1]\n", "no 'rotation'"),
        ("<?xml version='1.0'?><calibration><camera serial='1'/></calibration>", "has no transform"),
        ("<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><calibration/>", "entities"),
        ("<calibration>", "XML that is not complete"),
        ("%YAML:1.0\n---\nx: 1\n", "has no K, R, t"),
        ("[" * 5000, "kind|not a calibration"),
    ],
)
def test_files_that_are_no_calibration(tmp_path, text, said):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as error:
        cal.read_calibration(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "values, said",
    [
        ({"K": [[-100, 0, 50], [0, 100, 50], [0, 0, 1]]}, "focal lengths -100"),
        ({"R": [[1, 0, 0], [0, 1, 0], [0, 0, 2]]}, "no rotation"),
        ({"R": [[1, 0, 0], [0, 1, 0], [0, 0, -1]]}, "mirrors"),
        ({"t": [1, 2]}, "position has 2 numbers, expected 3"),
        ({"t": [1, 2, float("nan")]}, "position has 3 numbers, expected 3 finite"),
        ({"dist": [0, 0, 0]}, "distortion has 3 numbers"),
        ({"dist": [0, 0, 0, 0, 0, 1, 1, 1]}, "8 distortion coefficients"),
        ({"R": "one"}, "not a calibration"),
    ],
)
def test_cameras_that_cannot_be(tmp_path, rig, values, said):
    path = tmp_path / "cameras.json"
    path.write_text(changed(rig, **values))
    with pytest.raises(DataError, match=said):
        cal.read_calibration(path)


def test_files_that_are_not_there_or_not_text(tmp_path, rig):
    with pytest.raises(DataError, match="cannot be read"):
        cal.read_calibration(tmp_path / "none.json")
    with pytest.raises(DataError, match="a folder without .yml"):
        cal.read_calibration(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match="not a text"):
        cal.read_calibration(tmp_path / "b")
    with pytest.raises(DataError, match="unit 'inch'"):
        cal.read_calibration(own(tmp_path, rig), unit="inch")


# --- changes and reports


def test_report_tells_what_looks_wrong(rig):
    good = cal.Calibration("x", NAMES, rig, "mm")
    lines, said = cal.report(good)
    assert said == [] and len(lines) == 9 and "160 x 120 px" in lines[4] and "half of the cameras see a space of" in lines[-1]
    away = cal.inverted(good)
    same(cal.inverted(away).cameras, rig, 1e-9)
    turned = replace(good, cameras=replace(rig, R=rig.R * torch.tensor([[-1.0], [1], [-1]]), t=rig.t * torch.tensor([-1.0, 1, -1])))
    assert any("every camera looks away" in s and "--inverse" in s for s in cal.report(turned)[1])
    metres = replace(good, cameras=replace(rig, t=rig.t / 1000))
    assert any("check the unit" in s for s in cal.report(metres)[1])
    one = replace(good, cameras=Cameras.cat([rig[:3], turned.cameras[3:]]))
    assert any(s.startswith("d: looks away") for s in cal.report(one)[1])


@pytest.mark.parametrize("up", cal.AXES)
def test_turning_the_world(rig, up):
    """The axis that was up becomes +z; what is seen does not change."""
    turned = cal.turned(cal.Calibration("x", NAMES, rig, "mm"), up).cameras
    old = torch.tensor([[100.0, 200, 300], [0, 0, 0]], dtype=torch.float64)
    old[1] = torch.from_numpy(cal.AXES[up]) * 500
    pixels, depth = rig[0].project(old)
    M = turned.R[0].T @ rig.R[0]  # new from old
    np.testing.assert_allclose(turned[0].project(old @ M.T)[0], pixels, atol=1e-6)
    np.testing.assert_allclose(M @ old[1], [0, 0, 500], atol=1e-9)
    with pytest.raises(DataError, match="up 'z'"):
        cal.turned(cal.Calibration("x", NAMES, rig, "mm"), "z")


def test_command(tmp_path, rig, capsys):
    source, out = toml(tmp_path, rig), tmp_path / "out" / "cameras.json"
    assert prepare.main(["calibration", str(source), "--out", str(out), "--unit", "m"]) == 0
    said = capsys.readouterr().out
    assert "4 cameras, lengths in m\n" in said and "det R = +1" in said and "guess" not in said
    same(cal.read_calibration(out).cameras, rig, 1e-6)
    assert prepare.main(["calibration", str(source), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert prepare.main(["calibration", str(centers(tmp_path, rig)), "--size", "160", "120", "--cameras", "b", "a"]) == 0
    assert "guess" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "A.png"), np.zeros((60, 80, 3), np.uint8))  # half the size
    assert prepare.main(["calibration", str(out), "--picture", str(tmp_path / "p.png"), "--images", str(tmp_path)]) == 0
    image = cv2.imread(str(tmp_path / "p.png"))
    first, second = image[75:525, :600], image[75:525, 606:1206]
    assert (first.max(-1) == 0).mean() > 0.5 and (second == 235).all(-1).mean() > 0.5  # on the picture, on grey
    blue = (image[..., 0] > 200) & (image[..., 2] < 100)
    assert blue.any()
    assert prepare.main(["calibration", str(tmp_path / "c.json"), "--picture", str(tmp_path / "q.png")]) == 2
    assert "give it with --size" in capsys.readouterr().err
