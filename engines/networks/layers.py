"""Building blocks shared by the networks.

B batch, C channels, H and W height and width.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of 0..1


def conv_bn(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution with "same" padding and without bias, then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel, stride, groups), nn.ReLU(inplace=True))


class PlaceConv(nn.Conv2d):
    """A weight of each channel for every place of its map (Chen et al. 2018, "MobileFaceNets", sec. 3.1).

    The places of a smaller map, (B, C, h, w), have the means of the weights that lie there: (B, C, 1, 1).
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, channels, size, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if x.shape[-2:] != weight.shape[-2:]:
            area = weight[0, 0].numel() / (x.shape[-2] * x.shape[-1])
            weight = F.interpolate(weight, x.shape[-2:], mode="bilinear", antialias=True) * area
        return F.conv2d(x, weight, groups=self.groups)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an identity (He et al. 2016, fig. 2); the shape is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(channels, channels)
        self.second = conv_bn(channels, channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.second(self.first(x)))  # (B, C, H, W)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 at half the width, pre-activated: the residual module of Newell et al. 2016, fig. 4."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.body = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, out_channels, 1),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.body(x)  # (B, out_channels, H, W)
        return out


class ImageNetInput(nn.Module):
    """From the spec's normalisation (BGR, mean 127.5, std 128) to ImageNet's (RGB), enlarged `enlarged` times."""

    scale: Tensor
    shift: Tensor

    def __init__(self, enlarged: int = 1) -> None:
        super().__init__()
        self.enlarged = enlarged
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        # Not persistent: a checkpoint's half precision would round them.
        self.register_buffer("scale", (128 / 255 / std)[None, :, None, None], persistent=False)
        self.register_buffer("shift", ((127.5 / 255 - mean) / std)[None, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flip(1) * self.scale + self.shift
        if self.enlarged == 1:
            return x
        return F.interpolate(x, scale_factor=float(self.enlarged), mode="bilinear", align_corners=False)


def behind_imagenet_input(body: nn.Module) -> nn.Sequential:
    """torchvision's network, fed as its ImageNet weights are used to; its tensors are named `body.*`."""
    return nn.Sequential(OrderedDict(input=ImageNetInput(), body=body))
