"""Accounts, consent and sessions."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError

from brainmap.crowd.store import schema
from brainmap.crowd.store.consent import read_consent
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.settings import SiteSettings
from brainmap.crowd.store.site import Site
from brainmap.crowd.web.app import create_app
from brainmap.crowd.work import accounts
from brainmap.crowd.work.export import export_project

from ..conftest import PASSWORD, Person, quick_passwords, sqlite_only


def rows(site, table):
    with site.database.read() as connection:
        return connection.execute(select(table)).all()


def test_no_consent_no_account(app, site):
    ann = Person(app, "Ann", sign_up=False)
    for version in (None, "", "old", True, 1):
        answer = ann.sign_up(consent=version)
        assert answer.status_code == 422
        assert answer.json()["consent"] == ann.client.get("/api/consent").json()["version"]
    assert rows(site, schema.worker) == []
    assert ann.client.get("/api/projects/cortex/next").status_code == 401


def test_what_is_agreed_to_is_kept_with_its_time(ann, site, clock):
    (row,) = rows(site, schema.worker)
    assert row.consent_version == ann.client.get("/api/consent").json()["version"]
    assert row.consent_at == clock.now
    about = ann.client.get("/api/me").json()
    assert about["consent"]["version"] == row.consent_version


@sqlite_only
def test_the_consent_text_comes_in_both_languages(app):
    client = Person(app, sign_up=False).client
    english, japanese = (client.get(f"/api/consent?language={name}").json() for name in ("en", "ja"))
    assert english["version"] == japanese["version"]
    assert "cells" in english["text"] and "細胞" in japanese["text"]
    assert (
        client.get("/api/consent", headers={"Accept-Language": "ja-JP,en;q=0.5"}).json()["language"] == "ja"
    )
    assert client.get("/api/consent?language=xx").json()["language"] == "en"


def test_a_changed_text_asks_anew(ann, site, clock):
    ann.finish(ann.next())
    (site.folder / "consent.en.txt").write_text("Something else is asked of you now.")
    again = Site.open(site.folder, {"BRAINMAP_CROWD_DATABASE": site.settings.database}, clock)
    app = create_app(again, passwords=quick_passwords(), scan=False)
    late = Person(app, "Ann", sign_up=False)
    assert late.log_in().status_code == 200
    answer = late.client.get("/api/projects/cortex/next")
    assert answer.status_code == 403
    version = answer.json()["consent"]
    assert late.client.post("/api/consent", json={"consent": "c695a5200e53"}).status_code == 422
    assert late.client.post("/api/consent", json={"consent": version}).status_code == 204
    assert late.next() is not None
    again.close()


def test_what_happens_to_clicks_is_part_of_what_is_agreed_to(tmp_path):
    delete = read_consent(tmp_path, SiteSettings())
    anonymous = read_consent(tmp_path, SiteSettings(clicks_after_deletion="anonymous"))
    assert delete.version != anonymous.version


@pytest.mark.parametrize(
    "name",
    ["a", "", "x" * 41, "ann@example.org", "<b>Ann</b>", "=1+1", "+Ann", "-Ann", "@Ann", "A\nB", "A\0B", "a/b", "..",
     None, 7, ["Ann"], "'; DROP TABLE worker; --", "Ann\u202eb"],
)  # fmt: skip
@sqlite_only
def test_names_that_are_none_are_refused(app, site, name):
    answer = Person(app, "x", sign_up=False).sign_up(name=name)
    assert answer.status_code == 422
    assert list(answer.json()) == ["error"]
    assert rows(site, schema.worker) == []


@pytest.mark.parametrize("name", ["Ann", "花子", "Zoë 2", "a.b-c_d", "0001"])
@sqlite_only
def test_names_people_choose_are_taken(app, name):
    assert Person(app, "x", sign_up=False).sign_up(name=name).status_code == 201


@pytest.mark.parametrize("other", ["Ann", "ANN", "ann", " Ann ", "Ａｎｎ"])
def test_a_taken_name_is_taken_in_every_disguise(app, ann, other):
    assert Person(app, "x", sign_up=False).sign_up(name=other).status_code == 409


@pytest.mark.parametrize("password", ["short", "", None, 12345678, "x" * 1001, "é" * 501])
@sqlite_only
def test_passwords_that_are_none_are_refused(app, password):
    assert Person(app, "Ann", sign_up=False).sign_up(password=password).status_code == 422


@sqlite_only
def test_passwords_are_stored_as_argon2id(site):
    from brainmap.crowd.work.passwords import Passwords

    hashed = Passwords().hash(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert Passwords().verify(PASSWORD, hashed)[0]
    assert not Passwords().verify(PASSWORD + "x", hashed)[0]
    assert not Passwords().verify(PASSWORD, None)[0]
    assert not Passwords().verify(PASSWORD, "no hash at all")[0]


@sqlite_only
def test_a_weak_hash_is_replaced_at_log_in(ann, app, site):
    from pwdlib import PasswordHash
    from pwdlib.hashers.argon2 import Argon2Hasher

    from brainmap.crowd.work.passwords import Passwords

    stronger = Passwords(PasswordHash((Argon2Hasher(time_cost=2, memory_cost=64, parallelism=1),)))
    (before,) = rows(site, schema.worker)
    accounts.log_in(site, stronger, "ann", PASSWORD)
    (after,) = rows(site, schema.worker)
    assert "t=1" in before.password and "t=2" in after.password


def test_a_log_in_rotates_the_session_and_a_log_out_ends_it(ann, site):
    cookie = ann.client.cookies["brainmap"]
    assert ann.log_in().status_code == 200
    new = ann.client.cookies["brainmap"]
    assert new != cookie
    stored = [row.token_hash for row in rows(site, schema.session)]
    assert len(stored) == 1 and new not in stored[0]
    assert ann.client.get("/api/me", headers={"Cookie": f"brainmap={cookie}"}).status_code in (200, 401)
    ann.client.cookies.clear()
    ann.client.cookies["brainmap"] = cookie
    assert ann.client.get("/api/me").status_code == 401
    ann.client.cookies.clear()
    ann.client.cookies["brainmap"] = new
    assert ann.client.delete("/api/session").status_code == 204
    ann.client.cookies["brainmap"] = new
    assert ann.client.get("/api/me").status_code == 401
    assert rows(site, schema.session) == []
    assert ann.client.delete("/api/session").status_code == 204


def test_sessions_end_by_age_and_by_rest(app, site, clock):
    ann = Person(app, "Ann")
    for _ in range(6):
        clock.pass_hours(60)
        if ann.client.get("/api/me").status_code != 200:
            break
    # Used all the time, a session still ends after two weeks.
    assert clock.now - 1_800_000_000.0 > 336 * 3600
    assert ann.log_in().status_code == 200
    clock.pass_hours(73)
    assert ann.client.get("/api/me").status_code == 401


@sqlite_only
def test_the_cookie_is_for_the_server_alone(app, site):
    answer = Person(app, "Ann", sign_up=False).sign_up()
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Path=/" in cookie
    assert "Domain" not in cookie and "Secure" not in cookie


@sqlite_only
def test_behind_https_the_cookie_is_bound_to_host_and_encryption(site):
    import dataclasses

    settings = dataclasses.replace(site.settings, public_url="https://cells.example.org")
    app = create_app(dataclasses.replace(site, settings=settings), passwords=quick_passwords(), scan=False)
    person = Person(app, "Ann", sign_up=False)
    person.client.base_url = "https://cells.example.org"
    answer = person.sign_up()
    assert answer.status_code == 201
    assert (
        answer.headers["set-cookie"].startswith("__Host-brainmap=")
        and "Secure" in answer.headers["set-cookie"]
    )
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_a_disabled_account_is_out_at_once(ann, site):
    with site.database.write() as connection:
        connection.execute(schema.worker.update().values(disabled=True))
    assert ann.client.get("/api/me").status_code == 401
    assert ann.log_in().status_code == 401


def test_a_reset_password_ends_all_sessions(ann, site):
    (row,) = rows(site, schema.worker)
    accounts.set_password(site, row.id, quick_passwords().hash("another password"))
    assert ann.client.get("/api/me").status_code == 401
    assert ann.log_in().status_code == 401
    assert ann.log_in("another password").status_code == 200


def test_everything_about_me_and_nothing_about_others(ann, bob):
    tile = ann.next()
    ann.finish(tile, [(5, 6)])
    bob.finish(bob.next(), [(70, 70)])
    held = ann.client.get("/api/me/export").json()
    assert held["name"] == "Ann" and held["clicks"] == 1
    assert [c["x"] for t in held["tiles"] for c in t["clicks"]] == [5]
    assert "Bob" not in str(held)
    assert {entry["action"] for entry in held["log"]} >= {"account added", "consent"}


def test_deletion_takes_the_clicks_along(ann, bob, site, tmp_path):
    for person in (ann, bob):
        person.work_through(lambda tile: [(9, 9)])
    assert ann.client.delete("/api/me").status_code == 204
    assert ann.client.get("/api/me").status_code == 401
    assert ann.log_in().status_code == 401
    assert {row.name for row in rows(site, schema.worker)} == {"Bob"}
    export_project(site, "cortex", tmp_path / "out")
    assert "Ann" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.csv"))
    assert {row.n_completed for row in rows(site, schema.tile)} == {1}
    # Somebody else may now take the place, and the name.
    assert Person(ann.client.app, "Ann").work_through() == 6


def test_deletion_may_leave_clicks_without_a_name(site, tmp_path):
    import dataclasses

    settings = dataclasses.replace(site.settings, clicks_after_deletion="anonymous")
    app = create_app(dataclasses.replace(site, settings=settings), passwords=quick_passwords(), scan=False)
    ann = Person(app, "Ann")
    ann.work_through(lambda tile: [(9, 9)])
    assert ann.client.delete("/api/me").status_code == 204
    assert ann.client.get("/api/me").status_code == 401
    export_project(site, "cortex", tmp_path / "out")
    text = (tmp_path / "out" / "clicks.csv").read_text()
    assert text.count("gone-") == 6 and "Ann" not in text
    (row,) = rows(site, schema.worker)
    assert row.password is None and row.disabled
    assert {tile.n_completed for tile in rows(site, schema.tile)} == {1}


def test_the_only_administrator_cannot_leave(app, site):
    accounts.add_account(site, "Root", quick_passwords().hash(PASSWORD), role="admin")
    root = Person(app, "Root", sign_up=False)
    root.log_in()
    assert root.client.delete("/api/me").status_code == 409
    accounts.add_account(site, "Second", quick_passwords().hash(PASSWORD), role="admin")
    assert root.client.delete("/api/me").status_code == 204


@sqlite_only
def test_a_site_may_be_closed_to_new_accounts(site):
    import dataclasses

    settings = dataclasses.replace(site.settings, sign_up=False)
    app = create_app(dataclasses.replace(site, settings=settings), passwords=quick_passwords(), scan=False)
    assert Person(app, "Ann", sign_up=False).sign_up().status_code == 403
    assert "sign-up-name" not in Person(app, sign_up=False).client.get("/").text


def test_check_name_gives_the_form_that_is_stored():
    assert accounts.check_name("  Ａｎｎ ") == "Ann"
    with pytest.raises(Refused):
        accounts.check_name("a")


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET action = 'nothing'", "DELETE FROM audit", "TRUNCATE audit"]
)
def test_the_log_cannot_be_rewritten(ann, site, statement):
    if site.database.sqlite and statement.startswith("TRUNCATE"):
        pytest.skip("SQLite has no TRUNCATE")
    with pytest.raises(DatabaseError, match="cannot be changed"), site.database.write() as connection:
        connection.execute(text(statement))
    with site.database.read() as connection:
        assert connection.execute(select(schema.audit.c.action)).scalars().first() == "project added"
