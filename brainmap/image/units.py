"""Units of length as files name them."""

from __future__ import annotations

__all__ = ["UM_PER_UNIT", "um_per_unit"]

#: UDUNITS length names that NGFF recommends, in micrometres.
UM_PER_UNIT = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "meter": 1e6,
    "inch": 25400.0,
    "foot": 304800.0,
    "yard": 914400.0,
}
# What careless writers put instead, without plurals and in American spelling.
_UNIT_ALIASES = {
    "um": "micrometer",
    "µm": "micrometer",
    "µ": "micrometer",
    "u": "micrometer",
    "mic": "micrometer",
    "micron": "micrometer",
    "µmeter": "micrometer",
    "umeter": "micrometer",
    "nm": "nanometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "å": "angstrom",
    "ångström": "angstrom",
    "ångstrom": "angstrom",
    "in": "inch",
    '"': "inch",
}
# Escaped, in the other alphabet, or a byte of UTF-8 read as Latin-1.
_MICRO_SIGNS = ("\\u00c2\\u00b5", "\\u00b5", "\\u03bc", "\u03bc", "\u00e2\u00b5", "\u00ce\u00bc")


def um_per_unit(unit: str) -> float | None:
    """Micrometres in a unit of length, by its UDUNITS name or a usual abbreviation; None if unknown."""
    name = "".join(unit.lower().replace("-", " ").split()).rstrip(".")
    for sign in _MICRO_SIGNS:
        name = name.replace(sign, "µ")
    name = name.removesuffix("es") if name == "inches" else name.removesuffix("s") if len(name) > 2 else name
    if name.endswith("metre"):
        name = name.removesuffix("metre") + "meter"
    return UM_PER_UNIT.get(_UNIT_ALIASES.get(name, name))
