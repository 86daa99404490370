"""A trained network as an engine runs it: pictures in, finished numbers out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.geometry import GREY
from engines.networks import Detector
from engines.spec import ModelSpec


class Deployed(nn.Module):
    """(N, H, W, 3) uint8 BGR -> the outputs named in the spec, float32, whatever the network's own dtype.

    detector: scores (N, A), sides (N, A, 4) in strides, A as `detector_locations` has them: the network runs on
    the picture, and again on it at half size, where it finds the faces too large for it. landmarks: heatmaps
    (N, 5, H/4, W/4) of the last stack. embedder: embedding (N, D), unit length. attributes: age_years (N,),
    female (N,) probability, emotion (N, 8) probabilities. expression: probabilities (N, 5).
    """

    halve: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network.eval()
        self.task = spec.task
        self.mean, self.scale = spec.mean, 1 / spec.std
        # The mean of each 2x2 px, as a convolution: OpenVINO runs it three times as fast as average pooling.
        self.register_buffer("halve", torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2) / 4, persistent=False)
        self.dtype = next((p.dtype for p in network.parameters()), torch.float32)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        # Cast first: TensorRT takes uint8 only to cast it. Normalised in float32, exact in every precision.
        x = (images.float().permute(0, 3, 1, 2) - self.mean) * self.scale  # (N, 3, H, W)
        if self.task == "detector":
            return self._detect(x)
        output = self.network(x.to(self.dtype))
        if self.task == "landmarks":
            return (output[:, -1].float(),)
        if self.task == "embedder":
            return (F.normalize(output.float()),)
        if self.task == "expression":
            return (output.float().softmax(1),)
        age, female, emotion = (value.float() for value in output)
        return age.clamp(0, 120), female.sigmoid(), emotion.softmax(1)

    def _detect(self, x: Tensor) -> tuple[Tensor, Tensor]:
        half = F.conv2d(x, self.halve, stride=2)
        height, width = half.shape[2:]
        half = F.pad(half, (0, -width % 32, 0, -height % 32), value=(GREY - self.mean) * self.scale)
        assert isinstance(self.network, Detector)
        fine, coarse = self.network(x.to(self.dtype)), self.network.coarse(half.to(self.dtype))
        logits, sides = (torch.cat(both, 1) for both in zip(fine, coarse, strict=True))
        return logits.float().sigmoid(), sides.float()


def export(deployed: Deployed, size: tuple[int, int], device: str = "cpu") -> torch.export.ExportedProgram:
    """One program with a free batch size and a fixed (width, height): the source of every backend."""
    example = torch.zeros((2, size[1], size[0], 3), dtype=torch.uint8, device=device)
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(deployed, (example,), dynamic_shapes=({0: batch},))
