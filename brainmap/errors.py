"""The errors brainmap raises on purpose: each says what is wrong, where, and what to do.

Every one is also the standard-library error a caller would expect, and carries the exit code
the command line ends with.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BrainmapError",
    "DataError",
    "IncompleteRunError",
    "MissingExtraError",
    "NotFoundError",
    "UsageError",
    "did_you_mean",
]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that does not exist: "; did you mean A or B?", empty where none is near."""
    # Takes a while to load, and only errors need it.
    from difflib import SequenceMatcher

    likeness = {name: SequenceMatcher(None, word.lower(), name.lower()).ratio() for name in known}
    best = sorted(likeness, key=lambda name: -likeness[name])[:2]
    # A second name only where it is about as near as the first.
    near = [name for name in best if likeness[name] >= max(0.6, likeness[best[0]] - 0.1)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


class BrainmapError(Exception):
    """Base of all errors brainmap raises on purpose; `exit_code` is the process's exit status."""

    exit_code = 1


class DataError(BrainmapError, ValueError):
    """Data that cannot be used as it is: a damaged chunk, a table without a needed column."""


class NotFoundError(BrainmapError, FileNotFoundError):
    """A file, folder, URL, atlas or detector that does not exist."""

    # FileNotFoundError formats (errno, strerror) pairs; ours are plain sentences.
    __str__ = Exception.__str__


class UsageError(BrainmapError, ValueError):
    """A wrong option or value, or options that contradict each other."""

    exit_code = 2


class MissingExtraError(BrainmapError, ImportError):
    """An optional package is needed and not installed.

    Parameters
    ----------
    package : str
        Name of the missing package.
    extra : str
        The brainmap extra that installs it.
    purpose : str
        What it is needed for, as the end of the sentence "... is needed to ...".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is needed to {purpose} and is not installed; "
            f"install it with: pip install 'brainmap[{extra}]'"
        )
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        # Exceptions are pickled by their message; this one is built from its parts on a worker too.
        return type(self), (self.package, self.extra, self.purpose)


class IncompleteRunError(BrainmapError, RuntimeError):
    """A run finished, but some blocks could not be processed."""

    exit_code = 3
