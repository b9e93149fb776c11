"""Neuroglancer over a run: the client's files, and the state that shows image, atlas, cells and marks.

The client comes with the package `neuroglancer`; it is served from here, and keeps its state behind the `#` of its
address, so that nothing of Neuroglancer's own server is needed.
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from brainmap.errors import MissingExtraError, NotFoundError
from brainmap.image.volume import Volume
from brainmap.view.crops import brightness_window
from brainmap.view.run_data import ViewedRun

__all__ = [
    "CLIENT_POLICY", "REGION_PROPERTIES", "client_file", "region_names", "require_client", "viewer_state",
]  # fmt: skip

# The client makes its serializers with `new Function` and workers of its own files; nothing is from elsewhere.
CLIENT_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self' 'unsafe-eval'", "worker-src 'self' blob:", "connect-src 'self'",
        "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:", "font-src 'self' data:",
        "base-uri 'none'", "form-action 'none'", "frame-ancestors 'self'", "object-src 'none'",
    )
)  # fmt: skip
_NAME = re.compile(r"[a-z0-9][A-Za-z0-9_.-]*\.(js|css|wasm|html)")
_KINDS = {
    "js": "text/javascript",
    "css": "text/css",
    "wasm": "application/wasm",
    "html": "text/html; charset=utf-8",
}

# Colours of channels, the first one grey.
_TINTS = ("vec3(1.0, 1.0, 1.0)", "vec3(0.2, 0.9, 0.4)", "vec3(0.9, 0.3, 0.9)", "vec3(0.2, 0.7, 1.0)")
_IMAGE_SHADER = """#uicontrol invlerp normalized(range=%s)
#uicontrol float gamma slider(min=0.2, max=2, default=0.8)
void main() {
  emitRGB(%s * pow(normalized(), gamma));
}
"""
_CELL_SHADER = """#uicontrol float threshold slider(min=0, max=1, default=%g)
#uicontrol int color_by slider(min=0, max=2, default=0)
#uicontrol float size slider(min=2, max=24, default=9)
// 0: score, 1: region, 2: hemisphere
void main() {
  if (prop_score() < threshold) discard;
  vec3 c = mix(vec3(1.0, 0.35, 0.15), vec3(0.25, 1.0, 0.75), prop_score());
  if (color_by == 1) c = prop_color();
  if (color_by == 2) c = prop_hemisphere() == 1u ? vec3(0.3, 0.7, 1.0)
    : prop_hemisphere() == 2u ? vec3(1.0, 0.6, 0.2) : vec3(0.6, 0.6, 0.6);
  setPointMarkerSize(size);
  setPointMarkerBorderWidth(1.6);
  setPointMarkerBorderColor(vec4(c, 1.0));
  setPointMarkerColor(vec4(c, 0.12));
}
"""
_MARK_SHADER = """void main() {
  vec3 c = prop_mark() == 0u ? vec3(0.3, 1.0, 0.3) : prop_mark() == 1u ? vec3(1.0, 0.25, 0.25)
    : prop_mark() == 2u ? vec3(0.75, 0.75, 0.75) : vec3(1.0, 0.9, 0.2);
  setPointMarkerSize(15.0);
  setPointMarkerBorderWidth(2.5);
  setPointMarkerBorderColor(vec4(c, 1.0));
  setPointMarkerColor(vec4(0.0, 0.0, 0.0, 0.0));
}
"""
#: Where the names of regions are served.
REGION_PROPERTIES = "region-names"


def require_client() -> None:
    """Refuse where the client is not installed.

    Raises
    ------
    MissingExtraError
    """
    try:
        found = resources.files("neuroglancer.static").joinpath("client", "index.html").is_file()
    except ModuleNotFoundError:
        found = False
    if not found:
        raise MissingExtraError("neuroglancer", "view", "look at a run in the browser")


@cache
def client_file(name: str) -> tuple[bytes, str]:
    """A file of the client and its media type.

    Raises
    ------
    NotFoundError
        If it has no such file.
    """
    matched = _NAME.fullmatch(name)
    path = resources.files("neuroglancer.static").joinpath("client", name)
    if matched is None or not path.is_file():
        raise NotFoundError(f"the client has no file {name!r}")
    return path.read_bytes(), _KINDS[matched[1]]


def viewer_state(run: ViewedRun, origin: str) -> dict[str, Any]:
    """The state that shows a run as a whole.

    Parameters
    ----------
    run : ViewedRun
    origin : str
        Where the files are served, such as ``http://127.0.0.1:8123``.
    """
    shape = np.array(run.volume.shape)
    voxel, start = np.array(run.volume.voxel_um), np.array(run.volume.origin_um)
    extent = shape * voxel
    centre = start + (shape - 1) / 2 * voxel
    layers = [
        *_image_layers(run, origin),
        *_region_layers(run, origin),
        _cell_layer(run, origin),
        _mark_layer(),
    ]
    return {
        "dimensions": {axis: [1e-6, "m"] for axis in "xyz"},
        "position": [float(v) for v in centre[::-1]],
        "crossSectionScale": float(extent[1:].max() / 500),
        # Cells show in a plane as far as they reach to it.
        "crossSectionDepth": float(run.diameter_um),
        "projectionScale": float(extent.max() * 1.4),
        "layers": layers,
        "layout": "4panel-alt",
        "showSlices": True,
        # They lie over the very cell that is looked at.
        "showAxisLines": False,
        "crossSectionBackgroundColor": "#000000",
        "selection": {"visible": False},
    }


def _image_layers(run: ViewedRun, origin: str) -> list[dict[str, Any]]:
    found = []
    volume = run.volume
    shown = volume.channel or 0
    for channel in range(volume.n_channels):
        names = volume.channel_names
        layer = {
            "type": "image",
            # Never the name of another layer.
            "name": " ".join(
                ["image", *([str(channel), *names[channel : channel + 1]] if volume.n_channels > 1 else [])]
            ),
            "source": f"zarr3://{origin}/image/{channel}/",
            "shader": _IMAGE_SHADER
            % (
                _ends(volume.with_channel(channel)),
                _TINTS[0 if channel == shown else 1 + channel % 3],
            ),
            "blend": "additive",
            "opacity": 1,
            "visible": channel == shown,
            "tab": "rendering",
        }
        found.append(layer)
    return found


def _ends(volume: Volume) -> str:
    """Grey levels of black and white; integer images want integers."""
    low, high = brightness_window(volume)
    if volume.dtype.kind == "f":
        return f"[{low:g}, {high:g}]"
    return f"[{math.floor(low)}, {math.ceil(high)}]"


def _region_layers(run: ViewedRun, origin: str) -> list[dict[str, Any]]:
    if run.registration is None:
        return []
    layer: dict[str, Any] = {
        "type": "segmentation",
        "name": "regions",
        "source": [f"zarr3://{origin}/atlas/"],
        # Faint, until one is chosen.
        "selectedAlpha": 0.2,
        "notSelectedAlpha": 0.05,
        "hideSegmentZero": True,
        "segments": [],
        "tab": "segments",
    }
    if run.atlas is not None:
        structures = run.atlas.structures
        layer["source"].append(f"precomputed://{origin}/{REGION_PROPERTIES}")
        layer["segmentColors"] = {
            str(key): "#{:02x}{:02x}{:02x}".format(*rgb)
            for key, rgb in zip(structures.id.tolist(), structures.rgb.tolist(), strict=True)
        }
    return [layer]


def _cell_layer(run: ViewedRun, origin: str) -> dict[str, Any]:
    return {
        "type": "annotation",
        "name": "cells",
        "source": f"precomputed://{origin}/cells",
        "shader": _CELL_SHADER % run.threshold,
        "shaderControls": {"threshold": run.threshold},
        "projectionAnnotationSpacing": 4,
        "crossSectionAnnotationSpacing": 2,
        "tab": "rendering",
    }


def _mark_layer() -> dict[str, Any]:
    return {
        "type": "annotation",
        "name": "marks",
        "source": {
            "url": "local://annotations",
            "transform": {"outputDimensions": {axis: [1e-6, "m"] for axis in "xyz"}},
        },
        "annotationProperties": [{"id": "mark", "type": "uint8", "enum_values": [0, 1, 2, 3],
                                  "enum_labels": ["yes", "no", "unsure", "missed"]}],
        "annotations": [],
        "shader": _MARK_SHADER,
        "tab": "annotations",
    }  # fmt: skip


def region_names(run: ViewedRun) -> dict[str, Any]:
    """`info` of the names of the atlas's regions, as Neuroglancer reads them."""
    structures = None if run.atlas is None else run.atlas.structures
    ids = [] if structures is None else [str(key) for key in structures.id.tolist()]
    properties: list[dict[str, Any]] = []
    if structures is not None:
        properties = [
            {"id": "label", "type": "label", "values": list(structures.acronym)},
            {"id": "name", "type": "description", "values": list(structures.name)},
        ]
    return {"@type": "neuroglancer_segment_properties", "inline": {"ids": ids, "properties": properties}}
