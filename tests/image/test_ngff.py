"""OME-NGFF metadata: parsing leniently, composing transformations, writing strictly."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from brainmap.errors import DataError
from brainmap.image.ngff import (
    Dataset,
    dataset_from_shape,
    image_attributes,
    is_collection,
    parse_multiscale,
)
from brainmap.image.units import um_per_unit

UM_AXES = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]


def image(**changes: Any) -> dict[str, Any]:
    """A valid 0.5 image of two levels, with changes to its multiscale."""
    multiscale: dict[str, Any] = {
        "axes": copy.deepcopy(UM_AXES),
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [5, 2, 2]}]},
            {
                "path": "1",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [5, 4, 4]},
                    {"type": "translation", "translation": [0, 1, 1]},
                ],
            },
        ],
        **changes,
    }
    return {"ome": {"version": "0.5", "multiscales": [multiscale]}}


def test_scale_and_translation() -> None:
    parsed = parse_multiscale(image(), "brain")
    assert parsed.axes == ("z", "y", "x")
    assert parsed.version == "0.5"
    assert parsed.datasets == (
        Dataset("0", (5, 2, 2), (0, 0, 0)),
        Dataset("1", (5, 4, 4), (0, 1, 1)),
    )
    assert parsed.orientation is None
    assert parsed.channel_names == ()


def test_transformations_of_the_whole_image_apply_after_those_of_a_level() -> None:
    outer = [{"type": "scale", "scale": [2, 2, 10]}, {"type": "translation", "translation": [7, 0, 3]}]
    parsed = parse_multiscale(image(coordinateTransformations=outer), "brain")
    # um = (index * 4 + 1) * 10 + 3 along x of level 1
    assert parsed.datasets[1] == Dataset("1", (10, 8, 40), (7, 2, 13))
    assert parsed.datasets[0] == Dataset("0", (10, 4, 20), (7, 0, 3))


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("micrometer", 1), ("nanometer", 1e-3), ("millimeter", 1e3), ("meter", 1e6), ("angstrom", 1e-4)],
)
def test_units_become_micrometres(unit: str, factor: float, caplog: pytest.LogCaptureFixture) -> None:
    axes = [{"name": n, "type": "space", "unit": unit} for n in "zyx"]
    level = parse_multiscale(image(axes=axes), "brain").datasets[1]
    assert level.scale_um == pytest.approx((5 * factor, 4 * factor, 4 * factor))
    assert level.translation_um == pytest.approx((0, factor, factor))
    assert not caplog.records


@pytest.mark.parametrize("unit", ["um", "µm", "μm", "micron", None])
def test_careless_units_are_micrometres_with_a_warning(
    unit: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    axes = [{"name": n, "type": "space"} | ({"unit": unit} if unit else {}) for n in "zyx"]
    assert parse_multiscale(image(axes=axes), "brain").datasets[0].scale_um == (5, 2, 2)
    assert "unit" in caplog.text


def test_units_do_not_matter_if_the_voxel_size_is_known() -> None:
    axes = [{"name": n, "type": "space", "unit": "parsec"} for n in "zyx"]
    assert parse_multiscale(image(axes=axes), "brain", need_scale=False).datasets[0].scale_um == (5, 2, 2)


def test_extra_axes_keep_their_own_scale_out() -> None:
    axes = [{"name": "t", "type": "time", "unit": "second"}, {"name": "c", "type": "channel"}, *UM_AXES]
    steps = [
        {"type": "scale", "scale": [60, 1, 5, 2, 2]},
        {"type": "translation", "translation": [9, 9, 1, 2, 3]},
    ]
    parsed = parse_multiscale(
        image(axes=axes, datasets=[{"path": "a/b", "coordinateTransformations": steps}]), "brain"
    )
    assert parsed.axes == ("t", "c", "z", "y", "x")
    assert parsed.datasets == (Dataset("a/b", (5, 2, 2), (1, 2, 3)),)


def test_a_section_gets_a_cubic_voxel() -> None:
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [3, 2]}]}]
    parsed = parse_multiscale(image(axes=UM_AXES[1:], datasets=datasets), "section")
    assert parsed.axes == ("y", "x")
    assert parsed.datasets[0].scale_um == (3, 3, 2)


def test_levels_are_sorted_by_voxel_size(caplog: pytest.LogCaptureFixture) -> None:
    datasets = image()["ome"]["multiscales"][0]["datasets"][::-1]
    assert [d.path for d in parse_multiscale(image(datasets=datasets), "brain").datasets] == ["0", "1"]
    assert "finest first" in caplog.text


def test_old_versions_are_read_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    old = {"multiscales": [{"version": "0.3", "axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}]}
    assert parse_multiscale(old, "brain", need_scale=False).datasets == (Dataset("0", None, None),)
    assert "0.3" in caplog.text
    oldest = {"multiscales": [{"version": "0.1", "datasets": [{"path": "0"}]}]}
    assert parse_multiscale(oldest, "brain", need_scale=False).axes == ("t", "c", "z", "y", "x")


def test_coordinate_systems_of_the_coming_version() -> None:
    steps = [
        {
            "type": "sequence",
            "transformations": [
                {"type": "scale", "scale": [5, 2, 2]},
                {"type": "translation", "translation": [1, 2, 3]},
            ],
        }
    ]
    coming = image(
        axes=None,
        coordinateSystems=[{"name": "physical", "axes": UM_AXES}, {"name": "atlas", "axes": UM_AXES}],
        coordinateTransformations=[{"type": "scale", "scale": [9, 9, 9]}],
        datasets=[{"path": "s0", "coordinateTransformations": steps}],
    )
    assert parse_multiscale(coming, "brain").datasets == (Dataset("s0", (5, 2, 2), (1, 2, 3)),)


@pytest.mark.parametrize(
    ("values", "letters"),
    [
        (("anterior-to-posterior", "superior-to-inferior", "right-to-left"), "asr"),
        (("posterior-to-anterior", "dorsal-to-ventral", "left-to-right"), "psl"),
        (("rostral-to-caudal", "ventral-to-dorsal", "left-to-right"), "ail"),
    ],
)
def test_anatomical_axes_give_the_orientation(values: tuple[str, ...], letters: str) -> None:
    axes = [
        {**axis, "orientation": {"type": "anatomical", "value": value}}
        for axis, value in zip(UM_AXES, values, strict=True)
    ]
    assert parse_multiscale(image(axes=axes), "brain").orientation == letters


def test_own_orientation_attribute_and_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_multiscale({**image(), "brainmap": {"orientation": "psl"}}, "brain").orientation == "psl"
    assert parse_multiscale({**image(), "brainmap": {"orientation": "xyz"}}, "brain").orientation is None
    assert "xyz" in caplog.text


BAD = [
    ({}, "no OME-NGFF image metadata"),
    ({"multiscales": []}, "no OME-NGFF image metadata"),
    ({"multiscales": "yes"}, "no OME-NGFF image metadata"),
    ({"plate": {"wells": []}}, "a plate of many images"),
    (image(datasets=[]), "no datasets"),
    (image(datasets=[{"coordinateTransformations": []}]), "has no path"),
    (image(axes=[{"name": n, "type": "space"} for n in "xyz"]), "its axes are x, y, z"),
    (image(axes=[{"name": n, "type": "space"} for n in "zx"]), "its axes are z, x"),
    (image(axes=[{"type": "space"}]), "axes in the metadata are damaged"),
    (image(axes=[{"name": n, "type": "space", "unit": "parsec"} for n in "zyx"]), "--voxel-size"),
    (image(datasets=[{"path": "0"}]), "gives no scale"),
    *(
        (image(datasets=[{"path": "0", "coordinateTransformations": [step]}]), part)
        for step, part in [
            ({"type": "translation", "translation": [1, 1, 1]}, "gives no scale"),
            ({"type": "scale", "scale": [1, 1]}, "not one number for each axis"),
            ({"type": "scale", "scale": [1, "a", 1]}, "not one number for each axis"),
            ({"type": "scale", "scale": [1, float("nan"), 1]}, "not one number for each axis"),
            ({"type": "scale", "path": "somewhere"}, "not one number for each axis"),
            ({"type": "scale", "scale": [1, 0, 1]}, "not positive"),
            ({"type": "scale", "scale": [1, -1, 1]}, "not positive"),
            ({"type": "rotation"}, "not a scale or a translation"),
            ("scale", "not a scale or a translation"),
        ]
    ),
]


@pytest.mark.parametrize(("attributes", "part"), BAD, ids=range(len(BAD)))
def test_bad_metadata_gives_one_sentence(attributes: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_multiscale(attributes, "/data/brain.zarr")
    assert part in str(caught.value)
    assert "/data/brain.zarr" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_level_without_scale_from_its_shape() -> None:
    assert dataset_from_shape("2", (5, 2, 2), (100, 401, 400), (100, 100, 101)) == Dataset(
        "2", (5, 8, 8), (0, 3, 3)
    )


def test_um_per_unit() -> None:
    assert um_per_unit("Micrometer") == 1
    assert um_per_unit("nm") == 1e-3
    assert um_per_unit("pixel") is None


def test_collections_are_told_from_images() -> None:
    assert is_collection({"bioformats2raw.layout": 3})
    assert is_collection({"ome": {"bioformats2raw.layout": 3}})
    assert not is_collection(image())


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("channels", [None, ["auto", "cfos"]])
def test_what_is_written_is_read_back(
    zarr_format: int, channels: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = [Dataset("0", (5, 2, 2), (0, 0, 0)), Dataset("1", (5, 4, 4), (0, 1, 1))]
    attributes = image_attributes(zarr_format, "brain", datasets, channels, "psl")
    parsed = parse_multiscale(attributes, "brain")
    assert parsed.datasets == tuple(datasets)
    assert parsed.axes == (("c",) if channels else ()) + ("z", "y", "x")
    assert parsed.channel_names == tuple(channels or ())
    assert parsed.orientation == "psl"
    assert not caplog.records


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("channels", [None, ["auto", "cfos"]])
def test_written_metadata_keeps_the_rules(zarr_format: int, channels: list[str] | None) -> None:
    datasets = [Dataset("0", (5, 2, 2), (0, 0, 0)), Dataset("1", (5, 4, 4), (0, 1, 1))]
    attributes = image_attributes(zarr_format, "brain", datasets, channels)
    assert_strict(attributes, zarr_format)


def assert_strict(attributes: dict[str, Any], zarr_format: int) -> None:
    """The MUSTs of NGFF 0.4 and 0.5 for an image."""
    if zarr_format == 3:
        ome = attributes["ome"]
        assert ome["version"] == "0.5"
        assert "version" not in ome["multiscales"][0]
        assert "multiscales" not in attributes
    else:
        ome = attributes
        assert ome["multiscales"][0]["version"] == "0.4"
    (multiscale,) = ome["multiscales"]
    axes = multiscale["axes"]
    assert 2 <= len(axes) <= 5
    kinds = [a["type"] for a in axes]
    assert kinds == sorted(kinds, key=["time", "channel", "space"].index)
    assert [a["name"] for a in axes if a["type"] == "space"] == ["z", "y", "x"]
    assert {a["unit"] for a in axes if a["type"] == "space"} == {"micrometer"}
    for dataset in multiscale["datasets"]:
        assert set(dataset) == {"path", "coordinateTransformations"}
        assert [t["type"] for t in dataset["coordinateTransformations"]] == ["scale", "translation"]
        for step in dataset["coordinateTransformations"]:
            assert len(step[step["type"]]) == len(axes)
            assert all(isinstance(v, float) for v in step[step["type"]])
    for channel in ome.get("omero", {}).get("channels", []):
        assert len(channel["color"]) == 6
        assert set(channel["window"]) == {"min", "max", "start", "end"}


def test_no_warning_for_a_clean_image(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        parse_multiscale(image(), "brain")
    assert not caplog.records
