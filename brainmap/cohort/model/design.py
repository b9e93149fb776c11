"""What is compared: a formula over the animals' columns -> the columns of a regression, and contrasts of them.

A formula is written as in R: ``group``, ``group + sex``, ``group * sex``, ``group + age + litter``. A contrast is
an expression in levels: ``drug - saline``, ``(drug:f - saline:f) - (drug:m - saline:m)``, ``(low + high) / 2 - none``;
every level stands for the mean over the animals' other columns at equal shares of their levels, numbers at their mean
(marginal means). The name of a term or of a number is a contrast too: the term as a whole, or the slope.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.groups import Groups, require_columns
from brainmap.cohort.model.expression import Expression
from brainmap.errors import DataError, UsageError

__all__ = ["Coding", "Contrast", "Design", "build_design", "read_codings"]

Floats = NDArray[np.float64]

FACTOR, NUMBER = "factor", "number"

# Names of animals rather than properties, where every animal has its own value.
_IDENTITY = re.compile(
    r"(^|[_\W])(id|ear|tag|ear_?tag|name|no|nr|number|code|label|barcode|chip)([_\W]|$)", re.I
)
_TOKEN = re.compile(r"\s*(`[^`]+`|[^\W\d]\w*|\d+|[~+\-:*()/^])")
_MOST_COMBINATIONS = 20_000


@dataclass(frozen=True)
class Coding:
    """How a column enters.

    Attributes
    ----------
    name : str
    kind : str
        ``factor`` (levels, the first one is the reference) or ``number`` (a slope).
    levels : tuple of str
        Of a factor, in the order of the file.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()

    def words(self, values: Sequence[str]) -> str:
        """For people: the kind, and the levels or the range."""
        if self.kind == FACTOR:
            return f"levels {', '.join(f'{level} ({values.count(level)})' for level in self.levels)}"
        numbers = [float(value) for value in values]
        return f"a number, {min(numbers):g} to {max(numbers):g}: one slope"


@dataclass(frozen=True)
class Contrast:
    """What a test is of.

    Attributes
    ----------
    name : str
    matrix : float64 array (coefficients, tested)
        The tested combinations of coefficients; one column unless a whole term is tested.
    row_a, row_b : float64 arrays (coefficients,), optional
        Where a contrast is b - a: the log density of each is ``row @ coefficients``.
    group_a, group_b : str
        Their names; empty otherwise.
    """

    name: str
    matrix: Floats
    row_a: Floats | None = None
    row_b: Floats | None = None
    group_a: str = ""
    group_b: str = ""


@dataclass(frozen=True)
class Design:
    """The columns of a regression.

    Attributes
    ----------
    formula : str
    matrix : float64 array (animals, coefficients)
        Of full rank.
    names : tuple of str
        Of the coefficients.
    terms : dict of slices
        The coefficients of each term.
    codings : tuple of Coding
    contrasts : tuple of Contrast
    """

    formula: str
    matrix: Floats
    names: tuple[str, ...]
    terms: Mapping[str, slice]
    codings: tuple[Coding, ...]
    contrasts: tuple[Contrast, ...] = ()
    spec: Any = field(default=None, repr=False, compare=False)
    frame: Any = field(default=None, repr=False, compare=False)

    @property
    def spare(self) -> int:
        """Animals less coefficients."""
        return self.matrix.shape[0] - self.matrix.shape[1]

    @property
    def kinds(self) -> NDArray[np.intp] | None:
        """Group of each animal, whose variances may differ; None where the design has none."""
        if self.frame is None or "group" not in self.frame:
            return None
        return np.asarray(self.frame["group"].cat.codes, dtype=np.intp)

    @cached_property
    def grid(self) -> tuple[Any, Floats]:
        """Every combination of levels, numbers at their mean, and its rows of the design."""
        import pandas as pd

        factors = [coding for coding in self.codings if coding.kind == FACTOR]
        if np.prod([len(coding.levels) for coding in factors]) > _MOST_COMBINATIONS:
            raise UsageError(f"the formula {self.formula} has too many combinations of levels for contrasts")
        rows = list(product(*(coding.levels for coding in factors)))
        columns: dict[str, Any] = {
            coding.name: pd.Categorical([row[i] for row in rows], categories=list(coding.levels))
            for i, coding in enumerate(factors)
        }
        columns |= {c.name: float(self.frame[c.name].mean()) for c in self.codings if c.kind == NUMBER}
        frame = pd.DataFrame(columns, index=range(len(rows)))
        return frame, np.asarray(self.spec.get_model_matrix(frame, context={}), dtype=np.float64)

    def mean_row(self, levels: Sequence[str]) -> Floats:
        """Row of the design for the marginal mean at these levels.

        Raises
        ------
        UsageError
            If a level is of no factor, or of two.
        """
        frame, rows = self.grid
        chosen = np.ones(len(rows), dtype=bool)
        for level in levels:
            owners = [coding.name for coding in self.codings if level in coding.levels]
            if len(owners) != 1:
                known = ", ".join(level for c in self.codings for level in c.levels)
                what = (
                    f"a level of {' and of '.join(owners)}" if owners else "no level of the formula's columns"
                )
                raise UsageError(f"--contrast: {level!r} is {what} ({known})")
            chosen &= (frame[owners[0]] == level).to_numpy()
        if not chosen.any():
            raise UsageError(f"--contrast: {':'.join(levels)} are levels of one column and never meet")
        return np.asarray(rows[chosen].mean(axis=0))


def read_codings(groups: Groups, wanted: Sequence[str], option: str = "--covariate") -> tuple[Coding, ...]:
    """Decide how columns enter.

    Parameters
    ----------
    groups : Groups
    wanted : sequence of str
        Names of columns, with ``:factor`` or ``:number`` where it is to be said.

    Raises
    ------
    UsageError
        If a column is not there; holds whole numbers of which it is not said what they are; or names animals.
    DataError
        If a value is missing or is no number.
    """
    found = []
    for text in wanted:
        name, _, kind = text.rpartition(":") if text.endswith((":factor", ":number")) else (text, "", "")
        require_columns(groups, [name], option)
        values = groups.values(name)
        if "" in values:
            raise DataError(
                f"animal {groups.animal[values.index('')]} has no {name}: fill it in, or leave the animal out"
            )
        found.append(_coding(name, kind, values))
    return tuple(found)


def _coding(name: str, kind: str, values: tuple[str, ...]) -> Coding:
    levels = tuple(dict.fromkeys(values))
    numbers = _numbers(values)
    if numbers is not None and kind != FACTOR and not np.isfinite(numbers).all():
        raise DataError(f"covariate {name} holds a number that is not finite")
    if name not in ("group", "animal") and len(levels) == len(values) and _IDENTITY.search(name):
        raise UsageError(
            f"{name} is different in every animal and seems to name it: it cannot be a covariate"
        )
    if kind == NUMBER:
        if numbers is None:
            odd = next(value for value in values if _numbers((value,)) is None)
            raise DataError(f"covariate {name} is to be a number, and {odd!r} is none")
        return Coding(name, NUMBER)
    if numbers is not None and not kind and name not in ("group", "animal"):
        if not np.array_equal(numbers, np.round(numbers)):
            return Coding(name, NUMBER)
        raise UsageError(
            f"{name} holds whole numbers, which may be a quantity or the names of batches: say {name}:number or "
            f"{name}:factor"
        )
    return Coding(name, FACTOR, levels)


def _numbers(values: Sequence[str]) -> Floats | None:
    try:
        return np.array([float(value) for value in values])
    except ValueError:
        return None


def build_design(
    groups: Groups,
    covariates: Sequence[str] = (),
    *,
    formula: str | None = None,
    contrasts: Sequence[str] = (),
    paired: str | None = None,
) -> Design:
    """Make the design of a study.

    Parameters
    ----------
    groups : Groups
    covariates : sequence of str
        Columns beside the group, see `read_codings`; with a formula they only say how its columns enter.
    formula : str, optional
        ``group`` and the covariates by default.
    contrasts : sequence of str
        ``name = expression`` or expressions; every pair of groups by default.
    paired : str, optional
        Column whose levels are compared within: animal, litter, cage.

    Raises
    ------
    UsageError, DataError
        See `read_codings`; and for a formula or contrast that cannot be read, aliased columns, too few animals.
    """
    import pandas as pd
    from formulaic import Formula

    formula = formula or groups.formula
    contrasts = contrasts or groups.contrasts
    said = {
        text.rpartition(":")[0] if text.endswith((":factor", ":number")) else text: text
        for text in covariates
    }
    if formula is None:
        names = ["group", *said]
        formula = " + ".join(_quoted(name) for name in names)
    if paired is not None:
        formula = f"{formula} + {_quoted(paired)}"
        said.setdefault(paired, f"{paired}:factor")
    text, used = _checked(formula, groups)
    codings = read_codings(groups, [said.get(name, name) for name in used], "--formula")
    columns = {
        c.name: pd.Categorical(groups.values(c.name), categories=list(c.levels))
        if c.kind == FACTOR
        else np.array([float(value) for value in groups.values(c.name)])
        for c in codings
    }
    frame = pd.DataFrame(columns, index=range(len(groups)))
    for coding in codings:
        if coding.kind == FACTOR and len(coding.levels) < 2:
            raise DataError(f"all animals have the same {coding.name} ({coding.levels[0]}): leave it out")
    try:
        made = Formula(text).get_model_matrix(frame, context={})
    except Exception as error:
        raise UsageError(f"--formula: cannot read {formula!r} ({str(error).splitlines()[0]})") from None
    matrix = np.asarray(made, dtype=np.float64)
    spec = made.model_spec
    terms = {str(term): spec.term_slices[term] for term in spec.terms if str(term) != "1"}
    _require_estimable(matrix, spec.column_names, terms, groups)
    design = Design(formula, matrix, tuple(spec.column_names), terms, codings, spec=spec, frame=frame)
    return _with_contrasts(design, groups, contrasts)


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d]\w*", name) else f"`{name}`"


def _checked(formula: str, groups: Groups) -> tuple[str, list[str]]:
    """A formula of names and operators alone, names quoted, and the columns it uses: nothing is called."""
    used: list[str] = []
    out: list[str] = []
    at = 0
    body = formula.rpartition("~")[2]
    while at < len(body.rstrip()):
        token = _TOKEN.match(body, at)
        if token is None:
            raise UsageError(
                f"--formula: cannot read {body[at:].strip()!r}: names of columns, + : * and brackets can be used; "
                "names with spaces stand in `backticks`"
            )
        at, word = token.end(), token[1]
        name = word.strip("`")
        if word[0] == "`" or word[0].isalpha() or word[0] == "_":
            if name not in ("group", "animal") and name not in groups.columns:
                known = ", ".join(["group", *groups.columns])
                raise UsageError(f"--formula: the table of groups has no column {name}; it has {known}")
            used.append(name)
            out.append(f"`{name}`")
        else:
            out.append(word)
    if not used:
        raise UsageError("--formula names no column")
    return " ".join(["~", *out]), list(dict.fromkeys(used))


def _require_estimable(
    matrix: Floats, names: Sequence[str], terms: Mapping[str, slice], groups: Groups
) -> None:
    animals, columns = matrix.shape
    owner = {i: term for term, where in terms.items() for i in range(*where.indices(columns))}
    kept: list[int] = []
    for i in range(columns):
        if np.linalg.matrix_rank(matrix[:, [*kept, i]]) > len(kept):
            kept.append(i)
            continue
        weights = np.linalg.lstsq(matrix[:, kept], matrix[:, i], rcond=None)[0]
        others = [owner[j] for j, w in zip(kept, weights, strict=True) if abs(w) > 1e-8 and j in owner]
        others = list(dict.fromkeys(term for term in others if term != owner[i]))
        with_what = " and ".join(others) or "the mean of all animals"
        raise DataError(
            f"{owner[i]} cannot be told apart from {with_what} in these {animals} animals ({names[i]} follows from the "
            "others): leave one of them out; litters or cages that lie within groups are units (--unit)"
        )
    if animals <= columns:
        raise DataError(
            f"{animals} animals are too few for {columns - 1} columns of {' and '.join(terms)}: nothing would be left "
            "to see the scatter by; leave some out"
        )


def _with_contrasts(design: Design, groups: Groups, texts: Sequence[str]) -> Design:
    if texts:
        made = tuple(_contrast(design, text) for text in texts)
    else:
        grouped = next((c for c in design.codings if c.name == "group" and c.kind == FACTOR), None)
        if grouped is None:
            made = tuple(_term(design, term, term) for term in design.terms)
        else:
            made = tuple(
                _difference(f"{b} - {a}", design.mean_row([a]), design.mean_row([b]), a, b)
                for a, b in groups.pairs
            )
    if twice := next((c.name for c in made if [m.name for m in made].count(c.name) > 1), None):
        raise UsageError(f"--contrast: {twice} is named twice")
    return replace(design, contrasts=made)


def _difference(name: str, a: Floats, b: Floats, group_a: str, group_b: str) -> Contrast:
    return Contrast(name, (b - a)[:, None], a, b, group_a, group_b)


def _term(design: Design, name: str, term: str) -> Contrast:
    """A factor as its marginal means, all equal or not; another term as its coefficients."""
    factor = next((c for c in design.codings if c.name == term.strip("`") and c.kind == FACTOR), None)
    if factor is not None:
        first, *others = (design.mean_row([level]) for level in factor.levels)
        return Contrast(name, np.stack([row - first for row in others], axis=1))
    where = range(*design.terms[term].indices(len(design.names)))
    return Contrast(name, np.eye(len(design.names))[:, list(where)])


def _contrast(design: Design, text: str) -> Contrast:
    name, equals, expression = text.partition("=")
    expression = expression.strip() if equals else text.strip()
    name = name.strip() if equals else expression
    plain = expression.replace("`", "").replace(" ", "")
    for term in design.terms:
        if plain == term.replace("`", "").replace(" ", ""):
            return _term(design, name, term)
    levels = [level for coding in design.codings for level in coding.levels]
    parser = Expression(expression, levels, design.mean_row)
    row = parser.read()
    if parser.two_levels is not None:
        a, b = parser.two_levels
        return _difference(name, design.mean_row(a.split(":")), design.mean_row(b.split(":")), a, b)
    return Contrast(name, row[:, None])
