"""MPII Human Pose as released (mpii_human_pose_v1_u12_2/mpii_human_pose_v1_u12_1.mat) into the JSON form of mpii.py.

RELEASE.annolist(i): image.name and annorect, one per person: x1 y1 x2 y2 (head box), scale, objpos, annopoints.point (x, y, id);
RELEASE.img_train(i): whether joints are public. Source: Andriluka et al., CVPR 2014, and the read-me of the release.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from lib.dataset.formats import mpii
from lib.dataset.formats.files import need
from lib.dataset.formats.matlab import load_mat
from lib.errors import DataError
from lib.files import new_file, refuse_existing

FEW = 2  # people with fewer joints are no example to learn from


def convert(mat: str | Path, out: str | Path, valid_images: Collection[str] = ()) -> dict[str, int]:
    """Writes annot/trainval.json and annot/test.json, and with `valid_images` train.json, valid.json and gt_valid.mat.

    People without joints in the public images, and people without scale and place, are left out; joints and places stay counted
    from 1. Which public images are for validation is no part of the release: the usual list is that of Tompson et al., 2014.

    Args:
        mat: the file of the release.
        out: folder of the data set.
        valid_images: names of the images that are validated on.

    Returns:
        Number of people by file name.

    Raises:
        DataError: the file is something else, a result exists, or an image of the list is not in the release.
    """
    mat, folder = Path(mat), Path(out) / "annot"
    listed = set(valid_images)
    names = ["trainval", "test", *(["train", "valid"] if listed else [])]
    for name in names:
        refuse_existing(folder / f"{name}.json")
    if listed:
        refuse_existing(folder / mpii.TRUTH)
    people = _people(mat)
    public = [p for p in people if p["public"] and int(p["joints_vis"].sum()) >= FEW]
    if not public:
        raise DataError(f"{mat}: has no person with joints in the public images, expected about 29000; download it again")
    parts = {"trainval": public, "test": [p for p in people if not p["public"]]}
    if listed:
        lost = sorted(listed - {p["image"] for p in public})
        if lost:
            raise DataError(f"{mat}: {len(lost)} images of the validation list have no person with joints ({lost[0]}); correct the list")
        parts["train"] = [p for p in public if p["image"] not in listed]
        parts["valid"] = [p for p in public if p["image"] in listed]
    for name, chosen in parts.items():
        with new_file(folder / f"{name}.json") as part:
            part.write_text(json.dumps([_record(p) for p in chosen]))
    if listed:
        with new_file(folder / mpii.TRUTH) as part, open(part, "xb") as file:
            need("scipy.io", f"{folder / mpii.TRUTH}: writing it").savemat(file, _truth(parts["valid"]))
    return {name: len(chosen) for name, chosen in parts.items()}


def _people(path: Path) -> list[dict[str, Any]]:
    """Everyone with a scale and a place, in the order of the file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; unpack mpii_human_pose_v1_u12_2.zip and give its .mat file")
    try:
        release = load_mat(path, squeeze_me=True, struct_as_record=False)["RELEASE"]
        images, public = np.atleast_1d(release.annolist), np.atleast_1d(release.img_train)
        return [
            person
            for image, is_public in zip(images, public, strict=True)
            for person in (_person(str(image.image.name), bool(is_public), rect) for rect in _items(image, "annorect"))
            if person
        ]
    except DataError:
        raise
    except Exception as error:  # SciPy has errors of its own, and a file may hold anything
        raise DataError(f"{path}: not MPII's release file ({error}), expected RELEASE.annolist and img_train; download it again") from None


def _items(owner: Any, name: str) -> list[Any]:
    """A field of a MATLAB struct as a list; empty where it is missing or empty."""
    value = getattr(owner, name, None)
    if value is None or (isinstance(value, np.ndarray) and value.size == 0):
        return []
    return list(np.atleast_1d(value))


def _person(image: str, public: bool, rect: Any) -> dict[str, Any] | None:
    place, scale = _items(rect, "objpos"), _items(rect, "scale")
    if not place or not scale:
        return None
    joints, vis = np.full((mpii.JOINTS, 2), -1.0), np.zeros(mpii.JOINTS, int)
    for points in _items(rect, "annopoints"):
        for point in _items(points, "point"):
            joints[int(point.id)], vis[int(point.id)] = (float(point.x), float(point.y)), 1
    corners = [_items(rect, name) for name in ("x1", "y1", "x2", "y2")]
    head = np.array([float(c[0]) for c in corners]).reshape(2, 2) if all(corners) else np.zeros((2, 2))
    center = [float(place[0].x), float(place[0].y)]
    return {
        "image": image, "public": public, "center": center, "scale": float(scale[0]), "joints": joints, "joints_vis": vis, "head": head,
    }  # fmt: skip


def _record(person: dict[str, Any]) -> dict[str, Any]:
    record = {"image": person["image"], "center": person["center"], "scale": round(person["scale"], 6)}
    if person["public"]:
        record |= {"joints": person["joints"].tolist(), "joints_vis": person["joints_vis"].tolist()}
    return record


def _truth(people: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The contents of gt_valid.mat; the joints' numbers in the release are their order."""
    return {
        "dataset_joints": np.array([list(mpii.MAT_JOINTS)], dtype=object),
        "jnt_missing": np.stack([1 - p["joints_vis"] for p in people], 1).astype(np.uint8),
        "pos_gt_src": np.stack([p["joints"] for p in people], -1),
        "headboxes_src": np.stack([p["head"] for p in people], -1),
    }
