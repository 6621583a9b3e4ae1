"""What the engine adds to a training step: beside the shortest loop that trains the same network, with batches at hand and with loading;
how busy a GPU is; and what bf16 does to the loss."""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.optim import Adam
from torch.profiler import profile

from lib.config import Config, load
from lib.dataset.loader import Key, collate, to_device
from lib.engine import Trainer, start
from lib.engine.distributed import has_fast_bf16
from lib.errors import RunError
from lib.tasks import build
from lib.tasks.base import Step
from scripts.benchmarks.harness import Contestant, PeakMemory, Report, Target, machine, one_thread, race, same, timer

EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "synthetic" / "train.yaml"
AT_HAND = 4  # batches that the steps without loading go round
PROFILED = 20  # steps in which a GPU is watched
PLAIN, OURS = "plain loop", "ours"
PLAIN_LOADING, OURS_LOADING = "plain loop, samples made between the steps", "ours, samples made by workers meanwhile"


def run(args: argparse.Namespace) -> Report:
    """Race steps of the volumetric network on the embedded world.    -> harness.Report in crops/s"""
    if args.batch < 1 or args.side % 32 or args.side < 64 or args.workers < 1 or args.curve < 0:
        given = f"--batch {args.batch} --side {args.side} --workers {args.workers} --curve {args.curve}"
        raise RunError(f"{given}: expected crops of 64 px or a larger multiple of 32, one of them or more, one worker or more, steps")
    one_thread()
    report = Report("engine", "crops", machine())
    with tempfile.TemporaryDirectory() as root:
        trainer = Measured(configuration(args, root), lambda trainer, batches: measure(report, args, trainer, batches))
        trainer.fit()
        if args.curve:
            curves(report, args, root)
    return report


def configuration(args: argparse.Namespace, root: str, amp: str = "off") -> Config:
    """The volumetric network on a small world in `root`, drawn on first use."""
    return load(EXPERIMENT).with_values({
        "DATASET.ROOT": root, "SYNTH.PRETRAIN": 0, "SYNTH.TRAIN": -(-args.points // 4), "SYNTH.VALID": 1,
        "SYNTH.SIZE": [max(args.side, 128)] * 2,
        "MODEL.PRETRAINED": "", "MODEL.INIT_WEIGHTS": False, "MODEL.IMAGE_SIZE": [args.side, args.side],
        "MODEL.EXTRA.NUM_LAYERS": args.layers, "TRAIN.BATCH_SIZE": args.batch, "TRAIN.WARMUP_STEPS": 0,
        "TRAIN.SCHEDULE": "constant", "TRAIN.END_EPOCH": 100_000, "AMP": amp, "WORKERS": args.workers, "THREADS": 1,
        "COMPILE": args.compile, "DEVICE": args.device or str(torch.empty(0).device), "DEBUG.FIGURES": 0,
    })  # fmt: skip


class Measured(Trainer):
    """A trainer whose only epoch is a measurement; nothing is judged or written."""

    def __init__(self, cfg: Config, measurement: Callable[[Trainer, Iterator[dict]], None]):
        world = start(cfg)
        super().__init__(cfg, build(cfg), world=world)
        self.measurement = measurement

    def train_epoch(self, batches: Iterator[dict]) -> None:
        self.task.train()
        self.measurement(self, batches)
        self.step = self.total_steps

    def end_epoch(self) -> None:
        pass


class PlainLoop:
    """Forward, backward, optimiser, and the loss as a number: a training step without anything else, on a copy of the network."""

    def __init__(self, trainer: Trainer):
        self.task, self.device, self.amp = copy.deepcopy(trainer.task), trainer.device, trainer.amp_dtype
        self.optimizer = Adam(self.task.parameters(), lr=trainer.cfg.TRAIN.LR, fused=True)

    def step(self, batch: dict[str, dict]) -> float:
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            loss = self.task(to_device(batch, self.device), Step(0, 0, 0.0))["total"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def measure(report: Report, args: argparse.Namespace, trainer: Trainer, batches: Iterator[dict]) -> None:
    """All races of one opened trainer."""
    plain, ready = PlainLoop(trainer), [next(batches) for _ in range(AT_HAND)]
    losses = [(trainer.train_step(batch)["total"], plain.step(batch)) for batch in ready]
    same("losses of the first steps", *torch.tensor(losses).T, 1e-3)
    turn = iter(range(1 << 30))
    contestants = [
        Contestant(PLAIN, lambda: plain.step(ready[next(turn) % AT_HAND]), args.batch),
        Contestant(OURS, lambda: trainer.train_step(ready[next(turn) % AT_HAND]), args.batch),
    ]
    group = f"steps of {args.batch} crops at hand, {args.side} px"
    report.rows += race(group, contestants, args.rounds, timer(trainer.device))
    report.aim(group, OURS, PLAIN, 0.95)
    memory = [PeakMemory.of(lambda step=step: step(ready[0])) for step in (plain.step, trainer.train_step)]
    for row, used in zip(report.rows[-2:], memory, strict=True):
        row.note = f"{used / 2**20:.0f} MiB beside weights and batch"
    report.targets.append(Target("memory of a step, ours / plain loop", memory[1] / memory[0], 1.05, at_most=True))
    loading(report, args, trainer, plain, batches)
    if trainer.device.type != "cpu":
        busy = busy_share(lambda: [trainer.train_step(next(batches)) for _ in range(PROFILED)])
        report.targets.append(Target("percent of the time that the GPU computes, with loading", 100 * busy, 90))


def loading(report: Report, args: argparse.Namespace, trainer: Trainer, plain: PlainLoop, batches: Iterator[dict]) -> None:
    """Steps and the batches for them, by wall time: processes side by side share no other clock."""
    dataset, turn = trainer.train_sets["train"], iter(range(1 << 30))
    waited: list[float] = []

    def in_turn() -> None:
        first = next(turn) * args.batch
        samples = dataset.__getitems__([Key(i % len(dataset)) for i in range(first, first + args.batch)])
        plain.step({"train": collate(samples)})

    def side_by_side() -> None:
        asked = time.perf_counter()
        batch = next(batches)
        waited.append(time.perf_counter() - asked)
        trainer.train_step(batch)

    contestants = [Contestant(PLAIN_LOADING, in_turn, args.batch), Contestant(OURS_LOADING, side_by_side, args.batch)]
    group = f"steps with loading, {args.workers} workers, wall time"
    rows = race(group, contestants, args.rounds, time.perf_counter)
    took = args.batch / rows[1].per_second
    rows[1].note = f"waits {100 * sum(waited) / len(waited) / took:.0f}% of it for samples"
    report.rows += rows


def busy_share(work: Callable[[], object]) -> float:
    """Share of the wall time in which at least one kernel runs on the device."""
    torch.accelerator.synchronize()
    with profile() as profiler:
        begun = time.perf_counter()
        work()
        torch.accelerator.synchronize()
        seconds = time.perf_counter() - begun
    kernels = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type != DeviceType.CPU]
    return covered(kernels) / (1e6 * seconds)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def curves(report: Report, args: argparse.Namespace, root: str) -> None:
    """The loss of the same training in float32 and in bf16: same weights at first, same samples."""

    def train(trainer: Trainer, batches: Iterator[dict]) -> list[float]:
        return [trainer.train_step(next(batches))["total"] for _ in range(args.curve)]

    found: dict[str, list[float]] = {}
    for name, amp in (("float32", "off"), ("bf16", "bf16")):
        cfg = configuration(args, root, amp)
        trainer = Measured(cfg, lambda trainer, batches, name=name: found.update({name: train(trainer, batches)}))
        trainer.fit()
    report.curves = found
    if not has_fast_bf16(trainer.device):
        report.machine["bf16"] = "not in hardware: the same numbers, slower"
    tail = max(1, args.curve // 4)
    last = {name: sum(values[-tail:]) / tail for name, values in found.items()}
    report.targets.append(Target("loss of the last quarter, bf16 / float32", last["bf16"] / last["float32"], 1.05, at_most=True))
