"""The whole of `brainmap detect`, with the shipped detector, on a small phantom brain."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmap.coords import vox_to_um
from brainmap.errors import IncompleteRunError, NotFoundError, UsageError
from brainmap.image.volume import Volume, write_volume
from brainmap.infer.block import process
from brainmap.phantom import Phantom, write_phantom
from brainmap.points.evaluation import evaluate_files
from brainmap.points.table import COLUMNS, Points
from brainmap.run.detect import detect_brain
from brainmap.run.recount import recount, summarise_run
from brainmap.run.request import DetectRequest, Roi
from brainmap.run_folder import RunRecord


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return write_phantom(tmp_path_factory.mktemp("phantom"), seed=1, size="tiny")


def request_for(phantom: Phantom, out: Path, **changes: object) -> DetectRequest:
    base = DetectRequest(
        brain=str(phantom.brain), out=out, channel=0, registration_channel=1, atlas=None, progress=False
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def run(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an atlas."""
    out = tmp_path_factory.mktemp("run") / "run"
    detect_brain(request_for(phantom, out, atlas=str(phantom.atlas)))
    return out


def cells(run: Path) -> np.ndarray:
    return Points.read(run / "points.parquet").zyx_vox


def test_the_cells_of_the_phantom_are_found(run: Path, phantom: Phantom) -> None:
    scores = evaluate_files(run, phantom.truth, tolerance_um=10).scores
    assert scores.recall > 0.9
    assert scores.precision > 0.8


def test_the_network_is_loaded_once(
    phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = process.load_backend

    def spy(*args: object) -> object:
        loaded.append(threading.current_thread().name)
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "load_backend", spy)
    monkeypatch.setattr(process, "_backends", process._Once())
    roi = Roi.parse("0:8,0:64,0:64")
    detect_brain(request_for(phantom, tmp_path / "run", roi=roi))
    assert loaded == ["brainmap-load-ahead"]
    process._backends.values.clear()
    detect_brain(request_for(phantom, tmp_path / "run", roi=roi))
    assert len(loaded) == 1, "nothing is left to detect"


def test_pixels_too_coarse_for_the_cells_are_a_warning_before_the_run(
    phantom: Phantom, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = np.random.default_rng(0).poisson(100, (4, 40, 40)).astype(np.uint16)
    brain = write_volume(tmp_path / "coarse.zarr", image, (50.0, 6.0, 5.0))
    request = request_for(phantom, tmp_path / "run", brain=brain.url, registration_channel=None)
    assert "pixels of 6 x 5 um are too coarse for cells of 10 um" in str(
        detect_brain(replace(request, dry_run=True))
    )
    summary = detect_brain(request)
    first = next(record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert (first,) == summary.warnings
    assert RunRecord.load(tmp_path / "run").warnings == summary.warnings
    assert not detect_brain(replace(request, cell_diameter_um=12.0, dry_run=True)).warnings


def test_the_run_folder_is_what_the_contract_says(run: Path) -> None:
    for name in (
        "run.json",
        "points.parquet",
        "regions.csv",
        "regions_summary.csv",
        "report.html",
        "registration/registration.json",
    ):
        assert (run / name).is_file(), name
    for name in ("annotation.ome.zarr", "sample_in_atlas.ome.zarr"):
        assert (run / "registration" / name).is_dir(), name
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "complete"
    assert set(record["fingerprints"]) >= {"volume", "detector", "atlas"}
    points = Points.read(run / "points.parquet")
    assert list(points.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert {"intensity", "snr", "diameter_um"} <= set(points.columns)
    assert points["region_id"].dtype == np.int64
    assert points["hemisphere"].dtype == np.int8
    assert points["score"].min() >= 0
    assert points["score"].max() <= 1


def test_um_are_index_times_scale_plus_translation(run: Path, phantom: Phantom) -> None:
    points, volume = Points.read(run / "points.parquet"), Volume.open(phantom.brain, channel=0)
    np.testing.assert_allclose(points.zyx_um, vox_to_um(points.zyx_vox, volume.voxel_um, volume.origin_um))


def test_every_cell_is_in_the_table_once(run: Path) -> None:
    """Invariant 4."""
    with (run / "regions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["region_id"] == "0"
    assert rows[0]["acronym"] == "outside"
    both = [row for row in rows if row["hemisphere"] == "both"]
    assert sum(int(row["count_direct"]) for row in both) == len(cells(run))
    count = {(row["region_id"], row["hemisphere"]): int(row["count"]) for row in rows}
    for row in both[1:]:
        children = [r for r in both if r["parent_id"] == row["region_id"]]
        assert int(row["count"]) == int(row["count_direct"]) + sum(int(child["count"]) for child in children)
        sides = count[row["region_id"], "left"] + count[row["region_id"], "right"]
        assert int(row["count"]) == sides


def test_the_summary_adds_up_and_follows_the_level(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    sets = tmp_path / "sets.csv"
    with (run / "regions.csv").open() as file:
        leaf = next(row for row in [*csv.DictReader(file)][::-1] if row["hemisphere"] == "both")
    sets.write_text(f"set,structure\nmine,{leaf['acronym']}\n")
    for level in (None, "leaf", "1", str(sets)):
        path = copy / "regions_summary.csv" if level is None else summarise_run(copy, level)
        with path.open() as file:
            rows = [row for row in csv.DictReader(file) if row["hemisphere"] == "both"]
        assert sum(int(row["count"]) for row in rows) == len(cells(run)), level
        assert (rows[0]["acronym"], rows[-1]["acronym"]) == ("outside", "other")
    assert [row["acronym"] for row in rows] == ["outside", "mine", "other"]
    assert rows[1]["count"] == leaf["count"]
    # Counting again keeps the level; another file leaves the run alone.
    before = (copy / "regions_summary.csv").read_bytes()
    assert summarise_run(copy, "leaf", tmp_path / "leaf.csv") == tmp_path / "leaf.csv"
    recount(copy)
    assert (copy / "regions_summary.csv").read_bytes() == before
    assert RunRecord.load(copy).execution["level"] == str(sets)


def test_a_wrong_level_is_refused_before_anything_is_computed(phantom: Phantom, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no structure 'nowhere'"):
        detect_brain(request_for(phantom, tmp_path / "run", atlas=str(phantom.atlas), level="nowhere"))
    assert not (tmp_path / "run").exists()


def test_cells_land_in_their_regions(run: Path, phantom: Phantom) -> None:
    """By the exact warp of the phantom: the right side, and places within a few atlas voxels."""
    points = Points.read(run / "points.parquet")
    true_um = phantom.to_atlas_um(points.zyx_vox)
    error = np.linalg.norm(points.atlas_zyx_um - true_um, axis=1)
    assert np.median(error) < 16
    with phantom.truth.open() as file:
        truth = list(csv.DictReader(file))
    share_left = np.mean([row["hemisphere"] == "1" for row in truth if row["hemisphere"] != "0"])
    found = points["hemisphere"][points["hemisphere"] > 0]
    assert abs((found == 1).mean() - share_left) < 0.05


def test_how_sure_the_regions_are(run: Path, phantom: Phantom) -> None:
    """Distance to the border; and the region by the annotation warped to the sample, for the same cells."""
    points = Points.read(run / "points.parquet")
    border = points["border_um"]
    assert border.dtype == np.float32
    np.testing.assert_array_equal(np.isfinite(border)[points["region_id"] != 0], True)
    assert np.nanmin(border) >= 0
    warped = Volume.open(run / "registration" / "annotation.ome.zarr")
    ids = warped.read(*(slice(0, n) for n in warped.shape))
    index = np.rint((points.zyx_um - np.array(warped.origin_um)) / warped.voxel_um).astype(int)
    same = ids[tuple(np.clip(index, 0, np.array(ids.shape) - 1).T)] == points["region_id"]
    agree = RunRecord.load(run).results["regions_agree"]
    assert agree == pytest.approx(same.mean(), abs=0.01)
    assert agree > 0.7
    # Where the two ways differ, the border is near.
    assert np.nanmedian(border[~same]) < np.nanmedian(border[same])


def test_the_same_command_again_computes_nothing_anew(run: Path, phantom: Phantom) -> None:
    before = (run / "points.parquet").read_bytes()
    blocks = {path: path.stat().st_mtime_ns for path in (run / "blocks").iterdir()}
    summary = detect_brain(request_for(phantom, run, atlas=str(phantom.atlas), exports=("napari",)))
    assert summary.voxels_per_second == 0
    assert (run / "points.parquet").read_bytes() == before
    assert (run / "exports" / "napari.csv").is_file()
    parquet = {path: when for path, when in blocks.items() if path.suffix == ".parquet"}
    assert {path: path.stat().st_mtime_ns for path in parquet} == parquet


def test_other_parameters_are_refused_until_overwrite(phantom: Phantom, tmp_path: Path) -> None:
    first = request_for(phantom, tmp_path / "run", roi=Roi((40, 60), (60, 130), (60, 130)))
    detect_brain(first)
    kept, before = (tmp_path / "run" / "points.parquet").read_bytes(), len(cells(tmp_path / "run"))
    with pytest.raises(UsageError, match="threshold was"):
        detect_brain(replace(first, threshold=0.9))
    assert (tmp_path / "run" / "points.parquet").read_bytes() == kept
    detect_brain(replace(first, threshold=0.9, overwrite=True))
    scores = Points.read(tmp_path / "run" / "points.parquet")["score"]
    assert 0 < len(scores) < before
    assert scores.min() >= 0.9


def test_a_region_of_interest_gives_the_cells_of_the_whole(
    run: Path, phantom: Phantom, tmp_path: Path
) -> None:
    box = Roi((30, 70), (50, 150), (40, 200))
    detect_brain(request_for(phantom, tmp_path / "roi", roi=box))
    whole, part = cells(run), cells(tmp_path / "roi")
    low, high = np.array([30, 50, 40]), np.array([70, 150, 200])
    # A refined centre may lie up to half a voxel beyond the voxel that owns it.
    clearly = np.all((whole >= low + 0.5) & (whole < high - 1.5), axis=1)
    assert len(part) > 20
    distance = np.abs(whole[clearly][:, None] - part[None]).max(axis=2).min(axis=1)
    assert distance.max() < 1e-6


def test_worker_processes_of_a_checkout_find_the_same(
    run: Path, phantom: Phantom, tmp_path: Path, repository: Path
) -> None:
    """`python cli.py` with --workers: spawned processes import the script again and must not run it."""
    command = [sys.executable, str(repository / "cli.py"), "detect", str(phantom.brain), "--no-atlas", "-q"]
    command += [
        "--channel",
        "0",
        "--registration-channel",
        "1",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    np.testing.assert_array_equal(cells(tmp_path / "run"), cells(run))


@pytest.mark.parametrize("block", [(40, 96, 96), (101, 206, 256)])
def test_the_shipped_detector_finds_the_same_in_any_block(
    block: tuple[int, int, int], run: Path, phantom: Phantom, tmp_path: Path
) -> None:
    """Invariant 1 with the real network."""
    detect_brain(request_for(phantom, tmp_path / "run", block=block))
    mine, theirs = Points.read(tmp_path / "run" / "points.parquet"), Points.read(run / "points.parquet")
    assert len(mine) == len(theirs)
    np.testing.assert_allclose(mine.zyx_vox, theirs.zyx_vox, atol=0.05)
    np.testing.assert_allclose(mine["score"], theirs["score"], atol=0.01)


def test_only_the_mask_is_analysed(run: Path, phantom: Phantom, tmp_path: Path) -> None:
    volume = Volume.open(phantom.brain, channel=0)
    extent = np.array(volume.shape) * volume.voxel_um
    image = np.ones(tuple((extent / 10).astype(int) + 1), np.uint8)
    image[:, :, image.shape[2] // 2 :] = 0
    write_volume(tmp_path / "mask.ome.zarr", image, (10.0, 10.0, 10.0))
    detect_brain(request_for(phantom, tmp_path / "run", mask=tmp_path / "mask.ome.zarr"))
    limit = image.shape[2] // 2 * 10.0 - 5
    whole = Points.read(run / "points.parquet")
    assert len(cells(tmp_path / "run")) == (whole["x_um"] < limit).sum()


def test_regions_are_counted_again_from_another_registration(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = (copy / "regions.csv").read_bytes()
    (copy / "regions.csv").unlink()
    agree = RunRecord.load(copy).results["regions_agree"]
    recount(copy, copy / "registration")
    assert (copy / "regions.csv").read_bytes() == before
    assert RunRecord.load(copy).results["regions_agree"] == agree


def test_a_damaged_chunk_costs_its_blocks_and_says_so(phantom: Phantom, tmp_path: Path) -> None:
    brain = tmp_path / "brain.ome.zarr"
    image = np.random.default_rng(0).normal(300, 20, (32, 512, 512)).clip(0).astype(np.uint16)
    write_volume(brain, image, (5.0, 2.0, 2.0), chunks=(16, 128, 128))
    chunk = sorted(path for path in (brain / "0").rglob("*") if path.is_file() and path.name != "zarr.json")[
        -1
    ]
    chunk.write_bytes(chunk.read_bytes()[:100])
    asked = DetectRequest(str(brain), tmp_path / "run", atlas=None, block=(16, 128, 128), progress=False)
    with pytest.raises(IncompleteRunError, match=r"of \d+ blocks could not be processed .*chunk"):
        detect_brain(asked)
    record = RunRecord.load(tmp_path / "run")
    assert record.status == "incomplete"
    assert 0 < len(record.blocks["failed"]) < record.blocks["total"]
    assert record.blocks["done"] > 0
    assert (tmp_path / "run" / "points.parquet").is_file()
    # The chunk is mended: the same command does the rest.
    write_volume(brain, image, (5.0, 2.0, 2.0), chunks=(16, 128, 128), overwrite=True)
    assert detect_brain(replace(asked, overwrite=True)).status == "complete"


def test_cells_of_another_size_are_pointed_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(300, 10, (16, 320, 320))
    z, y, x = np.ogrid[:16, :320, :320]
    for row, column in [(r, c) for r in range(30, 300, 50) for c in range(30, 300, 50)]:
        distance = ((z - 8) * 5.0) ** 2 + ((y - row) * 2.0) ** 2 + ((x - column) * 2.0) ** 2
        image += 900 * 0.5 ** (distance / 9.0**2)
    write_volume(tmp_path / "brain.ome.zarr", image.astype(np.uint16), (5.0, 2.0, 2.0))
    asked = DetectRequest(str(tmp_path / "brain.ome.zarr"), tmp_path / "small", atlas=None, progress=False)
    (warning,) = detect_brain(asked).warnings
    assert "--cell-diameter" in warning
    assert warning in (tmp_path / "small" / "report.html").read_text()
    right = replace(asked, out=tmp_path / "right", cell_diameter_um=18.0)
    assert detect_brain(right).warnings == ()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"channel": None}, UsageError, "--channel"),
        ({"channel": 7}, UsageError, "channel"),
        ({"atlas": "no_such_atlas"}, NotFoundError, "no_such_atlas"),
        ({"detector": "no_such_detector"}, NotFoundError, "no_such_detector"),
        ({"mask": Path("no_such_mask.zarr")}, NotFoundError, "no_such_mask"),
        ({"roi": Roi((0, 10_000), (0, 10), (0, 10))}, UsageError, "beyond the volume"),
        ({"exports": ("brainmapper",)}, UsageError, "needs an atlas"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    changes: dict[str, object], error: type[Exception], words: str, phantom: Phantom, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        detect_brain(request_for(phantom, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "points.parquet").exists()


def test_a_folder_of_something_else_is_left_alone(phantom: Phantom, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not a run folder"):
        detect_brain(request_for(phantom, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_orientation_must_be_known_for_an_atlas(phantom: Phantom, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 99, (8, 64, 64), dtype=np.uint16)
    write_volume(tmp_path / "brain.ome.zarr", image, (5.0, 2.0, 2.0))
    request = DetectRequest(str(tmp_path / "brain.ome.zarr"), tmp_path / "run", atlas=str(phantom.atlas))
    with pytest.raises(UsageError, match="orientation"):
        detect_brain(request)


def test_a_dry_run_writes_nothing(phantom: Phantom, tmp_path: Path) -> None:
    summary = detect_brain(request_for(phantom, tmp_path / "run", dry_run=True))
    assert not (tmp_path / "run").exists()
    assert summary.plan is not None
    assert summary.plan["blocks"] >= 1


def test_a_plain_run_loads_neither_dashboard_nor_pandas(phantom: Phantom, tmp_path: Path) -> None:
    """Each of them would add a third of a second to every command."""
    code = """
import sys
from brainmap.cli.main import main
try:
    main()
finally:
    print(sorted({"bokeh", "pandas", "torch", "ants"} & set(sys.modules)))
"""
    arguments = ["detect", str(phantom.brain), "--channel", "0", "--no-atlas", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "run")]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "run" / "report.html").is_file()


def test_cells_are_measured_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(2)
    image = 1000 + 20 * rng.standard_normal((6, 240, 240))
    rows, columns = np.mgrid[:240, :240] * 2.0
    for y, x in rng.uniform(0, 480, (90, 2)):
        image[:, np.hypot(rows - y, columns - x) < 8] += 500
    brain = write_volume(tmp_path / "discs.zarr", image.astype(np.uint16), (4.0, 2.0, 2.0)).url
    asked = DetectRequest(str(brain), tmp_path / "run", atlas=None, cell_diameter_um="auto", progress=False)
    detect_brain(asked)
    found = RunRecord.load(tmp_path / "run")
    assert 13 < found.results["cell_diameter_um"] < 19
    detect_brain(asked)
    assert RunRecord.load(tmp_path / "run").results["cell_diameter_um"] == found.results["cell_diameter_um"]
    empty = write_volume(
        tmp_path / "empty.zarr",
        (1000 + 20 * rng.standard_normal((4, 90, 90))).astype(np.uint16),
        (4.0, 2.0, 2.0),
    )
    detect_brain(replace(asked, brain=str(empty.url), out=tmp_path / "none"))
    assert RunRecord.load(tmp_path / "none").results["cell_diameter_um"] == 10.0
    assert "clear cells to measure" in caplog.text
