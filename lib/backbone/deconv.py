"""The deconvolution head of Simple Baselines (Xiao et al., ECCV 2018): each layer doubles the size of the maps."""

from collections.abc import Sequence

from torch import nn

from lib.errors import ConfigError

# kernel -> (padding, output_padding), such that stride 2 doubles the size exactly
_PADDING = {4: (1, 0), 3: (1, 1), 2: (0, 0)}


class DeconvHead(nn.Sequential):
    """[ConvTranspose2d stride 2, BatchNorm, ReLU] per entry of `filters`.    (B,C,h,w) -> (B,filters[-1],h*2^n,w*2^n)

    Weights start as in the release: N(0, 0.001), batch norm 1 and 0.

    Raises:
        ConfigError: a kernel is not 4, 3 or 2, or filters and kernels differ in number.
    """

    def __init__(self, in_channels: int, filters: Sequence[int], kernels: Sequence[int], bias: bool = False):
        if len(filters) != len(kernels):
            raise ConfigError(
                f"MODEL.EXTRA: {len(filters)} NUM_DECONV_FILTERS and {len(kernels)} NUM_DECONV_KERNELS; "
                "expected one kernel for each deconvolution layer"
            )
        modules: list[nn.Module] = []
        channels = in_channels
        for width, kernel in zip(filters, kernels, strict=True):
            if kernel not in _PADDING:
                raise ConfigError(f"MODEL.EXTRA.NUM_DECONV_KERNELS: kernel {kernel} is not one of 4, 3, 2")
            padding, output_padding = _PADDING[kernel]
            modules += [
                nn.ConvTranspose2d(channels, width, kernel, 2, padding, output_padding, bias=bias),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        super().__init__(*modules)
        self.out_channels = channels
        for module in self:
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
