"""From a checkpoint to a detector folder: ONNX, record and card."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainmap.errors import DataError
from brainmap.infer.detector import Detector, DetectorSpec, load_backend, write_detector
from brainmap.intensity import BACKGROUND_VALUE
from brainmap.train.centernet import CenterNet
from brainmap.train.samples import GridSettings

__all__ = ["export_detector", "to_onnx"]

log = logging.getLogger(__name__)

TILE = (512, 512)
_TOLERANCE = 1e-3


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
        return path.read_bytes()


def receptive_radius(model: CenterNet, size: int = 256) -> int:
    """Input pixels around an output cell that can change it, from the gradient of one output."""
    model = model.eval()
    image = torch.randn(1, model.config.slices, size, size, requires_grad=True)
    logit, offset, _ = model(image)
    middle = logit.shape[-1] // 2
    reach = 0
    for row in range(middle, middle + model.config.multiple // model.config.stride):
        value = logit[0, 0, row, row] + offset[0, :, row, row].sum()
        (gradient,) = torch.autograd.grad(value, image, retain_graph=True)
        touched = np.flatnonzero(gradient.abs().sum(dim=(0, 1, 2)).numpy())
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
) -> Detector:
    """Write a detector folder and check that it computes what the network does.

    Raises
    ------
    DataError
        If the exported network's values differ from torch's by more than 1e-3.
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
        training=training,
    )
    detector = write_detector(folder, to_onnx(model), spec, card)
    backend = load_backend(detector, "openvino", precision="f32")
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.1, (1, model.config.slices, *TILE)).astype(np.float32)
    with torch.no_grad():
        expected = _Heads(model).eval()(torch.from_numpy(image))
    for got, want in zip(backend.infer(image), expected, strict=True):
        worst = float(np.abs(got - want.numpy()).max())
        if not worst < _TOLERANCE:
            raise DataError(
                f"the exported network differs from the trained one by {worst:.2g}; it was not kept"
            )
    log.info("exported %s to %s", name, folder)
    return detector
