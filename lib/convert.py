"""From one form of checkpoint to another: a published file as a checkpoint of ours, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib import config
from lib.config import Config
from lib.dataset.image import ImageSpec
from lib.engine import checkpoint as ours
from lib.errors import WeightsError
from lib.files import OF_TORCH, new_file
from lib.models.temporal import TemporalModel
from lib.tasks import build
from lib.weights.adapters import KINDS, Checkpoint, State, kind_of, resnet_stages, strip_prefix
from lib.weights.digest import sha256
from lib.weights.load import LoadReport, load_into, write_reference
from lib.weights.machine import to_layers, write_npz
from lib.weights.needs import FUSION, LIFTING, Needs, image_spec_of, needs_of
from lib.weights.temporal import causal_of, split, temporal_arguments, to_lifting_state, write_videopose3d

FORMS = ("ours", "reference", "torchvision")
_PLAIN = (str, int, float, bool)
_START = {  # of training: not needed any more, and nothing that must be there
    "MODEL.PRETRAINED": "", "MODEL.RESUME": "", "MODEL.INIT_WEIGHTS": False, "MODEL.INIT_FILE": "", "EPIPOLAR.TEACHER": "",
}  # fmt: skip
_CAUSAL = "TEMPORAL.CAUSAL"


def network_kind(checkpoint: Checkpoint) -> str:
    """The name in KINDS of the network in a file, whoever wrote it."""
    return kind_of(checkpoint.state_dict)


def tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All weights in a file; those of VideoPose3D's second network have the prefix model_traj."""
    other = checkpoint.meta.get("model_traj") if network_kind(checkpoint) == "videopose3d" else None
    other = strip_prefix(other) if isinstance(other, Mapping) else {}
    return checkpoint.state_dict | {f"model_traj.{key}": value for key, value in other.items() if isinstance(value, Tensor)}


def lifting_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """The networks of a file that lifts keypoints, in words by name; {} for other files, and for those whose layers are not complete."""
    found = needs(checkpoint).settings if network_kind(checkpoint) in LIFTING else {}
    if not found:
        return {}
    widths, features = found["TEMPORAL.WIDTHS"], found["TEMPORAL.FEATURES"]
    layers = f"{','.join(map(str, widths))}{' dense' if found['TEMPORAL.DENSE'] else ''}"
    seen = f"sees {prod(widths)} frames (widths {layers}), {found['TEMPORAL.CHANNELS']} channels"
    facts = {}
    for name, state in zip(("pose", "trajectory"), split(to_lifting_state(checkpoint)), strict=True):
        if state:
            keypoints, joints = state["expand_conv.weight"].shape[1] // features, found["MODEL.NUM_JOINTS"]
            out = f"{joints} joints, {seen}" if name == "pose" else "the root's place"
            facts[name] = f"{keypoints} keypoints to {out}, {parameters(state):,} parameters"
    return facts


def parameters(state: Mapping[str, Tensor]) -> int:
    """Number of values that are trained; those that batch norms count are not."""
    return sum(v.numel() for k, v in state.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked")))


def needs(checkpoint: Checkpoint) -> Needs:
    """The configuration of a checkpoint's network; where the file stores one, what it says of joints and bins decides."""
    section = checkpoint.config.get("MODEL", {})
    found = needs_of(checkpoint.state_dict, checkpoint.meta, section.get("NUM_JOINTS"), section.get("DEPTH_RES"))
    task = {"TASK": checkpoint.config["TASK"]} if "TASK" in found.settings and "TASK" in checkpoint.config else {}
    return replace(found, settings=found.settings | task)  # tasks may share a network


def plain_meta(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a file tells about itself besides weights: numbers, texts and short lists of them, such as epoch and perf."""

    def plain(value: Any) -> bool:
        return isinstance(value, _PLAIN) or (isinstance(value, list | tuple) and len(value) <= 4 and all(map(plain, value)))

    found = {k: v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in checkpoint.meta.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in found.items() if plain(v)}


def configuration(checkpoint: Checkpoint, file: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration a network is built with: that of a YAML file or of the checkpoint, else what its tensors need.

    Args:
        file: YAML file of an experiment; None = the configuration inside the checkpoint, else `needs`.
        overrides: "KEY VALUE" words, which come last.

    Raises:
        ConfigError: a key or a value is wrong.
        WeightsError: nobody says whether a lifting network is causal, or the file says otherwise.
    """
    kind = network_kind(checkpoint)
    # epipolar's student is integral's network
    task = {"TASK": "refine" if kind == "refiner" else "fusion" if kind in FUSION else "machine" if kind == "pose_machine" else "integral"}
    if kind in LIFTING:
        said = config.load(file, overrides)
        told = None if said.source(_CAUSAL) == "default" else said.TEMPORAL.CAUSAL
        task = {"TASK": "temporal", "MODEL.NAME": "temporal", _CAUSAL: causal_of(checkpoint, told)}
    changes = {s.key: s.value for s in config.read_arguments(config.SCHEMA, overrides)}
    if file:
        return config.from_dict(config.load(file, overrides).to_dict(), _START | task)
    if checkpoint.config:
        return config.from_dict(checkpoint.config, changes | _START | task)
    return config.defaults().with_values(needs(checkpoint).settings | changes | _START | task)


def to_ours(
    checkpoint: Checkpoint, cfg: Config, norm: Mapping[str, Tensor] | None = None, color: str = ""
) -> tuple[dict[str, Any], LoadReport]:
    """A checkpoint that knows its configuration, image specification and skeleton, as `model_best.pth.tar` does.

    Args:
        cfg: from `configuration`.
        norm: means and deviations of a refiner's training data, where the file holds none.
        color: channel order of the pictures that the network was trained on, rgb or bgr; "" = as stored in the file, else that of its
            release, else rgb.

    Returns:
        What `torch.save` takes, and what became of each key.

    Raises:
        WeightsError: the weights do not fit the configuration exactly; the message names the values that they need.
        ConfigError: the configuration contradicts itself.
    """
    task = build(cfg)
    report = load_into(task.model, task.adapted(checkpoint), strict=True)
    extra = dict(norm or checkpoint.meta.get("task_extra") or {})
    if extra:
        task.load_extra_state(extra)
    spec = task.image_spec
    if spec is not None:
        spec = ImageSpec.from_dict({**spec.to_dict(), **image_spec_of(checkpoint), "size": spec.size})
        spec = replace(spec, color=color) if color else spec
    meta, source = plain_meta(checkpoint), Path(checkpoint.source)
    step, epoch = meta.get("step"), meta.get("epoch")
    step = step if isinstance(step, int) else 0
    origin = {k: v for k, v in meta.items() if k != "format"} | {"file": source.name, "kind": network_kind(checkpoint)}
    if source.is_file():
        origin["sha256"] = sha256(source)
    return ours.network_of(task, cfg) | {
        "step": step,
        "steps_per_epoch": max(1, step // epoch) if isinstance(epoch, int) and epoch > 0 else 1,
        "best": checkpoint.meta.get("best") or {},
        "image_spec": spec.to_dict() if spec is not None else None,
        "converted": origin,
    }, report


def reference_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of a pose ResNet as EpipolarPose's release knows them, or of a fusion network as hg-3d's does, counters of the batch
    norms included.

    Raises:
        WeightsError: another network, or one that the release cannot build.
    """
    kind, state = network_kind(checkpoint), checkpoint.state_dict
    if kind not in ("pose_resnet", *FUSION):
        raise WeightsError(
            f"{checkpoint.source}: holds {named(kind)}, expected a pose ResNet or a network of 2D + 3D fusion; only those "
            "have a form in a release"
        )
    if kind != "hourglass" and resnet_stages(state) != 4:
        raise WeightsError(
            f"{checkpoint.source}: has a ResNet of {resnet_stages(state)} stages, but the release knows 4; train with "
            "MODEL.EXTRA.NUM_STAGES 4 for a file that it reads"
        )
    return _counted(state)


def lifting_states(checkpoint: Checkpoint) -> tuple[State, State | None]:
    """The pose and the trajectory network (None if there is none) as VideoPose3D names their weights, counters of the batch norms included.

    Raises:
        WeightsError: no lifting network, or one that lacks tensors.
    """
    pose, trajectory = split(to_lifting_state(checkpoint))
    for state in (pose, trajectory or pose):
        network = TemporalModel(**temporal_arguments(state, source=checkpoint.source))
        load_into(network, Checkpoint(kind_of(state), state, source=checkpoint.source), strict=True)
    return _counted(pose), None if trajectory is None else _counted(trajectory)


def trained(checkpoint: Checkpoint) -> tuple[int, float]:
    """Epochs that a network was trained for (0 = not known), and the learning rate that the file names, else that of the start."""
    found = plain_meta(checkpoint)
    origin = checkpoint.meta.get("converted")
    found |= origin if isinstance(origin, Mapping) else {}  # the file that it was made of knows more
    count, step, each = (found.get(key) for key in ("epoch", "step", "steps_per_epoch"))
    if not isinstance(count, int):
        count = step // each if isinstance(step, int) and isinstance(each, int) and each > 0 else 0
    start = checkpoint.config.get("TRAIN")
    rates = found.get("lr"), start.get("LR") if isinstance(start, Mapping) else None, config.defaults().TRAIN.LR
    return count, float(next(rate for rate in rates if isinstance(rate, int | float)))


def _counted(state: Mapping[str, Tensor]) -> State:
    """Weights with counters of the batch norms, which old files lack."""
    complete: State = {}
    for key, value in state.items():
        complete[key] = value
        counter = key.removesuffix("running_var") + "num_batches_tracked"
        if key.endswith("running_var") and counter not in state:
            complete[counter] = torch.tensor(0)
    return complete


def torchvision_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The backbone under torchvision's names, for MODEL.INIT_FILE or torchvision itself (which has a classifier `fc` besides).

    Raises:
        WeightsError: there is no ResNet of four stages.
    """
    kind, state = network_kind(checkpoint), checkpoint.state_dict
    if kind not in ("pose_resnet", "resnet") or resnet_stages(state) != 4:
        raise WeightsError(f"{checkpoint.source}: holds {named(kind)}, expected a network with a ResNet of four stages")
    return {key: value for key, value in state.items() if key.startswith(("conv1.", "bn1.", "layer"))}


def convert(
    checkpoint: Checkpoint, out: str | Path, form: str = "ours", cfg: str | None = None, overrides: Sequence[str] = (),
    norm: Mapping[str, Tensor] | None = None, color: str = "",
) -> str:  # fmt: skip
    """Writes a checkpoint as `out` in another form, one of FORMS; the other arguments belong to "ours".

    Returns:
        What was done, in a sentence.

    Raises:
        WeightsError: the weights are of no use in that form, or do not fit the configuration.
        ConfigError: the configuration is wrong.    DataError: `out` exists or cannot be written.
    """
    if form not in FORMS:
        raise WeightsError(f"form {form!r}: expected one of {', '.join(FORMS)}")
    kind = network_kind(checkpoint)
    write = torch.save
    if form == "reference" and kind in LIFTING:
        state, write = lifting_states(checkpoint), partial(_write_lifting, trained(checkpoint))
        counts = [f"{len(part)} tensors in {name}" for part, name in zip(state, ("model_pos", "model_traj"), strict=True) if part]
        said = f"as VideoPose3D's --evaluate takes it, {', '.join(counts)}; whether it is causal is not in it"
    elif form == "reference" and kind in FUSION:
        state = {"epoch": trained(checkpoint)[0], "state_dict": reference_state(checkpoint)}
        said = f"{len(state['state_dict'])} tensors under state_dict beside the epoch, as pytorch-pose-hg-3d reads them"
    elif form == "reference" and kind == "pose_machine":
        state, write = to_layers(checkpoint.state_dict), write_npz
        said = f"{len(state)} blobs of the release's layers (.npz), the gates of LSTMs in Caffe's order"
    elif form == "reference":
        state, write = reference_state(checkpoint), write_reference
        said = f"{len(state)} tensors, bare, each key with the prefix module."
    elif form == "torchvision":
        state = torchvision_state(checkpoint)
        said = f"{len(state)} tensors of the backbone, for MODEL.INIT_FILE"
    elif kind in ("pose_resnet", "refiner", "pose_machine", *FUSION, *LIFTING):
        state, report = to_ours(checkpoint, configuration(checkpoint, cfg, overrides), norm, color)
        said = f"checkpoint with configuration and skeleton {state['skeleton']}; {report.summary()}"
    else:
        use = f"; {KINDS[kind].use}" if kind in KINDS else ""
        raise WeightsError(
            f"{checkpoint.source}: holds {named(kind)}, expected a pose ResNet, a pose machine, a lifting network or a refiner{use}"
        )
    with new_file(out, causes=OF_TORCH) as part:
        write(state, part)
    return f"{out}: {said}"


def _write_lifting(trained: tuple[int, float], states: tuple[State, State | None], path: Path) -> None:
    write_videopose3d(path, *states, *trained)


def named(kind: str) -> str:
    """A kind in words."""
    return f"a {KINDS[kind].text}" if kind in KINDS else "an unknown network"
