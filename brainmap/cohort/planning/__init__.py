"""Before and around a comparison: how many animals are needed, and one command from brains to results."""
