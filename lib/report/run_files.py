"""What a run directory holds, as far as it is there: nothing here fails because a file is missing or damaged, it is told instead."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lib import config as configuration
from lib.engine import run_dir
from lib.errors import ConfigError, RunError

VALIDATION = "valid-"  # begins the folders of scripts/valid.py
LOG_LINES = 60  # of train.log that are shown


@dataclass
class RunFiles:
    """The files of a run directory, or of the valid-<weights>/ of one; what is not there is empty and named in `missing`."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)  # nested, as config.yaml
    records: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    results: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)  # of predictions.npz, without those of further sets
    figures: list[Path] = field(default_factory=list)
    log: list[str] = field(default_factory=list)  # the last lines of train.log
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)  # results.json of each valid-<weights>/
    missing: list[str] = field(default_factory=list)  # sentences for readers

    @property
    def title(self) -> str:
        """<dataset>/<model>/<name>, the last parts of the folder."""
        parts = self.folder.resolve().parts
        return "/".join(parts[-4:] if self.folder.resolve().name.startswith(VALIDATION) else parts[-3:])


def read(folder: str | Path) -> RunFiles:
    """The files of a run.

    Raises:
        RunError: the folder does not exist, or holds nothing that a run leaves.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; give the directory of a run, OUTPUT_DIR/<dataset>/<model>/<name>")
    run = RunFiles(folder)
    validations = sorted(p for p in folder.glob(VALIDATION + "*") if p.is_dir())
    if not any((folder / name).exists() for name in run_dir.TRACES) and not validations:
        raise RunError(f"{folder}: holds nothing of a run ({', '.join(run_dir.TRACES)}); give the directory of one")
    of_training = folder
    if folder.resolve().name.startswith(VALIDATION):  # how it was trained stands one level up
        of_training = folder.resolve().parent

    def take(path: Path, parse: Callable[[Path], Any], lost: str) -> Any:
        try:
            return parse(path)
        except FileNotFoundError:
            run.missing.append(f"{path.name} is not there: {lost}")
        except (OSError, ValueError, yaml.YAMLError) as error:
            run.missing.append(f"{path.name} cannot be read ({type(error).__name__}: {error}): {lost}")
        return None

    run.config = take(of_training / "config.yaml", _yaml, "no configuration, and no pictures, as it names the data set") or {}
    run.records = take(of_training / "metrics.jsonl", _records, "no curves") or []
    run.results = take(folder / run_dir.RESULTS, _json, "no scores, no tables, no protocol") or {}
    run.arrays = take(folder / run_dir.PREDICTIONS, _arrays, "no poses and no cameras") or {}
    run.log = take(of_training / "train.log", _last_lines, "no log") or []
    run.figures = sorted((folder / "figures").glob("*.png"))
    if not run.figures:
        run.missing.append("figures/ holds no picture: none was drawn during evaluation (DEBUG.FIGURES)")
    for path in validations:
        found = take(path / run_dir.RESULTS, _json, f"no scores of {path.name}")
        if found:
            run.judged[path.name] = found
    return run


def config_difference(config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value of the run, default) of all that a nested configuration changes; a key without a default has None there.

    Keys that the file lacks are those of a later version and left out.
    """
    try:
        own = configuration.from_dict(config).flat()
    except (ConfigError, AttributeError):  # of another version, or edited by hand
        own = run_dir.flatten(dict(config))
    default = configuration.defaults().flat()
    plain, known = run_dir.flatten(own), run_dir.flatten(default)
    return [(key, value, known.get(key)) for key, value in plain.items() if value != known.get(key, ...)]


def _yaml(path: Path) -> dict:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("not a configuration")
    return tree


def _json(path: Path) -> dict:
    tree = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError("not a JSON object")
    return tree


def _records(path: Path) -> list[dict]:
    """Lines of metrics.jsonl; one cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if "." not in key}
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive fails in many ways: zipfile, zlib, struct, ...
        raise ValueError(str(error)) from error


def _last_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
