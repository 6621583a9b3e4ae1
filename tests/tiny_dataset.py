"""A tiny multi-view dataset with known truth: a red dot at the right wrist, a blue one at the left, on disk as PNG
files.
"""

import dataclasses

import cv2
import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.annotations import Annotations
from lib.dataset.augment import NEUTRAL, Augment, Params
from lib.geometry.camera import Cameras

SIZE = (160, 120)
SKELETON = "h36m17"
NETWORK = {  # configuration values of a network that costs nothing
    "DATASET.SKELETON": SKELETON,
    "MODEL.IMAGE_SIZE": [64, 64],
    "MODEL.DEPTH_RES": 8,
    "MODEL.INIT_WEIGHTS": False,
    "MODEL.EXTRA.NUM_LAYERS": 18,
    "MODEL.EXTRA.NUM_DECONV_FILTERS": [16, 16, 16],
    "WORKERS": 0,
}


@dataclasses.dataclass(frozen=True)
class Fixed(Augment):
    """An augmentation that always draws the same."""

    params: Params = NEUTRAL

    def draw(self, rng):
        return self.params


def rig(views: int = 4, distance: float = 3000.0) -> Cameras:
    """Cameras on a ring at the corners of a square (for 4), looking at (0, 0, 900) mm, with distortion."""
    angle = torch.arange(views, dtype=torch.float64) * (2 * torch.pi / views) + 0.3
    center = torch.stack([distance * angle.cos(), distance * angle.sin(), torch.full_like(angle, 1500.0)], -1)
    z = torch.nn.functional.normalize(torch.tensor([0.0, 0.0, 900.0]) - center, dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(z, torch.tensor([0.0, 0.0, 1.0]).to(z).expand_as(z)), dim=-1)
    R = torch.stack([x, torch.linalg.cross(z, x), z], -2)
    K = torch.tensor([[180.0, 0, 80], [0, 180, 60], [0, 0, 1]], dtype=torch.float64)
    dist = torch.tensor([-0.2, 0.2, 1e-3, -1e-3, 0.0], dtype=torch.float64)
    return Cameras.make(K, R, center=center, dist=dist, size=torch.tensor(SIZE, dtype=torch.float64))


def make(sequences: int = 2, frames: int = 3, people: int = 1, views: int = 4, seed: int = 0) -> Annotations:
    """Random poses seen by every camera; rows ordered by sequence, frame, person, view. Images are named, not
    written.
    """
    rng = np.random.default_rng(seed)
    joints, cameras = skeletons.get(SKELETON).num, rig(views)
    shape = (sequences, frames, people, views)
    s, f, m, v = (i.reshape(-1).astype(np.int32) for i in np.indices(shape))
    pose = ((s * frames + f) * people + m).astype(np.int32)
    X = rng.uniform(-500, 500, (sequences * frames * people, joints, 3)) + [0, 0, 900]
    x = torch.stack([cameras.project(torch.from_numpy(p))[0] for p in X]).numpy()[pose, v]
    names = [f"s{i}_f{j}_v{k}.png".encode() for i, j, k in np.ndindex(sequences, frames, views)]
    low, high = x.min(1), x.max(1)
    return Annotations(
        skeleton=SKELETON,
        cameras=cameras,
        X_world=X.astype(np.float32),
        X_valid=np.ones(X.shape[:2], dtype=bool),
        sequence=s,
        frame=f,
        view=v,
        person=m,
        image=((s * frames + f) * views + v).astype(np.int32),
        camera=v,
        pose=pose,
        x_img=x.astype(np.float32),
        conf=np.ones(x.shape[:2], dtype=np.float32),
        visible=np.ones(x.shape[:2], dtype=bool),
        box=np.concatenate([low - 8, high + 8], 1).astype(np.float32),
        images=np.array(names),
        subjects=np.array([b"S%d" % (i + 1) for i in range(sequences)]),
        actions=np.array([b"Walking", b"Sitting"] * sequences)[:sequences],
        subactions=np.array([b"1"] * sequences),
        fps=50.0,
    )


def write_images(ann: Annotations, root) -> None:
    """The dots, smooth enough for a sub-pixel centre, on a weak texture in green."""
    rng = np.random.default_rng(1)
    skeleton = skeletons.get(ann.skeleton)
    grid = np.stack(np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1])), -1)
    for image in np.unique(ann.image):
        rows = np.flatnonzero(ann.image == image)
        bgr = np.zeros((SIZE[1], SIZE[0], 3))
        bgr[..., 1] = cv2.resize(rng.uniform(0, 80, (6, 8)), SIZE)
        for channel, joint in ((2, "r_wrist"), (0, "l_wrist")):
            center = ann.x_img[rows, skeleton.index(joint)]
            distance = ((grid - center[:, None, None]) ** 2).sum(-1)
            bgr[..., channel] += 200 * np.exp(-distance / (2 * 2.0**2)).max(0)
        cv2.imwrite(str(root / ann.images[image].decode()), np.rint(bgr).astype(np.uint8))


def replace(ann: Annotations, **fields) -> Annotations:
    return dataclasses.replace(ann, **fields)


def edited(ann: Annotations, field: str, place, value) -> Annotations:
    """The table with one entry of one field changed."""
    array = getattr(ann, field).copy()
    array[place] = value
    return dataclasses.replace(ann, **{field: array})
