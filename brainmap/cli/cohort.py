"""Commands for many animals: compare, power, study, maps, network."""

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


def power(
    groups: Annotated[
        Path, typer.Argument(help="CSV run,animal,group of a pilot or a study.", metavar="GROUPS.csv")
    ],
    effect: Annotated[float, typer.Option(help="Ratio of densities to find, e.g. 1.5.", metavar="F")],
    share: Annotated[float, typer.Option(help="Of a division's regions that change.", metavar="F")] = 0.5,
    power: Annotated[float, typer.Option(help="Chance of finding it that is wanted.", metavar="F")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Rate of false discoveries.", metavar="F")] = 0.05,
    level: Level = "summary",
    within: Within = None,
    hemisphere: Annotated[str, typer.Option(help="Side.", metavar="left|right|both")] = "both",
    relative: Relative = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write power.csv, the curves and a page.", metavar="DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say how many animals a group are needed, division by division, from the scatter of the animals at hand."""
    from brainmap.cohort.planning.power import PowerSettings, study_power
    from brainmap.cohort.planning.power_page import write_power

    settings = PowerSettings(effect, share, power, alpha, level, within, hemisphere, relative)
    found = study_power(groups, settings)
    if out is not None:
        write_power(found, out)
    if as_json:
        print_json(found)
    else:
        print_pairs([*found.lines(), *([("report", str(out / "report.html"))] if out else [])])


def study(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV brain,animal,group; options of detect (orientation, channel, ...) and other columns.",
            metavar="STUDY.csv",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs and the comparison.", metavar="DIR")],
    config: Annotated[
        Path | None, typer.Option(help="Settings of detect for all brains; columns win.", metavar="FILE.toml")
    ] = None,
    level: Level = "summary",
    within: Within = None,
    hemisphere: Hemisphere = "both",
    alpha: Annotated[float, typer.Option(help="Rate of false discoveries.", metavar="F")] = 0.05,
    covariate: Covariates = None,
    formula: Formula = None,
    contrast: Contrasts = None,
    paired: Paired = None,
    unit: Unit = None,
    relative: Relative = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace runs that were made with other options.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left to do; do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Detect the cells of all brains that are not done, then compare the groups; the same command goes on."""
    from brainmap.cohort.planning.brains import COMPARISON_DIR, plan_study, run_study
    from brainmap.cohort.results import study_record
    from brainmap.cohort.study import CompareSettings

    settings = CompareSettings(
        level=level,
        within=within,
        hemisphere=hemisphere,
        alpha=alpha,
        covariates=tuple(covariate or ()),
        formula=formula,
        contrasts=tuple(contrast or ()),
        paired=paired,
        unit=unit,
        relative=relative,
    )
    plan = plan_study(table, out, config, overwrite=overwrite)
    if dry_run:
        print_pairs(plan.lines())
        return
    found = run_study(plan, settings)
    if as_json:
        print_json(study_record(found))
    else:
        print_pairs([*found.lines(), ("report", str(out / COMPARISON_DIR / "report.html"))])


def maps(
    groups: Annotated[
        Path, typer.Argument(help="CSV run,animal,group and further columns.", metavar="GROUPS.csv")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")],
    voxel: Annotated[float, typer.Option(help="Voxel size of the maps.", metavar="UM")] = 200.0,
    sigma: Annotated[float, typer.Option(help="Smoothing, standard deviation.", metavar="UM")] = 200.0,
    permutations: Annotated[
        int, typer.Option(help="Most permutations; if there are fewer, all are tried.", metavar="N")
    ] = 1000,
    alpha: Annotated[float, typer.Option(help="Family-wise rate of error.", metavar="F")] = 0.05,
    fold: Annotated[bool, typer.Option("--fold", help="Lay the right side onto the left one.")] = False,
    absolute: Annotated[
        bool, typer.Option("--absolute", help="Keep each animal's level over the brain.")
    ] = False,
    smooth_variance: Annotated[
        float, typer.Option(help="Smooth the variance too: steadier with few animals.", metavar="UM")
    ] = 0.0,
    covariate: Covariates = None,
    formula: Formula = None,
    contrast: Contrasts = None,
    paired: Paired = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier maps.")] = False,
) -> None:
    """Map densities in atlas space and test, voxel by voxel, where animals differ."""
    from brainmap.cohort.folder import require_free
    from brainmap.cohort.maps.maps import MapSettings, make_maps
    from brainmap.cohort.maps.write import RECORD, write_maps

    settings = MapSettings(
        voxel_um=voxel,
        sigma_um=sigma,
        repeats=permutations,
        alpha=alpha,
        fold=fold,
        relative=not absolute,
        smooth_variance_um=smooth_variance,
        covariates=tuple(covariate or ()),
        formula=formula,
        contrasts=tuple(contrast or ()),
        paired=paired,
    )
    # Before minutes of work, too.
    require_free(out, RECORD, "maps", overwrite)
    found = make_maps(groups, settings)
    page = write_maps(found, out, overwrite=overwrite)
    print_pairs([*found.lines(), ("report", str(page))])


def network(
    groups: Annotated[
        Path, typer.Argument(help="CSV run,animal,group and further columns.", metavar="GROUPS.csv")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")],
    level: Level = "summary",
    within: Within = None,
    hemisphere: Annotated[str, typer.Option(help="Side.", metavar="left|right|both")] = "both",
    relative: Annotated[
        bool | None,
        typer.Option(
            "--relative/--absolute",
            help="Divide out each animal's level over the whole brain, or keep it [default: divide out].",
        ),
    ] = None,
    control: Control = None,
    permutations: Annotated[int, typer.Option(help="Permutations, and bootstraps.", metavar="N")] = 1000,
    density: Annotated[
        float,
        typer.Option(help="Share of all pairs that are edges when modules are looked for.", metavar="F"),
    ] = 0.1,
    alpha: Annotated[float, typer.Option(help="Rate of false discoveries.", metavar="F")] = 0.05,
    few: Annotated[bool, typer.Option("--few", help="Also groups of four or five animals.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier networks.")] = False,
) -> None:
    """Correlate regions over the animals of each group, and say what differs between the groups' networks."""
    from brainmap.cohort.folder import require_free
    from brainmap.cohort.networks.network import NetworkSettings, make_network
    from brainmap.cohort.networks.write import RECORD, write_network

    settings = NetworkSettings(
        level, within, hemisphere, relative, _words(control), permutations, density, alpha, few
    )
    # Before minutes of work, too.
    require_free(out, RECORD, "networks", overwrite)
    found = make_network(groups, settings)
    page = write_network(found, out, overwrite=overwrite)
    print_pairs([*found.lines(), ("report", str(page))])


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    command(app, "compare")(compare)
    command(app, "power")(power)
    command(app, "study")(study)
    command(app, "maps")(maps)
    command(app, "network")(network)
