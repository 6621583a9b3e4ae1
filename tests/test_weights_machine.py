"""Weights of pose machines: Caffe models of both kinds, exports, the published pickle; what is damaged; what the tensors tell."""

import pickle
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lib.dataset.image import MACHINE, ImageSpec
from lib.errors import WeightsError
from lib.models.pose_machine import PoseMachine, PoseNormalizer, Projector2D, Regressor3D
from lib.models.pose_resnet import PoseResNet
from lib.weights.adapters import kind_of
from lib.weights.caffe import looks_like_caffe, read_caffemodel
from lib.weights.load import initialise, load_into, read
from lib.weights.machine import LAYERS, from_layers, machine_arguments, machine_joints, to_layers, write_npz
from lib.weights.needs import image_spec_of, needs_of
from scripts import convert as script
from tests.conftest import golden

PSI = ("change_tmp", "change", "project_1", "project_2", "project_3", "project_2d")

# ------------------------------------------------------------------------------- a writer of Caffe's messages, by caffe.proto


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array: np.ndarray, style: str) -> bytes:
    """style: "new", "old" (four sizes), "loose" (nothing packed) or "double"."""
    sizes = [1] * (4 - array.ndim) + list(array.shape)
    if style == "old":
        shape = b"".join(field(k, n) for k, n in enumerate(sizes, 1))
    elif style == "loose":
        shape = field(7, b"".join(field(1, n) for n in array.shape))
    else:
        shape = field(7, field(1, b"".join(varint(n) for n in array.shape)))
    if style == "loose":
        return shape + b"".join(varint(5 << 3 | 5) + struct.pack("<f", v) for v in array.ravel())
    if style == "double":
        return shape + field(8, array.astype("<f8").tobytes())
    diff = field(6, array.astype("<f4").tobytes()) if array.size < 100 else b""  # is not wanted
    return b"".join((field(5, array.astype("<f4").tobytes()), diff, shape))


def caffemodel(layers: dict, style: str = "new", name: str = "machine") -> bytes:
    message = [field(1, name) + field(3, "data") + field(5, 0)]
    for layer, blobs in {"data": [], **layers, "loss": []}.items():
        packed = [blob(np.asarray(b), style) for b in blobs]
        if style == "old":
            head = field(2, "bottom") + field(4, layer) + field(5, 14) + field(7, struct.pack("<f", 1))
            message.append(field(2, b"".join([head, *(field(6, b) for b in packed)])))
        else:
            head = field(1, layer) + field(2, "InnerProduct") + field(3, "bottom") + field(10, 1)
            message.append(field(100, b"".join([head, *(field(7, b) for b in packed)])))
    return b"".join(message)


def layers_of(state: dict) -> dict[str, list[np.ndarray]]:
    """The blobs of each layer of the release, in Caffe's order."""
    layers: dict[str, list] = {}
    for key, value in to_layers(state).items():
        layers.setdefault(key.rpartition(".")[0], []).append(value.numpy())
    return layers


def small(**options) -> PoseMachine:
    return PoseMachine(**{"image_size": (64, 64), "channels": 4, "hidden": 6} | options)


def drawn(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def machine() -> PoseMachine:
    torch.manual_seed(1)
    return drawn(small(head2d="maps"))


@pytest.fixture(scope="module")
def layers(machine) -> dict:
    return layers_of(machine.state_dict())


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------------------ what is read


@pytest.mark.parametrize("style", ["new", "old"])
def test_a_caffe_model_is_read_and_loaded(style, machine, layers, tmp_path):
    path = tmp_path / "pose_iter_320000"  # nothing in the name tells
    path.write_bytes(caffemodel(layers, style))
    checkpoint = read(path)
    assert checkpoint.kind == "pose_machine" and image_spec_of(checkpoint) == MACHINE
    assert checkpoint.wrapping == f"Caffe model 'machine', {'V1 ' if style == 'old' else ''}38 of 40 layers with weights"
    target = small(head2d="maps")
    report = load_into(target, checkpoint, strict=True)
    assert not report.missing and not report.unexpected and equal(target.state_dict(), machine.state_dict())
    spec = ImageSpec(**MACHINE)
    picture = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(spec.normalize(picture), (picture.flip(0).float() - 128) / 256)


@pytest.mark.parametrize("style", ["new", "old", "loose", "double"])
def test_blobs_of_every_form(style, tmp_path):
    w, b = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32), np.arange(2, dtype=np.float32)
    path = tmp_path / "x.caffemodel"
    path.write_bytes(caffemodel({"fc": [w, b], "empty": [np.zeros((0,), np.float32)]} if style == "new" else {"fc": [w, b]}, style))
    net = read_caffemodel(path)
    assert net.name == "machine" and net.old == (style == "old") and net.layers[0].kind == "InnerProduct"
    found = net.layers[0].blobs
    assert tuple(found[0].shape) == ((1, 1, 2, 3) if style == "old" else (2, 3))
    np.testing.assert_array_equal(found[0].reshape(2, 3).numpy(), w)
    np.testing.assert_array_equal(found[1].flatten().numpy(), b)


def test_layers_of_other_networks_keep_their_names(tmp_path):
    path = tmp_path / "vgg.caffemodel"
    path.write_bytes(caffemodel({"conv5_3": [np.ones((2, 2, 1, 1)), np.zeros(2), np.zeros(3)]}))
    checkpoint = read(path)
    assert checkpoint.kind == "unknown" and list(checkpoint.state_dict) == ["conv5_3.weight", "conv5_3.bias", "conv5_3.2"]
    with pytest.raises(WeightsError, match=r"vgg.caffemodel has keys of an unknown network \('conv5_3.weight'"):
        load_into(small(), checkpoint)


def test_the_gates_of_caffe_s_lstm_by_its_own_equations():
    """a = W x + b + U h in the order input, forget, output, cell; c = s(f) c + s(i) tanh(g); h = s(o) tanh(c)."""
    generator = torch.Generator().manual_seed(3)
    w, b, u = (torch.randn(shape, generator=generator) for shape in ((24, 6), (24,), (24, 6)))
    state = from_layers({"lstm1": [w, b, u]})
    lstm = nn.LSTM(6, 6, batch_first=True)
    lstm.load_state_dict({key.removeprefix("lifter.lstm1."): value for key, value in state.items()})
    x = torch.randn(5, 6, generator=generator)
    h, c, expected = torch.zeros(6), torch.zeros(6), []
    for frame in x:
        i, f, o, g = (w @ frame + b + u @ h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        expected.append(h)
    torch.testing.assert_close(lstm(x[None])[0][0], torch.stack(expected))
    assert not state["lifter.lstm1.bias_hh_l0"].any()
    again = to_layers(state)
    assert torch.equal(again["lstm1.W_xc"], w) and torch.equal(again["lstm1.b_c"], b) and torch.equal(again["lstm1.W_hc"], u)


def test_an_export_of_layers(machine, tmp_path):
    path = tmp_path / "export.npz"
    write_npz(to_layers(machine.state_dict()), path)
    with np.load(path) as file:
        assert {"fc-final_16.weight", "lstm2.b_c", "conv4_7_CPM.bias"} <= set(file.files)
    checkpoint = read(path)
    assert checkpoint.kind == "pose_machine" and equal(checkpoint.state_dict, machine.state_dict())
    numbered = tmp_path / "numbered.npz"
    np.savez(numbered, **{f"{name}/{i}": b for name, blobs in layers_of(machine.state_dict()).items() for i, b in enumerate(blobs)})
    assert equal(read(numbered).state_dict, machine.state_dict())


def pickled(tmp_path, protocol: int = 2, hidden: int = 6, dtype=np.float32, joints: int = 16) -> tuple:
    nets = nn.ModuleList([Regressor3D(joints, hidden), Projector2D(joints, hidden)])
    found = {name.partition(".")[2]: m for name, m in nets.named_modules() if hasattr(m, "weight")}
    arrays = [array for name in PSI for array in (found[name].weight.detach().numpy().T.astype(dtype), found[name].bias.detach().numpy())]
    path = tmp_path / "change_refine.pkl"
    path.write_bytes(pickle.dumps(arrays, protocol))
    return path, *nets


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_twelve_arrays_of_the_published_correction(protocol, tmp_path):
    path, regressor, projector = pickled(tmp_path, protocol)
    checkpoint = read(path)
    assert checkpoint.kind == "pose_machine" and "12 arrays" in checkpoint.wrapping
    target = small()
    report = load_into(target, checkpoint)
    assert equal(target.regressor.state_dict(), regressor.state_dict()) and equal(target.projector.state_dict(), projector.state_dict())
    assert not report.unexpected and {key.partition(".")[0] for key in report.missing} == {"trunk", "lifter"}
    assert torch.equal(checkpoint.state_dict["normalizer.low"], PoseNormalizer().low)
    with pytest.raises(WeightsError, match=r"does not fit the model \(PoseMachine\) exactly: \d+ missing \(trunk.conv1_1.weight"):
        load_into(small(), checkpoint, strict=True)


def test_the_recorded_pose_from_the_pickle(tmp_path):
    """Weights of the published shapes and transposed as published: the recorded outputs."""
    import zlib

    shapes = ((1024, 48), (48, 1024), (1024, 48), (1024, 1024), (1024, 1024), (32, 1024))
    arrays = []
    for name, shape in zip(PSI, shapes, strict=True):
        for kind, size in (("weight", shape), ("bias", shape[:1])):
            t = torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(f"{name}.{kind}".encode())))
            arrays.append((t * ((2 / size[1]) ** 0.5 if kind == "weight" else 0.05)).numpy().T)
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(arrays, 2))
    regressor, state = Regressor3D(), read(path).state_dict
    regressor.load_state_dict({key.removeprefix("regressor."): v for key, v in state.items() if key.startswith("regressor.")})
    z = golden("pose_machines", "projector_online")
    with torch.no_grad():
        pose = regressor(torch.from_numpy(z["coarse3d_norm"]).unflatten(1, (16, 3)))
    torch.testing.assert_close(pose.flatten(1), torch.from_numpy(z["change_nobn"]), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ what is wrong


def test_truncated_caffe_models_are_refused_wherever_they_end(tmp_path):
    whole = caffemodel({"fc": [np.ones((3, 2)), np.ones(3)], "change": [np.ones((3, 3)), np.ones(3)]})
    path = tmp_path / "x.caffemodel"
    for end in range(12, len(whole) - 1):
        path.write_bytes(whole[:end])
        try:
            checkpoint = read(path)
        except WeightsError as error:
            assert str(path) in str(error)
        else:  # a message may end behind any of its fields
            assert whole[end:].startswith((varint(100 << 3 | 2),)) and checkpoint.state_dict


def test_garbage_is_refused_with_a_word_on_the_file(tmp_path):
    path = tmp_path / "x.caffemodel"
    rng = np.random.default_rng(0)
    whole = bytearray(caffemodel({"fc": [np.ones((3, 2)), np.ones(3)]}))
    for trial in range(300):
        data = bytearray(whole) if trial % 2 else bytearray(rng.bytes(60))
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            read(path)
        except WeightsError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(("data", "message"), [
    (field(1, "n") + field(100, field(1, "fc") + field(7, field(5, b"\0" * 7))), "'fc', blob 0: its numbers are cut in the middle"),
    (field(1, "n") + field(100, field(1, "fc") + field(7, field(7, field(1, 9)) + field(5, b"\0" * 8))), r"2 numbers for the shape \[9\]"),
    (field(1, "n") + field(100, field(1, "fc") + field(7, field(7, field(1, 2**63)) + field(5, b"\0" * 8))), "2 numbers for the shape"),
    (field(1, "n") + field(100, 3), "a number where a layer"),
    (field(1, "n") + field(100, field(1, b"\xff\xfe")), "a name that is no text"),
    (field(1, "n") + varint(100 << 3 | 2) + varint(10**9) + b"abc", "a field of 1000000000 bytes, of which 3 are there"),
    (field(1, "n") + field(5, 0) + bytes([100 << 3 & 127 | 3 | 128, 6]), "a field of unknown kind 3"),
    (field(1, "n") + field(5, 0) + b"\xff" * 12, "a number of more than 64 bits"),
    (caffemodel({}), "a Caffe message with 2 layers, but none has weights"),
    (field(1, "n") + 2 * field(100, field(1, "fc") + field(7, blob(np.ones(2), "new"))), "two layers are called 'fc'"),
], ids=range(10))  # fmt: skip
def test_damaged_messages(data, message, tmp_path):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        read_caffemodel(path)


def test_layers_of_wrong_shapes_are_refused():
    for layers, message in (
        ({"fc": [torch.ones(2, 3)]}, r"layer fc has blobs of shapes \[\(2, 3\)\], expected those of a matrix: \(out, in\), \(out\)"),
        ({"conv1_1": [torch.ones(2, 3), torch.ones(2)]}, "expected those of a convolution"),
        ({"fc": [torch.ones(2, 3), torch.ones(3)]}, "expected those of a matrix"),
        ({"lstm1": [torch.ones(8, 3), torch.ones(8)]}, "expected those of an LSTM"),
        ({"lstm1": [torch.ones(8, 3), torch.ones(8), torch.ones(8, 3)]}, "expected those of an LSTM"),
    ):
        with pytest.raises(WeightsError, match=message):
            from_layers(layers)


def test_other_pickles_archives_and_texts_stay_what_they_were(tmp_path):
    arrays = [np.ones((3, 2), np.float32)] * 12
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(arrays))
    with pytest.raises(WeightsError, match="a pickle of 12 arrays of shapes .* expected the 12 of the published correction"):
        read(path)
    trace = tmp_path / "ran"
    hostile = f"(lp0\ncos\nsystem\n(S'touch {trace}'\ntRa.".encode()
    for data in (pickle.dumps(["a"]), pickle.dumps({"a": 1}), hostile):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match="is a pickle, but not a torch checkpoint"):
            read(path)
    assert not trace.exists()
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(WeightsError, match="is a zip archive without data.pkl"):
        read(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", **{"fc.bias": np.ones(3)})
    with pytest.raises(WeightsError, match="layer fc has the blobs .1., some before the last are missing"):
        read(tmp_path / "y.npz")
    (tmp_path / "x.txt").write_text("\nlayer weights\n")
    with pytest.raises(WeightsError, match="not a torch checkpoint, or damaged"):
        read(tmp_path / "x.txt")
    assert not looks_like_caffe(b"") and not looks_like_caffe(b"PK\3\4") and looks_like_caffe(caffemodel({}))


# ------------------------------------------------------------------------------------------------- what becomes of the weights


@pytest.mark.parametrize("options", [
    {}, {"head2d": "maps", "map_stages": 3}, {"head2d": "lstm", "num_stages": 2, "norm": "batch"}, {"head2d": "fc"},
    {"trunk": "resnet", "layers": 18, "stages": 3, "deconv_filters": [4], "deconv_kernels": [4]},
], ids=str)  # fmt: skip
def test_the_tensors_tell_the_network(options):
    with torch.device("meta"):
        state = small(**options).state_dict()
        found = machine_arguments(state, (64, 64))
        again = PoseMachine(**found)
    assert {k: tuple(v.shape) for k, v in again.state_dict().items()} == {k: tuple(v.shape) for k, v in state.items()}
    assert machine_joints(state) == 16 and kind_of(state) == "pose_machine" and options.items() <= found.items()


def test_the_size_of_the_published_network():
    with torch.device("meta"):
        state = PoseMachine().state_dict()
    assert machine_arguments(state)["image_size"] == (368, 368)
    needs = needs_of(state)
    assert needs.settings["MODEL.NAME"] == "pose_machine" and needs.settings["TASK"] == "machine"
    assert needs.settings["DATASET.SKELETON"] == "h36m16" and needs.settings["MODEL.IMAGE_SIZE"] == [368, 368]
    assert any("MACHINE.TEMPORAL causal" in note for note in needs.notes) and needs.settings["MACHINE.HEAD2D"] == "none"
    some = {key: value for key, value in state.items() if key.startswith(("regressor.", "projector."))}
    assert "holds regressor and projector alone: give it as MODEL.PRETRAINED beside other parts" in needs_of(some).notes
    broken = state | {"lifter.fc.weight": torch.zeros(3)}
    assert needs_of(broken).settings == {} and "has not the axes" in needs_of(broken).notes[0]


def test_what_the_release_has_no_layer_for_is_not_exported():
    with pytest.raises(WeightsError, match="the state dict has 'trunk.conv1.weight', expected the layers of the published pose machine"):
        to_layers(small(trunk="resnet").state_dict())
    with pytest.raises(WeightsError, match="the state dict is empty"):
        to_layers({})
    assert {"head2d.Mconv7_stage2", "lifter.fc_final"} <= set(LAYERS.values())


def section(**values) -> SimpleNamespace:
    start = {"PRETRAINED": "", "RESUME": "", "INIT_WEIGHTS": False, "INIT_FILE": "", "INFLATE": 0.0}
    return SimpleNamespace(MODEL=SimpleNamespace(EXTRA=SimpleNamespace(NUM_LAYERS=18), **start | values))


def test_networks_of_pictures_start_the_trunk(tmp_path, caplog):
    pose = drawn(PoseResNet(18, 16, "heatmap", stages=2, deconv_filters=(4,), deconv_kernels=(4,)))
    path = tmp_path / "pose.pth"
    torch.save(pose.state_dict(), path)
    model = small(trunk="resnet", deconv_filters=(4,), deconv_kernels=(4,))
    with caplog.at_level("INFO", "parallax"):
        initialise(model, section(PRETRAINED=str(path)), "h36m16")
    assert torch.equal(model.trunk.layer2[1].conv2.weight, pose.layer2[1].conv2.weight)
    assert torch.equal(model.trunk.deconv_layers[0].weight, pose.deconv_layers[0].weight) and "tensors loaded" in caplog.text
    with pytest.raises(WeightsError, match="holds a ResNet-18, but the pose machine begins with a ResNet-34; set .*NUM_LAYERS 18"):
        initialise(small(trunk="resnet", layers=34), section(PRETRAINED=str(path)), "h36m16")


def test_imagenet_weights_are_for_the_trunk_of_a_resnet_alone(tmp_path, caplog):
    resnet = PoseResNet(18, 16, "heatmap")
    path = tmp_path / "resnet18.pth"
    torch.save({k: v for k, v in resnet.state_dict().items() if not k.startswith(("deconv", "final"))}, path)
    model = small(trunk="resnet")
    initialise(model, section(INIT_WEIGHTS=True, INIT_FILE=str(path)))
    assert torch.equal(model.trunk.conv1.weight, resnet.conv1.weight)
    with caplog.at_level("INFO", "parallax"):
        initialise(small(), section(INIT_WEIGHTS=True, INIT_FILE=str(path)))
    assert "from scratch (there are no ImageNet weights of convolutional pose machines)" in caplog.text


def test_a_lifter_for_other_joints_leaves_its_ends_out(tmp_path, caplog):
    source, target, path = drawn(small(trunk="resnet")), small(trunk="resnet", skeleton="h36m17"), tmp_path / "ours.pth"
    torch.save({"format": 1, "model": source.state_dict(), "skeleton": "h36m16"}, path)
    before = {k: v.clone() for k, v in target.state_dict().items() if k.startswith(("regressor", "projector", "normalizer"))}
    initialise(target, section(PRETRAINED=str(path)), "h36m17")
    after = target.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert torch.equal(target.lifter.lstm2.weight_hh_l0, source.lifter.lstm2.weight_hh_l0)


# ------------------------------------------------------------------------------------------------------------- the command


def test_inspect_and_export_by_command(machine, layers, tmp_path, capsys):
    path, out = tmp_path / "machine.caffemodel", tmp_path / "machine.npz"
    path.write_bytes(caffemodel(layers))
    assert script.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "a 3D human pose machine, " in said and "Caffe model 'machine', 38 of 40 layers with weights" in said
    assert "DATASET: {SKELETON: h36m16}" in said and "lifter.lstm1" in said and "MODEL.PRETRAINED" in said
    assert script.main(["convert", str(path), str(out), "--to", "reference"]) == 0
    assert equal(read(out).state_dict, machine.state_dict())
    assert script.main(["convert", str(path), str(out), "--to", "reference"]) == 2  # nothing is overwritten
    path.write_bytes(path.read_bytes()[:-20])
    assert script.main(["inspect", str(path)]) == 2
    assert "truncated or damaged Caffe model" in capsys.readouterr().err


def test_a_checkpoint_of_ours_is_made_of_a_caffe_model(machine, layers, tmp_path, capsys):
    path, out, back = tmp_path / "machine.caffemodel", tmp_path / "ours.pth.tar", tmp_path / "back.npz"
    path.write_bytes(caffemodel(layers))
    assert script.main(["convert", str(path), str(out), "MODEL.IMAGE_SIZE", "[64,64]"]) == 0
    assert "MACHINE.TEMPORAL causal" in capsys.readouterr().out
    made = read(out)
    assert made.kind == "parallax" and made.meta["skeleton"] == "h36m16" and made.meta["image_spec"]["color"] == "bgr"
    assert made.meta["image_spec"]["size"] == [64, 64] and made.meta["config"]["MACHINE"]["HEAD2D"] == "maps"
    assert equal(made.state_dict, machine.state_dict())
    assert script.main(["convert", str(out), str(back), "--to", "reference"]) == 0
    assert equal(read(back).state_dict, machine.state_dict())
    only = {name: layers[name] for name in PSI}
    path.write_bytes(caffemodel(only))
    assert script.main(["convert", str(path), str(tmp_path / "part.pth.tar")]) == 2  # parts are no network
    assert "missing (trunk." in capsys.readouterr().err
