"""A message never names an option that does not exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer

from brainmap.cli.main import app

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# Options of other programs, which brainmap starts or names.
_FOREIGN_PLACES = ("ants_process.py",)
_FOREIGN = {"--force-reinstall", "--gres", "--test-only", "--query-gpu", "--format"}
# Their commands are not on the command line yet; from then on the test covers them.
_TO_COME = {"sample": ("crowd/sampling/", "crowd/loop/round_report.py", "crowd/loop/study.py")}


def known_options() -> tuple[set[str], set[str]]:
    """Every option of every command, and the names of the commands."""
    found, names = {"--help", "--version"}, set()

    def collect(command: object) -> None:
        for parameter in getattr(command, "params", []):
            found.update(
                name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--")
            )
        for name, child in getattr(command, "commands", {}).items():
            names.add(name)
            collect(child)

    collect(typer.main.get_command(app))
    return found, names


def texts(source: str) -> Iterator[tuple[int, str]]:
    """String literals of a module, the plain parts of f-strings too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def defined_in(source: str) -> set[str]:
    """Options that a module's own argument parser defines."""
    return set(re.findall(r"add_argument\(\s*[\"'](--[a-z0-9-]+)", source))


def test_options_named_in_messages_exist(repository: Path) -> None:
    known, commands = known_options()
    known |= _FOREIGN
    later = tuple(place for name, places in _TO_COME.items() if name not in commands for place in places)
    assert {"--voxel-size", "--axes", "--timepoint", "--planes", "--allow-gaps", "--overwrite"} <= known
    wrong = []
    for path in sorted((repository / "brainmap").rglob("*.py")):
        place = path.relative_to(repository / "brainmap").as_posix()
        if path.name in _FOREIGN_PLACES or place.startswith(later):
            continue
        source = path.read_text(encoding="utf-8")
        here = known | defined_in(source)
        for line, text in texts(source):
            for option in _OPTION.findall(text):
                if option not in here and not option.endswith("-"):
                    wrong.append(f"{path.relative_to(repository)}:{line}: {option}")
    assert not wrong, "\n".join(wrong)
