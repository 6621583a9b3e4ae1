"""Published checkpoint forms, recognised by their keys alone (never by a path) and unwrapped to a plain state dict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lib.backbone.resnet import RESNETS
from lib.errors import WeightsError
from lib.weights.unpickle import Inert

State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what came with them.

    kind: a name of KINDS.    state_dict: without wrapper prefixes.    meta: the other plain values of the file.
    source: where it came from, for messages.    wrapping: how the weights lay in the file, in words.
    """

    kind: str
    state_dict: State
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = "checkpoint"
    wrapping: str = "bare state dict"

    @property
    def config(self) -> dict[str, Any]:
        """The configuration in a checkpoint of ours; {} in files of others, whatever they call by that name."""
        found = self.meta.get("config") if self.kind == "parallax" else None
        return found if isinstance(found, dict) and isinstance(found.get("MODEL", {}), dict) else {}


@dataclass(frozen=True)
class Kind:
    """One published form: how its keys look, and where weights of this form belong."""

    matches: Callable[[Mapping[str, Tensor]], bool]
    text: str  # "looks like a ... checkpoint"
    shown: tuple[str, ...]  # key prefixes that gave it away
    use: str  # the next step when it does not fit


def _has(*prefixes: str) -> Callable[[Mapping[str, Tensor]], bool]:
    return lambda state: all(any(key.startswith(prefix) for key in state) for prefix in prefixes)


_MACHINE = ("trunk.conv4_7_CPM.", "lifter.fa_conv_1.", "regressor.change_tmp.", "projector.project_1.")
_RESNET = "set MODEL.EXTRA.NUM_LAYERS and the head to those of the file"
# Order matters: the first match names the file.
KINDS: dict[str, Kind] = {
    "selfpose3d": Kind(
        _has("backbone.", "attn."), "SelfPose3d", ("backbone.", "attn."), "use it with TASK selfpose3d"
    ),
    "keypoint_rcnn": Kind(
        _has("backbone.body.", "rpn.head.", "roi_heads.keypoint_predictor."),
        "torchvision Keypoint R-CNN", ("backbone.body.", "roi_heads.keypoint_predictor."),
        "it finds people and their COCO joints in whole pictures through torchvision.models.detection; scripts/predict.py takes "
        "torchvision's Faster R-CNN as --detector-weights, and MODEL.PRETRAINED a network of person crops",
    ),
    "faster_rcnn": Kind(
        _has("backbone.", "rpn.head.", "roi_heads.box_predictor."),
        "torchvision Faster R-CNN", ("backbone.", "rpn.", "roi_heads."),
        "it finds people in pictures: give it to scripts/predict.py as --detector-weights",
    ),
    "voxelpose": Kind(
        lambda state: any(k.startswith(("root_net.", "pose_net.")) for k in state),
        "VoxelPose", ("root_net.", "pose_net.", "backbone."),
        "use it with TASK voxelpose, or, where it has 17 joints and no backbone, with TASK scenes",
    ),
    "voxelpose_backbone": Kind(
        _has("backbone.conv1.", "backbone.layer1.", "backbone.deconv_layers.", "backbone.final_layer."),
        "VoxelPose or SelfPose3d backbone", ("backbone.",), "use it with TASK voxelpose or selfpose3d, as the start of the backbone",
    ),
    "refiner": Kind(
        _has("linear_stages.", "w1."), "refiner", ("w1", "linear_stages.0"),
        "run refiner/main.py, or set MODEL.PRETRAINED to an image model",
    ),
    "videopose3d": Kind(
        _has("expand_conv.", "shrink."), "VideoPose3D network", ("expand_conv", "layers_conv"),
        "it lifts keypoints of videos: use it with TASK temporal, or make a checkpoint for scripts/predict.py --keypoints of it with "
        "scripts/convert.py convert",
    ),
    "lifting": Kind(
        _has("pose.expand_conv.", "pose.shrink."), "lifting network", ("pose.expand_conv", "trajectory.expand_conv"),
        "it lifts keypoints of videos: use it with TASK temporal, or give it to scripts/predict.py --keypoints as --checkpoint",
    ),
    "fusion": Kind(
        _has("deconv_layers.", "hm."), "2D+3D fusion (hg-3d)", ("hm.", "depth."), "use it with TASK fusion, MODEL.NAME fusion"
    ),
    "hourglass": Kind(
        _has("conv1_.", "hourglass.", "tmpOut."),
        "stacked hourglass", ("hourglass.", "tmpOut.", "reg."), "use it with TASK fusion, MODEL.NAME hourglass",
    ),
    "pose_machine": Kind(
        lambda state: any(k.startswith(_MACHINE) for k in state),  # files hold one part or several
        "3D human pose machine", ("trunk.", "lifter.", "regressor.", "projector."), "use it with TASK machine, MODEL.NAME pose_machine",
    ),
    "pose_resnet": Kind(
        _has("conv1.", "layer1.", "deconv_layers.", "final_layer."),
        "pose ResNet", ("deconv_layers", "final_layer"), _RESNET,
    ),
    "resnet": Kind(_has("conv1.", "layer1.", "layer4."), "torchvision ResNet", ("conv1", "layer1"), _RESNET),
}  # fmt: skip
_CONTAINERS = ("model", "state_dict", "model_pos", "model_state_dict", "net", "network")


def unwrap(value: Any, source: str) -> Checkpoint:
    """The weights inside whatever a checkpoint file held.

    Knows: our own {format, model, ...}; EpipolarPose's {epoch, model: names, state_dict}; its refiner; VideoPose3D's
    {model_pos}; hg-3d's {epoch, state_dict, optimizer}; a bare state dict; each with or without the prefix "module." of a
    parallel wrapper.

    Raises:
        WeightsError: there are no named tensors in it, or they lie in a pickled object.
    """
    if isinstance(value, Inert):
        raise _pickled(value, source)
    if isinstance(value, Mapping) and not _is_state(value):
        for name in _CONTAINERS:
            inner = value.get(name)
            if isinstance(inner, Mapping) and _is_state(inner):
                meta = {str(k): v for k, v in value.items() if k != name and isinstance(k, str)}
                state = strip_prefix(inner)
                ours = name == "model" and "format" in value
                said = f"under the key {name!r}{_prefix(inner, state)}"
                return Checkpoint("parallax" if ours else kind_of(state), state, meta, source, said)
        pickled = next((value[name] for name in _CONTAINERS if isinstance(value.get(name), Inert)), None)
        if pickled is not None:
            raise _pickled(pickled, source)
        raise WeightsError(
            f"{source}: holds {_described(value)}, but no weights; expected a state dict, or a dict with one under "
            f"{', '.join(_CONTAINERS[:3])}"
        )
    if not isinstance(value, Mapping):
        raise WeightsError(
            f"{source}: holds an object of type {type(value).__name__}, expected a dict of named tensors; "
            "save the network with torch.save(model.state_dict(), path)"
        )
    state = strip_prefix(value)
    return Checkpoint(kind_of(state), state, {}, source, f"bare state dict{_prefix(value, state)}")


def _pickled(value: Inert, source: str) -> WeightsError:
    """The error for a network that was saved as an object, which only its own code can read."""
    kind = type(value)
    name = ascii(f"{kind.__module__.removeprefix('inert.')}.{kind.__name__}"[:100]).strip("'")
    return WeightsError(
        f"{source}: holds a whole pickled object ({name}), not named tensors; nothing in a file is executed here, so load it where its "
        "own code is (hgreg-3d.pth: PyTorch 0.1.12, Python 2, pytorch-pose-hg-3d's branch hg3d), save it there with "
        "torch.save(model.state_dict(), path), and give that file"
    )


def kind_of(state: Mapping[str, Tensor]) -> str:
    """The name in KINDS of a state dict, by its keys; "unknown" when none fits."""
    return next((name for name, kind in KINDS.items() if kind.matches(state)), "unknown")


def describe(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Two clauses for messages: what a state dict looks like, and what to do with it."""
    name = kind_of(state)
    if name == "unknown":
        first = ", ".join(repr(key) for key in list(state)[:3])
        return f"has keys of an unknown network ({first}, ...)", "give weights of the network that MODEL.NAME names"
    kind = KINDS[name]
    shown = [prefix for prefix in kind.shown if any(key.startswith(prefix) for key in state)]
    return f"looks like a {kind.text} checkpoint (keys {', '.join(repr(p) for p in shown)})", kind.use


def strip_prefix(state: Mapping[str, Tensor]) -> State:
    """Keys without the "module." (and torch.compile's "_orig_mod.") that wrappers put in front of every one of them."""
    state = dict(state)
    stripped = True
    while stripped and state:
        stripped = False
        for prefix in ("module.", "_orig_mod."):
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                stripped = True
    return state


def resnet_layers(state: Mapping[str, Tensor]) -> int | None:
    """Number of layers of the ResNet whose trunk is in a state dict; None when it holds none, another one, or fewer stages
    than it takes to tell.
    """
    counts = tuple(len({k.split(".")[1] for k in state if k.startswith(f"layer{stage}.")}) for stage in range(1, 5))
    stages = resnet_stages(state)
    bottleneck = any(key.startswith("layer1.0.conv3.") for key in state)
    fitting = [
        layers
        for layers, (block, blocks) in RESNETS.items()
        if counts[:stages] == blocks[:stages] and not any(counts[stages:]) and (block.expansion == 4) == bottleneck
    ]
    return fitting[0] if len(fitting) == 1 else None


def resnet_stages(state: Mapping[str, Tensor]) -> int:
    """Number of stages of the ResNet in a state dict, 0 to 4."""
    found = [any(key.startswith(f"layer{stage}.") for key in state) for stage in range(1, 5)]
    return found.index(False) if False in found else 4


def _prefix(wrapped: Mapping[str, Tensor], state: State) -> str:
    """What `strip_prefix` took off every key, in words."""
    prefix = next(iter(wrapped)).removesuffix(next(iter(state)))
    return f", each key with the prefix {prefix}" if prefix else ""


def _is_state(value: Mapping) -> bool:
    return bool(value) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _described(value: Mapping) -> str:
    keys = ", ".join(repr(key) for key in list(value)[:5])
    return f"a dict with the keys {keys}" if keys else "an empty dict"
