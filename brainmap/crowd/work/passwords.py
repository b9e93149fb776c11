"""Passwords: argon2id, at most a few at a time, and the same time for a name that does not exist."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError

from brainmap.crowd.store.refused import Refused

__all__ = ["Hasher", "PasswordQueue", "Passwords", "check_password"]

T = TypeVar("T")

SHORTEST = 8
# Hashing a megabyte on request would be a gift to an attacker.
LONGEST_BYTES = 1000


class Hasher(Protocol):
    """What `Passwords` needs of a hash."""

    def hash(self, password: str) -> str:
        """A salted hash of a password."""

    def verify_and_update(self, password: str, hash: str) -> tuple[bool, str | None]:
        """Whether the password is right, and a new hash where the old one is too weak by now."""


class Passwords:
    """Hashes and checks passwords.

    Parameters
    ----------
    hasher : Hasher, optional
        By default argon2id with the parameters pwdlib recommends.
    """

    def __init__(self, hasher: Hasher | None = None) -> None:
        self._hasher: Hasher = hasher or PasswordHash.recommended()  # type: ignore[assignment]

    @functools.cached_property
    def _nobody(self) -> str:
        return self._hasher.hash("the password of nobody")

    def hash(self, password: str) -> str:
        """Hash of an acceptable password; about 0.1 s.

        Raises
        ------
        Refused
            Too short or too long.
        """
        check_password(password)
        return self._hasher.hash(password)

    def verify(self, password: str, known: str | None) -> tuple[bool, str | None]:
        """Whether a password is right, and a better hash to store; without a hash it takes as long and is wrong."""
        if len(password.encode()) > LONGEST_BYTES:
            password = password[:100]
        try:
            right, better = self._hasher.verify_and_update(password, known or self._nobody)
        except PwdlibError:
            return False, None
        return (right, better) if known else (False, None)


class PasswordQueue:
    """Runs password work in threads of its own, few at a time: a rush of log-ins must not stop the clicks."""

    def __init__(self, at_once: int = 2) -> None:
        self._at_once = at_once
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in a thread when its turn comes."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._at_once)
        return await anyio.to_thread.run_sync(functools.partial(function, *arguments), limiter=self._limiter)


def check_password(password: object) -> str:
    """An acceptable password: 8 characters or more, 1000 bytes at most.

    Raises
    ------
    Refused
    """
    if not isinstance(password, str) or len(password) < SHORTEST:
        raise Refused(422, f"the password must have at least {SHORTEST} characters")
    if len(password.encode()) > LONGEST_BYTES:
        raise Refused(422, f"the password is longer than {LONGEST_BYTES} bytes")
    return password
