"""Synthetic tiles with known cells, and how like real ones they are."""
