"""Which part of a brain an image shows: known pieces cut from a made brain are found, whole brains stay whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tifffile
from scipy import ndimage

from brainmap.atlas import Atlas
from brainmap.errors import DataError
from brainmap.image.volume import write_volume
from brainmap.registration.alignment import Framed
from brainmap.registration.partial import Part, cut_template, cut_unmasked, find_part
from brainmap.registration.plausible import check_sections, check_tissue
from brainmap.registration.prepare import prepare
from brainmap.registration.transforms import Transforms

SHAPE = (80, 48, 64)
VOXEL = (100.0, 100.0, 100.0)
ROOT, GREY, CTX, MOB, AOB, CB, HB = 997, 8, 11, 507, 151, 512, 1065


def _bump(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    grid = np.indices(SHAPE)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """A brain of a forebrain, two bulbs in front, a cerebellum above a hindbrain behind."""
    ids = np.zeros(SHAPE, np.uint32)
    ids[_bump((66, 30, 31.5), (12, 10, 10))] = HB
    ids[_bump((64, 16, 31.5), (10, 9, 17))] = CB
    ids[_bump((36, 24, 31.5), (24, 18, 26))] = CTX
    for x in (25.5, 37.5):
        ids[_bump((10, 26, x), (9, 7, 6)) & (ids == 0)] = MOB
        ids[_bump((12, 20, x), (3, 3, 3)) & (ids == MOB)] = AOB
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2.5)
    reference = np.where(ids > 0, 150 + 40 * texture / texture.std() + (ids == CB) * 30, 0)
    folder = tmp_path_factory.mktemp("atlases") / "made_100um_v1.0"
    folder.mkdir()
    tifffile.imwrite(
        folder / "reference.tiff", np.clip(reference, 0, 400).astype(np.uint16), photometric="minisblack"
    )
    tifffile.imwrite(folder / "annotation.tiff", ids, photometric="minisblack")
    paths = {"root": [ROOT], "grey": [ROOT, GREY]}
    leaves = {"CTX": CTX, "MOB": MOB, "AOB": AOB, "CB": CB, "HB": HB}
    paths |= {acronym: [ROOT, GREY, number] for acronym, number in leaves.items()}
    records = [{"id": p[-1], "acronym": a, "name": a, "structure_id_path": p} for a, p in paths.items()]
    (folder / "structures.json").write_text(json.dumps(records))
    facts = {"name": "made", "resolution": VOXEL, "orientation": "asr", "shape": SHAPE, "version": "1.0"}
    (folder / "metadata.json").write_text(json.dumps(facts))
    return Atlas.open(folder)


def _framed(image: np.ndarray, mask: np.ndarray | None = None, scale: float = 0.5) -> Framed:
    return Framed(
        prepare(image.astype(np.float32), tuple(v / scale for v in VOXEL), None, mask), VOXEL, scale
    )


@pytest.fixture(scope="module")
def template(atlas: Atlas) -> Framed:
    return _framed(atlas.reference, atlas.annotation > 0)


def _brain(atlas: Atlas, *missing: int, side: str = "both") -> np.ndarray:
    """The template turned, stretched and bent, without some structures or a hemisphere, on a noisy background."""
    points = np.indices(SHAPE).reshape(3, -1).T.astype(float)
    centre = np.array([36, 24, 31.5])
    turn = np.deg2rad(5)
    linear = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    ) @ np.diag([1.05, 0.96, 1.03])
    places = (points - centre) @ linear.T + centre + [1.0, -1.0, 0.5]
    places += np.stack([np.sin(places[:, 1] / 8), np.sin(places[:, 2] / 8), np.sin(places[:, 0] / 8)], axis=1)
    kept = ~np.isin(atlas.annotation, missing)
    if side != "both":
        kept &= atlas.hemispheres == (1 if side == "left" else 2)
    values = ndimage.map_coordinates(atlas.reference * kept.astype(np.float32), places.T, order=1).reshape(
        SHAPE
    )
    return 100 + 3 * values + np.random.default_rng(1).normal(size=SHAPE) * 8


@pytest.mark.parametrize(
    ("missing", "side", "words"),
    [
        ((), "both", "whole brain"),
        ((MOB, AOB), "both", "whole brain without olfactory bulbs"),
        ((CB,), "both", "whole brain without cerebellum"),
        ((CB, HB), "both", "whole brain without cerebellum and hindbrain"),
        ((), "left", "left hemisphere"),
        ((), "right", "right hemisphere"),
        ((CB, HB), "right", "right hemisphere without cerebellum and hindbrain"),
    ],
)
def test_known_parts_are_found(
    atlas: Atlas, template: Framed, missing: tuple[int, ...], side: str, words: str
) -> None:
    found = find_part(template, _framed(_brain(atlas, *missing, side=side)), atlas)
    assert found.part.words == words, found
    assert found.certain, found
    assert found.to_json()["part"] == words


def test_a_bulb_half_there_is_neither_missing_nor_compared(atlas: Atlas, template: Framed) -> None:
    brain = _brain(atlas)
    brain[:, :, 32:][:14] = 100  # of one of the two bulbs nothing is left, and the other is cut short
    brain[:6] = 100
    found = find_part(template, _framed(brain), atlas)
    assert found.part.whole
    assert found.uncompared == ("MOB", "AOB")
    _, compared = cut_template(template, found, atlas)
    assert not compared[atlas.annotation == MOB].any()
    assert compared[40:].all()


def test_the_cut_template_has_what_is_there(atlas: Atlas, template: Framed) -> None:
    found = find_part(template, _framed(_brain(atlas, CB, side="left")), atlas)
    cut, compared = cut_template(template, found, atlas)
    expected = (atlas.annotation > 0) & (atlas.annotation != CB) & (atlas.hemispheres == 1)
    assert np.array_equal(cut.prepared.mask, expected)
    assert (cut.prepared.global_[~expected & (atlas.annotation > 0)] == 0).all()
    assert not compared[..., :31].any()  # the right side, nor a margin along the cut
    whole, everywhere = cut_template(template, found.as_whole(), atlas)
    assert whole is template and everywhere.all()


def test_what_a_mask_leaves_out_is_cut_from_the_template(
    atlas: Atlas, template: Framed, tmp_path: Path
) -> None:
    identity = {"AffineTransform_float_3_3": [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], "fixed": [0, 0, 0]}
    columns = {name: np.array(values, dtype=np.float32)[:, None] for name, values in identity.items()}
    scipy.io.savemat(tmp_path / "affine.mat", columns, format="4")
    placed, everywhere = Transforms(tmp_path), np.ones(SHAPE, dtype=bool)
    tissue = atlas.annotation > 0
    whole, compared = cut_unmasked(template, _framed(atlas.reference, tissue), placed, everywhere)
    assert whole is template and compared is everywhere
    # One voxel off, as a rough placement may be: that alone cuts nothing from the surface.
    back = tissue & (np.indices(SHAPE)[0] >= 30)
    sample = _framed(atlas.reference, np.roll(back, 1, axis=1))
    cut, compared = cut_unmasked(template, sample, placed, everywhere)
    assert cut.prepared.mask[:30].sum() < 0.01 * tissue[:30].sum()
    assert cut.prepared.mask[34:].sum() == tissue[34:].sum()
    assert compared[:31][tissue[:31]].mean() < 0.01
    assert compared[36:].all()


def test_what_resembles_nothing_is_not_certain(atlas: Atlas, template: Framed) -> None:
    ball = np.where(_bump((40, 24, 32), (12, 12, 12)), 400.0, 100.0)
    noise = np.random.default_rng(0).normal(size=SHAPE) * 10
    assert not find_part(template, _framed(ball + noise), atlas).certain


def test_an_atlas_without_these_structures_knows_sides_only(
    write_atlas, template: Framed, atlas: Atlas
) -> None:
    ids = np.where(atlas.annotation > 0, 8, 0).astype(np.uint32)
    plain = Atlas.open(write_atlas(annotation=ids, reference=atlas.reference))
    found = find_part(template, _framed(_brain(atlas, side="left")), plain)
    assert (found.part.words, found.shown) == ("left hemisphere", {})


def test_words_and_exclusions(atlas: Atlas) -> None:
    part = Part("left").without("cerebellum", ("CB",)).without("olfactory bulbs", ("MOB", "AOB"))
    assert part.words == "left hemisphere without cerebellum and olfactory bulbs"
    ids = np.array([CTX, CTX, CB, MOB, 0])
    assert part.excludes(atlas, ids, np.array([1, 2, 1, 1, 0])).tolist() == [False, True, True, True, False]
    assert Part().whole and not part.whole


@pytest.mark.parametrize(
    ("shape", "voxel", "words"),
    [
        ((1, 30, 30), (50, 10, 10), "a single section along z"),
        ((12, 30, 30), (50, 10, 10), "12 planes along z"),
        ((30, 30, 30), (500, 10, 10), "planes 500 um apart along z; more than 300 um"),
    ],
)
def test_sections_are_refused_in_words(tmp_path: Path, shape: tuple, voxel: tuple, words: str) -> None:
    volume = write_volume(tmp_path / "s.zarr", np.zeros(shape, np.uint16), voxel)
    with pytest.raises(DataError, match=words) as error:
        check_sections(volume, 1.0)
    assert "--no-atlas" in str(error.value)


@pytest.mark.parametrize("factor", [1 / 1.3 ** (1 / 3), 1.0, 1.3 ** (1 / 3)])
def test_brains_a_third_smaller_or_larger_pass(atlas: Atlas, template: Framed, factor: float) -> None:
    sample = _framed(atlas.reference, atlas.annotation > 0)
    resized = Framed(sample.prepared, tuple(v * factor for v in VOXEL), 0.5)
    check_tissue("brain", resized, template, "made", masked=False)


@pytest.mark.parametrize(("factor", "fits"), [(1.7, "0.59"), (0.4, "2.5")])
def test_another_species_or_voxel_size_is_told(
    atlas: Atlas, template: Framed, factor: float, fits: str
) -> None:
    sample = _framed(atlas.reference, atlas.annotation > 0)
    resized = Framed(sample.prepared, tuple(v * factor for v in VOXEL), 0.5)
    with pytest.raises(DataError, match=f"voxels {fits} times as long would fit"):
        check_tissue("brain", resized, template, "made", masked=False)


def test_a_thin_slab_is_refused_unless_a_mask_says_so(atlas: Atlas, template: Framed) -> None:
    slab = (atlas.annotation > 0) & (np.indices(SHAPE)[0] > 30) & (np.indices(SHAPE)[0] < 50)
    sample = _framed(atlas.reference, slab)
    with pytest.raises(DataError, match=r"tissue over 1.9 mm from front to back.*--mask"):
        check_tissue("brain", sample, template, "made", masked=False)
    check_tissue("brain", sample, template, "made", masked=True)
