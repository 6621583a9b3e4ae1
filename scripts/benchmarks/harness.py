"""Fair races: contestants interleaved, in one process or each in its own, on one thread; medians, ratios, targets, memory, the machine's
ceilings."""

import multiprocessing
import os
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.allocator import OPTIONS as HEAP_OPTIONS
from lib.allocator import keep_heap
from lib.engine.distributed import choose_device
from lib.errors import RunError

SHOWN = 10  # lines of a curve


@dataclass
class Contestant:
    """One way to compute something: `function()` processes `items` items."""

    name: str
    function: Callable[[], Any]
    items: int
    note: str = ""


@dataclass
class Entry:
    """A contestant that lives in a process of its own: what one does to the heap must neither help nor harm another.

    setup(*args) runs there once and gives `function(number of the call)`, the items of a call, and a note.
    """

    name: str
    setup: Callable[..., tuple[Callable[[int], Any], int, str]]
    args: tuple = ()
    device: torch.device | None = None  # None: the processor
    keep_heap: bool = True  # False: memory comes and goes as the C library likes, as in a program that never thought of it


@dataclass
class Row:
    group: str
    name: str
    per_second: float
    ratio: float  # to the first contestant of its group
    spread: float  # slowest / fastest round
    note: str = ""


@dataclass
class Target:
    name: str
    value: float
    goal: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass
class Report:
    command: str
    unit: str
    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)  # a number of each step, by name

    @property
    def targets_met(self) -> bool:
        return all(target.met for target in self.targets)

    def speed(self, group: str, name: str) -> float:
        return next(row.per_second for row in self.rows if (row.group, row.name) == (group, name))

    def aim(self, group: str, ours: str, other: str, goal: float) -> None:
        """Record the target 'ours is at least `goal` times as fast as other'."""
        ratio = self.speed(group, ours) / self.speed(group, other)
        self.targets.append(Target(f"{group}: {ours} / {other}", ratio, goal))

    def table(self) -> str:
        lines = ["machine: " + ", ".join(f"{key} {value}" for key, value in self.machine.items())]
        group = None
        for row in self.rows:
            if row.group != group:
                group = row.group
                lines += ["", f"{group:<44} {'k ' + self.unit + '/s':>14} {'ratio':>8}  spread"]
            digits = 0 if row.per_second >= 1e5 else 2 if row.per_second >= 100 else 4
            speed = f"{row.per_second / 1e3:.{digits}f}"
            lines.append(f"  {row.name:<42} {speed:>14} {row.ratio:>8.2f}  {row.spread:.2f}  {row.note}".rstrip())
        if self.curves:
            lines += ["", f"{'mean of steps':<20}" + "".join(f"{name:>12}" for name in self.curves)]
            steps = len(next(iter(self.curves.values())))
            edges = sorted({round(steps * i / SHOWN) for i in range(SHOWN + 1)})
            for first, end in zip(edges, edges[1:], strict=False):
                means = "".join(f"{statistics.fmean(values[first:end]):>12.4f}" for values in self.curves.values())
                lines.append(f"  {f'{first + 1} to {end}':<18}{means}")
        if self.targets:
            lines += ["", "target"]
        for target in self.targets:
            sign, verdict = ("<=" if target.at_most else ">="), ("met" if target.met else "MISSED")
            lines.append(f"  {target.name:<76} {target.value:>9.2f}  {sign} {target.goal:g}  {verdict}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        targets = [{**vars(target), "met": target.met} for target in self.targets]
        rows = [vars(row) for row in self.rows]
        facts = {"command": self.command, "unit": self.unit, "machine": self.machine}
        return {**facts, "rows": rows, "targets": targets, "curves": self.curves}


def one_thread() -> None:
    """A second thread on a shared machine makes small kernels slower, not faster."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def begin(name: str, items: str, device: str | None) -> tuple[Report, torch.device]:
    """An empty report of what is raced on one thread, and the device: the one that is named, or torch's own."""
    one_thread()
    return Report(name, items, machine()), choose_device(device) if device else torch.empty(0).device


def timer(device: torch.device) -> Callable[[], float]:
    """Clock for work on `device`: processor time on the CPU; elsewhere wall time, after the device has finished."""
    if device.type == "cpu":
        return time.process_time

    def wall() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return wall


def race(group: str, contestants: list[Contestant], rounds: int, clock: Callable[[], float]) -> list[Row]:
    """Median speed of each contestant; the first one is the reference of the ratios."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for contestant in contestants:  # warm caches, compile, allocate
        contestant.function()
    for _ in range(rounds):
        for contestant in contestants:
            start, repeats = clock(), 0
            while repeats < 1 or clock() - start < 0.02:
                contestant.function()
                repeats += 1
            seconds[contestant.name].append((clock() - start) / repeats)
    speeds = [contestant.items / statistics.median(seconds[contestant.name]) for contestant in contestants]
    return [
        Row(group, c.name, speed, speed / speeds[0], max(seconds[c.name]) / min(seconds[c.name]), c.note)
        for c, speed in zip(contestants, speeds, strict=True)
    ]


def race_apart(group: str, entries: Sequence[Entry], items: int, rounds: int) -> list[Row]:
    """As `race`, each contestant in a fresh process; a round takes `items` items.

    Raises:
        RunError: what a contestant raised, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    pipes, jobs, notes = {}, [], {}
    try:
        for entry in entries:
            pipes[entry.name], there = context.Pipe()
            jobs.append(context.Process(target=_compete, args=(there, entry), daemon=True))
            with _heap_setting(entry.keep_heap):
                jobs[-1].start()
            there.close()
        for name, pipe in pipes.items():
            notes[name] = _answer(pipe, name)
        seconds: dict[str, list[float]] = {name: [] for name in pipes}
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send(items)
                seconds[name].append(_answer(pipe, name))
    finally:
        for pipe in pipes.values():
            pipe.close()
        for job in jobs:
            job.join(10)
    speeds = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    first = next(iter(speeds.values()))
    spread = {name: max(values) / min(values) for name, values in seconds.items()}
    return [Row(group, name, speed, speed / first, spread[name], notes[name]) for name, speed in speeds.items()]


@contextmanager
def _heap_setting(kept: bool):
    """The environment that a process starts in; the C library reads it before anything else happens there."""
    before = {name: os.environ.pop(name) for name in HEAP_OPTIONS if not kept and name in os.environ}
    yield
    os.environ.update(before)


def _answer(pipe, name: str) -> Any:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RunError(f"{name}: the contestant's process died") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _compete(pipe, entry: Entry) -> None:
    """A contestant's process: sends its note, then seconds per item whenever it is asked."""
    if entry.keep_heap:
        keep_heap()
    one_thread()
    try:
        function, items, note = entry.setup(*entry.args)
        for number in range(2):  # warm up
            function(number)
        clock = timer(torch.device("cpu") if entry.device is None else entry.device)
        pipe.send(note)
        number = 0
        while True:
            count, start = max(1, pipe.recv() // items), clock()
            for _ in range(count):
                function(number)
                number += 1
            pipe.send((clock() - start) / (count * items))
    except (EOFError, BrokenPipeError):  # the race is over
        return
    except RunError as error:
        pipe.send(error)


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors alive at once that a function makes."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.alive: set[int] = set()

    @staticmethod
    def of(function: Callable) -> int:
        with PeakMemory() as memory:
            function()
        return memory.peak

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in known | self.alive:
                    self.alive.add(storage._cdata)
                    self.bytes += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return result

    def _freed(self, key: int, nbytes: int) -> None:
        self.alive.discard(key)
        self.bytes -= nbytes


def same(what: str, ours: Tensor, other: Tensor, tolerance: float) -> None:
    """Stop when two contestants do not compute the same, in shares of the largest number."""
    worst = float((ours - other).abs().max() / other.abs().max())
    if not worst <= tolerance:
        raise RunError(f"{what}: the contestants differ by {worst:.3g} of the largest number, expected at most {tolerance:g}")


def machine() -> dict[str, Any]:
    """Versions and measured ceilings of one thread: copy bandwidth and matrix products."""
    source = torch.zeros(32 << 20)
    target = torch.empty_like(source)
    a32, a64 = torch.rand(1024, 1024), torch.rand(1024, 1024, dtype=torch.float64)
    out32, out64 = torch.empty_like(a32), torch.empty_like(a64)
    work = [
        Contestant("copy", lambda: target.copy_(source), 2 * source.nbytes),
        Contestant("fp32", lambda: torch.mm(a32, a32, out=out32), 2 * 1024**3),
        Contestant("fp64", lambda: torch.mm(a64, a64, out=out64), 2 * 1024**3),
    ]
    copy, fp32, fp64 = (row.per_second / 1e9 for row in race("ceilings", work, 5, time.process_time))
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "copy GB/s": round(copy, 1),
        "fp32 product GFLOP/s": round(fp32),
        "fp64 product GFLOP/s": round(fp64),
    }
