"""How `--help` looks: options in groups, values as people write them, and an example for each command.

Groups and examples stand here, by name, so that a command's own module says only what its options mean.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

__all__ = ["COMMAND_GROUPS", "EXAMPLES", "OPTION_GROUPS", "GroupedCommand", "GroupedCommands"]

#: Commands with more options than this show them in groups.
_MANY = 8

#: Options by what they are about, in the order shown; what is named nowhere stands under "Options".
OPTION_GROUPS = {
    "Input": (
        "channel", "registration_channel", "timepoint", "axes", "orientation", "voxel_size", "planes", "allow_gaps",
        "registration_image", "mask", "landmarks", "clicks", "tiles", "gt", "assignments", "qc", "truth",
        "start", "generator", "like", "calibration",
    ),
    "Atlas and regions": ("atlas", "no_atlas", "registration", "level", "within", "hemisphere"),
    "Detection": ("detector", "threshold", "cell_diameter", "roi"),
    "Result": ("out", "work", "export", "overwrite", "dry_run", "config", "as_json"),
    "Computing": ("block", "backend", "device", "workers", "scheduler"),
}  # fmt: skip
_TALK = "Messages and help"
_TALK_OPTIONS = ("verbose", "quiet", "help")

#: Groups of commands, in the order shown.
COMMAND_GROUPS = {
    "First steps": ("demo", "doctor", "atlas"),
    "One brain": ("convert", "detect", "register", "status", "regions", "view", "review", "tune", "evaluate"),
    "Many animals": ("compare", "maps", "network", "study", "power"),
    "Many hands": ("crowd", "gt", "retrain", "train"),
}

#: Values of options without a metavar of their own, by the kind that the parser knows.
_VALUES = {"int": "N", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}

#: By the words of a command: what to type, and what it does.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "demo": (("brainmap demo", "a phantom brain with known cells, in demo/, in a few minutes"),),
    "detect": (
        ("brainmap detect brain.zarr --orientation psl --out run",
         "cells per region of the Allen atlas; again after an interruption, it goes on"),
        ("brainmap detect brain.zarr --no-atlas --roi 100:140,2000:4000,2000:4000 --out try",
         "a first look at part of a brain, in a minute"),
        ("brainmap detect brain.zarr --orientation psl --out run --dry-run",
         "how long it would take, and how much memory"),
    ),
    "register": (("brainmap register brain.zarr --orientation psl --out registration",
                  "the atlas laid over a brain, with pictures that prove it"),),
    "regions": (
        ("brainmap regions run --threshold 0.7", "count a finished run anew, with surer cells"),
        ("brainmap regions run --level divisions --out divisions.csv", "the table at another level"),
    ),
    "tune": (("brainmap tune run --out my_detector", "score and threshold fitted to your marks"),),
    "view": (
        ("brainmap view run", "the brain with its cells and regions"),
        ("brainmap view run --at CTX", "the same, at the cortex"),
    ),
    "review": (("brainmap review run", "how good the counts are, from a few minutes of your judgement"),),
    "status": (("brainmap status run --watch", "how far a run is, until it is done"),),
    "convert": (
        ("brainmap convert planes/ brain.zarr --voxel-size 5,2,2", "a folder of TIFF planes, 5 um apart, 2 um pixels"),
        ("brainmap convert planes/ brain.zarr --voxel-size 5,2,2 --planes 'brain_Ch1_#.tif'",
         "of one channel, where the folder holds two"),
    ),
    "evaluate": (("brainmap evaluate run truth.csv --tolerance-um 10", "precision and recall of a run"),),
    "compare": (("brainmap compare groups.csv --out comparison",
                 "groups.csv: run,animal,group, one line for each animal"),),
    "study": (("brainmap study study.csv --out study",
               "every brain that is not done, then the comparison; study.csv: brain,animal,group"),),
    "power": (("brainmap power groups.csv --effect 1.5",
               "how many animals a group are needed to find a half more cells"),),
    "maps": (("brainmap maps groups.csv --out maps",
              "where groups differ, voxel by voxel, whatever the borders of regions"),),
    "network": (("brainmap network groups.csv --out network",
                 "which regions go together in each group, and where groups differ in it"),),
    "doctor": (("brainmap doctor", "what this machine can do, and what is missing"),),
    "retrain": (("brainmap retrain --clicks clicks.csv --tiles tiles --out my_detector",
                 "a detector that has learnt from clicks, if it is better than the old one"),),
    "atlas list": (("brainmap atlas list", "the atlases that are here"),),
    "atlas download": (("brainmap atlas download allen_mouse_25um", "from BrainGlobe"),),
    "atlas structures": (("brainmap atlas structures allen_mouse_50um --find visual", "structures by a word"),),
    "gt aggregate": (("brainmap gt aggregate clicks.csv --tiles tiles --out gt",
                      "cells that many people agree on, and how well each person sees"),),
    "gt compare": (("brainmap gt compare gt experts.csv --tolerance-px 10", "the crowd beside experts"),),
    "crowd init": (("brainmap crowd init site", "a site of one's own, in a folder"),),
    "crowd project": (("brainmap crowd project site cortex --tiles tiles --redundancy 5",
                       "tiles that five people each shall see"),),
    "crowd serve": (("brainmap crowd serve site", "open the address it prints in a browser"),),
    "crowd status": (("brainmap crowd status site", "how far it is"),),
    "crowd export": (("brainmap crowd export site cortex --out export", "clicks, assignments and tiles"),),
    "crowd import": (("brainmap crowd import site cortex clicks.csv", "clicks made elsewhere"),),
    "crowd scan": (("brainmap crowd scan site cortex", "images that were put into the project's folder"),),
    "crowd backup": (("brainmap crowd backup site site.backup", "everything in one file"),),
    "crowd restore": (("brainmap crowd restore site.backup site-again", "from such a file"),),
    "crowd users": (("brainmap crowd users site list", "who has an account"),),
    "crowd sample": (("brainmap crowd sample mouse1.brainmap mouse2.brainmap --out tiles", "tiles of finished runs"),),
    "crowd round": (("brainmap crowd round site cortex --out round1", "from clicks to a new detector"),),
    "crowd study": (("brainmap crowd study tiles gt --out study --budget 8", "which tiles teach most"),),
    "train import-tiles": (("brainmap train import-tiles sections/*.png --out tiles --voxel-size 10,1,1",
                            "plain images as tiles"),),
    "train generator": (("brainmap train generator --tiles tiles --gt gt --work generator",
                         "learns how cells of a stain look"),),
    "train synthesize": (("brainmap train synthesize --generator generator --like tiles --count 200 --out synthetic",
                          "tiles with cells drawn by it"),),
    "train similarity": (("brainmap train similarity tiles synthetic --gt gt --out similarity",
                          "how like the real ones they are"),),
    "train pretrain": (("brainmap train pretrain --config configs/pretrain.toml --work pretrained",
                        "a network from simulated tissue"),),
    "train finetune": (("brainmap train finetune --tiles tiles --gt gt --from default --work tuned",
                        "the shipped one, taught by your tiles"),),
    "train calibrate": (("brainmap train calibrate tuned/checkpoint.pt --tiles tiles --gt gt --out calibration.json",
                         "scores that are probabilities"),),
    "train export": (("brainmap train export tuned/checkpoint.pt --calibration calibration.json --out my_detector",
                      "a folder for --detector"),),
    "train evaluate": (("brainmap train evaluate default my_detector --tiles tiles --gt gt --out evaluation",
                        "two detectors on the same tiles"),),
}  # fmt: skip


class GroupedCommand(TyperCommand):
    """A command whose help shows its options in groups, and examples at the end."""

    examples: tuple[tuple[str, str], ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                parameter.metavar = parameter.metavar or str(parameter.name).upper()
            if isinstance(parameter, TyperOption) and not parameter.is_flag and not parameter.count:
                kind = parameter.bare_type().removeprefix("list[").removesuffix("]")
                parameter.metavar = parameter.metavar or _VALUES.get(kind)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by what they are about."""
        groups: dict[str, list[tuple[str, str]]] = {
            name: [] for name in ("Arguments", *OPTION_GROUPS, "Options", _TALK)
        }
        parameters = self.get_params(ctx)
        many = sum(p.param_type_name == "option" for p in parameters) > _MANY + len(_TALK_OPTIONS)
        for parameter in parameters:
            record = parameter.get_help_record(ctx)
            if record is not None:
                if parameter.param_type_name == "argument":
                    record = (str(parameter.metavar), getattr(parameter, "help", None) or "")
                groups[_group_of(parameter, many)].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as they are typed."""
        if self.examples:
            with formatter.section("Examples"):
                for line, words in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                    formatter.write(f"{'':{formatter.current_indent + 4}}{words}\n")


def _group_of(parameter: Any, many: bool) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    if parameter.name in _TALK_OPTIONS:
        return _TALK
    return next(
        (group for group, names in OPTION_GROUPS.items() if many and parameter.name in names), "Options"
    )


class GroupedCommands(TyperGroup):
    """A group of commands whose help shows them by what they are for."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, those of the root in groups."""
        names = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
        groups = {
            title: [name for name in of if name in names]
            for title, of in COMMAND_GROUPS.items()
            if ctx.parent is None
        }
        grouped = {name for of in groups.values() for name in of}
        groups["Commands"] = [name for name in names if name not in grouped]
        for title, of in groups.items():
            if of:
                with formatter.section(title):
                    formatter.write_dl(
                        [(name, str(self.commands[name].help).split("\n\n")[0]) for name in of]
                    )
        if ctx.parent is None:
            with formatter.section("Where to begin"):
                formatter.write(f"{'':{formatter.current_indent}}brainmap demo\n")
                formatter.write(f"{'':{formatter.current_indent}}brainmap COMMAND --help\n")
