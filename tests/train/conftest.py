"""Training tests compute on one thread: the tensors are tiny, and threads would wait for each other."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep torch, where it is installed, on one thread."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)
