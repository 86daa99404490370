"""A trained network as an engine runs it: pictures in, finished numbers out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.spec import ModelSpec


class Deployed(nn.Module):
    """(N, H, W, 3) uint8 BGR -> the outputs named in the spec, float32.

    detector: scores (N, A), sides (N, A, 4) in strides. landmarks: heatmaps (N, 5, H/4, W/4) of the last
    stack. embedder: embedding (N, D), unit length. attributes: age_years (N,), female (N,) probability,
    emotion (N, 8) probabilities.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network.eval()
        self.task = spec.task
        self.mean, self.scale = spec.mean, 1 / spec.std

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = (images.permute(0, 3, 1, 2).float() - self.mean) * self.scale  # (N, 3, H, W)
        output = self.network(x)
        if self.task == "detector":
            return output[0].sigmoid(), output[1]
        if self.task == "landmarks":
            return (output[:, -1],)
        if self.task == "embedder":
            return (F.normalize(output),)
        age, female, emotion = output
        return age.clamp(0, 120), female.sigmoid(), emotion.softmax(1)


def export(network: nn.Module, spec: ModelSpec, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """One program with a free batch size and a fixed (width, height): the source of every backend."""
    example = torch.zeros((2, size[1], size[0], 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(Deployed(network, spec).eval(), (example,), dynamic_shapes=({0: batch},))
