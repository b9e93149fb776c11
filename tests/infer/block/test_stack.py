"""The store of network inputs: always the last slices, in order, whatever was pushed before."""

from __future__ import annotations

import numpy as np
import pytest

from brainmap.infer.block.folding import folded
from brainmap.infer.block.stack import SliceStack

INSIDE = (3, 5)


@pytest.mark.parametrize("fold", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_latest_are_the_last_slices_in_order(channels: int, fold: int) -> None:
    stack = SliceStack(channels, (6, 8), INSIDE, -1.0, fold)
    rng = np.random.default_rng(0)
    whole = [np.full((6, 8), -1, np.float32) for _ in range(channels)]
    for turn in range(25):
        image = None if turn % 4 == 3 else rng.normal(size=INSIDE).astype(np.float32)
        stack.push(image, 0.25)
        whole.append(np.full((6, 8), -1, np.float32))
        if image is not None:
            whole[-1][: INSIDE[0], : INSIDE[1]] = image - np.float32(0.25)
        np.testing.assert_array_equal(stack.latest, folded(np.stack(whole[-channels:]), fold))
        assert stack.latest.flags.c_contiguous


def test_a_new_stack_is_empty() -> None:
    assert (SliceStack(5, (5, 8), INSIDE, fill=0.5).latest == 0.5).all()


@pytest.mark.parametrize("valid", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 5])
def test_what_was_latest_stays_for_some_pushes(channels: int, valid: int) -> None:
    stack = SliceStack(channels, (4, 4), (4, 4), 0.0, fold=2, valid=valid)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    for turn in range(40):
        stack.push(np.full((4, 4), turn, np.float32))
        for view, content in seen[-valid:]:
            np.testing.assert_array_equal(view, content)
        seen.append((stack.latest, stack.latest.copy()))
