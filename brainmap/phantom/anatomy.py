"""The phantom's anatomy: shapes of about 25 structures, as functions of a position, and their atlas folder.

Nothing here is taken from a published atlas: shapes are ellipsoids and shells drawn to resemble a small rodent
brain, and ids are chosen to catch mistakes (two that are equal in float32, several that do not fit 16 bits).
Positions are atlas um: asr (index 0 = anterior, superior, right), measured from the outer corner.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.files import atomic_path

__all__ = [
    "FIELD_UNITS",
    "LEFT",
    "RIGHT",
    "STRUCTURES",
    "Anatomy",
    "Structure",
    "structure_paths",
    "write_atlas",
]

Floats = NDArray[np.float64]
LEFT, RIGHT = 1, 2

#: Extent of the atlas field (anterior-posterior, superior-inferior, right-left) in anatomical units.
FIELD_UNITS = (10.8, 8.0, 10.0)


@dataclass(frozen=True)
class Structure:
    """One row of the phantom's ontology; leaves carry a grey level and cell densities.

    Attributes
    ----------
    id, parent_id : int
        Structure ids; root has parent_id 0.
    grey : float
        Autofluorescence relative to cortex (leaves only).
    density_left, density_right : float
        Cells per mm3 of sample tissue at scale 1 (leaves only).
    """

    id: int
    acronym: str
    name: str
    parent_id: int
    rgb: tuple[int, int, int]
    grey: float = 0.0
    density_left: float = 0.0
    density_right: float = 0.0


STRUCTURES: tuple[Structure, ...] = (
    Structure(997, "root", "root", 0, (255, 255, 255)),
    Structure(11, "CH", "Cerebrum", 997, (176, 240, 255)),
    Structure(12, "CTX", "Cerebral cortex", 11, (176, 255, 184)),
    Structure(315, "ISO", "Isocortex", 12, (112, 255, 113)),
    Structure(65551, "ISO1", "Isocortex, layer 1", 315, (208, 255, 208), 0.72, 2500, 2500),
    Structure(667481440, "ISO2/3", "Isocortex, layer 2/3", 315, (130, 230, 120), 1.00, 42000, 20000),
    Structure(16777216, "ISO5", "Isocortex, layer 5", 315, (88, 200, 96), 1.14, 24000, 16000),
    Structure(16777217, "ISO6", "Isocortex, layer 6", 315, (44, 160, 70), 0.86, 9000, 9000),
    Structure(21, "OLF", "Olfactory areas", 12, (154, 210, 189)),
    Structure(22, "OB", "Olfactory bulb", 21, (154, 210, 170), 1.15, 15000, 30000),
    Structure(23, "PIR", "Piriform area", 21, (106, 203, 186), 0.96, 26000, 30000),
    Structure(31, "HPF", "Hippocampal formation", 12, (126, 208, 75)),
    Structure(614454277, "CA", "Ammon's horn", 31, (102, 168, 61), 0.88, 12000, 7000),
    Structure(312782574, "DG", "Dentate gyrus", 31, (56, 140, 40), 1.22, 60000, 60000),
    Structure(41, "STR", "Striatum", 11, (152, 214, 249), 1.12, 5000, 26000),
    Structure(51, "BS", "Brain stem", 997, (255, 112, 128)),
    Structure(52, "TH", "Thalamus", 51, (255, 144, 159), 0.84, 6000, 6000),
    Structure(53, "HY", "Hypothalamus", 51, (230, 68, 56), 1.06, 20000, 12000),
    Structure(54, "MB", "Midbrain", 51, (255, 155, 255), 0.92, 10000, 13000),
    Structure(55, "MY", "Medulla", 51, (255, 155, 205), 0.74, 9000, 9000),
    Structure(61, "CB", "Cerebellum", 997, (240, 240, 128)),
    Structure(62, "CBX", "Cerebellar cortex", 61, (240, 240, 100), 1.18, 14000, 8000),
    Structure(63, "CBN", "Cerebellar nuclei", 61, (255, 236, 145), 0.72, 24000, 24000),
    Structure(1009, "ft", "Fiber tracts", 997, (204, 204, 204)),
    Structure(776, "cc", "Corpus callosum", 1009, (180, 180, 180), 0.55, 1200, 1200),
    Structure(73, "VS", "Ventricular systems", 997, (170, 170, 170)),
    Structure(81, "VL", "Lateral ventricle", 73, (144, 144, 144), 0.12, 0, 0),
)

_ID = {s.acronym: s.id for s in STRUCTURES}
_CORTEX_DEPTH = (("ISO1", 0.20), ("ISO2/3", 0.50), ("ISO5", 0.80), ("ISO6", 1.02), ("cc", 1.20))


def structure_paths() -> dict[int, tuple[int, ...]]:
    """Return for every structure id its path of ids from the root, itself included."""
    parent = {s.id: s.parent_id for s in STRUCTURES}
    paths = {}
    for structure in STRUCTURES:
        path = [structure.id]
        while parent[path[0]]:
            path.insert(0, parent[path[0]])
        paths[structure.id] = tuple(path)
    return paths


@dataclass(frozen=True)
class Anatomy:
    """The phantom brain as functions of atlas position.

    Attributes
    ----------
    unit_um : float
        Length of one anatomical unit; 100 um makes a brain about 0.9 mm long.
    """

    unit_um: float

    def surface(self, points: Floats) -> NDArray[np.float32]:
        """Signed distance to the brain's surface in um, negative inside; `points` (N, 3) atlas um."""
        a, v, h = self._split(points)
        return (_brain(a, v, self._lateral(a, v, h)) * self.unit_um).astype(np.float32)

    def hemisphere(self, points: Floats) -> NDArray[np.uint8]:
        """1 left, 2 right of the (slightly curved) midline at atlas points (N, 3)."""
        a, v, h = self._split(points)
        return np.where(h >= _midline(a, v), LEFT, RIGHT).astype(np.uint8)

    def labels(self, points: Floats) -> NDArray[np.uint32]:
        """Structure id (0 outside the brain) at atlas points (N, 3)."""
        a, v, h = self._split(points)
        x = self._lateral(a, v, h)
        label = np.zeros(len(a), np.uint32)
        inside = _brain(a, v, x) < 0
        label[inside] = _ID["MY"]

        def paint(acronym: str, where: NDArray[np.bool_]) -> None:
            label[inside & where] = _ID[acronym]

        paint("MB", a < 8.0)
        paint("CBX", _cerebellum(a, v, x) < 0)
        paint("CBN", _ball(a, v, x, (8.1, 3.7, 0.85), (0.55, 0.5, 0.65)) < 0)
        depth = -_cerebrum(a, v, x)
        cerebrum = depth > 0
        paint("TH", cerebrum)
        for acronym, limit in reversed(_CORTEX_DEPTH):
            paint(acronym, cerebrum & (depth < limit))
        paint("PIR", cerebrum & (depth < 0.85) & (v > 4.9))
        core = cerebrum & (depth >= _CORTEX_DEPTH[-1][1])
        paint("STR", core & (a < 4.3) & (x > 0.55))
        paint("CA", core & (a > 4.5) & (v + 0.30 * (a - 4.5) < 4.0))
        paint("DG", core & (a > 4.5) & (np.abs(_ball(a, v, x, (5.15, 3.3, 1.05), (0.66, 0.5, 0.75))) < 0.12))
        paint("VL", core & (_ball(a, v, x, (3.9, 3.15, 0.85), (1.2, 0.6, 0.24)) < 0))
        paint("HY", (v > 5.0) & (x < 1.25) & (a > 3.2) & (a < 7.0) & (depth > -0.2))
        paint("OB", (_bulb(a, v, x) < 0) & (a < 2.1))
        return label

    def _split(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        units = np.asarray(points, float) / self.unit_um
        return units[:, 0], units[:, 1], units[:, 2] - FIELD_UNITS[2] / 2

    def _lateral(self, a: Floats, v: Floats, h: Floats) -> Floats:
        """Distance from the midline; the left half is a little wider behind and flatter in front."""
        x = h - _midline(a, v)
        left = 1.0 - 0.05 * np.sin((a - 3.0) * 0.8)
        return np.where(x >= 0, x * left, -x)


def write_atlas(folder: Path, anatomy: Anatomy, resolution_um: float, name: str) -> Path:
    """Write the phantom's atlas in the BrainGlobe v2 layout and return its folder, ``<name>_<res>um_v1.0``.

    The template is uint16, the annotation uint32, and because left and right differ there is a hemispheres file.
    """
    import tifffile
    from scipy import ndimage

    shape = tuple(round(units * anatomy.unit_um / resolution_um) for units in FIELD_UNITS)
    points = grid_points(shape, (resolution_um,) * 3)
    annotation = anatomy.labels(points).reshape(shape)
    grey = grey_levels(annotation)
    reference = ndimage.gaussian_filter(grey, 0.6) * 400.0
    target = Path(folder) / f"{name}_{resolution_um:g}um_v1.0"
    target.mkdir(parents=True, exist_ok=True)
    paths = structure_paths()
    structures = [
        {
            "acronym": s.acronym,
            "id": s.id,
            "name": s.name,
            "structure_id_path": list(paths[s.id]),
            "rgb_triplet": list(s.rgb),
        }
        for s in STRUCTURES
    ]
    metadata = {
        "name": name,
        "citation": "unpublished",
        "atlas_link": "",
        "species": "Phantomus cerebri",
        "symmetric": False,
        "resolution": [float(resolution_um)] * 3,
        "orientation": "asr",
        "version": "1.0",
        "shape": list(shape),
        "additional_references": [],
        "atlas_packager": "brainmap",
    }
    images = {
        "annotation.tiff": annotation,
        "reference.tiff": reference.astype(np.uint16),
        "hemispheres.tiff": anatomy.hemisphere(points).reshape(shape),
    }
    for filename, array in images.items():
        with atomic_path(target / filename) as temporary:
            tifffile.imwrite(temporary, array, compression="zlib", photometric="minisblack")
    for filename, record in (("structures.json", structures), ("metadata.json", metadata)):
        with atomic_path(target / filename) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return target


def grey_levels(labels: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Autofluorescence of each labelled voxel, relative to cortex; 0 outside."""
    ids = np.array(sorted(s.id for s in STRUCTURES), np.uint32)
    levels = np.array([next(s.grey for s in STRUCTURES if s.id == i) for i in ids], np.float32)
    where = np.minimum(np.searchsorted(ids, labels), len(ids) - 1)
    return np.where(ids[where] == labels, levels[where], np.float32(0))


def grid_points(shape: tuple[int, ...], voxel_um: tuple[float, ...]) -> Floats:
    """Centres of all voxels of a grid, um from the outer corner: (prod(shape), 3)."""
    axes = [(np.arange(n) + 0.5) * step for n, step in zip(shape, voxel_um, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _midline(a: Floats, v: Floats) -> Floats:
    return 0.09 * np.sin(0.7 * a) + 0.02 * (v - 4.0)


def _ball(
    a: Floats, v: Floats, x: Floats, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> Floats:
    """Approximate signed distance to an ellipsoid (exact at its surface), in units."""
    da, dv, dx = (a - centre[0]) / radii[0], (v - centre[1]) / radii[1], (x - centre[2]) / radii[2]
    norm = np.sqrt(da * da + dv * dv + dx * dx)
    gradient = np.sqrt((da / radii[0]) ** 2 + (dv / radii[1]) ** 2 + (dx / radii[2]) ** 2)
    return norm * (norm - 1.0) / np.maximum(gradient, 1e-6)


def _soft_min(p: Floats, q: Floats, width: float) -> Floats:
    """Minimum of two distances with the crease rounded over `width` (polynomial smooth minimum)."""
    blend = np.maximum(width - np.abs(p - q), 0.0) / width
    return np.minimum(p, q) - blend * blend * width / 4.0


def _cerebrum(a: Floats, v: Floats, x: Floats) -> Floats:
    """Two domes that merge below a groove from above; the groove's walls are cortex, its floor is not."""
    halves = []
    for side in (x, -x):
        dorsal = _ball(a, v, side, (4.3, 3.75, 1.35), (2.75, 2.45, 2.55))
        ventral = _ball(a, v, side, (4.5, 5.0, 1.45), (2.0, 1.6, 2.05))
        halves.append(_soft_min(dorsal, ventral, 0.8))
    groove = np.minimum(0.06, 0.8 * (2.4 - v)) - x
    return np.maximum(_soft_min(halves[0], halves[1], 1.6), groove)


def _bulb(a: Floats, v: Floats, x: Floats) -> Floats:
    bulb = _ball(a, v, x, (1.6, 4.3, 0.82), (1.2, 1.05, 0.74))
    return np.maximum(bulb, 0.05 - x)


def _cerebellum(a: Floats, v: Floats, x: Floats) -> Floats:
    body = _ball(a, v, x, (8.1, 3.3, 0.0), (1.45, 1.5, 2.65))
    folia = 0.07 * np.sin(9.0 * np.arctan2(v - 3.6, a - 8.1)) * np.clip(np.hypot(v - 3.6, a - 8.1), 0, 1)
    return body - folia


def _stem(a: Floats, v: Floats, x: Floats) -> Floats:
    """A tapering tube that leaves the field behind, as a brain cut at the spinal cord does."""
    taper = np.clip((a - 6.0) / 5.0, 0.0, 1.0)
    centre = 4.9 + 0.35 * taper
    wide, high = 1.75 - 0.55 * taper, 1.45 - 0.45 * taper
    norm = np.sqrt((x / wide) ** 2 + ((v - centre) / high) ** 2)
    return np.maximum((norm - 1.0) * high, 5.2 - a)


def _brain(a: Floats, v: Floats, x: Floats) -> Floats:
    front = _soft_min(_cerebrum(a, v, x), _bulb(a, v, x), 0.25)
    back = _soft_min(_cerebellum(a, v, x), _stem(a, v, x), 0.3)
    return _soft_min(front, back, 0.15)
