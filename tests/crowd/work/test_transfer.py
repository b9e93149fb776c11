"""Export, import, backup, restore, scan: what leaves a site comes back the same."""

from __future__ import annotations

import csv
import shutil
import tarfile
import threading

import imagecodecs
import numpy as np
import pytest
from sqlalchemy import select

from brainmap.crowd.store import schema
from brainmap.crowd.store.backup import back_up, restore
from brainmap.crowd.store.formulas import neutral, original
from brainmap.crowd.store.site import Site, init_site
from brainmap.crowd.work.export import CLICK_COLUMNS, export_project
from brainmap.crowd.work.import_clicks import import_clicks
from brainmap.crowd.work.progress import site_status
from brainmap.crowd.work.projects import ProjectSpec, add_image, add_project, scan_project
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.clicks import read_clicks
from brainmap.gt.settings import GtSettings
from brainmap.tiles.tiles import Tiles

from ..conftest import Person, make_tiles, sqlite_only


def table(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def export_text(site, folder):
    """All of an export as text, for comparison."""
    export_project(site, "cortex", folder)
    return {path.name: path.read_text() for path in sorted(folder.glob("*.csv"))}


def test_the_export_is_what_gt_takes(app, site, truth, tmp_path):
    kinds = {}
    with site.database.read() as connection:
        kinds = {row.id: row.image_id for row in connection.execute(select(schema.tile))}

    def cells(tile):
        with site.database.read() as connection:
            number = connection.execute(
                select(schema.assignment.c.tile_id).where(schema.assignment.c.token == tile["tile"])
            ).scalar_one()
        return truth[kinds[number]]

    for name in ("Ann", "Bob"):
        Person(app, name).work_through(cells)
    done = export_project(site, "cortex", tmp_path / "out")
    assert (done.clicks, done.assignments, done.workers, done.tiles) == (2 * 6 * 9, 12, 2, 6)
    clicks = table(tmp_path / "out" / "clicks.csv")
    assert tuple(clicks[0]) == CLICK_COLUMNS
    assert {row["worker_id"] for row in clicks} == {"Ann", "Bob"}
    assert clicks[0]["timestamp"] == "2026-05-01T12:00:00.000Z"
    tiles = Tiles.open(tmp_path / "out" / "tiles")
    assert sorted(tiles.ids[tiles.columns["is_qc"]]) == ["qc a", "qc b"]
    assert tiles.columns["region_id"].tolist() == [315] * 6
    folder = tmp_path / "out"
    found = read_clicks(folder / "clicks.csv", tiles=folder / "tiles", assignments=folder / "assignments.csv")
    result = aggregate_clicks(found, GtSettings(), qc=["qc a", "qc b"])
    assert (len(found.image_ids), len(found.worker_ids)) == (6, 2)
    assert sum(int((image.posterior >= 0.5).sum()) for image in result.images) == 54


def test_a_tile_seen_without_a_click_is_in_the_assignments(ann, site, tmp_path):
    ann.finish(ann.next())
    ann.next()
    export_project(site, "cortex", tmp_path / "out")
    rows = table(tmp_path / "out" / "assignments.csv")
    assert sorted(row["completed"] for row in rows) == ["false", "true"]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "'", "'=x", "Ann", "", "a=b", "''x"]
)
def test_formulas_are_neutral_and_come_back(text):
    assert original(neutral(text)) == text
    assert neutral(text)[:1] not in {"=", "+", "-", "@", "\t", "\r"}


def test_an_import_is_exported_again_unchanged_and_twice_is_once(site, empty_site, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text(
        "image_id,worker_id,x,y,timestamp,subtile\n"
        'one,=cmd|calc,5.25,6,2026-01-01T00:00:00Z,0\none,0001,7,8,1767225600000,\n"two",0001,9,9,,1\n'
        "two,0001,9,9,,1\n"
    )
    first = import_clicks(site, "cortex", source)
    assert (first.clicks, first.workers, first.assignments) == (4, 2, 3)
    again = import_clicks(site, "cortex", source)
    assert (again.clicks, again.known, again.workers) == (0, 4, 0)
    before = export_text(site, tmp_path / "out")
    rows = table(tmp_path / "out" / "clicks.csv")
    assert {row["worker_id"] for row in rows} == {"'=cmd|calc", "0001"}
    assert {row["timestamp"] for row in rows} >= {"2026-01-01T00:00:00.000Z"}
    # What was exported can be imported into another project of the same tiles: names come back as they were.
    add_project(site, ProjectSpec("second", tmp_path / "tiles", redundancy=1))
    import_clicks(site, "second", tmp_path / "out" / "clicks.csv", tmp_path / "out" / "assignments.csv")
    with site.database.read() as connection:
        names = connection.execute(select(schema.worker.c.name)).scalars().all()
    assert sorted(names) == ["0001", "=cmd|calc"]
    assert export_text(site, tmp_path / "out") == before
    assert site_status(site)["projects"][0]["clicks"] == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image_id,worker_id,x\none,a,1\n", "needs a column 'y'"),
        ("image_id,worker_id,x,y\nnowhere,a,1,1\n", "no image 'nowhere'"),
        ("image_id,worker_id,x,y\none,a,1,999\n", "lies outside image"),
        ("image_id,worker_id,x,y\none,a,east,9\n", "no number"),
        ("image_id,worker_id,x,y\none,,1,9\n", "line 2"),
        ("image_id,worker_id,x,y\none,ANN,1,9\n", "name of an account"),
    ],
)
@sqlite_only
def test_an_import_that_cannot_be_is_no_import(ann, site, tmp_path, text, sentence):
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        import_clicks(site, "cortex", tmp_path / "in.csv")
    assert site_status(site)["projects"][0]["clicks"] == 0


@sqlite_only
def test_exports_of_what_is_not_there_say_so(site, tmp_path):
    with pytest.raises(NotFoundError, match="known are: cortex"):
        export_project(site, "hippocampus", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        export_project(site, "cortex", tmp_path / "file")


def fill(app):
    """Work of all kinds: finished, unfinished, deleted, by two people."""
    ann, bob = Person(app, "Ann"), Person(app, "Bob")
    ann.work_through(lambda tile: [(5, 5), (60, 80)], most=3)
    tile = bob.next()["tile"]
    bob.put(tile, 3, 3, "11111111-1111-4111-8111-111111111111")
    bob.put(tile, 4, 4)
    bob.client.delete(f"/api/tiles/{tile}/clicks/11111111-1111-4111-8111-111111111111")
    return ann, bob


@pytest.mark.parametrize("target", ["sqlite", "postgresql"])
def test_a_restored_site_exports_the_same(app, site, tmp_path, target, request):
    fill(app)
    before = export_text(site, tmp_path / "before")
    made = back_up(site, tmp_path / "site.backup")
    assert made.rows["click"] == 8 and "session" not in made.rows
    assert (tmp_path / "site.backup").stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="exists"):
        back_up(site, tmp_path / "site.backup")
    url = ""
    if target == "postgresql":
        url = new_database(request)
    again = restore(tmp_path / "site.backup", tmp_path / "restored", url)
    try:
        assert export_text(again, tmp_path / "after") == before
        assert site_status(again)["projects"] == site_status(site)["projects"]
        # Life goes on there: people log in anew, and new rows get new numbers.
        from brainmap.crowd.web.app import create_app

        from ..conftest import quick_passwords

        app = create_app(again, passwords=quick_passwords(), scan=False)
        ann = Person(app, "Ann", sign_up=False)
        assert ann.client.get("/api/me").status_code == 401
        assert ann.log_in().status_code == 200
        assert ann.work_through() == 3
        assert Person(app, "Carl").work_through(lambda tile: [(8, 8)], most=2) == 2
    finally:
        again.close()


def new_database(request):
    import uuid

    from sqlalchemy import create_engine, text

    server = request.getfixturevalue("postgres")
    name = f"restored_{uuid.uuid4().hex[:8]}"
    engine = create_engine(f"{server}/postgres".replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


def test_a_backup_under_load_is_one_moment(app, site, tmp_path):
    """While somebody clicks: every click in the backup belongs to an assignment in it, and counters agree."""
    ann = Person(app, "Ann")
    tile, stop, acknowledged = ann.next()["tile"], threading.Event(), []

    def click():
        while not stop.is_set():
            if ann.put(tile, 5, 5).status_code == 201:
                acknowledged.append(1)

    thread = threading.Thread(target=click)
    thread.start()
    try:
        least = len(acknowledged)
        made = back_up(site, tmp_path / "one.backup")
        most = len(acknowledged) + 1
    finally:
        stop.set()
        thread.join()
    assert least <= made.rows["click"] <= most
    again = restore(tmp_path / "one.backup", tmp_path / "again")
    with again.database.read() as connection:
        (n,) = connection.execute(select(schema.assignment.c.n_clicks)).scalars().all()
    assert n == made.rows["click"]
    again.close()
    # Wiped and restored: the same export.
    before = export_text(site, tmp_path / "before")
    back_up(site, tmp_path / "two.backup")
    again = restore(tmp_path / "two.backup", tmp_path / "third")
    assert export_text(again, tmp_path / "after") == before
    again.close()


@sqlite_only
def test_restoring_what_is_no_backup_leaves_nothing(site, tmp_path):
    (tmp_path / "no.backup").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no whole backup"):
        restore(tmp_path / "no.backup", tmp_path / "new")
    back_up(site, tmp_path / "good.backup")
    content = (tmp_path / "good.backup").read_bytes()
    (tmp_path / "half.backup").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        restore(tmp_path / "half.backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UsageError, match="not empty"):
        restore(tmp_path / "good.backup", site.folder)
    with pytest.raises(NotFoundError):
        restore(tmp_path / "none.backup", tmp_path / "new")


@sqlite_only
def test_a_backup_cannot_write_outside_the_site(site, tmp_path):
    back_up(site, tmp_path / "good.backup")
    with tarfile.open(tmp_path / "evil.backup", "w") as archive:
        with tarfile.open(tmp_path / "good.backup") as good:
            for entry in good:
                archive.addfile(entry, good.extractfile(entry) if entry.isfile() else None)
        (tmp_path / "evil.txt").write_text("evil")
        archive.add(tmp_path / "evil.txt", "../../evil.txt")
    with pytest.raises(DataError):
        restore(tmp_path / "evil.backup", tmp_path / "new")
    assert not (tmp_path.parent / "evil.txt").exists()


def test_new_images_are_found(app, site, tmp_path):
    from brainmap.crowd.web.app import scan_all

    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (90, 120), dtype=np.uint8)
    folder = site.tiles / "cortex" / "images"
    (folder / "more.png").write_bytes(imagecodecs.png_encode(image))
    (folder / "broken.png").write_bytes(imagecodecs.png_encode(image)[:200])
    (folder / "colour.png").write_bytes(imagecodecs.png_encode(np.dstack([image] * 3)))
    found = scan_project(site, "cortex")
    assert found.added == ("more",) and len(found.refused) == 2
    assert scan_project(site, "cortex").added == ()
    scan_all(site)
    (row,) = [row for row in tiles_of(site) if row.image_id == "more"]
    assert (row.height, row.width, row.kind) == (90, 120, "work")
    assert len(Tiles.open(site.tiles / "cortex")) == 7
    # Somebody gets it, and it is exported.
    assert Person(app, "Ann").work_through() == 7
    assert export_project(site, "cortex", tmp_path / "out").tiles == 7


def tiles_of(site):
    with site.database.read() as connection:
        return connection.execute(select(schema.tile)).all()


@sqlite_only
def test_an_uploaded_image_loses_everything_but_its_pixels(site):
    image = np.zeros((50, 50), np.uint8)
    plain = imagecodecs.png_encode(image)
    import struct
    import zlib

    text = b"tEXt" + b"Comment\0quality control"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    add_image(site, "cortex", "upload", plain[:33] + chunk + plain[33:])
    assert b"quality" not in (site.tiles / "cortex" / "images" / "upload.png").read_bytes()
    with pytest.raises(UsageError, match="already"):
        add_image(site, "cortex", "upload", plain)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "", "a\0b", "a\\b"])
@sqlite_only
def test_an_upload_cannot_choose_its_place(site, name):
    with pytest.raises(DataError):
        add_image(site, "cortex", name, imagecodecs.png_encode(np.zeros((9, 9), np.uint8)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "a b"}, "part of URLs"),
        ({"name": "../x"}, "part of URLs"),
        ({"redundancy": 0}, "at least one"),
        ({"redundancy": 3, "until_certain": True}, "either"),
        ({"languages": ("en", "fr")}, "unknown language"),
    ],
)
def test_projects_that_cannot_be(tmp_path, change, sentence):
    with pytest.raises(UsageError, match=sentence):
        ProjectSpec(**{"name": "x", "tiles": tmp_path, **change})


@sqlite_only
def test_a_project_is_added_once_or_not_at_all(site, tmp_path):
    with pytest.raises(UsageError, match="already"):
        add_project(site, ProjectSpec("cortex", tmp_path / "tiles"))
    with pytest.raises(NotFoundError):
        add_project(site, ProjectSpec("other", tmp_path / "nowhere"))
    assert not (site.tiles / "other").exists()
    # Practice on a tile of the project would show the answer to what is asked.
    known = tmp_path / "known.csv"
    known.write_text("image_id,x,y\none,1,1\n")
    with pytest.raises(DataError, match="other tiles for practice"):
        add_project(site, ProjectSpec("other", tmp_path / "tiles", practice=(tmp_path / "tiles", known)))
    assert not (site.tiles / "other").exists()
    make_tiles(tmp_path / "odd", ["-1"])
    with pytest.raises(DataError, match="formula"):
        add_project(site, ProjectSpec("odd", tmp_path / "odd"))


def test_a_site_is_made_once(tmp_path):
    init_site(tmp_path / "s", "", {}).close()
    with pytest.raises(UsageError, match="already"):
        init_site(tmp_path / "s", "", {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        init_site(tmp_path / "full", "", {})
    with pytest.raises(NotFoundError, match="no crowd site"):
        Site.open(tmp_path / "nowhere", {})
    with pytest.raises(UsageError, match="PostgreSQL URL"):
        init_site(tmp_path / "m", "mysql://x/y", {})
    with pytest.raises(DataError, match="does not answer"):
        init_site(tmp_path / "m", "postgresql://nobody@127.0.0.1:1/none", {})
    assert not (tmp_path / "m").exists()
    shutil.rmtree(tmp_path / "s")
