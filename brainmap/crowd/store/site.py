"""A site: one folder with settings, tiles and backups, and one database."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from brainmap.crowd.store.consent import write_consent_texts
from brainmap.crowd.store.database import Database, database_url
from brainmap.crowd.store.migrate import migrate
from brainmap.crowd.store.settings import (
    CROWD_TOML,
    SiteSettings,
    read_secret,
    read_site_settings,
    write_private,
)
from brainmap.errors import UsageError

__all__ = ["Site", "init_site"]

TILES, BACKUPS = "tiles", "backups"

_TOML = """\
# Settings of this site; every line is optional. The environment wins: BRAINMAP_CROWD_DATABASE,
# BRAINMAP_CROWD_SECRET, BRAINMAP_CROWD_PUBLIC_URL.
{database}
# public_url = "https://cells.example.org"   # where people reach the site; needed behind a proxy or tunnel
# title = "Cells of the cortex"
# languages = ["en", "ja"]                   # the first is the default
# sign_up = true                             # may anybody make an account?
# clicks_after_deletion = "delete"           # or "anonymous": clicks of a deleted account stay without a name
# hold_minutes = 60                          # an unfinished tile goes to others after so long
# session_hours = 336
# idle_hours = 72
# scan_seconds = 60                          # how often projects' folders are searched for new images
# proxies = ["172.16.0.0/12"]                # whose X-Forwarded-For is believed
# [rates]
# log_in_account = "10/5minutes"             # failed log-ins of one name from one address
"""


@dataclass(frozen=True)
class Site:
    """An opened site.

    Parameters
    ----------
    folder : Path
    settings : SiteSettings
    database : Database
    secret : bytes
        Keys the fingerprints in the audit log.
    clock : callable
        Seconds since 1970; tests give their own.
    """

    folder: Path
    settings: SiteSettings
    database: Database
    secret: bytes
    clock: Callable[[], float] = time.time

    @classmethod
    def open(
        cls,
        folder: str | Path,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Site:
        """Open a site and bring its database to the present schema.

        Raises
        ------
        BrainmapError
            No site, wrong settings, no database, or one of a newer brainmap.
        """
        folder = Path(folder)
        settings = read_site_settings(folder, environment)
        database = Database(database_url(settings.database, folder))
        database.check()
        migrate(database)
        return cls(folder, settings, database, read_secret(folder, environment), clock)

    @property
    def tiles(self) -> Path:
        """Folder of the projects' tile folders."""
        return self.folder / TILES

    @property
    def backups(self) -> Path:
        """Folder of backups."""
        return self.folder / BACKUPS

    def fingerprint(self, value: str) -> str:
        """Keyed hash of an address or name: equal values are seen to be equal, and no more."""
        return hmac.new(self.secret, value.encode(), hashlib.sha256).hexdigest()[:16]

    def close(self) -> None:
        """Close the connections to the database."""
        self.database.close()


def init_site(folder: str | Path, database: str = "", environment: Mapping[str, str] | None = None) -> Site:
    """Make a site.

    Parameters
    ----------
    folder : path
        A new or empty folder.
    database : str
        PostgreSQL URL; empty: SQLite inside the folder.

    Raises
    ------
    UsageError
        The folder is a site already, or holds something else.
    """
    folder = Path(folder)
    if (folder / CROWD_TOML).exists():
        raise UsageError(f"{folder} is a crowd site already")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; give a new folder")
    url = database_url(database, folder)
    if database:
        # Before anything is written: a wrong URL leaves no half-made site.
        with_check = Database(url)
        with_check.check()
        with_check.close()
    for name in ("", TILES, BACKUPS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    line = f"database = {_quoted(database)}" if database else '# database = "postgresql://user@host/name"'
    write_private(folder / CROWD_TOML, _TOML.format(database=line))
    write_consent_texts(folder)
    return Site.open(folder, environment)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
