"""scripts/convert.py: what a file is and needs, other forms of it, and files that are refused."""

import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib import config
from lib import convert as forms
from lib.engine import commands
from lib.errors import WeightsError
from lib.models.pose_resnet import PoseResNet
from lib.prediction.lifter import Lifter
from lib.predictor import Predictor
from lib.tasks.restore import restore
from lib.weights.adapters import Checkpoint
from lib.weights.digest import sha256
from lib.weights.imagenet import imagenet_state
from lib.weights.load import read
from refiner.data import Statistics, dump
from refiner.model import Refiner
from scripts import convert as script
from tests.conftest import ROOT

SMALL = {"layers": 18, "joints": 17, "head": "volume", "depth_bins": 8, "deconv_filters": (8, 8, 8)}
NAMES = ("pose3d_resnet_18", "64x64_pose3d_resnet_18_DR8_S1_DL1")  # as EpipolarPose stores them: height x width first


def shapes(**arguments) -> OrderedDict:
    """The state dict of a network, names and shapes real, each tensor one number repeated: its file is small."""
    with torch.device("meta"):
        state = PoseResNet(**arguments).state_dict()
    return blank(state)


def blank(state: dict) -> OrderedDict:
    return OrderedDict((k, torch.zeros((), dtype=v.dtype).expand(v.shape)) for k, v in state.items())


def module(state: dict) -> OrderedDict:
    return OrderedDict((f"module.{k}", v) for k, v in state.items())


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def inspect(state, path: Path, capsys, *options: str, legacy: bool = False) -> str:
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert script.main(["inspect", str(path), *options]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def refused(arguments: list, out: Path, capsys) -> str:
    """The one line of an error; nothing new lies beside `out`."""
    before = sorted(out.parent.iterdir()) if out.parent.exists() else None
    assert script.main([str(a) for a in arguments]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and found.err.count("\n") == 1
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else None) == before
    return found.err


@pytest.fixture(scope="module")
def source() -> PoseResNet:
    torch.manual_seed(3)
    network = PoseResNet(**SMALL).eval()
    for name, value in network.state_dict().items():  # heatmaps with clear peaks
        if value.ndim == 4:
            nn.init.normal_(value, std=(2.0 if name.startswith("final") else 1.4) / (value.numel() / len(value)) ** 0.5)
        elif name.endswith(("running_mean", "bias")):
            nn.init.normal_(value, std=0.1)
    return network


@pytest.fixture(scope="module")
def published(source, tmp_path_factory) -> Path:
    """A training checkpoint as EpipolarPose writes it."""
    path = tmp_path_factory.mktemp("published") / "checkpoint.pth.tar"
    state = {"epoch": 3, "model": NAMES, "state_dict": module(source.state_dict()), "perf": 441.25, "optimizer": {"state": {}}}
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def ours(published) -> Path:
    path = published.with_name("ours.pth.tar")
    assert script.main(["convert", str(published), str(path)]) == 0
    return path


# --- inspect


WRAPPINGS = {
    "bare": (lambda s: s, "wrapped   bare state dict\n"),
    "module": (module, "wrapped   bare state dict, each key with the prefix module.\n"),
    "training": (
        lambda s: {"epoch": 3, "model": NAMES, "state_dict": module(s), "perf": 441.25, "optimizer": {}},
        "wrapped   under the key 'state_dict', each key with the prefix module.\n",
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
def test_inspect_names_kind_wrapping_and_hash(wrapping, legacy, tmp_path, capsys):
    wrap, line = WRAPPINGS[wrapping]
    path = tmp_path / "x.pth.tar"
    text = inspect(wrap(shapes(**SMALL)), path, capsys, legacy=legacy)
    assert text.startswith(f"{path}: a pose ResNet, 140 tensors, ") and line in text
    assert f"sha256    {sha256(path)}\n" in text and f"size      {path.stat().st_size:,} bytes\n" in text
    size = "[64, 64]" if wrapping == "training" else "[256, 256]"
    assert f"IMAGE_SIZE: {size}\n" in text and ("size of the crop is not in the tensors" in text) is (wrapping != "training")
    assert ("epoch     3\n" in text and "perf      441.25\n" in text and "also      optimizer\n" in text) is (wrapping == "training")
    assert f"convert.py convert {path} OUT" in text and f"MODEL.PRETRAINED {path}" in text and f"MODEL.RESUME {path}" in text


HEADS = [  # network, words in what it needs, words in the notes
    ((18, 17, "volume"), ["NUM_LAYERS: 18", "NUM_JOINTS: 17", "HEAD: volume", "DEPTH_RES: 64", "SKELETON: h36m17"],
     ["1088 output channels could also be 16 joints x 68 depth bins", "coco17 if it is the other one"]),
    ((34, 16, "volume"), ["NUM_LAYERS: 34", "NUM_JOINTS: 16", "HEAD: volume", "DEPTH_RES: 64", "SKELETON: mpii16"],
     ["1024 output channels could also be 32 joints x 32 depth bins"]),
    ((50, 16, "heatmap"), ["NUM_LAYERS: 50", "NUM_JOINTS: 16", "HEAD: heatmap", "SKELETON: mpii16", "FN: HeatmapMSELoss"],
     ["LOSS.FN L1JointLocationLoss"]),
    ((50, 17, "heatmap"), ["NUM_JOINTS: 17", "HEAD: heatmap", "SKELETON: coco17"], ["[192, 256] and [288, 384]"]),
    ((50, 16, "heatmap_depth"), ["NUM_JOINTS: 16", "HEAD: heatmap_depth", "DEPTH_RES: 64", "SKELETON: mpii16"], ["TEST.DECODE soft"]),
]  # fmt: skip


@pytest.mark.parametrize(("network", "needed", "noted"), HEADS, ids=["-".join(map(str, h[0])) for h in HEADS])
def test_inspect_reads_the_configuration_from_names_and_shapes(network, needed, noted, tmp_path, capsys):
    layers, joints, head = network
    state = shapes(layers=layers, joints=joints, head=head)
    text = inspect(state, tmp_path / "mpii_imagenet.pth", capsys)  # a name that says nothing
    assert not [words for words in needed if words not in text] and not [words for words in noted if words not in text]
    with torch.device("meta"):  # the words on the command line build just this network
        cfg = forms.configuration(Checkpoint("pose_resnet", state))
        built = PoseResNet(
            cfg.MODEL.EXTRA.NUM_LAYERS, cfg.MODEL.NUM_JOINTS, cfg.MODEL.HEAD, cfg.MODEL.DEPTH_RES, cfg.MODEL.EXTRA.NUM_DECONV_FILTERS
        )
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in state.items()}
    words = forms.needs(Checkpoint("pose_resnet", state)).overrides()
    assert forms.configuration(Checkpoint("resnet", {}), overrides=words.split()).MODEL == cfg.MODEL


def test_inspect_of_old_files_keys_and_other_deconvolutions(tmp_path, capsys):
    state = shapes(layers=18, joints=16, head="heatmap", deconv_filters=(256, 128), deconv_kernels=(4, 2), deconv_bias=True, stages=3)
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    text = inspect(old, tmp_path / "a.pth", capsys, "--keys")
    assert "without num_batches_tracked" in text and "without num_batches_tracked" not in inspect(state, tmp_path / "b.pth", capsys)
    for words in ("NUM_DECONV_FILTERS: [256, 128]", "NUM_DECONV_KERNELS: [4, 2]", "DECONV_WITH_BIAS: true", "NUM_STAGES: 3"):
        assert words in text
    line = next(line.split() for line in text.splitlines() if "deconv_layers.3.bias" in line)
    assert line == ["deconv_layers.3.bias", "float32", "[128]"]


def detector(*keys: str) -> dict:
    return {key: torch.zeros(1) for key in ("backbone.body.conv1.weight", "rpn.head.cls_logits.weight", *keys)}


def resnet(layers: int) -> dict:
    import torchvision

    with torch.device("meta"):
        return blank(getattr(torchvision.models, f"resnet{layers}")(weights=None).state_dict())


OTHERS = {
    "resnet": (lambda: resnet(50), "a torchvision ResNet", ["NUM_LAYERS: 50", "MODEL.INIT_FILE", "classifier (fc)"]),
    "keypoint rcnn": (
        lambda: detector("roi_heads.box_predictor.cls_score.weight", "roi_heads.keypoint_predictor.kps_score_lowres.weight"),
        "a torchvision Keypoint R-CNN", ["COCO joints"],
    ),
    "faster rcnn": (lambda: detector("roi_heads.box_predictor.cls_score.weight"), "a torchvision Faster R-CNN", ["--detector-weights"]),
    "refiner": (lambda: {"epoch": 9, "lr": 1e-3, "err": 60.5, "state_dict": blank(Refiner(width=32).state_dict()), "optimizer": {}},
                "a refiner", ["TASK: refine", "NUM_JOINTS: 16", "WIDTH: 32", "STAGES: 2", "norm.pkl", "err       60.5", "refiner/main.py"]),
    "unknown": (lambda: {"encoder.weight": torch.zeros(2)}, "an unknown network", ["no network of this repository"]),
    "odd output": (lambda: {k: torch.zeros(2) for k in ("conv1.w", "layer1.w", "deconv_layers.w", "final_layer.w")}, "a pose ResNet",
                   ["not that of a convolution"]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_inspect_of_other_networks(name, tmp_path, capsys):
    state, kind, words = OTHERS[name]
    text = inspect(state(), tmp_path / "x.pth", capsys)
    assert text.split(": ", 1)[1].startswith(kind) and not [w for w in words if w not in text]


def test_inspect_of_a_checkpoint_of_ours(ours, capsys):
    assert script.main(["inspect", str(ours)]) == 0
    text = capsys.readouterr().out
    assert "a pose ResNet, a checkpoint of this repository" in text and "under the key 'model'" in text
    assert "which it holds itself" in text and "note " not in text and f"scripts/predict.py PICTURE --checkpoint {ours}" in text
    assert "color rgb" in text and "file checkpoint.pth.tar" in text  # image specification, and what it was made of


def test_texts_in_a_file_cannot_steer_the_terminal(tmp_path, capsys):
    state = {"note": "a\x1b[2Jb", "long": "x" * 9999, "state_dict": {"w\x1b[2J": torch.zeros(2)}}
    text = inspect(state, tmp_path / "x.pth", capsys, "--keys")
    assert "\x1b" not in text and len(text) < 3000


def test_a_configuration_of_somebody_else_is_not_taken_for_ours(tmp_path, capsys):
    for foreign in ({"MODEL": {"NAME": "x"}, "GPUS": [0]}, "config.yaml", {"MODEL": 3}):
        text = inspect({"config": foreign, "state_dict": shapes(**SMALL)}, tmp_path / "x.pth", capsys)
        assert "needs, in the YAML of an experiment" in text
    cfg = forms.configuration(read(tmp_path / "x.pth"))
    assert restore(tmp_path / "x.pth", fallback=cfg).model.joints == 17


# --- convert


def test_a_published_file_becomes_a_checkpoint_that_predicts_the_same(source, published, ours):
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = source(image)
        task = restore(ours)
        assert equal(task.model.state_dict(), source.state_dict())
        predictor = Predictor.from_checkpoint(ours, "cpu")
        # tasks store them channels last, which rounds differently
        assert torch.equal(task.model.to(memory_format=torch.contiguous_format)(image), expected) and expected.std() > 0.1
        torch.testing.assert_close(predictor.task.model(image), expected, rtol=0, atol=1e-3)  # batch norms are folded in it
        predictor.task.model.to(memory_format=torch.channels_last)
    assert predictor.skeleton.name == "h36m17" and predictor.spec.size == (64, 64) and predictor.spec.color == "rgb"
    pose = predictor(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8))
    assert np.isfinite(pose.X_root).all() and pose.x_img.shape == (17, 2)
    origin = torch.load(ours, weights_only=True)["converted"]
    assert origin["sha256"] == sha256(published) and origin["epoch"] == 3 and origin["perf"] == 441.25


def test_there_and_back_again_is_equal_to_the_bit(source, ours, tmp_path, capsys):
    reference, again, third = (tmp_path / name for name in ("reference.pth.tar", "again.pth.tar", "third.pth.tar"))
    assert script.main(["convert", str(ours), str(reference), "--to", "reference"]) == 0
    written = torch.load(reference, weights_only=True)
    assert equal(written, module(source.state_dict())) and list(written) == list(module(source.state_dict()))
    assert script.main(["convert", str(reference), str(again), "MODEL.IMAGE_SIZE", "[64,64]"]) == 0
    first, second = (torch.load(path, weights_only=True) for path in (ours, again))
    assert equal(first["model"], second["model"])
    assert first["config"] == second["config"] and first["image_spec"] == second["image_spec"]
    assert script.main(["convert", str(again), str(third), "--color", "bgr"]) == 0  # ours to ours: with another channel order
    assert restore(third).image_spec.color == "bgr" and restore(again).image_spec.color == "rgb"
    text = capsys.readouterr().out
    assert "140 tensors loaded" in text and "coco17 if it is the other one" in text
    assert "IMAGE_SIZE" not in text  # given, so nothing was assumed


def test_old_files_get_their_counters_back(source, tmp_path):
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    assert script.main(["convert", str(tmp_path / "old.pth"), str(tmp_path / "new.pth"), "--to", "reference"]) == 0
    written = torch.load(tmp_path / "new.pth", weights_only=True)
    assert set(written) == set(module(source.state_dict()))
    other = nn.DataParallel(PoseResNet(**SMALL))
    other.load_state_dict(written)  # strict


def test_the_backbone_alone_starts_another_training(source, ours, tmp_path):
    import torchvision

    path = tmp_path / "backbone.pth"
    assert script.main(["convert", str(ours), str(path), "--to", "torchvision"]) == 0
    state, message = imagenet_state(18, str(path))
    assert str(path) in message and torch.equal(state["layer4.1.bn2.weight"], source.layer4[1].bn2.weight)
    with torch.device("meta"):
        network = torchvision.models.resnet18(weights=None)
    keys = network.load_state_dict(state, strict=False, assign=True)
    assert keys.missing_keys == ["fc.weight", "fc.bias"] and keys.unexpected_keys == []


def test_the_configuration_of_an_experiment_is_taken(published, tmp_path):
    yaml = tmp_path / "mine.yaml"
    yaml.write_text(
        "TASK: epipolar\nDATASET: {BOX_SCALE: 1.5}\nMODEL:\n  NUM_JOINTS: 17\n  IMAGE_SIZE: [96, 96]\n  DEPTH_RES: 8\n"
        "  PRETRAINED: none.pth\n  EXTRA: {NUM_LAYERS: 18, NUM_DECONV_FILTERS: [8, 8, 8]}\n"
    )
    out = tmp_path / "out.pth.tar"
    assert script.main(["convert", str(published), str(out), "--cfg", str(yaml), "TEST.FLIP_TEST", "true"]) == 0
    cfg = restore(out).cfg
    assert cfg.TASK == "integral" and cfg.DATASET.BOX_SCALE == 1.5 and tuple(cfg.MODEL.IMAGE_SIZE) == (96, 96) and cfg.TEST.FLIP_TEST


def test_a_published_refiner_gets_its_statistics(tmp_path, capsys):
    model, rng = Refiner(width=32).eval(), np.random.default_rng(0)
    weights, norm, out, back = (tmp_path / name for name in ("refiner.pth.tar", "stats.pkl", "ours.pth.tar", "back/refiner.pth.tar"))
    torch.save({"epoch": 9, "lr": 1e-3, "step": 5, "err": 60.5, "state_dict": model.state_dict(), "optimizer": {}}, weights)
    arrays = tuple(rng.uniform(1, 9, 45).astype(np.float32) for _ in range(4))
    dump(arrays, norm)
    assert script.main(["convert", str(weights), str(out), "--norm", str(norm)]) == 0
    text = capsys.readouterr().out
    assert "norm.pkl" not in text and "REFINE.RESIDUAL" in text
    task = restore(out)
    x = torch.randn(3, 45)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(task.model(x), model(x), strict=True))
    assert np.array_equal(task.statistics().label_std, arrays[3])
    assert script.main(["convert", str(out), str(back), "--to", "reference"]) == 0
    assert equal(torch.load(back, weights_only=True)["state_dict"], model.state_dict())
    assert np.array_equal(Statistics.read(back.with_name("norm.pkl"), 45).input_mean, arrays[0])
    assert script.main(["convert", str(weights), str(tmp_path / "bare.pth.tar")]) == 0
    assert "norm.pkl (REFINE.NORM)" in capsys.readouterr().out


# --- networks that lift keypoints


VIDEO = ROOT / "tests" / "golden" / "videopose3d"


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["supervised", "semi"])
def test_inspect_of_a_file_of_videopose3d(name, form, capsys):
    path, semi = VIDEO / f"checkpoint_{name}_{form}.bin", name == "semi"
    assert script.main(["inspect", str(path), "--keys"]) == 0
    text = capsys.readouterr().out
    tensors, values = (40, "2,726") if semi else (20, "1,579")
    assert text.startswith(f"{path}: a VideoPose3D network, {tensors} tensors, {values} parameters\n")
    ignored = "random_state, random_state_semi" if semi else "random_state"
    for line in (
        f"wrapped   under the key 'model_pos'; ignored beside it: {ignored}", "epoch     1", "lr        0.00095", "also      optimizer",
        "pose      17 keypoints to 17 joints, sees 9 frames (widths 3,3), 8 channels, 1,579 parameters", "    WIDTHS: [3, 3]",
        "    CHANNELS: 8", f"    TRAJECTORY: {str(semi).lower()}",
    ):  # fmt: skip
        assert f"\n{line}\n" in text
    assert ("\ntrajectory 17 keypoints to the root's place, 1,147 parameters\n" in text) is semi
    assert (["model_traj.shrink.weight", "float32", "[3,", "8,", "1]"] in [line.split() for line in text.splitlines()]) is semi
    assert "CAUSAL:" not in text and "whether the network is causal cannot be read" in text and "TEMPORAL.LAYOUT coco17 if" in text
    assert f"convert.py convert {path} OUT TEMPORAL.CAUSAL false" in text and "scripts/valid.py --cfg YAML MODEL.RESUME" in text


@pytest.fixture(scope="module")
def lifters(tmp_path_factory) -> dict[str, Path]:
    """The published files by name, converted."""
    folder = tmp_path_factory.mktemp("lifters")
    for name in ("supervised", "semi"):
        out = folder / f"{name}.pth.tar"
        assert script.main(["convert", str(VIDEO / f"checkpoint_{name}_legacy.bin"), str(out), "TEMPORAL.CAUSAL", "false"]) == 0
    return {name: folder / f"{name}.pth.tar" for name in ("supervised", "semi")}


@pytest.mark.parametrize("name", ["supervised", "semi"])
def test_a_converted_network_lifts_to_the_published_numbers(name, lifters):
    expected = np.load(VIDEO / f"checkpoint_{name}_expected.npz")
    lifter = Lifter.from_checkpoint(lifters[name], "cpu")
    assert lifter.task.cfg.source("TEMPORAL.CAUSAL") != "default" and not lifter.task.model.pose.causal
    screen = torch.randn(1, 15, 17, 2, generator=torch.Generator().manual_seed(42))
    with torch.inference_mode():
        for output, part in zip(lifter.task.model(screen), ("pos", "traj"), strict=True):
            assert (output is None) == (part not in expected)
            if output is not None:
                np.testing.assert_allclose(output, expected[part], rtol=1e-5, atol=1e-5)
    motion = lifter.lift((screen[0].double().numpy() + 1) * 500, (1000, 1000))
    np.testing.assert_allclose(motion.X_root[4:-4] / 1000, expected["pos"][0], atol=1e-4)
    origin = torch.load(lifters[name], weights_only=True)["converted"]
    assert (origin["kind"], origin["epoch"], origin["lr"]) == ("videopose3d", 1, pytest.approx(0.00095))


def test_a_converted_network_is_judged_as_the_published_file(lifters, tmp_path):
    for name in ("data_3d_h36m", "data_2d_h36m_gt"):
        shutil.copy(VIDEO / f"tiny_{name}.npz", tmp_path / f"{name}.npz")
    told = ["TEMPORAL.CHANNELS", "8", "TEMPORAL.WIDTHS", "[3,3]", "TEMPORAL.TRAJECTORY", "true", "WORKERS", "0"]
    told += ["DATASET.ROOT", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "out"), "DEBUG.FIGURES", "0"]
    published = VIDEO / "checkpoint_semi_legacy.bin"
    judged = []
    for weights in (published, lifters["semi"]):
        cfg = config.load(ROOT / "experiments/video/h36m/27-gt.yaml", [*told, "MODEL.RESUME", str(weights)])
        judged.append(commands.validate(cfg)["metrics"])
    assert judged[0] == judged[1] and judged[0]["mpjpe_mm"] > 0
    causal = cfg.with_values({"TEMPORAL.CAUSAL": True})
    with pytest.raises(WeightsError, match="was trained with TEMPORAL.CAUSAL false, but true is asked for"):
        commands.validate(causal)


@pytest.mark.parametrize("name", ["supervised", "semi"])
def test_lifting_networks_there_and_back_are_equal_to_the_bit(name, lifters, tmp_path, capsys):
    reference, again, third = (tmp_path / file for file in ("reference.bin", "again.pth.tar", "third.bin"))
    assert script.main(["convert", str(lifters[name]), str(reference), "--to", "reference"]) == 0
    told = capsys.readouterr().out
    assert "20 tensors in model_pos" in told and ("model_traj" in told) is (name == "semi")
    published, written = read(VIDEO / f"checkpoint_{name}_zip.bin"), torch.load(reference, weights_only=True)
    assert equal(written["model_pos"], published.state_dict) and list(written["model_pos"]) == list(published.state_dict)
    assert (written["epoch"], written["lr"], written["optimizer"]) == (1, published.meta["lr"], None)
    assert ("model_traj" in written) is (name == "semi")  # None would end VideoPose3D's --evaluate
    if name == "semi":
        assert equal(written["model_traj"], published.meta["model_traj"])
    assert script.main(["convert", str(reference), str(again), "TEMPORAL.CAUSAL=false"]) == 0
    first, second = (torch.load(path, weights_only=True) for path in (lifters[name], again))
    assert equal(first["model"], second["model"]) and first["config"] == second["config"]
    assert script.main(["convert", str(VIDEO / f"checkpoint_{name}_zip.bin"), str(third), "--to", "reference"]) == 0
    assert equal(torch.load(third, weights_only=True)["model_pos"], written["model_pos"])  # without what plain torch.load refuses


def test_weights_of_2018_get_their_counters_back(tmp_path):
    published = read(VIDEO / "checkpoint_supervised_zip.bin")
    old = {f"module.{key}": value for key, value in published.state_dict.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.bin")
    assert script.main(["convert", str(tmp_path / "old.bin"), str(tmp_path / "new.bin"), "--to", "reference"]) == 0
    assert list(torch.load(tmp_path / "new.bin", weights_only=True)["model_pos"]) == list(published.state_dict)
    assert script.main(["convert", str(tmp_path / "old.bin"), str(tmp_path / "new.tar"), "TEMPORAL.CAUSAL", "true"]) == 0
    assert restore(tmp_path / "new.tar").model.pose.causal


def test_epochs_and_learning_rate_of_a_training_of_ours(lifters):
    ours = read(lifters["semi"])
    run = {"step": 600, "steps_per_epoch": 200, "config": {"MODEL": {}, "TRAIN": {"LR": 0.002}}}
    assert forms.trained(Checkpoint("parallax", ours.state_dict, run)) == (3, 0.002)
    assert forms.trained(ours) == (1, pytest.approx(0.00095))
    odd = {"epoch": "x", "lr": [1], "step": "y", "converted": 3, "config": {"TRAIN": 4}}
    assert forms.trained(Checkpoint("lifting", ours.state_dict, odd)) == (0, config.defaults().TRAIN.LR)


def test_what_a_network_of_videopose3d_must_be_told(lifters, tmp_path, capsys):
    published, out, video = VIDEO / "checkpoint_semi_zip.bin", tmp_path / "new" / "out.pth.tar", ROOT / "experiments" / "video"
    silent = tmp_path / "silent.yaml"
    silent.write_text("TASK: temporal\nTEMPORAL: {WIDTHS: [3, 3], CHANNELS: 8, TRAJECTORY: true}\n")
    for options in ([], ["--cfg", silent], ["TEMPORAL.LAYOUT", "coco17"]):
        told = refused(["convert", published, out, *options], out, capsys)
        assert f"{published}: whether the network is causal cannot be read" in told and "TEMPORAL.CAUSAL true or false" in told
    told = refused(["convert", published, out, "--cfg", video / "h36m/27-gt.yaml"], out, capsys)
    assert "set TEMPORAL.WIDTHS [3,3] (it is [3,3,3]), TEMPORAL.CHANNELS 8 (it is 1024), TEMPORAL.TRAJECTORY true (it is false)" in told
    told = refused(["convert", lifters["semi"], out, "TEMPORAL.CAUSAL", "true"], out, capsys)
    assert "was trained with TEMPORAL.CAUSAL false" in told
    assert "ResNet of four stages" in refused(["convert", published, out, "--to", "torchvision"], out, capsys)
    assert "networks that see pictures" in refused(["convert", published, out, "--color", "bgr", "TEMPORAL.CAUSAL=false"], out, capsys)
    assert "--norm belongs to a refiner" in refused(["convert", published, out, "--norm", silent], out, capsys)
    for missing in ("layers_conv.0.weight", "layers_conv.1.weight", "layers_bn.1.bias"):
        broken = {key: value for key, value in read(published).state_dict.items() if key != missing}
        torch.save(broken, tmp_path / "broken.bin")
        for options in (["--cfg", silent, "TEMPORAL.CAUSAL", "false", "TEMPORAL.TRAJECTORY", "false"], ["--to", "reference"]):
            assert missing in refused(["convert", tmp_path / "broken.bin", out, *options], out, capsys)
        assert (f"note      the layers: {missing} is missing" in inspect(broken, tmp_path / "b.bin", capsys)) is ("conv" in missing)
    assert not out.parent.exists()

    out = tmp_path / "coco.pth.tar"
    assert script.main(["convert", str(published), str(out), "TEMPORAL.CAUSAL", "false"]) == 0
    told = capsys.readouterr().out
    assert "h36m17 is assumed" in told and "causal" not in told  # what was said was not assumed
    before = out.read_bytes()
    for form in ("ours", "reference"):
        words = ["TEMPORAL.CAUSAL=false"] if form == "ours" else []
        assert "never overwritten" in refused(["convert", published, out, "--to", form, *words], out, capsys)
    assert out.read_bytes() == before
    out = tmp_path / "told.pth.tar"
    assert script.main(["convert", str(published), str(out), "--cfg", str(silent), "TEMPORAL.CAUSAL=false", "TEMPORAL.LAYOUT=coco17"]) == 0
    assert "note" not in capsys.readouterr().out
    assert restore(out).layout == "coco17" and Lifter.from_checkpoint(out, "cpu").layout.name == "coco17"


# --- what is refused


WRONG = {
    "joints": ("h36m/valid-ss.yaml", ["MODEL.EXTRA.NUM_LAYERS", "18", "MODEL.EXTRA.NUM_DECONV_FILTERS", "[8,8,8]", "MODEL.DEPTH_RES", "8"],
               "set DATASET.SKELETON h36m17 (it is mpii16), MODEL.NUM_JOINTS 17 (it is 16)"),
    "bins": ("h36m/valid.yaml", ["MODEL.EXTRA.NUM_LAYERS", "18", "MODEL.EXTRA.NUM_DECONV_FILTERS", "[8,8,8]"],
             "set MODEL.DEPTH_RES 8 (it is 64)"),
    "layers": ("h36m/valid.yaml", [], "set MODEL.EXTRA.NUM_LAYERS 18"),
    "head": ("mpii/train-heatmap.yaml", ["MODEL.EXTRA.NUM_LAYERS", "18"], "MODEL.HEAD volume (it is heatmap)"),
    "filters": ("h36m/valid.yaml", ["MODEL.EXTRA.NUM_LAYERS", "18", "MODEL.DEPTH_RES", "8"],
                "NUM_DECONV_FILTERS [8,8,8] (it is [256,256,256])"),
    "key": ("h36m/valid.yaml", ["MODEL.EXTRA.NUM_LAYER", "18"], "NUM_LAYERS"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_wrong_configuration_names_the_right_value(case, published, tmp_path, capsys):
    yaml, overrides, message = WRONG[case]
    out = tmp_path / "new" / "out.pth.tar"
    arguments = ["convert", published, out, "--cfg", ROOT / "experiments" / yaml, *overrides]
    assert message in refused(arguments, out, capsys)
    assert not out.parent.exists()


def test_nothing_is_overwritten(published, tmp_path, capsys):
    out = tmp_path / "out.pth.tar"
    out.write_text("precious")
    for form in ("ours", "reference", "torchvision"):
        assert "never overwritten" in refused(["convert", published, out, "--to", form], out, capsys)
    assert "is the file itself" in refused(["convert", published, published], out, capsys)
    assert out.read_text() == "precious"


def test_forms_that_a_network_does_not_have(ours, tmp_path, capsys):
    small, out = tmp_path / "three.pth", tmp_path / "out.pth"
    torch.save(shapes(**SMALL | {"stages": 3}), small)
    assert "3 stages, but the release knows 4" in refused(["convert", small, out, "--to", "reference"], out, capsys)
    assert "ResNet of four stages" in refused(["convert", small, out, "--to", "torchvision"], out, capsys)
    torch.save(resnet(18), small)
    assert "MODEL.EXTRA.NUM_LAYERS" in refused(["convert", small, out], out, capsys)
    assert "expected a pose ResNet" in refused(["convert", small, out, "--to", "reference"], out, capsys)
    assert "--norm belongs to a refiner" in refused(["convert", ours, out, "--norm", small], out, capsys)
    with pytest.raises(SystemExit, match="2"):
        script.main(["convert", str(ours), str(out), "--to", "reference", "TEST.FLIP_TEST", "true"])
    assert "belong to --to ours" in capsys.readouterr().err and not out.exists()


class Evil:
    """Unpickled carelessly, it creates the file it was given."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


BAD = {
    "truncated": lambda content, trap: content[: len(content) // 2],
    "flipped": lambda content, trap: content[:200] + bytes(255 - b for b in content[200:400]) + content[400:],
    "empty": lambda content, trap: b"",
    "web page": lambda content, trap: b"<!DOCTYPE html><html>Sign in</html>",
    "hostile": lambda content, trap: pickle.dumps(Evil(trap)),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_damaged_and_hostile_files_are_refused_in_one_line(case, tmp_path, capsys):
    path, out, trap = tmp_path / "x.pth", tmp_path / "out.pth", tmp_path / "executed"
    torch.save(shapes(**SMALL), path)
    path.write_bytes(BAD[case](path.read_bytes(), trap))
    for command in (["inspect", path], *(["convert", path, out, "--to", form] for form in forms.FORMS)):
        assert str(path) in refused(command, out, capsys)
    assert not trap.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_in_a_file_is_executed(source, legacy, tmp_path, capsys):
    path, out, trap = tmp_path / "x.pth", tmp_path / "out.pth", tmp_path / "executed"
    state = source.state_dict()
    torch.save({**state, "bn1.weight": Evil(trap)}, path, _use_new_zipfile_serialization=not legacy)
    assert str(path) in refused(["convert", path, out], out, capsys)
    torch.save({"hook": Evil(trap), "config": Evil(trap), "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    assert script.main(["convert", str(path), str(out)]) == 0  # beside the weights it is left out
    assert equal(read(out).state_dict, state) and not trap.exists()
