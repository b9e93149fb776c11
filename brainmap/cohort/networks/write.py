"""The folder of networks: tables, figures as SVG, a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmap.cohort.folder import KEPT, require_free, require_outside
from brainmap.cohort.networks.charts import correlation_maps, graph, pattern
from brainmap.cohort.networks.network import Network
from brainmap.cohort.report.charts import render
from brainmap.cohort.tables import write_csv
from brainmap.files import atomic_path, now, write_json
from brainmap.lock import held_beside
from brainmap.machine import versions
from brainmap.report.html import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RECORD", "write_network"]

RECORD = "network.json"
_SHOWN = 200


def write_network(network: Network, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the folder, complete or not at all; return the page.

    Raises
    ------
    UsageError
        If `out` holds something else, or networks that are not to be replaced.
    """
    out = Path(out)
    require_outside(out, network.study.groups)
    with held_beside(out, KEPT):
        require_free(out, RECORD, "networks", overwrite)
        with atomic_path(out) as folder:
            _write(network, folder)
    return out / "report.html"


def _write(network: Network, folder: Path) -> None:
    folder.mkdir()
    groups = network.study.groups.names
    correlations = [f"{what}_{name}" for name in groups for what in ("r", "n")]
    tests = [f"{what} {b} - {a}" for a, b in network.differences for what in ("z", "p", "q")]
    write_csv(folder / "correlations.csv", ("acronym_1", "acronym_2", *correlations, *tests), _pairs(network))
    modules = [f"module_{name}" for name in groups]
    patterns = [
        f"{what}_{k + 1}"
        for k in range(0 if network.pls is None else len(network.pls.p))
        for what in ("salience", "bootstrap_ratio")
    ]
    write_csv(folder / "regions.csv", ("acronym", "division", *modules, *patterns), list(_regions(network)))
    _page(network, folder)
    record = {"made": now(), "versions": versions(), "settings": network.settings}
    write_json(folder / RECORD, record | {"result": dict(network.lines())})


def _pairs(network: Network) -> Iterator[tuple[Any, ...]]:
    names = network.acronym
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        row: list[Any] = [names[i], names[j]]
        for group in network.study.groups.names:
            row += [float(network.r[group][i, j]), int(network.n[group][i, j])]
        for test in network.differences.values():
            row += [float(test.z[i, j]), float(test.p[i, j]), float(test.q[i, j])]
        yield tuple(row)


def _regions(network: Network) -> Iterator[tuple[Any, ...]]:
    for i, (name, division) in enumerate(zip(network.acronym, network.division, strict=True)):
        row: list[Any] = [name, division]
        # Modules are numbered from 1; a region without an edge has none.
        row += [int(one.label[i]) + 1 or None for one in network.modules.values()]
        if network.pls is not None:
            for k in range(len(network.pls.p)):
                row += [float(network.pls.salience[i, k]), float(network.pls.ratio[i, k])]
        yield tuple(row)


def _page(network: Network, folder: Path) -> None:
    (folder / "figures").mkdir()
    page = Page("Networks of a cohort", ", ".join(network.study.groups.names))
    page.add_facts(network.lines())

    def add(name: str, figure: Figure, caption: str) -> None:
        picture = render(figure)
        (folder / "figures" / f"{name}.svg").write_bytes(picture)
        page.add_figure(picture, caption)

    page.add_section("Correlations")
    add(
        "correlations",
        correlation_maps(network),
        "Correlation of log densities over the animals of a group; regions by division, in the order of regions.csv. "
        "Grey: in too few animals.",
    )
    add(
        "graph",
        graph(network),
        f"The densest {network.settings.density:.0%} of positive correlations in each group, and where groups are "
        "compared the pairs that differ.",
    )
    for (a, b), test in network.differences.items():
        order = [k for k in np.argsort(_upper(test.p), kind="stable") if np.isfinite(_upper(test.p)[k])]
        i, j = np.triu_indices(len(network.region), 1)
        names = network.acronym
        rows = [
            (names[i[k]], names[j[k]], *(round(float(m[i[k], j[k]]), 3) for m in (network.r[a], network.r[b])),
             int(min(network.n[a][i[k], j[k]], network.n[b][i[k], j[k]])), float(test.p[i[k], j[k]]),
             float(test.q[i[k], j[k]]))
            for k in order[:_SHOWN]
        ]  # fmt: skip
        columns = ("region", "and", f"r, {a}", f"r, {b}", "animals", "p", "q")
        page.add_table(columns, rows, f"{b} against {a}: pairs of smallest p", max_rows=20)
    if network.pls is not None:
        page.add_section("Patterns that groups differ in")
        for k in range(len(network.pls.p)):
            add(
                f"pattern_{k + 1}",
                pattern(network, k),
                "How much each animal shows the pattern, and the regions that carry it: weight over its bootstrap "
                "error, dashed at 3.",
            )
    page.add_note(
        "Pearson correlations over animals that have both regions. Differences of Fisher's z, animals relabelled "
        f"{network.settings.permutations} times, every region standardised within its group; the values of all pairs "
        "together are the reference, and q is Benjamini and Hochberg's. Modules by Louvain's method in the densest "
        "positive correlations, beside networks with the same degrees wired at random (which correlations always "
        "exceed) and beside animals shuffled within each region. Patterns by mean-centred task PLS, p by permutation, "
        "ratios by bootstrap within groups."
    )
    page.write(folder / "report.html")


def _upper(values: Any) -> Any:
    return values[np.triu_indices(len(values), 1)]
