"""Who is enrolled, by the embeddings of their faces, in one SQLite file that only its owner reads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np

from daemon.gallery_file import (
    check_whole,
    content_of,
    in_words,
    open_content,
    open_file,
    read_backup,
    wipe,
    write_backup,
)
from daemon.looks import EnrolledLook, Floats, GallerySnapshot, PersonSummary, snapshot_of
from daemon.paths import stat_of
from engines.errors import MienError, UsageError

MAX_NAME_LENGTH = 100
MAX_NAMES_SHOWN = 5


class NoGalleryError(MienError):
    """There is no gallery file."""


class Gallery:
    """An open gallery file, made where it is missing; use it as a context manager.

    create: False leaves a file that is missing alone. Raises MienError where the file cannot be opened, is no
    SQLite, or belongs to another program or version.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if not create and stat_of(path) is None:
            raise NoGalleryError(f"{path}: nobody is enrolled yet; mien gallery enroll NAME IMAGE...")
        self._connection = open_file(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def version(self) -> int:
        """A number that differs once another connection has changed the file; quick to ask for."""
        with in_words(self.path):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def enrol(self, name: str, looks: Sequence[EnrolledLook]) -> int:
        """Adds looks to a person, new or not, all or none; returns how many were not there before.

        Raises UsageError for a name that is empty, too long or holds control characters.
        """
        name, now = checked_name(name), datetime.now(UTC).isoformat(timespec="seconds")
        insert = (
            "INSERT OR IGNORE INTO looks"
            " (person, model, embedding, image, image_sha256, interocular_px, enrolled_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        with in_words(self.path), self._connection as connection:
            connection.execute("INSERT OR IGNORE INTO people (name, enrolled_at) VALUES (?, ?)", (name, now))
            person = connection.execute("SELECT id FROM people WHERE name = ?", (name,)).fetchone()[0]
            before = connection.total_changes
            for look in looks:
                blob = look.embedding.astype("<f4").tobytes()
                row = (person, look.model, blob, look.image, look.image_sha256, look.interocular_px, now)
                connection.execute(insert, row)
            return connection.total_changes - before

    def people(self) -> list[PersonSummary]:
        """Everybody, by name."""
        query = (
            "SELECT people.name, people.enrolled_at, looks.model, count(looks.id)"
            " FROM people LEFT JOIN looks ON looks.person = people.id"
            " GROUP BY people.id, looks.model ORDER BY people.name, looks.model"
        )
        with in_words(self.path):
            rows = self._connection.execute(query).fetchall()
        found: dict[str, PersonSummary] = {}
        for name, enrolled_at, model, num_looks in rows:
            before = found.get(name, PersonSummary(name, 0, (), enrolled_at))
            models = (*before.models, model) if model else before.models
            found[name] = PersonSummary(name, before.num_looks + num_looks, models, enrolled_at)
        return list(found.values())

    def looks(self, name: str) -> list[EnrolledLook]:
        """A person's images in the order of enrolment; raises MienError where nobody has that name."""
        self._known(name)
        query = (
            "SELECT model, embedding, image, image_sha256, interocular_px, looks.enrolled_at"
            " FROM looks JOIN people ON people.id = looks.person WHERE people.name = ? ORDER BY looks.id"
        )
        with in_words(self.path):
            rows = self._connection.execute(query, (name,)).fetchall()
        return [EnrolledLook(row[0], np.frombuffer(row[1], "<f4"), *row[2:]) for row in rows]

    def remove(self, name: str) -> None:
        """Erases a person wholly: overwritten in the file, and gone from its journal.

        Raises MienError where nobody has that name.
        """
        self._known(name)
        with in_words(self.path):
            with self._connection as connection:
                connection.execute("DELETE FROM people WHERE name = ?", (name,))
            wipe(self._connection, self.path)

    def backup(self, target: Path) -> int:
        """Writes the gallery of this moment to another file, whole or not at all; returns how many people.

        Raises MienError where it cannot be written.
        """
        write_backup(target, self.content())
        return len(self.people())

    def content(self) -> bytes:
        """The gallery of this moment as the bytes of a file."""
        with in_words(self.path):
            return content_of(self._connection)

    def restore(self, source: Path) -> int:
        """Takes the people of another gallery file in place of those of now; returns how many.

        Raises MienError where the other file is missing, damaged or no gallery; then nothing has changed.
        """
        return self.restore_content(read_backup(source), source)

    def restore_content(self, content: bytes, source: Path) -> int:
        """The same for the bytes of a file; `source` names it in errors."""
        with closing(open_content(content, source)) as other:
            check_whole(other, source)
            with in_words(self.path):
                other.backup(self._connection)
                wipe(self._connection, self.path)
        return len(self.people())

    def check_whole(self) -> None:
        """Raises MienError where the file is damaged."""
        check_whole(self._connection, self.path)

    def _known(self, name: str) -> None:
        names = [person.name for person in self.people()]
        if name not in names:
            remedy = f"enrolled are: {_few(names)}" if names else "nobody is enrolled yet"
            raise MienError(f"{self.path}: nobody is called {name!r}; {remedy}")

    def snapshot(self, model: str) -> GallerySnapshot:
        """Everybody's embeddings of one embedder.

        Raises MienError where somebody is enrolled with other embedders only: they could never be recognised.
        """
        query = (
            "SELECT people.name, looks.model, looks.embedding"
            " FROM looks JOIN people ON people.id = looks.person ORDER BY people.id, looks.id"
        )
        with in_words(self.path):
            rows = self._connection.execute(query).fetchall()
        own: dict[str, list[Floats]] = {name: [] for name, _, _ in rows}
        for name, look_model, blob in rows:
            if look_model == model:
                own[name].append(np.frombuffer(blob, "<f4"))
        if strangers := [name for name, found in own.items() if not found]:
            others = ", ".join(sorted({look_model for _, look_model, _ in rows if look_model != model}))
            raise MienError(
                f"{self.path}: {_few(strangers)} enrolled with the embedder {others}, and {model} is in use;"
                " its embeddings do not compare: enrol them again with `mien gallery enroll`, or remove them"
            )
        return snapshot_of(own)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    more = len(names) - MAX_NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def checked_name(name: str) -> str:
    """The name without blanks around it; raises UsageError where it cannot serve as one."""
    name = name.strip()
    if not name or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise UsageError(f"{name!r} is no name; give 1 to {MAX_NAME_LENGTH} printable characters")
    return name
