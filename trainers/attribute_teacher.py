"""What a trained attributes network makes of labelled faces: softer targets of age and gender for the next one."""

from pathlib import Path

import numpy as np
import torch

from engines.checkpoint import load_checkpoint
from engines.errors import UsageError
from engines.geometry import FACE_SIZE, Floats
from engines.networks import AttributesNet
from trainers.faces import ROOM
from trainers.fit import image_batch

AT_ONCE = 64


class AttributesTeacher:
    """Stored crops (M, 144, 144, 3) uint8 BGR -> (M, Y + 1): how likely each year of age is, then that it is a woman.

    The mean of a face's and its mirror image's answers, to learn from beside the labels (Hinton et al. 2015,
    "Distilling the knowledge in a neural network", sec. 2).
    Raises UsageError for a checkpoint that is no attributes network of this crop with `age_bins`.
    """

    def __init__(self, checkpoint: str, age_bins: int) -> None:
        network, spec = load_checkpoint(Path(checkpoint))
        fits = isinstance(network, AttributesNet) and spec.input_size == (FACE_SIZE, FACE_SIZE)
        same_crop = fits and spec.aligned and not spec.room
        if not same_crop or not age_bins or network.years.numel() != age_bins:
            raise UsageError(
                f"learn_from={checkpoint}: is no attributes checkpoint of the daemon's crop of {FACE_SIZE} px "
                f"with {age_bins} age_bins"
            )
        self.age_bins = age_bins
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> Floats:
        found = []
        for first in range(0, len(crops), AT_ONCE):
            faces = np.ascontiguousarray(crops[first : first + AT_ONCE, ROOM:-ROOM, ROOM:-ROOM])
            images = image_batch(torch.from_numpy(faces).to(self.device))
            sides = []
            for side in (images, images.flip(3)):
                age, female, _ = self.network.heads(side)
                sides.append(torch.cat((age.softmax(1), female.sigmoid()[:, None]), 1))
            found.append(torch.stack(sides).mean(0).cpu().numpy())
        return np.concatenate(found)
