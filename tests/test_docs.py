"""The documentation is executed: every Python block, every shell block marked `<!-- run -->`; every other
command shown must exist with its options; the command reference is generated from the commands.

`BRAINMAP_WRITE_DOCS=1 pytest tests/test_docs.py` rewrites the reference.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from brainmap.cli.main import app

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
REFERENCE = REPOSITORY / "docs" / "command-line.md"
BLOCK = re.compile(
    r"(?P<mark><!-- run -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
GENERATED = re.compile(
    r"(?<=<!-- generated from the commands -->\n).*(?=<!-- end of the generated part -->)", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    marked: bool
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            found["code"],
            found["mark"] is not None,
            text.count("\n", 0, found.start()) + 1,
        )
        for found in BLOCK.finditer(text)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def commands(group: Any = None, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """All commands by their words: ("detect",), ("gt", "aggregate"), ..."""
    group = group or typer.main.get_command(app)
    found: dict[tuple[str, ...], Any] = {}
    for word, command in group.commands.items():
        path = (*prefix, word)
        found |= commands(command, path) if hasattr(command, "commands") else {path: command}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another in one folder, Python blocks in one namespace."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / ".bin" / "brainmap"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{REPOSITORY / "cli.py"}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{name(page)}, block at line {block.line}"
        if block.language == "python":
            exec(compile(block.code, where, "exec"), namespace)
        elif block.language == "bash" and block.marked:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{where}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_shown_exist(page: Path) -> None:
    known = commands()
    for block in blocks(page):
        if block.language != "bash":
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "brainmap" or words[1:] in (["--help"], ["--version"]):
                continue
            path = next((p for p in known if tuple(words[1 : 1 + len(p)]) == p), None)
            assert path is not None, f"{name(page)}: there is no command {line!r}"
            options = {option for parameter in known[path].params for option in parameter.opts}
            used = {word.split("=")[0] for word in words if word.startswith("-") and not word[1:2].isdigit()}
            assert used <= options | {"--help", "-h"}, f"{name(page)}: {line!r} uses {used - options}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def reference() -> str:
    """The commands as Markdown, from their own help."""
    lines: list[str] = []
    for path, command in sorted(commands().items()):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        places = [argument.metavar or argument.name.upper() for argument in arguments]
        usage = " ".join(["brainmap", *path, *places, "[OPTIONS]"])
        lines += [f"## brainmap {' '.join(path)}", "", f"`{usage}`", "", str(command.help).strip(), ""]
        lines += ["| | |", "|---|---|"]
        lines += [
            f"| `{place}` | {argument.help} |" for place, argument in zip(places, arguments, strict=True)
        ]
        for option in options:
            value = f" {option.metavar}" if option.metavar and not option.is_flag else ""
            shown = f"{', '.join(option.opts)}{value}".replace("|", r"\|")
            lines.append(f"| `{shown}` | {str(option.help).replace('|', chr(92) + '|')} |")
        lines.append("")
    return "\n".join(lines)


def test_reference_is_what_the_commands_say() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    if os.environ.get("BRAINMAP_WRITE_DOCS"):
        REFERENCE.write_text(GENERATED.sub(lambda _: f"\n{reference()}\n", text), encoding="utf-8")
        return
    found = GENERATED.search(text)
    assert found is not None
    assert found[0].strip() == reference().strip(), "run: BRAINMAP_WRITE_DOCS=1 pytest tests/test_docs.py"


def test_every_exit_code_and_export_is_documented() -> None:
    from brainmap.export import EXPORT_KINDS

    text = REFERENCE.read_text(encoding="utf-8")
    assert all(f"| {code} |" in text for code in (0, 1, 2, 3, 130))
    formats = (REPOSITORY / "docs" / "data-formats.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in formats for kind in EXPORT_KINDS)


def test_every_column_of_the_points_is_documented() -> None:
    from brainmap.points.table import COLUMNS

    formats = (REPOSITORY / "docs" / "data-formats.md").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{column}\b", formats) for column in COLUMNS)
