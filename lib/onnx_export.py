"""Trained networks as ONNX files, for programs without this repository: what scripts/convert.py onnx does.

Networks that see a person's crop (TASK integral, epipolar, fusion) take the crop as it is, uint8, and give joints, so normalisation and
decoding are inside; networks that lift keypoints (TASK temporal) take clips of any length. The number of crops, clips and frames is free.
The metadata of a file say what goes in and comes out, in which unit, and which joint is which. Before a file gets its name, onnxruntime
has run it beside the network it was made of.
"""

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.convert import configuration, named, network_kind
from lib.errors import RunError, WeightsError
from lib.files import new_file, refuse_existing
from lib.skeleton import get
from lib.tasks import build
from lib.tasks.base import Task
from lib.tasks.fusion import FusionTask
from lib.tasks.restore import adopt
from lib.weights.adapters import Checkpoint
from lib.weights.digest import sha256
from lib.weights.needs import FUSION, LIFTING

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # needed here alone
OPSET = 18
COUNTS = (1, 2, 5)  # crops, or clips, of the batches that a file is tried on
SEED = 0
# How far onnxruntime may be from torch, in the outputs' units, and as a share of the value: sums in float32 in another order.
TOLERANCE = {"x_patch": 0.02, "conf": 1e-4, "X_root": 0.1, "root": 0.1, "mm_per_px": 1e-4}
SHARE = 1e-4


class _Crops(nn.Module):
    """image (N,3,H,W) uint8 -> joints in px of the crop."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x_patch, conf = self.task.predict_patch(image)
        return {"x_patch": x_patch, "conf": conf}


class _SizedCrops(nn.Module):
    """image (N,3,H,W) uint8 -> joints in px of the crop and, where the network knows depth, the pose in mm."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task
        self.register_buffer("itself", torch.eye(2, 3)[None], persistent=False)  # to the task, the crop is the image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        pred = self.task.predict({"image": image, "patch_from_img": self.itself})
        return {"x_patch": pred.pop("x_img"), **pred}


class _Clips(nn.Module):
    """x_screen (N,T,J_in,F) -> poses of all frames."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, x_screen: Tensor) -> dict[str, Tensor]:
        lifted = self.task.lift(x_screen)
        return {name: value for name, value in lifted._asdict().items() if value is not None}


@dataclass(frozen=True)
class Exportable:
    """A network with one input and named outputs, and what a user of its file must know."""

    network: nn.Module
    input: str
    free: tuple[str, ...]  # names of the leading axes that may have any length
    texts: dict[str, str]  # shape, unit and frame of the input and of each output
    facts: dict[str, Any]  # plain values by name

    def example(self, count: int) -> Tensor:
        """Inputs that look like real ones enough to be told apart: smooth pictures with noise, or a body that moves."""
        rng = torch.Generator().manual_seed(SEED + count)
        if self.free == ("N",):
            width, height = self.facts["image_spec"]["size"]
            coarse = F.interpolate(torch.rand(count, 3, 6, 6, generator=rng), (height, width), mode="bicubic")
            return (255 * (0.8 * coarse + 0.2 * torch.rand(count, 3, height, width, generator=rng))).clamp(0, 255).to(torch.uint8)
        frames = 1 if count == 1 else self.facts["receptive_field"] + 10 * count
        shape = (len(self.facts["layout_joints"]), self.facts["features"])
        body = 0.4 * torch.randn(count, 1, *shape, generator=rng)
        return body + 0.05 * torch.randn(count, frames, *shape, generator=rng).cumsum(1).clamp(-10, 10)


def exportable(task: Task) -> Exportable:
    """What of a task goes into a file."""
    skeleton, cfg = get(task.pose_skeleton), task.cfg
    facts: dict[str, Any] = {"task": cfg.TASK, "skeleton": skeleton.name, "joints": list(skeleton.joints)}
    facts |= {"root": skeleton.joints[skeleton.root_index], "flip_test": bool(cfg.TEST.FLIP_TEST)}
    if task.sees == "keypoints":
        pose, layout = task.model.pose, get(task.layout)
        facts |= {"layout": layout.name, "layout_joints": list(layout.joints), "features": pose.features}
        facts |= {"receptive_field": pose.receptive_field, "causal": pose.causal, "fps": task.fps, "screen_focal": task.screen_focal}
        texts = {
            "x_screen": f"(N,T,{layout.num},{pose.features}) float32: keypoints of T frames as x = 2 x_px / width - 1, "
                        "y = (2 y_px - height) / width" + (", and their score" if pose.features == 3 else ""),
            "X_root": f"(N,T,{skeleton.num},3) mm from the root joint in the camera's axes: x right, y down, z forward",
            "root": "(N,T,1,3) mm of the root joint from the camera",
        }  # fmt: skip
        return Exportable(_Clips(task), "x_screen", ("N", "T"), texts, facts)
    (width, height), joints = task.image_spec.size, skeleton.num
    facts["image_spec"] = task.image_spec.to_dict()
    texts = {
        "image": f"(N,3,{height},{width}) uint8 RGB: crops of {width} x {height} px around a person; image_spec is applied inside",
        "x_patch": f"(N,{joints},2) px of the crop, x right and y down, 0 = middle of the first pixel",
        "conf": f"(N,{joints}) 0..1",
    }
    if isinstance(task, FusionTask):
        facts["assumed"] = list(task.assumed())
        texts |= {
            "X_root": f"(N,{joints},3) mm from the root joint in the camera's axes: x right, y down, z forward",
            "mm_per_px": "(N) mm that a px of the crop spans at the person",
        }
        return Exportable(_SizedCrops(task), "image", ("N",), texts, facts)
    facts |= {"depth_mm": float(cfg.DATASET.DEPTH_RANGE), "box_scale": float(cfg.DATASET.BOX_SCALE), "box_fit": cfg.DATASET.BOX_FIT}
    if task.dims == 3:
        texts["x_patch"] = (
            f"(N,{joints},3) px of the crop: x right and y down, 0 = middle of the first pixel, a px of which is what the crop spans "
            f"at the person, divided by {width}; and depth from the root joint, a px of which is what the box spans, divided by {width}: "
            f"the crop is box_scale times as wide as the box, which spans {cfg.DATASET.DEPTH_RANGE:g} mm in training"
        )
    return Exportable(_Crops(task), "image", ("N",), texts, facts)


def export(checkpoint: Checkpoint, out: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Writes the network of a checkpoint as an ONNX file that onnxruntime runs with equal results.

    Args:
        checkpoint: of ours, of a network that sees crops or lifts keypoints, as lib.weights.load.read returns it.
        out: the new file.
        overrides: "KEY VALUE" words that change its configuration, such as TEST.FLIP_TEST false.

    Returns:
        What was written and how far onnxruntime is from torch, a line each.

    Raises:
        RunError: a package is missing, or onnxruntime's results are others; no file is left.
        WeightsError: another network, or bare weights.    ConfigError: an override is wrong.
        DataError: `out` exists or cannot be written.
    """
    refuse_existing(Path(out))
    if missing := [package for package in PACKAGES if find_spec(package) is None]:
        raise RunError(f"ONNX export needs {', '.join(missing)}, which this environment lacks; run `pip install {' '.join(missing)}`")
    kind = network_kind(checkpoint)
    if kind not in ("pose_resnet", *FUSION, *LIFTING):
        raise WeightsError(
            f"{checkpoint.source}: holds {named(kind)}, expected a network that sees one person's crop (TASK integral, epipolar or fusion) "
            "or lifts keypoints (TASK temporal); only those can be exported"
        )
    if not checkpoint.config:
        raise WeightsError(f"{checkpoint.source}: holds weights but no configuration; make a checkpoint of it first with "
                           "scripts/convert.py convert")  # fmt: skip
    task = build(configuration(checkpoint, overrides=overrides))
    adopt(task, checkpoint)
    made = exportable(task.eval())
    made.network.eval().requires_grad_(False)
    source = {"source": Path(checkpoint.source).name, "source_sha256": sha256(checkpoint.source), "torch": torch.__version__}
    model = _onnx(made, source)
    differences = compare(made, model)
    with new_file(out) as part:
        part.write_bytes(model)
    shown = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    version = importlib.import_module("onnxruntime").__version__
    return [
        f"{out}: {len(model):,} bytes, opset {OPSET}; joints of {made.facts['skeleton']}",
        *(f"  {name:9s} {made.texts[name]}" for name in (made.input, *differences)),
        f"onnxruntime {version} beside torch on {sum(COUNTS)} examples, largest differences: {shown}",
    ]


def _onnx(made: Exportable, source: Mapping[str, str]) -> bytes:
    """The file's contents."""
    example = made.example(2)
    with torch.no_grad():
        outputs = list(made.network(example))
    free = {axis: torch.export.Dim(name, min=1) for axis, name in enumerate(made.free)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself; whether it did well is measured
        program = torch.onnx.export(
            made.network, (example,), dynamo=True, opset_version=OPSET, input_names=[made.input], output_names=outputs,
            dynamic_shapes={made.input: free}, verbose=False,
        )  # fmt: skip
    facts = made.facts | {"input": made.input, "outputs": outputs} | {f"about_{name}": made.texts[name] for name in (made.input, *outputs)}
    for name, value in (facts | dict(source)).items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    program.model.producer_name = "parallax"
    return program.model_proto.SerializeToString()


def compare(made: Exportable, model: bytes) -> dict[str, float]:
    """The largest difference of each output between onnxruntime and torch, over several sizes of batches.

    Raises:
        RunError: one is beyond TOLERANCE.
    """
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    largest = dict.fromkeys(names, 0.0)
    for count in COUNTS:
        example = made.example(count)
        with torch.no_grad():
            expected = {name: value.numpy() for name, value in made.network(example).items()}
        for name, found in zip(names, session.run(names, {made.input: example.numpy()}), strict=True):
            distance = np.abs(found - expected[name])
            if found.shape != expected[name].shape or not (distance <= TOLERANCE[name] + SHARE * np.abs(expected[name])).all():
                raise RunError(
                    f"the exported network is another one: {name} of {count} examples is up to {distance.max():.3g} away from torch's, "
                    f"expected {TOLERANCE[name]:g}; nothing was written. Try other versions of {', '.join(PACKAGES)}"
                )
            largest[name] = max(largest[name], float(distance.max()))
    return largest
