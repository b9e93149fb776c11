"""The house: rooms depend downwards only, no module circles, and no floor is crowded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "brainmap"

# From the bottom up: a room may import from its own floor's named neighbours (SIDEWAYS) and from all floors below.
FLOORS = (
    {"brainmap"},
    {"errors"},
    {"coords", "files", "settings", "machine", "progress"},
    {"lock", "swap", "children"},
    {"run_folder"},
    {"image", "points", "web"},
    {"atlas", "tiles", "convert"},
    {"infer", "registration", "report"},
    {"gt", "export", "phantom"},
    {"run", "train", "cohort"},
    {"crowd", "view"},
    {"cli"},
    {"__main__"},
)
# Each with its reason.
SIDEWAYS = {
    ("tiles", "gt"),  # ids of images are checked as those of clicks are
    ("files", "machine"),
    ("cohort", "run"),  # a study detects the brains that are not done
}
MOST_MODULES = 18


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Modules of the package that a module imports anywhere, for its types too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "brainmap":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


GRAPH = {name: sorted(set(imports(name)) - {name}) for name in MODULES}


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


FLOOR = {name: number for number, rooms in enumerate(FLOORS) for name in rooms}


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in MODULES} <= set(FLOOR)


def test_rooms_depend_downwards_only() -> None:
    upwards = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if room(name) != room(other)
        and FLOOR[room(other)] >= FLOOR[room(name)]
        and (room(name), room(other)) not in SIDEWAYS
    ]
    assert not upwards


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()

    def look(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in GRAPH[name]:
                look(other, (*path, name))
            done.add(name)

    for name in GRAPH:
        look(name, ())


def test_no_folder_is_crowded() -> None:
    root = [path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]
    assert len(root) <= 10
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    crowded = {str(f): n for f in folders if (n := len(list(f.glob("[!_]*.py")))) > MOST_MODULES}
    assert not crowded


@pytest.mark.parametrize(
    "light", ["brainmap.gt.aggregate", "brainmap.infer.engine.engine", "brainmap.cli.main"]
)
def test_torch_is_not_needed_by_what_does_not_train(light: str) -> None:
    """Not at import: modules that a module imports at its top, and theirs, do not import torch there."""
    seen, left = set(), [light]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "torch" for alias in node.names), name
                left += [alias.name for alias in node.names if alias.name in MODULES]
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] != "torch", name
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                left += [n for n in [node.module, *whole] if n in MODULES]


def test_the_guide_names_files_that_are_there() -> None:
    repository = PACKAGE.parent
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    assert len(named) > 50
    assert not {name for name in named if not ((PACKAGE / name).exists() or (repository / name).exists())}
