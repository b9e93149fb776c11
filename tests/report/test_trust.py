"""What the first screen of a report says, and what its region section says about borders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brainmap.atlas.atlas import Atlas
from brainmap.atlas.structures import Structures
from brainmap.points.table import Points
from brainmap.report.atlas_map import map_in_atlas, map_in_image, view_figure
from brainmap.report.borders import border_ranges, likely_error_um
from brainmap.report.run_facts import Run
from brainmap.report.summary import PointSummary
from brainmap.report.trust import Precision, checks, marked_precision, next_steps
from brainmap.run_folder import RunRecord

SHAPE, STEP = (40, 40, 40), 10.0
CORTEX, CALLOSUM = 614454277, 7


@pytest.fixture(scope="module")
def atlas() -> Any:
    """A dense block above a dense block, and one empty layer of two voxels between them."""
    rows = [
        {"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997]},
        {"id": CORTEX, "acronym": "CTX", "name": "Cortex", "structure_id_path": [997, CORTEX]},
        {"id": CALLOSUM, "acronym": "cc", "name": "Corpus callosum", "structure_id_path": [997, CALLOSUM]},
    ]
    annotation = np.zeros(SHAPE, np.uint32)
    annotation[4:36, 4:36, 4:36] = CORTEX
    annotation[4:36, 19:21, 4:36] = CALLOSUM
    made = Atlas("toy_10um_v1", None, Structures.from_records(rows, "toy"), (STEP,) * 3, SHAPE)  # type: ignore[arg-type]
    made.__dict__["annotation"] = annotation
    made.__dict__["hemispheres"] = np.ones(SHAPE, np.uint8)
    return made


def _points(path: Path, atlas_um: np.ndarray) -> Path:
    columns = {f"atlas_{a}_um": atlas_um[:, i] for i, a in enumerate("zyx")}
    columns |= {a: atlas_um[:, i] / STEP for i, a in enumerate("zyx")}
    Points(columns | {"score": np.full(len(atlas_um), 0.9)}, {}).write(path)
    return path


def _cortex(n: int, blur_um: float) -> np.ndarray:
    """Cells of the cortex alone, none in the layer, as a registration that is off by `blur_um` maps them."""
    rng = np.random.default_rng(0)
    places = rng.uniform(50, 350, (3 * n, 3))
    places = places[(places[:, 1] < 190) | (places[:, 1] >= 210)][:n]
    return places + rng.normal(0, blur_um, places.shape)


def test_a_thin_structure_between_dense_ones_is_said_to_gain(tmp_path: Path, atlas: Any) -> None:
    path = _points(tmp_path / "points.parquet", _cortex(20_000, 8.0))
    ranges = border_ranges(path, atlas, 15.0, 20_000)
    layer, cortex = ranges[CALLOSUM], ranges[CORTEX]
    assert layer.count > 100, "the test's own premise: cells came over the border"
    assert layer.likely is not None and layer.likely < 0.6 * layer.count, "nearer to the truth, which is none"
    assert cortex.likely is None and cortex.low <= cortex.count <= cortex.high
    assert ranges[997].count == layer.count + cortex.count


def test_a_sample_stands_for_many_cells(tmp_path: Path, atlas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _points(tmp_path / "points.parquet", _cortex(20_000, 0.0))
    whole = border_ranges(path, atlas, 15.0, 20_000)[CORTEX]
    monkeypatch.setattr("brainmap.report.borders._MOST_CELLS", 5_000)
    sample = border_ranges(path, atlas, 15.0, 20_000)[CORTEX]
    assert sample.count == pytest.approx(whole.count, rel=0.03)
    assert whole.count == 20_000


def test_the_error_of_borders_is_at_least_the_grids() -> None:
    assert likely_error_um({}) == 75.0
    assert likely_error_um({"grid": {"resolution_um": [50, 40, 50]}}) == 75.0
    assert (
        likely_error_um({"grid": {"resolution_um": [50, 50, 50]}, "quality": {"edge_mean_um": 120}}) == 120.0
    )


def test_the_map_holds_every_cell_where_it_lies(tmp_path: Path, atlas: Any) -> None:
    places = np.full((500, 3), [100.0, 300.0, 200.0])
    path = _points(tmp_path / "points.parquet", np.concatenate([places, [[np.nan] * 3, [9e9, 0, 0]]]))
    found = {view.title: view for view in map_in_atlas(path, atlas).views}
    assert list(found) == ["coronal", "sagittal", "horizontal"]
    for name, (row, column) in {"coronal": (30, 20), "sagittal": (30, 10), "horizontal": (10, 20)}.items():
        view = found[name]
        top = np.unravel_index(np.nanargmax(view.density), view.density.shape)
        scale = np.array(view.density.shape) / 40
        assert np.abs(np.array(top) - np.array([row, column]) * scale).max() <= 1, name
        assert np.isnan(view.density[0, 0]) and view.borders is not None and view.borders.any()
        view_figure(view, 1.0).draw_without_rendering()
    coronal = found["coronal"]
    assert coronal.letters == ("R", "L", "dorsal", "ventral")


def test_the_map_without_an_atlas_counts_per_area(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 4000
    columns = dict(zip("zyx", rng.uniform(0, [99, 199, 299], (n, 3)).T, strict=True))
    Points(columns, {}).write(tmp_path / "points.parquet")
    cells = map_in_image(tmp_path / "points.parquet", (100, 200, 300), (5.0, 2.0, 2.0), "psl")
    assert len(cells.views) == 3 and cells.views[0].letters == ("L", "R", "dorsal", "ventral")
    area_mm2 = 0.4 * 0.6
    assert np.nanmean(cells.views[0].density) == pytest.approx(n / area_mm2, rel=0.1)
    flat = map_in_image(tmp_path / "points.parquet", (2, 200, 300), (5.0, 2.0, 2.0), None)
    assert [view.title for view in flat.views] == ["seen along z"], "a few slices are seen from above alone"


def _run(folder: Path, **changes: Any) -> Run:
    summary = PointSummary(1000, 10, np.array([1000]), np.zeros(40, np.int64), {"score": np.full(100, 0.9)})
    regions = SimpleNamespace(outside=10, regions=())
    values: dict[str, Any] = {
        "folder": folder, "registration": folder / "registration",
        "record": RunRecord(status="complete", results={"threshold": 0.4, "regions_agree": 0.95}),
        "volume": SimpleNamespace(voxel_um=(5.0, 2.0, 2.0)), "points": folder / "points.parquet",
        "summary": summary, "regions": regions, "truth": None, "truth_regions": None,
    }  # fmt: skip
    return Run(**values | changes)


@pytest.mark.parametrize(
    ("verdict", "expected"), [("good", "good"), ("doubtful", "look"), ("bad", "bad"), (None, "unknown")]
)
def test_the_registrations_verdict_is_an_answer(tmp_path: Path, verdict: str | None, expected: str) -> None:
    run, record = _run(tmp_path), {"verdict": verdict, "reasons": ["outlines overlap by 0.8"]}
    answers = {check.name: check for check in checks(run, record, None)}
    assert answers["Does the atlas fit?"].verdict == expected
    assert answers["Are these cells?"].verdict == "good" and "90 %" in answers["Are these cells?"].sentence
    steps = [command for _, command in next_steps(run, list(answers.values()), None)]
    assert any("--landmarks" in step for step in steps) == (expected in ("look", "bad"))
    assert any(step.startswith("brainmap review") for step in steps)


def test_missing_parts_and_parts_asked_for_are_told_apart(tmp_path: Path) -> None:
    def whole(**changes: Any) -> str:
        run = _run(tmp_path, record=RunRecord(status="complete", **changes))
        return {c.name: c.verdict for c in checks(run, {}, None)}["Is the whole image in it?"]

    assert whole() == "good"
    assert whole(parameters={"roi": {"z": [0, 1]}}) == "look"
    assert whole(blocks={"total": 9, "failed": {"3": "torn"}}) == "bad"
    assert whole(results={"unstored_tissue": 0.5}) == "bad"
    assert whole(results={"unstored_tissue": 0.01}) == "good"
    run = _run(tmp_path, record=RunRecord(status="complete", results={"unstored_tissue": 0.5}))
    answers = checks(run, {}, None)
    assert "50 % of the tissue" in answers[1].sentence
    assert any("Copy the image again" in sentence for sentence, _ in next_steps(run, answers, None))


def test_marks_of_cells_drawn_at_random_tell_the_precision(tmp_path: Path) -> None:
    zyx = np.random.default_rng(3).uniform(0, 500, (40, 3))
    Points(dict(zip("zyx", zyx[:30].T, strict=True)), {}).write(tmp_path / "points.parquet")
    lines = ["z,y,x,mark,at,who,sample"]
    for i, (z, y, x) in enumerate(zyx):
        lines.append(f"{z},{y},{x},{'yes' if i < 24 else 'no'},t,me,{'random' if i != 3 else 'hard'}")
    # The last answer at a place counts.
    lines.append(f"{zyx[0][0]},{zyx[0][1]},{zyx[0][2]},no,t,me,random")
    (tmp_path / "marks.csv").write_text("\n".join(lines) + "\n")
    found = marked_precision(_run(tmp_path))
    # 30 cells of this run, one of a hard sample: 29; 24 yes less the hard one and the one taken back: 22.
    assert found is not None and (found.n, round(found.share * found.n)) == (29, 22)
    assert found.low < found.share < found.high
    (tmp_path / "marks.csv").write_text("z,y,x\n1,2\n")
    assert marked_precision(_run(tmp_path)) is None


def test_intervals_of_shares_are_wilsons() -> None:
    # Newcombe 1998, Stat Med 17:857, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    found, none = Precision.of(81, 263), Precision.of(0, 20)
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=1e-4)
