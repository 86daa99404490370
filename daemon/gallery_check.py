"""A gallery's self-test: what in it will lead to wrong names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from daemon.config import IdentityConfig
from daemon.gallery import Gallery
from daemon.identity import threshold_of
from daemon.looks import EnrolledLook, PersonSummary
from engines.runtime import spec_of

Floats = NDArray[np.float32]


class Looks(Protocol):
    """A gallery, opened here or through a daemon."""

    def people(self) -> list[PersonSummary]: ...
    def looks(self, name: str) -> list[EnrolledLook]: ...


def findings(gallery: Looks, settings: IdentityConfig, embedder: Path | None = None) -> list[str]:
    """What is wrong, one line each with its remedy. Raises MienError where a file opened here is damaged.

    embedder: a model in ours' place, as engines.embedder names it.
    """
    if isinstance(gallery, Gallery):
        gallery.check_whole()
    threshold = threshold_of(settings, spec_of("embedder", embedder))
    people = [person.name for person in gallery.people()]
    comparable: dict[tuple[str, int], dict[str, list[EnrolledLook]]] = {}
    for name in people:
        for look in gallery.looks(name):
            kind = look.model, look.embedding.size
            comparable.setdefault(kind, {}).setdefault(name, []).append(look)
    found: list[str] = []
    for looks_of in comparable.values():
        found += [line for name, looks in looks_of.items() for line in _strangers(name, looks, threshold)]
        found += _too_alike(looks_of, threshold)
    num_lengths = Counter(model for model, _ in comparable)
    if len(num_lengths) > 1:
        found.append(
            f"looks of {len(num_lengths)} embedders ({', '.join(num_lengths)}): enrol all with the one in use"
        )
    found += [
        f"embeddings of {num} lengths by {model}: {_by_length(comparable, model)}; remove those of another than its own"
        for model, num in num_lengths.items()
        if num > 1
    ]
    return found


def _by_length(comparable: Mapping[tuple[str, int], Collection[str]], model: str) -> str:
    return ", ".join(
        f"{size} numbers ({', '.join(names)})" for (of, size), names in comparable.items() if of == model
    )


def _strangers(name: str, looks: Sequence[EnrolledLook], threshold: float) -> list[str]:
    """Images that are less alike to all others of their person than two people may be."""
    if len(looks) < 2:
        return []
    rows = np.stack([look.embedding for look in looks])
    alike = rows @ rows.T
    np.fill_diagonal(alike, -1)
    return [
        f"{name}: {look.image} is unlike the other images (similarity {best:.2f}, needed {threshold:.2f});"
        f" is it {name}?"
        for look, best in zip(looks, alike.max(1), strict=True)
        if best < threshold
    ]


def _too_alike(looks_of: dict[str, list[EnrolledLook]], threshold: float) -> list[str]:
    rows = {name: np.stack([look.embedding for look in looks]) for name, looks in looks_of.items()}
    found = []
    for one, other in combinations(rows, 2):
        best = float((rows[one] @ rows[other].T).max())
        if best >= threshold:
            found.append(
                f"{one} and {other} are too alike (similarity {best:.2f}, threshold {threshold:.2f});"
                " one person under two names, or an image of the wrong one?"
            )
    return found
