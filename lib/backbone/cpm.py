"""Convolutional pose machines (Wei et al., CVPR 2016), named as in their release: features of pictures, and heatmaps in stages."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.geometry.heatmap import render_heatmaps

_CENTER = 21 / 368  # sigma of the map of the crop's centre, in sides of the crop
# names, output channels; "pool" halves
_LAYERS = (
    ("conv1_1", 64), ("conv1_2", 64), "pool", ("conv2_1", 128), ("conv2_2", 128), "pool",
    ("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256), ("conv3_4", 256), "pool", ("conv4_1", 512), ("conv4_2", 512),
    ("conv4_3_CPM", 256), ("conv4_4_CPM", 256), ("conv4_5_CPM", 256), ("conv4_6_CPM", 256),
)  # fmt: skip


class CPMTrunk(nn.Module):
    """The first layers of a convolutional pose machine: image (B,3,H,W) -> (B,`channels`,H/8,W/8).

    Pictures are BGR, (x - 128) / 256, where weights of the release are used.
    """

    def __init__(self, channels: int = 128):
        super().__init__()
        layers, width = [], 3
        for layer in (*_LAYERS, ("conv4_7_CPM", channels)):
            if layer == "pool":
                layers.append("pool")
                continue
            name, out = layer
            self.add_module(name, nn.Conv2d(width, out, 3, padding=1))
            layers.append(name)
            width = out
        self.order = tuple(layers)

    @staticmethod
    def cells(size: int) -> int:
        """Cells along a side of so many px."""
        return size // 8

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for name in self.order:
            x = F.max_pool2d(x, 2) if name == "pool" else F.relu(self.get_submodule(name)(x))
        return x


class StageMaps(nn.Module):
    """Heatmaps in stages: the first from the features, each further one from the features, the maps before it and the crop's centre.

    features (B,C,h,w) -> a tuple of maps (B,J+1,h,w), the last of each is the background

    Args:
        joints: J.
        channels: C of the features.
        stages: at least 1; 2 as published for the 3D pose machine.

    Raises:
        ConfigError: no stage.
    """

    def __init__(self, joints: int = 14, channels: int = 128, stages: int = 2):
        super().__init__()
        if stages < 1:
            raise ConfigError(f"heatmaps in stages: {stages} stages; expected at least 1")
        self.joints, self.stages = joints, stages
        maps = joints + 1
        self.conv5_1_CPM = nn.Conv2d(channels, 512, 1)
        self.conv5_2_CPM = nn.Conv2d(512, maps, 1)
        for stage in range(2, stages + 1):
            width = maps + channels + 1
            for k in range(1, 8):
                out, kernel = (maps if k == 7 else 128), (7 if k <= 5 else 1)
                self.add_module(f"Mconv{k}_stage{stage}", nn.Conv2d(width, out, kernel, padding=kernel // 2))
                width = out

    def forward(self, feat: Tensor) -> tuple[Tensor, ...]:
        maps = [self.conv5_2_CPM(F.relu(self.conv5_1_CPM(feat)))]
        if self.stages == 1:
            return tuple(maps)
        h, w = feat.shape[-2:]
        middle = feat.new_tensor([[(w - 1) / 2, (h - 1) / 2]])
        center = render_heatmaps(middle, middle.new_ones(1), (w, h), _CENTER * max(w, h), cut=None)
        center = center.to(feat.dtype).expand(len(feat), 1, h, w)
        for stage in range(2, self.stages + 1):
            x = torch.cat([maps[-1], feat, center], 1)
            for k in range(1, 8):
                x = self.get_submodule(f"Mconv{k}_stage{stage}")(x)
                x = F.relu(x) if k < 7 else x
            maps.append(x)
        return tuple(maps)
