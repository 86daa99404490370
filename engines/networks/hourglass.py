"""Stacked hourglass for five face landmarks (Newell et al. 2016, "Stacked hourglass networks").

B batch, S stacks, K landmarks, h = H / 4, w = W / 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.layers import Bottleneck, conv_bn_relu


class Hourglass(nn.Module):
    """Pools `depth` times and comes back, adding the skip of each scale; the shape is kept."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.skip = Bottleneck(channels, channels)
        self.down = Bottleneck(channels, channels)
        self.inner = Hourglass(channels, depth - 1) if depth > 1 else Bottleneck(channels, channels)
        self.up = Bottleneck(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        low = self.inner(self.down(F.max_pool2d(x, 2)))  # (B, C, H/2, W/2)
        out: Tensor = self.skip(x) + F.interpolate(self.up(low), scale_factor=2.0)
        return out


class StackedHourglass(nn.Module):
    """Normalised crop (B, 3, H, W), H and W multiples of 32 -> heatmaps (B, S, K, h, w), one set a stack.

    Every stack is supervised in training (Newell et al. 2016, sec. 3.2); the last one is the answer.
    """

    def __init__(self, stacks: int = 2, channels: int = 48, landmarks: int = 5, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn_relu(3, 32, stride=2),
            conv_bn_relu(32, channels, stride=2),
            Bottleneck(channels, channels),
        )
        self.hourglasses = nn.ModuleList(Hourglass(channels, depth) for _ in range(stacks))
        self.features = nn.ModuleList(
            nn.Sequential(Bottleneck(channels, channels), conv_bn_relu(channels, channels, 1))
            for _ in range(stacks)
        )
        self.heads = nn.ModuleList(nn.Conv2d(channels, landmarks, 1) for _ in range(stacks))
        self.back_features = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(stacks - 1))
        self.back_heatmaps = nn.ModuleList(nn.Conv2d(landmarks, channels, 1) for _ in range(stacks - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, C, h, w)
        heatmaps = []
        for i, hourglass in enumerate(self.hourglasses):
            features = self.features[i](hourglass(x))
            heatmaps.append(self.heads[i](features))  # (B, K, h, w)
            if i + 1 < len(self.hourglasses):
                x = x + self.back_features[i](features) + self.back_heatmaps[i](heatmaps[-1])
        return torch.stack(heatmaps, 1)  # (B, S, K, h, w)
