from __future__ import annotations

import json
from pathlib import Path

import pytest

from brainmap.run.detect import DetectSummary
from brainmap.run.said import plan_words, size_words

PLAN = {
    "blocks": 40, "blocks_with_tissue": 12, "tissue_share": 0.384, "block_vox": (128, 1024, 1024), "tile": (512, 512),
    "bytes_to_read": 52_300_000_000, "read_amplification": 1.21, "memory_bytes": 3.1e9, "seconds": 734.0,
    "megapixels_per_second": 9.0, "backend": "openvino", "device": "CPU", "precision": "f32", "threads": 2,
}  # fmt: skip


def _summary(**changes: object) -> DetectSummary:
    values = {"run": Path("my run"), "status": "complete", "cells": 12345, "outside": 6, "seconds": 734.2,
              "voxels_per_second": 17.2e6, "registration": "good"}  # fmt: skip
    return DetectSummary(**values | changes)  # type: ignore[arg-type]


def test_the_last_lines_name_table_report_and_verdict() -> None:
    lines = str(_summary(warnings=("odd",))).splitlines()
    assert lines[0] == "12,345 cells in 12 min, 17.2 million voxels per second"
    assert lines[1:3] == ["6 of them outside the atlas", "warning: odd"]
    assert [line.split(None, 1) for line in lines[-3:]] == [
        ["table", "my run/regions.csv"], ["report", "my run/report.html"],
        ["verdict", "registration good; look at the report's pictures all the same"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"registration": "bad"}, "BAD: counts per region are not to be used"),
        ({"registration": "doubtful"}, "registration doubtful: look at the report first"),
        ({"registration": None, "outside": None}, "no atlas: cells were not counted"),
        ({"status": "incomplete"}, "parts of the image are missing"),
        ({"warnings": ("a", "b")}, "(2 warnings above)"),
    ],
)
def test_the_verdict_says_what_not_to_trust(changes: dict[str, object], words: str) -> None:
    last = str(_summary(**changes)).splitlines()[-1]
    assert last.startswith("verdict") and words in last


def test_without_an_atlas_the_table_is_that_of_the_cells() -> None:
    assert "table    my run/points.parquet" in str(_summary(outside=None, registration=None))


def test_a_dry_run_speaks_in_sentences_and_units() -> None:
    text = plan_words(PLAN, ("coarse",), registers=True)
    for words in ("38 % of the image is tissue: 12 of 40 blocks of 128 x 1024 x 1024 voxels", "52 GB, 1.2 times",
                  "about 3.1 GB", "about 12 min for the detection, with 2 threads of openvino on CPU",
                  "a registration, some minutes", "nothing: this was a dry run", "warning: coarse"):  # fmt: skip
        assert words in text, words
    assert not any(name in text for name in PLAN if "_" in name), "no names of fields"
    assert "registration" not in plan_words(PLAN, (), registers=False)
    assert str(_summary(plan=PLAN)) == plan_words(PLAN, (), registers=False)
    json.dumps(PLAN)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (52.3e9, "52 GB"), (9.9e15, "9900 TB")],
)
def test_sizes_have_units(n: float, text: str) -> None:
    assert size_words(n) == text
