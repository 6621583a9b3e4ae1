"""When the correction of a pose ends, and when it is thrown away.

Source: Wang et al., 3D Human Pose Machines with Self-supervised Learning, TPAMI 2020: after each update the mean displacement of joints
that are seldom wrong is measured. Below eps nothing more is to be gained; above tau in total the 2D evidence cannot be trusted.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from lib.errors import ConfigError
from lib.skeleton import Skeleton, get

DECISIONS = ("converged", "stopped", "discarded")  # below eps; out of steps; above tau, so the first pose is kept
CONVERGED, STOPPED, DISCARDED = range(3)
RELIABLE = ("pelvis", "r_hip", "l_hip", "l_shoulder", "r_shoulder")


class StopRule:
    """The decision about every pose after each update.

    Args:
        skeleton: of the poses.
        eps_mm: a smaller displacement since the last update ends the correction.
        tau_mm: a larger displacement in total discards it; infinity = never.
        joints: names of those that are watched; by default those of RELIABLE that the skeleton has.

    Raises:
        ConfigError: a negative eps, a tau that is not above it, or no joint to watch.    DataError: the skeleton lacks a named joint.
    """

    def __init__(self, skeleton: Skeleton | str, eps_mm: float = 5.0, tau_mm: float = 20.0, joints: Iterable[str] | None = None):
        skeleton = get(skeleton)
        if not 0 <= eps_mm < tau_mm:
            raise ConfigError(f"correction: eps {eps_mm} mm and tau {tau_mm} mm; expected 0 <= eps < tau")
        names = [j for j in RELIABLE if j in skeleton.joints] if joints is None else list(joints)
        if not names:
            raise ConfigError(f"correction: skeleton {skeleton.name} has none of {', '.join(RELIABLE)}; name the joints to watch")
        self.eps_mm, self.tau_mm = eps_mm, tau_mm
        self.joints = torch.as_tensor(skeleton.indices(names))

    def moved(self, X: Tensor, other: Tensor) -> Tensor:
        """Mean distance of the watched joints.   (B,J,3), (B,J,3) mm -> (B,)"""
        joints = self.joints.to(X.device)
        return (X[:, joints] - other[:, joints]).norm(dim=-1).mean(-1)

    def __call__(self, X: Tensor, last: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Which poses are finished, and which are discarded; a pose that is not finite is discarded.

        X (B,J,3) mm after an update, `last` before it, `first` before all -> (B,) bool, (B,) bool
        """
        discarded = ~(self.moved(X, first) <= self.tau_mm)
        return self.moved(X, last) < self.eps_mm, discarded


def counts(decision: Tensor) -> dict[str, int]:
    """How many poses met each end.   decision (...) -> {"converged": n, "stopped": n, "discarded": n}"""
    found = torch.bincount(decision.flatten().cpu(), minlength=len(DECISIONS)).tolist()
    return dict(zip(DECISIONS, found, strict=True))
