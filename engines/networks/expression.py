"""Expression: five classes from an attribute crop, on one of several trunks.

B batch, C channels of the trunk, T tokens, D width of a token.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.networks.embedder import FaceTrunk
from engines.networks.layers import ImageNetInput, conv_bn_relu

KINDS = ("face_trunk", "cnn", "cnn_large", "resnet18", "efficientnet_b0", "vit_tiny")


class ExpressionNet(nn.Module):
    """Normalised attribute crop (B, 3, 112, 112), BGR -> logits (B, classes). `kind` is one of KINDS."""

    def __init__(
        self, kind: str = "face_trunk", classes: int = 5, dropout: float = 0.4, enlarged: int = 1
    ) -> None:
        super().__init__()
        self.trunk, channels = _TRUNKS[kind](enlarged)
        self.head = nn.Sequential(
            nn.Linear(channels, 128),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(x))  # (B, C) -> (B, classes)
        return logits


class VisionTransformer(nn.Module):
    """Normalised (B, 3, 112, 112) -> (B, D): the mean of the tokens of 8x8 px patches.

    The width, depth and heads of ViT-tiny (Touvron et al. 2021, "DeiT", table 1), fixed sine positions and
    pooling as in He et al. 2022, "Masked autoencoders", sec. 4 and appendix A.1.
    """

    positions: Tensor

    def __init__(
        self, size: int = 112, patch: int = 8, width: int = 192, depth: int = 12, heads: int = 3
    ) -> None:
        super().__init__()
        self.patch, self.side = patch, size // patch
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.register_buffer("positions", sine_positions(self.side, width), persistent=False)
        self.blocks = nn.Sequential(*[AttentionBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, D) with positions, before the blocks."""
        tokens: Tensor = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.norm(self.blocks(self.tokens(x))).mean(1)  # (B, D)
        return pooled


class AttentionBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm (Dosovitskiy et al. 2021, eq. 2, 3)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # (B, heads, T, D / heads)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm_mlp(x))  # (B, T, D)
        return out


def sine_positions(side: int, width: int) -> Tensor:
    """(1, side * side, width): sines and cosines of the row and of the column, a quarter of the width each."""
    quarter = width // 4
    rate = torch.exp(-math.log(10000) * torch.arange(quarter) / quarter)
    angle = torch.arange(side)[:, None] * rate  # (side, quarter)
    waves = torch.cat((angle.sin(), angle.cos()), 1)  # (side, width / 2)
    rows = waves[:, None].expand(side, side, -1)
    return torch.cat((rows, rows.transpose(0, 1)), 2).reshape(1, side * side, width)


def _cnn(widths: tuple[int, ...], convolutions: int) -> tuple[nn.Module, int]:
    """A block a width: `convolutions` of 3x3, then half the size; the mean over the places at the end."""
    layers: list[nn.Module] = []
    for before, width in zip((3, *widths), widths, strict=False):
        layers += [conv_bn_relu(before if i == 0 else width, width) for i in range(convolutions)]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1]


def _torchvision(name: str, enlarged: int) -> tuple[nn.Module, int]:
    """torchvision's network without its classifier; ImageNet weights are the trainers' business."""
    from torchvision import models

    body: Any = getattr(models, name)()
    last = "fc" if name.startswith("resnet") else "classifier"
    head = getattr(body, last)
    channels = int((head if last == "fc" else head[-1]).in_features)
    setattr(body, last, nn.Identity())
    return nn.Sequential(ImageNetInput(enlarged), body), channels


_TRUNKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "face_trunk": lambda _: (FaceTrunk(), 256),
    "cnn": lambda _: _cnn((32, 64, 128, 256), 1),
    "cnn_large": lambda _: _cnn((64, 128, 256, 512), 2),
    "resnet18": lambda enlarged: _torchvision("resnet18", enlarged),
    "efficientnet_b0": lambda enlarged: _torchvision("efficientnet_b0", enlarged),
    "vit_tiny": lambda _: (VisionTransformer(), 192),
}
