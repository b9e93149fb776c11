"""Writes that share a transaction."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, insert, select

from brainmap.crowd.store import schema


def entry(number):
    return insert(schema.audit).values(at=float(number), action="test", detail="{}", address="")


def stored(site):
    with site.database.read() as connection:
        return sorted(
            connection.execute(select(schema.audit.c.at).where(schema.audit.c.action == "test")).scalars()
        )


def test_many_writers_at_once_are_all_stored_and_each_hears_its_own(empty_site):
    results, errors = {}, {}

    def write(number):
        def do(connection):
            connection.execute(entry(number))
            if number % 5 == 0:
                raise ValueError(number)
            return number * 2

        try:
            results[number] = empty_site.database.together(do)
        except ValueError as error:
            errors[number] = error.args[0]

    threads = [threading.Thread(target=write, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Who raised is undone, and nobody else.
    assert results == {n: 2 * n for n in range(40) if n % 5}
    assert errors == {n: n for n in range(0, 40, 5)}
    assert stored(empty_site) == [float(n) for n in range(40) if n % 5]


def test_waiting_writers_go_to_the_disk_together(empty_site):
    """While one transaction is under way, others gather; they take one more between them, not one each."""
    commits = []
    from sqlalchemy import event

    event.listen(empty_site.database.engine, "commit", lambda connection: commits.append(1))
    inside, go = threading.Event(), threading.Event()

    def first(connection):
        inside.set()
        go.wait(30)
        connection.execute(entry(0))

    threads = [threading.Thread(target=empty_site.database.together, args=(first,))]
    threads[0].start()
    inside.wait(30)
    for number in range(1, 11):
        do = lambda connection, number=number: connection.execute(entry(number)) and None  # noqa: E731
        threads.append(threading.Thread(target=empty_site.database.together, args=(do,)))
        threads[-1].start()
    while len(empty_site.database._jobs) < 10:
        pass
    go.set()
    for thread in threads:
        thread.join()
    assert len(stored(empty_site)) == 11
    assert len(commits) <= 3 + 1


def test_a_transaction_that_fails_tells_all_who_share_it(empty_site, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        empty_site.database.together(lambda connection: 1 / 0)
    with empty_site.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.project)).scalar_one() == 0
