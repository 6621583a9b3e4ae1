"""Temporal convolutions: recorded outputs and names of the published networks, three ways to run one set of weights, its checkpoints."""


import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lib.errors import ConfigError, DataError, RunError, WeightsError
from lib.models import MODELS
from lib.models import temporal as module
from lib.models.temporal import TemporalModel, momentum
from lib.registry import resolve
from lib.weights.adapters import Checkpoint
from lib.weights.load import load_into, read
from lib.weights.temporal import causal_of, split, temporal_arguments, temporal_needs, to_lifting_state, write_videopose3d
from tests.conftest import GOLDEN, golden, golden_json, he, recorded_state

RECORD = golden_json("videopose3d", "models")
CASES = {case["case"]: case for case in RECORD["cases"]}


def network(**arguments) -> TemporalModel:
    """With the recorded weights, so that activations keep their size over many layers, and running statistics are no identity."""
    model = TemporalModel(**{"widths": (3, 3), "channels": 16} | arguments).eval()
    model.load_state_dict(recorded_state(model, he))
    return model


def clip(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(model: TemporalModel, x: torch.Tensor, single: bool) -> torch.Tensor:
    """The network written with convolutions alone, layer by layer."""
    x = x.flatten(2).transpose(1, 2)

    def layer(h, conv, bn, stride, dilation):
        h = nn.functional.conv1d(h, conv.weight, stride=stride, dilation=dilation)
        h = nn.functional.batch_norm(h, bn.running_mean.clone(), bn.running_var.clone(), bn.weight, bn.bias, model.training)
        return h.relu()

    h = layer(x, model.expand_conv, model.expand_bn, model.widths[0] if single else 1, 1)
    gap = model.widths[0]
    for i, width in enumerate(model.widths[1:]):
        (wide, point), (wide_bn, point_bn) = model.layers_conv[2 * i : 2 * i + 2], model.layers_bn[2 * i : 2 * i + 2]
        if single:
            kept = h[:, :, width - 1 if model.causal else width // 2 :: width]
        else:
            span = (width - 1) * gap
            kept = h[:, :, span:] if model.causal else h[:, :, span // 2 : h.shape[2] - span // 2]
        h = layer(h, wide, wide_bn, width if single else 1, 1 if single or model.dense else gap)
        h = kept + layer(h, point, point_bn, 1, 1)
        gap *= width
    return model.shrink(h).transpose(1, 2).unflatten(2, (-1, 3))


def same(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-6) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= relative * b.abs().max(), (a - b).abs().max() / b.abs().max()


# --- published networks


@pytest.mark.parametrize("name", sorted(CASES))
def test_published_networks(name):
    case, expected = CASES[name], torch.from_numpy(golden("videopose3d", "models")[name])
    model = resolve(MODELS, "temporal", key="MODEL.NAME")(
        case["num_joints_in"], case["in_features"], case["num_joints_out"], case["filter_widths"], case["causal"], case["dropout"],
        case["channels"], case["dense"],
    )  # fmt: skip
    assert [[key, list(value.shape), str(value.dtype)] for key, value in model.state_dict().items()] == case["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == case["n_params"]
    assert model.receptive_field == case["receptive_field"]
    assert model.pad == sum(case["pad_list"]) == (model.receptive_field - 1) // 2
    assert model.shift == (model.pad if case["causal"] else 0)

    model.load_state_dict(recorded_state(model, he))
    model.eval()
    x = clip(*case["input_shape"], seed=case["input_seed"])
    with torch.no_grad():
        output = (model.single if case["family"] == "strided_1f" else model)(x)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("widths", "pose", "trajectory"),
    [
        ((1, 1, 1), 4_291_635, 4_242_435),
        ((1, 1, 1, 1, 1), 8_494_131, 8_444_931),
        ((3, 3, 3), 8_555_571, 8_506_371),
        ((3, 3, 3, 3), 12_753_971, 12_704_771),
        ((3, 3, 3, 3, 3), 16_952_371, 16_903_171),
    ],
)
def test_sizes_are_those_of_the_paper(widths, pose, trajectory):
    with torch.device("meta"):
        counts = [sum(p.numel() for p in TemporalModel(joints_out=j, widths=widths).parameters()) for j in (17, 1)]
        dense = TemporalModel(dense=True)
    assert counts == [pose, trajectory]
    assert sum(p.numel() for p in dense.parameters()) == 29_527_091 and dense.receptive_field == 27


def test_batch_norm_momentum_falls_as_published():
    for epochs, values in RECORD["bn_momentum_after_epoch"]["values"].items():
        assert [momentum(e, int(epochs)) for e in range(1, int(epochs) + 1)] == pytest.approx(values, rel=1e-12)
    assert momentum(0, 60) == 0.1 and momentum(10, 10, 0.5, 0.2) == pytest.approx(0.2)
    model = TemporalModel(widths=(3, 3), channels=4)
    model.set_momentum(0.03)
    assert [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [0.03] * 3


# --- one set of weights, three ways


@pytest.mark.parametrize("single", [False, True], ids=["forward", "single"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("convolutions", [False, True])
def test_fast_forms_equal_plain_convolutions(convolutions, causal, training, single, monkeypatch):
    """Values, gradients and batch statistics, whichever form a processor gets."""
    monkeypatch.setattr(module, "_convolutions_are_faster", lambda x: convolutions)
    model = network(joints_in=5, joints_out=4, widths=(3, 5, 3), causal=causal, dropout=0.0, channels=24).double().train(training)
    x = clip(34, 2 * 45, 5, 2).double()
    expected = plain(model, x, single)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compute = model.single if single else model
    output = compute(x)
    same(output, expected, 1e-12)
    output.square().sum().backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        same(p.grad, gradient, 1e-10)
    if training:
        model.set_momentum(1.0)
        compute(x)
        first = nn.functional.conv1d(x.flatten(2).transpose(1, 2), model.expand_conv.weight, stride=3 if single else 1)
        same(model.expand_bn.running_mean, first.mean((0, 2)), 1e-10)
        same(model.expand_bn.running_var, first.transpose(0, 1).flatten(1).var(1), 1e-10)


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_single_precision_forms_agree(causal, convolutions, monkeypatch):
    monkeypatch.setattr(module, "_convolutions_are_faster", lambda x: convolutions)
    model = network(widths=(3, 3, 3), causal=causal, channels=64)
    x = clip(32, 27, 17, 2)
    expected = plain(model, x, single=True)
    for gradients in (True, False):  # without them, batch norm is folded into the layers of many frames
        with torch.set_grad_enabled(gradients):
            same(model(x), expected)
            same(model.single(x), expected)


def test_isolated_windows_in_half_precision():
    model = network(widths=(3, 3, 3), channels=64)
    x = clip(32, 27, 17, 2)
    with torch.autocast(x.device.type, torch.bfloat16):
        output = model.single(x)
    assert output.dtype == torch.bfloat16
    same(output.float(), model.single(x), 0.05)


@pytest.mark.parametrize(("rows", "images"), [(1, 0), (16, 0), (37, 0), (64, 16), (255, 17), (20736, 16), (62, 0)])
def test_rows_are_cut_into_enough_images_of_a_few_pixels(rows, images):
    assert module._images(rows) == images


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_long_clips_are_the_same_with_batch_norm_folded(causal, dense, convolutions, monkeypatch):
    monkeypatch.setattr(module, "_convolutions_are_faster", lambda x: convolutions)
    model = network(causal=causal, dense=dense, channels=32)
    x = clip(2, 300, 17, 2)
    expected = plain(model, x, single=False)
    same(model(x), expected)  # with gradients: not folded
    with torch.no_grad():
        same(model(x), expected)
        with torch.autocast(x.device.type, torch.bfloat16):
            same(model(x).float(), expected, 0.05)


def test_windows_and_clips_see_the_same_frames():
    for causal in (False, True):
        model = network(causal=causal)
        x = clip(2, 30, 17, 2)
        windows = x.unfold(1, 9, 1).movedim(-1, 2)  # (B,22,9,J,F)
        same(model.single(windows.flatten(1, 2)), model(x))
        moved = x.clone()
        moved[:, 12] += 1
        changed = (model(model.padded(moved)) - model(model.padded(x))).abs().amax((0, 2, 3)) > 0
        assert changed.nonzero().flatten().tolist() == list(range(12, 21) if causal else range(8, 17))


def test_causal_and_symmetric_networks_share_shapes_but_not_poses():
    symmetric, causal = network(), network(causal=True)
    causal.load_state_dict(symmetric.state_dict())
    x = clip(1, 40, 17, 2)
    assert (symmetric(x) - causal(x)).abs().max() > 0.1 * symmetric(x).abs().max()


@pytest.mark.parametrize("arguments", [{}, {"dense": True}, {"widths": (3, 5, 3)}, {"widths": (1, 1, 1)}, {"features": 3}], ids=str)
def test_a_causal_stream_equals_the_whole_clip(arguments):
    model = network(causal=True, joints_in=6, **arguments)
    x = clip(2, 60, 6, model.features)
    stream = model.stream()
    for _ in range(2):
        poses = torch.stack([stream.push(frame) for frame in x.unbind(1)], 1)
        same(poses, model(model.padded(x)))
        stream.reset()


def test_a_symmetric_stream_answers_when_a_window_is_full():
    model = network()
    x = clip(2, 30, 17, 2)
    stream = model.stream()
    poses = [stream.push(frame) for frame in x.unbind(1)]
    assert [pose is None for pose in poses] == [True] * 8 + [False] * 22
    same(torch.stack(poses[8:], 1), model(x))


def test_a_stream_keeps_the_weights_it_was_made_with():
    model = network(causal=True)
    x, stream, expected = clip(1, 17, 2), model.stream(), model.stream().push(clip(1, 17, 2))
    model.train().single(clip(4, 9, 17, 2))
    with torch.no_grad():
        model.expand_conv.weight.zero_()
    assert torch.equal(stream.push(x), expected)
    with pytest.raises(DataError, match="3 clips are pushed, expected 1"):
        stream.push(clip(3, 17, 2))


@pytest.mark.parametrize("form", ["forward", "single"])
@pytest.mark.parametrize("bf16", [False, True])
def test_every_parameter_gets_a_gradient(form, bf16):
    model = TemporalModel(widths=(3, 3, 3), channels=32).train()
    x = clip(8, 27, 17, 2)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        getattr(model, form)(x).float().square().sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_dropout_is_for_training_alone():
    model = network(dropout=0.5)
    x = clip(2, 9, 17, 2)
    assert torch.equal(model.single(x), model.single(x))
    model.train()
    assert not torch.equal(model.single(x), model.single(x))


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (3, 4)}, r"TEMPORAL.WIDTHS: found \[3, 4\], expected odd"),
        ({"widths": ()}, "TEMPORAL.WIDTHS"),
        ({"dropout": 1.0}, "TEMPORAL.DROPOUT: found 1.0"),
        ({"channels": 0}, "TEMPORAL.CHANNELS: found 0, expected 1"),
        ({"features": 1}, "TEMPORAL.FEATURES: found 1, expected 2"),
    ],
)
def test_arguments_that_make_no_network(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TemporalModel(**arguments)


def test_clips_that_do_not_fit():
    model = network()
    with pytest.raises(DataError, match=r"shape \(2, 17, 2\), expected \(clips, frames, 17, 2\)"):
        model(clip(2, 17, 2))
    with pytest.raises(DataError, match=r"shape \(1, 9, 17, 3\).*TEMPORAL.FEATURES 3"):
        model.single(clip(1, 9, 17, 3))
    with pytest.raises(DataError, match="clips have 8 frames, but a window has 9"):
        model(clip(1, 8, 17, 2))
    for frames in (0, 10):
        with pytest.raises(DataError, match=f"clips have {frames} frames, expected a multiple of the 9"):
            model.single(clip(1, frames, 17, 2))
    with pytest.raises(RunError, match="TEMPORAL.DENSE"):
        network(dense=True).single(clip(1, 9, 17, 2))


# --- checkpoints


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["supervised", "semi"])
def test_checkpoints_of_the_original(name, form):
    checkpoint = read(GOLDEN / "videopose3d" / f"checkpoint_{name}_{form}.bin")
    assert checkpoint.kind == "videopose3d"
    assert (checkpoint.meta["epoch"], checkpoint.meta["lr"]) == (1, pytest.approx(0.00095))
    expected = golden("videopose3d", f"checkpoint_{name}_expected")
    x = clip(1, 15, 17, 2, seed=42)
    networks = dict(zip(("pos", "traj"), split(to_lifting_state(checkpoint)), strict=True))
    assert {part for part, state in networks.items() if state} == set(expected)
    for part, output in expected.items():
        model = TemporalModel(**temporal_arguments(networks[part]), causal=False).eval()
        assert (model.widths, model.channels, model.joints_out) == ((3, 3), 8, 17 if part == "pos" else 1)
        load_into(model, networks[part], strict=True)
        torch.testing.assert_close(model(x), torch.from_numpy(output), rtol=1e-5, atol=1e-5)


def test_released_files_may_lack_entries(tmp_path):
    model = network()
    state = {f"module.{k}": v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    for content in ({"epoch": 80, "lr": 1e-5, "optimizer": None, "model_pos": state}, state):
        torch.save(content, tmp_path / "released.bin")
        lifting = to_lifting_state(read(tmp_path / "released.bin"))
        assert all(key.startswith("pose.") for key in lifting)
        again = TemporalModel(**temporal_arguments(lifting)).eval()
        load_into(again, split(lifting)[0], strict=True)
        assert torch.equal(again(clip(1, 9, 17, 2)), model(clip(1, 9, 17, 2)))


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {"WIDTHS": [3, 3], "FEATURES": 2, "CHANNELS": 16, "DENSE": False}),
        ({"widths": (3, 5, 3), "joints_in": 16}, {"WIDTHS": [3, 5, 3], "FEATURES": 2}),
        ({"widths": (3, 3, 3), "dense": True}, {"WIDTHS": [3, 3, 3], "DENSE": True}),
        ({"widths": (1, 1, 1), "dense": True}, {"WIDTHS": [1, 1, 1], "DENSE": False}),  # no difference
        ({"widths": (5, 3), "dense": True}, {"WIDTHS": [5, 3], "DENSE": True}),
        ({"widths": (7,)}, {"WIDTHS": [7], "DENSE": False}),
        ({"features": 3}, {"FEATURES": 3}),
        ({"joints_in": 15, "joints_out": 15}, {"FEATURES": 2}),
    ],
    ids=str,
)
def test_settings_are_read_from_tensors(arguments, settings):
    model = network(**arguments)
    found = temporal_needs(model.state_dict())
    assert {key: found[f"TEMPORAL.{key}"] for key in settings} == settings
    assert "TEMPORAL.CAUSAL" not in found and found["MODEL.NUM_JOINTS"] == model.joints_out
    again = TemporalModel(**temporal_arguments(model.state_dict()))
    assert (again.joints_in, again.features, again.joints_out) == (model.joints_in, model.features, model.joints_out)
    load_into(again, model.state_dict(), strict=True)


def test_settings_of_both_networks():
    lifting = {f"{part}.{k}": v for part, j in (("pose", 17), ("trajectory", 1)) for k, v in network(joints_out=j).state_dict().items()}
    assert temporal_needs(lifting)["TEMPORAL.TRAJECTORY"] is True
    assert temporal_arguments(lifting)["joints_out"] == 17
    assert to_lifting_state(Checkpoint("parallax", lifting)) == lifting
    state = network(joints_in=24).state_dict()
    assert temporal_arguments(state, joints_in=16)["features"] == 3
    with pytest.raises(WeightsError, match="takes 48 numbers a frame, .* 17 joints"):
        temporal_arguments(state, joints_in=17)


def test_causal_must_be_said():
    published = read(GOLDEN / "videopose3d" / "checkpoint_semi_zip.bin")
    with pytest.raises(WeightsError, match="semi_zip.bin: whether the network is causal cannot be read.*TEMPORAL.CAUSAL true or"):
        causal_of(published)
    assert causal_of(published, True) is True
    ours = Checkpoint("parallax", {}, {"config": {"TEMPORAL": {"CAUSAL": True}}}, "run/best.pth")
    assert causal_of(ours) is True
    with pytest.raises(WeightsError, match="run/best.pth: was trained with TEMPORAL.CAUSAL true, but false is asked for"):
        causal_of(ours, False)


def test_writing_for_the_original(tmp_path):
    pose, trajectory = network(), network(joints_out=1)
    path = tmp_path / "ours.bin"
    write_videopose3d(path, pose.state_dict(), trajectory.state_dict(), epoch=3, lr=5e-4)
    content = torch.load(path, weights_only=True)
    assert (content["epoch"], content["lr"], content["optimizer"]) == (3, 5e-4, None)
    for model, part in ((pose, "model_pos"), (trajectory, "model_traj")):
        assert list(content[part]) == list(model.state_dict())
        model.load_state_dict(content[part])
    lifting = to_lifting_state(read(path))
    assert len(lifting) == 2 * len(pose.state_dict()) and torch.equal(lifting["trajectory.shrink.bias"], trajectory.shrink.bias)

    write_videopose3d(path, pose.state_dict())
    assert "model_traj" not in torch.load(path, weights_only=True)
    before = path.read_bytes()
    with pytest.raises(WeightsError, match="expand_conv.weight is missing"):
        write_videopose3d(path, {"conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="nowhere/ours.bin: cannot be written"):
        write_videopose3d(tmp_path / "nowhere" / "ours.bin", pose.state_dict())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_weights_of_another_kind():
    with pytest.raises(WeightsError, match=r"face.pth: has keys of another network \('conv1.weight', ...\), expected those of VideoPose3D"):
        to_lifting_state(Checkpoint("resnet", {"conv1.weight": torch.zeros(1)}, source="face.pth"))
    state = network().state_dict()
    with pytest.raises(WeightsError, match="layers_conv.0.weight is missing"):
        temporal_arguments({k: v for k, v in state.items() if k != "layers_conv.0.weight"} | {"layers_conv.9.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="not those of a VideoPose3D network"):
        temporal_arguments(state | {"shrink.weight": torch.zeros(50, 16, 1)})
    mixed = Checkpoint("videopose3d", state, {"model_traj": network(joints_in=16, joints_out=1).state_dict()}, "mixed.bin")
    with pytest.raises(WeightsError, match="mixed.bin: the trajectory network takes"):
        to_lifting_state(mixed)


def test_a_frame_of_a_stream_costs_what_the_paper_says():
    with torch.device("meta"):
        stream = TemporalModel(widths=(3, 3, 3, 3, 3), causal=True).stream()
        x = torch.zeros(1, 17, 2)
    stream.push(x)
    with FlopCounterMode(display=False) as counter:
        stream.push(x)
    assert counter.get_total_flops() / 2 == pytest.approx(16.9e6, rel=0.01)
