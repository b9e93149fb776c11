from __future__ import annotations

from pathlib import Path

import pytest

from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.report import html


@pytest.fixture(autouse=True)
def _fast_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures at low resolution: their drawing is tested, their size is not."""
    render = html._render
    monkeypatch.setattr(html, "_render", lambda figure, format, dpi: render(figure, "png", 20))
    monkeypatch.setitem(html._MEDIA, "svg", html._MEDIA["png"])


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """groups.csv of eight animals, 40 regions, four of them changed tenfold."""
    simulation = Simulation(
        regions=40, fewest=50, planted=4, fold=10, dispersion=0.02, dispersion_freedom=0, shared_sd=0
    )
    return write_runs(simulate(simulation, 2), tmp_path / "study")
