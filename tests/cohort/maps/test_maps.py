from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.maps.maps import MapSettings, make_maps
from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.errors import DataError, UsageError
from brainmap.image.volume import Volume
from brainmap.points.table import Points
from brainmap.run_folder import POINTS_PARQUET, RunRecord

EXTENT = 1600.0
META = {"atlas_shape": (16, 16, 16), "atlas_resolution_um": (100.0, 100.0, 100.0)}


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Eight runs of 6000 cells; in the treated ones three times as many in a corner of the left half."""
    cohort = simulate(Simulation(regions=40, fewest=100, shared_sd=0.0), 0)
    path = write_runs(cohort, tmp_path)
    for i in range(8):
        rng = np.random.default_rng(i)
        place = rng.uniform(0, EXTENT, (6000, 3))
        if i >= 4:
            more = rng.uniform(0, EXTENT, (1500, 3))
            corner = (more[:, :2] < 700).all(axis=1) & (more[:, 2] > 900)
            place = np.concatenate(
                [place, np.repeat(more[corner], 6, axis=0) + rng.normal(0, 5, (6 * corner.sum(), 3))]
            )
        columns = dict(zip(("atlas_z_um", "atlas_y_um", "atlas_x_um"), place.T, strict=True))
        region = np.ones(len(place), dtype=np.int64)
        region[:100] = 0
        Points(columns | {"region_id": region}, META).write(tmp_path / "runs" / f"m{i:02d}" / POINTS_PARQUET)
    return path


SETTINGS = MapSettings(repeats=70, relative=False)


def test_densities_are_cells_per_mm3(groups: Path) -> None:
    found = make_maps(groups, SETTINGS)
    assert found.density.shape == (8, 8, 8, 8) and found.mask.all()
    inner = found.density[:4, 2:-2, 2:-2, 2:-2].mean()
    assert inner == pytest.approx(5900 / 1.6**3, rel=0.03)


def test_a_change_is_found_where_it_is(groups: Path) -> None:
    ((contrast, test),) = make_maps(groups, SETTINGS).tests
    assert contrast.name == "treated - control" and test.exact and test.permutations == 70
    assert test.p[1, 1, 6] <= 0.05 and test.effect[1, 1, 6] > 0.5
    assert test.p[6, 6, 1] > 0.05 and test.p[1, 1, 1] > 0.05


def test_folded_maps_have_half_the_voxels(groups: Path) -> None:
    folded = make_maps(groups, MapSettings(repeats=20, relative=False, fold=True))
    assert folded.mask.shape == (8, 8, 4)
    whole = make_maps(groups, MapSettings(repeats=20, relative=False))
    np.testing.assert_allclose(folded.density[..., 1], (whole.density[..., 1] + whole.density[..., 6]) / 2)


def test_the_folder_of_maps(groups: Path, tmp_path: Path) -> None:
    import ants

    out = tmp_path / "maps"
    command = ["maps", str(groups), "--out", str(out), "--permutations", "20", "--absolute"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "voxels more" in done.output
    volume = Volume.open(out / "treated---control.ome.zarr", channel=0)
    assert volume.shape == (8, 8, 8) and volume.voxel_um == (200, 200, 200)
    image = ants.image_read(str(out / "treated---control_log2_ratio.nii.gz"))
    assert image.spacing == pytest.approx((0.2, 0.2, 0.2))
    assert (out / "report.html").exists() and (out / "animals.ome.zarr").exists()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "--overwrite" in again.output


def test_what_cannot_be_mapped(groups: Path) -> None:
    run = groups.parent / "runs" / "m02"
    RunRecord.load(run).updated(results={"registration_verdict": "bad"}).save(run)
    with pytest.raises(DataError, match="the registration of m02 is bad"):
        make_maps(groups, SETTINGS)


@pytest.mark.parametrize("options", [{"voxel_um": 0.0}, {"repeats": 5}, {"alpha": 2.0}, {"sigma_um": -1.0}])
def test_settings_that_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        MapSettings(**options)  # type: ignore[arg-type]
