"""The ResNet trunk (He et al., CVPR 2016), built of torchvision's blocks and named like its checkpoints."""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lib.errors import ConfigError

# layers -> (block, blocks per stage)
RESNETS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNetTrunk(nn.Module):
    """ResNet without pooling and classifier: `features` maps image (B,3,H,W) to (B,C,H/32,W/32), C = `out_channels`.

    The modules conv1, bn1, layer1..4 sit directly in the class, so that torchvision's and EpipolarPose's state dicts
    fit without renaming.

    Raises:
        ConfigError: `layers` is not one of RESNETS.
    """

    def __init__(self, layers: int):
        super().__init__()
        if layers not in RESNETS:
            known = ", ".join(str(n) for n in RESNETS)
            raise ConfigError(f"MODEL.EXTRA.NUM_LAYERS: there is no ResNet-{layers}; expected one of {known}")
        block, counts = RESNETS[layers]
        self.layers = layers
        self.out_channels = 512 * block.expansion
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, counts[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, counts[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., ICCV 2015; only matters without ImageNet weights
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, image: Tensor) -> Tensor:
        """Feature maps of a normalised image.    image (B,3,H,W) -> (B,C,H/32,W/32)"""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _stage(block: type[nn.Module], in_channels: int, planes: int, count: int, stride: int) -> nn.Sequential:
    out_channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(count - 1)))
