"""Checkpoints: every published form, foreign objects inside, damaged and hostile files, partial and strict loading."""

import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib import config
from lib.errors import WeightsError
from lib.models.pose_resnet import PoseResNet
from lib.models.temporal import TemporalModel
from lib.models.voxelpose import VoxelPose
from lib.skeleton import get
from lib.tasks import build
from lib.weights import imagenet
from lib.weights.adapters import Checkpoint, kind_of, resnet_layers
from lib.weights.imagenet import imagenet_state
from lib.weights.load import initialise, load_backbone, load_into, load_parts, read, write_reference
from lib.weights.needs import needs_of
from lib.weights.temporal import CAUSAL_NOTE
from lib.weights.unpickle import load_file
from lib.weights.voxelpose import backbone_state, parts_of, voxelpose_arguments
from tests.conftest import ROOT


class SmallPose(nn.Module):
    """The key names of PoseResNet at a thousandth of its size; the real names and shapes are tested in test_models."""

    def __init__(self, joints: int, head: str, bins: int):
        super().__init__()
        self.joints = joints
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        for stage in range(1, 5):
            block = nn.Module()
            block.conv1, block.bn1 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
            self.add_module(f"layer{stage}", nn.ModuleList([block]))
        self.deconv_layers = nn.Sequential(nn.ConvTranspose2d(8, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.final_layer = nn.Conv2d(8, joints * bins if head == "volume" else joints, 1)
        if head == "heatmap_depth":
            self.depth_fc = nn.Linear(8, joints * bins)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.final_layer(self.deconv_layers(self.bn1(self.conv1(image))))


def network(joints: int = 4, head: str = "volume", bins: int = 6) -> SmallPose:
    model = SmallPose(joints, head, bins)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def prefixed(state: dict) -> OrderedDict:
    return OrderedDict((f"module.{k}", v) for k, v in state.items())


# --- forms


FORMS = {
    "ours": lambda s: {"format": 1, "kind": "parallax", "model": s, "step": 7, "config": {"TASK": "integral"}},
    "epipolarpose training": lambda s: {
        "epoch": 3, "model": ("pose3d_resnet_50", "256x256"), "state_dict": prefixed(s), "perf": 51.8, "optimizer": {}
    },
    "bare": lambda s: s,
    "bare with module": prefixed,
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "wrapped twice": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "without counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_a_pose_network_is_read_and_loaded(form, legacy, tmp_path):
    source, path = network(), tmp_path / "weights.pth.tar"
    torch.save(FORMS[form](source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read(path)
    assert checkpoint.kind == ("parallax" if form == "ours" else "pose_resnet")
    target = network()
    report = load_into(target, checkpoint, strict=True)
    assert not report.missing and not report.unexpected and not report.skipped_shape
    assert equal(dict(target.named_parameters()), dict(source.named_parameters()))
    if form == "ours":
        assert checkpoint.meta["config"] == {"TASK": "integral"} and checkpoint.meta["step"] == 7
    if form == "epipolarpose training":
        assert checkpoint.meta["epoch"] == 3 and checkpoint.meta["model"][0] == "pose3d_resnet_50"


KEYS = {
    "resnet": ["conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight", "fc.weight"],
    "refiner": ["linear_stages.0.w1.weight", "w1.weight", "w2.weight", "batch_norm1.weight"],
    "videopose3d": ["expand_conv.weight", "layers_conv.0.weight", "shrink.weight"],
    "lifting": ["pose.expand_conv.weight", "pose.layers_conv.0.weight", "pose.shrink.weight", "trajectory.expand_conv.weight"],
    "voxelpose": ["backbone.conv1.weight", "root_net.v2v_net.a", "pose_net.v2v_net.a"],
    "selfpose3d": ["backbone.conv1.weight", "attn.backbone.conv1.weight", "pose_net.a", "root_net.a"],
    "voxelpose_backbone": [f"backbone.{part}.weight" for part in ("conv1", "layer1.0.conv1", "deconv_layers.0", "final_layer")],
    "fusion": ["conv1.weight", "layer4.0.conv1.weight", "deconv_layers.0.weight", "hm.weight", "depth.weight"],
    "unknown": ["encoder.weight", "decoder.weight"],
}


@pytest.mark.parametrize("kind", sorted(KEYS))
def test_kinds_are_recognised_by_keys_and_refused_where_they_do_not_fit(kind, tmp_path):
    state = {key: torch.zeros(2) for key in KEYS[kind]}
    assert kind_of(state) == kind
    path = tmp_path / "mpii_coco_imagenet.pth"  # a name that says nothing
    torch.save({"epoch": 1, "model_pos": state} if kind == "videopose3d" else state, path)
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match="mpii_coco_imagenet.pth") as error:
        load_into(model, read(path))
    assert equal(before, model.state_dict())
    if kind == "refiner":
        assert "looks like a refiner checkpoint (keys 'w1', 'linear_stages.0')" in str(error.value)
        assert "refiner/main.py" in str(error.value)
    if kind in ("videopose3d", "lifting"):
        assert "unknown" not in str(error.value) and "use it with TASK temporal" in str(error.value)


def test_depth_of_a_trunk_is_read_from_its_keys():
    with torch.device("meta"):
        for layers in (18, 34, 50, 101, 152):
            assert resnet_layers(PoseResNet(layers, 2, "heatmap").state_dict()) == layers
    assert resnet_layers({"conv1.weight": torch.zeros(1)}) is None


# --- foreign objects, damaged and hostile files


class Evil:
    """Unpickled carelessly, it creates the file it was given."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Camera:
    """Stands for a class of somebody else's module."""

    def __init__(self):
        self.R, self.name = np.eye(3), "54138969"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_foreign_objects_become_inert_and_the_weights_are_read(legacy, tmp_path):
    source, path = network(), tmp_path / "model.pth"
    shared = torch.arange(12.0)
    value = {
        "epoch": 5,
        "random_state": np.random.RandomState(1),
        "camera": Camera(),
        "state_dict": source.state_dict(),
        "views": [shared[2:6], shared.view(3, 4).T],
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found, foreign = load_file(path)
    assert foreign
    assert torch.equal(found["views"][0], shared[2:6]) and torch.equal(found["views"][1], shared.view(3, 4).T)
    assert torch.equal(found["half"], torch.ones(3, dtype=torch.bfloat16))
    checkpoint = read(path)
    assert checkpoint.meta["epoch"] == 5 and "random_state" not in checkpoint.meta and "camera" not in checkpoint.meta
    target = network()
    load_into(target, checkpoint, strict=True)
    assert equal(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "inside", "instead"])
def test_nothing_in_a_file_is_executed(place, legacy, tmp_path):
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    state = dict(network().state_dict())
    value = {
        "beside": {"state_dict": state, "hook": Evil(trap)},
        "inside": {**state, "conv1.weight": Evil(trap)},
        "instead": Evil(trap),
    }[place]
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    if place == "beside":
        load_into(network(), read(path), strict=True)
    else:
        with pytest.raises(WeightsError, match="evil.pth"):
            read(path)
    assert not trap.exists()


def test_pickle_tricks_stay_inert(tmp_path):
    """Names reached by dotted paths, class instances built with state, and attributes set on what is allowed."""
    trap = tmp_path / "executed"
    command = f"touch {trap}".encode()
    programs = [
        b"cos\nsystem\n(S'" + command + b"'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01a\x85R.",
        b"cbuiltins\neval\n(S'__import__(\"os\").system(\"" + command + b"\")'\ntR.",
        b"\x80\x04\x8c\x0btorch._utils\x8c\x1a_rebuild_tensor.__globals__\x93.",
        b"ccollections\nOrderedDict\n(S'x'\ncos\nsystem\ndb.",
        b"(S'" + command + b"'\nios\nsystem\n.",
    ]
    for number, program in enumerate(programs):
        path = tmp_path / f"{number}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/version", "3\n")
        with pytest.raises(WeightsError, match=f"{number}.pth"):
            read(path)
    assert not trap.exists()


def tensor_archive(path, size, stride, offset=0, data=b"\0" * 16) -> None:
    """A file whose tensor claims more than its storage holds."""

    class Storage(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, bytearray) else None

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (bytearray(), offset, size, stride, False, Evil("nowhere"))

    stream = io.BytesIO()
    Storage(stream, 2).dump({"w": Claim()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", stream.getvalue())
        archive.writestr("a/data/0", data)


def test_tensors_cannot_reach_beyond_their_storage(tmp_path):
    path = tmp_path / "claim.pth"
    tensor_archive(path, (2, 2), (2, 1))
    assert load_file(path)[0]["w"].shape == (2, 2)
    for claim in ({"size": (5,), "stride": (1,)}, {"size": (2,), "stride": (1,), "offset": 3},
                  {"size": (2, 2), "stride": (2, 1), "data": b"\0" * 4}):  # fmt: skip
        tensor_archive(path, **claim)
        with pytest.raises(WeightsError, match="claim.pth"):
            load_file(path)


def saved(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


BROKEN = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "text": (b"these are not weights\n", "not a torch checkpoint"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "unpack"),
    "truncated": (saved({"a": torch.zeros(5000)})[:9000], "truncated"),
    "cut at the head": (saved({"a": torch.zeros(5000)})[:40], "truncated"),
    "zip without weights": (b"PK\x05\x06" + b"\0" * 18, "data.pkl|damaged"),
    "plain pickle": (pickle.dumps({"a": 1}), "not a torch checkpoint"),
    "a list": (saved([torch.zeros(3)]), "type list.*state_dict"),
    "a tensor": (saved(torch.zeros(3)), "type Tensor"),
    "no tensors": (saved({"epoch": 3, "lr": 0.1}), "'epoch', 'lr'.*no weights"),
    "empty dict": (saved({}), "empty dict"),
    "legacy cut": (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2), "not a torch checkpoint|damaged"),
    "big-endian noise": (struct.pack(">64Q", *range(64)), "not a torch checkpoint"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_damaged_and_foreign_files_give_one_clear_error(case, tmp_path):
    content, message = BROKEN[case]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == content


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(WeightsError, match="no such file.*models/README.md"):
        read(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_refused(legacy, tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": {"a": torch.randn(100)}, "rng": np.random.RandomState(0)}, whole,
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    content, cut = whole.read_bytes(), tmp_path / "cut.pth"
    for length in range(1, len(content) - 1, len(content) // 23):
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsError):
            read(cut)


# --- partial loading


def test_another_number_of_joints_loads_all_but_the_head():
    source, target = network(joints=4), network(joints=5)
    head = target.final_layer.weight.detach().clone()
    report = load_into(target, source.state_dict())
    assert len(report.skipped_shape) == 2 and report.skipped_shape[0].startswith("final_layer.weight: [24, 8, 1, 1]")
    assert torch.equal(target.final_layer.weight, head)
    assert torch.equal(target.deconv_layers[0].weight, source.deconv_layers[0].weight)
    assert "2 skipped by shape (final_layer.weight" in report.summary()
    with pytest.raises(WeightsError, match="exactly: 2 of another shape.*final_layer.weight"):
        load_into(network(joints=5), source.state_dict(), strict=True)


def test_a_heatmap_network_starts_a_volume():
    source, target = network(head="heatmap"), network(bins=6)
    report = load_into(target, source.state_dict(), inflate=0.5)
    assert report.inflated == ("final_layer.weight", "final_layer.bias") and not report.skipped_shape
    source.eval(), target.eval()
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        maps, volume = source(image), target(image).unflatten(1, (4, 6))
    torch.testing.assert_close(volume, 0.5 * maps[:, :, None].expand_as(volume))
    without = load_into(network(bins=6), source.state_dict())
    assert len(without.skipped_shape) == 2 and not without.inflated
    depth = load_into(network(head="heatmap"), network(head="heatmap_depth").state_dict())
    assert depth.unexpected == ("depth_fc.weight", "depth_fc.bias")


def test_strict_loading_lists_what_is_missing_and_what_is_left_over():
    state = dict(network().state_dict())
    del state["layer1.0.bn1.weight"]
    state["stranger"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"1 missing \(layer1.0.bn1.weight\); 1 not part of the model \(stranger\)"):
        load_into(network(), state, strict=True)
    report = load_into(network(), state)
    assert report.missing == ("layer1.0.bn1.weight",) and report.unexpected == ("stranger",)


class Lifting(nn.Module):
    """Networks as tasks of lifting hold them."""

    def __init__(self, trajectory: bool = False, **arguments):
        super().__init__()
        arguments = {"joints_in": 17, "features": 2, "joints_out": 17, "widths": (3, 3), "channels": 8} | arguments
        self.pose = TemporalModel(**arguments)
        self.trajectory = TemporalModel(**arguments | {"joints_out": 1}) if trajectory else None


LIFTING = {  # the network of the file, that of the model, what the message tells to set
    "widths": ({"widths": (3, 3, 3)}, {}, "TEMPORAL.WIDTHS [3,3,3] (it is [3,3])"),
    "channels": ({"channels": 16}, {}, "TEMPORAL.CHANNELS 16 (it is 8)"),
    "dense": ({"dense": True}, {}, "TEMPORAL.DENSE true (it is false)"),
    "scores": ({"features": 3}, {}, "TEMPORAL.FEATURES 3 (it is 2)"),
    "trajectory": ({"trajectory": True}, {}, "TEMPORAL.TRAJECTORY true (it is false)"),
    "no trajectory": ({}, {"trajectory": True}, "TEMPORAL.TRAJECTORY false (it is true)"),
    "poses": ({"joints_out": 15}, {}, "DATASET.SKELETON humaneva15 (it is h36m17), MODEL.NUM_JOINTS 15 (it is 17)"),
    "keypoints": ({"joints_in": 16}, {}, "TEMPORAL.LAYOUT mpii16 (it is h36m17)"),
    "all": ({"widths": (3, 5), "channels": 16, "trajectory": True, "joints_out": 15}, {},
            "DATASET.SKELETON humaneva15 (it is h36m17), MODEL.NUM_JOINTS 15 (it is 17), TEMPORAL.WIDTHS [3,5] (it is [3,3]), "
            "TEMPORAL.CHANNELS 16 (it is 8), TEMPORAL.TRAJECTORY true (it is false)"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(LIFTING))
def test_a_lifting_network_that_does_not_fit_names_the_keys(case):
    file, model, keys = LIFTING[case]
    checkpoint = Checkpoint("lifting", Lifting(**file).state_dict(), source="lifter.pth")
    target = Lifting(**model)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_into(target, checkpoint, strict=True)
    told = str(error.value)
    assert told.startswith("lifter.pth looks like a lifting network checkpoint (keys 'pose.expand_conv'")
    assert re.search(r"; set (.*?\))(?: \(scripts|$)", told)[1] == keys and len(told) < 750
    assert equal(before, target.state_dict())


def test_a_lifting_network_says_what_its_tensors_do():
    def told(meta: dict | None = None, **arguments):
        return needs_of(Lifting(**arguments).state_dict(), meta)

    plain = told()
    assert plain.settings["TEMPORAL.LAYOUT"] == plain.settings["DATASET.SKELETON"] == "h36m17"
    assert plain.settings["TEMPORAL.TRAJECTORY"] is False and "TEMPORAL.CAUSAL" not in plain.settings
    assert "TEMPORAL.LAYOUT coco17" in plain.notes[0] and plain.notes[1] == CAUSAL_NOTE
    humaneva = told(joints_out=15)
    assert (humaneva.settings["DATASET.SKELETON"], humaneva.settings["TEMPORAL.LAYOUT"]) == ("humaneva15", "coco17")
    assert told(joints_in=15, joints_out=15).notes == (CAUSAL_NOTE,)  # nothing else is assumed
    odd = told(joints_in=23, joints_out=23)
    assert not {"DATASET.SKELETON", "TEMPORAL.LAYOUT"} & set(odd.settings) and "23 joints is not known" in odd.notes[0]
    meta = {"skeleton": "h36m17", "config": {"TEMPORAL": {"CAUSAL": True, "LAYOUT": "mpii16"}}}
    ours = told(meta, joints_in=16, features=3)  # 48 numbers: without the layout, 24 joints of two
    assert ours.settings["TEMPORAL.CAUSAL"] is True and ours.settings["TEMPORAL.FEATURES"] == 3 and ours.notes == ()
    assert ours.settings["TEMPORAL.LAYOUT"] == "mpii16"
    broken = {key: value for key, value in Lifting().state_dict().items() if "layers_conv.0" not in key}
    assert needs_of(broken).settings == {} and "layers_conv.0.weight is missing" in needs_of(broken).notes[0]


def test_another_depth_of_the_trunk_is_an_error():
    with torch.device("meta"):
        state = PoseResNet(34, 4, "heatmap").state_dict()
    model = PoseResNet(18, 4, "heatmap")
    before = model.conv1.weight.clone()
    with pytest.raises(WeightsError, match="ResNet-34.*ResNet-18.*NUM_LAYERS 34"):
        load_into(model, {key: torch.zeros(value.shape) for key, value in state.items()})
    assert torch.equal(model.conv1.weight, before)


def test_reference_form_is_bare_and_prefixed(tmp_path):
    model, path = network(), tmp_path / "out.pth.tar"
    write_reference(model.state_dict(), path)
    plain = torch.load(path, weights_only=True)
    assert list(plain) == [f"module.{k}" for k in model.state_dict()]
    assert equal(read(path).state_dict, dict(model.state_dict()))
    with pytest.raises(WeightsError, match="cannot be written"):
        write_reference(model.state_dict(), tmp_path / "none" / "out.pth.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["out.pth.tar"]


# --- start weights


def torchvision_file(path, layers: int = 18) -> dict:
    state = PoseResNet(layers, 1, "heatmap", deconv_filters=(8,), deconv_kernels=(4,)).state_dict()
    state = {key: value for key, value in state.items() if key.startswith(("conv1", "bn1", "layer"))}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}  # the names are tested in test_models
    torch.save(state, path)
    return state


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache of torchvision's files."""

    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(imagenet.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    imagenet._fetch.cache_clear()
    yield tmp_path / "hub" / "checkpoints"
    imagenet._fetch.cache_clear()


def test_imagenet_weights_without_network_mean_from_scratch(offline):
    state, message = imagenet_state(18)
    assert state is None
    assert "from scratch" in message and "Network is unreachable" in message and "MODEL.INIT_FILE" in message


def test_a_server_that_does_not_answer_costs_seconds(offline, monkeypatch):
    import threading

    forever = threading.Event()
    monkeypatch.setattr(imagenet.urllib.request, "urlopen", lambda *a, **k: forever.wait(30))
    monkeypatch.setattr(imagenet, "TIMEOUT_S", 0.05)
    state, message = imagenet_state(34)
    forever.set()
    assert state is None and "did not answer" in message


def test_imagenet_weights_from_cache_and_file(offline, tmp_path):
    offline.mkdir(parents=True)
    cached = torchvision_file(offline / "resnet18-f37072fd.pth")
    state, message = imagenet_state(18)
    assert torch.equal(state["layer4.1.conv2.weight"], cached["layer4.1.conv2.weight"]) and "fc.weight" not in state
    assert "torchvision" in message
    (offline / "resnet18-f37072fd.pth").write_bytes(b"<html>")
    state, message = imagenet_state(18)
    assert state is None and "web page" in message
    file = tmp_path / "local.pth"
    local = torchvision_file(file)
    state, message = imagenet_state(18, str(file))
    assert torch.equal(state["conv1.weight"], local["conv1.weight"]) and str(file) in message
    with pytest.raises(WeightsError, match="ResNet-18, expected a torchvision ResNet-34"):
        imagenet_state(34, str(file))
    with pytest.raises(WeightsError, match="no such file"):
        imagenet_state(18, str(tmp_path / "absent.pth"))


def section(**values) -> SimpleNamespace:
    start = {"PRETRAINED": "", "RESUME": "", "INIT_WEIGHTS": True, "INIT_FILE": "", "INFLATE": 0.0}
    return SimpleNamespace(MODEL=SimpleNamespace(**{**start, **values}, EXTRA=SimpleNamespace(NUM_LAYERS=18)))


def test_initialise_follows_the_model_section_and_says_so(offline, tmp_path, caplog):
    caplog.set_level("INFO", logger="parallax")
    initialise(network(), section())
    assert "from scratch: no ImageNet weights" in caplog.text
    initialise(network(), section(INIT_WEIGHTS=False))
    assert "INIT_WEIGHTS is false" in caplog.text

    file = tmp_path / "resnet18.pth"
    trunk, model = torchvision_file(file), PoseResNet(18, 4, "heatmap")
    initialise(model, section(INIT_FILE=str(file)))
    assert torch.equal(model.layer3[0].conv1.weight, trunk["layer3.0.conv1.weight"])

    path, source = tmp_path / "best.pth.tar", network(head="heatmap")
    torch.save({"format": 1, "model": source.state_dict(), "skeleton": "mpii16"}, path)
    model = network()
    initialise(model, section(PRETRAINED=str(path), INFLATE=1.0))
    assert torch.equal(model.final_layer.weight[:6], source.final_layer.weight[:1].expand(6, -1, -1, -1))
    assert f"{path}:" in caplog.text and "repeated over the depth bins" in caplog.text
    model = network(head="heatmap")
    fresh = model.final_layer.weight.detach().clone()
    initialise(model, section(PRETRAINED=str(path)), skeleton="h36m17")
    assert torch.equal(model.final_layer.weight, fresh) and "its head is left out" in caplog.text
    assert torch.equal(model.conv1.weight, source.conv1.weight)


# --- networks of several parts: VoxelPose and SelfPose3d


class SmallAttention(nn.Module):
    def __init__(self, joints: int):
        super().__init__()
        self.backbone = network(joints, "heatmap")


def voxel_network(joints: int = 4, backbone: bool = True, attention: bool = False, root: int | None = None) -> VoxelPose:
    model = VoxelPose(
        joints,
        backbone=network(joints, "heatmap") if backbone else None,
        attention=SmallAttention(joints) if attention else None,
        root=root,
        person_shape=(8, 8, 8),
    )
    for value in model.state_dict().values():  # no two parts are equal
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return model


def some_parts(state: dict, *parts: str) -> dict:
    return {key: value for key, value in state.items() if key.split(".")[0] in parts}


PUBLISHED_PARTS = {  # file of the release -> how it is written, whole networks that hold it, parts in it
    "backbone_epoch20": (lambda s: s, {"root": 0}, ("backbone",)),
    "cam5_rootnet_epoch2": (lambda s: s, {"root": 0}, ("backbone", "root_net")),
    "cam5_posenet": (lambda s: s, {"root": 0, "attention": True}, ("backbone", "attn", "pose_net", "root_net")),
    "checkpoint": (
        lambda s: {"epoch": 3, "state_dict": s, "precision": 0.5, "optimizer": {"state": {}, "param_groups": []}},
        {"root": 0, "attention": True}, ("backbone", "attn", "pose_net", "root_net"),
    ),
    "voxelpose_panoptic": (lambda s: s, {}, ("backbone", "root_net", "pose_net")),
    "voxelpose_shelf": (prefixed, {"backbone": False}, ("root_net", "pose_net")),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARTS))
def test_published_parts_are_told_apart_and_loaded(name, tmp_path):
    written, options, parts = PUBLISHED_PARTS[name]
    source, target = voxel_network(**options), voxel_network(**options)
    torch.save(written(some_parts(source.state_dict(), *parts)), tmp_path / f"{name}.pth.tar")
    checkpoint = read(tmp_path / f"{name}.pth.tar")
    assert set(parts_of(checkpoint.state_dict)) == set(parts)
    whole = set(parts) == {part for part, _ in source.named_children()}
    before = {key: value.clone() for key, value in target.state_dict().items()}
    reports = load_parts(target, checkpoint, () if whole else parts)
    assert set(reports) == set(parts)
    for key, value in target.state_dict().items():
        assert torch.equal(value, (source.state_dict() if key.split(".")[0] in parts else before)[key]), key
    if not whole:
        with pytest.raises(WeightsError, match="the file has no pose_net"):
            load_parts(target, checkpoint)
    assert checkpoint.kind in ("voxelpose", "selfpose3d", "voxelpose_backbone")
    found = needs_of(checkpoint.state_dict)
    assert found.settings["TASK"] == ("selfpose3d" if "attn" in parts else "voxelpose")
    assert found.settings["MODEL.NUM_JOINTS"] == 4 and found.notes


def test_the_backbone_of_a_whole_file_is_not_that_of_its_attention():
    source, target = voxel_network(attention=True), voxel_network()
    checkpoint = Checkpoint("selfpose3d", source.state_dict(), source="cam5_posenet")
    assert set(load_parts(target, checkpoint, ("backbone",))) == {"backbone"}
    assert equal(target.backbone.state_dict(), source.backbone.state_dict())
    assert not torch.equal(target.backbone.conv1.weight, source.attn.backbone.conv1.weight)
    assert set(load_parts(target, checkpoint)) == {"backbone", "pose_net", "root_net"}  # inference needs no attention
    bare = Checkpoint("pose_resnet", source.backbone.state_dict(), source="pose_resnet50_panoptic")
    assert set(load_parts(target, bare, ("backbone",))) == {"backbone"}


def test_parts_that_do_not_fit_are_all_named_and_nothing_is_loaded():
    target = voxel_network(joints=4)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    source = voxel_network(joints=4, root=0)
    state = source.state_dict()
    del state["pose_net.v2v_net.output_layer.bias"]
    state["backbone.extra.weight"] = torch.zeros(1)
    state["joint_net.conv.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as error:
        load_parts(target, Checkpoint("voxelpose", state, source="other.pth.tar"))
    message = str(error.value)
    for part in (
        "other.pth.tar looks like a VoxelPose checkpoint", "the model has no joint_net", "backbone: 1 not part of the model (extra.weight)",
        "pose_net: 1 missing (v2v_net.output_layer.bias)", "root_net: 1 of another shape (v2v_net.front_layers.0.block.0.weight: "
        "[16, 1, 7, 7, 7] in the file, [16, 4, 7, 7, 7] in the model)", "its root network takes the heatmap of the root joint alone",
    ):  # fmt: skip
        assert part in message
    assert equal(before, target.state_dict())
    with pytest.raises(WeightsError, match="the model has no attn"):
        load_parts(target, Checkpoint("selfpose3d", voxel_network(attention=True).state_dict()), ("attn",))
    faster = Checkpoint("", {"backbone.conv1.weight": torch.zeros(1), "pose_net.center_net.weight": torch.zeros(1)}, source="faster")
    with pytest.raises(WeightsError, match="pose_net has no volume filters.*backbone may be loaded"):
        voxelpose_arguments(faster.state_dict, "faster")
    with pytest.raises(WeightsError, match="different numbers of joints .backbone 4, pose_net 5"):
        voxelpose_arguments(some_parts(source.state_dict(), "backbone") | some_parts(voxel_network(5).state_dict(), "pose_net"))


def test_arguments_of_a_whole_network():
    with torch.device("meta"):
        attention = nn.Module()
        attention.backbone = PoseResNet(18, 15, "heatmap")
        model = VoxelPose(15, backbone=PoseResNet(50, 15, "heatmap"), root=2)
        model.attn = attention
    expected = {"joints": 15, "layers": 50, "attention_layers": 18, "root_alone": True}
    assert voxelpose_arguments(model.state_dict()) == expected
    assert needs_of(model.state_dict()).settings == {
        "TASK": "selfpose3d", "DATASET.SKELETON": "panoptic15", "MODEL.NAME": "voxelpose", "MODEL.NUM_JOINTS": 15,
        "MODEL.EXTRA.NUM_LAYERS": 50, "VOXEL.ROOT_HEATMAP": True,
    }  # fmt: skip


@pytest.mark.parametrize("parts", [("root_net", "pose_net"), ("pose_net",)], ids="+".join)
def test_networks_without_a_backbone_on_the_joints_of_coco_are_those_of_shelf_and_campus(parts):
    with torch.device("meta"):
        state = some_parts(VoxelPose(17).state_dict(), *parts)
    found = needs_of(state)
    assert found.settings["TASK"] == "scenes" and any("shelf" in note and "campus" in note for note in found.notes)
    cfg = config.load(ROOT / "experiments" / "shelf" / "prn64.yaml")
    assert config.from_dict(cfg.to_dict(), found.settings).to_dict() == cfg.to_dict()  # all it needs is said there
    with torch.device("meta"):
        assert set(load_parts(build(cfg).model, Checkpoint("voxelpose", state), parts)) == set(parts)
        whole = VoxelPose(17, backbone=PoseResNet(18, 17, "heatmap")).state_dict()
    assert needs_of(whole).settings["TASK"] == "voxelpose" and "VOXEL.HEATMAPS" not in needs_of(whole).settings
    assert needs_of(some_parts(whole, "backbone")).settings["TASK"] == "voxelpose"


@pytest.mark.parametrize("rule", ["mean", "reference"])
def test_heatmaps_of_coco_become_those_of_panoptic_by_name(rule):
    coco, panoptic = get("coco17"), get("panoptic15")
    state = network(17, "heatmap").state_dict()
    changed = backbone_state(state, "panoptic15", rule=rule)
    assert {k for k in state if not torch.equal(changed[k], state[k])} == {"final_layer.weight", "final_layer.bias"}
    for key in ("final_layer.weight", "final_layer.bias"):
        for row, joint in zip(changed[key], panoptic.joints, strict=True):
            sides = [f"{side}_{ {'neck': 'shoulder', 'pelvis': 'hip'}.get(joint)}" for side in "lr"]
            rows = [state[key][coco.index(name)] for name in ([joint] if joint in coco.joints else sides)]
            expected = rows[0] if rule == "reference" else sum(rows) / len(rows)
            torch.testing.assert_close(row, expected)
    if rule == "reference":
        published = [5, 0, 11, 5, 7, 9, 11, 13, 15, 6, 8, 10, 12, 14, 16]
        assert torch.equal(changed["final_layer.bias"], state["final_layer.bias"][published])
    whole = {f"backbone.{k}": v for k, v in state.items()} | {"attn.backbone.final_layer.bias": torch.zeros(15)}
    assert equal(backbone_state(whole, "panoptic15", rule=rule), changed)
    assert equal(backbone_state(state, "coco17"), state)
    with pytest.raises(WeightsError, match="4 heatmaps, expected 15, 16 or 17"):
        backbone_state(network(4, "heatmap").state_dict(), "panoptic15")
    with pytest.raises(WeightsError, match="no backbone, only root_net"):
        backbone_state({"root_net.v2v_net.a": torch.zeros(1)}, "panoptic15")


def test_start_weights_of_a_backbone_come_from_any_file_that_has_one():
    source = network(17, "heatmap").state_dict()
    whole = {f"backbone.{k}": v for k, v in source.items()} | {"pose_net.center_net.weight": torch.zeros(1)}  # another network's parts
    for state in (source, whole):
        target = network(15, "heatmap")
        report = load_backbone(target, Checkpoint("", dict(state), source="coco.pth"), "panoptic15")
        assert len(report.loaded) == len(source) and not report.missing and not report.unexpected
        assert equal(target.state_dict(), backbone_state(source, "panoptic15"))
    target = network(17, "heatmap")
    with pytest.raises(WeightsError, match="17 heatmaps, expected 15 of panoptic15"):
        load_backbone(target, Checkpoint("", dict(source), {"skeleton": "panoptic15"}, "odd.pth"), "coco17")
    load_backbone(target, Checkpoint("", dict(source), {"skeleton": "h36m17"}, "h36m.pth"), "coco17")
    assert torch.equal(target.final_layer.bias[get("coco17").index("l_knee")], source["final_layer.bias"][get("h36m17").index("l_knee")])
    trunk = {k: v for k, v in source.items() if k.startswith(("conv1", "bn1", "layer"))} | {"fc.weight": torch.zeros(1000, 8)}
    report = load_backbone(network(15, "heatmap"), Checkpoint("resnet", trunk, source="imagenet.pth"), "panoptic15")
    assert report.unexpected == ("fc.weight",) and "final_layer.weight" in report.missing
    with pytest.raises(WeightsError, match="does not fit the model .SmallPose. exactly"):
        other = source | {"depth_fc.weight": torch.zeros(1)}
        load_backbone(network(15, "heatmap"), Checkpoint("", other, source="other.pth"), "panoptic15")


def test_initialise_takes_the_parts_that_a_file_has(tmp_path, caplog):
    source, path = voxel_network(joints=15, root=0, attention=True), tmp_path / "start.pth.tar"
    coco = network(17, "heatmap").state_dict()
    stages = {  # what a stage of the published training starts from -> the parts it gives
        "coco": (coco, ["backbone"]),
        "backbone": (some_parts(source.state_dict(), "backbone"), ["backbone"]),
        "root": (some_parts(source.state_dict(), "backbone", "root_net"), ["root_net", "backbone"]),
        "all": (source.state_dict(), ["pose_net", "root_net", "backbone"]),
    }
    for name, (state, parts) in stages.items():
        torch.save(state, path)
        target = voxel_network(joints=15, root=0)
        before = {key: value.clone() for key, value in target.state_dict().items()}
        with caplog.at_level("INFO", "parallax"):
            caplog.clear()
            initialise(target, section(PRETRAINED=str(path)), "panoptic15")
        assert [record.getMessage().split(": ")[2] for record in caplog.records] == parts
        wanted = source.state_dict()
        if name == "coco":
            wanted = {f"backbone.{key}": value for key, value in backbone_state(coco, "panoptic15").items()}
        for key, value in target.state_dict().items():
            assert torch.equal(value, (wanted if key.split(".")[0] in parts else before)[key]), key
    torch.save(coco, path)
    initialise(target, section(PRETRAINED=str(path)), "panoptic15", rule="reference")
    assert equal(target.backbone.state_dict(), backbone_state(coco, "panoptic15", rule="reference"))
    torch.save({key: torch.zeros(2) for key in KEYS["refiner"]}, path)
    with pytest.raises(WeightsError, match="looks like a refiner.*none of the parts of the model .backbone, pose_net, root_net"):
        initialise(target, section(PRETRAINED=str(path)), "panoptic15")
