"""What a detector found on tiles: a table that a tile folder may have beside its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from brainmap.errors import DataError

__all__ = ["DETECTED_PARQUET", "read_detected", "write_detected"]

DETECTED_PARQUET = "detected.parquet"
_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("x", pa.float32()), ("y", pa.float32()), ("score", pa.float32())]
)


def write_detected(
    folder: Path, image_id: NDArray[np.object_], xy: NDArray[np.float64], score: NDArray[np.float32]
) -> None:
    """Write the detections on a folder's tiles.

    Parameters
    ----------
    folder : Path
        Tile folder.
    image_id : ndarray of str, shape (n,)
    xy : ndarray of float64, shape (n, 2)
        Tile pixels, x before y; 0 is the centre of the first pixel.
    score : ndarray of float32, shape (n,)
    """
    order = np.argsort(image_id.astype(str), kind="stable")
    columns = [image_id[order].tolist(), *xy[order].T.astype(np.float32), score[order].astype(np.float32)]
    pa.parquet.write_table(pa.table(columns, schema=_SCHEMA), folder / DETECTED_PARQUET)


def read_detected(folder: Path, image_id: str | None = None) -> pa.Table | None:
    """Detections on a folder's tiles, or on one of them; None where the folder has no such table.

    Returns
    -------
    pyarrow.Table or None
        `image_id x y score`; see `write_detected`.

    Raises
    ------
    DataError
        The file is damaged or another table.
    """
    path = folder / DETECTED_PARQUET
    if not path.is_file():
        return None
    try:
        # Only the row groups that hold the tile are decoded.
        wanted = None if image_id is None else [("image_id", "==", image_id)]
        return pa.parquet.read_table(path, columns=_SCHEMA.names, filters=wanted).cast(_SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is no table of detections on tiles: {error}") from error
