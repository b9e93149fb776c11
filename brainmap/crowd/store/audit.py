"""The audit log: who did what when. Entries hold numbers and fingerprints, never names or addresses."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, select

from brainmap.crowd.store import schema
from brainmap.crowd.store.site import Site

__all__ = ["last_entries", "note"]


def note(
    site: Site,
    connection: Connection,
    action: str,
    worker_id: int | None = None,
    address: str = "",
    **detail: Any,
) -> None:
    """Add an entry within a transaction.

    Parameters
    ----------
    action : str
        Such as "log-in" or "export".
    worker_id : int, optional
        Who did it; none: the command line, or nobody known.
    address : str
        Where it came from; only its fingerprint is stored.
    """
    connection.execute(
        schema.audit.insert().values(
            at=site.clock(),
            worker_id=worker_id,
            action=action,
            detail=json.dumps(detail, sort_keys=True, ensure_ascii=False),
            address=site.fingerprint(address) if address else "",
        )
    )


def last_entries(connection: Connection, count: int = 200) -> list[dict[str, Any]]:
    """The latest entries, newest first."""
    table = schema.audit
    rows = connection.execute(select(table).order_by(table.c.id.desc()).limit(count))
    return [dict(row._mapping) for row in rows]
