"""The pose machine: recorded outputs, clips that see nothing of each other, what shares of ranges mean, every parameter trained."""

import zlib

import pytest
import torch

from lib.errors import ConfigError, DataError
from lib.models import MODELS
from lib.models.pose_machine import (
    HEADS_2D,
    CPMTrunk,
    Lifter,
    PoseMachine,
    PoseNormalizer,
    Projector2D,
    Regressor3D,
    ResNetFeatures,
    mask_joints,
)
from lib.registry import resolve
from lib.skeleton import SKELETONS, get
from lib.weights.machine import LAYERS, from_layers
from tests.conftest import golden

SIXTEEN = get("h36m16")
SHAPES = {"lstm1": [(4096, 1024), (4096,), (4096, 1024)], "fc": [(1024, 12800), (1024,)], "fc-final_16": [(48, 1024), (48,)]}
SHAPES["lstm2"] = SHAPES["lstm1"]
BLOBS = {"lstm1": ("W_xc", "b_c", "W_hc"), "lstm2": ("W_xc", "b_c", "W_hc")}


def recorded_layer(name: str, shapes) -> list[torch.Tensor]:
    """The numbers that the records were made with: a function of the release's name and the shape of each blob."""
    blobs = []
    for blob, shape in zip(BLOBS.get(name, ("weight", "bias")), shapes, strict=True):
        t = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{name}.{blob}".encode())))
        blobs.append(t * (0.05 if t.ndim == 1 else (2 / t[0].numel()) ** 0.5))
    return blobs


def part(state: dict, name: str) -> dict:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


@pytest.fixture(scope="module")
def lifting_layers() -> dict:
    return from_layers({name: recorded_layer(name, SHAPES[name]) for name in ("lstm1", "lstm2", "fc-final_16")})


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("flags", ["published", "exact"])
def test_the_recorded_poses_of_clips(lifting_layers, flags, case):
    z = golden("pose_machines", "lift_lstm_t5")
    lifter = Lifter(flags=flags, channels=1, cells=(7, 7)).eval()  # the convolutions have no part in it
    lifter.load_state_dict(part(lifting_layers, "lifter"), strict=False)
    x = torch.randn(5, 1024, generator=torch.Generator().manual_seed(202))[None]
    starts = torch.from_numpy(z[f"clip{case}"] == 0)[None]
    with torch.no_grad():
        (poses,), _ = lifter.from_vectors(x, starts=starts)
        first, _ = lifter.lstm1(x[:, :1])
    name = {"published": "reference", "exact": "corrected"}[flags]
    expected = torch.from_numpy(z[f"pred_{name}_clip{case}"])
    torch.testing.assert_close(poses[0].flatten(1), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(first[0, :, :16], torch.from_numpy(z[f"lstm1_first16_clip{case}"])[:1], rtol=0, atol=1e-5)


def test_the_recorded_poses_of_pictures(lifting_layers):
    """From the pixels of the first frame on, with the published trunk, and from the recorded vectors of the others, which take as long."""
    z = golden("pose_machines", "lift_full_368")
    convolutions = {name: [(m.out_channels, m.in_channels, *m.kernel_size), (m.out_channels,)] for name, m in layers(CPMTrunk()).items()}
    convolutions |= {name: [(128, 128, k, k), (128,)] for name, k in (
        ("special_conv_1", 3), ("special_conv_2", 3), ("fa_conv_1", 5), ("fa_conv_2", 5))}  # fmt: skip
    convolutions["fc"] = SHAPES["fc"]
    state = lifting_layers | from_layers({name: recorded_layer(name, shapes) for name, shapes in convolutions.items()})
    trunk, lifter = CPMTrunk().eval(), Lifter().eval()
    trunk.load_state_dict(part(state, "trunk"))
    lifter.load_state_dict(part(state, "lifter"))
    images = torch.randn(3, 3, 368, 368, generator=torch.Generator().manual_seed(201))
    with torch.no_grad():
        feat = trunk(images[:1])
        seen = torch.relu(lifter.special_conv_2(torch.relu(lifter.special_conv_1(feat))))
        first = lifter.vectors(feat[None])
        vectors = torch.cat([first, torch.from_numpy(z["fc"][None, 1:])], 1)
        (poses,), _ = lifter.from_vectors(vectors, starts=torch.from_numpy(z["clip0"] == 0)[None])
    torch.testing.assert_close(seen[:, ::8, ::6, ::6], torch.from_numpy(z["f2d_sub"][:1]), rtol=0, atol=1e-3)
    torch.testing.assert_close(first[0], torch.from_numpy(z["fc"][:1]), rtol=0, atol=1e-3)
    for name in ("reference", "corrected"):
        torch.testing.assert_close(poses[0].flatten(1), torch.from_numpy(z[f"pred_{name}_clip0"]), rtol=0, atol=1e-3)


def layers(module: torch.nn.Module) -> dict:
    return {name: m for name, m in module.named_modules() if hasattr(m, "weight")}


@pytest.mark.parametrize("norm", ["none", "inert"])
def test_the_recorded_regression_and_projection(norm):
    z = golden("pose_machines", "projector_online")
    nets = layers(Regressor3D()) | layers(Projector2D())
    shapes = {name: [tuple(m.weight.shape), tuple(m.bias.shape)] for name, m in nets.items()}
    state = from_layers({name: recorded_layer(name, shape) for name, shape in shapes.items()})
    regressor, projector = Regressor3D(), Projector2D(norm=norm)
    regressor.load_state_dict(part(state, "regressor"))
    projector.load_state_dict(part(state, "projector"))
    with torch.no_grad():
        better = regressor(torch.from_numpy(z["coarse3d_norm"]).unflatten(1, (16, 3)))
        x = projector(better)
    name = {"none": "nobn", "inert": "bn"}[norm]
    torch.testing.assert_close(better.flatten(1), torch.from_numpy(z[f"change_{name}"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.flatten(1), torch.from_numpy(z[f"projected_{name}"]), rtol=0, atol=1e-5)


def test_parameters_of_the_published_network():
    with torch.device("meta"):
        model = PoseMachine()
        parts = {name: [p for p in m.parameters() if p.requires_grad] for name, m in model.named_children()}
        layer = {name: sum(p.numel() for p in m.parameters() if p.requires_grad) for name, m in model.lifter.named_children()}
    count = {name: sum(p.numel() for p in ps) for name, ps in parts.items()}
    assert count["trunk"] == 9_110_720 and count["regressor"] == 99_376 and count["projector"] == 2_182_176
    assert layer["special_conv_1"] + layer["special_conv_2"] == 295_168 and layer["fa_conv_1"] + layer["fa_conv_2"] == 819_456
    assert layer["fc"] == 13_108_224 and layer["lstm1"] + layer["lstm2"] == 16_785_408 and layer["fc_final"] == 49_200
    ours = {key.rpartition(".")[0] for key in model.state_dict()} - {"normalizer"}
    assert ours == {name for name in LAYERS.values() if not name.startswith("head2d.")}


# --- clips


def small_lifter(**options) -> Lifter:
    return Lifter(**{"joints": 3, "channels": 4, "cells": (7, 8), "hidden": 8} | options).eval()


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """With numbers large enough for everything to have an effect."""
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.6 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.3)
    return model


@pytest.mark.parametrize("num_stages", [1, 2])
@pytest.mark.parametrize("temporal", ["stack", "causal"])
def test_no_state_passes_between_clips_or_through_padding(temporal, num_stages):
    """Clips of several lengths in one row, some frames not real: as each clip alone."""
    lifter = lively(small_lifter(temporal=temporal, num_stages=num_stages))
    feat = torch.randn(2, 9, 4, 7, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 0, 1, 0]]).bool()
    starts = torch.tensor([[1, 0, 0, 1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 0, 0, 0]]).bool()
    clips = {(0, 0): [0, 1, 2], (0, 1): [3, 4], (0, 2): [5], (0, 3): [6], (1, 0): [1, 2, 4], (1, 1): [5, 7]}
    with torch.no_grad():
        poses = lifter(feat, mask, starts)
        for (row, _), frames in clips.items():
            alone = lifter(feat[row, frames][None])
            torch.testing.assert_close(poses[row, frames], alone[0])
    assert not poses[~mask].any()
    spoilt = feat.clone()
    spoilt[~mask] = torch.randn(4, 7, 8) * 100
    with torch.no_grad():
        torch.testing.assert_close(lifter(spoilt, mask, starts), poses)


def test_a_still_is_a_clip_of_one_frame():
    lifter = lively(small_lifter())
    feat = torch.randn(5, 1, 4, 7, 8)
    with torch.no_grad():
        alone = lifter(feat)
        in_a_row = lifter(feat.transpose(0, 1), starts=torch.ones(1, 5, dtype=torch.bool))
        padded = lifter(torch.cat([feat, torch.randn(5, 3, 4, 7, 8)], 1), torch.tensor([True, False, False, False]).expand(5, 4))
    torch.testing.assert_close(in_a_row[0], alone[:, 0])
    torch.testing.assert_close(padded[:, 0], alone[:, 0])


def test_published_flags_let_clips_of_a_row_leak_and_ours_do_not():
    """Five frames and three stills, as a batch of the release: its second layer resets at the wrong places."""
    exact, published = small_lifter(), small_lifter(flags="published")
    lively(exact)
    published.load_state_dict(exact.state_dict())
    feat = torch.randn(1, 8, 4, 7, 8)
    starts = torch.tensor([[1, 0, 0, 0, 0, 1, 1, 1]]).bool()
    other = feat.clone()
    other[:, 6] += 5
    with torch.no_grad():
        assert torch.equal(exact(feat, starts=starts)[0, :6], exact(other, starts=starts)[0, :6])
        assert not torch.allclose(published(feat, starts=starts)[0, 5], published(other, starts=starts)[0, 5])
        one = torch.tensor([[1, 0, 0, 0, 0]]).bool()
        torch.testing.assert_close(published(feat[:, :5], starts=one), exact(feat[:, :5], starts=one))
        torch.testing.assert_close(exact(feat[:, :5], starts=one), exact(feat[:, :5]))


def test_nothing_is_remembered_from_batch_to_batch():
    lifter = lively(small_lifter())
    feat = torch.randn(2, 4, 4, 7, 8)
    with torch.no_grad():
        before = lifter(feat)
        lifter(torch.randn(2, 4, 4, 7, 8) * 10)
        assert torch.equal(lifter(feat), before)


def test_the_stack_sees_the_future_and_the_causal_network_does_not():
    feat = torch.randn(1, 5, 4, 7, 8)
    other = feat.clone()
    other[:, 4] += 3
    for temporal, blind in (("causal", True), ("stack", False)):
        lifter = lively(small_lifter(temporal=temporal))
        with torch.no_grad():
            assert torch.equal(lifter(feat)[:, :4], lifter(other)[:, :4]) == blind


@pytest.mark.parametrize("num_stages", [1, 2])
def test_streams_go_on_where_they_were(num_stages):
    lifter = lively(small_lifter(temporal="causal", num_stages=num_stages))
    feat = torch.randn(2, 7, 4, 7, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 1, 1]]).bool()
    starts = torch.tensor([[0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0]]).bool()
    with torch.no_grad():
        whole, state, pieces = lifter(feat, mask, starts), None, []
        for a, b in ((0, 2), (2, 4), (4, 5), (5, 7)):
            poses, state = lifter.continued(feat[:, a:b], state, mask[:, a:b], starts[:, a:b])
            pieces.append(poses)
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
        poses, state = lifter.continued(feat[:, :3])
        again, _ = lifter.continued(feat[:, 3:], state)
        torch.testing.assert_close(torch.cat([poses, again], 1), lifter(feat))
    with pytest.raises(ConfigError, match="temporal 'stack' needs whole clips"):
        small_lifter().continued(feat)


def test_a_batch_of_padding_alone():
    lifter = small_lifter()
    poses = lifter(torch.randn(2, 3, 4, 7, 8), torch.zeros(2, 3, dtype=torch.bool))
    assert poses.shape == (2, 3, 3, 3) and not poses.any()


# --- shares of ranges


@pytest.mark.parametrize("skeleton", ["h36m16", "h36m17", "mpii16", "smpl24"])
def test_millimetres_come_back_and_the_root_is_exactly_zero(skeleton):
    ranges, s = PoseNormalizer(skeleton).double(), get(skeleton)
    X = torch.randn(6, s.num, 3, dtype=torch.float64) * 400
    back = ranges.denormalize(ranges.normalize(X))
    others = [j for j in range(s.num) if j != s.root_index]
    torch.testing.assert_close(back[:, others], X[:, others])
    assert not back[:, s.root_index].any() and not ranges.normalize(X)[:, s.root_index].any()
    assert not ranges.denormalize(torch.full((s.num, 3), 1e6, dtype=torch.float64))[s.root_index].any()
    assert torch.equal(ranges.denormalize(ranges.zero()).round(decimals=9), torch.zeros(s.num, 3, dtype=torch.float64))


def test_gradients_pass_the_ranges_without_nan():
    ranges = PoseNormalizer()
    p = torch.rand(2, 16, 3, requires_grad=True)
    ranges.normalize(ranges.denormalize(p)).sum().backward()
    torch.testing.assert_close(p.grad[:, 1:], torch.ones(2, 15, 3))
    assert not p.grad[:, 0].any()


def test_ranges_taken_from_poses():
    ranges = PoseNormalizer()
    X = torch.randn(50, 16, 3) * 300
    X[:, 0] = 0
    valid = torch.rand(50, 16) > 0.2
    valid[:, 9] = False  # the head is in no pose
    X[:, 4, 1] = 7.0  # never moves
    X[0, 2, 0], valid[0, 2] = 1e9, False  # an outlier that does not count
    X[1, 3] = torch.nan
    ranges.fit(X, valid)
    counted = valid & X.isfinite().all(-1)
    share = ranges.normalize(X)
    assert (share[counted] >= -1e-6).all() and (share[counted] <= 1 + 1e-6).all()
    assert (share[counted].view(-1, 3).amin() < 1e-6) and ranges.high[2, 0] < 5000
    torch.testing.assert_close(ranges.high[4, 1] - ranges.low[4, 1], torch.tensor(1.0))
    assert ranges.denormalize(share)[2, 4, 1] == pytest.approx(7.0)
    widest = (ranges.high - ranges.low)[[1, 2, 3, 5, 6]].max()
    assert (ranges.high - ranges.low)[9].max() >= widest and not ranges.high[0].any()
    again = PoseNormalizer()
    again.load_state_dict(ranges.state_dict())
    assert torch.equal(again.normalize(X[2:]), share[2:])
    wider = PoseNormalizer().fit(X, valid, margin=0.1)
    assert (wider.normalize(X)[:, 1:][counted[:, 1:]] > 0.05).all()


def test_poses_that_have_no_ranges():
    with pytest.raises(DataError, match=r"found poses \(4, 15, 3\), expected \(N, 16, 3\)"):
        PoseNormalizer().fit(torch.zeros(4, 15, 3))
    with pytest.raises(DataError, match="no pose has a joint besides the root"):
        PoseNormalizer().fit(torch.zeros(4, 16, 3), torch.zeros(4, 16))


# --- joints left out


def test_joints_are_left_out_as_often_as_asked():
    chance = torch.tensor([0.0, 0.3, 1.0])
    p = torch.randn(4000, 3, 2, requires_grad=True)
    fill = torch.full((3, 2), 7.0)
    out, kept = mask_joints(p, chance, fill)
    assert kept[:, 0].all() and not kept[:, 2].any() and kept[:, 1].float().mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(out[kept], p[kept]) and (out[~kept] == 7).all()
    out.sum().backward()
    assert torch.equal(p.grad, kept[..., None].expand(-1, -1, 2).float())


@pytest.mark.parametrize("mask_to", ["root", "zero"])
def test_a_joint_left_out_lies_at_the_root_or_as_published_at_the_end_of_its_range(mask_to):
    model = small(joint_mask={"spine": 1.0}, mask_to=mask_to)
    taken = []
    model.regressor.register_forward_pre_hook(lambda _, args: taken.append(model.normalizer.denormalize(args[0])))
    p, spine = torch.rand(3, 16, 3), SIXTEEN.index("spine")
    model.train().regress(p)
    model.eval().regress(p)
    there = [j for j in range(16) if j != spine]
    expected = torch.zeros(3) if mask_to == "root" else model.normalizer.low[spine]
    torch.testing.assert_close(taken[0][:, spine], expected.expand(3, 3), atol=1e-4, rtol=0)
    assert torch.equal(taken[0][:, there], taken[1][:, there]) and torch.equal(taken[1], model.normalizer.denormalize(p))


# --- whole networks


def small(**options) -> PoseMachine:
    options = {"image_size": (64, 64), "trunk": "resnet", "channels": 8, "hidden": 12} | options
    return resolve(MODELS, "pose_machine", key="MODEL.NAME")(**options)


@pytest.mark.parametrize("options", [
    {"head2d": "fc"}, {"head2d": "maps", "trunk": "cpm"}, {"head2d": "lstm", "temporal": "causal", "norm": "batch"},
    {"num_stages": 2, "deconv_filters": (6,), "deconv_kernels": (4,), "stages": 3, "image_size": (96, 64)}, {"skeleton": "h36m17"},
], ids=str)  # fmt: skip
def test_every_parameter_gets_a_gradient(options):
    model = small(**options).train()
    joints, (width, height) = model.joints, model.image_size
    image, mask = torch.randn(2, 2, 3, height, width), torch.tensor([[1, 1], [1, 0]]).bool()
    poses = model(image, mask)
    assert poses.p3d.shape == poses.regressed.shape == (2, 2, joints, 3) and poses.projected.shape == (2, 2, joints, 2)
    assert (poses.x is None) == (model.head == "none") and (poses.x is None or poses.x.shape == (2, 2, joints, 2))
    loss = sum(p.square().sum() for p in poses if p is not None and p.requires_grad)
    if model.head == "maps":
        maps = model.maps(model.features(image))
        assert [m.shape for m in maps] == [(2, 2, joints + 1, height // 8, width // 8)] * 2
        loss = loss + sum(m.square().sum() for m in maps)
    loss.backward()
    quiet = {f"{lstm}.bias_hh_l0" for lstm in ("lifter.lstm1", "lifter.lstm2", "lifter.stages.0.lstm1", "lifter.stages.0.lstm2",
                                               "head2d.lstm1", "head2d.lstm2")}  # fmt: skip
    assert not [key for key, p in model.named_parameters() if key not in quiet and (p.grad is None or not p.grad.abs().sum() > 0)]


def test_see_lift_regress_and_project_are_the_whole():
    model = lively(small(head2d="fc")).eval()
    image, starts = torch.randn(2, 3, 3, 64, 64), torch.tensor([[1, 0, 1], [1, 0, 0]]).bool()
    with torch.no_grad():
        feat, x = model.see(image)
        p3d = model.lift(feat, starts=starts)
        regressed = model.regress(p3d)
        whole = model(image, starts=starts)
        flat = model.project(regressed.flatten(0, 1))
    for found, expected in zip(whole, (x, p3d, regressed, model.project(regressed)), strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(flat, whole.projected.flatten(0, 1))


def test_poses_stay_exact_under_autocast():
    """Shares in bfloat16 would come in steps of several mm; features may be rounded."""
    model = small(head2d="fc", num_stages=2).eval()
    image, mask = torch.randn(1, 2, 3, 64, 64), torch.tensor([[True, False]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.features(image).dtype == torch.bfloat16
        for clips in (None, mask):
            poses = model(image, clips)
            assert {p.dtype for p in poses} == {torch.float32}
            assert torch.equal(model.regress(poses.p3d), poses.regressed)


def test_heatmaps_are_read_in_shares_of_the_crop():
    model = small(head2d="maps", trunk="cpm", map_stages=1).eval()
    with torch.no_grad():
        for p in model.head2d.parameters():
            p.zero_()
        model.head2d.conv5_2_CPM.bias[0] = 1.0  # the same everywhere: its maximum is the first cell
        feat, x = model.see(torch.zeros(1, 1, 3, 64, 64))
    assert x.shape == (1, 1, 16, 2) and not x.any()
    peak = torch.zeros(1, 1, 17, 8, 8)
    peak[..., 3, 5, 6], peak[..., 16, 1, 1] = 1.0, 9.0  # the background does not count
    model.maps = lambda feat: (peak,)
    torch.testing.assert_close(model.locate(feat)[0, 0, 3], torch.tensor([6 / 8, 5 / 8]))


def test_a_trained_pose_network_starts_the_trunk():
    from lib.models.pose_resnet import PoseResNet

    pose = PoseResNet(18, 16, "heatmap", deconv_filters=(6,), deconv_kernels=(4,), stages=2)
    trunk = ResNetFeatures(8, 18, 2, (6,), (4,))
    missing, unexpected = trunk.load_state_dict(pose.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in missing} == {"squeeze", "squeeze_norm"}
    assert unexpected == ["final_layer.weight", "final_layer.bias"]
    assert trunk(torch.randn(1, 3, 64, 96)).shape[-2:] == (trunk.cells(64), trunk.cells(96)) == (16, 24)


def test_new_networks_start_in_the_middle_of_the_ranges_and_the_published_start_is_small():
    image = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        poses = small().eval()(image)
        assert all((p - 0.5).abs().max() < 0.2 for p in poses if p is not None)
        published = small(start="published", trunk="cpm").eval()
        assert all(p.abs().max() < 0.01 for p in published(image) if p is not None)
    assert published.trunk.conv3_2.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert published.lifter.lstm1.weight_hh_l0.abs().max() <= 0.01 and not published.lifter.lstm1.bias_hh_l0.any()


@pytest.mark.parametrize(("options", "message"), [
    ({"temporal": "both"}, "temporal 'both' is not one of stack, causal"),
    ({"flags": "right"}, "flags 'right' is not one of exact, published"),
    ({"head2d": "map"}, f"head2d 'map' is not one of {', '.join(HEADS_2D)}"),
    ({"trunk": "vgg"}, "trunk 'vgg' is not one of cpm, resnet"),
    ({"norm": "layer"}, "norm of the projector 'layer' is not one of none, inert, batch"),
    ({"num_stages": 0}, "0 stages"),
    ({"head2d": "maps", "map_stages": 0}, "heatmaps in stages: 0 stages"),
    ({"image_size": (64, 48)}, "features of 8 x 6 cells, expected at least 7 x 7; give larger crops"),
    ({"joint_mask": {"spine": 1.5}}, "expected probabilities"),
])  # fmt: skip
def test_networks_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_pictures_and_clips_that_do_not_fit():
    model = small()
    with pytest.raises(ConfigError, match=r"takes \(B, T, 3, 64, 64\); give crops of that size, stills as clips of one frame"):
        model(torch.randn(2, 3, 64, 64))
    with pytest.raises(ConfigError, match=r"mask \(2, 4\) of clips \(2, 3\)"):
        model(torch.randn(2, 3, 3, 64, 64), torch.ones(2, 4))
    with pytest.raises(ConfigError, match="head2d 'none' has no heatmaps"):
        model.maps(torch.randn(1, 1, 8, 8, 8))


def test_ranges_of_the_release_are_for_skeletons_that_it_has_alone():
    known = {name for name in SKELETONS if PoseNormalizer(name).high.max() != 1000}
    assert known == {"h36m16", "h36m17", "h36m_mesh17", "humaneva15"}
