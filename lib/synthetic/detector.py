"""What a 2D pose detector would report, made from exact annotations: for experiments on keypoints alone."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import lfilter

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


class TrackNoise(NamedTuple):
    """How a detector errs on a video: much of its error stays for a while. Lengths are shares of the person's size in the image."""

    jitter: float = 0.010  # standard deviation of a visible joint, in both axes
    steady: float = 0.5  # share of its variance that outlives a frame
    memory: float = 0.2  # seconds after which that part has fallen to 1/e
    hidden: float = 3.0  # factor on the deviation of joints that are hidden or outside the image
    limb: float = 1.6  # factor on it for wrists and ankles
    swap: float = 0.01  # share of the frames in which the legs are mixed up, and as many for the arms, when all are seen
    swap_hidden: float = 4.0  # factor on it when one of these joints is hidden
    swap_seconds: float = 0.16  # mean length of such a mistake
    outlier: float = 0.002  # share of the frames in which a joint is found somewhere else on the person
    outlier_seconds: float = 0.06


def detect_tracks(
    x_img: np.ndarray,  # (V,T,J,2) px, exact
    hidden: np.ndarray,  # (V,T,J) bool
    skeleton: str,
    fps: float,
    rng: np.random.Generator,
    noise: TrackNoise | None = None,
) -> np.ndarray:
    """Noisy joints of a person whom V cameras film for T frames; a function of the arguments and the state of rng.   -> (V,T,J,2) float32

    A person's size is the longer side of the box around the joints, averaged over the track. Errors are heavy-tailed, lasting and
    fleeting ones alike; left and right are mixed up, and joints lost, for several frames at a time.
    """
    noise = noise or TrackNoise()
    skel = skeletons.get(skeleton)
    views, frames, joints, _ = x_img.shape
    if not frames:
        return x_img.astype(np.float32)
    low, high = x_img.min(2), x_img.max(2)
    size = (high - low).max(-1).mean(1)[:, None, None]  # (V,1,1) px
    limb = np.array([name.endswith(("wrist", "ankle")) for name in skel.joints])
    sigma = noise.jitter * size * np.where(hidden, noise.hidden, 1.0) * np.where(limb, noise.limb, 1.0)
    sigma = uniform_filter1d(sigma, 2 * round(0.1 * fps) + 1, 1, mode="nearest")  # nothing is hidden from one frame to the next

    fleeting = rng.standard_t(3, x_img.shape) / np.sqrt(3)
    x = x_img + sigma[..., None] * (
        np.sqrt(1 - noise.steady) * fleeting + np.sqrt(noise.steady) * lasting(x_img.shape, noise.memory * fps, rng)
    )

    flip = np.asarray(skel.flip)
    legs = np.array([name.endswith(("hip", "knee", "ankle")) for name in skel.joints])
    paired = flip != np.arange(joints)
    for group in (legs & paired, ~legs & paired):
        unsure = np.where(hidden[..., group].any(-1), noise.swap_hidden, 1.0)
        mixed = bursts(noise.swap * unsure, noise.swap_seconds * fps, rng)
        x = np.where(mixed[..., None, None] & group[:, None], x[:, :, flip], x)

    astray = bursts(np.full((views, frames, joints), noise.outlier), noise.outlier_seconds * fps, rng)
    anywhere = (low + rng.random((views, frames, 2)) * (high - low))[:, :, None]
    return np.where(astray[..., None], anywhere + 0.1 * sigma[..., None] * fleeting, x).astype(np.float32)


def lasting(shape: tuple[int, ...], memory: float, rng: np.random.Generator) -> np.ndarray:
    """Heavy-tailed noise of variance 1 whose autocorrelation along axis 1 is exp(-lag / memory).   -> `shape`"""
    keep = np.exp(-1 / max(memory, 1e-3))
    spare = int(np.ceil(8 * memory))  # until the start from rest is forgotten
    shocks = rng.standard_t(4, (shape[0], spare + shape[1], *shape[2:])) / np.sqrt(2)
    return lfilter([np.sqrt(1 - keep**2)], [1, -keep], shocks, axis=1)[:, spare:]


def bursts(share: np.ndarray, duration: float, rng: np.random.Generator) -> np.ndarray:
    """Spells that cover about `share` of the frames, of a mean length in frames.   share (V,T,...) -> (V,T,...) bool"""
    duration = max(duration, 1.0)
    begins = rng.random(share.shape) < share / duration
    frame = np.arange(share.shape[1]).reshape(-1, *[1] * (share.ndim - 2))
    last = np.where(begins, frame + rng.geometric(1 / duration, share.shape), 0)
    return np.maximum.accumulate(last, 1) > frame
