"""Checkpoints: plain values and tensors, written whole or not at all, read without running any code from the file.

`checkpoint.pth.tar` (everything that training needs) holds
    format 1, kind "parallax", model, task_extra, optimizer, scheduler, scaler, step, steps_per_epoch, evaluated_step,
    best, seconds, config (plain nested values), image_spec, skeleton, rng (one entry per rank)
`model_best.pth.tar` holds the same without the training state; `final_state.pth.tar` is the bare state_dict.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lib.engine.distributed import HOST, set_rng_state
from lib.errors import MALFORMED, RunError
from lib.files import OF_TORCH, remove_parts, replaced

FORMAT = 1
KIND = "parallax"


def atomic_write(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file of a run directory by `write(file)`: `path` is old or new, never half, even after a power cut.

    Raises:
        RunError: the folder cannot be written, or the disk is full; what was at `path` is untouched.
    """
    with (
        replaced(path, RunError, "free some space or set OUTPUT_DIR to another folder", OF_TORCH, lasting=True, parents=False) as part,
        part.open("wb") as file,
    ):
        write(file)


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` (plain values and tensors) under `path`, whole or not at all."""
    remove_parts(path)  # a run that is killed while it writes, again and again, must not fill the disk
    atomic_write(path, lambda file: torch.save(state, file))


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint that `save` wrote; tensors come to the host, and no code from the file is run.

    Raises:
        RunError: the file is missing, truncated, damaged, or not a training checkpoint of this repository.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location=HOST, weights_only=True)
    except FileNotFoundError as e:
        raise RunError(f"{path}: no such checkpoint") from e
    except OSError as e:
        raise RunError(f"{path}: cannot be read ({e.strerror or e}); check the path") from e
    except MALFORMED as e:
        reason = "cut short, foreign, or with code in it" if path.stat().st_size else "empty"
        raise RunError(
            f"{path}: is damaged or not a checkpoint of Parallax ({reason}); nothing was changed. Move it away to "
            "start anew, or give its weights as MODEL.PRETRAINED"
        ) from e
    if not isinstance(state, dict) or state.get("kind") != KIND:
        raise RunError(f"{path}: holds no training state of Parallax; use it as weights: MODEL.PRETRAINED {path}")
    if state.get("format") != FORMAT:
        raise RunError(
            f"{path}: has checkpoint format {state.get('format')}, this version reads format {FORMAT}; use the version "
            "of Parallax that wrote it"
        )
    return state


def network_of(task, cfg) -> dict[str, Any]:
    """What a network is rebuilt from: the least that a checkpoint holds."""
    spec = task.image_spec
    return {
        "format": FORMAT,
        "kind": KIND,
        "model": task.model.state_dict(),
        "task_extra": task.extra_state(),
        "config": cfg.to_dict(),
        "image_spec": spec.to_dict() if spec is not None else None,
        "skeleton": task.skeleton,
    }


def state_of(trainer) -> dict[str, Any]:
    """Everything that a Trainer needs to go on, but for the random state of each rank."""
    return network_of(trainer.task, trainer.cfg) | {
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": {"name": trainer.cfg.TRAIN.SCHEDULE, "total_steps": trainer.total_steps},
        "scaler": trainer.scaler.state_dict(),
        "step": trainer.step,
        "steps_per_epoch": trainer.steps_per_epoch,
        "evaluated_step": trainer.evaluated_step,
        "best": trainer.best,
        "seconds": trainer.log.seconds,
    }


def restore(trainer, state: dict[str, Any]) -> None:
    """Puts a Trainer, its data and optimizer just made, where `state` was saved.

    Raises:
        RunError: the training data has another size, or the task another shape.
    """
    there, now = state["steps_per_epoch"], trainer.steps_per_epoch
    if there != now:
        raise RunError(
            f"{trainer.source}: an epoch had {there} steps there and has {now} now, so the training data changed; "
            "start a new run with MODEL.PRETRAINED"
        )
    try:
        trainer.task.model.load_state_dict(state["model"])
        trainer.task.load_extra_state(state["task_extra"])
        trainer.optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as e:
        raise RunError(
            f"{trainer.source}: does not fit this task ({e}); use it as MODEL.PRETRAINED of a new run"
        ) from e
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.best, trainer.evaluated_step = state["step"], state["best"], state["evaluated_step"]
    set_rng_state(state["rng"][trainer.world.rank], trainer.device)


def weights_of(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a training checkpoint that a released file keeps."""
    training = ("optimizer", "scheduler", "scaler", "rng", "evaluated_step", "seconds")
    return {k: v for k, v in state.items() if k not in training}
