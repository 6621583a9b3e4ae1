"""VoxelPose and SelfPose3d's networks: the recorded numbers of the published code, and people found from rendered heatmaps."""

import copy

import pytest
import torch
from torch import nn

from lib.errors import ConfigError, GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.crop import compose, crop_affine, scale_affine, transform_points
from lib.geometry.heatmap import render_heatmaps
from lib.geometry.volume import Space, apart, expected_position, find_peaks
from lib.geometry.voxel import voxel_grid
from lib.loss.voxels import match_people, pose_loss, view_heatmap_loss, volume_loss
from lib.models import MODELS
from lib.models.attention import AttentionNet
from lib.models.pose_resnet import PoseResNet
from lib.models.v2v import V2VNet
from lib.models.voxelpose import PoseNet, RootNet, VoxelPose
from lib.registry import resolve
from tests.conftest import golden, golden_json, he, recorded_state
from tests.scene import ring_of_cameras

CASES = golden_json("selfpose3d", "networks")["cases"]
ARRAYS = golden("selfpose3d", "networks")
PANOPTIC = (8000.0, 8000.0, 2000.0), (0.0, -500.0, 800.0)


def recorded(case: str, name: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[f"{case}/{name}"])


def drawn(kind: str, shape, seed: int) -> torch.Tensor:
    return getattr(torch, kind)(tuple(shape), generator=torch.Generator().manual_seed(seed))


def with_recorded_weights(model: nn.Module) -> nn.Module:
    """The weights the recorded outputs were computed with (networks.json)."""
    model.load_state_dict(recorded_state(model, he))
    return model.eval()


def recorded_views(case: str, batch: int, double: bool = False):
    """Heatmaps, cameras and heatmap cells from pixels of a case: 160906_band1's rig, 1920x1080 in 240x128 in 60x32."""
    kind, shape, seed, views = CASES[case]["heatmaps"]
    hm = torch.stack([drawn(kind, shape, seed + view) for view in range(views)], 1)
    f, c, k, p, center = (recorded("project_panoptic_plain", f"camera_{name}").flatten(1) for name in "fckpT")
    K = torch.diag_embed(torch.cat([f, torch.ones(views, 1)], 1))
    K[:, :2, 2] = c
    dist = torch.cat([k[:, :2], p, k[:, 2:]], 1)
    rig = Cameras.make(K, recorded("project_panoptic_plain", "camera_R"), center=center, dist=dist, size=(1920.0, 1080.0))
    turn = torch.tensor(CASES[case].get("rotation_deg", [0.0] * batch))
    zoom = 1 + torch.tensor(CASES[case].get("scale_aug", [0.0] * batch))
    affine = crop_affine([960.0, 540.0], [2025.0, 1080.0], [240.0, 128.0], zoom, turn)  # 1080 of height are 128, the width is padded
    hm_from_img = compose(scale_affine([60, 32], [240, 128]), affine)[:, None].expand(-1, views, -1, -1)
    cams = rig.expand(batch, views)
    return (hm.double(), cams.to(torch.float64), hm_from_img.double()) if double else (hm, cams, hm_from_img)


# --- recorded numbers


@pytest.mark.parametrize("case", ["backbone_r18", "backbone_r50", "attention_r18", "v2v_1_1", "v2v_15_15"])
def test_recorded_networks(case):
    facts = CASES[case]
    if case.startswith("v2v"):
        model = V2VNet(facts["in"], facts["out"])
    elif case.startswith("attention"):
        model = AttentionNet(facts["num_joints"], facts["num_layers"])
    else:
        model = PoseResNet(facts["num_layers"], facts["num_joints"], "heatmap")
    assert [[key, list(value.shape)] for key, value in model.state_dict().items()] == [entry[:2] for entry in facts["state_dict"]]
    with torch.no_grad():
        output = with_recorded_weights(model)(drawn(*facts["input"]))
    expected = recorded(case, "output")
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_whole_networks_have_the_published_keys_and_sizes():
    facts = golden_json("selfpose3d", "ssv")["cases"]["full_model_keys"]
    with torch.device("meta"):
        attention = AttentionNet(15, 18)
        backbone = PoseResNet(50, 15, "heatmap")
    model = resolve(MODELS, "voxelpose", key="MODEL.NAME")(15, backbone=backbone, attention=attention, root=2)
    parts = {name: module.state_dict() for name, module in model.named_children()}
    assert {name: len(state) for name, state in parts.items()} == facts["prefix_counts"]
    assert {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in parts} == facts["params"]
    ours = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    assert len(ours) == facts["total"]
    assert [entry for entry in ours if entry[0].startswith(("pose_net", "root_net"))] == [e[:2] for e in facts["non_backbone_keys"]]


def test_recorded_soft_argmax_and_peaks():
    facts = CASES["soft_argmax"]
    joints = expected_position(drawn(*facts["input"]), (2000.0, 2000.0, 2000.0), facts["beta"])
    torch.testing.assert_close(joints, recorded("soft_argmax", "output"), rtol=0, atol=5e-3)
    peaks = find_peaks(recorded("nms", "input"), CASES["nms"]["max_num"], "reference")
    torch.testing.assert_close(peaks.score, recorded("nms", "values"))
    assert torch.equal(peaks.index, recorded("nms", "index"))


def test_recorded_proposals_and_their_people():
    facts = CASES["proposal_layer"]
    space = Space(facts["space_size"], facts["space_center"], facts["cube"])
    net = RootNet(1, 0, threshold=facts["threshold"], rule="reference")
    net.space = space  # its 10 x 6 voxels do not fit a V2V network
    found, evaluation, training = (
        net.proposals(recorded("proposal_layer", "root_cubes")), recorded("proposal_layer", "eval"), recorded("proposal_layer", "train")
    )  # fmt: skip
    torch.testing.assert_close(found.centers, evaluation[..., :3])
    torch.testing.assert_close(found.score, evaluation[..., 4])
    assert torch.equal(found.found, evaluation[..., 3] == 0) and found.found.any() and not found.found.all()
    people = torch.arange(10) < recorded("proposal_layer", "num_person")[:, None]
    match = match_people(found.centers, recorded("proposal_layer", "roots_3d"), people, facts["gt_radius_mm"])
    assert torch.equal(match, training[..., 3].long()) and (match >= 0).any()


@pytest.mark.parametrize("case", ["cpn_allhm", "cpn_roothm"])
def test_recorded_root_network(case):
    facts = CASES[case]
    joint = facts["root_index"] if facts["root_heatmap_only"] else None
    space = Space(facts["space_size"], facts["space_center"], facts["cube"])
    net = with_recorded_weights(RootNet(15 if joint is None else 1, joint, space, threshold=facts["threshold"], rule="reference"))
    assert [[key, list(value.shape)] for key, value in net.state_dict().items()] == [entry[:2] for entry in facts["state_dict"]]
    with torch.no_grad():
        found = net(*recorded_views(case, 2))
    rows, volume = recorded(case, "grid_centers"), recorded(case, "root_cubes")
    torch.testing.assert_close(found.volume, volume, rtol=1e-4, atol=1e-4 * volume.abs().max().item())
    torch.testing.assert_close(found.centers, rows[..., :3])
    torch.testing.assert_close(found.score, rows[..., 4], rtol=1e-4, atol=0)
    assert torch.equal(found.found, rows[..., 3] == 0)


@pytest.mark.parametrize(("name", "gain", "tolerance"), [("pred", 1.0, 0.05), ("pred_soft", 0.02, 0.005)])
def test_recorded_pose_network(name, gain, tolerance):
    """In float64: at a sharpness of 100, float32 noise in random scores moves the joints by 0.05 mm and more."""
    facts = CASES["pose_regression_net"]
    net = with_recorded_weights(PoseNet(15, facts["grid_size"], facts["cube"], facts["beta"], rule="reference")).double()
    rows = recorded("pose_regression_net", "centers")
    sample = (rows[:, 3] >= 0).nonzero()[:, 0]
    with torch.no_grad():
        net.v2v_net.output_layer.weight.mul_(gain)
        net.v2v_net.output_layer.bias.mul_(gain)
        poses = net(*recorded_views("pose_regression_net", 3, double=True), rows[sample, :3].double(), sample)
    expected = recorded("pose_regression_net", name)
    assert not expected[rows[:, 3] < 0].any()
    torch.testing.assert_close(poses, expected[sample].double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recorded_whole_network_with_losses(mode):
    facts = CASES["voxelpose_full"]
    space = Space(*PANOPTIC, facts["rootnet_cube"])
    model = VoxelPose(
        15, space, person_shape=facts["posenet_cube"], max_people=facts["max_people"], threshold=facts["threshold"], rule="reference"
    )
    with_recorded_weights(model).train(mode == "train")
    views = recorded_views("voxelpose_full", 2)
    base_target, base_weight = facts["targets_2d"][1], facts["weights_2d"][1]
    target = torch.stack([drawn("rand", (2, 15, 32, 60), base_target + v) for v in range(5)], 1)
    weight = torch.stack([(drawn("rand", (2, 15, 1), base_weight + v) > 0.3).float() for v in range(5)], 1)[..., 0]
    X, valid = recorded("voxelpose_full", "joints_3d"), recorded("voxelpose_full", "joints_3d_vis")[..., 0]
    people = torch.arange(facts["max_people"]) < recorded("voxelpose_full", "num_person")[:, None]
    with torch.no_grad():
        proposals = model.locate(*views)
        match = match_people(proposals.centers, X[:, :, 2], people)
        use = match >= 0 if mode == "train" else proposals.found
        # The published loop gives batch norm one candidate at a time.
        parts = [model.pose(*views, proposals.centers[:, m : m + 1], use[:, m : m + 1]) for m in range(facts["max_people"])]
        poses = torch.cat(parts, 1)
    rows, expected = recorded("voxelpose_full", f"{mode}_grid_centers"), recorded("voxelpose_full", f"{mode}_pred")
    torch.testing.assert_close(proposals.centers, rows[..., :3])
    torch.testing.assert_close(proposals.score, rows[..., 4], rtol=1e-4, atol=0)
    difference = (poses - expected[..., :3]).abs()  # mm; voxels of 286 mm and scores of random weights, see the test above
    assert difference.mean() < 0.02 and difference.max() < 1
    losses = [float(recorded("voxelpose_full", f"{mode}_loss_{name}")) for name in ("2d", "3d", "cord")]
    assert view_heatmap_loss(views[0], target, weight).item() == pytest.approx(losses[0], rel=1e-5)
    assert volume_loss(proposals.volume, drawn(*facts["targets_3d"])).item() == pytest.approx(losses[1], rel=1e-4)
    if mode == "train":
        assert torch.equal(match, rows[..., 3].long())
        assert pose_loss(poses, X, valid, match).item() == pytest.approx(losses[2], rel=1e-4)


def test_recorded_losses():
    a, b = (drawn("randn", (2, 5, 6, 7), seed) for seed in CASES["losses"]["mse_input"][2:])
    p, q = (drawn("randn", (2, 1, 5, 3), seed) * 100 for seed in CASES["losses"]["l1_input"][2:])
    weight, match = recorded("losses", "w")[..., 0], torch.zeros(2, 1, dtype=torch.long)
    found = {
        "mse": view_heatmap_loss(a, b), "mse_w": view_heatmap_loss(a, b, weight),
        "l1": pose_loss(p, q, torch.ones(2, 1, 5), match), "l1_w": pose_loss(p, q, weight[:, None], match),
    }  # fmt: skip
    for name, value in found.items():
        torch.testing.assert_close(value, recorded("losses", name))


# --- people


MAP = (64, 48)  # w, h


class MeanOf(nn.Module):
    """In the place of a V2V network: one volume, the mean of all."""

    def forward(self, volume):
        return volume.mean(1, keepdim=True)


def scene(batch=2, people=2, joints=3, views=4):
    """Rendered heatmaps of people around their roots, some views turned; joint 0 is the root."""
    generator = torch.Generator().manual_seed(3)
    roots = torch.tensor([[-700.0, -600.0, 900.0], [600.0, 500.0, 1000.0], [-600.0, 800.0, 950.0]])[:people]
    X = roots[None, :, None] + torch.randn(batch, people, joints, 3, generator=generator) * torch.tensor([150.0, 150.0, 250.0])
    X[:, :, 0] = roots + torch.randn(batch, people, 3, generator=generator) * 40
    cams = Cameras.stack([ring_of_cameras(views, distortion=True, dtype=torch.float32)] * batch)
    turn = torch.arange(batch * views).reshape(batch, views) % 3 * 8.0
    hm_from_img = compose(scale_affine(MAP, (256, 192)), crop_affine([500.0, 500.0], [1400.0, 1050.0], [256, 192], rot_deg=turn))
    x_hm = transform_points(hm_from_img, cams.project(X.flatten(1, 2)[:, None])[0]).unflatten(2, (people, joints))
    hm = render_heatmaps(x_hm, torch.ones(x_hm.shape[:-1]), MAP, sigma=1.5, cut=None).amax(2)
    return hm, cams, hm_from_img, X


SPACE = Space((3600.0, 3600.0, 1600.0), (0.0, 0.0, 1000.0), (36, 36, 16))


def small(joints=3, root=None, **options) -> VoxelPose:
    options = {"space": Space(SPACE.size, SPACE.center, (12, 12, 8)), "person_shape": (8, 8, 8), "max_people": 4} | options
    return VoxelPose(joints, root=root, **options)


def test_people_are_found_where_they_are():
    hm, cams, hm_from_img, X = scene()
    model = VoxelPose(3, SPACE, root=0, person_size=(1800.0,) * 3, person_shape=(32,) * 3, max_people=5, threshold=0.7, nms_radius_mm=300)
    model.root_net.v2v_net, model.pose_net.v2v_net = MeanOf(), nn.Identity()
    poses, proposals = model.eval()(hm, cams, hm_from_img)
    assert proposals.found.sum(1).tolist() == [2, 2] and proposals.found[:, :2].all()
    match = match_people(proposals.centers, X[:, :, 0], torch.ones(2, 2), radius_mm=150)
    assert torch.equal(match[:, :2].sort(1).values, torch.tensor([[0, 1], [0, 1]]))
    expected = X.gather(1, match[:, :2, None, None].expand(-1, -1, 3, 3))
    assert (poses[:, :2] - expected).norm(dim=-1).median() < 25  # mm; voxels of 58 mm, cells of more than 20 mm
    assert (poses[:, :2] - expected).norm(dim=-1).max() < 100
    assert not poses[:, 2:].any()


@pytest.mark.parametrize(("chunk", "passes"), [(None, [3]), (1, [1, 1, 1]), (2, [2, 1])])
def test_people_share_a_pass_and_do_not_depend_on_those_beside_them(chunk, passes):
    hm, cams, hm_from_img, X = scene(batch=3)
    model = with_recorded_weights(small(max_people_per_chunk=chunk))
    found = torch.tensor([[True, True], [False, True], [False, False]])
    seen = []
    model.pose_net.v2v_net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    with torch.no_grad():
        poses = model.pose(hm, cams, hm_from_img, X[:, :, 0], found)
        assert seen == passes
        alone = model.pose(hm[1:2], cams[1:2], hm_from_img[1:2], X[1:2, 1:, 0], torch.ones(1, 1))
    torch.testing.assert_close(poses[1:2, 1:], alone, rtol=0, atol=0.1)
    assert poses.shape == (3, 2, 3, 3) and not poses[~found].any() and poses[found].abs().sum((1, 2)).min() > 0
    assert not model.pose(hm, cams, hm_from_img, X[:, :, 0], torch.zeros(3, 2)).any()


def test_a_rig_that_moves_is_noticed():
    hm, cams, hm_from_img, _ = scene()
    model = with_recorded_weights(small())
    moved = Cameras.make(cams.K, cams.R, t=cams.t + 100, dist=cams.dist, size=cams.size)
    with torch.no_grad():
        volumes = [model.locate(hm, rig, hm_from_img).volume for rig in (cams, moved, cams)]
        model.train()
        for module in model.modules():  # statistics as in evaluation, sampling as in training
            if isinstance(module, nn.BatchNorm3d):
                module.eval()
        plain = [model.locate(hm, rig, hm_from_img).volume for rig in (cams, moved)]
    assert torch.equal(volumes[0], volumes[2]) and not torch.allclose(volumes[0], volumes[1], rtol=1e-2)
    for ours, other in zip(volumes, plain, strict=False):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_root_heatmap_may_be_one_joint_or_the_middle_of_several():
    hm = torch.rand(2, 3, 5, 4, 6)
    assert torch.equal(RootNet(1, 2).select(hm), hm[:, :, 2:3])
    torch.testing.assert_close(RootNet(1, (1, 3)).select(hm)[:, :, 0], (hm[:, :, 1] + hm[:, :, 3]) / 2)
    assert RootNet(5).select(hm) is hm


def test_gradients_reach_what_is_trained_and_nothing_else():
    hm, cams, hm_from_img, X = scene()
    backbone = PoseResNet(18, 3, "heatmap", deconv_filters=(8, 8, 8))
    model = small(root=0, backbone=backbone).train()
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    image = torch.rand(2, 4, 3, 192, 256)
    maps = model.heatmaps(image)
    assert maps.shape == hm.shape
    proposals = model.locate(hm, cams, hm_from_img)
    match = torch.tensor([[0, 1, -1, 1], [1, -1, -1, -1]])
    poses = model.pose(hm + 0.01 * maps, cams, hm_from_img, X[:, :, 0].repeat(1, 2, 1), match >= 0)
    loss = volume_loss(proposals.volume, torch.rand(2, 12, 12, 8)) + pose_loss(poses, X, torch.ones(2, 2, 3), match)
    loss.backward()
    silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Batch norm removes whatever the biases in front of it add; their gradients are rounding, or nothing.
    assert not [key for key in silent if not key.endswith(".bias")]
    assert not proposals.centers.requires_grad and not proposals.score.requires_grad

    model.zero_grad()
    model.freeze("backbone", "root_net")
    before = copy.deepcopy(model.state_dict())
    model.train()
    poses = model.pose(hm + 0.01 * model.heatmaps(image), cams, hm_from_img, X[:, :, 0], torch.ones(2, 2))
    model.locate(hm, cams, hm_from_img)
    poses.sum().backward()
    trained = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None}
    moved = {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert trained == moved == {"pose_net"}
    assert model.pose_net.training and not model.backbone.training and not model.root_net.v2v_net.front_layers.training
    with pytest.raises(ConfigError, match="attn.*backbone, pose_net, root_net"):
        model.freeze("attn")


def test_bfloat16_changes_little_and_positions_stay_in_float32():
    hm, cams, hm_from_img, X = scene()
    model = with_recorded_weights(small(beta=5.0))
    with torch.no_grad():
        plain = model.pose(hm, cams, hm_from_img, X[:, :, 0], torch.ones(2, 2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            proposals = model.locate(hm, cams, hm_from_img)
            half = model.pose(hm, cams, hm_from_img, X[:, :, 0], torch.ones(2, 2))
            volume = torch.randn(1, 1, 64, 64, 64)
            sharp = expected_position(volume.bfloat16(), (2000.0,) * 3)
    assert half.dtype == plain.dtype == proposals.centers.dtype == proposals.score.dtype == torch.float32
    assert (half - plain).abs().max() < 20 < 200 < (plain - X[:, :, :1]).abs().max()  # mm
    torch.testing.assert_close(sharp, expected_position(volume.bfloat16().float(), (2000.0,) * 3))


@pytest.mark.parametrize("joints", [1, 15, 17])
def test_a_network_may_start_from_what_it_is_given(joints):
    torch.manual_seed(0)
    volume = torch.rand(2, joints, 16, 12, 8) ** 20  # a few peaks
    scores = V2VNet(joints, joints, start="input")(volume)
    passed = min(joints, 16)  # channels of the first layer
    pairs = torch.stack([volume.transpose(0, 1)[:passed].flatten(1), scores.transpose(0, 1)[:passed].flatten(1)], 1)
    assert all(torch.corrcoef(pair)[0, 1] > 0.98 for pair in pairs.detach())
    net = PoseNet(joints, shape=(8, 8, 8), start="input").v2v_net
    net(volume[:, :, :8, :8]).square().sum().backward()  # what is silent at first still learns
    silent = [p for name, p in net.named_parameters() if name.endswith("res_branch.4.weight") and (p == 0).all()]
    assert len(silent) == 8 and any((p.grad != 0).any() for p in silent)


def test_attention_starts_undecided():
    weights = AttentionNet(4, deconv_filters=(16, 16, 16))(torch.rand(2, 3, 3, 64, 96))
    assert weights.shape == (2, 3, 4, 16, 24)
    assert (weights - 0.5).abs().max() < 0.02


# --- volumes


def test_expected_position_is_that_of_the_voxel_grid():
    volume = torch.randn(2, 3, 4, 6, 5, requires_grad=True)
    size = (900.0, 1500.0, 700.0)
    position = expected_position(volume, size, beta=2.0)
    grid = voxel_grid(torch.zeros(3), size, (4, 6, 5))
    probability = (2.0 * volume.flatten(2)).softmax(-1)
    torch.testing.assert_close(position, probability @ grid, rtol=0, atol=1e-3)
    (gradient,) = torch.autograd.grad(position.square().sum(), volume)
    (expected,) = torch.autograd.grad((probability @ grid).square().sum(), volume)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_space_has_its_end_points_on_the_faces():
    space = Space(*PANOPTIC)
    grid = space.grid()
    assert len(grid) == 80 * 80 * 20 and space.pitch == (8000 / 79, 8000 / 79, 2000 / 19)
    assert grid[0].tolist() == [-4000, -4500, -200] and grid[-1].tolist() == [4000, 3500, 1800]
    index = torch.cartesian_prod(*(torch.arange(n) for n in space.shape))
    torch.testing.assert_close(space.points(index), grid, rtol=0, atol=1e-3)


def test_peaks_below_zero_and_missing_ones():
    volume = torch.full((1, 6, 6, 6), -2.0)
    volume[0, 1, 2, 3] = -0.5
    volume[0, 4, 4, 0] = -0.25
    volume += torch.rand(volume.shape) * 1e-3
    peaks = find_peaks(volume, 2)
    assert peaks.index.tolist() == [[[4, 4, 0], [1, 2, 3]]] and peaks.real.all()
    published = find_peaks(volume, 2, "reference")
    assert not published.score.any() and published.real.all()  # voxels that are no peaks
    flat = find_peaks(torch.arange(64.0).reshape(1, 4, 4, 4), 3)
    assert flat.real.tolist() == [[True, False, False]] and flat.score.tolist() == [[63, 0, 0]]


def test_a_removed_point_removes_nobody():
    X = torch.tensor([[[0.0, 0, 0], [200, 0, 0], [400, 0, 0], [600, 0, 0]], [[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 900, 0]]])
    assert apart(X, 300.0).tolist() == [[True, False, True, False], [True, False, False, True]]
    assert apart(X, 100.0).tolist() == [[True] * 4, [True, False, False, True]]


def test_neighbours_of_a_higher_peak_make_room_for_others():
    volume = torch.zeros(1, 36, 36, 16)
    for x, score in ((4, 1.0), (6, 0.9), (8, 0.8), (20, 0.7), (30, 0.6)):  # pitch 103 mm
        volume[0, x, 10, 8] = score
    options = {"space": SPACE, "max_people": 3}
    near = RootNet(1, 0, **options).proposals(volume)
    apart_ones = RootNet(1, 0, **options, nms_radius_mm=300.0).proposals(volume)
    assert near.score[0].tolist() == pytest.approx([1.0, 0.9, 0.8]) and near.found.all()
    assert apart_ones.score[0].tolist() == pytest.approx([1.0, 0.8, 0.7]) and apart_ones.found.all()
    few = RootNet(1, 0, **options, nms_radius_mm=3000.0, threshold=0.65).proposals(volume)
    assert few.found.tolist() == [[True, False, False]]


# --- losses


def test_proposals_go_to_the_nearest_person_in_reach():
    centers = torch.tensor([[[0.0, 0, 0], [100, 0, 0], [1000, 0, 0], [500, 0, 0]]])
    roots = torch.tensor([[[0.0, 0, 0], [90, 0, 0], [1000, 0, 0]]])
    assert match_people(centers, roots, torch.tensor([[1, 1, 0]])).tolist() == [[0, 1, -1, 1]]
    assert match_people(centers, roots, torch.tensor([[1, 0, 0]])).tolist() == [[0, 0, -1, 0]]
    assert match_people(centers, roots[:, :0], torch.ones(1, 0)).tolist() == [[-1] * 4]


def test_pose_loss_without_matches_and_with_unknown_joints():
    pred = torch.rand(2, 3, 4, 3, requires_grad=True)
    target = torch.rand(2, 2, 4, 3)
    nobody = pose_loss(pred, target, torch.ones(2, 2, 4), torch.full((2, 3), -1))
    assert nobody.item() == 0 and nobody.requires_grad
    target[0, 1, 2] = torch.nan
    valid = torch.ones(2, 2, 4)
    valid[0, 1, 2] = 0
    match = torch.full((2, 3), -1)
    match[0, 2] = 1
    loss = pose_loss(pred, target, valid, match)
    expected = (pred[0, 2, [0, 1, 3]] - target[0, 1, [0, 1, 3]]).abs().sum() / 12
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert pred.grad.isfinite().all() and not pred.grad[1].any() and not pred.grad[0, :2].any()


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (GeometryError, "multiples of 4", lambda: V2VNet(1, 1)(torch.rand(1, 1, 8, 8, 6))),
        (GeometryError, r"\(B, 2, nx", lambda: V2VNet(2, 1)(torch.rand(1, 1, 8, 8, 8))),
        (ConfigError, "at least 1", lambda: V2VNet(0, 1)),
        (ConfigError, "not one of random, input", lambda: V2VNet(1, 1, "identity")),
        (ConfigError, "as many of both", lambda: V2VNet(15, 1, "input")),
        (ConfigError, "multiples of 4", lambda: RootNet(3, None, Space(*PANOPTIC, (80, 80, 18)))),
        (ConfigError, "one heatmap where a root joint", lambda: RootNet(3, 1)),
        (ConfigError, "exact, reference", lambda: PoseNet(3, rule="precise")),
        (ConfigError, "people per chunk", lambda: PoseNet(3, max_people_per_chunk=0)),
        (ConfigError, "no backbone", lambda: small().heatmaps(torch.rand(1, 2, 3, 32, 32))),
        (GeometryError, r"\(B, V, 3, h, w\)", lambda: small().locate(torch.rand(1, 2, 4, 8, 8), *scene(1)[1:3])),
        (GeometryError, "positive", lambda: Space((0.0, 1.0, 1.0))),
        (GeometryError, "exact, reference", lambda: find_peaks(torch.rand(1, 4, 4, 4), 1, "precise")),
        (GeometryError, "match_people", lambda: match_people(torch.rand(1, 2, 3), torch.rand(1, 2, 3), torch.ones(1, 3))),
        (GeometryError, "volume loss", lambda: volume_loss(torch.rand(1, 4, 4, 4), torch.rand(1, 4, 4, 8))),
        (GeometryError, "pose loss", lambda: pose_loss(*[torch.rand(1, 2, 3, 3)] * 2, torch.ones(1, 2, 3), torch.ones(1, 3))),
        (GeometryError, "heatmap loss", lambda: view_heatmap_loss(*[torch.rand(1, 2, 3, 4, 4)] * 2, torch.ones(2, 3))),
    ],
)
def test_what_does_not_fit_is_refused(error, message, make):
    with pytest.raises(error, match=message):
        make()
