"""What `--help` shows: groups, values as people write them, and an example for each command that it would accept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from brainmap.cli.help import COMMAND_GROUPS, EXAMPLES, OPTION_GROUPS
from brainmap.cli.main import app

ROOT = typer.main.get_command(app)


def commands(group: Any = ROOT, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


COMMANDS = dict(commands())


def test_every_command_has_an_example_and_no_example_is_of_another() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_are_accepted_as_they_stand(name: str) -> None:
    for line, words in EXAMPLES[name]:
        assert len(line) < 110 and words
        program, *arguments = shlex.split(line)
        assert program == "brainmap" and line.startswith(f"brainmap {name}")
        # Raises on an option that does not exist, a value that is none, an argument too many or missing.
        COMMANDS[name].make_context(name, arguments[len(name.split()) :])


def test_help_of_detect_is_in_groups_with_examples() -> None:
    shown = CliRunner().invoke(app, ["detect", "--help"]).output
    places = [shown.index(f"\n{title}:") for title in (*OPTION_GROUPS, "Messages and help", "Examples")]
    assert places == sorted(places)
    parts = dict(re.findall(r"^(\w[\w ]+):\n((?:  .*\n|\n(?=  ))+)", shown, re.MULTILINE))
    assert "--voxel-size Z,Y,X" in parts["Input"] and "--threshold" in parts["Detection"]
    assert "--workers N" in parts["Computing"] and "brainmap detect brain.zarr" in parts["Examples"]


def test_values_are_shown_as_people_write_them() -> None:
    for name, command in COMMANDS.items():
        shown = CliRunner().invoke(app, [*name.split(), "--help"]).output
        assert not re.search(r"INTEGER|FLOAT|<\w+(\[\w+\])?>|list\[", shown), name
        assert command.examples == EXAMPLES[name]


def test_groups_name_what_exists() -> None:
    options = {p.name for command in COMMANDS.values() for p in command.params}
    named = [option for group in OPTION_GROUPS.values() for option in group]
    assert len(named) == len(set(named))
    assert set(named) <= options
    listed = [command for group in COMMAND_GROUPS.values() for command in group]
    assert sorted(listed) == sorted(ROOT.commands), "every command of the root stands in a group"


def test_a_command_still_runs(tmp_path: Any) -> None:
    """Outside of tests nothing calls a command through its own class."""
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "none"), str(tmp_path / "a.zarr")])
    assert result.exit_code == 1 and "none" in result.output and "bug" not in result.output
