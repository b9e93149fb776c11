"""Accounts from the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from brainmap.crowd.store import schema
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.site import Site
from brainmap.crowd.work import accounts
from brainmap.crowd.work.passwords import Passwords
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = ["add_user", "delete_user", "list_users", "reset_user"]


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Site]:
    site = Site.open(folder)
    try:
        yield site
    except Refused as error:
        kind = DataError if error.status == 409 else UsageError
        raise kind(error.sentence) from error
    finally:
        site.close()


def add_user(folder: Path, name: str, password: str, role: str) -> None:
    """Add an account.

    Raises
    ------
    UsageError, DataError
        A name or password that cannot be; a name that is taken.
    """
    with _opened(folder) as site:
        accounts.add_account(site, accounts.check_name(name), Passwords().hash(password), role=role)


def list_users(folder: Path) -> list[dict[str, Any]]:
    """All accounts: name, role, language, created_at, disabled."""
    table = schema.worker
    with _opened(folder) as site, site.database.read() as connection:
        rows = connection.execute(
            select(table.c.name, table.c.role, table.c.language, table.c.created_at, table.c.disabled)
            .where(table.c.password.is_not(None))
            .order_by(table.c.id)
        )
        return [dict(row._mapping) for row in rows]


def reset_user(folder: Path, name: str, password: str) -> None:
    """Set a new password and end all sessions."""
    with _opened(folder) as site:
        accounts.set_password(site, _number(site, name), Passwords().hash(password))


def delete_user(folder: Path, name: str) -> None:
    """Delete an account, and its clicks or their name."""
    with _opened(folder) as site:
        accounts.delete_account(site, _number(site, name))


def _number(site: Site, name: str) -> int:
    with site.database.read() as connection:
        row = accounts.find_account(connection, name)
    if row is None or row.password is None:
        raise NotFoundError(f"there is no account {name!r}")
    return int(row.id)
