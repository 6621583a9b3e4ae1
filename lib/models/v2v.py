"""V2V-Net: the 3D encoder-decoder of V2V-PoseNet (Moon et al., CVPR 2018) in the size of VoxelPose (Tu et al., ECCV 2020)."""

import torch
from torch import Tensor, nn

from lib.errors import ConfigError, GeometryError

STRIDE = 4  # two poolings: every side of a volume is a multiple of it
STARTS = ("random", "input")
START_GAIN = 0.03  # of scores that start as the input: normalised peaks are near 10, and a peak of 0.3 is sharp at beta 100


class V2VNet(nn.Module):
    """Volumes of features (B,C_in,nx,ny,nz) -> volumes of scores (B,C_out,nx,ny,nz), no activation behind the last layer.

    Names and shapes of the state dict are VoxelPose's. Weights and activations lie channels-last: 1.1 to 1.2 times faster on a
    processor, in training and in evaluation.

    Args:
        channels_in, channels_out: C_in, C_out: joints, or 1 for roots.
        start: "random": weights as in the release, N(0, 0.001), biases 0, batch norm 1 and 0; "input": see `start_from_input`.

    Raises:
        ConfigError: fewer than one channel, an unknown start, or one from the input with other channels out than in.
    """

    def __init__(self, channels_in: int, channels_out: int, start: str = "random"):
        super().__init__()
        if start not in STARTS:
            raise ConfigError(f"V2VNet: start {start!r} is not one of {', '.join(STARTS)}")
        if channels_in < 1 or channels_out < 1:
            raise ConfigError(f"V2VNet: {channels_in} channels in and {channels_out} out; expected at least 1 each")
        self.channels_in, self.channels_out = channels_in, channels_out
        self.front_layers = nn.Sequential(_Block(nn.Conv3d(channels_in, 16, 7, padding=3)), _Residual(16, 32))
        self.encoder_decoder = _EncoderDecoder()
        self.output_layer = nn.Conv3d(32, channels_out, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.normal_(module.weight, std=0.001)
                nn.init.zeros_(module.bias)
        if start == "input":
            self.start_from_input()
        self.to(memory_format=torch.channels_last_3d)

    @torch.no_grad()
    def start_from_input(self) -> None:
        """New weights whose scores are the input's channels, normalised over the batch, positive, times START_GAIN.

        Heatmaps that meet in a volume say much of where the joints are; the network begins there and learns what they do not say. All
        branches beside that path are silent at first, behind a batch norm of weight 0, with weights of He et al. (ICCV 2015). The first
        layer has 16 channels: of more joints, the others begin at random.

        Raises:
            ConfigError: other channels out than in.
        """
        if self.channels_in != self.channels_out:
            channels = f"{self.channels_in} channels in and {self.channels_out} out"
            raise ConfigError(f"V2VNet: {channels}; a network that starts from its input has as many of both: choose start random")
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Residual):
                nn.init.zeros_(module.res_branch[-1].weight)
        nn.init.zeros_(self.encoder_decoder.decoder_upsample1.block[1].weight)
        first, widen = self.front_layers[0].block[0], self.front_layers[1].skip_con[0]
        passed = min(self.channels_in, first.out_channels)
        for convolution in (first, widen):
            nn.init.dirac_(convolution.weight[:passed])
        nn.init.normal_(self.output_layer.weight, std=0.001)
        self.output_layer.weight[:passed] = 0
        self.output_layer.weight[:passed, :passed, 0, 0, 0] = START_GAIN * torch.eye(passed)

    def forward(self, volume: Tensor) -> Tensor:
        """volume (B,C_in,nx,ny,nz) -> (B,C_out,nx,ny,nz)

        Raises:
            GeometryError: another number of channels, or a side that is no multiple of STRIDE.
        """
        if volume.ndim != 5 or volume.shape[1] != self.channels_in or any(n % STRIDE for n in volume.shape[2:]):
            raise GeometryError(
                f"V2VNet: volume {tuple(volume.shape)}, expected (B, {self.channels_in}, nx, ny, nz) with sides that are multiples of "
                f"{STRIDE}; choose such numbers of voxels"
            )
        x = volume.contiguous(memory_format=torch.channels_last_3d)
        x = self.encoder_decoder(self.front_layers(x))
        # The 1x1x1 convolution as a product, because it writes each map in one piece: whoever reads them needs no copy.
        voxels = x.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (B, N, 32), a view
        filters = self.output_layer.weight.flatten(1).expand(len(x), -1, -1)
        scores = torch.baddbmm(self.output_layer.bias[:, None], filters, voxels.mT)
        return scores.unflatten(2, volume.shape[2:])


class _EncoderDecoder(nn.Module):
    """Two levels down and up again, with a skip connection on each."""

    def __init__(self):
        super().__init__()
        self.encoder_pool1, self.encoder_pool2 = nn.MaxPool3d(2), nn.MaxPool3d(2)
        # In the order of published state dicts.
        self.encoder_res1 = _Residual(32, 64)
        self.encoder_res2 = _Residual(64, 128)
        self.mid_res = _Residual(128, 128)
        self.decoder_res2 = _Residual(128, 128)
        self.decoder_upsample2 = _Block(nn.ConvTranspose3d(128, 64, 2, stride=2))
        self.decoder_res1 = _Residual(64, 64)
        self.decoder_upsample1 = _Block(nn.ConvTranspose3d(64, 32, 2, stride=2))
        self.skip_res1 = _Residual(32, 32)
        self.skip_res2 = _Residual(64, 64)

    def forward(self, full: Tensor) -> Tensor:
        half = self.encoder_res1(self.encoder_pool1(full))
        quarter = self.encoder_res2(self.encoder_pool2(half))
        quarter = self.decoder_res2(self.mid_res(quarter))
        half = self.decoder_res1(self.decoder_upsample2(quarter) + self.skip_res2(half))
        return self.decoder_upsample1(half) + self.skip_res1(full)


class _Block(nn.Module):
    """A convolution of any kind, batch norm, ReLU."""

    def __init__(self, convolution: nn.Conv3d | nn.ConvTranspose3d):
        super().__init__()
        self.block = nn.Sequential(convolution, nn.BatchNorm3d(convolution.out_channels), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Residual(nn.Module):
    """Two 3x3x3 convolutions beside the identity, or beside a 1x1x1 convolution where the channels change."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.res_branch = nn.Sequential(
            nn.Conv3d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm3d(channels_out),
        )
        self.skip_con = (
            nn.Sequential()
            if channels_in == channels_out
            else nn.Sequential(nn.Conv3d(channels_in, channels_out, 1), nn.BatchNorm3d(channels_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.res_branch(x) + self.skip_con(x)).relu_()
