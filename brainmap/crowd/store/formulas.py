"""Cells of a CSV that a spreadsheet would take for a formula: made harmless, and read back unchanged."""

from __future__ import annotations

__all__ = ["neutral", "original"]

_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")


def neutral(text: str) -> str:
    """Text that no spreadsheet computes: one apostrophe before what could be a formula.

    An apostrophe at the start gets one, too, so that `original` can take exactly one away.
    """
    return f"'{text}" if text.startswith(_STARTS) else text


def original(text: str) -> str:
    """What `neutral` was given."""
    return text[1:] if len(text) > 1 and text[0] == "'" and text[1] in _STARTS else text
