"""Samples against known truth: dots painted at joints, recorded patches, mirrored labels, warped cameras; and bad
images.
"""


import cv2
import numpy as np
import pytest
import torch

from lib import skeleton as skeletons
from lib.dataset.augment import NEUTRAL, Augment, Params
from lib.dataset.image import IMAGENET, ImageSpec, read_image, warp
from lib.dataset.loader import Key
from lib.dataset.occluders import procedural_occluders
from lib.dataset.rig import neighbours
from lib.dataset.samples import CropSamples, ViewSamples
from lib.errors import ConfigError, DataError
from lib.geometry.camera import Cameras
from lib.geometry.crop import invert, transform_points
from tests.conftest import golden
from tests.tiny_dataset import SKELETON, Fixed, edited, make, replace, write_images

SPEC = ImageSpec(size=(64, 48))
WILD = Augment(scale=0.25, rot_deg=30, rot_prob=1.0, color=0.2, flip_prob=0.5)
SKEL = skeletons.get(SKELETON)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    ann = make(sequences=2, frames=3)
    write_images(ann, root)
    return ann.check("tiny"), root


def dot(image: torch.Tensor, channel: int) -> np.ndarray:
    """Centre of the dot in one channel of an image (3, H, W), px."""
    weight = image[channel].double().clamp(min=60) - 60
    y, x = torch.meshgrid(torch.arange(image.shape[1]), torch.arange(image.shape[2]), indexing="ij")
    return np.array([float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())])


@pytest.mark.parametrize(
    "params",
    [NEUTRAL, Params(scale=1.2), Params(rot_deg=25), Params(flip=True), Params(0.9, -35, True, (1.1, 0.9, 1.0))],
    ids=["plain", "scale", "rotation", "mirror", "all"],
)
def test_labels_sit_on_the_pixels_of_their_joints(world, params):
    ann, root = world
    data = CropSamples(ann, root, SPEC, Fixed(params=params))
    right, left = SKEL.index("r_wrist"), SKEL.index("l_wrist")
    if params.flip:  # the mirrored right wrist looks like, and is labelled as, a left one
        right, left = left, right
    seen = 0
    for index in range(len(data)):
        sample = data[index]
        for joint, channel in ((right, 0), (left, 2)):
            x = sample["x_patch"][joint, :2].numpy()
            if (x > 9).all() and (x < np.array(SPEC.size) - 9).all():  # wholly inside
                np.testing.assert_allclose(dot(sample["image"], channel), x, atol=0.5)
                seen += 1
        assert bool(sample["flipped"]) == params.flip
    assert seen > 10


def test_a_mirrored_sample_has_mirrored_and_swapped_labels(world):
    ann, root = world
    plain = CropSamples(ann, root, SPEC, Fixed(params=NEUTRAL))
    mirrored = CropSamples(ann, root, SPEC, Fixed(params=Params(flip=True)))
    flip = torch.tensor(SKEL.flip)
    for index in (0, 7):
        a, b = plain[index], mirrored[index]
        swapped = b["x_patch"][flip]
        torch.testing.assert_close(swapped[:, 1:], a["x_patch"][:, 1:])  # y and depth
        torch.testing.assert_close(SPEC.size[0] - swapped[:, 0], a["x_patch"][:, 0], atol=1e-4, rtol=0)
        for name in ("X_cam", "root_cam", "x_img", "conf", "X_valid", "depth_scale"):
            torch.testing.assert_close(a[name], b[name])


def test_depth_labels_invert_to_millimetres(world):
    ann, root = world
    data = CropSamples(ann, root, SPEC, Fixed(params=Params(scale=1.25)), depth_mm=1500.0)
    sample = data[5]
    assert sample["depth_scale"] == pytest.approx(64 / (1500 * 1.25))
    z = sample["x_patch"][:, 2] / sample["depth_scale"] + sample["root_cam"][2]
    torch.testing.assert_close(z, sample["X_cam"][:, 2], atol=0.01, rtol=0)
    X_cam = ann.cameras[int(ann.camera[5])].to_cam(torch.from_numpy(ann.X_world[ann.pose[5]]).double())
    torch.testing.assert_close(sample["X_cam"].double(), X_cam, atol=0.01, rtol=0)
    torch.testing.assert_close(sample["root_cam"].double(), X_cam[SKEL.root_index], atol=0.01, rtol=0)


def test_the_camera_of_the_crop_sees_the_labels(world):
    ann, root = world
    sample = CropSamples(ann, root, SPEC, Fixed(params=Params(1.1, 20, True)))[3]
    x_patch, _ = sample["camera"].warped(sample["patch_from_img"]).project(torch.from_numpy(ann.X_world[ann.pose[3]]))
    swapped = sample["x_patch"][torch.tensor(SKEL.flip), :2]
    torch.testing.assert_close(x_patch, swapped, atol=0.02, rtol=0)
    x_img = transform_points(invert(sample["patch_from_img"]), swapped)
    torch.testing.assert_close(x_img, sample["x_img"], atol=0.01, rtol=0)


def test_missing_labels_are_masked_per_kind(world):
    ann, root = world
    wrist, knee = SKEL.index("r_wrist"), SKEL.index("l_knee")
    ann = edited(edited(ann, "conf", (0, wrist), 0), "x_img", (0, wrist), np.nan)  # no 2D
    ann = edited(edited(ann, "X_valid", (0, knee), False), "X_world", (0, knee), np.nan)  # no 3D
    ann = edited(ann, "X_valid", (ann.pose[4], SKEL.root_index), False)  # no root: no relative depth
    ann = edited(edited(ann, "pose", 8, -1), "camera", 9, -1)  # 2D-only rows
    data = CropSamples(ann, root, SPEC)
    batch = data.__getitems__([0, 4, 8, 9])
    assert all(torch.isfinite(v).all() for v in batch.values() if isinstance(v, torch.Tensor))
    assert batch["has_depth"].tolist() == [1, 0, 0, 0]
    assert batch["valid_depth"].sum(1).tolist() == [16, 0, 0, 0]
    assert batch["valid"].sum(1).tolist() == [16, 17, 17, 17]
    assert batch["valid"][0, wrist] == 0 and batch["valid_depth"][0, wrist] == 1
    assert batch["valid"][0, knee] == 1 and batch["valid_depth"][0, knee] == 0
    assert (batch["x_patch"][0, wrist, :2] == 0).all() and (batch["x_patch"][2:, :, 2] == 0).all()
    flipped = CropSamples(ann, root, SPEC, Fixed(params=Params(flip=True)))[0]
    assert flipped["valid"][SKEL.index("l_wrist")] == 0 and flipped["valid_depth"][SKEL.index("r_knee")] == 0
    assert flipped["conf"][wrist] == 0  # annotations are never mirrored


def test_shapes_and_types_of_a_batch(world):
    ann, root = world
    batch = CropSamples(ann, root, SPEC, WILD, seed=1).__getitems__([Key(3, 1), Key(0, 1)])
    image = batch["image"]
    assert image.shape == (2, 3, 48, 64) and image.dtype == torch.uint8 and image.is_contiguous()
    expected = {"x_patch": (2, 17, 3), "X_cam": (2, 17, 3), "x_img": (2, 17, 2), "root_cam": (2, 3), "conf": (2, 17)}
    expected |= {"valid": (2, 17), "valid_depth": (2, 17), "has_depth": (2,), "depth_scale": (2,)}
    for name, shape in {**expected, "patch_from_img": (2, 2, 3)}.items():
        assert batch[name].shape == shape and batch[name].dtype == torch.float32, name
    assert batch["id"].tolist() == [3, 0] and batch["id"].dtype == torch.int64
    assert batch["X_valid"].dtype == batch["flipped"].dtype == torch.bool
    assert batch["camera"].shape == (2,) and batch["camera"].dtype == torch.float32
    views = ViewSamples(ann, root, SPEC, augment=WILD).__getitems__([1, 4, 5])
    assert views["image"].shape == (3, 4, 3, 48, 64) and views["camera"].shape == (3, 4)
    expected = {"patch_from_img": (3, 4, 2, 3), "x_img": (3, 4, 17, 2), "conf": (3, 4, 17), "X_world": (3, 17, 3)}
    for name, shape in {**expected, "X_valid": (3, 17), "depth_scale": (3, 4), "flipped": (3, 4)}.items():
        assert views[name].shape == shape, name
    assert views["row"].tolist() == [[4, 5, 6, 7], [16, 17, 18, 19], [20, 21, 22, 23]]
    assert views["pose"].tolist() == [1, 4, 5] and views["id"].tolist() == [4, 16, 20]


def test_a_sample_is_a_function_of_seed_epoch_and_index(world):
    ann, root = world
    augment = Augment(**{**WILD.__dict__, "occluders": procedural_occluders(0, 4)})
    for kind in (CropSamples, ViewSamples):
        data = kind(ann, root, SPEC, augment=augment, seed=5)
        together = data.__getitems__([Key(1, 2), Key(2, 2), Key(1, 3)])
        alone = kind(ann, root, SPEC, augment=augment, seed=5)[Key(1, 2)]
        for name in ("image", "patch_from_img", "flipped"):
            torch.testing.assert_close(together[name][0], alone[name], rtol=0, atol=0)
        assert not torch.equal(together["patch_from_img"][0], together["patch_from_img"][2])  # another epoch
        other = kind(ann, root, SPEC, augment=augment, seed=6)[Key(1, 2)]
        assert not torch.equal(other["patch_from_img"], alone["patch_from_img"])
    assert len(list(CropSamples(ann.select([0, 1]), root, SPEC))) == 2  # a plain loop ends


# --- recorded patches


@pytest.mark.parametrize("case", ["plain", "aug", "flip"])
def test_patch_and_label_equal_the_recorded_pipeline(case, tmp_path):
    record = golden("epipolarpose", "crop_affine")
    cv2.imwrite(str(tmp_path / "image.png"), record["img_bgr"])
    joints = record["img_joints"]  # px, px, mm relative to the root
    x, y, w, h = record["sample_box_cx_cy_w_h"]
    scale, rot, flip, *color = record[f"sample_{case}_params"]
    one = make(sequences=1, frames=1, views=1)
    camera = Cameras.make(torch.eye(3).double()[None], torch.eye(3).double()[None], torch.zeros(1, 3).double())
    depth = np.where(np.arange(17) == SKEL.root_index, 0, joints[:, 2])
    ann = replace(
        one,
        images=np.array([b"image.png"]),
        cameras=camera,
        x_img=joints[None, :, :2].astype(np.float32),
        X_world=np.stack([0 * depth, 0 * depth, depth + 4000], -1)[None].astype(np.float32),
        box=np.array([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]], np.float32),
    )
    augment = Fixed(params=Params(float(scale), float(rot), bool(flip), tuple(color.__iter__())))
    spec = ImageSpec(size=tuple(record["sample_patch_wh"].tolist()))
    sample = CropSamples(ann.check("golden"), tmp_path, spec, augment)[0]
    patch = spec.normalize(sample["image"]).numpy()
    assert np.abs(patch - record[f"sample_{case}_patch"]).max() < 0.06
    label = sample["x_patch"].numpy() / spec.size[0] - [0.5, 0.5, 0]
    expected = record[f"sample_{case}_label"].reshape(17, 3)
    np.testing.assert_allclose(label[:, :2], expected[:, :2], atol=1e-4)
    others = np.arange(17) != SKEL.root_index  # the record's root has a depth of its own
    np.testing.assert_allclose(label[others, 2], expected[others, 2], atol=1e-4)


# --- pairs of views


def test_pairings_of_a_square_rig(world):
    ann, root = world

    def pairs(mode, **kwargs):
        data = ViewSamples(ann, root, SPEC, pairs=mode, **kwargs)
        return data, [tuple(ann.view[data.__getitems__([i])["row"][0].numpy()].tolist()) for i in range(len(data))]

    sides = {(0, 1), (1, 2), (2, 3), (0, 3)}
    assert pairs("all")[1] == [(0, 1, 2, 3)] * 6
    assert pairs("all", views=[2, 0])[1] == [(2, 0)] * 6
    assert set(pairs("neighbours")[1]) == sides and len(pairs("neighbours")[1]) == 6 * 4
    assert set(pairs("consecutive")[1]) == {(0, 1), (1, 2), (2, 3)} and len(pairs("consecutive")[1]) == 6 * 3
    data, found = pairs("random_neighbours")
    assert len(data) == 6 and all(tuple(sorted(p)) in sides for p in found)
    drawn = [tuple(ann.view[data[Key(0, epoch)]["row"].numpy()].tolist()) for epoch in range(60)]
    assert {tuple(sorted(p)) for p in drawn} == sides and len(set(drawn)) == 8  # either order


def test_neighbours_in_human36m_are_the_sides_of_the_room():
    record = golden("epipolarpose", "projection")
    centers = {tuple(k): T[:, 0] for k, T in zip(record["subject_cam"].tolist(), record["T"], strict=True)}
    expected = np.zeros((4, 4), bool)
    for a, others in {0: (1, 2), 1: (0, 3), 2: (0, 3), 3: (1, 2)}.items():
        expected[a, list(others)] = True
    rigs = 0
    for subject in {k[0] for k in centers}:
        cams = sorted(k for k in centers if k[0] == subject)
        if len(cams) == 4:
            assert (neighbours(np.stack([centers[k] for k in cams])) == expected).all()
            rigs += 1
    s1 = np.array([(1.84, 4.96, 1.56), (1.76, -5.08, 1.61), (-1.85, 5.22, 1.49), (-1.79, -3.72, 1.57)])  # spec 5.1
    assert (neighbours(s1) == expected).all()
    missing = neighbours(np.stack([s1, np.where(np.arange(4)[:, None] == 3, np.nan, s1)]))
    assert (missing[0] == expected).all() and not missing[1][3].any() and missing[1][:3, :3].sum() == 6


def test_instants_that_lack_a_view_are_left_out_and_counted(world, caplog):
    ann, root = world
    ann = ann.select(np.delete(np.arange(len(ann)), [2, 9]))  # frames 0 and 2 of sequence 0 lose a view
    with caplog.at_level("INFO", logger="parallax"):
        assert len(ViewSamples(ann, root, SPEC)) == 4
    assert "left out 2 of 6 instants" in caplog.text
    assert len(ViewSamples(ann, root, SPEC, pairs="consecutive")) == 4 * 3 + 1 + 1
    assert len(ViewSamples(ann, root, SPEC, views=[0, 3])) == 6


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: (a, {"pairs": "neighbors"}), "EPIPOLAR.PAIRS.*neighbors.*did you mean neighbours"),
        (lambda a: (a, {"views": [1]}), "views \\[1\\].*two"),
        (lambda a: (a, {"views": [0, 8]}), "none of 6 instants is seen by all of the views \\[0, 8\\]"),
        (lambda a: (edited(a, "view", 1, 0), {}), "person 0 at sequence 0, frame 0, view 0 appears twice"),
        (lambda a: (edited(a, "pose", 1, 3), {}), "has pose 3, another view"),
        (lambda a: (edited(a, "camera", 1, -1), {}), "1 of 24 observations have no camera"),
    ],
)
def test_views_that_do_not_fit_are_refused(world, change, message):
    ann, kwargs = change(world[0])
    with pytest.raises((DataError, ConfigError), match=message):
        ViewSamples(ann, world[1], SPEC, **kwargs)


# --- images


def encoded(kind: str = ".jpg") -> bytes:
    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8), (160, 120))
    return cv2.imencode(kind, image)[1].tobytes()


def with_thumbnail(jpeg: bytes) -> bytes:
    """A JPEG whose EXIF block holds a whole JPEG, end marker and all."""
    block = b"Exif\x00\x00" + encoded(".jpg")
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


BAD_IMAGES = {
    "missing": (None, "no such image"),
    "empty": (b"", "0 bytes"),
    "text": (b"<html>404</html>", "not an image"),
    "jpeg cut in half": (encoded()[: len(encoded()) // 2], "cut short"),
    "jpeg cut at the end": (encoded()[:-2], "cut short"),
    "jpeg with thumbnail cut": (with_thumbnail(encoded())[:-300], "cut short"),
    "jpeg header only": (encoded()[:20], "cut short"),
    "png cut": (encoded(".png")[:-20], "cut short"),
    "jpeg of noise": (b"\xff\xd8" + bytes(range(256)) * 4 + b"\xff\xd9", "not an image|cut short"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_named(kind, world, tmp_path):
    content, message = BAD_IMAGES[kind]
    ann = world[0]
    if content is not None:
        (tmp_path / "s0_f0_v0.png").write_bytes(content)
    with pytest.raises(DataError, match=f"s0_f0_v0.png: .*({message})"):
        CropSamples(ann, tmp_path, SPEC)[0]


def test_a_folder_in_place_of_an_image_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


def test_sound_images_are_read_whatever_follows_their_end(tmp_path):
    for name, data in (
        ("a.jpg", with_thumbnail(encoded())),
        ("b.jpg", encoded() + bytes(5000)),
        ("c.png", encoded(".png")),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_image(tmp_path / name).shape == (120, 160, 3)
    (tmp_path / "grey.png").write_bytes(cv2.imencode(".png", np.full((4, 5), 9, np.uint8))[1].tobytes())
    assert (read_image(tmp_path / "grey.png") == 9).all()
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 2] = 255  # BGR
    (tmp_path / "red.png").write_bytes(cv2.imencode(".png", red)[1].tobytes())
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]


def test_an_image_of_another_size_than_its_camera_is_refused(world, tmp_path):
    cv2.imwrite(str(tmp_path / "s0_f0_v0.png"), np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(DataError, match="80 x 60 px.*160 x 120"):
        CropSamples(world[0], tmp_path, SPEC)[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: edited(a, "box", (4, 2), a.box[4, 0]),
            "s0_f1_v0.png: 1 of 24 observations have no box with area.*row 4",
        ),
        (lambda a: edited(a, "box", (4, 2), np.nan), "s0_f1_v0.png"),
        (lambda a: edited(a, "image", slice(3, 5), -1), "2 of 24 observations have no image"),
        (lambda a: a.select([]), "is empty"),
    ],
)
def test_rows_that_cannot_be_cropped_are_refused_at_once(world, change, message):
    for kind in (CropSamples, ViewSamples):
        with pytest.raises(DataError, match=message):
            kind(change(world[0]), world[1], SPEC)


# --- image spec


def test_normalisation_is_that_of_the_weights():
    image = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    mean, std = (torch.tensor(IMAGENET[name])[:, None, None] for name in ("mean", "std"))
    imagenet = ImageSpec((64, 48), **IMAGENET)
    x = imagenet.normalize(image)
    torch.testing.assert_close(x, (image.float() - mean) / std)
    assert torch.equal(imagenet.denormalize(x), image)
    hourglass = ImageSpec(size=(256, 256), mean=(0, 0, 0), std=(1, 1, 1), scale=1 / 256, color="bgr")
    torch.testing.assert_close(hourglass.normalize(image), image.flip(1).float() / 256)
    assert torch.equal(hourglass.denormalize(hourglass.normalize(image)), image)
    assert imagenet.normalize(image.double()).dtype == torch.float64


def test_image_spec_goes_through_plain_values():
    spec = ImageSpec(size=[128, 96], scale=1 / 256, color="bgr")
    assert ImageSpec.from_dict(spec.to_dict()) == spec and spec.size == (128, 96)
    for wrong, message in (
        ({"color": "hsv"}, "rgb, bgr"),
        ({"size": (64,)}, "2 numbers"),
        ({"std": (0, 1, 1)}, "positive"),
        ({"gamma": 2}, "unknown fields \\['gamma'\\]"),
    ):
        with pytest.raises(DataError, match=message):
            ImageSpec.from_dict(wrong)


def test_warp_is_black_outside_the_image():
    patch = warp(np.full((10, 12, 3), 200, np.uint8), np.array([[1.0, 0, 4], [0, 1.0, 0]]), (20, 10))
    assert patch.shape == (10, 20, 3) and (patch[:, :4] == 0).all() and (patch[:, 4:16] == 200).all()
