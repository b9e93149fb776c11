"""The written layer is read back by an independent reading of the format's description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainmap.export import neuroglancer
from brainmap.export.neuroglancer import write_annotations


def read_record(data: bytes) -> dict[str, Any]:
    x, y, z, score = np.frombuffer(data[:16], "<f4")
    return {"xyz": (x, y, z), "score": score, "region": int(np.frombuffer(data[16:20], "<u4")[0])}


def grid_cell(code: int) -> tuple[int, int, int]:
    """x, y, z of a Morton code, x in its lowest bit."""
    digits = [[code >> (3 * bit + axis) & 1 for bit in range(20)] for axis in range(3)]
    x, y, z = (sum(digit << bit for bit, digit in enumerate(axis)) for axis in digits)
    return x, y, z


def read_spatial(folder: Path, level: dict[str, Any]) -> dict[tuple[int, ...], dict[int, dict[str, Any]]]:
    cells = {}
    spec = level["sharding"]
    assert [path.name for path in (folder / level["key"]).iterdir()] == ["0.shard"]
    for code in range(int(np.prod(level["grid_shape"]))):
        data = read_entry(folder / level["key"], spec, code)
        if data is None:
            continue
        n = int(np.frombuffer(data[:8], "<u8")[0])
        assert len(data) == 8 + n * 20 + n * 8
        ids = np.frombuffer(data[8 + 20 * n :], "<u8").tolist()
        records = [read_record(data[8 + 20 * i : 28 + 20 * i]) for i in range(n)]
        cells[grid_cell(code)] = dict(zip(ids, records, strict=True))
    return cells


def read_by_id(folder: Path, spec: dict[str, Any], key: int) -> dict[str, Any] | None:
    found = read_entry(folder, spec, key)
    return None if found is None else read_record(found)


def read_entry(folder: Path, spec: dict[str, Any], key: int) -> bytes | None:
    hashed = key >> spec["preshift_bits"]
    minishard = hashed & ((1 << spec["minishard_bits"]) - 1)
    shard = (hashed >> spec["minishard_bits"]) & ((1 << spec["shard_bits"]) - 1)
    digits = -(-spec["shard_bits"] // 4)
    data = (folder / (f"{shard:x}".zfill(digits) + ".shard")).read_bytes()
    base = 16 << spec["minishard_bits"]
    start, end = np.frombuffer(data[16 * minishard : 16 * minishard + 16], "<u8").astype(int)
    index = np.frombuffer(data[base + start : base + end], "<u8").reshape(3, -1).astype(int)
    ids = np.cumsum(index[0])
    sizes = index[2]
    offsets = np.cumsum(index[1]) + np.concatenate([[0], np.cumsum(sizes)[:-1]])
    (where,) = np.nonzero(ids == key)
    if not len(where):
        return None
    begin = base + offsets[where[0]]
    return data[begin : begin + sizes[where[0]]]


def write(folder: Path, n: int, limit: int = 50, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    zyx = (rng.uniform(0, 1, (n, 3)) ** 2 * (400, 900, 1100)).astype(np.float32)
    properties = {
        "score": rng.uniform(0, 1, n).astype(np.float32),
        "region_id": rng.integers(0, 614454277, n).astype(np.uint32),
    }
    write_annotations(folder, zyx, properties, limit)
    return zyx, properties


@pytest.mark.parametrize("preshift", [9, 2])
def test_spatial_index_holds_every_point_once_in_its_cell(
    tmp_path: Path, preshift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few grid cells a minishard, so that there are several.
    monkeypatch.setattr(neuroglancer, "PRESHIFT_BITS", preshift)
    monkeypatch.setattr(neuroglancer, "PER_SHARD", 1 << (preshift + neuroglancer.MINISHARD_BITS))
    monkeypatch.setattr(neuroglancer, "_PIECE", 300)
    zyx, properties = write(tmp_path / "layer", 2000)
    info = json.loads((tmp_path / "layer" / "info").read_text())
    lower, upper = np.array(info["lower_bound"]), np.array(info["upper_bound"])
    assert (zyx[:, ::-1] >= lower).all()
    assert (zyx[:, ::-1] < upper).all()
    seen: dict[int, dict[str, Any]] = {}
    before = None
    for level in info["spatial"]:
        grid, chunk = np.array(level["grid_shape"]), np.array(level["chunk_size"])
        np.testing.assert_allclose(grid * chunk, upper - lower)
        assert before is None or set((before / chunk).tolist()) <= {1.0, 2.0}
        before = chunk
        for cell, records in read_spatial(tmp_path / "layer", level).items():
            assert 0 < len(records) <= level["limit"]
            low = lower + np.array(cell) * chunk
            for identifier, record in records.items():
                assert identifier not in seen
                seen[identifier] = record
                assert (record["xyz"] >= low - 1e-3).all()
                assert (record["xyz"] <= low + chunk + 1e-3).all()
    assert sorted(seen) == list(range(2000))
    for identifier, record in seen.items():
        assert record["xyz"] == tuple(zyx[identifier, ::-1])
        assert record["score"] == properties["score"][identifier]
        assert record["region"] == properties["region_id"][identifier]


def test_levels_are_even_samples(tmp_path: Path) -> None:
    write(tmp_path / "layer", 2000)
    info = json.loads((tmp_path / "layer" / "info").read_text())
    (first,) = read_spatial(tmp_path / "layer", info["spatial"][0]).values()
    assert 15 < len(first) <= info["spatial"][0]["limit"] < 80
    # Half of the ids are below 1000: a sample of the first rows would be far off.
    assert 0.2 < sum(identifier < 1000 for identifier in first) / len(first) < 0.8


@pytest.mark.parametrize("n", [1, 511, 512, 513, 3000])
def test_every_point_is_found_by_id(tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small shards, so that few points fill several.
    monkeypatch.setattr(neuroglancer, "PRESHIFT_BITS", 3)
    monkeypatch.setattr(neuroglancer, "MINISHARD_BITS", 2)
    monkeypatch.setattr(neuroglancer, "PER_SHARD", 32)
    zyx, _ = write(tmp_path / "layer", n)
    info = json.loads((tmp_path / "layer" / "info").read_text())
    spec = info["by_id"]["sharding"]
    assert spec["@type"] == "neuroglancer_uint64_sharded_v1"
    for key in {0, n // 3, n // 2, n - 1}:
        found = read_by_id(tmp_path / "layer" / "by_id", spec, key)
        assert found is not None
        assert found["xyz"] == tuple(zyx[key, ::-1])
    assert n % 32 == 0 or read_by_id(tmp_path / "layer" / "by_id", spec, n) is None


def test_default_sharding_of_a_small_layer_is_one_file(tmp_path: Path) -> None:
    zyx, _ = write(tmp_path / "layer", 700)
    info = json.loads((tmp_path / "layer" / "info").read_text())
    assert [path.name for path in (tmp_path / "layer" / "by_id").iterdir()] == ["0.shard"]
    found = read_by_id(tmp_path / "layer" / "by_id", info["by_id"]["sharding"] | {"shard_bits": 0}, 699)
    assert found is not None
    assert found["xyz"] == tuple(zyx[699, ::-1])


def test_points_on_one_spot_end(tmp_path: Path) -> None:
    zyx = np.full((130, 3), 7.0, np.float32)
    write_annotations(tmp_path / "layer", zyx, {"score": np.ones(130, np.float32)}, limit=50)
    info = json.loads((tmp_path / "layer" / "info").read_text())
    assert len(info["spatial"]) == 2
    found = [read_counts(tmp_path / "layer", level) for level in info["spatial"]]
    assert sum(map(sum, found)) == 130
    assert [max(counts) for counts in found] == [level["limit"] for level in info["spatial"]]


def read_counts(folder: Path, level: dict[str, Any]) -> list[int]:
    entries = (
        read_entry(folder / level["key"], level["sharding"], code)
        for code in range(int(np.prod(level["grid_shape"])))
    )
    return [int(np.frombuffer(data[:8], "<u8")[0]) for data in entries if data is not None]


def test_equal_points_give_equal_files(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, 300)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


def test_wide_properties_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32-bit"):
        write_annotations(tmp_path / "layer", np.zeros((1, 3), np.float32), {"id": np.zeros(1, np.int64)})
