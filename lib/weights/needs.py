"""What configuration a file of weights belongs to, read from the names and shapes of its tensors alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import yaml
from torch import Tensor

from lib.dataset.image import HG3D, HG3D_HOURGLASS, MACHINE
from lib.errors import WeightsError
from lib.models.hourglass import HALVINGS
from lib.skeleton import SKELETONS
from lib.weights.adapters import Checkpoint, kind_of, resnet_layers, resnet_stages
from lib.weights.machine import machine_arguments, machine_joints
from lib.weights.temporal import CAUSAL_NOTE, recorded, temporal_arguments, temporal_needs, to_lifting_state
from lib.weights.voxelpose import voxelpose_needs

PUBLISHED = ((17, 64), (16, 64))  # joints and depth bins of the published volumes
_JOINTS = sorted({skeleton.num for skeleton in SKELETONS.values()})
_LEAST_BINS = 4  # fewer depth bins are no volume
_MPII, _H36M, _COCO = "mpii16", "h36m17", "coco17"
_LAYOUT = "TEMPORAL.LAYOUT"
LIFTING = ("videopose3d", "lifting")  # kinds of networks that lift keypoints
FUSION = {"fusion": HG3D, "hourglass": HG3D_HOURGLASS}  # kinds of networks of 2D + 3D fusion, and the pictures that the release feeds them
VOXELS = ("voxelpose", "selfpose3d", "voxelpose_backbone")  # kinds of networks, or parts of them, that see several people at once
_LIFTED = {17: _H36M, 15: "humaneva15", 20: "humaneva20"}  # joints of lifted poses -> skeleton
_LAYOUTS = {16: _MPII, 17: _COCO, 15: "humaneva15", 20: "humaneva20"}  # joints of keypoints -> skeleton, where the poses have others
# joints and head -> skeleton; seventeen 2D heatmaps are COCO's, seventeen joints with depth Human3.6M's
_SKELETONS = {
    (16, "volume"): _MPII, (16, "heatmap"): _MPII, (16, "heatmap_depth"): _MPII,
    (17, "volume"): _H36M, (17, "heatmap"): _COCO, (17, "heatmap_depth"): _H36M,
}  # fmt: skip

# arguments of PoseMachine -> keys
_MACHINE_KEYS = {
    "trunk": "MACHINE.TRUNK", "channels": "MACHINE.CHANNELS", "hidden": "MACHINE.HIDDEN", "num_stages": "MACHINE.NUM_STAGES",
    "head2d": "MACHINE.HEAD2D", "map_stages": "MACHINE.MAP_STAGES", "norm": "MACHINE.NORM",
    "layers": "MODEL.EXTRA.NUM_LAYERS", "stages": "MODEL.EXTRA.NUM_STAGES", "deconv_filters": "MODEL.EXTRA.NUM_DECONV_FILTERS",
    "deconv_kernels": "MODEL.EXTRA.NUM_DECONV_KERNELS", "deconv_bias": "MODEL.EXTRA.DECONV_WITH_BIAS",
}  # fmt: skip


@dataclass(frozen=True)
class Needs:
    """Configuration of a file.

    settings: configuration keys and their values.
    alternatives: other (joints, depth bins) that the output layer has room for; 0 bins = heatmaps.
    notes: what the tensors cannot tell, in sentences.
    """

    settings: dict[str, Any]
    alternatives: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    def overrides(self, defaults: Mapping[str, Any] | None = None) -> str:
        """As words behind a command; those of `defaults` need not be said."""
        known = {key: _word(value) for key, value in (defaults or {}).items()}
        return " ".join(f"{k} {_word(v)}" for k, v in self.settings.items() if known.get(k) != _word(v))

    def to_yaml(self) -> str:
        """As an experiment file."""
        tree: dict[str, Any] = {}
        for dotted, value in self.settings.items():
            node, (*sections, leaf) = tree, dotted.split(".")
            for section in sections:
                node = node.setdefault(section, {})
            node[leaf] = value
        return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)


def needs_of(
    state: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None, joints: int | None = None, bins: int | None = None
) -> Needs:
    """The configuration that weights need.

    Args:
        state: without wrapper prefixes.
        meta: the other values of the file; the names that EpipolarPose stores under `model` tell the crop size.
        joints, bins: preferred where the output layer can be read in several ways.

    Returns:
        No settings at all for a network that is not one of ours.
    """
    kind = kind_of(state)
    if kind == "pose_resnet":
        return _pose_resnet(state, meta or {}, joints, bins)
    if kind in FUSION:
        return _fusion(state, meta or {})
    if kind == "refiner":
        return _refiner(state)
    if kind in LIFTING:
        return _lifting(state, meta or {})
    if kind in VOXELS:
        return _voxels(state)
    if kind == "pose_machine":
        return _machine(state, meta or {})
    if kind == "resnet":
        layers = resnet_layers(state)
        note = "holds a backbone alone: give it as MODEL.INIT_FILE; a classifier (fc) in it is ignored"
        return Needs({"MODEL.EXTRA.NUM_LAYERS": layers} if layers else {}, notes=(note,))
    return Needs({})


def image_spec_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Fields of the ImageSpec that a file's network wants: those stored in it, else those of the release it comes from; {} = not known."""
    released = MACHINE if checkpoint.kind == "pose_machine" and "trunk.conv4_7_CPM.weight" in checkpoint.state_dict else {}
    return dict(checkpoint.meta.get("image_spec") or FUSION.get(checkpoint.kind, released))


def differences(file: Needs, model: Needs) -> str:
    """The settings of a file that differ from a model's, as words: "KEY value (it is other)"; '' if none does."""
    differing = [key for key, value in file.settings.items() if key in model.settings and model.settings[key] != value]
    layouts = [SKELETONS[needs.settings[_LAYOUT]].num for needs in (file, model) if _LAYOUT in needs.settings]
    if len(set(layouts)) == 1:  # both are guesses from the same number of keypoints
        differing = [key for key in differing if key != _LAYOUT]
    return ", ".join(f"{key} {_word(file.settings[key])} (it is {_word(model.settings[key])})" for key in differing)


def readings(channels: int) -> list[tuple[int, int]]:
    """Joints and depth bins that so many output channels can mean, the likeliest first; 0 bins = heatmaps.

    Only joint counts of known skeletons are considered; the published pairs come first, then heatmaps, then the rounder bins.
    """
    found = [(joints, channels // joints) for joints in _JOINTS if channels % joints == 0 and channels // joints >= _LEAST_BINS]
    found += [(channels, 0)] if channels in _JOINTS else []

    def unlikely(pair: tuple[int, int]) -> tuple:
        joints, bins = pair
        common = joints not in {p[0] for p in PUBLISHED}
        return pair not in PUBLISHED, bins != 0, bins & (bins - 1) != 0, common, -bins

    return sorted(found, key=unlikely)


def _pose_resnet(state: Mapping[str, Tensor], meta: Mapping[str, Any], joints: int | None, bins: int | None) -> Needs:
    notes = []
    final = state.get("final_layer.weight")
    if final is None or final.ndim != 4 or not len(final):
        return Needs({}, notes=("the output layer (final_layer.weight) is not that of a convolution",))
    channels = final.shape[0]
    alternatives: list[tuple[int, int]] = []
    if "depth_fc.weight" in state:
        head, count, depth = "heatmap_depth", channels, state["depth_fc.weight"].shape[0] // channels
    else:
        pairs = readings(channels) or [(channels, 0)]
        preferred = [pair for pair in pairs if pair == (joints, bins)] + [pair for pair in pairs if bins and pair[1] == bins]
        count, depth = (preferred or pairs)[0]
        alternatives = [pair for pair in pairs if pair != (count, depth)]
        head = "volume" if depth else "heatmap"
    settings: dict[str, Any] = {"TASK": "integral"}
    skeleton = _skeleton(meta, count, head)
    if skeleton:
        settings["DATASET.SKELETON"] = skeleton
    else:
        notes.append(f"the skeleton of {count} joints is not known: set DATASET.SKELETON (lib/skeleton.py lists them)")
    if skeleton in (_COCO, _H36M) and "skeleton" not in meta:
        other = _COCO if skeleton == _H36M else _H36M
        notes.append(f"17 joints are those of {_H36M} or of {_COCO}: DATASET.SKELETON {other} if it is the other one")
    settings |= {"MODEL.NAME": "pose3d_resnet", "MODEL.NUM_JOINTS": count, "MODEL.HEAD": head}
    if depth:
        settings["MODEL.DEPTH_RES"] = depth
    size = _size(meta)
    if size:
        settings["MODEL.IMAGE_SIZE"] = size
    else:
        settings["MODEL.IMAGE_SIZE"] = [256, 256]
        others = "; Simple Baselines also exist for [192, 256] and [288, 384] (width, height)" if head == "heatmap" else ""
        notes.append(f"the size of the crop is not in the tensors: MODEL.IMAGE_SIZE [256, 256] is assumed{others}")
    settings |= _trunk(state, notes) | {"MODEL.EXTRA.FINAL_CONV_KERNEL": final.shape[-1]}
    if head == "heatmap":
        settings["LOSS.FN"] = "HeatmapMSELoss"
        notes.append("heatmaps are read at their maximum (LOSS.FN HeatmapMSELoss); a soft-argmax network has LOSS.FN L1JointLocationLoss")
    elif head == "heatmap_depth":
        settings["TEST.DECODE"] = "quarter"
        notes.append("heatmaps are read at their maximum (TEST.DECODE quarter); set TEST.DECODE soft for a soft-argmax network")
    return Needs(settings, tuple(alternatives), tuple(notes))


def _trunk(state: Mapping[str, Tensor], notes: list[str]) -> dict[str, Any]:
    """Settings of a ResNet and its deconvolutions; what cannot be told is added to `notes`."""
    settings: dict[str, Any] = {}
    layers = resnet_layers(state)
    if layers:
        settings["MODEL.EXTRA.NUM_LAYERS"] = layers
    else:
        notes.append("the depth of the ResNet cannot be told: set MODEL.EXTRA.NUM_LAYERS")
    indices = sorted(
        int(match[1]) for key in state if (match := re.fullmatch(r"deconv_layers\.(\d+)\.weight", key)) and state[key].ndim == 4
    )
    weights = [state[f"deconv_layers.{i}.weight"] for i in indices]
    return settings | {
        "MODEL.EXTRA.NUM_STAGES": resnet_stages(state),
        "MODEL.EXTRA.NUM_DECONV_LAYERS": len(weights),
        "MODEL.EXTRA.NUM_DECONV_FILTERS": [w.shape[1] for w in weights],
        "MODEL.EXTRA.NUM_DECONV_KERNELS": [w.shape[2] for w in weights],
        "MODEL.EXTRA.DECONV_WITH_BIAS": any(f"deconv_layers.{i}.bias" in state for i in indices),
    }


def _fusion(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Needs:
    """A network of Zhou et al., ICCV 2017: a fusion network or a stacked hourglass."""
    hourglass = kind_of(state) == "hourglass"
    final = "tmpOut.0.weight" if hourglass else "hm.weight"
    if final not in state or state[final].ndim != 4 or not state[final].numel():
        return Needs({}, notes=(f"the output layer ({final}) is not that of a convolution",))
    notes: list[str] = []
    count, deep = len(state[final]), ("reg.weight" if hourglass else "depth.weight") in state
    head = "heatmap_depth" if deep else "heatmap"
    skeleton, size = _skeleton(meta, count, head), _size(meta)
    settings: dict[str, Any] = {"TASK": "fusion"} | ({"DATASET.SKELETON": skeleton} if skeleton else {})
    if not skeleton:
        notes.append(f"the skeleton of {count} joints is not known: set DATASET.SKELETON (lib/skeleton.py lists them)")
    settings |= {"MODEL.NAME": "hourglass" if hourglass else "fusion", "MODEL.NUM_JOINTS": count, "MODEL.HEAD": head}
    if hourglass:
        extra, cells = _hourglass(state)
        side = isqrt(cells)
        if not size and side and side * side == cells:
            size = [64 * side, 64 * side]
    else:
        extra = _trunk(state, notes)
    settings["MODEL.IMAGE_SIZE"] = size or [256, 256]
    if not size:
        other = "; the release's network for COCO takes [192, 256] (width, height)" if (count, deep) == (17, False) else ""
        notes.append(f"the size of the crop is not in the tensors: MODEL.IMAGE_SIZE [256, 256] is assumed{other}")
    if not meta.get("image_spec"):
        numbers = "" if hourglass else ", less ImageNet's means and over its deviations, in the order of RGB all the same"
        notes.append(f"pictures are taken as the release feeds them: BGR, over 256{numbers}")
        if deep and skeleton == "mpii16":
            settings["FUSION.RULE"] = "published"
            notes.append("joints are taken to mean what the release taught them: FUSION.RULE published")
    return Needs(settings | extra, notes=tuple(notes))


def _hourglass(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """Settings of a stacked hourglass, and the cells of 64 x 64 px that its depth module sees (0 = none)."""

    def count(name: str) -> int:
        return len({key.split(".")[1] for key in state if key.startswith(f"{name}.")})

    stacks, features = count("tmpOut"), state["tmpOut.0.weight"].shape[1]
    settings = {
        "MODEL.EXTRA.NUM_STACKS": stacks,
        "MODEL.EXTRA.NUM_MODULES": count("Residual") // stacks,
        "MODEL.EXTRA.NUM_FEATURES": features,
    }
    if "reg.weight" in state and state["reg.weight"].ndim == 2:
        settings["MODEL.EXTRA.DEPTH_MODULES"] = count("reg_") // HALVINGS
        return settings, state["reg.weight"].shape[1] // features
    return settings, 0


def _refiner(state: Mapping[str, Tensor]) -> Needs:
    settings: dict[str, Any] = {"TASK": "refine"}
    joints = state["w1.weight"].shape[1] // 3 + 1 if "w1.weight" in state and state["w1.weight"].ndim == 2 else 16
    skeleton = _SKELETONS.get((joints, "volume"))
    settings |= {"DATASET.SKELETON": skeleton} if skeleton else {}
    settings |= {"MODEL.NAME": "refiner", "MODEL.NUM_JOINTS": joints}
    if "w1.weight" in state:
        settings["REFINE.WIDTH"] = state["w1.weight"].shape[0]
    settings["REFINE.STAGES"] = len({key.split(".")[1] for key in state if key.startswith("linear_stages.")})
    notes = (
        "the means and deviations of its training data come in norm.pkl (REFINE.NORM), not in the weights",
        "the network of the release is assumed; set REFINE.RESIDUAL or REFINE.LEAKY true if it was trained so",
    )
    return Needs(settings, notes=notes)


def _lifting(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Needs:
    source = "the layers"  # whatever file they came from
    try:
        state = to_lifting_state(Checkpoint(kind_of(state), dict(state), dict(meta), source))
        skeleton = meta.get("skeleton")
        layout = recorded(meta, "LAYOUT") or skeleton
        layout = layout if isinstance(layout, str) and layout in SKELETONS else ""
        joints_in = temporal_arguments(state, SKELETONS[layout].num if layout else None, source)["joints_in"]
        found = temporal_needs(state, source, joints_in)
    except WeightsError as error:
        return Needs({}, notes=(str(error),))
    notes, joints = [], found["MODEL.NUM_JOINTS"]
    if not (isinstance(skeleton, str) and skeleton in SKELETONS and SKELETONS[skeleton].num == joints):
        skeleton = _LIFTED.get(joints, "")
    settings = {"TASK": found.pop("TASK")} | ({"DATASET.SKELETON": skeleton} if skeleton else {}) | found
    if not skeleton:
        notes.append(f"the skeleton of {joints} joints is not known: set DATASET.SKELETON (lib/skeleton.py lists them)")
    if not layout:
        layout = skeleton if joints_in == joints else _LAYOUTS.get(joints_in, "")
        if not layout:
            notes.append(f"the skeleton of {joints_in} keypoints is not known: set {_LAYOUT} (lib/skeleton.py lists them)")
        elif joints_in == 17:
            other = _COCO if layout == _H36M else _H36M
            notes.append(
                f"17 keypoints are those of {_H36M} or of {_COCO}, {layout} is assumed, and the wrong one gives wrong poses without any "
                f"error: {_LAYOUT} {other} if it is the other one"
            )
    if layout:
        settings[_LAYOUT] = layout
    causal = recorded(meta, "CAUSAL")
    if isinstance(causal, bool):
        settings["TEMPORAL.CAUSAL"] = causal
    else:
        notes.append(CAUSAL_NOTE)
    return Needs(settings, notes=tuple(notes))


def _voxels(state: Mapping[str, Tensor]) -> Needs:
    try:
        settings, notes = voxelpose_needs(state, "the network")
    except WeightsError as error:
        return Needs({}, notes=(str(error),))
    return Needs(settings, notes=tuple(notes))


def _machine(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Needs:
    size, joints, notes = _size(meta), machine_joints(state), []
    try:
        found = machine_arguments(state, size)
    except WeightsError as error:
        return Needs({}, notes=(str(error),))
    skeleton = meta.get("skeleton")
    if not (isinstance(skeleton, str) and skeleton in SKELETONS and SKELETONS[skeleton].num == joints):
        skeleton = {16: "h36m16", 17: _H36M}.get(joints, "")
    settings: dict[str, Any] = {"TASK": "machine"} | ({"DATASET.SKELETON": skeleton} if skeleton else {}) | {"MODEL.NAME": "pose_machine"}
    if joints:
        settings["MODEL.NUM_JOINTS"] = joints
    if "image_size" in found:
        settings["MODEL.IMAGE_SIZE"] = list(found["image_size"])
        if not size:
            side = found["image_size"][0]
            notes.append(f"the size of the crop is not in the tensors: MODEL.IMAGE_SIZE [{side}, {side}] is the largest square that fits")
    settings |= {key: found[argument] for argument, key in _MACHINE_KEYS.items() if argument in found}
    if "deconv_filters" in found:
        settings["MODEL.EXTRA.NUM_DECONV_LAYERS"] = len(found["deconv_filters"])
    parts = [name for name in ("trunk", "lifter", "regressor", "projector") if any(key.startswith(f"{name}.") for key in state)]
    if len(parts) < 4:
        notes.append(f"holds {' and '.join(parts)} alone: give it as MODEL.PRETRAINED beside other parts")
    if "lifter" in parts:
        notes.append(
            "whether the second LSTM layer runs backwards cannot be read from its tensors, and the wrong way gives wrong poses without any "
            "error: it does as published; set MACHINE.TEMPORAL causal if it was trained so"
        )
    return Needs(settings, notes=tuple(notes))


def _skeleton(meta: Mapping[str, Any], joints: int, head: str) -> str:
    told = meta.get("skeleton")
    if isinstance(told, str) and told in SKELETONS and SKELETONS[told].num == joints:
        return told
    return _SKELETONS.get((joints, head), "")


def _size(meta: Mapping[str, Any]) -> list[int] | None:
    """[width, height] from what is stored beside the weights: our image_spec, or a name as 256x256_pose3d_resnet_50_..., which
    begins with height x width.
    """
    spec = meta.get("image_spec")
    size = spec.get("size") if isinstance(spec, Mapping) else None
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(v) is int for v in size):
        return list(size)
    names = meta.get("model")
    for name in names if isinstance(names, list | tuple) else [names]:
        match = re.match(r"(\d+)x(\d+)(?:_|$)", name) if isinstance(name, str) else None
        if match:
            return [int(match[2]), int(match[1])]
    return None


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
