"""A trained network as an engine runs it: pictures in, finished numbers out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.spec import ModelSpec


class Deployed(nn.Module):
    """(N, H, W, 3) uint8 BGR -> the outputs named in the spec, float32, whatever the network's own dtype.

    detector: scores (N, A), sides (N, A, 4) in strides. landmarks: heatmaps (N, 5, H/4, W/4) of the last
    stack. embedder: embedding (N, D), unit length. attributes: age_years (N,), female (N,) probability,
    emotion (N, 8) probabilities. expression: probabilities (N, 5).
    """

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network.eval()
        self.task = spec.task
        self.mean, self.scale = spec.mean, 1 / spec.std
        self.dtype = next((p.dtype for p in network.parameters()), torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # Cast first: TensorRT takes uint8 only to cast it. Normalised in float32, exact in every precision.
        x = (images.float().permute(0, 3, 1, 2) - self.mean) * self.scale  # (N, 3, H, W)
        output = self.network(x.to(self.dtype))
        if self.task == "detector":
            return output[0].float().sigmoid(), output[1].float()
        if self.task == "landmarks":
            return (output[:, -1].float(),)
        if self.task == "embedder":
            return (F.normalize(output.float()),)
        if self.task == "expression":
            return (output.float().softmax(1),)
        age, female, emotion = (value.float() for value in output)
        return age.clamp(0, 120), female.sigmoid(), emotion.softmax(1)


def export(deployed: Deployed, size: tuple[int, int], device: str = "cpu") -> torch.export.ExportedProgram:
    """One program with a free batch size and a fixed (width, height): the source of every backend."""
    example = torch.zeros((2, size[1], size[0], 3), dtype=torch.uint8, device=device)
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(deployed, (example,), dynamic_shapes=({0: batch},))
