"""Camera rigs: rings, the four corners of Human3.6M, five HD views as in CMU Panoptic, and random single cameras."""

import numpy as np

from lib.errors import ConfigError
from lib.geometry.camera import Cameras
from lib.registry import nearest

LENS = (-0.20, 0.24, -0.0015, -0.0005, -0.003)  # k1 k2 p1 p2 k3, about that of the four Human3.6M cameras
TARGET = (0.0, 0.0, 930.0)  # mm, what the cameras look at: the hips of a person in the middle
RIGS = ("ring", "h36m", "panoptic5")


def rig(
    name: str,
    size: tuple[int, int] = (256, 256),
    distortion: bool = True,
    rng: np.random.Generator | None = None,
    zoom: float = 1.0,
) -> Cameras:
    """A named rig, scaled to the frame size.

    Args:
        name: "h36m": four corners of a 3.7 x 10 m hall, 5 m away; "panoptic5": five cameras of a dome, 3 m away at
            several heights; "ring" or "ring4", "ring8", ...: that many cameras (4) on a circle of 4.5 m.
        size: width, height px. Focal lengths scale with the shorter side, as the published rigs would when cropped
            and resized.
        distortion: lenses like Human3.6M's, else pinholes.
        rng: moves every camera a little (some 6 cm, 1 degree, 1 % of focal length), as between two recording days;
            None = exact.
        zoom: focal lengths, times this.

    Returns:
        Cameras (V,), float64, mm.

    Raises:
        ConfigError: an unknown name.
    """
    count = name[4:] if name.startswith("ring") else ""
    if name == "h36m":
        center = np.array([[1850.0, 4950, 1560], [1780, -5050, 1600], [-1840, 5100, 1500], [-1790, -4700, 1570]])
        focal = 1.146  # share of the shorter side
    elif name == "panoptic5":
        azimuth = np.radians([18.0, 95, 160, 232, 305])
        radius, height = np.array([3100.0, 2850, 3200, 2950, 3050]), np.array([1250.0, 2450, 1700, 2300, 1150])
        center = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], -1)
        focal = 0.92  # the real 1.3 cuts off people this near to a square frame
    elif name == "ring" or (count.isdigit() and 1 <= int(count) <= 64):
        azimuth = 2 * np.pi * (np.arange(int(count or 4)) + 0.25) / int(count or 4)
        height = 1500.0 + 150 * (np.arange(len(azimuth)) % 3)
        center = np.stack([4500 * np.cos(azimuth), 4500 * np.sin(azimuth), height], -1)
        focal = 1.12
    else:
        guess = nearest(name, RIGS)
        hint = f" (did you mean {guess}?)" if guess else ""
        raise ConfigError(f"rig: {name!r} is not one of {', '.join(RIGS)}, ring<number of cameras>{hint}")
    views = len(center)
    target, scale = np.broadcast_to(TARGET, (views, 3)), np.ones(views)
    if rng is not None:
        center = center + rng.normal(0, 60, (views, 3))
        target = target + rng.normal(0, 60, (views, 3))
        scale = rng.normal(1, 0.008, views)
    middle = (np.array(size) - 1) / 2
    offset = np.zeros((views, 2)) if rng is None else rng.normal(0, 0.008, (views, 2)) * min(size)
    lens = np.array(LENS) * (np.ones((views, 1)) if rng is None else rng.normal(1, 0.05, (views, 1)))
    return cameras(center, target, focal * zoom * scale * min(size), middle + offset, size, lens * distortion)


def random_camera(rng: np.random.Generator, size: tuple[int, int], distortion: bool = True) -> Cameras:
    """A photographer's camera: any height, distance and focal length that frame a standing person.   -> Cameras (1,)"""
    distance = rng.uniform(2300, 5600)
    azimuth, height = rng.uniform(-np.pi, np.pi), np.clip(rng.normal(1500, 380), 500, 2500)
    center = np.array([[distance * np.cos(azimuth), distance * np.sin(azimuth), height]])
    target = np.array([[rng.normal(0, 120), rng.normal(0, 120), rng.normal(930, 60)]])
    span = rng.uniform(2350, 3900)  # mm that the shorter side sees at the person
    focal = np.hypot(distance, height - 930) / span * min(size)
    lens = np.array([LENS]) * rng.uniform(0, 1.2) * (distortion and rng.random() < 0.5 and focal > 0.8 * min(size))
    roll = np.array([rng.normal(0, 0.05)])
    return cameras(center, target, np.array([focal]), (np.array(size) - 1) / 2 + np.zeros((1, 2)), size, lens, roll)


def cameras(center, target, focal, middle, size, lens, roll=None) -> Cameras:
    """Cameras that look at a point each.

    center, target (V,3) mm, focal (V,) px, middle (V,2) px, lens (V,5), roll (V,) rad -> (V,)
    """
    z = target - center
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    x = np.cross(z, [0.0, 0.0, 1.0])
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    y = np.cross(z, x)
    if roll is not None:
        c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
        x, y = c * x + s * y, c * y - s * x
    K = np.zeros((len(center), 3, 3))
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2], K[:, 2, 2] = middle, 1
    return Cameras.make(K, np.stack([x, y, z], 1), center=center, dist=lens, size=np.array(size, np.float64))
