"""Weights into a model: read any known file safely, load what fits, say what did not."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.errors import WeightsError
from lib.weights.adapters import Checkpoint, State, describe, kind_of, resnet_layers, strip_prefix, unwrap
from lib.weights.imagenet import imagenet_state
from lib.weights.needs import differences, needs_of
from lib.weights.unpickle import Inert, load_file

log = logging.getLogger("parallax")
HEADS = ("final_layer.", "depth_fc.")  # what a network for other joints has of its own


@dataclass(frozen=True)
class LoadReport:
    """Keys by what became of them; `inflated` are those of a 2D head that were repeated over the depth bins."""

    loaded: tuple[str, ...]
    skipped_shape: tuple[str, ...]  # "key: shape in the file, shape in the model"
    missing: tuple[str, ...]  # in the model, not in the file
    unexpected: tuple[str, ...]  # in the file, not in the model
    inflated: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line: the numbers, and the first names of whatever was not loaded."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.inflated:
            parts.append(f"{len(self.inflated)} of them repeated over the depth bins")
        for text, keys in (
            ("skipped by shape", self.skipped_shape),
            ("missing in the file", self.missing),
            ("not used", self.unexpected),
        ):
            if keys:
                parts.append(f"{len(keys)} {text} ({_some(keys)})")
        return ", ".join(parts)


def read(path: str | Path) -> Checkpoint:
    """A checkpoint file of any known form, on the host; nothing in the file is executed.

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint, or holds no weights.
    """
    value, foreign = load_file(path)
    checkpoint = unwrap(value, str(path))
    if foreign:  # a placeholder says nothing
        plain = {key: value for key, value in checkpoint.meta.items() if not isinstance(value, Inert)}
        ignored = ", ".join(key for key in checkpoint.meta if key not in plain)
        wrapping = f"{checkpoint.wrapping}; ignored beside it: {ignored}" if ignored else checkpoint.wrapping
        checkpoint = replace(checkpoint, meta=plain, wrapping=wrapping)
    return checkpoint


def load_into(
    model: nn.Module, state: Checkpoint | Mapping[str, Tensor], inflate: float = 0.0, strict: bool = False
) -> LoadReport:
    """Copy the weights that fit by name and shape; `num_batches_tracked` may be absent.

    Args:
        inflate: gain > 0: the `final_layer` of a 2D heatmap network (J channels) is repeated over the D depth bins of a
            volumetric one (J D channels), times the gain.
        strict: every tensor of the model must be in the file, with its shape, and none may be left over.

    Raises:
        WeightsError: nothing fits, the trunk is of another depth, or `strict` is not met. The model is then unchanged.
    """
    checkpoint = state if isinstance(state, Checkpoint) else Checkpoint("", strip_prefix(state), source="state dict")
    source, found = checkpoint.source, dict(checkpoint.state_dict)
    target = model.state_dict()
    inflated = _inflate(found, target, inflate) if inflate > 0 else ()
    fitting = {k: v for k, v in found.items() if k in target and v.shape == target[k].shape}
    counted = {k for k in target if not k.endswith("num_batches_tracked")}
    report = LoadReport(
        loaded=tuple(k for k in target if k in fitting),
        skipped_shape=tuple(
            f"{k}: {list(found[k].shape)} in the file, {list(target[k].shape)} in the model"
            for k in target
            if k in found and k not in fitting
        ),
        missing=tuple(k for k in target if k in counted and k not in found),
        unexpected=tuple(k for k in found if k not in target),
        inflated=inflated,
    )
    _check(model, report, found, target, counted, source, strict)
    model.load_state_dict(fitting, strict=False)
    return report


def initialise(model: nn.Module, cfg: Any, skeleton: str = "") -> None:
    """Start weights as the MODEL section asks: PRETRAINED, else ImageNet (INIT_WEIGHTS), else fresh; logged.

    Args:
        cfg: the whole configuration; reads MODEL.
        skeleton: joints of the model's output; a head trained for another skeleton is left out, even of equal size.

    Raises:
        WeightsError: MODEL.PRETRAINED or MODEL.INIT_FILE cannot be read or does not fit.
    """
    section = cfg.MODEL
    if section.PRETRAINED:
        checkpoint = _without_foreign_head(read(section.PRETRAINED), skeleton)
        report = load_into(model, checkpoint, inflate=section.INFLATE)
        log.info("weights: %s: %s", section.PRETRAINED, report.summary())
    elif section.RESUME:
        log.info("weights: those of MODEL.RESUME %s", section.RESUME)
    elif section.INIT_WEIGHTS:
        state, message = imagenet_state(section.EXTRA.NUM_LAYERS, section.INIT_FILE)
        if state is not None:
            load_into(model, Checkpoint("resnet", state, source=section.INIT_FILE or "ImageNet weights"))
        log.info("weights: %s", message)
    else:
        log.info("weights: from scratch (MODEL.INIT_WEIGHTS is false)")


def write_reference(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a model's state dict as EpipolarPose's release reads it: bare, every key with the prefix "module.".

    Raises:
        WeightsError: the folder cannot be written; an older file of that name is then untouched.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        torch.save({f"module.{k}": v.detach().cpu().contiguous() for k, v in strip_prefix(state).items()}, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        reason = str(error).split("\n")[0]
        raise WeightsError(f"{path}: cannot be written ({reason}); choose another folder") from error


def _inflate(found: State, target: State, gain: float) -> tuple[str, ...]:
    """Repeat the 2D head in `found` over the depth bins, in place; channel j * D + d is bin d of joint j."""
    keys = [k for k in ("final_layer.weight", "final_layer.bias") if k in found and k in target]
    done = []
    for key in keys:
        source, wanted = found[key], target[key].shape
        if source.shape[1:] == wanted[1:] and wanted[0] > len(source) and wanted[0] % len(source) == 0:
            found[key] = source.repeat_interleave(wanted[0] // len(source), 0) * gain
            done.append(key)
    return tuple(done)


def _check(
    model: nn.Module, report: LoadReport, found: State, target: State, counted: set[str], source: str, strict: bool
) -> None:
    looks, use = describe(found)
    name = type(model).__name__
    like = {"joints": getattr(model, "joints", None), "bins": getattr(model, "depth_bins", None)}
    same = kind_of(found) == kind_of(target)
    differing = differences(needs_of(found, **like), needs_of(target, **like)) if same else ""
    if not counted.intersection(report.loaded):
        raise WeightsError(
            f"{source} {looks}, but no tensor of it fits the model ({name}); {f'set {differing}' if differing else use}"
        )
    file_layers, model_layers = resnet_layers(found), resnet_layers(target)
    if file_layers and model_layers and file_layers != model_layers:
        raise WeightsError(
            f"{source} holds a ResNet-{file_layers}, but the model is a ResNet-{model_layers}; "
            f"set MODEL.EXTRA.NUM_LAYERS {file_layers}, or give other weights"
        )
    if not strict:
        return
    problems = [
        f"{len(keys)} {text} ({_some(keys, 1 if differing else 4)})"
        for text, keys in (
            ("of another shape", report.skipped_shape),
            ("missing", report.missing),
            ("not part of the model", report.unexpected),
        )
        if keys
    ]
    if problems:
        advice = f"set {differing}" if differing else "set the MODEL section to what it was trained with"
        raise WeightsError(
            f"{source} {looks}, but does not fit the model ({name}) exactly: {'; '.join(problems)}; {advice} "
            "(scripts/convert.py inspect shows all), or load what fits with MODEL.PRETRAINED"
        )


def _without_foreign_head(checkpoint: Checkpoint, skeleton: str) -> Checkpoint:
    other = checkpoint.meta.get("skeleton")
    if not skeleton or not isinstance(other, str) or other in ("", skeleton):
        return checkpoint
    kept = {k: v for k, v in checkpoint.state_dict.items() if not k.startswith(HEADS)}
    log.info("weights: %s is for skeleton %s, not %s: its head is left out", checkpoint.source, other, skeleton)
    return replace(checkpoint, state_dict=kept)


def _some(keys: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


