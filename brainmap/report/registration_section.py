"""The registration of a run: pictures that prove it or not, and its numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from brainmap.errors import BrainmapError
from brainmap.files import read_json
from brainmap.report.html import Page
from brainmap.report.run_facts import Run, plain
from brainmap.run_folder import REGISTRATION_DIR

__all__ = ["add_registration", "read_registration"]

_PICTURES = {
    "checkerboard": "the brain (warm) and the atlas's template (cool) in alternating squares; edges should go on "
    "across them.",
    "deformation": "a regular grid of the atlas as the deformation bends it into the brain; blue places are smaller "
    "there than in the atlas, red ones larger (the affine left out).",
}
#: What a number of the registration means.
_NUMBERS = {
    "mask_dice": "Overlap of the outlines (1 is perfect, below 0.92 doubtful)",
    "edge_mean_um": "Mean distance of the outlines, µm",
    "edge_p95_um": "95 % of the outline lies within, µm",
    "contrast_correlation": "Likeness of the structures inside (below 0.35 doubtful)",
    "mutual_information_before": "Likeness of the images before",
    "mutual_information_after": "Likeness of the images after",
    "volume_ratio": "Volume of the atlas over that of the brain",
    "affine_scale_min": "Least stretch from atlas to brain",
    "affine_scale_max": "Largest stretch from atlas to brain",
    "jacobian_p1": "Strongest local shrinking (1 % of the tissue)",
    "jacobian_p99": "Strongest local growth (1 % of the tissue)",
    "jacobian_min": "Least local volume change",
    "jacobian_max": "Largest local volume change",
    "folded_share": "Share of the tissue that is folded (should be 0)",
    "round_trip_p95_um": "There and back again misses by, µm",
}
#: PNG files larger than this are packed tighter.
_LARGE = 150_000


def read_registration(run: Run) -> tuple[Path | None, dict[str, Any], str]:
    """The folder and the record of the registration a run used, and what is wrong with the record."""
    folder = run.registration
    elsewhere = run.record.parameters.get("registration")
    if not folder.is_dir() and elsewhere and Path(str(elsewhere)).is_dir():
        folder = Path(str(elsewhere))
    if not folder.is_dir():
        return None, {}, ""
    try:
        record = read_json(folder / f"{REGISTRATION_DIR}.json")
    except BrainmapError as error:
        return folder, {}, str(error)
    return folder, record if isinstance(record, dict) else {}, ""


def add_registration(page: Page, folder: Path | None, record: dict[str, Any], problem: str) -> None:
    """Add the section, where there is a registration.

    Parameters
    ----------
    page : Page
    folder, record, problem
        As `read_registration` returns them.
    """
    if folder is None:
        return
    page.add_section(
        "Registration",
        "The atlas laid over the brain. Outlines should follow the edges of the tissue and its layers.",
    )
    if problem:
        page.add_warning("The registration's record could not be read:", [problem])
    verdict, reasons = record.get("verdict"), [str(reason) for reason in record.get("reasons") or ()]
    if verdict == "good":
        page.add_note("By its numbers the registration is good.", reasons)
    elif verdict == "bad":
        page.add_error("By its numbers the registration is BAD:", reasons)
    elif verdict:
        page.add_warning(f"By its numbers the registration is {verdict}:", reasons)
    part = record.get("part")
    if isinstance(part, dict) and part.get("part") not in (None, "whole brain"):
        page.add_note(f"Registered as the {part['part']}: what is missing has no volume and no density.")
    pictures = sorted(
        folder.glob("*.png"), key=lambda path: (path.stem.split("_")[-1] in _PICTURES, path.name)
    )
    for picture in pictures:
        try:
            name = picture.stem.removeprefix("quality_")
            caption = _PICTURES.get(name, "borders of the atlas's structures, brought to the brain.")
            page.add_figure(
                _packed(picture), f"{name.replace('_', ' ').capitalize()}: {caption}", width="half"
            )
        except (OSError, BrainmapError) as error:
            page.add_note(f"{picture.name} could not be shown: {error}")
    quality = record.get("quality")
    if isinstance(quality, dict):
        facts = [
            (_NUMBERS.get(name, name.replace("_", " ")), plain(value)) for name, value in quality.items()
        ]
        page.add_table(
            ["measure", "value"], facts, "Numbers of the registration", sortable=False, collapsed=True
        )
    _landmarks(page, record.get("landmarks"))


def _packed(path: Path) -> Path | bytes:
    """A picture, as WebP where its file is large: a report stays small enough to be sent."""
    if path.stat().st_size <= _LARGE:
        return path
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.convert("RGB").save(buffer, "webp", quality=85, method=2)
    except Image.UnidentifiedImageError:
        return path  # which is refused with a sentence
    return buffer.getvalue()


def _landmarks(page: Page, fit: Any) -> None:
    if not isinstance(fit, dict):
        return
    names = ("before_um", "after_um", "left_out_um")
    rows = [[row.get("name"), *(row.get(name) for name in names)] for row in fit.get("residuals") or ()]
    page.add_table(
        ["landmark", "missed before (µm)", "after (µm)", "if left out (µm)"],
        rows,
        f"{len(rows)} landmarks",
        collapsed=len(rows) > 12,
    )
