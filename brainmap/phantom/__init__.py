"""A small brain with known cells, and its atlas: for the demo, the tests and the docs.

`write_phantom` makes, in seconds and from a seed, a two-channel OME-Zarr volume of a brain-shaped object, an atlas
in BrainGlobe layout, and the truth: every cell's position, size, region and side. The sample is the atlas put through
a known smooth warp, so what registration and counting should find is known exactly.
"""

from brainmap.phantom.build import Phantom, write_phantom

__all__ = ["Phantom", "write_phantom"]
