"""Consensus of all experts but one against the one left out, on the c-Fos sections.

python benchmarks/gt_experts.py DATA     (DATA holds sections/cfos/expert_clicks.csv)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from brainmap.gt.clicks import Clicks, read_clicks
from brainmap.gt.compare import leave_one_out
from brainmap.gt.settings import GtSettings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    clicks: Clicks = read_clicks(parser.parse_args().data / "sections" / "cfos" / "expert_clicks.csv")
    rows = leave_one_out(clicks, GtSettings(), tolerance=10.0)
    for row in rows:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))
    for key in ("f1", "best_single_f1"):
        print(key, "mean", round(float(np.mean([row[key] for row in rows])), 4))


if __name__ == "__main__":
    main()
