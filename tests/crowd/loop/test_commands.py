"""The commands of `brainmap crowd`, as a person types them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

import httpx2
import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.crowd.store.settings import CROWD_TOML

from ..conftest import PASSWORD, make_tiles


def run(*arguments: object, input: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["crowd", *map(str, arguments)], input=input)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def folder(tmp_path, database):
    """A site made by commands."""
    site = tmp_path / "site"
    make_tiles(tmp_path / "tiles", ["q", "one", "two"], qc=1)
    options = ["--database", database] if database else []
    assert run("init", site, *options)[0] == 0
    code, out, _ = run(
        "project", site, "cortex", "--tiles", tmp_path / "tiles", "--redundancy", 2, "--title", "Cells"
    )
    assert code == 0 and "cortex" in out
    return site


def test_from_init_to_status(folder, tmp_path):
    code, out, _ = run("status", folder, "--json")
    assert code == 0
    (project,) = json.loads(out)["projects"]
    assert {"workers", "tiles", "clicks", "finished", "in_work", "undecided"} <= set(project)
    assert (project["name"], project["tiles"], project["redundancy"]) == ("cortex", 3, 2)
    assert "cortex: 0 workers, 0 clicks; 3 tiles" in run("status", folder)[1]
    code, out, _ = run("export", folder, "cortex", "--out", tmp_path / "out")
    assert code == 0 and "0 clicks" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "assignments.csv", "clicks.csv", "experts.csv", "tiles", "workers.csv",
    ]  # fmt: skip
    (tmp_path / "in.csv").write_text("image_id,worker_id,x,y\none,w,5,5\n")
    assert "1 clicks of 1 new workers" in run("import", folder, "cortex", tmp_path / "in.csv")[1]
    assert "0 new images" in run("scan", folder, "cortex")[1]
    assert run("backup", folder, tmp_path / "b.backup")[0] == 0
    code, out, err = run("restore", tmp_path / "b.backup", tmp_path / "again")
    assert code == 0, err
    assert json.loads(run("status", tmp_path / "again", "--json")[1])["projects"][0]["clicks"] == 1


def test_users_are_managed_with_passwords_from_standard_input(folder):
    assert run("users", folder, "add", "Ann", "--admin", input=f"{PASSWORD}\n")[0] == 0
    assert run("users", folder, "add", "Eve", "--expert", input=f"{PASSWORD}\n")[0] == 0
    code, _, err = run("users", folder, "add", "ann", input=f"{PASSWORD}\n")
    assert code == 1 and "taken" in err
    code, _, err = run("users", folder, "add", "Bob", input="short\n")
    assert code == 2 and "8 characters" in err
    rows = json.loads(run("users", folder, "list", "--json")[1])
    assert [(row["name"], row["role"]) for row in rows] == [("Ann", "admin"), ("Eve", "expert")]
    assert run("users", folder, "reset", "Ann", input="another password\n")[0] == 0
    assert run("users", folder, "delete", "Eve")[0] == 0
    code, _, err = run("users", folder, "delete", "Eve")
    assert code == 1 and "no account 'Eve'" in err
    assert run("users", folder, "add", "Eve", "--expert", "--admin", input=f"{PASSWORD}\n")[0] == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["init", "{site}"], 2, "already"),
        (["status", "{nowhere}"], 1, "no crowd site"),
        (["export", "{site}", "nothing", "--out", "{out}"], 1, "no project"),
        (["project", "{site}", "x", "--tiles", "{nowhere}"], 1, "no tile folder"),
        (["project", "{site}", "x", "--tiles", "{tiles}", "--redundancy", "0"], 2, "at least one"),
        (
            ["project", "{site}", "x", "--tiles", "{tiles}", "--redundancy", "2", "--until-certain"],
            2,
            "either",
        ),
        (["import", "{site}", "cortex", "{nowhere}"], 1, "no file"),
        (["users", "{site}", "promote", "Ann"], 2, "say add"),
        (["users", "{site}", "add"], 2, "needs the name"),
        (["users", "{site}", "list", "Ann"], 2, "takes no name"),
        (["users", "{site}", "delete", "Ann", "--admin"], 2, "go with add"),
        (["restore", "{nowhere}", "{out}"], 1, "no backup"),
        (["serve", "{site}", "--host", "0.0.0.0"], 2, "--insecure"),
        (["serve", "{site}", "--public-url", "ftp://x"], 2, "public_url"),
    ],
)
def test_wrong_use_is_one_sentence(folder, tmp_path, arguments, code, sentence):
    names = {
        "site": folder,
        "nowhere": tmp_path / "nowhere",
        "out": tmp_path / "out",
        "tiles": tmp_path / "tiles",
    }
    found, _, err = run(*(argument.format(**names) for argument in arguments))
    assert found == code, err
    assert sentence in err and len(err.strip().splitlines()) == 1


class Served:
    """`brainmap crowd serve` as a process, which can be killed and started again."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [
            sys.executable,
            "-m",
            "brainmap",
            "crowd",
            "serve",
            str(self.folder),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                assert self.process.poll() is None, self.process.stderr.read().decode()
                assert time.monotonic() < end
                time.sleep(0.1)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stderr.close()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.process.stderr.close()


def test_killed_and_started_again_no_click_is_lost_or_doubled(folder, tmp_path):
    """What was acknowledged is in the export exactly once; what was not may be sent again without harm."""
    served = Served(folder)
    acknowledged, sent = set(), []
    try:
        with httpx2.Client(base_url=served.url, timeout=10) as client:
            consent = client.get("/api/consent").json()["version"]
            body = {"name": "Ann", "password": PASSWORD, "consent": consent, "language": "en"}
            assert client.post("/api/account", json=body).status_code == 201
            tile = client.get("/api/projects/cortex/next").json()["tile"]
            for number in range(60):
                id = str(uuid.uuid4())
                sent.append(id)
                if number in (20, 40):
                    served.kill()
                try:
                    answer = client.put(
                        f"/api/tiles/{tile}/clicks/{id}", json={"x": number, "y": 5, "subtile": 0}
                    )
                    assert answer.status_code == 201
                    acknowledged.add(id)
                except httpx2.TransportError:
                    served.start()
            # A client that heard nothing sends again, and one that heard sends again, too.
            again = [{"id": id, "x": number, "y": 5, "subtile": 0} for number, id in enumerate(sent)]
            results = client.post(f"/api/tiles/{tile}/clicks", json={"put": again}).json()["results"]
            assert {r["status"] for r in results if r["id"] in acknowledged} == {200}
        assert len(acknowledged) == 58
        # Exported while it serves.
        assert run("export", folder, "cortex", "--out", tmp_path / "out")[0] == 0
    finally:
        served.stop()
    lines = (tmp_path / "out" / "clicks.csv").read_text().splitlines()
    ids = [line.split(",")[-1] for line in lines[1:]]
    assert sorted(ids) == sorted(sent)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_head_without_end_is_hung_up_on(folder):
    """Neither a line nor headers may fill the memory; a large body is another matter, with limits of its own."""
    served = Served(folder)
    host = f"Host: 127.0.0.1:{served.port}\r\n".encode()
    try:
        for start, more in (
            (b"GET /", b"a" * 4096),
            (b"GET / HTTP/1.1\r\n" + host, b"X-A: " + b"b" * 4000 + b"\r\n"),
        ):
            with socket.create_connection(("127.0.0.1", served.port), timeout=30) as line:
                line.sendall(start)
                with pytest.raises(OSError):
                    for _ in range(2000):
                        line.sendall(more)
                        time.sleep(0.001)
        # Two whole requests in one piece, and a body of 60 kB behind its head, are answered.
        ask = b"GET /healthz HTTP/1.1\r\n" + host + b"\r\n"
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as line:
            line.sendall(ask + ask)
            answers = b""
            while answers.count(b'"ok"') < 2:
                piece = line.recv(4096)
                assert piece, answers
                answers += piece
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as line:
            head = (
                b"POST /api/session HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n"
            )
            line.sendall(head + host + b"\r\n" + b"{" + b" " * 59_999)
            assert line.recv(4096).startswith(b"HTTP/1.1 400")
        with urllib.request.urlopen(f"{served.url}/healthz", timeout=5) as answer:
            assert answer.status == 200
    finally:
        served.stop()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_taken_port_is_said(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("serve", folder, "--port", taken.getsockname()[1])
    assert code == 2 and "choose another --port" in err


def test_every_setting_is_in_the_guide(repository):
    import dataclasses

    from brainmap.crowd.store.settings import Rates, SiteSettings

    guide = (repository / "docs" / "crowd.md").read_text(encoding="utf-8")
    names = [f.name for kind in (SiteSettings, Rates) for f in dataclasses.fields(kind)]
    assert [name for name in names if not re.search(rf"`{name}`", guide)] == []
    assert CROWD_TOML in guide and "BRAINMAP_CROWD_SECRET" in guide
    assert os.environ.get("BRAINMAP_CROWD_DATABASE") is None
