"""Block files: names, plans, and the final order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.infer.block.process import COLUMNS
from brainmap.infer.engine import ordered, results
from brainmap.points.table import Points

PLAN = {"block_count": (3, 2, 2), "block_size": (4, 16, 16), "block_first": (0, 0, 0), "group": 2, "seed": 1}


def cells(z: np.ndarray, block: np.ndarray | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(z))
    return {
        name: (z if name == "z" else rng.random(len(z)) * 32).astype(kind) for name, kind in COLUMNS.items()
    } | {results.BLOCK_COLUMN: np.zeros(len(z), np.int64) if block is None else block}


def fill(run_dir: Path, batches: list[tuple[int, int]]) -> np.ndarray:
    """Blocks of four layers of 8 slices; refinement moves cells by up to half a group."""
    rng = np.random.default_rng(0)
    everything = []
    for start, stop in batches:
        z = np.concatenate([rng.uniform((i // 4) * 8 - 1, (i // 4) * 8 + 8, 50) for i in range(start, stop)])
        results.write_batch(run_dir, (start, stop), cells(z, np.repeat(np.arange(start, stop), 50)))
        everything.append(z)
    return np.sort(np.concatenate(everything))


@pytest.mark.parametrize(
    "batches", [[(i, i + 1) for i in range(12)], [(0, 3), (3, 6), (6, 12)], [(0, 12)], [(0, 2), (9, 11)]]
)
def test_all_cells_come_once_in_order(tmp_path: Path, batches: list[tuple[int, int]]) -> None:
    results.open_plan(tmp_path, PLAN)
    expected = fill(tmp_path, batches)
    tables = list(results.iter_results(tmp_path))
    np.testing.assert_array_equal(Points.concat(tables)["z"], expected)


def test_tables_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered, "_ROWS", 30)
    results.open_plan(tmp_path, PLAN)
    expected = fill(tmp_path, [(0, 12)])
    tables = list(results.iter_results(tmp_path))
    assert max(map(len, tables)) <= 30
    assert sum(map(len, tables)) == len(expected)


def test_what_waited_on_disk_comes_in_order_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered, "_ROWS", 100)
    monkeypatch.setattr(ordered, "_SAMPLE", 10)
    rng = np.random.default_rng(3)
    # Coarse coordinates, so that many cells share z, and some z and y; one part is empty, one all alike.
    sizes = [70, 400, 0, 101, 333, 5]
    tables = [Points({a: rng.integers(0, 6, n).astype(float) for a in "xzy"}) for n in sizes]
    tables.append(Points({a: np.full(150, 3.0) for a in "xzy"}))
    numbers = np.split(np.arange(sum(sizes) + 150), np.cumsum([*sizes, 150])[:-1])
    tables = [t.with_columns(number=n) for t, n in zip(tables, numbers, strict=True)]
    with ordered.Sorter(tmp_path) as sorter:
        for table in tables:
            sorter.add(table)
        assert len(list(tmp_path.iterdir())) == 1
        pieces = list(sorter.tables())
    assert list(tmp_path.iterdir()) == []
    assert max(map(len, pieces)) <= 100
    found, given = Points.concat(pieces), Points.concat(tables)
    expected = given.take(np.lexsort((given["number"], given["x"], given["y"], given["z"])))
    np.testing.assert_array_equal(found["number"], expected["number"])


def test_files_that_overlap_give_every_block_once(tmp_path: Path) -> None:
    # As a worker leaves them that was taken for dead, or one that still served an earlier command.
    results.open_plan(tmp_path, PLAN)
    rng = np.random.default_rng(5)
    of_block = {i: rng.random(7) * 8 + i // 4 * 8 for i in range(12)}
    for start, stop in [(0, 4), (2, 6), (2, 3), (5, 11), (11, 12), (6, 8)]:
        z = np.concatenate([of_block[i] for i in range(start, stop)])
        results.write_batch(tmp_path, (start, stop), cells(z, np.repeat(np.arange(start, stop), 7)))
    found = results.finished(tmp_path)
    assert [span for span, _ in found] == [(0, 4), (4, 6), (6, 11), (11, 12)]
    assert [results.cells_in(*part) for part in found] == [28, 14, 35, 7]
    expected = np.sort(np.concatenate(list(of_block.values())))
    np.testing.assert_array_equal(Points.concat(list(results.iter_results(tmp_path)))["z"], expected)


def test_a_run_without_cells_has_no_tables(tmp_path: Path) -> None:
    results.open_plan(tmp_path, PLAN)
    assert list(results.iter_results(tmp_path)) == []
    results.write_batch(tmp_path, (0, 12), cells(np.zeros(0)))
    assert list(results.iter_results(tmp_path)) == []


def test_finished_is_read_from_names(tmp_path: Path) -> None:
    results.open_plan(tmp_path, PLAN)
    fill(tmp_path, [(4, 6), (0, 2), (0, 1)])
    (tmp_path / "blocks" / ".tmp-1234-000000008-000000009-5.parquet").write_bytes(b"half")
    assert [span for span, _ in results.finished(tmp_path)] == [(0, 2), (4, 6)]


def test_plan_decides_about_resuming(tmp_path: Path) -> None:
    assert results.open_plan(tmp_path, PLAN) is False
    assert results.open_plan(tmp_path, PLAN) is True
    with pytest.raises(UsageError, match="seed was 1, is now 2"):
        results.open_plan(tmp_path, PLAN | {"seed": 2})
    results.clear(tmp_path)
    assert results.open_plan(tmp_path, PLAN | {"seed": 2}) is False


def test_strange_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no detection"):
        list(results.iter_results(tmp_path))
    fill(tmp_path, [(0, 1)])
    with pytest.raises(UsageError, match="--overwrite"):
        results.open_plan(tmp_path, PLAN)
    (tmp_path / "blocks" / "plan.json").write_text("{")
    with pytest.raises(DataError):
        results.open_plan(tmp_path, PLAN)


def test_ranges() -> None:
    assert results.ranges([]) == []
    assert results.ranges([0, 1, 2, 5, 7, 8]) == [(0, 3), (5, 6), (7, 9)]
