"""lib/dataset/plausibility.py: a good table has nothing to tell, and each way to break it is recognised."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.dataset.plausibility import findings
from lib.geometry.camera import Cameras
from lib.synthetic.world import World


@pytest.fixture(scope="module")
def good() -> Annotations:
    return World(split="train", frames=30, size=(128, 128)).annotations()


@pytest.mark.parametrize("skeleton", ["h36m17", "mpii16", "coco17", "mpi3dhp17", "panoptic15"])
def test_a_good_table_has_nothing_to_tell(good, skeleton):
    assert findings(good.to_skeleton(skeleton)) == []


def test_2d_alone_is_fine_too():
    assert findings(World(split="pretrain", frames=30, size=(128, 128)).annotations()) == []


def flipped(ann: Annotations, joints: list[str] | None = None, two: bool = True, three: bool = True) -> Annotations:
    """Left and right exchanged, of all joints or of those whose name ends so."""
    skel = skeletons.get(ann.skeleton)
    order = np.arange(skel.num)
    for j, name in enumerate(skel.joints):
        if joints is None or name.partition("_")[2] in joints:
            order[j] = skel.flip[j]
    changed = {"x_img": ann.x_img[:, order]} if two else {}
    changed |= {"X_world": ann.X_world[:, order]} if three else {}
    return dataclasses.replace(ann, **changed)


def relabelled(ann: Annotations, real: str, claimed: str) -> Annotations:
    """The table in the order `real`, said to be `claimed`."""
    return dataclasses.replace(ann.to_skeleton(real), skeleton=claimed)


def with_cameras(ann: Annotations, change) -> Annotations:
    c = ann.cameras
    return dataclasses.replace(ann, cameras=Cameras(**{f.name: getattr(c, f.name) for f in dataclasses.fields(c)} | change(c)))


BROKEN = {
    "metres": (lambda a: dataclasses.replace(a, X_world=a.X_world / 1000), "the 3D joints are in metres, expected mm"),
    "centimetres": (lambda a: dataclasses.replace(a, X_world=a.X_world / 10), "in centimetres"),
    "factor": (lambda a: dataclasses.replace(a, X_world=a.X_world * 3), "3.* times as long"),
    "t in metres": (lambda a: with_cameras(a, lambda c: {"t": c.t / 1000}), "before their cameras"),
    "R transposed": (lambda a: with_cameras(a, lambda c: {"R": c.R.mT.contiguous()}), "check"),
    "mpii said to be h36m16": (lambda a: relabelled(a, "mpii16", "h36m16"), "3D joints are listed as h36m16.*read as mpii16"),
    "h36m16 said to be mpii": (lambda a: relabelled(a, "h36m16", "mpii16"), "3D joints are listed as mpii16.*read as h36m16"),
    "3dhp said to be h36m": (lambda a: relabelled(a, "mpi3dhp17", "h36m17"), "listed as h36m17.*read as mpi3dhp17"),
    "left is right": (lambda a: flipped(a), "knees bend backwards"),
    "arms exchanged": (lambda a: flipped(a, ["shoulder", "elbow", "wrist"]), "shoulders point against the hips"),
    "2D exchanged": (lambda a: flipped(a, three=False), "left and right are exchanged in one of the two"),
    "forearm and shin": (
        lambda a: dataclasses.replace(a, X_world=a.X_world + 300 * (np.arange(17) == a_index("l_wrist"))[:, None].astype(np.float32)),
        "on the left and",
    ),
    "frames shifted": (lambda a: dataclasses.replace(a, x_img=np.roll(a.x_img, 8, axis=0) + 40), "from the projected 3D joints"),
    "boxes x y w h": (
        lambda a: dataclasses.replace(a, box=np.concatenate([a.box[:, :2] + 20, (a.box[:, 2:] - a.box[:, :2]) / 2], 1)),
        "not x, y, width, height|no area",
    ),
    "boxes turned": (lambda a: dataclasses.replace(a, box=a.box[:, [2, 3, 0, 1]]), "no area"),
}


def a_index(name: str) -> int:
    return skeletons.get("h36m17").index(name)


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_break_it_is_recognised(good, name):
    broken, words = BROKEN[name]
    said = findings(broken(good))
    assert said
    assert any(re.search(words, sentence) for sentence in said), said


def test_2d_order_is_seen_without_3d():
    ann = World(split="pretrain", frames=30, size=(128, 128)).annotations()
    assert any("2D joints are listed as h36m16" in s for s in findings(relabelled(ann, "mpii16", "h36m16")))
    assert any("shoulders point against" in s for s in findings(flipped(ann, ["hip", "knee", "ankle"], three=False)))


def test_missing_joints_are_no_fault(good):
    valid = good.X_valid.copy()
    valid[:, 5] = False
    X = good.X_world.copy()
    X[:, 5] = np.nan
    conf = good.conf.copy()
    conf[:, 5] = 0
    assert findings(dataclasses.replace(good, X_valid=valid, X_world=X, conf=conf)) == []
    assert torch.isfinite(good.cameras.K).all()
