from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from brainmap.cohort.report import charts
from brainmap.cohort.simulate import Simulation, simulate, write_runs


@pytest.fixture(autouse=True)
def _fast_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are laid out by nobody and drawn once, coarsely: their drawing is tested, their size is not."""

    def render(figure: Figure) -> bytes:
        figure.set_layout_engine("none")
        figure.set_dpi(20)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            FigureCanvasAgg(figure).draw()
        return b"<svg xmlns='http://www.w3.org/2000/svg'/>"

    monkeypatch.setattr(charts, "render", render)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """groups.csv of eight animals, 40 regions, four of them changed tenfold."""
    simulation = Simulation(
        regions=40, fewest=50, planted=4, fold=10, dispersion=0.02, dispersion_freedom=0, shared_sd=0
    )
    return write_runs(simulate(simulation, 2), tmp_path / "study")
