"""The demo of the loop, without its slow ends: detection is given, training is left out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from brainmap.crowd.loop import demo
from brainmap.crowd.loop.round import RoundRequest, RoundResult
from brainmap.errors import MissingExtraError
from brainmap.gt.aggregate import aggregate
from brainmap.gt.clicks import read_clicks
from brainmap.tiles.tiles import Tiles


def test_a_phantom_s_tiles_go_through_a_crowd_into_a_round(
    tmp_path: Path, runs: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RoundRequest] = []

    def no_training(request: RoundRequest, export: Callable[[Path, str, Path], None]) -> RoundResult:
        asked.append(request)
        part = request.out / "export"
        part.mkdir(parents=True)
        export(request.site, request.project, part)
        aggregate(
            part / "clicks.csv",
            request.out / "gt",
            tiles=part / "tiles",
            assignments=part / "assignments.csv",
        )
        score = {"old": 0.8, "new": 0.9, "low": 0.01, "high": 0.2}
        verdict: dict[str, Any] = {"switch": True, "reason": "F1 is better", "f1": score, "auprc": score}
        return RoundResult(
            request.out, verdict | dict.fromkeys(("workers", "clicks", "tiles", "cells", "undecided"), 1)
        )

    monkeypatch.setattr(demo, "_run", lambda folder, size: (runs[0], runs[0] / "points.parquet"))
    monkeypatch.setattr(demo, "REGIONS", ("ISO", "HPF", "STR"))
    monkeypatch.setattr(demo, "BUDGET", 12)
    monkeypatch.setattr(demo, "run_round", no_training)
    text = demo.run_crowd_demo(tmp_path, size="tiny")
    assert text.startswith("12 tiles: ")
    recall, f1 = (float(text.split(word)[1].split()[0]) for word in ("recall ", "F1 "))
    assert recall > 0.8 and f1 > 0.85, "twelve simulated workers find the cells together"
    assert "switch    yes: F1 is better" in text and asked[0].project == "demo"
    export = tmp_path / "round" / "export"
    clicks = read_clicks(
        export / "clicks.csv", tiles=export / "tiles", assignments=export / "assignments.csv"
    )
    assert len(clicks.worker_ids) == 12
    assert list(Tiles.open(export / "tiles").ids) == list(Tiles.open(tmp_path / "tiles").ids)


def test_serving_makes_the_site_once_and_opens_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("starlette", reason="the site needs the extra [crowd]")
    served: list[tuple[Any, ...]] = []
    made: list[Path] = []

    class Site:
        def close(self) -> None:
            pass

    def init(site: Path) -> Site:
        site.mkdir()
        (site / "crowd.toml").write_text("")
        made.append(site)
        return Site()

    monkeypatch.setattr("brainmap.crowd.store.site.init_site", init)
    monkeypatch.setattr(
        "brainmap.crowd.work.projects.add_project", lambda site, spec: made.append(spec.tiles)
    )
    monkeypatch.setattr("brainmap.crowd.web.serve.serve", lambda *arguments: served.append(arguments))
    monkeypatch.setattr(demo.webbrowser, "open", lambda url: None)
    demo.serve_demo(tmp_path, port=8123)
    demo.serve_demo(tmp_path, port=8123)
    assert made == [tmp_path / "site", tmp_path / "tiles"]
    assert served == 2 * [(tmp_path / "site", "127.0.0.1", 8123)]


def test_serving_without_the_site_s_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "brainmap.crowd.work.projects", None)
    with pytest.raises(MissingExtraError, match="brainmap\\[crowd\\]"):
        demo.serve_demo(tmp_path)
