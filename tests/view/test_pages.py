"""The pages in a real browser with WebGL in software: the picture is looked at, marks are made by key and mouse."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from brainmap.points.table import Points
from brainmap.report.run_report import write_run_report
from brainmap.view.desk import Desk
from brainmap.view.server import create_app

ARGUMENTS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
DESK = {"viewport": {"width": 1400, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    config = uvicorn.Config(
        create_app(Desk.open(run)), log_level="warning", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Person:
    """Somebody before a page; everything it asked for and complained of is kept."""

    def __init__(self, browser: Any, address: str, path: str, device: dict[str, Any]) -> None:
        self.address = address
        self.context = browser.new_context(**device)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.goto(address + path)

    def text(self, name: str) -> str:
        return self.page.get_by_test_id(name).text_content() or ""

    def says(self, name: str, *words: str) -> None:
        wait_until(lambda: all(word in self.text(name) for word in words))

    def leave(self) -> None:
        outside = [
            url
            for url in self.asked
            if not url.startswith((self.address + "/", "blob:" + self.address, "data:"))
        ]
        assert outside == []
        assert self.errors == []
        self.context.close()


@pytest.fixture
def site(run: Path) -> Iterator[str]:
    with served(run) as address:
        yield address


def pixels(page: Any, box: dict[str, float]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")).astype(int)


def test_image_cells_and_marks(browser: Any, site: str, run: Path) -> None:
    # A cell of a high score, away from the image's faces.
    table = Points.read(run / "points.parquet")
    inner = (table["y"] > 40) & (table["y"] < 120) & (table["x"] > 60) & (table["x"] < 140)
    best = int(np.argmax(np.where(inner, table["score"], 0)))
    place = table.zyx_vox[best]
    z, y, x = table.zyx_um[best]
    person = Person(browser, site, f"/?at={z},{y},{x}", DESK)
    page = person.page
    page.wait_for_selector("body[data-ready=true]", timeout=90_000)
    viewer = page.frames[1]
    names = viewer.evaluate("viewer.layerManager.managedLayers.map((layer) => layer.name)")
    assert names == ["image 0 cfos", "image 1 auto", "regions", "cells", "marks"]
    # The panel x right, y down; half a micrometre is a pixel, so that a cell of 8 um is 16 wide.
    panel = viewer.locator(".neuroglancer-rendered-data-panel").first.bounding_box()
    middle = panel["x"] + panel["width"] / 2, panel["y"] + panel["height"] / 2
    around = {"x": middle[0] - 60, "y": middle[1] - 60, "width": 120, "height": 120}
    wait_until(lambda: pixels(page, around)[60, 60].max() > 150)
    wait_until(lambda: (pixels(page, around)[..., 1] - pixels(page, around)[..., 0] > 60).sum() > 20)
    seen = pixels(page, around)
    # The cell is bright and grey in its middle, dark 25 um beside it; its ring is coloured, and green for its score.
    assert seen[52:68, 52:68].min(axis=2).max() > 150
    assert np.median(seen[5:20, 5:20]) < 90
    colored = (seen[..., 1] - seen[..., 0] > 60).sum()
    assert colored < 2000
    # Above the cell's score it has no ring.
    slide(page, 0.99)
    wait_until(lambda: (pixels(page, around)[..., 1] - pixels(page, around)[..., 0] > 60).sum() < colored / 4)
    slide(page, 0.5)
    # A key at the pointer, then the mouse: chosen in the panel, clicked in the picture.
    page.mouse.move(middle[0] + 3, middle[1] + 2)
    page.keyboard.press("y")
    person.says("said", "yes:")
    page.mouse.click(middle[0], middle[1])
    person.says("cell", "score", "hemisphere")
    page.click("[data-mark=missed]")
    page.mouse.click(middle[0] + 40, middle[1] + 30)
    person.says("numbers", "1 yes", "1 missed")
    page.keyboard.press("f")
    person.says("numbers", "1 fields complete")
    page.keyboard.press("q")
    person.says("numbers", "0 fields complete")
    lines = (run / "marks.csv").read_text().splitlines()
    assert [line.split(",")[3] for line in lines] == ["mark", "yes", "missed"]
    marked = np.array([float(v) for v in lines[1].split(",")[:3]])
    np.testing.assert_allclose(marked, place, atol=1e-3)
    missed = np.array([float(v) for v in lines[2].split(",")[:3]])
    np.testing.assert_allclose((missed - place)[1:] * 2, [15, 20], atol=1.5)
    person.leave()


def slide(page: Any, value: float) -> None:
    page.evaluate(
        """(value) => { const slider = document.getElementById("threshold"); slider.value = value;
        for (const kind of ["input", "change"]) slider.dispatchEvent(new Event(kind)); }""",
        value,
    )


def test_a_region_is_searched_and_flown_to_and_a_link_leads_back(browser: Any, site: str) -> None:
    person = Person(browser, site, "/", DESK)
    page = person.page
    page.wait_for_selector("body[data-ready=true]", timeout=90_000)
    page.wait_for_selector("#tree button")
    page.get_by_test_id("search").fill("cort")
    assert page.locator("#tree button").all_text_contents() == ["Cortex (CTX)"]
    # Typing is no marking.
    assert person.text("numbers").startswith("0 yes, 0 no")
    page.locator("#tree button").click()
    person.says("said", "Cortex")
    here = page.frames[1].evaluate("[...viewer.navigationState.position.value]")
    assert here[0] < 206
    person.says("counts", "all", "320")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#link")
    person.says("said", "link")
    link = page.url
    assert "/#!" in link
    person.leave()
    again = Person(browser, site, link.removeprefix(site), DESK)
    again.page.wait_for_selector("body[data-ready=true]", timeout=90_000)
    there = again.page.frames[1].evaluate("[...viewer.navigationState.position.value]")
    np.testing.assert_allclose(there, here, atol=0.1)
    again.leave()


@pytest.mark.parametrize("device", [DESK, PHONE], ids=["desk", "phone"])
def test_places_of_the_report_lead_into_the_viewer(
    browser: Any, site: str, run: Path, device: dict[str, Any]
) -> None:
    (run / "regions.csv").write_text(
        "region_id,acronym,name,parent_id,depth,hemisphere,count,volume_mm3,density_per_mm3,count_direct\n"
        + "".join(f"11,CTX,Cortex,0,0,{side},160,0.01,16000,160\n" for side in ("left", "right", "both")),
        encoding="utf-8",
    )
    report = write_run_report(run)
    assert report.stat().st_size < 15e6
    person = Person(browser, site, "/report", device)
    page = person.page
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    pictured = page.locator("figcaption a").first
    assert pictured.get_attribute("href").startswith("/?at=")
    assert len(pictured.get_attribute("href").split("%2C")) == 3
    page.locator("td a", has_text="Cortex").click()
    page.wait_for_selector("body[data-ready=true]", timeout=90_000)
    person.says("said", "Cortex")
    person.leave()
    # As a file it has no viewer beside it, and gives the command.
    alone = browser.new_context(**device)
    page = alone.new_page()
    page.goto(report.as_uri())
    button = page.locator("td button.place", has_text="Cortex")
    assert button.get_attribute("title").endswith(f"/{run.name} --at 11")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if shots := os.environ.get("BRAINMAP_TEST_SHOTS"):
        page.screenshot(path=Path(shots) / f"report_{device['viewport']['width']}.png", full_page=True)
    alone.close()


def test_a_mark_while_the_server_is_gone_is_said_not_to_be_kept(browser: Any, run: Path) -> None:
    with served(run) as address:
        person = Person(browser, address, "/review", DESK)
        person.page.wait_for_selector("canvas[data-kind=cell]")
        person.page.keyboard.press("y")
        person.says("progress", "1 answered")
    person.page.keyboard.press("y")
    person.says("said", "does not answer")
    assert len((run / "marks.csv").read_text().splitlines()) == 2
    person.context.close()


def test_the_deck_on_a_phone(browser: Any, site: str, run: Path) -> None:
    person = Person(browser, site, "/review", PHONE)
    page = person.page
    page.wait_for_selector("canvas[data-kind=cell]")
    # All of it is on the screen, and thumbs hit the buttons.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("yes", "no", "unsure", "undo"):
        box = page.get_by_test_id(name).bounding_box()
        assert min(box["width"], box["height"]) >= 44
        assert box["y"] + box["height"] <= 844
    for number, name in enumerate(["yes", "no", "unsure", "yes", "yes", "yes"], start=1):
        page.get_by_test_id(name).tap()
        person.says("progress", f"{number} answered")
    page.wait_for_selector("canvas[data-kind=field]")
    box = page.get_by_test_id("canvas").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    person.says("said", "1 missed")
    page.get_by_test_id("done").tap()
    person.says("progress", "7 answered")
    page.get_by_test_id("show-result").tap()
    person.says("result", "94 more answers", "5 cells judged, 1 unsure", "1 fields")
    words = [line.split(",")[3] for line in (run / "marks.csv").read_text().splitlines()[1:]]
    assert words[:6] == ["yes", "no", "unsure", "yes", "yes", "yes"]
    assert len((run / "fields.csv").read_text().splitlines()) == 2
    person.leave()


def test_the_page_of_how_far_it_is(browser: Any, site: str) -> None:
    person = Person(browser, site, "/status", PHONE)
    person.says("state", "complete")
    person.says("facts", "2 done, 0 empty, 0 failed, 0 left", "320")
    person.leave()
