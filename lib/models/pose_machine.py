"""3D human pose machines (Wang et al., IEEE TPAMI 2020): an image's features over time -> 3D pose -> its own projection.

Four parts. `trunk`: features of each frame, with a 2D pose where there is a head for it. `lifter`: features of a clip -> coarse 3D poses,
by two convolutions and two LSTM layers. `regressor` (Psi_C of the paper): a coarse 3D pose -> a better one. `projector` (Psi_P): a 3D pose
-> 2D pose, learned, without any camera; corrections at test time go by it.

Poses inside are shares of a range: 3D ones of the table in `PoseNormalizer`, 2D ones of the crop's sides (0 .. 1 inside of it). In mm they
are relative to the root, in camera axes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.backbone.cpm import CPMTrunk, StageMaps
from lib.backbone.deconv import DeconvHead
from lib.backbone.resnet import ResNetTrunk
from lib.errors import ConfigError, DataError
from lib.geometry.heatmap import decode_heatmap
from lib.geometry.precision import no_autocast
from lib.models.clip_lstm import State, TwoLayers
from lib.skeleton import Skeleton, get

TRUNKS = ("cpm", "resnet")
HEADS_2D = ("none", "fc", "maps", "lstm")
TEMPORAL = ("stack", "causal")
FLAGS = ("exact", "published")
NORMS = ("none", "inert", "batch")
STARTS = ("he", "published")
INERT_EPS = 1e-3  # of the batch norm that the published correction inserts without training it

# Largest and smallest x, y, z of each joint in mm, of the release's poses, which were given the mean lengths of limbs.
_RANGES = {
    "r_hip": (134.0503767, 133.9510159, 134.044191, -134.0504526, -134.0204372, -134.0455632),
    "r_knee": (534.4017914, 510.6674502, 523.831242, -531.3019391, -448.2183034, -535.4227581),
    "r_ankle": (943.2597722, 925.5031591, 933.3296256, -932.1445901, -690.7065811, -902.3072893),
    "l_hip": (134.0496983, 134.019683, 134.0448088, -134.0496231, -133.9502778, -134.0434364),
    "l_knee": (521.2206959, 541.7633501, 532.0327058, -533.1179863, -449.1524477, -558.9435462),
    "l_ankle": (899.9904617, 939.3747057, 963.7824145, -899.0346505, -883.1448889, -893.8928409),
    "spine": (238.4541163, 170.3368636, 238.4144408, -238.450265, -238.4645742, -238.3990053),
    "thorax": (492.9152439, 355.8427075, 491.8987132, -491.8760997, -493.7237771, -491.8442302),
    "nose": (598.2568057, 471.3413488, 589.6111938, -597.0865669, -606.6265051, -597.7946617),
    "head": (662.3160333, 414.4086921, 670.7610016, -664.4183354, -708.7855593, -668.8092973),
    "l_shoulder": (593.4988721, 374.0012718, 552.8630804, -598.081346, -527.8841013, -557.1867664),
    "l_elbow": (761.2197541, 608.8698558, 716.8246952, -777.3882796, -763.3121467, -735.9983803),
    "l_wrist": (858.8554353, 847.488364, 863.7203645, -835.8338281, -1009.357244, -944.278308),
    "r_shoulder": (542.9548956, 371.0627854, 544.6682072, -542.5820837, -551.3336477, -531.0337492),
    "r_elbow": (752.6768122, 619.8500041, 708.803843, -750.0749411, -766.7950288, -719.105211),
    "r_wrist": (902.8836434, 865.8322079, 888.9240887, -888.7618652, -1015.279911, -954.9315418),
}  # fmt: skip
_REACH = 1000.0  # mm; range of joints that nothing is known about
_LEAST = 1.0  # mm; a narrower range would blow up what little there is


class PoseNormalizer(nn.Module):
    """Poses in mm relative to the root <-> shares of each coordinate's range, n = (v - low) / (high - low).

    The root is 0 on both sides, whatever is given for it: it has no range. The table is a buffer, so a checkpoint brings its own.

    Args:
        skeleton: of the poses. Its table is that of the release where that has all joints, else -1000 .. 1000 mm until `fit`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, skeleton: Skeleton | str = "h36m16"):
        super().__init__()
        skeleton = get(skeleton)
        self.root = skeleton.root_index
        published = skeleton.root == "pelvis" and set(skeleton.joints) <= {"pelvis", *_RANGES}
        ranges = _RANGES if published else dict.fromkeys(skeleton.joints, (_REACH,) * 3 + (-_REACH,) * 3)
        ranges = ranges | {skeleton.root: (0.0,) * 6}
        table = torch.tensor([ranges[joint] for joint in skeleton.joints])
        self.register_buffer("high", table[:, :3].clone())
        self.register_buffer("low", table[:, 3:].clone())

    @torch.no_grad()
    def fit(self, X_root: Tensor, valid: Tensor | None = None, margin: float = 0.0) -> "PoseNormalizer":
        """Take the ranges from poses; returns itself.

        A joint that is in no pose gets the widest range of the others, a coordinate that hardly changes one of 1 mm.

        Args:
            X_root: (N,J,3) mm, relative to the root.
            valid: (N,J); None = what is finite.
            margin: share of each range that is added on both sides.

        Raises:
            DataError: another number of joints, or no joint but the root in any pose.
        """
        if X_root.ndim != 3 or X_root.shape[1:] != self.low.shape:
            raise DataError(f"ranges of poses: found poses {tuple(X_root.shape)}, expected (N, {len(self.low)}, 3) mm")
        X = X_root.to(self.low.device, torch.float64)
        there = X.isfinite().all(-1) & (True if valid is None else valid.to(X.device).bool())
        there[:, self.root] = False
        seen = there.any(0)
        if not seen.any():
            raise DataError("ranges of poses: no pose has a joint besides the root; give labelled poses")
        low = torch.where(there[..., None], X, torch.inf).amin(0)
        high = torch.where(there[..., None], X, -torch.inf).amax(0)
        low = torch.where(seen[:, None], low, low[seen].amin(0))
        high = torch.where(seen[:, None], high, high[seen].amax(0))
        middle, half = (low + high) / 2, ((high - low) / 2 * (1 + 2 * margin)).clamp(min=_LEAST / 2)
        low, high = middle - half, middle + half
        low[self.root] = high[self.root] = 0
        self.low.copy_(low)
        self.high.copy_(high)
        return self

    def normalize(self, X_root: Tensor) -> Tensor:
        """X_root (..., J, 3) mm -> (..., J, 3) shares; 0 for the root"""
        extent = self._extent()
        return torch.where(extent > 0, (X_root - self.low) / torch.where(extent > 0, extent, 1.0), 0.0)

    def denormalize(self, p: Tensor) -> Tensor:
        """p (..., J, 3) shares -> (..., J, 3) mm; exactly 0 for the root"""
        extent = self._extent()
        return torch.where(extent > 0, p * extent + self.low, 0.0)

    def zero(self) -> Tensor:
        """The shares at which a joint lies at the root: (J,3)."""
        return self.normalize(torch.zeros_like(self.low))

    def _extent(self) -> Tensor:
        return self.high - self.low



class ResNetFeatures(ResNetTrunk):
    """A ResNet, deconvolutions if wanted, and a 3x3 convolution with batch norm to `channels`: image (B,3,H,W) -> (B,channels,h,w).

    All but that last layer (`squeeze`) has the names of a pose ResNet, so that ImageNet's weights and those of a trained 2D network fit.
    Without its norm, most of its units fall silent in the first steps.
    """

    def __init__(
        self,
        channels: int = 128,
        layers: int = 18,
        stages: int = 2,
        deconv_filters: Sequence[int] = (),
        deconv_kernels: Sequence[int] = (),
        deconv_bias: bool = False,
    ):
        super().__init__(layers, stages)
        self.deconv_layers = DeconvHead(self.out_channels, deconv_filters, deconv_kernels, deconv_bias)
        self.squeeze = nn.Conv2d(self.deconv_layers.out_channels, channels, 3, padding=1)
        self.squeeze_norm = nn.BatchNorm2d(channels)

    def cells(self, size: int) -> int:
        """Cells along a side of so many px."""
        for _ in range(self.stages + 1):
            size = -(-size // 2)
        return size * 2 ** sum(isinstance(layer, nn.ConvTranspose2d) for layer in self.deconv_layers)

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.squeeze_norm(self.squeeze(self.deconv_layers(self.features(image)))))


# ------------------------------------------------------------------------------------------------- features over time


class _Again(TwoLayers):
    """A further recurrent stage: the features and the pose of the stage before -> a new pose (the predecessor, CVPR 2017)."""

    def __init__(self, hidden: int, numbers: int, temporal: str, flags: str):
        super().__init__(hidden, hidden, temporal, flags)
        self.fc = nn.Linear(hidden + numbers, hidden)
        self.fc_final = nn.Linear(hidden, numbers)


class Lifter(TwoLayers):
    """Features of clips (B,T,C,h,w) -> poses (B,T,J,k) as shares: two convolutions, two that shrink the map, one vector, two LSTM layers.

    Frames that are not real get 0 and change nothing; a frame that starts a clip sees nothing of those before it, nor they of it.

    Args:
        joints: J.
        channels: C, of all convolutions too.
        cells: (h, w) of the features; at least 7 each.
        hidden: numbers of the vector and of both LSTM layers.
        temporal: "stack", as published: the second layer runs from the last frame to the first on what the first layer made, so each pose
            takes a whole clip; "causal", as in the paper's text: both run forwards, so that frames may come one by one (`continued`).
        flags: "exact"; or "published": the second layer of a stack resets where the release resets it, which is right for rows of one clip
            alone and lets neighbouring clips of a row see each other. For parity.
        num_stages: recurrent stages; each further one looks at the features again, with the pose of the one before.
        coordinates: k; 2 for a network that tells places in the image.

    Raises:
        ConfigError: an argument is none of the listed ones, or the features are too small.
    """

    def __init__(
        self,
        joints: int = 16,
        channels: int = 128,
        cells: tuple[int, int] = (46, 46),
        hidden: int = 1024,
        temporal: str = "stack",
        flags: str = "exact",
        num_stages: int = 1,
        coordinates: int = 3,
    ):
        _one_of(temporal, TEMPORAL, "temporal")
        _one_of(flags, FLAGS, "flags")
        if num_stages < 1 or hidden < 1 or joints < 1:
            raise ConfigError(f"pose machine: {num_stages} stages, {hidden} hidden numbers, {joints} joints; expected at least 1 each")
        super().__init__(hidden, hidden, temporal, flags)
        self.cells, self.joints, self.coordinates = tuple(cells), joints, coordinates
        small = [_halved(_halved(n)) for n in cells]
        if min(small) < 1:
            raise ConfigError(
                f"pose machine: features of {cells[1]} x {cells[0]} cells, expected at least 7 x 7; give larger crops (MODEL.IMAGE_SIZE) "
                "or a trunk with fewer stages"
            )
        self.special_conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.special_conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.fa_conv_1 = nn.Conv2d(channels, channels, 5, stride=2, padding=1)
        self.fa_conv_2 = nn.Conv2d(channels, channels, 5, stride=2, padding=1)
        self.fc = nn.Linear(channels * small[0] * small[1], hidden)
        self.fc_final = nn.Linear(hidden, joints * coordinates)
        self.stages = nn.ModuleList(_Again(hidden, joints * coordinates, temporal, flags) for _ in range(num_stages - 1))

    def vectors(self, feat: Tensor) -> Tensor:
        """What the first LSTM layer takes of each frame.   feat (B,T,C,h,w) -> (B,T,hidden)"""
        if feat.ndim != 5 or feat.shape[-2:] != self.cells:
            raise ConfigError(f"pose machine: features {tuple(feat.shape)}, expected (B, T, C, {self.cells[0]}, {self.cells[1]})")
        x = F.relu(self.special_conv_2(F.relu(self.special_conv_1(feat.flatten(0, 1)))))
        x = F.relu(self.fa_conv_2(F.relu(self.fa_conv_1(x))))
        return self.fc(x.flatten(1)).unflatten(0, feat.shape[:2])

    def from_vectors(
        self, x: Tensor, mask: Tensor | None = None, starts: Tensor | None = None, state: Sequence[Sequence[State]] | None = None
    ) -> tuple[list[Tensor], list[list[State]]]:
        """Poses (B,T,J,k) of every stage, and the states to go on with.   x (B,T,hidden)"""
        _check_clips(x, mask, starts)
        h, after = self.over_time(x, mask, starts, state and state[0])
        poses, states = [_exactly(self.fc_final, h)], [after]
        for k, stage in enumerate(self.stages, 1):
            h, after = stage.over_time(F.relu(stage.fc(torch.cat([x, poses[-1]], -1))), mask, starts, state and state[k])
            poses.append(poses[-1] + _exactly(stage.fc_final, h))
            states.append(after)
        shaped = [p.unflatten(-1, (self.joints, self.coordinates)) for p in poses]
        return (shaped if mask is None else [torch.where(mask.bool()[..., None, None], p, 0.0) for p in shaped]), states

    def forward(self, feat: Tensor, mask: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """Poses of the last stage.

        Args:
            feat: (B,T,C,h,w).
            mask: (B,T) frames that are there; None = all.
            starts: (B,T) frames that start a clip; None = each row is one clip. (The release's clip flags are the opposite.)

        Returns:
            (B,T,J,k).
        """
        return self.from_vectors(self.vectors(feat), mask, starts)[0][-1]

    def continued(
        self,
        feat: Tensor,
        state: list[list[State]] | None = None,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> tuple[Tensor, list[list[State]]]:
        """As `forward` on the next frames of B streams, of a causal network: poses, and the state for the frames after them.

        state: what the call before returned; None = the streams begin.

        Raises:
            ConfigError: the network is not causal.
        """
        if self.temporal != "causal":
            raise ConfigError("pose machine: temporal 'stack' needs whole clips; train with 'causal' to go on frame by frame")
        poses, after = self.from_vectors(self.vectors(feat), mask, starts, state)
        return poses[-1], after


# ---------------------------------------------------------------------------------------------- the pose and its projection


class Regressor3D(nn.Module):
    """Psi_C: a coarse 3D pose -> a better one.    (..., J, 3) -> (..., J, 3), shares"""

    def __init__(self, joints: int = 16, hidden: int = 1024):
        super().__init__()
        self.change_tmp = nn.Linear(joints * 3, hidden)
        self.change = nn.Linear(hidden, joints * 3)

    @no_autocast
    def forward(self, p: Tensor) -> Tensor:
        p = p.to(self.change.weight.dtype)
        return self.change(F.relu(self.change_tmp(p.flatten(-2)))).unflatten(-1, p.shape[-2:])


class Projector2D(nn.Module):
    """Psi_P: a 3D pose -> its 2D pose in the crop, without a camera.    (..., J, 3) -> (..., J, 2), shares

    Args:
        joints: J.
        hidden: width.
        norm: in front of each ReLU: "none", as the release trains it; "inert", the batch norm that its correction inserts and nobody
            trained, a factor of 0.9995; "batch", as the paper's text says.

    Raises:
        ConfigError: another norm.
    """

    def __init__(self, joints: int = 16, hidden: int = 1024, norm: str = "none"):
        super().__init__()
        self.norm = _one_of(norm, NORMS, "norm of the projector")
        self.project_1 = nn.Linear(joints * 3, hidden)
        self.project_2 = nn.Linear(hidden, hidden)
        self.project_3 = nn.Linear(hidden, hidden)
        self.project_2d = nn.Linear(hidden, joints * 2)
        if norm == "batch":
            self.bn = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(3))

    def _activated(self, x: Tensor, k: int) -> Tensor:
        if self.norm == "inert":
            x = x * (1 + INERT_EPS) ** -0.5
        elif self.norm == "batch":
            x = self.bn[k](x.flatten(0, -2)).reshape(x.shape) if x.ndim > 1 else self.bn[k](x[None])[0]
        return F.relu(x)

    @no_autocast
    def forward(self, p: Tensor) -> Tensor:
        p = p.to(self.project_2d.weight.dtype)
        first = self._activated(self.project_1(p.flatten(-2)), 0)
        last = self._activated(self.project_3(self._activated(self.project_2(first), 1)), 2)
        return self.project_2d(first + last).unflatten(-1, (p.shape[-2], 2))


def mask_joints(p: Tensor, probability: float | Tensor, fill: Tensor | float = 0.0, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Poses with joints left out at random, an augmentation.

    Args:
        p: (..., J, k).
        probability: that a joint is left out; one for all, or (J,).
        fill: what stands in its place, (J,k) or a number; the release takes 0, a joint at the end of its range, and
            `PoseNormalizer.zero` puts it at the root.
        u: (..., J) uniform numbers; None = drawn here.

    Returns:
        Poses (..., J, k) and the joints that stay (..., J). Left-out joints get no gradient.
    """
    u = torch.rand(p.shape[:-1], device=p.device) if u is None else u
    kept = u > torch.as_tensor(probability, device=p.device, dtype=u.dtype)
    return torch.where(kept[..., None], p, torch.as_tensor(fill, dtype=p.dtype, device=p.device)), kept


class Head2D(nn.Module):
    """Features -> 2D pose by two shrinking convolutions and two layers on the vector.    (B,C,h,w) -> (B,J,2), shares"""

    def __init__(self, joints: int, channels: int, cells: tuple[int, int], hidden: int):
        super().__init__()
        self.joints = joints
        self.conv_1 = nn.Conv2d(channels, channels, 5, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 5, stride=2, padding=1)
        h, w = (_halved(_halved(n)) for n in cells)
        self.fc = nn.Linear(channels * h * w, hidden)
        self.fc_2d = nn.Linear(hidden, joints * 2)

    def forward(self, feat: Tensor) -> Tensor:
        x = F.relu(self.conv_2(F.relu(self.conv_1(feat))))
        return _exactly(self.fc_2d, F.relu(self.fc(x.flatten(1)))).unflatten(1, (self.joints, 2))


class Poses(NamedTuple):
    """What a pose machine makes of clips; None = there is no such part.

    x: (B,T,J,2) shares of the crop's sides, the 2D pose seen.    p3d: (B,T,J,3) shares, coarse.
    regressed: (B,T,J,3) shares, by the regressor.    projected: (B,T,J,2), what the projector makes of that.
    """

    x: Tensor | None
    p3d: Tensor
    regressed: Tensor
    projected: Tensor


class PoseMachine(nn.Module):
    """Clips (B,T,3,H,W), normalised as the weights want it -> Poses.

    Names of weights are those of the release's layers behind the name of their part, as in `lifter.fa_conv_1.weight`.

    Args:
        skeleton: of the poses; h36m16 as published.
        image_size: width and height px of the crop, on which the vector of the lifter depends.
        trunk: "cpm", as published; or "resnet", of `layers` and `stages`, with deconvolutions where `deconv_filters` has some: the 2D
            network of this framework, which also trains on small crops (two stages and 64 x 64 px give 8 x 8 cells).
        channels: of the features.
        hidden: width of lifter, regressor and projector.
        temporal, flags, num_stages: see `Lifter`.
        head2d: what tells the 2D pose: "none"; "fc", two layers on the features; "maps", stages of heatmaps read at their maxima
            (`map_stages` of them); "lstm", a second network over time, as the release has for its own 2D poses.
        norm: of the projector, see `Projector2D`.
        joint_mask: probability that a joint is left out of what the regressor takes in training; a number, or one per joint name.
        mask_to: where a joint that is left out goes: "root", or "zero", the end of its range, as published.
        start: of the weights: "he", of He et al. and in the middle of the ranges; or "published", normal numbers of deviation 0.01.

    Raises:
        ConfigError: an argument is none of the listed ones, or crops are too small.
    """

    def __init__(
        self,
        skeleton: Skeleton | str = "h36m16",
        image_size: tuple[int, int] = (368, 368),
        trunk: str = "cpm",
        channels: int = 128,
        hidden: int = 1024,
        temporal: str = "stack",
        flags: str = "exact",
        num_stages: int = 1,
        head2d: str = "none",
        map_stages: int = 2,
        norm: str = "none",
        joint_mask: float | Mapping[str, float] = 0.0,
        mask_to: str = "root",
        start: str = "he",
        layers: int = 18,
        stages: int = 2,
        deconv_filters: Sequence[int] = (),
        deconv_kernels: Sequence[int] = (),
        deconv_bias: bool = False,
    ):
        super().__init__()
        _one_of(trunk, TRUNKS, "trunk")
        _one_of(head2d, HEADS_2D, "head2d")
        _one_of(mask_to, ("root", "zero"), "mask_to")
        _one_of(start, STARTS, "start")
        skeleton = get(skeleton)
        self.skeleton, self.joints, self.image_size = skeleton.name, skeleton.num, tuple(image_size)
        self.head, self.mask_to = head2d, mask_to
        if trunk == "cpm":
            self.trunk: CPMTrunk | ResNetFeatures = CPMTrunk(channels)
        else:
            self.trunk = ResNetFeatures(channels, layers, stages, deconv_filters, deconv_kernels, deconv_bias)
        cells = (self.trunk.cells(image_size[1]), self.trunk.cells(image_size[0]))
        lifter = {"channels": channels, "cells": cells, "hidden": hidden, "temporal": temporal, "flags": flags}
        self.lifter = Lifter(self.joints, num_stages=num_stages, **lifter)
        if head2d == "fc":
            self.head2d: nn.Module = Head2D(self.joints, channels, cells, hidden)
        elif head2d == "maps":
            self.head2d = StageMaps(self.joints, channels, map_stages)
        elif head2d == "lstm":
            self.head2d = Lifter(self.joints, coordinates=2, **lifter)
        self.regressor = Regressor3D(self.joints, hidden)
        self.projector = Projector2D(self.joints, hidden, norm)
        self.normalizer = PoseNormalizer(skeleton)
        named = joint_mask if isinstance(joint_mask, Mapping) else dict.fromkeys(skeleton.joints, joint_mask)
        if not all(0 <= chance <= 1 for chance in named.values()):
            raise ConfigError(f"pose machine: joint_mask {joint_mask}; expected probabilities, 0 to 1")
        chances = dict.fromkeys(skeleton.indices(skeleton.joints).tolist(), 0.0)
        chances |= dict(zip(skeleton.indices(named).tolist(), named.values(), strict=True))
        self.register_buffer("joint_mask", torch.tensor(list(chances.values())), persistent=False)
        self.hides_joints = any(named.values())
        self._start(start)

    def _start(self, start: str) -> None:
        pretrained = dict(self.trunk.named_modules()) if isinstance(self.trunk, ResNetFeatures) else {}
        fresh = [m for m in self.modules() if m not in pretrained.values() or m is getattr(self.trunk, "squeeze", None)]
        outputs = [m for name, m in self.named_modules() if name.endswith(("fc_final", "fc_2d", "change", "project_2d"))]
        maps = [m for name, m in self.named_modules() if name.rpartition(".")[2].startswith(("conv5_2", "Mconv7"))]
        again = [stage.fc_final for stage in self.lifter.stages]  # a change of the pose before
        for module in fresh:
            if isinstance(module, nn.Conv2d | nn.Linear):
                if start == "published" or module in outputs or module in maps:
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.constant_(module.bias, 0.5 if start == "he" and module in outputs and module not in again else 0.0)
            elif isinstance(module, nn.LSTM):
                bound = 0.01 if start == "published" else module.hidden_size**-0.5
                for name, parameter in module.named_parameters():
                    nn.init.uniform_(parameter, -bound, bound) if "weight" in name else nn.init.zeros_(parameter)

    # --- the parts

    def features(self, image: Tensor) -> Tensor:
        """image (B,T,3,H,W) -> (B,T,C,h,w).    Raises ConfigError for another size than the model's."""
        if image.ndim != 5 or (image.shape[-1], image.shape[-2]) != self.image_size:
            raise ConfigError(
                f"MODEL.IMAGE_SIZE: images {tuple(image.shape)}, but the pose machine takes (B, T, 3, {self.image_size[1]}, "
                f"{self.image_size[0]}); give crops of that size, stills as clips of one frame"
            )
        return self.trunk(image.flatten(0, 1)).unflatten(0, image.shape[:2])

    def maps(self, feat: Tensor) -> tuple[Tensor, ...]:
        """Heatmaps of each stage (B,T,J+1,h,w), of a model with head2d "maps".   feat (B,T,C,h,w)"""
        if self.head != "maps":
            raise ConfigError(f"pose machine: head2d {self.head!r} has no heatmaps; expected 'maps'")
        return tuple(maps.unflatten(0, feat.shape[:2]) for maps in self.head2d(feat.flatten(0, 1)))

    def locate(self, feat: Tensor, mask: Tensor | None = None, starts: Tensor | None = None) -> Tensor | None:
        """The 2D pose seen.   feat (B,T,C,h,w) -> (B,T,J,2) shares of the crop's sides; None without a head for it

        That of heatmaps has no gradient.
        """
        if self.head == "none":
            return None
        if self.head == "fc":
            return self.head2d(feat.flatten(0, 1)).unflatten(0, feat.shape[:2])
        if self.head == "lstm":
            return self.head2d(feat, mask, starts)
        cells, _ = decode_heatmap(self.maps(feat)[-1][..., : self.joints, :, :], "quarter")
        return cells / cells.new_tensor([feat.shape[-1], feat.shape[-2]])

    def see(self, image: Tensor, mask: Tensor | None = None, starts: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """image (B,T,3,H,W) -> features (B,T,C,h,w) and the 2D pose seen (B,T,J,2), see `locate`"""
        feat = self.features(image)
        return feat, self.locate(feat, mask, starts)

    def lift(self, feat: Tensor, mask: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
        """The coarse 3D pose, see `Lifter.forward`.   feat (B,T,C,h,w), mask and starts (B,T) -> (B,T,J,3) shares"""
        return self.lifter(feat, mask, starts)

    def regress(self, p3d: Tensor) -> Tensor:
        """Psi_C; in training with joints left out at random (`joint_mask`).   p3d (..., J, 3) -> (..., J, 3) shares"""
        if self.training and self.hides_joints:
            fill = self.normalizer.zero() if self.mask_to == "root" else 0.0
            p3d, _ = mask_joints(p3d, self.joint_mask, fill)
        return self.regressor(p3d)

    def project(self, p3d: Tensor) -> Tensor:
        """Psi_P.   p3d (..., J, 3) shares -> (..., J, 2) shares of the crop's sides"""
        return self.projector(p3d)

    def forward(self, image: Tensor, mask: Tensor | None = None, starts: Tensor | None = None) -> Poses:
        """image (B,T,3,H,W), mask (B,T) real frames, starts (B,T) frames that start a clip -> Poses"""
        feat, x = self.see(image, mask, starts)
        p3d = self.lift(feat, mask, starts)
        regressed = self.regress(p3d)
        return Poses(x, p3d, regressed, self.project(regressed))


@no_autocast
def _exactly(layer: nn.Linear, x: Tensor) -> Tensor:
    """A last layer out of autocast's reach: a share in bfloat16 would come in steps of several mm."""
    return layer(x.to(layer.weight.dtype))


def _halved(cells: int) -> int:
    """Cells behind a 5x5 convolution of stride 2 with a border of 1."""
    return (cells + 2 - 5) // 2 + 1


def _one_of(value: str, known: Sequence[str], what: str) -> str:
    if value not in known:
        raise ConfigError(f"pose machine: {what} {value!r} is not one of {', '.join(known)}")
    return value


def _check_clips(x: Tensor, mask: Tensor | None, starts: Tensor | None) -> None:
    for name, value in (("mask", mask), ("starts", starts)):
        if value is not None and value.shape != x.shape[:2]:
            raise ConfigError(f"pose machine: {name} {tuple(value.shape)} of clips {tuple(x.shape[:2])}; expected the same (B, T)")
