from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError
from brainmap.report import style
from brainmap.report.html import Page, figure_uri, format_value

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>&amp;'


class _Reader(HTMLParser):
    """Collects tags, attributes and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _figure() -> object:
    figure = style.new_figure(3, 2)
    figure.subplots().plot([1, 3, 2])
    return figure


def _full_page() -> Page:
    page = Page("Title", "sub")
    page.add_warning("careful", ["a", "b"])
    page.add_error("broken")
    page.add_note("note")
    page.add_numbers([("cells", 48120)])
    page.add_facts({"brain": "x.zarr", "missing": None})
    page.add_section("One", "intro")
    page.add_text("first\n\nsecond")
    page.add_subheading("sub")
    page.add_figure(_figure(), "png")  # type: ignore[arg-type]
    page.add_section("Two")
    page.add_table(["name", "value"], [["a", 2.0], ["b", None], ["c", math.nan]], "numbers")
    page.add_section("Three")
    page.add_table(["name"], [], "empty", collapsed=True)
    return page


def test_page_shows_everything_in_order() -> None:
    text = " ".join(_Reader(_full_page().render().split("<script>")[0]).text)
    words = [
        "Title",
        "careful",
        "broken",
        "note",
        "48,120",
        "x.zarr",
        "One",
        "first",
        "second",
        "png",
        "Two",
        "Three",
    ]
    positions = [text.rindex(word) for word in words]
    assert positions == sorted(positions)
    assert "nothing to show" in text


def test_page_loads_nothing_from_outside() -> None:
    html = _full_page().render()
    reader = _Reader(html)
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert not reader.all("link") and not reader.all("iframe")
    assert not re.search(r"url\(|@import", html)
    policy = next(
        a["content"] for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and policy.startswith("default-src 'none'")


def test_script_is_the_one_the_policy_allows() -> None:
    import base64
    import hashlib

    html = _full_page().render()
    script = re.search(r"<script>(.*?)</script>", html, re.S)
    assert script and html.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in html


def test_hostile_text_stays_text_everywhere() -> None:
    page = Page(HOSTILE, HOSTILE)
    page.add_warning(HOSTILE, [HOSTILE])
    page.add_numbers([(HOSTILE, HOSTILE)])
    page.add_facts([(HOSTILE, HOSTILE)], title=HOSTILE)
    page.add_section(HOSTILE, HOSTILE)
    page.add_text(HOSTILE)
    page.add_subheading(HOSTILE)
    page.add_table([HOSTILE, "n"], [[HOSTILE, 1]], HOSTILE)
    page.add_table([HOSTILE], [[HOSTILE]], HOSTILE, collapsed=True)
    page.add_figure(_figure(), HOSTILE, alt=HOSTILE)  # type: ignore[arg-type]
    html = page.render()
    reader = _Reader(html)
    assert len(reader.all("script")) == 1
    assert all(str(image["src"]).startswith("data:image/") for image in reader.all("img"))
    assert not any("onerror" in attributes for _, attributes in reader.tags)
    assert "".join(reader.text).count("alert(1)") >= 20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (48120, "48,120"), (np.int64(7), "7"), (0.93125, "0.9313"), (0.0, "0"), (100.0, "100"), (12345.6, "12,346"),
        (1.5e-6, "1.50e−06"), (-3, "−3"), (None, "–"), (math.nan, "–"), (math.inf, "∞"), (-math.inf, "−∞"),
        (True, "yes"), (np.float32(0.5), "0.5"), ("x", "x"), (0.99999, "1"),
    ],
)  # fmt: skip
def test_values_are_formatted_for_people(value: object, text: str) -> None:
    assert format_value(value) == text


def test_table_rows_must_fit_the_columns() -> None:
    with pytest.raises(DataError, match="row 1 has 1 values for 2 columns"):
        Page("t").add_table(["a", "b"], [[1, 2], [3]])


def test_long_tables_say_what_they_left_out() -> None:
    page = Page("t")
    page.add_table(["a"], [[i] for i in range(30)], max_rows=10)
    reader = _Reader(page.render())
    assert len(reader.all("tr")) == 11
    assert "20 more rows" in " ".join(reader.text)


def test_numbers_sort_by_value_and_missing_ones_are_no_number() -> None:
    page = Page("t")
    page.add_table(["a"], [[1200], [None], [30.5]])
    assert [cell["data-key"] for cell in _Reader(page.render()).all("td")] == ["1200.0", "", "30.5"]


@pytest.mark.parametrize("kind", ["png", "svg", "webp"])
def test_figures_are_embedded_and_repeatable(kind: str, tmp_path: Path) -> None:
    import base64

    uri = figure_uri(_figure(), format=kind)  # type: ignore[arg-type]
    assert uri == figure_uri(_figure(), format=kind)  # type: ignore[arg-type]
    content = base64.b64decode(uri.split(",", 1)[1])
    path = tmp_path / "picture.bin"
    path.write_bytes(content)
    assert figure_uri(path) == uri == figure_uri(content)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a PNG"):
        figure_uri(b"plain text")
    with pytest.raises(DataError, match="gif"):
        figure_uri(_figure(), format="gif")  # type: ignore[arg-type]


def test_write_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    assert _full_page().write(path) == path
    before = path.read_text(encoding="utf-8")

    def fail(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        Page("other").write(path)
    monkeypatch.undo()
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_no_global_figures_are_left_behind() -> None:
    import sys

    _full_page().render()
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    ("length", "rounded"), [(1.0, 1.0), (99.0, 50.0), (0.3, 0.2), (2000.0, 2000.0), (4999.0, 2000.0)]
)
def test_scale_bars_are_round(length: float, rounded: float) -> None:
    assert style.round_length(length) == pytest.approx(rounded)


@pytest.mark.parametrize(
    "name", ["$x_", "a$b$c", r"$\frac{", "$$", "costs $5 or $6", r"\alpha $", "100 %", "{}", "^_"]
)
def test_names_are_drawn_as_they_stand(name: str) -> None:
    """A dollar in a name is no formula: titles, labels, ticks, legends and notes are drawn literally."""
    figure = style.new_figure(3, 2)
    axes = style.clean(figure.subplots(), title=name, x=name, y=name)
    axes.barh([0, 1], [1, 2], label=name)
    axes.set_yticks([0, 1], [name, "plain"])
    axes.text(0.5, 0.5, name)
    axes.annotate(name, (0, 0))
    axes.legend()
    figure.suptitle(name)
    assert figure_uri(figure).startswith("data:image/")


def test_numbers_of_logarithmic_axes_stay_formulas() -> None:
    figure = style.new_figure(3, 2)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot([1, 1e6], [1, 2])
    figure.draw_without_rendering()
    ticks = [label for label in axes.get_xticklabels() if label.get_text()]
    assert ticks and all(label.get_parse_math() for label in ticks)


def test_bars_steps_checks_and_galleries_are_text_and_pictures() -> None:
    page = Page("t")
    page.add_bars([("Cortex", (30.0, math.nan)), ("Pons", (15.0, 1234.0))], ("left", "right"), "cells")
    page.add_steps("next", [("do <this>", "brainmap x"), ("and that", "")])
    page.add_checks("ok?", [("fits?", "good", "yes"), ("cells?", "look", "perhaps")])
    pictures = [(_figure(), "one"), (_figure(), "two")]
    page.add_gallery(pictures, "both", scale=("0", "9", ["#000000", "#ffffff"]), kind="map")  # type: ignore[arg-type]
    html = page.render()
    reader = _Reader(html.split("<script>")[0])
    text = " ".join(reader.text)
    for words in ("Cortex", "1,234", "do <this>", "brainmap x", "fits?", "Look", "both"):
        assert words in text, words
    assert "width:100.00%" in html and "width:0.00%" in html and "width:1.22%" in html
    assert len(reader.all("img")) == 2 and "linear-gradient(to right, #000000, #ffffff)" in html


def test_tables_can_be_searched_and_saved_where_that_helps() -> None:
    page = Page("t")
    page.add_table(["a"], [[i] for i in range(20)], search=True, download="a.csv")
    page.add_table(["a"], [[1]], search=True, download="b.csv")
    reader = _Reader(page.render())
    assert len([i for i in reader.all("input") if i["type"] == "search"]) == 1, "not in a table of one row"
    assert [b["data-name"] for b in reader.all("button") if "data-name" in b] == ["a.csv", "b.csv"]


def test_places_stand_where_the_script_finds_them() -> None:
    page = Page("t")
    page.add_gallery([(_figure(), "")], "A slice.", place="1.0,2.0,3.0")  # type: ignore[list-item]
    page.add_table(["structure", "cells"], [["Cortex", 3], ["none", 4]], places=["315", ""])
    page.add_note("thin ones", ["Cortex: 3"], ["315"])
    page.add_paste("Methods", "Cells were <counted>.")
    html = page.render()
    assert '<figcaption>A slice. <span data-at="1.0,2.0,3.0"></span>' in html
    assert '<td data-key="Cortex"><span data-at="315">Cortex</span></td>' in html
    assert '<td data-key="none">none</td>' in html
    assert '<li>Cortex: 3 <span data-at="315"></span></li>' in html
    assert '<p>Cells were &lt;counted&gt;.</p><button type="button" class="copy">' in html
