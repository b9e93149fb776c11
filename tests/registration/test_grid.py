"""The registration grid: means where it shrinks, lines where it enlarges, the same piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap import coords
from brainmap.image.volume import Volume, write_volume
from brainmap.registration import grid as grid_module
from brainmap.registration.grid import SampleGrid, resample_volume


def _volume(
    path: Path, data: np.ndarray, voxel: tuple[float, float, float], levels: int = 1, **more: object
) -> Volume:
    return write_volume(path, data, voxel, levels=levels, **more)  # type: ignore[arg-type]


def _random(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16)


def test_whole_factors_are_block_means(tmp_path: Path) -> None:
    data = _random((6, 8, 12))
    volume = _volume(tmp_path / "v.zarr", data, (25, 10, 5))
    grid = SampleGrid.over(volume, "asr", (50, 20, 20))
    assert grid.shape == (3, 4, 3)
    expected = data.reshape(3, 2, 4, 2, 3, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(resample_volume(volume, grid), expected, rtol=1e-5)


def test_odd_factors_against_a_fine_grid(tmp_path: Path) -> None:
    """Oracle: every voxel cut into 1 um pieces, pieces averaged per grid voxel."""
    data = _random((7, 5, 6))
    volume = _volume(tmp_path / "v.zarr", data, (3, 4, 5))
    grid = SampleGrid.over(volume, "asr", (7, 7, 7))
    pieces = data.repeat(3, 0).repeat(4, 1).repeat(5, 2).astype(float)
    expected = np.zeros(grid.shape)
    for index in np.ndindex(grid.shape):
        box = tuple(slice(7 * i, 7 * i + 7) for i in index)
        expected[index] = pieces[box].mean()
    np.testing.assert_allclose(resample_volume(volume, grid), expected, rtol=1e-4)


def test_coarse_images_are_interpolated(tmp_path: Path) -> None:
    ramp = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((4, 2, 2), dtype=np.float32)
    volume = _volume(tmp_path / "v.zarr", ramp, (100, 50, 50))
    out = resample_volume(volume, SampleGrid.over(volume, "asr", (50, 50, 50)))
    np.testing.assert_allclose(out[:, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_pieces_give_the_same_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = _volume(tmp_path / "v.zarr", _random((11, 13, 9)), (4, 3, 2), chunks=(2, 4, 4))
    grid = SampleGrid.over(volume, "asr", (9, 7, 5))
    whole = resample_volume(volume, grid)
    for voxels in (1, 9 * 5, 9 * 13 * 3):
        monkeypatch.setattr(grid_module, "_READ_VOXELS", voxels)
        np.testing.assert_allclose(resample_volume(volume, grid), whole, rtol=1e-5)


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path) -> None:
    smooth = np.add.outer(np.add.outer(np.arange(64.0), np.arange(64.0)), np.arange(64.0)).astype(np.float32)
    volume = _volume(tmp_path / "v.zarr", smooth, (10, 10, 10), levels=3)
    grid = SampleGrid.over(volume, "asr", (40, 40, 40))
    read: list[int] = []
    counted = _Counting(volume, read)
    from_level = resample_volume(counted, grid)  # type: ignore[arg-type]
    assert set(read) == {2}
    np.testing.assert_allclose(
        from_level, smooth.reshape(16, 4, 16, 4, 16, 4).mean(axis=(1, 3, 5)), rtol=1e-4
    )


class _Counting:
    """A volume that notes which levels are read."""

    def __init__(self, volume: Volume, read: list[int]) -> None:
        self._volume, self._read = volume, read

    def __getattr__(self, name: str) -> object:
        return getattr(self._volume, name)

    def read(self, z: slice, y: slice, x: slice, level: int = 0) -> np.ndarray:
        self._read.append(level)
        return self._volume.read(z, y, x, level=level)


@pytest.mark.parametrize("orientation", coords.ORIENTATIONS[::7])
def test_points_agree_with_the_grid_brought_to_asr(tmp_path: Path, orientation: str) -> None:
    volume = _volume(tmp_path / "v.zarr", _random((6, 8, 10)), (30, 20, 10), origin_um=(100, -50, 7))
    grid = SampleGrid.over(volume, orientation, (25, 35, 45))
    values = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    index = np.argwhere(values >= 0)
    um = coords.vox_to_um(index, grid.resolution_um, grid.origin_um)
    edge = grid.um_to_asr_edge_um(um)
    place, inside = coords.atlas_um_to_index(edge, grid.resolution_asr_um, grid.shape_asr)
    assert inside.all()
    assert np.array_equal(grid.to_asr.array(values)[tuple(place.T)], values[tuple(index.T)])
    np.testing.assert_allclose(grid.asr_edge_um_to_um(edge), um, atol=1e-9)
    assert SampleGrid.from_json(grid.to_json()) == grid


def test_lengths_stop_at_the_image_and_at_a_box(tmp_path: Path) -> None:
    volume = _volume(tmp_path / "v.zarr", _random((5, 4, 4)), (10, 10, 10))
    grid = SampleGrid.over(volume, "asr", (20, 20, 20))
    z, y, _ = grid.lengths_um()
    assert z.tolist() == [20, 20, 10]
    assert y.tolist() == [20, 20]
    z, y, x = grid.lengths_um(((5, 100), (-100, 100), (30, 30)))
    assert z.tolist() == [10, 20, 10]
    assert y.tolist() == [20, 20]
    assert x.tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_count_as_nothing(tmp_path: Path, value: float) -> None:
    data = np.ones((4, 4, 4), dtype=np.float32)
    data[1, 1, 1] = value
    volume = _volume(tmp_path / "v.zarr", data, (10, 10, 10))
    found = resample_volume(volume, SampleGrid.over(volume, "asr", (20, 20, 20)))
    data[1, 1, 1] = 0
    blank = _volume(tmp_path / "blank.zarr", data, (10, 10, 10))
    np.testing.assert_array_equal(found, resample_volume(blank, SampleGrid.over(blank, "asr", (20, 20, 20))))
