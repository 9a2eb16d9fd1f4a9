"""A small convolutional classifier of volumes, with torch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NEGATIVE_SLOPE, DROPOUT = 0.1, 0.2


class ConvEncoder(nn.Module):
    """Convolutions that halve the image, then mean and maximum of it: ``(N, in_channels, X, Y, Z)`` to logits.

    >>> ConvEncoder(in_channels=2, out_channels=3, features=(4, 8))(torch.zeros(1, 2, 16, 16, 16)).shape
    torch.Size([1, 3])

    Args:
        in_channels: of the image.
        out_channels: logits.
        features: channels at each scale.
    """

    def __init__(self, in_channels: int, out_channels: int, features: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for count in features:
            for stride in (2, 1):
                # Norms over single images would take away what their means say, which is what counts here.
                layers += [
                    nn.Conv3d(before, count, 3, stride, 1, bias=False),
                    nn.BatchNorm3d(count),
                    nn.LeakyReLU(NEGATIVE_SLOPE),
                ]
                before = count
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * before, out_channels)

    def forward(self, image: Tensor) -> Tensor:
        found = self.layers(image).flatten(2)
        return self.head(self.dropout(torch.cat([found.mean(2), found.amax(2)], 1)))
