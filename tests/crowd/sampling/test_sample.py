"""From runs to tiles: grey levels as detection has them, mixes, determinism, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from brainmap.crowd.sampling import SampleRequest, sample_tiles
from brainmap.crowd.sampling.places import find_places
from brainmap.crowd.sampling.request import parse_regions
from brainmap.crowd.sampling.source import SampledBrain, find_regions, open_brains
from brainmap.errors import BrainmapError, DataError, NotFoundError, UsageError
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.points.table import Points
from brainmap.run_folder import RunRecord
from brainmap.tiles.detected import read_detected
from brainmap.tiles.tiles import Tiles

REGIONS = ("ISO", "HPF", "STR")


def request_for(runs: tuple[Path, ...], out: Path, **changes: object) -> SampleRequest:
    base = SampleRequest(runs, out, regions=REGIONS, tile_px=48, budget=24, qc=3, datasets=3, sections=8)
    return replace(base, **changes)


@pytest.fixture(scope="module")
def tiles(runs: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    return sample_tiles(request_for(runs, tmp_path_factory.mktemp("even") / "tiles")).tiles


def test_pictures_are_the_grey_levels_that_detection_sees(runs: tuple[Path, ...], tiles: Tiles) -> None:
    for index in range(0, len(tiles), 5):
        row = {name: values[index] for name, values in tiles.columns.items()}
        run = next(run for run in runs if run.name == f"{row['brain']}.brainmap")
        volume = Volume.open(Points.read(run / "points.parquet").meta["brain"])
        intensity = Intensity.load(run / "blocks" / "intensity.npz")
        z = int(row["z"])
        section = volume.read(slice(z, z + 1), slice(None), slice(None))
        axes = (np.array([float(z)]), np.arange(144.0), np.arange(208.0))
        whole = intensity.normalise(section, *axes)[0]
        part = whole[row["y0"] : row["y0"] + 48, row["x0"] : row["x0"] + 48]
        np.testing.assert_array_equal(np.rint(tiles.image(index) * 255), np.rint(part * 255))


def test_the_budget_is_met_and_even_over_animals(tiles: Tiles) -> None:
    assert len(tiles) == 24
    names, count = np.unique(tiles.columns["brain"], return_counts=True)
    assert names.tolist() == ["mouse0", "mouse1", "mouse2"]
    assert count.tolist() == [8, 8, 8]
    for name in names:
        _, count = np.unique(tiles.columns["region"][tiles.columns["brain"] == name], return_counts=True)
        assert np.ptp(count) <= 1


def test_tiles_lie_in_their_regions_and_do_not_overlap(tiles: Tiles) -> None:
    bands = {"ISO": (8, 104), "HPF": (104, 160), "STR": (160, 200)}
    columns = tiles.columns
    for region, x0, share in zip(columns["region"], columns["x0"], columns["region_share"], strict=True):
        first, last = bands[region]
        inside = min(last, x0 + 48) - max(first, x0)
        assert share == pytest.approx(inside / 48)
        assert share >= 0.5
    places = set(zip(columns["brain"], columns["z"], columns["y0"], columns["x0"], strict=True))
    assert len(places) == 24
    assert columns["region_id"][columns["region"] == "ISO"].tolist() == [315] * int(
        (columns["region"] == "ISO").sum()
    )


def test_poor_tiles_are_rejected_and_counted(tiles: Tiles) -> None:
    record = json.loads((tiles.folder / "sample.json").read_text())
    assert record["passed"] < record["looked_at"]
    # No cell lies in the first 48 rows.
    assert tiles.columns["y0"].min() >= 48
    report = (tiles.folder / "report.html").read_text()
    assert "dim: hardly a bright pixel" in report


def test_qc_tiles_and_data_sets(tiles: Tiles) -> None:
    columns = tiles.columns
    qc = columns["is_qc"]
    assert sorted(columns["region"][qc]) == sorted(REGIONS)
    assert set(columns["dataset"][qc]) == {""}
    _, count = np.unique(columns["dataset"][~qc], return_counts=True)
    assert count.tolist() == [7, 7, 7]
    for name in REGIONS:
        own = columns["dataset"][~qc & (columns["region"] == name)]
        assert np.ptp([np.sum(own == s) for s in ("set1", "set2", "set3")]) <= 1


def test_cells_are_counted_in_the_tiles_they_show_in(runs: tuple[Path, ...], tiles: Tiles) -> None:
    columns = tiles.columns
    for index in range(len(tiles)):
        run = next(run for run in runs if run.name == f"{columns['brain'][index]}.brainmap")
        cells = Points.read(run / "points.parquet").zyx_vox
        near = np.abs(cells[:, 0] - columns["z"][index]) <= 0.5
        y, x = np.floor(cells[near, 1] + 0.5), np.floor(cells[near, 2] + 0.5)
        inside = (y >= columns["y0"][index]) & (y < columns["y0"][index] + 48)
        inside &= (x >= columns["x0"][index]) & (x < columns["x0"][index] + 48)
        assert columns["cells_detected"][index] == inside.sum()
        detected = read_detected(tiles.folder, columns["image_id"][index]).to_pydict()
        corner = columns["x0"][index], columns["y0"][index]
        expected = sorted(map(tuple, (cells[near][inside][:, :0:-1] - corner).round(3)))
        found = sorted(zip(np.round(detected["x"], 3), np.round(detected["y"], 3), strict=True))
        assert_allclose(np.array(found).reshape(-1, 2), np.array(expected).reshape(-1, 2), atol=0.002)
    assert columns["cells_detected"].sum() > 50


@pytest.mark.parametrize("strategy", ["even", "random", "active", "uncertain"])
def test_equal_seeds_give_equal_tiles(runs: tuple[Path, ...], tmp_path: Path, strategy: str) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        request = request_for(
            runs[:2], tmp_path / name, strategy=strategy, seed=seed, budget=10, sections=4, datasets=2
        )
        sampled = sample_tiles(request).tiles
        pictures = [sampled.image_path(str(i)).read_bytes() for i in sampled.ids]
        made.append(({k: v.tolist() for k, v in sampled.columns.items() if k != "doubt"}, pictures))
        assert np.isnan(sampled.columns["doubt"]).all() == (strategy != "uncertain")
    assert made[0] == made[1]
    if strategy != "active":
        assert made[0] != made[2]


def test_tiles_of_an_animal_do_not_depend_on_the_other_animals(
    runs: tuple[Path, ...], tmp_path: Path
) -> None:
    alone = sample_tiles(request_for(runs[:1], tmp_path / "a", strategy="random", budget=8, datasets=1)).tiles
    three = sample_tiles(request_for(runs, tmp_path / "b", strategy="random", budget=24)).tiles
    own = three.ids[three.columns["brain"] == "mouse0"]
    assert len(own) == 8
    assert len(set(own) & set(alone.ids)) >= 6


def test_uncertain_prefers_what_the_detector_doubts(runs: tuple[Path, ...], tmp_path: Path) -> None:
    sampled = sample_tiles(request_for(runs[:1], tmp_path / "t", strategy="uncertain", budget=8, datasets=1))
    assert sampled.doubt is not None
    assert np.nanmean(sampled.tiles.columns["doubt"]) > sampled.doubt.value.mean()


def test_without_a_budget_all_that_pass_are_taken(runs: tuple[Path, ...], tmp_path: Path) -> None:
    sampled = sample_tiles(request_for(runs[:1], tmp_path / "t", budget=None, datasets=None))
    assert len(sampled.tiles) == len(sampled.pool.passed)
    assert sampled.pool.found == len(sampled.pool.places)


def test_a_run_with_a_box_is_sampled_inside_it(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    roi = {"z": [4, 20], "y": [40, 144], "x": [0, 110]}
    run = make_run(tmp_path, "boxed", roi=roi)
    tiles = sample_tiles(
        request_for((run,), tmp_path / "t", regions=("ISO",), budget=None, qc=1, datasets=1)
    ).tiles
    assert tiles.columns["z"].min() >= 4 and tiles.columns["z"].max() < 20
    assert tiles.columns["y0"].min() >= 40
    assert tiles.columns["x0"].max() + 48 <= 110


def test_what_a_mask_left_out_is_not_sampled(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path, "masked")
    path = run / "blocks" / "intensity.npz"
    model = Intensity.load(path)
    model.tissue[:, :, : model.tissue.shape[2] // 2] = False
    model.save(path)
    right = request_for((run,), tmp_path / "t", regions=("HPF", "STR"), budget=None, qc=1, datasets=1)
    assert sample_tiles(right).tiles.columns["x0"].min() >= 104 - 24
    with pytest.raises(DataError, match="no tile of 48 px of the region ISO is tissue that a run analysed"):
        sample_tiles(request_for((run,), tmp_path / "left", budget=None, qc=1, datasets=1))


def test_sections_are_two_cells_apart(runs: tuple[Path, ...]) -> None:
    (brain,) = open_brains(runs[:1])
    ids = find_regions(brain.structures, REGIONS, True)
    places, _ = find_places([brain], [ids], 48, 1000, 0.5, True)
    assert np.diff(np.unique(places.z)).min() == 2


def spoil_status(run: Path) -> None:
    RunRecord.load(run).updated(status="incomplete").save(run)


def spoil_registration(run: Path) -> None:
    shutil.rmtree(run / "registration")


def spoil_no_atlas(run: Path) -> None:
    record = RunRecord.load(run)
    record.updated(parameters={**record.parameters, "atlas": None}).save(run)


def spoil_intensity(run: Path) -> None:
    (run / "blocks" / "intensity.npz").unlink()


def spoil_moved(run: Path) -> None:
    shutil.move(run.parent / "mouse.ome.zarr", run.parent / "elsewhere.zarr")


def spoil_other_brain(run: Path) -> None:
    record = RunRecord.load(run)
    record.updated(fingerprints={"volume": "0" * 64}).save(run)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (spoil_status, DataError, r"is not finished \(status: incomplete\)"),
        (spoil_registration, NotFoundError, "holds no finished registration"),
        (spoil_no_atlas, NotFoundError, "made with --no-atlas"),
        (spoil_intensity, NotFoundError, "has lost blocks/intensity.npz"),
        (spoil_moved, NotFoundError, "is not at .* any more: put it back, or say with --brains"),
        (spoil_other_brain, DataError, "is not the image that the run"),
    ],
)
def test_a_run_that_cannot_be_sampled_says_why(
    tmp_path: Path,
    make_run: Callable[..., Path],
    spoil: Callable[[Path], None],
    error: type[Exception],
    words: str,
) -> None:
    run = make_run(tmp_path, "mouse")
    spoil(run)
    with pytest.raises(error, match=words) as caught:
        sample_tiles(request_for((run,), tmp_path / "t"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_a_brain_that_moved_is_found_in_its_new_folder(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path, "mouse")
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "mouse.ome.zarr", tmp_path / "new" / "mouse.ome.zarr")
    assert SampledBrain.open(run, tmp_path / "new").name == "mouse"


def test_brains_of_one_name_are_told_apart(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    runs = [make_run(tmp_path / str(i), "brain", seed=i) for i in range(2)]
    runs[1] = runs[1].rename(runs[1].with_name("second.brainmap"))
    assert [brain.name for brain in open_brains(runs)] == ["brain", "second"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"regions": ("ISOO",)}, UsageError, "no structure 'ISOO'; do you mean ISO"),
        ({"regions": ("ISO", "ISO2/3")}, UsageError, "overlap"),
        (
            {"tile_px": 120},
            DataError,
            r"a tile of 120 px \(240 um\) is larger than the region HPF: it fills \d+% of a",
        ),
        ({"tile_px": 500}, DataError, "larger than a section of mouse0"),
        ({"regions": ("OLF",)}, DataError, "the region OLF is in no section"),
    ],
)
def test_what_cannot_be_cut_says_why(
    runs: tuple[Path, ...], tmp_path: Path, changes: dict[str, object], error: type[BrainmapError], words: str
) -> None:
    with pytest.raises(error, match=words):
        sample_tiles(request_for(runs[:1], tmp_path / "t", **changes))


def test_a_region_of_the_study_that_the_atlas_lacks_is_left_out(
    runs: tuple[Path, ...], tmp_path: Path
) -> None:
    sampled = sample_tiles(request_for(runs[:1], tmp_path / "t", regions=None, budget=9, datasets=1))
    # Isocortex is ISO here, by its name; there is no CTXsp, and OLF lies in no section.
    assert sampled.pool.regions == ("ISO", "OLF", "HPF", "STR")
    assert sampled.pool.without == ("OLF",)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "best"}, {"budget": 3}, {"qc": -1}, {"tile_px": 4}, {"datasets": 0}, {"sections": 0},
        {"least_share": 0.0}, {"truth_tiles": Path("t")}, {"bright": "all"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        request_for((Path("r"),), Path("t"), **changes)


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one run"):
        SampleRequest((), tmp_path / "t")
    with pytest.raises(UsageError, match="given twice"):
        SampleRequest((tmp_path, tmp_path / "."), tmp_path / "t")


def test_a_folder_that_is_no_tile_folder_is_not_replaced(runs: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="is no tile folder"):
        sample_tiles(request_for(runs, tmp_path / "t"))


@pytest.mark.parametrize(("text", "names"), [(None, None), ("A, B", ("A", "B"))])
def test_regions_as_a_person_writes_them(text: str | None, names: tuple[str, ...] | None) -> None:
    assert parse_regions(text) == names


@pytest.mark.parametrize("text", ["", "A,,B", "A,A"])
def test_regions_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError):
        parse_regions(text)
