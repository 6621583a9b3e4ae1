"""Processes, devices, number formats and seeds: where a run happens. The only file that chooses a device.

One process:  python scripts/train.py ...          N processes:  torchrun --nproc_per_node=N scripts/train.py ...
"""

import os
import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from lib import ranks
from lib.errors import ConfigError, RunError

HOST = torch.device("cpu")
PATIENCE = timedelta(hours=2)  # other ranks wait while the main one generates data or labels
SIGNS_OF_LOSS = ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe")  # in errors that have no class of their own


@dataclass(frozen=True)
class World:
    """The processes of this run and the device of this one."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def gather(self, value: Any) -> list:
        """The value of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag: is it set on any rank?"""
        if self.size == 1:
            return list(flags)
        flat = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(flat, op=dist.ReduceOp.MAX)
        return [bool(f) for f in flat.tolist()]

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Runs `function` on the main rank only; its (small) result, or its ParallaxError, reaches every rank."""
        return ranks.on_main(function)

    def lost(self, error: RuntimeError) -> bool:
        """Does the error tell that another process ended, or can no longer be reached?"""
        text = str(error).lower()
        return self.size > 1 and (isinstance(error, dist.DistError) or any(sign in text for sign in SIGNS_OF_LOSS))

    def share_buffers(self, module: nn.Module) -> None:
        """Gives every rank the buffers (batch-norm statistics) of the main one, so that all judge the same network."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def close(self) -> None:
        """Leaves the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def choose_device(text: str = "auto", local_rank: int = 0) -> torch.device:
    """The device that DEVICE names: 'auto' is this process's GPU if there is one, else the CPU.

    Raises:
        ConfigError: no device has this name, this machine has none of its kind, or fewer than processes.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if text == "auto":
        # the solvers work in float64, which Apple's GPUs do not have
        device = accelerator if accelerator is not None and accelerator.type != "mps" else HOST
    else:
        try:
            device = torch.device(text)
        except RuntimeError as e:
            raise ConfigError(f"DEVICE: {text!r} is not a device; expected auto, cpu, cuda or cuda:0") from e
    if device.type == HOST.type:
        return HOST
    if accelerator is None or accelerator.type != device.type:
        found = "none" if accelerator is None else accelerator.type
        raise ConfigError(f"DEVICE: {text!r}, but PyTorch finds no such device here (found: {found}); use DEVICE auto")
    index = local_rank if device.index is None else device.index
    count = torch.accelerator.device_count()
    if index >= count:
        raise ConfigError(
            f"DEVICE: {device.type}:{index} does not exist, this machine has {count}; "
            f"start at most {count} processes (torchrun --nproc_per_node={count}) or use DEVICE cpu"
        )
    return torch.device(device.type, index)


def autocast_dtype(amp: str | bool, device: torch.device) -> torch.dtype | None:
    """Number format of the forward pass for AMP off, bf16, fp16 or auto (bf16 where it is fast); None is float32.

    Raises:
        ConfigError: another name.
    """
    if amp == "auto":
        amp = "bf16" if has_fast_bf16(device) else "off"
    formats = {"off": None, False: None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if amp not in formats:
        raise ConfigError(f"AMP: {amp!r} is not one of off, bf16, fp16, auto")
    return formats[amp]


def has_fast_bf16(device: torch.device) -> bool:
    """True where bf16 arithmetic is in hardware: AVX512-BF16 or AMX on a CPU, compute capability 8 or more on a GPU."""
    if device.type == HOST.type:
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return any(probe is not None and probe() for probe in probes)
    supported = getattr(torch.get_device_module(device), "is_bf16_supported", None)
    return supported is not None and supported(including_emulation=False)


def seed_all(seed: int, rank: int = 0) -> None:
    """Seeds Python, NumPy and PyTorch (all devices) of this process."""
    mixed = int(np.random.SeedSequence((seed, rank)).generate_state(1)[0]) if rank else seed
    random.seed(mixed)
    np.random.seed(mixed % 2**32)
    torch.manual_seed(mixed)


def rng_state(device: torch.device) -> dict[str, Any]:
    """The random state of this process as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "device": None if device.type == HOST.type else torch.get_device_module(device).get_rng_state(device),
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores what `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None and device.type != HOST.type:
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextmanager
def kept_rng(device: torch.device):
    """Leaves the random state as it was: how often a run is evaluated must not change what it learns."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)


def start(cfg) -> World:
    """Joins the processes that torchrun started, chooses the device, sets threads, determinism and seeds as `cfg` says.

    Call it before the task is built: the seed decides the initial weights.
    """
    local_rank, launched = int(os.environ.get("LOCAL_RANK", 0)), "RANK" in os.environ and "WORLD_SIZE" in os.environ
    device = choose_device(cfg.DEVICE, local_rank)
    if device.type != HOST.type:
        torch.accelerator.set_device_index(device.index)
    if launched and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        try:
            dist.init_process_group(dist.get_default_backend_for_device(device), timeout=PATIENCE)
        except (RuntimeError, ValueError) as e:
            raise RunError(f"the processes cannot reach each other: {e}; start them with torchrun") from e
    world = World(device)
    if dist.is_initialized():
        world = World(device, dist.get_rank(), dist.get_world_size())
    if cfg.THREADS:
        torch.set_num_threads(cfg.THREADS)
    if cfg.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU library starts
    torch.use_deterministic_algorithms(bool(cfg.DETERMINISTIC))
    torch.backends.cudnn.benchmark = not cfg.DETERMINISTIC
    seed_all(cfg.SEED)  # the same initial weights on every rank
    return world
