"""The ground-truth folder: the contract of its files, degenerate input, and that nothing depends on workers."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from brainmap.errors import DataError, UsageError
from brainmap.gt.aggregate import POINT_COLUMNS, WORKER_COLUMNS, aggregate, aggregate_clicks
from brainmap.gt.clicks import Clicks
from brainmap.gt.compare import compare, leave_one_out
from brainmap.gt.settings import GtSettings, read_gt_settings
from brainmap.gt.simulate import Simulation, simulate

METHODS = ("best", "study")
SMALL = Simulation(n_images=2, size=120, n_cells=12, n_sites=6, n_workers=8, spammers=1, strays=1)


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def write_clicks(path, clicks, prefix=""):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "worker_id", "x", "y", "height", "width"])
        for i, w, (x, y) in zip(clicks.image, clicks.worker, clicks.xy, strict=True):
            size = (clicks.height[i], clicks.width[i])
            writer.writerow([prefix + clicks.image_ids[i], clicks.worker_ids[w], x, y, *size])
    return path


@pytest.fixture(scope="module")
def crowd():
    return simulate(SMALL, 3)


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_is_the_contract(tmp_path, crowd, method):
    source = write_clicks(tmp_path / "c.csv", crowd.clicks, "brain 1/")
    out = tmp_path / "gt"
    result = aggregate(source, out, settings=GtSettings(method=method))
    points, workers = table(out / "points.csv"), table(out / "workers.csv")
    assert tuple(points[0]) == POINT_COLUMNS and tuple(workers[0]) == WORKER_COLUMNS
    assert len(points) == result.n_candidates
    assert sum(float(p["posterior"]) >= 0.5 for p in points) == result.n_accepted > 0
    assert {w["group"] for w in workers} <= {"below", "mixed", "above"}
    for name in crowd.clicks.image_ids:
        heat = np.load(out / "heatmaps" / "brain 1" / f"{name}.npy")
        assert heat.dtype == np.float32 and heat.shape == (120, 120)
        assert heat.min() >= 0 and heat.max() < 1
        for p in points:
            if p["image_id"] == f"brain 1/{name}":
                x, y = round(float(p["x"])), round(float(p["y"]))
                near = heat[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max()
                assert float(p["confidence"]) == pytest.approx(near, abs=1e-5)
                assert 0 <= float(p["posterior"]) <= 1
                assert 1 <= int(p["n_workers"]) <= int(p["n_clicks"])
    record = json.loads((out / "gt.json").read_text())
    assert record["status"] == "complete" and record["settings"]["method"] == method
    assert "<script src" not in (out / "report.html").read_text()
    assert not list(out.rglob("*.tmp*"))


@pytest.mark.parametrize("method", METHODS)
def test_every_click_is_in_one_candidate(crowd, method):
    consensus = aggregate_clicks(crowd.clicks, GtSettings(method=method))
    for row, image in enumerate(consensus.images):
        rows = crowd.clicks.rows_of(row)
        assert image.n_clicks.sum() == rows.stop - rows.start


def test_equal_input_equal_output_whatever_the_order_and_the_processes(tmp_path):
    many = simulate(Simulation(n_images=18, size=60, n_cells=4, n_sites=2, n_workers=5, spammers=0), 1)
    one = write_clicks(tmp_path / "one.csv", many.clicks)
    lines = one.read_text().splitlines()
    (tmp_path / "two.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    aggregate(one, tmp_path / "a")
    aggregate(tmp_path / "two.csv", tmp_path / "b", workers=2)
    for name in ("points.csv", "workers.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for path in (tmp_path / "a" / "heatmaps").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "heatmaps" / path.name).read_bytes()


def test_maps_of_an_earlier_run_do_not_stay(tmp_path):
    first = tmp_path / "1.csv"
    first.write_text("image_id,worker_id,x,y\nold,w,1,1\n")
    second = tmp_path / "2.csv"
    second.write_text("image_id,worker_id,x,y\nnew,w,1,1\n")
    aggregate(first, tmp_path / "gt")
    aggregate(second, tmp_path / "gt")
    assert [p.name for p in (tmp_path / "gt" / "heatmaps").iterdir()] == ["new.npy"]


def build(points, workers, size=(50, 50)):
    xy = np.array(points, float).reshape(-1, 2)
    return Clicks.build(["a"] * len(xy), workers, xy[:, 0], xy[:, 1], sizes={"a": size})


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_crowds(method):
    settings = GtSettings(method=method)

    def accepted(clicks):
        (image,) = aggregate_clicks(clicks, settings).images
        assert np.isfinite(image.posterior).all() and np.isfinite(image.mark_weight).all()
        return image.xy[image.posterior >= 0.5]

    # One click, and one worker: his word is all there is.
    assert len(accepted(build([(5, 5)], ["w"]))) == 1
    assert len(accepted(build([(5, 5), (20, 20), (40, 9), (30, 44)], ["w"] * 4))) == 4
    # Everybody on the same pixel.
    cells = accepted(build([(7, 8)] * 12, [f"w{i}" for i in range(12)]))
    assert len(cells) == 1 and cells[0] == pytest.approx([7, 8], abs=1e-3)
    # Two workers who agree.
    pair = build([(5, 5), (40, 40), (6, 5), (40, 41)], ["v", "v", "w", "w"])
    assert len(accepted(pair)) == 2
    # Two who disagree: no candidate is better than the other.
    (image,) = aggregate_clicks(build([(5, 5), (40, 40)], ["v", "w"]), settings).images
    assert image.posterior[0] == pytest.approx(image.posterior[1], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_images_nobody_clicked(tmp_path, method):
    clicks = Clicks.build(
        [], [], [], [], sizes={"a": (9, 8)}, assignments=[("a", "v", True), ("a", "w", True)]
    )
    consensus = aggregate_clicks(clicks, GtSettings(method=method))
    assert len(consensus.images[0].xy) == 0


def test_hundreds_of_workers_on_one_image():
    rng = np.random.default_rng(0)
    n = 600
    xy = np.r_[rng.normal(20, 1, (n, 2)), rng.normal(40, 1, (n // 2, 2))]
    (image,) = aggregate_clicks(
        build(xy, [f"w{i}" for i in range(n)] + [f"w{i}" for i in range(n // 2)], (64, 64)), GtSettings()
    ).images
    best = image.xy[image.posterior >= 0.5]
    assert sorted(best[:, 0].round().tolist()) == [20, 40]


def test_qc_images_must_exist():
    with pytest.raises(UsageError, match="'b' is not among"):
        aggregate_clicks(build([(1, 1)], ["w"]), GtSettings(), qc=["b"])
    with pytest.raises(UsageError, match="needs --qc"):
        aggregate_clicks(build([(1, 1)], ["w"]), GtSettings(ability="qc"))


def test_settings(tmp_path):
    path = tmp_path / "gt.toml"
    path.write_text("[gt]\nsigma_px = 3\nmethod = 'study'\n")
    assert read_gt_settings(path).sigma_px == 3.0
    assert read_gt_settings(path, method="best").method == "best"
    for text in ("[gt]\nsigm = 1\n", "[gt]\nsigma_px = 0\n", "[gt]\nrounds = 'two'\n", "[other]\n", "[gt\n"):
        path.write_text(text)
        with pytest.raises(UsageError):
            read_gt_settings(path)


def test_the_commented_settings_are_the_defaults():
    from pathlib import Path

    path = Path(__file__).parents[2] / "configs" / "gt.toml"
    assert read_gt_settings(path) == GtSettings()
    import tomllib

    assert set(tomllib.loads(path.read_text())["gt"]) == set(GtSettings.__dataclass_fields__)


def test_compare_excluded_and_included(tmp_path, crowd):
    source = write_clicks(tmp_path / "c.csv", crowd.clicks)
    aggregate(source, tmp_path / "gt")
    expert = tmp_path / "expert.csv"
    rows = [
        f"{name},expert_{e},{x + e},{y}"
        for e in (0, 1)
        for name, cells in zip(crowd.clicks.image_ids, crowd.truth, strict=True)
        for x, y in cells
    ]
    expert.write_text("image_id,worker_id,x,y\n" + "\n".join(rows) + "\n")
    result = compare(tmp_path / "gt", expert, tolerance=4, clicks=source)
    assert result["n_experts"] == 2
    # The crowd holds no expert: without them it is the same.
    assert result["expert_excluded"]["default"] == result["as_is"]["default"]
    assert result["expert_included"]["default"]["f1"] >= result["expert_excluded"]["default"]["f1"] > 0.6
    assert result["as_is"]["best"]["f1"] >= result["as_is"]["default"]["f1"] - 0.02
    assert 0 < result["as_is"]["auprc"] <= 1
    with pytest.raises(DataError, match="no image in common"):
        expert.write_text("image_id,x,y\nelsewhere,1,1\n")
        compare(tmp_path / "gt", expert)


def test_leave_one_out(crowd):
    rows = leave_one_out(crowd.clicks, GtSettings(), tolerance=4)
    assert len(rows) == len(set(crowd.clicks.worker.tolist())) and all(
        0 <= r["f1"] <= 1 and r["best_single"] != r["worker_id"] for r in rows
    )


def test_commands(tmp_path, crowd):
    from brainmap.gt_cli import app

    source = write_clicks(tmp_path / "c.csv", crowd.clicks)
    run = CliRunner().invoke(app, ["aggregate", str(source), "--out", str(tmp_path / "gt"), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["n_images"] == 2
    expert = tmp_path / "e.csv"
    rows = [f"{n},{x},{y}" for n, t in zip(crowd.clicks.image_ids, crowd.truth, strict=True) for x, y in t]
    expert.write_text("image_id,x,y\n" + "\n".join(rows) + "\n")
    run = CliRunner().invoke(app, ["compare", str(tmp_path / "gt"), str(expert), "--tolerance-px", "4"])
    assert run.exit_code == 0 and "F1" in run.stdout
