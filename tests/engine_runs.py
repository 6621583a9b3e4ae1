"""Whole runs of the toy task for the tests of the engine: in this process, and in others."""

import hashlib
import multiprocessing
import socket
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from lib.engine import Trainer, run_dir, run_path, start
from tests.toy_task import ToyTask, in_process, toy_config


def fit(out: Path, *overrides, task_class=ToyTask, **options) -> tuple[Trainer, dict]:
    """A whole run in this process; its trainer and results."""
    trainer = make_trainer(out, *overrides, task_class=task_class, **options)
    return trainer, trainer.fit()


def make_trainer(out: Path, *overrides, task_class=ToyTask, overfit=False, dry_run=False, **options) -> Trainer:
    cfg = toy_config("OUTPUT_DIR", out, *overrides)
    world = start(cfg)
    return Trainer(cfg, task_class(cfg, **options), run_path(cfg), world, overfit, dry_run)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.task.model.state_dict().items()}


def final(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(toy_folder(out) / run_dir.FINAL, weights_only=True)


def toy_folder(out: Path) -> Path:
    return run_path(toy_config("OUTPUT_DIR", out))


def assert_equal(a: dict, b: dict) -> None:
    """Equal to the last bit."""
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def assert_close(a: dict, b: dict) -> None:
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-6, rtol=1e-5)


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def calls_of(modules: Sequence[torch.nn.Module]):
    """A list that fills with those of `modules` that are called as modules, which is what torch.compile sees, each once."""
    called: list[torch.nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda m, _: None if m in called else called.append(m)) for m in modules]
    yield called
    for hook in hooks:
        hook.remove()


@contextmanager
def untouched(folder: Path):
    """No file appears, vanishes or changes."""
    before = hashes(folder)
    yield
    assert hashes(folder) == before


class Command:
    """The toy program in a process of its own; with a rank as torchrun would start it."""

    # a server that has imported everything once and is forked for each process: an import takes longer than a run
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "tests.toy_task"])

    def __init__(self, out: Path, *arguments, rank: int | None = None, port: int = 0):
        env = {"OMP_NUM_THREADS": "1"}
        if rank is not None:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.file = out.parent / f"{out.name}-{rank}.txt"
        words = [str(word) for word in (*arguments, "OUTPUT_DIR", out)]
        self.process = self.context.Process(target=in_process, args=(str(self.file), env, words))
        self.process.start()

    def said(self) -> str:
        return self.file.read_text() if self.file.exists() else ""

    def end(self) -> tuple[int, str]:
        """(status, output); a signal n is status -n."""
        self.process.join(120)
        return self.process.exitcode, self.said()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_processes(out: Path, *arguments, of_rank: Mapping[int, Sequence] | None = None) -> list[tuple[int, str]]:
    """(status, output) of both ranks; `of_rank` holds arguments of one of them alone."""
    port, own = free_port(), of_rank or {}
    commands = [Command(out, *own.get(rank, ()), *arguments, rank=rank, port=port) for rank in (0, 1)]
    return [command.end() for command in commands]


class Stop(Exception):
    """Ends a run as abruptly as a test can within one process."""


def stopping_at(step: int) -> type[ToyTask]:
    class Stopping(ToyTask):
        def at_step(self, moment):
            super().at_step(moment)
            if moment.step == step:
                raise Stop

    return Stopping
