"""Where the command starts: Ctrl-C is looked after before anything that takes time is loaded."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

__all__ = ["main"]

_INTERRUPTED = 130
# Who presses Ctrl-C several times in a row means it once; who presses it again after so long will not wait.
_PATIENCE_S = 2.0


class _CtrlC:
    """The first one ends what is under way in order; one that comes much later ends the process."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            raise KeyboardInterrupt
        if now - self.first > _PATIENCE_S:
            os.write(
                2, b"brainmap: stopped at once; what is finished is kept, and the same command goes on\n"
            )
            os._exit(_INTERRUPTED)


def main() -> None:
    """Entry point of the `brainmap` command."""
    try:
        # Where Ctrl-C is ignored (nohup), it stays so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _CtrlC())
        from brainmap.cli.main import main as run

        run()
    except KeyboardInterrupt:
        os.write(2, b"brainmap: interrupted before anything was begun\n")
        sys.exit(_INTERRUPTED)
