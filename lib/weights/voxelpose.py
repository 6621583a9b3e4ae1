"""VoxelPose's and SelfPose3d's networks in files: their parts, what network they need, and a backbone for other joints."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lib.errors import ConfigError, WeightsError
from lib.skeleton import convert, get
from lib.weights.adapters import State, kind_of, resnet_layers

PARTS = ("backbone", "attn", "pose_net", "root_net")
SPACE_NOTE = (
    "the space and its voxels are not in the tensors: set them as the network was trained; other cameras are fine, but another size or "
    "number of voxels costs accuracy"
)
_JOINTS = {15: "panoptic15", 16: "mpii16", 17: "coco17"}  # heatmaps of a backbone -> skeleton
_POSES = {15: "panoptic15", 17: "voxelpose17"}  # joints of 3D poses -> skeleton
# Networks on the joints of COCO without a backbone are those of Shelf and Campus, which take heatmaps drawn from 2D detections.
_DETECTED = {"DATASET.SKELETON": _JOINTS[17], "VOXEL.HEATMAPS": "keypoints", "VOXEL.ROOT_JOINTS": ["l_hip", "r_hip"]}
_FIRST, _LAST = "v2v_net.front_layers.0.block.0.weight", "v2v_net.output_layer.weight"
# What stands in for joints that COCO lacks in the release's start weights for Panoptic.
_RELEASE = {"neck": "l_shoulder", "pelvis": "l_hip"}


def parts_of(state: Mapping[str, Tensor]) -> dict[str, State]:
    """The state dicts of a network's parts by the first word of the keys; a bare pose ResNet is a backbone.

    `attn.backbone.*` belongs to attn. Parts that are not ours are listed as well.
    """
    if kind_of(state) in ("pose_resnet", "resnet"):
        return {"backbone": dict(state)}
    parts: dict[str, State] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def voxelpose_arguments(state: Mapping[str, Tensor], source: str = "state dict") -> dict[str, Any]:
    """What can be told of a network from its weights; an entry is there when its part is.

    Returns:
        joints: J.    layers: of the backbone's ResNet.    attention_layers: of the attention network's.
        root_alone: whether the root net takes the root's heatmap alone.

    Raises:
        WeightsError: there is none of VoxelPose's parts, or they do not fit together.
    """
    parts = parts_of(state)
    found: dict[str, Any] = {}
    joints: dict[str, int] = {}
    for part, entry in (("backbone", "layers"), ("attn", "attention_layers")):
        if part in parts:
            trunk = {key.removeprefix("backbone."): value for key, value in parts[part].items()}
            found[entry] = resnet_layers(trunk)
            if "final_layer.bias" in trunk:
                joints[part] = len(trunk["final_layer.bias"])
    for part in ("pose_net", "root_net"):
        if part in parts:
            missing = [key for key in (_FIRST, _LAST) if key not in parts[part] or parts[part][key].ndim != 5]
            if missing:
                raise WeightsError(
                    f"{source}: {part} has no volume filters {missing[0]}, so it is not VoxelPose's network; its backbone may be loaded "
                    "alone"
                )
    if "pose_net" in parts:
        joints["pose_net"] = parts["pose_net"][_LAST].shape[0]
    if "root_net" in parts:
        channels = parts["root_net"][_FIRST].shape[1]
        found["root_alone"] = channels == 1
        joints |= {"root_net": channels} if channels > 1 else {}
    if not found and not joints:
        raise WeightsError(f"{source}: has none of the parts {', '.join(PARTS)}; give a checkpoint of VoxelPose or SelfPose3d")
    if len(set(joints.values())) > 1:
        counts = ", ".join(f"{part} {count}" for part, count in joints.items())
        raise WeightsError(f"{source}: its parts have different numbers of joints ({counts}); expected parts of one network")
    return ({"joints": next(iter(joints.values()))} if joints else {}) | found


def voxelpose_needs(state: Mapping[str, Tensor], source: str = "state dict") -> tuple[dict[str, Any], list[str]]:
    """Configuration keys and their values that weights need, and what the tensors cannot tell, in sentences.

    Raises:
        WeightsError: as `voxelpose_arguments`.
    """
    found, parts = voxelpose_arguments(state, source), parts_of(state)
    joints = found.get("joints")
    detected = joints == 17 and not {"backbone", "attn"} & parts.keys()
    settings: dict[str, Any] = {"TASK": "scenes" if detected else "selfpose3d" if "attn" in parts else "voxelpose"}
    if joints in _POSES:
        settings["DATASET.SKELETON"] = _POSES[joints]
    settings["MODEL.NAME"] = "voxelpose"
    settings |= {"MODEL.NUM_JOINTS": joints} if joints else {}
    settings |= {"MODEL.EXTRA.NUM_LAYERS": found["layers"]} if found.get("layers") else {}
    notes = []
    if "root_net" in parts or "pose_net" in parts:
        notes.append(SPACE_NOTE)
    else:
        notes.append("it holds a backbone alone: heatmaps, no poses")
    if "root_alone" in found:
        settings["VOXEL.ROOT_HEATMAP"] = found["root_alone"]
        which = "the heatmap of the root joint alone" if found["root_alone"] else "the heatmaps of all joints"
        notes.append(f"its root network takes {which}")
    absent = [part for part in ("backbone", "root_net", "pose_net") if part not in parts]
    if absent:
        notes.append(f"it has no {' and no '.join(absent)}")
    if detected:
        settings |= _DETECTED
        notes.append(
            "it takes heatmaps drawn from 2D detections, as on Shelf and on Campus, whose networks look the same: DATASET.DATASET shelf "
            "with an experiment such as experiments/shelf/prn64.yaml, or campus"
        )
    return settings, notes


def backbone_state(
    state: Mapping[str, Tensor], skeleton: str, source_skeleton: str = "", rule: str = "mean", source: str = "state dict"
) -> State:
    """A pose ResNet out of any of these files, its heatmaps brought to the joints of `skeleton` by their names.

    Args:
        state: a bare pose ResNet (as of COCO, 384x288), `backbone.*` alone, or a whole network.
        source_skeleton: joints of its heatmaps; '' = by their number: 15 Panoptic's, 16 MPII's, 17 COCO's.
        rule: filters of joints that the source lacks. "mean": as `lib.skeleton.convert` makes those joints, such as the neck from both
            shoulders; "reference": SelfPose3d's, the neck from the left shoulder and the middle of the hips from the left hip.

    Returns:
        Keys of PoseResNet. Filters of joints that cannot be made are zero.

    Raises:
        WeightsError: there is no backbone, or no skeleton with so many joints is known.
        ConfigError: unknown skeleton or rule.
    """
    parts = parts_of(state)
    if "backbone" not in parts:
        raise WeightsError(f"{source}: has no backbone, only {', '.join(parts)}; give a file with one")
    backbone = parts["backbone"]
    weight, bias = backbone.get("final_layer.weight"), backbone.get("final_layer.bias")
    if weight is None or bias is None:
        return backbone
    name = source_skeleton or (skeleton if len(weight) == get(skeleton).num else _JOINTS.get(len(weight), ""))
    if not name or get(name).num != len(weight):
        expected = f"{get(name).num} of {name}" if name else "15, 16 or 17"
        raise WeightsError(f"{source}: its backbone gives {len(weight)} heatmaps, expected {expected}; name the skeleton they are of")
    if rule not in ("mean", "reference"):
        raise ConfigError(f"backbone_state: rule {rule!r} is not one of mean, reference")
    if name == skeleton:
        return backbone
    rows = {"final_layer.weight": _rows(weight, name, skeleton, rule), "final_layer.bias": _rows(bias, name, skeleton, rule)}
    return backbone | rows


def _rows(values: Tensor, src: str, dst: str, rule: str) -> Tensor:
    """Filters (J, ...) of one skeleton's heatmaps for another's."""
    rows = convert(values.reshape(len(values), -1), src, dst)[0].reshape(-1, *values.shape[1:])
    if rule == "reference":
        for joint, instead in _RELEASE.items():
            row, place = get(dst).find(joint), get(src).find(instead)
            if get(src).find(joint) is None and row is not None and place is not None:
                rows[row] = values[place]
    return rows
