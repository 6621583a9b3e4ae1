"""Augmentation and occluders: fixed draws, recorded paste and resize results, colour."""

import dataclasses

import numpy as np
import pytest

from lib.dataset.augment import NEUTRAL, Augment, scale_colors
from lib.dataset.occluders import Occluders, paste, procedural_occluders, resize, soft_rim
from lib.errors import DataError
from tests.conftest import golden

FULL = Augment(scale=0.25, rot_deg=30, rot_prob=0.6, color=0.2, flip_prob=0.5)


def draws(augment: Augment, count: int = 4000):
    return [augment.draw(np.random.default_rng((3, i))) for i in range(count)]


def test_draws_have_the_published_distribution():
    params = draws(FULL)
    scale, rot = np.array([p.scale for p in params]), np.array([p.rot_deg for p in params])
    color = np.array([p.color for p in params])
    assert scale.min() == 0.75 and scale.max() == 1.25  # clipped at one deviation: a third of the draws
    assert abs(np.mean(np.abs(scale - 1) == 0.25) - 0.317) < 0.03
    assert abs(np.mean(rot != 0) - 0.6) < 0.03 and abs(rot).max() == 60
    assert 0.8 <= color.min() < 0.81 and 1.19 < color.max() <= 1.2
    assert abs(np.mean([p.flip for p in params]) - 0.5) < 0.03


@pytest.mark.parametrize("off", ["scale", "rot_deg", "color", "flip_prob"])
def test_switching_one_kind_off_leaves_the_others_as_they_were(off):
    changed = {"scale": "scale", "rot_deg": "rot_deg", "color": "color", "flip_prob": "flip"}[off]
    for full, part in zip(draws(FULL, 50), draws(dataclasses.replace(FULL, **{off: 0.0}), 50), strict=True):
        assert getattr(part, changed) == getattr(NEUTRAL, changed)
        assert part._replace(**{changed: getattr(full, changed)}) == full


def test_default_augment_changes_nothing_but_the_occlusion_seed():
    assert all(p._replace(occlusion_seed=0) == NEUTRAL for p in draws(Augment(), 20))


@pytest.mark.parametrize("wrong", [{"scale": 1.0}, {"rot_prob": 1.5}, {"flip_prob": -0.1}, {"color": 2.0}])
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(DataError, match=f"Augment.{next(iter(wrong))} is"):
        Augment(**wrong)


def test_colors_are_scaled_rounded_and_clipped():
    image = np.array([[[100, 200, 3], [255, 0, 101]]], np.uint8)
    assert scale_colors(image, (1.5, 1.5, 0.5)).tolist() == [[[150, 255, 2], [255, 0, 50]]]
    assert scale_colors(image, (1.0, 1.0, 1.0)) is image


@pytest.mark.parametrize("case", [0, 1, 2])
def test_paste_gives_the_recorded_image(case):
    record = golden("epipolarpose", "crop_affine")
    image = record["occ_dst"].copy()
    paste(image, record["occ_src_rgba"], record[f"occ_center_{case}"])
    assert np.abs(image.astype(int) - record[f"occ_out_{case}"].astype(int)).max() <= 1
    assert case == 2 or (image != record["occ_dst"]).any()


@pytest.mark.parametrize("factor", [0.5, 1.4])
def test_resize_gives_the_recorded_object(factor):
    record = golden("epipolarpose", "crop_affine")
    found, expected = resize(record["occ_src_rgba"], factor), record[f"occ_resize_{factor}"]
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert resize(record["occ_src_rgba"], 1e-3).shape == (1, 1, 4)


def test_paste_blends_by_alpha_and_cuts_at_the_border():
    image, item = np.full((4, 4, 3), 100, np.uint8), np.full((2, 2, 4), 200, np.uint8)
    item[..., 3] = 51  # a fifth
    paste(image, item, (0.2, 3.9))  # corner at (-1, 3)
    assert image[3, 0].tolist() == [120] * 3 and (np.delete(image.reshape(-1, 3), 12, 0) == 100).all()


def test_rim_of_an_object_is_part_transparent():
    mask = np.zeros((40, 50), bool)
    mask[5:35, 10:] = True
    alpha = soft_rim(mask)
    assert alpha[20, 30] == 255 and alpha[5, 30] == 192 and alpha[20, 49] == 192 and alpha[0, 0] == 0
    assert (alpha[mask] > 0).all() and (alpha[~mask] == 0).all()


def test_procedural_objects_are_a_function_of_the_seed():
    a, b, c = procedural_occluders(1, 8), procedural_occluders(1, 8), procedural_occluders(2, 8)
    assert all(np.array_equal(x, y) for x, y in zip(a.objects, b.objects, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a.objects, c.objects, strict=True))
    for item in procedural_occluders(0, 40).objects:
        assert 64 <= max(item.shape[:2]) <= 200 and (item[..., 3] == 255).mean() > 0.15  # a body that hides something


def test_random_occlusion_is_a_function_of_its_seed_and_covers_a_part():
    occluders = procedural_occluders(0, 16)
    blank = np.full((96, 96, 3), 255, np.uint8)
    first, again = (occluders.paste_random(blank.copy(), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again)
    other = [occluders.paste_random(blank.copy(), np.random.default_rng(i)) for i in range(60)]
    covered = np.mean([(image != 255).any(-1).mean() for image in other])
    assert 0.03 < covered < 0.6


@pytest.mark.parametrize("objects", [[], [np.zeros((4, 4, 3), np.uint8)], [np.zeros((4, 4, 4))]])
def test_objects_that_cannot_be_pasted_are_refused(objects):
    with pytest.raises(DataError, match="occluders: .*expected"):
        Occluders(objects)
