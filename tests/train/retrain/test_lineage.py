"""A tile that trained an ancestor is known again, whatever it is called now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.tiles.tiles import write_tiles
from brainmap.train.retrain.lineage import Lineage, TilePrint, look_of, print_tiles


def picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((120, 140))
    coarse = ndimage.gaussian_filter(noise, 8)
    return np.clip(0.4 + 0.1 * coarse / coarse.std() + 0.02 * noise, 0, 1)


def prints(folder: Path, images: dict[str, np.ndarray]) -> list[TilePrint]:
    columns = {
        "image_id": list(images), "brain": [name.split("_")[0] for name in images], "z": [0] * len(images),
        "voxel_um": [(10.0, 1.0, 1.0)] * len(images),
    }  # fmt: skip
    return print_tiles(write_tiles(folder, columns, list(images.values())))


@pytest.fixture
def past(tmp_path: Path) -> Lineage:
    """A detector that learnt two sections and was judged on a third."""
    made = prints(tmp_path / "first", {"a": picture(0), "b": picture(1), "c": picture(2)})
    return Lineage().after(made, [("trained", "calibrated"), ("trained",), ("judged",)], "first")


def test_known_by_pixels_by_look_and_by_slice_but_not_by_name_alone(past: Lineage, tmp_path: Path) -> None:
    again = {
        "a": picture(0),  # the same
        "renamed": picture(0),
        "b": picture(1) ** 1.4,  # the same name, imported with other settings
        "other": np.clip(picture(1) ** 1.4, 0, 1),  # neither name nor pixels are the same
        "b_crop": picture(50),  # another part of the slice
        "fresh": picture(9),
        "c": picture(2),  # only judged
    }
    found = past.has(prints(tmp_path / "again", again), "trained")
    assert dict(zip(again, found.tolist(), strict=True)) == {
        "a": True, "renamed": True, "b": True, "other": True, "b_crop": True, "fresh": False, "c": False,
    }  # fmt: skip
    assert past.has(prints(tmp_path / "judged", {"c": picture(2), "a": picture(0)}), "judged").tolist() == [
        True, False,
    ]  # fmt: skip
    # Another laboratory's picture of the same name.
    assert not past.has(prints(tmp_path / "clash", {"a": picture(77)}), "trained").any()


def test_unrelated_pictures_do_not_look_alike() -> None:
    looks = [bytes.fromhex(look_of(picture(seed))) for seed in range(60)]
    bits = np.unpackbits(np.array([list(look) for look in looks], np.uint8), axis=1)
    apart = [(bits[i] != bits[j]).sum() for i in range(60) for j in range(i)]
    assert min(apart) > 64
    rng = np.random.default_rng(0)
    for seed in range(10):
        image = picture(seed)
        changed = ndimage.zoom(np.sqrt(image), 1.3, order=1) + 0.01 * rng.standard_normal((156, 182))
        other = np.unpackbits(np.frombuffer(bytes.fromhex(look_of(changed)), np.uint8))
        assert (other != bits[seed]).sum() <= 32


def test_an_even_or_tiny_picture_has_no_look() -> None:
    assert look_of(np.full((100, 100), 0.3)) == ""
    assert look_of(picture(0)[:10]) == ""
    # Two even pictures of different size are not one and the same.
    flat = [TilePrint("x", "x/0", "1", ""), TilePrint("y", "y/0", "2", "")]
    assert not Lineage().after(flat[:1], [("trained",)], "d").has(flat[1:], "trained").any()


def test_the_record_survives_and_is_inherited(past: Lineage, tmp_path: Path) -> None:
    past.save(tmp_path)
    assert Lineage.of_network(tmp_path / "checkpoint.pt") == past
    assert Lineage.of_network(tmp_path, {"lineage": past.record()}) == past
    more = past.after([TilePrint("d", "d/0", "9", "")], [("trained",)], "second")
    assert [use.detector for use in more.uses] == ["first", "first", "first", "second"]
    assert more.complete
    assert not Lineage.of_network(tmp_path, {}).complete
    assert not replace(past, complete=False).after([], [], "x").complete
    with pytest.raises(DataError, match="what trained it is damaged"):
        Lineage.of_network(tmp_path, {"lineage": {"uses": [{}], "complete": True}})
