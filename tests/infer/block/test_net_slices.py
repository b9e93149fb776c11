"""Reading ahead: all parts in order, one under way and no more, errors where they are met."""

from __future__ import annotations

import threading

import pytest

from brainmap.infer.block.net_slices import read_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_part_comes_in_order(count: int) -> None:
    assert list(read_ahead(lambda n: n * n, range(count))) == [(n, n * n) for n in range(count)]


def test_one_read_is_under_way_and_no_more() -> None:
    begun: list[int] = []
    second = threading.Event()

    def read(n: int) -> int:
        begun.append(n)
        if n == 1:
            second.set()
        return n

    parts = read_ahead(read, range(10))
    assert next(parts) == (0, 0)
    assert second.wait(10)
    parts.close()
    assert begun == [0, 1]


def test_an_error_is_raised_where_its_part_is_asked_for() -> None:
    def read(n: int) -> int:
        if n == 1:
            raise ValueError("damaged")
        return n

    parts = read_ahead(read, range(3))
    assert next(parts) == (0, 0)
    with pytest.raises(ValueError, match="damaged"):
        next(parts)
