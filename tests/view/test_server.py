"""The server: what it answers, what it refuses, and that nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from brainmap.cli.view import _checked_place
from brainmap.coords import vox_to_um
from brainmap.errors import MissingExtraError, UsageError
from brainmap.report.html import page_script
from brainmap.run.marks import read_marks
from brainmap.run_folder import RunRecord
from brainmap.view import neuroglancer
from brainmap.view.desk import Desk
from brainmap.view.server import create_app, serve_run

from .conftest import BIG_ID, ORIGIN_UM, SHOWN, VOXEL_UM, places

ORIGIN = "http://127.0.0.1:8000"
UM = vox_to_um(places(), VOXEL_UM, ORIGIN_UM)


@pytest.fixture
def client(run: Path) -> TestClient:
    return TestClient(create_app(Desk.open(run)), base_url=ORIGIN)


def post(client: TestClient, url: str, **body: Any) -> Any:
    return client.post(url, json=body)


def test_everything_the_viewer_asks_for_is_there(client: TestClient) -> None:
    state = client.get("/api/state").json()
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert list(layers) == ["image 0 cfos", "image 1 auto", "regions", "cells", "marks"]
    assert layers["image 0 cfos"]["source"] == f"zarr3://{ORIGIN}/image/0/"
    assert layers["regions"]["segmentColors"][str(BIG_ID)] == "#5a5adc"
    assert client.get("/v/brainmap/").text.count("<script") >= 1
    script = client.get("/v/brainmap/").text.split('src="')[1].split('"')[0]
    assert client.get(f"/v/brainmap/{script}").headers["content-type"].startswith("text/javascript")
    for url in ("/image/0/zarr.json", "/image/1/1/zarr.json", "/atlas/zarr.json", "/atlas/0/zarr.json", "/cells/info",
                "/cells/by_id/0.shard", "/region-names/info", "/", "/review", "/status"):  # fmt: skip
        assert client.get(url).status_code == 200, url
    info = client.get("/cells/info").json()
    assert [kind["id"] for kind in info["properties"]] == ["score", "region", "color", "hemisphere"]
    assert BIG_ID in info["properties"][1]["enum_values"]
    part = client.get("/cells/by_id/0.shard", headers={"Range": "bytes=0-15"})
    assert (part.status_code, len(part.content)) == (206, 16)
    level = client.get("/cells/spatial0/0.shard", headers={"Range": "bytes=0-15"})
    assert level.status_code == 206
    assert client.get("/cells/spatial9/0.shard").status_code == 404


def test_regions_lead_into_themselves(client: TestClient, run: Path) -> None:
    found = {region["acronym"]: region for region in client.get("/api/regions").json()}
    assert set(found) == {"root", "grey", "CTX", "BIG"}
    desk = Desk.open(run)
    for acronym, key in (("CTX", 11), ("BIG", BIG_ID)):
        region, _ = desk.run.place_of(np.array([found[acronym]["zyx_um"]]))
        assert region[0] == key


def test_a_cell_is_described_and_pictured(client: TestClient) -> None:
    z, y, x = UM[8]
    cell = client.get(f"/api/cell?z={z}&y={y + 3}&x={x}").json()
    assert (cell["acronym"], cell["region"], cell["hemisphere"], cell["shown"]) == (
        "BIG",
        "Big",
        "left",
        True,
    )
    assert client.get(f"/api/cell?z={z}&y={y + 18}&x={x}").status_code == 204
    assert client.get(f"/crop.png?z={z}&y={y}&x={x}&side=50").content[:4] == b"\x89PNG"
    box = f"z0={z - 5}&y0={y - 40}&x0={x - 40}&z1={z + 5}&y1={y + 40}&x1={x + 40}"
    assert client.get(f"/field.png?{box}").headers["content-type"] == "image/png"


def test_marks_snap_to_the_nearest_cell_shown(client: TestClient, run: Path) -> None:
    answer = post(client, "/api/marks", mark="yes", zyx_um=(UM[8] + [2, 2, 2]).tolist(), who="Ann")
    assert answer.status_code == 200
    assert answer.json()["cell"]["acronym"] == "BIG"
    # The weak candidate is not shown, so that it cannot be right; below its score it can.
    assert post(client, "/api/marks", mark="no", zyx_um=UM[0].tolist()).status_code == 404
    assert post(client, "/api/marks", mark="no", zyx_um=UM[0].tolist(), threshold=0.1).status_code == 200
    assert post(client, "/api/marks", mark="missed", zyx_um=(UM[8] + [0, 20, 0]).tolist()).status_code == 200
    # Another word on the same cell counts instead of the first.
    post(client, "/api/marks", mark="unsure", zyx_um=(UM[8] - [2, 2, 2]).tolist())
    marks = read_marks(run / "marks.csv", Desk.open(run).run.frame)
    assert marks.word.tolist() == ["no", "missed"]
    assert marks.unsure == 1
    np.testing.assert_allclose(marks.zyx_vox[0], places()[0], atol=1e-3)
    numbers = post(client, "/api/fields", zyx_um=UM[8].tolist()).json()["marks"]
    assert numbers == {"yes": 0, "no": 1, "unsure": 1, "missed": 1, "fields": 1}
    assert "z0" in post(client, "/api/undo").json()["undone"]
    assert post(client, "/api/undo").json()["undone"]["mark"] == "unsure"
    assert [mark["mark"] for mark in client.get("/api/marks").json()] == ["yes", "no", "missed"]


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        ("/api/marks", {"mark": "yes"}, 422),
        ("/api/marks", {"mark": "yes", "zyx_um": [1, 2]}, 422),
        ("/api/marks", {"mark": "yes", "zyx_um": ["a", 2, 3]}, 422),
        ("/api/marks", {"mark": "perhaps", "zyx_um": UM[8].tolist()}, 422),
        ("/api/marks", {"mark": "missed", "zyx_um": [1e9, 0, 0]}, 422),
        ("/api/marks", {"mark": "yes", "zyx_um": UM[8].tolist(), "sample": "mine"}, 422),
        ("/api/threshold", {"threshold": 0.6}, 422),
        ("/api/threshold", {"threshold": 7, "confirmed": True}, 422),
        ("/api/review/answer", {"kind": "cell", "key": 10**9, "mark": "yes"}, 422),
        ("/api/review/answer", {"kind": "cell", "key": 0, "mark": "missed"}, 422),
    ],
)
def test_bad_requests_change_nothing(
    client: TestClient, run: Path, url: str, body: dict[str, Any], status: int
) -> None:
    before = sorted(path.name for path in run.iterdir())
    record = (run / "run.json").read_bytes()
    answer = client.post(url, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert not (run / "marks.csv").exists()
    assert (run / "run.json").read_bytes() == record
    assert {path.name for path in run.iterdir()} - set(before) <= {"view_review.json"}


FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
    {"Origin": "https://127.0.0.1:8000"},
    {"Origin": "http://127.0.0.1:8000.evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda h: " ".join(f"{k}={v}" for k, v in h.items()))
def test_other_pages_neither_change_nor_read(client: TestClient, run: Path, headers: dict[str, str]) -> None:
    for url in (
        "/api/run",
        "/api/marks",
        "/image/0/zarr.json",
        "/cells/info",
        "/crop.png?z=1&y=1&x=1&side=30",
    ):
        assert client.get(url, headers=headers).status_code == 403, url
    for url in (
        "/api/marks",
        "/api/fields",
        "/api/undo",
        "/api/threshold",
        "/api/tune",
        "/api/review/answer",
    ):
        body = {"mark": "yes", "zyx_um": UM[8].tolist(), "threshold": 0.9, "confirmed": True}
        assert client.post(url, json=body, headers=headers).status_code == 403, url
    assert not (run / "marks.csv").exists()
    assert RunRecord.load(run).results["threshold"] == 0.5


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", "", "[::2]"])
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    assert client.get("/api/run", headers={"Host": host}).status_code == 400


def test_a_person_may_follow_a_link(client: TestClient) -> None:
    by_link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/?at=1,2,3", headers=by_link).status_code == 200
    framed = by_link | {"Sec-Fetch-Dest": "iframe"}
    assert client.get("/", headers=framed).status_code == 403


def test_forms_and_large_bodies_are_refused(client: TestClient) -> None:
    assert client.post("/api/undo", content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/api/undo", data={"a": "b"}).status_code == 415
    large = json.dumps({"a": "b" * 100_000})
    assert (
        client.post("/api/undo", content=large, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    for body, status in (("[1]", 400), ("{", 400)):
        assert (
            client.post("/api/undo", content=body, headers={"Content-Type": "application/json"}).status_code
            == status
        )


@pytest.mark.parametrize(
    "path",
    [
        "/cells/../run.json", "/cells/%2e%2e/run.json", "/cells/by_id/../../made.json", "/v/brainmap/..%2f__init__.py",
        "/static/x/view.html", "/static/x/..%2fserver.py", "/image/7/zarr.json", "/image/-1/zarr.json",
        "/run.json", "/v/brainmap/main.map", "/cells/order/records.npy",
    ],
)  # fmt: skip
def test_other_files_are_not_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_pages_allow_nothing_from_elsewhere(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    client_policy = client.get("/v/brainmap/").headers["content-security-policy"]
    for rule in (policy, client_policy):
        assert not any(word in rule for word in ("http:", "https:", "*"))
        assert "frame-ancestors" in rule


def test_counts_follow_the_threshold(client: TestClient) -> None:
    rows = {row["acronym"]: row for row in client.get("/api/counts?threshold=0.5").json()["rows"]}
    assert rows["all"]["count"] == rows["all"]["now"] == SHOWN
    fewer = client.get("/api/counts?threshold=0.9").json()["rows"][0]
    assert fewer["count"] < SHOWN / 2
    assert fewer["now"] == SHOWN


def test_counting_at_another_threshold_is_what_regions_does(
    client: TestClient, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path, staged: Path | None = None, **_: object) -> None:
        ((staged or folder) / "report.html").write_text("report")

    monkeypatch.setattr("brainmap.report.run_report.write_run_report", write)
    answer = post(client, "/api/threshold", threshold=0.8, confirmed=True)
    assert answer.status_code == 200, answer.text
    assert RunRecord.load(run).results["threshold"] == 0.8
    assert client.get("/api/run").json()["cells"] == answer.json()["cells"] < SHOWN
    # What was a cell is a weaker candidate now.
    assert client.get("/api/counts?threshold=0.8").json()["rows"][0]["now"] == answer.json()["cells"]


def test_tune_shows_before_it_writes(client: TestClient, run: Path) -> None:
    few = post(client, "/api/tune")
    assert few.status_code == 404
    for number, place in enumerate(UM):
        if number % 5:
            post(client, "/api/marks", mark="no" if number % 3 else "yes", zyx_um=place.tolist())
    found = post(client, "/api/tune").json()
    assert found["written"] is False
    assert any(name == "now: precision" for name, _ in found["lines"])
    assert not (run / "tuned_detector").exists()
    assert "detector" not in [name for name, _ in found["lines"]]
    quality = client.get("/api/counts?threshold=0.5").json()["quality"]
    assert quality["precision"]["low"] < 1 / 3 < quality["precision"]["high"]
    if found["changes"]:
        assert post(client, "/api/tune", confirmed=True).json()["written"] is True
        assert (run / "tuned_detector" / "detector.json").is_file()


def test_a_missing_client_is_said_with_its_install_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: str) -> None:
        raise ModuleNotFoundError

    monkeypatch.setattr(neuroglancer.resources, "files", gone)
    with pytest.raises(MissingExtraError, match=r"pip install 'brainmap\[view\]'"):
        serve_run(run, browser=False)


def test_a_port_that_is_taken_is_said_to_be(run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UsageError, match="choose another --port"):
            serve_run(run, other.getsockname()[1], browser=False)


@pytest.mark.parametrize("command", ["view", "review"])
def test_no_acknowledged_mark_is_lost_when_the_server_is_killed(
    run: Path, repository: Path, command: str
) -> None:
    words = [sys.executable, str(repository / "cli.py"), command, str(run), "--no-browser"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        hint = next(line for line in process.stderr if "ssh" in line)
        port = address.split(":")[2].split("/")[0]
        assert f"ssh -N -L {port}:127.0.0.1:{port}" in hint
        base, acknowledged = address.removesuffix("review").rstrip("/"), 0
        deadline = time.monotonic() + 60
        for place in UM[1::5]:
            body = json.dumps({"mark": "yes", "zyx_um": place.tolist()}).encode()
            request = urllib.request.Request(f"{base}/api/marks", body, {"Content-Type": "application/json"})
            while True:
                try:
                    with urllib.request.urlopen(request) as answer:
                        acknowledged += answer.status == 200
                    break
                except urllib.error.URLError:
                    # Said to be ready a moment before it listens to requests.
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()
        process.stderr.close()
    assert acknowledged == len(UM) / 5
    assert len((run / "marks.csv").read_text().splitlines()) == 1 + acknowledged


def test_the_report_is_served_with_its_own_script_alone(client: TestClient, run: Path) -> None:
    assert client.get("/report").status_code == 404
    (run / "report.html").write_text("<p>report</p>", encoding="utf-8")
    answer = client.get("/report")
    assert answer.text == "<p>report</p>"
    policy = answer.headers["content-security-policy"]
    assert f"script-src '{page_script()[1]}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


@pytest.mark.parametrize("at", ["", "1,2", "1,2,nan", "1,2,three"])
def test_a_wrong_place_is_refused(at: str) -> None:
    with pytest.raises(UsageError, match="--at"):
        _checked_place(at)


def test_a_place_or_a_region_is_taken() -> None:
    assert _checked_place("1, 2.5,3") == "1,2.5,3"
    assert _checked_place("CTX") == "CTX"
