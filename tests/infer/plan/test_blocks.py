"""The net grid and its partition: pure geometry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainmap.errors import UsageError
from brainmap.infer.plan.blocks import Grid, align_up, block_in_net, partition


def grid(shape=(37, 301, 259), voxel=(4.0, 1.8, 2.0), pixel=2.0, group=1, stride=1) -> Grid:
    return Grid(shape, voxel, pixel, group, stride)


@pytest.mark.parametrize("size", [(1, 16, 16), (8, 64, 48), (16, 128, 256), (100, 9999, 9999), (5, 30, 30)])
@pytest.mark.parametrize("group", [1, 3])
def test_blocks_cover_the_grid_without_overlap(size: tuple[int, int, int], group: int) -> None:
    blocks = partition(grid(group=group), size)
    owners = np.zeros(blocks.grid.net_shape, int)
    for block in blocks:
        owners[slice(*block.k), slice(*block.y), slice(*block.x)] += 1
    assert (owners == 1).all()
    assert len(list(blocks)) == len(blocks)


def test_every_peak_is_owned_once() -> None:
    blocks = partition(grid(), (7, 48, 80))
    rng = np.random.default_rng(0)
    peaks = [rng.integers(0, n, 5000) for n in blocks.grid.net_shape]
    owners = sum(block.owns(*peaks).astype(int) for block in blocks)
    assert (owners == 1).all()


def test_origins_are_multiples_of_16_and_indices_run_z_first() -> None:
    blocks = partition(grid(), (8, 50, 50))
    assert all(b.y[0] % 16 == 0 and b.x[0] % 16 == 0 for b in blocks)
    starts = [(b.k[0], b.y[0], b.x[0]) for b in blocks]
    assert starts == sorted(starts)
    assert [b.index for b in blocks] == list(range(len(blocks)))


def test_net_pixels_hold_the_volume() -> None:
    g = grid(shape=(10, 100, 100), voxel=(5.0, 0.7, 3.0), pixel=2.0, group=2)
    assert g.net_shape == (5, 35, 150)
    # The first net pixel starts at the corner of the first voxel: 0.7 um voxels, 2 um pixels.
    assert g.to_vox(np.array([0.0]), 1)[0] == pytest.approx((1.0 / 0.7) - 0.5)
    assert g.group_z(np.array([0, 4])).tolist() == [0.5, 8.5]
    assert Grid((5, 9, 9), (1, 1, 1), 1.0, 2, 1).group_z(np.array([2])).tolist() == [4.0]


def test_spans_turn_into_voxels_and_back() -> None:
    g = grid()
    for axis, (a, b) in itertools.product((0, 1, 2), [(0, 5), (3, 17), (20, 37)]):
        start, stop = g.voxel_span((a, b), axis)
        back = g.net_span((start, stop), axis)
        assert back[0] <= a
        assert back[1] >= min(b, g.net_shape[axis])


def test_roi_keeps_the_blocks_of_the_whole_run() -> None:
    g = grid()
    whole = {(b.k, b.y, b.x) for b in partition(g, (8, 64, 64))}
    part = partition(g, (8, 64, 64), ((10, 12), (100, 140), (0, 50)))
    assert {(b.k, b.y, b.x) for b in part} <= whole
    assert 0 < len(part) < len(whole)


@pytest.mark.parametrize(
    "roi", [((0, 0), (0, 9), (0, 9)), ((0, 99), (0, 9), (0, 9)), ((-1, 3), (0, 9), (0, 9))]
)
def test_bad_roi_is_refused(roi: tuple) -> None:
    with pytest.raises(UsageError, match="--roi"):
        partition(grid(), (8, 64, 64), roi)


def test_block_option_is_in_voxels() -> None:
    g = grid(voxel=(1.0, 1.0, 0.5), group=4)
    assert block_in_net(g, (64, 200, 200)) == (16, 96, 48)
    assert block_in_net(g, (1, 1, 1)) == (1, 16, 16)
    with pytest.raises(UsageError, match="--block"):
        block_in_net(g, (0, 5, 5))


def test_align_up() -> None:
    assert [align_up(n) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]
    assert align_up(7, 5) == 10


QUICK = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 400), st.integers(1, 400))
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 500), st.integers(1, 500))


@QUICK
@given(SHAPES, SIZES, st.integers(1, 4), st.floats(0.3, 6.0), st.floats(0.3, 6.0))
def test_any_blocks_cover_any_grid_once(shape, size, group, voxel, pixel):
    blocks = partition(Grid(shape, (2.0, voxel, 1.1 * voxel), pixel, group, 1), size)
    for axis in range(3):
        spans = {(b.k, b.y, b.x)[axis] for b in blocks}
        edges = [n for span in sorted(spans) for n in span]
        assert edges[0] == 0
        assert edges[-1] == blocks.grid.net_shape[axis]
        assert edges[1:-1:2] == edges[2:-1:2]
    assert len({(b.k, b.y, b.x) for b in blocks}) == len(blocks)


@QUICK
@given(SHAPES, SIZES, st.integers(1, 4), st.data())
def test_blocks_of_a_region_are_blocks_of_the_whole_and_hold_it(shape, size, group, data):
    whole = Grid(shape, (2.0, 1.8, 2.0), 2.0, group, 1)
    roi = []
    for n in shape:
        start = data.draw(st.integers(0, n - 1))
        roi.append((start, data.draw(st.integers(start + 1, n))))
    every = {(b.k, b.y, b.x) for b in partition(whole, size)}
    part = [(b.k, b.y, b.x) for b in partition(whole, size, tuple(roi))]
    assert set(part) <= every
    for axis in range(3):
        low, high = whole.net_span(roi[axis], axis)
        assert min(spans[axis][0] for spans in part) <= low
        assert max(spans[axis][1] for spans in part) >= high


@QUICK
@given(SHAPES, st.integers(1, 4), st.floats(0.3, 6.0), st.data())
def test_spans_of_voxels_and_of_the_net_hold_each_other(shape, group, pixel, data):
    net = Grid(shape, (2.0, 1.3, 1.7), pixel, group, 1)
    axis = data.draw(st.integers(0, 2))
    start = data.draw(st.integers(0, shape[axis] - 1))
    stop = data.draw(st.integers(start + 1, shape[axis]))
    again = net.voxel_span(net.net_span((start, stop), axis), axis)
    assert again[0] <= start
    assert again[1] >= stop
