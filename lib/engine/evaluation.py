"""Judging weights: one pass over an evaluation set, and the scores of several sets side by side."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from lib.dataset.loader import eval_loader, to_device


@dataclass
class SetScores:
    """What one evaluation set gave: the report (on every rank), and on the main rank predictions and pictures."""

    report: Any
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Evaluation:
    """The scores of all evaluation sets by name; the first set is the one that counts."""

    sets: dict[str, SetScores]

    @property
    def first(self) -> SetScores | None:
        """The set that decides which weights are best."""
        return next(iter(self.sets.values()), None)

    def value(self, metric: str) -> float:
        """The number that decides; nan where there is none."""
        return float(self.first.report.metrics.get(metric, math.nan)) if self.first else math.nan

    def flat(self) -> dict[str, float]:
        """{val/metric: number} of the first set, {val_name/metric: number} of the others."""
        return {
            f"{'val' if i == 0 else f'val_{name}'}/{metric}": float(value)
            for i, (name, scores) in enumerate(self.sets.items())
            for metric, value in scores.report.metrics.items()
        }

    def line(self) -> str:
        """The numbers that matter, on one line."""
        shown = [(name, value) for name, value in self.flat().items() if value == value]
        return "  ".join(f"{name} {value:.4g}" for name, value in shown[:6]) or "no evaluation set"

    def results(self) -> dict[str, Any]:
        """metrics, per_joint, per_action, counts, protocol of the first set; those of the others under `other_sets`."""
        (_, first), *others = [(name, scores.report.to_dict()) for name, scores in self.sets.items()] or [("", {})]
        empty = {"metrics": {}, "per_joint": {}, "per_action": {}, "counts": {}, "protocol": {}}
        return {**empty, **first, **({"other_sets": dict(others)} if others else {})}

    def predictions(self) -> dict[str, np.ndarray]:
        """Arrays for predictions.npz; those of further sets carry the set's name in front."""
        return {
            (key if i == 0 else f"{name}.{key}"): array
            for i, (name, scores) in enumerate(self.sets.items())
            for key, array in scores.predictions.items()
        }

    def pictures(self) -> dict[str, np.ndarray]:
        """Pictures by name."""
        return {f"{name}_{key}": image for name, scores in self.sets.items() for key, image in scores.pictures.items()}


def is_better(value: float, best: float | None, direction: str) -> bool:
    """Is `value` a new best for direction "min" or "max"? The first one always is, nan never afterwards."""
    if best is None or math.isnan(best):
        return True
    return value < best if direction == "min" else value > best


def evaluate_set(trainer, name: str, dataset: Dataset, limit: int | None, figures: int) -> SetScores:
    """One pass of `trainer`'s task over its share of `dataset`, joined over the ranks.

    Args:
        limit: stop after so many batches; None = all.
        figures: draw up to so many samples, on the main rank.

    Raises:
        Interrupted: a signal came, in a run of one process; the training state is saved.
    """
    cfg, world, task = trainer.cfg, trainer.world, trainer.task
    loader = eval_loader(dataset, cfg.TEST.BATCH_SIZE, cfg.WORKERS if limit is None else 0, world.rank, world.size)
    evaluator, kept, pictures = task.judge(dataset), [], {}
    with trainer.log.bar(len(loader), name) as bar:
        for index, batch in enumerate(loader):
            batch = to_device(batch, trainer.device)
            with trainer.autocast():
                pred = task.predict(batch)
            if index == 0 and world.is_main and figures:
                pictures = task.figures(batch, pred, figures)
            pred, batch = task.rows(pred, batch)
            evaluator.update(pred, batch)
            kept.append(predicted_arrays(pred, batch))
            bar.update()
            if index + 1 == limit:
                break
            if trainer.signals.requested and world.size == 1:  # several processes stop together, after this evaluation
                trainer.interrupt()
    rows = world.gather(evaluator.rows())
    evaluator.load_rows(rows)
    parts = [part for rank in world.gather(kept) for part in rank] if world.size > 1 else kept
    predictions = join_arrays(parts, dataset) if world.is_main else {}
    return SetScores(evaluator.compute(), predictions, pictures)


def predicted_arrays(pred: dict[str, torch.Tensor], batch: dict) -> dict[str, np.ndarray]:
    """Rows of predictions.npz: `ids`, all predictions of up to three axes and X_world, and the truth where there is one; of crops also
    crop_from_img (N,2,3), which takes px of the image to sides of the crop.

    The truth is X_cam_true (N,J,3) mm with X_valid (N,J), of several people X_world_true (N,M,J,3) with X_valid (N,M,J), and of predicted
    x_img also x_img_true (N,J,2) px with conf_true (N,J), 0 = not labelled.
    """
    ids = batch["id"]
    kept = {k: v for k, v in pred.items() if torch.is_tensor(v) and (1 <= v.ndim <= 3 or k == "X_world") and len(v) == len(ids)}
    tensors = {"ids": ids, **kept}
    truth = {"X_cam_true": batch.get("X_cam"), "X_valid": batch.get("X_valid")}
    if "X_world" in kept:
        truth["X_world_true"] = batch.get("X_world")
    if "x_img" in kept and torch.is_tensor(batch.get("x_img")) and batch["x_img"].shape == kept["x_img"].shape:
        truth |= {"x_img_true": batch["x_img"], "conf_true": batch.get("conf")}
    tensors.update({k: v for k, v in truth.items() if torch.is_tensor(v)})
    if torch.is_tensor(batch.get("patch_from_img")) and torch.is_tensor(batch.get("image")):
        patch_from_img, (height, width) = batch["patch_from_img"], batch["image"].shape[-2:]
        tensors["crop_from_img"] = patch_from_img / patch_from_img.new_tensor([[width], [height]])
    return {
        k: (v.float() if v.dtype in (torch.bfloat16, torch.float16, torch.float64) else v).cpu().numpy()
        for k, v in tensors.items()
    }


def join_arrays(parts: list[dict[str, np.ndarray]], dataset: Dataset) -> dict[str, np.ndarray]:
    """All batches in one, sorted by id, with what the set, or its table of annotations, says of the rows by `describe(ids)`."""
    if not parts:
        return {}
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["ids"], kind="stable")
    joined = {key: array[order] for key, array in joined.items()}
    source = dataset if hasattr(dataset, "describe") else getattr(dataset, "ann", None)
    return joined if source is None else joined | source.describe(joined["ids"])
