"""One command at a time on a folder: a second one is refused, with who is at work.

The lock is a small file that says which process on which host holds it, and whose time of change goes on as long as
it lives. Nothing is asked of the file system but that a file can be made only once: locks of the system do not reach
over every network disk, and are not seen by people. A lock whose process is gone is taken over: on the same machine
at once, from another one when its time of change has stood still for some minutes.
"""

from __future__ import annotations

import _thread
import json
import logging
import os
import platform
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from brainmap.errors import DataError, UsageError
from brainmap.files import now, sweep_beside, sweep_inside

__all__ = ["LOCK_FILE", "held", "held_beside"]

log = logging.getLogger(__name__)

LOCK_FILE = ".lock"
# A holder shows every so often that it lives; one that has not for so long is taken for dead.
BEAT_S, DEAD_S = 20.0, 180.0
# Clocks of one machine, read in two ways, agree this well.
_CLOCK_S = 2.0
# How often somebody else may be quicker before we give up.
_TRIES = 20


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes
    ----------
    host, pid : str, int
    machine : str
        What tells machines and containers of one name apart; numbers of processes mean the same within one.
    born : float
        When the process started: numbers of processes are used again.
    since, command : str
        When it took the lock, and what it is.
    token : str
        Tells this lock from every other.
    """

    host: str
    pid: int
    machine: str
    born: float
    since: str
    command: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        command = " ".join(["brainmap", *sys.argv[1:2]])
        return cls(
            platform.node(), os.getpid(), _machine(), _born(os.getpid()) or 0.0, now(), command, secrets.token_hex(8)
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Holder | None:
        """The holder a lock names; None if it is damaged.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        try:
            return cls(**json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether its process can be looked for on this machine."""
        return (self.host, self.machine) == (platform.node(), _machine())

    def runs(self) -> bool:
        """Whether its process, on this machine, is alive."""
        born = _born(self.pid)
        return born is not None and abs(born - self.born) < _CLOCK_S


@contextmanager
def held(folder: Path, kept: str) -> Iterator[None]:
    """Keep every other command from a folder in which this one replaces files one by one.

    The folder is made. What killed commands left half written in it is cleared away.

    Parameters
    ----------
    folder : Path
    kept : str
        What an interrupted or failed command leaves, and how to go on: the end of its sentence.

    Raises
    ------
    UsageError
        If another process is at work.
    DataError
        If the folder cannot be written to.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        with _locked(folder / LOCK_FILE, folder), _telling(kept):
            sweep_inside(folder)
            yield
    finally:
        if made:
            # Nothing came of it.
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def held_beside(target: Path, kept: str = "what was there before stays") -> Iterator[None]:
    """Keep every other command from a file or folder that this one makes beside and puts in place as a whole.

    Parameters and errors as for `held`.
    """
    parent = target.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {parent}: {error.strerror or error}") from error
    with _locked(parent / f"{LOCK_FILE}-{target.name}", target), _telling(kept):
        sweep_beside(target)
        yield


@contextmanager
def _telling(kept: str) -> Iterator[None]:
    """Say what is kept when a command is interrupted or runs out of memory."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {kept}") from None
    except MemoryError:
        raise MemoryError(f"out of memory: use fewer --workers, or a smaller --block; {kept}") from None


@contextmanager
def _locked(path: Path, what: Path) -> Iterator[None]:
    try:
        mine = _take(path, what)
    except OSError as error:
        if isinstance(error, UsageError):
            raise
        raise DataError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    heart = _Heart(path, mine)
    heart.start()
    try:
        try:
            yield
        finally:
            # It may be lost at this very moment, too.
            heart.stop()
    except KeyboardInterrupt:
        if not heart.lost:
            raise
    finally:
        _give_back(path, mine)
    # Also without an interrupt: under nohup there is none.
    if heart.lost:
        raise DataError(
            f"{what} was taken over by another command while this one stood still; this one has stopped"
        ) from None


def _take(path: Path, what: Path) -> Holder:
    mine = Holder.here()
    for _ in range(_TRIES):
        if _create(path, mine):
            return mine
        with suppress(FileNotFoundError):
            there = Holder.read(path)
            if _lives(path, there):
                raise UsageError(_refusal(path, what, there))
            _clear_away(path, there)
    raise UsageError(f"{what} is in use: other commands start on it all the time; try again")


def _refusal(path: Path, what: Path, there: Holder | None) -> str:
    if there is None:
        return f"{what} is in use by a command of which {path} does not say which; wait, or remove that file"
    way_on = "wait until it has ended"
    if not there.is_here:
        way_on += f"; if it was killed, {what} is free {DEAD_S / 60:g} minutes after its last sign of life"
    return f"{what} is in use by {there.command} (process {there.pid} on {there.host}, since {there.since}): {way_on}"


def _create(path: Path, mine: Holder) -> bool:
    """Make the lock, unless there is one."""
    content = json.dumps(asdict(mine)).encode()
    beside = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    beside.write_bytes(content)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    except OSError:
        # A disk without hard links: the lock is there a moment before it says whose it is.
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _lives(path: Path, there: Holder | None) -> bool:
    if there is not None and there.is_here:
        return there.runs()
    return _age_s(path) < DEAD_S


def _age_s(path: Path) -> float:
    """Seconds since the lock was touched, by the clock of the disk it lies on."""
    probe = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _clear_away(path: Path, dead: Holder | None) -> None:
    """Remove the lock of a dead process, and not one that another command has made of it meanwhile."""
    aside = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    os.rename(path, aside)
    if Holder.read(aside) != dead:
        with suppress(OSError):
            os.link(aside, path)
    else:
        log.info("going on after %s", "a command that was killed" if dead is None else _told(dead))
    aside.unlink(missing_ok=True)


def _told(dead: Holder) -> str:
    return (
        f"{dead.command} (process {dead.pid} on {dead.host}, since {dead.since}), which ended without a word"
    )


def _give_back(path: Path, mine: Holder) -> None:
    with suppress(OSError):
        if Holder.read(path) == mine:
            path.unlink()


class _Heart(threading.Thread):
    """Touches a lock as long as this process lives, and sees whether it is still ours."""

    def __init__(self, path: Path, mine: Holder) -> None:
        super().__init__(name="brainmap-lock", daemon=True)
        self._path, self._mine = path, mine
        self._over = threading.Event()
        self.lost = False

    def run(self) -> None:
        while not self._over.wait(BEAT_S):
            # A disk that is away for a moment says nothing about whose the lock is.
            with suppress(OSError):
                if Holder.read(self._path) != self._mine:
                    self.lost = True
                    _interrupt()
                    return
                os.utime(self._path)

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self.lost:
            # Its interrupt may still be under way: it is to come here, and not to whoever called the command.
            time.sleep(0.1)


def _interrupt() -> None:
    """Stop the main thread, also where it waits for the system."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _born(pid: int) -> float | None:
    """When a process of this machine started; None if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.AccessDenied:
        return 0.0
    except psutil.Error:
        return None


def _machine() -> str:
    """Which start of which machine this is, and which container's processes are numbered together."""
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)
