from __future__ import annotations

import pytest

from brainmap import machine as module
from brainmap.machine import has_bf16, machine, versions


def test_versions_and_machine_say_something() -> None:
    assert {"brainmap", "python", "numpy", "zarr"} <= set(versions())
    host = machine()
    assert host["cores"] >= 1
    assert host["memory_bytes"] > 0
    assert isinstance(host["gpus"], list)


@pytest.mark.parametrize(
    ("features", "fast"),
    [(["avx2", "fma"], False), (["avx512f", "avx512_bf16"], True), (["amx_bf16"], True), (["bf16"], True)],
)
def test_bf16_is_asked_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: list[str], fast: bool
) -> None:
    monkeypatch.setattr(module, "_cpu", lambda: ("any", features))
    has_bf16.cache_clear()
    assert has_bf16() is fast
    has_bf16.cache_clear()
