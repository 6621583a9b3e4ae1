"""Fair races: contestants interleaved in one process on one thread, medians, ratios, targets, the machine's
ceilings."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch


@dataclass
class Contestant:
    """One way to compute something: `function()` processes `items` items."""

    name: str
    function: Callable[[], Any]
    items: int
    note: str = ""


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
        if self.targets:
            lines += ["", "target"]
        for target in self.targets:
            sign, verdict = ("<=" if target.at_most else ">="), ("met" if target.met else "MISSED")
            lines.append(f"  {target.name:<76} {target.value:>9.2f}  {sign} {target.goal:g}  {verdict}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        targets = [{**vars(target), "met": target.met} for target in self.targets]
        rows = [vars(row) for row in self.rows]
        return {"command": self.command, "unit": self.unit, "machine": self.machine, "rows": rows, "targets": targets}


def one_thread() -> None:
    """A second thread on a shared machine makes small kernels slower, not faster."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


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
