"""VoxelPose's parts: heatmaps sampled in volumes, 3D networks, expected positions and whole frames, beside a plain formulation that takes
one person and one view at a time and computes everything anew."""

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.engine.distributed import has_fast_bf16
from lib.errors import RunError
from lib.geometry.camera import Cameras
from lib.geometry.crop import compose, crop_affine, scale_affine, transform_points
from lib.geometry.heatmap import render_heatmaps
from lib.geometry.volume import Space, expected_position
from lib.geometry.voxel import sample_people, sample_taps, voxel_grid, voxel_taps
from lib.models.freeze import freeze
from lib.models.pose_resnet import PoseResNet
from lib.models.v2v import V2VNet
from lib.models.voxelpose import VoxelPose
from scripts.benchmarks.harness import Contestant, PeakMemory, Report, Target, begin, race, same, timer

VIEWS, JOINTS = 5, 15
IMAGE, INPUT, MAP = (1920, 1080), (960, 512), (240, 128)  # width, height
SPACE = Space()
PERSON = (2000.0, 2000.0, 2000.0)
SMALL = 32  # voxels along a side, of the smaller published configuration
BETA = 100.0
PLAIN, OURS, EXACT, BF16 = "plain: one at a time", "ours", "ours, exact rule", "ours, bf16"


def run(args: argparse.Namespace) -> Report:
    """Race all parts of a frame.    -> harness.Report"""
    side = 4 * round(args.points ** (1 / 3) / 4)
    if side < 8 or args.people < 1:
        raise RunError(f"--voxels {args.points} --people {args.people}: expected a cube of at least 8x8x8 voxels and one person")
    report, device = begin("voxel", "items", args.device)
    if not has_fast_bf16(device):
        report.machine["bf16"] = "not in hardware, left out"
    with torch.no_grad():
        scene = Scene(args.people, side, device)
        sampling_of_the_space(report, args, scene)
        sampling_of_people(report, args, scene)
        positions(report, args, scene)
        if args.networks:
            networks(report, args, scene)
            frames(report, args, scene)
    return report


class Scene:
    """People in a ring of cameras, and the heatmaps of their joints."""

    def __init__(self, people: int, side: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        self.cams = ring().to(device)[None]  # (1, V)
        scale = max(IMAGE[0] / INPUT[0], IMAGE[1] / INPUT[1])
        patch_from_img = crop_affine([IMAGE[0] / 2, IMAGE[1] / 2], [INPUT[0] * scale, INPUT[1] * scale], INPUT)
        affine = compose(scale_affine(MAP, INPUT), patch_from_img).to(device)
        self.hm_from_img = affine.expand(1, VIEWS, 2, 3).contiguous()
        spread = torch.tensor([2500.0, 2500.0, 300.0])
        self.centers = ((torch.rand(people, 3, generator=generator) - 0.5) * spread + torch.tensor([0.0, 0.0, 900.0])).to(device)
        self.sample = torch.zeros(people, dtype=torch.long, device=device)
        joints = self.centers[:, None] + (torch.rand(people, JOINTS, 3, generator=generator).to(device) - 0.5) * 1200
        x_img, depth = self.cams[0].project(joints.flatten(0, 1))
        x_hm = transform_points(self.hm_from_img[0], x_img).unflatten(1, (people, JOINTS))
        weight = (depth > 0).float().unflatten(1, (people, JOINTS))
        self.hm = render_heatmaps(x_hm, weight, MAP, sigma=3.0, cut=None).amax(1)[None]  # (1, V, J, h, w)
        self.shape = (side,) * 3


def ring() -> Cameras:
    """Five cameras at the walls of a room of 6 m, at heights from 1.5 to 3.4 m, with lenses like those of CMU Panoptic."""
    angle = torch.arange(VIEWS) * (2 * math.pi / VIEWS) + 0.4
    center = torch.stack([2800 * angle.cos(), 2800 * angle.sin(), torch.linspace(1500, 3400, VIEWS)], -1)
    z = F.normalize(torch.tensor([0.0, 0.0, 900.0]) - center, dim=-1)
    x = F.normalize(torch.linalg.cross(z, torch.tensor([0.0, 0.0, 1.0]).expand_as(z)), dim=-1)
    K = [[1400.0, 0.0, 960.0], [0.0, 1400.0, 540.0], [0.0, 0.0, 1.0]]
    R = torch.stack([x, torch.linalg.cross(z, x), z], -2)
    return Cameras.make(K, R, center=center, dist=[-0.28, 0.18, 0.0004, -0.0003, 0.05], size=IMAGE)


def sampling_of_the_space(report: Report, args: argparse.Namespace, scene: Scene) -> None:
    """The whole space, by a rig that does not move."""
    hm, cams, affine = scene.hm, scene.cams, scene.hm_from_img
    center = torch.tensor([SPACE.center], device=hm.device)
    grid = voxel_grid(center, SPACE.size, SPACE.shape)
    taps = {rule: voxel_taps(cams, affine, grid, hm.shape[-2:], rule) for rule in ("reference", "exact")}

    def plain() -> Tensor:
        return plain_volume(hm[0], cams[0], affine[0], center[0], SPACE.size, SPACE.shape)

    same("space", sample_taps(hm, taps["reference"])[0], plain(), 2e-4)
    one = torch.zeros(1, dtype=torch.long, device=hm.device)
    moving = "ours, rig not known before"
    contestants = [
        Contestant(PLAIN, plain, len(grid[0])),
        Contestant(OURS, lambda: sample_taps(hm, taps["reference"]), len(grid[0])),
        Contestant(EXACT, lambda: sample_taps(hm, taps["exact"]), len(grid[0])),
        Contestant(moving, lambda: sample_people(hm, cams, affine, center, one, SPACE.size, SPACE.shape, "reference"), len(grid[0])),
    ]
    group = f"space, {'x'.join(map(str, SPACE.shape))} voxels"
    report.rows += race(group, contestants, args.rounds, timer(hm.device))
    report.aim(group, OURS, PLAIN, 8)


def sampling_of_people(report: Report, args: argparse.Namespace, scene: Scene) -> None:
    """The cubes around all people."""
    hm, cams, affine = scene.hm, scene.cams, scene.hm_from_img
    voxels = len(scene.centers) * math.prod(scene.shape)

    def plain() -> list[Tensor]:
        return [plain_volume(hm[0], cams[0], affine[0], center, PERSON, scene.shape) for center in scene.centers]

    def ours(rule: str) -> Tensor:
        return sample_people(hm, cams, affine, scene.centers, scene.sample, PERSON, scene.shape, rule)

    same("people", ours("reference"), torch.stack(plain()), 2e-4)
    contestants = [
        Contestant(PLAIN, plain, voxels),
        Contestant(OURS, lambda: ours("reference"), voxels),
        Contestant(EXACT, lambda: ours("exact"), voxels),
    ]
    group = f"{len(scene.centers)} people, {'x'.join(map(str, scene.shape))} voxels"
    report.rows += race(group, contestants, args.rounds, timer(hm.device))
    report.aim(group, OURS, PLAIN, 2)
    first = scene.centers[:1], scene.sample[:1]
    used = PeakMemory.of(lambda: sample_people(hm, cams, affine, *first, PERSON, scene.shape, "reference"))
    by_plain = PeakMemory.of(lambda: plain_volume(hm[0], cams[0], affine[0], first[0][0], PERSON, scene.shape))
    report.targets.append(Target(f"one of them: memory, {OURS} / {PLAIN}", used / by_plain, 0.6, at_most=True))


def positions(report: Report, args: argparse.Namespace, scene: Scene) -> None:
    """Expected positions of the joints in the cubes."""
    people = len(scene.centers)
    volume = torch.rand(people, JOINTS, *scene.shape, device=scene.hm.device)
    grid = voxel_grid(scene.centers, PERSON, scene.shape)

    def plain() -> list[Tensor]:
        return [plain_positions(volume[k : k + 1], grid[k : k + 1]) for k in range(people)]

    def ours() -> Tensor:
        return scene.centers[:, None] + expected_position(volume, PERSON, BETA)

    same("positions", ours(), torch.cat(plain()), 1e-4)
    group = f"expected positions, {people} people"
    contestants = [Contestant(PLAIN, plain, volume.numel()), Contestant(OURS, ours, volume.numel())]
    report.rows += race(group, contestants, args.rounds, timer(volume.device))
    report.aim(group, OURS, PLAIN, 3.5)


def networks(report: Report, args: argparse.Namespace, scene: Scene) -> None:
    """The 3D network on the cubes of all people, in both published sizes; ours is frozen, as predictors have it."""
    device, people = scene.hm.device, len(scene.centers)
    net = randomised(V2VNet(JOINTS, JOINTS)).to(device).eval()
    one_by_one = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    freeze(net)
    for shape in dict.fromkeys([(SMALL,) * 3, scene.shape]):
        volume = torch.rand(people, JOINTS, *shape, device=device)

        def plain(volume: Tensor = volume) -> list[Tensor]:
            return [plain_v2v(one_by_one, person) for person in volume.split(1)]

        def ours(amp: bool = False, volume: Tensor = volume) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                return net(volume)

        same("3D network", ours(), torch.cat(plain()), 1e-4)
        voxels = people * math.prod(shape)
        contestants = [Contestant(PLAIN, plain, voxels), Contestant(OURS, ours, voxels)]
        if has_fast_bf16(device):
            same("3D network, bf16", ours(True).float(), torch.cat(plain()), 0.05)
            contestants.append(Contestant(BF16, lambda ours=ours: ours(True), voxels))
        group = f"3D network, {people} people, {'x'.join(map(str, shape))} voxels"
        report.rows += race(group, contestants, args.rounds, timer(device))
        report.aim(group, OURS, PLAIN, 2.3 if shape[0] <= SMALL else 1.25)
        if has_fast_bf16(device) and shape[0] > SMALL:
            report.aim(group, BF16, PLAIN, 2.6)


def frames(report: Report, args: argparse.Namespace, scene: Scene) -> None:
    """Images of all views to poses of all people; ours is frozen, as predictors have it."""
    device, people = scene.hm.device, len(scene.centers)
    backbone = PoseResNet(layers=50, joints=JOINTS, head="heatmap")
    options = {"max_people": people, "threshold": -math.inf, "person_shape": scene.shape, "rule": "reference"}
    model = VoxelPose(JOINTS, SPACE, backbone, **options)
    model = randomised(model).to(device, memory_format=torch.preserve_format).eval()
    by_views = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    model.backbone.to(memory_format=torch.channels_last)
    freeze(model)
    image = torch.randn(1, VIEWS, 3, INPUT[1], INPUT[0], device=device)

    def plain() -> tuple[Tensor, Tensor]:
        return plain_frame(by_views, image[0], scene)

    def ours(amp: bool = False) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            poses, proposals = model(image, scene.cams, scene.hm_from_img)
        return proposals.volume, poses

    same("frame: scores of the space", ours()[0], plain()[0], 1e-3)
    pixels = VIEWS * math.prod(INPUT)
    contestants = [Contestant(PLAIN, plain, pixels), Contestant(OURS, ours, pixels)]
    if has_fast_bf16(device):
        contestants.append(Contestant(BF16, lambda: ours(True), pixels))
    group = f"{VIEWS} views of {people} people, input pixels"
    report.rows += race(group, contestants, args.rounds, timer(device))
    report.aim(group, OURS, PLAIN, 1.25)
    if has_fast_bf16(device):
        report.aim(group, BF16, PLAIN, 2.8)


def randomised(model: nn.Module) -> nn.Module:
    """Weights that keep the size of what passes through."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) * math.sqrt(2 / math.prod(value.shape[1:])))
        elif name.endswith("bias"):
            value.copy_(0.05 * torch.randn(value.shape, generator=generator))
    return model


# The plain formulations ------------------------------------------------------------------------------------


def plain_volume(hm: Tensor, cams: Cameras, hm_from_img: Tensor, center: Tensor, size, shape) -> Tensor:
    """The published rule for one grid, view by view.    hm (V, J, h, w), cams (V,), center (3,) -> (J, N)"""
    grid = voxel_grid(center, size, shape)
    h, w = hm.shape[-2:]
    total, count = torch.zeros(hm.shape[1], len(grid), device=hm.device), torch.zeros(len(grid), device=hm.device)
    for v in range(len(hm)):
        X_cam = (grid - cams.center[v]) @ cams.R[v].T
        x = X_cam[:, :2] / (X_cam[:, 2:] + 1e-5)
        k1, k2, p1, p2, k3 = cams.dist[v]
        r2 = (x**2).sum(1).clamp(max=1e10)
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        tangential = p1 * x[:, 1] + p2 * x[:, 0]
        x = x * (radial + 2 * tangential)[:, None] + torch.outer(r2, torch.stack([p2, p1]))
        x = x @ cams.K[v, :2, :2].T + cams.K[v, :2, 2]
        inside = ((x >= 0) & (x < cams.size[v])).all(1)
        x = x.clamp(-1, float(cams.size[v].max()))
        x = x @ hm_from_img[v, :, :2].T + hm_from_img[v, :, 2]
        place = (2 * x / torch.tensor([w - 1, h - 1], device=hm.device) - 1).clamp(-1.1, 1.1)
        value = F.grid_sample(hm[v : v + 1], place[None, None], align_corners=True)[0, :, 0]
        total = total + value * inside
        count = count + inside
    return (total / (count + 1e-6)).nan_to_num().clamp(0, 1)


def plain_positions(volume: Tensor, grid: Tensor) -> Tensor:
    """Softmax times world coordinates, summed.    volume (P, J, nx, ny, nz), grid (P, N, 3) -> (P, J, 3)"""
    share = (BETA * volume.flatten(2)).softmax(-1)
    return (share[..., None] * grid[:, None]).sum(2)


def plain_v2v(net: V2VNet, volume: Tensor) -> Tensor:
    return net.output_layer(net.encoder_decoder(net.front_layers(volume.contiguous())))


def plain_frame(model: VoxelPose, image: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
    """One view and one person at a time.    image (V, 3, H, W) -> scores (1, nx, ny, nz), poses (1, P, J, 3)"""
    cams, affine = scene.cams[0], scene.hm_from_img[0]
    hm = torch.cat([model.backbone(view) for view in image.split(1)])
    center = torch.tensor(SPACE.center, device=image.device)
    cube = plain_volume(hm, cams, affine, center, SPACE.size, SPACE.shape)
    scores = plain_v2v(model.root_net.v2v_net, cube.unflatten(1, SPACE.shape)[None])[:, 0]
    poses = []
    for root in model.root_net.proposals(scores).centers[0]:
        cube = plain_volume(hm, cams, affine, root, PERSON, scene.shape)
        volume = plain_v2v(model.pose_net.v2v_net, cube.unflatten(1, scene.shape)[None])
        poses.append(plain_positions(volume, voxel_grid(root[None], PERSON, scene.shape)))
    return scores, torch.stack(poses, 1)
