"""What a run says: lines on the console and in train.log, events in metrics.jsonl and TensorBoard, pictures."""

import json
import logging
import sys
import time
from collections import defaultdict, deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lib.engine.checkpoint import atomic_write
from lib.engine.run_dir import write_pictures
from lib.errors import MALFORMED

log = logging.getLogger("parallax")  # the one logger of the package


class Console(logging.StreamHandler):
    """Prints lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class Recent(logging.Handler):
    """Keeps what was said before train.log is open: which weights, which labels."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def pass_on(self, handler: logging.Handler) -> None:
        """Gives the records to another handler, once."""
        while self.records:
            handler.handle(self.records.popleft())


recent = Recent()


class Meter:
    """Sums of named numbers between two log lines."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def add(self, values: dict[str, float]) -> None:
        """Takes in one step."""
        for name, value in values.items():
            self.sums[name] += value
            self.counts[name] += 1

    def state(self) -> dict[str, tuple[float, int]]:
        """Sums and counts, to gather over ranks."""
        return {name: (self.sums[name], self.counts[name]) for name in self.sums}

    @staticmethod
    def mean(states: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
        """Means over the states of all ranks; a rank may lack a name."""
        names = dict.fromkeys(name for state in states for name in state)
        both = {name: [state[name] for state in states if name in state] for name in names}
        return {name: sum(s for s, _ in pairs) / sum(n for _, n in pairs) for name, pairs in both.items()}


def open_console(is_main: bool = True) -> None:
    """Sends the lines of the package to stdout, on other ranks than the main one only errors; may be called again."""
    if not any(isinstance(handler, Console) for handler in log.handlers):
        handler = Console()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.addHandler(recent)
    log.setLevel(logging.INFO if is_main else logging.ERROR)


class RunLogger:
    """The voice of one run: silent on other ranks than the main one; it writes files while `opened` with a folder."""

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main
        self.folder: Path | None = None
        self.writer: Any = None
        self.events: Any = None
        self.start_time, self.earlier = time.monotonic(), 0.0
        open_console(is_main)

    @property
    def seconds(self) -> float:
        """How long the run has lasted, the time before a restart included."""
        return self.earlier + time.monotonic() - self.start_time

    @contextmanager
    def opened(self, folder: Path | None, step: int = 0, seconds: float = 0.0):
        """Writes into `folder` (None: nowhere) inside the block; events after `step` are about to be repeated."""
        self.start_time, self.earlier = time.monotonic(), seconds
        if folder is None or not self.is_main:
            yield self
            return
        self.folder = folder
        file = logging.FileHandler(folder / "train.log", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        recent.pass_on(file)
        log.removeHandler(recent)
        log.addHandler(file)
        try:
            self._open_events(folder / "metrics.jsonl", step)
            self._open_tensorboard(step)
            yield self
        finally:
            log.removeHandler(file)
            log.addHandler(recent)
            for stream in (file, self.events, self.writer):
                if stream is not None:
                    stream.close()
            self.folder = self.events = self.writer = None

    def _open_events(self, path: Path, step: int) -> None:
        """Opens metrics.jsonl; events after `step` are dropped, for those steps are about to be repeated."""
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            if kept != lines:
                atomic_write(path, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
        self.events = open(path, "a", encoding="utf-8")

    def _open_tensorboard(self, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info("tensorboard is not installed: the curves are in metrics.jsonl only")
            return
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1 if step else None)

    def info(self, text: str) -> None:
        """A line on the console and in train.log."""
        if self.is_main:
            log.info(text)

    def event(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Numbers of one moment, into metrics.jsonl and TensorBoard; a number that is not finite becomes null."""
        if self.events is None:
            return
        clean = {name: value if np.isfinite(value) else None for name, value in values.items()}
        line = {"event": kind, "step": step, "epoch": epoch, "seconds": round(self.seconds, 3), **clean}
        self.events.write(json.dumps(line) + "\n")
        self.events.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def steps(self, mean: dict[str, float], samples: int, step: int, epoch: int, place: str, bar: tqdm) -> None:
        """Means since the last call, of steps of `samples` samples: the line of train.log, the event, the bar."""
        seconds, data = mean.pop("time"), mean.pop("data")
        speed = samples / seconds
        others = "".join(f"\t{name} {value:.4g}" for name, value in mean.items() if name not in ("total", "lr"))
        self.info(
            f"Epoch: [{epoch}][{place}]\tTime {seconds:.3f}s\tSpeed {speed:.1f} samples/s\tData {data:.3f}s\t"
            f"Loss {mean['total']:.5f}\tLR {mean['lr']:.3g}{others}"
        )
        values = {f"train/{name}": value for name, value in mean.items()}
        self.event("train", step, epoch, {**values, "train/samples_per_s": speed})
        bar.set_postfix(loss=f"{mean['total']:.4g}", lr=f"{mean['lr']:.2g}", samples_per_s=f"{speed:.0f}")

    def pictures(self, images: dict[str, np.ndarray], step: int) -> None:
        """Pictures (H, W, 3) uint8 RGB by name: the newest under figures/, all of them in TensorBoard."""
        if self.folder is None:
            return
        write_pictures(self.folder, images)
        if self.writer is not None:
            for name, image in images.items():
                self.writer.add_image(f"figures/{name}", image, step, dataformats="HWC")

    def bar(self, total: int, text: str, initial: int = 0) -> tqdm:
        """A progress bar, shown on a terminal only: a log file gets lines, not redrawn bars."""
        shown = self.is_main and sys.stderr.isatty()
        return tqdm(total=total, initial=initial, desc=text, disable=not shown, leave=False, dynamic_ncols=True)


def _step_of(line: str) -> float:
    """Step of a line of metrics.jsonl; a line cut off by a crash counts as beyond every step."""
    try:
        return json.loads(line)["step"]
    except MALFORMED:
        return float("inf")
