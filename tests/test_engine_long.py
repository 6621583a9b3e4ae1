"""What takes minutes: two launchers as two computers of which one loses a process, and the memory of a thousand steps."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lib.engine import checkpoint, run_dir
from tests.conftest import ROOT
from tests.engine_runs import assert_equal, final, fit, free_port, toy_folder
from tests.toy_task import ToyTask

pytestmark = pytest.mark.slow

MEBIBYTE = 1 << 20


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def two_nodes(out: Path, *arguments) -> list[tuple[int, str]]:
    """(status, output) of two torchrun agents that meet on this computer, a process each, as docs/scaling.md starts them."""
    where = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    words = [sys.executable, "-m", "torch.distributed.run", *where, "--rdzv-id=toy", "--local-addr=127.0.0.1", "-m", "tests.toy_task"]
    words += map(str, (*arguments, "OUTPUT_DIR", out, "TRAIN.RESUME", "true"))
    agents = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    try:
        said = [agent.communicate(timeout=400)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    return [(agent.returncode, text) for agent, text in zip(agents, said, strict=True)]


def test_a_job_on_two_nodes_survives_the_loss_of_a_process(tmp_path):
    size = ("TRAIN.BATCH_SIZE", 2, "TRAIN.SAVE_STEPS", 3)
    ends = two_nodes(tmp_path / "killed", "--kill-at", 8, "--kill-once", tmp_path / "marker", *size)
    assert [status for status, _ in ends] == [0, 0], ends
    assert (tmp_path / "marker").exists()  # it was killed
    said = "".join(text for _, text in ends)
    assert "another process of this run has ended" in said and f"goes on from {toy_folder(tmp_path / 'killed') / run_dir.LAST}" in said
    assert "at step 6" in said and said.count("RESULT") == 2
    ends = two_nodes(tmp_path / "whole", *size)
    assert [status for status, _ in ends] == [0, 0], ends
    assert_equal(final(tmp_path / "killed"), final(tmp_path / "whole"))
    states = [checkpoint.load(toy_folder(tmp_path / name) / run_dir.LAST) for name in ("killed", "whole")]
    assert states[0]["best"] == states[1]["best"] and states[0]["step"] == states[1]["step"] == 15


def test_memory_stays_flat_over_a_thousand_steps(tmp_path):
    seen = {}

    class Measured(ToyTask):
        def at_step(self, step):  # does not keep the steps, as the toy task does for other tests
            if step.step in (200, 600, 999):
                seen[step.step] = resident()

    options = ("TRAIN.END_EPOCH", 200, "TRAIN.SAVE_STEPS", 2, "TRAIN.EVAL_EVERY", 5, "WORKERS", 1, "DEBUG.FIGURES", 0)
    trainer, _ = fit(tmp_path, *options, task_class=Measured)
    assert trainer.step == 1000
    assert seen[999] - seen[200] < 8 * MEBIBYTE, seen
