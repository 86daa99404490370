"""Masked-autoencoder pretraining of ViT-tiny on unlabelled faces (He et al. 2022).

Three quarters of the patches are hidden; a small decoder draws them from the rest. B batch, T tokens, D width.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engines.errors import MienError
from engines.geometry import ATTRIBUTE_TEMPLATE, Floats, Image
from engines.networks import ExpressionNet
from engines.networks.expression import AttentionBlock, VisionTransformer, sine_positions
from trainers.expression_crops import changed, draw_changed
from trainers.faces import FaceFinder, batched, box_from_interocular, stored_crop
from trainers.fit import FitOptions, RandomSamples, Recipe, fit, image_batch
from trainers.held import Draw
from trainers.label_checks import checked_rows, number, pictures
from trainers.recognition_sets import is_validation, utkface_part
from trainers.whole_file import whole_file
from trainers.zips import ImageZip

MASKED = 0.75  # sec. 4.1
DECODER = (96, 2, 3)  # width, blocks, heads: a light one is enough to pretrain for fine-tuning (sec. 4.1)
UNLABELLED = {
    "celeba_faces": (25.0, 0.45),
    "utkface": (43.0, 0.30),
}  # stored interocular px of 112, eye height


class MaskedAutoencoder(nn.Module):
    """Normalised faces (B, 3, 112, 112) and noise (B, T) -> mean squared error on the hidden patches."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__()
        width, blocks, heads = DECODER
        self.encoder = encoder
        self.narrow = nn.Linear(encoder.positions.shape[2], width)
        self.hidden = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("places", sine_positions(encoder.side, width), persistent=False)
        self.decoder = nn.Sequential(
            *[AttentionBlock(width, heads) for _ in range(blocks)],
            nn.LayerNorm(width),
            nn.Linear(width, 3 * encoder.patch**2),
        )

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        tokens = self.encoder.tokens(x)  # (B, T, D)
        order = noise.argsort(1)
        seen = order[:, : round(tokens.shape[1] * (1 - MASKED))]
        visible = tokens.gather(1, seen[..., None].expand(-1, -1, tokens.shape[2]))
        encoded = self.narrow(self.encoder.norm(self.encoder.blocks(visible)))  # (B, T / 4, d)
        whole = self.hidden.to(encoded.dtype).expand(len(x), tokens.shape[1], -1)
        whole = whole.scatter(1, seen[..., None].expand(-1, -1, encoded.shape[2]), encoded)
        drawn = self.decoder(whole + self.places).float()  # (B, T, 3 * patch²)
        hidden = torch.ones_like(noise).scatter(1, seen, 0.0)
        error = (drawn - patches(x, self.encoder.patch)).square().mean(2)
        return (error * hidden).sum() / hidden.sum()


def patches(x: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, T, 3 * size²), each patch of mean 0 and deviation 1 (sec. 4.1, "reconstruction target")."""
    cut = nn.functional.unfold(x.float(), size, stride=size).transpose(1, 2)
    return (cut - cut.mean(2, keepdim=True)) / (cut.var(2, keepdim=True) + 1e-6).sqrt()


class MaskedRecipe(Recipe):
    """The hidden patches' error."""

    def loss(self, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        images, noise = batch
        return self.network(image_batch(images), noise), {}


class FaceSamples(RandomSamples):
    """Any face, changed a little: image (112, 112, 3) uint8 BGR, noise (T,) that tells which patches are hidden."""

    def __init__(self, sets: list[np.ndarray], tokens: int) -> None:
        super().__init__(sum(len(each) for each in sets))
        self.sets, self.tokens = sets, tokens
        self.shares = np.array([len(each) for each in sets], float) / self.length

    def pictures(self) -> list[np.ndarray]:
        return self.sets

    def draw(self, rng: np.random.Generator, count: int, first: int = 0) -> Draw:
        rows = rng.integers(sum(len(each) for each in self.sets), size=count)
        noise = rng.random((count, self.tokens)).astype(np.float32)
        return draw_changed(rng, rows, np.zeros(count, bool), (noise,))

    def sample(self, rng: np.random.Generator) -> tuple[Image, Floats]:
        faces = self.sets[int(rng.choice(len(self.sets), p=self.shares))]
        face = changed(rng, faces[int(rng.integers(len(faces)))], masked=False)
        return face, rng.random(self.tokens).astype(np.float32)


def unlabelled_faces(folder: str, limit: int) -> list[np.ndarray]:
    """Stored attribute crops of CelebA's and UTKFace's training parts, where their zips are."""
    found = []
    for name, (interocular, height) in UNLABELLED.items():
        try:
            data = ImageZip(folder, name)
        except MienError:
            continue  # a user's own folders have no such set beside them
        checks = [number("identity", 0, math.inf, int)] if name == "celeba_faces" else []
        with data:
            rows = [
                row
                for row in checked_rows(data, checks)
                if (
                    utkface_part(row["file"]) == "train"
                    if name == "utkface"
                    else not is_validation(int(row["identity"]))
                )
            ]
            finder, crops = FaceFinder(), []
            for images in batched(pictures(data, [row["file"] for row in rows][: limit or None])):
                side = images[0].shape[0]
                guess = box_from_interocular(side, interocular * side / 112, height)
                points, _ = finder.refine(images, np.tile(guess, (len(images), 1)))
                crops += [stored_crop(i, p, ATTRIBUTE_TEMPLATE) for i, p in zip(images, points, strict=True)]
        if crops:
            found.append(np.stack(crops))
    return found


def pretrain(
    network: ExpressionNet, fit_options: FitOptions, epochs: int, run: Path, sets: list[np.ndarray]
) -> None:
    """Fill the trunk of a `vit_tiny`; kept in `run`/pretraining, which a second call resumes or takes as it is."""
    encoder = network.trunk
    assert isinstance(encoder, VisionTransformer)
    options = dataclasses.replace(fit_options, epochs=epochs, patience=0, until=0.0)
    samples = FaceSamples(sets, encoder.side**2)
    run = run / "pretraining"
    done = run / "encoder.pt"
    if not done.is_file():
        trained = fit(MaskedRecipe(MaskedAutoencoder(encoder), options), samples, run)
        with whole_file(done) as file:
            torch.save(trained.encoder.state_dict(), file)
    encoder.load_state_dict(torch.load(done, weights_only=True))
