"""Where cells lie in a synthetic tile: by the founding study's rules, or as in annotated tiles.

Positions are x, y in pixels, 0 = centre of the first pixel. Sources: the study's rules, methods 5; what it
does not give is chosen here and said so. Placement learnt from annotations is brainmap's (methods 10 ii).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.errors import DataError, UsageError
from brainmap.files import read_json, write_json
from brainmap.settings import check_keys
from brainmap.train.synthesis.point_process import CoxProcess, Shape

__all__ = ["FittedRules", "Placement", "StudyRules", "from_table", "truncated_normal"]

Floats = NDArray[np.float64]

# Side of the tile that StudyRules' numbers of cells are meant for (methods 5).
_STUDY_PX = 512


@dataclass(frozen=True)
class StudyRules:
    """The study's rules (methods 5). Ranges are (least, greatest), uniform between unless said otherwise.

    Only `clusters` is the study's; it does not give the other values.

    Parameters
    ----------
    clusters : tuple of int
        Number of clusters.
    cells : tuple of float
        Mean, standard deviation, least and greatest number of cells in a tile of 512 x 512 px, truncated normal; for
        other tiles in proportion to the area.
    radius_px : tuple of float
        Mean, standard deviation, least and greatest radius, truncated normal.
    spread : tuple of float
        Standard deviation of a round cluster, as a share of the tile's shorter side.
    linear_share : float
        Share of the clusters that are linear.
    linear_length : tuple of float
        Length of a linear cluster, as a share of the shorter side.
    linear_spread : tuple of float
        Standard deviation across a linear cluster, as a share of the shorter side.
    """

    clusters: tuple[int, int] = (3, 6)
    cells: tuple[float, float, float, float] = (90.0, 45.0, 10.0, 250.0)
    radius_px: tuple[float, float, float, float] = (5.0, 1.5, 2.0, 8.0)
    spread: tuple[float, float] = (0.05, 0.2)
    linear_share: float = 0.25
    linear_length: tuple[float, float] = (0.3, 0.8)
    linear_spread: tuple[float, float] = (0.005, 0.02)

    def __post_init__(self) -> None:
        for name in ("clusters", "spread", "linear_length", "linear_spread"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UsageError(f"{name} is {low:g}..{high:g}; give a positive range, least first")
        for name in ("cells", "radius_px"):
            mean, sd, low, high = getattr(self, name)
            if not (sd > 0 and 0 <= low < high and mean > 0):
                raise UsageError(f"{name} needs mean, standard deviation, least and greatest, all positive")
        if not 0 <= self.linear_share <= 1:
            raise UsageError(f"linear_share is {self.linear_share:g}; give a number within 0..1")

    def sample(self, shape: Shape, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Centres (n, 2) and radii (n,) of one tile of (height, width)."""
        clusters = int(rng.integers(self.clusters[0], self.clusters[1] + 1))
        area = shape[0] * shape[1] / _STUDY_PX**2
        total = round(float(truncated_normal(self.cells, 1, rng)[0]) * area)
        share = rng.multinomial(total, np.full(clusters, 1 / clusters))
        parts = [self._cluster(int(n), shape, rng) for n in share]
        radii = truncated_normal(self.radius_px, total, rng)
        # Clipped to the image with a margin of one radius.
        room = np.maximum(np.array(shape[::-1]) - 1 - radii[:, None], radii[:, None])
        centres = np.clip(np.concatenate(parts), radii[:, None], room)
        return centres, radii

    def _cluster(self, count: int, shape: Shape, rng: np.random.Generator) -> Floats:
        side = min(shape)
        centre = rng.uniform(-0.5, np.array(shape[::-1]) - 0.5)
        if rng.random() >= self.linear_share:
            return centre + rng.normal(0, rng.uniform(*self.spread) * side, (count, 2))
        angle = rng.uniform(0, np.pi)
        along = np.linspace(-0.5, 0.5, count) * rng.uniform(*self.linear_length) * side
        across = rng.normal(0, rng.uniform(*self.linear_spread) * side, count)
        direction = np.array([np.cos(angle), np.sin(angle)])
        return centre + along[:, None] * direction + across[:, None] * direction[::-1] * (-1, 1)


@dataclass(frozen=True)
class FittedRules:
    """Placement learnt from annotated tiles: a point process, and radii as they were found.

    Parameters
    ----------
    process : CoxProcess
    radius_px : tuple of float
        Mean, standard deviation, least and greatest radius, truncated normal.
    """

    process: CoxProcess
    radius_px: tuple[float, float, float, float]

    def sample(self, shape: Shape, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Centres (n, 2) and radii (n,) of one tile of (height, width)."""
        centres = self.process.sample(shape, rng)
        return centres, truncated_normal(self.radius_px, len(centres), rng)


@dataclass(frozen=True)
class Placement:
    """A way to place cells; made by `study` or `fit`."""

    rules: StudyRules | FittedRules

    @classmethod
    def study(cls, rules: StudyRules | None = None) -> Placement:
        """The study's rules."""
        return cls(rules or StudyRules())

    @classmethod
    def fit(
        cls,
        points: Sequence[Floats],
        shapes: Sequence[Shape],
        radii: Floats | None = None,
        radius_px: tuple[float, float, float, float] = StudyRules.radius_px,
    ) -> Placement:
        """Learn placement from annotated tiles.

        Parameters
        ----------
        points : sequence of ndarray, (n, 2)
            Cells of each tile, x and y in px; tiles without cells belong to it.
        shapes : sequence of (height, width)
        radii : ndarray, optional
            Radii of some of the cells, px, from which `radius_px` is taken.
        radius_px : tuple of float
            Mean, standard deviation, least and greatest radius where none are known.

        Raises
        ------
        DataError
            Fewer than ten cells in all.
        """
        process = CoxProcess.fit(points, shapes)
        if radii is not None and len(radii) > 1:
            low, high = np.quantile(radii, [0.01, 0.99])
            deviation = max(float(np.std(radii)), 1e-3)
            radius_px = (float(np.mean(radii)), deviation, float(low), float(max(high, low + deviation)))
        return cls(FittedRules(process, radius_px))

    def sample(self, shape: Shape, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Cells of one tile, without those that lie inside another.

        Parameters
        ----------
        shape : (height, width)
        rng : Generator

        Returns
        -------
        centres : ndarray of float64, (n, 2)
            x and y, px.
        radii : ndarray of float64, (n,)
            px.
        """
        centres, radii = self.rules.sample(shape, rng)
        keep = ~contained(centres, radii)
        return centres[keep], radii[keep]

    def to_dict(self) -> dict[str, Any]:
        """As TOML and JSON hold it."""
        kind = "study" if isinstance(self.rules, StudyRules) else "fitted"
        return {"kind": kind, **asdict(self.rules)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Placement:
        """From what `to_dict` gives; an unknown key is an error."""
        values = {key: value for key, value in record.items() if key != "kind"}
        kind = record.get("kind", "study")
        if kind == "study":
            return cls(from_table(StudyRules, values, "placement"))
        if kind != "fitted":
            raise UsageError(f"placement kind is {kind!r}; give 'study' or 'fitted'")
        process = from_table(CoxProcess, values.pop("process", {}), "placement.process")
        return cls(from_table(FittedRules, {**values, "process": process}, "placement"))

    def save(self, path: str | Path) -> None:
        """Write to a JSON file, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Placement:
        """Read what `save` wrote."""
        record = read_json(path)
        if not isinstance(record, dict):
            raise DataError(f"{path} holds no placement")
        return cls.from_dict(record)


def from_table(kind: type[Any], record: Mapping[str, Any], what: str) -> Any:
    """A settings record from a table of a TOML or JSON file.

    Raises
    ------
    UsageError
        An unknown or missing key, or a list of another length than the default.
    """
    check_keys(kind, record, what)
    known = {f.name: f.default for f in fields(kind)}
    values = {}
    for key, value in record.items():
        default = known[key]
        if isinstance(default, tuple) and not (
            isinstance(value, (list, tuple)) and len(value) == len(default)
        ):
            raise UsageError(f"{what}.{key} is {value!r}; give {len(default)} numbers")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{what}: {error}") from error


def contained(centres: Floats, radii: Floats) -> NDArray[np.bool_]:
    """Whether each disc lies wholly inside another; of equal ones the first stays.

    Parameters
    ----------
    centres : ndarray, (n, 2)
    radii : ndarray, (n,)
    """
    away = np.hypot(*(centres[:, None] - centres[None]).transpose(2, 0, 1))
    inside = away + radii[:, None] <= radii[None]
    same = inside & inside.T
    return (inside & ~(same & np.triu(np.ones_like(same)))).any(axis=1)


def truncated_normal(
    settings: tuple[float, float, float, float], count: int, rng: np.random.Generator
) -> Floats:
    """Truncated normal numbers from mean, standard deviation, least and greatest."""
    mean, deviation, low, high = settings
    limits = ((low - mean) / deviation, (high - mean) / deviation)
    drawn = stats.truncnorm.rvs(*limits, loc=mean, scale=deviation, size=count, random_state=rng)
    return np.asarray(drawn, np.float64)
