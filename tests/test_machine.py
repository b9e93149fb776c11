from __future__ import annotations

from brainmap.machine import machine, versions


def test_versions_and_machine_say_something() -> None:
    assert {"brainmap", "python", "numpy", "antspyx"} <= set(versions())
    host = machine()
    assert host["cores"] >= 1
    assert host["memory_bytes"] > 0
    assert isinstance(host["gpus"], list)
