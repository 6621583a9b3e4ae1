"""One HTML report per run: scores, curves, tables, pictures, 3D views and cameras in one file that needs neither server nor network."""

import logging
from pathlib import Path

from lib.errors import RunError
from lib.files import write_text
from lib.report import page, run_files

FILE = "report.html"
log = logging.getLogger("parallax")

__all__ = ["FILE", "try_report", "write_report"]


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run directory, or of the valid-<weights>/ of one, in place of an earlier one; the path of the file.

    Args:
        out: where to, instead of report.html in the folder.

    Raises:
        RunError: the folder holds no run, or the file cannot be written. Missing and damaged files are named in the report instead.
    """
    run = run_files.read(folder)
    target = Path(out) if out else run.folder / FILE
    text = page.html(run)
    write_text(target, text, RunError)
    return target


def try_report(folder: str | Path) -> Path | None:
    """`write_report` at the end of a training, whose result does not depend on it: whatever fails is a warning."""
    try:
        return write_report(folder)
    except Exception as error:
        log.warning("%s: no report was written (%s: %s); try scripts/report.py %s", folder, type(error).__name__, error, folder)
        return None
