"""The two networks of the synthetic-tissue generator: background U-Net and patch critic.

Source: WGAN-GP (Gulrajani et al. 2017) with a U-Net generator and a patch critic, as in the founding study
(methods 5). The study does not say where the background's variety comes from; here it is noise added in the
decoder with learnt strength, a latent vector that sets the look of the whole tile (both as in StyleGAN, Karras
et al. 2019), and grain of the single pixels, whose strength is learnt for every place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["BackgroundNet", "Critic", "Noise", "gradient_penalty"]

_SLOPE = 0.2
# Grain begins at softplus(-2), an eighth of the way from black to grey.
_QUIET = 2.0


@dataclass(frozen=True)
class Noise:
    """What makes one background differ from the next.

    Parameters
    ----------
    maps : tuple of Tensor
        Standard normal noise, (n, 1, height / 2^level, width / 2^level) for each level from 0.
    grain : Tensor
        (n, 1, height, width): noise of the single pixels, as a sensor has it.
    latent : Tensor
        (n, latent), standard normal: the look of the whole tile.
    """

    maps: tuple[Tensor, ...]
    grain: Tensor
    latent: Tensor

    @classmethod
    def draw(
        cls, count: int, shape: tuple[int, int], levels: int, latent: int, rng: torch.Generator
    ) -> Noise:
        """Noise for `count` tiles of `shape`; `rng` lives on the CPU, so that a seed means the same anywhere."""
        maps = tuple(
            torch.randn(count, 1, shape[0] >> level, shape[1] >> level, generator=rng)
            for level in range(levels)
        )
        grain = torch.randn(count, 1, *shape, generator=rng)
        return cls(maps, grain, torch.randn(count, latent, generator=rng))

    def to(self, device: torch.device) -> Noise:
        return Noise(tuple(m.to(device) for m in self.maps), self.grain.to(device), self.latent.to(device))


class _NoisyConv(nn.Module):
    """Convolution, noise, look, activation, and a normalisation over the channels of each pixel.

    Nothing is averaged over the image, so that a tile of any size is made in the same way.

    Parameters
    ----------
    c_in, c_out, latent : int
    strength : float
        Strength of the noise to begin with.
    """

    def __init__(self, c_in: int, c_out: int, latent: int, strength: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="reflect")
        self.strength = nn.Parameter(torch.full((1, c_out, 1, 1), strength))
        self.look = nn.Linear(latent, 2 * c_out)
        nn.init.normal_(self.look.weight, std=0.1)
        nn.init.zeros_(self.look.bias)

    def forward(self, x: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        scale, shift = self.look(latent)[..., None, None].chunk(2, dim=1)
        x = self.conv(x) + self.strength * noise
        x = nn.functional.leaky_relu(x * (1 + scale) + shift, _SLOPE)
        return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)


class BackgroundNet(nn.Module):
    """U-Net from mask and cell image to background, B = G(M, C).

    Decoding enlarges by interpolation and convolves: transposed convolution, and also repetition, would leave
    even and odd pixels unlike, a checkerboard. Grain is added at the end, so that the finest scales need not be
    imitated by convolutions.

    Parameters
    ----------
    widths : tuple of int
        Channels at 1, 1/2, 1/4, ... of the resolution.
    latent : int
        Numbers that set the look of a whole tile.
    """

    def __init__(self, widths: tuple[int, ...], latent: int) -> None:
        super().__init__()
        self.levels, self.latent = len(widths), latent
        self.stem = nn.Conv2d(2, widths[0], 3, padding=1, padding_mode="reflect")
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1, padding_mode="reflect") for fine, coarse in pairs
        )
        self.bottom = _NoisyConv(widths[-1], widths[-1], latent)
        # At full resolution noise begins at nothing: random convolutions would draw it into streaks, and what
        # single pixels need is the grain.
        self.up = nn.ModuleList(
            _NoisyConv(coarse + fine, fine, latent, 0.3 if level else 0.0)
            for level, (fine, coarse) in reversed(list(enumerate(pairs)))
        )
        self.last = _NoisyConv(widths[0], widths[0], latent, 0.0)
        self.head = nn.Conv2d(widths[0], 2, 3, padding=1, padding_mode="reflect")

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (self.levels - 1)

    def forward(self, mask: Tensor, cells: Tensor, noise: Noise) -> Tensor:
        """Background in -1..1.

        Of the cell image only C M is looked at, what will be seen of it; how far beyond its cell a brightness
        was drawn would otherwise be painted as a square around it.

        Parameters
        ----------
        mask, cells : Tensor
            (n, 1, height, width), values 0..1.
        noise : Noise
            For the same shape.

        Returns
        -------
        Tensor
            (n, 1, height, width).
        """
        skips = [nn.functional.leaky_relu(self.stem(torch.cat([mask, cells * mask], dim=1)), _SLOPE)]
        for down in self.down:
            skips.append(nn.functional.leaky_relu(down(skips[-1]), _SLOPE))
        x = self.bottom(skips.pop(), noise.maps[-1], noise.latent)
        for level, up in zip(reversed(range(self.levels - 1)), self.up, strict=True):
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = torch.cat([x, skips.pop()], dim=1)
            x = up(x, noise.maps[level], noise.latent)
        grey, strength = self.head(self.last(x, noise.maps[0], noise.latent)).float().chunk(2, dim=1)
        return torch.tanh(grey + nn.functional.softplus(strength - _QUIET) * noise.grain)

    def start_at(self, grey: float) -> None:
        """Let backgrounds begin at this mean grey, 0..1."""
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.bias[0] = math.atanh(min(max(2 * grey - 1, -0.9), 0.9))


class Critic(nn.Module):
    """Convolutional critic: a score for every patch, their mean is D(x).

    It has no normalisation: one that couples the samples of a batch would void the gradient penalty, which
    is taken for each sample.

    Parameters
    ----------
    widths : tuple of int
        Channels at 1/2, 1/4, 1/8, ... of the resolution.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in zip((1, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """D(x), shape (n,), of images (n, 1, height, width) in 0..1."""
        return self.layers(2 * image - 1).float().mean(dim=(1, 2, 3))


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """E[(|grad D(X^)| - 1)^2] with X^ = mix * real + (1 - mix) * fake, in single precision.

    Parameters
    ----------
    critic : Critic
    real, fake : Tensor
        (n, 1, height, width).
    mix : Tensor
        (n, 1, 1, 1), uniform in 0..1.
    """
    between = (mix * real + (1 - mix) * fake).detach().requires_grad_(True)
    with torch.autocast(between.device.type, enabled=False):
        (slope,) = torch.autograd.grad(critic(between.float()).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
