"""A small site with known cells, on SQLite and on PostgreSQL, and people who work on it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

from brainmap.crowd.store.site import Site, init_site
from brainmap.crowd.web.app import create_app
from brainmap.crowd.work.passwords import Passwords
from brainmap.crowd.work.projects import ProjectSpec, add_project
from brainmap.tiles.tiles import write_tiles

PASSWORD = "a good long password"
TILE = 150
ORIGIN = "http://127.0.0.1:8000"


# For what the database has no part in.
sqlite_only = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


class Clock:
    """Time that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += 3600 * hours


def quick_passwords() -> Passwords:
    """Argon2id that costs a tenth of a millisecond."""
    return Passwords(PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64, parallelism=1),)))


def make_tiles(
    folder: Path,
    names: list[str],
    *,
    qc: int = 0,
    datasets: int = 1,
    size: int = TILE,
    cells: int = 9,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Write a tile folder of bright discs on noise; return x, y (n, 2) of the cells of each tile."""
    rng = np.random.default_rng(seed)
    truth, images = {}, []
    for name in names:
        places = np.zeros((0, 2))
        while len(places) < cells:
            point = rng.uniform(8, size - 9, 2)
            if not len(places) or np.linalg.norm(places - point, axis=1).min() > 16:
                places = np.r_[places, point[None]]
        y, x = np.mgrid[:size, :size]
        image = rng.normal(0.2, 0.03, (size, size))
        for cx, cy in places:
            image += 0.6 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 2.5**2))
        truth[name] = places
        images.append(np.clip(image, 0, 1).astype(np.float32))
    work = range(len(names) - qc)
    write_tiles(
        folder,
        {
            "image_id": names, "brain": ["phantom"] * len(names), "z": list(range(len(names))),
            "voxel_um": [(5.0, 1.0, 1.0)] * len(names), "is_qc": [i < qc for i in range(len(names))],
            "dataset": [""] * qc + [f"set{i % datasets}" for i in work], "region_id": [315] * len(names),
        },
        images,
    )  # fmt: skip
    return truth


class Person:
    """Somebody with an account and a browser."""

    def __init__(self, app: Any, name: str | None = None, *, sign_up: bool = True) -> None:
        self.client = TestClient(app, base_url=ORIGIN)
        self.name = name or f"person {uuid.uuid4().hex[:8]}"
        if sign_up:
            answer = self.sign_up()
            assert answer.status_code == 201, answer.text

    def sign_up(self, **changes: Any) -> Any:
        consent = self.client.get("/api/consent").json()["version"]
        body = {"name": self.name, "password": PASSWORD, "consent": consent, "language": "en", **changes}
        return self.client.post("/api/account", json=body)

    def log_in(self, password: str = PASSWORD) -> Any:
        return self.client.post("/api/session", json={"name": self.name, "password": password})

    def next(self, project: str = "cortex", **query: str) -> dict[str, Any] | None:
        answer = self.client.get(f"/api/projects/{project}/next", params=query)
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.status_code == 200 else None

    def put(self, tile: str, x: float, y: float, id: str | None = None, **more: Any) -> Any:
        body = {"x": x, "y": y, "subtile": 0, "at": "2026-05-01T12:00:00Z", **more}
        return self.client.put(f"/api/tiles/{tile}/clicks/{id or uuid.uuid4()}", json=body)

    def look_through(self, tile: dict[str, Any]) -> None:
        for window in tile["subtiles"]:
            url = f"/api/tiles/{tile['tile']}/subtiles/{window['index']}"
            assert self.client.put(url, json={"done": True}).status_code == 204

    def finish(self, tile: dict[str, Any], places: Any = ()) -> dict[str, Any]:
        for x, y in places:
            assert self.put(tile["tile"], float(x), float(y)).status_code == 201
        self.look_through(tile)
        answer = self.client.post(f"/api/tiles/{tile['tile']}/complete")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def work_through(
        self, places: Callable[[dict[str, Any]], Any] = lambda tile: (), most: int = 1000
    ) -> int:
        done = 0
        while done < most and (tile := self.next()) is not None:
            self.finish(tile, places(tile))
            done += 1
        return done


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that lives as long as the tests do."""
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    user = _somebody_else() if os.geteuid() == 0 else None
    # Its parents must be open to a user who is not root: pytest's own folders are not.
    folder = Path(f"/tmp/brainmap-postgres-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    folder.mkdir(mode=0o755)
    if user:
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = {"user": user, "check": True, "capture_output": True, "cwd": "/"}
    data = folder / "data"
    subprocess.run(
        [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "crowd",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ],
        **run,
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c max_connections=200 -c fsync=off"
    start = [
        str(binaries / "pg_ctl"),
        "-D",
        str(data),
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        options,
        "start",
    ]
    # Its server inherits pipes: with captured output this would wait for the server's end.
    subprocess.run(start, **(run | {"capture_output": False, "stdout": subprocess.DEVNULL}))
    try:
        yield f"postgresql://crowd@127.0.0.1:{port}"
    finally:
        subprocess.run([str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"], **run)
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    named = shutil.which("initdb")
    return found[0].parent if found else Path(named).parent if named else None


def _somebody_else() -> str:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty database; empty for SQLite."""
    if request.param == "sqlite":
        yield ""
        return
    server = request.getfixturevalue("postgres")
    name = f"crowd_{uuid.uuid4().hex[:12]}"
    engine = create_engine(f"{server}/postgres".replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield f"{server}/{name}"
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def empty_site(tmp_path: Path, database: str, clock: Clock) -> Iterator[Site]:
    """A site without projects."""
    init_site(tmp_path / "site", database, {}).close()
    site = Site.open(tmp_path / "site", {}, clock)
    yield site
    site.close()


@pytest.fixture
def truth(tmp_path: Path) -> dict[str, np.ndarray]:
    """Cells of the tiles of project cortex: two for quality control, four for work."""
    return make_tiles(tmp_path / "tiles", ["qc a", "qc b", "one", "two", "three", "four"], qc=2)


@pytest.fixture
def site(empty_site: Site, tmp_path: Path, truth: dict[str, np.ndarray]) -> Site:
    """A site with one project, two workers a tile."""
    add_project(
        empty_site, ProjectSpec("cortex", tmp_path / "tiles", redundancy=2, title="Cells of the cortex")
    )
    return empty_site


@pytest.fixture
def app(site: Site) -> Any:
    return create_app(site, passwords=quick_passwords(), scan=False)


@pytest.fixture
def ann(app: Any) -> Person:
    return Person(app, "Ann")


@pytest.fixture
def bob(app: Any) -> Person:
    return Person(app, "Bob")


def wait_until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := true():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not true within {seconds} s")
