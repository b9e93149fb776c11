"""What all tests share."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from brainmap.errors import BrainmapError

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
def cases() -> Path:
    """Folder of small inputs that were read wrongly once, never part of the repository."""
    named = os.environ.get("BRAINMAP_CASES")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("no folder of cases: set BRAINMAP_CASES to it")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """Commands log to the stderr of their test: the next test must not write to a closed one."""
    yield
    ours = logging.getLogger("brainmap")
    ours.handlers.clear()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)


class Damage:
    """What tests of failures share: a disk that is full at a file, and looks at what is left."""

    @staticmethod
    def snapshot(folder: Path) -> dict[str, bytes]:
        """Every file of a folder that a person sees."""
        files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        seen = {name: path for name, path in files.items() if not any(p.startswith(".") for p in name.parts)}
        return {str(name): path.read_bytes() for name, path in sorted(seen.items())}

    @staticmethod
    def hidden(folder: Path) -> list[str]:
        """What a command may leave only while it is at work."""
        return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))

    @classmethod
    def is_whole(cls, folder: Path, before: dict[str, bytes]) -> bool:
        """Whether the old result is there; one that only waits for its files to be moved is complete too."""
        return (folder / ".swap" / ".order.json").is_file() or cls.snapshot(folder) == before

    @staticmethod
    def at_every_file(command: Callable[[], object], after_failure: Callable[[str], None]) -> list[str]:
        """Give a command again and again until it succeeds; each time another file does not get its name.

        Returns
        -------
        list of str
            The files, as folder/name, in the order in which they failed.
        """
        failed: list[str] = []
        replace = os.replace

        def full(source: str | Path, target: str | Path) -> None:
            place = Path(target)
            name = re.sub(r"[0-9a-f]{8,}", "*", f"{place.parent.name}/{place.name}")
            if fresh and name not in failed:
                failed.append(name)
                fresh.clear()
                raise OSError(28, "No space left on device", str(target))
            replace(source, target)

        while True:
            fresh = [True]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "replace", full)
                message = "No space left"
                try:
                    command()
                except (OSError, BrainmapError) as error:
                    message = str(error)
            assert "No space left" in message
            if fresh:
                return failed
            after_failure(failed[-1])


@pytest.fixture
def damage() -> type[Damage]:
    return Damage


# An id as large as Allen's largest.
BIG_ID = 614_454_277

RECORDS: list[dict[str, Any]] = [
    {
        "id": 997,
        "acronym": "root",
        "name": "root",
        "structure_id_path": [997],
        "rgb_triplet": [255, 255, 255],
    },
    {
        "id": 8,
        "acronym": "grey",
        "name": "Grey, matter",
        "structure_id_path": [997, 8],
        "rgb_triplet": [1, 2, 3],
    },
    {
        "id": 11,
        "acronym": "CTX",
        "name": "Cortex",
        "structure_id_path": [997, 8, 11],
        "rgb_triplet": [9, 9, 9],
    },
    {
        "id": BIG_ID,
        "acronym": "BIG",
        "name": "Big",
        "structure_id_path": [997, 8, BIG_ID],
        "rgb_triplet": [5, 5, 5],
    },
    {
        "id": 73,
        "acronym": "VS",
        "name": "ventricles",
        "structure_id_path": [997, 73],
        "rgb_triplet": [7, 7, 7],
    },
]

SHAPE = (8, 6, 10)


def small_annotation() -> np.ndarray:
    """Ids on the (8, 6, 10) grid: a border of 0, then four structures."""
    ids = np.zeros(SHAPE, dtype=np.uint32)
    ids[1:7, 1:5, 1:9] = 8
    ids[1:4, 1:3, 1:9] = 11
    ids[4:7, 1:3, 1:9] = BIG_ID
    ids[3:5, 3:4, 4:6] = 73
    return ids


@pytest.fixture
def write_atlas(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small atlas in BrainGlobe v2 layout; keywords replace its parts."""

    def write(
        folder: str = "tiny_100um_v1.0",
        annotation: np.ndarray | None = None,
        reference: np.ndarray | None = None,
        records: list[dict[str, Any]] | None = None,
        hemispheres: np.ndarray | None = None,
        resolution: tuple[float, ...] = (100.0, 100.0, 100.0),
        **metadata: Any,
    ) -> Path:
        ids = small_annotation() if annotation is None else annotation
        path = tmp_path / folder
        path.mkdir(parents=True)
        image = np.where(ids > 0, 100, 0).astype(np.uint16) if reference is None else reference
        tifffile.imwrite(path / "annotation.tiff", ids, photometric="minisblack")
        tifffile.imwrite(path / "reference.tiff", image, photometric="minisblack")
        if hemispheres is not None:
            tifffile.imwrite(path / "hemispheres.tiff", hemispheres, photometric="minisblack")
        (path / "structures.json").write_text(json.dumps(RECORDS if records is None else records))
        facts = {
            "name": "tiny",
            "resolution": list(resolution),
            "orientation": "asr",
            "shape": list(ids.shape),
            "version": "1.0",
            "symmetric": hemispheres is None,
        }
        (path / "metadata.json").write_text(json.dumps(facts | metadata))
        return path

    return write
