"""All blocks of a run: their size, who computes them, and what they leave on disk."""
