"""Backup and restore: one archive of everything a site is, from either kind of database into either.

The tables are written as lines of JSON, read from one consistent state while the site goes on. Sessions are left
out: who restores a site logs in again. The secret is left out, too; a new one is made.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Table, func, select, text

from brainmap import __version__
from brainmap.crowd.store import audit, schema
from brainmap.crowd.store.migrate import VERSION, version_of
from brainmap.crowd.store.settings import CROWD_TOML, LANGUAGES
from brainmap.crowd.store.site import Site, init_site
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import atomic_path, now

__all__ = ["Backup", "advance_sequences", "back_up", "restore"]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_LEFT_OUT = {schema.session.name, schema.schema_version.name}
_CHUNK = 2000


@dataclass(frozen=True)
class Backup:
    """Where it lies and how many rows each table has."""

    path: Path
    rows: dict[str, int]


def back_up(site: Site, path: str | Path) -> Backup:
    """Write a backup; the file appears when it is complete, and only its owner can read it.

    Raises
    ------
    UsageError
        The file exists.
    """
    path = Path(path)
    if path.exists():
        raise UsageError(f"{path} exists; give a new file")
    rows: dict[str, int] = {}
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
            with site.database.snapshot() as connection:
                version = version_of(connection)
                for table in _tables():
                    rows[table.name] = _add_table(archive, connection, table)
            # Tiles never change once they are there: those of the snapshot are all on disk.
            archive.add(site.tiles, "tiles", filter=_whole)
            for name in (CROWD_TOML, *(f"consent.{language}.txt" for language in LANGUAGES)):
                if (site.folder / name).is_file():
                    archive.add(site.folder / name, name)
            manifest = {"kind": "brainmap crowd backup", "schema": version, "brainmap": __version__,
                        "at": now(), "rows": rows}  # fmt: skip
            # Last: an archive without it is not whole.
            _add_bytes(archive, MANIFEST, json.dumps(manifest, indent=2).encode())
    with site.database.write() as connection:
        audit.note(site, connection, "backup", rows=sum(rows.values()))
    return Backup(path, rows)


def restore(path: str | Path, folder: str | Path, database: str = "") -> Site:
    """Make a new site of a backup.

    Parameters
    ----------
    folder : path
        A new or empty folder.
    database : str
        PostgreSQL URL of an empty database; empty: SQLite, also where the backup came from PostgreSQL.

    Raises
    ------
    NotFoundError, DataError, UsageError
        No such file; no whole backup, or one of a newer brainmap; a site or data where it should go.
    """
    path, folder = Path(path), Path(folder)
    if not path.is_file():
        raise NotFoundError(f"there is no backup {path}")
    with tempfile.TemporaryDirectory(prefix="brainmap-restore-") as work:
        unpacked = Path(work)
        try:
            with tarfile.open(path) as archive:
                archive.extractall(unpacked, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{path} is no whole backup: {error}") from error
        manifest = _manifest(unpacked, path)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} exists and is not empty; give a new folder")
        with atomic_path(folder) as part:
            site = init_site(part, database)
            try:
                _fill(site, unpacked, manifest)
            finally:
                site.close()
            _keep_settings(unpacked / CROWD_TOML, part / CROWD_TOML)
    return Site.open(folder)


def _fill(site: Site, unpacked: Path, manifest: dict[str, Any]) -> None:
    with site.database.write() as connection:
        _refuse_data(connection, site)
        for table in _tables():
            file = unpacked / "tables" / f"{table.name}.jsonl.gz"
            _load_table(connection, table, file, manifest["rows"].get(table.name, 0))
        advance_sequences(connection)
        audit.note(site, connection, "restore", made=manifest["at"])
    for source in sorted((unpacked / "tiles").rglob("*")):
        if source.is_file():
            target = site.tiles / source.relative_to(unpacked / "tiles")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for language in LANGUAGES:
        if (source := unpacked / f"consent.{language}.txt").is_file():
            shutil.copyfile(source, site.folder / source.name)


def _keep_settings(old: Path, new: Path) -> None:
    """The old settings, but the database of the new site."""
    if not old.is_file():
        return
    line = next((t for t in new.read_text(encoding="utf-8").splitlines() if t.startswith("database")), "")
    kept = [
        t
        for t in old.read_text(encoding="utf-8").splitlines()
        if not t.replace(" ", "").startswith("database=")
    ]
    new.write_text("\n".join([line, *kept] if line else kept) + "\n", encoding="utf-8")


def _whole(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out files that are being written this moment."""
    return None if Path(entry.name).name.startswith(".tmp-") else entry


def _tables() -> list[Table]:
    return [table for table in schema.metadata.sorted_tables if table.name not in _LEFT_OUT]


def _add_table(archive: tarfile.TarFile, connection: Connection, table: Table) -> int:
    count = 0
    with tempfile.TemporaryFile() as stream:
        with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=3, mtime=0) as packed:
            keys = list(table.primary_key.columns)
            for row in connection.execute(select(table).order_by(*keys)):
                packed.write(json.dumps(dict(row._mapping), ensure_ascii=False).encode() + b"\n")
                count += 1
        _add_stream(archive, f"tables/{table.name}.jsonl.gz", stream)
    return count


def _add_stream(archive: tarfile.TarFile, name: str, stream: IO[bytes]) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = stream.seek(0, os.SEEK_END)
    entry.mode = 0o600
    stream.seek(0)
    archive.addfile(entry, stream)


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    _add_stream(archive, name, io.BytesIO(content))


def _manifest(unpacked: Path, path: Path) -> dict[str, Any]:
    file = unpacked / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    if manifest.get("kind") != "brainmap crowd backup":
        raise DataError(f"{path} is no whole backup of a crowd site")
    if manifest["schema"] > VERSION:
        raise DataError(
            f"{path} has schema {manifest['schema']}, this brainmap knows {VERSION}; install a newer brainmap"
        )
    return dict(manifest)


def _refuse_data(connection: Connection, site: Site) -> None:
    if connection.execute(select(func.count()).select_from(schema.project)).scalar_one():
        raise UsageError(f"the database of {site.folder} holds projects already; restore into an empty one")


def _load_table(connection: Connection, table: Table, file: Path, expected: int) -> None:
    loaded = 0
    for rows in _chunks(file):
        # Columns that came with a newer schema take their default.
        known = {column.name for column in table.columns}
        connection.execute(table.insert(), [{k: v for k, v in row.items() if k in known} for row in rows])
        loaded += len(rows)
    if loaded != expected:
        raise DataError(f"table {table.name} of the backup has {loaded} rows, not {expected}: it is damaged")


def _chunks(file: Path) -> Iterator[list[dict[str, Any]]]:
    if not file.is_file():
        return
    rows = []
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        for line in stream:
            rows.append(json.loads(line))
            if len(rows) == _CHUNK:
                yield rows
                rows = []
    if rows:
        yield rows


def advance_sequences(connection: Connection) -> None:
    """PostgreSQL counts new rows on its own: from behind the restored ones."""
    if connection.dialect.name != "postgresql":
        return
    for table in _tables():
        if "id" in table.c and table.name != "click":
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "
                    f"GREATEST((SELECT COALESCE(MAX(id), 0) FROM {table.name}), 1))"
                )
            )
