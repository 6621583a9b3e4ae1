"""A task without images: a small network with dropout learns fixed random "poses"; and a program that trains it."""

import argparse
import os
import signal
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lib import config
from lib.engine import Interrupted, Trainer, run_path, start
from lib.engine.distributed import HOST
from lib.errors import ParallaxError
from lib.metrics.report import Report
from lib.tasks.base import Step, Task

INPUTS, JOINTS = 6, 3


class ToyData(Dataset):
    """Samples are pure functions of (seed, epoch, index)."""

    def __init__(self, n: int, augment: bool, bad: int = -1):
        rng = np.random.default_rng(n)
        self.x = rng.normal(size=(n, INPUTS)).astype(np.float32)
        self.X = rng.normal(size=(n, JOINTS, 3)).astype(np.float32) * 100
        self.augment, self.bad = augment, bad

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, key):
        index, epoch = key
        x = self.x[index].copy()
        if self.augment:
            x += np.random.default_rng((0, epoch, index)).normal(size=INPUTS).astype(np.float32) * 0.1
        if index == self.bad:
            x[0] = np.nan
        return {"id": index, "x": x, "X_cam": self.X[index]}


class ToyEvaluator:
    """Mean distance; rows are kept by id as the real evaluators do."""

    def __init__(self):
        self.parts: list[dict[str, Tensor]] = []

    def update(self, pred, batch):
        self.parts.append({"id": batch["id"], "error": (pred["X_cam"].float() - batch["X_cam"]).norm(dim=-1).mean(-1)})

    def rows(self):
        return {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]} if self.parts else {}

    def load_rows(self, rows):
        self.parts = [part for part in rows if part]

    def compute(self):
        rows = self.rows()
        error = rows["error"][rows["id"].argsort()].mean().item()
        return Report({"mpjpe_mm": error}, {"mpjpe_mm": {"a": error}}, {}, {"poses": len(rows["id"])})


class ToyTask(Task):
    """Forward calls the network once; `at_step` may be hooked by a test."""

    sections = ("TRAIN", "TEST")
    skeleton = "toy3"

    def __init__(self, cfg, dropout: float = 0.2, samples: int = 20, bad: int = -1):
        super().__init__()
        self.cfg = cfg
        self.model = nn.Sequential(
            nn.Linear(INPUTS, 16),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(16, JOINTS * 3),
            nn.Unflatten(1, (JOINTS, 3)),
        )
        self.samples, self.bad = samples, bad
        self.calls: list[Step] = []
        self.epochs: list[int] = []

    def at_step(self, step: Step) -> None:
        self.calls.append(step)

    def train_data(self):
        return {"train": ToyData(self.samples, augment=True, bad=self.bad), "extra": ToyData(7, augment=True)}

    def eval_data(self):
        return {"valid": ToyData(11, augment=False)}

    def forward(self, batch, step):
        self.at_step(step)
        losses = {}
        for name, b in batch.items():
            losses[name] = (self.model(b["x"]) * 100 - b["X_cam"]).square().mean() / 1e4
        return {"total": losses["train"] + 0.1 * losses["extra"], **losses}

    def predict(self, batch):
        return {"X_cam": self.model(batch["x"]) * 100}

    def evaluator(self, dataset):
        return ToyEvaluator()

    def facts(self):
        return {"samples": self.samples}

    def on_epoch(self, epoch):
        self.epochs.append(epoch)

    def figures(self, batch, pred, limit):
        return {"toy": np.full((8, 8 * min(limit, len(batch["id"])), 3), 127, np.uint8)}


OPTIONS = ("DEVICE", HOST.type, "WORKERS", 0, "THREADS", 1, "TRAIN.BATCH_SIZE", 4, "TRAIN.END_EPOCH", 3,
           "TRAIN.LR", 0.01, "TRAIN.LR_STEP", [2], "PRINT_FREQ", 2, "EXP_NAME", "toy")  # fmt: skip


def toy_config(*overrides):
    """A configuration for tests: 20 samples in batches of 4 are 5 steps an epoch, 3 epochs."""
    return config.load(None, [str(v) for v in (*OPTIONS, *overrides)])


def main(arguments: list[str]) -> int:
    """Trains the toy task with overrides "KEY VALUE ..."; the status that a script would end with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill-at", type=int, help="step in which the process is killed")
    parser.add_argument("--kill-once", help="file made by the kill of rank 1, which happens only while it is not there")
    parser.add_argument("--pause-at", type=int, help="step in which to print PAUSED and wait for a signal")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--bad", type=int, default=-1, help="training sample that is nan")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args(arguments)

    class Watched(ToyTask):
        def at_step(self, step):
            if step.step == args.kill_at and (args.kill_once is None or first_kill(args.kill_once, world.rank)):
                os.kill(os.getpid(), signal.SIGKILL)
            if step.step == args.pause_at:
                print("PAUSED", flush=True)
                while not trainer.signals.requested:
                    time.sleep(0.02)

    cfg = toy_config(*args.overrides)
    world = start(cfg)
    try:
        trainer = Trainer(cfg, Watched(cfg, args.dropout, bad=args.bad), run_path(cfg), world)
        results = trainer.fit()
        print("RESULT", world.rank, results["metrics"]["mpjpe_mm"])
    except Interrupted as stop:
        print(stop)
        return 130
    except ParallaxError as error:
        print(f"error: {error}")
        return 2
    finally:
        world.close()
    return 0


def first_kill(marker: str, rank: int) -> bool:
    """True once, in rank 1."""
    if rank != 1 or os.path.exists(marker):
        return False
    open(marker, "x").close()
    return True


def in_process(output: str, environment: dict[str, str], arguments: list[str]) -> None:
    """`main` as a process of its own: what it says goes to a file."""
    os.environ.update(environment)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
