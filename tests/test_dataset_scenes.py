"""Scenes made of drawn people: always the same for a key, and what is seen of them is where the cameras see it."""

import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.dataset.formats import actors, campus, shelf
from lib.dataset.frames import FrameSamples
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key
from lib.dataset.scenes import SceneSamples
from lib.errors import DataError
from lib.synthetic.world import World
from tests.scene import ring_of_cameras

SPEC = ImageSpec((96, 64))
BOTH = pytest.mark.parametrize("layout", [shelf, campus], ids=["shelf", "campus"])


@pytest.fixture(scope="module")
def pool():
    X = World(split="train", frames=40).annotations().to_skeleton("coco17")
    return X.X_world.astype(np.float64), X.X_valid


def scenes(samples, pool, layout=shelf, **options) -> SceneSamples:
    cameras = actors.rig(layout.LAYOUT, samples / layout.LAYOUT.name)
    return SceneSamples(*pool, cameras, options.pop("rules", layout.RULES), SPEC, **options)


@BOTH
def test_a_scene_is_a_function_of_its_key(layout, samples, pool):
    made = scenes(samples, pool, layout, count=5)
    keys = [Key(3, 0), Key(1, 0), Key(3, 1)]
    batch, again = made.__getitems__(keys), scenes(samples, pool, layout, count=5).__getitems__(keys[::-1])
    assert len(made) == 5 and batch["id"].tolist() == [3, 1, 3]
    for name in ("x_img", "conf", "X_world", "X_valid", "n_people"):
        assert torch.equal(batch[name], again[name].flip(0)), name
    other = scenes(samples, pool, layout, count=5, seed=1).__getitems__(keys)
    assert not torch.equal(batch["X_world"][0], batch["X_world"][2]) and not torch.equal(batch["X_world"], other["X_world"])


@BOTH
def test_joints_are_where_the_cameras_see_them(layout, samples, pool):
    made = scenes(samples, pool, layout)
    batch = made.__getitems__(range(6))
    views, conf = len(made.cameras), batch["conf"]
    assert conf.shape == (6, views, 10, 17) and batch["camera"].shape == (6, views) and batch["x_img"].dtype == torch.float32
    for v in range(views):
        x, depth = made.cameras[v].project(batch["X_world"].double().flatten(0, 2))
        x, depth = x.unflatten(0, (6, 10, 17)), depth.unflatten(0, (6, 10, 17))
        seen = conf[:, v] > 0
        inside = ((x > -1) & (x < made.cameras.size[v] + 1)).all(-1) & (depth > 0)
        assert seen.any() and inside[seen].all() and (batch["x_img"][:, v][seen] - x[seen]).abs().max() < 1e-2
        assert (batch["x_img"][:, v][~seen] == 0).all()
    people = torch.arange(10) < batch["n_people"][:, None]
    assert torch.equal(batch["X_valid"].any(-1), people) and not conf.amax((1, 3))[~people].any()
    assert not conf.movedim(1, 2)[~batch["X_valid"][:, :, None].expand(-1, -1, views, -1)].any()  # eyes and ears of the embedded world


def test_people_are_missed_now_and_then_on_shelf(samples, pool):
    rules = shelf.RULES._replace(missed=0.5, views=5, x=(0.0, 500.0), y=(0.0, 500.0))  # in the middle, where all see them
    batch = scenes(samples, pool, rules=rules, count=40, max_people=3).__getitems__(range(40))
    people = batch["X_valid"].any(-1)
    assert batch["n_people"].max() <= 3
    seen = (batch["conf"] > 0).any(-1).movedim(1, 2)[people]
    assert 0.3 < seen.float().mean() < 0.7
    shown = batch["conf"][batch["conf"] > 0]
    assert shown.max() < 1.2 and shown.min() > 0.1
    elbow, nose = (batch["conf"][..., skeletons.get("coco17").index(name)] for name in ("l_elbow", "nose"))
    assert (elbow[elbow > 0] < 0.6).float().mean() > (nose[nose > 0] < 0.6).float().mean()


def test_a_batch_is_that_of_frames_without_pictures(samples, pool):
    ann = actors.read(shelf.LAYOUT, samples / "shelf", "all", "detections")
    frames = FrameSamples(ann, samples, SPEC, images=False).__getitems__([0])
    batch = scenes(samples, pool).__getitems__([0])
    assert set(batch) == set(frames)
    for name, value in frames.items():
        assert value.shape == batch[name].shape and value.dtype == batch[name].dtype, name
    assert torch.equal(batch["patch_from_img"], frames["patch_from_img"])


def test_what_cannot_be_is_refused(pool):
    cameras = ring_of_cameras(3)
    for changes in ({"count": 0}, {"skeleton": "panoptic15"}, {"max_people": 0}):
        with pytest.raises(DataError, match="scenes: .*expected"):
            SceneSamples(*pool, cameras, shelf.RULES, SPEC, **changes)
    cameras.size.zero_()
    with pytest.raises(DataError, match="sizes of their images"):
        SceneSamples(*pool, cameras, shelf.RULES, SPEC)
