"""Calibrations of other programs -> one rig: cameras in mm with X_cam = R X_world + t, by name.

A file is recognised by what it holds:

    our own            cameras.json: names, sizes, K, R, t (or center), dist, and the unit of lengths
    CMU Panoptic       calibration_<sequence>.json: cm, y down; comes out in mm, z up, as everyone uses it
    VoxelPose          JSON of R, T (camera centre), fx fy cx cy, k, p per camera; also a list of them per sequence
    Pose2Sim, anipose  TOML of size, matrix, distortions, rotation (Rodrigues vector), translation per camera
    Qualisys           .qca.txt, XML: centres in mm
    OpenCV             YAML or XML of cv2.FileStorage: a camera per file (a folder of them), a camera per node, `names` with K_<name>
                       and the like (EasyMocap's intri.yml beside extri.yml), or the two cameras of stereo calibration

What none of them can say is told by `report`: in which unit, which way is up, and whether the cameras look at the scene.
"""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from lib.dataset.opencv_files import read_storage
from lib.errors import MALFORMED, DataError, GeometryError
from lib.files import new_file
from lib.geometry.camera import Cameras
from lib.geometry.voxel import space_from_cameras

UNITS = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
AXES = {f"{sign}{axis}": (1.0 if sign == "+" else -1.0) * np.eye(3)[i] for i, axis in enumerate("xyz") for sign in "+-"}
PANOPTIC, OWN = "CMU Panoptic", "Parallax"  # kinds that are asked for
FORMAT = 1
NAMED = 40  # cameras in a message
METRES_BELOW = 50.0  # a rig whose cameras stand less than 50 units apart is in metres: 50 mm is no rig, 50 m no room
PANOPTIC_TO_WORLD = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # rows: (x, y, z) down -> (x, z, -y) up
QUALISYS_LENS = ("radial1", "radial2", "tangental1", "tangental2", "radial3")  # k1 k2 p1 p2 k3; the spelling is theirs
QUALISYS_STEPS = 64.0  # Qualisys counts 64 steps per pixel
# what a node of an OpenCV file may be called, without case and underscores
NODES = {
    "K": ("cameramatrix", "intrinsicmatrix", "intrinsic", "intrinsics", "matrix", "mtx", "k", "m"),
    "dist": ("distortioncoefficients", "distcoeffs", "distcoef", "distortions", "distortion", "dist", "d"),
    "R": ("rotationmatrix", "rotation", "rot", "r", "rvec"),
    "t": ("translationvector", "translation", "tvec", "t"),
    "width": ("imagewidth", "width"),
    "height": ("imageheight", "height"),
    "size": ("imagesize", "size", "resolution"),
    "extrinsic": ("extrinsicmatrix", "extrinsics", "extrinsic", "rt"),
}


@dataclass(frozen=True, eq=False)
class Calibration:
    """A rig by the names of its cameras."""

    kind: str  # of the file
    names: tuple[str, ...]  # V
    cameras: Cameras  # (V,) float64, mm; size 0 0 = unknown
    unit: str  # of lengths in the file
    guessed: bool = False  # the unit: the file does not tell

    def __len__(self) -> int:
        return len(self.names)

    def select(self, names: Sequence[str]) -> Calibration:
        """The cameras of these names, in this order; DataError for one that is missing."""
        missing = [name for name in names if name not in self.names]
        if missing:
            raise DataError(f"the calibration has no camera {', '.join(missing)}, only {', '.join(self.names[:NAMED])}; correct the names")
        rows = torch.tensor([self.names.index(name) for name in names], dtype=torch.int64)
        return replace(self, names=tuple(names), cameras=self.cameras[rows])


@dataclass(frozen=True)
class _Entry:
    """One camera as a file gives it; exactly one of t and center."""

    name: str
    K: Any
    R: Any
    t: Any = None
    center: Any = None
    dist: Any = ()
    size: Any = (0, 0)


# ------------------------------------------------------------------------------------------------------------- reading


def read_calibration(path: str | Path, unit: str = "", cameras: Sequence[str] = ()) -> Calibration:
    """The rig in a file (or folder) of one of the kinds above.

    Args:
        path: the file; for OpenCV also a folder.
        unit: mm, cm or m, of the lengths in the file. Empty = what the file says; if it does not, m where the cameras stand less than
            50 units apart, else mm (and `guessed` is set).
        cameras: names of those wanted, in this order; empty = all, of Panoptic the HD cameras.

    Raises:
        DataError: missing, damaged, of no known kind, or a camera that cannot be one: a focal length that is not positive, a rotation
            that is none, or one that mirrors.
    """
    path = Path(path)
    if unit and unit not in UNITS:
        raise DataError(f"unit {unit!r}: expected one of {', '.join(UNITS)}")
    try:
        kind, stated, entries = _content(path)
        if not entries:
            raise DataError(f"{path}: the {kind} calibration has no camera; copy the file again")
        return _rig(path, kind, _chosen(path, kind, entries, cameras), unit or stated)
    except MALFORMED as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)[:120]
        raise DataError(f"{path}: not a calibration that can be read ({said}); see lib/dataset/calibrations.py for the kinds") from None


def _content(path: Path) -> tuple[str, str, list[_Entry]]:
    """Kind, stated unit ("" = none) and cameras."""
    if path.is_dir():
        return _opencv_folder(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text; expected JSON, TOML, XML or YAML of a calibration") from None
    head = text.lstrip()[:200]
    if head.startswith("{"):
        return _json(json.loads(text))
    if "<opencv_storage" in text or head.startswith("%YAML") or path.suffix.lower() in (".yml", ".yaml"):
        return _opencv_files(path, [path, *_partner(path)])
    if head.startswith("<"):
        return _qualisys(text)
    if path.suffix.lower() == ".toml" or re.match(r"(#.*\n|\s)*\[", text):
        return _toml(parse_toml(text))
    raise DataError(f"{path}: of no known kind; expected JSON, TOML (Pose2Sim, anipose), XML (Qualisys), or YAML or XML of OpenCV")


def _chosen(path: Path, kind: str, entries: list[_Entry], names: Sequence[str]) -> list[_Entry]:
    """The cameras asked for, in that order; of Panoptic's 520 the HD ones unless others are."""
    if not names:
        hd = [entry for entry in entries if kind == PANOPTIC and entry.name.startswith("00_")]
        return hd or entries
    by_name = {entry.name: entry for entry in entries}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise DataError(f"{path}: has no camera {', '.join(missing)}, only {', '.join(list(by_name)[:NAMED])}; correct the names")
    return [by_name[name] for name in names]


def _rig(path: Path, kind: str, entries: list[_Entry], stated: str) -> Calibration:
    names = [entry.name for entry in entries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path}: two cameras are called {twice}; give each a name of its own")
    made = [_camera(path, entry) for entry in entries]
    center = Cameras.stack(made).center.numpy()
    spread = float(np.linalg.norm(center - center.mean(0), axis=-1).max() * 2) if len(made) > 1 else float(np.linalg.norm(center))
    unit = stated or ("m" if spread < METRES_BELOW else "mm")
    cameras = Cameras.stack(made)
    return Calibration(kind, tuple(names), replace(cameras, t=cameras.t * UNITS[unit]), unit, guessed=not stated)


def _camera(path: Path, entry: _Entry) -> Cameras:
    """One camera, in the unit of the file."""
    arrays = {}
    for name, value, counts in (
        ("matrix", entry.K, (9,)),
        ("rotation", entry.R, (9, 3)),
        ("distortion", entry.dist, (0, 4, 5, 8, 12, 14)),
        ("size", entry.size, (2,)),
        ("position", entry.t if entry.center is None else entry.center, (3,)),
    ):
        value = np.asarray(value, np.float64).ravel()
        if value.size not in counts or not np.isfinite(value).all():
            expected = " or ".join(map(str, counts))
            raise DataError(f"{path}: camera {entry.name}: {name} has {value.size} numbers, expected {expected} finite ones; copy it again")
        arrays[name] = value
    K, R, dist = arrays["matrix"].reshape(3, 3), arrays["rotation"], arrays["distortion"]
    R = R.reshape(3, 3) if R.size == 9 else cv2.Rodrigues(R)[0]
    where = f"{path}: camera {entry.name}"
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise DataError(f"{where}: focal lengths {K[0, 0]:.5g}, {K[1, 1]:.5g} px, expected positive ones; check the order of the numbers")
    if np.abs(R @ R.T - np.eye(3)).max() > 1e-2:
        raise DataError(f"{where}: its R is no rotation (R R^T differs from 1 by {np.abs(R @ R.T - np.eye(3)).max():.3g}); copy it again")
    if np.linalg.det(R) < 0:
        raise DataError(
            f"{where}: its R mirrors (det R = -1): the world or the camera is left-handed; negate one axis of the world (a column of R) "
            "or of the camera (a row of R and of t)"
        )
    if dist.size > 5 and np.any(dist[5:]):
        raise DataError(f"{where}: {dist.size} distortion coefficients, expected k1 k2 p1 p2 k3; calibrate with OpenCV's default model")
    dist = np.concatenate([dist[:5], np.zeros(max(0, 5 - dist.size))])
    u, _, vt = np.linalg.svd(R)
    R = R if np.abs(R @ R.T - np.eye(3)).max() < 1e-4 else u @ vt  # what was rounded
    place = {"t": arrays["position"]} if entry.center is None else {"center": arrays["position"]}
    fields = {"K": K, "R": R, "dist": dist, "size": arrays["size"], **place}
    try:
        return Cameras.make(**{key: torch.from_numpy(value) for key, value in fields.items()})
    except GeometryError as error:
        raise DataError(f"{where}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------- JSON


def _json(content: Mapping[str, Any]) -> tuple[str, str, list[_Entry]]:
    cameras = content.get("cameras")
    if isinstance(cameras, list) and cameras and "distCoef" in cameras[0]:
        return PANOPTIC, "cm", [_panoptic_entry(c) for c in cameras]
    if isinstance(cameras, list):
        if content.get("format") != FORMAT or content.get("unit") not in UNITS:
            said = f"format {content.get('format')} and unit {content.get('unit')}"
            raise ValueError(f"{said}, expected {FORMAT} and one of {', '.join(UNITS)}")
        own = [
            _Entry(str(c["name"]), c["K"], c["R"], c.get("t"), None if "t" in c else c["center"], c.get("dist", ()), c.get("size", (0, 0)))
            for c in cameras
        ]
        return OWN, content["unit"], own
    listed: dict[str, Any] = dict(content)
    if len(listed) == 1 and isinstance(next(iter(listed.values())), list):  # one sequence
        listed = {str(i): c for i, c in enumerate(next(iter(listed.values())))}
    if all(isinstance(c, dict) and {"R", "T", "fx", "fy", "cx", "cy"} <= set(c) for c in listed.values()):
        return "VoxelPose", "", [_center_entry(name, c) for name, c in listed.items()]
    raise ValueError("JSON of no known calibration; expected cameras.json, Panoptic's, or R, T, fx, fy, cx, cy per camera")


def _panoptic_entry(c: Mapping[str, Any]) -> _Entry:
    """A camera of Panoptic in the frame with z up; its lengths stay cm."""
    R = np.asarray(c["R"], np.float64).reshape(3, 3) @ PANOPTIC_TO_WORLD
    return _Entry(str(c["name"]), c["K"], R, np.ravel(c["t"]), None, c["distCoef"], c["resolution"])


def _center_entry(name: str, c: Mapping[str, Any]) -> _Entry:
    k, p = np.ravel(c.get("k", np.zeros(3))), np.ravel(c.get("p", np.zeros(2)))
    if k.size not in (2, 3) or p.size != 2:
        raise ValueError(f"camera {name}: {k.size} radial and {p.size} tangential coefficients, expected 3 and 2")
    k = np.append(k, 0.0)[:3]
    K = [[c["fx"], 0, c["cx"]], [0, c["fy"], c["cy"]], [0, 0, 1]]
    return _Entry(str(name), K, c["R"], None, np.ravel(c["T"]), [k[0], k[1], p[0], p[1], k[2]], c.get("size", (0, 0)))


def center_form(cameras: Cameras) -> dict[str, dict]:
    """VoxelPose's camera records: R, T (centre, mm), fx fy cx cy, k (3,1), p (2,1), as lists.   Cameras (V,)"""
    k1, k2, p1, p2, k3 = cameras.dist.T.tolist()
    K, R, T = cameras.K.numpy(), cameras.R.tolist(), cameras.center[..., None].tolist()
    return {
        str(i): {
            "R": R[i], "T": T[i], "fx": float(K[i, 0, 0]), "fy": float(K[i, 1, 1]), "cx": float(K[i, 0, 2]), "cy": float(K[i, 1, 2]),
            "k": [[k1[i]], [k2[i]], [k3[i]]], "p": [[p1[i]], [p2[i]]],
        }
        for i in range(len(cameras))
    }  # fmt: skip


def panoptic_form(names: Sequence[str], cameras: Cameras) -> dict:
    """The contents of Panoptic's calibration_<sequence>.json for cameras (V,) called PP_NN, given in mm with z up."""
    R = (cameras.R.numpy() @ PANOPTIC_TO_WORLD.T).tolist()
    K, t, dist = cameras.K.tolist(), (cameras.t.numpy()[..., None] / UNITS["cm"]).tolist(), cameras.dist.tolist()
    size = cameras.size.int().tolist()
    kinds = ["hd" if name.startswith("00_") else "vga" for name in names]
    numbers = [[int(word) for word in name.split("_")] for name in names]
    return {
        "calibDataSource": "parallax",
        "cameras": [
            {
                "name": name, "type": kinds[i], "resolution": size[i], "panel": numbers[i][0], "node": numbers[i][1],
                "K": K[i], "distCoef": dist[i], "R": R[i], "t": t[i],
            }
            for i, name in enumerate(names)
        ],
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- TOML and XML


def _toml(content: Mapping[str, Any]) -> tuple[str, str, list[_Entry]]:
    sections = {key: c for key, c in content.items() if isinstance(c, dict) and "matrix" in c}
    fisheye = [key for key, c in sections.items() if c.get("fisheye")]
    if fisheye:
        raise ValueError(f"camera {fisheye[0]} is a fisheye, whose lens model is not supported; undistort its images first")
    entries = [
        _Entry(str(c.get("name", key)), c["matrix"], c["rotation"], c["translation"], None, c.get("distortions", ()), c.get("size", (0, 0)))
        for key, c in sections.items()
    ]
    return "Pose2Sim or anipose", "", entries


def parse_toml(text: str) -> dict[str, Any]:
    """The contents of a TOML file; before Python 3.11 of the part that calibrations are made of (see `plain_toml`)."""
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(text)
    return plain_toml(text)


def plain_toml(text: str) -> dict[str, Any]:
    """TOML of [tables] with `key = value`: numbers, texts, true, false and (nested, multi-line) arrays of them.

    Raises ValueError for anything else.
    """
    content: dict[str, Any] = {}
    table, pending = content, ""
    for number, line in enumerate(text.splitlines(), 1):
        line = _without_comment(line).strip()
        if not line:
            continue
        if not pending and (head := re.fullmatch(r"\[([^\[\]]+)\]", line)):
            table = content.setdefault(head[1].strip().strip("\"'"), {})
            continue
        pending = f"{pending} {line}" if pending else line
        if pending.count("[") > pending.count("]"):
            continue  # the array goes on in the next line
        key, equals, value = pending.partition("=")
        if not equals:
            raise ValueError(f"line {number}: {pending[:40]!r}, expected `key = value`")
        value = re.sub(r",(\s*\])", r"\1", value.strip())
        value = json.dumps(value[1:-1]) if re.fullmatch(r"'[^']*'", value) else re.sub(r"(?<=\d)\.(?=\D|$)", ".0", value)
        table[key.strip().strip("\"'")] = json.loads(value)
        pending = ""
    if pending:
        raise ValueError(f"an array is not closed: {pending[:40]!r}")
    return content


def _without_comment(line: str) -> str:
    """The line up to a # that stands in no text."""
    return re.match(r"""(?:[^#"']|"[^"]*"|'[^']*')*""", line)[0]


def _qualisys(text: str) -> tuple[str, str, list[_Entry]]:
    """Qualisys: centres in mm; its camera looks along -z with y up; K in 64ths of a pixel.

    The coefficients of the lens are divided by 64 as well, as Pose2Sim's conversion does.
    """
    if "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise ValueError("it declares entities, which a calibration does not")
    try:
        top = ElementTree.fromstring(text.lstrip())
    except ElementTree.ParseError as error:
        raise ValueError(f"XML that is not complete: {error}") from None
    entries = []
    for c in top.iter("camera"):
        place, lens, fov = (c.find(tag) for tag in ("transform", "intrinsic", "fov_video"))
        if place is None or lens is None or fov is None:
            raise ValueError(f"camera {c.get('serial')} has no transform, intrinsic or fov_video")
        box = {side: float(fov.attrib[side]) for side in ("left", "right", "top", "bottom")}
        number = {key: float(lens.attrib[key]) / QUALISYS_STEPS for key in lens.attrib if re.search("U|V|Distortion", key)}
        R = [[float(place.attrib[f"r{i}{j}"]) * (1 if i == 1 else -1) for j in (1, 2, 3)] for i in (1, 2, 3)]
        K = [
            [number["focalLengthU"], 0, number["centerPointU"] - box["left"]],
            [0, number["focalLengthV"], number["centerPointV"] - box["top"]],
            [0, 0, 1],
        ]
        dist = [number[f"{word[:-1]}Distortion{word[-1]}"] for word in QUALISYS_LENS]
        size = (box["right"] - box["left"] + 1, box["bottom"] - box["top"] + 1)
        entries.append(_Entry(str(c.get("serial")), K, R, None, [float(place.attrib[axis]) for axis in "xyz"], dist, size))
    return "Qualisys", "mm", entries


# -------------------------------------------------------------------------------------------------------------- OpenCV


def _partner(path: Path) -> list[Path]:
    """extri.yml beside intri.yml, extrinsics.yml beside intrinsics.yml."""
    other = {"intri": "extri", "extri": "intri", "intrinsics": "extrinsics", "extrinsics": "intrinsics"}.get(path.stem)
    beside = path.with_name(f"{other}{path.suffix}")
    return [beside] if other and beside.is_file() else []


def _opencv_folder(path: Path) -> tuple[str, str, list[_Entry]]:
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in (".yml", ".yaml", ".xml") and not p.name.startswith("."))
    if not files:
        raise DataError(f"{path}: a folder without .yml, .yaml or .xml of OpenCV; give the file of the calibration")
    paired = [file for file in files if _partner(file)]
    if paired:
        return _opencv_files(path, paired)
    return "OpenCV", "", [entry for file in files for entry in _opencv_files(file, [file])[2]]


def _opencv_files(path: Path, files: Sequence[Path]) -> tuple[str, str, list[_Entry]]:
    """The cameras of files that belong together."""
    nodes: dict[str, Any] = {}
    for file in files:
        nodes |= read_storage(file)
    if "names" in nodes:  # EasyMocap
        names = [str(name) for name in nodes["names"]]
        flat = {name: {key.removesuffix(f"_{name}"): v for key, v in nodes.items() if key.endswith(f"_{name}")} for name in names}
        # R_ is a Rodrigues vector there, Rot_ the matrix
        return "OpenCV (EasyMocap)", "", [_opencv_camera(name, nodes_of) for name, nodes_of in flat.items()]
    lower = {key.lower(): value for key, value in nodes.items()}
    for matrix, lens in (("m", "d"), ("cameramatrix", "distcoeffs"), ("camera_matrix_", "dist_coeffs_")):
        if f"{matrix}1" in lower and f"{matrix}2" in lower:
            if "r" not in lower or "t" not in lower:
                raise ValueError("a stereo calibration without R and T; put extrinsics.yml beside intrinsics.yml")
            still = {"r": np.eye(3), "t": np.zeros(3)}
            first, second = ({"k": lower[f"{matrix}{i}"], "d": lower.get(f"{lens}{i}", np.zeros(5))} for i in (1, 2))
            return "OpenCV (stereo)", "", [
                _opencv_camera("1", first | still), _opencv_camera("2", second | {"r": lower["r"], "t": lower["t"]})
            ]  # fmt: skip
    nested = {key: value for key, value in nodes.items() if isinstance(value, dict) and _node(value, "K") is not None}
    if nested:
        return "OpenCV", "", [_opencv_camera(key, value) for key, value in nested.items()]
    return "OpenCV", "", [_opencv_camera(path.stem, nodes)]


def _node(nodes: Mapping[str, Any], what: str) -> Any:
    plain = {key.lower().replace("_", ""): value for key, value in nodes.items()}
    return next((plain[name] for name in NODES[what] if name in plain), None)


def _opencv_camera(name: str, nodes: Mapping[str, Any]) -> _Entry:
    found = {what: _node(nodes, what) for what in NODES}
    if found["extrinsic"] is not None and found["R"] is None:
        outer = np.asarray(found["extrinsic"], np.float64)
        if outer.shape not in ((3, 4), (4, 4)):
            raise ValueError(f"camera {name}: extrinsics of shape {outer.shape}, expected (3, 4) or (4, 4)")
        found["R"], found["t"] = outer[:3, :3], outer[:3, 3]
    missing = [what for what in ("K", "R", "t") if found[what] is None]
    if missing:
        names = "; ".join(", ".join(NODES[what]) for what in missing)
        raise ValueError(f"camera {name} has no {', '.join(missing)}, expected a node called one of: {names}")
    size = found["size"] if found["size"] is not None else (found["width"] or 0, found["height"] or 0)
    return _Entry(name, found["K"], found["R"], found["t"], None, found["dist"] if found["dist"] is not None else (), size)


# ------------------------------------------------------------------------------------------------------------- changes


def turned(calibration: Calibration, up: str) -> Calibration:
    """The same rig in a world turned so that the axis `up` (+x, -y, ...) of the old one is +z.

    The rotation is by 90 or 180 degrees: about x for y and -z, about y for x.   Raises DataError for another word.
    """
    if up not in AXES:
        raise DataError(f"up {up!r}: expected one of {', '.join(AXES)}")
    z = AXES[up]
    x = AXES["+x"] if up[1] != "x" else AXES["+y"]
    new_from_old = np.stack([x, np.cross(z, x), z])  # rows: the new axes in the old world
    cameras = calibration.cameras
    return replace(calibration, cameras=replace(cameras, R=cameras.R @ torch.from_numpy(new_from_old.T.copy())))


def inverted(calibration: Calibration) -> Calibration:
    """The rig of a file that gives the way from the camera to the world: its R and t are turned round."""
    cameras = calibration.cameras
    R = cameras.R.mT.contiguous()
    return replace(calibration, cameras=replace(cameras, R=R, t=-(R @ cameras.t[..., None])[..., 0]))


def resized(calibration: Calibration, size: Sequence[int]) -> Calibration:
    """The rig with `size` (width, height px) for every camera whose size the file does not say."""
    known = (calibration.cameras.size > 0).all(-1, keepdim=True)
    size_of = torch.where(known, calibration.cameras.size, torch.tensor([float(v) for v in size], dtype=torch.float64))
    return replace(calibration, cameras=replace(calibration.cameras, size=size_of))


def write_cameras(path: str | Path, names: Sequence[str], cameras: Cameras) -> Path:
    """Writes our own cameras.json: cameras (V,) in mm.   Raises DataError where it exists or cannot be written."""
    rows = zip(names, cameras.size.tolist(), cameras.K.tolist(), cameras.R.tolist(), cameras.t.tolist(), cameras.dist.tolist(), strict=True)
    entries = [dict(zip(("name", "size", "K", "R", "t", "dist"), row, strict=True)) for row in rows]
    lines = ",\n  ".join(json.dumps(entry, allow_nan=False) for entry in entries)
    with new_file(path) as part:
        part.write_text(f'{{"format": {FORMAT}, "unit": "mm", "cameras": [\n  {lines}\n]}}\n')
    return Path(path)


# -------------------------------------------------------------------------------------------------------------- report


def focus(cameras: Cameras) -> np.ndarray:
    """The point that lies nearest to all optical axes (least squares), mm.   Cameras (V,) -> (3,)

    Parallel axes: a point 3 m in front of the middle of the cameras.
    """
    center, axis = cameras.center.numpy(), cameras.R.numpy()[:, 2]
    away = np.eye(3) - axis[:, :, None] * axis[:, None]  # projections to the planes across the axes
    A, b = away.sum(0), (away @ center[..., None]).sum(0)[:, 0]
    if len(center) < 2 or np.linalg.eigvalsh(A)[0] < 1e-3 * len(center):
        return center.mean(0) + 3000.0 * axis.mean(0) / max(float(np.linalg.norm(axis.mean(0))), 1e-9)
    return np.linalg.solve(A, b)


def up_axis(cameras: Cameras) -> tuple[str, float]:
    """The axis of the world that points up in the images on average, and the cosine between the two."""
    up = -cameras.R.numpy()[:, 1].mean(0)
    up /= max(float(np.linalg.norm(up)), 1e-9)
    name = max(AXES, key=lambda axis: float(AXES[axis] @ up))
    return name, float(AXES[name] @ up)


def _point(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return f"({', '.join(f'{v:.{digits}f}' for v in values)})"


def report(calibration: Calibration) -> tuple[list[str], list[str]]:
    """What a calibration says, and what looks wrong in it: lines each."""
    cams, names = calibration.cameras, calibration.names
    center, axis, size = cams.center.numpy(), cams.R.numpy()[:, 2], cams.size.int().tolist()
    middle = focus(cams)
    depth = cams.to_cam(torch.from_numpy(middle)[None])[:, 0, 2].numpy()
    up, cosine = up_axis(cams)
    unit = calibration.unit + (" (guessed: the file does not say)" if calibration.guessed else "")
    lines = [
        f"{calibration.kind}: {len(names)} cameras, lengths in {unit}",
        "handedness: every R is a rotation (det R = +1): world and cameras are right-handed",
        f"the axes of the cameras meet near {_point(middle, 0)} mm, {int((depth > 0).sum())} of {len(names)} have it in front",
        f"up in the images is {up} of the world (cosine {cosine:.2f})",
    ]
    width = max(len(name) for name in names)
    for i, name in enumerate(names):
        lines.append(
            f"{name.ljust(width)}  {size[i][0]} x {size[i][1]} px, focal length {cams.K[i, 0, 0]:.1f} px, at {_point(center[i], 0)} mm, "
            f"looks along {_point(axis[i], 2)}, depth of that point {depth[i]:+.0f} mm"
        )
    if up == "+z" and bool((cams.size > 0).all()):
        try:
            extent, middle_of = space_from_cameras(cams)
            pitch = max(extent[0] / 80, extent[1] / 80, extent[2] / 20)  # the published number of voxels
            lines.append(
                f"half of the cameras see a space of {_point(extent, 0)} mm around {_point(middle_of, 0)} mm: "
                f"80 x 80 x 20 voxels have sides of up to {pitch:.0f} mm"
            )
        except GeometryError:
            lines.append("no space is seen by half of the cameras")
    said = []
    if (depth <= 0).all():
        said.append("every camera looks away from the scene: R and t may lead from camera to world (--inverse), or z may point backwards")
    elif (depth <= 0).any():
        away = ", ".join(name for name, d in zip(names, depth, strict=True) if d <= 0)
        said.append(f"{away}: looks away from where the others look; check its R")
    if up != "+z":
        said.append(f"up is {up}, but volumes of people here have z up; turn the world with --up {up}")
    if calibration.guessed:
        said.append(f"the unit {calibration.unit} is a guess from how far apart the cameras stand; give it with --unit")
    unknown = [name for name, s in zip(names, size, strict=True) if min(s) <= 0]
    if unknown:
        said.append(f"the file says no image size of {', '.join(unknown)}; give it with --size W H")
    spread = np.linalg.norm(center - center.mean(0), axis=-1).max() if len(names) > 1 else 3000.0
    if not 200 < spread < 100_000:
        said.append(f"the cameras stand up to {spread:.4g} mm from their middle; check the unit")
    return lines, said


