"""What the axes of a stored image are: roles told by the file, or by its owner with `--axes`.

A role is one of the letters t, c, z, y, x, or "?" for an axis of another kind, which must have one entry.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import UsageError

__all__ = ["check_axes", "in_zyx_order", "parse_axes", "warn_of_planes_as_channels"]

log = logging.getLogger(__name__)

# Microscopes seldom record more channels at a time.
_MOST_CHANNELS = 6
_LETTERS = "tczyx"


def parse_axes(text: str) -> tuple[str, ...]:
    """Read `--axes`: one letter for each stored axis, in the order of storage.

    Parameters
    ----------
    text : str
        Letters of t, c, z, y, x in either case, a dot for an axis without meaning; commas and spaces between
        them do not matter.

    Returns
    -------
    tuple of str
        Roles; "?" for a dot.

    Raises
    ------
    UsageError
        If it holds other letters, one twice, or no y or x.
    """
    letters = [letter for letter in text.lower() if letter not in ", "]
    wrong = sorted({letter for letter in letters if letter not in _LETTERS + "."})
    if wrong or not letters:
        raise UsageError(
            f"--axes {text!r}: give one letter of t c z y x for each stored axis, a dot for another one, such as xyz"
        )
    if any(letters.count(letter) > 1 for letter in _LETTERS) or not {"y", "x"} <= set(letters):
        raise UsageError(f"--axes {text!r}: y and x must be there, and no letter twice")
    return tuple("?" if letter == "." else letter for letter in letters)


def check_axes(given: tuple[str, ...], stored: Sequence[str], where: str) -> tuple[str, ...]:
    """Given roles for an image with these axes.

    Raises
    ------
    UsageError
        If there are more or fewer of them.
    """
    if len(given) != len(stored):
        text = "".join("." if role == "?" else role for role in given)
        raise UsageError(
            f"{where} has {len(stored)} axes ({', '.join(stored)}), --axes {text} names {len(given)}: "
            "give one letter for each"
        )
    return given


def in_zyx_order(values: NDArray[Any], axes: Sequence[str]) -> NDArray[Any]:
    """An array whose axes are the z, y, x among `axes`, in order z, y, x."""
    space = [role for role in axes if role in "zyx"]
    order = [space.index(role) for role in "zyx" if role in space]
    return np.transpose(values, order)


def warn_of_planes_as_channels(channels: int, planes: int, where: str) -> None:
    """Say so where an image of one plane has more channels than microscopes record."""
    if planes == 1 and channels > _MOST_CHANNELS:
        log.warning(
            "%s has %d channels of one plane each: if they are planes, say so with --axes (such as zyx)",
            where, channels,
        )  # fmt: skip
