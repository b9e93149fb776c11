"""Background, noise and tissue: known answers on images made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import BACKGROUND_VALUE, LEAST_TEXTURE, Intensity, noise_of
from brainmap.image.volume import Volume, write_volume

VOXEL = (5.0, 2.0, 2.0)


def tissue(shape: tuple[int, int, int] = (12, 200, 240), seed: int = 0, noise: float = 10.0) -> np.ndarray:
    """Even tissue of 300 grey levels with Gaussian noise."""
    rng = np.random.default_rng(seed)
    return (300 + noise * rng.standard_normal(shape)).astype(np.float32)


def everywhere(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(n, dtype=float) for n in shape)


def fit(image: np.ndarray) -> Intensity:
    return Intensity.fit(ArraySource(image, VOXEL))


def test_contrast_counts_in_noise_and_normalised_background_is_constant() -> None:
    image = tissue()
    intensity = fit(image)
    axes = everywhere(image.shape)
    contrast = intensity.contrast(image, *axes)
    # The noise is that of a detector pixel, which is one voxel here; the quantile background lies a bit low.
    assert np.median(contrast) == pytest.approx(0, abs=0.3)
    assert contrast.std() == pytest.approx(1, rel=0.25)
    value = intensity.normalise(np.full_like(image, 300), *axes)
    assert value == pytest.approx(BACKGROUND_VALUE, abs=0.02)


def test_section_gain_and_uneven_light_leave_no_trace() -> None:
    image = tissue()
    rng = np.random.default_rng(1)
    gain = np.exp(rng.normal(0, 0.15, len(image)))[:, None, None]
    shade = 1 + 0.4 * np.linspace(-1, 1, image.shape[2])[None, None]
    uneven = (image * gain * shade).astype(np.float32)
    value = fit(uneven).normalise(uneven, *everywhere(image.shape))
    per_section = value.mean(axis=(1, 2))
    per_column = value.mean(axis=(0, 1))[10:-10]
    assert per_section.std() < 0.01
    assert np.ptp(per_column) < 0.06
    assert uneven.mean(axis=(0, 1)).max() > 1.8 * uneven.mean(axis=(0, 1)).min()
    assert np.ptp(uneven.mean(axis=(1, 2))) > 60


def test_any_part_is_normalised_as_in_the_whole() -> None:
    image = tissue()
    intensity = fit(image)
    z, y, x = everywhere(image.shape)
    whole = intensity.normalise(image, z, y, x)
    part = intensity.normalise(image[3:7, 31:77, 100:240], z[3:7], y[31:77], x[100:240])
    np.testing.assert_array_equal(part, whole[3:7, 31:77, 100:240])


def test_cells_do_not_raise_background_or_noise() -> None:
    image = tissue()
    clean = fit(image)
    rng = np.random.default_rng(2)
    crowded = image.copy()
    for z, y, x in zip(*(rng.integers(5, n - 5, 250) for n in image.shape[:0] + (17, 200, 240)), strict=True):
        crowded[max(0, z - 6) : z - 3, y - 2 : y + 3, x - 2 : x + 3] += 500
    busy = fit(crowded)
    # Three percent of the volume fifty times as bright as the noise: without care it would be tenfold.
    assert crowded.std() > 8 * clean.noise
    assert busy.noise < 1.7 * clean.noise
    assert busy.typical == pytest.approx(clean.typical, rel=0.03)


def test_dark_surroundings_are_found_and_the_edge_has_no_bright_rim() -> None:
    image = tissue((6, 400, 400))
    y, x = np.mgrid[:400, :400]
    outside = (y - 200) ** 2 + (x - 200) ** 2 > 150**2
    rng = np.random.default_rng(3)
    image[:, outside] = 20 + 2 * rng.standard_normal((6, int(outside.sum())))
    intensity = fit(image)
    assert intensity.surrounded
    assert intensity.dark == pytest.approx(20, abs=3)
    assert intensity.tissue_fraction(slice(0, 6), slice(0, 40), slice(0, 40)) == 0
    assert intensity.tissue_fraction(slice(0, 6), slice(180, 220), slice(180, 220)) == 1
    contrast = intensity.contrast(image, *everywhere(image.shape))
    rim = (np.hypot(y - 200, x - 200) < 149) & (np.hypot(y - 200, x - 200) > 140)
    assert abs(contrast[:, rim].mean()) < 1.5
    assert contrast[:, outside].mean() < -5


def test_tissue_that_fills_the_image_is_all_tissue() -> None:
    image = tissue() * np.linspace(0.6, 1.4, 240)[None, None].astype(np.float32)
    intensity = fit(image)
    assert not intensity.surrounded
    assert intensity.tissue.all()


def test_bright_cells_on_black_do_not_make_the_rest_surroundings() -> None:
    rng = np.random.default_rng(4)
    image = 5 + rng.standard_normal((10, 300, 300)).astype(np.float32)
    for z, y, x in zip(
        rng.integers(0, 10, 60), rng.integers(9, 290, 60), rng.integers(9, 290, 60), strict=True
    ):
        image[z, y - 3 : y + 3, x - 3 : x + 3] += 200
    assert fit(image).tissue.all()


def test_pyramid_and_bare_level_agree(tmp_path: Path) -> None:
    image = tissue((16, 600, 600)).clip(0).astype(np.uint16)
    volume = write_volume(tmp_path / "a.ome.zarr", image, VOXEL)
    assert len(volume.levels) > 1
    with_levels, without = Intensity.fit(volume), fit(image)
    assert with_levels.typical == pytest.approx(without.typical, rel=0.02)
    assert with_levels.noise == pytest.approx(without.noise, rel=0.05)
    assert isinstance(volume, Volume)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    image = tissue()
    intensity = fit(image)
    intensity.save(tmp_path / "intensity.npz")
    again = Intensity.load(tmp_path / "intensity.npz")
    axes = everywhere(image.shape)
    np.testing.assert_array_equal(again.normalise(image, *axes), intensity.normalise(image, *axes))
    np.testing.assert_array_equal(again.tissue, intensity.tissue)
    assert again.shape == intensity.shape


def test_not_a_number_becomes_background() -> None:
    image = tissue()
    image[3, 50:60, 50:60] = np.nan
    intensity = fit(image)
    contrast = intensity.contrast(image, *everywhere(image.shape))
    assert np.isfinite(contrast).all()
    assert (contrast[3, 50:60, 50:60] == 0).all()


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_one_grey_level_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="one grey level only"):
        fit(np.full((4, 64, 64), value, np.float32))


def test_noise_is_measured_below_the_median() -> None:
    rng = np.random.default_rng(5)
    image = 100 + 7 * rng.standard_normal((4, 128, 128))
    assert noise_of(image) == pytest.approx(7, rel=0.1)
    image[:, ::9, ::9] += 400
    assert noise_of(image) < 40


def test_contrast_at_single_places_is_that_of_the_grid() -> None:
    image = tissue() + np.linspace(0, 80, 240, dtype=np.float32)
    intensity = fit(image)
    axes = everywhere(image.shape)
    whole = intensity.contrast(image, *axes)
    y, x = np.array([0, 17, 199, 100]), np.array([0, 230, 239, 120])
    near = intensity.contrast_near(image[5, y, x], 5.0, y.astype(float), x.astype(float))
    np.testing.assert_allclose(near, whole[5, y, x], atol=2e-3)
    assert intensity.contrast_near(np.zeros(0, np.float32), 5.0, np.zeros(0), np.zeros(0)).shape == (0,)


def test_values_that_are_no_numbers_count_as_background() -> None:
    image = tissue()
    intensity = fit(image)
    broken = image.copy()
    broken[3, 50, 60] = np.nan
    contrast = intensity.contrast(broken, *everywhere(image.shape))
    assert contrast[3, 50, 60] == 0
    assert np.isfinite(contrast).all()


def test_contrast_of_a_section_is_that_of_its_places() -> None:
    rng = np.random.default_rng(3)
    rows = np.linspace(400, 600, 160)[:, None] + 50 * np.sin(np.arange(240) / 40)
    image = rng.normal(rows, 10, (6, 160, 240)).astype(np.float32)
    intensity = fit(image)
    section = intensity.contrast(image, *everywhere(image.shape))[3]
    y, x = (axis.ravel().astype(float) for axis in np.indices((160, 240)))
    places = intensity.contrast_near(image[3].ravel(), 3.0, y, x).reshape(160, 240)
    # The noise of a section is interpolated between rows of bins.
    np.testing.assert_allclose(section, places, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("outside", [0.0, np.nan, np.inf])
def test_where_nothing_was_recorded_takes_no_part(outside: float) -> None:
    """Padding, masks and missing tiles change neither noise nor dark level nor background."""
    piece = tissue()
    alone = fit(piece)
    depth, height, width = piece.shape
    padded = np.full((depth + 4, height + 90, width + 70), outside, np.float32)
    padded[2 : 2 + depth, 50 : 50 + height, 30 : 30 + width] = piece
    framed = fit(padded)
    assert framed.noise == pytest.approx(alone.noise, rel=0.1)
    assert framed.typical == pytest.approx(alone.typical, rel=0.02)
    assert framed.dark == pytest.approx(alone.dark, abs=alone.noise)
    assert framed.surrounded == alone.surrounded
    assert not framed.tissue[:2].any() and not framed.tissue[-2:].any()


def test_single_zeros_of_a_dim_image_are_data() -> None:
    """Photons counted one by one: a third of all voxels are 0, and belong to the noise."""
    counts = np.random.default_rng(3).poisson(1.0, (6, 160, 160)).astype(np.float32)
    assert 0.2 < fit(counts).noise < 1.5


def test_rounding_is_the_noise_of_an_image_of_few_grey_levels() -> None:
    rng = np.random.default_rng(0)
    fine = 20.4 + 0.1 * rng.standard_normal((8, 160, 160))
    fine[:, ::40, ::40] += 60
    voxel = (4.0, 2.0, 2.0)
    rounded = Intensity.fit(ArraySource(np.rint(fine).astype(np.uint8), voxel))
    assert rounded.noise >= 1 / np.sqrt(12)
    # The same in 16 bits, every 32nd grey level used: contrast is as before.
    coarse = Intensity.fit(ArraySource(np.rint(fine).astype(np.uint16) * 32, voxel))
    np.testing.assert_allclose(coarse.noise / 32, rounded.noise, rtol=1e-5)
    # Real noise far above the rounding is what it was.
    noisy = 1000 + 30 * rng.standard_normal((8, 160, 160))
    as_float, as_int = (
        Intensity.fit(ArraySource(image, voxel))
        for image in (noisy.astype(np.float32), np.rint(noisy).astype(np.uint16))
    )
    np.testing.assert_allclose(as_int.noise, as_float.noise, rtol=0.01)


def test_texture_is_what_stands_out_at_the_scale_of_cells() -> None:
    rng = np.random.default_rng(3)
    voxel = (4.0, 2.0, 2.0)
    noise = rng.standard_normal((8, 200, 200))
    white = Intensity.fit(ArraySource((1000 + 20 * noise).astype(np.float32), voxel))
    assert white.texture == pytest.approx(0.1, abs=0.02)
    blobs = ndimage.gaussian_filter(rng.standard_normal((8, 200, 200)), (0, 2, 2))
    mottled = Intensity.fit(
        ArraySource((1000 + 20 * noise + 60 * blobs / blobs.std()).astype(np.float32), voxel)
    )
    assert mottled.texture > 2 * white.texture
    # Neither the light nor the grey scale plays a part.
    brighter = Intensity.fit(ArraySource((5000 + 100 * noise).astype(np.float32), voxel))
    assert brighter.texture == pytest.approx(white.texture, rel=0.01)
    cells = 1000 + 20 * noise
    cells[:, 20::40, 20::40] += 4000
    assert Intensity.fit(ArraySource(cells.astype(np.float32), voxel)).texture < 1.3 * white.texture


def test_runs_of_before_have_the_least_texture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fitted = Intensity.fit(ArraySource(rng.normal(100, 5, (4, 64, 64)).astype(np.float32), (4.0, 2.0, 2.0)))
    fitted.save(tmp_path / "new.npz")
    assert Intensity.load(tmp_path / "new.npz").texture == fitted.texture
    with np.load(tmp_path / "new.npz") as record:
        np.savez(tmp_path / "old.npz", **{k: record[k] for k in record.files if k != "texture"})
    assert Intensity.load(tmp_path / "old.npz").texture == LEAST_TEXTURE


BLANK = {
    "a missing tile": lambda image: image[:, 100:200, 60:160],
    "a missing slice": lambda image: image[5:6],
    "every fourth slice": lambda image: image[::4],
    "blank slices at the end": lambda image: image[9:],
    "a corner": lambda image: image[:, :120, :120],
    "a half brain": lambda image: image[:, :, :120],
    "lost lines": lambda image: image[:, ::20, :],
    "lost columns": lambda image: image[:, :, ::31],
    "a frame": lambda image: image[:, :, :24],
}


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("kind", BLANK)
def test_what_was_not_recorded_leaves_noise_and_background_as_they_are(kind: str, value: float) -> None:
    whole = tissue()
    alone = fit(whole)
    holed = whole.copy()
    BLANK[kind](holed)[...] = value
    found = fit(holed)
    assert found.noise == pytest.approx(alone.noise, rel=0.1)
    assert found.typical == pytest.approx(alone.typical, rel=0.02)
    assert found.surrounded == alone.surrounded
