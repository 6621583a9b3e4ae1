"""From a checkpoint file back to a task that can predict."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.config import Config, from_dict
from lib.dataset.image import ImageSpec
from lib.errors import WeightsError
from lib.registry import resolve
from lib.tasks import TASKS, build
from lib.tasks.base import Task
from lib.weights.adapters import Checkpoint
from lib.weights.load import load_into, read
from lib.weights.needs import image_spec_of

# What each kind of network (Task.sees) does, and who uses it.
KINDS = {
    "person": ("looks at a picture of a single person", "lib.predictor.Predictor, or scripts/predict.py with pictures"),
    "keypoints": ("lifts keypoints", "lib.predictor.Lifter, or scripts/predict.py --keypoints"),
    "views": ("finds people before several cameras", "lib.predictor.RigPredictor, or scripts/predict.py --rig"),
    "pose": ("corrects the poses of another network", "the commands of refiner/README.md"),
}

# What a checkpoint was trained from is not needed, and may not exist where it is used.
_UNUSED = {"MODEL.PRETRAINED": "", "MODEL.RESUME": "", "MODEL.INIT_WEIGHTS": False, "MODEL.INIT_FILE": ""}
_READING = ("LOSS.FN", "TEST.DECODE", "TEST.POST_PROCESS", "TEST.FLIP_TEST")  # of maps; see IntegralTask


def restore(path: str | Path, fallback: Config | None = None, evidence: str = "", sees: Sequence[str] = ()) -> Task:
    """The task of a checkpoint with its weights, on the CPU, in evaluation mode; no data is read.

    Args:
        path: a checkpoint of ours, which knows its own configuration, or bare weights of any form that lib/weights reads.
        fallback: the configuration that bare weights are built with; None = bare weights are refused.
        evidence: correct poses by the 2D pose that the network sees ("network") or by joints in the batch ("labels"), as CORRECTION of the
            configuration says; empty = no correction, whatever the network was judged with.
        sees: kinds of networks that the caller can use, of KINDS; empty = all.

    Raises:
        WeightsError: the file cannot be read, does not fit its model, or holds no configuration and none was given; its network is of
            another kind, or its task has no correction.
        ConfigError: its task cannot correct by this evidence.
    """
    checkpoint = read(path)
    if checkpoint.config:
        cfg = from_dict(checkpoint.config, _UNUSED)
    elif fallback is not None:
        cfg = fallback.with_values(_UNUSED)
        if cfg.TASK == "epipolar":  # its student is the network of integral, which does not read all of its sections
            cfg = from_dict(cfg.to_dict(), {"TASK": "integral"})
    else:
        raise WeightsError(
            f"{path}: holds weights but no configuration ({checkpoint.kind}); "
            "give the YAML it was trained with, use the checkpoint of a run (model_best.pth.tar), or make one of it with "
            "scripts/convert.py convert"
        )
    kind = resolve(TASKS, cfg.TASK, key="TASK").sees
    if sees and kind not in sees:
        does, user = KINDS[kind]
        raise WeightsError(f"{path}: its network {does}, expected one that {' or '.join(KINDS[k][0] for k in sees)}; use {user}")
    task = build(_correcting(cfg, evidence, path))
    adopt(task, checkpoint)
    return task.eval()


def assumed(path: str | Path, fallback: Config) -> dict[str, Any]:
    """The values of `fallback` that decide what `restore` makes of bare weights for crops, and how their maps are read; {} for a
    checkpoint, which knows its own.

    Raises:
        WeightsError: the file cannot be read.
    """
    if read(path).config:
        return {}
    values = fallback.with_values(_UNUSED).flat()
    return {key: value for key, value in values.items() if key.startswith("MODEL.") or key in _READING}


def _correcting(cfg: Config, evidence: str, path: str | Path) -> Config:
    """The configuration with a correction by this evidence, or without."""
    if not evidence:
        return cfg if cfg.TEST.CORRECTION == "off" else cfg.with_values({"TEST.CORRECTION": "off"})
    kind = next((kind for kind in resolve(TASKS, cfg.TASK, key="TASK").corrections if kind != "off"), None)
    if kind is None:
        raise WeightsError(f"{path}: its poses (TASK {cfg.TASK}) cannot be corrected at test time; leave the correction out")
    return cfg.with_values({"TEST.CORRECTION": kind, "CORRECTION.EVIDENCE": evidence})


def adopt(task: Task, checkpoint: Checkpoint) -> None:
    """The weights of a checkpoint, and what belongs to them, into a task that was built without.

    Raises:
        WeightsError: the weights do not fit the model exactly; the task is then unchanged.
    """
    load_into(task.model, task.adapted(checkpoint), strict=True)
    spec = image_spec_of(checkpoint)
    if spec and task.image_spec:  # colours and normalisation belong to the weights; the size is that of the configuration
        task.image_spec = ImageSpec.from_dict({**spec, "size": task.image_spec.size})
    if checkpoint.meta.get("task_extra"):
        task.load_extra_state(checkpoint.meta["task_extra"])
