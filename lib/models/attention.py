"""SelfPose3d's attention network (Srivastav et al., CVPR 2024): where the pseudo labels of a view are to be trusted."""

from torch import Tensor, nn

from lib.models.pose_resnet import PoseResNet


class AttentionNet(nn.Module):
    """Image (...,3,H,W), normalised -> weights (...,J,h,w) of the heatmap loss, 0..1, per joint and heatmap cell.

    A pose ResNet with a sigmoid. It starts at 0.5 everywhere; all convolutions start as N(0, 0.001).

    Args:
        joints: J.
        layers: of the ResNet.
        options: further arguments of PoseResNet, which must give the maps the size of the heatmaps.

    Raises:
        ConfigError: see PoseResNet.
    """

    def __init__(self, joints: int = 15, layers: int = 18, **options):
        super().__init__()
        self.backbone = PoseResNet(layers, joints, "heatmap", **options)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone(image.flatten(0, -4)).sigmoid().unflatten(0, image.shape[:-3])
