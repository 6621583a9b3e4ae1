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
    """ResNet without pooling and classifier: `features` maps image (B,3,H,W) to (B,C,H/s,W/s), C = `out_channels`, s = `stride`.

    With all four stages s is 32; `stages` 3 ends at s = 16, for crops so small that the last stage would see 2x2 cells.

    The modules conv1, bn1, layer1..4 sit directly in the class, so that torchvision's and EpipolarPose's state dicts
    fit without renaming.

    Raises:
        ConfigError: `layers` is not one of RESNETS, or `stages` not one of 1..4.
    """

    def __init__(self, layers: int, stages: int = 4):
        super().__init__()
        if layers not in RESNETS:
            known = ", ".join(str(n) for n in RESNETS)
            raise ConfigError(f"MODEL.EXTRA.NUM_LAYERS: there is no ResNet-{layers}; expected one of {known}")
        if stages not in (1, 2, 3, 4):
            raise ConfigError(f"MODEL.EXTRA.NUM_STAGES: a ResNet has no {stages} stages; expected 1 to 4")
        block, counts = RESNETS[layers]
        self.layers, self.stages = layers, stages
        self.stride = 2 ** (stages + 1)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for i, count in enumerate(counts[:stages]):
            planes = 64 * 2**i
            self.add_module(f"layer{i + 1}", _stage(block, channels, planes, count, stride=1 if i == 0 else 2))
            channels = planes * block.expansion
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., ICCV 2015; only matters without ImageNet weights
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, image: Tensor) -> Tensor:
        """Feature maps of a normalised image.    image (B,3,H,W) -> (B,C,H/stride,W/stride)"""
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x


def _stage(block: type[nn.Module], in_channels: int, planes: int, count: int, stride: int) -> nn.Sequential:
    out_channels = planes * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    first = block(in_channels, planes, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, planes) for _ in range(count - 1)))
