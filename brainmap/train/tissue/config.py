"""One look of simulated tissue, as a record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["TissueConfig"]


@dataclass(frozen=True)
class TissueConfig:
    """One look of simulated tissue.

    Intensities are relative to the mean background of the tissue, which is 1 before `background`
    turns it into grey levels. Amplitudes named `*_amount` are 0 where a structure is absent.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y, x.
    voxel_um : tuple of float
        Voxel size.
    density_per_mm3 : float
        Cells per cubic millimetre, clusters not counted.
    clusters : int
        Dense groups of cells, of 10 to 60 cells each.
    diameter_um, diameter_cv : float
        Mean cell diameter and its coefficient of variation.
    brightness, brightness_cv : float
        Median peak intensity of a cell above background, and the spread of its logarithm.
    ring_share, process_share : float
        Share of cells whose centre is dark, and of cells with processes.
    edge_power, glow : float
        Profile of a cell: 0.5 ** (radius ** edge_power), 2 a Gaussian, 8 a disc; `glow` of its peak
        spreads around it.
    separation : float
        Least distance of two cells, in cell diameters.
    photons : float
        Photons per background unit; sets the shot noise.
    """

    shape: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    density_per_mm3: float = 5_000.0
    clusters: int = 0
    diameter_um: float = 10.0
    diameter_cv: float = 0.12
    brightness: float = 2.0
    brightness_cv: float = 0.4
    ring_share: float = 0.1
    process_share: float = 0.0
    lumpiness: float = 0.3
    edge_power: float = 6.0
    glow: float = 0.0
    separation: float = 0.8
    haze_amount: float = 0.0
    texture_fine: float = 0.05
    texture_coarse: float = 0.1
    shadow_amount: float = 0.0
    vessels: int = 2
    vessel_amount: float = 0.3
    fibres: int = 0
    debris: int = 0
    granules_per_mm3: float = 0.0
    regions: float = 0.0
    holes: int = 0
    seams: float = 0.0
    elongation: float = 0.12
    edge: bool = False
    stripe_amount: float = 0.0
    shade_amount: float = 0.1
    section_gain: float = 0.03
    section_jitter_um: float = 0.0
    illumination: float = 0.2
    blur_um: tuple[float, float] = (1.5, 0.7)
    photons: float = 200.0
    read_noise: float = 0.01
    noise_blur: float = 0.0
    hot_pixels: float = 0.0
    background: float = 300.0
    dark: float = 100.0
    maximum: int = 65535

    @classmethod
    def random(cls, rng: np.random.Generator, extent_um: float = 300.0, groups: int = 12) -> TissueConfig:
        """Draw a look: `groups` detector slices deep and `extent_um` wide, of any kind."""
        pixel = float(np.exp(rng.uniform(np.log(0.5), np.log(3.0))))
        step = float(np.exp(rng.uniform(np.log(2.0), np.log(10.0))))
        pooled = max(1, round(4.0 / step))
        side = round(extent_um / pixel)
        # Mostly near the detector's nominal 10 um; a third up to large projection neurons.
        diameter = float(rng.uniform(7.0, 13.0) if rng.random() < 0.65 else rng.uniform(12.0, 22.0))
        busy = float(rng.choice([0.3, 1.0, 2.0], p=[0.3, 0.5, 0.2]))

        # At most a tenth of the space is cells.
        most = min(150_000.0, 0.1 / (np.pi / 6 * (diameter * 1e-3) ** 3))

        def sometimes(p: float, low: float, high: float) -> float:
            return float(rng.uniform(low, high)) if rng.random() < min(1.0, p * busy) else 0.0

        return cls(
            shape=(groups * pooled, side, side),
            voxel_um=(step, pixel, pixel),
            density_per_mm3=float(np.exp(rng.uniform(np.log(1_500), np.log(most)))) * (rng.random() > 0.06),
            clusters=int(rng.integers(1, 5)) if rng.random() < 0.3 else 0,
            diameter_um=diameter,
            diameter_cv=float(rng.uniform(0.03, 0.28)),
            brightness=float(np.exp(rng.uniform(np.log(0.2), np.log(15.0)))),
            brightness_cv=float(rng.uniform(0.1, 0.7)),
            ring_share=float(rng.choice([0.0, 0.15, 0.9], p=[0.5, 0.35, 0.15])),
            process_share=sometimes(0.25, 0.1, 0.8),
            lumpiness=float(rng.uniform(0.0, 0.6)),
            edge_power=float(np.exp(rng.uniform(np.log(1.7), np.log(9.0)))),
            glow=sometimes(0.35, 0.02, 0.15),
            separation=float(rng.uniform(0.7, 1.0)),
            haze_amount=sometimes(0.25, 0.1, 0.6),
            texture_fine=float(np.exp(rng.uniform(np.log(0.005), np.log(0.18)))),
            texture_coarse=float(np.exp(rng.uniform(np.log(0.02), np.log(0.5)))),
            shadow_amount=sometimes(0.3, 0.05, 0.5),
            vessels=int(rng.integers(1, 7)) if rng.random() < 0.6 * busy else 0,
            vessel_amount=float(rng.choice([-0.7, 0.3, 1.0, 4.0])),
            fibres=int(rng.integers(1, 30)) if rng.random() < 0.3 * busy else 0,
            debris=int(rng.integers(1, 25)) if rng.random() < 0.4 * busy else 0,
            granules_per_mm3=sometimes(0.45, 5e3, 3e5),
            regions=sometimes(0.35, 0.1, 0.8),
            holes=int(rng.integers(1, 4)) if rng.random() < 0.15 * busy else 0,
            seams=sometimes(0.3, 0.03, 0.25),
            elongation=float(rng.choice([0.08, 0.15, 0.28])),
            edge=bool(rng.random() < 0.25),
            stripe_amount=sometimes(0.25, 0.02, 0.25),
            shade_amount=float(rng.uniform(0.0, 0.4)),
            section_gain=float(rng.choice([0.0, 0.03, 0.15], p=[0.4, 0.4, 0.2])),
            section_jitter_um=sometimes(0.2, 0.3, 2.0),
            illumination=float(rng.uniform(0.0, 0.6)),
            blur_um=(float(rng.uniform(0.5, 4.0)), float(rng.uniform(0.3, 1.6))),
            photons=float(np.exp(rng.uniform(np.log(8), np.log(2000)))),
            read_noise=float(rng.uniform(0.0, 0.05)),
            noise_blur=float(rng.choice([0.0, 0.6, 1.0], p=[0.5, 0.25, 0.25])),
            hot_pixels=sometimes(0.08, 1e-5, 2e-4),
            background=float(np.exp(rng.uniform(np.log(20), np.log(4000)))),
            dark=float(rng.choice([0.0, 100.0, 400.0])),
            maximum=int(rng.choice([65535, 4095, 16383])),
        )

    @classmethod
    def faint(cls, rng: np.random.Generator) -> TissueConfig:
        """Draw a look whose cells hardly rise above their surroundings."""
        return replace(
            cls.random(rng),
            brightness=float(np.exp(rng.uniform(np.log(0.15), np.log(0.9)))),
            brightness_cv=float(rng.uniform(0.1, 0.45)),
            texture_fine=float(rng.uniform(0.02, 0.08)),
            texture_coarse=float(rng.uniform(0.02, 0.3)),
            photons=float(np.exp(rng.uniform(np.log(30), np.log(500)))),
        )

    @classmethod
    def section(cls, rng: np.random.Generator, extent_um: float = 360.0) -> TissueConfig:
        """Draw the look of a single section before its projection; see `simulate_section`."""
        base = cls.random(rng, extent_um)
        thickness = float(rng.uniform(6.0, 40.0))
        steps = int(np.ceil(thickness / 3.0))
        pixel = float(np.exp(rng.uniform(np.log(0.7), np.log(2.2))))
        side = round(extent_um / pixel)
        # At most a quarter of the plane is covered by cells.
        most = 0.25 / (np.pi / 4 * (base.diameter_um * 1e-3) ** 2 * thickness * 1e-3)
        eight_bit = rng.random() < 0.6
        return replace(
            base,
            shape=(steps, side, side),
            voxel_um=(thickness / steps, pixel, pixel),
            density_per_mm3=min(base.density_per_mm3, float(most * rng.uniform(0.05, 1.0))),
            clusters=min(base.clusters, 2),
            # Without neighbouring slices a clump of a cell's size cannot be told from a cell.
            debris=min(base.debris, 3),
            brightness_cv=float(rng.uniform(0.2, 1.0)),
            separation=float(rng.uniform(0.8, 1.1)),
            blur_um=(float(rng.uniform(1.0, 6.0)), base.blur_um[1]),
            section_gain=0.0,
            section_jitter_um=0.0,
            background=float(rng.uniform(8, 90)) if eight_bit else base.background,
            dark=float(rng.uniform(0, 15)) if eight_bit else base.dark,
            maximum=255 if eight_bit else base.maximum,
        )
