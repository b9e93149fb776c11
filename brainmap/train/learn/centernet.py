"""The centre-point network: a small U-Net over a few slices, with CenterNet heads.

Source: CenterNet (Zhou et al. 2019) with a U-Net backbone, as in the founding study (methods 6).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brainmap.errors import UsageError
from brainmap.settings import check_keys

__all__ = ["CenterNet", "CenterNetConfig"]

# Focal loss starts stable when every cell of the map begins at this probability (RetinaNet, 4.1).
PRIOR_PROBABILITY = 0.01


@dataclass(frozen=True)
class CenterNetConfig:
    """Shape of a network; stored in every checkpoint, so that resuming needs nothing else.

    Parameters
    ----------
    slices : int
        Consecutive slices seen at once, as input channels; odd.
    stride : int
        Output stride in network pixels: 1, 2 or 4.
    widths : tuple of int
        Channels at 1/2, 1/4, 1/8, ... of the input resolution.
    """

    slices: int = 5
    stride: int = 1
    widths: tuple[int, ...] = (32, 64, 96)

    def __post_init__(self) -> None:
        if self.slices < 1 or self.slices % 2 == 0:
            raise UsageError(f"slices is {self.slices}; give an odd number such as 5")
        if self.stride not in (1, 2, 4):
            raise UsageError(f"stride is {self.stride}; give 1, 2 or 4")
        if len(self.widths) < 2:
            raise UsageError(f"widths is {self.widths}; give at least two levels")

    @property
    def multiple(self) -> int:
        """Input height and width must be multiples of this, in network pixels."""
        return 2 ** len(self.widths)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> CenterNetConfig:
        check_keys(cls, record, "the network")
        settings: dict[str, Any] = dict(record)
        if "widths" in settings:
            settings["widths"] = tuple(settings["widths"])
        return cls(**settings)


def _conv(c_in: int, c_out: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(inplace=True),
    )


def _corners(channels: int) -> Tensor:
    """Kernels (4 channels, 1, 2, 2) that each pick one pixel of a 2 x 2 square."""
    return torch.eye(4).reshape(4, 1, 2, 2).repeat(channels, 1, 1, 1)


class _Fold(nn.Module):
    """`PixelUnshuffle(2)` as a convolution, because the former is exported with the image size fixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("kernel", _corners(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, stride=2, groups=self.channels)


class _Unfold(_Fold):
    """`PixelShuffle(2)` as a transposed convolution, for the same reason."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(x, self.kernel, stride=2, groups=self.channels)


def _head(width: int, channels: int, stride: int) -> nn.Sequential:
    """A linear read-out; for a stride-1 map every feature cell unfolds into 2 x 2 output cells."""
    if stride == 1:
        return nn.Sequential(nn.Conv2d(width, 4 * channels, 1), _Unfold(channels))
    return nn.Sequential(nn.Conv2d(width, channels, 1))


class CenterNet(nn.Module):
    """U-Net with heads for the centre heat map, the sub-pixel offset and the size.

    All arithmetic runs at half resolution or below: the input is folded 2 x 2 into channels, and a
    stride-1 map is unfolded from the half-resolution features. That makes the network about four
    times cheaper than one with a full-resolution level, at the same output grid. No layer fixes the
    image size, so an exported network can be set to any tile.

    Parameters
    ----------
    config : CenterNetConfig
        Shape of the network.
    """

    def __init__(self, config: CenterNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.fold = _Fold(config.slices)
        self.down = nn.ModuleList()
        c_in = 4 * config.slices
        for width in widths:
            self.down.append(nn.Sequential(_conv(c_in, width), _conv(width, width)))
            c_in = width
        self.pool = nn.MaxPool2d(2)
        self.reduce = nn.ModuleList()
        self.up = nn.ModuleList()
        last = 1 if config.stride == 4 else 0
        for level in range(len(widths) - 2, last - 1, -1):
            self.reduce.append(_conv(widths[level + 1], widths[level], kernel=1))
            self.up.append(_conv(2 * widths[level], widths[level]))
        width = widths[last]
        self.neck = _conv(width, width)
        self.heat = _head(width, 1, config.stride)
        self.offset = _head(width, 2, config.stride)
        self.size = _head(width, 2, config.stride)
        prior = torch.log(torch.tensor(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)))
        nn.init.constant_(self.heat[0].bias, float(prior))

    def features(self, image: Tensor) -> Tensor:
        """Backbone features at max(2, stride): (batch, width, H/2, W/2) or (..., H/4, W/4)."""
        x = self.fold(image)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for step, (reduce, up) in enumerate(zip(self.reduce, self.up, strict=True)):
            skip = skips[len(skips) - 2 - step]
            x = nn.functional.interpolate(reduce(x), scale_factor=2.0, mode="nearest")
            x = up(torch.cat([skip, x], dim=1))
        return self.neck(x)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map a batch of slice stacks to head outputs.

        Parameters
        ----------
        image : Tensor
            (batch, slices, H, W) float32, normalised intensity minus the background offset; H and
            W multiples of `config.multiple`.

        Returns
        -------
        logit, offset, size : Tensor
            (batch, 1, H/s, W/s) heat map before the sigmoid; (batch, 2, H/s, W/s) offsets and
            (batch, 2, H/s, W/s) sizes, both (y, x), in output cells.
        """
        x = self.features(image)
        return self.heat(x), self.offset(x), self.size(x)
