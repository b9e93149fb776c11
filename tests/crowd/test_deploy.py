"""What `deploy/` starts: as far as it can be tried without containers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from brainmap.crowd.store.settings import CROWD_TOML


@pytest.fixture
def deploy(repository: Path) -> Path:
    return repository / "deploy"


@pytest.fixture
def environment(repository: Path, tmp_path: Path) -> dict[str, str]:
    """With a command `brainmap` of this checkout, whatever is installed."""
    command = tmp_path / "bin" / "brainmap"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{repository / "cli.py"}" "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}


def test_the_compose_file_names_what_is_there(deploy: Path) -> None:
    text = (deploy / "compose.yaml").read_text()
    compose: dict[str, Any] = yaml.safe_load(text)
    assert set(compose["services"]) == {"site", "database", "proxy"}
    asked = set(re.findall(r"\$\{(\w+)", text))
    assert asked == set(re.findall(r"^(\w+)=", (deploy / "env.example").read_text(), re.MULTILINE))
    for service in compose["services"].values():
        named = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert all(name in compose["volumes"] or name.startswith("./") for name in named)
        assert set(service["networks"]) <= set(compose["networks"])
        assert set(service.get("depends_on", ())) <= set(compose["services"])
    assert (deploy / "Caddyfile").read_text().startswith("{$CROWD_HOST} {")
    assert "reverse_proxy site:8000" in (deploy / "Caddyfile").read_text()
    dockerfile = (deploy / "Dockerfile").read_text()
    assert "/src/deploy/start.sh" in dockerfile and "EXPOSE 8000" in dockerfile


@contextmanager
def started(deploy: Path, environment: dict[str, str], site: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = environment | {
        "SITE": str(site), "PORT": str(port), "BRAINMAP_CROWD_PUBLIC_URL": "https://cells.example.org",
        "BRAINMAP_CROWD_SECRET": "s" * 40,
    }  # fmt: skip
    process = subprocess.Popen(
        ["sh", str(deploy / "start.sh")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                # As the container's own check asks.
                assert (
                    httpx2.get(f"http://127.0.0.1:{port}/healthz", headers={"Host": "127.0.0.1"}).status_code
                    == 200
                )
                break
            except httpx2.TransportError:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < end
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.slow
def test_the_container_s_start_makes_a_site_once_and_serves_it(
    deploy: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with started(deploy, environment, site):
        made = (site / CROWD_TOML).stat().st_mtime_ns
    with started(deploy, environment, site) as url:
        # Only the proxy's name and the machine's own are answered.
        for host, status in (("cells.example.org", 200), ("evil.example.org", 400)):
            assert httpx2.get(f"{url}/api/consent", headers={"Host": host}).status_code == status
    assert (site / CROWD_TOML).stat().st_mtime_ns == made


@pytest.mark.slow
def test_the_daily_backup_keeps_the_newest(deploy: Path, environment: dict[str, str], tmp_path: Path) -> None:
    site, backups = tmp_path / "site", tmp_path / "backups"
    subprocess.run(["brainmap", "crowd", "init", str(site)], env=environment, check=True, capture_output=True)
    backups.mkdir()
    for day in range(1, 6):
        (backups / f"2026010{day}T000000Z.backup").touch()
    subprocess.run(
        ["sh", str(deploy / "backup.sh"), str(site), str(backups), "3"], env=environment, check=True
    )
    kept = sorted(path.name for path in backups.iterdir())
    assert kept[:2] == ["20260104T000000Z.backup", "20260105T000000Z.backup"] and len(kept) == 3
    assert (backups / kept[2]).stat().st_size > 1000
