"""Accounts and sessions: pseudonyms, roles, log-in, deletion."""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from brainmap.crowd.store import audit, schema
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.passwords import Passwords

__all__ = [
    "ROLES",
    "Worker",
    "add_account",
    "check_name",
    "delete_account",
    "end_session",
    "end_sessions",
    "find_account",
    "log_in",
    "name_key",
    "open_session",
    "renew_consent",
    "session_worker",
    "set_password",
]

ROLES = ("worker", "expert", "admin")
# A write for every request would cost more than the knowledge is worth.
SEEN_EVERY_S = 300.0
# Every request asks this: it is built once.
_WHOSE = (
    select(schema.worker, schema.session.c.last_seen, schema.session.c.expires_at)
    .join(schema.session, schema.session.c.worker_id == schema.worker.c.id)
    .where(schema.session.c.token_hash == bindparam("hashed"))
)
_NAME_CATEGORIES = ("L", "M", "N")
_NAME_OTHERS = " ._-"


@dataclass(frozen=True)
class Worker:
    """Who makes a request."""

    id: int
    name: str
    role: str
    language: str
    consent_version: str | None
    session: str

    @property
    def counts(self) -> bool:
        """Whether this person's answers are the crowd's: those of experts and administrators are kept apart."""
        return self.role == "worker"


def check_name(name: object) -> str:
    """An acceptable pseudonym: 2 to 40 letters, digits, spaces, dots, dashes, underscores; no e-mail address.

    Raises
    ------
    Refused
    """
    if not isinstance(name, str):
        raise Refused(422, "the name must be text")
    name = unicodedata.normalize("NFKC", name).strip()
    if "@" in name:
        raise Refused(422, "please choose a pseudonym, not an e-mail address")
    if not 2 <= len(name) <= 40:
        raise Refused(422, "the name must have 2 to 40 characters")
    good = all(unicodedata.category(c)[0] in _NAME_CATEGORIES or c in _NAME_OTHERS for c in name)
    if not good or unicodedata.category(name[0])[0] not in ("L", "N"):
        raise Refused(422, "the name may hold letters, digits, spaces, dots, dashes and underscores")
    return name


def name_key(name: str) -> str:
    """What two names must not share: case and width do not make a name another one."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


def add_account(
    site: Site,
    name: str,
    password_hash: str,
    *,
    role: str = "worker",
    language: str = "en",
    consent: str | None = None,
    address: str = "",
    by: int | None = None,
) -> int:
    """Make an account; return its number.

    Raises
    ------
    Refused
        409: the name is taken.
    """
    now = site.clock()
    try:
        with site.database.write() as connection:
            row = connection.execute(
                schema.worker.insert().values(
                    name=name, name_key=name_key(name), password=password_hash, role=role, language=language,
                    consent_version=consent, consent_at=now if consent else None, created_at=now,
                )
            )  # fmt: skip
            number = int(row.inserted_primary_key[0])  # type: ignore[index]
            audit.note(site, connection, "account added", by or number, address, account=number, role=role)
            if consent:
                audit.note(site, connection, "consent", number, address, version=consent)
    except IntegrityError:
        raise Refused(409, "this name is taken; please choose another") from None
    return number


def log_in(site: Site, passwords: Passwords, name: object, password: object, address: str = "") -> int:
    """Check a name and a password; return the account's number.

    A wrong name and a wrong password take the same time and look the same.

    Raises
    ------
    Refused
        401.
    """
    if not isinstance(name, str) or not isinstance(password, str):
        raise Refused(422, "give name and password as text")
    table = schema.worker
    with site.database.read() as connection:
        row = connection.execute(
            select(table.c.id, table.c.password, table.c.disabled).where(
                table.c.name_key == name_key(name[:200])
            )
        ).first()
    right, better = passwords.verify(password, row.password if row else None)
    with site.database.write() as connection:
        if row is None or not right or row.disabled:
            audit.note(
                site, connection, "log-in refused", None, address, name=site.fingerprint(name_key(name[:200]))
            )
        else:
            if better:
                connection.execute(update(table).where(table.c.id == row.id).values(password=better))
            audit.note(site, connection, "log-in", row.id, address)
    if row is None or not right or row.disabled:
        raise Refused(401, "the name or the password is wrong")
    return int(row.id)


def open_session(site: Site, worker_id: int, replaces: str | None = None) -> str:
    """A new session; return its token. The session that the browser had, if any, ends."""
    token, now = secrets.token_urlsafe(32), site.clock()
    table = schema.session
    with site.database.write() as connection:
        if replaces:
            connection.execute(delete(table).where(table.c.token_hash == _hashed(replaces)))
        connection.execute(delete(table).where(table.c.expires_at < now))
        connection.execute(
            table.insert().values(
                token_hash=_hashed(token), worker_id=worker_id, created_at=now, last_seen=now,
                expires_at=now + 3600 * site.settings.session_hours,
            )
        )  # fmt: skip
    return token


def session_worker(site: Site, connection: Connection, token: str | None) -> Worker | None:
    """Whose session a token stands for; none if it is unknown, expired, unused for too long or disabled."""
    if not token or len(token) > 100:
        return None
    hashed, now = _hashed(token), site.clock()
    row = connection.execute(_WHOSE, {"hashed": hashed}).first()
    if row is None or row.disabled or row.expires_at < now:
        return None
    if row.last_seen < now - 3600 * site.settings.idle_hours:
        return None
    if row.last_seen < now - SEEN_EVERY_S:
        with site.database.write() as own:
            table = schema.session
            own.execute(update(table).where(table.c.token_hash == hashed).values(last_seen=now))
    return Worker(row.id, row.name, row.role, row.language, row.consent_version, hashed)


def end_session(site: Site, worker: Worker, address: str = "") -> None:
    """Log out: the token is worth nothing from now on."""
    with site.database.write() as connection:
        connection.execute(delete(schema.session).where(schema.session.c.token_hash == worker.session))
        audit.note(site, connection, "log-out", worker.id, address)


def end_sessions(connection: Connection, worker_id: int) -> None:
    """End all sessions of an account, on all devices."""
    connection.execute(delete(schema.session).where(schema.session.c.worker_id == worker_id))


def renew_consent(site: Site, worker: Worker, version: str, address: str = "") -> None:
    """Record that a worker agrees to the present text."""
    table = schema.worker
    with site.database.write() as connection:
        connection.execute(
            update(table)
            .where(table.c.id == worker.id)
            .values(consent_version=version, consent_at=site.clock())
        )
        audit.note(site, connection, "consent", worker.id, address, version=version)


def find_account(connection: Connection, name: str) -> Any:
    """The row of an account by its name, or none."""
    table = schema.worker
    return connection.execute(select(table).where(table.c.name_key == name_key(name))).first()


def set_password(site: Site, worker_id: int, password_hash: str, by: int | None = None) -> None:
    """Set a new password and end all sessions."""
    table = schema.worker
    with site.database.write() as connection:
        connection.execute(update(table).where(table.c.id == worker_id).values(password=password_hash))
        end_sessions(connection, worker_id)
        audit.note(site, connection, "password reset", by, account=worker_id)


def delete_account(site: Site, worker_id: int, by: int | None = None, address: str = "") -> None:
    """Delete an account; its clicks go with it or lose their name, as the consent text says.

    What the worker has not agreed to is not done: a worker without consent to anonymous clicks has none kept,
    since the setting is part of the version he agreed to.
    """
    worker, assignment, tile = schema.worker, schema.assignment, schema.tile
    with site.database.write() as connection:
        audit.note(site, connection, "account deleted", by, address, account=worker_id)
        if site.settings.clicks_after_deletion == "anonymous":
            anonymous = f"gone-{secrets.token_hex(6)}"
            end_sessions(connection, worker_id)
            connection.execute(
                update(worker).where(worker.c.id == worker_id).values(
                    name=anonymous, name_key=anonymous, password=None, role=_gone(connection, worker_id),
                    disabled=True, consent_version=None, consent_at=None, language="en",
                )
            )  # fmt: skip
            # What he has not finished goes to others at once.
            connection.execute(
                update(assignment)
                .where(assignment.c.worker_id == worker_id, assignment.c.completed_at.is_(None))
                .values(held_until=0.0)
            )
            return
        done = (
            select(assignment.c.tile_id, func.count().label("n"))
            .where(
                assignment.c.worker_id == worker_id,
                assignment.c.counts,
                assignment.c.completed_at.is_not(None),
            )
            .group_by(assignment.c.tile_id)
        )
        for tile_id, n in connection.execute(done).all():
            # The judgement was made with his clicks: it is to be made again.
            connection.execute(
                update(tile)
                .where(tile.c.id == tile_id)
                .values(n_completed=tile.c.n_completed - n, n_judged=0, n_undecided=0)
            )
        connection.execute(delete(worker).where(worker.c.id == worker_id))


def _gone(connection: Connection, worker_id: int) -> str:
    """The role a deleted account keeps: an expert's anonymous clicks stay an expert's."""
    role = connection.execute(select(schema.worker.c.role).where(schema.worker.c.id == worker_id)).scalar()
    return "expert" if role in ("expert", "admin") else "worker"


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
