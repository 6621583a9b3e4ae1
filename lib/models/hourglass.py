"""Stacked hourglasses (Newell et al., ECCV 2016) with the depth module of Zhou et al., ICCV 2017."""

import torch.nn.functional as F
from torch import Tensor, nn

from lib.errors import ConfigError
from lib.models.fusion import Maps

HALVINGS = 4  # within an hourglass, and within the depth module
CELL = 4 * 2**HALVINGS  # px; sides of the crop are multiples of it


class Residual(nn.Module):
    """Bottleneck with batch norm and ReLU in front of each convolution (He et al., ECCV 2016).    (B,C,h,w) -> (B,`width`,h,w)"""

    def __init__(self, channels: int, width: int):
        super().__init__()
        inner = width // 2
        self.bn = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, width, 1)
        self.conv4 = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn(x)))
        y = self.conv2(F.relu(self.bn1(y)))
        return self.conv3(F.relu(self.bn2(y))) + self.conv4(x)


class _Level(nn.Module):
    """One resolution of an hourglass: a branch that stays, and one that is halved, goes through the next level and is doubled again."""

    def __init__(self, levels: int, modules: int, features: int):
        super().__init__()
        if levels > 1:
            self.low2 = _Level(levels - 1, modules, features)
        else:
            self.low2_ = _residuals(modules, features)
        self.up1_ = _residuals(modules, features)
        self.low1_ = _residuals(modules, features)
        self.low3_ = _residuals(modules, features)
        self.last = levels == 1

    def forward(self, x: Tensor) -> Tensor:
        low = self.low1_(F.max_pool2d(x, 2))
        low = self.low3_(self.low2_(low) if self.last else self.low2(low))
        return self.up1_(x) + F.interpolate(low, scale_factor=2, mode="nearest")


class Hourglass(nn.Module):
    """Image (B,3,H,W), H and W multiples of 64 -> Maps of h = H/4, w = W/4, one set of heatmaps per stack.

    With `depth_modules`, `Maps.depth` is (B,J): depths regressed from the features of the last stack, in halves of the crop's side, so that
    -1 and 1 are half a crop in front of and behind the root. The state dict has the names, shapes and order of the release's branches hg3d
    (with depth) and 2D (without).

    Args:
        joints: J, number of joints.
        stacks: hourglasses in a row, each with heatmaps of its own.
        modules: residual modules at each place of an hourglass.
        features: channels throughout; even.
        depth_modules: residual modules at each of the depth module's four resolutions; None = a 2D network.
        image_size: width and height px of the crop, on which the depth module's last layer depends.

    Raises:
        ConfigError: a number that is too small or odd, or sides that are no multiples of 64.
    """

    def __init__(
        self,
        joints: int = 16,
        stacks: int = 2,
        modules: int = 2,
        features: int = 256,
        depth_modules: int | None = None,
        image_size: tuple[int, int] = (256, 256),
    ):
        super().__init__()
        counts = {"joints": joints, "stacks": stacks, "modules": modules, "depth_modules": 1 if depth_modules is None else depth_modules}
        small = [f"{name} {count}" for name, count in counts.items() if count < 1]
        if small:
            raise ConfigError(f"hourglass: {', '.join(small)}; expected at least 1")
        if features < 2 or features % 2:
            raise ConfigError(f"hourglass: {features} features; expected an even number")
        _check_size(*image_size)
        self.joints, self.image_size = joints, tuple(image_size)
        self.per_stack, self.per_level = modules, depth_modules

        self.conv1_ = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.r1 = Residual(64, 128)
        self.r4 = Residual(128, 128)
        self.r5 = Residual(128, features)
        # The release lists its modules by kind, not by stack.
        self.hourglass = nn.ModuleList(_Level(HALVINGS, modules, features) for _ in range(stacks))
        self.Residual = nn.ModuleList(Residual(features, features) for _ in range(stacks * modules))
        self.lin_ = nn.ModuleList(
            nn.Sequential(nn.Conv2d(features, features, 1), nn.BatchNorm2d(features), nn.ReLU(inplace=True)) for _ in range(stacks)
        )
        self.tmpOut = nn.ModuleList(nn.Conv2d(features, joints, 1) for _ in range(stacks))
        # A stack's features and heatmaps go back into the row; behind the last stack only the depth module takes them.
        feeding = stacks if depth_modules else stacks - 1
        self.ll_ = nn.ModuleList(nn.Conv2d(features, features, 1) for _ in range(feeding))
        self.tmpOut_ = nn.ModuleList(nn.Conv2d(joints, features, 1) for _ in range(feeding))
        if depth_modules:
            width, height = image_size
            self.reg_ = nn.ModuleList(Residual(features, features) for _ in range(HALVINGS * depth_modules))
            self.reg = nn.Linear(features * (width // CELL) * (height // CELL), joints)

    def forward(self, image: Tensor) -> Maps:
        """Heatmaps of all stacks, and depths.    image (B,3,H,W)

        Raises:
            ConfigError: sides that are no multiples of 64 or, with depth, other than those of the model.
        """
        height, width = image.shape[-2:]
        _check_size(width, height)
        if self.per_level and (width, height) != self.image_size:
            raise ConfigError(
                f"MODEL.IMAGE_SIZE: a picture of {width} x {height}, but the depth module is made for {self.image_size[0]} x "
                f"{self.image_size[1]}; give pictures of that size"
            )
        x = self.r1(F.relu(self.bn1(self.conv1_(image))))
        x = self.r5(self.r4(F.max_pool2d(x, 2)))
        stacks = []
        for i, level in enumerate(self.hourglass):
            y = level(x)
            for residual in self.Residual[i * self.per_stack : (i + 1) * self.per_stack]:
                y = residual(y)
            y = self.lin_[i](y)
            stacks.append(self.tmpOut[i](y))
            if i < len(self.ll_):
                x = x + self.ll_[i](y) + self.tmpOut_[i](stacks[-1])
        return Maps(stacks[-1], self._depths(x) if self.per_level else None, tuple(stacks))

    def _depths(self, x: Tensor) -> Tensor:
        for i, residual in enumerate(self.reg_, start=1):
            x = residual(x)
            if i % self.per_level == 0:
                x = F.max_pool2d(x, 2)
        return self.reg(x.flatten(1))


def _residuals(count: int, features: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(features, features) for _ in range(count)))


def _check_size(width: int, height: int) -> None:
    if width % CELL or height % CELL or min(width, height) < CELL:
        raise ConfigError(f"MODEL.IMAGE_SIZE: found {width} x {height}; an hourglass takes multiples of {CELL}, such as 256 x 256")
