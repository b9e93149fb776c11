"""The page in a real browser: from sign-up to thanks, on a desk, a phone and by touch, also without a connection."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from brainmap.crowd.store import schema
from brainmap.crowd.store.site import init_site
from brainmap.crowd.work.export import export_project
from brainmap.crowd.work.progress import site_status
from brainmap.crowd.work.projects import ProjectSpec, add_project
from brainmap.gt.aggregate import aggregate
from brainmap.points.evaluation import evaluate_files

from ..browser import launched, served
from ..conftest import PASSWORD, make_tiles, wait_until

DESK = {"viewport": {"width": 1400, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
TABLET = {"viewport": {"width": 820, "height": 1180}, "has_touch": True}


@pytest.fixture(scope="module")
def browser():
    with launched() as running:
        yield running


@pytest.fixture
def crowd(tmp_path):
    """A site with practice, one tile for quality control and two for work; yields site, address and cells."""
    site = init_site(tmp_path / "site", "", {})
    truth = make_tiles(tmp_path / "tiles", ["qc", "one", "two"], qc=1, cells=8)
    known = make_tiles(tmp_path / "practice", ["p"], seed=5, cells=6)
    rows = "".join(f"p,{x},{y}\n" for x, y in known["p"])
    (tmp_path / "known.csv").write_text(f"image_id,x,y\n{rows}")
    practice = (tmp_path / "practice", tmp_path / "known.csv")
    add_project(site, ProjectSpec("cortex", tmp_path / "tiles", redundancy=3, practice=practice))
    with served(site) as address:
        yield site, address, truth | known


class Annotator:
    """Somebody before the page."""

    def __init__(self, browser: Any, crowd: Any, name: str, device: dict[str, Any]) -> None:
        self.site, self.address, self.truth = crowd
        self.touch = device.get("has_touch", False)
        self.context = browser.new_context(**device)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.watch(message))
        self.marked: dict[str, set[int]] = {}
        self.name = name

    def watch(self, message: Any) -> None:
        # What the content security policy forbids is an error of ours, what a lost network says is not.
        if "Content Security Policy" in message.text:
            self.errors.append(message.text)

    def get(self, id: str) -> Any:
        return self.page.get_by_test_id(id)

    def sign_up(self) -> None:
        self.page.goto(self.address)
        self.get("sign-up-name").fill(self.name)
        self.get("sign-up-password").fill(PASSWORD)
        self.get("sign-up-consent").check()
        self.get("sign-up-submit").click()
        self.get("tile").wait_for()

    def image_id(self) -> str:
        token = self.get("tile").get_attribute("data-tile")
        with self.site.database.read() as connection:
            return connection.execute(
                select(schema.tile.c.image_id)
                .join(schema.assignment, schema.assignment.c.tile_id == schema.tile.c.id)
                .where(schema.assignment.c.token == token)
            ).scalar_one()

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where on the screen a place of the tile is."""
        tile = self.get("tile")
        scale, left, top = (float(tile.get_attribute(f"data-{name}")) for name in ("scale", "x", "y"))
        box = tile.bounding_box()
        return box["x"] + (x - left) / scale, box["y"] + (y - top) / scale

    def tap(self, x: float, y: float) -> None:
        at = self.point(x, y)
        (self.page.touchscreen.tap if self.touch else self.page.mouse.click)(*at)

    def mark_window(self) -> None:
        """Mark the cells of the window that are not marked yet."""
        name, index = self.image_id(), int(self.get("tile").get_attribute("data-subtile"))
        window = [(0, 0), (70, 0), (0, 70), (70, 70)][index]
        done = self.marked.setdefault(name, set())
        for number, (x, y) in enumerate(self.truth[name]):
            inside = all(start - 0.5 <= at < start + 79.5 for at, start in zip((x, y), window, strict=True))
            if inside and number not in done:
                self.tap(x, y)
                done.add(number)

    def finish_tile(self) -> None:
        while self.get("next-subtile").is_enabled():
            self.mark_window()
            self.get("next-subtile").click()
        self.get("done").click()

    def settle(self) -> None:
        """Wait until everything has been sent."""
        self.get("offline").wait_for(state="hidden")

    def stored(self, name: str) -> int:
        """Clicks of this person on an image that the server holds."""
        worker, assignment, tile = schema.worker, schema.assignment, schema.tile
        with self.site.database.read() as connection:
            return connection.execute(
                select(assignment.c.n_clicks)
                .join(worker, worker.c.id == assignment.c.worker_id)
                .join(tile, tile.c.id == assignment.c.tile_id)
                .where(worker.c.name == self.name, tile.c.image_id == name)
            ).scalar_one()

    def practise(self) -> None:
        assert self.image_id() == "p"
        self.finish_tile()
        feedback = self.page.locator("#feedback")
        feedback.wait_for()
        assert "6 of 6" in feedback.inner_text()
        self.get("done").click()
        self.wait_for_tile_other_than("p")

    def wait_for_tile_other_than(self, name: str) -> None:
        wait_until(lambda: self.get("thanks").is_visible() or self.image_id() != name)


@pytest.fixture
def person(browser, crowd):
    people = []

    def make(name: str, device: dict[str, Any] = DESK) -> Annotator:
        people.append(Annotator(browser, crowd, name, device))
        return people[-1]

    yield make
    for one in people:
        one.context.close()
        assert one.errors == []


def test_from_sign_up_to_ground_truth(person, crowd, tmp_path):
    """Three people on three devices click all cells; aggregated, their clicks are the cells."""
    site, _, truth = crowd
    for name, device in (("desk", DESK), ("phone", PHONE), ("tablet", TABLET)):
        one = person(name, device)
        one.sign_up()
        one.practise()
        assert one.image_id() == "qc"
        for done in range(3):
            name = one.image_id()
            one.finish_tile()
            if done < 2:
                one.wait_for_tile_other_than(name)
        one.get("thanks").wait_for()
        assert "3 images" in one.get("thanks").inner_text()
        one.settle()
    status = site_status(site)["projects"][0]
    assert (status["finished"], status["workers"], status["clicks"]) == (3, 3, 3 * 24)
    done = export_project(site, "cortex", tmp_path / "out")
    assert done.clicks == 72
    folder = tmp_path / "out"
    gt = aggregate(folder / "clicks.csv", tmp_path / "gt", tiles=folder / "tiles",
                   assignments=folder / "assignments.csv", qc=["qc"])  # fmt: skip
    assert gt.n_accepted == 24
    known = tmp_path / "cells.csv"
    rows = [f"{name},{x},{y}" for name in ("qc", "one", "two") for x, y in truth[name]]
    known.write_text("\n".join(["image_id,x,y", *rows]))
    found = tmp_path / "found.csv"
    lines = (tmp_path / "gt" / "points.csv").read_text().splitlines()
    kept = [",".join(line.split(",")[:3]) for line in lines[1:] if float(line.split(",")[4]) >= 0.5]
    found.write_text("\n".join(["image_id,x,y", *kept]))
    assert evaluate_files(found, known, tolerance_px=3).scores.f1 >= 0.95


@pytest.mark.parametrize("device", [DESK, PHONE], ids=["desk", "phone"])
def test_work_goes_on_without_a_connection_and_over_a_reload(person, crowd, device):
    truth = crowd[2]
    ann = person("Ann", device)
    ann.sign_up()
    ann.practise()
    first = ann.image_id()
    ann.mark_window()
    ann.settle()
    # The page is kept, and the next tile is there, before the network goes.
    ann.page.wait_for_function(
        "navigator.serviceWorker.controller && caches.open('pages').then(p => p.keys()).then(k => k.length)"
    )
    wait_until(lambda: ann.page.evaluate(TILES_AT_HAND) >= 2)
    ann.context.set_offline(True)
    ann.get("next-subtile").click()
    ann.mark_window()
    ann.get("offline").wait_for()
    ann.page.reload()
    ann.get("tile").wait_for()
    assert ann.image_id() == first
    assert ann.get("offline").is_visible()
    # Undo still knows what was done before the reload, and back again.
    before = ann.page.evaluate(MARKS_AT_HAND)
    assert before == len(ann.marked[first])
    while ann.get("next-subtile").is_enabled():
        ann.mark_window()
        ann.get("next-subtile").click()
    ann.get("done").click()
    # The next tile was there before it was needed.
    ann.wait_for_tile_other_than(first)
    second = ann.image_id()
    assert second != first
    ann.mark_window()
    ann.get("offline").wait_for()
    ann.context.set_offline(False)
    ann.settle()
    assert ann.stored(first) == len(truth[first]) == 8
    assert ann.stored(second) == len(ann.marked[second])
    assert ann.page.evaluate(MARKS_AT_HAND) == len(ann.marked[second])


PAGE_IS_KEPT = """() => navigator.serviceWorker.controller
  && caches.open("pages").then((pages) => pages.keys()).then((keys) => keys.length)"""
TILES_AT_HAND = """async () => {
  const {name} = (await indexedDB.databases())[0];
  const db = await new Promise((done) => { const r = indexedDB.open(name); r.onsuccess = () => done(r.result); });
  const found = await new Promise((done) => {
    const r = db.transaction("tiles").objectStore("tiles").getAll(); r.onsuccess = () => done(r.result); });
  db.close();
  return found.filter((tile) => tile.image && !tile.completed).length;
}"""
MARKS_AT_HAND = """async () => {
  const {name} = (await indexedDB.databases())[0];
  const token = document.getElementById("tile").dataset.tile;
  const db = await new Promise((done) => { const r = indexedDB.open(name); r.onsuccess = () => done(r.result); });
  const tile = await new Promise((done) => {
    const r = db.transaction("tiles").objectStore("tiles").get(token); r.onsuccess = () => done(r.result); });
  db.close();
  return tile.clicks.length;
}"""


def test_a_lost_answer_costs_no_second_click(person, crowd):
    """The request arrives, the answer does not: for single clicks, queues, windows and finished tiles."""
    ann = person("Ann")
    lost: list[str] = []

    def lose(route: Any) -> None:
        request = route.request
        kind = f"{request.method} {request.url.rsplit('/', 1)[-1] if 'complete' in request.url else ''}"
        if request.method == "GET" or lost.count(kind) >= 2:
            route.continue_()
            return
        lost.append(kind)
        route.fetch()  # the server has done it
        route.abort()  # and nobody hears of it

    ann.sign_up()
    ann.practise()
    name = ann.image_id()
    ann.page.route("**/api/tiles/**", lose)
    ann.finish_tile()
    ann.settle()
    assert len(lost) >= 4 and "POST complete" in lost
    assert ann.stored(name) == 8
    with ann.site.database.read() as connection:
        rows = (
            connection.execute(
                select(schema.click.c.id)
                .join(schema.assignment, schema.assignment.c.id == schema.click.c.assignment_id)
                .join(schema.tile, schema.tile.c.id == schema.assignment.c.tile_id)
                .where(schema.tile.c.image_id == name)
            )
            .scalars()
            .all()
        )
    assert len(rows) == len(set(rows)) == 8


def test_marks_are_added_moved_removed_and_brought_back(person):
    ann = person("Ann")
    ann.sign_up()
    name = ann.image_id()
    ann.tap(20, 20)
    ann.tap(40, 20)
    ann.tap(60, 20)
    ann.tap(40, 20)
    ann.settle()
    assert ann.stored(name) == 2
    start, end = ann.point(20, 20), ann.point(30, 35)
    ann.page.mouse.move(*start)
    ann.page.mouse.down()
    ann.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    ann.page.mouse.move(*end)
    ann.page.mouse.up()
    ann.settle()
    places = sorted(places_of(ann, name))
    assert np.allclose(places, [(30, 35), (60, 20)], atol=0.3)
    ann.get("undo").click()  # the move
    ann.get("undo").click()  # the removal
    ann.settle()
    assert np.allclose(sorted(places_of(ann, name)), [(20, 20), (40, 20), (60, 20)], atol=0.3)
    for _ in range(3):
        ann.get("undo").click()
    ann.settle()
    assert ann.stored(name) == 0
    assert ann.get("undo").is_disabled()


def places_of(person: Annotator, name: str) -> list[tuple[float, float]]:
    worker, assignment, tile, click = schema.worker, schema.assignment, schema.tile, schema.click
    with person.site.database.read() as connection:
        rows = connection.execute(
            select(click.c.x, click.c.y)
            .join(assignment, assignment.c.id == click.c.assignment_id)
            .join(worker, worker.c.id == assignment.c.worker_id)
            .join(tile, tile.c.id == assignment.c.tile_id)
            .where(worker.c.name == person.name, tile.c.image_id == name, click.c.deleted_at.is_(None))
        ).all()
    return [(row.x, row.y) for row in rows]


def test_a_cell_in_the_overlap_met_again_keeps_its_mark(person):
    """In two windows the same cell is shown: the second tap on it is no removal, the one after it is."""
    ann = person("Ann")
    ann.sign_up()
    name = ann.image_id()
    ann.tap(75, 20)
    ann.get("next-subtile").click()
    ann.tap(75, 20)
    ann.settle()
    assert ann.stored(name) == 1
    assert "another window" in ann.page.locator("#message").inner_text()
    ann.tap(75, 20)
    ann.settle()
    assert ann.stored(name) == 0


def test_all_of_it_works_with_keys_alone(person):
    ann = person("Ann")
    ann.sign_up()
    name, keys = ann.image_id(), ann.page.keyboard
    said = ann.page.locator("#said")
    assert ann.page.evaluate("document.activeElement.id") == "tile"
    for key in ["ArrowRight"] * 5 + ["ArrowDown"] * 2 + ["Shift+ArrowLeft", "Enter"]:
        keys.press(key)
    assert "Mark at 40, 44" in said.inner_text() and "1 marks" in said.inner_text()
    ann.settle()
    assert places_of(ann, name) == [(40, 44)]
    keys.press("Delete")
    ann.settle()
    assert ann.stored(name) == 0
    keys.press("Control+z")
    ann.settle()
    assert ann.stored(name) == 1
    keys.press("h")
    assert ann.page.locator("#hide").get_attribute("aria-pressed") == "true"
    keys.press("h")
    for _ in range(4):
        keys.press("n")
    # The last window leaves the focus on what comes next.
    assert ann.page.evaluate("document.activeElement.dataset.testid") == "done"
    keys.press("Enter")
    ann.page.locator("#feedback").wait_for()
    keys.press("Enter")
    ann.wait_for_tile_other_than("p")


def test_the_view_changes_and_nothing_that_is_stored(person):
    ann = person("Ann")
    ann.sign_up()
    tile, name = ann.get("tile"), ann.image_id()
    box = tile.bounding_box()
    before = float(tile.get_attribute("data-scale"))
    ann.page.mouse.move(box["x"] + 200, box["y"] + 200)
    ann.page.mouse.wheel(0, -400)
    wait_until(lambda: float(tile.get_attribute("data-scale")) < before * 0.7)
    ann.page.locator("summary", has_text="View").click()
    ann.page.locator("#brightness").fill("2")
    ann.page.locator("#contrast").fill("0.5")
    assert "brightness(2)" in ann.page.locator("#picture").get_attribute("style")
    ann.tap(33, 33)
    ann.settle()
    assert np.allclose(places_of(ann, name), [(33, 33)], atol=0.3)
    zoomed = float(tile.get_attribute("data-scale"))
    # The next window, and the next tile, keep the zoom.
    ann.get("next-subtile").click()
    assert float(tile.get_attribute("data-scale")) == pytest.approx(zoomed)
    ann.page.reload()
    tile.wait_for()
    assert float(tile.get_attribute("data-scale")) == pytest.approx(zoomed, rel=0.02)


def test_two_fingers_zoom_and_leave_no_mark(person):
    ann = person("Ann", PHONE)
    ann.sign_up()
    tile, name = ann.get("tile"), ann.image_id()
    before = float(tile.get_attribute("data-scale"))
    box = tile.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    client = ann.context.new_cdp_session(ann.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        at = [{"x": px, "y": py, "id": number} for number, (px, py) in enumerate(points)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    touch("touchStart", (x - 30, y))
    assert ann.page.locator("#loupe").is_visible()
    touch("touchStart", (x - 30, y), (x + 30, y))
    for step in range(1, 6):
        touch("touchMove", (x - 30 - 10 * step, y), (x + 30 + 10 * step, y))
    touch("touchEnd", (x - 80, y))
    touch("touchEnd")
    assert not ann.page.locator("#loupe").is_visible()
    assert float(tile.get_attribute("data-scale")) < before / 2
    ann.settle()
    assert ann.stored(name) == 0
    # One finger, held and moved: the mark is where it is lifted.
    ann.page.locator("summary", has_text="View").click()
    ann.page.locator("#reset-view").click()
    start, end = ann.point(30, 30), ann.point(40, 36)
    touch("touchStart", start)
    touch("touchMove", ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
    touch("touchMove", end)
    touch("touchEnd")
    ann.settle()
    assert np.allclose(places_of(ann, name), [(40, 36)], atol=0.5)


@pytest.mark.parametrize("device", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_moves_under_the_finger(person, device):
    """What appears while one works must not shift the picture."""
    ann = person("Ann", device)
    ann.sign_up()
    boxes = [ann.get("tile").bounding_box()]
    for x in (20, 30, 40):
        ann.tap(x, 20)
        boxes.append(ann.get("tile").bounding_box())
    ann.context.set_offline(True)
    ann.tap(50, 50)
    ann.page.locator("#offline.lost").wait_for()
    boxes.append(ann.get("tile").bounding_box())
    while ann.get("next-subtile").is_enabled():
        ann.get("next-subtile").click()
        boxes.append(ann.get("tile").bounding_box())
    assert all(box == boxes[0] for box in boxes)
    assert ann.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ann.context.set_offline(False)


def test_a_session_that_ended_keeps_the_marks_for_later(person, crowd):
    ann = person("Ann")
    ann.sign_up()
    name = ann.image_id()
    with ann.site.database.write() as connection:
        connection.execute(schema.session.delete())
    ann.tap(20, 20)
    ann.page.locator("#message").wait_for()
    assert "log in again" in ann.page.locator("#message").inner_text()
    ann.page.goto(ann.address)
    ann.get("log-in-name").fill("Ann")
    ann.get("log-in-password").fill(PASSWORD)
    ann.get("log-in-submit").click()
    ann.get("tile").wait_for()
    ann.settle()
    assert ann.stored(name) == 1


def test_one_persons_unsent_marks_are_never_sent_as_anothers(person):
    ann = person("Ann")
    ann.sign_up()
    name = ann.image_id()
    ann.page.route("**/api/tiles/**/clicks/**", lambda route: route.abort())
    ann.tap(20, 20)
    ann.page.locator("#offline.lost").wait_for()
    ann.page.locator(".menu summary").click()
    ann.page.locator("#log-out").click()
    ann.get("sign-up-name").wait_for()
    ann.page.unroute("**/api/tiles/**/clicks/**")
    ann.name = "Bob"
    ann.sign_up()
    ann.settle()
    assert ann.stored(name) == 0
    ann.page.locator(".menu summary").click()
    ann.page.locator("#log-out").click()
    ann.name = "Ann"
    ann.get("log-in-name").fill("Ann")
    ann.get("log-in-password").fill(PASSWORD)
    ann.get("log-in-submit").click()
    ann.get("tile").wait_for()
    ann.settle()
    assert ann.stored(name) == 1


def test_the_page_speaks_japanese(person):
    ann = person("花子")
    ann.page.goto(f"{ann.address}/?language=ja")
    assert ann.page.locator("html").get_attribute("lang") == "ja"
    ann.get("sign-up-name").fill("花子")
    ann.get("sign-up-password").fill(PASSWORD)
    ann.get("sign-up-consent").check()
    ann.get("sign-up-submit").click()
    ann.get("tile").wait_for()
    assert "練習" in ann.get("progress").inner_text()
    assert ann.get("next-subtile").inner_text() == "次の窓"
    with ann.site.database.read() as connection:
        assert connection.execute(select(schema.worker.c.language)).scalar_one() == "ja"


def test_what_the_account_page_gives_and_takes(person, crowd):
    ann = person("Ann")
    ann.sign_up()
    ann.tap(20, 20)
    ann.settle()
    ann.page.goto(f"{ann.address}/me")
    with ann.page.expect_download() as waiting:
        ann.page.get_by_role("link", name="Download everything").click()
    held = json.loads(waiting.value.path().read_text())
    assert len(held["tiles"][0]["clicks"]) == 1 and held["name"] == "Ann"
    ann.page.locator("summary", has_text="Delete my account").click()
    ann.get("delete-me").click()
    ann.get("sign-up-name").wait_for()
    with ann.site.database.read() as connection:
        assert connection.execute(select(schema.click.c.id)).all() == []


def contrast(first: str, second: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(
    ("ink", "ground"),
    [("ink", "ground"), ("ink", "panel"), ("ink", "raised"), ("soft", "ground"), ("soft", "panel"), ("soft", "raised"),
     ("accent", "ground"), ("accent-ink", "accent"), ("bad", "panel"), ("warn", "panel")],
)  # fmt: skip
def test_text_has_the_contrast_of_wcag_aa(ink, ground):
    import re

    from brainmap.crowd.web.pages import STATIC

    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", (STATIC / "style.css").read_text()))
    assert contrast(colours[ink], colours[ground]) >= 4.5


@pytest.mark.parametrize("path", ["/", "/work/cortex", "/projects", "/me"])
def test_controls_have_names_and_targets_are_large_enough(person, path):
    ann = person("Ann", PHONE)
    if path != "/":
        ann.sign_up()
    ann.page.goto(ann.address + path)
    ann.page.wait_for_load_state("networkidle")
    problems = ann.page.evaluate(
        """() => [...document.querySelectorAll("button, a, input, [role=application]")].flatMap((element) => {
          const box = element.getBoundingClientRect(), found = [];
          if (!box.width || element.tabIndex < 0) return [];
          const name = element.ariaLabel || element.textContent.trim() || element.title
            || (element.labels?.length ? element.labels[0].textContent.trim() : "");
          if (!name) found.push(`no name: ${element.outerHTML.slice(0, 80)}`);
          if (box.height < 24) found.push(`${box.height} px high: ${element.outerHTML.slice(0, 80)}`);
          return found;
        })"""
    )
    assert problems == []
    assert ann.page.evaluate("document.querySelectorAll('h1').length") == 1
    assert ann.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
