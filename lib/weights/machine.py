"""Weights of 3D human pose machines in files: Caffe models, exports of their layers (.npz), the pickle of the published correction.

Layers have the release's names, ours are the same behind the name of their part. Three things differ: Caffe's LSTM stacks its gates as
input, forget, output, cell and PyTorch's as input, forget, cell, output; PyTorch's has a second bias, 0 here; and the pickle has its
matrices transposed.
"""

import zipfile
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib import unpickle
from lib.errors import MALFORMED, DataError, WeightsError
from lib.files import replaced
from lib.models.pose_machine import PoseNormalizer
from lib.skeleton import get
from lib.weights.adapters import Checkpoint, State, kind_of, resnet_layers, resnet_stages
from lib.weights.caffe import looks_like_caffe, read_caffemodel

_HEAD = 1 << 16  # bytes that tell what a file is
_CONVOLUTIONS = (
    "conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3", "conv3_4", "conv4_1", "conv4_2",
    "conv4_3_CPM", "conv4_4_CPM", "conv4_5_CPM", "conv4_6_CPM", "conv4_7_CPM",
)  # fmt: skip
_PSI = ("change_tmp", "change", "project_1", "project_2", "project_3", "project_2d")  # in the order of the pickle
_FINAL = "fc-final_16"
# Layers of the release -> ours
LAYERS: dict[str, str] = {
    **{name: f"trunk.{name}" for name in _CONVOLUTIONS},
    **{f"special_conv_{k}": f"lifter.special_conv_{k}" for k in (1, 2)},
    **{f"fa_conv_{k}": f"lifter.fa_conv_{k}" for k in (1, 2)},
    "fc": "lifter.fc", "lstm1": "lifter.lstm1", "lstm2": "lifter.lstm2", _FINAL: "lifter.fc_final",
    **{name: f"regressor.{name}" for name in _PSI[:2]}, **{name: f"projector.{name}" for name in _PSI[2:]},
    **{f"conv5_{k}_CPM": f"head2d.conv5_{k}_CPM" for k in (1, 2)},
    **{f"Mconv{k}_stage{stage}": f"head2d.Mconv{k}_stage{stage}" for stage in range(2, 7) for k in range(1, 8)},
}  # fmt: skip
ALIASES = {"fc_final": _FINAL, "fc-final": _FINAL, "fc_final_16": _FINAL}  # of exports
_LSTMS = ("lstm1", "lstm2")
_BLOBS, _LSTM_BLOBS = ("weight", "bias"), ("W_xc", "b_c", "W_hc")
_LSTM_OURS = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0")
_GATES = (0, 1, 3, 2)  # the last two of the four change places; its own inverse
# Numbers of a pose whose ranges the release has -> its joints
_RANGED = {3 * get(name).num: name for name in ("h36m16", "h36m17")}


def read_release(path: str | Path) -> Checkpoint | None:
    """A file of the release that is no torch file: a Caffe model, an .npz of layers, or the pickle of 12 arrays; None = another file.

    Weights come under our names; those of layers that are not the pose machine's keep theirs.

    Raises:
        WeightsError: a Caffe model or export that is damaged or does not fit together.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if head.startswith(b"PK"):
        layers = _npz_layers(path)
        return None if layers is None else _checkpoint(layers, "arrays by the names of layers (.npz)", path)
    if looks_like_caffe(head):
        net = read_caffemodel(path)
        made = f"Caffe model {net.name!r}, " if net.name else "Caffe model, "
        said = f"{made}{'V1 ' if net.old else ''}{len(net.layers)} of {net.count} layers with weights"
        return _checkpoint({layer.name: layer.blobs for layer in net.layers}, said, path)
    arrays = _pickled_arrays(path)
    if arrays is None:
        return None
    layers = {name: (w.T, b) for name, w, b in zip(_PSI, arrays[::2], arrays[1::2], strict=True)}
    return _checkpoint(layers, "pickle of the 12 arrays of the published correction, matrices transposed", path)


def from_layers(layers: Mapping[str, Sequence[Tensor]], source: str = "layers") -> State:
    """Weights under our names, from the blobs of the release's layers.

    Layers that are not the pose machine's keep their name, with .weight, .bias, or the number of the blob from the third on. The table of
    ranges that the release's poses belong to comes with a lifter or a regressor of its 16 joints, or of 17 with the nose.

    Raises:
        WeightsError: blobs of a known layer that cannot be its weights.
    """
    state: State = {}
    for name, blobs in layers.items():
        known = ALIASES.get(name, name)
        if known not in LAYERS:
            state |= {f"{name}.{_BLOBS[i] if i < len(_BLOBS) else i}": blob for i, blob in enumerate(blobs)}
        elif known in _LSTMS:
            state |= _lstm(LAYERS[known], blobs, f"{source}: layer {name}")
        else:
            state |= _plain(LAYERS[known], blobs, f"{source}: layer {name}")
    outputs = {len(state[key]) for key in ("lifter.fc_final.bias", "regressor.change.bias") if key in state}
    if len(outputs) == 1 and outputs <= _RANGED.keys():
        ranges = PoseNormalizer(_RANGED[outputs.pop()])
        state |= {"normalizer.high": ranges.high, "normalizer.low": ranges.low}
    return state


def to_layers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a pose machine under the release's names, as `<layer>.<blob>`; the inverse of `from_layers`.

    The table of ranges is no layer, and left out.

    Raises:
        WeightsError: a tensor has no place there, such as one of a trunk of another kind.
    """
    left = [key for key in state if key.rpartition(".")[0] not in (*LAYERS.values(), "normalizer")]
    if left or not state:
        what = f"has {left[0]!r}" if left else "is empty"
        raise WeightsError(
            f"layers of the release: the state dict {what}, expected the layers of the published pose machine alone (a trunk cpm, one "
            "recurrent stage, no head or heatmaps for 2D, no batch norm); keep it in our own form"
        )
    found: dict[str, Tensor] = {}
    for name, ours in LAYERS.items():
        if name in _LSTMS and f"{ours}.weight_ih_l0" in state:
            w, b, u = (state[f"{ours}.{key}"] for key in _LSTM_OURS)
            both = b + state[f"{ours}.bias_hh_l0"] if f"{ours}.bias_hh_l0" in state else b
            found |= {f"{name}.{blob}": _exchanged(v) for blob, v in zip(_LSTM_BLOBS, (w, both, u), strict=True)}
        elif f"{ours}.weight" in state:
            found |= {f"{name}.{blob}": state[f"{ours}.{blob}"] for blob in _BLOBS}
    return found


def machine_arguments(state: Mapping[str, Tensor], image_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The arguments of PoseMachine that fit weights under our names; only those that the tensors of the parts that are there tell.

    Whether a lifter is a stack or causal is in no tensor, nor whether a batch norm is inert. A trunk and a lifter without a head for the 2D
    pose are taken for a model without it.

    Args:
        image_size: width and height px, where they are known. Else they are taken to be equal and the largest with a lifter of that size.

    Raises:
        WeightsError: a layer has other axes than it must have.
    """
    try:
        return _arguments(state, image_size)
    except (IndexError, TypeError, KeyError, ZeroDivisionError) as error:
        raise WeightsError("weights of a pose machine: a layer has not the axes that it must have; give another file") from error


def _arguments(state: Mapping[str, Tensor], image_size: Sequence[int] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "trunk.conv4_7_CPM.weight" in state:
        found |= {"trunk": "cpm", "channels": len(state["trunk.conv4_7_CPM.weight"])}
    elif "trunk.squeeze.weight" in state:
        trunk = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
        deconvolutions = [v for key, v in trunk.items() if key.startswith("deconv_layers.") and v.ndim == 4]
        found |= {"trunk": "resnet", "channels": len(trunk["squeeze.weight"]), "stages": resnet_stages(trunk)}
        layers = resnet_layers(trunk)  # two stages of a ResNet-50 are those of a ResNet-101 as well
        found |= {"layers": layers} if layers else {}
        found["deconv_filters"], found["deconv_kernels"] = ([v.shape[axis] for v in deconvolutions] for axis in (1, 2))
        found["deconv_bias"] = "deconv_layers.0.bias" in trunk
    for layer in ("lifter.fc", "regressor.change_tmp", "projector.project_1"):
        if f"{layer}.weight" in state:
            found["hidden"] = len(state[f"{layer}.weight"])
    if "lifter.fa_conv_1.weight" in state:
        found["num_stages"] = 1 + len({key.split(".")[2] for key in state if key.startswith("lifter.stages.")})
    if "projector.project_1.weight" in state:
        found["norm"] = "batch" if "projector.bn.0.weight" in state else "none"
    if {"trunk", "num_stages"} <= found.keys():
        found["head2d"] = "none"
    for layer, kind in {"conv_1": "fc", "conv5_1_CPM": "maps", "fa_conv_1": "lstm"}.items():
        if f"head2d.{layer}.weight" in state:
            found["head2d"] = kind
    if found.get("head2d") == "maps":
        found["map_stages"] = 1 + len({key for key in state if key.startswith("head2d.Mconv1_stage") and key.endswith("weight")})
    if image_size is not None:
        found["image_size"] = tuple(image_size)
    elif "lifter.fc.weight" in state and "trunk" in found:
        side = isqrt(state["lifter.fc.weight"].shape[1] // found["channels"])
        stride = 8 if found["trunk"] == "cpm" else 2 ** (found["stages"] + 1 - len(found["deconv_filters"]))
        found["image_size"] = ((4 * side + 6) * stride,) * 2
    return found


def machine_joints(state: Mapping[str, Tensor]) -> int:
    """Number of joints of a pose machine's weights; 0 = the parts that are there do not tell."""
    sizes = {"lifter.fc_final.bias": 3, "regressor.change.bias": 3, "projector.project_2d.bias": 2}
    return next((len(state[key]) // n for key, n in sizes.items() if key in state), 0)


def write_npz(layers: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes blobs of layers, as `to_layers` gives them, as an .npz that `read_release` reads.

    Raises:
        WeightsError: the folder cannot be written; an older file of that name is then untouched.
    """
    with replaced(path, WeightsError, parents=False) as part, part.open("wb") as file:
        np.savez(file, **{name: value.detach().cpu().numpy() for name, value in layers.items()})


def _checkpoint(layers: Mapping[str, Sequence[Tensor]], wrapping: str, path: Path) -> Checkpoint:
    state = from_layers(layers, str(path))
    return Checkpoint(kind_of(state), state, {}, str(path), wrapping)


def _exchanged(x: Tensor) -> Tensor:
    """The four blocks of gates in the other order."""
    return torch.cat([x.chunk(4)[k] for k in _GATES])


def _lstm(ours: str, blobs: Sequence[Tensor], where: str) -> State:
    shapes = [tuple(blob.shape) for blob in blobs]
    if len(blobs) == 3:
        w, b, u = blobs[0].squeeze(), blobs[1].flatten(), blobs[2].squeeze()
        if w.ndim == u.ndim == 2 and len(w) == len(u) == len(b) == 4 * u.shape[1]:
            values = (_exchanged(v.contiguous()) for v in (w, b, u))
            return {f"{ours}.{key}": v for key, v in zip(_LSTM_OURS, values, strict=True)} | {f"{ours}.bias_hh_l0": torch.zeros_like(b)}
    raise WeightsError(
        f"{where} has blobs of shapes {shapes}, expected those of an LSTM: (4 H, inputs), (4 H), (4 H, H); give the release's file"
    )


def _plain(ours: str, blobs: Sequence[Tensor], where: str) -> State:
    axes = 4 if "conv" in ours.lower() else 2
    shapes = [tuple(blob.shape) for blob in blobs]
    if len(blobs) == 2:
        weight, bias = blobs[0], blobs[1].flatten()
        while weight.ndim > axes and weight.shape[0] == 1:  # V1 tells (1, 1, out, in)
            weight = weight[0]
        if weight.ndim == axes and len(weight) == len(bias):
            return {f"{ours}.weight": weight.contiguous(), f"{ours}.bias": bias.contiguous()}
    kind = "a convolution: (out, in, k, k), (out)" if axes == 4 else "a matrix: (out, in), (out)"
    raise WeightsError(f"{where} has blobs of shapes {shapes}, expected those of {kind}; give the release's file")


def _npz_layers(path: Path) -> dict[str, tuple[Tensor, ...]] | None:
    """Blobs of each layer in an archive of arrays named <layer>.<blob> or <layer>/<number>; None = another archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not names or not all(name.endswith(".npy") for name in names):
                return None
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, *MALFORMED) as error:
        raise WeightsError(f"{path}: a truncated or damaged .npz ({error}); download or copy the file again") from error
    layers: dict[str, dict[int, Tensor]] = {}
    for name, array in arrays.items():
        layer, _, blob = name.replace("/", ".").rpartition(".")
        places = {b: i for names in (_BLOBS, _LSTM_BLOBS) for i, b in enumerate(names)}
        place = int(blob) if blob.isdecimal() else places.get(blob)
        if not layer or place is None or array.dtype.kind != "f":
            return None
        layers.setdefault(layer, {})[place] = _float32(array)
    for layer, blobs in layers.items():
        if sorted(blobs) != list(range(len(blobs))):
            raise WeightsError(f"{path}: layer {layer} has the blobs {sorted(blobs)}, some before the last are missing; export it again")
    return {layer: tuple(blobs[i] for i in range(len(blobs))) for layer, blobs in layers.items()}


def _pickled_arrays(path: Path) -> list[Tensor] | None:
    """The 12 arrays of the published correction; None = another pickle, or no pickle."""
    try:
        value: Any = unpickle.load(path)
    except DataError:
        return None
    if not isinstance(value, list | tuple) or not value or not all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in value):
        return None
    shapes = [a.shape for a in value]
    expected: list[tuple[int, ...]] = []
    if len(shapes) == 2 * len(_PSI) and len(shapes[0]) == 2:
        numbers, hidden = shapes[0]
        flat = numbers // 3 * 2
        for inputs, out in ((numbers, hidden), (hidden, numbers), (numbers, hidden), (hidden, hidden), (hidden, hidden), (hidden, flat)):
            expected += [(inputs, out), (out,)]
    if shapes != expected:
        raise WeightsError(
            f"{path}: a pickle of {len(value)} arrays of shapes {shapes}; expected the 12 of the published correction, W and b of "
            f"{', '.join(_PSI)}, each W as (inputs, outputs)"
        )
    return [_float32(a) for a in value]


def _float32(array: np.ndarray) -> Tensor:
    """As a network's weights; numbers too large for them become infinite."""
    return torch.from_numpy(np.asarray(array, np.float64)).float()
