"""Is a voxel size possible for a picture of tissue, or was it written in another unit?

Metadata in millimetres or nanometres that says micrometres is common, and so are typing slips; the run that follows
takes hours or finds nothing. The sentence asks, and gives the value that was probably meant.
"""

from __future__ import annotations

from collections.abc import Sequence

from brainmap.errors import UsageError

__all__ = ["check_cell_diameter", "check_voxel_um"]

# Light microscopes stop at about 0.05 um a pixel, expansion included; brains are not cut thicker than 2 mm.
_FINEST_UM, _COARSEST_UM, _THICKEST_UM = 0.02, 600.0, 3000.0
# Larger than an elephant's brain.
_LARGEST_UM = 400_000.0
# Voxels that are so many times longer than wide.
_MOST_STRETCHED = 2000.0
# Between the smallest nuclei and the largest neurons.
_SMALLEST_CELL_UM, _LARGEST_CELL_UM = 0.5, 500.0
_UNITS = ((1000.0, "millimetres"), (0.001, "nanometres"), (1e6, "metres"), (10_000.0, "centimetres"))


def check_voxel_um(voxel_um: Sequence[float], shape: Sequence[int], where: str, source: str) -> None:
    """Refuse a voxel size that no picture of tissue has.

    Parameters
    ----------
    voxel_um : (z, y, x)
    shape : (z, y, x)
        Voxels.
    where, source : str
        The image, and what the voxel size comes from, for the message.

    Raises
    ------
    UsageError
        Naming the likely value where there is one.
    """
    fault = _fault(voxel_um, shape)
    if fault is None:
        return
    size = ",".join(f"{v:g}" for v in voxel_um)
    raise UsageError(
        f"{where}: the voxel size {size} um ({source}) cannot be right: {fault}; {_likely(voxel_um, shape)}"
    )


def _fault(voxel_um: Sequence[float], shape: Sequence[int]) -> str | None:
    z, y, x = voxel_um
    extent = max(n * v for n, v in zip(shape, voxel_um, strict=True))
    if min(y, x) < _FINEST_UM or (z < _FINEST_UM and shape[0] > 1):
        return f"the whole image would be {extent:.3g} um across"
    if max(y, x) > _COARSEST_UM:
        return f"a pixel would be {max(y, x) / 1000:.3g} mm wide"
    if shape[0] > 1 and z > _THICKEST_UM:
        return f"planes would be {z / 1000:.3g} mm apart"
    if extent > _LARGEST_UM:
        return f"the image would be {extent / 1000:.3g} mm across"
    if max(y, x) > 50 * min(y, x):
        return "pixels would be many times longer than wide"
    if shape[0] > 1 and max(z, y, x) > _MOST_STRETCHED * min(z, y, x):
        return "voxels would be thousands of times longer than wide"
    return None


def _likely(voxel_um: Sequence[float], shape: Sequence[int]) -> str:
    for factor, unit in _UNITS:
        if factor < 1 and max(v for v in voxel_um) < _COARSEST_UM:
            continue
        meant = [v * factor for v in voxel_um]
        if _fault(meant, shape) is None:
            size = ",".join(f"{v:g}" for v in meant)
            return f"if it is in {unit}, give --voxel-size {size}"
    return "give the true one in um with --voxel-size Z,Y,X"


def check_cell_diameter(um: float) -> None:
    """Refuse a cell diameter that no cell has.

    Raises
    ------
    UsageError
        Naming the likely value where there is one.
    """
    if _SMALLEST_CELL_UM <= um <= _LARGEST_CELL_UM:
        return
    guesses = [um * factor for factor, _ in _UNITS if 2 <= um * factor <= 100]
    meant = f"; did you mean {guesses[0]:g}?" if guesses else ""
    raise UsageError(f"--cell-diameter {um:g}: no cell is {um:g} um across{meant}")
