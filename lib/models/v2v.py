"""V2V-Net: the 3D encoder-decoder of V2V-PoseNet (Moon et al., CVPR 2018) in the size of VoxelPose (Tu et al., ECCV 2020)."""

import torch
from torch import Tensor, nn

from lib.errors import ConfigError, GeometryError

STRIDE = 4  # two poolings: every side of a volume is a multiple of it


class V2VNet(nn.Module):
    """Volumes of features (B,C_in,nx,ny,nz) -> volumes of scores (B,C_out,nx,ny,nz), no activation behind the last layer.

    Names and shapes of the state dict are VoxelPose's. Weights start as in the release: N(0, 0.001), biases 0, batch norm 1 and 0.
    Weights and activations lie channels-last: 1.1 to 1.2 times faster on a processor, in training and in evaluation.

    Args:
        channels_in, channels_out: C_in, C_out: joints, or 1 for roots.

    Raises:
        ConfigError: fewer than one channel.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
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
        self.to(memory_format=torch.channels_last_3d)

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
