"""What a 2D pose detector would report, made from exact annotations: for experiments on keypoints alone."""

from typing import NamedTuple

import numpy as np

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations, attach_detections


class Noise(NamedTuple):
    """How a detector errs. Lengths are shares of the box size (the mean of its sides), chances are per joint or row."""

    jitter: float = 0.006  # standard deviation of a visible joint, in both axes
    hidden: float = 3.0  # factor on it for joints that are hidden or outside the image
    limb: float = 1.6  # factor on it for wrists and ankles
    swap: float = 0.02  # chance per row that a left-right pair of limbs is mixed up
    outlier: float = 0.01  # chance of a joint somewhere else in the box
    miss: float = 0.01  # chance of a visible joint that is not found: confidence 0
    miss_hidden: float = 0.10  # the same of a hidden one


def detect(
    x_img: np.ndarray,  # (N,J,2) px, exact
    visible: np.ndarray,  # (N,J) bool
    box: np.ndarray,  # (N,4) px
    skeleton: str,
    rng: np.random.Generator,
    noise: Noise | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy joints and confidences; a function of the arguments and the state of rng.   -> x (N,J,2) float32 px, conf
    (N,J) float32 0..1

    The confidence falls with the error, but only roughly, as a detector's does. A joint that is missed has confidence
    0 and lies at its exact place plus jitter: use the confidence.
    """
    noise = noise or Noise()
    skel = skeletons.get(skeleton)
    rows, joints = visible.shape
    size = (box[:, 2:] - box[:, :2]).mean(-1)[:, None]  # (N,1) px
    limb = np.array([name.endswith(("wrist", "ankle")) for name in skel.joints])
    sigma = noise.jitter * size * np.where(visible, 1.0, noise.hidden) * np.where(limb, noise.limb, 1.0)
    # Three degrees of freedom: detectors err little most of the time and much now and then.
    x = x_img + sigma[..., None] * rng.standard_t(3, (rows, joints, 2)) / np.sqrt(3)

    # Swaps exchange whole limbs: hip, knee and ankle, or shoulder, elbow and wrist.
    flip = np.asarray(skel.flip)
    legs = np.array([name.endswith(("hip", "knee", "ankle")) for name in skel.joints])
    paired = flip != np.arange(joints)
    swapped = rng.random((rows, 2)) < noise.swap / 2
    mixed = np.where(legs, swapped[:, :1], swapped[:, 1:]) & paired
    x = np.where(mixed[..., None], x[:, flip], x)

    astray = rng.random((rows, joints)) < noise.outlier
    anywhere = box[:, None, :2] + rng.random((rows, joints, 2)) * (box[:, None, 2:] - box[:, None, :2])
    x = np.where(astray[..., None], anywhere, x)

    error = np.linalg.norm(x - x_img, axis=-1) / size
    belief = np.where(visible, 0.92, 0.62) * np.exp(-error / 0.06)
    conf = np.clip(belief + 0.08 * rng.standard_normal((rows, joints)), 0.02, 1)
    missed = rng.random((rows, joints)) < np.where(visible, noise.miss, noise.miss_hidden)
    return x.astype(np.float32), np.where(missed, 0, conf).astype(np.float32)


def detected(ann: Annotations, seed: int = 0, noise: Noise | None = None) -> Annotations:
    """The table with a detector's joints and confidences in place of the exact ones."""
    x, conf = detect(ann.x_img, ann.visible, ann.box, ann.skeleton, np.random.default_rng([seed, 2]), noise)
    return attach_detections(ann, ann.sequence, ann.frame, ann.view, ann.person, x, np.where(ann.conf > 0, conf, 0))
