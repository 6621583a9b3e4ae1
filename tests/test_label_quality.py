"""lib/tasks/label_quality.py on a rig with known noise and known labels."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from lib.dataset.annotations import with_poses
from lib.tasks.label_quality import bars, label_quality, picture
from lib.tasks.labels import Labels, Rule, make_labels
from tests import tiny_dataset


@pytest.fixture(scope="module")
def ann():
    """Two people with rigid bodies, that is one pose each, which wander."""
    table = tiny_dataset.make(sequences=2, frames=40)
    rng = np.random.default_rng(3)
    body = rng.uniform(-400, 400, (2, 1, 17, 3)) + [0, 0, 900]
    X = (body + rng.uniform(-300, 300, (2, 40, 1, 3)) * [1, 1, 0]).reshape(80, 17, 3)
    table = with_poses(table, X, np.ones((80, 17), bool))
    x = np.stack([table.cameras.project(torch.from_numpy(p))[0].numpy() for p in X])  # (P,V,J,2)
    return dataclasses.replace(table, x_img=x[table.pose, table.view].astype(np.float32))


def labelled(ann, sigma: np.ndarray, **rule):
    """Labels from 2D joints with noise of `sigma` px, broadcast against (N,J)."""
    noise = np.random.default_rng(5).normal(size=ann.x_img.shape) * np.broadcast_to(sigma, ann.x_img.shape[:2])[..., None]
    return make_labels(ann, (ann.x_img + noise).astype(np.float32), ann.conf, Rule("dlt", **rule))


def test_perfect_labels(ann):
    q = label_quality(ann, labelled(ann, np.zeros(1)))
    assert q.poses == 80 and (q.kept == 1).all() and set(q.bone_cv) == {"S1", "S2"}
    assert np.nanmax(q.error_p90) < 1e-2 and all(cv.max() < 1e-4 for cv in q.bone_cv.values())
    assert q.scores["mpjpe_mm"] < 0.1


def test_noise_is_found_where_it_was_put(ann):
    sigma = np.full((len(ann), 17), 0.2)
    sigma[:, 13] = 3.0  # the left wrist
    sigma[ann.view == 2] = 1.5
    q = label_quality(ann, labelled(ann, sigma))
    assert q.joint_error[:, 0].argmax() == 13 and q.view_error[:, 0].argmax() == 2
    assert q.joints[13] == "l_wrist" and q.views == (0, 1, 2, 3)
    assert (q.error_p90 >= q.error_median).all()
    worst = {q.bones[int(cv.argmax())] for cv in q.bone_cv.values()}
    assert worst == {"l_wrist"} or worst <= {"l_wrist", "l_elbow"}
    assert q.truth.per_joint["mpjpe_mm"]["l_wrist"] == max(q.truth.per_joint["mpjpe_mm"].values())
    less = label_quality(ann, labelled(ann, sigma / 4))
    assert less.scores["mpjpe_mm"] == pytest.approx(q.scores["mpjpe_mm"] / 4, rel=0.1)
    assert np.allclose(less.joint_error, q.joint_error / 4, rtol=0.1)


def test_median_is_that_of_gaussian_residuals(ann):
    """Four views, three unknowns per joint: of 8 residual coordinates 5 remain, so their deviation is sigma * sqrt(5/8)."""
    q = label_quality(ann, labelled(ann, np.full(1, 1.0)))
    rayleigh = np.sqrt(2 * np.log(2)) * np.sqrt(5 / 8)
    assert q.joint_error[:, 0].mean() == pytest.approx(rayleigh, rel=0.08)


def test_what_is_rejected_does_not_count(ann):
    sigma = np.full((len(ann), 17), 0.1)
    sigma[:, 6] = 60.0
    q = label_quality(ann, labelled(ann, sigma, threshold_px=2.0))
    assert q.kept[6] < 0.3 and (np.delete(q.kept, 6) == 1).all()
    text = q.table()
    assert f"{100 * q.kept.mean():.1f} % of the joints" in text and "against the truth: mpjpe" in text
    assert q.scores["mpjpe_mm"] < 20


def test_without_truth_or_labels(ann):
    blind = dataclasses.replace(ann, pose=np.full_like(ann.pose, -1))
    G, J = 80, 17
    none = Labels(np.zeros((G, J, 3), np.float32), np.zeros((G, J), bool), np.zeros((G, 4, J), np.float32), ann.pose)
    q = label_quality(blind, none)
    assert q.truth is None and q.scores == {} and (q.kept == 0).all() and np.isnan(q.joint_error).all()
    assert "0.0 % of the joints" in q.table() and "truth" not in q.table()
    assert json.loads(json.dumps(q.to_dict(), allow_nan=False))["joints"]["head"]["reprojection_median_px"] is None


def test_json_and_picture(ann):
    q = label_quality(ann, labelled(ann, np.full(1, 1.0)))
    stored = json.loads(json.dumps(q.to_dict(), allow_nan=False))
    assert stored["kept"] == 1.0 and stored["truth"]["mpjpe_mm"] == q.scores["mpjpe_mm"]
    assert set(stored["bone_variation"]["S1"]) == set(q.bones)
    image = bars(q)
    assert image.dtype == np.uint8 and image.shape[-1] == 3 and image.std() > 5
    frames = [np.full((120, 160, 3), 40, np.uint8)] * 5
    assert picture(q, frames).shape[0] > image.shape[0] and picture(q, []).shape == image.shape
