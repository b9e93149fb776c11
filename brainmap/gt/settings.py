"""Settings of the aggregation: one frozen record, read from TOML; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.errors import UsageError
from brainmap.settings import read_table

__all__ = ["METHODS", "GtSettings", "read_gt_settings"]

METHODS = ("best", "study")
ABILITY = ("auto", "qc", "all")


@dataclass(frozen=True)
class GtSettings:
    """Everything that decides the result of an aggregation.

    Distances are pixels of the clicked images. Values marked (study) are those of the founding study,
    methods.md section 4; the rest is our choice, explained in docs/ground-truth.md.
    """

    method: str = "best"
    ability: str = "auto"  # images that estimate ability: "qc", "all", or "auto": QC images where given
    sigma_px: float = 2.0  # width of a click in the heat map (study)
    cut_sigmas: float = 2.5  # where a click's Gaussian is cut (study)
    saturation: float = 6.0  # S of the heat map (study)
    start: float = 0.7  # first sensitivity and specificity (study)
    start_prior: float = 0.5
    tolerance: float = 1e-6  # EM ends when no posterior moves by more
    max_iterations: int = 500
    repeat_px: float = 2.0  # one worker's clicks closer than this are one click (study method)
    single_px: float = 10.0  # clicks all within this radius, or very few: one cluster (study method)
    min_cluster_size: int = 3  # HDBSCAN (study method)
    min_samples: int = 2  # hdbscan's convention: without the point itself (study method)
    rounds: int = 2  # clustering and abilities in turn (best method)
    prior_clicks: float = 2.0  # strength of the crowd's mean in a worker's ability, in clicks (best method)
    geometry: float = 1.0  # trust in the tightness of a cluster, 0..1 (best method)
    reject_nats: float = 5.0  # evidence that a worker's work on one image is void (best method); inf: never
    reach_quantile: float = 0.99  # share of a cell's clicks within reach of it (best method)

    def __post_init__(self) -> None:
        _choice("method", self.method, METHODS)
        _choice("ability", self.ability, ABILITY)
        for name in ("sigma_px", "cut_sigmas", "saturation", "tolerance", "reject_nats"):
            _check(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("repeat_px", "single_px", "prior_clicks"):
            _check(0 <= getattr(self, name) < math.inf, name, "at least 0", getattr(self, name))
        for name in ("start", "start_prior", "reach_quantile"):
            _check(0 < getattr(self, name) < 1, name, "between 0 and 1", getattr(self, name))
        _check(0 <= self.geometry <= 1, "geometry", "within 0..1", self.geometry)
        for name, least in (
            ("max_iterations", 1),
            ("min_cluster_size", 2),
            ("min_samples", 1),
            ("rounds", 1),
        ):
            _check(getattr(self, name) >= least, name, f"at least {least}", getattr(self, name))
        for name in ("sigma_px", "cut_sigmas", "saturation"):
            _check(math.isfinite(getattr(self, name)), name, "finite", getattr(self, name))


def read_gt_settings(path: str | Path | None, **overrides: Any) -> GtSettings:
    """Settings of a TOML file with a `[gt]` table; `overrides` that are not None win.

    Raises
    ------
    NotFoundError, UsageError
        No such file; not TOML, an unknown key, or a value out of its range or of another type.
    """
    values = read_table(path, "gt")
    values = {**values, **{k: v for k, v in overrides.items() if v is not None}}
    return GtSettings(**{key: _typed(key, value) for key, value in values.items()})


_TYPES = {f.name: type(f.default) for f in dataclasses.fields(GtSettings)}


def _typed(key: str, value: Any) -> Any:
    if key not in _TYPES:
        raise UsageError(f"unknown gt setting {key!r}; known are {', '.join(_TYPES)}")
    kind = _TYPES[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"gt setting {key} must be of type {kind.__name__}, not {value!r}")
    return value


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"gt setting {name} must be one of {', '.join(known)}, not {value!r}")


def _check(right: bool, name: str, what: str, value: object) -> None:
    if not right:
        raise UsageError(f"gt setting {name} must be {what}, not {value!r}")
