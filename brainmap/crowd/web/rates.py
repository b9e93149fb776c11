"""How often somebody may do something."""

from __future__ import annotations

import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter

from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.settings import Rates

__all__ = ["RateKeeper"]


class RateKeeper:
    """Counts in the memory of this process, by account and by address.

    Attempts to log in are counted exactly; the many writes of a page by window, which costs no memory per write.

    Parameters
    ----------
    rates : Rates
    """

    def __init__(self, rates: Rates) -> None:
        storage = MemoryStorage()
        self._exact, self._coarse = MovingWindowRateLimiter(storage), FixedWindowRateLimiter(storage)
        self._rates: dict[str, RateLimitItem] = {
            name: parse(getattr(rates, name)) for name in Rates.__dataclass_fields__
        }

    def log_in_allowed(self, name: str, address: str) -> None:
        """Raise 429 where too many log-ins failed; count nothing."""
        for kind, keys in self._log_in_keys(name, address):
            if not self._exact.test(self._rates[kind], *keys):
                self._refuse(kind, *keys)

    def log_in_failed(self, name: str, address: str) -> None:
        """Count a failed log-in."""
        for kind, keys in self._log_in_keys(name, address):
            self._exact.hit(self._rates[kind], *keys)

    def sign_up(self, address: str) -> None:
        """Count a new account; raise 429 where there are too many."""
        if not self._exact.hit(self._rates["sign_up_address"], "sign-up", address):
            self._refuse("sign_up_address", "sign-up", address)

    def hit(self, kind: str, account: int, address: str = "") -> None:
        """Count one read, write or export of an account, and of its address; raise 429 where there are too many."""
        key = f"{kind}_account"
        if not self._coarse.hit(self._rates[key], kind, str(account)):
            self._refuse(key, kind, str(account))
        key = f"{kind}_address"
        if key in self._rates and address and not self._coarse.hit(self._rates[key], kind, address):
            self._refuse(key, kind, address)

    @staticmethod
    def _log_in_keys(name: str, address: str) -> list[tuple[str, tuple[str, ...]]]:
        return [
            ("log_in_account", ("log-in", name, address)),
            ("log_in_name", ("log-in-name", name)),
            ("log_in_address", ("log-in-address", address)),
        ]

    def _refuse(self, kind: str, *keys: str) -> None:
        limiter = self._coarse if keys[0] in ("write", "read", "export") else self._exact
        wait = max(1, int(limiter.get_window_stats(self._rates[kind], *keys).reset_time - time.time()) + 1)
        raise Refused(429, f"that was too often; please try again in {wait} s", retry_after=wait)
