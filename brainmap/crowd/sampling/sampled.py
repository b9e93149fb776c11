"""What a sampling wrote, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.sampling.doubt import Doubt
from brainmap.crowd.sampling.pool import Pool
from brainmap.tiles.tiles import Tiles

__all__ = ["REPORT", "Sampled"]

REPORT = "report.html"


@dataclass(frozen=True)
class Sampled:
    """What was written, and what is known of it.

    Parameters
    ----------
    tiles : Tiles
    pool : Pool
    rows : ndarray of int64
        Row of the pool of each tile.
    doubt : Doubt or None
        What was expected to be doubtful, for each tile that passed; None where nobody asked.
    features : str
        What looks were compared by.
    """

    tiles: Tiles
    pool: Pool
    rows: NDArray[np.int64]
    doubt: Doubt | None
    features: str

    def lines(self) -> list[tuple[str, str]]:
        """The result as names and values, for people."""
        pool, qc = self.pool, self.tiles.columns["is_qc"]
        reasons = [reason for row in pool.reasons for reason in row]
        why = ", ".join(f"{reasons.count(r)} {r}" for r in dict.fromkeys(reasons)) or "none"
        rejected = len(pool.places) - len(pool.passed)
        sets = len(set(self.tiles.columns["dataset"][~qc]))
        return [
            (
                "tiles",
                f"{len(self.tiles)} of {len(pool.passed)} that passed ({pool.found} squares lie in the regions)",
            ),
            ("rejected", f"{rejected} of {len(pool.places)} looked at: {why}" if rejected else "none"),
            ("QC tiles", str(int(qc.sum()))),
            ("data sets", str(sets)),
            ("report", str(self.tiles.folder / REPORT)),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for programs."""
        pool, columns = self.pool, self.tiles.columns
        reasons = [reason for row in pool.reasons for reason in row]
        return {
            "tiles": len(self.tiles),
            "squares": pool.found,
            "looked_at": len(pool.places),
            "passed": len(pool.passed),
            "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "qc": [str(name) for name in self.tiles.ids[columns["is_qc"]]],
            "by_animal": {b.name: int((columns["brain"] == b.name).sum()) for b in pool.brains},
            "by_region": {name: int((columns["region"] == name).sum()) for name in pool.regions},
            "datasets": sorted(set(columns["dataset"]) - {""}),
            "without": pool.without,
            "report": self.tiles.folder / REPORT,
        }
