"""Deterministic, step-addressed loading: the batch of step s is a pure function of (seed, s).

Neither the number of workers nor a restart changes what a step sees. An epoch is ceil(N / global batch) steps, the
last one filled by wrapping around the epoch's own order.
"""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lib.allocator import keep_heap
from lib.errors import DataError, ParallaxError
from lib.geometry.camera import Cameras

PREFETCH = 4  # batches per worker kept ready


class Key(NamedTuple):
    """What a training set is indexed with; the random numbers of a sample are default_rng((seed, epoch, index))."""

    index: int
    epoch: int = 0


def check_batch(n: int, batch_size: int, world: int = 1) -> None:
    """DataError unless `n` samples fill a batch of `batch_size` on each of `world` processes."""
    if n < 1:
        raise DataError("the training set is empty, expected one sample or more; check its split, subjects, views and frame step")
    if batch_size < 1:
        raise DataError(f"loader: batch size {batch_size}, expected 1 or more; set TRAIN.BATCH_SIZE")
    if batch_size * world > n:
        raise DataError(
            f"the training set has {n} samples, fewer than one batch of {batch_size * world} ({batch_size} on each of {world} "
            f"processes); set TRAIN.BATCH_SIZE to {n // world} or less, or use more data"
        )


class StepSampler(Sampler[list[Key]]):
    """Yields the keys of one rank's batch, step by step, from `start_step` on; endless unless `num_steps` is given.

    Args:
        order: the samples of an epoch in their order, instead of a permutation drawn from seed and epoch.
        ragged: the last batch of an epoch is smaller instead of being filled up; one process only.
        least: samples of a ragged last batch; fewer join the batch before.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        num_steps: int | None = None,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
        order: Callable[[int], np.ndarray] | None = None,
        ragged: bool = False,
        least: int = 1,
    ):
        if not 0 <= rank < world:
            raise DataError(f"loader: rank {rank} of {world}, expected 0 <= rank < {world}")
        if ragged and world > 1:
            raise DataError("loader: batches that are not filled up cannot be shared by several processes; use the order `seeded`")
        check_batch(n, batch_size, world)
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.start_step, self.num_steps, self.shuffle = start_step, num_steps, shuffle
        self.given_order, self.ragged, self.least = order, ragged, least

    def __len__(self) -> int:
        if self.num_steps is None:
            raise TypeError("an endless sampler has no length; give num_steps")
        return self.num_steps

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in their order, all ranks together."""
        if self.given_order is not None and self.shuffle:
            return self.given_order(epoch)
        return np.random.default_rng((self.seed, epoch)).permutation(self.n) if self.shuffle else np.arange(self.n)

    def __iter__(self) -> Iterator[list[Key]]:
        total = self.batch_size * self.world
        per_epoch = steps_per_epoch(self.n, total, self.least)
        step, epoch, order = self.start_step, -1, None
        while self.num_steps is None or step < self.start_step + self.num_steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self.order(epoch)
            first = (step % per_epoch) * total + self.rank * self.batch_size
            ends = self.ragged and (step + 1) % per_epoch == 0
            places = np.arange(first, self.n if ends else first + self.batch_size) % self.n
            yield [Key(index, epoch) for index in order[places].tolist()]
            step += 1


def steps_per_epoch(n: int, global_batch: int, least: int = 1) -> int:
    """Steps after which every one of n samples was seen; a rest of less than `least` has no step of its own."""
    return -(-n // global_batch) - (0 < n % global_batch < least)


class Loader(DataLoader):
    """A DataLoader that raises the errors of its workers as they are, not wrapped in a traceback of another process."""

    def __init__(self, dataset: Dataset, **kwargs):
        super().__init__(_Fetch(dataset), collate_fn=_unchanged, **kwargs)

    def __iter__(self):
        for batch in super().__iter__():
            if isinstance(batch, ParallaxError):
                self.close()
                raise batch
            yield batch

    def close(self) -> None:
        """Ends the worker processes now; left to garbage collection or to the exit, torch may wait 5 s for them."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


class _Fetch(Dataset):
    """Batches of a dataset; an error that the user can mend travels to the main process in place of the batch."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        whole = getattr(self.dataset, "__getitems__", None)
        try:
            return collate(whole(keys) if whole else [self.dataset[key] for key in keys])
        except ParallaxError as error:
            return error.with_traceback(None)


def _unchanged(batch: Any) -> Any:
    return batch


def make_loader(
    dataset: Dataset,
    batch_size: int,  # per process
    seed: int = 0,
    workers: int = 0,
    start_step: int = 0,
    num_steps: int | None = None,
    rank: int = 0,
    world: int = 1,
    shuffle: bool = True,
    pin: bool = False,
) -> DataLoader:
    """Training batches from step `start_step` on.

    A dataset may have attributes that change how it is read: `in_process`, its batches are made without worker processes; `ragged`,
    and then `order` and `least`, see StepSampler.

    Raises:
        DataError: an empty training set, or one smaller than a single global batch (nearly always a mistake).
    """
    ragged = getattr(dataset, "ragged", False)
    own_order, least = (dataset.order, dataset.least) if ragged else (None, 1)
    sampler = StepSampler(len(dataset), batch_size, seed, start_step, num_steps, rank, world, shuffle, own_order, ragged, least)
    return _loader(dataset, sampler, workers, pin)


def eval_loader(
    dataset: Dataset, batch_size: int, workers: int = 0, rank: int = 0, world: int = 1, pin: bool = False
) -> DataLoader:
    """Every sample once, in order: rank r of w sees the samples r, r + w, ...; none twice.

    The last batch may be smaller.

    Raises:
        DataError: an empty set.
    """
    n = len(dataset)
    if n < 1:
        raise DataError(
            "the evaluation set is empty, expected one sample or more; check its split, subjects, views and frame step"
        )
    keys = [Key(index) for index in range(rank, n, world)]
    batches = [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]
    return _loader(dataset, batches, workers, pin)


def _loader(dataset: Dataset, batches, workers: int, pin: bool) -> DataLoader:
    if getattr(dataset, "in_process", False):
        workers, pin = 0, False
    return Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=init_worker,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers > 0 else None,
        generator=torch.Generator(),  # its own: starting an iterator must not move the training's random state
    )


def init_worker(worker: int) -> None:
    """One thread per worker process, Ctrl-C left to the main process, freed image memory kept for the next one."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_heap()


def collate(samples: Sequence[Any] | Mapping) -> Any:
    """A batch of samples: tensors, arrays and cameras stacked, float -> float32, int -> int64, dictionaries by key.

    A dictionary is a batch already (see `__getitems__` in samples.py) and passes through.
    """
    if isinstance(samples, Mapping):
        return samples
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: collate([s[name] for s in samples]) for name in first}
    if isinstance(first, torch.Tensor):
        return torch.stack(list(samples))
    if isinstance(first, Cameras):
        return Cameras.stack(samples)
    if isinstance(first, np.ndarray | np.generic):
        return torch.from_numpy(np.stack(samples))
    if isinstance(first, bool):
        return torch.tensor(samples)
    if isinstance(first, float):
        return torch.tensor(samples, dtype=torch.float32)
    if isinstance(first, int):
        return torch.tensor(samples, dtype=torch.int64)
    raise DataError(
        f"collate: a sample holds {type(first).__name__}; expected tensors, arrays, numbers, Cameras or dictionaries"
    )


def to_device(batch: Any, device: torch.device, non_blocking: bool = True) -> Any:
    """The batch with every tensor and camera on a device."""
    if isinstance(batch, Mapping):
        return {name: to_device(value, device, non_blocking) for name, value in batch.items()}
    return batch.to(device, non_blocking=non_blocking) if hasattr(batch, "to") else batch
