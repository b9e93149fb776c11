"""A round: from an export to a verdict, killed at three places, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from brainmap.crowd.loop import round as module  # noqa: E402
from brainmap.crowd.loop.round import RoundRequest, RoundResult, run_round  # noqa: E402
from brainmap.errors import DataError, UsageError  # noqa: E402
from brainmap.image.array_source import ArraySource  # noqa: E402
from brainmap.image.intensity import Intensity  # noqa: E402
from brainmap.infer.detector import Detector  # noqa: E402
from brainmap.tiles.tiles import write_tiles  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.finetune import FinetuneConfig  # noqa: E402
from brainmap.train.retrain import steps  # noqa: E402
from brainmap.train.retrain.request import RetrainSettings  # noqa: E402
from brainmap.train.tissue.tissue import TissueConfig, simulate  # noqa: E402

SIDE = 64
LOOK = TissueConfig(
    shape=(2, SIDE, SIDE), voxel_um=(4.0, 2.0, 2.0), density_per_mm3=90_000, brightness=6.0,
    brightness_cv=0.1, vessels=0, ring_share=0.0, texture_fine=0.02, photons=2000,
)  # fmt: skip
TEACH = FinetuneConfig(
    steps=20, learning_rate=5e-3, warm_up=2, average=0.7, crop=32, batch=2, scales=(1.0,), validation=0.0
)
SETTINGS = RetrainSettings(folds=2, rehearsal=0, check_volumes=0, finetune=TEACH)
OUTPUTS = ("export/clicks.csv", "gt/points.csv", "gt/workers.csv", "verdict.json", "hard.csv", "report.html")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a site exports: five slices, a QC tile, three workers; and a network that knows nothing."""
    folder = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(0)
    images, clicks, assigned = [], ["image_id,worker_id,x,y"], ["image_id,worker_id,completed"]
    for z in range(5):
        made = simulate(LOOK, 10 + z)
        intensity = Intensity.fit(ArraySource(made.image, made.voxel_um), 10.0)
        axes = [np.arange(float(n)) for n in made.image.shape]
        images.append(intensity.normalise(made.image, *axes)[0])
        for worker in "abc":
            assigned.append(f"tile{z},{worker},true")
            for _, y, x in made.centres_vox:
                if rng.random() < 0.85:
                    x, y = np.clip(np.array([x, y]) + rng.normal(0, 0.5, 2), 0, SIDE - 1)
                    clicks.append(f"tile{z},{worker},{x:.2f},{y:.2f}")
    columns = {
        "image_id": [f"tile{z}" for z in range(5)], "brain": ["b"] * 5, "z": range(5),
        "voxel_um": [(4.0, 2.0, 2.0)] * 5, "is_qc": [True, False, False, False, False],
    }  # fmt: skip
    write_tiles(folder / "export" / "tiles", columns, images)
    for name, lines in (("clicks", clicks), ("assignments", assigned), ("workers", ["worker_id", *"abc"])):
        (folder / "export" / f"{name}.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    config = CenterNetConfig(slices=3, widths=(8, 8))
    grid = {"pixel_um": 2.0, "z_target_um": 4.0, "cell_diameter_um": 10.0}
    state = CenterNet(config).state_dict()
    torch.save({"network": config.to_dict(), "grid": grid, "average": state}, folder / "start.pt")
    return folder


def copy_export(site: Path, project: str, out: Path) -> None:
    shutil.copytree(site / "export", out)


def request_for(exported: Path, out: Path, **changes: Any) -> RoundRequest:
    base = RoundRequest(exported, "cells", out, str(exported / "start.pt"), SETTINGS, accept_worse=True)
    return replace(base, **changes)


def outputs(out: Path) -> dict[str, bytes]:
    """All results, without the place that they lie in."""
    place = str(out).encode()
    found = {name: (out / name).read_bytes().replace(place, b"ROUND") for name in OUTPUTS}
    outcome = json.loads((out / "retrain" / "outcome.json").read_text())
    crowd = {k: v for k, v in outcome.pop("crowd").items() if k not in ("input", "versions")}
    found["outcome"] = json.dumps([outcome, crowd], sort_keys=True).encode()
    found["detector"] = Detector.open(out / "detector").fingerprint.encode()
    return found


@pytest.fixture(scope="module")
def whole(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> RoundResult:
    """A round that nobody interrupted."""
    torch.set_num_threads(1)
    return run_round(request_for(exported, tmp_path_factory.mktemp("whole") / "round"), copy_export)


def test_a_round_ends_with_a_detector_a_verdict_and_a_report(whole: RoundResult) -> None:
    assert whole.detector is not None
    assert whole.verdict["workers"] == 3
    assert whole.verdict["tiles"] == 5
    assert isinstance(whole.verdict["switch"], bool) and whole.verdict["reason"]
    record = json.loads((whole.out / "round.json").read_text())
    assert list(record["stages"]) == ["export", "gt", "retrain", "verdict"]
    gt = json.loads((whole.out / "gt" / "gt.json").read_text())
    assert gt["input"]["qc"] == ["tile0"], "QC tiles of the export estimate ability"
    report = (whole.out / "report.html").read_text()
    assert whole.verdict["reason"].split(":")[0] in report
    assert "--strategy uncertain --truth" in report
    rows = (whole.out / "hard.csv").read_text().splitlines()
    assert rows[0] == "image_id,n_workers,n_cells,n_undecided" and len(rows) == 6
    assert [name for name, _ in whole.lines()][-1] == "report"


def test_a_finished_round_is_kept(whole: RoundResult, exported: Path) -> None:
    def never(site: Path, project: str, out: Path) -> None:
        raise AssertionError("exported again")

    before = outputs(whole.out)
    again = run_round(request_for(exported, whole.out), never)
    assert again.kept == ("export", "gt", "retrain", "verdict")
    assert outputs(whole.out) == before


def kill_in_export(patch: pytest.MonkeyPatch) -> Callable[[Path, str, Path], None]:
    def export(site: Path, project: str, out: Path) -> None:
        out.mkdir()
        shutil.copy(site / "export" / "clicks.csv", out)
        raise KeyboardInterrupt

    return export


def kill_in_aggregation(patch: pytest.MonkeyPatch) -> Callable[[Path, str, Path], None]:
    real = module.aggregate

    def aggregate(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise KeyboardInterrupt

    patch.setattr(module, "aggregate", aggregate)
    return copy_export


def kill_in_training(patch: pytest.MonkeyPatch) -> Callable[[Path, str, Path], None]:
    real = steps.finetune_network

    def finetune(config: FinetuneConfig, work: Path, *rest: Any) -> Path:
        if work.name == "final":
            raise KeyboardInterrupt
        return real(config, work, *rest)

    patch.setattr(steps, "finetune_network", finetune)
    return copy_export


@pytest.mark.parametrize(
    ("kill", "kept"),
    [(kill_in_export, ()), (kill_in_aggregation, ("export",)), (kill_in_training, ("export", "gt"))],
)
def test_killed_and_resumed_gives_the_same_result(
    exported: Path,
    whole: RoundResult,
    tmp_path: Path,
    kill: Callable[[pytest.MonkeyPatch], Callable[[Path, str, Path], None]],
    kept: tuple[str, ...],
) -> None:
    request = request_for(exported, tmp_path / "round")
    with pytest.MonkeyPatch.context() as patch:
        export = kill(patch)
        with pytest.raises(KeyboardInterrupt):
            run_round(request, export)
    assert not list(tmp_path.glob("round/.tmp*"))
    result = run_round(request, copy_export)
    assert result.kept == kept
    assert result.verdict == whole.verdict
    assert outputs(request.out) == outputs(whole.out)


def test_a_result_that_somebody_changed_is_made_anew(
    exported: Path, whole: RoundResult, tmp_path: Path
) -> None:
    shutil.copytree(whole.out, tmp_path / "round")
    request = request_for(exported, tmp_path / "round")
    (request.out / "hard.csv").write_text("image_id\n")
    result = run_round(request, copy_export)
    assert result.kept == ("export", "gt", "retrain")
    assert len((request.out / "hard.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("changes", [{"project": "other"}, {"settings": replace(SETTINGS, seed=3)}])
def test_a_round_with_other_parameters_is_not_mixed_in(
    exported: Path, whole: RoundResult, changes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=f"other parameters \\({next(iter(changes))}\\)"):
        run_round(request_for(exported, whole.out, **changes), copy_export)


def test_a_folder_with_something_else_is_left_alone(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no round"):
        run_round(request_for(exported, tmp_path), copy_export)


def test_an_export_without_clicks_file_is_refused(exported: Path, tmp_path: Path) -> None:
    def export(site: Path, project: str, out: Path) -> None:
        copy_export(site, project, out)
        (out / "assignments.csv").unlink()

    with pytest.raises(DataError, match=r"the export of cells .* lacks assignments"):
        run_round(request_for(exported, tmp_path / "round"), export)
    assert not (tmp_path / "round" / "export").exists()


def test_a_site_exports_what_a_round_needs(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from brainmap.crowd.store.site import init_site
    from brainmap.crowd.work.import_clicks import import_clicks
    from brainmap.crowd.work.projects import ProjectSpec, add_project
    from brainmap.gt.clicks import read_clicks
    from brainmap.tiles.tiles import Tiles

    given, out = exported / "export", tmp_path / "out"
    site = init_site(tmp_path / "site")
    add_project(site, ProjectSpec("cells", given / "tiles", redundancy=3))
    import_clicks(site, "cells", given / "clicks.csv", given / "assignments.csv")
    site.close()
    module.export_site(tmp_path / "site", "cells", out)
    clicks, before = (
        read_clicks(f / "clicks.csv", tiles=f / "tiles", assignments=f / "assignments.csv")
        for f in (out, given)
    )
    np.testing.assert_allclose(np.sort(clicks.xy, axis=0), np.sort(before.xy, axis=0))
    assert len(clicks.worker_ids) == 3 and clicks.seen_complete.all()
    tiles = Tiles.open(out / "tiles")
    assert list(tiles.ids) == [f"tile{z}" for z in range(5)]
    assert tiles.ids[tiles.columns["is_qc"]].tolist() == ["tile0"]


def test_too_little_to_learn_from_leaves_a_report_that_says_so(exported: Path, tmp_path: Path) -> None:
    def export(site: Path, project: str, out: Path) -> None:
        copy_export(site, project, out)
        for name in ("clicks.csv", "assignments.csv"):
            lines = (out / name).read_text().splitlines()
            few = [lines[0], *(line for line in lines[1:] if line.startswith("tile1,"))]
            (out / name).write_text("\n".join(few) + "\n")

    request = request_for(exported, tmp_path / "round")
    with pytest.raises(DataError, match="come from 1 slice"):
        run_round(request, export)
    assert "come from 1 slice" in (request.out / "report.html").read_text()
    assert (request.out / "gt" / "gt.json").is_file()
