"""Correction of predicted poses as TEST.CORRECTION and the CORRECTION section ask for it: through the camera, for every task that lifts
poses, or through a projector that was learned.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lib.config import Config
from lib.correction import Corrected, OnlineCorrector, Reprojected, correct_by_projection, shared_lengths
from lib.geometry.camera import Cameras
from lib.skeleton import Skeleton, convert, get


def through_camera(
    cfg: Config,
    X_root: Tensor,
    x: Tensor,
    camera: Cameras | None,
    conf: Tensor,
    root: Tensor | None,
    skeleton: str,
    lengths_mm: Tensor | None = None,
    tangential: str = "opencv",
) -> Reprojected:
    """Poses that agree with the keypoints x; see `lib.correction.correct_by_projection`.

    X_root (N,J,3) mm, x (N,J,2) in the unit of the cameras' K, camera (N,) or None: x lies undistorted in the plane z = 1, conf (N,J) 0..1,
    root (N,3) mm or None, lengths_mm (N,E)
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


def by_keypoints(
    cfg: Config,
    X_root: Tensor,
    x: Tensor,
    layout: str,
    skeleton: str,
    piece: Tensor,
    camera: Cameras | None,
    root: Tensor | None,
    tangential: str = "opencv",
) -> Reprojected:
    """Lifted poses, moved until they agree with the keypoints that they were lifted from, with bones as long as the mean of their piece.

    X_root (N,J,3) mm; x (N,J_in,F) in the joints of `layout`, F = 2 or 3 with a score; piece (N,) number of the person's clip, from 0;
    camera, root, tangential: see `through_camera`
    """
    x, present = convert(torch.cat([x, torch.ones_like(x[..., :1])], -1)[..., :3], layout, skeleton)
    conf = x[..., 2].clamp(0, 1) * torch.as_tensor(present, device=x.device)
    lengths = shared_lengths(X_root, piece, skeleton)
    return through_camera(cfg, X_root, x[..., :2], camera, conf, root, skeleton, lengths, tangential)


def as_evidence(x: Tensor, conf: Tensor, source: Skeleton | str, skeleton: Skeleton | str) -> tuple[Tensor, Tensor]:
    """What another network saw, in the joints of the poses that are corrected; joints that it lacks have no confidence.

    x (N,J_in,2), conf (N,J_in) of any scale, in the joints of `source` -> (N,J,2), (N,J) 0..1
    """
    # Heights of peaks differ from network to network: the surest joint of a person counts in full.
    conf = conf / conf.amax(1, keepdim=True).clamp(min=1e-6)
    joints, present = convert(torch.cat([x, conf[..., None]], -1), source, skeleton)
    return joints[..., :2], joints[..., 2].clamp(0, 1) * torch.as_tensor(present, device=x.device)


def through_projector(
    cfg: Config,
    regressor: nn.Module,
    projector: nn.Module,
    to_mm: Callable[[Tensor], Tensor],
    skeleton: Skeleton | str,
    p3d: Tensor,
    x: Tensor,
    conf: Tensor,
) -> Corrected:
    """Coarse poses, regressed and corrected by the 2D poses x; see `lib.correction.OnlineCorrector`.

    to_mm (...,J,3) shares -> mm; p3d (...,J,3) shares, x (...,J,2) shares of the crop, conf (...,J) 0..1
    """
    c = cfg.CORRECTION
    with torch.enable_grad():
        corrector = OnlineCorrector(
            regressor,
            projector,
            to_mm,
            get(skeleton),
            steps=c.STEPS,
            lr=c.LR,
            params=c.PARAMS,
            rule=c.RULE,
            bones={"auto": None, "on": True, "off": False}[c.BONES],
            eps_mm=c.EPS_MM,
            tau_mm=c.TAU_MM or math.inf,
            carry=c.CARRY,
        )
        return corrector(p3d.float(), x.float(), conf.float(), trace=True)


def ended(found: Reprojected) -> dict[str, Tensor]:
    """What predictions say about a correction by px.

    updates, decision (...): see `lib.correction.DECISIONS`; reprojection_before_px, reprojection_px (...): how far the pose's image is from
    the 2D joints on average, before and after
    """
    errors = {"reprojection_before_px": found.error_before, "reprojection_px": found.error_after}
    return {"updates": found.steps, "decision": found.decision} | errors


def ended_in_shares(found: Corrected, x: Tensor, conf: Tensor, px: Tensor) -> dict[str, Tensor]:
    """The same of a correction through a projector, by which distances are measured: the one that was trained, and the pose's own.

    x (...,J,2) shares, conf (...,J) as they were given; px (...,2) of a share
    """
    weight = torch.where((conf > 0) & x.isfinite().all(-1), conf.float(), 0.0)
    offsets = [(seen - x.float().nan_to_num()).mul(px[..., None, :]).norm(dim=-1) for seen in found.projections()]
    before, after = ((weight * off).sum(-1) / weight.sum(-1).clamp(min=1e-12) for off in offsets)
    return {"updates": found.steps, "decision": found.decision, "reprojection_before_px": before, "reprojection_px": after}


def told(cfg: Config, evidence: str) -> Mapping[str, Any]:
    """What a report says about a correction through the camera."""
    c = cfg.CORRECTION.CAMERA
    names = ("STEPS", "EPS_MM", "TAU_MM", "NOISE", "PRIOR_MM", "BONE_MM", "ROOT_MM")
    return {"correction": {"through": "the camera", "evidence": evidence} | {name.lower(): getattr(c, name) for name in names}}


def told_of_projector(cfg: Config, evidence: str) -> Mapping[str, Any]:
    """What a report says about a correction through a projector."""
    c = cfg.CORRECTION
    return {"correction": {"rule": c.RULE, "steps": c.STEPS, "lr": c.LR, "learns": c.PARAMS, "evidence": evidence}}
