"""The pool of volumes that pre-training draws from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.train.learn import pool as module
from brainmap.train.learn.pool import PoolConfig, load_pool, prepare_pool
from brainmap.train.learn.samples import GridSettings, Samples, net_volume
from brainmap.train.tissue.inserted import Background, insert_cells
from brainmap.train.tissue.tissue import TissueConfig, simulate_section

EASY = TissueConfig(
    shape=(6, 128, 128), voxel_um=(4.0, 2.0, 2.0), density_per_mm3=40_000, brightness=5.0, vessels=0,
    ring_share=0.0, texture_fine=0.02, photons=2000,
)  # fmt: skip
GRID = GridSettings()


@pytest.fixture
def easy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small quick tissue in place of random looks."""
    monkeypatch.setattr(module, "_PER_FILE", 1)
    look = classmethod(lambda cls, rng, extent_um=0.0: EASY)
    monkeypatch.setattr(TissueConfig, "random", look)
    monkeypatch.setattr(TissueConfig, "section", look)


def flat_stack(level: float = 300.0) -> Background:
    """Even tissue on the left, darkness on the right."""
    rng = np.random.default_rng(0)
    image = rng.normal(20, 2, (8, 160, 240))
    image[:, :, :160] += level + rng.normal(0, 15, (8, 160, 160))
    return Background(image.clip(0).astype(np.uint16), (5.0, 2.0, 2.0))


@pytest.mark.usefixtures("easy")
def test_the_pool_is_made_once_and_a_larger_one_keeps_it(tmp_path: Path) -> None:
    files = prepare_pool(tmp_path, PoolConfig(volumes=2), GRID, processes=1)["volumes"]
    times = [path.stat().st_mtime_ns for path in files]
    more = prepare_pool(tmp_path, PoolConfig(volumes=3, sections=1), GRID, processes=1)
    assert [path.stat().st_mtime_ns for path in more["volumes"][:2]] == times
    assert len(more["volumes"]) == 3
    assert len(more["sections"]) == 1


@pytest.mark.usefixtures("easy")
def test_kinds_are_drawn_by_their_shares(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "real.tif", flat_stack().image)
    config = PoolConfig(
        volumes=3, sections=2, inserted=1, section_share=0.2, inserted_share=0.3,
        backgrounds=("real.tif",), background_voxel_um=((5.0, 2.0, 2.0),),
    )  # fmt: skip
    pool = load_pool(prepare_pool(tmp_path / "pool", config, GRID, tmp_path, processes=1), config)
    np.testing.assert_allclose(pool.probability, [0.5 / 3] * 3 + [0.1] * 2 + [0.3])
    samples = Samples(pool.volumes, 32, 5, 1, probability=np.array([0, 0, 0, 0, 0, 1.0]))
    only = Samples(pool.volumes[-1:], 32, 5, 1)
    for seed in range(5):
        # With all probability on the last volume, only its draws come (one number chooses the volume).
        a, _ = samples.draw(np.random.default_rng(seed))
        b, _ = only.draw(np.random.default_rng(seed))
        np.testing.assert_array_equal(a, b)


def test_inserted_cells_lie_in_tissue_and_brighten_it() -> None:
    stack = flat_stack()
    tissue = insert_cells(stack, seed=3)
    assert len(tissue.centres_vox) > 5
    depth = tissue.signal[tuple(np.rint(tissue.centres_vox).astype(int).T)]
    assert (depth > 0).mean() > 0.8
    plain = tissue.image.astype(float) - tissue.signal
    at_cells = plain[tuple(np.rint(tissue.centres_vox).astype(int).T)]
    assert np.median(at_cells) > 200, "most cells lie in tissue, not in the dark beside it"
    again = insert_cells(stack, seed=3)
    np.testing.assert_array_equal(again.image, tissue.image)
    assert len(net_volume(tissue, GRID).cells) == len(tissue.centres_vox)


def test_a_section_is_one_slice_whose_cells_do_not_lie_over_each_other() -> None:
    config = replace(EASY, shape=(8, 150, 150), voxel_um=(3.0, 1.5, 1.5))
    section = simulate_section(config, 5)
    assert section.image.shape == (1, 150, 150)
    assert section.voxel_um == (24.0, 1.5, 1.5)
    assert (section.centres_vox[:, 0] == 0).all()
    place = section.centres_vox[:, 1:] * 1.5
    apart = np.linalg.norm(place[:, None] - place[None], axis=2)[np.triu_indices(len(place), 1)]
    assert apart.min() >= 0.6 * config.diameter_um


def test_random_sections_can_be_made() -> None:
    for seed in range(3):
        config = TissueConfig.section(np.random.default_rng(seed), extent_um=120.0)
        assert simulate_section(config, seed).image.shape[0] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volumes": 0}, "at least one"),
        ({"inserted": 3}, "no backgrounds"),
        ({"backgrounds": ("a.tif",)}, "one voxel size"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PoolConfig(**changes)


def test_a_missing_background_is_named(tmp_path: Path) -> None:
    config = PoolConfig(
        volumes=1, inserted=1, backgrounds=("none.tif",), background_voxel_um=((5.0, 2.0, 2.0),)
    )
    (tmp_path / "volumes-0000.npz").touch()
    with pytest.raises(NotFoundError, match=r"none\.tif"):
        prepare_pool(tmp_path, config, GRID, tmp_path, processes=1)


def test_a_short_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are needed"):
        load_pool({"volumes": [], "faint": [], "sections": [], "inserted": []}, PoolConfig(volumes=1))
