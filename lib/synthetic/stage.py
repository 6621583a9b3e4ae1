"""People in motion before the cameras of Human3.6M, without images: what lifting from 2D keypoints learns from.

The motions are those of the embedded world, or real motion capture brought here. Everything is a function of the arguments.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.synthetic import body as bodies
from lib.synthetic.actions import ACTIONS
from lib.synthetic.body import Body
from lib.synthetic.detector import TrackNoise, detect_tracks
from lib.synthetic.motion import Motion
from lib.synthetic.world import JOINT_DEPTH, SUBJECTS

VERSION = 1  # of what a seed means: raise it with every change that alters motions or noise
FPS = 50.0  # of Human3.6M
REACH = 600.0  # mm, how far from the middle of the hall the middle of a motion may lie, along x and y
LOOK_FPS = 10.0  # how often it is looked up what hides what
MARGIN = 0.015  # statures, by which something must lie in front of a joint's own skin to hide it
# Radii of the limbs between a joint and its parent, in statures: what may hide a joint.
LIMBS = {
    **{"hip": 0.060, "knee": 0.046, "ankle": 0.030, "spine": 0.075, "thorax": 0.080, "nose": 0.035, "head": 0.055},
    **{"shoulder": 0.055, "elbow": 0.027, "wrist": 0.021},
}


class Clip(NamedTuple):
    """One person doing one thing."""

    subject: str
    action: str  # name, then a space and the trial
    X_world: np.ndarray  # (T,17,3) mm, h36m17, z up, floor at 0


class Filmed(NamedTuple):
    """A clip as V cameras and a detector see it."""

    x_img: np.ndarray  # (V,T,17,2) float32 px, exact
    x_noisy: np.ndarray  # (V,T,17,2) float32 px


def generator(seed: int, *words) -> np.random.Generator:
    """Chance of its own for every purpose, the same whatever else is drawn."""
    return np.random.default_rng([int(seed), VERSION, zlib.crc32("/".join(map(str, words)).encode())])


def subjects() -> tuple[str, ...]:
    """Training subjects, then those held out; each has a body of its own."""
    return SUBJECTS["train"] + SUBJECTS["valid"]


def clips(rigs: dict[str, Cameras], seed: int = 0, seconds: float = 240.0, trials: int = 2, fps: float = FPS) -> Iterator[Clip]:
    """The motions of the embedded world.

    Args:
        rigs: subject -> Cameras (V,) before which the subject moves.
        seed: another seed gives other bodies and motions.
        seconds: of each subject, spread evenly over all actions and trials.
        trials: of each action, each drawn anew.
        fps: frames per second.

    Raises:
        DataError: less than one frame per trial.
    """
    frames = round(seconds * fps / (len(ACTIONS) * trials)) if trials > 0 else 0
    if frames < 1:
        raise DataError(f"embedded motions: {seconds:g} s in {trials} trials of {len(ACTIONS)} actions are no frame; ask for more seconds")
    t = np.arange(frames) / fps
    for subject, cameras in rigs.items():
        body, middle = Body.draw(generator(seed, "body", subject)), meeting_point(cameras)
        for action, act in ACTIONS.items():
            for trial in range(1, trials + 1):
                rng = generator(seed, "motion", subject, action, trial)
                place = middle + rng.uniform(-REACH, REACH, 2)
                motion = Motion.draw(act(body, rng), body, rng, (float(place[0]), float(place[1])))
                yield Clip(subject, f"{action} {trial}", bodies.pose(body, motion.at(t)).joints)


def placed(X: np.ndarray, cameras: Cameras, rng: np.random.Generator) -> np.ndarray:
    """A motion turned to a random heading and moved to the middle of what the cameras see.   X (T,17,3) mm, z up -> (T,17,3)"""
    angle = rng.uniform(-np.pi, np.pi)
    X = X @ bodies.rotation("z", np.array(angle)).T
    root = X[:, 0, :2]
    move = meeting_point(cameras) + rng.uniform(-REACH, REACH, 2) - (root.min(0) + root.max(0)) / 2
    return X + np.append(move, 0.0)


def meeting_point(cameras: Cameras) -> np.ndarray:
    """The place on the floor nearest to the optical axes of cameras (V,), seen from above.   -> (2,) mm"""
    center, ahead = cameras.center.numpy()[:, :2], cameras.R.numpy()[:, 2, :2]
    across = np.stack([-ahead[:, 1], ahead[:, 0]], -1) / np.linalg.norm(ahead, axis=-1, keepdims=True)
    return np.linalg.lstsq(across, (across * center).sum(-1), rcond=None)[0]


def film(clip: Clip, cameras: Cameras, rng: np.random.Generator, fps: float = FPS, noise: TrackNoise | None = None) -> Filmed:
    """What cameras (V,) see of a clip through Human3.6M's lenses, and what a detector would make of it."""
    x = cameras.project(torch.from_numpy(clip.X_world).double()[:, None].flatten(0, 2)[None], tangential="h36m")[0]
    T, J, _ = clip.X_world.shape
    x = x.numpy().reshape(len(cameras), T, J, 2)
    step = max(1, round(fps / LOOK_FPS))
    hidden = self_occluded(clip.X_world[::step], cameras.center.numpy())
    hidden = np.repeat(hidden, step, 1)[:, :T]
    noisy = detect_tracks(x, hidden, bodies.SKELETON, fps, rng, noise)
    return Filmed(x.astype(np.float32), noisy)


def self_occluded(X: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Whether the body hides its own joints, its limbs taken as capsules.

    X (T,17,3) mm, centers (V,3) mm of the cameras -> (V,T,17) bool. As cameras are far away compared to the body, rays are taken
    as parallel where they pass it.
    """
    skeleton = skeletons.get(bodies.SKELETON)
    part = [name.split("_")[-1] for name in skeleton.joints]
    child = np.array([j for j, parent in enumerate(skeleton.parents) if parent != j])
    parent = np.array([skeleton.parents[j] for j in child])
    bone = np.linalg.norm(X[:, child] - X[:, parent], axis=-1).mean(0)
    legs = np.array([part[j] in ("knee", "ankle") for j in child])
    stature = bone[legs].sum() / 2 / (bodies.SHARES["thigh"] + bodies.SHARES["shank"])
    radius = stature * np.array([LIMBS[part[j]] for j in child])
    skin = stature * (np.array([JOINT_DEPTH[p] for p in part]) + MARGIN)

    X = X.astype(np.float32)
    ray = X - centers.astype(np.float32)[:, None, None]  # (V,T,J,3)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    # Bones in the frame of each joint's ray: along it, and squared lengths across it.
    a = X[:, None, parent] - X[:, :, None]  # (T,J,E,3)
    d = (X[:, child] - X[:, parent])[:, None]  # (T,1,E,3)
    a_along, d_along = np.einsum("tjei,vtji->vtje", a, ray), np.einsum("toei,vtji->vtje", d, ray)
    aa = (a * a).sum(-1) - a_along**2
    ad = (a * d).sum(-1) - a_along * d_along
    dd = np.maximum((d * d).sum(-1) - d_along**2, 1e-3)
    s = np.clip(-ad / dd, 0, 1)
    gap = aa + s * (2 * ad + s * dd)  # squared
    thick = np.sqrt(np.maximum(radius**2 - gap, 0))
    front = thick - (a_along + s * d_along)  # how far the surface lies before the joint
    return ((gap < radius**2) & (front > skin[:, None])).any(-1)
