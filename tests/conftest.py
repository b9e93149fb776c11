"""What all tests share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def brainmap_data() -> Path:
    """Folder of real data, never part of the repository: tests that use it skip without it."""
    named = os.environ.get("BRAINMAP_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: set BRAINMAP_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """Commands log to the stderr of their test: the next test must not write to a closed one."""
    yield
    logging.getLogger("brainmap").handlers.clear()
