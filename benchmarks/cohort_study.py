"""Six phantom animals with a planted change through `brainmap study` to the report, interrupted once by Ctrl-C.

python benchmarks/cohort_study.py WORK [--size tiny|demo]

Three animals as they are; in three the striatum holds three times and ISO2/3 a third of the cells. The command is
interrupted while the third brain is detected, and typed again. Prints times, the two structures' ratios and what is
called. Exits 1 unless the brains that were done stay as they were, and both structures have smallest p and right
signs.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from brainmap.phantom import write_phantom

PLANTED = {"STR": 3.0, "ISO2/3": 1 / 3}


def make(work: Path, size: str) -> Path:
    """Brains, study.csv and detect.toml."""
    lines, atlas = ["brain,animal,group"], None
    for i in range(6):
        phantom = write_phantom(work / f"p{i}", seed=i, size=size, changes=PLANTED if i >= 3 else None)
        atlas = phantom.atlas
        lines.append(f"p{i}/{phantom.brain.name},a{i},{'drug' if i >= 3 else 'saline'}")
    (work / "study.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = f'channel = 0\nregistration-channel = 1\natlas = "{atlas}"\n'
    (work / "detect.toml").write_text(settings, encoding="utf-8")
    return work / "study.csv"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", default="tiny", choices=("tiny", "demo"))
    options = parser.parse_args()
    work = options.work.resolve()
    table, out = make(work, options.size), work / "study"
    command = [
        *(sys.executable, "-m", "brainmap", "study", str(table), "--out", str(out)),
        *("--config", str(work / "detect.toml"), "--level", "leaf", "--absolute"),
    ]
    start = time.time()
    running = subprocess.Popen(command)
    third = out / "runs" / "a2" / "run.json"
    while not third.exists() and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    code = running.wait()
    finished = {path: path.stat().st_mtime_ns for path in sorted(out.glob("runs/a[01]/regions.csv"))}
    print(f"interrupted after {time.time() - start:.0f} s with exit {code}; {len(finished)} brains done")
    start = time.time()
    again = subprocess.run(command, check=False).returncode
    print(f"went on to the end in {time.time() - start:.0f} s with exit {again}")
    kept = all(path.stat().st_mtime_ns == when for path, when in finished.items())
    result = (
        pd.read_csv(out / "comparison" / "comparison.csv").query("measure == 'count'").set_index("acronym")
    )
    print(result.sort_values("p")[["n_a", "n_b", "log2_ratio", "p", "q_tree", "called"]].head(6))
    signs = result.loc["STR", "log2_ratio"] > 0.8 and result.loc["ISO2/3", "log2_ratio"] < -0.8
    smallest = set(result["p"].nsmallest(2).index) == set(PLANTED)
    good = code == 130 and again == 0 and len(finished) == 2 and kept and signs and smallest
    print(f"finished brains stayed as they were: {kept}; report: {out / 'comparison' / 'report.html'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
