"""What the network is shown and asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmap.train.learn.pool import make_volumes
from brainmap.train.learn.samples import (
    GridSettings,
    NetVolume,
    Samples,
    load_volumes,
    net_volume,
    render_targets,
    save_volumes,
)
from brainmap.train.tissue.tissue import TissueConfig, simulate

CONFIG = TissueConfig(
    shape=(16, 200, 200),
    voxel_um=(4.0, 1.0, 1.0),
    density_per_mm3=15_000,
    brightness=4.0,
    vessels=0,
    ring_share=0.0,
)


def cell(k: float, i: float, j: float, radius: float = 2.5, contrast: float = 20.0) -> np.ndarray:
    return np.array([[k, i, j, radius, contrast]], np.float32)


def test_cells_lie_on_the_bright_places_of_the_stack() -> None:
    volume = net_volume(simulate(CONFIG, 0), GridSettings())
    assert volume.stack.shape == (16, 100, 100)
    assert volume.step_um == 4.0
    index = np.rint(volume.cells[:, :3]).astype(int)
    index = np.clip(index, 0, np.array(volume.stack.shape) - 1)
    assert np.median(volume.stack[tuple(index.T)]) > 0.25
    assert abs(float(np.median(volume.stack))) < 0.05


def test_slices_are_grouped_and_positions_follow() -> None:
    fine = replace(CONFIG, shape=(32, 200, 200), voxel_um=(2.0, 1.0, 1.0))
    tissue = simulate(fine, 1)
    volume = net_volume(tissue, GridSettings())
    assert volume.stack.shape[0] == 16
    np.testing.assert_allclose(volume.cells[:, 0], (tissue.centres_vox[:, 0] + 0.5) / 2 - 0.5, atol=1e-4)


def test_target_is_one_at_the_centre_and_offset_leads_back() -> None:
    cells = cell(3.2, 20.3, 31.8)
    targets = render_targets(cells, 3, (64, 64), step_px=2.0)
    assert targets.heat.max() == 1.0
    assert np.argwhere(targets.heat == 1.0).tolist() == [[20, 32]]
    # methods 6: u = floor((x + 0.5) / d), x = (u + 0.5 + o) d - 0.5
    np.testing.assert_allclose(targets.centres + 0.5 + targets.offset - 0.5, [[20.3, 31.8]], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_offset_decodes_at_every_stride(stride: int) -> None:
    rng = np.random.default_rng(0)
    place = rng.uniform(4, 60, (20, 2))
    cells = np.column_stack([np.zeros(20), place, np.full(20, 2.5), np.full(20, 9.0)]).astype(np.float32)
    targets = render_targets(cells, 0, (64 // stride, 64 // stride), step_px=2.0, stride=stride)
    decoded = (targets.centres + 0.5 + targets.offset) * stride - 0.5
    np.testing.assert_allclose(decoded, place, atol=1e-4)
    assert np.abs(targets.offset).max() <= 0.5 + 1e-6


def test_heat_fades_with_distance_from_the_slice() -> None:
    cells = cell(5.0, 32, 32)
    heat = [render_targets(cells, k, (64, 64), step_px=2.0).heat.max() for k in range(3, 8)]
    assert heat[2] == 1.0
    assert heat[1] == pytest.approx(heat[3])
    assert heat[0] < heat[1] < 1.0
    assert heat[0] < 0.2


def test_a_cell_nobody_could_see_is_neither_asked_for_nor_forbidden() -> None:
    faint = render_targets(cell(0, 20, 20, contrast=0.5), 0, (40, 40), step_px=2.0)
    assert faint.heat.max() == 0
    assert faint.weight[20, 20] == 0
    gone = render_targets(cell(0, 20, 20, contrast=0.1), 0, (40, 40), step_px=2.0)
    assert gone.weight.min() == 1


def test_on_a_lone_section_every_cut_cell_counts() -> None:
    cells = cell(1.6, 20, 20)
    assert len(render_targets(cells, 1, (40, 40), step_px=2.0).centres) == 0
    assert len(render_targets(cells, 1, (40, 40), step_px=2.0, alone=True).centres) == 1


def test_turned_samples_stay_true() -> None:
    volumes = [net_volume(simulate(replace(CONFIG, photons=2000), seed), GridSettings()) for seed in range(2)]
    samples = Samples(volumes, crop=64, slices=5, stride=1)
    rng = np.random.default_rng(0)
    at_centres, overall = [], []
    for _ in range(60):
        image, targets = samples.draw(rng)
        assert image.shape == (5, 64, 64)
        assert image.dtype == np.float32
        at_centres.extend(image[2][tuple(targets.centres.T)])
        overall.append(image[2].mean())
    assert np.median(at_centres) > np.mean(overall) + 0.15


def test_a_cell_centred_beyond_a_side_does_not_count() -> None:
    rng = np.random.default_rng(0)
    place = np.column_stack([np.zeros(40), rng.uniform(0, 90, (40, 2)), np.full(40, 3.0), np.full(40, 9.0)])
    volume = NetVolume(np.ones((1, 90, 90), np.float16), 4.0, place.astype(np.float32))
    samples = Samples([volume], crop=24, slices=5, stride=1)
    highest = [samples.draw(rng)[1].heat.max() for _ in range(200)]
    # Where no centre lies in the crop there is nothing, however near one is.
    assert set(highest) == {0.0, 1.0}


def test_a_cell_centred_beyond_a_face_does_not_count() -> None:
    rng = np.random.default_rng(0)
    place = np.column_stack(
        [np.full(60, 5.0), rng.uniform(0, 60, (60, 2)), np.full(60, 3.0), np.full(60, 9.0)]
    )
    # Every slice shows its number: 6 is the one with the cells.
    stack = np.broadcast_to(np.arange(1, 12, dtype=np.float16)[:, None, None], (11, 60, 60))
    samples = Samples([NetVolume(stack, 4.0, place.astype(np.float32))], crop=40, slices=5, stride=1)
    seen = {True: set(), False: set()}
    for _ in range(400):
        image, targets = samples.draw(rng)
        shown, at = np.unique(image[image > 0]), int(image[2].max())
        if len(shown) > 1 and abs(at - 6) <= 1:
            seen[6 in shown].add(bool(targets.heat.max()))
    assert seen == {True: {True}, False: {False}}


def test_volumes_survive_the_disk(tmp_path: Path) -> None:
    volumes = [net_volume(simulate(replace(CONFIG, shape=(4, 80, 80)), 0), GridSettings())]
    save_volumes(tmp_path / "volumes.npz", volumes)
    (again,) = load_volumes(tmp_path / "volumes.npz")
    np.testing.assert_array_equal(again.stack, volumes[0].stack)
    np.testing.assert_array_equal(again.cells, volumes[0].cells)
    assert again.step_um == volumes[0].step_um


def test_equal_seeds_make_equal_volumes() -> None:
    (first,), (second,) = make_volumes(range(3, 4), GridSettings()), make_volumes(range(3, 4), GridSettings())
    np.testing.assert_array_equal(first.stack, second.stack)
