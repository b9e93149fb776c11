"""Coarse levels without a translation: means are told from samples by the image itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from brainmap.image.level_evidence import placed_by_evidence
from brainmap.image.volume import Volume, write_volume

VOXEL = (5.0, 2.0, 2.0)


def means(values: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    shape = [n // f for n, f in zip(values.shape, factors, strict=True)]
    cut = values[tuple(slice(n * f) for n, f in zip(shape, factors, strict=True))]
    parts = cut.reshape(shape[0], factors[0], shape[1], factors[1], shape[2], factors[2])
    return parts.mean(axis=(1, 3, 5)).round().astype(values.dtype)


def samples(values: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    return values[:: factors[0], :: factors[1], :: factors[2]]


def pyramid(path: Path, make: Any, values: NDArray[Any], translation: bool = False) -> Volume:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    datasets = []
    for number, factors in enumerate([(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]):
        level = make(values, factors)
        group.create_array(str(number), data=level, chunks=(8, 32, 32))
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [v * f for v, f in zip(VOXEL, factors, strict=True)]}
        ]
        if translation:
            steps.append({"type": "translation", "translation": [v * 0.4 for v in VOXEL]})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"],
            "datasets": datasets,
        }
    ]
    return Volume.open(path)


@pytest.fixture(scope="module")
def tissue() -> NDArray[np.uint16]:
    return np.random.default_rng(4).integers(200, 400, (17, 120, 100)).astype(np.uint16)


def test_means_are_moved(
    tissue: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    placed = placed_by_evidence(pyramid(tmp_path / "a.zarr", means, tissue))
    assert [level.origin_um for level in placed.levels] == [(0, 0, 0), (0, 1, 1), (2.5, 3, 3), (7.5, 7, 7)]
    assert "means of voxels" in caplog.text


def test_samples_stay(tissue: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = pyramid(tmp_path / "a.zarr", samples, tissue)
    assert placed_by_evidence(volume) is volume
    assert caplog.text == ""


def test_what_is_declared_is_believed(tissue: NDArray[np.uint16], tmp_path: Path) -> None:
    # Level 0 lies elsewhere as well: no level is shifted against it.
    volume = pyramid(tmp_path / "a.zarr", means, tissue, translation=True)
    placed = placed_by_evidence(volume)
    assert placed.levels[1].origin_um == pytest.approx((2.0, 1.8, 1.8))
    own = write_volume(tmp_path / "b.zarr", tissue, VOXEL, levels=3)
    assert placed_by_evidence(own) is own


def test_even_grey_and_single_levels_stay(tmp_path: Path) -> None:
    flat = pyramid(tmp_path / "a.zarr", means, np.full((17, 120, 100), 7, np.uint16))
    assert placed_by_evidence(flat) is flat
    one = write_volume(tmp_path / "b.zarr", np.zeros((2, 3, 4), np.uint16), VOXEL, levels=1)
    assert placed_by_evidence(one) is one
