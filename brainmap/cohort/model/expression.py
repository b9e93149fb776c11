"""Expressions in levels, such as ``(drug:f - saline:f) / 2``, read into rows of a design."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import UsageError

__all__ = ["Expression"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Value:
    """A combination of rows and the sum of its weights, or (without a row) a plain number."""

    row: Floats | None
    number: float

    def times(self, factor: float) -> _Value:
        return _Value(None if self.row is None else self.row * factor, self.number * factor)


class Expression:
    """Reads sums, differences, multiples and brackets of levels; values are rows of the design, or numbers."""

    def __init__(self, text: str, levels: Sequence[str], row: Callable[[Sequence[str]], Floats]) -> None:
        self.text, self.row = text, row
        self.known = sorted(levels, key=len, reverse=True)
        self.tokens = self._split()
        self.at = 0

    @property
    def two_levels(self) -> tuple[str, str] | None:
        """(a, b) of an expression ``b - a``."""
        kinds = [kind for kind, _ in self.tokens]
        if kinds == ["levels", "-", "levels"]:
            return self.tokens[2][1], self.tokens[0][1]
        return None

    def _split(self) -> list[tuple[str, str]]:
        # Levels are looked for by what they are, the longest first: 6-OHDA is one level and no difference.
        level = "|".join(re.escape(known) for known in self.known)
        pattern = re.compile(
            rf"\s*(?:(?P<levels>(?:{level})(?:\s*:\s*(?:{level}))*)(?!\w)|(?P<number>\d+(?:\.\d+)?)|(?P<sign>[-+*/()]))"
        )
        tokens, at = [], 0
        text = self.text.replace("`", "").replace('"', "").rstrip()
        while at < len(text):
            found = pattern.match(text, at)
            if found is None:
                raise UsageError(
                    f"--contrast {self.text!r}: cannot read {text[at:].strip()!r}; levels are {', '.join(self.known)}"
                )
            at = found.end()
            if found["levels"]:
                tokens.append(("levels", re.sub(r"\s*:\s*", ":", found["levels"])))
            elif found["number"]:
                tokens.append(("number", found["number"]))
            else:
                tokens.append((found["sign"], found["sign"]))
        return tokens

    def read(self) -> Floats:
        """The row of a difference.

        Raises
        ------
        UsageError
            If it is none: its weights do not cancel, or nothing is left.
        """
        value = self._sum()
        if self.at < len(self.tokens):
            raise UsageError(f"--contrast {self.text!r}: {self.tokens[self.at][1]!r} is not expected there")
        if value.row is None:
            raise UsageError(f"--contrast {self.text!r} is a number, and no difference of levels")
        if abs(value.number) > 1e-9:
            raise UsageError(
                f"--contrast {self.text!r}: the weights of its levels add up to {value.number:g}, and must cancel, "
                "as in drug - saline"
            )
        if np.abs(value.row).max(initial=0) < 1e-12:
            raise UsageError(f"--contrast {self.text!r} is zero whatever the animals are")
        return value.row

    def _peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def _sum(self) -> _Value:
        value = self._product()
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self.at += 1
            other = self._product()
            if (value.row is None) != (other.row is None):
                raise UsageError(f"--contrast {self.text!r} adds a number to a level")
            row = None if value.row is None or other.row is None else value.row + sign * other.row
            value = _Value(row, value.number + sign * other.number)
        return value

    def _product(self) -> _Value:
        value = self._atom()
        while self._peek() in ("*", "/"):
            divide = self._peek() == "/"
            self.at += 1
            other = self._atom()
            if other.row is not None:
                value, other = other, value
                if divide or other.row is not None:
                    raise UsageError(f"--contrast {self.text!r}: levels cannot be multiplied or divided by")
            if divide and other.number == 0:
                raise UsageError(f"--contrast {self.text!r} divides by zero")
            value = value.times(1.0 / other.number if divide else other.number)
        return value

    def _atom(self) -> _Value:
        kind = self._peek()
        self.at += 1
        if kind == "-":
            return self._atom().times(-1.0)
        if kind == "(":
            value = self._sum()
            if self._peek() != ")":
                raise UsageError(f"--contrast {self.text!r}: a bracket is not closed")
            self.at += 1
            return value
        if kind not in ("levels", "number"):
            raise UsageError(f"--contrast {self.text!r} ends too early, or lacks a level")
        text = self.tokens[self.at - 1][1]
        return _Value(None, float(text)) if kind == "number" else _Value(self.row(text.split(":")), 1.0)
