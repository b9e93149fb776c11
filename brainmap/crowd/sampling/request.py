"""What `brainmap crowd sample` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainmap.errors import UsageError
from brainmap.tiles.tiles import QualityRule

__all__ = ["DEFAULT_REGIONS", "STRATEGIES", "SampleRequest", "parse_regions"]

# The five regions of the founding study (methods 2).
DEFAULT_REGIONS = ("Isocortex", "OLF", "HPF", "CTXsp", "STR")
STRATEGIES = ("even", "random", "active", "uncertain")
# Tiles looked at for each one that is chosen: choice costs reading and, for some strategies, the network.
LOOKED_AT = 4
# Tiles a worker is given where the number of data sets is left open: an evening's work.
PER_DATASET = 30


@dataclass(frozen=True)
class SampleRequest:
    """One sampling of tiles, validated at construction.

    Parameters
    ----------
    runs : tuple of Path
        Finished run folders; each is an animal of its own.
    out : Path
        Tiles folder to write.
    regions : tuple of str or None
        Acronyms or ids of structures, descendants included; None takes those of `DEFAULT_REGIONS` that the atlas
        has.
    tile_px : int
        Height and width of a tile, level-0 pixels.
    budget : int or None
        Tiles to write, QC tiles included; None: all that pass.
    strategy : str
        Of `STRATEGIES`.
    qc : int
        Quality-control tiles, which every worker gets.
    datasets : int or None
        Data sets to deal the other tiles into; None: one for about 30 tiles.
    sections : int
        Sections of each brain to cut tiles from, evenly spaced over the regions.
    least_share : float
        Share of a tile that must lie in its region.
    seed : int
    truth : Path or None
        Ground truth of an earlier round: its tiles are left out, and `uncertain` looks for tiles like those on
        which its workers disagreed.
    truth_tiles : Path or None
        Tiles folder of that ground truth; by default the one its record names.
    detector : str or None
        Detector whose network looks at the tiles; None is the first run's.
    brains : Path or None
        Folder that brains were moved to.
    quality : QualityRule
    bright : str
        Where the bright end of the rule's histogram lies: "brain" (where the brain's own grey levels end) or "scale"
        (where detection's scale ends).
    """

    runs: tuple[Path, ...]
    out: Path
    regions: tuple[str, ...] | None = None
    tile_px: int = 500
    budget: int | None = None
    strategy: str = "even"
    qc: int = 5
    datasets: int | None = None
    sections: int = 20
    least_share: float = 0.5
    seed: int = 0
    truth: Path | None = None
    truth_tiles: Path | None = None
    detector: str | None = None
    brains: Path | None = None
    quality: QualityRule = field(default_factory=QualityRule)
    bright: str = "brain"

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("crowd sample needs at least one run folder")
        double = [
            run for i, run in enumerate(self.runs) if run.resolve() in {r.resolve() for r in self.runs[:i]}
        ]
        if double:
            raise UsageError(f"the run {double[0]} is given twice")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"--strategy is {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if self.bright not in ("brain", "scale"):
            raise UsageError(f"--bright is {self.bright!r}; choose brain or scale")
        if self.tile_px < 16:
            raise UsageError(f"--tile is {self.tile_px} px; a tile needs at least 16")
        if self.qc < 0 or self.sections < 1 or self.seed < 0:
            raise UsageError("--qc and --seed cannot be negative, and --sections must be at least 1")
        if not 0 < self.least_share <= 1:
            raise UsageError(f"the share of a tile in its region is {self.least_share}; it must be in 0..1")
        if self.datasets is not None and self.datasets < 1:
            raise UsageError(f"--datasets is {self.datasets}; give at least 1")
        if self.budget is not None and self.budget < self.qc + (self.datasets or 1):
            raise UsageError(
                f"--budget {self.budget} is too small: {self.qc} QC tiles and a tile for each of "
                f"{self.datasets or 1} data sets need {self.qc + (self.datasets or 1)}"
            )
        if self.truth_tiles is not None and self.truth is None:
            raise UsageError("--truth-tiles belongs to --truth, which is not given")

    @property
    def wanted_regions(self) -> tuple[str, ...]:
        """The regions asked for, or those of the founding study."""
        return DEFAULT_REGIONS if self.regions is None else self.regions

    def record(self) -> dict[str, Any]:
        """The options that decide the result, as plain values."""
        names = ("tile_px", "budget", "strategy", "qc", "datasets", "sections", "least_share", "seed", "quality",
                 "bright")  # fmt: skip
        return {"regions": self.wanted_regions, **{name: getattr(self, name) for name in names}}


def parse_regions(text: str | None) -> tuple[str, ...] | None:
    """Regions as a person writes them: acronyms or ids, separated by commas.

    Raises
    ------
    UsageError
        An empty one, or one that is there twice.
    """
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise UsageError(f"--regions is {text!r}; give acronyms separated by commas, such as Isocortex,HPF")
    if len(set(names)) < len(names):
        raise UsageError(f"--regions names {next(n for n in names if names.count(n) > 1)} twice")
    return names
