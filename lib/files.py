"""Files that appear whole or not at all: written under a temporary name beside their own, then renamed.

A reader never sees half a file, a killed run leaves none under a name that counts, and processes that write the same file at once do
not meet. `new_file` refuses what is there, `replaced` keeps it whole until the new file is. What a failure is called, and what the user
can do about it, belongs to the caller.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from lib.errors import DataError, ParallaxError

ADVICE = "free space or choose another folder"
OF_TORCH = (OSError, RuntimeError)  # torch reports a full disk as a RuntimeError


def refuse_existing(path: Path) -> None:
    """DataError where something is already there."""
    if path.exists():
        raise DataError(f"{path}: exists already and is never overwritten; choose another folder, or delete it first")


@contextmanager
def new_file(path: str | Path, causes: tuple[type[Exception], ...] = (OSError,)) -> Iterator[Path]:
    """As `replaced`, of a file that must not exist yet.

    Raises:
        DataError: `path` exists, or cannot be written.
    """
    refuse_existing(Path(path))
    with replaced(path, causes=causes) as part:
        yield part


@contextmanager
def replaced(
    path: str | Path,
    error: type[ParallaxError] = DataError,
    advice: str = ADVICE,
    causes: tuple[type[Exception], ...] = (OSError,),
    lasting: bool = False,
    parents: bool = True,
) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed otherwise.

    Args:
        path: the file; an older one of that name stays as it is until the rename.
        error, advice: what is raised where it cannot be written, and the next step of its message.
        causes: exceptions of the block that mean so; OF_TORCH where torch writes.
        lasting: wait until file and rename are on the disk, so that a power cut loses neither.
        parents: make the folder if it is missing.

    Raises:
        error: `path` cannot be written; what was there is untouched.
    """
    path = Path(path)
    if path.is_dir():
        raise error(f"{path}: is a folder; give the name of a file")
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # the ending stays: some writers go by it
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        yield part
        if lasting:
            _flush(part)
        os.replace(part, path)
        if lasting:
            _flush(path.parent)
    except causes as failed:
        reason = getattr(failed, "strerror", None) or str(failed).split("\n")[0]
        raise error(f"{path}: cannot be written ({reason}); {advice}") from failed
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def remove_parts(path: str | Path) -> None:
    """Removes what killed processes left of a file under temporary names; for files that one process at a time writes."""
    path = Path(path)
    for part in path.parent.glob(f".{escape(path.stem)}.*.part{escape(path.suffix)}"):
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, error: type[ParallaxError] = DataError, advice: str = ADVICE) -> None:
    """Writes a text file (UTF-8) in place of an older one; see `replaced`."""
    with replaced(path, error, advice) as part:
        part.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: str | Path, advice: str = ADVICE) -> Iterator[None]:
    """Lets one process at a time into the block, of all that name the folder; it is made if missing.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); {advice}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
