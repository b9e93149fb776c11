"""Attacks, each of which must be refused, and do nothing."""

from __future__ import annotations

import io
import json
import re
import statistics
import time
import uuid
from urllib.parse import quote

import imagecodecs
import numpy as np
import pytest
from sqlalchemy import select

from brainmap.crowd.store import schema
from brainmap.crowd.store.settings import Rates, read_secret, read_site_settings
from brainmap.crowd.web.app import create_app
from brainmap.crowd.web.serve import check_exposure
from brainmap.crowd.work import accounts
from brainmap.crowd.work.passwords import Passwords
from brainmap.errors import UsageError
from brainmap.web.guards import CONTENT_SECURITY_POLICY

from ..conftest import ORIGIN, PASSWORD, Person, quick_passwords


@pytest.fixture
def database():
    """Attacks meet the application before they meet a database: one will do, but for the log's own test."""
    return ""


@pytest.fixture
def root(app, site):
    """An administrator."""
    accounts.add_account(site, "Root", quick_passwords().hash(PASSWORD), role="admin")
    person = Person(app, "Root", sign_up=False)
    assert person.log_in().status_code == 200
    return person


def snapshot(site):
    """All that attacks could change: every table but the log."""
    with site.database.read() as connection:
        return {
            table.name: [
                tuple(
                    value for name, value in row._mapping.items() if name not in ("last_seen", "held_until")
                )
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in schema.metadata.sorted_tables
            if table.name != "audit"
        }


# ---- cross-site ---------------------------------------------------------------------------------------------

FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},
    {"Sec-Fetch-Site": "bogus"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": "https://127.0.0.1:8000"},
    {"Origin": "http://127.0.0.1:8000.evil.example"},
]
UNSAFE = [
    ("POST", "/api/account"), ("POST", "/api/session"), ("DELETE", "/api/session"), ("DELETE", "/api/me"),
    ("PUT", "/api/tiles/{tile}/clicks/{id}"), ("DELETE", "/api/tiles/{tile}/clicks/{id}"),
    ("POST", "/api/tiles/{tile}/clicks"), ("PUT", "/api/tiles/{tile}/subtiles/0"),
    ("POST", "/api/tiles/{tile}/complete"), ("POST", "/api/consent"), ("POST", "/admin/users"),
    ("POST", "/admin/projects/cortex/pause"), ("POST", "/admin/backup"),
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda h: " ".join(f"{k}={v}" for k, v in h.items()))
def test_changes_from_elsewhere_are_refused(ann, site, headers):
    tile, id = ann.next()["tile"], uuid.uuid4()
    before = snapshot(site)
    for method, url in UNSAFE:
        answer = ann.client.request(
            method, url.format(tile=tile, id=id), json={"x": 1, "y": 1}, headers=headers
        )
        assert answer.status_code == 403, (method, url)
    assert snapshot(site) == before


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": ORIGIN}, {},
     {"Sec-Fetch-Site": "same-origin", "Origin": ORIGIN}],
)  # fmt: skip
def test_changes_from_the_page_and_from_programs_are_taken(ann, headers):
    tile = ann.next()["tile"]
    url = f"/api/tiles/{tile}/clicks/{uuid.uuid4()}"
    assert ann.client.put(url, json={"x": 1, "y": 1}, headers=headers).status_code == 201


@pytest.mark.parametrize("site_of_request", ["cross-site", "same-site"])
def test_reading_by_link_works_from_anywhere(ann, site_of_request):
    assert ann.client.get("/", headers={"Sec-Fetch-Site": site_of_request}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_a_form_of_another_site_cannot_pass_for_json(ann, kind):
    """Those are the types a page may send elsewhere without asking."""
    tile = ann.next()["tile"]
    answer = ann.client.put(
        f"/api/tiles/{tile}/clicks/{uuid.uuid4()}",
        content=b'{"x": 1, "y": 1}',
        headers={"Content-Type": kind},
    )
    assert answer.status_code == 415


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"])
def test_a_method_cannot_be_smuggled(ann, site, header):
    before = snapshot(site)
    for value in ("DELETE", "PUT", "POST"):
        ann.client.get("/api/me", headers={header: value})
        ann.client.get("/api/me?_method=DELETE", headers={header: value})
    assert snapshot(site) == before


# ---- the host ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "127.0.0.1@evil.example", "", "[::2]:8000",
     "localhost.evil.example", "[bad"],
)  # fmt: skip
def test_a_forged_host_is_refused(ann, host):
    assert ann.client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"])
def test_the_own_host_is_served(ann, host):
    assert ann.client.get("/healthz", headers={"Host": host}).status_code == 200


# ---- others' work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url"),
    [("GET", "image"), ("PUT", "clicks/{id}"), ("DELETE", "clicks/{id}"), ("POST", "clicks"), ("PUT", "subtiles/0"),
     ("POST", "complete")],
)  # fmt: skip
def test_a_foreign_tile_is_as_absent_as_one_that_does_not_exist(ann, bob, site, method, url):
    tile, id = ann.next()["tile"], str(uuid.uuid4())
    ann.put(tile, 5, 5, id)
    before = snapshot(site)
    bodies = {"json": {"x": 1, "y": 1, "done": True, "put": [], "delete": [id]}} if method != "GET" else {}
    answers = [
        bob.client.request(method, f"/api/tiles/{name}/{url.format(id=id)}", **bodies)
        for name in (tile, "nothing", tile[:-1], tile.upper())
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1
    assert snapshot(site)["click"] == before["click"]


@pytest.mark.parametrize(
    "url",
    ["/api/projects", "/api/projects/cortex/next", "/api/me", "/api/me/export", "/api/tiles/x/image",
     "/admin/projects/cortex/export/clicks.csv", "/admin/projects/cortex/tiles/1/clicks"],
)  # fmt: skip
def test_nothing_without_a_session(app, url):
    stranger = Person(app, sign_up=False)
    assert stranger.client.get(url).status_code == 401
    stranger.client.cookies["brainmap"] = "x" * 43
    assert stranger.client.get(url).status_code == 401


ADMIN = [
    ("GET", "/admin"), ("GET", "/admin/users"), ("GET", "/admin/audit"), ("GET", "/admin/projects/cortex"),
    ("GET", "/admin/projects/cortex/tiles"), ("GET", "/admin/projects/cortex/tiles/1"),
    ("GET", "/admin/projects/cortex/tiles/1/clicks"), ("GET", "/admin/projects/cortex/tiles/1/heat"),
    ("GET", "/admin/projects/cortex/tiles/1/detected"),
    ("GET", "/admin/projects/cortex/tiles/1/image"), ("GET", "/admin/projects/cortex/export/clicks.csv"),
    ("POST", "/admin/users"), ("POST", "/admin/users/1/role"), ("POST", "/admin/users/1/reset"),
    ("POST", "/admin/users/1/delete"), ("POST", "/admin/backup"), ("POST", "/admin/projects/cortex/pause"),
    ("POST", "/admin/projects/cortex/upload"), ("POST", "/admin/projects/cortex/analyse"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "url"), ADMIN)
@pytest.mark.parametrize("role", ["worker", "expert"])
def test_what_is_for_administrators_is_for_nobody_else(ann, site, method, url, role):
    with site.database.write() as connection:
        connection.execute(schema.worker.update().values(role=role))
    before = snapshot(site)
    form = {"name": "Evil", "password": PASSWORD, "role": "admin"}
    answer = ann.client.request(method, url, **({"data": form} if method == "POST" else {}))
    assert answer.status_code == 403
    assert snapshot(site) == before
    assert list(site.backups.iterdir()) == []


def test_a_role_cannot_be_chosen_at_sign_up(app, site):
    assert Person(app, "Ann", sign_up=False).sign_up(role="admin", id=1, disabled=False).status_code == 201
    assert snapshot(site)["worker"][0][4] == "worker"


def test_an_administrator_cannot_lock_himself_out(root, site):
    number = snapshot(site)["worker"][0][0]
    for action in ("role", "disable", "delete"):
        answer = root.client.post(f"/admin/users/{number}/{action}", data={"role": "worker"})
        assert answer.status_code == 409
    assert root.client.get("/admin").status_code == 200


# ---- sessions ------------------------------------------------------------------------------------------------


def test_a_planted_session_is_not_adopted(app, site):
    """Fixation: whatever token a browser brings, log-in gives another."""
    planted = "A" * 43
    victim = Person(app, "Ann", sign_up=False)
    consent = victim.client.get("/api/consent").json()["version"]
    body = {"name": "Ann", "password": PASSWORD, "consent": consent}
    answer = victim.client.post("/api/account", json=body, headers={"Cookie": f"brainmap={planted}"})
    assert answer.status_code == 201 and planted not in answer.headers["set-cookie"]
    stranger = Person(app, sign_up=False)
    stranger.client.cookies["brainmap"] = planted
    assert stranger.client.get("/api/me").status_code == 401


def test_a_session_cannot_be_replayed_after_log_out(ann, app):
    token = ann.client.cookies["brainmap"]
    ann.client.delete("/api/session")
    stranger = Person(app, sign_up=False)
    stranger.client.cookies["brainmap"] = token
    assert stranger.client.get("/api/me").status_code == 401


def test_what_is_in_the_database_opens_no_session(ann, app, site):
    (row,) = snapshot(site)["session"]
    stranger = Person(app, sign_up=False)
    stranger.client.cookies["brainmap"] = row[0]
    assert stranger.client.get("/api/me").status_code == 401


@pytest.mark.parametrize("token", ["", " ", "'", "x" * 5000, "' OR '1'='1", "%00", "a;b", "null"])
def test_tokens_that_are_none(ann, token):
    ann.client.cookies.clear()
    answer = ann.client.get("/api/me", headers={"Cookie": f"brainmap={token}"})
    assert answer.status_code == 401


def test_a_replayed_request_changes_nothing(ann, site):
    tile, id = ann.next()["tile"], str(uuid.uuid4())
    ann.put(tile, 5, 5, id)
    before = snapshot(site)["click"]
    assert ann.put(tile, 5, 5, id).status_code == 200
    assert snapshot(site)["click"] == before


# ---- guessing ------------------------------------------------------------------------------------------------


def test_passwords_cannot_be_tried_without_end(app, site, ann):
    thief = Person(app, "Ann", sign_up=False)
    codes = [thief.log_in(f"wrong password {n}").status_code for n in range(12)]
    assert codes == [401] * 10 + [429] * 2
    answer = thief.log_in()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1 and list(answer.json()) == ["error", "retry_after"]
    # Other people behind the same address still get in.
    assert Person(app, "Bob").log_in().status_code == 200


def test_case_and_width_do_not_make_new_tries(app, ann):
    codes = []
    for n in range(12):
        thief = Person(app, ["Ann", "ANN", "ann ", "Ａnn"][n % 4], sign_up=False)
        codes.append(thief.log_in("wrong password").status_code)
    assert codes[-2:] == [429, 429]


def test_a_forged_address_does_not_make_new_tries(app, ann):
    codes = []
    for n in range(12):
        answer = ann.client.post(
            "/api/session", json={"name": "Ann", "password": "wrong password"},
            headers={"X-Forwarded-For": f"10.0.0.{n}", "X-Real-IP": f"10.0.0.{n}", "Forwarded": f"for=10.0.0.{n}"},
        )  # fmt: skip
        codes.append(answer.status_code)
    assert codes[-2:] == [429, 429]


def test_many_names_from_one_address_end_too(site):
    app = create_app(replaced(site, log_in_address="20/minute"), passwords=quick_passwords(), scan=False)
    codes = [Person(app, f"nobody {n}", sign_up=False).log_in().status_code for n in range(22)]
    assert codes == [401] * 20 + [429] * 2


def replaced(site, **rates):
    import dataclasses

    return dataclasses.replace(site, settings=dataclasses.replace(site.settings, rates=Rates(**rates)))


@pytest.mark.parametrize(
    ("rate", "attempt"),
    [("sign_up_address", lambda app, person: Person(app, sign_up=False).sign_up()),
     ("write_account", lambda app, person: person.put(person.tile, 5, 5)),
     ("write_address", lambda app, person: person.put(person.tile, 5, 5)),
     ("read_account", lambda app, person: person.client.get("/api/me")),
     ("export_account", lambda app, person: person.client.get("/api/me/export"))],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_nobody_may_do_anything_without_end(site, rate, attempt):
    app = create_app(replaced(site, **{rate: "5/hour"}), passwords=quick_passwords(), scan=False)
    person = Person(app, "Ann")
    person.tile = person.next()["tile"]
    assert 429 in [attempt(app, person).status_code for _ in range(8)]


def test_wrong_names_and_wrong_passwords_look_and_last_the_same(site):
    """With the real hash: a name that does not exist costs as much as one that does."""
    passwords = Passwords()
    accounts.add_account(site, "Ann", passwords.hash(PASSWORD))
    app = create_app(
        replaced(site, log_in_account="1000/minute", log_in_name="1000/minute"),
        passwords=passwords,
        scan=False,
    )
    times = {"Ann": [], "Nobody": []}
    texts = set()
    for _ in range(7):
        for name, taken in times.items():
            person = Person(app, name, sign_up=False)
            start = time.process_time()
            answer = person.log_in("wrong password")
            taken.append(time.process_time() - start)
            texts.add((answer.status_code, answer.text, "set-cookie" in answer.headers))
    assert len(texts) == 1
    known, unknown = (statistics.median(taken) for taken in times.values())
    assert abs(known - unknown) < 0.25 * max(known, unknown)


def test_a_rush_of_log_ins_does_not_stop_the_clicks(site):
    """Hashing has threads of its own: clicks never wait for it."""
    from concurrent.futures import ThreadPoolExecutor

    from pwdlib import PasswordHash
    from pwdlib.hashers.argon2 import Argon2Hasher

    class Slow:
        hasher = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64, parallelism=1),))

        def hash(self, password):
            return self.hasher.hash(password)

        def verify_and_update(self, password, known):
            time.sleep(0.3)
            return self.hasher.verify_and_update(password, known)

    app = create_app(site, passwords=Passwords(Slow()), scan=False)
    ann = Person(app, "Ann")
    tile = ann.next()["tile"]
    with ann.client, ThreadPoolExecutor(30) as pool:
        rush = [
            pool.submit(ann.client.post, "/api/session", json={"name": f"n{n}", "password": PASSWORD})
            for n in range(30)
        ]
        start = time.monotonic()
        assert ann.put(tile, 5, 5).status_code == 201
        waited = time.monotonic() - start
        assert {answer.result().status_code for answer in rush} == {401}
    # Fifteen rounds of 0.3 s stand in the queue for hashes.
    assert waited < 3


# ---- bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * 600_000, 413), (b'{"a": "' + b"x" * 600_000 + b'"}', 413), (b"[" * 100_000, 422),
        (b'{"x":' * 5000 + b"1" + b"}" * 5000, 422), (b"", 415), (b"nothing", 400), (b"[1, 2]", 422), (b'"x"', 422),
        (b'{"x": NaN, "y": 1}', 400), (b'{"x": Infinity, "y": 1}', 400), (b'{"x": 1, "x": 2, "y": 1}', 400),
        (b'\xff\xfe{"x": 1}', 400), (b'{"x": 1e999, "y": 1}', 422), (b'{"x": ' + b"9" * 5000 + b', "y": 1}', 400),
        (b'{"x": {"$gt": 0}, "y": 1}', 422), (b'{"x": [1], "y": 1}', 422), (b"{", 400), (b"null", 422),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else str(value),
)  # fmt: skip
def test_bodies_that_are_none(ann, site, body, status):
    tile = ann.next()["tile"]
    url = f"/api/tiles/{tile}/clicks/{uuid.uuid4()}"
    headers = {"Content-Type": "application/json"} if body else {}
    answer = ann.client.put(url, content=body, headers=headers)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)
    assert snapshot(site)["click"] == []


def test_a_body_without_a_stated_length_ends_where_too_much_is_too_much(ann):
    def endless():
        for _ in range(100):
            yield b"x" * 10_000

    answer = ann.client.post("/api/session", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_queue_has_an_end(ann):
    tile = ann.next()["tile"]
    many = [str(uuid.uuid4()) for _ in range(1001)]
    assert ann.client.post(f"/api/tiles/{tile}/clicks", json={"put": [], "delete": many}).status_code == 422


@pytest.mark.parametrize(
    "id", ["1", "x", "..", "00000000-0000-0000-0000-00000000000g", "1' OR 1=1", "%00", "{}" * 20]
)
def test_names_of_clicks_that_are_none(ann, site, id):
    tile = ann.next()["tile"]
    answer = ann.client.put(f"/api/tiles/{tile}/clicks/{id}", json={"x": 1, "y": 1})
    assert answer.status_code in (404, 405, 422)
    assert snapshot(site)["click"] == []


# ---- paths, SQL and script -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/static/../crowd.toml", "/static/x/..%2f..%2fpages.py", "/static/x/%2e%2e/sw.js", "/static/x/sw.js",
     "/static/x/pages.py", "/static//etc/passwd", "/static/x/..\\..\\secret", "/admin/backup/..%2fcrowd.toml",
     "/admin/backup/secret", "/admin/projects/..%2f..%2f", "/admin/projects/cortex/export/..%2fworkers.csv",
     "/admin/projects/cortex/export/passwords", "/admin/projects/cortex/tiles/99999999999999999999",
     "/admin/projects/cortex/tiles/-1", "/work/..%2fadmin", "/crowd.toml", "/secret", "/.git/config", "/tiles/cortex"],
)  # fmt: skip
def test_paths_lead_nowhere_else(root, site, path):
    answer = root.client.get(path, follow_redirects=False)
    assert answer.status_code in (404, 405)
    assert site.secret.decode() not in answer.text


@pytest.mark.parametrize(
    "name", ["cortex' OR '1'='1", "cortex'; DROP TABLE click; --", 'cortex" OR ""="', "%", "_ortex"]
)
def test_sql_is_text(ann, site, name):
    tile = ann.next()["tile"]
    ann.put(tile, 5, 5)
    before = snapshot(site)
    assert ann.client.get(f"/api/projects/{quote(name)}/next").status_code == 404
    assert ann.client.get("/api/projects/cortex/next", params={"after": name}).status_code == 200
    assert Person(ann.client.app, name, sign_up=False).log_in().status_code == 401
    assert snapshot(site) == before


@pytest.mark.parametrize(
    "words",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7*7 }}",
        "</script><script>",
        "&lt;b&gt;",
    ],
)
def test_script_is_text_on_every_page(root, site, words):
    """Names cannot hold it at sign-up; were it in the database all the same, pages show it as text."""
    with site.database.write() as connection:
        connection.execute(schema.worker.update().values(name=words))
        connection.execute(schema.project.update().values(title=words))
    consent = root.client.get("/api/consent").json()["version"]
    root.client.post("/api/consent", json={"consent": consent})
    root.next()
    for url in ("/admin", "/admin/users", "/admin/projects/cortex", "/admin/projects/cortex/tiles", "/me",
                "/projects", "/work/cortex", f"/admin?notice={words}"):  # fmt: skip
        answer = root.client.get(url)
        assert answer.status_code == 200, url
        assert "<img src=x" not in answer.text and "<script>" not in answer.text
        # What looks like an entity is escaped once more, what looks like a template is not filled in.
        assert "&lt;b&gt;" not in answer.text.replace("&amp;lt;b&amp;gt;", "")
        assert ">49<" not in answer.text


def test_pages_hold_no_code_and_may_not(root, ann):
    pages = [
        Person(ann.client.app, sign_up=False).client.get("/"),
        ann.client.get("/"),
        ann.client.get("/me"),
    ]
    pages += [root.client.get(url) for url in ("/admin", "/admin/users", "/admin/projects/cortex")]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert policy == CONTENT_SECURITY_POLICY and "unsafe" not in policy and "*" not in policy
        assert not re.search(r"\son\w+=|javascript:|<style|style=", page.text)
        for script in re.findall(r"<script[^>]*>", page.text):
            assert "src=" in script or 'type="application/json"' in script


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-content-type-options", "nosniff"), ("x-frame-options", "DENY"), ("referrer-policy", "same-origin"),
     ("cross-origin-opener-policy", "same-origin"), ("cross-origin-resource-policy", "same-origin"),
     ("cache-control", "no-store")],
)  # fmt: skip
def test_browsers_are_told_to_be_careful(ann, name, value):
    for url in ("/", "/api/me", "/api/nothing", "/healthz"):
        assert ann.client.get(url).headers[name] == value


def test_what_the_crowd_can_see_says_nothing_about_others_or_the_detector(ann, bob):
    bob.finish(bob.next(), [(5, 5)])
    ann.finish(ann.next(), [(9, 9)])
    seen = "".join(
        ann.client.get(url).text
        for url in ("/api/projects", "/api/projects/cortex/next", "/api/me", "/api/me/export", "/work/cortex")
    )
    # Random names of tiles may hold any letters.
    seen = re.sub(r"(?<![\w-])[\w-]{22}(?![\w-])", "", seen)
    for word in ("Bob", "qc", "redundancy", "posterior", "sensitivity", "n_completed", "image_id", "score"):
        assert word not in seen


# ---- the log, secrets, exposure ------------------------------------------------------------------------------


def test_the_log_names_nobody(app, site):
    person = Person(app, "A very special name")
    person.log_in()
    person.log_in("wrong password")
    person.client.delete("/api/session")
    with site.database.read() as connection:
        entries = connection.execute(select(schema.audit)).all()
    everything = json.dumps([[str(value) for value in row] for row in entries])
    assert "special" not in everything and "testclient" not in everything and PASSWORD not in everything
    assert {row.action for row in entries} >= {
        "account added",
        "consent",
        "log-in",
        "log-in refused",
        "log-out",
    }
    # The same address leaves the same trace: that is enough to see an attack.
    assert len({row.address for row in entries if row.action.startswith("log-in")}) == 1


def test_trespass_is_noted(ann, site):
    ann.client.get("/admin")
    with site.database.read() as connection:
        last = connection.execute(select(schema.audit).order_by(schema.audit.c.id.desc())).first()
    assert last.action == "refused" and "/admin" in last.detail


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "cells.example.org"])
@pytest.mark.parametrize("url", ["", "http://cells.example.org"])
def test_serving_others_needs_https(host, url):
    with pytest.raises(UsageError, match="--insecure"):
        check_exposure(host, url, insecure=False)
    check_exposure(host, "https://cells.example.org", insecure=False)
    check_exposure(host, url, insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_serving_oneself_needs_nothing(host):
    check_exposure(host, "", insecure=False)


def test_secrets_are_for_their_owner(site):
    assert (site.folder / "secret").stat().st_mode & 0o077 == 0
    assert (site.folder / "crowd.toml").stat().st_mode & 0o077 == 0
    assert site.folder.stat().st_mode & 0o077 == 0
    (site.folder / "secret").chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_secret(site.folder, {})
    with pytest.raises(UsageError, match="shorter"):
        read_secret(site.folder, {"BRAINMAP_CROWD_SECRET": "short"})
    (site.folder / "crowd.toml").write_text('database = "postgresql://me:secret@host/db"')
    (site.folder / "crowd.toml").chmod(0o644)
    with pytest.raises(UsageError, match="holds a password"):
        read_site_settings(site.folder, {})


@pytest.mark.parametrize(
    "line",
    ['colour = "red"', 'session_hours = "long"', "session_hours = 0", 'languages = ["fr"]', 'public_url = "cells"',
     'clicks_after_deletion = "sell"', '[rates]\nlog_in_account = "often"', "[rates]\nsleep = 1", "sign_up = 1"],
)  # fmt: skip
def test_settings_that_are_none_are_said(site, line):
    (site.folder / "crowd.toml").write_text(line)
    with pytest.raises(UsageError):
        read_site_settings(site.folder, {})


def test_the_environment_wins(site):
    (site.folder / "crowd.toml").write_text('public_url = "https://old.example"')
    environment = {"BRAINMAP_CROWD_PUBLIC_URL": "https://new.example", "BRAINMAP_CROWD_SECRET": "s" * 20}
    assert read_site_settings(site.folder, environment).public_url == "https://new.example"
    assert read_secret(site.folder, environment) == b"s" * 20


# ---- uploads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.png", b"<script>alert(1)</script>"), ("a.html", b"<html>"), ("../../a.png", b"\x89PNG"), ("a.svg", b"<svg/>"),
     ("a.png.exe", b"MZ"), ("=1+1.png", imagecodecs.png_encode(np.zeros((9, 9), np.uint8)))],
)  # fmt: skip
def test_uploads_that_are_no_tiles(root, site, name, content):
    files = {"images": (name, io.BytesIO(content), "image/png")}
    answer = root.client.post("/admin/projects/cortex/upload", files=files, follow_redirects=False)
    assert answer.status_code == 422
    assert len(snapshot(site)["tile"]) == 6


def test_an_upload_of_a_tile_is_taken(root, site):
    content = imagecodecs.png_encode(np.zeros((90, 90), np.uint8))
    files = {"images": ("new.png", io.BytesIO(content), "image/png")}
    assert root.client.post("/admin/projects/cortex/upload", files=files).status_code == 200
    assert len(snapshot(site)["tile"]) == 7
