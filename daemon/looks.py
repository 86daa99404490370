"""What the gallery holds: people, the looks they were enrolled with, and all of them as one matrix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.errors import UsageError
from engines.spec import ModelSpec

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class EnrolledLook:
    """One image of a person. embedding: (D,) float32 unit vector of the embedder named `model`."""

    model: str
    embedding: Floats
    image: str
    image_sha256: str
    interocular_px: float
    enrolled_at: str = ""


@dataclass(frozen=True, slots=True)
class PersonSummary:
    """One enrolled person."""

    name: str
    num_looks: int
    models: tuple[str, ...]
    enrolled_at: str


@dataclass(frozen=True, slots=True, eq=False)
class GallerySnapshot:
    """The looks of one embedder: embeddings (K, D) unit rows, owners (K,) ascending indices into names."""

    names: tuple[str, ...]
    embeddings: Floats
    owners: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or self.embeddings.shape[0] != len(self.owners):
            raise ValueError(f"embeddings {self.embeddings.shape} do not fit owners {self.owners.shape}")

    def similarities(self, embeddings: Floats) -> Floats:
        """(M, P) cosines of (M, D) unit rows to each person: to the nearest look, or to the mean of all."""
        if not self.names:
            return np.zeros((len(embeddings), 0), np.float32)
        starts = np.searchsorted(self.owners, np.arange(len(self.names)))
        return np.maximum.reduceat(embeddings @ self.embeddings.T, starts, axis=1)


EMPTY_SNAPSHOT = GallerySnapshot((), np.zeros((0, 0), np.float32), np.zeros(0, np.int64))


def model_id(spec: ModelSpec) -> str:
    """Which weights an embedding is of; those of others are not comparable."""
    return f"{spec.name}@{spec.weights_sha256[:12] or 'unknown'}"


def check_fit(looks: Iterable[EnrolledLook], spec: ModelSpec) -> None:
    """Raises UsageError for a look of another embedder than the one in use, or of another length than it gives."""
    used, size = model_id(spec), spec.network_args.get("embedding_size")
    for look in looks:
        if look.model != used:
            raise UsageError(
                f"{look.image}: its embedding is of {look.model}, and {used} is in use; they do not compare: enrol"
                " with the embedder that is in use"
            )
        if size is not None and look.embedding.size != size:
            raise UsageError(
                f"{look.image}: an embedding of {look.embedding.size} numbers, and {used} gives {size}; it is of"
                " another embedder"
            )


def snapshot_of(looks_of: Mapping[str, Sequence[Floats]]) -> GallerySnapshot:
    """The people of now, by name, each with the rows (D,) of their looks."""
    rows: list[Floats] = []
    owners: list[int] = []
    for owner, looks in enumerate(looks_of.values()):
        mean = np.mean(looks, axis=0)
        own = looks if len(looks) == 1 else [*looks, mean / max(float(np.linalg.norm(mean)), 1e-9)]
        rows += own
        owners += [owner] * len(own)
    if not rows:
        return EMPTY_SNAPSHOT
    return GallerySnapshot(tuple(looks_of), np.stack(rows).astype(np.float32), np.array(owners, np.int64))
