"""Windows, tiles, the default block, tissue atoms and the dry run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.detector import Detector, DetectorSpec
from brainmap.infer.engine.choose import block_cost, choose_block
from brainmap.infer.engine.dispatch import batch_size
from brainmap.infer.engine.engine import RunOptions
from brainmap.infer.engine.estimate import estimate
from brainmap.infer.plan.blocks import Grid, partition
from brainmap.infer.plan.layout import MAX_TILE, make_layout, strips
from brainmap.infer.plan.tissue import atom_mask, cell_mask, has_tissue

Brain = tuple[Volume, Intensity, np.ndarray]


@pytest.mark.parametrize("size", [(4, 16, 16), (9, 64, 112), (40, 2000, 2000), (40, 3000, 48)])
@pytest.mark.parametrize("stride", [1, 4])
def test_tiles_cover_what_a_block_needs(
    toy_record: DetectorSpec, size: tuple[int, int, int], stride: int
) -> None:
    spec = dataclasses.replace(toy_record, stride=stride)
    grid = Grid((40, 2500, 310), (4.0, 2.0, 2.0), 2.0, 1, stride)
    blocks = partition(grid, size)
    layout = make_layout(spec, blocks)
    assert max(layout.tile) <= MAX_TILE
    assert all(n % 16 == 0 for n in layout.tile)
    for block in (blocks[0], blocks[len(blocks) // 2], blocks[len(blocks) - 1]):
        window = layout.window(grid, block)
        for along, need, tile, net in (
            (window.rows, window.y, layout.tile[0], 2500), (window.columns, window.x, layout.tile[1], 310)
        ):  # fmt: skip
            # The own parts follow each other, and lie a halo inside their tiles, but for the volume's faces.
            assert [s.own[0] for s in along] == [need[0], *(s.own[1] for s in along[:-1])]
            assert along[-1].own[1] == need[1]
            for strip in along:
                assert strip.start % 16 == 0 <= strip.start and strip.start + tile <= -(-net // 16) * 16
                assert strip.own[0] - strip.start >= layout.halo or strip.start == 0
                assert strip.start + tile - strip.own[1] >= layout.halo or strip.start + tile >= net
        assert window.y[0] % 16 == window.x[0] % 16 == 0
        # The need holds the block and its margin, as far as the volume goes.
        assert window.y[0] == max(0, block.y[0] - layout.margin)
        assert window.k == (max(0, block.k[0] - layout.margin_k), min(40, block.k[1] + layout.margin_k))
        assert window.read_k[0] == max(0, window.k[0] - 2)


def volume(shape: tuple[int, int, int], chunks: tuple[int, int, int]) -> SimpleNamespace:
    return SimpleNamespace(
        shape=shape, chunks=chunks, unit=chunks, voxel_um=(5.0, 1.0, 1.0), dtype=np.dtype("uint16")
    )


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((250, 2000, 2000), (64, 64, 64)),
        ((600, 6000, 8000), (128, 128, 128)),
        ((300, 10000, 10000), (1, 10000, 10000)),
        ((2000, 20000, 20000), (64, 512, 512)),
        ((1, 500, 400), (1, 500, 400)),
        ((30, 100, 100), (30, 100, 100)),
        ((8, 96, 128), (8, 96, 128)),
        ((8, 20, 3000), (8, 20, 128)),
    ],
)
def test_default_block_keeps_memory_and_waste_small(
    toy_record: DetectorSpec, shape: tuple[int, int, int], chunks: tuple[int, int, int]
) -> None:
    fake = volume(shape, chunks)
    spec = dataclasses.replace(toy_record, halo_px=48, tile=(512, 512))
    grid = Grid.of(shape, fake.voxel_um, spec)
    blocks = partition(grid, choose_block(fake, grid, spec, None, 2))
    layout = make_layout(spec, blocks)
    cost = block_cost(fake, blocks, layout)
    assert cost.peak_bytes <= 1 << 30
    owned = np.prod(blocks.size)
    if np.prod(grid.net_shape) > 1e8:
        assert cost.net_pixels < 1.7 * owned
        assert len(blocks) >= 2


@pytest.mark.parametrize(("threads", "count"), [(1, 1), (2, 2), (4, 4)])
def test_a_small_volume_is_dealt_out_evenly(toy_record: DetectorSpec, threads: int, count: int) -> None:
    # Chunks as deep as two thirds of the volume: whole chunks along z would give one thread two thirds of the work.
    fake = volume((95, 2048, 2048), (64, 128, 128))
    spec = dataclasses.replace(toy_record, halo_px=48, tile=(512, 512))
    grid = Grid.of(fake.shape, fake.voxel_um, spec)
    blocks = partition(grid, choose_block(fake, grid, spec, None, threads))
    assert len(blocks) % count == 0
    owned = [np.prod([stop - start for start, stop in (b.k, b.y, b.x)]) for b in blocks]
    assert max(owned) < 1.1 * min(owned)


def test_a_tile_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="halos"):
        strips((0, 100), 112, 96, 48)


def test_small_blocks_share_a_task() -> None:
    job = SimpleNamespace(blocks=SimpleNamespace(size=(4, 64, 64)))
    assert batch_size(job, 100_000, 2) == 512
    assert batch_size(job, 40, 2) == 5
    assert batch_size(SimpleNamespace(blocks=SimpleNamespace(size=(64, 1024, 1024))), 40, 2) == 1


class Corner:
    """Tissue in the box of voxels below a corner, on bins of 10 voxels."""

    def __init__(self, *corner: int) -> None:
        self.corner = corner

    def tissue_fraction(self, *box: slice) -> float:
        share = 1.0
        for part, end in zip(box, self.corner, strict=True):
            start, stop = part.start // 10 * 10, -(-part.stop // 10) * 10
            share *= max(0, min(stop, end) - start) / (stop - start)
        return share


def test_tissue_is_decided_alike_in_any_window() -> None:
    grid = Grid((30, 200, 200), (4.0, 2.0, 2.0), 2.0, 1, 2)
    source = Corner(20, 110, 70)

    def heat_allowed(k: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> np.ndarray:
        masks = atom_mask(source, grid, k, y, x)
        full = np.ones((100, 100), bool)[y[0] // 2 : y[1] // 2, x[0] // 2 : x[1] // 2]
        return np.stack([full if (m := masks[g]) is None else cell_mask(m, y, x, 2) for g in range(*k)])

    whole = heat_allowed((0, 30), (0, 200), (0, 200))
    assert 0 < whole.mean() < 1
    for k, y, x in [((3, 9), (16, 80), (48, 160)), ((14, 30), (96, 200), (0, 96))]:
        part = heat_allowed(k, y, x)
        np.testing.assert_array_equal(part, whole[k[0] : k[1], y[0] // 2 : y[1] // 2, x[0] // 2 : x[1] // 2])
    for block in partition(grid, (5, 48, 48)):
        own = whole[slice(*block.k), block.y[0] // 2 : block.y[1] // 2, block.x[0] // 2 : block.x[1] // 2]
        # A block may be processed for nothing, but is never left out wrongly.
        assert has_tissue(source, grid, block) or not own.any()


def test_dry_run_foretells_the_run(brain: Brain, toy: Detector) -> None:
    vol, intensity, _ = brain
    found = estimate(vol, intensity, toy, RunOptions(block=(8, 64, 64)))
    assert found.blocks == found.blocks_with_tissue == 4 * 3 * 3
    assert found.tissue_share == 1.0
    assert found.block_vox == (8, 64, 64)
    assert found.bytes_to_read > 2 * np.prod(vol.shape)
    assert found.seconds > 0
    assert found.memory_bytes > 1e8
    assert found.backend == "openvino"
    part = estimate(vol, intensity, toy, RunOptions(block=(8, 64, 64), roi=((0, 8), (0, 64), (0, 64))))
    assert part.blocks < found.blocks


def test_dry_run_counts_blocks_with_tissue_only(
    make_brain: Callable[..., Brain], brain: Brain, toy: Detector
) -> None:
    vol, intensity, _ = brain
    tissue = np.zeros(intensity.tissue.shape, bool)
    tissue[:5] = True
    found = estimate(vol, dataclasses.replace(intensity, tissue=tissue), toy, RunOptions(block=(8, 64, 64)))
    assert 0 < found.blocks_with_tissue < found.blocks
