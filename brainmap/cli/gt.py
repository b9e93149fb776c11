"""`brainmap gt aggregate` and `brainmap gt compare`: parse, call one function, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from brainmap.cli.console import command, new_app

app = new_app("gt", "Ground truth from the clicks of many workers.")


@command(app, "aggregate")
def aggregate(
    clicks: Annotated[Path, typer.Argument(help="CSV or Parquet: image_id worker_id x y.")],
    out: Annotated[Path, typer.Option(help="Ground-truth folder to write.")],
    tiles: Annotated[Path | None, typer.Option(help="Tiles folder: image sizes, pictures.")] = None,
    assignments: Annotated[
        Path | None, typer.Option(help="CSV image_id worker_id completed: who saw what.")
    ] = None,
    qc: Annotated[list[str] | None, typer.Option(help="Image id of a quality-control image; repeat.")] = None,
    method: Annotated[str | None, typer.Option(help="best (default) or study.")] = None,
    ability: Annotated[str | None, typer.Option(help="Images that estimate ability: auto, qc, all.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML settings, see configs/gt.toml.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn clicks into points, worker abilities and heat maps."""
    from brainmap.files import to_jsonable
    from brainmap.gt.aggregate import aggregate as run
    from brainmap.gt.settings import read_gt_settings

    settings = read_gt_settings(config, method=method, ability=ability)
    result = run(
        clicks, out, tiles=tiles, assignments=assignments, qc=qc or [], settings=settings, workers=workers
    )
    if as_json:
        typer.echo(json.dumps(to_jsonable(result)))
        return
    typer.echo(f"{result.n_images} images, {result.n_workers} workers, {result.n_clicks} clicks")
    typer.echo(
        f"{result.n_accepted} cells among {result.n_candidates} candidates: {result.path / 'points.csv'}"
    )


@command(app, "compare")
def compare(
    gt: Annotated[Path, typer.Argument(help="Ground-truth folder.")],
    expert: Annotated[Path, typer.Argument(help="CSV or Parquet: image_id x y, and worker_id if several.")],
    tolerance_px: Annotated[float, typer.Option(help="Largest distance of a pair.")] = 10.0,
    by: Annotated[str, typer.Option(help="What the curves sweep: posterior or confidence.")] = "posterior",
    clicks: Annotated[
        Path | None, typer.Option(help="Clicks of GT: also compare with the experts excluded and included.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything, curves included, as JSON.")
    ] = False,
) -> None:
    """Score a ground truth against experts."""
    from brainmap.gt.compare import compare as run

    result = run(gt, expert, tolerance=tolerance_px, by=by, clicks=clicks)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for key, title in (
        ("as_is", "ground truth as it is"),
        ("expert_excluded", "experts excluded"),
        ("expert_included", "experts included"),
    ):
        if key in result:
            typer.echo(_line(title, result[key]))


def _line(title: str, part: dict[str, Any]) -> str:
    now, best = part["default"], part["best"]
    return (
        f"{title}: precision {now['precision']:.3f}, recall {now['recall']:.3f}, F1 {now['f1']:.3f}; "
        f"best F1 {best['f1']:.3f} at {best['threshold']:g}; AUPRC {part['auprc']:.3f}"
    )
