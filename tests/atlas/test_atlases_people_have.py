"""Atlases as people make and change them, with the right answer to each: sides, ids, halves, tables of structures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.errors import DataError

WriteAtlas = Callable[..., Path]
Ids = NDArray[np.uint32]


def ids() -> Ids:
    made = np.zeros((8, 6, 10), dtype=np.uint32)
    made[1:7, 1:5, 1:9] = 8
    made[1:4, 1:3, 1:9] = 11
    return made


def sides(of: Ids) -> NDArray[Any]:
    made = np.ones(of.shape, np.uint8)
    made[..., : of.shape[2] // 2] = 2
    return made


def one_side_moved(of: Ids) -> NDArray[Any]:
    """A midline that is a voxel off: every atlas's own business."""
    made = np.ones(of.shape, np.uint8)
    made[..., : of.shape[2] // 2 - 1] = 2
    return made


RIGHT_AS_IT_IS: dict[str, dict[str, Any]] = {
    "sides only where there is tissue": {"hemispheres": np.where(ids() > 0, sides(ids()), 0).astype(np.uint8)},
    "sides in 16 bits": {"hemispheres": sides(ids()).astype(np.uint16)},
    "sides in signed bytes": {"hemispheres": sides(ids()).astype(np.int8)},
    "a midline one voxel off": {"hemispheres": one_side_moved(ids())},
    "a voxel of neither side": {"hemispheres": np.where(np.arange(10) == 5, 0, sides(ids())).astype(np.uint8)},
    "ids in 16 bits": {"annotation": ids().astype(np.uint16)},
    "ids in signed 32 bits": {"annotation": ids().astype(np.int32)},
    "a brain that fills the box": {"annotation": np.full((8, 6, 10), 8, np.uint32)},
    "a single structure": {"annotation": np.where(ids() > 0, 997, 0).astype(np.uint32)},
    "not cubic": {"resolution": (100.0, 50.0, 25.0)},
    "a left half alone": {"annotation": np.where(np.arange(10) >= 5, ids(), 0).astype(np.uint32)},
    "a right half alone, with its map": {
        "annotation": np.where(np.arange(10) < 5, ids(), 0).astype(np.uint32),
        "hemispheres": np.full((8, 6, 10), 2, np.uint8),
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT_AS_IT_IS)
def test_read_as_it_is(kind: str, write_atlas: WriteAtlas, caplog: pytest.LogCaptureFixture) -> None:
    atlas = Atlas.open(write_atlas(**({"annotation": ids()} | RIGHT_AS_IT_IS[kind])))
    atlas.check()
    assert caplog.text == ""
    assert set(np.unique(atlas.annotation)) <= {0, 8, 11, 997}


def few_odd(value: int) -> Ids:
    """Less than one voxel in a hundred carries an id that no structure has."""
    made = np.zeros((20, 12, 20), np.uint32)
    made[1:19, 1:11, 1:19] = 8
    made[9, 5, 9] = value
    return made


@pytest.mark.parametrize("value", [9, 32767, 4294967295])
def test_a_few_ids_that_are_not_listed_are_outside_and_said(
    value: int, write_atlas: WriteAtlas, caplog: pytest.LogCaptureFixture
) -> None:
    atlas = Atlas.open(write_atlas(annotation=few_odd(value)))
    atlas.check()
    assert atlas.annotation[9, 5, 9] == 0
    assert f"({value})" in caplog.text and "count as outside" in caplog.text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "all left": ({"hemispheres": np.ones((8, 6, 10), np.uint8)}, "right .* side"),
    "0 and 1": ({"hemispheres": (sides(ids()) - 1).astype(np.uint8)}, "not 0 and 1"),
    "0 and 255": ({"hemispheres": ((sides(ids()) == 2) * 255).astype(np.uint8)}, r"1 \(left\) or 2 \(right\)"),
    "1 and 3": ({"hemispheres": (2 * sides(ids()) - 1).astype(np.uint8)}, r"1 \(left\) or 2 \(right\)"),
    "split along another axis": (
        {"hemispheres": np.broadcast_to(np.where(np.arange(8) < 0, 2, 1)[:, None, None], (8, 6, 10)).astype(np.uint8)},
        "side",
    ),
    "sides of another shape": ({"hemispheres": np.ones((8, 6, 9), np.uint8)}, "shape"),
    "ids as fractions": ({"annotation": ids().astype(np.float32)}, "integer"),
    "ids below zero": ({"annotation": -ids().astype(np.int32)}, "between 0 and"),
    "ids of another ontology": ({"annotation": np.where(ids() > 0, 77, 0).astype(np.uint32)}, "add a row for each"),
    "nothing labelled": ({"annotation": np.zeros((8, 6, 10), np.uint32)}, "labels no voxel"),
    "a reference of another shape": ({"shape": [8, 6, 11]}, "shape"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_a_sentence(kind: str, write_atlas: WriteAtlas) -> None:
    changes, sentence = REFUSED[kind]
    with pytest.raises(DataError, match=sentence):
        Atlas.open(write_atlas(**changes)).check()


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([{"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997]}] * 2, "997"),
        ([{"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997, 8]}], "path|997"),
        ([{"id": 997, "acronym": "root", "name": "root", "structure_id_path": []}], "path|997"),
        ([{"acronym": "root", "name": "root", "structure_id_path": [997]}], "every structure needs"),
        (
            [{"id": "x", "acronym": "root", "name": "root", "structure_id_path": [997]}],
            "every structure needs",
        ),
        ([], "structure"),
        ({"997": "root"}, "structure"),
        ("root", "structure"),
    ],
)
def test_tables_of_structures(records: Any, sentence: str, write_atlas: WriteAtlas) -> None:
    folder = write_atlas()
    (folder / "structures.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match=sentence):
        Atlas.open(folder).check()
