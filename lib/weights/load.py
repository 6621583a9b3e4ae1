"""Weights into a model: read any known file safely, load what fits, say what did not."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.errors import WeightsError
from lib.files import OF_TORCH, replaced
from lib.weights.adapters import Checkpoint, State, describe, kind_of, resnet_layers, resnet_stages, strip_prefix, unwrap
from lib.weights.imagenet import imagenet_state
from lib.weights.machine import read_release
from lib.weights.needs import differences, needs_of
from lib.weights.unpickle import Inert, load_file
from lib.weights.voxelpose import backbone_state, parts_of

log = logging.getLogger("parallax")
HEADS = (  # what a network for other joints has of its own
    "final_layer.", "depth_fc.", "hm.", "depth.", "tmpOut.", "tmpOut_.", "reg.",
    "lifter.fc_final.", "lifter.stages.", "head2d.", "regressor.", "projector.", "normalizer.",
)  # fmt: skip
_PICTURES = ("pose_resnet", "fusion", "resnet")  # kinds of files with a ResNet that a pose machine may begin with


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

    Besides torch's own: Caffe models, and the pose machine's exports (lib/weights/machine.py).

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint, or holds no weights.
    """
    try:
        value, foreign = load_file(path)
    except WeightsError:
        released = read_release(path)
        if released is None:
            raise
        return released
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

    The layer of 2D heatmaps goes from a pose ResNet into a fusion network and back, unless `strict`.

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
    found = found if strict else _heatmaps_renamed(found, target)
    inflated = _inflate(found, target, inflate) if inflate > 0 else ()
    fitting, report = compare(found, target, inflated)
    counted = {k for k in target if not k.endswith("num_batches_tracked")}
    _check(model, report, found, target, counted, source, strict)
    model.load_state_dict(fitting, strict=False)
    return report


def compare(found: State, target: State, inflated: tuple[str, ...] = ()) -> tuple[State, LoadReport]:
    """The tensors of a file that fit a model's by name and shape, and what becomes of the others."""
    fitting = {k: v for k, v in found.items() if k in target and v.shape == target[k].shape}
    report = LoadReport(
        loaded=tuple(k for k in target if k in fitting),
        skipped_shape=tuple(
            f"{k}: {list(found[k].shape)} in the file, {list(target[k].shape)} in the model"
            for k in target
            if k in found and k not in fitting
        ),
        missing=tuple(k for k in target if k not in found and not k.endswith("num_batches_tracked")),
        unexpected=tuple(k for k in found if k not in target),
        inflated=inflated,
    )
    return fitting, report


def load_parts(
    model: nn.Module, checkpoint: Checkpoint, parts: Sequence[str] = (), optional: Sequence[str] = ("attn",)
) -> dict[str, LoadReport]:
    """Copy parts of a VoxelPose or SelfPose3d network; each must fit exactly, but `num_batches_tracked` may be absent.

    Args:
        model: with sub-modules of these names, see lib/models/voxelpose.py.
        checkpoint: any published form: a whole network, some of its parts, or a bare pose ResNet, which is a backbone.
        parts: such as ("backbone",) or ("root_net",); () = all of the model's, and the file must have no others.
        optional: with all parts, these may be on one side alone; SelfPose3d needs its attention network for training only.

    Returns:
        A report for each part that was loaded.

    Raises:
        WeightsError: a part is missing on either side or does not fit; all problems are listed. The model is then unchanged.
    """
    found = parts_of(checkpoint.state_dict)
    there = {name: module for name, module in model.named_children() if module.state_dict()}
    wanted = tuple(parts) or tuple(part for part in there if part in found or part not in optional)
    extra = () if parts else tuple(part for part in found if part not in there and part not in optional)
    problems, reports, fitting = [f"the model has no {part}" for part in extra], {}, {}
    for part in wanted:
        if part not in found or part not in there:
            side = "the model" if part in found else "the file"
            problems.append(f"{side} has no {part}")
            continue
        fitting[part], reports[part] = compare(found[part], there[part].state_dict())
        problems += [f"{part}: {text}" for text in _misfits(reports[part])]
    if problems:
        looks, _ = describe(checkpoint.state_dict)
        needs = "; ".join(needs_of(checkpoint.state_dict, checkpoint.meta).notes)
        raise WeightsError(
            f"{checkpoint.source} {looks} and has {_some(tuple(found))}, but does not fit the model ({type(model).__name__} with "
            f"{', '.join(there)}): {'; '.join(problems)}; set the model to what the file was trained with{f' ({needs})' if needs else ''}, "
            "or load only the parts that fit"
        )
    for part, tensors in fitting.items():
        there[part].load_state_dict(tensors, strict=False)
    return reports


def load_backbone(
    backbone: nn.Module, checkpoint: Checkpoint, skeleton: str, source_skeleton: str = "", rule: str = "mean"
) -> LoadReport:
    """Start weights of a pose ResNet from any file that has one, its heatmaps brought to the joints of `skeleton` by name.

    Args:
        source_skeleton, rule: see `lib.weights.voxelpose.backbone_state`; '' = as the file says, else by the number of heatmaps.

    Raises:
        WeightsError: the file has no backbone, or one that does not fit; all but the head of an ImageNet ResNet must. The model is then
            unchanged.
    """
    told = checkpoint.meta.get("skeleton")
    source_skeleton = source_skeleton or (told if isinstance(told, str) else "")
    state = backbone_state(checkpoint.state_dict, skeleton, source_skeleton, rule, checkpoint.source)
    return load_into(backbone, replace(checkpoint, state_dict=state), strict=kind_of(state) != "resnet")


def start_parts(model: nn.Module, checkpoint: Checkpoint, skeleton: str, rule: str = "mean") -> dict[str, LoadReport]:
    """Start weights of a VoxelPose or SelfPose3d network: each part that both it and the file have, others stay as they are.

    The backbone may be of another skeleton (`load_backbone`, also for `rule`), the other parts must fit.

    Raises:
        WeightsError: no part in common, or one that does not fit. The model may then have other parts already.
    """
    found = parts_of(checkpoint.state_dict)
    common = [part for part, module in model.named_children() if part in found and module.state_dict()]
    if not common:
        looks, use = describe(checkpoint.state_dict)
        there = ", ".join(name for name, _ in model.named_children())
        raise WeightsError(f"{checkpoint.source} {looks}, but has none of the parts of the model ({there}); {use}")
    others = [part for part in common if part != "backbone"]
    reports = load_parts(model, checkpoint, others) if others else {}
    if "backbone" in common:
        reports["backbone"] = load_backbone(model.get_submodule("backbone"), checkpoint, skeleton, rule=rule)
    return reports


def initialise(model: nn.Module, cfg: Any, skeleton: str = "", rule: str = "mean") -> None:
    """Start weights as the MODEL section asks: PRETRAINED, else ImageNet (INIT_WEIGHTS), else fresh; logged.

    Args:
        cfg: the whole configuration; reads MODEL.
        skeleton: joints of the model's output; a head trained for another skeleton is left out, even of equal size. A network of
            VoxelPose's parts takes those that the file has, see `start_parts`.
        rule: what makes heatmaps of joints that the file's lack, see `lib.weights.voxelpose.backbone_state`.

    Raises:
        WeightsError: MODEL.PRETRAINED or MODEL.INIT_FILE cannot be read or does not fit.
    """
    section = cfg.MODEL
    if section.PRETRAINED:
        checkpoint = read(section.PRETRAINED)
        if {"backbone", "root_net"} & dict(model.named_children()).keys():
            for part, report in start_parts(model, checkpoint, skeleton, rule).items():
                log.info("weights: %s: %s: %s", section.PRETRAINED, part, report.summary())
        else:
            report = load_into(model, _without_foreign_head(_as_trunk(checkpoint, model), skeleton), inflate=section.INFLATE)
            log.info("weights: %s: %s", section.PRETRAINED, report.summary())
    elif section.RESUME:
        log.info("weights: those of MODEL.RESUME %s", section.RESUME)
    elif section.INIT_WEIGHTS and not resnet_stages(state := _trunk(model).state_dict()):
        what = "hourglasses" if kind_of(state) == "hourglass" else "convolutional pose machines"
        log.info("weights: from scratch (there are no ImageNet weights of %s)", what)
    elif section.INIT_WEIGHTS:
        state, message = imagenet_state(section.EXTRA.NUM_LAYERS, section.INIT_FILE)
        if state is not None:
            load_into(_trunk(model), Checkpoint("resnet", state, source=section.INIT_FILE or "ImageNet weights"))
        log.info("weights: %s", message)
    else:
        log.info("weights: from scratch (MODEL.INIT_WEIGHTS is false)")


def write_reference(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a model's state dict as EpipolarPose's release reads it: bare, every key with the prefix "module.".

    Raises:
        WeightsError: the folder cannot be written; an older file of that name is then untouched.
    """
    with replaced(path, WeightsError, causes=OF_TORCH, parents=False) as part:
        torch.save({f"module.{k}": v.detach().cpu().contiguous() for k, v in strip_prefix(state).items()}, part)


def _trunk(model: nn.Module) -> nn.Module:
    """Where a ResNet's weights belong: the part of a pose machine that sees pictures, or the whole of other networks."""
    return model.get_submodule("trunk") if kind_of(model.state_dict()) == "pose_machine" else model


def _as_trunk(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """A network of pictures as the first part of a pose machine, where the model is one. Raises WeightsError for another depth."""
    if _trunk(model) is model or kind_of(checkpoint.state_dict) not in _PICTURES:
        return checkpoint
    found, wanted = resnet_layers(checkpoint.state_dict), resnet_layers(_trunk(model).state_dict())
    if found and wanted and found != wanted:
        raise WeightsError(
            f"{checkpoint.source} holds a ResNet-{found}, but the pose machine begins with a ResNet-{wanted}; set MODEL.EXTRA.NUM_LAYERS "
            f"{found}, or give other weights"
        )
    return replace(checkpoint, state_dict={f"trunk.{key}": value for key, value in checkpoint.state_dict.items()})


def _heatmaps_renamed(found: State, target: State) -> State:
    """The heatmap layer of a pose ResNet (final_layer) or of a fusion network (hm) under the name that the model has for it."""
    for name, other in (("final_layer.", "hm."), ("hm.", "final_layer.")):
        if f"{name}weight" in found and f"{other}weight" not in found and f"{other}weight" in target and f"{name}weight" not in target:
            return {other + key.removeprefix(name) if key.startswith(name) else key: value for key, value in found.items()}
    return found


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
    problems = _misfits(report, 1 if differing else 4)
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


def _misfits(report: LoadReport, most: int = 4) -> list[str]:
    """What keeps a file's keys from being the model's, the first `most` keys of each kind named."""
    kinds = {"of another shape": report.skipped_shape, "missing": report.missing, "not part of the model": report.unexpected}
    return [f"{len(keys)} {text} ({_some(keys, most)})" for text, keys in kinds.items() if keys]


def _some(keys: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")


