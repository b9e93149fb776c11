"""What `brainmap detect` says at its end, and what a dry run would do, in words and units of people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.progress import duration
from brainmap.run_folder import MUCH_UNSTORED, POINTS_PARQUET, REGIONS_CSV, REPORT_HTML

__all__ = ["DetectSummary", "plan_words", "size_words", "summary_words"]


@dataclass(frozen=True)
class DetectSummary:
    """What `brainmap detect` prints.

    Parameters
    ----------
    run : Path
        The run folder.
    status : str
        "complete", "incomplete", or "planned" after a dry run.
    cells, outside : int
        Cells found; those outside the atlas (None without one).
    seconds : float
        Of this command.
    voxels_per_second : float
        Voxels of the blocks processed by this command over the time that took; 0 where none were left.
    warnings : tuple of str
    plan : dict or None
        The estimate of a dry run.
    registration : str or None
        Verdict on the registration: "good", "doubtful" or "bad"; None without one.
    registers : bool
        Whether the run of a dry run would register the brain first.
    unstored : float
        Share of the tissue in chunks that are not stored.
    """

    run: Path
    status: str
    cells: int
    outside: int | None
    seconds: float
    voxels_per_second: float
    warnings: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None
    registration: str | None = None
    registers: bool = False
    unstored: float = 0.0

    def __str__(self) -> str:
        if self.plan is not None:
            return plan_words(self.plan, self.warnings, self.registers)
        return summary_words(self)


def summary_words(summary: DetectSummary) -> str:
    """The cells, what to be careful about, and last where everything lies and whether it can be trusted."""
    rate = (
        f", {summary.voxels_per_second / 1e6:.3g} million voxels per second"
        if summary.voxels_per_second
        else ""
    )
    lines = [f"{summary.cells:,} cells in {duration(summary.seconds)}{rate}"]
    if summary.outside is not None:
        lines.append(f"{summary.outside:,} of them outside the atlas")
    lines += [f"warning: {warning}" for warning in summary.warnings]
    counted = summary.outside is not None
    rows = [
        ("table", str(summary.run / REGIONS_CSV) if counted else str(summary.run / POINTS_PARQUET)),
        ("report", str(summary.run / REPORT_HTML)),
        ("verdict", _verdict(summary)),
    ]
    return "\n".join([*lines, *_columns(rows)])


def _verdict(summary: DetectSummary) -> str:
    """Whether the counts may be used, in one line."""
    if summary.status == "incomplete":
        return "incomplete: parts of the image are missing from every number"
    if summary.unstored > MUCH_UNSTORED:
        share = f"{100 * summary.unstored:.0f} %"
        return f"INCOMPLETE IMAGE: {share} of the tissue is not stored and missing from every number"
    registration = {
        None: "no atlas: cells were not counted per region",
        "good": "registration good; look at the report's pictures all the same",
        "bad": "registration BAD: counts per region are not to be used",
    }
    text = registration.get(
        summary.registration, f"registration {summary.registration}: look at the report first"
    )
    return f"{text} ({len(summary.warnings)} warnings above)" if len(summary.warnings) > 1 else text


def plan_words(plan: Mapping[str, Any], warnings: tuple[str, ...], registers: bool) -> str:
    """An estimate (`brainmap.infer.engine.estimate.Estimate` as a dict) as sentences.

    Parameters
    ----------
    plan : mapping
    warnings : tuple of str
    registers : bool
        Whether a registration comes before, which the estimate leaves out.
    """
    block = " x ".join(str(n) for n in plan["block_vox"])
    again = plan["read_amplification"]
    rows = [
        ("to search", f"{100 * plan['tissue_share']:.0f} % of the image is tissue: {plan['blocks_with_tissue']:,} of "
                      f"{plan['blocks']:,} blocks of {block} voxels (z, y, x)"),
        ("to read", f"{size_words(plan['bytes_to_read'])}"
                    + (f", {again:.2g} times what is there, as blocks overlap" if again > 1.05 else "")),
        ("memory", f"about {size_words(plan['memory_bytes'])}"),
        ("time", f"about {duration(plan['seconds'])} for the detection, with {plan['threads']} "
                 f"thread{'s' if plan['threads'] != 1 else ''} of {plan['backend']} on {plan['device']}"),
    ]  # fmt: skip
    if registers:
        rows.append(("before it", "a registration, some minutes"))
    rows.append(("written", "nothing: this was a dry run"))
    return "\n".join([*_columns(rows), *(f"warning: {warning}" for warning in warnings)])


def size_words(n: float) -> str:
    """A number of bytes with a unit: 320 MB, 1.2 GB."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(n, 1))) // 3)
    n /= 1000**power
    return f"{n:.0f} {units[power]}" if n >= 10 or power == 0 else f"{n:.1f} {units[power]}"


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
