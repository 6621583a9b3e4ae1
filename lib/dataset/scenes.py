"""Scenes that never were: people drawn from a pool of poses, put before the cameras of a rig, seen as a detector would see them.

What VoxelPose learns from for Shelf and Campus (Tu et al., ECCV 2020), whose own 3D poses are few and incomplete: nothing of the place
is needed but the calibration.
"""

from collections.abc import Sequence

import numpy as np
import torch

from lib import skeleton as skeletons
from lib.dataset.formats.actors import DETECTED, SceneRules, detector_scores, synthetic_people
from lib.dataset.image import ImageSpec
from lib.dataset.loader import Key
from lib.dataset.samples import Keyed, floats32
from lib.errors import DataError
from lib.geometry.camera import Cameras
from lib.geometry.crop import letterbox_affine


class SceneSamples(Keyed):
    """`count` scenes per epoch, other ones in every epoch; each a function of (seed, epoch, index) alone.

    A batch holds what one of lib.dataset.frames.FrameSamples without images does: id (B,) number of the scene; view_there (B,V) bool, all;
    flipped (B,) bool, none; patch_from_img (B,V,2,3); camera Cameras (B,V); x_img (B,V,M,J,2) px of the original images; conf (B,V,M,J)
    height of the detector's peak, 0 = not in the picture, or the person is missed; X_world (B,M,J,3) mm; X_valid (B,M,J); n_people (B,).
    People have the same slot in every view.
    """

    def __init__(
        self,
        X: np.ndarray,  # (P,J,3) mm, z up: the pool
        X_valid: np.ndarray,  # (P,J) bool
        cameras: Cameras,  # (V,), with the sizes of their images
        rules: SceneRules,
        spec: ImageSpec,
        count: int = 3000,
        max_people: int = 10,  # M; `rules.most` is lowered to it
        skeleton: str = DETECTED,
        seed: int = 0,
    ):
        joints = skeletons.get(skeleton).num
        if X.shape != (len(X), joints, 3) or X_valid.shape != X.shape[:2] or not X_valid.any():
            raise DataError(
                f"scenes: poses {X.shape}, {int(X_valid.sum())} joints of them valid; expected (P, {joints}, 3) for {skeleton}, and one "
                "valid joint or more"
            )
        if count < 1 or max_people < 1:
            raise DataError(f"scenes: count {count}, max_people {max_people}; expected at least 1 each")
        if len(cameras.shape) != 1 or not bool((cameras.size > 0).all()):
            raise DataError(f"scenes: {cameras!r}, expected cameras (V,) with the sizes of their images; give the calibration sizes")
        self.X, self.X_valid, self.cameras, self.spec, self.seed = X, X_valid, cameras, spec, seed
        self.rules, self.count, self.max_people = rules._replace(most=min(rules.most, max_people)), count, max_people
        self.skeleton = skeletons.get(skeleton)
        self.patch_from_img = letterbox_affine(cameras.size, spec.size)  # (V,2,3)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"SceneSamples({self.count} scenes of {len(self.X)} poses, {len(self.cameras)} views)"

    def __getitems__(self, keys: Sequence[Key | int]) -> dict:
        keys = self._keys(keys)
        B, V, M, J = len(keys), len(self.cameras), self.max_people, self.skeleton.num
        X, X_valid, peak, people = np.zeros((B, M, J, 3)), np.zeros((B, M, J), bool), np.zeros((B, V, M, J)), np.zeros(B, np.int64)
        for b, key in enumerate(keys):  # the draws of a scene come from a generator of its own
            rng = self._rng(key)
            drawn, known = synthetic_people(rng, self.X, self.X_valid, self.rules, self.cameras, self.skeleton.name)
            n = people[b] = len(drawn)
            height, found = detector_scores(rng, V, n, self.rules, self.skeleton.name)
            X[b, :n], X_valid[b, :n], peak[b, :, :n] = drawn, known, height * found[..., None] * known
        cameras = self.cameras.expand(B, V)
        X = torch.from_numpy(X)
        X_cam = cameras.to_cam(X.flatten(1, 2)[:, None].expand(B, V, M * J, 3))
        x_img = cameras.project_cam(X_cam)
        shown = cameras.sees(X_cam, x_img).unflatten(-1, (M, J)) & torch.from_numpy(peak > 0)
        return floats32(
            {"patch_from_img": self.patch_from_img.expand(B, V, 2, 3), "flipped": torch.zeros(B, dtype=torch.bool)},
            id=torch.tensor([key.index for key in keys]),
            view_there=torch.ones(B, V, dtype=torch.bool),
            camera=cameras,
            x_img=x_img.unflatten(2, (M, J)).where(shown[..., None], 0.0),
            conf=torch.from_numpy(peak.clip(0)).where(shown, 0.0),
            X_world=X,
            X_valid=torch.from_numpy(X_valid),
            n_people=torch.from_numpy(people),
        )
