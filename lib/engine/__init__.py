"""How any task is trained and judged; it knows the Task interface and no task, model, dataset or paper by name."""

from lib.engine.distributed import World, seed_all, start
from lib.engine.run_dir import run_path
from lib.engine.signals import Interrupted
from lib.engine.trainer import Trainer

__all__ = ["Interrupted", "Trainer", "World", "run_path", "seed_all", "start"]
