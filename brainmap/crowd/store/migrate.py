"""Versions of the schema: a new database gets the present one, an older one is brought to it step by step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.schema import CreateIndex, CreateTable

from brainmap.crowd.store import schema
from brainmap.crowd.store.database import Database
from brainmap.errors import DataError

__all__ = ["VERSION", "migrate", "version_of"]

log = logging.getLogger(__name__)

VERSION = 2


def version_of(connection: Connection) -> int:
    """Version of the schema; 0 where there is none."""
    if not inspect(connection).has_table(schema.schema_version.name):
        return 0
    found = connection.execute(select(schema.schema_version.c.version)).scalars().all()
    return max(found, default=0)


def migrate(database: Database) -> int:
    """Bring a database to the present version, in one transaction; return the version it had.

    Raises
    ------
    DataError
        The database was made by a newer brainmap.
    """
    with database.write() as connection:
        found = version_of(connection)
        if found > VERSION:
            raise DataError(
                f"the database has schema {found}, this brainmap knows {VERSION}; install a newer brainmap"
            )
        if found == VERSION:
            return found
        if found == 0:
            _create(connection)
        for version in range(found + 1, VERSION + 1) if found else ():
            log.info("bringing the database from schema %d to %d", version - 1, version)
            STEPS[version](connection)
        connection.execute(schema.schema_version.insert().values(version=VERSION, applied_at=time.time()))
    return found


def _create(connection: Connection) -> None:
    for table in schema.metadata.sorted_tables:
        connection.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            connection.execute(CreateIndex(index))
    _protect_audit(connection)


def _protect_audit(connection: Connection) -> None:
    """Entries of the audit log are written once: the database itself refuses to change or remove them."""
    if connection.dialect.name == "sqlite":
        for event in ("UPDATE", "DELETE"):
            connection.execute(
                text(
                    f"CREATE TRIGGER audit_no_{event.lower()} BEFORE {event} ON audit "
                    "BEGIN SELECT RAISE(ABORT, 'the audit log cannot be changed'); END"
                )
            )
        return
    connection.execute(
        text(
            "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ "
            "BEGIN RAISE EXCEPTION 'the audit log cannot be changed'; END $$"
        )
    )
    connection.execute(
        text(
            "CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
        )
    )


def _add_analysis(connection: Connection) -> None:
    """2: results of the analysis in the background, and members by data set."""
    connection.execute(CreateTable(schema.analysis))
    index = next(i for i in schema.membership.indexes if i.name == "membership_of_project")
    connection.execute(CreateIndex(index))


# What brings schema n - 1 to n, by n.
STEPS: dict[int, Callable[[Connection], None]] = {2: _add_analysis}
