"""A detector's network as a judge of tiles: its features, its heat, and how sure it is.

A detector folder exposes the heads of its network only. Here the graph gets two further outputs: the
encoder's deepest layer, whose pooled values say what a tile looks like to the network, and the layer that the
heat map is computed from, whose values say what a single place looks like. Which layers these are is read from
the graph, so that any network of the kind can be used. Runs on OpenVINO and needs no torch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, MissingExtraError
from brainmap.infer.detector import Detector
from brainmap.infer.peaks import Heat, find_peaks, suppress
from brainmap.infer.plan.blocks import align_up
from brainmap.train.learn.samples import GridSettings
from brainmap.train.learn.views import NetTile, net_tile, tile_prominence

__all__ = ["TileLook", "TileNetwork"]

# Peaks below this score 0.1 % by any calibration.
LOWEST_LOGIT = -5.0
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


@dataclass(frozen=True)
class TileLook:
    """What the network sees in a tile.

    Parameters
    ----------
    feature : ndarray of float32, shape (2 channels,)
        Mean and standard deviation of the deepest layer over the tile.
    xy : ndarray of float64, shape (n, 2)
        Candidates, tile px.
    logit : ndarray of float32, shape (n,)
    score : ndarray of float64, shape (n,)
        Calibrated probability.
    trait : ndarray of float32, shape (n, channels)
        The layer under the heat map, at each candidate.
    """

    feature: NDArray[np.float32]
    xy: NDArray[np.float64]
    logit: NDArray[np.float32]
    score: NDArray[np.float64]
    trait: NDArray[np.float32]

    def doubt(self, threshold: float) -> float:
        """Wrong answers that the detector itself expects to give on the tile, at a threshold on the score."""
        wrong = np.where(self.score >= threshold, 1 - self.score, self.score)
        return float(wrong.sum())


class TileNetwork:
    """The network of a detector, compiled once for each size of tile.

    Parameters
    ----------
    detector : Detector
    threads : int
        Of the processor.
    """

    def __init__(self, detector: Detector, threads: int = 1) -> None:
        self.detector = detector
        self._threads = threads
        self._compiled: dict[tuple[int, int], Any] = {}

    def look(
        self, image: NDArray[np.float32], voxel_um: NDArray[np.float64], cell_diameter_um: float
    ) -> TileLook:
        """Show a tile to the network, as a section of its own.

        Whoever annotates a tile sees one section, too: what is doubtful without its neighbours is what he is
        asked about.

        Parameters
        ----------
        image : ndarray of float32, shape (height, width)
            Normalised intensity, 0..1.
        voxel_um : ndarray of float64, shape (3,)
            z, y, x.
        cell_diameter_um : float
            Typical cell of the tile.
        """
        spec = self.detector.spec
        grid = GridSettings(spec.pixel_um, spec.z_target_um, spec.cell_diameter_um)
        view = net_tile(image, voxel_um, grid, cell_diameter_um)
        height, width = view.image.shape
        whole = (align_up(height), align_up(width))
        batch = np.zeros((1, spec.channels, *whole), np.float32)
        batch[0, spec.channels // 2, :height, :width] = view.image
        logit, offset, deep, under = self._run(batch, whole)
        peaks = self._peaks(view, logit[0, 0], offset[0])
        peaks["logit"] = spec.weighed(peaks["logit"], tile_prominence(view.image, peaks["place"], grid))
        trait = _at(under[0], peaks["place"], whole)
        y, x = peaks["yx"].T
        place_um = np.column_stack([np.zeros(len(y)), y * voxel_um[1], x * voxel_um[2]])
        order = np.column_stack([np.zeros(len(y), np.int64), peaks["row"], peaks["column"]])
        keep = suppress(place_um, peaks["logit"], order, spec.min_separation * cell_diameter_um)
        xy = np.clip(np.column_stack([x, y]), 0, np.array(image.shape[::-1]) - 1)
        return TileLook(
            feature=_pooled(deep[0], (height, width), whole),
            xy=xy[keep],
            logit=peaks["logit"][keep],
            score=spec.score(peaks["logit"][keep]),
            trait=trait[keep],
        )

    def _peaks(
        self, view: NetTile, logit: NDArray[np.float32], offset: NDArray[np.float32]
    ) -> dict[str, NDArray[Any]]:
        stride = self.detector.spec.stride
        rows, columns = (-(-n // stride) for n in view.image.shape)
        heat = Heat.of(
            np.ascontiguousarray(logit[:rows, :columns]),
            np.ascontiguousarray(offset[:, :rows, :columns]),
            LOWEST_LOGIT,
        )
        peaks = find_peaks(None, heat, None, self.detector.spec.subpixel)
        place = np.column_stack([
            (peaks["row"] + 0.5 + peaks["dy"]) * stride - 0.5,
            (peaks["column"] + 0.5 + peaks["dx"]) * stride - 0.5,
        ])  # fmt: skip
        return {**peaks, "place": place, "yx": view.to_px(place)[:, ::-1]}

    def _run(self, batch: NDArray[np.float32], size: tuple[int, int]) -> list[NDArray[np.float32]]:
        if size not in self._compiled:
            self._compiled[size] = self._compile(size)
        found = self._compiled[size](batch)
        return [np.array(found[i]) for i in range(4)]

    def _compile(self, size: tuple[int, int]) -> Any:
        try:
            import openvino as ov
        except ImportError as error:
            raise MissingExtraError("openvino", "all", "look at tiles with a network") from error
        core = ov.Core()
        path = self.detector.model_path
        try:
            model = core.read_model(str(path))
            model.reshape([1, self.detector.spec.channels, *size])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f"{path} is not a network OpenVINO can read: {reason}") from error
        outputs = [model.output("logit"), model.output("offset")]
        layers = [_deepest(model, str(path)), _under_heat(model, str(path))]
        results = [output.get_node().input_value(0) for output in outputs] + [
            layer.output(0) for layer in layers
        ]
        settings = {"INFERENCE_NUM_THREADS": self._threads, "INFERENCE_PRECISION_HINT": "f32"}
        return core.compile_model(ov.Model(results, model.get_parameters()), "CPU", settings)


def _layers(model: Any) -> list[Any]:
    """Nodes that compute an image, in the order of computation."""
    return [
        node for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Parameter", "Result", "Constant")
        and node.output(0).get_partial_shape().rank.get_length() == 4
        and node.output(0).get_partial_shape().is_static
        and min(node.get_output_shape(0)[2:]) > 1
    ]  # fmt: skip


def _deepest(model: Any, path: str) -> Any:
    """The last of the layers of lowest resolution."""
    layers = _layers(model)
    if not layers:
        raise DataError(f"{path} has no layer that is an image: it is no network that looks at tiles")
    lowest = min(node.get_output_shape(0)[2] for node in layers)
    return [node for node in layers if node.get_output_shape(0)[2] == lowest][-1]


def _under_heat(model: Any, path: str) -> Any:
    """The layer that the last convolution before the heat map reads."""
    node = model.output("logit").get_node()
    for _ in itertools.repeat(None, 64):
        if node.get_type_name() in _CONVOLUTIONS:
            return node.input_value(0).get_node()
        if node.get_type_name() in ("Parameter", "Constant"):
            break
        node = node.input_value(0).get_node()
    raise DataError(f"{path}: no convolution leads to its heat map")


def _pooled(
    layer: NDArray[np.float32], shape: tuple[int, int], whole: tuple[int, int]
) -> NDArray[np.float32]:
    """Mean and standard deviation of each channel over the part of a layer that the image covers."""
    rows, columns = (
        max(1, round(n * size / full)) for n, size, full in zip(shape, layer.shape[1:], whole, strict=True)
    )
    inside = layer[:, :rows, :columns].reshape(len(layer), -1)
    return np.concatenate([inside.mean(axis=1), inside.std(axis=1)])


def _at(
    layer: NDArray[np.float32], place: NDArray[np.float64], whole: tuple[int, int]
) -> NDArray[np.float32]:
    """Values of a layer at places of the network's input (n, 2) y, x: those of the nearest pixel."""
    size = np.array(layer.shape[1:])
    at = np.floor((place + 0.5) * size / np.array(whole)).astype(np.int64)
    y, x = np.clip(at, 0, size - 1).T
    return layer[:, y, x].T.copy()
