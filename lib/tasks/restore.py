"""From a checkpoint file back to a task that can predict."""

from pathlib import Path

from lib.config import Config, from_dict
from lib.errors import WeightsError
from lib.tasks import build
from lib.tasks.base import Task
from lib.weights.load import load_into, read

# What a checkpoint was trained from is not needed, and may not exist where it is used.
_UNUSED = {"MODEL.PRETRAINED": "", "MODEL.RESUME": "", "MODEL.INIT_WEIGHTS": False, "MODEL.INIT_FILE": ""}


def restore(path: str | Path, fallback: Config | None = None) -> Task:
    """The task of a checkpoint with its weights, on the CPU, in evaluation mode; no data is read.

    Args:
        path: a checkpoint of ours, which knows its own configuration, or bare weights of any form that lib/weights reads.
        fallback: the configuration that bare weights are built with; None = bare weights are refused.

    Raises:
        WeightsError: the file cannot be read, does not fit its model, or holds no configuration and none was given.
    """
    checkpoint = read(path)
    values = checkpoint.meta.get("config")
    if values:
        cfg = from_dict(values, _UNUSED)
    elif fallback is not None:
        task = "integral" if fallback.TASK == "epipolar" else fallback.TASK  # its student is the network of integral
        cfg = from_dict(fallback.to_dict(), _UNUSED | {"TASK": task})
    else:
        raise WeightsError(
            f"{path}: holds weights but no configuration ({checkpoint.kind}); "
            "give the YAML it was trained with, or use the checkpoint of a run (model_best.pth.tar)"
        )
    task = build(cfg)
    load_into(task.model, task.adapted(checkpoint), strict=True)
    if checkpoint.meta.get("task_extra"):
        task.load_extra_state(checkpoint.meta["task_extra"])
    return task.eval()
