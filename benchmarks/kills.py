"""Kill commands with -9 at random moments, then give the same command again: same bytes, nothing left.

    python benchmarks/kills.py [--moments 30] [--seed 0] [--only detect,convert]

For every command one run is left alone; its files are what the others are compared with (times in JSON and the
report's pages aside). Then, in folders of their own, the command is killed at a moment between its start and its end;
all processes must be gone within a few seconds; the same command must end well, with the same files and no other ones.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile

from brainmap.cohort.simulate import Simulation as Animals
from brainmap.cohort.simulate import simulate as simulate_animals
from brainmap.cohort.simulate import write_runs
from brainmap.gt.simulate import Simulation as Crowd
from brainmap.gt.simulate import simulate as simulate_crowd
from brainmap.image.volume import write_volume
from brainmap.phantom import write_phantom

REPOSITORY = Path(__file__).resolve().parent.parent
# In the environment of every process of a command, those it starts included.
MARK = "BRAINMAP_KILLED"
# How long processes may take to see that theirs is gone.
GRACE_S = 8.0
# Keys of JSON files that are about this very execution.
VOLATILE = {
    "started", "finished", "timings_s", "results", "made", "created", "seconds", "execution", "machine", "parameters",
    "way_to_brain",
}  # fmt: skip
REGISTER = """
import sys
from pathlib import Path
from brainmap.registration.register import RegistrationOptions, register_brain
register_brain(sys.argv[1], Path(sys.argv[2]), atlas=sys.argv[3], channel=1,
               options=RegistrationOptions(schedule="affine", threads=1))
"""


@dataclass(frozen=True)
class Command:
    """A command: from the folder it writes to its arguments, and its share of the moments."""

    arguments: Callable[[Path], list[str]]
    share: int


def commands(inputs: Path) -> dict[str, Command]:
    """All commands, with inputs made in a folder."""
    cli = [sys.executable, str(REPOSITORY / "cli.py")]
    brain, stack, clicks, groups, phantom = make_inputs(inputs)
    detect = [*cli, "detect", str(brain), "--no-atlas", "--block", "8,96,48", "-q"]
    return {
        "detect": Command(lambda out: [*detect, "--export", "napari", "--out", str(out)], 8),
        "detect --workers 2": Command(lambda out: [*detect, "--workers", "2", "--out", str(out)], 4),
        "convert": Command(lambda out: [*cli, "convert", str(stack), str(out), "--voxel-size", "5,2,2"], 6),
        "gt aggregate --workers 2": Command(
            lambda out: [*cli, "gt", "aggregate", str(clicks), "--workers", "2", "--out", str(out)], 5
        ),
        "compare": Command(lambda out: [*cli, "compare", str(groups), "--out", str(out)], 4),
        "register": Command(
            lambda out: [sys.executable, "-c", REGISTER, str(phantom.brain), str(out), str(phantom.atlas)], 3
        ),
    }


def make_inputs(folder: Path) -> tuple[Path, Path, Path, Path, Any]:
    """A brain, a stack, clicks, a study, a phantom."""
    rng = np.random.default_rng(0)
    image = rng.normal(300, 10, (32, 192, 192))
    z, y, x = np.ogrid[:32, :192, :192]
    for row, column in [(r, c) for r in range(14, 180, 24) for c in range(14, 180, 24)]:
        distance = ((z - rng.integers(3, 29)) * 5.0) ** 2 + ((y - row) * 2.0) ** 2 + ((x - column) * 2.0) ** 2
        image += 400 * 0.5 ** (distance / 4.5**2)
    brain = folder / "brain.ome.zarr"
    write_volume(brain, image.astype(np.uint16), (5.0, 2.0, 2.0), chunks=(8, 96, 96))
    stack = folder / "stack.tif"
    tifffile.imwrite(stack, rng.integers(0, 9999, (160, 700, 700)).astype(np.uint16))
    crowd = Crowd(n_images=24, size=200, n_cells=25, n_sites=12, n_workers=12, spammers=1, strays=2)
    made = simulate_crowd(crowd, 3)
    made = made[0] if isinstance(made, tuple) else getattr(made, "clicks", made)
    clicks = folder / "clicks.csv"
    with clicks.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "worker_id", "x", "y", "height", "width"])
        for i, w, (a, b) in zip(made.image, made.worker, made.xy, strict=True):
            writer.writerow([made.image_ids[i], made.worker_ids[w], a, b, made.height[i], made.width[i]])
    groups = write_runs(
        simulate_animals(Animals(regions=40, fewest=50, planted=4, fold=10), 2), folder / "study"
    )
    return brain, stack, clicks, groups, write_phantom(folder / "phantom", seed=1, size="tiny")


def files_of(out: Path) -> dict[str, str]:
    """Every file below a folder -> digest of what must be the same."""
    return {
        path.relative_to(out).as_posix(): digest(path) for path in sorted(out.rglob("*")) if path.is_file()
    }


def digest(path: Path) -> str:
    """Of a file's bytes; of JSON without what is about one execution; of a page that it is there."""
    if path.suffix == ".html":
        return "page"
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(stable(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def stable(value: Any) -> Any:
    """JSON without the keys that are about one execution."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    return [stable(item) for item in value] if isinstance(value, list) else value


def processes(token: str) -> list[psutil.Process]:
    """All living processes of a command, children of children included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def start(arguments: list[str], token: str) -> subprocess.Popen[str]:
    environment = os.environ | {MARK: token, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def blocks_aside(files: dict[str, str]) -> dict[str, str]:
    """Files of blocks may be cut otherwise after an interruption: their candidates are in other files."""
    return {name: mark for name, mark in files.items() if not re.match(r"blocks/\d+", name)}


def main() -> None:
    """Kill, give the command again, compare, and say how often what went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    wrong = total = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        known = commands(folder / "in")
        chosen = {k: c for k, c in known.items() if not options.only or k in options.only.split(",")}
        shares = sum(command.share for command in chosen.values())
        for number, (what, command) in enumerate(chosen.items()):
            alone = folder / f"{number}-alone" / "out"
            alone.parent.mkdir()
            began = time.monotonic()
            first = start(command.arguments(alone), f"{os.getpid()}-{number}")
            said = first.communicate()[1]
            assert first.returncode == 0, said
            seconds, expected = time.monotonic() - began, files_of(alone)
            count = max(1, round(options.moments * command.share / shares))
            for moment in range(count):
                total += 1
                faults = killed(folder / f"{number}-{moment}", command, rng.random() * seconds, expected)
                wrong += bool(faults)
                if faults:
                    print(f"{what}: {'; '.join(faults)}", flush=True)
            print(f"{what}: killed at {count} moments within {seconds:.1f} s", flush=True)
    print(f"{total} kills, {wrong} with a fault")
    sys.exit(bool(wrong))


def killed(folder: Path, command: Command, after_s: float, expected: dict[str, str]) -> list[str]:
    """Kill a command after some seconds, give it again; what went wrong."""
    folder.mkdir()
    out, token = folder / "out", f"{os.getpid()}-{folder.name}"
    process = start(command.arguments(out), token)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    faults = []
    end = time.monotonic() + GRACE_S
    while (left := processes(token)) and time.monotonic() < end:
        time.sleep(0.2)
    if left:
        faults.append(f"{len(left)} processes outlived the command killed after {after_s:.1f} s")
        for orphan in left:
            orphan.kill()
    again = start(command.arguments(out), token)
    said = again.communicate()[1]
    if again.returncode and not (files_of(out) == expected and "--overwrite" in said):
        # One that was killed after its last file had its place may say that it is done.
        return [*faults, f"killed after {after_s:.1f} s, the same command failed: {said.strip()[-300:]}"]
    found = files_of(out)
    if blocks_aside(found) != blocks_aside(expected):
        differ = {k for k in {*found, *expected} if found.get(k) != expected.get(k)}
        faults.append(f"killed after {after_s:.1f} s, other files: {', '.join(sorted(differ)[:5])}")
    hidden = [str(p.relative_to(folder)) for p in folder.rglob(".*")]
    beside = [p.name for p in folder.iterdir() if p.name != "out"]
    if hidden or beside:
        faults.append(f"killed after {after_s:.1f} s, left behind: {', '.join(hidden + beside)}")
    return faults


if __name__ == "__main__":
    main()
