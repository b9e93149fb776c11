"""From a checkpoint to a detector folder: ONNX, record, card and the weights to train on from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from brainmap.errors import DataError
from brainmap.files import atomic_path
from brainmap.image.intensity import BACKGROUND_VALUE
from brainmap.infer.detector import (
    PLAIN_PROMINENCE,
    Detector,
    DetectorSpec,
    ProminenceWeights,
    load_backend,
    write_detector,
)
from brainmap.infer.peaks import PLAIN_FACE, FaceWeights, Heat, find_peaks
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.loop import WEIGHTS
from brainmap.train.learn.samples import GridSettings, net_volume
from brainmap.train.tissue.tissue import simulate, variant

__all__ = ["check_export", "export_detector", "to_onnx"]

log = logging.getLogger(__name__)

TILE = (512, 512)
_TOLERANCE, _PEAK_TOLERANCE = 1e-3, 0.05
_LOWEST_LOGIT = -3.0


class _Heads(nn.Module):
    """The network without its size head, which inference does not use."""

    def __init__(self, model: CenterNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logit, offset, _ = self.model(image)
        return logit, offset


def to_onnx(model: CenterNet, tile: tuple[int, int] = TILE) -> bytes:
    """The network as ONNX: input `image`, outputs `logit` and `offset`, only the batch dynamic."""
    example = torch.zeros(2, model.config.slices, *tile)
    batch = torch.export.Dim("batch", min=1, max=256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _Heads(model).eval(),
            (example,),
            str(path),
            input_names=["image"],
            output_names=["logit", "offset"],
            dynamic_shapes={"image": {0: batch}},
            external_data=False,
            verbose=False,
        )
        return _without_traces(path)


def _without_traces(path: Path) -> bytes:
    """The file without the exporter's notes, which name the folders of the machine it ran on."""
    record = onnx.load(path)
    graph = record.graph
    for part in (
        record,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    return bytes(record.SerializeToString())


def receptive_radius(model: CenterNet, size: int = 256) -> int:
    """Input pixels around an output cell that can change it, from the gradient of one output.

    Of several images, because where no feature of a narrow network is active the gradient vanishes.
    """
    model = model.eval()
    image = torch.randn(
        4, model.config.slices, size, size, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    logit, offset, _ = model(image)
    middle = logit.shape[-1] // 2
    reach = 0
    for row in range(middle, middle + model.config.multiple // model.config.stride):
        value = logit[:, 0, row, row].sum() + offset[:, :, row, row].sum()
        (gradient,) = torch.autograd.grad(value, image, retain_graph=True)
        touched = np.flatnonzero(gradient.abs().sum(dim=(0, 1, 2)).numpy())
        if not len(touched):
            raise DataError("the network does not answer to its input; it was not exported")
        place = (row + 0.5) * model.config.stride - 0.5
        reach = max(reach, int(np.ceil(max(touched[-1] - place, place - touched[0]))))
    return reach


def export_detector(
    model: CenterNet,
    grid: GridSettings,
    folder: Path,
    name: str,
    version: str,
    threshold: float,
    calibration: tuple[tuple[float, float], ...],
    training: dict[str, Any],
    card: str,
    face: FaceWeights = PLAIN_FACE,
    prominence: ProminenceWeights = PLAIN_PROMINENCE,
) -> Detector:
    """Write a detector folder, `weights.pt` for further training included, and check what it computes.

    Raises
    ------
    DataError
        If the exported network's values or peaks differ from torch's; see `check_export`.
    """
    spec = DetectorSpec(
        name=name,
        version=version,
        pixel_um=grid.pixel_um,
        z_target_um=grid.z_target_um,
        channels=model.config.slices,
        tile=TILE,
        stride=model.config.stride,
        halo_px=receptive_radius(model),
        offset=BACKGROUND_VALUE,
        fill=0.0,
        cell_diameter_um=grid.cell_diameter_um,
        threshold=threshold,
        calibration=calibration,
        onnx_sha256="",
        face=face,
        prominence=prominence,
        training=training,
    )
    network = to_onnx(model)
    with tempfile.TemporaryDirectory() as trial:
        check_export(model, write_detector(trial, network, spec, card))
    detector = write_detector(folder, network, spec, card)
    weights = {"network": model.config.to_dict(), "grid": asdict(grid), "average": model.state_dict()}
    with atomic_path(folder / WEIGHTS) as part:
        torch.save(weights, part)
    log.info("exported %s to %s", name, folder)
    return detector


def check_export(model: CenterNet, detector: Detector) -> None:
    """Compare a detector folder with the network it was made from, on simulated tissue.

    Values must agree to 1e-3, and so must the peaks: every peak of one that is clearly above the lowest
    logit is a peak of the other, in the same output cell and to 0.05 cells.

    Raises
    ------
    DataError
        If they do not.
    """
    image = _example(model.config.slices)
    with torch.no_grad():
        wanted = [part.numpy() for part in _Heads(model).eval()(torch.from_numpy(image))]
    got = load_backend(detector, "openvino", precision="f32").infer(image)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True))
    if not worst < _TOLERANCE:
        raise DataError(f"the exported network differs from the trained one by {worst:.2g}; it was not kept")
    for a, b in ((got, wanted), (wanted, got)):
        if not _peaks_agree(a, b):
            raise DataError("the exported network finds other peaks than the trained one; it was not kept")


def _example(slices: int) -> NDArray[np.float32]:
    """One input with cells on it, as large as the exported tile."""
    tissue = simulate(variant("coarse", shape=(slices, 340, 340)), seed=1)
    stack = net_volume(tissue, GridSettings()).stack[:slices].astype(np.float32)
    image = np.zeros((1, slices, *TILE), np.float32)
    image[0, :, : stack.shape[1], : stack.shape[2]] = stack[:, : TILE[0], : TILE[1]]
    return image


def _peaks_agree(mine: Sequence[NDArray[np.float32]], theirs: Sequence[NDArray[np.float32]]) -> bool:
    """Whether every clear peak of mine is one of theirs."""
    a, b = (
        find_peaks(None, Heat.of(logit[0, 0], offset[0], _LOWEST_LOGIT), None)
        for logit, offset in (mine, theirs)
    )
    clear = a["logit"] > _LOWEST_LOGIT + _TOLERANCE
    known = {(r, c): (y, x) for r, c, y, x in zip(b["row"], b["column"], b["dy"], b["dx"], strict=True)}
    return all(
        (r, c) in known and np.abs(np.subtract(known[r, c], (y, x))).max() < _PEAK_TOLERANCE
        for r, c, y, x in zip(*(a[n][clear] for n in ("row", "column", "dy", "dx")), strict=True)
    )
