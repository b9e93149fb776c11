"""The folder of maps: OME-Zarr and NIfTI images, a picture and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.folder import KEPT, require_free, require_outside
from brainmap.cohort.maps.maps import CohortMaps
from brainmap.cohort.maps.permutation import MapTest
from brainmap.files import atomic_path, now, write_json
from brainmap.image.volume import write_volume
from brainmap.lock import held_beside
from brainmap.machine import versions
from brainmap.report import style
from brainmap.report.html import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RECORD", "write_maps"]

RECORD = "maps.json"
_SECTIONS = 10
_COLUMNS = 5


def write_maps(maps: CohortMaps, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write the folder, complete or not at all; return the page.

    ``animals.ome.zarr`` and ``groups.ome.zarr`` hold densities, one channel each; ``CONTRAST.ome.zarr`` has the
    channels log2 ratio, t, enhanced t and p, and each is a NIfTI file too.

    Raises
    ------
    UsageError
        If `out` holds something else, or maps that are not to be replaced.
    """
    out = Path(out)
    require_outside(out, maps.groups)
    with held_beside(out, KEPT):
        require_free(out, RECORD, "maps", overwrite)
        with atomic_path(out) as folder:
            _write(maps, folder)
    return out / "report.html"


def _write(maps: CohortMaps, folder: Path) -> None:
    folder.mkdir()
    labels, names = maps.groups.labels, maps.groups.names
    _image(maps, folder / "animals.ome.zarr", maps.density, labels)
    _image(maps, folder / "groups.ome.zarr", np.stack([maps.mean(name) for name in names]), names)
    page = Page("Maps of a cohort", " against ".join(names))
    page.add_facts(maps.lines())
    for contrast, test in maps.tests:
        name = "".join(c if c.isalnum() or c in "._" else "-" for c in contrast.name)
        parts = {"log2_ratio": test.effect, "t": test.t, "tfce": test.enhanced, "p": test.p}
        _image(maps, folder / f"{name}.ome.zarr", np.stack(list(parts.values())), tuple(parts))
        for part, values in parts.items():
            _nifti(maps, folder / f"{name}_{part}.nii.gz", values)
        page.add_section(contrast.name)
        page.add_figure(
            _sections(maps, test),
            "Sections from front to back, the left side at the left: log2 ratio of densities; outlined: "
            "family-wise p up "
            f"to {maps.settings.alpha:g}.",
        )
    page.add_note(
        f"Densities per mm\N{SUPERSCRIPT THREE} of atlas, smoothed with a Gaussian of "
        f"{maps.settings.sigma_um:g} um. t by the "
        "design, enhanced over all thresholds (TFCE, Smith and Nichols 2009); p by permutation of what "
        "the other columns "
        "leave (Freedman and Lane 1983), against the largest value of the whole brain, two-sided."
    )
    page.write(folder / "report.html")
    write_json(folder / RECORD, {"made": now(), "versions": versions(), "settings": maps.settings})


def _image(maps: CohortMaps, path: Path, values: NDArray[np.float64], names: tuple[str, ...]) -> None:
    filled = np.nan_to_num(values.astype(np.float32), nan=1.0 if names[-1:] == ("p",) else 0.0)
    if names[-1:] == ("p",):
        filled[:-1][:, ~maps.mask] = 0.0
    voxel = (maps.settings.voxel_um,) * 3
    write_volume(
        path, filled, voxel, orientation="asr", channel_names=list(names), origin_um=maps.origin_um, levels=1
    )


def _nifti(maps: CohortMaps, path: Path, values: NDArray[np.float64]) -> None:
    """NIfTI in mm; axes x (right to left), y (superior to inferior), z (front to back), as `asr` reversed."""
    import ants

    data = np.nan_to_num(values, nan=0.0).astype(np.float32).transpose(2, 1, 0)
    spacing = (maps.settings.voxel_um / 1000.0,) * 3
    origin = tuple(o / 1000.0 for o in maps.origin_um[::-1])
    ants.image_write(ants.from_numpy(np.ascontiguousarray(data), origin=origin, spacing=spacing), str(path))


def _sections(maps: CohortMaps, test: MapTest) -> Figure:
    filled = np.flatnonzero(maps.mask.any(axis=(1, 2)))
    places = np.unique(np.linspace(filled[0], filled[-1], _SECTIONS + 2).astype(int)[1:-1])
    rows = -(-len(places) // _COLUMNS)
    height, width = maps.mask.shape[1:]
    figure = style.new_figure(9.0, 9.0 / _COLUMNS * rows * height / width + 0.9)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    limit = float(np.clip(np.nanquantile(np.abs(test.effect), 0.99), 0.5, 4.0))
    image = None
    for axes, z in zip(panels, places, strict=False):
        effect = np.where(maps.mask[z], test.effect[z], np.nan)[:, ::-1]
        image = axes.imshow(effect, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        found = np.nan_to_num(test.p[z], nan=1.0)[:, ::-1] <= maps.settings.alpha
        if found.any():
            axes.contour(found.astype(float), levels=[0.5], colors=style.INK, linewidths=0.9)
        style.picture_axes(axes, f"{(z + 0.5) * maps.settings.voxel_um / 1000:.1f} mm")
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    if image is not None:
        bar = figure.colorbar(
            image, ax=list(panels), orientation="horizontal", shrink=0.5, pad=0.02, aspect=40
        )
        bar.set_label("log2 ratio of densities", fontsize=8)
    return figure
