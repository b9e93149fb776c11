from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.cohort.groups import Groups
from brainmap.cohort.selection import select_regions
from brainmap.cohort.table import CohortTable
from brainmap.errors import DataError, NotFoundError, UsageError

# id, acronym, name, parent, depth, volume
STRUCTURES = [
    (1, "root", "root", 0, 0, 20),
    (2, "CTX", "Cortex", 1, 1, 12),
    (3, "VIS", "Visual area", 2, 2, 8),
    (4, "VIS1", "Visual area, layer 1", 3, 3, 4),
    (5, "VIS2", "Visual area, Layers 2/3", 3, 3, 3),
    (6, "VIS6", "Visual area, 6b", 3, 3, 1),
    (7, "MO", "Motor area", 2, 2, 4),
    (8, "MO1", "Motor area, layer 1", 7, 3, 0),
    (9, "TH", "Thalamus", 1, 1, 5),
    (10, "GONE", "In the ontology, not in the annotation", 1, 1, 0),
]


@pytest.fixture
def table() -> CohortTable:
    ids, acronym, name, parent, depth, volume = zip(*STRUCTURES, strict=True)
    n = len(ids)
    volumes = np.broadcast_to(np.array(volume, float)[None, :, None], (4, n, 3))
    count = np.arange(4 * n * 3).reshape(4, n, 3) * (volumes > 0)
    return CohortTable(
        groups=Groups(tuple(map(Path, "wxyz")), tuple("wxyz"), ("a", "a", "b", "b")),
        id=np.array(ids), acronym=acronym, name=name, parent_id=np.array(parent), depth=np.array(depth),
        count=count, count_direct=count, volume_mm3=volumes, fingerprints=tuple("wxyz"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("level", "acronyms", "nested"),
    [
        (
            "summary",
            "VIS MO TH",
            False,
        ),  # most of the children of VIS are layers; MO's own is not in the annotation
        ("leaf", "VIS1 VIS2 VIS6 MO TH", False),
        ("all", "root CTX VIS VIS1 VIS2 VIS6 MO TH", True),
        ("1", "CTX TH", False),
        ("2", "VIS MO TH", False),
        ("0", "root", False),
        ("TH,VIS1", "TH VIS1", False),
        ("TH, 9999", None, False),
        ("CTX,VIS1", "CTX VIS1", True),
    ],
)
def test_levels(table: CohortTable, level: str, acronyms: str | None, nested: bool) -> None:
    if acronyms is None:
        with pytest.raises(UsageError, match="no structure '9999'"):
            select_regions(table, level)
        return
    found = select_regions(table, level)
    assert found.acronym == tuple(acronyms.split()) and found.nested is nested


def test_a_partition_holds_every_voxel_once(table: CohortTable) -> None:
    for level in ("summary", "leaf", "2"):
        volume = select_regions(table, level).add_up(table.volume_mm3)
        assert volume[0, :, 2].sum() == 12 + 5


def test_within_a_structure(table: CohortTable) -> None:
    assert select_regions(table, "leaf", within="CTX").acronym == ("VIS1", "VIS2", "VIS6", "MO")
    with pytest.raises(UsageError, match="selects no structure"):
        select_regions(table, "TH", within="CTX")


def test_sets_count_a_cell_once(table: CohortTable, tmp_path: Path) -> None:
    path = tmp_path / "sets.csv"
    path.write_text("set,structure\nsenses,VIS\nsenses,VIS1\nsenses,TH\nmotor,7\n")
    found = select_regions(table, str(path))
    assert found.acronym == ("senses", "motor") and found.id.tolist() == [-1, -2]
    assert found.name == ("VIS + TH", "MO") and not found.nested
    assert found.add_up(table.volume_mm3)[0, :, 0].tolist() == [13, 4]
    np.testing.assert_array_equal(found.add_up(table.count)[:, 0], table.count[:, 2] + table.count[:, 8])
    path.write_text("set,structure\na,VIS\nb,VIS1\n")
    assert select_regions(table, str(path)).nested


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, NotFoundError, "no table of region sets"),
        ("name,region\n", DataError, "needs the columns set,structure"),
        ("set,structure\n", DataError, "names no set"),
        ("set,structure\na,\n", DataError, "line 2: a set or structure is missing"),
        ("set,structure\na,VSI\n", UsageError, "do you mean .*VIS"),
    ],
)
def test_bad_sets(
    table: CohortTable, tmp_path: Path, text: str | None, error: type[Exception], says: str
) -> None:
    path = tmp_path / "sets.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=says):
        select_regions(table, str(path))


@pytest.mark.parametrize(
    ("level", "says"), [("TH,TH", "twice"), (",", "selects no structure"), ("cortex", "'cortex'")]
)
def test_bad_levels(table: CohortTable, level: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        select_regions(table, level)
