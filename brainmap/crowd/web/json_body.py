"""JSON from outside: small, shallow, an object, each key once, only numbers that are numbers."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.requests import Request

from brainmap.crowd.store.refused import Refused

__all__ = ["MAX_BYTES", "MAX_DEPTH", "parse_object", "read_object"]

MAX_BYTES = 512 * 1024
MAX_DEPTH = 8

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


async def read_object(request: Request, *, required: bool = True) -> dict[str, Any]:
    """The JSON object a request carries.

    Raises
    ------
    Refused
        413 too large, 415 not said to be JSON, 400 not JSON, 422 not an object or nested too deeply.
    """
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BYTES:
        raise Refused(413, f"a request holds {MAX_BYTES // 1024} KiB at most")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            raise Refused(413, f"a request holds {MAX_BYTES // 1024} KiB at most")
    if not content and not required:
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON, with Content-Type: application/json")
    return parse_object(bytes(content))


def parse_object(content: bytes) -> dict[str, Any]:
    """An object from JSON text.

    Raises
    ------
    Refused
        400, 422
    """
    if _depth(content) > MAX_DEPTH:
        raise Refused(422, f"the JSON is nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Refused(400, "the request is not valid JSON") from None
    if not isinstance(value, dict):
        raise Refused(422, "the request must be a JSON object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _depth(content: bytes) -> int:
    """Deepest nesting of brackets, outside of text; found without parsing, since parsing is what costs."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_TEXT.sub(b"", content)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
