"""The arithmetic behind docs/clusters.md: dollars per teravoxel."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


def test_cost_of_a_teravoxel(repository: Path) -> None:
    cost = runpy.run_path(str(repository / "benchmarks" / "cost.py"), run_name="cost")
    dollars, hours = cost["dollars_per_teravoxel"], cost["hours_per_teravoxel"]
    # 1e12 voxels at 1e9 per second are 1000 s.
    assert hours(1e9, busy=1.0) == pytest.approx(1000 / 3600)
    assert hours(1e9, tissue=0.25, busy=0.5) == pytest.approx(500 / 3600)
    # 60,000 files of 2^24 voxels are 2.4 cents of requests.
    assert dollars(3.6, 1e9, busy=1.0) == pytest.approx(1.0 + 1e12 / 2**24 * 4e-7)
    assert dollars(7.2, 2e9, busy=1.0) == pytest.approx(dollars(3.6, 1e9, busy=1.0))
    assert {machine.cloud for machine in cost["MACHINES"]} == {"AWS", "Google"}
    with pytest.raises(ValueError, match="speed"):
        hours(0)
