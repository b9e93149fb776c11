"""A site under load, on this machine's loopback alone: latency, and that every acknowledged click is there once.

    python benchmarks/crowd_load.py --annotators 100 --seconds 300 --kills 10
    python benchmarks/crowd_load.py --stored 1000000

The first runs `brainmap crowd serve` as a process, lets simulated annotators click once a second each, kills the
server with -9 and starts it again, and compares the export with what was acknowledged. The second fills a site with
clicks and times the next tile, the status and the export. `--database` takes a PostgreSQL URL of an empty database.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import math
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

import numpy as np
from sqlalchemy import insert, select, update

from brainmap.crowd.store import schema
from brainmap.crowd.store.consent import read_consent
from brainmap.crowd.store.site import Site, init_site
from brainmap.crowd.work import accounts
from brainmap.crowd.work.assign import next_assignment
from brainmap.crowd.work.export import export_project
from brainmap.crowd.work.progress import site_status
from brainmap.crowd.work.projects import ProjectSpec, add_project
from brainmap.tiles.tiles import write_tiles

LONGEST_S = 600
TILE = 160
CELLS = 4  # clicks on a window, on average


def make_site(folder: Path, database: str, tiles: int, redundancy: int) -> Site:
    """A site with noise for tiles."""
    rng = np.random.default_rng(0)
    names = [f"t{number:05d}" for number in range(tiles)]
    write_tiles(
        folder / "tiles",
        {
            "image_id": names, "brain": ["noise"] * tiles, "z": [0] * tiles, "voxel_um": [(5.0, 1.0, 1.0)] * tiles,
            "is_qc": [number < 5 for number in range(tiles)],
        },
        (rng.random((TILE, TILE)).astype(np.float32) for _ in names),
    )  # fmt: skip
    site = init_site(folder / "site", database)
    add_project(site, ProjectSpec("load", folder / "tiles", redundancy=redundancy))
    return site


def sign_up(site: Site, count: int) -> list[tuple[int, str]]:
    """Accounts with open sessions, without the cost of hashing passwords: number and token."""
    version = read_consent(site.folder, site.settings).version
    people = []
    for number in range(count):
        account = accounts.add_account(site, f"annotator {number}", "no password", consent=version)
        people.append((account, accounts.open_session(site, account)))
    return people


class Server:
    """`brainmap crowd serve` as a process."""

    def __init__(self, site: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable,
            "-m",
            "brainmap",
            "crowd",
            "serve",
            str(site),
            "--port",
            str(self.port),
            "-q",
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/healthz", timeout=2):
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the server does not start")

    def stop(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait()


class Line:
    """One connection of one browser: requests in turn, over a new connection where the old one broke.

    Ours, since client libraries use as much of the machine as the server that is measured.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url, self.host = url, url.removeprefix("http://")
        self.head = (
            f"Host: {self.host}\r\nCookie: brainmap={token}\r\nOrigin: {url}\r\n"
            "Content-Type: application/json\r\n"
        )
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        """Status and content; OSError where there is no answer."""
        content = b"" if body is None else json.dumps(body).encode()
        try:
            if self.streams is None:
                name, _, port = self.host.partition(":")
                self.streams = await asyncio.open_connection(name, int(port))
            reader, writer = self.streams
            length = f"Content-Length: {len(content)}\r\n\r\n"
            writer.write(f"{method} {path} HTTP/1.1\r\n{self.head}{length}".encode() + content)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:] if line)
            answer = await reader.readexactly(int(headers.get("content-length", "0")))
        except (OSError, EOFError) as error:
            await self.close()
            raise ConnectionError(str(error)) from error
        if headers.get("connection") == "close":
            await self.close()
        return int(lines[0].split()[1]), answer

    async def close(self) -> None:
        """Hang up."""
        if self.streams is not None:
            self.streams[1].close()
            self.streams = None


class Annotator:
    """Clicks once a second, sends again what was not acknowledged, finishes tiles."""

    def __init__(self, url: str, token: str, seed: int) -> None:
        self.line = Line(url, token)
        self.random = random.Random(seed)
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self.took: list[float] = []
        self.refused = self.finished = 0

    async def insist(self, method: str, url: str, body: object) -> tuple[int, bytes]:
        """Send until there is an answer; only answers at the first try are timed."""
        for attempt in range(10_000):
            start = time.perf_counter()
            try:
                status, content = await asyncio.wait_for(self.line.request(method, url, body), 10)
            except (ConnectionError, TimeoutError):
                await self.line.close()
                await asyncio.sleep(0.2)
                continue
            if status < 500:
                if attempt == 0:
                    self.took.append(time.perf_counter() - start)
                return status, content
        raise RuntimeError("no answer")

    async def work(self, end: float) -> None:
        await asyncio.sleep(self.random.random())
        while time.monotonic() < end:
            status, content = await self.insist("GET", "/api/projects/load/next", None)
            if status != 200:
                break
            offered = json.loads(content)
            tile, windows = offered["tile"], offered["subtiles"]
            for window in windows:
                # As in tissue: some windows have many cells, some none.
                for _ in range(self.random.randrange(2 * CELLS)):
                    if time.monotonic() >= end:
                        return
                    await self.click(tile, window["index"])
                    await asyncio.sleep(1)
                await self.insist("PUT", f"/api/tiles/{tile}/subtiles/{window['index']}", {"done": True})
            status, _ = await self.insist("POST", f"/api/tiles/{tile}/complete", {})
            self.finished += status == 200

    async def click(self, tile: str, window: int) -> None:
        id = str(uuid.uuid4())
        self.sent.add(id)
        body = {
            "x": self.random.uniform(0, TILE - 1),
            "y": self.random.uniform(0, TILE - 1),
            "subtile": window,
        }
        status, _ = await self.insist("PUT", f"/api/tiles/{tile}/clicks/{id}", body)
        if status in (200, 201):
            self.acknowledged.add(id)
        else:
            self.refused += 1


async def crowd(server: Server, tokens: list[str], seconds: float, kills: int) -> list[Annotator]:
    """All annotators at once, while the server is killed at even intervals."""
    end = time.monotonic() + seconds
    people = [Annotator(server.url, token, number) for number, token in enumerate(tokens)]

    async def kill() -> None:
        for _ in range(kills):
            await asyncio.sleep(seconds / (kills + 1))
            await asyncio.to_thread(server.stop, signal.SIGKILL)
            await asyncio.to_thread(server.start)

    await asyncio.gather(kill(), *(person.work(end) for person in people))
    for person in people:
        await person.line.close()
    return people


def load(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """The load test."""
    site = make_site(folder, arguments.database, 100, 100)
    people = sign_up(site, arguments.annotators)
    server = Server(site.folder)
    used = time.process_time()
    try:
        done = asyncio.run(crowd(server, [token for _, token in people], arguments.seconds, arguments.kills))
        used = time.process_time() - used
    finally:
        server.stop(signal.SIGINT)
    server_used = resource.getrusage(resource.RUSAGE_CHILDREN)
    export_project(site, "load", folder / "out")
    site.close()
    with (folder / "out" / "clicks.csv").open(newline="") as stream:
        exported = [row["click_id"] for row in csv.DictReader(stream)]
    acknowledged = set().union(*(person.acknowledged for person in done))
    sent = set().union(*(person.sent for person in done))
    took = sorted(value for person in done for value in person.took)

    def percentile(share: float) -> float:
        return round(1000 * took[min(len(took) - 1, math.ceil(share * len(took)) - 1)], 1)

    return {
        "annotators": arguments.annotators,
        "seconds": arguments.seconds,
        "kills": arguments.kills,
        "database": "postgresql" if arguments.database else "sqlite",
        "requests": len(took),
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "acknowledged": len(acknowledged),
        "tiles_finished": sum(person.finished for person in done),
        "refused": sum(person.refused for person in done),
        "exported": len(exported),
        "lost": len(acknowledged - set(exported)),
        "doubled": len(exported) - len(set(exported)),
        "unknown": len(set(exported) - sent),
        "cpu_s": {
            "annotators": round(used, 1), "server": round(server_used.ru_utime + server_used.ru_stime, 1)
        },
        "load_average": os.getloadavg()[0],
    }  # fmt: skip


def stored(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Times with many clicks stored."""
    clicks, workers, per_tile = arguments.stored, 200, 50
    tiles = max(10, math.ceil(clicks / per_tile / 10))
    site = make_site(folder, arguments.database, tiles, 11)
    people = sign_up(site, workers + 1)
    fill(site, people[:workers], clicks, per_tile)
    person = accounts.Worker(people[-1][0], "", "worker", "en", None, "")

    def timed(function: object, *given: object) -> float:
        start = time.perf_counter()
        function(*given)  # type: ignore[operator]
        return round(time.perf_counter() - start, 4)

    def next_tile() -> None:
        with site.database.write() as connection:
            next_assignment(site, connection, person, "load", None)

    times = {
        "next_s": max(timed(next_tile) for _ in range(5)),
        "status_s": max(timed(site_status, site) for _ in range(5)),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times["export_s"] = timed(export_project, site, "load", folder / "out")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    site.close()
    lines = sum(1 for _ in (folder / "out" / "clicks.csv").open()) - 1
    return {
        "stored": clicks, "tiles": tiles, "exported": lines, "export_grew_mib": round(grown, 1), **times,
        "database": "postgresql" if arguments.database else "sqlite", "load_average": os.getloadavg()[0],
    }  # fmt: skip


def fill(site: Site, people: list[tuple[int, str]], clicks: int, per_tile: int) -> None:
    """Completed assignments with clicks, straight into the database."""
    rng = np.random.default_rng(1)
    now = time.time()
    with site.database.write() as connection:
        numbers = list(connection.execute(select(schema.tile.c.id).order_by(schema.tile.c.id)).scalars())
        project = connection.execute(select(schema.project.c.id)).scalar_one()
        for answer in range(clicks // per_tile):
            tile, (worker, _) = (
                numbers[answer % len(numbers)],
                people[(answer // len(numbers) + answer) % len(people)],
            )
            connection.execute(
                insert(schema.assignment).values(
                    id=answer + 1, token=f"t{answer}", worker_id=worker, tile_id=tile, project_id=project,
                    position=answer + 1, counts=True, opened_at=now, held_until=now, completed_at=now,
                    n_clicks=per_tile,
                )
            )  # fmt: skip
            xy = rng.uniform(0, TILE - 1, (per_tile, 2))
            connection.execute(
                insert(schema.click),
                [
                    {"assignment_id": answer + 1, "id": str(uuid.UUID(bytes=rng.bytes(16))), "x": x, "y": y,
                     "subtile": 0, "at": now, "received_at": now}
                    for x, y in xy.tolist()
                ],
            )  # fmt: skip
        connection.execute(update(schema.tile).values(n_completed=clicks // per_tile // len(numbers)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotators", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--stored", type=int, default=0, help="fill with so many clicks instead")
    parser.add_argument("--database", default="", help="PostgreSQL URL of an empty database")
    arguments = parser.parse_args()
    if not 0 < arguments.seconds <= LONGEST_S or not 0 < arguments.annotators <= 500:
        parser.error(f"at most {LONGEST_S} s and 500 annotators")
    with tempfile.TemporaryDirectory(prefix="crowd-load-") as work:
        run = stored if arguments.stored else load
        print(json.dumps(run(Path(work), arguments), indent=2))


if __name__ == "__main__":
    main()
