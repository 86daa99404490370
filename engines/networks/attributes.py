"""Age, gender and emotion from one trunk.

B batch, C channels, Y age bins; emotions in the order of engines.spec.EMOTIONS.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engines.networks.embedder import FaceTrunk
from engines.networks.layers import behind_imagenet_input

AGE_UNIT = 100.0  # years: an age head without bins works near 0..1


class AttributesNet(nn.Module):
    """Normalised attribute crop (B, 3, S, S) -> age in years (B,), logit of female (B,), emotion logits (B, 8).

    `age_bins` Y makes the age the mean of a distribution over 0, 1 .. Y - 1 years (Rothe et al. 2018, "DEX",
    sec. 3.2); 0 makes it one number. `backbone` names a torchvision classifier to take the trunk's place;
    with `imagenet_input` it is fed as its ImageNet weights are used to.
    """

    years: Tensor

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256),
        emotions: int = 8,
        age_bins: int = 0,
        input_size: int = 112,
        backbone: str = "",
        imagenet_input: bool = False,
    ) -> None:
        super().__init__()
        if backbone:
            body, channels = torchvision_trunk(backbone)
            self.trunk = behind_imagenet_input(body) if imagenet_input else body
        else:
            self.trunk, channels = FaceTrunk(widths, size=input_size), widths[-1]
        self.shared = nn.Sequential(nn.Linear(channels, 128), nn.BatchNorm1d(128), nn.ReLU())  # (B, 128)
        self.age = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, age_bins or 1))
        self.gender = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        self.emotion = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, emotions))
        self.register_buffer("years", torch.arange(age_bins or 1, dtype=torch.float), persistent=False)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: age logits (B, Y), or age / 100 (B, 1); logit of female (B,); emotion logits (B, 8)."""
        shared = self.shared(self.trunk(x))
        return self.age(shared), self.gender(shared).squeeze(1), self.emotion(shared)

    def years_of(self, age: Tensor) -> Tensor:
        """The age head's output -> years (B,)."""
        if age.shape[1] == 1:
            return age.squeeze(1) * AGE_UNIT
        # Not a matrix product: autocast would round the years to three digits.
        years: Tensor = (age.float().softmax(1) * self.years).sum(1)
        return years

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        age, female, emotion = self.heads(x)
        return self.years_of(age), female, emotion


def torchvision_trunk(name: str) -> tuple[nn.Module, int]:
    """A torchvision classifier without its last layer, freshly initialised, and the channels it yields."""
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    path, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    return model, last.in_features
