from __future__ import annotations

import dataclasses
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest

from brainmap.errors import NotFoundError, UsageError
from brainmap.run.request import (
    DEFAULT_ATLAS,
    DETECT_SETTINGS,
    DetectRequest,
    Roi,
    default_out,
    detect_request,
    detect_requests,
    find_brains,
    parse_block,
    parse_voxel_size,
)
from brainmap.settings import read_settings


def request(**options: Any) -> DetectRequest:
    return detect_request("brain.zarr", {}, options)


def make_volume(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "zarr.json").write_text("{}")
    return path


def test_defaults() -> None:
    made = request()
    assert made == DetectRequest(brain="brain.zarr", out=Path("brain.zarr.brainmap"))
    assert made.atlas == DEFAULT_ATLAS
    assert made.detector == "default"
    assert made.backend == "auto"


def test_options_become_fields() -> None:
    made = detect_request(
        "b.zarr",
        {},
        {
            "voxel-size": "5,2,2",
            "roi": "10:20,:,5:",
            "block": "64,512,512",
            "orientation": "PSL",
            "cell-diameter": 12.5,
            "threshold": 0.3,
            "export": ["napari", "brainmapper"],
            "workers": 3,
            "registration": "reg",
        },
        Path("out"),
    )
    assert made.voxel_um == (5.0, 2.0, 2.0)
    assert made.roi == Roi((10, 20), (0, None), (5, None))
    assert made.block == (64, 512, 512)
    assert made.orientation == "psl"
    assert made.cell_diameter_um == 12.5
    assert made.exports == ("napari", "brainmapper")
    assert made.registration == Path("reg")
    assert made.out == Path("out")
    assert pickle.loads(pickle.dumps(made)) == made


def test_roi_of_a_volume() -> None:
    roi = Roi.parse("10:20,:,5:")
    assert roi.slices((30, 40, 50)) == (slice(10, 20), slice(0, 40), slice(5, 50))
    assert Roi.parse(str(roi)) == roi
    with pytest.raises(UsageError, match=r"z range 10:20 reaches beyond the volume's 15 voxels"):
        roi.slices((15, 40, 50))


@pytest.mark.parametrize(
    "text", ["", "1:2,3:4", "1,2,3", "a:b,1:2,3:4", "1:2,3:4,5:6,7:8", "5:5,0:1,0:1", "-3:5,:,:"]
)
def test_bad_roi(text: str) -> None:
    with pytest.raises(UsageError, match="--roi"):
        Roi.parse(text)


@pytest.mark.parametrize(
    "value", ["5,2", "5;2;2", "a,b,c", "5,2,0", "5,2,-1", "5,2,nan", "5,2,inf", [1, 2], 5, None]
)
def test_bad_voxel_size(value: Any) -> None:
    with pytest.raises(UsageError, match="--voxel-size"):
        parse_voxel_size(value)


@pytest.mark.parametrize("value", ["64,64", "0,64,64", "1.5,64,64", [64, 64, "x"]])
def test_bad_block(value: Any) -> None:
    with pytest.raises(UsageError, match="--block"):
        parse_block(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": -1}, "--channel counts from 0"),
        ({"registration-channel": -2}, "--registration-channel counts from 0"),
        ({"orientation": "xyz"}, "orientation 'xyz'"),
        ({"orientation": "asl2"}, "orientation"),
        ({"threshold": 1.5}, "--threshold must lie between 0 and 1"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"cell-diameter": 0.0}, "--cell-diameter must be positive"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"backend": "magic"}, "--backend must be one of auto, openvino"),
        ({"device": "tpu"}, "--device must be one of cpu"),
        ({"export": ["napari", "excel"]}, "--export must be one of brainglobe-xml"),
        ({"scheduler": "slurm:"}, "--scheduler"),
        ({"atlas": "a", "no-atlas": True}, "contradict"),
        ({"registration": "r", "no-atlas": True}, "contradict"),
        ({"registration": "r", "registration-image": "i.nii"}, "exclude each other"),
        ({"workers": "two"}, "--workers: cannot use the value 'two'"),
        ({"channel": 1.5}, "--channel: cannot use the value 1.5"),
        ({"overwrite": "yes"}, "--overwrite: cannot use"),
        ({"detector": 3}, "--detector: cannot use"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        request(**options)
    assert "\n" not in str(caught.value)


def test_auto_orientation_is_kept() -> None:
    assert request(orientation="auto").orientation == "auto"


def test_regions_are_wanted_with_an_atlas_or_a_registration() -> None:
    assert request().wants_regions
    assert request(registration="r").wants_regions
    assert not request(**{"no-atlas": True}).wants_regions


def test_every_option_either_decides_the_result_or_not() -> None:
    made = request(workers=2, export=["napari"])
    names = {item.name for item in dataclasses.fields(DetectRequest)}
    assert (
        set(made.parameters())
        | {"out", "workers", "scheduler", "overwrite", "dry_run", "exports", "level", "progress"}
        == names
    )
    # Resuming may use other workers and exports; anything else is another run.
    assert made.parameters() == request().parameters()
    assert made.parameters() != request(threshold=0.5).parameters()


def test_a_run_can_be_resumed_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_volume(tmp_path / "b.zarr")
    make_volume(tmp_path / "atlas")
    options = {"atlas": "atlas", "registration": "reg", "mask": "m.zarr"}
    monkeypatch.chdir(tmp_path)
    first = detect_request("b.zarr", {}, options, Path("out")).parameters()
    assert first["brain"] == str(tmp_path / "b.zarr")
    assert first["detector"] == "default"
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    absolute = {name: str(tmp_path / value) for name, value in options.items()}
    assert detect_request(str(tmp_path / "b.zarr"), {}, absolute, Path("out")).parameters() == first
    assert detect_request("s3://x/b.zarr", {}, {}).parameters()["brain"] == "s3://x/b.zarr"


def test_settings_file_and_command_line_which_wins(tmp_path: Path) -> None:
    path = tmp_path / "detect.toml"
    path.write_text(
        'threshold = 0.25\nvoxel-size = [5, 2, 2]\natlas = "mine"\nexport = ["napari"]\nout = "runs"\n'
    )
    settings = read_settings(path, DETECT_SETTINGS)
    made = detect_request("b.zarr", settings, {"threshold": 0.5, "orientation": None, "export": ()})
    assert (made.threshold, made.voxel_um, made.atlas, made.exports) == (0.5, (5, 2, 2), "mine", ("napari",))
    assert made.out == Path("runs")
    assert detect_request("b.zarr", settings, {"no-atlas": True}).atlas is None
    assert detect_request("b.zarr", {"no-atlas": True}, {"atlas": "mine"}).atlas == "mine"
    assert detect_request("b.zarr", settings, {}, Path("here")).out == Path("here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold = 0.5", "unknown setting 'treshold'; did you mean threshold"),
        ("[detect]\nthreshold = 0.5", "unknown setting 'detect'"),
        ("threshold 0.5", "is not valid TOML"),
    ],
)
def test_bad_settings_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_settings(tmp_path / "s.toml", DETECT_SETTINGS)


def test_wrong_value_in_a_settings_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('threshold = "high"')
    with pytest.raises(UsageError, match="--threshold: cannot use the value 'high'"):
        detect_request("b.zarr", read_settings(tmp_path / "s.toml", DETECT_SETTINGS), {})


def test_missing_settings_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no settings file"):
        read_settings(tmp_path / "none.toml", DETECT_SETTINGS)


def test_shipped_settings_are_the_defaults(repository: Path) -> None:
    """configs/detect.toml names every setting in a comment and changes nothing."""
    path = repository / "configs" / "detect.toml"
    assert read_settings(path, DETECT_SETTINGS) == {}
    commented = "\n".join(
        line.removeprefix("# ")
        for line in path.read_text().splitlines()
        if line.startswith("# ") and " = " in line
    )
    settings = tomllib.loads(commented)
    assert set(settings) == set(DETECT_SETTINGS)
    for name in DETECT_SETTINGS - {"no-atlas", "out", "registration", "registration-image"}:
        detect_request("b.zarr", {name: settings[name]}, {})


@pytest.mark.parametrize(
    ("brain", "out"),
    [
        ("data/b.zarr", "data/b.zarr.brainmap"),
        ("data/b.zarr/", "data/b.zarr.brainmap"),
        ("https://host/a/b.zarr/", "b.zarr.brainmap"),
    ],
)
def test_default_run_folder(brain: str, out: str) -> None:
    assert default_out(brain) == Path(out)


def test_a_folder_stands_for_its_volumes(tmp_path: Path) -> None:
    first, second = make_volume(tmp_path / "a.zarr"), make_volume(tmp_path / "b.zarr")
    (tmp_path / "b.zarr.brainmap").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert find_brains([str(tmp_path)]) == [str(first), str(second)]
    assert find_brains([str(second), "s3://x/y.zarr"]) == [str(second), "s3://x/y.zarr"]
    assert find_brains([str(tmp_path / "notes.txt")]) == [str(tmp_path / "notes.txt")]
    with pytest.raises(NotFoundError, match="there is no volume"):
        find_brains([str(tmp_path / "none.zarr")])


def test_several_brains_get_a_run_folder_each(tmp_path: Path) -> None:
    brains = [str(make_volume(tmp_path / name)) for name in ("a.zarr", "b.zarr")]
    beside = detect_requests(brains, None, {})
    assert [made.out for made in beside] == [Path(f"{brain}.brainmap") for brain in brains]
    inside = detect_requests([str(tmp_path)], None, {"threshold": 0.4}, tmp_path / "runs")
    assert [made.out.name for made in inside] == ["a.zarr.brainmap", "b.zarr.brainmap"]
    assert {made.out.parent for made in inside} == {tmp_path / "runs"}
    assert {made.threshold for made in inside} == {0.4}
    other = str(make_volume(tmp_path / "other" / "a.zarr"))
    with pytest.raises(UsageError, match="same run folder"):
        detect_requests([brains[0], other], None, {}, tmp_path / "runs")


def test_cell_diameter_is_micrometres_or_auto() -> None:
    def asked(value: object) -> object:
        return detect_request(
            "b.zarr", {"cell-diameter": value, "no-atlas": True}, {}, Path("out")
        ).cell_diameter_um

    assert asked("12.5") == asked(12.5) == 12.5
    assert asked("auto") == asked("AUTO") == "auto"
    for wrong in ("wide", "-3", "nan", 0):
        with pytest.raises(UsageError, match="--cell-diameter must be"):
            asked(wrong)
