"""Which files of a folder are the planes of one image, in which order, told from their names.

Files of one series share all of their name but numbers. One number that varies counts the planes; a second one, or
a word, that stands for the same planes again is a channel. Everything else is said and refused: a plane too many or
in the wrong place shifts every cell behind it.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainmap.errors import DataError, UsageError

__all__ = ["Planes", "matching", "natural", "planes_of"]

# Words before a number that counts channels.
_CHANNEL_WORD = re.compile(r"(?:^|[^a-z])(?:channel|chan|ch|c|w|wl|lambda|laser|filter|em|ex)[ _-]*$")
_MOST_CHANNELS = 12
_SHOWN = 3
# What # stands for in --planes; * before it takes none of its digits.
_NUMBER = r"(?<![0-9])(?<![0-9]\.)([+-]?[0-9]+(?:\.[0-9]+)?)(?![0-9])"


@dataclass(frozen=True)
class Planes:
    """The planes of a folder.

    Attributes
    ----------
    files : tuple of tuple of (Path or None)
        For each channel its planes in order; None where one is missing and gaps are allowed.
    channel_names : tuple of str or None
        None where the names tell of one channel only.
    remarks : tuple of str
        What is worth a warning.
    """

    files: tuple[tuple[Path | None, ...], ...]
    channel_names: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Series:
    """Files whose names differ in numbers only: `text` has one part more than a name has numbers."""

    text: tuple[str, ...]
    numbers: dict[
        Path, tuple[float, ...]
    ]  # whole numbers are int: a clock's digits are more than a float holds

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def varying(self) -> list[int]:
        """Which of the numbers are not the same everywhere."""
        columns = zip(*self.numbers.values(), strict=True)
        return [i for i, column in enumerate(columns) if len(set(column)) > 1]

    def pattern(self, fixed: dict[int, float] | None = None) -> str:
        """A name with # for every number that varies, as --planes takes it."""
        example, varying = next(iter(self.numbers.values())), self.varying
        name = self.text[0]
        for i, part in enumerate(self.text[1:]):
            shown = _written(self, i, (fixed or {}).get(i, example[i]))
            name += ("#" if i in varying and i not in (fixed or {}) else shown) + part
        return name


def _written(series: _Series, field: int, value: float) -> str:
    """A number as the files write it."""
    for path, numbers in series.numbers.items():
        if numbers[field] == value:
            return _split(path.name, True, True)[1][field]
    return f"{value:g}"


def natural(path: Path) -> list[tuple[bool, int, str]]:
    """Key of natural order: section_9 before section_10."""
    words = [word for word in re.split(r"(\d+)", path.name.lower()) if word]
    return [(w.isdecimal() and w.isascii(), int(w) if w.isdecimal() and w.isascii() else 0, w) for w in words]


def matching(files: Iterable[Path], pattern: str | None, where: str) -> list[Path]:
    """The files whose name fits `--planes`: * stands for anything, ? for one character, # for a number.

    Raises
    ------
    UsageError
        If none does.
    """
    found = list(files)
    if pattern is None:
        return found
    wanted = _compiled(pattern)
    kept = [path for path in found if wanted.fullmatch(path.name)]
    if not kept:
        names = ", ".join(sorted(p.name for p in found)[:_SHOWN])
        raise UsageError(f"--planes {pattern}: no file of {where} has such a name (there are {names}, ...)")
    return kept


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern).replace(r"\#", _NUMBER), re.IGNORECASE)


def planes_of(
    files: Sequence[Path], where: str, allow_gaps: bool = False, pattern: str | None = None
) -> Planes:
    """Order the files of one image.

    Parameters
    ----------
    files : sequence of Path
        Each holds one plane.
    where : str
        The folder, for messages.
    allow_gaps : bool
        Take a series with missing numbers: the planes that are missing stay empty.
    pattern : str, optional
        What --planes was. With a single # in it, which is another number in every file, that counts the planes,
        whatever else differs.

    Raises
    ------
    DataError
        If the names tell of several images, of copies or other strays, or of a gap.
    """
    if len(files) == 1:
        return Planes(((files[0],),))
    told = _told(files, pattern)
    if told is not None:
        return _joined({"": told}, where, allow_gaps)
    groups = _grouped(files)
    channels = _worded_channels(groups)
    if channels is not None:
        return _joined(channels, where, allow_gaps)
    if len(groups) > 1:
        main = groups[0]
        others = [path.name for group in groups[1:] for path in group.numbers]
        shown = ", ".join(sorted(others)[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
        raise DataError(
            f"{where} holds files of different names, which are not one series of planes: {len(main)} like "
            f"{main.pattern()}, and {len(others)} other{'s' if len(others) > 1 else ''} ({shown}); name the planes "
            f"with --planes '{main.pattern()}', or move the others away"
        )
    series = groups[0]
    varying = series.varying
    if len(varying) <= 1:
        return _joined({"": _by_number(series, varying[0] if varying else 0, where)}, where, allow_gaps)
    return _several_numbers(series, varying, where, allow_gaps)


def _told(files: Sequence[Path], pattern: str | None) -> dict[float, Path] | None:
    """Planes by the number that a pattern with one # finds; None where it does not tell them apart."""
    if pattern is None or pattern.count("#") != 1:
        return None
    wanted = _compiled(pattern)
    found = [(match[1], path) for path in files if (match := wanted.fullmatch(path.name))]
    # A minus before every number is a hyphen.
    hyphen = all(number.startswith("-") for number, _ in found)
    planes = {_number(number.lstrip("-") if hyphen else number): path for number, path in found}
    return planes if len(planes) == len(files) else None


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


def _grouped(files: Sequence[Path]) -> list[_Series]:
    """Files by the text of their names, the largest group first.

    A minus after a letter or a blank is a sign where that makes fewer groups (z-10, z0, z+10), and a hyphen where not
    (section-10). A point between digits is a decimal one where all have as many digits behind it.
    """
    by_sign = [_groups(files, minus, True) for minus in (False, True)]
    groups = min(by_sign, key=len)
    if any(_uneven_decimals(group) for group in groups):
        groups = _groups(files, groups is by_sign[1], False)
    # Of equally many, copies come last.
    return sorted(groups, key=lambda group: (-len(group), len("".join(group.text)), group.text))


def _groups(files: Sequence[Path], minus: bool, decimals: bool) -> list[_Series]:
    found: dict[tuple[str, ...], dict[Path, tuple[float, ...]]] = defaultdict(dict)
    for path in files:
        text, numbers = _split(path.name, minus, decimals)
        kind = tuple(part.lower() for part in (*text[:-1], re.sub(r"\.tiff$", ".tif", text[-1].lower())))
        found[kind][path] = tuple(_number(n) for n in numbers)
    named = []
    for numbers_of in found.values():
        # The text as written by the first file, for messages.
        text, _ = _split(min(numbers_of).name, minus, decimals)
        named.append(_Series(tuple(text), numbers_of))
    return named


def _split(name: str, minus: bool, decimals: bool) -> tuple[list[str], list[str]]:
    """Text and numbers of a name in turn; the ending belongs to the last text."""
    stem, dot, ending = name.rpartition(".")
    number = r"[0-9]+(?:\.[0-9]+)?" if decimals else r"[0-9]+"
    # After a digit neither is a sign: 2024-05-11, 1+2.
    sign = r"(?:(?<![0-9])[+-])?" if minus else r"(?:(?<![0-9])\+|(?<![0-9a-zA-Z) ])-)?"
    parts = re.split(f"({sign}{number})", stem)
    text, numbers = parts[0::2], parts[1::2]
    return [*text[:-1], text[-1] + dot + ending], numbers


def _uneven_decimals(series: _Series) -> bool:
    """Whether what looks like decimals is two counters: 1.9 and 1.10."""
    for field in range(len(series.text) - 1):
        digits = {len(_split(path.name, True, True)[1][field].partition(".")[2]) for path in series.numbers}
        if len(digits - {0}) > 1:
            return True
    return False


def _worded_channels(groups: list[_Series]) -> dict[str, dict[float, Path]] | None:
    """Groups that are the same planes of several channels, by the word that tells them apart."""
    if not 2 <= len(groups) <= _MOST_CHANNELS or any(len(group.varying) != 1 for group in groups):
        return None
    planes = [{numbers[g.varying[0]]: path for path, numbers in g.numbers.items()} for g in groups]
    if any(set(p) != set(planes[0]) or len(p) != len(g) for p, g in zip(planes, groups, strict=True)):
        return None
    words = _differing([group.pattern() for group in groups])
    return words and dict(sorted(zip(words, planes, strict=True), key=lambda item: item[0]))


def _differing(patterns: list[str]) -> list[str] | None:
    """The words in which names differ, each in one place; None where a name has no such word, as that of a copy."""
    pieces = [[p for p in re.split(r"(#|[^0-9A-Za-z#]+)", pattern) if p] for pattern in patterns]
    for end in (0, -1):
        while all(pieces) and len({p[end].lower() for p in pieces}) == 1:
            pieces = [p[1:] if end == 0 else p[:-1] for p in pieces]
    words = ["".join(p).strip(" _-.") for p in pieces]
    return None if any(not word or "#" in word for word in words) else words


def _by_number(series: _Series, field: int, where: str) -> dict[float, Path]:
    """Planes by their number."""
    found: dict[float, Path] = {}
    for path, numbers in series.numbers.items():
        value = numbers[field] if numbers else 0.0
        if value in found:
            raise DataError(
                f"{where}: {found[value].name} and {path.name} have the same number; move one of them away, or name "
                "the planes with --planes"
            )
        found[value] = path
    return found


def _several_numbers(series: _Series, varying: list[int], where: str, allow_gaps: bool) -> Planes:
    """Planes and channels of names with two numbers that vary; others are refused."""
    values = {field: sorted({numbers[field] for numbers in series.numbers.values()}) for field in varying}
    counter = _counter(series, varying)
    if counter is not None:
        return _joined({"": _by_number(series, counter, where)}, where, allow_gaps)
    channels = [field for field in varying if _counts_channels(series, field, values[field])]
    if channels and len(varying) == len(channels) + 1:
        (plane,) = set(varying) - set(channels)
        told = sorted({tuple(numbers[field] for field in channels) for numbers in series.numbers.values()})
        # Two numbers of a channel, such as its laser and its filter, go together.
        if all(len(values[field]) == len(told) for field in channels):
            parts = {}
            for value in told:
                chosen = {p: n for p, n in series.numbers.items() if tuple(n[c] for c in channels) == value}
                name = _channel_name(series, channels, value)
                parts[name] = _by_number(_Series(series.text, chosen), plane, where)
            return _joined(parts, where, allow_gaps)
    counts = " and ".join(
        f"{len(values[field])} after '{series.text[field].strip(' _-')[-12:]}'" for field in varying
    )
    most = max(varying, key=lambda field: len(values[field]))
    pattern = series.pattern({field: values[field][0] for field in varying if field != most})
    raise DataError(
        f"{where}: {len(varying)} numbers vary in the names of its files ({counts}, as in "
        f"{min(series.numbers).name}), so they are not one series of planes: choose one with --planes '{pattern}'"
    )


def _channel_name(series: _Series, fields: list[int], values: tuple[float, ...]) -> str:
    """ch01, or Ex_488_Em_525: numbers as written, and the words before them."""
    words = [
        re.sub(r".*[^a-zA-Z]", "", series.text[field].rstrip(" _-"), flags=re.DOTALL) for field in fields
    ]
    return "_".join(f"{w}{_written(series, f, v)}" for w, f, v in zip(words, fields, values, strict=True))


def _counter(series: _Series, varying: list[int]) -> int | None:
    """A number that is another one in every file, while the others (a time, a position) rise with it or repeat it."""
    for field in varying:
        ordered = sorted(series.numbers.values(), key=lambda numbers: numbers[field])
        # Together: the minutes of a clock begin again when its hour goes on.
        others = [tuple(numbers[other] for other in varying if other != field) for numbers in ordered]
        unique = len({numbers[field] for numbers in ordered}) == len(ordered)
        if unique and all(a <= b for a, b in itertools.pairwise(others)):
            return field
    return None


def _counts_channels(series: _Series, field: int, values: list[float]) -> bool:
    if len(values) > _MOST_CHANNELS:
        return False
    if _CHANNEL_WORD.search(series.text[field].lower()):
        return True
    # A laser's wavelength: 488nm, ex561.
    return series.text[field + 1].lower().startswith("nm") and all(300 < value < 1200 for value in values)


def _joined(channels: dict[str, dict[float, Path]], where: str, allow_gaps: bool) -> Planes:
    """Channels with the same planes; gaps are refused, or left empty."""
    numbers = sorted(set(itertools.chain.from_iterable(channels.values())))
    for name, planes in channels.items():
        missing = [n for n in numbers if n not in planes]
        if missing and not allow_gaps:
            shown = ", ".join(f"{n:g}" for n in missing[:6])
            raise DataError(
                f"{where}: channel {name} lacks {len(missing)} of the {len(numbers)} planes "
                f"that others have ({shown}); "
                "add what is missing, choose one channel with --planes, or leave it empty with --allow-gaps"
            )
    wanted, remarks = numbers, tuple[str, ...]()
    gaps = _gaps(numbers)
    if gaps and not allow_gaps:
        raise DataError(
            f"{where}: {_listed(gaps)} missing between {numbers[0]:g} and {numbers[-1]:g}; add what is missing, or go "
            "on with empty planes there with --allow-gaps"
        )
    if gaps:
        wanted = sorted({*numbers, *gaps})
        remarks = (f"{_listed(gaps)} missing: left empty",)
    files = tuple(tuple(planes.get(n) for n in wanted) for planes in channels.values())
    names = tuple(channels) if len(channels) > 1 else None
    return Planes(files, names, remarks)


def _gaps(numbers: list[float]) -> list[float]:
    """Numbers missing in a series of even steps; none where the steps are not even at all."""
    digits = max(len(f"{n:.6f}".rstrip("0").partition(".")[2]) if n % 1 else 0 for n in numbers)
    # Of a third of a micrometre, names have two or three digits.
    unit = 1.01 * 10.0**-digits if digits else 1e-3
    steps = [round(b - a, 6) for a, b in itertools.pairwise(numbers)]
    if len(steps) < 2 or min(steps) <= 0:
        return []
    step = min(steps)
    counts = [round(s / step) for s in steps]
    if any(abs(s - n * step) > unit * (n if digits else step) for s, n in zip(steps, counts, strict=True)):
        return []
    # Where most steps are longer, numbers are names and do not count planes.
    if 2 * sum(s > 1.5 * step for s in steps) > len(steps):
        return []
    found: list[float] = []
    for a, s, n in zip(numbers, steps, counts, strict=False):
        found.extend(round(a + i * s / n, max(digits, 6 if digits else 0)) for i in range(1, n))
        if len(found) > 100 * len(numbers):
            return []
    return found


def _listed(numbers: list[float]) -> str:
    """ "plane 5 is", "planes 5, 6 are": for a sentence that ends with missing."""
    shown = ", ".join(f"{n:g}" for n in numbers[:6]) + (", ..." if len(numbers) > 6 else "")
    return f"plane {shown} is" if len(numbers) == 1 else f"{len(numbers)} planes ({shown}) are"
