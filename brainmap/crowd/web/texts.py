"""The catalogue of texts."""

from __future__ import annotations

import functools
import tomllib
from importlib import resources

__all__ = ["catalogue", "texts"]


@functools.cache
def catalogue() -> dict[str, dict[str, str]]:
    """All texts: language by key."""
    text = (resources.files(__package__) / "texts.toml").read_text(encoding="utf-8")
    return {key: dict(values) for key, values in tomllib.loads(text).items()}


@functools.cache
def texts(language: str) -> dict[str, str]:
    """The texts of one language by key."""
    return {key: values[language] for key, values in catalogue().items()}
