"""Files appear whole or not at all, and one process of several makes what all need."""

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from lib.errors import DataError, RunError, WeightsError
from lib.files import OF_TORCH, locked, new_file, replaced, write_text
from lib.ranks import on_main, once
from tests.engine_runs import Command, free_port


def test_an_older_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "deeper" / "a.npz"
    write_text(path, "old\n")
    with pytest.raises(RunError, match=r"a.npz: cannot be written \(No space left on device\); free some"), \
            replaced(path, RunError, "free some") as part:  # fmt: skip
        assert part.parent == path.parent and part.suffix == ".npz" and path.read_text() == "old\n"
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old\n"
    with pytest.raises(KeyboardInterrupt), replaced(path) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    with replaced(path, lasting=True) as part:
        part.write_text("new\n")
    assert path.read_text() == "new\n" and os.listdir(path.parent) == ["a.npz"]


@pytest.mark.parametrize("name", [".", "", "deeper"])
def test_a_folder_is_no_file_to_write(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deeper").mkdir()
    with pytest.raises(RunError, match="is a folder; give the name of a file"), replaced(name, RunError):
        pass


def test_new_files_refuse_what_is_there_and_torch_may_be_among_the_causes(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(WeightsError, match="cannot be written.*unexpected pos"), replaced(path, WeightsError, causes=OF_TORCH):
        raise RuntimeError("unexpected pos 64\nat a line")
    with pytest.raises(RuntimeError), new_file(path):
        raise RuntimeError("a bug, which no message may hide")
    with new_file(path) as part:
        part.write_bytes(b"mine")
    with pytest.raises(DataError, match="exists already and is never overwritten"), new_file(path):
        pytest.fail("not reached")
    with pytest.raises(DataError, match="cannot be written"), replaced(path / "below" / "a.bin"):
        pytest.fail("not reached")
    with pytest.raises(DataError, match="cannot be written.*use another"), locked(path / "below", "use another"):
        pytest.fail("not reached")
    assert path.read_bytes() == b"mine" and os.listdir(tmp_path) == ["a.bin"]


def test_two_runs_that_start_together_make_a_file_once(tmp_path):
    path, made = tmp_path / "labels" / "a.txt", []

    def make():
        made.append(path.exists())
        time.sleep(0.1)  # the other run comes here while the file is missing
        write_text(path, "labels\n")

    runs = [threading.Thread(target=once, args=([path], make)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert made == [False] and path.read_text() == "labels\n"


def meet(folder: Path, rank: int, port: int) -> None:
    """One of two ranks: rank 1 comes late, when the file is there; then both come to a `make` that fails."""
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", timedelta(seconds=30), 2, rank)
    path = folder / "a.txt"
    while rank == 1 and not path.exists():
        time.sleep(0.01)
    once([path], lambda: write_text(path, f"of rank {rank}\n"))

    def fail():
        raise DataError("no label at all")

    told = ""
    try:
        once([folder / "b.txt"], fail)
    except DataError as error:
        told = f"{error}, {'shared' if error.shared else 'alone'}"
    write_text(folder / f"{rank}.txt", f"{told}; {on_main(lambda: rank)}")
    dist.destroy_process_group()


def test_a_late_rank_and_an_error_of_the_main_one_leave_nobody_waiting(tmp_path):
    port = free_port()
    ranks = [Command.context.Process(target=meet, args=(tmp_path, rank, port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert (tmp_path / "a.txt").read_text() == "of rank 0\n"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["no label at all, shared; 0"] * 2
