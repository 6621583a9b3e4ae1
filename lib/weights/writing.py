"""Weights written under a temporary name first, so that an older file of the name is whole until the new one is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.errors import WeightsError


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed otherwise.

    Raises:
        WeightsError: the file cannot be written; an older one of that name is then untouched.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        part.unlink(missing_ok=True)
        reason = str(error).split("\n")[0]
        raise WeightsError(f"{path}: cannot be written ({reason}); choose another folder") from error
