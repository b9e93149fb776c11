"""A database of the version before becomes one of this version, with everything in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import inspect, select, text

from brainmap.crowd.store import schema
from brainmap.crowd.store.backup import advance_sequences
from brainmap.crowd.store.database import Database, database_url
from brainmap.crowd.store.migrate import VERSION, migrate, version_of
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.export import export_project
from brainmap.errors import DataError

from ..conftest import Person

HERE = Path(__file__).parent


def make_version_1(database: Database) -> None:
    """Schema 1 from its own words."""
    name = "sqlite" if database.sqlite else "postgresql"
    script = (HERE / f"schema_1_{name}.sql").read_text()
    # A trigger's body has semicolons of its own.
    statements = re.split(r";\n\n", re.sub(r"^--.*\n", "", script))
    with database.write() as connection:
        for statement in statements:
            connection.execute(
                text(statement.rstrip().removesuffix(";") if "TRIGGER" not in statement else statement)
            )
        connection.execute(schema.schema_version.insert().values(version=1, applied_at=0.0))


def empty(database: Database) -> None:
    """Drop all tables of a database."""
    with database.write() as connection:
        if database.sqlite:
            connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        for table in reversed(schema.metadata.sorted_tables):
            connection.execute(text(f"DROP TABLE {table.name}"))
        if not database.sqlite:
            connection.execute(text("DROP FUNCTION IF EXISTS audit_refuse"))


def structure(database: Database) -> dict[str, object]:
    """Tables with their columns and indexes, for comparison."""
    found = inspect(database.engine)
    return {
        table: (
            sorted((c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)),
            sorted(str(i["name"]) for i in found.get_indexes(table)),
            sorted(str(k["referred_table"]) for k in found.get_foreign_keys(table)),
        )
        for table in found.get_table_names()
    }


def test_the_version_before_exports_the_same(app, site, clock, tmp_path):
    ann = Person(app, "Ann")
    ann.work_through(lambda tile: [(5, 5), (9, 60)], most=3)
    ann.put(ann.next()["tile"], 7, 7)
    export_project(site, "cortex", tmp_path / "before")
    fresh = structure(site.database)
    tables = [t for t in schema.metadata.sorted_tables if t.name not in ("analysis", "schema_version")]
    with site.database.read() as connection:
        rows = {t.name: [dict(r._mapping) for r in connection.execute(select(t))] for t in tables}
    empty(site.database)
    make_version_1(site.database)
    with site.database.write() as connection:
        for table in tables:
            if rows[table.name]:
                connection.execute(table.insert(), rows[table.name])
        advance_sequences(connection)
    again = Site.open(site.folder, {"BRAINMAP_CROWD_DATABASE": site.settings.database}, clock)
    try:
        with again.database.read() as connection:
            assert version_of(connection) == VERSION
        assert structure(again.database) == fresh
        export_project(again, "cortex", tmp_path / "after")
    finally:
        again.close()
    for path in (tmp_path / "before").glob("*.csv"):
        assert path.read_text() == (tmp_path / "after" / path.name).read_text()
    # A second time there is nothing to do.
    assert migrate(site.database) == VERSION


def test_a_newer_database_is_left_alone(site):
    with site.database.write() as connection:
        connection.execute(schema.schema_version.insert().values(version=VERSION + 1, applied_at=0.0))
    with pytest.raises(DataError, match="install a newer brainmap"):
        migrate(site.database)


def test_urls_of_postgresql_are_understood(tmp_path):
    for given in (
        "postgresql://me@host/name",
        "postgres://me@host/name",
        "postgresql+psycopg://me@host/name",
    ):
        assert database_url(given, tmp_path) == "postgresql+psycopg://me@host/name"
    assert database_url("", tmp_path).startswith("sqlite")
