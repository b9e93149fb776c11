"""What was done, as a paragraph for a paper, with the works it rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brainmap.report.html import Page
from brainmap.report.run_facts import Run, lookup

__all__ = ["add_methods"]

_ANTS = (
    "Avants BB, Tustison NJ, Song G, Cook PA, Klein A, Gee JC (2011). A reproducible evaluation of ANTs similarity "
    "metric performance in brain image registration. NeuroImage 54:2033-2044. doi:10.1016/j.neuroimage.2010.09.025"
)
_ALLEN = (
    "Wang Q, Ding SL, Li Y, et al. (2020). The Allen Mouse Brain Common Coordinate Framework: a 3D reference atlas. "
    "Cell 181:936-953. doi:10.1016/j.cell.2020.04.007"
)
_BRAINGLOBE = (
    "Claudi F, Petrucco L, Tyson AL, Branco T, Margrie TW, Portugues R (2020). BrainGlobe Atlas API: a common "
    "interface for neuroanatomical atlases. Journal of Open Source Software 5:2668. doi:10.21105/joss.02668"
)


def add_methods(page: Page, run: Run, registration: dict[str, Any]) -> None:
    """Add the paragraph and the references, each with a button that copies it.

    Parameters
    ----------
    page : Page
    run : Run
    registration : dict
        Record of the registration; empty without one.
    """
    page.add_paste("Methods paragraph", _paragraph(run, registration))
    page.add_paste("References", "\n".join(_references(run, registration)))


def _paragraph(run: Run, registration: dict[str, Any]) -> str:
    record = run.record
    version = record.versions.get("brainmap", "")
    detector = Path(str(record.parameters.get("detector") or "default")).name
    image = ""
    if run.volume is not None:
        shape = " × ".join(f"{n:,}" for n in run.volume.shape)
        voxel = " × ".join(f"{v:g}" for v in run.volume.voxel_um)
        image = f" in an image of {shape} voxels (z, y, x) of {voxel} µm"
    sentences = [
        f"Cells were detected with brainmap{f' {version}' if version else ''} (detector “{detector}”){image}."
    ]
    threshold, diameter = lookup(record, "threshold"), lookup(record, "cell_diameter_um")
    used = [
        *([f"a score of at least {float(threshold):g}"] if threshold is not None else []),
        *([f"an expected diameter of {float(diameter):g} µm"] if diameter is not None else []),
    ]
    if used:
        sentences.append(f"Detections were kept with {' and '.join(used)}.")
    if name := _atlas(registration):
        software = record.versions.get("antspyx")
        sentences.append(
            f"The brain was registered to the atlas {name} with ANTs{f' (antspyx {software})' if software else ''}, "
            "and cells and volumes were counted per structure in the space of the brain."
        )
    if run.summary is not None:
        sentences.append(f"{run.summary.n:,} cells were counted.")
    return " ".join(sentences)


def _references(run: Run, registration: dict[str, Any]) -> list[str]:
    version = run.record.versions.get("brainmap", "")
    found = [
        f"brainmap developers. brainmap: whole-brain cell detection{f', version {version}' if version else ''}."
    ]
    if name := _atlas(registration):
        found.append(_ANTS)
        if name.startswith("allen_mouse"):
            found.append(_ALLEN)
        found.append(_BRAINGLOBE)
        if not name.startswith("allen_mouse"):
            found.append(f"(Add the publication that the makers of the atlas {name} ask for.)")
    return found


def _atlas(registration: dict[str, Any]) -> str:
    atlas = registration.get("atlas")
    return str(atlas.get("name") or "") if isinstance(atlas, dict) else ""
