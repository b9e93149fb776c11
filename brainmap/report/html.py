"""One self-contained HTML page: text, tables and figures in a single file that works offline.

Everything is inside the file (figures as data URIs, style and a few lines of script inline); a content
security policy in the page forbids the browser to load anything else. All text is escaped: names come from
file names, atlases and worker ids, which may hold anything.

    page = Page("Run of brain_07", subtitle="brainmap 0.1")
    page.add_warning("3 of 512 blocks failed")
    page.add_facts([("Cells", 48120), ("Atlas", "allen_mouse_50um")])
    page.add_section("Regions", "Counts include all descendants.")
    page.add_figure(figure, caption="Cells per region")
    page.add_table(["region", "cells"], [["Isocortex", 1200], ["Thalamus", 310]], caption="Counts")
    page.write(Path("report.html"))

Parts appear in the order they were added; parts added before the first section form the page's head.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmap.errors import DataError
from brainmap.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "figure_uri", "format_value", "page_script"]

MISSING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
_MEDIA = {"png": "image/png", "svg": "image/svg+xml", "webp": "image/webp", "jpeg": "image/jpeg"}


@dataclass
class Section:
    """A headed stretch of the page; `parts` are records of the kinds the template knows."""

    title: str
    intro: str = ""
    anchor: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)


class Page:
    """A report under construction.

    Parameters
    ----------
    title : str
        Heading and browser title.
    subtitle : str
        One line under the heading.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self.sections: list[Section] = [Section("")]

    def add_section(self, title: str, intro: str = "") -> None:
        """Begin a new section; what is added next belongs to it. It appears in the page's contents list."""
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        self.sections.append(Section(title, intro, f"{slug}-{len(self.sections)}"))

    def add_text(self, text: str) -> None:
        """Add a paragraph of plain text; empty lines separate paragraphs."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            if paragraph:
                self._add(kind="text", text=paragraph)

    def add_subheading(self, title: str) -> None:
        """Add a small heading inside the section."""
        self._add(kind="subheading", text=title)

    def add_warning(self, text: str, items: Iterable[str] = ()) -> None:
        """Add a warning that cannot be overlooked, with an optional list of details."""
        self._add(kind="box", level="warning", label="Warning", text=text, entries=[str(i) for i in items],
                  places=[])  # fmt: skip

    def add_error(self, text: str, items: Iterable[str] = ()) -> None:
        """Add a box saying that something failed, with an optional list of details."""
        self._add(kind="box", level="error", label="Failed", text=text, entries=[str(i) for i in items],
                  places=[])  # fmt: skip

    def add_note(self, text: str, items: Iterable[str] = (), places: Sequence[str] = ()) -> None:
        """Add a quiet box: how to read what follows, what is not shown; places lead from items into the viewer."""
        entries = [str(i) for i in items]
        self._add(kind="box", level="note", label="Note", text=text, entries=entries, places=list(places))

    def add_paste(self, title: str, text: str) -> None:
        """Add a paragraph that is copied with a button."""
        self._add(kind="paste", title=title, text=text)

    def add_numbers(self, values: Iterable[tuple[str, object]] | Mapping[str, object]) -> None:
        """Add a row of large numbers: (label, value) pairs, or (label, value) with values already text."""
        self._add(kind="numbers", rows=[(label, format_value(value)) for label, value in _pairs(values)])

    def add_facts(
        self, facts: Iterable[tuple[str, object]] | Mapping[str, object], *, title: str = ""
    ) -> None:
        """Add a two-column list of names and values. A value may be any scalar; None shows as a dash."""
        self._add(kind="facts", title=title, rows=[(name, format_value(v)) for name, v in _pairs(facts)])

    def add_checks(self, title: str, rows: Iterable[tuple[str, str, str]]) -> None:
        """Add questions with their answers: (question, "good", "look", "bad" or "unknown", sentence)."""
        words = {"good": "Yes", "look": "Look", "bad": "No", "unknown": "Unknown"}
        self._add(kind="checks", title=title, rows=[(q, v, words[v], s) for q, v, s in rows])

    def add_steps(self, title: str, rows: Iterable[tuple[str, str]]) -> None:
        """Add a numbered list of what to do: (sentence, command or empty text)."""
        self._add(kind="steps", title=title, rows=list(rows))

    def add_bars(
        self,
        rows: Sequence[tuple[str, Sequence[float]]],
        series: Sequence[str],
        caption: str = "",
        *,
        unit: str = "",
    ) -> None:
        """Add a bar chart made of text and boxes: readable at any width, by any reader.

        Parameters
        ----------
        rows : sequence of (label, values)
            One value per series; NaN is left blank.
        series : sequence of str
            At most three.
        caption, unit : str
            Text above; what the values count.
        """
        top = max((v for _, values in rows for v in values if not math.isnan(v)), default=0.0) or 1.0
        shown = [
            (label, [(format_value(_shortened(v)), 0.0 if math.isnan(v) else 100 * v / top) for v in values])
            for label, values in rows
        ]
        self._add(kind="bars", rows=shown, series=list(series), caption=caption, unit=unit)

    def add_gallery(
        self,
        pictures: Iterable[tuple[Figure | bytes | str | Path, str]],
        caption: str = "",
        *,
        format: str = "webp",
        dpi: int = 140,
        scale: tuple[str, str, Sequence[str]] | None = None,
        kind: str = "",
        place: str = "",
    ) -> None:
        """Add pictures that belong together, beside each other where there is room.

        Parameters
        ----------
        pictures : iterable of (figure, title)
        caption : str
        format, dpi
            As for `add_figure`.
        scale : (text, text, colours), optional
            A colour scale under the pictures: what its two ends mean, and colours evenly along it.
        kind : {"", "map", "pair"}
            How the pictures stand: "map" equally high in a row, "pair" as one of two in a row of the page.
        place : str
            Where `brainmap view --at` finds it: "z,y,x" in um, or the id of a region.
        """
        shown = []
        for figure, title in pictures:
            ratio = 1.0
            if not isinstance(figure, (str, bytes, Path)):
                ratio = figure.get_figwidth() / figure.get_figheight()
            shown.append((_picture(figure, format, dpi), title, ratio))
        if scale is not None:
            scale = (scale[0], scale[1], ", ".join(scale[2]))  # type: ignore[assignment]
        self._add(kind="gallery", pictures=shown, caption=caption, scale=scale, row=kind, place=place)

    def add_table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        caption: str = "",
        *,
        sortable: bool = True,
        max_rows: int | None = None,
        collapsed: bool = False,
        search: bool = False,
        download: str = "",
        places: Sequence[str] = (),
    ) -> None:
        """Add a table.

        Parameters
        ----------
        columns : sequence of str
            Column names.
        rows : iterable of sequences
            One sequence of scalars per row, as long as `columns`. Numbers are right-aligned and formatted by
            `format_value`; None and NaN show as a dash.
        caption : str
            Text above the table.
        sortable : bool
            Clicking a column's name sorts by it (numbers by value).
        max_rows : int, optional
            Show only the first so many rows and say how many were left out.
        collapsed : bool
            Hide the table behind its caption until it is opened (it always prints opened).
        search : bool
            A field above it leaves the rows that hold what is typed; the table scrolls in a box of its own.
        download : str
            A button above it saves the rows that are shown as a CSV of this name.
        places : sequence of str
            For every row what `brainmap view --at` takes, or empty text; the first cell leads there.

        Raises
        ------
        DataError
            A row has another length than `columns`.
        """
        all_rows = [list(row) for row in rows]
        for number, row in enumerate(all_rows):
            if len(row) != len(columns):
                raise DataError(
                    f"table {caption!r}: row {number} has {len(row)} values for {len(columns)} columns"
                )
        shown = all_rows if max_rows is None else all_rows[:max_rows]
        numeric = [
            bool(shown) and all(_is_number(row[c]) or row[c] is None for row in shown)
            for c in range(len(columns))
        ]
        self._add(
            kind="table",
            columns=list(zip(columns, numeric, strict=True)),
            rows=[[_cell(value, right) for value, right in zip(row, numeric, strict=True)] for row in shown],
            caption=caption,
            sortable=sortable and len(shown) > 1,
            left_out=len(all_rows) - len(shown),
            collapsed=collapsed,
            search=search and len(shown) > 8,
            download=download if shown else "",
            places=list(places),
        )

    def add_figure(
        self,
        figure: Figure | bytes | str | Path,
        caption: str = "",
        *,
        alt: str = "",
        format: str = "png",
        dpi: int = 160,
        width: str = "",
    ) -> None:
        """Add a picture.

        Parameters
        ----------
        figure : matplotlib Figure, bytes or path
            A figure to render, or the content or path of a PNG, JPEG, WebP or SVG file.
        caption : str
            Text under the picture.
        alt : str
            What a reader who cannot see it should know; the caption if not given.
        format : {"png", "svg", "webp"}
            For a matplotlib figure: svg for charts, webp for pictures of tissue.
        dpi : int
            Resolution at which a figure is rendered (png, webp).
        width : {"", "wide", "half"}
            Text width, full page width, or two beside each other.
        """
        uri = _picture(figure, format, dpi)
        # A rendered figure is shown at its own size in inches whatever its resolution; a file fills the width.
        pixels = 0 if isinstance(figure, (str, bytes, Path)) else round(96 * figure.get_figwidth())
        # A chart is ink on white and is turned over on a dark page; a picture of tissue is not.
        chart = bool(pixels) and format != "webp"
        self._add(
            kind="figure",
            uri=uri,
            caption=caption,
            alt=alt or caption,
            width=width,
            pixels=pixels,
            chart=chart,
        )

    def render(self) -> str:
        """Return the page as HTML text."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("brainmap.report"),
            autoescape=True,  # jinja2's own default is off
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        source, digest = page_script()
        return environment.get_template("page.html").render(
            title=self.title,
            subtitle=self.subtitle,
            sections=self.sections,
            contents=[s for s in self.sections if s.title],
            script=source,
            script_hash=digest,
        )

    def write(self, path: str | Path) -> Path:
        """Write the page to `path` (complete or not at all) and return the path."""
        path = Path(path)
        text = self.render()
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
        return path

    def _add(self, **part: Any) -> None:
        self.sections[-1].parts.append(part)


def page_script() -> tuple[str, str]:
    """The script of every page, and what a content security policy calls it."""
    source = (
        resources.files("brainmap.report").joinpath("templates", "page.js").read_text("utf-8").rstrip("\n")
    )
    return source, f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def figure_uri(figure: Figure | bytes | str | Path, *, format: str = "png", dpi: int = 160) -> str:
    """Return a picture as a data URI; see `Page.add_figure` for what `figure` may be."""
    return _picture(figure, format, dpi)()


def _picture(figure: Figure | bytes | str | Path, format: str, dpi: int) -> Callable[[], str]:
    """Draw or read a picture now; what is returned waits for its data URI, which another thread makes."""
    if isinstance(figure, (str, Path)):
        content = Path(figure).read_bytes()
        kind = _sniff(content, str(figure))
    elif isinstance(figure, bytes):
        content = figure
        kind = _sniff(content, "the figure's bytes")
    else:
        encode = _render(figure, format, dpi)
        return _encoders().submit(lambda: _data_uri(encode(), format)).result
    return lambda: _data_uri(content, kind)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{_MEDIA[kind]};base64,{base64.b64encode(content).decode()}"


@functools.cache
def _encoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2, thread_name_prefix="brainmap-encode")


def format_value(value: object, digits: int = 4) -> str:
    """Format a scalar for people: 48,120; 0.9312; 1.5e-06; a dash for None and NaN; text unchanged."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return MISSING
    if math.isinf(number):
        return "\N{INFINITY}" if number > 0 else f"{_MINUS}\N{INFINITY}"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace("-", _MINUS)
    if number and not 1e-3 <= abs(number) < 1e7:
        return f"{number:.{digits - 2}e}".replace("-", _MINUS)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number)))) if number else 0
    text = f"{number:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", _MINUS)


def _render(figure: Figure, format: str, dpi: int) -> Callable[[], bytes]:
    """Draw a figure; what is returned encodes it, which for pictures takes as long and needs no interpreter."""
    if format not in ("png", "svg", "webp"):
        raise DataError(f"figure format {format!r} is not png, svg or webp")
    buffer = io.BytesIO()
    # Drawn here: `savefig` would draw every picture twice, once to lay the figure out.
    if format == "svg":
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        # No date and a fixed salt: equal inputs give equal files.
        with matplotlib.rc_context({"svg.hashsalt": "brainmap"}):
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
        return buffer.getvalue
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    options = {"quality": 88, "method": 2} if format == "webp" else {"dpi": (dpi, dpi)}

    def encode() -> bytes:
        picture.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


def _sniff(content: bytes, what: str) -> str:
    if content.startswith(b"\x89PNG"):
        return "png"
    if content.startswith(b"\xff\xd8"):
        return "jpeg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if b"<svg" in content[:2000]:
        return "svg"
    raise DataError(f"{what} is not a PNG, JPEG, WebP or SVG picture")


def _pairs(values: Iterable[tuple[str, object]] | Mapping[str, object]) -> list[tuple[str, object]]:
    return list(values.items()) if isinstance(values, Mapping) else [(str(k), v) for k, v in values]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shortened(value: float) -> float:
    """A number as bars show it: no digits that nobody reads."""
    return value if math.isnan(value) or value < 100 else float(round(value))


def _cell(value: object, right: bool) -> tuple[str, str, bool]:
    """(shown text, sort key, right-aligned) of a table cell."""
    key = str(value) if not right else ("" if value is None else repr(float(value)))  # type: ignore[arg-type]
    return format_value(value), key, right
