"""The network of 2D + 3D fusion: ResNet, deconvolutions, one heatmap and one depth map per joint.

Zhou et al., "Towards 3D Human Pose Estimation in the Wild: a Weakly-supervised Approach", ICCV 2017, in the form of the authors' later
release: instead of regressing a depth vector it reads each joint's depth from a map, at the joint's place in the image.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lib.backbone.deconv import DeconvHead
from lib.backbone.resnet import ResNetTrunk
from lib.errors import ConfigError


class Maps(NamedTuple):
    """What a fusion network returns.

    hm: heatmaps (B,J,h,w), those of the last stage.
    depth: depth relative to the root joint, as maps (B,J,h,w) in sides of the crop, to be read where the joint is, or as numbers (B,J) in
        halves of it, see `Hourglass`; None = a 2D network.
    stacks: the heatmaps of all stages, each with its own loss; `hm` is the last.
    """

    hm: Tensor
    depth: Tensor | None
    stacks: tuple[Tensor, ...]


class FusionNet(ResNetTrunk):
    """Image (B,3,H,W), normalised as the weights want it -> Maps of h = H/4, w = W/4 (four stages, three deconvolutions).

    The state dict has the names, shapes and order of the release's files.

    Args:
        joints: J, number of joints.
        layers: 18, 34, 50, 101 or 152.
        depth: with depth maps; without, a 2D network, as the first stage of training may be.
        deconv_filters, deconv_kernels, deconv_bias: the deconvolution layers.
        stages: stages of the ResNet; 4 as published, 3 for crops below about 128 px, with one deconvolution less.

    Raises:
        ConfigError: an argument is none of the listed ones.
    """

    def __init__(
        self,
        joints: int = 16,
        layers: int = 50,
        depth: bool = True,
        deconv_filters: Sequence[int] = (256, 256, 256),
        deconv_kernels: Sequence[int] = (4, 4, 4),
        deconv_bias: bool = False,
        stages: int = 4,
    ):
        super().__init__(layers, stages)
        if joints < 1:
            raise ConfigError(f"MODEL.NUM_JOINTS: found {joints}; expected at least 1")
        self.joints = joints
        self.deconv_layers = DeconvHead(self.out_channels, deconv_filters, deconv_kernels, deconv_bias)
        self.depth = self._head() if depth else None  # before hm: the release orders its heads by name
        self.hm = self._head()

    def _head(self) -> nn.Conv2d:
        head = nn.Conv2d(self.deconv_layers.out_channels, self.joints, 1)
        nn.init.normal_(head.weight, std=0.001)
        nn.init.zeros_(head.bias)
        return head

    def forward(self, image: Tensor) -> Maps:
        """Heatmaps and depth maps.    image (B,3,H,W)"""
        x = self.deconv_layers(self.features(image))
        hm = self.hm(x)
        return Maps(hm, None if self.depth is None else self.depth(x), (hm,))
