"""Face detector: anchor-free, one class, strides 8, 16 and 32 on a light residual backbone.

B batch, A = sum over strides of (H / stride) * (W / stride) locations, row by row, finest stride first.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.geometry import FINE_STRIDES
from engines.networks.layers import BasicBlock, conv_bn_relu

_PRIOR_LOGIT = -4.6  # a face probability of 0.01 at the start (Lin et al. 2017, "Focal loss", sec. 4.1)


class Context(nn.Module):
    """Widens the view at the coarsest stride by repeated pooling (He et al. 2014, spatial pyramid pooling)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = conv_bn_relu(channels, channels // 2, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.merge = conv_bn_relu(channels * 3 // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = self.reduce(x)  # (B, C/2, H, W)
        mid = self.pool(near)
        out: Tensor = self.merge(torch.cat((near, mid, self.pool(mid)), 1))  # (B, C, H, W)
        return out


class Head(nn.Module):
    """A score logit and four side distances, in strides, at each location of one level."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(*(conv_bn_relu(channels, channels) for _ in range(depth)))
        self.score = nn.Conv2d(channels, 1, 1)
        self.sides = nn.Conv2d(channels, 4, 1)
        for layer, start in ((self.score, _PRIOR_LOGIT), (self.sides, 1.0)):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, start)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tower(x)
        logits = self.score(x).flatten(1)  # (B, H*W)
        sides = self.sides(x).flatten(2).transpose(1, 2)  # (B, H*W, 4)
        return logits, sides.clamp(-4, 4).exp()


class Detector(nn.Module):
    """Normalised image (B, 3, H, W), H and W multiples of 32 -> logits (B, A), sides (B, A, 4) in strides.

    Sides are the distances from the location's centre to the box's left, top, right and bottom
    (Tian et al. 2019, "FCOS", sec. 3.1). `blocks` are the residual blocks at strides 4, 8 and 16, `towers` the
    convolutions of each level's head: with fewer of either, all layers that are there keep their names.
    """

    def __init__(
        self,
        width: int = 24,
        neck: int = 48,
        blocks: Sequence[int] = (1, 2, 2),
        towers: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        c2, c3, c4, c5 = width, width * 2, width * 4, width * 5
        two, three, four = (
            [BasicBlock(c) for _ in range(n)] for c, n in zip((c2, c3, c4), blocks, strict=True)
        )
        self.stem = nn.Sequential(conv_bn_relu(3, 16, stride=2), conv_bn_relu(16, c2, stride=2), *two)
        self.stage3 = nn.Sequential(conv_bn_relu(c2, c3, stride=2), *three)
        self.stage4 = nn.Sequential(conv_bn_relu(c3, c4, stride=2), *four)
        self.stage5 = nn.Sequential(
            conv_bn_relu(c4, c5, stride=2), BasicBlock(c5), Context(c5), BasicBlock(c5)
        )
        self.lateral3 = conv_bn_relu(c3, neck, 1)
        self.lateral4 = conv_bn_relu(c4, neck, 1)
        self.lateral5 = conv_bn_relu(c5, neck, 1)
        self.smooth3 = conv_bn_relu(neck, neck)
        self.smooth4 = conv_bn_relu(neck, neck)
        self.heads = nn.ModuleList(Head(neck, depth) for _, depth in zip(FINE_STRIDES, towers, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c3, p4, p5 = self._levels(x)
        p3 = self.smooth3(self.lateral3(c3) + F.interpolate(p4, scale_factor=2.0))
        return self._answers((p3, p4, p5))

    def coarse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same at strides 16 and 32 alone, for a sixth less work."""
        return self._answers(self._levels(x)[1:])

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3 = self.stage3(self.stem(x))  # (B, c3, H/8, W/8)
        c4 = self.stage4(c3)  # (B, c4, H/16, W/16)
        p5 = self.lateral5(self.stage5(c4))  # (B, neck, H/32, W/32)
        p4 = self.smooth4(self.lateral4(c4) + F.interpolate(p5, scale_factor=2.0))
        return c3, p4, p5

    def _answers(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the heads of the coarsest levels say of them, finest first."""
        heads = list(self.heads)[-len(levels) :]
        logits, sides = zip(*(head(p) for head, p in zip(heads, levels, strict=True)), strict=True)
        return torch.cat(logits, 1), torch.cat(sides, 1)
