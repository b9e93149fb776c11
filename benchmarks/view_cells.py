"""Ten million cells in the viewer: how long the index takes, its memory, and how soon the first view is there.

    python benchmarks/view_cells.py [--cells 10000000] [--browser]

Cells are spread over a brain-sized box, half of them in clusters. "First view" is what a browser asks for when the
whole brain is shown: the coarse levels of the index, served over HTTP; with --browser it is measured in Chromium with
WebGL in software, from the page's address to its first picture with all layers.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from brainmap.image.volume import write_volume
from brainmap.points.table import Points, PointsWriter
from brainmap.run_folder import POINTS_PARQUET, RunRecord

EXTENT_UM = np.array([8000.0, 11000.0, 13000.0])
VOXEL_UM = (25.0, 25.0, 25.0)


def write_run(folder: Path, cells: int) -> None:
    """A run of so many cells over a small image, without blocks or atlas."""
    shape = tuple(int(n) for n in EXTENT_UM / VOXEL_UM)
    rng = np.random.default_rng(0)
    image = rng.integers(100, 200, shape, dtype=np.uint16)
    write_volume(folder / "brain.zarr", image, VOXEL_UM)
    meta = {"brain": str(folder / "brain.zarr"), "shape": shape, "voxel_um": VOXEL_UM, "origin_um": (0, 0, 0)}
    centres = rng.uniform(0.1, 0.9, (300, 3)) * EXTENT_UM
    (folder / "run").mkdir()
    with PointsWriter(folder / "run" / POINTS_PARQUET, meta) as writer:
        for start in range(0, cells, 500_000):
            n = min(500_000, cells - start)
            um = rng.uniform(0, 1, (n, 3)) * EXTENT_UM
            near = np.flatnonzero(rng.random(n) < 0.5)
            um[near] = centres[rng.integers(0, 300, len(near))] + rng.normal(0, 250, (len(near), 3))
            um = np.clip(um, 0, EXTENT_UM - 26)
            vox = um / VOXEL_UM
            columns = dict(zip("zyx", vox.T, strict=True)) | dict(
                zip(("z_um", "y_um", "x_um"), um.T, strict=True)
            )
            columns |= {"score": rng.uniform(0.5, 1, n).astype(np.float32)}
            columns |= {"region_id": rng.integers(0, 600_000_000, n)}
            columns |= {"hemisphere": rng.integers(0, 3, n).astype(np.int8)}
            writer.append(Points(columns))
    RunRecord(
        status="complete", parameters={"brain": str(folder / "brain.zarr")},
        results={"threshold": 0.5, "cells": cells, "cell_diameter_um": 10.0},
    ).save(folder / "run")  # fmt: skip


def first_view(run: Path) -> tuple[float, float, int]:
    """Seconds, seconds of processor and bytes until the levels that show the whole brain are there."""
    from starlette.testclient import TestClient

    from brainmap.view.desk import Desk
    from brainmap.view.server import create_app

    start, worked = time.perf_counter(), time.process_time()
    client = TestClient(create_app(Desk.open(run)), base_url="http://127.0.0.1:8000")
    got = (
        len(client.get("/").content)
        + len(client.get("/api/run").content)
        + len(client.get("/api/state").content)
    )
    info = client.get("/cells/info").json()
    # Neuroglancer goes down until about a cell a few pixels is shown: three levels for the whole brain.
    for level in info["spatial"][:3]:
        shard = f"/cells/{level['key']}/0.shard"

        def part(first: int, stop: int, shard: str = shard) -> bytes:
            return bytes(client.get(shard, headers={"Range": f"bytes={first}-{stop - 1}"}).content)

        minishards = 1 << level["sharding"]["minishard_bits"]
        for number in range(minishards):
            start_at, end = (
                np.frombuffer(part(16 * number, 16 * number + 16), "<u8").astype(int) + 16 * minishards
            )
            if start_at == end:
                continue
            _, gaps, sizes = np.frombuffer(part(start_at, end), "<u8").reshape(3, -1).astype(int)
            ends = np.cumsum(gaps + sizes) + 16 * minishards
            got += sum(len(part(last - size, last)) for last, size in zip(ends, sizes, strict=True))
    return time.perf_counter() - start, time.process_time() - worked, got


def coloured(picture: bytes) -> int:
    """Pixels of a screenshot, right of the panel, as colourful as cells are: the image is grey."""
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))[60:, :900].astype(int)
    return int((np.ptp(pixels, axis=-1) > 60).sum())


def in_browser(run: Path, picture: Path | None) -> tuple[float, float]:
    """Seconds from the address to a page that says it is ready, and to cells on the screen.

    In Chromium with WebGL in software.
    """
    import subprocess
    import sys

    from playwright.sync_api import sync_playwright

    words = [sys.executable, "-m", "brainmap", "view", str(run), "--no-browser"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            start = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("body[data-ready=true]", timeout=120_000)
            ready = time.perf_counter() - start
            while coloured(page.screenshot(timeout=120_000)) < 2000:
                if time.perf_counter() - start > 120:
                    raise SystemExit("no cells within two minutes")
            drawn = time.perf_counter() - start
            if picture is not None:
                page.wait_for_timeout(10_000)
                page.screenshot(path=picture, timeout=120_000)
            return ready, drawn
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=10_000_000)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--folder", type=Path, help="kept; a run that is there is used again")
    parser.add_argument("--picture", type=Path, help="a screenshot some seconds later")
    given = parser.parse_args()
    from brainmap.view.cells import VIEW_DIR, open_cells
    from brainmap.view.run_data import ViewedRun

    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if (folder / "run").exists():
            shutil.rmtree(folder / "run" / VIEW_DIR, ignore_errors=True)
        else:
            write_run(folder, given.cells)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start, worked = time.perf_counter(), time.process_time()
        cells = open_cells(ViewedRun.open(folder / "run"))
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        files = sum(path.is_file() for path in (folder / "run" / "view").rglob("*"))
        size = sum(path.stat().st_size for path in (folder / "run" / "view").rglob("*") if path.is_file())
        print(f"index of {cells.order.n:,} cells: {seconds:.1f} s ({worked:.1f} s of processor), "
              f"peak {peak:.0f} MB ({before:.0f} MB before), {size / 1e6:.0f} MB in {files} files")  # fmt: skip
        start = time.perf_counter()
        for place in np.random.default_rng(1).uniform(0.2, 0.8, (100, 3)) * EXTENT_UM:
            cells.nearest(place, 50.0, 0.0)
        print(f"nearest cell: {(time.perf_counter() - start) * 10:.1f} ms")
        seconds, worked, got = first_view(folder / "run")
        print(f"first view served: {seconds:.2f} s ({worked:.2f} s of processor), {got / 1e6:.1f} MB")
        if given.browser:
            ready, drawn = in_browser(folder / "run", given.picture)
            print(f"Chromium, WebGL in software: ready {ready:.1f} s, cells drawn {drawn:.1f} s")


if __name__ == "__main__":
    main()
