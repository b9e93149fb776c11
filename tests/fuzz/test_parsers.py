"""Whatever a file of others holds, its parser reads it or says in one sentence what is wrong."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from brainmap.atlas.atlas import Atlas
from brainmap.atlas.regions import read_region_table
from brainmap.cohort.groups import read_groups
from brainmap.convert.plane_names import planes_of
from brainmap.convert.stacks import Reading, open_stack
from brainmap.gt.clicks import read_clicks
from brainmap.image.axes import parse_axes
from brainmap.image.intensity import Intensity
from brainmap.image.ngff import parse_multiscale
from brainmap.image.volume import Volume, write_volume
from brainmap.infer.detector import SHIPPED, DetectorSpec
from brainmap.infer.engine.results import open_plan, planned_block
from brainmap.points.table import read_locations
from brainmap.registration.landmarks import Landmarks
from brainmap.registration.registered import Registration
from brainmap.report.region_rows import read_regions, read_summary
from brainmap.run.request import DETECT_SETTINGS, Roi, detect_request, parse_block, parse_voxel_size
from brainmap.run_folder import RunRecord
from brainmap.settings import read_settings

from .damage import a_sentence_at_most, damaged, damaged_text, mutated, odd_values

pytestmark = pytest.mark.filterwarnings("ignore")

NGFF = {
    "multiscales": [
        {
            "version": "0.4",
            "name": "brain",
            "axes": [{"name": "c", "type": "channel"}]
            + [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"],
            "datasets": [
                {
                    "path": str(level),
                    "coordinateTransformations": [
                        {"type": "scale", "scale": [1.0, 5.0 * 2**level, 2.0, 2.0]},
                        {"type": "translation", "translation": [0.0, 1.0, 2.0, 2.0]},
                    ],
                }
                for level in range(2)
            ],
            "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0, 1.0]}],
        }
    ],
    "omero": {"channels": [{"label": "cfos"}, {"label": "auto"}]},
    "brainmap": {"orientation": "asr"},
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples of this module: files of it are written anew by each."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@given(
    attributes=mutated(NGFF), need_scale=st.booleans(), axes=st.sampled_from([None, "czyx", "xyz", "tzyx."])
)
def test_ngff_metadata(attributes: Any, need_scale: bool, axes: str | None) -> None:
    if isinstance(attributes, dict):
        with a_sentence_at_most():
            parse_multiscale(
                attributes, "brain", need_scale, None if axes is None else parse_axes(axes), True
            )


@pytest.fixture(scope="module")
def images(folder: Path) -> dict[int, Path]:
    """A small image of each format, uncompressed sizes of a few kB."""
    values = np.arange(2 * 6 * 20 * 20, dtype=np.uint16).reshape(2, 6, 20, 20)
    for zarr_format in (2, 3):
        write_volume(
            folder / f"v{zarr_format}.zarr",
            values,
            (5, 2, 2),
            zarr_format=zarr_format,
            levels=2,
            channel_names=["a", "b"],
        )
    return {zarr_format: folder / f"v{zarr_format}.zarr" for zarr_format in (2, 3)}


@pytest.mark.parametrize(
    ("zarr_format", "name"),
    [(2, ".zattrs"), (2, "0/.zarray"), (2, ".zgroup"), (3, "zarr.json"), (3, "1/zarr.json")],
)
@given(data=st.data())
def test_zarr_documents(images: dict[int, Path], zarr_format: int, name: str, data: st.DataObject) -> None:
    path = images[zarr_format] / name
    content = path.read_text()
    document = data.draw(mutated(json.loads(content)))
    try:
        text = json.dumps(document)
        path.write_bytes(data.draw(st.one_of(st.just(text.encode()), damaged(text.encode()))))
        with a_sentence_at_most():
            volume = Volume.open(images[zarr_format], channel=0)
            if np.prod([float(n) for n in volume.shape]) < 1e6:
                volume.read(slice(None), slice(None), slice(None))
    finally:
        path.write_text(content)


@given(content=mutated(json.loads((SHIPPED / "default" / "detector.json").read_text())))
def test_detector_json(content: Any) -> None:
    if isinstance(content, dict):
        with a_sentence_at_most():
            DetectorSpec.from_dict(content)


STRUCTURES = [
    {"id": 1, "acronym": "root", "name": "root", "structure_id_path": [1], "rgb_triplet": [1, 2, 3]},
    {"id": 5, "acronym": "A", "name": "a", "structure_id_path": [1, 5], "rgb_triplet": [1, 2, 3]},
    {"id": 6, "acronym": "B", "name": "b", "structure_id_path": [1, 5, 6], "rgb_triplet": None},
]
METADATA = {
    "name": "tiny",
    "resolution": [100, 100, 100],
    "orientation": "asr",
    "shape": [4, 4, 4],
    "symmetric": True,
}


@pytest.fixture(scope="module")
def atlas(folder: Path) -> Path:
    """An atlas in BrainGlobe v2 layout."""
    path = folder / "tiny_100um_v1.0"
    path.mkdir(exist_ok=True)
    ids = np.ones((4, 4, 4), np.uint32)
    ids[1:3] = 5
    for kind in ("annotation", "reference"):
        tifffile.imwrite(path / f"{kind}.tiff", ids, photometric="minisblack")
    (path / "structures.json").write_text(json.dumps(STRUCTURES))
    (path / "metadata.json").write_text(json.dumps(METADATA))
    return path


@pytest.fixture(scope="module")
def own_atlas(atlas: Path, folder: Path) -> Path:
    """The same as a plain folder."""
    path = folder / "own"
    path.mkdir(exist_ok=True)
    for kind in ("annotation", "reference"):
        np.save(path / f"{kind}.npy", tifffile.imread(atlas / f"{kind}.tiff"))
    (path / "atlas.json").write_text(json.dumps({"resolution": [100, 100, 100], "orientation": "asr"}))
    (path / "structures.csv").write_text("id,acronym,name,parent_id\n1,root,root,0\n5,A,a,1\n6,B,b,5\n")
    return path


def with_file(path: Path, content: bytes, read: Callable[[], Any]) -> None:
    """Read with a file replaced, and put it back."""
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        with a_sentence_at_most():
            read()
    finally:
        if before is not None:
            path.write_bytes(before)


def opened(path: Path) -> None:
    atlas = Atlas.open(path)
    atlas.check()
    atlas.lookup([[50.0, 50.0, 50.0]])


@given(data=st.data(), name=st.sampled_from(["structures.json", "metadata.json"]))
def test_atlas_json(atlas: Path, data: st.DataObject, name: str) -> None:
    original: Any = STRUCTURES if name == "structures.json" else METADATA
    text = json.dumps(data.draw(mutated(original))).encode()
    with_file(atlas / name, data.draw(st.one_of(st.just(text), damaged(text))), lambda: opened(atlas))


@given(data=st.data(), name=st.sampled_from(["atlas.json", "structures.csv", "annotation.npy"]))
def test_own_atlas(own_atlas: Path, data: st.DataObject, name: str) -> None:
    path = own_atlas / name
    content = path.read_bytes()
    if name == "atlas.json":
        changed = json.dumps(data.draw(mutated(json.loads(content)))).encode()
    elif name == "structures.csv":
        changed = data.draw(damaged_text(content.decode()))
    else:
        changed = data.draw(damaged(content))
    with_file(path, changed, lambda: opened(own_atlas))


@given(data=st.data())
def test_v3_manifest(folder: Path, data: st.DataObject) -> None:
    path = folder / "root" / "atlases" / "tiny" / "1_0" / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = METADATA | {
        "annotation_set": {"location": "/a", "template": {"location": "/t"}},
        "terminology": {"location": "/n"},
    }
    with_file(path, json.dumps(data.draw(mutated(manifest))).encode(), lambda: opened(path.parent))


def tiff_bytes(**options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(
        file, np.arange(5 * 8 * 8, dtype=np.uint16).reshape(5, 8, 8), photometric="minisblack", **options
    )
    return file.getvalue()


TIFFS = {
    "imagej.tif": tiff_bytes(
        imagej=True, resolution=(0.5, 0.5), metadata={"axes": "ZYX", "spacing": 5.0, "unit": "um"}
    ),
    "ome.ome.tif": tiff_bytes(ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 2, "PhysicalSizeZ": 5}),
    "plain.tif": tiff_bytes(compression="zlib"),
}


@given(data=st.data(), name=st.sampled_from(sorted(TIFFS)), axes=st.sampled_from([None, "zyx", "cyx"]))
def test_tiff(folder: Path, data: st.DataObject, name: str, axes: str | None) -> None:
    content = TIFFS[name]
    if data.draw(st.booleans()):
        # In the description, where the text is.
        at = content.find(b"ImageJ" if "imagej" in name else b"<OME" if "ome" in name else b"II")
        head, tail = content[:at], content[at:]
        content = head + data.draw(damaged(tail))
    else:
        content = data.draw(damaged(content))
    (folder / name).write_bytes(content)
    with (
        a_sentence_at_most(),
        open_stack(folder / name, Reading(None if axes is None else parse_axes(axes), 0)) as stack,
    ):
        if np.prod([float(n) for n in stack.shape]) < 1e5:
            for c in range(stack.shape[0]):
                for z in range(stack.shape[1]):
                    stack.read_plane(c, z)


@given(data=st.data())
def test_npy(folder: Path, data: st.DataObject) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4, 5), np.uint16))
    (folder / "a.npy").write_bytes(data.draw(damaged(file.getvalue())))
    with a_sentence_at_most(), open_stack(folder / "a.npy") as stack:
        stack.read_plane(0, 0)


names = st.text(st.sampled_from("abzZ019_-+. ()Ch#*?[]é"), min_size=1, max_size=12)


@given(
    names=st.lists(names.map(lambda stem: f"{stem}.tif"), min_size=1, max_size=12, unique=True),
    gaps=st.booleans(),
)
def test_plane_names(names: list[str], gaps: bool) -> None:
    with a_sentence_at_most():
        planes = planes_of([Path(name) for name in names], "folder", gaps)
        used = [file.name for channel in planes.files for file in channel if file is not None]
        assert sorted(used) == sorted(names), "every file once"


TABLES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "points": ("index,axis-0,axis-1,axis-2\n0,1.0,2.0,3.0\n1,4.0,5.0,6.0\n", read_locations),
    "clicked": ("image_id,x,y\n0001,1.5,2.5\n0002,3,4\n", read_locations),
    "regions": (
        "region_id,acronym,name,parent_id,depth,hemisphere,count,volume_mm3,density_per_mm3,count_direct,"
        "volume_direct_mm3\n0,outside,outside,0,0,both,2,,,2,\n997,root,root,0,0,left,1,2.5,0.4,1,2.5\n"
        "997,root,root,0,0,right,1,2.5,0.4,1,2.5\n997,root,root,0,0,both,2,5,0.4,2,5\n",
        lambda path: (read_region_table(path), read_regions(path)),
    ),
    "summary": (
        "region_id,acronym,name,hemisphere,count,volume_mm3,density_per_mm3,atlas_volume_mm3,density_per_atlas_mm3,"
        "shares_cells_with\n0,outside,outside,both,2,,,,,\n5,A,a,left,1,1,1,1,1,\n5,A,a,right,1,1,1,1,1,\n"
        "5,A,a,both,2,2,1,2,1,\n",
        read_summary,
    ),
    "groups": ("run,animal,group,sex\nr1,m1,a,f\nr2,m2,b,m\nr3,m3,a,f\nr4,m4,b,m\n", read_groups),
    "clicks": (
        "image_id,worker_id,x,y,height,width\nb1,w1,1,2,20,20\nb1,w2,1,3,20,20\nb2,w1,5,5,20,20\n",
        read_clicks,
    ),
    "list": ("a.tif\nb.tif\n", lambda path: list_of(path)),
}


def list_of(path: Path) -> None:
    with ExitStack() as stack:
        stack.enter_context(open_stack(path))


@pytest.mark.parametrize("kind", sorted(TABLES))
@given(data=st.data())
def test_tables(folder: Path, kind: str, data: st.DataObject) -> None:
    text, read = TABLES[kind]
    path = folder / f"{kind}.{'txt' if kind == 'list' else 'csv'}"
    path.write_bytes(data.draw(damaged_text(text)))
    with a_sentence_at_most():
        read(path)


@given(data=st.data())
def test_landmarks(folder: Path, images: dict[int, Path], data: st.DataObject) -> None:
    text = "z,y,x,atlas_z_um,atlas_y_um,atlas_x_um\n1,2,3,100,200,300\n2,3,4,150,250,350\n3,3,3,100,200,400\n"
    path = folder / "landmarks.csv"
    path.write_bytes(data.draw(damaged_text(text)))
    with a_sentence_at_most():
        Landmarks.read(path, Volume.open(images[3], channel=0))


RECORD = {
    "status": "complete",
    "parameters": {"brain": "a.zarr", "channel": 0, "roi": None},
    "fingerprints": {"volume": "0" * 64},
    "execution": {"level": "summary", "exports": ["napari"]},
    "versions": {},
    "machine": {"cpu": "x"},
    "started": "2026-01-01T00:00:00+00:00",
    "timings_s": {"total": 1.0},
    "blocks": {"total": 4, "finished": [[0, 4]], "failed": {}},
    "results": {"cells": 5},
    "warnings": ["w"],
}


@given(data=st.data())
def test_run_json(folder: Path, data: st.DataObject) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    text = json.dumps(data.draw(mutated(RECORD))).encode()
    content = data.draw(st.one_of(st.just(text), damaged(text)))

    def read() -> None:
        record = RunRecord.load(run)
        record.differences({"brain": "b.zarr"}, {"volume": "1"})
        record.require_same(run, record.parameters, record.fingerprints)

    with_file(run / "run.json", content, read)


PLAN = {
    "volume": "0" * 64,
    "voxel_um": [5, 2, 2],
    "threshold": 0.5,
    "group": 1,
    "block_size": [4, 64, 64],
    "roi": None,
}


@given(data=st.data())
def test_plan_json(folder: Path, data: st.DataObject) -> None:
    blocks = folder / "planned" / "blocks"
    blocks.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data.draw(mutated(PLAN))).encode()
    content = data.draw(st.one_of(st.just(text), damaged(text)))
    with_file(blocks / "plan.json", content, lambda: planned_block(blocks.parent))
    with_file(blocks / "plan.json", content, lambda: open_plan(blocks.parent, dict(PLAN)))


@given(data=st.data())
def test_intensity_npz(folder: Path, data: st.DataObject) -> None:
    path = folder / "intensity.npz"
    if not path.exists():
        bins = np.ones((2, 3, 4), np.float32)
        Intensity(bins, bins > 0, (1.0, 16.0, 16.0), (2, 48, 64), 1.0, 1.0, 0.0, False).save(path)
    with_file(path, data.draw(damaged(path.read_bytes())), lambda: Intensity.load(path))


REGISTRATION = {
    "format": 3,
    "fingerprint": "0" * 64,
    "atlas": {"name": "tiny", "folder": "/nowhere"},
    "grid": {
        "shape": [2, 2, 2], "resolution_um": [25.0, 25.0, 25.0], "corner_um": [0.0, 0.0, 0.0],
        "extent_um": [50.0, 50.0, 50.0], "orientation": "asr",
    },
    "warnings": [],
}  # fmt: skip


@given(data=st.data())
def test_registration_json(folder: Path, data: st.DataObject) -> None:
    from brainmap.registration.registered import FORMAT

    path = folder / "registration"
    path.mkdir(exist_ok=True)
    text = json.dumps(data.draw(mutated(REGISTRATION | {"format": FORMAT}))).encode()
    content = data.draw(st.one_of(st.just(text), damaged(text)))
    with_file(path / "registration.json", content, lambda: Registration.load(path))


TOML = 'voxel-size = [5, 2, 2]\nthreshold = 0.5\nroi = "0:5,0:6,0:7"\nexport = ["napari"]\nchannel = 1\n'


@given(content=damaged(TOML.encode()))
def test_settings(folder: Path, content: bytes) -> None:
    path = folder / "settings.toml"
    path.write_bytes(content)
    with a_sentence_at_most():
        detect_request("a.zarr", read_settings(path, DETECT_SETTINGS), {})


@given(
    options=st.dictionaries(
        st.sampled_from(sorted(DETECT_SETTINGS - {"out"})), odd_values, min_size=1, max_size=3
    )
)
def test_settings_of_any_type(options: dict[str, Any]) -> None:
    with a_sentence_at_most():
        detect_request("a.zarr", options, {})


@given(text=st.text(st.sampled_from("0123456789:,.-e xyznaif"), max_size=14))
def test_options_as_people_write_them(text: str) -> None:
    for parse in (parse_voxel_size, parse_block, Roi.parse, parse_axes):
        with a_sentence_at_most():
            parse(text)  # type: ignore[operator]


def test_every_parser_reads_what_is_whole(
    folder: Path, images: dict[int, Path], atlas: Path, own_atlas: Path
) -> None:
    """The files that are damaged here are good ones to begin with."""
    parse_multiscale(NGFF, "brain")
    for path in (atlas, own_atlas):
        opened(path)
    for name, content in TIFFS.items():
        (folder / name).write_bytes(content)
        with open_stack(folder / name) as stack:
            assert stack.shape == (1, 5, 8, 8)
    for kind, (text, read) in TABLES.items():
        if kind not in ("list", "groups"):
            (folder / f"{kind}.csv").write_text(text)
            read(folder / f"{kind}.csv")
    assert Volume.open(images[2], channel=1).shape == (6, 20, 20)
    shutil.rmtree(folder / "run", ignore_errors=True)
