"""Detection: a volume in, a table of cell centres out."""
