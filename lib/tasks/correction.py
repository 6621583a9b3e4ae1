"""Correction of predicted poses through the camera, as TEST.CORRECTION camera asks for it, for every task that lifts poses."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lib.config import Config
from lib.correction import Reprojected, correct_by_projection
from lib.geometry.camera import Cameras


def through_camera(
    cfg: Config,
    X_root: Tensor,
    x: Tensor,
    camera: Cameras,
    conf: Tensor,
    root: Tensor | None,
    skeleton: str,
    lengths_mm: Tensor | None = None,
    tangential: str = "opencv",
) -> Reprojected:
    """Poses that agree with the keypoints x; see `lib.correction.correct_by_projection`.

    X_root (N,J,3) mm, x (N,J,2) in the unit of the cameras' K, camera (N,), conf (N,J) 0..1, root (N,3) mm or None, lengths_mm (N,E)
    """
    c = cfg.CORRECTION.CAMERA
    return correct_by_projection(
        X_root,
        x,
        camera,
        root,
        conf,
        skeleton,
        steps=c.STEPS,
        eps_mm=c.EPS_MM,
        tau_mm=c.TAU_MM or math.inf,
        noise=c.NOISE,
        prior_mm=tuple(c.PRIOR_MM),
        bone_mm=c.BONE_MM or math.inf,
        root_mm=c.ROOT_MM,
        lengths_mm=lengths_mm,
        tangential=tangential,
    )


def told(cfg: Config, evidence: str) -> Mapping[str, Any]:
    """What a report says about it."""
    c = cfg.CORRECTION.CAMERA
    names = ("STEPS", "EPS_MM", "TAU_MM", "NOISE", "PRIOR_MM", "BONE_MM", "ROOT_MM")
    return {"correction": {"through": "the camera", "evidence": evidence} | {name.lower(): getattr(c, name) for name in names}}
