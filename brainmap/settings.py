"""Files of settings in TOML, and records of settings: an unknown key is always an error."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from brainmap.errors import NotFoundError, UsageError, did_you_mean

__all__ = ["check_keys", "read_settings", "read_table"]


def read_settings(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """Read a TOML file of settings.

    Parameters
    ----------
    path : str or Path
    known : iterable of str
        The keys that it may have.

    Raises
    ------
    NotFoundError
        If there is no such file.
    UsageError
        If it is not TOML, or has a key that is not a setting.
    """
    settings = _read_toml(Path(path))
    known = set(known)
    unknown = sorted(set(settings) - known)
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise UsageError(
            f"{path}: unknown setting {unknown[0]!r}{near or '; known are ' + ', '.join(sorted(known))}"
        )
    return settings


def read_table(path: str | Path | None, name: str) -> dict[str, Any]:
    """The one table of a settings file that holds no other; empty where there is no file or no table.

    Raises
    ------
    NotFoundError, UsageError
        As `read_settings`; also where there is anything but the table.
    """
    settings = {} if path is None else _read_toml(Path(path))
    table = settings.get(name, {})
    if set(settings) - {name} or not isinstance(table, dict):
        raise UsageError(f"{path} must hold one table, [{name}], with all settings in it")
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise NotFoundError(f"there is no settings file {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error


def check_keys(kind: type[Any], record: Mapping[str, Any], what: str) -> None:
    """Refuse a record of settings with a key that a dataclass does not know, or without one it needs.

    Raises
    ------
    UsageError
        Which key, and in `what`.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := sorted(set(record) - set(known)):
        raise UsageError(f"unknown setting {unknown[0]!r} in {what}; known are {', '.join(known)}")
    needed = {
        name for name, f in known.items() if f.default is f.default_factory is dataclasses.MISSING and f.init
    }
    if missing := sorted(needed - set(record)):
        raise UsageError(f"the setting {missing[0]!r} is missing in {what}")
