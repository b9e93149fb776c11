"""Levels and sets: known answers on a small hierarchy, rows that add up, sentences about mistakes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainmap.atlas import Atlas, RegionCounter
from brainmap.atlas.region_sets import DIVISIONS, Hierarchy, check_level, select_regions
from brainmap.atlas.regions import RegionTable, atlas_volumes, read_region_table, write_regions
from brainmap.atlas.summary import SUMMARY_COLUMNS, summarise
from brainmap.errors import DataError, NotFoundError, UsageError

# id, acronym, name, parent
STRUCTURES = [
    (1, "root", "root", 0),
    (2, "CTX", "Cortex", 1),
    (3, "VIS", "Visual area", 2),
    (4, "VIS1", "Visual area, layer 1", 3),
    (5, "VIS5", "Visual area, layer 5", 3),
    (6, "MO", "Motor area", 2),
    (7, "fiber tracts", "fiber tracts", 1),
    (8, "cc", "corpus callosum", 7),
    (9, "VS", "ventricular systems", 1),
    (10, "GONE", "In the ontology, not in the annotation", 1),
]


@pytest.fixture
def hierarchy() -> Hierarchy:
    ids, acronym, name, parent = zip(*STRUCTURES, strict=True)
    depth = np.array([0, 1, 2, 3, 3, 2, 1, 2, 1, 1])
    present = np.array([name != "GONE" for name in acronym])
    return Hierarchy(np.array(ids), acronym, name, np.array(parent), depth, present)


@pytest.fixture
def atlas(write_atlas: Callable[..., Path]) -> Atlas:
    """Every structure but GONE, VIS and root has voxels of its own; fibre tracts some that are not cc's."""
    paths = {
        1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 2, 3, 4], 5: [1, 2, 3, 5], 6: [1, 2, 6], 7: [1, 7], 8: [1, 7, 8],
        9: [1, 9], 10: [1, 10],
    }  # fmt: skip
    records = [
        {"id": i, "acronym": acronym, "name": name, "structure_id_path": paths[i]}
        for i, acronym, name, _ in STRUCTURES
    ]
    ids = np.zeros((4, 5, 10), dtype=np.uint32)
    ids[1] = np.array([2, 4, 5, 6, 7])[:, None]
    ids[2] = np.array([8, 9, 1, 4, 4])[:, None]
    return Atlas.open(write_atlas(annotation=ids, records=records))


@pytest.fixture
def table(atlas: Atlas) -> RegionTable:
    """2000 points anywhere in the box, whole brain analysed; the sample is half as large as the atlas."""
    points = np.random.default_rng(0).uniform(0, (400, 500, 1000), (2000, 3))
    counter = RegionCounter(atlas.structures)
    counter.add(*atlas.lookup(points))
    volumes = atlas_volumes(atlas)
    return counter.table(volumes / 2, atlas_mm3=volumes, whole_mm3=volumes / 2)


def both(summary: RegionTable) -> dict[str, int]:
    rows = summary["hemisphere"] == "both"
    return dict(zip(summary["acronym"][rows].tolist(), summary["count"][rows].tolist(), strict=True))


@pytest.mark.parametrize(
    ("level", "acronyms"),
    [
        ("summary", "VIS MO cc VS"),
        ("leaf", "VIS1 VIS5 MO cc VS"),
        ("1", "CTX,fiber tracts,VS"),
        ("MO,VIS", "MO VIS"),
        ("VS", "VS"),
    ],
)
def test_rows_add_up_to_all_cells(table: RegionTable, level: str, acronyms: str) -> None:
    summary = summarise(table, level)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    wanted = acronyms.split(",") if "," in acronyms else acronyms.split()
    assert list(both(summary)) == ["outside", *wanted, "other"]
    assert sum(both(summary).values()) == 2000
    assert not any(summary["shares_cells_with"])
    for acronym in wanted:
        for side in ("left", "right", "both"):
            ours, whole = summary.select(acronym, side), table.select(acronym, side)
            for column in set(SUMMARY_COLUMNS) & set(table.columns):
                assert ours[column] == whole[column], column
    rows = summary["hemisphere"] == "both"
    for column in ("volume_mm3", "atlas_volume_mm3"):
        assert np.nansum(summary[column][rows]) == pytest.approx(table.select("root")[column])


def test_the_rest_is_what_no_region_holds(table: RegionTable) -> None:
    rest = summarise(table, "summary").select("other", "left")
    own = [table.select(acronym, "left") for acronym in ("root", "CTX", "fiber tracts")]
    assert rest["count"] == sum(row["count_direct"] for row in own) > 0
    assert rest["volume_mm3"] == pytest.approx(sum(row["volume_direct_mm3"] for row in own))
    assert rest["density_per_mm3"] == pytest.approx(rest["count"] / rest["volume_mm3"])
    assert rest["region_id"] < 0


def test_nested_regions_say_with_whom_they_share(
    table: RegionTable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        summary = summarise(table, "CTX,VIS1,VS")
    assert "do not add up" in caplog.text
    assert summary.select("CTX")["shares_cells_with"] == "VIS1"
    assert summary.select("VIS1")["shares_cells_with"] == "CTX"
    assert summary.select("VS")["shares_cells_with"] == ""
    # What is in none of them is counted once all the same.
    found = both(summary)
    assert found["outside"] + found["CTX"] + found["VS"] + found["other"] == 2000


def test_overlapping_sets_of_ones_own(table: RegionTable, tmp_path: Path) -> None:
    path = tmp_path / "sets.csv"
    path.write_text(
        "set,structure,why\nwhite,7,x\nvisual,VIS\nsenses,VIS5\nsenses,MO\n", encoding="utf-8-sig"
    )
    summary = summarise(table, str(path))
    found = both(summary)
    assert list(found) == ["outside", "white", "visual", "senses", "other"]
    assert found["senses"] == table.select("VIS5")["count"] + table.select("MO")["count"]
    assert summary.select("visual")["shares_cells_with"] == "senses"
    assert summary.select("senses")["name"] == "VIS5 + MO"
    assert (
        found["outside"] + found["white"] + found["visual"] + table.select("MO")["count"] + found["other"]
        == 2000
    )
    assert set(summary["region_id"][1::3].tolist()) == {-1, -2, -3, -4}


def test_densities_by_atlas_volume(table: RegionTable) -> None:
    row = table.select("VIS")
    assert row["atlas_volume_mm3"] == pytest.approx(2 * row["volume_mm3"])
    assert row["density_per_atlas_mm3"] == pytest.approx(row["density_per_mm3"] / 2)


def test_no_density_by_atlas_volume_of_what_was_partly_analysed(atlas: Atlas) -> None:
    counter = RegionCounter(atlas.structures)
    volumes = atlas_volumes(atlas)
    analysed = volumes.copy()
    analysed[atlas.structures.row("VIS1")] *= 0.5
    table = counter.table(analysed, atlas_mm3=volumes, whole_mm3=volumes)
    unknown = {
        name for name in atlas.structures.acronym if np.isnan(table.select(name)["density_per_atlas_mm3"])
    }
    assert unknown == {"root", "CTX", "VIS", "VIS1", "GONE"}
    assert table.select("VIS1")["atlas_volume_mm3"] > 0
    summary = summarise(table, "summary")
    assert np.isnan(summary.select("VIS")["density_per_atlas_mm3"])
    assert summary.select("MO")["density_per_atlas_mm3"] == 0


def test_an_asymmetric_atlas_counts_by_its_own_hemispheres(write_atlas: Callable[..., Path]) -> None:
    sides = np.ones((8, 6, 10), dtype=np.uint8)
    sides[:, :, 7:], sides[:, :, 4] = 2, 0
    atlas = Atlas.open(write_atlas(hemispheres=sides))
    counter = RegionCounter(atlas.structures)
    centres = (np.argwhere(atlas.annotation > 0) + 0.5) * 100
    counter.add(*atlas.lookup(centres))
    volumes = atlas_volumes(atlas)
    table = counter.table(volumes, atlas_mm3=volumes)
    for rows in (table, summarise(table, "leaf")):
        for acronym in ("CTX", "BIG", "VS"):
            ids = atlas.annotation == atlas.structures.id[atlas.structures.row(acronym)]
            voxels = {
                "left": (ids & (sides == 1)).sum(),
                "right": (ids & (sides == 2)).sum(),
                "both": ids.sum(),
            }
            for side, n in voxels.items():
                row = rows.select(acronym, side)
                assert row["count"] == n
                assert row["atlas_volume_mm3"] == pytest.approx(n * 1e-3)
    assert table.select("root")["count"] > sum(
        table.select("root", side)["count"] for side in ("left", "right")
    )


def test_tables_without_volumes(atlas: Atlas) -> None:
    counter = RegionCounter(atlas.structures)
    counter.add([4, 8, 0], [1, 2, 0])
    assert both(summarise(counter.table())) == {"outside": 1, "VIS": 1, "cc": 1, "other": 0}


def test_the_tables_read_back(table: RegionTable, tmp_path: Path) -> None:
    write_regions(table, tmp_path / "regions.csv")
    again = read_region_table(tmp_path / "regions.csv")
    for name, values in table.columns.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(again[name], values, rtol=1e-8)
        else:
            assert again[name].tolist() == values.tolist()
    write_regions(summarise(again, "summary"), tmp_path / "summary.csv")
    frame = pd.read_csv(tmp_path / "summary.csv")
    assert tuple(frame.columns) == SUMMARY_COLUMNS
    assert frame.query("hemisphere == 'both'")["count"].sum() == 2000


def test_older_tables_have_no_atlas_volumes(table: RegionTable, tmp_path: Path) -> None:
    write_regions(
        RegionTable({k: v for k, v in table.columns.items() if "atlas" not in k}), tmp_path / "a.csv"
    )
    again = read_region_table(tmp_path / "a.csv")
    assert np.isnan(again["atlas_volume_mm3"]).all()
    assert both(summarise(again)) == both(summarise(table))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, NotFoundError, "detect with --atlas"),
        ("region_id,name\n1,a\n", DataError, "not a table of regions"),
        ("", DataError, "not a table of regions"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str | None, error: type[Exception], says: str) -> None:
    if text is not None:
        (tmp_path / "regions.csv").write_text(text)
    with pytest.raises(error, match=says):
        read_region_table(tmp_path / "regions.csv")


@pytest.mark.parametrize(
    ("level", "says"),
    [
        ("Vis", "'Vis'; do you mean VIS"),
        ("visual area", "do you mean .*VIS"),
        ("4711", "'4711'; give acronyms or ids"),
        ("divisions", "divisions are those of the Allen mouse brain; this atlas has no Isocortex"),
        ("", "selects no structure"),
        ("7", "'7'|selects"),
    ],
)
def test_bad_levels(hierarchy: Hierarchy, level: str, says: str) -> None:
    if level == "7":  # deeper than the ontology: an id
        assert select_regions(hierarchy, level).acronym == ("fiber tracts",)
        return
    with pytest.raises(UsageError, match=says):
        select_regions(hierarchy, level)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (
            b"set,structure\na,VSI\n",
            UsageError,
            r"line 2: the atlas has no structure 'VSI'; do you mean .*VS",
        ),
        (b"set,structure\nother,VS\n", DataError, "cannot be called 'other'"),
        (b"set,structure\noutside,VS\n", DataError, "cannot be called 'outside'"),
        (b"set,structure\n\xff\xfe,VS\n", DataError, "UTF-8"),
    ],
)
def test_bad_sets(
    hierarchy: Hierarchy, tmp_path: Path, content: bytes, error: type[Exception], says: str
) -> None:
    path = tmp_path / "sets.csv"
    path.write_bytes(content)
    with pytest.raises(error, match=says):
        select_regions(hierarchy, str(path))


def test_levels_are_checked_before_anything_is_counted(atlas: Atlas) -> None:
    check_level("summary", atlas.structures)
    check_level("GONE", atlas.structures)  # whether it holds anything is not known yet
    with pytest.raises(UsageError, match="no structure 'nope'"):
        check_level("CTX,nope", atlas.structures)


def test_real_atlas_in_divisions(brainmap_data: Path) -> None:
    """Every cell in one row at every level; volumes plausible for a mouse brain and the same at all resolutions."""
    found = {}
    for um in (25, 50, 100):
        atlas = Atlas.open(brainmap_data / "atlases" / f"allen_mouse_{um}um_v1.2")
        points = np.random.default_rng(0).uniform(0, atlas.extent_um, (50_000, 3))
        counter = RegionCounter(atlas.structures)
        counter.add(*atlas.lookup(points))
        volumes = atlas_volumes(atlas)
        table = counter.table(volumes, atlas_mm3=volumes)
        assert table.select("root")["volume_mm3"] == pytest.approx(
            (atlas.annotation > 0).sum() * (um / 1000) ** 3
        )
        for level in ("summary", "divisions", "leaf", "5"):
            summary = summarise(table, level)
            assert sum(both(summary).values()) == len(points)
        found[um] = summarise(table, "divisions")
        assert both(found[um]).keys() == {"outside", *DIVISIONS, "other"}
        # Random points: the same density everywhere.
        large = (found[um]["atlas_volume_mm3"] > 20) & (found[um]["hemisphere"] == "both")
        even = len(points) / np.prod(np.array(atlas.extent_um) / 1000)
        np.testing.assert_allclose(found[um]["density_per_atlas_mm3"][large], even, rtol=0.15)
    assert found[50].select("Isocortex")["atlas_volume_mm3"] == pytest.approx(124, rel=0.03)
    assert (
        found[50].select("fiber tracts")["atlas_volume_mm3"] > found[50].select("VS")["atlas_volume_mm3"] > 5
    )
    for name in DIVISIONS:
        fine, coarse = (found[um].select(name)["atlas_volume_mm3"] for um in (50, 100))
        assert fine == pytest.approx(coarse, rel=0.03), name
