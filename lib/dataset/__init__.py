"""Data: layouts on disk are read into one table (annotations.py), and sampled from there (samples.py)."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.dataset.annotations import Annotations
from lib.dataset.formats import FORMATS
from lib.errors import ConfigError
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
    options = dict(options or {})
    known = {p.name: p for p in list(inspect.signature(module.read).parameters.values())[2:] if p.kind in OPTION_KINDS}
    for option in options:
        if option not in known:
            if not known:
                raise ConfigError(f"DATASET.OPTIONS: {option!r} is set, but {name} takes no options; remove it")
            raise unknown(option, known, "DATASET.OPTIONS")
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigError(f"DATASET.OPTIONS: {name} needs {', '.join(missing)}; add them to the configuration")
    ann = module.read(root, split, **options).check(f"{root} ({split})")
    return ann.to_skeleton(skeleton) if skeleton else ann
