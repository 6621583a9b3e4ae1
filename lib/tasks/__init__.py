"""Tasks by name. A task is the only place where models, losses, samples and geometry meet."""

from lib.config import Config
from lib.models import MODELS, OF_TASKS
from lib.registry import nearest, resolve
from lib.tasks.base import Step, Task

TASKS = {
    "integral": "lib.tasks.integral:IntegralTask",
    "epipolar": "lib.tasks.epipolar:EpipolarTask",
    "refine": "refiner.task:RefineTask",
    "temporal": "lib.tasks.temporal:TemporalTask",
    "voxelpose": "lib.tasks.voxelpose:VoxelPoseTask",
    "selfpose3d": "lib.tasks.selfpose3d:SelfPose3dTask",
    "fusion": "lib.tasks.fusion:FusionTask",
    "machine": "lib.tasks.machine:MachineTask",
    "scenes": "lib.tasks.scenes:ScenesTask",
}

__all__ = ["TASKS", "Step", "Task", "build"]


def build(cfg: Config) -> Task:
    """The task that `cfg.TASK` names, on the CPU, with freshly initialised or pretrained weights; reads no data.

    Raises:
        ConfigError: an unknown task, a key set in a section that the task does not read, a network or a correction that it does not have.
    """
    task_class = resolve(TASKS, cfg.TASK, key="TASK")
    cfg.check_sections(task_class.sections, cfg.TASK)
    models = task_class.models or [name for name in MODELS if name not in OF_TASKS]
    if (name := cfg.MODEL.NAME) not in models:
        hint = f" (did you mean {guess}?)" if (guess := nearest(name, models)) else ""
        raise cfg.error("MODEL.NAME", f"is {name}, which TASK {cfg.TASK} does not train{hint}; set it to {' or '.join(models)}")
    if cfg.TEST.CORRECTION not in task_class.corrections:
        found = f"is {cfg.TEST.CORRECTION}, which TASK {cfg.TASK} does not have; expected {' or '.join(task_class.corrections)}"
        raise cfg.error("TEST.CORRECTION", found)
    return task_class(cfg)
