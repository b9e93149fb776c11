"""brainmap: whole-brain cell detection, from a volume to a table of cells per atlas region."""

__version__ = "0.1.0"
