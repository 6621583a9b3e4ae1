"""Exact resume, the rules of the run directory, and two processes, on a toy task."""

import json
import os
import pickle
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from lib.engine import Interrupted, checkpoint, run_dir
from lib.engine.signals import StopSignals
from lib.errors import DataError, RunError
from tests.engine_runs import (
    Command,
    Stop,
    assert_close,
    assert_equal,
    final,
    fit,
    hashes,
    make_trainer,
    stopping_at,
    toy_folder,
    two_processes,
    untouched,
)
from tests.toy_task import ToyTask

# -------------------------------------------------------------------------------------------------------- exact resume


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    fit(out)
    return out


def steps_logged(out: Path) -> list[int]:
    lines = (toy_folder(out) / "metrics.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["event"] == "train"]


def assert_same_run(out: Path, whole: Path) -> None:
    """Weights, optimizer, best scores, random state as in the uninterrupted run; each step was logged once."""
    assert_equal(final(out), final(whole))
    a, b = (torch.load(toy_folder(o) / "checkpoint.pth.tar", weights_only=True) for o in (out, whole))
    assert a["best"] == b["best"]
    torch.testing.assert_close(a["optimizer"], b["optimizer"], rtol=0, atol=0)
    assert torch.equal(a["rng"][0]["torch"], b["rng"][0]["torch"])
    assert steps_logged(out) == steps_logged(whole)
    a, b = (json.loads((toy_folder(o) / "results.json").read_text()) for o in (out, whole))
    assert a["metrics"] == b["metrics"] and a["step"] == b["step"]


def test_resume_after_kill_9_is_exact(tmp_path, whole):
    status, _ = Command(tmp_path, "--kill-at", 8, "TRAIN.SAVE_STEPS", 3).end()
    assert status == -signal.SIGKILL
    assert not (toy_folder(tmp_path) / run_dir.FINAL).exists()
    trainer, _ = fit(tmp_path, "TRAIN.RESUME", True)
    assert trainer.task.calls[0].step == 6 and trainer.task.epochs == [1, 2]
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize("step", [0, 1, 5, 9, 14])
def test_resume_is_exact_from_any_step(tmp_path, whole, step):
    with pytest.raises(Stop):
        fit(tmp_path, "TRAIN.SAVE_STEPS", 2, task_class=stopping_at(step))
    fit(tmp_path, "TRAIN.RESUME", True)
    assert_same_run(tmp_path, whole)


def test_resume_during_an_evaluation_repeats_the_evaluation(tmp_path, whole):
    class Interrupting(ToyTask):
        def predict(self, batch):
            self.trainer_signals().requested = True
            return super().predict(batch)

    trainer = make_trainer(tmp_path, "TEST.BATCH_SIZE", 2, task_class=Interrupting)
    trainer.task.trainer_signals = lambda: trainer.signals
    with pytest.raises(Interrupted, match="after step 5 of 15.*TRAIN.RESUME true"):
        trainer.fit()
    resumed, _ = fit(tmp_path, "TRAIN.RESUME", True)
    assert resumed.task.calls[0].step == 5
    assert_same_run(tmp_path, whole)


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    command = Command(tmp_path, "--pause-at", 7)
    while "PAUSED" not in command.said() and command.process.is_alive():
        time.sleep(0.05)
    os.kill(command.process.pid, signal.SIGINT)
    status, said = command.end()
    assert status == 130, said
    assert "stopped after step 8 of 15" in said and "TRAIN.RESUME true" in said
    assert checkpoint.load(toy_folder(tmp_path) / run_dir.LAST)["step"] == 8


@pytest.fixture
def interruptible():
    """Ctrl-C raises; a shell starts what runs in the background with SIGINT ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_signals_are_held_back_once(interruptible):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher repeats what the terminal sent
        assert signals.requested
        signals.since -= 10  # somebody lost patience
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_longer_training_goes_on_where_it_ended(tmp_path, whole):
    fit(tmp_path, "TRAIN.END_EPOCH", 2)
    trainer, _ = fit(tmp_path, "TRAIN.RESUME", True)
    assert trainer.task.calls[0].step == 10
    assert_same_run(tmp_path, whole)


def test_finished_run_is_left_alone(tmp_path):
    first = fit(tmp_path)[1]

    class Untouchable(ToyTask):
        def train_data(self):
            raise AssertionError("a finished run needs no data")

        eval_data = predict = train_data

    trainer, again = fit(tmp_path, "TRAIN.RESUME", True, task_class=Untouchable)
    assert again["metrics"] == first["metrics"]


def test_resume_of_a_given_file_starts_another_run_from_its_state(tmp_path, whole):
    file = tmp_path / "earlier.pth.tar"
    with pytest.raises(Stop):
        fit(tmp_path / "a", "TRAIN.SAVE_STEPS", 2, task_class=stopping_at(9))
    (toy_folder(tmp_path / "a") / run_dir.LAST).rename(file)
    state = checkpoint.load(file)
    checkpoint.save(file, state | {"best": state["best"] | {"value": -1e9}})  # scores of the other run, which this one will not reach
    fit(tmp_path / "b", "MODEL.RESUME", file)
    assert_equal(final(tmp_path / "b"), final(whole))
    assert (toy_folder(tmp_path / "b") / run_dir.BEST).exists() and run_dir.read_results(toy_folder(tmp_path / "b"))


def test_weights_alone_are_no_state_to_go_on_from(tmp_path, whole):
    with pytest.raises(RunError, match="model_best.pth.tar: holds weights, but not where a training stands.*MODEL.PRETRAINED"):
        fit(tmp_path, "MODEL.RESUME", toy_folder(whole) / run_dir.BEST)


# ------------------------------------------------------------------------------------------------------- run directory


def test_existing_run_is_not_overwritten(tmp_path):
    fit(tmp_path)
    with untouched(tmp_path), pytest.raises(RunError, match="TRAIN.RESUME true.*another EXP_NAME"):
        fit(tmp_path)


@pytest.mark.parametrize("trace", ["train.log", "config.yaml", "results.json", "model_best.pth.tar"])
def test_any_trace_of_a_run_is_protected(tmp_path, trace):
    folder = toy_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / trace).write_text("mine")
    with untouched(tmp_path), pytest.raises(RunError, match=trace):
        fit(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (("TRAIN.LR", 0.5), "TRAIN.LR: 0.01 there, 0.5 now"),
        (("SEED", 3), "SEED: 0 there, 3 now"),
        (("TRAIN.BATCH_SIZE", 2), "TRAIN.BATCH_SIZE: 4 there, 2 now"),
        (("MODEL.EXTRA.NUM_LAYERS", 18), "MODEL.EXTRA.NUM_LAYERS: 50 there, 18 now"),
    ],
)
def test_resume_refuses_another_configuration(tmp_path, changes, named):
    fit(tmp_path, "TRAIN.END_EPOCH", 1)
    with untouched(tmp_path), pytest.raises(RunError, match=re.escape(named)):
        fit(tmp_path, "TRAIN.RESUME", True, *changes)


def test_run_without_a_checkpoint_starts_anew(tmp_path, whole):
    with pytest.raises(Stop):
        fit(tmp_path, "TRAIN.LR", 0.5, task_class=stopping_at(1))
    fit(tmp_path, "TRAIN.RESUME", True)
    assert_equal(final(tmp_path), final(whole))
    (toy_folder(tmp_path) / run_dir.LAST).unlink()
    with untouched(tmp_path), pytest.raises(RunError, match="model_best.pth.tar.*but no checkpoint.pth.tar"):
        fit(tmp_path, "TRAIN.RESUME", True)


def test_run_that_ends_while_its_first_best_weights_are_written_goes_on(tmp_path, whole, monkeypatch):
    def crash(*_):
        raise Stop

    monkeypatch.setattr(run_dir, "write_scores", crash)
    with pytest.raises(Stop):
        fit(tmp_path)
    monkeypatch.undo()
    assert (toy_folder(tmp_path) / run_dir.BEST).exists()
    resumed, _ = fit(tmp_path, "TRAIN.RESUME", True)
    assert resumed.task.calls[0].step == 5
    assert_same_run(tmp_path, whole)


def test_failing_to_start_leaves_nothing_behind(tmp_path):
    with pytest.raises(DataError):
        fit(tmp_path, samples=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="fewer than one batch"):
        fit(tmp_path, "TRAIN.BATCH_SIZE", 5000)
    assert not list(tmp_path.iterdir())
    fit(tmp_path, "TRAIN.MAX_STEPS", 1)


def test_resume_accepts_what_does_not_change_training(tmp_path, whole):
    with pytest.raises(Stop):
        fit(tmp_path, "TRAIN.SAVE_STEPS", 4, task_class=stopping_at(6))
    harmless = ("WORKERS", 1, "TEST.BATCH_SIZE", 5, "DEBUG.FIGURES", 0, "TRAIN.SAVE_STEPS", 0)
    fit(tmp_path, "TRAIN.RESUME", True, *harmless)
    assert_equal(final(tmp_path), final(whole))


def test_cosine_cannot_be_prolonged(tmp_path):
    fit(tmp_path, "TRAIN.SCHEDULE", "cosine", "TRAIN.END_EPOCH", 1)
    with pytest.raises(RunError, match="TRAIN.END_EPOCH: 1 there, 3 now"):
        fit(tmp_path, "TRAIN.SCHEDULE", "cosine", "TRAIN.RESUME", True)


def test_unwritable_output_is_told_before_data_is_read(tmp_path):
    (tmp_path / "file").write_text("not a folder")

    class NoData(ToyTask):
        def train_data(self):
            raise AssertionError("too late")

    with pytest.raises(RunError, match="OUTPUT_DIR"):
        fit(tmp_path / "file", task_class=NoData)


class Hostile:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE"],)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "hostile", "foreign", "newer"])
def test_bad_checkpoints_are_refused_and_left_alone(tmp_path, damage, monkeypatch):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "executed"))
    fit(tmp_path, "TRAIN.MAX_STEPS", 1)
    path = toy_folder(tmp_path) / run_dir.LAST
    data = path.read_bytes()
    if damage == "hostile":
        path.write_bytes(pickle.dumps({"kind": "parallax", "model": Hostile()}, protocol=2))
    elif damage in ("foreign", "newer"):
        state = {"state_dict": {}} if damage == "foreign" else checkpoint.load(path) | {"format": 2}
        torch.save(state, path)
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[damage])
    with untouched(tmp_path), pytest.raises(RunError, match="checkpoint.pth.tar: "):
        fit(tmp_path, "TRAIN.RESUME", True)
    assert not (tmp_path / "executed").exists()


def test_resume_refuses_other_data_other_model_other_processes(tmp_path):
    fit(tmp_path, "TRAIN.END_EPOCH", 1)
    with pytest.raises(RunError, match="5 steps there and has 10 now"):
        fit(tmp_path, "TRAIN.RESUME", True, samples=40)
    path = toy_folder(tmp_path) / run_dir.LAST
    state = checkpoint.load(path)
    checkpoint.save(path, state | {"rng": state["rng"] * 2})
    with pytest.raises(RunError, match="written by 2 processes, now there are 1"):
        fit(tmp_path, "TRAIN.RESUME", True)
    checkpoint.save(path, state | {"model": {"other": torch.zeros(1)}})
    with pytest.raises(RunError, match="does not fit this task"):
        fit(tmp_path, "TRAIN.RESUME", True)


def test_no_data_is_an_error(tmp_path):
    class Empty(ToyTask):
        def eval_data(self):
            return {"valid": []}

    with pytest.raises(DataError, match="'valid' holds no samples"):
        fit(tmp_path, task_class=Empty)
    with pytest.raises(DataError, match="BATCH_SIZE"):
        fit(tmp_path / "b", "TRAIN.BATCH_SIZE", 8, samples=20)  # the second set has 7 samples


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    checkpoint.atomic_write(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        checkpoint.atomic_write(path, half)
    assert hashes(tmp_path).keys() == {"a.bin"}

    def crash(*_):
        raise SystemExit

    monkeypatch.setattr(os, "replace", crash)  # the process ends between writing and renaming
    with pytest.raises(SystemExit):
        checkpoint.atomic_write(path, lambda file: file.write(b"new"))
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    checkpoint.atomic_write(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and hashes(tmp_path).keys() == {"a.bin"}


def test_checkpoints_leave_nothing_of_killed_runs(tmp_path):
    for name in (".checkpoint.pth.123.part.tar", ".model_best.pth.123.part.tar"):
        (tmp_path / name).write_bytes(b"half")
    checkpoint.save(tmp_path / "checkpoint.pth.tar", {"step": 1})
    assert hashes(tmp_path).keys() == {"checkpoint.pth.tar", ".model_best.pth.123.part.tar"}


# ------------------------------------------------------------------------------------------------------- two processes


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path):
    size = ("TRAIN.BATCH_SIZE", 2, "TRAIN.END_EPOCH", 2)
    ends = two_processes(tmp_path / "two", "--dropout", 0, *size, "TEST.BATCH_SIZE", 2)
    assert [status for status, _ in ends] == [0, 0], ends
    fit(tmp_path / "one", "TRAIN.BATCH_SIZE", 4, "TRAIN.END_EPOCH", 2, dropout=0.0)
    assert_close(final(tmp_path / "two"), final(tmp_path / "one"))
    scores = [float(said.split("RESULT")[1].split()[1]) for _, said in ends]
    expected = json.loads((toy_folder(tmp_path / "one") / "results.json").read_text())
    assert scores == pytest.approx([expected["metrics"]["mpjpe_mm"]] * 2, rel=1e-5) and scores[0] == scores[1]
    stored = json.loads((toy_folder(tmp_path / "two") / "results.json").read_text())
    assert stored["counts"] == {"poses": 11}  # none twice, none lost
    assert len(checkpoint.load(toy_folder(tmp_path / "two") / run_dir.LAST)["rng"]) == 2
    assert "Epoch" in ends[0][1] and "Epoch" not in ends[1][1]  # one voice


def test_two_processes_stop_together_when_one_finds_nan(tmp_path):
    ends = two_processes(tmp_path, "--bad", 3, "TRAIN.BATCH_SIZE", 2, "TRAIN.SHUFFLE", "false")
    assert [status for status, _ in ends] == [2, 2], ends
    assert all("step 0" in said and "train 2, 3" in said for _, said in ends)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_end_of_one_process_ends_the_other_and_both_go_on_later(tmp_path, rank):
    size = ("TRAIN.BATCH_SIZE", 2, "TRAIN.SAVE_STEPS", 3)
    ends = two_processes(tmp_path / "killed", *size, of_rank={rank: ("--kill-at", 8)})
    assert ends[rank][0] == -signal.SIGKILL
    status, said = ends[1 - rank]
    last = toy_folder(tmp_path / "killed") / run_dir.LAST
    assert status == 2 and "Traceback" not in said, said
    assert f"another process of this run has ended or cannot be reached, its own message tells why; go on from {last} with" in said
    assert checkpoint.load(last)["step"] == 6
    ends = two_processes(tmp_path / "killed", *size, "TRAIN.RESUME", True)
    assert [status for status, _ in ends] == [0, 0], ends
    two_processes(tmp_path / "whole", *size)
    assert_equal(final(tmp_path / "killed"), final(tmp_path / "whole"))
