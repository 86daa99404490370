"""Face embedders: a small plain residual network, MobileFaceNet, and the IResNet of the ArcFace paper.

B batch, D embedding size. Margin heads are training-only and live in trainers.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from engines.networks.layers import BasicBlock, PlaceConv, conv_bn, conv_bn_relu


class FaceTrunk(nn.Sequential):
    """Normalised crop (B, 3, S, S) -> (B, C) through dense 3x3 residual stages; of 112 px at 56, 28, 14 and 7.

    Dense convolutions at these sizes train five times and run about as fast on a CPU as the depthwise
    ones of MobileFaceNet, which has fewer multiplications and moves more memory.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        repeats: Sequence[int] = (1, 2, 2, 2),
        size: int = 112,
    ) -> None:
        layers: list[nn.Module] = [conv_bn_relu(3, widths[0], stride=2)]
        for i, (width, blocks) in enumerate(zip(widths, repeats, strict=True)):
            if i:
                layers.append(conv_bn_relu(widths[i - 1], width, stride=2))
            layers += [BasicBlock(width) for _ in range(blocks)]
        pool = nn.Sequential(PlaceConv(widths[-1], size // 16), nn.BatchNorm2d(widths[-1]))
        super().__init__(*layers, pool, nn.Flatten())


class FaceResNet(nn.Module):
    """Normalised aligned crop (B, 3, 112, 112) -> embedding (B, D), not yet of unit length."""

    def __init__(self, embedding_size: int = 192, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.trunk = FaceTrunk(widths)  # (B, C)
        self.project = nn.Sequential(
            nn.Linear(widths[-1], embedding_size, bias=False), nn.BatchNorm1d(embedding_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.project(self.trunk(x))  # (B, D)
        return embedding


def _conv_bn_prelu(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel, stride, groups), nn.PReLU(out_channels))


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project (Sandler et al. 2018), with PReLU (Chen et al. 2018, sec. 3.2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.body = nn.Sequential(
            _conv_bn_prelu(in_channels, hidden, 1),
            _conv_bn_prelu(hidden, hidden, 3, stride, groups=hidden),
            conv_bn(hidden, out_channels, 1),
        )
        self.keeps_shape = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return x + out if self.keeps_shape else out


class MobileFaceNet(nn.Module):
    """Normalised aligned crop (B, 3, 112, 112) -> embedding (B, D), not yet of unit length.

    Chen et al. 2018, "MobileFaceNets", table 1, with a dense first pair of convolutions: at 56x56
    a depthwise one moves more memory than it computes.
    """

    STAGES = ((64, 5, 2, 2), (128, 1, 2, 4), (128, 6, 1, 2), (128, 1, 2, 4), (128, 2, 1, 2))

    def __init__(self, embedding_size: int = 192, width: float = 1.0) -> None:
        super().__init__()
        channels = int(64 * width)
        layers: list[nn.Module] = [
            _conv_bn_prelu(3, channels // 2, stride=2),
            _conv_bn_prelu(channels // 2, channels),
        ]
        for base, repeats, stride, expansion in self.STAGES:
            out_channels = int(base * width)
            for i in range(repeats):
                layers.append(InvertedResidual(channels, out_channels, stride if i == 0 else 1, expansion))
                channels = out_channels
        layers.append(_conv_bn_prelu(channels, 512, 1))
        self.trunk = nn.Sequential(*layers)  # (B, 512, 7, 7)
        self.pool = nn.Sequential(PlaceConv(512, 7), nn.BatchNorm2d(512))
        self.project = nn.Sequential(
            nn.Flatten(), nn.Linear(512, embedding_size, bias=False), nn.BatchNorm1d(embedding_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.project(self.pool(self.trunk(x)))  # (B, D)
        return embedding


class IResBlock(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3, BN (Deng et al. 2019, "ArcFace", sec. 3.1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            _conv_bn_prelu(in_channels, out_channels),
            conv_bn(out_channels, out_channels, 3, stride),
        )
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv_bn(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.body(x)
        return out


class IResNet(nn.Module):
    """Normalised aligned crop (B, 3, 112, 112) -> embedding (B, D), not yet of unit length.

    `depth` 18 or 50 (Deng et al. 2019); `width` scales the channels.
    """

    REPEATS: ClassVar[dict[int, tuple[int, ...]]] = {18: (2, 2, 2, 2), 50: (3, 4, 14, 3)}

    def __init__(self, embedding_size: int = 512, depth: int = 18, width: float = 1.0) -> None:
        super().__init__()
        channels = int(64 * width)
        layers: list[nn.Module] = [_conv_bn_prelu(3, channels)]
        for base, repeats in zip((64, 128, 256, 512), self.REPEATS[depth], strict=True):
            out_channels = int(base * width)
            for i in range(repeats):
                layers.append(IResBlock(channels, out_channels, 2 if i == 0 else 1))
                channels = out_channels
        self.trunk = nn.Sequential(*layers, nn.BatchNorm2d(channels))  # (B, C, 7, 7)
        self.project = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(channels * 49, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        embedding: Tensor = self.project(self.trunk(x))  # (B, D)
        return embedding
