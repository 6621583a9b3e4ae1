"""VoxelPose (Tu et al., ECCV 2020): 3D poses of several people from calibrated views, through volumes of the space they share.

Three steps. `VoxelPose.heatmaps`: 2D joint heatmaps of each view. `VoxelPose.locate`: the heatmaps meet in a coarse grid over the whole
space, where a 3D network finds roots of people. `VoxelPose.pose`: they meet again in a fine cube around each root, where another 3D
network finds the joints. SelfPose3d (Srivastav et al., CVPR 2024) trains the same network without 3D labels; only its attention network
(lib/models/attention.py) is new, and inference does not need it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.errors import ConfigError, GeometryError
from lib.geometry.camera import Cameras
from lib.geometry.volume import Space, apart, expected_position, find_peaks
from lib.geometry.voxel import RULES, TapsCache, sample_people, sample_taps
from lib.models.v2v import STRIDE, V2VNet

CANDIDATES = 4  # times as many peaks are looked at as people kept, when those near a higher one are dropped


class Proposals(NamedTuple):
    """Where people may be, the most probable first."""

    centers: Tensor  # (B, M, 3) world mm
    score: Tensor  # (B, M) height of the peak
    found: Tensor  # (B, M) bool: above the threshold
    volume: Tensor  # (B, nx, ny, nz) scores of the whole space


class RootNet(nn.Module):
    """Finds roots of people in the space.

    Args:
        joints_in: heatmaps per view that the network takes: all J, or 1.
        joint: which heatmap that one is, or several whose mean is taken; None = all feed the network.
        space: the grid; each side a multiple of 4 voxels.
        max_people: M.
        threshold: score above which a proposal counts as found.
        nms_radius_mm: proposals nearer than this to a higher one are dropped; 0 keeps all, as published.
        rule: "exact" or "reference", see `lib.geometry.voxel.unproject_heatmaps` and `find_peaks`.
        start: of the weights, "random" or "input", see V2VNet; from the input only where one heatmap feeds the network.

    In evaluation it remembers where the voxels of a rig read its heatmaps, so a rig that does not move costs that work once.

    Raises:
        ConfigError: arguments that do not fit together.
    """

    def __init__(
        self,
        joints_in: int,
        joint: int | Sequence[int] | None = None,
        space: Space | None = None,
        max_people: int = 10,
        threshold: float = 0.3,
        nms_radius_mm: float = 0.0,
        rule: str = "exact",
        start: str = "random",
    ):
        super().__init__()
        space = space or Space()
        _check_options(space.shape, rule)
        if (joint is not None and joints_in != 1) or max_people < 1:
            raise ConfigError(
                f"RootNet: {joints_in} heatmaps with root joint {joint}, {max_people} people; expected one heatmap where a root joint is "
                "named, and at least one person"
            )
        self.joint = None if joint is None else [joint] if isinstance(joint, int) else list(joint)
        self.space, self.max_people, self.threshold = space, max_people, threshold
        self.nms_radius_mm, self.rule = nms_radius_mm, rule
        self.v2v_net = V2VNet(joints_in, 1, start if joints_in == 1 else "random")
        self._rigs = TapsCache()

    def select(self, hm: Tensor) -> Tensor:
        """The heatmaps that feed the network.   hm (..., J, h, w) -> (..., C, h, w), C = 1 or J"""
        return hm if self.joint is None else hm[..., self.joint, :, :].mean(-3, keepdim=True)

    def volume(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor) -> Tensor:
        """Scores of the whole space, of heatmaps already selected.

        hm (B,V,C,h,w), cams (B,V), hm_from_img (B,V,2,3) -> (B,nx,ny,nz)
        """
        size, center, shape = self.space.size, self.space.center, self.space.shape
        if self.training:  # affines are drawn anew for each batch
            centers, sample = hm_from_img.new_tensor([center] * len(hm)), torch.arange(len(hm), device=hm.device)
            cube = sample_people(hm, cams, hm_from_img, centers, sample, size, shape, self.rule)
        else:
            cube = sample_taps(hm, self._rigs.get(cams, hm_from_img, size, center, shape, tuple(hm.shape[-2:]), self.rule))
        return self.v2v_net(_grid_values(cube, shape))[:, 0]

    def proposals(self, volume: Tensor) -> Proposals:
        """The highest peaks of a volume of scores, without gradient.   volume (B,nx,ny,nz) -> centers (B,M,3), score, found (B,M)"""
        wanted = self.max_people * (CANDIDATES if self.nms_radius_mm > 0 else 1)
        index, score, found = find_peaks(volume, wanted, self.rule)
        centers = self.space.points(index)
        found = found & (score > self.threshold)
        if self.nms_radius_mm > 0:
            kept = apart(centers, self.nms_radius_mm)
            order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, : self.max_people]
            found, score = (found & kept).gather(1, order), score.gather(1, order)
            centers = centers.gather(1, order[..., None].expand(-1, -1, 3))
        return Proposals(centers, score, found, volume)

    def forward(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor) -> Proposals:
        """hm (B,V,J,h,w) of all joints, cams (B,V), hm_from_img (B,V,2,3) -> Proposals"""
        return self.proposals(self.volume(self.select(hm), cams, hm_from_img))


class PoseNet(nn.Module):
    """Finds the joints of one person in a cube around its root; many people at once.

    Args:
        joints: J.
        size, shape: of the cube, mm and voxels along x, y, z; each side a multiple of 4 voxels.
        beta: sharpness of the soft-argmax.
        max_people_per_chunk: people that go through the network together, which bounds the memory; None = all. In training batch norm
            sees one chunk at a time.
        rule: "exact" or "reference", see `lib.geometry.voxel.unproject_heatmaps`.
        start: of the weights, "random" or "input", see V2VNet.

    Raises:
        ConfigError: a side that is no multiple of 4, an unknown rule, or chunks of nobody.
    """

    def __init__(
        self,
        joints: int,
        size: Sequence[float] = (2000.0, 2000.0, 2000.0),
        shape: Sequence[int] = (64, 64, 64),
        beta: float = 100.0,
        max_people_per_chunk: int | None = None,
        rule: str = "exact",
        start: str = "random",
    ):
        super().__init__()
        _check_options(shape, rule)
        if max_people_per_chunk is not None and max_people_per_chunk < 1:
            raise ConfigError(f"PoseNet: {max_people_per_chunk} people per chunk, expected at least 1, or none for all at once")
        self.joints, self.size, self.shape = joints, tuple(size), tuple(shape)
        self.beta, self.max_people_per_chunk, self.rule = beta, max_people_per_chunk, rule
        self.v2v_net = V2VNet(joints, joints, start)

    def forward(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor, centers: Tensor, sample: Tensor) -> Tensor:
        """Poses of P people, wherever in the batch they are.

        hm (B,V,J,h,w), cams (B,V), hm_from_img (B,V,2,3), centers (P,3) world mm, sample (P,) row of the batch -> (P,J,3) world mm

        Gradients reach the weights and the heatmaps, not the centres.
        """
        if not len(centers):
            return centers.new_zeros(0, self.joints, 3)
        centers = centers.detach()
        chunk = self.max_people_per_chunk or len(centers)
        poses = [
            self._poses(hm, cams, hm_from_img, some, rows)
            for some, rows in zip(centers.split(chunk), sample.split(chunk), strict=True)
        ]
        return torch.cat(poses)

    def _poses(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor, centers: Tensor, sample: Tensor) -> Tensor:
        cube = sample_people(hm, cams, hm_from_img, centers, sample, self.size, self.shape, self.rule)
        scores = self.v2v_net(_grid_values(cube, self.shape))
        return centers[:, None] + expected_position(scores, self.size, self.beta)


class VoxelPose(nn.Module):
    """The whole network; `forward` is inference, training calls the three steps.

    State dicts of its parts have the names of VoxelPose's and SelfPose3d's: backbone, attn, pose_net, root_net.

    Args:
        joints: J.
        space: where people may be.
        backbone: images (N,3,H,W) -> heatmaps (N,J,h,w); None where heatmaps are given, as for Shelf and Campus.
        attention: SelfPose3d's attention network, only for its training; it is here to be saved with the rest.
        root: heatmap of the root net alone: an index, or several; None = all joints, as VoxelPose has it.
        person_size, person_shape: cube around a person, mm and voxels.
        max_people, threshold, nms_radius_mm: see RootNet.    beta, max_people_per_chunk: see PoseNet.
        rule: "exact", or "reference" for the numbers of the published code, faults included; see `unproject_heatmaps`, `find_peaks`.
        start: of the weights of both 3D networks, see RootNet and PoseNet.
        in_space: False leaves both out: heatmaps alone, as in the first stage of training.

    Raises:
        ConfigError: see RootNet and PoseNet.
    """

    def __init__(
        self,
        joints: int = 15,
        space: Space | None = None,
        backbone: nn.Module | None = None,
        attention: nn.Module | None = None,
        root: int | Sequence[int] | None = None,
        person_size: Sequence[float] = (2000.0, 2000.0, 2000.0),
        person_shape: Sequence[int] = (64, 64, 64),
        max_people: int = 10,
        threshold: float = 0.3,
        nms_radius_mm: float = 0.0,
        beta: float = 100.0,
        max_people_per_chunk: int | None = None,
        rule: str = "exact",
        start: str = "random",
        in_space: bool = True,
    ):
        super().__init__()
        self.joints = joints
        self.frozen: tuple[str, ...] = ()
        # In the order of published state dicts.
        self.backbone = backbone
        self.attn = attention
        self.pose_net = self.root_net = None
        if in_space:
            self.pose_net = PoseNet(joints, person_size, person_shape, beta, max_people_per_chunk, rule, start)
            self.root_net = RootNet(joints if root is None else 1, root, space, max_people, threshold, nms_radius_mm, rule, start)

    def freeze(self, *parts: str) -> None:
        """These parts are not trained: no gradient, and batch norm as in evaluation even in train mode.

        Raises:
            ConfigError: the network has no such part.
        """
        for part in parts:
            module = getattr(self, part, None)
            if not isinstance(module, nn.Module):
                known = ", ".join(name for name, _ in self.named_children())
                raise ConfigError(f"VoxelPose.freeze: {part!r} is not one of {known}")
            module.requires_grad_(False)
        self.frozen = tuple(dict.fromkeys((*self.frozen, *parts)))
        self.train(self.training)

    def train(self, mode: bool = True) -> "VoxelPose":
        super().train(mode)
        for part in self.frozen:
            getattr(self, part).eval()
        return self

    def heatmaps(self, image: Tensor) -> Tensor:
        """image (...,3,H,W) normalised, such as (B,V,3,H,W) -> (...,J,h,w), all in one batch

        Raises:
            ConfigError: the network has no backbone.
        """
        if self.backbone is None:
            raise ConfigError("VoxelPose has no backbone: give heatmaps instead of images, or a network with one")
        return self.backbone(image.flatten(0, -4)).unflatten(0, image.shape[:-3])

    def locate(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor) -> Proposals:
        """hm (B,V,J,h,w), cams (B,V), hm_from_img (B,V,2,3) heatmap cells from pixels -> Proposals of M people a sample"""
        self._check(hm, cams, hm_from_img)
        return self.root_net(hm, cams, hm_from_img)

    def pose(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor, centers: Tensor, found: Tensor) -> Tensor:
        """Joints of the people that were found; zeros in the other rows.

        hm (B,V,J,h,w), cams (B,V), hm_from_img (B,V,2,3), centers (B,M,3) mm, found (B,M) -> (B,M,J,3) world mm

        The people of all samples are one batch. In training, pass those matched to a true person (`match_people`) as found.
        """
        self._check(hm, cams, hm_from_img)
        sample, place = found.bool().nonzero(as_tuple=True)
        people = self.pose_net(hm, cams, hm_from_img, centers[sample, place], sample)
        return people.new_zeros(*found.shape, self.joints, 3).index_put((sample, place), people)

    def forward(self, image: Tensor, cams: Cameras, hm_from_img: Tensor) -> tuple[Tensor, Proposals]:
        """image (B,V,3,H,W), or heatmaps (B,V,J,h,w) without a backbone -> poses (B,M,J,3) world mm, Proposals"""
        hm = image if self.backbone is None else self.heatmaps(image)
        proposals = self.locate(hm, cams, hm_from_img)
        return self.pose(hm, cams, hm_from_img, proposals.centers, proposals.found), proposals

    def _check(self, hm: Tensor, cams: Cameras, hm_from_img: Tensor) -> None:
        if hm.ndim != 5 or hm.shape[2] != self.joints or cams.shape != hm.shape[:2] or hm_from_img.shape != (*hm.shape[:2], 2, 3):
            raise GeometryError(
                f"VoxelPose: heatmaps {tuple(hm.shape)}, cameras {tuple(cams.shape)}, hm_from_img {tuple(hm_from_img.shape)}; expected "
                f"(B, V, {self.joints}, h, w), (B, V), (B, V, 2, 3)"
            )


def _grid_values(cube: Tensor, shape: Sequence[int]) -> Tensor:
    """What V2V networks take: mean heatmaps in 0..1.   cube (B,J,N) -> (B,J,nx,ny,nz)"""
    return cube.clamp(0, 1).unflatten(2, tuple(shape))


def _check_options(shape: Sequence[int], rule: str) -> None:
    if len(shape) != 3 or any(n < STRIDE or n % STRIDE for n in shape):
        raise ConfigError(f"VoxelPose: a grid of {tuple(shape)} voxels; expected three multiples of {STRIDE}")
    if rule not in RULES:
        raise ConfigError(f"VoxelPose: rule {rule!r} is not one of {', '.join(RULES)}")
