"""The tables of a site, as they are now; `brainmap.crowd.store.migrate` brings older ones here.

Times are seconds since 1970, UTC. Coordinates are tile pixels: x right, y down, 0 = centre of the first pixel.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

__all__ = [
    "analysis",
    "assignment",
    "audit",
    "click",
    "membership",
    "metadata",
    "practice_cell",
    "project",
    "schema_version",
    "session",
    "subtile_seen",
    "tile",
    "worker",
]

metadata = MetaData()

# SQLite makes row ids of INTEGER keys only; PostgreSQL gets 8 bytes.
Id = BigInteger().with_variant(Integer, "sqlite")

schema_version = Table(
    "schema_version",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("applied_at", Float(53), nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("name_key", String(250), nullable=False, unique=True),
    Column("password", Text),  # none: an imported worker, who cannot log in
    Column("role", String(20), nullable=False),  # worker, expert, admin, imported
    Column("language", String(5), nullable=False),
    Column("consent_version", String(40)),
    Column("consent_at", Float(53)),
    Column("created_at", Float(53), nullable=False),
    Column("disabled", Boolean, nullable=False, server_default=false()),
)

session = Table(
    "session",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("worker_id", Id, ForeignKey("worker.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Float(53), nullable=False),
    Column("last_seen", Float(53), nullable=False),
    Column("expires_at", Float(53), nullable=False),
)

project = Table(
    "project",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", String(60), nullable=False, unique=True),
    Column("title", String(200), nullable=False),
    Column("languages", String(40), nullable=False),
    Column("redundancy", Integer),  # none: until certain
    Column("least", Integer, nullable=False),  # workers a tile gets at least, until certain
    Column("most", Integer, nullable=False),
    Column("paused", Boolean, nullable=False, server_default=false()),
    Column("created_at", Float(53), nullable=False),
)

tile = Table(
    "tile",
    metadata,
    Column("id", Id, primary_key=True),
    Column("project_id", Id, ForeignKey("project.id", ondelete="CASCADE"), nullable=False),
    Column("image_id", String(400), nullable=False),
    Column("kind", String(10), nullable=False),  # work, qc, practice
    Column("dataset", String(100), nullable=False),
    Column("file", String(500), nullable=False),  # below the site's tiles/
    Column("height", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("origin", Text, nullable=False),  # the other columns of tiles.parquet, as JSON
    Column("n_completed", Integer, nullable=False, server_default="0"),  # by workers who count
    Column("n_judged", Integer, nullable=False, server_default="0"),  # n_completed at the last judgement
    Column("n_undecided", Integer, nullable=False, server_default="0"),  # candidates left undecided then
    UniqueConstraint("project_id", "kind", "image_id"),
    Index("tile_of_dataset", "project_id", "kind", "dataset"),
)

practice_cell = Table(
    "practice_cell",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tile_id", Id, ForeignKey("tile.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("x", Float(53), nullable=False),
    Column("y", Float(53), nullable=False),
)

membership = Table(
    "membership",
    metadata,
    Column("worker_id", Id, ForeignKey("worker.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", Id, ForeignKey("project.id", ondelete="CASCADE"), primary_key=True),
    Column("dataset", String(100), nullable=False),
    Column("seed", Integer, nullable=False),  # of the order of this worker's tiles
    Column("joined_at", Float(53), nullable=False),
    Index("membership_of_project", "project_id", "dataset"),
)

assignment = Table(
    "assignment",
    metadata,
    Column("id", Id, primary_key=True),
    Column("token", String(40), nullable=False, unique=True),  # the tile's name for this worker alone
    Column("worker_id", Id, ForeignKey("worker.id", ondelete="CASCADE"), nullable=False),
    Column("tile_id", Id, ForeignKey("tile.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("project_id", Id, ForeignKey("project.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),  # order of display, from 1
    Column("counts", Boolean, nullable=False),  # false: practice, experts; never part of the redundancy
    Column("opened_at", Float(53), nullable=False),
    Column("held_until", Float(53), nullable=False),
    Column("completed_at", Float(53)),
    Column("n_clicks", Integer, nullable=False, server_default="0"),
    UniqueConstraint("worker_id", "tile_id"),
    Index("assignment_open", "project_id", "completed_at", "held_until"),
)

subtile_seen = Table(
    "subtile_seen",
    metadata,
    Column("assignment_id", Id, ForeignKey("assignment.id", ondelete="CASCADE"), primary_key=True),
    Column("idx", Integer, primary_key=True, autoincrement=False),
    Column("at", Float(53), nullable=False),
)

click = Table(
    "click",
    metadata,
    Column("assignment_id", Id, ForeignKey("assignment.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(36), primary_key=True),  # made by the client: a lost answer costs no second click
    Column("x", Float(53)),  # none: deleted before it arrived
    Column("y", Float(53)),
    Column("subtile", Integer),
    Column("at", Float(53)),  # by the client's clock
    Column("received_at", Float(53), nullable=False),
    Column("deleted_at", Float(53)),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Id, primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("worker_id", BigInteger),  # no foreign key: the entry outlives the account
    Column("action", String(60), nullable=False),
    Column("detail", Text, nullable=False),
    Column("address", String(32), nullable=False),  # keyed fingerprint, never the address
)

analysis = Table(
    "analysis",
    metadata,
    Column("project_id", Id, ForeignKey("project.id", ondelete="CASCADE"), primary_key=True),
    Column("at", Float(53), nullable=False),
    Column("n_clicks", Integer, nullable=False),
    Column("result", Text, nullable=False),  # JSON
)
