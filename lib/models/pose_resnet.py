"""The network of EpipolarPose (Kocabas et al., CVPR 2019): ResNet, three deconvolutions, and one of three heads."""

from collections.abc import Sequence

from torch import Tensor, nn

from lib.backbone.deconv import DeconvHead
from lib.backbone.resnet import ResNetTrunk
from lib.errors import ConfigError

HEADS = ("volume", "heatmap", "heatmap_depth")


class PoseResNet(ResNetTrunk):
    """Image (B,3,H,W), normalised RGB -> joint maps of size h = H/4, w = W/4 (four stages, three deconvolutions).

    The state dict has the names and shapes of EpipolarPose's and Simple Baselines' files.

    Args:
        layers: 18, 34, 50, 101 or 152.
        joints: J, number of joints.
        head: what forward returns:
            "volume": logits (B,J,D,h,w), to be read by a soft-argmax over x, y and depth;
            "heatmap": logits (B,J,h,w);
            "heatmap_depth": logits (B,J,h,w) and, from the pooled trunk features, depth logits (B,J,D).
        depth_bins: D, number of depth bins.
        deconv_filters, deconv_kernels, deconv_bias: the deconvolution layers.
        final_kernel: kernel of the last convolution, 1 or 3.
        stages: stages of the ResNet; 4 as published, 3 for crops below about 128 px, with one deconvolution less.

    Raises:
        ConfigError: an argument is none of the listed ones.
    """

    def __init__(
        self,
        layers: int = 50,
        joints: int = 17,
        head: str = "volume",
        depth_bins: int = 64,
        deconv_filters: Sequence[int] = (256, 256, 256),
        deconv_kernels: Sequence[int] = (4, 4, 4),
        deconv_bias: bool = False,
        final_kernel: int = 1,
        stages: int = 4,
    ):
        super().__init__(layers, stages)
        if head not in HEADS:
            raise ConfigError(f"MODEL.HEAD: {head!r} is not one of {', '.join(HEADS)}")
        if final_kernel not in (1, 3):
            raise ConfigError(f"MODEL.EXTRA.FINAL_CONV_KERNEL: {final_kernel} is not one of 1, 3")
        if joints < 1 or depth_bins < 1:
            raise ConfigError(
                f"MODEL.NUM_JOINTS and MODEL.DEPTH_RES: found {joints} and {depth_bins}; expected at least 1 each"
            )
        self.joints = joints
        self.head = head
        self.depth_bins = depth_bins
        self.deconv_layers = DeconvHead(self.out_channels, deconv_filters, deconv_kernels, deconv_bias)
        # Channels are joint-major: channel j * D + d is depth bin d of joint j.
        maps = joints * depth_bins if head == "volume" else joints
        self.final_layer = nn.Conv2d(self.deconv_layers.out_channels, maps, final_kernel, padding=final_kernel // 2)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)
        if head == "heatmap_depth":
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.depth_fc = nn.Linear(self.out_channels, joints * depth_bins)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The head's logits.    image (B,3,H,W) -> (B,J,D,h,w) | (B,J,h,w) | (B,J,h,w), (B,J,D)"""
        features = self.features(image)
        maps = self.final_layer(self.deconv_layers(features))
        if self.head == "volume":
            return maps.unflatten(1, (self.joints, self.depth_bins))
        if self.head == "heatmap":
            return maps
        depth = self.depth_fc(self.pool(features).flatten(1))
        return maps, depth.unflatten(1, (self.joints, self.depth_bins))
