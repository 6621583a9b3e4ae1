"""PCP of limbs beside the numbers of any task that judges 3D poses of one person, as TEST.PCP asks for it."""

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lib.config import Config
from lib.metrics.evaluator import PoseEvaluator
from lib.metrics.limbs import LimbEvaluator


def with_limbs(cfg: Config, evaluator: Any, dataset: Dataset) -> Any:
    """The evaluator of a data set, which judges limbs, too, where that was asked for.

    Raises:
        ConfigError: it judges no 3D poses of one person each.    DataError: its skeleton lacks a joint of the limbs.
    """
    rule = cfg.TEST.PCP
    if rule == "off":
        return evaluator
    if not isinstance(evaluator, PoseEvaluator):
        raise cfg.error("TEST.PCP", f"is {rule}, but here no 3D poses of single people are judged; set it to off")
    root = evaluator.skeleton.joints[evaluator.root] if rule == "rooted" else None
    evaluator.beside = (LimbEvaluator(evaluator.skeleton, _cameras(dataset), evaluator.actions, root),)
    return evaluator


def _cameras(dataset: Any) -> list[str] | None:
    """The name of the camera of each row, None where it is not known."""
    if (ann := getattr(dataset, "ann", None)) is not None:
        views = ann.view
    elif (tracks := getattr(dataset, "tracks", None)) is not None:
        views = np.repeat(tracks.view, np.diff(tracks.start))
    else:
        return None
    return [f"camera{view + 1}" for view in views]
