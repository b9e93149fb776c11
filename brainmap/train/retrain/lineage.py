"""What a detector and its ancestors have seen: which tiles trained, calibrated and judged them.

A detector that is improved round after round must never be judged on a tile that taught any of its ancestors. So
every detector folder keeps, in its training record, a print of each tile that was used for it, and takes over
those of the detector it started from. A tile is known again by its pixels, by its look where it was imported
with other settings, and by the slice it was cut from; its name alone proves nothing, because two laboratories
may both have a `0001`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.files import fingerprint, read_json, write_json
from brainmap.tiles.tiles import Tiles

__all__ = ["LINEAGE", "ROLES", "Lineage", "TilePrint", "Use", "look_of", "print_tiles"]

# Beside a checkpoint; a detector folder holds the same under "lineage" in its training record.
LINEAGE = "lineage.json"
ROLES = ("trained", "calibrated", "judged")

# A look is the sign of the 256 differences between neighbours in a coarse picture of 16 x 17 squares.
_ROWS, _COLUMNS = 16, 17
# Of those of two unrelated pictures about 128 differ. So few of one picture imported twice, with other settings;
# and so few where not even the name is the same.
_REIMPORTED, _RENAMED = 64, 32
# A picture of which fewer than this share of the squares differ says nothing by its look.
_TELLING = 0.5


@dataclass(frozen=True)
class TilePrint:
    """What a tile is known by.

    Parameters
    ----------
    image_id, slice : str
        Its name, and that of the slice it was cut from.
    sha256 : str
        Of its shape and pixels.
    look : str
        `look_of` its image.
    """

    image_id: str
    slice: str
    sha256: str
    look: str


@dataclass(frozen=True)
class Use:
    """A tile and what it was used for.

    Parameters
    ----------
    tile : TilePrint
    roles : tuple of str
        Of `ROLES`.
    detector : str
        Which detector of the line used it.
    """

    tile: TilePrint
    roles: tuple[str, ...]
    detector: str


def look_of(image: NDArray[np.floating]) -> str:
    """A coarse picture as 64 hexadecimal digits; "" where an image is too small or too even to tell.

    It stays nearly the same whatever monotone change of the grey levels, rescaling or noise an image went
    through.

    Parameters
    ----------
    image : ndarray, shape (height, width)
    """
    if image.shape[0] < _ROWS or image.shape[1] < _COLUMNS:
        return ""
    rows, columns = (
        np.linspace(0, n, k + 1).astype(int) for n, k in zip(image.shape, (_ROWS, _COLUMNS), strict=True)
    )
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float64), rows[:-1], 0), columns[:-1], 1)
    coarse = sums / np.diff(rows)[:, None] / np.diff(columns)
    step = np.diff(coarse, axis=1)
    if (np.abs(step) > 1e-4).mean() < _TELLING:
        return ""
    return np.packbits(step > 0).tobytes().hex()


def print_tiles(tiles: Tiles) -> list[TilePrint]:
    """The prints of all tiles of a set, in their order."""
    prints = []
    for index, (name, key) in enumerate(zip(tiles.ids, tiles.slice_key, strict=True)):
        image = tiles.image(index)
        grey = np.rint(image * 255).astype(np.uint8)
        content = fingerprint(np.array(grey.shape, np.int64).tobytes() + grey.tobytes())
        prints.append(TilePrint(str(name), str(key), content, look_of(image)))
    return prints


@dataclass(frozen=True)
class Lineage:
    """What is known of a detector's past.

    Parameters
    ----------
    uses : tuple of Use
    complete : bool
        False where the detector, or an ancestor, was made without keeping a record: other tiles than these may
        have trained it.
    """

    uses: tuple[Use, ...] = ()
    complete: bool = True

    @classmethod
    def of_network(cls, path: Path, training: dict[str, Any] | None = None) -> Lineage:
        """Of a detector folder, by its training record, or of a checkpoint, by `lineage.json` beside it.

        Parameters
        ----------
        path : Path
            Detector folder, checkpoint, or folder of a checkpoint.
        training : dict, optional
            The record of a detector.

        Raises
        ------
        DataError
            If the record is damaged.
        """
        beside = (path if path.is_dir() else path.parent) / LINEAGE
        if training is not None:
            record = training.get("lineage")
        else:
            record = read_json(beside) if beside.is_file() else None
        if record is None:
            return cls(complete=False)
        try:
            uses = tuple(
                Use(TilePrint(**use["tile"]), tuple(use["roles"]), str(use["detector"]))
                for use in record["uses"]
            )
            return cls(uses, bool(record["complete"]))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: the record of what trained it is damaged ({error!r})") from error

    def record(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"complete": self.complete, "uses": [asdict(use) for use in self.uses]}

    def save(self, folder: Path) -> None:
        """Write `lineage.json` beside a checkpoint."""
        write_json(folder / LINEAGE, self.record())

    def after(self, prints: Sequence[TilePrint], roles: Iterable[tuple[str, ...]], detector: str) -> Lineage:
        """The lineage of a detector that was made from this one with some more tiles.

        Parameters
        ----------
        prints : sequence of TilePrint
        roles : iterable of tuple of str
            Of each tile; tiles without a role are not recorded.
        detector : str
            Name of the new detector.
        """
        new = [Use(tile, role, detector) for tile, role in zip(prints, roles, strict=True) if role]
        return Lineage((*self.uses, *new), self.complete)

    def has(self, prints: Sequence[TilePrint], role: str) -> NDArray[np.bool_]:
        """Which tiles, or other tiles of their slice, had a role for this detector or an ancestor.

        Parameters
        ----------
        prints : sequence of TilePrint
        role : str
            Of `ROLES`.
        """
        past = [use.tile for use in self.uses if role in use.roles]
        if not past:
            return np.zeros(len(prints), bool)
        contents, slices = {tile.sha256 for tile in past}, {tile.slice for tile in past}
        names = np.array([tile.image_id for tile in past])
        looks, telling = _bits(past)
        mine, told = _bits(prints)
        known = np.zeros(len(prints), bool)
        for index, tile in enumerate(prints):
            apart = np.where(telling & told[index], (looks != mine[index]).sum(axis=1), _ROWS * _COLUMNS)
            named = names == tile.image_id
            # The same name for another picture: so the name of the slice proves nothing either.
            clash = bool((named & telling & told[index] & (apart > _REIMPORTED)).any())
            known[index] = (
                tile.sha256 in contents
                or bool((apart <= np.where(named, _REIMPORTED, _RENAMED)).any())
                or (tile.slice in slices and not clash)
            )
        return known


def _bits(prints: Sequence[TilePrint]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Bits of the looks, (n, 256), and which of them say anything."""
    size = _ROWS * (_COLUMNS - 1)
    empty = "00" * (size // 8)
    packed = np.array([list(bytes.fromhex(tile.look or empty)) for tile in prints], np.uint8)
    bits = np.unpackbits(packed.reshape(len(prints), -1), axis=1)
    return bits, np.array([bool(tile.look) for tile in prints], bool)
