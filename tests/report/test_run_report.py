from __future__ import annotations

import csv
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import NotFoundError
from brainmap.files import write_json
from brainmap.image.volume import Volume, write_volume
from brainmap.points.table import Points, PointsWriter
from brainmap.report import figures, html
from brainmap.report.region_rows import read_regions
from brainmap.report.run_report import write_run_report
from brainmap.report.slices import choose_crops, choose_slices, read_crop, read_slice, tissue_of
from brainmap.report.summary import points_near, summarise_points
from brainmap.run_folder import RunRecord

VOXEL = (5.0, 2.0, 2.0)
SHAPE = (12, 180, 240)
REGION_COLUMNS = (
    "region_id acronym name parent_id depth hemisphere count volume_mm3 density_per_mm3 count_direct volume_direct_mm3"
).split()


@pytest.fixture(autouse=True)
def _fast_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures at low resolution: their drawing is tested, their size is not."""
    render = html._render
    monkeypatch.setattr(html, "_render", lambda figure, format, dpi: render(figure, format, 30))


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    tissue = ((y - 90) / 80) ** 2 + ((x - 120) / 105) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    data = (100 + 300 * tissue + noise).clip(0).astype(np.uint16)
    return write_volume(
        tmp_path_factory.mktemp("brain") / "brain <b>7.ome.zarr", data, VOXEL, orientation="psl"
    )


def _cells(n: int, seed: int = 1) -> Points:
    rng = np.random.default_rng(seed)
    zyx = rng.uniform([0, 40, 60], [11, 140, 180], (n, 3))
    columns = dict(zip("zyx", zyx.T, strict=True))
    columns |= {f"{a}_um": zyx[:, i] * VOXEL[i] for i, a in enumerate("zyx")}
    columns |= {
        "score": rng.uniform(0.5, 1, n).astype(np.float32),
        "snr": rng.gamma(9, 2, n),
        "diameter_um": rng.normal(10, 1, n),
    }
    columns |= {"region_id": rng.integers(0, 3, n), "hemisphere": rng.integers(1, 3, n).astype(np.int8)}
    return Points(columns, {"voxel_um": VOXEL})


def _write_regions(path: Path, counts: dict[str, tuple[int, int]]) -> None:
    rows = [[0, "outside", "outside", 0, 0, "both", 5, "", "", 5, ""]]
    total = np.sum(list(counts.values()), axis=0)
    entries = [(997, "root", "root", 0, 0, total)]
    entries += [(16777216 + i, f"R{i}", name, 997, 1, c) for i, (name, c) in enumerate(counts.items())]
    for region_id, acronym, name, parent, depth, (left, right) in entries:
        for side, n, volume in (("left", left, 0.5), ("right", right, 0.4), ("both", left + right, 0.9)):
            direct = 0 if parent == 0 else n
            rows.append(
                [region_id, acronym, name, parent, depth, side, n, volume, n / volume, direct, volume]
            )
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([REGION_COLUMNS, *rows])


def _run(folder: Path, brain: Volume | None, points: Points | None, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    record = RunRecord(
        status="complete",
        parameters={
            "brain": brain.url if brain else "/nowhere/lost.zarr",
            "atlas": None,
            "detector": "default",
        },
        fingerprints={"input": "abc123"},
        timings_s={"detection": 4.0, "total": 61.0},
        blocks={"total": 12, "done": 10, "empty": 2, "failed": {}},
        results={
            "voxels_per_second": 17.2e6,
            "peak_memory_bytes": 2**30,
            "threshold": 0.42,
            "regions_agree": 0.934,
            "cell_diameter_um": 10.0,
        },
        versions={"brainmap": "0.1.0"},
        machine={"cpu": "some cpu", "cores": 2},
    )
    record.updated(**changes).save(folder)
    if points is not None:
        points.write(folder / "points.parquet")
    return folder


def _text(path: Path) -> str:
    body = re.sub(r"(?s)<(style|script).*?</\1>", "", path.read_text(encoding="utf-8"))
    return unescape(re.sub(r"<[^>]+>", " ", body))


def test_report_shows_the_key_numbers(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(1234))
    _write_regions(run / "regions.csv", {"Cortex": (700, 300), "Thalamus": (109, 120)})
    path = write_run_report(run)
    assert path == run / "report.html"
    text, source = _text(path), path.read_text(encoding="utf-8")
    for expected in ("1,234", "17.2", "1.00 GiB", "93 % of the cells get the same region", "61.0 s", "complete", "0.42",
                     "Thalamus", "16777217", "5 × 2 × 2 µm", "12 total, 10 done, 2 empty",
                     "some cpu", "abc123", "psl"):  # fmt: skip
        assert expected in text, expected
    # Each plain and marked: three slices, close-ups; the map of all cells, histograms, depth.
    assert source.count("<img") >= 2 * (3 + 3) + 1 + 2
    order = [
        "cells",
        "Can it be trusted?",
        "What to do next",
        "Regions",
        "Cells in the image",
        "How this was made",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places) and text.index("1.00 GiB") > places[-1]
    assert "Failed" not in text and "Warning" not in text


def test_report_shows_the_regions_asked_for(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(20), execution={"level": "sets.csv"})
    _write_regions(run / "regions.csv", {"Cortex": (7, 3)})
    header = "region_id,acronym,name,hemisphere,count,volume_mm3,density_per_mm3,density_per_atlas_mm3\n"
    rows = "0,outside,outside,both,5,,,\n" + "".join(
        f"-1,white,a <b> set,{side},{n},0.5,{2 * n},\n"
        for side, n in (("left", 31), ("right", 46), ("both", 77))
    )
    summary = run / "regions_summary.csv"
    summary.write_text(header + rows)
    text = _text(write_run_report(run))
    for expected in ("level sets.csv", "white", "a <b> set", "31", "46", "77", "154"):
        assert expected in text, expected
    summary.write_text("acronym,hemisphere\nx,both\n")
    assert "not a summary of regions" in _text(write_run_report(run))


def test_report_is_self_contained_and_escapes_names(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(50), warnings=("<script>alert(1)</script>",))
    _write_regions(run / "regions.csv", {"<img src=x onerror=alert(2)>": (20, 25)})
    source = write_run_report(run).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)\s*=\s*[\"']?\s*(https?:|//|file:)", source)
    assert source.count("<script") == 1
    assert "<b>7" not in source and "&lt;b&gt;7" in source
    assert "<img src=x" not in source


def test_failures_and_warnings_stand_at_the_top(tmp_path: Path, brain: Volume) -> None:
    failed = {f"block_{i}": "truncated chunk" for i in range(25)}
    blocks = {"total": 40, "done": 15, "empty": 0, "failed": failed}
    run = _run(
        tmp_path / "run", brain, _cells(50), status="incomplete", blocks=blocks, warnings=("odd", "other")
    )
    text = _text(write_run_report(run))
    assert "25 of 40 blocks could not be processed" in text
    assert "block_3: truncated chunk" in text and "... and 5 more" in text
    assert max(text.index(t) for t in ("25 of 40", "odd", "other")) < text.index("Can it be trusted?")
    assert "25 of 40 parts of the image are missing" in text


def test_unfinished_run_is_said_to_be_unfinished(tmp_path: Path, brain: Volume) -> None:
    assert "has not finished" in _text(
        write_run_report(_run(tmp_path / "run", brain, None, status="running"))
    )


def test_no_cells(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(0))
    _write_regions(run / "regions.csv", {"Cortex": (0, 0)})
    text = _text(write_run_report(run))
    assert "No cells were detected" in text and "No structure holds a cell" in text
    assert "Whole slices" in text


def test_no_atlas_no_volume_no_points(tmp_path: Path) -> None:
    text = _text(write_run_report(_run(tmp_path / "run", None, None)))
    assert "lost.zarr" in text and "points.parquet" in text
    assert "Regions" not in text and "Registration" not in text
    with pytest.raises(NotFoundError):
        write_run_report(tmp_path / "empty")


def test_single_section(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(90, 400, (150, 170)).astype(np.uint16)
    section = write_volume(tmp_path / "section.zarr", data, (1.0, 0.5, 0.5))
    n = 30
    rng = np.random.default_rng(2)
    points = Points(
        {"z": np.zeros(n), "y": rng.uniform(0, 149, n), "x": rng.uniform(0, 169, n), "score": np.ones(n)}
    )
    text = _text(write_run_report(_run(tmp_path / "run", section, points)))
    assert "Slice z 0" in text and "30 cells" in text


def test_damaged_parts_leave_the_rest(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(20))
    (run / "regions.csv").write_text("region_id,hemisphere\nnot,a number\n")
    (run / "registration").mkdir()
    (run / "registration" / "registration.json").write_text("{")
    (run / "registration" / "broken.png").write_bytes(b"no picture")
    text = _text(write_run_report(run))
    assert "line 2" in text and "broken.png could not be shown" in text and "not valid JSON" in text
    assert "Whole slices" in text


def test_registration_verdict_and_numbers(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(20))
    (run / "registration").mkdir()
    record = {"verdict": "doubtful", "reasons": ["outlines overlap by 0.8"], "quality": {"mask_dice": 0.8123}}
    write_json(run / "registration" / "registration.json", record)
    figure = figures.score_curve(np.linspace(0, 1, 3), np.ones(3), np.ones(3))
    figure.savefig(run / "registration" / "quality_coronal.png", dpi=20)
    text = _text(write_run_report(run))
    assert "doubtful" in text and "outlines overlap by 0.8" in text and "0.8123" in text and "Coronal" in text


def test_a_bad_registration_is_called_bad_at_the_head(tmp_path: Path, brain: Volume) -> None:
    run = _run(tmp_path / "run", brain, _cells(20))
    record = RunRecord.load(run)
    record.updated(results=record.results | {"registration_verdict": "bad"}).save(run)
    (run / "registration").mkdir()
    fit = {"residuals": [{"name": "aco", "before_um": 210.0, "after_um": 12.0, "left_out_um": 140.0}]}
    part = {"part": "left hemisphere"}
    record_ = {"verdict": "bad", "reasons": ["outlines overlap by 0.5"], "part": part, "landmarks": fit}
    write_json(run / "registration" / "registration.json", record_)
    text = _text(write_run_report(run))
    assert "The registration is BAD: counts per region" in text
    assert text.index("The registration is BAD") < text.index("Can it be trusted?")
    assert "Registered as the left hemisphere" in text
    assert re.search(r"aco\s+210\s+12\s+140", text)


def test_truth_is_scored(tmp_path: Path, brain: Volume) -> None:
    true = _cells(200)
    run = _run(tmp_path / "run", brain, true.take(slice(0, 150)))
    _write_regions(run / "regions.csv", {"Cortex": (100, 50)})
    _write_regions(tmp_path / "truth_regions.csv", {"Cortex": (140, 60)})
    true.write(tmp_path / "truth.parquet")
    path = write_run_report(
        run, truth=tmp_path / "truth.parquet", truth_regions=tmp_path / "truth_regions.csv"
    )
    text = _text(path)
    assert re.search(r"0\.750\s+recall", text) and re.search(r"1\.000\s+precision", text)
    assert re.search(r"0\.857\s+F1", text) and re.search(r"50\s+missed", text)
    assert re.search(r"Cortex\s+100\s+140\s+50\s+60\s+150\s+200\s+-25\.0 %", text)


def test_equal_runs_give_equal_reports(tmp_path: Path, brain: Volume) -> None:
    runs = [_run(tmp_path / name, brain, _cells(60), started="2026-01-01T00:00:00") for name in "ab"]
    first, second = (write_run_report(run).read_bytes() for run in runs)
    assert first == second


def test_summary_reads_in_batches_and_counts_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brainmap.report.summary._SAMPLE", 500)
    points = _cells(5000)
    with PointsWriter(tmp_path / "points.parquet") as writer:
        for start in range(0, 5000, 700):
            writer.append(points.take(slice(start, start + 700)))
    summary = summarise_points(tmp_path / "points.parquet", depth=20)
    assert summary.n == 5000 and summary.per_slice.sum() == 5000 and len(summary.per_slice) == 20
    np.testing.assert_array_equal(
        summary.per_slice[:12], np.bincount(np.rint(points["z"]).astype(int), minlength=12)
    )
    assert summary.score_counts.sum() == 5000
    assert 400 <= len(summary.sample["snr"]) <= 500
    assert summary.outside == np.count_nonzero(points["region_id"] == 0)


def test_points_near_is_bounded_and_right(tmp_path: Path) -> None:
    points = _cells(4000)
    points.write(tmp_path / "points.parquet")
    near = points_near(tmp_path / "points.parquet", [2, 8], 1.0)
    for table, k in zip(near, (2, 8), strict=True):
        assert len(table) == np.count_nonzero(np.abs(points["z"] - k) <= 1.0)
    assert [len(t) for t in points_near(tmp_path / "points.parquet", [2], 12.0, limit=100)] == [100]


def test_slices_are_spread_over_the_cells() -> None:
    assert choose_slices(np.zeros(100, int), 100) == pytest.approx([16, 50, 83], abs=1)
    assert choose_slices(np.array([5]), 1) == [0]
    per_slice = np.zeros(100, int)
    per_slice[40:60] = 10
    chosen = choose_slices(per_slice, 100)
    assert len(chosen) == 3 and all(40 <= k < 60 for k in chosen)


def test_slice_pictures_lie_where_the_data_lies(tmp_path: Path) -> None:
    data = np.zeros((4, 400, 600), np.uint16)
    data[2, 100:120, 300:340] = 1000
    volume = write_volume(tmp_path / "v.zarr", data, VOXEL, levels=3)
    for pixels in (500, 250, 100):
        picture = read_slice(volume, 2, pixels=pixels)
        y0, y1, x0, x1 = picture.extent_um
        assert (y0, x0) == pytest.approx((0, 0)) and (y1, x1) == pytest.approx((800, 1200))
        y, x = np.nonzero(picture.values > picture.values.max() / 2)
        step = (y1 - y0) / picture.values.shape[0]
        assert ((y.mean() + 0.5) * step, (x.mean() + 0.5) * step) == pytest.approx((220, 640), abs=step)


def test_slices_without_pyramid_are_read_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).integers(0, 1000, (1, 500, 700)).astype(np.uint16)
    volume = write_volume(tmp_path / "v.zarr", data, VOXEL, levels=1)
    whole = read_slice(volume, 0, pixels=100)
    monkeypatch.setattr("brainmap.report.slices._STRIP_BYTES", 20_000)
    np.testing.assert_array_equal(read_slice(volume, 0, pixels=100).values, whole.values)
    assert max(whole.values.shape) <= 300


def test_crops_show_dense_sparse_and_edge(brain: Volume) -> None:
    rng = np.random.default_rng(3)
    zyx = np.concatenate(
        [rng.normal([6, 90, 160], [0, 8, 8], (200, 3)), [[6, 90, 60], [6, 120, 90], [6, 60, 90]]]
    )
    points = Points(dict(zip("zyx", zyx.T, strict=True)))
    crops = choose_crops(brain, [read_slice(brain, 6)], [points], size_um=80)
    titles = [crop.title for crop in crops]
    assert titles[0] == "Where cells are densest" and titles[-1] == "At the edge of the tissue"
    dense = crops[0]
    assert dense.y[0] <= 90 < dense.y[1] and dense.x[0] <= 160 < dense.x[1]
    edge = tissue_of(read_crop(brain, crops[-1])).mean()
    assert 0.1 < edge < 0.9
    for crop in crops:
        assert 0 <= crop.y[0] < crop.y[1] <= SHAPE[1] and 0 <= crop.x[0] < crop.x[1] <= SHAPE[2]


def test_summary_regions_never_share_cells(tmp_path: Path) -> None:
    counts = {f"region {i}": (10 * i, 5 * i) for i in range(30)}
    _write_regions(tmp_path / "regions.csv", counts)
    tree = read_regions(tmp_path / "regions.csv")
    assert tree.outside == 5
    assert [r.acronym for r in tree.summary(20)] == ["root"], "a split into 30 would not fit into 20"
    shown = tree.summary(40)
    assert len(shown) == 29 and sum(r.count["both"] for r in shown) == tree.regions[0].count["both"]
    assert [r.count["both"] for r in shown] == sorted((r.count["both"] for r in shown), reverse=True)
    densest = tree.densest(5)
    assert [r.name for r in densest] == [f"region {i}" for i in (29, 28, 27, 26, 25)]
