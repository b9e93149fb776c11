"""What workers do: clicks arrive once however often they are sent, tiles are shared out without overshoot."""

from __future__ import annotations

import threading
import uuid

import numpy as np
import pytest
from sqlalchemy import func, select

from brainmap.crowd.store import schema
from brainmap.crowd.web.app import create_app
from brainmap.crowd.work.export import export_project
from brainmap.crowd.work.progress import site_status
from brainmap.crowd.work.projects import ProjectSpec, add_project
from brainmap.crowd.work.subtiles import subtiles, window_of

from ..conftest import PASSWORD, Person, make_tiles, quick_passwords, sqlite_only


def image_ids(site, person):
    """Image ids in the order in which a person got them."""
    worker, assignment, tile = schema.worker, schema.assignment, schema.tile
    with site.database.read() as connection:
        rows = connection.execute(
            select(tile.c.image_id, tile.c.kind, assignment.c.completed_at)
            .join(assignment, assignment.c.tile_id == tile.c.id)
            .join(worker, worker.c.id == assignment.c.worker_id)
            .where(worker.c.name == person.name)
            .order_by(assignment.c.position)
        ).all()
    return [(row.image_id, row.kind) for row in rows]


@pytest.mark.parametrize(("height", "width"), [(500, 500), (150, 150), (80, 80), (60, 300), (161, 90)])
def test_subtiles_cover_every_pixel_once_or_in_the_overlap(height, width):
    seen = np.zeros((height, width), int)
    for x, y, w, h in subtiles(height, width):
        assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
        seen[y : y + h, x : x + w] += 1
    assert seen.min() == 1
    assert len(subtiles(500, 500)) == 49 and subtiles(500, 500)[1][:2] == (70, 0)
    assert window_of(75.0, 5.0, subtiles(500, 500)) == 0 and window_of(79.0, 5.0, subtiles(500, 500)) == 1


def test_a_click_is_new_once_and_known_ever_after(ann, site):
    tile = ann.next()
    id = str(uuid.uuid4())
    assert [ann.put(tile["tile"], 10, 20, id).status_code for _ in range(4)] == [201, 200, 200, 200]
    assert ann.put(tile["tile"], 12.5, 21, id.upper()).status_code == 200
    assert ann.next()["clicks"] == [{"id": id, "x": 12.5, "y": 21.0, "subtile": 0}]
    assert site_status(site)["projects"][0]["clicks"] == 1


def test_a_deletion_wins_over_whatever_comes_later(ann):
    tile = ann.next()["tile"]
    ids = [str(uuid.uuid4()) for _ in range(2)]
    url = f"/api/tiles/{tile}/clicks/"
    ann.put(tile, 1, 1, ids[0])
    for id in ids:
        # The second was deleted before its put arrived; and a deletion may be sent again.
        assert [ann.client.delete(url + id).status_code for _ in range(3)] == [204] * 3
        assert ann.put(tile, 5, 5, id).status_code == 200
    assert ann.next()["clicks"] == []


def test_a_queue_gets_one_result_for_each(ann):
    tile = ann.next()["tile"]
    a, b, c = (str(uuid.uuid4()) for _ in range(3))
    url = f"/api/tiles/{tile}/clicks"
    put = [{"id": a, "x": 1, "y": 2, "subtile": 0}, {"id": b, "x": 3, "y": 4}, {"id": c, "x": -9, "y": 4},
           {"id": "no uuid", "x": 1, "y": 1}]  # fmt: skip
    results = ann.client.post(url, json={"put": put, "delete": [a]}).json()["results"]
    assert [r["status"] for r in results] == [201, 201, 422, 422, 204]
    assert [r["id"] for r in results] == [a, b, c, "no uuid", a]
    again = ann.client.post(url, json={"put": put[:2], "delete": [a]}).json()["results"]
    assert [r["status"] for r in again] == [200, 200, 204]
    assert [click["id"] for click in ann.next()["clicks"]] == [b]


@pytest.mark.parametrize(
    "place",
    [
        (-0.6, 5),
        (5, -0.6),
        (149.6, 5),
        (5, 149.6),
        (150, 5),
        (1e300, 1),
        ("5", 5),
        (None, 5),
        (True, 5),
        (10**400, 5),
    ],
)
@sqlite_only
def test_places_outside_the_tile_are_refused(ann, place):
    tile = ann.next()["tile"]
    body = {"x": place[0], "y": place[1], "subtile": 0}
    answer = ann.client.put(f"/api/tiles/{tile}/clicks/{uuid.uuid4()}", json=body)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert ann.next()["clicks"] == []


@pytest.mark.parametrize("place", [(-0.5, -0.5), (0, 0), (149.5, 149.5), (74.25, 3)])
@sqlite_only
def test_places_up_to_the_rim_are_taken(ann, place):
    assert ann.put(ann.next()["tile"], *place).status_code == 201


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("2026-05-01T12:00:00Z", 1777636800), (1777636800, 1777636800), (1777636800123, 1777636800.123),
     ("2026-05-01T14:00:00+02:00", 1777636800)],
)  # fmt: skip
def test_the_clients_clock_is_understood(ann, site, given, seconds):
    ann.put(ann.next()["tile"], 1, 1, at=given)
    with site.database.read() as connection:
        assert connection.execute(select(schema.click.c.at)).scalar_one() == pytest.approx(seconds)


@pytest.mark.parametrize("bad", ["yesterday", [], -5, True, 1e20])
@sqlite_only
def test_a_time_that_is_none_is_refused(ann, bad):
    assert ann.put(ann.next()["tile"], 1, 1, at=bad).status_code == 422


@pytest.mark.parametrize("subtile", [-1, 4, 1.5, "0", True])
@sqlite_only
def test_a_subtile_that_is_none_is_refused(ann, subtile):
    assert ann.put(ann.next()["tile"], 1, 1, subtile=subtile).status_code == 422


def test_another_workers_tile_is_not_there(ann, bob):
    tile, id = ann.next(), str(uuid.uuid4())
    ann.put(tile["tile"], 9, 9, id)
    url = f"/api/tiles/{tile['tile']}"
    body = {"x": 1, "y": 1, "subtile": 0}
    answers = [
        bob.client.put(f"{url}/clicks/{id}", json=body),
        bob.client.delete(f"{url}/clicks/{id}"),
        bob.client.post(f"{url}/clicks", json={"put": [], "delete": [id]}),
        bob.client.put(f"{url}/subtiles/0", json={"done": True}),
        bob.client.post(f"{url}/complete"),
        bob.client.get(f"{url}/image"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert [click["x"] for click in ann.next()["clicks"]] == [9]


def test_two_workers_may_use_the_same_uuid(ann, bob):
    """A name made by one client says nothing about, and does nothing to, another's click."""
    id = str(uuid.uuid4())
    assert ann.put(ann.next()["tile"], 9, 9, id).status_code == 201
    assert bob.put(bob.next()["tile"], 5, 5, id).status_code == 201
    assert bob.client.delete(f"/api/tiles/{bob.next()['tile']}/clicks/{id}").status_code == 204
    assert len(ann.next()["clicks"]) == 1


def test_nobody_learns_which_tiles_are_quality_control(ann, bob, site):
    """QC tiles come first to everybody; nothing in the answers differs but what differs between any two tiles."""
    shapes, tokens = set(), set()
    for person in (ann, bob):
        for _ in range(6):
            tile = person.next()
            shapes.add(
                (
                    tuple(sorted(tile)),
                    len(tile["tile"]),
                    tile["hidden"],
                    tile["practice"],
                    len(tile["subtiles"]),
                )
            )
            tokens.add(tile["tile"])
            assert tile["image"] == f"/api/tiles/{tile['tile']}/image"
            image = person.client.get(tile["image"])
            assert not {"etag", "last-modified"} & set(image.headers)
            assert set(ann.finish(tile) if person is ann else bob.finish(tile)) == {"next"}
        assert [kind for _, kind in image_ids(site, person)[:2]] == ["qc", "qc"]
        assert "qc" not in person.client.get("/api/me/export").text
    assert len(shapes) == 1
    # No name of a tile is shared: workers who compare theirs learn nothing.
    assert len(tokens) == 12


@sqlite_only
def test_the_picture_is_the_tile(ann, site, tmp_path):
    import imagecodecs

    tile = ann.next()
    found = imagecodecs.png_decode(ann.client.get(tile["image"]).content)
    (name, _), *_ = image_ids(site, ann)
    assert (
        found == imagecodecs.png_decode((tmp_path / "tiles" / "images" / f"{name}.png").read_bytes())
    ).all()


def test_a_tile_is_finished_when_all_its_windows_were_seen(ann):
    tile = ann.next()
    url = f"/api/tiles/{tile['tile']}"
    ann.client.put(f"{url}/subtiles/2", json={"done": True})
    answer = ann.client.post(f"{url}/complete")
    assert answer.status_code == 409
    assert answer.json()["subtiles"] == [0, 1, 3]
    assert [w["done"] for w in ann.next()["subtiles"]] == [False, False, True, False]
    assert ann.client.put(f"{url}/subtiles/4", json={"done": True}).status_code == 404
    ann.look_through(tile)
    # The answer may be lost: finishing again is no harm.
    assert [ann.client.post(f"{url}/complete").json() for _ in range(2)] == [{"next": True}] * 2
    assert ann.next()["tile"] != tile["tile"]
    assert ann.client.get("/api/projects").json()[0]["tiles_done"] == 1


def test_clicks_that_arrive_after_the_tile_was_finished_are_kept(ann, site):
    """Another device of the same person was offline: its work is not thrown away."""
    tile = ann.next()
    ann.finish(tile, [(5, 5)])
    assert ann.put(tile["tile"], 8, 8).status_code == 201
    assert site_status(site)["projects"][0]["clicks"] == 2


def test_the_unfinished_tile_comes_back_and_the_one_behind_it_can_be_fetched(ann):
    tile = ann.next()
    assert ann.next()["tile"] == tile["tile"]
    ahead = ann.next(after=tile["tile"])
    assert ahead["tile"] != tile["tile"] and ahead["order"] == 2
    assert ann.next(after=tile["tile"])["tile"] == ahead["tile"]
    assert ann.next()["tile"] == tile["tile"]
    ann.finish(tile)
    assert ann.next()["tile"] == ahead["tile"]


def test_redundancy_is_met_and_not_exceeded(app, site):
    people = [Person(app) for _ in range(4)]
    done = [person.work_through() for person in people]
    # Two finish all six; for the others only quality control is left.
    assert done == [6, 6, 2, 2]
    assert site_status(site)["projects"][0]["finished"] == 6
    assert people[3].client.get("/api/projects").json()[0]["tiles_total"] == 2


def test_a_held_tile_is_offered_again_when_its_time_is_up(app, site, clock):
    people = [Person(app) for _ in range(3)]
    for person in people:
        for _ in range(2):
            person.finish(person.next())
    first, second, third = people
    held = [first.next(), second.next()]
    for person in (first, second):
        person.finish(person.next())
        while (tile := person.next()) is not None and len(image_ids(site, person)) < 6:
            person.finish(tile)
    # Both hold their last tile, and all the others are done: nothing is left for the third.
    assert third.next() is None
    assert held[0]["order"] == 3
    clock.pass_hours(1.1)
    late = third.next()
    assert late is not None
    third.finish(late)
    # Whoever comes back finds his tile taken, and hears of nothing to do; or finishes the other one.
    counts = []
    for person in (first, second):
        while (tile := person.next()) is not None:
            person.finish(tile)
    with site.database.read() as connection:
        counts = (
            connection.execute(select(schema.tile.c.n_completed).where(schema.tile.c.kind == "work"))
            .scalars()
            .all()
        )
    assert list(counts) == [2] * 4


def test_writing_renews_the_hold(ann, bob, site, clock):
    tile = ann.next()
    for _ in range(5):
        clock.pass_hours(0.9)
        assert ann.put(tile["tile"], 5, 5).status_code == 201
    with site.database.read() as connection:
        until = connection.execute(select(schema.assignment.c.held_until)).scalar_one()
    assert until > clock.now


def test_many_at_once_do_not_overshoot(app, site):
    """Eight people race for four tiles that two may have."""
    people = [Person(app) for _ in range(8)]
    for person in people:
        for _ in range(2):
            person.finish(person.next())
    got, lock = [], threading.Lock()

    def ask(person):
        tile = person.next()
        with lock:
            got.append((person, tile))

    threads = [threading.Thread(target=ask, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [image_ids(site, person)[2][0] for person, tile in got if tile is not None]
    assert len(held) == 8
    assert {name: held.count(name) for name in held} == dict.fromkeys(["one", "two", "three", "four"], 2)


def test_the_same_click_sent_at_once_by_many_threads_is_one(ann, site):
    tile, id, statuses = ann.next()["tile"], str(uuid.uuid4()), []
    threads = [
        threading.Thread(target=lambda: statuses.append(ann.put(tile, 5, 5, id).status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 7 + [201]
    assert site_status(site)["projects"][0]["clicks"] == 1


def test_data_sets_are_fixed_and_shared_out_evenly(empty_site, tmp_path):
    names = ["q", *(f"t{i}" for i in range(6))]
    make_tiles(tmp_path / "sets", names, qc=1, datasets=3)
    add_project(empty_site, ProjectSpec("cortex", tmp_path / "sets", redundancy=2))
    app = create_app(empty_site, passwords=quick_passwords(), scan=False)
    people = [Person(app) for _ in range(6)]
    for person in people:
        assert person.client.get("/api/projects").json()[0]["tiles_total"] == 3
        person.finish(person.next())
    assert [person.work_through() for person in people] == [2] * 6
    status = site_status(empty_site)["projects"][0]
    assert (status["finished"], status["answers"]) == (7, 6 + 12)


@sqlite_only
def test_orders_differ_between_workers(app, site):
    orders = set()
    for _ in range(8):
        person = Person(app)
        person.work_through(most=3)
        orders.add(tuple(name for name, _ in image_ids(site, person)[:2]))
    assert orders == {("qc a", "qc b"), ("qc b", "qc a")}


def test_practice_comes_first_with_feedback_and_is_never_exported(empty_site, tmp_path, truth):
    known = make_tiles(tmp_path / "practice", ["p"], seed=5)
    table = tmp_path / "known.csv"
    table.write_text("image_id,x,y\n" + "".join(f"p,{x},{y}\n" for x, y in known["p"]))
    spec = ProjectSpec("cortex", tmp_path / "tiles", redundancy=1, practice=(tmp_path / "practice", table))
    add_project(empty_site, spec)
    app = create_app(empty_site, passwords=quick_passwords(), scan=False)
    ann = Person(app, "Ann")
    tile = ann.next()
    assert tile["practice"] is True and tile["order"] == 1
    wrong = [(known["p"][0][0] + 20, known["p"][0][1])] if known["p"][0][0] < 120 else [(1.0, 1.0)]
    answer = ann.finish(tile, [*known["p"][:5], *wrong])
    marks = answer["practice"]
    assert sum(cell["found"] for cell in marks["cells"]) in (5, 6) and len(marks["cells"]) == 9
    assert len(marks["extra"]) + sum(cell["found"] for cell in marks["cells"]) == 6
    work = ann.next()
    assert work["practice"] is False and work["order"] == 1
    assert ann.work_through() == 6
    assert ann.client.get("/api/projects").json()[0]["tiles_done"] == 6
    export_project(empty_site, "cortex", tmp_path / "out")
    assert "\np," not in (tmp_path / "out" / "clicks.csv").read_text()
    assert (tmp_path / "out" / "assignments.csv").read_text().count("\n") == 7
    assert not (tmp_path / "out" / "tiles" / "images" / "p.png").exists()


def test_experts_use_up_no_redundancy_and_are_kept_apart(app, site, tmp_path):
    from brainmap.crowd.work.accounts import add_account

    add_account(site, "Expert", quick_passwords().hash(PASSWORD), role="expert")
    expert = Person(app, "Expert", sign_up=False)
    assert expert.log_in().status_code == 200
    assert expert.client.get("/api/projects/cortex/next").status_code == 403
    version = expert.client.get("/api/consent").json()["version"]
    assert expert.client.post("/api/consent", json={"consent": version}).status_code == 204
    assert expert.work_through(lambda tile: [(7, 7)]) == 6
    people = [Person(app) for _ in range(2)]
    assert [person.work_through() for person in people] == [6, 6]
    # Where the crowd has finished, an expert still gets every tile.
    status = site_status(site)["projects"][0]
    assert (status["workers"], status["clicks"], status["expert_clicks"]) == (2, 0, 6)
    export_project(site, "cortex", tmp_path / "out")
    assert (tmp_path / "out" / "clicks.csv").read_text().count("\n") == 1
    assert (tmp_path / "out" / "experts.csv").read_text().count("Expert") == 6


def test_a_paused_project_gives_no_tiles(ann, site):
    with site.database.write() as connection:
        connection.execute(schema.project.update().values(paused=True))
    assert ann.next() is None
    assert ann.client.get("/api/projects").json()[0]["paused"] is True


def test_counters_agree_with_what_is_stored(app, site):
    people = [Person(app) for _ in range(3)]
    for n, person in enumerate(people):
        person.work_through(lambda tile, n=n: [(5 + n, 5), (9, 60)], most=2 + n)
    assignment, click, tile = schema.assignment, schema.click, schema.tile
    with site.database.read() as connection:
        live = dict(
            connection.execute(
                select(click.c.assignment_id, func.count())
                .where(click.c.deleted_at.is_(None))
                .group_by(click.c.assignment_id)
            ).all()
        )
        for row in connection.execute(select(assignment)):
            assert row.n_clicks == live.get(row.id, 0)
        for row in connection.execute(select(tile)):
            done = select(func.count()).where(
                assignment.c.tile_id == row.id, assignment.c.completed_at.is_not(None), assignment.c.counts
            )
            assert row.n_completed == connection.execute(done).scalar_one()


@sqlite_only
def test_a_tile_takes_only_so_many_clicks(ann, site):
    tile = ann.next()["tile"]

    def send():
        many = [{"id": str(uuid.uuid4()), "x": 1, "y": 1} for _ in range(1000)]
        return ann.client.post(f"/api/tiles/{tile}/clicks", json={"put": many}).status_code

    codes = [send() for _ in range(6)]
    assert codes == [200] * 5 + [409]
    assert site_status(site)["projects"][0]["clicks"] == 5000
