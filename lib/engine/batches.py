"""Training batches of several sets side by side, their parts for gradient accumulation, the settings of --overfit."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from lib.dataset.loader import make_loader
from lib.errors import RunError


def training_batches(
    cfg, sets: Mapping[str, Dataset], start_step: int, steps: int, rank: int, world: int, pin: bool
) -> Iterator[dict[str, dict]]:
    """{set: batch} of each step from `start_step` on; a batch holds all accumulated parts of this process."""
    size = cfg.TRAIN.BATCH_SIZE * cfg.TRAIN.ACCUMULATE
    options = (cfg.SEED, cfg.WORKERS, start_step, steps, rank, world, cfg.TRAIN.SHUFFLE, pin)
    loaders = {name: make_loader(dataset, size, *options) for name, dataset in sets.items()}
    for parts in zip(*loaders.values(), strict=True):
        yield dict(zip(loaders, parts, strict=True))


def part_of(batch: Any, index: int, count: int) -> Any:
    """Part `index` of `count` equal parts of a (nested) batch along its first axis."""
    if count == 1:
        return batch
    if isinstance(batch, Mapping):
        return {key: part_of(value, index, count) for key, value in batch.items()}
    size = len(batch) // count
    return batch[index * size : (index + 1) * size]


def not_finite(step: int, epoch: int, values: list[dict[str, float]], ids: list[dict[str, list]]) -> RunError:
    """The error for a step whose loss or gradient is not finite, from the numbers and sample ids of every rank."""
    found = {name: value for rank in values for name, value in rank.items() if not math.isfinite(value)}
    samples = "; ".join(f"{name} {', '.join(map(str, rows))}" for rank in ids for name, rows in rank.items())
    numbers = ", ".join(f"{name} is {value}" for name, value in found.items())
    error = RunError(
        f"step {step} (epoch {epoch}): {numbers}, expected finite numbers; the optimizer has not moved. Samples of "
        f"this step by id: {samples}. Look at them; if they are sound, lower TRAIN.LR, set TRAIN.CLIP, or AMP off"
    )
    error.shared = len(values) > 1
    return error


def overfit_config(cfg, own: Mapping[str, Any]):
    """The configuration for --overfit: no augmentation, a fixed order, evaluation on the training split, and the keys of the task's `own`
    (`Task.overfit`).
    """
    return cfg.with_values({
        "DATASET.TEST_SET": cfg.DATASET.TRAIN_SET, "TEST.SUBJECTS": cfg.DATASET.SUBJECTS,
        "DATASET.VAL_FRAME": cfg.DATASET.TRAIN_FRAME, "DATASET.FLIP": False,
        "DATASET.SCALE_FACTOR": 0.0, "DATASET.ROT_FACTOR": 0.0, "DATASET.COLOR_FACTOR": 0.0,
        "DATASET.OCCLUSION": False, "TEST.BATCH_SIZE": cfg.TRAIN.BATCH_SIZE * cfg.TRAIN.ACCUMULATE,
        "TRAIN.SHUFFLE": False, "TRAIN.SCHEDULE": "constant", "TRAIN.WARMUP_STEPS": 0, **own,
    })  # fmt: skip
