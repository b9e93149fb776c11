"""The region table: invariant 4, the exact columns, volumes against direct counting."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainmap.atlas import Atlas, RegionCounter, assign_regions, count_regions
from brainmap.atlas.regions import (
    COLUMNS,
    RegionTable,
    atlas_volumes,
    label_volumes,
    read_region_table,
    write_regions,
)
from brainmap.errors import DataError
from brainmap.report.region_rows import read_regions

BIG_ID = 614_454_277


@pytest.fixture
def atlas(write_atlas: Callable[..., Path]) -> Atlas:
    return Atlas.open(write_atlas())


def _random_table(atlas: Atlas, n: int = 5000) -> tuple[RegionTable, np.ndarray, np.ndarray]:
    points = np.random.default_rng(0).uniform(-100, 1100, (n, 3))
    region, hemisphere = assign_regions(points, atlas)
    batches = [(region[i : i + 700], hemisphere[i : i + 700]) for i in range(0, n, 700)]
    volumes = label_volumes(
        atlas.annotation, atlas.hemispheres, atlas.structures, ([100] * 8, [100] * 6, [100] * 10)
    )
    return count_regions(batches, atlas, volumes), region, hemisphere


def test_every_point_is_in_exactly_one_direct_row(atlas: Atlas) -> None:
    table, region, _ = _random_table(atlas)
    both = table["hemisphere"] == "both"
    assert table["count_direct"][both].sum() == len(region)
    assert table["count_direct"][0] == (region == 0).sum()
    assert table["region_id"].dtype == np.int64


def test_counts_agree_with_a_loop_over_structures(atlas: Atlas) -> None:
    table, region, hemisphere = _random_table(atlas)
    for acronym in atlas.structures.acronym:
        members = np.isin(region, atlas.structures.descendants(acronym))
        own = region == atlas.structures.id[atlas.structures.row(acronym)]
        for side, code in (("left", 1), ("right", 2)):
            row = table.select(acronym, side)
            assert row["count"] == (members & (hemisphere == code)).sum()
            assert row["count_direct"] == (own & (hemisphere == code)).sum()
        assert table.select(acronym)["count"] == members.sum()


def test_parent_is_itself_plus_children_and_both_is_the_sum(atlas: Atlas) -> None:
    table, _, _ = _random_table(atlas)
    for measure, direct in (("count", "count_direct"), ("volume_mm3", "volume_direct_mm3")):
        for side in ("left", "right", "both"):
            for acronym, identifier in zip(atlas.structures.acronym, atlas.structures.id, strict=True):
                children = (table["parent_id"] == identifier) & (table["hemisphere"] == side)
                row = table.select(acronym, side)
                assert row[measure] == pytest.approx(row[direct] + table[measure][children].sum())
        for acronym in atlas.structures.acronym:
            left, right, both = (table.select(acronym, s)[measure] for s in ("left", "right", "both"))
            assert both == pytest.approx(left + right)


def test_undecided_points_are_in_both_only(atlas: Atlas) -> None:
    counter = RegionCounter(atlas.structures)
    counter.add([11, 11, 11, 0], [0, 1, 2, 0])
    table = counter.table()
    assert [table.select("CTX", s)["count"] for s in ("left", "right", "both")] == [1, 1, 3]
    assert counter.n_points == 4


def test_zero_rows_are_kept_and_order_is_fixed(atlas: Atlas) -> None:
    table = RegionCounter(atlas.structures).table()
    assert len(table) == 1 + 3 * 5
    assert table["acronym"][:4].tolist() == ["outside", "root", "root", "root"]
    assert table["hemisphere"][:4].tolist() == ["both", "left", "right", "both"]
    assert table.select("root")["parent_id"] == 0
    assert not table["count"].any()


def test_no_points_and_bad_points(atlas: Atlas) -> None:
    counter = RegionCounter(atlas.structures)
    counter.add(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int8))
    assert counter.n_points == 0
    with pytest.raises(DataError, match="12 is not in the atlas"):
        counter.add([8, 12], [1, 1])
    with pytest.raises(DataError, match="hemisphere must be"):
        counter.add([8], [3])
    with pytest.raises(DataError, match="differ in length"):
        counter.add([8], [1, 1])


def test_volumes_and_densities(atlas: Atlas) -> None:
    table, _, _ = _random_table(atlas)
    voxels = (atlas.annotation == BIG_ID).sum()
    assert table.select("BIG")["volume_direct_mm3"] == pytest.approx(voxels * 1e-3)
    row = table.select("BIG", "left")
    assert row["density_per_mm3"] == pytest.approx(row["count"] / row["volume_mm3"])
    assert np.isnan(table["volume_mm3"][0])
    assert np.isnan(table["density_per_mm3"][0])


def test_volume_of_a_part(atlas: Atlas) -> None:
    half = np.zeros(atlas.shape, dtype=bool)
    half[:, :, :5] = True
    weights = ([100] * 8, [100] * 6, [100] * 9 + [50])
    part = label_volumes(atlas.annotation, atlas.hemispheres, atlas.structures, weights, half)
    assert part[:, 1].sum() == 0  # left starts at index 5
    root = np.count_nonzero(atlas.annotation[:, :, :5]) * 1e-3
    assert part[:-1].sum() == pytest.approx(root)


def test_csv_is_exactly_the_contract(atlas: Atlas, tmp_path: Path) -> None:
    table, _, _ = _random_table(atlas)
    write_regions(table, tmp_path / "regions.csv")
    with (tmp_path / "regions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert (tmp_path / "regions.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert rows[0]["region_id"] == "0"
    assert rows[0]["acronym"] == "outside"
    assert rows[0]["volume_mm3"] == ""
    assert {"Grey, matter"} <= {row["name"] for row in rows}
    big = [row for row in rows if row["region_id"] == str(BIG_ID)]
    assert [row["hemisphere"] for row in big] == ["left", "right", "both"]
    assert int(big[2]["count"]) == int(big[0]["count"]) + int(big[1]["count"])
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["regions.csv"]


def test_the_half_that_a_brain_lacks_has_no_density_by_atlas_volume(write_atlas: Callable[..., Path]) -> None:
    atlas = Atlas.open(write_atlas())
    counter = RegionCounter(atlas.structures)
    counter.add([11, 11], [1, 1])
    whole = atlas_volumes(atlas)
    half = whole.copy()
    half[:, 2] = 0
    table = counter.table(half, atlas_mm3=whole, whole_mm3=half)
    density = {side: table.select("CTX", side)["density_per_atlas_mm3"] for side in ("left", "right", "both")}
    assert density["left"] == pytest.approx(2 / whole[atlas.structures.row("CTX"), 1])
    assert np.isnan(density["right"]) and np.isnan(density["both"])
    assert np.isfinite(table.select("CTX", "both")["density_per_mm3"])


def test_names_that_look_like_formulas_are_written_as_text_and_read_unchanged(
    write_atlas: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["=HYPERLINK(1)", "-CTX", "+x", "@y", "'z"]
    records = [
        {"id": i + 1, "acronym": name, "name": name, "structure_id_path": [1, i + 1] if i else [1]}
        for i, name in enumerate(names)
    ]
    structures = Atlas.open(write_atlas(records=records)).structures
    table = RegionCounter(structures).table()
    write_regions(table, tmp_path / "regions.csv")
    cells = [
        cell for row in csv.reader((tmp_path / "regions.csv").read_text().splitlines()) for cell in row[1:3]
    ]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert set(read_region_table(tmp_path / "regions.csv")["acronym"]) == {"outside", *names}
    assert [region.name for region in read_regions(tmp_path / "regions.csv").regions] == names
