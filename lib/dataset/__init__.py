"""Data: layouts on disk are read into one table (annotations.py, or tracks.py over time), and sampled from there (samples.py)."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.dataset.annotations import Annotations
from lib.dataset.formats import FORMATS, TRACKS
from lib.dataset.tracks import Tracks, from_annotations
from lib.errors import ConfigError, DataError, GeometryError
from lib.registry import resolve, unknown

OPTION_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load(
    name: str, root: str | Path, split: str, options: Mapping[str, Any] | None = None, skeleton: str = ""
) -> Annotations:
    """One split of a dataset, checked.

    Args:
        name: layout, a name in lib.dataset.formats.FORMATS.
        root: the dataset's folder.
        split: a split that the layout knows.
        options: the layout's own options (DATASET.OPTIONS), held against the signature of its `read`.
        skeleton: joint order to convert to; "" keeps that of the files.

    Raises:
        ConfigError: an unknown layout or option, or a required option that is missing.
        DataError: files are missing, damaged or hold impossible values.
    """
    module = resolve(FORMATS, name, key="DATASET.DATASET")
    with np.errstate(over="ignore"):  # a number too large for the table's float32 becomes infinite, which the check answers
        try:
            ann = module.read(root, split, **checked_options(module, name, options)).check(f"{root} ({split})")
        except GeometryError as error:  # of a reader that does not say itself whose cameras cannot be
            raise DataError(f"{root} ({split}): {error}; check the calibration") from error
    return ann.to_skeleton(skeleton) if skeleton else ann


def write_predictions(name: str, folder: Path, predictions: Mapping[str, Any]) -> Path | None:
    """The file in which a layout's own evaluation takes predictions, where it has one: its `write_predictions(folder, predictions)`.

    predictions: the columns of predictions.npz -> the file, None where there is none or it cannot hold them
    """
    write = getattr(resolve({**FORMATS, **TRACKS}, name, key="DATASET.DATASET"), "write_predictions", None)
    return write(folder, predictions) if write else None


def load_tracks(name: str, root: str | Path, split: str, options: Mapping[str, Any] | None = None) -> Tracks:
    """One split of a dataset as people over time, checked: of a layout in TRACKS, or made from the annotations of one in FORMATS.

    Arguments and errors are those of `load`. Lenses follow the formula that the layout's 2D joints were made with.
    """
    module = resolve({**FORMATS, **TRACKS}, name, key="DATASET.DATASET")
    if name in TRACKS:
        return module.read(root, split, **checked_options(module, name, options)).check(f"{root} ({split})")
    formula = _options_of(module).get("tangential")
    tangential = (options or {}).get("tangential", formula.default if formula else "opencv")
    return from_annotations(load(name, root, split, options), tangential).check(f"{root} ({split})")


def checked_options(module: Any, name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a layout, held against the signature of its `read`.

    Raises:
        ConfigError: an unknown option, or a required one that is missing.
    """
    options, known = dict(options or {}), _options_of(module)
    for option in options:
        if option not in known:
            if not known:
                raise ConfigError(f"DATASET.OPTIONS: {option!r} is set, but {name} takes no options; remove it")
            raise unknown(option, known, "DATASET.OPTIONS")
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(f"DATASET.OPTIONS: {name} needs {', '.join(missing)}; add them to the configuration")
    return options


def _options_of(module: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a layout's `read` after root and split."""
    return {p.name: p for p in list(inspect.signature(module.read).parameters.values())[2:] if p.kind in OPTION_KINDS}
