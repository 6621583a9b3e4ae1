"""Weights of 2D + 3D fusion networks: the forms that the release wrote, pickled objects, what they need, the pictures they want."""

import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib import config
from lib.dataset.image import HG3D, HG3D_HOURGLASS, ImageSpec
from lib.errors import WeightsError
from lib.models import MODELS
from lib.models.fusion import FusionNet
from lib.models.hourglass import Hourglass
from lib.models.pose_resnet import PoseResNet
from lib.registry import resolve
from lib.tasks.base import Task
from lib.tasks.restore import adopt
from lib.weights.adapters import Checkpoint, kind_of, strip_prefix
from lib.weights.catalogue import CATALOGUE
from lib.weights.load import initialise, load_into, read
from lib.weights.needs import image_spec_of, needs_of
from scripts import convert as script

SMALL = {"deconv_filters": (8, 12), "deconv_kernels": (4, 3), "stages": 2}


def fusion(joints: int = 16, **options) -> FusionNet:
    """With numbers of its own in every tensor: a new network's biases and means are equal to any other's."""
    return drawn(FusionNet(joints, 18, **SMALL | options))


def drawn(model: nn.Module) -> nn.Module:
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not key.endswith("running_var"):
            nn.init.normal_(value, std=0.05)
    return model.eval()


def meta(make) -> dict:
    with torch.device("meta"):
        return make().state_dict()


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


FORMS = {
    "model_last": lambda s: {"epoch": 60, "state_dict": s, "optimizer": {"state": {0: {"step": 5, "exp_avg": s["hm.bias"]}}}},
    "model_best": lambda s: {"epoch": 55, "state_dict": s},
    "bare": lambda s: s,
    "wrapped and prefixed": lambda s: {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in s.items()}},
    "bare and prefixed": lambda s: {f"module.{k}": v for k, v in s.items()},
    "without counters": lambda s: {"epoch": 1, "state_dict": {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")}},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_release_is_read_and_loaded(form, legacy, tmp_path):
    source, path = fusion(), tmp_path / "x.pth"
    torch.save(FORMS[form](source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read(path)
    assert checkpoint.kind == "fusion" and image_spec_of(checkpoint) == HG3D
    target = fusion()
    report = load_into(target, checkpoint, strict=True)
    assert not report.missing and not report.unexpected and equal(target.state_dict(), source.state_dict())
    assert checkpoint.meta.get("epoch") == {"model_last": 60, "model_best": 55}.get(form, 1 if "wrapped" in form or "out" in form else None)


def test_stages_of_the_training_start_from_one_another(tmp_path, caplog):
    """The second stage adds the depth head to a network of heatmaps; what is missing is said."""
    first, second, path = fusion(depth=False), fusion(), tmp_path / "mpii.pth"
    torch.save({"epoch": 140, "state_dict": first.state_dict(), "optimizer": {}}, path)
    with pytest.raises(WeightsError, match=r"missing \(depth.weight, .*MODEL.HEAD heatmap \(it is heatmap_depth\)"):
        load_into(second, read(path), strict=True)
    before = {key: value.clone() for key, value in second.depth.state_dict().items()}
    section = SimpleNamespace(PRETRAINED=str(path), INFLATE=0.0, RESUME="", INIT_WEIGHTS=False)
    with caplog.at_level("INFO", "parallax"):
        initialise(second, SimpleNamespace(MODEL=section), "mpii16")
    assert "2 missing in the file (depth.weight, depth.bias)" in caplog.text
    assert torch.equal(second.hm.weight, first.hm.weight) and torch.equal(second.layer1[0].conv1.weight, first.layer1[0].conv1.weight)
    assert equal(second.depth.state_dict(), before)


def test_heatmaps_of_a_pose_network_start_a_fusion_network_and_the_reverse():
    pose, net = drawn(PoseResNet(18, 16, "heatmap", **SMALL)), fusion()
    report = load_into(net, pose.state_dict())
    assert report.missing == ("depth.weight", "depth.bias") and not report.unexpected
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(net.eval()(image).hm, pose(image))
    again = PoseResNet(18, 16, "heatmap", **SMALL).eval()
    assert load_into(again, net.state_dict()).unexpected == ("depth.weight", "depth.bias") and torch.equal(again(image), pose(image))
    volume = PoseResNet(18, 16, "volume", 4, **SMALL)
    assert load_into(volume, net.state_dict(), inflate=0.5).inflated == ("final_layer.weight", "final_layer.bias")
    assert torch.equal(volume.final_layer.weight[4:8], net.hm.weight[1:2].expand(4, -1, -1, -1) * 0.5)
    with pytest.raises(WeightsError, match="not part of the model"):  # judged weights must be the network's own
        load_into(fusion(depth=False), pose.state_dict(), strict=True)


def test_a_head_of_another_skeleton_is_left_out(tmp_path, caplog):
    path, net = tmp_path / "ours.pth", fusion(17)
    torch.save({"format": 1, "model": fusion(17).state_dict(), "skeleton": "coco17"}, path)
    before = net.hm.weight.clone()
    section = SimpleNamespace(PRETRAINED=str(path), INFLATE=0.0, RESUME="", INIT_WEIGHTS=False)
    with caplog.at_level("INFO", "parallax"):
        initialise(net, SimpleNamespace(MODEL=section), "h36m17")
    assert "its head is left out" in caplog.text and torch.equal(net.hm.weight, before)


def test_an_hourglass_takes_nothing_of_an_imagenet_resnet(caplog):
    net = Hourglass(3, 1, 1, 4)  # its first batch norm has the name and the shape of a ResNet's
    before = {key: value.clone() for key, value in net.state_dict().items()}
    section = SimpleNamespace(PRETRAINED="", RESUME="", INIT_WEIGHTS=True, INIT_FILE="none.pth")
    with caplog.at_level("INFO", "parallax"):
        initialise(net, SimpleNamespace(MODEL=section), "mpii16")
    assert "from scratch" in caplog.text and equal(net.state_dict(), before)


# --- pickled objects


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "in a data-parallel wrapper", "in a dict"])
def test_pickled_networks_are_refused_with_a_word_on_what_to_do(place, legacy, tmp_path, monkeypatch):
    executed = []

    class HourglassNet3D(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1_ = nn.Conv2d(3, 4, 7)

        def __setstate__(self, state):
            executed.append(state)

    module = ModuleType("models.hg_3d")
    HourglassNet3D.__module__, HourglassNet3D.__qualname__ = "models.hg_3d", "HourglassNet3D"
    module.HourglassNet3D = HourglassNet3D
    monkeypatch.setitem(sys.modules, "models.hg_3d", module)
    model, path = HourglassNet3D(), tmp_path / "hgreg-3d.pth"
    value = {"alone": model, "in a data-parallel wrapper": nn.DataParallel(model), "in a dict": {"epoch": 3, "model": model}}[place]
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    name = "torch.nn.parallel.data_parallel.DataParallel" if "wrapper" in place else "models.hg_3d.HourglassNet3D"
    with pytest.raises(WeightsError, match=rf"hgreg-3d\.pth: holds a whole pickled object \({re.escape(name)}\)") as error:
        read(path)
    assert "branch hg3d" in str(error.value) and "torch.save(model.state_dict(), path)" in str(error.value) and not executed


def test_an_object_beside_the_weights_is_ignored(tmp_path):
    source, path = fusion(), tmp_path / "x.pth"
    torch.save({"state_dict": source.state_dict(), "model": nn.ReLU()}, path)
    assert equal(read(path).state_dict, source.state_dict())


# --- what a file needs


@pytest.mark.parametrize(
    ("make", "wanted", "noted"),
    [
        (lambda: FusionNet(), {"MODEL.HEAD": "heatmap_depth", "MODEL.EXTRA.NUM_LAYERS": 50, "FUSION.RULE": "published"}, "BGR, over 256"),
        (lambda: FusionNet(17, 18, depth=False), {"MODEL.HEAD": "heatmap", "DATASET.SKELETON": "coco17"}, r"COCO takes \[192, 256\]"),
        (
            lambda: FusionNet(5, 34, **SMALL | {"stages": 3}, deconv_bias=True),
            {"MODEL.NUM_JOINTS": 5, "MODEL.EXTRA.NUM_LAYERS": 34, "MODEL.EXTRA.NUM_DECONV_FILTERS": [8, 12]},
            "skeleton of 5 joints is not known",
        ),
    ],
    ids=["published", "coco", "small"],
)
def test_configuration_of_a_fusion_network(make, wanted, noted):
    state = meta(make)
    needs = needs_of(state)
    assert needs.settings["TASK"] == "fusion" and wanted.items() <= needs.settings.items() and re.search(noted, "; ".join(needs.notes))
    cfg = config.defaults().with_values({key: value for key, value in needs.settings.items() if key != "TASK"})
    extra = cfg.MODEL.EXTRA
    built = meta(
        lambda: resolve(MODELS, cfg.MODEL.NAME, "MODEL.NAME")(
            cfg.MODEL.NUM_JOINTS, extra.NUM_LAYERS, cfg.MODEL.HEAD == "heatmap_depth", extra.NUM_DECONV_FILTERS, extra.NUM_DECONV_KERNELS,
            extra.DECONV_WITH_BIAS, extra.NUM_STAGES,
        )
    )  # fmt: skip
    assert {k: v.shape for k, v in built.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize(
    ("joints", "stacks", "modules", "features", "depth", "size"),
    [(16, 2, 2, 256, 2, (256, 256)), (16, 2, 1, 64, None, (256, 256)), (5, 3, 2, 8, 1, (128, 128))],
)
def test_configuration_of_an_hourglass(joints, stacks, modules, features, depth, size):
    state = meta(lambda: Hourglass(joints, stacks, modules, features, depth, size))
    assert kind_of(state) == "hourglass" and image_spec_of(Checkpoint("hourglass", state)) == HG3D_HOURGLASS
    settings = needs_of(state).settings
    expected = {
        "TASK": "fusion", "MODEL.NAME": "hourglass", "MODEL.NUM_JOINTS": joints, "MODEL.HEAD": "heatmap_depth" if depth else "heatmap",
        "MODEL.IMAGE_SIZE": list(size), "MODEL.EXTRA.NUM_STACKS": stacks, "MODEL.EXTRA.NUM_MODULES": modules,
        "MODEL.EXTRA.NUM_FEATURES": features,
    }  # fmt: skip
    expected |= {"MODEL.EXTRA.DEPTH_MODULES": depth} if depth else {}
    expected |= {"FUSION.RULE": "published"} if depth and joints == 16 else {}
    assert {key: value for key, value in settings.items() if key != "DATASET.SKELETON"} == expected


@pytest.mark.parametrize("shape", [(2,), (16, 0, 1, 1)])
def test_output_layers_that_are_none(shape):
    for keys in (("deconv_layers.w", "hm.weight"), ("conv1_.weight", "hourglass.w", "tmpOut.0.weight", "reg.weight")):
        needs = needs_of({key: torch.zeros(shape) for key in keys})
        assert not needs.settings and "not that of a convolution" in needs.notes[0]


def test_inspect_names_the_network_and_its_pictures(tmp_path, capsys):
    path = tmp_path / "fusion_3d_var.pth"
    torch.save({"epoch": 10, "state_dict": {k: torch.zeros(()).expand(v.shape) for k, v in meta(FusionNet).items()}, "optimizer": {}}, path)
    assert script.main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    for words in ("a 2D+3D fusion (hg-3d), 340 tensors", "epoch     10", "TASK: fusion", "HEAD: heatmap_depth", "BGR, over 256"):
        assert words in text
    assert f"convert.py convert {path} OUT" in text and f"MODEL.PRETRAINED {path}" in text


def test_there_and_back_again_as_the_release_reads_it(tmp_path):
    source, bare = FusionNet(16, 18), tmp_path / "bare.pth"
    torch.save({k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}, bare)
    assert script.main(["convert", str(bare), str(tmp_path / "back.pth"), "--to", "reference"]) == 0
    value = torch.load(tmp_path / "back.pth", weights_only=True)
    assert set(value) == {"epoch", "state_dict"} and value["state_dict"] == strip_prefix(value["state_dict"])
    assert equal(value["state_dict"], source.state_dict()) and list(value["state_dict"]) == list(source.state_dict())


# --- pictures


def test_pictures_are_those_of_the_release():
    rgb = torch.randint(0, 256, (2, 3, 8, 6), dtype=torch.uint8)
    bgr = rgb.numpy()[:, ::-1].transpose(0, 2, 3, 1).astype(np.float32)  # as OpenCV reads it
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(ImageSpec((6, 8), **HG3D).normalize(rgb), ((bgr / 256 - mean) / std).transpose(0, 3, 1, 2), atol=2e-6)
    np.testing.assert_allclose(ImageSpec((6, 8), **HG3D_HOURGLASS).normalize(rgb), (bgr / 256).transpose(0, 3, 1, 2), atol=1e-6)


class Toy(Task):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.image_spec = model, ImageSpec((64, 48))


@pytest.mark.parametrize("kind", ["fusion", "hourglass"])
def test_pictures_that_weights_want_come_with_them(kind, tmp_path):
    make = fusion if kind == "fusion" else lambda: drawn(Hourglass(3, 1, 1, 4))
    path, stored, task = tmp_path / "x.pth", tmp_path / "ours.pth", Toy(make())
    torch.save({"epoch": 10, "state_dict": make().state_dict()}, path)
    adopt(task, read(path))
    assert task.image_spec == ImageSpec((64, 48), **(HG3D if kind == "fusion" else HG3D_HOURGLASS))
    own = ImageSpec((32, 32))  # a training of ours on other pictures
    torch.save({"format": 1, "model": make().state_dict(), "image_spec": own.to_dict()}, stored)
    adopt(task, read(stored))
    assert task.image_spec == ImageSpec((64, 48))


def test_published_files_can_be_found():
    entries = [CATALOGUE[name] for name in ("fusion_3d", "fusion_3d_var")]
    assert all(e.page.endswith("xingyizhou/pytorch-pose-hg-3d") and e.licence.startswith("GPL-3") and not e.url for e in entries)
    assert [e.score for e in entries] == ["", "MPJPE 64.55 mm"] and all(e.path == f"hg3d/{e.name}.pth" for e in entries)
