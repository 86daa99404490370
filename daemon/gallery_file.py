"""The gallery's SQLite file: made, brought to the newest schema, copied, checked, wiped; its errors in words."""

from __future__ import annotations

import os
import sqlite3
import time
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from daemon.whole_file import whole_file
from engines.errors import MienError

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

MAGIC = b"SQLite format 3\0"
JOURNALLED, PLAIN = b"\2\2", b"\1\1"
"""Bytes 18 and 19 of a file with and without a write-ahead log (https://www.sqlite.org/fileformat.html, 1.3.3)."""

BUSY_TIMEOUT_S = 5.0
DAMAGED = "damaged; restore it from a backup, or move it away and enrol again"
TRACES = (
    "who was erased is not known any more, but traces may be left in the file: do it again, for the same name"
)
NO_GALLERY = "not a gallery (no SQLite file); name another file, or move this one away"


def open_file(path: Path) -> sqlite3.Connection:
    """The gallery at a path, made where it is missing, for its owner alone (mode 0600).

    Raises MienError where it cannot be opened, is no SQLite, or belongs to another program or version.
    """
    with in_words(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        return _prepared(connection, path)


def _make(path: Path) -> None:
    """An empty file where none is; one that is there is not touched.

    Closing any descriptor of a file gives up all locks this process has on it (fcntl(2)), those of SQLite too.
    """
    with suppress(FileExistsError):
        # SQLite gives its journal the mode of the file, so it has to be right before SQLite makes it.
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def open_content(content: bytes, path: Path) -> sqlite3.Connection:
    """The gallery that the bytes of a file hold, in memory; raises as `open_file` does, naming `path`."""
    if not content.startswith(MAGIC):
        raise MienError(f"{path}: {NO_GALLERY}")
    with in_words(path):
        connection = sqlite3.connect(":memory:")
        connection.deserialize(content[:18] + PLAIN + content[20:])
        return _prepared(connection, path)


def content_of(connection: sqlite3.Connection) -> bytes:
    """A gallery of this moment as the bytes of a file that needs no journal beside it."""
    with closing(sqlite3.connect(":memory:")) as copy:
        connection.backup(copy)
        content = copy.serialize()
    return content[:18] + PLAIN + content[20:]


def _prepared(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    try:
        version = _version_of(connection, path)
        connection.create_function("nfc", 1, nfc, deterministic=True)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        while version < SCHEMA_VERSION:
            version = _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def nfc(name: str) -> str:
    """The form in which a name is kept and compared, of those in which Unicode can write the same letters."""
    return unicodedata.normalize("NFC", name)


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    num_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and (application or num_tables):
        raise MienError(f"{path}: belongs to another program; name another file as the gallery")
    if version > SCHEMA_VERSION:
        raise MienError(f"{path}: made by a newer Mien (gallery version {version}); update this one")
    return version


def _migrate(connection: sqlite3.Connection) -> int:
    """One step; returns the version then. Another process may have made it meanwhile."""
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


def check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Raises MienError where the file is damaged."""
    with in_words(path):
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise MienError(f"{path}: {DAMAGED}")


def wipe(connection: sqlite3.Connection, path: Path) -> None:
    """Leaves nothing in the file or its journal that is not in the gallery; raises MienError where it cannot."""
    until_s = time.monotonic() + BUSY_TIMEOUT_S
    try:
        connection.execute("VACUUM")
        while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until_s:
                raise MienError(f"{path}: its journal is in use; {TRACES}")
            time.sleep(0.05)
    except sqlite3.DatabaseError as error:
        raise MienError(f"{path}: {_explained(error)}; {TRACES}") from None


def write_backup(target: Path, content: bytes) -> None:
    """A gallery's bytes into a file for its owner alone, whole or not at all; raises MienError where it cannot be."""
    with whole_file(target) as part:
        part.chmod(0o600)
        part.write_bytes(content)


def read_backup(source: Path) -> bytes:
    """The bytes of a gallery file; raises MienError where it cannot be read."""
    try:
        return source.read_bytes()
    except OSError as error:
        raise MienError(f"{source}: cannot be read ({error.strerror}); check the path") from None


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Within, what SQLite or the system refuses is told as a MienError with a remedy."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise MienError(f"{path}: {_explained(error)}") from None
    except OSError as error:
        raise MienError(
            f"{path}: cannot be opened ({error.strerror}); check the path and its owner"
        ) from None


def _explained(error: sqlite3.DatabaseError) -> str:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_IOERR"):
        return "the disk refuses to read or write it; check that the disk is neither full nor failing"
    match name:
        case "SQLITE_NOTADB":
            return NO_GALLERY
        case "SQLITE_BUSY" | "SQLITE_LOCKED":
            return "another program is writing to it; try again"
        case "SQLITE_CORRUPT":
            return DAMAGED
        case "SQLITE_CANTOPEN":
            return "cannot be opened; check that it is a file, and who may write to it and its folder"
        case "SQLITE_READONLY" | "SQLITE_PERM":
            return "may not be written to; run as its owner or check its permissions"
        case "SQLITE_FULL":
            return "the disk is full; free some space"
    return f"{error}; check the file and its disk"
