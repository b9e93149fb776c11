"""A run's cells in the formats of other tools."""
