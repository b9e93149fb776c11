"""What is made of a run's tables: its report, and the files for other tools."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from brainmap.export import EXPORT_NAMES
from brainmap.progress import task
from brainmap.run_folder import EXPORTS_DIR

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["write_pages"]

log = logging.getLogger(__name__)


def write_pages(run: Path, new: Path, volume: Volume | None = None, exports: Iterable[str] = ()) -> None:
    """Report and exports of tables that will take the place of a run's, into the folder of the tables.

    Parameters
    ----------
    run : Path
        Run folder, with its registration.
    new : Path
        Folder with the tables and the record.
    volume : Volume, optional
        The brain; by default opened as the record says.
    exports : iterable of str
        Kinds to write besides those that the run has.
    """
    from brainmap.export.formats import export_points
    from brainmap.report.run_report import write_run_report

    wanted = [
        kind
        for kind in EXPORT_NAMES
        if kind in set(exports) or (run / EXPORTS_DIR / EXPORT_NAMES[kind]).exists()
    ]
    for kind in wanted:
        with task(f"exporting {kind}"):
            export_points(new, kind, new / EXPORTS_DIR / EXPORT_NAMES[kind])
        log.info("exported %s", run / EXPORTS_DIR / EXPORT_NAMES[kind])
    with task("writing the report"):
        write_run_report(run, volume=volume, staged=new)
