"""The run directory OUTPUT_DIR/<dataset>/<model>/<EXP_NAME, or the YAML's own name>/: who may use it, and its files.

config.yaml (resolved)   train.log   metrics.jsonl   tensorboard/   figures/
checkpoint.pth.tar (last)   model_best.pth.tar   final_state.pth.tar (bare weights of the last step)
results.json and predictions.npz (of the best weights)   valid-<weights>/ (what scripts/valid.py found)
report.html (of all this, lib/report)
"""

import json
import math
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lib.engine import checkpoint
from lib.errors import MALFORMED, RunError
from lib.metrics.report import Report
from lib.weights.digest import sha256

LAST, BEST, FINAL = "checkpoint.pth.tar", "model_best.pth.tar", "final_state.pth.tar"
RESULTS, PREDICTIONS = "results.json", "predictions.npz"
TRACES = (LAST, BEST, FINAL, "config.yaml", "train.log", "metrics.jsonl", RESULTS, PREDICTIONS)

# Keys (or whole sections) that may change when a run goes on: none of them changes what a training step computes.
HARMLESS = (
    "DATASET.ROOT", "DATASET.TEST_SET", "DATASET.VAL_FRAME", "DEBUG", "DEVICE", "EXP_NAME",
    "MODEL.INIT_FILE", "MODEL.INIT_WEIGHTS", "MODEL.PRETRAINED", "MODEL.RESUME", "OUTPUT_DIR", "PRINT_FREQ", "TEST",
    "THREADS", "TRAIN.END_EPOCH", "TRAIN.EVAL_EVERY", "TRAIN.MAX_STEPS", "TRAIN.RESUME", "TRAIN.SAVE_STEPS", "WORKERS",
)  # fmt: skip
# The cosine ends where training ends, so under it these change every step.
COSINE_KEYS = ("TRAIN.END_EPOCH", "TRAIN.MAX_STEPS")


def run_path(cfg) -> Path:
    """Where the run of this configuration lives; without EXP_NAME the name of its YAML file is that of the run."""
    return (
        Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / cfg.MODEL.NAME / (cfg.EXP_NAME or Path(cfg.file or "default").stem)
    )


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested dicts; empty dicts and lists are values, tuples become lists."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def config_conflicts(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old value, new value)} of the keys that change training and differ in two nested configurations."""
    old, new = flatten(old), flatten(new)
    cosine = COSINE_KEYS if new.get("TRAIN.SCHEDULE") == "cosine" else ()

    def harmless(key: str) -> bool:
        return key not in cosine and any(key == h or key.startswith(h + ".") for h in HARMLESS)

    return {
        k: (old.get(k), new.get(k))
        for k in sorted(old.keys() | new.keys())
        if old.get(k) != new.get(k) and not harmless(k)
    }


def check_config(old: dict, new: dict, where: str | Path) -> None:
    """Raises RunError naming each key that changes training, with both values, unless there is none."""
    conflicts = config_conflicts(old, new)
    if conflicts:
        lines = "".join(f"\n  {key}: {was!r} there, {now!r} now" for key, (was, now) in conflicts.items())
        raise RunError(
            f"{where}: was trained with another configuration:{lines}\n"
            "Use its values to go on with it, or another EXP_NAME to start a new run"
        )


def check_state(state: dict, cfg, processes: int, where: str | Path) -> None:
    """Raises RunError unless a checkpoint was written by a run of this configuration and number of processes."""
    if "rng" not in state:
        raise RunError(
            f"{where}: holds weights, but not where a training stands; give {LAST}, or use it as MODEL.PRETRAINED of a new run"
        )
    check_config(state["config"], cfg.to_dict(), where)
    if len(state["rng"]) != processes:
        raise RunError(
            f"{where}: was written by {len(state['rng'])} processes, now there are {processes}; start as many "
            "(torchrun --nproc_per_node), or use it as MODEL.PRETRAINED of a new run"
        )


def check(path: str | Path, cfg) -> Path | None:
    """May the run `cfg` use the folder `path`? Changes nothing; the checkpoint to go on from, or None for a new run.

    Raises:
        RunError: there is a run already and TRAIN.RESUME is off, it has no checkpoint to resume, or the folder is
            not writable.
    """
    path = Path(path)
    found = [name for name in TRACES if (path / name).exists()]
    if found and not cfg.TRAIN.RESUME:
        raise RunError(
            f"{path}: holds a run already ({', '.join(found)}); set TRAIN.RESUME true to go on with it, or another "
            "EXP_NAME to start a new one"
        )
    check_writable(path)
    if (path / LAST).exists():
        return path / LAST
    kept = ", ".join(name for name in (BEST, FINAL, RESULTS) if (path / name).exists())
    if kept:  # else it was stopped before its first checkpoint, and starts anew
        raise RunError(f"{path}: holds {kept}, but no {LAST} to resume; set another EXP_NAME to start a new run")
    if not cfg.MODEL.RESUME:
        return None
    if not Path(cfg.MODEL.RESUME).is_file():
        raise RunError(f"MODEL.RESUME: no file {cfg.MODEL.RESUME!r}; give the checkpoint.pth.tar of an earlier run")
    return Path(cfg.MODEL.RESUME)


def check_writable(path: Path) -> None:
    """Raises RunError unless files can be made in `path`, or in the nearest of its parents that exists."""
    folder = path
    while not folder.exists() and folder.parent != folder:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise RunError(
            f"{path}: cannot be written ({folder}: {e.strerror}); set OUTPUT_DIR to a folder you may write"
        ) from e


def make(path: Path) -> None:
    """Makes a folder and its parents."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunError(f"{path}: cannot be made ({e.strerror}); set OUTPUT_DIR to a folder you may write") from e


def create(path: Path, cfg) -> None:
    """Makes the folder and writes the resolved configuration into it."""
    make(path)
    checkpoint.atomic_write(path / "config.yaml", lambda file: file.write(cfg.to_yaml().encode()))


def results(cfg, scores: dict[str, Any], number_format: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The part of results.json that follows from configuration, source tree and the scores of an evaluation.

    `protocol` holds all that must agree where numbers are compared: the part of the configuration, then what the task tells
    (`Task.protocol`), then the evaluator; the later word counts.
    """
    return {
        "task": cfg.TASK,
        "dataset": cfg.DATASET.DATASET,
        "protocol": {
            "name": cfg.TEST.PROTOCOL,
            "split": cfg.DATASET.TEST_SET,
            "frame_stride": cfg.DATASET.VAL_FRAME,
            "subjects": list(cfg.TEST.SUBJECTS) or "all",
            "views": list(cfg.DATASET.VIEWS) or "all",
            "number_format": number_format,
            **told,
            **scores.get("protocol", {}),
        },
        **{key: value for key, value in scores.items() if key != "protocol"},
        "git_commit": git_commit(),
        "config_hash": cfg.hash(),
    }


def validation_path(run: Path, weights: Path) -> Path:
    """The folder for what weights are found to be worth: that of their name, unless it tells of others of this name, or is damaged."""
    folder = run / ("valid-" + re.sub(r"(\.pth|\.pt)?(\.tar)?$", "", weights.name))
    try:
        judged = read_results(folder).get("weights_sha256")
    except RunError:
        judged = "unknown"
    if judged is None or (found := sha256(weights)) == judged:
        return folder
    return folder.with_name(f"{folder.name}-{found[:8]}")


def write_scores(folder: Path, scores: dict[str, Any], weights: Path, predictions: dict[str, np.ndarray]) -> None:
    """Writes predictions.npz, and `scores` with name and hash of the judged file added as results.json.

    Numbers that do not exist (no sample of an action) become null.
    """
    make(folder)
    scores.update(weights=weights.name, weights_sha256=sha256(weights))
    text = json.dumps(_json_values(scores), indent=2, allow_nan=False) + "\n"
    checkpoint.atomic_write(folder / PREDICTIONS, lambda file: np.savez_compressed(file, **predictions))
    checkpoint.atomic_write(folder / RESULTS, lambda file: file.write(text.encode()))


def write_pictures(folder: Path, images: dict[str, np.ndarray]) -> None:
    """Writes pictures (H, W, 3) uint8 RGB as figures/<name>.png; those of an earlier evaluation are replaced."""
    for name, image in images.items():
        make(folder / "figures")
        data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
        checkpoint.atomic_write(folder / "figures" / f"{name}.png", lambda file, data=data: file.write(data))


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run; empty when it has none."""
    path = folder / RESULTS
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, *MALFORMED) as e:
        raise RunError(f"{path}: cannot be read ({e}); judge the weights again with scripts/valid.py") from e


def table(scores: dict[str, Any]) -> str:
    """The scores of a results.json as aligned text, further evaluation sets below the first."""
    parts = {"": scores, **scores.get("other_sets", {})}
    columns = ("metrics", "per_joint", "per_action", "counts")
    texts = {name: Report(**{column: part[column] for column in columns}).table() for name, part in parts.items()}
    return "\n\n".join(f"{name}\n{text}" if name else text for name, text in texts.items())


def _json_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json_values(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def git_commit() -> str:
    """The commit of this source tree, with "-dirty" when files differ from it; empty outside a git checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
