"""Tile folders: two-dimensional images of tissue with a record of where each comes from."""
