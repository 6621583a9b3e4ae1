"""What goes in and out of the refinement unit as files: pairs predicted by a trained run, weights in the release's form."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import config
from lib.engine import Trainer, run_dir, start
from lib.errors import RunError, WeightsError
from lib.files import new_file, refuse_existing
from lib.tasks import build
from lib.weights.adapters import Checkpoint
from lib.weights.load import load_into, read
from refiner.data import Statistics, write_published
from refiner.data import read as read_pairs
from refiner.task import STATISTICS

log = logging.getLogger("parallax")


def build_pairs(run: str | Path, out: str | Path, overrides: Sequence[str] = (), pickle: bool = False) -> None:
    """Predicts the training and the evaluation split of a run with its best weights: `out`/train.npz and `out`/valid.npz.

    A self-supervised network is paired with the annotated truth of the split, as any other.

    Args:
        run: run directory of a network that predicts X_cam.
        overrides: "KEY VALUE" changes to the run's configuration, such as ["TEST.FLIP_TEST", "true"].
        pickle: write train.pkl and valid.pkl of the release as well.

    Raises:
        RunError: the run has no weights.    WeightsError: they come without a configuration.
        DataError: a file exists in `out`, cannot be written, or the run does not predict 3D.
    """
    weights, out = Path(run) / run_dir.BEST, Path(out)
    if not weights.is_file():
        raise RunError(f"{weights}: no such file; give the run directory of a trained 3D network as --run")
    checkpoint = read(weights)
    trained = checkpoint.meta.get("config")
    if not trained:
        raise WeightsError(f"{weights}: holds no configuration; give the run directory that training wrote")
    changes = {setting.key: setting.value for setting in config.read_arguments(config.SCHEMA, overrides)}
    if trained["TASK"] == "epipolar":  # its student is that of integral, and its teacher is not needed any more
        changes = {"TASK": "integral", "EPIPOLAR.TEACHER": ""} | changes
    start_weights = {"MODEL.PRETRAINED": "", "MODEL.RESUME": "", "MODEL.INIT_FILE": "", "MODEL.INIT_WEIGHTS": False}
    cfg = config.from_dict(trained, changes | start_weights)
    targets = {out / "train.npz": cfg.DATASET.TRAIN_SET, out / "valid.npz": cfg.DATASET.TEST_SET}
    for path in targets:
        for target in (path, path.with_suffix(".pkl")) if pickle else (path,):
            refuse_existing(target)
    train = {"DATASET.VAL_FRAME": cfg.DATASET.TRAIN_FRAME, "TEST.SUBJECTS": []}  # those left out of training are worth most here
    for path, split in targets.items():
        judged = cfg.with_values({"DATASET.TEST_SET": split} | (train if path.stem == "train" else {}))
        predictions = _predict(judged, checkpoint)
        with new_file(path) as part:
            np.savez_compressed(part, **predictions)
        pairs = read_pairs(path)
        log.info(f"{len(pairs)} pairs of split {split}: {path}")
        if pickle:
            count = write_published(pairs, path.with_suffix(".pkl"))
            log.info(f"{count} of them as the release reads them: {path.with_suffix('.pkl')}")


def _predict(cfg: config.Config, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The arrays of predictions.npz for the evaluation split of `cfg`."""
    world = start(cfg)
    try:
        task = build(cfg)
        load_into(task.model, checkpoint, strict=True)
        task.load_extra_state(checkpoint.meta.get("task_extra") or {})
        evaluation = Trainer(cfg, task, world=world).evaluate()
        log.info(f"{cfg.DATASET.TEST_SET}: {evaluation.line()}")
        return evaluation.predictions()
    finally:
        world.close()


def export(weights: str | Path, path: str | Path) -> None:
    """Writes a refiner's checkpoint of ours as the release writes its own, and norm.pkl into the same folder.

    {epoch, lr, step, err, state_dict, optimizer}, plain keys; err is the MPJPE in mm of the best weights so far. Where the
    checkpoint holds no optimizer (model_best.pth.tar), a fresh one stands for it.

    Raises:
        WeightsError: the file holds no refiner trained here, or a residual one, which the release does not know.
        DataError: a file exists already or cannot be written.
    """
    checkpoint, path = read(weights), Path(path)
    statistics = checkpoint.meta.get("task_extra") or {}
    if not set(STATISTICS) <= statistics.keys() or not checkpoint.meta.get("config"):
        raise WeightsError(f"{weights}: is no checkpoint of a refiner trained here; give model_best.pth.tar or checkpoint.pth.tar of it")
    cfg = config.from_dict(checkpoint.meta["config"], {"MODEL.PRETRAINED": "", "MODEL.RESUME": ""})
    if cfg.REFINE.RESIDUAL:
        raise WeightsError(
            f"{weights}: was trained with REFINE.RESIDUAL, but the release's network adds no input to its output and would give other "
            "poses; train with REFINE.RESIDUAL false to export it"
        )  # fmt: skip
    task = build(cfg)
    load_into(task.model, checkpoint, strict=True)
    norm = path.with_name("norm.pkl")
    refuse_existing(norm)
    meta = checkpoint.meta
    optimizer = meta.get("optimizer") or torch.optim.Adam(task.model.parameters(), lr=cfg.TRAIN.LR).state_dict()
    step, best = int(meta["step"]), meta.get("best") or {}
    write_checkpoint(
        path, task.model.state_dict(), step // max(1, int(meta["steps_per_epoch"])), float(optimizer["param_groups"][0]["lr"]), step,
        float(best.get("value", float("nan"))), optimizer,
    )  # fmt: skip
    Statistics(*(statistics[name] for name in STATISTICS)).write(norm)
    log.info(f"weights: {path}\nstatistics: {norm}")


def write_checkpoint(
    path: str | Path, state: dict[str, Tensor], epoch: int, lr: float, step: int, err: float, optimizer: dict
) -> None:
    """A refiner's checkpoint in the release's form. Raises DataError where `path` exists or cannot be written."""
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with new_file(path) as part:
        torch.save(
            {"epoch": epoch, "lr": lr, "step": step, "err": err, "state_dict": plain, "optimizer": optimizer}, part
        )
