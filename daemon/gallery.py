"""Who is enrolled, by the embeddings of their faces, in one SQLite file that only its owner reads."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from daemon.whole_file import whole_file
from engines.errors import MienError, UsageError
from engines.spec import ModelSpec

Floats = NDArray[np.float32]

APPLICATION_ID = 0x4D69656E
"""Written into the file's header: "Mien"."""

SCHEMA_VERSION = 2
MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS people (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    enrolled_at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS looks (
    id INTEGER PRIMARY KEY,
    person INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    embedding BLOB NOT NULL,
    image TEXT NOT NULL,
    image_sha256 TEXT NOT NULL,
    interocular_px REAL NOT NULL,
    enrolled_at TEXT NOT NULL,
    UNIQUE (person, model, image_sha256)
) STRICT;
""",
    "CREATE INDEX IF NOT EXISTS looks_by_model ON looks (model, person);",
)
"""MIGRATIONS[n] makes a gallery of version n one of version n + 1; each is done wholly or not at all."""

BUSY_TIMEOUT_S = 5.0
DAMAGED = "damaged; restore it from a backup, or move it away and enrol again"
MAX_NAME_LENGTH = 100
MAX_NAMES_SHOWN = 5


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


class NoGalleryError(MienError):
    """There is no gallery file."""


def model_id(spec: ModelSpec) -> str:
    """Which weights an embedding is of; those of others are not comparable."""
    return f"{spec.name}@{spec.weights_sha256[:12] or 'unknown'}"


class Gallery:
    """An open gallery file, made where it is missing; use it as a context manager.

    create: False leaves a file that is missing alone. Raises MienError where the file cannot be opened, is no
    SQLite, or belongs to another program or version.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if not create and not path.exists():
            raise NoGalleryError(f"{path}: nobody is enrolled yet; mien gallery enroll NAME IMAGE...")
        with _in_words(path):
            _make_private(path)
            self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            with _in_words(path):
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        connection = self._connection
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        num_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if application != APPLICATION_ID and (application or num_tables):
            raise MienError(f"{self.path}: belongs to another program; name another file as the gallery")
        if version > SCHEMA_VERSION:
            raise MienError(f"{self.path}: made by a newer Mien (gallery version {version}); update this one")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        while version < SCHEMA_VERSION:
            version = self._migrate()

    def _migrate(self) -> int:
        """One step; returns the version then. Another process may have made it meanwhile."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version < SCHEMA_VERSION:
                for statement in MIGRATIONS[version].split(";"):
                    connection.execute(statement)
                version += 1
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version}")
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        return version

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def version(self) -> int:
        """A number that differs once another connection has changed the file; quick to ask for."""
        with _in_words(self.path):
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
        with _in_words(self.path), self._connection as connection:
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
        with _in_words(self.path):
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
        with _in_words(self.path):
            rows = self._connection.execute(query, (name,)).fetchall()
        return [EnrolledLook(row[0], np.frombuffer(row[1], "<f4"), *row[2:]) for row in rows]

    def remove(self, name: str) -> None:
        """Erases a person wholly: overwritten in the file, and gone from its journal.

        Raises MienError where nobody has that name.
        """
        self._known(name)
        with _in_words(self.path):
            with self._connection as connection:
                connection.execute("DELETE FROM people WHERE name = ?", (name,))
            self._scrub()

    def _scrub(self) -> None:
        """Leaves nothing in the file or its journal that is not in the gallery."""
        self._connection.execute("VACUUM")
        until_s = time.monotonic() + BUSY_TIMEOUT_S
        while self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until_s:
                raise MienError(
                    f"{self.path}: erased, but its journal is in use and may hold traces; do it again"
                )
            time.sleep(0.05)

    def backup(self, target: Path) -> int:
        """Writes the gallery of this moment to another file, whole or not at all; returns how many people.

        Raises MienError where it cannot be written.
        """
        with whole_file(target) as part, _in_words(target):
            part.chmod(0o600)
            with closing(sqlite3.connect(part)) as copy:
                self._connection.backup(copy)
                # A file of its own: no journal beside it.
                copy.execute("PRAGMA journal_mode = DELETE")
        return len(self.people())

    def content(self) -> bytes:
        """The gallery of this moment as the bytes of a file."""
        with tempfile.TemporaryDirectory(prefix="mien-") as folder:
            path = Path(folder) / "gallery.sqlite"
            self.backup(path)
            return path.read_bytes()

    def restore(self, source: Path) -> int:
        """Takes the people of another gallery file in place of those of now; returns how many.

        Raises MienError where the other file is missing, damaged or no gallery; then nothing has changed.
        """
        with tempfile.TemporaryDirectory(prefix="mien-") as folder:
            # A copy: it may be of an older version, and is not to be changed.
            copied = Path(folder) / "gallery.sqlite"
            with _in_words(source):
                copied.write_bytes(source.read_bytes())
            with _named(source, copied), Gallery(copied) as other:
                other.check_whole()
                with _in_words(self.path):
                    other._connection.backup(self._connection)
                    self._scrub()
        return len(self.people())

    def check_whole(self) -> None:
        """Raises MienError where the file is damaged."""
        with _in_words(self.path):
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise MienError(f"{self.path}: {DAMAGED}")

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
        with _in_words(self.path):
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
        return _snapshot(own)


def _snapshot(looks_of: dict[str, list[Floats]]) -> GallerySnapshot:
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


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its journal the mode of the file, so it has to be right before SQLite makes it.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


@contextmanager
def _named(path: Path, other: Path) -> Iterator[None]:
    """Errors of `other` are told of `path`."""
    try:
        yield
    except MienError as error:
        raise MienError(str(error).replace(str(other), str(path))) from None


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise MienError(f"{path}: {_explained(error)}") from None
    except OSError as error:
        raise MienError(
            f"{path}: cannot be opened ({error.strerror}); check the path and its owner"
        ) from None


def _explained(error: sqlite3.DatabaseError) -> str:
    match error.sqlite_errorname:
        case "SQLITE_NOTADB":
            return "not a gallery (no SQLite file); name another file, or move this one away"
        case "SQLITE_BUSY" | "SQLITE_LOCKED":
            return "another program is writing to it; try again"
        case "SQLITE_CORRUPT":
            return DAMAGED
        case "SQLITE_READONLY" | "SQLITE_CANTOPEN" | "SQLITE_PERM":
            return "may not be written to; run as its owner or check its permissions"
        case "SQLITE_FULL":
            return "the disk is full; free some space"
    return f"{error}; check the file and its disk"
