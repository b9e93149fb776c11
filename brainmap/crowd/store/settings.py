"""Settings of a site: `crowd.toml` and the environment, as one frozen record."""

from __future__ import annotations

import dataclasses
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from brainmap.errors import NotFoundError, UsageError
from brainmap.files import atomic_path
from brainmap.settings import read_settings

__all__ = [
    "CROWD_TOML",
    "LANGUAGES",
    "Rates",
    "SiteSettings",
    "read_secret",
    "read_site_settings",
    "write_private",
]

CROWD_TOML = "crowd.toml"
SECRET = "secret"
LANGUAGES = ("en", "ja")


@dataclass(frozen=True)
class Rates:
    """How often something may be done, in the words of `limits` ("10/5minutes").

    `log_in_*` count failures only, so that a class behind one address can log in at once.
    """

    log_in_account: str = "10/5minutes"
    log_in_name: str = "60/15minutes"
    log_in_address: str = "100/5minutes"
    sign_up_address: str = "600/hour"
    write_account: str = "6000/minute"
    write_address: str = "60000/minute"
    read_account: str = "12000/minute"
    export_account: str = "20/hour"

    def __post_init__(self) -> None:
        from limits import parse

        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            try:
                parse(value)
            except (ValueError, TypeError, AttributeError):
                raise UsageError(f"the rate {f.name} is {value!r}; write it as 10/minute") from None


@dataclass(frozen=True)
class SiteSettings:
    """What `crowd.toml` may say; every key is optional.

    Attributes
    ----------
    database : str
        URL of a PostgreSQL database; empty: `crowd.sqlite` in the site's folder.
    public_url : str
        Where people reach the site, such as https://cells.example.org; needed behind a proxy or a tunnel.
    title : str
        Name of the site, on every page.
    languages : tuple of str
        Offered languages; the first is the default.
    sign_up : bool
        Whether anybody who reaches the site may make an account.
    clicks_after_deletion : str
        "delete", or "anonymous": clicks of a deleted account stay without a name. Part of the consent text.
    session_hours, idle_hours : float
        A session ends so long after log-in, and after its last use.
    hold_minutes : float
        An unfinished tile is offered to others so long after its worker's last action on it.
    scan_seconds : float
        How often the projects' folders are looked through for new images; 0: only by hand.
    clicks_per_tile : int
        More clicks of one worker on one tile are refused.
    proxies : tuple of str
        Addresses or networks whose X-Forwarded-For is believed.
    rates : Rates
    """

    database: str = ""
    public_url: str = ""
    title: str = "brainmap"
    languages: tuple[str, ...] = LANGUAGES
    sign_up: bool = True
    clicks_after_deletion: str = "delete"
    session_hours: float = 336.0
    idle_hours: float = 72.0
    hold_minutes: float = 60.0
    scan_seconds: float = 60.0
    clicks_per_tile: int = 5000
    proxies: tuple[str, ...] = ()
    rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.languages if name not in LANGUAGES] or not self.languages:
            raise UsageError(f"languages are {unknown}; known are {', '.join(LANGUAGES)}")
        if self.clicks_after_deletion not in ("delete", "anonymous"):
            raise UsageError(
                f"clicks_after_deletion is {self.clicks_after_deletion!r}; say delete or anonymous"
            )
        for name in ("session_hours", "idle_hours", "hold_minutes", "clicks_per_tile"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number above 0")
        if self.public_url:
            parts = urlsplit(self.public_url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
                raise UsageError(f"public_url is {self.public_url!r}; write it as https://cells.example.org")

    @property
    def secure(self) -> bool:
        """Whether people reach the site by https: cookies are then bound to it."""
        return self.public_url.startswith("https://")


def read_site_settings(folder: str | Path, environment: Mapping[str, str] | None = None) -> SiteSettings:
    """Settings of a site: its `crowd.toml`, over which the environment wins.

    Raises
    ------
    NotFoundError
        The folder is no site.
    UsageError
        An unknown key or a value that cannot be; a password in a file that others can read.
    """
    path = Path(folder) / CROWD_TOML
    if not path.is_file():
        raise NotFoundError(
            f"{folder} is no crowd site: there is no {CROWD_TOML}; brainmap crowd init makes one"
        )
    known = {f.name for f in dataclasses.fields(SiteSettings)}
    values = read_settings(path, known)
    if urlsplit(str(values.get("database", ""))).password and _readable_by_others(path):
        raise UsageError(f"{path} holds a password and others can read it; run: chmod 600 {path}")
    environment = os.environ if environment is None else environment
    for name in ("database", "public_url"):
        if given := environment.get(f"BRAINMAP_CROWD_{name.upper()}"):
            values[name] = given
    if given := environment.get("BRAINMAP_CROWD_PROXIES"):
        values["proxies"] = [part.strip() for part in given.split(",")]
    return _record(values, str(path))


def _record(values: dict[str, Any], where: str) -> SiteSettings:
    rates = values.pop("rates", {})
    known = {f.name for f in dataclasses.fields(Rates)}
    if not isinstance(rates, dict) or (unknown := sorted(set(rates) - known)):
        raise UsageError(f"{where}: unknown rate {unknown[0] if isinstance(rates, dict) else rates!r}")
    defaults = SiteSettings()
    for name, value in values.items():
        kind = type(getattr(defaults, name))
        if kind is tuple and isinstance(value, list):
            values[name] = tuple(str(item) for item in value)
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            values[name] = float(value)
        elif type(value) is not kind:
            raise UsageError(f"{where}: {name} must be of type {kind.__name__}, not {value!r}")
    return SiteSettings(**values, rates=Rates(**rates))


def read_secret(folder: str | Path, environment: Mapping[str, str] | None = None) -> bytes:
    """The site's secret: from the environment, or the file `secret`, which only its owner may read.

    It keys the fingerprints of addresses and names in the audit log; losing it costs nothing but the link
    between old and new entries.

    Raises
    ------
    UsageError
        Others can read the file, or the secret is shorter than 16 characters.
    """
    environment = os.environ if environment is None else environment
    if given := environment.get("BRAINMAP_CROWD_SECRET"):
        if len(given) < 16:
            raise UsageError("BRAINMAP_CROWD_SECRET is shorter than 16 characters")
        return given.encode()
    path = Path(folder) / SECRET
    if not path.is_file():
        write_private(path, secrets.token_urlsafe(32) + "\n")
    if _readable_by_others(path):
        raise UsageError(f"{path} can be read by others; run: chmod 600 {path}")
    return path.read_bytes().strip()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)


def _readable_by_others(path: Path) -> bool:
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
