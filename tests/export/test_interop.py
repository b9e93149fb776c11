"""Tables made here, opened by the tools they are made for, where those are installed; by pandas always."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainmap.atlas import Atlas, RegionCounter
from brainmap.atlas.regions import COLUMNS, atlas_volumes, write_regions
from brainmap.atlas.summary import summarise
from brainmap.export.formats import export_points
from brainmap.phantom import write_phantom
from brainmap.points.table import Points

# Warnings of the other tools are theirs.
pytestmark = pytest.mark.filterwarnings("default")

N = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of cells at known places of a phantom's atlas, every fourth of them beyond it."""
    atlas = Atlas.open(write_phantom(tmp_path_factory.mktemp("phantom"), seed=1, size="tiny").atlas)
    rng = np.random.default_rng(0)
    vox = rng.uniform(2, 90, (N, 3))
    mapped = rng.uniform(0.3, 0.7, (N, 3)) * atlas.extent_um
    mapped[::4] = -50.0
    region, hemisphere = atlas.lookup(mapped)
    columns = {"z": vox[:, 0], "y": vox[:, 1], "x": vox[:, 2]}
    columns |= dict(zip(("z_um", "y_um", "x_um"), (vox * (5, 2, 2)).T, strict=True))
    columns |= {"score": rng.uniform(0.5, 1, N).astype(np.float32)}
    columns |= dict(zip(("atlas_z_um", "atlas_y_um", "atlas_x_um"), mapped.T, strict=True))
    columns |= {"region_id": region, "hemisphere": hemisphere}
    meta = {"voxel_um": (5, 2, 2), "atlas_resolution_um": atlas.resolution_um, "atlas_shape": atlas.shape}
    folder = tmp_path_factory.mktemp("run")
    Points(columns, meta).write(folder / "points.parquet")
    counter = RegionCounter(atlas.structures)
    counter.add(region, hemisphere)
    table = counter.table(atlas_volumes(atlas), atlas_mm3=atlas_volumes(atlas))
    write_regions(table, folder / "regions.csv")
    write_regions(summarise(table, "summary"), folder / "regions_summary.csv")
    return folder


def whole_voxels(run: Path) -> list[list[int]]:
    """x, y, z of every cell, as BrainGlobe keeps them."""
    cells = pd.read_parquet(run / "points.parquet")
    return np.rint(cells[["x", "y", "z"]].to_numpy()).astype(int).tolist()


@pytest.mark.parametrize("kind", ["brainglobe-xml", "brainglobe-yaml"])
def test_brainglobe_reads_our_cells(run: Path, kind: str) -> None:
    pytest.importorskip("brainglobe_utils")
    from brainglobe_utils.IO.cells import get_cells

    cells = get_cells(str(export_points(run, kind)), cells_only=True)
    assert [[cell.x, cell.y, cell.z] for cell in cells] == whole_voxels(run)
    assert {cell.type for cell in cells} == {2}
    if kind == "brainglobe-yaml":
        expected = pd.read_parquet(run / "points.parquet")
        np.testing.assert_allclose([cell.metadata["score"] for cell in cells], expected["score"], atol=1e-6)
        np.testing.assert_allclose([cell.metadata["z_vox"] for cell in cells], expected["z"], atol=1e-4)


def test_brainglobe_writes_the_same_table(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("brainglobe_utils")
    from brainglobe_utils.IO.cells import cells_to_csv, get_cells

    cells_to_csv(get_cells(str(export_points(run, "brainglobe-xml"))), tmp_path / "theirs.csv")
    theirs, ours = (
        pd.read_csv(path, index_col=0)
        for path in (tmp_path / "theirs.csv", export_points(run, "brainglobe-csv"))
    )
    pd.testing.assert_frame_equal(ours[theirs.columns], theirs)


def test_napari_reads_our_points(run: Path) -> None:
    pytest.importorskip("napari_builtins")
    from napari_builtins.io import napari_get_reader

    path = str(export_points(run, "napari"))
    reader = napari_get_reader(path)
    assert reader is not None
    ((data, attributes, kind),) = reader(path)
    assert kind == "points"
    cells = pd.read_parquet(run / "points.parquet")
    np.testing.assert_allclose(data, cells[["z", "y", "x"]], atol=1e-4)
    np.testing.assert_allclose(attributes["properties"]["score"], cells["score"], atol=1e-6)


def test_pandas_reads_every_table_and_they_agree(run: Path) -> None:
    cells = pd.read_parquet(run / "points.parquet")
    regions = pd.read_csv(run / "regions.csv")
    summary = pd.read_csv(run / "regions_summary.csv")
    assert tuple(regions.columns) == COLUMNS
    whole = regions[regions["hemisphere"] == "both"]
    assert whole["count_direct"].sum() == len(cells) == N
    assert summary.loc[summary["hemisphere"] == "both", "count"].sum() == N
    counted = cells["region_id"].value_counts()
    direct = whole.set_index("region_id")["count_direct"]
    assert direct[direct > 0].to_dict() == counted.to_dict()
    assert regions.loc[0, ["region_id", "acronym", "count"]].tolist() == [
        0,
        "outside",
        (cells["region_id"] == 0).sum(),
    ]
    assert (cells["region_id"] == 0).sum() >= N / 4


def test_brainmapper_tables_stay_aligned_around_cells_outside(run: Path) -> None:
    """Each row's raw coordinates belong to its atlas coordinates, also behind a cell outside the atlas."""
    cells = pd.read_parquet(run / "points.parquet")
    folder = export_points(run, "brainmapper")
    rows = pd.read_csv(folder / "all_points.csv")
    inside = cells[cells["region_id"] != 0].reset_index(drop=True)
    assert len(rows) == len(inside) < N
    raw = rows[[f"coordinate_raw_axis_{i}" for i in range(3)]].to_numpy()
    np.testing.assert_array_equal(raw, np.rint(inside[["z", "y", "x"]]).astype(int))
    mapped = rows[[f"coordinate_atlas_axis_{i}" for i in range(3)]].to_numpy()
    resolution = Points.read(run / "points.parquet").meta["atlas_resolution_um"]
    um = inside[["atlas_z_um", "atlas_y_um", "atlas_x_um"]].to_numpy()
    np.testing.assert_array_equal(mapped, np.floor(um / resolution).astype(int))
    names = pd.read_csv(run / "regions.csv").drop_duplicates("region_id").set_index("region_id")["name"]
    assert rows["structure_name"].tolist() == names[inside["region_id"]].tolist()
    summary = pd.read_csv(folder / "summary.csv")
    assert summary["total_cells"].sum() == len(rows)
    assert set(rows["structure_name"]) <= set(pd.read_csv(folder / "volumes.csv")["structure_name"])
