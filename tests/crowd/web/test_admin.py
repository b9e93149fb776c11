"""Pages of administrators."""

from __future__ import annotations

import csv
import io
import time

import imagecodecs
import numpy as np
import pytest
from sqlalchemy import select

from brainmap.crowd.store import schema
from brainmap.crowd.store.backup import restore
from brainmap.crowd.work import accounts
from brainmap.crowd.work.export import export_project
from brainmap.crowd.work.projects import ProjectSpec, add_image, add_project, scan_project
from brainmap.tiles.detected import write_detected

from ..conftest import PASSWORD, Person, make_tiles, quick_passwords, sqlite_only


@pytest.fixture
def root(app, site):
    accounts.add_account(site, "Root", quick_passwords().hash(PASSWORD), role="admin")
    person = Person(app, "Root", sign_up=False)
    assert person.log_in().status_code == 200
    return person


def test_an_administrator_lands_on_the_projects(root, ann):
    ann.finish(ann.next(), [(5, 5)])
    answer = root.client.get("/")
    assert answer.url.path == "/admin"
    assert "Cells of the cortex" in answer.text and ">1</td>" in answer.text


def test_progress_by_worker_and_of_each_image(root, ann, bob):
    ann.work_through(lambda tile: [(5, 5), (9, 60)])
    bob.finish(bob.next())
    text = root.client.get("/admin/projects/cortex").text
    assert "12 clicks of 2 workers" in text
    for name in ("Ann", "Bob", "qc a", "quality control", "three"):
        assert name in text
    assert root.client.get("/admin/projects/nothing").status_code == 404


def test_the_tile_browser_shows_clicks_and_heat(root, ann, site):
    ann.work_through(lambda tile: [(40, 30)])
    tiles = root.client.get("/admin/projects/cortex/tiles").text
    assert tiles.count("1 finished, 1 clicks") == 6
    with site.database.read() as connection:
        number = connection.execute(
            select(schema.tile.c.id).where(schema.tile.c.image_id == "one")
        ).scalar_one()
    url = f"/admin/projects/cortex/tiles/{number}"
    assert "Ann" in root.client.get(url).text
    assert root.client.get(f"{url}/clicks").json() == [
        {"worker": "Ann", "role": "worker", "completed": True, "clicks": [[40.0, 30.0]]}
    ]
    assert imagecodecs.png_decode(root.client.get(f"{url}/image").content).shape == (150, 150)
    heat = imagecodecs.png_decode(root.client.get(f"{url}/heat").content)
    assert heat.shape == (150, 150, 4)
    assert heat[30, 40, 3] > 150 and heat[100, 100, 3] == 0


def test_the_detectors_cells_are_for_the_administrator(root, ann, site, tmp_path):
    tiles = tmp_path / "sampled"
    make_tiles(tiles, ["s1", "s2"])
    xy = np.array([[40.25, 30.5], [5.0, 6.0]])
    write_detected(tiles, np.array(["s2", "s2"], object), xy, np.array([0.75, 0.5], np.float32))
    add_project(site, ProjectSpec("sampled", tiles))
    image = imagecodecs.png_encode(np.zeros((150, 150), np.uint8))
    add_image(site, "sampled", "late", bytes(image))
    scan_project(site, "sampled")
    with site.database.read() as connection:
        number = dict(iter(connection.execute(select(schema.tile.c.image_id, schema.tile.c.id))))
    url = "/admin/projects/{}/tiles/{}/detected"
    detected = {name: url.format("sampled", number[name]) for name in ("s1", "s2", "late")}
    assert root.client.get(detected["s2"]).json() == [[40.25, 30.5, 0.75], [5.0, 6.0, 0.5]]
    assert root.client.get(detected["s1"]).json() == []
    assert root.client.get(detected["late"]).json() is None
    assert root.client.get(url.format("cortex", number["one"])).json() is None
    assert ann.client.get(detected["s2"]).status_code == 403


def test_downloads_are_the_export(root, ann, site, tmp_path):
    ann.work_through(lambda tile: [(5, 5)])
    export_project(site, "cortex", tmp_path / "out")
    for name in ("clicks.csv", "assignments.csv", "workers.csv", "experts.csv"):
        answer = root.client.get(f"/admin/projects/cortex/export/{name}")
        assert answer.text == (tmp_path / "out" / name).read_text()
        assert answer.headers["content-disposition"].endswith(f'"cortex-{name}"')
    assert (
        len(list(csv.reader(io.StringIO(root.client.get("/admin/projects/cortex/export/clicks.csv").text))))
        == 7
    )


def test_users_are_added_changed_and_removed(root, app, site):
    assert (
        root.client.post(
            "/admin/users", data={"name": "Eve", "password": PASSWORD, "role": "expert"}
        ).status_code
        == 200
    )
    eve = Person(app, "Eve", sign_up=False)
    assert eve.log_in().status_code == 200

    def number():
        with site.database.read() as connection:
            return connection.execute(
                select(schema.worker.c.id).where(schema.worker.c.name == "Eve")
            ).scalar()

    url = f"/admin/users/{number()}"
    assert root.client.post(f"{url}/role", data={"role": "emperor"}).status_code == 422
    assert root.client.post(f"{url}/role", data={"role": "worker"}).status_code == 200
    # Whatever changes, the sessions of before end.
    assert eve.client.get("/api/me").status_code == 401
    root.client.post(f"{url}/reset", data={"password": "another password"})
    assert eve.log_in().status_code == 401 and eve.log_in("another password").status_code == 200
    root.client.post(f"{url}/disable")
    assert eve.log_in("another password").status_code == 401
    root.client.post(f"{url}/enable")
    assert eve.log_in("another password").status_code == 200
    root.client.post(f"{url}/delete")
    assert number() is None
    assert root.client.post(f"{url}/delete").status_code == 404
    assert (
        root.client.post(
            "/admin/users", data={"name": "x", "password": PASSWORD, "role": "worker"}
        ).status_code
        == 422
    )
    assert "Root" in root.client.get("/admin/users").text


def test_a_project_is_paused_and_goes_on(root, ann):
    assert "is paused" in root.client.post("/admin/projects/cortex/pause").text
    assert ann.next() is None
    root.client.post("/admin/projects/cortex/resume")
    assert ann.next() is not None
    assert root.client.post("/admin/projects/cortex/explode").status_code == 404


@sqlite_only
def test_a_backup_is_made_listed_and_taken_home(root, ann, site, tmp_path):
    ann.work_through(lambda tile: [(5, 5)])
    page = root.client.post("/admin/backup").text
    (path,) = site.backups.glob("*.backup")
    assert path.name in page
    (tmp_path / "home.backup").write_bytes(root.client.get(f"/admin/backup/{path.name}").content)
    again = restore(tmp_path / "home.backup", tmp_path / "again")
    export_project(again, "cortex", tmp_path / "a")
    export_project(site, "cortex", tmp_path / "b")
    again.close()
    assert (tmp_path / "a" / "clicks.csv").read_text() == (tmp_path / "b" / "clicks.csv").read_text()


def test_the_analysis_runs_in_a_process_of_its_own(root, ann, bob, site, truth, monkeypatch):
    monkeypatch.setenv("BRAINMAP_CROWD_DATABASE", site.settings.database)
    names = {}
    with site.database.read() as connection:
        names = {row.id: row.image_id for row in connection.execute(select(schema.tile))}

    def cells(tile):
        with site.database.read() as connection:
            number = connection.execute(
                select(schema.assignment.c.tile_id).where(schema.assignment.c.token == tile["tile"])
            ).scalar_one()
        return truth[names[number]]

    for person in (ann, bob):
        person.work_through(cells)
    with root.client:
        assert "The analysis runs" in root.client.post("/admin/projects/cortex/analyse").text
        end = time.monotonic() + 240
        while "Analyse now" not in (text := root.client.get("/admin/projects/cortex").text):
            assert time.monotonic() < end
            time.sleep(1)
    assert "Agreement 1.00 on 54 cells" in text


@sqlite_only
def test_the_log_is_shown(root, ann):
    text = root.client.get("/admin/audit").text
    assert "account added" in text and "project added" in text


@sqlite_only
def test_people_get_a_page_and_programs_json_when_something_is_wrong(root, ann):
    people = {"Accept": "text/html,application/xhtml+xml"}
    for person, path, status, words in (
        (ann, "/nothing", 404, "There is no such page"),
        (root, "/admin/projects/nothing", 404, "There is no such page"),
        (ann, "/admin/projects/cortex/export/clicks.csv", 403, "This is for administrators only"),
    ):
        page = person.client.get(path, headers=people)
        assert page.status_code == status and words in page.text and "<h1>" in page.text
        assert list(person.client.get(path).json()) == ["error"]
    assert ann.client.get("/nothing", headers=people | {"Accept-Language": "ja"}).text.count(
        "ページが見つかりません"
    )
