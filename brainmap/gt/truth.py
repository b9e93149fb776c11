"""Reading ground truth back: points, soft maps and validation points of every image.

What training and evaluation ask of a ground truth, whether it was aggregated from clicks (a folder as
`brainmap.gt.aggregate` writes it) or is a plain list of points, such as an expert's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from brainmap.errors import DataError, NotFoundError
from brainmap.files import read_json
from brainmap.gt.clicks import read_point_table
from brainmap.gt.compare import PointSet

__all__ = ["THETA_ABS", "THETA_REL", "GroundTruth", "local_maxima", "read_experts"]

Floats = npt.NDArray[np.float64]
Shapes = Mapping[str, tuple[int, int]]

# Validation points: local maxima of at least max(theta_abs, theta_rel x maximum of the map) (methods 7).
THETA_ABS, THETA_REL = 0.05, 0.3
# Gaussians of drawn points end here (methods 4.4).
_CUT_SIGMAS = 2.5


@dataclass(frozen=True)
class GroundTruth:
    """True points of a set of images, and their soft maps.

    Parameters
    ----------
    ids : ndarray of str, shape (m,)
        The images, sorted; those without a point included.
    image : ndarray of int64, shape (n,)
        Row in `ids` of every point.
    xy : ndarray of float64, shape (n, 2)
        x right, y down, px; 0 is the centre of the first pixel.
    confidence, posterior : ndarray of float64, shape (n,)
        Support by the clicks, and probability of a cell, both 0..1.
    folder : Path or None
        The ground-truth folder; None where maps are drawn from the points.
    shapes : mapping of str to (height, width)
        Of the images whose maps are drawn.
    sigma_px : float
        Width of a drawn point.
    """

    ids: npt.NDArray[np.str_]
    image: npt.NDArray[np.int64]
    xy: Floats
    confidence: Floats
    posterior: Floats
    folder: Path | None
    shapes: Shapes
    sigma_px: float = 2.0

    @classmethod
    def open(cls, folder: str | Path) -> GroundTruth:
        """Open a ground-truth folder.

        Raises
        ------
        NotFoundError
            If it is no ground-truth folder.
        DataError
            If it is incomplete or damaged.
        """
        folder = Path(folder)
        if not (folder / "gt.json").is_file():
            raise NotFoundError(
                f"{folder} is no complete ground-truth folder: there is no gt.json in it; "
                "make one with brainmap gt aggregate"
            )
        record = read_json(folder / "gt.json")
        maps = folder / "heatmaps"
        names = sorted(path.relative_to(maps).with_suffix("").as_posix() for path in maps.rglob("*.npy"))
        expected = record.get("n_images") if isinstance(record, dict) else None
        if len(names) != expected:
            raise DataError(
                f"{folder}: {len(names)} heat maps for {expected} images; run brainmap gt aggregate again"
            )
        table = PointSet.read(folder)
        return cls._of(names, table.image, table.xy, table.confidence, table.posterior, folder, {}, 2.0)

    @classmethod
    def from_points(
        cls,
        image_id: npt.ArrayLike,
        xy: npt.ArrayLike,
        shapes: Shapes,
        *,
        confidence: npt.ArrayLike | None = None,
        sigma_px: float = 2.0,
    ) -> GroundTruth:
        """Ground truth from plain points, such as an expert's.

        Parameters
        ----------
        image_id : array_like of str, shape (n,)
        xy : array_like, shape (n, 2)
        shapes : mapping of str to (height, width)
            Every image that was looked at, those without a point included.
        confidence : array_like, shape (n,), optional
            1 by default; it is the posterior, too.
        sigma_px : float
            Width of a point in the drawn map, px.

        Raises
        ------
        DataError
            For a point in an image that is not in `shapes`, or arrays that do not agree.
        """
        image = np.asarray(image_id).astype(str).reshape(-1)
        places = np.asarray(xy, np.float64).reshape(-1, 2)
        sure = np.ones(len(image)) if confidence is None else np.asarray(confidence, np.float64).reshape(-1)
        if not len(image) == len(places) == len(sure):
            raise DataError(f"{len(places)} points need as many image ids and confidences")
        if not (np.isfinite(places).all() and (sure >= 0).all() and (sure <= 1).all()):
            raise DataError("points need finite coordinates and confidences within 0..1")
        sizes = {str(name): (int(h), int(w)) for name, (h, w) in shapes.items()}
        return cls._of(sorted(sizes), image, places, sure, sure, None, sizes, sigma_px)

    @classmethod
    def _of(
        cls,
        names: list[str],
        image_id: npt.NDArray,
        xy: Floats,
        confidence: Floats,
        posterior: Floats,
        folder: Path | None,
        shapes: Shapes,
        sigma_px: float,
    ) -> GroundTruth:
        row_of = {name: row for row, name in enumerate(names)}
        if unknown := sorted(set(image_id.tolist()) - set(row_of)):
            where = f"{folder} has no heat map of" if folder else "the images do not include"
            raise DataError(f"{where} {unknown[0]!r}, in which there are points")
        image = np.array([row_of[name] for name in image_id.tolist()], np.int64)
        ids = np.array(names, dtype=str)
        return cls(ids, image, xy, confidence, posterior, folder, shapes, sigma_px)

    def __contains__(self, image_id: str) -> bool:
        return self._row(image_id) is not None

    def points(self, image_id: str) -> tuple[Floats, Floats, Floats]:
        """Candidates of an image: `xy` (n, 2), `confidence` (n,), `posterior` (n,); see `accepted`."""
        use = self.image == self._known(image_id)
        return self.xy[use], self.confidence[use], self.posterior[use]

    def accepted(self, image_id: str, posterior: float = 0.5) -> tuple[Floats, Floats]:
        """Cells of an image, candidates of at least this posterior: `xy` (n, 2), `confidence` (n,)."""
        xy, confidence, sure = self.points(image_id)
        return xy[sure >= posterior], confidence[sure >= posterior]

    def heatmap(self, image_id: str) -> npt.NDArray[np.float32]:
        """The soft map of an image, float32 (height, width), 0..1.

        Drawn maps take the largest Gaussian, its peak the point's confidence.
        """
        self._known(image_id)
        if self.folder is None:
            xy, confidence, _ = self.points(image_id)
            return _draw(xy, confidence, self.shapes[image_id], self.sigma_px)
        path = self.folder / "heatmaps" / f"{image_id}.npy"
        try:
            heat = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read: {error}; run brainmap gt aggregate again") from error
        if heat.ndim != 2 or heat.dtype.kind != "f":
            raise DataError(f"{path} is no heat map: its shape is {heat.shape}, its type {heat.dtype}")
        return heat.astype(np.float32, copy=False)

    def peaks(
        self, image_id: str, theta_abs: float = THETA_ABS, theta_rel: float = THETA_REL
    ) -> tuple[Floats, Floats]:
        """Validation points of an image: local maxima of its map (methods 7).

        Plain points are their own maxima, so that drawing them costs no accuracy.

        Parameters
        ----------
        theta_abs, theta_rel : float
            A maximum counts from max(theta_abs, theta_rel x largest value of the map).

        Returns
        -------
        xy : (n, 2) float64
            Sub-pixel, within half a pixel of the maximum.
        confidence : (n,) float64
            Value of the map there.
        """
        if self.folder is None:
            xy, confidence, _ = self.points(image_id)
        else:
            xy, confidence = local_maxima(self.heatmap(image_id))
        use = confidence >= max(theta_abs, theta_rel * confidence.max(initial=0.0))
        return xy[use], confidence[use]

    def take(self, image_ids: Iterable[str]) -> GroundTruth:
        """The ground truth of some of the images."""
        wanted = sorted({str(name) for name in image_ids})
        rows = np.array([self._known(name) for name in wanted], np.int64)
        use = np.isin(self.image, rows)
        image = np.searchsorted(rows, self.image[use])
        shapes = {name: self.shapes[name] for name in wanted if name in self.shapes}
        return GroundTruth(
            self.ids[rows], image, self.xy[use], self.confidence[use], self.posterior[use],
            self.folder, shapes, self.sigma_px,
        )  # fmt: skip

    def _row(self, image_id: str) -> int | None:
        row = int(np.searchsorted(self.ids, image_id))
        return row if row < len(self.ids) and self.ids[row] == image_id else None

    def _known(self, image_id: str) -> int:
        row = self._row(image_id)
        if row is None:
            raise NotFoundError(
                f"{self.folder or 'the list of points'} holds no ground truth of {image_id!r}"
            )
        return row


def read_experts(path: str | Path, shapes: Shapes, *, sigma_px: float = 2.0) -> dict[str, GroundTruth]:
    """Every expert's own ground truth from a table of points.

    Parameters
    ----------
    path : path
        CSV or Parquet `image_id x y` and, for several experts, `worker_id`; points of images that are not
        in `shapes` are left out.
    shapes : mapping of str to (height, width)
        The images; an expert is taken to have looked at those he marked.
    """
    images, names, xy = read_point_table(path)
    image, name = np.array(images, dtype=str), np.array(names, dtype=str)
    known = np.isin(image, np.array(list(shapes), dtype=str))
    found = {}
    for expert in sorted(set(name[known].tolist())):
        own = known & (name == expert)
        seen = {i: shapes[i] for i in sorted(set(image[own].tolist()))}
        found[expert] = GroundTruth.from_points(image[own], xy[own], seen, sigma_px=sigma_px)
    if not found:
        raise DataError(f"{path} holds no point of any of the {len(shapes)} images")
    return found


def local_maxima(heat: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """Local maxima (3 x 3) of a soft map, refined to a fraction of a pixel.

    Neighbours of equal value are one maximum, in their middle.

    Parameters
    ----------
    heat : (height, width) float32
        As `brainmap.gt.heatmap.heat_map` renders it.

    Returns
    -------
    xy : (n, 2) float64, by rows of the image
    value : (n,) float64
    """
    if heat.size == 0 or not heat.max() > 0:
        return np.zeros((0, 2)), np.zeros(0)
    mask = (heat == ndimage.maximum_filter(heat, 3, mode="constant")) & (heat > 0)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    index = np.arange(1, count + 1)
    value = np.asarray(ndimage.maximum(heat, labels, index), np.float64).reshape(-1)
    yx = np.array(ndimage.center_of_mass(mask, labels, index), np.float64).reshape(-1, 2)
    single = np.bincount(labels.ravel(), minlength=count + 1)[1:] == 1
    # In units of the sum of clicks, whose logarithm is a parabola around a lone cell.
    support = np.log(np.maximum(-np.log1p(-np.minimum(heat.astype(np.float64), 1 - 1e-7)), 1e-12))
    cell = np.rint(yx).astype(np.int64)
    for axis in (0, 1):
        yx[:, axis] += np.where(single, _vertex(support, cell, axis), 0.0)
    return yx[:, ::-1], value


def _vertex(support: Floats, cell: npt.NDArray[np.int64], axis: int) -> Floats:
    """Vertex of the parabola through a maximum and its two neighbours; 0 at the image's rim."""
    size = support.shape[axis]
    inner = (cell[:, axis] > 0) & (cell[:, axis] < size - 1)
    sides = []
    for step in (-1, 0, 1):
        place = cell.copy()
        place[:, axis] = np.clip(place[:, axis] + step, 0, size - 1)
        sides.append(support[place[:, 0], place[:, 1]])
    a, b, c = sides
    curve = a - 2 * b + c
    bent = inner & (curve < -1e-12)
    return np.where(bent, np.clip((a - c) / (2 * np.where(bent, curve, -1.0)), -0.5, 0.5), 0.0)


def _draw(xy: Floats, peak: Floats, shape: tuple[int, int], sigma: float) -> npt.NDArray[np.float32]:
    """Largest of the points' Gaussians, cut at 2.5 sigma."""
    heat = np.zeros(shape, np.float32)
    radius = _CUT_SIGMAS * sigma
    for (x, y), height in zip(xy.tolist(), peak.tolist(), strict=True):
        rows = np.arange(max(0, int(np.ceil(y - radius))), min(shape[0] - 1, int(y + radius)) + 1)
        columns = np.arange(max(0, int(np.ceil(x - radius))), min(shape[1] - 1, int(x + radius)) + 1)
        if len(rows) == 0 or len(columns) == 0:
            continue
        square = (rows[:, None] - y) ** 2 + (columns - x) ** 2
        value = np.where(square <= radius**2, height * np.exp(-square / (2 * sigma**2)), 0.0)
        part = heat[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.maximum(part, value.astype(np.float32), out=part)
    return heat
