"""Commands for many animals: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brainmap.cli.console import command, print_json, print_pairs

__all__ = ["register"]

Level = Annotated[
    str,
    typer.Option(
        help="Regions: summary, divisions, leaf, all, a depth, acronyms separated by commas, or a CSV set,structure.",
        metavar="LEVEL",
    ),
]
Within = Annotated[
    str | None, typer.Option(help="Only structures inside this one, e.g. grey.", metavar="STRUCTURE")
]
Hemisphere = Annotated[
    str, typer.Option(help="Sides: each tests left and right apart.", metavar="left|right|both|each")
]
Covariates = Annotated[
    list[str] | None,
    typer.Option(
        "--covariate",
        help="Column to adjust for; NAME:factor or NAME:number says what whole numbers are. May be repeated.",
        metavar="NAME",
    ),
]
Formula = Annotated[
    str | None,
    typer.Option(
        help="Design over the columns, e.g. 'group * sex + batch' [default: group and the covariates].",
        metavar="FORMULA",
    ),
]
Contrasts = Annotated[
    list[str] | None,
    typer.Option(
        "--contrast",
        help="What to test: 'drug - saline', '(drug:f - saline:f) - (drug:m - saline:m)', a term; 'NAME = "
        "...' names it. "
        "May be repeated. [default: all pairs of groups]",
        metavar="EXPRESSION",
    ),
]
Paired = Annotated[
    str | None,
    typer.Option(help="Compare within the levels of this column: animal, litter, cage.", metavar="NAME"),
]
Unit = Annotated[
    str | None,
    typer.Option(help="Add up the animals of each litter or cage, and compare these.", metavar="NAME"),
]
Relative = Annotated[
    bool | None,
    typer.Option(
        "--relative/--absolute",
        help="Divide out each animal's level over the whole brain, or keep it [default: divide out where "
        "animals of one "
        "group differ by it].",
    ),
]
Control = Annotated[
    str | None,
    typer.Option(help="Divide out each animal's level in these structures instead.", metavar="ACRONYMS"),
]


def compare(
    groups: Annotated[
        Path, typer.Argument(help="CSV run,animal,group and further columns.", metavar="GROUPS.csv")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")],
    level: Level = "summary",
    within: Within = None,
    hemisphere: Hemisphere = "both",
    measure: Annotated[
        str,
        typer.Option(help="Counts (negative binomial), densities (t-tests).", metavar="count|density|both"),
    ] = "both",
    alpha: Annotated[float, typer.Option(help="Rate of false discoveries.", metavar="F")] = 0.05,
    covariate: Covariates = None,
    formula: Formula = None,
    contrast: Contrasts = None,
    paired: Paired = None,
    unit: Unit = None,
    relative: Relative = None,
    control: Control = None,
    family: Annotated[
        str,
        typer.Option(
            help="Test divisions first and the regions of those that differ next, or all regions at once.",
            metavar="tree|flat",
        ),
    ] = "tree",
    exclude: Annotated[
        Path | None,
        typer.Option(help="CSV animal,structure: damaged, and missing there.", metavar="FILE.csv"),
    ] = None,
    coverage: Annotated[
        float, typer.Option(help="Least share of a region's usual volume for it to count.", metavar="F")
    ] = 0.5,
    keep_outliers: Annotated[
        bool, typer.Option("--keep-outliers", help="Keep single regions of single animals that stand out.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare groups of animals region by region."""
    from brainmap.cohort.results import compare as run
    from brainmap.cohort.results import study_record
    from brainmap.cohort.study import CompareSettings

    settings = CompareSettings(
        level=level,
        within=within,
        hemisphere=hemisphere,
        measure=measure,
        alpha=alpha,
        covariates=tuple(covariate or ()),
        formula=formula,
        contrasts=tuple(contrast or ()),
        paired=paired,
        unit=unit,
        relative=relative,
        control=_words(control),
        family=family,
        exclude=exclude,
        coverage=coverage,
        keep_outliers=keep_outliers,
    )
    study = run(groups, out, settings, overwrite=overwrite)
    if as_json:
        print_json(study_record(study))
    else:
        print_pairs([*study.lines(), ("report", str(out / "report.html"))])


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    command(app, "compare")(compare)
