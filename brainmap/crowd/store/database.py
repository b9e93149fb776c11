"""The database of a site: SQLite by default, PostgreSQL by URL; short writes, consistent reads.

A write is one transaction that is on disk when its block ends. On SQLite writes of this process wait for each
other in a queue rather than polling the file; on PostgreSQL rows are locked where the code says `with_for_update`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import QueuePool

from brainmap.errors import DataError, MissingExtraError, UsageError

__all__ = ["Database", "database_url"]

T = TypeVar("T")

_MOST_TOGETHER = 64


def database_url(given: str, folder: Path) -> str:
    """The URL SQLAlchemy understands.

    Raises
    ------
    UsageError
        Anything but PostgreSQL, or empty for the site's own SQLite file.
    """
    if not given:
        return f"sqlite+pysqlite:///{(folder / 'crowd.sqlite').resolve()}"
    scheme, _, rest = given.partition("://")
    if scheme.split("+")[0] not in ("postgresql", "postgres") or not rest:
        raise UsageError(
            "the database must be a PostgreSQL URL, as in postgresql://user:password@host/name; without one the "
            "site keeps its own SQLite file"
        )
    return f"postgresql+psycopg://{rest}"


@dataclass(eq=False)
class _Job:
    """Something to write, and what came of it."""

    function: Callable[[Connection], Any]
    result: Any = None
    error: Exception | None = None
    done: bool = False


class Database:
    """A pool of connections, and the ways to use one: `read`, `write`, `together`, `snapshot`.

    Parameters
    ----------
    url : str
        As `database_url` makes it.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.sqlite = self.engine.dialect.name == "sqlite"
        self._jobs: deque[_Job] = deque()
        self._turn = threading.RLock()
        self._writer: contextlib.AbstractContextManager[Any]
        self._writer = self._turn if self.sqlite else contextlib.nullcontext()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading."""
        with self._connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction; committed and on disk when the block ends, undone when it raises."""
        with self._writer, self._connect(write=True) as connection, connection.begin():
            yield connection

    def together(self, function: Callable[[Connection], T]) -> T:
        """Call a function in a transaction that it may share with others who write at this moment.

        Every transaction waits for the disk once: requests that arrive meanwhile go into the next one together, and
        none is answered before all is on disk. Where one of them fails, all are done again, each within a savepoint
        of its own: the function may be called twice.

        Raises
        ------
        Exception
            What the function raises; only its own part is undone.
        """
        job = _Job(function)
        self._jobs.append(job)
        with self._turn:
            # Whoever wrote before this one has perhaps done it along with his own.
            while not job.done:
                self._do_waiting()
        if job.error is not None:
            raise job.error
        return cast(T, job.result)

    def _do_waiting(self) -> None:
        jobs: list[_Job] = []
        while self._jobs and len(jobs) < _MOST_TOGETHER:
            jobs.append(self._jobs.popleft())
        try:
            with self.write() as connection:
                for one in jobs:
                    one.result = one.function(connection)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
            else:
                self._do_apart(jobs)
        for one in jobs:
            one.done = True

    def _do_apart(self, jobs: list[_Job]) -> None:
        """One transaction in which each job fails for itself."""
        try:
            with self.write() as connection:
                for one in jobs:
                    try:
                        with connection.begin_nested():
                            one.result = one.function(connection)
                    except Exception as error:
                        one.error = error
        except Exception as error:
            # The transaction itself failed: nothing of it is stored.
            for one in jobs:
                one.error = one.error or error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """One consistent state for as long as the block lasts, while others write; rows stream."""
        options: dict[str, Any] = {"yield_per": 2000}
        if not self.sqlite:
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._connect(**options) as connection, connection.begin():
            yield connection

    def _connect(self, **options: Any) -> Connection:
        connection = self.engine.connect()
        return connection.execution_options(**options) if options else connection

    def check(self) -> None:
        """Ask the database for an answer.

        Raises
        ------
        DataError
            There is none.
        """
        try:
            with self.read() as connection:
                connection.execute(text("SELECT 1"))
        except DBAPIError as error:
            raise DataError(f"the database does not answer: {_first_line(error)}") from error

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _engine(url: str) -> Engine:
    try:
        if url.startswith("sqlite"):
            engine = create_engine(
                url, poolclass=QueuePool, pool_size=8, max_overflow=64,
                connect_args={"check_same_thread": False, "timeout": 30},
            )  # fmt: skip
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        return create_engine(url, pool_size=8, max_overflow=32, pool_pre_ping=True)
    except ArgumentError as error:
        raise UsageError(f"the database URL cannot be read: {_first_line(error)}") from error
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "crowd", "keep a site in PostgreSQL") from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions of its own: `_begin_sqlite` does, by what they are for.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL", "busy_timeout=30000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
