"""Who is enrolled, by the embeddings of their faces, in one SQLite file that only its owner reads."""

from __future__ import annotations

from collections import Counter
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
    nfc,
    open_content,
    open_file,
    read_backup,
    wipe,
    write_backup,
)
from daemon.looks import EnrolledLook, Floats, GallerySnapshot, PersonSummary, snapshot_of
from daemon.paths import stat_of
from daemon.printable import JOINERS, is_printable
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

        Raises UsageError for a name that is empty, too long or holds control characters, and for an embedding of
        another length than its embedder's others.
        """
        name, now = checked_name(name), datetime.now(UTC).isoformat(timespec="seconds")
        insert = (
            "INSERT OR IGNORE INTO looks"
            " (person, model, embedding, image, image_sha256, interocular_px, enrolled_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        add = (
            "INSERT INTO people (name, enrolled_at) SELECT :name, :now"
            " WHERE NOT EXISTS (SELECT 1 FROM people WHERE nfc(name) = :name)"
        )
        find = "SELECT min(id) FROM people WHERE nfc(name) = ?"
        with in_words(self.path), self._connection as connection:
            connection.execute(add, {"name": name, "now": now})
            (person,) = connection.execute(find, (name,)).fetchone()
            self._check_lengths(looks)
            before = connection.total_changes
            for look in looks:
                blob = look.embedding.astype("<f4").tobytes()
                row = (person, look.model, blob, look.image, look.image_sha256, look.interocular_px, now)
                connection.execute(insert, row)
            return connection.total_changes - before

    def _check_lengths(self, looks: Sequence[EnrolledLook]) -> None:
        query = "SELECT length(embedding) / 4 FROM looks WHERE model = ? LIMIT 1"
        known: dict[str, int] = {}
        for look in looks:
            size = look.embedding.size
            if look.model not in known:
                stored = self._connection.execute(query, (look.model,)).fetchone()
                known[look.model] = stored[0] if stored else size
            if size != known[look.model]:
                raise UsageError(
                    f"{look.image}: an embedding of {size} numbers, and those of {look.model} have"
                    f" {known[look.model]}; it is of another embedder"
                )

    def people(self) -> list[PersonSummary]:
        """Everybody, by name."""
        query = (
            "SELECT nfc(people.name), people.enrolled_at, looks.model, count(looks.id)"
            " FROM people LEFT JOIN looks ON looks.person = people.id"
            " GROUP BY people.id, looks.model ORDER BY 1, looks.model"
        )
        with in_words(self.path):
            rows = self._connection.execute(query).fetchall()
        found: dict[str, PersonSummary] = {}
        for name, enrolled_at, model, num_looks in rows:
            before = found.get(name, PersonSummary(name, 0, (), enrolled_at))
            models = before.models if model in (None, *before.models) else (*before.models, model)
            found[name] = PersonSummary(name, before.num_looks + num_looks, models, enrolled_at)
        return list(found.values())

    def looks(self, name: str) -> list[EnrolledLook]:
        """A person's images in the order of enrolment; raises MienError where nobody has that name."""
        query = (
            "SELECT model, embedding, image, image_sha256, interocular_px, looks.enrolled_at"
            " FROM looks JOIN people ON people.id = looks.person WHERE nfc(people.name) = ? ORDER BY looks.id"
        )
        with in_words(self.path):
            rows = self._connection.execute(query, (nfc(name),)).fetchall()
        if not rows:
            self._check_known(name)
        return [EnrolledLook(row[0], np.frombuffer(row[1], "<f4"), *row[2:]) for row in rows]

    def remove(self, name: str) -> None:
        """Erases a person wholly: overwritten in the file, and gone from its journal.

        Raises MienError where nobody has that name; what an erasure that failed midway left is overwritten then, too.
        """
        with in_words(self.path):
            with self._connection as connection:
                erased = connection.execute("DELETE FROM people WHERE nfc(name) = ?", (nfc(name),)).rowcount
            wipe(self._connection, self.path)
        if not erased:
            self._check_known(name)

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

    def _check_known(self, name: str) -> None:
        names = [person.name for person in self.people()]
        if nfc(name) not in names:
            remedy = f"enrolled are: {_few(names)}" if names else "nobody is enrolled yet"
            raise MienError(f"{self.path}: nobody is called {name!r}; {remedy}")

    def snapshot(self, model: str) -> GallerySnapshot:
        """The embeddings of one embedder; people who have none of it are left out.

        Raises MienError naming those whose embeddings are not as long as most.
        """
        query = (
            "SELECT nfc(people.name), looks.embedding FROM looks JOIN people ON people.id = looks.person"
            " WHERE looks.model = ? ORDER BY people.id, looks.id"
        )
        with in_words(self.path):
            rows = self._connection.execute(query, (model,)).fetchall()
        lengths = Counter(len(blob) for _, blob in rows)
        if len(lengths) > 1:
            usual = lengths.most_common(1)[0][0]
            odd = dict.fromkeys(name for name, blob in rows if len(blob) != usual)
            raise MienError(
                f"{self.path}: {_few(list(odd))} enrolled with embeddings of another length than most of {model};"
                " remove them, and enrol them again"
            )
        own: dict[str, list[Floats]] = {}
        for name, blob in rows:
            own.setdefault(name, []).append(np.frombuffer(blob, "<f4"))
        return snapshot_of(own)

    def left_out(self, model: str) -> str:
        """Who is enrolled with other embedders only, and what to do, in words; empty where nobody is."""
        people = [person for person in self.people() if person.models and model not in person.models]
        if not people:
            return ""
        others = sorted({other for person in people for other in person.models})
        return (
            f"{self.path}: {_few([person.name for person in people])} enrolled with the embedder"
            f" {', '.join(others)}, and {model} is in use; its embeddings do not compare: enrol them again with"
            " `mien gallery enroll`, or remove them"
        )


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_SHOWN])
    more = len(names) - MAX_NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def checked_name(name: str) -> str:
    """The name in its one form (NFC), without blanks around it; raises UsageError where it cannot serve as one."""
    name = nfc(name).strip()
    whole = name == name.strip(JOINERS) and is_printable(name)
    if not name or len(name) > MAX_NAME_LENGTH or not whole:
        raise UsageError(f"{name!r} is no name; give 1 to {MAX_NAME_LENGTH} printable characters")
    return name
