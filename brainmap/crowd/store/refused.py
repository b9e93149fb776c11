"""What the site answers instead of doing what was asked."""

from __future__ import annotations

from typing import Any

__all__ = ["Refused"]


class Refused(Exception):
    """A request that is not carried out: an HTTP status, one sentence, and facts a program can use.

    Parameters
    ----------
    status : int
        HTTP status, 400 to 503.
    sentence : str
        What is wrong and what to do, for a person.
    facts : dict
        Further keys of the JSON answer.
    """

    def __init__(self, status: int, sentence: str, **facts: Any) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.facts = status, sentence, facts
