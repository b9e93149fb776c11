"""Every error is a sentence, a standard-library error, and survives the way back from a worker."""

from __future__ import annotations

import pickle

import pytest

from brainmap.errors import (
    BrainmapError,
    DataError,
    IncompleteRunError,
    MissingExtraError,
    NotFoundError,
    UsageError,
    did_you_mean,
)


@pytest.mark.parametrize(
    ("error", "standard", "code"),
    [
        (DataError("chunk 3 is damaged"), ValueError, 1),
        (NotFoundError("there is no file x"), FileNotFoundError, 1),
        (UsageError("--block must be three numbers"), ValueError, 2),
        (MissingExtraError("torch", "train", "train a detector"), ImportError, 1),
        (IncompleteRunError("2 of 9 blocks could not be processed"), RuntimeError, 3),
    ],
)
def test_errors(error: BrainmapError, standard: type[Exception], code: int) -> None:
    assert isinstance(error, BrainmapError)
    assert isinstance(error, standard)
    assert error.exit_code == code
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_a_missing_extra_says_how_to_install_it() -> None:
    assert "pip install 'brainmap[train]'" in str(MissingExtraError("torch", "train", "train a detector"))


def test_names_that_were_nearly_right() -> None:
    atlases = ["kim_mouse_25um", "allen_mouse_50um"]
    assert did_you_mean("alen_mouse_50um", atlases) == "; did you mean allen_mouse_50um?"
    assert did_you_mean("mask", ["tasks", "masks"]) == "; did you mean masks?"
    assert did_you_mean("ca2", ["CA1", "CA3", "TH"]) == "; did you mean CA1 or CA3?"
    assert did_you_mean("ctx", ["CTX", "TH"]) == "; did you mean CTX?"
    assert did_you_mean("qqq", ["CTX"]) == ""
