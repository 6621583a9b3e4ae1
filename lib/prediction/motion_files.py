"""What the files of poses over time have in common: their ending decides their form, and they appear whole or not at all."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from lib.errors import RunError
from lib.files import replaced


def save_as(path: str | Path, writers: Mapping[str, Callable[[], bytes]]) -> Path:
    """Writes what the writer of the path's ending makes.

    Raises:
        RunError: there is no writer for the ending, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in writers:
        raise RunError(f"{path}: ending {path.suffix or 'missing'}, expected one of {' '.join(writers)}")
    with replaced(path, RunError) as part:
        part.write_bytes(writers[path.suffix]())
    return path


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """A compressed npz file of these arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def csv_bytes(rows: Iterable[Iterable]) -> bytes:
    """A CSV file of these rows, the first of them the names of the columns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file; of a damaged one, raises OSError or one of lib.errors.MALFORMED."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
