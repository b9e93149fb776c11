"""A file given to the wrong command is told apart, and the sentence names the command that takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.files import write_json
from brainmap.image.volume import write_volume
from brainmap.tiles.tiles import write_tiles

#: What people have, and what the sentence about each must say.
SAID = {
    "planes": "brainmap convert",
    "stack.tif": "brainmap convert",
    "brain.czi": "brainmap convert",
    "brain.nii.gz": "brainmap convert",
    "brain.zarr": "brainmap detect",
    "run": "folder of a run",
    "tiles": "folder of tiles",
    "registration": "--registration",
    "gt": "ground truth",
    "atlas": "--atlas",
    "clicks.csv": "brainmap gt aggregate",
    "groups.csv": "brainmap compare",
    "study.csv": "brainmap study",
    "truth.csv": "brainmap evaluate",
    "section.png": "a picture",
    "empty": "an empty folder",
    "brain.zar": "did you mean",
}
#: A command, and what it takes.
COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("detect", "FILE", "--no-atlas", "--out", "o"): ("brain.zarr", "brain.zar"),
    ("regions", "FILE"): ("run",),
    ("view", "FILE"): ("run",),
    ("review", "FILE"): ("run",),
    ("status", "FILE"): ("run",),
    ("tune", "FILE", "--out", "o"): ("run",),
    ("compare", "FILE", "--out", "o"): ("groups.csv",),
    ("maps", "FILE", "--out", "o"): ("groups.csv",),
    ("study", "FILE", "--out", "o"): ("study.csv",),
    ("evaluate", "FILE", "truth.csv"): ("run", "truth.csv", "clicks.csv", "tiles", "gt"),
    ("gt", "aggregate", "FILE", "--out", "o"): ("clicks.csv",),
    ("gt", "aggregate", "clicks.csv", "--tiles", "FILE", "--out", "o"): ("tiles",),
    ("detect", "brain.zarr", "--no-atlas", "--detector", "FILE", "--out", "o"): (),
    ("crowd", "sample", "FILE", "--out", "o"): ("run",),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 999, (6, 32, 32)).astype(np.uint16)
    for name in ("planes", "run", "registration", "gt", "atlas", "empty"):
        (folder / name).mkdir()
    for z, plane in enumerate(pixels):
        tifffile.imwrite(folder / "planes" / f"z{z}.tif", plane)
    tifffile.imwrite(folder / "stack.tif", pixels)
    write_volume(folder / "brain.zarr", pixels, (5, 2, 2))
    columns = {"image_id": ["t"], "brain": ["b"], "z": [0], "voxel_um": [(5.0, 2.0, 2.0)]}
    write_tiles(folder / "tiles", columns, [np.zeros((8, 8), np.float32)])
    for name in ("run/run.json", "registration/registration.json", "gt/gt.json", "atlas/structures.json"):
        write_json(folder / name, {})
    for name in ("brain.czi", "brain.nii.gz", "section.png"):
        (folder / name).write_bytes(b"\x89PNG no image \x00\xff" * 9)
    for name, text in (
        ("clicks", "image_id,worker_id,x,y\nt,w,1,2\n"),
        ("groups", "run,animal,group\nr,a,g\n"),
        ("study", "brain;animal;group\nr;a;g\n"),
        ("truth", "z,y,x\n1,2,3\n"),
    ):
        (folder / f"{name}.csv").write_text(text)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words[:3]))
def test_the_right_command_is_named(
    command: tuple[str, ...], files: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(files)
    wrong = []
    for name, sentence in SAID.items():
        if name in COMMANDS[command]:
            continue
        words = [{"FILE": name, "o": str(tmp_path / "o")}.get(word, word) for word in command]
        result = CliRunner().invoke(app, [*words, "-q"])
        told = " ".join(result.stderr.split())
        if result.exit_code not in (1, 2) or sentence not in told or "unexpected" in told:
            wrong.append(f"{name}: {result.exit_code} {told}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("inside", "sentence"),
    [
        ("000000/000000_000000/000000_000000_000000.tif", "planes lie deeper.*stitch them first"),
        ("Ex_488/z1.tif", "holds no planes itself, but Ex_488"),
        ("scan.czi", "scan.czi: give that file"),
        ("scan.ims", "scan.ims: give that file"),
        ("scan.nii.gz", "nibabel"),
        ("scan.h5", "export the image to TIFF"),
        ("brain.zarr/zarr.json", "brain.zarr: give one of these"),
        ("run.json", "folder of a run"),
        ("plane1.jp2", "is not an image that brainmap knows"),
        ("info", "is not an image that brainmap knows"),
    ],
)
def test_convert_says_what_a_folder_holds(inside: str, sentence: str, tmp_path: Path) -> None:
    from brainmap.convert.convert import convert
    from brainmap.errors import DataError

    file = tmp_path / "folder" / inside
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    with pytest.raises(DataError, match=sentence):
        convert(tmp_path / "folder", tmp_path / "a.zarr", (5, 2, 2))
