"""The ontology: sums up the tree, ids of any size, and what contradicts itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainmap.atlas.structures import Structures
from brainmap.errors import DataError, UsageError


def record(path: list[int], name: str = "") -> dict[str, object]:
    return {
        "id": path[-1],
        "acronym": name or f"S{path[-1]}",
        "name": f"structure {path[-1]}",
        "structure_id_path": path,
    }


@st.composite
def trees(draw: st.DrawFn) -> list[dict[str, object]]:
    """Records of a random tree in random order, ids up to Allen's largest."""
    ids = draw(st.lists(st.integers(1, 614_454_277), min_size=1, max_size=25, unique=True))
    paths = [[ids[0]]]
    for one in ids[1:]:
        paths.append([*paths[draw(st.integers(0, len(paths) - 1))], one])
    return draw(st.permutations([record(path) for path in paths]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees(), st.integers(0, 2**31))
def test_a_parent_is_its_own_and_its_childrens(records: list[dict[str, object]], seed: int) -> None:
    structures = Structures.from_records(records, "test")
    direct = np.random.default_rng(seed).integers(0, 1000, (len(structures), 3))
    total = structures.roll_up(direct)
    for row in range(len(structures)):
        children = np.flatnonzero(structures.parent_row == row)
        np.testing.assert_array_equal(total[row], direct[row] + total[children].sum(axis=0))
        below = structures.descendants(int(structures.id[row]))
        np.testing.assert_array_equal(total[row], direct[structures.rows_of(below)].sum(axis=0))
        assert structures.path(int(structures.id[row])) == tuple(records[row]["structure_id_path"])  # type: ignore[arg-type]
    roots = structures.parent_id == 0
    np.testing.assert_array_equal(total[roots].sum(axis=0), direct.sum(axis=0))


def test_unknown_ids_have_no_row() -> None:
    structures = Structures.from_records([record([5]), record([5, 614_454_277])], "test")
    np.testing.assert_array_equal(
        structures.rows_of([[614_454_277, 614_454_276], [0, 5]]), [[1, -1], [-1, 0]]
    )
    assert structures.row("S5") == structures.row(5) == 0
    with pytest.raises(UsageError, match="no structure 'S6'"):
        structures.row("S6")


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([], "no structures"),
        ([record([0])], "positive"),
        ([record([1]), record([1])], "repeated"),
        ([record([1]), record([2, 3])], "parent 2, which is not in the ontology"),
        ([record([1]), record([1, 2]), record([9, 2, 3])], "contradicts"),
        ([record([1]) | {"structure_id_path": [2]}], "does not end with itself"),
        ([{"id": 1}], "every structure needs"),
        ([record([1]) | {"id": "one"}], "every structure needs"),
        ([3], "every structure needs"),
    ],
)
def test_what_contradicts_itself_is_refused(records: list[object], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        Structures.from_records(records, "structures.json")  # type: ignore[arg-type]
