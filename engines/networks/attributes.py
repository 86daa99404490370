"""Age, gender and emotion from one trunk.

B batch; emotions in the order of engines.spec.EMOTIONS.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from engines.networks.embedder import FaceTrunk

AGE_UNIT = 100.0  # years: the age head works near 0..1


class AttributesNet(nn.Module):
    """Normalised attribute crop (B, 3, 112, 112) -> age in years (B,), logit of female (B,), emotion logits (B, 8)."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), emotions: int = 8) -> None:
        super().__init__()
        self.trunk = FaceTrunk(widths)
        self.shared = nn.Sequential(nn.Linear(widths[-1], 128), nn.BatchNorm1d(128), nn.ReLU())  # (B, 128)
        self.age = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        self.gender = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        self.emotion = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, emotions))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shared = self.shared(self.trunk(x))
        age = self.age(shared).squeeze(1) * AGE_UNIT
        return age, self.gender(shared).squeeze(1), self.emotion(shared)
