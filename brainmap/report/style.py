"""The look of every brainmap figure: colours, sizes, and figures made without matplotlib's global state.

Colours are those of Okabe and Ito (2008), distinguishable with any kind of colour vision. Figures are made by
`new_figure` and drawn through their own objects; pyplot, which keeps every figure alive and picks a window system,
is never imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "CYCLE",
    "GREEN",
    "INK",
    "LEFT",
    "LINE",
    "ORANGE",
    "PURPLE",
    "QUIET",
    "RED",
    "RIGHT",
    "SKY",
    "TISSUE_MAP",
    "clean",
    "literal_figure",
    "new_figure",
    "picture_axes",
    "round_length",
    "scale_bar",
    "score_map",
]

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, YELLOW = "#cc79a7", "#56b4e9", "#f0e442"
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
LEFT, RIGHT = BLUE, ORANGE
INK, QUIET, LINE = "#1c2430", "#5b6675", "#d9dee5"
TISSUE_MAP = "gray"

_FONT = 9.0


def new_figure(width: float, height: float) -> Figure:
    """Return an empty white figure of the given size in inches (a report's text is about 11.5 wide)."""
    return literal_figure(width, height, "white")


def literal_figure(width: float, height: float, background: str) -> Figure:
    """Return an empty figure in which every text is drawn as it stands.

    matplotlib takes what stands between two `$` for a formula: a name that holds them would be drawn otherwise, or
    keep the whole figure from being drawn. Numbers on logarithmic axes are formulas of matplotlib's own and stay.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    class LiteralFigure(Figure):
        def draw(self, renderer: Any) -> None:
            own: set[int] = set()
            for axes in self.axes:
                for axis in (axes.xaxis, axes.yaxis):
                    if isinstance(axis.get_major_formatter(), LogFormatter):
                        own.update(id(text) for text in axis.findobj(Text) if text is not axis.label)
            for text in self.findobj(Text):
                if id(text) not in own:
                    text.set_parse_math(False)  # type: ignore[attr-defined]
            super().draw(renderer)

    figure = LiteralFigure(figsize=(width, height), layout="constrained", facecolor=background)
    FigureCanvasAgg(figure)
    return figure


def clean(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: str = "") -> Axes:
    """Give a chart the common look: no box, quiet ticks, small type; `grid` is "", "x", "y" or "both"."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(colors=QUIET, labelsize=_FONT, length=3, color=LINE)
    if title:
        axes.set_title(title, loc="left", fontsize=_FONT + 1.5, color=INK, fontweight="bold")
    if x:
        axes.set_xlabel(x, fontsize=_FONT, color=QUIET)
    if y:
        axes.set_ylabel(y, fontsize=_FONT, color=QUIET)
    if grid:
        axes.grid(axis=grid, color=LINE, linewidth=0.7)  # type: ignore[arg-type]
        axes.set_axisbelow(True)
    return axes


def score_map() -> Colormap:
    """Colours for scores 0..1, from magenta to yellow: all of them seen on grey tissue."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    full = matplotlib.colormaps["plasma"]
    return ListedColormap([full(0.35 + 0.65 * i / 255) for i in range(256)], name="score")


def picture_axes(axes: Axes, title: str = "") -> Axes:
    """Prepare axes that hold an image: no ticks, no frame, a small title above."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, loc="left", fontsize=_FONT, color=INK)
    return axes


def scale_bar(axes: Axes, field_um: tuple[float, float], *, extent_units_per_um: float = 1.0) -> float:
    """Draw a scale bar into the lower right corner of picture axes; return its length in um.

    Parameters
    ----------
    axes : Axes
        Axes whose x axis spans the picture; one data unit is ``1 / extent_units_per_um`` um.
    field_um : (float, float)
        Height and width shown, um; the bar is a round number near a fifth of the width.
    extent_units_per_um : float
        Data units per um along x.
    """
    from matplotlib import patheffects

    length = round_length(field_um[1] / 5.0)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    x1 = right - 0.04 * (right - left)
    x0 = x1 - length * extent_units_per_um * (1 if right > left else -1)
    y = bottom + 0.05 * (top - bottom)
    outline: list[Any] = [patheffects.withStroke(linewidth=4.5, foreground="black")]
    axes.plot([x0, x1], [y, y], color="white", linewidth=2.5, solid_capstyle="butt", path_effects=outline)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    outline = [patheffects.withStroke(linewidth=2.0, foreground="black")]
    axes.text(
        (x0 + x1) / 2, y + 0.02 * (top - bottom), label,
        color="white", fontsize=_FONT + 1, ha="center", va="bottom", path_effects=outline,
    )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return length


def round_length(length: float) -> float:
    """Return the largest of 1, 2, 5 x 10^n that is not above `length`."""
    import math

    power = 10.0 ** math.floor(math.log10(length))
    return power * max(step for step in (1.0, 2.0, 5.0) if step * power <= length * (1 + 1e-9))
