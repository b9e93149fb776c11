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
from brainmap.gt.heatmap import confidence_at, heat_map
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
    page = (out / "report.html").read_text()
    assert "<script src" not in page
    for words in (
        "Can it be trusted?",
        f"{result.n_accepted:,}",
        "accepted cells (solid)",
        "An image was seen by",
    ):
        assert words in page, words
    assert "pairs" not in page
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


def agreed(n_workers, n_images, n_cells=12):
    """Everybody clicks every cell, a little beside it, and nothing else."""
    rng = np.random.default_rng(n_workers)
    cells = np.array([(20.0 + 40 * (k % 4), 20.0 + 40 * (k // 4)) for k in range(n_cells)])
    ids, workers, xy = [], [], []
    for image in range(n_images):
        for worker in range(n_workers):
            ids += [f"i{image}"] * n_cells
            workers += [f"w{worker}"] * n_cells
            xy.append(cells + rng.uniform(-0.6, 0.6, cells.shape))
    x, y = np.concatenate(xy).T
    return Clicks.build(ids, workers, x, y, sizes={f"i{k}": (180, 180) for k in range(n_images)}), cells


def maps(consensus, clicks):
    sizes = zip(clicks.height.tolist(), clicks.width.tolist(), strict=True)
    return [
        heat_map(image.mark_xy, image.mark_weight, image.total_weight, size)
        for image, size in zip(consensus.images, sizes, strict=True)
    ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_images", [1, 4])
@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_workers_who_never_disagree_are_believed(method, n_images, n_workers):
    clicks, cells = agreed(n_workers, n_images)
    consensus = aggregate_clicks(clicks, GtSettings(method=method))
    for image, heat in zip(consensus.images, maps(consensus, clicks), strict=True):
        assert len(image.xy) == len(cells) and (image.posterior >= 0.5).all()
        assert image.total_weight > 0
        # The study's 1 - exp(-6) for full agreement, less what scatter and the posterior take from it.
        assert (confidence_at(heat, cells) > (0.95 if n_workers < 5 else 0.99)).all()
        assert heat[40, 40] < 0.01
    # Nothing tells what they would do where no cell is: the starting specificity stays.
    assert consensus.workers.specificity == pytest.approx(0.7)
    assert (consensus.workers.weight_click > 0.5).all()


@pytest.mark.parametrize("prior", [0.0, 2.0])
def test_thousands_of_clicks_of_one_expert_are_believed(prior):
    clicks, cells = agreed(1, 200)
    consensus = aggregate_clicks(clicks, GtSettings(prior_clicks=prior))
    assert min(confidence_at(heat, cells).min() for heat in maps(consensus, clicks)) > 0.95


def test_one_who_clicks_nothing_does_not_take_the_weight_of_those_who_agree():
    clicks, cells = agreed(4, 3)
    seen = [(f"i{k}", f"w{w}", True) for k in range(3) for w in range(5)]
    ids, workers = np.array(clicks.image_ids, object), np.array(clicks.worker_ids, object)
    lazy = Clicks.build(
        ids[clicks.image], workers[clicks.worker], clicks.xy[:, 0], clicks.xy[:, 1],
        sizes=dict.fromkeys(clicks.image_ids, (180, 180)), assignments=seen,
    )  # fmt: skip
    consensus = aggregate_clicks(lazy, GtSettings())
    assert min(confidence_at(heat, cells).min() for heat in maps(consensus, lazy)) > 0.95


def test_an_image_that_one_expert_saw_alone_counts_beside_those_of_a_crowd():
    crowd = simulate(SMALL, 3).clicks
    ids, workers = np.array(crowd.image_ids, object), np.array(crowd.worker_ids, object)
    own = np.array([(30.0, 30.0), (60.0, 90.0), (90.0, 40.0)])
    clicks = Clicks.build(
        np.r_[ids[crowd.image], np.array(["own"] * 3, object)],
        np.r_[workers[crowd.worker], np.array(["expert"] * 3, object)],
        np.r_[crowd.xy[:, 0], own[:, 0]], np.r_[crowd.xy[:, 1], own[:, 1]],
        sizes=dict.fromkeys([*crowd.image_ids, "own"], (120, 120)),
    )  # fmt: skip
    consensus = aggregate_clicks(clicks, GtSettings())
    row = clicks.worker_ids.index("expert")
    others = np.delete(consensus.workers.specificity, row)
    # He is taken for an average worker.
    assert others.min() <= consensus.workers.specificity[row] <= others.max()
    heat = maps(consensus, clicks)[clicks.image_ids.index("own")]
    posterior = consensus.images[clicks.image_ids.index("own")].posterior.min()
    assert confidence_at(heat, own) == pytest.approx(-np.expm1(-6 * posterior), abs=0.01)


def test_images_seen_by_none_but_weightless_workers_count_them_alike():
    # Two who click everywhere, on one image with careful ones and on one without.
    rng = np.random.default_rng(2)
    cells, many = agreed(1, 1)[1], rng.uniform(5, 175, (150, 2))
    rows = [("a", f"w{w}", cells + rng.normal(0, 0.5, cells.shape)) for w in range(6)]
    rows += [("a", f"s{w}", rng.permutation(np.r_[cells, many][60 * w : 60 * w + 100])) for w in range(2)]
    rows += [("b", f"s{w}", cells + rng.normal(0, 0.5, cells.shape)) for w in range(2)]
    x, y = np.concatenate([r[2] for r in rows]).T
    names = [np.repeat(np.array([r[k] for r in rows], object), [len(r[2]) for r in rows]) for k in (0, 1)]
    clicks = Clicks.build(*names, x, y, sizes=dict.fromkeys("ab", (180, 180)))
    consensus = aggregate_clicks(clicks, GtSettings())
    image = consensus.images[1]
    assert image.total_weight > 0
    expected = -np.expm1(-6 * image.posterior * image.n_workers / 2)
    heat = maps(consensus, clicks)[1]
    assert confidence_at(heat, image.xy) == pytest.approx(expected, abs=0.05)


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
    from brainmap.cli.gt import app

    source = write_clicks(tmp_path / "c.csv", crowd.clicks)
    run = CliRunner().invoke(app, ["aggregate", str(source), "--out", str(tmp_path / "gt"), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["n_images"] == 2
    expert = tmp_path / "e.csv"
    rows = [f"{n},{x},{y}" for n, t in zip(crowd.clicks.image_ids, crowd.truth, strict=True) for x, y in t]
    expert.write_text("image_id,x,y\n" + "\n".join(rows) + "\n")
    run = CliRunner().invoke(app, ["compare", str(tmp_path / "gt"), str(expert), "--tolerance-px", "4"])
    assert run.exit_code == 0 and "F1" in run.stdout
