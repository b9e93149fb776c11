"""Files of others, mutated: what each parser may say is a sentence, never a traceback."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from brainmap.errors import BrainmapError

# `make fuzz` asks for many more.
EXAMPLES = int(os.environ.get("BRAINMAP_FUZZ_EXAMPLES", "20"))

settings.register_profile(
    "fuzz",
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="BRAINMAP_FUZZ_EXAMPLES" not in os.environ,
)
settings.load_profile("fuzz")

#: What damaged or careless JSON holds.
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 5000]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=6),
    st.sampled_from(["", "NaN", "1e400", "µm", "../..", "\x00", "z", "zarr", "=1+1", "\ud800"]),
    st.lists(st.one_of(st.none(), st.integers(-1, 3), st.text(max_size=2)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just([[[[[[[[[]]]]]]]]]),
    st.just({"type": "sequence", "transformations": [{"type": "scale", "scale": []}]}),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        found.extend(_places(child, (*path, key)))
    return found


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its parts replaced, removed or repeated."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(changed)
        if not places:
            return copy.deepcopy(draw(odd_values))
        *parents, key = draw(st.sampled_from(places))
        holder = changed
        for step in parents:
            holder = holder[step]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat"]))
        if action == "remove":
            del holder[key]
        elif action == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            # A copy: what a strategy gives again must not be changed by the next edit.
            holder[key] = copy.deepcopy(draw(odd_values))
    return changed


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some flipped, a part cut out, or noise put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        action = draw(st.sampled_from(["flip", "flip", "cut", "noise", "end"]))
        if action == "flip" and data:
            data[at] = draw(st.integers(0, 255))
        elif action == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif action == "noise":
            data[at:at] = draw(st.binary(max_size=12))
        elif action == "end":
            del data[at:]
    return bytes(data)


@st.composite
def damaged_text(draw: st.DrawFn, text: str) -> bytes:
    """A table with cells and lines exchanged, or damaged as bytes are."""
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = lines[draw(st.integers(0, len(lines) - 1))]
        at = draw(st.integers(0, len(row) - 1))
        odd = [
            "",
            "nan",
            "inf",
            "-1",
            "1e400",
            "x",
            '"',
            "=1+1",
            "9" * 30,
            "\x00",
            "\ufeff",
            ";",
            "a,b",
            "é",
            "0",
        ]
        row[at] = draw(st.sampled_from(odd))
        if draw(st.booleans()) and len(lines) > 1:
            lines.pop(draw(st.integers(0, len(lines) - 1)))
    content = "\n".join(",".join(row) for row in lines).encode()
    return draw(st.one_of(st.just(content), damaged(content)))


@contextmanager
def a_sentence_at_most() -> Iterator[None]:
    """A parser succeeds here, or raises one of our errors with a sentence; all else fails the test."""
    said = None
    try:
        yield
    except BrainmapError as error:
        said = str(error)
    assert said is None or said.strip(), "an error without a sentence"
