"""The plain U-Net of the default models and of the brain mask, with torch alone.

Importing any network of MONAI runs all of MONAI: as long again as importing torch itself, and 130 MB. This one has the
tensors of MONAI's ``BasicUNet`` under the same names and computes the same numbers, so that packages can be read by
either; a test compares them. Whatever else ``BasicUNet`` can be asked for is left to MONAI.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

FEATURES = (32, 32, 64, 128, 256, 32)
NEGATIVE_SLOPE = 0.1
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_UPSAMPLINGS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMALISATIONS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOLINGS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}


class PlainUNet(nn.Module):
    """A U-Net of five scales (Ronneberger et al. 2015) with instance normalisation and leaky rectifiers.

    ``(N, in_channels, *spatial)`` to ``(N, out_channels, *spatial)``; at least one edge has 32 samples, each at best
    a multiple of 16.

    >>> network = PlainUNet(spatial_dims=2, in_channels=12, out_channels=4, features=(8, 8, 8, 8, 8, 8))
    >>> network(torch.zeros(1, 12, 32, 48)).shape
    torch.Size([1, 4, 32, 48])

    Args:
        spatial_dims: 1, 2 or 3.
        in_channels, out_channels: of the image and of the result.
        features: channels at each of the five scales, and after the last upsampling.

    Raises:
        ValueError: for another number of dimensions or of features.
    """

    def __init__(
        self, spatial_dims: int = 3, in_channels: int = 1, out_channels: int = 2, features: Sequence[int] = FEATURES
    ) -> None:
        super().__init__()
        if spatial_dims not in _CONVOLUTIONS:
            raise ValueError(f"spatial_dims is {spatial_dims!r}, expected 1, 2 or 3")
        if len(features) != len(FEATURES):
            raise ValueError(f"features are {len(features)}, expected {len(FEATURES)}")
        first, second, third, fourth, fifth, last = features
        self.conv_0 = _two_convolutions(spatial_dims, in_channels, first)
        self.down_1 = _downwards(spatial_dims, first, second)
        self.down_2 = _downwards(spatial_dims, second, third)
        self.down_3 = _downwards(spatial_dims, third, fourth)
        self.down_4 = _downwards(spatial_dims, fourth, fifth)
        self.upcat_4 = _Upwards(spatial_dims, fifth, fifth // 2, fourth, fourth)
        self.upcat_3 = _Upwards(spatial_dims, fourth, fourth // 2, third, third)
        self.upcat_2 = _Upwards(spatial_dims, third, third // 2, second, second)
        self.upcat_1 = _Upwards(spatial_dims, second, second, first, last)
        self.final_conv = _CONVOLUTIONS[spatial_dims](last, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_0(x)
        passed = [x]
        for down in (self.down_1, self.down_2, self.down_3, self.down_4):
            x = down(x)
            passed.append(x)
        passed.pop()
        for up in (self.upcat_4, self.upcat_3, self.upcat_2, self.upcat_1):
            x = up(x, passed.pop())
        return self.final_conv(x)


class _Upwards(nn.Module):
    """Twice the resolution, beside what the way down had there, and two convolutions of both."""

    def __init__(self, dims: int, below: int, raised: int, beside: int, result: int) -> None:
        super().__init__()
        deconvolution = _UPSAMPLINGS[dims](below, raised, kernel_size=2, stride=2)
        self.upsample = nn.Sequential(OrderedDict(deconv=deconvolution))
        self.convs = _two_convolutions(dims, beside + raised, result)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        x = self.upsample(x)
        # An odd edge lost its last sample on the way down. Padding is told from the last edge to the first.
        missing: list[int] = []
        for own, other in zip(x.shape[:1:-1], beside.shape[:1:-1], strict=True):
            missing += [0, other - own]
        if any(missing):
            x = nn.functional.pad(x, missing, mode="replicate")
        return self.convs(torch.cat([beside, x], dim=1))


def _two_convolutions(dims: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(conv_0=_convolution(dims, inputs, outputs), conv_1=_convolution(dims, outputs, outputs))
    )


def _convolution(dims: int, inputs: int, outputs: int) -> nn.Sequential:
    normalise_and_rectify: OrderedDict[str, nn.Module] = OrderedDict()
    normalise_and_rectify["N"] = _NORMALISATIONS[dims](outputs, affine=True)
    normalise_and_rectify["A"] = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
    convolution = _CONVOLUTIONS[dims](inputs, outputs, kernel_size=3, padding=1)
    return nn.Sequential(OrderedDict(conv=convolution, adn=nn.Sequential(normalise_and_rectify)))


def _downwards(dims: int, inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(max_pooling=_POOLINGS[dims](2), convs=_two_convolutions(dims, inputs, outputs)))
