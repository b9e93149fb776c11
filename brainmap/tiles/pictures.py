"""Plain picture files: PNG, TIFF and JPEG read as one grey image."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, what_it_is

__all__ = ["read_grey", "to_range"]

log = logging.getLogger(__name__)

# Luminance of ITU-R BT.601, as image programs turn colour into grey.
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def to_range(grey: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """Values divided by the range of their type, float32 in 0..1; float images must lie there already.

    Raises
    ------
    DataError
        Values outside, named with the `path` they were read from.
    """
    top = np.iinfo(grey.dtype).max if grey.dtype.kind == "u" else 1
    scaled = grey.astype(np.float32) / np.float32(top)
    if not (scaled.min() >= 0 and scaled.max() <= 1):
        raise DataError(f"{path} holds {grey.dtype} values outside 0..1; import it with normalisation")
    return scaled


def read_grey(path: Path) -> NDArray[Any]:
    """Read one picture; of a colour picture the luminance, which is logged.

    Returns
    -------
    ndarray, shape (height, width)
        Grey pictures in the type of their file; luminance as float32 in 0..1.

    Raises
    ------
    NotFoundError, DataError
        No such file; not a picture, a stack of pictures, or values that are not finite.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            image = tifffile.imread(path)
        else:
            image = imagecodecs.imread(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {str(error).splitlines()[0]}{what_it_is(path)}"
        ) from error
    if image.ndim == 3 and image.shape[2] in (3, 4):
        log.warning("%s is a colour image: its luminance is used", path)
        image = image[..., :3].astype(np.float32) @ _LUMINANCE / np.float32(_full_scale(image.dtype))
    elif image.ndim == 3 and image.shape[2] == 2:
        image = image[..., 0]
    if image.ndim != 2 or image.size == 0 or image.dtype.kind not in "uif":
        raise DataError(
            f"{path} holds an array of shape {image.shape} and type {image.dtype}; "
            "an imported image is one grey or colour picture (brainmap convert makes an image of a stack)"
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise DataError(f"{path} holds values that are not finite")
    return image


def _full_scale(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0
