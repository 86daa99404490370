"""A gallery's self-test: what in it will lead to wrong names."""

from __future__ import annotations

from collections.abc import Sequence
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
    by_model: dict[str, dict[str, list[EnrolledLook]]] = {}
    for name in people:
        for look in gallery.looks(name):
            by_model.setdefault(look.model, {}).setdefault(name, []).append(look)
    found: list[str] = []
    for looks_of in by_model.values():
        found += [line for name, looks in looks_of.items() for line in _strangers(name, looks, threshold)]
        found += _too_alike(looks_of, threshold)
    if len(by_model) > 1:
        found.append(
            f"looks of {len(by_model)} embedders ({', '.join(by_model)}): enrol all with the one in use"
        )
    return found


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
