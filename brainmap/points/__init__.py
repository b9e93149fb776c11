"""Tables of cells: read, written, matched, scored."""
