"""Would a cheap screen spare the network anything? What the faintest detection of each look leaves to skip.

    python benchmarks/screen.py [--detector NAME|DIR] [--looks 12] [--json FILE]

A screen would look for bumps of a cell's size in the network's input (mean of 3 x 3 pixels minus mean of 12 x 12),
and skip tiles in which none reaches a level. A level that loses nothing is below the strongest bump within two
pixels of EVERY detection of the network at its default threshold, over all looks of simulated tissue: printed as
"safe level". Beside it, for each look, the share of tiles with a bump above that level, and above a level that
would be safe for that look alone. Tiles are 64 and 128 pixels wide; the network's halo makes tiles that small 6
and 3 times as expensive by area, so a screen pays below a share of about 0.2 and 0.4.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainmap.infer.detector import Detector, load_backend
from brainmap.infer.plan.blocks import align_up
from brainmap.train.judge.predict import grid_of
from brainmap.train.learn.samples import net_volume
from brainmap.train.tissue.tissue import KINDS, Tissue, TissueConfig, simulate, simulate_section, variant

TILES = (64, 128)
MARGIN = 0.8


def looks(count: int) -> Iterator[tuple[str, Tissue]]:
    """Simulated tissue of every kind: the named ones, random, faint, and single sections."""
    for kind in KINDS:
        yield kind, simulate(variant(kind), 70_001)
    for seed in range(900, 900 + count):
        rng = np.random.default_rng(seed)
        yield f"random {seed}", simulate(TissueConfig.random(rng, 400.0), seed)
        yield f"faint {seed}", simulate(TissueConfig.faint(rng), seed)
        yield f"section {seed}", simulate_section(TissueConfig.section(rng), seed)


def heat(detector: Detector, stack: np.ndarray) -> np.ndarray:
    """Logits of a stack of network input."""
    halo, context = align_up(detector.spec.halo_px), detector.spec.channels // 2
    size = (align_up(stack.shape[1]) + 2 * halo, align_up(stack.shape[2]) + 2 * halo)
    backend = load_backend(detector, tile=size, threads=1)
    padded = np.zeros((len(stack) + 2 * context, *size), np.float32)
    inside = (slice(halo, halo + stack.shape[1]), slice(halo, halo + stack.shape[2]))
    padded[context : context + len(stack), *inside] = stack
    windows = (padded[k : k + 2 * context + 1][None] for k in range(len(stack)))
    return np.stack([backend.infer(np.ascontiguousarray(w))[0][0, 0][inside] for w in windows])


def bumps(stack: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 pixels minus mean over 12 x 12, slice by slice."""
    near = ndimage.uniform_filter(stack, (1, 3, 3), mode="nearest")
    return near - ndimage.uniform_filter(stack, (1, 12, 12), mode="nearest")


def share(strongest: np.ndarray, tile: int, level: float) -> float:
    """Share of tiles in which the strongest bump reaches a level."""
    depth, rows, columns = (n // t * t for n, t in zip(strongest.shape, (1, tile, tile), strict=True))
    part = strongest[:, :rows, :columns].reshape(depth, rows // tile, tile, columns // tile, tile)
    return float((part.max(axis=(2, 4)) >= level).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", default="default")
    parser.add_argument("--looks", type=int, default=12, help="random looks of each sort")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    detector = Detector.open(options.detector)
    lowest = detector.spec.logit_at(detector.spec.threshold)
    found = []
    for name, tissue in looks(options.looks):
        stack = net_volume(tissue, grid_of(detector)).stack.astype(np.float32)
        logit = heat(detector, stack)
        strongest = ndimage.maximum_filter(bumps(stack), (1, 5, 5))
        peak = (logit >= lowest) & (logit == ndimage.maximum_filter(logit, 3))
        # A peak needs its neighbours in the slices beside it.
        found.append((name, strongest[peak], ndimage.maximum_filter(strongest, (3, 1, 1))))
    safe = MARGIN * min(float(at.min()) for _, at, _ in found if len(at))
    rows = []
    for name, at, strongest in found:
        own = MARGIN * float(at.min()) if len(at) else float("nan")
        shares = {f"share_{t}": share(strongest, t, safe) for t in TILES}
        shares |= {f"own_share_{t}": share(strongest, t, own) if len(at) else 0.0 for t in TILES}
        rows.append({"look": name, "detections": len(at), "own_level": own} | shares)
    print(f"safe level {safe:.4f}; mean share of tiles left, 64 and 128 px:")
    for key in ("share", "own_share"):
        print(f"  {key:<10}", *(f"{np.mean([row[f'{key}_{t}'] for row in rows]):.2f}" for t in TILES))
    if options.json:
        options.json.write_text(json.dumps({"safe_level": safe, "looks": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
