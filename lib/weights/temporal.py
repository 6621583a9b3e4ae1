"""Lifting networks in files: VideoPose3D's checkpoints (Pavllo et al., CVPR 2019), what configuration they need, and writing them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib.errors import WeightsError
from lib.files import OF_TORCH, replaced
from lib.skeleton import SKELETONS
from lib.weights.adapters import Checkpoint, State, strip_prefix

POSE, TRAJECTORY = "pose.", "trajectory."  # our names of VideoPose3D's model_pos and model_traj
CAUSAL_NOTE = (
    "whether the network is causal cannot be read from its tensors: both kinds have the same shapes, and the wrong one gives wrong poses "
    "without any error; say TEMPORAL.CAUSAL true or false as it was trained (the released files are not causal)"
)
_AGAIN = "give another file"
_JOINTS = {skeleton.num for skeleton in SKELETONS.values()}


def to_lifting_state(checkpoint: Checkpoint) -> State:
    """The networks of a checkpoint under our names: `pose.*`, and `trajectory.*` where it has one.

    Takes VideoPose3D's {model_pos, model_traj}, a bare state dict of one network (taken as the pose network), and our own files.

    Raises:
        WeightsError: the weights are of another kind, or the two networks do not take the same input.
    """
    state = checkpoint.state_dict
    if POSE + "expand_conv.weight" in state:
        lifting = dict(state)
    elif "expand_conv.weight" in state:
        lifting = {POSE + key: value for key, value in state.items()}
        trajectory = checkpoint.meta.get("model_traj")
        if isinstance(trajectory, Mapping) and trajectory:
            lifting |= {TRAJECTORY + key: value for key, value in strip_prefix(trajectory).items()}
    else:
        first = ", ".join(repr(key) for key in list(state)[:3])
        raise WeightsError(
            f"{checkpoint.source}: has keys of another network ({first}, ...), expected those of VideoPose3D (expand_conv, layers_conv, "
            "shrink); give a lifting network"
        )
    pose, trajectory = split(lifting)
    if trajectory is not None:
        shapes = [tuple(_filters(part, checkpoint.source)[0].shape[1:]) for part in (pose, trajectory)]
        if shapes[0] != shapes[1]:
            raise WeightsError(
                f"{checkpoint.source}: the trajectory network takes (features, frames) {shapes[1]}, the pose network {shapes[0]}; expected "
                "the same input for both; give a file whose networks were trained together"
            )
    return lifting


def split(lifting: Mapping[str, Tensor]) -> tuple[State, State | None]:
    """State dicts of the pose and the trajectory network (None if there is none), from one that holds both."""
    pose, trajectory = (
        {key.removeprefix(part): value for key, value in lifting.items() if key.startswith(part)} for part in (POSE, TRAJECTORY)
    )
    return pose, trajectory or None


def temporal_arguments(state: Mapping[str, Tensor], joints_in: int | None = None, source: str = "state dict") -> dict[str, Any]:
    """The arguments of TemporalModel that fit a network's weights, all but `causal` (see `causal_of`) and the dropout.

    The first layer tells the product of joints and features alone. It is read as two features (x, y) when a known skeleton has so many
    joints, else as three (with a score); `joints_in` decides when it is given.

    Args:
        state: of one network, in VideoPose3D's names; of ours, the pose network's is taken.

    Raises:
        WeightsError: layers are missing or do not follow one another.
    """
    pose, _ = split(state)
    filters = _filters(pose or state, source)
    expand, *hidden = filters
    shrink = (pose or state)["shrink.weight"]
    channels, inputs, _ = expand.shape
    chained = all(f.shape[:2] == (channels, channels) for f in hidden) and shrink.shape[1] == channels and shrink.shape[0] % 3 == 0
    if not chained or any(f.shape[2] % 2 == 0 for f in filters):
        shapes = ", ".join(str(list(f.shape)) for f in (*filters, shrink))
        raise WeightsError(f"{source}: the layers have shapes {shapes}, which are not those of a VideoPose3D network; {_AGAIN}")
    joints_in, features = _inputs(inputs, joints_in, source)
    widths, dense = _widths([f.shape[2] for f in filters])
    return {
        "joints_in": joints_in, "features": features, "joints_out": shrink.shape[0] // 3,
        "widths": widths, "channels": channels, "dense": dense,
    }  # fmt: skip


def temporal_needs(state: Mapping[str, Tensor], source: str = "state dict", joints_in: int | None = None) -> dict[str, Any]:
    """Configuration keys and their values that weights need; TEMPORAL.CAUSAL is not among them, see CAUSAL_NOTE.

    Args:
        state: of one network in VideoPose3D's names, or of both as `to_lifting_state` gives them.
        joints_in: see `temporal_arguments`.

    Raises:
        WeightsError: as `temporal_arguments`.
    """
    arguments = temporal_arguments(state, joints_in, source)
    pose, trajectory = split(state)
    settings = {
        "TASK": "temporal",
        "MODEL.NAME": "temporal",
        "MODEL.NUM_JOINTS": arguments["joints_out"],
        "TEMPORAL.WIDTHS": list(arguments["widths"]),
        "TEMPORAL.CHANNELS": arguments["channels"],
        "TEMPORAL.DENSE": arguments["dense"],
        "TEMPORAL.FEATURES": arguments["features"],
    }
    return settings | ({"TEMPORAL.TRAJECTORY": trajectory is not None} if pose else {})


def recorded(meta: Mapping[str, Any], key: str) -> Any:
    """What the configuration among the other values of a checkpoint says of a key of TEMPORAL; None = nothing."""
    config = meta.get("config")
    section = config.get("TEMPORAL") if isinstance(config, Mapping) else None
    return section.get(key) if isinstance(section, Mapping) else None


def causal_of(checkpoint: Checkpoint, told: bool | None = None) -> bool:
    """Whether the networks of a checkpoint are causal: as its file says, else as the caller does.

    Our files say it; VideoPose3D's do not.

    Raises:
        WeightsError: nobody says it, or the two disagree.
    """
    trained = recorded(checkpoint.meta, "CAUSAL")
    if not isinstance(trained, bool):
        if told is None:
            raise WeightsError(f"{checkpoint.source}: {CAUSAL_NOTE}")
        return told
    if told is not None and told != trained:
        raise WeightsError(
            f"{checkpoint.source}: was trained with TEMPORAL.CAUSAL {str(trained).lower()}, but {str(told).lower()} is asked for; the "
            f"weights would load and give wrong poses; set TEMPORAL.CAUSAL {str(trained).lower()}"
        )
    return trained


def write_videopose3d(
    path: str | Path,
    pose_state: Mapping[str, Tensor],
    trajectory_state: Mapping[str, Tensor] | None = None,
    epoch: int = 0,
    lr: float = 1e-3,
) -> None:
    """Write networks as VideoPose3D reads them: {epoch, lr, optimizer, model_pos, model_traj}.

    For evaluation and inference there; it holds no random state and no optimizer. `model_traj` is left out when there is none, because
    VideoPose3D's --evaluate fails on None. Plain torch.load reads the file.

    Raises:
        WeightsError: the states are not of such networks, or the folder cannot be written; an older file of that name is then untouched.
    """
    path = Path(path)
    for state in (pose_state, trajectory_state):
        if state is not None:
            _filters(state, str(path))
    content = {"epoch": int(epoch), "lr": float(lr), "optimizer": None, "model_pos": _on_host(pose_state)}
    if trajectory_state is not None:
        content["model_traj"] = _on_host(trajectory_state)
    with replaced(path, WeightsError, causes=OF_TORCH, parents=False) as part:
        torch.save(content, part)


def _on_host(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().cpu().contiguous() for key, value in strip_prefix(state).items()}


def _filters(state: Mapping[str, Tensor], source: str) -> list[Tensor]:
    """Weights of the layers with a width: the first one, and the wide one of each block."""
    count = len([key for key in state if key.startswith("layers_conv.") and key.endswith(".weight")])
    names = ["expand_conv.weight", *(f"layers_conv.{i}.weight" for i in range(count + count % 2))]
    missing = [name for name in (*names, "shrink.weight") if name not in state or state[name].ndim != 3]
    if missing:
        raise WeightsError(f"{source}: {missing[0]} is missing or no filter bank, expected (channels, channels, frames); {_AGAIN}")
    return [state[name] for name in names[:1] + names[1::2]]


def _inputs(count: int, joints: int | None, source: str) -> tuple[int, int]:
    """Joints and features of so many input channels."""
    if joints is not None:
        if count % joints or count // joints < 2:
            raise WeightsError(
                f"{source}: the first layer takes {count} numbers a frame, which are not two or more for each of {joints} joints; give "
                "keypoints of the layout it was trained with"
            )
        return joints, count // joints
    for features in (2, 3):
        if count % features == 0 and count // features in _JOINTS:
            return count // features, features
    features = 3 if count % 2 else 2
    return count // features, features


def _widths(kernels: list[int]) -> tuple[tuple[int, ...], bool]:
    """Widths of the layers, and whether they are dense: a dense filter of width w spans (w - 1) gap + 1 frames."""
    widths, gap = [kernels[0]], kernels[0]
    for kernel in kernels[1:]:
        if (kernel - 1) % gap or (kernel - 1) // gap % 2:
            return tuple(kernels), False
        widths.append((kernel - 1) // gap + 1)
        gap *= widths[-1]
    return tuple(widths), widths != kernels
