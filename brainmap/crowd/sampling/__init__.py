"""Tiles to annotate, chosen from one or many runs (methods 2, 11): `brainmap crowd sample`."""

from brainmap.crowd.sampling.request import DEFAULT_REGIONS, STRATEGIES, SampleRequest
from brainmap.crowd.sampling.sample import sample_tiles
from brainmap.crowd.sampling.sampled import Sampled

__all__ = ["DEFAULT_REGIONS", "STRATEGIES", "SampleRequest", "Sampled", "sample_tiles"]
